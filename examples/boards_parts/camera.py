"""A camera whose frames are processed on a board, and whose results arrive as JSON."""
from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from results.delivery import Delivery
from vision.detections import Detections

DEFAULT_RATE = 25.0  # frames per second of a camera that does not report its rate


class ReceivedDetections(Detections):
    """Detections of another board: polygons instead of masks."""

    polygons: list[Any] | None = None  # as in --json


def detections_of(objects: list[dict[str, Any]]) -> Detections:
    """Convert the objects of a JSON line, which results.jsonl.objects() writes, to Detections."""
    def array(field: str) -> np.ndarray | None:
        if not objects or field not in objects[0]:
            return None
        return np.array([one[field] for one in objects], np.float32)

    boxes = array("box") if objects else np.empty((0, 4), np.float32)
    shares = array("share")  # of a class map, which is not sent
    found = ReceivedDetections(
        boxes, np.array([one["number"] for one in objects], np.int64),
        np.array([one["score"] for one in objects], np.float32) if shares is None else shares,
        {one["number"]: one["class"] for one in objects},
        keypoints=array("keypoints"), corners=array("corners"),
        class_map=None if shares is None else np.empty((0, 0), np.uint8))
    if any("attributes" in one for one in objects):
        found.attributes = [one.get("attributes", {}) for one in objects]
    if objects and "polygon" in objects[0]:
        found.polygons = [one["polygon"] for one in objects]
    return found


class Camera(Delivery):
    """The results of one camera. A board processes its frames.

    Each assignment to a board has an epoch, a number that only increases. A result of an earlier
    epoch is rejected: a board that was silent may still send results of a camera that another
    board has taken over.
    """

    def __init__(self, name: str, address: str, max_fps: float | None):
        super().__init__(name, max_fps)
        self.address = address
        self.board: Any = None              # the BoardLoad to which it is assigned
        self.epoch = 0
        self.moved_because: str | None = None
        self.retry_at = 0.0                 # time.perf_counter() of the next assignment
        self.rate = 0.0                     # frames per second, as the camera reports it
        self.rejected = 0                   # results of an earlier epoch
        self.dropped_in: dict[int, int] = {}  # {epoch: frames that the board dropped}

    @property
    def demand(self) -> float:
        """Frames per second that a board must process."""
        rate = self.rate if 1 <= self.rate <= 240 else DEFAULT_RATE
        return min(self.max_fps or rate, rate)

    @property
    def dropped(self) -> int:
        return sum(self.dropped_in.values())

    def receive(self, epoch: int, line: str, board: str) -> bool:
        """Deliver the result in a line of JSON. False if it is rejected."""
        if epoch != self.epoch:
            self.rejected += 1
            return False
        record = json.loads(line)
        error = record.get("error")
        detections = None if error is not None else detections_of(record["objects"])
        self.deliver(SimpleNamespace(
            stream=self, number=record["frame"], time=record["time"], size=tuple(record["size"]),
            file=record.get("file"), error=error, detections=detections, crossings=[], lines=None,
            zones=None, inside=None, events=[], overlay=[], received=time.perf_counter(),
            drawing=0.0, board=board, epoch=epoch))
        if error is not None:
            self.code = self.code or 2
        return True

    def summary(self) -> str:
        more = (f", {self.rejected} rejected (sent after the camera had moved to another board)"
                if self.rejected else "")
        return super().summary() + more
