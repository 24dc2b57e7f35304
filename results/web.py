"""A page with every stream live, for a browser; the same pictures and numbers for VLC, Home Assistant and scripts.

    page = Web("8000", streams)     # http://127.0.0.1:8000/
    page.write(result)              # a Result of any of the streams, from its thread; returns at once
    page.close()

    /            the page
    /NAME.mjpg   a stream as Motion JPEG;  /NAME.jpg  its newest picture
    /status.json rates, counts, load and temperatures
    /events      the JSON of --json, server-sent

Needs the package aiohttp. A host that is not loopback needs a password, RKNNPOOL_WEB_PASSWORD in the environment.
"""
import asyncio
import base64
import binascii
import collections
import glob
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import cv2

import streams as running
from results.status import Status
from rknnmodel import InputError

FPS = 15               # pictures a second of a stream at most
ALL_FPS = 400          # pictures a second for all viewers together, about
WIDTH = 1280           # pixels; wider pictures are made smaller
QUALITY = 80           # of the JPEGs
MOST_CONNECTIONS = 256
HEAD_SECONDS = 10      # for the head of a request to come
ANSWER_SECONDS = 30    # for an answer to be taken, but for pictures and events without an end
BURST, STEADY = 65536, 8192  # bytes a client may send at once, and in a second
MOST_RECORDS = 1000    # of /events that wait
SYSROOT = os.environ.get("SYSROOT", "")


