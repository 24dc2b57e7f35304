"""funcs/yolov8.py: decoding compared with plain code, and its settings."""

import numpy as np
import pytest
from test_func import Context, RawContext, kept, model_of, stored

from funcs import yolov8
from vision.errors import ModelError
from vision.model import Model
from vision.quantised import Raw
from vision.settings import Settings, settings_of


def decode(outputs, model=None):
    """Call decode() with the settings of a model."""
    return yolov8.decode(outputs, settings_of(model))


def plain_decode(outputs, width=640):
    """Plain code with the same results as yolov8.decode(): decode the distributions of all 8,400
    cells, then filter."""
    boxes, classes, scores = [], [], []
    step = len(outputs) // 3
    for distribution, score in zip(outputs[::step], outputs[1::step]):
        _, _, rows, columns = distribution.shape
        bins = distribution.reshape(4, 16, rows, columns)
        weights = np.exp(bins - bins.max(1, keepdims=True))
        # (4, rows, columns)
        distance = (
            weights / weights.sum(1, keepdims=True) * np.arange(16).reshape(1, 16, 1, 1)
        ).sum(1)
        centre = np.stack(np.meshgrid(np.arange(columns), np.arange(rows))) + 0.5
        corners = np.concatenate([centre - distance[:2], centre + distance[2:]]) * (
            width // columns
        )
        boxes.append(corners.reshape(4, -1).T)
        score = score.reshape(score.shape[1], -1).T  # (cells, classes)
        classes.append(score.argmax(1))
        scores.append(score.max(1))
    boxes, classes, scores = map(np.concatenate, (boxes, classes, scores))
    keep = scores >= Settings().conf
    return boxes[keep], classes[keep], scores[keep]


def random_heads(seed, share=0.01, faint=0.002, outputs=9, shape=(640, 640), count=80):
    """Random heads: a `share` of the cells has an object, the others have scores up to `faint`."""
    rng = np.random.default_rng(seed)
    heads = []
    for stride in (8, 16, 32):
        cells = shape[1] // stride, shape[0] // stride
        scores = rng.random((count, *cells), dtype=np.float32) * np.float32(faint)
        rows, columns = np.nonzero(rng.random(cells) < share)
        scores[rng.integers(0, count, len(rows)), rows, columns] = rng.random(len(rows))
        total = scores.sum(0, keepdims=True).clip(0, 1)
        heads += [
            rng.normal(0, 2, (1, 64, *cells)).astype(np.float32),
            scores[np.newaxis],
            total[np.newaxis],
        ]
    return [head for place, head in enumerate(heads) if outputs == 9 or place % 3 < 2]


@pytest.mark.parametrize("outputs", [9, 6])
@pytest.mark.parametrize(
    "seed, share, faint", [(0, 0.0, 0.002), (1, 0.001, 0.002), (2, 0.01, 0.01), (3, 0.2, 0.002)]
)
def test_decoding_gives_the_same_boxes_as_plain_code(seed, share, faint, outputs):
    heads = random_heads(seed, share, faint, outputs)
    expected_boxes, expected_classes, expected_scores = plain_decode(heads)
    boxes, classes, scores = decode(heads)
    assert len(boxes) == len(expected_boxes) and (len(boxes) > 0) == (share > 0)
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_array_equal(scores, expected_scores)


def test_strides_may_be_in_any_order():
    heads = random_heads(1)
    assert len(decode(heads[6:] + heads[:6])[0]) == len(decode(heads)[0]) > 0


@pytest.mark.parametrize(
    "outputs",
    [
        [np.zeros((1, 84, 8400), np.float32)],
        [np.zeros((1, 255, n, n), np.float32) for n in (80, 40, 20)],
        random_heads(0)[:8],
        [head[:, :20] for head in random_heads(0)],
        [head for at in (0, 3, 6) for head in random_heads(0)[at : at + 2][::-1]],
        [],
    ],
    ids=[
        "one output",
        "YOLOv5",
        "eight outputs",
        "20 channels of sides",
        "scores first",
        "none",
    ],
)
def test_outputs_of_another_model_are_reported_with_the_expected_ones(outputs):
    with pytest.raises(ModelError) as error:
        decode(outputs)
    for output in outputs:
        assert str(output.shape) in str(error.value)
    assert "funcs/yolov8.py reads YOLOv8 at 640 x 640 pixels" in str(error.value)


