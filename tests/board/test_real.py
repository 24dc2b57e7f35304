"""What holds over the vendor's own librknnrt.so (1.5.2, from PyPI) under the vendor's wheel: the kernel driver and the
NPU's arithmetic are emulated, nothing else is. README.md beside this file says more.
"""
import os
import signal
from collections import namedtuple

import pytest
from board_parts import (
    FRAMES,
    MODEL,
    RECORD,
    assert_agree,
    detections_on_the_pc,
    ends_for_a_dead_npu,
    ends_in_a_sentence,
    needs_tools,
    numbers_in,
    raised,
    recorded,
    shown,
    wrong_use,
)

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

REAL = ("--library", "real")
MODELS = {"yolov5n": MODEL, "yolov8n": "models/yolov8n_emoji.rknn"}

Played = namedtuple("Played", "run name numbers detections")


def run_real(board, *command, **options):
    return board.run(*command, options=REAL, **options)


@pytest.fixture(scope="session", params=MODELS)
def played(request, board, numbered, tmp_path_factory):
    """main.py's run over the clip: the Run, the numbers of the frames saved, and the detections."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    run = run_real(board, "env", f"RECORD={folder}/record", f"RECORD_MODULE={record_module(name)}",
                   "python3", "main.py", numbered, "--headless", "--model", MODELS[name], "--func", RECORD,
                   "--save", folder / "saved.avi")
    assert run.code == 0, run.err
    return Played(run, name, numbers_in(folder / "saved.avi"), recorded(folder / "record"))


def record_module(name):
    return {"yolov5n": "func", "yolov8n": "funcs.yolov8"}[name]


@pytest.fixture(scope="session")
def on_the_pc(numbered, tmp_path_factory):
    """The PC's detections by the model's name."""
    return {name: detections_on_the_pc(tmp_path_factory.mktemp("pc") / "record", numbered, "--model", model,
                                       RECORD_MODULE=record_module(name)) for name, model in MODELS.items()}


# ---- the main job ----

def test_every_frame_comes_out_in_order(played):
    assert played.numbers == list(range(FRAMES))


def test_detections_agree_with_the_pc(played, on_the_pc):
    assert_agree(played.detections, on_the_pc[played.name])


def test_contexts_are_bound_to_the_cores_in_turn(played):
    assert [context["mask"] for context in played.run.report["contexts"]] == [1, 2, 4] * 2


def test_every_submit_goes_to_the_contexts_core(played):
    a_run = {"yolov5n": 6, "yolov8n": 12}[played.name]  # submits, as the model is compiled
    for context in played.run.report["contexts"]:
        submits = [0] * 8
        submits[context["mask"]] = a_run * context["runs"]
        assert context["submits"] == submits


def test_cores_share_the_runs_evenly(played):
    runs = [core["runs"] for core in played.run.report["cores"]]
    assert len(runs) == 3 and sum(runs) == FRAMES and max(runs) - min(runs) <= 0.05 * FRAMES


def test_every_byte_of_the_npus_memory_is_given_back(played):
    assert played.run.report["memory_most"] > 6 * 10e6  # 10.5 MB a context of YOLOv5n
    assert played.run.report["memory"] == 0
    assert nothing_was_used_wrongly(played.run.report)


def nothing_was_used_wrongly(report):
    """No context in two threads, or used after it was destroyed, or destroyed while it ran; all destroyed."""
    return (report["shared"] == report["stale"] == report["destroyed_in_use"] == 0
            and report["opened"] == report["destroyed"])


# The wheel reads the SoC in the device tree; the library below it has an RK3588's NPU whatever that is.
MASKS_OF_THE_WHEEL = """
import numpy as np
from rknnlite.api import RKNNLite
for mask in 0, 1, 2, 3, 4, 5, 7, 0xffff:
    context = RKNNLite()
    assert context.load_rknn("models/resnet18_emoji.rknn") == 0
    if context.init_runtime(core_mask=mask) == 0:
        context.inference([np.zeros((1, 224, 224, 3), np.uint8)])
    context.release()
