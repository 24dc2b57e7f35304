"""A pool of RKNNLite contexts on the cores of a Rockchip NPU.

    with rknnPoolExecutor("models/yolov5n_emoji.rknn", TPEs=6, func=myFunc) as pool:
        for result in pool.map(frames):    # in the order of the frames

Each thread takes an idle context and the next frame; results come out in order. This is the one
file to copy into another program: with Rockchip's wheel rknn-toolkit-lite2 it needs no other.
"""
from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import importlib
import logging
import os
import re
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Callable, Iterable, Iterator

__version__ = "0.1.0"
CORES = {"rk3588": 3, "rk3582": 3, "rk3576": 2, "rk356": 1, "rv1126b": 1}  # by prefix of the name
COMPATIBLE = "/proc/device-tree/compatible"
HANG_SECONDS = 12             # maximum time of an inference; the driver's own limit is 6 to 10 s
DEAD_AFTER_FAILURES = 10      # failed runs in a row after which the NPU counts as dead
PAUSE_SECONDS = 30, 600       # first and longest pause of a failing core; each failure doubles it
SLOW_CONSUMER_SECONDS = 0.02  # live: how long a result may wait before a newer one replaces it
RELEASED = "the pool was released"
log = logging.getLogger("rknnpool")


class NPUError(RuntimeError):
    """A run failed on the NPU, or a context hangs; if `fatal`, the whole NPU does not answer."""

    def __init__(self, message: str, fatal: bool = False, label: str = "", frame: Any = None):
        super().__init__(f"the NPU does not answer: {message}" if fatal else message)
        self.fatal, self.label, self.frame = fatal, label, frame  # label: "context 2 of 6, core 1"


def soc() -> str | None:
    """This machine's SoC ("rk3588s") from RKNN_SOC or the device tree; None without a known NPU."""
    text = os.environ.get("RKNN_SOC", "").lower()
    if not text and os.path.exists(COMPATIBLE):
        text = Path(COMPATIBLE).read_text("ascii", "replace")  # "xunlong,...\0rockchip,rk3588s\0"
    names = re.findall(r"(?:^|rockchip,)(\w+)", text)
    return next((name for name in names if name.startswith(tuple(CORES))), None)


def npu_cores(soc: str | None) -> int:
    """The number of NPU cores of a SoC; 1 if it is unknown."""
    return next((CORES[start] for start in CORES if (soc or "").lower().startswith(start)), 1)


