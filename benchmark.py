"""Measures frame rates by number of threads: on this machine's NPU or CPU, or on a simulated NPU.

    python benchmark.py                                             # 1 to 9 threads
    python benchmark.py --simulate yolov5s_relu@rk3588              # as fast as Rockchip's figures
    python benchmark.py --simulate 16.9x3 --threads 3 6             # three cores of 16.9 ms
    python benchmark.py --simulate 10,10,30 --threads 6             # cores of different speed
    python benchmark.py --simulate 16.9x3 --threads 6 --live 30     # a camera with 30 FPS
    python benchmark.py --threads plain 2                           # a plain loop, and 2 threads
    python benchmark.py --simulate 16.9x3 --threads 6 --soak 20000  # memory over 20,000 frames
    python benchmark.py --simulate yolov8n@rk3588 --live 30 --streams 2 4 7    # many cameras
    python benchmark.py --simulate 16.9x3 --threads 6 --runtime wheel library   # two runtimes
    python benchmark.py --profile --cap rtsp://192.168.1.20/live    # CPU time of a frame by stage

Each frame is decoded, inferred and drawn on as in main.py, without a window. The plot needs
matplotlib.
"""
from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Iterator

from vision.packages import needed_packages, pip_install

with needed_packages():
    import cv2
    import numpy as np

import measure
import runtimes
from process import stay_on_big_cores
from results.console import prepare_output
from runtimes.simulated import PUBLISHED
from runtimes.simulated_library import KINDS
from sources import READERS
from sources.names import hide
from vision.command_line import Parser
from vision.errors import InputError, ModelError

# --------------------------------------------------------------------------------------------------
modelPath = "models/yolov5n_emoji.rknn"  # without an NPU, the .onnx beside it runs instead
cap = "models/demo.mp4"                  # the video; repeated at its end
# The table's columns. all: two threads, each frame on all cores; plain: a loop without a pool
threads = "1 2 3 4 5 6 7 8 9 all"
seconds = 5.0                            # measured for each column in each round
warmup = 1.0                             # seconds before that
rounds = 3                               # each measures all columns; the median counts
simulate = None                          # one of PUBLISHED, or milliseconds: "16.9x3", "10,10,30"
runtime = None                           # None: chosen by the pool; or names that --help lists
output = "runs/benchmark"                # path of the .json and the .png
# --------------------------------------------------------------------------------------------------


def title(column: str, runtime: str | None = None) -> str:
    name = {"all": "all cores on one frame", "plain": "plain loop", "1": "1 thread"}.get(
        column, f"{column} threads")
    return f"{name}, {runtime}" if runtime else name


def markdown(table: list[dict]) -> str:
    """The table, with one column per thread count and runtime."""
    rows = [("", [title(column["threads"], column["runtime"]) for column in table]),
            ("---", ["---"] * len(table))]
    for name, form in [("FPS", "**{fps:.1f}**"), ("share of the limit", "{share:.1%}"),
                       ("latency p50, ms", "{p50_ms:.1f}"), ("latency p99, ms", "{p99_ms:.1f}"),
                       ("CPU, ms per frame", "{cpu_ms:.2f}"), ("frames per core", "{runs}"),
                       ("peak RSS, MB", "{rss_mb:.0f}"), ("frames dropped", "{dropped}")]:
        if name == "share of the limit" and not table[0]["share"]:
            continue  # an NPU that takes no time has no limit
        cells = [{**column, "runs": " ".join(map(str, column["runs"])) or "–"} for column in table]
        rows.append((name, [form.format(**cell) for cell in cells]))
    return "\n".join("| " + " | ".join([name, *row]) + " |" for name, row in rows)


def comparisons(table: list[dict]) -> list[str]:
    """Sentences that compare the columns with the plain loop, and with the first runtime."""
    sentences, first = [], table[0]["runtime"]
    plain = next((column["fps"] for column in table if column["threads"] == "plain"), None)
    for column in table:
        name = title(column["threads"], column["runtime"])
        if plain and column["threads"] != "plain":
            beside = f" ({first})" if first else ""
            sentences.append(f"{name}: {column['fps'] / plain:.2f} times the plain loop's "
                             f"FPS{beside}")
        other = next(each for each in table if each["threads"] == column["threads"])
        if other is not column:
            sentences.append(f"{name}: {column['cpu_ms'] / other['cpu_ms']:.2f} times the CPU per "
                             f"frame and {column['fps'] / other['fps']:.2f} times the FPS of "
                             f"{title(other['threads'], first)}")
    return sentences


