"""Gives objects identities that last from frame to frame.

    tracker = Tracker()               # one for each stream; gets its frames in order
    tracker.update(result)            # sets result.detections.ids

Two-stage matching as in ByteTrack (Zhang et al., 2022, arXiv:2110.06864). Durations are in seconds,
because a live stream drops frames and streams have different rates. Only forgetting also counts
frames: at one frame every ten seconds an object has to outlast the time to the next frame.
"""
from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

# --------------------------------------------------------------------------------------------------
HIGH_SCORE = 0.4     # minimum score to match any track; weaker detections match recent tracks only
NEW_SCORE = 0.3      # minimum score to start a track
CONFIRM_SUM = 0.8    # a track gets an identity when the sum of its squared scores reaches this:
                     # in frame 1 at score 0.9, in frame 4 at 0.5, in frame 9 at 0.3
RECENT_SECONDS = 0.3  # since a track was lost, in which weak detections may match it, too
LOST_SECONDS = 2.0   # a lost track is kept this long, but not longer than it was visible plus
                     # RECENT_SECONDS
LOST_FRAMES = 2      # a track is also kept if it is missing in this many frames, however long they
                     # last, and in fewer than those in which it was seen
MIN_IOU = 0.2        # of a track's predicted box and a detection that match
DUPLICATE_IOU = 0.6  # detections of one frame with this IoU are one object, whatever their classes
OTHER_CLASS = 0.5    # factor on the IoU if the class differs: detectors confuse cars and trucks
VELOCITY_SECONDS = 1.0  # over which a track's velocity is averaged
NEW_REACH = 2.0      # a new track, of unknown velocity, is searched within this many box sides/s
POSITION_SECONDS = 0.12  # time constant with which a track's position follows its detections
CLOCK_JUMP = 1.0     # a live stream's clock that gains this many seconds was set
# --------------------------------------------------------------------------------------------------


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of every box of a, (n, 4), with every box of b, (m, 4), xyxy: (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides -= low
    np.maximum(sides, 0, out=sides)
    intersection = sides[..., 0] * sides[..., 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return intersection / (area_a[:, None] + area_b - intersection + 1e-9)


def greedy_pairs(scores: np.ndarray, minimum: float) -> Tuple[np.ndarray, np.ndarray]:
    """Pair rows and columns of scores, (n, m), best pairs first, each row and column once.

    Returns the indices of rows and of columns. Pairs below the minimum are left out.
    """
    rows, columns = [], []
    scores = scores.copy()
    while scores.size:
        # A pair that is the best of its row and of its column is part of the greedy solution.
        best_column, best_row = scores.argmax(1), scores.argmax(0)
        row = np.flatnonzero(best_row[best_column] == np.arange(len(best_column)))
        row = row[scores[row, best_column[row]] >= minimum]
        if not len(row):
            break
        column = best_column[row]
        rows.append(row)
        columns.append(column)
        scores[row], scores[:, column] = -1, -1
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(rows), np.concatenate(columns)


def enlarged(boxes: np.ndarray, fraction: float) -> np.ndarray:
    """Return boxes, (n, 4) xyxy, enlarged on every side by this fraction of their sides."""
    margin = fraction * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], 1)


