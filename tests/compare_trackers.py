"""Compares trackers by IDF1, identity switches and time per frame.

    python tests/compare_trackers.py                    # this project's tracker
    ENVIRONMENT/bin/python tests/compare_trackers.py    # all trackers that are installed:
                                                        # pip install trackers edgefirst-tracker
    python tests/compare_trackers.py --frames 60        # a short run

Run by hand. The frames are those of the demo video and of a generated crowded street, the
detections those of the demo model. The true identities are those of the generators, for objects of
which at least 0.4 is visible. The crowd needs Pillow and Debian's package fonts-noto-color-emoji.
"""

import argparse
import importlib.util
import itertools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models/demo")]
from fakes import frames_in  # noqa: E402

import func  # noqa: E402
from results.tracking import Tracker, iou_matrix  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402

VISIBLE = 0.4  # minimum visible fraction of an object in the truth
IOU = 0.5  # minimum IoU of a true box and its detection


def assign(gain):
    """Pair rows and columns of gain, (n, m), so that the sum of the pairs is maximal.

    The Hungarian method with potentials (Kuhn 1955, Munkres 1957). Returns two index arrays.
    """
    gain = np.asarray(gain, float)
    if gain.shape[0] > gain.shape[1]:
        columns, rows = assign(gain.T)
        return rows, columns
    n, m = gain.shape
    # row and column 0 mean: not assigned
    u, v, owner = np.zeros(n + 1), np.zeros(m + 1), np.zeros(m + 1, int)
    for row in range(1, n + 1):
        owner[0], column = row, 0
        least, before, done = np.full(m + 1, np.inf), np.zeros(m + 1, int), np.zeros(m + 1, bool)
        while owner[column]:
            done[column] = True
            slack = np.full(m + 1, np.inf)
            slack[1:] = -gain[owner[column] - 1] - u[owner[column]] - v[1:]
            closer = ~done & (slack < least)
            least[closer], before[closer] = slack[closer], column
            following = int(np.where(done, np.inf, least).argmin())
            step = least[following]
            u[owner[done]] += step
            v[done] -= step
            least[~done] -= step
            column = following
        while column:
            owner[column], column = owner[before[column]], before[column]
    columns = np.flatnonzero(owner[1:])
    return owner[1:][columns] - 1, columns


def score(truth, found):
    """Return IDF1, MOTA and identity switches of tracks.

    truth, found: for each frame (ids (n,) int, boxes (n, 4) xyxy). IDF1 is defined by Ristani et
    al. (2016): it uses the best assignment of found identities to true ones for the whole video.
    MOTA and switches are those of CLEAR MOT (Bernardin, Stiefelhagen 2008): a pair remains while
    its boxes overlap; the others are assigned again in each frame. The values are those of
    py-motmetrics 1.4.0.
    """
    together, true_count, found_count = {}, {}, {}
    switches = missed = false = total = 0
    last = {}  # {true id: found id} of their last common frame
    for (ids, boxes), (own, found_boxes) in zip(truth, found):
        ids, own, iou = list(map(int, ids)), list(map(int, own)), iou_matrix(boxes, found_boxes)
        near = iou >= IOU
        for i, j in zip(*np.nonzero(near)):
            together[ids[i], own[j]] = together.get((ids[i], own[j]), 0) + 1
        for counts, names in ((true_count, ids), (found_count, own)):
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        where = {name: j for j, name in enumerate(own)}
        now, taken = {}, set()
        for i, name in enumerate(ids):
            other = last.get(name)
            if other in where and other not in taken and near[i, where[other]]:
                now[name] = other
                taken.add(other)
        rows = [i for i, name in enumerate(ids) if name not in now]
        columns = [j for j, name in enumerate(own) if name not in taken]
        if rows and columns:
            part = np.where(near, 1000 + iou, 0)[np.ix_(rows, columns)]
            for i, j in zip(*assign(part)):
                if part[i, j]:
                    now[ids[rows[i]]] = own[columns[j]]
        switches += sum(last.get(name, other) != other for name, other in now.items())
        last.update(now)
        total, missed, false = (
            total + len(ids),
            missed + len(ids) - len(now),
            false + len(own) - len(now),
        )
    rows, columns = list(true_count), list(found_count)
    table = np.zeros((len(rows), len(columns)))
    for (name, other), count in together.items():
        table[rows.index(name), columns.index(other)] = count
    right = table[assign(table)].sum() if table.size else 0
    return SimpleNamespace(
        idf1=2 * right / (sum(true_count.values()) + sum(found_count.values())),
        mota=1 - (missed + false + switches) / total,
        switches=switches,
    )


def truth_of(frames, ids):
    """Convert "frames" and "ids" of demo.json to the truth for score()."""
    out = []
    for boxes, names in zip(frames, ids):
        boxes, names = np.array(boxes, float).reshape(-1, 6), np.array(names, int)
        seen = boxes[:, 5] >= VISIBLE
        out.append((names[seen], boxes[seen, 1:5]))
    return out


