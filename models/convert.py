"""Converts an ONNX model to .rknn with Rockchip's rknn-toolkit2, or to .tflite with onnx2tf.

Each needs an environment of its own (docs/models.md, docs/runtimes.md). A .tflite is for the open
driver.

    python models/convert.py model.onnx --target rk3588 --calibration images/
    python models/convert.py resnet50.onnx --calibration images/ \\
        --mean 123.675 116.28 103.53 --std 58.395 57.12 57.375
    python models/convert.py model.onnx --to tflite --calibration images/

Mean and standard deviation of the model's input, R, G, B in 0..255, are read from the ONNX file's
metadata, `mean` and `std`, as runtimes/cpu.py does; --mean and --std write them there. A model
without them takes RGB in 0..1. What the .onnx says of itself (class names, task) goes into
metadata.yaml beside the .rknn, or into the .tflite. For int8, the coordinates of Ultralytics'
outputs are brought to 0..1 (relative_boxes.py); metadata.yaml says so, and funcs/ultralytics.py
multiplies again.
"""
from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]
from vision.packages import needed_packages, new_environment  # noqa: E402

with needed_packages():
    import cv2
    import to_tflite
    from onnx_model import (
        calibration_images,
        input_shape,
        load,
        model_input,
        normalisation_of,
        set_normalisation,
    )
    from relative_boxes import with_relative_boxes

    from funcs import ultralytics
    from vision.errors import InputError
    from vision.model import FAMILIES, Model, describe, family

NEEDS_IMAGES = ("int8 needs --calibration with a folder of images, or a video, like those the "
                "model will see.")


def target(name: str) -> str:
    """The toolkit's name for a SoC: rk3588 for rk3588, rk3588s, RK3588S2 or rk3582.

    Raises ArgumentTypeError for an unknown one.
    """
    if name.lower() == "rk3568":  # the same NPU as the RK3566's, but the toolkit has both names
        return "rk3568"
    found = family(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"{name}: unknown; its name must begin with one of "
                                         f"{', '.join(FAMILIES)}")
    return found


def build(path: Path, soc: str = "rk3588", dtype: str = "i8", calibration: Optional[Path] = None,
          count: int = 64) -> Any:
    """Build the model: a built rknn.api.RKNN. Raises InputError for bad input."""
    return build_with_metadata(path, soc, dtype, calibration, count)[0]


def build_with_metadata(path: Path, soc: str, dtype: str, calibration: Optional[Path], count: int) \
        -> Tuple[Any, Dict[str, Any]]:
    """As build(), and the content of metadata.yaml."""
    import onnx
    try:
        from rknn.api import RKNN
    except ImportError as error:
        setup = new_environment(FOLDER / ".venv", "-r", str(FOLDER / "requirements.txt"))
        raise InputError(f"rknn-toolkit2 cannot be imported ({error}). It needs an x86-64 PC and "
                         f"an environment of its own (docs/models.md): {setup}") from None
    import yaml  # noqa: F401  write_metadata() needs it, but only after minutes of work
    model = load(path)
    if dtype == "i8" and calibration is None:
        raise InputError(NEEDS_IMAGES)
    if any(node.op_type == "NonMaxSuppression" for node in model.graph.node):
        raise InputError(f"{path}: contains NMS, which no NPU runs. Export it with nms=False.")
    mean, std = normalisation_of(path, model)
    about = describe(path)
    shape, fixed = input_shape(path, model, about)
    about.size = shape[3], shape[2]
    is_relative = about.relative
    with tempfile.TemporaryDirectory() as folder:
        source, dataset = Path(path), Path(folder) / "dataset.txt"
        if calibration is not None and dtype == "i8":
            model, is_relative = with_relative_boxes(model, about)
            if is_relative and not about.relative:
                source = Path(folder) / source.name
                onnx.save(model, str(source))
            names = []
            for number, image in enumerate(calibration_images(calibration, count)):
                names.append(str(Path(folder) / f"{number}.png"))
                cv2.imwrite(names[-1], model_input(image, model.graph, about)[..., ::-1])
            dataset.write_text("\n".join(names))
        rknn = RKNN(verbose=False)
        # The NPU subtracts the mean and divides, so it takes bytes.
        steps = [("configure", lambda: rknn.config(mean_values=[mean], std_values=[std],
                                                   target_platform=soc)),
                 ("read", lambda: rknn.load_onnx(str(source), **fixed)),
                 ("build", lambda: rknn.build(do_quantization=dtype == "i8",
                                              dataset=str(dataset)))]
        for step, call in steps:
            try:
                code = call()
            except (Exception, SystemExit) as error:  # the toolkit raises anything, and may exit()
                raise InputError(f"{path}: {failure(step, soc, str(error), fixed)}") from None
            if code:
                raise InputError(f"{path}: {failure(step, soc, fixed=fixed)}")
    return rknn, metadata_of(about, shape, is_relative)


def metadata_of(about: Model, shape: List[int], is_relative: bool) -> Dict[str, Any]:
    """The metadata of a converted model."""
    keys = "stride", "kpt_shape", "end2end", "scores"
    metadata: Dict[str, Any] = {key: about.metadata[key] for key in keys if key in about.metadata}
    metadata.update(task=about.task, names=about.names, imgsz=shape[2:], relative=is_relative)
    return {key: value for key, value in metadata.items() if value is not None}


