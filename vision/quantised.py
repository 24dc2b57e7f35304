"""Model outputs as the NPU leaves them: int8 values with a scale and a zero point.

Decoders compare stored values with a stored threshold, and convert to float only what passes:
a YOLOv5 at 640 x 640 has 2.1 million output values, of which a few thousand matter.
"""
from __future__ import annotations

import functools
from typing import Any, List, NamedTuple, Sequence, Tuple, Union

import numpy as np


class Raw(NamedTuple):
    """An output: the value of each element is (stored - zero_point) * scale.

        head = Raw(np.int8([[-128, 127]]), 1 / 255, -128)
        head.floats()           # [[0, 1]]
        head.threshold(0.25)    # -64: stored values from here on are at least 0.25
    """
    stored: np.ndarray       # int8 in most cases; of a float output the values themselves
    scale: float = 1.0
    zero_point: int = 0

    @property
    def shape(self) -> Tuple[int, ...]:
        return self.stored.shape

    def reshape(self, *shape: int) -> Raw:
        return Raw(self.stored.reshape(shape), self.scale, self.zero_point)

    def part(self, index: Any) -> Raw:
        """The elements stored[index]."""
        return Raw(self.stored[index], self.scale, self.zero_point)

    def columns(self, index: np.ndarray) -> Raw:
        """Some columns of (rows, columns)."""
        return Raw(self.stored.take(index, 1), self.scale, self.zero_point)

    def floats(self) -> np.ndarray:
        """The values as float32; an output that is float32 already is returned without a copy."""
        if self.stored.dtype.kind == "f":
            return self.stored.astype(np.float32, copy=False)
        values = self.stored.astype(np.float32)
        values -= np.float32(self.zero_point)
        values *= np.float32(self.scale)
        return values

    def threshold(self, value: float) -> Union[int, float]:
        """The lowest stored value whose float is at least `value`."""
        if self.stored.dtype.kind == "f":
            return value
        return _stored_threshold(value, self.scale, self.zero_point, self.stored.dtype)

    def within(self, low: float, high: float) -> bool:
        """True if an integer type cannot store values outside low..high, as after a sigmoid."""
        if self.stored.dtype.kind == "f":
            return False
        limits = np.iinfo(self.stored.dtype)
        return (low <= (limits.min - self.zero_point) * self.scale
                and (limits.max - self.zero_point) * self.scale <= high)

    def highest(self) -> np.ndarray:
        """The highest stored value of each column of (rows, columns)."""
        if self.stored.dtype != np.float16:
            return self.stored.max(0)
        # NumPy takes 1 ms for 80 x 6400 values in float16, and 0.05 ms for their bits as integers,
        # which rise with the value, but fall where it is negative.
        bits = self.stored.view(np.int16)
        best = bits.max(0)
        return np.where(best < 0, bits.min(0), best).view(np.float16)


@functools.lru_cache(maxsize=1000)
def _stored_threshold(value: float, scale: float, zero_point: int, dtype: np.dtype) -> int:
    limits = np.iinfo(dtype)
    every = np.arange(limits.min, limits.max + 1)
    return limits.min + int(np.count_nonzero(Raw(every, scale, zero_point).floats() < value))


def as_raw(outputs: Sequence[Union[np.ndarray, tuple]]) -> List[Raw]:
    """Outputs as Raw; each may be a float array, a tuple (stored, scale, zero point), or a Raw."""
    return [Raw(*output) if isinstance(output, tuple) else Raw(np.asarray(output))
            for output in outputs]


def lacks_sigmoid(scores: Sequence[Raw]) -> bool:
    """True if scores are logits: more than a quarter of the values of all heads lie outside 0..1.

    A sample of at most 300 values of each head is checked. A few broken values do not count.
    """
    low, high = -0.01, 1.01  # int8 rounds scores to -0.004 .. 1.004
    if all(head.within(low, high) for head in scores):
        return False
    samples = [head._replace(stored=head.stored.flat[::head.stored.size // 300 + 1]).floats()
               for head in scores]
    values = np.concatenate(samples)
    return bool(4 * np.count_nonzero((values < low) | (values > high)) > len(values))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def logit(score: float) -> float:
    """The value whose sigmoid is `score`."""
    if not 0 < score < 1:
        return float("inf") if score >= 1 else float("-inf")
    return float(np.log(score / (1 - score)))


def as_scores(values: np.ndarray, logits: bool = False) -> np.ndarray:
    """Scores in 0..1 from float32 values, which may be logits. Values above 1 become NaN."""
    if logits:
        return sigmoid(values)
    # int8 rounds 1 up to 1.004 at most
    return np.where(values <= 1.01, np.minimum(values, 1), np.float32(np.nan))
