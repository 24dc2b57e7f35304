"""runtimes/librknnrt.py itself: the wheel's results without the wheel, over the same libraries; memory and threads."""
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
    nothing_was_used_wrongly,
    over,
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


def told(run):
    """The last line that begins with a brace, of what a program printed between the vendor's lines."""
    assert run.code == 0, run.err
    return json.loads([line for line in run.out.splitlines() if line.startswith("{")][-1])


# Not where there is no wheel to compare with: below.
@over(f"emulated, {WHEEL}", f"real, {OLDER}", of=WITH_WHEEL)
def test_results_are_the_wheels_bit_for_bit_and_raw_ones_to_rounding(board):
    run = board.run("python3", "-c", BOTH)
    for model in told(run).values():
        assert model["equal"] and model["kinds"] == ["int8"] and model["off"] < 0.01
        assert model["shares"] == [False, True]
        assert "takes an input of shape (1, 640, 640, 3), not uint8 (1, 320, 640, 3)" in model["wrong"][0]
    assert run.report["opened"] == 6 and nothing_was_used_wrongly(run.report)


SUMS = """
import json, sys, zlib
import numpy as np
from runtimes.librknnrt import RKNNLite
image, found = np.arange(640 * 640 * 3).astype(np.uint8).reshape(1, 640, 640, 3), {"python": list(sys.version_info[:2])}
for model in ("models/yolov5n_emoji.rknn", "models/yolov8n_emoji.rknn"):
    context = RKNNLite()
    assert context.load_rknn(model) == context.init_runtime(core_mask=1) == 0
    found[model] = [zlib.crc32(array) for array in context.inference([image])]
    found[model] += [[zlib.crc32(stored), scale, zero] for stored, scale, zero in context.inference_raw([image])]
    context.release()
print("\\n" + json.dumps(found))
"""


@pytest.mark.parametrize("library", ["emulated", "real"])
def test_results_are_the_same_on_a_python_without_a_wheel(box, library):
    older, newer = (told(box.over(f"{library}, {name}").run("python3", "-c", SUMS)) for name in (NONE, "Python 3.13"))
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
    """Bytes of NPU memory that so many contexts of a model hold once each has run; afterwards all are given back."""
    run = board.run("python3", "-c", OPEN.format(module=CLASSES[runtime]), MODELS[name][0], contexts)
    assert run.code == 0 and nothing_was_used_wrongly(run.report), run.err
    return run.report["memory_most"]


@over(f"real, {WHEEL}", of=[f"real, {WHEEL}", f"real, {OLDER}"])  # the emulated library has no NPU memory
@pytest.mark.parametrize("name, weights", [("yolov5n", 1_916_800), ("yolov8n", 3_200_576)][:2 if EVERY else 1])
def test_contexts_share_the_weights_which_the_wheels_do_not(board, name, weights):
    wheel, library = (memory_of(board, name, runtime, 6) for runtime in CLASSES)
    if EVERY:
        ones = [memory_of(board, name, runtime, 1) for runtime in CLASSES]
        print(f"{name}, 1 and 6 contexts: wheel {ones[0]:,} and {wheel:,}, library {ones[1]:,} and {library:,} bytes")
        assert ones[0] == ones[1] == wheel / 6
    assert wheel - library >= 5 * weights


@over(f"real, {NONE}", of=REAL)  # the emulated library has no NPU memory
def test_a_context_without_memory_for_its_inputs_and_outputs_is_not_opened(board):
    """The library would say nothing at its first frame, and the outputs would be wrong."""
    run = board.run("python3", "-c", f"""
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
print(context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1), context.error)
""", BOARD_MEMORY="9000000")
    assert "0 -1 the NPU has no memory left for this context's inputs and outputs (" in run.out, run.err
    assert run.report["opened"] == 1 and nothing_was_used_wrongly(run.report)


MASKS = masks_of("runtimes.librknnrt") + "print(context.error)\n"


