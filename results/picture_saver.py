"""Saves pictures with their detections drawn: one to a file, or all into a folder."""
from __future__ import annotations

import contextlib
import os
from typing import Any, List, Optional, Set, Tuple

import cv2
import numpy as np

from results.save_paths import check_free, is_folder, unused
from results.saver import Saver, check_disk
from results.unsaved import NotSaved
from results.wording import counted
from sources.pictures import names_below
from vision.errors import InputError


def encode(picture: np.ndarray, extension: str) -> Optional[bytes]:
    """The picture as a file of this kind, None if OpenCV cannot write it."""
    try:
        ok, encoded = cv2.imencode(extension, picture)
    except cv2.error:
        return None
    return encoded.tobytes() if ok else None


class PictureSaver(Saver):
    """A sink that writes pictures: one to a file, or all into a folder under their own names. Those
    of several folders go into folders of the same names."""

    def __init__(self, path: str, stream: Any, overwrite: bool, sources: List[str]):
        self.folder, self.count, self.stream = is_folder(path), 0, stream
        super().__init__(path, overwrite or self.folder)
        self.overwrite = overwrite
        if not self.folder and len(sources) > 1:
            raise InputError(f"--save {path}: {stream.name} has {len(sources)} pictures, so the "
                             "name must be that of a folder or a video.")
        self.targets = {os.path.join(path, name): name for name in names_below(sources)}
        if self.folder and os.path.exists(path) and not os.path.isdir(path):
            raise InputError(f"--save {path}: is not a folder. The name of a picture or video "
                             "has an extension, such as .jpg or .mp4.")
        try:
            folder = path if self.folder else os.path.dirname(path) or "."
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InputError(f"--save {path}: cannot be created ({error.strerror}).") from None
        check_free(path, [os.path.dirname(source) or "." if self.folder else source
                          for source in sources])
        if self.folder:
            self._check_targets({os.path.realpath(source) for source in sources})

    def _check_targets(self, sources: Set[str]) -> None:
        """Raise InputError if a picture in the folder would be overwritten."""
        for target, name in self.targets.items():
            if os.path.exists(target):
                if os.path.realpath(target) in sources:
                    raise InputError(f"--save {self.path}: this folder contains a source, {name}.")
                if not self.overwrite:
                    raise InputError(f"--save {self.path}: contains {name} already. --overwrite "
                                     "replaces it.")

    def write(self, result: Any) -> None:
        """Save a Result's picture. Raises InputError if it is not one, NotSaved if it cannot be
        written."""
        if result.error is not None:
            return
        picture = self.as_bgr(result.picture)
        path, encoded = self._encode(
            os.path.join(self.path, result.file) if self.folder else self.path, picture)
        try:
            if self.folder:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            check_disk(path, len(encoded))
            try:
                with open(path, "wb") as file:
                    file.write(encoded)
            except OSError:
                with contextlib.suppress(OSError):
                    os.remove(path)  # a partial file
                raise
        except OSError as error:
            raise self.unsaved.add(result, error.strerror) from None
        self.count += 1
        self.unsaved.end(result)

    def _encode(self, path: str, picture: np.ndarray) -> Tuple[str, bytes]:
        """Return where to write a picture, and its file: a .png beside it if OpenCV cannot write
        this picture in its own format."""
        extension = os.path.splitext(path)[1]
        encoded = encode(picture, extension)
        if encoded is not None:
            return path, encoded
        encoded = encode(picture, ".png")
        if encoded is None:
            raise NotSaved(f"--save {path}: OpenCV cannot write this picture.")
        other = path + ".png"
        if other in self.targets or not self.overwrite:
            other = unused(other)
        self.stream.print_once(f"--save {path}: saved as {os.path.basename(other)}, because OpenCV "
                               f"cannot write this picture as {extension}.")
        return other, encoded

    @property
    def saved(self) -> str:
        """What has been saved: "found/: 12 pictures". Empty before the first one."""
        if not self.count or not self.folder:
            return self.path if self.count else ""
        return f"{self.path}: {counted(self.count, 'picture')}"

    def close(self) -> None:
        """Raises InputError if the last pictures are missing."""
        self.unsaved.close()
