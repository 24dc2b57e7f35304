"""Files and URLs read by PyAV (`pip install av`), or by a board's pyav-rkmpp, which has the
hardware decoder. Frames, times and numbers are the same as OpenCV's, except the colours of Motion
JPEG: OpenCV's JPEG decoder decodes it here, and interpolates colours between pixels."""
from __future__ import annotations

import collections
import functools
import os
import threading
import time
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from sources.containers import count_is_exact
from sources.key_frames import KeyFrames
from sources.names import NoHardware, NotReadable, is_url, local_path
from sources.opencv import is_live
from sources.timeouts import Timeouts
from sources.yuv import frame_of_planes
from vision.frame import Frame, picture_of
from vision.jpeg import JPEGFrame, jpeg_shape

CODECS = "h264", "hevc", "av1"  # what the board's decoder supports
DEVICE = "/dev/mpp_service"     # the board's decoder
MAX_BROKEN = 64                 # undecodable packets in a row before reading ends, as in OpenCV
ROTATIONS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
# TypeError: this PyAV has no option for choosing a decoder
FAILURES = av.error.FFmpegError, ValueError, RuntimeError, TypeError

_thread = threading.local()  # one converter per thread: making one costs as much as converting


def open_av(source: str, path: str, timeouts: Timeouts, hardware_only: bool,
            max_fps: float | None = None) -> AVVideo:
    """Open a file's path or a URL. The board's decoder decodes it if there is one.

    timeouts: how long to wait for a URL.
    hardware_only: raise NoHardware if there is none. Otherwise the CPU decodes, and `note` says why
        if this FFmpeg is made for such boards.
    max_fps: as open_source() takes it.
    Raises NotReadable if FFmpeg cannot read a video there.
    """
    options: dict[str, Any] = {"max_fps": max_fps, "stop": timeouts.stop}
    plain = open_container(path, timeouts)
    codec = video_of(plain).codec_context.codec
    kind = getattr(codec, "canonical_name", codec.name)
    if kind not in CODECS:
        why = f"the board's decoder does not support {kind} (only {', '.join(CODECS)})"
    elif f"{kind}_rkmpp" not in av.codecs_available:
        why = f"this FFmpeg has no {kind}_rkmpp"
    else:
        plain.close()  # a camera may allow only one connection
        try:
            from av.codec.hwaccel import HWAccel
            hardware = open_container(path, timeouts, video_decoder=f"{kind}_rkmpp",
                                      hwaccel=HWAccel("rkmpp"))
            return AVVideo(hardware, source, hardware=True, **options)
        except (ImportError, NotReadable) as error:
            reason = error if os.path.exists(DEVICE) else f"there is no {DEVICE}"
            why = f"the board's decoder {kind}_rkmpp cannot be opened ({reason})"
            if hardware_only:
                raise NoHardware(why) from None
            plain = open_container(path, timeouts)
    if hardware_only:
        plain.close()
        raise NoHardware(why)
    for_boards = "h264_rkmpp" in av.codecs_available
    note = f"PyAV decodes it on the CPU because {why}" if for_boards else None
    return AVVideo(plain, source, note=note, **options)


def open_container(path: str, timeouts: Timeouts, **options: Any) -> Any:
    """The av.Container of a video. Raises NotReadable."""
    if is_url(path):
        options.update(timeout=(timeouts.open_timeout, timeouts.read_timeout()),
                       options={"rtsp_flags": "prefer_tcp"})  # as OpenCV does
    if int(av.__version__.split(".")[0]) < 19:  # later versions do this by themselves
        options.update(metadata_errors="ignore")
    try:
        container = av.open(path, **options)
    except FAILURES as error:
        raise NotReadable(getattr(error, "strerror", None) or error) from None
    if not container.streams.video:
        container.close()
        raise NotReadable("it contains no video")
    if video_of(container).codec_context is None:
        container.close()
        raise NotReadable("FFmpeg has no decoder for it")
    return container


def video_of(container: Any) -> Any:
    """The container's main video stream, not a cover picture."""
    best = getattr(container.streams, "best", None)  # older versions of PyAV lack it
    return best("video") if best else container.streams.video[0]


