"""What goes wrong on a board, and what the person there is told: the emulated library fails as the vendor's does.

README.md beside this file says how a fault is asked for.
"""
import os
import re
import signal

import pytest
from board_parts import FRAMES, MODEL, ends_for_a_dead_npu, ends_in_a_sentence, needs_tools, raised, shown

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]


# ---- that cannot be run ----

@pytest.mark.parametrize("option", ["--no-runtime", "--no-npu"])
def test_missing_driver_ends_in_a_sentence(board, numbered, option):
    run = board.run("python3", "main.py", numbered, "--headless", options=[option])
    assert ends_in_a_sentence(run, 2), run.err
    assert f"context 1 of 6 could not open {MODEL}" in run.err
    assert run.report is None or run.report["opened"] == 0


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"RKNN" + bytes(4000)],
                         ids=["missing", "empty", "text", "damaged"])
def test_bad_model_ends_in_a_sentence(board, numbered, tmp_path, content):
    model = tmp_path / "model.rknn"
    if content is not None:
        model.write_bytes(content)
    run = board.run("python3", "main.py", numbered, "--headless", "--model", model)
    assert ends_in_a_sentence(run, 2), run.err
    assert str(model) in run.err.splitlines()[-1]
    assert run.report is None or run.report["opened"] == 0


def test_contexts_before_a_failed_one_are_destroyed(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", "--threads", "3", BOARD_FAIL_INIT="2")
    assert ends_in_a_sentence(run, 2), run.err
    assert "context 2 of 3" in run.err
    assert (run.report["inits"], run.report["opened"], run.report["destroyed"]) == (2, 1, 1)


def test_wrong_input_size_ends_in_a_sentence(board, numbered, tmp_path):
    func = tmp_path / "wrong.py"
    func.write_text("import numpy as np\nfrom func import infer\n\n\n"
                    "def myFunc(rknn_lite, IMG):\n    return infer(rknn_lite, np.zeros((320, 320, 3), np.uint8))\n")
    run = board.run("python3", "main.py", numbered, "--headless", "--func", func)
    assert ends_in_a_sentence(run, 2), run.err
    assert "(1, 320, 320, 3)" in run.err.splitlines()[-1]
    assert run.report["opened"] == run.report["destroyed"] == 6


# ---- an NPU that fails, in main.py ----

def test_failed_run_costs_its_frame_only(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi", BOARD_FAIL_RUN="20")
    assert run.code == 3, run.err
    assert re.search(r"context \d of 6, core \d: inference failed", run.err)
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - 1
    assert (run.report["runs"], run.report["failed"]) == (FRAMES, 1)
    assert run.report["opened"] == run.report["destroyed"] == 6


def test_several_failed_runs_cost_their_frames_only(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi",
                    BOARD_FAIL_RUN="1,7-9,30-33,60")
    assert run.code == 3, run.err
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - 9


def test_dead_npu_ends_every_stream(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, numbered, "--headless", "--save", tmp_path / "saved.avi",
                    BOARD_FAIL_RUN="20-")
    assert ends_for_a_dead_npu(run), run.err
    assert run.report["runs"] < FRAMES  # of 2 * FRAMES
    assert len(shown(tmp_path / "saved_1.avi")) + len(shown(tmp_path / "saved_2.avi")) <= 19
    assert run.report["opened"] == run.report["destroyed"] == 6
    assert run.report["destroyed_in_use"] == run.report["stale"] == run.report["shared"] == 0


def test_frames_on_a_hung_core_fail_and_the_others_come_out(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi",
                    BOARD_HANG_CORE="1", BOARD_HANG_MS="1000")
    assert run.code == 3, run.err
    assert set(re.findall(r"context \d of 6, (core \d): inference failed", run.err)) == {"core 1"}
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - run.report["failed"] > FRAMES / 2


def test_hung_npu_ends_the_stream(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", BOARD_HANG_RUN="20-")
    assert ends_for_a_dead_npu(run), run.err
    assert run.report["runs"] < FRAMES


def test_context_that_never_returns_is_named_and_the_others_go_on(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi", BOARD_STUCK_RUN="5")
    assert run.code == 3, run.err
    assert re.search(r"context \d of 6, core \d hangs", run.err)
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - 1
    assert (run.report["opened"], run.report["destroyed"], run.report["destroyed_in_use"]) == (6, 5, 0)


def test_interrupt_destroys_every_context(board):
    with board.start("env", "PYTHONUNBUFFERED=1", "python3", "main.py", "models/demo.mp4", "--headless") as process:
        try:
            while "last 30 frames" not in process.stdout.readline():
                assert process.poll() is None, process.stderr.read()
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
    report = board.report()
    assert (process.returncode, report["opened"], report["destroyed"]) == (130, 6, 6), err
    assert report["destroyed_in_use"] == report["stale"] == report["shared"] == 0
    assert "FPS on average" in out


# ---- the same in a program of one's own ----

@pytest.mark.parametrize("wheel", ["", "2.3.2", "2.3.0"])
def test_failed_run_raises_at_its_frame(board, tmp_path, wheel):
    run, ((place, kind, fatal, text),) = raised(board, tmp_path, 1, options=("--wheel", wheel), BOARD_FAIL_RUN="20")
    assert (place, kind, fatal) == (19, "NPUError", False)
    assert text.startswith("context 1 of 1, core 0: ")
    assert (run.report["runs"], run.report["opened"], run.report["destroyed"]) == (24, 1, 1)


def test_each_failed_run_raises_and_names_its_context(board, tmp_path):
    _, errors = raised(board, tmp_path, 6, BOARD_FAIL_RUN="3,10-12")
    assert [(kind, fatal) for _, kind, fatal, _ in errors] == [("NPUError", False)] * 4
    cores = {(int(context) - 1) % 3 - int(core) for *_, text in errors
             for context, core in re.findall(r"^context (\d) of 6, core (\d): ", text)}
    assert cores == {0}, errors


def test_dead_npu_is_fatal_from_the_tenth_failure_on(board, tmp_path):
    _, errors = raised(board, tmp_path, 1, BOARD_FAIL_RUN="5-")
    assert [(place, kind) for place, kind, *_ in errors] == [(place, "NPUError") for place in range(4, 24)]
    assert [fatal for _, _, fatal, _ in errors] == [False] * 9 + [True] * 11


def test_npu_that_answers_again_is_not_dead(board, tmp_path):
    _, errors = raised(board, tmp_path, 1, BOARD_FAIL_RUN="1-9,11-19")
    assert [place for place, *_ in errors] == [*range(9), *range(10, 19)]
    assert not any(fatal for _, _, fatal, _ in errors)


def test_wrong_input_size_raises_at_its_frame(board, tmp_path):
    run, ((place, kind, _, text),) = raised(board, tmp_path, 1, "small")
    assert place == 5 and kind != "NPUError" and "(1, 320, 320, 3)" in text
    assert (run.report["runs"], run.report["opened"], run.report["destroyed"]) == (23, 1, 1)
