"""myFunc for ResNet and other classifiers: the frame's centre, inference, softmax where the model has none, the best
five classes drawn.

    python main.py --model models/resnet18_emoji.rknn

It reads models with one output, (1, classes) or (1, classes, 1, 1): torchvision's, timm's and Rockchip's ResNet and
MobileNet exports among others, and Ultralytics' -cls. Mean and standard deviation of the input belong to the model, not
here: models/README.md tells how to set them.
"""
import functools
from typing import Any, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

import func
from func import Detections, ModelError, Names, Raw
from rknnmodel import Model

# --------------------------------------------------------------------------------------------------------------------
IMG_SIZE = 224          # of the model's input in pixels, where the model does not say it; or (width, height)
# share of the frame's shorter side that the model sees; torchvision resizes to 256 and crops 224
CROP = 224 / 256
TOP = 5                 # classes shown, the best first
# what the outputs are: "probabilities" (they have their softmax, or their sigmoid), "logits" (of which one class is
# right), "multilabel" (logits, each class for itself); None: as the metadata's `scores` says, else as the first tell
SCORES = None
CLASSES = func.CLASSES  # the demo model's; ImageNet's 1000, a name a line: open("imagenet.txt").read().splitlines()
# --------------------------------------------------------------------------------------------------------------------


def reads(model: Model) -> bool:
    """Whether a model is a classifier: one output, (1, classes) or (1, classes, 1, 1).

    The latter with few classes may be anything (a mean over the picture): it counts only where the file says more.
    """
    shapes = [shape for _, shape in model.outputs]
    if model.task not in (None, "classify") or not _is_classifier(shapes):
        return False
    return len(shapes[0]) == 2 or shapes[0][1] >= 10 or model.task is not None or model.names is not None


def _is_classifier(shapes: Sequence[Tuple[int, ...]]) -> bool:
    return (len(shapes) == 1 and len(shapes[0]) in (2, 4) and shapes[0][0] == 1 and shapes[0][1] > 0
            and tuple(shapes[0][2:]) in ((), (1, 1)))


def fed(IMG: np.ndarray, model: Optional[Model]) -> np.ndarray:
    """What a model is fed with of a frame: crop(), or of Ultralytics' own classifiers smooth(). Both (height, width, 3)
    uint8 RGB."""
    size = func.pair(getattr(model, "size", None) or IMG_SIZE)
    ultralytics = getattr(model, "task", None) == "classify" and "imgsz" in model.metadata
    return smooth(IMG, size) if ultralytics else crop(IMG, size)


