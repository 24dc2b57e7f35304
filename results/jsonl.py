"""Detections as JSON, a line a frame, into a file or to stdout.

    --json results.jsonl     # appended to; --json - | jq
"""
import errno
import json
import math
import os
import select
import stat
import sys
import threading
from typing import Any, Dict, List

import cv2
import numpy as np

from rknnmodel import InputError

CLOSING = 2  # seconds that close() waits for a line that is being written


def as_dict(result: Any) -> Dict[str, Any]:
    """What --json says of a streams.Result, ready for json.dumps(): pixels of the frame with one decimal."""
    said = {"stream": result.stream.name, "frame": int(result.number), "time": round(float(result.time), 3),
            "size": [int(side) for side in result.size]}
    if getattr(result, "epoch", None) is not None:  # it came from another board (examples/boards.py)
        said.update(board=result.board, epoch=result.epoch)
    if result.file is not None:
        said["file"] = result.file
    if result.error is not None:
        said["error"] = result.error
        return said
    said["objects"] = objects(result.detections) if result.detections is not None else []
    for name in ("lines", "zones", "crossings"):
        value = getattr(result, name, None)
        if value or value is not None and name != "crossings":
            said[name] = plain(value)
    return said


def objects(detections: Any) -> List[Dict[str, Any]]:
    """The detections one by one; fields that they lack are left out."""
    found = []
    boxes, ids, masks, keypoints, corners, polygons = (getattr(detections, name, None) for name in (
        "boxes", "ids", "masks", "keypoints", "corners", "polygons"))  # the last from another board, instead of masks
    for place, (number, score) in enumerate(zip(detections.classes, detections.scores)):
        one = {"class": detections.name(int(number)), "number": int(number), "score": rounded(score, 4)}
        if boxes is not None:
            one["box"] = rounded(boxes[place])
        if ids is not None and ids[place] >= 0:  # below: not sure yet
            one["id"] = int(ids[place])
        if keypoints is not None:
            one["keypoints"] = [rounded(point[:2]) + [rounded(point[2], 3)] for point in np.asarray(keypoints[place])]
        if corners is not None:
            one["corners"] = rounded(corners[place])
        if masks is not None:
            one["polygon"] = outline(*masks[place])
        elif polygons is not None:
            one["polygon"] = polygons[place]
        found.append(one)
    return found


def outline(x: int, y: int, mask: np.ndarray) -> List[List[int]]:
    """The outer contour of a mask (h, w) of 0 and 1, its largest piece's: [[x, y], ...] in pixels of the frame, whose
    pixel (x, y) is the mask's upper left one."""
    contours = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if not contours:
        return []
    largest = max(contours, key=lambda contour: (cv2.contourArea(contour), len(contour)))
    return (largest.reshape(-1, 2) + [int(x), int(y)]).tolist()


def rounded(values: Any, digits: int = 1) -> Any:
    """Numbers rounded, arrays as lists; what is not finite as None, for JSON has no word for it."""
    if np.ndim(values):
        return [rounded(value, digits) for value in values]
    return round(float(values), digits) if math.isfinite(values) else None


def plain(value: Any) -> Any:
    """The value with NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def is_fifo(path: str) -> bool:
    """Whether a FIFO stands at this path."""
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def open_fifo(path: str) -> int:
    """The file descriptor of a FIFO, once somebody reads it. For writing alone: who reads it, too, never learns that
    the reader has gone, and then writes no more."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(file, True)
        return file
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    print(f"--json {path}: waits for somebody to read it.", file=sys.stderr)
    return os.open(path, os.O_WRONLY)


class JSONLines:
    """The place that writes results as lines of JSON, of any number of streams, each line at once and whole.

    path: a file, which is appended to, or "-" for stdout: all else that the program or the runtime prints there goes to
    stderr from then on. Raises InputError where it cannot be opened; write() does where a line cannot be written, once.
    """

    def __init__(self, path: str):
        self.path, self.writing, self.broken = path, threading.Lock(), False
        try:
            if path == "-":
                sys.stdout.flush()
                self.file = os.dup(1)
                os.dup2(2, 1)  # the vendor's library prints to file descriptor 1, whatever sys.stdout is
                sys.stdout = sys.stderr
            else:
                self.file = open_fifo(path) if is_fifo(path) else os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND,
                                                                          0o666)
        except OSError as error:
            raise InputError(f"--json {path}: cannot be written ({error.strerror}).") from None
        self.regular = stat.S_ISREG(os.fstat(self.file).st_mode)
        if path != "-" and self.regular:
            self.end_last_line()

    def end_last_line(self) -> None:
        """A line that an earlier run could not finish is ended, so that the next one is whole."""
        size = os.fstat(self.file).st_size
        if size and os.pread(self.file, 1, size - 1) != b"\n":
            os.write(self.file, b"\n")

    def write(self, result: Any) -> None:
        """Append a streams.Result's line."""
        line = (json.dumps(as_dict(result), ensure_ascii=False) + "\n").encode("utf-8", "replace")
        with self.writing:
            if self.broken:
                return self.end_alone(result.stream)
            before = os.fstat(self.file).st_size if self.regular else 0
            written = 0
            try:
                while written < len(line):
                    try:
                        written += os.write(self.file, line[written:])
                    except BlockingIOError:  # a pipe that its reader has made so
                        waiting = select.poll()
                        waiting.register(self.file, select.POLLOUT)
                        waiting.poll()
            except BrokenPipeError:
                self.broken = True
                result.stream.complain(f"--json {self.path}: nobody reads it any more.")
                self.end_alone(result.stream)
            except OSError as error:
                self.broken = True
                if self.regular and written:  # no half line stays
                    os.ftruncate(self.file, before)
                raise InputError(f"--json {self.path}: cannot be written ({error.strerror}). What came before is "
                                 f"there.") from None

    def end_alone(self, stream: Any) -> None:
        """End a stream whose results go nowhere else, as `--json - | head` asks for."""
        if self.path == "-" and stream.places == [self]:
            stream.stop.set()

    def close(self) -> None:
        """End. May be called again. Raises InputError where a line cannot be finished, for its reader has stopped."""
        if not self.writing.acquire(timeout=CLOSING):
            raise InputError(f"--json {self.path}: its reader takes nothing any more, and has half of the last line.")
        try:
            file, self.file, self.broken = self.file, None, True
            if file is not None:
                os.close(file)
        finally:
            self.writing.release()
