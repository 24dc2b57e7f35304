"""main.py on machines that allow less: no room, no CPU binding, a read-only clone, a symlink."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import main
import process


def no_byte_can_be_written():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_without_a_temporary_folder_and_without_room_frames_are_processed(
    main_py, clip, car_func, tmp_path
):
    done = main_py(
        clip,
        "--headless",
        "--func",
        car_func,
        "--json",
        tmp_path / "out.jsonl",
        preexec_fn=no_byte_can_be_written,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "clip.avi: 45 frames in" in done.stdout and "45 not saved" in done.stdout
    assert "out.jsonl: 45 frames are missing at the end." in done.stderr


def test_convert_says_that_there_is_no_temporary_folder(tmp_path):
    arguments = ["models/resnet18_emoji.onnx", "--to", "tflite", "--out", tmp_path / "out.tflite"]
    done = subprocess.run(
        [sys.executable, "models/convert.py", *map(str, arguments), "--calibration", "models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=no_byte_can_be_written,
    )
    assert done.returncode == 2 and "No usable temporary directory" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("call", ["sched_getaffinity", "sched_setaffinity"])
def test_a_system_that_refuses_to_bind_a_process_to_cpus_does_not_end_it(monkeypatch, call):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, call, refused)
    process.stay_on_big_cores()


def test_main_runs_behind_a_symlink_in_another_folder(clip, tmp_path, car_func):
    (tmp_path / "rknn").symlink_to(ROOT / "main.py")
    command = [sys.executable, "rknn", str(clip), "--headless", "--func", "car.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "45 frames" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"modelPath": "models/mistyped.rknn"}, "mistyped.rknn: no such file"),
        ({"cap": "no-such-video.mp4"}, "no-such-video.mp4: no such file."),
        ({"save": "/proc/none/out.mp4"}, "out.mp4: cannot be written"),
        ({"json": "no-such-folder/out.jsonl"}, "out.jsonl: cannot be written"),
    ],
)
def test_a_setting_may_be_a_path(monkeypatch, capsys, clip, settings, sentence):
    for name, value in {"cap": clip, **settings}.items():
        monkeypatch.setattr(main, name, Path(value))
    monkeypatch.setattr(sys, "argv", ["main.py", "--headless"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2 and sentence in capsys.readouterr().err


def test_main_runs_in_a_read_only_clone(clip, tmp_path, car_func):
    clone = tmp_path / "clone"
    clone.mkdir()
    mount = f"mount --bind {ROOT} {clone} && mount -o remount,ro,bind {clone}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("only root can mount a folder read-only, and not in a chroot")
    run = f"cd {clone} && {sys.executable} main.py {clip} --headless --func {car_func} --json"
    for file, code in ((tmp_path / "out.jsonl", 0), ("out.jsonl", 2)):
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{mount} && {run} {file}"],
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert "out.jsonl: cannot be written (Read-only file system)" in done.stderr


@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_dev_stdout_is_stdout_and_contains_only_json(clip, tmp_path, car_func, kind):
    command = [sys.executable, "main.py", str(clip), "--headless", "--func", str(car_func)]
    command += ["--json", "/dev/stdout"]
    with contextlib.ExitStack() as stack:
        if kind == "file":
            stdout = stack.enter_context(open(tmp_path / "out", "w"))
        elif kind == "socket":  # as systemd connects stdout to its journal
            reading, stdout = map(stack.enter_context, socket.socketpair())
        else:
            stdout = subprocess.PIPE
        done = subprocess.run(
            command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        if kind == "socket":
            stdout.close()
            text = b"".join(iter(lambda: reading.recv(65536), b"")).decode()
        else:
            text = done.stdout if kind == "pipe" else (tmp_path / "out").read_text()
    assert [json.loads(line)["frame"] for line in text.splitlines()] == list(range(45))
