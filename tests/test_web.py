"""What --web promises: the page in a real browser, its addresses for scripts, who may look, and that nobody holds it
up."""
import asyncio
import base64
import http.client
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import parts
import pytest
from browser import MISSING, Browser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rknnmodel import InputError

aiohttp = pytest.importorskip("aiohttp", reason="pip install aiohttp")
from results import answers, door, status, web  # noqa: E402
from results.door import parse  # noqa: E402
from results.jsonl import as_dict  # noqa: E402
from results.web import Web  # noqa: E402

needs_browser = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
PATIENCE = 30  # seconds; what has not come by then does not come


def wait(condition, *arguments):
    until = time.monotonic() + PATIENCE
    while not condition(*arguments):
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.02)


@pytest.fixture
def opened(said):
    """opened(*streams, address="0"): a Web, closed at the end of the test."""
    pages = []

    def open_(*streams_, address="0"):
        pages.append(Web(address, streams_))
        return pages[-1]
    yield open_
    for page in pages:
        page.close()


class Playing:
    """Streams that play: each gets a Result 30 times a second, with its number as a grey level."""

    def __init__(self, page, *streams_, **fields):
        self.page, self.streams, self.fields, self.stop = page, streams_, fields, threading.Event()
        self.thread = threading.Thread(target=self.play, daemon=True)
        self.thread.start()

    def play(self):
        while not self.stop.wait(1 / 30):
            for stream in self.streams:
                if stream.ended is None and not stream.away:
                    self.page.write(parts.result(stream, [(1, "person", 10)], **self.fields))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def ask(page, path, method="GET", headers=None, host="127.0.0.1"):
    """(status, headers, body) of a request."""
    connection = http.client.HTTPConnection(host, page.port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def raw(page):
    return socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE)


def until_closed(connection):
    """What comes until the server closes."""
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionError:
        pass
    return got


def alive(page):
    return ask(page, "/status.json")[0] == 200


def grey(jpeg):
    """The number that parts.result() drew as a grey level."""
    return round(float(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE).mean()))


# ---- in a browser ----

NUMBERS = "return [...document.querySelectorAll('article')].map(card => card.innerText)"
PICTURES = """return [...document.querySelectorAll('article img')].map(image => {
    const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
    const context = canvas.getContext('2d'); if (image.naturalWidth) context.drawImage(image, 0, 0, 1, 1);
    return [image.naturalWidth, context.getImageData(0, 0, 1, 1).data[0]]})"""


def moves(browser, count=1):
    """Wait until all of `count` pictures have changed at least twice."""
    seen = [set() for _ in range(count)]

    def changed():
        pictures = browser.run(PICTURES)
        for values, (width, value) in zip(seen, pictures):
            if width:
                values.add(value)
        return len(pictures) == count and all(len(values) > 2 for values in seen)
    wait(changed)


@needs_browser
def test_the_page_shows_pictures_that_move_and_numbers_that_change(opened):
    gate = parts.stream()
    page = opened(gate)
    lines = {"door": {"in": {"person": 3}, "out": {}}}
    with Playing(page, gate, lines=lines, zones={"lawn": {"dog": 2}}), Browser() as browser:
        browser.open(page.url)
        moves(browser)
        first = browser.run(NUMBERS)
        wait(lambda: browser.run(NUMBERS) != first)
        for words in ("gate", "live", "FPS 25.0", "latency", "person 1", "door in 3: person 3", "door out 0",
                      "lawn 2: dog 2"):
            assert words in first[0]


@pytest.mark.slow
@needs_browser
def test_a_stream_that_goes_away_or_ends_says_so(opened):
    gate, yard = parts.stream(), parts.stream("yard")
    page = opened(gate, yard)
    with Playing(page, gate, yard), Browser() as browser:
        browser.open(page.url)
        moves(browser, 2)
        gate.away, yard.ended = True, time.perf_counter()
        wait(lambda: "trying again" in browser.run(NUMBERS)[0] and "ended" in browser.run(NUMBERS)[1])
        gate.away = False
        wait(lambda: "live" in browser.run(NUMBERS)[0])


@pytest.mark.slow
@needs_browser
def test_the_page_comes_back_by_itself(opened):
    gate = parts.stream()
    page = opened(gate)
    lost = "return !document.querySelector('#lost').hidden"
    with Browser() as browser:
        with Playing(page, gate):
            browser.open(page.url)
            moves(browser)
            assert not browser.run(lost)
        page.close()
        wait(lambda: browser.run(lost))
        again, yard = opened(gate, yard := parts.stream("yard"), address=str(page.port)), yard
        with Playing(again, gate, yard):
            wait(lambda: not browser.run(lost))
            moves(browser, 2)


