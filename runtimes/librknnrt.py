"""RKNNLite's methods on the vendor's librknnrt.so, by ctypes: for any Python, with raw outputs.

    from runtimes.librknnrt import RKNNLite     # instead of: from rknnlite.api import RKNNLite

Results and return codes are the wheel's: a call that fails returns -1 (or None from `inference`),
raises nothing, and leaves the reason in `error`. Unlike the wheel, it reports a failed run. The
library is the one that RKNNRT_LIB names, else the one the loader finds, else /usr/lib/librknnrt.so.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import weakref
from ctypes import byref, c_uint64
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from runtimes.rknn_api import (
    AFFINE,
    ERRORS,
    FEWER,
    FLOAT16,
    IN_OUT_NUM,
    INPUT_ATTR,
    INT8,
    KINDS,
    NCHW,
    NHWC,
    OUTPUT_ATTR,
    SDK_VERSION,
    InOutNum,
    Input,
    Output,
    SdkVersion,
    TensorAttr,
    load,
)

NO_DEVICE = ("the rknpu driver's device cannot be opened: this kernel lacks the driver, or this "
             "user may not open it")


class _Failed(Exception):
    """A call failed; the message is the reason."""


def stored_type(attr: TensorAttr) -> type:
    """The type in which inference_raw() gives an output."""
    if attr.type == INT8 and attr.qnt_type == AFFINE:
        return np.int8
    return np.float16 if attr.type == FLOAT16 else np.float32


class RKNNLite:
    """One context of the vendor's library. It refuses a second thread while one is in a call."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xffff
    VENDOR_NPU = True

    # The open contexts: a further context of the same model shares the weights of one of them.
    _open: weakref.WeakSet[RKNNLite] = weakref.WeakSet()
    _opening = threading.Lock()
    _announced = False

    def __init__(self, verbose: bool = False, verbose_file: Optional[str] = None) -> None:
        self.error: Optional[str] = None  # the reason of the last -1 or None
        self.run_failed = False           # True if the last inference failed in the NPU's run
        self.shares_weights = False
        self._path: Optional[str] = None
        self._key: Optional[tuple] = None  # of the model file, equal for contexts of one model
        self._library: Any = None
        self._handle: Optional[int] = None
        self._closing: List[int] = []      # released handles that are still in use
        # Buffers for inference() and inference_raw(), and the Output structures that name them.
        self._floats: Tuple[List[np.ndarray], Any] = ([], None)
        self._stored: Tuple[List[np.ndarray], Any] = ([], None)
        self._using = threading.Lock()     # held during calls that use the handle

    def load_rknn(self, path: str, key_path: Optional[str] = None) -> int:
        """Take the model at `path`. Returns 0, or -1 if it cannot be read."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
        except OSError as error:
            return self._fail(f"{path}: cannot be read ({error.strerror})")
        self._path = os.fspath(path)
        self._key = os.path.realpath(path), status.st_mtime_ns, status.st_size
        return 0

    def init_runtime(self, target: Optional[str] = None, device_id: Optional[str] = None,
                     async_mode: bool = False, core_mask: int = NPU_CORE_AUTO) -> int:
        """Open the context on the cores of `core_mask`; 0: the driver chooses. Returns 0, or -1.

        Closes first what an earlier call opened.
        """
        if self._path is None:
            return self._fail("call load_rknn before init_runtime")
        self.release()
        try:
            self._library = load(os.environ.get("RKNNRT_LIB"))
        except OSError as error:
            return self._fail(f"librknnrt.so cannot be loaded ({error}): it comes with the board "
                              f"vendor's image; RKNNRT_LIB can name another path")
        with self._opening:
            try:
                self._create()
                self._set_core_mask(core_mask)
                self._prepare()
            except _Failed as error:
                self.release()
                return self._fail(str(error))
            self._open.add(self)
            self._announce()
        return 0

    def _create(self) -> None:
        """Create the context: a duplicate of an open one of the same model, or else from the file.

        A duplicate shares the weights. Contexts that are in a call are left alone.
        """
        handle = c_uint64()
        code = -1
        others = [other for other in self._open if other._key == self._key and other is not self]
        for other in others if hasattr(self._library, "rknn_dup_context") else []:
            with other._in_call() as free:
                if free and other._handle is not None:
                    original = c_uint64(other._handle)
                    code = self._library.rknn_dup_context(byref(original), byref(handle))
                    break  # also if it failed: 1.5.2 crashes at a second attempt without memory
        self.shares_weights = code == 0
        if not self.shares_weights:
            try:
                with open(str(self._path), "rb") as file:
                    model = file.read()  # the library makes its own copy
            except OSError as error:
                raise _Failed(f"{self._path}: cannot be read ({error.strerror})") from None
            code = self._library.rknn_init(byref(handle), model, len(model), 0, None)
            if code == -6 and others:
                code = -4  # this model opened before, so -6 means that memory is used up
            self._check("rknn_init", code, NO_DEVICE if code == -1 else None)
        self._handle = handle.value

    def _set_core_mask(self, core_mask: int) -> None:
        # Library 1.5.2 does not know NPU_CORE_ALL; 0 is what a new context has.
        masks = (core_mask, 7, 3) if core_mask == self.NPU_CORE_ALL else (core_mask,)
        code = core_mask
        for mask in masks:
            code = code and self._library.rknn_set_core_mask(self._handle, mask)
        self._check(f"rknn_set_core_mask({core_mask})", code,
                    "this SoC lacks these cores, or cannot combine them")

    def _prepare(self) -> None:
        count = InOutNum()
        self._query(IN_OUT_NUM, count)
        self._inputs = [TensorAttr(index=index) for index in range(count.n_input)]
        self._outputs = [TensorAttr(index=index) for index in range(count.n_output)]
        for attr in self._inputs:
            self._query(INPUT_ATTR, attr)
        for attr in self._outputs:
            self._query(OUTPUT_ATTR, attr)
        # The library writes into the context's own buffers.
        self._floats = self._buffers([np.float32] * len(self._outputs))
        self._stored = self._buffers([stored_type(attr) for attr in self._outputs])
        if hasattr(self._library, "rknn_create_mem"):
            self._reserve()

    def _reserve(self) -> None:
        """Make the library allocate the memory of the inputs and outputs now.

        Library 1.5.2 allocates it at the first frame. If there is none left, it returns no error
        but wrong outputs.
        """
        size = sum(attr.size for attr in self._inputs + self._outputs)
        memory = self._library.rknn_create_mem(self._handle, size)
        if not memory:
            raise _Failed(f"the NPU has no memory left for this context's inputs and outputs "
                          f"({size} bytes): {FEWER}")
        self._library.rknn_destroy_mem(self._handle, memory)
        blank = self._input_structs([np.zeros(attr.shape, np.uint8) for attr in self._inputs],
                                    None, None)
        self._library.rknn_inputs_set(self._handle, len(blank), blank)

    def _buffers(self, types: Sequence[type]) -> Tuple[List[np.ndarray], Any]:
        """A buffer of its type for each output, and their Output structures."""
        buffers = [np.zeros(attr.shape, dtype) for attr, dtype in zip(self._outputs, types)]
        outputs = [Output(buffer.dtype == np.float32, 1, index, buffer.ctypes.data, buffer.nbytes)
                   for index, buffer in enumerate(buffers)]
        return buffers, (Output * len(outputs))(*outputs)

    def _announce(self) -> None:
        if not RKNNLite._announced:
            RKNNLite._announced = True
            print(f"librknnrt.so {self._versions()[0]} runs without rknn-toolkit-lite2.",
                  file=sys.stderr)

    def inference(self, inputs: Any, data_type: Any = None, data_format: Any = None,
                  inputs_pass_through: Any = None, get_frame_id: bool = False,
                  reuse_outputs: bool = False) -> Optional[List[np.ndarray]]:
        """Run the model: a list of float32 arrays, or None with the reason in `error`.

        inputs: arrays (1, H, W, 3), for most models uint8 RGB; or (1, 3, H, W) with
        data_format="nchw". With reuse_outputs, the arrays belong to the context, and its next
        inference overwrites them.
        """
        floats = self._floats
        if not self._run(inputs, data_format, inputs_pass_through, floats[1]):
            return None
        return list(floats[0]) if reuse_outputs else [buffer.copy() for buffer in floats[0]]

    def inference_raw(self, inputs: Any) -> Optional[List[Tuple[np.ndarray, float, int]]]:
        """As inference(), but outputs stay as they are stored: (array, scale, zero point) for each.

        value = (stored - zero point) * scale. Quantised outputs are int8; those of a float model
        are float16, and others float32, with 1.0 and 0. The arrays belong to the context, and its
        next inference overwrites them.
        """
        stored = self._stored
        if not self._run(inputs, None, None, stored[1]):
            return None
        return [(buffer, attr.scale, attr.zp) if buffer.dtype == np.int8 else (buffer, 1.0, 0)
                for buffer, attr in zip(stored[0], self._outputs)]

    def _run(self, inputs: Any, data_format: Any, pass_through: Any, outputs: Any) -> bool:
        with self._in_call() as free:
            if not free:
                self._fail("another thread is using this context; it serves one call at a time")
                return False
            self.error, self.run_failed = None, False
            library, handle = self._library, self._handle
            try:
                if handle is None:
                    raise _Failed("call init_runtime before inference")
                inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
                structs = self._input_structs(inputs, data_format, pass_through)
                self._check("rknn_inputs_set",
                            library.rknn_inputs_set(handle, len(structs), structs))
                code = library.rknn_run(handle, None)
                self.run_failed = code != 0  # rknn_outputs_get would return the previous values
                self._check("rknn_run", code)
                self._check("rknn_outputs_get",
                            library.rknn_outputs_get(handle, len(outputs), outputs, None))
                self._check("rknn_outputs_release",
                            library.rknn_outputs_release(handle, len(outputs), outputs))
                return True
            except _Failed as error:
                self._fail(str(error))
                return False

    def _input_structs(self, inputs: Sequence[np.ndarray], data_format: Any, pass_through: Any) \
            -> Any:
        """The Input structures for these arrays. Raises _Failed for a wrong shape or dtype."""
        if len(inputs) != len(self._inputs):
            raise _Failed(f"{self._path} takes {len(self._inputs)} inputs, not {len(inputs)}")
        formats = data_format or "nhwc"
        if isinstance(formats, str):
            formats = [formats] * len(inputs)
        structs = (Input * len(inputs))()
        # Kept as long as the library may read them.
        self._kept = inputs = [np.ascontiguousarray(each) for each in inputs]
        for index, (array, attr, form) in enumerate(zip(inputs, self._inputs, formats)):
            shape = array.shape
            if attr.fmt == NHWC and array.ndim == 4 and form == "nchw":
                shape = shape[:1] + shape[2:] + shape[1:2]
            if array.dtype.name not in KINDS or shape != attr.shape:
                raise _Failed(f"{self._path} takes an input of shape {attr.shape}, not "
                              f"{array.dtype} {array.shape}")
            raw = bool(pass_through and pass_through[index])
            structs[index] = Input(index, array.ctypes.data, array.nbytes, raw,
                                   KINDS[array.dtype.name], NCHW if form == "nchw" else NHWC)
        return structs

    def get_sdk_version(self) -> str:
        """The versions of the library and of the kernel's driver: "API: 2.3.2 ...\\nDRV: 0.9.8"."""
        return "API: {}\nDRV: {}".format(*self._versions())

    def _versions(self) -> Tuple[str, str]:
        """Those of the library and of the driver."""
        found = SdkVersion()
        self._library.rknn_query(self._handle, SDK_VERSION, byref(found), ctypes.sizeof(found))
        return (found.api_version.decode(errors="replace"),
                found.drv_version.decode(errors="replace"))

    def release(self) -> None:
        """Close the context, at once or when the call in progress ends. May be called again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._open.discard(self)
            self._closing.append(handle)
            with self._in_call():  # if another thread is in a call, it destroys the handle
                pass

    @contextlib.contextmanager
    def _in_call(self) -> Iterator[bool]:
        """Use the handle: True, or False if another thread uses it.

        Destroys released handles afterwards, because the library frees memory that a run uses.
        """
        if not self._using.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        finally:
            self._using.release()
            while self._closing and self._using.acquire(blocking=False):
                with contextlib.suppress(IndexError):
                    self._library.rknn_destroy(self._closing.pop())
                self._using.release()

    def _query(self, command: int, structure: ctypes.Structure) -> None:
        code = self._library.rknn_query(self._handle, command, byref(structure),
                                        ctypes.sizeof(structure))
        self._check(f"rknn_query({command})", code)

    @staticmethod
    def _check(call: str, code: int, reason: Optional[str] = None) -> None:
        if code != 0:
            default = ("an unknown code", "look at the library's own message above")
            name, usual = ERRORS.get(code, default)
            raise _Failed(f"{call} returned {code} ({name}): {reason or usual}")

    def _fail(self, reason: str) -> int:
        self.error = reason
        return -1
