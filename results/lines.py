"""Counts who crosses a line, and who is in a zone: by class, from identities that last (results/tracking.py).

    lines = Lines({"door": ((100, 400), (500, 400))}, {"yard": [(0, 0.5), (1, 0.5), (1, 1), (0, 1)]})   # one a stream
    lines.update(result)     # sets the following, and adds its drawing to result.overlay
    result.lines             # {"door": {"in": {"person": 3}, "out": {"car": 1}}}: since the start
    result.zones             # {"yard": {"person": 2}}: now
    result.inside            # {"yard": [12, 17]}: their identities
    result.crossings         # [{"line": "door", "direction": "in", "id": 17, "class": "person", "since": 112}]

Points are in pixels of the frame, or, where no value of a line or zone is above 1, shares of its width and height. What
counts is where an object stands: the middle of its box's lower edge. Whoever has no identity yet (-1) counts nowhere.

"in" is from the left of a line to its right, seen from its first point to its second: with y downwards
(x2 - x1)(y - y1) - (y2 - y1)(x - x1) goes from below 0 to above. An object has crossed when it has been seen in FRAMES
frames, one after the other, on the other side, to which it came between the line's ends; how far it jumped does not
matter. Whoever has just crossed and then goes to and fro on the line crosses back only when he is CLEAR of it, or has
been on that side for REST seconds: he who dances on the line counts once.
"""
import math
import re
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from rknnmodel import InputError

# --------------------------------------------------------------------------------------------------------------------
FRAMES = 3      # in which an object must be seen on the other side
CLEAR = 0.15    # of its box's height away from the line: then it dances on it no longer
NEAR = 0.03     # of its height: within this a new object's side is known only once it was seen there in FRAMES frames
REST = 1.0      # seconds on one side, after which it dances no longer either
REMEMBER = 10000  # identities whose sides are known at a time; the ones not seen for the longest time go first
COLOURS = (80, 220, 255), (255, 200, 80)  # of lines and zones in the picture, BGR
# --------------------------------------------------------------------------------------------------------------------

Point = Tuple[float, float]


def parse_line(text: str) -> Tuple[str, Tuple[Point, ...]]:
    """What `--line door:x1,y1,x2,y2` says, or for one stream of several `gate/door:x1,y1,x2,y2`.

    Returns its key ("door", "gate/door") and two points, as the setting `lines` takes them. Raises InputError.
    """
    return _parse("--line", text, 4, "door:100,400,500,400")


def parse_zone(text: str) -> Tuple[str, Tuple[Point, ...]]:
    """What `--zone yard:x,y,x,y,x,y,...` says, or for one stream of several `gate/yard:...`.

    Returns its key and at least three points, as the setting `zones` takes them. Raises InputError.
    """
    return _parse("--zone", text, None, "yard:0,0.5,1,0.5,1,1,0,1")


def _parse(flag, text, count, example):
    key, colon, numbers = text.rpartition(":")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if not colon or (len(values) != count if count else len(values) < 6 or len(values) % 2):
        points = "four numbers, x and y of its two points" if count else "x and y of at least three points"
        raise InputError(f"{flag} {text}: must be a name, a colon and {points}, as in {flag} {example}.")
    points = tuple(zip(values[::2], values[1::2]))
    _checked(flag[2:], key, points)
    return key, points


def parse(lines: Iterable[str], zones: Iterable[str]) -> Tuple[dict, dict]:
    """All `--line` and `--zone` of a command line, as the settings `lines` and `zones` take them. Raises InputError,
    also for a name given twice."""
    found = {}, {}
    for flag, texts, reader, into in (("--line", lines, parse_line, found[0]), ("--zone", zones, parse_zone, found[1])):
        for text in texts:
            key, points = reader(text)
            if key in into:
                raise InputError(f"{flag} {text}: there is another {key}; each needs a name of its own.")
            into[key] = points
    return found