@pytest.mark.slow
@needs_browser
def test_sixteen_streams_are_live_on_one_page(opened):
    many = [parts.stream(f"camera {number}") for number in range(16)]
    page = opened(*many)
    with Playing(page, *many), Browser(height=3300) as browser:
        browser.open(page.url)
        moves(browser, 16)
        assert alive(page)


@pytest.mark.slow
@needs_browser
def test_only_streams_in_sight_are_encoded(opened):
    many = [parts.stream(f"camera {number}") for number in range(16)]
    page = opened(*many)
    with Playing(page, *many), Browser(width=400, height=500) as browser:
        browser.open(page.url)
        wait(lambda: page.views["camera 0"].watched)
        moves_at = page.views["camera 15"]
        assert not moves_at.watched
        browser.run("document.querySelector('article:last-child').scrollIntoView()")
        wait(lambda: moves_at.watched and not page.views["camera 0"].watched)


@pytest.mark.slow
@needs_browser
def test_the_page_speaks_chinese_and_fits_a_phone(opened):
    gate = parts.stream("一个名字很长的摄像头：小区南门外停车场入口" * 3)
    page = opened(gate)
    with Playing(page, gate), Browser(width=500, height=700, language="zh-CN") as browser:
        browser.open(page.url)
        moves(browser)
        assert "实时" in browser.run(NUMBERS)[0] and "延迟" in browser.run(NUMBERS)[0]
        assert browser.run("return document.documentElement.lang") == "zh"
        assert browser.run("document.body.style.width = '320px';"
                           "return document.querySelector('article').getBoundingClientRect().right") <= 320
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@needs_browser
def test_names_are_text_and_never_markup(opened):
    name = "<img src=x onerror=alert(1)> & \"'"
    gate = parts.stream(name)
    page = opened(gate)
    with Playing(page, gate, zones={name: {name: 1}}), Browser() as browser:
        browser.open(page.url)
        moves(browser)
        assert browser.run("return document.querySelector('h2 span').textContent") == name
        assert browser.run("return document.querySelectorAll('img').length") == 1


