"""The scripts on a board: with and without the vendor's wheel, in an arm64 userland, with an
emulated NPU or the vendor's own library (see README.md in this folder). The first test builds the
box, which takes half a minute; all share it.
"""

import os
import shutil
from collections import namedtuple

import cv2
import numpy as np
import pytest
from board_parts import (
    CORES,
    EMULATED,
    EVERY,
    FRAMES,
    MODEL,
    MODELS,
    NEWER_PYTHON,
    NONE,
    OLDER,
    RECORD,
    ROOT,
    SETUPS,
    SHORT,
    SMALL_MODEL,
    WHEEL,
    assert_agree,
    assert_even,
    assert_in_turn,
    detections_on_the_pc,
    model_for,
    needs_tools,
    numbers_in,
    only_in_full_matrix,
    recorded,
    runs_of,
    submits_of,
    was_used_correctly,
    with_setups,
)
from conftest import class_drawn
from scene import FONT, draw_object

from funcs.resnet import classify
from runtimes.cpu import RKNNLite

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

ClipRun = namedtuple("ClipRun", "board run numbers detections again")

# By default every SoC, library and kind of wheel once. Other SoCs need the emulated library: the
# vendor's always has an RK3588's NPU.
CLIP_RUNS = [
    ("rk3588", f"real, {WHEEL}"),
    ("rk3588", f"real, {NONE}"),
    ("rk3576", f"emulated, {OLDER}"),
    ("rk3566", f"emulated, {NEWER_PYTHON}"),
]
if EVERY:
    CLIP_RUNS = [("rk3588", setup) for setup in SETUPS]
    CLIP_RUNS += [(soc, setup) for soc in ("rk3576", "rk3566") for setup in EMULATED]


@pytest.fixture(scope="session", params=CLIP_RUNS, ids=", ".join)
def clip_run(request, box, numbered, tmp_path_factory):
    """Run main.py with the clip on each SoC. Returns the Run, the numbers of the saved frames, and
    the detections."""
    soc, setup = request.param
    board, folder = box.with_setup(setup), tmp_path_factory.mktemp(soc)
    saved, record = folder / "saved.avi", folder / "record.jsonl"

    def play(*arguments):
        run = board.main_py(
            numbered,
            "--func",
            RECORD,
            "--save",
            saved,
            "--model",
            model_for(soc, folder),
            *arguments,
            soc=soc,
            RECORD=record,
        )
        assert run.code == 0, run.err
        return run

    run = play()
    return ClipRun(board, run, numbers_in(saved), recorded(record), lambda: play("--overwrite"))


@pytest.fixture(scope="module")
def pc_detections(numbered, tmp_path_factory):
    return detections_on_the_pc("yolov5n", numbered, tmp_path_factory.mktemp("pc") / "record")


# ---- main.py with one, two and three cores, both libraries, the newest wheel, that of most boards,
# and none ----


def test_results_keep_the_order_of_frames(clip_run):
    assert clip_run.numbers == list(range(FRAMES))


def test_frames_are_spread_evenly_over_the_cores(clip_run):
    runs = runs_of(clip_run.run)
    assert len(runs) == CORES[clip_run.run.report["soc"]]
    assert_even(runs, FRAMES, clip_run.again)


def test_contexts_are_bound_to_the_cores_in_turn(clip_run):
    # AUTO, because a SoC with one core gets no mask
    masks = {"rk3588": [1, 2, 4], "rk3576": [1, 2], "rk3566": [0]}[clip_run.run.report["soc"]]
    assert_in_turn(clip_run.run, masks)


def test_every_run_uses_the_core_of_its_context(clip_run):
    for context in clip_run.run.report["contexts"]:
        assert context["submits"] == submits_of(clip_run.board, context["mask"], context["runs"])


def test_every_context_is_destroyed_and_used_correctly(clip_run):
    assert clip_run.run.report["opened"] == 2 * CORES[clip_run.run.report["soc"]]
    assert was_used_correctly(clip_run.run.report)


def test_all_npu_memory_is_freed(clip_run):
    # the emulated library has no such memory
    most = {"emulated": 0, "real": 50e6}[clip_run.board.library]
    assert clip_run.run.report["memory_most"] >= most and clip_run.run.report["memory"] == 0


def test_detections_are_the_same_as_on_the_pc(clip_run, pc_detections):
    assert_agree(clip_run.detections, pc_detections, FRAMES)


def test_the_library_is_used_if_there_is_no_wheel(clip_run):
    reported = "runs without rknn-toolkit-lite2" in clip_run.run.err
    assert reported == (not clip_run.board.has_wheel)


