"""Reads inputs, outputs, SoC and toolkit version of a .rknn file of toolkit 2.x.

Format 6: bytes 0-3 are "RKNN", 8-15 the format number, 16-23 the length n of the body, which begins
at byte 64 (all little-endian uint64). At 64 + n stands the length m of a JSON text, then the text.
"""
from __future__ import annotations

import json
import re
import struct
from typing import Any, Dict, List

from vision.model_files import Contents, checked_shape, mapped, not_a_model

BODY = 64  # where the body begins


def read(path: str) -> Contents:
    """Inputs, outputs, SoC and toolkit of a .rknn. Empty Contents for other formats and files."""
    try:
        with mapped(path) as data:
            if data[:4] != b"RKNN":
                return Contents()
            end = BODY + struct.unpack_from("<Q", data, 16)[0]
            length, = struct.unpack_from("<Q", data, end)
            description = json.loads(data[end + 8:end + 8 + length].decode())
        return _contents(description)
    except Exception:  # an older format, an encrypted or a damaged file: the runtime reports it
        return Contents()


def _contents(description: Dict[str, Any]) -> Contents:
    tensors = {tensor["tensor_id"]: (str(tensor["url"]), checked_shape(tensor["size"]))
               for tensor in description["norm_tensor"]}
    ends: Dict[str, List[Any]] = {"input": [], "output": []}
    for edge in description["graph"]:
        if edge["left"] in ends:
            tensor = tensors[edge["right_tensor_id"]]
            ends[edge["left"]].append((edge["left_tensor_id"], tensor))
    inputs, outputs = ([tensor for _, tensor in sorted(ends[end])] for end in ("input", "output"))
    if not inputs or not outputs:
        return Contents()
    platforms, version = description.get("target_platform"), description.get("version")
    soc = platforms[0].lower() if isinstance(platforms, list) and platforms else None
    toolkit = version if isinstance(version, str) and re.search(r"\d", version) else None
    return Contents(inputs, outputs, {}, soc or None, toolkit)


def not_rknn(path: str) -> str | None:
    """What a file is instead of a .rknn, such as "an empty file"; None if it may be a .rknn."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if b"RKNN" in start:  # at byte 0; further on in encrypted files
        return _damage(path)
    return not_a_model(start) or f"a file that begins with {start[:8]!r}"


def _damage(path: str) -> str | None:
    """What is wrong with a .rknn: a clause if it is cut off or its JSON cannot be read, else None.

    The vendor's library (1.5.2) aborts the process if it cannot read the JSON.
    """
    try:
        with mapped(path) as data:
            if data[:4] != b"RKNN":
                return None
            number, body = struct.unpack_from("<QQ", data, 8)
            end = BODY + body
            if number == 6 and end + 8 > len(data):
                return f"only the first {len(data):,} bytes of more than {end:,}: copy it again"
            length, = struct.unpack_from("<Q", data, end)
            text = data[end + 8:end + 8 + length]
    except (struct.error, OverflowError):  # another format, which only the library knows
        return None
    try:
        json.loads(text.decode(errors="replace"))
    except ValueError:
        return "damaged: the description at its end cannot be read; copy it again"
    return None
