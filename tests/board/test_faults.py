"""Faults of a board and their messages, with and without the wheel, with both libraries. README.md
in this folder says how to request a fault.
"""

import re

import pytest
from board_parts import (
    ALL,
    EMULATED,
    EVERY,
    FRAMES,
    MODEL,
    NONE,
    OLDER,
    OLDEST,
    REAL,
    ROOT,
    SETUPS,
    SHORT,
    WHEEL,
    ends_in_a_sentence,
    failed_frames,
    model_for,
    needs_tools,
    numbers_shown,
    reports_a_dead_npu,
    was_used_correctly,
    with_setups,
)

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

WHOLE = (ROOT / MODEL).read_bytes()
MAIN = "python3", "main.py", "--headless"
MEMORY_USED_UP = "the NPU's memory is used up: use fewer contexts (main.py's --threads, or TPEs)."


# ---- runs that cannot start ----


@with_setups(f"emulated, {WHEEL}", f"real, {NONE}")
def test_a_missing_driver_is_reported_in_one_sentence(board, short):
    run = board.run(*MAIN, short, options=["--no-npu"])
    assert ends_in_a_sentence(run, 2), run.err
    assert re.search(rf"context 1 of 6, core \d could not open {MODEL}", run.err)
    # with the wheel, the pool finds out what is missing
    wanted = (
        r"driver's device\)\.$"
        if board.has_wheel
        else "driver's device cannot be opened: this kernel lacks the driver"
    )
    assert re.search(wanted, run.err.splitlines()[-1])
    assert run.report is None or run.report["opened"] == 0


# Run main.py several times in one process, because a start under emulation takes seconds.
EACH = """
import sys
import main
def run(*arguments):
    sys.argv[1:] = "--headless", *arguments
    try:
        main.main()
    except SystemExit as end:
        print("exit code", end.code, file=sys.stderr)
"""
BOTH_RUNTIMES = (
    EACH
    + """
video = sys.argv[1]
for more in (), ("--runtime", "library"):
    run(video, *more)
"""
)


# Without librknnrt.so both libraries are the same. Without the wheel, too, main.py runs on the CPU.
@with_setups(
    f"emulated, {WHEEL}",
    of=[name for name in EMULATED if "no wheel" not in name and "Python 3.13" not in name],
)
def test_a_missing_library_is_reported_in_one_sentence(board, short):
    run = board.run("python3", "-c", BOTH_RUNTIMES, short, options=["--no-runtime"])
    assert run.code == 0 and 'main.py", line' not in run.err, run.err
    wheel, library, rest = run.err.split("exit code 2\n")
    assert re.search(rf"context 1 of 6, core \d could not open {MODEL}", wheel)
    assert "lacks /usr/lib/librknnrt.so" in wheel
    assert "librknnrt.so cannot be loaded" in library.splitlines()[-1]
    assert wheel.endswith(".\n") and library.endswith(".\n") and not rest


BAD_MODELS = {
    "empty": b"",
    "text": b"not a model",
    "zeros": b"RKNN" + bytes(4000),
    "cut": WHOLE[:1500000],
    "damaged": WHOLE[:-100] + bytes(100),
}
EACH_MODEL = (
    EACH
    + """
for model in sys.argv[1:]:
    run("models/demo.mp4", "--model", model)
"""
)


# Most of these are refused before a library reads them.
@with_setups(f"real, {NONE}", of=[f"emulated, {WHEEL}"])
def test_invalid_models_are_reported_in_one_sentence(board, tmp_path):
    models = [tmp_path / f"{name}.rknn" for name in ("missing", *BAD_MODELS)]
    for model, content in zip(models[1:], BAD_MODELS.values()):
        model.write_bytes(content)
    run = board.python("-c", EACH_MODEL, *models)
    assert run.code == 0 and "Traceback" not in run.err, run.err
    *printed, rest = run.err.split("exit code 2\n")
    assert (len(printed), rest) == (len(models), ""), run.err
    for model, text in zip(models, printed):
        last = text.splitlines()[-1]
        assert str(model) in last and last.endswith("."), text
    assert run.report is None or run.report["opened"] == 0


@with_setups(f"real, {NONE}")
def test_a_model_for_another_soc_is_reported_in_one_sentence(board, short, tmp_path):
    model = model_for("rk3576", tmp_path)
    run = board.main_py(short, "--model", model)
    assert ends_in_a_sentence(run, 2), run.err
    assert f"{model}: made for the rk3576, but this board has an rk3588" in run.err.splitlines()[-1]
    assert run.report is None or run.report["opened"] == 0


