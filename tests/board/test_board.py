"""What holds on a board: the scripts with the vendor's wheel and without it, in an arm64 userland over an emulated NPU
or over the vendor's own library (README.md beside this file).

The first test builds the box, which takes half a minute; all share it.
"""
import json
import os
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
    WHEEL,
    assert_agree,
    assert_even,
    made_for,
    needs_tools,
    nothing_was_used_wrongly,
    numbers_in,
    over,
    recorded,
    runs_of,
    submits_of,
)
from conftest import class_drawn
from scene import FONT, draw_object

from funcs.resnet import classify
from runtimes.cpu import RKNNLite

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

Played = namedtuple("Played", "board run numbers detections again")

# Another SoC has a meaning over the emulated library only: the vendor's has an RK3588's NPU under it whatever --soc
# says, and models for that.
PLAYED = [("rk3588", setup) for setup in SETUPS if EVERY or setup not in (f"real, {OLDER}", f"real, {NEWER_PYTHON}")]
PLAYED += [(soc, setup) for soc in ("rk3576", "rk3566") for setup in (EMULATED if EVERY else EMULATED[:1])]


@pytest.fixture(scope="session", params=PLAYED, ids=", ".join)
def played(request, box, numbered, tmp_path_factory):
    """main.py's run over the clip on each SoC: the Run, the numbers of the frames saved, and the detections."""
    soc, setup = request.param
    board, folder = box.over(setup), tmp_path_factory.mktemp(soc)
    saved, record = folder / "saved.avi", folder / "record.jsonl"

    def play(*arguments):
        run = board.run("env", f"RECORD={record}", "python3", "main.py", numbered, "--headless", "--func", RECORD,
                        "--save", saved, "--model", made_for(soc, folder), *arguments, soc=soc)
        assert run.code == 0, run.err
        return run

    run = play()
    return Played(board, run, numbers_in(saved), recorded(record), lambda: play("--overwrite"))


# ---- the main job: on three, two and one cores, over both libraries, with the newest wheel, most boards' and none ----

def test_every_frame_comes_out_in_order(played):
    assert played.numbers == list(range(FRAMES))


def test_cores_share_the_runs_evenly(played):
    runs = runs_of(played.run)
    assert len(runs) == CORES[played.run.report["soc"]]
    assert_even(runs, FRAMES, played.again)


def test_contexts_are_bound_to_the_cores_in_turn(played):
    # one core takes no mask: AUTO stands
    masks = {"rk3588": [1, 2, 4], "rk3576": [1, 2], "rk3566": [0]}[played.run.report["soc"]]
    assert [context["mask"] for context in played.run.report["contexts"]] == masks * 2


def test_every_submit_goes_to_the_contexts_core(played):
    for context in played.run.report["contexts"]:
        assert context["submits"] == submits_of(played.board, context["mask"], context["runs"])


def test_every_context_is_destroyed_and_none_used_wrongly(played):
    assert played.run.report["opened"] == 2 * CORES[played.run.report["soc"]]
    assert nothing_was_used_wrongly(played.run.report)


def test_every_byte_of_the_npus_memory_is_given_back(played):
    most = {"emulated": 0, "real": 50e6}[played.board.library]  # the emulated library has no such memory
    assert played.run.report["memory_most"] >= most and played.run.report["memory"] == 0


def test_detections_agree_with_the_pc(played, pc_detections):
    assert_agree(played.detections, pc_detections("yolov5n"))


def test_the_library_runs_by_itself_where_there_is_no_wheel(played):
    said = "runs without rknn-toolkit-lite2" in played.run.err
    assert said == (not played.board.has_wheel)


# ---- several streams, and the examples ----

@over(f"emulated, {WHEEL}")
def test_each_of_two_streams_comes_out_whole_and_in_order(board, numbered, tmp_path):
    def play(*more):
        run = board.run("env", f"RECORD={tmp_path}/record", "python3", "main.py", numbered, numbered, "--headless",
                        "--func", RECORD, "--save", tmp_path / "saved.avi", *more)
        assert run.code == 0, run.err
        return run

    run = play()
    assert [numbers_in(tmp_path / f"saved_{number}.avi") for number in (1, 2)] == [list(range(FRAMES))] * 2
    assert_even(runs_of(run), 2 * FRAMES, lambda: play("--overwrite"))
    assert run.report["opened"] == 6 and nothing_was_used_wrongly(run.report)


