"""What pools promise on cores of different speed, beside each other, to slow consumers, and when the NPU fails."""
import collections
import itertools
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

import func
import rknnpool
from rknnpool import NPUError, rknnPoolExecutor


def infer(context, frame):
    return context.inference([frame])[0]


# ---- scheduling ----

def test_a_slow_core_holds_back_no_other(runtime, soc):
    soc("rk3588")
    slow, inference = [], runtime.inference

    def slow_on_core_2(self, inputs):
        if self.mask == 4:
            slow.append(inputs[0])
            time.sleep(0.1)  # the work of a core that is slow
        return inference(self, inputs)
    runtime.inference = slow_on_core_2
    runtime.seconds = 0.005
    with rknnPoolExecutor("model", 6, infer, runtime=runtime) as pool:
        assert list(pool.map(range(300))) == list(range(300))
        assert min(pool.runs[:2]) > 2 * pool.runs[2] and sum(pool.runs) == 300


def test_frames_in_flight_are_bounded_to_three_times_the_threads(runtime):
    read = []

    def frames():
        for frame in range(1000):
            read.append(frame)
            yield frame

    with rknnPoolExecutor("model", 4, infer, runtime=runtime) as pool:
        results = pool.map(frames())
        next(results)
        for _ in range(200):
            assert len(read) <= 1 + 3 * 4 + 1
            time.sleep(0.001)  # the chance to read on


# ---- two pools on one NPU ----

def test_two_pools_of_one_context_get_a_core_each(runtime, soc):
    soc("rk3588")
    pools = [rknnPoolExecutor("model", 1, infer, runtime=runtime) for _ in range(3)]
    assert [context.mask for context in runtime.contexts] == [1, 2, 4]
    pools[1].release()
    with rknnPoolExecutor("model", 1, infer, runtime=runtime):
        assert runtime.contexts[-1].mask == 2
    for pool in pools:
        pool.release()


def test_a_frame_goes_to_the_core_on_which_no_other_pool_works(runtime, soc):
    soc("rk3588")
    go_on, in_work = threading.Event(), threading.Semaphore(0)

    def wait(context, frame):
        in_work.release()
        go_on.wait(20)
        return context.mask

    first = rknnPoolExecutor("model", 3, wait, runtime=runtime)
    busy = [first.submit(frame) for frame in range(2)]
    for _ in busy:
        assert in_work.acquire(timeout=10)
    with rknnPoolExecutor("model", 3, lambda context, frame: context.mask, runtime=runtime) as second:
        masks = {second.submit(frame).result(10) for frame in range(20)}
    go_on.set()
    assert masks == {1, 2, 4} - {future.result(10) for future in busy}
    first.release()


def test_a_pools_history_bends_no_other_pools_ties(runtime, soc):
    soc("rk3588")
    with rknnPoolExecutor("model", 1, infer, runtime=runtime) as busy:  # 50 runs on core 0
        list(busy.map(range(50)))
        with rknnPoolExecutor("model", 3, infer, runtime=runtime) as pool:
            for frame in range(30):
                pool.submit(frame).result(10)
            assert max(pool.runs) - min(pool.runs) <= 1


TWO_PROCESSES = """
import sys
class RKNNLite:
    def load_rknn(self, path): return 0
    def init_runtime(self, core_mask=0): print(core_mask, flush=True); return 0
    def inference(self, inputs): return inputs
    def release(self): pass
import types
package, api = types.ModuleType("rknnlite"), types.ModuleType("rknnlite.api")
RKNNLite.__module__, api.RKNNLite = "rknnlite.api", RKNNLite
sys.modules.update({"rknnlite": package, "rknnlite.api": api})
import rknnpool
rknnpool._NPU.folder = sys.argv[1]
with rknnpool.rknnPoolExecutor("model", 1, lambda context, frame: frame):
    sys.stdin.readline()
"""


def test_processes_do_not_all_begin_at_core_0(tmp_path):
    def start():
        process = subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(tmp_path)], cwd=ROOT, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={"RKNN_SOC": "rk3588", "PATH": ""})
        return process, int(process.stdout.readline())
    first, second, third = [start() for _ in range(3)]
    assert [mask for _, mask in (first, second, third)] == [1, 2, 4]
    second[0].communicate("\n", timeout=20)
    fourth = start()
    assert fourth[1] == 2  # the core of the one that ended
    for process, _ in (first, third, fourth):
        process.communicate("\n", timeout=20)


# ---- live sources and slow consumers ----

