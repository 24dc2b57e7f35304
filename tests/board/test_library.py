"""runtimes/librknnrt.py itself, with the same libraries as the wheel: the same results, memory and
threads."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from board_parts import (
    EVERY,
    MODEL,
    MODELS,
    NONE,
    OLDER,
    REAL,
    ROOT,
    SETUPS,
    WHEEL,
    masks_of,
    needs_tools,
    only_in_full_matrix,
    was_used_correctly,
    with_setups,
)

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]
WITH_WHEEL = [name for name in SETUPS if name.endswith((WHEEL, OLDER))]

BOTH = """
import json, sys
import numpy as np
from rknnlite.api import RKNNLite as Wheel
from runtimes.librknnrt import RKNNLite
found = {}
image = np.random.default_rng(0).integers(0, 255, (1, 640, 640, 3), np.uint8)
for model in ("models/yolov5n_emoji.rknn", "models/yolov8n_emoji.rknn"):
    wheel, first, second = Wheel(), RKNNLite(), RKNNLite()
    for context, mask in ((wheel, 1), (first, 2), (second, 4)):
        assert context.load_rknn(model) == context.init_runtime(core_mask=mask) == 0
    wanted = wheel.inference([image])
    raw = first.inference_raw([image])
    found[model] = {
        "equal": all(np.array_equal(*pair) for pair in zip(wanted, second.inference([image]))),
        "kinds": sorted({stored.dtype.name for stored, _, _ in raw}),
        "off": max(float(np.abs((stored.astype(np.float32) - zero) * scale - values).max() / scale)
                   for values, (stored, scale, zero) in zip(wanted, raw)),
        "shares": [first.shares_weights, second.shares_weights],
        "wrong": [first.inference([image[:, :320]]) is None and first.error],
    }
    for context in (wheel, first, second):
        context.release()
print("\\n" + json.dumps(found))
"""


def last_json(run):
    """The last line that begins with a brace; the vendor's library prints others."""
    assert run.code == 0, run.err
    return json.loads([line for line in run.out.splitlines() if line.startswith("{")][-1])


# On a Python without a wheel there is nothing to compare with; see below.
@with_setups(f"emulated, {OLDER}", f"real, {WHEEL}", of=WITH_WHEEL)
def test_float_results_equal_the_wheels_and_raw_ones_differ_by_rounding_only(board):
    run = board.python("-c", BOTH)
    for model in last_json(run).values():
        assert model["equal"] and model["kinds"] == ["int8"] and model["off"] < 0.01
        assert model["shares"] == [False, True]
        assert (
            "takes an input of shape (1, 640, 640, 3), not uint8 (1, 320, 640, 3)"
            in model["wrong"][0]
        )
    assert run.report["opened"] == 6 and was_used_correctly(run.report)


SUMS = """
import json, sys, zlib
import numpy as np
from runtimes.librknnrt import RKNNLite
image = np.arange(640 * 640 * 3).astype(np.uint8).reshape(1, 640, 640, 3)
found = {"python": list(sys.version_info[:2])}
for model in ("models/yolov5n_emoji.rknn", "models/yolov8n_emoji.rknn"):
    context = RKNNLite()
    assert context.load_rknn(model) == context.init_runtime(core_mask=1) == 0
    found[model] = [zlib.crc32(array) for array in context.inference([image])]
    raw = context.inference_raw([image])
    found[model] += [[zlib.crc32(stored), scale, zero] for stored, scale, zero in raw]
    context.release()
print("\\n" + json.dumps(found))
"""


@pytest.mark.parametrize("library", ["real", "emulated"][: 2 if EVERY else 1])
def test_results_are_the_same_on_a_python_without_a_wheel(box, library):
    older, newer = (
        last_json(box.with_setup(f"{library}, {name}").python("-c", SUMS))
        for name in (NONE, "Python 3.13")
    )
    assert (older.pop("python"), newer.pop("python")) == ([3, 11], [3, 13])
    assert older == newer


