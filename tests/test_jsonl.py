"""The lines of --json, and the files and pipes that they are written to."""

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
from conftest import CAR_FUNC, ROOT, frames_of, full_disk
from fakes import wait_until

from results import jsonl
from results.delivery import Delivery
from results.jsonl import JSONLines, as_dict
from vision.errors import InputError


class Found:
    """Detections, with the fields that sinks use."""

    def __init__(self, count, **fields):
        self.boxes = np.float32([[0, 0, 10, 10]] * count)
        self.classes, self.scores = np.zeros(count, np.int64), np.full(count, 0.5, np.float32)
        self.ids = self.masks = self.keypoints = self.corners = None
        self.__dict__.update(fields)

    def name(self, number):
        return f"class {number}"


def result(detections=None, **fields):
    stream = SimpleNamespace(name="gate", printed=[])
    stream.print_once = stream.printed.append
    values = dict(
        stream=stream,
        number=12,
        time=0.2,
        size=(1280, 720),
        file=None,
        error=None,
        drawing=0.0,
        crossings=[],
        lines=None,
        zones=None,
        detections=detections,
    )
    return SimpleNamespace(**{**values, **fields})


@pytest.mark.slow
def test_there_is_one_line_per_frame_in_order_with_boxes_in_pixels(
    main_py, clip, car_func, tmp_path
):
    done = main_py(clip, "--headless", "--func", car_func, "--json", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(45))
    assert [line["time"] for line in lines] == [round(number / 30, 3) for number in range(45)]
    assert lines[7] == {
        "stream": "clip.avi",
        "frame": 7,
        "time": 0.233,
        "size": [640, 360],
        "objects": [{"class": "car", "number": 2, "score": 0.913, "box": [1.0, 2.0, 30.2, 40.0]}],
    }


