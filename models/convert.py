"""Converts an ONNX model to .rknn with Rockchip's rknn-toolkit2, or to .tflite with onnx2tf.

It runs on a board or on a PC, in an environment of its own: for .rknn see docs/models.md, for
.tflite, which the open driver needs, docs/runtimes.md.

    python models/convert.py best.onnx --calibration 0        # a camera, URL, video, or pictures
    python models/convert.py best.onnx --calibration photos --target rk3576
    python models/convert.py resnet50.onnx --calibration images/ \\
        --mean 123.675 116.28 103.53 --std 58.395 57.12 57.375
    python models/convert.py model.onnx --to tflite --calibration images/

The .rknn is written beside the .onnx; the class names and the task are written to NAME.yaml. An
int8 model is compared with the float model on every fifth picture, which is not used for
calibration.

Mean and standard deviation of the model's input, R, G, B in 0..255, are read from the ONNX file's
metadata, `mean` and `std`; --mean and --std write them there. A model without them gets RGB in
0..1.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import agreement
    import to_tflite
    import toolkit
    from calibration import find_pictures, hold_out, images
    from onnx_model import Network, for_int8, model_input, read_network, set_normalisation
    from whole_file import replacing

    import rknnpool
    from funcs import ultralytics
    from results.console import prepare_output
    from sources import list_pictures
    from sources.names import hide
    from vision.command_line import Parser
    from vision.errors import InputError, ModelError
    from vision.model import FAMILIES, family

NEEDS_PICTURES = ("int8 needs --calibration with pictures of what the model will see: a camera, a "
                  "URL, a video, or a folder of pictures.")


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


def build_int8(path: Path, folder: Path) -> Any:
    """The model in int8 for an RK3588, calibrated with all pictures in a folder: a built
    rknn.api.RKNN. Raises InputError for bad input."""
    network = for_int8(read_network(path))
    return toolkit.build(network, "rk3588", images(list_pictures(str(folder)) or []))


def to_rknn(args: argparse.Namespace, out: Path) -> None:
    """Convert to the .rknn `out`, and print a report. Raises InputError."""
    toolkit.import_toolkit()
    import yaml  # noqa: F401  write_metadata() needs it, but only after minutes of work
    network = read_network(args.onnx)
    if any(node.op_type == "NonMaxSuppression" for node in network.model.graph.node):
        raise InputError(f"{args.onnx}: contains NMS, which no NPU runs. Export it with nms=False.")
    soc = rknnpool.soc()
    made_for = args.target or target(soc or "rk3588")
    calibrate: List[str] = []
    compare: List[str] = []
    if args.dtype == "fp" and args.calibration is not None:
        print("--dtype fp needs no pictures: --calibration is ignored.", file=sys.stderr)
    if args.dtype == "i8":
        network = for_int8(network)
        calibrate, compare = hold_out(pictures_of(args))
    began = time.perf_counter()
    rknn = toolkit.build(network, made_for, images(calibrate) if calibrate else None,
                         args.algorithm)
    with replacing(out) as new:
        toolkit.export(rknn, new, out)
        beside = write_metadata(out, metadata_of(network))
    more = f"; class names and other metadata are in {beside}" if beside else ""
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB for {made_for}, {args.dtype}, converted in "
          f"{time.perf_counter() - began:.0f} s{more}")
    if compare:
        print(compared(args.onnx, out, rknn, soc, compare))
    elif calibrate:
        print("Agreement: unknown, because there is only one picture.")


def compared(onnx: Path, out: Path, rknn: Any, soc: Optional[str], paths: List[str]) -> str:
    """How the .rknn `out` agrees with the .onnx on pictures."""
    try:
        return agreement.compare(onnx, out, rknn, soc, images(paths))
    except (InputError, ModelError) as error:
        return f"Agreement: not measured ({str(error).rstrip('.')})."


def pictures_of(args: argparse.Namespace) -> List[str]:
    """The paths of the pictures that --calibration names, or gives. Raises InputError."""
    if args.calibration is None:
        raise InputError(NEEDS_PICTURES)
    folder = args.onnx.with_name(f"{args.onnx.stem}_frames")
    return find_pictures(args.calibration, folder, args.count, args.interval)


def metadata_of(network: Network) -> Dict[str, Any]:
    """The metadata of a converted model."""
    about, keys = network.about, ("stride", "kpt_shape", "end2end", "scores")
    metadata: Dict[str, Any] = {key: about.metadata[key] for key in keys if key in about.metadata}
    metadata.update(task=about.task, names=about.names, imgsz=network.shape[2:],
                    relative=network.relative)
    return {key: value for key, value in metadata.items() if value is not None}


def build_tflite(args: argparse.Namespace, out: Path) -> str:
    """Convert to the .tflite `out`. Returns a report of its quality. Raises InputError."""
    import onnx
    path = args.onnx
    network = read_network(path)
    model, about = network.model, network.about
    if args.calibration is None:
        raise InputError(NEEDS_PICTURES)
    if ultralytics.layout_of(about) is not None:
        raise InputError(f"{path}: computes its boxes inside the network, where 8 bits leave steps "
                         f"of dozens of pixels. Export it with Rockchip's heads (docs/models.md), "
                         f"or run the .onnx on the CPU.")
    if network.fixed:
        name = network.fixed["inputs"][0]
        value = next(value for value in model.graph.input if value.name == name)
        for dimension, size in zip(value.type.tensor_type.shape.dim, network.shape):
            dimension.dim_value = size
        model = onnx.shape_inference.infer_shapes(model)
    frames = [model_input(image, model.graph, about).copy() for image in images(pictures_of(args))]
    return to_tflite.convert(path, out, model, frames, network.mean, network.std,
                             metadata_of(network))


def write_metadata(out: Path, metadata: Dict[str, Any]) -> Optional[Path]:
    """Write the metadata of a .rknn beside it. Returns the path, None if there is nothing to say.

    Writes NAME.yaml. A metadata.yaml would apply to every model in the folder.
    """
    if not any(metadata.get(key) for key in ("task", "names", "relative")):
        return None
    import yaml
    path = out.with_suffix(".yaml")
    if path.is_file() and b"backbone:" in path.read_bytes():  # Ultralytics' file of the network
        path = path.with_name("metadata.yaml")
    with replacing(path) as new:
        new.write_text(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
                       encoding="utf-8")
    return path


def check_out(out: Path, extension: str) -> None:
    """Raises InputError if `out` cannot be written, before minutes are spent on the conversion."""
    if out.suffix.lower() != extension:
        raise InputError(f"--out {out}: the name must end in {extension}.")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}.")
    try:
        if out.exists():
            out.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}).") from None


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("onnx", type=Path, help="the model")
    add("--to", choices=("rknn", "tflite"), default="rknn",
        help="format of the output (default: rknn). tflite is int8 for the open driver; it needs "
        "--calibration and no --target")
    add("--target", type=target,
        help=f"the SoC; its name begins with {', '.join(FAMILIES)} (default: this board's, on a PC "
        "rk3588)")
    add("--dtype", choices=("i8", "fp"), default="i8",
        help="i8: quantised, needs --calibration; fp: 16-bit floats")
    add("--calibration", metavar="SOURCE",
        help="folder of pictures, video, camera number or URL; frames of all but pictures are "
        "saved in NAME_frames beside the model")
    add("--count", type=int, default=50,
        help="number of pictures, evenly spread over the source (default: 50). Every fifth is for "
        "the comparison")
    add("--interval", type=float, default=2.0, metavar="SECONDS",
        help="seconds between two frames of a camera or live URL (default: 2)")
    add("--algorithm", choices=toolkit.ALGORITHMS, default=toolkit.ALGORITHMS[0],
        help="how the value ranges of int8 are chosen (default: normal); mmse takes a quarter of "
        "an hour on a PC, longer on a board")
    for name in ("mean", "std"):
        add(f"--{name}", type=float, nargs=3, metavar=tuple("RGB"),
            help=f"the model's {name} for 0..255; it is written into the ONNX file first")
    add("--out", type=Path,
        help="output file (default: the ONNX file's name with .rknn or .tflite)")
    return parser.parse()


def run(args: argparse.Namespace) -> None:
    """Convert, and print a report. Raises InputError."""
    out = args.out or args.onnx.with_suffix(f".{args.to}")
    check_out(out, f".{args.to}")
    if args.count < 1:
        raise InputError(f"--count {args.count}: must be at least 1.")
    if not 0 < args.interval < float("inf"):
        raise InputError(f"--interval {args.interval:g}: must be more than 0 seconds.")
    if args.to == "tflite" and args.dtype != "i8":
        raise InputError(f"--dtype {args.dtype}: the open driver runs int8 only.")
    given = {name: getattr(args, name) for name in ("mean", "std") if getattr(args, name)}
    if given:
        set_normalisation(args.onnx, **given)
    if args.to == "rknn":
        to_rknn(args, out)
        return
    report = build_tflite(args, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {report}")


def main() -> None:
    prepare_output()
    try:
        with needed_packages(ctrl_c_ends=False):  # unfinished files are removed first
            run(parse_arguments())
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as error:
        sentence = str(error)
        if isinstance(error, OSError):  # there is no temporary folder, or it is full
            sentence = f"{error.filename or 'convert.py'}: {error.strerror or error}."
        print(hide(sentence), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
