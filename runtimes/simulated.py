"""An NPU that is a timetable, for benchmark.py and for trying a pool without a board: RKNNLite's methods, an NPU's
times, recorded outputs.

    from runtimes.simulated import record, simulated
    recorded = record("models/yolov5n_emoji.rknn", frames, myFunc)
    runtime = simulated(0.0169, 3, recorded)                    # seconds of an inference, cores
    runtime = simulated((0.010, 0.010, 0.030), 3, recorded)     # or the seconds of each core
    pool = rknnPoolExecutor("models/yolov5n_emoji.rknn", 6, myFunc, runtime=runtime)
"""
from __future__ import annotations

import collections
import re
import threading
import time
from typing import Any, Callable, Iterable, List, NamedTuple, Sequence, Tuple

import numpy as np

import rknnmodel
import rknnpool
from rknnmodel import InputError
from runtimes import cpu

# FPS of one NPU core in int8, from the README of Rockchip's rknn_model_zoo; the last from an issue on rk3588-npu of
# 2026-09, in which zero-copy C++ reached 177 FPS on three cores. Only the time is simulated: the outputs are always
# those of `modelPath`.
PUBLISHED = {"yolov5s_relu@rk3588": 66.1, "yolov5s@rk3588": 48.4, "yolov5n@rk3588": 82.5, "yolov8n@rk3588": 73.5,
             "resnet50@rk3588": 110.1,
             "yolov5s_relu_zerocopy@rk3588": 1000 / 16.9}
# How much faster three cores on one frame are than one: with them a public Python loop (yolov5s, a frame at a time)
# went from 13.4 to 14.9 FPS, which is 7.5 ms less a frame, of an inference that takes one core 1000 / 48.4 = 20.7 ms:
# 1.57. (rknn_benchmark gave 1.9 on one board, 18.84 to 9.86 ms: jas-hacks.blogspot.com, June 2023.)
ALL_CORES_SPEEDUP = 20.7 / (20.7 - (1000 / 13.4 - 1000 / 14.9))


class Recording(NamedTuple):
    """What a model was given and gave, from record()."""
    fingerprints: np.ndarray  # (frames, pixels), of the inputs
    outputs: List[List[tuple]]  # of each frame: (int8 array, scale, zero point)
    shape: Tuple[int, ...]    # of the input, (1, height, width, 3)


class SimulatedNPU:
    """RKNNLite's interface on an NPU that is a timetable. simulated() derives the class to be used.

    Each core is a job queue in time, as the driver's is: a job starts at max(now, the core's last end), ends one
    inference later, and the caller sleeps until then. The outputs are those recorded on the frame most like the input,
    dequantised at every call.
    """

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2, NPU_CORE_0_1_2 = 0, 1, 2, 4, 7

    def load_rknn(self, path: str) -> int:
        return 0

    def init_runtime(self, target=None, device_id=None, async_mode=False, core_mask=NPU_CORE_AUTO):
        if core_mask not in (0, 1, 2, 3, 4, 7) or core_mask and self.NPU_CORES == 1:
            return -1
        # None: whichever is free first. With two cores CORE_0_1_2 is both and CORE_2 is CORE_0.
        self.cores = None
        if core_mask:
            self.cores = [core for core in range(self.NPU_CORES) if core_mask >> core & 1] or [0]
        self.buffers = [np.empty(values.shape, np.float32) for values, _, _ in self.recorded.outputs[0]]
        self.stored = [np.empty_like(values) for values, _, _ in self.recorded.outputs[0]]
        return 0

    def inference(self, inputs, data_type=None, data_format=None, inputs_pass_through=None, get_frame_id=False,
                  reuse_outputs=False):
        """The outputs as the wheel gives them: copies, or with reuse_outputs the context's own buffers, which the next
        call overwrites."""
        outputs = self.run(inputs)
        if outputs is None:
            return None
        # NumPy lets go of the GIL, as the vendor's C does
        for (values, scale, zero_point), buffer in zip(outputs, self.buffers):
            np.subtract(values, np.float32(zero_point), out=buffer)
            np.multiply(buffer, np.float32(scale), out=buffer)
        return list(self.buffers) if reuse_outputs else [buffer.copy() for buffer in self.buffers]

    def inference_raw(self, inputs: Sequence[np.ndarray]) -> list | None:
        """As inference(), without dequantising, in buffers of the context's own: (int8 array, scale, zero point) for
        each output."""
        outputs = self.run(inputs)
        if outputs is None:
            return None
        for (values, _, _), buffer in zip(outputs, self.stored):
            np.copyto(buffer, values)
        return [(buffer, scale, zero_point) for buffer, (_, scale, zero_point) in zip(self.stored, outputs)]

    def run(self, inputs: Sequence[np.ndarray], take: Callable = np.copy) -> list | None:
        """The outputs recorded on the frame most like an input, once a core has had its time for it. take: what is
        done to the input first; the vendor's runtime takes a copy."""
        self.error = None
        if inputs[0].ndim != 4:
            self.error = f"an input has four dimensions, (1, height, width, 3), and not {inputs[0].shape}"
            return None
        image = take(inputs[0])
        self.wait_for_core()
        nearest = np.abs(self.recorded.fingerprints - fingerprint(image)).sum(1).argmin()
        return self.recorded.outputs[nearest]

    def wait_for_core(self) -> None:
        with self.queueing:  # while the job is entered, not while it runs
            cores = self.cores or [self.free_at.index(min(self.free_at))]
            start = max(time.perf_counter(), *(self.free_at[core] for core in cores))
            end = start + max(self.seconds[core] for core in cores) / (ALL_CORES_SPEEDUP if len(cores) > 1 else 1)
            for core in cores:
                self.free_at[core] = end
            self.schedule.append((cores, start, end))
        if end > start:
            time.sleep(max(0, end - time.perf_counter()))

    def release(self) -> None:
        pass


