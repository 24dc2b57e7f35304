"""The simulated NPU under a C library, so that copying and dequantising are C's: for benchmark.py's --runtime.

    runtime = simulated_library("library", 0.0169, 3, record("models/yolov5n_emoji.rknn", frames, myFunc))
    pool = rknnPoolExecutor("models/yolov5n_emoji.rknn", 6, myFunc, runtime=runtime)

The library is that of the board in a box (tests/board/librknnrt.c), compiled for this machine over
simulated_library.c. "library" is runtimes/librknnrt.py over it. "wheel" and "wheel-2.3.2" do over it what
rknn-toolkit-lite2 2.5.0 and 2.3.2 do, which exist for aarch64 only: the same calls, allocations and copies of whole
inputs and outputs, as they were seen (memcpy, malloc and the library's calls booked, in the box) when `inference` ran,
2.5.0 with reuse_outputs, as func.py asks it. What else their Python does is left out, so the wheel's own cost is more.
"no-copies" is the bound that no runtime can pass: the input is read and the recorded outputs are given where they lie.
"""
from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Sequence

import numpy as np

from rknnmodel import InputError
from runtimes import librknnrt
from runtimes.librknnrt import NHWC, Input, Output
from runtimes.simulated import ALL_CORES_SPEEDUP, Recording, SimulatedNPU, fingerprint, simulated

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "runtimes/simulated_library.c", "tests/board/librknnrt.c"
MAX_TENSORS = 16  # as link.h has it
KINDS = "wheel", "wheel-2.3.2", "library", "no-copies"


class Tensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 256), ("n_dims", ctypes.c_uint32), ("dims", ctypes.c_uint32 * 4),
                ("zp", ctypes.c_int32), ("scale", ctypes.c_float)]


class Description(ctypes.Structure):
    _fields_ = [("n_input", ctypes.c_uint32), ("n_output", ctypes.c_uint32), ("tensors", Tensor * MAX_TENSORS)]


