"""func.py: geometry, decoding compared with plain code, NMS, and which settings apply."""

import threading

import cv2
import numpy as np
import pytest
from conftest import ROOT

import func
import funcs
from funcs import yolov5
from vision.coco import COCO_CLASSES
from vision.errors import ModelError
from vision.inference import infer, infer_raw
from vision.letterbox import letterbox, unletterbox
from vision.model import Model
from vision.nms import MAX_BOXES, nms
from vision.quantised import Raw
from vision.settings import Settings, settings_of


def decode(outputs, model=None):
    """Call yolov5.decode() with the settings of a model."""
    return yolov5.decode(outputs, settings_of(model))


def kept(boxes, classes, scores, model=None):
    """The boxes, classes and scores that nms() keeps."""
    best = nms(boxes, classes, scores, settings_of(model))
    return boxes[best], classes[best], scores[best]


def plain_decode(outputs, image_size=640):
    """Plain code with the same results as yolov5.decode(): decode all 25,200 anchors, then
    filter."""
    boxes, classes, scores = [], [], []
    for head in outputs:
        _, channels, rows, columns = head.shape
        stride = image_size // columns
        # (3, rows, columns, 5 + classes)
        cells = head.reshape(3, channels // 3, rows, columns).transpose(0, 2, 3, 1)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)
        centre = (cells[..., :2] * 2 - 0.5 + grid) * stride
        size = (cells[..., 2:4] * 2) ** 2 * np.array(yolov5.ANCHORS[stride])[:, None, None]
        score = cells[..., 4:5] * cells[..., 5:]
        boxes.append(np.concatenate([centre - size / 2, centre + size / 2], -1).reshape(-1, 4))
        classes.append(score.argmax(-1).ravel())
        scores.append(score.max(-1).ravel())
    boxes, classes, scores = map(np.concatenate, (boxes, classes, scores))
    keep = scores >= Settings().conf
    return boxes[keep], classes[keep], scores[keep]


def random_heads(seed, share=0.01, size=(640, 640), classes=80):
    """Random heads with a low objectness except in a share of the cells: three arrays (1, 3 * (5 +
    classes), rows, columns) float32."""
    rng = np.random.default_rng(seed)
    heads = []
    for stride in (8, 16, 32):
        cells = size[1] // stride, size[0] // stride
        head = rng.random((3, 5 + classes, *cells), dtype=np.float32)
        head[:, 4] = np.where(rng.random((3, *cells)) < share, head[:, 4], head[:, 4] * 0.2)
        heads.append(head.reshape(1, -1, *cells))
    return heads


def stored(output, dtype=np.int8, low=None, high=None):
    """Quantise a float output like an NPU: (stored values, scale, zero point). The range is its own
    or the given one."""
    low, high = (
        min(0.0, output.min() if low is None else low),
        max(0.0, output.max() if high is None else high),
    )
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    scale = (high - low) / (most - least) or 1.0
    zero_point = round(least - low / scale)
    return (
        np.clip(np.rint(output / scale) + zero_point, least, most).astype(dtype),
        scale,
        zero_point,
    )


def model_of(outputs, size=(640, 640), **more):
    """A Model with a size and the shapes of these outputs."""
    shapes = [(f"out{number}", np.shape(output)) for number, output in enumerate(outputs)]
    return Model(
        "m.rknn", inputs=[("images", (1, 3, size[1], size[0]))], outputs=shapes, size=size, **more
    )


class Context:
    """An RKNNLite context that returns these outputs and records its inputs."""

    def __init__(self, outputs, model=None):
        self.outputs = outputs
        if model is not None:
            self.model = model

    def inference(self, inputs):
        self.inputs = inputs
        return self.outputs


class RawContext(Context):
    """The same for a runtime with raw outputs."""

    def inference_raw(self, inputs):
        self.inputs = inputs
        return self.outputs

    def inference(self, inputs):
        raise AssertionError("the outputs were asked for as floats")


@pytest.mark.parametrize("seed, share", [(0, 0.0), (1, 0.001), (2, 0.01), (3, 0.2)])
def test_decoding_gives_the_same_boxes_as_plain_code(seed, share):
    heads = random_heads(seed, share)
    expected_boxes, expected_classes, expected_scores = plain_decode(heads)
    boxes, classes, scores = decode(heads)
    assert len(boxes) == len(expected_boxes)
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_exports_without_the_sigmoid_give_the_same_boxes():
    heads = [head.clip(1e-6, 1 - 1e-6) for head in random_heads(2)]
    expected = decode(heads)
    found = decode([np.log(head / (1 - head)) for head in heads])
    for values, wanted in zip(found, expected):
        np.testing.assert_allclose(values, wanted, atol=1e-3)
    assert len(expected[0]) > 10


@pytest.mark.parametrize("size", [160, 640])
def test_logits_are_recognised_from_all_heads_together(size):
    """Most cells of the smallest head have an object, and one corner cell of the largest."""
    heads = [
        np.full((3, 85, size // stride, size // stride), -6, np.float32) for stride in (8, 16, 32)
    ]
    heads[2][:, 4], heads[2][:, 5:7] = 0.6, 2.0
    heads[0][0, 4:6, 0, 0] = 3.0
    heads = [head.reshape(1, 255, *head.shape[2:]) for head in heads]
    boxes, classes, scores = yolov5.decode(heads, Settings(size=(size, size)))
    assert len(scores) == 3 * (size // 32) ** 2 + 1
    np.testing.assert_allclose(scores[0], (1 / (1 + np.exp(-3))) ** 2, rtol=1e-5)
    np.testing.assert_allclose(scores[1:], 1 / (1 + np.exp(-0.6)) / (1 + np.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_probabilities_are_not_taken_for_logits_with_any_number_of_objects(share):
    heads = random_heads(3, share)
    assert len(decode(heads)[0]) == len(plain_decode(heads)[0])


def test_a_score_is_never_greater_than_1():
    """int8 values can be a little greater than 1, invalid values much greater."""
    heads = random_heads(1, 0.0)
    for row, value in ((10, 1.0039), (20, 1.0), (30, 7.0)):
        heads[0][0, [4, 5 + 3], row, row] = value
    assert kept(*decode(heads))[2].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("logits", [False, True])
def test_raw_outputs_give_the_same_boxes_as_floats(dtype, logits):
    heads = random_heads(4, 0.05)
    if logits:
        heads = [
            np.log(head / (1 - head)) for head in (head.clip(1e-3, 1 - 1e-3) for head in heads)
        ]
    raw = [stored(head, dtype) for head in heads]
    for conf in (0.25, 0.3, 0.001, 0.999):
        model = model_of(heads, conf=conf)
        found, expected = (
            decode(raw, model),
            decode([Raw(*output).floats() for output in raw], model),
        )
        for values, wanted in zip(found, expected):
            np.testing.assert_array_equal(values, wanted)
        assert len(found[0]) > 10 or conf == 0.999


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.1, 0.25, 0.5, 0.999, 1.0, 2.0])
@pytest.mark.parametrize("scale, zero", [(1 / 255, -128), (0.0039208, -127), (0.05, 30), (1e-9, 0)])
def test_the_raw_threshold_separates_the_same_values_as_the_threshold(value, scale, zero):
    every = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_array_equal(
        every >= Raw(every, scale, zero).threshold(value),
        Raw(every, scale, zero).floats() >= np.float32(value),
    )


def test_heads_with_five_dimensions_give_the_same_boxes():
    """The older YOLOv5 of rknpu2 has such heads: (1, 3, 85, rows, columns)."""
    heads = random_heads(2)
    for values, wanted in zip(
        decode([head.reshape(1, 3, 85, *head.shape[2:]) for head in heads]), decode(heads)
    ):
        np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("size", [(640, 384), (1280, 736), (320, 320), (64, 32)])
@pytest.mark.parametrize("classes", [1, 6, 80])
def test_the_models_size_and_number_of_classes_are_used(size, classes):
    heads = random_heads(6, 0.05, size, classes)
    found = decode(heads, model_of(heads, size))
    for values, wanted in zip(found, plain_decode(heads, size[0])):
        np.testing.assert_allclose(values, wanted, atol=1e-3)
    assert len(found[0]) > 0


def test_without_a_model_the_size_in_the_settings_may_be_a_rectangle(monkeypatch):
    monkeypatch.setattr(func, "IMG_SIZE", (640, 384))
    context = Context(random_heads(1, size=(640, 384)))
    assert len(func.detect(context, np.zeros((384, 640, 3), np.uint8))) > 0
    assert context.inputs[0].shape == (1, 384, 640, 3)


def test_heads_may_be_in_any_order():
    heads = random_heads(1)
    assert len(decode(heads[::-1])[0]) == len(decode(heads)[0]) > 0


@pytest.mark.parametrize(
    "width, height",
    [(1280, 720), (720, 1280), (640, 640), (640, 360), (1, 1), (1, 4000), (4000, 1), (333, 77)],
)
def test_a_frame_is_letterboxed_and_never_distorted(width, height):
    square, (left, top, x_scale, y_scale) = letterbox(np.zeros((height, width, 3), np.uint8), 640)
    assert square.shape == (640, 640, 3) and square.dtype == np.uint8
    rows, columns = np.nonzero((square != 114).all(2))
    assert (columns.min(), rows.min()) == (left, top)
    picture = np.array([columns.max() + 1 - left, rows.max() + 1 - top])
    assert picture.max() == 640
    # the frame's proportions, to the pixel
    np.testing.assert_allclose(
        picture, np.maximum(1, np.array([width, height]) * 640 / max(width, height)), atol=0.51
    )
    np.testing.assert_allclose(picture, [width * x_scale, height * y_scale])


@pytest.mark.parametrize("size", [(640, 384), (384, 640), (1280, 736), (640, 640)])
@pytest.mark.parametrize("width, height", [(1280, 720), (720, 1280), (100, 3000)])
def test_a_rectangular_input_is_filled_as_far_as_the_proportions_allow(size, width, height):
    square, (left, top, x_scale, y_scale) = letterbox(np.zeros((height, width, 3), np.uint8), size)
    assert square.shape == (size[1], size[0], 3)
    rows, columns = np.nonzero((square != 114).all(2))
    picture = columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
    assert (columns.min(), rows.min()) == (left, top)
    assert picture[0] == size[0] or picture[1] == size[1]
    scale = min(size[0] / width, size[1] / height)
    np.testing.assert_allclose(picture, (width * scale, height * scale), atol=0.51)
    assert abs(2 * left + picture[0] - size[0]) <= 1 and abs(2 * top + picture[1] - size[1]) <= 1


def test_the_model_sees_rgb():
    square, _ = letterbox(np.full((640, 640, 3), (10, 20, 30), np.uint8), 640)
    assert square[320, 320].tolist() == [30, 20, 10]


@pytest.mark.parametrize("width, height", [(1280, 720), (720, 1280), (501, 1203)])
def test_boxes_are_in_pixels_of_the_frame(width, height):
    IMG = np.zeros((height, width, 3), np.uint8)
    _, placement = letterbox(IMG, 640)
    boxes = np.float32([[width * 0.25, height * 0.5, width * 0.75, height], [0, 0, 10, 10]])
    left, top, x_scale, y_scale = placement
    in_square = boxes * np.float32([x_scale, y_scale, x_scale, y_scale]) + np.float32(
        [left, top, left, top]
    )
    np.testing.assert_allclose(unletterbox(in_square, placement, IMG), boxes, atol=1e-3)


def test_inference_is_called_with_four_dimensions():
    context = Context(random_heads(0, 0.0))
    func.detect(context, np.zeros((720, 1280, 3), np.uint8))
    assert len(context.inputs) == 1
    assert context.inputs[0].shape == (1, 640, 640, 3)
    assert context.inputs[0].dtype == np.uint8


def test_detections_are_inside_the_frame_and_sorted_by_score():
    boxes, classes, scores = func.detect(
        Context(random_heads(5, 0.05)), np.zeros((300, 1000, 3), np.uint8)
    )
    assert len(boxes) == len(classes) == len(scores) > 10
    assert (boxes >= 0).all() and (boxes <= [1000, 300, 1000, 300]).all()
    assert (np.diff(scores) <= 0).all()


def test_of_overlapping_boxes_of_one_class_the_best_is_kept():
    boxes = np.float32([[0, 0, 100, 100], [2, 0, 102, 100], [0, 0, 100, 100], [300, 0, 400, 100]])
    classes, scores = np.array([1, 1, 2, 1]), np.float32([0.6, 0.9, 0.5, 0.4])
    boxes, classes, scores = kept(boxes, classes, scores)
    assert classes.tolist() == [1, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.4])
    assert boxes[0, 0] == 2


@pytest.mark.parametrize(
    "outputs, expected",
    [
        (
            [np.zeros((1, 255, 80, 80), np.float32)],
            "(1, 255, 80, 80), but a YOLOv5 with 80 classes at 640 x 640 pixels has",
        ),
        ([np.zeros((1, 1000), np.float32)], "(1, 1000), but a YOLOv5 with 80 classes"),
        (
            [np.zeros((1, 18, n, n), np.float32) for n in (80, 40, 21)],
            "(1, 18, 80, 80), (1, 18, 40, 40), (1, 18, 20, 20)",
        ),
    ],
)
def test_outputs_of_another_model_are_reported_with_the_expected_ones(outputs, expected):
    with pytest.raises(ModelError) as error:
        decode(outputs)
    assert expected in str(error.value)


def test_a_failed_inference_is_reported_with_the_input_shape():
    with pytest.raises(ModelError, match=r"\(1, 640, 640, 3\)"):
        func.detect(Context(None), np.zeros((72, 128, 3), np.uint8))


def test_a_failed_inference_names_the_context():
    context = Context(None)
    context.label = "context 2 of 6, core 1"
    with pytest.raises(ModelError, match=r"^context 2 of 6, core 1: inference of an input"):
        infer(context, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ModelError, match=r"^context 2 of 6, core 1: inference of an input"):
        infer_raw(context, np.zeros((64, 64, 3), np.uint8))


# ---- the model's settings ----


def test_raw_outputs_are_used_if_the_runtime_has_them():
    heads = random_heads(4, 0.01)
    raw = [stored(head) for head in heads]
    frame = np.zeros((72, 128, 3), np.uint8)
    found = func.detect(RawContext(raw), frame)
    for values, wanted in zip(
        found, func.detect(Context([Raw(*output).floats() for output in raw]), frame)
    ):
        np.testing.assert_array_equal(values, wanted)
    assert len(found) > 10
    assert [
        output[1:] for output in infer_raw(Context(heads), np.zeros((640, 640, 3), np.uint8))
    ] == [(1, 0)] * 3


def test_two_models_used_in_turn_keep_their_own_settings():
    large, small = random_heads(1, 0.05), random_heads(2, 0.05, (320, 192), 2)
    first = Context(
        large, model_of(large, conf=0.9, names={number: f"n{number}" for number in range(80)})
    )
    second = Context(small, model_of(small, (320, 192), names=["cat", "dog"], class_ids={1}))
    for _ in range(2):
        found = func.detect(first, np.zeros((72, 128, 3), np.uint8))
        assert first.inputs[0].shape == (1, 640, 640, 3) and found.scores.min() >= 0.9
        assert found.name(found.classes[0]) == f"n{found.classes[0]}"
        found = func.detect(second, np.zeros((72, 128, 3), np.uint8))
        assert second.inputs[0].shape == (1, 192, 320, 3) and 0.25 <= found.scores.min() < 0.5
        assert set(found.classes) == {1} and found.name(1) == "dog"


def test_the_models_iou_threshold_is_used():
    boxes, classes = np.float32([[0, 0, 100, 100], [20, 0, 120, 100]]), np.array([0, 0])  # IoU 0.67
    scores = np.float32([0.9, 0.8])
    assert [
        len(kept(boxes, classes, scores, Model("m", iou=iou))[0]) for iou in (None, 0.6, 0.7)
    ] == [1, 1, 2]


@pytest.mark.parametrize("opencv", ["this one", "4.6"])
@pytest.mark.parametrize("conf", [0.3, 0.5, 0.7, 1.0])
def test_nms_keeps_scores_of_at_least_the_minimum(monkeypatch, opencv, conf):
    if opencv == "4.6":
        monkeypatch.delattr(cv2.dnn, "NMSBoxesBatched", raising=False)
    scores = np.array([conf, conf - 0.01, 1.0], np.float32)
    boxes = np.array([[x, 0, x + 10, 10] for x in (0, 50, 100)], np.float32)
    assert sorted(nms(boxes, np.zeros(3, int), scores, Settings((640, 640), conf))) == [0, 2]


@pytest.mark.parametrize("classes", [1, 3, 20, 300])
def test_nms_of_many_boxes_equals_plain_nms(classes):
    random = np.random.default_rng(classes)
    for iou, conf in ((0.45, 0.25), (0.7, 0.4), (1.0, 0.0)):
        centres, numbers = random.uniform(100, 600, (30, 2)), random.integers(0, classes, 30)
        which = random.integers(0, 30, 400)
        middle, half = (
            centres[which] + random.normal(0, 6, (400, 2)),
            np.abs(random.normal(30, 8, (400, 2))),
        )
        boxes = np.concatenate([middle - half, middle + half], 1).astype(np.float32)
        # like int8 scores: many are equal
        scores = (random.integers(60, 256, 400) / 255).astype(np.float32)
        stay = []
        for place in np.argsort(-scores, kind="stable"):
            same = [other for other in stay if numbers[which[other]] == numbers[which[place]]]
            if scores[place] >= np.float32(conf) and all(
                ratio_of(boxes[place], boxes[other]) <= iou for other in same
            ):
                stay.append(place)
        kept = nms(boxes, numbers[which], scores, Settings((640, 640), conf, iou, None))
        assert kept.tolist() == stay[:MAX_BOXES]


def ratio_of(one, other):
    """IoU of two boxes xyxy."""
    one, other = np.float64(one), np.float64(other)
    both = np.prod(np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0))
    return both / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both)


def test_only_the_requested_classes_are_kept():
    boxes, classes = np.float32([[10 * k, 0, 10 * k + 9, 9] for k in range(6)]), np.arange(6) % 3
    scores = np.linspace(0.9, 0.4, 6).astype(np.float32)
    for keep, left in ((None, 6), ({0, 2}, 4), ([1], 2), (set(), 0), ((7,), 0)):
        found = kept(boxes, classes, scores, Model("m", class_ids=keep))[1]
        assert len(found) == left and (keep is None or set(found) <= set(keep))


def test_class_names_given_as_a_string_are_refused_with_a_hint_at_the_missing_comma(monkeypatch):
    monkeypatch.setattr(func, "CLASSES", ("helmet"))
    heads, frame = random_heads(1, classes=2), np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ModelError, match=r'is the string "helmet".*\("helmet",\)'):
        func.detect(Context(heads), frame)
    named = Context(heads, model_of(heads, names=["a", "b"]))
    assert func.detect(named, frame).name(1) == "b"


