"""Reads --then MODEL@CLASS: which second model looks at which objects, and what it sees of them.

    steps = plan(["plate.rknn@car", "text.rknn@plate"], model, func, runtime=None)
    steps[1].parent is steps[0]               # True: the first one finds plates
    crop = cut(frame, box, steps[0].func)
"""
from __future__ import annotations

import os
import threading
from types import ModuleType
from typing import Any, List, Optional, Sequence, Set, Tuple

import cv2
import numpy as np

import funcs
import rknnpool
import runtimes
from funcs import resnet
from vision.coco import COCO_CLASSES
from vision.errors import InputError, nearest
from vision.frame import Frame, Picture, clipped
from vision.paths import beside_main

MARGIN = 0.05    # around a box, as a fraction of its side, in a crop for a model that reads text


class Step:
    """A second model and the objects that it looks at.

    text: the value of --then; path: of the model's file; model, func: its Model and its func file;
    classes: names of the objects that it looks at, None for all; parent: the Step that finds these
    objects, None if the first model does. `key` is the model's name in the results.
    """

    def __init__(self, text: str, path: str, model: Any, func: ModuleType,
                 classes: Optional[Set[str]], parent: Optional[Step]):
        self.text, self.model, self.func = text, model, func
        self.classes, self.parent = classes, parent
        self.key = os.path.splitext(os.path.basename(path))[0]
        self.children: List[Step] = []
        if parent:
            parent.children.append(self)
        self.pool: Any = None
        # What SecondModels measures:
        self.lock = threading.Lock()
        self.runs = 0
        self.cpu_seconds = 0.0           # of all runs
        self.npu_seconds = float("inf")  # of the shortest run, without its CPU time
        self.on_cpu = False              # whether the runtime has no NPU

    def wants(self, name: str) -> bool:
        """Whether it looks at objects of this class."""
        return self.classes is None or name in self.classes

    def chain(self) -> List[Step]:
        """This step and all that look at what it finds."""
        return [self, *(step for child in self.children for step in child.chain())]


def plan(texts: Sequence[str], model: Any, func: ModuleType, runtime: Optional[str]) -> List[Step]:
    """The Steps of --then. texts: MODEL or MODEL@CLASS,CLASS; model, func: of the first model;
    runtime: the name of the runtime, or None. Raises InputError for what cannot work."""
    steps: List[Step] = []
    for text in [texts] if isinstance(texts, str) else texts:
        text = str(text)
        path, classes = _split(text)
        path, soc = runtimes.model_for(runtime, path, rknnpool.soc())
        second = funcs.describe_model(path, soc)
        parent = _parent(text, classes, names_of(model, func), steps)
        step = Step(text, second.path, second, funcs.find(second), classes, parent)
        if not funcs.has_detections(step.func):
            raise InputError(f"--then {text}: {step.func.__file__} defines no detect(rknn_lite, "
                             "IMG), which returns Detections.")
        if step.key in [other.key for other in steps]:
            raise InputError(f"--then {text}: another --then is called {step.key}, too; rename one "
                             "of the two files.")
        steps.append(step)
    return steps


def _split(text: str) -> Tuple[str, Optional[Set[str]]]:
    """(path, classes) of MODEL@CLASS,CLASS; None for all classes. A path may contain an @.
    Raises InputError if there is no path."""
    path, words = text, ""
    if "@" in text and not os.path.exists(text):
        path, _, words = text.rpartition("@")
    if not path:
        raise InputError(f"--then {text}: names no model. Write MODEL, or MODEL@CLASS,CLASS.")
    classes = {word.strip() for word in words.split(",") if word.strip()}
    return beside_main(path), classes or None


def _parent(text: str, classes: Optional[Set[str]], first: Set[str], steps: List[Step]
            ) -> Optional[Step]:
    """The Step that finds these classes, None for the first model, whose classes are `first`.
    Raises InputError if no model finds all of them."""
    if classes is None or classes <= first or not first:
        return None
    known = set(first)
    for step in steps:
        found = names_of(step.model, step.func) if getattr(step.func, "BOXES", True) else set()
        if classes <= found:
            return step
        known |= found
    if classes <= known:
        raise InputError(f"--then {text}: none of the models before it finds all of these classes. "
                         "Name those of one model.")
    word = min(classes - known)
    near = nearest(word, known)
    hint = f"; did you mean {near}?" if near else f". They find: {', '.join(sorted(known))}."
    raise InputError(f"--then {text}: none of the models before it finds {word}{hint}")


def names_of(model: Any, func: Any) -> Set[str]:
    """The class names of a model; empty if they are unknown."""
    names = set(funcs.class_names(model, func).values())
    if not names and funcs.class_count(model, func) == len(COCO_CLASSES):
        return set(COCO_CLASSES)  # as vision.settings.names_of()
    return names


# ---- crops ----

def cut(IMG: Picture, box: np.ndarray, func: Any) -> np.ndarray:
    """What a func file's model sees of a box: (h, w, 3) uint8 BGR, a copy.

    IMG: a Frame, or (h, w, 3) uint8 BGR; box: (4,) xyxy in pixels of the frame. The crop is a
    square around the box, with a margin, because classifiers see only the middle of a picture
    (resnet.CROP). With SQUARE = False in the func file, it is the box with a small margin.
    """
    x1, y1, x2, y2 = box.tolist()
    width, height = x2 - x1, y2 - y1
    if getattr(func, "SQUARE", True):
        width = height = max(width, height) / resnet.CROP
    else:
        width, height = width * (1 + 2 * MARGIN), height * (1 + 2 * MARGIN)
    h, w = IMG.shape[:2]
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    left, right = clipped(middle_x - width / 2, middle_x + width / 2, w)
    top, bottom = clipped(middle_y - height / 2, middle_y + height / 2, h)
    if not isinstance(IMG, Frame):
        return IMG[top:bottom, left:right].copy()
    # Frame.crop() takes even numbers, because in YUV pairs of pixels share their colours.
    x, y = left - left % 2, top - top % 2
    part = IMG.crop(x, y, min(w, right + right % 2), min(h, bottom + bottom % 2))
    rgb = np.empty(part.shape, np.uint8)
    part.scale_into(rgb)  # converts only this part, at its own size
    return cv2.cvtColor(rgb[top - y:bottom - y, left - x:right - x], cv2.COLOR_RGB2BGR)
