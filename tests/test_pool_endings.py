"""The end of a pool: every context is closed once and never during a run, every future is done,
nothing hangs."""

import contextlib
import gc
import itertools
import os
import queue
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from conftest import ROOT
from fakes import wait_until

import rknnpool
from rknnpool import rknnPoolExecutor
from runtimes import cpu

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
can_pool_in_a_fork = pytest.mark.skipif(
    (3, 9) <= sys.version_info < (3, 9, 8),
    reason="Python before 3.9.8 may fork while ThreadPoolExecutor holds a lock (bpo-45021)",
)


def infer(context, frame):
    return context.inference([frame])[0]


@pytest.fixture(autouse=True)
def check_every_context(runtime):
    """Fails the test if a context is used after its release(), or released during a run."""
    runtime.misused = []
    inference, release = runtime.inference, runtime.release

    def checked_inference(self, inputs):
        if self.released:
            runtime.misused.append("used after release()")
        return inference(self, inputs)

    def checked_release(self):
        if self.in_use.locked():
            runtime.misused.append("released while it runs")
        release(self)

    runtime.inference, runtime.release = checked_inference, checked_release
    yield
    assert not runtime.misused


def closed_once(runtime):
    return [context.released for context in runtime.contexts] == [1] * len(runtime.contexts)


def run_script(script, *arguments):
    """Run a script in a process of its own: a CompletedProcess. Its class `Runtime` counts open and
    closed contexts."""
    head = """
        import itertools, os, queue, signal, sys, threading, time
        from rknnpool import rknnPoolExecutor
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        class Runtime:
            NPU_CORES, open, closed = 3, 0, 0
            one_closed = threading.Event()
            def load_rknn(self, path): Runtime.open += 1; return 0
            def init_runtime(self, **_): return 0
            def inference(self, inputs): time.sleep(0.002); return inputs
            def release(self): Runtime.closed += 1; Runtime.one_closed.set()
        def infer(context, frame): return context.inference([frame])[0]
        """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


# ---- readers that block ----


@pytest.mark.parametrize("way", ["break", "close", "release", "release_timeout", "with"])
def test_nothing_waits_for_a_reader_that_blocks(runtime, way):
    source = queue.Queue()
    for frame in range(5):
        source.put(frame)
    pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)
    results = pool.map(iter(source.get, None))
    for result in results:
        if result == 4:
            break
    if way == "close":
        results.close()
    elif way == "break":
        del results
        assert pool.submit("next").result(10) == "next"
    elif way == "with":
        with pool:
            pass
    pool.release(timeout=1 if way == "release_timeout" else None)
    assert closed_once(runtime)
    source.put(None)


def test_ctrl_c_interrupts_the_loop_while_the_reader_blocks():
    done = run_script("""
        source = queue.Queue()
        source.put(1)
        pool = rknnPoolExecutor("model", 3, infer, runtime=Runtime)
        try:
            for result in pool.map(iter(source.get, None)):
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        except KeyboardInterrupt:
            pool.release()
            print("interrupted", Runtime.open, Runtime.closed)
        """)
    assert done.stdout == "interrupted 3 3\n", done.stderr


# ---- garbage ----


@pytest.mark.slow
def test_garbage_collection_of_an_abandoned_map_does_not_deadlock(runtime):
    pool = rknnPoolExecutor("model", 3, lambda context, frame: frame, runtime=runtime)
    go_on = threading.Event()

    def camera():
        yield 0
        go_on.wait(20)

    class Camera:
        def __init__(self):
            self.me, self.results = self, pool.map(camera())

    gc.disable()
    try:
        for _ in range(20):
            next(Camera().results)
        gc.enable()
        gc.set_threshold(1)  # collect garbage often, also in the pool's code
        for frame in range(300):
            assert pool.submit(frame).result(10) == frame
    finally:
        gc.enable()
        gc.set_threshold(700)
        go_on.set()
    pool.release()
    assert closed_once(runtime)


@pytest.mark.parametrize("what", ["release", "close"])
@pytest.mark.parametrize("who", ["__del__", "weakref"])
def test_release_and_close_may_be_called_by_the_garbage_collector(what, who):
    done = run_script(
        """
        import faulthandler, functools, gc, weakref
        from concurrent.futures import CancelledError
        faulthandler.dump_traceback_later(100, exit=True)
        what, who = sys.argv[1:]
        class Owner:
            def __init__(self, end):
                self.me, self.end = self, end
            if who == "__del__":
                def __del__(self): self.end()
        gc.set_threshold(1)
        for number in range(60):
            pool = rknnPoolExecutor("model", 3, infer, runtime=Runtime)
            results = pool.map(itertools.count())
            end = results.close
            if what == "release":
                end = functools.partial(pool.release, wait=False)
            owner = Owner(end)
            watched = weakref.ref(owner, lambda _, end=end: end()) if who == "weakref" else None
            next(results)
            del owner
            try:
                for frame in range(10):
                    pool.submit(frame).result()
                next(results)
            except (CancelledError, RuntimeError, StopIteration):
                pass
            pool.release()
        print(Runtime.open, Runtime.closed)
        """,
        what,
        who,
    )
    assert done.stdout == "180 180\n", done.stderr


