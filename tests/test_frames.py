"""Frames stay as their source gave them: in YUV, or a JPEG. A model's input is made from that, with
the colours of the BGR picture."""

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT

import func
from results.result import FrameTask, Result
from sources.yuv import frame_of_array, guessed_format
from streams import Stream
from vision.frame import YUVFrame
from vision.jpeg import JPEGFrame, frame_of_file
from vision.letterbox import letterbox

needs_av = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="this reader is PyAV: pip install av"
)


def difference(frame, size=640):
    """The mean difference of the inputs made from a frame and from its BGR picture; the one from
    the frame is made first."""
    direct, placed = letterbox(frame, size)
    direct = direct.astype(int)
    from_bgr, same = letterbox(frame.bgr(), size)
    assert frame.shape == frame.bgr().shape and placed == same
    return np.abs(direct - from_bgr).mean()


# ---- YUV ----


@needs_av
@pytest.mark.parametrize("form", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12"])
@pytest.mark.parametrize("standard", [1, 2, 5])  # BT.709, unknown, BT.601
@pytest.mark.parametrize("full", [False, True])
def test_the_models_input_from_yuv_has_the_colours_of_the_picture(
    demo_frames, form, standard, full
):
    import av

    from sources.pyav import as_picture
    from sources.yuv import frame_of_planes

    if (standard, full) not in ((2, False), (5, False)) and int(av.__version__.split(".")[0]) < 17:
        pytest.skip("PyAV before 17 converts to BGR as if all frames were BT.601, limited range")
    picture = cv2.resize(demo_frames[0], (1000, 562))  # rows are padded
    picture[:, :500] = picture[:, :500] // (4, 2, 1)  # strong colours
    decoded = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format=form)
    decoded.colorspace, decoded.color_range = standard, 2 if full else 1
    frame = frame_of_planes(decoded, lambda: as_picture(decoded, 0))
    assert isinstance(frame, YUVFrame) and difference(frame) < 1


@needs_av
def test_a_frame_of_an_unknown_format_is_converted_to_bgr(demo_frames):
    import av

    from sources.pyav import as_picture
    from sources.yuv import frame_of_planes

    decoded = av.VideoFrame.from_ndarray(demo_frames[0], format="bgr24").reformat(format="p010le")
    frame = frame_of_planes(decoded, lambda: as_picture(decoded, 0))
    assert difference(frame) == 0
    assert np.abs(frame.bgr().astype(int) - demo_frames[0]).mean() < 4


