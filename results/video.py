"""Saves the pictures of a stream, with its detections drawn, as a video or as pictures.

    saver = open_saver("out_%Y-%m-%d.mp4", stream)
    saver.write(result)
    saver.close()

A video has the original duration, also if frames were dropped. Exception: in an .avi, and without
PyAV, a longer gap, such as a camera's outage, is shortened to MAX_GAP_SECONDS (video_writers.py).
"""
from __future__ import annotations

import contextlib
import math
import os
from typing import Any, List, Optional, Union

import cv2
import numpy as np

from results.picture_saver import PictureSaver
from results.save_paths import is_folder, unused
from results.saver import Saver, check_disk, check_writable
from results.video_writers import ConstantRateWriter, H264Writer, open_h264
from results.wording import counted
from sources.names import is_picture
from vision.errors import InputError

MIN_FREE_BYTES = 1 << 20  # that the disk must have, so that a video can be finished
VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv")


def open_saver(path: str, stream: Any,
               overwrite: bool = False) -> Union[VideoSaver, PictureSaver]:
    """Return the sink that saves a stream at `path`.

    path: .mp4, .avi or .mkv for a video; if the stream reads pictures, also .jpg, .png or a
    folder. Raises InputError if it cannot be written, or if a file would be overwritten.
    """
    pictures = list(getattr(stream.source, "paths", []))
    if pictures and (is_folder(path) or is_picture(path)):
        return PictureSaver(path, stream, overwrite, pictures)
    if os.path.splitext(path)[1].lower() not in VIDEO_EXTENSIONS:
        more = ", for pictures also in .jpg, .png, or / for a folder" if pictures else ""
        raise InputError(f"--save {path}: the name must end in .mp4, .avi or .mkv{more}.")
    return VideoSaver(path, stream, overwrite)


class VideoSaver(Saver):
    """A sink that writes a video with the size of the first picture.

    The time of a picture is its position in a file, or the time at which a live frame was read.
    When the disk is full, the video is finished. It continues in a new file, NAME-2.mp4, when there
    is room again.
    """

    def __init__(self, path: str, stream: Any, overwrite: bool = False):
        super().__init__(path, overwrite)
        self.stream, self.count = stream, 0
        self.files: List[str] = []     # written so far
        self.file_count = 0            # pictures in the present file
        self.seconds = 0.0             # duration of the files before it
        self.start = self.last = 0.0   # time of its first picture; of its last one after it
        self.writer: Optional[Union[H264Writer, ConstantRateWriter]] = None
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            check_writable(path)
        except OSError as error:
            raise InputError(f"--save {path}: cannot be written ({error.strerror}).") from None

    def write(self, result: Any) -> None:
        """Save a Result's picture. Raises InputError if it is not one, NotSaved on a full disk."""
        if result.error is not None:
            return
        picture = self.as_bgr(result.picture)
        # OpenCV does not report lost frames. The index of an .mp4, some bytes per frame, is
        # written last, and the file cannot be played without it.
        needed = max(MIN_FREE_BYTES, 2 * picture.nbytes) + 16 * self.file_count
        seconds = result.received if self.stream.live else result.time
        try:
            if self.writer is None:
                path = unused(self.path) if self.files else self.path
                check_disk(path, 2 * needed if self.unsaved.missing else needed)
                self.writer = self._open(path, picture, seconds)
                self.files.append(path)
            else:
                check_disk(self.files[-1], needed)
            if not seconds - self.start > self.last:  # the source has no clock
                seconds = self.start + self.last + 1 / self.fps
            self.writer.write(self._fit(picture), seconds - self.start)
        except OSError as error:
            self._end_file()
            raise self.unsaved.add(result, error.strerror or error) from None
        self.last = seconds - self.start
        self.count, self.file_count = self.count + 1, self.file_count + 1
        self.unsaved.end(result, self.files[-1])

    @property
    def saved(self) -> str:
        """What has been saved: "out.mp4: 600 frames, 10.0 s". Empty before the first picture."""
        if not self.count:
            return ""
        seconds = self.seconds + (self.last + 1 / self.fps if self.file_count else 0)
        return f"{', '.join(self.files)}: {counted(self.count, 'frame')}, {seconds:.1f} s"

    def _open(self, path: str, picture: np.ndarray, seconds: float
              ) -> Union[H264Writer, ConstantRateWriter]:
        """Open a file for its first picture, which has this time."""
        check_writable(path)  # OpenCV would not say why it cannot write
        rate = self.stream.rate
        # An RTSP source may report its clock rate, 90,000, as its frame rate.
        lowest, highest = (1, 240) if self.stream.live else (0.01, math.inf)
        self.fps = min(rate, 1000) if lowest <= rate <= highest else 30.0
        if self.stream.max_fps:
            self.fps = min(self.fps, self.stream.max_fps)
        h, w = picture.shape[:2]
        self.picture_size = w, h
        self.video_size = w + w % 2, h + h % 2
        if self.video_size != self.picture_size:
            self.stream.print_once(
                f"--save {self.path}: pictures of {w}x{h} are saved as {self.video_size[0]}x"
                f"{self.video_size[1]}, because a video needs even sizes.")
        self.start, self.last, self.file_count = seconds, -1 / self.fps, 0
        if not path.lower().endswith(".avi"):
            writer = open_h264(path, self.video_size, self.fps)
            if writer is not None:
                return writer
        return ConstantRateWriter(path, self.video_size, self.fps, self.stream.live)

    def _fit(self, picture: np.ndarray) -> np.ndarray:
        """Scale a picture to the first one's size, and pad it to the video's even size."""
        if picture.shape[1::-1] != self.picture_size:
            picture = cv2.resize(picture, self.picture_size)
        columns, rows = (self.video_size[0] - self.picture_size[0],
                         self.video_size[1] - self.picture_size[1])
        if rows or columns:
            picture = cv2.copyMakeBorder(picture, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
        return picture

    def _end_file(self) -> None:
        """Finish the present file, or remove it if it has no picture."""
        writer, self.writer = self.writer, None
        if writer is None:
            return
        try:
            writer.close()
        except InputError as error:
            self.stream.print_once(str(error))
        if self.file_count:
            self.seconds += self.last + 1 / self.fps
        else:
            with contextlib.suppress(OSError):
                os.remove(self.files.pop())
        self.file_count = 0

    def close(self) -> None:
        """Finish the file. May be called again."""
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            self.unsaved.close()
