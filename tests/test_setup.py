"""--setup: lines, zones, confidence and classes of each stream, changed while it runs."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, full_disk, opened_demo, python
from fakes import wait_until
from tqdm import tqdm

import func
from results import counts
from results.counts import CountStore
from results.delivery import Delivery
from results.lines import Lines
from results.result import FrameTask, Result
from results.setup import Conflict, Setup
from rknnpool import rknnPoolExecutor
from streams import Stream
from vision.detections import Detections
from vision.errors import InputError
from vision.model import Model

NAMES = ["person", "car", "dog"]
DOOR = {"door": [[0.5, 0], [0.5, 1]]}
YARD = {"yard": [[0, 0], [1, 0], [1, 1]]}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "site.json")


@pytest.fixture
def opened(path, request):
    """opened(content, *names of streams, **flags): a Setup. content: of the file, or None."""

    def open_setup(content=None, *names, model_names=NAMES, **flags):
        if content is not None:
            with open(path, "w") as file:
                file.write(content if isinstance(content, str) else json.dumps(content))
        args = {"lines": {}, "zones": {}, "conf": None, "classes": None, "reset_counts": False}
        model = Model("model.rknn", names=model_names, conf=flags.get("conf"))
        if flags.get("classes"):
            model.class_ids = {NAMES.index(name) for name in flags["classes"]}
        setup = Setup(path, names or ["gate"], SimpleNamespace(**{**args, **flags}), model, func)
        request.addfinalizer(setup.store.close)
        return setup

    return open_setup


def attached(setup, *names, live=True):
    """Streams of a Setup that have no source: each is fed by feed()."""
    streams = [Delivery(name) for name in names or ["gate"]]
    sink = setup.attach(streams)
    for stream in streams:
        stream.live, stream.sinks = live, [sink]
    return streams if names else streams[0]


def feed(stream, *objects):
    """Deliver a frame with objects of 20 x 20 pixels: (identity, class, x of its feet, score).
    Returns the Result."""
    frame = np.zeros((100, 200, 3), np.uint8)
    result = Result(stream, stream.count, stream.count / 30, frame, 0.0)
    ids, classes, xs, scores = zip(*objects) if objects else ((), (), (), ())
    boxes = np.float32([(x - 10, 40, x + 10, 60) for x in xs]).reshape(-1, 4)
    result.detections = Detections(boxes, [NAMES.index(name) for name in classes], scores, NAMES)
    result.detections.ids = np.array(ids, np.int64)
    stream.deliver(result)
    return result


def cross(stream, identity=1, first=0, last=None):
    """Let a person cross x = 100, in steps of 10 pixels. Returns the last Result."""
    xs = list(range(60, 150, 10))
    return [feed(stream, (identity, "person", x, 0.9)) for x in xs[first:last]][-1]


def content(path):
    with open(path) as file:
        return json.load(file)


def rows(path):
    with contextlib.closing(sqlite3.connect(path.replace(".json", ".counts.sqlite3"))) as database:
        return database.execute(
            "SELECT stream, line, direction, class, count FROM counts"
        ).fetchall()


# ---- the file ----


def test_a_missing_file_is_created_for_people_to_edit(opened, path):
    opened(None, "gate", "yard")
    empty = {"lines": {}, "zones": {}, "conf": None, "classes": None}
    assert content(path) == {"gate": empty, "yard": empty}


def test_a_file_gives_each_stream_its_settings(opened):
    setup = opened(
        {
            "gate": {"lines": DOOR, "conf": 0.4, "classes": [0, "dog"]},
            "yard": {"zones": {"all": [[0, 0], [199, 0], [199, 99]]}, "conf": None},
        },
        "gate",
        "yard",
        "roof",
    )
    gate, yard, roof = map(setup.state, ("gate", "yard", "roof"))
    assert (gate["lines"], gate["zones"], gate["conf"]) == (DOOR, {}, 0.4)
    assert (gate["classes"], gate["all_classes"]) == (["person", "dog"], NAMES)
    assert (roof["lines"], roof["conf"], roof["classes"], roof["default_conf"]) == (
        {},
        None,
        None,
        0.25,
    )
    assert yard["size"] is None and yard["zones"] == {"all": [[0, 0], [199, 0], [199, 99]]}
    streams = attached(setup, "gate", "yard", "roof")
    assert feed(streams[1]).zones == {"all": {}}
    yard = setup.state("yard")  # pixels are fractions as soon as the size is known
    assert yard["size"] == [200, 100]
    assert yard["zones"] == {"all": [[0, 0], [0.995, 0], [0.995, 0.99]]}


MISTAKES = {
    "": "is empty; delete it, or write {} into it.",
    '{"gate": {"conf": 0.4,}}': "line 1 is not JSON",
    '{\n"gate" {}}': "line 2 is not JSON at column 8: Expecting ':' delimiter.",
    '{"gate": {"lines": {"a\tb": 1}}}': "line 1 is not JSON at column 23: Invalid control",
    '{"lines": {"door": [[0, 0], [1, 1]]}}': 'lines must be in the settings of a stream: {"gate"',
    "[1]": "must be an object with the names of streams",
    '{"gate": {}, "gate": {}}': "the key 'gate' is used twice",
    '{"gate": 3}': "gate: must be an object with the keys lines, zones, conf, classes, not 3.",
    '{"gate": {"line": {}}}': "gate: unknown key 'line'; did you mean lines?",
    '{"gate": {"lines": []}}': "gate, lines: The lines must map names to points, not [].",
    '{"gate": {"lines": {"door": 5}}}': "gate, lines: The line door needs points",
    '{"gate": {"lines": {"door": [[0, 0]]}}}': "gate, lines: The line door needs two points",
    '{"gate": {"lines": {"door": [[0, "1"], [1, 1]]}}}': "gate, lines: The line door needs points",
    '{"gate": {"lines": {"door": [[0, true], [1, 1]]}}}': "gate, lines: The line door needs point",
    '{"gate": {"lines": {"door": [[0, NaN], [1, 1]]}}}': "gate, lines: The line door has a coord",
    '{"gate": {"lines": {"door": [[0, 1e300], [1, 1]]}}}': "gate, lines: The line door has a coord",
    '{"gate": {"lines": {"door": [[0, %s], [1, 1]]}}}' % (10**400): "gate, lines: The line door",
    '{"gate": {"lines": {"a/b": [[0, 0], [1, 1]]}}}': "gate, lines: The line 'a/b': its name",
    '{"gate": {"zones": {"yard": [[0, 0], [1, 1]]}}}': "gate, zones: The zone yard needs at least",
    '{"gate": {"conf": 2}}': "gate, conf: must be a number from 0.01 to 1, not 2.",
    '{"gate": {"conf": "0.5"}}': "gate, conf: must be a number from 0.01 to 1, not '0.5'.",
    '{"gate": {"conf": NaN}}': "gate, conf: must be a number from 0.01 to 1, not nan.",
    '{"gate": {"classes": "car"}}': "gate, classes: must be a list of classes",
    '{"gate": {"classes": ["cra"]}}': "gate, classes: 'cra': no such class; did you mean car?",
    '{"gate": {"classes": [3]}}': "gate, classes: 3: no such class.",
    '{"gate": {"classes": [{}]}}': "gate, classes: {}: no such class.",
    "[" * 100000: "maximum recursion depth",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:40])
def test_a_mistake_in_the_file_is_reported_in_one_sentence_with_stream_and_key(opened, path, text):
    with pytest.raises(InputError) as error:
        opened(text)
    assert str(error.value).startswith(f"{path}: {MISTAKES[text]}".rstrip("."))
    assert len(str(error.value)) < len(path) + 250 and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"gate": {"conf": 0.4,}}', '{"gate": {"classes": [0, ]}}'])
def test_a_comma_too_many_is_named(opened, text):
    with pytest.raises(InputError, match="line 1 is not JSON.* comma .*before"):
        opened(text)


@pytest.mark.parametrize("create", [os.mkdir, os.mkfifo])
def test_a_path_that_is_not_a_file_is_refused(opened, path, create):
    create(path)
    with pytest.raises(InputError, match="site.json: is not a file."):
        opened()


def test_a_mistake_in_the_file_ends_main_py_with_code_2(main_here, path):
    with open(path, "w") as file:
        file.write('{"gate": {"conf": 2}}')
    done = main_here("gate=models/demo.mp4", "--headless", "--setup", path)
    assert done.returncode == 2
    sentence = f"{path}: gate, conf: must be a number from 0.01 to 1, not 2.\n"
    assert done.stderr.endswith(sentence) and "Traceback" not in done.stderr


def test_streams_that_do_not_run_are_kept_and_mentioned(opened, path, printed):
    others = {"roof": {"conf": 7, "note": "of another model"}, "摄像头": {"lines": DOOR}}
    setup = opened({"gate": {}, **others})
    attached(setup)
    assert printed == [f"{path}: also contains roof, 摄像头, which do not run."]
    setup.change("gate", {"conf": 0.5}, setup.state("gate")["version"], save=True)
    assert {name: content(path)[name] for name in others} == others
    with open(path, encoding="utf-8") as file:  # as people like to read it
        assert '  "摄像头": {\n    "lines": {\n      "door": [[0.5, 0], [0.5, 1]]\n' in file.read()


def test_other_streams_that_others_have_changed_in_the_file_are_kept(opened, path):
    setup = opened({"gate": {}})
    version = setup.state("gate")["version"]
    with open(path, "w") as file:
        file.write('{"gate": {}, "yard": {"conf": 0.3}}')
    setup.change("gate", {"conf": 0.5}, version, save=True)
    assert content(path)["yard"] == {"conf": 0.3} and content(path)["gate"]["conf"] == 0.5
    with open(path, "w") as file:
        file.write('{"gate": ')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        setup.change("gate", {}, setup.state("gate")["version"], save=True)
    with open(path) as file:
        assert file.read() == '{"gate": '


def test_two_programs_that_save_at_once_lose_nothing(opened, path):
    programs = {name: opened(None, name) for name in ("gate", "yard")}

    def save_often(name):
        for number in range(30):
            version = programs[name].state(name)["version"]
            programs[name].change(name, {"conf": 0.3 + number / 100}, version, save=True)

    with ThreadPoolExecutor() as executor:
        assert list(executor.map(save_often, programs)) == [None, None]
    assert {name: content(path)[name]["conf"] for name in programs} == {"gate": 0.59, "yard": 0.59}


def test_a_stream_that_others_have_changed_in_the_file_is_not_overwritten(opened, path):
    setup = opened({"gate": {"conf": 0.5}})
    with open(path, "w") as file:
        json.dump({"gate": {"conf": 0.5, "zones": YARD}}, file)
    version = setup.state("gate")["version"]
    with pytest.raises(ValueError, match="gate has been changed in the file since"):
        setup.change("gate", {"conf": 0.6}, version, save=True)
    assert content(path)["gate"] == {"conf": 0.5, "zones": YARD}
    setup.change("gate", {"conf": 0.6}, version)  # can still be used in this run


def test_a_deleted_file_is_written_again_with_all_streams(opened, path):
    roof = {"conf": 7, "note": "does not run"}
    setup = opened({"gate": {}, "yard": {"lines": DOOR}, "roof": roof}, "gate", "yard")
    os.remove(path)
    setup.change("gate", {"conf": 0.5}, setup.state("gate")["version"], save=True)
    assert content(path)["gate"]["conf"] == 0.5
    assert content(path)["yard"] == {"lines": DOOR} and content(path)["roof"] == roof


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_the_file_keeps_its_owner(opened, path):
    setup = opened({"gate": {}})
    os.chown(path, 65534, 65534)
    setup.change("gate", {"conf": 0.6}, setup.state("gate")["version"], save=True)
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (65534, 65534)


READ_ONLY = """
import os, sys
from results.setup_file import write
if os.geteuid() == 0:  # root may write every file
    os.setuid(65534)
