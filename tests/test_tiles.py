"""--tiles: the model runs on overlapping parts of each frame, and the results are merged."""

import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT
from fakes import wait_until

from meter import Meter
from results.result import FrameTask, Result
from results.tile_grid import Tiling, parse
from results.tile_merging import merged
from results.tiles import Tiles, TileTask
from results.tracking import Tracker
from rknnpool import NPUError, rknnPoolExecutor
from sources.yuv import frame_of_array
from vision.detections import Detections
from vision.errors import InputError
from vision.jpeg import frame_of_file
from vision.letterbox import letterbox

pytestmark = pytest.mark.usefixtures("no_soc", "no_thread_left")


# ---- the grid ----


@pytest.mark.parametrize("size", [(3840, 2160), (1920, 1080), (641, 359), (64, 2000)])
@pytest.mark.parametrize("grid", [(3, 2), (1, 2), (4, 4), (16, 1)])
def test_tiles_cover_the_frame_overlap_by_a_fifth_and_have_even_corners(grid, size):
    tiles = Tiling(*grid).tiles(*size, 640)
    seen = np.zeros(size[::-1], int)
    for x1, y1, x2, y2 in tiles:
        seen[y1:y2, x1:x2] += 1
        assert x1 % 2 == 0 and y1 % 2 == 0
        assert (x2 % 2 == 0 or x2 == size[0]) and (y2 % 2 == 0 or y2 == size[1])
    assert len(tiles) == grid[0] * grid[1] and seen.min() >= 1
    (x1, y1, x2, y2), last = tiles[0], tiles[-1]
    for low, high, count, side in ((x1, x2, grid[0], 0), (y1, y2, grid[1], 1)):
        if count > 1:
            following = next(tile for tile in tiles if tile[side] > 0)[side]
            assert high - following == pytest.approx(0.2 * (high - low), abs=4)
    assert last[2:] == size


@pytest.mark.parametrize(
    "size, model, count",
    [((3840, 2160), 640, 6), ((1920, 1080), 640, 2), ((1280, 720), 640, 0), ((640, 480), 320, 0)],
)
def test_auto_chooses_parts_at_most_twice_as_large_as_the_models_input(size, model, count):
    assert len(parse("auto").tiles(*size, model)) == count


@pytest.mark.parametrize("text", ["0x2", "banana", "3x", "17x1", "-1x2", "motion:", "motion:0x1"])
def test_a_wrong_value_of_tiles_is_refused_in_one_sentence(main_here, text):
    done = main_here("models/result.jpg", f"--tiles={text}")
    assert done.returncode == 2 and done.stderr.startswith(f"--tiles {text}: must be auto")
    assert len(done.stderr.splitlines()) == 1


def test_a_classifier_and_a_func_that_returns_pictures_are_refused(main_here, plain_func):
    picture = ["models/result.jpg", "--tiles", "3x2"]
    done = main_here(*picture, "--model", "models/resnet18_emoji.rknn")
    assert done.returncode == 2 and done.stderr.startswith("--tiles needs boxes, but this model ")
    done = main_here(*picture, "--func", plain_func)
    assert done.returncode == 2 and done.stderr.startswith("--tiles needs detections, but the")


# ---- merging ----


def found(*boxes):
    """Detections. Each box is (x1, y1, x2, y2, class, score)."""
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5], ("person", "car", "bus"))


TWO = [(0, 0, 600, 400), (400, 0, 1000, 400), (0, 0, 1000, 400)]  # two tiles, the whole frame


def in_frame(left=(), right=(), whole=()):
    """What is merged from boxes in the tiles TWO, given in pixels of the frame: sorted lists of
    [x1, y1, x2, y2, class, score]."""
    parts = []
    for tile, boxes in zip(TWO, (left, right, whole)):
        rows = np.array(boxes, float).reshape(-1, 6)
        parts.append(found(*(rows - [tile[0], tile[1], tile[0], tile[1], 0, 0])))
    every = merged(parts, TWO, (1000, 400))
    assert list(every.scores) == sorted(every.scores, reverse=True)
    rows = zip(every.boxes.tolist(), every.classes.tolist(), every.scores.tolist())
    return sorted([*map(round, box), number, round(score, 2)] for box, number, score in rows)


def test_an_object_across_a_seam_is_one():
    assert in_frame(left=[(300, 100, 600, 200, 1, 0.6)], right=[(400, 98, 700, 204, 1, 0.8)]) == [
        [300, 98, 700, 204, 1, 0.8]
    ]


