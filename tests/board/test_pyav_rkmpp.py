"""The real pyav-rkmpp in the board's userland. There is no hardware decoder, so everything but
decoding is tested."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from board_parts import BOARD, ROOT, needs_tools
from conftest import frames_of

sys.path.insert(0, str(ROOT / "tests"))

from test_live import CAMERAS, Camera, needs_gst  # noqa: E402

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

PACKAGE = BOARD.parent / "box" / "pyav-rkmpp"  # its unpacked wheel, kept in the box
COMPARE = """
import sys
import cv2
import sources
theirs = sources.open_source(sys.argv[1], "opencv")
for reader in (None, "av"):
    ours = sources.open_source(sys.argv[1], reader)
    print(type(ours).__name__, ours.note)
assert (ours.total, ours.size, ours.fps) == (theirs.total, theirs.size, theirs.fps)
differences = []
for number in range(16):
    if number == 10:
        ours.rewind()
        theirs.rewind()
    differences.append(int(cv2.absdiff(ours.read(), theirs.read()).max()))
    assert abs(ours.time - theirs.time) < 1e-3
print(max(differences), ours.time)
"""
READ = """
import sys
import sources
camera = sources.open_source(sys.argv[1], "av")
print(type(camera).__name__, camera.live, *[camera.read().shape for _ in range(3)])
"""


def write(path, codec, count):
    """Write a video of `count` frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for number in range(count):
            picture = np.full((180, 320, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def package(box):
    if not PACKAGE.exists():
        staging = PACKAGE.with_suffix(".partial")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--only-binary=:all:",
                "--target",
                staging,
                "--platform",
                "manylinux_2_28_aarch64",
                "--implementation",
                "cp",
                "--python-version",
                "3.11",
                "--upgrade",
                "pyav-rkmpp",
            ],
            check=True,
        )
        staging.rename(PACKAGE)
    return f"{PACKAGE}:{ROOT}"


def test_the_real_pyav_rkmpp_gives_the_same_frames_as_opencv_and_reports_the_missing_decoder(
    board, package
):
    run = board.python("-c", COMPARE, "models/demo.mp4", PYTHONPATH=package)
    assert run.code == 0, run.err
    why = (
        "decodes it on the CPU because the board's decoder h264_rkmpp cannot be opened "
        "(there is no /dev/mpp_service)"
    )
    assert run.out.splitlines() == [
        f"Video OpenCV {why}",
        f"AVVideo PyAV {why}",
        "0 0.08333333333333333",
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="PyAV makes the clip: pip install av"
)
def test_main_uses_opencv_and_saves_without_the_boards_encoder(board, package, tmp_path):
    for name, codec in (("a.mp4", "libx264"), ("b.mp4", "mpeg4")):
        write(tmp_path / name, codec, 5)
    (tmp_path / "plain.py").write_text("def myFunc(rknn_lite, IMG):\n    return IMG\n")
    run = board.main_py(
        tmp_path / "a.mp4",
        tmp_path / "b.mp4",
        "--save",
        tmp_path / "out.mp4",
        "--func",
        tmp_path / "plain.py",
        PYTHONPATH=package,
    )
    assert run.code == 0, run.err
    assert sorted(line for line in run.err.splitlines() if "decodes it" in line) == [
        "a.mp4: OpenCV decodes it on the CPU because the board's decoder h264_rkmpp cannot be "
        "opened (there is no /dev/mpp_service).",
        "b.mp4: OpenCV decodes it on the CPU because the board's decoder does not support mpeg4 "
        "(only h264, hevc, av1).",
    ]
    assert [len(frames_of(tmp_path / f"out_{number}.mp4")) for number in (1, 2)] == [5, 5]


@needs_gst
def test_the_real_pyav_rkmpp_reads_a_camera(board, package):
    camera = Camera(CAMERAS["rtsp"], "rtsp", ROOT / "models/demo.mp4")
    try:
        run = board.python("-c", READ, camera.url, PYTHONPATH=package)
    finally:
        camera.kill()
    assert run.out.split(" ", 2) == [
        "AVVideo",
        "True",
        "(720, 1280, 3) (720, 1280, 3) (720, 1280, 3)\n",
    ], run.err
