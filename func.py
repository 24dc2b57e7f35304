"""myFunc for YOLOv5: letterbox, inference, decoding of Rockchip's three heads, boxes drawn. Replace it with your own.

A func for the pool takes (context, frame), calls context.inference once, and returns what the caller of the pool shall
get. main.py asks for more where there is more: reads(model), detect(context, frame) and draw(frame, detections).
What the model file says (context.model, see rknnmodel.py) comes before the settings below.
"""
import colorsys
import functools
import inspect
import os
import sys
import threading
import unicodedata
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np

from rknnmodel import Model, ModelError

# --------------------------------------------------------------------------------------------------------------------
OBJ_THRESH = 0.25  # least score (objectness * class) of a box
NMS_THRESH = 0.45  # of two boxes of one class that overlap with a higher IoU the weaker one goes
MAX_BOXES = 300    # of a frame at most, the best ones; ten times as many go into NMS
IMG_SIZE = 640     # of the model's input in pixels: one number for a square, or (width, height)
ANCHORS = {        # stride: three anchors' width, height in pixels of the model's input
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}
CLASSES = (        # COCO's; a model that says its names needs none here
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# --------------------------------------------------------------------------------------------------------------------


FEW = 100  # boxes that OpenCV's NMS is soon done with
Names = Union[Sequence[str], Dict[int, str]]
Raw = Tuple[np.ndarray, float, int]  # stored values, scale, zero point: value = (stored - zero point) * scale
Placed = Tuple[int, int, float, float]
_canvas = threading.local()  # what letterbox() keeps for each thread
_said, _saying = set(), threading.Lock()


class Detections:
    """What was found in a frame: arrays of equal length, best first.

    boxes: (n, 4) float32 xyxy in pixels of the frame, None where a classifier finds classes only; classes: (n,) int64;
    scores: (n,) float32 in 0..1; names: of the classes, by number. Where they exist: ids, (n,) int64, of a tracker;
    masks, a list of n (x, y, mask), mask (h, w) uint8 of 0 and 1, its upper left corner at pixel (x, y) of the frame;
    keypoints, (n, k, 3) float32 x, y, score; corners, (n, 4, 2) float32, of rotated boxes.

        boxes, classes, scores = detections
        people = detections.select(detections.classes == 0)
    """

    def __init__(self, boxes: Optional[np.ndarray], classes: np.ndarray, scores: np.ndarray, names: Names = (),
                 ids: Optional[np.ndarray] = None, masks: Optional[list] = None,
                 keypoints: Optional[np.ndarray] = None, corners: Optional[np.ndarray] = None) -> None:
        self.boxes, self.classes, self.scores, self.names = boxes, classes, scores, names
        self.ids, self.masks, self.keypoints, self.corners = ids, masks, keypoints, corners

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[Optional[np.ndarray]]:
        return iter((self.boxes, self.classes, self.scores))

    def __getitem__(self, place: int) -> Optional[np.ndarray]:
        """boxes, classes or scores, as of the tuple that earlier versions returned."""
        return (self.boxes, self.classes, self.scores)[place]

    def name(self, number: int) -> str:
        """The name of a class; where it has none, its number."""
        names = self.names
        if isinstance(names, dict):
            return names.get(number, str(number))
        return names[number] if 0 <= number < len(names) else str(number)

    def select(self, index: np.ndarray) -> "Detections":
        """Those at the places of an index array, or where a mask (n,) of bool is True: all their fields."""
        index = np.asarray(index)
        places = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)

        def part(values: Any) -> Any:
            if values is None:
                return None
            return [values[place] for place in places] if isinstance(values, list) else values[places]

        return Detections(part(self.boxes), part(self.classes), part(self.scores), self.names, part(self.ids),
                          part(self.masks), part(self.keypoints), part(self.corners))


class Settings(NamedTuple):
    """What a decoder needs to know, from settings()."""
    size: Tuple[int, int]     # (width, height) of the model's input
    conf: float               # least score
    iou: float                # most overlap of two boxes of one class
    keep: Optional[frozenset]  # numbers of the classes wanted; None: all


