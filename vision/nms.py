"""Non-maximum suppression: keeps only the best of several boxes around one object."""
from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from vision.rotated import similarity
from vision.settings import Settings

MAX_BOXES = 300          # maximum number of detections per frame: the best ones are kept
MAX_CANDIDATES = 3000    # of boxes before NMS; 19,000 of a broken model would take seconds


def nms(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, settings: Settings
        ) -> np.ndarray:
    """The indices of the boxes that are kept, at most MAX_BOXES, best first: (k,) int64.

    boxes: (n, 4) xyxy; classes, scores: (n,). Boxes of different classes do not suppress each
    other. Boxes with values that are not finite, with a score below settings.conf, or of a class
    that is not in settings.class_ids are left out.
    """
    index = usable(boxes, classes, scores, settings)
    if len(index) > MAX_CANDIDATES:
        index = best_first(boxes, classes, scores, settings)
    index = index[scores[index] >= settings.conf]  # OpenCV would keep only higher ones
    if len(index) == 0:
        return index
    xywh, classes = boxes[index].astype(np.float64), classes[index].astype(np.int32)
    xywh[:, 2:] -= xywh[:, :2]
    scores = scores[index].astype(np.float32)
    dnn: Any = cv2.dnn  # reads a list of boxes in half the time of an array
    if hasattr(dnn, "NMSBoxesBatched"):
        keep = dnn.NMSBoxesBatched(xywh.tolist(), scores, classes, 0.0, settings.iou)
    else:  # OpenCV 4.6: shift the classes so that they do not overlap
        xywh[:, 0] += classes * (np.ptp(xywh[:, 0]) + xywh[:, 2].max() + 1)
        keep = dnn.NMSBoxes(xywh.tolist(), scores, 0.0, settings.iou)
    return index[np.array(keep, np.int64).ravel()[:MAX_BOXES]]


def rotated_nms(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, settings: Settings
                ) -> np.ndarray:
    """As nms(), for rotated boxes (n, 5): x, y of the centre, width, height, angle in radians.

    A box is dropped if its similarity to any better box of its class, suppressed or not, is above
    settings.iou (Fast NMS, Bolya et al. 2019, as Ultralytics' predict() does it).
    """
    index = best_first(boxes, classes, scores, settings)
    kept = np.ones(len(index), bool)
    for number in np.unique(classes[index]):
        members = np.flatnonzero(classes[index] == number)
        own = boxes[index[members]]
        for start in range(0, len(members), 256):  # 3,000 at once would take hundreds of MB
            end = min(start + 256, len(members))
            better = np.arange(end)[:, np.newaxis] < np.arange(start, end)
            alike = similarity(own[:end], own[start:end]) > settings.iou
            kept[members[start:end]] = ~(alike & better).any(0)
    return index[kept][:MAX_BOXES]


def best_first(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, settings: Settings
               ) -> np.ndarray:
    """The indices of at most MAX_CANDIDATES usable boxes (n, 4 or 5) by falling score."""
    index = usable(boxes, classes, scores, settings)
    return index[np.argsort(-scores[index], kind="stable")][:MAX_CANDIDATES]


def usable(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, settings: Settings
           ) -> np.ndarray:
    """The indices of the boxes that are finite and of a class to keep."""
    finite = (np.abs(boxes).max(1) < 1e6) & np.isfinite(scores)  # NaN fails each comparison
    if settings.class_ids is not None:
        finite &= np.isin(classes, list(settings.class_ids))
    return np.flatnonzero(finite)