class rknnPoolExecutor(contextlib.AbstractContextManager):
    """Runs func(context, frame) on a pool of RKNNLite contexts.

    rknnModel: path of the model, or a vision.model.Model; TPEs: number of contexts, each with a
        thread, by default two per NPU core.
    func: callable (context, frame) -> result; default: myFunc of func.py. A context is used by one
        thread at a time; its `model` is a vision.model.Model, its `label` "context 2 of 6, core 1".
    coreMask: the cores of every context (RKNNLite.NPU_CORE_0_1_2); default: one core for each.
    runtime: a class with RKNNLite's methods; default: the wheel, or what runtimes/ has instead.

    A context's inference() adds the batch axis to a frame (height, width, channels). It raises
    ValueError if the input is refused, and NPUError if the run fails. After a failed run the core
    pauses for 30 to 600 s, and another core retries the frame: **func is called again**. If no
    other core works, the NPUError is the frame's result, even if func caught it. The constructor
    raises RuntimeError if a context does not open, InputError if this machine cannot run the model.
    """

    def __init__(self, rknnModel: Any, TPEs: int | None = None, func: Callable | None = None, *,
                 coreMask: int | None = None, runtime: Any = None) -> None:
        if func is None:
            from func import myFunc as func
        try:
            import runtimes
            runtime, model = runtimes.prepare(rknnModel, runtime, soc())
        except ModuleNotFoundError:  # this file was copied alone
            model = rknnModel
            runtime = runtime or importlib.import_module("rknnlite.api").RKNNLite
        cores = getattr(runtime, "NPU_CORES", None) or npu_cores(soc())
        masks = [1 << core for core in range(cores)] if coreMask is None else [coreMask]
        self.TPEs = 2 * cores if TPEs is None else TPEs
        self.rknnModel, self._func = getattr(model, "path", model), func
        self._engine = _Engine(runtime, model, self.TPEs, masks if cores > 1 else [None])
        self._put: collections.deque[Future] = collections.deque()
        weakref.finalize(self, self._engine.todo.put, self._engine.cancel).atexit = False

    def submit(self, frame: Any) -> Future:
        """Enqueue a frame, from any thread. Returns a Future (concurrent.futures) of its result; do
        not change the frame until it is done. Raises RuntimeError after release() and in a fork."""
        task = _Task(self._func, frame, self)
        self._engine.submit(task, None)
        return task

    def map(self, frames: Iterable, live: bool = False) -> Results:
        """Iterate over the results for `frames`, in order. Several map()s take turns.

        frames: any iterable, read in a thread of its own, at most 3 * TPEs frames ahead. If it
            reuses one buffer, pass (frame.copy() for frame in frames).
        live: for a camera. Reading never waits: a newer frame replaces the one that waits for a
            context, and a newer result those that a slow consumer has not taken.

        An exception in func or `frames` is raised at its frame's position. After one in func the
        iteration can continue. Leaving the loop stops reading. After release(): CancelledError.
        """
        return Results(self, self._func, frames, live)

    def put(self, frame: Any) -> None:
        """Enqueue a frame for get(). Call get() as often as put(): the queue has no limit."""
        self._put.append(self.submit(frame))

    def get(self) -> tuple:
        """(result, True) of the oldest frame of put(), or (None, False) if there is none."""
        self._engine.check()
        future = self._put.popleft() if self._put else None
        try:
            return (future.result(), True) if future else (None, False)
        finally:
            if future and not future.done():  # Ctrl-C: the next get() waits for it again
                self._put.appendleft(future)
            del future  # breaks a reference cycle with the exception's traceback

    def release(self, timeout: float | None = None, wait: bool = True) -> None:
        """Cancel waiting frames, finish those in progress, and close the contexts.

        timeout: seconds to wait; None: until each context is closed or hangs. TimeoutError names
            those still open. Python's exit waits for their threads; os._exit() does not.
        wait: False returns at once, and is allowed in signal handlers, callbacks and __del__. A
            call from the pool's own threads never waits. May be called again.
        """
        engine = self._engine
        engine.check()
        engine.todo.put(engine.cancel)
        if wait and getattr(_local, "engine", None) is not engine:
            engine.ended.wait(timeout)
            lost = [context.label for context in engine.contexts if not context.closed]
            if lost:
                raise TimeoutError(f"{', '.join(lost)} did not finish a frame in time")

    @property
    def frames_per_core(self) -> list[int]:
        """Frames given to each core so far; one number if every context uses several cores."""
        return [core.frames for core in self._engine.cores]

    def __exit__(self, *_: Any) -> None:
        self.release()


class Results(Iterator):
    """The iterator of map(): a class, because a generator ends at its first exception."""

    def __init__(self, pool: rknnPoolExecutor, func: Any, frames: Iterable, live: bool) -> None:
        self._pool, self._engine = pool, pool._engine  # the pool lives as long as its results
        # The feeder does not refer to self, so leaving the loop deletes self and stops the feeder.
        self._stream = _Stream(self._engine, live)
        self._engine.check()
        with self._engine.usable:
            self._engine.check(usable=True)
            self._engine.maps.add(self._stream)
            threading.Thread(target=self._stream.feed, args=(frames, func), daemon=True).start()

    def __next__(self) -> Any:
        self._engine.check()
        task = self._stream.take()
        try:
            return task.result()
        finally:
            del task, self  # breaks a reference cycle with the exception's traceback

    @property
    def dropped(self) -> int:
        """Live: frames that were read, but replaced by newer ones."""
        return self._stream.dropped

    def close(self) -> None:
        """Stop reading and cancel waiting frames. Waits for nothing, and takes no lock."""
        self._engine.todo.put(self._stream.stop)
    __del__ = close


