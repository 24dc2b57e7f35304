"""--web: the page in a browser, the addresses for scripts, access control, slow clients."""

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
from types import SimpleNamespace

import cv2
import fakes
import numpy as np
import pytest
from browser import MISSING, Browser
from fakes import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import arguments
import main
import results
from vision.errors import InputError

aiohttp = pytest.importorskip("aiohttp", reason="pip install aiohttp")
from proxy import PREFIX, Proxy  # noqa: E402

from results import access, routes, status, web  # noqa: E402
from results.access import parse_address  # noqa: E402
from results.jsonl import as_dict  # noqa: E402
from results.web import Web  # noqa: E402

needs_browser = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
WAIT_SECONDS = 30  # seconds to wait for an answer


@pytest.fixture
def opened(printed):
    """opened(*streams, address="0", names=()): a Web, closed at the end of the test."""
    pages = []

    def open_(*streams_, address="0", names=()):
        pages.append(Web(address, streams_, names))
        return pages[-1]

    yield open_
    for page in pages:
        page.close()


class Playing:
    """Writes a result of each stream 30 times per second. Its grey level is its number."""

    def __init__(self, page, *streams_, make=fakes.result, **fields):
        self.page, self.streams, self.stop = page, streams_, threading.Event()
        self.make = lambda stream: make(stream, [(1, "person", 10)], **fields)
        self.thread = threading.Thread(target=self.play, daemon=True)
        self.thread.start()

    def play(self):
        while not self.stop.wait(1 / 30):
            for stream in self.streams:
                if stream.ended is None and not stream.away:
                    self.page.write(self.make(stream))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def ask(page, path, method="GET", headers=None, host="127.0.0.1"):
    """Send a request. Returns status, headers and body."""
    connection = http.client.HTTPConnection(host, page.port, timeout=WAIT_SECONDS)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def raw(page):
    return socket.create_connection(("127.0.0.1", page.port), timeout=WAIT_SECONDS)


def until_closed(connection):
    """Receive until the server closes the connection."""
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
    """Return the number that fakes.result() drew as a grey level."""
    return round(float(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE).mean()))


# ---- in a browser ----

NUMBERS = "return [...document.querySelectorAll('article')].map(card => card.innerText)"
PICTURES = """return [...document.querySelectorAll('article img')].map(image => {
    const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
    const context = canvas.getContext('2d');
    if (image.naturalWidth) context.drawImage(image, 0, 0, 1, 1);
    return [image.naturalWidth, context.getImageData(0, 0, 1, 1).data[0]]})"""


def moves(browser, count=1):
    """Wait until each of `count` pictures has changed at least twice."""
    seen = [set() for _ in range(count)]

    def changed():
        pictures = browser.run(PICTURES)
        for values, (width, value) in zip(seen, pictures):
            if width:
                values.add(value)
        return len(pictures) == count and all(len(values) > 2 for values in seen)

    wait_until(changed)


@needs_browser
def test_the_page_shows_live_pictures_and_numbers(opened):
    gate = fakes.stream()
    gate.meter = SimpleNamespace(recent_limit=lambda: "Limited by the NPU.")
    page = opened(gate)
    lines = {"door": {"in": {"person": 3}, "out": {}}}
    with Playing(page, gate, lines=lines, zones={"lawn": {"dog": 2}}), Browser() as browser:
        browser.open(page.url)
        moves(browser)
        first = browser.run(NUMBERS)
        wait_until(lambda: browser.run(NUMBERS) != first)
        limit = browser.run("return document.querySelector('#limit').textContent")
        assert limit == "Limited by the NPU."
        for words in (
            "gate",
            "live",
            "FPS 25.0",
            "latency",
            "person 1",
            "door in 3: person 3",
            "door out 0",
            "lawn 2: dog 2",
        ):
            assert words in first[0]


