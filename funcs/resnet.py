"""myFunc for ResNet and other classifiers: the frame's centre, inference, softmax where the model has none, the best
five classes drawn.

    python main.py --func funcs/resnet.py --model models/resnet18_emoji.rknn

It reads models with one output, (1, classes) or (1, classes, 1, 1): torchvision's and Rockchip's ResNet exports among
others. Mean and standard deviation of the input belong to the model, not here: models/README.md tells how to set them.
"""
import cv2
import numpy as np

import func
from func import ModelError

# --------------------------------------------------------------------------------------------------------------------
IMG_SIZE = 224          # width and height of the model's input in pixels
# share of the frame's shorter side that the model sees; torchvision resizes to 256 and crops 224
CROP = 224 / 256
TOP = 5                 # classes shown, the best first
CLASSES = func.CLASSES  # the demo model's; ImageNet's 1000, a name a line: open("imagenet.txt").read().splitlines()
# --------------------------------------------------------------------------------------------------------------------


def crop(IMG, size):
    """The middle of a frame as the model sees it: torchvision's resizing to 256 pixels and centre crop of 224, in one
    step.

    IMG: (h, w, 3) uint8 BGR, or as func.as_bgr() takes it. Returns the square (size, size, 3) uint8 RGB: of the frame
    CROP of its shorter side, centred.
    """
    IMG = func.as_bgr(IMG)
    h, w = IMG.shape[:2]
    side = max(1, round(min(h, w) * CROP))
    x, y = (w - side) // 2, (h - side) // 2
    return cv2.cvtColor(cv2.resize(IMG[y:y + side, x:x + side], (size, size)), cv2.COLOR_BGR2RGB)


def probabilities(outputs):
    """The score of each class, (classes,) float32 in 0..1, from a model's outputs; NaN where the model's value is not
    finite.

    outputs: one float32 array (1, classes) or (1, classes, 1, 1). The values tell whether the export ends in a softmax:
    then none is negative or above 1 and they add up to 1, but in int8 only roughly, for each is rounded to a multiple
    of 1/255. A thousand faint ones vanish, or at most 510 of them (no more than that can have half a step each) are
    rounded up by half a step: the sum lies between 0 and 2. Of the logits of a trained model about half are negative;
    they get a softmax.
    Raises ModelError for outputs of other shapes.
    """
    found = [np.shape(output) for output in outputs]
    if len(found) != 1 or len(found[0]) not in (2, 4) or found[0][0] != 1 or found[0][1] < 1 or found[0][2:] not in ((),
                                                                                                                     (1, 1)):
        raise ModelError(f"the model's outputs have the shapes {', '.join(map(str, found))}, but funcs/resnet.py reads a classifier's "
                         f"one output: (1, classes), for example (1, {len(CLASSES) or 1000}), or (1, classes, 1, 1)")
    # a copy, for the context's next inference may overwrite the output
    scores = np.array(outputs[0], np.float32).ravel()
    finite = np.isfinite(scores)
    values = scores[finite]
    with np.errstate(over="ignore"):  # of a broken model
        if values.size and (values.min() < 0 or values.max() > 1.01 or values.sum() > 2):
            values = np.exp(values - values.max())
            scores[finite] = values / values.sum()
    scores[~finite] = np.nan
    return scores


def best(scores):
    """The TOP highest of scores (classes,), best first: their classes (n,) int64 and scores (n,) float32. NaN is left
    out."""
    classes = np.argsort(-scores, kind="stable")[:TOP]  # NaN comes last
    classes = classes[np.isfinite(scores[classes])]
    return classes, scores[classes]


def classify(rknn_lite, IMG):
    """Say what the middle of a frame shows.

    rknn_lite: an RKNNLite context; IMG: (h, w, 3) uint8 BGR, or as func.as_bgr() takes it. Returns classes (5,) int64,
    scores (5,) float32 in 0..1, best first; fewer where the model has fewer classes, or values that are not finite.
    Raises ModelError where the model cannot be run or read, ValueError where IMG is no frame.
    """
    return best(probabilities(func.infer(rknn_lite, crop(IMG, IMG_SIZE))))


def draw(IMG, classes, scores, names=None):
    """Write classes and scores (as classify() returns them) on IMG (h, w, 3) uint8 BGR, top left, in place; returns it,
    or of other frames as_bgr()'s copy.

    names: a class's name at its number, CLASSES if not given. A class without one is shown as its number.
    """
    IMG = func.as_bgr(IMG)
    names = CLASSES if names is None else names
    size, y = max(0.3, min(IMG.shape[:2]) / 900), 0
    for number, score in zip(classes.tolist(), scores.tolist()):
        picture = func.label(f"{names[number] if number < len(names) else number} {score:.2f}", number, size)
        func.paste(IMG, picture, 0, y)
        y += len(picture)
    return IMG


def myFunc(rknn_lite, IMG):
    """What the pool does with every frame: returns the frame itself, its best classes written on it."""
    scores = probabilities(func.infer(rknn_lite, crop(IMG, IMG_SIZE)))
    # The names of other classes would be wrong ones: a model of ImageNet's shows numbers until CLASSES is set.
    return draw(IMG, *best(scores), CLASSES if len(CLASSES) == len(scores) else ())
