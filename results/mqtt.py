"""Tells an MQTT broker what the streams see: counters as retained state, events of objects, Home Assistant's discovery.

    broker = MQTT("mqtt://127.0.0.1:1883/rknnpool", streams)
    broker.write(result)     # a Result of any of the streams, from its thread; returns at once
    broker.close()

Needs the package paho-mqtt. User and password come from RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD in the
environment. README.md lists the topics.
"""
import collections
import json
import os
import re
import ssl
import sys
import threading
import time
import traceback
import zlib
from urllib.parse import unquote, urlsplit

import streams as running
from results.objects import Objects
from results.status import Status, origin
from rknnmodel import InputError

MOST_EVENTS = 10000  # that wait for a broker; beyond it the oldest go (about 1 KB each)
MOST_FRAMES = 1000   # that wait to be looked at, without their pictures
WINDOW = 50          # messages handed over and not yet acknowledged: all that a broker which hangs can hold up
TICK = 0.1           # seconds between two looks at what came
STATE = 1.0          # seconds between two states of a stream
KEEPALIVE = 15       # seconds; a broker that hangs is noticed after two of them, a dead program by the broker after 1.5
CLOSING = 5          # seconds that close() waits for what is not yet acknowledged
DISCOVERY = "homeassistant"


def parse(url: str):
    """(host, port, whether over TLS, prefix of the topics) of mqtt://HOST[:PORT][/PREFIX] or mqtts://...

    Raises InputError for anything else, and where the URL holds a user or password, which it does not repeat.
    """
    example = "give mqtt://HOST:1883/PREFIX, or mqtts:// for TLS"
    if "@" in url:
        raise InputError("--mqtt: user and password do not belong into the URL, which everyone sees in `ps`: put them "
                         "into the environment, RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:  # UnicodeError is one
        raise InputError(f"--mqtt {url}: not a URL; {example}.") from None
    if parts.scheme not in ("mqtt", "mqtts") or not host or "?" in url or "#" in url or port == 0:
        raise InputError(f"--mqtt {url}: {example}.")
    prefix = unquote(parts.path).strip("/") or "rknnpool"
    if re.search(r"[+#\0-\x1f\ufffd]", prefix) or prefix.startswith("$") or len(prefix) > 1000:
        raise InputError(f"--mqtt {url}: the prefix of the topics may not begin with $ or contain + or #.")
    return host, port or (8883 if parts.scheme == "mqtts" else 1883), parts.scheme == "mqtts", prefix


def level(name) -> str:
    """A name as one level of a topic."""
    return re.sub(r"[/+#\0-\x1f\x7f-\x9f\ud800-\udfff]", "_", str(name))[:200] or "_"


def slug(text: str) -> str:
    """A text as Home Assistant takes it for an id: the same for the same text, another for another."""
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", text)[:64]
    return plain if plain == text else f"{plain}_{zlib.crc32(text.encode()):08x}"


class MQTT:
    """A place for Results. url: as parse() takes it; streams: the Streams whose Results will come.

    A broker that is not there, goes away, hangs or is slow is waited for, and never by write(). `sent` counts the
    messages that it has acknowledged, `lost` the events that could not be kept, `missed` the frames that came faster
    than they could be looked at. Raises InputError for a bad URL or environment, or where paho-mqtt is missing.
    """

    def __init__(self, url, streams):
        host, port, tls, self.prefix = parse(url)
        self.name = f"{'mqtts' if tls else 'mqtt'}://{f'[{host}]' if ':' in host else host}:{port}"
        self.run = f"{int(time.time()):x}{os.urandom(2).hex()}"  # tells this program's ids from those of another run
        self.client = self.new_client(tls)
        self.frames = collections.deque(maxlen=MOST_FRAMES)  # (_Stream, lightened Result)
        self.events = collections.deque()
        self.wanted, self.told = {}, {}  # topic: retained payload
        self.streams = {}
        for stream in streams:
            self.streams[stream.name] = _Stream(stream, self)
        self.sent = self.handed = self.lost = self.missed = self.number = self.said = 0
        self.open, self.resent = False, 0  # whether messages may be handed over: once `sent` has reached `resent`
        self.gone = None    # since when the broker is away
        self.broken = None  # why this place has given up
        self.wake, self.ending = threading.Event(), threading.Event()
        self.client.connect_async(host, port, keepalive=KEEPALIVE)
        self.client.loop_start()
        self.worker = threading.Thread(target=self.work, name="rknnpool-mqtt", daemon=True)
        self.worker.start()

    def new_client(self, tls):
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise InputError("--mqtt needs the package paho-mqtt, version 2 or later: pip install paho-mqtt") from None
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"rknnpool-{self.run}")
        user, password = os.environ.get("RKNNPOOL_MQTT_USER"), os.environ.get("RKNNPOOL_MQTT_PASSWORD")
        if password and not user:
            raise InputError("--mqtt: RKNNPOOL_MQTT_PASSWORD is set, but RKNNPOOL_MQTT_USER is not.")
        if user:
            client.username_pw_set(user, password)
        if tls:
            client.tls_set_context(ssl.create_default_context())  # SSL_CERT_FILE names a CA of one's own
        client.will_set(f"{self.prefix}/available", "offline", qos=1, retain=True)
        client.max_inflight_messages_set(WINDOW)
        client.reconnect_delay_set(1, 30)
        client.on_connect, client.on_disconnect = self.connected, self.disconnected
        client.on_connect_fail, client.on_publish = self.refused, self.acknowledged
        return client

    def write(self, result):
        """Take note of a Result. Never waits for the broker. Raises InputError once this place has given up."""
        if self.broken:
            raise InputError(self.broken)
        stream = self.streams[result.stream.name]
        epoch = getattr(result, "epoch", None) or 0
        if epoch < stream.epoch:  # of a board that has lost the stream, and does not know it yet
            return
        stream.epoch = epoch
        if len(self.frames) == MOST_FRAMES:
            self.missed += 1
        self.frames.append((stream, stream.status.update(result)))

    def close(self):
        """End the objects, tell that the streams are offline, and wait up to CLOSING seconds for the broker to have
        it all. May be called again."""
        if self.ending.is_set():
            return
        self.ending.set()
        self.wake.set()
        self.worker.join(2 * CLOSING)
        left = len(self.events) + self.lost - self.said + max(0, self.handed - self.sent)
        if left:
            running.say(f"{self.name}: {left} messages could not be sent.", sys.stderr)
        if self.missed:
            running.say(f"{self.name}: {self.missed} frames came too fast to be looked at.", sys.stderr)
        self.client.disconnect()
        stopping = threading.Thread(target=self.client.loop_stop, daemon=True)  # which may wait for a handshake
        stopping.start()
        stopping.join(2)

    def work(self):
        try:
            due = 0
            while not self.ending.is_set():
                self.wake.wait(TICK)
                self.wake.clear()
                self.look()
                if time.perf_counter() >= due:
                    due = time.perf_counter() + STATE
                    self.tell()
                self.send()
            self.look()
            for stream in self.streams.values():
                self.queue(stream.objects.end(), stream.status.newest)
            self.tell(ended=True)
            until = time.perf_counter() + CLOSING
            while time.perf_counter() < until and (self.events or self.handed > self.sent or self.untold()):
                self.send()
                self.wake.wait(TICK)
                self.wake.clear()
        except Exception:  # a fault of ours, or detections of a user's own: the streams go on without the broker
            self.broken = f"--mqtt: {traceback.format_exc().rstrip()}"
            self.hand(f"{self.prefix}/available", "offline", True)

    def look(self):
        """Follow the frames that have come. With a stream that has ended, its objects end."""
        ended = [stream for stream in self.streams.values() if stream.status.state == "ended"]  # no more will come
        while self.frames:
            stream, frame = self.frames.popleft()
            self.queue(stream.objects.follow(frame), frame)
        for stream in ended:
            self.queue(stream.objects.end(), stream.status.newest)

    def queue(self, events, frame):
        """Number the events; an id never comes twice, so that one delivered again is known by it."""
        for event in events:
            self.number += 1
            if len(self.events) == MOST_EVENTS:
                self.events.popleft()
                self.lost += 1
            event = {"id": f"{self.run}-{self.number:09d}", **origin(frame), **event}
            self.events.append(json.dumps(event, ensure_ascii=False))

    def tell(self, ended=False):
        self.wanted[f"{self.prefix}/available"] = "offline" if ended else "online"
        for stream in self.streams.values():
            stream.tell(ended)

    def untold(self):
        return [topic for topic, payload in list(self.wanted.items()) if self.told.get(topic) != payload]

    def send(self):
        """Hand over what the window has room for: events and states in turn, so that neither waits for the other."""
        states = collections.deque(self.untold())
        while self.events or states:
            if self.events and self.may_hand():
                self.hand(f"{self.prefix}/events", self.events.popleft(), False)
            if states and self.may_hand():
                topic = states.popleft()
                self.told[topic] = self.wanted[topic]
                self.hand(topic, self.told[topic], True)
            if not self.may_hand():
                return

    def may_hand(self):
        return self.open and self.sent >= self.resent and self.handed - self.sent < WINDOW

    def hand(self, topic, payload, retain):
        self.handed += 1
        # QoS 1 for all: of QoS 0, which nobody acknowledges, a broker that hangs would let any number pile up in paho.
        self.client.publish(topic, payload.encode("utf-8", "replace"), qos=1, retain=retain)

    # What follows is called by paho's thread.

    def acknowledged(self, client, userdata, mid, reason, properties):
        self.sent += 1
        self.wake.set()

    def connected(self, client, userdata, flags, reason, properties):
        if reason.is_failure:
            hint = ": RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD?" if reason.value in (134, 135) else ""
            self.away(f"refuses the connection ({str(reason).lower()}){hint}")
            return
        self.told.clear()  # a broker that was restarted may have forgotten all
        self.resent = self.handed  # paho sends again what is not acknowledged; anything new must not overtake it
        self.open = True
        if self.gone is not None:
            lost, self.said = self.lost - self.said, self.lost
            said = f", {lost} events could not be kept" if lost else ""
            running.say(f"{self.name}: came back after {time.perf_counter() - self.gone:.0f} s{said}.", sys.stderr)
            self.gone = None
        self.wake.set()

    def refused(self, client, userdata):
        self.away(f"cannot be reached ({sys.exc_info()[1]})")  # paho calls it where it handles the exception

    def disconnected(self, client, userdata, flags, reason, properties):
        self.open = False
        if not self.ending.is_set():
            self.away("went away")

    def away(self, what):
        if self.gone is None:
            self.gone = time.perf_counter()
            running.say(f"{self.name}: {what}, trying again.", sys.stderr)


