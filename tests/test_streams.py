"""main.py with several streams, live sources, and the sinks of a stream."""

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import cv2
import fakes
import numpy as np
import pytest
from conftest import ROOT, frames_of, number_in, python
from http_cameras import TYPE, http_camera, motion
from tqdm import tqdm

import process
import rknnpool
import sources
import streams
from results.delivery import Delivery
from results.summary import report
from rknnpool import rknnPoolExecutor
from vision.detections import Detections
from vision.errors import InputError


@pytest.fixture
def short_clip(clip, tmp_path):
    """The first 15 frames of clip()."""
    path = tmp_path / "short.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (640, 360))
    for frame in frames_of(clip)[:15]:
        writer.write(frame)
    writer.release()
    return path


@pytest.mark.slow
def test_every_stream_is_saved_completely_in_order_and_counted(
    main_py, clip, short_clip, tmp_path, plain_func
):
    done = main_py(
        clip, short_clip, "--headless", "--func", plain_func, "--save", tmp_path / "out.avi"
    )
    assert done.returncode == 0, done.stderr
    assert [number_in(frame) for frame in frames_of(tmp_path / "out_1.avi")] == list(range(45))
    assert [number_in(frame) for frame in frames_of(tmp_path / "out_2.avi")] == list(range(15))
    assert re.search(r"clip\.avi: 45 frames in \d+\.\d s, \d+\.\d FPS on average", done.stdout)
    assert re.search(r"short\.avi: 15 frames in \d+\.\d s", done.stdout)
    assert re.search(r"clip\.avi: FPS over the last 30 frames: \d+\.\d", done.stdout)
    assert re.search(r"in all: 60 frames in \d+\.\d s, \d+\.\d FPS on average", done.stdout)


def test_other_streams_continue_if_a_source_cannot_be_opened(main_py, clip, plain_func):
    done = main_py("none.mp4", clip, "--headless", "--func", plain_func)
    assert done.returncode == 2
    assert "none.mp4: no such file" in done.stderr
    assert "clip.avi: 45 frames" in done.stdout


def test_if_no_source_can_be_opened_each_is_reported(main_py):
    done = main_py("none.mp4", "tests/board", "--headless")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "none.mp4: no such file.",
        "tests/board: this folder contains no pictures (.jpg, .jpeg, .png, .bmp, ...).",
    ]


@pytest.mark.slow
def test_other_streams_continue_if_one_fails(main_py, clip, short_clip, tmp_path):
    # fails on frames that the short clip does not have
    (tmp_path / "fails.py").write_text(
        "from vision.errors import ModelError\nimport numpy as np\n"
        "def myFunc(rknn_lite, IMG):\n    if np.count_nonzero(IMG[20, :, 1] > 127) > 4 * 30:\n"
        "        raise ModelError('frame 30 is bad')\n"
        "    return IMG\n"
    )
    done = main_py(
        clip,
        short_clip,
        "--headless",
        "--func",
        tmp_path / "fails.py",
        "--save",
        tmp_path / "out.avi",
    )
    assert done.returncode == 2
    assert "frame 30 is bad." in done.stderr and "Traceback" not in done.stderr
    assert "short.avi: 15 frames" in done.stdout and "clip.avi: 30 frames" in done.stdout
    assert (
        len(frames_of(tmp_path / "out_1.avi")) == 30
        and len(frames_of(tmp_path / "out_2.avi")) == 15
    )


def test_no_stream_overwrites_the_source_of_another(main_py, clip, short_clip, tmp_path):
    second = tmp_path / "out_1.avi"
    second.write_bytes(clip.read_bytes())
    done = main_py(short_clip, second, "--headless", "--save", tmp_path / "out.avi")
    assert done.returncode == 2
    assert done.stderr == f"--save {second}: this video is a source.\n"
    assert second.read_bytes() == clip.read_bytes()


def test_cap_may_be_a_list(clip, short_clip, plain_func):
    script = f"import main\nmain.cap = [{str(clip)!r}, {str(short_clip)!r}]\nmain.main()"
    done = python("-c", script, "--headless", "--func", plain_func)
    assert done.returncode == 0, done.stderr
    assert "in all: 60 frames" in done.stdout


