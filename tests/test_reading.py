"""What reading video promises: of live sources only what is served is made a picture, PyAV's frames are OpenCV's, and
cameras are asked for what the flags say."""
import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, frames_of
from many_cameras import Paced
from test_live import CAMERAS, Camera, needs_gst
from test_sources import GSTREAMER, SYSTEM_PYTHON, Host, needs_gstreamer
from tqdm import tqdm

import results.result
import sources
import streams
from results.result import Served
from rknnmodel import InputError
from rknnpool import rknnPoolExecutor
from sources.pace import Pace

needs_av = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="this reader is PyAV: pip install av")


# ---- what is made a picture ----

def myfunc_of(context, frame):
    context.inference([frame])
    return frame


def served_live(clip, runtime, monkeypatch, count, sources_=1, contexts=1, most=None):
    """Streams of Paced clips, served until the first has had `count` frames."""
    monkeypatch.setattr(sources, "Video", Paced)
    monkeypatch.setattr(Paced, "rate", 30)
    func = SimpleNamespace(myFunc=myfunc_of)
    made = [streams.Stream(clip, f"camera{number}", most) for number in range(sources_)]

    class Enough:
        def write(self, result):
            assert result.picture.shape == (360, 640, 3)
            if result.stream is made[0] and result.stream.count + 1 >= count:
                for stream in made:
                    stream.stop.set()

    with rknnPoolExecutor("model", contexts, Served(func), runtime=runtime) as pool:
        threads = []
        for stream in made:
            stream.live = True
            stream.places.append(Enough())
            threads.append(threading.Thread(target=stream.run, args=(pool, tqdm(disable=True)), kwargs={"quiet": True}))
            threads[-1].start()
        for thread in threads:
            thread.join()
    return made


def test_of_a_live_source_only_what_is_served_is_made_a_picture_and_all_adds_up(clip, runtime, monkeypatch):
    runtime.NPU_CORES, runtime.seconds = 1, 0.15  # 6 FPS of 30
    stream, = served_live(clip, runtime, monkeypatch, 12)
    assert stream.error is None and stream.count >= 12
    assert stream.number == stream.count + stream.dropped + stream.failed
    assert stream.dropped > stream.count and stream.source.made <= stream.count + 2


def test_cameras_that_share_a_busy_pool_take_turns(clip, runtime, monkeypatch):
    runtime.NPU_CORES, runtime.seconds = 1, 0.02  # 50 FPS of 120
    counts = [stream.count for stream in served_live(clip, runtime, monkeypatch, 30, 4, 2)]
    assert 3 * min(counts) >= max(counts), counts


def test_a_frame_that_is_wanted_goes_on_waiting_while_those_come_that_are_not(clip, runtime, monkeypatch):
    runtime.NPU_CORES, runtime.seconds = 1, 0.06  # 16 FPS of 20 that are wanted, of 60
    both_ = served_live(clip, runtime, monkeypatch, 15, 2, 1, most=10)
    assert min(stream.count for stream in both_) >= 10
    assert all(stream._gone + stream._passed <= 2 for stream in both_)
    assert all(stream.source.made <= 0.5 * stream.number for stream in both_)


def test_a_frame_waits_for_its_context_until_the_next_is_grabbed(clip):
    video = sources.Video(cv2.VideoCapture(str(clip)), str(clip))
    result = streams.Result(SimpleNamespace(), 0, 0, None, 0)
    assert video.grab()
    picture = video.later()
    expected = frames_of(clip)[0]
    assert np.array_equal(picture(result), expected) and picture(result) is None
    picture = video.later()
    assert video.grab()
    assert picture(result) is None


def test_a_context_that_comes_as_the_next_frame_is_grabbed_gets_that_one(clip):
    video = sources.Video(cv2.VideoCapture(str(clip)), str(clip))
    real, asked, began = video.capture.grab, threading.Event(), threading.Event()
    assert video.grab()
    result = streams.Result(SimpleNamespace(), 0, 0, video.later(), 0)
    monkey = SimpleNamespace(wait_for=video.changed.wait_for)

    class Changed:
        """The Condition, which tells when somebody waits."""
        def __enter__(self):
            return video_changed.__enter__()

        def __exit__(self, *error):
            return video_changed.__exit__(*error)

        def wait_for(self, condition, seconds=None):
            asked.set()
            return monkey.wait_for(condition, 20)

        def notify_all(self):
            video_changed.notify_all()

    video_changed, video.pace.waits = video.changed, 5

    def slow():
        began.set()
        asked.wait()
        return real()

    video.capture = SimpleNamespace(grab=slow, retrieve=video.capture.retrieve, get=video.capture.get)
    reader = threading.Thread(target=lambda: video.grab() and video.hand_over(1, 0.5, 7.0))
    reader.start()
    began.wait()
    video.changed = Changed()
    assert result.take()
    reader.join()
    assert (result.number, result.time, result.received) == (1, 0.5, 7.0)
    assert np.array_equal(result.frame, frames_of(clip)[1])


