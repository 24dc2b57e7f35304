"""What holds on a board: the scripts with the vendor's wheel, in an arm64 userland over an emulated NPU (README.md
beside this file).

The first test builds the box, which takes half a minute; all share it.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "models/demo")]  # record.py imports func.py

from conftest import class_drawn  # noqa: E402
from record import add_number, read_number  # noqa: E402
from scene import FONT, draw_object  # noqa: E402

from funcs.resnet import classify  # noqa: E402
from runtimes.cpu import RKNNLite  # noqa: E402

BOARD = ROOT / "tests" / "board" / "board.sh"
RECORD = "tests/board/record.py"
MODEL = "models/yolov5n_emoji.rknn"
FRAMES = 60
CORES = {"rk3588": 3, "rk3576": 2, "rk3566": 1}
TOOLS = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static",
         "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
         "unshare": "util-linux"}

missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin")]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"the board needs {', '.join(missing)}: apt-get install them")

Run = namedtuple("Run", "code out err report")
Detections = namedtuple("Detections", "boxes classes scores")


class Board:
    """Runs commands in the box."""

    def __init__(self, folder):
        self._report = folder / "report.json"

    def run(self, *command, soc="rk3588", options=(), **environment):
        """The Run of a command. Its report is librknnrt.c's books, or None where the library was not loaded."""
        with self.start(*command, soc=soc, options=options, **environment) as process:
            try:
                out, err = process.communicate(timeout=600)
            finally:
                process.kill()  # and with it all in the box
        return Run(process.returncode, out, err, self.report())

    def start(self, *command, soc="rk3588", options=(), **environment):
        """The subprocess.Popen of a command that has just begun, a process group of its own."""
        self._report.unlink(missing_ok=True)
        return subprocess.Popen([str(BOARD), "--soc", soc, *options, *map(str, command)], cwd=ROOT, text=True,
                                start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env={**os.environ, "BOARD_PYTHON": sys.executable, "BOARD_REPORT": str(self._report),
                                     **environment})

    def report(self):
        return json.loads(self._report.read_text()) if self._report.exists() else None


@pytest.fixture(scope="session")
def board(tmp_path_factory):
    subprocess.run([str(BOARD)], check=True, env={**os.environ, "BOARD_PYTHON": sys.executable})
    return Board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """The demo video's first 60 frames, at the size the model sees them, each with its number."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video, writer = cv2.VideoCapture(str(ROOT / "models" / "demo.mp4")), None
    for number in range(FRAMES):
        frame = add_number(cv2.resize(video.read()[1], (640, 360), interpolation=cv2.INTER_AREA), number)
        writer = writer or cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, frame.shape[1::-1])
        writer.write(frame)
    writer.release()
    return path


def recorded(path):
    """record.py's notes: the Detections of each frame by its number."""
    found = {}
    for note in map(json.loads, path.read_text().splitlines()):
        boxes = np.array(note["boxes"], np.float32).reshape(-1, 4)
        found[note["frame"]] = Detections(boxes, np.array(note["classes"], int), np.array(note["scores"]))
    return found


def detections_on_the_pc(path, clip, *arguments, **environment):
    subprocess.run([sys.executable, "main.py", str(clip), "--headless", "--func", RECORD, *arguments], check=True,
                   cwd=ROOT,
                   env={**os.environ, "RECORD": str(path), **environment})
    return recorded(path)


@pytest.fixture(scope="session")
def pc_detections(clip, tmp_path_factory):
    return detections_on_the_pc(tmp_path_factory.mktemp("pc") / "record.jsonl", clip)


Played = namedtuple("Played", "run numbers detections")


@pytest.fixture(scope="session", params=CORES)
def played(request, board, clip, tmp_path_factory):
    """main.py's run over the clip on each SoC: the Run, the numbers of the frames saved, and the detections."""
    folder = tmp_path_factory.mktemp(request.param)
    saved, record = folder / "saved.avi", folder / "record.jsonl"
    run = board.run("env", f"RECORD={record}", "python3", "main.py", clip, "--headless", "--func", RECORD, "--save",
                    saved,
                    soc=request.param)
    assert run.code == 0, run.err
    return Played(run, numbers_in(saved), recorded(record))


def numbers_in(path):
    """The numbers of a saved video's frames."""
    numbers, video = [], cv2.VideoCapture(str(path))
    while True:
        ok, frame = video.read()
        if not ok:
            return numbers
        numbers.append(read_number(frame))


