"""myFunc for YOLOv5: letterbox, inference, decoding of Rockchip's three heads, boxes drawn. Replace it with your own.

A func for the pool takes (context, frame), calls context.inference once, and returns what the caller of the pool shall
get.
"""
import colorsys
import functools
import inspect
import threading

import cv2
import numpy as np

from rknnmodel import ModelError

# --------------------------------------------------------------------------------------------------------------------
OBJ_THRESH = 0.25  # least score (objectness * class) of a box
NMS_THRESH = 0.45  # of two boxes of one class that overlap with a higher IoU the weaker one goes
MAX_BOXES = 300    # of a frame at most, the best ones; ten times as many go into NMS
IMG_SIZE = 640     # width and height of the model's input in pixels
ANCHORS = {        # stride: three anchors' width, height in pixels of the model's input
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}
CLASSES = (        # COCO's
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra",
    "giraffe",
    "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife",
    "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair",
    "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# --------------------------------------------------------------------------------------------------------------------


_canvas = threading.local()  # what letterbox() keeps for each thread


def as_bgr(IMG):
    """A frame, (h, w) or (h, w, 1) grey, (h, w, 3) BGR or (h, w, 4) BGRA, uint8, as (h, w, 3) that can be drawn on:
    itself where it is so.

    Raises ValueError, with a sentence, for anything else.
    """
    good = isinstance(IMG, np.ndarray) and IMG.dtype == np.uint8 and IMG.ndim in (2, 3) and IMG.shape[2:] in ((), (1,),
                                                                                                              (3,),
                                                                                                                  (4,))
    if not good or IMG.size == 0:
        what = f"an array of {IMG.dtype} {IMG.shape}" if isinstance(IMG, np.ndarray) else repr(IMG)[:60]
        raise ValueError(f"a frame is an array of uint8, (h, w, 3), and not {what}")
    if IMG.shape[2:] != (3,):
        return cv2.cvtColor(IMG, cv2.COLOR_BGRA2BGR if IMG.shape[2:] == (4,) else cv2.COLOR_GRAY2BGR)
    return IMG if IMG.flags.c_contiguous and IMG.flags.writeable else IMG.copy(order="C")


def letterbox(IMG, size):
    """Fit a frame into a square without distorting it, grey around it.

    IMG: (h, w, 3) uint8 BGR, or as as_bgr() takes it. Returns the square (size, size, 3) uint8 RGB, and (left, top,
    x_scale, y_scale): pixel (x, y) of the frame stands at (x * x_scale + left, y * y_scale + top) of the square. The
    thread's next letterbox() draws into the same square.
    """
    IMG = as_bgr(IMG)
    h, w = IMG.shape[:2]
    if getattr(_canvas, "sizes", None) != (h, w, size):
        scale = size / max(h, w)
        new_w, new_h = max(1, round(w * scale)), max(1, round(h * scale))
        left, top = (size - new_w) // 2, (size - new_h) // 2
        _canvas.square = np.full((size, size, 3), 114, np.uint8)
        _canvas.picture = _canvas.square[top:top + new_h, left:left + new_w]
        _canvas.small = np.empty((new_h, new_w, 3), np.uint8)  # a new one for each frame would cost its page faults
        _canvas.placed = left, top, new_w / w, new_h / h
        _canvas.sizes = h, w, size
    # The small image is converted, not the frame; the grey stays grey.
    cv2.resize(IMG, _canvas.small.shape[1::-1], dst=_canvas.small)
    cv2.cvtColor(_canvas.small, cv2.COLOR_BGR2RGB, dst=_canvas.picture)
    return _canvas.square, _canvas.placed


@functools.lru_cache(maxsize=None)
def _reuse(runtime):
    """From 2.5.0 on the wheel can leave out its own copy of the outputs; older ones do not know the word."""
    return {"reuse_outputs": True} if "reuse_outputs" in inspect.signature(runtime.inference).parameters else {}


def infer(rknn_lite, square):
    """The model's outputs for an image of the size it takes, (size, size, 3) uint8 RGB. The context's next inference
    may overwrite them.

    Raises ModelError where inference fails.
    """
    # the 2.x wheel takes 4 dimensions only
    outputs = rknn_lite.inference(inputs=[square[np.newaxis]], **_reuse(type(rknn_lite)))
    if outputs is None:
        reason = getattr(rknn_lite, "error", None) or "the runtime's own message stands above"
        raise ModelError(f"inference of an input of shape {square[np.newaxis].shape} failed: {reason}")
    return outputs


def decode(outputs):
    """Boxes from YOLOv5's heads, before NMS.

    outputs: three float32 arrays (1, 3 * (5 + classes), size / s, size / s) at strides s = 8, 16, 32 in any order,
    after the sigmoid; or before it, as toolkit 1.x exports them, which is told by an objectness that is mostly
    negative. Channels per anchor are x, y, w, h, objectness, classes; x = (2 sx - 0.5 + column) s, w = (2 sw)^2 anchor
    (Ultralytics YOLOv5 6.0).
    Returns boxes (n, 4) float32 xyxy in pixels of the square, classes (n,) int64, scores (n,) float32.
    Raises ModelError for outputs of other shapes.
    """
    channels = 3 * (5 + len(CLASSES))
    expected = sorted((1, channels, IMG_SIZE // stride, IMG_SIZE // stride) for stride in ANCHORS)
    found = [np.shape(output) for output in outputs]
    if sorted(found) != expected:
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, found))}, but func.py reads YOLOv5 "
                         f"with "
                         f"{len(CLASSES)} classes at {IMG_SIZE} pixels: {', '.join(map(str, reversed(expected)))}")
    found, placed = [], []
    for output in outputs:
        head = output.reshape(3, channels // 3, -1).transpose(1, 0, 2)  # (5 + classes, 3, cells)
        # The objectness plane alone rules out nearly all anchors; only those left are gathered and computed.
        sample = head[4, :, ::37]
        before_sigmoid = np.count_nonzero(sample < 0) > sample.size / 2
        least = np.log(OBJ_THRESH / (1 - OBJ_THRESH)) if before_sigmoid else OBJ_THRESH
        anchor, cell = np.divmod(np.flatnonzero(head[4] >= least), head.shape[2])
        # (5 + classes, n): the best class is found 5 times faster than in (n, 5 + classes)
        good = head[:, anchor, cell]
        found.append(1 / (1 + np.exp(-good)) if before_sigmoid else good)
        placed.append(_grid(output.shape[3], IMG_SIZE // output.shape[3])[:, anchor, cell])
    found, placed = np.concatenate(found, 1), np.concatenate(placed, 1)
    scores = found[5:].max(0) * found[4]
    good = np.flatnonzero(scores >= OBJ_THRESH)
    found, placed = found[:, good], placed[:, good]
    centre = found[:2] * placed[0] + placed[1:3]
    half = found[2:4] ** 2 * placed[3:]
    return np.concatenate([centre - half, centre + half]).T, found[5:].argmax(0), scores[good]


@functools.lru_cache(maxsize=None)
def _grid(columns, stride):
    """Of each anchor of a head 2 s, x and y of the box at sx = sy = 0, half its width and height at sw = sh = 1: (5, 3,
    cells) float32."""
    row, column = np.divmod(np.arange(columns * columns), columns)
    grid = np.empty((5, 3, columns * columns), np.float32)
    grid[0], grid[1], grid[2] = 2 * stride, (column - 0.5) * stride, (row - 0.5) * stride
    grid[3:] = 2 * np.float32(ANCHORS[stride]).T[:, :, np.newaxis]
    return grid


def nms(boxes, classes, scores):
    """Non-maximum suppression, class by class: the at most MAX_BOXES boxes, classes and scores that stay, best first.
    Boxes (n, 4) xyxy.

    What is not finite goes.
    """
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
    if not finite.all():
        boxes, classes, scores = boxes[finite], classes[finite], scores[finite]
    if len(boxes) > 10 * MAX_BOXES:  # 19,000 boxes, as a broken model gives them, would take seconds
        best = np.argpartition(-scores, 10 * MAX_BOXES)[:10 * MAX_BOXES]
        boxes, classes, scores = boxes[best], classes[best], scores[best]
    if len(boxes) == 0:
        return boxes, classes, scores
    xywh = boxes.astype(np.float64)  # OpenCV takes in float64 and int32 twice as fast as float32 and int64
    xywh[:, 2:] -= xywh[:, :2]
    keep = cv2.dnn.NMSBoxesBatched(xywh, scores, classes.astype(np.int32), OBJ_THRESH, NMS_THRESH)
    keep = np.asarray(keep, np.int64).ravel()
    keep = keep[np.argsort(-scores[keep], kind="stable")][:MAX_BOXES]
    return boxes[keep], classes[keep], scores[keep]


def unletterbox(boxes, placed, IMG):
    """Boxes (n, 4) xyxy from pixels of letterbox()'s square to pixels of the frame IMG, cut to it."""
    left, top, x_scale, y_scale = placed
    h, w = IMG.shape[:2]
    boxes = (boxes - np.float32([left, top, left, top])) / np.float32([x_scale, y_scale, x_scale, y_scale])
    return boxes.clip(0, np.float32([w, h, w, h]))


def detect(rknn_lite, IMG, decode=decode):
    """Find the objects of a frame.

    rknn_lite: an RKNNLite context; IMG: (h, w, 3) uint8 BGR, or as as_bgr() takes it; decode: reads the model's
    outputs, as decode() does. Returns boxes (n, 4) float32 xyxy in pixels of IMG, classes (n,) int64, scores (n,)
    float32, best first, n <= MAX_BOXES. Raises ModelError where the model cannot be run or read, ValueError where IMG
    is no frame.
    """
    square, placed = letterbox(IMG, IMG_SIZE)
    with np.errstate(over="ignore", invalid="ignore"):  # of a broken model; nms() drops what comes of it
        boxes, classes, scores = nms(*decode(infer(rknn_lite, square)))
    boxes = unletterbox(boxes, placed, IMG)
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)  # and not beside the frame, on the grey
    return (boxes, classes, scores) if seen.all() else (boxes[seen], classes[seen], scores[seen])


@functools.lru_cache(maxsize=None)
def colour(number):
    """The colour of a class, BGR: hues a golden angle apart, so that neighbours in the list differ."""
    return tuple(int(255 * c) for c in reversed(colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.85, 1.0)))


# scores have two digits, so labels come again: to draw them was half of draw()'s time
@functools.lru_cache(maxsize=2000)
def label(text, number, size):
    """The picture of a label, (h, w, 3) uint8 BGR: a text in OpenCV's font scale `size`, on the colour of a class."""
    font, paint = cv2.FONT_HERSHEY_SIMPLEX, colour(number)
    (w, h), below = cv2.getTextSize(text, font, size, 1)
    picture = np.full((h + below + 2, w + 1, 3), paint, np.uint8)
    light = 0.114 * paint[0] + 0.587 * paint[1] + 0.299 * paint[2] > 110  # luma, ITU-R BT.601
    return cv2.putText(picture, text, (0, h + 1), font, size, (0, 0, 0) if light else (255, 255, 255), 1, cv2.LINE_AA)


def paste(IMG, picture, x, y):
    """Lay a label() on the frame, its upper left corner at pixel (x, y) of it; what lies outside the frame is left
    out."""
    place = IMG[y:y + picture.shape[0], x:x + picture.shape[1]]
    place[:] = picture[:place.shape[0], :place.shape[1]]


def draw(IMG, boxes, classes, scores):
    """Draw detections (as detect() returns them) on IMG (h, w, 3) uint8 BGR, in place; returns it, or of other frames
    as_bgr()'s copy."""
    IMG = as_bgr(IMG)
    h, w = IMG.shape[:2]
    thickness, size = max(1, round(min(h, w) / 360)), max(0.3, min(h, w) / 1200)
    # The weakest first, so that the best box and label lie on top.
    for (x1, y1, x2, y2), number, score in zip(boxes[::-1].astype(int).tolist(), classes[::-1].tolist(),
                                               scores[::-1].tolist()):
        for inner in range(thickness):  # OpenCV draws thin lines so much faster that two of them cost half of one thick
            cv2.rectangle(IMG, (x1 + inner, y1 + inner), (min(x2, w - 1) - inner, min(y2, h - 1) - inner),
                          colour(number))
        picture = label(f"{CLASSES[number]} {score:.2f}", number, size)
        # above the box, or inside it at the frame's upper edge
        paste(IMG, picture, max(0, min(x1, w - picture.shape[1])), max(0, y1 + 1 - picture.shape[0]))
    return IMG


def myFunc(rknn_lite, IMG):
    """What the pool does with every frame: returns the frame itself, detections drawn on it."""
    return draw(IMG, *detect(rknn_lite, IMG))