def settings(model: Optional[Model], iou: Optional[float] = None) -> Settings:
    """A model's own size, conf, iou and keep; for what it does not say OBJ_THRESH, IMG_SIZE and `iou`, or
    NMS_THRESH."""
    size = getattr(model, "size", None) or IMG_SIZE
    conf, most, keep = (getattr(model, name, None) for name in ("conf", "iou", "keep"))
    return Settings(pair(size), OBJ_THRESH if conf is None else conf,
                    (NMS_THRESH if iou is None else iou) if most is None else most,
                    None if keep is None else frozenset(keep))


def pair(size: Union[int, Tuple[int, int]]) -> Tuple[int, int]:
    """(width, height) of a size that may be one number."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def names_of(model: Optional[Model], count: Optional[int] = None, setting: Optional[Names] = None) -> Names:
    """The names of a model's `count` classes: its own, or those of `setting`, by default CLASSES, where they are as
    many, else (), for the names of other classes would be wrong ones. Raises ModelError where CLASSES is a string."""
    if getattr(model, "names", None):
        return model.names
    names = CLASSES if setting is None else setting
    if isinstance(names, str):  # ("helmet") is one, too
        raise ModelError(f'CLASSES is the string "{names}", and has to be a tuple of names: a comma makes it one, '
                         f'CLASSES = ("{names}",)')
    if count is None or len(names) == count:
        return names
    _say_once(f"The model has {count} classes and says no names for them, and CLASSES has {len(names)}: numbers are "
              f"shown. Names are read from --names FILE, or names.txt beside the model, a name a line.")
    return ()


def _say_once(text: str) -> None:
    with _saying:
        if text not in _said:
            _said.add(text)
            print(text, file=sys.stderr)


def as_bgr(IMG: np.ndarray) -> np.ndarray:
    """A frame, (h, w) or (h, w, 1) grey, (h, w, 3) BGR or (h, w, 4) BGRA, uint8, as (h, w, 3) that can be drawn on:
    itself where it is so.

    Raises ValueError, with a sentence, for anything else.
    """
    if not (isinstance(IMG, np.ndarray) and IMG.dtype == np.uint8 and IMG.size
            and (IMG.ndim == 2 or IMG.ndim == 3 and IMG.shape[2] in (1, 3, 4))):
        what = f"an array of {IMG.dtype} {IMG.shape}" if isinstance(IMG, np.ndarray) else repr(IMG)[:60]
        raise ValueError(f"a frame is an array of uint8, (h, w, 3), and not {what}")
    if IMG.shape[2:] != (3,):
        return cv2.cvtColor(IMG, cv2.COLOR_BGRA2BGR if IMG.shape[2:] == (4,) else cv2.COLOR_GRAY2BGR)
    return IMG if IMG.flags.c_contiguous and IMG.flags.writeable else IMG.copy(order="C")


def letterbox(IMG: np.ndarray, size: Union[int, Tuple[int, int]]) -> Tuple[np.ndarray, Placed]:
    """Fit a frame into a rectangle without distorting it, in its middle, grey around it.

    IMG: (h, w, 3) uint8 BGR, or as as_bgr() takes it; size: (width, height), or one number for a square. Returns the
    rectangle (height, width, 3) uint8 RGB, and (left, top, x_scale, y_scale): pixel (x, y) of the frame stands at (x *
    x_scale + left, y * y_scale + top) of it. The thread's next letterbox() draws into the same array.
    """
    IMG = as_bgr(IMG)
    h, w = IMG.shape[:2]
    if getattr(_canvas, "sizes", None) != (h, w, size):
        width, height = pair(size)
        scale = min(width / w, height / h)
        new_w, new_h = max(1, round(w * scale)), max(1, round(h * scale))
        left, top = (width - new_w) // 2, (height - new_h) // 2
        _canvas.square = np.full((height, width, 3), 114, np.uint8)
        _canvas.picture = _canvas.square[top:top + new_h, left:left + new_w]
        _canvas.small = np.empty((new_h, new_w, 3), np.uint8)  # a new one for each frame would cost its page faults
        _canvas.placed = left, top, new_w / w, new_h / h
        _canvas.sizes = h, w, size
    # The small image is converted, not the frame; the grey stays grey.
    cv2.resize(IMG, _canvas.small.shape[1::-1], dst=_canvas.small)
    cv2.cvtColor(_canvas.small, cv2.COLOR_BGR2RGB, dst=_canvas.picture)
    return _canvas.square, _canvas.placed


@functools.lru_cache(maxsize=None)
def _reuse(runtime: type) -> Dict[str, bool]:
    """From 2.5.0 on the wheel can leave out its own copy of the outputs; older ones do not know the word."""
    return {"reuse_outputs": True} if "reuse_outputs" in inspect.signature(runtime.inference).parameters else {}


def infer(rknn_lite: Any, square: np.ndarray) -> List[np.ndarray]:
    """The model's outputs, float32, for an image of the size it takes, (height, width, 3) uint8 RGB. The context's next
    inference may overwrite them.

    Raises ModelError where inference fails.
    """
    # the 2.x wheel takes 4 dimensions only
    return _checked(rknn_lite, square, rknn_lite.inference(inputs=[square[np.newaxis]], **_reuse(type(rknn_lite))))


def infer_raw(rknn_lite: Any, square: np.ndarray) -> List[Raw]:
    """As infer(), but the outputs as the NPU leaves them: for each (array, scale, zero point), of which a value is
    (stored - zero point) * scale. From a runtime without inference_raw(): float32, 1, 0."""
    if not hasattr(rknn_lite, "inference_raw"):
        return [(output, 1.0, 0) for output in infer(rknn_lite, square)]
    return _checked(rknn_lite, square, rknn_lite.inference_raw([square[np.newaxis]]))


def _checked(rknn_lite: Any, square: np.ndarray, outputs: Optional[list]) -> list:
    if outputs is None:
        place = getattr(rknn_lite, "place", None)
        reason = getattr(rknn_lite, "error", None) or "the runtime's own message stands above"
        raise ModelError(f"{f'{place}: ' if place else ''}inference of an input of shape {square[np.newaxis].shape} "
                         f"failed: {reason}")
    return outputs


def as_raw(outputs: Sequence[Union[np.ndarray, Raw]]) -> List[Raw]:
    """Outputs as infer() or infer_raw() gives them, all as the latter."""
    return [output if isinstance(output, tuple) else (output, 1.0, 0) for output in outputs]


def floats(stored: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Stored values as float32: (stored - zero point) * scale."""
    if stored.dtype.kind == "f":
        return stored.astype(np.float32, copy=False)
    values = stored.astype(np.float32)
    values -= np.float32(zero_point)
    values *= np.float32(scale)
    return values


