"""--save: videos are complete, have the original duration, and can be played even after a crash."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, frames_of, full_disk, number_in

from results import save_paths, video
from results.delivery import Delivery
from vision.errors import InputError

try:
    import av
except ImportError:
    av = None
needs_av = pytest.mark.skipif(av is None, reason="H.264 needs PyAV: pip install av")


def stream_of(rate=30.0, live=False, **more):
    printed = []
    return SimpleNamespace(
        rate=rate,
        live=live,
        max_fps=None,
        name="clip",
        source=None,
        print_once=printed.append,
        printed=printed,
        **more,
    )


def saved(path, times, size=(64, 48), **more):
    """Save a picture at each of these times. Returns the stream."""
    stream = stream_of(**more)
    saver = video.VideoSaver(str(path), stream)
    for number, moment in enumerate(times):
        picture = np.full((size[1], size[0], 3), 7 * number % 255, np.uint8)
        saver.write(SimpleNamespace(error=None, picture=picture, time=moment, received=moment))
    saver.close()
    return stream


def duration(path):
    """Return the duration of a video in seconds, according to its header."""
    capture = cv2.VideoCapture(str(path))
    return capture.get(cv2.CAP_PROP_FRAME_COUNT) / capture.get(cv2.CAP_PROP_FPS)


@pytest.fixture(params=["mp4", "mkv", "avi", "mp4 without av", "mkv without av"])
def path(request, tmp_path, monkeypatch):
    """Return a path for each way of saving."""
    kind, _, without = request.param.partition(" ")
    if without:
        monkeypatch.setattr(video, "open_h264", lambda *_: None)
    elif kind != "avi" and av is None:
        pytest.skip("H.264 needs PyAV: pip install av")
    return tmp_path / f"out.{kind}"


@pytest.mark.parametrize(
    "live, rate, times",
    [
        (True, 30, [100 + number / 10 for number in range(50)]),  # processed at 10 of 30 FPS
        # no frames for 2 s
        (
            True,
            30,
            [number / 30 for number in range(30)] + [3 + number / 30 for number in range(30)],
        ),
        (True, 90000, [number / 25 for number in range(50)]),  # RTSP's clock as its rate
        (True, 15, [number / 30 for number in range(90)]),  # sends twice the rate that it reports
        (False, 0.5, [2.0 * number for number in range(10)]),
        (False, 300, [number / 300 for number in range(300)]),
        # some frames failed
        (False, 29.97, [number / 29.97 for number in range(60) if number % 7]),
        (False, 25, [0.0] * 50),  # a source without a clock
        # rates that MPEG-4 cannot express
        (False, 66.667, [number / 66.667 for number in range(200)]),
        (False, 211.222, [number / 211.222 for number in range(600)]),
        # the rate of a file with irregular times, according to its reader
        (False, 90000, [number / 50 for number in range(100)]),
        # a browser's recording, whose rate is the unit of its timestamps
        (False, 1000, [number // 3 / 10 + number % 3 * 0.033 for number in range(60)]),
    ],
    ids=["slow", "away", "90000", "fast", "0.5", "300", "failed", "no clock"]
    + ["66.667", "211.222", "irregular", "1000"],
)
def test_a_saved_video_has_the_original_duration(path, live, rate, times):
    saved(path, times, live=live, rate=rate)
    shown = (
        len(times) / rate
        if times[-1] == 0
        else times[-1] - times[0] + 1 / (rate if rate < 1000 else 30)
    )
    assert duration(path) == pytest.approx(shown, abs=max(0.1, 1.1 / rate))


@pytest.mark.parametrize("rate", [66.667, 211.222])
def test_a_long_video_keeps_pace_with_its_source(monkeypatch, tmp_path, rate):
    """Without PyAV, whose videos have a time for each picture."""
    monkeypatch.setattr(video, "open_h264", lambda *_: None)
    path = tmp_path / "out.mp4"
    saved(path, [number / rate for number in range(20000)], rate=rate, size=(16, 16))
    assert duration(path) == pytest.approx(20000 / rate, abs=1 / rate)


@pytest.mark.parametrize("shift", [0, 1 / 30 - 1e-9], ids=["steady", "two at once"])
def test_a_saved_video_contains_every_frame_of_a_file(path, shift):
    saved(path, [number / 30 - shift * (number % 2) for number in range(60)])
    assert len(frames_of(path)) == 60


def test_the_folder_of_a_video_is_created(tmp_path):
    saved(tmp_path / "new/folder/out.mp4", [0])
    assert len(frames_of(tmp_path / "new/folder/out.mp4")) == 1


def test_odd_sizes_are_padded_and_reported(path):
    stream = stream_of()
    picture = np.zeros((49, 65, 3), np.uint8)
    picture[-1], picture[:, -1] = 255, 255  # what cropping would remove
    saver = video.VideoSaver(str(path), stream)
    saver.write(SimpleNamespace(error=None, picture=picture, time=0, received=0))
    saver.close()
    frame = frames_of(path)[0]
    assert frame.shape == (50, 66, 3) and frame[48, 10].min() > 128 and frame[10, 64].min() > 128
    assert len(stream.printed) == 1 and "65x49 are saved as 66x50" in stream.printed[0]


@needs_av
@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
@pytest.mark.slow
def test_a_video_can_be_played_after_kill_9(tmp_path, plain_func, name):
    command = [
        sys.executable,
        "-u",
        "main.py",
        "--headless",
        "--func",
        plain_func,
        "--save",
        tmp_path / name,
    ]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(5):
        assert "last 30 frames" in running.stdout.readline()
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert len(frames_of(tmp_path / name)) >= 140


@needs_av
def test_videos_are_h264_if_pyav_is_installed(tmp_path):
    saved(tmp_path / "out.mp4", [0, 1 / 30])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_an_existing_file_is_replaced_only_with_overwrite(main_py, clip, tmp_path, plain_func):
    (tmp_path / "out.avi").write_bytes(b"precious")
    arguments = [clip, "--headless", "--func", plain_func, "--save", tmp_path / "out.avi"]
    done = main_py(*arguments)
    assert (
        done.returncode == 2 and "out.avi: already exists. --overwrite replaces it" in done.stderr
    )
    assert (tmp_path / "out.avi").read_bytes() == b"precious"
    assert main_py(*arguments, "--overwrite").returncode == 0
    assert [number_in(frame) for frame in frames_of(tmp_path / "out.avi")] == list(range(45))


def test_a_name_with_the_time_is_always_new(tmp_path):
    pattern = str(tmp_path / "out_%Y-%m-%d_%H%M.mp4")
    first = save_paths.save_paths(pattern, ["gate"], [True])[0]
    assert time.strftime("%Y-%m-%d") in first and "%" not in first
    open(first, "w").close()
    second = save_paths.save_paths(pattern, ["gate"], [True])[0]
    assert not os.path.exists(second) and second.endswith(".mp4")


@pytest.mark.parametrize(
    "names, named, expected",
    [
        (["gate"], [True], ["out.mp4"]),
        (["gate", "yard"], [True, True], ["out_gate.mp4", "out_yard.mp4"]),
        (["a.mp4", "b.mp4"], [False, False], ["out_1.mp4", "out_2.mp4"]),
        (["gate", "b.mp4"], [True, False], ["out_gate.mp4", "out_2.mp4"]),
        (["2", "b.mp4", "c.mp4"], [True, False, False], ["out_2.mp4", "out_3.mp4", "out_4.mp4"]),
    ],
)
def test_each_stream_has_its_own_file_with_its_name_or_number(names, named, expected):
    assert save_paths.save_paths("out.mp4", names, named) == expected


def noise(result_number, seed=1):
    """A picture whose file is large, as a Result."""
    picture = np.random.RandomState(seed).randint(0, 255, (120, 160, 3), np.uint8)
    moment = result_number / 30
    return SimpleNamespace(
        number=result_number,
        time=moment,
        received=moment,
        drawing=0.0,
        error=None,
        detections=None,
        file=None,
        picture=picture,
    )


def test_after_a_full_disk_a_video_continues_in_a_new_file(path, capsys):
    stream = Delivery("gate")
    stream.live, stream.rate, stream.source = False, 30.0, None
    saver = video.VideoSaver(str(path), stream)
    stream.add_sink(saver)

    def deliver(numbers):
        for number in numbers:
            result = noise(number)
            result.stream = stream
            stream.deliver(result)

    other = path.with_name(f"out-2{path.suffix}")
    deliver(range(20))
    with full_disk(path, 500_000):  # less than a video needs to be finished
        deliver(range(20, 30))
        assert len(frames_of(path)) == 20
    assert not other.exists()
    deliver(range(30, 45))
    stream.close()
    assert (len(frames_of(path)), len(frames_of(other))) == (20, 15)
    assert (stream.count, stream.unsaved, stream.code) == (45, 10, 2)
    assert saver.saved == f"{path}, {other}: 35 frames, 1.2 s"
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--save")]
    assert printed == [
        f"--save {path}: cannot be written (the file has reached the maximum size) from frame 20 "
        "of gate on. Writing continues when it is possible again.",
        f"--save {path}: written again from frame 30 of gate on, in {other}; "
        "10 frames are missing.",
    ]


def test_a_video_that_could_not_be_finished_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(video, "open_h264", lambda *_: None)
    saver = video.VideoSaver(str(tmp_path / "out.mp4"), stream_of())
    saver.write(noise(0))
    with full_disk(tmp_path / "out.mp4"), pytest.raises(InputError, match="cannot be played"):
        saver.close()
    saver.close()


@pytest.fixture
def days(tmp_path):
    """photos/day1/0001.png and photos/day2/0001.png, with a brightness of 50 and 150."""
    for day, grey in (("day1", 50), ("day2", 150)):
        (tmp_path / "photos" / day).mkdir(parents=True)
        cv2.imwrite(
            str(tmp_path / "photos" / day / "0001.png"), np.full((40, 60, 3), grey, np.uint8)
        )
    return tmp_path / "photos"


def saved_pictures(folder):
    """{path below the folder: brightness}"""
    return {
        path.relative_to(folder).as_posix(): cv2.imread(str(path)).mean()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_pictures_of_one_name_are_saved_in_the_folders_they_come_from(
    main_py, days, tmp_path, plain_func
):
    arguments = ["--headless", "--func", plain_func, "--save", tmp_path / "found"]
    done = main_py(days / "*/*.png", *arguments)
    assert done.returncode == 0, done.stderr
    assert saved_pictures(tmp_path / "found") == {"day1/0001.png": 50, "day2/0001.png": 150}
    done = main_py(days / "*/*.png", *arguments)
    assert done.returncode == 2 and "contains day1/0001.png already" in done.stderr


def test_pictures_do_not_overwrite_their_sources(days):
    stream = stream_of()
    stream.source = SimpleNamespace(paths=[str(path) for path in sorted(days.rglob("*.png"))])
    with pytest.raises(InputError, match="this folder contains a source, day1/0001.png"):
        video.open_saver(str(days), stream, overwrite=True)


def test_a_picture_that_opencv_cannot_write_is_saved_as_png(main_py, shots, tmp_path, plain_func):
    cv2.imwrite(str(shots / "img_000.pgm"), np.full((40, 60), 200, np.uint8))
    found = tmp_path / "found"
    done = main_py(shots, "--headless", "--func", plain_func, "--save", found)
    assert done.returncode == 0, done.stderr
    assert f"{found}/img_000.pgm: saved as img_000.pgm.png, because" in done.stderr
    assert saved_pictures(found) == {
        "img_000.pgm.png": 200,
        "img_001.png": 50,
        "img_002.png": 100,
        "img_003.png": 150,
    }


def test_after_a_full_disk_pictures_are_saved_again(tmp_path, capsys):
    stream = Delivery("shots")
    stream.live = False
    stream.source = SimpleNamespace(paths=[f"shots/{number}.png" for number in range(4)])
    stream.add_sink(video.open_saver(str(tmp_path / "found"), stream))
    (tmp_path / "small").write_bytes(bytes(1000))

    def deliver(number):
        result = noise(number)
        result.stream, result.file = stream, f"{number}.png"
        stream.deliver(result)

    deliver(0)
    with full_disk(tmp_path / "small"):
        deliver(1)
        deliver(2)
    deliver(3)
    stream.close()
    assert sorted(saved_pictures(tmp_path / "found")) == ["0.png", "3.png"]
    assert (stream.unsaved, stream.code) == (2, 2)
    printed = capsys.readouterr().err.splitlines()
    assert "from 1.png on" in printed[0] and "from 3.png on; 2 frames are missing" in printed[1]


@pytest.fixture
def shots(tmp_path):
    """A folder of three pictures whose brightness is 50, 100 and 150."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in (1, 2, 3):
        cv2.imwrite(
            str(folder / f"img_{number:03}.png"), np.full((40, 60, 3), 50 * number, np.uint8)
        )
    return folder