@pytest.mark.slow
@needs_browser
def test_the_page_shows_that_a_stream_is_away_or_has_ended(opened):
    gate, yard = fakes.stream(), fakes.stream("yard")
    page = opened(gate, yard)
    with Playing(page, gate, yard), Browser() as browser:
        browser.open(page.url)
        moves(browser, 2)
        gate.away, yard.ended = True, time.perf_counter()
        wait_until(
            lambda: "reconnecting" in browser.run(NUMBERS)[0] and "ended" in browser.run(NUMBERS)[1]
        )
        gate.away = False
        wait_until(lambda: "live" in browser.run(NUMBERS)[0])


@pytest.mark.slow
@needs_browser
def test_after_the_end_of_the_program_the_page_does_not_show_that_it_plays(opened):
    gate, video = fakes.stream(), fakes.stream("video", live=False)
    page = opened(gate, video)
    with Browser() as browser:
        browser.open(page.url)
        wait_until(lambda: "playing" in str(browser.run(NUMBERS)))
        video.ended = time.perf_counter()  # the page learns it although it is closed at once
        page.close()
        wait_until(lambda: "no connection" in browser.run(NUMBERS)[0])
        assert "the stream has ended" in browser.run(NUMBERS)[1]


@pytest.mark.slow
@needs_browser
def test_the_page_reconnects_by_itself(opened):
    gate = fakes.stream()
    page = opened(gate)
    lost = "return !document.querySelector('#lost').hidden"
    with Browser() as browser:
        with Playing(page, gate):
            browser.open(page.url)
            moves(browser)
            assert not browser.run(lost)
        page.close()
        wait_until(lambda: browser.run(lost))
        again, yard = opened(gate, yard := fakes.stream("yard"), address=str(page.port)), yard
        with Playing(again, gate, yard):
            wait_until(lambda: not browser.run(lost))
            moves(browser, 2)


@pytest.mark.slow
@needs_browser
def test_one_page_shows_sixteen_streams(opened):
    many = [fakes.stream(f"camera {number}") for number in range(16)]
    page = opened(*many)
    with Playing(page, *many), Browser(height=3300) as browser:
        browser.open(page.url)
        moves(browser, 16)
        assert alive(page)


@pytest.mark.slow
@needs_browser
def test_only_visible_streams_are_encoded(opened):
    many = [fakes.stream(f"camera {number}") for number in range(16)]
    page = opened(*many)
    with Playing(page, *many), Browser(width=400, height=500) as browser:
        browser.open(page.url)
        wait_until(lambda: page.feeds["camera 0"].clients)
        last = page.feeds["camera 15"]
        assert not last.clients
        browser.run("document.querySelector('article:last-child').scrollIntoView()")
        wait_until(lambda: last.clients and not page.feeds["camera 0"].clients)


@pytest.mark.slow
@needs_browser
def test_the_page_is_in_chinese_and_fits_a_phone(opened):
    gate = fakes.stream("一个名字很长的摄像头：小区南门外停车场入口" * 3)
    page = opened(gate)
    with Playing(page, gate), Browser(width=500, height=700, language="zh-CN") as browser:
        browser.open(page.url)
        moves(browser)
        assert "实时" in browser.run(NUMBERS)[0] and "延迟" in browser.run(NUMBERS)[0]
        assert browser.run("return document.documentElement.lang") == "zh"
        assert (
            browser.run(
                "document.body.style.width = '320px';"
                "return document.querySelector('article').getBoundingClientRect().right"
            )
            <= 320
        )
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@needs_browser
def test_names_are_shown_as_text_and_not_as_markup(opened):
    name = "<img src=x onerror=alert(1)> & \"'"
    gate = fakes.stream(name)
    page = opened(gate)
    with Playing(page, gate, zones={name: {name: 1}}), Browser() as browser:
        browser.open(page.url)
        moves(browser)
        assert browser.run("return document.querySelector('h2 span').textContent") == name
        assert browser.run("return document.querySelectorAll('img').length") == 1


