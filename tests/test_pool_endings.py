"""However a pool ends: every context is closed once and by nobody while it runs, every future done, nothing hangs."""
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
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from conftest import ROOT

import rknnpool
from rknnpool import rknnPoolExecutor
from runtimes import cpu

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def infer(context, frame):
    return context.inference([frame])[0]


@pytest.fixture(autouse=True)
def a_strict_runtime(runtime):
    """A context that is used after its release(), or released while it runs, raises the flag."""
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


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def closed_once(runtime):
    return [context.released for context in runtime.contexts] == [1] * len(runtime.contexts)


def run_script(script, *arguments):
    """A script in a process of its own, with a runtime `Runtime` whose `open` counts the contexts: CompletedProcess."""
    head = """
        import itertools, os, queue, signal, sys, threading, time
        from rknnpool import rknnPoolExecutor
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        class Runtime:
            NPU_CORES, open, closed = 3, 0, 0
            def load_rknn(self, path): Runtime.open += 1; return 0
            def init_runtime(self, **_): return 0
            def inference(self, inputs): time.sleep(0.002); return inputs
            def release(self): Runtime.closed += 1
        def infer(context, frame): return context.inference([frame])[0]
        """
    return subprocess.run([sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script), *arguments], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)


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


def test_ctrl_c_reaches_the_user_while_the_reader_blocks():
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
def test_an_abandoned_map_in_a_cycle_is_collected_anywhere_without_a_deadlock(runtime):
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
        gc.set_threshold(1)  # collects within the pool's own code
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
def test_release_and_close_by_the_garbage_collector_within_the_pools_own_code(what, who):
    done = run_script("""
        import faulthandler, gc, weakref
        from concurrent.futures import CancelledError
        faulthandler.dump_traceback_later(20, exit=True)
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
            end = pool.release if what == "release" else results.close
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
        """, what, who)
    assert done.stdout == "180 180\n", done.stderr


def test_a_pool_dropped_without_release_serves_what_was_submitted_and_closes_its_contexts(runtime):
    pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(20)]
    del pool
    assert [future.result(10) for future in futures] == list(range(20))
    wait_until(lambda: closed_once(runtime))


def test_a_pool_whose_func_belongs_to_its_owner_is_collected_with_it(runtime):
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


@pytest.mark.parametrize("held", ["pool", "pool.map(itertools.count())", "[pool.submit(n) for n in range(50)]"])
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

@pytest.mark.parametrize("way", ["in a worker", "in a done-callback", "in the callback of a cancelled future",
                                 "in frames", "in two threads", "in a worker of another pool"])
def test_release_may_be_called(runtime, way):
    runtime.seconds = 0.01
    pool = rknnPoolExecutor("model", 3, lambda context, frame: frame() if callable(frame) else infer(context, frame),
                            runtime=runtime)
    if way == "in a worker":
        futures = [pool.submit(frame) for frame in (1, pool.release, 2, 3)]
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
        with pytest.raises((CancelledError, RuntimeError)):
            list(pool.map(frames()))
    elif way == "in two threads":
        futures = [pool.submit(frame) for frame in range(9)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda _: pool.release(), range(2)))
    else:
        with rknnPoolExecutor("model", 1, lambda context, frame: pool.release(), runtime=runtime) as other:
            other.submit(None).result(10)
        futures = []
    wait_until(lambda: closed_once(runtime))
    wait_until(lambda: all(future.done() for future in futures))
    pool.release()
    with pytest.raises(RuntimeError, match="released"):
        pool.submit(1)
    assert closed_once(runtime)


@pytest.mark.parametrize("meanwhile", ["pool.release()", "list(pool.map(itertools.count()))", "time.sleep(0.3)",
                                       "pool.submit(1).result()", "[pool.submit(n) for n in range(3000)]"])
@pytest.mark.parametrize("handler", ["lambda *_: pool.release()", "functools.partial(end, pool)", "Handler()"])
def test_release_in_a_signal_handler_only_begins_the_end(meanwhile, handler):
    done = run_script(f"""
        import contextlib, functools
        from concurrent.futures import CancelledError
        def end(pool, *_): pool.release()
        class Handler:
            def __call__(self, *_): pool.release()
        pool = rknnPoolExecutor("model", 3, infer, runtime=Runtime)
        futures = [pool.submit(frame) for frame in range(200)]
        signal.signal(signal.SIGTERM, {handler})
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with contextlib.suppress(CancelledError, RuntimeError):
            {meanwhile}
        while not Runtime.closed:
            time.sleep(0.01)
        pool.release()
        print(Runtime.open, Runtime.closed, all(future.done() for future in futures))
        """)
    assert done.stdout == "3 3 True\n", done.stderr


