"""RKNNLite's methods on ONNX Runtime, for machines without a Rockchip NPU.

    from runtimes.cpu import RKNNLite      # instead of: from rknnlite.api import RKNNLite

load_rknn("models/x.rknn") opens models/x.onnx. Results and return codes are the wheel's: what fails returns -1 (or None
from `inference`) and raises nothing; the reason then stands in `error`.

The network's input is (image - mean) / std, as its .rknn has it built in. Mean and standard deviation stand in the ONNX
file's metadata (models/convert.py writes them there); without any they are 0 and 255.
"""
import math
import os
import re
import sys
import threading
from typing import List, Optional, Tuple

import numpy as np

from rknnmodel import onnx_beside, without_soc

why = "No Rockchip NPU found"  # the beginning of what is said once, on stderr

# What the wheel takes as a frame's dtype, and what a model may want: ONNX's word for it, NumPy's.
FRAMES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "bool")
KINDS = {"float": "float32", "double": "float64", "uint64": "uint64", **{name: name for name in FRAMES}}


def normalisation(metadata: dict) -> List[List[float]]:
    """Mean and standard deviation of a model's input from its metadata's "mean" and "std".

    metadata: dict of str. Returns two lists of three floats, for R, G and B in 0..255; 0 and 255 where the metadata
    says nothing. Raises ValueError, with a sentence, for anything but three numbers.
    """
    found = []
    for name, default, least in (("mean", "0 0 0", -math.inf), ("std", "255 255 255", 1)):
        text = metadata.get(name, default)
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            values = []
        # A std below 1 is one for images in 0..1: torchvision's 0.229 0.224 0.225 is 58.395 57.12 57.375 here.
        if len(values) != 3 or not all(map(math.isfinite, values)) or min(values) < least:
            number = "numbers of at least 1" if name == "std" else "numbers"
            raise ValueError(f"its {name} is '{text}', not three {number} for R, G and B in 0..255")
        found.append(values)
    return found


def find_onnx(path) -> str:
    """The .onnx file that stands for the model at `path`: itself, the one beside an .rknn (x.onnx for x.rknn and for
    x-rk3588.rknn), or the one in a folder (Ultralytics' x_rknn_model/). Raises FileNotFoundError, with a sentence."""
    path = os.fspath(path)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if os.path.isdir(path):
        return _in_folder(path)
    stem, extension = os.path.splitext(path)
    if extension != ".rknn":
        if os.path.isfile(path):
            return path
        raise FileNotFoundError(f"{path}: no such file")
    name = onnx_beside(stem)
    if os.path.isfile(name):
        return name
    there = " (the .rknn is there, but only an NPU can run it)" if os.path.isfile(path) else ""
    raise FileNotFoundError(f"{name}: no such file{there}")


def _in_folder(folder):
    files = sorted(os.listdir(folder))
    models = [name for name in files if name.endswith(".onnx")]
    named = {without_soc(name[:-5]) + ".onnx" for name in files if name.endswith(".rknn")}
    chosen = [name for name in models if name in named] or models
    if len(chosen) == 1:
        return os.path.join(folder, chosen[0])
    if models:
        raise FileNotFoundError(f"{folder}: several models stand in it ({', '.join(models)}), name one of them")
    if not named:
        raise FileNotFoundError(f"{folder}: a folder without a model, neither .rknn nor .onnx")
    beside = re.sub(r"_rknn_model$", "", os.path.normpath(folder)) + ".onnx"
    here = f"{beside}, which stands beside it" if os.path.isfile(beside) else "an export with format=onnx"
    raise FileNotFoundError(f"{folder}: only a board with an NPU runs the .rknn in it; here on the CPU runs {here}")


