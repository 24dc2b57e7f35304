"""myFunc for models that give each pixel a class (semantic segmentation): PP-LiteSeg, DeepLab.

    python main.py street.mp4 --model ppliteseg_cityscapes.rknn --json -

The frame is painted in the colours of the classes, and the share of each class is written into the
corner and into the JSON. The one output, for an input of width x height and a stride s of 1, 2, 4,
8, 16 or 32, covers the input with height / s rows and width / s columns:

    (1, classes, rows, columns)  a score for each class, before or after the softmax
    (1, rows, columns, classes)  the same
    (1, rows, columns)           the number of the best class

Models that estimate depth or enhance pictures have the same shapes. So the model must also have
class names, or as many classes as a data set in NAMES_BY_COUNT.
"""
from __future__ import annotations

import math
import os
from typing import Any, List, Optional, Tuple

import numpy as np

from vision.detections import Detections
from vision.drawing import draw
from vision.frame import Picture
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import Placement, letterbox
from vision.quantised import Raw
from vision.settings import Names, names_of, settings_of

# --------------------------------------------------------------------------------------------------
# Names by the number of classes, if the model has none: Cityscapes, Pascal VOC
NAMES_BY_COUNT = {
    19: ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
         "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
         "motorcycle", "bicycle"),
    21: ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
         "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
         "sheep", "sofa", "train", "tvmonitor"),
}
# --------------------------------------------------------------------------------------------------

FRAMES = True    # detect() takes frames as they are: see funcs/__init__.py
BOXES = False
STRIDES = 1, 2, 4, 8, 16, 32
FIRST, LAST, BEST = "the classes first", "the classes last", "the best class of each pixel"
Shape = Tuple[int, ...]


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Paint the classes of a frame (h, w, 3) uint8 BGR on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: Picture) -> Detections:
    """The classes in a frame, the largest first: Detections without boxes, with a class_map.

    A score is the class's share of the frame, 0..1; conf is the minimum share, by default 0.
    rknn_lite: a context of the pool; IMG: a Frame, or (h, w, 3) uint8 BGR. Raises ModelError if the
    model cannot be run or read; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model, conf=0)
    image, placement = letterbox(IMG, settings.size)
    outputs = infer_raw(rknn_lite, image)
    shapes = [output.shape for output in outputs]
    names = getattr(model, "names", None)
    possible = layouts_of_shapes(shapes, settings.size, len(names) if names else None)
    if not possible:
        raise unknown_outputs(shapes, "funcs/class_maps.py reads one output (1, classes, rows, "
                                      "columns), (1, rows, columns, classes) or (1, rows, columns)")
    output = without_bars(outputs[0], possible[0], placement, IMG.shape, settings.size)
    class_map = best_classes(output, possible[0])
    shares = np.bincount(class_map.ravel(), minlength=256) / class_map.size
    selected = (shares > 0) & (shares >= settings.conf)
    if settings.class_ids is not None:
        selected &= np.isin(np.arange(256), list(settings.class_ids))
    classes = np.flatnonzero(selected)
    classes = classes[np.argsort(-shares[classes], kind="stable")]
    return Detections(None, classes, shares[classes], _names(model, shapes[0], possible[0]),
                      class_map=class_map)


def reads(model: Any) -> bool:
    """True if a model's output can only be a class map, with one layout."""
    possible = _layouts_of(model)
    if len(possible) != 1 or model.task is not None:
        return False
    return bool(model.names) or class_count(model.outputs[0][1], possible[0]) in NAMES_BY_COUNT


def unclear(model: Any) -> Optional[str]:
    """What the output may be if it may be a class map, but also something else."""
    possible = _layouts_of(model)
    if not possible or model.task is not None:
        return None
    shape = model.outputs[0][1]
    if len(possible) > 1:
        return (f"its output {shape} may be a class map with {' or with '.join(possible)}. If it "
                f"has {possible[0]}, give --func funcs/class_maps.py.")
    if model.inputs and shape == model.inputs[0][1]:
        return None  # a picture
    return (f"its output {shape} may be a class map, but also depth, a picture or features. If it "
            f"is a class map, write its class names into {os.path.splitext(model.path)[0]}.txt, "
            "one per line, or give --func funcs/class_maps.py.")


