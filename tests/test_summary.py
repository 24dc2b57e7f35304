"""What a run prints about its detections, and the pages and windows that stay open after its
end."""

import re
import signal
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import cv2
import fakes
import numpy as np
import pytest
from conftest import ROOT

from results.summary import Findings
from streams import Stream
from vision.detections import Detections

# The brighter the frame, the more persons; two cars if there is a person. In the clip: one person,
# who moves to the right as the bar in the corner grows.
FINDS = """
import cv2
import numpy as np
from vision.detections import Detections

def detect(rknn_lite, IMG):
    if IMG.shape[0] == 360:
        x = 12 * np.count_nonzero(IMG[20, :, 1] > 127) // 4
        return Detections([[x, 100, x + 20, 140]], [0], [0.9], ("person", "car"))
    number = int(IMG[0, 0, 0])
    classes = [0] * number + [1] * (2 if number else 0)
    boxes = [[5 * n, 5, 5 * n + 4, 9] for n in range(len(classes))]
    return Detections(boxes, classes, [0.9] * len(classes), ("person", "car"))

def draw(IMG, detections):
    return IMG

def myFunc(rknn_lite, IMG):
    return draw(IMG, detect(rknn_lite, IMG))
"""


@pytest.fixture
def finds(tmp_path):
    """Path of a func file with the code FINDS."""
    (tmp_path / "finds.py").write_text(FINDS)
    return tmp_path / "finds.py"


@pytest.fixture
def photos(tmp_path):
    """Paths of three pictures with 0, 1 and 3 persons."""
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"IMG_{number}.png" for number in range(3)]
    for path, persons in zip(paths, (0, 1, 3)):
        cv2.imwrite(str(path), np.full((64, 64, 3), persons, np.uint8))
    return paths


def lines_of(done):
    assert done.returncode == 0, done.stderr
    other = ("Limited by ", "No single stage limits ")  # after 5 s, on a slow machine
    lines = done.stdout.splitlines()
    return [line for line in lines if "FPS" not in line and not line.startswith(other)]


# ---- lines ----


def test_pictures_of_one_command_line_are_one_stream_with_a_line_each(
    main_py, finds, photos, tmp_path
):
    """A shell expands photos/*.png to such arguments."""
    done = main_py(*photos, "--headless", "--func", finds, "--save", tmp_path / "found")
    assert lines_of(done) == [
        "IMG_0.png: nothing found",
        "IMG_1.png: car 2, person 1",
        "IMG_2.png: person 3, car 2",
        "photos: at most person 3, car 2 in one picture",
        f"saved {tmp_path}/found: 3 pictures",
    ]
    assert "photos: 3 frames in" in done.stdout
    assert len(list((tmp_path / "found").iterdir())) == 3


def test_a_run_with_a_line_prints_crossings_and_what_was_saved(main_py, finds, clip, tmp_path):
    out = tmp_path / "out.avi"
    done = main_py(
        *(clip, "--headless", "--func", finds, "--line", "door:0.5,0,0.5,1"),
        *("--save", out, "--json", tmp_path / "out.jsonl"),
    )
    assert lines_of(done) == [
        "clip.avi: door in: 0; door out: person 1",
        f"saved {out}: 45 frames, 1.5 s",
        f"saved {tmp_path}/out.jsonl: 45 lines",
    ]


def test_json_on_stdout_has_no_other_output(main_py, finds, photos):
    done = main_py(photos[2], "--headless", "--func", finds, "--json", "-")
    assert done.returncode == 0 and re.fullmatch(r"\{.*\}\n", done.stdout)
    assert "IMG_2.png: person 3, car 2\n" in done.stderr


def stream_of(frames, tracker=None, loop=False):
    """A Findings after these frames, each a list of (identity, class)."""
    of = fakes.stream()
    of.tracker, of.lines, of.loop = tracker, None, loop
    findings = Findings(of)
    for objects in frames:
        found = [(number, name, 10 * place) for place, (number, name) in enumerate(objects)]
        findings.update(fakes.result(of, found))
    return findings


FRAMES = [
    [(1, "car"), (-1, "person")],
    [(1, "dog"), (2, "person"), (-1, "person")],
    [(1, "car"), (3, "person")],
]


def test_with_tracking_identities_are_counted_by_their_usual_class():
    assert stream_of(FRAMES, tracker=True).lines() == ["gate: 3 tracked objects: person 2, car 1"]


