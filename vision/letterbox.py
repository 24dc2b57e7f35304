"""Between the frame and the model's input: letterbox() one way, unletterbox() the other."""
from __future__ import annotations

import functools
import threading
from typing import Sequence, Tuple

import cv2
import numpy as np

from vision.frame import Frame, Picture, scaled
from vision.settings import Size, pair

GREY = 114  # of the bars, as in the training of YOLO models
# Where the frame lies in the model's input: left, top, x scale, y scale, from letterbox()
Placement = Tuple[int, int, float, float]


def as_bgr(IMG: Picture, to_draw: bool = True) -> np.ndarray:
    """A frame as (h, w, 3) uint8 BGR that can be drawn on; copied only if it is not one already.

    IMG: a Frame; or uint8, (h, w) or (h, w, 1) grey, (h, w, 3) BGR or (h, w, 4) BGRA. Raises
    ValueError for anything else. to_draw: if False, a part of a larger picture is not copied.
    """
    if isinstance(IMG, Frame):
        return IMG.bgr()
    if not isinstance(IMG, np.ndarray):
        raise ValueError(f"a frame must be an array of uint8, (h, w, 3), not {repr(IMG)[:60]}")
    channels = 1 if IMG.ndim == 2 else IMG.shape[2] if IMG.ndim == 3 else 0
    if IMG.dtype != np.uint8 or IMG.size == 0 or channels not in (1, 3, 4):
        raise ValueError("a frame must be an array of uint8, (h, w, 3), not an array of "
                         f"{IMG.dtype} {IMG.shape}")
    if channels != 3:
        return cv2.cvtColor(IMG, cv2.COLOR_BGRA2BGR if channels == 4 else cv2.COLOR_GRAY2BGR)
    if not to_draw or IMG.flags.c_contiguous and IMG.flags.writeable:
        return IMG
    return IMG.copy(order="C")


def letterbox(IMG: Picture, size: Size) -> Tuple[np.ndarray, Placement]:
    """Scale a frame into the model's input without distorting it, with grey bars around it.

    IMG: (h, w, 3) uint8 BGR, or what as_bgr() converts; size: (width, height), or one number for a
    square. Returns the input (height, width, 3) uint8 RGB and (left, top, x_scale, y_scale): pixel
    (x, y) of the frame lies at (x * x_scale + left, y * y_scale + top) of the input. The next call
    in the same thread may draw into the same array.
    """
    if not isinstance(IMG, Frame):
        IMG = as_bgr(IMG, to_draw=False)
    h, w = IMG.shape[:2]
    width, height = pair(size)
    scale = min(width / w, height / h)
    new_w, new_h = max(1, round(w * scale)), max(1, round(h * scale))
    left, top = (width - new_w) // 2, (height - new_h) // 2
    image, small = _buffers(threading.get_ident(), (width, height), (new_w, new_h))
    inside = image[top:top + new_h, left:left + new_w]
    if isinstance(IMG, Frame):
        IMG.scale_into(inside)
    else:  # only the small picture is converted to RGB, not the whole frame
        scaled(IMG, (new_w, new_h), small)
        cv2.cvtColor(small, cv2.COLOR_BGR2RGB, dst=inside)
    return image, (left, top, new_w / w, new_h / h)


# Reused, because new arrays cost their page faults in each frame. benchmark.py --profile shows what
# letterbox() costs.
@functools.lru_cache(maxsize=32)
def _buffers(thread: int, size: Tuple[int, int], inner: Tuple[int, int]
             ) -> Tuple[np.ndarray, np.ndarray]:
    """A grey picture of a size (width, height), and one for the frame inside it."""
    return (np.full((size[1], size[0], 3), GREY, np.uint8),
            np.empty((inner[1], inner[0], 3), np.uint8))


def unletterbox(boxes: np.ndarray, placement: Placement, IMG: Picture) -> np.ndarray:
    """Boxes (n, 4) xyxy from pixels of the model's input to pixels of the frame IMG, clipped to
    the frame."""
    h, w = IMG.shape[:2]
    return _to_frame(boxes.reshape(-1, 2), placement).reshape(-1, 4).clip(0, np.array([w, h, w, h]))


def unletterbox_corners(corners: np.ndarray, placement: Placement) -> np.ndarray:
    """Corners (n, 4, 2) from pixels of the model's input to pixels of the frame, float32. They may
    lie outside the frame; only those of a broken model, which are far away, are clipped."""
    return _to_frame(corners, placement).clip(-1e5, 1e5)


def unletterbox_keypoints(points: np.ndarray, placement: Placement, shape: Sequence[int]
                          ) -> np.ndarray:
    """Key points (n, k, 2 or 3) from pixels of the model's input to pixels of the frame, clipped
    to the frame: (n, k, 3) float32 x, y, score. shape: the frame's. A missing score becomes 1."""
    found = np.ones((*points.shape[:2], 3), np.float32)
    found[..., :2] = _to_frame(points[..., :2], placement).clip(0, np.array([shape[1], shape[0]]))
    found[..., 2:points.shape[2]] = points[..., 2:]
    return found


def _to_frame(points: np.ndarray, placement: Placement) -> np.ndarray:
    left, top, x_scale, y_scale = placement
    return ((points - (left, top)) / (x_scale, y_scale)).astype(np.float32)
