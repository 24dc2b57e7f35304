"""main.py --doctor on the emulated board. tests/test_doctor.py tests it without one."""

import pytest
from board_parts import NONE, WHEEL, needs_tools, only_in_full_matrix, with_setups

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, only_in_full_matrix, pytest.mark.slow]


@with_setups(f"emulated, {WHEEL}", of=[f"emulated, {NONE}"])
def test_the_doctor_names_the_core_that_fails(board):
    command = "python3 main.py --doctor --model models/resnet18_emoji.rknn".split()
    run = board.run(*command, BOARD_HANG_CORE="1", BOARD_HANG_MS="1000")
    screen = " ".join(run.out.split())
    assert run.code == 0, run.out + run.err
    runtime = "wheel" if board.has_wheel else "library"
    assert screen.count(f"--runtime {runtime}, librknnrt 2.5.0, driver 0.9.8") == 2
    assert "NPU core 1 fails -> The driver does not accept runs" in screen
    assert "contexts 6 at once" in screen and "The NPU works except core 1" in screen
