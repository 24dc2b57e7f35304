"""Frames a second against threads: on this machine's NPU, on the CPU that stands in for one, or on a simulated NPU.

    python benchmark.py                                             # the settings below
    python benchmark.py --simulate yolov5s_relu@rk3588              # an NPU of the speed that Rockchip publishes
    python benchmark.py --simulate 16.9x3 --threads 3 6 --profile   # three cores, 16.9 ms an inference; CPU's stages
    python benchmark.py --simulate 10,10,30 --threads 6             # cores of different speed
    python benchmark.py --simulate 16.9x3 --threads 6 --live 30     # a camera of 30 frames a second
    python benchmark.py --threads plain 2                           # two threads against a plain loop without a pool
    python benchmark.py --simulate 16.9x3 --threads 6 --soak 20000  # does memory stay flat?
    python benchmark.py --simulate yolov8n@rk3588 --live 30 --streams 2 4 7     # so many cameras on one pool
    python benchmark.py --simulate 16.9x3 --threads plain 6 --runtime wheel library     # what the wheel's copies cost

Every frame is decoded, inferred and drawn on as main.py does it, without a window. The plot needs matplotlib.
"""
from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import json
import os
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable, Iterator

import cv2
import numpy as np

import func
import funcs
import rknnmodel
import rknnpool
import runtimes
import runtimes.cpu as cpu
from main import stay_on_big_cores
from rknnmodel import InputError
from runtimes.simulated import PUBLISHED, Recorder, opened, parse_simulate, record, simulated
from runtimes.simulated_library import KINDS, simulated_library
from sources import Video, open_source

# --------------------------------------------------------------------------------------------------------------------
modelPath = "models/yolov5n_emoji.rknn"  # the model; on a machine without an NPU the .onnx beside it runs instead
cap = "models/demo.mp4"                  # the video, begun again at its end
# the table's columns; all: two threads, each frame on all cores; plain: one, without a pool
threads = "1 2 3 4 5 6 7 8 9 all"
seconds = 5.0                            # measured for each column in each round
warmup = 1.0                             # seconds before that
rounds = 3                               # every column once a round, so that drift hits all alike; the median counts
simulate = None                          # None, one of PUBLISHED, or milliseconds x cores as in "16.9x3" or "10,10,30"
runtime = None                           # None: the pool's choice, or a simulated NPU in NumPy; names that --help lists
output = "runs/benchmark"                # where the .json and the .png go
# --------------------------------------------------------------------------------------------------------------------

RECORDED = 60     # frames, spread over the video, whose outputs a simulated NPU gives: 2.1 MB each
IN_MEMORY = 120   # frames that --no-decode holds: 2.8 MB each at 1280x720


def opened_video(path: str) -> Video:
    """The video at `path`. Raises InputError for anything without an end, which could not begin again."""
    video = open_source(path)
    if not isinstance(video, Video) or video.total < 1:
        raise InputError(f"{path}: is not a video with an end, which the benchmark could begin again.")
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
    """`frames` as a camera gives them: one every 1 / fps seconds, ready at that moment."""
    due = time.perf_counter()
    for frame in frames:
        due = max(due + 1 / fps, time.perf_counter() - 1 / fps)  # what came while nobody read is missed
        time.sleep(max(0, due - time.perf_counter()))
        yield frame


def rss(field: str = "VmRSS") -> float:
    """Resident memory in MB now (VmRSS), or at its peak (VmHWM) since reset_peak(). NaN where there is no /proc."""
    status = Path("/proc/self/status")
    return int(re.search(field + r":\s+(\d+)", status.read_text())[1]) / 1024 if status.exists() else float("nan")


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # the peak is then the whole run's
        Path("/proc/self/clear_refs").write_text("5")


