"""Where frames come from: files, cameras, URLs, GStreamer pipelines and pictures.

    source = open_source("rtsp://192.168.1.20/live")
    picture = source.read()              # None at the end

sources/protocol.py describes what open_source() returns.
"""
from __future__ import annotations

import os
from importlib import metadata
from typing import Any

from sources.file_names import as_text
from sources.names import (
    NoHardware,
    NotReadable,
    SourceUnavailable,
    is_camera,
    is_url,
    local_path,
    lower_scheme,
    malformed,
    shown,
)
from sources.opencv import (
    CameraSettings,
    Video,
    open_camera,
    open_file,
    open_pipeline,
    open_url,
    parse_camera,
    unreachable,
)
from sources.pictures import Pictures, list_pictures
from sources.protocol import Source
from sources.timeouts import Timeouts
from sources.unreadable import reason, seems_video
from vision.errors import InputError

__all__ = ["READERS", "CameraSettings", "Pictures", "Source", "SourceUnavailable", "Timeouts",
           "Video", "check_reader", "list_pictures", "open_source", "parse_camera"]

READERS = "opencv", "av"


def open_source(source: Any, reader: str | None = None,
                camera: CameraSettings | None = None, timeouts: Timeouts | None = None,
                max_fps: float | None = None) -> Source:
    """Open a file, picture, folder, list of pictures, camera number, URL or GStreamer pipeline.

    reader: reads files and URLs: "opencv", or "av" for PyAV. None: the board's hardware decoder if
        pyav-rkmpp is installed, else OpenCV.
    camera: settings of a USB camera.
    timeouts: how long to wait for a URL.
    max_fps: how many frames per second will be used, None for all. PyAV decodes only a video's key
        frames if these are enough; the source passes over the others.

    Raises SourceUnavailable if a live source does not answer now, and InputError if the source can
    never be opened.
    """
    if isinstance(source, list):
        return Pictures([str(path) for path in source])
    source = lower_scheme(str(source))
    if is_camera(source):
        capture, note = open_camera(source, camera)
        return Video(capture, source, note)
    if " ! " in source:
        return Video(open_pipeline(source), source)
    if is_url(source):
        problem = malformed(source)
        if problem:
            raise InputError(f"{shown(source)}: {problem}.")
        return open_url_of_any_kind(source, reader, timeouts or Timeouts(), max_fps)
    pictures = list_pictures(source)
    if pictures is not None:
        return Pictures(pictures)
    if not os.path.exists(local_path(source)):
        raise InputError(f"{as_text(local_path(source))}: {reason(local_path(source))}.")
    return open_video(source, os.path.abspath(local_path(source)), reader, Timeouts(), max_fps)


def check_reader(reader: str | None) -> str | None:
    """The reader. Raises InputError if it is unknown."""
    if reader not in (None, *READERS):
        raise InputError(f"--reader {reader}: unknown; choose from {', '.join(READERS)}.")
    return reader


def open_url_of_any_kind(source: str, reader: str | None, timeouts: Timeouts,
                         max_fps: float | None) -> Source:
    """Open a URL: a camera that sends JPEGs over HTTP, or else a video."""
    from sources.http_pictures import open_pictures  # only here: it is needed only for URLs
    return (open_pictures(source, timeouts)
            or open_video(source, source, reader, timeouts, max_fps))


def open_video(source: str, path: str, reader: str | None, timeouts: Timeouts,
               max_fps: float | None) -> Source:
    """Open a video. path: the file's path, or the URL."""
    url, note = is_url(source), None
    if not url and not seems_video(path):
        raise InputError(f"{as_text(path)}: {reason(path)}.")
    if reader == "av" or reader is None and has_hardware():
        try:
            from sources.pyav import open_av  # only here: PyAV may not be installed
            return open_av(source, path, timeouts, reader is None, max_fps)
        except NotReadable as error:
            if reader == "av" and url:
                raise unreachable(source) from None
            if reader == "av":
                why = reason(path, reader="PyAV")
                details = f" ({error})" if why.endswith("read") else ""
                raise InputError(f"{as_text(path)}: {why}{details}.") from None
        except NoHardware as error:
            note = f"OpenCV decodes it on the CPU because {error}"
        except ImportError as error:
            if reader == "av":
                raise
            note = f"OpenCV decodes it on the CPU because pyav-rkmpp cannot be imported ({error})"
    if url:
        timeout = timeouts.read_timeout()
        capture = open_url(source, timeouts.open_timeout, timeout, timeouts.slow)
        return Video(capture, source, note, timeout)
    capture = open_file(path)
    if not capture.isOpened():
        raise InputError(f"{as_text(path)}: {reason(path)}.")
    return Video(capture, source, note)


def has_hardware() -> bool:
    """Whether pyav-rkmpp is installed, which brings the board's hardware decoder."""
    try:
        metadata.distribution("pyav-rkmpp")
        return True
    except metadata.PackageNotFoundError:
        return False
