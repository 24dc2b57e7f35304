"""What a board does for boards.py, in its Dask worker's process: whole videos, or live cameras.

members.remote_call() calls process_video() and process_cameras() in the board's own clone.
"""
from __future__ import annotations

import argparse
import collections
import gzip
import io
import json
import logging
import os
import sys
import threading
import time
from typing import Any

import cv2
from distributed import get_worker
from tqdm import tqdm

import results
from boards_parts.worker_pool import SharedPool, shared_pool
from results.console import say, users_traceback
from results.jsonl import as_dict
from rknnpool import NPUError
from sources.names import hide
from streams import Stream
from vision.errors import InputError, ModelError

LEASE_SECONDS = 3.0  # without a call from boards.py, after which a board stops its cameras
MAX_LINES = 5000     # that wait for boards.py; then the oldest is discarded

cv2.setNumThreads(1)  # the pool's threads use all cores
# boards.py polls cameras several times per second, and Dask would log every call.
logging.getLogger("distributed.worker").addFilter(
    lambda record: not str(record.msg).startswith("Run out-of-band"))


def error_text(error: BaseException) -> str:
    """Return what is reported of an error: its sentence, or the traceback of the user's code."""
    known = isinstance(error, (InputError, ModelError))
    return hide(str(error) if known else users_traceback(error))


def to_json(result: Any, **more: str) -> str:
    return json.dumps({**as_dict(result), **more}, ensure_ascii=False)


# ---- videos ----

class CompressedLines:
    """A sink that keeps lines of JSON in memory, compressed."""

    def __init__(self, source: str) -> None:
        self.source, self.bytes = source, io.BytesIO()
        self.file = gzip.GzipFile(fileobj=self.bytes, mode="wb", compresslevel=1)

    def write(self, result: Any) -> None:
        self.file.write(f"{to_json(result, source=self.source)}\n".encode("utf-8", "replace"))

    def close(self) -> None:
        self.file.close()


def process_video(settings: dict[str, Any], run_id: str, name: str, paths: list[str],
                  counting: argparse.Namespace) -> dict[str, Any]:
    """Process a whole video, as a Dask task.

    paths: the first that exists is used. counting: main.py's track, lines, zones and fps, and the
    `source` that each line names.
    Returns a dict with board (its address), code and error; lines (JSON, compressed by gzip),
    frames, read, total, seconds, and stopped (whether the task was cancelled). Or, if the board
    cannot process anything, with board and unfit (the reason).
    """
    worker = get_worker()
    reply: dict[str, Any] = {"board": worker.address, "code": 0, "error": None}
    ended, cancelled = threading.Event(), threading.Event()
    task_key = worker.get_current_task()

    def watch(stream: Stream) -> None:
        """Report progress, and stop the stream if Dask has cancelled the task."""
        while not ended.wait(0.5):
            task = worker.state.tasks.get(task_key)
            at_work = worker.status.name in ("running", "paused")
            if task is None or task.state == "cancelled" or not at_work:
                cancelled.set()
                stream.stop.set()
                ended.set()
                say(f"{name}: cancelled.", sys.stderr)
            worker.log_event(f"rknnpool-{run_id}", {"video": name, "frames": stream.count,
                                                    "total": stream.source.total})

    try:
        with shared_pool(settings) as shared:
            try:
                existing = (path for path in paths if "://" in path or os.path.exists(path))
                stream = open_video(next(existing, paths[0]), name, counting)
            except InputError as error:
                return {**reply, "code": 2, "error": error_text(error)}
            lines = CompressedLines(counting.source)
            stream.add_sink(lines)
            threading.Thread(target=watch, args=(stream,), daemon=True).start()
            stream.run(shared.pool, tqdm(disable=True), quiet=True)
            if stream.code == 3 and stream.error:
                raise NPUError(stream.error, fatal=True)
            seconds = (stream.ended or time.perf_counter()) - stream.began
            return {**reply, "lines": lines.bytes.getvalue(), "frames": stream.count,
                    "read": stream.number, "total": stream.source.total, "seconds": seconds,
                    "code": stream.code, "error": stream.error and hide(stream.error),
                    "stopped": cancelled.is_set()}
    except Exception as error:
        return {**reply, "unfit": error_text(error)}
    finally:
        ended.set()


def open_video(path: str, name: str, counting: argparse.Namespace) -> Stream:
    """Open a video with its tracker, lines and zones. Raises InputError if it is not a video."""
    stream = Stream(path, name, counting.fps)
    if stream.live:
        stream.source.release()
        raise InputError(f"{hide(path)}: not available, or a live source without an end.")
    others = dict.fromkeys(("json", "mqtt", "web", "snapshots", "setup", "then"))
    results.open_sinks(argparse.Namespace(headless=True, **others, **vars(counting)), [stream])
    return stream


# ---- cameras ----