def smooth(IMG: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """A frame as Ultralytics' classifiers see it: scaled by Pillow's BILINEAR, under whose triangle, twice as wide as
    the new pixel, lie all old ones, and not the nearest four alone; the shorter side to the input's, and the middle cut
    out; to an input that is no square the whole frame.

    IMG: (h, w, 3) uint8 BGR, or as func.as_bgr() takes it; size: (width, height). Returns (height, width, 3) uint8 RGB.
    At 1280 x 720 it takes 3 to 10 ms of CPU, crop() 0.1.
    """
    IMG = func.as_bgr(IMG)
    (h, w), (width, height) = IMG.shape[:2], size
    new_w, new_h = size
    if width == height:  # as torchvision's Resize and CenterCrop round
        new_w, new_h = (int(width * w / h), width) if w >= h else (width, int(width * h / w))
    across = _triangles(w, new_w, round((new_w - width) / 2), width)
    down = _triangles(h, new_h, round((new_h - height) / 2), height)
    left, right, top, bottom = across[0][2], across[-1][3], down[0][2], down[-1][3]
    # (columns, rows * 3), for Pillow scales across first, and rounds before it scales down
    part = np.ascontiguousarray(IMG[top:bottom, left:right].transpose(1, 0, 2)).reshape(right - left, -1)
    part = _scaled(part, across, left).reshape(width, bottom - top, 3)
    part = np.ascontiguousarray(part.transpose(1, 0, 2)).reshape(bottom - top, -1)
    return np.ascontiguousarray(_scaled(part, down, top).reshape(height, width, 3)[..., ::-1])


def _scaled(lines: np.ndarray, blocks: List[Tuple[int, int, int, int, np.ndarray]], first: int) -> np.ndarray:
    """Lines (n, m) uint8, of which the first is number `first`, scaled as _triangles() says: (new, m) uint8."""
    found = np.empty((blocks[-1][1], lines.shape[1]), np.float32)
    for start, end, low, high, weights in blocks:
        _multiply(weights, lines[low - first:high - first], found[start:end])
    return (found + np.float32(0.5)).clip(0, 255).astype(np.uint8)  # rounded


def _multiply(weights: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """weights @ values into out, in pieces so small that OpenBLAS leaves them to this thread: the pool's threads are
    the parallelism, and with its own it took 50 ms instead of 8 on a busy PC."""
    width = max(1, 200_000 // weights.size)
    for start in range(0, values.shape[1], width):
        part = values[:, start:start + width].astype(np.float32, copy=False)
        np.matmul(weights, part, out=out[:, start:start + width])


@functools.lru_cache(maxsize=20)
def _triangles(count: int, scaled: int, first: int, wanted: int) -> List[Tuple[int, int, int, int, np.ndarray]]:
    """How `wanted` pixels, from `first` on, of a line of `count` pixels scaled to `scaled` come from it: in blocks,
    (start, end, low, high, weights): new pixels start to end are weights @ old ones from low to high."""
    step, blocks = count / scaled, []
    for start in range(0, wanted, 16):  # one matrix for all would be mostly zeros
        centres = (np.arange(start, min(start + 16, wanted)) + first + 0.5) * step
        reach = max(step, 1)
        low, high = max(0, int(centres[0] - reach)), min(count, int(centres[-1] + reach) + 1)
        weights = np.maximum(0, 1 - np.abs(np.arange(low, high) + 0.5 - centres[:, np.newaxis]) / reach)
        weights /= weights.sum(1, keepdims=True)
        blocks.append((start, start + len(centres), low, high, weights.astype(np.float32)))
    return blocks


def crop(IMG: np.ndarray, size: Union[int, Tuple[int, int]], share: Optional[float] = None) -> np.ndarray:
    """The middle of a frame as the model sees it: torchvision's resizing to 256 pixels and centre crop of 224, in one
    step.

    IMG: (h, w, 3) uint8 BGR, or as func.as_bgr() takes it; size: (width, height), or one number for a square; share: of
    the frame's shorter side, CROP if not given. Returns the rectangle (height, width, 3) uint8 RGB: the largest of its
    proportions in the frame, centred, times share.
    """
    IMG = func.as_bgr(IMG)
    h, w = IMG.shape[:2]
    width, height = func.pair(size)
    scale = min(w / width, h / height) * (CROP if share is None else share)
    cut_w, cut_h = max(1, round(width * scale)), max(1, round(height * scale))
    x, y = (w - cut_w) // 2, (h - cut_h) // 2
    return cv2.cvtColor(cv2.resize(IMG[y:y + cut_h, x:x + cut_w], (width, height)), cv2.COLOR_BGR2RGB)


def probabilities(outputs: Sequence[Union[np.ndarray, Raw]], owner: Any = None) -> np.ndarray:
    """The score of each class, (classes,) float32 in 0..1, from a model's outputs; NaN where the model's value is not
    finite.

    outputs: one array (1, classes) or (1, classes, 1, 1), as func.infer() or func.infer_raw() gives it. owner: the
    Model, or context, whose attribute `scores` keeps what its outputs are once it is known, so that it is the same for
    all frames: SCORES, what its metadata says, or what _told() tells of its first outputs.
    Raises ModelError for outputs of other shapes.
    """
    shapes = [np.shape(output[0] if isinstance(output, tuple) else output) for output in outputs]
    if not _is_classifier(shapes):
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, shapes))}, but funcs/resnet.py "
                         f"reads a classifier's one output: (1, classes), for example (1, {len(CLASSES) or 1000}), or "
                         f"(1, classes, 1, 1)")
    # a copy, for the context's next inference may overwrite the output
    scores = np.array(func.floats(*func.as_raw(outputs)[0]), np.float32).ravel()
    finite = np.isfinite(scores)
    values = scores[finite]
    kind = SCORES or getattr(owner, "scores", None)
    # What cannot be a probability corrects the first outputs, should they have looked like some by chance.
    if kind is None or kind == "probabilities" and not SCORES and _outside(values):
        kind = _told(values)
        if owner is not None and finite.all():
            owner.scores = kind
    if kind == "multilabel" or kind == "logits" and len(scores) == 1:
        values = 1 / (1 + np.exp(-values.clip(-80, 80)))
    elif kind == "logits" and values.size:
        with np.errstate(over="ignore"):  # of a broken model
            values = np.exp(values - values.max())
        values = values / values.sum()
    scores[finite] = values.clip(0, 1)
    scores[~finite] = np.nan
    return scores


