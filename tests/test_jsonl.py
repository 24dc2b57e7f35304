"""What --json promises to the program that reads it."""
import contextlib
import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, frames_of

from results import jsonl
from results.jsonl import JSONLines, as_dict
from rknnmodel import InputError

FOUND = '''
import numpy as np
from func import Detections
def detect(rknn_lite, IMG):
    names = ["person", "bicycle", "car"]
    return Detections(np.float32([[1.04, 2, 30.25, 40]]), np.int64([2]), np.float32([0.913]), names)
def draw(IMG, detections):
    return IMG
def myFunc(rknn_lite, IMG):
    return draw(IMG, detect(rknn_lite, IMG))
'''


@pytest.fixture
def found(tmp_path):
    """Path of a --func file that finds the same car in every frame."""
    path = tmp_path / "found.py"
    path.write_text(FOUND)
    return path


class Found:
    """Detections, as far as a place may know."""

    def __init__(self, count, **fields):
        self.boxes = np.float32([[0, 0, 10, 10]] * count)
        self.classes, self.scores = np.zeros(count, np.int64), np.full(count, 0.5, np.float32)
        self.ids = self.masks = self.keypoints = self.corners = None
        self.__dict__.update(fields)

    def name(self, number):
        return f"class {number}"


def result(detections=None, **fields):
    stream = SimpleNamespace(name="gate", complaints=[])
    stream.complain = stream.complaints.append
    values = dict(stream=stream, number=12, time=0.2, size=(1280, 720), file=None, error=None, crossings=[], lines=None,
                  zones=None, detections=detections)
    return SimpleNamespace(**{**values, **fields})


@pytest.mark.slow
def test_a_line_a_frame_in_order_with_boxes_in_pixels(main_py, clip, found, tmp_path):
    done = main_py(clip, "--headless", "--func", found, "--json", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(45))
    assert [line["time"] for line in lines] == [round(number / 30, 3) for number in range(45)]
    assert lines[7] == {"stream": "clip.avi", "frame": 7, "time": 0.233, "size": [640, 360], "objects": [
        {"class": "car", "number": 2, "score": 0.913, "box": [1.0, 2.0, 30.2, 40.0]}]}


def test_a_dash_keeps_stdout_clean(main_py, clip, found):
    (found.parent / "loud.py").write_text(FOUND.replace("    return IMG\n", "    return IMG\nimport os\n", 1).replace(
        "def detect(rknn_lite, IMG):", "def detect(rknn_lite, IMG):\n    print('py'); os.write(1, b'library')"))
    done = main_py(f"gate={clip}", f"yard={clip}", "--headless", "--func", found.parent / "loud.py", "--json", "-")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for name in ("gate", "yard"):
        assert [line["frame"] for line in lines if line["stream"] == name] == list(range(45))
    assert "library" in done.stderr and "gate: 45 frames" in done.stderr


