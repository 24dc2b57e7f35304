"""Hands the results of one stream to its tracker, its lines and its sinks; counts them."""
from __future__ import annotations

import collections
import sys
import threading
import time
import traceback
from typing import Any

from results.console import say
from results.protocol import Sink
from results.queued_sink import QueuedSink
from results.unsaved import NotSaved
from results.wording import counted
from vision.errors import InputError


class Delivery:
    """The side of a stream that sinks know.

    name: what the stream is called everywhere. live: whether frames arrive at their own pace.
    max_fps: the most frames per second that are processed; None for all.
    setup, tracker, second, lines, objects, findings: get every result with detections first
    (`update(result)`), or None. objects: only if a sink needs result.events.
    tiles: divides the frames (results.tiles.Tiles), or None.
    sinks: get every result next.
    stop: an Event; set it to end the stream.
    count, failed, unsaved, unshown: numbers of frames. A frame that two sinks could not save counts
    twice in unsaved. code: the exit code; 0 if nothing failed.
    began, ended: time.perf_counter(); ended is None until the end.
    draws: whether a picture of every frame is needed; set it before the stream runs.
    keeps_plain: whether somebody needs the pictures without lines and zones, too (Result.plain).
    meter: the meter.Meter that measures this stream, or None. spent: {class of a sink or tracker,
    or "draw": seconds in the stream's thread; "read": seconds in the thread that reads}.
    """

    meter: Any = None
    draws = keeps_plain = False
    count = failed = unsaved = unshown = code = 0

    def __init__(self, name: str, max_fps: float | None = None):
        self.name, self.max_fps, self.live = name, max_fps, True
        self.setup: Any = None
        self.tiles: Any = None
        self.tracker: Any = None
        self.second: Any = None  # of --then
        self.lines: Any = None
        self.objects: Any = None
        self.findings: Any = None
        self.sinks: list[Sink] = []
        self.own_sinks: list[Sink] = []
        self.stop = threading.Event()
        self.printed: set[str] = set()  # by print_once()
        self.began = time.perf_counter()
        self.ended: float | None = None
        self.spent: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._recent: collections.deque[float] = collections.deque(maxlen=100)

    def add_sink(self, sink: Sink) -> None:
        """Add a sink that belongs to this stream alone and is closed with it. If the stream is
        live, it never waits for the sink."""
        self.own_sinks.append(QueuedSink(sink, self) if self.live else sink)
        self.sinks.append(self.own_sinks[-1])

    def deliver(self, result: Any) -> None:
        """Take a result to the tracker and the lines, then to every sink."""
        self.failed += result.error is not None
        if result.error is None and result.detections is not None:
            for each in (self.setup, self.tracker, self.second, self.lines, self.objects,
                         self.findings):
                if each is not None:
                    self.timed(each, each.update, result)
        for sink in list(self.sinks):
            self.timed(getattr(sink, "sink", sink), self.write_to, sink, result)
        if result.error is None:
            self.count += 1
            self._recent.append(time.perf_counter())

    def timed(self, part: Any, call: Any, *arguments: Any) -> None:
        """Call, and add the time to `spent`. The first sink that asks for the picture causes the
        drawing, which counts as "draw"."""
        result, began = arguments[-1], time.perf_counter()
        drawing_before = result.drawing
        call(*arguments)
        took = time.perf_counter() - began
        drawn = min(took, result.drawing - drawing_before)
        self.spent[type(part).__name__] += took - drawn
        self.spent["draw"] += drawn

    def write_to(self, sink: Any, result: Any) -> bool:
        """Write a result to a sink. False if the sink failed: it gets no more, and the stream goes
        on."""
        try:
            sink.write(result)
            return True
        except NotSaved as error:
            self.unsaved += 1
            self.report_failure(error)
            return True
        except Exception as error:
            self.report_failure(error)
            self.sinks = [other for other in self.sinks
                          if sink not in (other, getattr(other, "sink", None))]
            return False

    def close(self) -> None:
        """Close the sinks that belong to this stream alone. May be called more than once."""
        self.close_sinks(self.own_sinks)

    def close_sinks(self, sinks: list[Sink]) -> None:
        """Close sinks. If one fails, the others are still closed."""
        for sink in sinks:
            try:
                sink.close()
            except Exception as error:
                self.report_failure(error)

    def report_failure(self, error: Exception) -> None:
        """Print once how a sink failed. Sets the exit code; the stream goes on."""
        known = isinstance(error, InputError)
        self.print_once(str(error) if known else traceback.format_exc().rstrip())
        self.code = self.code or (2 if known else 1)

    def print_once(self, text: str) -> None:
        """Print a text to stderr unless it has been printed before."""
        if text not in self.printed:
            self.printed.add(text)
            say(text, sys.stderr)

    @property
    def fps(self) -> float:
        """Frames processed per second, over the last two seconds or the last three frames."""
        now, moments = time.perf_counter(), list(self._recent)
        recent = [moment for moment in moments if moment > now - 2]
        recent = recent if len(recent) > 3 else moments[-3:]
        return (len(recent) - 1) / max(0.1, now - recent[0]) if len(recent) > 1 else 0.0

    @property
    def dropped(self) -> int:
        """Frames of a live source that were read but not processed: newer ones replaced them."""
        return 0

    def summary(self) -> str:
        seconds = (self.ended or time.perf_counter()) - self.began
        more = f", {self.dropped} dropped" if self.live else ""
        for count, what in ((self.failed, "failed"), (self.unsaved, "not saved"),
                            (self.unshown, "not shown")):
            more += f", {count} {what}" if count else ""
        return (f"{self.name}: {counted(self.count, 'frame')} in {seconds:.1f} s, "
                f"{self.count / seconds:.1f} FPS on average{more}")
