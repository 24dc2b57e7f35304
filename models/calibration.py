"""The pictures that calibrate an int8 model: from a folder, or taken from a video or a camera."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Iterator, List, Sequence, Tuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from results.picture_saver import encode
from results.save_paths import unused
from sources import Pictures, Source, Video, list_pictures, open_source
from sources.names import shown
from sources.pace import RateLimit
from vision.errors import InputError
from vision.letterbox import as_bgr

Item = TypeVar("Item")


def find_pictures(source: str, folder: Path, count: int, interval: float) -> List[str]:
    """Paths of up to `count` pictures, evenly spread over a source.

    source: pictures that lie in a folder are used where they are. The frames of a video, camera,
    URL or pipeline are saved, so that the run can be repeated.
    folder: where to save them. If it exists, its name gets a number.
    interval: seconds between two frames of a camera, or of another source of unknown length.
    Raises InputError if there is no picture.
    """
    try:
        paths = list_pictures(source)
        if paths is not None:
            return spread(paths, count)
        opened = open_source(source, "opencv")
    except InputError as error:
        raise InputError(f"--calibration {error}") from None
    return take(opened, shown(source), Path(unused(str(folder))), count, interval)


def take(opened: Source, name: str, folder: Path, count: int, interval: float) -> List[str]:
    """Save up to `count` frames of an opened source in a new folder. Returns their paths.

    name: of the source, for messages. What was saved stays after Ctrl-C and after an error.
    """
    if opened.live:
        print(f"{name}: taking {count} frames, one every {interval:g} s. Ctrl-C keeps those taken.")
    saved: List[str] = []
    try:
        folder.mkdir()
    except OSError as error:
        opened.release()
        raise InputError(f"{folder}: cannot be created ({error.strerror}).") from None
    try:
        with tqdm(total=count, unit=" frames", disable=None) as bar:  # None: without a TTY
            for picture in frames(opened, count, interval):
                path = folder / f"{len(saved):04}.jpg"
                try:
                    path.write_bytes(encode(picture, ".jpg") or b"")
                except OSError as error:
                    path.unlink(missing_ok=True)
                    raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
                saved.append(str(path))
                bar.update()
    finally:
        opened.release()
        kept = len(list(folder.glob("*.jpg")))
        if kept:
            are = "frames are" if kept > 1 else "frame is"
            print(f"{name}: {kept} {are} in {folder}. --calibration {folder} uses them again.")
        else:
            folder.rmdir()
    if not saved:
        raise InputError(f"--calibration {name}: gave no picture.")
    return saved


def frames(opened: Source, count: int, interval: float) -> Iterator[np.ndarray]:
    """Up to `count` frames, (h, w, 3) uint8 BGR, evenly spread over a source."""
    if isinstance(opened, Video) and not opened.live and opened.total:
        for number in spread(range(opened.total), count):
            opened.capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            picture = opened.read()
            if picture is not None:
                yield as_bgr(picture)
        return
    limit = RateLimit(1 / interval)
    while count and opened.grab():
        picture = None if limit.too_soon(opened.time, opened.fps) else opened.retrieve()
        if picture is not None:
            count -= 1
            yield as_bgr(picture)


def spread(items: Sequence[Item], count: int) -> List[Item]:
    """Up to `count` of the items, evenly spread."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def hold_out(paths: Sequence[str]) -> Tuple[List[str], List[str]]:
    """The pictures to calibrate with, and those to compare with: every fifth, or the last of fewer
    than three; none of a single picture."""
    compared = list(paths[2::5] or paths[1:])
    return [path for path in paths if path not in compared], compared


def images(paths: Sequence[str]) -> Iterator[np.ndarray]:
    """The pictures at these paths, (h, w, 3) uint8 BGR. Prints a line for each unreadable one."""
    for path in paths:
        try:
            picture: Any = Pictures([path]).read()
        except InputError as error:
            print(f"{str(error).rstrip('.')}; it is skipped.", file=sys.stderr)
        else:
            yield as_bgr(picture)
