"""What --then costs the first model: frames per second without it and with it, in turn.

    python tests/second_model_cost.py
    python tests/second_model_cost.py --seconds 0.2 --rounds 1 --rows 1 --frames 1    # a short run

Run by hand; docs/performance.md has the figures. The demo video is repeated on a simulated NPU. The
first model, the demo's YOLOv5n, takes all frames that it can; the second one is the demo's
classifier, and looks at every object. Each round measures every row without and with it. The ratio
must be at least 0.80.
"""

import argparse
import itertools
import statistics
import sys
from pathlib import Path

import cv2
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from page_cost import Meter, RepeatedVideo, repeated_frames  # noqa: E402

import func  # noqa: E402
from funcs import resnet  # noqa: E402
from results import second_model  # noqa: E402
from results.result import FrameTask  # noqa: E402
from results.second_steps import Step  # noqa: E402
from results.tracking import Tracker  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import record, simulated  # noqa: E402
from vision.model import describe  # noqa: E402

MODEL, SECOND = (str(ROOT / f"models/{name}_emoji.rknn") for name in ("yolov5n", "resnet18"))
VIDEO = str(ROOT / "models/demo.mp4")
ROWS = {  # cores, ms of an inference of the first and of the second model
    "three cores, first model 16.9 ms, second 4 ms": (3, 16.9, 4),
    "three cores, 16.9 ms, 17 ms": (3, 16.9, 17),
    "three cores, 40 ms, 4 ms": (3, 40, 4),
    "one core, 30 ms, 10 ms": (1, 30, 10),
}


def npu(cores, first, second, recorded):
    """The runtime class of an NPU that both models share."""

    class Runtime(simulated(0, cores, recorded[MODEL])):
        def load_rknn(self, path):
            self.recorded = recorded[path]
            self.seconds = [(second if path == SECOND else first) / 1000] * cores
            return 0

    return Runtime


def measure(runtime, cores, seconds, then):
    """(FPS of the first model, crops per second, the line that is printed at the end)."""
    stream, meter = RepeatedVideo(VIDEO, "demo"), Meter(seconds)
    stream.live = False
    model, second = describe(MODEL, "rk3588"), describe(SECOND, "rk3588")
    with rknnPoolExecutor(model, 2 * cores, FrameTask(func), runtime=runtime) as pool:
        models = None
        if then:
            steps = [Step(SECOND, SECOND, second, resnet, None, None)]
            models = second_model.SecondModels(steps, [stream], runtime)
            stream.tracker = Tracker()
        stream.sinks.append(meter)
        stream.run(pool, tqdm(disable=True), quiet=True)
    if stream.error:
        raise SystemExit(stream.error)
    if models is None:
        return meter.fps, 0, ""
    models.close()
    return meter.fps, models.crops / (stream.ended - stream.began), models.found[0]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10, help="per run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--rows", type=int, nargs="+", help="measure only these, from 1")
    parser.add_argument("--frames", type=int, default=60, help="recorded (default: %(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    step = 600 // args.frames
    frames = list(itertools.islice(repeated_frames(), 0, 601 - step, step))
    recorded = {
        MODEL: record(MODEL, [frame.copy() for frame in frames], func.myFunc),
        SECOND: record(SECOND, [frame.copy() for frame in frames], resnet.myFunc),
    }
    print("| NPU | ratio of FPS | crops per second |\n|---|---|---|")
    worst = 1.0
    numbers = args.rows or range(1, len(ROWS) + 1)
    for name, row in [list(ROWS.items())[number - 1] for number in numbers]:
        runtime, pairs = npu(*row, recorded), []
        for _ in range(args.rounds):
            alone = measure(runtime, row[0], args.seconds, False)
            pairs.append((alone, measure(runtime, row[0], args.seconds, True)))
            print(pairs[-1][1][2], file=sys.stderr)
        ratio = statistics.median(both[0] / alone[0] for alone, both in pairs)
        crops = statistics.median(both[1] for _, both in pairs)
        print(f"| {name} | {ratio:.2f} | {crops:.1f} |", flush=True)
        worst = min(worst, ratio)
    if worst < 0.8 and args.seconds >= 5:
        raise SystemExit(f"The first model's rate drops to {worst:.2f} of what it was.")


if __name__ == "__main__":
    main()
