"""The CPU time of a frame by stage, for benchmark.py --profile: a source runs as in main.py, with a
clock around the functions of each stage."""
from __future__ import annotations

import contextlib
import functools
import os
import statistics
import sys
import threading
import time
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from tqdm import tqdm

from limits import limit_of, stages
from measure import Bench, paced
from meter import Meter
from results.delivery import Delivery
from results.jsonl import JSONLines
from results.window import Window, can_show
from sources.names import hide
from streams import FrameTask, Stream
from vision import drawing, frame, jpeg, letterbox, nms
from vision.errors import InputError

STAGES = {  # the rows, and what belongs to them
    "decode": "reading and decoding, with the decoder's threads",
    "convert": "to a BGR picture",
    "letterbox": "to the model's input, and the boxes back to the frame",
    "inference call": "the runtime's part on the CPU",
    "heads": "outputs to boxes, and the rest of detect() or myFunc()",
    "NMS": "",
    "draw": "",
    "hand-over": "the rest of the pool's and the stream's threads",
    "outputs": "JSON, or JSON and the window",
    "other": "the rest of the process",
}


class Clock:
    """Adds up the CPU time of functions by stage. If a measured function calls another one, the
    time of the inner one counts for its own stage only."""

    def __init__(self) -> None:
        self.of_threads: Dict[int, Dict[str, float]] = {}  # {thread: {stage: CPU seconds}}
        # .inner: CPU seconds of the measured calls that the present one has made so far
        self.local = threading.local()
        self.replaced = contextlib.ExitStack()  # closing it restores the functions
        self.measured: set = set()              # what measure() has put in place of functions

    def measure(self, stage: str, owner: Any, *names: str) -> None:
        """Measure functions of a class or module. A module's functions are measured wherever they
        have been imported."""
        for name in names:
            function = getattr(owner, name, None)
            if function is None or function in self.measured:
                continue
            timed = self.timed(stage, function)
            self.measured.add(timed)
            places = {(owner, name)}
            if isinstance(owner, ModuleType):
                places |= set(imports_of(function))
            for place in places:
                self.replace(*place, timed)

    def replace(self, owner: Any, name: str, function: Callable) -> None:
        """Set an attribute of a class or module until `replaced` is closed."""
        if name in vars(owner):
            self.replaced.callback(setattr, owner, name, vars(owner)[name])
        else:  # inherited
            self.replaced.callback(delattr, owner, name)
        setattr(owner, name, function)

    def timed(self, stage: str, function: Callable) -> Callable:
        """The function with the clock around it."""
        @functools.wraps(function)
        def measured(*args: Any, **options: Any) -> Any:
            spent = self.of_threads.setdefault(threading.get_ident(), dict.fromkeys(STAGES, 0.0))
            inner_of_caller, self.local.inner = getattr(self.local, "inner", 0.0), 0.0
            began = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                took = time.thread_time() - began
                spent[stage] += took - self.local.inner
                self.local.inner = inner_of_caller + took
        return measured

    def seconds(self) -> Dict[str, float]:
        """CPU seconds of each stage until now, to be called in the main thread. The difference of
        two calls is the time between them, provided that no Python thread has ended meanwhile."""
        process, main = time.process_time(), threading.get_ident()
        threads = {thread.ident: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                   for thread in threading.enumerate() if thread.ident}
        measured = {ident: dict(spent) for ident, spent in list(self.of_threads.items())}
        total = {stage: sum(spent[stage] for spent in measured.values()) for stage in STAGES}
        total["decode"] += process - sum(threads.values())  # the decoder's threads
        total["other"] = threads[main] - sum(measured.get(main, {}).values())
        total["hand-over"] = process - sum(total.values())
        return total


