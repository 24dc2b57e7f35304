"""rknnpool.py, with a fake runtime that counts its calls (conftest.py)."""

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

import pytest
from conftest import ROOT
from fakes import wait_until

from rknnpool import rknnPoolExecutor


def infer(context, frame):
    return context.inference([frame])[0]


pytestmark = pytest.mark.usefixtures("no_soc", "no_thread_left")


def test_rknnpool_py_alone_needs_only_the_wheel(tmp_path):
    """With a fake wheel; tests/board runs the real one."""
    shutil.copy(ROOT / "rknnpool.py", tmp_path)
    (tmp_path / "rknnlite").mkdir()
    (tmp_path / "rknnlite/api.py").write_text(
        "class RKNNLite:\n"
        "    def load_rknn(self, path): return 0\n"
        "    def init_runtime(self, core_mask=0): return 0\n"
        "    def inference(self, inputs):\n"
        "        return [inputs[0].sum()] if inputs[0].ndim == 4 else None\n"
        "    def release(self): print('closed')\n"
    )
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from rknnpool import rknnPoolExecutor\n"
        "def myFunc(rknn_lite, IMG): return int(rknn_lite.inference(inputs=[IMG])[0])\n"
        "pool = rknnPoolExecutor(rknnModel='m.rknn', TPEs=2, func=myFunc)\n"
        "for number in range(4): pool.put(np.full((2, 2, 3), number))\n"
        "print(*(pool.get() for _ in range(5)))\n"
        "pool.release()\n"
    )
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == (
        "(0, True) (12, True) (24, True) (36, True) (None, False)\nclosed\nclosed\n"
    ), done.stderr


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


def test_results_of_uneven_work_keep_the_order_of_frames(runtime):
    def func(context, frame):
        time.sleep(random.random() / 1000)  # the work
        return infer(context, frame)

    with rknnPoolExecutor("model", 6, func, runtime=runtime) as pool:
        assert list(pool.map(iter(range(500)))) == list(range(500))


def test_get_returns_every_frame_of_put(runtime):
    pool = rknnPoolExecutor(rknnModel="model", TPEs=3, func=infer, runtime=runtime)
    for frame in range(20):
        pool.put(frame)
    assert [pool.get() for _ in range(20)] == [(frame, True) for frame in range(20)]
    assert pool.get() == (None, False)
    pool.release()


def test_a_context_is_used_by_one_thread_at_a_time(runtime):
    with rknnPoolExecutor("model", 4, infer, runtime=runtime) as pool, ThreadPoolExecutor(
        8
    ) as callers:
        futures = list(callers.map(pool.submit, range(2000)))
        assert [future.result() for future in futures] == list(range(2000))
    assert runtime.shared == 0
    assert len(runtime.contexts) == 4


@pytest.mark.parametrize(
    "name, masks",
    [
        ("rk3588", [1, 2, 4]),
        ("rk3588s", [1, 2, 4]),
        ("rk3582", [1, 2, 4]),
        ("rk3576", [1, 2]),
        ("rk3566", [None]),
        ("rk3562", [None]),
    ],
)
def test_contexts_are_bound_to_the_cores_of_the_soc_in_turn(runtime, soc, name, masks):
    soc(name)
    rknnPoolExecutor("model", 7, infer, runtime=runtime).release()
    opened = [context.mask for context in runtime.contexts]
    first = masks.index(
        opened[0]
    )  # the process decides, so that two programs do not both use core 0
    assert opened == list(itertools.islice(itertools.cycle(masks), first, first + 7))


