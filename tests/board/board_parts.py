"""Shared parts of the tests in this folder: the board, and checks of its frames and reports."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "models/demo")]  # record.py imports func.py

from numbered import read_number  # noqa: E402

BOARD = ROOT / "tests" / "board" / "board.sh"
RECORD = "tests/board/record.py"
MODEL, SMALL_MODEL = "models/yolov5n_emoji.rknn", "models/resnet18_emoji.rknn"
FRAMES, SHORT = 30, 12  # of the two clips
SOCKET = "npu.sock"  # of the npu.py of all boards of these tests, in Board.folder
# each with the module that decodes it
MODELS = {"yolov5n": (MODEL, "func"), "yolov8n": ("models/yolov8n_emoji.rknn", "funcs.yolov8")}
# per run on one core, as the vendor's library divides the model
SUBMITS = {"yolov5n": 6, "yolov8n": 12}
CORES = {"rk3588": 3, "rk3576": 2, "rk3566": 1}
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "unshare": "util-linux",
}

missing = [
    package
    for tool, package in TOOLS.items()
    if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin")
]
needs_tools = pytest.mark.skipif(
    bool(missing), reason=f"the board needs {', '.join(missing)}: apt-get install them"
)

# Wheels, and Pythons without one: board.sh's options. Without the wheel, runtimes/librknnrt.py is
# used.
WHEEL, OLDER, OLDEST = "newest wheel", "wheel 2.3.2", "wheel 2.3.0"
NONE, NEWER_PYTHON = "no wheel", "Python 3.13"
OPTIONS = {
    WHEEL: (),
    OLDER: ("--wheel", "2.3.2"),
    NONE: ("--wheel", "none"),
    NEWER_PYTHON: ("--python", "3.13"),
    OLDEST: ("--wheel", "2.3.0"),
}
ALL = [f"{library}, {name}" for library in ("emulated", "real") for name in OPTIONS]
SETUPS = [name for name in ALL if not name.endswith(OLDEST)]
EMULATED, REAL = (
    [name for name in SETUPS if name.startswith(library)] for library in ("emulated", "real")
)
EVERY = bool(os.environ.get("BOARD_EVERY"))  # README.md: all of them, by hand
only_in_full_matrix = pytest.mark.skipif(not EVERY, reason="BOARD_EVERY=1 runs it: see .ci/full")

Run = namedtuple("Run", "code out err report")
Detections = namedtuple("Detections", "boxes classes scores")


def with_setups(*setups, of=None):
    """Run a test with each of these SETUPS; if BOARD_EVERY is set, also with those in `of`
    (default: both libraries with the newest wheel and without a wheel)."""
    of = of or [f"{library}, {name}" for library in ("emulated", "real") for name in (WHEEL, NONE)]
    return pytest.mark.parametrize(
        "board", sorted({*setups, *of}, key=ALL.index) if EVERY else setups, indirect=True
    )


class Board:
    """Runs commands in the box with one of SETUPS."""

    def __init__(self, folder, setup=EMULATED[0], forks=None):
        self.folder, self.setup = folder, setup
        self.library, name = setup.split(", ")
        self.options = "--library", self.library, *OPTIONS[name]
        self.has_wheel = name not in (NONE, NEWER_PYTHON)
        self._report = folder / "report.json"
        self._forks = {} if forks is None else forks  # started forks.py, by SoC and setup

    def with_setup(self, setup):
        """The same box with another of SETUPS."""
        return Board(self.folder, setup, self._forks)

    def close(self):
        """End the box, and with it all its processes."""
        for process in self._forks.values():
            process.kill()

    def python(self, *arguments, soc="rk3588", folder=ROOT, **environment):
        """Run Python with these arguments, in a fork of a process that has imported the packages
        (forks.py). Returns its Run, as run() does."""
        if (soc, self.setup) not in self._forks:
            self._forks[soc, self.setup] = self.start(
                *("env", "OPENBLAS_NUM_THREADS=1", "python3", "tests/board/forks.py"),
                soc=soc,
                stdin=subprocess.PIPE,
                stderr=None,
            )
        process = self._forks[soc, self.setup]
        self._report.unlink(missing_ok=True)
        out, err = self.folder / "out", self.folder / "err"
        request = {"arguments": arguments, "folder": folder, "environment": environment}
        print(
            json.dumps({**request, "out": out, "err": err}, default=str),
            file=process.stdin,
            flush=True,
        )
        limit = threading.Timer(600, process.kill)
        limit.start()
        code = process.stdout.readline()
        limit.cancel()
        assert code, f"forks.py ended: {err.read_text()}"
        return Run(int(code), out.read_text(), err.read_text(), self.report())

    def main_py(self, *arguments, **settings):
        """Run main.py without a window; settings: those of python(). Returns its Run."""
        return self.python("main.py", "--headless", *arguments, **settings)

    def run(self, *command, **settings):
        """Run a command on a board of its own; settings: those of start(). Returns its Run; its
        report is that of device.c, or None if no library was loaded."""
        with self.start(*command, **settings) as process:
            try:
                out, err = process.communicate(timeout=600)
            finally:
                process.kill()  # and with it all processes in the box
        return Run(process.returncode, out, err, self.report())

    def start(
        self,
        *command,
        soc="rk3588",
        options=(),
        stdin=None,
        stderr=subprocess.PIPE,
        **environment,
    ):
        """Start a command: a subprocess.Popen in a process group of its own."""
        self._report.unlink(missing_ok=True)
        return subprocess.Popen(
            [str(BOARD), "--soc", soc, *self.options, *options, *map(str, command)],
            cwd=ROOT,
            text=True,
            start_new_session=True,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={
                **os.environ,
                "BOARD_PYTHON": sys.executable,
                "BOARD_REPORT": str(self._report),
                "BOARD_SOCKET": str(self.folder / SOCKET),
                **environment,
            },
        )

    def report(self):
        return json.loads(self._report.read_text()) if self._report.exists() else None


def ends_in_a_sentence(run, code):
    """True if main.py ended correctly: the last line on stderr is a sentence, and no traceback is
    from main.py."""
    return run.code == code and run.err.rstrip().endswith(".") and 'main.py", line' not in run.err


def reports_a_dead_npu(run):
    """True if main.py ended with the message that the NPU does not answer, without a traceback."""
    return (
        run.code == 3
        and any(
            line.startswith("the NPU does not answer") and line.endswith(".")
            for line in run.err.splitlines()
        )
        and 'main.py", line' not in run.err
    )


def was_used_correctly(report):
    """True if no context was used by two threads, used after its end, or destroyed during a run,
    and all contexts are destroyed and all NPU memory is freed (the emulated library has none)."""
    return (
        report["shared"] == report["stale"] == report["destroyed_in_use"] == report["memory"] == 0
        and report["opened"] == report["destroyed"]
    )


def assert_even(runs, frames, again):
    """Assert that the runs of the cores differ by at most 5 %, or 3. On a busy PC a core may be
    delayed and rightly gets fewer frames, so the most even of three tries counts. again: repeats
    the run, and returns its Run."""
    for times in (1, 2, 3):
        assert sum(runs) == frames
        if max(runs) - min(runs) <= max(3, 0.05 * frames):
            return
        assert times < 3, runs
        runs = runs_of(again())


def assert_in_turn(run, masks):
    """Assert that there are two contexts per core, bound to the cores in turn, starting at any
    core."""
    found = [context["mask"] for context in run.report["contexts"]]
    assert found in [(masks[core:] + masks[:core]) * 2 for core in range(len(masks))]


def runs_of(run):
    """The runs of each core, from the report."""
    return [core["runs"] for core in run.report["cores"]]


def submits_of(board, mask, runs, name="yolov5n"):
    """The expected submits to the driver by core mask for a number of runs; none with the emulated
    library."""
    submits = [0] * 8
    submits[mask] = runs * SUBMITS[name] if board.library == "real" else 0
    return submits


USERS_CODE = f"""
import json
import sys
import numpy as np
from vision.inference import infer
from rknnpool import rknnPoolExecutor
contexts, notes, *small = sys.argv[1:]
frames = [np.zeros((224, 224, 3), np.uint8) for _ in range(24)]
if small:
    frames[5] = frames[5][:112, :112]