# The masks that the library grants: the wheel makes of some another, and refuses any where there is one core, 0xffff
# among them.
@pytest.mark.parametrize("soc, returned", [("rk3576", [0, 0, 0, 0, -1, -1, -1, -1, 0]), ("rk3566", [0] + [-1] * 8),
                                           ("rk3588", [0, 0, 0, 0, 0, -1, -1, 0, 0])][:3 if EVERY else 1])
@over(f"emulated, {NONE}", of=[f"emulated, {NONE}"])
def test_core_masks_are_taken_as_the_library_does(board, soc, returned):
    run = board.run("python3", "-c", MASKS, soc=soc)
    assert [int(line.split()[1]) for line in run.out.splitlines() if line.startswith("returned")] == returned, run.err
    assert soc != "rk3566" or run.out.splitlines()[-1] == (
        "rknn_set_core_mask(65535) returned -1 (RKNN_ERR_FAIL): this SoC has no such cores, or does not join them")
    assert nothing_was_used_wrongly(run.report)


@over(f"real, {NONE}", of=[f"real, {NONE}"])  # which has three cores whatever the SoC is
def test_core_masks_are_taken_as_the_vendors_library_does(board):
    run = board.run("python3", "-c", MASKS)
    assert [int(line.split()[1]) for line in run.out.splitlines() if line.startswith("returned")] == [
        0, 0, 0, 0, 0, -1, -1, 0, 0], run.err


@over(f"real, {NONE}", of=[f"emulated, {NONE}"])
def test_a_failed_run_is_noticed_by_the_class_itself(board):
    run = board.run("python3", "-c", f"""
import numpy as np
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1)
image = np.zeros((1, 640, 640, 3), np.uint8)
for _ in range(4):
    print("got", context.inference([image]) is not None, context.run_failed, context.error)
context.release()
""", BOARD_FAIL_RUN="3")
    assert [line for line in run.out.splitlines() if line.startswith("got")] == ["got True False None"] * 2 + [
        "got False True rknn_run returned -1 (RKNN_ERR_FAIL): the NPU or its driver failed: look at dmesg",
        "got True False None"], run.err
    assert nothing_was_used_wrongly(run.report)


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


@over(f"emulated, {NONE}", of=[f"real, {NONE}"])
def test_a_second_thread_in_a_context_is_refused(board):
    run = board.run("python3", "-c", THREADS)
    assert "another thread is in a call with this context" in run.out, run.err
    assert nothing_was_used_wrongly(run.report)


@over(f"real, {NONE}", of=[f"emulated, {NONE}"])
def test_a_context_released_in_a_run_is_closed_after_it(board):
    """The library would free the memory of the running thread, which then dies."""
    run = board.run("python3", "-c", f"""
import threading
import numpy as np
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1)
image, outputs = np.zeros((1, 640, 640, 3), np.uint8), []
first = context.inference([image])
thread = threading.Thread(target=lambda: outputs.append(context.inference([image])))
thread.start()
while not context._using.locked():
    assert thread.is_alive()
context.release()
running = thread.is_alive()
thread.join()
same = [np.array_equal(*pair) for pair in zip(first, outputs[0])]
print("released in its run", running, same, context.inference([image]), context.error)
""", BOARD_RUN_MS="500")
    assert "released in its run True [True, True, True] None init_runtime comes before inference" in run.out, run.err
    assert run.report["opened"] == 1 and nothing_was_used_wrongly(run.report)


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_ten_thousand_calls_leave_nothing_behind():
    """growth.py says how it is asked of many more."""
    out = subprocess.run([sys.executable, "tests/board/growth.py", "10000"], cwd=ROOT, check=True, capture_output=True,
                         text=True).stdout
    resident, in_the_end, blocks, blocks_in_the_end = (int(number.replace(",", "")) for number in re.findall(
        r"([\d,]+) -> ([\d,]+) KiB, Python's blocks ([\d,]+) -> ([\d,]+)", out)[0])
    assert in_the_end - resident < 4096  # KiB; an output is 17
    assert blocks_in_the_end - blocks < 2500  # of 5,000 calls
