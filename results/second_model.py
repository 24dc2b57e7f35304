"""--then MODEL@CLASS: a second model looks at each tracked object that the first one finds.

    steps = plan(["plate.rknn@car", "text.rknn@plate"], model, func, runtime=None)
    models = SecondModels(steps, streams)
    streams[0].second.update(result)      # sets result.detections.attributes
    models.close()

An object is cut out of its frame and goes through the second model, on the same NPU. The answer
comes some frames later. A video does not wait for it. A picture does, because its objects are in no
other picture. The answers about an object are voted on (votes.py).

The first model comes first: at most one crop per NPU core is in progress, and the second models use
at most MAX_LOAD of the time. Crops that have to be left out are counted.
"""
from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from concurrent.futures import CancelledError, Future
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import rknnpool
import runtimes
from results.second_steps import Step, cut
from results.status import usable_cpus
from results.votes import Answer, Votes, is_recent
from vision.detections import Detections
from vision.errors import InputError, ModelError

# --------------------------------------------------------------------------------------------------
MAX_LOAD = 0.08       # share of the NPU's time, and of Python's, that the second models may use
MAX_CREDIT = 0.1      # seconds of it that they may save for later
MIN_SIDE = 8          # pixels; smaller objects are left alone
MAX_OBJECTS = 1000    # of a stream that are known at a time
TRIAL_RUNS = 3        # of each second model before the first frame, to measure how long one takes
MAX_WAITING = 8       # crops of a stream that wait for a third model
# --------------------------------------------------------------------------------------------------

ObjectVotes = Dict[Step, Votes]  # about one object; {} for an object without an id


class Crop(NamedTuple):
    """What goes into a pool: part of a frame, and what its answer belongs to."""
    image: np.ndarray       # (h, w, 3) uint8 BGR
    step: Step
    votes: ObjectVotes      # about the object
    side: float             # the longer side of the object's box in the frame, pixels


# ---- the models, shared by all streams ----

class SecondModels:
    """The pools of all steps, and how much they may use. Any thread may call the methods.

    streams: get a SecondModel each, as `second`. runtime: a name, as --runtime takes it; a class
    with RKNNLite's methods; or None: the pool chooses. Raises InputError if a model cannot be
    opened.
    """

    def __init__(self, steps: Sequence[Step], streams: Sequence[Any], runtime: Any = None):
        self.steps = list(steps)
        runtime = runtimes.by_name(runtime) if isinstance(runtime, str) else runtime
        self.cores = getattr(runtime, "NPU_CORES", None) or rknnpool.npu_cores(rknnpool.soc())
        self.lock = threading.Lock()            # guards what follows
        self.in_progress = self.crops = self.left_out = self.failed = 0  # numbers of crops
        self.objects: Counter[str] = Counter()  # that got an answer, by the step's key
        self.cut_seconds = 0.0                  # CPU time in which crops were cut out
        self.credit = 0.0                       # seconds of MAX_LOAD that are not used yet
        try:
            for step in self.steps:
                self._open(step, runtime)
        except BaseException:
            self.close()
            raise
        self.last_time, self.last_used = time.perf_counter(), self._used_seconds()
        for stream in streams:
            stream.second = SecondModel(stream, self)

    def _open(self, step: Step, runtime: Any) -> None:
        """Open the pool of a step, and run its model a few times. Raises InputError."""
        try:
            step.pool = rknnpool.rknnPoolExecutor(step.model, self.cores, _detect, runtime=runtime)
            grey = np.full((64, 64, 3), 128, np.uint8)
            for _ in range(TRIAL_RUNS):
                step.pool.submit(Crop(grey, step, {}, 64)).result()
        except (RuntimeError, ValueError, TypeError) as error:  # the message has no full stop
            raise InputError(f"--then {step.text}: {error}.") from None

    def may_start(self) -> bool:
        """Whether a crop may start now, so that the first model keeps its rate."""
        with self.lock:
            self._update_credit()
            return self.in_progress < self.cores and self.credit > 0

    def _update_credit(self) -> None:
        now, used = time.perf_counter(), self._used_seconds()
        self.credit += MAX_LOAD * (now - self.last_time) - (used - self.last_used)
        self.credit = min(self.credit, MAX_CREDIT)
        self.last_time, self.last_used = now, used

    def _used_seconds(self) -> float:
        """For how long the second models have used the NPU, or Python if that is longer. Without an
        NPU: the CPU."""
        cpu = self.cut_seconds + sum(step.cpu_seconds for step in self.steps)
        if any(step.on_cpu for step in self.steps):
            return cpu / usable_cpus()
        # Every run counts like the shortest one: the others also wait for a core to be free.
        npu = sum(step.runs * step.npu_seconds for step in self.steps if step.runs)
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

    def count_left_out(self, count: int = 1) -> None:
        """Count crops that are left out."""
        with self.lock:
            self.left_out += count

    def count_failure(self) -> None:
        """Count a crop whose run failed."""
        with self.lock:
            self.failed += 1

    def count_object(self, step: Step) -> None:
        """Count an object that got its first answer."""
        with self.lock:
            self.objects[step.key] += 1

    @property
    def found(self) -> List[str]:
        """What is printed at the end of the run."""
        answers = ", ".join(f"{step.key} of {self.objects[step.key]} objects"
                            for step in self.steps)
        line = f"--then: {answers}, in {self.crops} crops"
        if self.failed:
            line += f"; {self.failed} failed"
        if self.left_out:
            line += f"; {self.left_out} crops were left out, because the first model comes first"
        return [line]

    def close(self) -> None:
        """Close the pools. Raises InputError if a context hangs."""
        hung = ""
        for step in self.steps:
            try:
                if step.pool is not None:
                    step.pool.release(timeout=5)
            except TimeoutError as error:
                hung = hung or f"--then {step.text}: {error}."
        if hung:
            raise InputError(hung)


