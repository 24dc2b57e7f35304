"""Divides a frame into overlapping tiles.

    tiling = parse("3x2")
    tiling.tiles(3840, 2160, 640)    # six boxes, row by row: [(0, 0, 1478, 1200), ...]
"""
from __future__ import annotations

import functools
import math
import re
from typing import List, NamedTuple, Tuple

from vision.errors import InputError
from vision.settings import Size, pair

Box = Tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the frame

# --------------------------------------------------------------------------------------------------
OVERLAP = 0.2        # of neighbours, as a fraction of a tile's side: an object up to this size lies
                     # entirely in at least one tile
AUTO_REDUCTION = 2   # auto: a tile is at most this many times as wide and high as the model's input
MAX_SIDE = 16        # columns, and rows, at most
# --------------------------------------------------------------------------------------------------


class Tiling(NamedTuple):
    """How frames are divided. columns, rows: 0 for automatic; motion: the model runs only on tiles
    in which something moves."""
    columns: int
    rows: int
    motion: bool = False

    def tiles(self, width: int, height: int, input_size: Size) -> List[Box]:
        """The tiles of a frame of this size, row by row. Their corners have even coordinates, or
        are on the frame's edges, as Frame.crop() needs them. Empty if there would be only one: the
        model runs on the whole frame anyway.

        width, height: of the frame, in pixels; input_size: of the model, for the automatic number
        of tiles.
        """
        columns, rows = self.columns, self.rows
        if not columns:  # automatic
            columns, rows = (min(MAX_SIDE, math.ceil(length / (AUTO_REDUCTION * of_input)))
                             for length, of_input in zip((width, height), pair(input_size)))
        if columns * rows == 1:
            return []
        return [(x1, y1, x2, y2) for y1, y2 in spans(height, rows)
                for x1, x2 in spans(width, columns)]


@functools.lru_cache(maxsize=64)
def spans(length: int, count: int) -> List[Tuple[int, int]]:
    """Start and end of `count` spans of equal size that overlap by OVERLAP and cover `length`
    pixels."""
    size = length / (count - (count - 1) * OVERLAP)
    starts = [round(number * size * (1 - OVERLAP)) // 2 * 2 for number in range(count)]
    ends = [min(length, math.ceil((start + size) / 2) * 2) for start in starts[:-1]]
    return list(zip(starts, [*ends, length]))


def parse(text: str) -> Tiling:
    """The value of --tiles: "3x2", "auto", "motion", or "motion:3x2". Raises InputError."""
    motion, _, grid = ("motion:auto" if text == "motion" else text).rpartition(":")
    columns = rows = 0
    sides = re.fullmatch(r"(\d{1,3})x(\d{1,3})", grid)
    if sides:
        columns, rows = int(sides[1]), int(sides[2])
    valid = grid == "auto" or (1 <= columns <= MAX_SIDE and 1 <= rows <= MAX_SIDE)
    if motion not in ("", "motion") or not valid:
        raise InputError(f"--tiles {text}: must be auto, motion, or columns x rows such as 3x2 "
                         f"(each from 1 to {MAX_SIDE}), or motion:3x2.")
    return Tiling(columns, rows, bool(motion))
