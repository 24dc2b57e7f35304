"""From a model's outputs to masks, key points and rotated boxes in the frame; no myFunc is here.

Frame coordinates are pixels of the frame: pixel (i, j) is the square from (i, j) to (i + 1, j + 1). Coordinates of the
model's input are pixels of the letterboxed picture; `placed` is what func.letterbox() returns with it.
"""
from typing import Any, List, Optional, Sequence, Tuple

import cv2
import numpy as np

import func


def names_of(model: Any, classes: Optional[int], points: int) -> func.Names:
    """As func.names_of(); one class with COCO's 17 key points is a person where the model does not say it."""
    if points == 17 and classes == 1 and not getattr(model, "names", None):
        return ("person",)
    return func.names_of(model, classes)


def masks(coefficients: np.ndarray, prototypes: func.Raw, boxes: np.ndarray, size: Tuple[int, int],
          placed: func.Placed) -> List[Tuple[int, int, np.ndarray]]:
    """The mask of each object inside its box: where the sum of the prototypes, weighted, is positive (YOLACT, Bolya et
    al. 2019: its sigmoid above 0.5).

    coefficients: (n, k) float32; prototypes: (1, k, h, w) with scale and zero point, which cover the model's input;
    boxes: (n, 4) xyxy in pixels of the frame; size: (width, height) of the input. Returns n (x, y, mask): mask (rows,
    columns) uint8 of 0 and 1, its upper left corner at pixel (x, y) of the frame. Prototypes are interpolated linearly
    between their centres. Only what lies under a box is computed.
    """
    stored, scale, zero = prototypes
    stored = stored.reshape(stored.shape[-3:])
    _, rows, columns = stored.shape
    left, top, x_scale, y_scale = placed
    # pixel i of the frame, its centre, stands at x_step * i + x_first of the prototypes' columns
    x_step, y_step = x_scale * columns / size[0], y_scale * rows / size[1]
    x_first = (0.5 * x_scale + left) * columns / size[0] - 0.5
    y_first = (0.5 * y_scale + top) * rows / size[1] - 0.5
    found = []
    for (x1, y1, x2, y2), weights in zip(np.ceil(boxes).astype(int).tolist(), coefficients):
        if x2 <= x1 or y2 <= y1:
            found.append((x1, y1, np.zeros((0, 0), np.uint8)))
            continue
        u1, u2 = _between(x_step, x_first, x1, x2, columns)
        v1, v2 = _between(y_step, y_first, y1, y2, rows)
        part = np.ascontiguousarray(stored[:, v1:v2, u1:u2]).reshape(len(stored), -1)
        if part.dtype != np.float32:
            part = part.astype(np.float32)  # the scale changes no sign
        sums = weights @ part
        if zero:
            sums -= zero * weights.sum()
        place = np.float64([[x_step, 0, x_step * x1 + x_first - u1], [0, y_step, y_step * y1 + y_first - v1]])
        sums = cv2.warpAffine(sums.reshape(v2 - v1, u2 - u1), place, (x2 - x1, y2 - y1),
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
        found.append((x1, y1, (sums > 0).view(np.uint8)))
    return found


def _between(step: float, first: float, start: int, end: int, count: int) -> Tuple[int, int]:
    """The prototypes' columns from which those under pixels start to end of the frame are interpolated."""
    low = int(np.floor(step * start + first))
    high = int(np.floor(step * (end - 1) + first)) + 2
    low = min(max(low, 0), count - 1)
    return low, max(min(high, count), low + 1)


def keypoints(values: np.ndarray, placed: func.Placed, shape: Sequence[int]) -> np.ndarray:
    """Key points (n, k, 2 or 3), x and y in pixels of the model's input, as (n, k, 3) float32 in pixels of the frame,
    cut to it; the third is the score, 1 where the model gives none. shape: the frame's (h, w, ...)."""
    left, top, x_scale, y_scale = placed
    points = np.ones((*values.shape[:2], 3), np.float32)
    points[..., 0] = ((values[..., 0] - left) / x_scale).clip(0, shape[1])
    points[..., 1] = ((values[..., 1] - top) / y_scale).clip(0, shape[0])
    if values.shape[2] > 2:
        points[..., 2] = values[..., 2]
    return points


def corners(boxes: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Corners (n, 4, 2) of boxes (n, 4), x and y of the centre, width, height, each turned about it by its angle in
    radians, from x to y. They go around the box, the first one being lower right before the turn."""
    cos, sin = np.cos(angles)[:, np.newaxis], np.sin(angles)[:, np.newaxis]
    across = boxes[:, 2:3] / 2 * np.concatenate([cos, sin], 1)
    down = boxes[:, 3:4] / 2 * np.concatenate([-sin, cos], 1)
    return boxes[:, np.newaxis, :2] + np.stack([across + down, across - down, -across - down, down - across], 1)


def unletterbox(points: np.ndarray, placed: func.Placed) -> np.ndarray:
    """Points (..., 2) from pixels of the model's input to pixels of the frame, float32; of them only a broken model's,
    which are far away, are cut."""
    return ((points - np.float32(placed[:2])) / np.float32(placed[2:])).clip(-1e5, 1e5).astype(np.float32)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """ProbIoU of each rotated box of (n, 5), x, y, width, height, angle, with each of (m, 5): (n, m), 1 for the same.

    Each box is taken for a normal distribution of the same centre and second moments; the value is 1 minus the
    Hellinger distance of the two, from their Bhattacharyya distance (Llerena et al. 2021, arXiv 2106.06072).
    """
    def moments(boxes: np.ndarray) -> Tuple[np.ndarray, ...]:
        x, y, w, h, angle = boxes.T.astype(np.float64)
        cos, sin = np.cos(angle), np.sin(angle)
        along, across = w * w / 12, h * h / 12
        return (x, y, along * cos ** 2 + across * sin ** 2, along * sin ** 2 + across * cos ** 2,
                (along - across) * cos * sin)

    x1, y1, a1, b1, c1 = (value[:, np.newaxis] for value in moments(one))
    x2, y2, a2, b2, c2 = (value[np.newaxis] for value in moments(other))
    tiny, a, b, c = 1e-7, a1 + a2, b1 + b2, c1 + c2
    determinant = a * b - c * c
    far = ((a * (y1 - y2) ** 2 + b * (x1 - x2) ** 2) / 4 + c * (x2 - x1) * (y1 - y2) / 2) / (determinant + tiny)
    each = np.sqrt(np.maximum(a1 * b1 - c1 * c1, 0) * np.maximum(a2 * b2 - c2 * c2, 0))
    distance = far + np.log(determinant / (4 * each + tiny) + tiny) / 2
    return 1 - np.sqrt(1 - np.exp(-distance.clip(tiny, 100)) + tiny)


def suppress(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, wanted: func.Settings,
             all_stay: bool = False) -> np.ndarray:
    """As func.suppress() for rotated boxes (n, 5), x, y, width, height, angle: those stay whose ProbIoU with no better
    one of their class, be that one suppressed itself or not, is above wanted.iou (Fast NMS, Bolya et al. 2019, as
    Ultralytics' predict has it). all_stay: they are only filtered and sorted."""
    good = np.isfinite(boxes).all(1) & np.isfinite(scores)
    if wanted.keep is not None:
        good &= np.isin(classes, list(wanted.keep))
    places = np.flatnonzero(good)
    places = places[np.argsort(-scores[places], kind="stable")][:10 * func.MAX_BOXES]
    if not all_stay:
        stay = np.ones(len(places), bool)
        for number in np.unique(classes[places]):
            rank = np.flatnonzero(classes[places] == number)
            own = boxes[places[rank]]
            for start in range(0, len(rank), 256):  # 3,000 at once would take hundreds of MB
                block = rank[start:start + 256]
                better = np.arange(start + len(block))[:, np.newaxis] < np.arange(start, start + len(block))
                same = similarity(own[:start + len(block)], own[start:start + len(block)]) > wanted.iou
                stay[block] = ~(same & better).any(0)
        places = places[stay]
    return places[:func.MAX_BOXES]
