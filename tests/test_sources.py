"""Sources of frames: main.py waits for those that may appear later, and reports those that never
can."""

import base64
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from conftest import ROOT, frames_of, number_in
from test_live import CAMERAS, Camera, Running, needs_gst
from tqdm import tqdm

import sources
import streams
from results.video import open_saver
from rknnpool import rknnPoolExecutor
from sources.names import hide, name_streams, split_name
from sources.url_probe import refusal
from vision.errors import InputError
from vision.frame import Frame
from vision.model import describe

needs_av = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="this reader is PyAV: pip install av"
)
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's python3-opencv has GStreamer


# ---- hosts that refuse ----


def digest_is_right(header, method, user, password, realm, nonce):
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', header))
    inner = hashlib.md5(f"{user}:{realm}:{password}".encode()).hexdigest()
    what = hashlib.md5(f"{method}:{fields.get('uri')}".encode()).hexdigest()
    middle = (
        f"{nonce}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}" if "qop" in fields else nonce
    )
    return fields.get("response") == hashlib.md5(f"{inner}:{middle}:{what}".encode()).hexdigest()


class Host:
    """A server that answers every request of one protocol with the same status. 401 requires the
    login admin, s3cret."""

    def __init__(self, protocol, status, kind="text/html", challenge="", stale=False):
        host = self
        self.asked = 0

        class Http(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                host.asked += 1
                code = host.after(self.headers.get("Authorization", ""), "GET")
                self.send_response(code)
                self.send_header("Content-Type", kind)
                if code == 401:
                    self.send_header("WWW-Authenticate", challenge)
                self.end_headers()

            def log_message(self, *_):
                pass

        class Rtsp(socketserver.StreamRequestHandler):
            def handle(self):
                while True:
                    head = []
                    for line in self.rfile:
                        if line == b"\r\n":
                            break
                        head.append(line.decode().strip())
                    if not head:
                        return
                    host.asked += 1
                    login = next((line for line in head if line.startswith("Authorization:")), "")
                    code = host.after(login, head[0].split()[0])
                    sequence = next(line for line in head if line.startswith("CSeq"))
                    more = f"WWW-Authenticate: {challenge}\r\n" if code == 401 else ""
                    self.wfile.write(f"RTSP/1.0 {code} Said\r\n{sequence}\r\n{more}\r\n".encode())

        self.status, self.challenge = status, challenge
        self.server = socketserver.ThreadingTCPServer(
            ("127.0.0.1", 0), Http if protocol == "http" else Rtsp
        )
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def after(self, login, method):
        """The status for a request with this Authorization."""
        if not self.challenge:
            return self.status
        if "Basic" in login:
            right = base64.b64encode(b"admin:s3cret").decode() in login
        else:
            right = digest_is_right(login, method, "admin", "s3cret", "camera", "77")
        return self.status if right else 401


BASIC, DIGEST = 'Basic realm="camera"', 'Digest realm="camera", nonce="77"'
QUALITY = 'Digest realm="camera", nonce="77", qop="auth", algorithm=MD5, opaque="5"'


@pytest.fixture
def host():
    hosts = []

    def begin(*arguments, **options):
        hosts.append(Host(*arguments, **options))
        return hosts[-1]

    yield begin
    for one in hosts:
        one.server.shutdown()
        one.server.server_close()


@pytest.mark.parametrize("protocol", ["http", "rtsp"])
@pytest.mark.parametrize(
    "status, expected",
    [
        (404, "has nothing at this address (404)"),
        (403, "forbids access (403)"),
        (410, "any more (410)"),
        (451, "refuses it (451)"),
        (503, None),
        (429, None),
        (500, None),
    ],
)
def test_permanent_refusals_of_a_host_end_and_temporary_ones_are_retried(
    host, protocol, status, expected
):
    reason = refusal(f"{protocol}://127.0.0.1:{host(protocol, status).port}/live")
    assert reason is None if expected is None else expected in reason


@pytest.mark.parametrize("protocol", ["http", "rtsp"])
@pytest.mark.parametrize("challenge", [BASIC, DIGEST, QUALITY])
@pytest.mark.parametrize(
    "login, expected",
    [
        ("", "asks for a login (401)"),
        ("admin:wrong@", "refuses this user name"),
        ("admin:s3cret@", None),
    ],
)
def test_a_wrong_login_is_reported_and_a_right_one_is_accepted(
    host, protocol, challenge, login, expected
):
    # with the right login it is only not ready (503)
    place = host(protocol, 503, challenge=challenge)
    reason = refusal(f"{protocol}://{login}127.0.0.1:{place.port}/live")
    assert reason is None if expected is None else expected in reason


def test_a_web_page_is_not_a_video(host):
    assert "text/html, which is not a video" in refusal(
        f"http://127.0.0.1:{host('http', 200).port}/"
    )


@pytest.mark.parametrize(
    "protocol, status, challenge, expected",
    [
        ("http", 404, "", "has nothing at this address (404)"),
        ("rtsp", 404, "", "has nothing at this address (404)"),
        ("rtsp", 200, DIGEST, "refuses this user name or password (401)"),
        ("http", 200, BASIC, "refuses this user name or password (401)"),
    ],
)
def test_main_ends_at_once_and_shows_no_password(
    main_here, host, protocol, status, challenge, expected
):
    place = host(protocol, status, challenge=challenge)
    done = main_here(f"{protocol}://admin:hunter2@127.0.0.1:{place.port}/live", "--headless")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{protocol}://admin:***@127.0.0.1:{place.port}/live: the host ")
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr and "hunter2" not in done.stderr + done.stdout


@needs_gst
@pytest.mark.slow
def test_a_missing_stream_of_a_real_rtsp_server_is_reported(main_py, clip):
    camera = Camera(CAMERAS["rtsp"], "rtsp", ROOT / "models/demo.mp4")
    try:
        done = main_py(camera.url.replace("/demo", "/other"), "--headless")
    finally:
        camera.kill()
    assert done.returncode == 2 and "has nothing at this address (404)" in done.stderr


# ---- a camera that starts late ----


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [pytest.param("rtsp", marks=needs_gst), "http"])
def test_main_waits_for_a_camera_that_is_missing_at_the_start(plain_func, scheme):
    camera = Camera(CAMERAS[scheme], scheme, ROOT / "models/demo.mp4")
    camera.kill()  # its port is known now
    running = Running(
        f"gate={camera.url.replace('://', '://me:pass@')}", "--func", plain_func, "--threads", 1
    )
    running.wait_for_error("gate: not available yet, trying again")
    camera.start()
    try:
        running.wait_for_error("gate: connected after")
        running.wait_for_frames()
        code, stdout = running.end()
    finally:
        camera.kill()
    assert code == 130 and re.search(r"gate: \d+ frames in", stdout)
    assert not any("pass@" in line for line in running.errors)


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_still_waits_for_its_camera(plain_func):
    running = Running("late=http://127.0.0.1:9/x", ROOT / "models/demo.mp4", "--func", plain_func)
    running.wait_for_error("late: not available yet")
    running.wait_for_frames()
    assert running.end()[0] == 130


