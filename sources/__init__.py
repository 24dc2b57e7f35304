"""Where frames come from: files, cameras, URLs, GStreamer pipelines and pictures, opened and read.

    source = open_source("rtsp://192.168.1.20/live")
    picture = source.read()              # None at the end; source.time is its time in seconds
"""
import glob
import os
import re
import shutil
import subprocess
import time
from typing import Any, Iterator, List, Optional
from urllib.parse import urlsplit

import cv2
import numpy as np

from rknnmodel import InputError
from sources.names import PICTURES, check_utf8, hide, is_picture, local

TIMEOUT = 5        # seconds after which a URL that sends nothing counts as gone
PICTURES_FPS = 25  # at which pictures in a row are thought to have been taken, as FFmpeg does
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "tls", "rtp", "srt", "mms", "mmsh", "ftp",
           "file")
YUV = {"NV12": cv2.COLOR_YUV2BGR_NV12, "NV21": cv2.COLOR_YUV2BGR_NV21, "I420": cv2.COLOR_YUV2BGR_I420,
       "YU12": cv2.COLOR_YUV2BGR_I420, "YV12": cv2.COLOR_YUV2BGR_YV12}

if "OPENCV_LOG_LEVEL" not in os.environ:  # what goes wrong is said here, in a sentence
    # OpenCV before 4.13, and after
    set_level = getattr(cv2, "setLogLevel", None) or getattr(getattr(cv2.utils, "logging", None), "setLogLevel", None)
    if set_level:
        set_level(0)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class NotYet(InputError):
    """A live source does not answer, but may later."""


# ---- opening ----

def list_pictures(source: str) -> Optional[List[str]]:
    """The pictures of a picture's path, a folder, a glob or a pattern like img_%03d.jpg, in order; None for other
    sources."""
    source = local(source)
    if os.path.isdir(source):
        found = sorted(entry.path for entry in os.scandir(source) if is_picture(entry.name))
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
        names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        matches = sorted(filter(None, map(pattern.fullmatch, names)), key=lambda match: int(match.group(1)))
        found = [os.path.join(folder, match.group()) for match in matches]
    elif glob.has_magic(source):
        found = sorted(filter(os.path.isfile, glob.glob(source)))
    else:
        return None
    if not found:
        raise InputError(f"{source}: no picture has such a name.")
    return found


def open_source(source: Any) -> "Video":
    """The opened Video or Pictures of a file, folder, camera number, URL or GStreamer pipeline.

    Raises NotYet where a live source does not answer, and InputError where it never can.
    """
    source = str(source)
    check_utf8(source)
    if source.isdigit() or source.startswith("/dev/"):
        return Video(open_camera(source), source)
    if " ! " in source:
        return Video(open_pipeline(source), source)
    if "://" in source and not source.startswith("file://"):
        return Video(open_url(source), source)
    pictures, path = list_pictures(source), local(source)
    if pictures is not None:
        return Pictures(pictures)
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file.")
    capture = cv2.VideoCapture(path)
    if not capture.isOpened():
        raise InputError(f"{path}: not a video that OpenCV can read.")
    return Video(capture, source)


def open_camera(source: str) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if capture.isOpened():
        return capture
    device = f"/dev/video{source}" if source.isdigit() else source
    if os.path.exists(device):
        raise NotYet(f"{source}: the camera is in use, or is none.")
    raise InputError(f"{source}: there is no camera of that number, or it is in use." if source.isdigit()
                     else f"{source}: no such camera.")


def open_url(source: str) -> cv2.VideoCapture:
    problem = malformed(source)
    if problem:
        raise InputError(f"{hide(source)}: {problem}.")
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * TIMEOUT]
    capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        from sources.refusal import refusal  # only here, for it is needed only where something fails
        reason = refusal(source)
        if reason:
            raise InputError(f"{hide(source)}: {reason}.")
        raise NotYet(f"{hide(source)}: cannot be reached, or sends no video.")
    return capture


def malformed(source: str) -> Optional[str]:
    """What is wrong with a URL as such, or None."""
    scheme = source.split("://")[0]
    if scheme.lower() not in SCHEMES:
        return f"{scheme}:// is none of the kinds of URL that are read ({', '.join(SCHEMES[:6])}, ...)"
    if re.search(r"\s", source):
        return "a URL has no spaces (write %20)"
    try:
        parts = urlsplit(source)
        if not parts.hostname and scheme.lower() not in ("udp", "rtp", "srt"):  # which may listen
            return "the URL names no host"
        parts.port  # noqa: B018  raises where it is none
    except ValueError:
        return "not a URL: behind the host's : stands its port, a number up to 65535"
    return None