# The emulated library returns any requested code; the vendor's 1.5.2 is known to return -1, -4, -5
# and -6.
@pytest.mark.parametrize(
    "code, reason",
    [
        (
            -13,
            "RKNN_ERR_TARGET_PLATFORM_UNMATCH): the model is made for another SoC: "
            "convert it for this one.",
        ),
        (-99, "an unknown code): look at the library's own message above."),
        (-3, "RKNN_ERR_DEVICE_UNAVAILABLE): the kernel's rknpu driver is missing or too old."),
        (
            -10,
            "RKNN_ERR_DEVICE_UNMATCH): driver and library do not fit: "
            "update librknnrt.so or the kernel.",
        ),
    ][: 4 if EVERY else 2],
    ids=lambda value: str(value).split(")")[0],
)
@with_setups(f"emulated, {NONE}", of=[f"emulated, {NONE}"])  # the wheel has its own messages
def test_error_codes_of_the_library_are_explained(board, short, code, reason):
    run = board.main_py(short, BOARD_FAIL_INIT="1-", BOARD_FAIL_CODE=str(code))
    assert ends_in_a_sentence(run, 2), run.err
    assert re.sub(r", core \d", "", run.err.splitlines()[-1]) == (
        f"context 1 of 6 could not open {MODEL}: rknn_init returned {code} ({reason}"
    )


# the vendor's library can fail for lack of memory only: below
@with_setups(f"emulated, {WHEEL}", f"emulated, {NONE}", of=EMULATED)
def test_contexts_opened_before_a_failed_one_are_destroyed(board, short):
    run = board.main_py(short, "--threads", "3", BOARD_FAIL_INIT="2-")
    assert ends_in_a_sentence(run, 2), run.err
    assert "context 2 of 3" in run.err
    assert board.has_wheel or run.err.endswith(f"(RKNN_ERR_MALLOC_FAIL): {MEMORY_USED_UP}\n")
    assert run.report["opened"] == 1 and was_used_correctly(run.report)


# the emulated library has no NPU memory; see above
@with_setups(f"real, {WHEEL}", of=REAL)
def test_exhausted_npu_memory_is_reported_in_one_sentence(board, short):
    run = board.main_py(short, BOARD_MEMORY="20000000")
    assert ends_in_a_sentence(run, 2), run.err
    assert re.search(rf"context 3 of 6, core \d could not open {MODEL}", run.err)
    assert board.has_wheel or run.err.endswith(MEMORY_USED_UP + "\n")
    assert run.report["opened"] > 0 and was_used_correctly(run.report)


@with_setups(f"emulated, {WHEEL}")
def test_a_wrong_input_size_is_reported_in_one_sentence(board, short, tmp_path):
    func = tmp_path / "wrong.py"
    func.write_text(
        "import numpy as np\nfrom vision.inference import infer\n\n\n"
        "def myFunc(rknn_lite, IMG):\n"
        "    return infer(rknn_lite, np.zeros((320, 320, 3), np.uint8))\n"
    )
    run = board.main_py(short, "--func", func)
    assert ends_in_a_sentence(run, 2), run.err
    assert "(1, 320, 320, 3)" in run.err.splitlines()[-1]
    assert run.report["opened"] == 6 and was_used_correctly(run.report)


# ---- an NPU that fails, in main.py ----


@with_setups(f"real, {WHEEL}", of=SETUPS)
def test_a_frame_whose_run_failed_is_processed_on_another_core(board, short, tmp_path):
    run = board.main_py(short, "--save", tmp_path / "saved.avi", BOARD_FAIL_RUN="8")
    assert run.code == 0, run.err
    reason = (
        "see the message above"
        if board.has_wheel
        else r"rknn_run returned -1 \(RKNN_ERR_FAIL\): the NPU or its driver failed: look at dmesg"
    )
    assert re.search(
        rf"context \d of 6, core \d: a run failed on the NPU \({reason}\). Its core pauses", run.err
    )
    assert len(numbers_shown(tmp_path / "saved.avi")) == SHORT
    assert (run.report["runs"], run.report["failed"]) == (SHORT + 1, 1)
    assert run.report["opened"] == 6 and was_used_correctly(run.report)


@with_setups(f"emulated, {WHEEL}")
def test_several_failed_runs_lose_at_most_their_own_frames(board, short, tmp_path):
    run = board.main_py(short, "--save", tmp_path / "saved.avi", BOARD_FAIL_RUN="1,4-5,8-10,12")
    lost = SHORT - len(numbers_shown(tmp_path / "saved.avi"))
    assert lost <= 7 - 2  # two cores pause after their first failure
    assert run.code == (3 if lost else 0), run.err


@with_setups(f"emulated, {WHEEL}", of=SETUPS)
def test_a_dead_npu_ends_every_stream(board, numbered, tmp_path):
    run = board.main_py(numbered, numbered, "--save", tmp_path / "saved.avi", BOARD_FAIL_RUN="10-")
    assert reports_a_dead_npu(run), run.err
    assert run.report["runs"] < 2 * FRAMES
    assert (
        len(numbers_shown(tmp_path / "saved_1.avi")) + len(numbers_shown(tmp_path / "saved_2.avi"))
        <= 9
    )
    assert run.report["opened"] == 6 and was_used_correctly(run.report)


