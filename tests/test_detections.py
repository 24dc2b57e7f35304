"""vision.detections.Detections: arrays of fixed types and equal length, or an error in one
sentence."""

import inspect

import numpy as np
import pytest

from vision.detections import Detections
from vision.errors import ModelError


def test_detections_can_be_unpacked_and_indexed_with_all_fields():
    whole = Detections(
        np.float32([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]),
        np.array([5, 6, 7]),
        np.float32([0.9, 0.8, 0.7]),
        {5: "five"},
        np.array([11, 12, 13]),
        [(0, 0, "a"), (1, 1, "b"), (2, 2, "c")],
        np.zeros((3, 17, 3)),
        np.ones((3, 4, 2)),
    )
    boxes, classes, scores = whole
    assert (
        boxes is whole.boxes
        and classes is whole.classes
        and scores is whole.scores
        and len(whole) == 3
    )
    assert [whole.name(number) for number in classes] == ["five", "6", "7"]
    for index in (np.array([2, 0]), [2, 0], np.array([True, False, True])[::-1]):
        part = whole.select(index)
        places = [2, 0] if len(index) == 2 else [0, 2]
        assert len(part) == 2 and part.ids.tolist() == [11 + place for place in places]
        assert [mask[0] for mask in part.masks] == places and part.classes.tolist() == [
            5 + place for place in places
        ]
        assert (
            part.keypoints.shape == (2, 17, 3)
            and part.corners.shape == (2, 4, 2)
            and part.name(5) == "five"
        )
    assert len(whole.select(np.zeros(3, bool))) == len(whole.select([])) == 0
    without = Detections(None, classes, scores, ("a",) * 7).select(classes > 5)
    assert (
        without.boxes is None
        and len(without) == 2
        and [without.name(n) for n in (6, 7, -1)] == ["a", "7", "-1"]
    )


FIELDS = {
    "boxes": ([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32, (2, 4)),
    "classes": ([3, 1], np.int64, (2,)),
    "scores": ([1, 0], np.float32, (2,)),
    "ids": ([7, -1], np.int64, (2,)),
    "keypoints": ([[[1, 2, 0]], [[3, 4, 1]]], np.float32, (2, 1, 3)),
    "corners": ([[[1, 2]] * 4, [[3, 4]] * 4], np.float32, (2, 4, 2)),
}


@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.float32,
        np.float64,
        np.float16,
        np.int8,
        np.int32,
        lambda values: np.array(values).astype(">f8"),
        lambda values: tuple(np.array(value) for value in values),
    ],
)
@pytest.mark.parametrize("name", FIELDS)
def test_lists_and_arrays_of_any_numeric_type_are_converted(name, convert):
    values, dtype, shape = FIELDS[name]
    fields = {"boxes": None, "classes": [3, 1], "scores": [0.9, 0.8], name: convert(values)}
    found = getattr(Detections(**fields), name)
    assert found.dtype == dtype and found.shape == shape
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "empty", [[], (), np.empty(0), np.empty((0, 4), np.float32), np.empty((0, 6))]
)
def test_any_empty_value_is_accepted_for_no_boxes(empty):
    found = Detections(empty, [], [])
    assert found.boxes.shape == (0, 4) and found.boxes.dtype == np.float32 and len(found) == 0
    assert found.classes.dtype == np.int64 and found.scores.dtype == np.float32


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"boxes": [[1, 2, 3, 4]]}, "1 boxes, but 2 classes"),
        ({"scores": [0.9]}, "1 scores, but 2 classes"),
        ({"ids": [1, 2, 3]}, "3 ids, but 2 classes"),
        ({"masks": []}, "0 masks, but 2 classes"),
        ({"keypoints": np.zeros((1, 17, 3))}, "1 keypoints, but 2 classes"),
        ({"corners": np.zeros((3, 4, 2))}, "3 corners, but 2 classes"),
        ({"boxes": np.zeros((2, 5))}, r"boxes must have the shape \(n, 4\), not \(2, 5\)"),
        ({"boxes": [1, 2, 3, 4]}, r"boxes must have the shape \(n, 4\), not \(4,\)"),
        ({"classes": [[1], [2]]}, r"classes must have the shape \(n,\), not \(2, 1\)"),
        ({"keypoints": np.zeros((2, 17, 2))}, r"keypoints must have the shape \(n, k, 3\)"),
        ({"classes": [1.5, 2]}, r"classes must be whole numbers, not \[1.5, 2.0\]"),
        ({"classes": [np.nan, 2]}, "classes must be whole numbers"),
        ({"classes": ["cat", "dog"]}, r"classes must be numbers, not \['cat', 'dog'\]"),
        ({"scores": None}, "scores must be numbers, not None"),
        ({"boxes": [[1, 2, 3, 4], [5]]}, "boxes must be numbers"),
        ({"boxes": np.array([[None] * 4] * 2)}, "boxes must be numbers"),
    ],
)
def test_values_that_cannot_be_converted_are_refused_in_one_sentence(change, expected):
    fields = {"boxes": np.zeros((2, 4)), "classes": [1, 2], "scores": [0.9, 0.8]}
    with pytest.raises(ModelError, match=f"^Detections: {expected}") as error:
        Detections(**{**fields, **change})
    assert "\n" not in str(error.value)


def test_the_example_in_the_docstring_runs(capsys):
    lines = inspect.cleandoc(Detections.__doc__).splitlines()
    example = [line[4:] for line in lines if line.startswith(" " * 4)]
    exec("\n".join(example), {"Detections": Detections})
    assert capsys.readouterr().out == "dog 1\n"
