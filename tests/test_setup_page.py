"""Setting up counting on the page of --web: drawn with mouse and finger; hostile requests."""

import base64
import functools
import http.client
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
from browser import MISSING, Browser
from conftest import ROOT
from fakes import wait_until
from proxy import PREFIX, Proxy
from test_lines import STREET, true_counts
from test_web import NUMBERS, WAIT_SECONDS, Playing, alive, ask, moves, raw, until_closed
from tqdm import tqdm

pytest.importorskip("aiohttp", reason="pip install aiohttp")
import arguments  # noqa: E402
import func  # noqa: E402
import main  # noqa: E402
import results  # noqa: E402
from results import routes  # noqa: E402
from results.lines import Lines, parse  # noqa: E402
from results.result import FrameTask, Result  # noqa: E402
from results.setup import Setup  # noqa: E402
from results.snapshots import Snapshots  # noqa: E402
from results.tracking import Tracker  # noqa: E402
from results.web import Web, encode_jpeg  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from streams import Stream  # noqa: E402
from vision.coco import COCO_CLASSES  # noqa: E402
from vision.detections import Detections  # noqa: E402
from vision.errors import InputError  # noqa: E402

needs_browser = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
DOOR = [[0.2, 0.2], [0.2, 0.8]]
NAMES = ["person", "car", "dog"]


@pytest.fixture
def opened(printed, tmp_path):
    """opened(*streams, flags={}, **options): a Web whose streams can be set up, closed after the
    test. flags: what the command line gives."""
    opened = []

    def open_(*streams, flags=(), address="0", **options):
        args = dict(lines={}, zones={}, conf=None, classes=None, reset_counts=False)
        args = SimpleNamespace(**{**args, **dict(flags)})
        model = SimpleNamespace(names=NAMES, conf=args.conf, class_ids=None)
        func = SimpleNamespace(settings_of=None)
        names = [stream.name for stream in streams]
        setup = Setup(str(tmp_path / "site.json"), names, args, model, func)
        opened.append(setup.attach(streams))
        opened.append(Web(address, streams, setup=setup, **options))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


# ---- in a browser ----

# the grey level of the first picture; 0 while it is being loaded
GREY = """const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
    context.drawImage(document.querySelector('article img'), 0, 0);
    return context.getImageData(0, 0, 1, 1).data[0];"""
SNAPSHOT_WIDTH = "const i = document.querySelector('#snapshots img'); return i && i.naturalWidth"


@pytest.fixture(scope="module")
def browser():
    with Browser(1300, 900) as opened:
        yield opened


class Editor:
    """The page in a browser, with the first stream being set up."""

    def __init__(self, browser, page):
        self.browser, self.page, self.name = browser, page, next(iter(page.feeds))
        browser.open(page.url)
        wait_until(lambda: browser.run("return document.querySelector('.edit:not([hidden])')"))
        self.browser.run("document.querySelector('.edit').click()")
        wait_until(lambda: browser.run("return document.querySelector('article.editing img')"))
        wait_until(lambda: self.box()[3] > 100)

    def box(self):
        """Left, top, width and height of the picture in the window."""
        script = "const r = document.querySelector('svg').getBoundingClientRect();"
        return self.browser.run(f"{script} return [r.left, r.top, r.width, r.height]")

    def drag(self, *points, kind="mouse"):
        """Drag from point to point: fractions of the picture."""
        left, top, width, height = self.box()
        pixels = ((left + x * width, top + y * height) for x, y in points)
        self.browser.drag(*pixels, kind=kind)

    def press(self, text):
        """Click a button with this text."""
        script = "return [...document.querySelectorAll('.setup button')].find(b => b.textContent"
        self.browser.run(f"({script[7:]} === arguments[0])).click()", text)

    def draw(self, what, *points, kind="mouse"):
        self.press(f"+ {what}")
        self.drag(*points, kind=kind)

    def names(self):
        """The names of the lines and zones, as they are drawn."""
        return self.browser.run(
            "return [...document.querySelectorAll('svg text')].map(t => t.textContent)"
        )

    def message(self):
        return self.browser.run("return document.querySelector('.message').textContent")

    def wait_for(self, **expected):
        """Wait until the program has these values, and return its state."""
        wait_until(
            lambda: all(self.state()[key] == value for key, value in expected.items()), expected
        )
        return self.state()

    def state(self):
        return self.page.setup.state(self.name)

    def centre(self, selector):
        """The centre of the last element that matches, in fractions of the picture."""
        left, top, width, height = self.box()
        x, y = self.browser.run(
            "const all = [...document.querySelectorAll(arguments[0])];"
            "const r = all[all.length - 1].getBoundingClientRect();"
            "return [r.left + r.width / 2, r.top + r.height / 2]",
            selector,
        )
        return (x - left) / width, (y - top) / height

    def enter(self, selector, value):
        """Set the value of an input, as a user does who then leaves it."""
        self.browser.run(
            "const input = document.querySelector(arguments[0]); input.value = arguments[1];"
            "for (const type of ['input', 'change']) input.dispatchEvent(new Event(type))",
            selector,
            value,
        )

    def wait_for_points(self, kind, name, points):
        """Wait until the program has these points of a line or zone, but for half a pixel."""

        def there():
            found = self.state()[kind].get(name, ())
            return len(found) == len(points) and all(
                abs(a - b) < 0.002 for one, other in zip(found, points) for a, b in zip(one, other)
            )

        wait_until(there, f"{name} {points}")


