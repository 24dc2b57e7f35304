"""The pool of a board, which stays open from one task to the next."""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, Iterator

import cv2
import numpy as np

import arguments
import funcs
import main as main_py
import process
import results
import rknnpool
import runtimes
from results.console import say
from results.result import FrameTask, Result
from vision.errors import InputError
from vision.paths import beside_main

TRIAL_SECONDS = 0.5  # how long capacity() measures
# main.py's arguments that open_pool() needs and boards.py does not set. A board writes JSON.
DEFAULTS: dict[str, Any] = {**arguments.unset(vars(main_py)), "json": "-"}


class SharedPool:
    """A pool, and the number of its users."""

    def __init__(self, pool: rknnpool.rknnPoolExecutor):
        self.pool, self.users = pool, 0
        self._capacity, self._lock = 0.0, threading.Lock()

    def capacity(self) -> float:
        """Return how many frames per second this board processes. Measured once, with blank frames.
        """
        with self._lock:
            if not self._capacity:
                blank = np.zeros((720, 1280, 3), np.uint8)
                stream = SimpleNamespace(draws=False)
                began = time.perf_counter()

                def frames() -> Iterator[Result]:
                    count = 0
                    while time.perf_counter() < began + TRIAL_SECONDS or count < 3:
                        yield Result(stream, count, 0.0, blank, 0.0)
                        count += 1

                count = sum(1 for _ in self.pool.map(frames()))
                self._capacity = count / (time.perf_counter() - began)
            return self._capacity


_pools: dict[str, SharedPool] = {}  # by settings and time of the model
_pools_lock = threading.Lock()


@contextlib.contextmanager
def shared_pool(settings: dict[str, Any]) -> Iterator[SharedPool]:
    """Use the board's pool for these settings. It stays open for the next task.

    If it must be opened, unused pools with other settings are closed first. Raises InputError or
    ModelError if it cannot be opened.
    """
    model = beside_main(settings["model"])
    modified = os.path.getmtime(model) if os.path.exists(model) else 0
    key = json.dumps([settings, modified], sort_keys=True)
    with _pools_lock:
        if key not in _pools:
            for unused in [other for other, shared in _pools.items() if not shared.users]:
                _pools.pop(unused).pool.release(timeout=10)
            args = argparse.Namespace(**{**DEFAULTS, **settings, "model": model})
            _pools[key] = SharedPool(open_pool(args))
        shared = _pools[key]
        shared.users += 1
    try:
        yield shared
    except rknnpool.NPUError:  # the next task opens a new pool
        with _pools_lock:
            _pools.pop(key, None)
        raise
    finally:
        with _pools_lock:
            shared.users -= 1


def open_pool(args: argparse.Namespace) -> rknnpool.rknnPoolExecutor:
    npu = f" on a simulated NPU, {args.simulate}" if args.simulate else ""
    say(f"Opening a pool for {args.model}{npu}.", sys.stderr)
    arguments.check(args)
    if args.bigCores == "yes":
        process.stay_on_big_cores()
    runtime = runtimes.by_name(args.runtime)
    soc = None if args.simulate else rknnpool.soc()
    model = funcs.describe_model(*runtimes.model_for(args.runtime, args.model, soc))
    func = funcs.load(args.func) if args.func else funcs.find(model)
    funcs.apply_settings(args, model, func)
    results.check_func(args, func)
    if args.simulate:
        from runtimes.simulated import parse_simulate, record, simulated
        video = cv2.VideoCapture(str(funcs.ROOT / "models/demo.mp4"))
        frames = [video.read()[1] for _ in range(21)][::10]
        seconds, cores = parse_simulate(args.simulate)
        runtime = simulated(seconds, cores, record(args.model, frames, func.myFunc))
    try:
        task = FrameTask(func, results.needs_boxes(args))
        return rknnpool.rknnPoolExecutor(model, args.threads, task, runtime=runtime)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{error}.") from None
