"""RKNNLite's methods over the vendor's librknnrt.so itself, by ctypes: any Python, and int8 outputs as they are.

    from runtimes.librknnrt import RKNNLite     # instead of: from rknnlite.api import RKNNLite

Results and return codes are the wheel's: what fails returns -1 (or None from `inference`) and raises nothing; the
reason then stands in `error`. Unlike the wheel it notices a run that failed. The library is the one that RKNNRT_LIB
names, else the one that the loader finds, else /usr/lib/librknnrt.so. Structures and codes are those of the public
rknn_api.h.
"""
from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from ctypes import POINTER, Structure, byref, c_char, c_float, c_int8, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Sequence

import numpy as np

NO_DEVICE = "the rknpu driver's device cannot be opened: no such driver in this kernel, or not for this user"
FEWER = "fewer contexts, main.py's --threads or TPEs"
ERRORS = {  # code: its name, and what to do about it
    -1: ("RKNN_ERR_FAIL", "the NPU or its driver failed: look at dmesg"),
    -2: ("RKNN_ERR_TIMEOUT", "the NPU does not answer: look at dmesg, switch the board off and on"),
    -3: ("RKNN_ERR_DEVICE_UNAVAILABLE", "the kernel's rknpu driver is missing or too old"),
    -4: ("RKNN_ERR_MALLOC_FAIL", f"the NPU's memory is used up: {FEWER}"),
    -5: ("RKNN_ERR_PARAM_INVALID", "an argument is not what the model takes"),
    -6: ("RKNN_ERR_MODEL_INVALID", "convert the model again, or update librknnrt.so; or the NPU's memory is used up"),
    -7: ("RKNN_ERR_CTX_INVALID", "the context is not open"),
    -8: ("RKNN_ERR_INPUT_INVALID", "the input is not what the model takes"),
    -9: ("RKNN_ERR_OUTPUT_INVALID", "the outputs do not fit"),
    -10: ("RKNN_ERR_DEVICE_UNMATCH", "driver and library do not fit: update librknnrt.so or the kernel"),
    -13: ("RKNN_ERR_TARGET_PLATFORM_UNMATCH", "the model is made for another SoC: convert it for this one"),
}
KINDS = {"float32": 0, "float16": 1, "int8": 2, "uint8": 3, "int16": 4, "uint16": 5, "int32": 6, "uint32": 7,
         "int64": 8, "bool": 9}  # rknn_tensor_type
INT8, NCHW, NHWC, AFFINE = 2, 0, 1, 2
IN_OUT_NUM, INPUT_ATTR, OUTPUT_ATTR, SDK_VERSION = 0, 1, 2, 5  # rknn_query's commands


class InOutNum(Structure):
    _fields_ = [("n_input", c_uint32), ("n_output", c_uint32)]


class TensorAttr(Structure):
    _fields_ = [("index", c_uint32), ("n_dims", c_uint32), ("dims", c_uint32 * 16), ("name", c_char * 256),
                ("n_elems", c_uint32), ("size", c_uint32), ("fmt", c_int32), ("type", c_int32), ("qnt_type", c_int32),
                ("fl", c_int8), ("zp", c_int32), ("scale", c_float), ("w_stride", c_uint32),
                ("size_with_stride", c_uint32), ("pass_through", c_uint8), ("h_stride", c_uint32)]

    @property
    def shape(self) -> tuple:
        return tuple(self.dims[:self.n_dims])


class SdkVersion(Structure):
    _fields_ = [("api_version", c_char * 256), ("drv_version", c_char * 256)]


class Input(Structure):
    _fields_ = [("index", c_uint32), ("buf", c_void_p), ("size", c_uint32), ("pass_through", c_uint8),
                ("type", c_int32), ("fmt", c_int32)]


class Output(Structure):
    _fields_ = [("want_float", c_uint8), ("is_prealloc", c_uint8), ("index", c_uint32), ("buf", c_void_p),
                ("size", c_uint32)]


ARGUMENTS = {"rknn_init": [POINTER(c_uint64), c_void_p, c_uint32, c_uint32, c_void_p], "rknn_destroy": [c_uint64],
             "rknn_dup_context": [POINTER(c_uint64), POINTER(c_uint64)], "rknn_set_core_mask": [c_uint64, c_int32],
             "rknn_query": [c_uint64, c_int32, c_void_p, c_uint32], "rknn_run": [c_uint64, c_void_p],
             "rknn_inputs_set": [c_uint64, c_uint32, POINTER(Input)],
             "rknn_outputs_get": [c_uint64, c_uint32, POINTER(Output), c_void_p],
             "rknn_outputs_release": [c_uint64, c_uint32, POINTER(Output)],
             "rknn_create_mem": [c_uint64, c_uint32], "rknn_destroy_mem": [c_uint64, c_void_p]}


