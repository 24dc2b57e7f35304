"""models/calibration.py: which pictures calibrate an int8 model, and which compare it."""

import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, full_disk, number_in
from fakes import wait_until
from http_cameras import http_camera, jpeg

from vision.errors import InputError

sys.path.insert(0, str(ROOT / "models"))
from calibration import find_pictures, frames, hold_out, images, spread  # noqa: E402


@pytest.fixture
def photos(tmp_path, demo_frames):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        cv2.imwrite(str(folder / f"{number}.png"), demo_frames[number][::8, ::8])
    return folder


class Camera:
    """A live source of grey pictures at 10 FPS; each picture's value is its number."""

    live, fps, total = True, 10.0, 0

    def __init__(self):
        self.number, self.time = -1, 0.0

    def grab(self):
        self.number += 1
        self.time = 1e9 + self.number / self.fps
        return True

    def retrieve(self):
        return np.full((8, 8), self.number, np.uint8)  # a grey camera


def test_items_are_spread_evenly():
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread("abc", 50) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "count, compared", [(1, []), (2, [1]), (3, [2]), (4, [2]), (10, [2, 7]), (50, range(2, 50, 5))]
)
def test_every_fifth_picture_is_not_used_for_calibration(count, compared):
    paths = [f"{number}.png" for number in range(count)]
    calibrate, compare = hold_out(paths)
    assert compare == [paths[number] for number in compared]
    assert sorted(calibrate + compare) == sorted(paths) and calibrate


def test_pictures_are_used_where_they_are(photos, tmp_path):
    found = find_pictures(str(photos), tmp_path / "m_frames", 3, 2)
    assert found == [str(photos / name) for name in ("0.png", "2.png", "4.png")]
    assert not (tmp_path / "m_frames").exists()


def test_the_frames_of_a_video_are_spread_over_it_and_kept(clip, tmp_path, capsys):
    folder = tmp_path / "m_frames"
    found = find_pictures(str(clip), folder, 5, 2)
    assert [number_in(cv2.imread(path)) for path in found] == [0, 9, 18, 27, 36]
    assert f"5 frames are in {folder}. --calibration {folder} uses" in capsys.readouterr().out
    assert find_pictures(str(folder), folder, 5, 2) == found  # the run can be repeated
    again = find_pictures(str(clip), folder, 50, 2)  # no frame is overwritten
    assert len(again) == 45 and again[0] == f"{folder}-2/0000.jpg"


def test_the_frames_of_a_camera_are_spread_over_time():
    taken = list(frames(Camera(), 4, 2))
    assert [int(picture[0, 0, 0]) for picture in taken] == [0, 20, 40, 60]
    assert all(picture.shape == (8, 8, 3) for picture in taken)


@pytest.mark.parametrize(
    "source, said",
    [
        ("97", "97: there is no such camera; main.py --doctor lists the cameras."),
        ("none/at/all", "none/at/all: no such file."),
        ("http://127.0.0.1:1/live", "http://127.0.0.1:1/live: "),
    ],
)
def test_a_source_that_is_not_there_is_reported(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as caught:
        find_pictures(source, tmp_path / "m_frames", 5, 2)
    assert str(caught.value).startswith(f"--calibration {said}")
    assert not (tmp_path / "m_frames").exists()


def test_an_unreadable_picture_is_named_and_skipped(photos, capsys):
    (photos / "3.png").write_bytes(b"no picture")
    paths = [str(photos / f"{number}.png") for number in range(7)]
    assert len(list(images(paths))) == 6
    assert "3.png" in capsys.readouterr().err


def test_ctrl_c_keeps_the_frames_that_were_taken(tmp_path):
    """Of a camera over HTTP that sends 20 pictures and then nothing more."""

    def stream(request):
        request.send(b"", "multipart/x-mixed-replace; boundary=b")
        for number in range(20):
            data = jpeg(number)
            head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            request.wfile.write(head.encode() + data + b"\r\n")
        wait_until(lambda: ended, "the end of the test")

    ended, folder = [], tmp_path / "m_frames"
    script = (
        "import sys; sys.path[:0] = ['.', 'models']\n"
        "from pathlib import Path; from calibration import find_pictures\n"
        "find_pictures(sys.argv[1], Path(sys.argv[2]), 50, 0.0001)\n"
    )
    with http_camera(stream) as url:
        process = subprocess.Popen(
            [sys.executable, "-c", script, url, folder],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: len(list(folder.glob("*.jpg"))) >= 3, "three frames")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        ended.append(True)
    kept = len(list(folder.glob("*.jpg")))
    assert "KeyboardInterrupt" in err and f"{kept} frames are in {folder}" in out


def test_a_full_disk_leaves_no_incomplete_frame(clip, tmp_path):
    folder = tmp_path / "m_frames"
    (tmp_path / "sizes").write_bytes(bytes(2000))  # smaller than a frame's .jpg
    with full_disk(tmp_path / "sizes"), pytest.raises(InputError) as caught:
        find_pictures(str(clip), folder, 5, 2)
    assert str(caught.value).startswith(f"{folder}/0000.jpg: cannot be written (")
    assert not folder.exists()