def test_a_part_is_dropped_where_another_tile_or_the_frame_shows_the_whole_object():
    bus = [420, 100, 800, 300, 2, 0.9]
    assert in_frame(left=[(420, 100, 600, 300, 2, 0.95)], right=[bus]) == [bus]
    assert in_frame(left=[(420, 100, 600, 300, 1, 0.5)], right=[bus]) == [bus]  # like a car
    wide = [200, 100, 900, 300, 2, 0.5]
    halves = {"left": [(200, 100, 600, 300, 2, 0.9)], "right": [(400, 100, 900, 300, 2, 0.9)]}
    assert in_frame(**halves, whole=[wide]) == [wide]


def test_an_object_inside_one_tile_is_not_doubled_by_the_whole_frame():
    small, large = [100, 100, 140, 180, 0, 0.6], [50, 50, 350, 350, 1, 0.9]
    coarse = [70, 60, 160, 130, 0, 0.9]  # the model sees it too small to place it well
    assert in_frame(left=[small, large], whole=[coarse, (55, 40, 340, 350, 1, 0.8)]) == [
        large,
        small,
    ]


def test_an_object_in_two_tiles_is_one_and_neighbours_stay_two():
    one, other = [450, 100, 500, 200, 0, 0.9], [470, 100, 520, 200, 0, 0.8]
    shifted = [[x1 + 2, y1, x2 + 2, y2, number, 0.7] for x1, y1, x2, y2, number, _ in (one, other)]
    assert in_frame(left=[one, other], right=shifted) == [one, other]
    small = [420, 120, 440, 180, 0, 0.5]  # a child before a grown-up
    assert in_frame(left=[[400, 50, 500, 350, 0, 0.9]], right=[small]) == [
        [400, 50, 500, 350, 0, 0.9],
        small,
    ]
    car = [450, 100, 500, 200, 1, 0.6]  # another class
    assert in_frame(left=[one], right=[car]) == [one, car]


def reference(parts, tiles, size):
    """The rules of results/tile_merging.py, box by box: a set of (x1, y1, x2, y2, class, score)."""
    boxes = []
    for number, (tile, each) in enumerate(zip(tiles, parts)):
        near = 0.01 * max(tile[2] - tile[0], tile[3] - tile[1])
        limit = [0.2 * (tiles[0][2] - tiles[0][0]), 0.2 * (tiles[0][3] - tiles[0][1])]
        for box, kind, score in zip(each.boxes, each.classes, each.scores):
            box = [float(value) for value in box + np.float32(tile[:2] * 2)]
            inner = [tile[0] > 0, tile[1] > 0, tile[2] < size[0], tile[3] < size[1]]
            gaps = [abs(edge - value) for edge, value in zip(tile, box)]
            cut = any(within and gap <= near for within, gap in zip(inner, gaps))
            fits = box[2] - box[0] <= limit[0] and box[3] - box[1] <= limit[1]
            if number < len(tiles) - 1 or not fits:
                boxes.append((cut, -float(score), number, int(kind), box))
    boxes.sort(key=lambda entry: entry[:2])

    def areas(one, other):
        width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
        height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
        own, others = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
        return width * height, own, others

    whole, rest = [], []
    for cut, score, number, kind, box in boxes:
        for other_score, other_number, other_kind, other in whole:
            shared, own, others = areas(box, other)
            alike, smaller, larger = kind == other_kind, min(own, others), max(own, others)
            same = shared >= 0.45 * (own + others - shared)
            same |= shared >= 0.5 * smaller and larger <= 4 * smaller
            if cut:
                same = shared >= 0.5 * smaller
            covered = cut and shared >= 0.7 * own and other_score <= score
            if number != other_number and (alike and same or covered):
                break
        else:
            (rest if cut else whole).append((score, number, kind, box))
    objects = {(*box, kind, -score) for score, _, kind, box in whole}
    while rest:
        score, number, kind, box = rest.pop(0)
        members = {number}
        while True:
            for other in rest:
                shared, own, others = areas(box, other[3])
                if (
                    kind == other[2]
                    and other[1] not in members
                    and shared >= 0.5 * min(own, others)
                ):
                    break
            else:
                break
            rest.remove(other)
            members.add(other[1])
            box = [*map(min, box[:2], other[3][:2]), *map(max, box[2:], other[3][2:])]
        objects.add((*box, kind, -score))
    return objects


