"""myFunc for models that find lines of text: PP-OCR's detection model (DB, Liao et al. 2020).

    python main.py street.mp4 --then ppocr_det.rknn@truck --then ppocr_rec.rknn@text

The one output, (1, 1, height, width), has for each pixel of the input the probability that it is in
the middle of a line of text. So the regions are smaller than the lines, and are enlarged. Depth
models and others have such outputs, too. So the model needs exactly one class name: write "text"
into a file beside it.
"""
from __future__ import annotations

import os
from typing import Any, List, Optional, Tuple

import cv2
import numpy as np

from vision.detections import Detections
from vision.drawing import draw
from vision.frame import Picture
from vision.heads import Shapes
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import letterbox, unletterbox
from vision.quantised import Raw
from vision.settings import settings_of

# --------------------------------------------------------------------------------------------------
PIXEL_THRESH = 0.3    # minimum probability of a pixel
CONF = 0.6            # minimum score of a region: the mean probability of its pixels
GROW = 1.6            # a region grows on each side by this times its area, divided by its perimeter
MIN_SIDE = 3          # pixels of the input; smaller regions are noise
# --------------------------------------------------------------------------------------------------

FRAMES = True    # detect() takes frames as they are: see funcs/__init__.py


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Find the lines of text on a frame (h, w, 3) uint8 BGR, draw their boxes, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: Picture) -> Detections:
    """The lines of text on a frame: upright boxes in pixels of the frame, best first.

    rknn_lite: a context of the pool; IMG: a Frame, or (h, w, 3) uint8 BGR. Raises ModelError if the
    model cannot be run or read; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model, conf=CONF)
    image, placement = letterbox(IMG, settings.size)
    outputs = infer_raw(rknn_lite, image[..., ::-1])  # trained on BGR
    shapes = [output.shape for output in outputs]
    if not is_region_map(shapes, settings.size):
        w, h = settings.size
        raise unknown_outputs(shapes, f"funcs/text_regions.py reads (1, 1, {h}, {w})")
    boxes, scores = decode(outputs[0].part((0, 0)), settings.conf)
    boxes = unletterbox(boxes, placement, IMG)
    names = getattr(model, "names", None) or ("text",)
    return Detections(boxes, np.zeros(len(boxes), np.int64), scores, names).inside_frame()


def decode(pixels: Raw, conf: float) -> Tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 xyxy in pixels of the map, and scores (n,) float32, best first.
    pixels: (rows, columns), probabilities."""
    mask = (pixels.stored >= pixels.threshold(PIXEL_THRESH)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    found: List[Tuple[float, List[float]]] = []
    for number in range(1, count):  # 0 is the background
        x, y, w, h, _ = stats[number].tolist()
        if min(w, h) < MIN_SIDE:
            continue
        inside = np.s_[y:y + h, x:x + w]
        score = float(pixels.part(inside).floats()[labels[inside] == number].mean())
        if score >= conf:
            margin = GROW * w * h / (2 * (w + h))
            box = [x - margin, y - margin, x + w + margin, y + h + margin]
            found.append((min(1.0, score), box))
    found.sort(reverse=True)
    return (np.array([box for _, box in found], np.float32).reshape(-1, 4),
            np.array([score for score, _ in found], np.float32))


def is_region_map(shapes: Shapes, size: Tuple[int, int]) -> bool:
    """True for one output (1, 1, height, width). size: (width, height) of the input."""
    return len(shapes) == 1 and tuple(shapes[0]) == (1, 1, size[1], size[0])


def reads(model: Any) -> bool:
    """True if a model's output is a map of probabilities, and its one class has a name."""
    shapes = [shape for _, shape in model.outputs]
    return (model.size is not None and model.task is None and is_region_map(shapes, model.size)
            and len(model.names or ()) == 1)


def unclear(model: Any) -> Optional[str]:
    """What the output of a model without a class name may be."""
    shapes = [shape for _, shape in model.outputs]
    if model.size is None or model.task or not is_region_map(shapes, model.size):
        return None
    return (f"its output {shapes[0]} may show where text is, but also depth or a mask. If it shows "
            f"text, write the word text into {os.path.splitext(model.path)[0]}.txt, or give --func "
            "funcs/text_regions.py.")