@pytest.mark.parametrize("reader", ["opencv", pytest.param("av", marks=needs_av)])
def test_a_file_from_a_server_that_starts_late_is_played_once_and_completely(
    clip, tmp_path, runtime, reader
):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    stream = streams.Stream(f"http://127.0.0.1:{port}/clip.avi", "late", reader=reader)
    assert stream.away
    saver = open_saver(str(tmp_path / "out.avi"), stream)
    stream.add_sink(saver)
    folder = functools.partial(Quiet, directory=str(clip.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
            stream.run(pool, tqdm(disable=True), quiet=True)
        server.shutdown()
    assert (stream.code, stream.count, stream.dropped, stream.unsaved) == (0, 45, 0, 0)
    assert not stream.live and not stream.away
    assert [number_in(frame) for frame in frames_of(tmp_path / "out.avi")] == list(range(45))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize("source", ["²", "٣", "9" * 20, "img_%099999999999d.png", "/dev/shm/x.mp4"])
def test_a_missing_source_with_a_name_like_a_number_or_camera_is_reported(source):
    with pytest.raises(InputError, match="no such file|no such camera|no picture matches"):
        sources.open_source(source)


@pytest.mark.parametrize(
    "signs, codes",
    [
        ("p#w", "%23 instead of #"),
        ("p/w", "%2F instead of /"),
        ("p?w", "%3F instead of ?"),
        ("p[w", "%5B instead of ["),
        ("1234/p?", "%2F instead of /, %3F instead of ?"),
    ],
)
@pytest.mark.parametrize("scheme", ["rtsp", "HTTP"])
def test_a_password_that_breaks_the_url_gets_the_codes_of_its_characters(signs, codes, scheme):
    with pytest.raises(InputError) as raised:
        sources.open_source(f"{scheme}://admin:{signs}@192.168.1.20:554/live")
    assert str(raised.value).endswith(f"in the password, write {codes}.")
    assert signs not in str(raised.value)


def test_hidden_files_of_a_folder_are_not_read_as_pictures(tmp_path):
    for name in ("IMG_1.jpg", "IMG_2.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 6, 3), np.uint8))
        (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7Mac OS X")  # macOS writes these
    assert sources.open_source(tmp_path).total == 2
    assert sources.open_source(tmp_path / "*.jpg").total == 2


@pytest.mark.parametrize("pattern", ["", "*.jpg", "%d.jpg"])
def test_a_folder_named_like_a_picture_is_no_picture_and_a_broken_link_is_reported(
    tmp_path, pattern
):
    cv2.imwrite(str(tmp_path / "1.jpg"), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "2.jpg").mkdir()
    (tmp_path / "3.jpg").symlink_to("none")
    opened = sources.open_source(tmp_path / pattern)
    assert opened.total == 2 and opened.read().shape == (4, 6, 3)
    with pytest.raises(InputError, match="3.jpg: a link to a missing file."):
        opened.read()
    with pytest.raises(InputError, match="3.jpg: a link to a missing file."):
        sources.open_source(tmp_path / "3.jpg")


def test_files_in_dev_shm_are_files(clip):
    if not os.path.isdir("/dev/shm"):
        pytest.skip("this system has no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        cv2.imwrite(f"{folder}/a.png", np.zeros((4, 6, 3), np.uint8))
        video = shutil.copy(clip, folder)
        pictures = [f"{folder}/a.png", folder, f"/dev/../dev/{folder[5:]}/*.png"]
        for source in [video, f"file://{video}", *pictures]:
            stream = streams.Stream(source)
            assert not stream.live and stream.source.total == (1 if source in pictures else 45)
            stream.source.release()


def test_all_sources_have_the_attributes_of_the_protocol(clip, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    opened = [sources.open_source(clip, "opencv"), sources.open_source(tmp_path)]
    if importlib.util.find_spec("av"):
        opened.append(sources.open_source(clip, "av"))
    for source in opened:
        for name in sources.Source.__annotations__:
            assert hasattr(source, name), (source, name)
        assert source.live is False and source.grab() and source.time == 0
        frame = source.frame()
        frame = frame.bgr() if isinstance(frame, Frame) else frame
        assert source.retrieve() is not frame and np.array_equal(source.retrieve(), frame)
        before = frame.copy()
        while source.grab():  # each frame is a new array
            source.retrieve()[:] = 7
        assert np.array_equal(frame, before)
        source.release()


# ---- names ----


@pytest.mark.parametrize(
    "text, shown",
    [
        ("rtsp://admin:hunter2@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://admin:p@ss/word@cam/live", "rtsp://admin:***@cam/live"),
        ("in 'http://:hunter2@cam:80/x' and", "in 'http://:***@cam:80/x' and"),
        ("http://cam/f?user=a&password=hunter2&b=1", "http://cam/f?user=a&password=***&b=1"),
        (
            "rtspsrc location=rtsp://a:pass1@cam/x user-pw=pass2 ! appsink",
            "rtspsrc location=rtsp://a:***@cam/x user-pw=*** ! appsink",
        ),
        ("http://cam:8080/a@b", "http://cam:8080/a@b"),
        ("rtsp://admin:it's@cam/live", "rtsp://admin:***@cam/live"),
        ("rtsp://me@mail.org:hunter2@cam/live", "rtsp://me@mail.org:***@cam/live"),
        ("rtsp://me@cam:554/live", "rtsp://me@cam:554/live"),
        ("srt://cam:9000?passphrase=hunter2&latency=9", "srt://cam:9000?passphrase=***&latency=9"),
        (
            "http://cam/f?access_token=hunter2&loginpas=hunter2&psw=hunter2",
            "http://cam/f?access_token=***&loginpas=***&psw=***",
        ),
        ("rtsp://cam/user=admin_password=hunter2_channel=1", "rtsp://cam/user=admin_password=***"),
        ("rtsp://admin:my secret@cam", "rtsp://admin:***@cam"),
        ("rtsp://u:1234/secret@h/x", "rtsp://u:***@h/x"),
        ("rtsp://u:1234/secret@192.168.1.5", "rtsp://u:***@192.168.1.5"),
        ("rtsp://my user:my secret@[::1]:554/x", "rtsp://my user:***@[::1]:554/x"),
        (
            "rtsp://cam:554/a: gone. rtsp://b:pass@c/x: gone",
            "rtsp://cam:554/a: gone. rtsp://b:***@c/x: gone",
        ),
        ('rtspsrc user-pw="two words" ! appsink', "rtspsrc user-pw=*** ! appsink"),
    ],
)
def test_a_password_is_shown_nowhere(text, shown):
    assert hide(text) == shown


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("gate=rtsp://a:b@cam/live?x=1", ("gate", "rtsp://a:b@cam/live?x=1")),
        ("front door=0", ("front door", "0")),
        ("http://cam/?a=b", (None, "http://cam/?a=b")),
        ("v4l2src device=/dev/video0 ! appsink", (None, "v4l2src device=/dev/video0 ! appsink")),
        ("shots/a=b.mp4", (None, "shots/a=b.mp4")),
    ],
)
def test_a_stream_is_named_on_the_command_line(argument, expected):
    assert split_name(argument) == expected


def test_unnamed_streams_get_short_unique_names_without_credentials():
    given = [
        "a/x.mp4",
        "b/x.mp4",
        "y.mp4",
        "y.mp4",
        "rtsp://me:pass@nvr:554/ch1",
        "rtsp://me:pass@nvr:554/ch2",
        "0",
        "/dev/video2",
        "shots/",
        "http://me:pass@cam/x?password=1",
    ]
    names = name_streams([("gate", "1"), *((None, source) for source in given)])
    assert names == [
        "gate",
        "a-x.mp4",
        "b-x.mp4",
        "y.mp4-1",
        "y.mp4-2",
        "nvr-ch1",
        "nvr-ch2",
        "camera0",
        "video2",
        "shots",
        "cam",
    ]
    assert len(set(name_streams([(None, "x.mp4"), (None, "x.mp4"), ("x.mp4-1", "0")]))) == 3


def test_cap_may_be_a_dict_whose_names_appear_everywhere(clip, tmp_path, plain_func):
    script = (
        f"import main\nmain.cap = {{'gate': {str(clip)!r}, 'yard': {str(clip)!r}}}\nmain.main()"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "--headless",
        "--func",
        plain_func,
        "--save",
        tmp_path / "out.avi",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "gate: 45 frames" in done.stdout and "yard: FPS over the last 30 frames" in done.stdout
    assert sorted(file.name for file in tmp_path.glob("*.avi")) == ["out_gate.avi", "out_yard.avi"]


# ---- arguments of Stream ----


def run(source, runtime, func=lambda context, result: result):
    """Process the source as a Stream to its end. Returns the stream."""
    stream = streams.Stream(source)
    with rknnPoolExecutor("model", 2, func, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    return stream


# ---- names of files in other encodings ----

# In the locale C of these settings Python takes names for ASCII.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale, encoding", [(ASCII, "utf-8"), ({}, "gbk")])
def test_names_in_any_encoding_are_read_saved_and_named(clip, tmp_path, locale, encoding):
    base, word = os.fsencode(tmp_path), "街道".encode(encoding)
    video, folder = base + b"/" + word + b".avi", base + b"/" + word
    shutil.copy(clip, video)
    os.mkdir(folder)
    picture = folder + b"/" + word + b".png"
    (tmp_path / "plain.png").write_bytes(cv2.imencode(".png", np.zeros((48, 64, 3)))[1])
    os.rename(tmp_path / "plain.png", picture)
    (tmp_path / "finds.py").write_text(
        "from vision.detections import Detections\n"
        "def detect(rknn_lite, IMG):\n    return Detections([[1, 2, 30, 40]], [0], [0.9])\n"
        "def draw(IMG, detections):\n    return IMG\n"
        "def myFunc(rknn_lite, IMG):\n    return draw(IMG, detect(rknn_lite, IMG))\n"
    )
    common = [sys.executable, "main.py", "--headless", "--quiet", "--func", tmp_path / "finds.py"]
    for source, target in ((video, base + b"/s" + word + b".avi"), (folder, base + b"/s" + word)):
        done = subprocess.run(
            [*common, source, "--save", target, "--json", tmp_path / "out.jsonl"],
            cwd=ROOT,
            capture_output=True,
            timeout=100,
            env={**os.environ, **locale},
        )
        assert done.returncode == 0, done.stderr
    os.rename(base + b"/s" + word + b".avi", tmp_path / "saved.avi")
    assert len(frames_of(tmp_path / "saved.avi")) == 45
    assert os.listdir(base + b"/s" + word) == [word + b".png"]
    records = [json.loads(line) for line in open(tmp_path / "out.jsonl", encoding="utf-8")]
    text = word.decode("utf-8", "backslashreplace")
    assert records[-1]["file"] == f"{text}.png"
    assert records[0]["stream"] == re.sub(r"[^\w.]+", "-", f"{text}.avi").strip("-")


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_a_file_url_names_the_bytes_of_the_name(clip, tmp_path, encoding):
    path = os.fsencode(tmp_path) + "/街道 1.avi".encode(encoding)
    shutil.copy(clip, path)
    source = sources.open_source(f"FILE://{quote(path)}")
    assert source.total == 45 and source.grab()


def test_a_name_that_looks_like_a_url_is_that_of_a_file(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "12:30.avi")
    for reader in ["opencv"] + ["av"] * bool(importlib.util.find_spec("av")):
        assert sources.open_source("12:30.avi", reader).total == 45


def test_a_name_that_the_terminal_cannot_show_is_printed_with_escapes(
    main_py, clip, tmp_path, plain_func
):
    video = tmp_path / "\u8857.avi"
    shutil.copy(clip, video)
    run = main_py(
        "--headless", "--func", plain_func, video, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert run.returncode == 0 and "\n\\u8857.avi: 45 frames" in run.stdout


def test_a_wheel_built_for_another_numpy_is_reported_and_the_cpu_is_used(
    main_py, clip, tmp_path, plain_func
):
    (tmp_path / "rknnlite").mkdir()
    (tmp_path / "rknnlite/__init__.py").touch()
    (tmp_path / "rknnlite/api.py").write_text("raise ValueError('numpy.dtype size changed')")
    run = main_py(
        "--headless",
        "--func",
        plain_func,
        clip,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RKNN_SOC": "rk3588"},
    )
    assert run.returncode == 0 and "cannot be imported (numpy.dtype size changed)" in run.stderr


def test_a_stream_accepts_a_path(clip, runtime):
    stream = run(Path(clip), runtime)
    assert (stream.code, stream.count, stream.name) == (0, 45, "clip.avi")


def test_a_stream_accepts_a_camera_number(clip, runtime, monkeypatch):
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: real(str(clip)))
    stream = streams.Stream(0)
    assert stream.live
    frames = stream.frames()
    assert next(frames).picture.shape == (360, 640, 3)
    frames.close()
    assert stream.released.is_set()


def test_a_source_is_closed_by_the_thread_that_reads_it(clip, runtime, monkeypatch):
    class Capture(sources.Video):
        readers, releasers = set(), []

        def grab(self):
            self.readers.add(threading.current_thread())
            return super().grab()

        def release(self):
            self.releasers.append(threading.current_thread())
            super().release()

    monkeypatch.setattr(sources, "Video", Capture)
    run(clip, runtime)
    assert set(Capture.releasers) == Capture.readers and len(Capture.releasers) == 1


@pytest.mark.parametrize("max_fps, expected", [(10, 15), (15, 23), (30, 45), (100, 45), (0.5, 1)])
def test_max_fps_limits_the_frames_of_a_file(clip, runtime, max_fps, expected):
    stream = streams.Stream(clip, max_fps=max_fps)
    with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert stream.count == expected and stream.number == 45


@pytest.fixture
def without_times(tmp_path):
    """Paths of a raw H.264 file of 30 frames, which has no times, and of three joined videos of 30
    frames."""
    av = pytest.importorskip("av", reason="PyAV makes such files")
    for name, kind in (("bare.h264", "h264"), ("one.ts", "mpegts")):
        with av.open(str(tmp_path / name), "w", format=kind) as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for number in range(30):
                picture = np.full((120, 160, 3), 8 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
            container.mux(stream.encode())
    (tmp_path / "joined.ts").write_bytes((tmp_path / "one.ts").read_bytes() * 3)
    return tmp_path / "bare.h264", tmp_path / "joined.ts"


@pytest.mark.parametrize("reader", ["opencv", "av"])
def test_the_time_increases_if_a_file_has_no_times_or_they_restart(without_times, runtime, reader):
    for path, count in zip(without_times, (30, 90)):
        stream, times = streams.Stream(path, reader=reader), []
        with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
            times = [result.time for result in stream.results(pool)]
            assert len(times) == count and (np.diff(times) > 0.02).all() and times[-1] < count / 20
            stream = streams.Stream(path, reader=reader, max_fps=10)
            stream.run(pool, tqdm(disable=True), quiet=True)
        assert abs(stream.count - times[-1] * 10) <= 2


# ---- pictures ----


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_the_exif_orientation_is_applied(tmp_path, extension):
    if extension == ".webp" and cv2.__version__.startswith("4.6"):
        pytest.skip("OpenCV 4.6 does not read the orientation of a .webp")
    from PIL import Image

    picture = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / f"turned{extension}", exif=exif)
    assert sources.open_source(tmp_path / f"turned{extension}").read().shape == (60, 40, 3)


def test_a_picture_too_large_for_opencv_is_skipped(tmp_path, runtime):
    for name in "ac":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((10, 10, 3), np.uint8))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)  # IHDR's width and height
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "b.png").write_bytes(content)
    stream = streams.Stream(tmp_path)
    with rknnPoolExecutor("model", 1, lambda context, result: result, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert (stream.count, stream.failed, stream.code, stream.error) == (2, 1, 2, None)


@pytest.mark.parametrize("name", ["", "img_%03d.jpg"])
def test_a_folder_without_read_permission_is_reported(tmp_path, monkeypatch, name):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", refuse)  # root may read everything
    for opened in (sources.open_source, describe)[: 1 if name else 2]:
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
            opened(os.path.join(tmp_path, name))


def test_pictures_are_sorted_by_name_or_number(tmp_path):
    for number in (1, 2, 10):
        cv2.imwrite(str(tmp_path / f"img_{number}.png"), np.full((4, 6, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")

    def order(source):
        opened = sources.open_source(source)
        return [int(opened.read()[0, 0, 0]) for _ in range(opened.total)]

    assert order(tmp_path) == order(tmp_path / "*.png") == [1, 10, 2]
    assert order(tmp_path / "img_%d.png") == [1, 2, 10]
    assert order(tmp_path / "img_%02d.png") == [10]
    with pytest.raises(InputError, match="no picture matches"):
        sources.open_source(tmp_path / "img_%04d.png")


# ---- formats of frames ----


class Capture:
    """A cv2.VideoCapture of one frame."""

    def __init__(self, frame, height):
        self.frame, self.height = frame, height

    def get(self, what):
        return {
            cv2.CAP_PROP_FRAME_HEIGHT: self.height,
            cv2.CAP_PROP_FRAME_WIDTH: self.frame.shape[1],
        }.get(what, 0)

    def grab(self):
        return True

    def retrieve(self):
        return True, self.frame


def as_nv12(picture):
    planar = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    h, w = picture.shape[:2]
    u, v = planar[h : h * 5 // 4].reshape(-1), planar[h * 5 // 4 :].reshape(-1)
    return np.concatenate([planar[:h], np.stack([u, v], 1).reshape(h // 2, w)])


@pytest.mark.parametrize(
    "source, convert",
    [
        ("v4l2src ! video/x-raw,format=NV12 ! appsink", as_nv12),
        (
            "v4l2src ! video/x-raw,format=NV12 ! videoconvert ! video/x-raw,format=I420 ! appsink",
            lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420),
        ),
        (
            "filesrc ! h264parse ! I420 ! appsink",
            lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420),
        ),
        ("0", as_nv12),  # the format is unknown
        ("0", lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)),
    ],
)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_nv12_and_i420_frames_are_not_treated_as_grey(demo_frames, source, convert, dimensions):
    frame = convert(demo_frames[0])
    video = sources.Video(
        Capture(frame if dimensions == 2 else frame[..., np.newaxis], 720), source
    )
    assert np.abs(video.read().astype(int) - demo_frames[0]).mean() < 4


def test_grey_stays_grey():
    assert sources.Video(Capture(np.zeros((720, 640), np.uint8), 720), "0").read().shape == (
        720,
        640,
    )


# ---- GStreamer ----


def test_an_opencv_without_gstreamer_is_reported_for_a_pipeline(main_py):
    if re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        pytest.skip("this OpenCV has GStreamer")
    done = main_py(
        "rtspsrc location=rtsp://me:pass@127.0.0.1/live ! decodebin ! videoconvert ! appsink",
        "--headless",
    )
    assert done.returncode == 2
    assert (
        "built without GStreamer" in done.stderr
        and "python3-opencv" in done.stderr
        and "pass@" not in done.stderr
    )


GSTREAMER = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cv2, numpy\nimport sources"
needs_gstreamer = pytest.mark.usefixtures("gstreamer")


@needs_gstreamer
@pytest.mark.parametrize("form", ["BGR", "NV12", "I420", "YUY2", "UYVY"])
def test_frames_of_a_real_pipeline_are_in_colour(form):
    pipeline = (
        "videotestsrc num-buffers=5 pattern=red ! "
        f"video/x-raw,format={form},width=64,height=48 ! appsink"
    )
    script = f"""{GSTREAMER}
source = sources.open_source({pipeline!r})
frames = []
while True:
    frame = source.read()
    if frame is None:
        break
    frames.append(frame)
print(len(frames), frames[0].shape, frames[0][24, 32].argmax(), source.live)"""
    done = subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "5 (48, 64, 3) 2 False\n", done.stderr


@needs_gstreamer
def test_a_missing_element_of_a_pipeline_is_named():
    script = f"""{GSTREAMER}
try:
    sources.open_source("videotestsrc ! mppvideodecoder ! appsink")
except Exception as error:
    print(type(error).__name__, error)"""
    done = subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("InputError") and "GStreamer" in done.stdout, done.stderr


# ---- any OpenCV ----


def test_sources_can_be_imported_if_opencv_has_no_logging():
    script = (
        "import cv2, sys; vars(cv2.utils).pop('logging', None)\n"
        "sys.modules.pop('cv2.utils.logging', None)\n"
        "import streams, main"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.slow
def test_the_process_ends_although_a_reader_blocks_forever(clip, tmp_path, plain_func):
    fifo = tmp_path / "camera.avi"
    os.mkfifo(fifo)
    command = [
        sys.executable,
        "-u",
        "main.py",
        f"pipe={fifo}",
        clip,
        "--headless",
        "--func",
        plain_func,
    ]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with open(fifo, "wb") as writer:
        content = clip.read_bytes()
        writer.write(content[: -len(content) // 4])
        writer.flush()
        for line in running.stdout:
            if line.startswith("pipe: FPS"):
                break
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)  # while the writer keeps the pipe open
    assert running.returncode == 130, stderr
    assert re.search(r"pipe: 3\d frames", stdout) and "Traceback" not in stderr
