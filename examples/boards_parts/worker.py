"""What boards.py has a board do, in its Dask worker's process: its pool, kept from one task to the next; videos from
beginning to end, cameras for as long as they are asked for. Imported from the board's own clone by what members.order()
sends.
"""
import argparse
import collections
import contextlib
import gzip
import io
import json
import logging
import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Optional, Tuple

import cv2
import numpy as np
from distributed import get_worker
from tqdm import tqdm

import funcs
import main
import results
import runtimes
from results.jsonl import as_dict
from results.result import Result
from rknnmodel import InputError, ModelError
from rknnpool import NPUError, npu_of, rknnPoolExecutor
from sources.names import hide
from streams import Served, Stream, say, users_traceback

LEASE = 3.0        # seconds without a word from boards.py after which a board serves its cameras no longer
MOST_LINES = 5000  # that wait to be fetched; beyond it the oldest go
TRIAL = 0.5        # seconds of the trial that tells how many frames a second a board serves
# what main.py would be asked for besides: lines of JSON, at most
WANTED = {"json": "-", "mqtt": None, "track": False, "lines": {}, "zones": {}, "fps": None, "reader": None,
          "camera_size": None, "camera_fps": None, "camera_format": None}

cv2.setNumThreads(1)  # the pool's threads are the parallelism
# Cameras are asked for several times a second, and Dask would log each time.
logging.getLogger("distributed.worker").addFilter(lambda record: not str(record.msg).startswith("Run out-of-band"))


# ---- the board's pool ----

class Held:
    """A pool, and how many use it."""
    def __init__(self, pool: rknnPoolExecutor):
        self.pool, self.users, self._capacity, self._measuring = pool, 0, 0.0, threading.Lock()

    def capacity(self) -> float:
        """Frames a second that the board serves, from a trial with blank ones. Measured once."""
        with self._measuring:
            if not self._capacity:
                blank, nobody = np.zeros((720, 1280, 3), np.uint8), SimpleNamespace()
                began = time.perf_counter()

                def trial() -> Iterator[Result]:
                    count = 0
                    while time.perf_counter() < began + TRIAL or count < 3:
                        yield Result(nobody, count, 0.0, blank, 0.0)
                        count += 1

                count = sum(1 for _ in self.pool.map(trial()))
                self._capacity = count / (time.perf_counter() - began)
            return self._capacity


_pools: Dict[str, Held] = {}
_opening = threading.Lock()


@contextlib.contextmanager
def pool_of(settings: Dict[str, Any]) -> Iterator[Held]:
    """The board's pool for these settings, kept for the next one who asks. Another that nobody uses makes room for it.
    Raises InputError or ModelError where it does not open."""
    model = main.beside_main(settings["model"])
    key = json.dumps([settings, os.path.getmtime(model) if os.path.exists(model) else 0], sort_keys=True)
    with _opening:
        if key not in _pools:
            for idle in [other for other, held in _pools.items() if not held.users]:
                _pools.pop(idle).pool.release(timeout=10)
            _pools[key] = Held(open_pool(argparse.Namespace(**{**WANTED, **settings, "model": model})))
        held = _pools[key]
        held.users += 1
    try:
        yield held
    except NPUError:  # it is dead, and the next one who asks may have more luck
        with _opening:
            _pools.pop(key, None)
        raise
    finally:
        with _opening:
            held.users -= 1


def open_pool(args: Any) -> rknnPoolExecutor:
    say(f"Opens a pool of {args.model}{args.simulate and f' on a simulated NPU, {args.simulate}' or ''}.", sys.stderr)
    main.check(args)
    if args.bigCores == "yes":
        main.stay_on_big_cores()
    runtime = runtimes.named(args.runtime)
    model = funcs.look_at(*runtimes.model_for(args.runtime, args.model, None if args.simulate else npu_of(runtime)))
    func = funcs.load(args.func) if args.func else funcs.find(model)
    funcs.apply_settings(args, model, func)
    if not funcs.has_detections(func):
        results.refuse_without_detections(args, func)
    if args.simulate:
        from runtimes.simulated import parse_simulate, record, simulated
        video = cv2.VideoCapture(str(funcs.ROOT / "models/demo.mp4"))
        frames = [video.read()[1] for _ in range(51)][::10]
        runtime = simulated(*parse_simulate(args.simulate), record(args.model, frames, func.myFunc))
    try:
        return rknnPoolExecutor(model, args.threads, Served(func), runtime=runtime)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{error}.") from None