@pytest.fixture
def editor(opened, browser):
    """An Editor of the stream gate, which plays."""
    gate = fakes.stream()
    page = opened(gate)
    with Playing(page, gate):
        yield Editor(browser, page)


@pytest.mark.slow
@needs_browser
def test_a_line_is_drawn_turned_round_moved_renamed_and_deleted(editor):
    editor.draw("Line", (0.2, 0.2), (0.3, 0.5), (0.2, 0.8))
    editor.wait_for_points("lines", "line1", DOOR)
    assert editor.centre(".flip.grip")[0] < 0.2  # right, seen from the first point
    editor.drag(editor.centre(".flip.grip"))
    editor.wait_for_points("lines", "line1", DOOR[::-1])
    assert editor.centre(".flip.grip")[0] > 0.2
    editor.drag((0.2, 0.2), (0.4, 0.1))  # its second point
    editor.wait_for_points("lines", "line1", [[0.2, 0.8], [0.4, 0.1]])
    editor.drag((0.25, 0.625), (0.35, 1.2))  # all of it, to the edge of the picture
    editor.wait_for_points("lines", "line1", [[0.3, 1], [0.5, 0.3]])
    editor.browser.run("document.querySelector('.setup input[type=text]').select()")
    editor.browser.type("门 (north)")
    editor.drag((0.9, 0.1))  # a click beside the line
    editor.wait_for_points("lines", "门 (north)", [[0.3, 1], [0.5, 0.3]])
    editor.drag((0.4, 0.65))
    editor.press("Delete")
    editor.wait_for(lines={})


@pytest.mark.slow
@needs_browser
def test_a_zone_is_drawn_with_a_finger_and_gets_and_loses_a_corner(editor):
    editor.draw("Zone", (0.2, 0.2), (0.4, 0.3), (0.6, 0.6), kind="touch")
    square = [[0.2, 0.2], [0.6, 0.2], [0.6, 0.6], [0.2, 0.6]]
    editor.wait_for_points("zones", "zone1", square)
    editor.drag((0.4, 0.2), (0.4, 0.1), kind="touch")  # the middle of an edge
    editor.wait_for_points("zones", "zone1", [square[0], [0.4, 0.1], *square[1:]])
    editor.drag((0.6, 0.2), (0.402, 0.102), kind="touch")  # a corner onto the one beside it
    editor.wait_for_points("zones", "zone1", [square[0], [0.4, 0.1], *square[2:]])


