"""rknnPoolExecutor: RKNNLite contexts, bound to the NPU's cores in turn, behind a thread pool.

    with rknnPoolExecutor("models/yolov5n_emoji.rknn", TPEs=6, func=myFunc) as pool:
        for result in pool.map(frames):     # in the order of the frames
            ...
"""
import collections
import concurrent.futures
import os
import queue
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

COMPATIBLE = "/proc/device-tree/compatible"
NPU_CORES = {"rk3588": 3, "rk3588s": 3, "rk3582": 3, "rk3576": 2, "rk3566": 1, "rk3568": 1, "rk3562": 1}


def soc():
    """Name of the Rockchip SoC with an NPU that this machine has ("rk3588"), from the device tree, or None."""
    try:
        with open(COMPATIBLE, "rb") as file:
            names = file.read().decode("ascii", "replace").split("\0")
    except OSError:
        return None
    for name in names:
        vendor, _, chip = name.partition(",")
        if vendor == "rockchip" and chip in NPU_CORES:
            return chip
    return None


if soc():
    try:
        from rknnlite.api import RKNNLite
    except ImportError as error:
        from runtimes import cpu
        from runtimes.cpu import RKNNLite
        cpu.why = f"{soc()} found, but not rknn-toolkit-lite2 ({error})"
else:
    from runtimes.cpu import RKNNLite