def test_merging_agrees_with_a_plain_reference():
    rng = np.random.default_rng(1)
    tiles, size = [*Tiling(3, 2).tiles(900, 600, 640), (0, 0, 900, 600)], (900, 600)
    joined = 0
    for _ in range(20):
        parts = []
        scores = iter(np.float32(rng.permutation(1000) / 1000))
        for x1, y1, x2, y2 in tiles:
            corner = rng.uniform(-0.1, 1, (12, 2)) * (x2 - x1, y2 - y1)
            sides = rng.uniform(20, 60, (12, 2)) * rng.choice([1, 4], (12, 1))
            boxes = np.concatenate([corner, corner + sides], 1).clip(0, [x2 - x1, y2 - y1] * 2)
            boxes = boxes[(boxes[:, 2:] > boxes[:, :2] + 1).all(1)].round()
            best = list(itertools.islice(scores, len(boxes)))
            parts.append(Detections(boxes, rng.integers(0, 2, len(boxes)), best))
        every = merged(parts, tiles, size)
        rows = zip(every.boxes.tolist(), every.classes.tolist(), every.scores.tolist())
        expected = reference(parts, tiles, size)
        assert {(*box, kind, score) for box, kind, score in rows} == expected
        given = {tuple(box + np.float32(tile[:2] * 2)) for tile, each in zip(tiles, parts)
                 for box in each.boxes}  # fmt: skip
        joined += sum(one[:4] not in given for one in expected)
    assert joined > 5


def test_masks_and_key_points_are_moved_and_joined():
    left, right, whole = (
        found((300, 100, 600, 200, 1, 0.6)),
        found((0, 100, 300, 200, 1, 0.8)),
        found(),
    )
    left.masks, right.masks, whole.masks = (
        [(300, 100, np.ones((100, 300), np.uint8))],
        [(0, 100, np.ones((100, 300), np.uint8))],
        [],
    )
    left.keypoints = np.float32([[[310, 150, 0.9], [590, 150, 0.3]]])
    right.keypoints = np.float32([[[5, 150, 0.2], [250, 160, 0.8]]])
    whole.keypoints = np.empty((0, 2, 3), np.float32)
    every = merged([left, right, whole], TWO, (1000, 400))
    (x, y, mask), *others = every.masks
    assert (x, y, mask.shape, mask.all(), others) == (300, 100, (100, 400), True, [])
    assert every.keypoints.tolist() == [
        [[310, 150, pytest.approx(0.9)], [650, 160, pytest.approx(0.8)]]
    ]


def test_rotated_boxes_are_refused():
    rotated = found((0, 0, 10, 10, 0, 0.5))
    rotated.corners = np.zeros((1, 4, 2), np.float32)
    with pytest.raises(InputError, match="--tiles cannot merge rotated boxes"):
        merged([rotated, rotated, rotated], TWO, (1000, 400))


# ---- parts of frames ----


@pytest.mark.parametrize("form", ["I420", "NV12", "YUYV"])
def test_a_part_of_a_yuv_frame_looks_like_that_part_of_the_picture(demo_frames, form):
    picture = demo_frames[0]
    if form == "YUYV":
        array = np.dstack([picture[..., 1], np.full(picture.shape[:2], 128, np.uint8)])
    else:
        array = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
        if form == "NV12":
            colours = array[720:].reshape(2, 360, 640)
            array = np.concatenate([array[:720], np.dstack(colours).reshape(360, 1280)])
    frame = frame_of_array(array, form)
    part = frame.crop(200, 100, 1000, 720)
    direct = letterbox(part, 320)[0].astype(int)
    expected = letterbox(frame.bgr()[100:720, 200:1000], 320)[0]
    assert part.shape == (620, 800, 3) and np.abs(direct - expected).mean() < 1.5
    assert np.shares_memory(part.bgr(), frame.bgr())


def test_a_part_of_a_jpeg_is_that_part(demo_frames):
    frame = frame_of_file(cv2.imencode(".jpg", demo_frames[0])[1].tobytes())
    assert (frame.crop(200, 100, 1000, 720).bgr() == frame.bgr()[100:720, 200:1000]).all()


# ---- in the pool ----

SIZE = 200, 100
HALVES = Tiles(parse("2x1"))  # two tiles and the whole frame: three runs for each frame


def pictures(numbers, live=False):
    """Results whose pictures have their number as brightness."""
    stream = SimpleNamespace(draws=False, live=live)
    for number in numbers:
        picture = np.full((*SIZE[::-1], 3), number % 256, np.uint8)
        yield Result(stream, number, number / 10, picture, time.perf_counter())


