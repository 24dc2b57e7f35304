"""Pools on cores of different speed, several pools, slow consumers, and an NPU that fails."""

import collections
import itertools
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT

import func
import rknnpool
from rknnpool import NPUError, rknnPoolExecutor
from runtimes.cpu import RKNNLite
from vision.model import Model


def infer(context, frame):
    return context.inference([frame])[0]


# ---- scheduling ----


def test_a_slow_core_does_not_delay_other_cores(runtime, soc):
    soc("rk3588")
    slow, inference = [], runtime.inference

    def slow_on_core_2(self, inputs):
        if self.mask == 4:
            slow.append(inputs[0])
            time.sleep(0.1)  # a slow core
        return inference(self, inputs)

    runtime.inference = slow_on_core_2
    runtime.seconds = 0.005
    with rknnPoolExecutor("model", 6, infer, runtime=runtime) as pool:
        assert list(pool.map(range(300))) == list(range(300))
        assert (
            min(pool.frames_per_core[:2]) > 2 * pool.frames_per_core[2]
            and sum(pool.frames_per_core) == 300
        )


# ---- two pools on one NPU ----


def test_pools_with_one_context_get_different_cores(runtime, soc):
    soc("rk3588")
    pools = [rknnPoolExecutor("model", 1, infer, runtime=runtime) for _ in range(3)]
    masks = [context.mask for context in runtime.contexts]
    assert sorted(masks) == [1, 2, 4]
    pools[1].release()
    with rknnPoolExecutor("model", 1, infer, runtime=runtime):
        assert runtime.contexts[-1].mask == masks[1]
    for pool in pools:
        pool.release()


def test_a_frame_goes_to_a_core_that_no_other_pool_uses(runtime, soc):
    soc("rk3588")
    go_on, started = threading.Event(), threading.Semaphore(0)

    def wait(context, frame):
        started.release()
        go_on.wait(20)
        return context.mask

    first = rknnPoolExecutor("model", 3, wait, runtime=runtime)
    busy = [first.submit(frame) for frame in range(2)]
    for _ in busy:
        assert started.acquire(timeout=10)
    with rknnPoolExecutor(
        "model", 3, lambda context, frame: context.mask, runtime=runtime
    ) as second:
        masks = {second.submit(frame).result(10) for frame in range(20)}
    go_on.set()
    assert masks == {1, 2, 4} - {future.result(10) for future in busy}
    first.release()


def test_earlier_frames_of_one_pool_do_not_affect_how_another_spreads_its_frames(runtime, soc):
    soc("rk3588")
    with rknnPoolExecutor("model", 1, infer, runtime=runtime) as busy:  # 50 runs on core 0
        list(busy.map(range(50)))
        with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
            for frame in range(30):
                pool.submit(frame).result(10)
            assert max(pool.frames_per_core) - min(pool.frames_per_core) <= 1


ONE_CONTEXT = """
import os
from rknnpool import rknnPoolExecutor
class Runtime:
    NPU_CORES = 3
    def load_rknn(self, path): return 0
    def init_runtime(self, core_mask): print(core_mask == 1 << os.getpid() % 3); return 0
    def inference(self, inputs): return inputs
    def release(self): pass
rknnPoolExecutor("model", 1, lambda context, frame: frame, runtime=Runtime).release()
"""


def test_the_first_core_of_a_pool_depends_on_the_process_id():
    done = subprocess.run([sys.executable, "-c", ONE_CONTEXT], cwd=ROOT, capture_output=True)
    assert done.stdout == b"True\n", done.stderr


# ---- live sources and slow consumers ----