write(sys.argv[1], {})
"""


def test_a_file_that_is_read_only_is_not_replaced(tmp_path):
    # not below tmp_path, which only root may enter
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "site.json")
        with open(path, "w") as file:
            file.write('{"gate": {}}')
        os.chmod(folder, 0o777)
        os.chmod(path, 0o444)
        done = python("-c", READ_ONLY, path)
        assert "site.json: cannot be written (Permission denied)." in done.stderr
        assert content(path) == {"gate": {}}


def test_the_file_is_replaced_as_a_whole(opened, path):
    """So that a power cut leaves the old content or the new one."""
    setup = opened({"gate": {"conf": 0.5}})
    os.chmod(path, 0o640)
    with open(path + ".part", "w") as file:  # of a program that was killed while it saved
        file.write('{"gate":' * 1000)
    with open(path) as old:
        setup.change("gate", {"conf": 0.6}, setup.state("gate")["version"], save=True)
        assert json.load(old) == {"gate": {"conf": 0.5}}
    assert content(path)["gate"]["conf"] == 0.6 and os.stat(path).st_mode & 0o777 == 0o640
    assert os.listdir(os.path.dirname(path)) == ["site.json"]


# ---- changes ----


def test_a_change_is_used_in_this_run_and_in_the_next_one_if_it_is_saved(opened, path):
    setup = opened()
    old = setup.state("gate")
    new = setup.change("gate", {"lines": DOOR, "classes": ["car"]}, old["version"])
    assert (new["lines"], new["classes"], new["saved"]) == (DOOR, ["car"], False)
    assert content(path)["gate"]["lines"] == {}
    assert setup.discard("gate", new["version"])["lines"] == {}
    new = setup.change("gate", {"zones": YARD, "conf": 0.3}, setup.state("gate")["version"])
    new = setup.change("gate", {}, new["version"], save=True)
    assert new["saved"]
    again = opened().state("gate")
    assert {**again, "version": 0} == {**new, "version": 0} and again["zones"] == YARD


def test_the_later_of_two_simultaneous_changes_is_refused(opened, path):
    setup = opened(None, "gate", "yard")
    read = setup.state("gate")["version"]  # by both
    setup.change("gate", {"conf": 0.3}, read, save=True)
    for late in (
        lambda: setup.change("gate", {"conf": 0.9}, read, save=True),
        lambda: setup.change("gate", {}, read, save=True),
        lambda: setup.discard("gate", read),
    ):
        with pytest.raises(Conflict, match="gate: these settings were changed"):
            late()
    assert setup.state("gate")["conf"] == content(path)["gate"]["conf"] == 0.3
    setup.change("yard", {"conf": 0.5}, setup.state("yard")["version"])  # is not affected


HOSTILE = [
    None,
    [],
    "lines",
    {"lines": {"<b>door</b>": DOOR["door"]}},
    {"lines": {'"; DROP TABLE counts; --': DOOR["door"]}},
    {"lines": {"it's": DOOR["door"]}},
    {"lines": {"../etc": DOOR["door"]}},
    {"lines": {"a" * 10000: DOOR["door"]}},
    {"lines": {"/" * 10000: DOOR["door"]}},
    {"lines": {"\ud800": DOOR["door"]}},
    {"lines": {"": DOOR["door"]}},
    {"lines": {"door\n": DOOR["door"]}},
    {"lines": {"door": [[0.5, 0.5], [0.5, 0.5]]}},
    {"lines": {"door": [[0.5, 0.5], [0.5, 0.500001]]}},
    {"lines": {"door": [[0.5, 0], [0.5, 1.1]]}},
    {"lines": {"door": [[100, 0], [100, 99]]}},
    {"lines": {"door": [[-0.1, 0], [0.5, 1]]}},
    {"lines": {"door": [["0", "0"], ["1", "1"]]}},
    {"lines": {"door": [[float("nan"), 0], [1, 1]]}},
    {"lines": {"door": [[float("inf"), 0], [1, 1]]}},
    {"lines": {"door": [[10**400, 0], [1, 1]]}},
    {"lines": {"door": [[None, 0], [1, 1]]}},
    {"lines": {"door": {"x": 1}}},
    {"lines": {f"line {number}": DOOR["door"] for number in range(51)}},
    {"lines": {f"line {number}": DOOR["door"] for number in range(50)}, "zones": YARD},
    {"zones": {"yard": [[0, 0], [0.5, 0.5], [1, 1]]}},
    {"zones": {"yard": [[0, 0], [1, 1], [0, 1], [1, 0]]}},
    {"zones": {"yard": [[0, 0], [1, 0], [1, 1], [0.2, -0.0], [0, 1]]}, "conf": -1},
    {"zones": {"yard": [[0, 0], [0, 0], [0, 0]]}},
    {"zones": {"yard": [[number / 501, (number / 501) ** 2] for number in range(501)]}},
    {"conf": 0},
    {"conf": "high"},
    {"conf": True},
    {"conf": 10**400},
    {"conf": [0.5]},
    {"classes": []},
    {"classes": "car"},
    {"classes": ["<script>"]},
    {"classes": [True]},
    {"classes": [10**400]},
    {"classes": ["x" * 10000]},
    {"__class__": {}},
    {"x" * 10000: {}},
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data)[:40])
def test_wrong_data_is_refused_in_one_short_sentence_and_changes_nothing(opened, path, data):
    setup = opened({"gate": {"conf": 0.5}})
    before, text = setup.state("gate"), content(path)
    with pytest.raises(ValueError) as error:
        setup.change("gate", data, before["version"], save=True)
    assert not isinstance(error.value, Conflict)
    assert 10 < len(str(error.value)) < 250 and "\n" not in str(error.value)
    assert setup.state("gate") == before and content(path) == text


def test_names_in_every_script_and_fifty_shapes_are_allowed(opened):
    setup = opened()
    shapes = {f"Übergang 出口-{number} (a.b_c)": DOOR["door"] for number in range(49)}
    new = setup.change(
        "gate", {"lines": shapes, "zones": YARD}, setup.state("gate")["version"], save=True
    )
    assert new["lines"] == shapes
    result = feed(attached(setup))
    assert list(result.lines) == list(shapes)
    result.picture  # noqa: B018  all are drawn


def test_a_zone_that_only_touches_itself_is_allowed(opened):
    touching = [[0, 0], [0.5, 0.5], [1, 0], [1, 1], [0.5, 0.5], [0, 1], [0, 1], [0, 0]]
    setup = opened()
    assert setup.change("gate", {"zones": {"x": touching}}, setup.state("gate")["version"])


def test_a_file_that_cannot_be_written_changes_nothing(opened, path):
    setup = opened()
    before = setup.state("gate")
    with full_disk(path), pytest.raises(ValueError, match="cannot be written"):
        setup.change("gate", {"lines": DOOR}, before["version"], save=True)
    assert setup.state("gate") == before
    assert sorted(os.listdir(os.path.dirname(path))) == ["site.json"]


# ---- the stream ----


def test_unchanged_lines_keep_their_counts_and_changed_ones_start_at_0(opened):
    setup = opened({"gate": {"lines": {"door": [[100, 0], [100, 99]], **{"exit": DOOR["door"]}}}})
    stream = attached(setup)
    before = cross(stream)
    once = {"in": {}, "out": {"person": 1}}
    assert before.lines == {"door": once, "exit": once}
    state = setup.state("gate")
    # the page sends back what it got; "door" is in pixels in the file
    lines = {**state["lines"], "exit": [[0.5, 0], [0.5, 0.9]], "new": [[0.1, 0], [0.1, 1]]}
    state = setup.change("gate", {"lines": lines, "zones": YARD}, state["version"])
    after = feed(stream)
    zero = {"in": {}, "out": {}}
    assert after.lines == {"door": once, "exit": zero, "new": zero}
    assert after.zones == {"yard": {}} and before.lines == {"door": once, "exit": once}
    setup.change("gate", {"lines": {"door": lines["door"]}, "zones": {}}, state["version"])
    after = feed(stream)
    assert after.lines == {"door": once} and after.zones == {}


def test_a_crossing_counts_although_the_setup_changes_during_it(opened):
    setup = opened({"gate": {"lines": DOOR}})
    stream = attached(setup)
    cross(stream, last=6)  # beyond the line, for too few frames to count
    lines = {**DOOR, "exit": [[0.1, 0], [0.1, 1]]}
    setup.change("gate", {"lines": lines}, setup.state("gate")["version"])
    assert cross(stream, first=6).lines["door"] == {"in": {}, "out": {"person": 1}}


def test_earlier_results_draw_the_lines_that_they_were_made_with(opened):
    setup = opened({"gate": {"lines": DOOR, "zones": YARD}})
    stream = attached(setup)
    before = feed(stream)
    setup.change("gate", {"lines": {}, "zones": {}}, setup.state("gate")["version"])
    after = feed(stream)
    assert before.picture.any() and not after.picture.any()


def test_no_frame_is_lost_by_changes(opened, clip, runtime):
    """Real stream and pool: one change for each frame, by another thread."""
    setup = opened({"gate": {"lines": DOOR}})
    module = SimpleNamespace(
        detect=lambda context, frame: Detections([[1, 2, 3, 4]], [1], [0.9], NAMES),
        draw=lambda frame, found: frame,
    )
    seen, stream = [], Stream(str(clip), "gate")

    class Sink:
        def write(self, result):
            seen.append((result.number, tuple(result.lines)))
            names = {f"line {len(seen)}": DOOR["door"], **DOOR}
            version = setup.state("gate")["version"]
            changer = threading.Thread(
                target=setup.change, args=("gate", {"lines": names}, version)
            )
            changer.start()
            changer.join()

    setup.attach([stream])
    stream.sinks = [Sink()]
    with rknnPoolExecutor("x.rknn", TPEs=2, func=FrameTask(module), runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert stream.error is None
    expected = [("door",)] + [(f"line {number}", "door") for number in range(1, 45)]
    assert seen == list(enumerate(expected))


# ---- confidence and classes ----


def test_the_model_detects_with_the_lowest_confidence_and_each_stream_keeps_its_own(opened):
    setup = opened({"gate": {"conf": 0.1}, "yard": {"conf": 0.6}}, "gate", "yard", "roof")
    assert setup.model.conf == 0.1
    streams, tracked = attached(setup, "gate", "yard", "roof"), []
    for stream in streams:
        stream.tracker = SimpleNamespace(
            update=lambda result: tracked.append(result.detections.scores)
        )

    def kept():
        tracked.clear()
        for stream in streams:
            feed(stream, *((number, "car", 50, number / 10) for number in range(9, 0, -1)))
        return [len(scores) for scores in tracked]

    assert kept() == [9, 4, 7]  # roof: from the func file's 0.25 on
    setup.change("gate", {"conf": None}, setup.state("gate")["version"])
    assert setup.model.conf == 0.25
    setup.change("yard", {"conf": 0.05}, setup.state("yard")["version"])
    assert setup.model.conf == 0.05
    assert kept() == [7, 9, 7]


def test_filtering_detections_gives_the_same_as_detecting_with_a_higher_confidence(
    demo_frames, path
):
    """With the real model, through NMS."""
    context, names = opened_demo("yolov5n"), ("low", "high")
    args = SimpleNamespace(lines={}, zones={}, conf=None, classes=None, reset_counts=False)
    expected = {}
    for name, conf in zip(names, (0.02, 0.9)):
        context.model.conf = conf
        expected[name] = func.detect(context, demo_frames[30])
    assert 0 < len(expected["high"]) < len(expected["low"]) - 5
    context.model.conf = None
    with open(path, "w") as file:
        json.dump({"low": {"conf": 0.02}, "high": {"conf": 0.9}}, file)
    setup = Setup(path, names, args, context.model, func)
    for stream in attached(setup, *names):
        result = Result(stream, 0, 0, demo_frames[30], 0)
        FrameTask(func)(context, result)
        stream.deliver(result)
        for found, wanted in zip(result.detections, expected[stream.name]):
            assert np.array_equal(found, wanted)
    setup.store.close()


def test_each_stream_keeps_its_own_classes(opened):
    setup = opened({"gate": {"classes": ["dog", "car"]}}, "gate", "yard")
    gate, yard = attached(setup, "gate", "yard")
    animals = [(1, "person", 20, 0.9), (2, "dog", 50, 0.8), (3, "car", 90, 0.7)]
    assert feed(gate, *animals).detections.ids.tolist() == [2, 3]
    assert feed(yard, *animals).detections.ids.tolist() == [1, 2, 3]
    setup.change("gate", {"classes": ["person"]}, setup.state("gate")["version"])
    assert feed(gate, *animals).detections.ids.tolist() == [1]
    assert len(feed(gate).detections) == 0


def test_classes_of_a_model_without_names_are_given_by_number(opened, monkeypatch):
    monkeypatch.setattr(func, "CLASSES", ())
    setup = opened({"gate": {"classes": [2]}}, model_names=None)
    assert setup.state("gate")["all_classes"] == [] and setup.state("gate")["classes"] == ["2"]
    animals = [(1, "person", 20, 0.9), (2, "dog", 50, 0.8), (3, "car", 90, 0.7)]
    assert feed(attached(setup), *animals).detections.ids.tolist() == [2]


# ---- flags ----


def test_flags_replace_the_file_in_this_run_and_are_not_saved(opened, path):
    file = {"lines": DOOR, "zones": YARD, "conf": 0.5, "classes": ["car"]}
    flags = {
        "lines": {"exit": ((0, 0), (1, 1))},
        "zones": {"yard/lawn": ((0, 0), (1, 0), (1, 1))},
        "conf": 0.2,
        "classes": ["person", "dog"],
    }
    setup = opened({"gate": file, "yard": file}, "gate", "yard", **flags)
    gate, yard = setup.state("gate"), setup.state("yard")
    assert (gate["lines"], yard["lines"]) == 2 * ({"exit": [[0, 0], [1, 1]]},)
    assert (gate["zones"], list(yard["zones"])) == (YARD, ["lawn"])
    assert (gate["conf"], gate["classes"], setup.model.conf) == (0.2, ["person", "dog"], 0.2)
    assert gate["fixed"] == {"lines": "--line", "conf": "--conf", "classes": "--classes"}
    with pytest.raises(ValueError, match="lines cannot be changed in this run, because --line"):
        setup.change("gate", {"lines": DOOR}, gate["version"])
    assert setup.change("gate", {"zones": {}}, gate["version"], save=True)["saved"]
    assert content(path) == {"gate": {**file, "zones": {}}, "yard": file}
    with pytest.raises(InputError, match="there is no stream roof"):
        opened(None, "gate", lines={"roof/door": ((0, 0), (1, 1))})


def test_the_flag_reset_counts_needs_setup(main_here):
    done = main_here("models/demo.mp4", "--headless", "--reset-counts")
    assert (done.returncode, done.stderr) == (2, "--reset-counts needs --setup.\n")


# ---- counts ----


def test_counts_of_live_sources_survive_a_restart_and_those_of_files_do_not(opened, path):
    lines = {"door": DOOR["door"], "exit": [[0.45, 0], [0.45, 1]]}
    settings = {"gate": {"lines": lines}, "file": {"lines": lines}}
    setup = opened(settings, "gate", "file")
    for stream, live in zip(attached(setup, "gate", "file"), (True, False)):
        stream.live = live
        cross(stream)
    setup.store.close()
    settings["gate"]["lines"]["exit"] = [[0.46, 0], [0.46, 1]]  # moved
    setup = opened(settings, "gate", "file")
    gate, file = attached(setup, "gate", "file")
    file.live, zero, once = False, {"in": {}, "out": {}}, {"in": {}, "out": {"person": 1}}
    assert feed(gate).lines == {"door": once, "exit": zero}
    assert feed(file).lines == {"door": zero, "exit": zero}
    assert cross(gate, 2).lines["door"]["out"] == {"person": 2}
    setup.store.close()
    assert set(rows(path)) == {
        ("gate", "door", "out", "person", 2),
        ("gate", "exit", "out", "person", 1),
    }


def test_counts_are_reset_on_the_page_and_by_the_flag_reset_counts(opened, path):
    setup = opened({"gate": {"lines": DOOR}, "yard": {"lines": DOOR}}, "gate", "yard")
    gate, yard = attached(setup, "gate", "yard")
    cross(gate), cross(yard)
    setup.reset("gate")
    assert feed(gate).lines == {"door": {"in": {}, "out": {}}}
    assert feed(yard).lines["door"]["out"] == {"person": 1}
    setup.store.close()
    assert rows(path) == [("yard", "door", "out", "person", 1)]
    opened(None, "gate", reset_counts=True)  # the counts of yard, which does not run, stay
    assert rows(path) == [("yard", "door", "out", "person", 1)]
    setup = opened(None, "yard", reset_counts=True)
    assert rows(path) == []
    assert feed(attached(setup, "yard")[0]).lines == {"door": {"in": {}, "out": {}}}


def test_counts_of_lines_given_by_a_flag_are_not_kept(opened, path):
    setup = opened({"gate": {"lines": DOOR}})
    cross(attached(setup))
    setup.store.close()
    kept = rows(path)
    setup = opened(None, "gate", lines={"door": ((0, 0), (1, 1))})
    cross(attached(setup))
    setup.store.close()
    assert rows(path) == kept == [("gate", "door", "out", "person", 1)]


WRITER = """
import itertools, sys
from types import SimpleNamespace
from results import counts
from results.lines import Lines
counts.WRITE_SECONDS = 0.001
store = counts.CountStore(sys.argv[1])
stream = SimpleNamespace(name="gate", lines=Lines({"door": ((0, 0), (1, 1))}))
store.streams.add("gate")
before = store.counts("gate", stream.lines.lines).get("door", {"in": {}})["in"].get("car", 0)
print(before, flush=True)
for count in itertools.count(before):
    ways = {"in": {"car": count}, "out": {"car": count}}
    store.write(SimpleNamespace(stream=stream, lines={"door": ways}))
