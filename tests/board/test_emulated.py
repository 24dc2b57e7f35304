"""The emulated NPU itself: it behaves like the vendor's library, and it reports the faults that
other tests exclude."""

import signal

import pytest
from board_parts import (
    CORES,
    MODEL,
    SMALL_MODEL,
    masks_of,
    needs_tools,
    only_in_full_matrix,
    wrong_use,
)

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, only_in_full_matrix, pytest.mark.slow]

MASKS = masks_of("rknnlite.api")


@pytest.mark.parametrize(
    "soc, returned, masks",
    [
        ("rk3588", [0, 0, 0, 0, 0, -1, -1, 0, 0], [0, 1, 2, 3, 4, 0, 0, 7, 7]),
        ("rk3576", [0, 0, 0, 0, 0, -1, -1, 0, 0], [0, 1, 2, 3, 1, 0, 0, 3, 3]),
        ("rk3566", [0] + [-1] * 8, [0] * 9),
    ],
    ids=CORES,
)
def test_the_emulated_library_accepts_the_core_masks_of_the_soc(board, soc, returned, masks):
    run = board.python("-c", MASKS, soc=soc)
    assert [
        int(line.split()[1]) for line in run.out.splitlines() if line.startswith("returned")
    ] == returned, run.err
    assert [context["mask"] for context in run.report["contexts"]] == masks


def test_two_threads_in_one_context_are_reported(board):
    run = board.python(
        "-c",
        f"""
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from rknnlite.api import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}")
context.init_runtime(core_mask=1)
with ThreadPoolExecutor(2) as threads:
    list(threads.map(lambda _: context.inference([np.zeros((1, 640, 640, 3), np.uint8)]), range(8)))
""",
    )
    assert run.report["shared"] > 0, run.err
    assert run.report["destroyed"] == 0


@pytest.mark.parametrize("fault", ["BOARD_HANG_RUN", "BOARD_STUCK_RUN"])
def test_a_hung_run_is_reported_and_can_be_killed(board, numbered, fault):
    with board.start("python3", "main.py", numbered, "--headless", **{fault: "5"}) as process:
        assert any(f"as {fault}" in line for line in process.stderr)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (board.report()["opened"], board.report()["destroyed"]) == (6, 0)


# Results of wrong_use.py with the vendor's library 1.5.2.
CODES = {
    "outputs_get before any run": 0,
    "inputs: none, two": [0, -5],
    "input: smaller, larger": [-5, 0],
    "input: NCHW": 0,
    "masks": [0, 0, 0, 0, 0, -1, -1, 0, -1, -1, -1, -1, 0],
    "run": [0, 0],
    "wait": -1,
    "outputs": [0, 0, True, True],
    "outputs: fewer, more": [0, -5],
    "outputs: small buffer": [0],
    "outputs: bad index": 0,
    "two dimensions": True,
    "model: range, current": [-6, -6],
    "model: MEM_SIZE": [0, True],
    "model: set_input_shapes": -6,
    "small model: range, current": [-6, -6],
    "small model: MEM_SIZE": [0, True],
    "small model: set_input_shapes": -6,
    "dup_context": [0, 0, 0, 0, True, 0],
    "bad handle": -7,
    "destroy": 0,
    **{f"input: {kind}": [0, 0] for kind in ("u8", "f32", "f16", "i8", "half", "through")},
    "as u8": {"f32": True, "f16": True, "i8": True},
}


def test_the_emulated_library_returns_the_vendors_codes(board):
    found = wrong_use(board, MODEL, SMALL_MODEL)
    model, small, answers = (
        found.pop("model"),
        found.pop("small model"),
        found.pop("answers on cores"),
    )
    assert found == CODES
    assert len(set(answers)) == 5  # five different pictures
    assert [tensor["dims"] for tensor in model["native_outputs"]] == [
        [1, 16, side, side, 16] for side in (80, 40, 20)
    ]
    assert [(tensor["size"], tensor["size_with_stride"]) for tensor in model["outputs"]] == [
        (1632000, 1638400),
        (408000, 491520),
        (102000, 163840),
    ]
    assert small["native_outputs"] == small["outputs"]


def test_the_scales_are_those_of_the_vendors_library(board):
    found = wrong_use(board, "models/yolov8n_emoji.rknn", SMALL_MODEL)
    outputs = {tensor["name"]: tensor for tensor in found["model"]["outputs"]}
    # from the .rknn's tensor table; its list of ranges has 1.2e-7 / 255, because scores were 0 in
    # calibration
    assert outputs["classes32"]["scale"] == pytest.approx(0.00196078, rel=1e-5)
    assert outputs["classes8"]["scale"] == pytest.approx(0.9962960 / 255, rel=1e-5)


AFTER_A_FAILURE = f"""
import numpy as np
from rknnlite.api import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}")
context.init_runtime(core_mask=1)
images = [np.full((1, 640, 640, 3), value, np.uint8) for value in (0, 128, 255)]
first, failed, third = [context.inference([image]) for image in images]
print([bool((first[0] == other[0]).all()) for other in (failed, third)])
"""


def test_the_wheel_returns_the_previous_outputs_after_a_failed_run(board):
    run = board.python("-c", AFTER_A_FAILURE, BOARD_FAIL_RUN="2")
    assert run.out.splitlines()[-1] == "[True, False]", run.err


def test_a_context_destroyed_during_a_run_is_reported(board, tmp_path):
    """The vendor's library frees the memory of the running thread, which then crashes. Ours keeps
    the memory and reports it."""
    run = board.python(
        "-c",
        f"""
import os, threading
import numpy as np
from rknnlite.api import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}")
context.init_runtime(core_mask=1)
thread = threading.Thread(target=context.inference, args=([np.zeros((1, 640, 640, 3), np.uint8)],))
thread.start()
while not os.path.exists(os.environ["BOARD_REPORT"]):  # written before a run hangs
    assert thread.is_alive()
context.release()
print("in work", thread.is_alive())
thread.join()
""",
        BOARD_HANG_RUN="1",
        BOARD_HANG_MS="3000",
    )
    assert run.out.splitlines()[-1] == "in work True", run.err
    assert run.report["destroyed_in_use"] == 1


def test_the_driver_chooses_the_core_after_a_refused_mask(board):
    run = board.python(
        "-c",
        f"""
import ctypes
library, handle = ctypes.CDLL("librknnrt.so"), ctypes.c_uint64()
model = open("{MODEL}", "rb").read()
library.rknn_init(ctypes.byref(handle), model, len(model), 0, None)
set_core_mask = library.rknn_set_core_mask
print(set_core_mask(handle, 2), set_core_mask(handle, 5), library.rknn_destroy(handle),
      library.rknn_run(handle, None))
""",
    )
    assert (run.out.split(), run.report["contexts"][0]["mask"]) == (["0", "-1", "0", "-7"], 0)
    assert run.report["stale"] == 1
