"""A detector, and a classifier that looks at each object found: one pool each, both on all cores of the NPU.

    python examples/two_models.py
    python examples/two_models.py street.mp4 yolo11n_rknn_model breeds_rknn_model
"""
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import func  # noqa: E402
from funcs import resnet, yolov8  # noqa: E402
from rknnmodel import InputError  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402

# --------------------------------------------------------------------------------------------------------------------
cap = ROOT / "models/demo.mp4"                       # a file, a camera's number, or a URL
detectorPath = ROOT / "models/yolov8n_emoji.rknn"    # read by funcs/yolov8.py; another kind: another detect below
classifierPath = ROOT / "models/resnet18_emoji.rknn"
detect = yolov8.detect
# --------------------------------------------------------------------------------------------------------------------


def find(context: Any, IMG: np.ndarray) -> Tuple[np.ndarray, func.Detections]:
    """What the detector's pool does: the frame comes back with what was found in it."""
    return IMG, detect(context, IMG)


def frames_of(source: Any) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(int(source) if str(source).isdigit() else str(source))
    while True:
        ok, frame = capture.read()
        if not ok:
            return
        yield frame


def crops(IMG: np.ndarray, boxes: np.ndarray) -> List[np.ndarray]:
    """The squares of the frame around boxes (n, 4) xyxy, so large that the classifier's own crop leaves the box
    whole."""
    cut = []
    for x1, y1, x2, y2 in boxes.tolist():
        half = max(x2 - x1, y2 - y1, 8) / 2 / resnet.CROP
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        cut.append(IMG[max(0, round(y - half)):round(y + half), max(0, round(x - half)):round(x + half)])
    return cut


def main() -> None:
    source, *models = sys.argv[1:] or [cap]
    detector, classifier = (str(path) for path in (*models, *(detectorPath, classifierPath)[len(models):]))
    count = objects = agreed = 0
    with rknnPoolExecutor(detector, func=find) as detectors, \
            rknnPoolExecutor(classifier, func=resnet.detect) as classifiers:
        began = time.perf_counter()
        for count, (frame, found) in enumerate(detectors.map(frames_of(source)), 1):  # noqa: B007
            # The next frames are read and detected in the meantime.
            seen = list(classifiers.map(crops(frame, found.boxes)))
            pairs = [(found.name(number), looked.name(looked.classes[0]) if len(looked) else "nothing")
                     for number, looked in zip(found.classes.tolist(), seen)]
            objects, agreed = objects + len(pairs), agreed + sum(first == second for first, second in pairs)
            if count % 30 == 1:
                print(f"frame {count - 1}: " + ", ".join(f"{first} (looks like: {second})" for first, second in pairs),
                      flush=True)
        seconds = time.perf_counter() - began
    if count == 0:
        raise InputError(f"{source}: no frame could be read.")
    print(f"{count} frames, {objects} objects, the classifier agrees with {agreed / max(1, objects):.0%} of them; "
          f"{count / seconds:.1f} FPS")


if __name__ == "__main__":
    try:
        main()
    except (InputError, RuntimeError) as error:  # a pool's RuntimeError is a sentence, too
        print(error, file=sys.stderr)
        sys.exit(2)
