"""vision/drawing.py: boxes, labels, masks, key points and rotated boxes on a frame."""

import itertools
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_func import Context, random_heads

import func
from vision import labels
from vision.coco import COCO_CLASSES
from vision.detections import Detections
from vision.drawing import captions, draw
from vision.labels import colour, label, label_positions


def one_object(box, number=0, **parts):
    """Detections with one object of a COCO class; parts: its masks, keypoints or corners."""
    boxes, classes, scores = np.float32([box]), np.array([number]), np.float32([0.9])
    return Detections(boxes, classes, scores, COCO_CLASSES, **parts)


def test_my_func_returns_the_full_size_frame_with_boxes_drawn():
    IMG = np.zeros((720, 1280, 3), np.uint8)
    result = func.myFunc(Context(random_heads(5, 0.01)), IMG)
    assert result.shape == (720, 1280, 3)
    assert result.any()


def test_each_class_has_a_colour_of_its_own():
    assert len({colour(number) for number in range(len(COCO_CLASSES))}) == len(COCO_CLASSES)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 60, 60),
        (1240, 0, 1280, 50),
        (1200, 690, 1280, 720),
        (0, 660, 50, 720),
        (600, 712, 700, 720),
    ],
)
def test_labels_stay_inside_the_frame(box):
    """A label has the same number of text pixels at the edge as in the middle of the frame."""

    def text_pixels(box):
        IMG = np.full((720, 1280, 3), 255, np.uint8)
        draw(IMG, Detections([box], [10], [0.5], COCO_CLASSES))
        return np.count_nonzero((IMG < 60).all(2))

    assert text_pixels(box) == text_pixels((600, 300, 700, 400)) > 50


def test_line_width_and_text_fit_the_frame():
    def share_painted(width, height):
        IMG = np.zeros((height, width, 3), np.uint8)
        box = [width / 4, height / 4, width * 3 / 4, height * 3 / 4]
        draw(IMG, Detections([box], [0], [0.5], COCO_CLASSES))
        return np.count_nonzero(IMG.any(2)) / (width * height)

    assert share_painted(3840, 2160) == pytest.approx(share_painted(1280, 720), rel=0.3)


def overlap(first, second):
    return (
        first[0] < second[0] + second[2]
        and second[0] < first[0] + first[2]
        and first[1] < second[1] + second[3]
        and second[1] < first[1] + first[3]
    )


def labels_of(boxes, sizes, h, w):
    """(x, y, w, h) of the labels, as label_places() returns them."""
    pictures = [np.zeros((high, wide, 3), np.uint8) for wide, high in sizes]
    return [(x, y, *size) for (x, y), size in zip(label_positions(boxes, pictures, h, w), sizes)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(*[st.integers(-50, 700)] * 4), max_size=40), st.integers(0, 100))
