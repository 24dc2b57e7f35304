"""Cameras that send JPEGs over HTTP: Motion JPEG, and addresses that answer with one picture.

FFmpeg reads Motion JPEG only if every part has the type image/jpeg and begins with the boundary.
Here the JPEGs are found by their own markers, whatever is between them.
"""
from __future__ import annotations

import http.client
import re
import socket
import time
import urllib.error
from typing import Any, Callable
from urllib.parse import urlsplit

import numpy as np

from sources.hls import check_playlist
from sources.names import SourceUnavailable, hide
from sources.opencv import unreachable
from sources.timeouts import SLOW_READ_TIMEOUT, Timeouts
from sources.url_probe import get
from vision.frame import Frame, picture_of
from vision.jpeg import frame_of_file

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts",
          ".3gp")
MAX_BYTES = 1 << 26       # bytes without a complete picture after which reading gives up
CHUNK = 1 << 16
# A marker of a JPEG, but not those that may be within its compressed data (ISO/IEC 10918-1, B.1.1)
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
START, END = 0xd8, 0xd9
# How an answer of pictures begins: as a JPEG, PNG, GIF, BMP or WebP does, or as Motion JPEG
PICTURES = re.compile(rb"\xff\xd8\xff|\x89png|gif8|bm|riff.{4}webp|"
                      rb"--|.{,100}content-(type: *image|length:)", re.DOTALL)


def open_pictures(source: str, timeouts: Timeouts) -> HTTPPictures | None:
    """The pictures that a URL's host sends, or None if it sends a video, or no answer at all.

    If it sends an HLS playlist, `timeouts` gets the length of its segments. Raises InputError if
    the host refuses, SourceUnavailable if it says nothing, or if an interrupted HLS stream has no
    new segments yet.
    """
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https") or parts.path.lower().endswith(VIDEOS):
        return None
    try:
        answer = get(source, timeouts.open_timeout)
        kind = kind_of(answer, source)
        if kind == "pictures":
            return HTTPPictures(source, answer, timeouts)
        if kind == "playlist":
            check_playlist(answer, source, timeouts)
        answer.close()
    except urllib.error.HTTPError as error:
        error.close()
        raise unreachable(source) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, (socket.timeout, TimeoutError)):
            raise SourceUnavailable(f"{hide(source)}: does not answer.") from None
    return None  # FFmpeg may understand what urllib does not


def kind_of(answer: Any, source: str) -> str:
    """What a host answers with: "pictures", "playlist" or "video"."""
    kind = answer.headers.get("Content-Type", "").lower()
    if re.match(r"multipart/|image/", kind):
        return "pictures"
    if "mpegurl" in kind or urlsplit(source).path.lower().endswith(".m3u8"):
        return "playlist"
    start = answer.peek(CHUNK).lstrip().lower()  # cheap cameras name no type, or a wrong one
    if start.startswith(b"#extm3u"):
        return "playlist"
    return "pictures" if PICTURES.match(start) else "video"


class Splitter:
    """Finds the JPEGs in what a camera sends. rest: what follows the last complete one."""

    def __init__(self) -> None:
        self.rest, self._at = bytearray(), 0

    def next(self) -> bytes | None:
        """The next complete JPEG, if there is one."""
        if not self._at:
            start = self.rest.find(b"\xff\xd8\xff")
            if start < 0:
                return None
            del self.rest[:start]
            self._at = 2
        while True:
            found = MARKER.search(self.rest, self._at)
            if not found:
                self._at = max(self._at, len(self.rest) - 1)
                return None
            marker, end = self.rest[found.start() + 1], found.end()
            if marker == START:  # the picture before was cut off
                del self.rest[:found.start()]
                self._at = 2
            elif marker == END:
                picture = bytes(self.rest[:end])
                del self.rest[:end]
                self._at = 0
                return picture
            elif len(self.rest) < end + 2:
                self._at = found.start()
                return None
            else:  # a segment with its length, such as EXIF data with a small picture in it
                self._at = end + int.from_bytes(self.rest[end:end + 2], "big")


class HTTPPictures:
    """The pictures of a camera that sends JPEGs: a Source (sources/protocol.py).

    answer: what get(source) returned. If it has one picture only, the host is asked again and
    again, every `timeouts.poll` seconds.
    """

    live, total, skipped, size = True, 0, 0, (0, 0)
    file: str | None = None
    note: str | None = None

    def __init__(self, source: str, answer: Any, timeouts: Timeouts):
        self.source, self.timeouts, self.time, self.fps = source, timeouts, 0.0, 0.0
        self.picture: bytes | None = None  # grabbed last
        self.last: bytes | None = None     # the one before
        self.due = time.monotonic()  # when to ask for the next single picture
        self._use(answer)

    def _use(self, answer: Any) -> None:
        self.answer, self.splitter, self.count = answer, Splitter(), 0
        kind = answer.headers.get("Content-Type", "").lower()
        self.single = kind.startswith("image/")
        # urllib has no public way to change the timeout of an answer.
        self.socket = getattr(getattr(answer.fp, "raw", None), "_sock", None)

    def grab(self) -> bool:
        began, poll, self.last = time.monotonic(), self.timeouts.poll, self.picture
        self.picture = self._attempt(self._next)
        single = self.count == 1  # this answer had one picture, and has ended
        while self.picture is None and single:
            self.fps = 1 / poll
            self.due = max(self.due + poll, time.monotonic())
            if (self.due > began + poll + self.timeouts.read_timeout()
                    or self.timeouts.stop.wait(self.due - time.monotonic())):
                break
            self.picture = self._attempt(self._ask_again)
        self.time = time.time()
        return self.picture is not None

    def _attempt(self, read: Callable[[], bytes | None]) -> bytes | None:
        """The picture that `read` returns, None if the host does not send it."""
        try:
            return read()
        except urllib.error.HTTPError as error:
            error.close()
            return self.last if error.code == 304 else None  # not modified
        except (OSError, http.client.HTTPException, ValueError):
            pass
        return None

    def _ask_again(self) -> bytes | None:
        self.answer.close()
        self._use(get(self.source, self.timeouts.open_timeout))
        return self._next()

    def _next(self) -> bytes | None:
        """The next picture of this answer, None at its end."""
        while not (self.single and self.count):
            picture = self.splitter.next()
            if picture is None:
                # Newer versions of Python close an answer when its last byte has been read.
                if self.socket is not None and not self.answer.isclosed():
                    self.socket.settimeout(self.timeouts.read_timeout(SLOW_READ_TIMEOUT))
                data = self.answer.read1(CHUNK)
                self.splitter.rest += data
                if data and len(self.splitter.rest) < MAX_BYTES:
                    continue
                picture = self._last()
                if picture is None:
                    return None
            self.count += 1
            return picture
        return None

    def _last(self) -> bytes | None:
        """What an answer without a complete JPEG was: a .png, or a JPEG that lacks its end."""
        rest, complete = bytes(self.splitter.rest), self.answer.length == 0
        if rest.startswith(b"\xff\xd8"):
            rest = rest + b"\xff\xd9" if complete else b""
        return rest if not self.count and picture_of(frame_of_file(rest)) is not None else None

    def frame(self) -> np.ndarray | Frame | None:
        return frame_of_file(self.picture or b"")

    def retrieve(self) -> np.ndarray | None:
        return picture_of(self.frame())

    def read(self) -> np.ndarray | None:
        return self.retrieve() if self.grab() else None

    def release(self) -> None:
        self.answer.close()
