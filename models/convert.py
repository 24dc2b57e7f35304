"""Converts an ONNX model to .rknn with Rockchip's rknn-toolkit2, or to .tflite for the open driver with onnx2tf, each
in an environment of its own (README.md beside this file).

    python models/convert.py model.onnx --target rk3588 --calibration images/
    python models/convert.py resnet50.onnx --calibration images/ --mean 123.675 116.28 103.53 --std 58.395 57.12 57.375
    python models/convert.py model.onnx --to tflite --calibration images/

Mean and standard deviation of the model's input, R, G, B in 0..255, stand in the ONNX file's metadata as `mean` and
`std`, where runtimes/cpu.py reads them, too; --mean and --std write them there. A model without them takes RGB in 0..1.
What the .onnx says of itself (class names, task) goes into metadata.yaml beside the .rknn, and into a .tflite.

An int8 output has one scale for all its values: of Ultralytics' one output, with boxes in pixels, no class score would
be left. The coordinates are therefore divided by the input's width and height, as Ultralytics' own int8 export does;
metadata.yaml says so (`relative`), and funcs/ultralytics.py multiplies again.
"""
import argparse
import importlib.util
import re
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import rknnmodel  # noqa: E402
from func import letterbox  # noqa: E402
from funcs import resnet, ultralytics  # noqa: E402
from rknnmodel import InputError  # noqa: E402
from runtimes.cpu import normalisation  # noqa: E402

IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
NEEDS_PICTURES = "int8 needs --calibration with a folder of images, or a video, like those the model will see."


def target(name):
    """The toolkit's name for a SoC: rk3588 for rk3588, rk3588s, RK3588S2 or rk3582. Raises ArgumentTypeError for one
    that it has no models for."""
    if name.lower() == "rk3568":  # the same NPU as RK3566's, but the toolkit has both
        return "rk3568"
    found = rknnmodel.family(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(rknnmodel.SOCS)}, nor a SoC whose name begins "
                                         f"with one of these")
    return found


def calibration_images(source, count):
    """Up to `count` images, BGR, of a folder or, evenly spread, of a video; of a folder those that cannot be read are
    named. Raises InputError where there is none."""
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES)[:count]
        images = [cv2.imread(str(path)) for path in files]
        broken = [path.name for path, image in zip(files, images) if image is None]
        if broken and len(broken) < len(files):
            print(f"--calibration {source}: left out, for no image could be read from it: {', '.join(broken)}",
                  file=sys.stderr)
    elif source.is_file():
        video = cv2.VideoCapture(str(source))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        images = []
        for number in range(count):
            if frames > 0:  # some files do not say it: of these the first ones
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
    rknnmodel.check_kind(path)
    what = rknnmodel.not_onnx(path)
    if what:
        raise InputError(f"{path}: not an ONNX model, but {what}.")
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


def input_shape(path, model, about):
    """The shape (1, channels, height, width) that a model is built for: its own, with an open batch fixed at 1 and open
    sides as its metadata's imgsz; and what load_onnx() has to be told where some were open, a dict. Raises InputError
    where it cannot be had.

    path: of the file, for messages; model: onnx.ModelProto; about: its rknnmodel.Model.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    shape = sides(inputs[0])
    if len(inputs) > 1:
        raise InputError(f"{path}: has the inputs {', '.join(value.name for value in inputs)}, and one picture is what "
                         f"can be calibrated and fed: export it again without the others.")
    if len(shape) != 4 or shape[0] > 1:
        raise InputError(f"{path}: its input has the shape {shape} (0: left open), and one of (1, channels, height, "
                         f"width) is needed; export it with batch 1.")
    width, height = about.size or (0, 0)
    fixed = [1, shape[1] or 3, shape[2] or height, shape[3] or width]
    if 0 in fixed:
        raise InputError(f"{path}: its input has the shape {shape} (0: left open), and (1, channels, height, width) is "
                         f"needed; export it without dynamic axes.")
    return fixed, {} if 0 not in shape else {"inputs": [inputs[0].name], "input_size_list": [fixed]}


def sides(value):
    """The sizes of an ONNX graph's input or output: list of int, 0 where the model leaves one open."""
    return [side.dim_value for side in value.type.tensor_type.shape.dim]


