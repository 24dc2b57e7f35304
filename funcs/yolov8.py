"""myFunc for YOLOv8 and YOLO11: Rockchip's exports with nine outputs or six. Thresholds, IMG_SIZE and CLASSES are set
in func.py.

    python main.py --func funcs/yolov8.py --model models/yolov8n_emoji.rknn
"""
import functools

import numpy as np

import func
from func import ModelError, draw

# --------------------------------------------------------------------------------------------------------------------
STRIDES = (8, 16, 32)
BINS = 16         # of a distribution: a side of the box lies 0 to 15 strides from the cell's centre
# by so much the third output of a stride, rounded to int8 by itself, may fall short of the best class's score
SLACK = 1 / 128
# --------------------------------------------------------------------------------------------------------------------


def decode(outputs):
    """Boxes from YOLOv8's heads, before NMS.

    outputs: for each stride s = 8, 16, 32, the strides in any order, float32 arrays of size / s rows and columns: (1,
    64, ., .) logits of the distances from the cell's centre to the left, top, right and lower side, 16 bins each, in
    strides; (1, classes, ., .) scores after the sigmoid; and, in exports with nine outputs, (1, 1, ., .) their sum, cut
    at 1 (Ultralytics YOLOv8, export of Rockchip's fork). Returns boxes (n, 4) float32 xyxy in pixels of the square,
    classes (n,) int64, scores (n,) float32. Raises ModelError for outputs of other shapes.
    """
    step = check(tuple(np.shape(output) for output in outputs), func.IMG_SIZE, len(func.CLASSES))
    boxes, numbers, scores = [], [], []
    for place in range(0, len(outputs), step):
        columns = outputs[place].shape[3]
        classes = outputs[place + 1].reshape(len(func.CLASSES), -1)  # (classes, cells)
        # The sum rules out nearly all cells, and the best class the rest; only the distributions of what is left are
        # decoded.
        cells = np.flatnonzero(outputs[place + 2] >= func.OBJ_THRESH - SLACK) if step == 3 else None
        # as many faint scores as this are sooner compared than gathered
        if cells is None or len(cells) > classes.shape[1] // 20:
            cells = np.flatnonzero(classes.max(0) >= func.OBJ_THRESH)
        if len(cells) == 0:
            continue
        found = classes.take(cells, 1)  # (classes, n)
        best = found.argmax(0)
        score = found[best, np.arange(len(cells))]
        good = score >= func.OBJ_THRESH
        cells = cells[good]
        weights = outputs[place].reshape(4 * BINS, -1).take(cells, 1)
        np.minimum(weights, 80, out=weights)  # e^89 is too much for float32
        np.exp(weights, out=weights)          # of the softmax
        sums = np.matmul(_EXPECTATION, weights.reshape(4, BINS, -1))  # (4, 2, n)
        # left, top, right, lower in pixels: (4, n)
        distances = sums[:, 0] / sums[:, 1] * np.float32(func.IMG_SIZE // columns)
        centres = _centres(columns, func.IMG_SIZE).take(cells, 1)
        boxes.append(np.concatenate([centres - distances[:2], centres + distances[2:]]))
        numbers.append(best[good])
        scores.append(score[good])
    if not boxes:
        return np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.float32)
    return np.concatenate(boxes, 1).T, np.concatenate(numbers), np.concatenate(scores)


# times weights: their sum, each times its bin, and their sum
_EXPECTATION = np.float32([np.arange(BINS), np.ones(BINS)])


@functools.lru_cache(maxsize=None)
def _centres(columns, size):
    """x and y of the centres of a head's cells, in pixels of the square: (2, cells) float32."""
    row, column = np.divmod(np.arange(columns * columns), columns)
    return ((np.stack([column, row]) + 0.5) * (size // columns)).astype(np.float32)


@functools.lru_cache(maxsize=None)
def check(found, size, classes):
    """How many outputs each stride has, 2 or 3, from the shapes found. Raises ModelError where they are not
    YOLOv8's."""
    step = 2 if len(found) == 6 else 3
    sizes = [size // stride for stride in STRIDES]
    expected = [tuple((1, channels, side, side) for channels in (4 * BINS, classes, 1)[:step]) for side in sizes]
    if sorted(found[at:at + step] for at in range(0, len(found), step)) != sorted(expected):
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, found))}, but funcs/yolov8.py reads YOLOv8 with "
                         f"{classes} classes at {size} pixels: for each of {', '.join(map(str, sizes))} rows and columns {4 * BINS}, "
                         f"{classes} and, if there are nine outputs, 1 channels")
    return step


def detect(rknn_lite, IMG):
    """Find the objects of a frame: arguments, results and errors are func.detect's."""
    return func.detect(rknn_lite, IMG, decode)


def myFunc(rknn_lite, IMG):
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return draw(IMG, *detect(rknn_lite, IMG))