@functools.lru_cache(maxsize=None)
def _load(given):
    """The library, at the path that RKNNRT_LIB gives or None. Raises OSError where there is none."""
    errors = []
    for name in [given] if given else ["librknnrt.so", "/usr/lib/librknnrt.so"]:
        try:
            library = ctypes.CDLL(name)  # a CDLL lets go of the GIL in every call
        except OSError as error:
            errors.append(str(error))
            continue
        for function, arguments in ARGUMENTS.items():
            if hasattr(library, function):
                getattr(library, function).argtypes = arguments
                getattr(library, function).restype = c_void_p if function == "rknn_create_mem" else c_int32
        return library
    raise OSError("; ".join(errors))


class _Failed(Exception):
    """A call failed; the message is the reason."""


class RKNNLite:
    """One context of the vendor's library. A second thread in a call with it is refused, not let in."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xffff
    VENDOR_NPU = True  # for the pool: the machine's own, whichever class opens it

    _open = weakref.WeakSet()  # contexts, whose weights a further one of the same model shares
    _opening = threading.Lock()
    _told = False

    def __init__(self, verbose: bool = False, verbose_file: str | None = None):
        self.error = None       # the reason of the last -1 or None, a sentence
        self.run_failed = False  # whether it was the NPU's run
        self.shares_weights = False
        self._handle = self._left = self._path = self._library = None
        self._using = threading.Lock()

    def load_rknn(self, path: str, key_path: str | None = None) -> int:
        """Take the model at `path`. Returns 0, or -1 where it cannot be read."""
        try:
            with open(path, "rb") as file:
                self._model, status = file.read(), os.fstat(file.fileno())
        except OSError as error:
            return self._fail(f"{path}: cannot be read ({error.strerror})")
        self._path, self._key = os.fspath(path), (os.path.realpath(path), status.st_mtime_ns, status.st_size)
        return 0

    def init_runtime(self, target: str | None = None, device_id: str | None = None, async_mode: bool = False,
                     core_mask: int = NPU_CORE_AUTO) -> int:
        """Open the context, on the cores of `core_mask` (0: the driver's choice). Returns 0, or -1."""
        if self._path is None:
            return self._fail("load_rknn comes before init_runtime")
        try:
            self._library = _load(os.environ.get("RKNNRT_LIB"))
        except OSError as error:
            return self._fail(f"librknnrt.so cannot be loaded ({error}): it comes with the board vendor's image; "
                              "RKNNRT_LIB names another place")
        with self._opening:
            try:
                self._init(core_mask)
            except _Failed as error:
                self.release()
                return self._fail(str(error))
            self._open.add(self)
            self._model = None  # the library has a copy
            if not RKNNLite._told:
                RKNNLite._told = True
                version = SdkVersion()
                self._library.rknn_query(self._handle, SDK_VERSION, byref(version), ctypes.sizeof(version))
                print(f"librknnrt.so {version.api_version.decode(errors='replace')} runs without rknn-toolkit-lite2.",
                      file=sys.stderr)
        return 0

    def _init(self, core_mask):
        handle = c_uint64()
        # One copy of the weights for all contexts of a model. A context that is in a call meanwhile is left alone.
        for other in [other for other in self._open if other._key == self._key]:
            if hasattr(self._library, "rknn_dup_context") and other._using.acquire(blocking=False):
                try:
                    if other._handle is not None:
                        original = c_uint64(other._handle)
                        self.shares_weights = self._library.rknn_dup_context(byref(original), byref(handle)) == 0
                finally:
                    other._using.release()
            break
        if not self.shares_weights:
            code = self._library.rknn_init(byref(handle), self._model, len(self._model), 0, None)
            if code == -6 and any(other._key == self._key for other in self._open):
                code = -4  # which the library says, too, where another of its allocations fails
            self._check("rknn_init", code, NO_DEVICE if code == -1 else None)
        self._handle, code = handle.value, core_mask  # 0 stands already
        for mask in (core_mask, 7, 3) if core_mask == self.NPU_CORE_ALL else (core_mask,):  # 1.5.2 does not know ALL
            code = code and self._library.rknn_set_core_mask(self._handle, mask)
        self._check(f"rknn_set_core_mask({core_mask})", code, "this SoC has no such cores, or does not join them")
        count = self._answer(IN_OUT_NUM, InOutNum())
        self._inputs = [self._answer(INPUT_ATTR, TensorAttr(index=index)) for index in range(count.n_input)]
        self._outputs = [self._answer(OUTPUT_ATTR, TensorAttr(index=index)) for index in range(count.n_output)]
        # The library writes into buffers of the context's own: floats, and raw int8 where the output is that.
        self._raw = [attr.type == INT8 and attr.qnt_type == AFFINE for attr in self._outputs]
        self._floats = self._prepared([False] * len(self._raw))
        self._stored = self._prepared(self._raw)
        if hasattr(self._library, "rknn_create_mem"):
            self._reserve()

    def _reserve(self):
        """Have the library take the inputs' and outputs' memory now: 1.5.2 does so at the first frame, and where there
        is none says nothing and gives wrong outputs."""
        wanted = sum(attr.size for attr in self._inputs + self._outputs)
        memory = self._library.rknn_create_mem(self._handle, wanted)
        if not memory:
            raise _Failed(f"the NPU has no memory left for this context's inputs and outputs ({wanted} bytes): {FEWER}")
        self._library.rknn_destroy_mem(self._handle, memory)
        blank = self._given([np.zeros(attr.shape, np.uint8) for attr in self._inputs], None, None)
        self._library.rknn_inputs_set(self._handle, len(blank), blank)

    def _prepared(self, raw):
        buffers = [np.zeros(attr.shape, np.int8 if stored else np.float32)
                   for attr, stored in zip(self._outputs, raw)]
        outputs = [Output(not stored, 1, index, buffer.ctypes.data, buffer.nbytes)
                   for index, (buffer, stored) in enumerate(zip(buffers, raw))]
        return buffers, (Output * len(outputs))(*outputs)

    def inference(self, inputs: Sequence[np.ndarray], data_type=None, data_format=None, inputs_pass_through=None,
                  get_frame_id: bool = False, reuse_outputs: bool = False) -> list | None:
        """Run the model: a list of float32 arrays, or None with the reason in `error`.

        inputs: arrays (1, H, W, 3), uint8 RGB for most models, or (1, 3, H, W) with data_format="nchw". With
        reuse_outputs the arrays are the context's own, which its next inference overwrites.
        """
        if not self._run(inputs, data_format, inputs_pass_through, self._floats if self._handle else None):
            return None
        return list(self._floats[0]) if reuse_outputs else [buffer.copy() for buffer in self._floats[0]]

    def inference_raw(self, inputs: Sequence[np.ndarray]) -> list | None:
        """As inference(), without dequantising: (array, scale, zero point) for each output, the arrays the context's
        own, which its next inference overwrites.

        value = (stored - zero point) * scale. Quantised outputs are int8; others come as float32 with 1.0 and 0.
        """
        if not self._run(inputs, None, None, self._stored if self._handle else None):
            return None
        return [(buffer, attr.scale if raw else 1.0, attr.zp if raw else 0)
                for buffer, attr, raw in zip(self._stored[0], self._outputs, self._raw)]

    def _run(self, inputs, data_format, pass_through, prepared):
        if not self._using.acquire(blocking=False):
            self._fail("another thread is in a call with this context: each context serves one at a time")
            return False
        try:
            self.error, self.run_failed, handle = None, False, self._handle
            if prepared is None or handle is None:
                raise _Failed("init_runtime comes before inference")
            inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            given = self._given(inputs, data_format, pass_through)
            self._check("rknn_inputs_set", self._library.rknn_inputs_set(handle, len(given), given))
            code = self._library.rknn_run(handle, None)
            self.run_failed = code != 0  # rknn_outputs_get would give the previous run's values
            self._check("rknn_run", code)
            outputs = prepared[1]
            self._check("rknn_outputs_get", self._library.rknn_outputs_get(handle, len(outputs), outputs, None))
            self._check("rknn_outputs_release", self._library.rknn_outputs_release(handle, len(outputs), outputs))
            return True
        except _Failed as error:
            self._fail(str(error))
            return False
        finally:
            self._using.release()
            if self._left is not None:
                self._destroy()

    def _given(self, inputs, data_format, pass_through):
        if len(inputs) != len(self._inputs):
            raise _Failed(f"{self._path} takes {len(self._inputs)} inputs, not {len(inputs)}")
        formats = [data_format] * len(inputs) if isinstance(data_format, str) else data_format or ["nhwc"] * len(inputs)
        given = (Input * len(inputs))()
        self._kept = inputs = [np.ascontiguousarray(each) for each in inputs]  # as long as the library may read them
        for index, (array, attr, form) in enumerate(zip(inputs, self._inputs, formats)):
            shape = array.shape
            if attr.fmt == NHWC and array.ndim == 4 and form == "nchw":
                shape = shape[:1] + shape[2:] + shape[1:2]
            if array.dtype.name not in KINDS or shape != attr.shape:
                raise _Failed(f"{self._path} takes an input of shape {attr.shape}, not {array.dtype} {array.shape}")
            raw = bool(pass_through and pass_through[index])
            given[index] = Input(index, array.ctypes.data, array.nbytes, raw, KINDS[array.dtype.name],
                                 NCHW if form == "nchw" else NHWC)
        return given

    def release(self) -> None:
        """Close the context, once no thread is in a call with it. Waits for none; may be called again."""
        if self._handle is not None:
            self._open.discard(self)
            self._left, self._handle = self._handle, None
            self._destroy()

    def _destroy(self):
        if self._using.acquire(blocking=False):  # else its holder comes by here: the library would free what a run uses
            handle, self._left = self._left, None
            if handle is not None:
                self._library.rknn_destroy(handle)
            self._using.release()

    def _answer(self, command, structure):
        code = self._library.rknn_query(self._handle, command, byref(structure), ctypes.sizeof(structure))
        self._check(f"rknn_query({command})", code)
        return structure

    @staticmethod
    def _check(call, code, reason=None):
        if code != 0:
            name, usual = ERRORS.get(code, ("an unknown code", "look at the library's own message above"))
            raise _Failed(f"{call} returned {code} ({name}): {reason or usual}")

    def _fail(self, reason):
        self.error = reason
        return -1
