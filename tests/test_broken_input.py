"""func.py and funcs/yolov8.py with invalid frames and outputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_func import Context, RawContext, stored
from test_func import random_heads as yolov5_heads
from test_yolov8 import random_heads as yolov8_heads

import func
from funcs import yolov8
from vision.coco import COCO_CLASSES
from vision.errors import ModelError
from vision.letterbox import letterbox, unletterbox
from vision.nms import MAX_BOXES
from vision.settings import pair

MODULES = {
    "yolov5": (func, yolov5_heads(1)),
    "yolov8": (yolov8, yolov8_heads(1)),
    "yolov8 without sums": (yolov8, yolov8_heads(1, outputs=6)),
}
every_module = pytest.mark.parametrize("module, heads", MODULES.values(), ids=MODULES)
FRAME = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)


def assert_valid(boxes, classes, scores, height, width):
    assert len(boxes) == len(classes) == len(scores) <= MAX_BOXES
    assert np.isfinite(boxes).all() and np.isfinite(scores).all()
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert ((0 <= classes) & (classes < len(COCO_CLASSES))).all()
    assert (np.diff(scores) <= 0).all() and (scores >= func.OBJ_THRESH).all()


# ---- outputs ----


@every_module
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0, 1e30])
def test_heads_filled_with_one_value_give_valid_boxes_or_none(module, heads, value):
    heads = [np.full_like(head, value) for head in heads]
    assert_valid(*module.detect(Context(heads), FRAME.copy()), 360, 640)
    assert module.myFunc(Context(heads), FRAME.copy()).shape == FRAME.shape


@every_module
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_few_invalid_values_affect_only_their_own_boxes(module, heads, value):
    rng, broken = np.random.default_rng(0), [head.copy() for head in heads]
    for head in broken:
        head.flat[rng.integers(0, head.size, 50)] = value
    boxes, classes, scores = module.detect(Context(broken), FRAME.copy())
    assert_valid(boxes, classes, scores, 360, 640)
    whole = len(module.detect(Context(heads), FRAME.copy()))
    assert abs(len(boxes) - whole) < 60 and len(boxes) > whole / 2


@every_module
@pytest.mark.parametrize(
    "change",
    [
        lambda heads: heads[:-1],
        lambda heads: heads + heads[:1],
        lambda heads: [],
        lambda heads: [head[:, :, 1:] for head in heads],
        lambda heads: [head[0] for head in heads],
        lambda heads: [heads[0]] * len(heads),
        lambda heads: [heads[0][:, :-1], *heads[1:]],
    ],
    ids=[
        "one less",
        "one more",
        "none",
        "a row less",
        "no batch",
        "all the same",
        "a channel less",
    ],
)
def test_outputs_of_the_wrong_number_or_shape_are_reported_in_one_sentence(module, heads, change):
    with pytest.raises(ModelError, match="the model's outputs have the shapes"):
        module.detect(Context(change(heads)), FRAME.copy())


@pytest.mark.parametrize("module", [func, yolov8], ids=["yolov5", "yolov8"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(
    "scale, zero_point", [(None, None), (0.0, 0), (-1.0, 0), (np.nan, 0), (1e30, -128), (0.1, 300)]
)
def test_any_stored_values_and_scales_give_valid_boxes_or_none(module, dtype, scale, zero_point):
    rng = np.random.default_rng(0)
    heads = MODULES["yolov5" if module is func else "yolov8"][1]
    raw = []
    for head in heads:
        whole = stored(head, dtype)
        noise = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, head.shape).astype(dtype)
        raw.append((noise,) + (whole[1:] if scale is None else (scale, zero_point)))
    assert_valid(*module.detect(RawContext(raw), FRAME.copy()), 360, 640)


# ---- frames ----


@every_module
@pytest.mark.parametrize("height, width", [(1, 1), (1, 4000), (4000, 1), (2, 3), (8000, 7)])
def test_frames_of_any_size_are_processed(module, heads, height, width):
    frame = np.zeros((height, width, 3), np.uint8)
    assert_valid(*module.detect(Context(heads), frame), height, width)
    assert module.myFunc(Context(heads), frame).shape == frame.shape


@every_module
@pytest.mark.parametrize(
    "change",
    [
        lambda frame: np.dstack([frame, frame[..., 0]]),
        lambda frame: frame[:, ::-1],
        lambda frame: np.asfortranarray(frame),
        lambda frame: frame[::2, 10:-10],
        lambda frame: np.broadcast_to(frame[:1], frame.shape),
    ],
    ids=["BGRA", "mirrored", "Fortran", "a part", "read-only"],
)
def test_the_memory_layout_of_a_frame_does_not_matter(module, heads, change):
    frame = change(FRAME.copy())
    plain = np.array(frame[..., :3], order="C")
    for found, expected in zip(
        module.detect(Context(heads), frame), module.detect(Context(heads), plain)
    ):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        module.myFunc(Context(heads), frame), module.myFunc(Context(heads), plain)
    )


@every_module
@pytest.mark.parametrize("shape", [(360, 640), (360, 640, 1)])
def test_grey_frames_come_back_in_colour_with_their_boxes(module, heads, shape):
    context = Context(heads)
    result = module.myFunc(context, FRAME[..., 0].reshape(shape).copy())
    assert result.shape == (360, 640, 3)
    assert (context.inputs[0][..., 0] == context.inputs[0][..., 1]).all()
    assert (result[..., 0] != result[..., 1]).any()


@every_module
@pytest.mark.parametrize(
    "frame",
    [
        None,
        np.zeros((0, 640, 3), np.uint8),
        np.zeros((0, 0), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros(4, np.uint8),
        "frame.jpg",
    ],
    ids=repr,
)
def test_an_argument_that_is_not_a_frame_is_refused_in_one_sentence(module, heads, frame):
    with pytest.raises(ValueError, match=r"^a frame must be an array of uint8, \(h, w, 3\), not "):
        module.myFunc(Context(heads), frame)


# ---- properties ----

sizes = st.integers(1, 8000)
sides = st.one_of(sizes, st.sampled_from([1, 2, 360, 640, 641, 1280]))


@settings(deadline=None, max_examples=200)
@given(
    sides,
    sides,
    st.sampled_from([640, (640, 384), (384, 640), (32, 2000)]),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20),
)
@pytest.mark.slow
def test_letterbox_and_its_inverse_agree_within_a_pixel(width, height, size, points):
    frame = np.zeros((height, width, 3), np.uint8)
    square, (left, top, x_scale, y_scale) = letterbox(frame, size)
    points = np.array(points) * [width, height]
    there = points * [x_scale, y_scale] + [left, top]
    assert (there >= 0).all() and (there <= np.array(pair(size)) + 1e-9).all()
    boxes = np.concatenate([there, there], 1)
    back = unletterbox(boxes, (left, top, x_scale, y_scale), frame)
    np.testing.assert_allclose(back, np.concatenate([points, points], 1), atol=1)
    picture = square[top : top + round(height * y_scale), left : left + round(width * x_scale)]
    assert not picture.any() and (square != 114).all(2).sum() == picture.shape[0] * picture.shape[1]


@st.composite
def broken_heads(draw):
    """A module and its heads: random ones, a random part of them replaced by any float32."""
    module, heads = draw(st.sampled_from(sorted(MODULES)).map(MODULES.get))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    heads = [head.copy() for head in heads]
    for head in heads:
        count = draw(st.sampled_from([0, 1, 100, head.size]))
        low, high = sorted(draw(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 2)))
        head.flat[rng.integers(0, head.size, count)] = low + (high - low) * rng.random(count)
        head.flat[rng.integers(0, head.size, 5)] = draw(st.floats(width=32))
    return module, heads


@settings(deadline=None, max_examples=100)
@given(broken_heads(), st.integers(1, 1000), st.integers(1, 1000))
@pytest.mark.slow
def test_boxes_are_finite_and_inside_the_frame_for_any_heads(case, width, height):
    module, heads = case
    assert_valid(
        *module.detect(Context(heads), np.zeros((height, width, 3), np.uint8)), height, width
    )
