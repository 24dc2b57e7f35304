"""When frames are due: how long one may wait before the next is read, and which of them are wanted at all."""
import time

LAP = 32           # frames after which it is seen whether a live source is read as fast as it sends
MOST = 0.9         # of the time between two frames that one may wait
BACK = 0.3         # seconds by which a file's times begin again; by less some are out of order


class Pace:
    """How long a live source's frame may wait to be taken before the next is read: most of the time between two.

    A source must be read as fast as it sends, or it falls behind for ever, and what it says of its rate need not be so.
    Of every LAP frames two are read without waiting, therefore, which must take longer than with: else they were there
    already. Then it is read without waiting until it has caught up, and from then on frames wait for less.
    """

    def __init__(self):
        self.came = self.began = time.perf_counter()
        self.period, self.share = 0.0, MOST  # seconds between two frames; of which one may wait so much
        self.count = self.waits = self.probes = 0  # frames of this lap, of them still to wait, read without waiting
        self.least, self.waited, self.behind = float("inf"), False, False  # seconds for a frame after one that waited

    def frame(self, seconds: float) -> None:
        """Another frame has come, after so many seconds."""
        self.came, self.count = time.perf_counter(), self.count + 1
        if self.waited:
            self.least, self.waited = min(self.least, seconds), False
        if self.waits:
            self.waits, self.probes = self.waits - 1, 0
            return
        self.probes += 1
        if self.probes < 2 or not self.period and self.count < 8:
            return
        there = self.least < float("inf") and seconds < self.least + 0.5 * self.share * self.period
        if there and self.count < 3 * LAP:
            self.share, self.behind = self.share if self.behind else 0.5 * self.share, True
            return
        self.share = self.share if self.behind else min(MOST, self.share + 0.05)
        self.period, self.began = (self.came - self.began) / self.count, self.came
        self.count, self.waits, self.least, self.behind = 0, LAP - 2, float("inf"), False

    def left(self) -> float:
        """Seconds that it may still wait."""
        return max(0.0, self.came + self.share * self.period - time.perf_counter()) if self.waits else 0.0


class Position:
    """The times of a file's frames, which go on though what the file says does not: a bare .h264 has no times, and in
    videos joined end to end they begin again."""

    def __init__(self):
        self.time = self.said = float("-inf")  # of the frame before, and as the file said it
        self.behind = 0.0                      # seconds that the file's own are behind since they began again

    def of(self, said: float, rate: float) -> float:
        """The time of the next frame, in seconds, of a file of so many FPS that says `said` of it."""
        step = 1 / rate if 0.01 <= rate <= 1000 else 1 / 30
        if said < self.said - BACK:
            self.behind = self.time + step - said
        self.said, now = said, said + self.behind
        self.time = now if now > self.time else self.time + step
        return self.time


class Wanted:
    """Which frames are served where not all are wanted. most: so many a second, or None."""

    def __init__(self, most):
        self.most, self.due = most, float("-inf")

    def too_soon(self, moment: float, rate: float) -> bool:
        """Whether the frame at `moment`, in seconds, comes before the next one is due, of a source of so many FPS."""
        if not self.most:
            return False
        step, slack = 1 / self.most, 0.5 / rate if 1 <= rate <= 1000 else 0.001
        if moment < self.due - slack:
            return True
        self.due = self.due + step if moment < self.due + step else moment + step
        return False
