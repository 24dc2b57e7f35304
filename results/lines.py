"""Counts objects that cross lines and objects inside zones, by class.

    lines = Lines({"door": ((100, 400), (500, 400))},
                  {"yard": [(0, 0.5), (1, 0.5), (1, 1), (0, 1)]})    # one for each stream
    lines.update(result)     # sets these fields and adds a drawing to result.overlay:
    result.lines             # {"door": {"in": {"person": 3}, "out": {"car": 1}}}, since the start
    result.zones             # {"yard": {"person": 2}}, in this frame
    result.inside            # {"yard": [12, 17]}, the identities of these objects
    result.crossings         # [{"line": "door", "direction": "in", "id": 17, "class": "person",
                             #   "since": 112}], confirmed in this frame

The identities come from results/tracking.py. An object without an identity (-1) is not counted.

Points are pixels of the frame. If no coordinate of a line or zone is greater than 1, they are
fractions of the frame's width and height. An object's position is the middle of the lower edge
of its box.

The direction "in" is from the left of the line to its right, looking from its first point to its
second: with y pointing down, (x2 - x1)(y - y1) - (y2 - y1)(x - x1) changes from negative to
positive. A crossing is confirmed when an object was seen on the other side of the line in
CONFIRM_FRAMES consecutive frames. Its path must cross the line between the line's ends; the
length of the step does not matter.

Jitter on the line counts once: after a crossing, an object that returns is only counted when it
is CLEAR_HEIGHTS away from the line, or stays on that side for SETTLE_SECONDS.
"""
from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from results.line_drawing import overlay
from results.points import Points, checked_points
from vision.errors import InputError

# --------------------------------------------------------------------------------------------------
CONFIRM_FRAMES = 3      # consecutive frames on the other side that confirm a crossing
CLEAR_HEIGHTS = 0.15    # distance from the line, in box heights, beyond which jitter is excluded
NEAR_HEIGHTS = 0.03     # a new object nearer than this needs CONFIRM_FRAMES on one side
SETTLE_SECONDS = 1.0    # time on one side after which an object is not jittering
MAX_IDENTITIES = 10000  # known at a time; the one not seen for the longest time is forgotten first
# --------------------------------------------------------------------------------------------------


def _parse(flag: str, text: str) -> Tuple[str, Points]:
    """The key and the points of one --line or --zone. Raises InputError."""
    key, colon, numbers = text.rpartition(":")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if flag == "--line":
        valid, example = len(values) == 4, "door:100,400,500,400"
        points_text = "four numbers, x and y of two points"
    else:
        valid, example = len(values) >= 6 and len(values) % 2 == 0, "yard:0,0.5,1,0.5,1,1,0,1"
        points_text = "x and y of at least three points"
    if not colon or not valid:
        raise InputError(f"{flag} {text}: must be a name, a colon and {points_text}, for example "
                         f"{flag} {example}.")
    points = tuple(zip(values[::2], values[1::2]))
    checked_points(flag[2:], key, points)
    return key, points


def parse(lines: Iterable[str], zones: Iterable[str]) -> Tuple[dict, dict]:
    """Parse all `--line` and `--zone` of a command line.

    lines: "door:x1,y1,x2,y2", or "gate/door:x1,y1,x2,y2" for the stream gate; zones:
    "yard:x,y,x,y,x,y,...", at least three points, or "gate/yard:...".
    Returns two dicts {"door" or "gate/door": points}. Raises InputError, also if a name is given
    twice.
    """
    parsed: Tuple[dict, dict] = ({}, {})
    for flag, texts, points_of in zip(("--line", "--zone"), (lines, zones), parsed):
        for text in texts:
            key, points = _parse(flag, text)
            if key in points_of:
                raise InputError(f"{flag} {text}: the name {key} is used twice.")
            points_of[key] = points
    return parsed


def for_streams(streams: Sequence[str], lines: dict, zones: dict) -> Dict[str, Optional[Lines]]:
    """Create a Lines for each stream's name, or None for a stream without lines and zones.

    lines, zones: {"door": points} for every stream; {"gate/door": points} for the stream "gate"
    only, where it replaces "door". Raises InputError for invalid points and unknown streams.
    """
    for kind, settings in (("line", lines), ("zone", zones)):
        if not isinstance(settings, dict):
            example = ('lines = {"door": ((100, 400), (500, 400))}' if kind == "line" else
                       'zones = {"yard": ((100, 400), (500, 400), (300, 500))}')
            raise InputError(f"{kind}s = {settings!r}: must map names to points, for example "
                             f"{example}.")
        for key, points in settings.items():
            checked_points(kind, key, points)
            stream, slash, _ = key.rpartition("/")
            if slash and stream not in streams:
                raise InputError(f"The {kind} {key}: there is no stream {stream}. The streams are: "
                                 f"{', '.join(streams)}.")
    created: Dict[str, Optional[Lines]] = {}
    for stream in streams:
        line_points, zone_points = _of_stream(stream, lines), _of_stream(stream, zones)
        has_any = line_points or zone_points
        created[stream] = Lines(line_points, zone_points) if has_any else None
    return created


