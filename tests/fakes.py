"""Fake streams and results for the tests of results/, without a pool; wait_until(); and
frames_in()."""

import time
from types import SimpleNamespace

import cv2
import numpy as np

from results.objects import Objects

NAMES = ["person", "car", "dog"]


def wait_until(condition, what="it", seconds=90):
    """Wait until condition() is true, and return its value. For states of other processes and
    threads that have no event to wait for; `what` names the state if it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: timed out"
        time.sleep(0.01)


def frames_in(path):
    """The frames of a video file, (h, w, 3) uint8 BGR, until there are no more."""
    video = cv2.VideoCapture(str(path))
    more, frame = video.read()
    while more:
        yield frame
        more, frame = video.read()


class Found:
    """Detections. Each object is (identity, class, x): a box of 20 x 40 pixels at (x, 100)."""

    def __init__(self, objects):
        self.ids = np.array([number for number, _, _ in objects], np.int64)
        self.classes = np.array([NAMES.index(name) for _, name, _ in objects], np.int64)
        self.scores = np.linspace(0.9, 0.5, len(objects)).astype(np.float32)
        self.boxes = np.array([(x, 100, x + 20, 140) for _, _, x in objects], np.float32).reshape(
            -1, 4
        )
        self.masks = self.keypoints = self.corners = None

    def name(self, number):
        return NAMES[number]

    def __len__(self):
        return len(self.boxes)


def stream(name="gate", live=True):
    return SimpleNamespace(
        name=name,
        live=live,
        objects=Objects(f"run-{name}"),
        count=0,
        dropped=0,
        failed=0,
        fps=25.0,
        width=640,
        height=360,
        ended=None,
        away=False,
    )


def result(
    of, objects=(), crossings=(), lines=None, zones=None, inside=None, time_=None, picture=None
):
    """Return the stream's next result, with its events. Its time advances at 25 FPS."""
    number, of.count = of.count, of.count + 1
    if picture is None:
        picture = np.full((360, 640, 3), number % 256, np.uint8)
    made = SimpleNamespace(
        stream=of,
        number=number,
        time=number / 25 if time_ is None else time_,
        size=(640, 360),
        picture=picture,
        detections=Found(objects),
        crossings=list(crossings),
        lines=lines,
        zones=zones,
        inside=inside,
        error=None,
        file=None,
        received=time.perf_counter() - 0.02,
        drawing=0.0,
    )
    of.objects.update(made)
    return made
