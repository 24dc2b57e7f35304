"""What main.py promises for several streams and for live sources."""
import os
import re
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, frames_of, number_in
from tqdm import tqdm

import main
import rknnpool
import streams
from rknnmodel import InputError
from rknnpool import rknnPoolExecutor


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
def test_every_stream_is_saved_whole_and_in_order_and_counted(main_py, clip, short_clip, tmp_path, plain_func):
    done = main_py(clip, short_clip, "--headless", "--func", plain_func, "--save", tmp_path / "out.avi")
    assert done.returncode == 0, done.stderr
    assert [number_in(frame) for frame in frames_of(tmp_path / "out_1.avi")] == list(range(45))
    assert [number_in(frame) for frame in frames_of(tmp_path / "out_2.avi")] == list(range(15))
    assert re.search(r"clip\.avi: 45 frames in \d+\.\d s, \d+\.\d FPS on average", done.stdout)
    assert re.search(r"short\.avi: 15 frames in \d+\.\d s", done.stdout)
    assert re.search(r"clip\.avi: FPS over the last 30 frames: \d+\.\d", done.stdout)
    assert re.search(r"in all: 60 frames in \d+\.\d s, \d+\.\d FPS on average", done.stdout)


def test_a_source_that_cannot_be_opened_leaves_the_others_running(main_py, clip, plain_func):
    done = main_py("none.mp4", clip, "--headless", "--func", plain_func)
    assert done.returncode == 2
    assert "none.mp4: no such file" in done.stderr
    assert "clip.avi: 45 frames" in done.stdout


def test_where_no_source_can_be_opened_each_is_named(main_py):
    done = main_py("none.mp4", "tests/board", "--headless")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["none.mp4: no such file.", "tests/board: is a directory, and has no pictures "
                                        "(.jpg, .jpeg, .png, .bmp, ...)."]


@pytest.mark.slow
def test_a_stream_whose_frames_fail_leaves_the_others_running(main_py, clip, short_clip, tmp_path):
    (tmp_path / "fails.py").write_text(  # on frames of another number of pixels in the corner than the short clip has
        "from func import ModelError\nimport numpy as np\n"
        "def myFunc(rknn_lite, IMG):\n    if np.count_nonzero(IMG[20, :, 1] > 127) > 4 * 30:\n"
        "        raise ModelError('frame 30 is bad')\n"
        "    return IMG\n")
    done = main_py(clip, short_clip, "--headless", "--func", tmp_path / "fails.py", "--save", tmp_path / "out.avi")
    assert done.returncode == 2
    assert "frame 30 is bad." in done.stderr and "Traceback" not in done.stderr
    assert "short.avi: 15 frames" in done.stdout and "clip.avi: 30 frames" in done.stdout
    assert len(frames_of(tmp_path / "out_1.avi")) == 30 and len(frames_of(tmp_path / "out_2.avi")) == 15


def test_no_stream_is_saved_over_the_source_of_another(main_py, clip, short_clip, tmp_path):
    second = tmp_path / "out_1.avi"
    second.write_bytes(clip.read_bytes())
    done = main_py(short_clip, second, "--headless", "--save", tmp_path / "out.avi")
    assert done.returncode == 2
    assert done.stderr == f"--save {second}: is the video that is read.\n"
    assert second.read_bytes() == clip.read_bytes()


def test_cap_may_be_a_list(clip, short_clip, plain_func):
    script = f"import main\nmain.cap = [{str(clip)!r}, {str(short_clip)!r}]\nmain.main()"
    done = subprocess.run([sys.executable, "-c", script, "--headless", "--func", str(plain_func)], cwd=ROOT,
                          capture_output=True, text=True,
                          timeout=100)
    assert done.returncode == 0, done.stderr
    assert "in all: 60 frames" in done.stdout


@pytest.mark.slow
def test_the_asyncio_example_serves_every_frame_of_each_stream(clip, short_clip):
    command = [sys.executable, "examples/asyncio_streams.py", clip, short_clip]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"{clip}: 45 frames, [1-9]\d* objects\n{short_clip}: 15 frames, [1-9]\d* objects\n",
                        done.stdout)


# ---- big cores ----

@pytest.fixture
def cpus(tmp_path, monkeypatch):
    """cpus(*capacities): this machine has such CPU cores, as far as main.py can see."""
    def draw(*capacities):
        for number, capacity in enumerate(capacities):
            (tmp_path / f"cpu{number}").mkdir()
            if capacity:
                (tmp_path / f"cpu{number}" / "cpu_capacity").write_text(f"{capacity}\n")
        (tmp_path / "cpufreq").mkdir()
        (tmp_path / "cpuidle").mkdir()
        monkeypatch.setattr(main, "CPUS", str(tmp_path))
    return draw