def test_a_live_source_is_read_as_fast_as_it_sends_though_frames_wait(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("sources.pace.time", SimpleNamespace(perf_counter=lambda: now[0]))
    pace, sent = Pace(), [0.0]

    def read(count, every, decoding):
        """Read `count` frames of a camera that has one ready every so many seconds, no context taking any: how late the
        latest of the last third was."""
        late = []
        for _ in range(count):
            left = pace.left()
            pace.waited = left > 0
            began = now[0] = now[0] + left
            now[0] = max(began, sent[0]) + decoding
            late.append(now[0] - sent[0])
            sent[0] += every
            pace.frame(now[0] - began)
        return max(late[-count // 3:])

    assert read(400, 0.04, 0.004) < 0.01 and 0.03 < pace.share * pace.period < 0.04
    now[0] += 3
    assert read(400, 0.04, 0.004) < 0.01  # what came meanwhile has been read
    assert read(1500, 0.02, 0.004) < 0.1 and pace.share * pace.period < 0.02  # it sends faster than before
    assert read(400, 0.08, 0.004) < 0.01 and pace.share * pace.period > 0.06  # and slower
    assert read(3000, 0.08, 0.064) < 0.5  # a machine that hardly keeps up


def test_a_frame_whose_source_lost_a_turn_comes_first(runtime):
    begun, may, order = threading.Event(), threading.Event(), []

    def func(context, frame):
        begun.set()
        may.wait()
        order.append(frame.name)

    def one(name, first, waits):
        yield SimpleNamespace(name=name, first=first)
        waits.set()

    with rknnPoolExecutor("model", 1, func, runtime=runtime) as pool:
        runs = []
        for name, first in (("busy", False), ("second", False), ("first", True)):
            waits = threading.Event()
            runs.append(pool.map(one(name, first, waits)))
            waits.wait()
            begun.wait()
        may.set()
        for run in runs:
            list(run)
    assert order == ["busy", "first", "second"]


def test_a_stream_says_that_it_is_away():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    stream = streams.Stream(f"http://127.0.0.1:{port}/x")  # nobody is there any more
    assert stream.away and stream.live


def test_a_picture_that_nobody_asks_for_is_not_made(clip):
    made = []
    result = streams.Result(SimpleNamespace(), 0, 0, lambda _: made.append(1) or np.zeros((2, 4, 3), np.uint8), 0)
    assert made == []
    assert result.size == (4, 2) and result.picture.shape == (2, 4, 3) and len(made) == 1


def test_a_live_frame_whose_turn_comes_too_late_is_refused():
    result = streams.Result(SimpleNamespace(), 0, 0, lambda _: None, 0)
    with pytest.raises(results.result.Gone):
        Served(SimpleNamespace(myFunc=None))(None, result)
    assert result.stream.owed


# ---- PyAV ----

def both(path):
    return sources.open_source(path, "opencv"), sources.open_source(path, "av")


def rest_of(video):
    """How many frames come until the end."""
    count = 0
    while video.read() is not None:
        count += 1
    return count


def compare(path, most=None):
    """Assert that both readers give the same frames at the same times: how many."""
    ours, theirs = both(path)
    assert (ours.total, ours.size, ours.live) == (theirs.total, theirs.size, theirs.live)
    assert ours.fps == pytest.approx(theirs.fps)
    count = 0
    while count != most:
        frame, other = ours.read(), theirs.read()
        assert (frame is None) == (other is None), count
        if frame is None:
            break
        assert frame.shape == other.shape and cv2.absdiff(frame, other).max() <= 2, count
        assert ours.time == pytest.approx(theirs.time, abs=1e-3)
        count += 1
    ours.release()
    theirs.release()
    return count


@needs_av
def test_pyav_gives_opencvs_frames_and_times(clip):
    assert compare(ROOT / "models/demo.mp4", 90) == 90
    assert compare(clip) == 45
    assert compare("file://" + str(clip)) == 45


def turned(path, degrees):
    """Give an .mp4 the note that its frames are to be turned clockwise, as a phone's has it (ISO 14496-12, tkhd)."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    for place, value in ((0, cos), (4, sin), (12, -sin), (16, cos)):
        data[matrix + place:matrix + place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def bright_corner(picture):
    """Where the only bright part of a picture lies: (below, right) of the middle."""
    rows, columns = np.nonzero(picture[..., 1] > 30)
    return rows.mean() > picture.shape[0] / 2, columns.mean() > picture.shape[1] / 2


@needs_av
@pytest.mark.parametrize("degrees, size, corner", [(90, (48, 64), (False, True)), (180, (64, 48), (True, True)),
                                                   (270, (48, 64), (True, False))])
def test_a_phones_video_stands_upright(tmp_path, degrees, size, corner):
    path = tmp_path / "phone.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, (64, 48))
    for number in range(5):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:16, :24] = 40 * number + 60
        writer.write(frame)
    writer.release()
    turned(path, degrees)
    ours, opencvs = sources.open_source(path, "av"), sources.open_source(path, "opencv")
    assert ours.size == size and bright_corner(ours.read()) == corner
    if bright_corner(opencvs.read()) == corner:  # 4.6 turns a phone's video upside down
        assert compare(path) == 5


@needs_av
def test_what_is_there_of_a_broken_file_is_read(tmp_path, clip):
    data = clip.read_bytes()
    short = tmp_path / "short.avi"
    short.write_bytes(data[:len(data) * 2 // 3])
    assert compare(short, 30) == 30  # the frame after it is cut in two, and each FFmpeg makes up the rest its own way
    assert [rest_of(video) for video in both(short)] == [31, 31]
    holes = bytearray(data)
    for place in range(len(data) // 4, len(data) // 2, 997):
        holes[place] ^= 0xff
    (tmp_path / "holes.avi").write_bytes(holes)
    assert rest_of(sources.open_source(tmp_path / "holes.avi", "av")) > 30


@needs_av
@pytest.mark.parametrize("reader", sources.READERS)
def test_a_video_begins_again_where_it_began(clip, reader):
    video = sources.open_source(clip, reader)
    first = video.read()
    assert rest_of(video) == 44
    for _ in range(2):
        video.rewind()
        assert np.array_equal(video.read(), first) and video.time == 0
        assert rest_of(video) == 44


@needs_av
def test_main_reads_by_pyav_where_it_is_asked_to(main_py, clip, plain_func, tmp_path):
    done = main_py(clip, "--headless", "--func", plain_func, "--reader", "av", "--save", tmp_path / "out.avi")
    assert done.returncode == 0 and "45 frames" in done.stdout, done.stderr
    assert len(frames_of(tmp_path / "out.avi")) == 45


@needs_av
def test_pyav_refuses_in_the_words_of_opencv(main_py, tmp_path):
    (tmp_path / "no.mp4").write_text("no video")
    done = main_py(tmp_path / "no.mp4", "--headless", "--reader", "av")
    assert done.returncode == 2 and re.fullmatch(r"\S+no\.mp4: not a video that PyAV can read \(.*\)\.\n", done.stderr)
    host = Host("http", 404)
    try:
        done = main_py(f"http://me:hunter2@127.0.0.1:{host.port}/x", "--headless", "--reader", "av")
    finally:
        host.server.shutdown()
        host.server.server_close()
    assert done.returncode == 2 and "has nothing at this address (404)" in done.stderr and "hunter2" not in done.stderr


@pytest.mark.parametrize("reader, said", [("av", "--reader av needs the package av: pip install av."),
                                          ("gpu", "--reader gpu: is one of opencv, av.")])
def test_a_reader_that_is_not_there_is_said(main_py, clip, tmp_path, reader, said):
    (tmp_path / "av.py").write_text("raise ModuleNotFoundError('no av', name='av')")
    done = main_py(clip, "--headless", "--reader", reader, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (2, said + "\n")


@needs_av
def test_opencv_takes_over_where_the_boards_decoder_is_not_to_be_had(main_py, clip, tmp_path, plain_func):
    """pyav-rkmpp as it is seen by its name alone; tests/board/test_pyav_rkmpp.py has the real one."""
    info = tmp_path / "pyav_rkmpp-18.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyav-rkmpp\nVersion: 18.1\n")
    done = main_py(clip, ROOT / "models/demo.mp4", "--headless", "--func", plain_func, "--fps", "2",
                   env={**os.environ, "PYTHONPATH": str(tmp_path)})
    lines = [line for line in done.stderr.splitlines() if "OpenCV decodes it" in line]
    assert done.returncode == 0 and lines == [
        "clip.avi: OpenCV decodes it on the CPU, for mjpeg is none of what the board's decoder takes "
        "(h264, hevc, av1).",
        "demo.mp4: OpenCV decodes it on the CPU, for this FFmpeg has no h264_rkmpp."]


def test_opencv_takes_over_where_the_boards_decoder_cannot_be_imported(main_py, clip, tmp_path, plain_func):
    info = tmp_path / "pyav_rkmpp-18.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyav-rkmpp\nVersion: 18.1\n")
    (tmp_path / "av.py").write_text("raise ImportError('libdrm.so.2: no such file')")
    done = main_py(clip, "--headless", "--func", plain_func, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and "45 frames" in done.stdout
    assert "pyav-rkmpp cannot be imported (libdrm.so.2: no such file)." in done.stderr


@needs_av
@needs_gst
@pytest.mark.slow
def test_pyav_reads_a_camera_and_finds_it_again(monkeypatch):
    camera = Camera(CAMERAS["rtsp"], "rtsp", ROOT / "models/demo.mp4")
    monkeypatch.setattr(streams, "RETRIES", (0.1,))
    stream = streams.Stream(camera.url, reader="av")
    assert type(stream.source).__name__ == "AVVideo" and stream.live and stream.source.size == (1280, 720)
    frames = stream.frames()
    try:
        assert [next(frames).frame.shape for _ in range(5)] == [(720, 1280, 3)] * 5 and not stream.away
        camera.kill()
        monkeypatch.setattr(streams, "say", lambda text, *_: "went away" in text and seen.append(stream.away)
                            or "went away" in text and camera.start())
        seen = []
        before = next(frames).number
        while not seen:
            before = next(frames).number
        assert next(frames).number >= before and seen == [True] and not stream.away
    finally:
        frames.close()
        camera.kill()


@needs_av
@pytest.mark.slow
def test_a_host_that_says_nothing_is_given_up(monkeypatch):
    import sources.pyav
    monkeypatch.setattr(sources.pyav, "TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(sources.NotYet, match="cannot be reached, or sends no video"):
            sources.open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/x", "av")


# ---- cameras ----

class Asked:
    """A cv2.VideoCapture that notes what it is asked for, and has pictures of 1280x720 and 30 FPS only."""

    asked: list = []
    has = {cv2.CAP_PROP_FRAME_WIDTH: 1280, cv2.CAP_PROP_FRAME_HEIGHT: 720, cv2.CAP_PROP_FPS: 30,
           cv2.CAP_PROP_FOURCC: cv2.VideoWriter_fourcc(*"MJPG")}

    def __init__(self, *_):
        self.asked.clear()

    def isOpened(self):
        return True

    def set(self, what, value):
        self.asked.append((what, value))
        return False

    def get(self, what):
        return self.has.get(what, 0)

    def release(self):
        pass


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Asked)
    return Asked.asked


def test_a_camera_is_asked_for_its_format_first_then_its_size_then_its_rate(asked):
    camera = sources.parse_camera("1280x720", 30, "mjpg")
    assert sources.open_source("0", camera=camera).note is None
    assert asked == [(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG")), (cv2.CAP_PROP_FRAME_WIDTH, 1280),
                     (cv2.CAP_PROP_FRAME_HEIGHT, 720), (cv2.CAP_PROP_FPS, 30)]
    sources.open_source("0")
    assert asked == []


def test_what_a_camera_gives_instead_is_said_once(asked, said):
    stream = streams.Stream("0", "gate", camera=sources.parse_camera((1920, 1080), 60, "YUYV"))
    assert said == ["gate: the camera gives 1280x720 pixels, not 1920x1080; 30 frames a second, not 60; "
                    "MJPG, not YUYV."]
    stream.say_note()
    assert len(said) == 1


def test_main_asks_a_camera_for_what_the_flags_or_the_settings_say(clip, plain_func):
    script = """
import cv2, main
real = cv2.VideoCapture
class Noted:
    def __init__(self, *_):
        self.real, self.asked = real(CLIP), {}
    def set(self, what, value):
        self.asked[what] = value
        print("asked", what, value)
        return True
    def get(self, what):
        return self.asked.get(what) or self.real.get(what)
    def __getattr__(self, name):
        return getattr(self.real, name)
cv2.VideoCapture = Noted
main.camera_fps = 15
main.main()""".replace("CLIP", repr(str(clip)))
    run = subprocess.Popen([sys.executable, "-uc", script, "0", "--headless", "--func", str(plain_func),
                            "--camera-size", "800x600", "--camera-format", "MJPG"], cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    asked_ = [run.stdout.readline().split()[1:] for _ in range(4)]
    run.terminate()
    run.communicate(timeout=60)
    assert asked_ == [[str(cv2.CAP_PROP_FOURCC), str(cv2.VideoWriter_fourcc(*"MJPG"))], ["3", "800"], ["4", "600"],
                      ["5", "15"]]


@pytest.mark.parametrize("flags, said", [
    (("--camera-size", "big"), "--camera-size big: width x height in pixels are needed, as in 1920x1080."),
    (("--camera-size", "0x480"), "--camera-size 0x480: width x height"),
    (("--camera-size", "1920"), "--camera-size 1920: width x height"),
    (("--camera-fps", "0"), "--camera-fps 0: more than 0 frames a second"),
    (("--camera-fps", "nan"), "--camera-fps nan: more than 0 frames a second"),
    (("--camera-format", "JPEGS"), "--camera-format JPEGS: the four letters of a format are needed"),
    (("--camera-format", "MJ"), "--camera-format MJ: the four letters"),
])
def test_a_camera_cannot_be_asked_for_what_is_none(main_py, clip, flags, said):
    done = main_py(clip, "--headless", *flags)
    assert done.returncode == 2 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1


def test_a_glob_takes_pictures_only_as_a_folder_does(tmp_path):
    for name in ("a.png", "b.jpg", "notes.txt", "clip.mp4"):
        (tmp_path / name).touch()
    assert [os.path.basename(path) for path in sources.list_pictures(str(tmp_path / "*"))] == ["a.png", "b.jpg"]
    with pytest.raises(InputError, match="no picture has such a name"):
        sources.list_pictures(str(tmp_path / "[cn]*"))


# ---- the README's pipelines ----

def pipelines(element):
    """The README's GStreamer lines with that element."""
    text = (ROOT / "README.md").read_text()
    return [line for line in re.findall(r"'([^'`]+ ! appsink)'", text) if element in line]


def read_by_gstreamer(pipeline, most):
    script = f"""{GSTREAMER}
source, shapes = sources.open_source({pipeline!r}), []
frame = source.read()
while frame is not None and len(shapes) < {most}:
    shapes.append(frame.shape)
    frame = source.read()
print(len(shapes), *sorted(set(shapes)), source.live)"""
    return subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True, text=True, timeout=60)


def by_the_cpu(pipeline):
    """The pipeline with a decoder of the CPU in mppvideodec's place."""
    decoder = next((name for name in ("avdec_h264", "openh264dec")
                    if not subprocess.run(["gst-inspect-1.0", "--exists", name]).returncode), None)
    if decoder is None or subprocess.run(["gst-inspect-1.0", "--exists", "h264parse"]).returncode:
        pytest.skip("an H.264 decoder of GStreamer's: apt-get install gstreamer1.0-plugins-bad")
    return pipeline.replace("mppvideodec", f"{decoder} ! videoconvert")


@needs_gstreamer
def test_the_readmes_pipeline_for_the_boards_decoder_runs_with_one_of_the_cpu_in_its_place():
    file, _ = pipelines("mppvideodec")
    done = read_by_gstreamer(by_the_cpu(file).replace("street.mp4", f"{ROOT}/models/demo.mp4"), 20)
    assert done.stdout.split(" ", 1) == ["20", "(720, 1280, 3) False\n"], done.stdout + done.stderr


@needs_gstreamer
@needs_gst
@pytest.mark.slow
def test_the_readmes_pipeline_for_a_network_camera_runs_with_a_decoder_of_the_cpu():
    _, camera = pipelines("mppvideodec")
    server = Camera(CAMERAS["rtsp"], "rtsp", ROOT / "models/demo.mp4")
    try:
        done = read_by_gstreamer(re.sub(r"rtsp://\S+", server.url, by_the_cpu(camera)), 20)
    finally:
        server.kill()
    assert done.stdout.split(" ", 1) == ["20", "(720, 1280, 3) True\n"], done.stdout + done.stderr


@needs_gstreamer
def test_the_readmes_pipeline_for_a_camera_on_the_board_runs_with_a_test_picture_in_its_place():
    line, = pipelines("v4l2src")
    line = re.sub(r"v4l2src device=\S+", "videotestsrc num-buffers=5 pattern=red", line)
    done = read_by_gstreamer(line, 9)
    assert done.stdout.split() == "5 (1080, 1920, 3) False".split(), done.stdout + done.stderr
