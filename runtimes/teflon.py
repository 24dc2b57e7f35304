"""RKNNLite's methods on the open driver: LiteRT with Mesa's Teflon delegate, over the mainline
kernel's rocket driver.

    from runtimes.teflon import RKNNLite      # instead of: from rknnlite.api import RKNNLite

load_rknn("models/x.rknn") opens models/x.tflite, which models/convert.py --to tflite makes. Without
libteflon.so, or without its device, LiteRT runs the model on the CPU, and a line on stderr says so.
Results and return codes are the wheel's: a call that fails returns -1 (or None from `inference`),
raises nothing, and leaves the reason in `error`. The library is the one that TEFLON_LIB names, else
the one the loader finds, else Debian's.
"""
from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any, List, Optional, Sequence, Set, Tuple

import numpy as np

from runtimes import ACCEL, rocket
from vision.metadata import normalisation
from vision.model import describe, without_soc
from vision.packages import pip_install

LIBRARIES = ("libteflon.so", "/usr/lib/teflon/libteflon.so")  # the latter in Debian and Ubuntu


def find_tflite(path: Any) -> str:
    """The .tflite file that runs for the model at `path`. Raises FileNotFoundError with a message.

    path: a .tflite; an .rknn or .onnx, for which x.tflite runs (for x-rk3588.rknn also x.tflite);
    or a folder with one .tflite.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        models = sorted(name for name in os.listdir(path) if name.lower().endswith(".tflite"))
        if len(models) == 1:
            return os.path.join(path, models[0])
        if models:
            raise FileNotFoundError(f"{path}: contains several models ({', '.join(models)}): name "
                                    f"one of them")
        raise FileNotFoundError(f"{path}: contains no .tflite. Make one of an .onnx with "
                                f"models/convert.py --to tflite")
    stem, extension = os.path.splitext(path)
    if extension.lower() == ".tflite":
        if os.path.isfile(path):
            return path
        raise FileNotFoundError(f"{path}: no such file")
    names = [stem + ".tflite", without_soc(stem) + ".tflite"]
    for name in names:
        if os.path.isfile(name):
            return name
    raise FileNotFoundError(f"{names[0]}: no such file. Make it with models/convert.py "
                            f"{without_soc(stem)}.onnx --to tflite --calibration FOLDER")


def as_onnx(array: np.ndarray, shape: Optional[Sequence[int]]) -> np.ndarray:
    """A view of an array in TensorFlow's layout, channels last, in ONNX's layout and this shape.

    shape None: unknown; the channels then come second if there are four dimensions or more. Raises
    ValueError if the shape does not fit.
    """
    moved = np.moveaxis(array, -1, 1) if array.ndim > 2 else array
    for view in (moved, array) if array.ndim > 3 else (array, moved):
        if shape is None or view.shape == tuple(shape):
            return view
    raise ValueError(f"its output of shape {array.shape} does not fit {shape}")


def input_table(details: dict, mean: Sequence[float], std: Sequence[float], channels: int = 3) \
        -> np.ndarray:
    """What a model's input stores for each byte of an image: (256, channels) of its dtype.

    details: of the input, from the interpreter; mean, std: of the network's input, in 0..255, a
    number for each channel.
    """
    values = (np.arange(256)[:, np.newaxis] - np.resize(mean, channels)) / np.resize(std, channels)
    return quantised(values, details)


def quantised(values: np.ndarray, details: dict) -> np.ndarray:
    """Numbers as a tensor stores them, in its dtype."""
    dtype, (scale, zero_point) = np.dtype(details["dtype"]), details["quantization"]
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    stored = np.rint(values / (scale or 1.0) + zero_point)
    return np.clip(stored, limits.min, limits.max).astype(dtype)


class RKNNLite:
    """One context: a LiteRT interpreter. It refuses a second thread while one is in a call."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xffff
    ON_CPU = True  # LiteRT runs on the CPU what the driver does not take

    find_model = staticmethod(find_tflite)
    _starting = threading.Lock()
    _announced: Set[str] = set()
    _driver: Optional[str] = None   # path of the delegate's library, "" if none works
    _no_driver = ""                 # the reason if none works

    def __init__(self, verbose: bool = False, verbose_file: Optional[str] = None) -> None:
        self.error: Optional[str] = None  # the reason of the last -1 or None
        self._path: Optional[str] = None
        self._interpreter: Any = None
        self.cpu_only = False  # set by init_runtime()
        self._using = threading.Lock()

    def load_rknn(self, path: Any, key_path: Optional[str] = None) -> int:
        """Take the model at `path`, as find_tflite() finds it. Returns 0, or -1."""
        try:
            self._path = find_tflite(path)
        except (OSError, TypeError) as error:
            return self._fail(str(error))
        return 0

    def init_runtime(self, target: Optional[str] = None, device_id: Optional[str] = None,
                     async_mode: bool = False, core_mask: int = NPU_CORE_AUTO) -> int:
        """Open the model. `core_mask` has no effect: the driver spreads the work over the cores.

        Returns 0, or -1 if ai-edge-litert is missing or cannot read the file.
        """
        if self._path is None:
            return self._fail("call load_rknn before init_runtime")
        try:
            from ai_edge_litert import interpreter as litert
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError)
            what = "is not installed" if missing else f"cannot be imported: {error}"
            return self._fail(f"ai-edge-litert, which runs .tflite models (Python 3.9 or later), "
                              f"{what} ({pip_install('ai-edge-litert')})")
        with RKNNLite._starting:
            try:
                interpreter, sentence = self._open(litert, self._path)
                self._prepare(interpreter, self._path)
            except Exception as error:  # LiteRT raises ValueError, RuntimeError and others
                reason = " ".join(str(error).split())
                return self._fail(f"{self._path}: LiteRT cannot open this model: {reason}")
            if sentence not in RKNNLite._announced:
                RKNNLite._announced.add(sentence)
                print(sentence, file=sys.stderr)
        self._interpreter = interpreter
        return 0

    def _open(self, litert: Any, path: str) -> Tuple[Any, str]:
        """An interpreter, and the sentence that says where it runs."""
        if RKNNLite._driver is None:
            try:
                RKNNLite._driver = _library()
            except OSError as error:
                RKNNLite._driver, RKNNLite._no_driver = "", str(error)
        driver, reason = RKNNLite._driver, RKNNLite._no_driver
        options = {}
        if driver:
            reason = _not_for_the_driver(path)
            if not reason:
                options = {"experimental_delegates": [litert.load_delegate(driver)]}
        self.cpu_only = not options
        # One thread per context, because the pool runs several contexts.
        interpreter = litert.Interpreter(model_path=path, num_threads=1, **options)
        interpreter.allocate_tensors()
        if reason:
            return interpreter, (f"No NPU by the open driver ({reason}): {path} runs on the CPU "
                                 f"with LiteRT.")
        return interpreter, (f"{path} runs on the NPU as far as {driver} supports it, the rest on "
                             f"the CPU.")

    def _prepare(self, interpreter: Any, path: str) -> None:
        model = describe(path)
        mean, std = normalisation({key: str(value) for key, value in model.metadata.items()})
        inputs, self._details = interpreter.get_input_details(), interpreter.get_output_details()
        if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
            raise ValueError(f"it has {len(inputs)} inputs, not one image")
        self._input, shape = inputs[0], [int(size) for size in inputs[0]["shape"]]
        self._nchw = shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4)
        self._shape = (shape[0], *shape[2:], shape[1]) if self._nchw else tuple(shape)
        channels = self._shape[3]
        self._mean, self._std = (np.resize(np.asarray(values, np.float32), channels)
                                 for values in (mean, std))
        table = input_table(self._input, mean, std, channels)
        # A model for images in 0..1 stores each byte unchanged.
        bytes_ = np.arange(256, dtype=np.uint8)[:, np.newaxis]
        same = table.dtype == np.uint8 and bool((table == bytes_).all())
        self._table = None if same else table
        shapes: List[Any] = [shape for _, shape in model.outputs]
        if len(shapes) != len(self._details):
            shapes = [None] * len(self._details)
        self._shapes = shapes
        self._raw = [np.empty(as_onnx(interpreter.get_tensor(each["index"]), shape).shape,
                              each["dtype"]) for each, shape in zip(self._details, shapes)]
        self._scales = [(1.0, 0) if raw.dtype.kind == "f" else
                        (float(each["quantization"][0]) or 1.0, int(each["quantization"][1]))
                        for each, raw in zip(self._details, self._raw)]
        self._floats = [np.empty(raw.shape, np.float32) for raw in self._raw]

    def inference(self, inputs: Any, data_type: Any = None, data_format: Any = None,
                  inputs_pass_through: Any = None, get_frame_id: bool = False,
                  reuse_outputs: bool = False) -> Optional[List[np.ndarray]]:
        """Run the model: a list of float32 arrays in the layout and order of the ONNX, or None with
        the reason in `error`.

        inputs: a list with one array (1, H, W, 3) RGB, or (1, 3, H, W) with data_format="nchw", in
        0..255. With reuse_outputs, the arrays belong to the context, and its next inference
        overwrites them.
        """
        outputs = self._run(inputs, data_format)
        if outputs is None:
            return None
        for (array, scale, zero_point), buffer in zip(outputs, self._floats):
            np.subtract(array, np.float32(zero_point), out=buffer, dtype=np.float32)
            np.multiply(buffer, np.float32(scale), out=buffer)
        return list(self._floats) if reuse_outputs else [buffer.copy() for buffer in self._floats]

    def inference_raw(self, inputs: Any) -> Optional[List[Tuple[np.ndarray, float, int]]]:
        """As inference(), but outputs stay as they are stored: (array, scale, zero point) for each.

        value = (stored - zero point) * scale. The arrays belong to the context, and its next
        inference overwrites them.
        """
        return self._run(inputs, None)

    def _run(self, inputs: Any, data_format: Any) -> Optional[List[Tuple[np.ndarray, float, int]]]:
        if not self._using.acquire(blocking=False):
            self._fail("another thread is using this context; it serves one call at a time")
            return None
        try:
            self.error = None
            interpreter = self._interpreter  # another thread may call release() meanwhile
            if interpreter is None:
                raise ValueError("call init_runtime before inference")
            interpreter.set_tensor(self._input["index"], self._converted(inputs, data_format))
            interpreter.invoke()
            for each, raw, shape in zip(self._details, self._raw, self._shapes):
                raw[...] = as_onnx(interpreter.tensor(each["index"])(), shape)
            return [(raw, *scale) for raw, scale in zip(self._raw, self._scales)]
        except Exception as error:  # whatever the caller passed: the wheel raises nothing
            self._fail(" ".join(str(error).split()) or type(error).__name__)
            return None
        finally:
            self._using.release()

    def _converted(self, inputs: Any, data_format: Any) -> np.ndarray:
        """The input as the model stores it. Raises ValueError for a wrong shape or dtype."""
        frames = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        frame = frames[0] if len(frames) == 1 else None
        if not isinstance(frame, np.ndarray) or frame.dtype.kind not in "uifb":
            raise ValueError(f"{self._path} takes a list with one array of numbers, not "
                             f"{str(inputs)[:60]}")
        form = data_format[0] if isinstance(data_format, (list, tuple)) and data_format \
            else data_format
        if form == "nchw" and frame.ndim == 4:
            frame = frame.transpose(0, 2, 3, 1)
        if frame.shape != self._shape:
            raise ValueError(f"{self._path} takes an input of shape {self._shape}, not "
                             f"{frame.shape}")
        if frame.dtype != np.uint8:
            frame = quantised((frame - self._mean) / self._std, self._input)
        elif self._table is not None:
            frame = self._table[frame, np.arange(frame.shape[3])]
        return np.ascontiguousarray(frame.transpose(0, 3, 1, 2)) if self._nchw else frame

    def release(self) -> None:
        """Close the model. May be called again."""
        self._interpreter = None

    def _fail(self, reason: str) -> int:
        self.error = reason
        return -1


