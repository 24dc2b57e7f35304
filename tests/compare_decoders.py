"""Measures each decoder on a frame with 20 objects, and compares that of Ultralytics' single output
with decoding all boxes first.

Run by hand:

    python tests/compare_decoders.py
    python tests/compare_decoders.py --rounds 1     # a short run

Outputs are those of the demo models on a frame of the demo video, as float32 and as int8. The time
is that from outputs to boxes before NMS: medians in ms of CPU time, measured in turn.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import layouts  # noqa: E402

from funcs import ultralytics, yolov5, yolov8  # noqa: E402
from vision.letterbox import letterbox  # noqa: E402
from vision.nms import nms  # noqa: E402
from vision.quantised import Raw  # noqa: E402
from vision.settings import Settings  # noqa: E402

CALLS = 20  # per round


def outputs_of(model, square):
    """Outputs of an onnx.ModelProto for a picture (h, w, 3) uint8 RGB: list of float32 arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # waiting threads take CPU time
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": np.float32(square.transpose(2, 0, 1)[None]) / 255})


def quantised(array):
    """Quantise an array like the NPU: (int8 array, scale, zero point)."""
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    scale = (high - low) / 255 or 1.0
    zero = round(-128 - low / scale)
    return np.clip(np.round(array / scale) + zero, -128, 127).astype(np.int8), scale, zero


def by_rows(output, scale, zero, conf):
    """The plain way: (n, 84) rows, all boxes, all best classes, then the threshold."""
    rows = (
        output[0].T
        if output.dtype == np.float32
        else ((output.astype(np.float32) - zero) * np.float32(scale))[0].T
    )
    scores = rows[:, 4:]
    best = scores.max(1)
    boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], 1)
    good = best >= conf
    return boxes[good], scores.argmax(1)[good], best[good]


def by_columns(output, scale, zero, conf):
    """The same without transposing."""
    values = (
        output[0]
        if output.dtype == np.float32
        else ((output.astype(np.float32) - zero) * np.float32(scale))[0]
    )
    scores = values[4:]
    best = scores.max(0)
    boxes = np.concatenate([values[:2] - values[2:4] / 2, values[:2] + values[2:4] / 2])
    good = best >= conf
    return boxes.T[good], scores.argmax(0)[good], best[good]


def in_turns(functions, rounds):
    """Median ms of each function, measured in turns."""
    found = [[] for _ in functions]
    for number in range(rounds + 1):
        for times, function in zip(found, functions):
            began = time.thread_time()
            for _ in range(CALLS):
                function()
            if number:  # the first round is the warm-up
                times.append((time.thread_time() - began) / CALLS * 1000)
    return [statistics.median(times) for times in found]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    video.set(cv2.CAP_PROP_POS_FRAMES, 60)
    square = letterbox(video.read()[1], 640)[0]
    settings = Settings(iou=ultralytics.NMS_THRESH)
    print(f"NumPy {np.__version__}, {args.rounds} rounds of {CALLS} calls\n")
    print("| decoder | outputs | float32 | int8 |")
    print("|---|---|---|---|")
    for task, shape in (
        ("detect", "(1, 84, 8400)"),
        ("segment", "(1, 116, 8400)"),
        ("pose", "(1, 135, 8400)"),
        ("obb", "(1, 85, 8400)"),
    ):
        output = outputs_of(layouts.ultralytics(task, relative=True), square)[0]
        shapes = [output.shape] + [(1, 32, 160, 160)] * (task == "segment")
        layout = ultralytics.layout_of_shapes(shapes, (640, 640), task, 80)
        pair = [Raw(output), Raw(*quantised(output))]
        ours = [
            lambda raw=raw, layout=layout: ultralytics.decode(raw, layout, settings, True)
            for raw in pair
        ]
        others = [
            (lambda raw=raw, way=way: way(*raw, settings.conf))
            for way in (by_rows, by_columns)
            for raw in pair
            if task == "detect"
        ]
        ms = in_turns(ours + others, args.rounds)
        # The mask coefficients of layouts.py are in the hundreds, so that int8 would round all
        # scores to 0.
        int8 = f"{ms[1]:.3f}" if task != "segment" else ""
        print(f"| funcs/ultralytics.py, {task} | {shape} | {ms[0]:.3f} | {int8} |")
        if task == "detect":
            boxes, classes, scores = by_rows(*pair[0], settings.conf)
            found = ours[0]()
            assert (
                np.abs(found.boxes - boxes * np.float32(640)).max() < 1e-3
                and (found.classes == classes).all()
            )
            assert np.abs(found.scores - scores).max() < 1e-3
            usual, count = ms[2:], len(scores)
    objects = len(nms(found.boxes, found.classes, found.scores, settings))
    print(f"| every cell first, rows | (1, 84, 8400) | {usual[0]:.3f} | {usual[1]:.3f} |")
    print(f"| every cell first, columns | (1, 84, 8400) | {usual[2]:.3f} | {usual[3]:.3f} |")
    for name, model, decode in (
        ("funcs/yolov5.py", "yolov5n", yolov5.decode),
        ("funcs/yolov8.py", "yolov8n", yolov8.decode),
    ):
        heads = outputs_of(onnx.load(str(ROOT / f"models/{model}_emoji.onnx")), square)
        stored = [quantised(head) for head in heads]
        ms = in_turns(
            [
                lambda decode=decode, heads=heads: decode(heads, settings),
                lambda decode=decode, stored=stored: decode(stored, settings),
            ],
            args.rounds,
        )
        print(f"| {name} | {len(heads)} heads | {ms[0]:.3f} | {ms[1]:.3f} |")
    print(
        f"\n{count} cells above the confidence, {objects} objects; boxes, classes and scores of "
        "both ways agree to 1e-3"
    )


if __name__ == "__main__":
    main()