class rknnPoolExecutor:
    """Runs func(context, frame) on a pool of RKNNLite contexts.

    rknnModel: path of the model.
    TPEs: number of contexts, and of threads; None means two per NPU core, so that one frame's pre- and post-processing
        overlaps another's inference.
    func: callable (context, frame) -> result; None means func.py's myFunc. A context is in one call at a time.
    coreMask: binds every context to these cores (RKNNLite.NPU_CORE_0_1_2: each frame on all three); None binds the
        contexts to single cores in turn. SoCs with one core refuse masks, so there none is passed, whatever is given
        here.
    runtime: class with RKNNLite's interface. If it has an attribute NPU_CORES, that many cores are assumed, whatever
        the device tree says (benchmark.py's simulated NPU).

    func must not wait for other frames of the same pool, or release it: all threads may be waiting so.
    Raises ValueError for TPEs below 1, and RuntimeError with the reason where a context does not open; those before it
    are closed then.
    """

    def __init__(self, rknnModel, TPEs=None, func=None, *, coreMask=None, runtime=RKNNLite):
        cores = getattr(runtime, "NPU_CORES", None) or NPU_CORES.get(soc(), 1)
        if TPEs is None:
            TPEs = 2 * cores
        if TPEs < 1:
            raise ValueError(f"TPEs is {TPEs}: a pool has at least one context")
        if func is None:
            from func import myFunc as func  # only here, so that a pool with a func of its own needs no func.py
        self.rknnModel = rknnModel
        self.TPEs = TPEs
        self._func = func
        self._contexts = []                    # (context, its core)
        self._idle = []                        # those that no thread uses, the longest idle first
        self._returned = threading.Condition()  # over _idle and the cores' counts
        self._waiting = collections.deque()    # the lanes with frames that wait for a thread, the next one first
        self._handing_in = threading.Lock()    # over _waiting and the lanes in it
        self._lane = _Lane()                   # of submit()
        self._put = collections.deque()        # futures of put(), for get()
        self._pending = set()                  # futures not yet done, for release()
        self._maps = weakref.WeakSet()         # running map()s, for release()
        self._releasing = threading.Lock()
        self._released = False
        if cores == 1:
            masks = [None]
        elif coreMask is None:
            masks = [1 << number for number in range(cores)]
        else:
            masks = [coreMask]
        self._cores = [_Core(mask) for mask in masks]
        self._even = TPEs % len(masks) == 0    # every core has as many contexts
        try:
            for number in range(TPEs):
                self._open(runtime, rknnModel, self._cores[number % len(masks)])
        except BaseException:
            self._close_contexts()
            raise
        self._executor = ThreadPoolExecutor(TPEs, thread_name_prefix="rknnpool")

    def _open(self, runtime, model, core):
        context = runtime()
        self._contexts.append((context, core))
        step = "load_rknn"
        returned = context.load_rknn(model)
        if returned == 0:
            step = "init_runtime"
            returned = context.init_runtime() if core.mask is None else context.init_runtime(core_mask=core.mask)
        if returned != 0:
            said = f"{step} returned {returned}, its own message stands above" if os.path.exists(model) else "no such file"
            reason = getattr(context, "error", None) or said  # only the CPU stand-in keeps its reason in `error`
            raise RuntimeError(f"context {len(self._contexts)} of {self.TPEs} could not open {model}: {reason}")
        self._idle.append((context, core))

    def _run(self, frame):
        context, core = taken = self._take()
        try:
            return self._func(context, frame)
        finally:
            with self._returned:
                core.in_work -= 1
                self._idle.append(taken)
                self._returned.notify_all()

    def _take(self):
        # As many contexts as threads: there is always an idle one. The longest idle would not do, for it may be bound
        # to a core at work while another core waits. Where every core has as many contexts the cores are kept within
        # one run of each other; where some have more, they get more of the frames.
        with self._returned:
            while True:
                context, core = taken = min(self._idle, key=lambda idle: (idle[1].runs if self._even
                                                                          else idle[1].in_work, idle[1].runs))
                if not self._even or core.runs == min(core.runs for core in self._cores):
                    break
                self._returned.wait()
            self._idle.remove(taken)
            core.in_work += 1
            core.runs += 1
            return taken

    def submit(self, frame):
        """Hand in one frame, from any thread: a concurrent.futures.Future of func's result. Raises RuntimeError after
        release()."""
        return self._hand_in(frame, self._lane)

    def _hand_in(self, frame, lane):
        future = Future()
        with self._handing_in:
            if self._released:
                raise RuntimeError("the pool has been released")
            self._pending.add(future)
            if not lane.frames:
                self._waiting.append(lane)
            lane.frames.append((future, frame))
        future.add_done_callback(self._pending.discard)
        try:
            self._executor.submit(self._serve)  # not under the lock, which the thread that it wakes needs at once
        except RuntimeError:  # released in the meantime
            future.cancel()
            raise
        return future

    def _serve(self):
        with self._handing_in:  # the lanes take turns, so that no stream waits for another's queue
            lane = self._waiting.popleft()
            future, frame = lane.frames.popleft()
            if lane.frames:
                self._waiting.append(lane)
        if future.set_running_or_notify_cancel():
            try:
                result = self._run(frame)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        # a failed future refers to this call by its traceback: a circle, which would keep frames until gc runs
        del future, frame

    def _renew(self, frame, lane):
        """Put a newer frame in the place of one that still waits. Returns False where none does."""
        with self._handing_in:
            if not lane.frames:
                return False
            lane.frames[-1] = lane.frames[-1][0], frame
            return True

    def map(self, frames, live=False):
        """Iterate over the results for `frames` (any iterable), in their order, each as soon as it and those before it
        are ready.

        A thread of its own reads `frames`, so that decoding overlaps inference. At most 2 * TPEs frames are in flight,
        that is read and their results not yet taken: then it waits. With live=True it never waits: of the frames that
        no context is free for only the newest is kept, and the iterator's `dropped` counts the others. Several map()s
        on one pool are served in turns. An exception from `frames` or from func is raised by the next() whose turn that
        frame has; after one from func the iterator goes on with the next frame. Leaving the loop early (or close())
        stops the reading.
        """
        results = _OrderedResults(self, frames, live)
        self._maps.add(results)
        return results

    def put(self, frame):
        """Hand in one frame whose result get() returns in its turn. Nothing bounds how many wait: call get() as often
        as put()."""
        self._put.append(self.submit(frame))

    def get(self):
        """(result, True) of the oldest frame that was put, waiting for it; (None, False) where none is pending."""
        try:
            future = self._put.popleft()
        except IndexError:
            return None, False
        try:
            return future.result(), True
        finally:
            del future  # as in _serve()

    def release(self, timeout=None):
        """Stop: frames not yet begun are cancelled, those in work finished, then every context is closed. May be called
        again.

        timeout: seconds after which a context that is still in work is given up: the others are closed, and
        TimeoutError says which it is. Its thread lives on, and Python waits for it at exit.
        """
        with self._releasing:
            if self._released:
                return
            with self._handing_in:  # what is handed in before is cancelled here, what comes later is refused
                self._released = True
            for results in list(self._maps):
                results.stop()
            self._executor.shutdown(wait=False)
            for future in list(self._pending):
                future.cancel()
            if concurrent.futures.wait(list(self._pending), timeout).not_done:
                with self._returned:
                    hung = [number for number, context in enumerate(self._contexts, 1) if context not in self._idle]
                said = ", ".join(f"context {number} of {self.TPEs} ({self._contexts[number - 1][1]})"
                                 for number in hung)
                self._contexts = list(self._idle)
                self._close_contexts()
                raise TimeoutError(f"{said} did not come back from a frame")
            self._executor.shutdown(wait=True)
            for results in list(self._maps):
                results.close(timeout)
            self._close_contexts()

    @property
    def runs(self):
        """Frames given to each core so far: a list of ints. One entry where every context is bound to all cores."""
        return [core.runs for core in self._cores]

    def _close_contexts(self):
        while self._contexts:
            self._contexts.pop()[0].release()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