def own(detections, rate):
    """Track with this project's Tracker. Returns tracks for score(), and the ms of each frame.

    detections: for each frame (boxes, classes, scores); rate: frames per second.
    """
    tracker, out, took = Tracker(), [], []
    for number, (boxes, classes, scores) in enumerate(detections):
        seen = SimpleNamespace(boxes=boxes, classes=classes, scores=scores, ids=None)
        began = time.perf_counter()
        tracker.update(SimpleNamespace(detections=seen, time=number / rate, number=number))
        took.append(1000 * (time.perf_counter() - began))
        out.append((seen.ids[seen.ids >= 0], boxes[seen.ids >= 0]))
    return out, took


def roboflow(detections, rate):
    """Track with roboflow's ByteTrackTracker, as own() does."""
    import supervision
    import trackers

    tracker, out, took = trackers.ByteTrackTracker(frame_rate=rate), [], []
    for boxes, classes, scores in detections:
        seen = supervision.Detections(
            xyxy=np.float32(boxes), class_id=np.array(classes), confidence=np.array(scores)
        )
        began = time.perf_counter()
        seen = tracker.update(seen)
        took.append(1000 * (time.perf_counter() - began))
        named = seen.tracker_id >= 0
        out.append((seen.tracker_id[named], seen.xyxy[named]))
    return out, took


def edgefirst(detections, rate):
    """Track with edgefirst-tracker's ByteTrack, as own() does.

    The settings are the best of 320 for the demo.
    """
    from edgefirst.tracker import ByteTrack

    tracker, names, out, took = (
        ByteTrack(high_conf=0.7, iou=0.1, update=0.5, lifespan_ns=10**9),
        {},
        [],
        [],
    )
    for number, (boxes, classes, scores) in enumerate(detections):
        given = (
            np.float32(boxes),
            np.float32(scores),
            np.array(classes, np.uint64),
            int(number / rate * 1e9) + 1,
        )
        began = time.perf_counter()
        tracks = tracker.update(*given)
        took.append(1000 * (time.perf_counter() - began))
        ids = [
            -1 if track is None else names.setdefault(track.uuid, len(names)) for track in tracks
        ]
        ids = np.array(ids, int)
        out.append((ids[ids >= 0], boxes[ids >= 0]))
    return out, took


def detect(frames):
    """Detect with the demo model. Returns (boxes, classes, scores) of each frame."""
    with rknnPoolExecutor(str(ROOT / "models/yolov5n_emoji.rknn"), 2, func.detect) as pool:
        return [tuple(found) for found in pool.map(frames)]


def demo(count=600, step=1):
    """Return detections and truth of every `step`-th of the demo's first `count` frames."""
    document = json.loads((ROOT / "models/demo.json").read_text())
    frames = itertools.islice(frames_in(ROOT / "models/demo.mp4"), 0, count, step)
    return detect(frames), truth_of(document["frames"], document["ids"])[:count:step]


def drawn(actors, count=600, rate=60):
    """Return detections and truth of a street of models/demo/street.py."""
    import street

    frames, ids = [], []

    def images():
        for image, truth, names in street.street_of(actors, count, rate):
            frames.append(truth)
            ids.append(names)
            yield image

    found = detect(images())
    return found, truth_of(frames, ids)


def table(name, detections, truth, rate=60):
    """Print a line for each tracker and rate."""
    others = {"trackers": roboflow, "edgefirst.tracker": edgefirst}
    methods = {
        "own": own,
        **{
            name: method
            for name, method in others.items()
            if importlib.util.find_spec(name.split(".")[0])
        },
    }
    for step in (1, 4, 6):
        for title, method in methods.items():
            tracks, took = method(detections[::step], rate / step)
            figures = score(truth[::step], tracks)
            print(
                f"{name:10} {rate // step:3} FPS  {title:17} IDF1 {figures.idf1:.3f}  "
                f"MOTA {figures.mota:.3f}  switches {figures.switches:3}  "
                f"{np.median(took):.2f} ms per frame"
            )


def main():
    import street

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of the crowd (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=600, help="of each video (default: all)")
    args = parser.parse_args()
    detections, truth = demo(args.frames)
    table("demo", detections, truth)
    # Scores of detectors on real streets are lower than on the demo.
    table(
        "demo x 0.7",
        [(boxes, classes, 0.7 * scores) for boxes, classes, scores in detections],
        truth,
    )
    detections, truth = drawn(street.crowd(args.seed), args.frames)
    table("crowd", detections, truth)
    strong = [tuple(field[found[2] >= 0.5] for field in found) for found in detections]
    table("crowd 0.5", strong, truth)


if __name__ == "__main__":
    main()
