"""The demo models on the demo video, compared with its ground truth, and on unseen scenes. Each
model runs once on each picture, and the tests compare what it found."""

import functools
import importlib.util
import os
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT

from runtimes import cpu, teflon

sys.path.insert(0, str(ROOT / "models/demo"))
from compare_tflite import DETECT, compare, detections  # noqa: E402
from evaluate import iou, mean_average_precision, onnx_predictor, unseen_scenes  # noqa: E402
from scene import FONT, draw_scene  # noqa: E402

STEP = 25  # the models run on every 25th frame
every_model = pytest.mark.parametrize("name", DETECT)
needs_tflite = pytest.mark.skipif(
    not importlib.util.find_spec("ai_edge_litert"), reason="ai-edge-litert is not installed"
)
needs_font = pytest.mark.skipif(
    not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed"
)


@functools.lru_cache(maxsize=None)
def demo_video():
    """Every 25th frame of the demo video, a list, and the number of all frames."""
    video, frames, count = cv2.VideoCapture(str(ROOT / "models/demo.mp4")), [], 0
    while video.grab():
        if count % STEP == 0:
            frames.append(video.retrieve()[1])
        count += 1
    return frames, count


@functools.lru_cache(maxsize=None)
def found_in_demo(name, runtime):
    """Detections in each frame of demo_video()."""
    return detections(name, runtime, demo_video()[0])


@functools.lru_cache(maxsize=None)
def scenes():
    return list(unseen_scenes(40))


@functools.lru_cache(maxsize=None)
def accuracy(name, end):
    """mAP50 on scenes(), and the number of their classes. end: of the model's file."""
    predict = onnx_predictor(ROOT / f"models/{name}_emoji{end}")
    map50, _, classes = mean_average_precision(predict, scenes())
    return map50, len(classes)


# ---- the demo video ----


@pytest.mark.slow
def test_the_demo_video_matches_its_ground_truth(demo_truth):
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    assert (demo_truth["width"], demo_truth["height"], demo_truth["fps"]) == (1280, 720, 60)
    assert (
        video.get(cv2.CAP_PROP_FRAME_WIDTH),
        video.get(cv2.CAP_PROP_FRAME_HEIGHT),
        video.get(cv2.CAP_PROP_FPS),
    ) == (
        1280,
        720,
        60,
    )
    assert len(demo_truth["frames"]) == demo_video()[1] == 600


@pytest.mark.slow
@every_model
def test_the_demo_models_find_95_percent_of_the_demo_with_at_most_2_percent_false(demo_truth, name):
    wanted = found = boxes = false = 0
    for detected, truth in zip(found_in_demo(name, cpu), demo_truth["frames"][::STEP]):
        truth = np.array(truth)
        overlap = iou(detected.boxes, truth[:, 1:5]) >= 0.5
        same = overlap & (detected.classes[:, None] == truth[None, :, 0])
        large = (truth[:, 3:5] - truth[:, 1:3] >= 24).all(1) & (truth[:, 5] >= 0.5)
        wanted += large.sum()
        found += same.any(0)[large].sum()
        boxes += len(detected)
        false += (~same.any(1)).sum()
    print(
        f"{wanted} objects, {found / wanted:.2%} found; "
        f"{boxes} detections, {false / boxes:.2%} false"
    )
    assert wanted > 600
    assert found / wanted >= 0.95
    assert false / boxes <= 0.02


@pytest.mark.slow
@needs_tflite
@every_model
def test_98_percent_of_the_demos_boxes_equal_those_of_the_onnx(name):
    onnx_boxes, found, tflite_boxes, known = compare(
        found_in_demo(name, cpu), found_in_demo(name, teflon)
    )
    print(f"{onnx_boxes} boxes, {found:.2%} found; {tflite_boxes} boxes, {known:.2%} known")
    assert onnx_boxes > 500 and found >= 0.98 and known >= 0.98


# ---- unseen scenes ----


@needs_font
def test_a_seed_always_gives_the_same_scene():
    first, second, other = draw_scene((2, 7)), draw_scene((2, 7)), draw_scene((2, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert not np.array_equal(first[0], other[0])


@needs_font
def test_the_boxes_of_a_scene_fit_its_objects():
    for number in range(20):
        image, boxes, classes = draw_scene((3, number), 320, 240)
        assert image.shape == (240, 320, 3) and len(boxes) == len(classes)
        assert (
            (boxes[:, :2] >= 0).all()
            and (boxes[:, 2:] <= (320, 240)).all()
            and (boxes[:, 2:] > boxes[:, :2]).all()
        )


@pytest.mark.slow
@needs_font
@every_model
def test_the_demo_models_keep_their_accuracy_on_unseen_scenes(name):
    map50, classes = accuracy(name, ".onnx")
    print(f"mAP50 {map50:.3f}, {classes} classes")
    assert classes == 67  # of 69
    assert map50 >= 0.90


@pytest.mark.slow
@needs_tflite
@needs_font
@every_model
def test_the_accuracy_of_the_tflite_is_within_2_points_of_the_onnx(name):
    tflite, onnx = (accuracy(name, end)[0] for end in (".tflite", ".onnx"))
    print(f"mAP50 {tflite:.3f}, ONNX {onnx:.3f}")
    assert tflite > onnx - 0.02
