"""Where frames come from: files, cameras, URLs, GStreamer pipelines and pictures, opened and read.

    source = open_source("rtsp://192.168.1.20/live")
    picture = source.read()              # None at the end; source.time is its time in seconds
"""
import glob
import os
import re
from importlib import metadata
from typing import Any, Iterator, List, Optional

import cv2
import numpy as np

from rknnmodel import InputError
from sources.names import PICTURES, NoHardware, NotRead, NotYet, check_utf8, is_picture, local, malformed, shown  # noqa: F401
from sources.opencv import (  # noqa: F401
    TIMEOUT,
    Camera,
    Video,
    open_camera,
    open_pipeline,
    open_url,
    parse_camera,
    unreachable,
)

PICTURES_FPS = 25  # at which pictures in a row are thought to have been taken, as FFmpeg does
READERS = "opencv", "av"


# ---- opening ----

def list_pictures(source: str) -> Optional[List[str]]:
    """The pictures of a picture's path, a folder, a glob or a pattern like img_%03d.jpg, in order; None for other
    sources."""
    source = local(source)
    if os.path.isdir(source):
        found = sorted(os.path.join(source, name) for name in listed(source) if is_picture(name))
        if not found:
            raise InputError(f"{source}: is a directory, and has no pictures ({', '.join(PICTURES[:4])}, ...).")
        return found
    if "://" in source or " ! " in source:
        return None
    if os.path.exists(source):
        return [source] if is_picture(source) else None
    numbered = re.fullmatch(r"(.*)%(0?)(\d*)d(.*)", os.path.basename(source))
    if numbered:
        before, zero, width, after = numbered.groups()
        digits = rf"(\d{{{width},}})" if zero and width else r"(\d+)"
        pattern = re.compile(re.escape(before) + digits + re.escape(after))
        folder = os.path.dirname(source)
        names = listed(folder or ".") if os.path.isdir(folder or ".") else []
        matches = sorted(filter(None, map(pattern.fullmatch, names)), key=lambda match: int(match.group(1)))
        found = [os.path.join(folder, match.group()) for match in matches]
    elif glob.has_magic(source):
        found = sorted(filter(os.path.isfile, glob.glob(source)))
        extension = os.path.splitext(source)[1]
        if not extension or glob.has_magic(extension):  # as of a folder; '*.gif' says itself what is wanted
            found = list(filter(is_picture, found))
    else:
        return None
    if not found:
        raise InputError(f"{source}: no picture has such a name.")
    return found


def listed(folder: str) -> List[str]:
    """The names in a folder. Raises InputError where it may not be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}).") from None


def open_source(source: Any, reader: Optional[str] = None, camera: Optional[Camera] = None) -> Video:
    """The opened Video or Pictures of a file, folder, camera number, URL or GStreamer pipeline.

    reader: of files and URLs; "opencv", "av" (PyAV), or None for OpenCV, or on a board with pyav-rkmpp its hardware
    decoder; camera: what a USB camera is asked for. Raises NotYet where a live source does not answer, and InputError
    where it never can.
    """
    source = str(source)
    check_utf8(source)
    if source.isdigit() or source.startswith("/dev/"):
        capture, note = open_camera(source, camera)
        video = Video(capture, source)
        video.note = note
        return video
    if " ! " in source:
        return Video(open_pipeline(source), source)
    url = "://" in source and not source.startswith("file://")
    if url:
        problem = malformed(source)
        if problem:
            raise InputError(f"{shown(source)}: {problem}.")
    else:
        pictures = list_pictures(source)
        if pictures is not None:
            return Pictures(pictures)
        if not os.path.exists(local(source)):
            raise InputError(f"{local(source)}: no such file.")
    return open_video(source, url, reader)


def check_reader(reader: Optional[str]) -> Optional[str]:
    """The reader. Raises InputError for what is none."""
    if reader not in (None, *READERS):
        raise InputError(f"--reader {reader}: is one of {', '.join(READERS)}.")
    return reader


def open_video(source: str, url: bool, reader: Optional[str]) -> Video:
    """The opened Video of a file or a URL."""
    path, note = source if url else local(source), None
    if reader == "av" or reader is None and has_hardware():
        try:
            from sources.pyav import open_av  # only here, for PyAV may not be installed
            return open_av(source, path, url, hardware_only=reader is None)
        except NotRead as error:
            if reader == "av":
                raise unreachable(source) if url else InputError(
                    f"{path}: not a video that PyAV can read ({error}).") from None
        except NoHardware as error:
            note = f"OpenCV decodes it on the CPU, for {error}"
        except ImportError as error:
            if reader == "av":
                raise
            note = f"OpenCV decodes it on the CPU, for pyav-rkmpp cannot be imported ({error})"
    if url:
        video = Video(open_url(source), source)
    else:
        capture = cv2.VideoCapture(path)
        if not capture.isOpened():
            raise InputError(f"{path}: not a video that OpenCV can read.")
        video = Video(capture, source)
    video.note = note
    return video


def has_hardware() -> bool:
    """Whether pyav-rkmpp is installed, which has the board's hardware decoder."""
    try:
        metadata.distribution("pyav-rkmpp")
        return True
    except metadata.PackageNotFoundError:
        return False


# ---- reading ----

def frames_of(capture: Any) -> Iterator[np.ndarray]:
    """The frames of a cv2.VideoCapture, until there are no more."""
    while True:
        ok, frame = capture.read()
        if not ok:
            return
        yield frame


class Pictures:
    """Pictures in a row, as if they were a video. EXIF's orientation is respected, as cv2.imread() does."""

    live, fps, size = False, PICTURES_FPS, (0, 0)

    def __init__(self, paths: List[str]):
        self.paths, self.total, self.place, self.file, self.time = paths, len(paths), -1, None, 0.0

    def grab(self) -> bool:
        self.place += 1
        return self.place < self.total

    def now(self) -> float:
        self.time = self.place / self.fps
        return self.time

    def retrieve(self) -> np.ndarray:
        """The next picture. Raises InputError where it cannot be read; the one after it may be."""
        path = self.paths[self.place]
        self.file = os.path.basename(path)
        check_utf8(path)
        try:
            picture = cv2.imread(path)
        except cv2.error:  # of more pixels than OpenCV takes, or says to have
            picture = None
        if picture is None:
            raise InputError(f"{path}: not a picture that OpenCV can read.")
        return picture

    def read(self) -> Optional[np.ndarray]:
        if not self.grab():
            return None
        self.now()
        return self.retrieve()

    def release(self) -> None:
        pass