raised = []
with rknnPoolExecutor("{SMALL_MODEL}", int(contexts), infer) as pool:
    results = pool.map(frames)
    for place in range(24):
        try:
            next(results)
        except Exception as error:
            raised.append((place, type(error).__name__, getattr(error, "fatal", None), str(error)))
with open(notes, "w") as file:
    json.dump(raised, file)
"""


def failed_frames(board, folder, contexts, *small, **faults):
    """Run a program that gives 24 frames to a pool of some contexts; with "small" the sixth frame
    has half the model's size. Returns the Run, and for each frame that raised: its index, the
    exception's class, `fatal` and text.
    """
    run = board.python("-c", USERS_CODE, contexts, folder / "raised", *small, **faults)
    assert run.code == 0, run.err
    return run, [tuple(error) for error in json.loads((folder / "raised").read_text())]


def model_for(family, folder):
    """Path of YOLOv5n for this family of SoCs: the model itself, or a copy in the folder with a
    changed target."""
    data = (ROOT / MODEL).read_bytes()
    # the end of the body; a length and JSON follow
    end = 64 + struct.unpack_from("<Q", data, 16)[0]
    says = json.loads(data[end + 8 :])
    if family in says["target_platform"]:
        return MODEL
    says["target_platform"] = [family]
    text = json.dumps(says).encode()
    path = folder / "yolov5n.rknn"
    path.write_bytes(data[:end] + struct.pack("<Q", len(text)) + text)
    return path


def wrong_use(board, *models):
    """Run wrong_use.py with these two models. Returns its results."""
    run = board.python("tests/board/wrong_use.py", *models)
    assert run.code == 0, run.err
    return json.loads(next(line for line in run.out.splitlines() if line.startswith('{"model"')))


def recorded(path):
    """The Detections of each frame by its number, as recorded by record.py."""
    found = {}
    for note in map(json.loads, path.read_text().splitlines()):
        boxes = np.array(note["boxes"], np.float32).reshape(-1, 4)
        found[note["frame"]] = Detections(
            boxes, np.array(note["classes"], int), np.array(note["scores"])
        )
    return found


def detections_on_the_pc(name, clip, path):
    """The PC's detections in a clip with that model of MODELS. They are recorded in `path`."""
    model, module = MODELS[name]
    subprocess.run(
        [sys.executable, "main.py", str(clip), "--headless", "--func", RECORD, "--model", model],
        check=True,
        cwd=ROOT,
        env={**os.environ, "RECORD": str(path), "RECORD_MODULE": module},
    )
    return recorded(path)