class _Task(Future):
    """The future of a frame's result. It holds the frame until the result is there."""

    def __init__(self, func: Any = None, frame: Any = None, pool: Any = None) -> None:
        super().__init__()
        self.func, self.frame, self.pool = func, frame, pool  # the pool lives until then
        self.done_at = 0.0  # time.perf_counter(); 0 until it is done

    def end(self, error: BaseException | None, result: Any = None) -> None:
        self.frame = self.pool = None
        try:
            if error is None:
                self.set_result(result)
            elif not (isinstance(error, CancelledError) and self.cancel()):
                self.set_exception(error)
        except BaseException as raised:
            if not isinstance(raised, InvalidStateError):  # already ended: its context hung
                log.exception("exception in a callback of a future")


class _Stream:
    """The frames of one map(): read by the feeder thread, taken by the consumer in order."""

    def __init__(self, engine: _Engine, live: bool) -> None:
        self.engine, self.live, self.max_tasks, self.dropped = engine, live, 3 * engine.count, 0
        lock = threading.RLock()
        self.changed = threading.Condition(lock)  # for the consumer
        self.room = threading.Condition(lock)     # for the feeder
        self.tasks: collections.deque[_Task] = collections.deque()  # read and not yet taken
        self.newest_taken, self.ended = 0.0, False  # its done_at; once ended, tasks[-1] raises

    def feed(self, frames: Any, func: Callable) -> None:
        """The feeder thread. It keeps neither frames nor exceptions alive."""
        _local.engine = self.engine
        try:
            frames = iter(frames)
            while not self.ended:
                self._add(_Task(func, next(frames)))
        except BaseException as error:  # StopIteration, too
            self.end(CancelledError(RELEASED) if self.engine.released else error)
        finally:
            del frames  # a generator ends here, in the thread that ran it
            self.engine.maps.discard(self)

    def _add(self, task):
        accepted = self.engine.submit(task, self)
        with self.changed:
            self.dropped += not accepted  # its frame replaced the one that waited
            if accepted and not self.ended:
                self.tasks.append(task)
            task.add_done_callback(self._done)
            self.room.wait_for(lambda: self.ended or self.live or len(self.tasks) < self.max_tasks)

    def _done(self, task):
        with self.changed:
            task.done_at = time.perf_counter()
            self._drop_late()
            self.changed.notify_all()

    def _drop_late(self):
        """Live: drop the oldest results once newer ones are done, if the consumer is slow, or if
        too many wait for a slow frame."""
        done = [task for task in self.tasks if task.done_at and task.func] if self.live else []
        while done and self.tasks[0] is not done[-1]:
            first, now = self.tasks[0].done_at, time.perf_counter()
            late = first and now > max(first, self.newest_taken) + SLOW_CONSUMER_SECONDS
            if not late and len(self.tasks) <= self.max_tasks:
                break
            self.tasks.popleft()
            self.dropped += 1

    def take(self) -> _Task:
        """Wait for the next task that is done."""
        with self.changed:
            self._drop_late()
            self.changed.wait_for(lambda: self.tasks and self.tasks[0].done_at)
            self.newest_taken = max(self.newest_taken, self.tasks[0].done_at)
            self.room.notify_all()
            task = self.tasks.popleft()
            if self.ended and not self.tasks:  # further calls get StopIteration
                self.ended = False
                self.end(StopIteration())
            return task

    def end(self, error: BaseException) -> None:
        """Nothing more is read: the consumer gets what was read, and then this error."""
        with self.changed:
            if not self.ended:
                self.ended = True
                self.tasks.append(_Task())
                self.tasks[-1].end(error)
                self._done(self.tasks[-1])
                self.room.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.end(StopIteration())  # nobody wants more results
            while len(self.tasks) > 1:  # their callbacks refer to this stream: a cycle
                self.tasks.popleft().cancel()


