"""Writes a file as a whole or not at all."""
from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Iterator

from vision.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path for the new content of `path`, which it replaces at the end of the with block.

    After an error or Ctrl-C, `path` is as it was. Two programs that write the same file do not
    disturb each other. Raises InputError if the file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            new = Path(folder) / path.name
            yield new
            new.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