"""


def test_a_kill_at_any_moment_leaves_a_readable_file_with_the_counts_of_one_moment(tmp_path):
    file, last = str(tmp_path / "site.counts.sqlite3"), 0
    for _ in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE, env=environment
        )
        with writer:
            assert int(writer.stdout.readline()) == last
            seen = [last]
            # As another program that reads the file meanwhile, until it was written three times.
            wait_until(lambda seen=seen: len(set(seen)) > 3 or seen.append(written(file)))
            writer.send_signal(signal.SIGKILL)
        seen.append(written(file))
        assert seen == sorted(seen)
        last = seen[-1]


def written(file):
    """The only count of WRITER's file; 0 if there is none yet."""
    if not os.path.exists(file):
        return 0
    with contextlib.closing(sqlite3.connect(file)) as database:
        with contextlib.suppress(sqlite3.OperationalError):  # no table yet
            found = database.execute("SELECT DISTINCT count FROM counts").fetchall()
            assert len(found) <= 1
            return found[0][0] if found else 0
    return 0


def test_counts_are_written_while_the_stream_runs(opened, path, monkeypatch):
    monkeypatch.setattr(counts, "WRITE_SECONDS", 0.01)
    setup = opened({"gate": {"lines": DOOR}})
    cross(attached(setup))
    file = path.replace(".json", ".counts.sqlite3")
    wait_until(lambda: written(file) == 1)


