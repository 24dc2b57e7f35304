"""Measures where a run's time goes, for limits.py: in func, in the NPU, in sources and outputs.

    meter = Meter(streams)
    pool = rknnPoolExecutor(model, 6, meter.timed(FrameTask(func)))
    ...
    print(meter.limit())
"""
from __future__ import annotations

import collections
import dataclasses
import functools
import re
import threading
import time
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional

import rknnpool
from limits import MIN_SECONDS, Figures, limit_of
from results.status import usable_cpus


class Busy:
    """Seconds with at least one call in progress (`any`), and the seconds of all calls (`all`)."""

    def __init__(self) -> None:
        self.calls, self.since = 0, 0.0  # number in progress; time of its last change
        self.any = self.all = 0.0

    def change(self, step: int) -> float:
        """Add `step` to the calls in progress. Returns time.perf_counter()."""
        now = time.perf_counter()
        if self.calls:
            self.any += now - self.since
            self.all += self.calls * (now - self.since)
        self.calls, self.since = self.calls + step, now
        return now


class Meter:
    """Measures one pool and its streams.

    streams: Streams; they get this Meter as `meter`. queued: a function that takes func's second
    argument and returns the time.perf_counter() at which it was given to the pool.
    """

    def __init__(self, streams: Iterable[Any] = (),
                 queued: Callable[[Any], float] = lambda result: result.queued) -> None:
        self.streams, self.queued = list(streams), queued
        for stream in self.streams:
            stream.meter = self
        self.lock = threading.Lock()
        self.threads = self.cores = 1
        self.funcs = Busy()
        self.of_core: Dict[str, Busy] = collections.defaultdict(Busy)
        self.failures: Dict[str, int] = collections.Counter()
        self.frames: float = 0
        self.runs = 0
        self.wait = self.cpu = 0.0
        self.shortest = float("inf")
        self.began = self.cpu_began = 0.0
        self.earlier: Deque[Figures] = collections.deque([Figures()])  # of recent_limit()
        self.final: Optional[Figures] = None  # when all streams had ended

    # ---- in the pool's threads ----

    def timed(self, func: Callable) -> Callable:
        """func(context, frame), measured: what the pool gets."""
        def measured(context: Any, frame: Any) -> Any:
            if getattr(context, "meter", None) is not self:
                self._attach(context)
            cpu = time.thread_time()
            with self.lock:
                self.wait += self.funcs.change(1) - self.queued(frame)
            try:
                return func(context, frame)
            finally:
                with self.lock:
                    self.funcs.change(-1)
                    self.cpu += time.thread_time() - cpu
                    self.frames += getattr(frame, "share", 1)  # of a tile in its frame
        return measured

    def _attach(self, context: Any) -> None:
        """Measure this context's inference."""
        context.meter = self
        label = re.search(r"of (\d+)(?:, core (\S+))?", getattr(context, "label", None) or "of 1")
        assert label
        core = label[2] or "0"
        with self.lock:
            if not self.began:
                self.began, self.cpu_began = time.perf_counter(), time.process_time()
            self.threads = int(label[1])
            if getattr(context, "cpu_only", False):
                self.cores = 0
            elif "+" not in core:  # as the pool counts them
                self.cores = getattr(context, "NPU_CORES", 0) or rknnpool.npu_cores(rknnpool.soc())
            busy = self.of_core[core]
        for name in ("inference", "inference_raw"):
            if hasattr(context, name):
                setattr(context, name, functools.partial(
                    self._infer, busy, core, getattr(context, name)))

    def _infer(self, busy: Busy, core: str, infer: Callable, *args: Any, **options: Any) -> Any:
        with self.lock:
            began = busy.change(1)
        seconds = float("inf")
        try:
            outputs = infer(*args, **options)
            seconds = time.perf_counter() - began
            return outputs
        except rknnpool.NPUError:
            with self.lock:
                self.failures[core] += 1
            raise
        finally:
            with self.lock:
                busy.change(-1)
                self.runs, self.shortest = self.runs + 1, min(self.shortest, seconds)

    # ---- for any thread ----

    def figures(self) -> Figures:
        """The figures from the first frame until now, or until all streams have ended."""
        if self.final:
            return self.final
        with self.lock:
            now = self.funcs.change(0)
            for busy in self.of_core.values():
                busy.change(0)
            ends = [stream.ended or now for stream in self.streams]
            cpu = time.process_time() - self.cpu_began if self.began else 0.0
            measured = Figures(
                threads=self.threads, cores=self.cores, cpus=usable_cpus(), shortest=self.shortest,
                seconds=max(ends or [now]) - (self.began or now), frames=self.frames,
                wait=self.wait, func=self.funcs.all, cpu=self.cpu, runs=self.runs,
                inference=sum(busy.all for busy in self.of_core.values()),
                in_flight={core: busy.any for core, busy in self.of_core.items()},
                failures=dict(self.failures), process_cpu=cpu)
        measured = add_streams(measured, self.streams, now)
        if self.streams and all(stream.ended for stream in self.streams):
            self.final = measured
        return measured

    def limit(self) -> str:
        """What limited the run; "" after a short one."""
        figures = self.figures()
        return limit_of(figures) if figures.seconds > MIN_SECONDS and figures.frames else ""

    def recent_limit(self) -> str:
        """What has limited the rate since the last call that is at least MIN_SECONDS ago, or since
        the start; "" if that is too short, or no frame was processed."""
        figures, past = self.figures(), self.earlier
        while len(past) > 1 and past[1].seconds <= figures.seconds - MIN_SECONDS:
            past.popleft()
        recent = figures.since(past[0])
        if figures.seconds >= past[-1].seconds + MIN_SECONDS / 5:
            past.append(figures)
        return limit_of(recent) if recent.seconds >= MIN_SECONDS and recent.frames else ""


def add_streams(figures: Figures, streams: List[Any], now: float) -> Figures:
    """The figures with what streams.Stream measured. now: time.perf_counter()."""
    def seconds(some: List[Any]) -> float:
        return sum((stream.ended or now) - stream.began for stream in some)

    files = [stream for stream in streams if not stream.live]
    limits = [stream.max_fps for stream in streams]
    outputs: Dict[str, float] = collections.defaultdict(float)
    for stream in streams:
        for name, spent in list(stream.spent.items()):  # a copy: another thread may add a name
            outputs[name] += spent
    outputs.pop("read", None)
    return dataclasses.replace(
        figures, live=bool(streams) and not files, max_fps=sum(limits) if all(limits) else None,
        software=bool(rknnpool.soc()) and any(
            getattr(stream.source, "decodes_on_cpu", False) for stream in streams),
        dropped=sum(stream.dropped for stream in streams), streams=seconds(streams),
        files=seconds(files), read=sum(stream.spent["read"] for stream in files),
        outputs=dict(outputs))
