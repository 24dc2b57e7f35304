"""Counts of objects that cross lines, and of objects inside zones."""

import os
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from compare_trackers import detect

from results import line_drawing
from results.lines import CONFIRM_FRAMES, Lines, for_streams, parse
from results.tracking import Tracker
from vision import labels
from vision.errors import InputError

NAMES = {0: "person", 2: "car"}
DOOR = {"door": ((100, 100), (300, 100))}  # its right, "in", is below it
HEIGHT = 80  # of the boxes drawn here, pixels


def frame(number, objects, size=(640, 480), ids=True):
    """Return a result with a box 40 pixels wide for each (id, x, y of its feet, class)."""
    boxes = np.array(
        [(x - 20, y - HEIGHT, x + 20, y) for _, x, y, _ in objects], np.float32
    ).reshape(-1, 4)
    detections = SimpleNamespace(
        boxes=boxes,
        classes=np.array([one[3] for one in objects], np.int64),
        scores=np.full(len(objects), 0.9, np.float32),
        name=NAMES.get,
        ids=np.array([one[0] for one in objects], np.int64) if ids else None,
    )
    return SimpleNamespace(
        detections=detections,
        size=size,
        number=number,
        time=number / 30,
        overlay=[],
        crossings=[],
        lines=None,
        zones=None,
    )


def walk(lines, *paths, kind=0, first=0):
    """Move the objects 1, 2, ... along paths: lists of (x, y), or None if it is not detected.

    Returns the results."""
    results = []
    for number in range(max(map(len, paths))):
        visible = [
            (identity, *path[number], kind)
            for identity, path in enumerate(paths, 1)
            if number < len(path) and path[number] is not None
        ]
        results.append(frame(first + number, visible))
        lines.update(results[-1])
    return results


def down(*ys, x=200):
    return [(x, y) for y in ys]


def crossings(results):
    return [(result.number, crossing) for result in results for crossing in result.crossings]


def sums(lines):
    """Return the counts (in, out) of the line "door", over all classes."""
    return tuple(sum(lines.counts["door"][way].values()) for way in ("in", "out"))


# ------------------------------------------------------------------------------------------
# lines


def test_a_crossing_is_reported_once_with_the_frame_in_which_it_began():
    results = walk(Lines(DOOR), down(70, 80, 90, 105, 115, 125, 135, 145), first=40)
    assert crossings(results) == [
        (45, {"line": "door", "direction": "in", "id": 1, "class": "person", "since": 43})
    ]
    assert [result.lines["door"] for result in results] == 5 * [{"in": {}, "out": {}}] + 3 * [
        {"in": {"person": 1}, "out": {}}
    ]


def test_in_is_from_left_to_right_seen_from_the_first_point():
    there, back = down(70, 80, 90, 110, 120, 130, 140), down(140, 130, 120, 90, 80, 70, 60)
    for points, path, counts in (
        (((100, 100), (300, 100)), there, (1, 0)),
        (((100, 100), (300, 100)), back, (0, 1)),
        (((300, 100), (100, 100)), there, (0, 1)),
        (((300, 100), (100, 100)), back, (1, 0)),
    ):
        lines = Lines({"door": points})
        walk(lines, path)
        assert sums(lines) == counts
    # Down along x = 200: from the right of the picture to its left is from the line's left to its
    # right.
    lines = Lines({"door": ((200, 50), (200, 300))})
    walk(lines, [(x, 150) for x in (240, 230, 220, 190, 180, 170)])
    assert sums(lines) == (1, 0)
    (x1, y1), (x2, y2) = (200, 50), (200, 300)
    assert (
        (x2 - x1) * (150 - y1) - (y2 - y1) * (240 - x1)
        < 0
        < (x2 - x1) * (150 - y1) - (y2 - y1) * (170 - x1)
    )


def test_the_position_is_the_middle_of_the_lower_edge():
    lines = Lines(DOOR)
    # the box's middle crosses, its lower edge is below the line all along
    walk(lines, down(*range(101, 181, 5)))
    assert sums(lines) == (0, 0)


