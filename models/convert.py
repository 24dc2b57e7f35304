"""Converts an ONNX model to .rknn with Rockchip's rknn-toolkit2, in an environment of its own (README.md beside this
file).

    python models/convert.py model.onnx --target rk3588 --calibration images/
    python models/convert.py resnet50.onnx --calibration images/ --mean 123.675 116.28 103.53 --std 58.395 57.12 57.375

Mean and standard deviation of the model's input, R, G, B in 0..255, stand in the ONNX file's metadata as `mean` and
`std`, where runtimes/cpu.py reads them, too; --mean and --std write them there. A model without them takes RGB in 0..1.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from func import letterbox  # noqa: E402
from funcs.resnet import crop  # noqa: E402
from rknnmodel import InputError  # noqa: E402
from runtimes.cpu import normalisation  # noqa: E402

TARGETS = ("rk3588", "rk3576", "rk3566", "rk3568", "rk3562")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp")


def calibration_images(source, count):
    """Up to `count` images, BGR, of a folder or, evenly spread, of a video. Raises InputError where there is none."""
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES)[:count]
        images = [cv2.imread(str(path)) for path in files]
    elif source.is_file():
        video = cv2.VideoCapture(str(source))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        images = []
        for number in range(count):
            video.set(cv2.CAP_PROP_POS_FRAMES, number * frames // count)
            images.append(video.read()[1])
    else:
        raise InputError(f"--calibration {source}: no such folder or video.")
    images = [image for image in images if image is not None]
    if not images:
        raise InputError(f"--calibration {source}: no image in it could be read.")
    return images


def load(path):
    """The onnx.ModelProto at `path`. Raises InputError where there is none."""
    import onnx
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's own exception types differ from version to version
        raise InputError(f"{path}: not an ONNX model ({' '.join(str(error).split())}).") from None


def set_normalisation(path, **values):
    """Write `mean` and `std`, each three numbers, into the metadata of the ONNX file at `path`. Raises InputError for
    numbers that cannot be."""
    import onnx
    model = load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata.update((name, " ".join(f"{value}" for value in numbers)) for name, numbers in values.items())
    try:
        mean, std = normalisation(metadata)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None
    onnx.helper.set_model_props(model, metadata)
    partial = path.with_name(path.name + ".new")
    try:
        onnx.save(model, str(partial))
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    print(f"{path}: its metadata now says mean {mean}, std {std}")


def sides(value):
    """The sizes of an ONNX graph's input or output: list of int, 0 where the model leaves one open."""
    return [side.dim_value for side in value.type.tensor_type.shape.dim]


def fed(image, graph):
    """An image (h, w, 3) uint8 BGR as its example feeds it to this ONNX graph: RGB, the centre for a classifier, else
    letterboxed.

    The graph tells which it is: a classifier has one output, (1, classes) or (1, classes, 1, 1). A flag could be
    forgotten, and the int8 ranges would then be those of grey bars.
    """
    size = sides(graph.input[0])[2]
    outputs = [sides(output) for output in graph.output]
    classifier = len(outputs) == 1 and len(outputs[0]) in (2, 4) and outputs[0][2:] in ([], [1, 1])
    return crop(image, size) if classifier else letterbox(image, size)[0]


def build(onnx, target="rk3588", dtype="i8", calibration=None, count=64):
    """Build the model: a built rknn.api.RKNN. onnx and calibration are paths. Raises InputError for bad input."""
    try:
        from rknn.api import RKNN
    except ImportError as error:
        raise InputError(f"rknn-toolkit2 cannot be imported ({error}): models/README.md tells how to set it up.") from None
    model = load(onnx)
    if dtype == "i8" and calibration is None:
        raise InputError("--dtype i8 needs --calibration with a folder of images, or a video, like those the model will see.")
    try:
        mean, std = normalisation({entry.key: entry.value for entry in model.metadata_props})
    except ValueError as error:
        raise InputError(f"{onnx}: {error}.") from None
    rknn = RKNN(verbose=False)
    # The NPU subtracts and divides, so that it is fed with bytes.
    rknn.config(mean_values=[mean], std_values=[std], target_platform=target)
    shape = sides(model.graph.input[0])
    if len(shape) != 4 or 0 in shape[1:]:
        raise InputError(f"{onnx}: its input has the shape {shape} (0: left open), and (1, channels, height, width) is needed.")
    # An open batch size, as exports of ResNets often have it, is fixed here.
    fixed = {} if shape[0] else {"inputs": [model.graph.input[0].name], "input_size_list": [[1] + shape[1:]]}
    if rknn.load_onnx(str(onnx), **fixed):
        raise InputError(f"{onnx}: rknn-toolkit2 cannot read this model, its own message stands above.")
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset.txt"
        if dtype == "i8":
            names = []
            for number, image in enumerate(calibration_images(calibration, count)):
                names.append(str(Path(folder) / f"{number}.png"))
                cv2.imwrite(names[-1], fed(image, model.graph)[..., ::-1])
            dataset.write_text("\n".join(names))
        if rknn.build(do_quantization=dtype == "i8", dataset=str(dataset)):
            raise InputError(f"{onnx}: rknn-toolkit2 cannot build this model for {target}, its own message stands above.")
    return rknn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--target", choices=TARGETS, default="rk3588")
    parser.add_argument("--dtype", choices=("i8", "fp"), default="i8",
                        help="i8: quantised, needs --calibration; fp: 16-bit floats")
    parser.add_argument("--calibration", type=Path, help="folder of images, or a video")
    parser.add_argument("--count", type=int, default=64, help="calibration images")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar=tuple("RGB"),
                            help=f"write this {name} into the ONNX file first")
    parser.add_argument("--out", type=Path, help="default: the ONNX file's name with .rknn")
    args = parser.parse_args()
    try:
        given = {name: numbers for name, numbers in (("mean", args.mean), ("std", args.std)) if numbers}
        if given:
            set_normalisation(args.onnx, **given)
        rknn = build(args.onnx, args.target, args.dtype, args.calibration, args.count)
        out = args.out or args.onnx.with_suffix(".rknn")
        if rknn.export_rknn(str(out)):
            raise InputError(f"{out}: cannot be written.")
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB for {args.target}, {args.dtype}")


if __name__ == "__main__":
    main()