OPEN = """
import sys
import numpy as np
from {module} import RKNNLite
contexts = [RKNNLite() for _ in range(int(sys.argv[2]))]
for number, context in enumerate(contexts):
    assert context.load_rknn(sys.argv[1]) == context.init_runtime(core_mask=1 << number % 3) == 0
for context in contexts:
    assert context.inference([np.zeros((1, 640, 640, 3), np.uint8)]) is not None
for context in contexts:
    context.release()
"""
CLASSES = {"wheel": "rknnlite.api", "library": "runtimes.librknnrt"}


def memory_of(board, name, runtime, contexts):
    """Bytes of NPU memory of some contexts of a model after a run of each. Asserts that all are
    freed."""
    run = board.python("-c", OPEN.format(module=CLASSES[runtime]), MODELS[name][0], contexts)
    assert run.code == 0 and was_used_correctly(run.report), run.err
    return run.report["memory_most"]


# the emulated library has no NPU memory
@with_setups(f"real, {WHEEL}", of=[f"real, {WHEEL}", f"real, {OLDER}"])
@pytest.mark.parametrize(
    "name, weights", [("yolov5n", 1_916_800), ("yolov8n", 3_200_576)][: 2 if EVERY else 1]
)
def test_contexts_share_the_weights_unlike_those_of_the_wheel(board, name, weights):
    wheel, library = (memory_of(board, name, runtime, 6) for runtime in CLASSES)
    if EVERY:
        ones = [memory_of(board, name, runtime, 1) for runtime in CLASSES]
        print(
            f"{name}, 1 and 6 contexts: wheel {ones[0]:,} and {wheel:,}, "
            f"library {ones[1]:,} and {library:,} bytes"
        )
        assert ones[0] == ones[1] == wheel / 6
    assert wheel - library >= 5 * weights


@with_setups(f"real, {NONE}", of=REAL)  # the emulated library has no NPU memory
def test_a_context_without_memory_for_its_inputs_and_outputs_is_not_opened(board):
    """The library would report nothing at the first frame, and the outputs would be wrong."""
    run = board.python(
        "-c",
        f"""
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
print(context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1), context.error)
""",
        BOARD_MEMORY="9000000",
    )
    assert "0 -1 the NPU has no memory left for this context's inputs and outputs (" in run.out, (
        run.err
    )
    assert run.report["opened"] == 1 and was_used_correctly(run.report)


MASKS = masks_of("runtimes.librknnrt") + "print(context.error)\n"


# The masks that the library accepts. The wheel changes some, and refuses all of them, also 0xffff,
# on one core.
@only_in_full_matrix
@pytest.mark.parametrize(
    "soc, returned",
    [
        ("rk3576", [0, 0, 0, 0, -1, -1, -1, -1, 0]),
        ("rk3566", [0] + [-1] * 8),
        ("rk3588", [0, 0, 0, 0, 0, -1, -1, 0, 0]),
    ],
)
@with_setups(f"emulated, {NONE}", of=[f"emulated, {NONE}"])
def test_the_core_masks_of_the_library_are_accepted(board, soc, returned):
    run = board.python("-c", MASKS, soc=soc)
    assert [
        int(line.split()[1]) for line in run.out.splitlines() if line.startswith("returned")
    ] == returned, run.err
    assert soc != "rk3566" or run.out.splitlines()[-1] == (
        "rknn_set_core_mask(65535) returned -1 (RKNN_ERR_FAIL): "
        "this SoC lacks these cores, or cannot combine them"
    )
    assert was_used_correctly(run.report)


@with_setups(f"real, {NONE}", of=[f"real, {NONE}"])  # always three cores
def test_the_core_masks_of_the_vendors_library_are_accepted(board):
    run = board.python("-c", MASKS)
    assert [
        int(line.split()[1]) for line in run.out.splitlines() if line.startswith("returned")
    ] == [
        0,
        0,
        0,
        0,
        0,
        -1,
        -1,
        0,
        0,
    ], run.err


