"""Files, cameras, URLs and GStreamer pipelines, opened and read by OpenCV."""
import os
import re
import shutil
import subprocess
import threading
import time
from typing import Any, Callable, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from rknnmodel import InputError
from sources.names import NotYet, hide
from sources.pace import Pace

TIMEOUT = 5        # seconds after which a URL that sends nothing counts as gone
IMMINENT = 0.015   # seconds that a context waits for a frame that is being grabbed
YUV = {"NV12": cv2.COLOR_YUV2BGR_NV12, "NV21": cv2.COLOR_YUV2BGR_NV21, "I420": cv2.COLOR_YUV2BGR_I420,
       "YU12": cv2.COLOR_YUV2BGR_I420, "YV12": cv2.COLOR_YUV2BGR_YV12}

if "OPENCV_LOG_LEVEL" not in os.environ:  # what goes wrong is said here, in a sentence
    # OpenCV before 4.13, and after
    set_level = getattr(cv2, "setLogLevel", None) or getattr(getattr(cv2.utils, "logging", None), "setLogLevel", None)
    if set_level:
        set_level(0)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Camera(NamedTuple):
    """What is asked of a USB camera; None: what it does by itself. size: (width, height) in pixels; fps: frames a
    second; format: its four letters, MJPG or YUYV."""

    size: Optional[Tuple[int, int]] = None
    fps: Optional[float] = None
    format: Optional[str] = None


def parse_camera(size: Any = None, fps: Optional[float] = None, form: Optional[str] = None) -> Camera:
    """The Camera of --camera-size ("1920x1080", or a pair), --camera-fps and --camera-format. Raises InputError."""
    if size is not None:
        text = size if isinstance(size, str) else "x".join(map(str, size)) if isinstance(size, (list, tuple)) else ""
        found = re.fullmatch(r"([1-9]\d{0,4})[xX*]([1-9]\d{0,4})", text.strip())
        if not found:
            raise InputError(f"--camera-size {size}: width x height in pixels are needed, as in 1920x1080.")
        size = int(found.group(1)), int(found.group(2))
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"--camera-fps {fps:g}: more than 0 frames a second, and at most 1000, are needed.")
    if form is not None and not re.fullmatch(r"[A-Za-z0-9 ]{4}", form):
        raise InputError(f"--camera-format {form}: the four letters of a format are needed, as in MJPG or YUYV.")
    return Camera(size, fps, form and form.upper())


# ---- opening ----

def open_camera(source: str, camera: Optional[Camera] = None) -> Tuple[cv2.VideoCapture, Optional[str]]:
    """The opened camera, and what it does otherwise than it was asked: a sentence's end, or None."""
    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if capture.isOpened():
        return capture, ask(capture, camera or Camera())
    device = f"/dev/video{source}" if source.isdigit() else source
    if os.path.exists(device):
        raise NotYet(f"{source}: the camera is in use, or is none.")
    raise InputError(f"{source}: there is no camera of that number, or it is in use." if source.isdigit()
                     else f"{source}: no such camera.")


def ask(capture: Any, camera: Camera) -> Optional[str]:
    """Set a camera's format, size and rate, in this order, for the format decides which of the others it has."""
    (width, height), rate = camera.size or (None, None), camera.fps
    if camera.format:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*camera.format))
    if camera.size:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    if rate:
        capture.set(cv2.CAP_PROP_FPS, rate)
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xffffffff
    form = code.to_bytes(4, "little").decode("latin-1")
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    given = capture.get(cv2.CAP_PROP_FPS)
    other = []
    if camera.size and size != camera.size:
        other.append("{}x{} pixels, not {}x{}".format(*size, *camera.size))
    if rate and abs(given - rate) > 0.5:
        other.append(f"{given:g} frames a second, not {rate:g}")
    if camera.format and form != camera.format:
        other.append(f"{form if form.isprintable() else 'another format'}, not {camera.format}")
    return f"the camera gives {'; '.join(other)}" if other else None


def open_url(source: str) -> cv2.VideoCapture:
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * TIMEOUT]
    capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        raise unreachable(source)
    return capture