@pytest.mark.slow
def test_the_asyncio_example_processes_every_frame_of_each_stream(clip, short_clip):
    command = [sys.executable, "examples/asyncio_streams.py", clip, short_clip]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = sorted(done.stdout.splitlines())
    assert re.fullmatch(rf"{clip}: 45 frames, [1-9]\d* objects", first)
    assert re.fullmatch(rf"{short_clip}: 15 frames, [1-9]\d* objects", second)


# ---- big cores ----


@pytest.fixture
def cpus(tmp_path, monkeypatch):
    """cpus(*capacities): pretend that this machine has such CPU cores."""

    def draw(*capacities):
        for number, capacity in enumerate(capacities):
            (tmp_path / f"cpu{number}").mkdir()
            if capacity:
                (tmp_path / f"cpu{number}" / "cpu_capacity").write_text(f"{capacity}\n")
        (tmp_path / "cpufreq").mkdir()
        (tmp_path / "cpuidle").mkdir()
        monkeypatch.setattr(process, "CPUS", str(tmp_path))

    return draw


@pytest.mark.parametrize(
    "capacities, fast",
    [
        ([530] * 4 + [1024] * 4, {4, 5, 6, 7}),
        # the two fast clusters of an RK3588 seldom have the same frequency
        ([398] * 4 + [963] * 2 + [1024] * 2, {4, 5, 6, 7}),
        ([1024] * 4, {0, 1, 2, 3}),
        ([None] * 4, set()),
    ],
    ids=["RK3576", "RK3588", "RK3568", "PC"],
)
def test_fast_cpu_cores_are_those_of_the_fast_clusters(cpus, capacities, fast):
    cpus(*capacities)
    assert process.fast_cpus() == fast


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores"
)
@pytest.mark.parametrize("big_cores, bound", [(True, True), (False, False)])
def test_big_cores_binds_every_thread_of_the_run(clip, tmp_path, big_cores, bound):
    allowed = sorted(os.sched_getaffinity(0))
    for number in allowed:
        (tmp_path / f"cpu{number}").mkdir()
        (tmp_path / f"cpu{number}" / "cpu_capacity").write_text(
            "1024" if number == allowed[-1] else "400"
        )
    (tmp_path / "threads.py").write_text(
        "import os\n"
        "def myFunc(rknn_lite, IMG):\n"
        # One write per line: print() writes the newline separately, and threads would interleave.
        "    os.write(1, f'on {sorted(os.sched_getaffinity(0))}\\n'.encode())\n"
    )
    script = (
        f"import main, process\nprocess.CPUS, main.bigCores = {str(tmp_path)!r}, {big_cores}\n"
        "main.main()"
    )
    done = python("-c", script, clip, "--headless", "--func", tmp_path / "threads.py")
    assert done.returncode == 0, done.stderr
    places = set(re.findall(r"on (\[.*\])", done.stdout))
    assert places == {str(allowed[-1:] if bound else allowed)}


