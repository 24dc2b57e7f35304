"""Cameras over HTTP: odd Motion JPEG, single pictures, logins, and timeouts."""

import base64
import hashlib
import itertools
import re
import shutil
import ssl
import subprocess
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from http_cameras import END, LENGTH, MOTION_JPEG, MULTIPART, TYPE, http_camera, jpeg, motion
from tqdm import tqdm

import sources
import streams
from rknnpool import rknnPoolExecutor
from sources.opencv import open_url
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


BROKEN = {
    "without a size": lambda data: data[:2] + b"\xff\xe0\0\x04no\xff\xd9",
    "with a size": lambda data: data[:2] + b"\xff\xc0\0\x0b\x08\0\x30\0\x40\1\1\x11\0\xff\xd9",
}


@pytest.mark.parametrize("name", BROKEN)
def test_pictures_that_cannot_be_decoded_count_as_failed_and_are_reported_once(
    name, printed, runtime
):
    failed = []

    class Sink:
        def write(self, result):
            failed.append(result.error)
            if len(failed) == 3:
                stream.stop.set()

    func = SimpleNamespace(myFunc=lambda context, frame: frame)
    with http_camera(motion(TYPE + b"\r\n", cut=BROKEN[name])) as url:
        stream = streams.Stream(url, name="gate")
        stream.sinks.append(Sink())
        minute = threading.Timer(60, stream.stop.set)
        minute.start()
        with rknnPoolExecutor("model", 1, streams.FrameTask(func), runtime=runtime) as pool:
            stream.run(pool, tqdm(disable=True), quiet=True)
        minute.cancel()
    assert set(failed) == {"the picture cannot be decoded"} and stream.failed == len(failed) >= 3
    assert stream.count == 0 and printed == ["gate: the picture cannot be decoded."]


# ---- single pictures ----


def encoded(number, extension=".png"):
    return cv2.imencode(extension, np.full((48, 64, 3), number, np.uint8))[1].tobytes()


