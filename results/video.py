"""Saves a stream's pictures: to a video that lasts as long as what it shows, or one by one.

    saver = open_saver("out_%Y-%m-%d.mp4", stream)
    saver.write(result); saver.close()
"""
import glob
import os
import shutil
import time
from fractions import Fraction
from typing import Any, List, Optional, Tuple

import cv2
import numpy as np

from rknnmodel import InputError
from sources.names import check_utf8, is_picture, local

RESERVE = 1 << 20         # bytes at least that a disk must have free for the end of a saved video
VIDEOS = (".mp4", ".avi", ".mkv")
CLOCK = 90000             # units of a video's timestamps in a second
CODECS = "h264_rkmpp", "libx264", "h264"  # the board's encoder first, where this FFmpeg has it
FILL = 10                 # seconds of a gap that a video of constant rate fills with the picture before it


def place_of(path: str, name: str, number: int, count: int, named: bool) -> str:
    """--save's file for one stream of several: out.mp4 becomes out_gate.mp4, or out_1.mp4, out_2.mp4 of unnamed ones.

    The codes of strftime (%Y-%m-%d_%H%M%S) become the present time; such a file is always a new one.
    """
    check_utf8(path)
    now = time.strftime(path) if "%" in path else path
    stem, extension = os.path.splitext(now)
    if count > 1:
        own = os.path.join(now, name) if is_folder(now) else f"{stem}_{name if named else number}{extension}"
    else:
        own = now
    return unused(own) if now != path else own


def is_folder(path: str) -> bool:
    return path.endswith(os.sep) or os.path.isdir(path) or not os.path.splitext(path)[1]


def unused(path: str) -> str:
    """The path, or where it exists the first of NAME-2.mp4, NAME-3.mp4, ... that does not."""
    (stem, extension), number = os.path.splitext(path), 1
    while os.path.lexists(path):
        number += 1
        path = f"{stem}-{number}{extension}"
    return path


def open_saver(path: str, stream: Any, overwrite: bool = False) -> "Place":
    """The place that saves a stream's pictures at `path`: a .mp4, .avi or .mkv, or of pictures a .jpg, .png or folder.

    Raises InputError where they cannot be saved there, and where something would be lost that is there.
    """
    pictures = list(getattr(stream.source, "paths", []))
    if pictures and (is_folder(path) or is_picture(path)):
        return PictureSaver(path, stream, overwrite, pictures)
    if os.path.splitext(path)[1].lower() not in VIDEOS:
        more = " or, for pictures, .jpg, .png, or be a folder" if pictures else ""
        raise InputError(f"--save {path}: the name must end in .mp4, .avi or .mkv{more}.")
    return Saver(path, stream, overwrite)


def check_free(path: str, sources: List[str]) -> None:
    """Raise InputError where saving at `path` would overwrite one of the sources."""
    for source in sources:
        source = local(source)
        for read in [source, *(glob.glob(source) if "://" not in source else [])]:
            if os.path.exists(path) and os.path.exists(read) and os.path.samefile(path, read):
                raise InputError(f"--save {path}: is the {'folder' if os.path.isdir(path) else 'video'} that is read."
                                 if not is_picture(path) else f"--save {path}: is the picture that is read.")


class Place:
    """What the savers share: a path that can be written, and pictures that can be saved."""

    def __init__(self, path: str, overwrite: bool):
        self.path, self.broken = path, False
        check_utf8(path)
        if not overwrite and os.path.isfile(path) and os.path.getsize(path):
            raise InputError(f"--save {path}: exists. --overwrite replaces it; a name with %Y-%m-%d_%H%M%S in it is "
                             f"another one each time.")

    def as_bgr(self, picture: Any) -> np.ndarray:
        """The picture as (h, w, 3) uint8 BGR. Raises InputError where it is none."""
        if getattr(picture, "dtype", None) != "uint8" or picture.ndim not in (2, 3) or picture.size == 0 \
                or picture.shape[2:] not in ((), (1,), (3,), (4,)):
            what = f"array of {picture.dtype} {picture.shape}" if hasattr(picture, "dtype") else type(picture).__name__
            raise InputError(f"--save {self.path}: myFunc returned a {what}, and only frames of uint8, (h, w, 3), can "
                             f"be saved.")
        if picture.shape[2:] != (3,):
            return cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR if picture.shape[2:] == (4,) else cv2.COLOR_GRAY2BGR)
        return picture

    def check_disk(self, needed: int) -> None:
        """Raise InputError before a disk is so full that what came before is lost, too."""
        if shutil.disk_usage(os.path.dirname(os.path.abspath(self.path))).free < needed:
            raise InputError(f"--save {self.path}: the disk is full. What came before is saved.")