def test_a_file_is_appended_to_and_an_unfinished_last_line_is_ended(main_py, clip, found, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"frame": 1}\n{"fra')
    assert main_py(clip, "--headless", "--func", found, "--json", tmp_path / "out.jsonl").returncode == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"frame": 1}', '{"fra'] and len(lines) == 47


def test_a_func_file_that_gives_pictures_only_is_refused_at_once(main_py, clip, plain_func, tmp_path):
    done = main_py(clip, "--headless", "--func", plain_func, "--json", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("--json needs detections") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_pictures_of_a_folder_have_their_names(main_py, clip, found, tmp_path):
    (tmp_path / "shots").mkdir()
    for name in ("b", "a"):
        cv2.imwrite(str(tmp_path / "shots" / f"{name}.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "shots/c.jpg").write_text("no picture")
    done = main_py(tmp_path / "shots", "--headless", "--func", found, "--json", "-")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["frame"], line["file"]) for line in lines] == [(0, "a.png"), (1, "b.png"), (2, "c.jpg")]
    assert lines[0]["size"] == [60, 40]
    assert done.returncode == 2 and "c.jpg: not a picture" in lines[2]["error"] and "objects" not in lines[2]


def test_what_the_runtime_prints_as_it_opens_is_not_among_the_lines(main_py, clip, tmp_path):
    noisy = tmp_path / "noisy.py"
    noisy.write_text(FOUND + """
import os
import resource
from runtimes.cpu import RKNNLite
opened = RKNNLite.init_runtime
def init_runtime(self, **options):
    os.write(1, b"I RKNN: opened\\n")
    return opened(self, **options)
RKNNLite.init_runtime = init_runtime
""")
    done = main_py(clip, "--headless", "--func", noisy, "--json", "-")
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 45
    assert "I RKNN: opened" in done.stderr


def piped_into_head(found, *arguments):
    main = f"{sys.executable} main.py {' '.join(map(str, arguments))} --headless --func {found} --json -"
    done = subprocess.run(["sh", "-c", f"timeout -s KILL 60 {main} | head -n 1"], cwd=ROOT, capture_output=True,
                          text=True, timeout=100)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.count("nobody reads it any more") == 1
    return done.stderr


@pytest.mark.slow
def test_a_closed_pipe_is_said_once_and_ends_streams_whose_results_go_nowhere_else(clip, found):
    server = subprocess.Popen([sys.executable, "tests/mjpeg_server.py", "0", str(clip)], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE)
    try:
        camera = f"http://127.0.0.1:{int(server.stdout.readline().split()[1])}/demo.mjpg"  # it would never end
        assert "in all: " in piped_into_head(found, f"gate={camera}", f"yard={camera}")
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_after_a_closed_pipe_a_run_that_saves_goes_on(clip, found, tmp_path):
    assert "clip.avi: 45 frames" in piped_into_head(found, clip, "--save", tmp_path / "out.mp4")
    assert sum(1 for _ in frames_of(tmp_path / "out.mp4")) == 45


def test_a_pipe_that_does_not_block_loses_nothing(tmp_path):
    place = JSONLines(str(tmp_path / "none.jsonl"))
    os.close(place.file)
    reading, writing = os.pipe()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limit[1]), limit[1]))
    try:
        place.file = fcntl.fcntl(writing, fcntl.F_DUPFD, 1500)  # as where many cameras are open
        os.close(writing)
        os.set_blocking(place.file, False)

        def write():
            with contextlib.closing(place):
                for _ in range(20):
                    place.write(result(Found(300)))

        writer = threading.Thread(target=write)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(place.file, b"\n" * 4096)  # nothing more goes in
        writer.start()
        while writer.is_alive() and not place.writing.locked():
            pass
        with open(reading) as lines:
            assert [len(json.loads(line)["objects"]) for line in lines if line.strip()] == [300] * 20
        writer.join(10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_a_full_disk_is_said_once_and_leaves_whole_lines(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        place = JSONLines(str(tmp_path / "out.jsonl"))
        with pytest.raises(InputError, match="No space left"):
            for _ in range(1000):
                place.write(result(Found(3)))
        place.write(result(Found(3)))  # says nothing more
        place.close()
        for line in (tmp_path / "out.jsonl").read_text().splitlines():
            json.loads(line)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_reader_that_stops_to_read_does_not_keep_close_from_ending(monkeypatch):
    """`--json - | less` and SIGTERM: main.py could not end."""
    monkeypatch.setattr(jsonl, "CLOSING", 0.1)
    reading, writing = os.pipe()
    place = JSONLines(f"/dev/fd/{writing}")
    stream = threading.Thread(target=place.write, args=[result(Found(3000))])  # more than a pipe holds
    stream.start()
    read = os.read(reading, 1)
    with pytest.raises(InputError, match="its reader takes nothing any more"):
        place.close()
    while not read.endswith(b"\n"):
        read += os.read(reading, 1 << 16)
    stream.join()
    place.close()
    place.close()
    assert len(json.loads(read)["objects"]) == 3000
    for file in (reading, writing):
        os.close(file)


def test_a_fifo_whose_reader_has_gone_is_said_and_blocks_nobody(tmp_path, capsys):
    path, lines = str(tmp_path / "fifo"), []
    os.mkfifo(path)

    def read_one():
        with open(path) as file:
            lines.append(json.loads(file.readline()))
    reader = threading.Thread(target=read_one)
    reader.start()
    place, ours = JSONLines(path), result(Found(3))
    place.write(ours)
    reader.join()
    ours.stream.places = [place]
    for _ in range(1000):  # more than a pipe holds
        place.write(ours)
    place.close()
    assert len(lines) == 1 and ours.stream.complaints == [f"--json {path}: nobody reads it any more."]


def test_lines_of_many_streams_never_mix(tmp_path):
    read, write = os.pipe()  # takes 64 KB at once, and each line is more
    kept = os.dup(1)
    os.dup2(write, 1)
    os.close(write)
    try:
        place = JSONLines("-")
    finally:
        out, sys.stdout = sys.stdout, sys.__stdout__
        os.dup2(kept, 1)
        os.close(kept)
    assert out is sys.stderr
    one = result(Found(2000))
    threads = [threading.Thread(target=lambda: [place.write(one) for _ in range(3)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    ending = threading.Thread(target=lambda: ([thread.join() for thread in threads], place.close()))
    ending.start()
    with os.fdopen(read, "rb") as pipe:
        lines = pipe.read().splitlines()
    ending.join()
    assert len(lines) == 12 and all(len(json.loads(line)["objects"]) == 2000 for line in lines)


def test_what_else_is_known_of_an_object_is_there_and_what_is_not_is_left_out():
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 2:7] = 1
    mask[0, 0] = 1  # a speck, not the largest piece
    full = Found(2, ids=np.int64([17, -1]), masks=[(100, 50, mask), (0, 0, np.zeros((2, 2), np.uint8))],
                 keypoints=np.float32([[[1.26, 2, 0.5]], [[3, np.nan, 0]]]),
                 corners=np.float32([[[0, 0], [1, 0], [1, 1], [0, 1]]] * 2))
    said = as_dict(result(full))["objects"]
    assert said[0]["id"] == 17 and "id" not in said[1]
    assert said[0]["polygon"] == [[102, 51], [102, 54], [106, 54], [106, 51]] and said[1]["polygon"] == []
    assert said[0]["keypoints"] == [[1.3, 2.0, 0.5]] and said[1]["keypoints"] == [[3.0, None, 0.0]]
    assert said[0]["corners"] == [[0, 0], [1, 0], [1, 1], [0, 1]]
    bare = as_dict(result(Found(1, boxes=None)))["objects"][0]
    assert bare == {"class": "class 0", "number": 0, "score": 0.5}


def test_lines_zones_and_crossings_are_there_where_they_are_counted():
    crossing = {"line": "door", "direction": "in", "id": np.int64(17), "class": "person", "since": 112}
    said = as_dict(result(Found(0), lines={"door": {"in": {"person": 3}, "out": {}}}, zones={}, crossings=[crossing]))
    assert said["lines"] == {"door": {"in": {"person": 3}, "out": {}}} and said["zones"] == {}
    assert json.loads(json.dumps(said))["crossings"][0]["id"] == 17
    assert not {"lines", "zones", "crossings"} & set(as_dict(result(Found(0))))


def test_a_failed_frame_has_its_error_instead_of_objects():
    assert as_dict(result(error="context 1 of 2: inference failed")) == {
        "stream": "gate", "frame": 12, "time": 0.2, "size": [1280, 720], "error": "context 1 of 2: inference failed"}
