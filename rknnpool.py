"""rknnPoolExecutor: RKNNLite contexts, bound to the NPU's cores in turn, each with a thread of its own.

    with rknnPoolExecutor("models/yolov5n_emoji.rknn", TPEs=6, func=myFunc) as pool:
        for result in pool.map(frames):     # in the order of the frames
            ...

A context is opened, run and closed by one worker only, so that none is closed while it runs or used after that.
Whatever may be called at any time (by a signal handler, a callback, the garbage collector) takes no lock: it sets a
flag and puts a word into a SimpleQueue, and the pool's keeper thread does the rest.
"""
from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import gc
import inspect
import itertools
import logging
import operator
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, InvalidStateError
from queue import Empty, SimpleQueue
from typing import Any, Callable, Iterable

import rknnmodel
from rknnmodel import LIBRARY, SOCS, ModelError, family, npu_cores

try:
    import fcntl
except ImportError:  # not on Windows, which no board runs
    fcntl = None

COMPATIBLE = "/proc/device-tree/compatible"
DEVICES = ("/dev/dri/renderD129", "/dev/rknpu")
ROCKET = ("/dev/accel/accel0", "/sys/module/rocket")  # the open driver of mainline kernels
UNMASK = "a container hides it: docker run --security-opt systempaths=unconfined"

HANG = 12.0      # seconds inside inference that make a context hang; the driver gives a run up after 6 to 10
FAILURES = 10    # failed inferences in a row that make the NPU dead,
SILENCE = 10.0   # or three, and no success for so many seconds
PROMPT = 0.02    # seconds that a live result may lie before its consumer counts as slow
OVERTAKE = 1.0   # seconds that a live result waits for those before it
GRACE = 0.5      # seconds that release() and close() wait for a frame that is being read


class NPUError(ModelError):
    """A frame's inference failed on the NPU, or its context, `place`, hangs; with `fatal` the NPU as a whole does not
    answer."""

    def __init__(self, message: str, fatal: bool = False, place: str | None = None):
        super().__init__(message)
        self.fatal, self.place, self.frame = fatal, place, None  # frame: which failed, where that is known


def soc() -> str | None:
    """Name of this machine's Rockchip SoC with an NPU ("rk3588s"), from RKNN_SOC or the device tree, or None."""
    if os.environ.get("RKNN_SOC"):
        return os.environ["RKNN_SOC"].lower() if family(os.environ["RKNN_SOC"].lower()) else None
    try:
        with open(COMPATIBLE, "rb") as file:
            names = file.read().decode("ascii", "replace").split("\0")
    except OSError:
        return None
    # Of a board of Rockchip's own, rk3588-evb7-v11, the SoC stands before the first hyphen.
    chips = [name.partition(",")[2].partition("-")[0] for name in names if name.startswith("rockchip,")]
    return next((chip for chip in chips if family(chip)), None)


def missing() -> str:
    """What the vendor's runtime needs and this machine lacks, as the end of a sentence; empty where all is there."""
    if any(map(os.path.exists, ROCKET)):
        return ("this kernel has the open rocket driver, which Rockchip's librknnrt.so cannot use: --runtime teflon "
                "does (models/README.md), or boot a kernel with the rknpu driver, as the board vendor's images have it")
    lacks = [] if os.path.exists(COMPATIBLE) else [f"{COMPATIBLE} ({UNMASK})"]
    lacks += [] if os.path.exists(LIBRARY) else [f"{LIBRARY} (it comes with the board vendor's image)"]
    lacks += [] if any(map(os.path.exists, DEVICES)) else [f"{DEVICES[0]} (the rknpu driver's device)"]
    return f"this machine lacks {', '.join(lacks)}" if lacks else ""


def _default_runtime():
    name, given = soc(), os.environ.get("RKNN_SOC")
    why = None
    if name:
        try:
            from rknnlite.api import RKNNLite
            return RKNNLite
        except Exception as error:  # ValueError: built for another NumPy
            why = f"{name} found{' in RKNN_SOC' if given else ''}, but not rknn-toolkit-lite2 ({error})"
        if any(map(os.path.exists, ROCKET)):
            why += f"; and {missing()}"
        elif os.path.exists(os.environ.get("RKNNRT_LIB", LIBRARY)):
            with contextlib.suppress(ImportError):  # that file can be left out
                from runtimes.librknnrt import RKNNLite
                return RKNNLite
        if sys.version_info >= (3, 13) and not any(map(os.path.exists, ROCKET)):
            why += "; it supports Python 3.7 to 3.12: `uv venv --python 3.12` makes an environment with one"
    elif given:
        why = f"RKNN_SOC={given} is no SoC with an NPU that is known ({', '.join(SOCS)})"
    elif not os.path.exists(COMPATIBLE) and any(map(os.path.exists, (LIBRARY, *DEVICES))):
        why = f"No {COMPATIBLE} ({UNMASK}); RKNN_SOC=rk3588 names the SoC without it"
    try:
        from runtimes import cpu
    except ImportError:  # this file was copied alone

        class Missing:
            error = (f"{why or 'no Rockchip NPU found'}, and not runtimes/cpu.py, which takes its place: "
                     "copy the folder runtimes, too")

            def load_rknn(self, path):
                return -1

            def release(self):
                pass
        return Missing
    cpu.why = why or cpu.why
    return cpu.RKNNLite


