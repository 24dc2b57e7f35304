"""myFunc for heads of Rockchip's model zoo that give more than boxes: masks (YOLOv5, YOLOv8, YOLO11), key points and
rotated boxes (YOLOv8, YOLO11).

    python main.py street.mp4 --model yolov8n-seg.rknn

Layouts, for each stride s = 8, 16, 32, with h / s rows and w / s columns, n cells in all:

    seg, v8 and 11   (1, 64, ., .), (1, classes, ., .), in most exports (1, 1, ., .), as funcs/yolov8.py has them,
                     (1, 32, ., .) mask coefficients; and at the end prototypes (1, 32, h / 4, w / 4)
    seg, v5          (1, 3 (5 + classes), ., .), as func.py has it, (1, 3 * 32, ., .); prototypes
    pose             (1, 64 + classes, ., .), the scores before the sigmoid; at the end key points (1, k, 3, n), x and y
                     in pixels of the input, visibility
    obb              (1, 64 + classes, ., .), as pose; at the end (1, 1, n), the angle as (angle / pi + 0.25), after a
                     sigmoid; the box's centre lies off the cell's by half the difference of its sides, turned

They are written down from the zoo's examples (airockchip/rknn_model_zoo, examples/yolov5_seg, yolov8_seg, yolov8_pose,
yolov8_obb, *.py; its yolo11's pose and obb are taken to be the same), and tried with heads that the tests build from
the demo models' detections. None was tried with a file of the zoo. Rotated boxes are suppressed by ProbIoU, where the
zoo has the overlap of the polygons.
"""
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import func
from func import Detections, ModelError, Raw, draw
from funcs import geometry, rockchip, yolov8
from rknnmodel import Model

SIDES = 4 * yolov8.BINS


class Layout(NamedTuple):
    """How outputs are read, from layout()."""
    task: str                               # "segment", "pose", "obb"
    groups: List[Tuple[int, List[int]]]     # (stride, places of its outputs), strides rising
    last: int                               # the place of prototypes, key points or angle
    anchors: bool                           # YOLOv5's
    classes: int


