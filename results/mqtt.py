"""Publishes results to an MQTT broker: retained counters, events of objects, their snapshots, and
Home Assistant's discovery messages.

    sink = MQTT("mqtt://127.0.0.1:1883/rknnpool", streams)
    sink.write(result)     # a Result of any of the streams, called by its thread; returns at once
    sink.close()

Needs the package paho-mqtt. User and password are read from the environment variables
RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD. docs/results.md lists the topics.
"""
from __future__ import annotations

import collections
import hashlib
import json
import os
import ssl
import sys
import threading
import time
import traceback
from typing import Any, Deque, Dict, Iterable, List, Optional, Tuple

from results.console import say
from results.mqtt_owner import take_program_id
from results.mqtt_topics import Payload, StreamTopics, available_topic, parse_url
from results.status import origin
from vision.errors import InputError
from vision.packages import pip_install

MAX_EVENTS = 10000   # kept while the broker is away, about 1 KB each; then the oldest is discarded
MAX_UNACKNOWLEDGED = 50  # messages given to paho that the broker has not acknowledged
POLL_SECONDS = 0.1   # between two looks at new results
STATE_SECONDS = 1.0  # between two states of a stream
# The program notices a hung broker after two keep-alive intervals. The broker notices a dead
# program after one and a half.
KEEPALIVE_SECONDS = 15
CLOSE_SECONDS = 5    # how long close() waits for acknowledgements


