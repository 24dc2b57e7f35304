"""Saves a picture of each object that appears, crosses a line or enters a zone.

    sink = Snapshots("snapshots", 1000)
    sink.write(result)    # a Result of any of the streams, called by its thread; returns at once
    sink.newest(20)       # [{"file": ..., "stream": "gate", "class": "person", ...}, ...]
    sink.close()

A file is called 2026-11-29_141502.123_gate_person_crosses-door.jpg: the local time, the stream, the
class and the event. The JPEG contains the same facts as JSON in a comment, for a later run.
"""
from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import threading
import time
import traceback
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from results.saver import check_disk, check_writable
from results.status import without_image
from results.unsaved import UnsavedResults
from results.wording import counted
from sources.file_names import as_text, on_disk
from vision.errors import InputError
from vision.frame import clipped

EVENTS = "appears", "crosses", "enters"
SURROUNDINGS = 0.4   # on each side, as a fraction of the object's longer side
MIN_SIDE, MAX_SIDE = 160, 1280  # of a picture's longer side, pixels; larger ones are scaled down
JPEG_QUALITY = 90
MAX_WAITING = 64_000_000  # bytes of pictures that wait to be encoded
CLOSE_SECONDS = 10   # how long close() waits for them
NAME = re.compile(r"\d{4}-\d\d-\d\d_\d{6}\.\d{3}_.+\.jpg")  # other files are left alone
MAX_PART = 40        # bytes of the name of a stream, class, line or zone in a file's name


class Snapshot(NamedTuple):
    """A picture that waits to be saved."""

    result: Any               # without its frame
    facts: Dict[str, Any]
    picture: np.ndarray       # (h, w, 3) uint8 BGR


class Snapshots:
    """A sink that saves pictures of objects in a folder, for all streams.

    folder: is created if it does not exist; max_files: when there are more, the oldest are deleted,
    also those of earlier runs. The streams need `objects`, and this sink before those that draw:
    the pictures show no boxes.

    A thread encodes and writes. If it is too slow, a live stream's oldest waiting pictures are
    dropped and counted in the stream's `unsaved`; a file waits. `latest` is {(stream, class): the
    newest JPEG} of this run. `count` increases with every file. Raises InputError if the folder
    cannot be used.
    """

    def __init__(self, folder: str, max_files: int):
        self.given, self.folder, self.max_files = folder, on_disk(folder), max_files
        self.files: Deque[str] = collections.deque(self._existing())  # the oldest first
        self.facts: Dict[str, Optional[Dict[str, Any]]] = {}          # by file
        self.latest: Dict[Tuple[str, str], bytes] = {}
        self.count = 0
        self.unsaved = UnsavedResults(f"--snapshots {folder}", "snapshot")
        self.waiting: Deque[Snapshot] = collections.deque()
        self.changed, self.closed = threading.Condition(), False  # guards what is above, too
        self.broken: Optional[str] = None  # why this sink has stopped working
        self.thread = threading.Thread(target=self._work, name="rknnpool-snapshots", daemon=True)
        self.thread.start()

    def _existing(self) -> List[str]:
        """The names of the pictures of earlier runs. Raises InputError."""
        try:
            os.makedirs(self.folder, exist_ok=True)
            check_writable(os.path.join(self.folder, ".part"))
            names = sorted(map(as_text, os.listdir(self.folder)))
        except OSError as error:
            raise InputError(f"--snapshots {self.given}: cannot write pictures into this folder "
                             f"({error.strerror}).") from None
        return [name for name in names if NAME.fullmatch(name)]

    # ---- the streams' threads ----

    def write(self, result: Any) -> None:
        """Take the pictures of a Result's events. Raises InputError if this sink is broken."""
        if self.broken:
            raise InputError(self.broken)
        for event in result.events:
            if event["event"] in EVENTS:
                picture = cut_out(result.frame, event["after"]["box"])
                self._put(Snapshot(without_image(result), facts_of(event), picture))

    def _put(self, snapshot: Snapshot) -> None:
        stream = snapshot.result.stream
        with self.changed:
            if not stream.live:
                self.changed.wait_for(lambda: self._has_room(snapshot) or self.closed)
            while not self._has_room(snapshot):
                self.waiting.popleft().result.stream.unsaved += 1
            self.waiting.append(snapshot)
            self.changed.notify_all()

    def _has_room(self, snapshot: Snapshot) -> bool:
        size = sum(each.picture.nbytes for each in self.waiting) + snapshot.picture.nbytes
        return size <= MAX_WAITING or not self.waiting

    def close(self) -> None:
        """Save what waits. Raises InputError if pictures are missing. May be called again."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join(CLOSE_SECONDS)
        with self.changed:
            while self.waiting:  # the disk is slow, or the thread has ended
                self.waiting.popleft().result.stream.unsaved += 1
        self.unsaved.close()

    # ---- the sink's own thread ----

    def _work(self) -> None:
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.waiting or self.closed)
                    if not self.waiting:
                        return
                    snapshot = self.waiting.popleft()
                    self.changed.notify_all()
                self._save(snapshot)
        except Exception:  # a bug here must not end the streams
            self.broken = f"--snapshots: {traceback.format_exc().rstrip()}"
            with self.changed:
                self.closed = True
                self.changed.notify_all()

    def _save(self, snapshot: Snapshot) -> None:
        result, facts = snapshot.result, snapshot.facts
        while name_of(facts) in self.files:  # another object has done the same at this moment
            facts["time"] = round(facts["time"] + 0.001, 3)
        name = name_of(facts)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        encoded = cv2.imencode(".jpg", snapshot.picture, quality)[1].tobytes()
        jpeg = with_comment(encoded, json.dumps(facts).encode())
        self.latest = {**self.latest, (facts["stream"], facts["class"]): jpeg}
        try:
            self._make_room()
            self._write(name, jpeg)
        except OSError as error:
            result.stream.unsaved += 1
            result.stream.report_failure(self.unsaved.add(result, error.strerror))
            return
        self.unsaved.end(result)
        with self.changed:
            self.files.append(name)
            self.facts[name] = facts
            self.count += 1

    def _make_room(self) -> None:
        """Delete the oldest files, so that one more is not too many. Raises OSError."""
        while len(self.files) >= self.max_files:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._path(self.files[0]))
            with self.changed:
                self.facts.pop(self.files.popleft(), None)

    def _write(self, name: str, jpeg: bytes) -> None:
        """Write a file. Other programs see it when it is complete. Raises OSError."""
        path, partial = self._path(name), self._path(f".{name}.part")
        check_disk(partial, len(jpeg))
        try:
            with open(partial, "wb") as file:
                file.write(jpeg)
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise

    def _path(self, name: str) -> str:
        return on_disk(os.path.join(self.folder, name))

    # ---- for the page and the end of the run; any thread ----

    def newest(self, number: int) -> List[Dict[str, Any]]:
        """What is known of the newest files, the newest first.

        A dict has the keys file, stream, class, event ("appears", "crosses" or "enters"), track
        and time (Unix time); and line and direction, or zone. Files that somebody has deleted are
        left out.
        """
        found: List[Dict[str, Any]] = []
        with self.changed:
            names = list(self.files)
        for name in reversed(names):
            if len(found) == number:
                break
            if os.path.exists(self._path(name)):
                facts = self.facts.get(name) or self._read_facts(name)
                if facts:
                    found.append({**facts, "file": name})
        return found

    def _read_facts(self, name: str) -> Optional[Dict[str, Any]]:
        """The facts in the comment of an earlier run's file; None if it has no such comment."""
        try:
            facts = json.loads(comment_of(self.jpeg(name) or b""))
            if not {"stream", "class", "event", "time"} <= facts.keys():
                return None
        except (ValueError, AttributeError):
            return None
        with self.changed:
            if name in self.files:
                self.facts[name] = facts
        return facts

    def jpeg(self, name: str) -> Optional[bytes]:
        """The content of a file; None for any name that newest() does not return."""
        with self.changed:
            if name not in self.files:
                return None
        try:
            with open(self._path(name), "rb") as file:
                return file.read()
        except OSError:
            return None

    @property
    def saved(self) -> str:
        """What has been saved: "snapshots: 12 pictures". Empty before the first one."""
        return f"{self.given}: {counted(self.count, 'picture')}" if self.count else ""


