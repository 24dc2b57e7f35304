"""Reading videos and cameras: live streams take turns, PyAV and OpenCV give the same frames, and
cameras get the settings of the flags."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, frames_of
from many_cameras import OpenCVCamera, PyAVCamera
from test_live import CAMERAS, Camera, needs_gst
from test_sources import GSTREAMER, SYSTEM_PYTHON, Host, needs_gstreamer
from tqdm import tqdm

import sources.connection
import streams
from results.result import FrameTask
from rknnpool import rknnPoolExecutor
from vision.errors import InputError
from vision.frame import Frame

needs_av = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="this reader is PyAV: pip install av"
)


# ---- live streams ----


def run_cameras(clip, runtime, monkeypatch, count, number_of_streams=1, contexts=1, reader=None):
    """Process simulated cameras of 30 FPS until the first has `count` frames. Returns the
    streams."""
    monkeypatch.setattr(sources, "Video", OpenCVCamera)
    monkeypatch.setattr(OpenCVCamera, "rate", 30)
    func = SimpleNamespace(myFunc=infer)
    made = [
        streams.Stream(clip, f"camera{number}", reader=reader)
        for number in range(number_of_streams)
    ]

    class Enough:
        def write(self, result):
            assert result.picture.shape == (360, 640, 3)
            if result.stream is made[0] and result.stream.count + 1 >= count:
                for stream in made:
                    stream.stop.set()

    with rknnPoolExecutor("model", contexts, FrameTask(func), runtime=runtime) as pool:
        threads = []
        for stream in made:
            stream.sinks.append(Enough())
            threads.append(
                threading.Thread(
                    target=stream.run, args=(pool, tqdm(disable=True)), kwargs={"quiet": True}
                )
            )
            threads[-1].start()
        for thread in threads:
            thread.join()
    return made


def infer(context, frame):
    context.inference([frame])
    return frame


def test_every_frame_of_a_live_source_is_processed_or_counted_as_dropped(
    clip, runtime, monkeypatch
):
    runtime.NPU_CORES, runtime.seconds = 1, 0.15  # 6 FPS of 30
    (stream,) = run_cameras(clip, runtime, monkeypatch, 12)
    assert stream.error is None and stream.count >= 12
    assert stream.number == stream.count + stream.dropped + stream.failed
    assert stream.dropped > stream.count


def test_cameras_that_share_a_busy_pool_take_turns(clip, runtime, monkeypatch):
    runtime.NPU_CORES, runtime.seconds = 1, 0.02  # 50 FPS of 120
    counts = [stream.count for stream in run_cameras(clip, runtime, monkeypatch, 30, 4, 2)]
    assert 3 * min(counts) >= max(counts), counts


@needs_av
def test_a_live_frame_of_pyav_is_converted_only_if_the_pool_takes_it(clip, runtime, monkeypatch):
    import sources.pyav

    converted = []
    real = sources.pyav.as_picture
    monkeypatch.setattr(
        sources.pyav, "as_picture", lambda *frame: converted.append(frame) or real(*frame)
    )
    monkeypatch.setattr(sources.pyav, "AVVideo", PyAVCamera)
    runtime.NPU_CORES, runtime.seconds = 1, 0.15  # 7 FPS of 25
    (stream,) = run_cameras(clip, runtime, monkeypatch, 10, reader="av")
    assert stream.error is None and stream.dropped > stream.count
    assert len(converted) <= stream.count + 2


def test_a_stream_reports_that_its_camera_is_away():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    stream = streams.Stream(f"http://127.0.0.1:{port}/x")  # nothing listens there
    assert stream.away and stream.live


def test_a_picture_that_nobody_needs_is_not_converted():
    made = []
    frame = Frame((2, 4, 3), lambda: made.append(1) or np.zeros((2, 4, 3), np.uint8))
    result = streams.Result(SimpleNamespace(), 0, 0, frame, 0)
    assert result.size == (4, 2) and made == []
    assert result.picture.shape == (2, 4, 3) and result.frame is result.picture and len(made) == 1


# ---- PyAV ----


def both(path):
    return sources.open_source(path, "opencv"), sources.open_source(path, "av")


def frames_left(video):
    """The number of remaining frames."""
    count = 0
    while video.read() is not None:
        count += 1
    return count


def compare(path, most=None):
    """Assert that both readers give the same frames and times. Returns the number of frames.

    Motion JPEG is decoded by two decoders that smooth the colours differently.
    """
    ours, theirs = both(path)
    assert (ours.total, ours.size, ours.live) == (theirs.total, theirs.size, theirs.live)
    assert ours.fps == pytest.approx(theirs.fps)
    count = 0
    while count != most:
        frame, other = ours.read(), theirs.read()
        assert (frame is None) == (other is None), count
        if frame is None:
            break
        difference = cv2.absdiff(frame, other)
        assert frame.shape == other.shape and difference.mean() < 2, count
        assert difference.max() <= 2 or str(path).endswith(".avi"), count
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
    """Mark an .mp4 as turned clockwise, as phones do (ISO 14496-12, tkhd)."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    for place, value in ((0, cos), (4, sin), (12, -sin), (16, cos)):
        data[matrix + place : matrix + place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def bright_corner(picture):
    """Whether the only bright part of a picture is (below, right of) the middle."""
    rows, columns = np.nonzero(picture[..., 1] > 30)
    return rows.mean() > picture.shape[0] / 2, columns.mean() > picture.shape[1] / 2


@needs_av
@pytest.mark.parametrize(
    "degrees, size, corner",
    [(90, (48, 64), (False, True)), (180, (64, 48), (True, True)), (270, (48, 64), (True, False))],
)
def test_a_phones_video_is_upright(tmp_path, degrees, size, corner):
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
    if bright_corner(opencvs.read()) == corner:  # OpenCV 4.6 turns a phone's video upside down
        assert compare(path) == 5


@needs_av
def test_the_intact_part_of_a_broken_file_is_read(tmp_path, clip):
    data = clip.read_bytes()
    short = tmp_path / "short.avi"
    short.write_bytes(data[: len(data) * 2 // 3])
    # The next frame is incomplete, and each FFmpeg version fills it differently.
    assert compare(short, 30) == 30
    assert [frames_left(video) for video in both(short)] == [31, 31]
    holes = bytearray(data)
    for place in range(len(data) // 4, len(data) // 2, 997):
        holes[place] ^= 0xFF
    (tmp_path / "holes.avi").write_bytes(holes)
    assert frames_left(sources.open_source(tmp_path / "holes.avi", "av")) > 30


def video_at(path, moments, codec="mpeg4", sound=0.0, time=1000, **options):
    """A file with pictures at these times, in seconds that are written as multiples of 1 / time,
    and so many seconds of sound."""
    import av

    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, time)
        audio = file.add_stream("mp2", rate=16000) if sound else None
        picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        for moment in moments:
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = round(time * moment), Fraction(1, time)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        for start in range(0, round(16000 * sound), 1152):
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1152), np.int16), format="s16", layout="mono"
            )
            silence.rate, silence.pts = 16000, start
            file.mux(audio.encode(silence))
    return path