@pytest.mark.slow
@needs_browser
def test_a_browser_with_the_password_shows_the_page(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret ü")
    gate = fakes.stream()
    page = opened(gate)
    with Playing(page, gate), Browser() as browser:
        browser.open(page.url.replace("//", "//me:s3cret%20%C3%BC@"))
        moves(browser)


# ---- for scripts ----


def test_the_status_has_the_documented_keys(opened, monkeypatch, tmp_path):
    gate, yard = fakes.stream(), fakes.stream("yard", live=False)
    gate.meter = SimpleNamespace(recent_limit=lambda: "Limited by the NPU.")
    page = opened(gate, yard)
    lines, zones = {"door": {"in": {"person": 3}, "out": {"car": 1}}}, {"lawn": {"dog": 2}}
    page.write(fakes.result(gate, [(1, "person", 10), (2, "person", 50)], lines=lines, zones=zones))
    gate.dropped, gate.failed = 7, 1
    failed = fakes.result(gate)
    failed.error = "the NPU failed"
    page.write(failed)
    monkeypatch.setattr(status, "SYSROOT", str(tmp_path))
    (tmp_path / "sys/kernel/debug/rknpu").mkdir(parents=True)
    (tmp_path / "sys/kernel/debug/rknpu/load").write_text(
        "NPU load:  Core0: 98%, Core1:  5%, Core2:  0%,\n"
    )
    for number, (kind, temp) in enumerate(
        [("soc-thermal", "41500\n"), ("npu-thermal", "45000\n"), ("broken", "")]
    ):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(kind)
        (zone / "temp").write_text(temp)
    code, headers, body = ask(page, "/status.json")
    answer = json.loads(body)
    assert code == 200 and headers["Content-Type"].startswith("application/json")
    assert answer["npu"] == {"load": [98, 5, 0], "temperature": 45.0}
    assert answer["limit"] == "Limited by the NPU."
    assert answer["temperatures"] == {"soc-thermal": 41.5, "npu-thermal": 45.0}
    assert list(answer["streams"]) == ["gate", "yard"]
    seen = answer["streams"]["gate"]
    assert (seen["fps"], seen["frames"], seen["dropped"], seen["failed"], seen["live"]) == (
        25.0,
        2,
        7,
        1,
        True,
    )
    assert (seen["lines"], seen["zones"], seen["objects"]) == (
        lines,
        zones,
        {"person": 2},
    ) and seen["latency_ms"] >= 20
    unseen = answer["streams"]["yard"]
    assert (unseen["latency_ms"], unseen["lines"], unseen["zones"], unseen["live"]) == (
        None,
        None,
        None,
        False,
    )


def test_jpg_returns_the_newest_picture(opened):
    gate = fakes.stream("dir/gate 前.mp4")
    page = opened(gate)
    for _ in range(3):
        for _ in range(40):
            page.write(fakes.result(gate))
        code, headers, body = ask(page, "/dir/gate%20%E5%89%8D.mp4.jpg")
        assert code == 200 and headers["Content-Type"] == "image/jpeg"
        assert abs(grey(body) - (gate.count - 1)) <= 1


def test_opencv_plays_the_motion_jpeg(opened, tmp_path):
    gate = fakes.stream()
    page = opened(gate)
    with Playing(page, gate):
        capture = cv2.VideoCapture(f"{page.url}gate.mjpg", cv2.CAP_FFMPEG)
        frames = [capture.read() for _ in range(5)]
        capture.release()
    assert all(ok for ok, _ in frames)
    values = [int(frame.mean()) for _, frame in frames]
    assert values == sorted(values) and len(set(values)) == 5


def test_events_contain_the_json_of_every_result(opened):
    gate = fakes.stream()
    page = opened(gate)
    with urllib.request.urlopen(f"{page.url}events", timeout=WAIT_SECONDS) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        wait_until(lambda: page.event_clients)
        written = [fakes.result(gate, [(1, "person", 10)]) for _ in range(100)]
        for result in written:
            page.write(result)
        lines = (line for line in answer if line.startswith(b"data: "))
        assert [json.loads(next(lines)[6:]) for _ in written] == [
            json.loads(json.dumps(as_dict(r))) for r in written
        ]
    wait_until(lambda: page.write(fakes.result(gate)) or not page.event_clients)


@pytest.mark.slow
def test_a_result_without_a_picture_is_reported_once(opened, printed, monkeypatch):
    monkeypatch.setattr(routes, "PICTURE_SECONDS", 0.5)
    gate = fakes.stream()
    page = opened(gate)
    with Playing(page, gate, picture="nothing"):
        assert ask(page, "/gate.jpg")[0] == 503
        assert alive(page)
    assert sum("does not return a picture" in line for line in printed) == 1


# ---- cost ----


class RecordsDrawing:
    """A result that records when its picture is drawn."""

    def __init__(self, stream, asked):
        self.__dict__.update(vars(fakes.result(stream)), asked=asked)
        self.drawn = self.__dict__.pop("picture")

    @property
    def picture(self):
        self.asked.append(self.number)
        return self.drawn


def test_pictures_are_drawn_once_for_all_clients_and_only_if_somebody_watches(opened):
    gate, yard, asked, unwanted = fakes.stream(), fakes.stream("yard"), [], []
    page = opened(gate, yard)
    for _ in range(100):
        page.write(RecordsDrawing(gate, asked))
    assert alive(page) and not asked

    async def look(count):
        async with aiohttp.ClientSession() as session:
            sockets = [await session.ws_connect(f"{page.url}ws") for _ in range(count)]
            for each in sockets:
                await each.send_json({"streams": ["gate"]})
            got, began = [set() for _ in sockets], time.monotonic()
            while not all(len(pictures) >= 8 for pictures in got):
                page.write(RecordsDrawing(gate, asked))
                page.write(RecordsDrawing(yard, unwanted))
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
    assert not unwanted  # nobody watches this stream
    assert len(asked) == len(set(asked))  # each picture was drawn once
    assert set.intersection(*got)  # all clients got the same JPEG
    wait_until(lambda: not page.feeds["gate"].clients)
    drawn = len(asked)
    for _ in range(100):
        page.write(RecordsDrawing(gate, asked))
    assert alive(page) and len(asked) - drawn <= 1  # the encoder may have been drawing one


def test_a_slow_client_gets_the_newest_picture_and_delays_no_other(opened, monkeypatch):
    noise = np.random.default_rng(1).integers(0, 256, (720, 1280, 3), np.uint8)  # 700 KB a picture
    gate = fakes.stream()
    page = opened(gate)
    with Playing(page, gate, picture=noise):
        slow = raw(page)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /gate.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: page.feeds["gate"].clients)
        with urllib.request.urlopen(f"{page.url}gate.mjpg", timeout=WAIT_SECONDS) as answer:
            got = sum(answer.readline().startswith(b"Content-Length") for _ in range(2000))
            assert slow.recv(1000)
        assert got
        transport = next(iter(page.access.connections))
        assert transport.get_write_buffer_size() < 3e6  # pictures do not accumulate
        slow.close()
        wait_until(lambda: page.write(fakes.result(gate)) or not page.feeds["gate"].clients)


