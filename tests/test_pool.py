"""What rknnpool.py promises, against a runtime class that counts (conftest.py)."""
import asyncio
import collections
import contextlib
import gc
import itertools
import random
import shutil
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT

import rknnpool
from rknnpool import rknnPoolExecutor


def infer(context, frame):
    return context.inference([frame])[0]


@pytest.fixture(autouse=True)
def no_soc(monkeypatch):
    """Whatever machine this is, it has no SoC but what a test says."""
    monkeypatch.setattr(rknnpool, "COMPATIBLE", "none")


@pytest.fixture
def nothing_left():
    """Fails the test where a thread outlives it."""
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not left


pytestmark = pytest.mark.usefixtures("nothing_left")


def test_the_pool_copied_beside_a_program_of_ones_own_says_what_a_pc_lacks(tmp_path):
    for name in ("rknnpool.py", "rknnmodel.py", "models/yolov5n_emoji.onnx"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "mine.py").write_text("from rknnpool import rknnPoolExecutor\n"
                                      "rknnPoolExecutor('yolov5n_emoji.rknn', 2, lambda rknn_lite, IMG: IMG)\n")
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "RuntimeError" in done.stderr and "copy the folder runtimes, too" in done.stderr.splitlines()[-1]


def test_results_keep_the_order_of_frames(runtime):
    later_done = threading.Event()

    def func(context, frame):
        if frame == 0:
            assert later_done.wait(10), "frame 1 waits for frame 0"
        if frame == 1:
            later_done.set()
        return infer(context, frame)

    with rknnPoolExecutor("model", 2, func, runtime=runtime) as pool:
        assert list(pool.map(range(50))) == list(range(50))


def test_every_frame_of_map_comes_out_in_order_whatever_each_one_takes(runtime):
    def func(context, frame):
        time.sleep(random.random() / 1000)  # the work, not a synchronisation
        return infer(context, frame)

    with rknnPoolExecutor("model", 6, func, runtime=runtime) as pool:
        assert list(pool.map(iter(range(500)))) == list(range(500))


def test_every_frame_that_was_put_can_be_got(runtime):
    pool = rknnPoolExecutor(rknnModel="model", TPEs=3, func=infer, runtime=runtime)
    for frame in range(20):
        pool.put(frame)
    assert [pool.get() for _ in range(20)] == [(frame, True) for frame in range(20)]
    assert pool.get() == (None, False)
    pool.release()


def test_a_context_is_used_by_one_thread_at_a_time(runtime):
    with rknnPoolExecutor("model", 4, infer, runtime=runtime) as pool, ThreadPoolExecutor(8) as callers:
        futures = list(callers.map(pool.submit, range(2000)))
        assert [future.result() for future in futures] == list(range(2000))
    assert runtime.shared == 0
    assert len(runtime.contexts) == 4


@pytest.mark.parametrize("name, masks", [
    ("rk3588", [1, 2, 4]), ("rk3588s", [1, 2, 4]), ("rk3582", [1, 2, 4]), ("rk3576", [1, 2]), ("rk3566", [None]),
    ("rk3562", [None])])