def test_counts_are_by_class_and_line():
    lines = Lines({**DOOR, "gate": ((100, 200), (300, 200))})
    walk(lines, down(*range(80, 250, 10)))
    walk(lines, [], down(*range(250, 50, -10)), kind=2, first=17)
    assert lines.counts == {
        "door": {"in": {"person": 1}, "out": {"car": 1}},
        "gate": {"in": {"person": 1}, "out": {"car": 1}},
    }


def test_an_object_counts_as_its_most_frequent_class():
    lines = Lines(DOOR)
    for number, y in enumerate(range(60, 150, 5)):
        # another in the frame that confirms it
        lines.update(frame(number, [(1, 200, y, 0 if y == 115 else 2)]))
    assert lines.counts["door"] == {"in": {"car": 1}, "out": {}}


@pytest.mark.parametrize("steps", [(97, 103), (97, 97, 103), (97, 103, 103), (99, 101, 100)])
def test_jitter_on_the_line_is_not_counted(steps):
    lines = Lines(DOOR)
    walk(lines, down(60, 80, 90, *(20 * steps), 90, 80, 60))
    assert sums(lines) == (0, 0)


def test_an_object_that_swings_across_the_line_counts_once():
    # To and fro, ten frames on each side: longer than any jitter.
    swing = [100 + 8 * np.sin(2 * np.pi * number / 20) for number in range(200)]
    lines = Lines(DOOR)
    walk(lines, down(60, 70, 80, 90, *swing, 110, 120, 130, 140, 150))
    assert sums(lines) == (1, 0)
    lines = Lines(DOOR)
    walk(lines, down(60, 70, 80, 90, *swing, 90, 80, 70, 60, 50))  # and goes back at the end
    assert sums(lines) == (1, 1)
    rng = np.random.default_rng(3)
    lines = Lines(DOOR)
    # stays on the line for 30 s
    walk(lines, down(60, 80, 95, *(100 + rng.normal(0, 3, 900)), 110, 120, 130, 140, 150))
    assert sums(lines) == (1, 0)


def test_an_object_that_turns_round_behind_the_line_counts_in_and_out():
    lines = Lines(DOOR)
    walk(lines, down(70, 80, 90, 110, 120, 130, 120, 110, 90, 80, 70, 60, 90, 110, 120, 130))
    assert sums(lines) == (2, 1)


def test_an_object_that_stops_behind_the_line_and_returns_later_counts_in_and_out():
    lines = Lines(DOOR)
    results = walk(lines, down(70, 80, 90, *(60 * [103]), *(60 * [97])))
    assert [number for number, _ in crossings(results)] == [5, 65]
    lines = Lines(DOOR)
    # returns at once: counts only when it stays there
    results = walk(lines, down(70, 80, 90, *(6 * [103]), *(60 * [97])))
    assert [number for number, _ in crossings(results)] == [5, 9 + 30]


def test_fewer_frames_than_the_confirmation_needs_are_not_counted():
    lines = Lines(DOOR)
    walk(lines, down(80, 90, *((CONFIRM_FRAMES - 1) * [120]), 90, 80, 90, 110, 120, 130))
    assert sums(lines) == (1, 0)


def test_a_jump_over_the_line_in_one_frame_counts():
    lines = Lines(DOOR)
    results = walk(lines, down(40, 40, 40, 220, 220, 220))
    assert [(number, crossing["since"]) for number, crossing in crossings(results)] == [(5, 3)]


def test_a_jump_counts_only_if_its_path_crosses_between_the_ends():
    for start, end, count in (
        ((80, 80), (140, 120), 1),
        ((60, 60), (120, 140), 0),
        ((320, 60), (280, 110), 1),
        ((320, 80), (340, 120), 0),
    ):
        lines = Lines(DOOR)
        walk(lines, 3 * [start] + 4 * [end])
        assert sums(lines) == (count, 0), (start, end)


def test_a_path_beyond_the_ends_does_not_count():
    lines = Lines(DOOR)
    walk(
        lines,
        down(*range(60, 150, 5), x=320),
        down(*range(60, 150, 5), x=80),
        down(*range(60, 150, 5), x=299),
    )
    assert sums(lines) == (1, 0)


