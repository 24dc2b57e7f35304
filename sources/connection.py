"""Keeps a source open: reopens a live one that has disconnected until it is back."""
from __future__ import annotations

import itertools
import threading
import time
from typing import Any, Callable

from sources import CameraSettings, SourceUnavailable, Timeouts, open_source
from sources.protocol import Source
from vision.errors import InputError

# Seconds between attempts to open a live source again. The last one repeats for ever.
PAUSES = 1, 2, 4, 8, 15, 30
# The same until it has opened once: a camera switched on together with the board is soon there.
FIRST_PAUSES = 1, 1, 1, 2, 2, 2, 2, 4, 4, 8, 15, 30


class Absent:
    """Stands in for a source that is not connected."""

    live, fps, size, total, skipped, time = True, 0.0, (0, 0), 0, 0, 0.0
    file: str | None = None
    note: str | None = None

    def grab(self) -> bool:
        return False

    def retrieve(self) -> None:
        return None

    frame = read = retrieve

    def release(self) -> None:
        pass


class Connection:
    """A source, and the attempts to open it again.

    address, reader, camera, timeouts, max_fps: as open_source() takes them.
    say: called with what happens, a sentence such as "disconnected, trying again."
    stop: set it to end the attempts.

    source: the Source that is open now. live: whether it is a camera or a broadcast; True until it
    has opened once, because that is unknown before. away: True while it is disconnected.
    Raises InputError if the source can never be opened.
    """

    def __init__(self, address: Any, say: Callable[[str], None], stop: threading.Event,
                 reader: str | None = None, camera: CameraSettings | None = None,
                 timeouts: Timeouts | None = None, max_fps: float | None = None):
        self.address = address if isinstance(address, list) else str(address)
        self.say, self.stop = say, stop
        self.reader, self.camera, self.max_fps = reader, camera, max_fps
        self.timeouts = timeouts or Timeouts(stop=stop)
        self.source: Source = Absent()
        self.opened = self.away = self._grabbed = False
        self.live, self._note = True, ""
        try:
            self._use(self._open())
        except SourceUnavailable as error:
            self.away = True
            say(f"not available yet, trying again ({str(error).rstrip('.')}).")

    def wait(self) -> bool:
        """Wait until the source has been open once. False if `stop` is set before."""
        if not self.opened:
            self._grabbed = self._reopen()  # the first frame; grab() must not skip it
        return self.opened

    def grab(self) -> bool:
        """Go to the next frame; if a live source has disconnected, reopen it. False at the end."""
        if self._grabbed:
            self._grabbed = False
            return True
        began = time.perf_counter()
        more = self.source.grab()
        if more and self.live:
            self.timeouts.note_picture((time.perf_counter() - began) / (1 + self.source.skipped))
        elif self.live and not self.stop.is_set():
            return self._reopen()
        return more

    def restart(self) -> bool:
        """Open a file again and go to its first frame. False if it has none."""
        self.source.release()
        self._use(self._open())
        return self.source.grab()

    def _open(self) -> Source:
        began, opened = time.perf_counter(), False
        try:
            source = open_source(self.address, self.reader, self.camera, self.timeouts,
                                 self.max_fps)
            opened = True
            return source
        finally:
            self.timeouts.note_attempt(time.perf_counter() - began, opened)

    def _reopen(self) -> bool:
        """Try to open the source until it gives a frame (True) or `stop` is set (False)."""
        began, self.away = time.perf_counter(), True
        if self.opened:
            self.say("disconnected, trying again.")
        self.source.release()
        pauses = PAUSES if self.opened else FIRST_PAUSES
        for pause in itertools.chain(pauses, itertools.repeat(pauses[-1])):
            if self.stop.wait(min(pause, self.timeouts.segment or pause)):
                break
            try:
                source = self._open()
            except InputError as error:
                if not self.opened and not isinstance(error, SourceUnavailable):
                    raise  # it was never there and never will be
                continue
            if self.opened and not source.live:  # an HLS playlist that is complete by now
                source.release()
                self.away = False
                self.say("has ended.")
                return False
            if source.grab():
                verb = "connected again" if self.opened else "connected"
                self.say(f"{verb} after {time.perf_counter() - began:.0f} s.")
                self._use(source)
                return True
            source.release()
        return False

    def _use(self, source: Source) -> None:
        if not self.opened:
            self.live = source.live
        self.source, self.opened, self.away = source, True, False
        if source.note and source.note != self._note:
            self._note = source.note
            self.say(f"{source.note}.")