def _not_for_the_driver(path: str) -> str:
    """Why a model must not go to Mesa's driver; "" if it may. Raises for a damaged file."""
    plan = rocket.plan(path)
    convert = "models/convert.py --to tflite makes one without"
    if plan.dangers:
        return f"{path} has ADD operations on which Mesa's driver would crash; {convert}"
    if not plan.unsigned:
        return f"{path} has signed tensors, which Mesa's driver reads as unsigned; {convert}"
    return ""


def _library() -> str:
    """The path of the delegate's library, which has found a device. Raises OSError with what is
    missing."""
    given = os.environ.get("TEFLON_LIB")
    errors = []
    for path in [given] if given else LIBRARIES:
        try:
            library = ctypes.CDLL(path)
            create = library.tflite_plugin_create_delegate
            destroy = library.tflite_plugin_destroy_delegate
        except OSError as error:
            errors.append(str(error))
            continue
        except AttributeError:
            raise OSError(f"{path} is not a delegate for LiteRT") from None
        # Tried before LiteRT's load_delegate(), whose finalizer prints tracebacks after a failure.
        create.restype, destroy.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        delegate = create(None, None, 0, None)
        if delegate:
            destroy(delegate)
            return path
        raise OSError(f"{path} finds no device: {_device_problem()}")
    if not given and not any(map(os.path.exists, LIBRARIES)):
        raise OSError("libteflon.so is not installed; for arm64 it is in Debian's package "
                      "mesa-teflon-delegate")
    raise OSError(errors[-1])


def _device_problem() -> str:
    if not os.path.exists(ACCEL):
        return f"{ACCEL} is missing: it needs Linux 6.18 or later with the rocket driver"
    if not os.access(ACCEL, os.R_OK | os.W_OK):
        return f"this user has no permission to open {ACCEL}"
    return f"{ACCEL} does not belong to the rocket driver"