SINGLE = {
    "shot.jpg": lambda request: request.send(jpeg(request.number)),
    "shot.png": lambda request: request.send(encoded(request.number), "image/png"),
    "length": lambda request: request.send(
        jpeg(request.number), Content_Length=len(jpeg(request.number))
    ),
    "no type": lambda request: request.send(jpeg(request.number), None),
    "wrong type": lambda request: request.send(jpeg(request.number), "text/plain"),
    "png as jpeg": lambda request: request.send(encoded(request.number)),
    "png of bytes": lambda request: request.send(
        encoded(request.number), "application/octet-stream"
    ),
    "bmp without type": lambda request: request.send(encoded(request.number, ".bmp"), None),
    "webp as text": lambda request: request.send(encoded(request.number, ".webp"), "text/plain"),
    "one part": lambda request: request.send(
        TYPE + b"\r\n" + jpeg(request.number) + b"\r\n--frame--", MULTIPART
    ),
    "changing type": lambda request: request.send(
        *[(jpeg(request.number),), (encoded(request.number), "image/png")][request.number % 2]
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


@pytest.mark.parametrize("max_fps, poll", [(None, 1), (0.5, 2), (0.1, 10)])
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


def test_the_picture_stays_if_the_camera_says_that_it_is_not_modified(printed):
    def answer(request):
        if request.number in (1, 2):
            request.send(b"", None, status=304)
        else:
            request.send(jpeg(request.number))

    with http_camera(answer) as url:
        assert read(url, 4, max_fps=20)[0] == [0, 0, 0, 3] and not printed


# ---- logins ----

BASIC, MD5, SHA = 'Basic realm="camera"', "MD5", "SHA-256"


def digest(algorithm, more=', qop="auth"'):
    return f'Digest realm="camera", nonce="77", algorithm={algorithm}{more}'


def is_answer(header, challenge, method, uri):
    """Whether an Authorization header has the login of me, s3:cret, for a challenge (RFC 7616)."""
    if challenge == BASIC:
        return header == "Basic " + base64.b64encode(b"me:s3:cret").decode()
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', header))
    algorithm = re.search(r"algorithm=([\w-]+)", challenge).group(1)
    kind = hashlib.sha256 if SHA in algorithm else hashlib.md5

    def mixed(*words):
        return kind(":".join(words).encode()).hexdigest()

    secret, nonce = mixed("me", "camera", "s3:cret"), ["77"]
    if "-sess" in algorithm:
        secret = mixed(secret, "77", fields.get("cnonce", ""))
    if "qop" in challenge:
        nonce += [fields.get(name, "") for name in ("nc", "cnonce", "qop")]
    return fields.get("uri") == uri and fields.get("response") == mixed(
        secret, *nonce, mixed(method, uri)
    )


LOGINS = {
    "basic": [BASIC],
    "digest": [digest(MD5)],
    "digest without qop": [digest(MD5, "")],
    "several qops": [digest(MD5, ', qop="auth,auth-int"')],
    "session": [digest("MD5-sess")],
    "sha": [digest(SHA)],
    "digest, then basic": [digest(MD5), BASIC],
    "basic, then digest": [BASIC, digest(MD5)],
    "both in one header": [f"{BASIC}, {digest(MD5)}"],
    "a known one of two": [digest("SHA-512-256"), digest(MD5)],
    "two digests": [digest(SHA), digest(MD5)],
}


@pytest.mark.parametrize("name", LOGINS)
def test_a_login_is_given_in_the_way_that_the_camera_asks_for(name):
    """A camera accepts its best way only, and asks again at the address to which it redirects."""
    offers = ", ".join(LOGINS[name]).replace(", Digest", "\nDigest").split("\n")
    best = next((offer for offer in offers if offer[:6] == "Digest" and "512" not in offer), BASIC)

    def answer(request):
        if not is_answer(request.headers.get("Authorization", ""), best, "GET", request.path):
            request.send_response(401)
            for challenge in LOGINS[name]:
                request.send_header("WWW-Authenticate", challenge)
            request.end_headers()
        elif request.path == "/live":
            request.send(b"", status=302, Location="/shot.jpg?channel=1")
        else:
            request.send(jpeg(request.number))

    with http_camera(answer) as url:
        source = sources.open_source(url.replace("://", "://me:s3%3Acret@"))
        assert number_in(source.read()) == 3
        with pytest.raises(InputError, match="refuses this user name or password"):
            sources.open_source(url.replace("://", "://me:other@"))


def test_a_login_is_not_given_to_another_host():
    headers = []

    def other(request):
        headers.append(request.headers.get("Authorization"))
        request.send(b"", status=401, WWW_Authenticate=BASIC)

    with http_camera(other) as elsewhere:

        def answer(request):
            if request.headers.get("Authorization"):
                request.send(b"", status=302, Location=elsewhere.replace("127.0.0.1", "127.1"))
            else:
                request.send(b"", status=401, WWW_Authenticate=BASIC)

        with http_camera(answer) as url, pytest.raises(InputError):
            sources.open_source(url.replace("://", "://me:s3cret@"))
    assert headers and set(headers) == {None}


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


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_3"])
def test_a_camera_with_old_tls_and_its_own_certificate_is_read(version, tmp_path, printed):
    files = tmp_path / "certificate", tmp_path / "key"
    command = "openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=camera -out {} -keyout {}"
    subprocess.run(command.format(*files).split(), check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.set_ciphers("DEFAULT:@SECLEVEL=0")
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion[version]
    tls.load_cert_chain(*files)
    with http_camera(SINGLE["shot.jpg"], tls) as url:
        assert read(url, 2, max_fps=20)[0] == [0, 1] and not printed


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


def test_a_source_that_opens_at_its_timeout_may_be_slow_until_its_pictures_are_fast():
    timeouts = Timeouts()
    assert not timeouts.slow
    timeouts.note_attempt(5, opened=False)  # it may be switched off
    assert not timeouts.slow
    timeouts.note_attempt(10, opened=True)
    assert timeouts.slow and timeouts.read_timeout() == SLOW_READ_TIMEOUT
    for _ in range(5):
        timeouts.note_picture(0.04)
    assert not timeouts.slow
    timeouts.note_picture(3)
    assert timeouts.slow
    timeouts.segment = 6  # HLS has such pauses
    assert not timeouts.slow


class Opened:
    """Stands in for cv2.VideoCapture, and remembers how it was opened."""

    def __init__(self, *arguments, size=(64, 48)):
        self.arguments, self.size = arguments, size

    def isOpened(self):
        return True

    def get(self, name):
        return {cv2.CAP_PROP_FRAME_WIDTH: self.size[0], cv2.CAP_PROP_FRAME_HEIGHT: self.size[1]}[
            name
        ]

    def release(self):
        pass


@pytest.mark.skipif(not hasattr(cv2, "CAP_PROP_N_THREADS"), reason="OpenCV before 4.7")
@pytest.mark.parametrize("slow", [False, True])
def test_one_thread_decodes_a_slow_source_because_several_delay_its_pictures(slow, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Opened)
    options = open_url("rtsp://127.0.0.1:9/", 5, 5, slow).arguments[-1]
    assert (cv2.CAP_PROP_N_THREADS in options[::2]) == slow


def test_a_source_that_opencv_opens_without_a_size_is_not_open(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: Opened(size=(0, 0)))
    with pytest.raises(sources.SourceUnavailable):
        open_url("rtsp://127.0.0.1:9/", 5, 5, True)


@pytest.mark.skipif(
    tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 8),
    reason="before OpenCV 4.8, only one video is opened at a time",
)
def test_a_camera_that_does_not_answer_delays_no_other(clip):
    asked, done = threading.Event(), threading.Event()

    def answer(request):
        asked.set()
        done.wait(60)

    with http_camera(answer) as url:
        waiting = threading.Thread(target=cv2.VideoCapture, args=(url, cv2.CAP_FFMPEG))
        waiting.start()
        assert asked.wait(60)
        assert sources.open_source(clip).read() is not None and waiting.is_alive()
        done.set()
    waiting.join()


def test_an_invalid_silence_is_refused(main_here):
    done = main_here("--silence", 0)
    assert done.returncode == 2 and done.stderr == (
        "--silence 0: must be more than 0 and at most 86400 seconds.\n"
    )