class CameraJob:
    """A camera that this board processes, in a thread of its own, until it is stopped."""

    def __init__(self, run: CameraRun, name: str, epoch: int, address: str,
                 max_fps: float | None):
        self.run, self.name, self.epoch = run, name, epoch
        self.stopped = threading.Event()
        self.stream: Stream | None = None
        self.error: str | None = None
        self.code = 0
        threading.Thread(target=self._process, args=(address, max_fps), name=name,
                         daemon=True).start()

    def _process(self, address: str, max_fps: float | None) -> None:
        try:
            self.stream = stream = Stream(address, self.name, max_fps)
            stream.sinks.append(self)
            if not self.stopped.is_set() and self.run.shared is not None:
                stream.run(self.run.shared.pool, tqdm(disable=True), quiet=True)
            self.error, self.code = stream.error, stream.code
            if not self.error and not self.stopped.is_set():
                self.error = f"{self.name}: ended after {stream.number} frames."
        except Exception as error:
            self.error, self.code = error_text(error), 2 if isinstance(error, InputError) else 1

    def write(self, result: Any) -> None:
        """Keep a result for boards.py, unless this job has ended: the job is the stream's sink."""
        if self.run.lease_is_over():
            self.run.end()
        if not self.stopped.is_set():
            self.run.lines.append((self.name, self.epoch, to_json(result)))

    def close(self) -> None:
        pass

    def stop(self) -> None:
        self.stopped.set()
        if self.stream is not None:
            self.stream.stop.set()

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "error": self.error, "code": self.code,
                "rate": self.stream.rate if self.stream else 0.0,
                "dropped": self.stream.dropped if self.stream else 0}


class CameraRun:
    """The cameras that one run of boards.py has assigned to this board.

    It ends LEASE_SECONDS after the last call: boards.py may have died, or have assigned the
    cameras to another board.
    """

    def __init__(self, settings: dict[str, Any]):
        self.jobs: dict[tuple[str, int], CameraJob] = {}  # by name and epoch
        self.lines: collections.deque[tuple[str, int, str]] = collections.deque(maxlen=MAX_LINES)
        self.last_call, self.state, self.capacity = time.monotonic(), "opening", 0.0
        self.shared: SharedPool | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._hold_pool, args=(settings,), daemon=True).start()

    def _hold_pool(self, settings: dict[str, Any]) -> None:
        """Open the pool, and keep it until the run ends."""
        try:
            with shared_pool(settings) as shared:
                self.shared, self.capacity = shared, shared.capacity()
                self.state = "ready"
                while not self.ended.wait(0.2):
                    if self.lease_is_over():
                        self.end()
                    for job in list(self.jobs.values()):
                        if job.code == 3 and job.error:
                            raise NPUError(job.error, fatal=True)
        except Exception as error:
            self.state = f"unfit: {error_text(error)}"
            self.end()

    def lease_is_over(self) -> bool:
        return time.monotonic() > self.last_call + LEASE_SECONDS

    def end(self) -> None:
        self.ended.set()
        for job in list(self.jobs.values()):
            job.stop()

    def call(self, assigned: dict[str, tuple[int, str]], max_fps: float | None) -> dict[str, Any]:
        """Start and stop jobs, so that these cameras are processed. Returns the new results."""
        self.last_call = time.monotonic()
        for name, epoch in list(self.jobs):
            if name not in assigned or assigned[name][0] != epoch:
                self.jobs.pop((name, epoch)).stop()
        if self.state == "ready":
            for name, (epoch, address) in assigned.items():
                if (name, epoch) not in self.jobs:
                    self.jobs[name, epoch] = CameraJob(self, name, epoch, address, max_fps)
        lines = [self.lines.popleft() for _ in range(len(self.lines))]
        return {"state": self.state, "capacity": self.capacity, "lines": lines,
                "jobs": {job.name: job.state() for job in self.jobs.values()}}


_runs: dict[str, CameraRun] = {}


def process_cameras(run_id: str, settings: dict[str, Any],
                    assigned: dict[str, tuple[int, str]] | None,
                    max_fps: float | None = None) -> dict[str, Any]:
    """Process exactly these cameras from now on, and return the results since the last call.

    assigned: {name: (epoch, address)}; None ends the run. boards.py calls this several times per
    second, in Dask's own thread, so it returns at once. Returns a dict with state ("opening",
    "ready" or "unfit: reason"), capacity (frames per second), lines (name, epoch, JSON) and jobs
    ({name: its state}).
    """
    for other, run in list(_runs.items()):
        # A run that is ready and has ended lost its lease, perhaps just before this call.
        is_over = other != run_id or run.state == "ready" or run.lease_is_over()
        if run.ended.is_set() and is_over:
            del _runs[other]
    if assigned is None:
        if run_id in _runs:
            _runs.pop(run_id).end()
        return {"state": "ended", "capacity": 0.0, "lines": [], "jobs": {}}
    if run_id not in _runs:
        _runs[run_id] = CameraRun(settings)
    return _runs[run_id].call(assigned, max_fps)
