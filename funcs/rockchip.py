"""myFunc for further heads that Rockchip's model zoo exports: YOLOv6, YOLOv7, YOLOX.

    python main.py street.mp4 --model yolov6n.rknn

YOLOv5's are func.py's; those of YOLOv8, YOLO11 and YOLOv10, which are alike, are funcs/yolov8.py's (NMS, which YOLOv10
was trained to do without, then finds nothing to suppress); what has masks, key points or rotated boxes is
funcs/rockchip_more.py's. Layouts, for each stride s = 8, 16, 32, with h / s rows and w / s columns:

    YOLOv6   (1, 4, ., .) distances from the cell's centre to the left, top, right and lower side, in strides, or
             (1, 4 b, ., .) their distributions over b bins; (1, classes, ., .) scores; in most exports (1, 1, ., .),
             their sum
    YOLOv7   YOLOv5's with other anchors, so it is told by its file's name: "yolov7" has to be part of it
    YOLOX    (1, 5 + classes, ., .): x and y from the cell's corner in strides, logarithms of width and height in
             strides, objectness, classes, the latter two after the sigmoid. It takes pixels in 0..255: convert it, or
             mark the .onnx for the PC, with models/convert.py --std 1 1 1

They are written down from the zoo's examples (airockchip/rknn_model_zoo, examples/yolov6, yolov7, yolox, *.py), and
tried with heads that the tests build from the demo models' detections. None was tried with a file of the zoo.
"""
import os
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import func
from func import ModelError, Raw, draw
from funcs import yolov8
from rknnmodel import Model

# --------------------------------------------------------------------------------------------------------------------
STRIDES = (8, 16, 32)
YOLOV7 = {  # stride: three anchors' width, height in pixels of the model's input
    8: ((12, 16), (19, 36), (40, 28)),
    16: ((36, 75), (76, 55), (72, 146)),
    32: ((142, 110), (192, 243), (459, 401)),
}
# --------------------------------------------------------------------------------------------------------------------

Shapes = Sequence[Tuple[int, ...]]


def named(model: Any, word: str) -> bool:
    """Whether a word is part of a model file's name."""
    return word in os.path.basename(getattr(model, "path", "") or "").lower()


