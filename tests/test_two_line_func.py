"""Only the loader needs func.py: with a func.py of two lines everything else still runs."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, write_clip

sys.path.insert(0, str(ROOT / "models/demo"))
from scene import FONT  # noqa: E402

FUNC = "def myFunc(rknn_lite, IMG):\n    return IMG\n"
NOT_COPIED = shutil.ignore_patterns(".*", "tests", "docs", "runs", "__pycache__")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a script in a copy of this project with a func.py of two lines: a CompletedProcess."""
    root = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(ROOT, root, ignore=NOT_COPIED)
    (root / "func.py").write_text(FUNC)

    def run_in_copy(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run_in_copy


@pytest.fixture
def short_clip(tmp_path, demo_frames):
    return write_clip(tmp_path / "clip.avi", demo_frames[:3])


def test_main_py_shows_the_frames_that_myfunc_returns(run, short_clip, tmp_path):
    done = run("main.py", short_clip, "--headless", "--save", tmp_path / "out.avi")
    assert "3 frames" in done.stdout and (tmp_path / "out.avi").stat().st_size > 10_000


@pytest.mark.parametrize(
    "func, model", [("yolov8", "yolov8n"), ("resnet", "resnet18"), ("ultralytics", None)]
)
def test_other_func_files_run(run, short_clip, tmp_path, func, model):
    path = f"models/{model}_emoji.rknn"
    if model is None:
        import layouts

        path = layouts.save(layouts.ultralytics(), tmp_path / "m.onnx", task="detect")
    flags = ["--headless", "--json", "-", "--model", path]
    done = run("main.py", short_clip, "--func", f"funcs/{func}.py", *flags)
    assert len(done.stdout.splitlines()) == 3
    assert len(re.findall('"score"', done.stdout)) > 3


def test_the_benchmark_runs(run, short_clip, tmp_path):
    flags = "--simulate 5x3 --threads 3 --seconds 0.3 --rounds 1 --warmup 0.1 --profile".split()
    done = run("benchmark.py", "--cap", short_clip, *flags, "--output", tmp_path / "out")
    assert "| draw |" in done.stdout


def test_convert_py_runs(run, tmp_path):
    shutil.copy(ROOT / "models/resnet18_emoji.onnx", tmp_path / "m.onnx")
    flags = "--dtype fp --mean 1 2 3 --std 4 5 6".split()
    done = run("models/convert.py", tmp_path / "m.onnx", *flags, code=2)
    assert "std [4.0, 5.0, 6.0]" in done.stdout and "rknn-toolkit2" in done.stderr


@pytest.mark.skipif(
    not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed"
)
def test_the_evaluations_run(run):
    run("models/demo/evaluate.py", "models/yolov5n_emoji.onnx", "--scenes", 1)
    run("models/demo/evaluate_classifier.py", "models/resnet18_emoji.onnx", "--objects", 2)


def test_the_examples_run(run):
    ran = run("examples/asyncio_streams.py", "models/result.jpg", "models/result.jpg")
    assert ran.stdout.count("1 frames") == 2
    assert "scheduler" in run("examples/boards.py", "--help").stdout


def test_only_the_loader_imports_func():
    """Exceptions are the tests, and a pool without a func."""
    importing = re.compile(r"^\s*(import func\b|from func import)", re.M)
    folders = "vision runtimes sources results examples models funcs".split()
    files = list(ROOT.glob("*.py"))
    for folder in folders:
        files += (ROOT / folder).rglob("*.py")
    found = [
        str(path.relative_to(ROOT)) for path in files if importing.search(path.read_text("utf-8"))
    ]
    assert sorted(found) == ["funcs/__init__.py", "rknnpool.py"]
