"""Shared fixtures: a fake runtime that counts its calls, and short clips of the demo video."""

import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import fakes
import hypothesis
import numpy as np
import pytest
import tqdm

import rknnpool
from runtimes.cpu import RKNNLite
from vision.coco import COCO_CLASSES
from vision.model import describe

ROOT = Path(__file__).resolve().parents[1]
collect_ignore = ["board/box", "teflon/box"]  # the userlands of the emulated boards

# The property tests try the same examples in every run; .ci/full tries random ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")

for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, in a shell's background
        # Programs that the tests start would inherit SIG_IGN. They do not inherit a handler.
        signal.signal(number, lambda *_: None)


def pytest_configure(config):
    # Files in the order below. The option --no-loadscope-reorder says the same, but the xdist of
    # Python 3.8 lacks it.
    config.option.loadscopereorder = False
    if hasattr(config, "workerinput") and config.args == config.getini("testpaths"):
        import_a_share_of_the_tests(**config.workerinput)


def import_a_share_of_the_tests(workerid, workercount, **_):
    """Before the tests are collected. Each process of pytest-xdist imports all test files, and
    pytest rewrites their assertions, 9 s of CPU. Each process begins with other files, and later
    loads what the others have written to __pycache__."""
    sys.dont_write_bytecode = False
    for path in sorted(ROOT.glob("tests/test_*.py"))[int(workerid[2:]) :: workercount]:
        # the collection of tests reports what is missing or wrong
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(path.stem)


def pytest_collection_modifyitems(items):
    """The long files first, so that no process ends with one while the others have no more. The
    first one builds the emulated board, for which the other files of tests/board would wait."""
    order = ["test_faults.py", "test_main.py", "test_manual_scripts.py", "test_boards.py", "board"]
    order += ["test_lines.py", "test_demo.py", "test_sources.py", "test_mqtt.py"]

    def rank(item):
        return next((n for n, name in enumerate(order) if name in item.path.parts), len(order))

    items.sort(key=rank)


class Core:
    """An NPU core. It runs one inference at a time, in the order of the calls; each takes
    `seconds`."""

    def __init__(self):
        self.queueing, self.runs, self.free_at = threading.Lock(), 0, 0.0

    def infer(self, seconds):
        with self.queueing:
            self.runs += 1
            end = self.free_at = max(time.perf_counter(), self.free_at) + seconds
        if seconds:
            time.sleep(max(0, end - time.perf_counter()))


@pytest.fixture
def runtime():
    """A new class with RKNNLite's interface. Its `contexts` lists the opened ones, its `cores` maps
    a mask to a Core."""

    class CountingRuntime:
        NPU_CORE_0_1_2 = 7
        contexts, cores = [], {}
        fail_at = None  # number of the context, from 1, whose init_runtime returns -1
        shared = 0  # how often two threads used a context at once
        seconds = 0  # per inference

        def __init__(self):
            self.mask, self.released, self.in_use = None, 0, threading.Lock()
            self.contexts.append(self)

        def load_rknn(self, path):
            return 0

        def init_runtime(self, **options):
            self.mask = options.get("core_mask")
            self.core = self.cores.setdefault(self.mask, Core())
            return -1 if len(self.contexts) == self.fail_at else 0

        def inference(self, inputs):
            if not self.in_use.acquire(blocking=False):
                type(self).shared += 1
                return None
            self.core.infer(self.seconds)
            self.in_use.release()
            return inputs

        def release(self):
            self.released += 1

    return CountingRuntime


@pytest.fixture
def soc(monkeypatch, tmp_path):
    """soc(name): pretend that this machine has the device tree of that SoC."""

    def set_soc(name):
        path = tmp_path / "compatible"
        path.write_bytes(f"vendor,board\0rockchip,{name}\0".encode())
        monkeypatch.setattr(rknnpool, "COMPATIBLE", str(path))

    return set_soc


@pytest.fixture
def no_soc(monkeypatch):
    """Hide this machine's SoC. The fixture `soc` can set another one."""
    monkeypatch.setattr(rknnpool, "COMPATIBLE", "none")


@pytest.fixture
def no_thread_left():
    """Fails the test if a thread that it started does not end."""
    before = set(threading.enumerate())
    yield
    if sys.version_info < (3, 10):
        gc.collect()  # the frame of an exception's traceback may still refer to a pool
    started = [thread for thread in threading.enumerate() if thread not in before]
    for thread in started:
        thread.join(10)
    assert not [thread.name for thread in started if thread.is_alive()]


@pytest.fixture(scope="session")
def demo_frames():
    """The demo video's first 60 frames: list of (720, 1280, 3) uint8 BGR."""
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    frames = [video.read()[1] for _ in range(60)]
    assert all(frame is not None for frame in frames)
    return frames


@pytest.fixture(scope="session")
def demo_truth():
    return json.loads((ROOT / "models/demo.json").read_text())


