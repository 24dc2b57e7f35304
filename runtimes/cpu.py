"""RKNNLite's methods on ONNX Runtime, for machines without a Rockchip NPU.

    from runtimes.cpu import RKNNLite      # instead of: from rknnlite.api import RKNNLite

load_rknn("models/x.rknn") opens models/x.onnx. Results and return codes are the wheel's: what fails returns -1 (or None
from `inference`) and raises nothing; the reason then stands in `error`.

The network's input is (image - mean) / std, as its .rknn has it built in. Mean and standard deviation stand in the ONNX
file's metadata (models/convert.py writes them there); without any they are 0 and 255.
"""
import math
import os
import sys
import threading

import cv2
import numpy as np

why = "No Rockchip NPU found"  # the beginning of what is said once, on stderr


def normalisation(metadata):
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


class RKNNLite:
    """One context: a model on one CPU thread."""

    NPU_CORE_AUTO = 0
    NPU_CORE_0 = 1
    NPU_CORE_1 = 2
    NPU_CORE_2 = 4
    NPU_CORE_0_1 = 3
    NPU_CORE_0_1_2 = 7
    NPU_CORE_ALL = 0xffff

    _said = False
    _saying = threading.Lock()

    def __init__(self, verbose=False, verbose_file=None):
        self.error = None  # the reason of the last -1 or None, a sentence
        self._path = self._session = None

    def load_rknn(self, path, key_path=None):
        """Take the model at `path`, or for x.rknn the x.onnx beside it. Returns 0, or -1 where there is no such
        file."""
        stem, extension = os.path.splitext(path)
        onnx = stem + ".onnx" if extension == ".rknn" else path
        if not os.path.isfile(onnx):
            there = " (the .rknn is there, but only an NPU can run it)" if os.path.isfile(path) else ""
            return self._fail(f"{onnx}: no such file{there}")
        self._path = onnx
        return 0

    def init_runtime(self, target=None, device_id=None, async_mode=False, core_mask=NPU_CORE_AUTO):
        """Open the model; a `core_mask` changes nothing. Returns 0, or -1 where ONNX Runtime is missing or cannot read
        the file."""
        if self._path is None:
            return self._fail("load_rknn comes before init_runtime")
        try:
            import onnxruntime
        except ImportError:
            return self._fail(f"{why}, and onnxruntime, which runs models on the CPU, is not installed (pip install onnxruntime)")
        options = onnxruntime.SessionOptions()
        # One thread a context, for the pool runs several: on 2 cores 3 contexts of one thread gave 44 frames a second,
        # of two 25.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exception types are not public
            return self._fail(f"{self._path} is not an ONNX model that can be run: {' '.join(str(error).split())}")
        try:
            self._mean, std = normalisation(self._session.get_modelmeta().custom_metadata_map)
        except ValueError as error:
            self._session = None
            return self._fail(f"{self._path}: {error}")
        self._scale = 1 / np.float32(std)
        with RKNNLite._saying:
            if not RKNNLite._said:
                RKNNLite._said = True
                print(f"{why}: {self._path} runs on the CPU with ONNX Runtime {onnxruntime.__version__}.",
                      file=sys.stderr)
        return 0

    def inference(self, inputs, data_type=None, data_format=None, inputs_pass_through=None, get_frame_id=False,
                  reuse_outputs=False):
        """Run the model on inputs[0], (1, H, W, 3) uint8 RGB.

        The model is fed as its .rknn would be: with (1, 3, H, W) float32, (image - mean) / std. Returns a list of
        float32 arrays in the model's order, or None for an input of other shape.
        """
        if self._session is None:
            self._fail("init_runtime comes before inference")
            return None
        image = inputs[0]
        shape = tuple(self._session.get_inputs()[0].shape)
        shape = (1,) + shape[1:] if not isinstance(shape[0], int) else shape  # an open batch size
        if image.ndim != 4 or (1, image.shape[3]) + image.shape[1:3] != shape:
            wanted = (1,) + shape[2:] + shape[1:2]
            self._fail(f"{self._path} takes an input of shape {wanted}, not {image.shape}")
            return None
        blob = cv2.dnn.blobFromImage(image[0], mean=self._mean)
        blob[0] *= np.resize(self._scale, (len(blob[0]), 1, 1))  # not all models have three channels
        return self._session.run(None, {self._session.get_inputs()[0].name: blob})

    def release(self):
        self._session = None

    def _fail(self, reason):
        self.error = reason
        return -1
