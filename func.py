"""The file to edit: what happens to each frame. As it stands, it detects objects with a YOLOv5.

main.py gives each frame to the pool, and the pool calls myFunc(rknn_lite, IMG) with an idle context
of the NPU. Replace myFunc with your own function: run the context once with
rknn_lite.inference(inputs=[...]), and return the picture to show.

As long as myFunc is draw(IMG, detect(rknn_lite, IMG)), main.py calls the two one by one: with the
detections of each frame it can also track and count objects, and publish them. Other models are
read by the files in funcs/.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from funcs import yolov5
from vision.coco import COCO_CLASSES
from vision.detections import Detections
from vision.drawing import draw
from vision.inference import infer_raw
from vision.letterbox import letterbox, unletterbox
from vision.nms import nms
from vision.settings import names_of, settings_of

# --------------------------------------------------------------------------------------------------
OBJ_THRESH = 0.25         # minimum score of a detection; --conf overrides it
NMS_THRESH = 0.45         # maximum overlap (IoU) of two boxes of one class; --iou overrides it
IMG_SIZE = 640            # one side or (width, height) of the input, if the model does not state it
CLASSES = COCO_CLASSES    # such as ("helmet", "vest"), if the model has no names
ANCHORS = yolov5.ANCHORS  # {stride: ((width, height) of three anchors)}
# --------------------------------------------------------------------------------------------------


def myFunc(rknn_lite: Any, IMG: np.ndarray) -> np.ndarray:
    """Detect the objects of a frame (h, w, 3) uint8 BGR, draw them on it, and return it."""
    return draw(IMG, detect(rknn_lite, IMG))


def detect(rknn_lite: Any, IMG: np.ndarray) -> Detections:
    """The objects of a frame, in pixels of the frame, best first.

    rknn_lite: a context of the pool; IMG: (h, w, 3) uint8 BGR. Raises ModelError if the model
    cannot be run, or is not a YOLOv5; ValueError if IMG is not a frame.
    """
    model = getattr(rknn_lite, "model", None)  # what the model file says, see vision/model.py
    settings = settings_of(model, IMG_SIZE, OBJ_THRESH, NMS_THRESH)

    image, placement = letterbox(IMG, settings.size)                        # (height, width, 3) RGB
    outputs = infer_raw(rknn_lite, image)                                   # three heads, int8
    boxes, classes, scores = yolov5.decode(outputs, settings, ANCHORS)      # (n, 4), (n,), (n,)
    best = nms(boxes, classes, scores, settings)                            # indices
    boxes = unletterbox(boxes[best], placement, IMG)

    names = names_of(model, yolov5.class_count(outputs[0].shape), CLASSES)
    return Detections(boxes, classes[best], scores[best], names).inside_frame()


def reads(model: Any) -> bool:
    """True if detect() reads a model's outputs; main.py asks before it looks into funcs/.

    model: a vision.model.Model.
    """
    return yolov5.is_yolov5(model, IMG_SIZE, ANCHORS)
