"""myFunc for ResNet, MobileNet and other classifiers: the five best classes are written on the
frame.

    python main.py --model models/resnet18_emoji.rknn

It reads models with one output (1, classes) or (1, classes, 1, 1): exports of torchvision, timm,
Rockchip's model zoo and Ultralytics (-cls) among others. Mean and standard deviation of the input
belong to the model: docs/models.md says how to set them.
"""
from __future__ import annotations

import os
from typing import Any, Optional, Sequence, Tuple

import cv2
import numpy as np

from vision.coco import COCO_CLASSES
from vision.detections import Detections
from vision.drawing import draw
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import as_bgr
from vision.quantised import as_raw, sigmoid
from vision.settings import Size, names_of, pair, settings_of

# --------------------------------------------------------------------------------------------------
IMG_SIZE = 224          # side or (width, height) of the input, if the model does not state it
CROP = 224 / 256        # part of the frame's shorter side that the model sees, as in torchvision
TOP = 5                 # classes shown, the best first
SCORES = None           # the outputs: "probabilities", "logits" (softmax: one class is right) or
                        # "multilabel" (sigmoid for each class); None: decided by the values
CLASSES = COCO_CLASSES  # the names for a model without names, such as the demo model
# --------------------------------------------------------------------------------------------------

BOXES = False  # detect() returns classes of the whole frame
IMAGENET_COUNTS = 1000, 1001, 21841, 21843    # classes of models trained on ImageNet
Shapes = Sequence[Tuple[int, ...]]


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Classify a frame (h, w, 3) uint8 BGR, write its best classes on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: np.ndarray) -> Detections:
    """The best classes of a frame: Detections without boxes, at most TOP, best first.

    rknn_lite: a context of the pool; IMG: (h, w, 3) uint8 BGR. There are fewer if the model has
    fewer classes, values that are not finite, or conf or class_ids that exclude some. Raises
    ModelError if the model cannot be run or read; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    outputs = infer_raw(rknn_lite, preprocess(IMG, model))
    scores = probabilities(outputs, rknn_lite if model is None else model)
    if len(scores) == 1 and len(getattr(model, "names", None) or ()) == 2:
        scores = np.concatenate([1 - scores, scores])  # the only output is the score of class 1
    names = names_of(model, len(scores), CLASSES)
    settings = settings_of(model, conf=0)
    selected = scores >= settings.conf    # NaN is not
    if settings.class_ids is not None:
        selected &= np.isin(np.arange(len(scores)), list(settings.class_ids))
    classes = np.flatnonzero(selected)
    classes = classes[np.argsort(-scores[classes], kind="stable")[:TOP]]
    return Detections(None, classes, scores[classes], names)


def classify(rknn_lite: Any, IMG: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The classes (n,) int64 and scores (n,) float32 of detect()."""
    found = detect(rknn_lite, IMG)
    return found.classes, found.scores


def reads(model: Any) -> bool:
    """True if a model is a classifier.

    Its one output must be (1, n) or (1, n, 1, 1). Embeddings have the same shape, so one more sign
    is needed: the model's task, scores or class names, or a known n, which is one of
    IMAGENET_COUNTS or the number of names in CLASSES.
    """
    shapes = [shape for _, shape in model.outputs]
    if model.task not in (None, "classify") or not is_vector(shapes):
        return False
    count = shapes[0][1]
    named = model.names is not None and (len(model.names) == count or count == 1)
    return (model.task == "classify" or model.scores is not None or named
            or count in (*IMAGENET_COUNTS, len(CLASSES)))


def unclear(model: Any) -> Optional[str]:
    """What the output of a model may be that may be a classifier, but also an embedding."""
    shapes = [shape for _, shape in model.outputs]
    if len(shapes) != 1 or len(shapes[0]) not in (2, 4) or shapes[0][2:] not in ((), (1, 1)):
        return None
    return (f"its output {shapes[0]} may be a classifier's or an embedding. If it is a "
            "classifier's, write its class names into "
            f"{os.path.splitext(model.path)[0]}.txt, one per line, or give --func "
            "funcs/resnet.py.")


def is_vector(shapes: Shapes) -> bool:
    """True for one output (1, n) or (1, n, 1, 1)."""
    return (len(shapes) == 1 and len(shapes[0]) in (2, 4) and shapes[0][0] == 1
            and shapes[0][1] > 0 and tuple(shapes[0][2:]) in ((), (1, 1)))


