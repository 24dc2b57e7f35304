"""Reads inputs, outputs and metadata of an .onnx file, without the package onnx.

An .onnx is a protobuf message; the field numbers are those of onnx.proto3.
"""
from __future__ import annotations

import ast
import os
from typing import Any, Dict, Iterator, List, Set, Tuple

from vision.model_files import Contents, Tensor, checked_shape, mapped, not_a_model

GRAPH, METADATA_PROPS = 7, 14                            # fields of ModelProto
NODE, INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12  # of GraphProto
TENSOR_NAME = 8                                          # of TensorProto

Span = Tuple[int, int]  # start and end of a field's bytes in the file


def read(path: str) -> Contents:
    """Inputs, outputs and metadata of an .onnx. Empty Contents if the file is damaged."""
    metadata: Dict[str, str] = {}
    ends: Dict[int, List[Tensor]] = {GRAPH_INPUT: [], GRAPH_OUTPUT: []}
    constants: Set[str] = set()
    try:
        with mapped(path) as data:
            for number, span in _fields(data, 0, len(data)):
                if number == METADATA_PROPS:
                    entry = dict(_fields(data, *span))
                    metadata[_text(data, entry[1])] = _text(data, entry[2]) if 2 in entry else ""
                elif number == GRAPH:
                    _read_graph(data, span, ends, constants)
    except Exception:  # damaged: not_onnx() says how, or the runtime reports it
        return Contents()
    # Older files list constants among the inputs, too.
    inputs = [tensor for tensor in ends[GRAPH_INPUT] if tensor[0] not in constants]
    values = {name: _literal(text) for name, text in metadata.items()}
    if not inputs or not ends[GRAPH_OUTPUT]:
        return Contents(metadata=values)
    return Contents(inputs, ends[GRAPH_OUTPUT], values)


def not_onnx(path: str | os.PathLike[str]) -> str | None:
    """What a file is instead of an .onnx, such as "an empty file"; None if it may be an .onnx."""
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        found = "a .rknn" if start.startswith(b"RKNN") else not_a_model(start)
        if found:
            return found
        with mapped(path) as data:
            graph = dict(_fields(data, 0, len(data))).get(GRAPH)
            if graph and NODE in dict(_fields(data, *graph)):
                return None
        damage = "contains no network"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        damage = "is cut off or of another kind"
    size = os.path.getsize(path)
    return f"a file of {size:,} bytes that {damage}: copy it again, or export it again"


def _fields(data: Any, start: int, end: int) -> Iterator[Tuple[int, Any]]:
    """The fields of a protobuf message in data[start:end]: (number, value).

    The value is an int, or for bytes, texts and messages their Span.
    """
    def varint() -> int:
        nonlocal start
        value = shift = 0
        while True:
            if start >= end or shift > 63:
                raise ValueError("truncated")
            byte = data[start]
            start += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while start < end:
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, varint()
            continue
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        if size > end - start:
            raise ValueError("truncated")
        start += size
        yield key >> 3, (start - size, start)


def _read_graph(data: Any, span: Span, ends: Dict[int, List[Tensor]], constants: Set[str]) -> None:
    for number, inside in _fields(data, *span):
        if number in ends:
            ends[number].append(_tensor(data, inside))
        elif number == INITIALIZER:
            constants.update(_text(data, name) for field, name in _fields(data, *inside)
                             if field == TENSOR_NAME)


def _tensor(data: Any, span: Span) -> Tensor:
    """Name and shape of a ValueInfoProto. A sequence or map has the shape ()."""
    info = dict(_fields(data, *span))
    types = dict(_fields(data, *info[2]))
    if 1 not in types:  # scikit-learn's classifiers return sequences and maps
        return _text(data, info[1]), ()
    tensor_type, shape = dict(_fields(data, *types[1])), []
    for number, dimension in _fields(data, *tensor_type.get(2, (0, 0))):
        if number == 1:
            size = dict(_fields(data, *dimension)).get(1, 0)
            shape.append(size if size < 2 ** 31 else 0)
    if shape and not shape[0]:
        shape[0] = 1  # an open batch
    return _text(data, info[1]), checked_shape(shape)


def _text(data: Any, span: Span) -> str:
    return bytes(data[span[0]:span[1]]).decode()


def _literal(text: str) -> Any:
    """The value of a metadata text: "{0: 'person'}" is a dict, "True" is a bool."""
    try:
        return ast.literal_eval(text) if len(text) < 10 ** 6 else text
    except Exception:
        return text
