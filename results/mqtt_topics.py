"""MQTT topics of a stream, what is retained under them, and their announcement to Home Assistant.

docs/results.md lists the topics.
"""
from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import zlib
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple, Union
from urllib.parse import unquote, urlsplit

from results.mqtt_owner import Owner
from results.status import Status
from vision.errors import InputError

DISCOVERY_PREFIX = "homeassistant"
MAX_LEVEL = 200  # characters of one level of a topic
PREFIX_RESERVED = {"available", "events"}  # levels below the prefix that are not streams
# Levels below a stream or zone that are not classes. fps is an entity of Home Assistant only.
STREAM_RESERVED = {"all", "available", "fps", "in", "out", "owner", "snapshot", "state"}

Payload = Union[str, bytes]  # bytes: a JPEG


def parse_url(url: str) -> Tuple[str, int, bool, str]:
    """Parse mqtt://HOST[:PORT][/PREFIX] or mqtts://... for TLS.

    Returns host, port, whether to use TLS, and the prefix of all topics. Raises InputError; its
    text does not repeat a password in the URL.
    """
    example = "write mqtt://HOST:1883/PREFIX, or mqtts:// for TLS"
    if "@" in url:
        raise InputError("--mqtt: the URL must not contain a user or password, because every user "
                         "of this machine can see it in `ps`. Set the environment variables "
                         "RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:  # or its subclass UnicodeError
        raise InputError(f"--mqtt {url}: invalid URL; {example}.") from None
    extra = "?" in url or "#" in url
    if parts.scheme not in ("mqtt", "mqtts") or not host or extra or port == 0:
        raise InputError(f"--mqtt {url}: invalid URL; {example}.")
    prefix = unquote(parts.path).strip("/") or "rknnpool"
    if re.search(r"[+#\0-\x1f\ufffd]", prefix) or prefix.startswith("$") or len(prefix) > 1000:
        raise InputError(f"--mqtt {url}: the topic prefix must not start with $ or contain + or "
                         "#, and has at most 1000 characters.")
    tls = parts.scheme == "mqtts"
    return host, port or (8883 if tls else 1883), tls, prefix


def topic_level(name: Any, reserved: Iterable[str] = ()) -> str:
    """Return a name as one level of a topic. Different names give different levels.

    Characters that a level must not contain are percent-encoded as in a URL, and so is "%". The
    first character of a reserved name is encoded, too. A longer name than MAX_LEVEL is cut and
    ends in a hash.
    """
    level = "".join(map(_encoded, str(name))) or "%"
    if level in reserved:
        level = f"%{ord(level[0]):02X}{level[1:]}"
    if len(level) > MAX_LEVEL:
        digest = hashlib.sha256(level.encode()).hexdigest()[:12]
        level = f"{level[:MAX_LEVEL]}~{digest}"
    return level


def _encoded(char: str) -> str:
    # Brokers refuse control characters (Cc), surrogates (Cs) and noncharacters (Cn).
    if char in "%/+#" or unicodedata.category(char) in ("Cc", "Cs", "Cn"):
        return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
    return char


def slug(text: str) -> str:
    """Return a text as an id for Home Assistant, which allows letters, digits, _ and - only.

    A text that must be changed gets its checksum, so that different texts have different ids.
    """
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", text)[:64]
    return plain if plain == text else f"{plain}_{zlib.crc32(text.encode()):08x}"


def available_topic(prefix: str, program: str) -> str:
    """The topic that says whether a program is "online"."""
    return f"{prefix}/available/{topic_level(program)}"


class StreamTopics:
    """What is published about one stream.

    program: the id of this program, whose availability is below the prefix; snapshots: whether
    pictures of objects are published. `retained` is {topic: payload} of the stream's retained
    messages, which `update()`, `set_snapshot()` and `announce()` fill. An empty payload deletes
    what an earlier message left there.
    """

    def __init__(self, stream: Any, prefix: str, program: str, snapshots: bool):
        self.status, self.available = Status(stream), available_topic(prefix, program)
        self.retained: Dict[str, Payload] = {}
        self.topic = f"{prefix}/{topic_level(stream.name, PREFIX_RESERVED)}"
        self.node, self.owner = slug(self.topic), Owner(self.topic, program)
        self.publisher: Optional[str] = None  # the program that publishes it, as far as known
        self.epoch = 0  # of the newest result; results of an earlier epoch are ignored
        self.counters: Set[str] = set()  # topics below the stream's that had a value
        self.snapshots = snapshots
        self.jpegs: Dict[str, bytes] = {}  # by class
        self.announce("available", "binary_sensor", name="delivers",
                      state_topic=f"{self.topic}/available", payload_on="online",
                      payload_off="offline", device_class="connectivity",
                      entity_category="diagnostic")
        self.announce("fps", "sensor", name="FPS", state_topic=f"{self.topic}/state",
                      unit_of_measurement="FPS", value_template="{{ value_json.fps }}",
                      state_class="measurement", entity_category="diagnostic")

    def update(self, ended: bool = False) -> None:
        """Update the retained messages: the state as JSON, and each counter as a number.

        ended: whether the program ends; then the stream is offline and has no objects.
        """
        state, retained = self.status.json(), self.retained
        if ended:
            zones = state["zones"] and {zone: {} for zone in state["zones"]}
            state.update(fps=0.0, state="ended", objects={}, zones=zones)
        running = state["state"] == "running"
        retained[f"{self.topic}/available"] = "online" if running else "offline"
        retained[f"{self.topic}/state"] = json.dumps(
            {"stream": self.status.stream.name, **state}, ensure_ascii=False)
        counters = counters_of(state)
        for below, counter in counters.items():
            if below not in self.counters:
                self.counters.add(below)
                self.announce(below, "sensor", name=counter.label,
                              state_topic=f"{self.topic}/{below}", state_class=counter.state_class)
        if self.status.newest:  # its lines and zones are known
            for below in [below for below in self.counters if is_removed(below, state)]:
                self.counters.remove(below)
                self._withdraw(below, "sensor")
        for below in self.counters:
            # The crossings of an earlier run may continue: they are not 0 before the first frame.
            if below in counters or not is_of_line(below):
                value = counters[below].value if below in counters else 0
                retained[f"{self.topic}/{below}"] = str(value)

    def set_snapshot(self, label: str, jpeg: bytes) -> None:
        """Publish the newest snapshot of a class. It may be called again with the same one."""
        if self.jpegs.get(label) is jpeg:
            return
        below = f"{topic_level(label, STREAM_RESERVED)}/snapshot"
        if label not in self.jpegs:
            self._announce_snapshot(below, f"{label} snapshot")
        self.jpegs[label] = self.retained[f"{self.topic}/{below}"] = jpeg

    def _announce_snapshot(self, below: str, name: str) -> None:
        self.announce(below, "image", name=name, image_topic=f"{self.topic}/{below}",
                      content_type="image/jpeg")

    @property
    def subscriptions(self) -> List[str]:
        """The topics whose messages receive() takes."""
        return [self.owner.topic, *(f"{DISCOVERY_PREFIX}/{component}/{self.node}/+/config"
                                    for component in ("sensor", "image"))]

    def receive(self, topic: str, payload: str, now: float) -> None:
        """Take a message of another program or of an earlier run; any others are ignored."""
        if topic == self.owner.topic:
            self.owner.receive(payload, now)
        elif topic not in self.retained:
            try:
                self._continue(topic, json.loads(payload))
            except (ValueError, TypeError, KeyError, AttributeError):  # not an announcement of ours
                pass

    def _continue(self, topic: str, config: Dict[str, Any]) -> None:
        """Continue what was announced before. A counter is 0 until its class is seen again; an
        image stays until the next one. Without snapshots, images are withdrawn."""
        component = "image" if "image_topic" in config else "sensor"
        value_topic = config.get("image_topic") or config["state_topic"]
        start, _, below = value_topic.partition(f"{self.topic}/")
        if start or topic != self._discovery_topic(component, below):
            return
        if component == "sensor":
            self.counters.add(below)
            self.announce(below, "sensor", name=str(config["name"]),
                          state_topic=f"{self.topic}/{below}", state_class=config["state_class"])
        elif self.snapshots:
            self._announce_snapshot(below, str(config["name"]))
        else:
            self._withdraw(below, "image")

    def _withdraw(self, below: str, component: str) -> None:
        """Delete an entity and its value. The announcement goes last: a later run looks for it."""
        for topic in (f"{self.topic}/{below}", self._discovery_topic(component, below)):
            self.retained.pop(topic, None)
            self.retained[topic] = ""

    def _discovery_topic(self, component: str, below: str) -> str:
        return f"{DISCOVERY_PREFIX}/{component}/{self.node}/{slug(below)}/config"

    def announce(self, below: str, component: str, **config: Any) -> None:
        """Announce an entity to Home Assistant (MQTT discovery, one message per entity)."""
        available = [self.available]
        if component == "sensor":
            available.append(f"{self.topic}/available")
        device = {"identifiers": [self.node], "name": self.status.stream.name,
                  "manufacturer": "rknnpool"}
        config.update(unique_id=f"{self.node}_{slug(below)}", availability_mode="all", qos=1,
                      availability=[{"topic": topic} for topic in available],
                      origin={"name": "rknnpool"}, device=device)
        topic = self._discovery_topic(component, below)
        self.retained[topic] = json.dumps(config, ensure_ascii=False)


def is_of_line(below: str) -> bool:
    """Whether a topic below a stream's is a line's counter, such as "door/in"."""
    return below.endswith(("/in", "/out"))


def is_removed(below: str, state: Dict[str, Any]) -> bool:
    """Whether a topic below a stream's belongs to a line or zone that is not in its state."""
    level, slash, _ = below.partition("/")
    present = state["lines" if is_of_line(below) else "zones"] or {}
    return bool(slash) and level not in map(topic_level, present)


class Counter(NamedTuple):
    """A number that is published, and how Home Assistant shows it."""
    label: str
    value: int
    state_class: str  # Home Assistant's


def counters_of(state: Dict[str, Any]) -> Dict[str, Counter]:
    """The counters of a stream's state (Status.json()): {topic below the stream's: counter}."""
    counters = class_counters("", "", state["objects"])
    for zone, counts in (state["zones"] or {}).items():
        counters.update(class_counters(f"{topic_level(zone)}/", f"{zone} ", counts))
    for line, directions in (state["lines"] or {}).items():
        for direction, counts in directions.items():
            counters[f"{topic_level(line)}/{direction}"] = Counter(
                f"{line} {direction}", sum(counts.values()), "total_increasing")
    return counters


def class_counters(below: str, label: str, counts: Dict[str, int]) -> Dict[str, Counter]:
    """A counter for each class, and one for all classes. below, label: what precedes the class in
    the topic and in the label; counts: {"person": 2}."""
    counters = {}
    for name, count in counts.items():
        level = topic_level(name, STREAM_RESERVED)
        counters[f"{below}{level}"] = Counter(f"{label}{name}", count, "measurement")
    all_label = f"{label}all" if label else "all objects"
    counters[f"{below}all"] = Counter(all_label, sum(counts.values()), "measurement")
    return counters