@pytest.mark.slow
@needs_browser
def test_a_browser_that_gave_the_password_sees_everything(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret ü")
    gate = parts.stream()
    page = opened(gate)
    with Playing(page, gate), Browser() as browser:
        browser.open(page.url.replace("//", "//me:s3cret%20%C3%BC@"))
        moves(browser)


# ---- for scripts ----

def test_the_status_is_json_with_the_promised_keys(opened, monkeypatch, tmp_path):
    gate, yard = parts.stream(), parts.stream("yard", live=False)
    page = opened(gate, yard)
    lines, zones = {"door": {"in": {"person": 3}, "out": {"car": 1}}}, {"lawn": {"dog": 2}}
    page.write(parts.result(gate, [(1, "person", 10), (2, "person", 50)], lines=lines, zones=zones))
    gate.dropped, gate.failed = 7, 1
    failed = parts.result(gate)
    failed.error = "the NPU failed"
    page.write(failed)
    monkeypatch.setattr(status, "SYSROOT", str(tmp_path))
    (tmp_path / "sys/kernel/debug/rknpu").mkdir(parents=True)
    (tmp_path / "sys/kernel/debug/rknpu/load").write_text("NPU load:  Core0: 98%, Core1:  5%, Core2:  0%,\n")
    for number, (kind, temp) in enumerate([("soc-thermal", "41500\n"), ("npu-thermal", "45000\n"), ("broken", "")]):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(kind)
        (zone / "temp").write_text(temp)
    code, headers, body = ask(page, "/status.json")
    said = json.loads(body)
    assert code == 200 and headers["Content-Type"].startswith("application/json")
    assert said["npu"] == {"load": [98, 5, 0], "temperature": 45.0}
    assert said["temperatures"] == {"soc-thermal": 41.5, "npu-thermal": 45.0}
    assert list(said["streams"]) == ["gate", "yard"]
    seen = said["streams"]["gate"]
    assert (seen["fps"], seen["frames"], seen["dropped"], seen["failed"], seen["live"]) == (25.0, 2, 7, 1, True)
    assert (seen["lines"], seen["zones"], seen["objects"]) == (lines, zones, {"person": 2}) and seen["latency_ms"] >= 20
    unseen = said["streams"]["yard"]
    assert (unseen["latency_ms"], unseen["lines"], unseen["zones"], unseen["live"]) == (None, None, None, False)


def test_a_picture_is_the_newest_one(opened):
    gate = parts.stream("dir/gate 前.mp4")
    page = opened(gate)
    for _ in range(3):
        for _ in range(40):
            page.write(parts.result(gate))
        code, headers, body = ask(page, "/dir/gate%20%E5%89%8D.mp4.jpg")
        assert code == 200 and headers["Content-Type"] == "image/jpeg"
        assert abs(grey(body) - (gate.count - 1)) <= 1


def test_motion_jpeg_has_the_form_that_players_read(opened, tmp_path):
    gate = parts.stream()
    page = opened(gate)
    with Playing(page, gate):
        capture = cv2.VideoCapture(f"{page.url}gate.mjpg", cv2.CAP_FFMPEG)
        frames = [capture.read() for _ in range(5)]
        capture.release()
    assert all(ok for ok, _ in frames)
    values = [int(frame.mean()) for _, frame in frames]
    assert values == sorted(values) and len(set(values)) == 5


def test_events_carry_the_json_of_every_result(opened):
    gate = parts.stream()
    page = opened(gate)
    with urllib.request.urlopen(f"{page.url}events", timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        wait(lambda: page.listeners)
        written = [parts.result(gate, [(1, "person", 10)]) for _ in range(100)]
        for result in written:
            page.write(result)
        lines = (line for line in answer if line.startswith(b"data: "))
        assert [json.loads(next(lines)[6:]) for _ in written] == [json.loads(json.dumps(as_dict(r))) for r in written]
    wait(lambda: page.write(parts.result(gate)) or not page.listeners)


@pytest.mark.slow
def test_what_is_no_picture_is_said_once_and_the_rest_goes_on(opened, said, monkeypatch):
    monkeypatch.setattr(answers, "FIRST", 0.5)
    gate = parts.stream()
    page = opened(gate)
    with Playing(page, gate, picture="nothing"):
        assert ask(page, "/gate.jpg")[0] == 503
        assert alive(page)
    assert sum("no picture" in line for line in said) == 1


# ---- cost ----

class Undrawn:
    """A Result whose picture says who asks for it."""

    def __init__(self, stream, asked):
        self.__dict__.update(vars(parts.result(stream)), asked=asked)
        self.drawn = self.__dict__.pop("picture")

    @property
    def picture(self):
        self.asked.append(self.number)
        return self.drawn


def test_pictures_are_drawn_only_while_someone_looks_and_once_for_all(opened):
    gate, yard, asked, unwanted = parts.stream(), parts.stream("yard"), [], []
    page = opened(gate, yard)
    for _ in range(100):
        page.write(Undrawn(gate, asked))
    assert alive(page) and not asked

    async def look(count):
        async with aiohttp.ClientSession() as session:
            sockets = [await session.ws_connect(f"{page.url}ws") for _ in range(count)]
            for each in sockets:
                await each.send_json({"streams": ["gate"]})
            got, began = [set() for _ in sockets], time.monotonic()
            while not all(len(pictures) >= 8 for pictures in got):
                page.write(Undrawn(gate, asked))
                page.write(Undrawn(yard, unwanted))
                for each, pictures in zip(sockets, got):
                    message = await each.receive()
                    if message.type == aiohttp.WSMsgType.BINARY:
                        assert message.data[:6] == b"\x00\x04gate"
                        pictures.add(message.data[6:])
            assert len(asked) <= 15 * (time.monotonic() - began) + 2
            for each in sockets:
                await each.close()
            return got
    got = asyncio.run(look(3))
    assert not unwanted                   # a stream that nobody chose
    assert len(asked) == len(set(asked))  # each drawn once
    assert set.intersection(*got)         # the same JPEG for all
    wait(lambda: not page.views["gate"].watched)
    drawn = len(asked)
    for _ in range(100):
        page.write(Undrawn(gate, asked))
    assert alive(page) and len(asked) - drawn <= 1  # the encoder may have been at it


def test_a_viewer_that_hardly_reads_gets_the_newest_and_delays_nobody(opened, monkeypatch):
    noise = np.random.default_rng(1).integers(0, 256, (720, 1280, 3), np.uint8)  # 700 KB a picture
    gate = parts.stream()
    page = opened(gate)
    with Playing(page, gate, picture=noise):
        slow = raw(page)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /gate.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait(lambda: page.views["gate"].watched)
        with urllib.request.urlopen(f"{page.url}gate.mjpg", timeout=PATIENCE) as answer:
            got = sum(answer.readline().startswith(b"Content-Length") for _ in range(2000))
            assert slow.recv(1000)
        assert got
        transport = next(iter(page.door.guards))
        assert transport.get_write_buffer_size() < 3e6  # not one picture after the other
        slow.close()
        wait(lambda: page.write(parts.result(gate)) or not page.views["gate"].watched)


def test_a_hundred_viewers_are_served_and_forgotten(opened):
    gate = parts.stream()
    page = opened(gate)
    with Playing(page, gate):
        connections = [raw(page) for _ in range(100)]
        for connection in connections:
            connection.sendall(b"GET /gate.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for connection in connections:
            got = b""
            while got.count(b"--frame") < 2:
                got += connection.recv(65536)
        assert alive(page)
        for connection in connections:
            connection.close()
        wait(lambda: not page.views["gate"].watched and not page.door.guards)


# ---- who may look ----

def test_without_a_host_only_this_machine_can_look(opened):
    page = opened(parts.stream())
    assert page.url == f"http://127.0.0.1:{page.port}/"
    assert [s.getsockname()[0] for s in page.listening.sockets] == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_another_host_needs_a_password_and_the_sentence_names_it(opened, host, monkeypatch):
    monkeypatch.delenv("RKNNPOOL_WEB_PASSWORD", raising=False)
    with pytest.raises(InputError, match="RKNNPOOL_WEB_PASSWORD"):
        opened(parts.stream(), address=f"{host}:0")


PATHS = ["/", "/ws", "/status.json", "/events", "/gate.jpg", "/gate.mjpg", "/nothing"]


@pytest.mark.slow
def test_without_the_password_nothing_is_shown(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    gate = parts.stream()
    page = opened(gate, address="0.0.0.0:0")
    page.write(parts.result(gate))

    def basic(text):
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}
    for path in PATHS:
        code, headers, _ = ask(page, path)
        assert code == 401 and headers["WWW-Authenticate"].startswith("Basic")
    for wrong in (basic("me:wrong"), basic("s3cret"), basic("me:"), {"Authorization": "Basic %%%"},
                  {"Authorization": "Bearer s3cret"}, {"Cookie": "rknnpool=1"}, {"Cookie": f"rknnpool{page.port}="}):
        assert ask(page, "/status.json", headers=wrong)[0] == 401
    code, headers, _ = ask(page, "/", headers=basic("anyone:s3cret"))
    assert code == 200 and "HttpOnly" in headers["Set-Cookie"] and "s3cret" not in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].split(";")[0]
    assert ask(page, "/gate.jpg", headers={"Cookie": cookie})[0] == 200


@pytest.mark.parametrize("name, code", [
    ("localhost:{}", 200), ("127.0.0.1:{}", 200), ("LOCALHOST.", 200), ("127.8.8.8", 200), ("[::1]:1", 200),
    ("evil.example:{}", 421), ("192.168.1.20:{}", 421), ("", 421), ("localhost.evil.example", 421), ("a b", 421),
    ("evil@localhost", 421), ("localhost:x", 421), ("[::1", 421)])
def test_other_names_for_this_machine_are_refused(opened, name, code):
    page = opened(parts.stream())
    for path in PATHS[:1] + PATHS[2:3]:
        assert ask(page, path, headers={"Host": name.format(page.port)})[0] == code


def test_of_a_server_for_others_names_are_checked_too(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    page = opened(parts.stream(), address="0.0.0.0:0")
    for name, code in [(f"192.168.1.20:{page.port}", 401), (socket.gethostname(), 401), ("evil.example", 421)]:
        assert ask(page, "/", headers={"Host": name})[0] == code


def test_two_hosts_or_none_are_refused(opened):
    page = opened(parts.stream())
    for head in (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
                 b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"):
        with raw(page) as connection:
            connection.sendall(head)
            assert until_closed(connection).split()[1] in (b"400", b"421")


@pytest.mark.parametrize("origin, code", [("http://127.0.0.1:{}", 101), ("http://evil.example", 403), ("null", 403),
                                          ("http://127.0.0.1:1", 403), ("", 403)])
def test_scripts_of_other_sites_get_no_websocket(opened, origin, code):
    page = opened(parts.stream())
    with raw(page) as connection:
        connection.sendall(f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nUpgrade: websocket\r\n"
                           f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n"
                           f"Origin: {origin.format(page.port)}\r\n\r\n".encode())
        assert connection.recv(65536).split()[1] == str(code).encode()


def test_only_reading_is_answered(opened):
    page = opened(parts.stream())
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        assert ask(page, "/", method)[0] == 405
    for path in ("/", "/status.json", "/gate.mjpg"):
        assert ask(page, path, "HEAD")[0] == 200 and ask(page, path, "HEAD")[2] == b""


@pytest.mark.parametrize("path", [
    "/../web.py", "/%2e%2e/web.py", "/..%2f..%2fetc/passwd.jpg", "/gate", "/gate.png", "/GATE.jpg", "/gate.jpg/",
    "//gate.jpg", "/.jpg", "/.mjpg", "/web.html", "/results/web.py", "/%00.jpg", "/gate.jpg%00", "/%ff%fe.jpg",
    "/gate.jpg.mjpg"])
def test_no_path_leaves_the_list_of_streams(opened, path):
    page = opened(parts.stream())
    assert ask(page, path)[0] == 404


# ---- who holds it up ----

UPGRADE = (b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22 + b"==\r\n\r\n")


def test_a_head_that_does_not_end_is_cut(opened, monkeypatch):
    monkeypatch.setattr(door, "HEAD_SECONDS", 0.5)
    page = opened(parts.stream())
    for begin in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "):
        with raw(page) as connection:
            connection.sendall(begin)
            assert until_closed(connection) == b""
    wait(lambda: not page.door.guards)


def test_a_hundred_slow_clients_hold_nothing_up(opened):
    gate = parts.stream()
    page = opened(gate)
    page.write(parts.result(gate))
    connections = [raw(page) for _ in range(100)]
    for number, connection in enumerate(connections):
        connection.sendall([b"", b"GET /gate.jpg HT",
                            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n"][number % 3])
    assert alive(page) and ask(page, "/gate.jpg")[0] == 200
    for connection in connections:
        connection.close()


def test_beyond_a_number_of_connections_the_newest_is_cut(opened, monkeypatch):
    monkeypatch.setattr(door, "MOST_CONNECTIONS", 20)
    page = opened(parts.stream())
    connections = [raw(page) for _ in range(20)]
    wait(lambda: len(page.door.guards) == 20)
    assert until_closed(raw(page)) == b""
    for connection in connections:
        connection.close()
    wait(lambda: not page.door.guards)
    assert alive(page)


@pytest.mark.parametrize("head, line", [
    (b"GET /", b"a"), (b"GET / HTTP/1.1\r\nX: ", b"a"), (b"GET / HTTP/1.1\r\n", b"X: a\r\n"),
    (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n", b"a" * 100),
    (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"64\r\n" + b"a" * 100 + b"\r\n"),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    (UPGRADE, b"\x81\x8e\0\0\0\0" + b'{"streams":[]}')])
def test_heads_and_bodies_of_any_length_are_cut(opened, head, line):
    page = opened(parts.stream())
    with raw(page) as connection:
        try:
            connection.sendall(head)
            for _ in range(2000):
                connection.sendall(line * max(1, 65536 // len(line)))
            pytest.fail("all of it was taken")
        except ConnectionError:
            pass
    assert alive(page)


@pytest.mark.parametrize("sent", [b"\x81\xff" + b"\xff" * 8, b"\x81\x80\x00\x00\x00\x00", b"\xff" * 100,
                                  b"\x82\x81\0\0\0\0a", b"\x81\x82\0\0\0\0[]",
                                  b"\x81\x8f\0\0\0\0" + b'{"streams": 12}', b"\x88\x80\0\0\0\0"])
def test_a_websocket_that_talks_nonsense_is_closed(opened, sent):
    page = opened(parts.stream())
    with raw(page) as connection:
        connection.sendall(UPGRADE + sent)
        until_closed(connection)
    wait(lambda: not page.viewers and not page.door.guards)
    assert alive(page)


@pytest.fixture(scope="module")
def fuzzed():
    gate = parts.stream()
    page = Web("0", [gate])
    page.write(parts.result(gate))
    yield page
    assert alive(page) and ask(page, "/gate.jpg")[0] == 200
    page.close()


PIECES = st.sampled_from([b"GET ", b"HEAD ", b"POST ", b"/", b"/gate.jpg", b"/gate.mjpg", b"/ws", b"/events",
                          b" HTTP/1.1", b" HTTP/1.0", b" HTTP/9.9", b"\r\n", b"\n", b"\r\n\r\n", b"Host: localhost",
                          b"Host: ", b":",
                          b"Content-Length: ", b"-1", b"99999999999999999999", b"Transfer-Encoding: chunked",
                          b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
                          b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Cookie: ", b"Authorization: Basic ",
                          b"Origin: ", b"Expect: 100-continue", b"\x00", b"\xff", b"%", b"%00", b"?", b"#", b"[::"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=20).map(b"".join))
@pytest.mark.slow
def test_no_bytes_break_it(fuzzed, sent):
    with raw(fuzzed) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
    assert fuzzed.thread.is_alive() and fuzzed.encoder.is_alive()


# ---- beginning and end ----

@pytest.mark.parametrize("address, expected", [("8000", ("127.0.0.1", 8000)), (8000, ("127.0.0.1", 8000)),
                                               (":80", ("127.0.0.1", 80)), ("0.0.0.0:1", ("0.0.0.0", 1)),
                                               ("[::1]:8000", ("::1", 8000)), ("board.lan:8000", ("board.lan", 8000))])
def test_an_address_is_a_port_or_a_host_and_a_port(address, expected):
    assert parse(address) == expected


@pytest.mark.parametrize("address", ["", "host", "host:", "99999", "::1:8000", "http://127.0.0.1:8000", "a b:8000",
                                     "-1", "8000/", "me:pw@host:8000"])
def test_a_bad_address_is_a_sentence(address):
    with pytest.raises(InputError, match="--web"):
        parse(address)


def test_without_aiohttp_the_sentence_names_it(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "results.answers", None)
    with pytest.raises(InputError, match="pip install aiohttp"):
        opened(parts.stream())


def test_an_address_in_use_or_of_another_machine_is_a_sentence(opened, monkeypatch):
    page = opened(parts.stream())
    with pytest.raises(InputError, match="in use"):
        opened(parts.stream(), address=str(page.port))
    with pytest.raises(InputError, match="no address of that name"):
        opened(parts.stream(), address="nowhere.invalid:8000")
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    with pytest.raises(InputError, match="cannot listen"):
        opened(parts.stream(), address="192.0.2.1:8000")


def test_close_ends_every_connection_and_thread(opened):
    gate = parts.stream()
    before = threading.active_count()
    page = opened(gate)
    with Playing(page, gate):
        connections = [raw(page) for _ in range(10)]
        for connection, path in zip(connections, ["/gate.mjpg", "/events", "/gate.mjpg", "/events"]):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(100)
        page.close()
        page.close()
        for connection in connections:
            until_closed(connection)
    assert threading.active_count() == before


def given_up_for_lack_of(field, page, gate):
    """Write a result whose detections lack a field: the page finds it out beside the stream, which is told once."""
    broken = parts.result(gate, [(1, "person", 10)])
    setattr(broken.detections, field, None)
    page.write(broken)
    wait(lambda: page.broken)
    with pytest.raises(InputError, match="--web"):
        page.write(parts.result(gate))


def test_detections_that_cannot_be_told_cost_the_stream_nothing_but_the_page(opened):
    gate = parts.stream()
    page = opened(gate)
    with urllib.request.urlopen(f"{page.url}events", timeout=PATIENCE):
        wait(lambda: page.listeners)
        given_up_for_lack_of("scores", page, gate)


def test_a_page_whose_numbers_can_no_longer_be_told_does_not_stand_still_unsaid(opened):
    gate = parts.stream()
    page = opened(gate)
    with raw(page) as connection:
        connection.sendall(UPGRADE)
        wait(lambda: page.viewers)
        given_up_for_lack_of("name", page, gate)


def test_what_waits_for_a_listener_is_bounded(opened, monkeypatch):
    monkeypatch.setattr(answers, "MOST_TEXTS", 10)
    gate = parts.stream("g" * 10000)
    page = opened(gate)
    with raw(page) as connection:
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait(lambda: page.listeners)
        listener, = page.listeners
        for _ in range(5):  # 10 MB each, which nobody reads
            for _ in range(2000):
                page.write(parts.result(gate))
            assert len(page.records) <= web.MOST_RECORDS
            wait(lambda: not page.records)
            assert len(listener.texts) <= 10
