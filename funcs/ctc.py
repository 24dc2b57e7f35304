"""myFunc for models that read a line of text: PP-OCR's recognition model, LPRNet.

    python main.py street.mp4 --then plate.rknn@car --then ppocr_rec.rknn@plate
    python main.py words/ --model ppocr_rec.rknn        # pictures of one line each

The one output has a score for each character, and for "no character" (the blank), at each step:

    (1, steps, 1 + characters)  PP-OCR: the blank comes first, a space may come last. The picture is
                                scaled to the input's height; the rest of the input stays grey
    (1, characters + 1, steps)  LPRNet: the blank comes last. The picture is stretched to the input

The characters are those of the model's metadata ("character", as RapidOCR writes it), or the class
names: a file beside the model, one character a line, in which an empty line is a space. It may
contain the blank. Of each step the best character counts; repetitions and blanks are left out (CTC,
Graves et al. 2006).
"""
from __future__ import annotations

import os
from typing import Any, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from vision.detections import Detections
from vision.drawing import draw
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import as_bgr
from vision.quantised import Raw
from vision.settings import settings_of

# --------------------------------------------------------------------------------------------------
IMG_SIZE = (320, 48)    # width and height of the model's input, if the model does not say it
CONF = 0.5              # minimum score of a text: the mean over its characters
GREY = 127              # beside the picture: 0 after the models' (value - 127.5) / 127.5
# --------------------------------------------------------------------------------------------------

BOXES = False       # detect() reads the whole frame
SQUARE = False      # --then gives it what is inside the box, not a square around it
STEPS_FIRST, CHARACTERS_FIRST = "steps first", "characters first"
BLANK = ""


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Read the text on a frame (h, w, 3) uint8 BGR, write it on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: np.ndarray) -> Detections:
    """The text of a picture of one line: Detections without boxes, whose one class is the text.

    rknn_lite: a context of the pool; IMG: (h, w, 3) uint8 BGR. They are empty if there is no text
    with a score of at least conf. Raises ModelError if the model cannot be run or read; ValueError
    if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model, IMG_SIZE, CONF)
    characters = characters_of(model)
    layout = (layouts(model) or [STEPS_FIRST])[0]
    outputs = infer_raw(rknn_lite, preprocess(IMG, settings.size, layout == CHARACTERS_FIRST))
    shapes = [output.shape for output in outputs]
    if not characters or not layouts_of(shapes, len(characters)):
        raise unknown_outputs(shapes, "funcs/ctc.py reads (1, steps, 1 + characters) and (1, "
                              f"characters + 1, steps), and knows {len(characters)} characters")
    steps = outputs[0].part(0)
    if layout == CHARACTERS_FIRST:
        steps = steps._replace(stored=steps.stored.T)
    text, score = decode(steps, alphabet(characters, steps.shape[1], layout))
    found = np.zeros(1 if text and score >= settings.conf else 0, np.int64)
    return Detections(None, found, np.full(len(found), score, np.float32), {0: text})


def decode(steps: Raw, characters: Sequence[str]) -> Tuple[str, float]:
    """A text and its score, 0..1. steps: (steps, characters), probabilities or logits; characters:
    of each column, BLANK for the blank."""
    best = steps.stored.argmax(1)
    new = np.append(True, best[1:] != best[:-1])
    kept = np.flatnonzero(new & (np.array([characters[number] != BLANK for number in best])))
    text = "".join(characters[number] for number in best[kept]).strip()
    if not len(kept):
        return "", 0.0
    values = steps.part(kept).floats()
    if values.min() < -0.01 or values.max() > 1.01:  # logits
        values = np.exp(values - values.max(1, keepdims=True))
        values = values / values.sum(1, keepdims=True)
    score = float(values.max(1).mean())
    return (text, min(1.0, score)) if np.isfinite(score) else ("", 0.0)


def preprocess(IMG: np.ndarray, size: Tuple[int, int], stretch: bool) -> np.ndarray:
    """What the model sees of a picture: (height, width, 3) uint8 BGR, as both were trained."""
    IMG, (width, height) = as_bgr(IMG), size
    h, w = IMG.shape[:2]
    new_w = width if stretch else min(width, max(1, round(w * height / h)))
    image = np.full((height, width, 3), GREY, np.uint8)
    image[:, :new_w] = cv2.resize(IMG, (new_w, height))
    return image


# ---- which characters, and where ----

def characters_of(model: Any) -> List[str]:
    """The characters that a model reads, in order; [] if they are unknown or its names are words.
    The metadata has them as a list or as one text, a character a line."""
    known = getattr(model, "characters", None)  # from an earlier call: there are thousands
    if known is None:
        names = getattr(model, "metadata", {}).get("character") or getattr(model, "names", []) or []
        names = names.split("\n") if isinstance(names, str) else names
        names = list(names.values() if isinstance(names, dict) else names)
        words = any(not isinstance(name, str) or len(name) > 1 for name in names)
        known = [] if words else [name or " " for name in names]
        if model is not None:
            model.characters = known
    return known


def layouts_of(shapes: Sequence[Tuple[int, ...]], count: int) -> List[str]:
    """How outputs can be read if there are so many characters: [] if in no way."""
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 1 or not count:
        return []
    _, first, last = shapes[0]
    return ([STEPS_FIRST] * (last in (count, count + 1, count + 2))
            + [CHARACTERS_FIRST] * (first in (count, count + 1)))


def layouts(model: Any) -> List[str]:
    shapes = [shape for _, shape in getattr(model, "outputs", [])]
    return layouts_of(shapes, len(characters_of(model)))


def alphabet(characters: Sequence[str], count: int, layout: str) -> List[str]:
    """The character of each of `count` columns, BLANK for the blank."""
    if layout == CHARACTERS_FIRST:
        return [*characters[:count - 1], BLANK]
    own = characters[1:] if count == len(characters) else characters
    return [BLANK, *own, " "][:count]


def reads(model: Any) -> bool:
    """True if a model has characters and, read in only one way, an output for them."""
    return len(layouts(model)) == 1


def unclear(model: Any) -> Optional[str]:
    """What the output may be if the steps and the characters are equally many, or if the characters
    of a model with a wide input are unknown."""
    shapes = [shape for _, shape in model.outputs]
    if (not characters_of(model) and [len(shape) for shape in shapes] == [3]
            and model.size and model.size[0] >= 3 * model.size[1]):
        return (f"its output {shapes[0]} may be a text, but its characters are unknown. Write them "
                f"into {os.path.splitext(model.path)[0]}.txt, one per line.")
    if len(layouts(model)) < 2:
        return None
    return (f"its output {model.outputs[0][1]} may have the steps of a text first or its "
            "characters first. If the steps come first, give --func funcs/ctc.py.")
