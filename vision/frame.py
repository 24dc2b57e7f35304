"""A frame in the format of its source, such as YUV. A model's input is made from it directly, and a
BGR picture only when somebody needs one."""
from __future__ import annotations

import threading
from typing import Callable, List, Sequence, Union

import cv2
import numpy as np

UNDECODABLE = "the picture cannot be decoded"  # the error of a frame that has failed


class Undecodable(Exception):
    """A frame's data is not a picture."""


class Frame:
    """A frame that becomes BGR when bgr() is first called.

    shape: (height, width, 3) of that picture. make_bgr: returns it as a new array (h, w, 3) uint8.
    It is called in any thread: once, unless it raises Undecodable.
    """

    def __init__(self, shape: Sequence[int], make_bgr: Callable[[], np.ndarray]):
        self.shape, self.make_bgr = tuple(shape), make_bgr
        self.made: np.ndarray | None = None  # what bgr() returns
        self._lock = threading.Lock()

    def bgr(self) -> np.ndarray:
        """The frame as (h, w, 3) uint8 BGR, always the same array, which may be drawn on. Raises
        Undecodable."""
        with self._lock:
            if self.made is None:
                self.made = self.make_bgr()
            return self.made

    def scale_into(self, rgb: np.ndarray) -> None:
        """Scale the frame to the size of `rgb`, (height, width, 3) uint8 RGB, and write it there.
        Raises Undecodable."""
        write_rgb(self.bgr(), rgb)

    def crop(self, x1: int, y1: int, x2: int, y2: int) -> Frame:
        """The part of the frame from pixel (x1, y1) to before (x2, y2): even numbers, or the edges
        of the frame. Its bgr() is a view of this frame's, which is converted once for all parts."""
        return Frame((y2 - y1, x2 - x1, 3), lambda: self.bgr()[y1:y2, x1:x2])


def clipped(start: float, end: float, side: int) -> tuple[int, int]:
    """The first pixel, and the one after the last, of a crop's side from `start` to `end`: inside
    the frame, whose side this is, and at least one pixel long."""
    first = min(max(round(start), 0), side - 1)
    return first, min(max(round(end), first + 1), side)


Picture = Union[np.ndarray, Frame]


def picture_of(frame: Picture | None) -> np.ndarray | None:
    """A frame as BGR, None if it cannot be decoded."""
    try:
        return frame.bgr() if isinstance(frame, Frame) else frame
    except Undecodable:
        return None


def write_rgb(bgr: np.ndarray, rgb: np.ndarray) -> None:
    # Only the small picture is converted to RGB, not the whole frame.
    cv2.cvtColor(scaled(bgr, rgb.shape[1::-1]), cv2.COLOR_BGR2RGB, dst=rgb)


def scaled(picture: np.ndarray, size: Sequence[int], dst: np.ndarray | None = None) -> np.ndarray:
    """A picture scaled to a size (width, height) by linear interpolation; dst: an array for it."""
    method, (h, w) = cv2.INTER_LINEAR, picture.shape[:2]
    factor = w // size[0]
    if factor % 2 and (w, h) == (factor * size[0], factor * size[1]):
        # At an odd factor, such as 3 from 1920 to 640, linear interpolation returns the middle
        # pixel of each block. This does the same, and takes OpenCV half the time.
        method = cv2.INTER_NEAREST_EXACT
    return cv2.resize(picture, size, dst=dst, interpolation=method)


class YUVFrame(Frame):
    """A frame in YUV. The small picture is converted to RGB, not the whole frame.

    planes: Y, U and V, (h, w) uint8, U and V of any size; or Y, and U and V in one (h, w, 2).
    to_rgb: one of BT601 or BT709 below.
    """

    def __init__(self, shape: Sequence[int], make_bgr: Callable[[], np.ndarray],
                 planes: List[np.ndarray], to_rgb: np.ndarray):
        super().__init__(shape, make_bgr)
        self.planes, self.to_rgb = planes, to_rgb

    def scale_into(self, rgb: np.ndarray) -> None:
        if self.planes[0].shape[1] < rgb.shape[1]:  # the frame is the smaller of the two
            return super().scale_into(rgb)
        y, *colours = self.planes
        small = [scaled(y, rgb.shape[1::-1])]
        # OpenCV and FFmpeg do not interpolate colours between pixels either.
        small += [cv2.resize(plane, rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
                  for plane in colours]
        cv2.transform(cv2.merge(small), self.to_rgb, dst=rgb)

    def crop(self, x1: int, y1: int, x2: int, y2: int) -> Frame:
        part, planes = super().crop(x1, y1, x2, y2), []
        for plane in self.planes:
            across, down = (round(whole / of_plane) for whole, of_plane
                            in zip(self.shape[1::-1], plane.shape[1::-1]))  # 1 or 2
            planes.append(plane[y1 // down:-(-y2 // down), x1 // across:-(-x2 // across)])
        return YUVFrame(part.shape, part.make_bgr, planes, self.to_rgb)


def yuv_to_rgb(red: float, blue: float, full: bool) -> np.ndarray:
    """(3, 4) float32, from (Y, U, V, 1) to (R, G, B), all from 0 to 255 (ITU-R BT.709, 3.2 to 3.5).

    red, blue: their weights in Y (Kr and Kb). full: Y, U and V use all values from 0 to 255; else
    Y those from 16 to 235, U and V those from 16 to 240.
    """
    v_to_red, u_to_blue, green = 2 * (1 - red), 2 * (1 - blue), 1 - red - blue
    matrix = np.array([[1, 0, v_to_red],
                       [1, -u_to_blue * blue / green, -v_to_red * red / green],
                       [1, u_to_blue, 0]])
    if not full:
        matrix *= 255 / 219, 255 / 224, 255 / 224
    zero = matrix @ (0 if full else 16, 128, 128)
    return np.column_stack([matrix, -zero]).astype(np.float32)


# Key: `full`, see above.
BT601 = {full: yuv_to_rgb(0.299, 0.114, full) for full in (False, True)}
BT709 = {full: yuv_to_rgb(0.2126, 0.0722, full) for full in (False, True)}
