"""Compares this project's detections with Ultralytics' own predict(), for each family of models.
Run by hand.

    ENVIRONMENT/bin/python tests/compare_ultralytics.py    # with ultralytics, onnx, onnxruntime
    ENVIRONMENT/bin/python tests/compare_ultralytics.py yolo11n-pose yolov8n --work runs/exports

Each model is built from its yaml with random weights. Batch normalisation is set on the pictures,
and the last layers are scaled, so that pictures give some eighty boxes before NMS. Ultralytics'
exporter writes the .onnx; its predict() and this project read it. Ultralytics is AGPL-3.0: none of
its code or weights is in this repository.
"""

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "models"))
from relative_boxes import with_relative_boxes  # noqa: E402

from funcs import ultralytics  # noqa: E402
from runtimes.cpu import RKNNLite  # noqa: E402
from vision.letterbox import letterbox  # noqa: E402
from vision.model import describe  # noqa: E402

DETECT = "yolov5n yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n".split()
OTHERS = [
    f"{family}-{task}"
    for task in ("seg", "pose", "obb", "cls")
    for family in "yolov8n yolo11n yolo12n yolo26n".split()
] + ["yolov9c-seg"]
TASKS = {"seg": "segment", "pose": "pose", "obb": "obb", "cls": "classify"}
CANDIDATES = 25  # cells of each stride that pass the confidence, on average
CONF, IOU = 0.25, 0.7
SMALL = 4  # pixels of a side: with JSON's one decimal, smaller boxes cannot have an IoU of 0.95


def import_ultralytics():
    """Ultralytics' YOLO class. If torchvision has no compiled part (with another torch),
    Ultralytics' own NMS replaces it."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        global library
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
        from ultralytics.utils.nms import TorchNMS

        torchvision.ops.nms = TorchNMS.nms
    from ultralytics import YOLO

    return YOLO


def pictures(folder):
    """Write frames of the demo video in six shapes into `folder`. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    paths = []
    for number, (x, y, w, h) in enumerate(
        [
            (0, 0, 1280, 720),
            (300, 0, 500, 720),
            (200, 200, 427, 333),
            (0, 0, 1280, 720),
            (400, 100, 640, 480),
            (500, 300, 251, 253),
            (100, 400, 1001, 301),
        ]
    ):
        video.set(cv2.CAP_PROP_POS_FRAMES, 70 * number)
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), video.read()[1][y : y + h, x : x + w])
    return paths


def stretch(layer, x, std=None, mean=0.0, candidates=CANDIDATES):
    """Replace the weights of a branch's last Conv2d by random ones, so that its output has this
    standard deviation and mean. For class scores (std None) the best class of some `candidates`
    cells exceeds CONF, and none is near 1."""
    conv = layer[-1] if isinstance(layer, torch.nn.Sequential) else layer
    conv.weight.normal_(0, 1 / math.sqrt(conv.weight[0].numel()))
    conv.bias.zero_()
    conv.bias -= layer(x).mean((0, 2, 3))
    if std is None:
        best = layer(x).amax(1).flatten()
        least = torch.quantile(best, max(0.0, 1 - candidates * len(x) / len(best)))
        factor, mean = 3.5 / (best.max() - least + 1e-6), math.log(CONF / (1 - CONF))
        conv.weight *= factor
        conv.bias *= factor
        conv.bias += mean - factor * least
    else:
        factor = std / (layer(x).std() + 1e-6)
        conv.weight *= factor
        conv.bias *= factor
        conv.bias += mean


def smooth(module, inputs, output):
    """Smooth the prototypes: random ones differ from pixel to pixel, unlike trained ones, and a
    mask of noise changes with the resolution."""
    for _ in range(2):
        output = torch.nn.functional.avg_pool2d(
            output - output.mean((2, 3), keepdim=True), 17, 1, 8
        )
    return output


