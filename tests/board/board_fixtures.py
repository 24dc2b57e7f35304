"""Fixtures: the box, which is built once, and a clip whose frames contain their numbers."""

import os
import subprocess
import sys

import cv2
import pytest
from board_parts import BOARD, FRAMES, MODELS, ROOT, Board, detections_on_the_pc
from numbered import add_number


@pytest.fixture(scope="session")
def box(tmp_path_factory):
    subprocess.run([str(BOARD)], check=True, env={**os.environ, "BOARD_PYTHON": sys.executable})
    return Board(tmp_path_factory.mktemp("board"))


@pytest.fixture
def board(request, box):
    """The box with a setup of with_setups(); default: the newest wheel and the emulated library."""
    return box.with_setup(request.param) if hasattr(request, "param") else box


@pytest.fixture(scope="session")
def numbered(tmp_path_factory):
    """The demo video's first frames, at the size of the model's input, each with its number."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video, writer = cv2.VideoCapture(str(ROOT / "models" / "demo.mp4")), None
    for number in range(FRAMES):
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
def pc_detections(numbered, tmp_path_factory):
    """pc_detections(name): the PC's detections in the clip with that model of MODELS."""
    found = {}

    def of(name):
        if name not in found:
            path, module = MODELS[name]
            found[name] = detections_on_the_pc(
                tmp_path_factory.mktemp("pc") / "record.jsonl",
                numbered,
                "--model",
                path,
                RECORD_MODULE=module,
            )
        return found[name]

    return of
