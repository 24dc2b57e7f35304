"""myFunc for models with one output of boxes and one of scores, in either order: YOLO-NAS.

    python main.py street.mp4 --model yolo_nas_s.rknn

The layout, where n is the number of cells: (width / s) * (height / s), summed over the strides s of
8, 16 and 32:

    (1, n, 4)        x1, y1, x2, y2 of each cell's box, in pixels of the model's input
    (1, n, classes)  scores, after the sigmoid

The network must be exported without its NMS. The layout is that of SuperGradients' documentation;
no real model was available. The tests compute such outputs from the demo model's detections.
"""
from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple

import numpy as np

from vision.detections import Detections
from vision.drawing import draw
from vision.frame import Picture
from vision.heads import Shapes, cell_count
from vision.inference import infer_raw, unknown_outputs
from vision.letterbox import letterbox, unletterbox
from vision.nms import nms
from vision.quantised import Raw, as_scores
from vision.settings import Settings, names_of, settings_of

FRAMES = True    # detect() takes frames as they are: see funcs/__init__.py


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Detect the objects of a frame (h, w, 3) uint8 BGR, draw them on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: Picture) -> Detections:
    """The objects of a frame, in pixels of the frame, best first.

    rknn_lite: a context of the pool; IMG: a Frame, or (h, w, 3) uint8 BGR. If both outputs may be
    the boxes, the first one is. Raises ModelError if the model cannot be run or read; ValueError if
    IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)
    settings = settings_of(model)
    image, placement = letterbox(IMG, settings.size)
    outputs = infer_raw(rknn_lite, image)
    shapes = [output.shape for output in outputs]
    possible = boxes_among(shapes)
    if not possible:
        raise unknown_outputs(shapes, "funcs/yolo_nas.py reads boxes (1, n, 4) and scores (1, n, "
                                      "classes)")
    index = possible[0]
    with np.errstate(over="ignore", invalid="ignore"):  # values of a broken model
        boxes, classes, scores = decode(outputs[index], outputs[1 - index], settings)
    best = nms(boxes, classes, scores, settings)
    boxes = unletterbox(boxes[best], placement, IMG)
    names = names_of(model, shapes[1 - index][2])
    return Detections(boxes, classes[best], scores[best], names).inside_frame()


def decode(boxes: Raw, scores: Raw, settings: Settings
           ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (k, 4) float32 xyxy in pixels of the model's input, classes (k,) int64 and scores (k,)
    float32, before NMS. boxes: (1, n, 4); scores: (1, n, classes)."""
    by_class = scores._replace(stored=scores.stored[0].T)        # (classes, n)
    # The best class alone rules out nearly all cells. Only the others are computed.
    cells = np.flatnonzero(by_class.highest() >= scores.threshold(settings.conf))
    values = by_class.columns(cells).floats()
    corners = boxes.part(np.s_[0, cells]).floats()
    return corners, values.argmax(0), as_scores(values.max(0))


def reads(model: Any) -> bool:
    """True if a model's outputs have the layout above, and only one of them can be the boxes."""
    shapes = [shape for _, shape in model.outputs]
    if model.task not in (None, "detect") or len(boxes_among(shapes)) != 1:
        return False
    return shapes[0][1] == cell_count(settings_of(model).size)


def unclear(model: Any) -> Optional[str]:
    """What the outputs may be if they have the layout above, but may also have another one."""
    shapes = [shape for _, shape in model.outputs]
    possible = boxes_among(shapes)
    if not possible:
        return None
    if len(possible) == 2:
        return (f"its outputs {shapes[0]} and {shapes[1]} may be boxes and scores in either order. "
                "If the boxes come first, give --func funcs/yolo_nas.py.")
    return (f"its outputs {shapes[0]} and {shapes[1]} may be boxes and scores, but not those of "
            f"YOLO-NAS, which has {cell_count(settings_of(model).size)} boxes for this input. If "
            "the boxes are x1, y1, x2, y2 in pixels of the input, give --func funcs/yolo_nas.py.")


def classes_of(model: Any) -> Optional[int]:
    """The number of classes of a model, from its outputs; None if they do not say it."""
    shapes = [shape for _, shape in model.outputs]
    possible = boxes_among(shapes)
    return shapes[1 - possible[0]][2] if possible else None


def boxes_among(shapes: Shapes) -> Sequence[int]:
    """The indices of the outputs that can be the boxes; [] for another layout."""
    if len(shapes) != 2 or any(len(shape) != 3 or shape[0] != 1 for shape in shapes):
        return []
    if shapes[0][1] != shapes[1][1] or 0 in shapes[0] + shapes[1]:  # 0: an open dimension
        return []
    return [index for index, shape in enumerate(shapes) if shape[2] == 4]