def _outside(values: np.ndarray) -> bool:
    return bool(values.size) and (values.min() < -0.01 or values.max() > 1.01)


def _told(values: np.ndarray) -> str:
    """What values (classes,) are: probabilities are none below 0 or above 1, and of several classes add up to 1.

    In int8 each is rounded to a multiple of 1/255, so that of n classes the sum lies off by n / 510 at most. A thousand
    faint ones vanish, or at most 510 of them (no more than that can have half a step each) are rounded up: the sum lies
    between 0 and 2 then.
    """
    if _outside(values):
        return "logits"
    off = abs(float(values.sum()) - 1)
    return "probabilities" if len(values) < 2 or off <= min(1, len(values) / 510 + 0.002) else "logits"


def best(scores: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The TOP highest of scores (classes,), best first: their classes (n,) int64 and scores (n,) float32. NaN is left
    out."""
    classes = np.argsort(-scores, kind="stable")[:TOP]  # NaN comes last
    classes = classes[np.isfinite(scores[classes])]
    return classes, scores[classes]


def detect(rknn_lite: Any, IMG: np.ndarray) -> Detections:
    """Say what the middle of a frame shows.

    rknn_lite: an RKNNLite context, which may have a `model`; IMG: (h, w, 3) uint8 BGR, or as func.as_bgr() takes it.
    Returns Detections without boxes: at most TOP classes and their scores in 0..1, best first; fewer where the model
    has fewer classes, or values that are not finite, or its `conf` and `keep` leave some out. A model with one output
    value tells class 1 from class 0 where it has two names.
    Raises ModelError where the model cannot be run or read, ValueError where IMG is no frame.
    """
    model = getattr(rknn_lite, "model", None)
    square = fed(IMG, model)
    scores = probabilities(func.infer_raw(rknn_lite, square), rknn_lite if model is None else model)
    if len(scores) == 1 and len(getattr(model, "names", None) or ()) == 2:
        scores = np.concatenate([1 - scores, scores])
    names = func.names_of(model, len(scores), CLASSES)
    keep, conf = getattr(model, "keep", None), getattr(model, "conf", None)
    if keep is not None:
        scores[~np.isin(np.arange(len(scores)), list(keep))] = np.nan
    if conf is not None:
        scores[scores < conf] = np.nan
    return Detections(None, *best(scores), names)


def classify(rknn_lite: Any, IMG: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """detect()'s classes (n,) int64 and scores (n,) float32 alone."""
    found = detect(rknn_lite, IMG)
    return found.classes, found.scores


def draw(IMG: np.ndarray, detections: Any, scores: Optional[np.ndarray] = None, names: Optional[Names] = None
         ) -> np.ndarray:
    """Write Detections without boxes on IMG (h, w, 3) uint8 BGR, top left, in place; returns it, or of other frames
    as_bgr()'s copy. As in earlier versions classes, scores and names (by default CLASSES) may be given one by one."""
    if scores is not None:
        detections = Detections(None, detections, scores, CLASSES if names is None else names)
    return func.draw(IMG, detections)


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """What the pool does with every frame: returns the frame itself, its best classes written on it."""
    return draw(IMG, detect(rknn_lite, IMG))
