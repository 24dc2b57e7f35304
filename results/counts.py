"""Keeps the counts of live sources in a SQLite file, so that they survive a restart.

    store = CountStore("site.counts.sqlite3")
    store.counts("gate", lines)    # {"door": {"in": {"person": 3}, "out": {}}}, of an earlier run
    store.streams.add("gate")      # keep the counts of this stream
    store.write(result)            # called by the stream's thread
    store.close()

The file is written every WRITE_SECONDS if something has changed, in one transaction: after a crash
or a power cut it contains the counts of the last write. Counts belong to a line with its points: if
the line has been moved, it starts at 0.
"""
from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from contextlib import closing
from typing import Any, Dict, Iterable, List, Mapping, Optional, Set, Tuple

import numpy as np

from results.console import say
from vision.errors import InputError

WRITE_SECONDS = 10

Counts = Dict[str, Dict[str, Dict[str, int]]]  # {"door": {"in": {"person": 3}, "out": {}}}
Row = Tuple[str, str, str, str, int]           # line, its points as JSON, direction, class, count

TABLE = """CREATE TABLE IF NOT EXISTS counts (
    stream TEXT, line TEXT, points TEXT, direction TEXT, class TEXT, count INTEGER,
    PRIMARY KEY (stream, line, direction, class))"""


class CountStore:
    """A sink that writes the counts of those streams to a file whose names are in `streams`.

    path: the file; it is created when there is something to write. forget: names of streams whose
    counts are deleted. Raises InputError if the file cannot be read.
    """

    def __init__(self, path: str, forget: Iterable[str] = ()):
        self.path = path
        self.streams: Set[str] = set()
        self.newest: Dict[str, Tuple[Any, Counts]] = {}  # {stream: (points of its lines, counts)}
        self.rows: Dict[str, List[Row]] = {}             # {stream: rows in the file}
        self.error: Optional[str] = None                 # of the last write
        try:
            if os.path.exists(path):
                self._read()
            old = {escaped(stream) for stream in forget} & self.rows.keys()
            if old:
                self._write({stream: [] for stream in old})
        except sqlite3.Error as error:
            raise InputError(f"{path}: the counts cannot be read ({error}). Delete this file to "
                             "start at 0.") from None
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="rknnpool-counts", daemon=True)
        self.thread.start()

    def counts(self, stream: str, lines: Mapping[str, np.ndarray]) -> Counts:
        """The counts of an earlier run for those of the lines, {name: (2, 2) points}, that still
        have the same points."""
        counts: Counts = {}
        for line, points, direction, name, count in self.rows.get(escaped(stream), []):
            if line in lines and points == points_as_json(lines[line]):
                counts.setdefault(line, {"in": {}, "out": {}})[direction][name] = count
        return counts

    def write(self, result: Any) -> None:
        """Note the counts of a Result, whose dicts do not change later."""
        stream = result.stream
        if stream.name in self.streams and result.lines is not None:
            self.newest[stream.name] = stream.lines.lines, result.lines

    def close(self) -> None:
        """Write the last counts. May be called again. Raises InputError if that fails."""
        self.closing.set()
        self.thread.join()
        self._save()
        if self.error:
            raise InputError(f"{self.path}: the last counts are missing.")

    def _run(self) -> None:
        while not self.closing.wait(WRITE_SECONDS):
            self._save()

    def _save(self) -> None:
        """Write what has changed. An error is printed once; the next call tries again."""
        rows = {escaped(stream): rows_of(lines, counts)
                for stream, (lines, counts) in list(self.newest.items())}
        changed = {stream: new for stream, new in rows.items() if new != self.rows.get(stream, [])}
        try:
            if changed:
                self._write(changed)
            self.error = None
        except sqlite3.Error as error:
            message = f"{self.path}: the counts cannot be saved ({error})."
            if message != self.error:
                say(message, sys.stderr)
            self.error = message

    def _read(self) -> None:
        with closing(sqlite3.connect(self.path)) as database, database:
            database.execute(TABLE)
            for stream, *row in database.execute(
                    "SELECT stream, line, points, direction, class, count FROM counts"):
                self.rows.setdefault(stream, []).append(tuple(row))

    def _write(self, changed: Dict[str, List[Row]]) -> None:
        with closing(sqlite3.connect(self.path)) as database, database:  # one transaction
            database.execute(TABLE)
            for stream, rows in changed.items():
                database.execute("DELETE FROM counts WHERE stream = ?", [stream])
                database.executemany("INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?)",
                                     [(stream, *row) for row in rows])
        self.rows.update(changed)


def rows_of(lines: Mapping[str, np.ndarray], counts: Counts) -> List[Row]:
    """The rows of one stream. lines: {name: (2, 2) points}."""
    return [(line, points_as_json(points), direction, escaped(name), count)
            for line, points in lines.items()
            for direction, classes in counts[line].items()
            for name, count in classes.items()]


def points_as_json(points: np.ndarray) -> str:
    """The points of a line, (2, 2), as they are stored."""
    return json.dumps(points.tolist())


def escaped(name: str) -> str:
    """A name with escapes for what is not UTF-8: a stream may be named after a file."""
    return name.encode("utf-8", "backslashreplace").decode()
