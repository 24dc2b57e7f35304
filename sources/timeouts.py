"""Timeouts for URLs, learned from how long a source has taken so far."""
from __future__ import annotations

import collections
import threading

OPEN_TIMEOUT = 5.0         # seconds: of the first attempt to open a URL
MAX_OPEN_TIMEOUT = 240.0   # seconds: each attempt may take twice as long as the last, up to this
FAST_READ_TIMEOUT = 5.0    # seconds without a picture, for a source known to be fast
SLOW_READ_TIMEOUT = 90.0   # seconds without a picture, for a slow source at least
SLOW_INTERVAL = 2.0        # seconds between two pictures: beyond this a source is slow
INTERVALS = 3              # a read timeout lasts at least so many intervals or HLS segments
KNOWN_AFTER = 5            # pictures after which the interval is known
WINDOW = 1000              # pictures that count for the interval: more than an HLS segment has


class Timeouts:
    """The timeouts of one source. They adapt to each attempt to open it, and to each picture.

    silence: how long a live URL may send nothing, in seconds (--silence); None: learned.
    poll: seconds between two requests to a URL that answers with one picture.
    stop: ends the wait between two such requests.

    segment: seconds of the longest segment of an HLS stream. was_open: whether the source has been
    open before. played: the segments that were listed when an HLS stream was interrupted; None
    while it is open.
    """

    def __init__(self, silence: float | None = None, poll: float = 1.0,
                 stop: threading.Event | None = None):
        self.silence, self.poll, self.stop = silence, poll, stop or threading.Event()
        self._min_open = max(OPEN_TIMEOUT, silence or 0)
        self.open_timeout = self._min_open       # seconds for the next attempt to open the source
        self.segment, self.was_open = 0.0, False
        self.played: set[tuple[int, str]] | None = None
        self._opened_late = False                # at its timeout, with less than a picture
        self._waits: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def note_attempt(self, seconds: float, opened: bool) -> None:
        """Note that an attempt to open the source took so many seconds, and whether it opened. A
        success counts, too: at its timeout, OpenCV opens a slow source with what it has received.
        """
        timed_out = seconds > 0.8 * self.open_timeout  # else it was refused at once
        self._opened_late |= opened and timed_out
        if opened:
            self.was_open, self.played = True, None
        if opened or timed_out:
            self.open_timeout = max(self._min_open, min(2 * seconds, MAX_OPEN_TIMEOUT))

    def note_picture(self, seconds: float) -> None:
        """Note that a picture came after so many seconds of waiting."""
        self._waits.append(seconds)

    @property
    def slow(self) -> bool:
        """Whether the pictures come slowly, or may do so. HLS has a pause after each segment."""
        unknown = len(self._waits) < KNOWN_AFTER
        return not self.segment and (self._longest > SLOW_INTERVAL
                                     or self._opened_late and unknown)

    @property
    def _longest(self) -> float:
        return max(self._waits, default=0.0)

    def read_timeout(self, at_first: float = 0.0) -> float:
        """Seconds without a picture after which the source counts as disconnected.

        at_first: the minimum until the interval of the source is known.
        """
        if self.silence:
            return self.silence
        longest = INTERVALS * max(self._longest, self.segment)
        if self.slow:
            return max(SLOW_READ_TIMEOUT, longest)
        minimum = FAST_READ_TIMEOUT if len(self._waits) >= KNOWN_AFTER else at_first
        return max(minimum, min(self.open_timeout, SLOW_READ_TIMEOUT), longest)
