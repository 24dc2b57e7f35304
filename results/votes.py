"""Votes over what a second model says about one object in several crops.

    votes = Votes()
    votes.asked_at(time, side)          # when a crop of this size is sent to the model
    votes.add(("B AB 1234", 0.93), side)
    votes.best                          # ("B AB 1234", 0.93)
    votes.due(time, side)               # whether another crop would help
"""
from __future__ import annotations

from typing import Dict, Optional, Tuple

# --------------------------------------------------------------------------------------------------
MIN_ANSWERS = 3   # with fewer answers the best one is uncertain
SURE = 0.7        # the best answer is also uncertain with less than this share of the votes
MAX_CROPS = 8     # of an object; then no more, unless it has grown
GROWN = 1.5       # times as large as in the first crop: the object is asked about as if it were new
INTERVAL = 0.2    # seconds of the stream between two crops, so that they differ
# --------------------------------------------------------------------------------------------------

Answer = Tuple[str, float]  # what the model says, and its score, 0..1


class Votes:
    """The answers about one object. A vote weighs its score times the crop's side in pixels."""

    def __init__(self) -> None:
        self.weights: Dict[str, float] = {}
        self.sides = 0.0               # of all crops that got an answer, added up
        self.crops = self.answers = 0  # since the object was new, or has grown
        self.first_side = 0.0          # of the first of these crops
        self.time: Optional[float] = None         # of the last crop
        self.left_out_at: Optional[float] = None  # when a crop that was due was last left out

    def due(self, time: float, side: float) -> bool:
        """Whether another crop, of this side in pixels, would help. Starts again if the object has
        grown. time: in seconds, the stream's."""
        if self.time is not None and 0 <= time - self.time < INTERVAL:
            return False
        if self.crops and side >= GROWN * self.first_side:
            self.crops = self.answers = 0
        return self.crops < MAX_CROPS and not self.sure

    def asked_at(self, time: float, side: float) -> None:
        """A crop goes to the model."""
        if self.crops == 0:
            self.first_side = side
        self.time = time
        self.crops += 1

    def add(self, answer: Optional[Answer], side: float) -> None:
        """Count the answer to a crop; None if the model found nothing in it."""
        if answer is None:
            return
        text, score = answer
        self.weights[text] = self.weights.get(text, 0.0) + score * side
        self.sides += side
        self.answers += 1

    def left_out(self, time: float) -> bool:
        """Note that a crop that is due is left out. True if it is to be counted: once in
        INTERVAL."""
        if self.left_out_at is not None and 0 <= time - self.left_out_at < INTERVAL:
            return False
        self.left_out_at = time
        return True

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
