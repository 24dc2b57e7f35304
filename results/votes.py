"""Votes over what a second model says about one object in several crops.

    votes = Votes()
    votes.due(time, side)               # True: another crop would help
    votes.add_crop(time, side)          # when it is sent to the model
    votes.add(("B AB 1234", 0.93), side)
    votes.best                          # ("B AB 1234", 0.93)

Times are in seconds, the stream's. The side of a crop is in pixels.
"""
from __future__ import annotations

from typing import Dict, Optional, Tuple

# --------------------------------------------------------------------------------------------------
MIN_ANSWERS = 3   # with fewer answers the best one is uncertain
SURE = 0.7        # the best answer is also uncertain with less than this share of the votes
MAX_CROPS = 8     # of an object; then no more, unless it has grown
GROWN = 1.5       # times as large as in the first crop: the object is asked about as if it were new
INTERVAL = 0.2    # seconds between two crops of an object, so that they differ
# --------------------------------------------------------------------------------------------------

Answer = Tuple[str, float]  # what the model says, and its score, 0..1


class Votes:
    """The answers about one object. Each weighs its score times the side of its crop."""

    def __init__(self) -> None:
        self.weights: Dict[str, float] = {}  # of each text
        self.sides = 0.0                     # of all crops that got an answer, added up
        self.crops = self.answers = 0        # since the object was new, or has grown
        self.first_side = 0.0                # of the first of these crops
        self.last_crop: Optional[float] = None      # when it was sent
        self.last_left_out: Optional[float] = None  # when a crop that was due was left out

    def due(self, time: float, side: float) -> bool:
        """Whether another crop, of this side, would help."""
        if is_recent(self.last_crop, time):
            return False
        return self.has_grown(side) or self.crops < MAX_CROPS and not self.sure

    def has_grown(self, side: float) -> bool:
        """Whether a crop of this side would start again, as for a new object."""
        return self.crops > 0 and side >= GROWN * self.first_side

    def add_crop(self, time: float, side: float) -> None:
        """Count a crop that is sent to the model."""
        if self.has_grown(side):
            self.crops = self.answers = 0
        if self.crops == 0:
            self.first_side = side
        self.last_crop = time
        self.crops += 1

    def add(self, answer: Optional[Answer], side: float) -> None:
        """Count the answer to a crop; None if the model found nothing in it."""
        if answer is None:
            return
        text, score = answer
        self.weights[text] = self.weights.get(text, 0.0) + score * side
        self.sides += side
        self.answers += 1

    @property
    def sure(self) -> bool:
        """Whether more crops would not change the answer."""
        if self.answers < MIN_ANSWERS:
            return False
        return max(self.weights.values()) >= SURE * sum(self.weights.values())

    @property
    def best(self) -> Optional[Answer]:
        """The answer with the most votes, and its mean score over all crops that got an answer;
        None before the first."""
        if not self.sides:
            return None
        text = max(self.weights, key=lambda each: self.weights[each])
        return text, self.weights[text] / self.sides


def is_recent(moment: Optional[float], time: float) -> bool:
    """Whether a moment is less than INTERVAL before `time`. It may be later if a clock was set."""
    return moment is not None and 0 <= time - moment < INTERVAL
