"""Draws lines, zones and their counts on a picture."""
from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Sequence, Tuple

import cv2
import numpy as np

from vision.labels import text_label

Colour = Tuple[int, int, int]
LINE_COLOUR: Colour = (80, 220, 255)  # BGR
ZONE_COLOUR: Colour = (255, 200, 80)


def overlay(lines: Dict[str, np.ndarray], zones: Dict[str, np.ndarray], line_counts: Any,
            zone_counts: Any) -> Callable[[np.ndarray], None]:
    """Return a function that draws on a picture, (h, w, 3) uint8 BGR, in place.

    lines: {name: (2, 2) points in pixels}; zones: {name: (n, 2) points in pixels}; line_counts and
    zone_counts: as results.lines.Lines counts.
    """
    def draw(picture: np.ndarray) -> None:
        for number, (name, points) in enumerate(zones.items(), 1):
            cv2.polylines(picture, [points.round().astype(np.int32)], True, ZONE_COLOUR, 2)
            write(picture, points.mean(0), [f"{name} {summary(zone_counts[name])}"], ZONE_COLOUR,
                  f"zone {number}")
        for number, (name, (first, second)) in enumerate(lines.items(), 1):
            draw_line(picture, first, second)
            directions = [f"{way} {summary(line_counts[name][way])}" for way in ("in", "out")]
            write(picture, second, [name, *directions], LINE_COLOUR, f"line {number}")
    return draw


def draw_line(picture: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Draw a line, and an arrow from its middle in the direction "in"."""
    middle, along = (first + second) / 2, second - first
    length = np.hypot(*along)
    # "in" is to the right of the direction from the first point to the second.
    to_the_right = np.array([-along[1], along[0]]) / length
    tip = middle + to_the_right * min(40, max(12, length / 4))
    start, end, middle_pixel, tip_pixel = (
        (int(x), int(y)) for x, y in np.stack([first, second, middle, tip]).round())
    cv2.line(picture, start, end, LINE_COLOUR, 2)
    cv2.arrowedLine(picture, middle_pixel, tip_pixel, LINE_COLOUR, 2, tipLength=0.35)


def summary(counts: Dict[str, int]) -> str:
    """Return the total and the classes, most frequent first: "4: person 3, car 1"."""
    total = sum(counts.values())
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{total}: {', '.join(f'{name} {count}' for name, count in by_count)}" if total else "0"


def write(picture: np.ndarray, position: Sequence[float], rows: List[str], colour: Colour,
          instead: str) -> None:
    """Write rows of text on a dark background, at the position (x, y) or as near as they fit.

    instead: what replaces a name that cannot be drawn.
    """
    h, w = picture.shape[:2]
    texts = [row_picture(row, max(0.35, min(h, w) / 1200), colour, instead) for row in rows]
    row_height = max(map(len, texts)) + 2
    width, height = max(text.shape[1] for text in texts) + 8, row_height * len(rows) + 4
    x, y = int(max(0, min(position[0], w - width))), int(max(0, min(position[1], h - height)))
    background = picture[y:y + height, x:x + width]
    background //= 3
    for number, text in enumerate(texts):
        region = background[row_height * number + 2:, 4:][:text.shape[0], :text.shape[1]]
        np.maximum(region, text[:region.shape[0], :region.shape[1]], out=region)


@functools.lru_cache(maxsize=500)
def row_picture(text: str, scale: float, colour: Colour, instead: str) -> np.ndarray:
    """A row of text on black."""
    return text_label(text, scale, (0, 0, 0), colour, instead)
