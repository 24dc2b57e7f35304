"""Frames in YUV, as cameras and decoders lay them out in memory: by OpenCV as one array, by PyAV as
planes."""
from __future__ import annotations

import functools
import re
from typing import Any, Callable

import cv2
import numpy as np

from vision.frame import BT601, BT709, Frame, YUVFrame

TO_BGR = {"NV12": cv2.COLOR_YUV2BGR_NV12, "NV21": cv2.COLOR_YUV2BGR_NV21,
          "I420": cv2.COLOR_YUV2BGR_I420, "YU12": cv2.COLOR_YUV2BGR_I420,
          "YV12": cv2.COLOR_YUV2BGR_YV12, "YUYV": cv2.COLOR_YUV2BGR_YUYV,
          "YUY2": cv2.COLOR_YUV2BGR_YUYV, "UYVY": cv2.COLOR_YUV2BGR_UYVY}


# ---- arrays of OpenCV ----

def named_format(*texts: str) -> str | None:
    """The last of the formats above in the first text that names one, such as a pipeline: it may
    convert, and the last format is the one that arrives."""
    found = (re.findall("|".join(TO_BGR), text) for text in texts)
    return next((names[-1] for names in found if names), None)


def guessed_format(picture: np.ndarray) -> str:
    """Whether an array (h * 3/2, w) is NV12 or I420. NV12 interleaves U and V: there a value
    differs less from the next but one than from its neighbour. About 30 rows are enough."""
    rows, columns = picture.shape[:2]
    colours = picture[rows * 2 // 3::rows // 90 or 1].reshape(-1, columns).astype(np.int16)
    one, two = (np.abs(colours[:, step:] - colours[:, :-step]).mean() for step in (1, 2))
    return "NV12" if two < one else "I420"


def frame_of_array(picture: np.ndarray, form: str) -> Frame:
    """The frame in an array (h * 3/2, w) uint8, or (h, w, 2) of YUYV or UYVY. OpenCV takes all of
    them for BT.601 with a limited range."""
    rows, w = picture.shape[:2]
    make_bgr = functools.partial(cv2.cvtColor, picture, TO_BGR[form])
    if picture.shape[2:] == (2,):
        return Frame((rows, w, 3), make_bgr)  # separating its planes would take as long
    h = rows * 2 // 3
    if form == "NV21":
        return Frame((h, w, 3), make_bgr)
    y, colours = np.split(picture.reshape(rows, w), [h])
    if form == "NV12":
        planes = [colours.reshape(h // 2, w // 2, 2)]
    else:
        planes = list(colours.reshape(2, h // 2, w // 2))
    if form == "YV12":
        planes.reverse()
    return YUVFrame((h, w, 3), make_bgr, [y, *planes], BT601[False])


# ---- frames of PyAV ----

FORMATS = "yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12"
MATRICES = {1: BT709, 2: BT601, 5: BT601, 6: BT601}  # by FFmpeg's AVColorSpace; 2: unknown
FULL_RANGE = 2                                       # FFmpeg's AVCOL_RANGE_JPEG


def frame_of_planes(frame: Any, make_bgr: Callable[[], np.ndarray]) -> Frame:
    """The frame in an av.VideoFrame, which it keeps in memory. make_bgr: see vision.frame.Frame."""
    shape, form = (frame.height, frame.width, 3), frame.format.name
    matrices = MATRICES.get(frame.colorspace)
    if form not in FORMATS or matrices is None:
        return Frame(shape, make_bgr)
    planes: list[np.ndarray] = []
    for plane in frame.planes:
        channels = 2 if form == "nv12" and planes else 1
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # with padding
        rows = rows[:plane.height, :plane.width * channels]
        planes.append(rows if channels == 1 else rows.reshape(plane.height, plane.width, 2))
    full = form.startswith("yuvj") or frame.color_range == FULL_RANGE
    return YUVFrame(shape, make_bgr, planes, matrices[full])