def fed(image, graph, about=None):
    """An image (h, w, 3) uint8 BGR as its func feeds it to this ONNX graph on the board: RGB, of a classifier the
    centre, else letterboxed to the model's own width and height. about: its rknnmodel.Model, where it is known.

    The graph tells which it is: a classifier has one output, (1, classes) or (1, classes, 1, 1). A flag could be
    forgotten, and the int8 ranges would then be those of grey bars.
    """
    size = about.size if about else tuple(sides(graph.input[0])[:1:-1])
    outputs = [sides(output) for output in graph.output]
    if len(outputs) == 1 and len(outputs[0]) in (2, 4) and outputs[0][2:] in ([], [1, 1]):
        return resnet.fed(image, about) if about else resnet.crop(image, size)
    return letterbox(image, size)[0]


def scaled(model, about):
    """The model for int8: with the coordinates of an Ultralytics output in 0..1, else as it is; and whether they are
    now relative. Raises InputError where scores and pixels share an output and cannot be told apart."""
    plan = None if about.relative else ultralytics.plan_of(about)
    if plan is None:
        return model, about.relative
    advice = "export it again without that (end2end=False, nms=False), or convert it with --dtype fp."
    if plan.kind == "rows":
        raise InputError(f"{about.path}: ends in the sorting of end2end or nms=True, which int8 cannot do; {advice}")
    if plan.kind == "yolov5":
        raise InputError(f"{about.path}: YOLOv5's own export has scores and pixels in one output; int8 would leave "
                         f"no score: export it with Rockchip's fork (export.py --rknpu), or convert with --dtype fp.")
    width, height = about.size
    factors = np.ones(4 + plan.classes + max(1, plan.points * plan.values), np.float32)
    factors[0:4] = 1 / width, 1 / height, 1 / width, 1 / height
    if plan.points:
        factors[4 + plan.classes:] = np.tile([1 / width, 1 / height, 1][:plan.values], plan.points)
    try:
        return relative(model, plan.boxes, factors), True
    except ValueError as error:
        raise InputError(f"{about.path}: its boxes cannot be brought to 0..1 for int8 ({error}): use Ultralytics' own "
                         f"export (yolo export format=rknn quantize=8), or --dtype fp.") from None


def relative(model, place, factors):
    """A copy of an ONNX model whose output number `place`, (1, channels, n), has each channel multiplied by its factor,
    before class scores come into the same tensor: int8 has one scale a tensor.

    factors: (at least channels,) float32; those beyond the known are 1. Raises ValueError where the graph does not end
    in a Concat of them.
    """
    import onnx
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    source = {name: node for node in graph.node for name in node.output}
    shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
              for value in [*graph.value_info, *graph.output]}
    shapes.update((tensor.name, list(tensor.dims)) for tensor in graph.initializer)
    added = []

    def multiplied(name, factors):
        """The name of a tensor that is `name` with its second axis multiplied: factors (channels,) or (channels,
        more), then its third, too."""
        if np.all(factors == 1):
            return name
        node, shape = source.get(name), shapes.get(name)
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), None) if node else None
        if node and node.op_type == "Concat" and axis is not None and axis % len(shape) in range(1, factors.ndim + 1):
            sides = [shapes.get(part, [0] * 4)[axis % len(shape)] for part in node.input]
            if 0 in sides:
                raise ValueError(f"{node.name} has inputs of unknown shape")
            ends = np.cumsum(sides)[:-1]
            for place, part in enumerate(np.split(factors, ends, axis % len(shape) - 1)):
                node.input[place] = multiplied(node.input[place], part)
            return name
        if node and node.op_type == "Reshape" and factors.ndim == 1:  # key points: (1, k, d, n) to (1, k d, n)
            before = shapes.get(node.input[0])
            if before and len(before) == 4 and before[1] * before[2] == len(factors):
                node.input[0] = multiplied(node.input[0], factors.reshape(before[1:3]))
                return name
        if np.any(factors == 1):
            raise ValueError(f"{name} has scores and pixels together")
        factors = factors.reshape(1, *factors.shape, *[1] * (len(shape) - 1 - factors.ndim))
        constant = onnx.numpy_helper.from_array(factors, f"{name}_factors")
        graph.initializer.append(constant)
        added.append((node, onnx.helper.make_node("Mul", [name, constant.name], [f"{name}_relative"],
                                                  f"{name}_relative")))
        return f"{name}_relative"

    output = graph.output[place].name
    channels = shapes[output][1]
    factors = np.append(factors, np.ones(max(0, channels - len(factors)), np.float32))[:channels].astype(np.float32)
    if multiplied(output, factors) != output:
        raise ValueError("it does not end in a Concat")
    for node, product in added:
        places = [place for place, other in enumerate(graph.node) if other is node or other == node]
        graph.node.insert(places[0] + 1 if places else 0, product)
    return model