class _Core:
    """An NPU core (several, if contexts are bound to several), as one pool sees it."""

    def __init__(self, npu: Any, mask: int | None) -> None:
        self.npu, self.mask, self.frames = npu, mask, 0
        self.pause, self.paused_until = 0, 0.0  # seconds, 0: it works; a time.monotonic()
        self.on_trial = False  # one context serves one frame after a pause

    def busy(self, or_open: bool = False) -> int:
        """The number of busy (or open) contexts on it, of all pools of this process."""
        return sum(each.core.npu is self.npu and (each.core.mask or 1) & (self.mask or 1) > 0
                   and (not each.closed if or_open else each.task is not None)
                   for engine in list(_engines) for each in engine.contexts)


class _Context:
    """An RKNNLite instance on a core. Its inference is watched."""

    def __init__(self, engine: _Engine, core: _Core, number: int) -> None:
        self.engine, self.core = engine, core
        self.lite: Any = None
        cores = "+".join(str(bit) for bit in range(16) if (core.mask or 0) >> bit & 1)
        self.label = f"context {number} of {engine.count}{', core ' * (cores != '')}{cores}"
        self.task: _Task | None = None        # in progress
        self.failure: NPUError | None = None  # of that task
        self.began = 0                        # engine.clock when its inference began, or 0
        self.run_failed = self.hung = self.closed = False

    def open(self, runtime: Any, model: Any) -> None:
        self.lite, path = runtime(), getattr(model, "path", model)
        mask = {} if self.core.mask is None else {"core_mask": self.core.mask}
        if self.lite.load_rknn(path) or self.lite.init_runtime(**mask):
            reason = getattr(self.lite, "error", None) or "see the runtime's message above"
            raise RuntimeError(f"{self.label} could not open {path}: {reason}")
        self.lite.label, self.lite.model = self.label, None if path is model else model
        if hasattr(self.lite, "rknn_runtime"):  # Rockchip's wheel
            self.lite.rknn_runtime.run = functools.partial(self._run, self.lite.rknn_runtime.run)
        for name in ("inference", "inference_raw"):
            if hasattr(self.lite, name):
                setattr(self.lite, name, functools.partial(self._infer, getattr(self.lite, name)))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.lite.release()
        self.lite, self.closed = None, True

    def _run(self, run, *args, **options):
        """The wheel ignores what rknn_run returns: a failed run would return the last outputs."""
        returned = run(*args, **options)
        code = returned[0] if isinstance(returned, tuple) else returned
        self.run_failed = isinstance(code, int) and code < 0
        return returned

    def _infer(self, infer, inputs, *args, **options):
        """inference() and inference_raw() of the contexts that func gets."""
        axes = [len(shape) for _, shape in getattr(self.lite.model, "inputs", [])]
        inputs = [each[None] if getattr(each, "ndim", 0) == 3 and 3 not in axes else each
                  for each in (inputs if isinstance(inputs, (list, tuple)) else [inputs])]
        self.run_failed = False
        self.began = 0 if getattr(self.lite, "ON_CPU", False) else self.engine.clock
        try:
            outputs = infer(inputs, *args, **options)
        finally:
            self.began = 0
        reason = getattr(self.lite, "error", None) or "see the message above"
        has_reasons = hasattr(self.lite, "error") or hasattr(self.lite, "rknn_runtime")
        if self.run_failed or getattr(self.lite, "run_failed", outputs is None and not has_reasons):
            self.failure = self.engine.record_failure(self, reason)
            raise self.failure
        if outputs is None:
            shapes = ", ".join(str(getattr(each, "shape", each)) for each in inputs)
            raise ValueError(f"{self.label}: inference refused the input {shapes}: {reason}")
        self.engine.failures = 0
        if self.core.on_trial:
            self.core.pause = 0
        return outputs


