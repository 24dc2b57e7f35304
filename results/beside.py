"""A queue for a place that may be slow, so that the stream need not wait for it."""
import collections
import threading
from typing import Any

WAITING = 8    # results that wait; each holds a picture
PATIENCE = 10  # seconds for what still waits at the end


class Beside:
    """A slow place of a live stream, in a thread of its own: what it has no time for is dropped, the oldest first, and
    counted in the stream's `unsaved`."""

    def __init__(self, place: Any, stream: Any):
        self.place, self.stream = place, stream
        self.waiting, self.changed, self.closed = collections.deque(), threading.Condition(), False
        self.thread = threading.Thread(target=self.run, name=f"{stream.name}: place", daemon=True)
        self.thread.start()

    def write(self, result: Any) -> None:
        with self.changed:
            if len(self.waiting) == WAITING:
                self.waiting.popleft()
                self.stream.unsaved += 1
            self.waiting.append(result)
            self.changed.notify()

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if not self.waiting:
                    return
                result = self.waiting.popleft()
            if not self.stream.hand_to(self.place, result):
                return

    def close(self) -> None:
        """Write what waits, and close the place. May be called again."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            self.changed.notify()
        self.thread.join(PATIENCE)
        if not self.thread.is_alive():
            self.place.close()
        else:
            self.stream.unsaved += len(self.waiting)