class Bench:
    """What the columns have in common: the NPU, its ceiling where it is known, and the frames."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.ceiling, self.held = args, None, None
        module = funcs.load(args.func) if args.func else funcs.find(rknnmodel.describe(args.model, rknnpool.npu_of()))
        self.myFunc = module.myFunc
        self.cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        names = list(dict.fromkeys(args.runtime or [None]))
        if not args.simulate:
            self.runtimes = {name: runtimes.named(name) or rknnpool.RKNNLite for name in names}
        video = opened_video(args.cap)
        total, size = video.total, "{}x{}".format(*video.size)
        if args.simulate:
            inference, self.cores = parse_simulate(args.simulate)
            print(f"Recording the outputs of {min(total, RECORDED)} frames ...", file=sys.stderr)
            spread = itertools.islice(looped(args.cap), 0, total, -(-total // RECORDED))
            recorded = record(args.model, spread, self.myFunc)
            self.runtimes = {name: simulated_library(name, inference, self.cores, recorded) if name else
                             simulated(inference, self.cores, recorded) for name in names}
            each = [float(seconds) for seconds in np.broadcast_to(inference, (self.cores,))]
            self.ceiling = sum(1 / seconds for seconds in each) if all(each) else float("inf")
            times = " ".join(f"{seconds * 1000:.1f}" for seconds in each)
            npu = f"simulated NPU, {times if len(set(each)) > 1 else f'{self.cores} x {each[0] * 1000:.1f}'} ms"
        else:
            on_cpu = self.runtimes[names[0]] is cpu.RKNNLite
            self.cores = 1 if on_cpu else rknnpool.npu_cores(rknnpool.soc())
            self.bare_contexts = self.cpus if on_cpu else 2 * self.cores
            npu = f"no NPU, {self.cpus} CPU cores" if on_cpu else f"NPU of the {rknnpool.soc()}"
        self.runtime = self.runtimes[names[0]]
        if args.no_decode:
            self.held = list(itertools.islice(looped(args.cap), min(total, IN_MEMORY)))
        self.name = f"{Path(args.cap).name} {size}, {npu}"

    def frames(self) -> Iterator[np.ndarray]:
        if self.held is None:
            return looped(self.args.cap)
        return (frame.copy() for frame in itertools.cycle(self.held))  # copies, for they are drawn on

    def pool(self, column: str, function: Callable, runtime: type | None = None) -> rknnpool.rknnPoolExecutor:
        runtime = runtime or self.runtime
        mask = runtime.NPU_CORE_0_1_2 if column == "all" else None
        count = 2 if column == "all" else int(column)
        try:
            return rknnpool.rknnPoolExecutor(self.args.model, count, function, coreMask=mask, runtime=runtime)
        except RuntimeError as error:  # its message is a sentence
            raise InputError(f"{error}.") from None

    def bare(self) -> float:
        """FPS of inference alone: no video, no drawing; two contexts on every core of an NPU, or one on every CPU
        core."""
        frame = next(self.frames())

        def loop(context, _):
            recorder = Recorder(context)
            self.myFunc(recorder, frame.copy())
            began, count = time.perf_counter(), 0
            while time.perf_counter() < began + self.args.seconds:
                context.inference(recorder.inputs)
                count += 1
            return count / (time.perf_counter() - began)

        with self.pool(self.bare_contexts, loop) as pool:
            return sum(pool.map(range(self.bare_contexts)))

    def clocked(self) -> Iterator[tuple]:
        """(number, time of handing in, frame) of a source: a frame carries the time it was handed in."""
        frames = paced(self.frames(), self.args.live) if self.args.live else self.frames()
        return ((number, time.perf_counter(), frame) for number, frame in enumerate(frames))

    def serve(self, context, item):
        self.myFunc(context, item[2])
        return item[:2]

    def measure(self, column: str, runtime: str | None) -> dict:
        """One column, once: a dict of fps, latencies in ms, cpu_ms a frame, runs per core, peak rss_mb, dropped
        frames."""
        reset_peak()
        if column == "plain":
            context = opened(self.runtimes[runtime], self.args.model)
            measured = self.window((self.serve(context, item) for item in self.clocked()), list)
            context.release()
            return measured
        with self.pool(column, self.serve, self.runtimes[runtime]) as pool:
            return self.window(pool.map(self.clocked(), live=bool(self.args.live)), lambda: pool.runs)

    def window(self, results: Iterator, runs: Callable) -> dict:
        """Counts from the first result after the warm-up to one that comes `seconds` later, so that no part of a frame
        counts."""
        warm, latencies = time.perf_counter() + self.args.warmup, []
        first, _ = next(results)
        while time.perf_counter() < warm:
            first, _ = next(results)
        began, cpu, runs_before = time.perf_counter(), time.process_time(), runs()
        for number, handed_in in results:
            now = time.perf_counter()
            latencies.append((now - handed_in) * 1000)
            if now >= began + self.args.seconds:
                dropped = number - first - len(latencies)
                break
        count = len(latencies)
        return dict(fps=count / (now - began), latencies=latencies, cpu_ms=(time.process_time() - cpu) * 1000 / count,
                    rss_mb=rss("VmHWM"),
                    runs=[after - before for before, after in zip(runs_before, runs())], dropped=dropped)


def run_table(bench: Bench, columns: list[tuple]) -> tuple:
    """Measure every column, (threads, name of the runtime or None), in every round: a list of one dict a column, of
    what the table shows, and the ceiling in FPS."""
    measured, ceilings = {column: [] for column in columns}, []
    for number in range(1, bench.args.rounds + 1):
        if bench.ceiling is None:
            ceilings.append(bench.bare())
            print(f"round {number}, inference alone: {ceilings[-1]:.1f} FPS", file=sys.stderr)
        for column in columns:
            measured[column].append(bench.measure(*column))
            print(f"round {number}, {title(*column)}: {measured[column][-1]['fps']:.1f} FPS", file=sys.stderr)
    ceiling, table = bench.ceiling or statistics.median(ceilings), []  # infinite for an NPU that takes no time
    for column, of_rounds in measured.items():
        every = {key: [once[key] for once in of_rounds] for key in of_rounds[0]}
        fps, latencies = statistics.median(every["fps"]), np.concatenate(every["latencies"])
        table.append(dict(
            threads=column[0], runtime=column[1], fps=fps, fps_of_rounds=every["fps"], share=fps / ceiling,
            p50_ms=float(np.percentile(latencies, 50)),
            p99_ms=float(np.percentile(latencies, 99)), cpu_ms=statistics.median(every["cpu_ms"]),
            runs=[sum(of_core) for of_core in zip(*every["runs"])], rss_mb=max(every["rss_mb"]),
            dropped=sum(every["dropped"])))
    return table, ceiling


def title(column: str, runtime: str | None = None) -> str:
    name = {"all": "all cores on one frame", "plain": "plain loop", "1": "1 thread"}.get(column, f"{column} threads")
    return f"{name}, {runtime}" if runtime else name


def markdown(table: list[dict]) -> str:
    """The table, a column per thread count."""
    rows = [("", [title(column["threads"], column["runtime"]) for column in table]), ("---", ["---"] * len(table))]
    for name, form in [("FPS", "**{fps:.1f}**"), ("share of the ceiling", "{share:.1%}"),
                       ("latency p50, ms", "{p50_ms:.1f}"),
                       ("latency p99, ms", "{p99_ms:.1f}"), ("CPU, ms a frame", "{cpu_ms:.2f}"),
                       ("runs per core", "{runs}"),
                       ("peak RSS, MB", "{rss_mb:.0f}"), ("frames dropped", "{dropped}")]:
        if name == "share of the ceiling" and not table[0]["share"]:
            continue  # an NPU that takes no time has no ceiling
        rows.append((name, [form.format(**{**column, "runs": " ".join(map(str, column["runs"])) or "–"})
                            for column in table]))
    return "\n".join("| " + " | ".join([name, *cells]) + " |" for name, cells in rows)


def plot(table: list[dict], ceiling: float, name: str, path: str) -> None:
    """FPS against threads, the ceiling drawn in, as PNG."""
    try:
        import matplotlib
    except ImportError:
        return print("No plot: it needs matplotlib (pip install matplotlib).", file=sys.stderr)
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=150)
    counts = [column for column in table if column["threads"].isdigit()]
    for runtime in dict.fromkeys(column["runtime"] for column in counts):
        points = [(int(column["threads"]), column["fps"]) for column in counts if column["runtime"] == runtime]
        axes.plot(*zip(*points), "o-", label=f"the pool, {runtime}" if runtime else "the pool")
    for column in table:
        if not column["threads"].isdigit():
            axes.axhline(column["fps"], linestyle=":" if column["threads"] == "all" else "-.", color="grey",
                         label=title(column["threads"], column["runtime"]))
    if np.isfinite(ceiling):
        axes.axhline(ceiling, linestyle="--", color="tab:red", label=f"ceiling: {ceiling:.0f} FPS")
    axes.set(xlabel="threads", ylabel="frames a second", title=name, ylim=(0, None),
             xticks=sorted({int(column["threads"]) for column in counts}))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


class Stopwatch:
    """Takes the place of the module cv2 in func.py: `seconds` is the CPU time spent inside OpenCV, which holds no GIL
    there."""

    seconds = 0.0

    def __getattr__(self, name):
        value = getattr(cv2, name)
        return functools.partial(self.timed, value) if callable(value) else value

    def timed(self, call, *args, **options):
        began = time.process_time()
        result = call(*args, **options)
        self.seconds += time.process_time() - began
        return result


def profile(bench: Bench) -> dict:
    """Where a frame's CPU time goes: a dict of stage: [ms a frame, of these holding the GIL, at most].

    Every stage runs alone, so that the process's CPU time is the stage's, FFmpeg's threads included. What is not inside
    OpenCV or the runtime counts as holding the GIL. That is an upper bound, for NumPy lets go of it in its longer
    loops. The stopwatch in OpenCV's place costs time itself, so it is there on every second frame only, and the sums
    are those of the others.
    """
    count = max(1, round(60 * bench.args.seconds))  # frames
    stages, watch = collections.defaultdict(lambda: [0.0, 0.0]), Stopwatch()
    frames, context = looped(bench.args.cap), opened(bench.runtime, bench.args.model)

    def stage(name, call, *args, of=count):
        before = time.process_time(), watch.seconds
        result = call(*args)
        in_all, outside = time.process_time() - before[0], watch.seconds - before[1]
        if func.cv2 is cv2:
            stages[name][0] += in_all * 1000 / of
        else:
            stages[name][1] += (0 if name in ("decode the video", "inference call") else in_all - outside) * 1000 / of
        return result

    for number in range(-(count // 5), 2 * count):
        if number == 0:
            stages.clear()  # of the warm-up
        func.cv2 = watch if number % 2 else cv2
        frame = stage("decode the video", next, frames)
        square, placed = stage("letterbox", func.letterbox, frame, func.IMG_SIZE)
        outputs = stage("inference call", func.infer_raw, context, square)
        boxes, classes, scores = stage("NMS", func.nms, *stage("decode the heads", func.decode, outputs))
        stage("draw", lambda: func.draw(frame, func.unletterbox(boxes, placed, frame), classes, scores))  # noqa: B023
    func.cv2 = cv2
    context.release()
    # asleep, so that threads wake up as in earnest
    with bench.pool(2 * bench.cores, lambda context, frame: time.sleep(0.001)) as pool:
        stage("hand-over", lambda: list(pool.map(range(10 * count))), of=10 * count)
        stages["hand-over"][1] = stages["hand-over"][0]
    for part in stages.values():
        part[1] = min(part)  # the two come from different frames
    own = zip(*(stages[name] for name in ("letterbox", "decode the heads", "NMS", "draw")))
    return {**stages, "func.py's own: letterbox, heads, NMS, draw": [sum(part) for part in own]}


def soak(bench: Bench, column: str, step: int = 2000) -> None:
    """Frames arrive twice as fast as they can be served: memory shall stay flat."""
    fps = bench.args.live or 2 * (bench.ceiling or bench.bare())
    frames = paced(bench.frames(), fps) if np.isfinite(fps) else bench.frames()
    began = time.perf_counter()
    with bench.pool(column, lambda context, item: (item[0], bench.myFunc(context, item[1]))) as pool:
        for served, (number, _) in enumerate(pool.map(enumerate(frames, 1), live=True), 1):
            if served % step == 0 or served == bench.args.soak:
                rate = served / (time.perf_counter() - began)
                print(f"{served} frames served, {number - served} dropped, {rate:.1f} FPS, RSS {rss():.1f} MB",
                      flush=True)
            if served == bench.args.soak:
                break


def streams(bench: Bench, column: str) -> None:
    """Several sources on one pool, all at once: FPS, dropped frames and latencies, the worst stream's."""
    print("| streams | FPS in all | FPS, slowest | dropped | latency p50, ms | latency p99, ms |\n| --- | --- | --- | "
          "--- | --- | --- |")
    for count in bench.args.streams:
        with bench.pool(column, bench.serve) as pool, ThreadPoolExecutor(count) as consumers:
            results = [pool.map(bench.clocked(), live=bool(bench.args.live)) for _ in range(count)]
            measured = list(consumers.map(lambda stream: bench.window(stream, lambda: pool.runs),
                                          results))  # noqa: B023
        fps = [stream["fps"] for stream in measured]
        p50, p99 = (max(np.percentile(stream["latencies"], share) for stream in measured) for share in (50, 99))
        print(f"| {count} | {sum(fps):.1f} | {min(fps):.1f} | {sum(stream['dropped'] for stream in measured)} | "
              f"{p50:.1f} | {p99:.1f} |",
              flush=True)


