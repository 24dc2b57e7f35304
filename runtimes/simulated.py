"""A simulated NPU: RKNNLite's methods, an NPU's times, recorded outputs.

For benchmark.py, and to try a pool without a board.

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
from typing import Any, Callable, Deque, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import runtimes
from runtimes import cpu
from vision.errors import InputError
from vision.inference import infer
from vision.letterbox import letterbox

# FPS of one RK3588 core in int8, from the README of Rockchip's rknn_model_zoo; the last one from an
# issue on rk3588-npu of 2026-09, in which zero-copy C++ reached 177 FPS on three cores. Only the
# time is simulated: the outputs are always those of `modelPath`.
PUBLISHED = {"yolov5s_relu@rk3588": 66.1, "yolov5s@rk3588": 48.4, "yolov5n@rk3588": 82.5,
             "yolov8n@rk3588": 73.5, "resnet50@rk3588": 110.1,
             "yolov5s_relu_zerocopy@rk3588": 1000 / 16.9}
PUBLISHED_CORES = 3
# How much faster three cores on one frame are than one: 1.57. With them a public Python loop
# (yolov5s, one frame at a time) went from 13.4 to 14.9 FPS, which is 7.5 ms less per frame; one
# core takes 1000 / 48.4 = 20.7 ms for the inference. (rknn_benchmark gave 1.9 on a board, 18.84 to
# 9.86 ms: jas-hacks.blogspot.com, June 2023.)
ALL_CORES_SPEEDUP = 20.7 / (20.7 - (1000 / 13.4 - 1000 / 14.9))


class Recording(NamedTuple):
    """A model's inputs and outputs, from record()."""
    fingerprints: np.ndarray    # (frames, pixels), of the inputs
    outputs: List[List[tuple]]  # of each frame: (int8 array, scale, zero point)
    shape: Tuple[int, ...]      # of the input, (1, height, width, 3)


class SimulatedNPU:
    """RKNNLite's interface on a simulated NPU. Use a class that simulated() derives.

    Each core has a queue, as in the driver: a job starts when the core is free, ends one inference
    later, and the caller sleeps until then. The outputs are those recorded for the frame most like
    the input, dequantised in every call.
    """

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2, NPU_CORE_0_1_2 = 0, 1, 2, 4, 7

    # Set by simulated(), and shared by all contexts of the class.
    NPU_CORES: int
    seconds: List[float]      # that an inference takes on each core
    recorded: Recording
    queueing: threading.Lock
    free_at: List[float]      # time.perf_counter() at which each core is free
    schedule: Deque[tuple]    # (cores, start, end) of the last jobs

    def __init__(self, verbose: bool = False, verbose_file: Optional[str] = None) -> None:
        self.error: Optional[str] = None
        self.cores: Optional[List[int]] = None  # None: whichever is free first

    def load_rknn(self, path: str) -> int:
        return 0

    def init_runtime(self, target: Any = None, device_id: Any = None, async_mode: bool = False,
                     core_mask: int = NPU_CORE_AUTO) -> int:
        if core_mask not in (0, 1, 2, 3, 4, 7) or core_mask and self.NPU_CORES == 1:
            return -1
        self.cores = None
        if core_mask:  # on two cores CORE_0_1_2 means both, and CORE_2 means CORE_0
            self.cores = [core for core in range(self.NPU_CORES) if core_mask >> core & 1] or [0]
        self.buffers = [np.empty(values.shape, np.float32)
                        for values, _, _ in self.recorded.outputs[0]]
        self.stored = [np.empty_like(values) for values, _, _ in self.recorded.outputs[0]]
        return 0

    def inference(self, inputs: Any, data_type: Any = None, data_format: Any = None,
                  inputs_pass_through: Any = None, get_frame_id: bool = False,
                  reuse_outputs: bool = False) -> Optional[List[np.ndarray]]:
        """The outputs as the wheel returns them: copies, or with reuse_outputs the context's own
        buffers, which the next call overwrites."""
        outputs = self.run(inputs)
        if outputs is None:
            return None
        # NumPy releases the GIL here, as the vendor's C code does.
        for (values, scale, zero_point), buffer in zip(outputs, self.buffers):
            np.subtract(values, np.float32(zero_point), out=buffer)
            np.multiply(buffer, np.float32(scale), out=buffer)
        return list(self.buffers) if reuse_outputs else [buffer.copy() for buffer in self.buffers]

    def inference_raw(self, inputs: Sequence[np.ndarray]) -> Optional[List[tuple]]:
        """As inference(), but quantised: (int8 array, scale, zero point) for each output, in
        buffers of the context."""
        outputs = self.run(inputs)
        if outputs is None:
            return None
        for (values, _, _), buffer in zip(outputs, self.stored):
            np.copyto(buffer, values)
        return [(buffer, scale, zero_point)
                for buffer, (_, scale, zero_point) in zip(self.stored, outputs)]

    def run(self, inputs: Sequence[np.ndarray], take: Callable = np.copy) -> Optional[List[tuple]]:
        """Occupy a core for one inference, and return the outputs recorded for the nearest frame.

        take: what happens to the input first; the vendor's runtime copies it.
        """
        self.error = None
        if inputs[0].ndim != 4:
            self.error = (f"the input needs four dimensions, (1, height, width, 3), not "
                          f"{inputs[0].shape}")
            return None
        image = take(inputs[0])
        self.wait_for_core()
        nearest = np.abs(self.recorded.fingerprints - fingerprint(image)).sum(1).argmin()
        return self.recorded.outputs[nearest]

    def wait_for_core(self) -> None:
        with self.queueing:  # held while the job is queued, not while it runs
            cores = self.cores or [self.free_at.index(min(self.free_at))]
            start = max(time.perf_counter(), *(self.free_at[core] for core in cores))
            speedup = ALL_CORES_SPEEDUP if len(cores) > 1 else 1
            end = start + max(self.seconds[core] for core in cores) / speedup
            for core in cores:
                self.free_at[core] = end
            self.schedule.append((cores, start, end))
        if end > start:
            time.sleep(max(0, end - time.perf_counter()))

    def release(self) -> None:
        pass


