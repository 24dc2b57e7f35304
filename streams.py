"""A stream reads one source, runs its frames through the pool, and passes the results to sinks.

    stream = Stream("rtsp://192.168.1.20/live")
    with rknnPoolExecutor("models/yolov5n_emoji.rknn", func=FrameTask(func)) as pool:
        stream.run(pool, tqdm())
    print(stream.summary())
"""
from __future__ import annotations

import concurrent.futures
import math
import sys
import threading
import time
from typing import Any, Iterator

from tqdm import tqdm

from results.console import say, users_traceback
from results.delivery import Delivery
from results.result import FrameTask, Result
from rknnpool import NPUError
from sources import CameraSettings, Source, Timeouts
from sources.connection import Connection
from sources.names import short_names
from sources.pace import FileClock, RateLimit
from vision.errors import InputError, ModelError
from vision.frame import UNDECODABLE

__all__ = ["FrameTask", "Result", "Stream"]


class Stream(Delivery):
    """One source and what becomes of its frames.

    source: a file, a folder, a camera's number, a URL or a GStreamer pipeline.
    name: what the stream is called everywhere; by default a short name of the source.
    max_fps: process at most this many frames per second; None for all.
    reader, camera: as open_source() takes them. loop: play a file again and again.
    silence: seconds without a picture after which a live URL counts as disconnected; None: chosen
    from the intervals of its pictures.

    A camera or broadcast is `live`: frames are dropped if the pool is busy. If it is disconnected,
    at the start or later, the stream tries again until it is back. Raises InputError if the source
    can never be opened.

    Set these before run(): tracker and lines get every result first (`update(result)`); `sinks` get
    it next. add_sink() adds a sink that belongs to this stream alone and is closed with it.
    """

    def __init__(self, source: Any, name: str | None = None, max_fps: float | None = None,
                 reader: str | None = None, camera: CameraSettings | None = None,
                 loop: bool = False, silence: float | None = None):
        super().__init__(name or short_names(source)[0], max_fps)
        self.released = threading.Event()     # set when the source is closed
        self.reading = self.given_up = False  # given_up: main.py does not wait for it any more
        self.loop, self.number = loop, 0      # number: frames read
        self.error: str | None = None         # why the stream failed: a sentence or a traceback
        self._results: Any = None
        self._dropped = 0
        self.connection = Connection(source, lambda text: say(f"{self.name}: {text}", sys.stderr),
                                     self.stop, reader, camera,
                                     Timeouts(silence, 1 / (max_fps or 1), self.stop), max_fps)
        self.live = self.connection.live

    @property
    def source(self) -> Source:
        return self.connection.source

    @property
    def rate(self) -> float:
        """Frames per second according to the source itself; 0 if unknown."""
        return self.source.fps

    @property
    def expected(self) -> int | None:
        """How many frames of a file will be processed; None if unknown."""
        total, rate = self.source.total, self.rate
        if not total or self.loop:
            return None
        if not self.max_fps or not rate:
            # A higher rate is rarely real (browsers record with 1000), and `total` comes of it.
            return total if rate <= 240 else None
        return min(total, math.ceil(total * self.max_fps / rate))

    @property
    def away(self) -> bool:
        """Whether the source is live and disconnected at present."""
        return self.connection.away

    # ---- reading, in the pool's thread ----

    def frames(self) -> Iterator[Result]:
        """A Result for each frame, until the source ends or `stop` is set. Then it closes the
        source: no other thread may close it while this one reads."""
        self.reading = True
        clock, limit = FileClock(), RateLimit(self.max_fps)
        began = time.perf_counter()
        try:
            while not self.stop.is_set() and self.grab():
                received, moment = time.perf_counter(), self.source.time
                if not self.live:
                    moment = clock.next_time(moment, self.rate)
                self.number += 1
                if limit.too_soon(received if self.live else moment, self.rate):
                    continue
                result = self.result_of(moment, received)
                if result is None:
                    self.number -= 1
                    return
                result.queued = time.perf_counter()
                self.spent["read"] += result.queued - began
                yield result
                began = time.perf_counter()
                del result  # or it would keep its picture until the next one has been read
        finally:
            self.source.release()
            self.released.set()

    def grab(self) -> bool:
        """Go to the next frame; with `loop`, after the last one of a file to its first."""
        more = self.connection.grab()
        self.number += self.source.skipped
        if more:
            return True
        again = self.loop and not self.live and self.number > 0 and not self.stop.is_set()
        return again and self.connection.restart()

    def result_of(self, moment: float, received: float) -> Result | None:
        """The Result that takes the frame just grabbed through the pool. None if it is a file's
        and cannot be decoded: the file ends here."""
        frame, error = None, None
        try:
            frame = self.source.frame()
        except InputError as unreadable:
            error, self.code = str(unreadable), self.code or 2
            self.print_once(error)
        if frame is None and error is None:
            if not self.live:
                return None
            error = UNDECODABLE
        return Result(self, self.number - 1, moment, frame, received, self.source.file, error)

    # ---- processing, in the stream's own thread ----

    def run(self, pool: Any, bar: tqdm, title: str = "", quiet: bool = False) -> None:
        """Process the stream to its end. Then `code` is the exit code, 0 if nothing failed.

        pool: a pool whose func is a FrameTask; bar: a tqdm bar; title: printed before each
        rate; empty for a single stream; quiet: do not print the rate every 30 frames.
        """
        self.began = lap = time.perf_counter()
        try:
            for result in self.results(pool):
                failed = result.error is not None
                if result.error == UNDECODABLE:
                    self.print_once(f"{self.name}: {UNDECODABLE}.")
                if not failed and result.draw is None and result.shown is None:
                    self.print_once("myFunc returned None instead of a picture: is its return "
                                    "missing?")
                self.deliver(result)
                del result  # or the exception that ends this loop would keep it alive
                if failed:
                    continue
                bar.update()
                if self.count % 30 == 0 and not quiet:
                    rate = 30 / (time.perf_counter() - lap)
                    say(f"{title}FPS over the last 30 frames: {rate:.1f}")
                    lap = time.perf_counter()
            if self.number == 0 and not self.stop.is_set():
                raise InputError(f"{self.name}: no frame could be read.")
            total = self.source.total
            if self.number < total and not self.live and not self.stop.is_set():
                say(f"{self.name}: ended after {self.number} of {total} frames.", sys.stderr)
        except BaseException as error:
            self.fail(error, pool)
        finally:
            self.ended = time.perf_counter()
            self.stop.set()
            # main.py prints the error of a single stream, and that of a dead NPU, at the very end.
            if title and self.error and self.code != 3:
                self.print_once(self.error)
            self.close()

    def results(self, pool: Any) -> Iterator[Result]:
        """What comes out of the pool, in the order of the frames. A frame that failed on the NPU is
        a Result with an error."""
        if not self.connection.wait():
            return
        self.live = self.connection.live  # unknown before the source was opened
        if self.tiles is None:
            results = self._results = pool.map(self.frames(), live=self.live)
        else:
            results = self._results = self.tiles.map(pool, self.frames(), self.live, self.tracker)
        newest = -1
        try:
            while True:
                try:
                    result = next(results)
                except StopIteration:
                    return
                except NPUError as error:
                    if error.fatal:
                        raise
                    result = error.frame or Result(self, newest + 1, 0, None, 0)
                    result.fail(str(error))
                    self.code = max(self.code, 3)
                    self.print_once(f"{error}.")
                newest = result.number
                yield result
                del result  # see run()
        finally:
            results.close()
            self._dropped, self._results = results.dropped, None

    # ---- the end ----

    def fail(self, error: BaseException, pool: Any = None) -> None:
        """End the stream because of an error; `error` and `code` then describe it."""
        self.stop.set()
        if self.given_up or isinstance(error, concurrent.futures.CancelledError):
            return  # main.py ended the pool, and reports why
        if isinstance(error, NPUError):
            self.code, self.error = 3, (f"{error}: see dmesg and sudo ./rkcat.sh, let the board "
                                        "cool down, or switch it off and on.")
        elif isinstance(error, InputError):
            self.code, self.error = 2, str(error)
        elif isinstance(error, ModelError):
            self.code, self.error = 2, f"{getattr(pool, 'rknnModel', self.name)}: {error}."
        else:  # an error in the user's func: its author needs the traceback
            self.code, self.error = 1, users_traceback(error)
        if self.ended is not None:  # a window or page draws the last picture
            self.print_once(self.error)

    @property
    def dropped(self) -> int:
        results = self._results
        return self._dropped if results is None else results.dropped