class AVVideo:
    """What open_av() opens: a Source (sources/protocol.py). Raises NotReadable if there is no
    frame."""

    file: str | None = None

    def __init__(self, container: Any, source: str, hardware: bool = False,
                 note: str | None = None, max_fps: float | None = None,
                 stop: threading.Event | None = None):
        self.container, self.source, self.note, self.time = container, source, note, 0.0
        self.skipped, self.stop = 0, stop or threading.Event()
        self.stream, self.hardware = video_of(container), hardware
        stream: Any = self.stream
        self.fps = float(stream.guessed_rate or stream.average_rate or 0)
        seconds = (container.duration or 0) / av.time_base
        if seconds <= 0 and stream.duration:
            seconds = float(stream.duration * stream.time_base)
        self.total = stream.frames or max(0, int(seconds * self.fps + 0.5))
        self.number = 0  # of frames since the start
        self.live = is_live(source, self.total)
        self.motion_jpeg = stream.codec_context.name == "mjpeg"
        if not hardware:  # with frame threads, each frame comes out several frames later
            stream.thread_type = "SLICE" if self.live or self.motion_jpeg else "AUTO"
        self.packets = container.demux(stream)
        self.keys = KeyFrames(stream.codec_context, max_fps, self.fps)
        self.decoded: collections.deque = collections.deque()
        self.packet: Any = None   # decoded last
        self.grabbed: Any = None  # a frame, or a packet that is a JPEG
        self.jpegs = False        # packets that are JPEGs are not decoded
        self.failure: Any = None
        if not self.grab():  # only now it is known whether the video can be decoded
            container.close()
            raise NotReadable(self.failure or "it has no frame")
        first: Any = self.grabbed
        self.number = 0
        self.turn, width, height = turn_of(first, stream), first.width, first.height
        self.size = (height, width) if self.turn in (90, 270) else (width, height)
        self.jpegs = self.motion_jpeg and not self.turn
        self.decoded.appendleft(self.packet if self.is_jpeg(self.packet) else first)

    def grab(self) -> bool:
        self.skipped = broken = 0
        while not self.decoded:
            try:
                packet = next(self.packets)
            except (StopIteration, *FAILURES):
                if not self.live and not count_is_exact(local_path(self.source)):
                    self.total = self.number
                return False
            if self.keys.skips(packet):
                self.number, self.skipped = self.number + 1, self.skipped + 1
                if self.stop.is_set():
                    return False
                continue
            if self.is_jpeg(packet):
                self.decoded.append(packet)
                continue
            self.packet = packet
            try:
                self.decoded.extend(self.keys.decode(packet))
                broken = 0
            except FAILURES as error:
                broken, self.failure = broken + 1, getattr(error, "strerror", None) or str(error)
                if broken > MAX_BROKEN:
                    return False
        self.grabbed = frame = self.decoded.popleft()
        self.number += 1
        if self.live:
            self.time = time.time()
        else:
            ticks = frame.pts if frame.pts is not None else frame.dts or 0
            self.time = float((ticks - (self.stream.start_time or 0)) * self.stream.time_base)
        return True

    def frame(self) -> Frame:
        # PyAV's frames stay valid: the pool can convert those that it takes, in its own threads.
        if isinstance(self.grabbed, av.Packet):
            return JPEGFrame(np.frombuffer(bytes(self.grabbed), np.uint8), (*self.size[::-1], 3))
        make_bgr = functools.partial(as_picture, self.grabbed, self.turn)
        if self.turn:
            return Frame((*self.size[::-1], 3), make_bgr)
        return frame_of_planes(self.grabbed, make_bgr)

    def is_jpeg(self, packet: Any) -> bool:
        """Whether a packet is a JPEG that can be decoded alone: not cut off, and not one of the two
        of an interlaced frame."""
        data = bytes(packet) if self.jpegs else b""
        return (data.rstrip(b"\0").endswith(b"\xff\xd9")
                and jpeg_shape(data) == (*self.size[::-1], 3))

    def retrieve(self) -> np.ndarray | None:
        return picture_of(self.frame())

    def read(self) -> np.ndarray | None:
        picture = None
        while picture is None and self.grab():
            picture = self.retrieve()
        return picture

    @property
    def decodes_on_cpu(self) -> bool:
        return not (self.note or self.hardware)

    def rewind(self) -> None:
        """Go back to the first frame of a file."""
        self.container.seek(self.stream.start_time or 0, stream=self.stream)
        self.packets = self.container.demux(self.stream)
        self.keys.restart()
        self.decoded.clear()
        self.number = 0

    def release(self) -> None:
        self.grabbed = None
        self.decoded.clear()
        self.container.close()


def as_picture(frame: Any, turn: int) -> np.ndarray:
    """A decoded frame as a new array (h, w, 3) uint8 BGR, turned clockwise by `turn` degrees."""
    if not hasattr(_thread, "converter"):
        _thread.converter = VideoReformatter()
    picture = _thread.converter.reformat(frame, format="bgr24").to_ndarray()
    if turn:
        return cv2.rotate(picture, ROTATIONS[turn])
    return np.require(picture, requirements=["C", "W"])


def turn_of(frame: Any, stream: Any) -> int:
    """Degrees by which to turn frames clockwise, as a phone's videos need: 0, 90, 180 or 270."""
    angle = getattr(frame, "rotation", None)  # counter-clockwise
    if angle is None:  # before PyAV 14
        angle = (getattr(stream, "side_data", None) or {}).get("DISPLAYMATRIX", 0)
    turn = -round(angle) % 360
    return turn if turn in ROTATIONS else 0
