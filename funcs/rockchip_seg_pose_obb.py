"""myFunc for models of Rockchip's zoo with more than boxes: masks (YOLOv5, YOLOv8, YOLO11), key
points and rotated boxes (YOLOv8, YOLO11).

    python main.py street.mp4 --model yolov8n-seg.rknn

The layouts, for each stride s = 8, 16, 32, with height / s rows, width / s columns, n cells in all:

    YOLOv8-seg   as in funcs/yolov8.py, and (1, 32, rows, columns), mask coefficients; at the end
                 prototypes (1, 32, height / 4, width / 4)
    YOLOv5-seg   as in funcs/yolov5.py, and (1, 3 * 32, rows, columns); prototypes
    YOLOv8-pose  (1, 64 + classes, rows, columns), the scores before the sigmoid; at the end key
                 points (1, k, 3, n): x and y in pixels of the model's input, visibility
    YOLOv8-obb   (1, 64 + classes, rows, columns), as pose; at the end (1, 1, n), a sigmoid from
                 which the angle is (value - 0.25) * pi

They were written from the zoo's examples (airockchip/rknn_model_zoo, examples/yolov5_seg,
yolov8_seg, yolov8_pose, yolov8_obb; YOLO11 is assumed to be the same) and tested with outputs that
the tests compute from the demo models' detections, not with files of the zoo. Rotated boxes are
suppressed by ProbIoU, where the zoo uses the overlap of the polygons.
"""
from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np

from funcs import yolov5, yolov8
from vision.detections import Detections
from vision.drawing import draw
from vision.frame import Picture
from vision.heads import STRIDES, Cells, Groups, Head, Shapes, decode_cells, group_by_stride
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import (
    Placement,
    letterbox,
    unletterbox,
    unletterbox_corners,
    unletterbox_keypoints,
)
from vision.masks import masks_of
from vision.nms import nms, rotated_nms
from vision.quantised import Raw
from vision.rotated import corners_of
from vision.settings import Names, Settings, names_with_keypoints, settings_of

FRAMES = True    # detect() takes frames as they are: see funcs/__init__.py


class Layout(NamedTuple):
    """What the outputs are; the last output has the prototypes, key points or angles."""
    task: str          # "segment", "pose" or "obb"
    groups: Groups     # all outputs but the last
    anchors: bool      # YOLOv5
    classes: int


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Detect the objects of a frame (h, w, 3) uint8 BGR, draw them on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: Picture) -> Detections:
    """The objects of a frame, with masks, key points or corners, in pixels of the frame.

    rknn_lite: a context of the pool; IMG: a Frame or (h, w, 3) uint8 BGR. Corners of rotated boxes,
    and the boxes around them, may reach beyond the frame. Raises ModelError if the model cannot be
    run or read; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model)
    image, placement = letterbox(IMG, settings.size)
    outputs = infer_raw(rknn_lite, image)
    shapes = [output.shape for output in outputs]
    layout = layout_of(model, shapes)
    if layout is None:
        w, h = settings.size
        raise unknown_outputs(shapes, "funcs/rockchip_seg_pose_obb.py reads YOLOv5, YOLOv8 and "
                                      "YOLO11 with masks, key points or rotated boxes at "
                                      f"{w} x {h} pixels")
    points = shapes[-1][1] if layout.task == "pose" else 0
    names = names_with_keypoints(model, layout.classes, points)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # values of a broken model
        if layout.task == "segment":
            return _segment(outputs, layout, settings, placement, IMG, names)
        cells = decode_cells(_split_heads(outputs, layout), settings)
        if layout.task == "obb":
            return _rotated(outputs, cells, settings, placement, names)
        return _pose(outputs, cells, settings, placement, IMG, names)


def reads(model: Any) -> bool:
    """True if a model's outputs have one of the layouts above."""
    return layout_of(model) is not None


def classes_of(model: Any) -> Optional[int]:
    """The number of classes of a model, from its outputs; None if reads(model) is False."""
    layout = layout_of(model)
    return layout.classes if layout else None