@pytest.mark.slow
@needs_browser
def test_changes_are_used_at_once_and_saved_or_discarded(editor):
    editor.enter(".setup input[type=range]", "0.6")
    editor.wait_for(conf=0.6, saved=False)
    editor.browser.run("document.querySelectorAll('.classes input')[1].click()")
    editor.wait_for(classes=["car"])
    editor.press("Save")
    editor.wait_for(saved=True)
    wait_until(lambda: editor.message() == "Saved.")
    editor.draw("Line", *DOOR)
    editor.wait_for(saved=False)
    wait_until(lambda: "not saved" in editor.message())
    editor.press("Discard")
    editor.wait_for(lines={}, saved=True)
    wait_until(lambda: not editor.browser.run("return document.querySelectorAll('svg g').length"))


@pytest.mark.slow
@needs_browser
def test_the_later_of_two_browsers_gets_a_message_and_what_the_other_has_changed(editor):
    answer = post(editor.page, {"lines": {"door": DOOR}}, version=editor.state()["version"])
    assert answer[0] == 200, answer
    editor.draw("Line", (0.7, 0.2), (0.7, 0.8))
    wait_until(lambda: editor.browser.run("return document.querySelector('.message.bad') !== null"))
    assert editor.message() == post(editor.page, {}, version=1)[1]
    wait_until(lambda: editor.names() == ["door"])
    assert list(editor.state()["lines"]) == ["door"]
    editor.draw("Line", (0.7, 0.2), (0.7, 0.8))
    wait_until(lambda: list(editor.state()["lines"]) == ["door", "line1"])
    editor.enter(".setup input[type=text]", "<b>\"/'</b>")
    wait_until(lambda: "its name must consist of" in editor.message())
    wait_until(lambda: editor.names() == ["door", "line1"])  # the old name is back
    assert editor.browser.run("return document.querySelectorAll('article b b, svg b').length") == 0


@pytest.mark.slow
@needs_browser
def test_after_a_restart_the_editor_shows_the_settings_of_the_new_run(opened, browser):
    gate = fakes.stream()
    page = opened(gate)
    with Playing(page, gate):
        editor = Editor(browser, page)
        editor.draw("Line", *DOOR)
        editor.wait_for(saved=False)
    for readonly in (False, True):
        page.close()
        wait_until(lambda: browser.run("return !document.querySelector('#lost').hidden"))
        page = opened(gate, address=str(page.port), readonly=readonly)
        with Playing(page, gate):
            if readonly:
                wait_until(lambda: not browser.run("return document.querySelector('.editing')"))
            else:
                wait_until(lambda: "main.py was restarted" in editor.message())
                assert editor.names() == []


class Waiting(Stream):
    """The demo video at 10 FPS, after a dark picture that stays until `play` is set."""

    def __init__(self):
        super().__init__(str(ROOT / "models/demo.mp4"), "demo", max_fps=10)
        self.play = threading.Event()

    def frames(self):
        yield Result(self, -1, -0.1, np.zeros((720, 1280, 3), np.uint8), time.perf_counter())
        self.play.wait()
        yield from super().frames()


class Recording:
    """A sink that keeps what counting needs."""

    def __init__(self):
        self.results = []

    def write(self, result):
        fields = {key: getattr(result, key) for key in ("detections", "size", "number", "time")}
        self.results.append(SimpleNamespace(**fields, overlay=[]))

    def close(self):
        pass


