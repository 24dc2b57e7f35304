"""RKNNLite's methods on the open driver: LiteRT with Mesa's Teflon delegate over the mainline kernel's rocket driver.

    from runtimes.teflon import RKNNLite      # instead of: from rknnlite.api import RKNNLite

load_rknn("models/x.rknn") opens models/x.tflite, which models/convert.py --to tflite makes. Where there is no
libteflon.so, or no device for it, LiteRT runs the model on the CPU, which is said once. Results and return codes are
the wheel's: what fails returns -1 (or None from `inference`) and raises nothing; the reason then stands in `error`.
The library is the one that TEFLON_LIB names, else the one that the loader finds, else Debian's.
"""
import ctypes
import os
import re
import sys
import threading
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

import rknnmodel
from runtimes import rocket
from runtimes.cpu import normalisation

PLACES = ("libteflon.so", "/usr/lib/teflon/libteflon.so")  # the latter is Debian's and Ubuntu's
DEVICE = "/dev/accel/accel0"


def find_tflite(path: Any) -> str:
    """The .tflite file that stands for the model at `path`: itself, the one beside an .rknn or .onnx (x.tflite for
    x.rknn and for x-rk3588.rknn), or the only one in a folder. Raises FileNotFoundError, with a sentence."""
    path = os.fspath(path)
    if os.path.isdir(path):
        models = sorted(name for name in os.listdir(path) if name.lower().endswith(".tflite"))
        if len(models) == 1:
            return os.path.join(path, models[0])
        raise FileNotFoundError(f"{path}: several .tflite stand in it ({', '.join(models)}), name one of them" if models
                                else f"{path}: holds no .tflite, which models/convert.py --to tflite makes of an .onnx")
    stem, extension = os.path.splitext(path)
    if extension.lower() == ".tflite":
        if os.path.isfile(path):
            return path
        raise FileNotFoundError(f"{path}: no such file")
    names = [stem + ".tflite", re.sub(r"-r[kv]\d+[a-z]*\d*$", "", stem) + ".tflite"]
    for name in names:
        if os.path.isfile(name):
            return name
    onnx = names[-1][:-len(".tflite")] + ".onnx"
    raise FileNotFoundError(f"{names[0]}: no such file; models/convert.py {onnx} --to tflite --calibration FOLDER "
                            f"makes it")


def as_onnx(array: np.ndarray, shape: Optional[Sequence[int]]) -> np.ndarray:
    """A view of an array in TensorFlow's layout, channels last, as ONNX has it, of this shape; of unknown shape (None)
    with the channels second where there are four dimensions or more. Raises ValueError where it cannot be."""
    moved = np.moveaxis(array, -1, 1) if array.ndim > 2 else array
    for view in (moved, array) if array.ndim > 3 else (array, moved):
        if shape is None or view.shape == tuple(shape):
            return view
    raise ValueError(f"its output of shape {array.shape} is none of {tuple(shape)}")


def stored(details: dict, mean: Sequence[float], std: Sequence[float], channels: int = 3) -> np.ndarray:
    """What a model's input stores for each byte of an image, by channel: (256, channels) of its dtype.

    details: the input's, from the interpreter; mean, std: of the network's input, in 0..255, a number for each channel.
    """
    values = (np.arange(256)[:, np.newaxis] - np.resize(mean, channels)) / np.resize(std, channels)
    return quantised(values, details)


def quantised(values: np.ndarray, details: dict) -> np.ndarray:
    """Numbers as a tensor stores them: of its dtype."""
    dtype, (scale, zero_point) = np.dtype(details["dtype"]), details["quantization"]
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values / (scale or 1.0) + zero_point), limits.min, limits.max).astype(dtype)