@pytest.mark.parametrize("handler", ["end_once", "Handler().end", "functools.partial(Handler().end_of, 1)"])
def test_release_in_a_signal_handler_that_interrupts_a_lock_and_lets_the_next_signal_kill(handler):
    done = run_script(f"""
        import faulthandler, functools
        from rknnpool import _NPU
        faulthandler.dump_traceback_later(20, exit=True)
        pool = rknnPoolExecutor("model", 3, infer, runtime=Runtime)
        def end_once(number, frame):
            signal.signal(number, signal.SIG_DFL)
            pool.release()
        class Handler:
            def end(self, *arguments): end_once(*arguments)
            def end_of(self, _, *arguments): end_once(*arguments)
        load = _NPU.load
        def interrupted(*arguments):
            _NPU.load = load
            signal.raise_signal(signal.SIGTERM)
            return load(*arguments)
        signal.signal(signal.SIGTERM, {handler})
        list(pool.map(range(3)))
        _NPU.load = interrupted
        future = pool.submit(1)
        pool.release()
        print(Runtime.closed, future.done())
        """)
    assert done.stdout == "3 True\n", done.stderr


def test_a_signal_handler_that_is_called_by_hand_waits_for_the_end():
    done = run_script("""
        def stop(*_):
            pool.release()
        signal.signal(signal.SIGTERM, stop)
        pool = rknnPoolExecutor("model", 3, infer, runtime=Runtime)
        futures = [pool.submit(frame) for frame in range(9)]
        stop()
        print(Runtime.closed)
        """)
    assert done.stdout == "3\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("started", [0, 2, 4], ids=["the first", "one in the middle", "the keeper"])
def test_a_pool_whose_thread_cannot_start_leaves_no_context_open_and_no_thread(runtime, monkeypatch, started):
    start, threads = threading.Thread.start, []

    def limited(thread):
        if len(threads) == started:
            raise RuntimeError("can't start new thread")  # as Python says it where the system's limit is reached
        threads.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        rknnPoolExecutor("model.rknn", 4, infer, runtime=runtime)
    assert closed_once(runtime) and len(runtime.contexts) == 4
    assert len(threads) == started and not any(thread.is_alive() for thread in threads)


def test_ctrl_c_in_release_and_release_again(runtime):
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


