"""How long to wait for a URL: as long as its source has shown that it needs."""
from __future__ import annotations

import collections
import threading

SHORT = 5.0   # seconds: for the first attempt to open a URL, and tolerated silence of a fast source
LONG = 240.0  # seconds: for later attempts at most; each may take twice as long as the one before
SLOW = 2.0    # seconds between two pictures; a source with a longer interval is slow
SLOW_SILENCE = 90.0  # seconds: tolerated silence of a slow source at least
INTERVALS = 3        # tolerated silence of a slow source in its own intervals at least
KNOWN = 5     # pictures after which the interval is known
MEMORY = 1000  # pictures of which the longest interval counts: more than an HLS stream's segment


class Patience:
    """The times of one source. It learns from attempts to open it, and from each picture.

    silence: the user's limit for a live URL that sends nothing, in seconds, or None.
    poll: seconds between two requests to a URL that answers with one picture.
    stop: ends the wait between two such requests.
    """

    def __init__(self, silence: float | None = None, poll: float = 1.0,
                 stop: threading.Event | None = None):
        self.silence, self.poll, self.stop = silence, poll, stop or threading.Event()
        self.least = max(SHORT, silence or 0)
        self.opening = self.least                # seconds for the next attempt to open the source
        self.segment = 0.0                       # seconds of an HLS stream's segments
        self._waits: collections.deque[float] = collections.deque(maxlen=MEMORY)

    def note_attempt(self, seconds: float, opened: bool) -> None:
        """Note that an attempt to open the source took so many seconds, and whether it opened.
        OpenCV opens a slow source with the few pictures that came in its time."""
        if opened or seconds > 0.8 * self.opening:  # else it was refused at once
            self.opening = max(self.least, min(2 * seconds, LONG))

    def note_picture(self, seconds: float) -> None:
        """Note that a picture came after so many seconds of waiting."""
        self._waits.append(seconds)

    def tolerated(self, at_first: float = 0.0) -> float:
        """After how many seconds without a picture the source is gone. at_first: the least value as
        long as the source has not shown its interval."""
        if self.silence:
            return self.silence
        longest = max(self._waits, default=0.0)
        if longest > SLOW:
            return max(SLOW_SILENCE, INTERVALS * longest)
        least = SHORT if len(self._waits) >= KNOWN else at_first
        return max(least, min(self.opening, SLOW_SILENCE), INTERVALS * self.segment)