def layout_of(model: Any, shapes: Optional[Shapes] = None) -> Optional[Layout]:
    """The Layout of a model's outputs, or None.

    model: a Model, or None if nothing is known; shapes: of its outputs, if they are at hand.
    """
    if shapes is None:
        shapes = [shape for _, shape in model.outputs]
    size, task = settings_of(model).size, getattr(model, "task", None)
    groups = group_by_stride(shapes[:-1], size)
    if groups is None:
        return None
    last, channels, layout = shapes[-1], groups.channels, None
    if len(channels) == 1:
        cells = sum(size[0] // stride * (size[1] // stride) for stride in STRIDES)
        classes = channels[0] - yolov8.SIDES
        if last in ((1, 1, cells), (1, 1, 1, cells)):
            layout = Layout("obb", groups, False, classes)
        elif len(last) == 4 and last[0] == 1 and last[2:] == (3, cells):
            layout = Layout("pose", groups, False, classes)
    elif len(last) == 4 and last[0] == 1:
        if len(channels) == 2 and channels[0] % 3 == 0 and channels[1] == 3 * last[1]:
            layout = Layout("segment", groups, True, channels[0] // 3 - 5)
        elif channels[0] == yolov8.SIDES and channels[2:] in ((last[1],), (1, last[1])):
            layout = Layout("segment", groups, False, channels[1])
    return layout if layout and layout.classes > 0 and task in (None, layout.task) else None


def _segment(outputs: Sequence[Raw], layout: Layout, settings: Settings, placement: Placement,
             IMG: Picture, names: Names) -> Detections:
    step, first = len(layout.groups.channels), layout.groups.first
    found: Any
    if layout.anchors:
        heads = [outputs[index] for index in first.values()]
        found = yolov5.decode_heads(heads, list(first), settings)
        boxes = found.boxes
    else:
        found = decode_cells([Head(stride, outputs[index], outputs[index + 1])
                              for stride, index in first.items()], settings)
        boxes = found.boxes()
    best = nms(boxes, found.classes, found.scores, settings)
    boxes = unletterbox(boxes[best], placement, IMG)
    coefficients = gather([outputs[index + step - 1] for index in first.values()],
                          3 if layout.anchors else 1, found.index[best])
    masks = masks_of(coefficients, outputs[-1], boxes, settings.size, placement)
    detections = Detections(boxes, found.classes[best], found.scores[best], names, masks=masks)
    return detections.select(np.array([mask.any() for _, _, mask in masks], bool))


def _pose(outputs: Sequence[Raw], cells: Cells, settings: Settings, placement: Placement,
          IMG: Picture, names: Names) -> Detections:
    boxes = cells.boxes()
    best = nms(boxes, cells.classes, cells.scores, settings)
    every = outputs[-1].reshape(outputs[-1].shape[1], 3, -1)         # (k, 3, cells)
    points = every.part(np.s_[..., cells.index[best]]).floats()      # (k, 3, n)
    keypoints = unletterbox_keypoints(points.transpose(2, 0, 1), placement, IMG.shape)
    boxes = unletterbox(boxes[best], placement, IMG)
    return Detections(boxes, cells.classes[best], cells.scores[best], names,
                      keypoints=keypoints).inside_frame()


def _rotated(outputs: Sequence[Raw], cells: Cells, settings: Settings, placement: Placement,
             names: Names) -> Detections:
    values = outputs[-1].reshape(-1).part(cells.index).floats()
    angles = (values - np.float32(0.25)) * np.float32(np.pi)
    # The distances are those of the rotated box: its centre is half their difference away from the
    # cell's, in its own axes.
    x, y = ((cells.sides[:, 2:] - cells.sides[:, :2]) / 2).T
    cos, sin = np.cos(angles), np.sin(angles)
    centres = cells.centres + np.column_stack([x * cos - y * sin, x * sin + y * cos])
    lengths = cells.sides[:, :2] + cells.sides[:, 2:]
    boxes = np.concatenate([centres, lengths], 1) * cells.strides
    best = rotated_nms(np.column_stack([boxes, angles]), cells.classes, cells.scores, settings)
    corners = unletterbox_corners(corners_of(boxes[best], angles[best]), placement)
    around = np.concatenate([corners.min(1), corners.max(1)], 1)
    return Detections(around, cells.classes[best], cells.scores[best], names, corners=corners)


def _split_heads(outputs: Sequence[Raw], layout: Layout) -> List[Head]:
    """The heads of pose and obb, whose sides and scores share one output."""
    sides, scores = np.s_[:, :yolov8.SIDES], np.s_[:, yolov8.SIDES:]
    return [Head(stride, outputs[index].part(sides), outputs[index].part(scores))
            for stride, index in layout.groups.first.items()]


def gather(outputs: Sequence[Raw], anchors: int, index: np.ndarray) -> np.ndarray:
    """The channels of some cells: (n, channels) float32.

    outputs: (1, anchors * channels, rows, columns) for each stride; index: (n,), counted over the
    cells of all anchors of the first output, then of the next.
    """
    found = np.empty((len(index), outputs[0].shape[1] // anchors), np.float32)
    start = 0
    for output in outputs:
        values = output.reshape(anchors, found.shape[1], -1)    # (anchors, channels, cells)
        end = start + anchors * values.shape[2]
        here = np.flatnonzero((start <= index) & (index < end))
        anchor, cell = np.divmod(index[here] - start, values.shape[2])
        found[here] = values.part(np.s_[anchor, :, cell]).floats()
        start = end
    return found