class _Core:
    """What the pool knows of one NPU core (or of all, where every context is bound to all)."""

    def __init__(self, mask):
        self.mask = mask  # for init_runtime; None: pass none
        self.in_work = 0  # frames being worked on by this core's contexts
        self.runs = 0     # frames given to them so far

    def __str__(self):
        return "the NPU's one core" if self.mask is None else f"core mask {self.mask}"


class _Lane:
    """The frames of one stream that wait for a thread."""

    def __init__(self):
        self.frames = collections.deque()  # (future, frame)
        self.dropped = 0


class _OrderedResults:
    """Iterator over map()'s results. An iterator and not a generator, for a generator ends with the first exception."""

    def __init__(self, pool, frames, live):
        self._futures = queue.SimpleQueue()  # in the order of the frames, then None
        # live: what is in work and the newest
        self._places = threading.Semaphore(pool.TPEs + 1 if live else 2 * pool.TPEs)
        self._lane = _Lane()
        self._stopped = threading.Event()
        self._done = False
        # The thread must not hold a reference to self: leaving the loop would then not end it.
        self._feeder = threading.Thread(target=_feed, name="rknnpool-feeder", daemon=True,
                                        args=(pool, frames, live, self._lane, self._futures, self._places,
                                              self._stopped))
        self._feeder.start()

    def __iter__(self):
        return self

    def __next__(self):
        future = None if self._done else self._futures.get()
        if future is None:
            self._done = True
            self._futures.put(None)  # as below
            raise StopIteration
        try:
            return future.result()
        finally:
            self._places.release()
            del future, self  # as in _serve()

    @property
    def dropped(self):
        """Frames of a live source that were read and not handed in, because a newer one came first."""
        return self._lane.dropped

    def stop(self):
        """Tell the feeder to read no further frame."""
        self._stopped.set()
        self._places.release()

    def close(self, timeout=None):
        """Stop, wait (at most `timeout` seconds) for the feeder's present frame to be read, and cancel what no context
        has begun."""
        self._done = True
        self.stop()
        if self._feeder is not threading.current_thread():
            self._feeder.join(timeout)
        while True:
            try:
                future = self._futures.get_nowait()
            except queue.Empty:
                break
            if future is not None:
                future.cancel()
        self._futures.put(None)  # for a next() that waits in another thread

    __del__ = close


def _feed(pool, frames, live, lane, futures, places, stopped):
    try:
        frames = iter(frames)
        while True:
            if not live:
                places.acquire()
            if stopped.is_set():
                break
            try:
                frame = next(frames)
            except StopIteration:
                break
            if live and (pool._renew(frame, lane) or not places.acquire(blocking=False)):
                lane.dropped += 1
            else:
                futures.put(pool._hand_in(frame, lane))
    except BaseException as error:  # for whoever iterates over the results, at this frame's place
        failed = Future()
        failed.set_exception(CancelledError() if stopped.is_set() else error)
        futures.put(failed)
    finally:
        futures.put(None)
