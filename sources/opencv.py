"""Files, cameras, URLs and GStreamer pipelines, opened and read by OpenCV."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from typing import Any, NamedTuple

import cv2
import numpy as np

from sources.containers import count_is_exact
from sources.file_names import for_opencv
from sources.names import SourceUnavailable, hide, is_camera, is_number, is_url, local_path
from sources.yuv import frame_of_array, guessed_format, named_format
from vision.errors import InputError
from vision.frame import Frame, picture_of
from vision.jpeg import frame_of_file

if "OPENCV_LOG_LEVEL" not in os.environ:  # our own messages say what went wrong
    # OpenCV before 4.13, and after
    set_level = (getattr(cv2, "setLogLevel", None)
                 or getattr(getattr(cv2.utils, "logging", None), "setLogLevel", None))
    if set_level:
        set_level(0)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# Without this, OpenCV opens one video at a time: a camera that does not answer delays the others.
# OpenCV 4.8 or later.
os.environ.setdefault("OPENCV_FFMPEG_IS_THREAD_SAFE", "1")


# Camera formats in which OpenCV returns frames as they are; they are converted to BGR when needed.
CAMERA_FORMATS = "MJPG", "YUYV", "NV12"


class CameraSettings(NamedTuple):
    """What to request from a USB camera; None: its default. size: (width, height) in pixels;
    fps: frames per second; format: four letters, such as MJPG or YUYV."""

    size: tuple[int, int] | None = None
    fps: float | None = None
    format: str | None = None


def parse_camera(size: Any = None, fps: float | None = None,
                 form: str | None = None) -> CameraSettings:
    """The CameraSettings of --camera-size ("1920x1080", or a pair of numbers), --camera-fps and
    --camera-format. Raises InputError."""
    if size is not None:
        text = "x".join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)
        found = re.fullmatch(r"([1-9]\d{0,4})[xX*]([1-9]\d{0,4})", text.strip())
        if not found:
            raise InputError(f"--camera-size {size}: must be width x height in pixels, such as "
                             f"1920x1080.")
        size = int(found.group(1)), int(found.group(2))
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"--camera-fps {fps:g}: must be more than 0 and at most 1000 frames per "
                         f"second.")
    if form is not None and not re.fullmatch(r"[A-Za-z0-9 ]{4}", form):
        raise InputError(f"--camera-format {form}: must be four letters, such as MJPG or YUYV.")
    return CameraSettings(size, fps, form and form.upper())


# ---- opening ----

def open_camera(source: str, camera: CameraSettings | None = None
                ) -> tuple[cv2.VideoCapture, str | None]:
    """The opened camera, and a note if it does not deliver what `camera` requests, else None."""
    number = int(source) if is_number(source) and len(source) < 10 else None
    capture = cv2.VideoCapture(source if number is None else number)
    if capture.isOpened():
        note = configure(capture, camera or CameraSettings())
        if capture.getBackendName() == "V4L2" and form_of(capture) in CAMERA_FORMATS:
            capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        return capture, note
    if os.path.exists(source if number is None else f"/dev/video{number}"):
        raise SourceUnavailable(f"{source}: the camera is in use, or this device is not a camera; "
                                "main.py --doctor lists the cameras.")
    raise InputError(f"{source}: there is no such camera; main.py --doctor lists the cameras.")


def configure(capture: cv2.VideoCapture, camera: CameraSettings) -> str | None:
    """Set a camera's format, size and rate. A note if the camera chose something else."""
    # In this order: the possible sizes and rates depend on the format.
    if camera.format:
        capture.set(cv2.CAP_PROP_FOURCC, fourcc(camera.format))
    if camera.size:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, camera.size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, camera.size[1])
    if camera.fps:
        capture.set(cv2.CAP_PROP_FPS, camera.fps)
    form, size, fps = form_of(capture), size_of(capture), capture.get(cv2.CAP_PROP_FPS)
    other = []
    if camera.size and size != camera.size:
        other.append("{}x{} pixels, not {}x{}".format(*size, *camera.size))
    if camera.fps and abs(fps - camera.fps) > 0.5:
        other.append(f"{fps:g} frames per second, not {camera.fps:g}")
    if camera.format and form != camera.format:
        other.append(f"{form if form.isprintable() else 'another format'}, not {camera.format}")
    return f"the camera delivers {'; '.join(other)}" if other else None


def fourcc(form: str) -> int:
    """The code of a format's four letters."""
    return int.from_bytes(form.encode("latin-1"), "little")


def form_of(capture: cv2.VideoCapture) -> str:
    """The four letters of the format that a source gives."""
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xffffffff
    return code.to_bytes(4, "little").decode("latin-1")


def size_of(capture: cv2.VideoCapture) -> tuple[int, int]:
    """(width, height) in pixels."""
    return (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))


def open_file(path: str) -> cv2.VideoCapture:
    with for_opencv(path) as name:
        return cv2.VideoCapture(name)