@pytest.mark.parametrize("name", ["out.jpg", "out.png"])
def test_a_picture_is_saved_as_picture(main_py, shots, tmp_path, plain_func, name):
    done = main_py(
        shots / "img_002.png", "--headless", "--func", plain_func, "--save", tmp_path / name
    )
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / name)).mean() == pytest.approx(100, abs=2)


@pytest.mark.parametrize("pattern", ["", "img_%03d.png", "*.png"])
def test_pictures_are_saved_in_a_folder_under_their_names(
    main_py, shots, tmp_path, plain_func, pattern
):
    done = main_py(
        shots / pattern, "--headless", "--func", plain_func, "--save", tmp_path / "found"
    )
    assert done.returncode == 0, done.stderr
    means = {file.name: cv2.imread(str(file)).mean() for file in (tmp_path / "found").iterdir()}
    assert means == {"img_001.png": 50, "img_002.png": 100, "img_003.png": 150}


@pytest.mark.parametrize(
    "save, expected",
    [
        ("shots", "this folder is a source"),
        ("out.jpg", "shots has 3 pictures"),
        ("there", "contains img_001.png already. --overwrite replaces it"),
        ("file", "is not a folder"),
        ("/dev/stdout", "only --json can write to stdout"),
        (
            "out.gif",
            "must end in .mp4, .avi or .mkv, for pictures also in .jpg, .png, or / for a folder",
        ),
    ],
)
def test_overwriting_and_invalid_names_are_refused(
    main_here, shots, tmp_path, plain_func, save, expected
):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/img_001.png").write_text("precious")
    (tmp_path / "file").touch()
    done = main_here(shots, "--headless", "--func", plain_func, "--save", tmp_path / save)
    assert done.returncode == 2 and expected in done.stderr, done.stderr
    assert (tmp_path / "there/img_001.png").read_text() == "precious"
    assert cv2.imread(str(shots / "img_001.png")).mean() == 50


def test_a_result_that_is_not_a_picture_is_refused(tmp_path):
    saver = video.VideoSaver(str(tmp_path / "out.mp4"), stream_of())
    with pytest.raises(InputError, match=r"myFunc returned a tuple"):
        saver.write(SimpleNamespace(error=None, picture=(1, 2), time=0, received=0))