RKNNLite = _default_runtime()


def _runtime_for(model):
    """The runtime of a pool that was given none: only the open driver's runs a .tflite."""
    if str(getattr(model, "path", model)).lower().endswith(".tflite"):
        with contextlib.suppress(ImportError):  # that file can be left out
            from runtimes.teflon import RKNNLite as open_driver
            return open_driver
    return RKNNLite


class rknnPoolExecutor:
    """Runs func(context, frame) on a pool of RKNNLite contexts.

    rknnModel: path of the model, or what rknnmodel.describe() made of it, with settings of its own.
    TPEs: number of contexts, each with a thread; None means two per NPU core, so that one frame's pre- and
        post-processing overlaps another's inference.
    func: callable (context, frame) -> result; None means func.py's myFunc. A context is in one call at a time; it
        carries `model` (a rknnmodel.Model) and `place` ("context 2 of 6, core 1").
    coreMask: binds every context to these cores (RKNNLite.NPU_CORE_0_1_2: each frame on all three); None binds the
        contexts to single cores in turn. SoCs with one core refuse masks, so there none is passed.
    runtime: class with RKNNLite's interface, None for the NPU's, or on a PC the CPU's. With an attribute NPU_CORES it
        is an NPU of its own with so many cores (a simulated one).

    A frame goes to the idle context whose core has the least in work, counted over all pools of this process on that
    NPU, the fewest of this pool's frames among equals. func must not wait for other frames of the same pool. Raises
    TypeError or ValueError for arguments that cannot be, rknnmodel.InputError for a model that this machine cannot run,
    and RuntimeError with the reason where a context does not open; those before it are closed then.
    """

    def __init__(self, rknnModel: str | os.PathLike | rknnmodel.Model, TPEs: int | None = None,
                 func: Callable | None = None, *, coreMask: int | None = None, runtime: type | None = None):
        runtime = runtime or _runtime_for(rknnModel)
        if func is None:
            from func import myFunc as func  # only here, so that a pool with a func of its own needs no func.py
        _check_func(func)
        cores = getattr(runtime, "NPU_CORES", None) or npu_cores(soc())
        try:
            TPEs = 2 * cores if TPEs is None else operator.index(TPEs)
        except TypeError:
            raise TypeError(f"TPEs is {TPEs!r}: a whole number is needed") from None
        if TPEs < 1:
            raise ValueError(f"TPEs is {TPEs}: a pool has at least one context")
        masks = [None] if cores == 1 else [coreMask] if coreMask is not None else [1 << core for core in range(cores)]
        self.rknnModel, self.TPEs = getattr(rknnModel, "path", rknnModel), TPEs
        self._func = func
        self._put = collections.deque()  # futures of put(), for get()
        self._queue = _Queue()           # of submit()
        self._dispatcher = _Dispatcher(runtime, rknnModel, TPEs, masks)
        # A pool dropped without release() serves what was submitted and closes its contexts.
        weakref.finalize(self, self._dispatcher.events.put, "drain").atexit = False

    def submit(self, frame: Any) -> Future:
        """Enqueue one frame, from any thread: a concurrent.futures.Future of func's result.

        The frame belongs to the pool until then: do not draw on it, and do not read the next one into the same buffer.
        Raises RuntimeError after release(), and in a process that was forked since the pool was made.
        """
        self._dispatcher.check_process()
        return self._dispatcher.enqueue(frame, self._func, self._queue)

    def map(self, frames: Iterable, live: bool = False) -> Results:
        """Iterate over the results for `frames` (any iterable), in their order, each as soon as those before it are
        done.

        A thread of its own reads `frames`, so that decoding overlaps inference. Every frame must be an array of its
        own: a source that fills one buffer again and again is wrapped as (frame.copy() for frame in frames), and a
        frame that func draws on is not given twice.
        At most 2 * TPEs frames wait or are in work, and 3 * TPEs are read and not yet taken: then reading waits. (The
        latter lets fast cores go on while a slow one holds up the order.)
        live=True never makes `frames` wait: of those that no context is free for only the newest is kept. A consumer
        that is slow gets the newest finished result, never an older one after it, and of errors the last 3 * TPEs. The
        iterator's `dropped` counts the others. An exception from `frames` or from func is raised by the next() whose
        turn that frame has; after one from func the iterator goes on. A released pool's map() raises CancelledError
        where it is cut short. Leaving the loop (or close()) stops the reading. Several map()s on one pool are served in
        turns. Raises RuntimeError as submit() does.
        """
        return Results(self, frames, live)

    def put(self, frame: Any) -> None:
        """Enqueue one frame whose result get() returns in its turn. Nothing bounds how many wait: call get() as
        often."""
        self._put.append(self.submit(frame))

    def get(self) -> tuple:
        """(result, True) of the oldest frame that was put, waiting for it; (None, False) where none is pending."""
        self._dispatcher.check_process()
        try:
            future = self._put.popleft()
        except IndexError:
            return None, False
        try:
            return future.result(), True
        finally:
            if not future.done():  # Ctrl-C: the next get() waits for it again
                self._put.appendleft(future)
            del future  # a failed future refers to this call by its traceback: a cycle, which would keep frames

    def release(self, timeout: float | None = None) -> None:
        """End: frames not yet begun are cancelled, those in work finished, every context is closed, by its own thread.

        May be called again, from several threads, and after an interruption. From a worker, a callback in one, a signal
        handler, the garbage collector or `frames`, it only begins the end, for to wait there would be to wait for
        itself.
        timeout: seconds after which contexts still in work are given up: their frames are cancelled, and TimeoutError
        names them; they are left to the end of the process. So is one that hangs in inference, whatever
        the timeout. Raises what a context's own release() raised, once all are closed, and RuntimeError in a forked
        process.
        """
        self._dispatcher.check_process()
        self._dispatcher.begin_end()
        if not self._dispatcher.called_from_within():
            self._dispatcher.wait_for_end(timeout)

    @property
    def idle(self) -> bool:
        """Whether a context has nothing to do, and would begin a frame at once."""
        return any(self._dispatcher.idle.values())

    @property
    def runs(self) -> list[int]:
        """Frames given to each core so far: a list of ints. One entry where every context is bound to all cores."""
        return list(self._dispatcher.runs.values())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def _check_func(func):
    if not callable(func):
        raise TypeError(f"func is {func!r}: a function func(rknn_lite, IMG) is needed")
    try:
        inspect.signature(func).bind(None, None)
    except ValueError:  # some built-in functions do not tell
        return
    except TypeError as error:
        name = getattr(func, "__name__", repr(func))
        raise TypeError(f"{name} is called as {name}(rknn_lite, IMG), and does not take that: {error}") from None


