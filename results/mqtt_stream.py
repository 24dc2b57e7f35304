"""What the broker retains of one stream: state, counters and pictures, and their announcements."""
from __future__ import annotations

import json
import unicodedata
from typing import Any, Dict, Iterable, Optional, Set, Tuple

from results.mqtt_connection import Payload, to_bytes
from results.mqtt_discovery import Device
from results.mqtt_owner import Owner
from results.status import Status

PREFIX_RESERVED = {"available", "events"}  # levels below the prefix that are not streams
# Levels below a stream or zone that are not classes. fps is an entity of Home Assistant only.
STREAM_RESERVED = {"all", "available", "fps", "in", "out", "owner", "snapshot", "state"}


def topic_level(name: str, reserved: Iterable[str] = ()) -> str:
    """Return a name as one level of a topic. Different names give different levels.

    Characters that a level must not contain are percent-encoded as in a URL, and so is "%". The
    first character of a reserved name is encoded, too.
    """
    level = "".join(map(_encoded, name)) or "%"
    return f"%{ord(level[0]):02X}{level[1:]}" if level in reserved else level


def _encoded(char: str) -> str:
    # Brokers refuse control characters (Cc), surrogates (Cs) and noncharacters (Cn).
    if char in "%/+#" or unicodedata.category(char) in ("Cc", "Cs", "Cn"):
        return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
    return char


def counters_of(state: Dict[str, Any]) -> Dict[str, Tuple[str, int]]:
    """The counters of a stream's state (Status.json()): {topic below the stream's: (name, number)}.
    """
    counters = {}
    areas = [("", "", state["objects"])]
    for zone, counts in (state["zones"] or {}).items():
        areas.append((f"{topic_level(zone)}/", f"{zone} ", counts))
    for below, label, counts in areas:
        for name, count in counts.items():
            counters[f"{below}{topic_level(name, STREAM_RESERVED)}"] = f"{label}{name}", count
        counters[f"{below}all"] = f"{label}all" if label else "all objects", sum(counts.values())
    for line, directions in (state["lines"] or {}).items():
        for way, counts in directions.items():
            counters[f"{topic_level(line)}/{way}"] = f"{line} {way}", sum(counts.values())
    return counters


def is_of_line(below: str) -> bool:
    """Whether a topic below a stream's is a line's counter, such as "door/in"."""
    return below.endswith(("/in", "/out"))


class Retained:
    """Retained messages, and which of them the broker does not have yet.

    An empty payload deletes what an earlier message left at the broker.
    """

    def __init__(self) -> None:
        self.payloads: Dict[str, Payload] = {}  # by topic
        self.unsent: Dict[str, Payload] = {}

    def set(self, topic: str, payload: Payload) -> None:
        if self.payloads.get(topic) != payload:
            self.payloads[topic] = self.unsent[topic] = payload

    def take(self) -> Tuple[str, Payload]:
        """Return the next message to send, and count it as sent."""
        topic = next(iter(self.unsent))
        return topic, self.unsent.pop(topic)

    def receive(self, topic: str, payload: str) -> None:
        """Send a message again if the broker has another one there, such as an old last will."""
        if to_bytes(payload) != to_bytes(self.payloads[topic]):
            self.unsent[topic] = self.payloads[topic]

    def send_again(self) -> None:
        """Send all messages: the broker may have lost them, or have others."""
        self.unsent = dict(self.payloads)


class PublishedStream:
    """The retained messages of a stream. update(), set_snapshot() and receive() set them.

    program, available: the id of this program, and the topic of its availability; snapshots:
    whether pictures of objects are published.
    """

    def __init__(self, stream: Any, prefix: str, program: str, available: str, snapshots: bool):
        self.status, self.snapshots = Status(stream), snapshots
        self.topic = f"{prefix}/{topic_level(stream.name, PREFIX_RESERVED)}"
        self.owner = Owner(self.topic, program)
        self.publisher: Optional[str] = None  # the owner's that was reported last
        self.device = Device(stream.name, self.topic, available)
        self.retained = Retained()
        self.counters: Set[str] = set()  # topics below the stream's, also those of earlier runs
        self._announce("binary_sensor", "available", "delivers", payload_on="online",
                       payload_off="offline", device_class="connectivity",
                       entity_category="diagnostic")
        self._announce("sensor", "fps", "FPS", state_topic=f"{self.topic}/state",
                       unit_of_measurement="FPS", value_template="{{ value_json.fps }}",
                       state_class="measurement", entity_category="diagnostic")

    def update(self) -> None:
        """Set the state as JSON, and each counter as a number."""
        state = self.status.json()
        self._set("available", "online" if state["state"] == "running" else "offline")
        self._set("state", json.dumps({"stream": self.status.stream.name, **state},
                                      ensure_ascii=False))
        counters = counters_of(state)
        for below, (name, number) in counters.items():
            if below not in self.counters:
                self._announce_counter(below, name)
            self._set(below, str(number))
        for below in self.counters - counters.keys():
            self._set_missing(below, state["zones"] or {})

    def _set_missing(self, below: str, zones: Iterable[str]) -> None:
        """Set a class that is not seen to 0. Withdraw the counter of a line or zone that has been
        removed, which is known from the first frame on."""
        area, slash, _ = below.partition("/")
        is_removed = is_of_line(below) or slash and area not in map(topic_level, zones)
        if is_removed and self.status.newest:
            self.counters.remove(below)
            self._withdraw("sensor", below)
        elif not is_of_line(below):  # the crossings of an earlier run may continue
            self._set(below, "0")

    def set_snapshot(self, label: str, jpeg: bytes) -> None:
        """Set the newest snapshot of a class. It may be called again with the same one."""
        below = f"{topic_level(label, STREAM_RESERVED)}/snapshot"
        if f"{self.topic}/{below}" not in self.retained.payloads:
            self._announce_snapshot(below, f"{label} snapshot")
        self._set(below, jpeg)

    @property
    def subscriptions(self) -> Tuple[str, ...]:
        """The topics whose messages receive() takes."""
        return self.owner.topic, f"{self.topic}/available", self.device.announcements

    def receive(self, topic: str, payload: str, now: float) -> None:
        """Take a message of another program, or an announcement, also of an earlier run.

        A counter of an earlier run is 0 until its class is seen again; an image stays until the
        next one. Without snapshots, images are withdrawn.
        """
        if topic == self.owner.topic:
            self.owner.receive(payload, now)
        elif topic in self.retained.payloads:
            self.retained.receive(topic, payload)
        else:
            component, below, name = self.device.read(topic, payload)
            if component == "sensor":
                self._announce_counter(below, name)
            elif component == "image" and self.snapshots:
                self._announce_snapshot(below, name)
            elif component == "image":
                self._withdraw(component, below)

    def _announce_counter(self, below: str, name: str) -> None:
        self.counters.add(below)
        self._announce("sensor", below, name, state_class=(
            "total_increasing" if is_of_line(below) else "measurement"))

    def _announce_snapshot(self, below: str, name: str) -> None:
        self._announce("image", below, name, content_type="image/jpeg")

    def _announce(self, component: str, below: str, name: str, **more: Any) -> None:
        config = self.device.config(component, below, name, **more)
        self.retained.set(self.device.config_topic(component, below), config)

    def _withdraw(self, component: str, below: str) -> None:
        """Delete an entity and its value."""
        self._set(below, "")
        self.retained.set(self.device.config_topic(component, below), "")

    def _set(self, below: str, payload: Payload) -> None:
        self.retained.set(f"{self.topic}/{below}", payload)