class _Stream:
    """What the broker is told of one stream."""

    def __init__(self, stream, broker):
        self.status, self.broker = Status(stream), broker
        taken = {f"{broker.prefix}/{name}" for name in ("available", "events")}
        taken |= {other.topic for other in broker.streams.values()}
        topic = self.topic = f"{broker.prefix}/{level(stream.name)}"
        number = 2
        while self.topic in taken:
            self.topic, number = f"{topic}_{number}", number + 1
        self.node = slug(self.topic)
        self.objects, self.epoch = Objects(f"{broker.run}-{self.node}"), 0
        self.entities = set()  # topics below the stream's that ever had a value
        self.discover("available", "binary_sensor", name="delivers", state_topic=f"{self.topic}/available",
                      payload_on="online", payload_off="offline", device_class="connectivity",
                      entity_category="diagnostic")
        self.discover("fps", "sensor", name="FPS", state_topic=f"{self.topic}/state", unit_of_measurement="FPS",
                      value_template="{{ value_json.fps }}", state_class="measurement", entity_category="diagnostic")

    def tell(self, ended=False):
        """Bring what is retained up to date: the state as JSON, and each counter as a number of its own."""
        state, wanted = self.status.json(), self.broker.wanted
        if ended:
            zones = state["zones"] and {zone: {} for zone in state["zones"]}
            state.update(fps=0.0, state="ended", objects={}, zones=zones)
        wanted[f"{self.topic}/available"] = "online" if state["state"] == "running" else "offline"
        wanted[f"{self.topic}/state"] = json.dumps({"stream": self.status.stream.name, **state}, ensure_ascii=False)
        counters = {**totals("", "objects", state["objects"])}
        for zone, counts in (state["zones"] or {}).items():
            counters.update(totals(f"{level(zone)}/", zone, counts))
        for line, directions in (state["lines"] or {}).items():
            counters.update({f"{level(line)}/{way}": (f"{line} {way}", sum(counts.values()), "total_increasing")
                             for way, counts in directions.items()})
        for name, (called, _, kind) in counters.items():
            if name not in self.entities:
                self.entities.add(name)
                self.discover(name, "sensor", name=called, state_topic=f"{self.topic}/{name}", state_class=kind)
        for name in self.entities:
            wanted[f"{self.topic}/{name}"] = str(counters[name][1] if name in counters else 0)

    def discover(self, below, component, **config):
        """Announce an entity to Home Assistant, in the form of a message for each, which every version of it reads."""
        topics = [f"{self.broker.prefix}/available"] + [f"{self.topic}/available"] * (component == "sensor")
        config.update(unique_id=f"{self.node}_{slug(below)}", availability=[{"topic": topic} for topic in topics],
                      availability_mode="all", qos=1, origin={"name": "rknnpool"},
                      device={"identifiers": [self.node], "name": self.status.stream.name, "manufacturer": "rknnpool"})
        topic = f"{DISCOVERY}/{component}/{self.node}/{slug(below)}/config"
        self.broker.wanted[topic] = json.dumps(config, ensure_ascii=False)


def totals(below, called, counts):
    """Counters of a stream or zone, {topic: (name, value, Home Assistant's state_class)}: "all", and one a class."""
    prefix = f"{called} " if below else ""
    counters = {f"{below}{level(name)}": (f"{prefix}{name}", count, "measurement") for name, count in counts.items()
                if below or level(name) not in ("available", "state")}
    counters[f"{below}all"] = f"{called} all" if below else "all objects", sum(counts.values()), "measurement"
    return counters