def _is_vendors(runtime):
    return (getattr(runtime, "__module__", None) or "").split(".")[0] == "rknnlite"


def npu_of(runtime: type | None = None) -> str | None:
    """The SoC whose NPU contexts of `runtime` run on; None where none does, as of the CPU's, which is the default on a
    board whose own is not there."""
    runtime = runtime or RKNNLite
    return soc() if _is_vendors(runtime) or getattr(runtime, "VENDOR_NPU", False) else None


class _Core:
    """An NPU core (or several, where contexts are bound to several), as all pools of this process use it."""

    def __init__(self, mask):
        self.mask = mask   # for init_runtime; None: pass none
        self.contexts = 0  # open on it
        self.in_work = 0   # frames being worked on by them

    def __str__(self):
        numbers = [str(bit) for bit in range(8) if (self.mask or 0) >> bit & 1]
        return f"core{'s' if len(numbers) > 1 else ''} {'+'.join(numbers)}" if numbers else ""


class _NPU:
    """The cores of one NPU. The vendor's is one for the whole process, every simulated one is one of its own."""

    known = weakref.WeakKeyDictionary()  # by runtime class
    claims: dict = {}                    # by core mask: the file whose lock tells other processes, how many they are
    claiming = threading.Lock()          # over both
    folder = tempfile.gettempdir()       # where processes see each other

    def __init__(self, physical):
        self.physical, self.cores = physical, {}  # _Core by mask
        self.lock = threading.Lock()              # over them, and their pools' idle contexts and waiting frames

    @classmethod
    def of(cls, runtime):
        vendor = _is_vendors(runtime) or getattr(runtime, "VENDOR_NPU", False)
        physical = vendor or not hasattr(runtime, "NPU_CORES") and soc() is not None
        with cls.claiming:
            return cls.known.setdefault(cls if vendor else runtime, cls(physical))

    def cores_of(self, masks):
        with self.lock:
            return [self.cores.setdefault(mask, _Core(mask)) for mask in masks]

    def load(self, core):
        """Frames in work on any of this core's cores."""
        return sum(other.in_work for other in self.cores.values()
                   if other is core or (other.mask or 0) & (core.mask or 0))

    def open_on(self, cores):
        """The core for the next context: the one with the fewest contexts, and the fewest other processes."""
        with self.claiming:
            if self.physical and len(cores) > 1 and fcntl is not None:
                self._claim(core.mask for core in cores)
            with self.lock:
                core = min(cores, key=lambda core: (core.contexts, self.claims.get(core.mask, (None, 0))[1]))
                core.contexts += 1
            self._drop_claims()
        return core

    def closed_on(self, core):
        with self.claiming:
            with self.lock:
                core.contexts -= 1
            self._drop_claims()

    def _claim(self, masks):
        """Lock a file for each core: the first one that nobody has locked tells how many other processes there are."""
        try:
            with open(os.path.join(self.folder, "rknnpool.lock"), "a") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                for mask, others in itertools.product(masks, range(8)):
                    if mask in self.claims:  # already, or just now
                        continue
                    file = open(os.path.join(self.folder, f"rknnpool-{mask}-{others}.lock"), "a")
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        self.claims[mask] = file, others
                    except OSError:
                        file.close()
        except OSError:  # another user's files: the processes do not see each other then
            pass

    def _drop_claims(self):
        used = {mask for npu in list(self.known.values()) if npu.physical
                for mask, core in list(npu.cores.items()) if core.contexts}
        for mask in set(self.claims) - used:
            self.claims.pop(mask)[0].close()


