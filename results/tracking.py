"""Identities that last: which detection of a frame is the object of the frame before. Two-stage matching as in
ByteTrack (Zhang et al., 2022, arXiv:2110.06864), with time in seconds instead of frames, so that a live stream's
dropped frames and a slow stream's few ones count as what they are.

    tracker = Tracker()               # one for each stream, fed in the order of its frames
    tracker.update(result)            # sets result.detections.ids
"""
from typing import Any, Tuple

import numpy as np

# --------------------------------------------------------------------------------------------------------------------
HIGH = 0.4         # score from which a detection may take any track; weaker ones only go on with one just seen
NEW = 0.3          # score from which a detection that fits no track may begin one
SURE = 0.8         # a track has an identity once the squares of its detections' scores add up to this: one of 0.9 at
                   # once, those of 0.5 in the fourth frame, those of 0.3 in the ninth
LOST = 2.0         # seconds at most for which an object out of sight is waited for, and no longer than it was in sight
RECENT = 0.3       # seconds more; and a weak detection only goes on with a track seen at most so long ago
OVERLAP = 0.2      # least IoU of a track's expected box and a detection that are taken for one
SAME = 0.6         # IoU from which two detections of one frame are the same object, whatever their classes
OTHER_CLASS = 0.5  # factor on the IoU where the class is another: detectors waver between car and truck
SETTLE = 1.0       # seconds over which a track's velocity is averaged
REACH = 2.0        # of its sides a second: so far beside its box a newcomer, of unknown velocity, is looked for
AHEAD = 1.0        # seconds by which a live stream's clock may run ahead of the time that passes
FIRM = 0.12        # seconds in which a track's position follows its detections
# --------------------------------------------------------------------------------------------------------------------


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every box of a (n, 4) with every box of b (m, 4), xyxy in pixels: (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides -= low
    np.maximum(sides, 0, out=sides)
    both = sides[..., 0] * sides[..., 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return both / (area_a[:, None] + area_b - both + 1e-9)


def pairs(score: np.ndarray, least: float) -> Tuple[np.ndarray, np.ndarray]:
    """Pairs of rows and columns of score (n, m), the best first, each row and column once, none below `least`: two
    index arrays."""
    rows, columns = [], []
    score = score.copy()
    while score.size:
        # Whatever is best in its row and in its column is what a greedy choice takes.
        best, back = score.argmax(1), score.argmax(0)
        row = np.flatnonzero(back[best] == np.arange(len(best)))
        row = row[score[row, best[row]] >= least]
        if not len(row):
            break
        column = best[row]
        rows.append(row)
        columns.append(column)
        score[row], score[:, column] = -1, -1
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(rows), np.concatenate(columns)


def enlarged(boxes: np.ndarray, share: float) -> np.ndarray:
    """Boxes (n, 4) xyxy with this share of their sides added on every side."""
    more = share * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - more, boxes[:, 2:] + more], 1)


