"""What models/convert.py reads from an ONNX model and from calibration images."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import cv2
import numpy as np

from funcs import resnet
from vision.errors import InputError
from vision.letterbox import letterbox
from vision.metadata import normalisation
from vision.model import Model, check_kind, not_onnx

IMAGES = (".jpg", ".jpeg", ".png", ".bmp")


def load(path: Path) -> Any:
    """The onnx.ModelProto at `path`. Raises InputError if there is none."""
    import onnx
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    check_kind(path)
    what = not_onnx(path)
    if what:
        raise InputError(f"{path}: not an ONNX model but {what}.")
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's exception types differ between versions
        raise InputError(f"{path}: not an ONNX model ({' '.join(str(error).split())}).") from None


def normalisation_of(path: Path, model: Any) -> Tuple[List[float], List[float]]:
    """Mean and standard deviation from an ONNX model's metadata. Raises InputError."""
    try:
        return normalisation({entry.key: entry.value for entry in model.metadata_props})
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None


def set_normalisation(path: Path, **values: List[float]) -> None:
    """Write `mean` and `std`, three numbers each, into the metadata of the ONNX file at `path`.

    Raises InputError for impossible numbers.
    """
    import onnx
    model = load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata.update((name, " ".join(map(str, numbers))) for name, numbers in values.items())
    onnx.helper.set_model_props(model, metadata)
    mean, std = normalisation_of(path, model)
    partial = path.with_name(path.name + ".new")
    try:
        onnx.save(model, str(partial))
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    print(f"{path}: its metadata now says mean {mean}, std {std}")


def dimensions(value: Any) -> List[int]:
    """The shape of an ONNX graph's input or output; 0 for an open dimension."""
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def input_shape(path: Path, model: Any, about: Model) -> Tuple[List[int], Dict[str, Any]]:
    """The shape (1, channels, height, width) that a model is built for, and load_onnx()'s arguments
    if its own shape is open.

    An open batch becomes 1; open sides become those of the metadata's imgsz. Raises InputError for
    other inputs. path: of the file, for messages; model: onnx.ModelProto; about: its description.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    shape = dimensions(inputs[0])
    if len(inputs) > 1:
        names = ", ".join(value.name for value in inputs)
        raise InputError(f"{path}: has the inputs {names}, but only models with one image as input "
                         f"can be converted. Export it without the others.")
    if len(shape) != 4 or shape[0] > 1:
        raise InputError(f"{path}: its input has the shape {shape} (0: open), not (1, channels, "
                         f"height, width). Export it with batch 1.")
    width, height = about.size or (0, 0)
    fixed = [1, shape[1] or 3, shape[2] or height, shape[3] or width]
    if 0 in fixed:
        raise InputError(f"{path}: its input has the shape {shape} (0: open), not (1, channels, "
                         f"height, width). Export it without dynamic axes.")
    return fixed, {"inputs": [inputs[0].name], "input_size_list": [fixed]} if 0 in shape else {}


def calibration_images(source: Path, count: int) -> List[np.ndarray]:
    """Up to `count` images, BGR, from a folder, or evenly spread from a video.

    Prints the names of unreadable files in a folder. Raises InputError if no image can be read.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES)[:count]
        images = [cv2.imread(str(path)) for path in files]
        broken = [path.name for path, image in zip(files, images) if image is None]
        if broken and len(broken) < len(files):
            print(f"--calibration {source}: skipped unreadable images: {', '.join(broken)}",
                  file=sys.stderr)
    elif source.is_file():
        video = cv2.VideoCapture(str(source))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        images = []
        for number in range(count):
            if frames > 0:  # otherwise the file does not say how many: take the first ones
                video.set(cv2.CAP_PROP_POS_FRAMES, number * frames // count)
            images.append(video.read()[1])
    else:
        raise InputError(f"--calibration {source}: no such folder or video.")
    readable = [image for image in images if image is not None]
    if not readable:
        raise InputError(f"--calibration {source}: no image in it could be read.")
    return readable


def model_input(image: np.ndarray, graph: Any, about: Optional[Model] = None) -> np.ndarray:
    """An image (h, w, 3) uint8 BGR as its func passes it to the model on the board: RGB; for a
    classifier the centre, otherwise letterboxed to the model's width and height.

    A classifier has one output, (1, classes) or (1, classes, 1, 1). The graph decides, because a
    forgotten flag would calibrate the int8 ranges with grey bars.
    """
    height, width = dimensions(graph.input[0])[2:]
    size = (about.size if about else None) or (width, height)
    outputs = [dimensions(output) for output in graph.output]
    if len(outputs) == 1 and len(outputs[0]) in (2, 4) and outputs[0][2:] in ([], [1, 1]):
        return resnet.preprocess(image, about) if about else resnet.crop(image, size)
    return letterbox(image, size)[0]