class RKNNLite:
    """One context: a LiteRT interpreter of one thread. A second thread in a call with it is refused, not let in."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xffff

    find_model = staticmethod(find_tflite)  # for the pool, which describes what will run
    _starting, _said = threading.Lock(), set()
    _driver = _refusal = None  # the delegate's library, "" where there is none that works, and why

    def __init__(self, verbose: bool = False, verbose_file: Optional[str] = None):
        self.error = None  # the reason of the last -1 or None, a sentence
        self._path = self._interpreter = None
        self._using = threading.Lock()

    def load_rknn(self, path: Any, key_path: Optional[str] = None) -> int:
        """Take the model at `path`, as find_tflite() finds it. Returns 0, or -1 where there is none."""
        try:
            self._path = find_tflite(path)
        except (OSError, TypeError) as error:
            return self._fail(str(error))
        return 0

    def init_runtime(self, target: Optional[str] = None, device_id: Optional[str] = None, async_mode: bool = False,
                     core_mask: int = NPU_CORE_AUTO) -> int:
        """Open the model; a `core_mask` changes nothing, for the driver spreads the work over the cores by itself.
        Returns 0, or -1 where ai-edge-litert is missing or cannot read the file."""
        if self._path is None:
            return self._fail("load_rknn comes before init_runtime")
        try:
            from ai_edge_litert import interpreter as litert
        except ImportError as error:
            missing = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
            return self._fail(f"ai-edge-litert, which runs .tflite models, {missing} (pip install ai-edge-litert, "
                              f"Python 3.9 or later)")
        with RKNNLite._starting:
            try:
                interpreter, sentence = self._open(litert)
                self._prepare(interpreter)
            except Exception as error:  # LiteRT raises ValueError, RuntimeError and others
                return self._fail(f"{self._path} is not a .tflite that can be run: {' '.join(str(error).split())}")
            if sentence not in RKNNLite._said:
                RKNNLite._said.add(sentence)
                print(sentence, file=sys.stderr)
        self._interpreter = interpreter
        return 0

    def _open(self, litert):
        """An interpreter, and the sentence that says where it runs."""
        if self._driver is None:
            try:
                RKNNLite._driver = _library()
            except OSError as error:
                RKNNLite._driver, RKNNLite._refusal = "", str(error)
        why, delegates = self._refusal, []
        if self._driver:
            why = _not_for_the_driver(self._path)
            delegates = [] if why else [litert.load_delegate(self._driver)]
        # One thread a context, for the pool runs several.
        options = {"experimental_delegates": delegates} if delegates else {}
        interpreter = litert.Interpreter(model_path=self._path, num_threads=1, **options)
        interpreter.allocate_tensors()
        if why:
            return interpreter, f"No NPU by the open driver ({why}): {self._path} runs on the CPU with LiteRT."
        return interpreter, f"{self._path} runs on the NPU as far as {self._driver} takes it, and else on the CPU."

    def _prepare(self, interpreter):
        model = rknnmodel.describe(self._path)
        mean, std = normalisation({key: str(value) for key, value in model.metadata.items()})
        inputs, self._details = interpreter.get_input_details(), interpreter.get_output_details()
        if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
            raise ValueError(f"it has {len(inputs)} inputs, and one image is what is read")
        self._input, sides = inputs[0], [int(side) for side in inputs[0]["shape"]]
        self._nchw = sides[1] in (1, 3, 4) and sides[3] not in (1, 3, 4)
        self._sides = (sides[0], *sides[2:], sides[1]) if self._nchw else tuple(sides)
        self._mean, self._std = (np.resize(np.float32(values), sides[1 if self._nchw else 3]) for values in (mean, std))
        table = stored(self._input, mean, std, self._sides[3])
        # Of a model in 0..1 each byte is stored as it is.
        same = table.dtype == np.uint8 and (table == np.arange(256, dtype=np.uint8)[:, np.newaxis]).all()
        self._table = None if same else table
        shapes = [shape for _, shape in model.outputs]
        self._shapes = shapes if len(shapes) == len(self._details) else [None] * len(self._details)
        self._raw = [np.empty(as_onnx(interpreter.get_tensor(each["index"]), shape).shape, each["dtype"])
                     for each, shape in zip(self._details, self._shapes)]
        self._scales = [(1.0, 0) if raw.dtype.kind == "f" else
                        (float(each["quantization"][0]) or 1.0, int(each["quantization"][1]))
                        for each, raw in zip(self._details, self._raw)]
        self._floats = [np.empty(raw.shape, np.float32) for raw in self._raw]

    def inference(self, inputs: Any, data_type=None, data_format: Any = None, inputs_pass_through=None,
                  get_frame_id: bool = False, reuse_outputs: bool = False) -> Optional[List[np.ndarray]]:
        """Run the model: a list of float32 arrays in the layout and order of the ONNX, or None with the reason in
        `error`.

        inputs: a list with one array (1, H, W, 3) RGB, or (1, 3, H, W) with data_format "nchw", in 0..255. With
        reuse_outputs the arrays are the context's own, which its next inference overwrites.
        """
        raw = self._run(inputs, data_format)
        if raw is None:
            return None
        for (array, scale, zero_point), buffer in zip(raw, self._floats):
            np.subtract(array, np.float32(zero_point), out=buffer, dtype=np.float32)
            np.multiply(buffer, np.float32(scale), out=buffer)
        return list(self._floats) if reuse_outputs else [buffer.copy() for buffer in self._floats]

    def inference_raw(self, inputs: Any) -> Optional[List[Tuple[np.ndarray, float, int]]]:
        """As inference(), without dequantising: (array, scale, zero point) for each output, the arrays the context's
        own, which its next inference overwrites. value = (stored - zero point) * scale."""
        return self._run(inputs, None)

    def _run(self, inputs, data_format):
        if not self._using.acquire(blocking=False):
            self._fail("another thread is in a call with this context: each context serves one at a time")
            return None
        try:
            self.error = None
            interpreter = self._interpreter  # release() may come in between
            if interpreter is None:
                raise ValueError("init_runtime comes before inference")
            interpreter.set_tensor(self._input["index"], self._fed(inputs, data_format))
            interpreter.invoke()
            for each, raw, shape in zip(self._details, self._raw, self._shapes):
                raw[...] = as_onnx(interpreter.tensor(each["index"])(), shape)
            return [(raw, *scale) for raw, scale in zip(self._raw, self._scales)]
        except Exception as error:  # of whatever was handed in: the wheel raises nothing
            self._fail(" ".join(str(error).split()) or type(error).__name__)
            return None
        finally:
            self._using.release()

    def _fed(self, inputs, data_format):
        """The input as the model stores it. Raises ValueError, with a sentence."""
        frames = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        frame = frames[0] if len(frames) == 1 else None
        if not isinstance(frame, np.ndarray) or frame.dtype.kind not in "uifb":
            raise ValueError(f"{self._path} takes a list with one array of numbers, not {str(inputs)[:60]}")
        form = data_format[0] if isinstance(data_format, (list, tuple)) and data_format else data_format
        if form == "nchw" and frame.ndim == 4:
            frame = frame.transpose(0, 2, 3, 1)
        if frame.shape != self._sides:
            raise ValueError(f"{self._path} takes an input of shape {self._sides}, not {frame.shape}")
        if frame.dtype != np.uint8:
            frame = quantised((frame - self._mean) / self._std, self._input)
        elif self._table is not None:
            frame = self._table[frame, np.arange(frame.shape[3])]
        return np.ascontiguousarray(frame.transpose(0, 3, 1, 2)) if self._nchw else frame

    def release(self) -> None:
        """Close the model. May be called again."""
        self._interpreter = None

    def _fail(self, reason):
        self.error = reason
        return -1


def _not_for_the_driver(path: str) -> str:
    """Why a model must not go to Mesa's driver; empty where it may. Raises for a damaged one."""
    plan = rocket.plan(path)
    again = "models/convert.py --to tflite makes one without"
    if plan.dangers:
        return f"{path} has sums at which Mesa's driver would crash; {again}"
    return "" if plan.unsigned else f"{path} has signed tensors, which Mesa's driver takes for unsigned; {again}"


