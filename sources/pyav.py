"""Files and URLs read by PyAV (`pip install av`), or on a board by its pyav-rkmpp, which has the hardware decoder.

The frames are OpenCV's, and everything else that is said of them, too. PyAV's frames are each other's neighbours in
memory and not one buffer: any of them may be made a picture at any time.
"""
import collections
import os
import threading
import time
from typing import Any, Callable, Optional

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from sources.names import NoHardware, NotRead
from sources.opencv import TIMEOUT, Video, is_live

CODECS = "h264", "hevc", "av1"  # that the board's decoder is asked for
DEVICE = "/dev/mpp_service"     # which it is
BROKEN = 64                     # packets in a row that cannot be decoded, after which no more is tried, as in OpenCV
TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
FAILURES = av.error.FFmpegError, ValueError, RuntimeError, TypeError  # TypeError: a PyAV without a way to choose

_own = threading.local()  # a converter for each thread: to make one costs as much as to convert


def open_av(source: str, path: str, url: bool, hardware_only: bool) -> "AVVideo":
    """The AVVideo of a file's path or a URL, decoded by the board's decoder where there is one.

    hardware_only: raise NoHardware where there is none; else the CPU decodes, and where FFmpeg has such decoders `note`
    says why. Raises NotRead where FFmpeg reads no video.
    """
    plain = open_container(path, url)
    codec = video_of(plain).codec_context.codec
    kind = getattr(codec, "canonical_name", codec.name)
    why = None
    if kind not in CODECS:
        why = f"{kind} is none of what the board's decoder takes ({', '.join(CODECS)})"
    elif f"{kind}_rkmpp" not in av.codecs_available:
        why = f"this FFmpeg has no {kind}_rkmpp"
    else:
        plain.close()  # a camera may allow but one viewer
        try:
            from av.codec.hwaccel import HWAccel
            hardware = open_container(path, url, video_decoder=f"{kind}_rkmpp", hwaccel=HWAccel("rkmpp"))
            return AVVideo(hardware, source, hardware=True)
        except (ImportError, NotRead) as error:
            why = f"{kind}_rkmpp does not open ({error if os.path.exists(DEVICE) else f'there is no {DEVICE}'})"
            plain = None if hardware_only else open_container(path, url)
    if hardware_only:
        if plain is not None:
            plain.close()
        raise NoHardware(why)
    video = AVVideo(plain, source)
    video.note = f"PyAV decodes it on the CPU, for {why}" if "h264_rkmpp" in av.codecs_available else None
    return video


def open_container(path: str, url: bool, **options: Any) -> Any:
    """The av.Container of a video. Raises NotRead."""
    if url:
        options.update(timeout=(TIMEOUT, TIMEOUT), options={"rtsp_flags": "prefer_tcp"})  # as OpenCV does
    if int(av.__version__.split(".")[0]) < 19:  # which ignore what of a file's words is not UTF-8 by themselves
        options.update(metadata_errors="ignore")
    try:
        container = av.open(path, **options)
    except FAILURES as error:
        raise NotRead(getattr(error, "strerror", None) or error) from None
    if not container.streams.video:
        container.close()
        raise NotRead("it has no video")
    return container


def video_of(container: Any) -> Any:
    """Its video, and not the picture of a cover."""
    best = getattr(container.streams, "best", None)  # PyAV of today
    return best("video") if best else container.streams.video[0]


class AVVideo(Video):
    """What open_av() opens: the methods and attributes of sources.Video. Raises NotRead where there is no frame."""

    def __init__(self, container: Any, source: str, hardware: bool = False):
        self.container, self.source, self.file, self.time = container, source, None, 0.0
        self.stream = stream = video_of(container)
        self.fps = float(stream.guessed_rate or stream.average_rate or 0)
        seconds = (container.duration or 0) / av.time_base
        if seconds <= 0 and stream.duration:
            seconds = float(stream.duration * stream.time_base)
        self.total = stream.frames or max(0, int(seconds * self.fps + 0.5))
        self.live = is_live(source, self.total)
        if not hardware:  # threads that decode several frames at once hand each out as many frames later
            stream.thread_type = "SLICE" if self.live else "AUTO"
        self.packets, self.frames, self.frame, self.failure = container.demux(stream), collections.deque(), None, None
        if not self.advance():  # here it is seen whether it can be decoded
            container.close()
            raise NotRead(self.failure or "it has no frame")
        self.frames.appendleft(self.frame)
        self.turn = turn_of(self.frame, stream)
        self.size = (self.frame.width, self.frame.height)[::-1 if self.turn in (90, 270) else 1]

    def grab(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        """Decode the next frame. False at the end, or where nothing comes any more."""
        broken = 0
        while not self.frames:
            try:
                packet = next(self.packets)
            except (StopIteration, *FAILURES):
                return False
            try:
                self.frames.extend(packet.decode())
                broken = 0
            except FAILURES as error:
                broken, self.failure = broken + 1, getattr(error, "strerror", None) or error
                if broken > BROKEN:
                    return False
        self.frame = self.frames.popleft()
        return True

    def retrieve(self) -> Optional[np.ndarray]:
        return as_picture(self.frame, self.turn)

    def later(self) -> Callable[[Any], Optional[np.ndarray]]:
        frame, turn = self.frame, self.turn
        return lambda _: as_picture(frame, turn)

    def hand_over(self, number: int, moment: float, received: float) -> bool:
        return False

    def hold(self) -> None:
        """Nothing need be waited for: the frame is its own."""

    def now(self) -> float:
        since = (self.frame.pts if self.frame.pts is not None else self.frame.dts or 0) - (self.stream.start_time or 0)
        self.time = time.time() if self.live else float(since * self.stream.time_base)
        return self.time

    def read(self) -> Optional[np.ndarray]:
        if not self.grab():
            return None
        self.now()
        return self.retrieve()

    def rewind(self) -> None:
        self.container.seek(self.stream.start_time or 0, stream=self.stream)
        self.packets = self.container.demux(self.stream)
        self.frames.clear()

    def release(self) -> None:
        self.frame = None
        self.frames.clear()
        self.container.close()


def as_picture(frame: Any, turn: int) -> np.ndarray:
    """A decoded frame as (h, w, 3) uint8 BGR, upright, an array of its own that may be drawn on."""
    if not hasattr(_own, "converter"):
        _own.converter = VideoReformatter()
    picture = _own.converter.reformat(frame, format="bgr24").to_ndarray()
    return cv2.rotate(picture, TURNS[turn]) if turn else np.require(picture, requirements=["C", "W"])


def turn_of(frame: Any, stream: Any) -> int:
    """Degrees by which frames are to be turned clockwise, as a phone's are: 0, 90, 180 or 270."""
    angle = getattr(frame, "rotation", None)  # counter-clockwise
    if angle is None:  # before PyAV 14
        angle = (getattr(stream, "side_data", None) or {}).get("DISPLAYMATRIX", 0)
    turn = -round(angle) % 360
    return turn if turn in TURNS else 0
