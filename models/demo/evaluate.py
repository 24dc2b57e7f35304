"""mAP of a demo model on drawn scenes that it has never seen, read by the project's own func.py or funcs/yolov8.py.

    python models/demo/evaluate.py models/yolov5n_emoji.onnx
    python models/demo/evaluate.py models/yolov5n_emoji.onnx --int8 scenes/      # as convert.py quantises it, simulated
    python models/demo/evaluate.py models/yolov5n_emoji.tflite                   # the open driver's, here on the CPU

mAP is COCO's: 101-point interpolated average precision, mean over classes; mAP50-95 the mean over IoU 0.50, 0.55, ...
0.95.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
from scene import draw_scene

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import func  # noqa: E402
from funcs import ultralytics, yolov8  # noqa: E402

SEED = 2  # train.py's scenes have seed 1, the calibration set's 9
THRESHOLDS = np.arange(0.5, 1.0, 0.05)


def iou(a, b):
    """IoU of every box of a (n, 4) with every box of b (m, 4), xyxy: (n, m)."""
    overlap = (np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])).clip(0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (area_a[:, None] + area_b[None] - overlap + 1e-9)


def matches(boxes, classes, truth, truth_classes):
    """Which detections, best first, find an object not found by a better one: (n, thresholds) bool."""
    hit = np.zeros((len(boxes), len(THRESHOLDS)), bool)
    overlap = iou(boxes, truth) * (classes[:, None] == truth_classes[None])
    for column, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(len(truth), bool)
        for row in range(len(boxes)):
            free = np.where(taken, 0, overlap[row])
            if len(truth) and free.max() >= threshold:
                taken[free.argmax()] = hit[row, column] = True
    return hit


def average_precision(hit, scores, objects):
    """101-point interpolated average precision of one class: hit (n,) bool, scores (n,), number of objects there
    are."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hit[order])
    precision = found / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(found / objects, np.linspace(0, 1, 101))
    return np.append(precision, 0)[at].mean()


def decode(outputs):
    """Boxes, classes, scores before NMS, of YOLOv5's three heads, of YOLOv8's, or of Ultralytics' one output."""
    if len(outputs) == 1:
        plan = ultralytics.layout((outputs[0].shape,), (func.IMG_SIZE, func.IMG_SIZE), "detect", None)
        return ultralytics.decode((outputs[0], 1.0, 0), plan, func.settings(None))[:3]
    return func.decode(outputs) if len(outputs) == 3 else yolov8.decode(outputs)


def mean_average_precision(predict, scenes=500):
    """Evaluate `predict`, a callable (640, 640, 3) uint8 RGB -> YOLOv5's or YOLOv8's heads, on scenes of an unseen
    seed.

    Returns (mAP50, mAP50-95, {class: AP50}).
    """
    threshold, func.OBJ_THRESH = func.OBJ_THRESH, 0.001
    try:
        hits, scores, found, objects = [], [], [], np.zeros(len(func.CLASSES), int)
        for number in range(scenes):
            image, truth, truth_classes = draw_scene((SEED, number))
            boxes, classes, score = func.nms(*decode(predict(np.ascontiguousarray(image[..., ::-1]))))
            hits.append(matches(boxes, classes, truth, truth_classes))
            scores.append(score)
            found.append(classes)
            objects += np.bincount(truth_classes, minlength=len(objects))
    finally:
        func.OBJ_THRESH = threshold
    hits, scores, found = np.concatenate(hits), np.concatenate(scores), np.concatenate(found)
    precision = {int(c): [average_precision(hits[found == c, column], scores[found == c], objects[c])
                          for column in range(len(THRESHOLDS))]
                 for c in np.flatnonzero(objects)}
    table = np.array(list(precision.values()))
    return table[:, 0].mean(), table.mean(), {c: values[0] for c, values in precision.items()}


def summary(result):
    map50, map50_95, classes = result
    weakest = ", ".join(f"{func.CLASSES[c]} {value:.2f}" for c,
                        value in sorted(classes.items(), key=lambda item: item[1])[:5])
    return f"mAP50 {map50:.3f}, mAP50-95 {map50_95:.3f} over {len(classes)} classes; weakest: {weakest}"


def onnx_predictor(path):
    """predict() of an .onnx, or of a .tflite, on the CPU."""
    if str(path).endswith(".tflite"):
        from runtimes.teflon import RKNNLite
    else:
        from runtimes.cpu import RKNNLite
    context = RKNNLite()
    if context.load_rknn(str(path)) or context.init_runtime():
        raise SystemExit(context.error)
    return lambda image: func.infer(context, image)


def int8_predictor(path, calibration):
    """The quantised network in rknn-toolkit2's simulator, which runs only what was built in the same process."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import convert
    rknn = convert.build(path, "rk3588", "i8", calibration)
    if rknn.init_runtime():
        raise SystemExit("The simulator did not start.")
    return lambda image: rknn.inference([image[None]], data_format="nhwc")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--int8", metavar="FOLDER", type=Path,
                        help="simulate the int8 .rknn, calibrated with these images")
    args = parser.parse_args()
    predict = int8_predictor(args.model, args.int8) if args.int8 else onnx_predictor(args.model)
    found = summary(mean_average_precision(predict, args.scenes))
    print(f"{args.model}{' in int8' if args.int8 else ''}, {args.scenes} scenes: {found}")


if __name__ == "__main__":
    main()
