"""myFunc for what Ultralytics' own exporter writes: objects, masks, key points, rotated boxes.

    yolo export model=yolo11n.pt format=rknn name=rk3588          # on a PC; format=onnx for the PC itself
    python main.py street.mp4 --model yolo11n_rknn_model          # on the board

Layouts, for a width w and a height h of the input and n cells, (w / s) (h / s) of them for each stride s:

    detect     (1, 4 + classes, n): x and y of the box's centre, its width and height, class scores after the sigmoid
    segment    (1, 4 + classes + 32, n), the last 32 being mask coefficients, and prototypes (1, 32, h / 4, w / 4)
    pose       (1, 4 + classes + k d, n): for each of k key points x, y and, where d is 3, visibility after the sigmoid
    obb        (1, 4 + classes + 1, n): the box before its rotation, and the angle in radians at the end
    end2end    (1, 300, 6 + the same more): x1, y1, x2, y2 (obb: x, y, width, height), score, class; NMS is not needed
    YOLOv5     (1, 3 n, 5 + classes), of its own repository: as detect, but with an objectness before the classes

in pixels of the input or, in int8, divided by its width and height (ultralytics 8.4.190; read from its exports). Each
was compared with its predict(): tests/compare_ultralytics.py, models/README.md. YOLOv5's own was built by the tests.
Classifiers are funcs/resnet.py's.
"""
import functools
import os
import re
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import func
from func import Detections, ModelError
from funcs import geometry

# --------------------------------------------------------------------------------------------------------------------
NMS_THRESH = 0.7    # as Ultralytics' predict
STRIDES = (8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32)
# --------------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How a model's outputs are read, from layout()."""
    task: str
    kind: str              # "columns": (1, channels, n); "rows": end2end; "yolov5"
    classes: int           # 0: not told by the shapes (rows)
    points: int            # key points of each object
    values: int            # of each key point, 2 or 3
    boxes: int             # the place of the output with boxes; the other one has the prototypes


def reads(model: Any) -> bool:
    """Whether a model's outputs have one of the layouts above."""
    return plan_of(model) is not None


def classes_of(model: Any) -> Optional[int]:
    """How many classes a model has by its layout, of which the shapes alone leave doubt; None where it does not say."""
    plan = plan_of(model)
    return plan and plan.classes or None


def plan_of(model: Any, found: Optional[Sequence[Tuple[int, ...]]] = None) -> Optional[Layout]:
    """The layout() of a model's outputs, by what is known of it (a rknnmodel.Model, or None) and the shapes found, or
    those that the model says."""
    if found is None:
        found = [shape for _, shape in model.outputs]
    points = getattr(model, "metadata", {}).get("kpt_shape")
    points = tuple(points) if isinstance(points, (list, tuple)) and len(points) == 2 else None
    name = os.path.basename(getattr(model, "path", "")).lower()
    about = [str(getattr(model, "metadata", {}).get(key, "")).lower() for key in ("head", "description")]
    if any(re.search("rt-?detr", text) for text in [name, *about]):  # its rows look like end2end's, and are others
        return None
    names = getattr(model, "names", None)
    return layout(tuple(map(tuple, found)), func.settings(model).size, _task(model), len(names) if names else None,
                  points)


def _task(model: Any) -> Optional[str]:
    """What the model, or its file's name, which is left of it outside its folder, says of its task."""
    told = re.search("(seg|pose|obb)", os.path.basename(getattr(model, "path", "")).lower())
    return getattr(model, "task", None) or told and {"seg": "segment"}.get(told[1], told[1])


def doubt(model: Any) -> Optional[str]:
    """A sentence for a model of which nothing says the task, where its outputs may well be those of another than the
    one that they are read as; None without such a doubt."""
    plan, names = plan_of(model), getattr(model, "names", None)
    if plan is None or _task(model) or plan.task == "segment" or plan.kind != "columns":
        return None
    usual = (1, 17) if plan.task == "pose" else (len(names or func.CLASSES), 0) if plan.task == "detect" else None
    if (plan.classes, plan.points) == usual:
        return None
    with_points = f" and {plan.points} key points" if plan.points else ""
    return (f"{model.path}: nothing says its task, so that its outputs, {model.outputs[plan.boxes][1]}, are read as "
            f"{plan.task} with {plan.classes} classes{with_points}: a metadata.yaml beside it, as Ultralytics' export "
            f"writes it, with task (and kpt_shape), would say it.")