@pytest.mark.parametrize(
    "source, expected",
    [
        ("none.mp4", "none.mp4: no such file"),
        ("rtsp://me:pass@/x", "names no host"),
        ("97", "there is no such camera"),
        ("http://127.0.0.1:9/x", "cannot be reached"),
    ],
)
def test_the_asyncio_example_reports_a_missing_source_in_one_sentence(source, expected):
    command = [sys.executable, "examples/asyncio_streams.py", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == ""
    assert expected in done.stderr.splitlines()[-1]
    assert "pass@" not in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_ends_the_asyncio_example():
    reading = threading.Event()

    def answer(request):
        reading.set()
        motion(TYPE + b"\r\n")(request)

    with http_camera(answer) as url:
        command = [sys.executable, "examples/asyncio_streams.py", url]
        running = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
        assert reading.wait(60)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130 and stdout == "" and "Traceback" not in stderr, stderr


def test_the_asyncio_example_reports_in_one_sentence_that_no_context_opens():
    done = python(
        "-c",
        "import runpy, sys, runtimes.cpu\n"
        "runtimes.cpu.RKNNLite.init_runtime = lambda *_, **__: -1\n"
        "runpy.run_path('examples/asyncio_streams.py', run_name='__main__')",
    )
    assert done.returncode == 2 and "could not open" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- sinks ----


class Slow:
    """A sink that blocks until it is allowed to write."""

    def __init__(self):
        self.may, self.began, self.numbers, self.closed = (
            threading.Event(),
            threading.Event(),
            [],
            False,
        )

    def write(self, result):
        self.began.set()
        self.may.wait()
        self.numbers.append(result)

    def close(self):
        self.closed = True


def test_a_slow_sink_delays_nothing_and_its_dropped_frames_are_reported(clip):
    stream, sink = streams.Stream(clip), Slow()
    stream.live = True
    stream.add_sink(sink)
    for number in range(30):  # returns at once, or this test never ends
        stream.sinks[0].write(number)
        sink.began.wait()
    sink.may.set()
    stream.close()
    assert sink.numbers == [0, *range(22, 30)] and sink.closed
    assert stream.summary().endswith(", 21 not saved")


def test_a_live_stream_keeps_only_the_newest_picture_for_a_blocked_sink(clip, runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "SLOW_CONSUMER_SECONDS", 0.0)
    many, most = threading.Event(), []

    class Camera:
        live, fps, total, skipped, size, time = True, 100.0, 0, 0, (64, 48), 0.0
        file, note, pictures = None, None, weakref.WeakSet()

        def grab(self):
            if len(most) >= 300:
                many.set()
            if len(most) >= 400:
                stream.stop.set()
            return len(most) < 400

        def retrieve(self):
            picture = np.zeros((48, 64, 3), np.uint8).view(Picture)
            self.pictures.add(picture)
            most.append(len(self.pictures))
            return picture

        frame = retrieve

        def release(self):
            pass

    class Picture(np.ndarray):
        __hash__, __eq__ = object.__hash__, object.__eq__

    class Stalls:
        def write(self, result):
            assert many.wait(20)

        def close(self):
            pass

    monkeypatch.setattr(sources, "Video", lambda *_: Camera())
    stream = streams.Stream(clip)
    stream.sinks = [Stalls()]
    func = SimpleNamespace(myFunc=lambda context, frame: frame)
    with rknnPoolExecutor("model", 2, streams.FrameTask(func), runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert many.is_set() and max(most) < 40, stream.error


def test_a_failed_sink_is_removed_and_other_sinks_get_every_frame(clip, runtime):
    class Fails:
        count = 0

        def write(self, result):
            self.count += 1
            if self.count == 3:
                raise InputError("the third is too many")

    class Keeps(list):
        def write(self, result):
            self.append(result.number)

    stream, fails, keeps = streams.Stream(clip), Fails(), Keeps()
    stream.sinks = [fails, keeps]
    with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert keeps == list(range(45)) and fails.count == 3
    assert stream.code == 2 and "the third is too many" in stream.printed


def test_a_sink_that_fails_in_close_does_not_keep_other_sinks_open(clip, runtime, capsys):
    class Fails(Slow):
        def close(self):
            raise KeyError("a mistake of its author's")

    stream = streams.Stream(clip)
    for sink in (Fails(), Slow()):
        sink.may.set()
        stream.add_sink(sink)
    with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert stream.own_sinks[1].closed and stream.count == 45
    assert stream.code == 1 and "a mistake of its author's" in capsys.readouterr().err


def test_a_picture_is_drawn_once_and_only_if_it_is_used(clip):
    drawn = []
    result = streams.Result(streams.Stream(clip), 0, 0, [0], 0)
    result.draw = lambda frame, detections: drawn.append(detections) or frame
    result.overlay.append(lambda picture: picture.append(1))
    assert drawn == []
    assert result.picture == result.picture == [0, 1] and len(drawn) == 1


def test_a_draw_that_draws_in_place_need_not_return_the_picture(clip):
    result = streams.Result(streams.Stream(clip), 0, 0, [0], 0)
    result.draw = lambda frame, detections: frame.append(1)
    result.overlay.append(lambda picture: picture.append(2))
    assert result.picture == [0, 1, 2] and result.stream.error is None


def test_a_drawing_error_is_reported_and_the_plain_frame_is_shown(clip):
    stream = streams.Stream(clip)
    result = streams.Result(stream, 0, 0, [0], 0)
    result.draw = lambda frame, detections: detections.nothing
    assert result.picture == [0] and stream.code == 1 and "nothing" in stream.error


def test_a_drawing_error_after_the_end_of_a_stream_is_printed_once(clip, runtime, printed):
    """A window or a page draws the last picture when it is shown."""
    stream, results = streams.Stream(clip), []
    stream.sinks.append(SimpleNamespace(write=results.append))
    func = SimpleNamespace(
        detect=lambda context, frame: Detections([], [], []),
        draw=lambda frame, detections: detections.nothing,
    )
    with rknnPoolExecutor("model", 1, streams.FrameTask(func), runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), "clip.avi: ", quiet=True)
    assert stream.code == 0 and results[-1].picture is not None
    for ended in ([], [stream]):  # before and after main.py has reported the end
        report(ended, [], quiet=True)
        assert stream.code == 1 and sum("no attribute 'nothing'" in line for line in printed) == 1


def test_a_frame_that_is_processed_again_keeps_nothing_of_the_first_run(clip):
    """The pool calls its func again if the first run failed."""
    found = iter([None, "detections"])
    func = SimpleNamespace(
        detect=lambda context, frame: next(found), draw=lambda frame, detections: detections
    )
    result = streams.Result(streams.Stream(clip), 0, 0, [0], 0)
    task = streams.FrameTask(func)
    task(None, result)
    assert task(None, result) is result
    assert result.detections == result.picture == "detections"


def test_a_failed_frame_has_no_detections_and_shows_the_plain_frame(clip):
    result = streams.Result(streams.Stream(clip), 0, 0, [0], 0)
    result.detections, result.draw = "half done", lambda frame, detections: 1 / 0
    result.fail("the NPU failed")
    assert result.error == "the NPU failed" and result.detections is None
    assert result.picture is None and result.stream.error is None


@pytest.mark.parametrize("when", ["reading", "func", "sink"])
@pytest.mark.skipif(
    sys.version_info < (3, 9, 18), reason="Python 3.9.2 keeps such a frame until gc runs"
)
def test_after_an_error_a_stream_keeps_no_frame(clip, runtime, monkeypatch, when):
    alive = weakref.WeakSet()

    class Picture(np.ndarray):
        __hash__, __eq__ = object.__hash__, object.__eq__

    class Video(sources.Video):
        def frame(self):
            if when == "reading" and self.time > 0.3:
                raise RuntimeError("the reader failed")
            picture = super().frame().view(Picture)
            alive.add(picture)
            return picture

    class Sink:
        def write(self, result):
            if when == "sink":
                raise RuntimeError("the sink failed")

    def fails(context, result):
        if when == "func":
            raise RuntimeError("func failed")
        return result

    monkeypatch.setattr(sources, "Video", Video)
    stream = streams.Stream(clip)
    stream.sinks.append(Sink())
    threads = set(threading.enumerate())
    gc.collect()
    gc.disable()
    try:
        with rknnPoolExecutor("model", 1, fails, runtime=runtime) as pool:
            stream.run(pool, tqdm(disable=True), quiet=True)
        for thread in set(threading.enumerate()) - threads:
            if type(thread) is threading.Thread:  # not tqdm's thread, which never ends
                thread.join(10)
        assert stream.code == 1 and len(alive) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("interval", [0.04, 0.4, 1, 10, 60])
def test_the_frame_rate_is_known_for_any_interval_between_frames(monkeypatch, interval):
    gate, now = Delivery("gate"), [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for _ in range(100):
        now[0] += interval
        gate.deliver(fakes.result(fakes.stream()))
    assert gate.fps == pytest.approx(1 / interval, rel=0.1)
    now[0] += max(5, 10 * interval)  # it has stopped
    assert gate.fps < 0.2 / interval
