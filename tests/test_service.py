"""examples/rknnpool*.service: systemd accepts them, and main.py ends as they expect."""

import configparser
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from fakes import wait_until

UNITS = [ROOT / f"examples/rknnpool{name}.service" for name in ("", "-clocks", "-worker")]
ANALYZE = shutil.which("systemd-analyze")


def read(unit):
    parser = configparser.ConfigParser(
        strict=False, interpolation=None, comment_prefixes="#", delimiters="="
    )
    parser.optionxform = str
    parser.read(unit)
    return parser


@pytest.mark.skipif(not ANALYZE, reason="apt-get install systemd")
def test_systemd_accepts_the_units(tmp_path):
    for unit in UNITS:
        text = unit.read_text().replace("/opt/rknnpool/.venv/bin", os.path.dirname(sys.executable))
        (tmp_path / unit.name).write_text(text.replace("/opt/rknnpool", str(ROOT)))
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:/lib/systemd/system"}
    ran = subprocess.run(
        [ANALYZE, "verify", "--man=no", *(tmp_path / unit.name for unit in UNITS)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("unit, restart", [(UNITS[0], "on-failure"), (UNITS[2], "always")])
def test_the_services_need_no_root_and_restart_after_a_failure(unit, restart):
    service = read(unit)["Service"]
    assert (
        service["DynamicUser"] == "yes" and service["Restart"] == restart and "User" not in service
    )
    assert (
        UNITS[1].name in read(unit)["Unit"]["After"]
        and read(UNITS[1])["Service"]["Type"] == "oneshot"
    )


def test_the_worker_unit_has_the_command_of_the_docs():
    command = read(UNITS[2])["Service"]["ExecStart"].replace("/opt/rknnpool/", "", 1)
    assert f"\n{command}\n" in (ROOT / "docs/boards.md").read_text()


def test_main_py_accepts_the_units_command(tmp_path, main_py):
    python, script, *arguments = shlex.split(read(UNITS[0])["Service"]["ExecStart"])
    assert (python, script) == ("/opt/rknnpool/.venv/bin/python", "main.py")
    source = arguments.index("gate=rtsp://192.168.1.20/live")
    arguments[source] = f"gate={tmp_path / 'missing.mp4'}"
    arguments[arguments.index("--web") + 1] = "0"
    arguments[arguments.index("--json") + 1] = str(tmp_path / "results.jsonl")
    ran = main_py(*arguments)
    assert ran.returncode == 2 and "no such file" in ran.stderr and "usage" not in ran.stderr


@pytest.mark.slow
def test_sigterm_ends_main_with_the_expected_code_and_complete_lines(tmp_path):
    """Exit code 143, no traceback, no progress bar, all frames saved."""
    out = tmp_path / "results.jsonl"
    command = [
        sys.executable,
        "main.py",
        "models/demo.mp4",
        "--headless",
        "--quiet",
        "--web",
        "0",
        "--json",
        str(out),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: process.poll() is not None or out.exists() and out.stat().st_size > 20000)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143 == int(read(UNITS[0])["Service"]["SuccessExitStatus"])
    lines = out.read_text().splitlines()
    assert all(line.startswith("{") and line.endswith("}") for line in lines)
    assert f": {len(lines)} frames in" in printed
    assert (
        "Traceback" not in printed
        and "\r" not in printed
        and "FPS over" not in printed
        and "\x1b" not in printed
    )