def test_a_slow_consumer_of_a_live_source_gets_the_newest_result(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "SLOW_CONSUMER_SECONDS", 0.0)
    one_served, twenty_served, closed = (
        threading.Semaphore(0),
        threading.Event(),
        threading.Event(),
    )

    def count(context, frame):
        if frame == 19:
            twenty_served.set()
        one_served.release()
        return infer(context, frame)

    def camera():
        """One frame at a time, as from a slow camera."""
        for number in itertools.count():
            yield number
            assert one_served.acquire(timeout=20)
            if closed.is_set():
                return

    with rknnPoolExecutor("model", 3, count, runtime=runtime) as pool:
        results = pool.map(camera(), live=True)
        first = next(results)
        assert twenty_served.wait(20)
        second = next(results)
        assert second >= 18 and results.dropped >= second - first - 2
        third = next(results)
        assert third > second
        closed.set()


def test_a_consumer_that_asks_late_gets_the_newest_of_results_that_came_together(
    runtime, monkeypatch
):
    monkeypatch.setattr(rknnpool, "SLOW_CONSUMER_SECONDS", 1000.0)
    served, all_read, closed = threading.Semaphore(0), threading.Event(), threading.Event()

    def count(context, frame):
        served.release()
        return infer(context, frame)

    def camera():
        for number in range(3):
            yield number
            assert served.acquire(timeout=20)
        all_read.set()
        closed.wait(20)

    with rknnPoolExecutor("model", 1, count, runtime=runtime) as pool:
        results = pool.map(camera(), live=True)
        assert all_read.wait(20)
        pool.submit("after them").result()
        monkeypatch.setattr(rknnpool, "SLOW_CONSUMER_SECONDS", 0.0)
        assert (next(results), results.dropped) == (2, 2)
        closed.set()


def test_live_results_do_not_wait_for_a_slow_one(runtime):
    """The slow result is not returned after newer ones."""
    go_on = threading.Event()

    def func(context, frame):
        if frame == 0:
            go_on.wait(20)
        return frame

    def camera():
        yield 0
        for frame in range(1, 50):
            yield frame
            served.acquire(timeout=1)
        go_on.set()
        yield 50

    served = threading.Semaphore(0)
    with rknnPoolExecutor("model", 2, func, runtime=runtime) as pool:
        results, seen = pool.map(camera(), live=True), []
        for result in results:
            seen.append(result)
            served.release()
    assert 0 < seen[0] < 20 and seen == sorted(seen) and seen[-1] == 50
    assert len(seen) + results.dropped == 51


def test_live_results_waiting_for_a_slow_consumer_are_limited(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "SLOW_CONSUMER_SECONDS", 0.001)

    class Frame:
        alive = collections.Counter()

        def __init__(self):
            self.alive["frames"] += 1

        def __del__(self):
            self.alive["frames"] -= 1

    most, all_read = [], threading.Event()

    def camera():
        for _ in range(300):
            yield Frame()
            time.sleep(0.001)  # a camera of at most 1000 FPS
            most.append(Frame.alive["frames"])
        all_read.set()

    with rknnPoolExecutor("model", 3, lambda context, frame: frame, runtime=runtime) as pool:
        results = pool.map(camera(), live=True)
        next(results)
        assert all_read.wait(30)
        assert max(most) <= 3 * 3 + 3 + 2


# ---- an NPU that fails ----


class FailingNPU:
    """Three cores. The run with a number (from 1) for which `fails` is true returns None."""

    NPU_CORES = 3

    def load_rknn(self, path):
        return 0

    def init_runtime(self, core_mask=0):
        self.mask = core_mask
        return 0

    def release(self):
        pass

    @classmethod
    def make(cls, fails):
        runs = itertools.count(1)
        return type(
            "FailingNPU",
            (cls,),
            dict(
                inference=lambda self, inputs, **_: None if fails(next(runs), self.mask) else inputs
            ),
        )


def outcomes(pool, count):
    results, seen = pool.map(range(count)), []
    for _ in range(count):
        try:
            seen.append(next(results))
        except NPUError as error:
            seen.append(error)
    return seen