# ---- the main job, on three, two and one cores ----

def test_every_frame_comes_out_in_order(played):
    assert played.numbers == list(range(FRAMES))


def test_cores_share_the_runs_evenly(played):
    runs = [core["runs"] for core in played.run.report["cores"]]
    assert len(runs) == CORES[played.run.report["soc"]]
    assert sum(runs) == FRAMES
    assert max(runs) - min(runs) <= 1


def test_contexts_are_bound_to_the_cores_in_turn(played):
    # one core takes no mask: AUTO stands
    masks = {"rk3588": [1, 2, 4], "rk3576": [1, 2], "rk3566": [0]}[played.run.report["soc"]]
    assert [context["mask"] for context in played.run.report["contexts"]] == masks * 2


def test_no_context_is_in_two_threads(played):
    assert played.run.report["shared"] == 0


def test_every_context_is_destroyed(played):
    assert played.run.report["opened"] == played.run.report["destroyed"] == 2 * CORES[played.run.report["soc"]]


def test_detections_agree_with_the_pc(played, pc_detections):
    assert_agree(played.detections, pc_detections)


def assert_agree(on_the_board, on_the_pc):
    assert sorted(on_the_board) == sorted(on_the_pc) == list(range(FRAMES))
    for these, those in ((on_the_pc, on_the_board), (on_the_board, on_the_pc)):
        agreed = [agrees for number, found in these.items() for agrees in agreement(found, those[number])]
        assert len(agreed) > FRAMES
        assert np.mean(agreed) >= 0.95


def agreement(found, others):
    """For each of the Detections `found` that scores 0.5 or more: whether one of `others` has its class, and an IoU >=
    0.9 with it."""
    return [bool(((others.classes == kind) & (iou(box, others.boxes) >= 0.9)).any())
            for box, kind, score in zip(*found) if score >= 0.5]


def iou(box, boxes):
    """IoU of a box (4,) with each of boxes (n, 4), xyxy: (n,)."""
    overlap = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0).prod(1)
    return overlap / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - overlap)


# ---- several streams, and the examples ----

def test_each_of_two_streams_comes_out_whole_and_in_order(board, clip, tmp_path):
    run = board.run("env", f"RECORD={tmp_path}/record", "python3", "main.py", clip, clip, "--headless", "--func",
                    RECORD,
                    "--save", tmp_path / "saved.avi")
    assert run.code == 0, run.err
    assert [numbers_in(tmp_path / f"saved_{number}.avi") for number in (1, 2)] == [list(range(FRAMES))] * 2
    runs = [core["runs"] for core in run.report["cores"]]
    assert sum(runs) == 2 * FRAMES and max(runs) - min(runs) <= 1
    assert (run.report["opened"], run.report["destroyed"], run.report["shared"]) == (6, 6, 0)


def test_yolov8_agrees_with_the_pc(board, clip, tmp_path):
    model = ("--model", "models/yolov8n_emoji.rknn")
    run = board.run("env", f"RECORD={tmp_path}/board", "RECORD_MODULE=funcs.yolov8", "python3", "main.py", clip,
                    "--headless", "--func", RECORD,
                    *model)
    assert run.code == 0, run.err
    assert_agree(recorded(tmp_path / "board"),
                 detections_on_the_pc(tmp_path / "pc", clip, *model, RECORD_MODULE="funcs.yolov8"))


def test_the_asyncio_example_serves_both_streams(board, clip):
    run = board.run("python3", "examples/asyncio_streams.py", clip, clip)
    assert run.code == 0, run.err
    first, second = [line for line in run.out.splitlines() if "frames" in line]
    assert first == second and f"{FRAMES} frames, " in first and " 0 objects" not in first
    assert (run.report["runs"], run.report["opened"], run.report["destroyed"], run.report["shared"]) == (2 * FRAMES, 6,
                                                                                                         6, 0)


