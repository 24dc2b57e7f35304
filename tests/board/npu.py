"""Computes for the emulated NPU. Runs on the host and answers link.c over a Unix socket.

    python tests/board/npu.py npu.sock models/

Only an NPU can run a .rknn, so this program runs the ONNX beside it, x.onnx for x.rknn, and rounds
its outputs to int8 with the scales of the .rknn. Every context has its own connection. It sends the
model, then frames; each message starts with its length (uint32, little-endian). submit.c knows only
the NPU's memory, and sends the memory with the weights instead of the model. Prints "ready" when
contexts can connect.
"""

import ast
import functools
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
    sys.exit(
        f"npu.py: {error} for {sys.executable}, the Python that computes for the board: "
        "pip install onnxruntime numpy"
    )

# a .rknn's head: "RKNN", format, length of the FlatBuffer after it
HEADER = struct.Struct("<8sQQ40x")
COUNTS = struct.Struct("<2I")  # inputs, outputs
# link.h's struct tensor: name, number of dimensions, dimensions, zero point, scale
TENSOR = struct.Struct("<256sI4Iif")
# Fields of the FlatBuffer's root table: shapes and normalisation of inputs and outputs, as a Python
# literal; the graphs.
ATTRIBUTES_FIELD, GRAPHS_FIELD = 3, 2
# Fields of a graph: its tensors. Fields of a tensor: the values that the vendor's library reports.
TENSORS_FIELD, NAME_FIELD, SCALE_FIELD, ZERO_POINT_FIELD = 0, 5, 10, 11
# types of an input's values, with librknnrt.so's numbers
TYPES = {0: np.float32, 1: np.float16, 2: np.int8, 3: np.uint8}

PIECE, PIECE_EVERY = 1024, 65536  # bytes of weights that identify a model

# value = (stored - zero_point) * scale
Tensor = namedtuple("Tensor", "name shape scale zero_point")
# mean and std that convert.py has built in, one number or one per channel
Model = namedtuple("Model", "inputs outputs mean std")


class ModelError(Exception):
    """The model cannot be emulated. The message is a sentence."""


def parse(rknn):
    """The Model of a .rknn: names, shapes (those of the ONNX), quantisation and normalisation of
    its input and outputs. Raises ModelError."""
    try:
        buffer = memoryview(rknn)[HEADER.size :]
        root = Table(buffer, Table.follow(buffer, 0))
        shapes = ast.literal_eval(root.string(ATTRIBUTES_FIELD))["attrs"]
        stored = {
            table.string(NAME_FIELD): table
            for table in root.tables(GRAPHS_FIELD)[0].tables(TENSORS_FIELD)
        }
        names = sorted(shapes, key=lambda name: shapes[name]["idx"])
        inputs, outputs = (
            [name for name in names if shapes[name]["is_output"] == is_output]
            for is_output in (False, True)
        )
        if len(inputs) != 1 or any(len(shapes[name]["shape"]) > 4 for name in outputs):
            raise ModelError(
                "the emulated NPU runs models with one input, and outputs of at most 4 dimensions"
            )
        inputs, outputs = (
            [
                Tensor(
                    name,
                    shapes[name]["shape"],
                    stored[name].number("f", SCALE_FIELD),
                    stored[name].number("i", ZERO_POINT_FIELD),
                )
                for name in some
            ]
            for some in (inputs, outputs)
        )
        norm = shapes[inputs[0].name]
        return Model(inputs, outputs, np.float32(norm["mean"]), np.float32(norm["std"]))
    except (KeyError, IndexError, ValueError, SyntaxError, struct.error) as error:
        raise ModelError(
            f"not a quantised .rknn of toolkit 2.x ({type(error).__name__}: {error})"
        ) from None


class Table:
    """A table of a FlatBuffer. Fields have numbers."""

    def __init__(self, buffer, at):
        self._buffer, self._at = buffer, at
        self._vtable = at - struct.unpack_from("<i", buffer, at)[0]

    @staticmethod
    def follow(buffer, at):
        return at + struct.unpack_from("<I", buffer, at)[0]

    def _vector(self, field):
        """The position of a vector's length, and the length. The elements follow."""
        (size,) = struct.unpack_from("<H", self._buffer, self._vtable)
        at = 4 + 2 * field
        offset = struct.unpack_from("<H", self._buffer, self._vtable + at)[0] if at < size else 0
        if not offset:
            raise KeyError(f"field {field}")
        vector = self.follow(self._buffer, self._at + offset)
        return vector, struct.unpack_from("<I", self._buffer, vector)[0]

    def string(self, field):
        vector, length = self._vector(field)
        return bytes(self._buffer[vector + 4 : vector + 4 + length]).decode()

    def tables(self, field):
        vector, length = self._vector(field)
        return [
            Table(self._buffer, self.follow(self._buffer, vector + 4 + 4 * index))
            for index in range(length)
        ]

    def number(self, kind, field):
        """The first number of a vector; kind: "f" or "i", 32 bits each."""
        vector, length = self._vector(field)
        if not length:
            raise KeyError(f"a number in field {field}")
        return struct.unpack_from("<" + kind, self._buffer, vector + 4)[0]


