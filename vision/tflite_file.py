"""Reads inputs, outputs and metadata of a .tflite file, without TensorFlow.

A .tflite is a FlatBuffer; the field numbers are those of LiteRT's schema.fbs. Ultralytics and
models/convert.py append a zip archive with metadata.json to it.
"""
from __future__ import annotations

import json
import struct
import zipfile
from typing import Any, Dict, List

from vision.model_files import Contents, Tensor, checked_shape, mapped

SUBGRAPHS = 2                      # fields of Model
TENSORS, INPUTS, OUTPUTS = 0, 1, 2  # of SubGraph
SHAPE, NAME = 0, 3                 # of Tensor


def read(path: str) -> Contents:
    """Inputs, outputs and metadata of a .tflite, with shapes as in an ONNX: channels before height
    and width. What cannot be read stays empty."""
    metadata = _metadata(path)
    try:
        with mapped(path) as data:
            ends = _inputs_and_outputs(data)
        for number, key in enumerate(("inputs", "outputs")):
            recorded = metadata.get(key)  # models/convert.py records the ONNX's own
            if isinstance(recorded, list) and len(recorded) == len(ends[number]):
                ends[number] = [(str(name), checked_shape(shape)) for name, shape in recorded]
    except Exception:  # damaged: the runtime reports it
        return Contents(metadata=metadata)
    return Contents(ends[0], ends[1], metadata)


def _metadata(path: str) -> Dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json").decode())
        names = metadata.get("names")
        if isinstance(names, dict):  # JSON turns the numbers into texts
            metadata["names"] = {int(number): name for number, name in names.items()}
        return metadata
    except Exception:  # none, or in another form
        return {}


def _inputs_and_outputs(data: Any) -> List[List[Tensor]]:
    if data[4:8] != b"TFL3":
        raise ValueError("not a .tflite")
    graphs = _vector(data, _number(data, 0), SUBGRAPHS)
    graph = _follow(data, graphs[0])
    tensors = _vector(data, graph, TENSORS)
    return [[_tensor(data, _follow(data, tensors[_number(data, position)]))
             for position in _vector(data, graph, field)] for field in (INPUTS, OUTPUTS)]


def _tensor(data: Any, table: int) -> Tensor:
    shape = [_number(data, position) for position in _vector(data, table, SHAPE)]
    if len(shape) > 3:
        shape.insert(1, shape.pop())  # (1, h, w, c) to (1, c, h, w)
    name = _vector(data, table, NAME)
    return data[name.start:name.start + len(name)].decode(), checked_shape(shape)


def _number(data: Any, position: int, kind: str = "<i") -> int:
    return struct.unpack_from(kind, data, position)[0]


def _follow(data: Any, position: int) -> int:
    """The position that an offset at this position points to."""
    return position + _number(data, position)


def _field(data: Any, table: int, number: int) -> int:
    """The position of a table's field, 0 if it is absent."""
    vtable, entry = table - _number(data, table), 4 + 2 * number
    offset = _number(data, vtable + entry, "<H") if entry < _number(data, vtable, "<H") else 0
    return table + offset if offset else 0


def _vector(data: Any, table: int, number: int) -> range:
    """The positions of the elements, 4 bytes each, of a vector; empty if the field is absent."""
    position = _field(data, table, number)
    if not position:
        return range(0)
    start = _follow(data, position)
    return range(start + 4, start + 4 + 4 * _number(data, start), 4)
