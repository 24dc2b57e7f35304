"""What the page's server answers to which path: the page, pictures, status, events, the page's WebSocket."""
import asyncio
import base64
import collections
import hashlib
import json
import re
from pathlib import Path

from aiohttp import web

from results.door import ANSWER_SECONDS

MOST_TEXTS = 1000  # records that wait for one who listens
FIRST = 5          # seconds that a single picture is waited for
MOTION = "multipart/x-mixed-replace; boundary=frame"
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cross-Origin-Resource-Policy": "same-origin", "Server": "rknnpool"}


class Viewer:
    """Someone who looks or listens. Lives in the server's thread."""

    def __init__(self):
        self.wake, self.status = asyncio.Event(), None
        self.texts = collections.deque(maxlen=MOST_TEXTS)

    async def turn(self, seconds):
        """Wait until there is something new, or so many seconds."""
        try:
            await asyncio.wait_for(self.wake.wait(), max(0, seconds))
        except asyncio.TimeoutError:
            pass
        self.wake.clear()


class Answers:
    """Answers requests. page: the Web; door: the Door."""

    def __init__(self, page, door):
        self.page, self.door = page, door
        self.html = (Path(__file__).parent / "web.html").read_text(encoding="utf-8")
        inline = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", self.html, re.DOTALL)
        hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
                          for text in inline)
        self.policy = (f"default-src 'none'; style-src {hashes}; script-src {hashes}; img-src blob:; base-uri 'none'; "
                       f"form-action 'none'; frame-ancestors 'none'; connect-src 'self'")

    async def answer(self, request):
        """The answer to a request whose head has come."""
        guard = self.door.guards.get(request.transport)
        if guard is None:  # cut in the meantime
            return text(400, "Gone.")
        guard.limit(ANSWER_SECONDS)
        refused = self.door.refusal(request)
        if refused:
            response = text(*refused)
        elif not self.door.allows(request):
            if "Authorization" in request.headers:
                await asyncio.sleep(1)  # who guesses shall take his time
            response = text(401, "A password is needed: RKNNPOOL_WEB_PASSWORD, of any user.")
            response.headers["WWW-Authenticate"] = 'Basic realm="rknnpool", charset="UTF-8"'
        else:
            response = await self.route(request, guard)
        if not response.prepared:
            response.headers.update(HEADERS)
            response.force_close()  # a connection for each: none waits for another request
        return response

    async def route(self, request, guard):
        path, endless = request.path, request.method == "GET"
        if path == "/":
            response = web.Response(text=self.html, content_type="text/html")
            response.headers["Content-Security-Policy"] = f"{self.policy} ws://{request.host} wss://{request.host}"
            if self.door.password:
                response.set_cookie(self.door.cookie, self.door.token, httponly=True, samesite="Strict")
            return response
        if path == "/status.json":
            return web.json_response(self.page.status())
        stem, _, kind = path[1:].rpartition(".")
        view = self.page.views.get(stem)
        if path == "/ws" and endless:
            answer = self.talk(request, guard)
        elif path == "/events" and endless:
            answer = self.events(request, guard)
        elif view and kind == "mjpg" and endless:
            answer = self.motion(request, guard, view)
        elif view and kind == "jpg":
            answer = self.picture(view)
        elif view and kind == "mjpg":
            return web.Response(headers={"Content-Type": MOTION})
        else:
            return text(404, "There is no such stream, and nothing else, here.")
        try:
            return await answer
        except ConnectionError:  # the client has gone
            return text(400, "Gone.")

    async def picture(self, view):
        viewer = Viewer()
        self.page.watch(viewer, {view.name})
        try:
            loop = asyncio.get_running_loop()
            until = loop.time() + FIRST
            while view.jpeg is None and loop.time() < until and not self.page.ending.is_set():
                await viewer.turn(until - loop.time())
        finally:
            self.page.watch(viewer, ())
        return web.Response(body=view.jpeg, content_type="image/jpeg") if view.jpeg else text(503, "No picture yet.")

    async def begin(self, request, guard, kind):
        """An answer without an end."""
        guard.limit(None)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": kind})
        response.force_close()
        await response.prepare(request)
        return response

    async def motion(self, request, guard, view):
        response, viewer, number = await self.begin(request, guard, MOTION), Viewer(), None
        self.page.watch(viewer, {view.name})
        try:
            while not self.page.ending.is_set():
                if view.part is not None and view.number != number:  # an empty first part would spoil it in browsers
                    number = view.number
                    await response.write(view.part)
                await viewer.turn(1)
        finally:
            self.page.watch(viewer, ())
        return response

    async def events(self, request, guard):
        response, listener = await self.begin(request, guard, "text/event-stream"), Viewer()
        self.page.listeners |= {listener}
        self.page.watch(listener, ())
        try:
            while not self.page.ending.is_set():
                texts = b"".join(listener.texts) or b":\n\n"  # a comment, which finds out whether anyone is there
                listener.texts.clear()
                await response.write(texts)
                await listener.turn(15)
        finally:
            self.page.listeners -= {listener}
            self.page.watch(listener, ())
        return response

    async def talk(self, request, guard):
        """A page's WebSocket. It says {"streams": [names]}; it gets the status as text, and pictures of the streams
        that it chose: two bytes, the length of the name, the name, the JPEG."""
        socket = web.WebSocketResponse(heartbeat=60, max_msg_size=16384, compress=False)
        if not socket.can_prepare(request):
            return text(400, "Only for WebSockets.")
        guard.limit(None)
        await socket.prepare(request)
        viewer, sent = Viewer(), {}
        viewer.status = json.dumps(self.page.status())
        viewer.wake.set()
        self.page.viewers |= {viewer}
        reading = asyncio.ensure_future(self.choices(socket, viewer))
        try:
            while not (socket.closed or reading.done() or self.page.ending.is_set()):
                await viewer.turn(1)
                if viewer.status:
                    words, viewer.status = viewer.status, None
                    await socket.send_str(words)
                for view in self.page.views.values():
                    if viewer in view.watched and view.packet is not None and sent.get(view) != view.number:
                        sent[view] = view.number
                        await socket.send_bytes(view.packet)
            await asyncio.wait_for(socket.close(code=1001), 1)
        except (asyncio.TimeoutError, RuntimeError):  # RuntimeError: closed in the meantime
            pass
        finally:
            reading.cancel()
            self.page.viewers -= {viewer}
            self.page.watch(viewer, ())
        return socket

    async def choices(self, socket, viewer):
        async for message in socket:
            try:
                names = json.loads(message.data)["streams"]
                self.page.watch(viewer, {name for name in names if isinstance(name, str)})
            except (ValueError, TypeError, KeyError, RecursionError):
                return


def text(status, sentence):
    return web.Response(status=status, text=sentence + "\n")
