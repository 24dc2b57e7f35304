"""Tracking: an object keeps its identity, from frame to frame and through what a detector misses."""
from types import SimpleNamespace

import numpy as np
import pytest
from compare_trackers import assign, own, score, truth_of

from results.tracking import LOST, Tracker


def see(tracker, time, boxes, classes=None, scores=None, number=None):
    """One frame; returns the identities."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    found = SimpleNamespace(boxes=boxes, ids=None,
                            classes=np.array(classes if classes is not None else len(boxes) * [0], np.int64),
                            scores=np.array(scores if scores is not None else len(boxes) * [0.9], np.float32))
    tracker.update(SimpleNamespace(detections=found, time=time, number=number if number is not None else
                                   round(30 * (time or 0))))
    assert found.ids.dtype == np.int64 and found.ids.shape == (len(boxes),)
    return found.ids.tolist()


def box(x, y=100, width=40, height=80):
    return [x, y, x + width, y + height]


def worn(truth, seed, miss=0.05, shake=1.5, false=0.3):
    """Detections made of the truth's boxes: shaken, some missed, a few false ones."""
    rng = np.random.default_rng(seed)
    out = []
    for _, boxes in truth:
        kept = boxes[rng.random(len(boxes)) >= miss]
        kept = kept + rng.normal(0, shake, kept.shape)
        scores = rng.uniform(0.5, 0.95, len(kept))
        if rng.random() < false:
            x, y = rng.uniform(0, (1200, 640))
            kept, scores = np.vstack([kept, box(x, y)]), np.append(scores, rng.uniform(0.25, 0.6))
        out.append((kept, np.zeros(len(kept), np.int64), scores))
    return out


@pytest.fixture(scope="module")
def truth(demo_truth):
    return truth_of(demo_truth["frames"], demo_truth["ids"])


def test_the_demos_truth_says_who_is_who(demo_truth):
    assert [len(ids) for ids in demo_truth["ids"]] == [len(boxes) for boxes in demo_truth["frames"]]
    classes, last = {}, {}
    for number, (boxes, ids) in enumerate(zip(demo_truth["frames"], demo_truth["ids"])):
        assert len(set(ids)) == len(ids)
        for (kind, *corners, _), name in zip(boxes, ids):
            assert classes.setdefault(name, kind) == kind
            if name in last:  # nobody leaps: who comes round again is another one
                before, where = last[name]
                assert np.abs(np.subtract(corners, where)).max() <= 140 + 6 * (number - before)
            last[name] = number, corners
    assert sorted(classes) == list(range(1, 44))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 6], ids=["60 FPS", "15 FPS", "10 FPS"])
def test_on_the_demo_idf1_is_0_99_with_at_most_3_switches(demo_detections, truth, step):
    figures = score(truth[::step], own(demo_detections[::step], 60 / step)[0])
    print(figures)
    assert figures.idf1 >= 0.99 and figures.switches <= 3


@pytest.mark.parametrize("step", [1, 4, 6, 12], ids=["60 FPS", "15 FPS", "10 FPS", "5 FPS"])
def test_identities_last_through_shaking_missed_and_false_boxes(truth, step):
    figures = score(truth[::step], own(worn(truth[::step], 1), 60 / step)[0])
    assert figures.idf1 >= 0.95 and figures.switches <= 5


@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_dropped_live_frames_count_as_time(truth, keep):
    rng = np.random.default_rng(2)
    served = np.flatnonzero(rng.random(len(truth)) < keep)
    tracker, found = Tracker(), []
    for number in served:
        boxes = truth[number][1]
        found.append((np.array(see(tracker, 1e9 + number / 60, boxes, number=number)), boxes))
    figures = score([truth[number] for number in served], found)
    assert figures.idf1 >= 0.99 and figures.switches <= 1