def sentence(error: BaseException) -> str:
    """What is told of an error: its sentence, or for one in the user's code the traceback."""
    return hide(str(error) if isinstance(error, (InputError, ModelError)) else users_traceback(error))


# ---- videos ----

class Lines:
    """A place for results: lines of JSON, compressed, in memory."""
    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        self.file = gzip.GzipFile(fileobj=self.bytes, mode="wb", compresslevel=1)

    def write(self, result: Any) -> None:
        self.file.write((json.dumps(as_dict(result), ensure_ascii=False) + "\n").encode("utf-8", "replace"))

    def close(self) -> None:
        self.file.close()


def serve(settings: Dict[str, Any], run: str, name: str, paths: List[str], counting: Any) -> Dict[str, Any]:
    """Serve a video from its beginning to its end: a Dask task.

    paths: the video's, as the one who asks sees it and as it was written, of which the first that exists is taken;
    counting: a namespace with track, lines, zones and fps, as main.py has them. Returns a dict with `board` (its
    address) and `lines` (of JSON, gzip), `frames`, `total`, `seconds`, `code` and `error`; or with `unfit`, a sentence,
    where the board can serve nothing; or with `stopped`, where nobody wants it any more.
    """
    worker = get_worker()
    key, reply = worker.get_current_task(), {"board": worker.address, "code": 0, "error": None}
    over, unwanted = threading.Event(), threading.Event()

    def watch(stream: Stream) -> None:
        while not over.wait(0.5):
            task = worker.state.tasks.get(key)  # a thread cannot be cancelled, but asked to end
            if task is None or task.state == "cancelled" or worker.status.name not in ("running", "paused"):
                unwanted.set()
                stream.stop.set()
                over.set()
                say(f"{name}: nobody wants it any more.", sys.stderr)
            worker.log_event(f"rknnpool-{run}", {"board": worker.address, "video": name, "frames": stream.count})

    try:
        with pool_of(settings) as held:
            try:
                path = next((path for path in paths if "://" in path or os.path.exists(path)), paths[0])
                stream, lines = open_video(path, name, counting), Lines()
            except InputError as error:
                return {**reply, "code": 2, "error": sentence(error)}
            stream.add(lines)
            threading.Thread(target=watch, args=(stream,), daemon=True).start()
            stream.run(held.pool, tqdm(disable=True), quiet=True)
            if stream.code == 3 and stream.error:
                raise NPUError(stream.error, fatal=True)
            return {**reply, "lines": lines.bytes.getvalue(), "frames": stream.count, "read": stream.number,
                    "total": stream.total, "seconds": stream.ended - stream.began, "code": stream.code,
                    "error": stream.error and hide(stream.error), "stopped": unwanted.is_set()}
    except Exception as error:
        return {**reply, "unfit": sentence(error)}
    finally:
        over.set()


def open_video(path: str, name: str, counting: Any) -> Stream:
    """Raises InputError where it is none."""
    stream = Stream(path, name, counting.fps)
    if stream.live:
        if stream.source:
            stream.source.release()
        raise InputError(f"{hide(path)}: is not there, or has no end, and is no video then.")
    results.open_places(argparse.Namespace(json=None, mqtt=None, web=None, headless=True, **vars(counting)), [stream])
    return stream


# ---- cameras ----