class _Queue:
    """The frames of one stream that wait for a context: (future, frame, func)."""

    def __init__(self):
        self.entries = collections.deque()


class _Worker:
    """One context, and the thread that runs and closes it."""

    def __init__(self, number, count, core):
        self.core = core
        self.place = f"context {number} of {count}{f', {core}' if str(core) else ''}"
        self.context = self.thread = None
        self.inbox = SimpleQueue()  # entries; None: wake up, the pool ends
        self.future = self.frame = None  # of the frame in work, and the frame
        self.began = None           # when the inference in work began
        self.closing = None         # when the context's release() began
        self.failure = None         # NPUError of the last inference
        self.run_failed = False     # the vendor's rknn_run said so
        self.closed = self.hung = self.given_up = False


class _Dispatcher:
    """What a pool's threads share. It knows neither the pool nor its func, so that a pool that is dropped can be
    collected."""

    alive: set = set()  # for the end of the process

    def __init__(self, runtime, path, count, masks):
        self.pid = os.getpid()
        self.npu = _NPU.of(runtime)
        self.lock = self.npu.lock
        self.model = self._describe(runtime, path)
        self.workers = []
        self.runs = {core: 0 for core in self.npu.cores_of(masks)}
        self.idle = {core: [] for core in self.runs}
        self.waiting = collections.deque()  # the queues with frames that wait, the next one first
        self.maps, self.feeders = set(), set()
        self.ending = self.draining = False
        self.events = SimpleQueue()         # for the keeper: "end", "drain", a dropped _Order, None: look again
        self.closed = threading.Event()
        self.releasing = set()              # threads that wait for the end
        self.error = None                   # of a context's release()
        self.failures, self.failing_since, self.failing_cores = 0, 0.0, set()
        self.keeper = _Worker(0, 0, "")
        try:
            for number in range(1, count + 1):
                self._open(runtime, path, number, count)
            for worker in self.workers:
                self.idle[worker.core].append(worker)
                self._start(worker, "rknnpool", self._work)
            self._start(self.keeper, "rknnpool-keeper", self._keep)
        except BaseException:
            self.ending = True
            for worker in self.workers:
                if worker.thread is None:
                    self._close(worker)
                else:  # which closes its context itself
                    worker.inbox.put(None)
                    worker.thread.join(GRACE)
            raise
        self.alive.add(self)

    @staticmethod
    def _describe(runtime, path):
        """The rknnmodel.Model at `path`. Raises InputError for one that the vendor's runtime or ours cannot run."""
        chip = npu_of(runtime)
        ours = chip or getattr(runtime, "__module__", "") in ("runtimes.cpu", "runtimes.teflon")
        if hasattr(runtime, "find_model") and not isinstance(path, rknnmodel.Model):
            with contextlib.suppress(OSError, TypeError):  # which load_rknn() will tell
                path = runtime.find_model(path)
        try:
            model = path if isinstance(path, rknnmodel.Model) else rknnmodel.describe(path, chip)
        except rknnmodel.InputError:
            if os.path.exists(path):
                raise
            return rknnmodel.Model(os.fspath(path))  # the runtime may know better
        for sentence in rknnmodel.problems(model, chip) if ours else []:
            print(sentence, file=sys.stderr)
        return model

    @staticmethod
    def _start(worker, name, target):
        thread = threading.Thread(target=target, args=(worker,), name=name, daemon=True)
        thread.start()
        worker.thread = thread

    def _open(self, runtime, path, number, count):
        core = self.npu.open_on(list(self.runs))
        worker = _Worker(number, count, core)
        self.workers.append(worker)
        context = worker.context = runtime()
        step, returned = "load_rknn", context.load_rknn(self.model.path)
        if returned == 0:
            step = "init_runtime"
            returned = context.init_runtime() if core.mask is None else context.init_runtime(core_mask=core.mask)
        if returned != 0:
            reason = getattr(context, "error", None)  # only our own runtimes keep their reason
            if not reason and not os.path.exists(self.model.path):
                reason = "no such file"
            elif not reason:
                reason = f"{step} returned {returned}, its own message stands above"
                reason += f"; {missing()}" if self.npu.physical and missing() else ""
            raise RuntimeError(f"context {number} of {count} could not open {self.model.path}: {reason}")
        try:
            context.model, context.place = self.model, worker.place
            _watch(context, worker, self)
        except (AttributeError, TypeError):  # a runtime whose instances take no attributes
            pass

    # ---- frames to contexts ----

    def check_process(self):
        if os.getpid() != self.pid:
            raise RuntimeError(f"this pool belongs to process {self.pid}, from which this one was forked: "
                               "make a pool of its own here")

    def enqueue(self, frame, func, waiting):
        future, first = Future(), getattr(frame, "first", None) is True  # a streams.Result whose source has lost a turn
        entry = future, frame, func
        with self.lock:
            if self.ending:
                raise RuntimeError("the pool has been released")
            cores = [core for core, workers in self.idle.items() if workers]
            if cores and not self.waiting:
                core = min(cores, key=lambda core: (self.npu.load(core), self.runs[core]))
                worker = self.idle[core].pop(0)
                self._book(worker)
                worker.inbox.put(entry)
            else:
                if not waiting.entries and first:
                    self.waiting.appendleft(waiting)
                elif not waiting.entries:
                    self.waiting.append(waiting)
                waiting.entries.append(entry)
        return future

    def replace_newest(self, frame, waiting):
        """Put a newer frame in the place of one that still waits. Returns False where none does."""
        with self.lock:
            if not waiting.entries:
                return False
            older = waiting.entries[-1]
            waiting.entries[-1] = older[0], frame, older[2]
        del older  # and with it the user's frame, but not under the lock
        return True

    def _book(self, worker):
        worker.core.in_work += 1
        self.runs[worker.core] += 1

    def _next(self, worker):
        """The worker's next entry: of the queues in turns, so that no stream waits for another's. None: be idle, or
        end."""
        with self.lock:
            worker.core.in_work -= 1
            if not self.waiting:
                if not (self.ending or self.draining):
                    self.idle[worker.core].append(worker)
                return None
            waiting = self.waiting.popleft()
            entry = waiting.entries.popleft()
            if waiting.entries:
                self.waiting.append(waiting)
            self._book(worker)
            return entry

    def _work(self, worker):
        while True:
            entry = worker.inbox.get()
            while entry is not None:
                self._serve(worker, *entry)
                entry = None  # the frame is not kept while this thread waits
                entry = self._next(worker)
            if self.ending or self.draining:
                break
        self._close(worker)
        self.events.put(None)

    def _serve(self, worker, future, frame, func):
        if not future.set_running_or_notify_cancel():
            return
        worker.failure, worker.future, worker.frame = None, future, frame
        try:
            result, error = func(worker.context, frame), None
        except BaseException as raised:
            result, error = None, raised
            if isinstance(raised, (StopIteration, CancelledError)):  # with which a map() ends, and a pool
                error = RuntimeError(f"func raised {type(raised).__name__}")
                error.__cause__ = raised
        if worker.failure is not None:  # func may not have looked at what inference returned
            worker.failure.__cause__, error = error, worker.failure
        if isinstance(error, NPUError):  # another pool's, perhaps, which func asks
            error.frame = frame
        worker.future = worker.frame = worker.failure = None
        worker.hung = False  # it came back after all
        if error is None:
            _settle(future.set_result, result)
        else:
            _settle(future.set_exception, error)
        del future, error  # a failed future refers to this call by its traceback: a cycle, which would keep frames

    def _close(self, worker):
        worker.closing = time.monotonic()
        try:
            if worker.context is not None:
                worker.context.release()
        except BaseException as error:
            self.error = error
        worker.context, worker.closed = None, True
        self.npu.closed_on(worker.core)

    # ---- failures of the NPU ----

    def inference_ended(self, worker, began, failed):
        with self.lock:
            if not failed:
                self.failures = 0
                return
            self.failures += 1
            if self.failures == 1:
                self.failing_since, self.failing_cores = began, set()
            self.failing_cores.add(worker.core)
            row = self.failures >= 3 and time.monotonic() - self.failing_since >= SILENCE or self.failures >= FAILURES
            # A core that is bad by itself does not make the NPU dead.
            dead = row and all(other.hung or other.core in self.failing_cores for other in self.workers)
        reason = getattr(worker.context, "error", None) or "the runtime's own message stands above"
        sentence = f"{worker.place}: inference failed on the NPU, {reason}"
        worker.failure = NPUError(self._obituary(worker) if dead else sentence, dead, worker.place)

    def _obituary(self, worker):
        what = f"{self.failures} inferences in a row failed, the last in {worker.place}"
        if worker.hung:
            what = f"no context has come back from an inference for {HANG:.0f} s, the last was {worker.place}"
        return (f"the NPU does not answer ({what}): look at dmesg and at sudo ./rkcat.sh, let the board cool down, or "
                "switch it off and on again")

    def _look_for_hung(self):
        for worker in self.workers:
            if worker.closing is not None and time.monotonic() >= worker.closing + HANG:
                worker.hung = True
            began, future, frame = worker.began, worker.future, worker.frame
            if began is None or future is None or worker.hung or time.monotonic() < began + HANG:
                continue
            worker.hung = True
            fatal = all(other.hung for other in self.workers)
            sentence = f"{worker.place} hangs: it has not come back from an inference for {HANG:.0f} s"
            error = NPUError(self._obituary(worker) if fatal else sentence, fatal, worker.place)
            error.frame = frame
            _settle(future.set_exception, error)
        if all(worker.hung for worker in self.workers):
            for future, _, _ in self._take_waiting():
                if future.set_running_or_notify_cancel():
                    _settle(future.set_exception, NPUError(self._obituary(self.workers[-1]), True))

    # ---- the end ----

    def _take_waiting(self):
        with self.lock:
            entries = [entry for waiting in self.waiting for entry in waiting.entries]
            for waiting in self.waiting:
                waiting.entries.clear()
            self.waiting.clear()
        return entries

    def _keep(self, _):
        """The keeper's thread: watches over contexts that hang, and ends what others begin to end."""
        while not all(worker.closed or worker.given_up or worker.hung and self.draining for worker in self.workers):
            try:
                event = self.events.get(timeout=1.0)
            except Empty:
                event = None
            if isinstance(event, _Order):
                event.cancel()
            elif event is not None:
                self._end(event)
            event = None
            _note_handlers()
            self._look_for_hung()
        self.alive.discard(self)
        self.closed.set()

    def _end(self, event):
        """Wake every worker to its end, and every map()'s reader. "drain": what waits is served, "end": it is
        cancelled."""
        self.draining = True
        with self.lock:
            maps = list(self.maps)
        for future, _, _ in self._take_waiting() if event == "end" else []:
            _settle(future.cancel)
        for order in maps:
            order.cut()
        for worker in self.workers:
            worker.inbox.put(None)

    def begin_end(self):
        self.ending = True
        self.events.put("end")

    def called_from_within(self):
        """Whether to wait for the end here would be to wait for oneself."""
        ours = [worker.thread for worker in self.workers] + [self.keeper.thread] + list(self.feeders)
        # Not by idents: a thread that has ended leaves its own to the next one.
        return threading.get_ident() in self.releasing or _interrupting() or threading.current_thread() in ours

    def wait_for_end(self, timeout):
        self.releasing.add(threading.get_ident())
        try:
            with self.lock:
                waiting = [future for queue in self.waiting for future, _, _ in queue.entries]
            for future in waiting:  # at once; the keeper, whom no Ctrl-C interrupts, does the same and the rest
                _settle(future.cancel)
            del waiting
            late = [] if self.closed.wait(timeout) else [worker for worker in self.workers if worker.future is not None]
            for worker in late:
                worker.given_up = True
            self.events.put(None)
            self.closed.wait(None if not late and timeout is None else 4 * GRACE)  # for those that were idle
            lost = [worker for worker in self.workers if not worker.closed
                    and not (worker.given_up and worker not in late)]
            closing = "" if any(worker.closing is None for worker in lost) else " from being closed"
            sentence = f"{', '.join(worker.place for worker in lost)} did not come back{closing or ' from a frame'}"
            for worker in lost:
                worker.given_up = True
                if worker.future is not None:
                    _settle(worker.future.set_exception, CancelledError(sentence))
            deadline = time.monotonic() + GRACE
            threads = [worker.thread for worker in self.workers if worker.closed] + [self.keeper.thread]
            for thread in threads + list(self.feeders):  # a feeder may wait for its source for ever
                thread.join(max(0.01, deadline - time.monotonic()))
            error, self.error = self.error, None
            if error is not None:
                raise error
            if lost:
                raise TimeoutError(sentence)
        finally:
            self.releasing.discard(threading.get_ident())