def test_a_dropped_pool_processes_submitted_frames_and_closes_its_contexts(runtime):
    pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(20)]
    del pool
    assert [future.result(10) for future in futures] == list(range(20))
    wait_until(lambda: closed_once(runtime))


def test_a_pool_whose_func_is_a_method_of_its_owner_is_collected_with_the_owner(runtime):
    class Service:
        def __init__(self):
            self.pool = rknnPoolExecutor("model", 2, self.serve, runtime=runtime)

        def serve(self, context, frame):
            return infer(context, frame)

    service = Service()
    assert service.pool.submit(1).result(10) == 1
    del service
    gc.collect()
    wait_until(lambda: closed_once(runtime))


@pytest.mark.parametrize(
    "held", ["pool", "pool.map(itertools.count())", "[pool.submit(n) for n in range(50)]"]
)
def test_a_program_that_ends_without_release_closes_every_context(held):
    done = run_script(f"""
        release = Runtime.release
        def told(self):
            release(self)
            os.write(1, b"closed ")
        Runtime.release = told
        pool = rknnPoolExecutor("model", 3, infer, runtime=Runtime)
        held = {held}
        """)
    assert (done.returncode, done.stdout) == (0, "closed closed closed "), done.stderr


# ---- release() from anywhere ----


@pytest.mark.parametrize(
    "way",
    [
        "in a worker",
        "in a done-callback",
        "in the callback of a cancelled future",
        "in frames",
        "in two threads",
        "in a worker of another pool",
    ],
)
def test_release_may_be_called(runtime, way):
    runtime.seconds = 0.01
    pool = rknnPoolExecutor(
        "model",
        3,
        lambda context, frame: frame() if callable(frame) else infer(context, frame),
        runtime=runtime,
    )
    if way == "in a worker":
        futures = []
        with contextlib.suppress(RuntimeError):  # released already
            for frame in (1, pool.release, 2, 3):
                futures.append(pool.submit(frame))
    elif way == "in a done-callback":
        futures = [pool.submit(frame) for frame in range(9)]
        futures[0].add_done_callback(lambda _: pool.release())
    elif way == "in the callback of a cancelled future":
        futures = [pool.submit(frame) for frame in range(9)]
        futures[-1].add_done_callback(lambda _: pool.release())
        pool.release()
    elif way == "in frames":

        def frames():
            yield 1
            pool.release()
            yield 2

        futures = []
        with contextlib.suppress(CancelledError, RuntimeError):  # the map may have ended already
            list(pool.map(frames()))
    elif way == "in two threads":
        futures = [pool.submit(frame) for frame in range(9)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda _: pool.release(), range(2)))
    else:
        with rknnPoolExecutor(
            "model", 1, lambda context, frame: pool.release(), runtime=runtime
        ) as other:
            other.submit(None).result(10)
        futures = []
    wait_until(lambda: closed_once(runtime))
    wait_until(lambda: all(future.done() for future in futures))
    pool.release()
    with pytest.raises(RuntimeError, match="released"):
        pool.submit(1)
    assert closed_once(runtime)


@pytest.mark.parametrize(
    "meanwhile",
    [
        "pool.release()",
        "list(pool.map(itertools.count()))",
        "time.sleep(0.3)",
        "pool.submit(1).result()",
        "[pool.submit(n) for n in range(3000)]",
    ],
)
def test_release_without_waiting_may_be_called_in_a_signal_handler(meanwhile):
    done = run_script(f"""
        import contextlib, faulthandler
        from concurrent.futures import CancelledError
        faulthandler.dump_traceback_later(100, exit=True)
        for trial in range(10):
            Runtime.open = Runtime.closed = 0
            Runtime.one_closed.clear()
            pool = rknnPoolExecutor("model", 3, infer, runtime=Runtime)
            futures = []
            signal.signal(signal.SIGTERM, lambda *_: pool.release(wait=False))
            threading.Timer(0.005 * trial, os.kill, (os.getpid(), signal.SIGTERM)).start()
            with contextlib.suppress(RuntimeError):
                for frame in range(200):
                    futures.append(pool.submit(frame))
            with contextlib.suppress(CancelledError, RuntimeError):
                {meanwhile}
            while not Runtime.one_closed.wait(0.1):  # another thread may get the signal: wake up
                pass
            pool.release()
            print(Runtime.open, Runtime.closed, all(future.done() for future in futures))
        """)
    assert done.stdout == 10 * "3 3 True\n", done.stderr


