"""mAP of a demo model on drawn scenes that it has never seen, read by this project's own decoders.

    python models/demo/evaluate.py models/yolov5n_emoji.onnx
    python models/demo/evaluate.py models/yolov5n_emoji.onnx --int8 scenes/  # in int8, simulated
    python models/demo/evaluate.py models/yolov5n_emoji.tflite  # the open driver's, here on the CPU

mAP is COCO's: 101-point interpolated average precision, mean over classes; mAP50-95 is the mean
over IoU 0.50, 0.55, ... 0.95.
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import numpy as np
    from scene import draw_scene

    from funcs import ultralytics, yolov5, yolov8
    from runtimes import cpu, teflon
    from vision.coco import COCO_CLASSES
    from vision.errors import InputError
    from vision.inference import infer
    from vision.nms import nms
    from vision.quantised import Raw
    from vision.settings import Settings

SEED = 2  # train.py's scenes have seed 1, the calibration set's 9
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
SETTINGS = Settings(conf=0.001)


def iou(a, b):
    """IoU of every box of a (n, 4) with every box of b (m, 4), xyxy: (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = (high - low).clip(0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (area_a[:, None] + area_b[None] - overlap + 1e-9)


def matches(boxes, classes, truth, truth_classes):
    """Which detections, best first, find an object that no better one has found: (n, thresholds)
    bool."""
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
    """101-point interpolated average precision of one class: hit (n,) bool, scores (n,), and the
    number of objects to find."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hit[order])
    precision = found / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(found / objects, np.linspace(0, 1, 101))
    return np.append(precision, 0)[at].mean()


def decode(outputs):
    """Boxes, classes, scores before NMS: of YOLOv5's three heads, YOLOv8's, or Ultralytics' one
    output."""
    if len(outputs) == 1:
        layout = ultralytics.layout_of_shapes([outputs[0].shape], SETTINGS.size, "detect")
        assert layout is not None
        found = ultralytics.decode(Raw(outputs[0]), layout, SETTINGS)
        return found.boxes, found.classes, found.scores
    return (yolov5 if len(outputs) == 3 else yolov8).decode(outputs, SETTINGS)


def unseen_scenes(count):
    """Yield so many scenes that no model has seen, as draw_scene() returns them."""
    return (draw_scene((SEED, number)) for number in range(count))


def mean_average_precision(predict, scenes):
    """Evaluate a model on scenes: (mAP50, mAP50-95, {class: AP50}).

    predict: a callable from a picture (640, 640, 3) uint8 RGB to the model's outputs; scenes:
    unseen_scenes().
    """
    parts, objects = [], np.zeros(len(COCO_CLASSES), int)
    for image, truth, truth_classes in scenes:
        boxes, classes, score = decode(predict(np.ascontiguousarray(image[..., ::-1])))
        best = nms(boxes, classes, score, SETTINGS)
        hit = matches(boxes[best], classes[best], truth, truth_classes)
        parts.append((hit, score[best], classes[best]))
        objects += np.bincount(truth_classes, minlength=len(objects))
    hits, scores, found = (np.concatenate(part) for part in zip(*parts))
    precision = {}
    for number in np.flatnonzero(objects).tolist():
        mine = found == number
        precision[number] = [average_precision(hits[mine, column], scores[mine], objects[number])
                             for column in range(len(THRESHOLDS))]
    table = np.array(list(precision.values()))
    return table[:, 0].mean(), table.mean(), {c: values[0] for c, values in precision.items()}


def summary(result):
    map50, map50_95, classes = result
    lowest = sorted(classes.items(), key=lambda item: item[1])[:5]
    weakest = ", ".join(f"{COCO_CLASSES[number]} {value:.2f}" for number, value in lowest)
    return (f"mAP50 {map50:.3f}, mAP50-95 {map50_95:.3f} over {len(classes)} classes; weakest: "
            f"{weakest}")


def onnx_predictor(path):
    """predict() of an .onnx, or of a .tflite, on the CPU."""
    context = (teflon if str(path).endswith(".tflite") else cpu).RKNNLite()
    if context.load_rknn(str(path)) or context.init_runtime():
        raise SystemExit(context.error)
    return lambda image: infer(context, image)


def int8_predictor(path, calibration):
    """The quantised network in rknn-toolkit2's simulator, which runs only what it has built."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import convert
    try:
        context = convert.agreement.Simulated(convert.build_int8(path, calibration))
    except InputError as error:
        raise SystemExit(str(error)) from None
    return lambda image: infer(context, image)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--int8", metavar="FOLDER", type=Path,
                        help="simulate the int8 .rknn, calibrated with these images")
    args = parser.parse_args()
    predict = int8_predictor(args.model, args.int8) if args.int8 else onnx_predictor(args.model)
    found = summary(mean_average_precision(predict, unseen_scenes(args.scenes)))
    print(f"{args.model}{' in int8' if args.int8 else ''}, {args.scenes} scenes: {found}")


if __name__ == "__main__":
    with needed_packages():
        main()