@pytest.mark.slow
@needs_browser
def test_lines_drawn_with_the_mouse_on_the_demo_count_the_truth_and_the_same_as_by_flag(
    opened, browser, runtime, demo_truth, demo_detections
):
    # what the demo model finds, so that the test does not run it: nothing in the dark picture
    found = iter([(np.empty((0, 4)), np.empty(0, int), np.empty(0)), *demo_detections[::3]])
    recorded = SimpleNamespace(
        detect=lambda *_: Detections(*next(found), COCO_CLASSES), draw=func.draw
    )
    stream, recording = Waiting(), Recording()
    page = opened(stream)
    stream.tracker, stream.sinks = Tracker(), [page, recording]
    with rknnPoolExecutor("", 1, FrameTask(recorded), runtime=runtime) as pool:
        thread = threading.Thread(target=stream.run, args=(pool, tqdm(disable=True), "", True))
        thread.start()
        editor = Editor(browser, page)
        for name, points in STREET.items():
            editor.draw("Line", *(np.array(points) / (1280, 720)))
            editor.enter(".setup input[type=text]", name)
        editor.press("Save")
        wait_until(
            lambda: list(editor.state()["lines"]) == list(STREET) and editor.state()["saved"]
        )
        stream.play.set()
        thread.join()
    lines = json.loads(Path(page.setup.path).read_text())["demo"]["lines"]
    counts = page.status()["streams"]["demo"]["lines"]
    assert counts == by_flag(lines, recording.results)
    for name, points in lines.items():
        pixels = np.array(points) * (1280, 720)
        right = true_counts(demo_truth["frames"][::6], demo_truth["ids"][::6], pixels)
        named = {
            way: {COCO_CLASSES[int(kind)]: count for kind, count in kinds.items()}
            for way, kinds in right.items()
        }
        assert counts[name] == named, name
    assert sum(sum(way.values()) for line in counts.values() for way in line.values()) > 40


def by_flag(lines, results):
    """What main.py --line ... counts in these results."""
    flags = [f"{name}:{','.join(map(str, np.ravel(points)))}" for name, points in lines.items()]
    counter = Lines(*parse(flags, []))
    for result in results:
        counter.update(result)
    return counter.counts


@pytest.mark.slow
@needs_browser
def test_the_picture_is_frozen_and_has_no_lines_while_they_are_drawn(opened, browser):
    class Drawn(Result):
        """A result whose picture gets lines: it becomes white."""

        def __init__(self, stream, _):
            super().__init__(stream, stream.count, 0, fakes.result(stream).picture, 0)
            self.overlay.append(lambda picture: picture.fill(255))

    gate = fakes.stream()
    page = opened(gate)
    page.write(Drawn(gate, []))
    with Playing(page, gate, make=Drawn):
        editor = Editor(browser, page)
        grey = functools.partial(browser.run, GREY)
        wait_until(lambda: gate.keeps_plain and 0 < grey() < 250)
        editor.press("Freeze")
        frozen, count = wait_until(grey), gate.count
        wait_until(lambda: gate.count > count + 10)
        assert grey() == frozen
        editor.press("Done")
        wait_until(lambda: not gate.keeps_plain and grey() > 250)


@pytest.mark.slow
@needs_browser
def test_what_flags_have_set_cannot_be_changed(opened, browser):
    gate = fakes.stream()
    page = opened(gate, flags={"lines": {"door": DOOR}, "conf": 0.4})
    with Playing(page, gate):
        editor = Editor(browser, page)
        editor.drag((0.2, 0.5), (0.5, 0.5))
        disabled = "return document.querySelector(arguments[0]).disabled"
        assert browser.run(disabled, "input[type=range]")
        assert browser.run(disabled, ".setup button")  # + Line
        editor.draw("Zone", (0.5, 0.5), (0.8, 0.8))
        wait_until(lambda: editor.state()["zones"])
        assert editor.state()["lines"] == {"door": DOOR} and editor.state()["conf"] == 0.4


@pytest.mark.slow
@needs_browser
def test_a_readonly_page_has_no_editor_and_shows_snapshots_with_names_as_text(opened, browser):
    gate = fakes.stream()
    page = opened(gate, readonly=True, snapshots=Shots())
    with Playing(page, gate):
        browser.open(page.url)
        moves(browser)
        wait_until(lambda: browser.run(SNAPSHOT_WIDTH))
        text = browser.run("return document.querySelector('#snapshots').textContent")
        assert "gate <b> crosses door in" in text
        for _ in range(2):  # the next status has come
            numbers = browser.run(NUMBERS)
            wait_until(lambda numbers=numbers: browser.run(NUMBERS) != numbers)
        assert browser.run("return document.querySelector('.edit').hidden")


