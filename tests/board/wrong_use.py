"""Uses librknnrt.so in ways that the wheel does not, and prints the return codes and the outputs as
JSON.

    tests/board/board.sh python3 tests/board/wrong_use.py MODEL SMALL_MODEL

MODEL has outputs with four dimensions. SMALL_MODEL has one with two, and another mean and std.
"""

import ctypes as c
import json
import sys
import zlib

import numpy as np

sys.path[:0] = [""]  # the repository's root
from runtimes.rknn_api import Input, Output, TensorAttr  # noqa: E402

FLOAT32, FLOAT16, INT8, UINT8 = range(4)
NCHW, NHWC = 0, 1
IN_OUT_NUM, INPUT_ATTR, OUTPUT_ATTR, MEM_SIZE, NATIVE_OUTPUT, RANGE, CURRENT_INPUT = (
    0,
    1,
    2,
    6,
    9,
    13,
    14,
)
NUMBERS = "n_elems", "size", "size_with_stride", "fmt", "type", "qnt_type", "zp"


library = c.CDLL("librknnrt.so")
found = {}


class Context:
    """A context, used through the library's functions."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.model = file.read()
        self.handle = c.c_uint64()
        code = library.rknn_init(c.byref(self.handle), self.model, len(self.model), 0, None)
        assert code == 0, code

    def __getattr__(self, name):
        return lambda *arguments: getattr(library, "rknn_" + name)(self.handle, *arguments)

    def attr(self, command, index=0):
        attr = TensorAttr(index=index)
        code = self.query(command, c.byref(attr), c.sizeof(attr))
        return attr if code == 0 else code

    def set(self, array, kind=UINT8, layout=NHWC, pass_through=0, count=1, size=None):
        self.kept = array  # the library may read it until the next call
        inputs = (Input * 2)(
            *[
                Input(number, array.ctypes.data, size or array.nbytes, pass_through, kind, layout)
                for number in range(2)
            ]
        )
        return self.inputs_set(count, inputs)

    def get(self, floats=1, count=1, index=0, buffer=None):
        """(code, the first output as an array, or None)"""
        outputs = (Output * 16)(*[Output(floats, 0, number) for number in range(16)])
        outputs[0].index = index
        if buffer is not None:
            outputs[0] = Output(floats, 1, index, buffer.ctypes.data, buffer.nbytes)
        code = self.outputs_get(count, outputs, None)
        array = buffer
        if buffer is None and outputs[0].buf and code == 0:
            kind = c.c_float if floats else c.c_int8
            array = np.array(
                (kind * (outputs[0].size // c.sizeof(kind))).from_address(outputs[0].buf)
            )
            self.outputs_release(count, outputs)
        return code, array


def plain(attr):
    if isinstance(attr, int):
        return attr
    return {
        "name": attr.name.decode(),
        "dims": list(attr.dims[: attr.n_dims]),
        "scale": attr.scale,
        **{name: getattr(attr, name) for name in NUMBERS},
    }


def look(path, title):
    context, counts = Context(path), (c.c_uint32 * 2)()
    context.query(IN_OUT_NUM, counts, 8)
    found[title] = {
        kind: [plain(context.attr(command, index)) for index in range(counts[number])]
        for kind, number, command in (
            ("inputs", 0, INPUT_ATTR),
            ("outputs", 1, OUTPUT_ATTR),
            ("native_outputs", 1, NATIVE_OUTPUT),
        )
    }
    found[f"{title}: range, current"] = [context.attr(RANGE), context.attr(CURRENT_INPUT)]
    sizes = (c.c_uint32 * 16)()
    found[f"{title}: MEM_SIZE"] = [context.query(MEM_SIZE, sizes, 64), sizes[0] > 0]
    found[f"{title}: set_input_shapes"] = context.set_input_shapes(
        1, c.byref(context.attr(INPUT_ATTR))
    )
    return context, context.attr(INPUT_ATTR).dims[:4]


context, shape = look(sys.argv[1], "model")
image = np.random.default_rng(6).integers(0, 256, shape, np.uint8)
found["outputs_get before any run"] = context.get()[0]
found["masks"] = [
    context.set_core_mask(mask) for mask in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, 0xFFFF, 1)
]
found["inputs: none, two"] = [context.set(image, count=0), context.set(image, count=2)]
found["input: smaller, larger"] = [
    context.set(image, size=image.nbytes - 1),
    context.set(np.concatenate([image, image])),
]
found["input: NCHW"] = context.set(image, layout=NCHW)
found["run"] = [context.set(image), context.run(None)]
found["wait"] = context.wait(None)
(code, floats), (also, stored) = context.get(), context.get(floats=0)
attr = context.attr(OUTPUT_ATTR)
once = stored.astype(np.float64) * attr.scale - np.float64(
    np.float32(np.float32(attr.zp) * np.float32(attr.scale))
)
found["outputs"] = [
    code,
    also,
    bool((floats == once.astype(np.float32)).all()),
    len(np.unique(stored)) > 16,
]
found["outputs: fewer, more"] = [context.get(count=2)[0], context.get(count=17)[0]]
answers = []
for mask in (1, 7, 3, 2, 0):
    context.set_core_mask(mask)
    image = np.random.default_rng(mask).integers(0, 256, shape, np.uint8)
    context.set(image), context.run(None)
    answers.append(zlib.crc32(context.get(floats=0)[1].tobytes()))
found["answers on cores"] = answers
stored = context.get(floats=0)[1]
small = np.full(100, 77, np.uint8)
found["outputs: small buffer"] = [context.get(floats=0, buffer=small)[0]]
found["outputs: bad index"] = context.get(index=15)[0]
copy = Context.__new__(Context)
copy.handle = c.c_uint64()
found["dup_context"] = [
    library.rknn_dup_context(c.byref(context.handle), c.byref(copy.handle)),
    context.destroy(),
    copy.set(image),
    copy.run(None),
    bool((copy.get(floats=0)[1] == stored).all()),
    copy.destroy(),
]

context, shape = look(sys.argv[2], "small model")
image = np.random.default_rng(6).integers(0, 256, shape, np.uint8)
answers = {}
for name, array, kind, pass_through in (
    ("u8", image, UINT8, 0),
    ("f32", image.astype(np.float32), FLOAT32, 0),
    ("f16", image.astype(np.float16), FLOAT16, 0),
    ("i8", (image // 2).astype(np.int8), INT8, 0),
    ("half", image // 2, UINT8, 0),
    ("through", (image // 2).astype(np.int8), INT8, 1),
):
    found[f"input: {name}"] = [
        context.set(array, kind, pass_through=pass_through),
        context.run(None),
    ]
    answers[name] = context.get()[1]
found["as u8"] = {
    name: float(np.abs(answers[name] - answers[like]).max()) < 0.05 * float(np.ptp(answers[like]))
    for name, like in (("f32", "u8"), ("f16", "u8"), ("i8", "half"))
}
attr = context.attr(OUTPUT_ATTR)
found["two dimensions"] = bool(
    (
        context.get()[1]
        == (context.get(floats=0)[1].astype(np.float32) - attr.zp) * np.float32(attr.scale)
    ).all()
)
found["bad handle"] = library.rknn_run(c.c_uint64(0), None)
found["destroy"] = context.destroy()
print("\n" + json.dumps(found))  # the vendor's library may have printed an incomplete line
