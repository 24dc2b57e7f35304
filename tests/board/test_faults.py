"""What goes wrong on a board, and what the person there is told, with the wheel and without it, over both libraries.

README.md beside this file says how a fault is asked for.
"""
import os
import re
import signal

import pytest
from board_parts import (
    EMULATED,
    EVERY,
    FRAMES,
    MODEL,
    NONE,
    OLDER,
    REAL,
    ROOT,
    SETUPS,
    WHEEL,
    ends_for_a_dead_npu,
    ends_in_a_sentence,
    made_for,
    needs_tools,
    nothing_was_used_wrongly,
    over,
    raised,
    shown,
)

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

WHOLE = (ROOT / MODEL).read_bytes()
MEMORY_USED_UP = "the NPU's memory is used up: fewer contexts, main.py's --threads or TPEs."


# ---- that cannot be run ----

@over(f"emulated, {WHEEL}", f"real, {NONE}")
def test_missing_driver_ends_in_a_sentence(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", options=["--no-npu"])
    assert ends_in_a_sentence(run, 2), run.err
    assert f"context 1 of 6 could not open {MODEL}" in run.err
    # with the wheel it is the pool that finds what is missing
    wanted = r"driver's device\)\.$" if board.has_wheel else "driver's device cannot be opened: no such driver"
    assert re.search(wanted, run.err.splitlines()[-1])
    assert run.report is None or run.report["opened"] == 0


# Without librknnrt.so it is all one whose it would be; where there is no wheel either, main.py runs on the CPU.
@over(f"emulated, {WHEEL}", of=[name for name in EMULATED if "no wheel" not in name and "Python 3.13" not in name])
def test_missing_library_ends_in_a_sentence(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", options=["--no-runtime"])
    assert ends_in_a_sentence(run, 2), run.err
    assert f"context 1 of 6 could not open {MODEL}" in run.err and "lacks /usr/lib/librknnrt.so" in run.err
    run = board.run("python3", "main.py", numbered, "--headless", "--runtime", "library", options=["--no-runtime"])
    assert ends_in_a_sentence(run, 2), run.err
    assert "librknnrt.so cannot be loaded" in run.err.splitlines()[-1]


# Most of these are refused before any library sees them.
@over(f"real, {NONE}", of=[f"emulated, {WHEEL}"])
@pytest.mark.parametrize("content", [None, b"", b"not a model", b"RKNN" + bytes(4000), WHOLE[:1500000],
                                     WHOLE[:-100] + bytes(100)],
                         ids=["missing", "empty", "text", "zeros", "cut", "damaged"])
def test_bad_model_ends_in_a_sentence(board, numbered, tmp_path, content):
    model = tmp_path / "model.rknn"
    if content is not None:
        model.write_bytes(content)
    run = board.run("python3", "main.py", numbered, "--headless", "--model", model)
    assert ends_in_a_sentence(run, 2), run.err
    assert str(model) in run.err.splitlines()[-1]
    assert run.report is None or run.report["opened"] == 0


@over(f"emulated, {WHEEL}", f"real, {NONE}")
def test_model_for_another_soc_ends_in_a_sentence(board, numbered, tmp_path):
    model = made_for("rk3576", tmp_path)
    run = board.run("python3", "main.py", numbered, "--headless", "--model", model)
    assert ends_in_a_sentence(run, 2), run.err
    assert f"{model}: is made for the rk3576, and this board has an rk3588" in run.err.splitlines()[-1]
    assert run.report is None or run.report["opened"] == 0


# The emulated library gives any code that is asked for; the vendor's 1.5.2 was seen to give -1, -4, -5 and -6.
@pytest.mark.parametrize("code, reason", [
    (-13, "RKNN_ERR_TARGET_PLATFORM_UNMATCH): the model is made for another SoC: convert it for this one."),
    (-99, "an unknown code): look at the library's own message above."),
    (-3, "RKNN_ERR_DEVICE_UNAVAILABLE): the kernel's rknpu driver is missing or too old."),
    (-10, "RKNN_ERR_DEVICE_UNMATCH): driver and library do not fit: update librknnrt.so or the kernel."),
][:4 if EVERY else 2], ids=lambda value: str(value).split(")")[0])
@over(f"emulated, {NONE}", of=[f"emulated, {NONE}"])  # the wheel says it in its own words
def test_the_librarys_codes_are_sentences(board, numbered, code, reason):
    run = board.run("python3", "main.py", numbered, "--headless", BOARD_FAIL_INIT="1-", BOARD_FAIL_CODE=str(code))
    assert ends_in_a_sentence(run, 2), run.err
    assert run.err.splitlines()[-1] == (f"context 1 of 6 could not open {MODEL}: rknn_init returned {code} ({reason}")


@over(f"emulated, {WHEEL}", f"emulated, {NONE}", of=EMULATED)  # the vendor's fails for want of memory: below
def test_contexts_before_a_failed_one_are_destroyed(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", "--threads", "3", BOARD_FAIL_INIT="2-")
    assert ends_in_a_sentence(run, 2), run.err
    assert "context 2 of 3" in run.err
    assert board.has_wheel or run.err.endswith(f"(RKNN_ERR_MALLOC_FAIL): {MEMORY_USED_UP}\n")
    assert run.report["opened"] == 1 and nothing_was_used_wrongly(run.report)


@over(f"real, {WHEEL}", f"real, {NONE}", of=REAL)  # the emulated library has no NPU memory: above
def test_memory_that_is_used_up_ends_in_a_sentence(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", BOARD_MEMORY="20000000")
    assert ends_in_a_sentence(run, 2), run.err
    assert f"context 3 of 6 could not open {MODEL}" in run.err
    assert board.has_wheel or run.err.endswith(MEMORY_USED_UP + "\n")
    assert run.report["opened"] > 0 and nothing_was_used_wrongly(run.report)


@over(f"emulated, {WHEEL}")
def test_wrong_input_size_ends_in_a_sentence(board, numbered, tmp_path):
    func = tmp_path / "wrong.py"
    func.write_text("import numpy as np\nfrom func import infer\n\n\n"
                    "def myFunc(rknn_lite, IMG):\n    return infer(rknn_lite, np.zeros((320, 320, 3), np.uint8))\n")
    run = board.run("python3", "main.py", numbered, "--headless", "--func", func)
    assert ends_in_a_sentence(run, 2), run.err
    assert "(1, 320, 320, 3)" in run.err.splitlines()[-1]
    assert run.report["opened"] == 6 and nothing_was_used_wrongly(run.report)


# ---- an NPU that fails, in main.py ----

@over(f"emulated, {WHEEL}", f"real, {WHEEL}", of=SETUPS)
def test_failed_run_costs_its_frame_only(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi", BOARD_FAIL_RUN="20")
    assert run.code == 3, run.err
    reason = ("the runtime's own message stands above" if board.has_wheel else
              r"rknn_run returned -1 \(RKNN_ERR_FAIL\): the NPU or its driver failed: look at dmesg")
    assert re.search(rf"context \d of 6, core \d: inference failed on the NPU, {reason}\.\n", run.err)
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - 1
    assert (run.report["runs"], run.report["failed"]) == (FRAMES, 1)
    assert run.report["opened"] == 6 and nothing_was_used_wrongly(run.report)


@over(f"emulated, {WHEEL}")
def test_several_failed_runs_cost_their_frames_only(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi",
                    BOARD_FAIL_RUN="1,7-9,30-33,60")
    assert run.code == 3, run.err
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - 9


@over(f"emulated, {WHEEL}", f"real, {WHEEL}", of=SETUPS)
def test_dead_npu_ends_every_stream(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, numbered, "--headless", "--save", tmp_path / "saved.avi",
                    BOARD_FAIL_RUN="20-")
    assert ends_for_a_dead_npu(run), run.err
    assert run.report["runs"] < 2 * FRAMES
    assert len(shown(tmp_path / "saved_1.avi")) + len(shown(tmp_path / "saved_2.avi")) <= 19
    assert run.report["opened"] == 6 and nothing_was_used_wrongly(run.report)


@over(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_frames_on_a_hung_core_fail_and_the_others_come_out(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi",
                    BOARD_HANG_CORE="1", BOARD_HANG_MS="1000")
    assert run.code == 3, run.err
    assert set(re.findall(r"context \d of 6, (core \d): inference failed", run.err)) == {"core 1"}
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - run.report["failed"] > FRAMES / 2


@over(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_hung_npu_ends_the_stream(board, numbered):
    run = board.run("python3", "main.py", numbered, "--headless", BOARD_HANG_RUN="20-")
    assert ends_for_a_dead_npu(run), run.err
    assert run.report["runs"] < FRAMES


@over(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_context_that_never_returns_is_named_and_the_others_go_on(board, numbered, tmp_path):
    run = board.run("python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi", BOARD_STUCK_RUN="5")
    assert run.code == 3, run.err
    assert re.search(r"context \d of 6, core \d hangs", run.err)
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - 1
    assert (run.report["opened"], run.report["destroyed_in_use"]) == (6, 0)
    # the vendor's library keeps the first context as long as one that shares its weights
    kept = board.library == "real" and not board.has_wheel
    assert run.report["destroyed"] in ((4, 5) if kept else (5,))


@over(f"emulated, {WHEEL}", f"real, {WHEEL}", of=SETUPS)
def test_interrupt_destroys_every_context_and_gives_back_every_byte(board):
    with board.start("env", "PYTHONUNBUFFERED=1", "python3", "main.py", "models/demo.mp4", "--headless") as process:
        try:
            while "last 30 frames" not in process.stdout.readline():
                assert process.poll() is None, process.stderr.read()
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
    report = board.report()
    assert (process.returncode, report["opened"]) == (130, 6) and nothing_was_used_wrongly(report), err
    assert (report["memory_most"] > 0) == (board.library == "real")
    assert "FPS on average" in out


# ---- the same in a program of one's own ----

@over(f"emulated, {WHEEL}", f"emulated, {OLDER}", f"real, {WHEEL}", f"real, {OLDER}", f"real, {NONE}", of=SETUPS)
def test_failed_run_raises_at_its_frame(board, tmp_path):
    run, ((place, kind, fatal, text),) = raised(board, tmp_path, 1, BOARD_FAIL_RUN="20")
    assert (place, kind, fatal) == (19, "NPUError", False)
    assert text.startswith("context 1 of 1, core 0: ")
    assert (run.report["runs"], run.report["opened"]) == (24, 1) and nothing_was_used_wrongly(run.report)


@pytest.mark.parametrize("library", ["emulated", "real"][:2 if EVERY else 1])
def test_failed_run_raises_with_the_oldest_wheel_there_is(box, tmp_path, library):
    _, ((place, kind, *_),) = raised(box, tmp_path, 1, options=("--library", library, "--wheel", "2.3.0"),
                                     BOARD_FAIL_RUN="20")
    assert (place, kind) == (19, "NPUError")


@over(f"emulated, {WHEEL}")
def test_each_failed_run_raises_and_names_its_context(board, tmp_path):
    _, errors = raised(board, tmp_path, 6, BOARD_FAIL_RUN="3,10-12")
    assert [(kind, fatal) for _, kind, fatal, _ in errors] == [("NPUError", False)] * 4
    cores = {(int(context) - 1) % 3 - int(core) for *_, text in errors
             for context, core in re.findall(r"^context (\d) of 6, core (\d): ", text)}
    assert cores == {0}, errors


@over(f"emulated, {WHEEL}", f"real, {NONE}")
def test_dead_npu_is_fatal_from_the_tenth_failure_on(board, tmp_path):
    _, errors = raised(board, tmp_path, 1, BOARD_FAIL_RUN="5-")
    assert [(place, kind) for place, kind, *_ in errors] == [(place, "NPUError") for place in range(4, 24)]
    assert [fatal for _, _, fatal, _ in errors] == [False] * 9 + [True] * 11


@over(f"emulated, {WHEEL}")
def test_npu_that_answers_again_is_not_dead(board, tmp_path):
    _, errors = raised(board, tmp_path, 1, BOARD_FAIL_RUN="1-9,11-19")
    assert [place for place, *_ in errors] == [*range(9), *range(10, 19)]
    assert not any(fatal for _, _, fatal, _ in errors)


@over(f"emulated, {WHEEL}", f"real, {NONE}")
def test_wrong_input_size_raises_at_its_frame(board, tmp_path):
    run, ((place, kind, _, text),) = raised(board, tmp_path, 1, "small")
    assert place == 5 and kind != "NPUError" and "(1, 320, 320, 3)" in text
    assert (run.report["runs"], run.report["opened"]) == (23, 1) and nothing_was_used_wrongly(run.report)
