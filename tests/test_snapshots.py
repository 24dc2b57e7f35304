"""--snapshots: pictures of objects that appear, cross a line or enter a zone."""

import itertools
import os
import stat
import subprocess
import threading
import time

import cv2
import fakes
import numpy as np
import pytest
from conftest import ROOT, full_disk
from fakes import wait_until

from results import snapshots
from results.delivery import Delivery
from results.objects import Objects
from results.snapshots import Snapshots
from vision.errors import InputError

RED = (0, 0, 255)  # BGR


def street(name="gate", live=True):
    stream = Delivery(name)
    stream.live, stream.objects = live, Objects(name, snapshots=True)
    return stream


def picture(x, colour=RED, size=(360, 640, 3)):
    """A grey frame with an object of fakes.Found at this x."""
    frame = np.full(size, 90, np.uint8)
    frame[100:140, x : x + 20] = colour
    return frame


def pass_by(stream, sink, objects, x=300, **fields):
    """Write a result in which these objects are at x."""
    found = [(number, name, x) for number, name in objects]
    result = fakes.result(stream, found, picture=picture(x), **fields)
    result.frame = result.picture
    sink.write(result)
    return result


@pytest.fixture
def opened(tmp_path):
    """opened(max_files): a Snapshots in the folder "shots", closed at the end of the test."""
    sinks = []

    def open_(max_files=1000):
        sinks.append(Snapshots(str(tmp_path / "shots"), max_files))
        return sinks[-1]

    yield open_
    for sink in sinks:
        sink.close()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_event_gets_a_picture_of_its_object(opened, tmp_path):
    gate, sink = street(), opened()
    crossing = {"line": "door", "direction": "in", "id": 7, "class": "person", "since": 1}
    pass_by(gate, sink, [(7, "person")], x=100)
    pass_by(gate, sink, [(7, "person")], x=300, inside={"yard": [7]})
    pass_by(gate, sink, [(7, "person")], x=500, inside={"yard": [7]}, crossings=[crossing])
    pass_by(gate, sink, [(7, "person")], x=520, inside={"yard": []})  # leaves: no picture
    sink.close()
    newest = sink.newest(20)
    assert [facts["event"] for facts in newest] == ["crosses", "enters", "appears"]
    crossed, entered, appeared = newest
    assert crossed["line"] == "door" and crossed["direction"] == "in"
    assert entered["zone"] == "yard" and not {"line", "zone"} & appeared.keys()
    for facts in newest:
        assert (facts["stream"], facts["class"], facts["track"]) == ("gate", "person", 7)
        assert abs(facts["time"] - time.time()) < 600
        local = time.strftime("%Y-%m-%d_%H%M%S", time.localtime(facts["time"]))
        assert facts["file"].startswith(f"{local}.")
        shown = cv2.imread(str(tmp_path / "shots" / facts["file"]))
        red = (np.abs(shown.astype(int) - RED).max(2) < 60).nonzero()
        assert 700 < len(red[0]) < 900  # the object has 800 pixels, and all of them are shown
        assert shown.shape == (160, 140, 3)  # with its surroundings
        assert abs(red[0].mean() - 80) < 2 and abs(red[1].mean() - 70) < 2  # in the middle
    assert [facts["file"][22:] for facts in newest] == [
        "gate_person_crosses-door.jpg",
        "gate_person_enters-yard.jpg",
        "gate_person_appears.jpg",
    ]
    assert names_in(tmp_path / "shots") == sorted(facts["file"] for facts in newest)
    assert sink.saved == f"{tmp_path / 'shots'}: 3 pictures"


def test_objects_at_the_edge_and_outside_of_the_frame_get_a_picture(opened, tmp_path):
    gate, sink = street(), opened()
    for number, x in enumerate((0, 619, 639, -300, 9000)):
        pass_by(gate, sink, [(number, "car")], x=x) if 0 <= x < 640 else None
        if not 0 <= x < 640:
            result = fakes.result(gate, [(number, "car", x)], picture=picture(300))
            result.frame = result.picture
            sink.write(result)
    sink.close()
    assert len(sink.newest(9)) == 5
    assert all(sink.jpeg(facts["file"])[:2] == b"\xff\xd8" for facts in sink.newest(9))


def test_a_large_object_is_scaled_down(opened):
    gate, sink = street(), opened()
    result = fakes.result(gate, [(1, "car", 0)], picture=np.zeros((2160, 3840, 3), np.uint8))
    result.frame = result.picture
    result.events[0]["after"]["box"] = [0, 0, 3840, 2160]
    sink.write(result)
    sink.close()
    jpeg = np.frombuffer(sink.jpeg(sink.newest(1)[0]["file"]), np.uint8)
    assert cv2.imdecode(jpeg, cv2.IMREAD_COLOR).shape == (720, 1280, 3)


