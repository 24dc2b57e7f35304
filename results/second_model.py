"""--then MODEL@CLASS: a second model looks at each tracked object that the first one finds.

    steps = plan(["plate.rknn@car", "text.rknn@plate"], model, func, runtime=None)
    models = SecondModels(steps, streams)  # stream.second.update(result) sets the attributes of
    models.close()                         # result.detections

An object is cut out of its frame and goes through the second model, on the same NPU. The answer
comes some frames later; nobody waits for it, except for pictures: each of them shows other objects,
which have to be known when it is saved. The answers about an object are voted on (votes.py).

The second models give way: at most one crop per NPU core is in progress, and they use at most SHARE
of the NPU's time and of Python's. Crops that have to be left out are counted.
"""
from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from concurrent.futures import CancelledError, Future
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import rknnpool
import runtimes
from results.second_steps import Step, cut
from results.votes import Answer, Votes
from vision.detections import Detections
from vision.errors import InputError, ModelError

# --------------------------------------------------------------------------------------------------
SHARE = 0.12          # of the NPU's time, and of the time in which Python runs, for second models
SAVED_SECONDS = 0.1   # of it that may be unused at first and used later
MIN_SIDE = 8          # pixels; smaller objects are left alone
MAX_OBJECTS = 1000    # of a stream that are known at a time
TRIAL_RUNS = 3        # of each second model before the first frame: how long does it take?
MAX_WAITING = 8       # crops of a stream that wait for a third model
# --------------------------------------------------------------------------------------------------


class Crop(NamedTuple):
    """What goes into a pool: part of a frame, and what has to be known when the answer comes."""
    image: np.ndarray        # (h, w, 3) uint8 BGR
    step: Step
    votes: Dict[Step, Votes]    # of its object
    side: float              # of the object's box in the frame, pixels


# ---- the models, shared by all streams ----

class SecondModels:
    """The pools of all steps, and how much they may do. For any thread.

    streams: get a SecondModel each, as `second`. runtime: a name, as --runtime takes it; a class
    with RKNNLite's methods; or None: the pool chooses. Raises InputError if a model cannot be
    opened.
    """

    def __init__(self, steps: Sequence[Step], streams: Sequence[Any], runtime: Any = None):
        self.steps = list(steps)
        runtime = runtimes.by_name(runtime) if isinstance(runtime, str) else runtime
        self.cores = getattr(runtime, "NPU_CORES", None) or rknnpool.npu_cores(rknnpool.soc())
        self.lock = threading.Lock()
        self.in_progress = self.crops = self.left_out = self.failed = 0
        self.objects: Counter[str] = Counter()  # that got an answer, by key
        self.cutting = 0.0                      # seconds in which crops were cut out
        self.credit = self.spent = self.last = 0.0
        for step in self.steps:
            try:
                step.pool = rknnpool.rknnPoolExecutor(
                    step.model, self.cores, _detect, runtime=runtime)
                grey = np.full((64, 64, 3), 128, np.uint8)
                for _ in range(TRIAL_RUNS):
                    step.pool.submit(Crop(grey, step, {}, 64)).result()
            except Exception as error:
                self.close()
                if isinstance(error, (RuntimeError, ValueError, TypeError)):  # without a full stop
                    raise InputError(f"--then {step.text}: {error}.") from None
                raise
        self.last, self.spent = time.perf_counter(), self._spent()
        for stream in streams:
            stream.second = SecondModel(stream, self)

    def may_start(self) -> bool:
        """Whether a crop may start now, so that the first model keeps its rate."""
        with self.lock:
            now, spent = time.perf_counter(), self._spent()
            earned = SHARE * (now - self.last)
            self.credit = min(SAVED_SECONDS, self.credit + earned - (spent - self.spent))
            self.last, self.spent = now, spent
            return self.in_progress < self.cores and self.credit > 0

    def _spent(self) -> float:
        """Seconds so far of the resource that is used most: the NPU, or Python; on a CPU that."""
        cpu = self.cutting + sum(step.cpu for step in self.steps)
        if any(step.on_cpu for step in self.steps):
            return cpu / (os.cpu_count() or 1)
        # A run also waits for the core to be free. The trial runs did not: the shortest counts.
        npu = sum(step.runs * step.npu for step in self.steps if step.runs)
        return max(npu / self.cores, cpu)

    def start(self, crop: Crop) -> Future:
        """Send a crop to its model."""
        with self.lock:
            self.in_progress += 1
            self.crops += 1
        future = crop.step.pool.submit(crop)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, _: Future) -> None:
        with self.lock:
            self.in_progress -= 1

    def leave_out(self, count: int = 1) -> None:
        """Count crops that are left out."""
        with self.lock:
            self.left_out += count

    def count_answer(self, step: Step, first: bool, failed: bool = False) -> None:
        """Count an answer that came. first: no other was there about its object."""
        with self.lock:
            self.failed += failed
            self.objects[step.key] += first

    @property
    def found(self) -> List[str]:
        """What is printed at the end of the run."""
        answers = ", ".join(f"{key} of {self.objects[key]} objects" for key in
                            (step.key for step in self.steps))
        more = f"; {self.failed} failed" if self.failed else ""
        if self.left_out:
            more += f"; {self.left_out} crops were left out, because the first model comes first"
        return [f"--then: {answers}, in {self.crops} crops{more}"]

    def close(self) -> None:
        """Close the pools. Raises InputError if a context hangs."""
        for step in self.steps:
            try:
                if step.pool is not None:
                    step.pool.release(timeout=5)
            except TimeoutError as error:
                raise InputError(f"--then {step.text}: {error}.") from None