class MQTT:
    """A sink that publishes to an MQTT broker.

    url: as mqtt_topics.parse_url() describes; streams: the Streams whose Results will be written,
    with `objects` for the events; snapshots: the snapshots.Snapshots to publish, or None.

    A broker that is unreachable, hangs or is slow does not delay write(). Counters:
    `acknowledged` messages, `handed_over` messages, and `lost_events` that were discarded. Raises
    InputError for an invalid URL or environment, and if paho-mqtt is missing.
    """

    def __init__(self, url: str, streams: Iterable[Any], snapshots: Any = None):
        host, port, tls, self.prefix = parse_url(url)
        shown = f"[{host}]" if ":" in host else host  # an IPv6 address
        self.label = f"{'mqtts' if tls else 'mqtt'}://{shown}:{port}"  # precedes messages
        self.run_id = f"{int(time.time()):x}{os.urandom(2).hex()}"
        streams = list(streams)
        names = sorted(stream.name for stream in streams)
        self.program, self.lock = take_program_id(url, *names)
        self.available = available_topic(self.prefix, self.program)
        self.client = self._new_client(tls)
        self.snapshots = snapshots
        # stream, origin(), event: from the streams' threads to this sink's, which never waits
        self.new_events: Deque[Tuple[StreamTopics, Dict[str, Any], Dict[str, Any]]] = (
            collections.deque())
        self.events: Deque[Tuple[StreamTopics, str]] = collections.deque()
        self.messages: Deque[Tuple[str, str]] = collections.deque()  # received: topic, payload
        # with those of the streams: what the broker has
        self.retained: Dict[str, Payload] = {self.available: "online"}
        self.published: Dict[str, Payload] = {}  # what was handed over since the last connection
        self.streams = {
            stream.name: StreamTopics(stream, self.prefix, self.program, snapshots is not None)
            for stream in streams}
        self.acknowledged = self.handed_over = self.lost_events = 0
        self.last_event = self.reported_lost = 0
        self.connected = self.reconnected = False
        # After a new connection paho repeats what was not acknowledged. Nothing new is handed over
        # before `acknowledged` has reached this number: it would overtake the repeated messages.
        self.repeated_until = 0
        self.away_since: Optional[float] = None
        self.broken: Optional[str] = None  # why this sink has stopped working
        self.wake, self.closing = threading.Event(), threading.Event()
        self.client.connect_async(host, port, keepalive=KEEPALIVE_SECONDS)
        self.client.loop_start()
        self.worker = threading.Thread(target=self._work, name="rknnpool-mqtt", daemon=True)
        self.worker.start()

    def _new_client(self, tls: bool) -> Any:
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise InputError("--mqtt needs the package paho-mqtt, version 2 or later: "
                             f"{pip_install('paho-mqtt>=2')}") from None
        client_id = f"rknnpool-{hashlib.sha256(self.program.encode()).hexdigest()[:12]}"
        client = Client(CallbackAPIVersion.VERSION2, client_id)
        user = os.environ.get("RKNNPOOL_MQTT_USER")
        password = os.environ.get("RKNNPOOL_MQTT_PASSWORD")
        if password and not user:
            raise InputError("--mqtt: RKNNPOOL_MQTT_PASSWORD is set, but RKNNPOOL_MQTT_USER is "
                             "not.")
        if user:
            client.username_pw_set(user, password)
        if tls:
            client.tls_set_context(ssl.create_default_context())  # SSL_CERT_FILE names a private CA
        client.will_set(self.available, "offline", qos=1, retain=True)
        client.max_inflight_messages_set(MAX_UNACKNOWLEDGED)
        client.reconnect_delay_set(1, 30)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_connect_fail, client.on_publish = self._on_connect_fail, self._on_publish
        client.on_message = self._on_message
        return client

    def write(self, result: Any) -> None:
        """Queue a Result. Never waits for the broker. Raises InputError if this sink is broken."""
        if self.broken:
            raise InputError(self.broken)
        stream = self.streams[result.stream.name]
        epoch = getattr(result, "epoch", None) or 0
        if epoch < stream.epoch:  # from a board that no longer serves the stream
            return
        stream.epoch = epoch
        stream.status.update(result)
        for event in result.events:
            self.new_events.append((stream, origin(result), event))

    def close(self) -> None:
        """End all objects, publish that the streams are offline, and disconnect.

        Waits up to CLOSE_SECONDS for the broker's acknowledgements. May be called again.
        """
        if self.closing.is_set():
            return
        self.closing.set()
        self.wake.set()
        self.worker.join(2 * CLOSE_SECONDS)
        unsent = len(self.events) + max(0, self.handed_over - self.acknowledged)
        unsent += self.lost_events - self.reported_lost
        if unsent:
            say(f"{self.label}: {unsent} messages were not sent.", sys.stderr)
        self.client.disconnect()
        # loop_stop() may wait for a TLS handshake.
        stopping = threading.Thread(target=self.client.loop_stop, daemon=True)
        stopping.start()
        stopping.join(2)
        if self.lock:
            self.lock.close()

    # ---- the sink's own thread ----

    def _work(self) -> None:
        try:
            next_state = 0.0
            while not self.closing.is_set():
                self._wait()
                self._agree()
                self._process_events()
                self._update_snapshots()
                if time.perf_counter() >= next_state:
                    next_state = time.perf_counter() + STATE_SECONDS
                    self._update_retained()
                self._send()
            self._process_events(ended=True)
            self._update_snapshots()
            self._update_retained(ended=True)
            deadline = time.perf_counter() + CLOSE_SECONDS
            while time.perf_counter() < deadline and self._has_unsent():
                self._agree()
                self._send()
                self._wait()
        except Exception:  # a bug here or in user-defined detections must not end the streams
            self.broken = f"--mqtt: {traceback.format_exc().rstrip()}"
            self._publish(self.available, "offline", retain=True)

    def _wait(self) -> None:
        self.wake.wait(POLL_SECONDS)
        self.wake.clear()

    def _has_unsent(self) -> bool:
        in_flight = self.handed_over > self.acknowledged
        asking = any(stream.owner.state == "asking" for stream in self.streams.values())
        return bool(self.events or in_flight or asking or self.unpublished())

    def _agree(self) -> None:
        """Agree with other programs on who publishes the streams, and correct what the broker says
        of this one."""
        now = time.perf_counter()
        if self.reconnected:
            self.reconnected = False
            for stream in self.streams.values():
                stream.owner.ask(now)
        while self.messages:
            topic, text = self.messages.popleft()
            if topic == self.available and text != self.retained[topic]:
                self.published.pop(topic, None)  # such as the last will of an old connection
            for stream in self.streams.values():
                stream.receive(topic, text, now)
        for stream in self.streams.values():
            self._take_or_leave(stream, now)

    def _take_or_leave(self, stream: StreamTopics, now: float) -> None:
        """Take the next step towards publishing a stream, and say who does if that changes."""
        owner = stream.owner
        owner.step(now)
        if owner.pending and self._has_room():
            self._publish(owner.topic, f"{owner.pending} {self.program}", retain=False)
            owner.sent(now)
        publisher = {"own": self.program, "taken": owner.other}.get(owner.state, stream.publisher)
        if publisher == stream.publisher:
            return
        name = stream.status.stream.name
        if publisher != self.program:
            say(f"{self.label}: {publisher} already publishes a stream named {name} below "
                f"{self.prefix}, so this program does not publish it until that one ends. Give the "
                "stream another name (NAME=SOURCE) or each program its own prefix.", sys.stderr)
        elif stream.publisher is not None:
            say(f"{self.label}: {name} is published now.", sys.stderr)
        stream.publisher = publisher
        for topic in stream.retained:  # the other program has published there
            self.published.pop(topic, None)

    def _process_events(self, ended: bool = False) -> None:
        """Take the new events. The objects of an ended stream end; ended: all streams have."""
        # Before the events are taken: a stream that has ended adds no more.
        streams = [each for each in self.streams.values()
                   if ended or each.status.state == "ended"]
        while self.new_events:
            self._add_event(*self.new_events.popleft())
        for stream in streams:
            for event in stream.status.stream.objects.end():
                self._add_event(stream, origin(stream.status.newest), event)

    def _add_event(self, stream: StreamTopics, board: Dict[str, Any], event: Dict[str, Any]
                   ) -> None:
        """Queue an event. It gets a unique id, so that subscribers notice a repeated message.
        board: what origin() returned."""
        self.last_event += 1
        if len(self.events) == MAX_EVENTS:
            self.events.popleft()
            self.lost_events += 1
        event = {"id": f"{self.run_id}-{self.last_event:09d}", **board, **event}
        self.events.append((stream, json.dumps(event, ensure_ascii=False)))

    def _update_snapshots(self) -> None:
        """Take the newest snapshot of each stream and class."""
        latest = self.snapshots.latest if self.snapshots else {}
        for (name, label), jpeg in latest.items():
            self.streams[name].set_snapshot(label, jpeg)

    def _update_retained(self, ended: bool = False) -> None:
        self.retained[self.available] = "offline" if ended else "online"
        for stream in self.streams.values():
            stream.update(ended)

    def unpublished(self) -> List[Tuple[str, Payload]]:
        """Return the topics whose retained payload was not handed over yet, and the payloads."""
        ours = [stream.retained for stream in self.streams.values() if stream.owner.state == "own"]
        return [(topic, payload) for retained in [self.retained, *ours]
                for topic, payload in list(retained.items())
                if self.published.get(topic) != payload]

    def _next_event(self) -> Optional[str]:
        """The next event to send. Discards those of streams that another program publishes, and
        waits while that is not known."""
        while self.events and self.events[0][0].owner.state == "taken":
            self.events.popleft()
        if self.events and self.events[0][0].owner.state == "own":
            return self.events[0][1]
        return None

    def _send(self) -> None:
        """Hand over messages while there is room: an event and a state in turn, so that neither
        delays the other."""
        unpublished = collections.deque(self.unpublished())
        while self._has_room():
            event = self._next_event()
            if event is not None:
                self._publish(f"{self.prefix}/events", event, retain=False)
                self.events.popleft()
            if unpublished and self._has_room():
                topic, payload = unpublished.popleft()
                self.published[topic] = payload
                self._publish(topic, payload, retain=True)
            elif event is None:
                return

    def _has_room(self) -> bool:
        return (self.connected and not self.reconnected and self.acknowledged >= self.repeated_until
                and self.handed_over - self.acknowledged < MAX_UNACKNOWLEDGED)

    def _publish(self, topic: str, payload: Payload, retain: bool) -> None:
        self.handed_over += 1
        data = payload if isinstance(payload, bytes) else payload.encode("utf-8", "replace")
        # QoS 1, because paho would queue messages of QoS 0 without limit for a hung broker.
        self.client.publish(topic, data, qos=1, retain=retain)

    # ---- callbacks, in paho's thread ----

    def _on_publish(self, client, userdata, mid, reason, properties) -> None:
        self.acknowledged += 1
        self.wake.set()

    def _on_message(self, client, userdata, message) -> None:
        self.messages.append((message.topic, message.payload.decode("utf-8", "replace")))
        self.wake.set()

    def _on_connect(self, client, userdata, flags, reason, properties) -> None:
        if reason.is_failure:
            login = reason.value in (134, 135)  # bad user name or password, not authorized
            hint = ". Check RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD" if login else ""
            self._report_away(f"the broker refused the connection ({str(reason).lower()}){hint}")
            return
        self.published.clear()  # a restarted broker may have lost the retained messages
        self.repeated_until = self.handed_over
        topics = [topic for stream in self.streams.values() for topic in stream.subscriptions]
        client.subscribe([(topic, 1) for topic in [self.available, *topics]])
        self.reconnected = True  # before `connected`: nothing is sent before _agree() asks again
        self.connected = True
        if self.away_since is not None:
            seconds = time.perf_counter() - self.away_since
            lost, self.reported_lost = self.lost_events - self.reported_lost, self.lost_events
            lost_text = f"; {lost} events were discarded" if lost else ""
            say(f"{self.label}: connected again after {seconds:.0f} s{lost_text}.", sys.stderr)
            self.away_since = None
        self.wake.set()

    def _on_connect_fail(self, client, userdata) -> None:
        # paho calls this inside its exception handler
        self._report_away(f"cannot connect ({sys.exc_info()[1]})")

    def _on_disconnect(self, client, userdata, flags, reason, properties) -> None:
        self.connected = False
        if not self.closing.is_set():
            self._report_away("connection lost")

    def _report_away(self, what: str) -> None:
        if self.away_since is None:
            self.away_since = time.perf_counter()
            say(f"{self.label}: {what}; retrying.", sys.stderr)