def numbers_in(path):
    """The numbers of the frames in a saved video."""
    numbers, video = [], cv2.VideoCapture(str(path))
    while True:
        ok, frame = video.read()
        if not ok:
            return numbers
        numbers.append(read_number(frame))


def numbers_shown(path):
    """The different numbers in a saved video: a failed frame is replaced by the one before it."""
    numbers = numbers_in(path)
    assert numbers == sorted(numbers)
    return sorted(set(numbers))


def assert_agree(on_the_board, on_the_pc, frames):
    assert sorted(on_the_board) == sorted(on_the_pc) == list(range(frames))
    for these, those in ((on_the_pc, on_the_board), (on_the_board, on_the_pc)):
        agreed = [
            agrees for number, found in these.items() for agrees in agreement(found, those[number])
        ]
        assert len(agreed) > frames
        assert np.mean(agreed) >= 0.95


def agreement(found, others):
    """For each detection of `found` with a score of at least 0.5: whether `others` has one of the
    same class with an IoU >= 0.9."""
    return [
        bool(((others.classes == kind) & (iou(box, others.boxes) >= 0.9)).any())
        for box, kind, score in zip(*found)
        if score >= 0.5
    ]


def iou(box, boxes):
    """IoU of a box (4,) with each of boxes (n, 4), xyxy: (n,)."""
    overlap = (
        (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0).prod(1)
    )
    return overlap / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - overlap)


def masks_of(module):
    """A script that opens a context of a module's RKNNLite with each core mask, and prints the
    result of init_runtime."""
    return f"""
from {module} import RKNNLite
for mask in 0, 1, 2, 3, 4, 5, 6, 7, 0xffff:
    context = RKNNLite()
    context.load_rknn("{MODEL}")
    print("returned", context.init_runtime(core_mask=mask))
    context.release()
"""