def limits(table: list[dict]) -> list[str]:
    """What limited each column; a plain loop does one thing after the other."""
    return [f"{title(column['threads'], column['runtime'])}: {column['limit']}"
            for column in table if column["limit"] and column["threads"] != "plain"]


def profile(bench: measure.Bench) -> None:
    """Print the CPU time of a frame by stage, and what limited each column; save both."""
    import cpu_profile  # only here: it needs all parts of main.py
    table = cpu_profile.profile(bench)
    args = bench.args
    source = hide(args.cap)  # no password in what people copy
    print(f"{source}, {bench.npu}, {args.rounds} x {args.seconds:g} s a column\n\n"
          f"{cpu_profile.markdown(table)}")
    for column in table:
        if column["limit"]:
            print(f"\n{column['title']}: {column['limit']}")
    for column in table:
        print(f"\n| {column['title']} | |\n| --- | --- |")
        for name, value in column["stages"].items():
            print(f"| {name} | {value} |")
    result = dict(settings={**vars(args), "cap": source}, npu=bench.npu, cpu_cores=bench.cpus,
                  profile=table)
    with writing(args) as path:
        Path(path + ".json").write_text(json.dumps(result, indent=1) + "\n")


@contextlib.contextmanager
def writing(args: argparse.Namespace) -> Iterator[str]:
    """Gives the path of the output, without .json or .png. Raises InputError if it cannot be
    written."""
    try:
        yield args.output
    except OSError as error:
        raise InputError(f"--output {args.output}: cannot be written ({error.strerror}).") from None


def plot(table: list[dict], limit_fps: float, name: str, path: str) -> None:
    """Save a PNG: FPS against threads, and the limit."""
    try:
        import matplotlib
    except ImportError:
        return print(f"No plot: it needs matplotlib: {pip_install('matplotlib')}", file=sys.stderr)
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=150)
    counts = [column for column in table if column["threads"].isdigit()]
    for runtime in dict.fromkeys(column["runtime"] for column in counts):
        points = [(int(column["threads"]), column["fps"])
                  for column in counts if column["runtime"] == runtime]
        axes.plot(*zip(*points), "o-", label=f"the pool, {runtime}" if runtime else "the pool")
    for column in table:
        if not column["threads"].isdigit():
            axes.axhline(column["fps"], linestyle=":" if column["threads"] == "all" else "-.",
                         color="grey", label=title(column["threads"], column["runtime"]))
    if np.isfinite(limit_fps):
        label = f"limit: {limit_fps:.0f} FPS"
        axes.axhline(limit_fps, linestyle="--", color="tab:red", label=label)
    axes.set(xlabel="threads", ylabel="frames per second", title=name, ylim=(0, None),
             xticks=sorted({int(column["threads"]) for column in counts}))
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def check(args: argparse.Namespace) -> None:
    """Raises InputError for settings that cannot be used, before anything is opened."""
    for column in args.threads:
        if column not in ("all", "plain") and not re.fullmatch("[1-9][0-9]*", column):
            raise InputError(f"--threads {column}: give numbers from 1, all, or plain.")
    for name in args.runtime or () if args.simulate else ():
        if name not in KINDS:
            raise InputError(f"--runtime {name}: unknown for a simulated NPU; choose from "
                             f"{', '.join(KINDS)}.")
    if args.reader and not args.profile:
        raise InputError("--reader: only --profile reads with it.")
    if (args.streams or args.soak) and not any(map(str.isdigit, args.threads)):
        raise InputError("--threads: --streams and --soak need a number of threads.")
    if args.streams and min(args.streams) < 1:
        raise InputError(f"--streams {min(args.streams)}: must be above 0.")
    for name in ("seconds", "rounds", "live", "soak"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name} {value:g}: must be above 0.")
    with writing(args) as path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        open(path + ".json", "a").close()