def test_a_slow_consumer_of_a_live_source_gets_the_newest_result_and_never_an_older_one(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "PROMPT", 0.0)
    served = itertools.count(1)
    twenty_served, newest = threading.Event(), []

    def count(context, frame):
        newest.append(frame)
        if next(served) == 20:
            twenty_served.set()
        return infer(context, frame)

    def camera():
        for number in itertools.count():
            while len(newest) < number:  # one at a time, as from a slow camera
                time.sleep(0.0005)
                if closed.is_set():
                    return
            yield number

    closed = threading.Event()
    with rknnPoolExecutor("model", 3, count, runtime=runtime) as pool:
        results = pool.map(camera(), live=True)
        first = next(results)
        assert twenty_served.wait(20)
        second = next(results)
        assert second >= 18 and results.dropped >= second - first - 2
        third = next(results)
        assert third > second
        closed.set()


def test_an_error_is_not_dropped_for_a_newer_result(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "PROMPT", 0.0)
    done = threading.Event()

    def fail_at_1(context, frame):
        if frame == 1:
            raise KeyError(frame)
        if frame == 4:
            done.set()
        return frame

    def camera():
        for number in range(5):
            yield number
            time.sleep(0.02)  # so that each is served

    with rknnPoolExecutor("model", 3, fail_at_1, runtime=runtime) as pool:
        results, seen = pool.map(camera(), live=True), []
        assert done.wait(20)
        while True:
            try:
                seen.append(next(results))
            except KeyError:
                seen.append("error")
            except StopIteration:
                break
    assert "error" in seen and seen[-1] == 4


def test_a_frame_that_fails_after_newer_ones_came_out_counts_once(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "OVERTAKE", 0.05)
    overtaken, failed, read = threading.Event(), threading.Event(), []

    def fail_late_at_0(context, frame):
        if frame == 0:
            overtaken.wait(20)
            raise KeyError(frame)
        return frame

    def camera():
        while not failed.is_set():
            read.append(len(read))
            yield read[-1]
            time.sleep(0.005)

    with rknnPoolExecutor("model", 3, fail_late_at_0, runtime=runtime) as pool:
        results, seen = pool.map(camera(), live=True), collections.Counter()
        while True:
            try:
                next(results)
                seen["served"] += 1
                overtaken.set()
            except KeyError:
                seen["failed"] += 1
                failed.set()
            except StopIteration:
                break
    assert seen["failed"] == 1
    assert len(read) == seen["served"] + seen["failed"] + results.dropped


def test_a_result_that_was_overtaken_does_not_come_out_after_newer_ones(runtime, monkeypatch):
    """Though its worker is interrupted between its end and what it then tells."""
    monkeypatch.setattr(rknnpool, "OVERTAKE", 0.05)
    go_on, interrupted, told, done = threading.Event(), threading.Event(), threading.Event(), rknnpool._Order._done

    def late(self, future):
        if future.result() == 0:
            interrupted.set()
            told.wait(20)
        done(self, future)

    def camera():
        yield 0
        yield 1
        assert interrupted.wait(20)
        yield 2

    monkeypatch.setattr(rknnpool._Order, "_done", late)
    with rknnPoolExecutor("model", 2, lambda _, frame: (frame or go_on.wait(20), frame)[1], runtime=runtime) as pool:
        results = pool.map(camera(), live=True)
        assert next(results) == 1
        go_on.set()
        assert list(results) == [2] and results.dropped == 1
        told.set()


def test_what_lies_finished_for_a_slow_consumer_is_bounded(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "PROMPT", 0.001)

    class Frame:
        alive = collections.Counter()

        def __init__(self):
            self.alive["frames"] += 1

        def __del__(self):
            self.alive["frames"] -= 1

    most = []

    def camera():
        for _ in range(300):
            yield Frame()
            time.sleep(0.001)
            most.append(Frame.alive["frames"])

    with rknnPoolExecutor("model", 3, lambda context, frame: frame, runtime=runtime) as pool:
        results = pool.map(camera(), live=True)
        next(results)
        results._feeder.join(20)
        assert max(most[50:]) < 100


def test_what_has_failed_or_was_overtaken_and_lies_there_for_a_slow_consumer_is_bounded(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "PROMPT", 0.0)
    alive, read, failing = collections.Counter(), [], threading.Event()

    class Result:
        def __init__(self):
            alive["results"] += 1

        def __del__(self):
            alive["results"] -= 1

    def slow_at_every_third(context, number):
        time.sleep(0.005 if number % 3 == 0 else 0)
        result = Result()
        if failing.is_set():
            raise KeyError(number)  # whose traceback holds the result
        return result

    def camera():
        for number in range(600):
            read.append(number)
            if number == 300:
                failing.set()
            yield number
            time.sleep(0.001)
            assert alive["results"] < 40

    with rknnPoolExecutor("model", 3, slow_at_every_third, runtime=runtime) as pool:
        results, seen = pool.map(camera(), live=True), []
        next(results)
        results._feeder.join(30)
        served = 1
        while True:
            try:
                next(results)
                served += 1
            except KeyError as error:
                seen.append(error.args[0])
            except StopIteration:
                break
    assert seen == sorted(seen) and 0 < len(seen) < 20 and seen[-1] > 590
    assert len(read) == served + len(seen) + results.dropped


