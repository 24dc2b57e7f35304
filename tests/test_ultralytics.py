"""funcs/ultralytics.py: each layout of Ultralytics' exports, with real detections. layouts.py
builds them from the demo models."""

import json
import math
import os
from types import SimpleNamespace

import cv2
import layouts
import numpy as np
import pytest
from conftest import opened_demo

import func
import funcs
from funcs import resnet, ultralytics, yolov8
from runtimes.cpu import RKNNLite
from vision.coco import COCO_CLASSES
from vision.detections import Detections
from vision.drawing import draw
from vision.errors import InputError, ModelError
from vision.masks import masks_of
from vision.model import Model, describe, read_names
from vision.nms import MAX_BOXES, rotated_nms
from vision.quantised import Raw
from vision.rotated import similarity
from vision.settings import Settings

NAMES = dict(enumerate(COCO_CLASSES))
LAYOUTS = {
    **{task: dict(task=task) for task in ("detect", "segment", "pose", "obb")},
    **{
        f"{task} end2end": dict(task=task, end2end=True)
        for task in ("detect", "segment", "pose", "obb")
    },
    **{
        f"{task} relative": dict(task=task, relative=True)
        for task in ("detect", "segment", "pose", "obb")
    },
    "detect 640 x 384": dict(size=(640, 384)),
    "relative 640 x 384": dict(relative=True, size=(640, 384)),
    "segment 640 x 384": dict(task="segment", size=(640, 384)),
    "pose 384 x 640": dict(task="pose", size=(384, 640)),
    "obb 640 x 384": dict(task="obb", size=(640, 384)),
    "yolov5": None,
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """opened(name): a context with one of LAYOUTS, and its model's metadata."""
    folder, contexts = tmp_path_factory.mktemp("layouts"), {}

    def open_layout(name):
        if name not in contexts:
            options = LAYOUTS[name]
            built = layouts.yolov5_own() if options is None else layouts.ultralytics(**options)
            options = options or {}
            about = {
                "task": options.get("task", "detect"),
                "names": NAMES,
                "relative": options.get("relative", False),
            }
            about.update(kpt_shape=[17, 3]) if about["task"] == "pose" else None
            path = layouts.save(built, folder / f"{name.replace(' ', '_')}.onnx", **about)
            context = RKNNLite()
            assert context.load_rknn(str(path)) == 0 and context.init_runtime() == 0, context.error
            context.model = describe(path)
            contexts[name] = context
        return contexts[name]

    return open_layout


@pytest.fixture(scope="module")
def frame(demo_frames):
    return demo_frames[40]


@pytest.fixture(scope="module")
def plain(frame):
    """The same objects from Rockchip's heads, read by func.py and funcs/yolov8.py, with
    Ultralytics' IoU threshold."""
    found = {}
    for name, reader in (("yolov8n", yolov8), ("yolov5n", func)):
        context = opened_demo(name)
        context.model.iou = 0.7 if name == "yolov8n" else None
        found[name] = reader.detect(context, frame)
    return found


def overlap(a, b):
    """IoU of two masks or of two boxes (4,) xyxy."""
    if a.ndim == 2:
        return (a & b).sum() / max(1, (a | b).sum())
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner)


def same_objects(found, expected, pixels=0.05, score=1e-3):
    """Assert that two Detections have the same objects, in any order."""
    assert len(found) == len(expected) > 15
    for box, number, value in zip(*expected):
        off = (
            np.abs(found.boxes - box).max(1)
            + np.abs(found.scores - value)
            + 1000 * (found.classes != number)
        )
        assert off.min() <= pixels + score, (number, value, off.min())


@pytest.mark.parametrize("name", LAYOUTS)
def test_only_this_file_reads_each_layout(opened, name):
    model = opened(name).model
    assert [module for module in (func, yolov8, resnet, ultralytics) if module.reads(model)] == [
        ultralytics
    ]


