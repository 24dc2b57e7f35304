"""Names what limited the frame rate of a run, and what would help.

    print(limit_of(meter.figures()))    # meter.py measures

    Limited by reading: decoding takes 21 of 24 ms per frame, the NPU is 38 % busy. pip install
    pyav-rkmpp decodes in hardware.
"""
from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, List

MIN_SECONDS = 5.0  # shorter runs are mostly start and end

# A stage is the limit if it is busy for at least this share of the time.
READING = OUTPUT = CPU = 0.90
NPU = CONTEXTS = 0.95
NPU_SHORTEST_RUN = 0.85  # if each run is counted with the time of the shortest one
# Python is the limit if func uses about one CPU core and the contexts are busy.
PYTHON_MIN, PYTHON_MAX, PYTHON_CONTEXTS = 0.85, 1.20, 0.80
DROPPED = 0.01           # up to this share of a live source's frames, dropped ones do not count

# Class of results/: (what the user calls it, what would make it faster)
OUTPUTS = {
    "VideoSaver": ("--save", "Smaller pictures or a faster disk would help"),
    "PictureSaver": ("--save", "Smaller pictures or a faster disk would help"),
    "JSONLines": ("--json", "A faster disk or a faster reader of the pipe would help"),
    "MQTT": ("--mqtt", "A faster connection to the broker would help"),
    "Web": ("--web", "Fewer viewers would help"),
    "Tracker": ("--track", "Fewer objects (--conf, --classes) would help"),
    "SecondModel": ("--then", "Fewer classes after its @ would help"),
    "Lines": ("--line and --zone", "Fewer lines and zones would help"),
    "Objects": ("--mqtt and --snapshots", "Fewer objects (--conf, --classes) would help"),
    "Snapshots": ("--snapshots", "Fewer objects (--conf, --classes) would help"),
    "Findings": ("printing", "--quiet would help"),
    "draw": ("drawing", "A simpler draw() in the func file would help"),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured in a part of a run. Times are in seconds, added up over all frames."""

    threads: int = 1              # contexts of the pool
    cores: int = 1                # of the NPU; 0 if the CPU runs the model
    cpus: int = 1                 # CPU cores that the process may use
    live: bool = False            # every source is live
    max_fps: float | None = None  # --fps, added up over the streams
    software: bool = False        # the CPU decodes a video that the board's decoder could
    shortest: float = 0.0         # the shortest inference so far

    # Sums (SUMS below):
    seconds: float = 0.0          # length of this part of the run
    frames: float = 0             # that func processed
    dropped: int = 0              # of live sources: replaced by newer ones
    wait: float = 0.0             # of frames for a context
    func: float = 0.0             # in func
    cpu: float = 0.0              # CPU time of func's threads
    inference: float = 0.0        # in the inference calls of func
    runs: int = 0                 # number of these calls
    in_flight: Dict[str, float] = dataclasses.field(  # core: time with an inference in progress
        default_factory=dict)
    failures: Dict[str, int] = dataclasses.field(     # core: failed runs
        default_factory=dict)
    process_cpu: float = 0.0      # CPU time of the whole process
    streams: float = 0.0          # from start to end of each stream
    files: float = 0.0            # the same, of those that are not live
    read: float = 0.0             # reading and decoding the frames of these files
    outputs: Dict[str, float] = dataclasses.field(    # class of a sink or tracker, or "draw": in
        default_factory=dict)                         # the streams' threads

    def since(self, earlier: Figures) -> Figures:
        """What was measured after `earlier`."""
        return dataclasses.replace(
            self, **{name: minus(getattr(self, name), getattr(earlier, name)) for name in SUMS})

    @property
    def npu_busy(self) -> float:
        """Share of the time in which an inference is in progress, averaged over the NPU's cores."""
        return sum(self.in_flight.values()) / (self.seconds * max(1, self.cores))

    @property
    def cpu_busy(self) -> float:
        """Share of the CPU that the process uses."""
        return self.process_cpu / (self.seconds * self.cpus)

    @property
    def contexts_busy(self) -> float:
        """Share of the time in which func runs, averaged over the contexts."""
        return self.func / (self.seconds * self.threads)

    @property
    def load(self) -> str:
        """How busy the NPU is, or the CPU if it runs the model: a clause."""
        return f"the NPU is {percent(self.npu_busy)} busy" if self.cores else \
            f"the CPU is {percent(self.cpu_busy)} busy"


# The fields of Figures that grow during a run; the others are states.
SUMS = ("seconds", "frames", "dropped", "wait", "func", "cpu", "inference", "runs", "in_flight",
        "failures", "process_cpu", "streams", "files", "read", "outputs")


def minus(now: Any, before: Any) -> Any:
    if isinstance(now, dict):
        return {key: value - before.get(key, 0) for key, value in now.items()}
    return now - before


def percent(share: float) -> str:
    return f"{100 * min(1.0, share):.0f} %"


def ms(seconds: float, frames: float) -> str:
    """Milliseconds per frame, with at least two significant digits."""
    each = 1000 * seconds / max(1, frames)
    return f"{each:.0f}" if each >= 9.95 else f"{each:.1f}"


# ---- the verdicts: a sentence, or "" if this is not the limit ----

def failing_core(f: Figures) -> str:
    """A core that pauses after a failure serves fewer frames. A single core never pauses."""
    most = max(f.in_flight.values(), default=0.0)
    for core, count in f.failures.items():
        if count and (f.in_flight.get(core, 0.0) < 0.9 * most or count >= 0.1 * f.runs):
            times = "once" if count == 1 else f"{count} times"
            return (f"Limited by a failing core: core {core} of the NPU failed {times} and is "
                    f"{percent(f.in_flight.get(core, 0.0) / f.seconds)} busy. Let the board cool "
                    f"down; dmesg and sudo ./rkcat.sh may say more.")
    return ""


def live_source(f: Figures) -> str:
    if not f.live or f.dropped > DROPPED * f.frames or f.cpu_busy >= CPU:
        return ""
    fps = f.frames / f.seconds
    if f.max_fps and fps >= 0.9 * f.max_fps:
        return f"Limited by --fps: {fps:.1f} FPS in all, and {f.load}."
    return (f"Limited by the source: it delivers {fps:.1f} FPS, almost no frame is dropped, and "
            f"{f.load}. A faster camera mode (--camera-format MJPG --camera-fps 60) or more "
            f"cameras would use it better.")


def starved(f: Figures) -> bool:
    """Whether func takes so much CPU that the other stages wait. Their times then mean nothing."""
    return f.cpu_busy >= CPU and f.cpu >= 0.5 * f.process_cpu


def faster_decoding(f: Figures) -> str:
    return "pip install pyav-rkmpp decodes in hardware." if f.software else ""


def reading(f: Figures) -> str:
    if not f.files or f.read < READING * f.files or starved(f):
        return ""
    hint = faster_decoding(f) or "Smaller pictures or several sources at once would help."
    return (f"Limited by reading: decoding takes {ms(f.read, f.frames)} of "
            f"{ms(f.files, f.frames)} ms per frame, {f.load}. {hint}")


def output(f: Figures) -> str:
    name = max(f.outputs, key=lambda each: f.outputs[each], default="")
    if not name or f.outputs[name] < OUTPUT * f.streams or starved(f):
        return ""
    title, helps = OUTPUTS.get(name, (name, "Doing less in its write() would help"))
    return (f"Limited by {title}: it takes {ms(f.outputs[name], f.frames)} of "
            f"{ms(f.streams, f.frames)} ms per frame, {f.load}. {helps}.")


def npu(f: Figures) -> str:
    """The time in inference includes the wait for Python's lock after it. If that wait may be long,
    because Python is near its limit, each run is counted with the time of the shortest one."""
    at_least = f.runs * f.shortest / (f.seconds * max(1, f.cores))  # npu_busy without that wait
    if not f.cores or f.npu_busy < NPU or python(f) and at_least < NPU_SHORTEST_RUN:
        return ""
    cores = "core is" if f.cores == 1 else f"{f.cores} cores are"
    return (f"Limited by the NPU: its {cores} busy {percent(f.npu_busy)} of the time, "
            f"{ms(sum(f.in_flight.values()), f.frames)} ms per frame. A smaller model or input "
            f"would help; sudo ./performance.sh sets the highest clocks.")


def model_on_cpu(f: Figures) -> str:
    if f.cores or f.inference < 0.5 * f.func or f.contexts_busy < CONTEXTS and f.cpu_busy < CPU:
        return ""
    more = f"--threads {f.cpus} would help. " if f.threads < f.cpus else ""
    threads = "the only thread" if f.threads == 1 else f"each of {f.threads} threads"
    return (f"Limited by the CPU, which runs the model: inference takes "
            f"{ms(f.inference, f.frames)} ms per frame in {threads}. {more}An NPU or a smaller "
            f"model would help.")


def python(f: Figures) -> str:
    if not PYTHON_MIN <= f.cpu / f.seconds <= PYTHON_MAX or f.contexts_busy < PYTHON_CONTEXTS:
        return ""
    return (f"Limited by Python: func takes {ms(f.cpu, f.frames)} ms of CPU per frame, which fills "
            f"one core, and Python code runs on one core at a time; {f.load}. NumPy and OpenCV "
            f"instead of Python loops would help.")


def cpu(f: Figures) -> str:
    if f.cpu_busy < CPU:
        return ""
    cores = f"{f.process_cpu / f.seconds:.1f} of {f.cpus} cores"
    hint = faster_decoding(f) or "Fewer pixels or a simpler func would help."
    return (f"Limited by the CPU: the process uses {cores}, func {ms(f.cpu, f.frames)} of "
            f"{ms(f.process_cpu, f.frames)} ms per frame; {f.load}. {hint}")


def contexts(f: Figures) -> str:
    if f.contexts_busy < CONTEXTS:
        return ""
    waits = f.func - f.inference - f.cpu
    if waits >= 0.5 * f.func:
        waiting = f"{ms(waits, f.frames)} of its {ms(f.func, f.frames)} ms per frame"
        if f.process_cpu >= PYTHON_MIN * f.seconds:
            return (f"Limited by the CPU and Python: func waits {waiting} for a free core or for "
                    f"Python's lock, the process uses {f.process_cpu / f.seconds:.1f} of {f.cpus} "
                    f"cores, and {f.load}. NumPy and OpenCV instead of Python loops would help.")
        return (f"Limited by func: it waits for {waiting} (no CPU time, no inference), and "
                f"{f.load}. If it waits for a network or a disk, do that outside func. More "
                f"threads (--threads {2 * max(f.cores, f.threads)}) help, too.")
    every = "the only thread is" if f.threads == 1 else f"all {f.threads} threads are"
    more = 2 * f.cores if f.threads < 2 * f.cores else 2 * f.threads
    return (f"Limited by the number of threads: {every} busy, and {f.load}. --threads {more} "
            f"would help.")


VERDICTS: List[Callable[[Figures], str]] = [
    failing_core, live_source, reading, output, npu, model_on_cpu, python, cpu, contexts]


def limit_of(f: Figures) -> str:
    """One sentence on what limited the rate, then one on what would help. The first verdict that
    applies; "" if no frame was processed."""
    if not f.frames or not f.seconds:
        return ""
    for verdict in VERDICTS:
        sentence = verdict(f)
        if sentence:
            return sentence
    shares = [f"{name} {percent(share)}" for name, share in [
        ("reading", f.read / f.files if f.files else 0.0),
        ("the slowest output", max(f.outputs.values(), default=0.0) / (f.streams or 1)),
        ("the contexts", f.contexts_busy), ("the NPU", f.npu_busy if f.cores else 0.0),
        ("the CPU", f.cpu_busy)] if share]
    return f"No single stage limits the rate. Busy: {', '.join(shares)}."


def stages(f: Figures) -> Dict[str, str]:
    """The figures that the verdicts compare, as text: {"reading, ms per frame": "2.1"}."""
    def each(seconds: float) -> str:
        return f"{1000 * seconds / max(1, f.frames):.2f}"

    return {
        "reading, ms per frame": each(f.read),
        "waiting for a context, ms per frame": each(f.wait),
        "func, ms per frame": each(f.func),
        "CPU of func, ms per frame": each(f.cpu),
        "inference, ms per frame": each(f.inference),
        **{f"{OUTPUTS.get(name, (name,))[0]}, ms per frame": each(seconds)
           for name, seconds in f.outputs.items()},
        "CPU of the process, ms per frame": each(f.process_cpu),
        "NPU cores busy": " ".join(
            percent(seconds / f.seconds) for _, seconds in sorted(f.in_flight.items())),
        "contexts in func": percent(f.contexts_busy),
        "CPU cores busy": percent(f.cpu_busy)}