class _Input:
    """One of a model's inputs, and how a frame becomes what the network gets."""

    def __init__(self, node, mean, std):
        self.name, self.sides = node.name, list(node.shape)  # a side is a number, or open: a name or None
        kind = re.fullmatch(r"tensor\((\w+)\)", node.type)
        if not kind or kind.group(1) not in KINDS:
            raise ValueError(f"its input '{node.name}' is of type {node.type}, which no NPU takes")
        self.dtype = np.dtype(KINDS[kind.group(1)])
        if len(self.sides) > 1 and not isinstance(self.sides[0], int):
            self.sides[0] = 1  # the batch, as convert.py fixes it
        self.image = len(self.sides) == 4
        self.nhwc = self.image and self._channels_are_last()
        # Integers and vectors go in as they are: what makes numbers of them stands inside such a model.
        self.normalised = self.image and self.dtype.kind == "f"
        self._mean, self._scale = np.float32(mean), 1 / np.float32(std)
        self._fed = None

    def _channels_are_last(self):
        first, last = self.sides[1], self.sides[3]
        for channels in (3, 1, 4):
            if channels in (first, last):
                return first != channels
        return False

    def wanted(self, nchw):
        """The sides of a frame in the caller's layout, "any" where the model leaves one open."""
        sides = ["any" if not isinstance(side, int) else side for side in self.sides]
        if self.image and nchw == self.nhwc:
            n, a, b, c = sides
            sides = [n, c, a, b] if nchw else [n, b, c, a]
        return sides

    def take(self, frame, nchw):
        """What the network gets for a frame, an ndarray. Raises ValueError, with a sentence, for one that it does not
        take."""
        wanted = self.wanted(nchw)
        if frame.ndim != len(wanted) or any(side not in ("any", given) for side, given in zip(wanted, frame.shape)):
            shape = f"({', '.join(map(str, wanted))}{',' if len(wanted) == 1 else ''})"
            raise ValueError(f"takes an input of shape {shape}, not {frame.shape}")
        if frame.dtype.name not in FRAMES or not frame.dtype.isnative:
            raise ValueError(f"takes an input of {', '.join(FRAMES)}, as the NPU does, not of {frame.dtype}")
        if frame.size == 0:
            raise ValueError(f"takes no empty input, {frame.shape}")
        if self.image and nchw == self.nhwc:
            frame = frame.transpose(0, 2, 3, 1) if nchw else frame.transpose(0, 3, 1, 2)
        if self._fed is None or self._fed.shape != frame.shape:
            # Kept from frame to frame: a new one each time costs its page faults, up to 3 of 4 ms at 640 x 640.
            self._fed = np.empty(frame.shape, np.float32 if self.normalised else self.dtype)
        if not self.normalised:
            np.copyto(self._fed, frame, casting="unsafe")
            return self._fed
        channels = frame.shape[3 if self.nhwc else 1]  # not all models have three
        mean, scale = (np.resize(values, channels if self.nhwc else (channels, 1, 1))
                       for values in (self._mean, self._scale))
        np.subtract(frame, mean, out=self._fed, dtype=np.float32)
        np.multiply(self._fed, scale, out=self._fed)
        return self._fed.astype(self.dtype, copy=False)


# What ONNX Runtime says of a model that it does not open, why that is, and the way out.
WAYS_OUT = (
    (r"ir.version|opset \d+ is under dev|opset.*unsupported", "it is newer than ONNX Runtime {}: pip install -U "
     "onnxruntime, or export it again with opset=17"),
    (r"external (data|initializer)|open file .* failed", "its weights stand in a file of their own, which has to lie "
     "whole and under its old name beside it: copy that, too, or export it again into one file"),
    (r"not a registered function/op|no op registered|opset.import for domain", "it has operations that ONNX "
     "Runtime {} lacks: export it again without them"),
)


def reason_of(error: Exception, version: str) -> str:
    """Why ONNX Runtime, of this version, raised an exception as it opened a model: the end of a sentence."""
    said = " ".join(str(error).split())
    for noise in (r"\[ONNXRuntimeError\] : \d+ : \w+ : ", r"Load model from .*? failed:",
                  r"/onnxruntime_src/\S+ .*\) "):  # a place in its sources
        said = re.sub(noise, "", said)
    way = next((way for sign, way in WAYS_OUT if re.search(sign, said, re.IGNORECASE)), None)
    said = said.rstrip(".") if len(said) < 250 else said[:250] + "..."
    return f", for {way.format(version)} ({said})" if way else f": {said}"