@functools.lru_cache(maxsize=1000)
def raw_threshold(value: float, scale: float, zero_point: int, dtype: np.dtype) -> Union[int, float]:
    """The least stored value whose floats() reach `value`: what is compared needs not be dequantised first."""
    if dtype.kind == "f":
        return value
    every = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)  # int8 or int16
    return int(every[0] + np.count_nonzero(floats(every, scale, zero_point) < value))


def before_sigmoid(planes: Sequence[Raw]) -> bool:
    """Whether scores still lack their sigmoid: a good part of them, over all heads, lies outside 0..1. planes: (array
    (rows, cells), scale, zero point) of each head; of many cells some hundred tell. A few broken values do not."""
    outside = count = 0
    for stored, scale, zero in planes:
        sample = stored[:, ::max(1, stored.shape[1] // 300)]
        count += sample.size
        if stored.dtype.kind == "f" or not _holds_scores(scale, zero, stored.dtype):
            outside += np.count_nonzero(np.abs(floats(sample, scale, zero) - np.float32(0.5)) > 0.51)
    return 4 * outside > count


@functools.lru_cache(maxsize=100)
def _holds_scores(scale: float, zero_point: int, dtype: np.dtype) -> bool:
    """Whether no value outside 0..1 can be stored."""
    ends = floats(np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype), scale, zero_point)
    return bool((np.abs(ends - 0.5) <= 0.51).all())


def as_scores(values: np.ndarray, sigmoid: bool) -> np.ndarray:
    """Scores in 0..1 of float32 values that lack their sigmoid, or do not; a broken value, above 1, becomes NaN."""
    if sigmoid:
        return 1 / (1 + np.exp(-values))
    if len(values) == 0 or values.max() <= 1:
        return values
    return np.where(values <= 1.01, np.minimum(values, 1), np.float32(np.nan))  # int8 reaches 1.004


def logit(score: float) -> float:
    """The value whose sigmoid is `score`."""
    return float(np.log(score / (1 - score))) if 0 < score < 1 else float("inf" if score >= 1 else "-inf")


def reads(model: Model) -> bool:
    """Whether a model's outputs are those that decode() reads; a model that says nothing is taken for one by
    func.py's settings."""
    if model.task not in (None, "detect"):
        return False
    shapes = [shape for _, shape in model.outputs]
    if not shapes:
        return True
    # YOLOv7's have the same layout with other anchors, YOLOX's with 13, 16, ... classes the same shapes
    if "yolov7" in os.path.basename(model.path).lower() or model.names and len(model.names) + 5 in shapes[0][1:2]:
        return False
    try:
        _heads(tuple(shapes), pair(model.size or IMG_SIZE), None, tuple(ANCHORS))
    except ModelError:
        return False
    return True


@functools.lru_cache(maxsize=100)
def _heads(shapes: Tuple[Tuple[int, ...], ...], size: Tuple[int, int], classes: Optional[int],
           strides: Tuple[int, ...]) -> Tuple[int, List[int]]:
    """Number of classes (any, if `classes` is None) and each output's stride. Raises ModelError for shapes that are not
    YOLOv5's."""
    flat = [(1, shape[1] * shape[2]) + shape[3:] if len(shape) == 5 and shape[:2] == (1, 3) else shape
            for shape in shapes]
    count = flat[0][1] // 3 - 5 if classes is None and flat and len(flat[0]) == 4 else classes or 0
    if count < 1:
        count = len(CLASSES)
    expected = {(1, 3 * (5 + count), size[1] // stride, size[0] // stride): stride for stride in strides}
    if sorted(flat) != sorted(expected):
        at = size[0] if size[0] == size[1] else f"{size[0]} x {size[1]}"
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, shapes))}, but func.py reads YOLOv5 "
                         f"with {count} classes at {at} pixels: {', '.join(map(str, expected))}")
    return count, [expected[shape] for shape in flat]


