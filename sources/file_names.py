"""File names in any encoding: as text for people, as Python names them, and as OpenCV does.

Python names files in the encoding of the system's locale, OpenCV in UTF-8.
"""
from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Iterator

from vision.errors import InputError


def as_text(path: str) -> str:
    """A path as valid text. A name that is UTF-8 on the disk is read as UTF-8 in every locale."""
    try:
        return os.fsencode(path).decode()
    except UnicodeError:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def on_disk(path: str) -> str:
    """A path as Python's functions need it: in the locale's encoding, or in UTF-8 if that encoding
    lacks a character or if only the UTF-8 name exists."""
    in_utf8 = os.fsdecode(path.encode("utf-8", "surrogateescape"))
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return in_utf8
    return in_utf8 if os.path.lexists(in_utf8) and not os.path.lexists(path) else path


@contextlib.contextmanager
def for_opencv(path: str) -> Iterator[str]:
    """A path under which OpenCV can open a file, to read or to write it, within the `with` block.

    For a name that is not UTF-8 on the disk, this is a temporary link to the file.
    """
    path = os.path.abspath(path)  # FFmpeg takes "12:30.mp4" for a URL
    try:
        name = os.fsencode(path).decode()
    except UnicodeDecodeError:
        name = ""
    with contextlib.ExitStack() as stack:
        if not name:
            try:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                extension = os.path.splitext(path)[1]
                name = os.path.join(folder, "file" + (extension if extension.isascii() else ""))
                os.symlink(path, name)
            except OSError as error:
                raise InputError(f"{as_text(path)}: this name is not UTF-8, and OpenCV cannot "
                                 f"open it without a temporary folder ({error.strerror}). Rename "
                                 f"it.") from None
        yield name
