"""What --save promises: everything is there, lasts as long as what it shows, and can be played whatever happens."""
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, frames_of, number_in

from results import video
from rknnmodel import InputError

try:
    import av
except ImportError:
    av = None
needs_av = pytest.mark.skipif(av is None, reason="H.264 needs PyAV: pip install av")


def stream_of(rate=30.0, live=False, **more):
    said = []
    return SimpleNamespace(rate=rate, live=live, most=None, name="clip", source=None, complain=said.append, said=said,
                           **more)


def saved(path, times, size=(64, 48), **more):
    """Save a picture at each of these times: the Saver's stream."""
    stream = stream_of(**more)
    saver = video.Saver(str(path), stream)
    for number, moment in enumerate(times):
        picture = np.full((size[1], size[0], 3), 7 * number % 255, np.uint8)
        saver.write(SimpleNamespace(error=None, picture=picture, time=moment, received=moment))
    saver.close()
    return stream


def duration(path):
    """Seconds that a video lasts, by its own account."""
    capture = cv2.VideoCapture(str(path))
    return capture.get(cv2.CAP_PROP_FRAME_COUNT) / capture.get(cv2.CAP_PROP_FPS)


@pytest.fixture(params=["mp4", "mkv", "avi", "mp4 without av", "mkv without av"])
def path(request, tmp_path, monkeypatch):
    """A path for each way of saving."""
    kind, _, without = request.param.partition(" ")
    if without:
        monkeypatch.setattr(video, "open_h264", lambda *_: None)
    elif kind != "avi" and av is None:
        pytest.skip("H.264 needs PyAV: pip install av")
    return tmp_path / f"out.{kind}"


@pytest.mark.parametrize("live, rate, times", [
    (True, 30, [100 + number / 10 for number in range(50)]),                       # served at 10 of 30 FPS
    (True, 30, [number / 30 for number in range(30)] + [3 + number / 30 for number in range(30)]),  # away for 2 s
    (True, 90000, [number / 25 for number in range(50)]),                          # RTSP's clock as its rate
    (True, 15, [number / 30 for number in range(90)]),                             # sends twice what it says
    (False, 0.5, [2.0 * number for number in range(10)]),
    (False, 300, [number / 300 for number in range(300)]),
    (False, 29.97, [number / 29.97 for number in range(60) if number % 7]),        # with frames that failed
    (False, 25, [0.0] * 50),                                                       # a source without a clock
], ids=["slow", "away", "90000", "fast", "0.5", "300", "failed", "no clock"])
def test_a_saved_video_lasts_as_long_as_what_it_shows(path, live, rate, times):
    saved(path, times, live=live, rate=rate)
    shown = len(times) / rate if times[-1] == 0 else times[-1] - times[0] + 1 / (rate if rate < 1000 else 30)
    assert duration(path) == pytest.approx(shown, abs=max(0.1, 1.1 / rate))


@pytest.mark.parametrize("shift", [0, 1 / 30 - 1e-9], ids=["steady", "two at once"])
def test_every_frame_of_a_file_is_in_it(path, shift):
    saved(path, [number / 30 - shift * (number % 2) for number in range(60)])
    assert len(frames_of(path)) == 60


def test_odd_sizes_are_not_cut_and_the_added_row_is_said(path):
    stream = stream_of()
    picture = np.zeros((49, 65, 3), np.uint8)
    picture[-1], picture[:, -1] = 255, 255  # what would be cut
    saver = video.Saver(str(path), stream)
    saver.write(SimpleNamespace(error=None, picture=picture, time=0, received=0))
    saver.close()
    frame = frames_of(path)[0]
    assert frame.shape == (50, 66, 3) and frame[48, 10].min() > 128 and frame[10, 64].min() > 128
    assert len(stream.said) == 1 and "65x49 are saved with a row or column more, as 66x50" in stream.said[0]


