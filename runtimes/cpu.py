"""RKNNLite's methods on ONNX Runtime, for machines without a Rockchip NPU.

    from runtimes.cpu import RKNNLite      # instead of: from rknnlite.api import RKNNLite

load_rknn("models/x.rknn") opens models/x.onnx. Results and return codes are the wheel's: a call
that fails returns -1 (or None from `inference`), raises nothing, and leaves the reason in `error`.

The network gets (image - mean) / std, which a .rknn computes by itself. Mean and standard deviation
come from the ONNX file's metadata (models/convert.py writes them there); by default 0 and 255.
"""
from __future__ import annotations

import os
import re
import sys
import threading
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from vision.metadata import normalisation
from vision.model import onnx_beside
from vision.packages import pip_install

# The beginning of the line that is printed once; runtimes.choose() replaces it by a better reason.
why = "No Rockchip NPU found"

# The dtypes of frames that the wheel takes, and NumPy's names for ONNX's input types.
FRAMES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32",
          "bool")
DTYPES = {"float": "float32", "double": "float64", "uint64": "uint64",
          **{name: name for name in FRAMES}}


def find_onnx(path: Any) -> str:
    """The .onnx file that runs for the model at `path`. Raises FileNotFoundError with a message.

    path: an .onnx, or an .rknn, for which x.onnx runs (for x-rk3588.rknn also x.onnx).
    """
    path = os.fspath(path)
    stem, extension = os.path.splitext(path)
    if extension != ".rknn":
        if os.path.isfile(path):
            return path
        raise FileNotFoundError(f"{path}: no such file")
    name = onnx_beside(stem)
    if os.path.isfile(name):
        return name
    rknn = " (only an NPU can run the .rknn)" if os.path.isfile(path) else ""
    raise FileNotFoundError(f"{name}: no such file{rknn}")