def test_a_damaged_file_of_counts_is_reported_in_one_sentence(tmp_path):
    (tmp_path / "x.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="x.sqlite3: the counts cannot be read .*Delete this file"):
        CountStore(str(tmp_path / "x.sqlite3"))


def test_counts_that_cannot_be_saved_are_reported_once_and_saved_later(tmp_path, printed):
    folder = tmp_path / "later"
    store = CountStore(str(folder / "x.sqlite3"))
    stream = SimpleNamespace(name="gate", lines=Lines(DOOR))
    store.streams.add("gate")
    ways = {"door": {"in": {"car": 1}, "out": {}}}
    store.write(SimpleNamespace(stream=stream, lines=ways))
    for _ in range(2):
        with pytest.raises(InputError, match="x.sqlite3: the last counts are missing."):
            store.close()
    assert len(printed) == 1 and "the counts cannot be saved" in printed[0]
    folder.mkdir()
    store.close()
    assert CountStore(str(folder / "x.sqlite3")).counts("gate", stream.lines.lines) == ways


# ---- main.py ----


def test_main_py_counts_with_the_file(main_py, clip, car_func, path, tmp_path):
    with open(path, "w") as file:
        zones = {"yard": [[0, 0], [639, 0], [639, 359], [0, 359]]}
        json.dump({"street": {"zones": zones, "conf": 0.9}, "other": {"zones": zones}}, file)
    words = "--headless", "--quiet", "--func", car_func, "--setup", path, "--json", "-"
    done = main_py(f"street={clip}", f"other={clip}", *words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 90
    assert all(line["zones"] == {"yard": {"car": 1}} and line["lines"] == {} for line in lines)
    # no counts of files
    assert set(os.listdir(tmp_path)) - {"__pycache__"} == {"car.py", "site.json"}


def test_without_the_flag_setup_none_of_its_files_is_imported():
    pytest.importorskip("aiohttp")
    script = "import sys, results.web; results.web.Web('0', []); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "results.routes" in loaded
    assert not {"results.setup", "results.setup_routes", "results.counts", "sqlite3"} & loaded


def test_setup_with_a_classifier_is_refused(main_here, path):
    words = "models/result.jpg", "--model", "models/resnet18_emoji.rknn", "--setup", path
    done = main_here(*words)
    assert done.returncode == 2 and done.stderr.startswith("--setup needs boxes"), done.stderr
