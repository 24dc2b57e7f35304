"""Writes the pictures of a video: H264Writer with PyAV, ConstantRateWriter with OpenCV."""
from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Optional, Tuple

import cv2
import numpy as np

from sources.file_names import for_opencv
from vision.errors import InputError

TICKS_PER_SECOND = 90000  # the unit of a video's timestamps
CODECS = "h264_rkmpp", "libx264", "h264"  # tried in this order; the first is the board's encoder
MAX_RATE, PLAIN_RATE = 240, 60  # frames per second with OpenCV
MAX_GAP_SECONDS = 10  # the longest gap that a video of constant frame rate fills with copies


class ConstantRateWriter:
    """Writes a video with OpenCV, at a constant frame rate: pictures are repeated in gaps.

    A rate above MAX_RATE is rarely real (browsers record with 1000), so the pictures are then saved
    at PLAIN_RATE, at the times at which they are shown.
    """

    def __init__(self, path: str, size: Tuple[int, int], fps: float, live: bool):
        self.path, self.live, self.written = path, live, 0
        # How many pictures the video may be ahead of the clock; a file's are all written.
        self.ahead = 1.0 if live else 0.0 if fps > MAX_RATE else math.inf
        self.fps = mpeg4_rate(PLAIN_RATE if fps > MAX_RATE else fps)
        self.previous: Optional[np.ndarray] = None
        code = "MJPG" if path.lower().endswith(".avi") else "mp4v"
        with for_opencv(path) as name:
            self.writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*code), self.fps, size)
        if not self.writer.isOpened():
            raise InputError(f"--save {path}: OpenCV cannot write a video of {size[0]}x{size[1]} "
                             "pixels there.")

    def write(self, picture: np.ndarray, seconds: float) -> None:
        due = round(seconds * self.fps)  # the number of pictures before this one
        if self.previous is not None and due > self.written:
            gap = min(due - self.written, round(MAX_GAP_SECONDS * self.fps))
            # A gap of one picture is normal for a live source, whose rate is not exact.
            if gap > 1 or not self.live:
                for _ in range(gap):
                    self.writer.write(self.previous)
                self.written = due
        if self.written <= due + self.ahead:
            self.writer.write(picture)
            self.written += 1
        self.previous = picture

    def close(self) -> None:
        """Finish the file. Raises InputError if it cannot be played."""
        if self.writer.isOpened():
            self.writer.release()
            with for_opencv(self.path) as name:
                complete = cv2.VideoCapture(name).isOpened()
            if not complete:  # OpenCV does not report a full disk
                raise InputError(f"--save {self.path}: could not be finished and cannot be "
                                 "played: its pictures are lost.")


def mpeg4_rate(fps: float) -> float:
    """The rate, or the next higher one that MPEG-4 can express: 65,535 ticks per second at most.

    OpenCV makes a fraction of it with 1, 10, 100 or 1000 as denominator.
    """
    denominator = 1000 if fps < 65 else 100
    return math.ceil(fps * denominator - 0.1) / denominator


def open_h264(path: str, size: Tuple[int, int], fps: float) -> Optional[H264Writer]:
    """Open an H264Writer. Returns None without PyAV or without an H.264 encoder."""
    try:
        import av
    except ImportError:
        return None
    for codec in CODECS:
        try:
            return H264Writer(av, codec, path, size, fps)
        except (ValueError, av.error.FFmpegError):  # ValueError: FFmpeg lacks this codec
            continue
    return None


class H264Writer:
    """Writes a video with PyAV, each picture with its own time.

    The file is fragmented: what has been written can be played even if the program is killed.
    """

    def __init__(self, av: Any, codec: str, path: str, size: Tuple[int, int], fps: float):
        self.av, self.path = av, path
        if path.lower().endswith(".mp4"):
            options = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
        else:
            options = {"cluster_time_limit": "100"}  # milliseconds
        av.codec.CodecContext.create(codec, "w")  # raises before a file is created
        self.container = av.open(path, "w", options={**options, "flush_packets": "1"})
        try:
            self.stream = self.container.add_stream(
                codec, rate=Fraction(fps).limit_denominator(1001))
            self.stream.width, self.stream.height = size
            self.stream.pix_fmt = "nv12" if codec == "h264_rkmpp" else "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)
            self.stream.codec_context.gop_size = max(1, min(60, round(2 * fps)))
            if codec == "libx264":  # zerolatency: each picture is written at once
                self.stream.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "23"}
            self.stream.codec_context.open()
        except BaseException:
            self.container.close()
            raise
        self.duration = round(TICKS_PER_SECOND / fps)
        self.closed, self.pts = False, -1

    def write(self, picture: np.ndarray, seconds: float) -> None:
        frame = self.av.VideoFrame.from_ndarray(picture, format="bgr24")
        self.pts = max(round(seconds * TICKS_PER_SECOND), self.pts + 1)  # FFmpeg wants increasing
        frame.pts, frame.time_base = self.pts, Fraction(1, TICKS_PER_SECOND)
        self._mux(self.stream.encode(frame))

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            packet.duration = self.duration
            self.container.mux(packet)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                self._mux(self.stream.encode())
                self.container.close()
            except OSError as error:
                raise InputError(f"--save {self.path}: cannot be finished "
                                 f"({error.strerror or error}). The last pictures "
                                 "may be missing.") from None