def task_of(detect):
    return TileTask(FrameTask(SimpleNamespace(detect=detect, draw=lambda IMG, _: IMG)))


def number_of(IMG):
    return int(IMG[0, 0, 0])


def one_box(context, IMG):
    """A box at the same place of each tile and of the whole frame."""
    context.inference([IMG])
    return found((20, 20, 60, 60, 0, (100 - number_of(IMG)) / 100))


def test_the_tiles_of_a_frame_run_side_by_side_and_frames_keep_their_order(runtime):
    together = threading.Barrier(3, timeout=20)

    def detect(context, IMG):
        together.wait()  # of the three runs of a frame
        return one_box(context, IMG)

    with rknnPoolExecutor("model", 3, task_of(detect), runtime=runtime) as pool:
        results = list(HALVES.map(pool, pictures(range(5))))
    assert [result.number for result in results] == [0, 1, 2, 3, 4]
    assert [result.detections.boxes[:, 0].tolist() for result in results] == [[20, 108]] * 5
    assert all(result.error is None and result.draw is not None for result in results)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_every_frame_comes_out_in_order_whatever_the_number_of_tiles_and_contexts(runtime, columns):
    with rknnPoolExecutor("model", 2, task_of(one_box), runtime=runtime) as pool:
        tiles = Tiles(parse(f"{columns}x1"))
        assert [result.number for result in tiles.map(pool, pictures(range(20)))] == [*range(20)]
    runs = sum(core.runs for core in runtime.cores.values())
    assert runs == 20 * (columns + 1 if columns > 1 else 1)


@pytest.mark.parametrize("shape", [(480, 960), (480, 960, 1), (480, 960, 4)])
@pytest.mark.parametrize("tiling", ["3x2", "motion:3x2"])
def test_grey_frames_and_those_with_alpha_are_divided_like_others(runtime, shape, tiling):
    seen = []

    def detect(context, IMG):
        seen.append(letterbox(IMG, 64)[0][32, 32].tolist())
        return found()

    module = SimpleNamespace(detect=detect, draw=lambda IMG, _: IMG, FRAMES=True)
    stream = SimpleNamespace(draws=False, live=False)
    frames = [Result(stream, n, n / 10, np.full(shape, 77, np.uint8), 0) for n in range(6)]
    with rknnPoolExecutor("model", 1, TileTask(FrameTask(module)), runtime=runtime) as pool:
        assert len(list(Tiles(parse(tiling)).map(pool, frames))) == 6
    # with motion, every third frame of a still scene runs one tile
    assert seen == [[77, 77, 77]] * (6 * 7 if tiling == "3x2" else 6 + 6 + 2)


def test_the_meter_counts_frames_not_tiles(runtime):
    meter = Meter()
    task = meter.timed(task_of(one_box))
    with rknnPoolExecutor("model", 2, task, runtime=runtime) as pool:
        assert len(list(HALVES.map(pool, pictures(range(6))))) == 6
    assert meter.figures().frames == pytest.approx(6) and meter.figures().runs == 18


def test_a_newer_live_frame_replaces_all_tiles_of_an_older_one_or_none(runtime):
    frames, go, runs = queue.Queue(), threading.Semaphore(0), []

    def detect(context, IMG):
        runs.append(number_of(IMG))
        go.acquire(timeout=20)
        return one_box(context, IMG)

    with rknnPoolExecutor("model", 1, task_of(detect), runtime=runtime) as pool:
        results = HALVES.map(pool, pictures(iter(frames.get, None), live=True), live=True)
        frames.put(0)
        wait_until(lambda: runs == [0])
        for number in (1, 2, 3):  # while the first tile of frame 0 runs
            frames.put(number)
        wait_until(lambda: results.dropped == 2)
        go.release(4)
        wait_until(lambda: len(runs) == 5)  # the second tile of frame 3 runs
        frames.put(4)
        frames.put(5)
        wait_until(lambda: results.dropped == 3)
        go.release(100)
        frames.put(None)
        numbers = [result.number for result in results]
    assert runs == [0, 0, 0, 3, 3, 3, 5, 5, 5]
    assert numbers[-1] == 5 and len(numbers) + results.dropped == 6