@pytest.mark.slow
@needs_browser
def test_the_editor_fits_a_phone_in_chinese(opened, browser):
    gate = fakes.stream()
    page = opened(gate)
    with Playing(page, gate), browser.phone(360, 640, "zh-CN"):
        editor = Editor(browser, page)
        editor.draw("计数线", *DOOR, kind="touch")
        wait_until(lambda: editor.message() == "已生效，尚未保存。")
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        assert not browser.run(
            "return [...document.querySelectorAll('.setup *')].some(each => "
            "each.getBoundingClientRect().right > 360)"
        )


# ---- requests ----


def post(page, setup=None, body=None, headers=None, port=None, path="/setup.json", **fields):
    """POST a change of the stream gate. Returns status and sentence, or the new state."""
    if body is None:
        version = page.setup.state("gate")["version"]
        fields = {"stream": "gate", "action": "change", "version": version, **fields}
        body = json.dumps({**fields, "setup": setup}).encode()
    own = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{page.port}"}
    headers = {name: value for name, value in {**own, **(headers or {})}.items() if value}
    connection = http.client.HTTPConnection("127.0.0.1", port or page.port, timeout=30)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.status == 200 else text


HOSTILE = {
    "html": {"lines": {"<img src=x onerror=alert(1)>": DOOR}},
    "quotes": {"lines": {"\"'": DOOR}},
    "slash": {"lines": {"yard/door": DOOR}},
    "path": {"lines": {"../../etc/passwd": DOOR}},
    "long name": {"lines": {"x" * 10000: DOOR}},
    "empty name": {"zones": {"": [[0, 0], [1, 0], [1, 1]]}},
    "surrogate": {"lines": {"\ud800": DOOR}},
    "NaN": {"lines": {"door": [[0, float("nan")], [1, 1]]}},
    "Infinity": {"lines": {"door": [[0, float("inf")], [1, 1]]}},
    "huge integer": {"lines": {"door": [[0, 10**400], [1, 1]]}},
    "huge number": {"lines": {"door": [[0, 1e300], [1e300, 1]]}},
    "string": {"lines": {"door": [["0", "0"], ["1", "1"]]}},
    "word": {"lines": {"door": [["a", 0], [1, 1]]}},
    "truth": {"lines": {"door": [[True, False], [False, True]]}},
    "null": {"lines": {"door": [[None, 0], [1, 1]]}},
    "object": {"lines": {"door": {"x": 1}}},
    "no points": {"lines": {"door": []}},
    "one point": {"lines": {"door": [DOOR[0], DOOR[0]]}},
    "three points": {"lines": {"door": [*DOOR, [1, 1]]}},
    "lines as a list": {"lines": [DOOR]},
    "unknown key": {"line": {"door": DOOR}},
    "no object": [],
    "null instead": None,
    "no area": {"zones": {"yard": [[0, 0], [0.5, 0.5], [1, 1]]}},
    "bow tie": {"zones": {"yard": [[0, 0], [1, 1], [1, 0], [0, 1]]}},
    "51 lines": {"lines": {f"line{n}": DOOR for n in range(51)}},
    "many points": {"zones": {"yard": [[n / 1000, (n % 2)] for n in range(1000)]}},
    "confidence as a string": {"conf": "0.5"},
    "confidence above 1": {"conf": 1e9},
    "confidence NaN": {"conf": float("nan")},
    "unknown class": {"classes": ["<script>"]},
    "classes as a string": {"classes": "person"},
    "classes as objects": {"classes": [{}]},
}


@pytest.mark.parametrize("wrong", HOSTILE)
def test_a_hostile_setup_is_refused_with_a_sentence_and_changes_nothing(opened, wrong):
    page = opened(fakes.stream())
    before = page.setup.state("gate")
    status, sentence = post(page, HOSTILE[wrong])
    assert status == 400 and sentence.endswith((".\n", "?\n")) and len(sentence) < 400, sentence
    assert "Traceback" not in sentence and page.setup.state("gate") == before and alive(page)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"gate"',
        b"\xff\xfe",
        b"[" * 30000,
        b'{"stream": "gate"}',
        b'{"stream": "gate", "action": "__class__", "version": 1}',
        b'{"stream": "nothing", "action": "reset"}',
        b'{"stream": ["gate"], "action": "reset"}',
        b'{"stream": "gate", "action": "change", "version": 1, "setup": NaN}',
        b'{"stream": "gate", "action": "change", "version": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_request_that_is_not_a_valid_command_is_refused(opened, body):
    page = opened(fakes.stream())
    before = page.setup.state("gate")
    status, sentence = post(page, body=body)
    assert status == 400 and sentence.endswith(".\n") and len(sentence) < 200, sentence
    assert page.setup.state("gate") == before and alive(page)