@functools.lru_cache(maxsize=None)
def compiled() -> str:
    """The path of the library, made for this machine and removed when the program ends. Raises InputError where it
    cannot be made."""
    folder = tempfile.mkdtemp(prefix="librknnrt-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "librknnrt.so")
    # The vendor's own loop from int8 to float32 is vectorised, too (fmla on whole registers in 1.5.2).
    command = ["gcc", "-std=c11", "-O3", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread",
               f"-I{ROOT / 'tests/board'}", "-o", path, *(str(ROOT / source) for source in SOURCES), "-lm"]
    try:
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise InputError("--runtime on a simulated NPU needs a C compiler: apt install gcc libc6-dev.") from None
    except subprocess.CalledProcessError as error:
        reason = error.stdout.decode(errors="replace").strip().splitlines() or ["gcc says no reason"]
        raise InputError(f"--runtime on a simulated NPU: the C library does not compile ({reason[0]}).") from None
    return path


def simulated_library(kind: str, inference: float | Sequence[float], cores: int, recorded: Recording) -> type:
    """A runtime class over the C library, as runtimes.simulated.simulated(). All such classes of a program share one
    NPU, the last one set up.

    kind: one of KINDS. Raises InputError where the library cannot be made, or holds no such outputs.
    """
    if kind == "no-copies":
        return type("NoCopies", (NoCopies, simulated(inference, cores, recorded)), {})
    library = ctypes.CDLL(compiled())
    outputs = recorded.outputs
    if len(outputs[0]) >= MAX_TENSORS or max(stored.ndim for stored, _, _ in outputs[0]) > 4:
        raise InputError("--runtime on a simulated NPU: the model has more outputs or dimensions than it holds.")
    model = Description(1, len(outputs[0]))
    tensors = [(recorded.shape, 1 / 255, -128)] + [(stored.shape, scale, zero) for stored, scale, zero in outputs[0]]
    for place, (shape, scale, zero) in enumerate(tensors):
        dims = (ctypes.c_uint32 * 4)(*shape)
        model.tensors[place] = Tensor(b"tensor %d" % place, len(shape), dims, zero, scale)
    places = fingerprint(np.arange(np.prod(recorded.shape)).reshape(recorded.shape), np.uint32)
    fingerprints = np.ascontiguousarray(recorded.fingerprints, np.uint8)
    seconds = np.broadcast_to(np.float64(inference), (cores,)).copy()
    pointers = np.array([stored.ctypes.data for each in outputs for stored, _, _ in each], np.uintp)
    library.simulate(ctypes.byref(model), cores, ctypes.c_void_p(seconds.ctypes.data),
                     ctypes.c_double(ALL_CORES_SPEEDUP), len(outputs), len(places),
                     *(ctypes.c_void_p(array.ctypes.data) for array in (places, fingerprints, pointers)))
    base = {"library": Library, "wheel": Wheel, "wheel-2.3.2": OldWheel}[kind]
    return type(base.__name__, (base,), dict(NPU_CORES=cores, kept=(recorded, places, fingerprints, pointers)))


class NoCopies(SimulatedNPU):
    """The simulated NPU, whose outputs are the recorded ones themselves."""

    def inference_raw(self, inputs: Sequence[np.ndarray]) -> list | None:
        return self.run(inputs, np.asarray)


class Library(librknnrt.RKNNLite):
    """runtimes/librknnrt.py, but not of this machine's own NPU."""

    VENDOR_NPU = False

    def init_runtime(self, target=None, device_id=None, async_mode=False, core_mask=librknnrt.RKNNLite.NPU_CORE_AUTO):
        library, told = os.environ.get("RKNNRT_LIB"), librknnrt.RKNNLite._told
        os.environ["RKNNRT_LIB"], librknnrt.RKNNLite._told = compiled(), True  # the vendor's is not there to be told of
        try:
            return super().init_runtime(target, device_id, async_mode, core_mask)
        finally:
            librknnrt.RKNNLite._told = told
            if library is None:
                del os.environ["RKNNRT_LIB"]
            else:
                os.environ["RKNNRT_LIB"] = library


class Wheel:
    """What rknn-toolkit-lite2 2.5.0 does over the C library, from load_rknn to release."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xffff

    def __init__(self, verbose: bool = False, verbose_file: str | None = None):
        self.context = Library()

    @property
    def error(self) -> str | None:
        return self.context.error

    def load_rknn(self, path: str) -> int:
        return self.context.load_rknn(path)

    def init_runtime(self, target=None, device_id=None, async_mode=False, core_mask=NPU_CORE_AUTO) -> int:
        if self.context.init_runtime(core_mask=core_mask) != 0:
            return -1
        self.library, self.handle = self.context._library, self.context._handle
        self.shapes = [attr.shape for attr in self.context._outputs]
        self.prepare()
        return 0

    def prepare(self) -> None:
        """What 2.5.0 has once for all calls: the input's copy, and the arrays for the outputs."""
        self.input = (ctypes.c_uint8 * int(np.prod(self.context._inputs[0].shape)))()
        self.staging = [np.zeros(shape, np.float32) for shape in self.shapes]
        self.outputs = (Output * len(self.shapes))()

    def inference(self, inputs, data_type=None, data_format=None, inputs_pass_through=None, get_frame_id=False,
                  reuse_outputs=False):
        image = inputs[0]
        if image.shape != self.context._inputs[0].shape:
            return None
        ctypes.memmove(self.input, image.ctypes.data, image.nbytes)
        self.run(self.input, self.outputs)
        for output, array in zip(self.outputs, self.staging):
            ctypes.memmove(array.ctypes.data, output.buf, array.nbytes)
        self.library.rknn_outputs_release(self.handle, len(self.outputs), self.outputs)
        return list(self.staging) if reuse_outputs else [array.copy() for array in self.staging]

    def run(self, buffer, outputs):
        """From the input to outputs that the library has allocated. The wheel does not look at rknn_run's code."""
        uint8 = librknnrt.KINDS["uint8"]
        given = (Input * 1)(Input(0, ctypes.addressof(buffer), ctypes.sizeof(buffer), 0, uint8, NHWC))
        self.library.rknn_inputs_set(self.handle, 1, given)
        self.library.rknn_run(self.handle, None)
        for index, output in enumerate(outputs):
            output.want_float, output.is_prealloc, output.index = 1, 0, index
        self.library.rknn_outputs_get(self.handle, len(outputs), outputs, None)

    def release(self) -> None:
        self.context.release()


class OldWheel(Wheel):
    """What rknn-toolkit-lite2 2.3.2 does: buffers of its own for the input and all outputs, new ones and zeroed for
    each call, and then a copy of what the library has allocated."""

    def prepare(self) -> None:
        pass

    def inference(self, inputs, data_type=None, data_format=None, inputs_pass_through=None, get_frame_id=False):
        image = inputs[0]
        if image.shape != self.context._inputs[0].shape:
            return None
        stored = image.tobytes()
        buffer = (ctypes.c_uint8 * len(stored))()
        ctypes.memmove(buffer, stored, len(stored))
        empty = [np.empty(shape, np.float32) for shape in self.shapes]
        unused = [(ctypes.c_float * array.size)() for array in empty]
        outputs = (Output * len(unused))()
        self.run(buffer, outputs)
        found = [np.array(np.ctypeslib.as_array(ctypes.cast(output.buf, ctypes.POINTER(ctypes.c_float)), shape))
                 for output, shape in zip(outputs, self.shapes)]
        self.library.rknn_outputs_release(self.handle, len(outputs), outputs)
        return found
