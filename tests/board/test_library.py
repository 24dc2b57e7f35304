"""runtimes/librknnrt.py in the box: the wheel's results without the wheel, over the same library."""
import json

import pytest
from board_parts import FRAMES, MODEL, needs_tools

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

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
print(json.dumps(found))
"""


@pytest.mark.parametrize("library", ["emulated", "real"])
def test_results_are_the_wheels_bit_for_bit_and_raw_ones_to_rounding(board, library):
    run = board.run("python3", "-c", BOTH, options=["--library", library])
    assert run.code == 0, run.err
    for model in json.JSONDecoder().raw_decode(run.out, run.out.index('{"models'))[0].values():
        assert model["equal"] and model["kinds"] == ["int8"] and model["off"] < 0.01
        assert model["shares"] == [False, True]
        assert "takes an input of shape (1, 640, 640, 3), not uint8 (1, 320, 640, 3)" in model["wrong"][0]
    if library == "emulated":
        assert (run.report["opened"], run.report["destroyed"], run.report["shared"]) == (6, 6, 0)


def test_main_runs_without_the_wheel(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", "--runtime", "library")
    assert run.code == 0, run.err
    assert f"{FRAMES} frames" in run.out and "runs without rknn-toolkit-lite2" in run.err
    assert [context["mask"] for context in run.report["contexts"]] == [1, 2, 4] * 2
    assert (run.report["opened"], run.report["destroyed"], run.report["shared"]) == (6, 6, 0)


def test_a_failed_run_is_noticed_by_the_class_itself(board):
    run = board.run("python3", "-c", f"""
import numpy as np
from runtimes.librknnrt import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}"), context.init_runtime(core_mask=1)
image = np.zeros((1, 640, 640, 3), np.uint8)
print([context.inference([image]) is None for _ in range(4)], context.error)
context.release()
""", BOARD_FAIL_RUN="3")
    assert "[False, False, True, False] None" in run.out, run.err


def test_a_second_thread_in_a_context_is_refused(board):
    run = board.run("python3", "-c", f"""
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
""")
    assert "another thread is in a call with this context" in run.out, run.err
    assert run.report["shared"] == 0


@pytest.mark.parametrize("options, reason", [(["--no-runtime"], "librknnrt.so cannot be loaded"),
                                             (["--no-npu"], "rknn_init returned -")])
def test_what_is_missing_is_a_sentence(board, numbered, options, reason):
    run = board.run("python3", "main.py", numbered, "--headless", "--runtime", "library", options=options)
    assert run.code == 2 and reason in run.err.splitlines()[-1], run.err