def open_pipeline(source: str) -> cv2.VideoCapture:
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise InputError(f"{hide(source)}: a GStreamer pipeline, and this OpenCV is built without GStreamer, as pip's "
                         f"are. Debian's has it: apt-get install python3-opencv, and a venv with "
                         f"--system-site-packages and without pip's opencv-python.")
    if not re.search(r"\bappsink\b", source):
        raise InputError(f"{hide(source)}: a GStreamer pipeline must end in \"! appsink\", which hands out the frames.")
    capture = cv2.VideoCapture(source, cv2.CAP_GSTREAMER)
    if capture.isOpened():
        return capture
    if shutil.which("gst-inspect-1.0"):
        words = [part.split()[0] for part in re.split(r"\s!\s", source) if part.split()]
        elements = [word for word in words if re.fullmatch(r"[a-z]\w*", word)]
        missing = [element for element in elements
                   if subprocess.run(["gst-inspect-1.0", "--exists", element], capture_output=True).returncode]
        if missing:
            raise InputError(f"{hide(source)}: this GStreamer has no {', '.join(missing)}.")
    from sources.refusal import answers, refusal
    url = re.search(r"\b(rtsps?|https?)://[^\s\"']+", source)
    reason = url and refusal(url.group())
    if url and not reason and not answers(url.group()):
        raise NotYet(f"{hide(source)}: GStreamer gets no picture from it, for the host does not answer.")
    if reason:
        raise InputError(f"{hide(source)}: {reason}.")
    raise InputError(f"{hide(source)}: GStreamer cannot run this pipeline, or gets no picture from it.")


# ---- reading ----

def frames_of(capture: Any) -> Iterator[np.ndarray]:
    """The frames of a cv2.VideoCapture, until there are no more."""
    while True:
        ok, frame = capture.read()
        if not ok:
            return
        yield frame



class Video:
    """An opened video, camera or broadcast. Used by one thread at a time.

    live: whether frames come whether wanted or not; total: frames that it has, 0 where nobody knows; fps: as it says of
    itself; time: of the picture read last in seconds, Unix time of a live one; file: its name, of pictures only.
    """

    file = None

    def __init__(self, capture: Any, source: str):
        self.capture, self.source = capture, source
        self.total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.fps = capture.get(cv2.CAP_PROP_FPS)
        self.size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        # A file, even at a URL, has a number of frames; a pipeline's may be unknown.
        self.live = source.isdigit() or source.startswith("/dev/") or not self.total and (
            "://" in source and " ! " not in source and not source.startswith("file://")
            or " ! " in source and not re.search(r"\b(filesrc|multifilesrc|num-buffers)\b", source))
        self.time = 0.0

    def grab(self) -> bool:
        """Go on by a frame, without decoding it into a picture. False at the end."""
        return self.capture.grab()

    def retrieve(self) -> Optional[np.ndarray]:
        """The picture of the frame just grabbed, (h, w, 3) uint8 BGR as a rule, or None."""
        ok, picture = self.capture.retrieve()
        return self.as_picture(picture) if ok else None

    def now(self) -> float:
        """The time of the frame just grabbed."""
        self.time = time.time() if self.live else self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return self.time

    def read(self) -> Optional[np.ndarray]:
        ok, picture = self.capture.read()
        if not ok:
            return None
        self.now()
        return self.as_picture(picture)

    def as_picture(self, picture: np.ndarray) -> np.ndarray:
        """What a decoder gives as brightness above colours at half the size (NV12, I420), as BGR; the rest as it is."""
        rows, columns = picture.shape[:2]
        if picture.shape[2:] not in ((), (1,)) or rows % 3 or columns % 2 or 2 * rows != 3 * self.size[1]:
            return picture
        code = int(self.capture.get(cv2.CAP_PROP_FOURCC)) & 0xffffffff
        named = re.search("|".join(YUV), self.source) or re.search("|".join(YUV),
                                                                   code.to_bytes(4, "little").decode("latin-1"))
        if named:
            return cv2.cvtColor(picture, YUV[named.group()])
        # Nobody says which: in NV12 U and V stand in turns, so that a value is likelier to be like the next but one.
        colours = picture[rows * 2 // 3:].reshape(-1, columns).astype(np.int16)
        near, next_but_one = (np.abs(colours[:, step:] - colours[:, :-step]).mean() for step in (1, 2))
        return cv2.cvtColor(picture, YUV["NV12" if next_but_one < near else "I420"])

    def release(self) -> None:
        self.capture.release()


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
        picture = cv2.imread(path)
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