def decode(outputs: Sequence[Union[np.ndarray, Raw]], model: Optional[Model] = None,
           anchors: Optional[Dict[int, Sequence[Tuple[int, int]]]] = None
           ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes from YOLOv5's heads, before NMS.

    outputs: as infer() or infer_raw() gives them, in any order, three arrays (1, 3 * (5 + classes), height / s, width /
    s) or (1, 3, 5 + classes, height / s, width / s) at strides s = 8, 16, 32, after the sigmoid; or before it, as
    toolkit 1.x exports them, which is told by an objectness outside 0..1. Channels per anchor are x, y, w, h,
    objectness, classes; x = (2 sx - 0.5 + column) s, w = (2 sw)^2 anchor (Ultralytics YOLOv5 6.0).
    model: what is known of the model; without one, the settings on top of this file say its size and classes. anchors:
    others than ANCHORS.
    Returns boxes (n, 4) float32 xyxy in pixels of the model's input, classes (n,) int64, scores (n,) float32.
    Raises ModelError for outputs of other shapes.
    """
    anchors, wanted = anchors or ANCHORS, settings(model)
    heads = as_raw(outputs)
    classes = None if getattr(model, "outputs", None) else len(names_of(model))
    count, strides = _heads(tuple(np.shape(head) for head, _, _ in heads), wanted.size, classes, tuple(anchors))
    heads = [(head.reshape(3, 5 + count, -1), scale, zero) for head, scale, zero in heads]
    sigmoid = before_sigmoid([(head[:, 4], scale, zero) for head, scale, zero in heads])
    least = logit(wanted.conf) if sigmoid else wanted.conf
    found, grids = [], []
    for (head, scale, zero), stride in zip(heads, strides):
        # The objectness plane alone rules out nearly all anchors; only those left are gathered and computed.
        candidates = np.flatnonzero(head[:, 4] >= raw_threshold(least, scale, zero, head.dtype))
        anchor, cell = np.divmod(candidates, head.shape[2])
        found.append(head[anchor, :, cell])  # (n, 5 + classes)
        grid = _grid(wanted.size[0] // stride, wanted.size[1] // stride, stride, tuple(anchors[stride]))
        grids.append(grid.take(candidates, 1))
    stored, grids = np.concatenate(found), np.concatenate(grids, 1)
    if len(stored) == 0:
        return np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.float32)
    # (5 + classes, n), in which the best class is found in half the time; only it, the box and the objectness become
    # floats, each with its head's scale and zero point
    stored = cv2.transpose(stored.astype(np.float32) if stored.dtype == np.float16 else stored)
    best = np.maximum.reduce(stored[5:], 0)
    numbers = (stored[5:] == best).argmax(0)
    values = np.empty((6, len(best)), np.float32)
    values[:5], values[5] = stored[:5], best
    if stored.dtype.kind != "f":
        counts = [len(part) for part in found]
        values -= np.repeat(np.float32([zero for _, _, zero in heads]), counts)
        values *= np.repeat(np.float32([scale for _, scale, _ in heads]), counts)
    if sigmoid:
        values = 1 / (1 + np.exp(-values))
    scores = values[5] * values[4]
    passed = np.flatnonzero(scores >= wanted.conf)
    if len(passed) < len(scores):
        values, grids, numbers, scores = values.take(passed, 1), grids.take(passed, 1), numbers[passed], scores[passed]
    centre, half = values[:2] * grids[0], values[2:4]
    centre += grids[1:3]
    half *= half
    half *= grids[3:]
    boxes = np.empty((4, len(scores)), np.float32)
    np.subtract(centre, half, out=boxes[:2])
    np.add(centre, half, out=boxes[2:])
    return boxes.T, numbers, as_scores(scores, False)


@functools.lru_cache(maxsize=100)
def _grid(columns: int, rows: int, stride: int, anchors: Tuple[Tuple[int, int], ...]) -> np.ndarray:
    """Of each anchor of a head 2 s, x and y of the box at sx = sy = 0, half its width and height at sw = sh = 1: (5, 3
    cells) float32, the first anchor's cells first."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    grid = np.empty((5, 3, rows * columns), np.float32)
    grid[0], grid[1], grid[2] = 2 * stride, (column - 0.5) * stride, (row - 0.5) * stride
    grid[3:] = 2 * np.float32(anchors).T[:, :, np.newaxis]
    return grid.reshape(5, -1)


def suppress(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, wanted: Settings) -> np.ndarray:
    """Non-maximum suppression, class by class: the places of the at most MAX_BOXES boxes (n, 4) xyxy that stay, best
    first: (k,) int64. What is not finite goes, and what is of no class in wanted.keep."""
    places = None
    # A value that is not finite, or very large, shows in the sum of squares, which is soonest had.
    if wanted.keep is not None or not np.isfinite(np.vdot(boxes.T, boxes.T) + np.vdot(scores, scores)):
        good = np.isfinite(boxes).all(1) & np.isfinite(scores)
        if wanted.keep is not None:
            good &= np.isin(classes, list(wanted.keep))
        places = np.flatnonzero(good)
        boxes, classes, scores = boxes[places], classes[places], scores[places]
    if len(boxes) > 10 * MAX_BOXES:  # 19,000 boxes, as a broken model gives them, would take seconds
        best = np.argpartition(-scores, 10 * MAX_BOXES)[:10 * MAX_BOXES]
        places = best if places is None else places[best]
        boxes, classes, scores = boxes[best], classes[best], scores[best]
    order = _best_first(scores, wanted.conf)
    sides, classes = boxes.T.take(order, 1).astype(np.float64), classes[order]
    sides[2:] -= sides[:2]  # (4, n) xywh
    led, rest = _by_leaders(sides, classes, wanted.iou) if len(order) > FEW else ([], np.arange(len(order)))
    stay = led
    if len(rest):
        # OpenCV takes in float64 and int32 that lie in a row twice as fast as others.
        boxes, classes = np.ascontiguousarray(sides.take(rest, 1).T), classes[rest].astype(np.int32)
        scores = scores[order[rest]]
        if hasattr(cv2.dnn, "NMSBoxesBatched"):
            stay = cv2.dnn.NMSBoxesBatched(boxes, scores, classes, wanted.conf, wanted.iou)
        else:  # OpenCV 4.6, which Debian 12 has: each class is moved to a place of its own
            boxes[:, 0] += classes * (np.ptp(boxes[:, 0]) + boxes[:, 2].max() + 1.0)
            stay = cv2.dnn.NMSBoxes(boxes, scores, wanted.conf, wanted.iou)
        stay = np.concatenate([led, rest[np.asarray(stay, np.int64).ravel()]]).astype(np.int64)
        stay.sort()
    stay = order[stay[:MAX_BOXES]]
    return stay if places is None else places[stay]


def _best_first(scores: np.ndarray, conf: float) -> np.ndarray:
    """The places of the scores (n,) float32 above the confidence, as OpenCV's NMS has it; of equals the first first."""
    places = np.flatnonzero(scores > np.float32(conf))
    if conf < 0:
        return places[np.argsort(-scores[places], kind="stable")]
    # Positive floats have the order of their bits. To sort them with their places takes half of argsort's time.
    keys = scores[places].astype(np.float32, copy=False).view(np.int32).astype(np.int64)
    keys <<= 32
    np.subtract(places, keys, out=keys)
    keys.sort()
    keys &= 0xffffffff
    return keys


def _by_leaders(sides: np.ndarray, classes: np.ndarray, iou: float) -> Tuple[np.ndarray, np.ndarray]:
    """A round of NMS for all classes at once: the best box of each stays, and what it suppresses goes, which is most.
    sides: (4, n) float64 xywh, best first. Returns the places of those that stay, and of the others that are left.

    To take in 500 boxes costs OpenCV more time than this round."""
    count, area = len(classes), sides[2] * sides[3]
    if iou >= 1 or classes.min() < 0 or classes.max() > 100_000 or not area.min() > 0:
        return np.empty(0, np.int64), np.arange(count)
    leader = np.empty(classes.max() + 1, np.int64)
    leader[classes[::-1]] = np.arange(count - 1, -1, -1)  # of those that come again the last assignment counts
    leader = leader[classes]
    led = np.flatnonzero(leader == np.arange(count))
    if count > 40 * len(led):  # a crowd of one class, where it would not pay
        return np.empty(0, np.int64), np.arange(count)
    start, end = sides[:2], sides[:2] + sides[2:]
    both = np.minimum(end, end.take(leader, 1))
    both -= np.maximum(start, start.take(leader, 1))
    both = np.maximum(both, 0, out=both).prod(0)
    left = both <= iou * (area + area[leader] - both)
    left[led] = False
    return led, np.flatnonzero(left)


def nms(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, model: Optional[Model] = None
        ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """suppress() by a model's settings, or by this file's: boxes, classes and scores that stay."""
    stay = suppress(boxes, classes, scores, settings(model))
    return boxes[stay], classes[stay], scores[stay]


def unletterbox(boxes: np.ndarray, placed: Placed, IMG: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) xyxy from pixels of letterbox()'s rectangle to pixels of the frame IMG, cut to it."""
    left, top, x_scale, y_scale = placed
    h, w = IMG.shape[:2]
    boxes = (boxes - np.float32([left, top, left, top])) / np.float32([x_scale, y_scale, x_scale, y_scale])
    return boxes.clip(0, np.float32([w, h, w, h]))


def detect(rknn_lite: Any, IMG: np.ndarray, decode: Callable = decode) -> Detections:
    """Find the objects of a frame.

    rknn_lite: an RKNNLite context, which may have a `model`; IMG: (h, w, 3) uint8 BGR, or as as_bgr() takes it; decode:
    reads the model's outputs, as decode() does. Returns at most MAX_BOXES Detections. Raises ModelError where the model
    cannot be run or read, ValueError where IMG is no frame.
    """
    model = getattr(rknn_lite, "model", None)
    square, placed = letterbox(IMG, settings(model).size)
    outputs = infer_raw(rknn_lite, square)
    with np.errstate(over="ignore", invalid="ignore"):  # of a broken model; nms() drops what comes of it
        boxes, classes, scores = nms(*decode(outputs, model), model)
    boxes = unletterbox(boxes, placed, IMG)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)  # and not beside the frame, on the grey
    names = names_of(model, getattr(model, "classes", None))
    if seen.all():
        return Detections(boxes, classes, scores, names)
    return Detections(boxes[seen], classes[seen], scores[seen], names)


@functools.lru_cache(maxsize=None)
def colour(number: int) -> Tuple[int, int, int]:
    """The colour of a class, BGR: hues a golden angle apart, so that neighbours in the list differ."""
    return tuple(int(255 * c) for c in reversed(colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.85, 1.0)))


