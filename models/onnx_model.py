"""What models/convert.py reads from an ONNX model."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from relative_boxes import with_relative_boxes
from whole_file import replacing

from funcs import resnet
from vision.errors import InputError
from vision.letterbox import letterbox
from vision.metadata import normalisation
from vision.model import Model, check_kind, describe, not_onnx


class Network(NamedTuple):
    """An ONNX model to convert."""
    path: Path
    model: Any               # onnx.ModelProto
    about: Model             # its description, with the size that it is built for
    shape: List[int]         # of its input: (1, channels, height, width)
    fixed: Dict[str, Any]    # load_onnx()'s arguments if its own shape is open
    mean: List[float]        # of its input, for R, G and B in 0..255
    std: List[float]
    relative: bool           # whether coordinates in its outputs lie in 0..1


def read_network(path: Path) -> Network:
    """The ONNX model at `path`. Raises InputError if it cannot be converted."""
    model = load(path)
    mean, std = normalisation_of(path, model)
    about = describe(path)
    shape, fixed = input_shape(path, model, about)
    about.size = shape[3], shape[2]
    return Network(path, model, about, shape, fixed, mean, std, about.relative)


def for_int8(network: Network) -> Network:
    """The network as int8 needs it: with relative coordinates if it is one of Ultralytics'.

    Raises InputError for a model that int8 would make useless.
    """
    model, is_relative = with_relative_boxes(network.model, network.about)
    return network._replace(model=model, relative=is_relative)


def load(path: Path) -> Any:
    """The onnx.ModelProto at `path`. Raises InputError if there is none."""
    import onnx
    if path.is_dir():
        raise InputError(f"{path}: is a folder. Name the .onnx in it.")
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
    with replacing(path) as new:
        onnx.save(model, str(new))
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
