"""YOLOv5's decoder: from the three heads of Rockchip's export to boxes. func.py uses it.

For each stride s = 8, 16, 32 there is an output (1, 3 * (5 + classes), height / s, width / s), or
(1, 3, 5 + classes, height / s, width / s). Each cell has three anchors, and each anchor has x, y,
w, h, objectness and a score per class. The sigmoid has been applied to all of them, except in
exports of toolkit 1.x. The box in pixels (Ultralytics YOLOv5 6.0; y and height likewise):

    centre x = (2 x - 0.5 + column) * s        width = (2 w)^2 * width of the anchor
"""
from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from vision.errors import ModelError
from vision.inference import unknown_outputs
from vision.quantised import Raw, as_raw, as_scores, lacks_sigmoid, logit, sigmoid
from vision.settings import Settings, Size, pair

Shapes = Sequence[Tuple[int, ...]]
Anchors = Mapping[int, Sequence[Tuple[int, int]]]
ANCHORS: Anchors = {  # stride: width and height of three anchors in pixels of the model's input
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}


@dataclass(frozen=True)
class Boxes:
    """What a decoder finds, before NMS."""
    boxes: np.ndarray      # (n, 4) float32 xyxy in pixels of the model's input
    classes: np.ndarray    # (n,) int64
    scores: np.ndarray     # (n,) float32
    index: np.ndarray      # (n,) int64: of the anchor or cell, over all heads in their order


def is_yolov5(model: Any, size: Size, anchors: Anchors = ANCHORS) -> bool:
    """True if a model's outputs are YOLOv5's, or if nothing is known of them.

    model: a vision.model.Model; size: of its input, if the model does not say it.
    """
    if model.task not in (None, "detect"):
        return False
    shapes = [shape for _, shape in model.outputs]
    if not shapes:
        return True
    if "yolov7" in os.path.basename(model.path).lower():  # the same shapes, but other anchors
        return False
    try:
        strides_of(shapes, pair(model.size or size), anchors)
    except ModelError:
        return False
    # A YOLOX with 13, 16, ... classes has the same shapes: 5 + classes channels.
    return not model.names or len(model.names) + 5 != shapes[0][1]


def decode(outputs: Sequence[Any], settings: Settings, anchors: Anchors = ANCHORS
           ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 xyxy in pixels of the model's input, classes (n,) int64 and scores (n,)
    float32, before NMS.

    outputs: of infer() or infer_raw(), in any order. Raises ModelError for other shapes.
    """
    heads = as_raw(outputs)
    strides = strides_of([head.shape for head in heads], settings.size, anchors)
    with np.errstate(over="ignore", invalid="ignore"):  # values of a broken model
        found = decode_heads(heads, strides, settings, anchors)
    return found.boxes, found.classes, found.scores


def decode_heads(heads: Sequence[Raw], strides: Sequence[int], settings: Settings,
                 anchors: Anchors = ANCHORS) -> Boxes:
    """What decode() does, for heads whose strides are known."""
    heads = [head.reshape(3, 5 + class_count(head.shape), -1) for head in heads]
    objectness = [head.part(np.s_[:, 4]) for head in heads]                   # (3, cells)
    logits = lacks_sigmoid(objectness)
    conf = logit(settings.conf) if logits else settings.conf
    # The objectness alone rules out nearly all anchors. Only the others are computed.
    passed = [np.flatnonzero(own.stored >= own.threshold(conf)) for own in objectness]
    counts = [len(each) for each in passed]
    stored = np.concatenate([head.stored[each // head.shape[2], :, each % head.shape[2]]
                             for head, each in zip(heads, passed)]).T         # (5 + classes, n)
    starts = np.cumsum([0] + [own.stored.size for own in objectness[:-1]])
    index = np.concatenate(passed) + np.repeat(starts, counts)
    classes = stored[5:].argmax(0)
    best = stored[5 + classes, np.arange(len(classes))]
    values = np.vstack([stored[:5], best]).astype(np.float32)                 # (6, n)
    values -= np.repeat([head.zero_point for head in heads], counts).astype(np.float32)
    values *= np.repeat([head.scale for head in heads], counts).astype(np.float32)
    if logits:
        values = sigmoid(values)
    scores = as_scores(values[4] * values[5])
    good = np.flatnonzero(scores >= settings.conf)
    values, index = values.take(good, 1), index[good]
    sizes = tuple((stride, tuple(map(tuple, anchors[stride]))) for stride in strides)
    table = anchor_table(settings.size, sizes).take(index, 1)                 # (5, n)
    centre = (2 * values[:2] - 0.5 + table[:2]) * table[2]
    half = (2 * values[2:4]) ** 2 * table[3:] / 2
    boxes = np.concatenate([centre - half, centre + half]).T
    return Boxes(boxes, classes[good], scores[good], index)


@functools.lru_cache(maxsize=100)
def anchor_table(size: Tuple[int, int], anchors: tuple) -> np.ndarray:
    """Column, row, stride, width and height of every anchor of all heads: (5, anchors) float32.

    size: (width, height) of the model's input; anchors: for each head its stride and the (width,
    height) of its anchors.
    """
    tables = []
    for stride, sizes in anchors:
        columns, rows = size[0] // stride, size[1] // stride
        row, column = np.divmod(np.arange(columns * rows), columns)
        for width, height in sizes:
            tables.append([column, row, *(np.full_like(row, value)
                                          for value in (stride, width, height))])
    return np.concatenate(tables, 1).astype(np.float32)


def class_count(shape: Tuple[int, ...]) -> int:
    """The number of classes, from the shape of an output."""
    return shape[2] - 5 if len(shape) == 5 else shape[1] // 3 - 5


def strides_of(shapes: Shapes, size: Tuple[int, int], anchors: Anchors = ANCHORS) -> List[int]:
    """The stride of each output. size: (width, height) of the model's input. Raises ModelError if
    the shapes are not YOLOv5's."""
    flat = [(1, 3 * shape[2], *shape[3:]) if len(shape) == 5 and shape[:2] == (1, 3) else shape
            for shape in shapes]
    channels = flat[0][1] if flat and len(flat[0]) == 4 else 0
    if channels % 3 or channels < 3 * (5 + 1):
        channels = 3 * (5 + 80)
    stride_of: Dict[Tuple[int, ...], int] = {
        (1, channels, size[1] // stride, size[0] // stride): stride for stride in anchors}
    if sorted(flat) != sorted(stride_of):
        raise unknown_outputs(shapes, f"a YOLOv5 with {channels // 3 - 5} classes at {size[0]} x "
                                      f"{size[1]} pixels has {', '.join(map(str, stride_of))}")
    return [stride_of[shape] for shape in flat]