def test_a_get_that_ctrl_c_interrupts_leaves_its_frame_to_the_next_one():
    done = run_script("""
        go_on = threading.Event()
        with rknnPoolExecutor("model", 1, lambda context, frame: go_on.wait(20) and frame, runtime=Runtime) as pool:
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


def test_release_in_a_thread_with_the_ident_of_a_worker_that_has_ended_waits_all_the_same(runtime, monkeypatch):
    """Linux gives a new thread the ident of the one that ended last."""
    go_on, strict = threading.Event(), runtime.release
    runtime.release = lambda self: (self is runtime.contexts[0] or go_on.wait(20), strict(self))
    pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
    first = pool._dispatcher.workers[0].thread
    releasing = threading.Thread(target=pool.release)
    releasing.start()
    first.join()
    monkeypatch.setattr(first, "_ident", threading.get_ident())
    asked, waited = threading.Event(), rknnpool._Dispatcher.wait_for_end

    def wait_for_end(self, timeout):
        go_on.set()
        asked.set()
        waited(self, timeout)
    monkeypatch.setattr(rknnpool._Dispatcher, "wait_for_end", wait_for_end)
    pool.release()
    assert asked.is_set() and closed_once(runtime)
    releasing.join()


def test_a_context_whose_release_raises_costs_the_others_nothing_and_is_told_once(runtime):
    strict, broken = runtime.release, []

    def release(self):
        strict(self)
        if self is runtime.contexts[1]:
            broken.append(self)
            raise OSError("the driver is gone")
    runtime.release = release
    pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)
    with pytest.raises(OSError, match="the driver is gone"):
        pool.release()
    pool.release()
    assert closed_once(runtime) and len(broken) == 1


def test_a_callback_that_raises_systemexit_costs_no_context_and_no_other_future_its_end(runtime, caplog):
    runtime.seconds = 0.01
    pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(30)]
    for future in futures:
        future.add_done_callback(lambda _: sys.exit("in a callback"))
    assert futures[5].result(10) == 5
    pool.release()
    assert closed_once(runtime) and all(future.done() for future in futures)
    assert "in a callback" in caplog.text


def test_release_while_maps_begin(runtime):
    for trial in range(30):
        pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
        ended = []

        def consume(pool=pool, ended=ended):
            try:
                list(pool.map(itertools.count()))
            except (CancelledError, RuntimeError) as error:
                ended.append(type(error))
        threads = [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads[:trial % 5]:
            thread.start()
        pool.release()
        for thread in threads[trial % 5:]:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(ended) == 4
    assert closed_once(runtime)


def test_a_map_cut_short_never_comes_out_short_in_silence(runtime):
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
    with pytest.raises(TimeoutError, match="^context 1 of 3.* did not come back from a frame$"):
        pool.release(timeout=0.1)
    assert all(future.done() for future in futures)
    assert [context.released for context in runtime.contexts] == [0, 1, 1]
    runtime.misused.clear()
    go_on.set()
    wait_until(lambda: closed_once(runtime))


def test_one_hung_context_stops_no_stream_and_its_frame_gets_an_error(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "HANG", 0.5)
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
    with pytest.raises(TimeoutError, match="did not come back"):
        pool.release()
    assert sorted(context.released for context in runtime.contexts) == [0, 1, 1]
    go_on.set()
    wait_until(lambda: closed_once(runtime))


@pytest.mark.parametrize("timeout", [None, 0.1])
def test_a_context_that_hangs_as_it_is_closed_is_named_and_holds_up_nobody(runtime, monkeypatch, timeout):
    monkeypatch.setattr(rknnpool, "HANG", 0.3)
    go_on, release = threading.Event(), runtime.release

    def hanging(self):
        if self is runtime.contexts[1]:
            go_on.wait(30)
        release(self)
    runtime.release = hanging
    pool = rknnPoolExecutor("model", 3, infer, runtime=runtime)
    assert list(pool.map(range(9))) == list(range(9))
    with pytest.raises(TimeoutError, match="context 2 of 3 did not come back from being closed"):
        pool.release(timeout)
    assert [context.released for context in runtime.contexts] == [1, 0, 1]
    go_on.set()
    wait_until(lambda: closed_once(runtime))


def test_a_func_that_takes_its_time_outside_of_inference_does_not_hang(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "HANG", 0.2)

    def func(context, frame):
        time.sleep(1.5)  # the work, longer than the keeper's second
        return infer(context, frame)
    with rknnPoolExecutor("model", 1, func, runtime=runtime) as pool:
        assert list(pool.map([1])) == [1]


def test_an_inference_on_the_cpu_that_takes_long_does_not_hang(runtime, monkeypatch):
    """A large model on a small CPU: nobody shall look at dmesg for it."""
    monkeypatch.setattr(rknnpool, "HANG", 0.2)
    quick, runtime.ON_CPU = runtime.inference, cpu.RKNNLite.ON_CPU
    runtime.inference = lambda self, inputs: (time.sleep(1.5), quick(self, inputs))[1]  # over the keeper's second
    with rknnPoolExecutor("model", 1, infer, runtime=runtime) as pool:
        assert list(pool.map([1])) == [1]


def test_where_all_contexts_hang_every_frame_gets_the_error_that_ends_streams(runtime, monkeypatch):
    monkeypatch.setattr(rknnpool, "HANG", 0.3)
    go_on = threading.Event()
    runtime.inference = lambda self, inputs: go_on.wait(30)
    pool = rknnPoolExecutor("model", 2, infer, runtime=runtime)
    futures = [pool.submit(frame) for frame in range(6)]
    errors = [future.exception(20) for future in futures]
    assert all(isinstance(error, rknnpool.NPUError) for error in errors) and all(error.fatal for error in errors[1:])
    with pytest.raises(TimeoutError):
        pool.release()
    go_on.set()


# ---- fork ----

@needs_fork
@pytest.mark.parametrize("use", ["pool.submit(1)", "pool.map([1])", "pool.put(1)", "pool.get()", "pool.release()",
                                 "pool.__exit__(None, None, None)", "next(results)", "results.close()"])
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
    assert "from which this one was forked" in refused and refused.endswith(" 0")
    assert (served, closed, parent) == ("[0, 1, 2, 3, 4] 0", "2", "parent 1 0"), done.stderr


# ---- arguments ----

@pytest.mark.parametrize("TPEs", ["3", 2.5, [3]])
def test_tpes_is_a_whole_number(runtime, TPEs):
    with pytest.raises(TypeError, match="TPEs is .*: a whole number is needed"):
        rknnPoolExecutor("model", TPEs, infer, runtime=runtime)


@pytest.mark.parametrize("func", [lambda IMG: IMG, lambda: None, lambda a, b, c: a, "myFunc"])
def test_a_func_that_cannot_be_called_with_context_and_frame_is_told_at_once(runtime, func):
    with pytest.raises(TypeError, match=r"\(rknn_lite, IMG\)"):
        rknnPoolExecutor("model", 1, func, runtime=runtime)
    assert runtime.contexts == []


def test_scripts_for_the_five_file_demo_find_initrknn(monkeypatch, runtime, soc):
    soc("rk3588")
    monkeypatch.setattr(rknnpool, "RKNNLite", runtime)
    assert [rknnpool.initRKNN("model", core).mask for core in (0, 1, 2, -1, 5)] == [1, 2, 4, 7, None]
    assert [context.mask for context in rknnpool.initRKNNs("model", 4)] == [1, 2, 4, 1]
    runtime.fail_at = len(runtime.contexts) + 1
    with contextlib.suppress(RuntimeError):
        rknnpool.initRKNN("model")
        raise AssertionError("a context that does not open must raise")