def test_an_object_out_of_sight_keeps_its_identity_where_it_goes_on_as_it_went():
    for frames_a_second in (60, 30, 10, 5):
        tracker = Tracker()
        for number in range(4 * frames_a_second):
            time = number / frames_a_second
            hidden = 2 <= time < 3.4  # behind a lorry
            ids = see(tracker, time, [] if hidden else [box(100 * time)], number=number)
            assert ids == ([] if hidden else [1])


def test_after_a_while_out_of_sight_it_is_another_one_however_few_frames_that_were():
    for gap, identity in ((0.9 * LOST, 1), (1.2 * LOST, 2)):
        tracker = Tracker()
        for number in range(90):
            see(tracker, number / 30, [box(100)])
        assert see(tracker, 89 / 30 + gap, [box(100)], number=90) == [identity]


def test_a_track_seen_for_a_moment_is_not_waited_for_long():
    tracker = Tracker()
    for number in range(45):
        see(tracker, number / 30, [box(100)] if number < 4 else [])
    assert see(tracker, 1.5, [box(100)]) == [2]


def test_two_who_pass_each_other_keep_their_identities():
    tracker = Tracker()
    for number in range(121):
        left, right = box(100 + 4 * number), box(580 - 4 * number, 110)
        boxes = [right, left] if number % 2 else [left, right]  # in whatever order they come
        if abs(left[0] - right[0]) < 24:
            boxes = [right]  # the one behind is hidden
        ids = see(tracker, number / 30, boxes)
    assert ids == [1, 2]


def test_with_few_frames_a_second_a_fast_newcomer_is_found_beside_where_it_was():
    tracker = Tracker()
    assert [see(tracker, number / 2, [box(100 + 60 * number)], number=number) for number in range(6)] == 6 * [[1]]


def test_a_weak_new_detection_has_no_identity_before_it_has_lasted():
    tracker = Tracker()
    see(tracker, 0, [])
    ids = [see(tracker, number / 30, [box(100)], scores=[0.35])[0] for number in range(1, 12)]
    assert ids[:5] == 5 * [-1] and ids[-1] == 1
    assert see(tracker, 0.5, [box(100), box(400)], scores=[0.35, 0.95]) == [1, 2]  # a strong one has it at once
    assert see(Tracker(), 0, [box(0), box(100)], scores=[0.9, 0.35]) == [1, 2]  # what a stream begins with is there


def test_a_false_detection_that_flickers_never_gets_an_identity():
    tracker = Tracker()
    see(tracker, 0, [])
    for number in range(1, 300):
        assert see(tracker, number / 30, [box(100)] if number % 2 else [], scores=[0.5] if number % 2 else []) in (
            [], [-1])


def test_a_weak_detection_goes_on_with_a_track_just_seen():
    tracker = Tracker()
    for number in range(60):
        assert see(tracker, number / 30, [box(100 + number)], scores=[0.9 if number < 20 else 0.26]) == [1]


def test_a_weak_detection_takes_no_track_that_was_out_of_sight_and_begins_none():
    for weak, identity in ((0.35, -1), (0.9, 1)):
        tracker = Tracker()
        for number in range(90):
            see(tracker, number / 30, [box(100)] if number < 60 else [])
        assert see(tracker, 3, [box(100)], scores=[weak]) == [identity]
    tracker = Tracker()
    assert {see(tracker, number / 30, [box(100)] if number else [], scores=[0.26] if number else [])[-1:] == [1]
            for number in range(60)} == {False}


def test_a_detector_that_wavers_between_classes_does_not_change_who_it_is():
    tracker = Tracker()
    assert [see(tracker, number / 30, [box(100 + number)], classes=[2 if number % 3 else 7])[0]
            for number in range(30)] == 30 * [1]


def test_one_object_taken_for_two_has_one_identity():
    tracker = Tracker()
    for number in range(60):
        assert see(tracker, number / 30, [box(100 + number), box(102 + number, 101)], classes=[2, 7],
                   scores=[0.9, 0.6]) == [1, -1]


