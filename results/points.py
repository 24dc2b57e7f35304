"""Checks the names and points of lines and zones, wherever they come from."""
from __future__ import annotations

import re
from typing import Any, Tuple

import numpy as np

from vision.errors import InputError

# --------------------------------------------------------------------------------------------------
MAX_NAME = 100          # characters, with the stream's name before a slash
MAX_POINTS = 500        # of a zone
MAX_COORDINATE = 1e5    # pixels
# --------------------------------------------------------------------------------------------------

Points = Tuple[Tuple[float, float], ...]


def short(value: Any) -> str:
    """A value as it is written in Python, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def checked_points(kind: str, key: Any, points: Any) -> np.ndarray:
    """The points of a line or zone, (n, 2) float64. Raises InputError if they are invalid.

    kind: "line" or "zone"; key: "door", or "gate/door" for the stream gate.
    """
    check_name(kind, key)
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    pairs = array.ndim == 2 and array.shape[1] == 2
    if not pairs or (len(array) != 2 if kind == "line" else len(array) < 3):
        count = "two points" if kind == "line" else "at least three points"
        raise InputError(f"The {kind} {key} needs {count}, each with x and y, not "
                         f"{short(points)}.")
    if len(array) > MAX_POINTS:
        raise InputError(f"The zone {key} has {len(array)} points; it may have {MAX_POINTS}.")
    if not np.isfinite(array).all():
        raise InputError(f"The {kind} {key} has a coordinate that is not a finite number: "
                         f"{short(points)}.")
    if np.abs(array).max() > MAX_COORDINATE:
        raise InputError(f"The {kind} {key} has a coordinate above {MAX_COORDINATE:.0f}: "
                         f"{short(points)}.")
    fractions = array[(array > 0) & (array < 1)]
    if len(fractions) and array.max() > 1:
        raise InputError(f"The {kind} {key} mixes fractions of the frame ({fractions[0]:g}) and "
                         f"pixels ({array.max():g}).")
    if kind == "line" and (array[0] == array[1]).all():
        raise InputError(f"The line {key} starts and ends at the same point.")
    if kind == "zone" and on_a_line(array):
        raise InputError(f"The zone {key} has no area: its points are on a straight line.")
    if kind == "zone" and crosses_itself(array):
        raise InputError(f"The zone {key} crosses itself: give its points in their order around "
                         "the area.")
    return array


def check_name(kind: str, key: Any, with_stream: bool = True) -> None:
    """Raise InputError if a line or zone cannot have this name. with_stream: it may be preceded by
    the stream's name and a slash."""
    example = "door" if kind == "line" else "yard"
    if isinstance(key, str) and len(key) > MAX_NAME:
        raise InputError(f"The {kind} {short(key)}: its name has {len(key)} characters; it may "
                         f"have {MAX_NAME}.")
    before = "(.+/)?" if with_stream else ""
    if not isinstance(key, str) or not re.fullmatch(rf"{before}[\w.() -]*\w[\w.() -]*", key):
        more = f", or gate/{example} for the stream gate only" if with_stream else ""
        raise InputError(f"The {kind} {short(key)}: its name must consist of letters, digits, "
                         f"spaces and . _ - ( ), for example {example}{more}.")


def on_a_line(points: np.ndarray) -> bool:
    """Whether all points, (n, 2), are on a straight line."""
    x, y = (points[1:] - points[0]).T
    # The cross products of all pairs of directions from the first point are 0.
    return bool((x[:, None] * y == y[:, None] * x).all())


def crosses_itself(polygon: np.ndarray) -> bool:
    """Whether two edges of a polygon, (n, 2), cross. Edges that only touch do not count."""
    start, end = polygon, np.roll(polygon, -1, 0)  # of each edge
    along, to = (end - start)[:, None], start[None] - start[:, None]
    # side[i, j]: on which side of edge i point j is
    side = np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
    apart = side * np.roll(side, -1, 1) < 0  # the ends of edge j are on both sides of edge i
    return bool((apart & apart.T).any())