class Saver(Place):
    """Writes a stream's pictures to a video file, opened with the first one's size, each at its time: of a file its
    position there, of a live source that of the clock."""

    def __init__(self, path: str, stream: Any, overwrite: bool = False):
        super().__init__(path, overwrite)
        self.stream, self.writer, self.count = stream, None, 0
        new = not os.path.lexists(path)
        try:
            open(path, "ab").close()
        except OSError as error:
            raise InputError(f"--save {path}: cannot be written ({error.strerror}).") from None
        if new:
            os.remove(path)  # until there is a frame

    def write(self, result: Any) -> None:
        """Save a streams.Result's picture. Raises InputError where it is none, or the disk is full."""
        if result.error is not None:
            return
        picture = self.as_bgr(result.picture)
        # OpenCV would lose frames without a word. An .mp4's index, some bytes a frame, comes last, and without it
        # nothing can be played.
        self.check_disk(max(RESERVE, 2 * picture.nbytes) + 16 * self.count)
        moment = result.received if self.stream.live else result.time
        try:
            if self.writer is None:
                self.begin(picture, moment)
            if picture.shape[1::-1] != self.asked:
                picture = cv2.resize(picture, self.asked)
            if self.asked != self.size:  # nothing of the picture is cut off
                rows, columns = self.size[1] - self.asked[1], self.size[0] - self.asked[0]
                picture = cv2.copyMakeBorder(picture, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
            if not moment - self.began > self.last:  # a source without a clock
                moment = self.began + self.last + 1 / self.fps
            self.last = moment - self.began
            self.writer.write(picture, self.last)
        except OSError as error:
            raise InputError(f"--save {self.path}: cannot be written ({error.strerror or error}). What came before is "
                             f"saved.") from None
        self.count += 1

    def begin(self, picture: np.ndarray, moment: float) -> None:
        rate = self.stream.rate
        # RTSP may call its clock of 90,000 the rate
        self.fps = rate if (1 <= rate <= 240 if self.stream.live else 0.01 <= rate <= 1000) else 30
        if self.stream.most:
            self.fps = min(self.fps, self.stream.most)
        self.asked = picture.shape[1::-1]
        self.size = tuple(side + side % 2 for side in self.asked)
        if self.size != self.asked:
            self.stream.complain(f"--save {self.path}: pictures of {self.asked[0]}x{self.asked[1]} are saved with a "
                                 f"row or column more, as {self.size[0]}x{self.size[1]}: videos have even sizes.")
        self.began, self.last = moment, -1 / self.fps
        self.writer = None if self.path.lower().endswith(".avi") else open_h264(self.path, self.size, self.fps)
        self.writer = self.writer or ConstantRate(self.path, self.size, self.fps, self.stream.live)

    def close(self) -> None:
        """Finish the file. May be called again."""
        if self.writer is not None:
            self.writer.close()


class ConstantRate:
    """A video by OpenCV, with so many pictures a second: one that stands longer is repeated."""

    def __init__(self, path: str, size: Tuple[int, int], fps: float, live: bool):
        self.fps, self.live, self.written, self.before = fps, live, 0, None
        code = "MJPG" if path.lower().endswith(".avi") else "mp4v"
        self.writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*code), fps, size)
        if not self.writer.isOpened():
            raise InputError(f"--save {path}: OpenCV cannot write a video of {size[0]}x{size[1]} pixels there.")

    def write(self, picture: np.ndarray, moment: float) -> None:
        due = round(moment * self.fps)  # pictures that belong before this one
        if self.before is not None and due > self.written:
            gap = min(due - self.written, round(FILL * self.fps))
            for _ in range(gap if gap > 1 or not self.live else 0):  # one more or less is a live source's unsteadiness
                self.writer.write(self.before)
            self.written = due if gap > 1 or not self.live else self.written
        if not self.live or self.written <= due + 1:
            self.writer.write(picture)
            self.written += 1
        self.before = picture

    def close(self) -> None:
        self.writer.release()


