"""myFunc for what Ultralytics' own exporter writes: objects, masks, key points, rotated boxes.

    yolo export model=yolo11n.pt format=rknn name=rk3588    # on a PC; format=onnx for the PC itself
    python main.py street.mp4 --model yolo11n_rknn_model    # on the board

The layouts, where n is the number of cells: (width / s) * (height / s), summed over the strides s:

    detect   (1, 4 + classes, n): x and y of the box's centre, its width and height, class scores
             after the sigmoid
    segment  (1, 4 + classes + 32, n), the last 32 mask coefficients, and prototypes (1, 32, height
             / 4, width / 4)
    pose     (1, 4 + classes + k * d, n): for each of k key points x, y and, if d is 3, visibility
             after the sigmoid
    obb      (1, 4 + classes + 1, n): the box before its rotation, and at the end the angle in
             radians
    end2end  (1, 300, 6 + what the task adds above): x1, y1, x2, y2 (obb: x, y, width, height),
             score, class; these rows need no NMS
    YOLOv5   (1, 3 * n, 5 + classes), from its own repository: as detect, but with an objectness
             before the classes

Coordinates are pixels of the input or, in int8, fractions of its width and height (as ultralytics
8.4.190 exports them). tests/compare_ultralytics.py compares each layout with Ultralytics'
predict(). The tests build YOLOv5's layout themselves. Classifiers are read by funcs/resnet.py.
"""
from __future__ import annotations

import os
import re
from typing import Any, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vision.coco import COCO_CLASSES
from vision.detections import Detections
from vision.drawing import draw
from vision.frame import Picture
from vision.heads import cell_count
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import (
    Placement,
    letterbox,
    unletterbox,
    unletterbox_corners,
    unletterbox_keypoints,
)
from vision.masks import masks_of
from vision.nms import MAX_BOXES, best_first, nms, rotated_nms
from vision.quantised import Raw, as_scores
from vision.rotated import corners_of
from vision.settings import Settings, names_with_keypoints, settings_of

# --------------------------------------------------------------------------------------------------
NMS_THRESH = 0.7    # maximum overlap of two boxes of one class, as in Ultralytics' predict()
# --------------------------------------------------------------------------------------------------

FRAMES = True    # detect() takes frames as they are: see funcs/__init__.py
TASKS = "detect", "segment", "pose", "obb"
STRIDES = (8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32)    # of models with 3, 4, 2 heads
COCO_POINTS = 17, 3    # key points, values of each
MAX_ROWS, MAX_POINTS = 1000, 1000    # of an end2end export; a larger output has another layout

Shape = Tuple[int, ...]


class Layout(NamedTuple):
    """How outputs are read."""
    task: str       # one of TASKS
    kind: str       # "columns": (1, channels, n); "rows": end2end; "yolov5"
    classes: int    # 0: the shapes do not say it (rows)
    points: int     # key points of each object
    values: int     # of each key point, 2 or 3
    boxes: int      # index of the output with the boxes; the other one has the prototypes