def test_a_pool_whose_thread_cannot_start_leaves_no_context_open(runtime, monkeypatch):
    def start(thread):
        # as Python does at the system's limit of threads
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        rknnPoolExecutor("model.rknn", 4, infer, runtime=runtime)
    assert closed_once(runtime) and len(runtime.contexts) == 4


def test_release_can_be_called_again_after_ctrl_c_interrupted_it(runtime):
    done = run_script("""
        go_on = threading.Event()
        pool = rknnPoolExecutor("model", 3, lambda context, frame: go_on.wait(20), runtime=Runtime)
        futures = [pool.submit(frame) for frame in range(9)]
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            pool.release()
        except KeyboardInterrupt:
            go_on.set()
            pool.release()
        print(Runtime.open, Runtime.closed, all(future.done() for future in futures))
        """)
    assert done.stdout == "3 3 True\n", done.stderr


def test_get_after_an_interrupted_get_returns_the_same_frame():
    done = run_script("""
        go_on = threading.Event()
        wait = lambda context, frame: go_on.wait(20) and frame
        with rknnPoolExecutor("model", 1, wait, runtime=Runtime) as pool:
            pool.put(1)
            pool.put(2)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                pool.get()
            except KeyboardInterrupt:
                go_on.set()
            print(pool.get(), pool.get(), pool.get())
        """)
    assert done.stdout == "(1, True) (2, True) (None, False)\n", done.stderr


def test_next_after_an_interrupted_next_returns_the_same_result():
    done = run_script("""
        go_on = threading.Event()
        with rknnPoolExecutor("model", 2, lambda context, frame: go_on.wait(20) and frame,
                              runtime=Runtime) as pool:
            results = pool.map(range(1, 4))
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                next(results)
            except KeyboardInterrupt:
                go_on.set()
            print(list(results))
        """)
    assert done.stdout == "[1, 2, 3]\n", done.stderr


@pytest.mark.slow
def test_every_future_completes_if_another_thread_releases_the_pool(runtime):
    for _ in range(300):
        pool, futures = rknnPoolExecutor("model", 2, infer, runtime=runtime), []

        def submit(pool=pool, futures=futures):
            with contextlib.suppress(RuntimeError):
                while True:
                    futures.append(pool.submit(1))

        threads = [threading.Thread(target=submit) for _ in range(2)]
        for thread in threads:
            thread.start()
        pool.release()
        for thread in threads:
            thread.join(10)
        assert all(future.done() for future in futures)
    assert closed_once(runtime)


@pytest.mark.skipif(
    sys.version_info < (3, 9, 18), reason="Python 3.9.2 keeps such a frame until gc runs"
)
def test_an_exception_of_the_reader_keeps_no_frame_alive(runtime):
    class Frame:
        pass

    alive = []

    def frames():
        for _ in range(3):
            frame = Frame()
            alive.append(weakref.ref(frame))
            yield frame
            del frame
        raise OSError("unplugged")

    def consume(pool):
        results = pool.map(frames())  # the exception's traceback refers to `results` and `last`
        with pytest.raises(OSError, match="unplugged"):
            for last in results:
                assert last
        with pytest.raises(StopIteration):
            next(results)

    gc.disable()
    try:
        with rknnPoolExecutor("model", 2, lambda context, frame: [frame], runtime=runtime) as pool:
            consume(pool)
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()


def test_an_exception_in_a_contexts_release_does_not_affect_other_contexts(runtime):
    strict, broken = runtime.release, []

    def release(self):
        strict(self)
        if self is runtime.contexts[1]:
            broken.append(self)
            raise OSError("the driver is gone")

    runtime.release = release
    pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)
    pool.release()
    assert closed_once(runtime) and len(broken) == 1


def test_systemexit_in_a_callback_does_not_affect_other_futures_and_contexts(runtime, caplog):
    runtime.seconds = 0.01
    pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(30)]
    for future in futures:
        future.add_done_callback(lambda _: sys.exit("in a callback"))
    assert futures[5].result(10) == 5
    pool.release()
    assert closed_once(runtime) and all(future.done() for future in futures)
    assert "in a callback" in caplog.text


