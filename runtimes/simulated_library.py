"""The simulated NPU under a C library, which copies and dequantises as the vendor's does.

    recorded = record("models/yolov5n_emoji.rknn", frames, myFunc)
    runtime = simulated_library("library", 0.0169, 3, recorded)
    pool = rknnPoolExecutor("models/yolov5n_emoji.rknn", 6, myFunc, runtime=runtime)

The library is that of the board in a box (tests/board/librknnrt.c), compiled for this machine with
simulated_library.c. "library" is runtimes/librknnrt.py over it. "wheel" and "wheel-2.3.2" imitate
rknn-toolkit-lite2 2.5.0 and 2.3.2, which exist for aarch64 only: the same calls, allocations and
copies that they make in `inference` (observed in the box by logging memcpy, malloc and the
library's calls; 2.5.0 with reuse_outputs, as func.py calls it). The rest of their Python is left
out, so the real wheels cost more. "no-copies" is the upper bound for every runtime: it reads the
input and returns the recorded outputs without copying.
"""
from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from typing import Any, List, Optional, Sequence

import numpy as np

from runtimes import librknnrt
from runtimes.rknn_api import KINDS as KINDS_OF_VALUES
from runtimes.rknn_api import NHWC, Input, Output
from runtimes.simulated import ALL_CORES_SPEEDUP, Recording, SimulatedNPU, fingerprint, simulated
from vision.errors import InputError
from vision.paths import ROOT

SOURCES = "runtimes/simulated_library.c", "tests/board/librknnrt.c"
MAX_TENSORS = 16  # as link.h has it
KINDS = "wheel", "wheel-2.3.2", "library", "no-copies"


class Tensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 256), ("n_dims", ctypes.c_uint32),
                ("dims", ctypes.c_uint32 * 4), ("zp", ctypes.c_int32), ("scale", ctypes.c_float)]


class Description(ctypes.Structure):
    _fields_ = [("n_input", ctypes.c_uint32), ("n_output", ctypes.c_uint32),
                ("tensors", Tensor * MAX_TENSORS)]


@functools.lru_cache(maxsize=None)
def compiled() -> str:
    """The path of the library, compiled for this machine and removed at exit. Raises InputError if
    it does not compile."""
    try:
        folder = tempfile.mkdtemp(prefix="librknnrt-")
    except OSError as error:
        raise InputError(f"--runtime on a simulated NPU: {error.strerror}.") from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "librknnrt.so")
    # The vendor's loop from int8 to float32 is vectorised, too (fmla on whole registers in 1.5.2).
    command = ["gcc", "-std=c11", "-O3", "-march=native", "-fPIC", "-shared",
               "-fvisibility=hidden", "-pthread", f"-I{ROOT / 'tests/board'}", "-o", path,
               *(str(ROOT / source) for source in SOURCES), "-lm"]
    try:
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        raise InputError("--runtime on a simulated NPU needs a C compiler: apt install gcc "
                         "libc6-dev.") from None
    except subprocess.CalledProcessError as error:
        lines = error.stdout.decode(errors="replace").strip().splitlines() or ["no message"]
        raise InputError(f"--runtime on a simulated NPU: the C library does not compile "
                         f"({lines[0]}).") from None
    return path


def simulated_library(kind: str, inference: float | Sequence[float], cores: int,
                      recorded: Recording) -> type:
    """A runtime class over the C library, otherwise as runtimes.simulated.simulated() makes it.

    kind: one of KINDS. All such classes of a program share one NPU, the last one set up. Raises
    InputError if the library does not compile, or the outputs have more dimensions than it knows.
    """
    if kind == "no-copies":
        return type("NoCopies", (NoCopies, simulated(inference, cores, recorded)), {})
    library, outputs = ctypes.CDLL(compiled()), recorded.outputs
    if len(outputs[0]) >= MAX_TENSORS or max(stored.ndim for stored, _, _ in outputs[0]) > 4:
        raise InputError("--runtime on a simulated NPU: the model has more outputs or dimensions "
                         "than the library knows.")
    model = Description(1, len(outputs[0]))
    tensors = [(recorded.shape, 1 / 255, -128)]
    tensors += [(stored.shape, scale, zero) for stored, scale, zero in outputs[0]]
    for number, (shape, scale, zero) in enumerate(tensors):
        dims = (ctypes.c_uint32 * 4)(*shape)
        model.tensors[number] = Tensor(b"tensor %d" % number, len(shape), dims, zero, scale)
    positions = np.arange(np.prod(recorded.shape)).reshape(recorded.shape)
    compared = fingerprint(positions, np.uint32)  # of the values that a fingerprint takes
    fingerprints = np.ascontiguousarray(recorded.fingerprints, np.uint8)
    seconds = np.broadcast_to(np.asarray(inference, np.float64), (cores,)).copy()
    pointers = np.array([stored.ctypes.data for each in outputs for stored, _, _ in each], np.uintp)
    library.simulate(ctypes.byref(model), cores, ctypes.c_void_p(seconds.ctypes.data),
                     ctypes.c_double(ALL_CORES_SPEEDUP), len(outputs), len(compared),
                     *(ctypes.c_void_p(array.ctypes.data)
                       for array in (compared, fingerprints, pointers)))
    base: type = {"library": Library, "wheel": Wheel, "wheel-2.3.2": OldWheel}[kind]
    kept = recorded, compared, fingerprints, pointers  # which the library goes on reading
    return type(base.__name__, (base,), dict(NPU_CORES=cores, kept=kept))


