"""Reads --then MODEL@CLASS: which second model looks at which objects, and what it sees of them.

    steps = plan(["plate.rknn@car", "text.rknn@plate"], model, func, runtime=None)
    steps[1].parent is steps[0]            # True: the first one finds plates
    image = cut(frame, box, steps[0].func)
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
from vision.frame import Frame, Picture
from vision.packages import ROOT

MARGIN = 0.05    # of a box's sides, on each side of a crop for a model that reads text


class Step:
    """A second model. classes: names of the objects that it looks at, None for all; parent: the
    Step that finds these objects, None: the first model does; key: its name in the results."""

    def __init__(self, text: str, path: str, model: Any, func: ModuleType,
                 classes: Optional[Set[str]], parent: Optional[Step]):
        self.text, self.model, self.func, self.classes = text, model, func, classes
        self.parent, self.key = parent, os.path.splitext(os.path.basename(path))[0]
        self.children: List[Step] = []
        if parent:
            parent.children.append(self)
        self.pool: Any = None
        self.lock = threading.Lock()
        self.runs, self.cpu, self.on_cpu = 0, 0.0, False  # cpu: seconds of all runs
        self.npu = float("inf")  # seconds of one run in which it waits for the NPU, the shortest

    def wants(self, name: str) -> bool:
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
        path, words = _split(text)
        path, soc = runtimes.model_for(runtime, path, rknnpool.soc())
        second = funcs.describe_model(path, soc)
        classes = {word.strip() for word in words.split(",") if word.strip()} or None
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


def _split(text: str) -> Tuple[str, str]:
    """(path, classes) of MODEL@CLASSES. A path may contain an @."""
    path, _, classes = (text, "", "") if os.path.exists(text) else text.rpartition("@")
    path, classes = (path, classes) if path else (classes, "")
    beside = os.path.join(ROOT, path)  # as --model: the settings work in every working directory
    return (path if os.path.exists(path) or not os.path.exists(beside) else beside), classes


def _parent(text: str, classes: Optional[Set[str]], first: Set[str], steps: List[Step]
            ) -> Optional[Step]:
    """The Step that finds these classes, None for the first model. Raises InputError if neither
    does."""
    if classes is None or classes <= first or not first:
        return None
    known = set(first)
    for step in steps:
        found = names_of(step.model, step.func) if getattr(step.func, "BOXES", True) else set()
        if classes <= found:
            return step
        known |= found
    word = sorted(classes - known or classes)[0]
    near = nearest(word, known)
    raise InputError(f"--then {text}: no model before it finds {word}" + (
        f"; did you mean {near}?" if near else f". They find: {', '.join(sorted(known))}."))


def names_of(model: Any, func: Any) -> Set[str]:
    """The class names of a model; empty if they are unknown."""
    names = model.names or getattr(func, "CLASSES", None)
    if not names and hasattr(func, "classes_of") or model.classes:
        count = model.classes or func.classes_of(model)
        names = names or (COCO_CLASSES if count == len(COCO_CLASSES) else ())
    return {str(name) for name in (names.values() if isinstance(names, dict) else names or ())}


def cut(IMG: Picture, box: np.ndarray, func: Any) -> np.ndarray:
    """What a func file's model sees of a box (4,) xyxy in a frame: (h, w, 3) uint8 BGR, a copy.

    A square around the box, so large that the crop of a classifier keeps the box. With SQUARE =
    False in the func file, the box with a small margin.
    """
    x1, y1, x2, y2 = box.tolist()
    half_w, half_h = (x2 - x1) / 2, (y2 - y1) / 2
    if getattr(func, "SQUARE", True):
        half_w = half_h = max(half_w, half_h) / resnet.CROP
    else:
        half_w, half_h = half_w * (1 + 2 * MARGIN), half_h * (1 + 2 * MARGIN)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    h, w = IMG.shape[:2]
    left, top = min(max(0, round(x - half_w)), w - 1), min(max(0, round(y - half_h)), h - 1)
    right, bottom = max(left + 1, min(w, round(x + half_w))), max(top + 1,
                                                                  min(h, round(y + half_h)))
    if not isinstance(IMG, Frame):
        return IMG[top:bottom, left:right].copy()
    x1, y1 = left - left % 2, top - top % 2  # pairs of pixels share their colours
    part = IMG.crop(x1, y1, min(w, right + right % 2), min(h, bottom + bottom % 2))
    rgb = np.empty(part.shape, np.uint8)
    part.scale_into(rgb)  # only this part is converted
    return cv2.cvtColor(rgb[top - y1:bottom - y1, left - x1:right - x1], cv2.COLOR_RGB2BGR)