def test_a_hundred_clients_are_served_and_forgotten(opened):
    gate = fakes.stream()
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
        wait_until(lambda: not page.feeds["gate"].clients and not page.access.connections)


# ---- access ----


def test_without_a_host_only_this_machine_has_access(opened):
    page = opened(fakes.stream())
    assert page.url == f"http://127.0.0.1:{page.port}/"
    assert [s.getsockname()[0] for s in page.listening.sockets] == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_another_host_requires_a_password(opened, host, monkeypatch):
    monkeypatch.delenv("RKNNPOOL_WEB_PASSWORD", raising=False)
    with pytest.raises(InputError, match="RKNNPOOL_WEB_PASSWORD"):
        opened(fakes.stream(), address=f"{host}:0")


PATHS = ["/", "/ws", "/status.json", "/events", "/gate.jpg", "/gate.mjpg", "/nothing"]


@pytest.mark.slow
def test_without_the_password_no_address_is_accessible(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    gate = fakes.stream()
    page = opened(gate, address="0.0.0.0:0")
    page.write(fakes.result(gate))

    def basic(text):
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    for path in PATHS:
        code, headers, _ = ask(page, path)
        assert code == 401 and headers["WWW-Authenticate"].startswith("Basic")
    for wrong in (
        basic("me:wrong"),
        basic("s3cret"),
        basic("me:"),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Bearer s3cret"},
        {"Cookie": "rknnpool=1"},
        {"Cookie": f"rknnpool{page.port}="},
    ):
        assert ask(page, "/status.json", headers=wrong)[0] == 401
    code, headers, _ = ask(page, "/", headers=basic("anyone:s3cret"))
    assert (
        code == 200
        and "HttpOnly" in headers["Set-Cookie"]
        and "s3cret" not in headers["Set-Cookie"]
    )
    cookie = headers["Set-Cookie"].split(";")[0]
    assert ask(page, "/gate.jpg", headers={"Cookie": cookie})[0] == 200


@pytest.mark.parametrize(
    "name, code",
    [
        ("localhost:{}", 200),
        ("127.0.0.1:{}", 200),
        ("LOCALHOST.", 200),
        ("127.8.8.8", 200),
        ("[::1]:1", 200),
        ("evil.example:{}", 421),
        ("192.168.1.20:{}", 421),
        ("", 421),
        ("localhost.evil.example", 421),
        ("a b", 421),
        ("evil@localhost", 421),
        ("localhost:x", 421),
        ("[::1", 421),
    ],
)
def test_unknown_host_names_are_refused(opened, name, code):
    page = opened(fakes.stream())
    for path in PATHS[:1] + PATHS[2:3]:
        assert ask(page, path, headers={"Host": name.format(page.port)})[0] == code


def test_host_names_are_checked_on_a_public_server(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    page = opened(fakes.stream(), address="0.0.0.0:0")
    for name, code in [
        (f"192.168.1.20:{page.port}", 401),
        (socket.gethostname(), 401),
        ("evil.example", 421),
    ]:
        assert ask(page, "/", headers={"Host": name})[0] == code


def test_requests_with_no_or_two_hosts_are_refused(opened):
    page = opened(fakes.stream())
    for head in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ):
        with raw(page) as connection:
            connection.sendall(head)
            assert until_closed(connection).split()[1] in (b"400", b"421")


@pytest.mark.parametrize(
    "origin, code",
    [
        ("http://127.0.0.1:{}", 101),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
        ("", 403),
    ],
)
def test_scripts_of_other_sites_cannot_open_a_websocket(opened, origin, code):
    page = opened(fakes.stream())
    with raw(page) as connection:
        connection.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {'A' * 22}==\r\n"
            f"Origin: {origin.format(page.port)}\r\n\r\n".encode()
        )
        assert connection.recv(65536).split()[1] == str(code).encode()