"""


@pytest.mark.parametrize("soc, masks", [("rk3588", [0, 1, 2, 3, 4, None, 7, 7]),
                                        ("rk3576", [0, 1, 2, 3, 1, None, 3, 3]), ("rk3566", [0] + [None] * 7)])
def test_submits_have_the_masks_that_the_wheel_gives(board, soc, masks):
    run = run_real(board, "python3", "-c", MASKS_OF_THE_WHEEL, soc=soc)
    assert run.code == 0, run.err
    assert [context["mask"] if context["runs"] else None for context in run.report["contexts"]] == masks
    for context in run.report["contexts"]:
        assert not any(count for mask, count in enumerate(context["submits"]) if mask not in (context["mask"], 1))
    assert run.report["memory"] == 0


def test_one_frame_on_three_cores_takes_all_three(board):
    run = run_real(board, "python3", "-c", f"""
import numpy as np
from rknnpool import RKNNLite, rknnPoolExecutor
with rknnPoolExecutor("{MODEL}", 2, coreMask=RKNNLite.NPU_CORE_0_1_2) as pool:
    list(pool.map([np.zeros((360, 640, 3), np.uint8)] * 4))
""")
    assert run.code == 0, run.err
    assert [context["mask"] for context in run.report["contexts"]] == [7, 7]
    for context in run.report["contexts"]:  # as the model is compiled, a few pieces of each run take core 0 alone
        assert context["submits"] == [0, 6 * context["runs"], 0, 0, 0, 0, 0, 70 * context["runs"]]


# ---- faults ----

@pytest.mark.parametrize("wheel", ["", "2.3.2"])
def test_failed_run_raises_at_its_frame(board, tmp_path, wheel):
    run, errors = raised(board, tmp_path, 1, options=(*REAL, "--wheel", wheel), BOARD_FAIL_RUN="20")
    (place, kind, fatal, text), = errors
    assert (place, kind, fatal) == (19, "NPUError", False) and text.startswith("context 1 of 1, core 0: ")
    assert run.report["runs"] == 24


def test_failed_run_costs_its_frame_only(board, numbered, tmp_path):
    run = run_real(board, "python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi",
                   BOARD_FAIL_RUN="20")
    assert run.code == 3, run.err
    assert len(shown(tmp_path / "saved.avi")) == FRAMES - 1
    assert run.report["memory"] == 0 and nothing_was_used_wrongly(run.report)


def test_dead_npu_ends_the_stream(board, numbered, tmp_path):
    run = run_real(board, "python3", "main.py", numbered, "--headless", "--save", tmp_path / "saved.avi",
                   BOARD_FAIL_RUN="10-")
    assert ends_for_a_dead_npu(run), run.err
    assert len(shown(tmp_path / "saved.avi")) <= 9 and run.report["runs"] < FRAMES
    assert run.report["memory"] == 0 and nothing_was_used_wrongly(run.report)


def test_memory_that_is_used_up_ends_in_a_sentence(board, numbered):
    run = run_real(board, "python3", "main.py", numbered, "--headless", BOARD_MEMORY="20000000")
    assert ends_in_a_sentence(run, 2), run.err
    assert f"context 3 of 6 could not open {MODEL}" in run.err
    assert run.report["memory"] == 0 and nothing_was_used_wrongly(run.report)


def test_interrupt_gives_back_every_byte(board):
    with board.start("env", "PYTHONUNBUFFERED=1", "python3", "main.py", "models/demo.mp4", "--headless",
                     options=REAL) as process:
        try:
            while "last 30 frames" not in process.stdout.readline():
                assert process.poll() is None, process.stderr.read()
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=600)
        finally:
            process.kill()
    report = board.report()
    assert (process.returncode, report["opened"], report["memory"]) == (130, 6, 0), err
    assert nothing_was_used_wrongly(report)


# ---- the emulated library beside it ----

@pytest.mark.parametrize("name", MODELS)
def test_emulated_library_answers_as_the_vendors_does(board, name):
    models = MODELS[name], "models/resnet18_emoji.rknn"
    assert wrong_use(board, *models) == wrong_use(board, *models, options=REAL)