class RKNNLite:
    """One context: a model on one CPU thread."""

    NPU_CORE_AUTO = 0
    NPU_CORE_0 = 1
    NPU_CORE_1 = 2
    NPU_CORE_2 = 4
    NPU_CORE_0_1 = 3
    NPU_CORE_0_1_2 = 7
    NPU_CORE_ALL = 0xffff
    ON_CPU = True  # for rknnpool.py: an inference that takes long does not hang

    _said = False
    _saying = threading.Lock()

    def __init__(self, verbose=False, verbose_file=None):
        self.error = None  # the reason of the last -1 or None, a sentence
        self._path = self._session = None

    def load_rknn(self, path, key_path=None) -> int:
        """Take the model at `path`, as find_onnx() finds it. Returns 0, or -1 where there is none."""
        try:
            self._path = find_onnx(path)
        except (OSError, TypeError, ValueError) as error:
            return self._fail(str(error))
        return 0

    def init_runtime(self, target=None, device_id=None, async_mode=False, core_mask=NPU_CORE_AUTO) -> int:
        """Open the model; a `core_mask` changes nothing. Returns 0, or -1 where ONNX Runtime is missing or cannot read
        the file."""
        if self._path is None:
            return self._fail("load_rknn comes before init_runtime")
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.32 on it reports to Microsoft from Linux, too
        try:
            import onnxruntime
        except ImportError:
            return self._fail(f"{why}, and onnxruntime, which runs models on the CPU, is not installed "
                              f"(pip install onnxruntime)")
        options = onnxruntime.SessionOptions()
        # One thread a context, for the pool runs several: on 2 cores 3 contexts of one thread gave 44 frames a second,
        # of two 25.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exception types are not public
            return self._fail(f"{self._path} is not an ONNX model that can be run"
                              f"{reason_of(error, onnxruntime.__version__)}")
        try:
            mean, std = normalisation(session.get_modelmeta().custom_metadata_map)
            self._inputs = [_Input(node, mean, std) for node in session.get_inputs()]
        except ValueError as error:
            return self._fail(f"{self._path}: {error}")
        self._session = session
        with RKNNLite._saying:
            if not RKNNLite._said:
                RKNNLite._said = True
                print(f"{why}: {self._path} runs on the CPU with ONNX Runtime {onnxruntime.__version__}.",
                      file=sys.stderr)
        return 0

    def inference(self, inputs, data_type=None, data_format=None, inputs_pass_through=None, get_frame_id=False,
                  reuse_outputs=False) -> Optional[List[np.ndarray]]:
        """Run the model on a list with an array for each of its inputs; a single one may come without the list.

        Images are (1, H, W, 3) RGB, or (1, 3, H, W) with data_format "nchw", whichever layout the network has inside,
        in 0..255 of any dtype in FRAMES; of open sides any is taken. data_format and data_type, the name of the dtype
        that is given: a str for all inputs, or a list with one for each.
        The network is fed as its .rknn would be: with (image - mean) / std. Returns a list of float32 arrays in the
        model's order, or None for what the wheel does not take, and for an image of another size, of which the wheel
        would run the beginning.
        """
        session = self._session  # release() may come in between
        if session is None:
            self._fail("init_runtime comes before inference")
            return None
        try:
            frames, layouts = self._checked(inputs, data_type, data_format, inputs_pass_through)
            with np.errstate(all="ignore"):
                fed = {taker.name: taker.take(frame, layout == "nchw")
                       for taker, frame, layout in zip(self._inputs, frames, layouts)}
        except Exception as error:  # of whatever was handed in: the wheel raises nothing
            self._fail(f"{self._path} {error}")
            return None
        try:
            outputs = session.run(None, fed)
        except Exception as error:
            self._fail(f"{self._path} could not be run: {' '.join(str(error).split())}")
            return None
        if not all(isinstance(output, np.ndarray) and output.dtype.kind in "fiub" for output in outputs):
            self._fail(f"{self._path} gives outputs that are no arrays of numbers, which no NPU does")
            return None
        return [output.astype(np.float32, copy=False) for output in outputs]

    def _checked(self, inputs, data_type, data_format, pass_through) -> Tuple[List[np.ndarray], List[str]]:
        """The frames and each one's layout. Raises ValueError, with a sentence, for what the wheel refuses, too."""
        frames = inputs if isinstance(inputs, list) else [inputs]
        for frame in frames:
            if not isinstance(frame, np.ndarray):
                raise ValueError(f"takes a list of arrays, [image], not {type(inputs).__name__} of "
                                 f"{type(frame).__name__}")
        if len(frames) != len(self._inputs):
            names = ", ".join(taker.name for taker in self._inputs)
            raise ValueError(f"has {len(self._inputs)} inputs ({names}), and {len(frames)} were given")
        dtypes = [frame.dtype.name for frame in frames]
        for told, dtype in zip(_for_each("data_type", data_type, FRAMES, dtypes), dtypes):
            if told != dtype:
                raise ValueError(f"was told of an input of {told} by data_type, and got {dtype}")
        # What passes through an NPU has the layout that only an NPU has inside.
        _for_each("inputs_pass_through", pass_through, (0,), [0] * len(frames))
        layouts = _for_each("data_format", data_format, ("nhwc", "nchw"), ["nhwc"] * len(frames))
        return [np.asarray(frame) for frame in frames], layouts

    def release(self):
        """Close the model. May be called again."""
        self._session = None

    def _fail(self, reason):
        self.error = reason
        return -1


def _for_each(option, given, known, default):
    """An option of `inference` as a list with an entry for each input, by `default` where it is None. Raises
    ValueError."""
    if given is None:
        return default
    values = [given] * len(default) if isinstance(given, str) else given
    if not isinstance(values, list) or len(values) != len(default) or not all(
            isinstance(value, (str, int)) and value in known for value in values):
        raise ValueError(f"takes as {option} {' or '.join(map(repr, known))} for each of {len(default)} inputs, not "
                         f"{given!r}")
    return values