@pytest.mark.parametrize(
    "host, origin, code",
    [
        ("cam.example.com", "https://cam.example.com", 101),
        ("CAM.example.com.:8443", "https://cam.example.com:8443", 101),
        ("cam.example.com", "https://cam.example.com:8443", 101),  # nginx's $host has no port
        ("cam.example.com:443", "https://cam.example.com", 101),
        ("127.0.0.1:8000", "https://Cam.Example.com", 101),  # a proxy that does not keep Host
        ("xn--kln-sna.example", "http://xn--kln-sna.example", 101),
        ("[2001:db8::1]:8000", "http://[2001:db8::1]:8000", 101),
        ("localhost:80", "http://localhost", 101),
        ("localhost:80", "https://localhost", 403),
        ("cam.example.com", "https://evil.example", 403),
        ("cam.example.com", "https://cam.example.com.evil.example", 403),
        ("other.example.com", "https://other.example.com", 421),
    ],
)
def test_the_page_accepts_every_web_name(opened, host, origin, code):
    page = opened(fakes.stream(), names=["cam.EXAMPLE.com:8443", "köln.example", "2001:db8::1"])
    headers = {"Host": host, "Upgrade": "websocket", "Connection": "Upgrade"}
    headers.update({"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 22 + "=="})
    with raw(page) as connection:
        lines = [f"{name}: {value}" for name, value in {**headers, "Origin": origin}.items()]
        connection.sendall("\r\n".join(["GET /ws HTTP/1.1", *lines, "", ""]).encode())
        answer = connection.recv(65536).decode(errors="replace")
        assert answer.split()[1] == str(code), answer
        if code == 403:
            assert f"--web-name {origin.split('//')[1].split(':')[0]}" in answer
        elif code == 421:
            assert f"--web-name {host}" in answer


def test_the_password_is_enough_under_any_name(opened, monkeypatch):
    """Scripts of another site that forge a name for this address do not know the password."""
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    page = opened(fakes.stream(), address="0.0.0.0:0")
    host = {"Host": "board.fritz.box"}
    for text, code in (("any:s3cret", 200), ("any:wrong", 421)):
        login = "Basic " + base64.b64encode(text.encode()).decode()
        assert ask(page, "/", headers={**host, "Authorization": login})[0] == code
    code, _, body = ask(page, "/", headers=host)
    assert code == 421 and b"--web-name board.fritz.box" in body


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("keep_host", [True, False])
@pytest.mark.parametrize("path", [PREFIX, f"{PREFIX}/"])
def test_the_page_works_below_a_path_of_a_proxy(opened, keep_host, path, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    gate = fakes.stream()
    page = opened(gate, address="0.0.0.0:0", names=["proxy.localhost"])
    lost = "return document.querySelector('#lost:not([hidden])')?.textContent || ''"
    with Proxy(page, keep_host) as proxy, Playing(page, gate), Browser() as browser:
        if not keep_host:  # nor does it say which name was asked for
            browser.open(f"http://me:s3cret@other.localhost:{proxy.port}{path}")
            wait_until(lambda: "--web-name other.localhost" in browser.run(lost))
        browser.open(f"http://me:s3cret@proxy.localhost:{proxy.port}{path}")
        moves(browser)
        browser.open(f"http://proxy.localhost:{proxy.port}{PREFIX}/gate.jpg")
        wait_until(lambda: browser.run("return document.images[0].naturalWidth") == 640)


def test_the_cookie_is_valid_below_the_pages_path_only(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    page = opened(fakes.stream())
    login = "Basic " + base64.b64encode(b"me:s3cret").decode()
    headers = ask(page, "/", headers={"Authorization": login})[1]
    assert "path" not in headers["Set-Cookie"].lower()


@pytest.mark.parametrize(
    "name", ["", "a b", "https://cam.example.com", "cam/gate", "[::1", "x" * 70]
)
def test_an_invalid_web_name_is_refused(opened, name):
    with pytest.raises(InputError, match="--web-name .*must be a host name"):
        opened(fakes.stream(), names=[name])


@pytest.mark.parametrize(
    "forwarded, code",
    [
        ("cam.example.com", 101),
        ("CAM.example.com:443, inner.proxy", 101),
        ("other.example.com", 403),
        ("", 403),
    ],
)
def test_a_proxy_may_name_the_host_that_it_replaced(opened, forwarded, code):
    page = opened(fakes.stream())
    headers = f"Origin: https://cam.example.com\r\nX-Forwarded-Host: {forwarded}\r\n\r\n"
    with raw(page) as connection:
        connection.sendall(UPGRADE[:-2] + headers.encode())
        assert connection.recv(65536).split()[1] == str(code).encode()
    # it is no name of this server: a page under a forged name can set the header
    forged = {"Host": "evil.example", "X-Forwarded-Host": "localhost"}
    assert ask(page, "/", headers=forged)[0] == 421


def test_web_name_needs_web_and_is_passed_to_the_page(monkeypatch, printed):
    def parse(*flags):
        monkeypatch.setattr(sys, "argv", ["main.py", "--headless", *flags])
        return arguments.parse(vars(main), None)

    with pytest.raises(InputError, match="--web-name needs --web"):
        parse("--web-name", "cam.example.com")
    gate = fakes.stream()
    gate.sinks = []
    args = parse("--web", "0", "--web-name", "cam.example.com", "--web-name", "board.local:8000")
    (page,), _ = results.open_sinks(args, [gate])
    for name in ("cam.example.com", "board.local"):
        assert ask(page, "/", headers={"Host": name})[0] == 200
    page.close()


def test_only_get_and_head_are_answered(opened):
    page = opened(fakes.stream())
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        assert ask(page, "/", method)[0] == 405
    for path in ("/", "/status.json", "/gate.mjpg"):
        assert ask(page, path, "HEAD")[0] == 200 and ask(page, path, "HEAD")[2] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/../web.py",
        "/%2e%2e/web.py",
        "/..%2f..%2fetc/passwd.jpg",
        "/gate",
        "/gate.png",
        "/GATE.jpg",
        "/gate.jpg/",
        "//gate.jpg",
        "/.jpg",
        "/.mjpg",
        "/web.html",
        "/results/web.py",
        "/%00.jpg",
        "/gate.jpg%00",
        "/%ff%fe.jpg",
        "/gate.jpg.mjpg",
    ],
)
def test_unknown_paths_are_not_found(opened, path):
    page = opened(fakes.stream())
    assert ask(page, path)[0] == 404


# ---- slow and hostile clients ----

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + b"A" * 22 + b"==\r\n\r\n"
)


def test_an_incomplete_request_is_aborted(opened, monkeypatch):
    monkeypatch.setattr(access, "REQUEST_SECONDS", 0.5)
    page = opened(fakes.stream())
    for begin in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "):
        with raw(page) as connection:
            connection.sendall(begin)
            assert until_closed(connection) == b""
    wait_until(lambda: not page.access.connections)


def test_a_hundred_slow_clients_delay_nothing(opened):
    gate = fakes.stream()
    page = opened(gate)
    page.write(fakes.result(gate))
    connections = [raw(page) for _ in range(100)]
    for number, connection in enumerate(connections):
        connection.sendall(
            [
                b"",
                b"GET /gate.jpg HT",
                b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n",
            ][number % 3]
        )
    assert alive(page) and ask(page, "/gate.jpg")[0] == 200
    for connection in connections:
        connection.close()


def test_connections_beyond_the_limit_are_aborted(opened, monkeypatch):
    monkeypatch.setattr(access, "MAX_CONNECTIONS", 20)
    page = opened(fakes.stream())
    connections = [raw(page) for _ in range(20)]
    wait_until(lambda: len(page.access.connections) == 20)
    assert until_closed(raw(page)) == b""
    for connection in connections:
        connection.close()
    wait_until(lambda: not page.access.connections)
    assert alive(page)


@pytest.mark.parametrize(
    "head, line",
    [
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\nX: ", b"a"),
        (b"GET / HTTP/1.1\r\n", b"X: a\r\n"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n", b"a" * 100),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"64\r\n" + b"a" * 100 + b"\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ),
        (UPGRADE, b"\x81\x8e\0\0\0\0" + b'{"streams":[]}'),
    ],
)
def test_requests_and_bodies_without_end_are_aborted(opened, head, line):
    page = opened(fakes.stream())
    with raw(page) as connection:
        try:
            connection.sendall(head)
            for _ in range(2000):
                connection.sendall(line * max(1, 65536 // len(line)))
            pytest.fail("everything was accepted")
        except ConnectionError:
            pass
    assert alive(page)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x81\xff" + b"\xff" * 8,
        b"\x81\x80\x00\x00\x00\x00",
        b"\xff" * 100,
        b"\x82\x81\0\0\0\0a",
        b"\x81\x82\0\0\0\0[]",
        b"\x81\x8f\0\0\0\0" + b'{"streams": 12}',
        b"\x88\x80\0\0\0\0",
    ],
)
def test_a_websocket_that_sends_invalid_data_is_closed(opened, sent):
    page = opened(fakes.stream())
    with raw(page) as connection:
        connection.sendall(UPGRADE + sent)
        until_closed(connection)
    wait_until(lambda: not page.pages and not page.access.connections)
    assert alive(page)


@pytest.fixture(scope="module")
def fuzzed():
    gate = fakes.stream()
    page = Web("0", [gate])
    page.write(fakes.result(gate))
    yield page
    assert alive(page) and ask(page, "/gate.jpg")[0] == 200
    page.close()


PIECES = st.sampled_from(
    [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"/",
        b"/gate.jpg",
        b"/gate.mjpg",
        b"/ws",
        b"/events",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b" HTTP/9.9",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"Host: localhost",
        b"Host: ",
        b":",
        b"Content-Length: ",
        b"-1",
        b"99999999999999999999",
        b"Transfer-Encoding: chunked",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"Cookie: ",
        b"Authorization: Basic ",
        b"Origin: ",
        b"Expect: 100-continue",
        b"\x00",
        b"\xff",
        b"%",
        b"%00",
        b"?",
        b"#",
        b"[::",
    ]
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=20).map(b"".join))
@pytest.mark.slow
def test_arbitrary_bytes_do_not_stop_the_server(fuzzed, sent):
    with raw(fuzzed) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
    assert fuzzed.thread.is_alive() and fuzzed.encoder.is_alive()