def classes_of(model: Any) -> Optional[int]:
    """The number of classes of a model, from its output; None if that does not say it."""
    possible = _layouts_of(model)
    return class_count(model.outputs[0][1], possible[0]) if len(possible) == 1 else None


# ---- which layout ----

def _layouts_of(model: Any) -> List[str]:
    count = len(model.names) if model.names else None
    shapes = [shape for _, shape in model.outputs]
    return layouts_of_shapes(shapes, model.size, count) if model.size else []


def layouts_of_shapes(shapes: List[Shape], size: Tuple[int, int], names: Optional[int] = None
                      ) -> List[str]:
    """Which of the layouts FIRST, LAST and BEST outputs with these shapes can have.

    size: (width, height) of the input; names: how many class names the model has, None: unknown.
    """
    if len(shapes) != 1 or not shapes[0] or shapes[0][0] != 1:
        return []
    sides = shapes[0][1:]
    if len(sides) == 2:
        return [BEST] if covers(sides, size) else []
    if len(sides) != 3:
        return []
    possible = []
    for layout, count, grid in ((FIRST, sides[0], sides[1:]), (LAST, sides[2], sides[:2])):
        if covers(grid, size) and 2 <= count <= 256 and names in (None, count):
            possible.append(layout)
    return possible


def covers(grid: Shape, size: Tuple[int, int]) -> bool:
    """True if (rows, columns) are those of an input of this size (width, height) at a stride."""
    at_strides = [(math.ceil(size[1] / stride), math.ceil(size[0] / stride)) for stride in STRIDES]
    return min(grid) > 1 and tuple(grid) in at_strides


def class_count(shape: Shape, layout: str) -> Optional[int]:
    """The number of classes; None if the output has only the best one of each pixel."""
    return {FIRST: shape[1], LAST: shape[-1]}.get(layout)


def _names(model: Any, shape: Shape, layout: str) -> Names:
    count = class_count(shape, layout)
    return names_of(model, count, NAMES_BY_COUNT.get(count or 0, ()))


# ---- decoding ----

def without_bars(output: Raw, layout: str, placement: Placement, shape: Shape,
                 size: Tuple[int, int]) -> Raw:
    """The part of an output that shows the frame, without the grey bars of the letterbox.

    shape: of the frame; size: of the model's input. At least one row and one column.
    """
    left, top, x_scale, y_scale = placement
    rows, columns = output.shape[2:] if layout == FIRST else output.shape[1:3]

    def part(start: float, length: float, ratio: float, count: int) -> slice:
        """The part of `count` rows or columns. start, length: in pixels of the input."""
        first = min(round(start * ratio), count - 1)
        return slice(first, max(first + 1, round((start + length) * ratio)))

    across = part(left, shape[1] * x_scale, columns / size[0], columns)
    down = part(top, shape[0] * y_scale, rows / size[1], rows)
    return output.part((0, slice(None), down, across) if layout == FIRST else (0, down, across))


def best_classes(output: Raw, layout: str) -> np.ndarray:
    """The best class of each pixel, (rows, columns) uint8. output: from without_bars().

    Stored values are compared: they have the same order as the real ones. Of equal values, the
    first class is the best.
    """
    if layout == BEST:
        return np.rint(np.nan_to_num(output.floats())).clip(0, 255).astype(np.uint8)
    if layout == LAST:
        return output.stored.argmax(-1).astype(np.uint8)
    # Class by class: NumPy's argmax over the first axis takes three times as long.
    best = output.stored[0].copy()
    classes = np.zeros(best.shape, np.uint8)
    for number in range(1, len(output.stored)):
        better = (output.stored[number] > best).view(np.uint8)
        np.maximum(classes, better * np.uint8(number), out=classes)
        np.maximum(best, output.stored[number], out=best)
    return classes
