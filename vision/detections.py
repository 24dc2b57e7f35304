"""Detections: what a model finds in one frame."""
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np

from vision.errors import ModelError
from vision.settings import Names

Mask = Tuple[int, int, np.ndarray]    # x and y of its upper left corner in the frame, (h, w) uint8


@dataclass(eq=False)
class Detections:
    """What a model finds in one frame: arrays of equal length, best first.

        found = Detections([[10, 20, 50, 80]], classes=[1], scores=[0.9], names=("cat", "dog"))
        boxes, classes, scores = found
        dogs = found.select(found.classes == 1)
        print(found.name(1), len(dogs))     # dog 1

    Lists, and arrays of other numeric types, are converted. Raises ModelError if a field cannot be
    converted, has a wrong shape, or differs in length from the others.
    """
    boxes: Optional[np.ndarray]                # (n, 4) float32 xyxy, pixels of the frame; a
                                               # classifier has None
    classes: np.ndarray                        # (n,) int64
    scores: np.ndarray                         # (n,) float32, 0..1; with a class_map, each
                                               # class's share of the frame
    names: Names = ()                          # class names by number
    ids: Optional[np.ndarray] = None           # (n,) int64, from a tracker; -1: no id yet
    masks: Optional[List[Mask]] = None         # n masks of 0 and 1
    keypoints: Optional[np.ndarray] = None     # (n, k, 3) float32: x, y, score
    corners: Optional[np.ndarray] = None       # (n, 4, 2) float32, of rotated boxes
    attributes: Optional[List[Dict[str, Tuple[str, float]]]] = None
                                               # n dicts, of second models: {"plates": (what it
                                               # says of the object, its confidence)}
    class_map: Optional[np.ndarray] = None     # (rows, columns) uint8: the class of each cell of a
                                               # grid that covers the frame

    def __post_init__(self) -> None:
        self.classes = _converted("classes", self.classes, np.int64, ())
        self.scores = _converted("scores", self.scores, np.float32, ())
        if self.boxes is not None:
            self.boxes = _converted("boxes", self.boxes, np.float32, (4,))
        if self.ids is not None:
            self.ids = _converted("ids", self.ids, np.int64, ())
        if self.keypoints is not None:
            self.keypoints = _converted("keypoints", self.keypoints, np.float32, (None, 3))
        if self.corners is not None:
            self.corners = _converted("corners", self.corners, np.float32, (4, 2))
        for name in ("boxes", "scores", "ids", "masks", "keypoints", "corners",
                     "attributes"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.classes):
                raise ModelError(f"Detections: {len(values)} {name}, but {len(self.classes)} "
                                 "classes; all fields must have the same length")

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.boxes, self.classes, self.scores))

    def name(self, number: int) -> str:
        """The name of a class, or its number as text if it has no name."""
        if isinstance(self.names, dict):
            return self.names.get(number, str(number))
        return self.names[number] if 0 <= number < len(self.names) else str(number)

    def select(self, index: Any) -> Detections:
        """The detections at an array of indices, or where an array (n,) of bool is True."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        selected = {}
        for field in fields(self):
            values = getattr(self, field.name)
            if isinstance(values, np.ndarray) and field.name != "class_map":
                selected[field.name] = values[index]
            elif field.name in ("masks", "attributes") and values is not None:
                selected[field.name] = [values[number] for number in index]
        return replace(self, **selected)

    def inside_frame(self) -> Detections:
        """The detections whose box is not empty. A box on letterbox()'s grey bars is empty after
        unletterbox() has clipped it to the frame."""
        assert self.boxes is not None
        inside = (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)
        return self if inside.all() else self.select(inside)


def attributes_as_json(attributes: Dict[str, Tuple[str, float]]) -> Dict[str, List[Any]]:
    """What second models say of one object, as --json and MQTT write it: {"plates": ["B 1", 0.9]}.
    """
    return {key: [text, round(score, 4)] for key, (text, score) in attributes.items()}


def _converted(name: str, values: Any, dtype: type, row: tuple) -> np.ndarray:
    """`values` as an array (n, *row), None in `row` for any length. Raises ModelError if it is
    not one."""
    if isinstance(values, np.ndarray) and values.dtype == dtype and values.ndim == 1 + len(row):
        array = values
    else:
        try:
            array = np.asarray(values)
        except ValueError:  # lists of unequal length
            array = np.empty(0, object)
        if array.dtype.kind not in "biuf":
            given = " ".join(repr(values).split())[:60]
            raise ModelError(f"Detections: {name} must be numbers, not {given}")
        if array.size == 0 and None not in row:
            array = array.reshape(0, *row)
    if array.ndim != 1 + len(row) or any(
            length not in (None, found) for length, found in zip(row, array.shape[1:])):
        shape = ", ".join(["n", *("k" if length is None else str(length) for length in row)])
        raise ModelError(f"Detections: {name} must have the shape ({shape}{',' * (not row)}), "
                         f"not {array.shape}")
    if dtype is np.int64 and array.dtype.kind == "f" and not (array == np.rint(array)).all():
        raise ModelError(f"Detections: {name} must be whole numbers, not {array.tolist()[:5]}")
    return array.astype(dtype, copy=False)