def cut_out(frame: np.ndarray, box: List[float]) -> np.ndarray:
    """Return the object in a box and its surroundings, as a new picture (h, w, 3) uint8 BGR.

    frame: (h, w, 3) uint8 BGR. box: x1, y1, x2, y2 in pixels of the frame.
    """
    height, width = frame.shape[:2]
    x1, y1, x2, y2 = box
    longer = max(x2 - x1, y2 - y1)
    margin = max(SURROUNDINGS * longer, (MIN_SIDE - longer) / 2)
    left, right = clipped(x1 - margin, x2 + margin, width)
    top, bottom = clipped(y1 - margin, y2 + margin, height)
    picture = frame[top:bottom, left:right]
    scale = MAX_SIDE / max(picture.shape)
    if scale >= 1:
        return picture.copy()
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def facts_of(event: Dict[str, Any]) -> Dict[str, Any]:
    """What newest() returns of one of Objects' events, except the file."""
    after = event["after"]
    facts = {"stream": after["camera"], "class": after["label"], "event": event["event"],
             "track": after["track"], "time": round(time.time(), 3)}
    facts.update({key: event[key] for key in ("line", "direction", "zone") if key in event})
    return facts


def name_of(facts: Dict[str, Any]) -> str:
    """The name of a file: 2026-11-29_141502.123_gate_person_crosses-door.jpg, in local time."""
    moment = time.strftime("%Y-%m-%d_%H%M%S", time.localtime(facts["time"]))
    where = facts.get("line") or facts.get("zone")
    event = f"{facts['event']}-{file_name_part(where)}" if where else facts["event"]
    return (f"{moment}.{round(facts['time'] * 1000) % 1000:03d}_{file_name_part(facts['stream'])}_"
            f"{file_name_part(facts['class'])}_{event}.jpg")


def file_name_part(name: str) -> str:
    """A name as a part of a file's name: only letters of all languages, digits and _ - . remain."""
    part = re.sub(r"[^\w.-]+", "-", name)
    return part.encode("utf-8", "ignore")[:MAX_PART].decode("utf-8", "ignore") or "-"


def with_comment(jpeg: bytes, text: bytes) -> bytes:
    """Return a JPEG with a comment (ITU-T T.81, B.2.4.5), after its first segment."""
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:end] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[end:]


def comment_of(jpeg: bytes) -> bytes:
    """Return the text that with_comment() has added; empty if there is none."""
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    length = int.from_bytes(jpeg[end + 2:end + 4], "big")
    return jpeg[end + 4:end + 2 + length] if jpeg[end:end + 2] == b"\xff\xfe" else b""