def _settle(end, *arguments):
    """Cancel a future or give it its result or error, unless it has one already (its context was given up meanwhile).

    Its callbacks are the user's: what they raise, SystemExit too, must not end a thread that has contexts to close.
    """
    try:
        end(*arguments)
    except InvalidStateError:
        pass
    except BaseException:
        logging.getLogger("concurrent.futures").exception("exception in a future's callback")  # as Future says it


def _watch(context, worker, dispatcher):
    """Time the context's inferences and count their failures. The vendor's wheels drop the code of a failed
    rknn_run."""
    run = getattr(getattr(context, "rknn_runtime", None), "run", None)

    def checked_run(*args, **options):
        returned = run(*args, **options)
        code = returned[0] if isinstance(returned, tuple) else returned
        if isinstance(code, int) and code < 0:
            worker.run_failed = True
            raise RuntimeError(f"rknn_run returned {code}")  # inference() prints it and returns None
        return returned

    def watched(infer):
        @functools.wraps(infer)
        def inference(*args, **options):
            began = time.monotonic()
            worker.began = None if getattr(context, "ON_CPU", False) else began  # there a large model takes its time
            worker.run_failed, worker.failure, outputs = False, None, None
            try:
                outputs = infer(*args, **options)
            finally:
                worker.began = None
                if outputs is not None:
                    dispatcher.inference_ended(worker, began, failed=False)
                elif (worker.run_failed or getattr(context, "run_failed", False)
                      or run is None and not getattr(context, "error", None)):
                    dispatcher.inference_ended(worker, began, failed=True)  # and not refused for its input
            return outputs
        return inference

    if run is None and _is_vendors(type(context)) and worker is dispatcher.workers[0]:
        print("Failures of the NPU cannot be seen with this version of rknn-toolkit-lite2.", file=sys.stderr)
    elif run is not None:
        context.rknn_runtime.run = checked_run
    context.inference = watched(context.inference)
    if hasattr(context, "inference_raw"):
        context.inference_raw = watched(context.inference_raw)