def open_url(source: str, opening: float, reading: float, slow: bool) -> cv2.VideoCapture:
    """opening, reading: seconds without data after which OpenCV gives up. slow: whether the
    pictures may come slowly."""
    options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(1000 * max(opening, 1)),
               cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(1000 * reading)]
    if slow and hasattr(cv2, "CAP_PROP_N_THREADS"):  # OpenCV 4.7
        options += [cv2.CAP_PROP_N_THREADS, 1]  # N threads give a picture N - 1 pictures later
    capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, options)
    # At its timeout OpenCV opens also a source whose size it does not know, and then decodes none.
    if not (capture.isOpened() and all(size_of(capture))):
        capture.release()
        raise unreachable(source)
    return capture


def unreachable(source: str) -> InputError:
    """Why a URL did not open: SourceUnavailable if another attempt may succeed."""
    from sources.url_probe import refusal  # only here: it is needed only after a failure
    reason = refusal(source)
    if reason:
        return InputError(f"{hide(source)}: {reason}.")
    return SourceUnavailable(f"{hide(source)}: cannot be reached, or sends no video.")


def open_pipeline(source: str) -> cv2.VideoCapture:
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise InputError(f"{hide(source)}: this OpenCV is built without GStreamer, as all from pip "
                         f"are. Install Debian's (apt-get install python3-opencv) and use a venv "
                         f"with --system-site-packages and without pip's opencv-python.")
    if not re.search(r"\bappsink\b", source):
        raise InputError(f"{hide(source)}: a GStreamer pipeline must end in \"! appsink\".")
    capture = cv2.VideoCapture(source, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise pipeline_error(source)
    return capture


def pipeline_error(source: str) -> InputError:
    """Why a pipeline did not open: SourceUnavailable if another attempt may succeed."""
    from sources.url_probe import answers, refusal  # only here: see unreachable()
    if shutil.which("gst-inspect-1.0"):
        words = [part.split()[0] for part in re.split(r"\s!\s", source) if part.split()]
        missing = [word for word in words if re.fullmatch(r"[a-z]\w*", word) and subprocess.run(
            ["gst-inspect-1.0", "--exists", word], capture_output=True).returncode]
        if missing:
            return InputError(f"{hide(source)}: this GStreamer has no {', '.join(missing)}.")
    found = re.search(r"\b(rtsps?|https?)://[^\s\"']+", source)
    reason = refusal(found.group()) if found else None
    if reason:
        return InputError(f"{hide(source)}: {reason}.")
    if found and not answers(found.group()):
        return SourceUnavailable(f"{hide(source)}: the host does not answer.")
    return InputError(f"{hide(source)}: GStreamer cannot run this pipeline, or it gives no "
                      f"picture.")


# ---- reading ----

def is_live(source: str, total: int) -> bool:
    """Whether frames arrive at their own pace. total: number of frames according to the reader; a
    file, even one behind a URL, has one."""
    if is_camera(source):
        return True
    if " ! " in source:
        return not total and not re.search(r"\b(filesrc|multifilesrc|num-buffers)\b", source)
    return not total and is_url(source)


class Video:
    """A video, camera or broadcast that OpenCV reads: a Source (sources/protocol.py).

    timeout: seconds after which OpenCV gives up reading a URL; None for other sources.
    """

    file: str | None = None
    skipped = 0

    def __init__(self, capture: cv2.VideoCapture, source: str, note: str | None = None,
                 timeout: float | None = None):
        self.capture, self.source, self.note = capture, source, note
        self.timeout, self.number = timeout, 0  # number: of frames since the start
        self.total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.fps = capture.get(cv2.CAP_PROP_FPS)
        self.size = size_of(capture)
        self.live, self.time = is_live(source, self.total), 0.0

    def grab(self) -> bool:
        began = time.perf_counter()
        more = self.capture.grab()
        if self.live and self.timeout and time.perf_counter() > began + 0.9 * self.timeout:
            return False  # OpenCV gives two old frames of a silent RTSP source after its timeout
        if not more:
            if not self.live and not count_is_exact(local_path(self.source)):
                self.total = self.number
            return False
        self.number += 1
        self.time = (time.time() if self.live
                     else self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        return True

    def frame(self) -> np.ndarray | Frame | None:
        ok, picture = self.capture.retrieve()  # a copy: OpenCV keeps one frame only
        if not ok:
            return None
        if picture.shape[0] == 1 and form_of(self.capture) == "MJPG":
            return frame_of_file(picture.reshape(-1))
        form = self.format_of(picture)
        return frame_of_array(picture, form) if form else picture

    def retrieve(self) -> np.ndarray | None:
        return picture_of(self.frame())

    def read(self) -> np.ndarray | None:
        return self.retrieve() if self.grab() else None

    @property
    def decodes_on_cpu(self) -> bool:
        return not (self.note or " ! " in self.source or is_camera(self.source))

    def rewind(self) -> None:
        """Go back to the first frame of a file."""
        self.number = 0
        self.capture.set(cv2.CAP_PROP_POS_FRAMES, 0)

    def format_of(self, picture: np.ndarray) -> str | None:
        """The format of a picture if it is in YUV, such as "NV12", else None."""
        rows, columns = picture.shape[:2]
        if picture.shape[2:] == (2,):
            return named_format(self.source, form_of(self.capture)) or "YUYV"
        if (picture.shape[2:] not in ((), (1,)) or rows % 3 or columns % 2
                or 2 * rows != 3 * self.size[1]):
            return None
        return named_format(self.source, form_of(self.capture)) or guessed_format(picture)

    def release(self) -> None:
        self.capture.release()
