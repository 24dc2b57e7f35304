"""What a model's metadata means: image size, class names, number of classes, kind of coordinates.

Metadata comes from metadata.yaml beside the model, or from inside the .onnx or .tflite file.
"""
from __future__ import annotations

import math
import os
from typing import Any, Dict, List, Sequence, Tuple

from vision.errors import InputError
from vision.names_file import names_of, parse_yaml, read_text

TASKS = ("detect", "segment", "pose", "obb", "classify")


def read_yaml(stem: str, warnings: List[str]) -> Tuple[Dict[str, Any], str]:
    """The content of NAME.yaml or metadata.yaml beside the model NAME.*, and the file's path.

    ({}, "") if there is none that can be read; then `warnings` gets a sentence. Raises InputError
    if PyYAML is missing.
    """
    for path in (stem + ".yaml", os.path.join(os.path.dirname(stem), "metadata.yaml")):
        if not os.path.isfile(path):
            continue
        try:
            text = read_text(path)
        except InputError as error:
            warnings.append(str(error))
            continue
        try:
            content = parse_yaml(text, path)
        except ValueError as error:
            warnings.append(str(error))
            continue
        # Ultralytics' yolo11n.yaml describes the network; it is not metadata.
        if isinstance(content, dict) and "backbone" not in content:
            if content.get("names") and names_in(content) is None:
                warnings.append(f"{path}: its names are neither a list nor a dict from numbers to "
                                f"names; they are ignored.")
            return {key: value for key, value in content.items() if isinstance(key, str)}, path
    return {}, ""


def names_in(metadata: Dict[str, Any]) -> List[str] | Dict[int, str] | None:
    """The class names by number, a list or a dict; None if the metadata has none."""
    return names_of(metadata.get("names"))


def one_of(values: Sequence[str], metadata: Dict[str, Any], key: str) -> str | None:
    """The metadata's value for this key if it is one of `values`, else None."""
    value = metadata.get(key)
    return value if value in values else None


def layout_and_size(shape: Sequence[int], metadata: Dict[str, Any]) \
        -> Tuple[str | None, Tuple[int, int] | None]:
    """Layout ("NCHW" or "NHWC") and (width, height) of an input of this shape; None if unknown.

    The metadata's "imgsz" gives the size if the shape does not.
    """
    layout = size = None
    if len(shape) == 4:
        channels_last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
        layout = "NHWC" if channels_last else "NCHW"
        height, width = shape[1:3] if channels_last else shape[2:]
        size = (width, height) if width and height else None
    imgsz = metadata.get("imgsz")
    imgsz = [imgsz, imgsz] if isinstance(imgsz, int) else imgsz
    if size is None and isinstance(imgsz, (list, tuple)) and len(imgsz) == 2 and all(
            type(side) is int and 0 < side < 2 ** 16 for side in imgsz):
        size = imgsz[1], imgsz[0]
    return layout, size


def is_relative(metadata: Dict[str, Any]) -> bool:
    """True if the coordinates in a .rknn's or .tflite's outputs lie in 0..1.

    models/convert.py records it. Without that record it is True for Ultralytics' int8 exports (from
    8.4.110 on), except those that end in rows of detections, whose coordinates stay in pixels.
    """
    if "relative" in metadata:
        return bool(metadata["relative"])
    arguments = metadata.get("args")
    int8 = isinstance(arguments, dict) and arguments.get("quantize") == 8
    ends_in_rows = bool(metadata.get("end2end")) or metadata.get("head") == "RTDETRDecoder"
    return int8 and metadata.get("task") in TASKS[:4] and not ends_in_rows


def class_count(shapes: List[Tuple[int, ...]], task: str | None, metadata: Dict[str, Any]) \
        -> int | None:
    """The number of classes that outputs of these shapes have; None if the shapes leave it open."""
    first = shapes[0] if shapes else ()
    if len(shapes) == 1 and len(first) in (2, 4) and first[2:] in ((), (1, 1)):
        return first[1] if first[1] > 1 else None  # a classifier; one logit can mean two classes
    if len(shapes) == 3 and len({shape[1:-2] for shape in shapes}) == 1:  # YOLOv5's three heads
        channels = 0
        if len(first) == 4 and first[1] % 3 == 0:
            channels = first[1] // 3
        elif len(first) == 5 and first[1] == 3:
            channels = first[2]
        return channels - 5 if channels > 5 else None
    if len(shapes) in (6, 9) and len(first) == 4 and first[1] == 64 and len(shapes[1]) == 4:
        return shapes[1][1] or None                # YOLOv8's: boxes, classes (, sum) per stride
    if len(first) == 3 and task and 0 < first[1] < first[2]:  # Ultralytics' (1, channels, anchors)
        others = _channels_besides_classes(task, metadata)
        return first[1] - others if others is not None and first[1] > others else None
    return None


def _channels_besides_classes(task: str, metadata: Dict[str, Any]) -> int | None:
    points = metadata.get("kpt_shape")
    if task == "pose" and isinstance(points, (list, tuple)) and len(points) == 2 and all(
            type(number) is int for number in points):
        return 4 + points[0] * points[1]
    return {"detect": 4, "segment": 4 + 32, "obb": 4 + 1}.get(task)


def normalisation(metadata: Dict[str, str]) -> Tuple[List[float], List[float]]:
    """Mean and standard deviation of the input, for R, G and B in 0..255: three floats each.

    From the metadata's "mean" and "std", texts of three numbers; by default 0 and 255. Raises
    ValueError with a message for anything else.
    """
    mean = _three_numbers(metadata, "mean", "0 0 0", -math.inf)
    # A std below 1 is for images in 0..1: torchvision's 0.229 0.224 0.225 is 58.395 57.12 57.375.
    return mean, _three_numbers(metadata, "std", "255 255 255", 1)


def _three_numbers(metadata: Dict[str, str], name: str, default: str, minimum: float) \
        -> List[float]:
    text = metadata.get(name, default)
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != 3 or not all(map(math.isfinite, values)) or min(values) < minimum:
        numbers = "numbers of at least 1" if minimum == 1 else "numbers"
        raise ValueError(f"its {name} is '{text}', not three {numbers} for R, G and B in 0..255")
    return values
