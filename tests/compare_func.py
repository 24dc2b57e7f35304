"""func.py's own CPU time a frame, stage by stage, beside that of an earlier commit's func.py, in turns.

Run by hand:

    python tests/compare_func.py             # against 105ce48
    python tests/compare_func.py 670b704

60 frames of the demo video and the outputs of the demo model, which a copy puts into the context's buffers before each
decoding, as a runtime does. "floats" is what the wheel gives, "int8" what the vendor's library gives. What is not
inside OpenCV counts as holding the GIL, which is an upper bound: NumPy lets go of it in its longer loops.
"""
import collections
import importlib.util
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import func  # noqa: E402
import rknnmodel  # noqa: E402
from benchmark import Stopwatch, looped  # noqa: E402
from runtimes.simulated import record  # noqa: E402

MODEL, ROUNDS = str(ROOT / "models/yolov5n_emoji.rknn"), 6
STAGES = "letterbox", "heads, floats", "heads, int8", "NMS", "draw"


def earlier(commit):
    """func.py of a commit, as a module; what it imports is today's."""
    try:
        text = subprocess.run(["git", "show", f"{commit}:func.py"], cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"{commit}: its func.py is not to be had; a shallow clone lacks it (git fetch --unshallow).")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "func_earlier.py"
        path.write_bytes(text)
        spec = importlib.util.spec_from_file_location("func_earlier", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def serve(module, frame, floats, stored, model, watch, times):
    """One frame through all stages: (boxes, classes, scores) after NMS, and the picture. Adds ms to times[stage]."""
    module.cv2 = watch or cv2
    frame = frame.copy()

    def stage(name, call, *args):
        before = time.thread_time(), watch.seconds if watch else 0
        result = call(*args)
        took = time.thread_time() - before[0] - (watch.seconds - before[1] if watch else 0)
        times[name, bool(watch)].append(took * 1000)
        return result

    _, placed = stage("letterbox", module.letterbox, frame, model.size or 640)
    stage("heads, floats", module.decode, [buffer.copy() for buffer in floats], model)
    found = stage("heads, int8", module.decode, [(buffer.copy(), *scale) for buffer, *scale in stored], model)
    boxes, classes, scores = stage("NMS", module.nms, *found, model)

    def draw():
        places = module.unletterbox(boxes, placed, frame)
        return module.draw(frame, module.Detections(places, classes, scores, module.names_of(model)))

    picture = stage("draw", draw)
    module.cv2 = cv2
    return (boxes, classes, scores), picture


def mean(values):
    """Of the lower nine tenths: what others on this machine cost is left out."""
    values = np.sort(values)
    return float(values[:-(-9 * len(values) // 10)].mean())


def main():
    cv2.setNumThreads(1)
    commit = sys.argv[1] if len(sys.argv) > 1 else "105ce48"
    old, model = earlier(commit), rknnmodel.describe(MODEL)
    frames = [frame.copy() for frame in itertools.islice(looped(str(ROOT / "models/demo.mp4")), 0, 600, 10)]
    recorded = record(MODEL, [frame.copy() for frame in frames], func.myFunc).outputs
    times = {old: collections.defaultdict(list), func: collections.defaultdict(list)}
    for number in range(-1, ROUNDS):
        for module in times:
            if number == 0:
                times[module].clear()  # of the warm-up
        for place, (frame, stored) in enumerate(zip(frames, recorded)):
            floats = [func.floats(*raw) for raw in stored]
            turns = (old, func) if (number + place) % 2 else (func, old)
            one, other = (serve(module, frame, floats, stored, model, Stopwatch() if number % 2 else None,
                                times[module]) for module in turns)
            assert all(np.allclose(mine, theirs, atol=1e-3) for mine, theirs in zip(one[0], other[0])), place
            assert (one[1] == other[1]).all(), place
    print(f"| CPU, ms a frame | {commit} | with the GIL | now | with the GIL | ratio | with the GIL |\n|{'---|' * 7}")
    sums = collections.defaultdict(float)
    for stage in STAGES:
        cells = []
        for module in times:
            in_all = mean(times[module][stage, False])
            cells += [in_all, min(in_all, mean(times[module][stage, True]))]
        row(stage, cells)
        for path in ("floats", "int8"):
            if not stage.startswith("heads") or stage.endswith(path):
                sums[path] += np.array(cells)
    for path, cells in sums.items():
        row(f"all, {path}", cells)
    row("all, floats then and int8 now", [*sums["floats"][:2], *sums["int8"][2:]])
    print(f"\n{len(frames)} frames: the same boxes to 1e-3, the same pictures")


def row(name, cells):
    old, old_held, new, new_held = cells
    print(f"| {name} | {old:.3f} | {old_held:.3f} | {new:.3f} | {new_held:.3f} | {new / old:.2f} | "
          f"{new_held / old_held:.2f} |")


if __name__ == "__main__":
    main()