def as_array(picture, form):
    """A BGR picture as OpenCV gives it from a camera or a pipeline of that format."""
    planar, (h, w) = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), picture.shape[:2]
    y, (u, v) = planar[:h], planar[h:].reshape(2, h // 2, w // 2)
    if form == "YUYV":
        array = np.stack([y, np.repeat(np.stack([u, v], 2).reshape(h // 2, w), 2, 0)], 2)
        return np.ascontiguousarray(array)
    planes = {"I420": [u, v], "YV12": [v, u], "NV12": [np.stack([u, v], 2)]}
    planes["NV21"] = [np.stack([v, u], 2)]
    return np.concatenate([y.reshape(-1), *(plane.reshape(-1) for plane in planes[form])]).reshape(
        h * 3 // 2, w
    )


@pytest.mark.parametrize("form", ["I420", "YV12", "NV12", "NV21", "YUYV"])
def test_opencvs_arrays_are_read_in_the_format_that_it_names(demo_frames, form):
    frame = frame_of_array(as_array(demo_frames[0], form), form)
    assert np.abs(frame.bgr().astype(int) - demo_frames[0]).mean() < 4
    assert difference(frame) < 1


@pytest.mark.parametrize("form", ["NV12", "I420"])
@pytest.mark.parametrize("size", [(1920, 1080), (64, 48)])
def test_an_unnamed_format_is_guessed_from_the_frame(demo_frames, form, size):
    for picture in demo_frames[::15]:
        assert guessed_format(as_array(cv2.resize(picture, size), form)) == form


def test_a_small_frame_is_scaled_up_like_its_picture(demo_frames):
    small = cv2.resize(demo_frames[0], (320, 240))
    assert difference(frame_of_array(as_array(small, "NV12"), "NV12")) == 0


@pytest.mark.parametrize("size", [(1920, 1080), (1280, 720), (3200, 1800), (640, 360), (1920, 901)])
def test_a_picture_is_scaled_linearly(size):
    """Where that takes one pixel of several, OpenCV is asked for it in a faster way."""
    picture = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    square, (left, top, x_scale, y_scale) = letterbox(picture, 640)
    w, h = round(size[0] * x_scale), round(size[1] * y_scale)
    linear = cv2.resize(picture, (w, h), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(square[top : top + h, left : left + w], linear[..., ::-1])


# ---- JPEG ----


def test_a_jpeg_is_decoded_no_larger_than_needed(demo_frames, monkeypatch):
    large = cv2.resize(demo_frames[0], (2560, 1440))
    frame = frame_of_file(cv2.imencode(".jpg", large)[1].tobytes())
    flags, real = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flag: flags.append(flag) or real(data, flag))
    assert frame.shape == (1440, 2560, 3) and difference(frame) < 3 and difference(frame, 320) == 0
    assert flags == [cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_COLOR]


def test_a_jpeg_that_its_exif_data_turns_is_upright():
    jpeg = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert frame_of_file(turned).shape == (60, 40, 3)


def test_a_jpeg_that_is_cut_off_anywhere_is_none_or_a_frame(demo_frames):
    jpeg = cv2.imencode(".jpg", demo_frames[0])[1].tobytes()
    start = jpeg.index(b"\xff\xda")  # of the compressed data
    for length in range(start):
        frame = frame_of_file(jpeg[:length])
        assert frame is None or frame.shape == (720, 1280, 3)


def test_a_jpeg_that_cannot_be_decoded_fails_alone(demo_frames):
    jpeg = cv2.imencode(".jpg", demo_frames[0])[1].tobytes()
    broken = frame_of_file(jpeg[: jpeg.index(b"\xff\xc0") + 19])  # it has its size, but no picture
    assert broken.shape == (720, 1280, 3)
    module = SimpleNamespace(FRAMES=True, detect=lambda c, IMG: letterbox(IMG, 640), draw=max)
    for draws in (False, True):
        result = Result(SimpleNamespace(draws=draws), 0, 0.0, broken, 0.0)
        assert "cannot be decoded" in FrameTask(module)(None, result).error


@needs_av
def test_motion_jpeg_in_a_file_is_decoded_when_needed(clip, runtime):
    frames = [result.as_read for result in Stream(clip, reader="av").frames()]
    # The first one shows whether the file can be decoded.
    assert len(frames) == 45 and {type(frame) for frame in frames[1:]} == {JPEGFrame}


def test_a_frame_is_freed_with_its_last_reference(demo_frames):
    gc.disable()
    try:
        frames = [
            frame_of_file(cv2.imencode(".jpg", demo_frames[0])[1].tobytes()),
            frame_of_array(as_array(demo_frames[0], "NV12"), "NV12"),
        ]
        alive = weakref.WeakSet(frames)
        assert max(map(difference, frames)) < 3
        del frames
        assert len(alive) == 0
    finally:
        gc.enable()


# ---- cameras ----


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_a_usb_cameras_frames_stay_as_it_sends_them(demo_frames, tmp_path):
    """With OpenCV's own code for cameras, and camera.c in place of the kernel."""
    library = str(tmp_path / "camera.so")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, str(ROOT / "tests/camera.c"), "-ldl"], check=True
    )
    np.save(tmp_path / "picture.npy", demo_frames[0])
    for form in ("NV12", "YUYV"):
        as_array(demo_frames[0], form).tofile(tmp_path / form)
    cv2.imencode(".jpg", demo_frames[0])[1].tofile(tmp_path / "MJPG")
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
import sources
for form in ("MJPG", "NV12", "YUYV"):
    os.environ.update(CAMERA_FORMAT=form, CAMERA_FRAME=form)
    source = sources.open_source("42")
    assert source.grab() and source.grab() and source.live and not source.note
    difference = np.abs(source.retrieve().astype(int) - np.load("picture.npy")).mean()
    print(form, type(source.frame()).__name__, source.size, difference < 2)
    source.release()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "LD_PRELOAD": library},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "MJPG JPEGFrame (1280, 720) True",
        "NV12 YUVFrame (1280, 720) True",
        "YUYV Frame (1280, 720) True",
    ], done.stderr


# ---- who gets what ----


@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("draws", [False, True])
def test_only_a_func_file_that_takes_frames_gets_them(demo_frames, takes, draws):
    """The pool converts a frame only if every picture will be needed, or the func file needs it."""
    seen = []
    module = SimpleNamespace(
        FRAMES=takes, detect=lambda context, IMG: seen.append(type(IMG)) or [], draw=max
    )
    frame = frame_of_array(as_array(demo_frames[0], "NV12"), "NV12")
    FrameTask(module)(None, Result(SimpleNamespace(draws=draws), 0, 0.0, frame, 0.0))
    assert seen == [YUVFrame if takes else np.ndarray]
    assert (frame.made is None) == (takes and not draws)


def test_func_py_detects_the_same_in_a_frame_and_in_its_picture(demo_frames):
    from conftest import opened_demo

    context = opened_demo("yolov5n")
    large = cv2.resize(demo_frames[30], (1920, 1080))
    frame = frame_of_array(as_array(large, "NV12"), "NV12")
    direct, from_bgr = func.detect(context, frame), func.detect(context, frame.bgr())
    same = direct.classes[:, None] == from_bgr.classes
    corners = np.abs(direct.boxes[:, None] - from_bgr.boxes).max(2)  # the largest distance, pixels
    found = (same & (corners < 6)).any(1)
    assert abs(len(direct) - len(from_bgr)) <= 1 and found.sum() > 3 and found.mean() > 0.9
