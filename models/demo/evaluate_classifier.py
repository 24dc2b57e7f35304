"""Top-1 and top-5 accuracy of the demo classifier on drawn objects that it has never seen, read by
this project's own funcs/resnet.py.

    python models/demo/evaluate_classifier.py models/resnet18_emoji.onnx    # or .tflite
    python models/demo/evaluate_classifier.py models/resnet18_emoji.onnx --int8 objects/
    python models/demo/evaluate_classifier.py --draw objects/    # 64 pictures for calibration
"""
import argparse
import collections
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "models")]
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import cv2
    from scene import draw_object

    from funcs.resnet import classify
    from runtimes import cpu, teflon
    from vision.coco import COCO_CLASSES

SEED, CALIBRATION_SEED = 2, 9  # train_classifier.py's objects have seed 1


def accuracy(context, objects=2000):
    """Classify drawn objects of an unseen seed with an RKNNLite context.

    Returns (share whose class comes first, share whose class is among the first five, Counter of
    (class, class that came first instead)).
    """
    first = five = 0
    confused: collections.Counter = collections.Counter()
    for number in range(objects):
        image, truth = draw_object((SEED, number))
        classes, _ = classify(context, image)
        first += truth == classes[0]
        five += truth in classes
        if truth != classes[0]:
            confused[truth, int(classes[0])] += 1
    return first / objects, five / objects, confused


def on_cpu(path):
    """An RKNNLite context on this machine's CPU."""
    context = (teflon if str(path).endswith(".tflite") else cpu).RKNNLite()
    if context.load_rknn(str(path)) or context.init_runtime():
        raise SystemExit(context.error)
    return context


def in_int8(path, calibration):
    """The quantised network in rknn-toolkit2's simulator, which runs only what it has built."""
    import convert
    try:
        return convert.agreement.Simulated(convert.build_int8(path, calibration))
    except convert.InputError as error:
        raise SystemExit(str(error)) from None


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="the .onnx or .tflite")
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--int8", metavar="FOLDER", type=Path,
                        help="simulate the int8 .rknn, calibrated with these images")
    parser.add_argument("--draw", metavar="FOLDER", type=Path,
                        help="only draw 64 objects as JPEG files")
    args = parser.parse_args()
    if args.draw:
        args.draw.mkdir(parents=True, exist_ok=True)
        for number in range(64):
            image, _ = draw_object((CALIBRATION_SEED, number))
            cv2.imwrite(str(args.draw / f"{number:06}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        return
    if args.model is None:
        parser.error("which model?")
    context = in_int8(args.model, args.int8) if args.int8 else on_cpu(args.model)
    first, five, confused = accuracy(context, args.objects)
    worst = ", ".join(f"{COCO_CLASSES[truth]} as {COCO_CLASSES[found]} {count}"
                      for (truth, found), count in confused.most_common(5))
    print(f"{args.model}{' in int8' if args.int8 else ''}, {args.objects} objects: top-1 "
          f"{first:.3f}, top-5 {five:.3f}; most often mistaken: {worst}")


if __name__ == "__main__":
    with needed_packages():
        main()