@pytest.mark.parametrize(
    "name", ["detect", "detect relative", "segment", "segment relative", "pose", "pose relative"]
)
def test_the_objects_are_the_same_as_from_the_heads(opened, frame, plain, name):
    found = ultralytics.detect(opened(name), frame)
    same_objects(found, plain["yolov8n"])
    assert (np.diff(found.scores) <= 0).all()
    assert found.name(found.classes[0]) == COCO_CLASSES[found.classes[0]]


def test_yolov5s_own_export_gives_the_same_objects_as_its_heads(opened, frame, plain):
    same_objects(ultralytics.detect(opened("yolov5"), frame), plain["yolov5n"])


@pytest.mark.parametrize(
    "name", ["detect 640 x 384", "relative 640 x 384", "segment 640 x 384", "pose 384 x 640"]
)
def test_objects_have_the_right_positions_with_a_rectangular_input(opened, frame, plain, name):
    found, expected = ultralytics.detect(opened(name), frame), plain["yolov8n"]
    large = [place for place, box in enumerate(expected.boxes) if expected.scores[place] > 0.8]
    hits = [
        place
        for place in large
        if any(
            number == expected.classes[place] and overlap(box, expected.boxes[place]) > 0.7
            for box, number in zip(found.boxes, found.classes)
        )
    ]
    # in an upright input a landscape frame is a third as large
    least = 0.9 if "640 x" in name else 0.5
    assert len(hits) >= least * len(large) > 10


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_end2end_rows_are_used_unchanged(opened, frame, task):
    one_output, rows = opened(task), opened(f"{task} end2end")
    one_output.model.iou = 1.0  # the end2end model of layouts.py has no NMS
    try:
        expected, found = ultralytics.detect(one_output, frame), ultralytics.detect(rows, frame)
    finally:
        one_output.model.iou = None
    same_objects(found, expected)
    assert len(found) > 100


@pytest.mark.parametrize("name", ["segment", "segment relative", "segment 640 x 384"])
def test_masks_are_ellipses_inside_their_boxes(opened, frame, name):
    found = ultralytics.detect(opened(name), frame)
    h, w = frame.shape[:2]
    y, x = np.mgrid[:h, :w] + 0.5
    checked = 0
    for (x1, y1, x2, y2), (left, top, mask) in zip(found.boxes, found.masks):
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        assert (
            left >= x1
            and top >= y1
            and left + mask.shape[1] <= x2 + 1
            and top + mask.shape[0] <= y2 + 1
        )
        if min(x1, y1) <= 0 or x2 >= w or y2 >= h or min(x2 - x1, y2 - y1) < 20:
            continue  # clipped, or too small
        whole = np.zeros((h, w), bool)
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        ellipse = ((x - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + (
            (y - (y1 + y2) / 2) / (y2 - y1) * 2
        ) ** 2 < 1
        assert overlap(whole, ellipse) > 0.95
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("name", ["pose", "pose relative", "pose 384 x 640", "pose end2end"])
def test_key_points_have_the_models_positions(opened, frame, name):
    found = ultralytics.detect(opened(name), frame)
    h, w = frame.shape[:2]
    inside = [
        place
        for place, box in enumerate(found.boxes)
        if box[:2].min() > 0 and box[2] < w and box[3] < h
    ]
    boxes = found.boxes[inside]
    expected = ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None] + layouts.POINTS * (
        boxes[:, 2:] - boxes[:, :2]
    )[:, None]
    np.testing.assert_allclose(found.keypoints[inside][..., :2], expected, atol=0.1)
    np.testing.assert_allclose(found.keypoints[..., 2], 0.9, atol=1e-3)
    assert (
        found.keypoints[..., 0].max() <= w
        and found.keypoints[..., 1].max() <= h
        and found.keypoints.min() >= 0
    )
    assert len(inside) > 10


@pytest.mark.parametrize("name", ["obb", "obb relative", "obb end2end"])
def test_rotated_boxes_have_corners_and_an_upright_box_around_them(opened, frame, plain, name):
    found = ultralytics.detect(opened(name), frame)
    checked = 0
    for box, number, score in zip(*plain["yolov8n"]):
        if box[:2].min() <= 0 or box[2] >= frame.shape[1] or box[3] >= frame.shape[0]:
            continue
        place = (np.abs(found.scores - score) + (found.classes != number)).argmin()
        angle = layouts.ANGLE + layouts.TURN * number
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        corners = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) / 2 * (box[2:] - box[:2])
        expected = corners @ turn.T + (box[:2] + box[2:]) / 2
        np.testing.assert_allclose(found.corners[place], expected, atol=0.1)
        checked += 1
    assert checked > 10
    np.testing.assert_array_equal(
        found.boxes, np.concatenate([found.corners.min(1), found.corners.max(1)], 1)
    )


