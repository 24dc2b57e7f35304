"""Saves a stream's pictures to a video file."""
import os
import shutil

import cv2

from rknnmodel import InputError

RESERVE = 1 << 20  # bytes at least that a disk must have free for the end of a saved video


class Saver:
    """Writes frames to a video file, opened with the first one's size."""

    def __init__(self, path, fps):
        self.path, self.fps, self.writer, self.count = path, fps, None, 0
        if os.path.splitext(path)[1].lower() not in (".mp4", ".avi", ".mkv"):
            raise InputError(f"--save {path}: the name must end in .mp4, .avi or .mkv.")
        new = not os.path.lexists(path)
        try:
            open(path, "ab").close()
        except OSError as error:
            raise InputError(f"--save {path}: cannot be written ({error.strerror}).") from None
        if new:
            os.remove(path)  # until there is a frame

    def write(self, frame):
        if getattr(frame, "dtype", None) != "uint8" or frame.ndim not in (2, 3) or frame.shape[2:] not in ((), (1,),
                                                                                                           (3,), (4,)):
            what = f"array of {frame.dtype} {frame.shape}" if hasattr(frame, "dtype") else type(frame).__name__
            raise InputError(f"--save {self.path}: myFunc returned a {what}, and only frames of uint8, (h, w, 3), can be saved.")
        # OpenCV would lose frames without a word. An .mp4's index, 4 to 5 bytes a frame, comes last, and without it
        # nothing can be played.
        reserve = max(RESERVE, 2 * frame.nbytes) + 8 * self.count
        if shutil.disk_usage(os.path.dirname(os.path.abspath(self.path))).free < reserve:
            raise InputError(f"--save {self.path}: the disk is full. What came before is saved.")
        if frame.shape[2:] != (3,):
            frame = cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR if frame.shape[2:] == (4,) else cv2.COLOR_GRAY2BGR)
        if self.writer is None:
            self.size = frame.shape[1::-1]
            code = "MJPG" if self.path.lower().endswith(".avi") else "mp4v"
            self.writer = cv2.VideoWriter(self.path, cv2.VideoWriter_fourcc(*code), self.fps, self.size)
            if not self.writer.isOpened():
                raise InputError(f"--save {self.path}: OpenCV cannot write a video of {self.size[0]}x{self.size[1]} pixels there.")
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        self.writer.write(frame)
        self.count += 1

    def close(self):
        if self.writer is not None:
            self.writer.release()