def layout(model: Any, shapes: rockchip.Shapes) -> Optional[Layout]:
    """The Layout of outputs of these shapes, None where it is another one."""
    shapes, size, task = [tuple(shape) for shape in shapes], func.settings(model).size, getattr(model, "task", None)
    if len(shapes) not in (4, 7, 10, 13):
        return None
    last, cells = shapes[-1], sum(size[0] // stride * (size[1] // stride) for stride in rockchip.STRIDES)
    groups = rockchip.by_stride(shapes[:-1], size, (len(shapes) - 1) // 3)
    channels = {tuple(shapes[place][1] for place in places) for _, places in groups or ()}
    if len(channels) != 1:
        return None
    channels, place = channels.pop(), len(shapes) - 1
    if len(shapes) == 4:
        what = ("obb" if last in ((1, 1, cells), (1, 1, 1, cells)) else
                "pose" if len(last) == 4 and last[0] == 1 and last[2:] == (3, cells) else None)
        found = Layout(what, groups, place, False, channels[0] - SIDES)
    elif len(last) != 4 or last[0] != 1:
        return None
    elif len(shapes) == 7:
        good = channels[0] % 3 == 0 and channels[1] == 3 * last[1]
        found = Layout("segment" if good else None, groups, place, True, channels[0] // 3 - 5)
    else:
        good = channels[0] == SIDES and channels[-1] == last[1] and channels[2:-1] in ((), (1,))
        found = Layout("segment" if good else None, groups, place, False, channels[1])
    return found if found.task and task in (None, found.task) and found.classes > 0 else None


def reads(model: Model) -> bool:
    """Whether a model's outputs have one of the layouts above."""
    return layout(model, [shape for _, shape in model.outputs]) is not None


def anchored(heads: Sequence[Tuple[int, Raw]], classes: int, wanted: func.Settings
             ) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) xyxy in pixels of the model's input, classes (n,), scores (n,) and places (n,) of YOLOv5's heads, as
    gathered() counts places. heads: (stride, (1, 3 (5 + classes), rows, columns) as func.infer_raw() gives it), strides
    rising."""
    found, start = [], 0
    planes = [(stored.reshape(3, 5 + classes, -1).transpose(1, 0, 2), scale, zero)
              for _, (stored, scale, zero) in heads]
    sigmoid = func.before_sigmoid([(stored[4], scale, zero) for stored, scale, zero in planes])
    least = func.logit(wanted.conf) if sigmoid else wanted.conf
    for (stride, (head, _, _)), (stored, scale, zero) in zip(heads, planes):
        cells = stored.shape[2]
        passed = np.flatnonzero(stored[4] >= func.raw_threshold(least, scale, zero, stored.dtype))
        anchor, cell = np.divmod(passed, cells)
        good = func.floats(stored[:, anchor, cell], scale, zero)
        good = 1 / (1 + np.exp(-good)) if sigmoid else good  # (5 + classes, n)
        row, column = np.divmod(cell, head.shape[3])
        centre = (2 * good[:2] - np.float32(0.5) + np.stack([column, row]).astype(np.float32)) * np.float32(stride)
        half = 2 * good[2:4] ** 2 * np.float32(func.ANCHORS[stride]).T[:, anchor]
        found.append((np.concatenate([centre - half, centre + half]), good[5:].argmax(0), good[4] * good[5:].max(0),
                      start + anchor * cells + cell))
        start += 3 * cells
    boxes, numbers, scores, places = (np.concatenate(part, -1) for part in zip(*found))
    passed = scores >= wanted.conf
    return boxes.T[passed], numbers[passed], scores[passed], places[passed]


def gathered(tensors: Sequence[Raw], blocks: int, places: np.ndarray) -> np.ndarray:
    """What stands at some places of outputs (1, blocks * channels, rows, columns), one for each stride, rising: (n,
    channels) float32. Places count all cells of the first stride, block by block, then those of the next."""
    start, found = 0, None
    for stored, scale, zero in tensors:
        values = stored.reshape(blocks, stored.shape[1] // blocks, -1)  # (blocks, channels, cells)
        if found is None:
            found = np.empty((len(places), values.shape[1]), np.float32)
        end = start + blocks * values.shape[2]
        mine = np.flatnonzero((places >= start) & (places < end))
        block, cell = np.divmod(places[mine] - start, values.shape[2])
        found[mine] = func.floats(values[block, :, cell], scale, zero)
        start = end
    return found


def detect(rknn_lite: Any, IMG: np.ndarray) -> Detections:
    """Find the objects of a frame, with masks, key points or corners: arguments, results and errors are
    funcs/ultralytics.py's."""
    model = getattr(rknn_lite, "model", None)
    wanted = func.settings(model)
    square, placed = func.letterbox(IMG, wanted.size)
    outputs = func.infer_raw(rknn_lite, square)
    shapes = [np.shape(stored) for stored, _, _ in outputs]
    plan = layout(model, shapes)
    if plan is None:
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, shapes))}, but "
                         f"funcs/rockchip_more.py reads Rockchip's YOLOv5, YOLOv8 and YOLO11 with masks, key points or "
                         f"rotated boxes at {wanted.size[0]} x {wanted.size[1]} pixels")
    names = geometry.names_of(model, plan.classes, shapes[-1][1] if plan.task == "pose" else 0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # of a broken model
        if plan.task == "obb":
            return _rotated(outputs, plan, wanted, placed, names)
        if plan.anchors:
            boxes, classes, scores, places = anchored(
                [(stride, outputs[at[0]]) for stride, at in plan.groups], plan.classes, wanted)
        else:
            cells = rockchip.anchor_free(_heads(outputs, plan), wanted)
            boxes, classes, scores, places = cells.boxes(), cells.classes, cells.scores, cells.places
        stay = func.suppress(boxes, classes, scores, wanted)
        boxes = func.unletterbox(boxes[stay], placed, IMG)
        detections = Detections(boxes, classes[stay], scores[stay], names)
        if plan.task == "pose":
            stored, scale, zero = outputs[plan.last]
            points = func.floats(stored.reshape(stored.shape[1], 3, -1)[..., places[stay]], scale, zero)  # (k, 3, n)
            detections.keypoints = geometry.keypoints(points.transpose(2, 0, 1), placed, IMG.shape)
            return detections.select((boxes[:, 2:] > boxes[:, :2]).all(1))
        weights = gathered([outputs[at[-1]] for _, at in plan.groups], 3 if plan.anchors else 1, places[stay])
        detections.masks = geometry.masks(weights, outputs[plan.last], boxes, wanted.size, placed)
        return detections.select([x for x, (_, _, mask) in enumerate(detections.masks) if mask.any()])


def _heads(outputs: Sequence[Raw], plan: Layout) -> List[Tuple[int, Raw, Raw]]:
    """(stride, sides, scores) of each stride: two outputs, or two parts of one."""
    if plan.task == "segment":
        return [(stride, outputs[at[0]], outputs[at[1]]) for stride, at in plan.groups]
    return [(stride, (stored[:, :SIDES], scale, zero), (stored[:, SIDES:], scale, zero))
            for stride, (stored, scale, zero) in ((stride, outputs[at[0]]) for stride, at in plan.groups)]


def _rotated(outputs: Sequence[Raw], plan: Layout, wanted: func.Settings, placed: func.Placed, names: func.Names
             ) -> Detections:
    cells = rockchip.anchor_free(_heads(outputs, plan), wanted)
    stored, scale, zero = outputs[plan.last]
    angles = (func.floats(stored.reshape(-1)[cells.places], scale, zero) - np.float32(0.25)) * np.float32(np.pi)
    off = (cells.sides[2:] - cells.sides[:2]) / 2
    cos, sin = np.cos(angles), np.sin(angles)
    centres = cells.centres + np.stack([off[0] * cos - off[1] * sin, off[0] * sin + off[1] * cos])
    boxes = (np.concatenate([centres, cells.sides[:2] + cells.sides[2:]]) * cells.strides).T
    stay = geometry.suppress(np.column_stack([boxes, angles]), cells.classes, cells.scores, wanted)
    corners = geometry.unletterbox(geometry.corners(boxes[stay], angles[stay]), placed)
    around = np.concatenate([corners.min(1), corners.max(1)], 1)
    return Detections(around, cells.classes[stay], cells.scores[stay], names, corners=corners)


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return draw(IMG, detect(rknn_lite, IMG))