def _detect(context: Any, crop: Crop) -> Detections:
    """What the pools run: the func file's detect(), measured."""
    step, began, cpu_began = crop.step, time.perf_counter(), time.thread_time()
    try:
        return step.func.detect(context, crop.image)
    finally:
        cpu = time.thread_time() - cpu_began
        waited = max(0.0, time.perf_counter() - began - cpu)  # for the NPU
        with step.lock:
            step.runs += 1
            step.cpu_seconds += cpu
            step.npu_seconds = min(step.npu_seconds, waited)
            step.on_cpu = getattr(context, "cpu_only", False)


# ---- of one stream ----

class SecondModel:
    """Cuts the objects of one stream out of its frames, and adds the answers to its results."""

    def __init__(self, stream: Any, models: SecondModels):
        self.stream, self.models = stream, models
        self.first_steps = [step for step in models.steps if step.parent is None]
        self.objects: OrderedDict[int, ObjectVotes] = OrderedDict()  # by the tracker's id
        self.started: List[Tuple[Future, Crop]] = []
        self.waiting: List[Crop] = []  # for a third model

    def update(self, result: Any) -> None:
        """Set result.detections.attributes to the answers so far, and send some new crops."""
        found = result.detections
        if found is None or found.boxes is None:
            return
        if result.file is not None and not self.stream.live:
            votes = [self._new_votes() for _ in range(len(found))]
            self._send_all_and_wait(result, votes)
        else:
            self._collect()
            ids = [-1] * len(found) if found.ids is None else found.ids.tolist()
            votes = [self._votes_of(track) for track in ids]
            self._start_waiting()
            self._send_due(result, votes)
        found.attributes = [best_answers(each) for each in votes]

    def _new_votes(self) -> ObjectVotes:
        return {step: Votes() for step in self.models.steps}

    def _votes_of(self, track: int) -> ObjectVotes:
        """The votes about the object with this id; {} for -1, an object without an id."""
        if track < 0:
            return {}
        if track not in self.objects:
            self.objects[track] = self._new_votes()
            if len(self.objects) > MAX_OBJECTS:
                self.objects.popitem(last=False)
        self.objects.move_to_end(track)
        return self.objects[track]

    # ---- video: nobody waits ----

    def _send_due(self, result: Any, votes: List[ObjectVotes]) -> None:
        """Send crops of the objects for which one is due: those with the fewest crops first, and of
        these the largest."""
        now = result.received if self.stream.live else result.time
        busy = {id(crop.votes) for _, crop in self.started}  # objects whose answer has not come yet
        due = []
        for step, index, side in self._candidates(result.detections, votes):
            if id(votes[index]) not in busy and is_due(step, votes[index], now, side):
                own = votes[index][step]
                crops = 0 if own.has_grown(side) else own.crops
                due.append(((crops, -side), step, index, side, own))
        for _, step, index, side, own in sorted(due, key=lambda each: each[0]):
            if self.models.may_start():
                own.add_crop(now, side)
                self._start(self._crop(result, index, step, votes[index], side))
            elif not is_recent(own.last_left_out, now):  # it is due in every frame, but counts once
                own.last_left_out = now
                self.models.count_left_out()

    def _candidates(self, found: Detections, votes: Sequence[ObjectVotes]
                    ) -> List[Tuple[Step, int, float]]:
        """(step, index, longer side of the box in pixels) of each object that a step looks at."""
        assert found.boxes is not None
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).max(1, initial=0).tolist()
        names = [found.name(number) for number in found.classes.tolist()]
        return [(step, index, side) for step in self.first_steps
                for index, (name, side) in enumerate(zip(names, sides))
                if votes[index] and side >= MIN_SIDE and step.wants(name)]

    def _crop(self, result: Any, index: int, step: Step, votes: ObjectVotes, side: float) -> Crop:
        began = time.thread_time()
        image = cut(result.as_read, result.detections.boxes[index], step.func)
        took = time.thread_time() - began
        with self.models.lock:
            self.models.cut_seconds += took
        return Crop(image, step, votes, side)

    def _start(self, crop: Crop) -> None:
        self.started.append((self.models.start(crop), crop))

    def _start_waiting(self) -> None:
        while self.waiting and self.models.may_start():
            self._start(self.waiting.pop(0))
        if len(self.waiting) > MAX_WAITING:
            self.models.count_left_out(len(self.waiting) - MAX_WAITING)
            del self.waiting[:-MAX_WAITING]

    def _collect(self) -> None:
        """Take the answers that have come."""
        started, self.started = self.started, []
        for future, crop in started:
            if future.done():
                self.waiting += self._take_answer(future, crop)
            else:
                self.started.append((future, crop))

    def _take_answer(self, future: Future, crop: Crop) -> List[Crop]:
        """Count the answer to a crop. Returns crops of what was found in it for the next models."""
        votes, step = crop.votes, crop.step
        try:
            found = future.result()
        except (rknnpool.NPUError, CancelledError):
            self.models.count_failure()
            return []
        except InputError as error:
            raise InputError(f"--then {step.text}: {error}") from None
        except ModelError as error:  # the message has no full stop
            raise InputError(f"--then {step.text}: {error}.") from None
        answer: Optional[Answer] = None
        if len(found):  # the best comes first
            answer = str(found.name(int(found.classes[0]))), float(found.scores[0])
            if votes[step].best is None:
                self.models.count_object(step)
        votes[step].add(answer, crop.side)
        crops = [next_crop(crop, child, found) for child in step.children]
        return [each for each in crops if each is not None]

    # ---- pictures: each waits for its answers ----

    def _send_all_and_wait(self, result: Any, votes: List[ObjectVotes]) -> None:
        """Send a crop of each object, then those of what was found in these, and so on."""
        crops = [self._crop(result, index, step, votes[index], side)
                 for step, index, side in self._candidates(result.detections, votes)]
        while crops:
            started = [(self.models.start(crop), crop) for crop in crops]
            crops = [following for future, crop in started
                     for following in self._take_answer(future, crop)]


def best_answers(votes: ObjectVotes) -> Dict[str, Answer]:
    """What the second models say about an object: {"plate": ("B AB 1234", 0.93)}."""
    answers = {step.key: each.best for step, each in votes.items()}
    return {key: answer for key, answer in answers.items() if answer is not None}


def is_due(step: Step, votes: ObjectVotes, now: float, side: float) -> bool:
    """Whether another crop would help a step, or one that looks at what it finds."""
    return any(votes[each].due(now, side) for each in step.chain())


def next_crop(crop: Crop, child: Step, found: Detections) -> Optional[Crop]:
    """The crop for the next model, cut out of a crop: of the boxes of its classes, the one whose
    score times area is the largest. None if there is none."""
    crop.votes[child].add_crop(crop.votes[crop.step].last_crop or 0.0, crop.side)
    if found.boxes is None:
        return None
    wanted = [index for index, number in enumerate(found.classes.tolist())
              if child.wants(found.name(number))]
    if not wanted:
        return None
    boxes = found.boxes[wanted]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    best = int((found.scores[wanted] * areas).argmax())
    return crop._replace(image=cut(crop.image, boxes[best], child.func), step=child)
