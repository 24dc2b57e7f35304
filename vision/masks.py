"""Masks of objects from prototypes and coefficients (YOLACT, Bolya et al. 2019)."""
from __future__ import annotations

from typing import List, Tuple

import cv2
import numpy as np

from vision.detections import Mask
from vision.letterbox import Placement
from vision.quantised import Raw


def masks_of(coefficients: np.ndarray, prototypes: Raw, boxes: np.ndarray, size: Tuple[int, int],
             placement: Placement) -> List[Mask]:
    """The mask of each object inside its box.

    coefficients: (n, k) float32; prototypes: (1, k, h, w), which cover the model's input; boxes:
    (n, 4) xyxy in pixels of the frame; size: (width, height) of the input; placement: from
    letterbox(). A pixel belongs to the object if the sum of the prototypes, weighted with the
    coefficients, is positive there: its sigmoid is above 0.5. Returns n (x, y, mask), mask (rows,
    columns) uint8 of 0 and 1 with its upper left corner at pixel (x, y) of the frame.
    """
    count, rows, columns = prototypes.shape[-3:]
    stored = prototypes.stored.reshape(count, rows, columns)
    across = _Axis(placement[0], placement[2], columns / size[0], columns)
    down = _Axis(placement[1], placement[3], rows / size[1], rows)
    found = []
    for (x1, y1, x2, y2), weights in zip(np.ceil(boxes).astype(int).tolist(), coefficients):
        if x2 <= x1 or y2 <= y1:
            found.append((x1, y1, np.zeros((0, 0), np.uint8)))
            continue
        (u1, u2), (v1, v2) = across.range_for(x1, x2), down.range_for(y1, y2)
        part = stored[:, v1:v2, u1:u2].reshape(count, -1).astype(np.float32)
        # The scale of stored values changes no sign, so it is left out.
        sums = weights @ part - prototypes.zero_point * weights.sum()
        to_prototypes = np.array([[across.step, 0, across.at(x1) - u1],
                                  [0, down.step, down.at(y1) - v1]])
        sums = cv2.warpAffine(sums.astype(np.float32).reshape(v2 - v1, u2 - u1), to_prototypes,
                              (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=cv2.BORDER_REPLICATE)
        found.append((x1, y1, (sums > 0).view(np.uint8)))
    return found


class _Axis:
    """Where the pixels of the frame lie among the prototypes' columns, or rows."""

    def __init__(self, start: int, scale: float, ratio: float, count: int) -> None:
        """start, scale: of letterbox(); ratio: prototypes per pixel of the input."""
        self.step, self.count = scale * ratio, count
        self.first = (0.5 * scale + start) * ratio - 0.5    # of the centre of pixel 0

    def at(self, pixel: int) -> float:
        return self.step * pixel + self.first

    def range_for(self, start: int, end: int) -> Tuple[int, int]:
        """The range of prototypes that the pixels from start to end are interpolated from."""
        low = min(max(int(np.floor(self.at(start))), 0), self.count - 1)
        high = min(int(np.floor(self.at(end - 1))) + 2, self.count)
        return low, max(high, low + 1)