class Tracker:
    """Assigns identities to the detections of one stream.

    Identities are integers from 1, given in the order in which tracks are confirmed, and never
    used again. A detection of an unconfirmed track has the identity -1, which lines do not count
    and JSON does not contain. A track is unconfirmed in its first frames, except in the first
    frame of the stream. An object that is out of sight keeps its identity as long as it had been
    visible, at most LOST_SECONDS or LOST_FRAMES, whichever lasts longer.
    """

    def __init__(self) -> None:
        self.next_id, self.first_frame = 1, True
        self.clock = self.last_clock = 0.0     # seconds, at this frame and at the one before
        self.frame_seconds = 1 / 30            # the last known time between two frames
        # of the last frame; received: time.perf_counter() of a live frame
        self.time: Optional[float] = None
        self.number: Optional[int] = None
        self.received: Optional[float] = None
        # One row per track:
        self.boxes = np.empty((0, 4))          # smoothed, xyxy in pixels, when last seen
        self.velocities = np.empty((0, 2))     # of the centre, in pixels per second
        self.last_seen = np.empty(0)           # clock
        self.first_seen = np.empty(0)          # clock
        self.seen = np.empty(0, np.int64)      # number of frames in which it was seen,
        self.missed = np.empty(0, np.int64)    # and of those since then
        self.classes = np.empty(0, np.int64)
        self.ids = np.empty(0, np.int64)       # -1: unconfirmed
        self.score_sums = np.empty(0)          # of squared scores

    def update(self, result: Any) -> None:
        """Set `result.detections.ids`, (n,) int64, -1 for unconfirmed objects.

        result: a Result, or any object with `detections` (`boxes` (n, 4) xyxy in pixels, `classes`
        (n,), `scores` (n,)), `time` (seconds) and `number` (of the frame). Results without
        detections, and those of a classifier, which have no boxes, are ignored.
        """
        detections = result.detections
        if detections is None or detections.boxes is None:
            return
        self._advance_clock(result)
        detections.ids = self._assign(
            np.asarray(detections.boxes, np.float64).reshape(-1, 4),
            np.asarray(detections.classes), np.asarray(detections.scores, np.float64))

    def unsteady(self, speed: float) -> np.ndarray:
        """Where objects are expected that move, or that were not found in the last frame: boxes,
        (n, 4) xyxy in pixels. speed: minimum speed of those that move, in box sides per second."""
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).max(1, initial=0)
        moves = np.abs(self.velocities).max(1, initial=0) > speed * sides
        return self._predicted(np.flatnonzero(moves | (self.missed > 0)))

    def _advance_clock(self, result: Any) -> None:
        """Advance the tracker's clock by the time between two frames.

        The clock never goes back, whatever the stream's clock does.
        """
        time, number = getattr(result, "time", None), getattr(result, "number", None)
        live = getattr(getattr(result, "stream", None), "live", False)
        received = getattr(result, "received", None) if live else None
        frames, step = 0, 0.0
        if number is not None and self.number is not None:
            frames = number - self.number
        frames = max(1, frames)
        if time is not None and self.time is not None:
            step = time - self.time
        if received is not None and self.received is not None:
            # Boards without a battery set their clock after the start.
            if step > received - self.received + CLOCK_JUMP:
                step = received - self.received
        if step > 0:
            self.frame_seconds = step / frames
        else:  # there is no clock, or it was set back
            step = self.frame_seconds * frames
        self.last_clock, self.clock = self.clock, self.clock + step
        self.time, self.number, self.received = time, number, received

    def _assign(self, boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the identities, (n,) int64, of the detections of this frame."""
        self._drop_lost_tracks()
        invalid = ~(np.isfinite(boxes).all(1) & np.isfinite(scores))  # if the network overflows
        boxes, scores = np.where(invalid[:, None], 0, boxes), np.where(invalid, 0, scores)
        track_of = np.full(len(boxes), -1)  # the index of each detection's track
        if len(self.ids) and len(boxes):
            similarity = iou_matrix(self._predicted(np.arange(len(self.ids))), boxes)
            similarity *= np.where(self.classes[:, None] == classes, 1, OTHER_CLASS)
            # Confirmed tracks and strong detections first, then what is left of recent tracks.
            self._match(similarity, np.flatnonzero(self.ids >= 0),
                        np.flatnonzero(scores >= HIGH_SCORE), track_of)
            free = np.ones(len(self.ids), bool)
            free[track_of[track_of >= 0]] = False
            recent = self.clock - self.last_seen <= RECENT_SECONDS
            recent |= self.last_seen == self.last_clock
            self._match(similarity, np.flatnonzero(free & recent), np.flatnonzero(track_of < 0),
                        track_of)
            self._match_new_tracks(track_of, boxes, classes)
        self._update_tracks(track_of, boxes, classes, scores)
        self._start_tracks(track_of, boxes, classes, scores)
        self._confirm_tracks()
        return np.where(track_of >= 0, np.append(self.ids, -1)[track_of], -1)

    def _drop_lost_tracks(self) -> None:
        """Drop tracks that were lost for too long, and lost tracks that were never confirmed."""
        lost = self.clock - self.last_seen
        visible = self.last_seen - self.first_seen
        keep = (lost <= RECENT_SECONDS + visible) & (lost <= LOST_SECONDS)
        keep |= self.missed <= np.minimum(self.seen - 1, LOST_FRAMES)
        keep &= (self.ids >= 0) | (self.missed == 0)
        if not keep.all():
            for name in ("boxes", "velocities", "last_seen", "first_seen", "seen", "missed",
                         "classes", "ids", "score_sums"):
                setattr(self, name, getattr(self, name)[keep])

    def _predicted(self, tracks: np.ndarray) -> np.ndarray:
        """Predict where the tracks are now: boxes, (n, 4) xyxy."""
        passed = self.clock - self.last_seen[tracks]
        shift = self.velocities[tracks] * passed[:, None]
        return self.boxes[tracks] + np.concatenate([shift, shift], 1)

    @staticmethod
    def _match(similarity: np.ndarray, tracks: np.ndarray, detections: np.ndarray,
               track_of: np.ndarray) -> None:
        """Match these tracks and detections, and enter the matches in track_of."""
        rows, columns = greedy_pairs(similarity[tracks[:, None], detections], MIN_IOU)
        track_of[detections[columns]] = tracks[rows]

    def _match_new_tracks(self, track_of: np.ndarray, boxes: np.ndarray,
                          classes: np.ndarray) -> None:
        """Match the tracks that started in the last frame with unmatched detections near them.

        Their velocity is unknown, and at a low frame rate their boxes do not overlap. As in C-BIoU
        (Yang et al., 2023, arXiv:2211.14317), both boxes are enlarged.
        """
        new = (self.last_seen == self.last_clock) & (self.first_seen == self.last_clock)
        new[track_of[track_of >= 0]] = False
        tracks, unmatched = np.flatnonzero(new), np.flatnonzero(track_of < 0)
        if not len(tracks) or not len(unmatched):
            return
        reach = NEW_REACH * min(self.clock - self.last_clock, LOST_SECONDS)
        similarity = iou_matrix(enlarged(self.boxes[tracks], reach),
                                enlarged(boxes[unmatched], reach))
        similarity[self.classes[tracks][:, None] != classes[unmatched]] = 0
        rows, columns = greedy_pairs(similarity, MIN_IOU)
        track_of[unmatched[columns]] = tracks[rows]

    def _update_tracks(self, track_of: np.ndarray, boxes: np.ndarray, classes: np.ndarray,
                       scores: np.ndarray) -> None:
        """Update position and velocity of the matched tracks."""
        self.missed += 1
        matched = np.flatnonzero(track_of >= 0)
        if not len(matched):
            return
        tracks = track_of[matched]
        self.missed[tracks], self.seen[tracks] = 0, self.seen[tracks] + 1
        passed = (self.clock - self.last_seen[tracks])[:, None]
        predicted = self._predicted(tracks)
        error = boxes[matched] - predicted
        # The velocity of a young track is the plain mean over its age.
        age = np.minimum((self.clock - self.first_seen[tracks])[:, None], VELOCITY_SECONDS)
        self.velocities[tracks] += (error[:, :2] + error[:, 2:]) / 2 / np.maximum(age, passed)
        self.boxes[tracks] = predicted + (1 - np.exp(-passed / POSITION_SECONDS)) * error
        self.last_seen[tracks] = self.clock
        self.classes[tracks] = classes[matched]
        self.score_sums[tracks] += scores[matched] ** 2

    def _start_tracks(self, track_of: np.ndarray, boxes: np.ndarray, classes: np.ndarray,
                      scores: np.ndarray) -> None:
        """Start a track for each unmatched detection that is strong and not a duplicate."""
        new = np.flatnonzero((track_of < 0) & (scores >= NEW_SCORE))
        if not len(new):
            return
        new = new[np.argsort(-scores[new], kind="stable")]
        matched = np.flatnonzero(track_of >= 0)
        # A duplicate overlaps a matched detection or a stronger new one.
        duplicate = iou_matrix(boxes[new], boxes[np.concatenate([matched, new])]) >= DUPLICATE_IOU
        duplicate[:, len(matched):] = np.tril(duplicate[:, len(matched):], -1)
        new = new[~duplicate.any(1)]
        track_of[new] = len(self.ids) + np.arange(len(new))
        now = np.full(len(new), self.clock)
        self.boxes = np.concatenate([self.boxes, boxes[new]])
        self.velocities = np.concatenate([self.velocities, np.zeros((len(new), 2))])
        self.last_seen = np.concatenate([self.last_seen, now])
        self.first_seen = np.concatenate([self.first_seen, now])
        self.seen = np.concatenate([self.seen, np.ones(len(new), np.int64)])
        self.missed = np.concatenate([self.missed, np.zeros(len(new), np.int64)])
        self.classes = np.concatenate([self.classes, classes[new]])
        self.ids = np.concatenate([self.ids, np.full(len(new), -1)])
        self.score_sums = np.concatenate([self.score_sums, scores[new] ** 2])

    def _confirm_tracks(self) -> None:
        """Give an identity to each track that has enough evidence."""
        # The objects of the first frame were there before: they need no confirmation.
        confirmed = (self.score_sums >= CONFIRM_SUM) | self.first_frame
        for track in np.flatnonzero((self.ids < 0) & confirmed):
            self.ids[track], self.next_id = self.next_id, self.next_id + 1
        self.first_frame = False
