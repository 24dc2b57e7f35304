"""Writes results as JSON, one line per frame, to a file or to stdout.

    --json results.jsonl     # appends to the file
    --json - | jq            # writes to stdout
"""
from __future__ import annotations

import errno
import json
import os
import select
import stat
import sys
import threading
from typing import Any, Dict, List, Optional

import cv2
import numpy as np

from results import STDOUT
from results.unsaved import UnsavedResults
from results.wording import counted
from sources.file_names import as_text
from vision.detections import attributes_as_json
from vision.errors import InputError

CLOSE_SECONDS = 2  # how long close() waits for a line that another thread is writing


def as_dict(result: Any) -> Dict[str, Any]:
    """Convert a Result to the dict that --json writes. Coordinates are pixels of the frame."""
    record: Dict[str, Any] = {
        "stream": result.stream.name,
        "frame": int(result.number),
        "time": round(float(result.time), 3),
        "size": [int(side) for side in result.size],
    }
    if getattr(result, "epoch", None) is not None:  # a result of another board
        record.update(board=result.board, epoch=result.epoch)
    if result.file is not None:
        record["file"] = as_text(result.file)
    if result.error is not None:
        record["error"] = result.error
        return record
    record["objects"] = objects(result.detections) if result.detections is not None else []
    for name in ("lines", "zones", "crossings"):
        value = getattr(result, name, None)
        if value or (value is not None and name != "crossings"):  # no crossings: no key
            record[name] = plain(value)
    return record


def objects(detections: Any) -> List[Dict[str, Any]]:
    """Convert Detections to a list with one dict per object, without the fields they lack."""

    def listed(name: str, digits: int = 1) -> Any:
        values = getattr(detections, name, None)
        return None if values is None else rounded(values, digits)

    # Whole arrays at once: number by number took six times as long, a tenth of a frame's CPU time.
    scores, boxes, corners = listed("scores", 4), listed("boxes"), listed("corners")
    points, point_scores = listed("keypoints"), listed("keypoints", 3)
    # polygons: those of another board, which sends no masks
    ids, masks, polygons, attributes = (
        getattr(detections, name, None) for name in ("ids", "masks", "polygons", "attributes"))
    score_field = "score" if getattr(detections, "class_map", None) is None else "share"
    converted = []
    for index, number in enumerate(map(int, detections.classes)):
        one: Dict[str, Any] = {"class": detections.name(number), "number": number,
                               score_field: scores[index]}
        if boxes is not None:
            one["box"] = boxes[index]
        if ids is not None and ids[index] >= 0:  # -1: not confirmed by the tracker yet
            one["id"] = int(ids[index])
        if points is not None:
            one["keypoints"] = [[x, y, score] for (x, y, _), (_, _, score)
                                in zip(points[index], point_scores[index])]
        if corners is not None:
            one["corners"] = corners[index]
        if masks is not None:
            one["polygon"] = outline(*masks[index])
        elif polygons is not None:
            one["polygon"] = polygons[index]
        if attributes is not None and attributes[index]:
            one["attributes"] = attributes_as_json(attributes[index])
        converted.append(one)
    return converted


def outline(x: int, y: int, mask: np.ndarray) -> List[List[int]]:
    """Return the outer contour of the largest part of a mask: [[x, y], ...] in the frame's pixels.

    mask: (h, w) of 0 and 1; x, y: the pixel of the frame at the mask's upper left corner.
    """
    contours = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_EXTERNAL,
                                cv2.CHAIN_APPROX_SIMPLE)[-2]
    if not contours:
        return []
    largest = max(contours, key=lambda contour: (cv2.contourArea(contour), len(contour)))
    return (largest.reshape(-1, 2) + [int(x), int(y)]).tolist()


def rounded(values: Any, digits: int = 1) -> Any:
    """Round a number, or an array to nested lists. NaN and infinity, unknown to JSON, give None."""
    array = np.asarray(values, np.float64).round(digits)
    if not np.isfinite(array).all():
        array = np.where(np.isfinite(array), array, None)
    return array.tolist()


