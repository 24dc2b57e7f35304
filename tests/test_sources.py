"""What main.py promises of where frames come from: what may come later is waited for, what never can is said."""
import base64
import hashlib
import http.server
import os
import re
import shutil
import signal
import socketserver
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from test_live import CAMERAS, Camera, Running, needs_gst
from tqdm import tqdm

import rknnmodel
import sources
import streams
from rknnmodel import InputError
from rknnpool import rknnPoolExecutor
from sources.names import hide, name_streams, split_name
from sources.refusal import refusal

SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's python3-opencv is the one with GStreamer


# ---- hosts that refuse ----

def digest_is_right(header, method, user, password, realm, nonce):
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', header))
    inner = hashlib.md5(f"{user}:{realm}:{password}".encode()).hexdigest()
    what = hashlib.md5(f"{method}:{fields.get('uri')}".encode()).hexdigest()
    middle = f"{nonce}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}" if "qop" in fields else nonce
    return fields.get("response") == hashlib.md5(f"{inner}:{middle}:{what}".encode()).hexdigest()


class Host:
    """A server that answers every request of one protocol with one status; 401 asks for the login admin, s3cret."""

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
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Http if protocol == "http" else Rtsp)
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
@pytest.mark.parametrize("status, said", [(404, "has nothing at this address (404)"), (403, "forbids it (403)"),
                                          (410, "any more (410)"), (451, "refuses it (451)"), (503, None), (429, None),
                                          (500, None)])
def test_what_a_host_refuses_for_good_is_told_from_what_may_come_later(host, protocol, status, said):
    reason = refusal(f"{protocol}://127.0.0.1:{host(protocol, status).port}/live")
    assert reason is None if said is None else said in reason


@pytest.mark.parametrize("protocol", ["http", "rtsp"])
@pytest.mark.parametrize("challenge", [BASIC, DIGEST, QUALITY])
@pytest.mark.parametrize("login, said", [("", "asks for a login (401)"), ("admin:wrong@", "refuses this user name"),
                                         ("admin:s3cret@", None)])
def test_a_refused_login_is_told_from_a_right_one(host, protocol, challenge, login, said):
    place = host(protocol, 503, challenge=challenge)  # past the login it is only not ready
    reason = refusal(f"{protocol}://{login}127.0.0.1:{place.port}/live")
    assert reason is None if said is None else said in reason


def test_a_page_is_no_video(host):
    assert "text/html, which is no video" in refusal(f"http://127.0.0.1:{host('http', 200).port}/")


@pytest.mark.parametrize("protocol, status, challenge, said", [
    ("http", 404, "", "has nothing at this address (404)"),
    ("rtsp", 404, "", "has nothing at this address (404)"),
    ("rtsp", 200, DIGEST, "refuses this user name or password (401)"),
    ("http", 200, BASIC, "refuses this user name or password (401)"),
])
def test_main_ends_at_once_and_shows_no_password(main_py, host, protocol, status, challenge, said):
    place = host(protocol, status, challenge=challenge)
    done = main_py(f"{protocol}://admin:hunter2@127.0.0.1:{place.port}/live", "--headless")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{protocol}://admin:***@127.0.0.1:{place.port}/live: the host ")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr and "hunter2" not in done.stderr + done.stdout


@needs_gst
@pytest.mark.slow
def test_a_real_rtsp_server_without_that_stream_is_named(main_py, clip):
    camera = Camera(CAMERAS["rtsp"], "rtsp", ROOT / "models/demo.mp4")
    try:
        done = main_py(camera.url.replace("/demo", "/other"), "--headless")
    finally:
        camera.kill()
    assert done.returncode == 2 and "has nothing at this address (404)" in done.stderr


# ---- a camera that comes late ----

@pytest.mark.slow
@pytest.mark.parametrize("scheme", [pytest.param("rtsp", marks=needs_gst), "http"])
def test_a_camera_that_is_not_there_at_the_start_is_waited_for(plain_func, scheme):
    camera = Camera(CAMERAS[scheme], scheme, ROOT / "models/demo.mp4")
    camera.kill()  # and now its port is known
    running = Running(f"gate={camera.url.replace('://', '://me:pass@')}", "--func", plain_func, "--threads", 1)
    running.wait_for_error("gate: is not there yet, trying again")
    camera.start()
    try:
        running.wait_for_error("gate: is there after")
        running.wait_for_frames()
        code, stdout = running.end()
    finally:
        camera.kill()
    assert code == 130 and re.search(r"gate: \d+ frames in", stdout)
    assert not any("pass@" in line for line in running.errors)


