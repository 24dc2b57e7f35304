"""The C interface of the vendor's librknnrt.so for ctypes: structures, constants, error codes.

Names and values are those of the public rknn_api.h. load() loads the library.
"""
from __future__ import annotations

import ctypes
import functools
from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_float,
    c_int8,
    c_int32,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

FEWER = "use fewer contexts (main.py's --threads, or TPEs)"
ERRORS = {  # code: its name, and what to do
    -1: ("RKNN_ERR_FAIL", "the NPU or its driver failed: look at dmesg"),
    -2: ("RKNN_ERR_TIMEOUT", "the NPU does not answer: look at dmesg, switch the board off and on"),
    -3: ("RKNN_ERR_DEVICE_UNAVAILABLE", "the kernel's rknpu driver is missing or too old"),
    -4: ("RKNN_ERR_MALLOC_FAIL", f"the NPU's memory is used up: {FEWER}"),
    -5: ("RKNN_ERR_PARAM_INVALID", "the model does not take this argument"),
    -6: ("RKNN_ERR_MODEL_INVALID", "convert the model again, or update librknnrt.so; or the NPU's "
                                   "memory is used up"),
    -7: ("RKNN_ERR_CTX_INVALID", "the context is not open"),
    -8: ("RKNN_ERR_INPUT_INVALID", "the model does not take this input"),
    -9: ("RKNN_ERR_OUTPUT_INVALID", "the outputs do not fit"),
    -10: ("RKNN_ERR_DEVICE_UNMATCH", "driver and library do not fit: update librknnrt.so or the "
                                     "kernel"),
    -13: ("RKNN_ERR_TARGET_PLATFORM_UNMATCH", "the model is made for another SoC: convert it for "
                                              "this one"),
}
# rknn_tensor_type by NumPy's names
KINDS = {"float32": 0, "float16": 1, "int8": 2, "uint8": 3, "int16": 4, "uint16": 5, "int32": 6,
         "uint32": 7, "int64": 8, "bool": 9}
FLOAT16, INT8, NCHW, NHWC, AFFINE = 1, 2, 0, 1, 2
IN_OUT_NUM, INPUT_ATTR, OUTPUT_ATTR, SDK_VERSION = 0, 1, 2, 5  # commands of rknn_query


class InOutNum(Structure):
    _fields_ = [("n_input", c_uint32), ("n_output", c_uint32)]


class TensorAttr(Structure):
    _fields_ = [("index", c_uint32), ("n_dims", c_uint32), ("dims", c_uint32 * 16),
                ("name", c_char * 256), ("n_elems", c_uint32), ("size", c_uint32), ("fmt", c_int32),
                ("type", c_int32), ("qnt_type", c_int32), ("fl", c_int8), ("zp", c_int32),
                ("scale", c_float), ("w_stride", c_uint32), ("size_with_stride", c_uint32),
                ("pass_through", c_uint8), ("h_stride", c_uint32)]

    @property
    def shape(self) -> tuple:
        return tuple(self.dims[:self.n_dims])


class SdkVersion(Structure):
    _fields_ = [("api_version", c_char * 256), ("drv_version", c_char * 256)]


class Input(Structure):
    _fields_ = [("index", c_uint32), ("buf", c_void_p), ("size", c_uint32),
                ("pass_through", c_uint8), ("type", c_int32), ("fmt", c_int32)]


class Output(Structure):
    _fields_ = [("want_float", c_uint8), ("is_prealloc", c_uint8), ("index", c_uint32),
                ("buf", c_void_p), ("size", c_uint32)]


ARGUMENTS: dict = {
    "rknn_init": [POINTER(c_uint64), c_void_p, c_uint32, c_uint32, c_void_p],
    "rknn_destroy": [c_uint64],
    "rknn_dup_context": [POINTER(c_uint64), POINTER(c_uint64)],
    "rknn_set_core_mask": [c_uint64, c_int32],
    "rknn_query": [c_uint64, c_int32, c_void_p, c_uint32],
    "rknn_run": [c_uint64, c_void_p],
    "rknn_inputs_set": [c_uint64, c_uint32, POINTER(Input)],
    "rknn_outputs_get": [c_uint64, c_uint32, POINTER(Output), c_void_p],
    "rknn_outputs_release": [c_uint64, c_uint32, POINTER(Output)],
    "rknn_create_mem": [c_uint64, c_uint32],
    "rknn_destroy_mem": [c_uint64, c_void_p],
}


@functools.lru_cache(maxsize=None)
def load(path: str | None) -> Any:
    """The library at `path`; None: wherever the loader finds it, or in /usr/lib.

    Raises OSError if there is none.
    """
    errors = []
    for name in [path] if path else ["librknnrt.so", "/usr/lib/librknnrt.so"]:
        try:
            library = ctypes.CDLL(name)  # a CDLL releases the GIL during every call
        except OSError as error:
            errors.append(str(error))
            continue
        for function, arguments in ARGUMENTS.items():
            if hasattr(library, function):  # older libraries lack some
                getattr(library, function).argtypes = arguments
                returns = c_void_p if function == "rknn_create_mem" else c_int32
                getattr(library, function).restype = returns
        return library
    raise OSError("; ".join(errors))