@needs_av
@pytest.mark.parametrize("reader", sources.READERS)
def test_the_count_of_a_file_of_variable_rate_is_right_at_its_end(tmp_path, reader):
    """OpenCV estimates it from the length and the rate."""
    still = [number / 30 for number in range(60) if number < 10 or number % 3 == 0]
    late = [3600 + moment for moment in still]
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    files = [
        video_at(tmp_path / "still.mkv", still),
        video_at(tmp_path / "still.flv", still, "flv"),
        video_at(tmp_path / "late.mkv", late),
        video_at(tmp_path / "sound.mkv", still, sound=4),
        video_at(tmp_path / "fragments.mp4", still, **fragments),
        video_at(tmp_path / "counted.mp4", still),
        video_at(tmp_path / "still.avi", still),
    ]
    for path in files:
        video = sources.open_source(path, reader)
        assert (frames_left(video), video.total) == (26, 26), path


@needs_av
@pytest.mark.parametrize("reader", sources.READERS)
@pytest.mark.parametrize("name", ["cut.avi", "cut.mkv"])
def test_a_file_that_was_cut_off_keeps_its_count(tmp_path, reader, name):
    path = video_at(tmp_path / name, [number / 30 for number in range(90)], time=30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    video = sources.open_source(path, reader)
    assert 0 < frames_left(video) < 90 == video.total


@needs_av
@pytest.mark.parametrize("reader", sources.READERS)
def test_a_rewound_video_starts_at_its_first_frame(clip, reader):
    video = sources.open_source(clip, reader)
    first = video.read()
    assert frames_left(video) == 44
    for _ in range(2):
        video.rewind()
        assert np.array_equal(video.read(), first) and video.time == 0
        assert frames_left(video) == 44


def video_with_keys(path, seconds, keys, **options):
    """Write a video of 10 FPS, H.264 with B-frames, whose key frames are at the seconds `keys`."""
    import av

    with av.open(str(path), "w") as file:
        options = {"keyint": "infinite", "scenecut": "0", "bframes": "2", **options}
        text = ":".join(f"{name.replace('_', '-')}={value}" for name, value in options.items())
        stream = file.add_stream("libx264", rate=10, options={"x264-params": text})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10 * seconds):
            picture = np.full((48, 64, 3), 2 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            if number in [10 * key for key in keys]:
                frame.pict_type = av.video.frame.PictureType.I
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@needs_av
@pytest.mark.parametrize(
    "keys, expected, decoded",
    [
        (range(0, 12, 2), [0, 2, 4, 6, 8, 10], 20 + 5),  # all frames up to the second key frame
        ((0, 1, 2, 7, 8, 9), [0, 2, 7, 9, 11], 10 + 2 + 50),  # none for 5 s: then all frames again
    ],
)
def test_only_key_frames_are_decoded_if_fps_needs_no_others(tmp_path, keys, expected, decoded):
    path = video_with_keys(tmp_path / "keys.mp4", 12, keys)
    video, whole = sources.open_source(path, "av"), {}
    while video.grab():
        whole[round(video.time, 3)] = video.retrieve()
    stream = streams.Stream(path, max_fps=0.5, reader="av")
    found = {round(result.time, 3): result for result in stream.frames()}
    assert list(found) == expected and stream.number == len(whole) == 120
    for time, result in found.items():
        assert result.number == 10 * time and np.array_equal(result.frame, whole[time]), time
    assert frames_left(sources.open_source(path, "av", max_fps=0.5)) == decoded


@needs_av
def test_pyav_leaves_out_the_padding_of_a_decoders_frames(tmp_path):
    """A decoder of H.264 works on whole blocks of 16 x 16 pixels; 318 x 178 is none."""
    import av

    row, column = np.mgrid[:178, :318]
    picture = np.stack([row, column // 2, 200 - row], 2).astype(np.uint8)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 318, 178, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert next(container.decode(video=0)).planes[0].line_size > 318
    found = sources.open_source(tmp_path / "a.mp4", "av").read()
    assert found.shape == (178, 318, 3) and cv2.absdiff(found, picture).max() <= 8


@needs_av
@pytest.mark.parametrize("size", [(1366, 770), (1930, 1082)])
def test_pyav_leaves_out_the_padding_of_nv12(size):
    import av

    import sources.pyav

    w, h = size
    frame = av.VideoFrame(w, h, "nv12")
    row, column = np.ogrid[:h, :w]
    brightness, colours = 40 + row / 10 + column / 20, np.where(column % 2, 90, 160) + 0 * row
    planes = brightness.astype(np.uint8), colours[: h // 2].astype(np.uint8)
    for plane, values in zip(frame.planes, planes):
        assert plane.line_size > w
        stored = np.full((len(values), plane.line_size), 255, np.uint8)
        stored[:, :w] = values
        plane.update(stored.tobytes())
    expected = cv2.cvtColor(np.concatenate(planes), cv2.COLOR_YUV2BGR_NV12)
    assert cv2.absdiff(sources.pyav.as_picture(frame, 0), expected).max() <= 4


@needs_av
def test_main_reads_with_pyav_if_requested(main_py, clip, plain_func, tmp_path):
    done = main_py(
        clip, "--headless", "--func", plain_func, "--reader", "av", "--save", tmp_path / "out.avi"
    )
    assert done.returncode == 0 and "45 frames" in done.stdout, done.stderr
    assert len(frames_of(tmp_path / "out.avi")) == 45


@needs_av
def test_pyavs_error_messages_are_those_of_opencv(main_py, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"\0no video")
    done = main_py(tmp_path / "no.mp4", "--headless", "--reader", "av")
    assert done.returncode == 2 and re.fullmatch(
        r"\S+no\.mp4: not a video that PyAV can read \(.*\)\.\n", done.stderr
    )
    host = Host("http", 404)
    try:
        done = main_py(f"http://me:hunter2@127.0.0.1:{host.port}/x", "--headless", "--reader", "av")
    finally:
        host.server.shutdown()
        host.server.server_close()
    assert (
        done.returncode == 2
        and "has nothing at this address (404)" in done.stderr
        and "hunter2" not in done.stderr
    )


@pytest.mark.parametrize(
    "reader, expected",
    [
        ("av", "--reader av needs the package av"),
        ("gpu", "--reader gpu: unknown; choose from opencv, av."),
    ],
)
def test_a_missing_reader_is_reported(main_py, clip, tmp_path, reader, expected):
    (tmp_path / "av.py").write_text("raise ModuleNotFoundError('no av', name='av')")
    done = main_py(
        clip, "--headless", "--reader", reader, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 2 and done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) == 1


@needs_av
def test_opencv_is_used_if_the_boards_decoder_is_not_available(main_py, clip, tmp_path, plain_func):
    """With a fake pyav-rkmpp; tests/board/test_pyav_rkmpp.py has the real one."""
    info = tmp_path / "pyav_rkmpp-18.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyav-rkmpp\nVersion: 18.1\n")
    done = main_py(
        clip,
        ROOT / "models/demo.mp4",
        "--headless",
        "--func",
        plain_func,
        "--fps",
        "2",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    lines = [line for line in done.stderr.splitlines() if "OpenCV decodes it" in line]
    assert done.returncode == 0 and sorted(lines) == [  # each stream has a thread of its own
        "clip.avi: OpenCV decodes it on the CPU because the board's decoder does not support mjpeg "
        "(only h264, hevc, av1).",
        "demo.mp4: OpenCV decodes it on the CPU because this FFmpeg has no h264_rkmpp.",
    ]


def test_opencv_is_used_if_the_boards_decoder_cannot_be_imported(
    main_py, clip, tmp_path, plain_func
):
    info = tmp_path / "pyav_rkmpp-18.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyav-rkmpp\nVersion: 18.1\n")
    (tmp_path / "av.py").write_text("raise ImportError('libdrm.so.2: no such file')")
    done = main_py(
        clip, "--headless", "--func", plain_func, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0 and "45 frames" in done.stdout
    assert "pyav-rkmpp cannot be imported (libdrm.so.2: no such file)." in done.stderr


@needs_av
@needs_gst
@pytest.mark.slow
def test_pyav_reads_a_camera_and_reconnects(monkeypatch):
    camera = Camera(CAMERAS["rtsp"], "rtsp", ROOT / "models/demo.mp4")
    monkeypatch.setattr(sources.connection, "PAUSES", (0.1,))
    stream = streams.Stream(camera.url, reader="av")
    assert (
        type(stream.source).__name__ == "AVVideo"
        and stream.live
        and stream.source.size == (1280, 720)
    )
    frames = stream.frames()
    try:
        assert [next(frames).frame.shape for _ in range(5)] == [
            (720, 1280, 3)
        ] * 5 and not stream.away
        camera.kill()
        monkeypatch.setattr(
            streams,
            "say",
            lambda text, *_: (
                "disconnected" in text
                and seen.append(stream.away)
                or "disconnected" in text
                and camera.start()
            ),
        )
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
def test_a_host_that_does_not_answer_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        timeouts = sources.Timeouts()
        timeouts.open_timeout = 0.5
        for scheme, expected in (("http", "does not answer"), ("tcp", "cannot be reached")):
            with pytest.raises(sources.SourceUnavailable, match=expected):
                address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x"
                sources.open_source(address, "av", timeouts=timeouts)


# ---- cameras ----


class RecordingCapture:
    """A cv2.VideoCapture that records its settings. It has only pictures of 1280x720 at 30 FPS."""

    requested: list = []
    has = {
        cv2.CAP_PROP_FRAME_WIDTH: 1280,
        cv2.CAP_PROP_FRAME_HEIGHT: 720,
        cv2.CAP_PROP_FPS: 30,
        cv2.CAP_PROP_FOURCC: cv2.VideoWriter_fourcc(*"MJPG"),
    }

    def __init__(self, *_):
        self.requested.clear()

    def isOpened(self):
        return True

    def getBackendName(self):
        return "V4L2"

    def set(self, what, value):
        self.requested.append((what, value))
        return False

    def get(self, what):
        return self.has.get(what, 0)

    def release(self):
        pass


@pytest.fixture
def requested(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", RecordingCapture)
    return RecordingCapture.requested


def test_a_camera_gets_format_then_size_then_rate(requested):
    camera = sources.parse_camera("1280x720", 30, "mjpg")
    assert sources.open_source("0", camera=camera).note is None
    assert requested == [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG")),
        (cv2.CAP_PROP_FRAME_WIDTH, 1280),
        (cv2.CAP_PROP_FRAME_HEIGHT, 720),
        (cv2.CAP_PROP_FPS, 30),
        (cv2.CAP_PROP_CONVERT_RGB, 0),  # frames stay JPEGs
    ]
    sources.open_source("0")
    assert requested == [(cv2.CAP_PROP_CONVERT_RGB, 0)]


def test_a_cameras_different_settings_are_reported_once(requested, printed):
    stream = streams.Stream("0", "gate", camera=sources.parse_camera((1920, 1080), 60, "YUYV"))
    assert printed == [
        "gate: the camera delivers 1280x720 pixels, not 1920x1080; 30 frames per second, not 60; "
        "MJPG, not YUYV."
    ]
    assert stream.live


def test_main_requests_the_cameras_format_of_the_flags_or_settings(clip, plain_func):
    script = """
import cv2, main
real = cv2.VideoCapture
class Noted:
    def __init__(self, *_):
        self.real, self.requested = real(CLIP), {}
    def set(self, what, value):
        self.requested[what] = value
        print("asked", what, value)
        return True
    def get(self, what):
        return self.requested.get(what) or self.real.get(what)
    def __getattr__(self, name):
        return getattr(self.real, name)
cv2.VideoCapture = Noted
main.camera_fps = 15
main.main()""".replace("CLIP", repr(str(clip)))
    run = subprocess.Popen(
        [
            sys.executable,
            "-uc",
            script,
            "0",
            "--headless",
            "--func",
            str(plain_func),
            "--camera-size",
            "800x600",
            "--camera-format",
            "MJPG",
        ],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    asked_ = [run.stdout.readline().split()[1:] for _ in range(4)]
    run.terminate()
    run.communicate(timeout=60)
    assert asked_ == [
        [str(cv2.CAP_PROP_FOURCC), str(cv2.VideoWriter_fourcc(*"MJPG"))],
        ["3", "800"],
        ["4", "600"],
        ["5", "15"],
    ]


@pytest.mark.parametrize(
    "flags, expected",
    [
        (
            ("--camera-size", "big"),
            "--camera-size big: must be width x height in pixels, such as 1920x1080.",
        ),
        (("--camera-size", "0x480"), "--camera-size 0x480: must be width x height"),
        (("--camera-size", "1920"), "--camera-size 1920: must be width x height"),
        (("--camera-fps", "0"), "--camera-fps 0: must be more than 0"),
        (("--camera-fps", "nan"), "--camera-fps nan: must be more than 0"),
        (
            ("--camera-format", "JPEGS"),
            "--camera-format JPEGS: must be four letters",
        ),
        (("--camera-format", "MJ"), "--camera-format MJ: must be four letters"),
    ],
)
def test_invalid_camera_settings_are_refused(main_here, clip, flags, expected):
    done = main_here(clip, "--headless", *flags)
    assert (
        done.returncode == 2
        and done.stderr.startswith(expected)
        and len(done.stderr.splitlines()) == 1
    )


def test_a_pattern_like_a_folder_takes_only_pictures(tmp_path):
    for name in ("a.png", "b.jpg", "notes.txt", "clip.mp4"):
        (tmp_path / name).touch()
    assert [os.path.basename(path) for path in sources.list_pictures(str(tmp_path / "*"))] == [
        "a.png",
        "b.jpg",
    ]
    with pytest.raises(InputError, match="no picture matches"):
        sources.list_pictures(str(tmp_path / "[cn]*"))


# ---- documented pipelines ----


def pipelines(element):
    """The GStreamer pipelines of docs/sources.md with that element."""
    text = (ROOT / "docs/sources.md").read_text()
    return [line for line in re.findall(r"'([^'`]+ ! appsink)'", text) if element in line]


def read_by_gstreamer(pipeline, most, before="", after=""):
    script = f"""{GSTREAMER}
{before}
source, frames = sources.open_source({pipeline!r}), []
frame = source.read()
while frame is not None and len(frames) < {most}:
    frames.append(frame)
    frame = source.read()
source.release()
print(len(frames), *sorted({{frame.shape for frame in frames}}), source.live)
{after}"""
    return subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True, text=True, timeout=60)


def with_gstreamer(*elements):
    """The first of the elements that is installed."""
    for name in elements:
        if not subprocess.run(["gst-inspect-1.0", "--exists", name]).returncode:
            return name
    pytest.skip(f"needs {elements[0]}: apt-get install gstreamer1.0-plugins-bad")


@needs_gstreamer
@needs_gst
def test_the_documented_pipeline_reads_the_padded_frames_of_the_boards_decoder():
    """padded_decoder.py stands in for mppvideodec."""
    with_gstreamer("h264parse")
    file, _ = pipelines("mppvideodec")
    done = read_by_gstreamer(
        file.replace("street.mp4", f"{ROOT}/models/demo.mp4"),
        3,
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import padded_decoder\n"
        "padded_decoder.register()",
        "print(*(numpy.array_equal(frame, padded_decoder.expected()) for frame in frames))",
    )
    assert done.stdout == "3 (1080, 1920, 3) False\nTrue True True\n", done.stdout + done.stderr


@needs_gstreamer
@needs_gst
@pytest.mark.slow
def test_the_documented_pipeline_for_a_network_camera_runs_with_a_cpu_decoder():
    _, camera = pipelines("mppvideodec")
    camera = camera.replace("mppvideodec", with_gstreamer("avdec_h264", "openh264dec"))
    server = Camera(CAMERAS["rtsp"], "rtsp", ROOT / "models/demo.mp4")
    try:
        done = read_by_gstreamer(re.sub(r"rtsp://\S+", server.url, camera), 20)
    finally:
        server.kill()
    assert done.stdout.split(" ", 1) == ["20", "(720, 1280, 3) True\n"], done.stdout + done.stderr


@needs_gstreamer
def test_the_documented_pipeline_for_a_board_camera_runs_with_a_test_picture():
    (line,) = pipelines("v4l2src")
    line = re.sub(r"v4l2src device=\S+", "videotestsrc num-buffers=5 pattern=red", line)
    done = read_by_gstreamer(line, 9)
    assert done.stdout.split() == "5 (1080, 1920, 3) False".split(), done.stdout + done.stderr