# ---- start and end ----


@pytest.mark.parametrize(
    "address, expected",
    [
        ("8000", ("127.0.0.1", 8000)),
        (8000, ("127.0.0.1", 8000)),
        (":80", ("127.0.0.1", 80)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:8000", ("::1", 8000)),
        ("board.lan:8000", ("board.lan", 8000)),
    ],
)
def test_an_address_is_a_port_or_host_and_port(address, expected):
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        "99999",
        "::1:8000",
        "http://127.0.0.1:8000",
        "a b:8000",
        "-1",
        "8000/",
        "me:pw@host:8000",
    ],
)
def test_an_invalid_address_is_refused(address):
    with pytest.raises(InputError, match="--web"):
        parse_address(address)


def test_a_missing_aiohttp_is_named(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "results.routes", raising=False)
    with pytest.raises(InputError, match="--web needs the package aiohttp.* install aiohttp$"):
        opened(fakes.stream())


def test_an_address_in_use_or_of_another_machine_is_refused(opened, monkeypatch):
    page = opened(fakes.stream())
    with pytest.raises(InputError, match="in use"):
        opened(fakes.stream(), address=str(page.port))
    with pytest.raises(InputError, match="unknown host name"):
        opened(fakes.stream(), address="nowhere.invalid:8000")
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    with pytest.raises(InputError, match="cannot listen"):
        opened(fakes.stream(), address="192.0.2.1:8000")


