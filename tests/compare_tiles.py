"""Measures --tiles on drawn streets of 3840 x 2160 with objects of 50 to 150 pixels.

Run by hand:

    python tests/compare_tiles.py                                      # all, four minutes
    python tests/compare_tiles.py --streets 1 --frames 2 --seconds 0.1 # a short run

- Recall by the size of the objects, with the demo model on the CPU: an object that is at least half
  visible is found by a box of its class with an IoU of at least 0.5. An object is doubled if a
  second box of its class lies on it (intersection / smaller area of at least 0.5). The model itself
  doubles an object if both boxes come from the same tile.
- The rate of 3 x 2 tiles, and how old the result of a live frame is, on a simulated NPU with three
  cores.
- The number of tiles that "motion" runs, and its recall, while objects move in two of six tiles.

Needs Pillow and Debian's package fonts-noto-color-emoji.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models/demo")]
import large_street  # noqa: E402
from large_street import LargeStreet  # noqa: E402

import func  # noqa: E402
from results.result import FrameTask, Result  # noqa: E402
from results.tile_grid import parse  # noqa: E402
from results.tile_merging import merged  # noqa: E402
from results.tiles import Tiles, TileTask  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import record, simulated  # noqa: E402

MODEL = str(ROOT / "models/yolov5n_emoji.rknn")
SIZE = large_street.width, large_street.height
TILES = parse("3x2").tiles(*SIZE, 640)
WHOLE = (0, 0, *SIZE)
SIDES = 50, 75, 100, 125, 151  # pixels: the table's rows
VISIBLE = MATCH = DOUBLE = 0.5
INFERENCE, CORES = 0.0169, 3  # as in docs/performance.md
CLIP_FPS = 10


# ---- recall ----


def overlaps(a, b):
    """IoU, and intersection / smaller area, of boxes a (n, 4) with b (m, 4), xyxy: two (n, m)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clip(0).prod(2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    union = area_a[:, None] + area_b - shared
    return shared / (union + 1e-9), shared / (np.minimum(area_a[:, None], area_b) + 1e-9)


class Score:
    """Which objects were found; added up over frames."""

    def __init__(self):
        self.found, self.objects = np.zeros(len(SIDES) - 1, int), np.zeros(len(SIDES) - 1, int)
        self.boxes = self.right = self.doubled = 0
        self.by_place = np.zeros(2, int)  # objects elsewhere, and at seams
        self.doubled_by_model = [0, 0]

    def add(self, truth, found, tiles=()):
        """Count a frame. tiles: (box, Detections in it) of each tile that was merged."""
        truth = truth[truth[:, 5] >= VISIBLE]
        boxes, classes = truth[:, 1:5], truth[:, 0].astype(int)
        iou, overlap = overlaps(found.boxes, boxes)
        same = found.classes[:, None] == classes
        finder = np.full(len(boxes), -1)
        for box in range(len(found)):  # best first
            free = np.where((finder < 0) & same[box], iou[box], 0)
            if free.max(initial=0) >= MATCH:
                finder[free.argmax()] = box
        row = np.digitize((boxes[:, 2:] - boxes[:, :2]).max(1), SIDES) - 1
        hit = (finder >= 0)[(row >= 0) & (row < len(self.objects))]
        row = row[(row >= 0) & (row < len(self.objects))]
        self.objects += np.bincount(row, minlength=len(self.objects))
        self.found += np.bincount(row[hit], minlength=len(self.objects))
        self.boxes, self.right = self.boxes + len(found), self.right + np.sum(finder >= 0)
        seam = at_seam(boxes)
        self.by_place += np.bincount(seam, minlength=2)
        on = np.where(same & (finder >= 0), overlap, 0)  # each box belongs to the nearest object
        on[finder[finder >= 0]] = 0
        for box in np.flatnonzero(on.max(1, initial=0) >= DOUBLE):
            number = on[box].argmax()
            if found_twice(found.boxes[box], boxes[number], classes[number], tiles):
                self.doubled_by_model[int(seam[number])] += 1
            else:
                self.doubled += int(seam[number])

    @property
    def recall(self):
        return self.found.sum() / self.objects.sum()


def at_seam(boxes):
    """Whether at least two tiles show a part of these boxes: (n,) bool."""
    x1, y1, x2, y2 = np.array(TILES).T
    across = (boxes[:, :1] < x2) & (boxes[:, 2:3] > x1)
    return (across & (boxes[:, 1:2] < y2) & (boxes[:, 3:] > y1)).sum(1) > 1


def found_twice(box, truth, number, tiles):
    """Whether the model found both a box and an object with this true box in the same tile."""
    for (x, y, _, _), found in tiles:
        own = found.boxes[found.classes == number] + np.float32([x, y, x, y])
        if (np.abs(own - box).max(1, initial=0) < 1).any():
            return (overlaps(own, truth[None])[0] >= MATCH).any()
    return False


def compare_recall(first, streets):
    """Print recall by size, with and without tiles. first: image and truth of the first street."""
    whole, tiled = Score(), Score()
    places = [*TILES, WHOLE]
    with rknnPoolExecutor(MODEL, 2, func.detect) as pool:
        others = (LargeStreet(seed).frame_at(1.0) for seed in range(2, streets + 1))
        for image, truth in itertools.chain([first], others):
            found = list(pool.map(image[y1:y2, x1:x2] for x1, y1, x2, y2 in places))
            whole.add(truth, found[-1])
            tiled.add(truth, merged(found, places, SIZE), list(zip(places, found)))
    print(f"{streets} streets of {SIZE[0]} x {SIZE[1]}\n")
    print(
        "| objects, longer side in pixels | number | whole frame | 3x2 tiles |\n|---|---|---|---|"
    )
    for row, low in enumerate(SIDES[:-1]):
        rates = [100 * score.found[row] / max(1, score.objects[row]) for score in (whole, tiled)]
        print(
            f"| {low} to {SIDES[row + 1] - 1} | {tiled.objects[row]} | {rates[0]:.1f} % | "
            f"{rates[1]:.1f} % |"
        )
    print(
        f"| all | {tiled.objects.sum()} | {100 * whole.recall:.1f} % | {100 * tiled.recall:.1f} % |"
    )
    elsewhere, at_seams = (
        100 * count / max(1, objects)
        for count, objects in zip(tiled.doubled_by_model, tiled.by_place)
    )
    print(
        f"\nTiles double {tiled.doubled} of {tiled.by_place[1]} objects at seams "
        f"({100 * tiled.doubled / max(1, tiled.by_place[1]):.1f} %). The model itself doubles "
        f"{at_seams:.1f} % there and {elsewhere:.1f} % elsewhere. Right boxes: "
        f"{100 * tiled.right / tiled.boxes:.1f} % with tiles, "
        f"{100 * whole.right / whole.boxes:.1f} % without."
    )


# ---- rate and age on a simulated NPU ----


def results_of(image, count, interval=0.0):
    """Results for `count` frames that show the same image, with pauses in seconds."""
    stream = SimpleNamespace(draws=False, tracker=None)
    for number in range(count):
        yield Result(stream, number, number / CLIP_FPS, image, time.perf_counter())
        time.sleep(interval)


def detecting(detect):
    return FrameTask(SimpleNamespace(detect=detect, draw=lambda IMG, detections: IMG))


def infer_only(context, IMG):
    """What takes no CPU time: only the pool and the NPU are measured."""
    context.inference_raw([SQUARE])
    return func.Detections(np.empty((0, 4)), [], [])


SQUARE = np.zeros((1, 640, 640, 3), np.uint8)


def compare_rate(image, seconds):
    """Print the rate of 3 x 2 tiles, that of the same pictures as frames of their own, measured in
    turn, and the age of a frame's result on an idle NPU."""
    parts = [image[y1:y2, x1:x2] for x1, y1, x2, y2 in [*TILES, WHOLE]]
    runtime = simulated(INFERENCE, CORES, record(MODEL, parts, func.myFunc))
    count, limit = len(parts), CORES / INFERENCE
    frames = max(2, round(seconds * limit / count))
    print(
        f"\nSimulated NPU, {CORES} cores of {1000 * INFERENCE:.1f} ms, at most {limit:.1f} "
        "inferences per second\n\n| | pictures per second | tiles per second | share of the NPU | "
        "age of a live frame's result, ms |\n|---|---|---|---|---|"
    )
    for what, detect in (("inference only", infer_only), ("func.py's detect", func.detect)):
        with rknnPoolExecutor(MODEL, 2 * CORES, detect, runtime=runtime) as pool:
            began = time.perf_counter()
            done = sum(1 for _ in pool.map(parts * frames))
            plain = done / (time.perf_counter() - began)
        tiles, task = Tiles(parse("3x2")), TileTask(detecting(detect))
        with rknnPoolExecutor(MODEL, 2 * CORES, task, runtime=runtime) as pool:
            began = time.perf_counter()
            done = sum(count for _ in tiles.map(pool, results_of(image, frames)))
            rate = done / (time.perf_counter() - began)
            slow = results_of(image, max(3, round(3 * seconds)), count * INFERENCE)
            results = tiles.map(pool, slow, live=True)
            ages = sorted(time.perf_counter() - result.received for result in results)
        print(
            f"| {what} | {plain:.1f} | {rate:.1f} | {100 * rate / limit:.1f} % | "
            f"{1000 * ages[len(ages) // 2]:.0f} |"
        )
    print(f"\nThe {count} inferences of a frame take {1000 * count * INFERENCE:.0f} ms in all.")


# ---- motion ----


def compare_motion(frames):
    """Print how many tiles "motion" runs, and its recall."""
    (_, _, first_x, first_y), *_ = TILES
    # What no other tile sees of the first tile, and of the one in the middle below.
    only = [(0, 0, TILES[1][0], TILES[3][1]), (first_x, first_y, TILES[2][0], SIZE[1])]
    street = LargeStreet(3, only, frames / CLIP_FPS)
    clip = [street.frame_at(number / CLIP_FPS) for number in range(frames)]
    scores, counts = {}, {}
    for name in ("3x2", "motion:3x2"):
        runs = itertools.count()

        def detect(context, IMG, runs=runs):
            next(runs)
            return func.detect(context, IMG)

        scores[name] = Score()
        stream = SimpleNamespace(draws=False, tracker=None)
        results = (
            Result(stream, number, number / CLIP_FPS, image, 0)
            for number, (image, _) in enumerate(clip)
        )
        with rknnPoolExecutor(MODEL, 2, TileTask(detecting(detect))) as pool:
            for result in Tiles(parse(name)).map(pool, results):
                scores[name].add(clip[result.number][1], result.detections)
        counts[name] = next(runs)
    all_tiles, some = counts.values()
    tile_share = (some - frames) / (all_tiles - frames)
    print(
        f"\nMovement in 2 of 6 tiles, {frames} frames: motion runs {100 * tile_share:.0f} % of the "
        f"tiles, with the whole frame {100 * some / all_tiles:.0f} % of all inferences; recall "
        f"{100 * scores['motion:3x2'].recall:.1f} % instead of {100 * scores['3x2'].recall:.1f} %."
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streets", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="of the rate (default: 10)")
    parser.add_argument("--frames", type=int, default=40, help="with motion (default: 40)")
    args = parser.parse_args()
    first = LargeStreet(1).frame_at(1.0)
    compare_recall(first, args.streets)
    compare_rate(first[0], args.seconds)
    compare_motion(args.frames)


if __name__ == "__main__":
    main()