@pytest.mark.parametrize("capacities, fast", [
    ([530] * 4 + [1024] * 4, {4, 5, 6, 7}),
    # the two fast clusters of one RK3588 seldom reach the same clock
    ([398] * 4 + [963] * 2 + [1024] * 2, {4, 5, 6, 7}),
    ([1024] * 4, {0, 1, 2, 3}),
    ([None] * 4, set()),
], ids=["RK3576", "RK3588", "RK3568", "PC"])
def test_the_fast_cores_are_those_of_the_fast_clusters(cpus, capacities, fast):
    cpus(*capacities)
    assert main.fast_cpus() == fast


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
@pytest.mark.parametrize("big_cores, bound", [(True, True), (False, False)])
def test_big_cores_binds_every_thread_of_the_run(clip, tmp_path, big_cores, bound):
    allowed = sorted(os.sched_getaffinity(0))
    for number in allowed:
        (tmp_path / f"cpu{number}").mkdir()
        (tmp_path / f"cpu{number}" / "cpu_capacity").write_text("1024" if number == allowed[-1] else "400")
    (tmp_path / "threads.py").write_text(
        "import os\ndef myFunc(rknn_lite, IMG):\n    print('on', sorted(os.sched_getaffinity(0)))\n")
    script = f"import main\nmain.CPUS, main.bigCores = {str(tmp_path)!r}, {big_cores}\nmain.main()"
    done = subprocess.run([sys.executable, "-c", script, str(clip), "--headless", "--func",
                           str(tmp_path / "threads.py")], cwd=ROOT,
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    places = set(re.findall(r"on (\[.*\])", done.stdout))
    assert places == {str(allowed[-1:] if bound else allowed)}


@pytest.mark.parametrize("source, said", [
    ("none.mp4", "none.mp4: no such file"), ("rtsp://me:pass@/x", "names no host"),
    ("97", "there is no camera"), ("http://127.0.0.1:9/x", "cannot be reached"),
])
def test_the_asyncio_example_ends_in_a_sentence_where_a_source_is_missing(source, said):
    command = [sys.executable, "examples/asyncio_streams.py", source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.splitlines()) == 1 and "pass@" not in done.stderr


# ---- places ----

class Slow:
    """A place that writes nothing until it may."""
    def __init__(self):
        self.may, self.began, self.numbers, self.closed = threading.Event(), threading.Event(), [], False

    def write(self, result):
        self.began.set()
        self.may.wait()
        self.numbers.append(result)

    def close(self):
        self.closed = True


def test_a_slow_place_of_a_live_stream_holds_up_nobody_and_what_it_drops_is_said(clip):
    stream, place = streams.Stream(clip), Slow()
    stream.live = True
    stream.add(place)
    for number in range(30):  # returns at once, or this test never ends
        stream.places[0].write(number)
        place.began.wait()
    place.may.set()
    stream.close()
    assert place.numbers == [0, *range(22, 30)] and place.closed
    assert stream.summary().endswith(", 21 not saved")


def test_while_a_place_stalls_a_live_stream_keeps_no_pictures_but_the_newest(clip, runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "PROMPT", 0.0)
    many, most = threading.Event(), []

    class Camera:
        live, fps, total, size, file, pictures = True, 100.0, 0, (64, 48), None, weakref.WeakSet()

        def grab(self):
            if len(most) >= 300:
                many.set()
            return len(most) < 400

        def now(self):
            return 0.0

        def later(self):
            return lambda _: self.retrieve()

        def retrieve(self):
            picture = np.zeros((48, 64, 3), np.uint8).view(Picture)
            self.pictures.add(picture)
            most.append(len(self.pictures))
            return picture

        def hand_over(self, *_):
            return False

        def hold(self):
            pass

        def release(self):
            pass

    class Picture(np.ndarray):
        __hash__, __eq__ = object.__hash__, object.__eq__

    class Stalls:
        def write(self, result):
            assert many.wait(20)

        def close(self):
            pass

    stream = streams.Stream(clip)
    stream.source, stream.live, stream.places = Camera(), True, [Stalls()]
    stream.come_back = lambda: False
    func = SimpleNamespace(myFunc=lambda context, frame: frame)
    with rknnPoolExecutor("model", 2, streams.Served(func), runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert many.is_set() and max(most) < 40, stream.error


def test_a_place_that_fails_is_left_out_and_costs_no_other_place_a_frame(clip, runtime):
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
    stream.places = [fails, keeps]
    with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert keeps == list(range(45)) and fails.count == 3
    assert stream.code == 2 and "the third is too many" in stream.complaints


def test_a_place_that_fails_as_it_is_closed_costs_no_other_place_its_end(clip, runtime, capsys):
    class Fails(Slow):
        def close(self):
            raise KeyError("a mistake of its author's")

    stream = streams.Stream(clip)
    for place in (Fails(), Slow()):
        place.may.set()
        stream.add(place)
    with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert stream.own[1].closed and stream.count == 45
    assert stream.code == 1 and "a mistake of its author's" in capsys.readouterr().err


def test_a_picture_is_drawn_when_first_asked_for_and_only_once(clip):
    drawn = []
    result = streams.Result(streams.Stream(clip), 0, 0, [0], 0)
    result.draw = lambda frame, detections: drawn.append(detections) or frame
    result.overlay.append(lambda picture: picture.append(1))
    assert drawn == []
    assert result.picture == result.picture == [0, 1] and len(drawn) == 1


def test_a_picture_that_cannot_be_drawn_is_the_frame_and_nobody_else_is_blamed(clip):
    stream = streams.Stream(clip)
    result = streams.Result(stream, 0, 0, [0], 0)
    result.draw = lambda frame, detections: detections.nothing
    assert result.picture == [0] and stream.code == 1 and "nothing" in stream.error
