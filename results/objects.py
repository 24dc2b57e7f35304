"""Makes events of what tracked objects do - appear, cross a line, enter and leave a zone, end - in Frigate's words.

    objects = Objects("run1-gate")
    for event in objects.follow(frame):     # frame: a Result, or its lightened form
        print(event["type"], event["after"]["label"])
"""
GONE = 2.5  # seconds of the stream's time without it after which an object has ended; the tracker waits for 2


class Objects:
    """The objects present in one stream. name: begins the ids of its objects.

    An event is {"type": "new", "update" or "end", "event": "appears", "crosses", "enters", "leaves" or "ends",
    "before", "after"}, before and after as _Object.json() gives them; one that crosses has "line", "direction" and
    "since" as in --json, one that enters or leaves "zone".
    """

    def __init__(self, name):
        self.name, self.present = name, {}  # the tracker's number: _Object

    def follow(self, frame) -> list:
        """The events of the next frame. A frame without identities has none."""
        found = frame.detections
        numbers = getattr(found, "ids", None)
        if numbers is None:
            return []
        events, zones = [], {}  # zones: the tracker's number: names of the zones that it is in
        for zone, inside in (getattr(frame, "inside", None) or {}).items():
            for number in inside:
                zones.setdefault(int(number), []).append(zone)
        numbers = numbers.tolist()
        for index, (number, score) in enumerate(zip(numbers, found.scores.tolist())):
            if number < 0:  # the tracker is not yet sure of it
                continue
            thing, new = self.present.get(number), number not in self.present
            if new:
                thing = self.present[number] = _Object(number, frame, f"{self.name}-{number}")
            thing.see(frame, index, score)
            if new:
                events.append(thing.event("new", "appears"))
            events += thing.move(zones.get(number, []))
        for crossing in frame.crossings or ():
            if crossing["id"] in self.present:
                events.append(self.present[crossing["id"]].event(
                    "update", "crosses", **{key: crossing.get(key) for key in ("line", "direction", "since")}))
        missing = self.present.keys() - set(numbers)
        for number in sorted(missing):
            self.present[number].time = min(self.present[number].time, frame.time)  # the clock may have been set back
            if frame.time > self.present[number].time + GONE:
                events += self.present.pop(number).finish()
        return events

    def end(self) -> list:
        """The events of the stream's end: all objects leave and end."""
        events = [event for thing in self.present.values() for event in thing.finish()]
        self.present.clear()
        return events


class _Object:
    def __init__(self, number, frame, name):
        self.number, self.name, self.start, self.end = number, name, frame.time, None
        self.top, self.zones, self.entered, self.before = 0.0, [], [], None

    def see(self, frame, index, score):
        self.frame, self.index, self.score, self.time = frame, index, score, frame.time
        self.top = max(self.top, score)

    def move(self, zones):
        """The events of being in these zones now."""
        events = []
        for zone in [zone for zone in zones if zone not in self.zones]:
            self.zones = [*self.zones, zone]
            self.entered += [zone] if zone not in self.entered else []
            events.append(self.event("update", "enters", zone=zone))
        for zone in [zone for zone in self.zones if zone not in zones]:
            self.zones = [other for other in self.zones if other != zone]
            events.append(self.event("update", "leaves", zone=zone))
        return events

    def finish(self):
        events = self.move([])
        self.end = self.time
        return [*events, self.event("end", "ends")]

    def event(self, kind, what, **fields):
        after = self.json()
        before, self.before = self.before or after, after
        return {"type": kind, "event": what, **fields, "before": before, "after": after}

    def json(self):
        """The object now. box and area in pixels of the frame; times in seconds as the stream has them, Unix time of a
        live one."""
        found, index = self.frame.detections, self.index
        x1, y1, x2, y2 = (round(float(value), 1) for value in found.boxes[index])
        return {"id": self.name, "camera": self.frame.stream.name, "frame_time": self.time, "frame": self.frame.number,
                "label": str(found.name(int(found.classes[index]))), "sub_label": None, "track": self.number,
                "score": round(self.score, 3), "top_score": round(self.top, 3), "false_positive": False,
                "box": [x1, y1, x2, y2], "area": round((x2 - x1) * (y2 - y1)), "start_time": self.start,
                "end_time": self.end, "current_zones": list(self.zones), "entered_zones": list(self.entered),
                "has_snapshot": False, "has_clip": False}
