"""What benchmark.py measures: the pool's FPS, latency, CPU and memory."""
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np

import funcs
import rknnpool
import runtimes
from limits import Figures, limit_of, stages
from meter import Meter
from results.status import usable_cpus
from runtimes import cpu
from runtimes.simulated import Recorder, opened, parse_simulate, record, simulated
from runtimes.simulated_library import simulated_library
from sources import open_source
from vision.errors import InputError
from vision.model import describe

RECORDED = 60     # frames of the video whose outputs a simulated NPU returns: 2.1 MB each
IN_MEMORY = 120   # frames that --no-decode holds: 2.8 MB each at 1280x720


def opened_video(path: str) -> Any:
    """The video at `path`, a Source. Raises InputError if it cannot rewind() or has no end."""
    video = open_source(path)
    if not hasattr(video, "rewind") or video.total < 1:
        raise InputError(f"{path}: not a video with an end, so the benchmark cannot repeat it.")
    return video


def looped(path: str) -> Iterator[np.ndarray]:
    """The video's frames, again and again."""
    video = opened_video(path)
    while True:
        frame = video.read()
        if frame is None:
            video.rewind()
            frame = video.read()
            if frame is None:
                raise InputError(f"{path}: cannot be read again from its beginning.")
        yield frame


def paced(frames: Iterable, fps: float) -> Iterator:
    """`frames` as a camera delivers them: one every 1 / fps seconds."""
    due = time.perf_counter()
    for frame in frames:
        due = max(due + 1 / fps, time.perf_counter() - 1 / fps)  # frames nobody reads are missed
        time.sleep(max(0, due - time.perf_counter()))
        yield frame