@torch.no_grad()
def build(YOLO, name, images):
    """A model of this family with random weights that detects objects in images (n, 3, h, w)."""
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml")
    network = model.model
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    head, seen = network.model[-1], []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.train()
    network(images)
    network.eval()
    for norm, momentum in zip(norms, kept):
        norm.momentum = momentum
    seen.clear()
    network(images)
    hook.remove()
    features = seen[0]
    if name.endswith("-cls"):
        head.linear.weight *= 10
        return model
    if name.endswith("-seg"):
        head.proto.register_forward_hook(smooth)
    # YOLO26's random boxes may have a negative width. predict() counts them among its 300, so there
    # must be fewer.
    scores = {"candidates": 8} if name.startswith("yolo26") else {}
    for branch, options in (
        ("cv2", dict(std=0.4, mean=3) if head.reg_max == 1 else dict(std=1)),
        ("cv3", scores),
        ("cv4", dict(std=1)),
        ("cv4_kpts", dict(std=4)),
    ):
        for prefix in ("", "one2one_"):
            layers = getattr(head, prefix + branch, None)
            for level, layer in enumerate(layers if layers is not None else []):
                x = features[level]
                if branch == "cv4_kpts":
                    x = getattr(head, prefix + "cv4")[level](x)
                if branch != "cv4" or isinstance(layer[-1], torch.nn.Conv2d):
                    stretch(layer, x, **options)
    return model


def overlap(a, b):
    """IoU of each box of a (n, 4) xyxy with each of b (m, 4): (n, m)."""
    inner = (
        (np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]))
        .clip(0)
        .prod(2)
    )
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return inner / np.maximum(areas[0][:, None] + areas[1][None] - inner, 1e-9)


def theirs(result, task):
    """An Ultralytics Results as a dict of arrays: boxes, classes, scores, and what the task adds.
    Boxes without area, outside the picture, on the grey border, or with a negative width are
    omitted."""
    if task == "classify":
        return {"probabilities": result.probs.data.numpy()}
    found = result.obb if task == "obb" else result.boxes
    answer = {
        "boxes": found.xyxy.numpy(),
        "classes": found.cls.numpy().astype(int),
        "scores": found.conf.numpy(),
    }
    if task == "obb":
        answer["corners"] = found.xyxyxyxy.numpy()
    if task == "pose":
        answer["keypoints"] = result.keypoints.data.numpy()
    if task == "segment":
        answer["masks"] = (
            result.masks.data.numpy() if len(found) else np.zeros((0, *result.orig_shape))
        )
    real = (answer["boxes"][:, 2:] > answer["boxes"][:, :2]).all(1)
    return {key: values[real] for key, values in answer.items()}


def ours(objects, masks, task, shape):
    """The objects of a line of main.py's JSON as the same dict. masks: those of Detections, because
    JSON has only outlines."""
    answer = {
        "boxes": np.float32([entry["box"] for entry in objects]).reshape(-1, 4),
        "classes": np.array([entry["number"] for entry in objects], int),
        "scores": np.float32([entry["score"] for entry in objects]),
    }
    if task == "obb":
        answer["corners"] = np.float32([entry["corners"] for entry in objects]).reshape(-1, 4, 2)
    if task == "pose":
        answer["keypoints"] = np.float32([entry["keypoints"] for entry in objects])
    if task == "segment":
        answer["masks"] = np.zeros((len(objects), *shape), np.uint8)
        for whole, (x, y, mask) in zip(answer["masks"], masks):
            whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return answer