_collecting: set = set()  # threads in which the garbage collector runs


def _note_collection(phase, _):
    (_collecting.add if phase == "start" else _collecting.discard)(threading.get_ident())


gc.callbacks.append(_note_collection)


def _interrupting():
    """Whether this call comes from the garbage collector or a signal handler: what they interrupted may hold any
    lock."""
    return threading.get_ident() in _collecting or _in_signal_handler()


_handlers: set = set()  # code of the signal handlers seen so far, one of which may have put another in its place


def _note_handlers():
    for handler in map(signal.getsignal, signal.valid_signals()):
        handler = getattr(handler, "func", handler)  # of a functools.partial
        if callable(handler):
            _handlers.add(getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None))


def _in_signal_handler():
    """Whether a handler is on the stack that got the frame which it interrupted: one called by hand did not."""
    if threading.current_thread() is not threading.main_thread():
        return False
    _note_handlers()
    frame = sys._getframe()
    while frame.f_back is not None:
        if frame.f_code in _handlers:  # of other frames f_locals, once read, would keep what stands in them
            names, rest, _, values = inspect.getargvalues(frame)
            if any(value is frame.f_back for value in [*map(values.get, names), *(values.get(rest) or ())]):
                return True
        frame = frame.f_back
    return False


class _Order:
    """What a map()'s iterator, its feeder and the keeper share: the futures in the order of the frames."""

    def __init__(self, count, live):
        self.live, self.queue, self.dropped, self.most = live, _Queue(), 0, 3 * count  # most: that are not yet taken
        self.futures, self.changed = collections.deque(), threading.Condition(threading.Lock())
        self.late = []          # in work still when newer ones were handed out; only their errors are wanted
        self.end = None         # once no more is read: StopIteration, or an exception
        self.stopped = False    # nobody wants more
        self.newest_done = 0.0  # when the last of those that were handed out was done
        self.unfinished, self.untaken = SimpleQueue(), SimpleQueue()  # a token for each frame that may be read
        for _ in range(count + 1 if live else 2 * count):  # live: what is in work, and the newest
            self.unfinished.put(None)
        for _ in range(self.most):
            self.untaken.put(None)

    def may_read(self):
        if not self.live:
            self.untaken.get()
            self.unfinished.get()
        return not self.stopped

    def append(self, future):
        with self.changed:
            self.futures.append(future)
        future.add_done_callback(self._done)

    def _done(self, future):
        with self.changed:
            future.done_at = time.perf_counter()
            shed = self._shed(future.done_at) if self.live else None
            if self.live or self.futures and self.futures[0].done():
                self.changed.notify_all()
        self.unfinished.put(None)
        del shed, future

    def _shed(self, now):
        """Drop the results, and old errors, that a slow consumer left lying, but for the newest: a list."""
        old = [*filter(_failed, [*self.late, *self.futures])][:-self.most]
        for future in old:
            self.dropped += future in self.futures  # those in `late` are counted already
            (self.futures if future in self.futures else self.late).remove(future)
        head = self.futures[0] if self.futures else None
        if head is None or not _has_result(head) or now - max(head.done_at, self.newest_done) <= PROMPT:
            return old
        return old + self._overtake()

    def _overtake(self):
        newest = max((place for place, future in enumerate(self.futures) if future.done()), default=0)
        before = len(self.futures)
        while newest and not _failed(self.futures[0]):
            self.late.append(self.futures.popleft())
            newest -= 1
        self.dropped += before - len(self.futures)
        return self._settled()

    def _settled(self):
        """Take out of `late` what has come out well: a list, to be let go of where no lock is held."""
        settled = [late for late in self.late if _has_result(late)]
        self.late = [late for late in self.late if late not in settled]
        return settled

    def take(self):
        """The next future that is done, waiting for it. Raises what ended the reading once there is none left."""
        shed = []
        with self.changed:
            while True:
                now = time.perf_counter()
                shed += self._shed(now) if self.live else []
                future = next(filter(_failed, self.late), None)
                if future is not None:  # a context that hangs is told, whatever has overtaken it
                    self.late.remove(future)
                    self.dropped -= 1  # it counts as failed, not as dropped
                    break
                shed += self._settled()
                if self.futures and self.futures[0].done():
                    future = self.futures.popleft()
                    self.newest_done = max(self.newest_done, getattr(future, "done_at", now))
                    break
                if not self.futures and self.end is not None:
                    end, self.end = self.end, StopIteration
                    raise end
                done = [future.done_at for future in self.futures if hasattr(future, "done_at")] if self.live else []
                if done and now - done[0] > OVERTAKE:  # the one before hangs
                    shed += self._overtake()
                else:
                    self.changed.wait(OVERTAKE if done else None)
        self.untaken.put(None)
        return future

    def finish(self, end):
        with self.changed:
            self.end = self.end or end
            self.changed.notify_all()

    def stop(self):
        self.stopped = True
        self.unfinished.put(None)
        self.untaken.put(None)

    def cut(self):
        """The pool ends: what was served can still be taken, and then a CancelledError says that it is not all."""
        self.finish(_cut_short())
        self.stop()

    def cancel(self):
        """Nobody wants the results."""
        with self.changed:
            futures, self.end = list(self.futures), StopIteration
            self.futures.clear()
            self.changed.notify_all()
        for future in futures:
            future.cancel()