def quantised(array):
    """Quantise an output like the NPU: (int8 array, scale, zero point)."""
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    scale = (high - low) / 255 or 1.0
    zero = round(-128 - low / scale)
    return np.clip(np.round(array / scale) + zero, -128, 127).astype(np.int8), scale, zero


class Int8:
    """A context with int8 outputs, which the vendor's library can return."""

    def __init__(self, context):
        self.context, self.model = context, context.model

    def inference_raw(self, inputs):
        return [quantised(output) for output in self.context.inference(inputs)]


# not segment: the mask coefficients of layouts.py are in the hundreds, so that int8 would round all
# scores to 0
@pytest.mark.parametrize("task", ["detect", "pose", "obb"])
def test_int8_outputs_with_relative_coordinates_give_the_same_objects(opened, frame, task):
    context = opened(f"{task} relative")
    found, expected = ultralytics.detect(Int8(context), frame), ultralytics.detect(context, frame)
    sure = expected.select(expected.scores > 0.5)
    # One step of int8 is 1 / 255 of the largest value: several pixels, because angles of several
    # radians are in the same output.
    least = 0.3 if task == "obb" else 0.6
    hits = [
        any(
            number == one and overlap(box, other) > least
            for other, one in zip(found.boxes, found.classes)
        )
        for box, number in zip(sure.boxes, sure.classes)
    ]
    assert np.mean(hits) > 0.9 and len(hits) > 10


def plain_decode(output, conf):
    """Plain code with the same results: decode all 8,400 boxes, then apply the threshold."""
    rows = output[0].T
    scores = rows[:, 4:]
    good = scores.max(1) >= conf
    boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], 1)
    return boxes[good], scores.argmax(1)[good], scores.max(1)[good]


@pytest.mark.parametrize("kind", ["float32", "int8", "float16"])
@pytest.mark.parametrize("seed, share", [(0, 0.0), (1, 0.001), (2, 0.02), (3, 0.5)])
def test_decoding_gives_the_same_boxes_as_plain_code(seed, share, kind):
    rng = np.random.default_rng(seed)
    output = rng.random((1, 84, 8400), dtype=np.float32) * np.float32(0.01)
    # int8 would round a smaller width to 0
    output[0, :4] = 0.05 + rng.random((4, 8400))
    cells = np.flatnonzero(rng.random(8400) < share)
    output[0, 4 + rng.integers(0, 80, len(cells)), cells] = rng.random(len(cells))
    raw = {
        "float32": Raw(output),
        "int8": Raw(*quantised(output)),
        "float16": Raw(output.astype(np.float16)),
    }[kind]
    stored = raw.floats()
    boxes, classes, scores = plain_decode(stored, 0.25)
    wanted = Settings()
    plan = ultralytics.layout_of_shapes([output.shape], (640, 640), "detect", 80)
    found = ultralytics.decode(raw, plan, wanted, relative=True)
    np.testing.assert_allclose(found.boxes, boxes * 640, atol=1e-3)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.scores, scores, atol=1e-3)


def test_coordinates_between_0_and_1_are_treated_as_relative(opened, frame):
    context = opened("detect relative")
    context.model.relative = False  # a .rknn without its metadata file
    try:
        found = ultralytics.detect(context, frame)
    finally:
        context.model.relative = True
    same_objects(found, ultralytics.detect(context, frame))