def through_main(path, folder):
    """Run main.py on a folder of pictures: a list of the objects of each line."""
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        str(folder),
        "--model",
        str(path),
        "--json",
        "-",
        "--headless",
        "--conf",
        str(CONF),
    ]
    if not path.stem.endswith("-cls"):
        command += ["--iou", str(IOU)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return [
        json.loads(line)["objects"] for line in ended.stdout.splitlines() if line.startswith("{")
    ]


def rotated_overlap(a, b):
    """IoU of two rotated boxes, each (4, 2) corners."""
    a, b = cv2.convexHull(a.astype(np.float32)), cv2.convexHull(b.astype(np.float32))
    inner = cv2.intersectConvexConvex(a, b)[0]
    return inner / max(cv2.contourArea(a) + cv2.contourArea(b) - inner, 1e-9)


def agree(a, b, task):
    """For each detection of a whether b has it: (n,) bool, and the largest differences of those."""
    if not len(a["boxes"]) or not len(b["boxes"]):
        return np.zeros(len(a["boxes"]), bool), {}
    ious = overlap(a["boxes"], b["boxes"])
    close = np.abs(a["scores"][:, None] - b["scores"]) <= 0.01
    same = (a["classes"][:, None] == b["classes"]) & close
    if task == "obb":
        for row, column in np.argwhere(same & (ious > 0.5)):
            ious[row, column] = rotated_overlap(a["corners"][row], b["corners"][column])
    ious = np.where(same, ious, 0)
    best = ious.argmax(1)
    found = ious.max(1) >= 0.95
    worst = {"IoU": ious.max(1)[found].min() if found.any() else 1}
    worst["score"] = float(np.abs(a["scores"] - b["scores"][best])[found].max(initial=0))
    if task == "pose":
        off = np.abs(a["keypoints"] - b["keypoints"][best]).max((1, 2))
        worst["key point"] = float(off[found].max(initial=0))
        found &= off <= 1
    if task == "segment":
        masks = np.array(
            [
                (x & y).sum() / max(1, (x | y).sum())
                for x, y in zip(a["masks"].astype(bool), b["masks"].astype(bool)[best])
            ]
        )
        worst["mask IoU"] = float(masks[found].min(initial=1))
        found &= masks >= 0.95
    return found, worst


def compare(YOLO, path, task, size, paths, relative=None):
    """A row of the table: an .onnx read by both. relative: the same model with relative
    coordinates, for ours."""
    other = YOLO(str(path), task=task)
    found = through_main(relative or path, paths[0].parent)
    context = opened(relative or path) if task == "segment" else None
    hits, worst = [[], []], {}
    for picture, objects in zip(paths, found):
        frame = cv2.imread(str(picture))
        with contextlib.redirect_stdout(io.StringIO()):
            result = other.predict(
                frame, conf=CONF, iou=IOU, imgsz=size, verbose=False, rect=False, retina_masks=True
            )[0]
        a = theirs(result, task)
        if task == "classify":
            classes = np.array([entry["number"] for entry in objects], int)
            off = np.abs(a["probabilities"][classes] - [entry["score"] for entry in objects]).max(
                initial=0
            )
            # With random weights no class may have a high score; then neither names one.
            same = (
                (a["probabilities"].max() < CONF)
                if not len(classes)
                else classes[0] == result.probs.top1
            )
            hits[0].append(np.array([bool(same) and off <= 0.01]))
            hits[1].append(hits[0][-1])
            worst["score"] = max(worst.get("score", 0), float(off))
            continue
        masks = ultralytics.detect(context, frame).masks if context else None
        b = ours(objects, masks, task, frame.shape[:2])
        # predict() keeps 300, some outside the picture or with an empty mask, and has dropped the
        # weakest.
        if max(len(result), len(objects)) > 250:
            b = {key: values[b["scores"] >= a["scores"].min()] for key, values in b.items()}
        for place, (one, another) in enumerate(((a, b), (b, a))):
            large = (one["boxes"][:, 2:] - one["boxes"][:, :2] >= SMALL).all(1)
            agreed, off = agree({key: values[large] for key, values in one.items()}, another, task)
            hits[place].append(agreed)
            for key, value in off.items():
                worst[key] = (min if "IoU" in key else max)(worst.get(key, value), value)
    forth, back = (np.concatenate(hit) for hit in hits)
    return {
        "boxes": len(forth),
        "theirs found": forth.mean() if len(forth) else 0,
        "ours found": back.mean() if len(back) else 0,
        **worst,
    }


def opened(path):
    """An opened context of runtimes/cpu.py with its model."""
    context = RKNNLite()
    if context.load_rknn(str(path)) or context.init_runtime():
        raise SystemExit(context.error)
    context.model = describe(str(path))
    context.model.conf, context.model.iou = CONF, IOU
    return context


def row(name, outputs, figures):
    figures = {
        key: f"{value:.1%}"
        if "found" in key
        else value
        if isinstance(value, int)
        else f"{value:.4f}"
        for key, value in figures.items()
    }
    return (
        f"| {name} | {outputs} | " + " | ".join(str(figures.get(key, "")) for key in COLUMNS) + " |"
    )


COLUMNS = ("boxes", "theirs found", "ours found", "IoU", "score", "key point", "mask IoU")


def variants(name):
    """(name, imgsz, end2end, relative) of a family."""
    size = 224 if name.endswith("-cls") else 640
    several = name.startswith(("yolov10", "yolo26")) and not name.endswith("-cls")
    yield name, size, False if several else None, False
    if several:
        yield f"{name}, end2end", size, True, False
    if name in ("yolo11n", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb"):
        yield f"{name}, 384 x 640", (384, 640), None, False
    if name in ("yolov8n", "yolo11n", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb"):
        yield f"{name}, relative", size, None, True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", default=DETECT + OTHERS)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/exports"), help="where exports are kept"
    )
    args = parser.parse_args()
    args.work = args.work.resolve()
    os.environ.setdefault("YOLO_OFFLINE", "true")
    YOLO = import_ultralytics()
    from ultralytics import __version__

    cv2.setNumThreads(1)
    paths = pictures(args.work / "pictures")
    os.chdir(args.work)  # the exporter writes there
    print(f"ultralytics {__version__}, {len(paths)} pictures, conf {CONF}, iou {IOU}\n")
    print(
        "| model | outputs | boxes | predict()'s boxes that main.py finds | "
        "main.py's boxes that predict() finds | lowest IoU | largest difference of score | "
        "of key point, px | lowest mask IoU |\n|" + "---|" * 9,
        flush=True,
    )
    failed = 0
    for family in args.families:
        task = TASKS.get(family.rpartition("-")[2], "detect")
        for name, size, end2end, relative in variants(family):
            path = args.work / "models" / (name.replace(", ", "-").replace(" ", "") + ".onnx")
            plain = args.work / "models" / f"{family}.onnx"
            path.parent.mkdir(exist_ok=True)
            if relative:
                import onnx

                edited = with_relative_boxes(onnx.load(str(plain)), describe(plain))[0]
                onnx.helper.set_model_props(
                    edited,
                    {
                        **{entry.key: entry.value for entry in edited.metadata_props},
                        "relative": "True",
                    },
                )
                onnx.save(edited, str(path))
            elif not path.exists():
                h, w = (size, size) if isinstance(size, int) else size
                images = [
                    letterbox(cv2.imread(str(picture)), (w, h))[0].copy() for picture in paths[:4]
                ]
                images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
                model = build(YOLO, family, images)
                options = {} if end2end is None else {"end2end": end2end}
                with contextlib.redirect_stdout(sys.stderr):
                    exported = model.export(format="onnx", imgsz=size, opset=17, **options)
                Path(exported).rename(path)
            figures = compare(
                YOLO, plain if relative else path, task, size, paths, path if relative else None
            )
            shapes = ", ".join(str(shape) for _, shape in describe(str(path)).outputs)
            print(row(name, shapes, figures), flush=True)
            failed += (
                min(figures["theirs found"], figures["ours found"]) < 0.99 or figures["boxes"] == 0
            )
    sys.exit(f"{failed} rows do not agree" if failed else 0)


if __name__ == "__main__":
    main()