def _cut_short():
    return CancelledError("the pool was released before all frames were served")


def _failed(future):
    return future.done() and (future.cancelled() or future.exception() is not None)


def _has_result(future):
    return future.done() and hasattr(future, "done_at") and not future.cancelled() and future.exception() is None


class Results:
    """Iterator over map()'s results. An iterator and not a generator, for a generator ends with the first exception."""

    def __init__(self, pool, frames, live):
        self._pool, dispatcher = pool, pool._dispatcher  # the pool lives as long as its results are wanted
        self._order = order = _Order(pool.TPEs, live)
        dispatcher.check_process()
        _note_handlers()
        with dispatcher.lock:
            if dispatcher.ending:
                raise RuntimeError("the pool has been released")
            dispatcher.maps.add(order)
        # The thread must not hold a reference to self: leaving the loop would then not end it.
        self._feeder = threading.Thread(target=_feed, args=(dispatcher, pool._func, frames, order), daemon=True,
                                        name="rknnpool-feeder")
        self._feeder.start()

    def __iter__(self):
        return self

    def __next__(self):
        self._pool._dispatcher.check_process()
        future = self._order.take()
        try:
            return future.result()
        finally:
            del future, self  # as in get()

    @property
    def dropped(self) -> int:
        """Frames of a live source that were read and whose results were not handed out, because a newer one came
        first."""
        return self._order.dropped

    def close(self, timeout: float = GRACE) -> None:
        """Stop reading, cancel what no context has begun, and wait up to `timeout` seconds for a frame being read.
        Raises RuntimeError in a forked process."""
        self._pool._dispatcher.check_process()
        self._order.stop()
        if _interrupting():
            self._pool._dispatcher.events.put(self._order)
            return
        self._order.cancel()
        if self._feeder.ident != threading.get_ident():
            self._feeder.join(timeout)

    def __del__(self):
        if hasattr(self, "_order"):  # the garbage collector may call this anywhere: nothing is locked or waited for
            self._order.stop()
            self._pool._dispatcher.events.put(self._order)