def quantise(values, tensor):
    return np.clip(
        np.rint(values / np.float32(tensor.scale)) + tensor.zero_point, -128, 127
    ).astype(np.int8)


class Network:
    """The opened ONNX of a .rknn. Several threads may run it."""

    def __init__(self, rknn, folders):
        self.model = parse(rknn)
        options = onnxruntime.SessionOptions()
        # one run per core at a time
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        onnx = with_weights(rknn, folders)[0].with_suffix(".onnx")
        self._session = onnxruntime.InferenceSession(
            str(onnx), options, providers=["CPUExecutionProvider"]
        )
        self.run = functools.lru_cache(maxsize=40)(self._run)  # many tests use the same frames

    def _run(self, image):
        """image: bytes, the type of its values (uint32, of TYPES) and (1, H, W, C) values, before
        the model's normalisation. Returns the outputs' int8 values as bytes, one object per output.
        """
        _, channels, height, width = self.model.inputs[0].shape
        (kind,) = struct.unpack_from("<I", image)
        pixels = (
            np.frombuffer(image, TYPES[kind], offset=4)
            .reshape(1, height, width, channels)
            .astype(np.float32)
        )
        blob = np.ascontiguousarray(
            ((pixels - self.model.mean) / self.model.std).transpose(0, 3, 1, 2)
        )
        outputs = self._session.run(
            [tensor.name for tensor in self.model.outputs], {self.model.inputs[0].name: blob}
        )
        return [
            quantise(values, tensor).tobytes()
            for values, tensor in zip(outputs, self.model.outputs)
        ]


def _models(folders):
    """The .rknn files that have their .onnx beside them: (path, bytes)."""
    for folder in folders:
        for path in sorted(Path(folder).glob("*.rknn")):
            if path.with_suffix(".onnx").is_file():
                yield path, path.read_bytes()


def with_weights(memory, folders):
    """(path, bytes) of the .rknn whose weights are in this memory of the NPU or of a file. The
    library rearranges tensors, so pieces of the weights are searched. Raises ModelError."""
    pieces = [memory[at : at + PIECE] for at in range(0, len(memory), PIECE_EVERY)]
    pieces = [piece for piece in pieces if len(set(piece)) > PIECE // 16]
    found = [
        (sum(piece in rknn for piece in pieces), path, rknn) for path, rknn in _models(folders)
    ]
    best, path, rknn = max(found, key=lambda hits: hits[0], default=(0, None, None))
    if best < max(1, len(pieces) // 4):
        raise ModelError(
            f"no .rknn with its .onnx beside it in {' or '.join(folders)} has these weights"
        )
    return path, rknn


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The server, with a thread for every context. It looks for the ONNX files in `folders`."""

    daemon_threads = True
    request_queue_size = socket.SOMAXCONN

    def __init__(self, path, folders):
        super().__init__(path, Connection)
        self._folders = folders
        self._networks = {}  # by the hash of the model; contexts of one model share it
        self._loading = threading.Lock()

    def network(self, rknn):
        """The Network of a .rknn, or of the one whose weights are in this memory."""
        if not rknn.startswith(b"RKNN"):
            rknn = with_weights(rknn, self._folders)[1]
        _, _, length = HEADER.unpack_from(rknn.ljust(HEADER.size))
        key = hashlib.sha256(rknn[: HEADER.size + length]).digest()  # not the JSON with the SoC
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
        self._send(
            COUNTS.pack(len(inputs), len(outputs)),
            # NHWC
            *(
                self._describe(tensor, [tensor.shape[axis] for axis in (0, 2, 3, 1)])
                for tensor in inputs
            ),
            *(self._describe(tensor, tensor.shape) for tensor in outputs),
        )
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
        return TENSOR.pack(
            tensor.name.encode(),
            len(shape),
            *shape,
            *[0] * (4 - len(shape)),
            tensor.zero_point,
            tensor.scale,
        )


def main():
    path, *folders = sys.argv[1:]
    # Ctrl-C is meant for the board's command; this process ends with the namespace
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Server(path, folders) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
