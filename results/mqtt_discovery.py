"""Announces a stream's counters and pictures to Home Assistant (MQTT discovery)."""
from __future__ import annotations

import json
import re
import zlib
from typing import Any, Tuple

PREFIX = "homeassistant"
VALUE_TOPIC = {"sensor": "state_topic", "binary_sensor": "state_topic", "image": "image_topic"}


def slug(text: str) -> str:
    """Return a text as an id for Home Assistant, which allows letters, digits, _ and - only.

    A text that must be changed gets its checksum, so that different texts have different ids.
    """
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", text)[:64]
    return plain if plain == text else f"{plain}_{zlib.crc32(text.encode()):08x}"


class Device:
    """A stream as a device of Home Assistant, with an entity for each counter and picture.

    name, topic: of the stream; available: the topic that says whether the program is online.
    An entity has a component, such as "sensor", and a topic of its value below the stream's.
    """

    def __init__(self, name: str, topic: str, available: str):
        self.name, self.topic, self.available = name, topic, available
        self.id = slug(topic)
        self.announcements = f"{PREFIX}/+/{self.id}/+/config"  # matches every config_topic()

    def config_topic(self, component: str, below: str) -> str:
        """The topic of an entity's announcement."""
        return f"{PREFIX}/{component}/{self.id}/{slug(below)}/config"

    def config(self, component: str, below: str, name: str, **more: Any) -> str:
        """An entity's announcement, as JSON. more: further settings of Home Assistant."""
        available = [self.available]
        if component == "sensor":
            available.append(f"{self.topic}/available")
        return json.dumps({
            "name": name, VALUE_TOPIC[component]: f"{self.topic}/{below}",
            "unique_id": f"{self.id}_{slug(below)}", "qos": 1,
            "availability": [{"topic": topic} for topic in available],
            "availability_mode": "all", "origin": {"name": "rknnpool"},
            "device": {"identifiers": [self.id], "name": self.name, "manufacturer": "rknnpool"},
            **more}, ensure_ascii=False)

    def read(self, topic: str, payload: str) -> Tuple[str, str, str]:
        """Read an announcement, which may be of an earlier run. Returns the entity's component,
        topic below the stream's, and name; empty texts if it was not made by config()."""
        try:
            component, config = topic.split("/")[1], json.loads(payload)
            below = config[VALUE_TOPIC[component]].partition(f"{self.topic}/")[2]
            if topic == self.config_topic(component, below):
                return component, below, config["name"]
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        return "", "", ""