def test_release_while_other_threads_start_maps_ends_all_of_them(runtime):
    for trial in range(30):
        pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
        ended = []

        def consume(pool=pool, ended=ended):
            try:
                list(pool.map(itertools.count()))
            except (CancelledError, RuntimeError) as error:
                ended.append(type(error))

        threads = [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads[: trial % 5]:
            thread.start()
        pool.release()
        for thread in threads[trial % 5 :]:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(ended) == 4
    assert closed_once(runtime)


def test_a_map_cut_short_by_release_raises_cancellederror(runtime):
    runtime.seconds = 0.001
    for trial in range(40):
        pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)
        taken = []

        def consume(pool=pool, taken=taken):
            try:
                for result in pool.map(range(1000)):
                    taken.append(result)
            except CancelledError:
                taken.append("cancelled")

        consumer = threading.Thread(target=consume)
        consumer.start()
        wait_until(lambda trial=trial, taken=taken: len(taken) > trial)
        pool.release()
        consumer.join(10)
        assert taken[-1] == "cancelled" and taken[:-1] == list(range(len(taken) - 1))
    assert closed_once(runtime)


# ---- contexts that hang ----


def test_after_a_timeout_no_frame_runs_on_a_closed_context(runtime):
    go_on, hangs = threading.Event(), threading.Event()

    def func(context, frame):
        if context is runtime.contexts[0]:
            hangs.set()
            go_on.wait(20)
        return infer(context, frame)

    pool = rknnPoolExecutor("model", 3, func, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(10)]
    assert hangs.wait(10)
    with pytest.raises(TimeoutError, match="^context 1 of 3.* did not finish a frame in time$"):
        pool.release(timeout=0.1)
    assert sum(not future.done() for future in futures) == 1
    assert [context.released for context in runtime.contexts] == [0, 1, 1]
    go_on.set()
    wait_until(lambda: closed_once(runtime))
    assert all(future.done() for future in futures)


def test_a_hung_context_costs_one_frame_and_stops_no_stream(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "HANG_SECONDS", 0.5)
    go_on, inference = threading.Event(), runtime.inference

    def hanging(self, inputs):
        if inputs[0] == ("a", 10):
            go_on.wait(30)
        return inference(self, inputs)

    runtime.inference = hanging
    pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)

    def consume(name):
        results, seen = pool.map(zip(itertools.repeat(name), range(200))), []
        while True:
            try:
                seen.append(next(results))
            except StopIteration:
                return seen
            except rknnpool.NPUError as error:
                assert not error.fatal and "hangs" in str(error) and "context" in str(error)
                seen.append("hangs")

    with ThreadPoolExecutor(2) as consumers:
        a, b = consumers.map(consume, "ab")
    assert b == [("b", number) for number in range(200)]
    assert a == [("a", number) if number != 10 else "hangs" for number in range(200)]
    with pytest.raises(TimeoutError, match="did not finish"):
        pool.release()
    assert sorted(context.released for context in runtime.contexts) == [0, 1, 1]
    go_on.set()
    wait_until(lambda: closed_once(runtime))


@pytest.mark.slow
def test_a_stopped_process_does_not_count_as_a_hung_npu():
    """It is stopped during an inference for longer than HANG_SECONDS."""
    done = run_script("""
        import subprocess
        import rknnpool
        rknnpool.HANG_SECONDS = 4
        def slow(self, inputs):
            stopper = ["sh", "-c", f"kill -STOP {os.getpid()}; sleep 6; kill -CONT {os.getpid()}"]
            subprocess.Popen(stopper)
            time.sleep(1)
            return inputs
        Runtime.inference = slow
        began = time.monotonic()
        with rknnPoolExecutor("model", 1, infer, runtime=Runtime) as pool:
            print(pool.submit(1).result(), time.monotonic() > began + 4)
        """)
    assert done.stdout == "1 True\n", done.stderr


def test_slow_work_outside_inference_does_not_count_as_a_hang(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "HANG_SECONDS", 0.2)

    def func(context, frame):
        time.sleep(1.5)  # the work; the pool looks for hung contexts every second
        return infer(context, frame)

    with rknnPoolExecutor("model", 1, func, runtime=runtime) as pool:
        assert list(pool.map([1])) == [1]