class Found(NamedTuple):
    """What decode() finds, before NMS."""
    boxes: np.ndarray      # (n, 4) float32 in pixels of the input: xyxy; obb: x, y, width, height
    classes: np.ndarray    # (n,) int64
    scores: np.ndarray     # (n,) float32
    extra: Raw             # (channels, cells): mask coefficients, key points or the angle
    cells: np.ndarray      # (n,) int64: the column of `extra` that belongs to each box

    def select(self, index: np.ndarray) -> Found:
        return self._replace(boxes=self.boxes[index], classes=self.classes[index],
                             scores=self.scores[index], cells=self.cells[index])

    def extra_of(self, index: np.ndarray) -> np.ndarray:
        """The values of `extra` of some boxes: (n, channels) float32."""
        return self.extra.columns(self.cells[index]).floats().T


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Detect the objects of a frame (h, w, 3) uint8 BGR, draw them on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: Picture) -> Detections:
    """The objects of a frame, in pixels of the frame, best first; with masks, key points or corners
    if the model has them.

    rknn_lite: a context of the pool; IMG: a Frame or (h, w, 3) uint8 BGR. Corners of rotated boxes,
    and the boxes around them, may reach beyond the frame. Objects with an empty mask are left out.
    Raises ModelError if the model cannot be run or read; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model, iou=NMS_THRESH)
    image, placement = letterbox(IMG, settings.size)
    outputs = infer_raw(rknn_lite, image)
    shapes = [output.shape for output in outputs]
    layout = layout_of(model, shapes)
    if layout is None:
        w, h = settings.size
        raise unknown_outputs(shapes, f"funcs/ultralytics.py reads Ultralytics' exports at {w} x "
                              f"{h} pixels, for example (1, 84, {_cells(settings.size)[0]})")
    if layout.kind == "yolov5":
        settings = settings_of(model)
    elif layout.kind == "rows" and layout.task != "obb":
        settings = settings._replace(iou=1.0)
    relative = bool(getattr(model, "relative", False))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # values of a broken model
        found = decode(outputs[layout.boxes], layout, settings, relative)
        detections = _finish(found, layout, outputs, settings, placement, IMG, relative)
    detections.names = names_with_keypoints(model, layout.classes or None, layout.points)
    return detections


def reads(model: Any) -> bool:
    """True if a model's outputs have one of the layouts above."""
    return layout_of(model) is not None


def classes_of(model: Any) -> Optional[int]:
    """The number of classes of a model, from its outputs; None if they do not say it."""
    layout = layout_of(model)
    return layout.classes or None if layout else None


def warning(model: Any) -> Optional[str]:
    """A sentence for the user if the task had to be guessed and may be another one, else None."""
    layout = layout_of(model)
    if (layout is None or _task_of(model) or layout.task == "segment"
            or layout.kind != "columns"):
        return None
    names = len(getattr(model, "names", None) or COCO_CLASSES)
    usual = {"pose": (1, 17), "detect": (names, 0)}.get(layout.task)
    if (layout.classes, layout.points) == usual:
        return None
    points = f" and {layout.points} key points" if layout.points else ""
    return (f"{model.path}: its metadata does not contain the task, so its outputs, "
            f"{model.outputs[layout.boxes][1]}, are decoded as {layout.task} with "
            f"{layout.classes} classes{points}. If this is wrong, put the metadata.yaml "
            "of Ultralytics' export, with task (and kpt_shape), beside it.")


# ---- which layout ----

def layout_of(model: Any, shapes: Optional[Sequence[Shape]] = None) -> Optional[Layout]:
    """The Layout of a model's outputs, or None.

    model: a Model, or None if nothing is known; shapes: of its outputs, if they are at hand.
    """
    if shapes is None:
        shapes = [shape for _, shape in model.outputs]
    metadata = getattr(model, "metadata", {})
    name = os.path.basename(getattr(model, "path", "")).lower()
    about = [name, *(str(metadata.get(key, "")).lower() for key in ("head", "description"))]
    if any(re.search("rt-?detr", text) for text in about):  # its rows only look like end2end's
        return None
    points = metadata.get("kpt_shape")
    points = tuple(points) if isinstance(points, (list, tuple)) and len(points) == 2 else None
    names = getattr(model, "names", None)
    return layout_of_shapes(shapes, settings_of(model).size, _task_of(model),
                            len(names) if names else None, points)


def _task_of(model: Any) -> Optional[str]:
    """The task, from the model or else from its file's name."""
    if getattr(model, "task", None):
        return model.task
    in_name = re.search("seg|pose|obb", os.path.basename(getattr(model, "path", "")).lower())
    return {"seg": "segment"}.get(in_name[0], in_name[0]) if in_name else None


