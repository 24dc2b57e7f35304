"""myFunc for other detectors of Rockchip's model zoo: YOLOv6, PP-YOLOE, YOLO26, YOLOv7, YOLOX.

    python main.py street.mp4 --model yolov6n.rknn

YOLOv5 is read by func.py; YOLOv8, YOLO11 and YOLOv10 by funcs/yolov8.py; masks, key points and
rotated boxes by funcs/rockchip_seg_pose_obb.py. The layouts, for each stride s = 8, 16, 32, with
height / s rows and width / s columns:

    YOLOv6    (1, 4, rows, columns), distances from the cell's centre to the left, top, right and
              lower side of the box, in strides, or (1, 68, rows, columns), four distributions over
              17 bins; (1, classes, rows, columns), scores after the sigmoid or before it; in most
              exports (1, 1, rows, columns), their sum
    PP-YOLOE  as YOLOv6 with 68 channels
    YOLO26    as YOLOv6 with 4 channels: its heads without the end that selects the best boxes
    YOLOv7    as YOLOv5 with other anchors; the file's name must contain "yolov7"
    YOLOX     (1, 5 + classes, rows, columns): x and y from the cell's corner in strides, logarithms
              of width and height in strides, objectness, classes, both after the sigmoid. Its input
              is 0..255: convert the model, or mark its .onnx, with models/convert.py --std 1 1 1

They were written from the zoo's examples (airockchip/rknn_model_zoo, examples/yolov6, ppyoloe,
yolov7, yolox) and tested with outputs that the tests compute from the demo models' detections, not
with files of the zoo.
"""
from __future__ import annotations

import os
from typing import Any, Optional, Sequence, Tuple

import numpy as np

from funcs import yolov5, yolov8
from vision.detections import Detections
from vision.drawing import draw
from vision.frame import Picture
from vision.heads import Groups, Head, Shapes, decode_cells, group_by_stride
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import letterbox, unletterbox
from vision.nms import nms
from vision.quantised import Raw, as_raw, as_scores
from vision.settings import Settings, names_of, settings_of

FRAMES = True       # detect() takes frames as they are: see funcs/__init__.py
YOLOV7_ANCHORS = {  # stride: width and height of three anchors in pixels of the model's input
    8: ((12, 16), (19, 36), (40, 28)),
    16: ((36, 75), (76, 55), (72, 146)),
    32: ((142, 110), (192, 243), (459, 401)),
}
YOLOV6_SIDES = 4, 4 * 17    # channels: four distances, or distributions over 17 bins

Found = Tuple[np.ndarray, np.ndarray, np.ndarray]    # boxes (n, 4) xyxy, classes (n,), scores (n,)


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
    shapes = [output.shape for output in outputs]
    kind = kind_of(model, shapes)
    with np.errstate(over="ignore", invalid="ignore"):  # values of a broken model
        boxes, classes, scores = decode(outputs, kind, settings)
    best = nms(boxes, classes, scores, settings)
    boxes = unletterbox(boxes[best], placement, IMG)
    names = names_of(model, class_count(shapes, kind))
    return Detections(boxes, classes[best], scores[best], names).inside_frame()


def reads(model: Any) -> bool:
    """True if a model's outputs have one of the layouts above."""
    return kind_of(model, [shape for _, shape in model.outputs]) is not None


def kind_of(model: Any, shapes: Shapes) -> Optional[str]:
    """"yolov6", "yolov7" or "yolox"; None for other outputs. model: a Model, or None."""
    groups = group_by_stride(shapes, settings_of(model).size)
    if groups is None or getattr(model, "task", None) not in (None, "detect"):
        return None
    names = getattr(model, "names", None)
    count = len(names) if names else None
    if len(groups.channels) == 1:
        return _kind_of_one(model, groups.channels[0], count)
    sides, classes, *total = groups.channels
    # 64 channels of scores are rather the sides of a YOLOv8 whose scores come first.
    scores_first = classes == yolov8.SIDES and count != classes
    return "yolov6" if sides in YOLOV6_SIDES and total in ([], [1]) and not scores_first else None


def _kind_of_one(model: Any, channels: int, count: Optional[int]) -> Optional[str]:
    """The kind of a model with one output for each stride. count: of its names."""
    name = os.path.basename(getattr(model, "path", "")).lower()
    if "yolov7" in name and channels % 3 == 0 and channels > 3 * 5:
        return "yolov7"
    # YOLOv5's channels are multiples of 3, too, so these need a name or the number of classes.
    certain = "yolox" in name or channels % 3 or channels - 5 == count
    return "yolox" if channels > 5 and certain and count in (None, channels - 5) else None


def decode(outputs: Sequence[Any], kind: Optional[str], settings: Settings) -> Found:
    """Boxes (n, 4) float32 xyxy in pixels of the model's input, classes (n,) int64 and scores (n,)
    float32, before NMS.

    outputs: of infer() or infer_raw(); kind: from kind_of(). Raises ModelError if it is None.
    """
    raw = as_raw(outputs)
    shapes = [output.shape for output in raw]
    if kind == "yolov7":
        return yolov5.decode(raw, settings, YOLOV7_ANCHORS)
    groups = group_by_stride(shapes, settings.size)
    if kind is None or groups is None:
        w, h = settings.size
        raise unknown_outputs(shapes, "funcs/rockchip.py reads YOLOv6, PP-YOLOE, YOLO26, YOLOv7 "
                                      f"and YOLOX at {w} x {h} pixels")
    if kind == "yolox":
        return decode_yolox(raw, groups, settings)
    heads = [Head(stride, raw[index], raw[index + 1]) for stride, index in groups.first.items()]
    cells = decode_cells(heads, settings)
    return cells.boxes(), cells.classes, cells.scores


def decode_yolox(outputs: Sequence[Raw], groups: Groups, settings: Settings) -> Found:
    """decode() for YOLOX."""
    found = []
    for stride, index in groups.first.items():
        output = outputs[index]
        cells = output.reshape(output.shape[1], -1)                      # (5 + classes, cells)
        passed = np.flatnonzero(cells.stored[4] >= cells.threshold(settings.conf))
        values = cells.columns(passed).floats().T                 # (n, 5 + classes)
        row, column = np.divmod(passed, output.shape[3])
        centre = (values[:, :2] + np.column_stack([column, row])) * stride
        half = np.exp(np.minimum(values[:, 2:4], 20)) * stride / 2
        boxes = np.concatenate([centre - half, centre + half], 1)
        scores = as_scores(values[:, 4] * values[:, 5:].max(1))
        found.append((boxes, values[:, 5:].argmax(1), scores))
    boxes, classes, scores = (np.concatenate(part) for part in zip(*found))
    good = scores >= settings.conf
    return boxes[good].astype(np.float32), classes[good], scores[good]


def classes_of(model: Any) -> Optional[int]:
    """The number of classes of a model, from its outputs; None if reads(model) is False."""
    shapes = [shape for _, shape in model.outputs]
    kind = kind_of(model, shapes)
    return class_count(shapes, kind) if kind else None


def class_count(shapes: Shapes, kind: Optional[str]) -> int:
    if kind == "yolov7":
        return yolov5.class_count(shapes[0])
    return shapes[0][1] - 5 if kind == "yolox" else shapes[1][1]
