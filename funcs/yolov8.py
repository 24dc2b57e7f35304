"""myFunc for YOLOv8, YOLO11 and YOLOv10 as Rockchip exports them: nine outputs, or six.

    python main.py --model models/yolov8n_emoji.rknn

For each stride s = 8, 16, 32, the strides in any order, with height / s rows and width / s columns:

    (1, 64, rows, columns)       distances from the cell's centre to the left, top, right and lower
                                 side of the box, in strides: four distributions over 16 bins
    (1, classes, rows, columns)  scores, after the sigmoid or before it
    (1, 1, rows, columns)        only with nine outputs: the sum of the scores, not used here
"""
from __future__ import annotations

import functools
from typing import Any, Dict, Sequence, Tuple

import numpy as np

from vision.detections import Detections
from vision.drawing import draw
from vision.errors import ModelError
from vision.frame import Picture
from vision.heads import Head, decode_cells, group_by_stride
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import letterbox, unletterbox
from vision.nms import nms
from vision.quantised import as_raw
from vision.settings import Settings, names_of, settings_of

FRAMES = True     # detect() takes frames as they are: see funcs/__init__.py
SIDES = 4 * 16    # channels: four distributions over 16 bins


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Detect the objects of a frame (h, w, 3) uint8 BGR, draw them on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: Picture) -> Detections:
    """The objects of a frame, in pixels of the frame, best first.

    rknn_lite: a context of the pool; IMG: a Frame, or (h, w, 3) uint8 BGR. Raises ModelError if the
    model cannot be run or read; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model)
    image, placement = letterbox(IMG, settings.size)
    outputs = infer_raw(rknn_lite, image)
    boxes, classes, scores = decode(outputs, settings)
    best = nms(boxes, classes, scores, settings)
    boxes = unletterbox(boxes[best], placement, IMG)
    names = names_of(model, outputs[1].shape[1])
    return Detections(boxes, classes[best], scores[best], names).inside_frame()


def reads(model: Any) -> bool:
    """True if a model's outputs are those that decode() reads."""
    if model.task not in (None, "detect") or not model.outputs:
        return False
    try:
        first_outputs(tuple(shape for _, shape in model.outputs), settings_of(model).size)
    except ModelError:
        return False
    return True


def decode(outputs: Sequence[Any], settings: Settings
           ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 xyxy in pixels of the model's input, classes (n,) int64 and scores (n,)
    float32, before NMS.

    outputs: of infer() or infer_raw(). Raises ModelError for other shapes.
    """
    raw = as_raw(outputs)
    first = first_outputs(tuple(output.shape for output in raw), settings.size)
    heads = [Head(stride, raw[index], raw[index + 1]) for stride, index in first.items()]
    with np.errstate(over="ignore", invalid="ignore"):  # values of a broken model
        cells = decode_cells(heads, settings)
        return cells.boxes(), cells.classes, cells.scores


@functools.lru_cache(maxsize=100)
def first_outputs(shapes: Tuple[Tuple[int, ...], ...], size: Tuple[int, int]) -> Dict[int, int]:
    """{stride: index of its first output}. size: (width, height) of the model's input. Raises
    ModelError if the shapes are not YOLOv8's."""
    groups = group_by_stride(shapes, size)
    sides, classes, *total = groups.channels if groups and len(groups.channels) > 1 else (0, 0)
    if groups is None or sides != SIDES or classes < 1 or total not in ([], [1]):
        raise unknown_outputs(shapes, f"funcs/yolov8.py reads YOLOv8 at {size[0]} x {size[1]} "
                              f"pixels: for each stride 8, 16, 32 outputs with {SIDES}, one for "
                              "each class and, in exports with nine outputs, 1 channels")
    return groups.first