def layout_of_shapes(shapes: Sequence[Shape], size: Tuple[int, int], task: Optional[str] = None,
                     names: Optional[int] = None, points: Optional[Tuple[int, int]] = None
                     ) -> Optional[Layout]:
    """The Layout of outputs with these shapes, or None.

    size: (width, height) of the input; task, names (how many), points (number of key points, values
    of each): None if the model does not say it. Then they are guessed. A dimension of 0 is open: an
    export with dynamic=True.
    """
    if task not in (None, *TASKS):
        return None
    shapes = [tuple(shape[:3] if shape[3:] == (1,) else shape) for shape in shapes]
    found = _find_boxes(shapes)
    if found is None:
        return None
    boxes, coefficients = found
    if coefficients and task is None:
        task = "segment"
    if bool(coefficients) != (task == "segment"):
        return None
    if shapes[boxes][1:] == (0, 0):  # detect() looks again when it has the outputs
        return Layout(task, "rows", 0, 0, 0, boxes) if task else None
    kind, values = _kind_of(shapes[boxes], size, names)
    task = task or _guess_task(kind, values, names, points)
    if not kind or kind == "yolov5" and task != "detect":
        return None
    if task == "pose":
        points = points or _guess_points(_without_scores(kind, values, names))
    else:
        points = (0, 0)
    if points is None:
        return None
    classes = values - {"segment": coefficients, "obb": 1}.get(task, points[0] * points[1])
    fits = classes == 0 if kind == "rows" else classes > 0
    return Layout(task, kind, classes, *points, boxes) if fits else None


def _find_boxes(shapes: Sequence[Shape]) -> Optional[Tuple[int, int]]:
    """The index of the output with the boxes, and the number of mask coefficients, which is 0
    without an output of prototypes. None for other outputs."""
    boxes = [index for index, shape in enumerate(shapes) if len(shape) == 3 and shape[0] == 1]
    if len(boxes) != 1 or len(shapes) > 2:
        return None
    if len(shapes) == 1:
        return boxes[0], 0
    prototypes = shapes[1 - boxes[0]]
    return (boxes[0], prototypes[1]) if len(prototypes) == 4 and prototypes[1] else None


def _kind_of(shape: Shape, size: Tuple[int, int], names: Optional[int]) -> Tuple[str, int]:
    """The kind of an output, see Layout, and how many values each box has besides its coordinates
    and besides objectness (yolov5) or score and class (rows). The kind of other outputs is ""."""
    _, first, last = shape
    cells = _cells(size)
    if first == 0 and names and last == 5 + names or first in [3 * count for count in cells]:
        return "yolov5", last - 5
    if last in (0, *cells):
        return "columns", first - 4
    if first <= MAX_ROWS and last < 6 + 3 * MAX_POINTS:
        return "rows", last - 6
    return "", 0


def _cells(size: Tuple[int, int]) -> Sequence[int]:
    """How many cells the heads of a model can have."""
    return [cell_count(size, strides) for strides in STRIDES]


def _guess_task(kind: str, values: int, names: Optional[int], points: Optional[Tuple[int, int]]
                ) -> str:
    """The task of a model without prototypes that does not say it. values: see _kind_of()."""
    if kind == "yolov5":
        return "detect"
    rest = _without_scores(kind, values, names)
    count, each = points or COCO_POINTS
    if rest == count * each:
        return "pose"
    if rest == 1 and (names or kind == "rows"):  # without names, it may be a second class
        return "obb"
    return "detect"


def _without_scores(kind: str, values: int, names: Optional[int]) -> int:
    """How many of a box's values are no class scores. Rows have no scores, because they contain
    the best class. Without names, one class is assumed."""
    return values if kind == "rows" else values - (names or 1)


