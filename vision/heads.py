"""Heads without anchors: which outputs belong to which stride, and the boxes of their cells.

A head has an output with the sides of each cell's box and one with scores, (1, channels, height /
stride, width / stride) each. YOLOv6, YOLOv8 and what descends from them have three such heads.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vision.quantised import Raw, as_scores, lacks_sigmoid, logit
from vision.settings import Settings

STRIDES = (8, 16, 32)

Shapes = Sequence[Tuple[int, ...]]


def cell_count(size: Tuple[int, int], strides: Sequence[int] = STRIDES) -> int:
    """How many cells all strides have for an input of this size (width, height)."""
    return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)


class Groups(NamedTuple):
    """Outputs grouped by stride."""
    channels: Tuple[int, ...]    # of the outputs of one stride, the same for each
    first: Dict[int, int]        # stride: index of its first output, by rising stride


def group_by_stride(shapes: Shapes, size: Tuple[int, int]) -> Optional[Groups]:
    """Group consecutive outputs by stride. None unless there is one group for each stride, and all
    groups have the same channels. size: (width, height) of the model's input."""
    step, rest = divmod(len(shapes), len(STRIDES))
    if rest or not step or any(len(shape) != 4 or shape[0] != 1 for shape in shapes):
        return None
    found = []
    for stride in STRIDES:
        cells = (size[1] // stride, size[0] // stride)
        indices = [index for index, shape in enumerate(shapes) if tuple(shape[2:]) == cells]
        if len(indices) != step or indices[-1] - indices[0] != step - 1:
            return None
        found.append((indices[0], tuple(shapes[index][1] for index in indices)))
    channels = {channels for _, channels in found}
    if len(channels) != 1:
        return None
    return Groups(channels.pop(), {stride: first for stride, (first, _) in zip(STRIDES, found)})


class Head(NamedTuple):
    """The outputs of one stride."""
    stride: int
    sides: Raw     # (1, 4 or 4 * bins, rows, columns): see distances()
    scores: Raw    # (1, classes, rows, columns), after the sigmoid or before it


@dataclass(frozen=True)
class Cells:
    """The cells whose best class passes the confidence, over all heads."""
    sides: np.ndarray      # (n, 4) float32: distances to left, top, right, lower side, in strides
    centres: np.ndarray    # (n, 2) float32: x and y of the cell in strides
    strides: np.ndarray    # (n, 1) float32
    classes: np.ndarray    # (n,) int64
    scores: np.ndarray     # (n,) float32
    index: np.ndarray      # (n,) int64: of the cell, counted over all heads

    def boxes(self) -> np.ndarray:
        """(n, 4) float32 xyxy in pixels of the model's input."""
        corners = [self.centres - self.sides[:, :2], self.centres + self.sides[:, 2:]]
        return np.concatenate(corners, 1) * self.strides


def decode_cells(heads: Sequence[Head], settings: Settings) -> Cells:
    """The cells of all heads whose best class has at least settings.conf."""
    scores = [head.scores.reshape(head.scores.shape[1], -1) for head in heads]  # (classes, cells)
    sides = [head.sides.reshape(head.sides.shape[1], -1) for head in heads]
    logits = lacks_sigmoid(scores)
    conf = logit(settings.conf) if logits else settings.conf
    # The best class alone rules out nearly all cells. Only the others are computed.
    passed = [score.highest() >= score.threshold(conf) for score in scores]     # (cells,) bool
    cells = [np.flatnonzero(of_head) for of_head in passed]
    values = columns_of(scores, cells)                                          # (classes, n)
    index = np.flatnonzero(np.concatenate(passed))
    table = cell_table(tuple((head.stride, *head.scores.shape[2:]) for head in heads))[index]
    return Cells(distances(columns_of(sides, cells)).T, table[:, :2], table[:, 2:],
                 values.argmax(0), as_scores(values.max(0), logits), index)


def columns_of(outputs: Sequence[Raw], index: Sequence[np.ndarray]) -> np.ndarray:
    """Some columns of outputs (rows, columns), output after output: (rows, n) float32."""
    return np.concatenate([output.columns(each).floats()
                           for output, each in zip(outputs, index)], 1)


@functools.lru_cache(maxsize=100)
def cell_table(heads: Tuple[Tuple[int, int, int], ...]) -> np.ndarray:
    """x and y of the centre of each cell, in strides, and its stride: (cells, 3) float32. heads:
    stride, rows and columns of each."""
    tables = []
    for stride, rows, columns in heads:
        row, column = np.divmod(np.arange(rows * columns), columns)
        tables.append(np.stack([column + 0.5, row + 0.5, np.full(len(row), stride)], 1))
    return np.concatenate(tables).astype(np.float32)


def distances(sides: np.ndarray) -> np.ndarray:
    """The distances (4, n) of cells to the sides of their boxes, in strides.

    sides: (4, n), the distances themselves, or (4 * bins, n), the logits of four distributions over
    0, 1, 2, ... strides, whose means are the distances (Generalized Focal Loss, Li et al. 2020).
    """
    if len(sides) == 4:
        return sides
    bins = len(sides) // 4
    weights = np.exp(np.minimum(sides, 80)).reshape(4, bins, -1)  # e^89 overflows
    return np.arange(bins, dtype=np.float32) @ weights / weights.sum(1)
