"""What func.py promises: geometry, decoding against a plain reference, and drawing."""
import itertools
import sys
import threading

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import func
from func import Detections
from rknnmodel import Model


def plain_decode(outputs, image_size=640):
    """The usual way, as a reference: decode all 25,200 anchors, then filter. Same results as func.decode, in its order
    of heads."""
    boxes, classes, scores = [], [], []
    for head in outputs:
        _, channels, rows, columns = head.shape
        stride = image_size // columns
        cells = head.reshape(3, channels // 3, rows, columns).transpose(0, 2, 3, 1)  # (3, rows, columns, 5 + classes)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)
        centre = (cells[..., :2] * 2 - 0.5 + grid) * stride
        size = (cells[..., 2:4] * 2) ** 2 * np.array(func.ANCHORS[stride])[:, None, None]
        score = cells[..., 4:5] * cells[..., 5:]
        boxes.append(np.concatenate([centre - size / 2, centre + size / 2], -1).reshape(-1, 4))
        classes.append(score.argmax(-1).ravel())
        scores.append(score.max(-1).ravel())
    boxes, classes, scores = map(np.concatenate, (boxes, classes, scores))
    keep = scores >= func.OBJ_THRESH
    return boxes[keep], classes[keep], scores[keep]


def random_heads(seed, share=0.01, size=(640, 640), classes=80):
    """Heads as a network gives them: objectness low but for a share of the cells. Three (1, 3 * (5 + classes), rows,
    columns) float32."""
    rng = np.random.default_rng(seed)
    heads = []
    for stride in (8, 16, 32):
        cells = size[1] // stride, size[0] // stride
        head = rng.random((3, 5 + classes, *cells), dtype=np.float32)
        head[:, 4] = np.where(rng.random((3, *cells)) < share, head[:, 4], head[:, 4] * 0.2)
        heads.append(head.reshape(1, -1, *cells))
    return heads


def stored(output, dtype=np.int8, low=None, high=None):
    """A float output as an NPU leaves it: (stored values, scale, zero point), over its own range or a given one."""
    low, high = min(0.0, output.min() if low is None else low), max(0.0, output.max() if high is None else high)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    scale = (high - low) / (most - least) or 1.0
    zero_point = round(least - low / scale)
    return np.clip(np.rint(output / scale) + zero_point, least, most).astype(dtype), scale, zero_point


def model_of(outputs, size=(640, 640), **more):
    """A Model that says its size and the shapes of these outputs."""
    shapes = [(f"out{number}", np.shape(output)) for number, output in enumerate(outputs)]
    return Model("m.rknn", inputs=[("images", (1, 3, size[1], size[0]))], outputs=shapes, size=size, **more)


class Context:
    """An RKNNLite context that answers with these outputs and keeps what it was fed."""

    def __init__(self, outputs, model=None):
        self.outputs = outputs
        if model is not None:
            self.model = model

    def inference(self, inputs):
        self.inputs = inputs
        return self.outputs


class RawContext(Context):
    """The same, of a runtime that gives the outputs as stored."""

    def inference_raw(self, inputs):
        self.inputs = inputs
        return self.outputs

    def inference(self, inputs):
        raise AssertionError("the outputs were asked for as floats")


@pytest.mark.parametrize("seed, share", [(0, 0.0), (1, 0.001), (2, 0.01), (3, 0.2)])
def test_decoding_gives_the_boxes_of_the_plain_reference(seed, share):
    heads = random_heads(seed, share)
    expected_boxes, expected_classes, expected_scores = plain_decode(heads)
    boxes, classes, scores = func.decode(heads)
    assert len(boxes) == len(expected_boxes)
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_exports_without_the_sigmoid_give_the_same_boxes():
    heads = [head.clip(1e-6, 1 - 1e-6) for head in random_heads(2)]
    expected = func.decode(heads)
    found = func.decode([np.log(head / (1 - head)) for head in heads])
    for values, wanted in zip(found, expected):
        np.testing.assert_allclose(values, wanted, atol=1e-3)
    assert len(expected[0]) > 10


@pytest.mark.parametrize("size", [160, 640])
def test_logits_are_told_over_all_heads_whatever_one_of_them_holds(size):
    """In the smallest head most cells hold an object, in the largest a cell in the corner does."""
    heads = [np.full((3, 85, size // stride, size // stride), -6, np.float32) for stride in (8, 16, 32)]
    heads[2][:, 4], heads[2][:, 5:7] = 0.6, 2.0
    heads[0][0, 4:6, 0, 0] = 3.0
    func_size, func.IMG_SIZE = func.IMG_SIZE, size
    try:
        boxes, classes, scores = func.decode([head.reshape(1, 255, *head.shape[2:]) for head in heads])
    finally:
        func.IMG_SIZE = func_size
    assert len(scores) == 3 * (size // 32) ** 2 + 1
    np.testing.assert_allclose(scores[0], (1 / (1 + np.exp(-3))) ** 2, rtol=1e-5)
    np.testing.assert_allclose(scores[1:], 1 / (1 + np.exp(-0.6)) / (1 + np.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_scores_after_the_sigmoid_are_not_taken_for_logits_however_many_objects_there_are(share):
    heads = random_heads(3, share)
    assert len(func.decode(heads)[0]) == len(plain_decode(heads)[0])


def test_a_score_is_never_above_1():
    """int8 goes a little beyond 1, and a broken value far."""
    heads = random_heads(1, 0.0)
    for row, value in ((10, 1.0039), (20, 1.0), (30, 7.0)):
        heads[0][0, [4, 5 + 3], row, row] = value
    assert func.nms(*func.decode(heads))[2].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("logits", [False, True])
def test_outputs_as_stored_give_the_boxes_of_their_floats(dtype, logits):
    heads = random_heads(4, 0.05)
    if logits:
        heads = [np.log(head / (1 - head)) for head in (head.clip(1e-3, 1 - 1e-3) for head in heads)]
    raw = [stored(head, dtype) for head in heads]
    for conf in (0.25, 0.3, 0.001, 0.999):
        model = model_of(heads, conf=conf)
        found, expected = func.decode(raw, model), func.decode([func.floats(*output) for output in raw], model)
        for values, wanted in zip(found, expected):
            np.testing.assert_array_equal(values, wanted)
        assert len(found[0]) > 10 or conf == 0.999


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.1, 0.25, 0.5, 0.999, 1.0, 2.0])
@pytest.mark.parametrize("scale, zero", [(1 / 255, -128), (0.0039208, -127), (0.05, 30), (1e-9, 0)])
def test_the_raw_threshold_parts_the_values_as_the_threshold_does(value, scale, zero):
    every = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_array_equal(every >= func.raw_threshold(value, scale, zero, every.dtype),
                                  func.floats(every, scale, zero) >= np.float32(value))


def test_heads_of_five_dimensions_are_the_same_heads():
    """As rknpu2's older YOLOv5 has them: (1, 3, 85, rows, columns)."""
    heads = random_heads(2)
    for values, wanted in zip(func.decode([head.reshape(1, 3, 85, *head.shape[2:]) for head in heads]),
                              func.decode(heads)):
        np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("size", [(640, 384), (1280, 736), (320, 320), (64, 32)])
@pytest.mark.parametrize("classes", [1, 6, 80])
def test_any_size_and_number_of_classes_that_the_model_says_is_decoded(size, classes):
    heads = random_heads(6, 0.05, size, classes)
    found = func.decode(heads, model_of(heads, size))
    for values, wanted in zip(found, plain_decode(heads, size[0])):
        np.testing.assert_allclose(values, wanted, atol=1e-3)
    assert len(found[0]) > 0


def test_without_a_model_the_settings_say_a_rectangle(monkeypatch):
    monkeypatch.setattr(func, "IMG_SIZE", (640, 384))
    context = Context(random_heads(1, size=(640, 384)))
    assert len(func.detect(context, np.zeros((384, 640, 3), np.uint8))) > 0
    assert context.inputs[0].shape == (1, 384, 640, 3)


def test_heads_may_come_in_any_order():
    heads = random_heads(1)
    assert len(func.decode(heads[::-1])[0]) == len(func.decode(heads)[0]) > 0


@pytest.mark.parametrize("width, height",
                         [(1280, 720), (720, 1280), (640, 640), (640, 360), (1, 1), (1, 4000), (4000, 1), (333, 77)])
def test_a_frame_is_letterboxed_never_distorted(width, height):
    square, (left, top, x_scale, y_scale) = func.letterbox(np.zeros((height, width, 3), np.uint8), 640)
    assert square.shape == (640, 640, 3) and square.dtype == np.uint8
    rows, columns = np.nonzero((square != 114).all(2))
    assert (columns.min(), rows.min()) == (left, top)
    picture = np.array([columns.max() + 1 - left, rows.max() + 1 - top])
    assert picture.max() == 640
    # to the pixel of the frame's proportions
    np.testing.assert_allclose(picture, np.maximum(1, np.array([width, height]) * 640 / max(width, height)), atol=0.51)
    np.testing.assert_allclose(picture, [width * x_scale, height * y_scale])


@pytest.mark.parametrize("size", [(640, 384), (384, 640), (1280, 736), (640, 640)])
@pytest.mark.parametrize("width, height", [(1280, 720), (720, 1280), (100, 3000)])
def test_a_rectangle_is_filled_as_far_as_the_frame_goes(size, width, height):
    square, (left, top, x_scale, y_scale) = func.letterbox(np.zeros((height, width, 3), np.uint8), size)
    assert square.shape == (size[1], size[0], 3)
    rows, columns = np.nonzero((square != 114).all(2))
    picture = columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
    assert (columns.min(), rows.min()) == (left, top)
    assert picture[0] == size[0] or picture[1] == size[1]
    scale = min(size[0] / width, size[1] / height)
    np.testing.assert_allclose(picture, (width * scale, height * scale), atol=0.51)
    assert abs(2 * left + picture[0] - size[0]) <= 1 and abs(2 * top + picture[1] - size[1]) <= 1


def test_the_model_sees_rgb():
    square, _ = func.letterbox(np.full((640, 640, 3), (10, 20, 30), np.uint8), 640)
    assert square[320, 320].tolist() == [30, 20, 10]


@pytest.mark.parametrize("width, height", [(1280, 720), (720, 1280), (501, 1203)])
def test_boxes_come_back_in_pixels_of_the_frame(width, height):
    IMG = np.zeros((height, width, 3), np.uint8)
    _, placed = func.letterbox(IMG, 640)
    boxes = np.float32([[width * 0.25, height * 0.5, width * 0.75, height], [0, 0, 10, 10]])
    left, top, x_scale, y_scale = placed
    in_square = boxes * np.float32([x_scale, y_scale, x_scale, y_scale]) + np.float32([left, top, left, top])
    np.testing.assert_allclose(func.unletterbox(in_square, placed, IMG), boxes, atol=1e-3)


def test_inference_is_called_with_four_dimensions():
    context = Context(random_heads(0, 0.0))
    func.detect(context, np.zeros((720, 1280, 3), np.uint8))
    assert len(context.inputs) == 1
    assert context.inputs[0].shape == (1, 640, 640, 3)
    assert context.inputs[0].dtype == np.uint8


def test_detections_stay_inside_the_frame_best_first():
    boxes, classes, scores = func.detect(Context(random_heads(5, 0.05)), np.zeros((300, 1000, 3), np.uint8))
    assert len(boxes) == len(classes) == len(scores) > 10
    assert (boxes >= 0).all() and (boxes <= [1000, 300, 1000, 300]).all()
    assert (np.diff(scores) <= 0).all()


def test_boxes_of_one_class_that_overlap_are_reduced_to_the_best():
    boxes = np.float32([[0, 0, 100, 100], [2, 0, 102, 100], [0, 0, 100, 100], [300, 0, 400, 100]])
    classes, scores = np.array([1, 1, 2, 1]), np.float32([0.6, 0.9, 0.5, 0.4])
    boxes, classes, scores = func.nms(boxes, classes, scores)
    assert classes.tolist() == [1, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.4])
    assert boxes[0, 0] == 2


@pytest.mark.parametrize("outputs, said", [
    ([np.zeros((1, 255, 80, 80), np.float32)], "(1, 255, 80, 80), but func.py reads"),
    ([np.zeros((1, 1000), np.float32)], "(1, 1000), but func.py reads"),
    ([np.zeros((1, 18, n, n), np.float32) for n in (80, 40, 20)],
     "(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)"),
])
def test_outputs_of_another_model_are_named_with_what_was_expected(outputs, said):
    with pytest.raises(func.ModelError) as error:
        func.decode(outputs)
    assert said in str(error.value)


def test_a_failed_inference_is_said_with_the_input_shape():
    with pytest.raises(func.ModelError, match=r"\(1, 640, 640, 3\)"):
        func.detect(Context(None), np.zeros((72, 128, 3), np.uint8))


def test_a_failed_inference_names_the_context():
    context = Context(None)
    context.place = "context 2 of 6, core 1"
    with pytest.raises(func.ModelError, match=r"^context 2 of 6, core 1: inference of an input"):
        func.infer(context, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(func.ModelError, match=r"^context 2 of 6, core 1: inference of an input"):
        func.infer_raw(context, np.zeros((64, 64, 3), np.uint8))


# ---- what the model says ----

def test_outputs_are_taken_as_stored_where_the_runtime_has_them():
    heads = random_heads(4, 0.01)
    raw = [stored(head) for head in heads]
    frame = np.zeros((72, 128, 3), np.uint8)
    found = func.detect(RawContext(raw), frame)
    for values, wanted in zip(found, func.detect(Context([func.floats(*output) for output in raw]), frame)):
        np.testing.assert_array_equal(values, wanted)
    assert len(found) > 10
    assert [output[1:] for output in func.infer_raw(Context(heads), np.zeros((640, 640, 3), np.uint8))] == [(1, 0)] * 3


def test_two_models_in_turns_keep_their_sizes_names_and_thresholds_apart():
    large, small = random_heads(1, 0.05), random_heads(2, 0.05, (320, 192), 2)
    first = Context(large, model_of(large, conf=0.9, names={number: f"n{number}" for number in range(80)}))
    second = Context(small, model_of(small, (320, 192), names=["cat", "dog"], keep={1}))
    for _ in range(2):
        found = func.detect(first, np.zeros((72, 128, 3), np.uint8))
        assert first.inputs[0].shape == (1, 640, 640, 3) and found.scores.min() >= 0.9
        assert found.name(found.classes[0]) == f"n{found.classes[0]}"
        found = func.detect(second, np.zeros((72, 128, 3), np.uint8))
        assert second.inputs[0].shape == (1, 192, 320, 3) and 0.25 <= found.scores.min() < 0.5
        assert set(found.classes) == {1} and found.name(1) == "dog"


def test_the_models_own_iou_decides_what_is_one_object():
    boxes, classes = np.float32([[0, 0, 100, 100], [20, 0, 120, 100]]), np.array([0, 0])  # IoU 0.67
    scores = np.float32([0.9, 0.8])
    assert [len(func.nms(boxes, classes, scores, Model("m", iou=iou))[0]) for iou in (None, 0.6, 0.7)] == [1, 1, 2]


@pytest.mark.parametrize("classes", [1, 3, 20, 300])
def test_many_boxes_are_reduced_as_one_after_the_other_would_be(classes):
    random = np.random.default_rng(classes)
    for iou, conf in ((0.45, 0.25), (0.7, 0.4), (1.0, 0.0)):
        centres, numbers = random.uniform(100, 600, (30, 2)), random.integers(0, classes, 30)
        which = random.integers(0, 30, 400)
        middle, half = centres[which] + random.normal(0, 6, (400, 2)), np.abs(random.normal(30, 8, (400, 2)))
        boxes = np.concatenate([middle - half, middle + half], 1).astype(np.float32)
        scores = (random.integers(60, 256, 400) / 255).astype(np.float32)  # as of int8: many are equal
        stay = []
        for place in np.argsort(-scores, kind="stable"):
            same = [other for other in stay if numbers[which[other]] == numbers[which[place]]]
            if scores[place] > np.float32(conf) and all(ratio_of(boxes[place], boxes[other]) <= iou for other in same):
                stay.append(place)
        kept = func.suppress(boxes, numbers[which], scores, func.Settings((640, 640), conf, iou, None))
        assert kept.tolist() == stay[:func.MAX_BOXES]


def ratio_of(one, other):
    """IoU of two boxes xyxy."""
    one, other = np.float64(one), np.float64(other)
    both = np.prod(np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0))
    return both / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both)


def test_only_wanted_classes_are_kept():
    boxes, classes = np.float32([[10 * k, 0, 10 * k + 9, 9] for k in range(6)]), np.arange(6) % 3
    scores = np.linspace(0.9, 0.4, 6).astype(np.float32)
    for keep, left in ((None, 6), ({0, 2}, 4), ([1], 2), (set(), 0), ((7,), 0)):
        kept = func.nms(boxes, classes, scores, Model("m", keep=keep))[1]
        assert len(kept) == left and (keep is None or set(kept) <= set(keep))


def test_a_string_for_the_tuple_of_names_is_said_with_the_comma(monkeypatch):
    monkeypatch.setattr(func, "CLASSES", ("helmet"))
    with pytest.raises(func.ModelError, match=r'is the string "helmet".*\("helmet",\)'):
        func.decode(random_heads(0))
    heads = random_heads(1, classes=2)
    assert func.detect(Context(heads, model_of(heads, names=["a", "b"])), np.zeros((9, 9, 3), np.uint8)).name(1) == "b"


def test_a_model_without_names_shows_numbers_where_the_settings_name_others_which_is_said_once(capfd, monkeypatch):
    monkeypatch.setattr(func, "_said", set())
    heads = random_heads(1, 0.05, classes=7)
    context = Context(heads, model_of(heads))
    threads = [threading.Thread(target=func.detect, args=(context, np.zeros((72, 128, 3), np.uint8)))
               for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert func.detect(context, np.zeros((72, 128, 3), np.uint8)).name(3) == "3"
    assert capfd.readouterr().err.count("The model has 7 classes and says no names for them") == 1
    same = random_heads(1)
    assert func.detect(Context(same, model_of(same)), np.zeros((72, 128, 3), np.uint8)).name(3) == func.CLASSES[3]


@pytest.mark.parametrize("shapes, more, read", [
    ([(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)], {}, True),
    ([(1, 255, 20, 20), (1, 255, 80, 80), (1, 255, 40, 40)], {"task": "detect"}, True),
    ([(1, 3, 11, 80, 80), (1, 3, 11, 40, 40), (1, 3, 11, 20, 20)], {}, True),
    ([(1, 255, 48, 80), (1, 255, 24, 40), (1, 255, 12, 20)], {"size": (640, 384)}, True),
    ([(1, 255, 48, 80), (1, 255, 24, 40), (1, 255, 12, 20)], {}, False),
    ([(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)], {"task": "segment"}, False),
    ([(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)], {"path": "yolov7-tiny.rknn"}, False),
    ([(1, 18, 80, 80), (1, 18, 40, 40), (1, 18, 20, 20)], {"names": ["n"] * 13}, False),  # YOLOX
    ([(1, 84, 8400)], {}, False), ([(1, 1000)], {}, False), ([], {}, True), ([], {"task": "classify"}, False),
    ([(1, 85, 80, 80), (1, 85, 40, 40), (1, 85, 20, 20)], {}, False), ([(1,)] * 3, {}, False), ([()] * 3, {}, False),
])
def test_it_says_which_models_it_reads(shapes, more, read):
    model = Model(**{"path": "m.rknn", "size": (640, 640), "outputs": [("o", shape) for shape in shapes], **more})
    assert func.reads(model) == read


# ---- Detections ----

def test_detections_unpack_and_are_chosen_with_all_their_fields():
    whole = Detections(np.float32([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]), np.array([5, 6, 7]),
                       np.float32([0.9, 0.8, 0.7]), {5: "five"}, np.array([11, 12, 13]),
                       [(0, 0, "a"), (1, 1, "b"), (2, 2, "c")], np.zeros((3, 17, 3)), np.ones((3, 4, 2)))
    boxes, classes, scores = whole
    assert boxes is whole.boxes and classes is whole.classes and scores is whole.scores and len(whole) == 3
    assert [whole.name(number) for number in classes] == ["five", "6", "7"]
    for index in (np.array([2, 0]), [2, 0], np.array([True, False, True])[::-1]):
        part = whole.select(index)
        places = [2, 0] if len(index) == 2 else [0, 2]
        assert len(part) == 2 and part.ids.tolist() == [11 + place for place in places]
        assert [mask[0] for mask in part.masks] == places and part.classes.tolist() == [5 + place for place in places]
        assert part.keypoints.shape == (2, 17, 3) and part.corners.shape == (2, 4, 2) and part.name(5) == "five"
    assert len(whole.select(np.zeros(3, bool))) == len(whole.select([])) == 0
    without = Detections(None, classes, scores, ("a",) * 7).select(classes > 5)
    assert without.boxes is None and len(without) == 2 and [without.name(n) for n in (6, 7, -1)] == ["a", "7", "-1"]


# ---- drawing ----

def test_my_func_returns_the_full_size_frame_with_boxes_drawn():
    IMG = np.zeros((720, 1280, 3), np.uint8)
    result = func.myFunc(Context(random_heads(5, 0.01)), IMG)
    assert result.shape == (720, 1280, 3)
    assert result.any()


def test_each_class_has_a_colour_of_its_own():
    assert len({func.colour(number) for number in range(len(func.CLASSES))}) == len(func.CLASSES)


@pytest.mark.parametrize("box", [(0, 0, 60, 60), (1240, 0, 1280, 50), (1200, 690, 1280, 720), (0, 660, 50, 720),
                                 (600, 712, 700, 720)])
def test_labels_stay_inside_the_frame(box):
    """Wherever the box lies, its label has as many pixels of text as in the middle of the frame."""
    def text_pixels(box):
        IMG = np.full((720, 1280, 3), 255, np.uint8)
        func.draw(IMG, np.float32([box]), np.array([10]), np.float32([0.5]))
        return np.count_nonzero((IMG < 60).all(2))
    assert text_pixels(box) == text_pixels((600, 300, 700, 400)) > 50


def test_line_width_and_text_fit_the_frame():
    def share_painted(width, height):
        IMG = np.zeros((height, width, 3), np.uint8)
        func.draw(IMG, np.float32([[0.25, 0.25, 0.75, 0.75]]) * [width, height, width, height], np.array([0]),
                  np.float32([0.5]))
        return np.count_nonzero(IMG.any(2)) / (width * height)
    assert share_painted(3840, 2160) == pytest.approx(share_painted(1280, 720), rel=0.3)


def overlap(first, second):
    return (first[0] < second[0] + second[2] and second[0] < first[0] + first[2]
            and first[1] < second[1] + second[3] and second[1] < first[1] + first[3])


def labels_of(boxes, sizes, h, w):
    """(x, y, w, h) of the labels, where label_places() puts them."""
    pictures = [np.zeros((high, wide, 3), np.uint8) for wide, high in sizes]
    return [(x, y, *size) for (x, y), size in zip(func.label_places(boxes, pictures, h, w), sizes)]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(*[st.integers(-50, 700)] * 4), max_size=40), st.integers(0, 100))
def test_a_label_never_hides_another_where_there_is_room(corners, seed):
    """40 labels of at most 90 x 24 pixels leave room in 640 x 360, wherever the boxes are."""
    rng = np.random.default_rng(seed)
    boxes = [(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)) for x1, y1, x2, y2 in corners]
    labels = labels_of(boxes, [(int(rng.integers(30, 90)), int(rng.integers(12, 24))) for _ in boxes], 360, 640)
    assert all(0 <= x and 0 <= y and x + wide <= 640 and y + high <= 360 for x, y, wide, high in labels)
    assert not any(overlap(*pair) for pair in itertools.combinations(labels, 2))


def test_labels_of_one_place_spread_over_a_crowded_frame():
    labels = labels_of([(10, 10, 50, 50)] * 9, [(80, 20)] * 9, 80, 320)  # 4 x 4 of them would fit side by side
    assert not any(overlap(*pair) for pair in itertools.combinations(labels, 2))
    assert len(labels_of([(10, 10, 50, 50)] * 40, [(80, 20)] * 40, 80, 320)) == 40


def test_the_best_label_has_the_choice_and_stays_at_its_box():
    best, other = labels_of([(100, 100, 200, 200), (102, 98, 210, 200)], [(80, 20), (80, 20)], 360, 640)
    assert best[:2] == (100, 81) and other[:2] == (102, 79 - 20)


def test_a_label_lies_on_top_of_every_box():
    """Also where the box is a better one, drawn later."""
    alone = func.draw(np.zeros((360, 640, 3), np.uint8), Detections(
        np.float32([[100, 100, 200, 200]]), np.array([3]), np.float32([0.4]), func.CLASSES))
    crossed = func.draw(np.zeros((360, 640, 3), np.uint8), Detections(
        np.float32([[110, 95, 400, 300], [100, 100, 200, 200]]), np.array([5, 3]), np.float32([0.9, 0.4]),
        func.CLASSES))
    high, wide = func.label(f"{func.CLASSES[3]} 0.40", 3, 0.3).shape[:2]
    places = func.label_places([(110, 95, 400, 300), (100, 100, 200, 200)],
                               [func.label(f"{func.CLASSES[5]} 0.90", 5, 0.3), np.zeros((high, wide, 3))], 360, 640)
    x, y = places[1]
    np.testing.assert_array_equal(crossed[y:y + high, x:x + wide], alone[101 - high:101, 100:100 + wide])


def captions(monkeypatch, act):
    """The texts that act() draws."""
    texts, label = [], func.label
    monkeypatch.setattr(func, "label", lambda text, *others: texts.append(text) or label(text, *others))
    act()
    return texts


def test_labels_tell_id_name_and_score(monkeypatch):
    one = Detections(np.float32([[10, 10, 50, 50]]), np.array([1]), np.float32([0.914]), ["cat", "dog"])
    assert captions(monkeypatch, lambda: func.draw(np.zeros((90, 90, 3), np.uint8), one)) == ["dog 0.91"]
    one.ids = np.array([7])
    assert captions(monkeypatch, lambda: func.draw(np.zeros((90, 90, 3), np.uint8), one)) == ["#7 dog 0.91"]


def test_boxes_classes_and_scores_one_by_one_are_drawn_as_ever(monkeypatch):
    arrays = np.float32([[10, 10, 50, 50]]), np.array([1]), np.float32([0.914])
    pictures = []
    assert captions(monkeypatch, lambda: pictures.append(func.draw(np.zeros((90, 90, 3), np.uint8), *arrays))) == [
        f"{func.CLASSES[1]} 0.91"]
    np.testing.assert_array_equal(pictures[0], func.draw(np.zeros((90, 90, 3), np.uint8),
                                                         Detections(*arrays, func.CLASSES)))


@pytest.mark.parametrize("without_a_font", [False, True])
def test_names_in_other_scripts_are_readable_or_their_numbers_are_shown_which_is_said_once(monkeypatch, capfd,
                                                                                          without_a_font):
    """As OpenCV 4 needs it, whose font has ASCII only."""
    monkeypatch.setattr(cv2, "__version__", "4.10.0")
    monkeypatch.setattr(func, "_said", set())
    func.label.cache_clear()
    if without_a_font:
        monkeypatch.setitem(sys.modules, "funcs.shapes", None)
    try:
        helmet, vest = (func.label(text, number, 0.6) for number, text in enumerate(("安全帽 0.90", "反光衣 0.90")))
        if without_a_font:
            np.testing.assert_array_equal(helmet, func.label("0 0.90", 0, 0.6))
            np.testing.assert_array_equal(func.label("Fuß é 0.90", 0, 0.6), func.label("Fu e 0.90", 0, 0.6))
            assert capfd.readouterr().err.count("cannot draw all letters of the class names") == 1
        else:
            pytest.importorskip("PIL")
            grey = [np.abs(picture.astype(int) - picture[0, 0]).max(2) > 60 for picture in (helmet, vest)]
            assert helmet.dtype == np.uint8 and helmet.shape[2] == 3 and 12 <= len(helmet) <= 40
            assert grey[0].sum() > 100 and (grey[0].shape != grey[1].shape or (grey[0] != grey[1]).any())
            if "cannot draw" in capfd.readouterr().err:
                pytest.skip("this machine has no font with Chinese letters")
    finally:
        func.label.cache_clear()


def test_masks_are_half_transparent_and_cost_no_other_pixel():
    IMG = np.full((120, 160, 3), 100, np.uint8)
    mask = np.zeros((40, 50), np.uint8)
    mask[:20] = 1
    func.draw(IMG, Detections(np.float32([[60, 50, 110, 90]]), np.array([0]), np.float32([0.9]), func.CLASSES,
                              masks=[(60, 50, mask)]))
    half = [(100 + channel) / 2 for channel in func.colour(0)]
    np.testing.assert_allclose(IMG[60, 80], half, atol=1)
    assert (IMG[80, 80] == 100).all() and (IMG[100:, :] == 100).all()


def test_a_mask_that_reaches_over_the_edge_is_cut():
    IMG = np.full((120, 160, 3), 100, np.uint8)
    func.draw(IMG, Detections(np.float32([[130, 90, 160, 120]]), np.array([0]), np.float32([0.9]), func.CLASSES,
                              masks=[(130, 90, np.ones((50, 60), np.uint8))]))
    np.testing.assert_allclose(IMG[110, 150], [(100 + channel) / 2 for channel in func.colour(0)], atol=1)


def test_key_points_have_a_skeleton_of_those_that_are_seen():
    points = np.zeros((1, 17, 3), np.float32)
    points[0, 5], points[0, 7], points[0, 9] = (50, 60, 0.9), (90, 60, 0.9), (130, 60, 0.2)
    IMG = func.draw(np.zeros((200, 200, 3), np.uint8), Detections(
        np.float32([[10, 20, 180, 180]]), np.array([0]), np.float32([0.9]), func.CLASSES, keypoints=points))
    assert IMG[60, 50].any() and IMG[60, 90].any()
    assert (IMG[60, 70] > 200).all() and not IMG[60, 110].any() and not IMG[60, 130].any()
    other = func.draw(np.zeros((200, 200, 3), np.uint8), Detections(
        np.float32([[10, 20, 180, 180]]), np.array([0]), np.float32([0.9]), func.CLASSES, keypoints=points[:, :9]))
    assert other[60, 50].any() and not other[60, 70].any()  # of other than COCO's points no skeleton is known


def test_rotated_boxes_are_drawn_by_their_corners():
    corners = np.float32([[[100, 50], [150, 100], [100, 150], [50, 100]]])
    IMG = func.draw(np.zeros((200, 200, 3), np.uint8), Detections(
        np.float32([[50, 50, 150, 150]]), np.array([2]), np.float32([0.9]), func.CLASSES, corners=corners))
    assert IMG[75, 125].any() and IMG[125, 75].any()
    assert not IMG[148:152, 140:150].any()  # the upright box's corner


def test_what_has_no_boxes_is_written_in_the_corner(monkeypatch):
    found = Detections(None, np.array([1, 0]), np.float32([0.9, 0.1]), ["cat", "dog"])
    IMG = np.zeros((90, 160, 3), np.uint8)
    assert captions(monkeypatch, lambda: func.draw(IMG, found)) == ["dog 0.90", "cat 0.10"]
    assert IMG[0, 0].tolist() == list(func.colour(1))