# scores have two digits, so labels come again: to draw them was half of draw()'s time
@functools.lru_cache(maxsize=2000)
def label(text: str, number: int, size: float) -> np.ndarray:
    """The picture of a label, (h, w, 3) uint8 BGR: a text in OpenCV's font scale `size`, on the colour of a class.

    What OpenCV's font lacks (before OpenCV 5 all but ASCII) is drawn by Pillow where it is installed and finds a font;
    else the class's number stands for it, which is said once.
    """
    font, paint = cv2.FONT_HERSHEY_SIMPLEX, colour(number)
    light = 0.114 * paint[0] + 0.587 * paint[1] + 0.299 * paint[2] > 110  # luma, ITU-R BT.601
    ink = (0, 0, 0) if light else (255, 255, 255)
    if not text.isascii() and int(cv2.__version__.split(".")[0]) < 5:
        try:
            from funcs.shapes import text_picture  # only where it is needed: func.py works without its neighbours
            return text_picture(text, round(30 * size), paint, ink)
        except ImportError:
            _say_once(f"OpenCV {cv2.__version__} cannot draw all letters of the class names: their numbers are shown. "
                      f"OpenCV 5 can, or Pillow (pip install pillow) with a font that has them (apt install "
                      f"fonts-noto-cjk).")
            text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if letter.isascii()).strip()
            text = text if any(map(str.isalpha, text)) else f"{number} {text}"
    (w, h), below = cv2.getTextSize(text, font, size, 1)
    picture = np.full((h + below + 2, w + 1, 3), paint, np.uint8)
    return cv2.putText(picture, text, (0, h + 1), font, size, ink, 1, cv2.LINE_AA)