def parse(address: str):
    """(host, port) of [HOST:]PORT, without a host 127.0.0.1. Raises InputError."""
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]*):)?([0-9]{1,5})", str(address))
    if not found or int(found[2]) > 65535:
        raise InputError(f"--web {address}: give a port, as in 8000, or a host and a port, as in 0.0.0.0:8000.")
    return (found[1] or "127.0.0.1").strip("[]"), int(found[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there. Raises InputError for a name that nobody knows."""
    try:
        addresses = {entry[4][0].split("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise InputError(f"--web {host}: this machine has no address of that name.") from None
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def board() -> dict:
    """The NPU's load in percent, a list with one number a core, and temperature in degrees Celsius, as the kernel shows
    them, None where it does not; and all temperatures by the name of their zone."""
    load, temperatures = None, {}
    try:
        with open(f"{SYSROOT}/sys/kernel/debug/rknpu/load") as file:
            load = [int(number) for number in re.findall(r"(\d+)\s*%", file.read())] or None
    except (OSError, ValueError):
        pass
    for zone in sorted(glob.glob(f"{SYSROOT}/sys/class/thermal/thermal_zone*")):
        try:
            name = Path(zone, "type").read_text().strip()
            temperatures[name] = round(int(Path(zone, "temp").read_text()) / 1000, 1)
        except (OSError, ValueError):
            continue
    npu = temperatures.get("npu-thermal", temperatures.get("soc-thermal"))
    return {"npu": {"load": load, "temperature": npu}, "temperatures": temperatures}


def encoded(picture):
    """A picture as JPEG, at most WIDTH pixels wide, or None where it is none."""
    try:
        h, w = picture.shape[:2]
        if w > WIDTH:
            picture = cv2.resize(picture, (WIDTH, max(1, round(h * WIDTH / w))), interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    except (cv2.error, AttributeError, TypeError, ValueError):
        return None


class Web:
    """A place for Results. address: [HOST:]PORT, port 0 for any that is free; streams: the Streams whose Results will
    come. `url` is then where the page is.

    Pictures are drawn and encoded once for all viewers, by a thread of their own, only while someone looks. Raises
    InputError where the address cannot be used, a password is wanted, or aiohttp is missing.
    """

    def __init__(self, address, streams):
        host, port = parse(address)
        try:
            import aiohttp.web
        except ImportError:
            raise InputError("--web needs the package aiohttp: pip install aiohttp") from None
        self.web = aiohttp.web
        self.local, self.password = is_loopback(host), os.environ.get("RKNNPOOL_WEB_PASSWORD", "")
        if not self.local and not self.password:
            raise InputError(f"--web {address}: everyone who reaches {host} could look; set a password, "
                             f"RKNNPOOL_WEB_PASSWORD in the environment, or leave out the host.")
        self.hosts = {"localhost", host.lower()}
        if not self.local:
            self.hosts |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self.token = secrets.token_hex(16)  # stands for the password in a cookie: not every browser sends it to a WebSocket
        self.page = (Path(__file__).parent / "web.html").read_text(encoding="utf-8")
        inline = [hashlib.sha256(text.encode()).digest() for text in
                  re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", self.page, re.DOTALL)]
        self.hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in inline)
        self.views = {stream.name: _View(stream) for stream in streams}
        self.viewers, self.listeners, self.guards = set(), set(), {}  # WebSockets, /events, connections: the loop's own
        self.records = collections.deque(maxlen=MOST_RECORDS)
        self.looked, self.ending = threading.Event(), threading.Event()
        self.loop, opened = asyncio.new_event_loop(), threading.Event()
        self.failed = None
        self.thread = threading.Thread(target=self.serve, args=(host, port, opened), name="rknnpool-web", daemon=True)
        self.thread.start()
        opened.wait()
        if self.failed:
            raise InputError(f"--web {address}: cannot listen there ({self.failed}).")
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        self.encoder = threading.Thread(target=self.encode, name="rknnpool-jpeg", daemon=True)
        self.encoder.start()
        running.say(f"The page: {self.url}", sys.stderr)

    def write(self, result):
        """Take note of a Result. Its picture is drawn only if someone looks."""
        view = self.views[result.stream.name]
        lightened = view.status.update(result)
        if result.error is None:
            view.result = result
        if self.listeners:
            self.records.append(lightened)

    def close(self):
        """End every connection. May be called again."""
        if not self.ending.is_set():
            self.ending.set()
            self.looked.set()
            self.encoder.join(5)
            self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self.end()))
            self.thread.join(5)

    def status(self) -> dict:
        """What /status.json says."""
        return {"streams": {name: view.status.json() for name, view in self.views.items()}, **board()}

    # ---- the encoder's thread ----

    def encode(self):
        """While someone looks: encode the newest picture of every stream that is looked at, FPS times a second."""
        from results.jsonl import record
        while not self.ending.is_set():
            self.looked.wait()
            began = time.perf_counter()
            fresh, texts = [], []
            for view in self.views.values():
                result = view.result
                if view.watched and result is not view.source and result is not None:
                    view.source = result
                    jpeg = encoded(result.picture)
                    if jpeg is not None:
                        fresh.append((view, jpeg))
                    elif not view.said:
                        view.said = True
                        running.say(f"{view.status.stream.name}: what myFunc returns is no picture that the page could show.",
                                    sys.stderr)
            while self.records:
                texts.append(f"data: {json.dumps(record(self.records.popleft()))}\n\n".encode())
            if fresh or texts:
                self.loop.call_soon_threadsafe(self.deliver, fresh, texts)
            looking = sum(len(view.watched) for view in self.views.values())
            self.ending.wait(max(0.002, began + max(1 / FPS, looking / ALL_FPS) - time.perf_counter()))

    # ---- the server's thread ----

    def serve(self, host, port, opened):
        quiet = logging.getLogger("rknnpool.web")  # what a client does wrong is no news
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(lambda loop, context: None)

        async def listen():
            self.server = self.web.Server(self.answer, access_log=None, logger=quiet, keepalive_timeout=0,
                                          lingering_time=0, max_line_size=4096, max_field_size=4096)
            self.listening = await self.loop.create_server(lambda: _Guard(self), host, port)
            self.port = self.listening.sockets[0].getsockname()[1]

        try:
            self.loop.run_until_complete(listen())
        except OSError as error:
            self.failed = error.strerror or str(error)
            return
        finally:
            opened.set()
        self.loop.create_task(self.tell())
        self.loop.run_forever()
        self.loop.close()

    async def end(self):
        self.listening.close()
        for viewer in self.viewers:
            viewer.wake.set()  # it sees that all is ending
        for guard in list(self.guards.values()):
            guard.limit(1)
        await self.server.shutdown(1)
        self.loop.stop()

    async def tell(self):
        """Send the status to every page, once a second."""
        while not self.ending.is_set():
            if self.viewers:
                text = json.dumps(self.status())
                for viewer in self.viewers:
                    viewer.status = text
                    viewer.wake.set()
            await asyncio.sleep(1)

    def deliver(self, fresh, texts):
        awake = set()
        for view, jpeg in fresh:
            name = view.status.stream.name.encode("utf-8", "replace")
            view.jpeg, view.packet = jpeg, len(name).to_bytes(2, "big") + name + jpeg
            view.part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
            view.number += 1
            awake |= view.watched
        for listener in self.listeners:
            listener.texts.extend(texts)
        for viewer in awake | (self.listeners if texts else set()):
            viewer.wake.set()

    def watch(self, viewer, names):
        """Have a viewer watch these streams, and no others."""
        for name, view in self.views.items():
            if name in names and viewer not in view.watched:
                if not view.watched:  # what was encoded for the last one who looked is old
                    view.jpeg = view.packet = view.part = view.source = None
                view.watched = view.watched | {viewer}  # a new set, for the encoder's thread looks at it
            elif name not in names and viewer in view.watched:
                view.watched = view.watched - {viewer}
        if self.listeners or any(view.watched for view in self.views.values()):
            self.looked.set()
        elif not self.ending.is_set():
            self.looked.clear()

    async def answer(self, request):
        """The answer to a request whose head has come."""
        guard = self.guards.get(request.transport)
        if guard:
            guard.limit(ANSWER_SECONDS)
        response = self.refusal(request)
        if response is None and not self.allowed(request):
            if "Authorization" in request.headers:
                await asyncio.sleep(1)  # who guesses shall take his time
            response = self.text(401, "A password is needed: RKNNPOOL_WEB_PASSWORD, of any user.")
            response.headers["WWW-Authenticate"] = 'Basic realm="rknnpool", charset="UTF-8"'
        if response is None:
            response = await self.route(request, guard)
        if not response.prepared:
            response.force_close()
            response.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
                                     "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer"})
        return response

    def text(self, status, sentence):
        return self.web.Response(status=status, text=sentence + "\n")

    def refusal(self, request):
        """Why a request is not answered, whoever asks, or None. Guards against pages of other sites: their names for
        this machine (DNS rebinding), and their scripts' WebSockets."""
        if request.method not in ("GET", "HEAD"):
            return self.text(405, "Only GET.")
        hosts = request.headers.getall("Host", [])
        try:
            name = urlsplit(f"//{hosts[0]}").hostname.lower().rstrip(".") if len(hosts) == 1 else ""
        except (ValueError, AttributeError):
            name = ""
        if name not in self.hosts and not self.is_own_address(name):
            return self.text(421, f"This is not the host's name here; give --web the one that you call it by: "
                                  f"{', '.join(sorted(self.hosts))}.")
        origin = request.headers.get("Origin")
        if origin is not None and origin.split("://")[-1].lower() != hosts[0].lower():
            return self.text(403, "Pages of other sites may not look.")
        return None

    def is_own_address(self, name):
        """Whether a host's name is an address, which nobody can rebind; of a loopback server, one of loopback."""
        try:
            return ipaddress.ip_address(name).is_loopback or not self.local
        except ValueError:
            return False

    def allowed(self, request):
        if not self.password:
            return True
        if hmac.compare_digest(request.cookies.get(self.cookie, "").encode(), self.token.encode()):
            return True
        kind, _, text = request.headers.get("Authorization", "").partition(" ")
        try:
            given = base64.b64decode(text, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        return hmac.compare_digest(given, self.password.encode())

    @property
    def cookie(self):
        return f"rknnpool{self.port}"  # cookies are shared between the ports of a host

    async def route(self, request, guard):
        path = request.path
        if path == "/":
            response = self.web.Response(text=self.page, content_type="text/html")
            response.headers["Content-Security-Policy"] = (
                f"default-src 'none'; style-src {self.hashes}; script-src {self.hashes}; img-src blob:; base-uri 'none'; "
                f"connect-src 'self' ws://{request.host} wss://{request.host}; form-action 'none'; frame-ancestors 'none'")
            if self.password:
                response.set_cookie(self.cookie, self.token, httponly=True, samesite="Strict")
            return response
        if path == "/status.json":
            return self.web.json_response(self.status())
        if path in ("/ws", "/events") and request.method == "GET":
            if guard:
                guard.limit(None)
            return await (self.talk(request) if path == "/ws" else self.events(request))
        stem, dot, kind = path[1:].rpartition(".")
        view = self.views.get(stem)
        if view is None or kind not in ("jpg", "mjpg"):
            return self.text(404, "There is no such stream, and nothing else, here.")
        if kind == "mjpg" and request.method == "GET":
            if guard:
                guard.limit(None)
            return await self.motion(request, view)
        if request.method == "HEAD":
            return self.web.Response(content_type="image/jpeg" if kind == "jpg" else "multipart/x-mixed-replace")
        return await self.picture(view)

    async def picture(self, view):
        viewer = _Viewer()
        self.watch(viewer, {view.status.stream.name})
        try:
            until = self.loop.time() + 5
            while view.jpeg is None and self.loop.time() < until and not self.ending.is_set():
                await viewer.turn(until - self.loop.time())
        finally:
            self.watch(viewer, ())
        if view.jpeg is None:
            return self.text(503, "There is no picture yet.")
        return self.web.Response(body=view.jpeg, content_type="image/jpeg")

    async def motion(self, request, view):
        response = self.web.StreamResponse()
        response.content_type = "multipart/x-mixed-replace; boundary=frame"
        response.headers.update({"Content-Type": "multipart/x-mixed-replace; boundary=frame", "Cache-Control": "no-store"})
        response.force_close()
        await response.prepare(request)
        viewer, number = _Viewer(), None
        self.watch(viewer, {view.status.stream.name})
        try:
            while not self.ending.is_set():
                if view.part is not None and view.number != number:
                    number = view.number
                    await response.write(view.part)
                await viewer.turn(1)
        except ConnectionError:
            pass
        finally:
            self.watch(viewer, ())
        return response

    async def events(self, request):
        response = self.web.StreamResponse()
        response.headers.update({"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        response.force_close()
        await response.prepare(request)
        listener = _Viewer()
        self.listeners = self.listeners | {listener}
        self.watch(listener, ())
        try:
            while not self.ending.is_set():
                texts = b"".join(listener.texts) or b":\n\n"  # a comment, that tells whether anyone is still there
                listener.texts.clear()
                await response.write(texts)
                await listener.turn(15)
        except ConnectionError:
            pass
        finally:
            self.listeners = self.listeners - {listener}
            self.watch(listener, ())
        return response

    async def talk(self, request):
        """A page's WebSocket: it says {"streams": [names]}; it gets the status as text, and of the streams that it
        chose pictures: two bytes, the length of the name, the name, the JPEG."""
        socket_ = self.web.WebSocketResponse(heartbeat=60, max_msg_size=16384, compress=False)
        if not socket_.can_prepare(request):
            return self.text(400, "Only for WebSockets.")
        await socket_.prepare(request)
        viewer, sent = _Viewer(), {}
        viewer.status = json.dumps(self.status())
        viewer.wake.set()
        self.viewers.add(viewer)
        reading = self.loop.create_task(self.choices(socket_, viewer))
        try:
            while not (socket_.closed or reading.done() or self.ending.is_set()):
                await viewer.turn(1)
                if viewer.status:
                    text, viewer.status = viewer.status, None
                    await socket_.send_str(text)
                for name, view in self.views.items():
                    if viewer in view.watched and view.packet is not None and sent.get(name) != view.number:
                        sent[name] = view.number
                        await socket_.send_bytes(view.packet)
            await asyncio.wait_for(socket_.close(code=1001), 1)
        except (ConnectionError, asyncio.TimeoutError, RuntimeError):  # RuntimeError: closed in the meantime
            pass
        finally:
            reading.cancel()
            self.viewers.discard(viewer)
            self.watch(viewer, ())
        return socket_

    async def choices(self, socket_, viewer):
        async for message in socket_:
            try:
                names = json.loads(message.data)["streams"]
                self.watch(viewer, {name for name in names if isinstance(name, str)})
            except (ValueError, TypeError, KeyError, RecursionError):
                return


class _View:
    """What is known and shown of one stream."""

    def __init__(self, stream):
        self.status, self.result = Status(stream), None     # the newest Result
        self.watched, self.source = frozenset(), None       # by whom; the Result that was encoded last
        self.jpeg = self.packet = self.part = None          # its picture, as it is, for a WebSocket, for Motion JPEG
        self.number, self.said = 0, False


class _Viewer:
    """Someone who looks or listens."""

    def __init__(self):
        self.wake, self.status = asyncio.Event(), None
        self.texts = collections.deque(maxlen=MOST_RECORDS)

    async def turn(self, seconds):
        """Wait until there is something new, or so many seconds."""
        try:
            await asyncio.wait_for(self.wake.wait(), max(0, seconds))
        except asyncio.TimeoutError:
            pass
        self.wake.clear()


class _Guard(asyncio.Protocol):
    """Stands before aiohttp's protocol of one connection: bounds how long a request takes and how much a client sends."""

    def __init__(self, page):
        self.page, self.inner, self.timer = page, page.server(), None
        self.budget, self.since = BURST, page.loop.time()

    def limit(self, seconds):
        """Cut the connection in so many seconds; None: do not."""
        if self.timer:
            self.timer.cancel()
        self.timer = None if seconds is None else self.page.loop.call_later(seconds, self.transport.abort)

    def connection_made(self, transport):
        self.transport = transport
        self.full = len(self.page.guards) >= MOST_CONNECTIONS
        if self.full:
            transport.abort()
            return
        self.page.guards[transport] = self
        self.limit(HEAD_SECONDS)
        self.inner.connection_made(transport)

    def data_received(self, data):
        now = self.page.loop.time()
        self.budget = min(BURST, self.budget + (now - self.since) * STEADY) - len(data)
        self.since = now
        if self.budget < 0:
            self.transport.abort()
        else:
            self.inner.data_received(data)

    def connection_lost(self, error):
        if not self.full:
            self.limit(None)
            del self.page.guards[self.transport]
            self.inner.connection_lost(error)

    def eof_received(self):
        return self.inner.eof_received()

    def pause_writing(self):
        self.inner.pause_writing()

    def resume_writing(self):
        self.inner.resume_writing()