def test_of_two_in_one_place_the_class_that_was_there_goes_on():
    tracker = Tracker()
    for number in range(30):
        see(tracker, number / 30, [box(100)], classes=[2])
    assert see(tracker, 1, [box(101), box(101)], classes=[7, 2], scores=[0.9, 0.9]) == [-1, 1]


def test_identities_are_never_used_twice_and_each_stream_has_its_own():
    tracker, other, seen = Tracker(), Tracker(), set()
    for number in range(50):
        ids = see(tracker, 10 * number, [box(100), box(600)], number=number)
        assert not seen & set(ids)
        seen |= set(ids)
    assert seen == set(range(1, 101))
    assert see(other, 0, [box(100)]) == [1]


@pytest.mark.parametrize("clock", [lambda number: 1000 - number / 30, lambda number: 5, lambda number: None,
                                   lambda number: number / 30 - 3600 * (number > 40)],
                         ids=["runs backwards", "stands", "is missing", "is set back"])
def test_a_clock_that_goes_wrong_costs_no_identity(clock):
    tracker = Tracker()
    for number in range(90):
        assert see(tracker, clock(number), [box(100 + 2 * number)], number=number) == [1]


def test_a_clock_that_is_set_while_a_live_stream_runs_costs_no_identity():
    """As a board without a clock of its own does, once it has asked the network."""
    tracker, camera = Tracker(), SimpleNamespace(live=True)
    for number in range(60):
        found = SimpleNamespace(boxes=np.float32([box(100 + 2 * number)]), classes=np.int64([0]), ids=None,
                                scores=np.float32([0.9]))
        moment = number / 30 + (1e9 if number >= 30 else 0)
        tracker.update(SimpleNamespace(detections=found, time=moment, number=number, stream=camera,
                                       received=7 + number / 30))
        assert found.ids.tolist() == [1]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_box_that_is_none_costs_no_other_its_identity_and_has_none(odd):
    tracker = Tracker()
    for number in range(30):
        boxes = [box(100 + 2 * number), [odd] * 4, box(500 - 2 * number)]
        assert see(tracker, number / 30, boxes) == [1, -1, 2]


def test_without_a_clock_frames_count_as_long_as_they_were_before_it_stopped():
    for dropped, identity in ((45, 1), (75, 2)):
        tracker = Tracker()
        for number in range(0, 90, 3):
            see(tracker, number / 30, [box(100)], number=number)
        assert see(tracker, None, [box(100)], number=87 + dropped) == [identity]


def test_frames_without_objects_or_without_detections_do_no_harm():
    tracker = Tracker()
    for number in range(20):
        see(tracker, number / 30, [box(100)])
    assert see(tracker, 20 / 30, []) == []
    tracker.update(SimpleNamespace(detections=None, time=21 / 30, number=21))  # a frame that failed
    found = SimpleNamespace(boxes=None, classes=np.array([3]), scores=np.array([0.9]), ids=None)
    tracker.update(SimpleNamespace(detections=found, time=22 / 30, number=22))  # a classifier's
    assert found.ids is None
    assert see(tracker, 23 / 30, [box(100)]) == [1]


def test_the_measure_knows_right_from_wrong():
    boxes = [np.array([box(100 + 2 * number), box(400 - 2 * number)], float) for number in range(40)]
    truth = [(np.array([1, 2]), pair) for pair in boxes]
    assert score(truth, truth).__dict__ == {"idf1": 1, "mota": 1, "switches": 0}
    swapped = [(np.array([7, 8] if number < 30 else [8, 7]), pair) for number, pair in enumerate(boxes)]
    assert score(truth, swapped).__dict__ == {"idf1": 0.75, "mota": 1 - 2 / 80, "switches": 2}
    missing = [(ids[:1], pair[:1]) for ids, pair in truth]
    assert score(truth, missing).__dict__ == {"idf1": 2 * 40 / (80 + 40), "mota": 0.5, "switches": 0}
    rows, columns = assign([[5, 4, 0], [4, 1, 0]])
    assert sorted(zip(rows, columns)) == [(0, 1), (1, 0)]