def test_the_oldest_pictures_are_deleted_also_those_of_earlier_runs(opened, tmp_path, monkeypatch):
    seconds = itertools.count(time.time())
    monkeypatch.setattr(snapshots.time, "time", lambda: next(seconds))
    folder, gate = tmp_path / "shots", street()
    sink = opened(5)
    (folder / "holiday.jpg").write_bytes(b"mine")
    for number in range(8):
        pass_by(gate, sink, [(number, "person")])
    sink.close()
    assert [facts["track"] for facts in sink.newest(20)] == [7, 6, 5, 4, 3]
    again = opened(5)
    assert again.newest(20) == sink.newest(20) and again.newest(2) == sink.newest(2)
    assert again.jpeg(again.newest(1)[0]["file"]) == sink.jpeg(sink.newest(1)[0]["file"])
    pass_by(street("yard"), again, [(1, "dog")])
    again.close()
    assert [facts["track"] for facts in again.newest(20)] == [1, 7, 6, 5, 4]
    assert [facts["stream"] for facts in again.newest(2)] == ["yard", "gate"]
    assert len(names_in(folder)) == 6 and (folder / "holiday.jpg").read_bytes() == b"mine"


def test_files_of_others_in_the_folder_are_neither_shown_nor_returned(opened, tmp_path):
    (tmp_path / "shots").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "shots" / "2026-11-29_141502.123_gate_person_appears.jpg").write_bytes(b"text")
    (tmp_path / "shots" / "2026-11-29_141502.123_gate_person_crosses-a.jpg").write_bytes(b"")
    sink = opened()
    pass_by(street(), sink, [(1, "person")])
    sink.close()
    (facts,) = sink.newest(20)
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg"), "", ".", "holiday.jpg", "a\0b"):
        assert sink.jpeg(name) is None
    (tmp_path / "shots" / facts["file"]).unlink()  # by its user
    assert sink.newest(20) == [] and sink.jpeg(facts["file"]) is None