@pytest.mark.parametrize("tracker, loop", [(None, False), (True, True)])
def test_without_tracking_or_in_a_loop_the_fullest_frame_counts(tracker, loop):
    found = stream_of(FRAMES, tracker, loop).lines()
    assert found == ["gate: at most person 2, car 1, dog 1 in one frame"]


def test_identities_beyond_the_limit_are_still_counted(monkeypatch):
    monkeypatch.setattr("results.summary.MAX_IDENTITIES", 2)
    frames = [[(number, "car")] for number in range(9)]
    assert stream_of(frames, tracker=True).lines() == ["gate: 9 tracked objects: car 9"]


def test_a_file_name_in_another_encoding_than_the_locales_is_printed_as_text(printed):
    of = fakes.stream()
    of.tracker, of.lines, of.loop = None, None, False
    for name in ("街.jpg".encode(), b"caf\xe9.jpg"):
        result = fakes.result(of, [(1, "car", 0)])
        result.file = name.decode("ascii", "surrogateescape")  # as Python names it with LC_ALL=C
        Findings(of).update(result)
    expected = "街.jpg" if sys.getfilesystemencoding() == "utf-8" else printed[0].partition(":")[0]
    assert printed == [f"{expected}: car 1", "caf\\xe9.jpg: car 1"]


def test_a_classifiers_best_classes_are_named(printed):
    of = fakes.stream()
    of.tracker, of.lines, of.loop = None, None, False
    findings = Findings(of, "gate: ")
    for number in (1, 0, 1):
        result = fakes.result(of)
        result.detections = Detections(None, [number, 2], [0.75, 0.2], fakes.NAMES)
        result.file = f"{number}.jpg"
        findings.update(result)
    assert printed[:2] == ["gate: 1.jpg: car 0.75", "gate: 0.jpg: person 0.75"]
    assert findings.lines() == ["gate: car in 2 pictures, person in 1 picture"]


# ---- --loop and --fps ----


def test_the_times_of_a_repeated_file_keep_increasing(clip):
    stream = Stream(str(clip), loop=True)
    frames, times = stream.frames(), []
    for result in frames:
        times.append(result.time)
        assert result.number == len(times) - 1
        if len(times) == 100:  # the clip has 45
            stream.stop.set()
    assert len(times) == 100 and times == sorted(times)
    assert times[99] == pytest.approx(99 / 30, abs=0.1) and stream.expected is None


@pytest.mark.parametrize("fps", [None, 7, 10, 29, 30, 60])
def test_the_expected_number_of_frames_is_what_is_processed(clip, fps):
    stream = Stream(str(clip), max_fps=fps)
    assert stream.expected == sum(1 for _ in stream.frames())


def test_no_number_is_expected_of_a_rate_that_is_not_real(clip, monkeypatch):
    """A browser's .webm has 1000, and OpenCV multiplies its duration by that."""
    monkeypatch.setattr(Stream, "rate", 1000.0)
    assert Stream(str(clip)).expected is None


# ---- after the end ----


def test_a_page_that_is_the_only_output_stays_until_ctrl_c(clip, plain_func):
    pytest.importorskip("aiohttp", reason="pip install aiohttp")
    command = [sys.executable, "main.py", clip, "--headless", "--web", "0", "--func", plain_func]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    url = next(line.split()[-1] for line in running.stderr if "Web page:" in line)
    assert f"{url} stays until Ctrl-C" in running.stderr.readline()
    with urllib.request.urlopen(f"{url}status.json") as answer:
        assert '"state": "ended"' in answer.read().decode()
    with urllib.request.urlopen(f"{url}clip.avi.jpg") as answer:
        assert answer.read(2) == b"\xff\xd8"  # the last picture
    running.send_signal(signal.SIGINT)
    stdout, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGINT and "clip.avi: 45 frames" in stdout


@pytest.mark.parametrize("elsewhere", ["save", "json", "mqtt"])
def test_no_page_stays_open_if_results_are_saved_or_sent(elsewhere):
    import results

    args = SimpleNamespace(**{"save": None, "json": None, "mqtt": None, elsewhere: "there"})
    page = SimpleNamespace(display=True)
    assert results.displays(args, [page]) == []
    setattr(args, elsewhere, None)
    assert results.displays(args, [page, object()]) == [page]
