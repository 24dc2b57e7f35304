"""Converts an ONNX model to .rknn with Rockchip's rknn-toolkit2, in an environment of its own (README.md beside this file).

    python models/convert.py model.onnx --target rk3588 --calibration images/
"""
import argparse
import sys
import tempfile
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from func import letterbox  # noqa: E402

TARGETS = ("rk3588", "rk3576", "rk3566", "rk3568", "rk3562")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp")


class Sorry(Exception):
    """The message is one sentence for stderr, the exit code 2."""


def calibration_images(source, count):
    """Up to `count` images, BGR, of a folder or, evenly spread, of a video. Raises Sorry where there is none."""
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
        raise Sorry(f"--calibration {source}: no such folder or video.")
    images = [image for image in images if image is not None]
    if not images:
        raise Sorry(f"--calibration {source}: no image in it could be read.")
    return images


def build(onnx, target="rk3588", dtype="i8", calibration=None, count=64):
    """Build the model: a built rknn.api.RKNN. onnx and calibration are paths. Raises Sorry for bad input."""
    try:
        from rknn.api import RKNN
    except ImportError as error:
        raise Sorry(f"rknn-toolkit2 cannot be imported ({error}): models/README.md tells how to set it up.") from None
    if not onnx.is_file():
        raise Sorry(f"{onnx}: no such file.")
    if dtype == "i8" and calibration is None:
        raise Sorry("--dtype i8 needs --calibration with a folder of images, or a video, like those the model will see.")
    rknn = RKNN(verbose=False)
    # The network's input is RGB in 0..1; the NPU does the division, so that it is fed with bytes.
    rknn.config(mean_values=[[0, 0, 0]], std_values=[[255, 255, 255]], target_platform=target)
    if rknn.load_onnx(str(onnx)):
        raise Sorry(f"{onnx}: rknn-toolkit2 cannot read this model, its own message stands above.")
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset.txt"
        if dtype == "i8":
            import onnx as onnx_package
            size = onnx_package.load(str(onnx)).graph.input[0].type.tensor_type.shape.dim[2].dim_value
            names = []
            for number, image in enumerate(calibration_images(calibration, count)):
                names.append(str(Path(folder) / f"{number}.png"))
                cv2.imwrite(names[-1], letterbox(image, size)[0][..., ::-1])  # fed as func.py feeds it
            dataset.write_text("\n".join(names))
        if rknn.build(do_quantization=dtype == "i8", dataset=str(dataset)):
            raise Sorry(f"{onnx}: rknn-toolkit2 cannot build this model for {target}, its own message stands above.")
    return rknn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--target", choices=TARGETS, default="rk3588")
    parser.add_argument("--dtype", choices=("i8", "fp"), default="i8", help="i8: quantised, needs --calibration; fp: 16-bit floats")
    parser.add_argument("--calibration", type=Path, help="folder of images, or a video")
    parser.add_argument("--count", type=int, default=64, help="calibration images")
    parser.add_argument("--out", type=Path, help="default: the ONNX file's name with .rknn")
    args = parser.parse_args()
    try:
        rknn = build(args.onnx, args.target, args.dtype, args.calibration, args.count)
        out = args.out or args.onnx.with_suffix(".rknn")
        if rknn.export_rknn(str(out)):
            raise Sorry(f"{out}: cannot be written.")
    except Sorry as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB for {args.target}, {args.dtype}")


if __name__ == "__main__":
    main()
