"""A web page that shows every stream live; the same pictures and numbers for other programs.

    sink = Web("8000", streams)     # http://127.0.0.1:8000/
    sink.write(result)              # a Result of any of the streams, called by its thread
    sink.close()

    /            the page
    /NAME.mjpg   a stream as Motion JPEG, for VLC or Home Assistant
    /NAME.jpg    its newest picture
    /status.json rates, counts, what limits the rate, NPU load and temperatures
    /events      the lines of --json as server-sent events
    /setup.json  lines, zones, confidence and classes of each stream; POST changes them
    /snapshots.json, /snapshots/FILE   the newest snapshots

Needs the package aiohttp. On a host that other machines can reach, a password is required in the
environment variable RKNNPOOL_WEB_PASSWORD.
"""
from __future__ import annotations

import asyncio
import collections
import json
import logging
import sys
import threading
import time
import traceback
from types import SimpleNamespace
from typing import Any, Deque, FrozenSet, Iterable, List, Optional, Tuple

import cv2

from results.access import Access, Connection, parse_address
from results.console import say
from results.jsonl import as_dict
from results.status import Status, board
from vision.errors import InputError
from vision.packages import missing_package

MAX_FPS = 15         # pictures per second of one stream
MAX_TOTAL_FPS = 200  # pictures per second, about, to all clients together
MAX_WIDTH = 1280     # pixels; wider pictures are scaled down
JPEG_QUALITY = 80
MAX_RECORDS = 1000   # results that wait to be written as JSON for /events


def encode_jpeg(picture: Any) -> Optional[bytes]:
    """Encode a picture as JPEG, at most MAX_WIDTH pixels wide. None if it is not a picture."""
    try:
        h, w = picture.shape[:2]
        if w > MAX_WIDTH:
            size = MAX_WIDTH, max(1, round(h * MAX_WIDTH / w))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        return cv2.imencode(".jpg", picture, quality)[1].tobytes()
    except (cv2.error, AttributeError, TypeError, ValueError):
        return None


