"""How often an int8 model finds what the float model finds that it was made from."""
from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any, Iterable, Iterator, List

import numpy as np

import funcs
import runtimes
from results.tracking import greedy_pairs, iou_matrix
from runtimes import cpu
from vision.detections import Detections
from vision.errors import InputError
from vision.model import Model, describe, family

# --------------------------------------------------------------------------------------------------
SAME_IOU = 0.5  # of two boxes that show the same object
GOOD = 0.9      # share of the float model's detections that a good int8 model finds
ENOUGH = 10     # detections of a class from which its own share says something
ADVICE = ("Try more frames that show what the camera will see (--count 100), another algorithm "
          "(--algorithm kl_divergence, or mmse, which takes long), or 16-bit floats (--dtype fp).")
# --------------------------------------------------------------------------------------------------


def found_again(floats: Detections, others: Detections) -> np.ndarray:
    """Which detections of the float model another model finds, too: (n,) bool.

    Two detections are the same if their classes are equal and the IoU of their boxes is at least
    SAME_IOU; each detection counts once. Of a classifier only the best class counts: (1,) bool.

        one = Detections([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 2], [0.9, 0.8])
        two = Detections([[1, 0, 10, 10], [50, 50, 60, 60]], [1, 3], [0.9, 0.8])
        found_again(one, two)       # [True, False]
    """
    if floats.boxes is None or others.boxes is None:
        return floats.classes[:1] == others.classes[:1]
    found = np.zeros(len(floats), bool)
    overlaps = iou_matrix(floats.boxes, others.boxes)
    overlaps *= floats.classes[:, np.newaxis] == others.classes
    found[greedy_pairs(overlaps, SAME_IOU)[0]] = True
    return found


class Agreement:
    """The detections of some frames by a float model and by an int8 model.

    frames: their number. total, found: by class name, the detections of the float model, and those
    that the int8 model finds, too. more: detections of the int8 model alone.
    """

    def __init__(self) -> None:
        self.frames = self.more = 0
        self.total: Counter = Counter()
        self.found: Counter = Counter()

    def add(self, floats: Detections, others: Detections) -> None:
        """Count the detections of one frame."""
        again = found_again(floats, others)
        self.frames += 1
        self.total.update(floats.name(number) for number in floats.classes[:len(again)])
        self.found.update(floats.name(number) for number in floats.classes[:len(again)][again])
        if others.boxes is not None:
            self.more += len(others) - int(again.sum())

    def share(self, name: str | None = None) -> float:
        """The share of the float model's detections that int8 finds, of a class or of all."""
        if name is None:
            return sum(self.found.values()) / max(1, sum(self.total.values()))
        return self.found[name] / self.total[name]

    def weak(self) -> List[str]:
        """What int8 finds too little of: classes with ENOUGH detections, or "all classes"."""
        weak = [name for name, count in self.total.most_common()
                if count >= ENOUGH and self.share(name) < GOOD]
        return weak or (["all classes"] if self.share() < GOOD else [])

    def report(self, where: str) -> str:
        """The result in lines. where: what ran the int8 model."""
        frames = f"{self.frames} frame{'s' * (self.frames != 1)} not used for calibration"
        if not self.total:
            return (f"Agreement: unknown, because the float model finds nothing in {frames}. Use "
                    f"pictures that show what it detects.")
        lines = [f"Agreement: int8 ({where}) finds {self.share():.1%} of the float model's "
                 f"{sum(self.total.values())} detections in {frames}, and {self.more} that the "
                 f"float model does not find."]
        width = max(map(len, self.total))
        lines += [f"    {name:{width}}  {self.share(name):6.1%} of {count}"
                  for name, count in self.total.most_common()]
        if self.weak():
            lines.append(f"This is low for {', '.join(self.weak())}. {ADVICE}")
        return "\n".join(lines)


class Simulated:
    """A model that rknn-toolkit2 has built, run by its simulator: a context for a func file.

    rknn: a built rknn.api.RKNN; only such an object can be simulated, not a .rknn file. model: its
    description.
    """

    def __init__(self, rknn: Any, model: Model | None = None) -> None:
        self._rknn, self.model = rknn, model
        if rknn.init_runtime():
            raise InputError("rknn-toolkit2's simulator did not start.")

    def inference(self, inputs: List[np.ndarray]) -> Any:
        return self._rknn.inference(inputs, data_format="nhwc")


@contextlib.contextmanager
def opened(runtime: Any, model: Model) -> Iterator[Any]:
    """A context of a runtime with this model, released at the end. Raises InputError."""
    context = runtime()
    if context.load_rknn(model.path) or context.init_runtime():
        reason = getattr(context, "error", None) or f"{model.path} cannot be opened"
        raise InputError(f"{reason}.")
    context.model = model
    try:
        yield context
    finally:
        context.release()


def compare(onnx: Path, rknn: Path, built: Any, soc: str | None, frames: Iterable[np.ndarray]
            ) -> str:
    """A report of how the int8 model `rknn` agrees with `onnx` on frames (h, w, 3) uint8 BGR.

    ONNX Runtime runs the float model. The NPU runs int8 if this machine has one that can, otherwise
    rknn-toolkit2's simulator does.
    built: the rknn.api.RKNN that `rknn` was exported from; soc: this machine's SoC, or None.
    Raises InputError if they cannot be compared.
    """
    original = describe(onnx)
    func = funcs.find(original)
    if not hasattr(func, "detect"):
        raise InputError(f"{func.__name__}.py defines no detect(rknn_lite, IMG).")
    made = describe(rknn, soc or "rk3588")
    runtime = runtimes.choose(made, soc) if soc and family(soc) == family(made.soc) else None
    agreement = Agreement()
    with contextlib.ExitStack() as stack:
        if runtime and runtimes.runs_on_npu(runtime):
            where, other = "on the NPU", stack.enter_context(opened(runtime, made))
        else:
            where, other = "in rknn-toolkit2's simulator", Simulated(built, made)
        cpu.why = "For the comparison"
        context = stack.enter_context(opened(cpu.RKNNLite, original))
        for frame in frames:
            agreement.add(func.detect(context, frame), func.detect(other, frame))
    return agreement.report(where)