@pytest.fixture(scope="session")
def demo_detections(tmp_path_factory):
    """The demo model's detections in every second frame of the demo video, 300 frames at 30 FPS:
    (boxes, classes, scores) of each. The first test process that needs them computes them for
    all."""
    from compare_trackers import demo

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    with open(folder / "detections.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "detections.pickle"
        if not path.exists():
            path.write_bytes(pickle.dumps(demo(step=2)[0]))
        return pickle.loads(path.read_bytes())


@pytest.fixture(scope="session")
def clip(tmp_path_factory, demo_frames):
    """Path of a video of 45 frames, 640 x 360. A white bar in the corner of each frame shows its
    number."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.avi", demo_frames[:45])


def write_clip(path, frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (640, 360))
    for number, frame in enumerate(frames):
        small = cv2.resize(frame, (640, 360))
        small[:60] = 0
        cv2.rectangle(small, (0, 0), (4 * number + 3, 40), (255, 255, 255), -1)
        writer.write(small)
    writer.release()
    return path


@pytest.fixture(scope="session")
def gstreamer():
    """Skip tests that need Debian's OpenCV, which has GStreamer, where it is not installed."""
    script = "import cv2, re; exit(not re.search('GStreamer: +YES', cv2.getBuildInformation()))"
    system_python = "/usr/bin/python3"
    if (
        not os.path.exists(system_python)
        or subprocess.run([system_python, "-c", script], capture_output=True).returncode
    ):
        pytest.skip("needs Debian's OpenCV with GStreamer: apt-get install python3-opencv")


def opened_demo(name):
    """An opened context on the CPU with a demo model, "yolov5n" or "yolov8n"."""
    context, path = RKNNLite(), ROOT / f"models/{name}_emoji.onnx"
    assert context.load_rknn(str(path)) == 0 and context.init_runtime() == 0, context.error
    context.model = describe(path)
    return context


def number_in(frame):
    """The number of a frame of clip()."""
    return round(float(np.count_nonzero(frame[20, :, 1] > 127)) / 4) - 1


def frames_of(path):
    """All frames of a video file: a list."""
    return list(fakes.frames_in(path))


@contextlib.contextmanager
def full_disk(path, room=0):
    """Until the end of the block, no file of this process grows beyond this one's size + room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def printed(monkeypatch):
    """The lines that results.console.say() prints: a list."""
    lines = []
    monkeypatch.setattr(tqdm.tqdm, "write", lambda text, file=None: lines.append(text))
    return lines


@pytest.fixture
def plain_func(tmp_path):
    """Path of a --func file that returns every frame unchanged."""
    path = tmp_path / "plain.py"
    path.write_text("def myFunc(rknn_lite, IMG):\n    return IMG\n")
    return path


CAR_FUNC = """
import numpy as np
from func import Detections
def detect(rknn_lite, IMG):
    names = ["person", "bicycle", "car"]
    return Detections(np.float32([[1.04, 2, 30.25, 40]]), np.int64([2]), np.float32([0.913]), names)
def draw(IMG, detections):
    return IMG
def myFunc(rknn_lite, IMG):
    return draw(IMG, detect(rknn_lite, IMG))
"""


@pytest.fixture
def car_func(tmp_path):
    """Path of a --func file that detects the same car in every frame."""
    path = tmp_path / "car.py"
    path.write_text(CAR_FUNC)
    return path


def python(*arguments, **options):
    """Run Python with these arguments, in the repository. Returns a CompletedProcess with text."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300, **options}
    return subprocess.run([sys.executable, *map(str, arguments)], **options)


@pytest.fixture(scope="session")
def main_py():
    """main_py(*arguments): run main.py. Returns a CompletedProcess with text."""
    return functools.partial(python, "main.py")


@pytest.fixture
def main_here(monkeypatch, capfd):
    """Run main.py with these arguments in this process, which saves starting Python: a
    CompletedProcess with text. Only for input that is refused before anything runs."""
    import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        threads, interrupt = cv2.getNumThreads(), signal.getsignal(signal.SIGINT)
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                main.main()
        finally:
            cv2.setNumThreads(threads)
            signal.signal(signal.SIGINT, interrupt)
        return subprocess.CompletedProcess(sys.argv, end.value.code, *capfd.readouterr())

    return run


def class_drawn(frame):
    """The class whose label is in the upper left corner of a saved frame, recognised by its hue in
    vision.labels.colour()."""
    # black and white letters have no hue
    corner = cv2.cvtColor(np.float32(frame[2:10, 2:34]) / 255, cv2.COLOR_BGR2HSV)
    coloured = corner[corner[..., 1] > 0.4]
    hues = np.arange(len(COCO_CLASSES)) * 0.381966 % 1 * 360
    off = np.abs((coloured[:, :1] - hues + 180) % 360 - 180)
    return int(np.median(off, 0).argmin())
