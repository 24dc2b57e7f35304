"""A --func file for main.py: myFunc of func.py or of $RECORD_MODULE, which also appends its
detections to the file $RECORD, one line of JSON per frame."""

import importlib
import json
import os
import threading
import time

from numbered import read_number

from vision.drawing import draw

detect = importlib.import_module(os.environ.get("RECORD_MODULE", "func")).detect
_writing = threading.Lock()


def myFunc(rknn_lite, IMG):
    detections = detect(rknn_lite, IMG)
    found = {
        "frame": read_number(IMG),
        "boxes": detections.boxes.tolist(),
        "classes": detections.classes.tolist(),
        "scores": detections.scores.tolist(),
    }
    with _writing, open(os.environ["RECORD"], "a") as file:
        print(json.dumps(found), file=file)
    # Uneven, like users' post-processing. With even work every schedule would be fair.
    time.sleep(found["frame"] % 4 * 0.05)
    return draw(IMG, detections)