def test_a_path_round_an_end_does_not_count_but_the_way_back_through_the_line_does():
    lines = Lines(DOOR)
    walk(
        lines,
        [
            (200, 60),
            (320, 60),
            (340, 90),
            (340, 110),
            (330, 130),
            (250, 130),
            (200, 130),
            (200, 125),
        ]
        + down(120, 110, 90, 80, 70, 60),
    )
    assert sums(lines) == (0, 1)


def test_a_position_exactly_on_the_line_is_on_neither_side():
    lines = Lines(DOOR)
    walk(lines, down(80, 90, 100, 100, 100, 100, 90, 80))
    assert sums(lines) == (0, 0)
    walk(lines, down(80, 90, 100, 110, 120, 130), first=10)
    assert sums(lines) == (1, 0)


def test_an_object_that_appears_behind_the_line_has_not_crossed_it():
    lines = Lines(DOOR)
    walk(lines, down(110, 120, 130, 140), down(100, 110, 120, 130), down(99, 101, 102, 110, 120))
    assert sums(lines) == (0, 0)


def test_frames_in_which_an_object_is_not_detected_change_nothing():
    lines = Lines(DOOR)
    results = walk(
        lines, [(200, 80), (200, 90), None, None, None, (200, 110), None, (200, 120), (200, 130)]
    )
    assert [(number, crossing["since"]) for number, crossing in crossings(results)] == [(8, 5)]


def test_an_object_without_identity_is_not_counted_by_lines():
    lines = Lines(DOOR)
    for number, y in enumerate(range(60, 150, 5)):
        lines.update(frame(number, [(-1, 200, y, 0)]))
    for number, y in enumerate(range(60, 150, 5)):
        result = frame(number, [(1, 200, y, 0)], ids=False)
        lines.update(result)
    assert sums(lines) == (0, 0) and result.lines == {"door": {"in": {}, "out": {}}}


def test_identities_and_lines_are_counted_separately():
    lines = Lines({**DOOR, "gate": ((200, 60), (200, 200))})
    results = walk(
        lines, [(x, x - 100) for x in range(150, 260, 10)], [(x, 150) for x in range(150, 260, 10)]
    )
    assert lines.counts == {
        "door": {"in": {"person": 1}, "out": {}},
        "gate": {"in": {}, "out": {"person": 2}},
    }
    assert sorted((crossing["line"], crossing["id"]) for _, crossing in crossings(results)) == [
        ("door", 1),
        ("gate", 1),
        ("gate", 2),
    ]


def test_the_counts_of_an_earlier_result_do_not_change():
    results = walk(
        Lines(DOOR, {"yard": [(0, 0), (640, 0), (640, 480), (0, 480)]}), down(*range(60, 150, 5))
    )
    assert results[0].lines == {"door": {"in": {}, "out": {}}} and results[0].zones == {
        "yard": {"person": 1}
    }
    assert results[-1].lines == {"door": {"in": {"person": 1}, "out": {}}}


def test_the_number_of_remembered_identities_is_limited(monkeypatch):
    monkeypatch.setattr("results.lines.MAX_IDENTITIES", 50)
    lines = Lines(DOOR)
    for number in range(500):
        lines.update(frame(number, [(number, 200, 80, 0), (100_000, 200, 50 + number / 5, 0)]))
    assert len(lines.known) == 50 and sums(lines) == (1, 0)


# ------------------------------------------------------------------------------------------
# zones

YARD = {"yard": [(100, 100), (300, 100), (300, 300), (100, 300)]}


def test_a_zone_counts_the_objects_inside_it_by_class():
    lines = Lines(None, YARD)
    results = []
    for number, objects in enumerate(
        (
            [],
            [(1, 200, 200, 0), (2, 210, 250, 0), (3, 150, 150, 2)],
            [(1, 200, 200, 0), (2, 310, 250, 0), (3, 200, 310, 2)],
            [(2, 250, 250, 0)],
        )
    ):
        results.append(frame(number, objects))
        lines.update(results[-1])
    assert [result.zones["yard"] for result in results] == [
        {},
        {"person": 2, "car": 1},
        {"person": 1},
        {"person": 1},
    ]
    assert [result.inside["yard"] for result in results] == [[], [1, 2, 3], [1], [2]]