def test_contexts_are_bound_to_the_cores_of_the_soc_in_turn(runtime, soc, name, masks):
    soc(name)
    rknnPoolExecutor("model", 7, infer, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == list(itertools.islice(itertools.cycle(masks), 7))


def test_without_a_soc_no_mask_is_passed(runtime):
    rknnPoolExecutor("model", 3, infer, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == [None] * 3


def test_two_contexts_per_core_are_the_default(runtime, soc):
    soc("rk3588")
    rknnPoolExecutor("model", func=infer, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == [1, 2, 4, 1, 2, 4]


def test_runs_are_told_for_every_core_in_their_order(runtime, soc):
    soc("rk3588")
    with rknnPoolExecutor("model", 1, infer, runtime=runtime) as pool:
        list(pool.map(range(5)))
        assert pool.runs == [5, 0, 0]


def test_core_mask_puts_every_context_on_those_cores(runtime, soc):
    soc("rk3588")
    rknnPoolExecutor("model", 3, infer, coreMask=runtime.NPU_CORE_0_1_2, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == [7, 7, 7]


def test_core_mask_is_left_out_where_the_soc_has_one_core(runtime, soc):
    soc("rk3568")
    rknnPoolExecutor("model", 2, infer, coreMask=runtime.NPU_CORE_0_1_2, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == [None, None]


@pytest.mark.parametrize("name, cores", [("rk3588", 3), ("rk3576", 2)])
@pytest.mark.parametrize("per_core", [1, 2, 3])
def test_runs_are_spread_evenly_over_the_cores(runtime, soc, name, cores, per_core):
    soc(name)
    runtime.seconds = 0.005
    with rknnPoolExecutor("model", cores * per_core, infer, runtime=runtime) as pool:
        assert len(list(pool.map(range(200 * cores)))) == 200 * cores
    runs = [core.runs for core in runtime.cores.values()]
    assert len(runs) == cores
    assert max(runs) - min(runs) <= 0.05 * 200, runs


def test_a_core_with_more_contexts_gets_more_frames(runtime, soc):
    soc("rk3576")
    runtime.seconds = 0.01
    waiting = threading.Semaphore(0)  # frames whose turn on core 1 is over: core 1's one context is kept busy

    def func(context, frame):
        result = infer(context, frame)
        if context.mask == 2:
            waiting.acquire(timeout=10)
        else:
            waiting.release()
        return result

    with rknnPoolExecutor("model", 3, func, runtime=runtime) as pool:
        assert list(pool.map(range(30))) == list(range(30))
    assert runtime.cores[1].runs > runtime.cores[2].runs


@pytest.mark.parametrize("live", [False, True])
def test_a_result_does_not_wait_for_later_frames(runtime, live):
    taken = threading.Semaphore(1)

    def camera():
        for frame in range(10):
            assert taken.acquire(timeout=10), "the pool holds a result back until more frames come"
            yield frame

    with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
        for expected, result in enumerate(pool.map(camera(), live=live)):
            assert result == expected
            taken.release()
    assert expected == 9


def test_a_slow_consumer_bounds_what_is_read_ahead(runtime):
    read, too_many = [], threading.Event()

    def frames():
        for frame in range(1000):
            read.append(frame)
            if len(read) > 3 * 3 + 5:
                too_many.set()
            yield frame

    with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
        results = pool.map(frames())
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert not too_many.wait(0.3)  # the chance to read on


def test_live_never_waits_and_keeps_only_the_newest_of_what_cannot_be_served(runtime):
    all_read, in_work = threading.Event(), threading.Semaphore(0)

    def camera():
        for frame in range(100):
            if 0 < frame <= 3:
                assert in_work.acquire(timeout=10)  # each of the three contexts has taken a frame
            yield frame
        all_read.set()

    def func(context, frame):
        in_work.release()
        assert all_read.wait(10), "the camera was made to wait"
        return infer(context, frame)

    with rknnPoolExecutor("model", 3, func, runtime=runtime) as pool:
        results = pool.map(camera(), live=True)
        assert list(results) == [0, 1, 2, 99]
        assert results.dropped == 96


def test_streams_on_one_pool_take_turns(runtime):
    runtime.seconds, begun = 0.01, []  # the inference is the bottleneck

    def func(context, frame):
        begun.append(frame[0])
        return infer(context, frame)

    with rknnPoolExecutor("model", 4, func, runtime=runtime) as pool, ThreadPoolExecutor(2) as consumers:
        streams = [pool.map(zip(itertools.repeat(name), range(50))) for name in "ab"]
        assert list(consumers.map(list, streams)) == [[(name, number) for number in range(50)] for name in "ab"]
    ahead = [begun[:count].count("a") - begun[:count].count("b") for count in range(len(begun))]
    assert max(map(abs, ahead)) <= 5, ahead  # without turns a stream is ahead by its 8 frames in flight


def test_an_exception_of_func_comes_at_its_frame_and_the_rest_goes_on(runtime):
    def func(context, frame):
        if frame % 10 == 3:
            raise KeyError(frame)
        return infer(context, frame)

    with rknnPoolExecutor("model", 3, func, runtime=runtime) as pool:
        results, seen = pool.map(range(40)), []
        while len(seen) < 40:
            try:
                seen.append(next(results))
            except KeyError as error:
                seen.append(-error.args[0])
        assert seen == [-frame if frame % 10 == 3 else frame for frame in range(40)]
        assert list(results) == []


@pytest.mark.parametrize("raised", [StopIteration, CancelledError])
def test_what_would_end_a_map_comes_from_func_as_an_error_like_any_other(runtime, raised):
    def func(context, frame):
        if frame == 3:
            raise raised("of func's own")
        return infer(context, frame)

    with rknnPoolExecutor("model", 2, func, runtime=runtime) as pool:
        results = pool.map(range(10))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(RuntimeError, match=raised.__name__) as told:
            next(results)
        assert isinstance(told.value.__cause__, raised)
        assert list(results) == [4, 5, 6, 7, 8, 9]

        async def one():
            with pytest.raises(RuntimeError, match=raised.__name__):  # a StopIteration never reaches who awaits it
                await asyncio.wait_for(asyncio.wrap_future(pool.submit(3)), 20)
        asyncio.run(one())


def test_a_frame_may_be_anything_whatever_attributes_it_has(runtime):
    """One with an attribute `first` has no right to be first."""
    pair = collections.namedtuple("pair", "first second")
    image, go_on, order = np.zeros((2, 2)), threading.Event(), []

    def func(context, frame):
        go_on.wait(20)
        order.append(frame)

    with rknnPoolExecutor("model", 1, func, runtime=runtime) as pool:
        frames = [[0], pair(image, image), pair("left", "right")]
        futures = [pool._dispatcher.enqueue(frame, func, rknnpool._Queue()) for frame in frames]
        go_on.set()
        for future in futures:
            future.result(20)
        assert all(one is other for one, other in zip(order, frames))


def test_an_exception_ahead_of_the_consumer_waits_for_its_turn(runtime):
    raised = threading.Event()

    def func(context, frame):
        if frame == 3:
            raised.set()
            raise KeyError(frame)
        return infer(context, frame)

    with rknnPoolExecutor("model", 3, func, runtime=runtime) as pool:
        results = pool.map(range(10))
        assert raised.wait(10)  # before anything was taken
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(results)
        assert list(results) == [4, 5, 6, 7, 8, 9]


@pytest.mark.slow
def test_of_200000_frames_from_8_threads_every_result_reaches_its_own_caller(runtime):
    def caller(number):
        waiting, right = collections.deque(), 0
        for frame in range(25_000):
            waiting.append(((number, frame), pool.submit((number, frame))))
            if len(waiting) == 100:
                sent, future = waiting.popleft()
                right += future.result() == sent
        return right + sum(future.result() == sent for sent, future in waiting)

    served = itertools.count()

    def func(context, frame):
        next(served)
        return frame

    with rknnPoolExecutor("model", 6, func, runtime=runtime) as pool, ThreadPoolExecutor(8) as callers:
        assert sum(callers.map(caller, range(8))) == 200_000
    assert next(served) == 200_000
    assert [context.released for context in runtime.contexts] == [1] * 6


def test_an_exception_of_frames_comes_after_the_frames_before_it(runtime):
    def frames():
        yield from range(7)
        raise OSError("unplugged")

    seen = []
    with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
        with pytest.raises(OSError, match="unplugged"):
            for result in pool.map(frames()):
                seen.append(result)
    assert seen == list(range(7))


def test_leaving_the_loop_stops_the_reading_and_leaves_the_pool_working(runtime):
    frames = iter(range(10 ** 9))
    with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
        for result in pool.map(frames):
            if result == 20:
                break
        at = next(frames)
        assert 20 < at <= 20 + 3 * 3 + 1
        assert next(frames) == at + 1  # nobody else reads
        assert pool.submit("again").result(10) == "again"


def test_a_context_that_fails_to_open_closes_those_before_it(runtime):
    runtime.fail_at = 3
    with pytest.raises(RuntimeError, match="context 3 of 4 could not open README.md: init_runtime returned -1"):
        rknnPoolExecutor("README.md", 4, infer, runtime=runtime)
    assert [context.released for context in runtime.contexts] == [1, 1, 1]


def test_a_pool_has_at_least_one_context(runtime):
    with pytest.raises(ValueError, match="TPEs is 0"):
        rknnPoolExecutor("model", 0, infer, runtime=runtime)


def test_release_while_busy_finishes_what_is_in_work_and_cancels_the_rest(runtime):
    started, go_on = threading.Barrier(3), threading.Event()

    def func(context, frame):
        if frame < 2:
            started.wait(10)
            go_on.wait(10)
        return infer(context, frame)

    pool = rknnPoolExecutor("model", 2, func, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(10)]
    started.wait(10)
    releasing = threading.Thread(target=pool.release)
    releasing.start()
    with pytest.raises(CancelledError):
        futures[9].exception(10)
    go_on.set()
    releasing.join(10)
    pool.release()
    assert [future.result() for future in futures[:2]] == [0, 1]
    assert all(future.cancelled() for future in futures[2:])
    assert [context.released for context in runtime.contexts] == [1, 1]
    with pytest.raises(RuntimeError):
        pool.submit(11)


def test_release_with_a_timeout_says_which_context_hangs(runtime, soc):
    soc("rk3588")
    hangs, go_on = threading.Event(), threading.Event()

    def func(context, frame):
        if context is runtime.contexts[1]:
            hangs.set()
            go_on.wait(10)
        return infer(context, frame)

    pool = rknnPoolExecutor("model", 3, func, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(10)]
    assert hangs.wait(10)
    with pytest.raises(TimeoutError, match=r"^context 2 of 3, core 1 did not come back from a frame$"):
        pool.release(timeout=0.1)
    assert [context.released for context in runtime.contexts] == [1, 0, 1]
    pool.release()
    go_on.set()
    assert all(future.done() for future in futures)
    for thread in threading.enumerate():
        if thread.name == "rknnpool":
            thread.join(10)
    assert [context.released for context in runtime.contexts] == [1, 1, 1]  # it came back, and was closed by its thread


@pytest.mark.slow
def test_release_ends_while_other_threads_go_on_submitting(runtime):
    def caller(pool):
        with contextlib.suppress(RuntimeError, CancelledError):
            while True:
                pool.submit(1)

    for _ in range(20):
        pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
        callers = [threading.Thread(target=caller, args=(pool,)) for _ in range(4)]
        for thread in callers:
            thread.start()
        pool.submit(2).result(10)
        pool.release(timeout=30)  # raises where something is pending for ever
        for thread in callers:
            thread.join(10)


@pytest.mark.parametrize("way", ["map", "submit", "put"])
@pytest.mark.skipif(sys.version_info < (3, 9, 18), reason="Python 3.9.2 holds such a frame until gc runs")
def test_a_frame_whose_func_failed_is_let_go_at_once(runtime, way):
    class Frame:
        pass

    def func(context, frame):
        raise KeyError

    frames = [Frame() for _ in range(3)]
    alive = [weakref.ref(frame) for frame in frames]
    gc.disable()
    try:
        with rknnPoolExecutor("model", 2, func, runtime=runtime) as pool:
            results = pool.map(frames) if way == "map" else None
            for frame in frames:
                if way == "put":
                    pool.put(frame)
                with pytest.raises(KeyError):
                    next(results) if way == "map" else pool.get() if way == "put" else pool.submit(frame).result()
            del results
        del frame, frames, pool
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()


def test_release_in_the_middle_of_map_from_another_thread_ends_it(runtime):
    pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
    results = pool.map(itertools.count())
    next(results)
    releasing = threading.Thread(target=pool.release)
    releasing.start()
    with pytest.raises(CancelledError):
        while True:
            next(results)
    releasing.join(10)
    assert [context.released for context in runtime.contexts] == [1, 1]


def test_a_with_block_that_raises_closes_every_context(runtime):
    with pytest.raises(KeyboardInterrupt):
        with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
            for _ in pool.map(itertools.count()):
                raise KeyboardInterrupt
    assert [context.released for context in runtime.contexts] == [1, 1, 1]


def test_submit_serves_asyncio(runtime):
    async def both(pool):
        return await asyncio.gather(*(asyncio.wrap_future(pool.submit(frame)) for frame in range(30)))

    with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
        assert asyncio.run(both(pool)) == list(range(30))