def imports_of(function: Callable) -> Iterator[Tuple[ModuleType, str]]:
    """Where a function has been imported: each module, and the name there."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is function:
                yield module, name


def measure_stages(clock: Clock, source: type, runtime: Any, func: ModuleType) -> None:
    """Let the clock measure the functions of all stages. source, runtime: classes; func: the func
    file."""
    clock.measure("decode", source, "grab")
    clock.measure("decode", jpeg, "decode")
    clock.measure("convert", source, "frame")
    clock.measure("convert", frame.Frame, "bgr")
    clock.measure("letterbox", letterbox, "letterbox", "unletterbox", "unletterbox_corners",
                  "unletterbox_keypoints")
    clock.measure("inference call", runtime, "inference", "inference_raw")
    clock.measure("heads", func, "detect", "myFunc")
    clock.measure("NMS", nms, "nms", "rotated_nms")
    clock.measure("draw", drawing, "draw")
    clock.measure("draw", func, "draw")
    clock.measure("outputs", Delivery, "deliver", "write_to")
    clock.measure("outputs", Window, "step")


def measure(bench: Bench, runtime: Optional[str], shows: bool) -> Dict[str, Any]:
    """One column in one round: {"ms": {stage: CPU ms of a frame}, "fps", "limit": what limits it,
    "stages": the figures behind that}.

    runtime: its name; shows: with a window. Raises InputError if no frame comes.
    """
    args = bench.args
    stream = Stream(args.cap, reader=args.reader, loop=True)
    if not stream.connection.opened:
        raise InputError(f"{hide(args.cap)}: not available.")
    if args.live:
        frames = stream.frames
        stream.frames = lambda: paced(frames(), args.live)  # type: ignore[method-assign]
    meter, clock = Meter([stream]), Clock()
    window = Window([stream]) if shows else None
    stream.sinks, stream.draws = [JSONLines(os.devnull)], shows
    if window:
        stream.sinks.append(window)
    task = meter.timed(FrameTask(bench.func))
    with clock.replaced:
        measure_stages(clock, type(stream.source), bench.runtimes[runtime], bench.func)
        with bench.pool(None, task, bench.runtimes[runtime]) as pool:
            thread = threading.Thread(target=stream.run, args=(pool, tqdm(disable=True), "", True))
            thread.start()
            try:
                wait(args.warmup, thread, window)
                counted, began, before = stream.count, time.perf_counter(), clock.seconds()
                wait(args.seconds, thread, window)
                count, took = stream.count - counted, time.perf_counter() - began
                spent, figures = clock.seconds(), meter.figures()
            finally:
                stream.stop.set()
                thread.join()
                stream.close_sinks(stream.sinks)
    if stream.error or not count:
        raise InputError(stream.error
                         or f"{hide(args.cap)}: no frame came in {args.seconds:g} s.")
    return dict(ms={stage: 1000 * (spent[stage] - before[stage]) / count for stage in STAGES},
                fps=count / took, limit=limit_of(figures), stages=stages(figures))


def wait(seconds: float, thread: threading.Thread, window: Optional[Window]) -> None:
    """Wait for `seconds`, or until the thread ends, and show results in the window meanwhile."""
    until = time.perf_counter() + seconds
    while thread.is_alive() and time.perf_counter() < until:
        if window:
            window.step(0.05)
        else:
            time.sleep(max(0, min(0.05, until - time.perf_counter())))


def profile(bench: Bench) -> List[Dict[str, Any]]:
    """The columns: each runtime headless, and with a window. Each has what measure() returns of
    the last round, but with medians of all rounds, and a `title` and the sum of all stages
    (`in_all`)."""
    shown = [False, True] if can_show() else [False]
    if len(shown) == 1:
        print("No display: no columns with a window. On a machine without a monitor: xvfb-run -a "
              "python benchmark.py ...", file=sys.stderr)
    columns = [(name, shows) for name in bench.runtimes for shows in shown]
    rounds: Dict[tuple, List[dict]] = {column: [] for column in columns}
    for number in range(1, bench.args.rounds + 1):
        for column in columns:
            rounds[column].append(measure(bench, *column))
            print(f"round {number}, {title(*column)}: {rounds[column][-1]['fps']:.1f} FPS",
                  file=sys.stderr)
    table = []
    for (name, shows), measured in rounds.items():
        ms = {stage: statistics.median(one["ms"][stage] for one in measured) for stage in STAGES}
        table.append({**measured[-1], "title": title(name, shows), "ms": ms,
                      "fps": statistics.median(one["fps"] for one in measured),
                      "in_all": statistics.median(sum(one["ms"].values()) for one in measured)})
    return table


def title(runtime: Optional[str], shows: bool) -> str:
    """The head of a column: "wheel, window"."""
    display = "window" if shows else "headless"
    return f"{runtime}, {display}" if runtime else display


def markdown(table: List[Dict[str, Any]]) -> str:
    """The table of profile(). The rows for everything are medians of the sums, not sums of the
    medians."""
    rows = [["CPU, ms per frame", *(column["title"] for column in table)],
            ["---"] * (len(table) + 1)]
    for name, meaning in STAGES.items():
        rows.append([f"{name}: {meaning}" if meaning else name,
                     *(f"{column['ms'][name]:.3f}" for column in table)])
    rows += [["everything", *(f"{column['in_all']:.3f}" for column in table)],
             ["everything but decode",
              *(f"{column['in_all'] - column['ms']['decode']:.3f}" for column in table)],
             ["FPS", *(f"{column['fps']:.1f}" for column in table)]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
