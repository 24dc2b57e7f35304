"""runtimes/teflon.py with Mesa's real libteflon.so, in an arm64 Debian (teflon/box.sh). Without a
device it refuses to work. With a device that computes nothing, it accepts those operations of the
demo models that runtimes/rocket.py predicts."""

import os
import re
import subprocess

import pytest
from conftest import ROOT

BOX = ROOT / "tests/teflon/box.sh"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "tests/teflon/box/root").exists(),
        reason="the box is not built, which takes a minute: tests/teflon/box.sh builds it",
    ),
]
ONCE = """
import sys
import numpy as np
from runtimes import rocket, teflon
from vision.model import describe
context = teflon.RKNNLite()
assert context.load_rknn(sys.argv[1]) == 0 and context.init_runtime(core_mask=2) == 0, context.error
width, height = describe(sys.argv[1]).size
frame = np.zeros((1, height, width, 3), np.uint8)
assert context.inference_raw([frame]) is not None, context.error
plan = rocket.plan(teflon.find_tflite(sys.argv[1]))
print("planned", sum(each.taken for each in plan.operations), len(plan.pieces))
"""


def box(*arguments, **environment):
    done = subprocess.run(
        [BOX, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_without_a_device_the_real_delegate_refuses_and_the_cpu_is_used():
    done = box(
        "python3",
        "main.py",
        "models/page.jpg",
        "--headless",
        "--runtime",
        "teflon",
        "--model",
        "models/resnet18_emoji.rknn",
    )
    assert done.stderr.count("libteflon.so") == 1 and "Traceback" not in done.stderr
    assert (
        "/usr/lib/teflon/libteflon.so finds no device: /dev/accel/accel0 is missing" in done.stderr
    )
    assert "models/resnet18_emoji.tflite runs on the CPU" in done.stderr
    assert "page.jpg: 1 frame" in done.stdout


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n", "resnet18"])
def test_the_real_delegate_accepts_the_planned_operations_without_a_crash(name):
    done = box(
        "--device", "python3", "-c", ONCE, f"models/{name}_emoji.rknn", TEFLON_DEBUG="verbose"
    )
    assert (
        f"{name}_emoji.tflite runs on the NPU as far as /usr/lib/teflon/libteflon.so supports it"
        in done.stderr
    )
    printed = done.stdout + done.stderr
    pieces = printed.count("compiled graph")
    taken = len(re.findall(r"^ *\d+ \w+ +v\d+ +supported ", printed, re.MULTILINE))
    assert f"planned {taken} {pieces}\n" in done.stdout and taken > 20
    assert len(re.findall(r"rocket: \d+ jobs", printed)) == pieces


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (
            "for o in operators:\n    if kind(o) == 'ADD':\n        o.inputs = o.inputs[::-1]",
            "ADD operations on which Mesa's driver would crash",
        ),
        (
            "for t in tensors:\n"
            "    if t.type == schema.TensorType.UINT8:\n"
            "        t.type = schema.TensorType.INT8\n"
            "        t.quantization.zeroPoint = t.quantization.zeroPoint - 128",
            "signed tensors",
        ),
    ],
    ids=["sums", "signed"],
)
def test_a_model_that_would_crash_the_driver_runs_on_the_cpu(tmp_path, spoil, reason):
    path = tmp_path / "x.tflite"
    program = (
        ONCE.split("context =")[0]
        + f"""
import flatbuffers
from ai_edge_litert import schema_py_generated as schema
model = schema.ModelT.InitFromPackedBuf(open("models/resnet18_emoji.tflite", "rb").read())
constants = vars(schema.BuiltinOperator).items()
names = {{number: name for name, number in constants if not name.startswith("_")}}
kind = lambda o: names[model.operatorCodes[o.opcodeIndex].builtinCode]
operators, tensors = model.subgraphs[0].operators, model.subgraphs[0].tensors
{spoil}
builder = flatbuffers.Builder(1 << 20)
builder.Finish(model.Pack(builder), b"TFL3")
open(sys.argv[1], "wb").write(builder.Output())
from vision.model import describe
context = teflon.RKNNLite()
print(context.load_rknn(sys.argv[1]), context.init_runtime(), context.error)
"""
    )
    done = box("--device", "python3", "-c", program, path)
    assert (
        f"No NPU by the open driver ({path} has {reason}" in done.stderr
        and "rocket: " not in done.stderr
    )