# ---- several streams, and the examples ----


@with_setups(f"emulated, {WHEEL}")
def test_each_of_two_streams_is_complete_and_in_order(board, short, tmp_path):
    def play(*more):
        run = board.main_py(
            short,
            short,
            "--func",
            RECORD,
            "--save",
            tmp_path / "saved.avi",
            *more,
            RECORD=tmp_path / "record",
        )
        assert run.code == 0, run.err
        return run

    run = play()
    assert [numbers_in(tmp_path / f"saved_{number}.avi") for number in (1, 2)] == [
        list(range(SHORT))
    ] * 2
    assert_even(runs_of(run), 2 * SHORT, lambda: play("--overwrite"))
    assert run.report["opened"] == 6 and was_used_correctly(run.report)


@with_setups(f"real, {NONE}", of=SETUPS)
def test_yolov8_finds_the_same_objects_as_on_the_pc(board, short, tmp_path):
    model, module = MODELS["yolov8n"]
    run = board.main_py(
        short,
        "--func",
        RECORD,
        "--model",
        model,
        RECORD=tmp_path / "board",
        RECORD_MODULE=module,
    )
    assert run.code == 0, run.err
    on_the_pc = detections_on_the_pc("yolov8n", short, tmp_path / "pc")
    assert_agree(recorded(tmp_path / "board"), on_the_pc, SHORT)
    for context in run.report["contexts"]:
        assert context["submits"] == submits_of(board, context["mask"], context["runs"], "yolov8n")
    assert was_used_correctly(run.report)