@needs_av
@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
@pytest.mark.slow
def test_after_kill_9_what_was_saved_can_be_played(tmp_path, plain_func, name):
    command = [sys.executable, "-u", "main.py", "--headless", "--func", plain_func, "--save", tmp_path / name]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(5):
        assert "last 30 frames" in running.stdout.readline()
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert len(frames_of(tmp_path / name)) >= 140


@needs_av
def test_videos_are_h264_where_pyav_is_installed(tmp_path):
    saved(tmp_path / "out.mp4", [0, 1 / 30])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_an_existing_file_asks_for_overwrite(main_py, clip, tmp_path, plain_func):
    (tmp_path / "out.avi").write_bytes(b"precious")
    arguments = [clip, "--headless", "--func", plain_func, "--save", tmp_path / "out.avi"]
    done = main_py(*arguments)
    assert done.returncode == 2 and "out.avi: exists. --overwrite replaces it" in done.stderr
    assert (tmp_path / "out.avi").read_bytes() == b"precious"
    assert main_py(*arguments, "--overwrite").returncode == 0
    assert [number_in(frame) for frame in frames_of(tmp_path / "out.avi")] == list(range(45))


def test_a_name_may_hold_the_time_and_is_then_always_a_new_one(tmp_path):
    pattern = str(tmp_path / "out_%Y-%m-%d_%H%M.mp4")
    first = video.place_of(pattern, "gate", 1, 1, True)
    assert time.strftime("%Y-%m-%d") in first and "%" not in first
    open(first, "w").close()
    second = video.place_of(pattern, "gate", 1, 1, True)
    assert not os.path.exists(second) and second.endswith(".mp4")


@pytest.mark.parametrize("named, expected", [(True, "out_gate.mp4"), (False, "out_2.mp4")])
def test_the_files_of_several_streams_have_their_names_or_numbers(named, expected):
    assert video.place_of("out.mp4", "gate", 2, 3, named) == expected


@pytest.fixture
def shots(tmp_path):
    """A folder of three pictures whose brightness is 50, 100 and 150."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in (1, 2, 3):
        cv2.imwrite(str(folder / f"img_{number:03}.png"), np.full((40, 60, 3), 50 * number, np.uint8))
    return folder


@pytest.mark.parametrize("name", ["out.jpg", "out.png"])
def test_a_picture_is_saved_as_a_picture(main_py, shots, tmp_path, plain_func, name):
    done = main_py(shots / "img_002.png", "--headless", "--func", plain_func, "--save", tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / name)).mean() == pytest.approx(100, abs=2)


@pytest.mark.parametrize("pattern", ["", "img_%03d.png", "*.png"])
def test_pictures_are_saved_into_a_folder_under_their_names(main_py, shots, tmp_path, plain_func, pattern):
    done = main_py(shots / pattern, "--headless", "--func", plain_func, "--save", tmp_path / "found")
    assert done.returncode == 0, done.stderr
    means = {file.name: cv2.imread(str(file)).mean() for file in (tmp_path / "found").iterdir()}
    assert means == {"img_001.png": 50, "img_002.png": 100, "img_003.png": 150}


@pytest.mark.parametrize("save, said", [
    ("shots", "is the folder that is read"),
    ("out.jpg", "is one picture, and shots has 3"),
    ("there", "has img_001.png already. --overwrite replaces it"),
    ("out.gif", "the name must end in .mp4, .avi or .mkv or, for pictures, .jpg, .png, or be a folder"),
])
def test_what_would_be_lost_or_cannot_be_is_refused(main_py, shots, tmp_path, plain_func, save, said):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/img_001.png").write_text("precious")
    done = main_py(shots, "--headless", "--func", plain_func, "--save", tmp_path / save)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert (tmp_path / "there/img_001.png").read_text() == "precious"
    assert cv2.imread(str(shots / "img_001.png")).mean() == 50


def test_what_is_no_picture_is_named(tmp_path):
    saver = video.Saver(str(tmp_path / "out.mp4"), stream_of())
    with pytest.raises(InputError, match=r"myFunc returned a tuple"):
        saver.write(SimpleNamespace(error=None, picture=(1, 2), time=0, received=0))