HOSTILE = [
    "前门 1",
    "a/b\\c",
    "../../etc",
    '"quote"\'s',
    "a\nb\0c",
    "CON",
    "",
    300 * "长",
    "\udc80",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_any_name_gives_a_valid_file_name_and_is_shown_unchanged(
    opened, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(fakes, "NAMES", [name])
    gate, sink = street(name), opened()
    crossing = {"line": name, "direction": "out", "id": 1, "class": name, "since": 1}
    pass_by(gate, sink, [(1, name), (2, name)], crossings=[crossing])
    sink.close()
    files = names_in(tmp_path / "shots")
    assert len(files) == 3  # two of them have the same name and time
    for file in files:
        assert not set(file) & set('\\/:*?"<>|\n\0') and len(file.encode()) < 200
    known = Snapshots(str(tmp_path / "shots"), 9).newest(9)
    assert {(facts["stream"], facts["class"]) for facts in known} == {(name, name)}
    assert [facts["line"] for facts in known if "line" in facts] == [name]


def test_a_full_disk_is_reported_once_and_pictures_continue(opened, tmp_path, capsys):
    gate, sink, folder = street(), opened(), tmp_path / "shots"
    pass_by(gate, sink, [(1, "person")])
    wait_until(lambda: sink.count == 1)
    (tmp_path / "empty").touch()
    with full_disk(tmp_path / "empty", 100):
        for number in range(2, 5):
            pass_by(gate, sink, [(number, "person")])
        wait_until(lambda: gate.unsaved == 3)
    pass_by(gate, sink, [(5, "person")])
    sink.close()
    assert [facts["track"] for facts in sink.newest(20)] == [5, 1]
    assert gate.code == 2 and len(names_in(folder)) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"--snapshots {folder}: cannot be written (the file has reached the maximum size) from "
        "frame 1 of gate on. Writing continues when it is possible again.",
        f"--snapshots {folder}: written again from frame 4 of gate on; 3 snapshots are missing.",
    ]


def test_a_deleted_folder_is_reported_once_and_the_stream_goes_on(opened, tmp_path, capsys):
    gate, sink, folder = street(), opened(2), tmp_path / "shots"
    gate.sinks = [sink]
    for number in range(3):
        pass_by(gate, sink, [(number, "person")])
    wait_until(lambda: sink.count == 3)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    for number in range(3, 6):
        pass_by(gate, sink, [(number, "person")])
    gate.close_sinks([sink])
    assert gate.unsaved == 3 and sink.newest(20) == []
    assert capsys.readouterr().err.splitlines() == [
        f"--snapshots {folder}: cannot be written (No such file or directory) from frame 3 of gate "
        "on. Writing continues when it is possible again.",
        f"--snapshots {folder}: 3 snapshots are missing at the end.",
    ]


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(InputError, match=f"--snapshots .*{path}: cannot write pictures"):
            Snapshots(str(tmp_path / path), 9)


def test_a_live_stream_drops_pictures_and_a_file_waits(opened, tmp_path, monkeypatch):
    """While the disk hangs: here a FIFO that nobody reads."""
    monkeypatch.setattr(snapshots, "MAX_WAITING", 3 * 160 * 160 * 3)
    monkeypatch.setattr(snapshots.time, "time", lambda: 1796134502.123)
    gate, yard, sink = street(), street("yard", live=False), opened()
    local = time.strftime("%Y-%m-%d_%H%M%S", time.localtime(1796134502))
    fifo = tmp_path / "shots" / f".{local}.123_gate_person_appears.jpg.part"
    os.mkfifo(fifo)
    pass_by(gate, sink, [(0, "person")])
    wait_until(lambda: not sink.waiting)
    for number in range(1, 8):
        pass_by(gate, sink, [(number, "person")])
    assert gate.unsaved == 4
    waiting = threading.Thread(target=pass_by, args=(yard, sink, [(1, "dog")]), daemon=True)
    waiting.start()
    assert waiting.is_alive() and yard.unsaved == 0
    assert fifo.open("rb").read()[:2] == b"\xff\xd8"
    waiting.join()
    sink.close()
    known = [(facts["stream"], facts["track"]) for facts in sink.newest(20)]
    assert known[:4] == [("yard", 1), ("gate", 7), ("gate", 6), ("gate", 5)]
    assert stat.S_ISFIFO(os.stat(tmp_path / "shots" / fifo.name[1:-5]).st_mode)


FUNC = """
import cv2, numpy as np
from func import Detections
def detect(rknn_lite, IMG):  # the end of the white bar that shows the frame's number
    x = int((IMG[20] > 128).all(1).sum())
    return Detections(np.float32([[x, 2, x + 30, 40]]), np.int64([0]), np.float32([0.9]), ["end"])
def draw(IMG, detections):
    IMG[:] = 0, 0, 255
    return IMG
def myFunc(rknn_lite, IMG):
    return draw(IMG, detect(rknn_lite, IMG))
"""


def test_main_py_saves_a_picture_of_each_event_before_anything_is_drawn(main_py, clip, tmp_path):
    (tmp_path / "bar.py").write_text(FUNC)
    folder, flags = tmp_path / "shots", ["--headless", "--overwrite", "--func", tmp_path / "bar.py"]
    flags += ["--save", tmp_path / "out.avi", "--snapshots", folder, "--max-snapshots", "3"]
    flags += ["--line", "road:100,0,100,360", "--zone", "right:100,0,640,0,640,360,100,360"]
    ran = main_py(f"street={clip}", *flags)
    assert ran.returncode == 0, ran.stderr
    assert f"saved {folder}: 3 pictures" in ran.stdout
    events = [name.split("_", 3)[3] for name in names_in(folder)]
    assert sorted(events) == ["end_appears.jpg", "end_crosses-road.jpg", "end_enters-right.jpg"]
    for name in names_in(folder):
        difference = np.abs(cv2.imread(str(folder / name)).astype(int) - RED).max(2)
        assert (difference > 60).mean() > 0.9


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--snapshots", "x", "--model", "models/resnet18_emoji.onnx"], "--snapshots needs boxes"),
        (["--snapshots", "x", "--max-snapshots", "0"], "--max-snapshots 0: must be at least 1"),
    ],
)
def test_invalid_flags_of_snapshots_are_refused(main_py, flags, says):
    ran = main_py(*flags, "--headless")
    assert ran.returncode == 2 and says in ran.stderr


def test_without_the_flag_snapshots_none_of_its_files_is_imported(tmp_path):
    program = (
        "import sys, main, results; sys.argv = ['main.py', 'x.mp4', '--headless', '--track']; "
        "args = main.arguments.parse(vars(main), None); results.open_sinks(args, []); "
        "print([name for name in sys.modules if name in ('results.objects', 'results.snapshots')])"
    )
    ran = subprocess.run(
        [os.sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
