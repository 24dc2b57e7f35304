"""The command line: its help, its hints, and flags that exclude each other."""

import sys

import pytest

import arguments
import funcs
import main
import sources.names
from vision.errors import InputError


@pytest.fixture
def parse(monkeypatch):
    """parse(*words): the Namespace of a command line."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, words)])
        return arguments.parse(vars(main), main.__doc__)

    return run


def test_help_has_groups_units_environment_variables_and_exit_codes(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    text = capsys.readouterr().out
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    groups = ["sources", "model", "counting", "results", "performance", "this program"]
    assert (end.value.code, headings) == (0, groups + ["environment variables", "exit codes"])
    words = " ".join(text.split())
    assert (
        "fractions of the frame's width and height (0 to 1) or, if any is above 1, pixels" in words
    )
    assert "RKNNPOOL_WEB_PASSWORD" in words and "130 after Ctrl-C" in words


@pytest.mark.parametrize("flag, value", [("--save", "x.mp4"), ("--line", "a:0,0,1,1")])
def test_loop_is_refused_where_it_would_not_end_or_count_twice(parse, flag, value):
    with pytest.raises(InputError, match=f"^--loop cannot be combined with {flag}: "):
        parse("--loop", flag, value)


@pytest.mark.parametrize(
    "word, near",
    [
        ("persn", "person"),
        ("Car", "car"),
        ("traffic-light", "traffic light"),
        ("安全帽子", "安全帽"),
    ],
)
def test_a_wrong_class_name_suggests_the_nearest(word, near):
    with pytest.raises(InputError, match=f"{word}: no such class; did you mean {near}."):
        funcs.class_ids([word], ["person", "car", "traffic light", "安全帽", "反光衣"])


@pytest.mark.parametrize(
    "word, numbers",
    [("crane", {0, 2}), ("crane, car", {0, 1, 2}), ("2", {2}), ("1,crane", {0, 1, 2})],
)
def test_classes_are_chosen_by_name_or_number_and_all_of_one_name(word, numbers):
    """ImageNet has two classes called crane."""
    assert funcs.class_ids([word], ["crane", "car", "crane"]) == numbers


@pytest.mark.parametrize(
    "flag", [["--track"], ["--line", "a:0,0,1,1"], ["--zone", "a:0,0,1,0,1,1"]]
)
def test_a_classifier_has_no_boxes_to_track_or_count(main_here, flag):
    done = main_here("models/result.jpg", "--model", "models/resnet18_emoji.rknn", *flag)
    assert done.returncode == 2 and done.stderr.startswith(f"{flag[0]} needs boxes"), done.stderr


def test_a_users_func_without_boxes_is_refused(main_py, tmp_path):
    (tmp_path / "my.py").write_text(
        "from vision.detections import Detections\n"
        "def detect(rknn_lite, IMG):\n    return Detections(None, [0], [1])\n"
        "def draw(IMG, detections):\n    return IMG\n"
        "def myFunc(rknn_lite, IMG):\n    return draw(IMG, detect(rknn_lite, IMG))\n"
    )
    done = main_py("models/result.jpg", "--headless", "--track", "--func", tmp_path / "my.py")
    assert done.returncode == 2 and "--track needs boxes, but detect()" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "setting, value, name, expected",
    [
        ("web_name", "cam.example.com", "web_name", ["cam.example.com"]),
        ("web_name", ["a.example", "b.example"], "web_name", ["a.example", "b.example"]),
        ("cap", {1: "a.mp4", 2: 0}, "sources", [("1", "a.mp4"), ("2", "0")]),
        ("cap", ["a.mp4", 0], "sources", [(None, "a.mp4"), (None, "0")]),
    ],
)
def test_settings_may_be_written_in_several_ways(monkeypatch, setting, value, name, expected):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    parsed = arguments.parse({**vars(main), "web": "0", setting: value}, main.__doc__)
    assert getattr(parsed, name) == expected


# ---- sources ----


def test_pictures_without_a_name_are_one_source(parse, tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.mp4")]
    for path in paths:
        path.touch()
    first, second, video = map(str, paths)
    found = parse(video, first, f"gate={first}", second, "rtsp://host/x", "none.jpg").sources
    assert found == [
        (None, video),
        (None, [first, second]),
        ("gate", first),
        (None, "rtsp://host/x"),
        (None, "none.jpg"),
    ]
    assert parse(first, video).sources == [(None, first), (None, video)]


@pytest.mark.parametrize(
    "source, name",
    [
        ("photos/*.png", "photos"),
        ("photos/img_%03d.jpg", "photos"),
        ("*.png", "here"),
        ("*/*.png", "here"),
        (["photos/a.jpg", "photos/b.jpg"], "photos"),
        (["photos/a.jpg", "videos/b.jpg"], "here"),
        ("photos/a.jpg", "a.jpg"),
    ],
)
def test_pictures_are_named_after_their_folder(monkeypatch, tmp_path, source, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert sources.names.name_streams([(None, source)]) == [name]
