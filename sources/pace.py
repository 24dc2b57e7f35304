"""The times of a file's frames, and which frames to process if --fps limits the rate."""
from __future__ import annotations

RESTART = 0.3  # seconds; a larger step back means that a file's times have started again


class FileClock:
    """Makes the times of a file's frames strictly increasing. A bare .h264 has no times, and in
    videos joined end to end they start again."""

    def __init__(self) -> None:
        self.time = self.given = float("-inf")  # of the previous frame: returned, and in the file
        self.offset = 0.0                       # seconds to add to the file's own times

    def next_time(self, given: float, fps: float) -> float:
        """The time of the next frame in seconds. given: its time in the file; fps: the file's frame
        rate."""
        step = 1 / fps if 0.01 <= fps <= 1000 else 1 / 30
        if given < self.given - RESTART:
            self.offset = self.time + step - given
        self.given, now = given, given + self.offset
        self.time = now if now > self.time else self.time + step
        return self.time


class RateLimit:
    """Chooses frames so that at most max_fps per second remain; None keeps all."""

    def __init__(self, max_fps: float | None):
        self.max_fps, self.due = max_fps, float("-inf")

    def too_soon(self, moment: float, fps: float) -> bool:
        """Whether to skip the frame at `moment` (seconds). fps: the source's frame rate."""
        if not self.max_fps:
            return False
        step, slack = 1 / self.max_fps, 0.5 / fps if 1e-4 <= fps <= 1000 else 0.001
        if moment < self.due - slack:
            return True
        self.due = self.due + step if moment < self.due + step else moment + step
        return False