def test_the_models_settings_are_used(opened, frame):
    context = opened("detect")
    every = ultralytics.detect(context, frame)
    number = int(every.classes[0])
    context.model.conf, context.model.class_ids = 0.9, {number}
    try:
        found = ultralytics.detect(context, frame)
    finally:
        context.model.conf = context.model.class_ids = None
    expected = every.select((every.scores >= 0.9) & (every.classes == number))
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert 0 < len(found) < len(every)


@pytest.mark.parametrize(
    "shapes, name, task, names, expected",
    [
        ([(1, 84, 8400)], "x.rknn", None, None, ("detect", 80)),
        ([(1, 84, 8400, 1)], "x.rknn", None, None, ("detect", 80)),
        ([(1, 85, 8400)], "x.rknn", None, 80, ("obb", 80)),
        ([(1, 20, 8400)], "yolo11n-obb-rk3588.rknn", None, None, ("obb", 15)),
        ([(1, 56, 8400)], "x.rknn", None, None, ("pose", 1)),
        ([(1, 56, 8400)], "x.rknn", None, 52, ("detect", 52)),
        ([(1, 84, 8400)], "x.rknn", None, 2, ("detect", 80)),
        ([(1, 135, 8400)], "x.rknn", None, 80, ("pose", 80)),
        ([(1, 56, 8400)], "x.rknn", "detect", None, ("detect", 52)),
        ([(1, 14, 8400)], "hand-pose.rknn", None, None, ("pose", 1)),
        ([(1, 116, 8400), (1, 32, 160, 160)], "x.rknn", None, None, ("segment", 80)),
        ([(1, 32, 160, 160), (1, 116, 8400)], "x.rknn", None, None, ("segment", 80)),
        ([(1, 300, 6)], "x.onnx", None, None, ("detect", 0)),
        ([(1, 300, 7)], "x.onnx", None, None, ("obb", 0)),
        ([(1, 300, 57)], "x.onnx", None, None, ("pose", 0)),
        ([(1, 300, 57)], "x.onnx", None, 2, ("pose", 0)),
        ([(1, 25200, 85)], "x.onnx", None, None, ("detect", 80)),
        ([(1, 5, 8400)], "x.rknn", None, None, ("detect", 1)),
        # dynamic sides, as exported with dynamic=True
        ([(1, 84, 0)], "x.onnx", "detect", 80, ("detect", 80)),
        ([(1, 84, 0)], "x.onnx", None, None, ("detect", 80)),
        ([(1, 116, 0), (1, 32, 0, 0)], "x.onnx", "segment", 80, ("segment", 80)),
        ([(1, 0, 85)], "x.onnx", None, 80, ("detect", 80)),
        ([(1, 0, 6)], "x.onnx", "detect", 80, ("detect", 0)),
        ([(1, 0, 0)], "x.onnx", "detect", 80, ("detect", 0)),
    ],
)
def test_missing_metadata_is_inferred_from_shapes_and_file_name(
    shapes, name, task, names, expected
):
    model = Model(
        name,
        outputs=[("", shape) for shape in shapes],
        size=(640, 640),
        task=task,
        names=names and ["x"] * names,
    )
    plan = ultralytics.layout_of(model)
    assert (plan.task, plan.classes) == expected