# ---- an NPU that fails ----

class FailingNPU:
    """Three cores; `fails` says of which runs, counted from 1, the answer is None."""

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
        return type("FailingNPU", (cls,), dict(
            inference=lambda self, inputs, **_: None if fails(next(runs), self.mask) else inputs))


def outcomes(pool, count):
    results, seen = pool.map(range(count)), []
    for _ in range(count):
        try:
            seen.append(next(results))
        except NPUError as error:
            seen.append(error)
    return seen


@pytest.mark.parametrize("careful", [True, False])
def test_a_failed_inference_is_that_frames_error_and_names_its_context(careful):
    def func(context, frame):
        outputs = context.inference([frame])
        return outputs[0] if careful else frame  # or one that never looks

    with rknnPoolExecutor("model", 1, func, runtime=FailingNPU.make(lambda run, mask: run == 5)) as pool:
        seen = outcomes(pool, 20)
    assert [frame for frame, result in enumerate(seen) if isinstance(result, NPUError)] == [4]
    assert not seen[4].fatal and "context 1 of 1, core 0: inference failed" in str(seen[4])


def test_bad_cores_are_named_and_the_good_one_goes_on():
    with rknnPoolExecutor("model", 3, infer, runtime=FailingNPU.make(lambda run, mask: mask != 1)) as pool:
        seen = outcomes(pool, 60)
    errors = {str(error).split(":")[0] for error in seen if isinstance(error, NPUError)}
    assert {"context 2 of 3, core 1", "context 3 of 3, core 2"} >= errors and errors
    assert any(not isinstance(result, NPUError) for result in seen)
    assert not any(error.fatal for error in seen if isinstance(error, NPUError))


def test_ten_failures_in_a_row_are_fatal_and_a_success_ends_the_row():
    with rknnPoolExecutor("model", 1, infer, runtime=FailingNPU.make(lambda run, mask: run > 9 and run != 18)) as pool:
        seen = outcomes(pool, 40)
    fatal = [frame for frame, result in enumerate(seen) if isinstance(result, NPUError) and result.fatal]
    assert fatal == list(range(27, 40))  # the tenth after run 18
    assert "the NPU does not answer" in str(seen[30])


def test_three_failures_and_ten_seconds_of_silence_are_fatal(monkeypatch):
    monkeypatch.setattr(rknnpool, "SILENCE", 0.2)

    def slow_failure(self, inputs):
        time.sleep(0.15)  # a run that times out
    npu = type("Slow", (FailingNPU,), {"inference": slow_failure})
    with rknnPoolExecutor("model", 1, infer, runtime=npu) as pool:
        seen = outcomes(pool, 5)
    assert [result.fatal for result in seen] == [False, False, True, True, True]


def test_the_failure_of_another_pool_that_func_asks_is_that_of_its_own_frame():
    good, bad = FailingNPU.make(lambda run, mask: False), FailingNPU.make(lambda run, mask: True)
    with rknnPoolExecutor("second", 1, infer, runtime=bad) as second:
        with rknnPoolExecutor("first", 1, lambda _, frame: second.submit([frame]).result(), runtime=good) as first:
            error = first.submit("the first's").exception()
    assert isinstance(error, NPUError) and error.frame == "the first's"


def test_func_detect_names_the_context_that_failed(demo_frames):
    with rknnPoolExecutor("model", 3, func.detect, runtime=FailingNPU.make(lambda run, mask: True)) as pool:
        with pytest.raises(func.ModelError, match="context . of 3, core ."):
            pool.submit(demo_frames[0]).result(10)


def test_an_input_that_is_refused_is_no_failure_of_the_npu(demo_frames):
    def three_dimensions(context, frame):
        return context.inference([frame])
    model = str(ROOT / "models/yolov5n_emoji.rknn")
    from runtimes.cpu import RKNNLite
    with rknnPoolExecutor(model, 1, three_dimensions, runtime=RKNNLite) as pool:
        assert [pool.submit(demo_frames[0]).result(30) for _ in range(12)] == [None] * 12