class Tracker:
    """Gives the detections of one stream identities.

    An identity is a whole number from 1, given in the order in which objects are taken for sure, and never used twice.
    A detection that is not sure yet (a new one's first frame, or a weak one's first frames) has the identity -1, which
    no line counts and no JSON shows. An object out of sight keeps its identity for as long as it had been in
    sight, and LOST seconds at most.
    """

    def __init__(self) -> None:
        self.next, self.first = 1, True
        self.clock, self.last, self.time, self.number, self.step = 0.0, 0.0, None, None, 1 / 30
        self.received = None                 # by perf_counter(), of a live frame
        self.boxes = np.empty((0, 4))        # xyxy where each track was when last seen, smoothed, in pixels
        self.speeds = np.empty((0, 2))       # of its centre, x and y, in pixels a second
        self.seen = np.empty(0)              # the clock's time at which it was last seen
        self.begun = np.empty(0)             # and first seen
        self.classes = np.empty(0, np.int64)
        self.ids = np.empty(0, np.int64)     # -1: not sure yet
        self.sums = np.empty(0)              # of the scores

    def tick(self, result: Any) -> None:
        """The tracker's own clock goes on by what has passed since the frame before, and never back, whatever the
        stream's clock does."""
        time, number = getattr(result, "time", None), getattr(result, "number", None)
        frames = number - self.number if None not in (number, self.number) else 1
        step = time - self.time if None not in (time, self.time) else 0
        live = getattr(getattr(result, "stream", None), "live", False)
        received = getattr(result, "received", None) if live else None
        if None not in (received, self.received) and step > received - self.received + AHEAD:
            step = received - self.received  # the clock was set, as at the start of a board without one of its own
        if step > 0:
            self.step = step / max(1, frames)
        else:  # no clock, or one that was set back: as many frames as have passed, at the rate known
            step = self.step * max(1, frames)
        self.last, self.clock = self.clock, self.clock + step
        self.time, self.number, self.received = time, number, received

    def update(self, result: Any) -> None:
        """Set `result.detections.ids`: (n,) int64, -1 where an object is not sure yet.

        result: a streams.Result, or anything with `detections` (`boxes` (n, 4) xyxy in pixels, `classes` (n,), `scores`
        (n,)), `time` (seconds) and `number` (of the frame). Without detections, or with those of a classifier, which
        has no boxes, nothing happens.
        """
        detections = result.detections
        if detections is None or detections.boxes is None:
            return
        self.tick(result)
        detections.ids = self.follow(np.asarray(detections.boxes, np.float64).reshape(-1, 4),
                                     np.asarray(detections.classes), np.asarray(detections.scores, np.float64))

    def forget(self) -> None:
        """Drop the tracks that have been out of sight for too long, and those that were gone before they were sure."""
        away, new = self.clock - self.seen, self.seen == self.last
        keep = (away <= LOST) & (new | (self.ids >= 0) & (away <= RECENT + self.seen - self.begun))
        if not keep.all():
            for name in ("boxes", "speeds", "seen", "begun", "classes", "ids", "sums"):
                setattr(self, name, getattr(self, name)[keep])

    def follow(self, boxes, classes, scores) -> np.ndarray:
        """The identities (n,) int64 of detections seen now."""
        self.forget()
        odd = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))  # of a network that overflows: nobody's
        boxes, scores = np.where(odd[:, None], 0, boxes), np.where(odd, 0, scores)
        track_of = np.full(len(boxes), -1)
        if len(self.ids) and len(boxes):
            away = self.clock - self.seen
            shift = self.speeds * away[:, None]
            likeness = overlaps(self.boxes + np.concatenate([shift, shift], 1), boxes)
            likeness *= np.where(self.classes[:, None] == classes, 1, OTHER_CLASS)
            high = scores >= HIGH
            sure = self.ids >= 0
            self.match(likeness, np.flatnonzero(sure), np.flatnonzero(high), track_of)
            free = np.ones(len(self.ids), bool)
            free[track_of[track_of >= 0]] = False
            recent = (away <= RECENT) | (self.seen == self.last)
            self.match(likeness, np.flatnonzero(free & recent), np.flatnonzero(track_of < 0), track_of)
            self.reach(track_of, boxes, classes)
        self.learn(np.flatnonzero(track_of >= 0), track_of, boxes, classes, scores)
        return self.settle(track_of, boxes, classes, scores)

    def reach(self, track_of, boxes, classes) -> None:
        """Match newcomers of the frame before, whose velocity is not known yet, with what is left near them: with few
        frames a second they are beside where they were."""
        free = (self.seen == self.last) & (self.begun == self.last)
        free[track_of[track_of >= 0]] = False
        tracks, left = np.flatnonzero(free), np.flatnonzero(track_of < 0)
        if not len(tracks) or not len(left):
            return
        # As in C-BIoU (Yang et al., 2023, arXiv:2211.14317) both boxes are enlarged.
        step = REACH * (self.clock - self.last)
        likeness = overlaps(*(enlarged(part, step) for part in (self.boxes[tracks], boxes[left])))
        likeness[self.classes[tracks][:, None] != classes[left]] = 0
        rows, columns = pairs(likeness, OVERLAP)
        track_of[left[columns]] = tracks[rows]

    def match(self, likeness, tracks, detections, track_of) -> None:
        rows, columns = pairs(likeness[tracks[:, None], detections], OVERLAP)
        track_of[detections[columns]] = tracks[rows]

    def learn(self, found, track_of, boxes, classes, scores) -> None:
        """Move the tracks to where they were found."""
        if not len(found):
            return
        tracks, now = track_of[found], boxes[found]
        passed = (self.clock - self.seen[tracks])[:, None]
        shift = self.speeds[tracks] * passed
        expected = self.boxes[tracks] + np.concatenate([shift, shift], 1)
        off = now - expected
        # A young track knows its velocity from few frames: their plain mean.
        age = np.minimum((self.clock - self.begun[tracks])[:, None], SETTLE)
        self.speeds[tracks] += (off[:, :2] + off[:, 2:]) / 2 / np.maximum(age, passed)
        self.boxes[tracks] = expected + (1 - np.exp(-passed / FIRM)) * off
        self.seen[tracks] = self.clock
        self.classes[tracks] = classes[found]
        self.sums[tracks] += scores[found] ** 2

    def beginners(self, track_of, boxes, scores) -> np.ndarray:
        """The detections that begin a track: an index array."""
        new = np.flatnonzero((track_of < 0) & (scores >= NEW))
        if not len(new):
            return new
        new = new[np.argsort(-scores[new], kind="stable")]
        known = np.flatnonzero(track_of >= 0)
        # One object that the detector takes for two, a car and a truck in one place, is one.
        same = overlaps(boxes[new], boxes[np.concatenate([known, new])]) >= SAME
        same[:, len(known):] = np.tril(same[:, len(known):], -1)
        return new[~same.any(1)]

    def settle(self, track_of, boxes, classes, scores) -> np.ndarray:
        """Begin new tracks, and name those that are sure now: the detections' identities."""
        new = self.beginners(track_of, boxes, scores)
        if len(new):
            track_of[new] = len(self.ids) + np.arange(len(new))
            fill = np.full(len(new), self.clock)
            self.boxes = np.concatenate([self.boxes, boxes[new]])
            self.speeds = np.concatenate([self.speeds, np.zeros((len(new), 2))])
            self.seen, self.begun = np.concatenate([self.seen, fill]), np.concatenate([self.begun, fill])
            self.classes = np.concatenate([self.classes, classes[new]])
            self.ids = np.concatenate([self.ids, np.full(len(new), -1)])
            self.sums = np.concatenate([self.sums, scores[new] ** 2])
        # In the first frame there is nothing to wait for: all that is there has been there.
        for track in np.flatnonzero((self.ids < 0) & ((self.sums >= SURE) | self.first)):
            self.ids[track], self.next = self.next, self.next + 1
        self.first = False
        return np.where(track_of >= 0, np.append(self.ids, -1)[track_of], -1)