@pytest.mark.parametrize(
    "shape, name, task, names, expected",
    [
        ((1, 84, 8400), "x.rknn", None, None, None),
        ((1, 6, 8400), "x.rknn", None, 2, None),
        ((1, 56, 8400), "x.rknn", None, None, None),
        ((1, 300, 6), "x.rknn", None, None, None),
        ((1, 15, 8400), "x.rknn", "detect", None, None),
        ((1, 20, 8400), "x-obb.rknn", None, None, None),
        (
            (1, 15, 8400),
            "x.rknn",
            None,
            None,
            "decoded as detect with 11 classes. If this is wrong",
        ),
        ((1, 85, 8400), "x.rknn", None, None, "decoded as detect with 81 classes. "),
        # a missing name is more likely
        ((1, 84, 8400), "x.rknn", None, 79, "decoded as obb with 79 classes. "),
        ((1, 135, 8400), "x.rknn", None, 80, "decoded as pose with 80 classes and 17 key points. "),
    ],
)
def test_a_guessed_task_is_reported(capsys, shape, name, task, names, expected):
    model = Model(
        name, outputs=[("o", shape)], size=(640, 640), task=task, names=names and ["x"] * names
    )
    funcs.apply_settings(
        SimpleNamespace(conf=None, iou=None, classes=None, names=None), model, ultralytics
    )
    error = capsys.readouterr().err
    assert (
        error == ""
        if expected is None
        else expected in error and len(error.splitlines()) == 1 and name in error
    )


@pytest.mark.parametrize(
    "shapes, task",
    [
        ([(1, 84, 8401)], None),
        ([(1, 4, 8400)], None),
        ([(1, 255, 80, 80)] * 3, None),
        ([(1, 1000)], None),
        ([], None),
        ([(1, 84, 8400), (1, 84, 8400)], None),
        ([(1, 84, 8400)], "classify"),
        ([(1, 84, 8400)], "segment"),
        ([(2, 84, 8400)], None),
        ([(1, 84, 8400), (1, 32, 160, 160), (1, 1)], None),
        ([(1, 0, 0)], None),
        ([(1, 300, 6)], "pose"),
    ],
)
def test_other_outputs_are_not_read(shapes, task):
    model = Model("x.rknn", outputs=[("", shape) for shape in shapes], size=(640, 640), task=task)
    assert not ultralytics.reads(model)


@pytest.mark.parametrize(
    "name, metadata",
    [
        ("x.onnx", {"head": "RTDETRDecoder"}),
        ("x.onnx", {"description": "Ultralytics rtdetr-l model"}),
        ("RT-DETR.onnx", {}),
    ],
)
def test_rows_of_an_rt_detr_are_not_treated_as_end2end(name, metadata):
    """Its rows are centres, widths and heights in 0..1 of a picture that was stretched, not
    letterboxed."""
    model = Model(
        name, outputs=[("o", (1, 300, 6))], size=(640, 640), task="detect", metadata=metadata
    )
    with pytest.raises(InputError, match="its outputs, .1, 300, 6.*--func FILE"):
        funcs.find(model)


@pytest.mark.parametrize(
    "inputs, expected",
    [
        (
            [("images", (4, 3, 640, 640))],
            "takes 4 pictures at a time.*export it again with batch=1",
        ),
        (
            [("images", (1, 3, 640, 640)), ("scale", (1, 2))],
            "takes 2 inputs, images, scale;.*--func FILE",
        ),
        (
            [("images", (1, 1, 640, 640))],
            r"takes an input of shape \(1, 1, 640, 640\);.*--func FILE",
        ),
        ([("x", (1, 40))], r"takes an input of shape \(1, 40\)"),
        ([("images", (1, 640, 640, 3))], None),
        ([("images", (1, 0, 0, 0))], None),
    ],
)
def test_a_model_whose_input_is_not_a_picture_is_refused_at_once(inputs, expected):
    model = Model(
        "x.onnx",
        inputs=inputs,
        outputs=[("o", (1, 84, 8400))],
        size=(640, 640),
        layout="NHWC" if inputs[0][1][-1] == 3 else "NCHW",
    )
    if expected is None:
        assert funcs.find(model) is ultralytics
        return
    with pytest.raises(InputError, match="x.onnx: " + expected):
        funcs.find(model)