def simulated(inference: float | Sequence[float], cores: int, recorded: Recording) -> type:
    """A runtime class: an NPU with so many cores, and what record() returned.

    inference: seconds of an inference: one float for all cores, or a sequence with one per core.
    """
    seconds = [float(each) for each in np.broadcast_to(inference, (cores,))]
    return type("SimulatedNPU", (SimulatedNPU,), dict(
        seconds=seconds, NPU_CORES=cores, recorded=recorded, queueing=threading.Lock(),
        free_at=[0.0] * cores, schedule=collections.deque(maxlen=1000)))


def fingerprint(image: np.ndarray, dtype: type = np.int16) -> np.ndarray:
    """A few pixels of an input (1, h, w, 3) uint8: (n,) int16."""
    step = max(1, image.shape[1] // 8)
    return image[0, ::step, ::step].astype(dtype).ravel()


def record(model: str, frames: Iterable[np.ndarray], myFunc: Callable) -> Recording:
    """Run myFunc on the CPU, and record its inference's input and outputs for each frame.

    An output is (int8 array, scale, zero point), value = (stored - zero point) * scale. Scale and
    zero point come from the output's range over all frames, as a model has one scale per output.
    Meanwhile the outputs need 8.6 MB of memory a frame for YOLOv5.
    """
    context = Recorder(opened(cpu.RKNNLite, model))
    for frame in frames:
        myFunc(context, frame)  # raises ModelError at once for a model it cannot read
    if not context.outputs:  # myFunc runs no inference, but the model has outputs
        infer(context, letterbox(frame, getattr(context.model, "size", None) or 640)[0])
    scales = [scale_of(each) for each in zip(*context.outputs)]
    return Recording(np.stack(context.fingerprints),
                     [[quantised(output, *scale) for output, scale in zip(outputs, scales)]
                      for outputs in context.outputs], context.inputs[0].shape)


class Recorder:
    """Takes the place of a context, and records its inputs and outputs."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.inputs: List[np.ndarray] = []
        self.fingerprints: List[np.ndarray] = []
        self.outputs: List[List[np.ndarray]] = []
        self.model = getattr(context, "model", None)

    def inference(self, inputs: List[np.ndarray]) -> Optional[List[np.ndarray]]:
        self.inputs = [image.copy() for image in inputs]
        outputs = self.context.inference(inputs)
        if outputs is not None:
            self.fingerprints.append(fingerprint(inputs[0]))
            self.outputs.append([output.copy() for output in outputs])
        return outputs


def scale_of(outputs: Sequence[np.ndarray]) -> Tuple[float, int]:
    """Scale and zero point with which int8 covers the range of these arrays, and 0."""
    low = min(0.0, *(float(output.min()) for output in outputs))
    high = max(0.0, *(float(output.max()) for output in outputs))
    scale = float(np.float32((high - low) / 255)) or 1.0
    return scale, round(-128 - low / scale)


def quantised(output: np.ndarray, scale: float, zero_point: int) -> tuple:
    """(int8 array, scale, zero point) of float32 values."""
    stored = np.rint(output / np.float32(scale)) + zero_point
    return np.clip(stored, -128, 127).astype(np.int8), scale, zero_point


def opened(runtime: Any, model: str, soc: Optional[str] = None) -> Any:
    """One context without a pool, with its `model`. soc: as rknnpool.soc() returns it. Raises
    InputError if it does not open."""
    context = runtime()
    context.model = runtimes.prepare(model, runtime, soc)[1]
    if context.load_rknn(context.model.path) != 0 or context.init_runtime() != 0:
        reason = getattr(context, "error", None) or "see the runtime's message above"
        raise InputError(f"{model} could not be opened: {reason}.")
    return context


def parse_simulate(text: str) -> Tuple[Any, int]:
    """(seconds of an inference, cores) from "yolov5n@rk3588" or "16.9x3"; from "10,10,30"
    (seconds of each core, cores)."""
    if text in PUBLISHED:
        return 1 / PUBLISHED[text], PUBLISHED_CORES
    alike = re.fullmatch(r"(\d+\.?\d*)x([123])", text)
    if alike:
        return float(alike[1]) / 1000, int(alike[2])
    if re.fullmatch(r"\d+\.?\d*(,\d+\.?\d*){1,2}", text):
        each = tuple(float(milliseconds) / 1000 for milliseconds in text.split(","))
        return each, len(each)
    raise InputError(f"--simulate {text}: give milliseconds x cores, as in 16.9x3 (1 to 3 cores), "
                     f"the milliseconds of each core, as in 10,10,30, or one of "
                     f"{', '.join(PUBLISHED)}.")