def test_a_slow_consumer_of_a_live_stream_gets_the_newest_result(runtime):
    runtime.seconds = 0.02  # three such runs are longer than a result may wait
    frames, begun = queue.Queue(), []

    def detect(context, IMG):
        begun.append(number_of(IMG))
        return one_box(context, IMG)

    with rknnPoolExecutor("model", 1, task_of(detect), runtime=runtime) as pool:
        results = HALVES.map(pool, pictures(iter(frames.get, None), live=True), live=True)
        for number in range(6):
            frames.put(number)
            wait_until(lambda number=number: begun.count(number) == 3)
        frames.put(None)
        assert [result.number for result in results][-1] == 5
        assert results.dropped >= 3


def test_a_frame_with_a_failed_tile_fails_as_a_whole_and_the_next_ones_do_not(runtime):
    def detect(context, IMG):
        if number_of(IMG) == 2 and IMG.shape[1] < SIZE[0]:
            context.inference = lambda inputs: None
            raise NPUError("context 1 of 1: a run failed")
        return one_box(context, IMG)

    with rknnPoolExecutor("model", 2, task_of(detect), runtime=runtime) as pool:
        results, numbers = HALVES.map(pool, pictures(range(5))), []
        for _ in range(5):
            try:
                numbers.append(next(results).number)
            except NPUError as error:
                numbers.append(-error.frame.number)
        assert next(results, None) is None
    assert numbers == [0, 1, -2, 3, 4]


def test_an_error_of_func_is_raised_at_its_frame(runtime):
    def detect(context, IMG):
        return 1 / 0 if number_of(IMG) == 1 else one_box(context, IMG)

    with rknnPoolExecutor("model", 2, task_of(detect), runtime=runtime) as pool:
        results = HALVES.map(pool, pictures(range(3)))
        assert next(results).number == 0
        with pytest.raises(ZeroDivisionError):
            next(results)
        results.close()


def test_an_unreadable_frame_comes_out_with_its_error(runtime):
    def frames():
        yield from pictures([0])
        stream = SimpleNamespace(draws=False)
        yield Result(stream, 1, 0, None, 0, error="1.jpg: cannot be read")
        yield from pictures([2])

    with rknnPoolExecutor("model", 2, task_of(one_box), runtime=runtime) as pool:
        errors = [result.error for result in HALVES.map(pool, frames())]
    assert errors == [None, "1.jpg: cannot be read", None]


@pytest.mark.parametrize("tiling", ["2x1", "motion:2x1"])
def test_a_jpeg_that_cannot_be_decoded_fails_and_the_next_frames_do_not(runtime, tiling):
    stream = SimpleNamespace(draws=False)
    jpeg = cv2.imencode(".jpg", np.zeros((*SIZE[::-1], 3), np.uint8))[1].tobytes()
    broken = jpeg[: jpeg.index(b"\xff\xda")]  # without the data of its picture
    frames = (Result(stream, n, n, frame_of_file([jpeg, broken][n == 1]), 0) for n in range(3))
    with rknnPoolExecutor("model", 2, task_of(lambda *_: found()), runtime=runtime) as pool:
        results = list(Tiles(parse(tiling)).map(pool, frames))
    assert [result.number for result in results] == [0, 1, 2]
    assert [bool(result.error) for result in results] == [False, True, False]


def test_an_error_of_the_source_comes_after_the_frames_that_were_read(runtime):
    def frames():
        yield from pictures([0, 1])
        raise InputError("the source broke")

    with rknnPoolExecutor("model", 2, task_of(one_box), runtime=runtime) as pool:
        results = HALVES.map(pool, frames())
        assert [next(results).number, next(results).number] == [0, 1]
        with pytest.raises(InputError, match="the source broke"):
            next(results)


def test_closing_ends_the_reading_and_runs_no_further_tile(runtime):
    started, go, ended = threading.Event(), threading.Event(), threading.Event()

    def frames():
        try:
            yield from pictures(itertools.count())
        finally:
            ended.set()

    def detect(context, IMG):
        started.set()
        go.wait(20)
        return one_box(context, IMG)

    with rknnPoolExecutor("model", 1, task_of(detect), runtime=runtime) as pool:
        results = HALVES.map(pool, frames())
        assert started.wait(20)
        results.close()
        assert ended.wait(20)  # in the thread that read them
        go.set()
    assert sum(core.runs for core in runtime.cores.values()) == 1


