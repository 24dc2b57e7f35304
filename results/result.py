"""What becomes of one frame: it goes through the pool as a Result, and on to tracking, lines and every place."""
import threading
from types import ModuleType
from typing import Any, Callable, List, Optional, Tuple

from funcs import has_detections

NOT_YET = object()  # a picture that nothing has made


class Gone(Exception):
    """A live frame's turn has come when its source has gone on to the next one: it counts as dropped."""


class Result:
    """What becomes of one frame.

    stream: its Stream; number: the frame's in its source, from 0, dropped and failed ones counted; time: seconds, the
    position in a file, Unix time of a live one; received: time.perf_counter() when it was read; frame: as it was read,
    (h, w, 3) uint8 BGR as a rule, made when it is first asked for where Result() gets a function for it; file: the name
    of a picture in a folder, or None; error: why there is no result, a sentence, or None; detections: what the func
    file's `detect` returned, or None; crossings, lines, zones: what results/lines.py found; overlay: functions
    (picture) -> None that draw on the picture, after the func file's `draw`.
    """

    def __init__(self, stream: Any, number: int, time: float, frame: Any, received: float,
                 file: Optional[str] = None, error: Optional[str] = None):
        self.stream, self.number, self.time, self.received = stream, number, time, received
        self._frame, self._later = (None, frame) if callable(frame) else (frame, None)
        self.file, self.error = file, error
        self.detections, self.crossings, self.lines, self.zones = None, [], None, None
        self.overlay: List[Callable] = []
        self.draw: Optional[Callable] = None
        self.shown: Any = NOT_YET  # what `picture` begins with, if not the frame
        self.first = False  # in the pool before the other streams' frames
        self._making, self._drawn = threading.RLock(), False

    def take(self) -> bool:
        """Make the frame, if it is not there yet, and tell whether it is: a live source may have gone on before."""
        with self._making:
            if self._later is not None:
                later, self._later = self._later, None
                self._frame = later(self)
        return self._frame is not None

    @property
    def frame(self) -> Any:
        self.take()
        return self._frame

    @property
    def size(self) -> Tuple[int, int]:
        """Width and height of the frame in pixels."""
        shape = getattr(self.frame, "shape", (0, 0))
        return shape[1], shape[0]

    @property
    def picture(self) -> Any:
        """The frame with what was found drawn on it, (h, w, 3) uint8 BGR as a rule: made when first asked for."""
        frame = self.frame
        with self._making:
            if not self._drawn:
                self._drawn = True
                try:
                    if self.draw:
                        self.shown = self.draw(frame, self.detections)
                    elif self.shown is NOT_YET:
                        self.shown = frame
                    for draw in self.overlay:
                        draw(self.shown)
                except Exception as error:  # in the user's code, and the place that asks is not to blame
                    self.stream.fail(error)
                    self.shown = frame if self.shown is NOT_YET else self.shown
            return self.shown


class Served:
    """What the pool runs on each Result: a func file's `detect` where main.py goes on with detections, else its
    `myFunc`.

    func: the func file's module.
    """

    def __init__(self, func: ModuleType):
        self.func, self.detections = func, has_detections(func)

    def __call__(self, context: Any, result: Result) -> Result:
        if result.error is None:
            if not result.take():
                result.stream.owed = True
                raise Gone
            if self.detections:
                result.detections, result.draw = self.func.detect(context, result.frame), self.func.draw
            else:
                result.shown = self.func.myFunc(context, result.frame)
        return result