def for_streams(streams: Sequence[str], lines: dict, zones: dict) -> Dict[str, Optional["Lines"]]:
    """For each stream's name its own Lines, or None where it has neither line nor zone.

    lines, zones: {"door": points} for every stream, {"gate/door": points} for the stream "gate" alone (and there
    instead of "door"). Raises InputError for bad points, and for a stream that is not there.
    """
    out = {}
    for kind, settings in (("line", lines), ("zone", zones)):
        if not isinstance(settings, dict):
            raise InputError(f"{kind}s = {settings!r}: must be names with their points, as in "
                             f'{kind}s = {{"{"door" if kind == "line" else "yard"}": ((100, 400), (500, 400)'
                             f'{", (300, 500)" if kind == "zone" else ""})}}.')
        for key, points in settings.items():
            stream, slash, _ = _checked(kind, key, points)[0].rpartition("/")
            if slash and stream not in streams:
                raise InputError(f"The {kind} {key}: there is no stream {stream}, only {', '.join(streams)}.")
    for stream in streams:
        chosen = []
        for settings in (lines, zones):
            every = {key: points for key, points in settings.items() if "/" not in key}
            own = {key.rpartition("/")[2]: points for key, points in settings.items()
                   if "/" in key and key.rpartition("/")[0] == stream}
            chosen.append({**every, **own})
        out[stream] = Lines(*chosen) if any(chosen) else None
    return out


def _checked(kind, key, points):
    """The key and the points, (n, 2) float64, of a line or zone. Raises InputError where they are none."""
    example = "door" if kind == "line" else "yard"
    if not isinstance(key, str) or not re.fullmatch(r"(.+/)?[\w.() -]*\w[\w.() -]*", key):
        raise InputError(f"The {kind} {key!r} needs a name of letters, digits, spaces and . _ - ( ), as in {example}, "
                         f"or gate/{example} for the stream gate alone.")
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    good = array.ndim == 2 and array.shape[1] == 2 and (len(array) == 2 if kind == "line" else len(array) >= 3)
    if not good:
        raise InputError(f"The {kind} {key} needs {'two points' if kind == 'line' else 'at least three points'}, each "
                         f"an x and a y, and not {points!r}.")
    if not np.isfinite(array).all():
        raise InputError(f"The {kind} {key} has a point that is no pair of finite numbers: {points!r}.")
    shares = array[(array > 0) & (array < 1)]
    if len(shares) and array.max() > 1:
        raise InputError(f"The {kind} {key} mixes shares of the frame ({shares[0]:g}) and pixels ({array.max():g}): "
                         "all its points are the one or the other.")
    if kind == "line" and (array[0] == array[1]).all():
        raise InputError(f"The line {key} begins and ends at the same point.")
    first = array[1:] - array[0]
    if kind == "zone" and not (first[:, None, 0] * first[None, :, 1] != first[:, None, 1] * first[None, :, 0]).any():
        raise InputError(f"The zone {key} encloses nothing: its points lie on one line.")
    return key, array


class _Seen:
    """What a line knows of an identity."""

    __slots__ = "side", "distance", "x", "y", "since", "began", "run", "inside", "dancing", "calm"

    def __init__(self):
        self.side = 0          # on which it is for certain: -1 left, 1 right, 0 not known yet
        self.distance = 0.0    # from the line when last seen, below 0 on the left, and where that was
        self.x = self.y = 0.0
        self.run = 0           # frames, one after the other, on the other side,
        self.since = self.began = 0  # from this frame and time on,
        self.inside = False    # and whether it came there between the line's ends
        self.dancing = False   # it has crossed, and not yet left the line behind
        self.calm = 0.0        # time since when it has been on its side