def simulated(inference: float | Sequence[float], cores: int, recorded: Recording) -> type:
    """A runtime class: an NPU of so many cores; `recorded` as record() returns it.

    inference: seconds that an inference takes, a float for all cores, or a sequence with one for each.
    """
    seconds = [float(each) for each in np.broadcast_to(inference, (cores,))]
    return type("SimulatedNPU", (SimulatedNPU,), dict(
        seconds=seconds, NPU_CORES=cores, recorded=recorded, queueing=threading.Lock(), free_at=[0.0] * cores,
        schedule=collections.deque(maxlen=1000)))  # (cores, start, end) of the last jobs


def fingerprint(image: np.ndarray, dtype: type = np.int16) -> np.ndarray:
    """A few pixels of an input (1, h, w, 3) uint8: (n,) int16."""
    step = max(1, image.shape[1] // 8)
    return image[0, ::step, ::step].astype(dtype).ravel()


def record(model: str, frames: Iterable[np.ndarray], myFunc: Callable) -> Recording:
    """What myFunc's inference of each frame gets and gives on the CPU stand-in.

    An output is (int8 array, scale, zero point), quantised over its range in all frames, as a model has one scale for
    each output: value = (stored - zero point) * scale. The values wait for that as float32, 8.6 MB a frame for YOLOv5.
    """
    context = Recorder(opened(cpu.RKNNLite, model))
    for frame in frames:
        myFunc(context, frame)  # raises ModelError at once for a model that it cannot read
    scales = [scale_of(each) for each in zip(*context.outputs)]
    return Recording(np.stack(context.fingerprints),
                     [[quantised(output, *scale) for output, scale in zip(outputs, scales)]
                      for outputs in context.outputs], context.inputs[0].shape)


class Recorder:
    """Stands before a context and keeps what passes."""

    def __init__(self, context):
        self.context, self.inputs, self.fingerprints, self.outputs = context, None, [], []
        self.model = getattr(context, "model", None)

    def inference(self, inputs: list) -> list | None:
        self.inputs = [image.copy() for image in inputs]
        outputs = self.context.inference(inputs)
        if outputs is not None:
            self.fingerprints.append(fingerprint(inputs[0]))
            self.outputs.append([output.copy() for output in outputs])
        return outputs


def scale_of(outputs: Sequence[np.ndarray]) -> Tuple[float, int]:
    """Scale and zero point with which int8 holds the range of these arrays, and 0."""
    low = min(0.0, *(float(output.min()) for output in outputs))
    high = max(0.0, *(float(output.max()) for output in outputs))
    scale = float(np.float32((high - low) / 255)) or 1.0
    return scale, round(-128 - low / scale)


def quantised(output: np.ndarray, scale: float, zero_point: int) -> tuple:
    """(int8 array, scale, zero point) of float32 values."""
    stored = np.rint(output / np.float32(scale)) + zero_point
    return np.clip(stored, -128, 127).astype(np.int8), scale, zero_point


def opened(runtime: type, model: str) -> Any:
    """One context, without a pool; it carries what its model says. Raises InputError where it does not open."""
    context = runtime()
    context.model = rknnmodel.describe(model)
    if context.load_rknn(context.model.path) != 0 or context.init_runtime() != 0:
        reason = getattr(context, "error", None) or "the runtime says above why"
        raise InputError(f"{model} could not be opened: {reason}.")
    return context


def parse_simulate(text: str) -> tuple:
    """(seconds of one inference, cores) of "yolov5n@rk3588" or "16.9x3"; of "10,10,30" (seconds of each core,
    cores)."""
    if text in PUBLISHED:
        return 1 / PUBLISHED[text], rknnpool.npu_cores(text.split("@")[1])
    alike = re.fullmatch(r"(\d+\.?\d*)x([123])", text)
    if alike:
        return float(alike[1]) / 1000, int(alike[2])
    if re.fullmatch(r"\d+\.?\d*(,\d+\.?\d*){1,2}", text):
        each = tuple(float(milliseconds) / 1000 for milliseconds in text.split(","))
        return each, len(each)
    raise InputError(f"--simulate {text}: give milliseconds x cores, as in 16.9x3 (1 to 3 cores), the milliseconds of "
                     f"each core, as in 10,10,30, or one of {', '.join(PUBLISHED)}.")
