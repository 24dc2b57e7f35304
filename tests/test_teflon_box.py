"""runtimes/teflon.py with Mesa's real libteflon.so, in an arm64 Debian (teflon/box.sh): its refusal where there is no
device, and, over a device that computes nothing, that it takes of the demo models what runtimes/rocket.py says."""
import os
import re
import subprocess

import pytest
from conftest import ROOT

BOX = ROOT / "tests/teflon/box.sh"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (ROOT / "tests/teflon/box/root").exists(),
    reason="the box is not built, which takes a minute: tests/teflon/box.sh builds it")]
ONCE = '''
import sys
import numpy as np
from runtimes import rocket, teflon
context = teflon.RKNNLite()
assert context.load_rknn(sys.argv[1]) == 0 and context.init_runtime(core_mask=2) == 0, context.error
assert context.inference_raw([np.zeros(context._sides, np.uint8)]) is not None, context.error
plan = rocket.plan(context._path)
print("planned", sum(each.taken for each in plan.operations), len(plan.pieces))
'''


def box(*arguments, **environment):
    done = subprocess.run([BOX, *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done


def test_without_a_device_the_real_delegate_refuses_in_one_sentence_and_the_cpu_serves():
    done = box("python3", "main.py", "models/page.jpg", "--headless", "--runtime", "teflon",
               "--model", "models/resnet18_emoji.rknn")
    assert done.stderr.count("libteflon.so") == 1 and "Traceback" not in done.stderr
    assert "/usr/lib/teflon/libteflon.so finds no device: /dev/accel/accel0 is missing" in done.stderr
    assert "models/resnet18_emoji.tflite runs on the CPU" in done.stderr
    assert "page.jpg: 1 frames" in done.stdout


@pytest.mark.parametrize("name", ["yolov5n", "yolov8n", "resnet18"])
def test_the_real_delegate_takes_what_was_planned_and_does_not_crash(name):
    done = box("--device", "python3", "-c", ONCE, f"models/{name}_emoji.rknn", TEFLON_DEBUG="verbose")
    assert f"{name}_emoji.tflite runs on the NPU as far as /usr/lib/teflon/libteflon.so takes it" in done.stderr
    said = done.stdout + done.stderr
    pieces = said.count("compiled graph")
    taken = len(re.findall(r"^ *\d+ \w+ +v\d+ +supported ", said, re.MULTILINE))
    assert f"planned {taken} {pieces}\n" in done.stdout and taken > 20
    assert len(re.findall(r"rocket: \d+ jobs", said)) == pieces


@pytest.mark.parametrize("spoil, reason", [
    ("for o in operators: o.inputs = o.inputs[::-1] if len(o.inputs) == 2 and kind(o) == 'ADD' else o.inputs",
     "sums at which Mesa's driver would crash"),
    ("for t in tensors:\n"
     "    if t.type == schema.TensorType.UINT8:\n"
     "        t.type, t.quantization.zeroPoint = schema.TensorType.INT8, t.quantization.zeroPoint - 128",
     "signed tensors")], ids=["sums", "signed"])
def test_a_model_that_the_driver_would_crash_or_err_at_runs_on_the_cpu(tmp_path, spoil, reason):
    path = tmp_path / "x.tflite"
    program = ONCE.split("context =")[0] + f'''
import flatbuffers
from ai_edge_litert import schema_py_generated as schema
model = schema.ModelT.InitFromPackedBuf(open("models/resnet18_emoji.tflite", "rb").read())
names = {{number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}}
kind = lambda o: names[model.operatorCodes[o.opcodeIndex].builtinCode]
operators, tensors = model.subgraphs[0].operators, model.subgraphs[0].tensors
{spoil}
builder = flatbuffers.Builder(1 << 20)
builder.Finish(model.Pack(builder), b"TFL3")
open(sys.argv[1], "wb").write(builder.Output())
context = teflon.RKNNLite()
print(context.load_rknn(sys.argv[1]), context.init_runtime(), context.error)
'''
    done = box("--device", "python3", "-c", program, path)
    assert f"No NPU by the open driver ({path} has {reason}" in done.stderr and "rocket: " not in done.stderr