@with_setups(f"real, {NONE}", of=[f"emulated, {NONE}"])
def test_the_class_itself_detects_a_failed_run(board):
    run = board.python(
        "-c",
        f"""
import numpy as np
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1)
image = np.zeros((1, 640, 640, 3), np.uint8)
for _ in range(4):
    print("got", context.inference([image]) is not None, context.run_failed, context.error)
context.release()
""",
        BOARD_FAIL_RUN="3",
    )
    assert [line for line in run.out.splitlines() if line.startswith("got")] == [
        "got True False None"
    ] * 2 + [
        "got False True rknn_run returned -1 (RKNN_ERR_FAIL): "
        "the NPU or its driver failed: look at dmesg",
        "got True False None",
    ], run.err
    assert was_used_correctly(run.report)


THREADS = f"""
import threading
import numpy as np
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1)
image, refused = np.zeros((1, 640, 640, 3), np.uint8), []
def use():
    for _ in range(5):
        if context.inference([image]) is None:
            refused.append(context.error)
threads = [threading.Thread(target=use) for _ in range(2)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(len(refused), set(refused))
context.release()
"""


@with_setups(f"real, {NONE}", of=[f"emulated, {NONE}"])
def test_a_second_thread_in_a_context_is_refused(board):
    run = board.python("-c", THREADS)
    assert "another thread is using this context" in run.out, run.err
    assert was_used_correctly(run.report)


@with_setups(f"real, {NONE}", of=[f"emulated, {NONE}"])
def test_a_context_released_during_a_run_is_closed_after_it(board):
    """The library would free the memory of the running thread, which would crash."""
    run = board.python(
        "-c",
        f"""
import threading
import numpy as np
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1)
image, outputs, in_call = np.zeros((1, 640, 640, 3), np.uint8), [], threading.Event()
first = context.inference([image])
def images():
    in_call.set()
    yield image
thread = threading.Thread(target=lambda: outputs.append(context.inference(images())))
thread.start()
assert in_call.wait(60)
context.release()
running = thread.is_alive()
thread.join()
same = [np.array_equal(*pair) for pair in zip(first, outputs[0])]
print("released in its run", running, same, context.inference([image]), context.error)
""",
        BOARD_RUN_MS="500",
    )
    assert (
        "released in its run True [True, True, True] None call init_runtime before inference"
        in run.out
    ), run.err
    assert run.report["opened"] == 1 and was_used_correctly(run.report)


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_memory_does_not_grow_in_ten_thousand_calls():
    """growth.py can run many more."""
    out = subprocess.run(
        [sys.executable, "tests/board/growth.py", "10000"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    resident, in_the_end, blocks, blocks_in_the_end = (
        int(number.replace(",", ""))
        for number in re.findall(
            r"([\d,]+) -> ([\d,]+) KiB, Python's blocks ([\d,]+) -> ([\d,]+)", out
        )[0]
    )
    assert in_the_end - resident < 4096  # KiB; an output is 17
    assert blocks_in_the_end - blocks < 2500  # of 5,000 calls


# Large buffers that only the garbage collector would free after 20 inferences.
GARBAGE = f"""
import ctypes, gc, json
import numpy as np
import runtimes
context = runtimes.by_name("wheel")()
assert context.load_rknn("{MODEL}") == 0 and context.init_runtime() == 0
gc.collect()
gc.disable()
for _ in range(20):
    assert len(context.inference(inputs=[np.zeros((1, 640, 640, 3), np.uint8)])) == 3
gc.set_debug(gc.DEBUG_SAVEALL)
gc.collect()
arrays = [each for each in gc.garbage if isinstance(each, ctypes.Array)]
print("\\n" + json.dumps({{"garbage": sum(map(ctypes.sizeof, arrays))}}))
"""


@with_setups(f"emulated, {OLDER}", f"real, {WHEEL}", of=WITH_WHEEL)
def test_inferences_of_every_wheel_leave_no_garbage(board):
    """Wheel 2.3.2 alone leaves 10 MB for each inference."""
    assert last_json(board.python("-c", GARBAGE))["garbage"] < 100_000
