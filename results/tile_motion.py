"""Chooses the tiles of a stream's frames that the model has to see again (--tiles motion).

A tile runs if

- something in it looks different from the last time that it ran,
- a tracked object moves there, or was just lost there (with --track), or
- it is its turn: in every TURN-th frame, the tile that has not run for the longest time.

The others keep what was found in them. A tile is compared with the last time that it ran, not with
the frame before, so that slow movement adds up until it is noticed.
"""
from __future__ import annotations

import math
from typing import Any, List, Sequence, Tuple

import cv2
import numpy as np

from results.tile_grid import Box
from vision.frame import Frame, Picture, Undecodable
from vision.letterbox import as_bgr

NO_BOXES = np.empty((0, 4))

# --------------------------------------------------------------------------------------------------
CELLS = 240          # in a row of the frame; they are compared by their mean brightness
CHANGE = 10          # 0..255: a cell that changes by more than this looks different
CHANGED_CELLS = 2    # a tile with at least this many of them looks different
SPEED = 0.1          # box sides per second: a faster tracked object counts as moving
TURN = 3             # frames
# --------------------------------------------------------------------------------------------------


def cells_of(frame: Picture) -> np.ndarray | None:
    """The mean brightness of the frame's cells: (rows, CELLS) int16; None if it cannot be decoded.

    frame: a Frame, or (h, w, 3) uint8 BGR, or what as_bgr() converts.
    """
    height, width = frame.shape[:2]
    rows = max(1, round(CELLS * height / width))
    if isinstance(frame, Frame):
        small = np.empty((4 * rows, 4 * CELLS, 3), np.uint8)
        try:
            frame.scale_into(small)
        except Undecodable:
            return None
    else:
        small = as_bgr(cv2.resize(frame, (4 * CELLS, 4 * rows)), to_draw=False)
    grey = cv2.resize(small, (CELLS, rows), interpolation=cv2.INTER_AREA)
    return grey.astype(np.int16).sum(2) // 3


class Motion:
    """The tiles of one stream."""

    def __init__(self) -> None:
        self.tiles: Sequence[Box] = ()
        self.seen: List[Any] = []       # the cells of each tile when it last ran; None: it must run
        self.rested: List[int] = []     # for how many frames each has not run
        self.turn = 0                   # counts frames, from 0 to TURN - 1

    def choose(self, cells: np.ndarray | None, tiles: Sequence[Box], size: Tuple[int, int],
               tracked: np.ndarray) -> List[int]:
        """The numbers of the tiles to run in the next frame.

        cells: what cells_of() returned; if None, all tiles run, and again in the frame after it.
        tiles: of the frame, in pixels; size: (width, height) of the frame; tracked: boxes (n, 4)
        xyxy of tracked objects that move or were lost.
        """
        if cells is None:
            self.forget(range(len(self.seen)))
            return list(range(len(tiles)))
        if tiles != self.tiles:
            self.tiles, self.seen, self.rested = tiles, [None] * len(tiles), [0] * len(tiles)
        now = [part_of(cells, tile, size) for tile in tiles]
        chosen = {number for number, tile in enumerate(tiles)
                  if changed(self.seen[number], now[number]) or any_inside(tracked, tile)}
        resting = set(range(len(tiles))) - chosen
        self.turn = (self.turn + 1) % TURN
        if resting and self.turn == 0:
            chosen.add(max(resting, key=lambda number: self.rested[number]))
        self.rested = [frames + 1 for frames in self.rested]
        for number in chosen:
            self.seen[number], self.rested[number] = now[number], 0
        return sorted(chosen)

    def forget(self, numbers: Sequence[int]) -> None:
        """Run these tiles in the next frame: what was found in them is lost."""
        for number in numbers:
            self.seen[number] = None


def part_of(cells: np.ndarray, tile: Box, size: Tuple[int, int]) -> np.ndarray:
    """The cells that a tile touches. size: (width, height) of the frame."""
    (rows, columns), (width, height) = cells.shape, size
    x1, y1, x2, y2 = tile
    return cells[y1 * rows // height:math.ceil(y2 * rows / height),
                 x1 * columns // width:math.ceil(x2 * columns / width)]


def changed(before: np.ndarray | None, now: np.ndarray) -> bool:
    """Whether the cells of a tile look different. before: None if the tile has to run."""
    if before is None:
        return True
    return bool(np.count_nonzero(np.abs(now - before) > CHANGE) >= CHANGED_CELLS)


def any_inside(boxes: np.ndarray, tile: Box) -> bool:
    """Whether any of the boxes, (n, 4) xyxy, lies at least partly in a tile."""
    x1, y1, x2, y2 = tile
    return bool(((boxes[:, 0] < x2) & (boxes[:, 2] > x1)
                 & (boxes[:, 1] < y2) & (boxes[:, 3] > y1)).any())