@pytest.mark.parametrize("outputs", [9, 6])
@pytest.mark.parametrize("shape", [(640, 384), (1280, 736), (160, 160)])
@pytest.mark.parametrize("count", [1, 6, 80])
def test_the_models_size_and_number_of_classes_are_used(shape, count, outputs):
    heads = random_heads(4, 0.05, 0.002, outputs, shape, count)
    found = decode(heads, model_of(heads, shape))
    for values, wanted in zip(found, plain_decode(heads, shape[0])):
        np.testing.assert_allclose(values, wanted, atol=1e-3)
    assert len(found[0]) > 0


@pytest.mark.parametrize("outputs", [9, 6])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_raw_outputs_give_the_same_boxes_as_floats(dtype, outputs):
    heads = random_heads(3, 0.02, 0.01, outputs)
    raw = [stored(head, dtype) for head in heads]
    floats = [Raw(*output).floats() for output in raw]
    for conf in (0.25, 0.31, 0.9):
        for values, wanted in zip(
            decode(raw, model_of(heads, conf=conf)),
            decode(floats, model_of(heads, conf=conf)),
        ):
            np.testing.assert_array_equal(values, wanted)
    frame = np.zeros((72, 128, 3), np.uint8)
    assert (
        len(yolov8.detect(RawContext(raw), frame))
        == len(yolov8.detect(Context(floats), frame))
        > 10
    )


@pytest.mark.parametrize("count", [1, 80])
@pytest.mark.parametrize("outputs, shape", [(9, (640, 640)), (6, (640, 640)), (6, (64, 64))])
@pytest.mark.parametrize("raw", [False, True])
def test_scores_before_the_sigmoid_are_read_and_none_is_greater_than_1(outputs, shape, count, raw):
    heads = random_heads(5, 0.05, 0.01, outputs, shape, count)
    logits, expected = list(heads), list(heads)
    for place in range(1, len(heads), outputs // 3):
        scores = heads[place].clip(1e-4, 1 - 1e-4)
        logits[place] = np.log(scores / (1 - scores))
        if raw:
            logits[place] = stored(logits[place])
            scores = 1 / (1 + np.exp(-Raw(*logits[place]).floats()))
        expected[place] = scores
        if outputs == 9:  # sums of logits are clipped to 0 and 1 and say nothing
            logits[place + 1] = np.zeros_like(heads[place + 1])
            expected[place + 1] = np.ones_like(heads[place + 1])
    model = model_of(heads, shape)
    found, wanted = decode(logits, model), decode(expected, model)
    assert len(found[0]) > 0 and 0.25 <= found[2].min() and found[2].max() <= 1
    for values, other in zip(found, wanted):
        np.testing.assert_allclose(values, other, atol=1e-3)


def test_a_score_is_never_greater_than_1():
    """int8 values can be a little greater than 1, invalid values much greater."""
    heads = random_heads(1, 0.0, outputs=6)
    for row, value in ((10, 1.0039), (20, 1.0), (30, 7.0)):
        heads[1][0, 3, row, row] = value
    boxes, classes, scores = kept(*decode(heads))
    assert scores.tolist() == [1, 1] and classes.tolist() == [3, 3]


def test_the_models_names_thresholds_and_classes_are_used():
    heads = random_heads(3, 0.05, count=3)
    whole = yolov8.detect(
        Context(heads, model_of(heads, names=["a", "b", "c"])), np.zeros((72, 128, 3), np.uint8)
    )
    assert set(whole.classes) == {0, 1, 2} and whole.name(2) == "c"
    part = yolov8.detect(
        Context(heads, model_of(heads, names={2: "c"}, conf=0.6, class_ids={2})),
        np.zeros((72, 128, 3), np.uint8),
    )
    assert set(part.classes) == {2} and part.scores.min() >= 0.6
    assert len(part) == ((whole.classes == 2) & (whole.scores >= 0.6)).sum()


@pytest.mark.parametrize(
    "channels, more, read",
    [
        ((64, 80, 1), {}, True),
        ((64, 80), {}, True),
        ((64, 1, 1), {"task": "detect"}, True),
        ((64, 80, 1), {"task": "segment"}, False),
        ((64, 80, 1), {"size": (640, 384)}, False),
        ((4, 80, 1), {}, False),
        ((64, 80, 1, 32), {}, False),
        ((64,), {}, False),
        ((), {}, False),
    ],
)
def test_reads_recognises_its_models(channels, more, read):
    outputs = [("o", (1, count, side, side)) for side in (80, 40, 20) for count in channels]
    assert (
        yolov8.reads(Model(**{"path": "m.rknn", "outputs": outputs, "size": (640, 640), **more}))
        == read
    )