def test_slow_inference_on_the_cpu_does_not_count_as_a_hang(runtime, monkeypatch):
    """A large model on a small CPU must not be reported as a hung NPU."""
    monkeypatch.setattr(rknnpool, "HANG_SECONDS", 0.2)
    quick, runtime.ON_CPU = runtime.inference, cpu.RKNNLite.ON_CPU
    # the pool looks for hung contexts every second
    runtime.inference = lambda self, inputs: (time.sleep(1.5), quick(self, inputs))[1]
    with rknnPoolExecutor("model", 1, infer, runtime=runtime) as pool:
        assert list(pool.map([1])) == [1]


def test_if_all_contexts_hang_every_frame_gets_a_fatal_error(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "HANG_SECONDS", 0.3)
    go_on = threading.Event()
    runtime.inference = lambda self, inputs: go_on.wait(30)
    pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(6)]
    errors = [future.exception(20) for future in futures]
    assert all(isinstance(error, rknnpool.NPUError) for error in errors) and all(
        error.fatal for error in errors[1:]
    )
    with pytest.raises(TimeoutError):
        pool.release()
    go_on.set()


def test_runs_that_hang_and_then_fail_end_the_pool_like_other_failures(runtime, monkeypatch):
    """The driver fails each run only after the pool has given up its frame. One context is always
    idle, so that the contexts never all hang at once."""
    monkeypatch.setattr(rknnpool, "HANG_SECONDS", 0.5)
    driver_gives_up, failed = threading.Event(), threading.Semaphore(0)
    runtime.inference = lambda self, inputs: driver_gives_up.wait(30) and None

    def func(context, frame):
        try:
            return infer(context, frame)
        except rknnpool.NPUError:
            failed.release()
            raise

    count = rknnpool.DEAD_AFTER_FAILURES
    pool = rknnPoolExecutor("model", count + 1, func, runtime=runtime)
    errors = [future.exception(20) for future in [pool.submit(n) for n in range(count)]]
    assert [error.fatal for error in errors] == [False] * count
    driver_gives_up.set()
    for _ in range(count):
        assert failed.acquire(timeout=20)
    driver_gives_up.clear()
    error = pool.submit(count).exception(20)
    assert "hangs" in str(error) and error.fatal
    driver_gives_up.set()
    wait_until(lambda: closed_once(runtime))


# ---- fork ----


@needs_fork
@can_pool_in_a_fork
@pytest.mark.parametrize(
    "use",
    [
        "pool.submit(1)",
        "pool.map([1])",
        "pool.put(1)",
        "pool.get()",
        "pool.release()",
        "pool.__exit__(None, None, None)",
        "next(results)",
    ],
)
def test_in_a_forked_child_the_parents_pool_refuses_in_a_sentence_and_touches_nothing(use):
    done = run_script(f"""
        pool = rknnPoolExecutor("model", 2, infer, runtime=Runtime)
        results = pool.map(itertools.count())
        next(results)
        if os.fork() == 0:
            signal.alarm(20)
            try:
                {use}
            except RuntimeError as error:
                print(error, Runtime.closed, flush=True)
            with rknnPoolExecutor("model", 2, infer, runtime=Runtime) as own:
                print(list(own.map(range(5))), Runtime.closed, flush=True)
            print(Runtime.closed, flush=True)
            sys.exit(0)
        os.wait()
        print("parent", next(results), Runtime.closed)
        pool.release()
        """)
    refused, served, closed, parent = done.stdout.splitlines()
    assert "a forked process cannot use the pool of process" in refused and refused.endswith(" 0")
    assert (served, closed, parent) == ("[0, 1, 2, 3, 4] 0", "2", "parent 1 0"), done.stderr


# ---- arguments ----


@pytest.mark.parametrize("TPEs", ["3", 2.5, [3]])
def test_tpes_is_a_whole_number(runtime, TPEs):
    with pytest.raises(TypeError):
        rknnPoolExecutor("model", TPEs, infer, runtime=runtime)
    assert closed_once(runtime)


@pytest.mark.skipif(
    sys.version_info < (3, 9, 18), reason="Python 3.9.2 keeps such a frame until gc runs"
)
def test_a_map_left_at_its_first_error_keeps_none_of_the_other_frames(runtime):
    class Frame:
        pass

    alive, failed = weakref.WeakSet(), threading.Semaphore(0)

    def frames():
        for _ in range(9):
            frame = Frame()
            alive.add(frame)
            yield frame

    def fails(context, frame):
        failed.release()
        raise KeyError("func failed")

    gc.collect()
    gc.disable()
    try:
        with rknnPoolExecutor("model", 3, fails, runtime=runtime) as pool:
            results = pool.map(frames())
            assert all(failed.acquire(timeout=10) for _ in range(9))
            with pytest.raises(KeyError):
                next(results)
            results.close()
            del results
        assert len(alive) == 0
    finally:
        gc.enable()