@functools.lru_cache(maxsize=100)
def layout(found: Tuple[Tuple[int, ...], ...], size: Tuple[int, int], task: Optional[str], names: Optional[int],
           points: Optional[Tuple[int, int]] = None) -> Optional[Layout]:
    """The Layout of outputs of these shapes, None where it is another one.

    size: (width, height) of the input; task: what the model says of itself, or None; names: how many class names it
    has, or None; points: number of key points and of the values of each. What the model does not say is guessed: 56
    channels are one class and 17 key points of three values.
    """
    found = [shape[:3] if shape[3:] == (1,) else shape for shape in found]
    places = [place for place, shape in enumerate(found) if len(shape) == 3 and shape[0] == 1]
    if len(places) != 1 or len(found) > 2 or task not in (None, "detect", "segment", "pose", "obb"):
        return None
    boxes, masks = places[0], 0
    if len(found) == 2:
        masks = found[1 - boxes][1] if len(found[1 - boxes]) == 4 else 0
        if not masks or task not in (None, "segment"):
            return None
        task = "segment"
    elif task == "segment":
        return None
    _, first, last = found[boxes]
    cells = [sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides) for strides in STRIDES]
    if first == last == 0 and task:  # all left open; the outputs themselves will tell
        return Layout(task, "rows", 0, *(points or (0, 0)), boxes)
    if first == 0 and names and last == 5 + names and not masks:
        first = 3 * cells[0]
    if last in (0, *cells):  # 0: left open, as dynamic=True does
        kind, more = "columns", first - 4
    elif first in [3 * count for count in cells]:
        return Layout("detect", "yolov5", last - 5, 0, 0, boxes) if last > 5 and not masks and task in (
            None, "detect") else None
    elif last < 6 + 3 * 1000 and first <= 1000:
        kind, more = "rows", last - 6
    else:
        return None
    if task is None:
        left = more - (names or 0)
        named = names and kind == "columns"
        # a number of names that fits nothing is no reason to see key points
        task = ("pose" if (more, kind) in ((52, "columns"), (51, "rows")) and names in (None, 1) or named and left == 51
                or points and kind == "columns" and left == points[0] * points[1] else
                "obb" if kind == "rows" and more == 1 or named and left == 1 else "detect")
    extra = {"detect": 0, "segment": masks, "obb": 1}.get(task)
    if task == "pose":
        extra = points[0] * points[1] if points else more - (names or 1) * (kind == "columns")
        points = points or (extra // 3, 3) if points or extra % 3 == 0 else (extra // 2, 2)
        if extra < 2 or extra != points[0] * points[1]:
            return None
    classes = more - extra
    if classes < 1 if kind == "columns" else classes != 0:
        return None
    return Layout(task, kind, classes, *(points if task == "pose" else (0, 0)), boxes)


class Found(NamedTuple):
    """What decode() finds, before NMS."""
    boxes: np.ndarray      # (n, 4) float32, in pixels of the input: xyxy; of rotated boxes x, y, width, height
    classes: np.ndarray    # (n,) int64
    scores: np.ndarray     # (n,) float32
    more: np.ndarray       # (channels, cells) stored values: mask coefficients, key points or angle
    cells: np.ndarray      # (n,) int64: the column of `more` of each


def decode(output: func.Raw, plan: Layout, wanted: func.Settings, relative: bool = False) -> Found:
    """Boxes of one output, before NMS.

    output: (array, scale, zero point) as func.infer_raw() gives it, of one of the layouts above; plan: its layout();
    wanted: func.settings(); relative: coordinates are in 0..1, and not pixels; those that all lie in 0..2 are taken for
    such in any case, for no object is as small.
    """
    stored, scale, zero = output
    stored = stored.reshape(stored.shape[1:3])
    if plan.kind == "columns":
        past = 4 + plan.classes
        # The best class alone rules out nearly all cells; only those left are gathered and computed.
        best = highest(stored[4:past])
        cells = np.flatnonzero(best >= func.raw_threshold(wanted.conf, scale, zero, best.dtype))
        good = stored[:past].take(cells, 1)  # (4 + classes, n)
        best = best[cells]
        classes = (good[4:] == best).argmax(0)  # of int8 twice as fast as to search the highest again
        scores = func.floats(best, scale, zero)
        good = func.floats(good[:4], scale, zero)
    elif plan.kind == "yolov5":
        past, stored = 5 + plan.classes, stored.T
        objectness = np.ascontiguousarray(stored[4])
        cells = np.flatnonzero(objectness >= func.raw_threshold(wanted.conf, scale, zero, stored.dtype))
        good = func.floats(stored[:, cells], scale, zero)  # (5 + classes, n)
        classes, scores = good[5:].argmax(0), good[4] * good[5:].max(0)
        cells, good, classes, scores = _pick(scores >= wanted.conf, cells, good, classes, scores)
    else:
        past, stored = 6, stored.T
        cells = np.flatnonzero(stored[4] >= func.raw_threshold(wanted.conf, scale, zero, stored.dtype))
        good = func.floats(stored[:6, cells], scale, zero)
        scores, classes = good[4], np.round(np.nan_to_num(good[5])).astype(np.int64)
    scores = func.as_scores(scores, False)  # what is above 1 is none, and goes
    boxes = good[:4]
    if relative or len(cells) and boxes.max() <= 2:
        boxes = boxes * np.float32(wanted.size * 2)[:, np.newaxis]
    if plan.kind != "rows" and plan.task != "obb":
        half = boxes[2:] / 2
        if len(cells) and half.min() <= 0:  # YOLO26 may give such; OpenCV's NMS would have them suppress all others
            half, boxes, classes, scores, cells = _pick((half > 0).all(0), half, boxes, classes, scores, cells)
        boxes = np.concatenate([boxes[:2] - half, boxes[:2] + half])
    return Found(boxes.T, classes, scores, stored[past:], cells)


def highest(scores: np.ndarray) -> np.ndarray:
    """The highest of each column of scores (classes, n), stored values, none of them negative in float16."""
    if scores.dtype == np.float16:  # NumPy is slow with these; of those that are not negative the bits have their order
        return np.maximum.reduce(scores.view(np.int16), 0).view(np.float16)
    return np.maximum.reduce(scores, 0)


def _pick(index: np.ndarray, *arrays: np.ndarray) -> List[np.ndarray]:
    places = np.flatnonzero(index)
    return [array[..., places] for array in arrays]


def detect(rknn_lite: Any, IMG: np.ndarray) -> Detections:
    """Find the objects of a frame, with masks, key points or corners where the model has them.

    rknn_lite: an RKNNLite context, which may have a `model`; IMG: (h, w, 3) uint8 BGR, or as func.as_bgr() takes it.
    Returns at most func.MAX_BOXES Detections in pixels of the frame. Boxes and key points are cut to the frame;
    corners of rotated boxes, and the boxes around them, may reach beyond it. What has an empty mask is left out.
    Raises ModelError where the model cannot be run or read, ValueError where IMG is no frame.
    """
    model = getattr(rknn_lite, "model", None)
    wanted = func.settings(model, NMS_THRESH)
    square, placed = func.letterbox(IMG, wanted.size)
    outputs = func.infer_raw(rknn_lite, square)
    found = [np.shape(output[0]) for output in outputs]
    plan = plan_of(model, found)
    if plan is None:
        w, h = wanted.size
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, found))}, but funcs/ultralytics.py "
                         f"reads Ultralytics' exports at {w} x {h} pixels, for example (1, 84, "
                         f"{sum(w // stride * (h // stride) for stride in STRIDES[0])})")
    if plan.kind == "yolov5":
        wanted = func.settings(model)
    relative = bool(getattr(model, "relative", False))
    names = geometry.names_of(model, plan.classes or None, plan.points)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # of a broken model
        one = decode(outputs[plan.boxes], plan, wanted, relative)
        more = functools.partial(_more, outputs[plan.boxes], one)
        if plan.task == "obb":
            angles = more(np.arange(len(one.cells)))[0]
            stay = geometry.suppress(np.column_stack([one.boxes, angles]), one.classes, one.scores, wanted,
                                   plan.kind == "rows")
            corners = geometry.unletterbox(geometry.corners(one.boxes[stay], angles[stay]), placed)
            boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
            return Detections(boxes, one.classes[stay], one.scores[stay], names, corners=corners)
        stay = (func.suppress(one.boxes, one.classes, one.scores, wanted._replace(iou=1.0)) if plan.kind == "rows" else
                func.suppress(one.boxes, one.classes, one.scores, wanted))
        boxes = func.unletterbox(one.boxes[stay], placed, IMG)
        detections = Detections(boxes, one.classes[stay], one.scores[stay], names)
        if plan.task == "pose":
            detections.keypoints = _keypoints(more(stay), plan, relative, wanted.size, placed, IMG.shape)
        if plan.task == "segment":
            detections.masks = geometry.masks(more(stay).T, outputs[1 - plan.boxes], boxes, wanted.size, placed)
            return detections.select([x for x, (_, _, mask) in enumerate(detections.masks) if mask.any()])
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)  # and not beside the frame, on the grey
    return detections if seen.all() else detections.select(seen)


def _more(output: func.Raw, found: Found, places: np.ndarray) -> np.ndarray:
    """What stands in an output behind the classes, of those at some places: (channels, n) float32."""
    return func.floats(found.more[:, found.cells[places]], *output[1:])


def _keypoints(values: np.ndarray, plan: Layout, relative: bool, size: Tuple[int, int], placed: func.Placed,
               shape: Sequence[int]) -> np.ndarray:
    values = values.T.reshape(-1, plan.points, plan.values)
    if relative or values.size and np.nanmax(np.abs(values[..., :2])) <= 2:
        values[..., :2] *= np.float32(size)
    return geometry.keypoints(values, placed, shape)


draw = func.draw


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return draw(IMG, detect(rknn_lite, IMG))
