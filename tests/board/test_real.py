"""The vendor's own librknnrt.so (1.5.2, from PyPI): only the kernel driver and the NPU's arithmetic
are emulated (see README.md in this folder). The other tests use it, too.
"""

import pytest
from board_parts import (
    EVERY,
    MODELS,
    NONE,
    OLDER,
    SMALL_MODEL,
    WHEEL,
    needs_tools,
    was_used_correctly,
    with_setups,
    wrong_use,
)

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

# The wheel reads the SoC from the device tree; the library always has an RK3588's NPU.
MASKS_OF_THE_WHEEL = f"""
import numpy as np
from rknnlite.api import RKNNLite
for mask in 0, 1, 2, 3, 4, 5, 7, 0xffff:
    context = RKNNLite()
    assert context.load_rknn("{SMALL_MODEL}") == 0
    if context.init_runtime(core_mask=mask) == 0:
        context.inference([np.zeros((1, 224, 224, 3), np.uint8)])
    context.release()
"""


# without the wheel: test_library.py
@with_setups(f"real, {WHEEL}", of=[f"real, {WHEEL}", f"real, {OLDER}"])
@pytest.mark.parametrize(
    "soc, masks",
    [
        ("rk3588", [0, 1, 2, 3, 4, None, 7, 7]),
        ("rk3576", [0, 1, 2, 3, 1, None, 3, 3]),
        ("rk3566", [0] + [None] * 7),
    ][: 3 if EVERY else 1],
)
def test_runs_use_the_core_masks_that_the_wheel_passes(board, soc, masks):
    run = board.python("-c", MASKS_OF_THE_WHEEL, soc=soc)
    assert run.code == 0, run.err
    assert [
        context["mask"] if context["runs"] else None for context in run.report["contexts"]
    ] == masks
    for context in run.report["contexts"]:
        assert not any(
            count
            for mask, count in enumerate(context["submits"])
            if mask not in (context["mask"], 1)
        )
    assert was_used_correctly(run.report)


# ---- compared with the emulated library ----


@pytest.mark.parametrize("name", MODELS)
def test_the_emulated_library_answers_like_the_vendors(box, name):
    emulated, real = (
        wrong_use(box.with_setup(setup), MODELS[name][0], SMALL_MODEL)
        for setup in (f"emulated, {NONE}", f"real, {WHEEL}")
    )
    assert emulated == real