def _detect(context: Any, crop: Crop) -> Detections:
    """What the pools run: the func file's detect(), measured."""
    step, began, cpu = crop.step, time.perf_counter(), time.thread_time()
    try:
        return step.func.detect(context, crop.image)
    finally:
        cpu = time.thread_time() - cpu
        with step.lock:
            step.runs, step.cpu = step.runs + 1, step.cpu + cpu
            step.npu = min(step.npu, max(0.0, time.perf_counter() - began - cpu))
            step.on_cpu = getattr(context, "ON_CPU", False)


# ---- of one stream ----

class SecondModel:
    """Cuts the objects of one stream out of its frames, and adds the answers to its results."""

    def __init__(self, stream: Any, models: SecondModels):
        self.stream, self.models = stream, models
        self.first = [step for step in models.steps if step.parent is None]
        self.objects: OrderedDict[int, Dict[Step, Votes]] = OrderedDict()  # by id
        self.started: List[Tuple[Future, Crop]] = []
        self.waiting: List[Crop] = []  # for a third model

    def update(self, result: Any) -> None:
        """Set result.detections.attributes to the answers so far, and ask about some objects."""
        found = result.detections
        if found is None or found.boxes is None:
            return
        if result.file is not None and not self.stream.live:
            votes = [{step: Votes() for step in self.models.steps} for _ in range(len(found))]
            self._ask_and_wait(result, votes)
        else:
            self._collect()
            votes = [self._votes_of(number) for number in found.ids.tolist()] \
                if found.ids is not None else [{} for _ in range(len(found))]
            self._start_waiting()
            self._ask(result, votes)
        found.attributes = [{step.key: each.best for step, each in one.items() if each.best}
                            for one in votes]

    def _votes_of(self, number: int) -> Dict[Step, Votes]:
        """The votes about the object with this id; {} for one without."""
        if number < 0:
            return {}
        if number not in self.objects:
            self.objects[number] = {step: Votes() for step in self.models.steps}
            if len(self.objects) > MAX_OBJECTS:
                self.objects.popitem(last=False)
        self.objects.move_to_end(number)
        return self.objects[number]

    # ---- video: nobody waits ----

    def _ask(self, result: Any, votes: List[Dict[Step, Votes]]) -> None:
        """Send crops of the objects for which one is due, those with the fewest crops first."""
        now = result.received if self.stream.live else result.time
        due = []
        busy = {id(crop.votes) for _, crop in self.started}
        for step, index, side in self._candidates(result.detections, votes):
            own = votes[index]
            if id(own) not in busy and any([own[each].due(now, side) for each in step.chain()]):
                due.append((own[step].crops, -side, index, step))
        for _, side, index, step in sorted(due, key=lambda each: each[:3]):
            own = votes[index]
            if self.models.may_start():
                own[step].asked_at(now, -side)
                self._start(self._crop(result, index, step, own, -side))
            elif own[step].left_out(now):
                self.models.leave_out()

    def _candidates(self, found: Detections, votes: Sequence[Dict[Step, Votes]]
                    ) -> List[Tuple[Step, int, float]]:
        """(step, index, side of the box) of each object that a step looks at."""
        assert found.boxes is not None
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).max(1, initial=0).tolist()
        names = [found.name(number) for number in found.classes.tolist()]
        return [(step, index, side) for step in self.first
                for index, (name, side) in enumerate(zip(names, sides))
                if votes[index] and side >= MIN_SIDE and step.wants(name)]

    def _crop(self, result: Any, index: int, step: Step, votes: Dict[Step, Votes], side: float
              ) -> Crop:
        began = time.thread_time()
        image = cut(result.as_read, result.detections.boxes[index], step.func)
        self.models.cutting += time.thread_time() - began
        return Crop(image, step, votes, side)

    def _start(self, crop: Crop) -> None:
        self.started.append((self.models.start(crop), crop))

    def _start_waiting(self) -> None:
        while self.waiting and self.models.may_start():
            self._start(self.waiting.pop(0))
        if len(self.waiting) > MAX_WAITING:
            self.models.leave_out(len(self.waiting) - MAX_WAITING)
            del self.waiting[:-MAX_WAITING]

    def _collect(self) -> None:
        """Take the answers that are there."""
        started, self.started = self.started, []
        for future, crop in started:
            if future.done():
                self.waiting += self._answered(future, crop)
            else:
                self.started.append((future, crop))

    def _answered(self, future: Future, crop: Crop) -> List[Crop]:
        """Count the answer to a crop. Returns the crops of what was found in it, for the next
        models."""
        votes, step = crop.votes, crop.step
        try:
            found = future.result()
        except (rknnpool.NPUError, CancelledError):
            self.models.count_answer(step, False, failed=True)
            return []
        except (ModelError, InputError) as error:
            raise InputError(f"--then {step.text}: {error}" + "." * (
                not isinstance(error, InputError))) from None
        answer: Optional[Answer] = None
        if len(found):
            answer = str(found.name(int(found.classes[0]))), float(found.scores[0])
            self.models.count_answer(step, votes[step].best is None)
        votes[step].add(answer, crop.side)
        return [more for child in step.children for more in self._next(crop, child, found)]

    def _next(self, crop: Crop, child: Step, found: Detections) -> List[Crop]:
        """The crop for the next model: of the box of its classes whose score times area is the
        largest. [] if there is none."""
        now = crop.votes[crop.step].time or 0.0
        crop.votes[child].asked_at(now, crop.side)
        boxes = [] if found.boxes is None else [
            (score * float(np.prod(box[2:] - box[:2])), box) for box, score, number
            in zip(found.boxes, found.scores.tolist(), found.classes.tolist())
            if child.wants(found.name(number))]
        if not boxes:
            return []
        image = cut(crop.image, max(boxes, key=lambda each: each[0])[1], child.func)
        return [crop._replace(image=image, step=child)]

    # ---- pictures: each waits for its answers ----

    def _ask_and_wait(self, result: Any, votes: List[Dict[Step, Votes]]) -> None:
        crops = [self._crop(result, index, step, votes[index], side)
                 for step, index, side in self._candidates(result.detections, votes)]
        while crops:
            started = [(self.models.start(crop), crop) for crop in crops]
            crops = [more for future, crop in started for more in self._answered(future, crop)]
