"""Publishes results to an MQTT broker: retained counters, events of objects, their snapshots, and
Home Assistant's discovery messages.

    sink = MQTT("mqtt://127.0.0.1:1883/rknnpool", streams)
    sink.write(result)     # a Result of any of the streams, called by its thread; returns at once
    sink.close()

docs/results.md lists the topics.
"""
from __future__ import annotations

import collections
import json
import os
import threading
import time
import traceback
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, Tuple

from results.mqtt_connection import Connection, parse_url
from results.mqtt_owner import take_program_id
from results.mqtt_stream import PublishedStream, Retained, topic_level
from results.status import origin
from vision.errors import InputError

MAX_EVENTS = 10000   # kept while the broker is away, about 1 KB each; then the oldest is discarded
STEP_SECONDS = 0.05  # between two looks at what is to be done; to wake up for each event costs more
STATE_SECONDS = 1.0  # between two states of a stream
CLOSE_SECONDS = 5    # how long close() waits for acknowledgements


class EventQueue:
    """The events that wait to be sent, the oldest first."""

    def __init__(self) -> None:
        self.run_id = f"{int(time.time()):x}{os.urandom(2).hex()}"
        self.count = 0
        self.lost = 0  # discarded because there were too many, since this was last reported
        self.waiting: Deque[Tuple[PublishedStream, str]] = collections.deque()

    def add(self, stream: PublishedStream, board: Dict[str, Any], events: List[Any]) -> None:
        """Add events. Each gets a unique id, so that subscribers notice a repeated message.
        board: what origin() returned."""
        for event in events:
            self.count += 1
            if len(self.waiting) == MAX_EVENTS:
                self.waiting.popleft()
                self.lost += 1
            event = {"id": f"{self.run_id}-{self.count:09d}", **board, **event}
            self.waiting.append((stream, json.dumps(event, ensure_ascii=False)))

    def next(self) -> Optional[str]:
        """Take the next event to send. Discards those of streams that another program publishes,
        and waits while that is not known: so new events come after those that are repeated when a
        connection was lost."""
        while self.waiting and self.waiting[0][0].owner.is_taken:
            self.waiting.popleft()
        if self.waiting and self.waiting[0][0].owner.is_own:
            return self.waiting.popleft()[1]
        return None


