"""Cameras over HTTP: odd Motion JPEG, single pictures, HLS, and timeouts."""

import http.server
import itertools
import threading

import cv2
import numpy as np
import pytest
from http_cameras import END, LENGTH, MOTION_JPEG, MULTIPART, TYPE, http_camera, jpeg, motion

import sources
import streams
from sources.timeouts import MAX_OPEN_TIMEOUT, SLOW_READ_TIMEOUT, Timeouts
from vision.errors import InputError


def number_in(picture):
    return round(float(picture.mean()))


def read(url, count, **options):
    """The numbers of the first `count` pictures, or of those that come in a minute, and the Stream
    that read them."""
    stream = streams.Stream(url, **options)
    frames, minute = stream.frames(), threading.Timer(60, stream.stop.set)
    minute.start()
    numbers = [number_in(result.frame) for result in itertools.islice(frames, count)]
    minute.cancel()
    frames.close()
    return numbers, stream


# ---- Motion JPEG ----


@pytest.mark.parametrize("name", MOTION_JPEG)
def test_motion_jpeg_is_read_however_it_is_written(name, printed):
    with http_camera(MOTION_JPEG[name]) as url:
        numbers, stream = read(url, 10)
    assert numbers == list(range(10)) and stream.live and not printed


def test_only_the_picture_that_is_cut_off_is_lost(printed):
    ends = iter([None, -20, None, -3, None])
    camera = motion(TYPE + b"\r\n", cut=lambda data: data[: next(ends, None)])
    with http_camera(camera) as url:
        numbers, _ = read(url, 4)
    assert numbers == [0, 2, 4, 5] and not printed


@pytest.mark.parametrize("reader", ["opencv", "av"])
def test_a_picture_is_delivered_when_it_is_complete_without_waiting_for_the_next(reader):
    def answer(request):
        request.send(TYPE + b"\r\n" + jpeg(7), MULTIPART)
        END.wait()  # no boundary, no length, and nothing more

    with http_camera(answer) as url:
        assert number_in(sources.open_source(url, reader).read()) == 7


def test_a_camera_that_ends_its_response_is_opened_again(printed, monkeypatch):
    monkeypatch.setattr("sources.connection.PAUSES", (0.01,))

    def answer(request):
        request.send(b"", MULTIPART)
        for number in (0, 1):
            request.wfile.write(TYPE + b"\r\n" + jpeg(10 * request.number + number))

    with http_camera(answer) as url:
        assert read(url, 4)[0] == [0, 1, 10, 11]
    assert [line.split(": ")[1] for line in printed] == [
        "disconnected, trying again.",
        "connected again after 0 s.",
    ]


# ---- single pictures ----


def png(number):
    return cv2.imencode(".png", np.full((48, 64, 3), number, np.uint8))[1].tobytes()