class _Engine:
    """What the threads of a pool share. It does not refer to the pool, which may be dropped."""

    def __init__(self, runtime: Any, model: Any, count: int, masks: list) -> None:
        self.pid, self.count = os.getpid(), count
        npu = runtime if hasattr(runtime, "NPU_CORES") else None  # a simulated NPU is its own
        self.cores = [_Core(npu, mask) for mask in masks]
        self.usable = threading.Condition()  # a context became idle; guards what follows
        self.contexts: list[_Context] = []
        self.waiting: collections.OrderedDict = collections.OrderedDict()  # stream: deque of tasks
        self.maps: set[_Stream] = set()
        self.clock = 1  # seconds, counted by the helper: stands still while the process is stopped
        self.failures, self.released = 0, False  # failed runs in a row
        self.todo: SimpleQueue = SimpleQueue()  # functions for the helper; put() is reentrant
        self.ended = threading.Event()
        self.executor = ThreadPoolExecutor(count, "rknnpool", setattr, (_local, "engine", self))
        first = self.pid % len(masks)  # so that programs with one context do not all use core 0
        cores = self.cores[first:] + self.cores[:first]
        _engines.append(self)
        try:
            for number in range(1, count + 1):
                core = min(cores, key=lambda core: core.busy(or_open=True))
                self.contexts.append(_Context(self, core, number))
                self.contexts[-1].open(runtime, model)
            self.idle = self.contexts[:]
            threading.Thread(target=self._run_helper, name="rknnpool-helper", daemon=True).start()
        except BaseException:
            _engines.remove(self)
            for context in self.contexts:
                context.close()
            raise

    def check(self, usable: bool = False) -> None:
        if os.getpid() != self.pid:
            raise RuntimeError(f"a forked process cannot use the pool of process {self.pid}")
        if usable and self.released:
            raise RuntimeError(RELEASED)

    def submit(self, task: _Task, stream: _Stream | None) -> bool:
        """Enqueue a task. False: its frame replaced the one of a live stream that waited."""
        self.check()  # before the lock, which a forked process may have inherited locked
        with self.usable:
            self.check(usable=True)
            if stream and stream.live and stream in self.waiting:
                self.waiting[stream][-1].frame = task.frame
                return False
            self.waiting.setdefault(stream, collections.deque()).append(task)
        self.executor.submit(self._serve_next)
        return True

    def _serve_next(self):
        """The executor's job: serve one frame; again if its run failed and another core works."""
        with self.usable:
            context = self._take()  # before the frame, so that no frame waits behind a newer one
            if context is None:
                return
            stream, tasks = self.waiting.popitem(last=False)
            context.task = task = tasks.popleft()
            if tasks:
                self.waiting[stream] = tasks  # the other streams come first
        result, error = None, None
        running = task.set_running_or_notify_cancel()  # False: it is cancelled
        while context:
            try:
                result, error = task.func(context.lite, task.frame) if running else None, None
            except BaseException as raised:
                error = raised
                if isinstance(raised, (StopIteration, CancelledError)):  # these would end a map()
                    error = RuntimeError(f"func raised {type(raised).__name__}")
                    error.__cause__ = raised
            error = context.failure or error  # func may have caught it
            if isinstance(error, NPUError):
                error.frame = task.frame
            context = self._take(task) if self._give_back(context, task) else None
        task.end(error, result)
        del stream, task, tasks, error, result  # the error refers to this call: a cycle

    def _take(self, task=None):
        """Wait for the idle context whose core has the least work; None after release()."""
        with self.usable:
            while not self.released:
                working, now = self._working_cores(), time.monotonic()
                contexts = [each for each in self.idle if each.core in working or not working
                            or now >= each.core.paused_until and not each.core.on_trial]
                if contexts:
                    context = min(contexts, key=lambda each: (each.core.busy(), each.core.frames))
                    context.core.on_trial = context.core.pause > 0
                    context.core.frames += 1
                    context.task = task
                    self.idle.remove(context)
                    return context
                self.usable.wait(1.0)
        return None

    def _working_cores(self):
        """The cores that do not pause and have a context that does not hang."""
        return {each.core for each in self.contexts if not each.core.pause and not each.hung}

    def _give_back(self, context, task):
        """Make a context idle. True if its task's run failed and another core can retry it."""
        with self.usable:
            failure, context.failure, context.task = context.failure, None, None
            context.core.on_trial = context.hung = False  # a hung context has returned after all
            self.idle.append(context)
            self.usable.notify_all()
        if self.released:
            self._close_idle()  # if this context hung, the helper may have ended already
            self.todo.put(bool)  # wakes the helper
        return bool(failure and context.core.pause and self._working_cores() and not self.released
                    and not task.done())

    def record_failure(self, context: _Context, reason: str) -> NPUError:
        """Count a failed run, and return its error. The core pauses if another one works."""
        what, core = f"{context.label}: a run failed on the NPU ({reason})", context.core
        with self.usable:
            self.failures += 1
            if self._working_cores() - {core}:
                if not core.pause:
                    log.warning("%s. Its core pauses and is tried again with one frame after %d s.",
                                what, PAUSE_SECONDS[0])
                if not core.pause or core.on_trial:
                    core.pause = min(2 * core.pause or PAUSE_SECONDS[0], PAUSE_SECONDS[1])
                    core.paused_until = time.monotonic() + core.pause
            elif self.failures >= DEAD_AFTER_FAILURES:
                return NPUError(f"{self.failures} runs in a row, {what}", True, context.label)
        return NPUError(what, False, context.label)

    def _look_for_hung(self):
        for context in self.contexts:
            began, task = context.began, context.task
            if began and task and not context.hung and self.clock >= began + HANG_SECONDS:
                context.hung = True
                what = f"{context.label} hangs: no answer from the NPU for {HANG_SECONDS} s"
                dead = (self.failures >= DEAD_AFTER_FAILURES
                        or all(other.hung for other in self.contexts))
                error = NPUError(what, dead, context.label, task.frame)
                log.warning("%s.", error)
                task.end(error)
                if dead:
                    self.cancel(error)

    def _run_helper(self):
        """The helper thread: calls what is in `todo`, and looks for contexts that hang."""
        _local.engine, last = self, time.monotonic()
        while not (self.released and all(each.closed or each.hung for each in self.contexts)):
            with contextlib.suppress(Empty):
                self.todo.get(timeout=1.0)()
            if time.monotonic() >= last + 1.0:
                last, self.clock = time.monotonic(), self.clock + 1
                self._look_for_hung()
            if self.released:
                self._close_idle()
        self.executor.shutdown(wait=all(each.closed for each in self.contexts))
        _engines.remove(self)
        self.ended.set()

    def _close_idle(self):
        with self.usable:
            idle, self.idle = self.idle, []
        for context in idle:
            context.close()

    def cancel(self, error: BaseException | None = None) -> None:
        """Cancel what waits, and close the contexts as they become idle."""
        with self.usable:
            self.released = True
            lost = [task for tasks in self.waiting.values() for task in tasks]
            self.waiting.clear()
            self.usable.notify_all()
        for stream_or_task in [*self.maps, *lost]:
            stream_or_task.end(error or CancelledError(RELEASED))


_engines: list[_Engine] = []  # of all pools of this process, which share the NPU
_local = threading.local()  # engine: the one that a thread works for


@atexit.register
def _end_at_exit():
    """Pools that were not released serve what was submitted and close their contexts."""
    for engine in [each for each in _engines if each.pid == os.getpid()]:  # not in a fork
        engine.executor.shutdown()
        engine.todo.put(engine.cancel)
        engine.ended.wait()