def test_releasing_the_pool_ends_the_iteration(runtime):
    started, go = threading.Event(), threading.Event()

    def detect(context, IMG):
        started.set()
        go.wait(20)
        return one_box(context, IMG)

    pool = rknnPoolExecutor("model", 1, task_of(detect), runtime=runtime)
    busy = HALVES.map(pool, pictures(itertools.count()))
    assert started.wait(20)
    waiting = HALVES.map(pool, pictures(itertools.count()))  # for the only context
    pool.release(wait=False)
    go.set()
    for results in (busy, waiting):
        with pytest.raises(CancelledError):
            for _ in results:
                pass
    pool.release()


# ---- motion ----


def moving(context, IMG):
    """A box around each white square in a part."""
    context.inference([IMG])
    squares = cv2.connectedComponentsWithStats(np.uint8(IMG[..., 0] > 127))[2][1:]
    return found(*((x, y, x + w, y + h, 0, 0.9) for x, y, w, h, _ in squares))


def street(positions, dark=0, bright=255, size=(960, 480)):
    """Results: bright squares of 40 pixels at these positions, [(x, y), ...] for each frame."""
    stream = SimpleNamespace(draws=False, live=False)
    for number, squares in enumerate(positions):
        picture = np.full((*size[::-1], 3), dark, np.uint8)
        for x, y in squares:
            picture[y : y + 40, x : x + 40] = bright
        yield Result(stream, number, number / 10, picture, 0)


def tiles_run(runtime, positions, tracker=None, **contrast):
    """[how many tiles ran, boxes found] for each frame, with 3 x 2 tiles and motion."""
    widths, out = [], []

    def detect(context, IMG):
        widths.append(IMG.shape[1])
        return moving(context, IMG)

    with rknnPoolExecutor("model", 1, task_of(detect), runtime=runtime) as pool:
        frames = street(positions, **contrast)
        results = Tiles(parse("motion:3x2")).map(pool, frames, tracker=tracker)
        for result in results:
            if tracker:
                tracker.update(result)
            out.append(result.detections.boxes.tolist())
    ends = [index for index, width in enumerate(widths) if width == 960]
    return [b - a - 1 for a, b in zip([-1, *ends], ends)], out


def test_motion_runs_only_tiles_in_which_something_moves_and_the_others_in_turn(runtime):
    # One square moves in the first tile; one in the last tile stands still.
    positions = [[(20 + 10 * number, 20), (900, 400)] for number in range(24)]
    runs, boxes = tiles_run(runtime, positions)
    assert runs[0] == 6
    assert sum(runs[1:]) == 23 + 8 and max(runs[1:]) == 2  # every third frame, one more
    for found_boxes, squares in zip(boxes, positions):
        assert sorted(found_boxes) == [[x, y, x + 40, y + 40] for x, y in squares]


def test_motion_adds_up_slow_movement(runtime):
    # One pixel in each frame changes the brightness of the cells at its edges by 9.
    positions = [[(20 + number, 20)] for number in range(40)]
    runs, boxes = tiles_run(runtime, positions, dark=100, bright=136)
    behind = [squares[0][0] - box[0] for (box,), squares in zip(boxes, positions)]
    assert max(behind) == 1 and sum(runs[1:]) < 39


def test_an_object_that_appears_or_disappears_is_seen_at_once(runtime):
    positions = [[], [], [(400, 60)], [(400, 60)], [], []]
    assert [len(boxes) for boxes in tiles_run(runtime, positions)[1]] == [0, 0, 1, 1, 0, 0]


def test_a_tile_with_a_tracked_object_that_moves_runs_even_if_it_looks_the_same(runtime):
    tracker = Tracker()
    positions = [[(20 + 20 * min(number, 8), 20)] for number in range(20)]  # it stops
    with_tracker = tiles_run(runtime, positions, tracker)[0]
    without = tiles_run(runtime, positions)[0]
    assert sum(with_tracker) > sum(without)
    assert with_tracker[9:12] == [1 + (n % 3 == 2) for n in range(9, 12)]


# ---- main.py ----


def test_without_the_flag_tiles_none_of_its_files_is_imported():
    script = "import main, sys; print([name for name in sys.modules if 'tile' in name])"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr


def test_main_finds_more_with_tiles_and_everything_downstream_gets_one_result(main_py, tmp_path):
    done = main_py(
        "models/result.jpg", "--headless", "--json", "-", "--tiles", "3x2", "--track",
        "--save", tmp_path / "found.png", "--zone", "all:0,0,1,0,1,1,0,1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["size"] == [1280, 720] and len(result["objects"]) > 20
    assert sum("id" in each for each in result["objects"]) > 20
    assert cv2.imread(str(tmp_path / "found.png")).shape == (720, 1280, 3)