def _guess_points(values: int) -> Optional[Tuple[int, int]]:
    """(key points, values of each) from the number of values of all."""
    if values < 2 or values % 3 and values % 2:
        return None
    return (values // 3, 3) if values % 3 == 0 else (values // 2, 2)


# ---- decoding ----

def decode(output: Raw, layout: Layout, settings: Settings, relative: bool = False) -> Found:
    """The boxes of one output, before NMS.

    relative: coordinates are fractions of the input's width and height, not pixels. Coordinates
    that all lie in 0..2 always count as relative, because no object is that small.
    """
    output = output.reshape(*output.shape[1:3])
    read = {"columns": _columns, "rows": _rows, "yolov5": _yolov5}[layout.kind]
    found = read(output, layout, settings)
    boxes = found.boxes
    if relative or len(boxes) and boxes.max() <= 2:
        boxes = boxes * np.array(settings.size * 2, np.float32)
    found = found._replace(boxes=boxes, scores=as_scores(found.scores))
    if layout.kind == "rows" or layout.task == "obb":
        return found
    # YOLO26 may give boxes without a size, for which OpenCV's NMS would suppress all others.
    found = found.select(np.flatnonzero((boxes[:, 2:] > 0).all(1)))
    centre, half = found.boxes[:, :2], found.boxes[:, 2:] / 2
    return found._replace(boxes=np.concatenate([centre - half, centre + half], 1))


def _columns(output: Raw, layout: Layout, settings: Settings) -> Found:
    scores = output.part(np.s_[4:4 + layout.classes])                   # (classes, cells)
    # The best class alone rules out nearly all cells. Only the others are computed.
    cells = np.flatnonzero(scores.highest() >= scores.threshold(settings.conf))
    values = scores.columns(cells).floats()
    boxes = output.part(np.s_[:4]).columns(cells).floats().T
    extra = output.part(np.s_[4 + layout.classes:])
    return Found(boxes, values.argmax(0), values.max(0), extra, cells)


def _rows(output: Raw, layout: Layout, settings: Settings) -> Found:
    columns = output._replace(stored=output.stored.T)                   # (6 + extra, rows)
    cells = np.flatnonzero(columns.stored[4] >= columns.threshold(settings.conf))
    values = columns.part(np.s_[:6]).columns(cells).floats()
    classes = np.round(np.nan_to_num(values[5])).astype(np.int64)
    return Found(values[:4].T, classes, values[4], columns.part(np.s_[6:]), cells)


def _yolov5(output: Raw, layout: Layout, settings: Settings) -> Found:
    cells = np.flatnonzero(output.stored[:, 4] >= output.threshold(settings.conf))
    values = output.part(cells).floats()                                # (n, 5 + classes)
    scores = values[:, 4] * values[:, 5:].max(1)
    found = Found(values[:, :4], values[:, 5:].argmax(1), scores, output, cells)
    return found.select(np.flatnonzero(scores >= settings.conf))


def _finish(found: Found, layout: Layout, outputs: Sequence[Raw], settings: Settings,
            placement: Placement, IMG: Picture, relative: bool) -> Detections:
    """NMS, and everything in pixels of the frame."""
    if layout.task == "obb":
        return _rotated(found, layout, settings, placement)
    best = nms(found.boxes, found.classes, found.scores, settings)
    boxes = unletterbox(found.boxes[best], placement, IMG)
    classes, scores = found.classes[best], found.scores[best]
    if layout.task == "segment":
        prototypes = outputs[1 - layout.boxes]
        masks = masks_of(found.extra_of(best), prototypes, boxes, settings.size, placement)
        detections = Detections(boxes, classes, scores, masks=masks)
        return detections.select(np.array([mask.any() for _, _, mask in masks], bool))
    if layout.task == "pose":
        points = found.extra_of(best).reshape(len(best), layout.points, layout.values)
        if relative or points.size and np.nanmax(np.abs(points[..., :2])) <= 2:
            points[..., :2] *= np.array(settings.size, np.float32)
        keypoints = unletterbox_keypoints(points, placement, IMG.shape)
        return Detections(boxes, classes, scores, keypoints=keypoints).inside_frame()
    return Detections(boxes, classes, scores).inside_frame()


def _rotated(found: Found, layout: Layout, settings: Settings, placement: Placement) -> Detections:
    angles = found.extra_of(np.arange(len(found.cells)))[:, 0]
    rotated = np.column_stack([found.boxes, angles])
    if layout.kind == "rows":
        best = best_first(rotated, found.classes, found.scores, settings)[:MAX_BOXES]
    else:
        best = rotated_nms(rotated, found.classes, found.scores, settings)
    corners = unletterbox_corners(corners_of(found.boxes[best], angles[best]), placement)
    around = np.concatenate([corners.min(1), corners.max(1)], 1)
    return Detections(around, found.classes[best], found.scores[best], corners=corners)