def test_an_export_with_dynamic_sides_finds_the_same_objects(opened, frame, tmp_path):
    model = layouts.ultralytics()
    for value in (model.graph.input[0], model.graph.output[0]):
        for dim in list(value.type.tensor_type.shape.dim)[2:]:
            dim.ClearField("dim_value")
            dim.dim_param = "open"
    about = describe(
        layouts.save(model, tmp_path / "m.onnx", task="detect", names=NAMES, imgsz=[640, 640])
    )
    assert about.outputs[0][1] == (1, 84, 0) and funcs.find(about) is ultralytics
    context = RKNNLite()
    assert context.load_rknn(about.path) == context.init_runtime() == 0, context.error
    context.model = about
    same_objects(ultralytics.detect(context, frame), ultralytics.detect(opened("detect"), frame))


class context_of:
    """A context whose inference returns these outputs."""

    def __init__(self, *outputs, model=None):
        self.outputs, self.model = list(outputs), model

    def inference(self, inputs):
        return self.outputs


def test_outputs_of_another_model_are_reported_with_the_supported_ones(frame):
    with pytest.raises(ModelError) as error:
        ultralytics.detect(context_of(np.zeros((1, 84, 100), np.float32)), frame)
    assert "(1, 84, 100)" in str(error.value) and "(1, 84, 8400)" in str(error.value)


@pytest.mark.parametrize(
    "task, channels", [("detect", 84), ("segment", 116), ("pose", 56), ("obb", 20)]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 0.0, 0.5])
def test_invalid_outputs_raise_no_exception(frame, task, channels, value):
    outputs = [np.full((1, channels, 8400), value, np.float32)]
    outputs += [np.full((1, 32, 160, 160), value, np.float32)] * (task == "segment")
    model = Model("x.onnx", task=task, size=(640, 640))
    found = ultralytics.detect(context_of(*outputs, model=model), frame)
    assert len(found) <= MAX_BOXES
    draw(frame.copy(), found)


@pytest.mark.parametrize(
    "shape, place",
    [((1, 84, 8400), (0, 4, 7)), ((1, 300, 6), (0, 3, 4)), ((1, 25200, 85), (0, 3, 5))],
)
def test_a_score_greater_than_1_is_not_a_score(frame, shape, place):
    """A key point could be taken for a score if a model does not state its task."""
    output = np.zeros(shape, np.float32)
    box = output[0, :, 7] if shape[1] == 84 else output[0, 3]
    box[:4] = (100, 300, 300, 400) if shape[2] == 6 else (300, 300, 50, 50)
    if shape[2] == 85:
        box[4] = 1
    for score, count in ((0.9, 1), (1.004, 1), (577, 0)):
        output[place] = score
        found = ultralytics.detect(
            context_of(output, model=Model("x.onnx", size=(640, 640))), frame
        )
        assert len(found) == count and (found.scores <= 1).all()


def test_a_frame_without_objects_gives_no_detections(frame):
    for task, channels in (("detect", 84), ("segment", 116), ("pose", 56), ("obb", 20)):
        outputs = [np.zeros((1, channels, 8400), np.float32)]
        outputs += [np.ones((1, 32, 160, 160), np.float32)] * (task == "segment")
        found = ultralytics.detect(context_of(*outputs, model=Model("x.onnx", task=task)), frame)
        assert len(found) == 0 and found.boxes.shape == (0, 4)
        assert (draw(frame.copy(), found) == frame).all()


def test_the_similarity_of_rotated_boxes_is_correct():
    box = np.array([[100, 100, 80, 20, 0.3]])
    others = np.array(
        [
            [100, 100, 80, 20, 0.3],
            [100, 100, 80, 20, 0.3 + math.pi],
            [100, 100, 20, 80, 0.3 + math.pi / 2],
            [101, 100, 80, 20, 0.3],
            [100, 100, 80, 20, 0.3 + math.pi / 2],
            [500, 100, 80, 20, 0.3],
        ]
    )
    found = similarity(box, others)[0]
    np.testing.assert_allclose(found[:3], 1, atol=1e-3)  # the same rectangle
    assert 1 > found[3] > 0.9 > found[4] > found[5] and found[5] < 0.01
    np.testing.assert_allclose(similarity(others, box)[:, 0], found)
    # Two normal distributions of variance w^2 / 12 with means d apart overlap by exp(-d^2 / (8
    # variance)).
    apart = np.exp(-100 / (8 * 80**2 / 12))
    assert (
        abs(
            similarity(np.array([[0, 0, 80, 20, 0]]), np.array([[10, 0, 80, 20, 0]]))[0, 0]
            - (1 - math.sqrt(1 - apart))
        )
        < 1e-4
    )