def run(args: argparse.Namespace) -> None:
    columns = list(dict.fromkeys(args.threads))
    for column in columns:
        if column not in ("all", "plain") and not re.fullmatch("[1-9][0-9]*", column):
            raise InputError(f"--threads {column}: give numbers from 1, all, or plain.")
    if args.simulate:
        for name in args.runtime or ():
            if name not in KINDS:
                raise InputError(f"--runtime {name}: over a simulated NPU it is {', '.join(KINDS)}.")
    if args.profile and args.func:
        raise InputError("--profile: knows the stages of func.py only.")
    if args.streams and min(args.streams) < 1:
        raise InputError(f"--streams {min(args.streams)}: must be above 0.")
    for name in ("seconds", "rounds", "live", "soak"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise InputError(f"--{name} {getattr(args, name):g}: must be above 0.")
    try:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        open(args.output + ".json", "a").close()
    except OSError as error:
        raise InputError(f"--output {args.output}: cannot be written ({error.strerror}).") from None
    bench = Bench(args)
    if bench.cores == 1 and "all" in columns:
        print("One core: no column for all cores on one frame.", file=sys.stderr)
        columns.remove("all")
    if args.streams:
        return streams(bench, columns[0])
    if args.soak:
        return soak(bench, columns[0])

    table, ceiling = run_table(bench, list(itertools.product(columns, bench.runtimes)))
    source = "frames from memory" if args.no_decode else "decoding included"
    live = f", arriving at {args.live:g} FPS" if args.live else ""
    limit = f"ceiling {ceiling:.1f} FPS" if np.isfinite(ceiling) else "no ceiling"
    print(f"{bench.name}: {limit}; {source}{live}, {args.rounds} x {args.seconds:g} s a column\n\n{markdown(table)}")
    plain = next((column["fps"] for column in table if column["threads"] == "plain"), None)
    for column in table:
        name, first = title(column["threads"], column["runtime"]), table[0]["runtime"]
        if plain and column["threads"] != "plain":
            print(f"\n{name}: {column['fps'] / plain:.2f} times the plain loop's FPS{f' ({first})' if first else ''}")
        beside = next(other for other in table if other["threads"] == column["threads"])
        if beside is not column:
            print(f"\n{name}: {column['cpu_ms'] / beside['cpu_ms']:.2f} times the CPU a frame and "
                  f"{column['fps'] / beside['fps']:.2f} times the FPS of {title(beside['threads'], first)}")
    known = ceiling if np.isfinite(ceiling) else None  # JSON knows no infinity
    result = dict(settings=vars(args), npu=bench.name, cpu_cores=bench.cpus, ceiling_fps=known, table=table)
    if args.profile:
        result["profile"] = profile(bench)
        print("\n| CPU, ms a frame | in all | holding the GIL, at most |\n| --- | --- | --- |")
        for name, (in_all, held) in result["profile"].items():
            print(f"| {name} | {in_all:.3f} | {held:.3f} |")
    Path(args.output + ".json").write_text(json.dumps(result, indent=1) + "\n")
    plot(table, ceiling, bench.name, args.output + ".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", "--modelPath", default=modelPath, help=f"the .rknn (default: {modelPath})")
    parser.add_argument("--func", help="Python file whose myFunc(rknn_lite, IMG) takes the place of func.py's")
    parser.add_argument("--cap", default=cap, help=f"the video (default: {cap})")
    parser.add_argument("--threads", nargs="+", default=threads.split(), metavar="N",
                        help=f"numbers, all, plain (default: {threads})")
    parser.add_argument("--seconds", type=float, default=seconds,
                        help=f"for each column in each round (default: {seconds:g})")
    parser.add_argument("--warmup", type=float, default=warmup, help=f"seconds before that (default: {warmup:g})")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"(default: {rounds})")
    parser.add_argument("--simulate", default=simulate, metavar="NPU",
                        help=f"milliseconds x cores or of each core, or one of {', '.join(PUBLISHED)}")
    parser.add_argument("--runtime", nargs="+", default=runtime, metavar="NAME",
                        help=f"columns of each: {', '.join(runtimes.RUNTIMES)}; over a simulated NPU, of a C library "
                        f"instead of NumPy, {', '.join(KINDS)}")
    parser.add_argument("--output", default=output, help=f"where the .json and the .png go (default: {output})")
    parser.add_argument("--no-decode", action="store_true", help=f"read {IN_MEMORY} frames into memory first")
    parser.add_argument("--live", type=float, metavar="FPS", help="a live source of that rate")
    parser.add_argument("--streams", type=int, nargs="+", metavar="N",
                        help="instead of the table: so many sources, first of --threads")
    parser.add_argument("--profile", action="store_true", help="add where a frame's CPU time goes")
    parser.add_argument("--soak", type=int, metavar="FRAMES",
                        help="instead of the table: memory over so many frames, first of --threads")
    cv2.setNumThreads(1)  # as in main.py
    stay_on_big_cores()
    try:
        run(parser.parse_args())
    except (InputError, func.ModelError) as error:
        print(f"{str(error).rstrip('.')}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