@pytest.mark.parametrize("version", [0, -1, 1e300, "1", None, True, [1], {}, 10**400])
def test_a_change_of_another_version_is_refused(opened, version):
    page = opened(fakes.stream())
    assert post(page, {"lines": {"door": DOOR}})[0] == 200
    status, sentence = post(page, {}, version=version)
    assert status in (400, 409) and sentence.endswith(".\n")
    assert list(page.setup.state("gate")["lines"]) == ["door"]


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Content-Type": None}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_only_the_page_itself_can_send_changes(opened, headers, status):
    page = opened(fakes.stream())
    assert post(page, {"lines": {"door": DOOR}}, headers=headers)[0] == status
    assert len(page.setup.state("gate")["lines"]) == (status == 200)


def test_a_change_needs_the_password(opened, monkeypatch):
    monkeypatch.setenv("RKNNPOOL_WEB_PASSWORD", "s3cret")
    page = opened(fakes.stream())
    login = {"Authorization": "Basic " + base64.b64encode(b"me:s3cret").decode()}
    assert post(page, {"lines": {"door": DOOR}})[0] == 401
    assert ask(page, "/setup.json")[0] == 401 and not page.setup.state("gate")["lines"]
    assert post(page, {"lines": {"door": DOOR}}, headers=login)[0] == 200


def test_a_readonly_page_shows_the_setup_and_refuses_changes(opened):
    page = opened(fakes.stream(), readonly=True)
    status, sentence = post(page, {"lines": {"door": DOOR}})
    assert status == 403 and "--web-readonly" in sentence
    assert post(page, action="reset")[0] == post(page, action="discard")[0] == 403
    assert json.loads(ask(page, "/setup.json")[2])["gate"] == page.setup.state("gate")
    assert not page.setup.state("gate")["lines"] and not page.status()["editable"]


def test_web_readonly_needs_web_and_reaches_the_page(monkeypatch, printed):
    def parse(*flags):
        monkeypatch.setattr(sys, "argv", ["main.py", "--headless", *flags])
        return arguments.parse(vars(main), None)

    with pytest.raises(InputError, match="--web-readonly needs --web"):
        parse("--web-readonly")
    for flags, readonly in (((), False), (("--web-readonly",), True)):
        stream = fakes.stream()
        stream.sinks = []
        (page,), _ = results.open_sinks(parse("--web", "0", *flags), [stream])
        assert page.readonly is readonly
        page.close()


def test_a_page_without_a_setup_has_no_editor(opened):
    html = ask(opened(fakes.stream()), "/")[2]
    assert b"class Editor" in html and b".grip" in html
    page = Web("0", [fakes.stream()])
    html = ask(page, "/")[2]
    assert b"class Editor" not in html and b".grip" not in html
    assert ask(page, "/setup.json")[0] == 404 and not page.status()["editable"]
    assert ask(page, "/setup.json", "POST", {"Origin": f"http://127.0.0.1:{page.port}"})[0] == 404
    page.close()


def test_other_methods_and_addresses_accept_no_changes(opened):
    page = opened(fakes.stream())
    for method, path in (("PUT", "/setup.json"), ("DELETE", "/setup.json"), ("POST", "/gate.jpg")):
        assert ask(page, path, method)[0] == 405