def test_a_rotated_box_is_suppressed_by_any_better_one_of_its_class():
    rng = np.random.default_rng(5)
    boxes = np.column_stack(
        [rng.random((700, 2)) * 200, 20 + rng.random((700, 2)) * 60, rng.random(700) * 3]
    )
    classes, scores = rng.integers(0, 2, 700), rng.random(700)
    wanted = Settings(iou=0.5)
    same = similarity(boxes, boxes)
    expected = [
        place
        for place in np.argsort(-scores)
        if not any(
            scores[other] > scores[place]
            and classes[other] == classes[place]
            and same[other, place] > 0.5
            for other in range(700)
        )
    ]
    found = rotated_nms(boxes, classes, scores, wanted).tolist()
    assert found == expected and 20 < len(found) < 300
    assert len(
        rotated_nms(boxes, classes, scores, wanted._replace(class_ids=frozenset({1})))
    ) < len(found)


def test_a_mask_is_computed_only_inside_its_box(monkeypatch):
    sizes = []
    warp = cv2.warpAffine
    monkeypatch.setattr(
        cv2,
        "warpAffine",
        lambda sums, place, size, **options: (
            sizes.append((sums.size, size)) or warp(sums, place, size, **options)
        ),
    )
    prototypes = Raw(np.ones((1, 32, 160, 160), np.float32))
    found = masks_of(
        np.ones((1, 32), np.float32),
        prototypes,
        np.float32([[100, 100, 140, 120]]),
        (640, 640),
        (0, 140, 0.5, 0.5),
    )
    assert sizes[0][0] <= 7 * 5 and sizes[0][1] == (40, 20)
    assert found[0][:2] == (100, 100) and found[0][2].shape == (20, 40) and found[0][2].all()


def test_int8_masks_equal_float_masks():
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(
        rng.normal(size=(160, 160, 32)).astype(np.float32), (0, 0), 8
    ).transpose(2, 0, 1)[None]
    weights, boxes = (
        rng.normal(size=(5, 32)).astype(np.float32),
        np.float32([[10, 10, 600, 300]] * 5),
    )
    stored, scale, zero = quantised(smooth)
    placement = 0, 140, 0.5, 0.5
    masks = [
        masks_of(weights, prototypes, boxes, (640, 640), placement)
        for prototypes in (Raw(smooth), Raw(stored, scale, zero))
    ]
    for (_, _, one), (_, _, other) in zip(*masks):
        assert overlap(one.astype(bool), other.astype(bool)) > 0.97


def test_a_detection_with_an_empty_mask_is_omitted(frame):
    outputs = np.zeros((1, 116, 8400), np.float32)
    outputs[0, :4, :2] = np.float32([[100, 300], [300, 300], [50, 50], [50, 50]])
    outputs[0, 4, :2] = 0.9
    outputs[0, 84, :2] = -1, 1
    model = Model("x.onnx", task="segment")
    found = ultralytics.detect(
        context_of(outputs, np.ones((1, 32, 160, 160), np.float32), model=model), frame
    )
    assert len(found) == 1 and found.masks[0][2].all() and abs(found.boxes[0, 0] - 550) < 1