def unreachable(source: str) -> InputError:
    """Why a URL did not open: a NotYet where it may open later."""
    from sources.refusal import refusal  # only here, for it is needed only where something fails
    reason = refusal(source)
    return InputError(f"{hide(source)}: {reason}.") if reason else \
        NotYet(f"{hide(source)}: cannot be reached, or sends no video.")


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

def is_live(source: str, total: int) -> bool:
    """Whether frames of a source come whether wanted or not. A file, even at a URL, has a number of frames; a
    pipeline's may be unknown."""
    return source.isdigit() or source.startswith("/dev/") or not total and (
        "://" in source and " ! " not in source and not source.startswith("file://")
        or " ! " in source and not re.search(r"\b(filesrc|multifilesrc|num-buffers)\b", source))


class Video:
    """An opened video, camera or broadcast. Read by one thread at a time; what later() gives, any may call.

    live: whether frames come whether wanted or not; total: frames that it has, 0 where nobody knows; fps: as it says of
    itself; time: of the picture read last in seconds, Unix time of a live one; file: its name, of pictures only; note:
    what is to be said of how it was opened, the end of a sentence, or None.
    """

    file = note = None

    def __init__(self, capture: Any, source: str):
        self.capture, self.source = capture, source
        self.total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.fps = capture.get(cv2.CAP_PROP_FPS)
        self.size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.live, self.time, self.pace = is_live(source, self.total), 0.0, Pace()
        # OpenCV has one frame, until it grabs the next: `promised` is the function that may make its picture,
        # `converting` whether it does, `waiter` a streams.Result that has come while the next one is grabbed.
        self.promised: Optional[Callable] = None
        self.waiter, self.grabbing, self.converting, self.changed = None, False, False, threading.Condition()

    def grab(self) -> bool:
        """Go on by a frame, without making it a picture. False at the end."""
        self.withdraw()
        self.grabbing, began = True, time.perf_counter()
        more = self.capture.grab()
        self.grabbing = False
        self.pace.frame(time.perf_counter() - began)
        return more

    def retrieve(self) -> Optional[np.ndarray]:
        """The picture of the frame just grabbed, (h, w, 3) uint8 BGR as a rule, or None."""
        ok, picture = self.capture.retrieve()
        return self.as_picture(picture) if ok else None

    def later(self) -> Callable[[Any], Optional[np.ndarray]]:
        """A function that makes the picture of the frame just grabbed, in whichever thread wants it, for a
        streams.Result. While the next one is being grabbed it waits a moment for that: None where it does not come."""
        def picture(result: Any) -> Optional[np.ndarray]:
            with self.changed:
                if self.promised is picture:
                    self.promised, self.converting = None, True
                elif self.grabbing and self.waiter is None and self.pace.waits:  # it may come any moment
                    self.waiter = result
                    self.changed.wait_for(lambda: self.waiter is not result, IMMINENT)
                    if self.waiter is result:
                        self.waiter = None
                        return None
                else:
                    return None
            try:
                return self.retrieve()
            finally:
                with self.changed:
                    self.converting = False
                    self.changed.notify_all()
        self.promised = picture
        return picture

    def hand_over(self, number: int, moment: float, received: float) -> bool:
        """Give the frame just grabbed to a Result that waits for it. False where none does."""
        with self.changed:
            result, self.waiter = self.waiter, None
            if result is None:
                return False
            result.number, result.time, result.received = number, moment, received
            self.converting = True
            self.changed.notify_all()
            return True

    def hold(self) -> None:
        """Let the frame that later() promised wait to be taken, until the next one may have come."""
        with self.changed:
            left = self.pace.left()
            taken = self.changed.wait_for(lambda: self.promised is None and not self.converting, left)
            self.pace.waited = left > 0 and not taken

    def withdraw(self) -> None:
        with self.changed:
            self.promised = None
            self.changed.wait_for(lambda: not self.converting)

    def now(self) -> float:
        """The time of the frame just grabbed."""
        self.time = time.time() if self.live else self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return self.time

    def read(self) -> Optional[np.ndarray]:
        """The next frame's picture, or None at the end."""
        self.withdraw()
        ok, picture = self.capture.read()
        if not ok:
            return None
        self.now()
        return self.as_picture(picture)

    def rewind(self) -> None:
        """Begin again at the first frame."""
        self.capture.set(cv2.CAP_PROP_POS_FRAMES, 0)

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
        self.withdraw()
        self.capture.release()
