"""Puts a queue in front of a slow sink, so that a live stream does not wait for it."""
from __future__ import annotations

import collections
import threading
from typing import Any

from results.protocol import Sink

MAX_WAITING = 8     # results in the queue; each of them holds a picture
CLOSE_SECONDS = 10  # how long close() waits for the results that are still in the queue


class QueuedSink:
    """A sink that passes a live stream's results on to another one, in a thread of its own.

    If the queue is full, the oldest result is dropped and counted in the stream's `unsaved`. A
    stream that turns out to be a file is not live and waits for the other sink instead.
    """

    def __init__(self, sink: Sink, stream: Any):
        self.sink, self.stream = sink, stream
        self.waiting: collections.deque[Any] = collections.deque()
        self.changed, self.closed = threading.Condition(), False
        self.thread = threading.Thread(target=self.run, name=f"{stream.name}: sink", daemon=True)
        self.thread.start()

    def write(self, result: Any) -> None:
        if not self.stream.live:
            self.sink.write(result)
            return
        with self.changed:
            if len(self.waiting) == MAX_WAITING:
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
            if not self.stream.write_to(self.sink, result):
                return
            del result  # or it would keep its picture until the next one comes

    def close(self) -> None:
        """Write what is in the queue, then close the other sink. May be called more than once."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            self.changed.notify()
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self.stream.unsaved += len(self.waiting)
        else:
            self.sink.close()