@pytest.mark.parametrize("careful", [True, False])
def test_a_failed_inference_is_the_error_of_its_frame_and_names_the_context(careful):
    def func(context, frame):
        outputs = context.inference([frame])
        return outputs[0] if careful else frame  # a func that ignores the outputs

    with rknnPoolExecutor(
        "model", 1, func, runtime=FailingNPU.make(lambda run, mask: run == 5)
    ) as pool:
        seen = outcomes(pool, 20)
    assert [frame for frame, result in enumerate(seen) if isinstance(result, NPUError)] == [4]
    assert not seen[4].fatal and re.match(r"context 1 of 1, core \d: a run failed", str(seen[4]))


@pytest.mark.parametrize("caught", [True, False])
def test_a_failed_core_pauses_and_no_frame_is_lost(caplog, caught):
    """Also if func catches the error."""

    def func(context, frame):
        try:
            return context.inference([frame])[0]
        except NPUError:
            if not caught:
                raise
            return "hidden"

    calls = collections.Counter()
    npu = FailingNPU.make(lambda run, mask: calls.update([mask]) or mask == 4)
    with rknnPoolExecutor("model", 6, func, runtime=npu) as pool:
        assert list(pool.map(range(300))) == list(range(300))
    assert 1 <= calls[4] <= 2  # both of its contexts may have been working
    assert [record.message.count("core 2") for record in caplog.records] == [1]
    assert "Its core pauses and is tried again with one frame after 30 s" in caplog.text


def test_after_its_pause_a_core_gets_one_frame_and_works_again_after_a_success(monkeypatch):
    monkeypatch.setattr(rknnpool, "PAUSE_SECONDS", (0.2, 0.8))
    calls, broken = [], threading.Event()
    broken.set()

    def fails(run, mask):
        if mask == 4:
            calls.append(time.monotonic())
        return mask == 4 and broken.is_set()

    def camera(until):
        while not until():
            time.sleep(0.001)  # a camera of at most 1000 FPS
            yield 1

    with rknnPoolExecutor("model", 3, infer, runtime=FailingNPU.make(fails)) as pool:
        assert set(pool.map(camera(lambda: len(calls) == 5))) == {1}
        pauses = [after - before for before, after in zip(calls, calls[1:])]
        assert all(pause >= rest for pause, rest in zip(pauses, (0.2, 0.4, 0.8, 0.8)))
        broken.clear()
        assert set(pool.map(camera(lambda: len(calls) > 50))) == {1}


def test_a_success_that_began_before_the_failure_does_not_end_the_pause():
    all_busy, failed, runs = threading.Barrier(4), threading.Event(), []

    class NPU(FailingNPU):
        NPU_CORES = 2

        def inference(self, inputs):
            runs.append(self.mask)
            if len(runs) <= 4:
                all_busy.wait(20)
            if self.mask == 1 and not failed.is_set() and in_turn.acquire(blocking=False):
                failed.set()
                return None
            assert failed.wait(20)
            return inputs

    in_turn = threading.Semaphore(1)
    with rknnPoolExecutor("model", 4, infer, runtime=NPU) as pool:
        assert list(pool.map(range(50))) == list(range(50))
    assert runs.count(1) == 2


def test_the_last_core_never_pauses():
    """Two cores always fail, and the third one once."""
    npu = FailingNPU.make(lambda run, mask: mask != 1 or run == 30)
    with rknnPoolExecutor("model", 3, infer, runtime=npu) as pool:
        seen = outcomes(pool, 60)
    errors = [result for result in seen if isinstance(result, NPUError)]
    assert len(errors) == 1 and "core 0" in str(errors[0]) and not errors[0].fatal


@pytest.mark.parametrize("options", [{"TPEs": 1}, {"TPEs": 3, "coreMask": 7}])
def test_without_another_core_the_error_is_the_frames_result(options):
    npu = FailingNPU.make(lambda run, mask: run % 2)
    with rknnPoolExecutor("model", func=infer, runtime=npu, **options) as pool:
        seen = outcomes(pool, 20)
    assert sum(isinstance(result, NPUError) for result in seen) == 10