def _feed(dispatcher, func, frames, order):
    end = StopIteration
    dispatcher.feeders.add(threading.current_thread())
    try:
        frames = iter(frames)
        while order.may_read():
            frame = next(frames)
            replaced = order.live and dispatcher.replace_newest(frame, order.queue)
            if not replaced and order.live:
                try:
                    order.unfinished.get_nowait()
                except Empty:
                    replaced = True
            if replaced:
                with order.changed:
                    order.dropped += 1
            else:
                order.append(dispatcher.enqueue(frame, func, order.queue))
            del frame
    except StopIteration:
        pass
    except BaseException as error:  # for whoever iterates over the results, at this frame's place
        end = _cut_short() if dispatcher.ending else error
    finally:
        del frames  # a generator ends here, in the thread that ran it
        order.finish(end)
        with dispatcher.lock:
            dispatcher.maps.discard(order)
        dispatcher.feeders.discard(threading.current_thread())


def _forget_after_fork():
    """The child has none of the parent's threads, and its claims are the parent's: it begins anew."""
    for file, _ in _NPU.claims.values():
        file.close()
    _NPU.known, _NPU.claims, _NPU.claiming = weakref.WeakKeyDictionary(), {}, threading.Lock()
    _Dispatcher.alive = set()


def _end_at_exit():
    """Pools that nobody released serve what was submitted, as long as results come, and close their contexts."""
    for dispatcher in list(_Dispatcher.alive):
        dispatcher.events.put("drain")
    for dispatcher in list(_Dispatcher.alive):
        served = None
        while not dispatcher.closed.wait(HANG) and served != sum(dispatcher.runs.values()):
            served = sum(dispatcher.runs.values())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(_end_at_exit)


def initRKNN(rknnModel: str = "./rknnModel/yolov5s.rknn", id: int = 0):
    """One context without a pool, as scripts for the five-file demo ask for it.

    id: the core 0, 1 or 2; -1: all three; anything else: the driver's choice. Raises RuntimeError where it does not
    open.
    """
    mask = {0: 1, 1: 2, 2: 4, -1: 7}.get(id)
    options = {} if mask is None or npu_cores(soc()) == 1 else {"core_mask": mask}
    context = RKNNLite()
    if context.load_rknn(rknnModel) or context.init_runtime(**options):
        reason = getattr(context, "error", None) or "the runtime says above why"
        raise RuntimeError(f"{rknnModel} could not be opened: {reason}")
    return context


def initRKNNs(rknnModel: str = "./rknnModel/yolov5s.rknn", TPEs: int = 1) -> list:
    """So many contexts without a pool, on the cores in turn: a list."""
    return [initRKNN(rknnModel, number % npu_cores(soc())) for number in range(TPEs)]