def build_tflite(path: Path, calibration: Optional[Path], count: int, out: Path) -> str:
    """Convert the ONNX file at `path` to the .tflite `out`. Returns a report of its quality.

    Raises InputError for bad input.
    """
    import onnx
    model = load(path)
    if calibration is None:
        raise InputError(NEEDS_IMAGES)
    mean, std = normalisation_of(path, model)
    about = describe(path)
    shape, fixed = input_shape(path, model, about)
    about.size = shape[3], shape[2]
    if ultralytics.layout_of(about) is not None:
        raise InputError(f"{path}: computes its boxes inside the network, where 8 bits leave steps "
                         f"of dozens of pixels. Export it with Rockchip's heads (docs/models.md), "
                         f"or run the .onnx on the CPU.")
    if fixed:
        name = fixed["inputs"][0]
        value = next(value for value in model.graph.input if value.name == name)
        for dimension, size in zip(value.type.tensor_type.shape.dim, shape):
            dimension.dim_value = size
        model = onnx.shape_inference.infer_shapes(model)
    frames = [model_input(image, model.graph, about).copy()
              for image in calibration_images(calibration, count)]
    metadata = metadata_of(about, shape, about.relative)
    return to_tflite.convert(path, out, model, frames, mean, std, metadata)


def failure(step: str, soc: str, message: str = "", fixed: Optional[dict] = None) -> str:
    """A sentence for what rknn-toolkit2 could not do.

    message: of the exception it raised; fixed: the arguments for open dimensions.
    """
    if step == "build" and "IndexError" in message:
        return ("rknn-toolkit2 2.5.0 cannot build Ultralytics' exports (its issue 581, the "
                "IndexError above), but 2.3.2 can: pip install rknn-toolkit2==2.3.2.")
    reason = last_line(message) or "see its own message above"
    advice = "; its sides are open: export it with dynamic=False" if fixed else ""
    return f"rknn-toolkit2 cannot {step} this model for {soc}: {reason.strip(' .!')}{advice}."


def last_line(message: str) -> str:
    """The reason in the text of the toolkit's exceptions, which is a whole traceback."""
    line = (message.strip().splitlines() or [""])[-1]
    known = re.search(r"\[Errno \d+\] ([^:]+)", line)
    return known[1] if known else line


def write_metadata(out: Path, metadata: Dict[str, Any]) -> Optional[Path]:
    """Write the metadata of a .rknn beside it. Returns the path, None if there is nothing to say.

    Writes metadata.yaml, or NAME.yaml if other models lie in the folder.
    """
    if not any(metadata.get(key) for key in ("task", "names", "relative")):
        return None
    import yaml
    others = [path for path in out.parent.iterdir()
              if path.suffix in (".rknn", ".onnx") and path.stem != out.stem]
    path = out.with_suffix(".yaml") if others else out.parent / "metadata.yaml"
    try:
        path.write_text(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
                        encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def check_out(out: Path, extension: str) -> None:
    """Raises InputError if `out` cannot be written, before minutes are spent on the conversion."""
    if out.suffix.lower() != extension:
        raise InputError(f"--out {out}: the name must end in {extension}.")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}.")
    new = not out.exists()
    try:
        out.open("ab").close()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}).") from None
    if new:
        out.unlink()


def export(rknn: Any, out: Path) -> None:
    """Write the .rknn. Raises InputError, and leaves no partial file."""
    try:
        code = rknn.export_rknn(str(out))
    except (Exception, SystemExit) as error:
        code = last_line(str(error)) or "the toolkit ended"
    if code:
        if out.exists():
            out.unlink()
        reason = f" ({code})" if isinstance(code, str) else ""
        raise InputError(f"{out}: cannot be written{reason}.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("onnx", type=Path)
    add("--to", choices=("rknn", "tflite"), default="rknn",
        help="tflite: int8 for the open driver; needs --calibration, and no --target")
    add("--target", type=target, default="rk3588",
        help=f"the SoC; its name begins with {', '.join(FAMILIES)} (default: rk3588)")
    add("--dtype", choices=("i8", "fp"), default="i8",
        help="i8: quantised, needs --calibration; fp: 16-bit floats")
    add("--calibration", type=Path, help="folder of images, or a video")
    add("--count", type=int, default=64, help="number of calibration images (default: 64)")
    for name in ("mean", "std"):
        add(f"--{name}", type=float, nargs=3, metavar=tuple("RGB"),
            help=f"first write this {name} into the ONNX file")
    add("--out", type=Path, help="default: the ONNX file's name with .rknn or .tflite")
    return parser.parse_args()


def run(args: argparse.Namespace) -> str:
    """Convert. Returns a line about the file written. Raises InputError."""
    given = {name: getattr(args, name) for name in ("mean", "std") if getattr(args, name)}
    if given:
        set_normalisation(args.onnx, **given)
    out = args.out or args.onnx.with_suffix(f".{args.to}")
    check_out(out, f".{args.to}")
    if args.count < 1:
        raise InputError(f"--count {args.count}: must be at least 1.")
    if args.to == "tflite":
        if args.dtype != "i8":
            raise InputError(f"--dtype {args.dtype}: the open driver runs int8 only.")
        report = build_tflite(args.onnx, args.calibration, args.count, out)
        return f"{out}: {out.stat().st_size / 1e6:.1f} MB, {report}"
    rknn, metadata = build_with_metadata(args.onnx, args.target, args.dtype, args.calibration,
                                         args.count)
    export(rknn, out)
    beside = write_metadata(out, metadata)
    more = f"; class names and other metadata are in {beside}" if beside else ""
    return f"{out}: {out.stat().st_size / 1e6:.1f} MB for {args.target}, {args.dtype}{more}"


def main() -> None:
    try:
        with needed_packages():
            print(run(parse_arguments()))
    except (InputError, OSError) as error:
        sentence = str(error)
        if isinstance(error, OSError):  # there is no temporary folder, or it is full
            sentence = f"{error.filename or 'convert.py'}: {error.strerror or error}."
        print(sentence, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
