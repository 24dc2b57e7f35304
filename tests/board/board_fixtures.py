"""Fixtures: the box, which is built once, and clips whose frames contain their numbers."""

import os
import subprocess
import sys

import cv2
import pytest
from board_parts import BOARD, FRAMES, ROOT, SHORT, SOCKET, Board
from numbered import add_number


@pytest.fixture(scope="session")
def box(tmp_path_factory):
    subprocess.run([str(BOARD)], check=True, env={**os.environ, "BOARD_PYTHON": sys.executable})
    folder = tmp_path_factory.mktemp("board")
    npu = subprocess.Popen(
        [sys.executable, BOARD.with_name("npu.py"), SOCKET, ROOT / "models"],
        cwd=folder,
        stdout=subprocess.PIPE,
    )
    npu.stdout.readline()  # it is ready
    box = Board(folder)
    yield box
    box.close()
    npu.kill()


@pytest.fixture
def board(request, box):
    """The box with a setup of with_setups(); default: the newest wheel and the emulated library."""
    return box.with_setup(request.param) if hasattr(request, "param") else box


def write_clip(path, frames):
    """Write the demo video's first frames, at the size of the model's input, each with its number.
    Returns the path."""
    video, writer = cv2.VideoCapture(str(ROOT / "models" / "demo.mp4")), None
    for number in range(frames):
        frame = add_number(
            cv2.resize(video.read()[1], (640, 360), interpolation=cv2.INTER_AREA), number
        )
        writer = writer or cv2.VideoWriter(
            str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, frame.shape[1::-1]
        )
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """A clip of FRAMES frames with numbers."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES)


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """A clip of SHORT frames with numbers."""
    return write_clip(tmp_path_factory.mktemp("short") / "short.mp4", SHORT)