def _library() -> str:
    """The delegate's library, which has found a device. Raises OSError, with what is missing."""
    given = os.environ.get("TEFLON_LIB")
    errors = []
    for place in [given] if given else PLACES:
        try:
            library = ctypes.CDLL(place)
            create, destroy = library.tflite_plugin_create_delegate, library.tflite_plugin_destroy_delegate
        except OSError as error:
            errors.append(str(error))
            continue
        except AttributeError:
            raise OSError(f"{place} is no delegate for LiteRT") from None
        # LiteRT's own load_delegate() is for what works: of what does not, its finalizer writes tracebacks.
        create.restype, destroy.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        delegate = create(None, None, 0, None)
        if delegate:
            destroy(delegate)
            return place
        lacks = (f"{DEVICE} is missing, which kernels from 6.18 on with the rocket driver have"
                 if not os.path.exists(DEVICE) else f"this user may not open {DEVICE}"
                 if not os.access(DEVICE, os.R_OK | os.W_OK) else f"{DEVICE} is not the rocket driver's")
        raise OSError(f"{place} finds no device: {lacks}")
    if not given and not any(map(os.path.exists, PLACES)):
        raise OSError("libteflon.so is not installed; for arm64 it is in Debian's package mesa-teflon-delegate")
    raise OSError(errors[-1])