def plain(value: Any) -> Any:
    """Replace NumPy's numbers in nested dicts and lists by Python's."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def is_fifo(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def open_fifo(path: str) -> int:
    """Open a FIFO for writing. Waits for a reader. Returns the file descriptor.

    The FIFO is not opened for reading, too: otherwise a write after the reader's end would block
    instead of raising BrokenPipeError.
    """
    print(f"--json {path}: waiting for a program that reads this FIFO.", file=sys.stderr)
    return os.open(path, os.O_WRONLY)


class JSONLines:
    """A sink that writes results of any number of streams as lines of JSON.

    path: a file, to which lines are appended, or "-" for stdout. With "-", everything else that
    is printed to stdout, even by C libraries, goes to stderr from then on.
    Raises InputError if the file cannot be opened. After a full disk, writing continues when there
    is room again; there is never a partial line.
    """

    def __init__(self, path: str):
        path = "-" if path in STDOUT else path
        self.path, self.lock, self.broken = path, threading.Lock(), False
        self.count = 0  # lines written
        self.unsaved = UnsavedResults(f"--json {path}")
        self.before = b""  # written before the next line
        self.file: Optional[int]
        try:
            if path == "-":
                sys.stdout.flush()
                self.file = os.dup(1)
                os.dup2(2, 1)  # the vendor's library writes to file descriptor 1
                sys.stdout = sys.stderr
            elif is_fifo(path):
                self.file = open_fifo(path)
            else:
                self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise InputError(f"--json {path}: cannot be written ({error.strerror}).") from None
        self.regular = stat.S_ISREG(os.fstat(self.file).st_mode)
        if path != "-" and self.regular:
            size = os.fstat(self.file).st_size
            if size and os.pread(self.file, 1, 0) != b"{":
                os.close(self.file)
                raise InputError(f"--json {path}: this file contains no lines of JSON. Name "
                                 "another one.")
            if size and os.pread(self.file, 1, size - 1) != b"\n":
                self.before = b"\n"  # an earlier run was killed while it wrote the last line

    def write(self, result: Any) -> None:
        """Append the line of a Result."""
        line = json.dumps(as_dict(result), ensure_ascii=False) + "\n"
        with self.lock:
            if self.broken or self.file is None:
                self._stop_if_only_sink(result.stream)
                return
            try:
                self._write_line(self.file, self.before + line.encode("utf-8", "replace"))
                self.count, self.before = self.count + 1, b""
                self.unsaved.end(result)
            except BrokenPipeError:
                self.broken = True
                result.stream.print_once(f"--json {self.path}: the reader has closed the pipe.")
                self._stop_if_only_sink(result.stream)
            except OSError as error:
                raise self.unsaved.add(result, error.strerror) from None

    @property
    def saved(self) -> str:
        """What has been saved: "results.jsonl: 600 lines". Empty if it is not a file."""
        is_file = self.regular and self.path != "-"
        return f"{self.path}: {counted(self.count, 'line')}" if self.count and is_file else ""

    def _write_line(self, file: int, line: bytes) -> None:
        end, written = os.lseek(file, 0, os.SEEK_END) if self.regular else 0, 0
        try:
            if self.unsaved.missing and self.regular and not os.fstatvfs(file).f_bavail:
                # Only short lines would fit into the rest of the last block, and no others.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            while written < len(line):
                try:
                    written += os.write(file, line[written:])
                except BlockingIOError:  # the reader has made the pipe non-blocking
                    poll = select.poll()
                    poll.register(file, select.POLLOUT)
                    poll.poll()
        except OSError:
            if self.regular and written:  # remove the incomplete line
                os.ftruncate(file, end)
                os.lseek(file, end, os.SEEK_SET)  # of a stdout that does not append
            raise

    def _stop_if_only_sink(self, stream: Any) -> None:
        """Stop a stream whose only sink was a closed stdout, as in `--json - | head`."""
        if self.path == "-" and stream.sinks == [self]:
            stream.stop.set()

    def close(self) -> None:
        """Close the file. May be called again.

        Raises InputError if a line cannot be completed because the reader no longer reads.
        """
        if not self.lock.acquire(timeout=CLOSE_SECONDS):
            raise InputError(f"--json {self.path}: the reader has stopped reading; the last line "
                             "is incomplete.")
        try:
            file, self.file, self.broken = self.file, None, True
            if file is not None:
                os.close(file)
                self.unsaved.close()
        except OSError as error:  # some network file systems report a full disk here
            raise InputError(f"--json {self.path}: the last lines may be missing "
                             f"({error.strerror}).") from None
        finally:
            self.lock.release()