def test_the_settings_in_func_py_apply_if_the_model_has_none(monkeypatch):
    heads, frame = random_heads(1, 0.05, classes=2), np.zeros((640, 640, 3), np.uint8)
    every = func.detect(Context(heads), frame)
    monkeypatch.setattr(func, "OBJ_THRESH", 0.5)
    monkeypatch.setattr(func, "CLASSES", ("cat", "dog"))
    found = func.detect(Context(heads), frame)
    assert 0 < len(found) == (every.scores > 0.5).sum() < len(every) and found.name(1) == "dog"
    monkeypatch.setattr(func, "NMS_THRESH", 1.0)
    assert len(func.detect(Context(heads), frame)) > len(found)
    half = {stride: [(w / 2, h / 2) for w, h in sizes] for stride, sizes in func.ANCHORS.items()}
    monkeypatch.setattr(func, "ANCHORS", half)
    smaller = func.detect(Context(heads), frame)
    assert np.median(smaller.boxes[:, 2] - smaller.boxes[:, 0]) < 0.7 * np.median(
        found.boxes[:, 2] - found.boxes[:, 0]
    )


def test_class_numbers_and_one_message_are_shown_if_the_names_do_not_fit_the_model(
    capfd,
):
    heads = random_heads(1, 0.05, classes=31)  # in no other test
    context = Context(heads, model_of(heads))
    threads = [
        threading.Thread(target=func.detect, args=(context, np.zeros((72, 128, 3), np.uint8)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert func.detect(context, np.zeros((72, 128, 3), np.uint8)).name(3) == "3"
    assert capfd.readouterr().err.count("The model has 31 classes without names") == 1
    same = random_heads(1)
    assert (
        func.detect(Context(same, model_of(same)), np.zeros((72, 128, 3), np.uint8)).name(3)
        == COCO_CLASSES[3]
    )


@pytest.mark.parametrize(
    "shapes, more, read",
    [
        ([(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)], {}, True),
        ([(1, 255, 20, 20), (1, 255, 80, 80), (1, 255, 40, 40)], {"task": "detect"}, True),
        ([(1, 3, 11, 80, 80), (1, 3, 11, 40, 40), (1, 3, 11, 20, 20)], {}, True),
        ([(1, 255, 48, 80), (1, 255, 24, 40), (1, 255, 12, 20)], {"size": (640, 384)}, True),
        ([(1, 255, 48, 80), (1, 255, 24, 40), (1, 255, 12, 20)], {}, False),
        ([(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)], {"task": "segment"}, False),
        (
            [(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)],
            {"path": "yolov7-tiny.rknn"},
            False,
        ),
        # YOLOX
        ([(1, 18, 80, 80), (1, 18, 40, 40), (1, 18, 20, 20)], {"names": ["n"] * 13}, False),
        ([(1, 84, 8400)], {}, False),
        ([(1, 1000)], {}, False),
        ([], {}, True),
        ([], {"task": "classify"}, False),
        ([(1, 85, 80, 80), (1, 85, 40, 40), (1, 85, 20, 20)], {}, False),
        ([(1,)] * 3, {}, False),
        ([()] * 3, {}, False),
    ],
)
def test_reads_recognises_its_models(shapes, more, read):
    model = Model(
        **{
            "path": "m.rknn",
            "size": (640, 640),
            "outputs": [("o", shape) for shape in shapes],
            **more,
        }
    )
    assert func.reads(model) == read


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_the_maximum_of_a_column_may_be_negative(dtype):
    values = np.random.default_rng(0).normal(-40, 20, (80, 500)).astype(dtype)
    np.testing.assert_array_equal(Raw(values).highest(), values.max(0))


@pytest.mark.parametrize(
    "body, joined",
    [
        ("return draw(IMG, detect(rknn_lite, IMG))", True),
        ("found = detect(rknn_lite, IMG)\n    return draw(IMG, found)", False),
        ("return draw(IMG, detect(rknn_lite, IMG))[:, ::-1]", False),
        ("return draw(IMG, detect(rknn_lite, IMG[200:]))", False),
        ("return IMG", False),
        ("return cv2.flip(draw(IMG, detect(rknn_lite, IMG)), 1)", False),
    ],
)
def test_an_edited_myfunc_runs_although_detect_and_draw_are_in_the_file(tmp_path, body, joined):
    text = (ROOT / "func.py").read_text().replace("return draw(IMG, detect(rknn_lite, IMG))", body)
    (tmp_path / "mine.py").write_text(text)
    assert funcs.has_detections(funcs.load(str(tmp_path / "mine.py"))) == joined
