"""myFunc for YOLOv8 and YOLO11: Rockchip's exports with nine outputs or six. Thresholds, IMG_SIZE and CLASSES are set in func.py.

    python main.py --func examples/yolov8.py --model models/yolov8n_emoji.rknn
"""
import functools

import numpy as np

import func
from func import ModelError, draw

# ---------------------------------------------------------------------------------------------------------------------------
STRIDES = (8, 16, 32)
BINS = 16         # of a distribution: a side of the box lies 0 to 15 strides from the cell's centre
SLACK = 1 / 128   # by so much the third output of a stride, rounded to int8 by itself, may fall short of the best class's score
# ---------------------------------------------------------------------------------------------------------------------------


def decode(outputs):
    """Boxes from YOLOv8's heads, before NMS.

    outputs: for each stride s = 8, 16, 32, the strides in any order, float32 arrays of size / s rows and columns: (1, 64, ., .) logits of
    the distances from the cell's centre to the left, top, right and lower side, 16 bins each, in strides; (1, classes, ., .) scores after
    the sigmoid; and, in exports with nine outputs, (1, 1, ., .) their sum, cut at 1 (Ultralytics YOLOv8, export of Rockchip's fork).
    Returns boxes (n, 4) float32 xyxy in pixels of the square, classes (n,) int64, scores (n,) float32.
    Raises ModelError for outputs of other shapes.
    """
    step = check(outputs)
    boxes, numbers, scores = [np.empty((2, 0, 2), np.float32)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for sides, classes, *total in zip(*(outputs[part::step] for part in range(step))):
        columns = sides.shape[3]
        classes = classes.reshape(len(func.CLASSES), -1)  # (classes, cells)
        # The sum rules out nearly all cells, and the best class the rest; only the distributions of what is left are decoded.
        cells = np.flatnonzero(total[0] >= func.OBJ_THRESH - SLACK) if total else None
        if cells is None or len(cells) > classes.shape[1] // 20:  # as many faint scores as this are sooner compared than gathered
            cells = np.flatnonzero(classes.max(0) >= func.OBJ_THRESH)
        if len(cells) == 0:
            continue
        found = classes.take(cells, 1)  # (classes, n)
        best = found.argmax(0)
        score = found[best, np.arange(len(cells))]
        good = np.flatnonzero(score >= func.OBJ_THRESH)
        weights = np.exp(np.minimum(sides.reshape(4 * BINS, -1).take(cells[good], 1), 80))  # of the softmax; e^89 is too much for float32
        weighted, weight = np.matmul(_EXPECTATION, weights.reshape(4, BINS, -1)).transpose(1, 0, 2)
        distances = (weighted / weight).reshape(2, 2, -1) * np.float32(func.IMG_SIZE // columns)  # left, top; right, lower: in pixels
        boxes.append((_centres(columns).take(cells[good], 1) + distances * _OUTWARDS).transpose(0, 2, 1))
        numbers.append(best[good])
        scores.append(score[good])
    return np.concatenate(np.concatenate(boxes, 1), 1), np.concatenate(numbers), np.concatenate(scores)


_EXPECTATION = np.float32([np.arange(BINS), np.ones(BINS)])  # times weights: their sum, each times its bin, and their sum
_OUTWARDS = np.float32([-1, 1]).reshape(2, 1, 1)


@functools.lru_cache(maxsize=None)
def _centres(columns):
    """x and y of the centres of a head's cells, in pixels of the square: (2, cells) float32."""
    row, column = np.divmod(np.arange(columns * columns), columns)
    return ((np.stack([column, row]) + 0.5) * (func.IMG_SIZE // columns)).astype(np.float32)


def check(outputs):
    """How many outputs each stride has, 2 or 3. Raises ModelError where they are not YOLOv8's."""
    found = [np.shape(output) for output in outputs]
    step = 2 if len(outputs) == 6 else 3
    channels = (4 * BINS, len(func.CLASSES), 1)[:step]
    sizes = [func.IMG_SIZE // stride for stride in STRIDES]
    expected = [[(1, number, size, size) for number in channels] for size in sizes]
    if sorted(found[at:at + step] for at in range(0, len(found), step)) != sorted(expected):
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, found))}, but examples/yolov8.py reads YOLOv8 with "
                         f"{len(func.CLASSES)} classes at {func.IMG_SIZE} pixels: for each of {', '.join(map(str, sizes))} rows and "
                         f"columns {4 * BINS}, {len(func.CLASSES)} and, if there are nine outputs, 1 channels")
    return step


def detect(rknn_lite, IMG):
    """Find the objects of a frame: arguments, results and errors are func.detect's."""
    return func.detect(rknn_lite, IMG, decode)


def myFunc(rknn_lite, IMG):
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return draw(IMG, *detect(rknn_lite, IMG))
