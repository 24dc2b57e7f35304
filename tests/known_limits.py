"""Eight runs, each with another limit, through main.py's streams and a simulated NPU of three
cores: prints the sentence of limits.py for each. With --check a wrong one is an error; other
programs that use the CPU make some wrong.

    python tests/known_limits.py --check          # 60 s
    python tests/known_limits.py --rows gil bad-core --figures
    python tests/known_limits.py --cost           # what measuring takes; 15 s
"""

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from limits import limit_of  # noqa: E402
from meter import Meter  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import Recording, simulated  # noqa: E402
from streams import Result, Stream  # noqa: E402

MODEL, VIDEO = str(ROOT / "models/yolov5n_emoji.rknn"), str(ROOT / "models/demo.mp4")
SIDE = 64  # pixels of a frame: copies cost nothing
RECORDING = Recording(
    np.zeros((1, 192), np.int16), [[(np.zeros((1, 8), np.int8), 1.0, 0)]], (1, SIDE, SIDE, 3)
)


class Frames:
    """A Source (sources/protocol.py) without an end: a frame after so many seconds."""

    fps, size, total, skipped, file, note = 0.0, (SIDE, SIDE), 0, 0, None, None

    def __init__(self, seconds=0.0, live=False):
        self.seconds, self.live, self.time, self.due = seconds, live, 0.0, time.perf_counter()

    def grab(self):
        if self.live:  # a camera's clock goes on
            self.due = max(self.due + self.seconds, time.perf_counter() - self.seconds)
            time.sleep(max(0, self.due - time.perf_counter()))
        elif self.seconds:
            time.sleep(self.seconds)
        self.time += max(self.seconds, 0.001)
        return True

    def retrieve(self):
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    frame = retrieve

    def release(self):
        pass


class VideoSaver:
    """A sink that takes so many seconds for a frame."""

    def __init__(self, seconds):
        self.seconds = seconds

    def write(self, result):
        time.sleep(self.seconds)

    def close(self):
        pass


def hold_the_gil(milliseconds):
    """Compute in Python for so many milliseconds of CPU time."""
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        sum(range(200))


def npu(milliseconds, bad_core=None):
    """The runtime class of an NPU with three cores, one of which may fail in every run."""
    fast = simulated(milliseconds / 1000, 3, RECORDING)

    class Runtime(fast):
        run_failed = False

        def inference(self, *arguments, **options):
            outputs = super().inference(*arguments, **options)
            self.run_failed = self.cores == [bad_core]
            return None if self.run_failed else outputs

    return Runtime


@dataclasses.dataclass
class Row:
    """A run. names: words that its sentence has to contain."""

    names: str
    source: tuple = ()
    npu: tuple = (5,)
    threads: int = 6
    work: object = None  # what func does beside inference
    write: float = 0.0  # seconds

    def measure(self, seconds):
        def func(context, result):
            context.inference([result.frame])
            if self.work:
                self.work()
            return result

        stream = Stream(VIDEO, "demo")
        source = Frames(*self.source)
        stream.source.release()
        stream.connection.source, stream.connection.live = source, source.live
        if self.write:
            stream.add_sink(VideoSaver(self.write))
        meter = Meter([stream])
        threading.Timer(seconds, stream.stop.set).start()
        with rknnPoolExecutor(MODEL, self.threads, meter.timed(func), runtime=npu(*self.npu)) as p:
            stream.run(p, tqdm(disable=True), quiet=True)
        if stream.error:
            raise SystemExit(stream.error)
        return meter.figures()


ROWS = {
    "slow-source": Row("by reading", source=(0.02,)),
    "camera": Row("by the source", source=(1 / 30, True)),
    "npu": Row("by the NPU", npu=(16.9,)),
    "gil": Row("by Python", work=lambda: hold_the_gil(8)),
    "waiting-func": Row("by func", work=lambda: time.sleep(0.05)),
    "slow-output": Row("by --save", write=0.02),
    "one-thread": Row("number of threads", threads=1, npu=(16.9,)),
    "bad-core": Row("core 1", npu=(16.9, 1)),
}


def cost(frames=3000, rounds=10):
    """Microseconds of CPU that measuring takes: through the pool with and without it, in turns, on
    an NPU that takes no time and a func that does nothing else."""

    def func(context, result):
        context.inference([result.frame])

    stream = Stream(VIDEO, "demo")
    result = Result(stream, 0, 0.0, Frames().retrieve(), 0.0)
    with rknnPoolExecutor(MODEL, 6, func, runtime=npu(0)) as plain, rknnPoolExecutor(
        MODEL, 6, Meter().timed(func), runtime=npu(0)
    ) as metered:
        took = {plain: [], metered: []}
        for pool in [plain, metered] * rounds:
            began = time.process_time()
            for _ in pool.map(itertools.repeat(result, frames)):
                pass
            took[pool].append((time.process_time() - began) / frames * 1e6)
    stream.source.release()
    without, measured = statistics.median(took[plain]), statistics.median(took[metered])
    print(
        f"{without:.1f} us of CPU a frame without measuring, {measured:.1f} us with it, "
        f"{measured / without:.3f} times"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--figures", action="store_true", help="print what was measured, as JSON")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a sentence is wrong")
    parser.add_argument("--cost", action="store_true", help="only what measuring takes")
    args = parser.parse_args()
    if args.cost:
        return cost()
    wrong = []
    for name in args.rows:
        figures = ROWS[name].measure(args.seconds)
        sentence = limit_of(figures)
        print(f"{name}: {figures.frames / figures.seconds:.1f} FPS. {sentence}", flush=True)
        if args.figures:
            print(json.dumps(dataclasses.asdict(figures)))
        if ROWS[name].names not in sentence:
            wrong.append(name)
    if wrong:
        print(f"Another limit was expected: {', '.join(wrong)}")
    sys.exit(1 if wrong and args.check else 0)


if __name__ == "__main__":
    main()