def preprocess(IMG: np.ndarray, model: Any) -> np.ndarray:
    """What a model sees of a frame: (height, width, 3) uint8 RGB. model: a Model, or None."""
    size = settings_of(model, IMG_SIZE).size
    if getattr(model, "task", None) == "classify" and "imgsz" in model.metadata:  # Ultralytics
        return crop_like_ultralytics(IMG, size)
    return crop(IMG, size)


def crop(IMG: np.ndarray, size: Size, share: Optional[float] = None) -> np.ndarray:
    """The middle of a frame. torchvision scales the shorter side to 256 pixels and cuts out 224;
    this does both in one step.

    IMG: (h, w, 3) uint8 BGR, or what as_bgr() converts; size: (width, height), or one number for a
    square; share: of the frame's shorter side, CROP if None. Returns (height, width, 3) uint8 RGB.
    """
    IMG, (width, height) = as_bgr(IMG), pair(size)
    h, w = IMG.shape[:2]
    scale = min(w / width, h / height) * (CROP if share is None else share)
    cut_w, cut_h = max(1, round(width * scale)), max(1, round(height * scale))
    x, y = (w - cut_w) // 2, (h - cut_h) // 2
    middle = cv2.resize(IMG[y:y + cut_h, x:x + cut_w], (width, height))
    return cv2.cvtColor(middle, cv2.COLOR_BGR2RGB)


def crop_like_ultralytics(IMG: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """What Ultralytics' classifiers see of a frame: the middle for a square input, else the whole
    frame, distorted; scaled by Pillow with antialiasing. Without Pillow, crop() takes the middle.

    IMG: (h, w, 3) uint8 BGR, or what as_bgr() converts; size: (width, height). Returns (height,
    width, 3) uint8 RGB.
    """
    try:
        from PIL import Image
    except ImportError:
        return crop(IMG, size, 1)
    IMG, (width, height) = as_bgr(IMG), size
    h, w = IMG.shape[:2]
    new_w, new_h = size
    if width == height:  # as torchvision's Resize and CenterCrop round
        new_w, new_h = (int(width * w / h), width) if w >= h else (width, int(width * h / w))
    x, y = round((new_w - width) / 2), round((new_h - height) / 2)
    picture = Image.fromarray(cv2.cvtColor(IMG, cv2.COLOR_BGR2RGB))
    picture = picture.resize((new_w, new_h), resample=2)  # bilinear; its name changed in Pillow 9
    return np.array(picture)[y:y + height, x:x + width]


def probabilities(outputs: Sequence[Any], owner: Any = None) -> np.ndarray:
    """The score of each class, (classes,) float32 in 0..1; NaN if the model's value is not finite.

    outputs: of infer() or infer_raw(). owner: a Model or context; the kind of the outputs, once the
    values show it, is stored in its attribute `scores`, so that it stays the same for all frames.
    Raises ModelError unless there is one output (1, classes) or (1, classes, 1, 1).
    """
    raw = as_raw(outputs)
    shapes = [output.shape for output in raw]
    if not is_vector(shapes):
        raise unknown_outputs(shapes, "funcs/resnet.py reads a classifier's one output, (1, "
                                      "classes) or (1, classes, 1, 1)")
    # A copy, because the context's next inference may overwrite the output.
    scores = np.array(raw[0].floats(), np.float32).ravel()
    finite = np.isfinite(scores)
    values = scores[finite]
    kind = SCORES or getattr(owner, "scores", None)
    if kind is None or kind == "probabilities" and not SCORES and outside(values):
        kind = kind_of(values)
        if owner is not None and finite.all():
            owner.scores = kind
    if kind == "multilabel" or kind == "logits" and len(scores) == 1:
        values = sigmoid(values.clip(-80, 80))
    elif kind == "logits" and len(values):
        with np.errstate(over="ignore"):  # values of a broken model
            values = np.exp(values - values.max())
        values = values / values.sum()
    scores[finite] = values.clip(0, 1)
    scores[~finite] = np.nan
    return scores


def kind_of(values: np.ndarray) -> str:
    """"probabilities", or "logits" if values lie outside 0..1 or do not add up to 1.

    In int8 each of n probabilities is rounded by up to 1/510, so that the sum is off by up to
    n / 510. It is never off by more than 1: at most 510 of them can be half a step.
    """
    error = abs(float(values.sum()) - 1)
    adds_up = len(values) < 2 or error <= min(1, len(values) / 510 + 0.002)
    return "probabilities" if adds_up and not outside(values) else "logits"


def outside(values: np.ndarray) -> bool:
    """True if a value cannot be a probability; int8 rounds to -0.004 .. 1.004."""
    return bool(((values < -0.01) | (values > 1.01)).any())
