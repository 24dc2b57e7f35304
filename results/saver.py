"""What savers of videos and pictures share: checks of the path, the pictures and the disk."""
from __future__ import annotations

import errno
import os
import resource
import shutil
from typing import Any

import cv2
import numpy as np

from results.unsaved import UnsavedResults
from vision.errors import InputError


class Saver:
    """A sink that writes to files. unsaved: the results that it could not save."""

    def __init__(self, path: str, overwrite: bool):
        self.path, self.overwrite, self.unsaved = path, overwrite, UnsavedResults(f"--save {path}")
        if not overwrite and os.path.isfile(path) and os.path.getsize(path):
            raise InputError(f"--save {path}: already exists. --overwrite replaces it; "
                             "%Y-%m-%d_%H%M%S in the name gives each run a new file.")

    def as_bgr(self, picture: Any) -> np.ndarray:
        """Return the picture as (h, w, 3) uint8 BGR. Raises InputError if it is not a picture."""
        valid = (getattr(picture, "dtype", None) == "uint8" and picture.ndim in (2, 3)
                 and picture.size and picture.shape[2:] in ((), (1,), (3,), (4,)))
        if not valid:
            what = type(picture).__name__
            if hasattr(picture, "dtype"):
                what = f"{picture.dtype} array of shape {picture.shape}"
            raise InputError(f"--save {self.path}: myFunc returned a {what}; only uint8 pictures "
                             "of shape (h, w, 3) can be saved.")
        if picture.shape[2:] == (4,):
            return cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR)
        if picture.shape[2:] != (3,):
            return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
        return picture


def check_disk(path: str, needed: int) -> None:
    """Raise OSError unless the file at `path` can grow by this many bytes."""
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]  # ulimit -f, systemd's LimitFSIZE=
    if free < needed:
        raise OSError(errno.ENOSPC, "the disk is full")
    if limit >= 0 and limit - (os.path.getsize(path) if os.path.exists(path) else 0) < needed:
        raise OSError(errno.EFBIG, "the file has reached the maximum size")


def check_writable(path: str) -> None:
    """Raise OSError if no file can be written at `path`."""
    is_new = not os.path.lexists(path)
    open(path, "ab").close()
    if is_new:
        os.remove(path)
