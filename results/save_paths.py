"""Where `--save` writes: the path of each stream, and what must not be overwritten."""
from __future__ import annotations

import glob
import os
import time
from typing import List, Sequence

from sources.file_names import on_disk
from sources.names import is_picture, local_path
from vision.errors import InputError


def save_paths(path: str, names: Sequence[str], named: Sequence[bool]) -> List[str]:
    """Return the path of each stream for `--save path`. No two streams have the same path.

    names: the streams' names; named: whether the user gave this name. With several streams,
    out.mp4 becomes out_gate.mp4 for a stream that the user named, else out_1.mp4 with the stream's
    position or the next free number. In a folder each stream gets a folder with its name. Codes of
    strftime, such as %Y-%m-%d_%H%M%S, are replaced by the present time; then the path is a new one.
    """
    expanded = time.strftime(path) if "%" in path else path
    if len(names) == 1:
        paths = [expanded]
    elif is_folder(expanded):
        paths = [os.path.join(expanded, name) for name in names]
    else:
        stem, extension = os.path.splitext(expanded)
        labels, taken = [], {name for name, given in zip(names, named) if given}
        for position, (name, given) in enumerate(zip(names, named), 1):
            if not given:
                number = position
                while str(number) in taken:  # the user named another stream "2"
                    number += 1
                name = str(number)
                taken.add(name)
            labels.append(name)
        paths = [f"{stem}_{label}{extension}" for label in labels]
    paths = [on_disk(each) for each in paths]
    return [unused(each) for each in paths] if expanded != path else paths


def is_folder(path: str) -> bool:
    return path.endswith(os.sep) or os.path.isdir(path) or not os.path.splitext(path)[1]


def unused(path: str) -> str:
    """Return the path if it does not exist, else the first free of NAME-2.mp4, NAME-3.mp4, ..."""
    (stem, extension), number = os.path.splitext(path), 1
    while os.path.lexists(path):
        number += 1
        path = f"{stem}-{number}{extension}"
    return path


def check_free(path: str, sources: List[str]) -> None:
    """Raise InputError if saving at `path` would overwrite one of the sources."""
    for source in sources:
        source = local_path(source)
        for read in [source, *(glob.glob(source) if "://" not in source else [])]:
            if os.path.exists(path) and os.path.exists(read) and os.path.samefile(path, read):
                kind = "folder" if os.path.isdir(path) else "video"
                kind = "picture" if is_picture(path) else kind
                raise InputError(f"--save {path}: this {kind} is a source.")