class _Input:
    """One input of a model: checks frames and converts them to what the network takes."""

    def __init__(self, node: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        self.name: str = node.name
        self.shape: list = list(node.shape)  # an open dimension is a name or None
        kind = re.fullmatch(r"tensor\((\w+)\)", node.type)
        if not kind or kind.group(1) not in DTYPES:
            raise ValueError(f"its input '{node.name}' has the type {node.type}, which no NPU "
                             f"takes")
        self.dtype = np.dtype(DTYPES[kind.group(1)])
        if len(self.shape) > 1 and not isinstance(self.shape[0], int):
            self.shape[0] = 1  # the batch, as convert.py fixes it
        self.image = len(self.shape) == 4
        self.nhwc = self.image and self._channels_are_last()
        # Integers and vectors are fed unchanged: such a model normalises them itself.
        self.normalised = self.image and self.dtype.kind == "f"
        self._mean, self._scale = np.asarray(mean, np.float32), 1 / np.asarray(std, np.float32)
        self._buffer: Optional[np.ndarray] = None

    def _channels_are_last(self) -> bool:
        first, last = self.shape[1], self.shape[3]
        for channels in (3, 1, 4):
            if channels in (first, last):
                return first != channels
        return False

    def expected(self, nchw: bool) -> list:
        """The shape of a frame in the caller's layout, "any" for open dimensions."""
        shape = [size if isinstance(size, int) else "any" for size in self.shape]
        if self.image and nchw == self.nhwc:
            n, a, b, c = shape
            return [n, c, a, b] if nchw else [n, b, c, a]
        return shape

    def convert(self, frame: np.ndarray, nchw: bool) -> np.ndarray:
        """The network's input for a frame. Raises ValueError for a wrong shape or dtype."""
        self._check(frame, nchw)
        if self.image and nchw == self.nhwc:
            frame = frame.transpose(0, 2, 3, 1) if nchw else frame.transpose(0, 3, 1, 2)
        if self._buffer is None or self._buffer.shape != frame.shape:
            # Reused for every frame: page faults in new memory cost up to 3 of 4 ms at 640 x 640.
            self._buffer = np.empty(frame.shape, np.float32 if self.normalised else self.dtype)
        buffer = self._buffer
        if not self.normalised:
            np.copyto(buffer, frame, casting="unsafe")
            return buffer
        channels = frame.shape[3 if self.nhwc else 1]  # not always three
        mean, scale = (np.resize(values, channels if self.nhwc else (channels, 1, 1))
                       for values in (self._mean, self._scale))
        np.subtract(frame, mean, out=buffer, dtype=np.float32)
        np.multiply(buffer, scale, out=buffer)
        return buffer.astype(self.dtype, copy=False)

    def _check(self, frame: np.ndarray, nchw: bool) -> None:
        expected = self.expected(nchw)
        if frame.ndim != len(expected) or any(
                size not in ("any", given) for size, given in zip(expected, frame.shape)):
            comma = "," if len(expected) == 1 else ""
            raise ValueError(f"takes an input of shape ({', '.join(map(str, expected))}{comma}), "
                             f"not {frame.shape}")
        if frame.dtype.name not in FRAMES or not frame.dtype.isnative:
            raise ValueError(f"takes {', '.join(FRAMES)} as the NPU does, not {frame.dtype}")
        if frame.size == 0:
            raise ValueError(f"takes no empty input, {frame.shape}")


# What ONNX Runtime says of a model that it cannot open: a pattern, the reason, and what to do.
REASONS = (
    (r"ir.version|opset \d+ is under dev|opset.*unsupported",
     f"it is newer than ONNX Runtime {{}}: update that ({pip_install('-U', 'onnxruntime')}), or "
     "export the model with opset=17"),
    (r"external (data|initializer)|open file .* failed",
     "its weights are in a separate file, which must lie beside it, complete and under its "
     "original name: copy that file, too, or export the model into one file"),
    (r"not a registered function/op|no op registered|opset.import for domain",
     "it has operations that ONNX Runtime {} lacks: export it without them"),
)


def reason_of(error: Exception, version: str) -> str:
    """Why ONNX Runtime of this version cannot open a model, from its exception."""
    text = " ".join(str(error).split())
    for noise in (r"\[ONNXRuntimeError\] : \d+ : \w+ : ", r"Load model from .*? failed:",
                  r"/onnxruntime_src/\S+ .*\) "):  # a line in its own source code
        text = re.sub(noise, "", text)
    text = text.rstrip(".") if len(text) < 250 else text[:250] + "..."
    for pattern, reason in REASONS:
        if re.search(pattern, " ".join(str(error).split()), re.IGNORECASE):
            return f"{reason.format(version)} ({text})"
    return text


class RKNNLite:
    """One context: a model on one CPU thread."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xffff
    ON_CPU = cpu_only = True

    _announced = False
    _announcing = threading.Lock()

    def __init__(self, verbose: bool = False, verbose_file: Optional[str] = None) -> None:
        self.error: Optional[str] = None  # the reason of the last -1 or None
        self._path: Optional[str] = None
        self._session: Any = None

    def load_rknn(self, path: Any, key_path: Optional[str] = None) -> int:
        """Take the model at `path`, as find_onnx() finds it. Returns 0, or -1 if there is none."""
        try:
            self._path = find_onnx(path)
        except (OSError, TypeError, ValueError) as error:
            return self._fail(str(error))
        return 0

    def init_runtime(self, target: Optional[str] = None, device_id: Optional[str] = None,
                     async_mode: bool = False, core_mask: int = NPU_CORE_AUTO) -> int:
        """Open the model; `core_mask` has no effect. Returns 0, or -1 if that is not possible."""
        if self._path is None:
            return self._fail("call load_rknn before init_runtime")
        # From 1.32 on, ONNX Runtime reports its use to Microsoft, on Linux, too.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError:
            return self._fail(f"{why}, and onnxruntime, which runs models on the CPU, is not "
                              f"installed ({pip_install('onnxruntime')})")
        options = onnxruntime.SessionOptions()
        # One thread per context, because the pool runs several contexts: on 2 cores, 3 contexts
        # made 44 FPS with one thread each and 25 FPS with two.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(self._path, options,
                                                   providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exception types are not public
            reason = reason_of(error, onnxruntime.__version__)
            return self._fail(f"{self._path}: ONNX Runtime cannot open this model: {reason}")
        try:
            mean, std = normalisation(session.get_modelmeta().custom_metadata_map)
            self._inputs = [_Input(node, mean, std) for node in session.get_inputs()]
        except ValueError as error:
            return self._fail(f"{self._path}: {error}")
        self._session = session
        self._announce(onnxruntime.__version__)
        return 0

    def _announce(self, version: str) -> None:
        with RKNNLite._announcing:
            if not RKNNLite._announced:
                RKNNLite._announced = True
                print(f"{why}: {self._path} runs on the CPU with ONNX Runtime {version}.",
                      file=sys.stderr)

    def inference(self, inputs: Any, data_type: Any = None, data_format: Any = None,
                  inputs_pass_through: Any = None, get_frame_id: bool = False,
                  reuse_outputs: bool = False) -> Optional[List[np.ndarray]]:
        """Run the model on a list with one array for each input; a single array needs no list.

        Images are (1, H, W, 3) RGB, or (1, 3, H, W) with data_format="nchw", in 0..255, of any
        dtype in FRAMES; the network's own layout does not matter. Open dimensions take any size.
        data_format and data_type (the dtype's name): one str for all inputs, or a list with one for
        each. Returns a list of float32 arrays in the model's order, or None for what the wheel
        refuses, and also for a wrong image size, which the wheel accepts.
        """
        session = self._session  # another thread may call release() meanwhile
        if session is None:
            self._fail("call init_runtime before inference")
            return None
        try:
            frames, layouts = self._checked(inputs, data_type, data_format, inputs_pass_through)
            with np.errstate(all="ignore"):
                feed = {each.name: each.convert(frame, layout == "nchw")
                        for each, frame, layout in zip(self._inputs, frames, layouts)}
        except Exception as error:  # whatever the caller passed: the wheel raises nothing
            self._fail(f"{self._path} {error}")
            return None
        try:
            outputs = session.run(None, feed)
        except Exception as error:
            self._fail(f"{self._path} could not be run: {' '.join(str(error).split())}")
            return None
        if not all(isinstance(output, np.ndarray) and output.dtype.kind in "fiub"
                   for output in outputs):
            self._fail(f"{self._path} has outputs that are not arrays of numbers; an NPU has no "
                       "such outputs")
            return None
        return [output.astype(np.float32, copy=False) for output in outputs]

    def _checked(self, inputs: Any, data_type: Any, data_format: Any, pass_through: Any) \
            -> Tuple[List[np.ndarray], List[str]]:
        """The frames and the layout of each. Raises ValueError for what the wheel refuses."""
        frames = inputs if isinstance(inputs, list) else [inputs]
        for frame in frames:
            if not isinstance(frame, np.ndarray):
                raise ValueError(f"takes a list of arrays, [image], not {type(inputs).__name__} of "
                                 f"{type(frame).__name__}")
        if len(frames) != len(self._inputs):
            names = ", ".join(each.name for each in self._inputs)
            raise ValueError(f"has {len(self._inputs)} inputs ({names}), not {len(frames)}")
        dtypes = [frame.dtype.name for frame in frames]
        for given, dtype in zip(_for_each("data_type", data_type, FRAMES, dtypes), dtypes):
            if given != dtype:
                raise ValueError(f"got an input of {dtype}, but data_type says {given}")
        # An input that passes through has the NPU's internal layout.
        _for_each("inputs_pass_through", pass_through, (0,), [0] * len(frames))
        layouts = _for_each("data_format", data_format, ("nhwc", "nchw"), ["nhwc"] * len(frames))
        return [np.asarray(frame) for frame in frames], layouts

    def release(self) -> None:
        """Close the model. May be called again."""
        self._session = None

    def _fail(self, reason: str) -> int:
        self.error = reason
        return -1


def _for_each(option: str, given: Any, allowed: Sequence, default: list) -> list:
    """An option of `inference` as a list with one entry per input. Raises ValueError."""
    if given is None:
        return default
    values = [given] * len(default) if isinstance(given, str) else given
    if not isinstance(values, list) or len(values) != len(default) or not all(
            isinstance(value, (str, int)) and value in allowed for value in values):
        raise ValueError(f"takes {option} {' or '.join(map(repr, allowed))} for each of its "
                         f"{len(default)} inputs, not {given!r}")
    return values
