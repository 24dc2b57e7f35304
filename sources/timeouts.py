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
    """

    def __init__(self, silence: float | None = None, poll: float = 1.0,
                 stop: threading.Event | None = None):
        self.silence, self.poll, self.stop = silence, poll, stop or threading.Event()
        self._min_open = max(OPEN_TIMEOUT, silence or 0)
        self.open_timeout = self._min_open       # seconds for the next attempt to open the source
        self.segment = 0.0                       # seconds of an HLS stream's segments
        self._waits: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def note_attempt(self, seconds: float, opened: bool) -> None:
        """Note that an attempt to open the source took so many seconds, and whether it opened. A
        success counts, too: at its timeout, OpenCV opens a slow source with what it has received.
        """
        if opened or seconds > 0.8 * self.open_timeout:  # else it was refused at once
            self.open_timeout = max(self._min_open, min(2 * seconds, MAX_OPEN_TIMEOUT))

    def note_picture(self, seconds: float) -> None:
        """Note that a picture came after so many seconds of waiting."""
        self._waits.append(seconds)

    def read_timeout(self, at_first: float = 0.0) -> float:
        """Seconds without a picture after which the source counts as disconnected.

        at_first: the minimum until the interval of the source is known.
        """
        if self.silence:
            return self.silence
        longest = max(self._waits, default=0.0)
        if longest > SLOW_INTERVAL:
            return max(SLOW_READ_TIMEOUT, INTERVALS * longest)
        minimum = FAST_READ_TIMEOUT if len(self._waits) >= KNOWN_AFTER else at_first
        return max(minimum, min(self.open_timeout, SLOW_READ_TIMEOUT), INTERVALS * self.segment)
