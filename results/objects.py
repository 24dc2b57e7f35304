"""Events of tracked objects: they appear, cross a line, enter and leave a zone, and end.

    objects = Objects("run1-gate")
    for event in objects.update(result):    # also in result.events, for every sink
        print(event["type"], event["after"]["label"])

The events use the field names of Frigate's MQTT events.
"""
from __future__ import annotations

import os
import time
from typing import Any, Dict, Iterable, List, Optional

import numpy as np

from vision.detections import attributes_as_json

# An object ends if it is not seen for this many seconds of the stream's time, and in this many
# frames. Must be more than the tracker waits for a lost object (LOST_SECONDS, LOST_FRAMES).
END_SECONDS, END_FRAMES = 2.5, 3
NO_ZONES: List[str] = []


def follow(streams: Iterable[Any], snapshots: bool) -> None:
    """Give each stream its Objects. snapshots: whether pictures of the objects are saved."""
    run = f"{int(time.time()):x}{os.urandom(2).hex()}"  # so that no two runs have the same ids
    for stream in streams:
        stream.objects = Objects(f"{run}-{stream.name}", snapshots)


class Objects:
    """The objects that are present in one stream.

    name: the prefix of their ids. snapshots: whether pictures of them are saved.

    An event is a dict with the keys:
    type: "new", "update" or "end"; event: "appears", "attributes" (a second model says something
    new about it), "crosses", "enters", "leaves" or "ends";
    before, after: the object's state, as _Object.json() returns it; and, depending on the event,
    line, direction and since (as in --json), or zone.
    """

    def __init__(self, name: str, snapshots: bool = False):
        self.name, self.snapshots = name, snapshots
        self.present: Dict[int, _Object] = {}  # by the tracker's id

    def update(self, result: Any) -> List[Dict[str, Any]]:
        """Set result.events to the events of the next frame, and return them. A frame without ids
        has none."""
        events: List[Dict[str, Any]] = []
        result.events = events
        found = result.detections
        ids = getattr(found, "ids", None)
        if ids is None:
            return events
        zones_of = zones_by_id(result)
        ids, attributes = ids.tolist(), getattr(found, "attributes", None)
        for index, (track, score) in enumerate(zip(ids, found.scores.tolist())):
            if track < 0:  # not confirmed by the tracker yet
                continue
            is_new = track not in self.present
            if is_new:
                name = f"{self.name}-{track}"
                self.present[track] = _Object(track, result, name, self.snapshots)
            thing = self.present[track]
            thing.update(result, index, score)
            if is_new:
                events.append(thing.event("new", "appears"))
            elif attributes and thing.has_other_attributes():
                events.append(thing.event("update", "attributes"))
            zones = zones_of.get(track, NO_ZONES)
            if zones != thing.zones:
                events += thing.set_zones(zones)
        for crossing in result.crossings or ():
            if crossing["id"] in self.present:
                fields = {key: crossing.get(key) for key in ("line", "direction", "since")}
                events.append(self.present[crossing["id"]].event("update", "crosses", **fields))
        events += self._end_missing(set(ids), result.time)
        return events

    def _end_missing(self, seen: set, now: float) -> List[Dict[str, Any]]:
        events: List[Dict[str, Any]] = []
        for track in sorted(self.present.keys() - seen):
            thing = self.present[track]
            thing.time = min(thing.time, now)  # the clock may have been set back
            thing.missed += 1
            if now > thing.time + END_SECONDS and thing.missed >= END_FRAMES:
                del self.present[track]
                events += thing.finish()
        return events

    def end(self) -> List[Dict[str, Any]]:
        """Return the events of the end of the stream: every object leaves its zones and ends. Call
        it when no more results come."""
        events = [event for thing in list(self.present.values()) for event in thing.finish()]
        self.present.clear()
        return events


def zones_by_id(result: Any) -> Dict[int, List[str]]:
    """The zones in which each object is: {the tracker's id: ["yard"]}."""
    zones: Dict[int, List[str]] = {}
    for zone, inside in (getattr(result, "inside", None) or {}).items():
        for track in inside:
            zones.setdefault(int(track), []).append(zone)
    return zones


class _Object:
    """One tracked object, and what its last event reported. update() comes first."""

    def __init__(self, track: int, result: Any, name: str, snapshots: bool):
        self.track, self.name, self.snapshots = track, name, snapshots
        self.camera, self.start, self.end_time = result.stream.name, result.time, None
        self.top_score = 0.0
        self.zones: List[str] = []    # where it is now
        self.entered: List[str] = []  # every zone in which it was
        self.reported: Optional[Dict[str, Any]] = None

    def update(self, result: Any, index: int, score: float) -> None:
        self.detections, self.number = result.detections, result.number  # not its picture
        self.index, self.score, self.time = index, score, result.time
        self.missed = 0  # frames since then
        if score > self.top_score:
            self.top_score = score

    def set_zones(self, zones: List[str]) -> List[Dict[str, Any]]:
        """Set the zones in which the object is. Returns the events of entering and leaving."""
        events = []
        for zone in [zone for zone in zones if zone not in self.zones]:
            self.zones = [*self.zones, zone]
            if zone not in self.entered:
                self.entered.append(zone)
            events.append(self.event("update", "enters", zone=zone))
        for zone in [zone for zone in self.zones if zone not in zones]:
            self.zones = [other for other in self.zones if other != zone]
            events.append(self.event("update", "leaves", zone=zone))
        return events

    def attributes(self) -> Dict[str, List[Any]]:
        """What second models say about the object, as in --json."""
        every = getattr(self.detections, "attributes", None)
        return attributes_as_json(every[self.index]) if every else {}

    def has_other_attributes(self) -> bool:
        """Whether they say something else than in the last event; other scores do not count."""
        def texts(attributes: Dict[str, List[Any]]) -> Dict[str, str]:
            return {key: text for key, (text, _) in attributes.items()}

        before = texts(self.reported["attributes"]) if self.reported else {}
        return any(before.get(key) != text for key, text in texts(self.attributes()).items())

    def finish(self) -> List[Dict[str, Any]]:
        events = self.set_zones([])
        self.end_time = self.time
        return [*events, self.event("end", "ends")]

    def event(self, kind: str, what: str, **fields: Any) -> Dict[str, Any]:
        after = self.json()
        before, self.reported = self.reported or after, after
        return {"type": kind, "event": what, **fields, "before": before, "after": after}

    def json(self) -> Dict[str, Any]:
        """Return the object's state, with Frigate's field names.

        box and area are in pixels of the frame. Times are in seconds of the stream's clock, which
        is Unix time for a live stream.
        """
        found, index = self.detections, self.index
        box = np.nan_to_num(found.boxes[index])  # a func file may give NaN
        x1, y1, x2, y2 = (round(float(value), 1) for value in box)
        return {
            "id": self.name,
            "camera": self.camera,
            "frame_time": self.time,
            "frame": self.number,
            "label": str(found.name(int(found.classes[index]))),
            "sub_label": None,
            "track": self.track,
            "attributes": self.attributes(),
            "score": round(self.score, 3),
            "top_score": round(self.top_score, 3),
            "false_positive": False,
            "box": [x1, y1, x2, y2],
            "area": round((x2 - x1) * (y2 - y1)),
            "start_time": self.start,
            "end_time": self.end_time,
            "current_zones": list(self.zones),
            "entered_zones": list(self.entered),
            "has_snapshot": self.snapshots,
            "has_clip": False,
        }
