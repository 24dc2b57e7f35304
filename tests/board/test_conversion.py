"""models/convert.py on the emulated board, with rknn-toolkit2's packages for arm64."""

import json
import re
import shutil
import time

import cv2
import pytest
from board_parts import NONE, ROOT, needs_tools, only_in_full_matrix, was_used_correctly

from vision.coco import COCO_CLASSES
from vision.model import describe

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]


@pytest.fixture
def board(box):
    """The toolkit's environment has no wheel, so runtimes/librknnrt.py runs the NPU."""
    return box.with_setup(f"emulated, {NONE}")


@pytest.fixture
def onnx(tmp_path):
    path = tmp_path / "best.onnx"
    shutil.copy(ROOT / "models/yolov5n_emoji.onnx", path)
    (tmp_path / "best.txt").write_text("\n".join(COCO_CLASSES))
    return path


@pytest.fixture
def photos(tmp_path):
    folder, video = tmp_path / "photos", cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    folder.mkdir()
    for number in range(3):
        video.set(cv2.CAP_PROP_POS_FRAMES, 200 * number)
        cv2.imwrite(str(folder / f"{number}.png"), video.read()[1])
    return folder


def convert_py(board, *arguments):
    began = time.monotonic()
    run = board.run("python3", "models/convert.py", *arguments, options=["--toolkit"])
    assert run.code == 0, run.err
    print(f"{time.monotonic() - began:.0f} s:\n{run.out}")
    return run


@only_in_full_matrix
def test_a_board_converts_a_model_and_runs_it(board, onnx, photos, tmp_path):
    run = convert_py(board, onnx, "--calibration", photos)
    share = re.search(r"int8 \(on the NPU\) finds ([\d.]+)% of the float model's", run.out)
    assert share and float(share[1]) >= 90, run.out
    assert was_used_correctly(run.report) and run.report["opened"] == 1
    model = describe(onnx.with_suffix(".rknn"), "rk3588")
    assert (model.soc, model.toolkit) == ("rk3588", "2.3.2")
    found = tmp_path / "found.jsonl"
    run = board.main_py(photos, "--model", onnx, "--quiet", "--json", found)
    assert run.code == 0 and was_used_correctly(run.report), run.err
    objects = [len(json.loads(line)["objects"]) for line in found.read_text().splitlines()]
    assert len(objects) == 3 and min(objects) > 3


@only_in_full_matrix
def test_a_board_converts_a_model_to_floats(board, onnx):
    run = convert_py(board, onnx, "--dtype", "fp")
    model = describe(onnx.with_suffix(".rknn"), "rk3588")
    assert (model.soc, model.toolkit) == ("rk3588", "2.3.2") and len(model.outputs) == 3
    assert onnx.with_suffix(".rknn").stat().st_size > 3e6 and "rk3588, fp" in run.out


def test_a_board_without_the_toolkit_names_the_command_for_its_environment(board, onnx, photos):
    run = board.main_py(photos, "--model", onnx)
    assert run.code == 2 and f"models/convert.py {onnx} --calibration SOURCE" in run.err
    run = board.python("models/convert.py", onnx, "--calibration", photos)
    assert run.code == 2 and run.err.count("\n") == 1, run.err
    assert "--no-deps -r" in run.err and "models/requirements-arm64.txt" in run.err
