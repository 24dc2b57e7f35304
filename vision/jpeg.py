"""A frame that is still a JPEG: decoded when needed, and at a reduced size if the model's input is
small."""
from __future__ import annotations

import functools
from typing import Any, Sequence

import cv2
import numpy as np

from vision.frame import UNDECODABLE, Frame, Picture, Undecodable, write_rgb

REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4,
           2: cv2.IMREAD_REDUCED_COLOR_2}  # 8: decodes at 1/8 of the size


class JPEGFrame(Frame):
    """A frame that is still a JPEG. For a small input it is decoded at a half, a quarter or an
    eighth of its size, which skips most of the work.

    data: (n,) uint8. shape: what jpeg_shape() returned.
    """

    def __init__(self, data: np.ndarray, shape: Sequence[int]):
        super().__init__(shape, functools.partial(decode, data))
        self.data = data

    def scale_into(self, rgb: np.ndarray) -> None:
        ratio = min(self.shape[0] / rgb.shape[0], self.shape[1] / rgb.shape[1])
        flags = [flag for divisor, flag in REDUCED.items() if divisor <= ratio]
        if self.made is None and flags:
            write_rgb(decode(self.data, flags[0]), rgb)
        else:
            super().scale_into(rgb)


def decode(data: Any, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """A picture file's contents as (h, w, 3) uint8 BGR. Raises Undecodable."""
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # it is empty, or has more pixels than OpenCV accepts
        picture = None
    if picture is None:
        raise Undecodable(UNDECODABLE)
    return picture


def frame_of_file(data: Any) -> Picture | None:
    """A picture file's contents (bytes or (n,) uint8) as a JPEGFrame if they are a JPEG, else
    decoded; None if they cannot be."""
    shape = jpeg_shape(bytes(data))
    if shape:
        return JPEGFrame(np.frombuffer(data, np.uint8), shape)
    try:
        return decode(data)
    except Undecodable:
        return None


def jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """(height, width, 3) of a JPEG (ISO/IEC 10918-1, B.2). None if it is something else, or has
    EXIF data, which may rotate it."""
    at = 2
    while data[:2] == b"\xff\xd8" and data[at:at + 1] == b"\xff" and len(data) > at + 8:
        marker, length = data[at + 1], int.from_bytes(data[at + 2:at + 4], "big")
        if data[at + 4:at + 8] == b"Exif":
            return None
        if 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc):  # the start of the frame
            height, width = (int.from_bytes(data[at + n:at + n + 2], "big") for n in (5, 7))
            return (height, width, 3) if height and width else None
        at += 2 + length
    return None