def test_a_live_frame_is_kept_for_its_retry(runtime, soc):
    soc("rk3588")
    begun, waiting, inference = [], threading.Event(), runtime.inference
    one_begun = threading.Semaphore(0)

    def fail_at_first(self, inputs):
        return None if begun.count(0) == 1 and inputs[0] == 0 else inference(self, inputs)

    def camera():
        for frame in range(3):
            yield frame
            assert frame == 2 or one_begun.acquire(timeout=20)
        waiting.set()  # frame 2 waits for a context

    def func(context, frame):
        begun.append(frame)
        one_begun.release()
        assert frame == 2 or waiting.wait(20)
        return infer(context, frame)

    runtime.inference = fail_at_first
    with rknnPoolExecutor("model", 2, func, runtime=runtime) as pool:
        assert list(pool.map(camera(), live=True)) == [0, 1, 2]
    assert begun.count(0) == 2


def test_many_contexts_failing_at_once_on_one_core_are_not_a_dead_npu():
    npu = FailingNPU.make(lambda run, mask: mask == 2)
    with rknnPoolExecutor("model", 45, infer, runtime=npu) as pool:
        assert list(pool.map(range(200))) == list(range(200))


def test_ten_failures_in_a_row_are_fatal_and_a_success_resets_the_count():
    with rknnPoolExecutor(
        "model", 1, infer, runtime=FailingNPU.make(lambda run, mask: run > 9 and run != 18)
    ) as pool:
        seen = outcomes(pool, 40)
    fatal = [
        frame for frame, result in enumerate(seen) if isinstance(result, NPUError) and result.fatal
    ]
    assert fatal == list(range(27, 40))  # the tenth after run 18
    assert "the NPU does not answer" in str(seen[30])


def test_an_error_of_a_second_pool_used_by_func_is_the_error_of_the_frame():
    good, bad = FailingNPU.make(lambda run, mask: False), FailingNPU.make(lambda run, mask: True)
    with rknnPoolExecutor("second", 1, infer, runtime=bad) as second:
        with rknnPoolExecutor(
            "first", 1, lambda _, frame: second.submit([frame]).result(), runtime=good
        ) as first:
            error = first.submit("the first's").exception()
    assert isinstance(error, NPUError) and error.frame == "the first's"


def test_func_detect_names_the_context_that_failed(demo_frames):
    with rknnPoolExecutor(
        "model", 3, func.detect, runtime=FailingNPU.make(lambda run, mask: True)
    ) as pool:
        with pytest.raises(NPUError, match="context . of 3, core ."):
            pool.submit(demo_frames[0]).result(10)


def test_a_refused_input_is_an_error_with_the_reason_and_not_an_npu_failure(
    demo_frames,
):
    def wrong_size(context, frame):
        return context.inference([frame])[0]

    model = str(ROOT / "models/yolov5n_emoji.rknn")
    with rknnPoolExecutor(model, 1, wrong_size, runtime=RKNNLite) as pool:
        for _ in range(12):
            with pytest.raises(
                ValueError, match=r"refused the input \(1, 720, .* takes an input of"
            ):
                pool.submit(demo_frames[0]).result(30)


def test_a_batch_axis_is_added_to_a_frame(demo_frames):
    """The original demo passes frames without a batch axis."""

    def infer_like_the_demo(rknn_lite, IMG):
        return rknn_lite.inference(inputs=[IMG])[0].shape

    model = str(ROOT / "models/yolov5n_emoji.rknn")
    with rknnPoolExecutor(model, 1, infer_like_the_demo, runtime=RKNNLite) as pool:
        image = np.zeros((640, 640, 3), np.uint8)
        assert pool.submit(image).result(30) == (1, 255, 80, 80)


def test_three_dimensional_inputs_are_unchanged_if_the_model_has_such_inputs(runtime):
    model = Model("m", inputs=[("tokens", (1, 77, 512))])
    with rknnPoolExecutor(model, 1, infer, runtime=runtime) as pool:
        assert pool.submit(np.zeros((1, 77, 512))).result(30).shape == (1, 77, 512)