def test_without_a_known_soc_no_core_mask_is_passed(runtime):
    rknnPoolExecutor("model", 3, infer, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == [None] * 3


def test_two_contexts_per_core_are_the_default(runtime, soc):
    soc("rk3588")
    rknnPoolExecutor("model", func=infer, runtime=runtime).release()
    assert sorted(context.mask for context in runtime.contexts) == [1, 1, 2, 2, 4, 4]


def test_frames_per_core_lists_every_core(runtime, soc):
    soc("rk3588")
    with rknnPoolExecutor("model", 1, infer, runtime=runtime) as pool:
        list(pool.map(range(5)))
        assert sorted(pool.frames_per_core) == [0, 0, 5]


def test_core_mask_puts_every_context_on_those_cores(runtime, soc):
    soc("rk3588")
    rknnPoolExecutor("model", 3, infer, coreMask=runtime.NPU_CORE_0_1_2, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == [7, 7, 7]


def test_core_mask_is_omitted_on_a_soc_with_one_core(runtime, soc):
    soc("rk3568")
    rknnPoolExecutor("model", 2, infer, coreMask=runtime.NPU_CORE_0_1_2, runtime=runtime).release()
    assert [context.mask for context in runtime.contexts] == [None, None]


@pytest.mark.parametrize("name, cores", [("rk3588", 3), ("rk3576", 2)])
@pytest.mark.parametrize("per_core", [1, 2, 3])
def test_frames_are_spread_evenly_over_the_cores(runtime, soc, name, cores, per_core):
    """The most even of three runs counts, because other programs use this machine too."""
    soc(name)
    runtime.seconds, spread = 0.005, []
    for _ in range(3):
        runtime.cores.clear()
        with rknnPoolExecutor("model", cores * per_core, infer, runtime=runtime) as pool:
            assert len(list(pool.map(range(200 * cores)))) == 200 * cores
        runs = [core.runs for core in runtime.cores.values()]
        assert len(runs) == cores
        spread.append(max(runs) - min(runs))
    assert min(spread) <= 0.05 * 200, spread


def test_a_core_with_more_contexts_gets_more_frames(runtime, soc):
    soc("rk3576")
    runtime.seconds = 0.01
    waiting = threading.Semaphore(0)  # runs of the other core; the single context waits for them
    single = None

    def func(context, frame):
        result = infer(context, frame)
        if context.mask == single:
            waiting.acquire(timeout=10)
        else:
            waiting.release()
        return result

    with rknnPoolExecutor("model", 3, func, runtime=runtime) as pool:
        double, single = (context.mask for context in runtime.contexts[:2])
        assert list(pool.map(range(30))) == list(range(30))
    assert runtime.cores[double].runs > runtime.cores[single].runs


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


def test_at_most_three_frames_per_context_are_read_ahead(runtime):
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
        assert not too_many.wait(0.3)  # time to read more


def test_a_live_source_never_waits_and_only_the_newest_waiting_frame_is_kept(runtime):
    all_read, started = threading.Event(), threading.Semaphore(0)

    def camera():
        for frame in range(100):
            if 0 < frame <= 3:
                assert started.acquire(timeout=10)  # each of the three contexts has a frame
            yield frame
        all_read.set()

    def func(context, frame):
        started.release()
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

    with rknnPoolExecutor("model", 4, func, runtime=runtime) as pool, ThreadPoolExecutor(
        2
    ) as consumers:
        streams = [pool.map(zip(itertools.repeat(name), range(50))) for name in "ab"]
        assert list(consumers.map(list, streams)) == [
            [(name, number) for number in range(50)] for name in "ab"
        ]
    ahead = [begun[:count].count("a") - begun[:count].count("b") for count in range(len(begun))]
    # without turns a stream would be ahead by its 8 frames in flight
    assert max(map(abs, ahead)) <= 5, ahead


def test_an_exception_of_func_is_raised_at_its_frame_and_iteration_can_go_on(runtime):
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
def test_stopiteration_and_cancellederror_of_func_do_not_end_a_map(runtime, raised):
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
            # a future with a StopIteration would never wake its awaiter
            with pytest.raises(RuntimeError, match=raised.__name__):
                await asyncio.wait_for(asyncio.wrap_future(pool.submit(3)), 20)

        asyncio.run(one())


def test_an_early_exception_is_raised_at_its_frame(runtime):
    raised = threading.Event()

    def func(context, frame):
        if frame == 3:
            raised.set()
            raise KeyError(frame)
        return infer(context, frame)

    with rknnPoolExecutor("model", 3, func, runtime=runtime) as pool:
        results = pool.map(range(10))
        assert raised.wait(10)  # before the first next()
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(results)
        assert list(results) == [4, 5, 6, 7, 8, 9]


@pytest.mark.slow
def test_each_of_8_threads_gets_the_results_of_its_own_frames(runtime):
    def caller(number):
        waiting, right = collections.deque(), 0
        for frame in range(5_000):
            waiting.append(((number, frame), pool.submit((number, frame))))
            if len(waiting) == 100:
                sent, future = waiting.popleft()
                right += future.result() == sent
        return right + sum(future.result() == sent for sent, future in waiting)

    served = itertools.count()

    def func(context, frame):
        next(served)
        return frame

    with rknnPoolExecutor("model", 6, func, runtime=runtime) as pool, ThreadPoolExecutor(
        8
    ) as callers:
        assert sum(callers.map(caller, range(8))) == 40_000
    assert next(served) == 40_000
    assert [context.released for context in runtime.contexts] == [1] * 6


def test_an_exception_of_the_reader_is_raised_after_the_frames_before_it(runtime):
    def frames():
        yield from range(7)
        raise OSError("unplugged")

    seen = []
    with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
        with pytest.raises(OSError, match="unplugged"):
            for result in pool.map(frames()):
                seen.append(result)
    assert seen == list(range(7))


def test_leaving_the_loop_stops_reading_and_the_pool_still_works(runtime):
    frames = iter(range(10**9))
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
    with pytest.raises(
        RuntimeError, match="context 3 of 4 could not open README.md: see the runtime"
    ):
        rknnPoolExecutor("README.md", 4, infer, runtime=runtime)
    assert [context.released for context in runtime.contexts] == [1, 1, 1]


def test_a_pool_has_at_least_one_context(runtime):
    with pytest.raises(ValueError, match="must be greater than 0"):
        rknnPoolExecutor("model", 0, infer, runtime=runtime)


def test_release_finishes_frames_in_progress_and_cancels_waiting_ones(runtime):
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


def test_release_with_a_timeout_names_the_hung_context(runtime, soc):
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
    with pytest.raises(
        TimeoutError, match=r"^context 2 of 3, core \d did not finish a frame in time$"
    ):
        pool.release(timeout=0.1)
    assert [context.released for context in runtime.contexts] == [1, 0, 1]
    go_on.set()
    pool.release()
    assert all(future.done() for future in futures)
    # It came back, and its thread closed it.
    wait_until(lambda: [context.released for context in runtime.contexts] == [1, 1, 1])


@pytest.mark.slow
def test_release_returns_while_other_threads_keep_submitting(runtime):
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
        pool.release(timeout=30)  # raises TimeoutError if something is pending forever
        for thread in callers:
            thread.join(10)


@pytest.mark.parametrize("way", ["map", "submit", "put"])
@pytest.mark.skipif(
    sys.version_info < (3, 9, 18), reason="Python 3.9.2 keeps such a frame until gc runs"
)
def test_a_frame_whose_func_failed_is_freed_at_once(runtime, way):
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
                    next(results) if way == "map" else pool.get() if way == "put" else pool.submit(
                        frame
                    ).result()
            del results
        del frame, frames, pool
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()


def test_release_in_another_thread_ends_a_map(runtime):
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


def test_futures_of_submit_can_be_awaited_in_asyncio(runtime):
    async def both(pool):
        return await asyncio.gather(
            *(asyncio.wrap_future(pool.submit(frame)) for frame in range(30))
        )

    with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
        assert asyncio.run(both(pool)) == list(range(30))
