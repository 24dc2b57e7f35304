"""myFunc for YOLOv8 and YOLO11: Rockchip's exports with nine outputs or six. Thresholds are set in func.py, and so are
IMG_SIZE and CLASSES for a model that does not say them.

    python main.py --model models/yolov8n_emoji.rknn
"""
import functools
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np

import func
from func import ModelError, Raw, draw  # noqa: F401 (draw: for main.py)
from rknnmodel import Model

# --------------------------------------------------------------------------------------------------------------------
STRIDES = (8, 16, 32)
BINS = 16         # of a distribution: a side of the box lies 0 to 15 strides from the cell's centre
# by so much the third output of a stride, rounded to int8 by itself, may fall short of the best class's score
SLACK = 1 / 128
# --------------------------------------------------------------------------------------------------------------------


def reads(model: Model) -> bool:
    """Whether a model's outputs are those that decode() reads."""
    if model.task not in (None, "detect") or not model.outputs:
        return False
    try:
        check(tuple(shape for _, shape in model.outputs), func.settings(model).size, None)
    except ModelError:
        return False
    return True


def decode(outputs: Sequence[Union[np.ndarray, Raw]], model: Optional[Model] = None
           ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes from YOLOv8's heads, before NMS.

    outputs, as func.infer() or func.infer_raw() gives them: for each stride s = 8, 16, 32, the strides in any order,
    arrays of height / s rows and width / s columns: (1, 64, ., .) logits of the distances from the cell's centre to the
    left, top, right and lower side, 16 bins each, in strides; (1, classes, ., .) scores after the sigmoid, or before
    it, which is told by values outside 0..1; and, in exports with nine outputs, (1, 1, ., .) the scores' sum, cut at 1
    (Ultralytics YOLOv8, export of Rockchip's fork). model: what is known of the model; without one, the settings of
    func.py say its size and classes.
    Returns boxes (n, 4) float32 xyxy in pixels of the model's input, classes (n,) int64, scores (n,) float32. Raises
    ModelError for outputs of other shapes.
    """
    wanted, heads = func.settings(model), func.as_raw(outputs)
    known = None if getattr(model, "outputs", None) else len(func.names_of(model))
    step, strides, count = check(tuple(np.shape(head) for head, _, _ in heads), wanted.size, known)
    groups = [heads[place:place + step] for place in range(0, len(heads), step)]
    # (classes, cells)
    scores = [(group[1][0].reshape(count, -1),) + tuple(group[1][1:]) for group in groups]
    # Some classes of the largest head's first cells tell: to ask all would take as long as to decode them.
    values, scale, zero = max(scores, key=lambda score: score[0].size)
    sigmoid = func.before_sigmoid([(values[::count // 4 + 1, :256], scale, zero)])
    least = func.logit(wanted.conf) if sigmoid else wanted.conf
    weights, places, numbers, found = [], [], [], []
    for group, (values, scale, zero), stride in zip(groups, scores, strides):
        least_raw = func.raw_threshold(least, scale, zero, values.dtype)
        # The sum rules out nearly all cells, and the best class the rest; only the distributions of what is left are
        # decoded.
        cells = None
        if step == 3 and not sigmoid:
            total, its_scale, its_zero = group[2]
            cells = np.flatnonzero(total >= func.raw_threshold(wanted.conf - SLACK, its_scale, its_zero, total.dtype))
        # as many faint scores as this are sooner compared than gathered
        if cells is None or len(cells) > values.shape[1] // 20:
            cells = np.flatnonzero(values.max(0) >= least_raw)
        if len(cells) == 0:
            continue
        candidates = values.take(cells, 1)  # (classes, n)
        best = candidates.argmax(0)
        candidates = candidates[best, np.arange(len(cells))]
        passed = np.flatnonzero(candidates >= least_raw)
        cells = cells[passed]
        weights.append(func.floats(group[0][0].reshape(4 * BINS, -1).take(cells, 1), *group[0][1:]))
        places.append(_cells(wanted.size[0] // stride, wanted.size[1] // stride, stride).take(cells, 1))
        numbers.append(best[passed])
        found.append(func.floats(candidates[passed], scale, zero))
    if not found:
        return np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.float32)
    places = np.concatenate(places, 1)
    distances = expectation(np.concatenate(weights, 1)) * places[2]
    return (np.concatenate([places[:2] - distances[:2], places[:2] + distances[2:]]).T, np.concatenate(numbers),
            func.as_scores(np.concatenate(found), sigmoid))


# times weights: their sum, each times its bin, and their sum
_EXPECTATION = np.float32([np.arange(BINS), np.ones(BINS)])


def expectation(weights: np.ndarray) -> np.ndarray:
    """Means of distributions, in bins: (64, n) float32 logits of 4 sides x 16 bins, overwritten; returns (4, n)
    float32."""
    np.minimum(weights, 80, out=weights)  # e^89 is too much for float32
    np.exp(weights, out=weights)          # of the softmax
    sums = np.matmul(_EXPECTATION, weights.reshape(4, BINS, -1))  # (4, 2, n)
    return sums[:, 0] / sums[:, 1]


@functools.lru_cache(maxsize=100)
def _cells(columns: int, rows: int, stride: int) -> np.ndarray:
    """x and y of the centres of a head's cells, in pixels of the model's input, and the stride: (3, cells) float32."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([(column + 0.5) * stride, (row + 0.5) * stride, np.full(len(row), stride)]).astype(np.float32)


@functools.lru_cache(maxsize=100)
def check(shapes: Tuple[Tuple[int, ...], ...], size: Tuple[int, int], classes: Optional[int]
          ) -> Tuple[int, List[int], int]:
    """How many outputs each stride has, 2 or 3, the strides in their order, and the number of classes, from the shapes.
    size: (width, height); classes: None for any. Raises ModelError where they are not YOLOv8's."""
    step = 2 if len(shapes) == 6 else 3
    count = classes
    if count is None:
        count = shapes[1][1] if len(shapes) > 1 and len(shapes[1]) == 4 else 0
    sizes = {(size[1] // stride, size[0] // stride): stride for stride in STRIDES}
    expected = [tuple((1, channels) + side for channels in (4 * BINS, count, 1)[:step]) for side in sizes]
    groups = [shapes[at:at + step] for at in range(0, len(shapes), step)]
    if sorted(groups) != sorted(expected) or count < 1:
        at = size[0] if size[0] == size[1] else f"{size[0]} x {size[1]}"
        cells = ", ".join(map(str, sizes)) if size[0] != size[1] else ", ".join(str(rows) for rows, _ in sizes)
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, shapes))}, but funcs/yolov8.py "
                         f"reads YOLOv8 with {count} classes at {at} pixels: for each of {cells} rows and columns "
                         f"{4 * BINS}, {count} and, if there are nine outputs, 1 channels")
    return step, [sizes[group[0][2:]] for group in groups], count


def detect(rknn_lite: Any, IMG: np.ndarray) -> func.Detections:
    """Find the objects of a frame: arguments, results and errors are func.detect's."""
    return func.detect(rknn_lite, IMG, decode)


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return func.draw(IMG, detect(rknn_lite, IMG))