def test_close_ends_every_connection_and_thread(opened):
    gate = fakes.stream()
    before = threading.active_count()
    page = opened(gate)
    with Playing(page, gate):
        connections = [raw(page) for _ in range(10)]
        for connection, path in zip(
            connections, ["/gate.mjpg", "/events", "/gate.mjpg", "/events"]
        ):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(100)
        page.close()
        page.close()
        for connection in connections:
            until_closed(connection)
    assert threading.active_count() == before


def break_page(field, page, gate):
    """Write a result whose detections lack a field. The next write() reports the error."""
    broken = fakes.result(gate, [(1, "person", 10)])
    setattr(broken.detections, field, None)
    page.write(broken)
    wait_until(lambda: page.broken)
    with pytest.raises(InputError, match="--web"):
        page.write(fakes.result(gate))


def test_invalid_detections_stop_this_sink_and_not_the_stream(opened):
    gate = fakes.stream()
    page = opened(gate)
    with urllib.request.urlopen(f"{page.url}events", timeout=WAIT_SECONDS):
        wait_until(lambda: page.event_clients)
        break_page("scores", page, gate)


def test_a_page_that_cannot_show_its_status_reports_it(opened):
    gate = fakes.stream()
    page = opened(gate)
    with raw(page) as connection:
        connection.sendall(UPGRADE)
        wait_until(lambda: page.pages)
        break_page("name", page, gate)


def test_events_waiting_for_a_slow_client_are_limited(opened, monkeypatch):
    monkeypatch.setattr(routes, "MAX_EVENTS", 10)
    gate = fakes.stream("g" * 10000)
    page = opened(gate)
    with raw(page) as connection:
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: page.event_clients)
        (client,) = page.event_clients
        for _ in range(5):  # 10 MB each, which the client does not read
            for _ in range(2000):
                page.write(fakes.result(gate))
            assert len(page.records) <= web.MAX_RECORDS
            wait_until(lambda: not page.records)
            assert len(client.events) <= 10