@only_in_full_matrix
@with_setups(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_the_asyncio_example_processes_both_streams(board, short):
    run = board.python("examples/asyncio_streams.py", short, short)
    assert run.code == 0, run.err
    first, second = [line for line in run.out.splitlines() if "frames" in line]
    assert first == second and f"{SHORT} frames, " in first and " 0 objects" not in first
    assert (run.report["runs"], run.report["opened"]) == (
        2 * SHORT,
        6,
    ) and was_used_correctly(run.report)


@with_setups(f"real, {NONE}")
@pytest.mark.skipif(
    not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed"
)
def test_classes_are_the_same_as_on_the_pc(board, tmp_path):
    numbered, saved = tmp_path / "clip.avi", tmp_path / "saved.avi"
    writer = cv2.VideoWriter(str(numbered), cv2.VideoWriter_fourcc(*"MJPG"), 30, (512, 512))
    for number in range(SHORT):
        writer.write(cv2.resize(draw_object((6, number))[0], (512, 512)))
    writer.release()
    run = board.main_py(
        numbered, "--func", "funcs/resnet.py", "--model", SMALL_MODEL, "--save", saved
    )
    assert run.code == 0, run.err
    assert (run.report["runs"], run.report["shared"]) == (SHORT, 0)
    pc = RKNNLite()
    assert pc.load_rknn(str(ROOT / SMALL_MODEL)) == pc.init_runtime() == 0
    before, after = cv2.VideoCapture(str(numbered)), cv2.VideoCapture(str(saved))
    agreed = []
    for _ in range(SHORT):
        classes, scores = classify(pc, before.read()[1])
        on_board = class_drawn(after.read()[1])
        if scores[0] >= 0.5:
            agreed.append(on_board == classes[0])
    assert len(agreed) > SHORT / 2
    assert np.mean(agreed) >= 0.95


# ---- cores ----


@with_setups(f"emulated, {WHEEL}")
def test_every_context_gets_the_core_mask(board):
    run = board.python(
        "-c",
        f"""
from rknnpool import rknnPoolExecutor
rknnPoolExecutor("{MODEL}", 3, coreMask=7).release()
""",
    )
    # the vendor's library passes the mask to its driver with the first run, and here is none
    masks = {"emulated": [7, 7, 7], "real": [0, 0, 0]}[board.library]
    assert (run.code, [context["mask"] for context in run.report["contexts"]]) == (0, masks), (
        run.err
    )
    assert was_used_correctly(run.report)


@with_setups(f"emulated, {WHEEL}", f"real, {NONE}")
def test_a_frame_on_three_cores_occupies_all_three(board):
    run = board.python(
        "-c",
        f"""
import numpy as np
from rknnpool import rknnPoolExecutor
with rknnPoolExecutor("{MODEL}", 2, coreMask=7) as pool:
    list(pool.map([np.zeros((360, 640, 3), np.uint8)] * 4))
""",
    )
    assert (run.code, [core["runs"] for core in run.report["cores"]]) == (0, [4, 4, 4]), run.err
    assert [context["mask"] for context in run.report["contexts"]] == [7, 7]
    for context in run.report["contexts"] if board.library == "real" else ():
        # a few pieces of each run use only core 0, as the model is compiled
        assert context["submits"] == [0, 6 * context["runs"], 0, 0, 0, 0, 0, 70 * context["runs"]]


# the vendor's library always has three cores
@with_setups(f"emulated, {NEWER_PYTHON}", of=EMULATED)
def test_the_core_mask_is_omitted_on_a_soc_with_one_core(board, tmp_path):
    run = board.python(
        "-c",
        f"""
from rknnpool import rknnPoolExecutor
rknnPoolExecutor("{model_for("rk3566", tmp_path)}", 2, coreMask=7).release()
""",
        soc="rk3566",
    )
    assert (run.code, [context["mask"] for context in run.report["contexts"]]) == (0, [0, 0]), (
        run.err
    )


# the vendor's library always has three cores
@with_setups(f"emulated, {NONE}", of=[f"emulated, {WHEEL}"])
@pytest.mark.parametrize(
    "soc, family, masks",
    [
        ("rk3582", "rk3588", [1, 2, 4]),
        ("rv1126b", "rv1126b", [0]),
        ("rk3588f", "rk3588", [1, 2, 4]),
        ("rk3588s2", "rk3588", [1, 2, 4]),
        ("rk3576j", "rk3576", [1, 2]),
        ("rk3562", "rk3562", [0]),
    ][: 6 if EVERY else 2],
)
def test_the_beginning_of_the_socs_name_tells_its_cores(board, tmp_path, soc, family, masks):
    run = board.run(
        "python3",
        "-c",
        f"""
import numpy as np
from rknnpool import rknnPoolExecutor, soc
with rknnPoolExecutor("{model_for(family, tmp_path)}") as pool:
    print(soc(), pool.TPEs, len(list(pool.map([np.zeros((360, 640, 3), np.uint8)] * 6))))
""",
        soc=soc,
    )
    assert (run.code, run.out.splitlines()[-1].split()) == (0, [soc, str(2 * len(masks)), "6"]), (
        run.err
    )
    assert_in_turn(run, masks)


# the vendor's library passes the mask with the first run
@with_setups(f"emulated, {WHEEL}", of=[f"emulated, {NONE}"])
def test_the_first_core_depends_on_the_process_id(board):
    """Thus two small programs mostly use different cores."""
    code = f"""
import os
from rknnpool import rknnPoolExecutor
rknnPoolExecutor("{MODEL}", 1).release()
print(os.getpid())
"""
    run = board.python("-c", code)
    assert run.code == 0, run.err
    core = int(run.out.splitlines()[-1]) % 3
    assert [context["mask"] for context in run.report["contexts"]] == [1 << core]


@with_setups(f"emulated, {WHEEL}", f"real, {NONE}")
def test_a_context_with_a_refused_core_mask_is_destroyed(board):
    run = board.python(
        "-c",
        f"""
from rknnpool import rknnPoolExecutor
try:
    rknnPoolExecutor("{MODEL}", 2, coreMask=5)
except RuntimeError as error:
    print(error)
""",
    )
    assert (run.code, run.report["opened"]) == (0, 1) and was_used_correctly(run.report), run.err
    assert "context 1 of 2" in run.out


# ---- scripts written before this project ----


def older_script_ran(run):
    assert run.code == 0, run.err
    shapes = [(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)]
    # The vendor's library writes to stdout, too, and its lines may be cut where a buffer is full.
    printed = [f"{number} {shapes}\n" for number in range(SHORT - 4)]
    assert "".join(printed) in run.out
    assert run.report["opened"] == 3 and was_used_correctly(run.report)


@with_setups(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_an_older_script_runs_in_this_repository(board, short):
    older_script_ran(board.python("tests/board/older_script.py", MODEL, short, PYTHONPATH="."))


@with_setups(f"emulated, {WHEEL}", of=[f"emulated, {OLDER}", f"real, {WHEEL}", f"real, {OLDER}"])
def test_an_older_script_runs_with_rknnpool_alone_and_the_wheel(board, short, tmp_path):
    for name in ("rknnpool.py", "tests/board/older_script.py", "tests/board/numbered.py"):
        shutil.copy(ROOT / name, tmp_path)
    older_script_ran(board.python("older_script.py", ROOT / MODEL, short, folder=tmp_path))