def test_stdout_contains_only_json(main_py, clip, car_func):
    (car_func.parent / "loud.py").write_text(
        CAR_FUNC.replace("    return IMG\n", "    return IMG\nimport os\n", 1).replace(
            "def detect(rknn_lite, IMG):",
            "def detect(rknn_lite, IMG):\n    print('py'); os.write(1, b'library')",
        )
    )
    done = main_py(
        f"gate={clip}",
        f"yard={clip}",
        "--headless",
        "--func",
        car_func.parent / "loud.py",
        "--json",
        "-",
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for name in ("gate", "yard"):
        assert [line["frame"] for line in lines if line["stream"] == name] == list(range(45))
    assert "library" in done.stderr and "gate: 45 frames" in done.stderr


def test_lines_are_appended_and_an_incomplete_last_line_is_ended(main_py, clip, car_func, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"frame": 1}\n{"fra')
    assert (
        main_py(clip, "--headless", "--func", car_func, "--json", tmp_path / "out.jsonl").returncode
        == 0
    )
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"frame": 1}', '{"fra'] and len(lines) == 47


def test_json_is_not_appended_to_a_file_of_another_kind(tmp_path):
    """As with `--json photo.jpg`, where the name of the file was forgotten."""
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match="photo.jpg: this file contains no lines of JSON"):
        JSONLines(str(tmp_path / "photo.jpg"))
    assert (tmp_path / "photo.jpg").read_bytes() == b"\xff\xd8\xff"


def test_a_func_file_without_detections_is_refused(main_py, clip, plain_func, tmp_path):
    done = main_py(clip, "--headless", "--func", plain_func, "--json", tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("--json needs detections") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_lines_of_pictures_contain_the_file_name(main_py, clip, car_func, tmp_path):
    (tmp_path / "shots").mkdir()
    for name in ("b", "a"):
        cv2.imwrite(str(tmp_path / "shots" / f"{name}.png"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "shots/c.jpg").write_text("no picture")
    done = main_py(tmp_path / "shots", "--headless", "--func", car_func, "--json", "-")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["frame"], line["file"]) for line in lines] == [
        (0, "a.png"),
        (1, "b.png"),
        (2, "c.jpg"),
    ]
    assert lines[0]["size"] == [60, 40]
    assert (
        done.returncode == 2
        and "c.jpg: not a picture" in lines[2]["error"]
        and "objects" not in lines[2]
    )


def test_what_the_runtime_prints_is_not_in_the_output(main_py, clip, tmp_path):
    noisy = tmp_path / "noisy.py"
    noisy.write_text(
        CAR_FUNC
        + """
import os
import resource
from runtimes.cpu import RKNNLite
opened = RKNNLite.init_runtime
def init_runtime(self, **options):
    os.write(1, b"I RKNN: opened\\n")
    return opened(self, **options)
RKNNLite.init_runtime = init_runtime
"""
    )
    done = main_py(clip, "--headless", "--func", noisy, "--json", "-")
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 45
    assert "I RKNN: opened" in done.stderr


def piped_into_head(car_func, *arguments):
    arguments = " ".join(map(str, arguments))
    main = f"{sys.executable} main.py {arguments} --headless --func {car_func} --json -"
    done = subprocess.run(
        ["sh", "-c", f"timeout -s KILL 60 {main} | head -n 1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.count("the reader has closed the pipe") == 1
    return done.stderr


@pytest.mark.slow
def test_a_closed_pipe_is_reported_once_and_ends_streams_without_another_sink(clip, car_func):
    server = subprocess.Popen(
        [sys.executable, "tests/mjpeg_server.py", "0", str(clip)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    try:
        # it would never end
        camera = f"http://127.0.0.1:{int(server.stdout.readline().split()[1])}/demo.mjpg"
        assert "in all: " in piped_into_head(car_func, f"gate={camera}", f"yard={camera}")
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_after_a_closed_pipe_a_stream_with_another_sink_continues(clip, car_func, tmp_path):
    assert "clip.avi: 45 frames" in piped_into_head(car_func, clip, "--save", tmp_path / "out.mp4")
    assert sum(1 for _ in frames_of(tmp_path / "out.mp4")) == 45


def test_a_nonblocking_pipe_loses_no_line():
    reading, writing = os.pipe()
    sink = JSONLines(f"/dev/fd/{writing}")
    os.close(sink.file)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limit[1]), limit[1]))
    try:
        sink.file = fcntl.fcntl(
            writing, fcntl.F_DUPFD, 1500
        )  # a high number, as with many open cameras
        os.close(writing)
        os.set_blocking(sink.file, False)

        def write():
            with contextlib.closing(sink):
                for _ in range(20):
                    sink.write(result(Found(300)))

        writer = threading.Thread(target=write)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(sink.file, b"\n" * 4096)  # nothing more goes in
        writer.start()
        wait_until(lambda: sink.lock.locked() or not writer.is_alive())
        with open(reading) as lines:
            assert [len(json.loads(line)["objects"]) for line in lines if line.strip()] == [
                300
            ] * 20
        writer.join(10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def delivered(stream, sink, numbers):
    stream.sinks = [sink]
    for number in numbers:
        stream.deliver(result(Found(number % 3), stream=stream, number=number))


def frames_in(path):
    return [json.loads(line)["frame"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("room", [0, 50], ids=["nothing fits", "half a line fits"])
def test_after_a_full_disk_lines_continue_and_the_gap_is_counted(tmp_path, capsys, room):
    path, stream = tmp_path / "out.jsonl", Delivery("gate")
    sink = JSONLines(str(path))
    delivered(stream, sink, range(5))
    with full_disk(path, room):
        delivered(stream, sink, range(5, 8))
    delivered(stream, sink, range(8, 12))
    with full_disk(path, room):
        delivered(stream, sink, range(12, 14))
    stream.close_sinks([sink])
    assert frames_in(path) == [*range(5), *range(8, 12)]
    assert (stream.count, stream.unsaved, stream.code) == (14, 5, 2)
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        f"--json {path}: cannot be written (File too large) from frame 5 of gate on. "
        "Writing continues when it is possible again.",
        f"--json {path}: written again from frame 8 of gate on; 3 frames are missing.",
        f"--json {path}: cannot be written (File too large) from frame 12 of gate on. "
        "Writing continues when it is possible again.",
        f"--json {path}: 2 frames are missing at the end.",
    ]


def test_a_disk_that_is_full_for_a_while_is_reported_once(tmp_path, capsys):
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        (tmp_path / "other").write_bytes(bytes(8192))
        path, stream = tmp_path / "out.jsonl", Delivery("gate")
        sink = JSONLines(str(path))
        delivered(stream, sink, range(200))  # the short ones would fit into the last block
        (tmp_path / "other").unlink()
        delivered(stream, sink, range(200, 203))
        stream.close_sinks([sink])
        frames = frames_in(path)
        assert frames[-4] < 199 and frames[-3:] == [200, 201, 202]
        assert len(frames) + stream.unsaved == 203
        assert len(capsys.readouterr().err.splitlines()) == 2
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_partial_last_line_is_ended_when_there_is_room(tmp_path):
    path, stream = tmp_path / "out.jsonl", Delivery("gate")
    path.write_text('{"fra')  # of a run that was killed
    with full_disk(path):
        sink = JSONLines(str(path))
        delivered(stream, sink, range(2))
    delivered(stream, sink, range(2, 4))
    stream.close_sinks([sink])
    assert [line[:6] for line in path.read_text().splitlines()] == ['{"fra', '{"stre', '{"stre']


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_stdout_in_a_file_has_complete_lines_and_nothing_else(tmp_path, name):
    program = f"""
import sys; sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
from test_jsonl import *
import pathlib
path, stream = pathlib.Path({str(tmp_path / "out")!r}), Delivery("gate")
sink = JSONLines({name!r})
delivered(stream, sink, range(2))
print("other output")
with full_disk(path, 50):
    delivered(stream, sink, range(2, 4))
delivered(stream, sink, range(4, 6))
"""
    with open(tmp_path / "out", "w") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, cwd=ROOT, check=True)
    assert frames_in(tmp_path / "out") == [0, 1, 4, 5]


@pytest.mark.slow
def test_close_returns_if_the_reader_no_longer_reads(monkeypatch):
    """As in `--json - | less` after SIGTERM."""
    monkeypatch.setattr(jsonl, "CLOSE_SECONDS", 0.1)
    reading, writing = os.pipe()
    sink = JSONLines(f"/dev/fd/{writing}")
    # more than a pipe holds
    stream = threading.Thread(target=sink.write, args=[result(Found(3000))])
    stream.start()
    read = os.read(reading, 1)
    with pytest.raises(InputError, match="the reader has stopped reading"):
        sink.close()
    while not read.endswith(b"\n"):
        read += os.read(reading, 1 << 16)
    stream.join()
    sink.close()
    sink.close()
    assert len(json.loads(read)["objects"]) == 3000
    for file in (reading, writing):
        os.close(file)


def test_a_fifo_without_reader_is_reported_and_does_not_block(tmp_path, capsys):
    path, lines = str(tmp_path / "fifo"), []
    os.mkfifo(path)

    def read_one():
        with open(path) as file:
            lines.append(json.loads(file.readline()))

    reader = threading.Thread(target=read_one)
    reader.start()
    sink, ours = JSONLines(path), result(Found(3))
    sink.write(ours)
    reader.join()
    ours.stream.sinks = [sink]
    for _ in range(1000):  # more than a pipe holds
        sink.write(ours)
    sink.close()
    assert len(lines) == 1 and ours.stream.printed == [
        f"--json {path}: the reader has closed the pipe."
    ]


def test_lines_of_several_streams_do_not_mix(tmp_path):
    read, write = os.pipe()  # takes 64 KB at once, and each line is more
    kept = os.dup(1)
    os.dup2(write, 1)
    os.close(write)
    try:
        sink = JSONLines("-")
    finally:
        out, sys.stdout = sys.stdout, sys.__stdout__
        os.dup2(kept, 1)
        os.close(kept)
    assert out is sys.stderr
    one = result(Found(2000))
    threads = [
        threading.Thread(target=lambda: [sink.write(one) for _ in range(3)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    ending = threading.Thread(target=lambda: ([thread.join() for thread in threads], sink.close()))
    ending.start()
    with os.fdopen(read, "rb") as pipe:
        lines = pipe.read().splitlines()
    ending.join()
    assert len(lines) == 12 and all(len(json.loads(line)["objects"]) == 2000 for line in lines)


def test_objects_have_the_fields_of_their_detections_and_no_others():
    mask = np.zeros((6, 8), np.uint8)
    mask[1:5, 2:7] = 1
    mask[0, 0] = 1  # a speck, not the largest piece
    full = Found(
        2,
        ids=np.int64([17, -1]),
        masks=[(100, 50, mask), (0, 0, np.zeros((2, 2), np.uint8))],
        keypoints=np.float32([[[1.26, 2, 0.5]], [[3, np.nan, 0]]]),
        corners=np.float32([[[0, 0], [1, 0], [1, 1], [0, 1]]] * 2),
    )
    objects = as_dict(result(full))["objects"]
    assert objects[0]["id"] == 17 and "id" not in objects[1]
    assert (
        objects[0]["polygon"] == [[102, 51], [102, 54], [106, 54], [106, 51]]
        and objects[1]["polygon"] == []
    )
    assert objects[0]["keypoints"] == [[1.3, 2.0, 0.5]] and objects[1]["keypoints"] == [
        [3.0, None, 0.0]
    ]
    assert objects[0]["corners"] == [[0, 0], [1, 0], [1, 1], [0, 1]]
    bare = as_dict(result(Found(1, boxes=None)))["objects"][0]
    assert bare == {"class": "class 0", "number": 0, "score": 0.5}


def test_lines_zones_and_crossings_are_included_if_they_are_counted():
    crossing = {
        "line": "door",
        "direction": "in",
        "id": np.int64(17),
        "class": "person",
        "since": 112,
    }
    record = as_dict(
        result(
            Found(0),
            lines={"door": {"in": {"person": 3}, "out": {}}},
            zones={},
            crossings=[crossing],
        )
    )
    assert record["lines"] == {"door": {"in": {"person": 3}, "out": {}}} and record["zones"] == {}
    assert json.loads(json.dumps(record))["crossings"][0]["id"] == 17
    assert not {"lines", "zones", "crossings"} & set(as_dict(result(Found(0))))


def test_a_failed_frame_has_its_error_instead_of_objects():
    assert as_dict(result(error="context 1 of 2: inference failed")) == {
        "stream": "gate",
        "frame": 12,
        "time": 0.2,
        "size": [1280, 720],
        "error": "context 1 of 2: inference failed",
    }