def test_an_object_is_inside_a_zone_if_its_feet_are():
    lines = Lines(None, YARD)
    # the box overlaps the zone although the feet are outside
    results = walk(lines, down(95, 105, 295, 305))
    assert [bool(result.zones["yard"]) for result in results] == [False, True, True, False]


def test_an_object_that_disappears_inside_a_zone_is_no_longer_counted():
    results = walk(Lines(None, YARD), down(200, 210, 220) + [None, None])
    assert [result.zones["yard"] for result in results] == 3 * [{"person": 1}] + 2 * [{}]


def test_a_zone_may_be_concave():
    lines = Lines(
        None,
        {
            "yard": [
                (0, 0),
                (300, 0),
                (300, 300),
                (200, 300),
                (200, 100),
                (100, 100),
                (100, 300),
                (0, 300),
            ]
        },
    )
    results = walk(lines, [(50, 200), (150, 200), (250, 200), (150, 50)])
    assert [bool(result.zones["yard"]) for result in results] == [True, False, True, True]


def test_a_box_that_ends_at_the_frames_edge_is_inside_a_zone_that_ends_there():
    for points in (
        [(0, 240), (639, 240), (639, 479), (0, 479)],
        [(0, 0.5), (1, 0.5), (1, 1), (0, 1)],
    ):
        results = walk(Lines(None, {"yard": points}), [(200, 480), (620, 480)])
        assert [result.zones for result in results] == 2 * [{"yard": {"person": 1}}]


def test_without_a_tracker_zones_count_all_detections_and_with_it_confirmed_ones():
    lines = Lines(None, YARD)
    for ids, count in ((False, {"person": 2}), (True, {"person": 1})):
        result = frame(0, [(-1, 200, 200, 0), (4, 210, 210, 0)], ids=ids)
        lines.update(result)
        assert result.zones == {"yard": count}


def test_a_failed_frame_changes_no_count_and_a_classifier_has_no_objects():
    lines = Lines(DOOR, YARD)
    walk(lines, down(200))
    for detections, expected in (
        (None, {"person": 1}),
        (SimpleNamespace(boxes=None, classes=[0], ids=None), {}),
    ):
        result = SimpleNamespace(detections=detections, size=(0, 0), number=1, time=1, overlay=[])
        lines.update(result)
        assert result.zones == {"yard": expected} and result.crossings == []
        assert result.lines == {"door": {"in": {}, "out": {}}}


# ------------------------------------------------------------------------------------------
# fractions and settings


def test_points_are_fractions_of_the_frame_if_no_coordinate_is_greater_than_1():
    for size in ((640, 480), (1280, 720)):
        lines = Lines(
            {"door": ((0.1, 0.5), (0.9, 0.5))}, {"yard": [(0, 0.5), (1, 0.5), (1, 1), (0, 1)]}
        )
        middle = size[1] / 2
        for number, step in enumerate((-30, -20, -10, 10, 20, 30)):
            result = frame(number, [(1, size[0] / 2, middle + step, 0)], size)
            lines.update(result)
            assert result.zones["yard"] == ({"person": 1} if step > 0 else {})
        assert sums(lines) == (1, 0)
    # With one coordinate greater than 1 all are pixels.
    assert Lines({"door": ((0, 1), (1, 2))}).lines["door"].tolist() == [[0, 1], [1, 2]]
    lines = Lines({"door": ((0, 1), (1, 2))})
    lines.update(frame(0, []))
    assert lines.line_pixels["door"].tolist() == [[0, 1], [1, 2]]


def test_fractions_follow_a_camera_that_reconnects_with_another_size():
    lines = Lines({"door": ((0, 0.5), (1, 0.5))})
    walk(lines, down(300, 310, 320))
    for number, y in enumerate((340, 350, 370, 380, 390)):
        lines.update(frame(10 + number, [(2, 200, y, 0)], (1280, 720)))
    # Identity 1 was below the middle of 480 rows. At 250 of 720 it is above the middle, because
    # the size changed: it has not crossed the line.
    for number in range(5):
        lines.update(frame(20 + number, [(1, 200, 250, 0)], (1280, 720)))
    assert sums(lines) == (1, 0)