def resident_mb(field: str = "VmRSS") -> float:
    """Resident memory in MB: now (VmRSS), or the peak (VmHWM) since reset_peak(). NaN without
    /proc."""
    status = Path("/proc/self/status")
    found = re.search(field + r":\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


class Bench:
    """What all columns share: runtimes, frames, and the NPU's highest FPS if it is known."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.soc = rknnpool.soc()
        self.model = describe(*runtimes.model_for(None, args.model, self.soc))
        self.func = funcs.load(args.func) if args.func else funcs.find(self.model)
        self.myFunc = self.func.myFunc
        self.cpus, self.read = usable_cpus(), 0.0  # seconds of reading and decoding so far
        names = list(dict.fromkeys(args.runtime or [None]))
        self.limit_fps: Optional[float] = None
        if not args.simulate:
            self._use_this_machine(names)
        if args.simulate:
            self._simulate(names, opened_video(args.cap).total)
        self.runtime = self.runtimes[names[0]]
        self.held: Optional[List[np.ndarray]] = None
        if args.no_decode:
            self.held = list(itertools.islice(looped(args.cap), IN_MEMORY))

    def _use_this_machine(self, names: List[Optional[str]]) -> None:
        self.runtimes: Dict[Optional[str], Any] = {
            name: runtimes.by_name(name) or runtimes.choose(self.args.model, self.soc)
            for name in names}
        on_cpu = self.soc is None or self.runtimes[names[0]] is cpu.RKNNLite
        self.cores = 1 if on_cpu else rknnpool.npu_cores(self.soc)
        self.bare_contexts = self.cpus if on_cpu else 2 * self.cores
        self.npu = f"no NPU, {self.cpus} CPU cores" if on_cpu else f"NPU of the {self.soc}"

    def _simulate(self, names: List[Optional[str]], total: int) -> None:
        inference_time, self.cores = parse_simulate(self.args.simulate)
        print(f"Recording the outputs of {min(total, RECORDED)} frames ...", file=sys.stderr)
        spread = itertools.islice(looped(self.args.cap), 0, total, -(-total // RECORDED))
        recorded = record(self.args.model, spread, self.myFunc)
        self.runtimes = {
            name: simulated_library(name, inference_time, self.cores, recorded) if name
            else simulated(inference_time, self.cores, recorded) for name in names}
        each = [float(seconds) for seconds in np.broadcast_to(inference_time, (self.cores,))]
        self.limit_fps = sum(1 / seconds for seconds in each) if all(each) else float("inf")
        times = f"{self.cores} x {each[0] * 1000:.1f}"
        if len(set(each)) > 1:
            times = " ".join(f"{seconds * 1000:.1f}" for seconds in each)
        self.npu = f"simulated NPU, {times} ms"

    @property
    def name(self) -> str:
        width, height = opened_video(self.args.cap).size
        return f"{Path(self.args.cap).name} {width}x{height}, {self.npu}"

    def frames(self) -> Iterator[np.ndarray]:
        if self.held is None:
            return looped(self.args.cap)
        return (frame.copy() for frame in itertools.cycle(self.held))  # myFunc draws on them

    def pool(self, column: Optional[str], function: Callable, runtime: Any = None) \
            -> rknnpool.rknnPoolExecutor:
        """A pool with as many threads as `column` says; None: with main.py's default."""
        runtime = runtime or self.runtime
        mask = runtime.NPU_CORE_0_1_2 if column == "all" else None
        count = 2 if column == "all" else int(column) if column else None
        try:
            return rknnpool.rknnPoolExecutor(self.args.model, count, function, coreMask=mask,
                                             runtime=runtime)
        except RuntimeError as error:  # its message is a sentence
            raise InputError(f"{error}.") from None

    def bare(self) -> float:
        """FPS of inference alone, without video and drawing: two contexts on every core of an NPU,
        or one on every CPU core."""
        frame = next(self.frames())

        def loop(context: Any, _: Any) -> float:
            recorder = Recorder(context)
            self.myFunc(recorder, frame.copy())
            began, count = time.perf_counter(), 0
            while time.perf_counter() < began + self.args.seconds:
                context.inference(recorder.inputs)
                count += 1
            return count / (time.perf_counter() - began)

        with self.pool(str(self.bare_contexts), loop) as pool:
            return sum(pool.map(range(self.bare_contexts)))

    def clocked(self) -> Iterator[tuple]:
        """(number, time of submission, frame) for each frame of the source."""
        frames = paced(self.frames(), self.args.live) if self.args.live else self.frames()
        for number in itertools.count():
            began = time.perf_counter()
            frame = next(frames)
            submitted = time.perf_counter()
            self.read += submitted - began
            yield number, submitted, frame

    def serve(self, context: Any, item: tuple) -> tuple:
        self.myFunc(context, item[2])
        return item[:2]

    def measure(self, column: str, runtime: Optional[str]) -> Dict[str, Any]:
        """One column in one round, as window() returns it."""
        reset_peak()
        meter = Meter(queued=lambda item: item[1])
        serve, figures = meter.timed(self.serve), functools.partial(self.figures, meter)
        if column == "plain":
            context = opened(self.runtimes[runtime], self.args.model, self.soc)
            measured = self.window((serve(context, item) for item in self.clocked()), list, figures)
            context.release()
            return measured
        with self.pool(column, serve, self.runtimes[runtime]) as pool:
            results = pool.map(self.clocked(), live=bool(self.args.live))
            return self.window(results, lambda: pool.frames_per_core, figures)

    def figures(self, meter: Meter) -> Figures:
        """What a pool's meter has measured, and the reading of the video."""
        figures, live = meter.figures(), bool(self.args.live)
        return dataclasses.replace(figures, live=live, streams=figures.seconds, read=self.read,
                                   files=0.0 if live else figures.seconds)

    def window(self, results: Iterator, frames_per_core: Callable,
               figures: Callable[[], Figures] = Figures) -> Dict[str, Any]:
        """Measure from the first result after the warm-up to the first one after `seconds`, so that
        only whole frames count.

        Returns fps, latencies in ms, cpu_ms per frame, runs per core, peak rss_mb, dropped frames,
        and the figures of limits.py.
        """
        warm, latencies = time.perf_counter() + self.args.warmup, []
        first, _ = next(results)
        while time.perf_counter() < warm:
            first, _ = next(results)
        began, cpu_began, before = time.perf_counter(), time.process_time(), frames_per_core()
        earlier = figures()
        for number, submitted in results:  # noqa: B007
            now = time.perf_counter()
            latencies.append((now - submitted) * 1000)
            if now >= began + self.args.seconds:
                break
        count, dropped = len(latencies), number - first - len(latencies)
        measured = dataclasses.replace(figures().since(earlier), dropped=dropped)
        return dict(fps=count / (now - began), latencies=latencies,
                    cpu_ms=(time.process_time() - cpu_began) * 1000 / count,
                    rss_mb=resident_mb("VmHWM"), dropped=dropped, figures=measured,
                    runs=[after - start for start, after in zip(before, frames_per_core())])


def measure_table(bench: Bench, columns: List[tuple], title: Callable) -> Tuple[List[dict], float]:
    """Measure every column, (threads, runtime's name or None), in every round.

    Returns a dict of figures for each column, and the NPU's highest FPS.
    """
    measured: Dict[tuple, List[dict]] = {column: [] for column in columns}
    limits = []
    for number in range(1, bench.args.rounds + 1):
        if bench.limit_fps is None:
            limits.append(bench.bare())
            print(f"round {number}, inference alone: {limits[-1]:.1f} FPS", file=sys.stderr)
        for column in columns:
            measured[column].append(bench.measure(*column))
            print(f"round {number}, {title(*column)}: {measured[column][-1]['fps']:.1f} FPS",
                  file=sys.stderr)
    limit_fps = statistics.median(limits) if bench.limit_fps is None else bench.limit_fps
    return [_summary(column, rounds, limit_fps) for column, rounds in measured.items()], limit_fps


def _summary(column: tuple, rounds: List[dict], limit_fps: float) -> dict:
    every: Dict[str, list] = {key: [one[key] for one in rounds] for key in rounds[0]}
    fps, latencies = statistics.median(every["fps"]), np.concatenate(every["latencies"])
    return dict(threads=column[0], runtime=column[1], fps=fps, fps_of_rounds=every["fps"],
                share=fps / limit_fps, p50_ms=float(np.percentile(latencies, 50)),
                p99_ms=float(np.percentile(latencies, 99)),
                cpu_ms=statistics.median(every["cpu_ms"]),
                runs=[sum(of_core) for of_core in zip(*every["runs"])],
                rss_mb=max(every["rss_mb"]), dropped=sum(every["dropped"]),
                limit=limit_of(every["figures"][-1]), stages=stages(every["figures"][-1]))


def soak(bench: Bench, column: str, step: int = 2000) -> None:
    """Print memory while frames arrive twice as fast as the pool serves them: it must stay flat."""
    fps = bench.args.live or 2 * (bench.limit_fps or bench.bare())
    frames = paced(bench.frames(), fps) if np.isfinite(fps) else bench.frames()
    began = time.perf_counter()

    def serve(context: Any, item: tuple) -> tuple:
        return item[0], bench.myFunc(context, item[1])

    with bench.pool(column, serve) as pool:
        for served, (number, _) in enumerate(pool.map(enumerate(frames, 1), live=True), 1):
            if served % step == 0 or served == bench.args.soak:
                rate = served / (time.perf_counter() - began)
                print(f"{served} frames served, {number - served} dropped, {rate:.1f} FPS, "
                      f"RSS {resident_mb():.1f} MB", flush=True)
            if served == bench.args.soak:
                break


def streams(bench: Bench, column: str) -> None:
    """Print FPS, dropped frames and the worst stream's latencies for several sources on one
    pool."""
    print("| streams | FPS in all | FPS, slowest | dropped | latency p50, ms | latency p99, ms |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for count in bench.args.streams:
        with bench.pool(column, bench.serve) as pool, ThreadPoolExecutor(count) as consumers:
            results = [pool.map(bench.clocked(), live=bool(bench.args.live)) for _ in range(count)]
            measure = functools.partial(bench.window, frames_per_core=lambda: [])
            measured = list(consumers.map(measure, results))
        fps = [stream["fps"] for stream in measured]
        dropped = sum(stream["dropped"] for stream in measured)
        p50, p99 = (max(np.percentile(stream["latencies"], share) for stream in measured)
                    for share in (50, 99))
        print(f"| {count} | {sum(fps):.1f} | {min(fps):.1f} | {dropped} | {p50:.1f} | {p99:.1f} |",
              flush=True)
