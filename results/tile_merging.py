"""Merges what a model found in the overlapping tiles of a frame, and in the whole frame.

    found = merged([in_first_tile, in_second_tile, in_frame], [first, second, frame], (3840, 2160))

The whole frame counts as a tile, too. A box that touches an edge of its tile inside the frame is a
part: the object may continue beyond the edge. All other boxes are whole. Boxes of the same tile are
never compared: the func file's NMS has done that. With

    overlap = area of the intersection / area of the smaller box

these rules apply in this order:

- A box that was found in the whole frame, and is so small that it lies entirely in a tile, is left
  to the tiles: there the model sees it larger.
- Whole boxes of one class are the same object if their IoU is at least SAME_IOU, or if their
  overlap is at least SAME_OVERLAP and the larger one has at most SAME_AREAS times the area. The one
  with the higher score stays.
- A part is dropped if its overlap with a whole box of its class is at least PART_OVERLAP, or if a
  whole box of another class with a higher score covers COVERED of it: half a bus may look like a
  truck.
- Parts of one class whose overlap is at least PART_OVERLAP are joined to one object: the box around
  all of them, with the highest score.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from results.tile_grid import OVERLAP, Box
from vision.detections import Detections, Mask
from vision.errors import InputError

# --------------------------------------------------------------------------------------------------
SAME_IOU = 0.45
SAME_OVERLAP = 0.5
SAME_AREAS = 4.0
PART_OVERLAP = 0.5
COVERED = 0.7
EDGE = 0.01          # of a tile's longer side: a box this near to the tile's edge touches it
# --------------------------------------------------------------------------------------------------


def merged(found: Sequence[Detections], tiles: Sequence[Box], size: Tuple[int, int]) -> Detections:
    """The objects of a frame, in pixels of the frame, best first.

    found: the detections in each of the tiles, in pixels of the tile; the last tile is the whole
    frame. size: (width, height) of the frame. Masks and key points are merged, too. Raises
    InputError for detections without boxes and for rotated boxes.
    """
    if len(tiles) == 1:
        return found[0]
    every = joined_arrays([in_frame(each, tile) for each, tile in zip(found, tiles)])
    tile_of = np.repeat(np.arange(len(tiles)), [len(each) for each in found])
    is_part = np.concatenate([touches_edge(each, tile, size) for each, tile in zip(found, tiles)])
    kept = np.flatnonzero(~left_to_tiles(every.boxes, tile_of, tiles))
    every, tile_of, is_part = every.select(kept), tile_of[kept], is_part[kept]
    order = np.lexsort((-every.scores, is_part))  # whole boxes first, the best first
    every, tile_of, is_part = every.select(order), tile_of[order], is_part[order]

    drops = drop_table(every, tile_of, is_part)
    stays = np.ones(len(every), bool)
    for number in np.flatnonzero(~is_part):  # best first
        if stays[number]:
            stays &= ~drops[number]
    whole = every.select(stays & ~is_part)
    parts = join(every.select(stays & is_part), tile_of[stays & is_part])
    every = joined_arrays([whole, parts])
    return every.select(np.argsort(-every.scores, kind="stable"))


def drop_table(found: Detections, tile_of: np.ndarray, is_part: np.ndarray) -> np.ndarray:
    """Which boxes are dropped because of which: (n, n) bool; [i, j] is True if box i, if it is
    whole, drops box j. tile_of: the tile of each box, (n,); is_part: whether it is a part, (n,)."""
    shared, areas = intersections(found.boxes)
    smaller, larger = np.minimum(areas, areas[:, None]), np.maximum(areas, areas[:, None])
    overlap = shared / np.maximum(smaller, 1e-9)
    other_tile = tile_of != tile_of[:, None]
    same_class = other_tile & (found.classes == found.classes[:, None])
    union = areas + areas[:, None] - shared
    same_object = (shared >= SAME_IOU * union) | (
        (overlap >= SAME_OVERLAP) & (larger <= SAME_AREAS * smaller))
    covers = (shared >= COVERED * areas) & (found.scores[:, None] >= found.scores)
    drops_part = same_class & (overlap >= PART_OVERLAP) | other_tile & covers
    return np.where(is_part, drops_part, same_class & same_object)


def in_frame(found: Detections, tile: Box) -> Detections:
    """Detections in a tile, in pixels of the frame."""
    if found.corners is not None:
        raise InputError("--tiles cannot merge rotated boxes: use it with a model that finds "
                         "upright boxes.")
    if found.boxes is None:
        raise InputError("--tiles needs boxes, but detect() of the func file returns Detections "
                         "without boxes.")
    x, y = tile[:2]
    masks, keypoints = found.masks, found.keypoints
    if masks is not None:
        masks = [(left + x, top + y, mask) for left, top, mask in masks]
    if keypoints is not None:
        keypoints = keypoints + np.array([x, y, 0], np.float32)
    return replace(found, boxes=found.boxes + np.array([x, y, x, y], np.float32), masks=masks,
                   keypoints=keypoints)


def joined_arrays(found: Sequence[Detections]) -> Detections:
    """Several Detections as one. A field that one of them lacks is left out."""

    def together(name: str) -> Any:
        values = [getattr(each, name) for each in found]
        if any(each is None for each in values):
            return None
        if name == "masks":
            return [mask for masks in values for mask in masks]
        return np.concatenate(values)

    return Detections(together("boxes"), together("classes"), together("scores"), found[-1].names,
                      masks=together("masks"), keypoints=together("keypoints"))


def touches_edge(found: Detections, tile: Box, size: Tuple[int, int]) -> np.ndarray:
    """Whether boxes, in pixels of a tile, touch an edge of it inside the frame: (n,) bool."""
    width, height = tile[2] - tile[0], tile[3] - tile[1]
    inner = np.array([tile[0] > 0, tile[1] > 0, tile[2] < size[0], tile[3] < size[1]])
    boxes = np.asarray(found.boxes)
    gaps = np.concatenate([boxes[:, :2], np.array([width, height]) - boxes[:, 2:]], 1)
    return ((gaps <= EDGE * max(width, height)) & inner).any(1)


def left_to_tiles(boxes: Any, tile_of: np.ndarray, tiles: Sequence[Box]) -> np.ndarray:
    """Whether boxes were found in the whole frame, the last tile, and are small enough to lie
    entirely in one of the others: (n,) bool."""
    x1, y1, x2, y2 = tiles[0]
    sides = boxes[:, 2:] - boxes[:, :2]
    fits = (sides <= OVERLAP * np.array([x2 - x1, y2 - y1])).all(1)
    return fits & (tile_of == len(tiles) - 1)


def intersections(boxes: Any) -> Tuple[np.ndarray, np.ndarray]:
    """The areas that boxes (n, 4) share with each other, (n, n), and their own areas, (n,)."""
    x1, y1, x2, y2 = boxes.T.copy()
    across = np.minimum(x2, x2[:, None]) - np.maximum(x1, x1[:, None])
    down = np.minimum(y2, y2[:, None]) - np.maximum(y1, y1[:, None])
    return across.clip(0) * down.clip(0), (x2 - x1) * (y2 - y1)


def join(parts: Detections, tile_of: np.ndarray) -> Detections:
    """Join the parts of each object. parts: best first; tile_of: the tile of each, (n,)."""
    boxes: Any = parts.boxes
    free, firsts = np.ones(len(parts), bool), []
    for first in range(len(parts)):
        if not free[first]:
            continue
        firsts.append(first)
        members = [first]  # of one object
        free[first] = False
        other = another_part(parts, tile_of, free, members)
        while other is not None:  # the box has grown: look again
            members.append(other)
            free[other] = False
            boxes[first] = [*np.minimum(boxes[first, :2], boxes[other, :2]),
                            *np.maximum(boxes[first, 2:], boxes[other, 2:])]
            join_details(parts, first, other)
            other = another_part(parts, tile_of, free, members)
    return parts.select(np.array(firsts, np.int64))


def another_part(parts: Detections, tile_of: np.ndarray, free: np.ndarray, members: List[int]
                 ) -> Optional[int]:
    """The best part that also belongs to the object of the parts `members`; None if there is none.
    The first of these has the box around all of them. free: whether a part belongs to no object
    yet, (n,) bool."""
    first, candidates = members[0], np.flatnonzero(free)
    boxes: Any = parts.boxes
    shared, areas = intersections(boxes[[first, *candidates]])
    near = shared[0, 1:] >= PART_OVERLAP * np.minimum(areas[0], areas[1:])
    near &= parts.classes[candidates] == parts.classes[first]
    near &= ~np.isin(tile_of[candidates], tile_of[members])
    return int(candidates[near.argmax()]) if near.any() else None


def join_details(parts: Detections, first: int, other: int) -> None:
    """Add the mask and the key points of a part to those of another."""
    if parts.masks is not None:
        parts.masks[first] = joined_mask([parts.masks[first], parts.masks[other]])
    if parts.keypoints is not None:
        better = parts.keypoints[other, :, 2] > parts.keypoints[first, :, 2]
        parts.keypoints[first, better] = parts.keypoints[other, better]


def joined_mask(masks: List[Mask]) -> Mask:
    """The mask of the pixels of several masks."""
    left, top = min(x for x, _, _ in masks), min(y for _, y, _ in masks)
    right = max(x + mask.shape[1] for x, _, mask in masks)
    bottom = max(y + mask.shape[0] for _, y, mask in masks)
    every = np.zeros((bottom - top, right - left), np.uint8)
    for x, y, mask in masks:
        every[y - top:y - top + mask.shape[0], x - left:x - left + mask.shape[1]] |= mask
    return left, top, every
