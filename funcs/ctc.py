"""myFunc for models that read a line of text: PP-OCR's recognition model, LPRNet.

    python main.py street.mp4 --then plate.rknn@car --then ppocr_rec.rknn@plate
    python main.py words/ --model ppocr_rec.rknn        # pictures of one line each

The one output has a score for each character, and for "no character" (the blank), at each step:

    (1, steps, 1 + characters)  PP-OCR: the blank comes first, a space may come last. The picture is
                                scaled to the input's height; the rest of the input stays grey
    (1, characters + 1, steps)  LPRNet: the blank comes last. The picture is stretched to the input

The characters are read from the model's metadata ("character", as RapidOCR writes it), or are its
class names: a file beside the model with one character per line, where an empty line is a space.
The blank may be among them. The text consists of the best character of each step, without
repetitions and blanks (CTC, Graves et al. 2006).
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
    They are empty if no text has a score of at least conf.

    rknn_lite: a context of the pool; IMG: (h, w, 3) uint8 BGR. Raises ModelError if the model
    cannot be run or read; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model, IMG_SIZE, CONF)
    characters = characters_of(model)
    possible = layouts(model)
    layout = possible[0] if possible else STEPS_FIRST  # of two, the first: see unclear()
    outputs = infer_raw(rknn_lite, preprocess(IMG, settings.size, layout == CHARACTERS_FIRST))
    shapes = [output.shape for output in outputs]
    if not characters or not layouts_of_shapes(shapes, len(characters)):
        raise unknown_outputs(shapes, "funcs/ctc.py reads (1, steps, 1 + characters) and (1, "
                              f"characters + 1, steps), and knows {len(characters)} characters")
    steps = outputs[0].part(0)
    if layout == CHARACTERS_FIRST:
        steps = steps._replace(stored=steps.stored.T)
    text, score = decode(steps, alphabet(characters, steps.shape[1], layout))
    count = 1 if text and score >= settings.conf else 0
    return Detections(None, np.zeros(count, np.int64), np.full(count, score, np.float32),
                      {0: text})


def decode(steps: Raw, characters: Sequence[str]) -> Tuple[str, float]:
    """The text in an output and its score, 0..1; ("", 0.0) for none. steps: (steps, characters),
    probabilities or logits; characters: of each column, BLANK for the blank."""
    best = steps.stored.argmax(1)
    is_new = np.append(True, best[1:] != best[:-1])  # not a repetition
    is_text = np.array([characters[number] != BLANK for number in best])
    kept = np.flatnonzero(is_new & is_text)
    if not len(kept):
        return "", 0.0
    text = "".join(characters[number] for number in best[kept]).strip()
    values = steps.part(kept).floats()
    if values.min() < -0.01 or values.max() > 1.01:  # logits
        values = np.exp(values - values.max(1, keepdims=True))
        values = values / values.sum(1, keepdims=True)
    score = float(values.max(1).mean())
    if not np.isfinite(score):  # a broken model
        return "", 0.0
    return text, min(1.0, score)


def preprocess(IMG: np.ndarray, size: Tuple[int, int], stretch: bool) -> np.ndarray:
    """What the model sees of a picture: (height, width, 3) uint8 BGR, as both models were trained.

    IMG: (h, w, 3) uint8 BGR; size: (width, height) of the input; stretch: to the whole width, else
    the picture keeps its aspect ratio and stands on the left.
    """
    IMG, (width, height) = as_bgr(IMG), size
    h, w = IMG.shape[:2]
    new_w = width if stretch else min(width, max(1, round(w * height / h)))
    image = np.full((height, width, 3), GREY, np.uint8)
    image[:, :new_w] = cv2.resize(IMG, (new_w, height))
    return image


# ---- which characters, and where ----

def characters_of(model: Any) -> List[str]:
    """The characters that a model reads, in order; [] if they are unknown, or if its class names
    are words. The metadata contains them as a list, or as a text with one character per line."""
    if model is None:
        return []
    known = getattr(model, "characters", None)  # from an earlier call: there are thousands
    if known is not None:
        return known
    names: Any = getattr(model, "metadata", {}).get("character") or model.names or []
    if isinstance(names, str):
        names = names.split("\n")
    elif isinstance(names, dict):
        names = list(names.values())
    words = any(not isinstance(name, str) or len(name) > 1 for name in names)
    model.characters = [] if words else [name or " " for name in names]
    return model.characters


def layouts_of_shapes(shapes: Sequence[Tuple[int, ...]], count: int) -> List[str]:
    """Which of the layouts STEPS_FIRST and CHARACTERS_FIRST outputs with these shapes can have.
    count: number of the characters, with or without the blank and the space."""
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][0] != 1 or not count:
        return []
    _, first, last = shapes[0]
    possible = []
    if last in (count, count + 1, count + 2):
        possible.append(STEPS_FIRST)
    if first in (count, count + 1):
        possible.append(CHARACTERS_FIRST)
    return possible


def layouts(model: Any) -> List[str]:
    """The layouts that a model's outputs can have, see layouts_of_shapes()."""
    shapes = [shape for _, shape in getattr(model, "outputs", [])]
    return layouts_of_shapes(shapes, len(characters_of(model)))


def alphabet(characters: Sequence[str], count: int, layout: str) -> List[str]:
    """The character of each of `count` columns, BLANK for the blank."""
    if layout == CHARACTERS_FIRST:
        return [*characters[:count - 1], BLANK]
    has_blank = count == len(characters)
    own = characters[1:] if has_blank else characters
    return [BLANK, *own, " "][:count]  # the space is there only if a column is left for it


def reads(model: Any) -> bool:
    """True if a model has characters, and an output for them with only one possible layout."""
    return len(layouts(model)) == 1


def unclear(model: Any) -> Optional[str]:
    """What the output may be if the steps and the characters are equally many, or if the characters
    of a model with a wide input are unknown."""
    shapes = [shape for _, shape in model.outputs]
    is_wide = model.size and model.size[0] >= 3 * model.size[1]
    if is_wide and not characters_of(model) and len(shapes) == 1 and len(shapes[0]) == 3:
        return (f"its output {shapes[0]} may be a text, but its characters are unknown. Write them "
                f"into {os.path.splitext(model.path)[0]}.txt, one per line.")
    if len(layouts(model)) < 2:
        return None
    return (f"its output {shapes[0]} may have the steps of a text first or its "
            "characters first. If the steps come first, give --func funcs/ctc.py.")
