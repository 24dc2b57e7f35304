"""One frame on its way: through the pool, to the tracker and the lines, and to every sink."""
from __future__ import annotations

import threading
import time
from types import ModuleType
from typing import Any, Callable

from funcs import has_detections
from vision.errors import InputError
from vision.frame import Frame, Undecodable


def draw_nothing(frame: Any, detections: Any) -> Any:
    return frame


class Result:
    """One frame and what was found in it.

    stream: its Stream.
    number: the frame's number in its source, from 0; skipped and failed frames are counted.
    time: in seconds: the position in a file, the Unix time of a live source.
    received, queued: time.perf_counter() when the frame was read, and when the pool got it.
    as_read: the frame as its source gave it: an array, or a vision.frame.Frame.
    frame: the same as (h, w, 3) uint8 BGR. A Frame is converted when this is first asked for.
    file: name of the picture, if the source consists of pictures, else None.
    error: a sentence if the frame failed, else None.
    detections: what the func file's detect() returned, else None.
    crossings, lines, zones: set by results/lines.py. events: set by results/objects.py.
    overlay: functions (picture) -> None that draw on the picture after the func file's draw().
    drawing: seconds that draw() and `overlay` took; 0 until the picture is drawn.
    plain: a copy of the picture before `overlay`, made only while stream.keeps_plain; else None.
    """

    def __init__(self, stream: Any, number: int, time: float, as_read: Any, received: float,
                 file: str | None = None, error: str | None = None):
        self.stream, self.number, self.time = stream, number, time
        self.received = self.queued = received
        self.as_read = as_read
        self.file, self.error = file, error
        self.detections: Any = None
        self.crossings: list[Any] = []
        self.lines: Any = None
        self.zones: Any = None
        self.events: list[Any] = []
        self.overlay: list[Callable[[Any], None]] = []
        self.draw: Callable[[Any, Any], Any] | None = draw_nothing  # None if myFunc has drawn
        self.drawing = 0.0
        self.plain: Any = None
        self.shown: Any = None  # what myFunc returned; later, what draw() returned
        self._lock, self._drawn = threading.RLock(), False

    @property
    def frame(self) -> Any:
        return self.as_read.bgr() if isinstance(self.as_read, Frame) else self.as_read

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frame in pixels."""
        shape = getattr(self.as_read, "shape", (0, 0))
        return shape[1], shape[0]

    @property
    def picture(self) -> Any:
        """The frame with everything drawn on it, (h, w, 3) uint8 BGR unless myFunc returns
        something else. It is drawn when first asked for, on the frame itself."""
        with self._lock:
            if not self._drawn:
                self._drawn, began = True, time.perf_counter()
                try:
                    if self.draw is not None:
                        drawn = self.draw(self.frame, self.detections)
                        self.shown = self.frame if drawn is None else drawn  # drawn in place
                    if self.overlay and self.stream.keeps_plain:
                        self.plain = self.shown.copy()
                    for draw in self.overlay:
                        draw(self.shown)
                except Exception as error:  # an error in the user's code, not in the sink
                    self.stream.fail(error)
                    self.shown = self.frame if self.shown is None else self.shown
                self.drawing = time.perf_counter() - began
            return self.shown

    def fail(self, sentence: str) -> None:
        """Make this the result of a frame that failed: no detections, nothing drawn."""
        self.error, self.detections, self.draw = sentence, None, None


class FrameTask:
    """What the pool runs on each Result: the func file's detect() if it has one, else its myFunc.
    A frame that cannot be decoded fails.

    func_module: the func file as a module. needs_boxes: the flag that needs boxes, or ""; then a
    detection without a box raises InputError. The pool may call this twice for one Result, if the
    first run failed: each call sets the result as a whole.
    """

    def __init__(self, func_module: ModuleType, needs_boxes: str = ""):
        self.needs_boxes = needs_boxes
        self.func, self.has_detections = func_module, has_detections(func_module)
        self.takes_frames = self.has_detections and getattr(func_module, "FRAMES", False)

    def __call__(self, context: Any, result: Result) -> Result:
        if result.error is not None:
            return result
        try:
            return self.run(context, result)
        except Undecodable as error:
            result.fail(str(error))
            return result

    def run(self, context: Any, result: Result) -> Result:
        if self.has_detections:
            if result.stream.draws:  # convert it here, in the pool's threads
                result.frame  # noqa: B018
            frame = result.as_read if self.takes_frames else result.frame
            result.detections = self.func.detect(context, frame)
            result.draw = self.func.draw
            if self.needs_boxes and result.detections.boxes is None and len(result.detections):
                raise InputError(f"{self.needs_boxes} needs boxes, but detect() of the func file "
                                 "returns Detections without boxes.")
        else:
            result.shown, result.draw = self.func.myFunc(context, result.frame), None
        return result