class Lines:
    """The lines and zones of one stream.

    lines: {"door": ((x1, y1), (x2, y2))}; zones: {"yard": [(x, y), (x, y), (x, y), ...]}. Raises InputError for what is
    no line or no zone.
    """

    def __init__(self, lines: Optional[dict] = None, zones: Optional[dict] = None) -> None:
        self.lines = {name: _checked("line", name, points)[1] for name, points in (lines or {}).items()}
        self.zones = {name: _checked("zone", name, points)[1] for name, points in (zones or {}).items()}
        self.size = None                  # of the frame for which `placed` holds
        self.placed = {}, {}              # lines and zones in its pixels
        self.counts = {name: {"in": {}, "out": {}} for name in self.lines}
        self.present, self.inside = ({name: kind() for name in self.zones} for kind in (dict, list))
        self.seen = OrderedDict()         # identity: (its classes' counts, {line: _Seen})

    def update(self, result: Any) -> None:
        """Count the objects of a frame; the frames come in order.

        result: a streams.Result, or anything with `detections` (with `boxes` (n, 4) xyxy in pixels, `classes`, `ids`
        and `name(number)`), `size` (width, height), `number`, `time` and `overlay`. Sets `crossings`, `lines`, `zones`
        and `inside` as the file's first lines show them, and appends to `overlay` a function that draws on a picture
        (h, w, 3) uint8 BGR. Without identities no line counts, and zones count every detection. A frame that failed
        changes nothing.
        """
        result.crossings = []
        detections = result.detections
        if detections is not None:
            if tuple(result.size) != self.size:  # a camera may come back with another
                self.place(tuple(result.size))
            self.present, self.inside = ({name: kind() for name in self.zones} for kind in (dict, list))
            if detections.boxes is not None and len(detections.boxes):
                self.count(result, detections)
        # What is handed out is never changed again: places may write it later.
        result.lines, result.zones, result.inside = self.counts, self.present, self.inside
        result.overlay.append(self.drawing(self.counts, self.present))

    def place(self, size: Tuple[int, int]) -> None:
        self.size = size
        self.placed = tuple({name: points * (size if points.max() <= 1 else 1) for name, points in places.items()}
                            for places in (self.lines, self.zones))
        for _, sides in self.seen.values():
            sides.clear()

    def count(self, result, detections):
        boxes = np.asarray(detections.boxes, np.float64)
        feet = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]], 1)
        classes = np.asarray(detections.classes).tolist()
        ids = None if detections.ids is None else np.asarray(detections.ids).tolist()
        name = getattr(detections, "name", str)
        # A box that ends at the picture's edge stands in its last pixel.
        standing = [tuple(point) for point in np.minimum(feet, np.subtract(self.size, 1)).tolist()]
        for zone, points in self.placed[1].items():
            polygon, present = points.astype(np.float32), self.present[zone]
            for row, point in enumerate(standing):
                if (ids is None or ids[row] >= 0) and cv2.pointPolygonTest(polygon, point, False) >= 0:
                    what = name(classes[row])
                    present[what] = present.get(what, 0) + 1
                    if ids is not None:
                        self.inside[zone].append(ids[row])
        if ids is None or not self.lines:
            return
        heights = (boxes[:, 3] - boxes[:, 1]).tolist()
        distances = {}
        for line, ((x1, y1), (x2, y2)) in self.placed[0].items():
            across = (x2 - x1) * (feet[:, 1] - y1) - (y2 - y1) * (feet[:, 0] - x1)
            distances[line] = (across / math.hypot(x2 - x1, y2 - y1)).tolist()
        time = result.time if result.time is not None else result.number / 30
        for row, (identity, (x, y)) in enumerate(zip(ids, feet.tolist())):
            if identity < 0:
                continue
            known = self.seen.get(identity)
            if known is None:
                known = self.seen[identity] = {}, {}
                if len(self.seen) > REMEMBER:
                    self.seen.popitem(last=False)
            self.seen.move_to_end(identity)
            votes, sides = known
            votes[classes[row]] = votes.get(classes[row], 0) + 1
            for line in self.lines:
                seen = sides.get(line)
                if seen is None:
                    seen = sides[line] = _Seen()
                since = self.step(seen, line, x, y, distances[line][row], heights[row], result.number, time)
                if since is not None:
                    # Detectors waver between car and truck: the class that it had most often.
                    what = name(max(votes, key=votes.get))
                    self.add(result, line, "in" if seen.side > 0 else "out", identity, what, since)

    def step(self, seen, line, x, y, distance, height, number, time):
        """An identity stands at (x, y), this far from the line: the frame in which its crossing began, where this frame
        confirms one, else None."""
        side = (distance > 0) - (distance < 0)
        since = None
        if seen.side == 0:
            # Right on the line a box's trembling does not say on which side it appeared.
            seen.run = seen.run + 1 if side and side == np.sign(seen.distance) else abs(side)
            if abs(distance) >= NEAR * height or seen.run >= FRAMES:
                seen.side, seen.run, seen.calm = side, 0, time
        elif side == seen.side:
            if seen.run:
                seen.run, seen.calm = 0, time
            if abs(distance) >= CLEAR * height or time - seen.calm >= REST:
                seen.dancing = False
        elif side:
            if not seen.run:
                seen.since, seen.began, seen.inside = number, time, self.between(line, seen, x, y, distance)
            seen.run += 1
            clear = not seen.dancing or abs(distance) >= CLEAR * height or time - seen.began >= REST
            if seen.run >= FRAMES and clear:
                since = seen.since if seen.inside else None
                seen.side, seen.run, seen.calm = side, 0, seen.began
                seen.dancing = abs(distance) < CLEAR * height and time - seen.began < REST
        seen.x, seen.y, seen.distance = x, y, distance
        return since

    def between(self, line, seen, x, y, distance):
        """Whether the way from where it was seen last to (x, y) crosses the line between its ends."""
        (x1, y1), (x2, y2) = self.placed[0][line]
        share = seen.distance / (seen.distance - distance)
        x, y = seen.x + share * (x - seen.x), seen.y + share * (y - seen.y)
        along = (x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)
        return 0 <= along <= (x2 - x1) ** 2 + (y2 - y1) ** 2

    def add(self, result, line, direction, identity, what, since):
        result.crossings.append({"line": line, "direction": direction, "id": identity, "class": what, "since": since})
        counts = dict(self.counts[line])
        counts[direction] = {**counts[direction], what: counts[direction].get(what, 0) + 1}
        self.counts = {**self.counts, line: counts}

    def drawing(self, counts: dict, present: dict) -> Callable[[np.ndarray], None]:
        """A function that draws lines and zones with these counts on a picture (h, w, 3) uint8 BGR, in place."""
        lines, zones = self.placed

        def draw(picture):
            for name, points in zones.items():
                cv2.polylines(picture, [points.round().astype(np.int32)], True, COLOURS[1], 2)
                _write(picture, points.mean(0), [f"{name} {_sum(present[name])}"], COLOURS[1])
            for name, (first, second) in lines.items():
                middle, way = (first + second) / 2, second - first
                length = np.hypot(*way)
                # The arrow points to where "in" is: to the right of the way from the first point to the second.
                tip = middle + np.array([-way[1], way[0]]) / length * min(40, max(12, length / 4))
                corners = [tuple(map(int, point.round())) for point in (first, second, middle, tip)]
                cv2.line(picture, corners[0], corners[1], COLOURS[0], 2)
                cv2.arrowedLine(picture, corners[2], corners[3], COLOURS[0], 2, tipLength=0.35)
                rows = [name, f"in {_sum(counts[name]['in'])}", f"out {_sum(counts[name]['out'])}"]
                _write(picture, second, rows, COLOURS[0])
        return draw


def _sum(counts: Dict[str, int]) -> str:
    """"4: car 1, person 3", the most frequent first."""
    total = sum(counts.values())
    each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return f"{total}: {each}" if total else "0"


def _write(picture: np.ndarray, place: Sequence[float], rows: List[str], colour) -> None:
    """Rows of text on a dark ground, as near to the place (x, y) as the picture allows."""
    h, w = picture.shape[:2]
    size = max(0.35, min(h, w) / 1200)
    sizes = [cv2.getTextSize(row, cv2.FONT_HERSHEY_SIMPLEX, size, 1) for row in rows]
    step = max(text[1] + below for text, below in sizes) + 4
    wide, tall = max(text[0] for text, _ in sizes) + 8, step * len(rows) + 4
    x, y = (int(max(0, min(value, limit - room))) for value, limit, room in zip(place, (w, h), (wide, tall)))
    ground = picture[y:y + tall, x:x + wide]
    ground //= 3
    for number, row in enumerate(rows):
        cv2.putText(picture, row, (x + 4, y + step * (number + 1) - 3), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1,
                    cv2.LINE_AA)
