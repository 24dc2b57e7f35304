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
import collections
import json
import logging
import sys
import threading
import time
import traceback

import cv2

import streams as running
from results.door import Door, Guard, parse
from results.status import Status, board
from rknnmodel import InputError

FPS = 15             # pictures a second of a stream at most
ALL_FPS = 200        # pictures a second for all viewers together, about: a hundred of them get two each
WIDTH = 1280         # pixels; wider pictures are made smaller
QUALITY = 80         # of the JPEGs
MOST_RECORDS = 1000  # of /events that wait to be written as JSON


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
            from results.answers import Answers
        except ImportError as error:
            raise InputError(f"--web needs the package aiohttp: pip install aiohttp ({error})") from None
        self.door = Door(host)
        self.answers = Answers(self, self.door)
        self.views = {stream.name: _View(stream) for stream in streams}
        self.viewers, self.listeners = frozenset(), frozenset()  # Viewers: of WebSockets, of /events
        self.records = collections.deque(maxlen=MOST_RECORDS)    # lightened Results
        self.looked, self.ending = threading.Event(), threading.Event()
        self.broken = self.failed = None  # why this place has given up; why it could not begin
        self.loop, opened = asyncio.new_event_loop(), threading.Event()
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
        """Take note of a Result. Its picture is drawn only if someone looks. Raises InputError once this place has
        given up."""
        if self.broken:
            raise InputError(self.broken)
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
        try:
            while not self.ending.is_set():
                self.looked.wait()
                began = time.perf_counter()
                fresh = [(view, jpeg) for view in self.views.values() for jpeg in self.newest(view)]
                texts = self.texts()
                if fresh or texts:
                    self.loop.call_soon_threadsafe(self.deliver, fresh, texts)
                looking = sum(len(view.watched) for view in self.views.values())
                self.ending.wait(max(0.002, began + max(1 / FPS, looking / ALL_FPS) - time.perf_counter()))
        except Exception:  # a fault of ours, or detections of a user's own: the streams go on without the page
            self.broken = f"--web: {traceback.format_exc().rstrip()}"

    def newest(self, view):
        """[JPEG] of the view's newest picture, [] where nobody looks, it is encoded already, or is no picture."""
        result = view.result
        if not view.watched or result is None or result is view.source:
            return []
        view.source = result
        jpeg = encoded(result.picture)
        if jpeg is None and not view.said:
            view.said = True
            running.say(f"{view.name}: what myFunc returns is no picture that a page could show.", sys.stderr)
        return [] if jpeg is None else [jpeg]

    def texts(self):
        """Server-sent events of the records that have come."""
        texts = []
        while self.records:
            from results.jsonl import as_dict
            texts.append(f"data: {json.dumps(as_dict(self.records.popleft()))}\n\n".encode())
        return texts

    # ---- the server's thread ----

    def serve(self, host, port, opened):
        from aiohttp import web
        quiet = logging.getLogger("rknnpool.web")  # what a client does wrong is no news
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False

        async def listen():
            self.server = web.Server(self.answers.answer, access_log=None, logger=quiet, lingering_time=0,
                                     max_line_size=4096, max_field_size=4096)
            self.listening = await self.loop.create_server(lambda: Guard(self.door, self.server(), self.loop), host,
                                                           port)
            self.port = self.listening.sockets[0].getsockname()[1]
            self.door.cookie += str(self.port)  # the ports of a host share their cookies

        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(lambda loop, context: None)
        try:
            self.loop.run_until_complete(listen())
        except OSError as error:
            self.failed = error.strerror or str(error)
            self.loop.close()
            return
        finally:
            opened.set()
        self.loop.create_task(self.tell())
        self.loop.run_forever()
        self.loop.close()

    async def end(self):
        self.listening.close()
        for viewer in self.viewers | self.listeners:
            viewer.wake.set()  # which sees that all is ending
        for guard in list(self.door.guards.values()):
            guard.limit(1)
        await self.server.shutdown(1)
        self.loop.stop()

    async def tell(self):
        """Send the status to every page, once a second."""
        while not self.ending.is_set():
            if self.viewers:
                try:
                    text = json.dumps(self.status())
                except Exception:  # as in encode(): a page whose numbers stand still would be believed
                    self.broken = f"--web: {traceback.format_exc().rstrip()}"
                    break
                for viewer in self.viewers:
                    viewer.status = text
                    viewer.wake.set()
            await asyncio.sleep(1)

    def deliver(self, fresh, texts):
        awake = set(self.listeners) if texts else set()
        for view, jpeg in fresh:
            view.keep(jpeg)
            awake |= view.watched
        for listener in self.listeners:
            listener.texts.extend(texts)
        for viewer in awake:
            viewer.wake.set()

    def watch(self, viewer, names):
        """Have a viewer watch the streams of these names, and no others."""
        for view in self.views.values():
            if view.name in names and viewer not in view.watched:
                if not view.watched:
                    view.forget()
                view.watched |= {viewer}
            elif view.name not in names and viewer in view.watched:
                view.watched -= {viewer}
        if self.listeners or any(view.watched for view in self.views.values()):
            self.looked.set()
        elif not self.ending.is_set():
            self.looked.clear()


class _View:
    """What is known and shown of one stream."""

    def __init__(self, stream):
        self.name, self.status, self.result = stream.name, Status(stream), None  # result: the newest
        self.watched, self.number, self.said = frozenset(), 0, False  # by whom; of the picture; that it is none
        self.forget()

    def forget(self):
        """What was encoded for the last one who looked is old."""
        self.source = self.jpeg = self.packet = self.part = None  # source: the Result that was encoded last

    def keep(self, jpeg):
        """The picture as it is, for WebSockets, and for Motion JPEG."""
        name = self.name.encode("utf-8", "replace")
        self.number += 1
        self.jpeg, self.packet = jpeg, len(name).to_bytes(2, "big") + name + jpeg
        self.part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg)
