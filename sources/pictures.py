"""Pictures in a row, read as if they were a video."""
from __future__ import annotations

import glob
import os
import re

import cv2
import numpy as np

from sources.file_names import as_text, for_opencv
from sources.names import PICTURES, is_picture, is_url, local_path
from sources.unreadable import reason
from vision.errors import InputError

FPS = 25  # frame rate of pictures in a row, the same as FFmpeg's


def list_pictures(source: str) -> list[str] | None:
    """Paths of the pictures that `source` names, in order: a picture, a folder, a glob pattern, or
    a pattern such as img_%03d.jpg. None if `source` is something else."""
    source = local_path(source)
    if os.path.isdir(source):
        # Hidden files are no pictures: macOS writes a ._IMG_1.jpg beside each IMG_1.jpg.
        found = sorted(os.path.join(source, name) for name in names_in(source)
                       if is_picture(name) and not name.startswith("."))
        found = without_folders(found)
        if not found:
            raise InputError(f"{as_text(source)}: this folder contains no pictures "
                             f"({', '.join(PICTURES[:4])}, ...).")
        return found
    if is_url(source) or " ! " in source:
        return None
    if os.path.exists(source):
        return [source] if is_picture(source) else None
    numbered = re.fullmatch(r"(.*)%(0?)(\d{0,2})d(.*)", os.path.basename(source))
    if numbered:
        found = without_folders(find_numbered(os.path.dirname(source), *numbered.groups()))
    elif glob.has_magic(source):
        found = without_folders(sorted(glob.glob(source)))
        extension = os.path.splitext(source)[1]
        if not extension or glob.has_magic(extension):  # "*.gif" means all .gif files
            found = list(filter(is_picture, found))
    else:
        return None
    if not found:
        raise InputError(f"{as_text(source)}: no picture matches.")
    return found


def find_numbered(folder: str, before: str, zero: str, width: str, after: str) -> list[str]:
    """The files in `folder` that match the pattern BEFORE%0WIDTHdAFTER, in the order of their
    numbers."""
    digits = rf"(\d{{{width},}})" if zero and width else r"(\d+)"
    pattern = re.compile(re.escape(before) + digits + re.escape(after))
    names = names_in(folder or ".") if os.path.isdir(folder or ".") else []
    matches = filter(None, map(pattern.fullmatch, names))
    return [os.path.join(folder, match.group())
            for match in sorted(matches, key=lambda match: int(match.group(1)))]


def without_folders(paths: list[str]) -> list[str]:
    """The paths that are not those of folders: a folder may be called day.jpg."""
    return [path for path in paths if not os.path.isdir(path)]


def names_in(folder: str) -> list[str]:
    """The names in a folder. Raises InputError if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError(f"{as_text(folder)}: cannot be read ({error.strerror}).") from None


def names_below(paths: list[str]) -> list[str]:
    """A name for each file that no other one has: its path below the folder that contains all."""
    full = [os.path.abspath(path) for path in paths]
    folder = os.path.commonpath([os.path.dirname(path) for path in full])
    return [os.path.relpath(path, folder) for path in full]


class Pictures:
    """Pictures as a Source (sources/protocol.py), turned upright according to their EXIF data."""

    live, skipped = False, 0
    fps: float = FPS
    size = 0, 0
    note: str | None = None

    def __init__(self, paths: list[str]):
        self.paths, self.total, self.index = paths, len(paths), -1
        self.names = names_below(paths)
        self.file: str | None = None
        self.time = 0.0

    def grab(self) -> bool:
        self.index += 1
        self.time = self.index / self.fps
        return self.index < self.total

    def retrieve(self) -> np.ndarray:
        path = self.paths[self.index]
        self.file = self.names[self.index]
        try:
            with for_opencv(path) as name:
                picture = cv2.imread(name)
        except cv2.error:  # more pixels than OpenCV accepts
            picture = None
        if picture is None:
            raise InputError(f"{as_text(path)}: {reason(path, 'picture')}.")
        return picture

    frame = retrieve

    def read(self) -> np.ndarray | None:
        return self.retrieve() if self.grab() else None

    def release(self) -> None:
        pass