@pytest.mark.parametrize(
    "name",
    [
        "detect relative",
        pytest.param("segment", marks=pytest.mark.slow),
        pytest.param("pose", marks=pytest.mark.slow),
        pytest.param("obb 640 x 384", marks=pytest.mark.slow),
    ],
)
def test_main_py_runs_every_layout_without_editing(opened, frame, main_py, tmp_path, name):
    context = opened(name)
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    ended = main_py(tmp_path, "--model", context.model.path, "--json", "-", "--headless")
    assert ended.returncode == 0, ended.stderr
    line = json.loads(ended.stdout.splitlines()[0])
    found = ultralytics.detect(context, frame)
    assert [entry["number"] for entry in line["objects"]] == found.classes.tolist() and len(
        found
    ) > 10
    assert [entry["class"] for entry in line["objects"]] == [
        NAMES[number] for number in found.classes.tolist()
    ]
    np.testing.assert_allclose([entry["box"] for entry in line["objects"]], found.boxes, atol=0.06)
    for key, values in (("keypoints", found.keypoints), ("corners", found.corners)):
        if values is not None:
            np.testing.assert_allclose([entry[key] for entry in line["objects"]], values, atol=0.06)
    assert all(len(entry["polygon"]) > 2 for entry in line["objects"]) if found.masks else True


def test_a_board_without_a_runtime_uses_the_description_of_the_onnx(frame, main_py, tmp_path):
    path = layouts.save(
        layouts.ultralytics(size=(320, 320)), tmp_path / "m.onnx", task="detect", names=NAMES
    )
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    found = []
    for _ in range(2):
        ended = main_py(
            tmp_path / "a.png",
            "--model",
            path.with_suffix(".rknn"),
            "--json",
            "-",
            "--headless",
            env={**os.environ, "RKNN_SOC": "rk3588", "RKNNRT_LIB": "none"},
        )
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads(ended.stdout.splitlines()[0])["objects"])
        # the second time with the metadata of models/convert.py
        (tmp_path / "m.rknn").write_bytes(b"RKNN")
        (tmp_path / "metadata.yaml").write_text("relative: true")
    assert found[0] == found[1] and len(found[0]) > 5


def test_a_pose_model_without_names_finds_persons(frame):
    output = np.zeros((1, 56, 8400), np.float32)
    output[0, :5, 0] = 300, 300, 50, 50, 0.9
    found = ultralytics.detect(context_of(output, model=Model("x.rknn", size=(640, 640))), frame)
    assert [found.name(number) for number in found.classes] == [
        "person"
    ] and found.keypoints.shape == (1, 17, 3)


@pytest.mark.slow
def test_everything_that_is_found_is_drawn(opened, frame):
    for name in ("detect", "segment", "pose", "obb"):
        found = ultralytics.detect(opened(name), frame)
        drawn = ultralytics.myFunc(opened(name), frame.copy())
        assert drawn.shape == frame.shape and (drawn != frame).any()
        if name == "segment":
            boxes = draw(frame.copy(), Detections(*found))
            (x, y, mask) = found.masks[0]
            middle = y + mask.shape[0] // 2, x + mask.shape[1] // 2
            assert (
                mask[mask.shape[0] // 2, mask.shape[1] // 2]
                and (drawn[middle] != boxes[middle]).any()
            )


@pytest.mark.parametrize(
    "shapes, name",
    [
        ([("o", (1, 84, 8400))], "mine"),
        ([("o", (1, 116, 8400)), ("p", (1, 32, 160, 160))], "mine"),
        ([("o", (1, 81 + 4, 8400))], "mine-obb"),
        ([("o", (1, 25200, 85))], "mine"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_wrong_number_of_names_is_refused_if_only_the_layout_shows_it(
    tmp_path, shapes, name, given
):
    def settings(count):
        path = tmp_path / "names.txt"
        path.write_text("".join(f"name {number}\n" for number in range(count)))
        model = Model(str(tmp_path / f"{name}.rknn"), size=(640, 640), outputs=shapes)
        if not given:  # the file beside the model is used
            model.names, model.names_from = read_names(path), str(path)
        funcs.apply_settings(
            SimpleNamespace(conf=None, iou=None, classes=None, names=str(path) if given else None),
            model,
            ultralytics,
        )
        return model.names

    with pytest.raises(InputError, match=r"names\.txt: has.* 20 .*80 classes"):
        settings(20)
    assert len(settings(80)) == 80