def test_a_request_that_is_too_large_or_too_slow_is_ended(opened, monkeypatch):
    monkeypatch.setattr(routes, "RESPONSE_SECONDS", 0.5)
    page = opened(fakes.stream())
    status, sentence = post(page, body=b"[" + b"1," * 20000 + b"1]")
    assert status == 413 and sentence == (
        "The request is too large: it must have at most 32768 bytes.\n"
    )
    head = (
        f"POST /setup.json HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n"
        f"Origin: http://127.0.0.1:{page.port}\r\nContent-Type: application/json\r\n"
    )
    with raw(page) as connection:
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        assert until_closed(connection) == b""
    chunk = b"6000\r\n" + b"[" * 0x6000 + b"\r\n"
    with raw(page) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 2 * chunk)
        assert until_closed(connection).split()[1] == b"413"
    wait_until(lambda: not page.access.connections)
    assert alive(page)


def test_a_disk_that_hangs_stops_neither_page_nor_pictures(opened, monkeypatch):
    gate = fakes.stream()
    page, hangs, goes_on = opened(gate), threading.Event(), threading.Event()

    def fsync(_):
        hangs.set()
        assert goes_on.wait(WAIT_SECONDS)

    monkeypatch.setattr(os, "fsync", fsync)
    with ThreadPoolExecutor() as executor, Playing(page, gate):
        save = executor.submit(post, page, {"conf": 0.5}, save=True)
        assert hangs.wait(WAIT_SECONDS)
        read = executor.submit(ask, page, "/setup.json")
        try:
            wait_until(read.running)
            for _ in range(5):
                assert ask(page, "/gate.jpg")[0] == 200
            assert not save.done()
        finally:
            goes_on.set()
        assert save.result()[0] == 200 and read.result()[0] == 200


def test_change_discard_and_reset_return_the_new_state(opened):
    page = opened(fakes.stream())
    status, state = post(page, {"lines": {"door": DOOR}}, save=False)
    assert status == 200 and state == page.setup.state("gate") and not state["saved"]
    assert post(page, action="reset")[1]["lines"] == {"door": DOOR}
    assert post(page, action="discard")[1]["lines"] == {}


class Shots:
    """Snapshots, as results/snapshots.py gives them."""

    count = 1

    def newest(self, most):
        crossing = {"event": "crosses", "line": "door", "direction": "in"}
        shot = {"file": "a b.jpg", "stream": "gate", "class": "<b>", "time": 1.5, "track": 1}
        return [{**shot, **crossing}][:most]

    def jpeg(self, name):
        return encode_jpeg(np.zeros((20, 30, 3), np.uint8)) if name == "a b.jpg" else None


def test_only_the_listed_snapshots_can_be_requested(opened, tmp_path):
    name, other = "2026-11-29_141502.123_gate_person_appears.jpg", "secret.jpg"
    for file in (name, other, "../secret.jpg"):
        (tmp_path / "shots").mkdir(exist_ok=True)
        (tmp_path / "shots" / file).write_bytes(encode_jpeg(np.zeros((20, 30, 3), np.uint8)))
    snapshots = Snapshots(str(tmp_path / "shots"), 10)
    page = opened(fakes.stream("snapshots"), snapshots=snapshots)
    assert ask(page, "/snapshots.json")[0] == 200 and page.status()["snapshots"] == 0
    assert ask(page, f"/snapshots/{name}")[2][:2] == b"\xff\xd8"
    for path in ("", other, "../secret.jpg", "..%2fsecret.jpg", "/etc/passwd", "%00", f"x/{name}"):
        assert ask(page, f"/snapshots/{path}")[0] == 404
    snapshots.close()


@pytest.mark.parametrize("keep_host", [True, False])
def test_changes_pass_a_proxy_unless_they_come_from_another_site(opened, keep_host):
    page = opened(fakes.stream(), names=["proxy.localhost"])
    with Proxy(page, keep_host) as proxy:
        own, other = (f"http://{name}:{proxy.port}" for name in ("proxy.localhost", "evil.example"))
        for origin, status in ((own, 200), (other, 403)):
            headers = {"Host": own.partition("//")[2], "Origin": origin}
            path = f"{PREFIX}/setup.json"
            assert post(page, {}, headers=headers, port=proxy.port, path=path)[0] == status
