"""What a sink is: a place where results go, such as a window, a video file or an MQTT broker.

A new sink is one new class with these two methods, and a few lines in results/__init__.py.
"""
from __future__ import annotations

from typing import Any, Protocol


class Sink(Protocol):
    """Takes the results of one stream, or of several.

    Each stream has a thread of its own, which calls write() with that stream's results in the
    order of the frames. A sink that several streams share is called by several threads. After an
    exception from write() the sink gets no further results of that stream. A sink of a live stream
    should return quickly or be wrapped in a QueuedSink.

    A sink that writes files may have a property `saved`, which is printed at the end of a run:
    "out.mp4: 600 frames, 10.0 s", or "" if nothing was written. One with `display = True` shows
    results only while the program runs.
    """

    def write(self, result: Any) -> None:
        """Take a results.result.Result. If result.error is not None, it has no picture.

        Raises InputError with a sentence for the user if the result cannot be shown, saved or sent.
        """

    def close(self) -> None:
        """Finish and release everything. May be called more than once.

        Raises InputError with a sentence for the user if something could not be finished.
        """