@with_setups(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_frames_on_a_hung_core_are_processed_on_other_cores(board, short, tmp_path):
    run = board.main_py(
        short, "--save", tmp_path / "saved.avi", BOARD_HANG_CORE="1", BOARD_HANG_MS="1000"
    )
    assert run.code == 0, run.err
    assert set(re.findall(r"context \d of 6, (core \d): a run failed", run.err)) == {"core 1"}
    assert len(numbers_shown(tmp_path / "saved.avi")) == SHORT and 0 < run.report["failed"] <= 2


@with_setups(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_a_hung_npu_ends_the_stream(board, short):
    run = board.main_py(short, BOARD_HANG_RUN="4-", BOARD_HANG_MS="1000")
    assert reports_a_dead_npu(run), run.err
    assert run.report["runs"] - run.report["failed"] == 3


@with_setups(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_a_context_that_never_returns_is_named_and_the_others_continue(board, short, tmp_path):
    run = board.main_py(short, "--save", tmp_path / "saved.avi", BOARD_STUCK_RUN="5")
    assert run.code == 3, run.err
    assert re.search(r"context \d of 6, core \d hangs", run.err)
    assert len(numbers_shown(tmp_path / "saved.avi")) == SHORT - 1
    assert (run.report["opened"], run.report["destroyed_in_use"]) == (6, 0)
    # the vendor's library keeps the first context as long as another one shares its weights
    kept = board.library == "real" and not board.has_wheel
    assert run.report["destroyed"] in ((4, 5) if kept else (5,))


@with_setups(f"real, {WHEEL}", of=SETUPS)
def test_ctrl_c_destroys_every_context_and_frees_all_memory(board, short, tmp_path):
    func = tmp_path / "pressed.py"
    func.write_text(
        "import os, signal\nimport func\n\npressed = []\n\n\n"
        "def myFunc(rknn_lite, IMG):\n"
        "    if not pressed:\n"
        "        pressed.append(os.kill(os.getpid(), signal.SIGINT))\n"
        "    return func.myFunc(rknn_lite, IMG)\n"
    )
    run = board.main_py(short, "--loop", "--func", func)
    assert run.code == 130 and "FPS on average" in run.out, run.err
    assert run.report["opened"] == 6 and was_used_correctly(run.report)
    assert (run.report["memory_most"] > 0) == (board.library == "real")


# ---- the same in a user's program ----


@with_setups(
    *(f"emulated, {OLDER}", f"emulated, {OLDEST}", f"real, {WHEEL}", f"real, {NONE}"), of=ALL
)
def test_a_failed_run_raises_at_its_frame(board, tmp_path):
    run, ((place, kind, fatal, text),) = failed_frames(board, tmp_path, 1, BOARD_FAIL_RUN="20")
    assert (place, kind, fatal) == (19, "NPUError", False)
    assert re.match(r"context 1 of 1, core \d: ", text)
    assert (run.report["runs"], run.report["opened"]) == (24, 1) and was_used_correctly(run.report)


@with_setups(f"emulated, {WHEEL}")
def test_a_failed_run_raises_only_if_no_other_core_works(board, tmp_path):
    _, errors = failed_frames(board, tmp_path, 6, BOARD_FAIL_RUN="3")
    assert errors == []
    _, errors = failed_frames(board, tmp_path, 6, BOARD_FAIL_RUN="3-12")
    assert errors and {kind for _, kind, _, _ in errors} == {"NPUError"}


@with_setups(f"emulated, {WHEEL}", f"real, {NONE}")
def test_a_dead_npu_is_fatal_from_the_tenth_failure_on(board, tmp_path):
    _, errors = failed_frames(board, tmp_path, 1, BOARD_FAIL_RUN="5-")
    assert [(place, kind) for place, kind, *_ in errors] == [
        (place, "NPUError") for place in range(4, 24)
    ]
    assert [fatal for _, _, fatal, _ in errors] == [False] * 9 + [True] * 11


@with_setups(f"emulated, {WHEEL}")
def test_an_npu_that_answers_again_is_not_dead(board, tmp_path):
    _, errors = failed_frames(board, tmp_path, 1, BOARD_FAIL_RUN="1-9,11-19")
    assert [place for place, *_ in errors] == [*range(9), *range(10, 19)]
    assert not any(fatal for _, _, fatal, _ in errors)


@with_setups(f"emulated, {WHEEL}", f"real, {NONE}")
def test_a_wrong_input_size_raises_at_its_frame(board, tmp_path):
    run, ((place, kind, _, text),) = failed_frames(board, tmp_path, 1, "small")
    assert place == 5 and kind != "NPUError" and "(1, 112, 112, 3)" in text
    assert (run.report["runs"], run.report["opened"]) == (23, 1) and was_used_correctly(run.report)
