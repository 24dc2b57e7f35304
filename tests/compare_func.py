"""Compares the CPU time per frame of func.py's detect() and draw() with that of an earlier commit.

Run by hand:

    python tests/compare_func.py             # with 28f18d1
    python tests/compare_func.py 670b704
    python tests/compare_func.py --frames 4 --rounds 1     # a short run

Uses 60 frames of the demo video and the demo model's outputs. A fake context copies the outputs
into its buffers, as a runtime does; that time is not counted. "floats" are the outputs of the
wheel, "int8" those of the vendor's library. Each commit runs in a process of its own, in turn.
"""

import argparse
import itertools
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = str(ROOT / "models/yolov5n_emoji.rknn")
STAGES = "detect, floats", "detect, int8", "draw"


class Floats:
    """A context that gives recorded outputs as float32."""

    seconds = 0.0  # spent on copies

    def load(self, outputs):
        self.stored = [
            (values.astype(np.float32) - zero) * np.float32(scale)
            for values, scale, zero in outputs
        ]
        self.buffers = [values.copy() for values in self.stored]

    def inference(self, inputs):
        began = time.thread_time()
        for buffer, values in zip(self.buffers, self.stored):
            np.copyto(buffer, values)
        self.seconds += time.thread_time() - began
        return self.buffers


class Int8(Floats):
    """A context that gives recorded outputs as int8 with scale and zero point."""

    def load(self, outputs):
        self.scales = [scale for _, *scale in outputs]
        self.stored = [values for values, *_ in outputs]
        self.buffers = [values.copy() for values in self.stored]

    def inference_raw(self, inputs):
        return [(buffer, *scale) for buffer, scale in zip(self.inference(inputs), self.scales)]


def measure(path):
    """The process of one commit: for each line on stdin, run all frames once and print as JSON the
    ms per frame of each stage, and the boxes."""
    import cv2

    import func

    cv2.setNumThreads(1)
    frames, recorded = pickle.loads(Path(path).read_bytes())
    for _ in sys.stdin:
        times, boxes = dict.fromkeys(STAGES, 0.0), []
        for frame, outputs in zip(frames, recorded):
            for stage, context in zip(STAGES, (Floats(), Int8())):
                context.load(outputs)
                frame = frame.copy()
                began = time.thread_time()
                found = func.detect(context, frame)
                times[stage] += time.thread_time() - began - context.seconds
            began = time.thread_time()
            func.draw(frame, found)
            times["draw"] += time.thread_time() - began
            boxes.append(found.boxes.round(2).tolist())
        ms = {stage: seconds * 1000 / len(frames) for stage, seconds in times.items()}
        print(json.dumps([ms, boxes]), flush=True)


def record_outputs(path, count):
    """Write so many frames of the demo video and the demo model's outputs for them."""
    sys.path.insert(0, str(ROOT))
    import cv2

    import func
    from runtimes.simulated import record

    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    frames = [video.read()[1] for _ in range(10 * count)][::10]
    recorded = record(MODEL, [frame.copy() for frame in frames], func.myFunc).outputs
    path.write_bytes(pickle.dumps((frames, recorded)))


def extract(commit, folder):
    """The Python files of a commit."""
    try:
        archive = subprocess.run(
            ["git", "archive", commit, "--", "*.py"], cwd=ROOT, check=True, capture_output=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{commit}: not in this repository ({error}); a shallow clone lacks it.")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", default="28f18d1")
    parser.add_argument("--frames", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record_outputs(folder / "recorded", args.frames)
        (folder / "tree").mkdir()
        extract(args.commit, folder / "tree")
        code = "import sys; sys.path.insert(0, sys.argv[1]); import compare_func as c; "
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code + "c.measure(sys.argv[2])", tree, folder / "recorded"],
                cwd=ROOT / "tests",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for tree in (folder / "tree", ROOT)
        ]
        rounds = []
        for number in range(-1, args.rounds):  # the first round is the warm-up
            answers = {}
            for child in children if number % 2 else children[::-1]:
                child.stdin.write("\n")
                child.stdin.flush()
                answers[child] = json.loads(child.stdout.readline())
            (old, boxes), (new, others) = (answers[child] for child in children)
            rounds += [(old, new)] * (number >= 0)
        for child in children:
            child.stdin.close()
            child.wait()
    for one, other in itertools.zip_longest(boxes, others):
        assert np.allclose(one, other, atol=0.02), "the two find other boxes"
    print(f"| CPU, ms per frame | {args.commit} | now | ratio |\n|---|---|---|---|")
    totals = {f"{kind} and draw": [f"detect, {kind}", "draw"] for kind in ("floats", "int8")}
    for name, stages in {**{stage: [stage] for stage in STAGES}, **totals}.items():
        then, now = (
            np.median([sum(each[side][stage] for stage in stages) for each in rounds])
            for side in (0, 1)
        )
        print(f"| {name} | {then:.3f} | {now:.3f} | {now / then:.2f} |")
    print(f"\n{len(boxes)} frames, {args.rounds} rounds: the same boxes to 0.01 pixels")


if __name__ == "__main__":
    main()