class NoCopies(SimulatedNPU):
    """The simulated NPU; its outputs are the recorded arrays themselves."""

    def inference_raw(self, inputs: Sequence[np.ndarray]) -> Optional[List[tuple]]:
        return self.run(inputs, np.asarray)


class Library(librknnrt.RKNNLite):
    """runtimes/librknnrt.py, but not on this machine's own NPU."""

    VENDOR_NPU = False

    def init_runtime(self, target: Any = None, device_id: Any = None, async_mode: bool = False,
                     core_mask: int = librknnrt.RKNNLite.NPU_CORE_AUTO) -> int:
        given = os.environ.get("RKNNRT_LIB")
        os.environ["RKNNRT_LIB"] = compiled()
        try:
            return super().init_runtime(target, device_id, async_mode, core_mask)
        finally:
            if given is None:
                del os.environ["RKNNRT_LIB"]
            else:
                os.environ["RKNNRT_LIB"] = given

    def _announce(self) -> None:
        """Say nothing: the vendor's library does not run."""


class Wheel:
    """What rknn-toolkit-lite2 2.5.0 does over the C library, from load_rknn to release."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xffff

    def __init__(self, verbose: bool = False, verbose_file: Optional[str] = None) -> None:
        self.context = Library()

    @property
    def error(self) -> Optional[str]:
        return self.context.error

    def load_rknn(self, path: str) -> int:
        return self.context.load_rknn(path)

    def init_runtime(self, target: Any = None, device_id: Any = None, async_mode: bool = False,
                     core_mask: int = NPU_CORE_AUTO) -> int:
        if self.context.init_runtime(core_mask=core_mask) != 0:
            return -1
        self.library, self.handle = self.context._library, self.context._handle
        self.shapes = [attr.shape for attr in self.context._outputs]
        self.prepare()
        return 0

    def prepare(self) -> None:
        """What 2.5.0 keeps for all calls: a copy of the input, and arrays for the outputs."""
        self.input = (ctypes.c_uint8 * int(np.prod(self.context._inputs[0].shape)))()
        self.staging = [np.zeros(shape, np.float32) for shape in self.shapes]
        self.outputs = (Output * len(self.shapes))()

    def inference(self, inputs: Any, data_type: Any = None, data_format: Any = None,
                  inputs_pass_through: Any = None, get_frame_id: bool = False,
                  reuse_outputs: bool = False) -> Optional[List[np.ndarray]]:
        image = inputs[0]
        if image.shape != self.context._inputs[0].shape:
            return None
        ctypes.memmove(self.input, image.ctypes.data, image.nbytes)
        self.run(self.input, self.outputs)
        for output, array in zip(self.outputs, self.staging):
            ctypes.memmove(array.ctypes.data, output.buf, array.nbytes)
        self.library.rknn_outputs_release(self.handle, len(self.outputs), self.outputs)
        return list(self.staging) if reuse_outputs else [array.copy() for array in self.staging]

    def run(self, buffer: Any, outputs: Any) -> None:
        """From the input to outputs that the library allocates. The wheel ignores rknn_run's
        code."""
        uint8, size = KINDS_OF_VALUES["uint8"], ctypes.sizeof(buffer)
        given = (Input * 1)(Input(0, ctypes.addressof(buffer), size, 0, uint8, NHWC))
        self.library.rknn_inputs_set(self.handle, 1, given)
        self.library.rknn_run(self.handle, None)
        for index, output in enumerate(outputs):
            output.want_float, output.is_prealloc, output.index = 1, 0, index
        self.library.rknn_outputs_get(self.handle, len(outputs), outputs, None)

    def release(self) -> None:
        self.context.release()


class OldWheel(Wheel):
    """What rknn-toolkit-lite2 2.3.2 does: in each call new, zeroed buffers for the input and all
    outputs, and then a copy of what the library allocated. It does not know reuse_outputs."""

    def inference(  # type: ignore[override]
            self, inputs: Any, data_type: Any = None, data_format: Any = None,
            inputs_pass_through: Any = None, get_frame_id: bool = False) \
            -> Optional[List[np.ndarray]]:
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
        found = [np.array(np.ctypeslib.as_array(
            ctypes.cast(output.buf, ctypes.POINTER(ctypes.c_float)), shape))
            for output, shape in zip(outputs, self.shapes)]
        self.library.rknn_outputs_release(self.handle, len(outputs), outputs)
        return found