def test_flags_define_lines_and_zones_for_all_streams_or_for_one():
    assert parse(
        ["door:100,400,500.5,400", "gate/door: 0, 0.5 ,1,0.5"], ["yard:0,0,10,0,10,10"]
    ) == (
        {"door": ((100, 400), (500.5, 400)), "gate/door": ((0, 0.5), (1, 0.5))},
        {"yard": ((0, 0), (10, 0), (10, 10))},
    )
    lines, zones = parse(
        ["door:0,0,9,9", "gate/door:1,1,9,9", "gate/side:0,5,9,5"], ["yard/lawn:0,0,10,0,10,10"]
    )
    of = for_streams(["gate", "yard", "roof"], lines, zones)
    assert {name: (list(one.lines), list(one.zones)) for name, one in of.items()} == {
        "gate": (["door", "side"], []),
        "yard": (["door"], ["lawn"]),
        "roof": (["door"], []),
    }
    assert of["gate"].lines["door"].tolist() == [[1, 1], [9, 9]]
    assert of["yard"].lines["door"].tolist() == [[0, 0], [9, 9]]
    assert for_streams(["gate", "yard"], {"gate/door": ((0, 0), (9, 9))}, {})["yard"] is None
    walk(of["gate"], [(4, 9), (4, 9), (4, 9), (4, 1), (4, 1), (4, 1)])
    assert of["gate"].counts["side"] == {"in": {}, "out": {"person": 1}}
    assert of["yard"].counts["door"] == {"in": {}, "out": {}}  # each stream counts for itself


@pytest.mark.parametrize(
    "text, says",
    [
        ("door", "--line door: must be a name, a colon and four numbers"),
        ("door:1,2,3", "four numbers"),
        ("door:1,2,3,4,5", "four numbers"),
        ("door:1,2,3,x", "four numbers"),
        ("door:", "four numbers"),
        (":1,2,3,4", "its name must consist of"),
        ("gate/:1,2,3,4", "its name must consist of"),
        ("/door:1,2,3,4", "its name must consist of"),
        ("a+b:1,2,3,4", "its name must consist of"),
        ("1,2,3,4", "a name, a colon"),
        ("door:nan,2,3,4", "finite"),
        ("door:1,2,inf,4", "finite"),
        ("door:5,5,5,5", "same point"),
        ("door:0.1,0.5,600,0.5", r"mixes fractions of the frame \(0.1\) and pixels \(600\)"),
    ],
)
def test_an_invalid_line_is_refused_with_a_sentence(text, says):
    with pytest.raises(InputError, match=says) as refused:
        parse([text], [])
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "yard:1,2,3,4",
            "--zone yard:1,2,3,4: must be a name, a colon and x and y of at least three points",
        ),
        ("yard:1,2,3,4,5,6,7", "at least three"),
        ("yard:a,b,c,d,e,f", "at least three"),
        ("yard", "at least three"),
        (":1,2,3,4,5,6", "its name must consist of"),
        ("yard:0,0,1,1,inf,2", "finite"),
        ("yard:0,0,5,5,9,9", "has no area"),
    ],
)
def test_an_invalid_zone_is_refused_with_a_sentence(text, says):
    with pytest.raises(InputError, match=says) as refused:
        parse([], [text])
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "lines, zones, says",
    [
        ({"door": ((0, 0),)}, {}, "The line door needs two points"),
        ({"door": 5}, {}, "needs two points"),
        ({"door": ((0, 0, 1), (2, 3, 4))}, {}, "needs two points"),
        ({"door": (("a", 0), (2, 3))}, {}, "needs two points"),
        ({"door": ((0, 0), (1,))}, {}, "needs two points"),
        ({3: ((0, 0), (9, 9))}, {}, "its name must consist of"),
        ([((0, 0), (9, 9))], {}, "must map names to points"),
        ({}, {"yard": [(0, 0), (1, 1)]}, "at least three"),
        ({}, "yard", "must map names"),
        (
            {"roof/door": ((0, 0), (9, 9))},
            {},
            "there is no stream roof. The streams are: gate, yard",
        ),
    ],
)
def test_invalid_settings_are_refused_with_a_sentence(lines, zones, says):
    with pytest.raises(InputError, match=says):
        for_streams(["gate", "yard"], lines, zones)