def run(args: argparse.Namespace) -> None:
    check(args)
    columns = list(dict.fromkeys(args.threads))
    bench = measure.Bench(args)
    if args.profile:
        return profile(bench)
    if bench.cores == 1 and "all" in columns:
        columns.remove("all")
        if not columns:
            raise InputError("--threads all: the model runs on one core; give a number, too.")
        print("One core: no column for all cores on one frame.", file=sys.stderr)
    if args.streams or args.soak:
        measured = measure.streams if args.streams else measure.soak
        return measured(bench, next(filter(str.isdigit, columns)))

    pairs = list(itertools.product(columns, bench.runtimes))
    table, limit_fps = measure.measure_table(bench, pairs, title)
    source = "frames from memory" if args.no_decode else "decoding included"
    live = f", arriving at {args.live:g} FPS" if args.live else ""
    limit = f"limit {limit_fps:.1f} FPS" if np.isfinite(limit_fps) else "no limit"
    print(f"{bench.name}: {limit}; {source}{live}, {args.rounds} x {args.seconds:g} s a column\n\n"
          f"{markdown(table)}")
    for sentence in [*comparisons(table), *limits(table)]:
        print(f"\n{sentence}")
    result = dict(settings=vars(args), npu=bench.name, cpu_cores=bench.cpus, table=table,
                  limit_fps=limit_fps if np.isfinite(limit_fps) else None)  # JSON has no infinity
    with writing(args) as path:
        Path(path + ".json").write_text(json.dumps(result, indent=1) + "\n")
        plot(table, limit_fps, bench.name, path + ".png")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model", "--modelPath", default=modelPath, help=f"the .rknn (default: {modelPath})")
    add("--func", help="Python file whose myFunc(rknn_lite, IMG) replaces func.py's")
    add("--cap", default=cap,
        help=f"the video (default: {cap}); with --profile, any source of main.py")
    add("--threads", nargs="+", default=threads.split(), metavar="N",
        help="numbers of threads; all: each frame on all NPU cores; plain: a loop without a pool "
             f"(default: {threads})")
    add("--seconds", type=float, default=seconds,
        help=f"seconds to measure each column in each round (default: {seconds:g})")
    add("--warmup", type=float, default=warmup,
        help=f"seconds before each measurement that do not count (default: {warmup:g})")
    add("--rounds", type=int, default=rounds,
        help=f"how often each column is measured; the median counts (default: {rounds})")
    add("--simulate", default=simulate, metavar="NPU",
        help="a simulated NPU: milliseconds per frame x cores (16.9x3), milliseconds per frame of "
             f"each core (10,10,30), or one of {', '.join(PUBLISHED)}")
    add("--runtime", nargs="+", default=runtime, metavar="NAME",
        help=f"a column for each: {', '.join(runtimes.RUNTIMES)}; with --simulate, where a C "
             f"library takes the place of librknnrt.so: {', '.join(KINDS)}")
    add("--output", default=output, help=f"path of the .json and the .png (default: {output})")
    add("--no-decode", action="store_true",
        help=f"read {measure.IN_MEMORY} frames into memory first, so that decoding is not measured")
    add("--live", type=float, metavar="FPS", help="frames arrive at this rate, as from a camera")
    add("--streams", type=int, nargs="+", metavar="N",
        help="instead of the table: N streams on one pool with the first number of --threads")
    add("--profile", action="store_true",
        help="instead of the table: the CPU time of a frame by stage; on a simulated NPU, --cap "
             "must be a video")
    add("--reader", choices=READERS,
        help="library that reads the source of --profile, as in main.py")
    add("--soak", type=int, metavar="FRAMES",
        help="instead of the table: memory use over this many frames, with the first number of "
             "--threads")
    return parser.parse()


def main() -> None:
    prepare_output()
    cv2.setNumThreads(1)  # as in main.py
    stay_on_big_cores()
    try:
        run(parse_arguments())
    except (InputError, ModelError) as error:
        print(f"{str(error).rstrip('.')}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
