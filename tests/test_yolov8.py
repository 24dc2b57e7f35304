"""What funcs/yolov8.py promises: decoding against a plain reference, and the demo model on the demo video."""

import numpy as np
import pytest

import func
from funcs import yolov8


def plain_decode(outputs):
    """The usual way, as a reference: decode the distributions of all 8,400 cells, then filter. Same results as
    yolov8.decode."""
    boxes, classes, scores = [], [], []
    step = len(outputs) // 3
    for distribution, score in zip(outputs[::step], outputs[1::step]):
        _, _, rows, columns = distribution.shape
        bins = distribution.reshape(4, 16, rows, columns)
        weights = np.exp(bins - bins.max(1, keepdims=True))
        # (4, rows, columns)
        distance = (weights / weights.sum(1, keepdims=True) * np.arange(16).reshape(1, 16, 1, 1)).sum(1)
        centre = np.stack(np.meshgrid(np.arange(columns), np.arange(rows))) + 0.5
        corners = np.concatenate([centre - distance[:2], centre + distance[2:]]) * (640 // columns)
        boxes.append(corners.reshape(4, -1).T)
        score = score.reshape(len(func.CLASSES), -1).T  # (cells, classes)
        classes.append(score.argmax(1))
        scores.append(score.max(1))
    boxes, classes, scores = map(np.concatenate, (boxes, classes, scores))
    keep = scores >= func.OBJ_THRESH
    return boxes[keep], classes[keep], scores[keep]


def random_heads(seed, share=0.01, faint=0.002, outputs=9):
    """Heads as a network gives them: `share` of the cells see an object, all others have faint scores up to `faint`."""
    rng = np.random.default_rng(seed)
    heads = []
    for size in (80, 40, 20):
        scores = rng.random((80, size, size), dtype=np.float32) * np.float32(faint)
        rows, columns = np.nonzero(rng.random((size, size)) < share)
        scores[rng.integers(0, 80, len(rows)), rows, columns] = rng.random(len(rows))
        total = scores.sum(0, keepdims=True).clip(0, 1)
        heads += [rng.normal(0, 2, (1, 64, size, size)).astype(np.float32), scores[np.newaxis], total[np.newaxis]]
    return [head for place, head in enumerate(heads) if outputs == 9 or place % 3 < 2]


@pytest.mark.parametrize("outputs", [9, 6])
@pytest.mark.parametrize("seed, share, faint", [(0, 0.0, 0.002), (1, 0.001, 0.002), (2, 0.01, 0.01), (3, 0.2, 0.002)])
def test_decoding_gives_the_boxes_of_the_plain_reference(seed, share, faint, outputs):
    heads = random_heads(seed, share, faint, outputs)
    expected_boxes, expected_classes, expected_scores = plain_decode(heads)
    boxes, classes, scores = yolov8.decode(heads)
    assert len(boxes) == len(expected_boxes) and (len(boxes) > 0) == (share > 0)
    np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_array_equal(scores, expected_scores)


def test_a_sum_rounded_down_by_int8_loses_no_box():
    heads = random_heads(1, 0.0)
    scores, total = heads[1], heads[2]
    scores[0, 7, 10, 10] = 0.2525
    total[0, 0, 10, 10] = 0.2525 - 1 / 255
    assert len(plain_decode(heads)[0]) == len(yolov8.decode(heads)[0]) == 1


def test_strides_may_come_in_any_order():
    heads = random_heads(1)
    assert len(yolov8.decode(heads[6:] + heads[:6])[0]) == len(yolov8.decode(heads)[0]) > 0


@pytest.mark.parametrize("outputs", [
    [np.zeros((1, 84, 8400), np.float32)],
    [np.zeros((1, 255, n, n), np.float32) for n in (80, 40, 20)],
    random_heads(0)[:8],
    [head[:, :20] for head in random_heads(0)],
    [],
], ids=["one output", "YOLOv5", "eight outputs", "other classes", "none"])
def test_outputs_of_another_model_are_named_with_what_was_expected(outputs):
    with pytest.raises(func.ModelError) as error:
        yolov8.decode(outputs)
    for output in outputs:
        assert str(output.shape) in str(error.value)
    assert "reads YOLOv8 with 80 classes at 640 pixels" in str(error.value)
