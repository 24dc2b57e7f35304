"""A detector, and a classifier that looks at each object found: two pools share the NPU.

    python examples/two_models.py
    python examples/two_models.py street.mp4 yolo11n_rknn_model breeds_rknn_model
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import cv2

    from funcs import resnet, yolov8
    from rknnpool import rknnPoolExecutor
    from vision.errors import InputError

# --------------------------------------------------------------------------------------------------
cap = ROOT / "models/demo.mp4"                       # a file, a camera's number, or a URL
detectorPath = ROOT / "models/yolov8n_emoji.rknn"    # another kind of model: another detect
classifierPath = ROOT / "models/resnet18_emoji.rknn"
detect = yolov8.detect
# --------------------------------------------------------------------------------------------------


def find_objects(rknn_lite, IMG):
    return IMG, detect(rknn_lite, IMG)


def frames_of(source):
    capture = cv2.VideoCapture(int(source) if str(source).isdigit() else str(source))
    ok, frame = capture.read()
    if not ok:
        raise InputError(f"{source}: no frame could be read.")
    while ok:
        yield frame
        ok, frame = capture.read()


def crops_of(IMG, boxes):
    """Squares around boxes (n, 4) xyxy, so large that the classifier's own crop keeps the box."""
    for x1, y1, x2, y2 in boxes.tolist():
        half = max(x2 - x1, y2 - y1, 8) / 2 / resnet.CROP
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        yield IMG[max(0, round(y - half)):round(y + half), max(0, round(x - half)):round(x + half)]


def main(source, detector, classifier):
    frames = objects = agreed = 0
    with rknnPoolExecutor(str(detector), func=find_objects) as detectors, \
            rknnPoolExecutor(str(classifier), func=resnet.detect) as classifiers:
        # While one frame's objects are classified, the next frames are read and detected.
        for frame, found in detectors.map(frames_of(source)):
            names = [found.name(number) for number in found.classes]
            looks = [looked.name(looked.classes[0]) if len(looked) else "nothing"
                     for looked in classifiers.map(crops_of(frame, found.boxes))]
            objects += len(names)
            agreed += sum(name == look for name, look in zip(names, looks))
            if frames % 30 == 0:
                print(f"frame {frames}: " + ", ".join(
                    f"{name} (looks like: {look})" for name, look in zip(names, looks)), flush=True)
            frames += 1
    share = agreed / max(1, objects)
    print(f"{frames} frames, {objects} objects, the classifier agrees on {share:.0%} of them")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("source", cap), ("detector", detectorPath),
                          ("classifier", classifierPath)):
        parser.add_argument(name, nargs="?", default=default, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main(**vars(parse_arguments()))
    except (InputError, RuntimeError) as error:  # their messages are sentences
        print(error, file=sys.stderr)
        sys.exit(2)