@pytest.mark.slow
def test_ctrl_c_while_a_camera_has_never_been_there_ends_the_run(plain_func):
    running = Running("late=http://127.0.0.1:9/x", ROOT / "models/demo.mp4", "--func", plain_func)
    running.wait_for_error("late: is not there yet")
    running.wait_for_frames()
    assert running.end()[0] == 130


# ---- names ----

@pytest.mark.parametrize("text, shown", [
    ("rtsp://admin:hunter2@cam/live", "rtsp://admin:***@cam/live"),
    ("rtsp://admin:p@ss/word@cam/live", "rtsp://admin:***@cam/live"),
    ("in 'http://:hunter2@cam:80/x' and", "in 'http://:***@cam:80/x' and"),
    ("http://cam/f?user=a&password=hunter2&b=1", "http://cam/f?user=a&password=***&b=1"),
    ("rtspsrc location=rtsp://a:pass1@cam/x user-pw=pass2 ! appsink",
     "rtspsrc location=rtsp://a:***@cam/x user-pw=*** ! appsink"),
    ("http://cam:8080/a@b", "http://cam:8080/a@b"),
    ("rtsp://admin:it's@cam/live", "rtsp://admin:***@cam/live"),
    ("rtsp://me@mail.org:hunter2@cam/live", "rtsp://me@mail.org:***@cam/live"),
    ("rtsp://me@cam:554/live", "rtsp://me@cam:554/live"),
    ("srt://cam:9000?passphrase=hunter2&latency=9", "srt://cam:9000?passphrase=***&latency=9"),
    ("http://cam/f?access_token=hunter2&loginpas=hunter2&psw=hunter2", "http://cam/f?access_token=***&loginpas=***&psw=***"),
    ("rtsp://cam/user=admin_password=hunter2_channel=1", "rtsp://cam/user=admin_password=***"),
    ("rtsp://admin:my secret@cam", "rtsp://admin:***@cam"),
    ("rtsp://u:1234/secret@h/x", "rtsp://u:***@h/x"),
    ("rtsp://u:1234/secret@192.168.1.5", "rtsp://u:***@192.168.1.5"),
    ("rtsp://my user:my secret@[::1]:554/x", "rtsp://my user:***@[::1]:554/x"),
    ("rtsp://cam:554/a: gone. rtsp://b:pass@c/x: gone", "rtsp://cam:554/a: gone. rtsp://b:***@c/x: gone"),
    ('rtspsrc user-pw="two words" ! appsink', "rtspsrc user-pw=*** ! appsink"),
])
def test_a_password_is_shown_nowhere(text, shown):
    assert hide(text) == shown


@pytest.mark.parametrize("argument, expected", [
    ("gate=rtsp://a:b@cam/live?x=1", ("gate", "rtsp://a:b@cam/live?x=1")),
    ("front door=0", ("front door", "0")),
    ("http://cam/?a=b", (None, "http://cam/?a=b")),
    ("v4l2src device=/dev/video0 ! appsink", (None, "v4l2src device=/dev/video0 ! appsink")),
    ("shots/a=b.mp4", (None, "shots/a=b.mp4")),
])
def test_a_stream_is_named_on_the_command_line(argument, expected):
    assert split_name(argument) == expected


def test_unnamed_streams_get_short_names_without_credentials_and_no_two_alike():
    given = ["a/x.mp4", "b/x.mp4", "y.mp4", "y.mp4", "rtsp://me:pass@nvr:554/ch1", "rtsp://me:pass@nvr:554/ch2", "0",
             "/dev/video2", "shots/", "http://me:pass@cam/x?password=1"]
    names = name_streams([("gate", "1"), *((None, source) for source in given)])
    assert names == ["gate", "a-x.mp4", "b-x.mp4", "y.mp4-1", "y.mp4-2", "nvr-ch1", "nvr-ch2", "camera0", "video2",
                     "shots", "cam"]
    assert len(set(name_streams([(None, "x.mp4"), (None, "x.mp4"), ("x.mp4-1", "0")]))) == 3


