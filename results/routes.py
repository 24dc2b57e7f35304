"""The responses of the web server: the page, pictures, status, events, and the page's WebSocket."""
from __future__ import annotations

import asyncio
import base64
import collections
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Deque, Dict, Optional

from aiohttp import web

from results.access import RESPONSE_SECONDS, SETUP, Access

MAX_EVENTS = 1000      # that wait for one client of /events; then the oldest is discarded
PICTURE_SECONDS = 5    # how long a request for a single picture waits for one
SNAPSHOT = "/snapshots/"   # and the name of a file
MAX_SNAPSHOTS = 20     # that the page shows
MJPEG = "multipart/x-mixed-replace; boundary=frame"
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
           "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
           "Server": "rknnpool"}


class Client:
    """One connection that waits for pictures, the status or events. Used in the server's thread."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.status: Optional[str] = None  # JSON to be sent
        self.events: Deque[bytes] = collections.deque(maxlen=MAX_EVENTS)

    async def wait(self, seconds: float) -> None:
        """Wait until there is something to send, or until the time is over."""
        try:
            await asyncio.wait_for(self.wake.wait(), max(0, seconds))
        except asyncio.TimeoutError:
            pass
        self.wake.clear()


class Routes:
    """Answers requests. server: the Web whose streams are shown; access: its Access."""

    def __init__(self, server: Any, access: Access):
        self.server, self.access = server, access
        self.html = file_text("web.html")
        self.setup: Any = None
        if server.setup is not None:
            from results.setup_routes import SetupRoutes  # only here: it needs sqlite3
            self.setup = SetupRoutes(server.setup, server.feeds, server.readonly)
            for comment in ("// web_editor.js", "/* web_editor.css */"):
                name = comment.split()[1]
                self.html = self.html.replace(comment, file_text(name))
        inline = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", self.html, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in inline)
        hashes = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in digests)
        self.content_policy = (
            f"default-src 'none'; style-src {hashes}; script-src {hashes}; img-src blob: 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Check access to a request, and answer it."""
        connection = self.access.connections.get(request.transport)
        if connection is None:  # aborted in the meantime
            return text(400, "Connection closed.")
        connection.set_timeout(RESPONSE_SECONDS)
        refused, allowed = self.access.refusal(request), self.access.allows(request)
        if not allowed and "Authorization" in request.headers:
            await asyncio.sleep(1)  # slows down guessing
        response: web.StreamResponse
        if refused:
            response = text(*refused)
        elif not allowed:
            response = text(401, "Enter the password in RKNNPOOL_WEB_PASSWORD, with any user "
                                 "name.")
            response.headers["WWW-Authenticate"] = 'Basic realm="rknnpool", charset="UTF-8"'
        else:
            response = await self.route(request, connection)
        if not response.prepared:
            response.headers.update(HEADERS)
            response.force_close()  # one request per connection, so that no idle ones remain
        return response

    async def route(self, request: web.BaseRequest, connection: Any) -> web.StreamResponse:
        path, is_get = request.path, request.method == "GET"
        if path == "/":
            return self.page(request)
        if path == "/status.json":
            return web.json_response(self.server.status())
        if path == SETUP and self.setup:
            return await self.setup.answer(request)
        is_snapshot = path == "/snapshots.json" or path.startswith(SNAPSHOT)
        if is_snapshot and self.server.snapshots is not None:
            return await self.snapshot(path)
        name, _, extension = path[1:].rpartition(".")
        feed = self.server.feeds.get(name)
        if path == "/ws" and is_get:
            response = self.websocket(request, connection)
        elif path == "/events" and is_get:
            response = self.events(request, connection)
        elif feed and extension == "mjpg" and is_get:
            response = self.mjpeg(request, connection, feed)
        elif feed and extension == "jpg":
            response = self.picture(feed)
        elif feed and extension == "mjpg":
            return web.Response(headers={"Content-Type": MJPEG})
        else:
            return text(404, "Not found.")
        try:
            return await response
        except ConnectionError:  # closed by the client
            return text(400, "Connection closed.")

    def page(self, request: web.BaseRequest) -> web.Response:
        response = web.Response(text=self.html, content_type="text/html")
        hosts = [request.host, *(f"{name}:*" for name in sorted(self.access.names))]
        sockets = " ".join(f"ws://{host} wss://{host}" for host in hosts)
        response.headers["Content-Security-Policy"] = f"{self.content_policy} {sockets}"
        if self.access.password:
            # Without a path the cookie is valid for this page only, also below a proxy's prefix.
            response.set_cookie(self.access.cookie, self.access.token, httponly=True,
                                samesite="Strict", path="")
        return response

    async def snapshot(self, path: str) -> web.Response:
        """The list of the newest snapshots, or the picture of one."""
        snapshots, loop = self.server.snapshots, asyncio.get_running_loop()
        # Reading files may take long: not in the thread that serves the pictures.
        if path == "/snapshots.json":
            newest = await loop.run_in_executor(None, snapshots.newest, MAX_SNAPSHOTS)
            return web.json_response(newest)
        jpeg = await loop.run_in_executor(None, snapshots.jpeg, path[len(SNAPSHOT):])
        if jpeg is None:
            return text(404, "Not found.")
        return web.Response(body=jpeg, content_type="image/jpeg")

    async def picture(self, feed: Any) -> web.StreamResponse:
        client = Client()
        self.server.watch(client, {feed.name})
        try:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + PICTURE_SECONDS
            while (feed.jpeg is None and loop.time() < deadline
                   and not self.server.closing.is_set()):
                await client.wait(deadline - loop.time())
        finally:
            self.server.watch(client, ())
        if feed.jpeg is None:
            return text(503, "No picture yet.")
        return web.Response(body=feed.jpeg, content_type="image/jpeg")

    async def start_stream(self, request: web.BaseRequest, connection: Any,
                           content_type: str) -> web.StreamResponse:
        """Start a response without an end."""
        connection.set_timeout(None)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": content_type,
                                               "X-Accel-Buffering": "no"})  # for nginx
        response.force_close()
        await response.prepare(request)
        return response

    async def mjpeg(self, request: web.BaseRequest, connection: Any,
                    feed: Any) -> web.StreamResponse:
        response = await self.start_stream(request, connection, MJPEG)
        client, number = Client(), None
        self.server.watch(client, {feed.name})
        try:
            while not self.server.closing.is_set():
                # Browsers show nothing if the first part is empty.
                if feed.mjpeg_part is not None and feed.number != number:
                    number = feed.number
                    await response.write(feed.mjpeg_part)
                await client.wait(1)
        finally:
            self.server.watch(client, ())
        return response

    async def events(self, request: web.BaseRequest, connection: Any) -> web.StreamResponse:
        response = await self.start_stream(request, connection, "text/event-stream")
        client = Client()
        self.server.event_clients |= {client}
        self.server.watch(client, ())
        try:
            while not self.server.closing.is_set():
                # A comment without content detects a closed connection.
                events = b"".join(client.events) or b":\n\n"
                client.events.clear()
                await response.write(events)
                await client.wait(15)
        finally:
            self.server.event_clients -= {client}
            self.server.watch(client, ())
        return response

    async def websocket(self, request: web.BaseRequest, connection: Any) -> web.StreamResponse:
        """The page's WebSocket. The page sends {"streams": [names]} to choose streams.

        "plain" names those that it wants without lines and zones, besides or instead. It gets the
        status as text, and pictures of these streams: the length of the name in two bytes, the
        name, the JPEG.
        """
        socket = web.WebSocketResponse(heartbeat=60, max_msg_size=16384, compress=False)
        if not socket.can_prepare(request):
            return text(400, "This address is for WebSockets only.")
        connection.set_timeout(None)
        await socket.prepare(request)
        client = Client()
        client.status = json.dumps(self.server.status())
        client.wake.set()
        self.server.pages |= {client}
        reading = asyncio.ensure_future(self.read_choices(socket, client))
        try:
            await self.send_pictures(socket, client, reading)
            await asyncio.wait_for(socket.close(code=1001), 1)
        except (asyncio.TimeoutError, RuntimeError):  # RuntimeError: closed in the meantime
            pass
        finally:
            reading.cancel()
            self.server.pages -= {client}
            self.server.watch(client, ())
        return socket

    async def send_pictures(self, socket: web.WebSocketResponse, client: Client,
                            reading: asyncio.Future) -> None:
        sent: Dict[Any, int] = {}  # {feed: number of the last picture}
        while not (socket.closed or reading.done() or self.server.closing.is_set()):
            await client.wait(1)
            if client.status:
                status, client.status = client.status, None
                await socket.send_str(status)
            for feed in self.server.all_feeds:
                new = feed.message is not None and sent.get(feed) != feed.number
                if new and client in feed.clients:
                    sent[feed] = feed.number
                    await socket.send_bytes(feed.message)
        if not (socket.closed or reading.done()):
            await socket.send_str(json.dumps(self.server.status()))  # the page says what has ended

    async def read_choices(self, socket: web.WebSocketResponse, client: Client) -> None:
        async for message in socket:
            try:
                choice = json.loads(message.data)
                names, plain = ({name for name in each if isinstance(name, str)}
                                for each in (choice["streams"], choice.get("plain", [])))
                self.server.watch(client, names, plain)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                return


def text(status: int, sentence: str) -> web.Response:
    """A response of one sentence."""
    return web.Response(status=status, text=sentence + "\n")


def file_text(name: str) -> str:
    """The content of a file beside this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