def build(path, soc="rk3588", dtype="i8", calibration=None, count=64):
    """Build the model: a built rknn.api.RKNN. path and calibration are paths. Raises InputError for bad input."""
    return build_with_metadata(path, soc, dtype, calibration, count)[0]


def build_with_metadata(path, soc, dtype, calibration, count):
    """As build(), and what metadata.yaml is to say: a dict."""
    import onnx
    try:
        from rknn.api import RKNN
    except ImportError as error:
        raise InputError(f"rknn-toolkit2 cannot be imported ({error}): models/README.md tells how to set it up."
                         ) from None
    if importlib.util.find_spec("yaml") is None:
        raise InputError("PyYAML, which writes metadata.yaml, is not installed (pip install pyyaml).")
    model = load(path)
    if dtype == "i8" and calibration is None:
        raise InputError(NEEDS_PICTURES)
    if any(node.op_type == "NonMaxSuppression" for node in model.graph.node):
        raise InputError(f"{path}: has its NMS inside, which no NPU runs: export it again with nms=False.")
    mean, std = normalisation_of(path, model)
    about = rknnmodel.describe(path)
    shape, fixed = input_shape(path, model, about)
    about.size = shape[3], shape[2]
    is_relative = about.relative
    with tempfile.TemporaryDirectory() as folder:
        source, dataset = Path(path), Path(folder) / "dataset.txt"
        if dtype == "i8":
            model, is_relative = scaled(model, about)
            if is_relative and not about.relative:
                source = Path(folder) / source.name
                onnx.save(model, str(source))
            names = []
            for number, image in enumerate(calibration_images(calibration, count)):
                names.append(str(Path(folder) / f"{number}.png"))
                cv2.imwrite(names[-1], fed(image, model.graph, about)[..., ::-1])
            dataset.write_text("\n".join(names))
        rknn = RKNN(verbose=False)
        # The NPU subtracts and divides, so that it is fed with bytes.
        steps = [("configure", lambda: rknn.config(mean_values=[mean], std_values=[std], target_platform=soc)),
                 ("read", lambda: rknn.load_onnx(str(source), **fixed)),
                 ("build", lambda: rknn.build(do_quantization=dtype == "i8", dataset=str(dataset)))]
        for step, run in steps:
            try:
                code = run()
            except (Exception, SystemExit) as error:  # the toolkit raises what it likes, and may exit()
                raise InputError(f"{path}: {failure(step, soc, str(error), fixed)}") from None
            if code:
                raise InputError(f"{path}: {failure(step, soc, fixed=fixed)}")
    return rknn, metadata_of(about, shape, is_relative)


def normalisation_of(path, model):
    """Mean and standard deviation, a list each, of an ONNX model's metadata. Raises InputError."""
    try:
        return normalisation({entry.key: entry.value for entry in model.metadata_props})
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None


def metadata_of(about, shape, is_relative):
    """What is to be said of a converted model beside it, or in it: a dict."""
    metadata = {key: about.metadata[key] for key in ("stride", "kpt_shape", "end2end", "scores")
                if key in about.metadata}
    metadata.update(task=about.task, names=about.names, imgsz=shape[2:], relative=is_relative)
    return {key: value for key, value in metadata.items() if value is not None}


def build_tflite(path, calibration, count, out):
    """Convert the ONNX file at `path` to the .tflite `out`. Returns what is to be told. Raises InputError for bad
    input."""
    import onnx
    import to_tflite
    model = load(path)
    if calibration is None:
        raise InputError(NEEDS_PICTURES)
    mean, std = normalisation_of(path, model)
    about = rknnmodel.describe(path)
    shape, fixed = input_shape(path, model, about)
    about.size = shape[3], shape[2]
    if ultralytics.plan_of(about) is not None:
        raise InputError(f"{path}: computes its boxes inside the network, and 8 bits would leave them steps of dozens "
                         f"of pixels: export it with Rockchip's heads (models/README.md), or run the .onnx on the CPU.")
    if fixed:
        for place, side in enumerate(shape):
            name = fixed["inputs"][0]
            value = next(value for value in model.graph.input if value.name == name)
            value.type.tensor_type.shape.dim[place].dim_value = side
        model = onnx.shape_inference.infer_shapes(model)
    frames = [fed(image, model.graph, about).copy() for image in calibration_images(calibration, count)]
    return to_tflite.convert(path, out, model, frames, mean, std, metadata_of(about, shape, about.relative))