class Job:
    """A camera that this board serves, in a thread of its own, until it is stopped."""
    def __init__(self, run: "Run", name: str, epoch: int, address: str, most: Optional[float]):
        self.run, self.name, self.epoch, self.stopped = run, name, epoch, threading.Event()
        self.stream, self.error, self.code = None, None, 0
        threading.Thread(target=self.work, args=(address, most), name=name, daemon=True).start()

    def work(self, address: str, most: Optional[float]) -> None:
        try:
            self.stream = stream = Stream(address, self.name, most)
            stream.places.append(self)
            if not self.stopped.is_set():
                stream.run(self.run.held.pool, tqdm(disable=True), quiet=True)
            self.error, self.code = stream.error, stream.code
            if not self.error and not self.stopped.is_set():
                self.error = f"{self.name}: has ended after {stream.number} frames."
        except Exception as error:
            self.error, self.code = sentence(error), 2 if isinstance(error, InputError) else 1

    def write(self, result: Any) -> None:
        if self.run.lapsed():
            self.run.end()
        if not self.stopped.is_set():
            self.run.lines.append((self.name, self.epoch, json.dumps(as_dict(result), ensure_ascii=False)))

    def stop(self) -> None:
        self.stopped.set()
        if self.stream is not None:
            self.stream.stop.set()

    def state(self) -> Dict[str, Any]:
        return {"epoch": self.epoch, "error": self.error, "code": self.code,
                "rate": self.stream.rate if self.stream else 0.0, "dropped": self.stream.dropped if self.stream else 0}


class Run:
    """What one boards.py asks of this board. Ends LEASE seconds after it asked last, for it may have died, or given the
    cameras to another board."""
    def __init__(self, settings: Dict[str, Any]):
        self.jobs: Dict[Tuple[str, int], Job] = {}
        self.lines: Any = collections.deque(maxlen=MOST_LINES)
        self.asked, self.state, self.capacity, self.held = time.monotonic(), "opening", 0.0, None
        self.ended = threading.Event()
        threading.Thread(target=self.keep, args=(settings,), daemon=True).start()

    def keep(self, settings: Dict[str, Any]) -> None:
        """Hold the pool for as long as the run lasts."""
        try:
            with pool_of(settings) as self.held:
                self.capacity = self.held.capacity()
                self.state = "ready"
                while not self.ended.wait(0.2):
                    if self.lapsed():
                        self.end()
                    dead = [job.error for job in list(self.jobs.values()) if job.code == 3 and job.error]
                    if dead:
                        raise NPUError(dead[0], fatal=True)
        except Exception as error:
            self.state = f"unfit: {sentence(error)}"
            self.end()

    def lapsed(self) -> bool:
        return time.monotonic() > self.asked + LEASE

    def end(self) -> None:
        self.ended.set()
        for job in list(self.jobs.values()):
            job.stop()

    def ask(self, wanted: Dict[str, Tuple[int, str]], most: Optional[float]) -> Dict[str, Any]:
        self.asked = time.monotonic()
        for name, epoch in list(self.jobs):
            if wanted.get(name, (None,))[0] != epoch:
                self.jobs.pop((name, epoch)).stop()
        if self.state == "ready":
            for name, (epoch, address) in wanted.items():
                if (name, epoch) not in self.jobs:
                    self.jobs[name, epoch] = Job(self, name, epoch, address, most)
        lines = [self.lines.popleft() for _ in range(len(self.lines))]
        return {"state": self.state, "capacity": self.capacity, "lines": lines,
                "jobs": {job.name: job.state() for job in self.jobs.values()}}


_runs: Dict[str, Run] = {}


def ask(run: str, settings: Dict[str, Any], wanted: Optional[Dict[str, Tuple[int, str]]],
        most: Optional[float] = None) -> Dict[str, Any]:
    """Serve just these cameras from now on, {name: (epoch, address)}, and hand over the lines since the last time.
    Asked several times a second, on Dask's own thread: returns at once. wanted: None ends the run.

    Returns state ("opening", "ready" or "unfit: ..."), capacity in frames a second, lines, (name, epoch, JSON) each,
    and jobs, {name: its state}.
    """
    for other in [other for other, each in _runs.items() if each.ended.is_set() and (other != run or each.lapsed())]:
        del _runs[other]
    if wanted is None:
        if run in _runs:
            _runs.pop(run).end()
        return {"state": "ended", "capacity": 0.0, "lines": [], "jobs": {}}
    if run not in _runs:
        _runs[run] = Run(settings)
    return _runs[run].ask(wanted, most)
