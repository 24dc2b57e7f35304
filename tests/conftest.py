"""Shared parts: a runtime class with the wheel's interface that counts, and short real clips."""
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import func
import rknnmodel
import rknnpool
import streams
from runtimes.cpu import RKNNLite

ROOT = Path(__file__).resolve().parents[1]
collect_ignore = ["board/box"]  # the board's own userland


class Core:
    """An NPU core: one inference after the other, each `seconds` long, a queue in time as the driver's is."""

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
    """A fresh class with RKNNLite's interface. Its `contexts` lists what was opened, its `cores` maps a mask to a
    Core."""

    class CountingRuntime:
        NPU_CORE_0_1_2 = 7
        contexts, cores = [], {}
        fail_at = None  # number of the context, from 1, whose init_runtime returns -1
        shared = 0      # times that a context was used by two threads at once
        seconds = 0     # that a core takes for one inference

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
    """soc(name): this machine has that SoC's device tree, as far as the pool can see."""
    def set_soc(name):
        path = tmp_path / "compatible"
        path.write_bytes(f"vendor,board\0rockchip,{name}\0".encode())
        monkeypatch.setattr(rknnpool, "COMPATIBLE", str(path))
    return set_soc


@pytest.fixture(autouse=True)
def claims(monkeypatch, tmp_path):
    """Other processes on this machine, other test runs among them, do not bend which core a pool begins with."""
    monkeypatch.setattr(rknnpool._NPU, "folder", str(tmp_path))


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
def demo_detections():
    """What the demo model finds in the demo video's 600 frames: for each (boxes, classes, scores)."""
    from compare_trackers import demo
    return demo()[0]


@pytest.fixture(scope="session")
def clip(tmp_path_factory, demo_frames):
    """Path of a video of 45 frames, 640 x 360, whose n-th frame has a square n pixels wide in its corner."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (640, 360))
    for number, frame in enumerate(demo_frames[:45]):
        small = cv2.resize(frame, (640, 360))
        small[:60] = 0
        cv2.rectangle(small, (0, 0), (4 * number + 3, 40), (255, 255, 255), -1)
        writer.write(small)
    writer.release()
    return path


def opened_demo(name):
    """An opened context on the CPU with a demo model, "yolov5n" or "yolov8n"."""
    context, path = RKNNLite(), ROOT / f"models/{name}_emoji.onnx"
    assert context.load_rknn(str(path)) == 0 and context.init_runtime() == 0, context.error
    context.model = rknnmodel.describe(path)
    return context


def number_in(frame):
    """The number that clip() drew in a frame."""
    return round(float(np.count_nonzero(frame[20, :, 1] > 127)) / 4) - 1


def frames_of(path):
    """All frames of a video file: a list."""
    return list(streams.frames_of(cv2.VideoCapture(str(path))))


@pytest.fixture
def said(monkeypatch):
    """The lines that streams.say() printed: a list."""
    lines = []
    monkeypatch.setattr(streams, "say", lambda text, file=None: lines.append(text))
    return lines


@pytest.fixture
def plain_func(tmp_path):
    """Path of a --func file that gives every frame back as it is."""
    path = tmp_path / "plain.py"
    path.write_text("def myFunc(rknn_lite, IMG):\n    return IMG\n")
    return path


@pytest.fixture(scope="session")
def main_py():
    """Run main.py with these arguments: a CompletedProcess with text."""
    def run(*arguments, **options):
        command = [sys.executable, "main.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)
    return run


def class_drawn(frame):
    """The class whose label lies in the frame's upper left corner, as a saved video has it: by the hue of
    func.colour()."""
    # black and white letters leave the hue alone
    corner = cv2.cvtColor(np.float32(frame[2:10, 2:34]) / 255, cv2.COLOR_BGR2HSV)
    coloured = corner[corner[..., 1] > 0.4]
    hues = np.arange(len(func.CLASSES)) * 0.381966 % 1 * 360
    off = np.abs((coloured[:, :1] - hues + 180) % 360 - 180)
    return int(np.median(off, 0).argmin())