@over(f"emulated, {WHEEL}", f"real, {OLDER}", of=SETUPS)
def test_yolov8_agrees_with_the_pc(board, numbered, tmp_path, pc_detections):
    model, module = MODELS["yolov8n"]

    def play(record):
        run = board.run("env", f"RECORD={tmp_path / record}", f"RECORD_MODULE={module}", "python3", "main.py", numbered,
                        "--headless", "--func", RECORD, "--model", model)
        assert run.code == 0, run.err
        return run

    run = play("board")
    assert_agree(recorded(tmp_path / "board"), pc_detections("yolov8n"))
    assert_even(runs_of(run), FRAMES, lambda: play("again"))
    assert [context["mask"] for context in run.report["contexts"]] == [1, 2, 4] * 2
    for context in run.report["contexts"]:
        assert context["submits"] == submits_of(board, context["mask"], context["runs"], "yolov8n")
    assert nothing_was_used_wrongly(run.report)


@over(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_the_asyncio_example_serves_both_streams(board, numbered):
    run = board.run("python3", "examples/asyncio_streams.py", numbered, numbered)
    assert run.code == 0, run.err
    first, second = [line for line in run.out.splitlines() if "frames" in line]
    assert first == second and f"{FRAMES} frames, " in first and " 0 objects" not in first
    assert (run.report["runs"], run.report["opened"]) == (2 * FRAMES, 6) and nothing_was_used_wrongly(run.report)


@over(f"real, {NONE}")
@pytest.mark.skipif(not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed")
def test_classes_agree_with_the_pc(board, tmp_path):
    numbered, saved, model = tmp_path / "clip.avi", tmp_path / "saved.avi", "models/resnet18_emoji.rknn"
    writer = cv2.VideoWriter(str(numbered), cv2.VideoWriter_fourcc(*"MJPG"), 30, (512, 512))
    for number in range(FRAMES):
        writer.write(cv2.resize(draw_object((6, number))[0], (512, 512)))
    writer.release()
    run = board.run("python3", "main.py", numbered, "--headless", "--func", "funcs/resnet.py", "--model", model,
                    "--save", saved)
    assert run.code == 0, run.err
    assert (run.report["runs"], run.report["shared"]) == (FRAMES, 0)
    pc = RKNNLite()
    assert pc.load_rknn(str(ROOT / model)) == pc.init_runtime() == 0
    before, after = cv2.VideoCapture(str(numbered)), cv2.VideoCapture(str(saved))
    agreed = []
    for _ in range(FRAMES):
        classes, scores = classify(pc, before.read()[1])
        on_board = class_drawn(after.read()[1])
        if scores[0] >= 0.5:
            agreed.append(on_board == classes[0])
    assert len(agreed) > FRAMES / 2
    assert np.mean(agreed) >= 0.95


# ---- cores ----

@over(f"emulated, {WHEEL}", f"emulated, {NONE}")
def test_core_mask_reaches_every_context(board):
    run = board.run("python3", "-c", f"""
from rknnpool import RKNNLite, rknnPoolExecutor
rknnPoolExecutor("{MODEL}", 3, coreMask=RKNNLite.NPU_CORE_0_1_2).release()
""")
    # the vendor's library tells its driver a context's mask with the first run, and here is none
    masks = {"emulated": [7, 7, 7], "real": [0, 0, 0]}[board.library]
    assert (run.code, [context["mask"] for context in run.report["contexts"]]) == (0, masks), run.err
    assert nothing_was_used_wrongly(run.report)


@over(f"emulated, {WHEEL}", f"real, {WHEEL}")
def test_one_frame_on_three_cores_takes_all_three(board):
    run = board.run("python3", "-c", f"""
import numpy as np
from rknnpool import RKNNLite, rknnPoolExecutor
with rknnPoolExecutor("{MODEL}", 2, coreMask=RKNNLite.NPU_CORE_0_1_2) as pool:
    list(pool.map([np.zeros((360, 640, 3), np.uint8)] * 4))
""")
    assert (run.code, [core["runs"] for core in run.report["cores"]]) == (0, [4, 4, 4]), run.err
    assert [context["mask"] for context in run.report["contexts"]] == [7, 7]
    for context in run.report["contexts"] if board.library == "real" else ():
        # as the model is compiled, a few pieces of each run take core 0 alone
        assert context["submits"] == [0, 6 * context["runs"], 0, 0, 0, 0, 0, 70 * context["runs"]]


@over(f"emulated, {WHEEL}", of=EMULATED)  # the vendor's library has three cores under it whatever --soc says
def test_core_mask_is_left_out_on_one_core(board, tmp_path):
    run = board.run("python3", "-c", f"""
from rknnpool import RKNNLite, rknnPoolExecutor
rknnPoolExecutor("{made_for("rk3566", tmp_path)}", 2, coreMask=RKNNLite.NPU_CORE_0_1_2).release()
""", soc="rk3566")
    assert (run.code, [context["mask"] for context in run.report["contexts"]]) == (0, [0, 0]), run.err


@over(f"emulated, {WHEEL}", of=[f"emulated, {NONE}"])  # for the same reason
@pytest.mark.parametrize("soc, family, masks", [
    ("rk3588f", "rk3588", [1, 2, 4]), ("rk3588s2", "rk3588", [1, 2, 4]), ("rk3582", "rk3588", [1, 2, 4]),
    ("rk3576j", "rk3576", [1, 2]), ("rv1126b", "rv1126b", [0]), ("rk3562", "rk3562", [0])])
def test_cores_are_known_by_the_beginning_of_the_socs_name(board, tmp_path, soc, family, masks):
    run = board.run("python3", "-c", f"""
import numpy as np
from rknnpool import rknnPoolExecutor, soc
with rknnPoolExecutor("{made_for(family, tmp_path)}") as pool:
    print(soc(), pool.TPEs, len(list(pool.map([np.zeros((360, 640, 3), np.uint8)] * 6))))
""", soc=soc)
    assert (run.code, run.out.splitlines()[-1].split()) == (0, [soc, str(2 * len(masks)), "6"]), run.err
    assert [context["mask"] for context in run.report["contexts"]] == masks * 2


# Two processes that each open a pool of one context and keep it until both have.
TWO = f"""
import os, subprocess, sys
code = 'from rknnpool import rknnPoolExecutor as Pool; pool = Pool("{MODEL}", 1); print("open", flush=True); input()'
processes = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env={{**os.environ, "BOARD_REPORT": report}}) for report in sys.argv[1:]]
for process in processes:
    while "open" not in process.stdout.readline():
        assert process.poll() is None
for process in processes:
    process.communicate("\\n")
    assert process.returncode == 0
"""


@over(f"emulated, {WHEEL}", of=[f"emulated, {NONE}"])  # the vendor's tells the mask with the first run
def test_two_processes_do_not_both_begin_at_core_0(board, tmp_path):
    reports = [tmp_path / "first.json", tmp_path / "second.json"]
    run = board.run("python3", "-c", TWO, *reports)
    assert run.code == 0, run.err
    masks = [json.loads(path.read_text())["contexts"][0]["mask"] for path in reports]
    assert len(set(masks)) == 2 and set(masks) <= {1, 2, 4}


@over(f"emulated, {WHEEL}", f"real, {NONE}")
def test_context_with_a_refused_core_mask_is_destroyed(board):
    run = board.run("python3", "-c", f"""
from rknnpool import rknnPoolExecutor
try:
    rknnPoolExecutor("{MODEL}", 2, coreMask=5)
except RuntimeError as error:
    print(error)
""")
    assert (run.code, run.report["opened"]) == (0, 1) and nothing_was_used_wrongly(run.report), run.err
    assert "context 1 of 2" in run.out


# ---- scripts written before this project ----

@over(f"emulated, {WHEEL}", of=[f"real, {NONE}"])
def test_older_script_runs_unchanged(board, numbered):
    run = board.run("env", "PYTHONPATH=.", "python3", "tests/board/older_script.py", numbered)
    assert run.code == 0, run.err
    shapes = [(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)]
    assert run.out.splitlines()[-56:] == [f"{number} {shapes}" for number in range(FRAMES - 4)]
    assert run.report["opened"] == 3 and nothing_was_used_wrongly(run.report)
