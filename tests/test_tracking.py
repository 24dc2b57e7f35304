"""Tracking: an object keeps its identity although the detector misses it in some frames."""

from types import SimpleNamespace

import numpy as np
import pytest
from compare_trackers import assign, own, score, truth_of

from results.objects import Objects
from results.tracking import LOST_SECONDS, Tracker
from vision.detections import Detections


def track(tracker, time, boxes, classes=None, scores=None, number=None):
    """Track the boxes of one frame. Returns the identities."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    found = SimpleNamespace(
        boxes=boxes,
        ids=None,
        classes=np.array(classes if classes is not None else len(boxes) * [0], np.int64),
        scores=np.array(scores if scores is not None else len(boxes) * [0.9], np.float32),
    )
    tracker.update(
        SimpleNamespace(
            detections=found,
            time=time,
            number=number if number is not None else round(30 * (time or 0)),
        )
    )
    assert found.ids.dtype == np.int64 and found.ids.shape == (len(boxes),)
    return found.ids.tolist()


def box(x, y=100, width=40, height=80):
    return [x, y, x + width, y + height]


def degraded(truth, seed, miss=0.05, shake=1.5, false=0.3):
    """Make detections of the true boxes: with jitter, missed boxes and false ones."""
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


def test_the_demos_truth_has_consistent_identities(demo_truth):
    assert [len(ids) for ids in demo_truth["ids"]] == [len(boxes) for boxes in demo_truth["frames"]]
    classes, last = {}, {}
    for number, (boxes, ids) in enumerate(zip(demo_truth["frames"], demo_truth["ids"])):
        assert len(set(ids)) == len(ids)
        for (kind, *corners, _), name in zip(boxes, ids):
            assert classes.setdefault(name, kind) == kind
            if name in last:  # no jumps: an object that reappears is a new one
                before, where = last[name]
                assert np.abs(np.subtract(corners, where)).max() <= 140 + 6 * (number - before)
            last[name] = number, corners
    assert sorted(classes) == list(range(1, 44))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 6], ids=["30 FPS", "15 FPS", "10 FPS"])
def test_on_the_demo_idf1_is_0_99_with_at_most_3_switches(demo_detections, truth, step):
    figures = score(truth[::step], own(demo_detections[:: step // 2], 60 / step)[0])
    print(figures)
    assert figures.idf1 >= 0.99 and figures.switches <= 3


@pytest.mark.parametrize("step", [1, 4, 6, 12], ids=["60 FPS", "15 FPS", "10 FPS", "5 FPS"])
def test_identities_last_despite_jitter_and_missed_and_false_boxes(truth, step):
    figures = score(truth[::step], own(degraded(truth[::step], 1), 60 / step)[0])
    assert figures.idf1 >= 0.95 and figures.switches <= 5


@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_dropped_live_frames_count_as_time(truth, keep):
    rng = np.random.default_rng(2)
    served = np.flatnonzero(rng.random(len(truth)) < keep)
    tracker, found = Tracker(), []
    for number in served:
        boxes = truth[number][1]
        found.append((np.array(track(tracker, 1e9 + number / 60, boxes, number=number)), boxes))
    figures = score([truth[number] for number in served], found)
    assert figures.idf1 >= 0.99 and figures.switches <= 1


def test_a_hidden_object_that_moves_on_steadily_keeps_its_identity():
    for frames_a_second in (60, 30, 10, 5):
        tracker = Tracker()
        for number in range(4 * frames_a_second):
            time = number / frames_a_second
            hidden = 2 <= time < 3.4  # behind a lorry
            ids = track(tracker, time, [] if hidden else [box(100 * time)], number=number)
            assert ids == ([] if hidden else [1])


def test_a_lost_object_gets_a_new_identity_after_a_time_not_a_number_of_frames():
    for gap, identity in ((0.9 * LOST_SECONDS, 1), (1.2 * LOST_SECONDS, 2)):
        tracker = Tracker()
        for number in range(90):
            track(tracker, number / 30, [box(100)])
        for number in range(90, 100):
            track(tracker, 89 / 30 + gap * (number - 89) / 11, [], number=number)
        assert track(tracker, 89 / 30 + gap, [box(100)], number=100) == [identity]


@pytest.mark.parametrize("interval", [2.1, 10, 600])
def test_identities_outlast_the_time_to_the_next_frame(interval):
    tracker = Tracker()
    for number in range(8):
        left = number >= 3  # one of the two leaves
        ids = track(tracker, number * interval, [box(100)] + [box(600)][left:], number=number)
        assert ids == [1, 2][: 2 - left]


def test_at_a_low_rate_an_object_is_forgotten_after_three_frames_without_it():
    for missing, identity in ((1, 1), (2, 1), (3, 2)):
        tracker = Tracker()
        for number in range(5):
            track(tracker, 10 * number, [box(100)], number=number)
        for number in range(5, 5 + missing):
            track(tracker, 10 * number, [], number=number)
        number = 5 + missing
        assert track(tracker, 10 * number, [box(100)], number=number) == [identity]


def test_at_a_low_rate_another_object_far_away_gets_an_identity_of_its_own():
    tracker = Tracker()
    assert track(tracker, 0, [box(100)], number=0) == [1]
    assert track(tracker, 60, [box(900)], number=1) == [2]


@pytest.mark.parametrize("interval", [1 / 30, 10])
def test_an_object_ends_only_after_the_tracker_has_forgotten_it(interval):
    tracker, objects, events = Tracker(), Objects("run"), []
    for number in range(200):
        present = number < 5 or number in (7, 8)  # missed in as many frames as it may be
        boxes = np.float32([box(100)] if present else np.empty((0, 4)))
        found = Detections(boxes, np.zeros(len(boxes), int), np.full(len(boxes), 0.9), ("car",))
        result = SimpleNamespace(
            detections=found,
            time=number * interval,
            number=number,
            crossings=[],
            inside={},
            stream=SimpleNamespace(name="yard", live=False),
        )
        tracker.update(result)
        events += [(event["event"], event["after"]["track"]) for event in objects.update(result)]
    assert events == [("appears", 1), ("ends", 1)]


def test_a_track_that_was_visible_shortly_is_kept_shortly():
    tracker = Tracker()
    for number in range(45):
        track(tracker, number / 30, [box(100)] if number < 4 else [])
    assert track(tracker, 1.5, [box(100)]) == [2]


def test_two_objects_that_pass_each_other_keep_their_identities():
    tracker = Tracker()
    for number in range(121):
        left, right = box(100 + 4 * number), box(580 - 4 * number, 110)
        boxes = [right, left] if number % 2 else [left, right]  # in alternating order
        if abs(left[0] - right[0]) < 24:
            boxes = [right]  # the one behind is hidden
        ids = track(tracker, number / 30, boxes)
    assert ids == [1, 2]


def test_a_fast_new_object_is_tracked_at_a_low_frame_rate():
    tracker = Tracker()
    assert [
        track(tracker, number / 2, [box(100 + 60 * number)], number=number) for number in range(6)
    ] == 6 * [[1]]


def test_a_weak_new_detection_gets_an_identity_after_some_frames():
    tracker = Tracker()
    track(tracker, 0, [])
    ids = [track(tracker, number / 30, [box(100)], scores=[0.35])[0] for number in range(1, 12)]
    assert ids[:5] == 5 * [-1] and ids[-1] == 1
    # a strong one gets it at once
    assert track(tracker, 0.5, [box(100), box(400)], scores=[0.35, 0.95]) == [1, 2]
    # so does every object of a stream's first frame
    assert track(Tracker(), 0, [box(0), box(100)], scores=[0.9, 0.35]) == [1, 2]


def test_a_flickering_false_detection_never_gets_an_identity():
    tracker = Tracker()
    track(tracker, 0, [])
    for number in range(1, 300):
        assert track(
            tracker,
            number / 30,
            [box(100)] if number % 2 else [],
            scores=[0.5] if number % 2 else [],
        ) in (
            [],
            [-1],
        )


def test_a_weak_detection_continues_a_recent_track():
    tracker = Tracker()
    for number in range(60):
        assert track(
            tracker, number / 30, [box(100 + number)], scores=[0.9 if number < 20 else 0.26]
        ) == [1]


def test_a_weak_detection_neither_continues_a_lost_track_nor_starts_one():
    for weak, identity in ((0.35, -1), (0.9, 1)):
        tracker = Tracker()
        for number in range(90):
            track(tracker, number / 30, [box(100)] if number < 60 else [])
        assert track(tracker, 3, [box(100)], scores=[weak]) == [identity]
    tracker = Tracker()
    assert {
        track(tracker, number / 30, [box(100)] if number else [], scores=[0.26] if number else [])[
            -1:
        ]
        == [1]
        for number in range(60)
    } == {False}


def test_an_object_keeps_its_identity_if_its_class_alternates():
    tracker = Tracker()
    assert [
        track(tracker, number / 30, [box(100 + number)], classes=[2 if number % 3 else 7])[0]
        for number in range(30)
    ] == 30 * [1]


def test_an_object_detected_twice_has_one_identity():
    tracker = Tracker()
    for number in range(60):
        assert track(
            tracker,
            number / 30,
            [box(100 + number), box(102 + number, 101)],
            classes=[2, 7],
            scores=[0.9, 0.6],
        ) == [1, -1]


def test_of_two_equal_boxes_the_one_with_the_tracks_class_continues_it():
    tracker = Tracker()
    for number in range(30):
        track(tracker, number / 30, [box(100)], classes=[2])
    assert track(tracker, 1, [box(101), box(101)], classes=[7, 2], scores=[0.9, 0.9]) == [-1, 1]


def test_identities_are_never_reused_and_each_tracker_has_its_own():
    tracker, other, seen = Tracker(), Tracker(), set()
    for number in range(50):
        place = 1000 * number  # all objects leave, and new ones come
        ids = track(tracker, 10 * number, [box(place), box(place + 500)], number=number)
        assert not seen & set(ids)
        seen |= set(ids)
    assert seen == set(range(1, 101))
    assert track(other, 0, [box(100)]) == [1]


@pytest.mark.parametrize(
    "clock",
    [
        lambda number: 1000 - number / 30,
        lambda number: 5,
        lambda number: None,
        lambda number: number / 30 - 3600 * (number > 40),
    ],
    ids=["runs backwards", "stands still", "is missing", "is set back"],
)
def test_a_wrong_clock_changes_no_identity(clock):
    tracker = Tracker()
    for number in range(90):
        assert track(tracker, clock(number), [box(100 + 2 * number)], number=number) == [1]


def test_setting_the_clock_during_a_live_stream_changes_no_identity():
    """A board without a battery sets its clock when it has a network connection."""
    tracker, camera = Tracker(), SimpleNamespace(live=True)
    for number in range(60):
        found = SimpleNamespace(
            boxes=np.float32([box(100 + 2 * number)]),
            classes=np.int64([0]),
            ids=None,
            scores=np.float32([0.9]),
        )
        moment = number / 30 + (1e9 if number >= 30 else 0)
        tracker.update(
            SimpleNamespace(
                detections=found,
                time=moment,
                number=number,
                stream=camera,
                received=7 + number / 30,
            )
        )
        assert found.ids.tolist() == [1]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_has_no_identity_and_affects_no_other(odd):
    tracker = Tracker()
    for number in range(30):
        boxes = [box(100 + 2 * number), [odd] * 4, box(500 - 2 * number)]
        assert track(tracker, number / 30, boxes) == [1, -1, 2]


def test_without_a_clock_a_frame_counts_as_the_last_known_frame_time():
    for dropped, identity in ((45, 1), (75, 2)):
        tracker = Tracker()
        for number in range(0, 90, 3):
            track(tracker, number / 30, [box(100)], number=number)
        for number in (10, 20, 30):
            track(tracker, None, [], number=87 + number)
        assert track(tracker, None, [box(100)], number=87 + dropped) == [identity]


def test_frames_without_objects_or_detections_are_accepted():
    tracker = Tracker()
    for number in range(20):
        track(tracker, number / 30, [box(100)])
    assert track(tracker, 20 / 30, []) == []
    tracker.update(SimpleNamespace(detections=None, time=21 / 30, number=21))  # a frame that failed
    found = SimpleNamespace(boxes=None, classes=np.array([3]), scores=np.array([0.9]), ids=None)
    tracker.update(SimpleNamespace(detections=found, time=22 / 30, number=22))  # a classifier's
    assert found.ids is None
    assert track(tracker, 23 / 30, [box(100)]) == [1]


def test_the_tracking_score_is_correct_for_known_cases():
    boxes = [
        np.array([box(100 + 2 * number), box(400 - 2 * number)], float) for number in range(40)
    ]
    truth = [(np.array([1, 2]), pair) for pair in boxes]
    assert score(truth, truth).__dict__ == {"idf1": 1, "mota": 1, "switches": 0}
    swapped = [
        (np.array([7, 8] if number < 30 else [8, 7]), pair) for number, pair in enumerate(boxes)
    ]
    assert score(truth, swapped).__dict__ == {"idf1": 0.75, "mota": 1 - 2 / 80, "switches": 2}
    missing = [(ids[:1], pair[:1]) for ids, pair in truth]
    assert score(truth, missing).__dict__ == {
        "idf1": 2 * 40 / (80 + 40),
        "mota": 0.5,
        "switches": 0,
    }
    rows, columns = assign([[5, 4, 0], [4, 1, 0]])
    assert sorted(zip(rows, columns)) == [(0, 1), (1, 0)]