def paste(IMG: np.ndarray, picture: np.ndarray, x: int, y: int) -> None:
    """Lay a label() on the frame, its upper left corner at pixel (x, y) of it; what lies outside the frame is left
    out."""
    place = IMG[y:y + picture.shape[0], x:x + picture.shape[1]]
    place[:] = picture if place.shape == picture.shape else picture[:place.shape[0], :place.shape[1]]


def label_places(boxes: Sequence[Sequence[int]], pictures: Sequence[np.ndarray], h: int, w: int
                 ) -> List[Tuple[int, int]]:
    """Where the labels of boxes (x1, y1, x2, y2) go in a frame of h x w pixels, the first having the choice: the
    upper left corner of each.

    A label stands above its box, at the frame's upper edge inside it. None lies upon another as long as there is room:
    then it stands within its box, at its right end, over or under the other, or at the nearest free place.
    """
    tall = max(map(len, pictures), default=1)
    # those placed, by the band of rows that they begin in: what touches one begins in its band or a neighbour of it
    bands: List[List[Tuple[int, int, int, int]]] = [[] for _ in range(h // tall + 3)]
    places, crowded = [], False
    for (x1, y1, x2, y2), picture in zip(boxes, pictures):
        high, wide, _ = picture.shape
        end, low = max(0, w - wide), max(0, h - high)  # the last places inside the frame
        x, y = x1 if x1 < end else end, y1 + 1 - high if y1 < low else low
        x, y = x if x > 0 else 0, y if y > 0 else 0
        if not _free(bands, tall, x, y, wide, high):
            near = [(x, y + way * far) for far in range(high, h, high) for way in (-1, 1) if 0 <= y + way * far <= low]
            near[:0] = [(x, max(0, min(y1, low))), (max(0, min(x2 - wide, end)), y)]
            near.insert(4, (x, max(0, min(y2, low))))
            found = next((place for place in near if _free(bands, tall, *place, wide, high)), None)
            if found is None and not crowded:  # once there is no room, the others need not search
                found = _nearest_free(bands, x, y, (high, wide), (h, w))
                crowded = found is None
            x, y = found or (x, y)
        bands[y // tall + 1].append((x, y, x + wide, y + high))
        places.append((x, y))
    return places


def _free(bands: list, tall: int, x: int, y: int, wide: int, high: int) -> bool:
    band, end, low = y // tall, x + wide, y + high
    for left, top, right, bottom in bands[band] + bands[band + 1] + bands[band + 2]:
        if left < end and x < right and top < low and y < bottom:
            return False
    return True


def _nearest_free(bands: list, x: int, y: int, label: Tuple[int, int], frame: Tuple[int, int]
                  ) -> Optional[Tuple[int, int]]:
    """The place nearest to (x, y) for a label of (h, w) where no other lies, on a grid of a few pixels; None where
    there is none."""
    step = max(1, min(frame) // 180)
    rows, columns = frame[0] // step, frame[1] // step
    high, wide = -(-label[0] // step), -(-label[1] // step)
    if high > rows or wide > columns:
        return None
    taken = np.zeros((rows, columns), np.uint8)
    for left, top, right, bottom in (placed for band in bands for placed in band):
        taken[top // step:-(-bottom // step), left // step:-(-right // step)] = 1
    sums = cv2.integral(taken)
    sums = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    free_y, free_x = np.nonzero(sums == 0)
    if len(free_y) == 0:
        return None
    nearest = np.argmin((free_x * step - x) ** 2 + (free_y * step - y) ** 2)
    return int(free_x[nearest]) * step, int(free_y[nearest]) * step


def draw(IMG: np.ndarray, detections: Any, classes: Optional[np.ndarray] = None, scores: Optional[np.ndarray] = None
         ) -> np.ndarray:
    """Draw Detections on IMG (h, w, 3) uint8 BGR, in place; returns it, or of other frames as_bgr()'s copy. Drawn is
    what they have: boxes or corners, masks, key points, and a label with id, name and score.

    As in earlier versions boxes, classes, scores may be given one by one, with the names of CLASSES.
    """
    if classes is not None:
        detections = Detections(detections, classes, scores, names_of(None))
    IMG = as_bgr(IMG)
    h, w = IMG.shape[:2]
    thickness, size = max(1, round(min(h, w) / 360)), max(0.3, min(h, w) / 1200)
    captions = [f"{detections.name(number)} {score:.2f}"
                for number, score in zip(detections.classes.tolist(), detections.scores.tolist())]
    if detections.ids is not None:
        captions = [f"#{number} {caption}" if number >= 0 else caption  # not sure yet
                    for number, caption in zip(detections.ids.tolist(), captions)]
    if detections.boxes is None:  # a classifier's
        row = 0
        for caption, number in zip(captions, detections.classes.tolist()):
            picture = label(caption, number, max(0.3, min(h, w) / 900))
            paste(IMG, picture, 0, row)
            row += len(picture)
        return IMG
    boxes, numbers = detections.boxes.astype(int).tolist(), detections.classes.tolist()
    more = detections.masks is not None or detections.keypoints is not None or detections.corners is not None
    if more:
        from funcs import shapes  # only decoders in funcs/ find them
        shapes.draw_masks(IMG, detections, colour)
        shapes.draw_corners(IMG, detections, colour, thickness)
    if detections.corners is None:
        # The weakest first, so that the best box lies on top.
        for (x1, y1, x2, y2), number in zip(boxes[::-1], numbers[::-1]):
            paint, x2, y2 = colour(number), min(x2, w - 1), min(y2, h - 1)
            for inner in range(thickness):  # OpenCV draws thin lines so much faster that two cost half of one thick
                cv2.rectangle(IMG, (x1 + inner, y1 + inner), (x2 - inner, y2 - inner), paint)
    if more:
        shapes.draw_keypoints(IMG, detections, thickness)
    pictures = [label(caption, number, size) for caption, number in zip(captions, numbers)]
    for picture, (x, y) in zip(pictures, label_places(boxes, pictures, h, w)):
        paste(IMG, picture, x, y)
    return IMG


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return draw(IMG, detect(rknn_lite, IMG))
