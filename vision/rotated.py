"""Geometry of rotated boxes."""
from __future__ import annotations

from typing import Tuple

import numpy as np


def corners_of(boxes: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """The corners (n, 4, 2) of rotated boxes, in order around each box.

    boxes: (n, 4) x, y of the centre, width, height; angles: (n,) radians, from the x axis to the
    y axis. The first corner is the lower right one of the box before it is rotated.
    """
    cos, sin = np.cos(angles)[:, np.newaxis], np.sin(angles)[:, np.newaxis]
    across = boxes[:, 2:3] / 2 * np.concatenate([cos, sin], 1)
    down = boxes[:, 3:4] / 2 * np.concatenate([-sin, cos], 1)
    offsets = [across + down, across - down, -across - down, down - across]
    return boxes[:, np.newaxis, :2] + np.stack(offsets, 1)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """ProbIoU of each rotated box of (n, 5) with each of (m, 5): (n, m), 1 for equal boxes.

    A box is x, y of the centre, width, height, angle. It stands for a normal distribution with the
    same centre and second moments; the result is 1 minus the Hellinger distance, computed from the
    Bhattacharyya distance (Llerena et al. 2021, arXiv 2106.06072).
    """
    x1, y1, a1, b1, c1 = (value[:, np.newaxis] for value in _moments(one))
    x2, y2, a2, b2, c2 = (value[np.newaxis] for value in _moments(other))
    tiny, a, b, c = 1e-7, a1 + a2, b1 + b2, c1 + c2
    determinant = a * b - c * c
    centres = (a * (y1 - y2) ** 2 + b * (x1 - x2) ** 2) / 4 + c * (x2 - x1) * (y1 - y2) / 2
    each = np.sqrt(np.maximum(a1 * b1 - c1 * c1, 0) * np.maximum(a2 * b2 - c2 * c2, 0))
    distance = (centres / (determinant + tiny)
                + np.log(determinant / (4 * each + tiny) + tiny) / 2)
    return 1 - np.sqrt(1 - np.exp(-distance.clip(tiny, 100)) + tiny)


def _moments(boxes: np.ndarray) -> Tuple[np.ndarray, ...]:
    """x and y of the centre, and the covariance matrix ((a, c), (c, b))."""
    x, y, w, h, angle = boxes.T.astype(np.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = w * w / 12, h * h / 12
    return (x, y, along * cos ** 2 + across * sin ** 2, along * sin ** 2 + across * cos ** 2,
            (along - across) * cos * sin)