class Web:
    """A sink that shows results on a web page.

    address: [HOST:]PORT, port 0 for any free port; streams: the Streams whose Results will be
    written; names: further host names under which the page may be reached; snapshots,
    setup: the results.snapshots.Snapshots to show, and the results.setup.Setup that the page may
    change, or None; readonly: refuse changes. `url` is the address of the page.

    A thread draws and encodes each picture once for all clients, and only while somebody watches
    the stream. Raises InputError if the address cannot be used, if a password is required, or if
    aiohttp is missing.
    """

    display = True

    def __init__(self, address: Any, streams: Iterable[Any], names: Iterable[str] = (),
                 snapshots: Any = None, setup: Any = None, readonly: bool = False):
        host, port = parse_address(address)
        try:
            from results.routes import Routes
        except ImportError as error:
            raise InputError(missing_package("--web", error)) from None
        self.access = Access(host, names)
        self.snapshots, self.setup, self.readonly = snapshots, setup, readonly
        self.feeds = {stream.name: Feed(stream) for stream in streams}
        self.all_feeds: List[Pictures] = [each for feed in self.feeds.values()
                                          for each in (feed, feed.plain)]
        self.routes = Routes(self, self.access)
        # Frozen sets of routes.Client: the server's thread replaces them, other threads read them.
        self.pages: FrozenSet[Any] = frozenset()          # WebSockets
        self.event_clients: FrozenSet[Any] = frozenset()  # of /events
        self.records: Deque[SimpleNamespace] = collections.deque(maxlen=MAX_RECORDS)
        self.watched, self.closing = threading.Event(), threading.Event()
        self.broken: Optional[str] = None        # why this sink has stopped working
        self.listen_error: Optional[str] = None
        self.loop, started = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(host, port, started),
                                       name="rknnpool-web", daemon=True)
        self.thread.start()
        started.wait()
        if self.listen_error:
            raise InputError(f"--web {address}: cannot listen ({self.listen_error}).")
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        self.encoder = threading.Thread(target=self._encode, name="rknnpool-jpeg", daemon=True)
        self.encoder.start()
        say(f"Web page: {self.url}", sys.stderr)

    def write(self, result: Any) -> None:
        """Show a Result. Returns at once. Raises InputError if this sink is broken."""
        if self.broken:
            raise InputError(self.broken)
        feed = self.feeds[result.stream.name]
        record = feed.status.update(result)
        if result.error is None:
            feed.result = feed.plain.result = result
        if self.event_clients:
            self.records.append(record)

    def close(self) -> None:
        """End every connection. May be called again."""
        if not self.closing.is_set():
            self.closing.set()
            self.watched.set()
            self.encoder.join(5)
            self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._end()))
            self.thread.join(5)

    def status(self) -> dict:
        """Return the content of /status.json."""
        streams = {name: feed.status.json() for name, feed in self.feeds.items()}
        meters = [getattr(feed.stream, "meter", None) for feed in self.feeds.values()]
        meter = meters[0] if meters else None  # one meter measures all streams
        return {"streams": streams,
                "limit": meter.recent_limit() if meter else "",
                "editable": self.setup is not None and not self.readonly,
                "snapshots": None if self.snapshots is None else self.snapshots.count,
                **board()}

    # ---- the encoder's thread ----

    def _encode(self) -> None:
        """While somebody watches: encode the newest picture of each watched stream."""
        try:
            while not self.closing.is_set():
                self.watched.wait()
                started = time.perf_counter()
                encoded = [(feed, self._new_jpeg(feed)) for feed in self.all_feeds]
                pictures = [(feed, jpeg) for feed, jpeg in encoded if jpeg is not None]
                events = self._new_events()
                if pictures or events:
                    self.loop.call_soon_threadsafe(self._deliver, pictures, events)
                clients = sum(len(feed.clients) for feed in self.all_feeds)
                period = max(1 / MAX_FPS, clients / MAX_TOTAL_FPS)
                self.closing.wait(max(0.002, started + period - time.perf_counter()))
        except Exception:  # a bug here or in user-defined detections must not end the streams
            self.broken = f"--web: {traceback.format_exc().rstrip()}"

    def _new_jpeg(self, feed: Pictures) -> Optional[bytes]:
        """Encode the newest picture of a feed. None if nobody watches or it is encoded already."""
        result = feed.result
        if not feed.clients or result is None or result is feed.encoded:
            return None
        feed.encoded = result
        jpeg = encode_jpeg(feed.picture_of(result))
        if jpeg is None and not feed.warned:
            feed.warned = True
            say(f"{feed.name}: myFunc does not return a picture, so the page shows none.",
                sys.stderr)
        return jpeg

    def _new_events(self) -> List[bytes]:
        """Write the waiting records as server-sent events."""
        events = []
        while self.records:
            record = json.dumps(as_dict(self.records.popleft()))
            events.append(f"data: {record}\n\n".encode())
        return events

    # ---- the server's thread ----

    def _serve(self, host: str, port: int, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(lambda loop, context: None)
        try:
            self.loop.run_until_complete(self._listen(host, port))
        except OSError as error:
            self.listen_error = error.strerror or str(error)
            self.loop.close()
            return
        finally:
            started.set()
        self.loop.create_task(self._send_status())
        self.loop.run_forever()
        self.loop.close()

    async def _listen(self, host: str, port: int) -> None:
        from aiohttp import web
        quiet = logging.getLogger("rknnpool.web")  # invalid requests are not reported
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False
        self.server = web.Server(self.routes.answer, access_log=None, logger=quiet,
                                 lingering_time=0, max_line_size=4096, max_field_size=4096)
        self.listening = await self.loop.create_server(
            lambda: Connection(self.access, self.server(), self.loop), host, port)
        self.port = self.listening.sockets[0].getsockname()[1]
        self.access.cookie += str(self.port)  # all ports of a host share their cookies

    async def _end(self) -> None:
        self.listening.close()
        for client in self.pages | self.event_clients:
            client.wake.set()  # it sees that the server is closing
        for connection in list(self.access.connections.values()):
            connection.set_timeout(1)
        await self.server.shutdown(1)
        self.loop.stop()

    async def _send_status(self) -> None:
        """Send the status to every page, once per second."""
        while not self.closing.is_set():
            if self.pages:
                try:
                    status = json.dumps(self.status())
                except Exception:  # as in _encode(); a page with outdated numbers would mislead
                    self.broken = f"--web: {traceback.format_exc().rstrip()}"
                    break
                for client in self.pages:
                    client.status = status
                    client.wake.set()
            await asyncio.sleep(1)

    def _deliver(self, pictures: List[Tuple[Pictures, bytes]], events: List[bytes]) -> None:
        to_wake = set(self.event_clients) if events else set()
        for feed, jpeg in pictures:
            feed.keep(jpeg)
            to_wake |= feed.clients
        for client in self.event_clients:
            client.events.extend(events)
        for client in to_wake:
            client.wake.set()

    def watch(self, client: Any, names: Iterable[str], plain: Iterable[str] = ()) -> None:
        """Let a client watch the streams with these names, and no others. plain: those that it
        watches without lines and zones."""
        for feed in self.feeds.values():
            feed.watch(client, feed.name in names)
            feed.plain.watch(client, feed.name in plain)
        if self.event_clients or any(feed.clients for feed in self.all_feeds):
            self.watched.set()
        elif not self.closing.is_set():
            self.watched.clear()


class Pictures:
    """The pictures of one stream: the newest result, the clients, and the encoded picture."""

    def __init__(self, stream: Any):
        self.name, self.stream = stream.name, stream
        self.result: Any = None                     # the newest
        self.clients: FrozenSet[Any] = frozenset()  # watching
        self.number = 0                             # of the encoded picture
        self.warned = False                         # that the result has no picture
        self.forget()

    def picture_of(self, result: Any) -> Any:
        """The picture of a result that is to be encoded."""
        return result.picture

    def watch(self, client: Any, watches: bool) -> None:
        """Add or remove a client."""
        if watches and not self.clients:
            self.forget()
        self.clients = self.clients | {client} if watches else self.clients - {client}

    def forget(self) -> None:
        """Drop the encoded picture. It is outdated when the first client begins to watch."""
        self.encoded: Any = None  # the Result that was encoded last
        self.jpeg: Optional[bytes] = None
        self.message: Optional[bytes] = None     # for WebSockets
        self.mjpeg_part: Optional[bytes] = None  # for Motion JPEG

    def keep(self, jpeg: bytes) -> None:
        """Store an encoded picture, also as a WebSocket message and as a Motion JPEG part."""
        name = self.name.encode("utf-8", "replace")
        self.number += 1
        self.jpeg, self.message = jpeg, len(name).to_bytes(2, "big") + name + jpeg
        self.mjpeg_part = (b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
                           b"%s\r\n" % (len(jpeg), jpeg))


class PlainPictures(Pictures):
    """The pictures of one stream without lines and zones, for a page that edits them."""

    def picture_of(self, result: Any) -> Any:
        """The picture without lines and zones; with them if it was drawn before the first client
        came."""
        drawn = result.picture
        plain = getattr(result, "plain", None)
        return drawn if plain is None else plain

    def watch(self, client: Any, watches: bool) -> None:
        """Add or remove a client. Without clients, no plain pictures are made."""
        super().watch(client, watches)
        self.stream.keeps_plain = bool(self.clients)


class Feed(Pictures):
    """The pictures of one stream, and its status."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.status, self.plain = Status(stream), PlainPictures(stream)
