"""The arithmetic of the emulated NPU: runs on the host and answers librknnrt.c over a Unix socket.

    python tests/board/npu.py npu.sock models/

A .rknn can only be computed by an NPU, so the ONNX it was made from, x.onnx beside x.rknn, is run in its place, and its
outputs are rounded to int8 with the ranges that stand in the .rknn. Every context has a connection of its own: it sends
the model, then frames, each message led by its length (uint32, little-endian). Prints "ready" once contexts can
connect.
"""
import ast
import hashlib
import signal
import socket
import socketserver
import struct
import sys
import threading
from collections import namedtuple
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
except ImportError as error:
    sys.exit(f"npu.py: {error} for {sys.executable}, the Python that computes for the board: pip install onnxruntime numpy")

HEADER = struct.Struct("<8sQQ40x")     # of a .rknn: "RKNN", format, length of the FlatBuffer that follows
COUNTS = struct.Struct("<2I")          # inputs, outputs
# librknnrt.c's struct tensor: name, number of dimensions, dimensions, zero point, scale
TENSOR = struct.Struct("<256sI4Iif")
# of the FlatBuffer's root table: shapes and ranges of inputs and outputs, as a Python literal
ATTRIBUTES_FIELD = 3

Tensor = namedtuple("Tensor", "name shape scale zero_point")  # value = (stored - zero_point) * scale
# mean and std as convert.py has built them in, one number or one a channel
Model = namedtuple("Model", "inputs outputs mean std")


class ModelError(Exception):
    """The model cannot be emulated; the message is a sentence."""


def parse(rknn):
    """Names, shapes (as the ONNX has them), quantisation and normalisation of a .rknn's input and outputs: a Model.
    Raises ModelError."""
    try:
        buffer = memoryview(rknn)[HEADER.size:]
        attributes = ast.literal_eval(_string_field(buffer, ATTRIBUTES_FIELD))
        shapes = attributes["attrs"]
        names = sorted(shapes, key=lambda name: shapes[name]["idx"])
        inputs, outputs = ([name for name in names if shapes[name]["is_output"] == is_output]
                           for is_output in (False, True))
        if len(inputs) != 1 or any(len(shapes[name]["shape"]) > 4 for name in outputs):
            raise ModelError("the emulated NPU runs models with one input, and outputs of at most 4 dimensions")
        return Model([_tensor(name, attributes) for name in inputs], [_tensor(name, attributes) for name in outputs],
                     np.float32(shapes[inputs[0]]["mean"]), np.float32(shapes[inputs[0]]["std"]))
    except (KeyError, IndexError, ValueError, SyntaxError, struct.error) as error:
        raise ModelError(f"not a quantised .rknn of toolkit 2.x ({type(error).__name__}: {error})") from None


def _string_field(buffer, number):
    """Text of a string field of a FlatBuffer's root table."""
    table, = struct.unpack_from("<I", buffer, 0)
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    field = table + struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    string = field + struct.unpack_from("<I", buffer, field)[0]
    length, = struct.unpack_from("<I", buffer, string)
    return bytes(buffer[string + 4:string + 4 + length]).decode()


def _tensor(name, attributes):
    # Asymmetric int8: the range, widened to hold 0, is spread over the 256 values, and 0 is one of them exactly.
    found = attributes["quant_tab"][name]
    low, high = min(0.0, found["min"][0]), max(0.0, found["max"][0])
    scale = (high - low) / 255
    return Tensor(name, attributes["attrs"][name]["shape"], scale, round(-128 - low / scale))


def quantise(values, tensor):
    return np.clip(np.rint(values / np.float32(tensor.scale)) + tensor.zero_point, -128, 127).astype(np.int8)


class Network:
    """A .rknn's ONNX, ready to run; several threads may."""

    def __init__(self, rknn, folders):
        self.model = parse(rknn)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # as many runs as cores are under way at a time
        self._session = onnxruntime.InferenceSession(str(_onnx_of(rknn, folders)), options,
                                                     providers=["CPUExecutionProvider"])

    def run(self, image):
        """image: bytes of (1, H, W, 3) uint8. Returns the outputs' int8 values as bytes, one object per output."""
        _, channels, height, width = self.model.inputs[0].shape
        pixels = np.frombuffer(image, np.uint8).reshape(1, height, width, channels)
        blob = np.ascontiguousarray(((pixels - self.model.mean) / self.model.std).transpose(0, 3, 1, 2))
        outputs = self._session.run([tensor.name for tensor in self.model.outputs], {self.model.inputs[0].name: blob})
        return [quantise(values, tensor).tobytes() for values, tensor in zip(outputs, self.model.outputs)]


def _onnx_of(rknn, folders):
    for folder in folders:
        for path in sorted(Path(folder).glob("*.rknn")):
            if path.read_bytes() == rknn and path.with_suffix(".onnx").is_file():
                return path.with_suffix(".onnx")
    raise ModelError(f"no .rknn of {' or '.join(folders)} is this one and has its .onnx beside it")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The NPU: a thread for every context. `folders` are searched for the models' ONNX."""

    daemon_threads = True
    request_queue_size = socket.SOMAXCONN

    def __init__(self, path, folders):
        super().__init__(path, Connection)
        self._folders = folders
        self._networks = {}  # by the model's hash: contexts with the same model share one
        self._loading = threading.Lock()

    def network(self, rknn):
        key = hashlib.sha256(rknn).digest()
        with self._loading:
            if key not in self._networks:
                self._networks[key] = Network(rknn, self._folders)
            return self._networks[key]


class Connection(socketserver.StreamRequestHandler):
    """One context, from rknn_init to rknn_destroy."""

    def handle(self):
        rknn = self._receive()
        if rknn is None:
            return
        try:
            network = self.server.network(rknn)
        except ModelError as error:
            sentence = str(error).encode()
            self._send(COUNTS.pack(0, 0), struct.pack("<I", len(sentence)), sentence)
            return
        inputs, outputs = network.model[:2]
        self._send(COUNTS.pack(len(inputs), len(outputs)),
                   # NHWC
                   *(self._describe(tensor, [tensor.shape[axis] for axis in (0, 2, 3, 1)]) for tensor in inputs),
                   *(self._describe(tensor, tensor.shape) for tensor in outputs))
        while True:
            image = self._receive()
            if image is None:
                return
            self._send(*network.run(image))

    def _receive(self):
        length = self.rfile.read(4)
        return self.rfile.read(struct.unpack("<I", length)[0]) if len(length) == 4 else None

    def _send(self, *parts):
        for part in parts:
            self.wfile.write(part)

    @staticmethod
    def _describe(tensor, shape):
        return TENSOR.pack(tensor.name.encode(), len(shape), *shape, *[0] * (4 - len(shape)), tensor.zero_point,
                           tensor.scale)


def main():
    path, *folders = sys.argv[1:]
    # Ctrl-C is for the board's command; this process ends with the namespace
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Server(path, folders) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