class MQTT:
    """A sink that publishes to an MQTT broker.

    url: as mqtt_connection.parse_url() describes; streams: the Streams whose Results will be
    written, with `objects` for the events; snapshots: the snapshots.Snapshots to publish, or None.

    A broker that is unreachable, hangs or is slow does not delay write(). A thread publishes; other
    threads use call_soon(). Raises InputError for an invalid URL or environment, and if paho-mqtt
    is missing.
    """

    def __init__(self, url: str, streams: Iterable[Any], snapshots: Any = None):
        *_, self.prefix = parse_url(url)
        streams, self.snapshots = list(streams), snapshots
        program, self.lock = take_program_id(url, *sorted(stream.name for stream in streams))
        self.available = f"{self.prefix}/available/{topic_level(program)}"
        self.streams = {stream.name: PublishedStream(stream, self.prefix, program, self.available,
                                                     snapshots is not None) for stream in streams}
        self.events, self.retained = EventQueue(), Retained()  # retained: of the program itself
        self.retained.set(self.available, "online")
        self.broken: Optional[str] = None  # why this sink has stopped working
        self.calls: Deque[Tuple[Callable[..., None], Any]] = collections.deque()
        self.connection = Connection(url, program, self.available, self.call_soon,
                                     self._connected, self._receive)
        self.closing = threading.Event()
        self.worker = threading.Thread(target=self._work, name="rknnpool-mqtt", daemon=True)
        self.worker.start()

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have this sink's thread call a function."""
        self.calls.append((function, arguments))

    def write(self, result: Any) -> None:
        """Queue a Result. Never waits for the broker. Raises InputError if this sink is broken."""
        if self.broken:
            raise InputError(self.broken)
        stream = self.streams[result.stream.name]
        stream.status.update(result)
        if result.events:
            self.call_soon(self.events.add, stream, origin(result), result.events)

    def close(self) -> None:
        """End all objects, publish that the streams are offline, and disconnect.

        Waits up to CLOSE_SECONDS for the broker's acknowledgements. May be called again.
        """
        if self.closing.is_set():
            return
        self.closing.set()
        self.worker.join(2 * CLOSE_SECONDS)
        unsent = len(self.events.waiting) + self.connection.in_flight + self.events.lost
        if unsent and not self.broken:
            self.connection.report(f"{unsent} messages were not sent.")
        self.connection.close()
        self.lock.close()

    @property
    def has_unsent(self) -> bool:
        """Whether there are messages that the broker has not acknowledged."""
        retained = [each.retained for each in self.streams.values() if not each.owner.is_taken]
        return bool(self.events.waiting or self.connection.in_flight
                    or any(each.unsent for each in [self.retained, *retained]))

    # ---- the sink's own thread ----

    def _work(self) -> None:
        try:
            next_state = 0.0
            while not self.closing.is_set():
                if time.perf_counter() >= next_state:
                    next_state = time.perf_counter() + STATE_SECONDS
                    self._update()
                self._step()
            for stream in self.streams.values():
                stream.status.closed = True
            self.retained.set(self.available, "offline")
            self._update()
            self._step()
            deadline = time.perf_counter() + CLOSE_SECONDS
            while time.perf_counter() < deadline and self.has_unsent:
                self._step()
        except Exception:  # a bug here or in user-defined detections must not end the streams
            self.broken = f"--mqtt: {traceback.format_exc().rstrip()}"
            self.connection.publish(self.available, "offline", retain=True)

    def _update(self) -> None:
        for stream in self.streams.values():
            stream.update()

    def _step(self) -> None:
        """Do what is to be done now."""
        time.sleep(STEP_SECONDS)
        # Before the events are taken: a stream that has ended adds no more.
        ended = [stream for stream in self.streams.values() if stream.status.state == "ended"]
        while self.calls:
            function, arguments = self.calls.popleft()
            function(*arguments)
        for stream in ended:
            newest, objects = stream.status.newest, stream.status.stream.objects
            self.events.add(stream, origin(newest), objects.end())
        for (name, label), jpeg in (self.snapshots.latest if self.snapshots else {}).items():
            self.streams[name].set_snapshot(label, jpeg)
        for stream in self.streams.values():
            self._agree(stream)
        self._send()

    def _connected(self) -> None:
        """Begin anew: another program may publish a stream by now, and a restarted broker may have
        lost the retained messages."""
        self.connection.subscribe(self.available)
        self.retained.send_again()
        for stream in self.streams.values():
            self.connection.subscribe(*stream.subscriptions)
            stream.retained.send_again()
            stream.owner.ask(time.perf_counter())
        if self.events.lost:
            self.connection.report(f"{self.events.lost} events were discarded.")
            self.events.lost = 0

    def _receive(self, topic: str, text: str) -> None:
        if topic == self.available:
            self.retained.receive(topic, text)
        for stream in self.streams.values():
            stream.receive(topic, text, time.perf_counter())

    def _agree(self, stream: PublishedStream) -> None:
        """Agree with other programs on who publishes a stream, and say who does if that changes."""
        owner, name = stream.owner, stream.status.stream.name
        message = owner.step(time.perf_counter()) if self.connection.has_room else None
        if message:
            self.connection.publish(owner.topic, message)
        if owner.publisher == stream.publisher:
            return
        if owner.is_taken:
            self.connection.report(
                f"{owner.publisher} already publishes a stream named {name} below {self.prefix}, "
                "so this program does not publish it until that one ends. Give the stream another "
                "name (NAME=SOURCE) or each program its own prefix.")
        elif stream.publisher is not None:
            self.connection.report(f"{name} is published now.")
        stream.publisher = owner.publisher
        stream.retained.send_again()  # the other program may have published there

    def _send(self) -> None:
        """Publish while there is room: an event and a retained message in turn, so that neither
        delays the other."""
        own = [stream.retained for stream in self.streams.values() if stream.owner.is_own]
        while self.connection.has_room:
            event = self.events.next()
            if event:
                self.connection.publish(f"{self.prefix}/events", event)
            retained = next((each for each in [self.retained, *own] if each.unsent), None)
            if retained:
                self.connection.publish(*retained.take(), retain=True)
            if not event and not retained:
                return
