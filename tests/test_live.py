"""main.py with network cameras: real RTSP and HTTP servers that are killed, stopped and
restarted."""

import os
import re
import signal
import subprocess
import sys
import threading

import cv2
import pytest
from conftest import ROOT, frames_of

import sources.connection
import streams
from rknnpool import rknnPoolExecutor
from vision.errors import InputError

pytestmark = pytest.mark.slow  # cameras have to disconnect and reconnect

SYSTEM_PYTHON = "/usr/bin/python3"  # GStreamer's bindings are Debian's
HAS_GST = (
    os.path.exists(SYSTEM_PYTHON)
    and subprocess.run(
        [SYSTEM_PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"],
        capture_output=True,
    ).returncode
    == 0
)
needs_gst = pytest.mark.skipif(
    not HAS_GST,
    reason="the RTSP server needs gir1.2-gst-rtsp-server-1.0 and python3-gi: apt-get install them",
)


class Camera:
    """A server in a process of its own that repeats a clip of 30 FPS."""

    def __init__(self, command, scheme, clip):
        self.command, self.scheme, self.clip, self.port = command, scheme, clip, "0"
        self.start()

    def start(self):
        """Start, or restart on the same port."""
        self.server = subprocess.Popen(
            [*self.command, self.port, str(self.clip)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        self.port = self.server.stdout.readline().split()[1]

    def kill(self):
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}/demo"


CAMERAS = {
    "rtsp": [SYSTEM_PYTHON, "tests/rtsp_server.py"],
    "http": [sys.executable, "tests/mjpeg_server.py"],
}


@pytest.fixture(params=[pytest.param("rtsp", marks=needs_gst), "http"])
def camera(request, demo_frames, tmp_path):
    writer = cv2.VideoWriter(
        str(tmp_path / "camera.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 30, (320, 180)
    )
    for frame in demo_frames:
        writer.write(cv2.resize(frame, (320, 180)))
    writer.release()
    camera = Camera(CAMERAS[request.param], request.param, tmp_path / "camera.mp4")
    yield camera
    camera.kill()


class Running:
    """A running main.py and the lines that it prints."""

    def __init__(self, *arguments, settings=""):
        script = f"import main, streams, sources.connection\n{settings}\nmain.main()"
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", script, *map(str, arguments), "--headless"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors, self.error_came = [], threading.Condition()
        threading.Thread(target=self.collect, daemon=True).start()

    def collect(self):
        for line in self.process.stderr:
            with self.error_came:
                self.errors.append(line)
                self.error_came.notify_all()

    def wait_for_error(self, text):
        with self.error_came:
            assert self.error_came.wait_for(
                lambda: any(text in line for line in self.errors), 60
            ), self.errors

    def wait_for_frames(self, of=""):
        """Wait until 30 more frames are processed."""
        for line in self.process.stdout:
            if f"{of}FPS over the last 30 frames" in line:
                return
        raise AssertionError(self.errors)

    def end(self):
        """Ctrl-C: (exit code, the rest of stdout)."""
        self.process.send_signal(signal.SIGINT)
        stdout = self.process.stdout.read()
        return self.process.wait(60), stdout


def test_a_camera_that_is_killed_and_restarted_is_reconnected_with_a_message_each_time(
    camera, tmp_path, plain_func
):
    running = Running(camera.url, "--func", plain_func, "--save", tmp_path / "out.avi")
    running.wait_for_frames()
    for time in (1, 2):
        camera.kill()
        running.wait_for_error("disconnected")
        camera.start()
        with running.error_came:
            assert running.error_came.wait_for(
                lambda time=time: sum("connected again" in line for line in running.errors) == time,
                60,
            )
        running.wait_for_frames()
    code, stdout = running.end()
    assert code == 130
    printed = [line.split(": ")[1] for line in running.errors if line.startswith("127.0.0.1: ")]
    assert [re.sub(r"\d+", "n", line) for line in printed] == [
        "disconnected, trying again.\n",
        "connected again after n s.\n",
    ] * 2
    count, seconds = re.search(
        r"127.0.0.1: (\d+) frames in (.*) s, .* FPS on average, \d+ dropped", stdout
    ).groups()
    assert int(count) >= 90
    # includes the time without the camera
    assert (
        0.5 * float(seconds) < len(frames_of(tmp_path / "out.avi")) / 30 < 1.2 * float(seconds) + 1
    )


def test_a_camera_that_sends_nothing_counts_as_away(camera, plain_func):
    running = Running(camera.url, "--func", plain_func, "--silence", 1)
    running.wait_for_frames()
    camera.server.send_signal(signal.SIGSTOP)
    running.wait_for_error("disconnected")
    camera.server.send_signal(signal.SIGCONT)
    running.wait_for_error("connected again")
    running.wait_for_frames()
    assert running.end()[0] == 130


def test_ctrl_c_while_a_camera_is_away_ends_with_the_summary(camera, plain_func):
    running = Running(camera.url, "--func", plain_func)
    running.wait_for_frames()
    camera.kill()
    running.wait_for_error("disconnected")
    code, stdout = running.end()
    assert code == 130
    assert re.search(r"\d+ frames in", stdout)
    camera.start()  # the fixture stops it


def test_other_streams_continue_while_a_camera_is_away(camera, clip, plain_func):
    running = Running(camera.url, clip, "--func", plain_func)
    running.wait_for_frames("127.0.0.1: ")
    camera.kill()
    running.wait_for_error("disconnected")
    code, stdout = running.end()
    camera.start()
    assert code == 130
    assert "clip.avi: 45 frames" in stdout


def test_frames_that_a_slow_func_cannot_process_are_dropped_and_counted(camera, tmp_path):
    # 10 FPS of 30
    (tmp_path / "slow.py").write_text(
        "import time\ndef myFunc(rknn_lite, IMG):\n    time.sleep(0.1)\n    return IMG\n"
    )
    running = Running(camera.url, "--threads", 1, "--func", tmp_path / "slow.py")
    running.wait_for_frames()
    code, stdout = running.end()
    assert code == 130
    count, dropped = map(int, re.search(r"(\d+) frames in .*, (\d+) dropped", stdout).groups())
    assert count >= 30 and dropped >= count


def test_the_pauses_between_attempts_to_connect_grow(clip, monkeypatch):
    class Stop(threading.Event):
        pauses = []

        def wait(self, seconds):
            self.pauses.append(seconds)
            return len(self.pauses) > 8

    def refuse(*_):
        raise InputError("refused")

    connection = sources.connection.Connection(clip, lambda text: None, Stop())
    connection.live = True
    monkeypatch.setattr(sources.connection, "open_source", refuse)
    while connection.grab():
        pass
    assert Stop.pauses == [1, 2, 4, 8, 15, 30, 30, 30, 30]


def test_a_busy_pool_drops_frames_counts_them_and_continues_with_the_newest(camera, runtime):
    """A camera of 30 FPS and an NPU of 10 FPS: processed frames are spread over all frames, and
    none is old."""
    runtime.seconds = 0.1
    stream, read, ages = streams.Stream(camera.url), [], []

    def frames():
        for number, _ in enumerate(stream.frames()):
            read.append(number)
            yield number

    def func(context, number):
        ages.append(read[-1] - number)  # newer frames
        return context.inference([number])[0]

    with rknnPoolExecutor("model", 1, func, runtime=runtime) as pool:
        results, served = pool.map(frames(), live=True), []
        for number in results:
            served.append(number)
            if len(served) == 20:
                break
        stream.stop.set()
        results.close()
    assert served == sorted(set(served))
    assert len(read) > 30 and results.dropped >= len(read) - 20 - 2
    assert sorted(ages)[len(ages) // 2] <= 1  # the frame has just been read