def test_cap_may_be_a_dict_and_its_names_are_everywhere(clip, tmp_path, plain_func):
    script = f"import main\nmain.cap = {{'gate': {str(clip)!r}, 'yard': {str(clip)!r}}}\nmain.main()"
    command = [sys.executable, "-c", script, "--headless", "--func", plain_func, "--save", tmp_path / "out.avi"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "gate: 45 frames" in done.stdout and "yard: FPS over the last 30 frames" in done.stdout
    assert sorted(file.name for file in tmp_path.glob("*.avi")) == ["out_gate.avi", "out_yard.avi"]


# ---- what Stream takes ----

def run(source, runtime, func=lambda context, result: result):
    """A Stream of the source, served to its end."""
    stream = streams.Stream(source)
    with rknnPoolExecutor("model", 2, func, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    return stream


@pytest.mark.parametrize("what", ["video", "folder", "save"])
def test_a_name_that_is_not_utf8_ends_in_a_sentence(clip, tmp_path, plain_func, what):
    """OpenCV ends the process with SIGSEGV over one."""
    name = os.path.join(os.fsencode(tmp_path), b"stra\xdfe")
    if what == "folder":
        os.mkdir(name)
        (tmp_path / "x.jpg").write_bytes(b"")
        os.rename(tmp_path / "x.jpg", os.path.join(name, b"x.jpg"))
    else:
        name += b".mkv"
        shutil.copy(clip, name)
    arguments = (clip, "--save", os.fsdecode(name)) if what == "save" else (os.fsdecode(name),)
    run = subprocess.run([sys.executable, "main.py", "--headless", "--func", plain_func, *arguments], cwd=ROOT,
                         capture_output=True, timeout=60)
    assert run.returncode == 2 and b"is not UTF-8" in run.stderr and b"Traceback" not in run.stderr


def test_a_name_that_the_terminal_cannot_show_costs_no_line(main_py, clip, tmp_path, plain_func):
    video = tmp_path / "\u8857.avi"
    shutil.copy(clip, video)
    run = main_py("--headless", "--func", plain_func, video, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0 and run.stdout.splitlines()[-1].startswith("\\u8857.avi: 45 frames")


def test_a_wheel_that_was_built_for_another_numpy_is_said_and_the_cpu_runs(main_py, clip, tmp_path, plain_func):
    (tmp_path / "rknnlite").mkdir()
    (tmp_path / "rknnlite/__init__.py").touch()
    (tmp_path / "rknnlite/api.py").write_text("raise ValueError('numpy.dtype size changed')")
    run = main_py("--headless", "--func", plain_func, clip,
                  env={**os.environ, "PYTHONPATH": str(tmp_path), "RKNN_SOC": "rk3588"})
    assert run.returncode == 0 and "not rknn-toolkit-lite2 (numpy.dtype size changed)" in run.stderr


def test_a_stream_takes_a_path(clip, runtime):
    stream = run(Path(clip), runtime)
    assert (stream.code, stream.count, stream.name) == (0, 45, "clip.avi")


def test_a_stream_takes_a_cameras_number(clip, runtime, monkeypatch):
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
        released = []

        def release(self):
            self.released.append(threading.current_thread().name)
            super().release()

    monkeypatch.setattr(sources, "Video", Capture)
    run(clip, runtime)
    assert Capture.released == ["rknnpool-feeder"]


@pytest.mark.parametrize("most, expected", [(10, 15), (15, 23), (30, 45), (100, 45), (0.5, 1)])
def test_fps_bounds_what_is_served_of_a_file(clip, runtime, most, expected):
    stream = streams.Stream(clip, most=most)
    with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    assert stream.count == expected and stream.number == 45


@pytest.fixture
def without_times(tmp_path):
    """Paths of a bare H.264 of 30 frames, which has no times, and of three videos of 30 frames joined end to end."""
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
def test_the_time_goes_on_where_a_file_has_none_or_begins_again(without_times, runtime, reader):
    for path, count in zip(without_times, (30, 90)):
        stream, times = streams.Stream(path, reader=reader), []
        with rknnPoolExecutor("model", 2, lambda context, result: result, runtime=runtime) as pool:
            times = [result.time for result in stream.results(pool)]
            assert len(times) == count and (np.diff(times) > 0.02).all() and times[-1] < count / 20
            stream = streams.Stream(path, reader=reader, most=10)
            stream.run(pool, tqdm(disable=True), quiet=True)
        assert abs(stream.count - times[-1] * 10) <= 2


# ---- pictures ----

@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_the_orientation_that_exif_tells_is_respected(tmp_path, extension):
    if extension == ".webp" and cv2.__version__.startswith("4.6"):
        pytest.skip("OpenCV 4.6 does not read the orientation of a .webp")
    from PIL import Image
    picture = Image.fromarray(np.zeros((40, 60, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / f"turned{extension}", exif=exif)
    assert sources.open_source(tmp_path / f"turned{extension}").read().shape == (60, 40, 3)


def test_a_picture_of_more_pixels_than_opencv_takes_costs_no_other_one(tmp_path, runtime):
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
def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch, name):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)
    monkeypatch.setattr(os, "listdir", refuse)  # root may read all
    for opened in (sources.open_source, rknnmodel.describe)[:1 if name else 2]:
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
            opened(os.path.join(tmp_path, name))


def test_pictures_come_in_the_order_of_their_names_or_numbers(tmp_path):
    for number in (1, 2, 10):
        cv2.imwrite(str(tmp_path / f"img_{number}.png"), np.full((4, 6, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")

    def order(source):
        opened = sources.open_source(source)
        return [int(opened.read()[0, 0, 0]) for _ in range(opened.total)]

    assert order(tmp_path) == order(tmp_path / "*.png") == [1, 10, 2]
    assert order(tmp_path / "img_%d.png") == [1, 2, 10]
    assert order(tmp_path / "img_%02d.png") == [10]
    with pytest.raises(InputError, match="no picture has such a name"):
        sources.open_source(tmp_path / "img_%04d.png")


# ---- what a decoder gives ----

class Capture:
    """A cv2.VideoCapture of one frame."""

    def __init__(self, frame, height):
        self.frame, self.height = frame, height

    def get(self, what):
        return {cv2.CAP_PROP_FRAME_HEIGHT: self.height, cv2.CAP_PROP_FRAME_WIDTH: self.frame.shape[1]}.get(what, 0)

    def read(self):
        return True, self.frame


def as_nv12(picture):
    planar = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    h, w = picture.shape[:2]
    u, v = planar[h:h * 5 // 4].reshape(-1), planar[h * 5 // 4:].reshape(-1)
    return np.concatenate([planar[:h], np.stack([u, v], 1).reshape(h // 2, w)])


@pytest.mark.parametrize("source, convert", [
    ("v4l2src ! video/x-raw,format=NV12 ! appsink", as_nv12),
    ("filesrc ! h264parse ! I420 ! appsink", lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)),
    ("0", as_nv12),  # where nobody says which
    ("0", lambda picture: cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)),
])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_nv12_and_i420_are_not_taken_for_grey(demo_frames, source, convert, dimensions):
    frame = convert(demo_frames[0])
    video = sources.Video(Capture(frame if dimensions == 2 else frame[..., np.newaxis], 720), source)
    assert np.abs(video.read().astype(int) - demo_frames[0]).mean() < 4


def test_grey_stays_grey():
    assert sources.Video(Capture(np.zeros((720, 640), np.uint8), 720), "0").read().shape == (720, 640)


# ---- GStreamer ----

def test_a_pipeline_says_that_this_opencv_has_no_gstreamer(main_py):
    if re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        pytest.skip("this OpenCV has GStreamer")
    done = main_py("rtspsrc location=rtsp://me:pass@127.0.0.1/live ! decodebin ! videoconvert ! appsink", "--headless")
    assert done.returncode == 2
    assert "built without GStreamer" in done.stderr and "python3-opencv" in done.stderr and "pass@" not in done.stderr


GSTREAMER = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cv2, numpy\nimport sources"
HAS_GSTREAMER = os.path.exists(SYSTEM_PYTHON) and subprocess.run(
    [SYSTEM_PYTHON, "-c", "import cv2, re, sys; sys.exit(not re.search('GStreamer: +YES', cv2.getBuildInformation()))"],
    capture_output=True).returncode == 0
needs_gstreamer = pytest.mark.skipif(not HAS_GSTREAMER, reason="an OpenCV with GStreamer is Debian's: apt-get install "
                                                               "python3-opencv")


@needs_gstreamer
@pytest.mark.parametrize("form", ["BGR", "NV12", "I420"])
def test_a_real_pipeline_gives_its_frames_in_colour(form):
    pipeline = f"videotestsrc num-buffers=5 pattern=red ! video/x-raw,format={form},width=64,height=48 ! appsink"
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
def test_a_pipelines_missing_element_is_named():
    script = f"""{GSTREAMER}
try:
    sources.open_source("videotestsrc ! mppvideodecoder ! appsink")
except Exception as error:
    print(type(error).__name__, error)"""
    done = subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("InputError") and "GStreamer" in done.stdout, done.stderr


# ---- any OpenCV ----

def test_it_imports_where_opencv_has_no_logging():
    script = ("import cv2, sys; vars(cv2.utils).pop('logging', None); sys.modules.pop('cv2.utils.logging', None)\n"
              "import streams, main")
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.slow
def test_a_reader_that_blocks_for_ever_does_not_keep_the_process(clip, tmp_path, plain_func):
    fifo = tmp_path / "camera.avi"
    os.mkfifo(fifo)
    command = [sys.executable, "-u", "main.py", f"pipe={fifo}", clip, "--headless", "--func", plain_func]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with open(fifo, "wb") as writer:
        content = clip.read_bytes()
        writer.write(content[:-len(content) // 4])
        writer.flush()
        for line in running.stdout:
            if line.startswith("pipe: FPS"):
                break
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)  # while the writer holds the pipe open
    assert running.returncode == 130, stderr
    assert re.search(r"pipe: 3\d frames", stdout) and "Traceback" not in stderr
