"""How well identities last: IDF1, identity switches and ms a frame, on the demo video and on a crowded street.

    python tests/compare_trackers.py                       # the project's own tracker
    ENVIRONMENT/bin/python tests/compare_trackers.py       # and others, after `pip install trackers edgefirst-tracker`

The detections are the demo model's (models/yolov5n_emoji). The truth is the generator's: what shows at least 0.4 of
itself. Drawing the crowd needs Pillow and Debian's package fonts-noto-color-emoji.
"""
import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models/demo")]
import func  # noqa: E402
from results.tracking import Tracker, overlaps  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from streams import frames_of  # noqa: E402

VISIBLE = 0.4  # share of an object that must show for it to be in the truth
IOU = 0.5      # from which a detection is an object


def assign(gain):
    """The pairs of rows and columns of gain (n, m) whose sum is the greatest, each row and column at most once.

    The Hungarian method with potentials (Kuhn 1955, Munkres 1957). Returns two index arrays.
    """
    gain = np.asarray(gain, float)
    if gain.shape[0] > gain.shape[1]:
        columns, rows = assign(gain.T)
        return rows, columns
    n, m = gain.shape
    u, v, owner = np.zeros(n + 1), np.zeros(m + 1), np.zeros(m + 1, int)  # row and column 0 stand for none
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
    """IDF1, MOTA and identity switches of tracks.

    truth, found: for each frame (ids (n,) int, boxes (n, 4) xyxy). IDF1 as Ristani et al. (2016) define it: over the
    best assignment of found identities to true ones for the whole video; MOTA and switches as CLEAR MOT does
    (Bernardin, Stiefelhagen 2008): a pair stays where it overlaps, the others are assigned anew. Both as py-motmetrics
    1.4.0 computes them.
    """
    together, true_count, found_count = {}, {}, {}
    switches = missed = false = total = 0
    last = {}  # true id: found id, when both were seen last
    for (ids, boxes), (own, found_boxes) in zip(truth, found):
        ids, own, iou = list(map(int, ids)), list(map(int, own)), overlaps(boxes, found_boxes)
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
        total, missed, false = total + len(ids), missed + len(ids) - len(now), false + len(own) - len(now)
    rows, columns = list(true_count), list(found_count)
    table = np.zeros((len(rows), len(columns)))
    for (name, other), count in together.items():
        table[rows.index(name), columns.index(other)] = count
    right = table[assign(table)].sum() if table.size else 0
    return SimpleNamespace(idf1=2 * right / (sum(true_count.values()) + sum(found_count.values())),
                           mota=1 - (missed + false + switches) / total, switches=switches)


def truth_of(frames, ids):
    """demo.json's "frames" and "ids" as score() takes them."""
    out = []
    for boxes, names in zip(frames, ids):
        boxes, names = np.array(boxes, float).reshape(-1, 6), np.array(names, int)
        seen = boxes[:, 5] >= VISIBLE
        out.append((names[seen], boxes[seen, 1:5]))
    return out


def own(detections, rate):
    """Tracks as score() takes them, by the project's Tracker, and the ms that each frame took.

    detections: for each frame (boxes, classes, scores); rate: frames a second.
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
    """The same by roboflow's ByteTrackTracker."""
    import supervision
    import trackers
    tracker, out, took = trackers.ByteTrackTracker(frame_rate=rate), [], []
    for boxes, classes, scores in detections:
        seen = supervision.Detections(xyxy=np.float32(boxes), class_id=np.array(classes), confidence=np.array(scores))
        began = time.perf_counter()
        seen = tracker.update(seen)
        took.append(1000 * (time.perf_counter() - began))
        named = seen.tracker_id >= 0
        out.append((seen.tracker_id[named], seen.xyxy[named]))
    return out, took


def edgefirst(detections, rate):
    """The same by edgefirst-tracker's ByteTrack, with the settings that did best on the demo of 320 that were tried."""
    from edgefirst.tracker import ByteTrack
    tracker, names, out, took = ByteTrack(high_conf=0.7, iou=0.1, update=0.5, lifespan_ns=10**9), {}, [], []
    for number, (boxes, classes, scores) in enumerate(detections):
        given = np.float32(boxes), np.float32(scores), np.array(classes, np.uint64), int(number / rate * 1e9) + 1
        began = time.perf_counter()
        tracks = tracker.update(*given)
        took.append(1000 * (time.perf_counter() - began))
        ids = [-1 if track is None else names.setdefault(track.uuid, len(names)) for track in tracks]
        ids = np.array(ids, int)
        out.append((ids[ids >= 0], boxes[ids >= 0]))
    return out, took


def detect(frames):
    """What the demo model finds in these frames: for each (boxes, classes, scores)."""
    with rknnPoolExecutor(str(ROOT / "models/yolov5n_emoji.rknn"), 2, func.detect) as pool:
        return [tuple(found) for found in pool.map(frames)]


def demo():
    """The demo's detections and truth."""
    document = json.loads((ROOT / "models/demo.json").read_text())
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    return detect(frames_of(video)), truth_of(document["frames"], document["ids"])


def drawn(actors, count=600, rate=60):
    """The detections and truth of a street, as models/demo/street.py draws it."""
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
    """Print a line for each tracker and rate; returns {(tracker, rate): figures}."""
    others = {"trackers": roboflow, "edgefirst.tracker": edgefirst}
    methods = {"own": own, **{name: method for name, method in others.items() if importlib.util.find_spec(
        name.split(".")[0])}}
    out = {}
    for step in (1, 4, 6):
        for title, method in methods.items():
            tracks, took = method(detections[::step], rate / step)
            figures = out[title, rate // step] = score(truth[::step], tracks)
            print(f"{name:10} {rate // step:3} FPS  {title:17} IDF1 {figures.idf1:.3f}  MOTA {figures.mota:.3f}  "
                  f"switches {figures.switches:3}  {np.median(took):.2f} ms a frame")
    return out


def main():
    import street
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the crowd")
    args = parser.parse_args()
    detections, truth = demo()
    table("demo", detections, truth)
    # Detectors of real streets are less sure of what they see than the demo's.
    table("demo x 0.7", [(boxes, classes, 0.7 * scores) for boxes, classes, scores in detections], truth)
    detections, truth = drawn(street.crowd(args.seed))
    table("crowd", detections, truth)
    strong = [tuple(field[found[2] >= 0.5] for field in found) for found in detections]
    table("crowd 0.5", strong, truth)


if __name__ == "__main__":
    main()
