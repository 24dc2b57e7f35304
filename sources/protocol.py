"""What a source is: an opened video, camera, broadcast or folder of pictures, as main.py uses it.

    source = open_source("street.mp4")
    while source.grab():
        picture = source.retrieve()
    source.release()
"""
from __future__ import annotations

from typing import Protocol

import numpy as np

from vision.frame import Frame


class Source(Protocol):
    """An opened source. Only one thread may use it at a time.

    live: True if frames arrive at their own pace, as a camera's do, and are lost if nobody reads
        them; False for a file.
    fps: frames per second according to the source itself; 0 if unknown.
    size: (width, height) in pixels; (0, 0) if unknown.
    total: number of frames; 0 if unknown.
    skipped: number of frames that the last grab() passed over without decoding them.
    time: time of the frame grabbed last, in seconds: its position in a file, Unix time of a live
        source.
    file: name of the picture grabbed last, if the source consists of pictures, else None.
    note: what the user should know about how the source was opened, without a full stop, or None.

    A class may also have `decodes_on_cpu`: True if a board's hardware decoder might decode the
    video instead, and `note` does not say why it does not.
    """

    live: bool
    fps: float
    size: tuple[int, int]
    total: int
    skipped: int
    time: float
    file: str | None
    note: str | None

    def grab(self) -> bool:
        """Go to the next frame without converting it to a picture. False at the end."""

    def retrieve(self) -> np.ndarray | None:
        """The frame grabbed last as a new array (h, w, 3) uint8 BGR; gray pictures may be (h, w).

        None if it cannot be decoded. Raises InputError for a picture that cannot be read.
        """

    def frame(self) -> np.ndarray | Frame | None:
        """The frame grabbed last, without further decoding or conversion. If it is a Frame, its
        bgr() returns what retrieve() does, and raises Undecodable where retrieve() returns None.

        Returns None, and raises InputError, as retrieve() does.
        """

    def read(self) -> np.ndarray | None:
        """grab() and retrieve() in one: the next picture, or None at the end."""

    def release(self) -> None:
        """Close the source."""