def by_stride(shapes: Shapes, size: Tuple[int, int], per_stride: int) -> Optional[List[Tuple[int, List[int]]]]:
    """Which outputs belong together: [(stride, places of `per_stride` outputs), ...], strides rising. None where they
    are not so many, in a row for each stride, of four dimensions and of the right sizes. size: (width, height)."""
    sizes = {(size[1] // stride, size[0] // stride): stride for stride in STRIDES}
    if len(shapes) != len(STRIDES) * per_stride or any(len(shape) != 4 or shape[0] != 1 for shape in shapes):
        return None
    groups = []
    for start in range(0, len(shapes), per_stride):
        sides = {shape[2:] for shape in shapes[start:start + per_stride]}
        stride = sizes.get(sides.pop()) if len(sides) == 1 else None
        groups.append((stride, list(range(start, start + per_stride))))
    return sorted(groups) if {stride for stride, _ in groups} == set(STRIDES) else None


def kind(model: Any, shapes: Shapes) -> Optional[str]:
    """"yolov6", "yolov7", "yolox", or None for other outputs."""
    shapes, size = [tuple(shape) for shape in shapes], func.settings(model).size
    names = getattr(model, "names", None)
    count = len(names) if names else None
    if getattr(model, "task", None) not in (None, "detect"):
        return None
    for per_stride in (3, 2):
        groups = by_stride(shapes, size, per_stride)
        if groups:
            channels = {tuple(shapes[place][1] for place in places) for _, places in groups}
            sides, classes, *total = next(iter(channels))
            same = len(channels) == 1 and total in ([], [1]) and classes > 0
            return "yolov6" if same and (sides == 4 or sides % 4 == 0 and sides != 4 * yolov8.BINS) else None
    groups = by_stride(shapes, size, 1)
    channels = {shape[1] for shape in shapes} if groups else ()
    if len(channels) != 1:
        return None
    channels = channels.pop()
    if named(model, "yolov7") and channels % 3 == 0 and channels > 15:
        return "yolov7"
    sure = named(model, "yolox") or channels % 3 or channels - 5 == count
    return "yolox" if channels > 5 and sure and count in (None, channels - 5) else None


def reads(model: Model) -> bool:
    """Whether a model's outputs are YOLOv6's, YOLOv7's or YOLOX's."""
    return kind(model, [shape for _, shape in model.outputs]) is not None


class Cells(NamedTuple):
    """The cells that pass the confidence, from anchor_free()."""
    sides: np.ndarray     # (4, n) float32: from the cell's centre to left, top, right, lower side, in strides
    centres: np.ndarray   # (2, n) float32, in strides
    strides: np.ndarray   # (n,) float32
    classes: np.ndarray   # (n,) int64
    scores: np.ndarray    # (n,) float32
    places: np.ndarray    # (n,) int64: of the cell among all cells, those of stride 8 first

    def boxes(self) -> np.ndarray:
        """(n, 4) float32 xyxy in pixels of the model's input."""
        found = np.concatenate([self.centres - self.sides[:2], self.centres + self.sides[2:]])
        return (found * self.strides).T


def anchor_free(heads: Sequence[Tuple[int, Raw, Raw]], wanted: func.Settings) -> Cells:
    """The cells of heads without anchors that pass wanted.conf.

    heads: for each stride, rising, (stride, sides, scores): sides (1, 4 or 4 bins, rows, columns), scores (1, classes,
    rows, columns) after the sigmoid, or before it, which is told by values outside 0..1; both as func.infer_raw() gives
    them.
    """
    scores = [(stored.reshape(stored.shape[1], -1), scale, zero) for _, _, (stored, scale, zero) in heads]
    # of the first cells some classes tell
    sigmoid = func.before_sigmoid([(stored[::len(stored) // 8 + 1, :128], scale, zero)
                                   for stored, scale, zero in scores])
    least, start, parts = func.logit(wanted.conf) if sigmoid else wanted.conf, 0, []
    for (stride, sides, _), (stored, scale, zero) in zip(heads, scores):
        # The best class alone rules out nearly all cells; only the sides of what is left are computed.
        cells = np.flatnonzero(stored.max(0) >= func.raw_threshold(least, scale, zero, stored.dtype))
        good = stored.take(cells, 1)
        numbers = good.argmax(0)
        best = func.as_scores(func.floats(good[numbers, np.arange(len(cells))], scale, zero), sigmoid)
        values = func.floats(sides[0].reshape(sides[0].shape[1], -1).take(cells, 1), *sides[1:])
        row, column = np.divmod(cells, sides[0].shape[3])
        parts.append((expectation(values), np.stack([column, row]).astype(np.float32) + np.float32(0.5),
                      np.full(len(cells), stride, np.float32), numbers, best, cells + start))
        start += stored.shape[1]
    return Cells(*(np.concatenate(part, -1) for part in zip(*parts)))


def expectation(values: np.ndarray) -> np.ndarray:
    """Distances (4, n): as they are, or the means, in bins, of 4 distributions given by logits (4 bins, n)."""
    if len(values) == 4:
        return values
    weights = np.exp(np.minimum(values, 80)).reshape(4, len(values) // 4, -1)  # e^89 is too much for float32
    return np.einsum("sbn,b->sn", weights, np.arange(weights.shape[1], dtype=np.float32)) / weights.sum(1)


def yolox(heads: Sequence[Tuple[int, Raw]], wanted: func.Settings) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 xyxy in pixels of the model's input, classes (n,) and scores (n,) of YOLOX's heads, before
    NMS. heads: (stride, (1, 5 + classes, rows, columns) as func.infer_raw() gives it)."""
    found = []
    for stride, (stored, scale, zero) in heads:
        columns, stored = stored.shape[3], stored.reshape(stored.shape[1], -1)
        cells = np.flatnonzero(stored[4] >= func.raw_threshold(wanted.conf, scale, zero, stored.dtype))
        good = func.floats(stored[:, cells], scale, zero)  # (5 + classes, n)
        row, column = np.divmod(cells, columns)
        centre = (good[:2] + np.stack([column, row]).astype(np.float32)) * np.float32(stride)
        half = np.exp(np.minimum(good[2:4], 20)) * np.float32(stride / 2)
        found.append((np.concatenate([centre - half, centre + half]), good[5:].argmax(0), good[4] * good[5:].max(0)))
    boxes, classes, scores = (np.concatenate(part, -1) for part in zip(*found))
    passed = scores >= wanted.conf
    return boxes.T[passed], classes[passed], scores[passed]


def decode(outputs: Sequence[Raw], model: Optional[Model] = None) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 xyxy in pixels of the model's input, classes (n,) and scores (n,), before NMS. outputs: as
    func.infer() or func.infer_raw() gives them, in one of the layouts above. Raises ModelError for other shapes."""
    outputs, wanted = func.as_raw(outputs), func.settings(model)
    shapes = [np.shape(stored) for stored, _, _ in outputs]
    what = kind(model, shapes)
    if what is None:
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, shapes))}, but funcs/rockchip.py "
                         f"reads YOLOv6, YOLOv7 and YOLOX at {wanted.size[0]} x {wanted.size[1]} pixels")
    if what == "yolov7":
        return func.decode(outputs, model, YOLOV7)
    groups = by_stride(shapes, wanted.size, len(shapes) // len(STRIDES))
    if what == "yolox":
        return yolox([(stride, outputs[place]) for stride, (place,) in groups], wanted)
    cells = anchor_free([(stride, outputs[places[0]], outputs[places[1]]) for stride, places in groups], wanted)
    return cells.boxes(), cells.classes, cells.scores


def detect(rknn_lite: Any, IMG: np.ndarray) -> func.Detections:
    """Find the objects of a frame: arguments, results and errors are func.detect's."""
    return func.detect(rknn_lite, IMG, decode)


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return draw(IMG, detect(rknn_lite, IMG))
