"""The demo models on the demo video, compared with its ground truth."""

import itertools
import os
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT

import func
from rknnpool import rknnPoolExecutor
from sources import frames_of

sys.path.insert(0, str(ROOT / "models/demo"))
from evaluate import iou, mean_average_precision, onnx_predictor, yolov8  # noqa: E402
from scene import FONT, draw_scene  # noqa: E402

MODELS = {
    "yolov5n": ("models/yolov5n_emoji", func.detect),
    "yolov8n": ("models/yolov8n_emoji", yolov8.detect),
}
every_model = pytest.mark.parametrize("model, detect", MODELS.values(), ids=MODELS)


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
    assert len(demo_truth["frames"]) == sum(1 for _ in frames_of(video)) == 600


@pytest.mark.slow
@every_model
def test_the_demo_models_find_95_percent_of_the_demo_with_at_most_2_percent_false(
    demo_truth, model, detect
):
    """On every tenth frame."""
    frames = itertools.islice(
        frames_of(cv2.VideoCapture(str(ROOT / "models/demo.mp4"))), 0, None, 10
    )
    wanted = found = detections = false = 0
    with rknnPoolExecutor(str(ROOT / model) + ".rknn", 2, detect) as pool:
        for (boxes, classes, _), truth in zip(pool.map(frames), demo_truth["frames"][::10]):
            truth = np.array(truth)
            overlap = iou(boxes, truth[:, 1:5]) >= 0.5
            same = overlap & (classes[:, None] == truth[None, :, 0])
            large = (truth[:, 3:5] - truth[:, 1:3] >= 24).all(1) & (truth[:, 5] >= 0.5)
            wanted += large.sum()
            found += same.any(0)[large].sum()
            detections += len(boxes)
            false += (~same.any(1)).sum()
    print(
        f"{wanted} boxes, {found / wanted:.2%} found; "
        f"{detections} detections, {false / detections:.2%} false"
    )
    assert wanted > 1500
    assert found / wanted >= 0.95
    assert false / detections <= 0.02


needs_font = pytest.mark.skipif(
    not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed"
)


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
def test_the_demo_models_keep_their_accuracy_on_unseen_scenes(model, detect):
    map50, _, classes = mean_average_precision(onnx_predictor(f"{ROOT / model}.onnx"), scenes=100)
    assert len(classes) == 69
    assert map50 >= 0.90