@pytest.mark.skipif(not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed")
def test_classes_agree_with_the_pc(board, tmp_path):
    clip, saved, model = tmp_path / "clip.avi", tmp_path / "saved.avi", "models/resnet18_emoji.rknn"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 30, (512, 512))
    for number in range(FRAMES):
        writer.write(cv2.resize(draw_object((6, number))[0], (512, 512)))
    writer.release()
    run = board.run("python3", "main.py", clip, "--headless", "--func", "funcs/resnet.py", "--model", model, "--save",
                    saved)
    assert run.code == 0, run.err
    assert (run.report["runs"], run.report["shared"]) == (FRAMES, 0)
    pc = RKNNLite()
    assert pc.load_rknn(str(ROOT / model)) == pc.init_runtime() == 0
    before, after = cv2.VideoCapture(str(clip)), cv2.VideoCapture(str(saved))
    agreed = []
    for _ in range(FRAMES):
        classes, scores = classify(pc, before.read()[1])
        on_board = class_drawn(after.read()[1])
        if scores[0] >= 0.5:
            agreed.append(on_board == classes[0])
    assert len(agreed) > FRAMES / 2
    assert np.mean(agreed) >= 0.95


# ---- cores ----

def test_core_mask_reaches_every_context(board):
    run = board.run("python3", "-c", f"""
from rknnpool import RKNNLite, rknnPoolExecutor
rknnPoolExecutor("{MODEL}", 3, coreMask=RKNNLite.NPU_CORE_0_1_2).release()
""")
    assert (run.code, [context["mask"] for context in run.report["contexts"]]) == (0, [7, 7, 7]), run.err


def test_one_frame_on_three_cores_takes_all_three(board):
    run = board.run("python3", "-c", f"""
import numpy as np
from rknnpool import RKNNLite, rknnPoolExecutor
with rknnPoolExecutor("{MODEL}", 2, coreMask=RKNNLite.NPU_CORE_0_1_2) as pool:
    list(pool.map([np.zeros((360, 640, 3), np.uint8)] * 4))
""")
    assert (run.code, [core["runs"] for core in run.report["cores"]]) == (0, [4, 4, 4]), run.err


def test_core_mask_is_left_out_on_one_core(board):
    run = board.run("python3", "-c", f"""
from rknnpool import RKNNLite, rknnPoolExecutor
rknnPoolExecutor("{MODEL}", 2, coreMask=RKNNLite.NPU_CORE_0_1_2).release()
""", soc="rk3566")
    assert (run.code, [context["mask"] for context in run.report["contexts"]]) == (0, [0, 0]), run.err


def test_context_with_a_refused_core_mask_is_destroyed(board):
    run = board.run("python3", "-c", f"""
from rknnpool import rknnPoolExecutor
try:
    rknnPoolExecutor("{MODEL}", 2, coreMask=5)
except RuntimeError as error:
    print(error)
""")
    assert (run.code, run.report["opened"], run.report["destroyed"]) == (0, 1, 1), run.err
    assert "context 1 of 2" in run.out


# ---- faults ----

def sentence_and_exit_code_2(run):
    """Whether main.py ended as bad input does: the last line on stderr is a sentence, and no traceback is its own."""
    return run.code == 2 and run.err.rstrip().endswith(".") and 'main.py", line' not in run.err


@pytest.mark.parametrize("option", ["--no-runtime", "--no-npu"])
def test_missing_driver_ends_in_a_sentence(board, clip, option):
    run = board.run("python3", "main.py", clip, "--headless", options=[option])
    assert sentence_and_exit_code_2(run), run.err
    assert f"context 1 of 6 could not open {MODEL}" in run.err
    assert run.report is None or run.report["opened"] == 0


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"RKNN" + bytes(4000)],
                         ids=["missing", "empty", "text", "damaged"])
def test_bad_model_ends_in_a_sentence(board, clip, tmp_path, content):
    model = tmp_path / "model.rknn"
    if content is not None:
        model.write_bytes(content)
    run = board.run("python3", "main.py", clip, "--headless", "--model", model)
    assert sentence_and_exit_code_2(run), run.err
    assert str(model) in run.err.splitlines()[-1]
    assert run.report is None or run.report["opened"] == 0


def test_contexts_before_a_failed_one_are_destroyed(board, clip):
    run = board.run("python3", "main.py", clip, "--headless", "--threads", "3", BOARD_FAIL_INIT="2")
    assert sentence_and_exit_code_2(run), run.err
    assert "context 2 of 3" in run.err
    assert (run.report["inits"], run.report["opened"], run.report["destroyed"]) == (2, 1, 1)


def test_failed_run_ends_in_a_sentence(board, clip):
    run = board.run("python3", "main.py", clip, "--headless", BOARD_FAIL_RUN="20")
    assert sentence_and_exit_code_2(run), run.err
    assert "inference" in run.err.splitlines()[-1]
    assert run.report["opened"] == run.report["destroyed"] == 6