def test_a_duplicate_name_is_refused():
    with pytest.raises(InputError, match="door is used twice"):
        parse(["door:1,2,3,4", "door:5,6,7,8"], [])


# ------------------------------------------------------------------------------------------
# the picture


def test_lines_zones_and_counts_are_drawn_with_an_arrow_in_the_direction_in():
    lines = Lines(
        {"door": ((100, 200), (500, 200))}, {"yard": [(20, 300), (600, 300), (600, 460), (20, 460)]}
    )
    results = walk(lines, down(*range(160, 250, 10)))
    first, last = np.full((480, 640, 3), 128, np.uint8), np.full((480, 640, 3), 128, np.uint8)
    (draw,), (again,) = results[0].overlay, results[-1].overlay
    draw(first)
    again(last)
    assert (first[200, 120:480] == (80, 220, 255)).all() and (
        first[300, 100:280] == (255, 200, 80)
    ).all()
    arrow = (first[:, 290:310] == (80, 220, 255)).all(2)
    assert arrow[205:240].any() and not arrow[:197].any()  # below the line, which is its right
    changed = np.argwhere((first != last).any(2))
    # the count beside the line's second point
    assert len(changed) and (changed.min(0) > (190, 490)).all()
    draw(np.zeros((40, 30, 3), np.uint8))  # a picture that is too small for the text


def drawn(line="door", zone="yard", what="person"):
    """A picture with a line, a zone and an object of this class in it."""
    lines = Lines({line: ((100, 200), (500, 200))}, {zone: [(0, 10), (600, 10), (600, 460)]})
    found = SimpleNamespace(
        boxes=np.array([[300, 100, 350, 200]]),
        classes=np.array([0]),
        ids=np.array([1]),
        name=lambda number: what,
    )
    result = SimpleNamespace(detections=found, size=(640, 480), number=0, time=0.0, overlay=[])
    lines.update(result)
    picture = np.full((480, 640, 3), 128, np.uint8)
    result.overlay[0](picture)
    return picture


@pytest.mark.parametrize("with_pillow", [True, False])
def test_names_in_other_scripts_are_drawn_as_those_of_boxes_are(monkeypatch, with_pillow):
    """The font of OpenCV 4 has only ASCII letters."""
    printed = set()
    monkeypatch.setattr(cv2, "__version__", "4.10.0")
    monkeypatch.setattr(labels, "print_once", printed.add)
    line_drawing.row_picture.cache_clear()
    if with_pillow:
        pytest.importorskip("PIL")
    else:
        monkeypatch.setitem(sys.modules, "PIL", None)
    try:
        for argument in ("line", "zone", "what"):
            for one, other in (("café", "cafñ"), ("大门", "后院")):
                printed.clear()
                line_drawing.row_picture.cache_clear()
                alike = (drawn(**{argument: one}) == drawn(**{argument: other})).all()
                assert not alike or printed
            if not with_pillow:
                assert (drawn(**{argument: "Tür é"}) == drawn(**{argument: "Tur e"})).all()
        if not with_pillow:
            assert (drawn(line="大门") == drawn(line="line 1")).all()
            assert len(printed) == 1 and "lines and zones" in printed.pop()
    finally:
        line_drawing.row_picture.cache_clear()


# ------------------------------------------------------------------------------------------
# against the truth

STREET = {
    "middle": ((640, 100), (640, 719)),
    "lanes": ((400, 420), (400, 660)),
    "slanting": ((200, 300), (1000, 719)),
    "left": ((340, 719), (340, 0)),
    "far lane": ((900, 500), (900, 560)),
    "sky": ((700, 60), (700, 160)),
}


