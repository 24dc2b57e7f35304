"""A stream is one source on its way: read, brought back when it goes away, through the pool, tracked, counted, and
handed to the places that its results go to.

    stream = Stream("rtsp://192.168.1.20/live")
    with rknnPoolExecutor("models/yolov5n_emoji.rknn", func=Served(func)) as pool:
        stream.run(pool, tqdm())
    print(stream.summary())
"""
import collections
import concurrent.futures
import sys
import threading
import time
import traceback
from typing import Any, Dict, Iterator, List, Optional, Set

from tqdm import tqdm

from results.beside import Beside
from results.result import Gone, Result, Served  # noqa: F401  Served: for who writes a program of their own
from results.telling import say, users_traceback
from rknnmodel import InputError, ModelError
from rknnpool import NPUError
from sources import TIMEOUT, NotYet, frames_of, open_source  # noqa: F401  frames_of: for programs of their own
from sources.names import short_names
from sources.pace import Position, Wanted

# seconds between two attempts to open a live source that is not there; the last one for ever
RETRIES = 1, 2, 4, 8, 15, 30
FIRST_TRIES = 1, 1, 1, 2, 2, 2, 2, 4, 4, 8, 15, 30  # the same before it was ever there: what is switched on together


class Stream:
    """One source, and what becomes of its frames.

    source: a file, a folder, a camera's number, a URL or a GStreamer pipeline; name: what it is called everywhere, a
    short name of the source by default; most: frames a second that are served at most, or None for all; opening: what
    open_source() is told besides. Raises InputError where the source can never be opened.
    A camera or broadcast is `live`: frames that cannot be served are dropped, and where it is not there, at the start
    or later, it is tried again.

    tracker, lines: see every result first, in order (`update(result)`), or None; places: get every result (`write`,
    `close`); own: those of the places that end with the stream. All may be set until run() begins.
    """

    opening: Dict[str, Any] = {}

    def __init__(self, source: Any, name: Optional[str] = None, most: Optional[float] = None, **opening: Any):
        self.address, self.name, self.most = str(source), name or short_names(str(source))[0], most
        self.opening = opening
        try:
            self.source = open_source(source, **opening)
        except NotYet as error:
            self.source = None
            say(f"{self.name}: is not there yet, trying again ({error})", sys.stderr)
        self.away = self.source is None  # a live source is not there, and tried again
        self.total = self.source.total if self.source else 0
        self.live = self.source.live if self.source else True
        self.rate = self.source.fps if self.source else 0.0  # frames a second, as it says of itself
        self.width, self.height = self.source.size if self.source else (0, 0)
        self.tracker = self.lines = None
        self.places: List[Any] = []
        self.own: List[Any] = []
        self.stop = threading.Event()      # no more shall be read
        self.released = threading.Event()  # the source has been closed, by the thread that reads it
        self.reading = self.given_up = False  # given_up: its context hangs, and main.py waits no longer
        self.complaints: Set[str] = set()  # what has been said and is not said again; main.py gives all streams one
        self.number = self.count = self.failed = self.unsaved = self.unshown = self.code = 0
        self.error: Optional[str] = None   # why it failed: a sentence, or a traceback
        self.began, self.ended = time.perf_counter(), None
        self.wanted, self.position = Wanted(most), Position()
        self._served, self._results, self._gone = collections.deque(maxlen=100), None, 0
        self.owed = False  # its turn came between two frames
        self._passed = 0  # frames in whose place a newer one was served
        self.say_note()

    def add(self, place: Any) -> None:
        """Add a place of this stream's own, which ends with it. Of a live stream it gets a queue, and may drop."""
        self.own.append(Beside(place, self) if self.live else place)
        self.places.append(self.own[-1])

    # ---- reading, in the pool's thread ----

    def frames(self, pool: Any = None) -> Iterator[Result]:
        """The source's frames until it ends or is stopped. A live source that is not there is tried again. Closes the
        source: no other thread may while this one reads.

        pool: of a live source's frames those that wait for a context of it are made pictures when one takes them, for
        most will be dropped; None: all are pictures at once.
        """
        self.reading = True
        try:
            while not self.stop.is_set():
                asked = time.perf_counter()
                more = self.source is not None and self.source.grab()
                # OpenCV hands out two leftovers of a silent RTSP source, and lets a timeout pass before each.
                silent = "://" in self.address and time.perf_counter() > asked + 0.9 * TIMEOUT
                if self.live and (silent or not more) and not self.stop.is_set():
                    more = self.come_back()
                if not more:
                    return
                received, number, moment = time.perf_counter(), self.number, self.source.now()
                if not self.live:
                    moment = self.position.of(moment, self.rate)
                self.number += 1
                if self.wanted.too_soon(received if self.live else moment, self.rate):
                    continue
                if self.live and self.source.hand_over(number, moment, received):
                    self._passed += 1  # the frame before it
                    self.source.hold()
                    continue
                picture, error = None, None
                waits = self.live and pool is not None and not pool.idle
                try:
                    picture = self.source.later() if waits else self.source.retrieve()
                except InputError as unreadable:
                    error = str(unreadable)
                if picture is not None or error:
                    result = Result(self, number, moment, picture, received, self.source.file, error)
                    result.first, self.owed = self.owed, False
                    yield result
                    if waits:
                        self.source.hold()
                        if self.most:  # it goes on waiting while the next ones come too soon
                            result.take()
                    result = None
                elif not self.live:
                    self.number = number
                    return
        finally:
            if self.source is not None:
                self.source.release()
            self.released.set()

    def come_back(self) -> bool:
        """Open a live source again and again, until it gives a frame (True) or the stream is stopped (False)."""
        began, attempt, late, self.away = time.perf_counter(), 0, self.source is None, True
        if not late:
            say(f"{self.name}: went away, trying again.", sys.stderr)
        pauses = FIRST_TRIES if late else RETRIES
        while not self.stop.wait(pauses[min(attempt, len(pauses) - 1)]):
            attempt += 1
            if self.source is not None:
                self.source.release()
            try:
                self.source = open_source(self.address, **self.opening)
            except InputError as error:
                if late and not isinstance(error, NotYet):
                    raise  # it never was there, and never will be
                continue
            if self.source.grab():
                self.rate, (self.width, self.height) = self.source.fps, self.source.size
                self.away, verb = False, "is there" if late else "came back"
                say(f"{self.name}: {verb} after {time.perf_counter() - began:.0f} s.", sys.stderr)
                self.say_note()
                return True
        return False

    def say_note(self) -> None:
        """Say, once, what is to be said of how the source was opened."""
        if getattr(self.source, "note", None):
            self.complain(f"{self.name}: {self.source.note}.")

    # ---- serving, in the stream's own thread ----

    def run(self, pool: Any, bar: tqdm, title: str = "", quiet: bool = False) -> None:
        """Serve the stream to its end; `code` is then the exit code, 0 where nothing failed.

        pool: one whose func is Served; bar: a tqdm bar; title: leads the lines of this stream, which is one of several;
        quiet: no line every 30 frames.
        """
        self.began = lap = time.perf_counter()
        try:
            for result in self.results(pool):
                self.serve(result)
                if result.error is not None:
                    continue
                self.count += 1
                self._served.append(time.perf_counter())
                bar.update()
                if self.count % 30 == 0 and not quiet:
                    say(f"{title}FPS over the last 30 frames: {30 / (time.perf_counter() - lap):.1f}")
                    lap = time.perf_counter()
            if self.number == 0 and not self.stop.is_set():
                raise InputError(f"{self.name}: no frame could be read.")
            if self.number < self.total and not self.stop.is_set():
                say(f"{self.name}: ended after {self.number} of {self.total} frames.", sys.stderr)
        except BaseException as error:
            self.fail(error, pool)
        finally:
            self.ended = time.perf_counter()
            self.stop.set()
            # A stream alone has its error said last, when the runtime has said all it has to say; a dead NPU's too.
            if title and self.error and self.code != 3:
                say(self.error, sys.stderr)
            self.close()

    def results(self, pool: Any) -> Iterator[Result]:
        """What comes out of the pool, in the order of the frames. A frame at which the NPU failed is a Result with its
        error."""
        self._results, newest = pool.map(self.frames(pool), live=self.live), -1
        try:
            while True:
                try:
                    result = next(self._results)
                except StopIteration:
                    return
                except Gone:
                    self._gone += 1
                    continue
                except NPUError as error:
                    if error.fatal:
                        raise
                    result = error.frame or Result(self, newest + 1, 0, None, 0)
                    result.error, result.detections, self.code = str(error), None, max(self.code, 3)
                    self.complain(f"{error}.")
                if result.number < newest:  # newer ones have come out before it was known to have failed
                    self.failed += 1
                    continue
                newest = result.number
                yield result
        finally:
            self._results.close()

    def serve(self, result: Result) -> None:
        """Tracking and lines first, then every place that the result goes to."""
        if result.error is not None:
            self.failed += 1
            if self.code != 3:
                self.code = 2
                say(result.error, sys.stderr)
        elif result.shown is None:
            self.complain("myFunc returned None instead of a picture: is its return missing?")
        elif result.detections is not None:
            for first in (self.tracker, self.lines):
                if first is not None:
                    first.update(result)
        for place in list(self.places):
            self.hand_to(place, result)

    def hand_to(self, place: Any, result: Result) -> bool:
        """Write a result to a place. One that fails is left out from then on, and the stream goes on."""
        try:
            place.write(result)
            return True
        except Exception as error:
            self.blame(error)
            self.places = [other for other in self.places if place not in (other, getattr(other, "place", None))]
            return False

    def blame(self, error: Exception) -> None:
        """Say, once, what a place has failed with. It costs the exit code, and nothing else."""
        known = isinstance(error, InputError)
        self.complain(str(error) if known else traceback.format_exc().rstrip())
        self.code = self.code or (2 if known else 1)

    def complain(self, text: str) -> None:
        """Say something, but only once."""
        if text not in self.complaints:
            self.complaints.add(text)
            say(text, sys.stderr)

    def fail(self, error: BaseException, pool: Any = None) -> None:
        """End the stream because of an error, which `error` and `code` then tell."""
        self.stop.set()
        if self.given_up or isinstance(error, concurrent.futures.CancelledError):  # whoever ends the pool knows why
            return
        if isinstance(error, NPUError):
            self.code, self.error = 3, f"{error}."
        elif isinstance(error, InputError):
            self.code, self.error = 2, str(error)
        elif isinstance(error, ModelError):
            self.code, self.error = 2, f"{getattr(pool, 'rknnModel', self.name)}: {error}."
        else:  # an error in the user's func: its author wants the traceback, and the other streams go on
            self.code, self.error = 1, users_traceback(error)

    def close(self) -> None:
        """Close the places that end with the stream. May be called again."""
        self.close_places(self.own)

    def close_places(self, places: List[Any]) -> None:
        """Close places. One that fails, or its author's mistake in it, costs no other its end."""
        for place in places:
            try:
                place.close()
            except Exception as error:
                self.blame(error)

    @property
    def dropped(self) -> int:
        """Frames of a live source that were read and not served, because a newer one came first."""
        return self._results.dropped + self._gone + self._passed if self._results else 0

    @property
    def fps(self) -> float:
        """Frames served a second, over the last second or two."""
        now = time.perf_counter()
        recent = [moment for moment in list(self._served) if moment > now - 2]
        return len(recent) / max(0.1, now - recent[0]) if len(recent) > 1 else 0.0

    def summary(self) -> str:
        seconds = (self.ended or time.perf_counter()) - self.began  # not ended: its context hangs
        more = f", {self.dropped} dropped" if self.live else ""
        for count, what in ((self.failed, "failed"), (self.unsaved, "not saved"), (self.unshown, "not shown")):
            more += f", {count} {what}" if count else ""
        frames = "1 frame" if self.count == 1 else f"{self.count} frames"
        return f"{self.name}: {frames} in {seconds:.1f} s, {self.count / seconds:.1f} FPS on average{more}"