@pytest.mark.parametrize("size", [320, 1280])
def test_wrong_input_size_ends_in_a_sentence(board, clip, tmp_path, size):
    func = tmp_path / "wrong.py"
    func.write_text(f"import func\nfunc.IMG_SIZE = {size}\nmyFunc = func.myFunc\n")
    run = board.run("python3", "main.py", clip, "--headless", "--func", func)
    assert sentence_and_exit_code_2(run), run.err
    assert str(size) in run.err.splitlines()[-1]
    assert run.report["opened"] == run.report["destroyed"] == 6


# Feeds 24 frames to a pool and prints the places of those that raise. With "small" the sixth frame has half the model's
# input size.
USERS_CODE = f"""
import sys
import numpy as np
from func import infer
from rknnpool import rknnPoolExecutor
frames = [np.zeros((640, 640, 3), np.uint8) for _ in range(24)]
if "small" in sys.argv:
    frames[5] = frames[5][:320, :320]
with rknnPoolExecutor("{MODEL}", 1, infer) as pool:
    results = pool.map(frames)
    for place in range(24):
        try:
            next(results)
        except Exception as error:
            print(place, error)
"""


def test_failed_run_raises_at_its_frame(board):
    run = board.run("python3", "-c", USERS_CODE, BOARD_FAIL_RUN="20")
    assert run.code == 0, run.err
    assert [line.split()[0] for line in run.out.splitlines() if "inference" in line] == ["19"]
    assert (run.report["runs"], run.report["opened"], run.report["destroyed"]) == (24, 1, 1)


def test_wrong_input_size_raises_at_its_frame(board):
    run = board.run("python3", "-c", USERS_CODE, "small")
    assert run.code == 0, run.err
    assert [line.split()[0] for line in run.out.splitlines() if "(1, 320, 320, 3)" in line] == ["5"]
    assert (run.report["runs"], run.report["opened"], run.report["destroyed"]) == (23, 1, 1)


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
    assert "FPS on average" in out


# ---- scripts written before this project ----

def test_older_script_runs_unchanged(board, clip):
    run = board.run("env", "PYTHONPATH=.", "python3", "tests/board/older_script.py", clip)
    assert run.code == 0, run.err
    shapes = [(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)]
    assert run.out.splitlines()[-56:] == [f"{number} {shapes}" for number in range(FRAMES - 4)]
    assert (run.report["opened"], run.report["destroyed"], run.report["shared"]) == (3, 3, 0)


# ---- the emulated NPU itself: that what is asserted above could have failed ----

MASKS = f"""
from rknnlite.api import RKNNLite
for mask in 0, 1, 2, 3, 4, 5, 6, 7, 0xffff:
    context = RKNNLite()
    context.load_rknn("{MODEL}")
    print("returned", context.init_runtime(core_mask=mask))
    context.release()
"""


@pytest.mark.parametrize("soc, returned, masks", [
    ("rk3588", [0, 0, 0, 0, 0, -1, -1, 0, 0], [0, 1, 2, 3, 4, 0, 0, 7, 7]),
    ("rk3576", [0, 0, 0, 0, 0, -1, -1, 0, 0], [0, 1, 2, 3, 1, 0, 0, 3, 3]),
    ("rk3566", [0] + [-1] * 8, [0] * 9),
], ids=CORES)
def test_board_takes_core_masks_as_the_soc_does(board, soc, returned, masks):
    run = board.run("python3", "-c", MASKS, soc=soc)
    assert [int(line.split()[1]) for line in run.out.splitlines() if line.startswith("returned")] == returned, run.err
    assert [context["mask"] for context in run.report["contexts"]] == masks


def test_board_notices_two_threads_in_one_context(board):
    run = board.run("python3", "-c", f"""
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from rknnlite.api import RKNNLite
context = RKNNLite()
context.load_rknn("{MODEL}")
context.init_runtime(core_mask=1)
with ThreadPoolExecutor(2) as threads:
    list(threads.map(lambda _: context.inference([np.zeros((1, 640, 640, 3), np.uint8)]), range(8)))
""")
    assert run.report["shared"] > 0, run.err
    assert run.report["destroyed"] == 0


def test_hung_run_is_booked_and_can_be_killed(board, clip):
    with board.start("python3", "main.py", clip, "--headless", BOARD_HANG_RUN="5") as process:
        assert any("hangs" in line for line in process.stderr)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (board.report()["opened"], board.report()["destroyed"]) == (6, 0)