def failure(step, soc, message="", fixed=None):
    """A sentence for what rknn-toolkit2 could not do; message: of the exception that it raised; fixed: what it was told
    of open sides."""
    if step == "build" and "IndexError" in message:
        return ("rknn-toolkit2 2.5.0 cannot build Ultralytics' exports (its issue 581, IndexError above), 2.3.2 can: "
                "pip install rknn-toolkit2==2.3.2.")
    reason = last_line(message) or "its own message stands above"
    advice = "; its sides are left open: export it again with dynamic=False" if fixed else ""
    return f"rknn-toolkit2 cannot {step} this model for {soc}: {reason.strip(' .!')}{advice}."


def last_line(message):
    """What counts in the text of the toolkit's exceptions, which is a whole traceback; of the system's its reason."""
    line = (message.strip().splitlines() or [""])[-1]
    known = re.search(r"\[Errno \d+\] ([^:]+)", line)
    return known[1] if known else line


def write_metadata(out, metadata):
    """Write what a .rknn itself cannot say beside it: into metadata.yaml, or where other models lie there, of which it
    would be said, too, into NAME.yaml. Returns the path, or None where there is nothing to say."""
    if not any(metadata.get(key) for key in ("task", "names", "relative")):
        return None
    import yaml
    others = [path for path in out.parent.iterdir() if path.suffix in (".rknn", ".onnx") and path.stem != out.stem]
    path = out.with_suffix(".yaml") if others else out.parent / "metadata.yaml"
    try:
        path.write_text(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    return path


def check_out(out, extension):
    """Raise InputError where nothing can be written to the path `out`, before minutes are spent on it."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--to", choices=("rknn", "tflite"), default="rknn",
                        help="tflite: int8 for the open driver, which needs --calibration, and no --target")
    parser.add_argument("--target", type=target, default="rk3588",
                        help=f"the SoC: one whose name begins with {', '.join(rknnmodel.SOCS)}; default rk3588")
    parser.add_argument("--dtype", choices=("i8", "fp"), default="i8",
                        help="i8: quantised, needs --calibration; fp: 16-bit floats")
    parser.add_argument("--calibration", type=Path, help="folder of images, or a video")
    parser.add_argument("--count", type=int, default=64, help="calibration images")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar=tuple("RGB"),
                            help=f"write this {name} into the ONNX file first")
    parser.add_argument("--out", type=Path, help="default: the ONNX file's name with .rknn or .tflite")
    args = parser.parse_args()
    try:
        given = {name: numbers for name, numbers in (("mean", args.mean), ("std", args.std)) if numbers}
        if given:
            set_normalisation(args.onnx, **given)
        out = args.out or args.onnx.with_suffix(f".{args.to}")
        check_out(out, f".{args.to}")
        if args.count < 1:
            raise InputError(f"--count {args.count}: at least one image is needed.")
        if args.to == "tflite":
            if args.dtype != "i8":
                raise InputError(f"--dtype {args.dtype}: the open driver runs int8 only.")
            told = build_tflite(args.onnx, args.calibration, args.count, out)
            print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {told}")
            return
        rknn, metadata = build_with_metadata(args.onnx, args.target, args.dtype, args.calibration, args.count)
        try:
            code = rknn.export_rknn(str(out))
        except (Exception, SystemExit) as error:
            code = last_line(str(error)) or "the toolkit ended"
        if code:
            if out.exists():  # a part of one would be taken for a model
                out.unlink()
            raise InputError(f"{out}: cannot be written{f' ({code})' if isinstance(code, str) else ''}.")
        beside = write_metadata(out, metadata)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB for {args.target}, {args.dtype}"
          + (f"; names and more stand in {beside}" if beside else ""))


if __name__ == "__main__":
    main()