def true_counts(frames, ids, points):
    """Return the true counts of a line by class, {"in": ..., "out": ...}.

    They follow from the true paths of the feet: from the first and the last side, and from
    whether the path crosses between the line's ends.
    """
    (x1, y1), (x2, y2) = points
    paths, counts = {}, ({}, {})
    for boxes, names in zip(frames, ids):
        for (kind, left, _, right, bottom, seen), name in zip(boxes, names):
            if seen >= 0.4:
                paths.setdefault((name, kind), []).append(((left + right) / 2, bottom))
    for (_, kind), path in paths.items():
        x, y = np.array(path).T
        side = np.sign((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1))
        side, last = side[side != 0], side[-CONFIRM_FRAMES:]
        if len(side) and side[0] != last[0] and abs(last.sum()) == CONFIRM_FRAMES:
            over = np.flatnonzero(np.diff(np.sign((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1))))[-1]
            along = ((x[over] - x1) * (x2 - x1) + (y[over] - y1) * (y2 - y1)) / (
                (x2 - x1) ** 2 + (y2 - y1) ** 2
            )
            if 0 <= along <= 1:
                into = counts[0 if last[0] > 0 else 1]
                into[str(kind)] = into.get(str(kind), 0) + 1
    return {"in": counts[0], "out": counts[1]}


def counted(tracked, rate):
    """Return what Lines counts for STREET. tracked: (ids, boxes, classes) of each frame."""
    lines = Lines(STREET)
    for number, (ids, boxes, classes) in enumerate(tracked):
        found = SimpleNamespace(boxes=boxes, classes=classes, ids=ids, name=str)
        lines.update(
            SimpleNamespace(
                detections=found, size=(1280, 720), number=number, time=number / rate, overlay=[]
            )
        )
    return lines.counts


def true_tracks(frames, ids):
    for boxes, names in zip(frames, ids):
        boxes, names = np.array(boxes, float).reshape(-1, 6), np.array(names, int)
        seen = boxes[:, 5] >= 0.4
        yield names[seen], boxes[seen, 1:5], boxes[seen, 0].astype(int)


def detected_tracks(detections, rate):
    tracker = Tracker()
    for number, (boxes, classes, scores) in enumerate(detections):
        found = SimpleNamespace(boxes=boxes, classes=classes, scores=scores, ids=None)
        tracker.update(SimpleNamespace(detections=found, time=number / rate, number=number))
        yield found.ids, boxes, classes


@pytest.mark.parametrize("step", [1, 4, 6], ids=["60 FPS", "15 FPS", "10 FPS"])
def test_true_identities_on_the_demo_give_the_true_counts(demo_truth, step):
    frames, ids = demo_truth["frames"][::step], demo_truth["ids"][::step]
    counts = counted(true_tracks(frames, ids), 60 / step)
    assert counts == {name: true_counts(frames, ids, points) for name, points in STREET.items()}
    assert sum(sum(way.values()) for line in counts.values() for way in line.values()) > 40


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 6], ids=["30 FPS", "15 FPS", "10 FPS"])
def test_detections_and_tracks_of_the_demo_give_the_true_counts(demo_truth, demo_detections, step):
    frames, ids = demo_truth["frames"][::step], demo_truth["ids"][::step]
    counts = counted(detected_tracks(demo_detections[:: step // 2], 60 / step), 60 / step)
    assert counts == {name: true_counts(frames, ids, points) for name, points in STREET.items()}


@pytest.mark.slow
def test_another_street_gives_the_true_counts_from_true_identities_and_from_detections():
    import scene  # compare_trackers has added their folder to sys.path
    import street

    if not os.path.exists(scene.FONT):
        pytest.skip("Debian's package fonts-noto-color-emoji is not installed")
    frames, ids = [], []

    def images():
        for image, truth, names in street.street_of(street.other_cast(2), 150, 15):
            frames.append(truth)
            ids.append(names)
            yield image

    detections = detect(images())
    right = {name: true_counts(frames, ids, points) for name, points in STREET.items()}
    assert counted(true_tracks(frames, ids), 15) == right
    assert counted(detected_tracks(detections, 15), 15) == right