def test_labels_do_not_overlap_if_there_is_room(corners, seed):
    """40 labels of at most 90 x 24 pixels fit into 640 x 360 for any boxes."""
    rng = np.random.default_rng(seed)
    boxes = [(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in corners]
    labels = labels_of(
        boxes, [(int(rng.integers(30, 90)), int(rng.integers(12, 24))) for _ in boxes], 360, 640
    )
    assert all(
        0 <= x and 0 <= y and x + wide <= 640 and y + high <= 360 for x, y, wide, high in labels
    )
    assert not any(overlap(*pair) for pair in itertools.combinations(labels, 2))


def test_labels_of_objects_at_one_point_are_spread_out():
    # 4 x 4 labels would fit side by side
    labels = labels_of([(10, 10, 50, 50)] * 9, [(80, 20)] * 9, 80, 320)
    assert not any(overlap(*pair) for pair in itertools.combinations(labels, 2))
    assert len(labels_of([(10, 10, 50, 50)] * 40, [(80, 20)] * 40, 80, 320)) == 40


def test_the_label_with_the_highest_score_stays_at_its_box():
    best, other = labels_of(
        [(100, 100, 200, 200), (102, 98, 210, 200)], [(80, 20), (80, 20)], 360, 640
    )
    assert best[:2] == (100, 81) and other[:2] == (102, 79 - 20)


def test_labels_are_drawn_over_all_boxes():
    """Also over boxes with a higher score, which are drawn later."""
    alone = draw(
        np.zeros((360, 640, 3), np.uint8),
        Detections(
            np.float32([[100, 100, 200, 200]]), np.array([3]), np.float32([0.4]), COCO_CLASSES
        ),
    )
    crossed = draw(
        np.zeros((360, 640, 3), np.uint8),
        Detections(
            np.float32([[110, 95, 400, 300], [100, 100, 200, 200]]),
            np.array([5, 3]),
            np.float32([0.9, 0.4]),
            COCO_CLASSES,
        ),
    )
    high, wide = label(f"{COCO_CLASSES[3]} 0.40", 3, 0.3).shape[:2]
    places = label_positions(
        [(110, 95, 400, 300), (100, 100, 200, 200)],
        [label(f"{COCO_CLASSES[5]} 0.90", 5, 0.3), np.zeros((high, wide, 3))],
        360,
        640,
    )
    x, y = places[1]
    np.testing.assert_array_equal(
        crossed[y : y + high, x : x + wide], alone[101 - high : 101, 100 : 100 + wide]
    )


def test_labels_show_id_name_and_score():
    one = Detections([[10, 10, 50, 50]], [1], [0.914], ["cat", "dog"])
    assert captions(one) == ["dog 0.91"]
    one.ids = np.array([7])
    assert captions(one) == ["#7 dog 0.91"]
    one.ids = np.array([-1])  # not confirmed by the tracker
    assert captions(one) == ["dog 0.91"]


@pytest.mark.parametrize("without_a_font", [False, True])
def test_names_in_other_scripts_are_drawn_or_replaced_by_numbers_with_one_message(
    monkeypatch, without_a_font
):
    """The font of OpenCV 4 has only ASCII letters."""
    monkeypatch.setattr(cv2, "__version__", "4.10.0")
    printed = set()
    monkeypatch.setattr(labels, "print_once", printed.add)
    label.cache_clear()
    if without_a_font:
        monkeypatch.setitem(sys.modules, "PIL", None)
    try:
        helmet, vest = (
            label(text, number, 0.6) for number, text in enumerate(("安全帽 0.90", "反光衣 0.90"))
        )
        if without_a_font:
            np.testing.assert_array_equal(helmet, label("0 0.90", 0, 0.6))
            np.testing.assert_array_equal(label("Fuß é 0.90", 0, 0.6), label("Fu e 0.90", 0, 0.6))
            (message,) = printed
            assert "cannot draw all letters of the class names" in message
        else:
            pytest.importorskip("PIL")
            grey = [
                np.abs(picture.astype(int) - picture[0, 0]).max(2) > 60
                for picture in (helmet, vest)
            ]
            assert helmet.dtype == np.uint8 and helmet.shape[2] == 3 and 12 <= len(helmet) <= 40
            assert grey[0].sum() > 100 and (
                grey[0].shape != grey[1].shape or (grey[0] != grey[1]).any()
            )
            if printed:
                pytest.skip("this machine has no font with Chinese letters")
    finally:
        label.cache_clear()


@pytest.mark.parametrize(
    "text, without",
    [("🚗 car", "car"), ("ไทย", "7"), ("人 🚗", "人"), ("שלום", "7"), ("a مرحبا", "a")],
)
def test_letters_that_opencv_5_cannot_draw_are_no_question_marks(monkeypatch, text, without):
    if not labels.is_opencv_5():
        pytest.skip("needs OpenCV 5")
    printed = set()
    monkeypatch.setattr(labels, "print_once", printed.add)
    monkeypatch.setattr(labels, "FONTS", ())  # Pillow has no font
    monkeypatch.setattr(labels, "_font", lambda letters, height: None)
    drawn = labels.text_label(text, 0.6, (0, 0, 0), (255, 255, 255), 7)
    expected = labels.text_label(without, 0.6, (0, 0, 0), (255, 255, 255), 7)
    np.testing.assert_array_equal(drawn, expected)
    assert len(printed) == 1 and "cannot draw all letters" in printed.pop()


@pytest.mark.parametrize("text", ["Œuf ½ µ", "日本語かな", "한국어", "Привет", "tiếng Việt"])
def test_letters_that_opencv_5_draws_need_no_pillow(monkeypatch, text):
    if not labels.is_opencv_5():
        pytest.skip("needs OpenCV 5")
    monkeypatch.setattr(labels, "print_once", pytest.fail)
    monkeypatch.setitem(sys.modules, "PIL", None)
    labels.text_label(text, 0.6, (0, 0, 0), (255, 255, 255), 7)


def test_a_name_is_drawn_the_same_if_its_accents_are_letters_of_their_own():
    """As macOS writes file names."""
    one, other = (
        labels.text_label(text, 0.6, (0, 0, 0), (255,) * 3, 7) for text in ("\u00e9", "e\u0301")
    )
    np.testing.assert_array_equal(one, other)


def test_masks_are_half_transparent_and_change_no_other_pixel():
    IMG = np.full((120, 160, 3), 100, np.uint8)
    mask = np.zeros((40, 50), np.uint8)
    mask[:20] = 1
    draw(IMG, one_object((60, 50, 110, 90), masks=[(60, 50, mask)]))
    half = [(100 + channel) / 2 for channel in colour(0)]
    np.testing.assert_allclose(IMG[60, 80], half, atol=1)
    assert (IMG[80, 80] == 100).all() and (IMG[100:, :] == 100).all()


def test_a_mask_beyond_the_edge_is_clipped():
    IMG = np.full((120, 160, 3), 100, np.uint8)
    draw(IMG, one_object((130, 90, 160, 120), masks=[(130, 90, np.ones((50, 60), np.uint8))]))
    np.testing.assert_allclose(
        IMG[110, 150], [(100 + channel) / 2 for channel in colour(0)], atol=1
    )


def test_the_skeleton_connects_visible_key_points_only():
    points = np.zeros((1, 17, 3), np.float32)
    points[0, 5], points[0, 7], points[0, 9] = (50, 60, 0.9), (90, 60, 0.9), (130, 60, 0.2)
    IMG = draw(np.zeros((200, 200, 3), np.uint8), one_object((10, 20, 180, 180), keypoints=points))
    assert IMG[60, 50].any() and IMG[60, 90].any()
    assert (IMG[60, 70] > 200).all() and not IMG[60, 110].any() and not IMG[60, 130].any()
    other = draw(
        np.zeros((200, 200, 3), np.uint8), one_object((10, 20, 180, 180), keypoints=points[:, :9])
    )
    # a skeleton is known for COCO's 17 points only
    assert other[60, 50].any() and not other[60, 70].any()


def test_rotated_boxes_are_drawn_from_their_corners():
    corners = np.float32([[[100, 50], [150, 100], [100, 150], [50, 100]]])
    IMG = draw(
        np.zeros((200, 200, 3), np.uint8), one_object((50, 50, 150, 150), 2, corners=corners)
    )
    assert IMG[75, 125].any() and IMG[125, 75].any()
    assert not IMG[148:152, 140:150].any()  # the upright box's corner


def test_a_classifiers_result_is_written_in_the_corner():
    found = Detections(None, np.array([1, 0]), np.float32([0.9, 0.1]), ["cat", "dog"])
    IMG = np.zeros((90, 160, 3), np.uint8)
    draw(IMG, found)
    assert IMG[0, 0].tolist() == list(colour(1))