def open_h264(path: str, size: Tuple[int, int], fps: float) -> Optional["H264"]:
    """A H264 where PyAV is installed, and has an encoder; else None."""
    try:
        import av
    except ImportError:
        return None
    for codec in CODECS:
        try:
            return H264(av, codec, path, size, fps)
        except (ValueError, av.error.FFmpegError):  # ValueError: not among this FFmpeg's codecs
            continue
    return None


class H264:
    """A video by PyAV, each picture at its own time, in fragments: what has been written can be played, whatever
    becomes of the program."""

    def __init__(self, av: Any, codec: str, path: str, size: Tuple[int, int], fps: float):
        self.av, self.path = av, path
        fragments = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
        options = fragments if path.lower().endswith(".mp4") else {"cluster_time_limit": "100"}
        self.container = None
        encoder = av.codec.CodecContext.create(codec, "w")  # before a file is made
        del encoder
        self.container = av.open(path, "w", options={**options, "flush_packets": "1"})
        try:
            self.stream = self.container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            self.stream.width, self.stream.height = size
            self.stream.pix_fmt = "nv12" if codec == "h264_rkmpp" else "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, CLOCK)
            self.stream.codec_context.gop_size = max(1, min(60, round(2 * fps)))
            if codec == "libx264":  # no look ahead: a picture goes out at once
                self.stream.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "23"}
            self.stream.codec_context.open()
        except BaseException:
            self.container.close()
            raise
        self.duration = round(CLOCK / fps)
        self.closed, self.pts = False, -1

    def write(self, picture: np.ndarray, moment: float) -> None:
        frame = self.av.VideoFrame.from_ndarray(picture, format="bgr24")
        self.pts = max(round(moment * CLOCK), self.pts + 1)  # FFmpeg takes no two at the same
        frame.pts, frame.time_base = self.pts, Fraction(1, CLOCK)
        self.mux(self.stream.encode(frame))

    def mux(self, packets: Any) -> None:
        for packet in packets:
            packet.duration = self.duration
            self.container.mux(packet)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                self.mux(self.stream.encode())
                self.container.close()
            except OSError as error:
                raise InputError(f"--save {self.path}: cannot be finished ({error.strerror or error}). What came "
                                 f"before is saved.") from None


class PictureSaver(Place):
    """Writes pictures one by one: to one file, or under their own names into a folder."""

    def __init__(self, path: str, stream: Any, overwrite: bool, sources: List[str]):
        self.folder = is_folder(path)
        super().__init__(path, overwrite or self.folder)
        if not self.folder and len(sources) > 1:
            raise InputError(f"--save {path}: is one picture, and {stream.name} has {len(sources)}: name a folder, or "
                             f"a video.")
        try:
            os.makedirs(path if self.folder else os.path.dirname(path) or ".", exist_ok=True)
        except OSError as error:
            raise InputError(f"--save {path}: cannot be made ({error.strerror}).") from None
        check_free(path, [os.path.dirname(source) or "." if self.folder else source for source in sources])
        there = [os.path.basename(source) for source in sources
                 if self.folder and os.path.exists(os.path.join(path, os.path.basename(source)))]
        if there and not overwrite:
            raise InputError(f"--save {path}: has {there[0]} already. --overwrite replaces it.")

    def write(self, result: Any) -> None:
        """Save a streams.Result's picture. Raises InputError where it is none, or cannot be written."""
        if result.error is not None:
            return
        picture = self.as_bgr(result.picture)
        self.check_disk(2 * picture.nbytes)
        path = os.path.join(self.path, result.file) if self.folder else self.path
        try:
            ok, encoded = cv2.imencode(os.path.splitext(path)[1], picture)
            if not ok:
                raise InputError(f"--save {path}: OpenCV cannot write such a picture.")
            with open(path, "wb") as file:
                file.write(encoded.tobytes())
        except cv2.error:
            raise InputError(f"--save {path}: OpenCV cannot write pictures of that kind.") from None
        except OSError as error:
            raise InputError(f"--save {path}: cannot be written ({error.strerror}).") from None

    def close(self) -> None:
        pass