SINGLE = {
    "shot.jpg": lambda request: request.send(jpeg(request.number)),
    "shot.png": lambda request: request.send(png(request.number), "image/png"),
    "length": lambda request: request.send(
        jpeg(request.number), Content_Length=len(jpeg(request.number))
    ),
    "no type": lambda request: request.send(jpeg(request.number), None),
    "wrong type": lambda request: request.send(jpeg(request.number), "text/plain"),
    "png as jpeg": lambda request: request.send(png(request.number)),
    "one part": lambda request: request.send(
        TYPE + b"\r\n" + jpeg(request.number) + b"\r\n--frame--", MULTIPART
    ),
    "changing type": lambda request: request.send(
        *[(jpeg(request.number),), (png(request.number), "image/png")][request.number % 2]
    ),
    "no end": lambda request: request.send(
        jpeg(request.number)[:-2], Content_Length=len(jpeg(request.number)) - 2
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_address_of_single_pictures_is_requested_repeatedly(name, printed):
    with http_camera(SINGLE[name]) as url:
        numbers, stream = read(url, 4, max_fps=20)
    assert len(numbers) == 4 and numbers == sorted(set(numbers)) and stream.live and not printed


@pytest.mark.parametrize("max_fps, poll", [(None, 1), (50, 0.02), (0.1, 10)])
def test_single_pictures_are_requested_at_fps_or_once_a_second(max_fps, poll):
    class Stop(threading.Event):
        pauses = []

        def wait(self, seconds):
            self.pauses.append(seconds)
            return len(self.pauses) == 2

    with http_camera(SINGLE["shot.jpg"]) as url:
        stream = streams.Stream(url, max_fps=max_fps)
        stream.connection.timeouts.stop = Stop()
        assert [stream.source.grab() for _ in range(3)] == [True, True, False]
    assert poll / 2 < Stop.pauses[0] <= poll


def test_a_single_picture_that_is_missing_does_not_count_as_a_disconnection(printed):
    def answer(request):
        if request.number in (2, 4):
            request.send(b"busy", "text/html", status=503 if request.number == 2 else 200)
        else:
            request.send(jpeg(request.number))

    with http_camera(answer) as url:
        numbers = read(url, 4, max_fps=20)[0]
    assert len(numbers) == 4 and not {2, 4} & set(numbers) and not printed


def test_single_pictures_are_read_behind_a_redirection_and_a_login():
    def answer(request):
        if request.path == "/live":
            request.send(b"", status=302, Location="/other/shot.jpg?channel=1")
        elif "Digest" not in request.headers.get("Authorization", ""):
            request.send(b"", status=401, WWW_Authenticate='Digest realm="camera", nonce="77"')
        else:
            request.send(jpeg(9))

    with http_camera(answer) as url:
        assert read(url.replace("http://", "HTTP://me:s%23cret@"), 2, max_fps=20)[0] == [9, 9]
        with pytest.raises(InputError, match="asks for a login"):
            sources.open_source(url)


# ---- silence ----


def test_a_camera_with_a_low_frame_rate_does_not_time_out(printed):
    with http_camera(motion(TYPE + LENGTH + b"\r\n", interval=2.2)) as url:
        assert read(url, 2)[0] == [0, 1] and not printed


def test_a_silent_camera_is_opened_again_after_the_silence_that_was_set(printed, monkeypatch):
    monkeypatch.setattr("sources.connection.PAUSES", (0.01,))

    def answer(request):
        request.send(TYPE + b"\r\n" + jpeg(10 * request.number), MULTIPART)
        request.wfile.write(TYPE + b"\r\n" + jpeg(10 * request.number + 1))
        END.wait()

    with http_camera(answer) as url:
        assert read(url, 4, silence=0.2)[0] == [0, 1, 10, 11]
    assert "disconnected" in printed[0]


def test_the_read_timeout_follows_from_the_interval_that_the_source_has_shown():
    def after(*waits, **options):
        timeouts = Timeouts(**options)
        for seconds in waits:
            timeouts.note_picture(seconds)
        return timeouts.read_timeout(SLOW_READ_TIMEOUT)

    assert after() == SLOW_READ_TIMEOUT  # not known yet
    assert after(*[0.04] * 50) == 5
    assert after(*[0.04] * 50, 3) == after(0, 0, 0, 3) == SLOW_READ_TIMEOUT
    assert after(60, 60) == 180
    assert after(60, 60, *[0.04] * 1000) == 5  # it has become fast
    assert after(*[0.04] * 50, silence=7) == after(60, 60, silence=7) == after(silence=7) == 7


def test_each_attempt_to_open_a_slow_source_waits_longer():
    timeouts, waits = Timeouts(), []
    for _ in range(8):
        waits.append(timeouts.open_timeout)
        timeouts.note_attempt(timeouts.open_timeout, opened=False)
    assert waits == [5, 10, 20, 40, 80, 160, MAX_OPEN_TIMEOUT, MAX_OPEN_TIMEOUT]
    assert timeouts.read_timeout() == SLOW_READ_TIMEOUT
    timeouts.note_attempt(7, opened=True)
    assert timeouts.open_timeout == timeouts.read_timeout() == 14  # for the next outage
    timeouts.note_attempt(0.01, opened=False)  # refused at once
    assert timeouts.open_timeout == 14
    timeouts.note_attempt(0.01, opened=True)
    assert timeouts.open_timeout == timeouts.read_timeout() == 5


def test_an_invalid_silence_is_refused(main_py):
    done = main_py("--silence", 0)
    assert done.returncode == 2 and done.stderr == (
        "--silence 0: must be more than 0 and at most 86400 seconds.\n"
    )


# ---- HLS ----


class Playlist(http.server.BaseHTTPRequestHandler):
    """A live HLS stream of segments of 10 pictures; server.lists are its playlists, one after the
    other."""

    def do_GET(self):
        if self.path.endswith("ts"):
            data, kind = self.server.segments[int(self.path[1:-3])], "video/mp2t"
        else:
            lists = self.server.lists
            data = (lists.pop(0) if len(lists) > 1 else lists[0]).encode()
            kind = "application/vnd.apple.mpegurl"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hls(tmp_path):
    """hls(playlists) -> URL of a stream of three segments of 1 s."""
    segments = []
    for number in range(3):
        path = str(tmp_path / f"{number}.ts")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MPG2"), 10, (64, 48))
        for _ in range(10):
            writer.write(np.full((48, 64, 3), 20 + 40 * number, np.uint8))
        writer.release()
        segments.append(open(path, "rb").read())
    servers = []

    def begin(*playlists):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Playlist)
        server.lists, server.segments = list(playlists), segments
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def playlist(count, seconds=1, end=False):
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{seconds}"]
    for number in range(count):
        lines += ["#EXT-X-DISCONTINUITY", "#EXTINF:1.0,", f"{number}.ts"]
    return "\n".join(lines + ["#EXT-X-ENDLIST"] * end) + "\n"


@pytest.mark.skipif(
    tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 8),
    reason="FFmpeg of OpenCV 4.6 analyses 5 s; this stream has 3 s",
)
@pytest.mark.parametrize("path", ["live.m3u8", "playlist?id=7"])
def test_the_read_timeout_of_hls_follows_from_the_length_of_its_segments(hls, path):
    for seconds in (6, 10):
        timeouts = Timeouts()
        source = sources.open_source(hls(playlist(3, seconds)) + path, timeouts=timeouts)
        assert source.live and source.grab() and timeouts.read_timeout() == 3 * seconds
        source.release()


def test_a_live_hls_stream_that_ends_is_not_played_again(hls, printed, monkeypatch):
    monkeypatch.setattr("sources.connection.PAUSES", (0.01,))
    url = hls(*[playlist(3)] * 3, playlist(3, end=True)) + "live.m3u8"
    stream = streams.Stream(url)
    assert stream.live
    numbers = [round((number_in(result.frame) - 20) / 40) for result in stream.frames()]
    assert numbers == sorted(numbers) and len(numbers) <= 30
    assert [line.split(": ")[1] for line in printed] == [
        "disconnected, trying again.",
        "has ended.",
    ]
