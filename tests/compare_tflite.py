"""Compares the boxes that the .onnx and the .tflite of the demo models find in the demo video,
using the pool, func.py and funcs/. Boxes are the same if they have the same class and an IoU of at
least 0.5.

    python tests/compare_tflite.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models/demo")]
from evaluate import iou  # noqa: E402
from fakes import frames_in  # noqa: E402

import func  # noqa: E402
from funcs import yolov8  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes import cpu, teflon  # noqa: E402

DETECT = {"yolov5n": func.detect, "yolov8n": yolov8.detect}


def detections(name, runtime, frames):
    """A demo model's Detections in each of the frames, (h, w, 3) uint8 BGR: a list."""
    model = f"{ROOT}/models/{name}_emoji.rknn"
    with rknnPoolExecutor(model, 2, DETECT[name], runtime=runtime.RKNNLite) as pool:
        return list(pool.map(frames))


def compare(all_onnx, all_tflite):
    """(boxes of the .onnx, share of them that the .tflite finds, boxes of the .tflite, share that
    the .onnx finds). all_onnx, all_tflite: detections() in the same frames."""
    counts, same = [0, 0], [0, 0]
    for onnx, tflite in zip(all_onnx, all_tflite):
        alike = (iou(onnx.boxes, tflite.boxes) >= 0.5) & (
            onnx.classes[:, None] == tflite.classes[None]
        )
        for which, found in enumerate((onnx, tflite)):
            counts[which] += len(found)
            same[which] += int(alike.any(1 - which).sum())
    return counts[0], same[0] / counts[0], counts[1], same[1] / counts[1]


def main():
    frames = list(frames_in(ROOT / "models/demo.mp4"))[::3]
    for name in DETECT:
        both = (detections(name, runtime, frames) for runtime in (cpu, teflon))
        onnx, found, tflite, known = compare(*both)
        print(
            f"{name}, {len(frames)} frames: {onnx} boxes of the .onnx, {found:.2%} found by the "
            f".tflite; {tflite} of the .tflite, {known:.2%} found by the .onnx"
        )


if __name__ == "__main__":
    main()