def _of_stream(stream: str, settings: dict) -> dict:
    """Select the lines or zones of one stream; its own replace those of the same name."""
    common = {key: points for key, points in settings.items() if "/" not in key}
    own = {key.rpartition("/")[2]: points for key, points in settings.items()
           if "/" in key and key.rpartition("/")[0] == stream}
    return {**common, **own}


class _Side:
    """On which side of one line one object is, and its crossing that is not confirmed yet."""

    __slots__ = ("side", "distance", "x", "y", "side_time", "jitter", "frames", "first_frame",
                 "first_time", "between_ends")

    def __init__(self) -> None:
        self.side = 0             # confirmed: -1 left, 1 right, 0 unknown
        self.distance = 0.0       # signed, from the line, in the last frame; negative on the left
        self.x = self.y = 0.0     # position in the last frame
        self.side_time = 0.0      # since when the object is on this side
        self.jitter = False       # it has crossed, and its distance is still that of jitter
        self.frames = 0           # consecutive frames on the other side
        self.first_frame = 0      # number and time of the first of these frames
        self.first_time = 0.0
        self.between_ends = False  # whether it came to the other side between the line's ends


class Lines:
    """The lines and zones of one stream, and their counts.

    lines: {"door": ((x1, y1), (x2, y2))}; zones: {"yard": [(x, y), (x, y), (x, y), ...]}.
    Raises InputError for invalid points.
    """

    def __init__(self, lines: Optional[dict] = None, zones: Optional[dict] = None) -> None:
        self.lines: Dict[str, np.ndarray] = {}
        self.zones: Dict[str, np.ndarray] = {}
        self.size: Optional[Tuple[int, int]] = None      # the frame's width and height
        self.line_pixels: Dict[str, np.ndarray] = {}     # lines and zones in pixels of such a frame
        self.zone_pixels: Dict[str, np.ndarray] = {}
        self.counts: Dict[str, Dict[str, Dict[str, int]]] = {}
        self.present: Dict[str, Dict[str, int]] = {}
        self.inside: Dict[str, List[int]] = {}
        # identity: (how often it had each class number, {line: _Side})
        self.known: OrderedDict[int, Tuple[Dict[int, int], Dict[str, _Side]]] = OrderedDict()
        self.change(lines or {}, zones or {})

    def change(self, lines: dict, zones: dict) -> None:
        """Replace the lines and zones, between two frames. A line with the same name and points
        as before keeps its counts, the others start at 0. Raises InputError for invalid points."""
        new = {name: checked_points("line", name, points) for name, points in lines.items()}
        self.zones = {name: checked_points("zone", name, points) for name, points in zones.items()}
        same = {name for name, points in new.items()
                if name in self.lines and np.array_equal(points, self.lines[name])}
        # New dicts: earlier results, and their drawings, keep the old ones.
        self.lines = new
        self.counts = {name: self.counts[name] if name in same else {"in": {}, "out": {}}
                       for name in new}
        self.present = {name: {} for name in zones}
        self.inside = {name: [] for name in zones}
        for _, sides in self.known.values():
            for name in sides.keys() - same:
                del sides[name]
        if self.size:
            self._set_pixels(self.size)

    def set_counts(self, counts: Dict[str, Dict[str, Dict[str, int]]]) -> None:
        """Continue from these counts: those of an earlier run for some or all of the lines."""
        self.counts = {name: counts.get(name, old) for name, old in self.counts.items()}

    def reset(self) -> None:
        """Set the counts of all lines to 0."""
        self.counts = {name: {"in": {}, "out": {}} for name in self.lines}

    def update(self, result: Any) -> None:
        """Count the objects of the next frame.

        result: a Result, or any object with `detections` (with `boxes` (n, 4) xyxy in pixels,
        `classes`, `ids` and `name(number)`), `size` (width, height), `number`, `time` and
        `overlay`. Sets `crossings`, `lines`, `zones` and `inside`, and appends to `overlay` a
        function that draws on a picture, (h, w, 3) uint8 BGR. Without identities lines count
        nothing, and zones count every detection. A failed frame changes no count.
        """
        result.crossings = []
        detections = result.detections
        if detections is not None:
            if tuple(result.size) != self.size:  # a camera may reconnect with another size
                self._set_size(tuple(result.size))
            self.present = {name: {} for name in self.zones}
            self.inside = {name: [] for name in self.zones}
            if detections.boxes is not None and len(detections.boxes):
                self._count(result, detections)
        # The dicts of a result do not change later: a sink may write them in another thread.
        result.lines, result.zones, result.inside = self.counts, self.present, self.inside
        result.overlay.append(overlay(self.line_pixels, self.zone_pixels, self.counts,
                                      self.present))

    def _set_size(self, size: Tuple[int, int]) -> None:
        self._set_pixels(size)
        for _, sides in self.known.values():
            sides.clear()

    def _set_pixels(self, size: Tuple[int, int]) -> None:
        self.size = size
        self.line_pixels, self.zone_pixels = (
            {name: points * (size if points.max() <= 1 else 1) for name, points in shapes.items()}
            for shapes in (self.lines, self.zones))

    def _count(self, result: Any, detections: Any) -> None:
        boxes = np.asarray(detections.boxes, np.float64)
        feet = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]], 1)  # (n, 2)
        classes = np.asarray(detections.classes).tolist()
        ids = None if detections.ids is None else np.asarray(detections.ids).tolist()
        name = getattr(detections, "name", str)
        self._count_zones(feet, [name(number) for number in classes], ids)
        if ids is None or not self.lines:
            return
        heights = (boxes[:, 3] - boxes[:, 1]).tolist()
        distances = {}  # {line: signed distances of all objects}
        for line, ((x1, y1), (x2, y2)) in self.line_pixels.items():
            across = (x2 - x1) * (feet[:, 1] - y1) - (y2 - y1) * (feet[:, 0] - x1)
            distances[line] = (across / math.hypot(x2 - x1, y2 - y1)).tolist()
        for row, (identity, (x, y)) in enumerate(zip(ids, feet.tolist())):
            if identity < 0:
                continue
            classes_seen, sides = self._known(identity)
            classes_seen[classes[row]] = classes_seen.get(classes[row], 0) + 1
            for line in self.lines:
                state = sides.setdefault(line, _Side())
                since = self._step(state, line, x, y, distances[line][row], heights[row],
                                   result.number, result.time)
                if since is not None:
                    # A detector may alternate between car and truck: the most frequent class.
                    what = name(max(classes_seen, key=lambda number: classes_seen[number]))
                    direction = "in" if state.side > 0 else "out"
                    result.crossings.append({"line": line, "direction": direction, "id": identity,
                                             "class": what, "since": since})
                    self._add(line, direction, what)

    def _count_zones(self, feet: np.ndarray, names: List[str], ids: Optional[List[int]]) -> None:
        # The lower edge of a box may lie on the frame's edge, one pixel beyond its last pixel.
        positions = np.minimum(feet, np.subtract(self.size or (0, 0), 1)).tolist()
        for zone, points in self.zone_pixels.items():
            polygon, present = points.astype(np.float32), self.present[zone]
            for row, (x, y) in enumerate(positions):
                counted = ids is None or ids[row] >= 0
                if counted and cv2.pointPolygonTest(polygon, (x, y), False) >= 0:
                    present[names[row]] = present.get(names[row], 0) + 1
                    if ids is not None:
                        self.inside[zone].append(ids[row])

    def _known(self, identity: int) -> Tuple[Dict[int, int], Dict[str, _Side]]:
        """Return what is known of an identity, and mark it as seen."""
        if identity not in self.known:
            self.known[identity] = {}, {}
            if len(self.known) > MAX_IDENTITIES:
                self.known.popitem(last=False)
        self.known.move_to_end(identity)
        return self.known[identity]

    def _step(self, state: _Side, line: str, x: float, y: float, distance: float, height: float,
              number: int, time: float) -> Optional[int]:
        """Update an object's side of a line from its position (x, y) and signed distance.

        Returns the number of the first frame on the new side if this frame confirms a crossing,
        else None.
        """
        side = (distance > 0) - (distance < 0)
        clear = abs(distance) >= CLEAR_HEIGHTS * height
        since = None
        if state.side == 0:
            # Near the line, jitter hides on which side an object appeared.
            same = side and side == np.sign(state.distance)
            state.frames = state.frames + 1 if same else abs(side)
            if abs(distance) >= NEAR_HEIGHTS * height or state.frames >= CONFIRM_FRAMES:
                state.side, state.frames, state.side_time = side, 0, time
        elif side == state.side:
            if state.frames:  # back from the other side, without a confirmed crossing
                state.frames, state.side_time = 0, time
            if clear or time - state.side_time >= SETTLE_SECONDS:
                state.jitter = False
        elif side:
            if not state.frames:
                state.first_frame, state.first_time = number, time
                state.between_ends = self._between_ends(line, state, x, y, distance)
            state.frames += 1
            settled = clear or time - state.first_time >= SETTLE_SECONDS
            if state.frames >= CONFIRM_FRAMES and (settled or not state.jitter):
                since = state.first_frame if state.between_ends else None
                state.side, state.frames, state.side_time = side, 0, state.first_time
                state.jitter = not settled
        state.x, state.y, state.distance = x, y, distance
        return since

    def _between_ends(self, line: str, state: _Side, x: float, y: float, distance: float) -> bool:
        """Whether the path from the last position to (x, y) crosses the line between its ends."""
        (x1, y1), (x2, y2) = self.line_pixels[line]
        fraction = state.distance / (state.distance - distance)
        x, y = state.x + fraction * (x - state.x), state.y + fraction * (y - state.y)
        along = (x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)
        return 0 <= along <= (x2 - x1) ** 2 + (y2 - y1) ** 2

    def _add(self, line: str, direction: str, what: str) -> None:
        """Count a crossing in new dicts: earlier results keep theirs."""
        counts = self.counts[line]
        direction_counts = counts[direction]
        increased = {**direction_counts, what: direction_counts.get(what, 0) + 1}
        self.counts = {**self.counts, line: {**counts, direction: increased}}
