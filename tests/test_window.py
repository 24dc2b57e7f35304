"""What main.py promises to the person at the screen: on a real X server that draws into memory."""
import os
import shutil
import subprocess
import sys

import cv2
import pytest
from conftest import ROOT

missing = [package for tool, package in {"Xvfb": "xvfb", "xdotool": "xdotool"}.items() if not shutil.which(tool)]
if "GUI:                           NONE" in cv2.getBuildInformation():
    missing.append("opencv-python (the headless one is here)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing),
                                                    reason=f"a window needs {', '.join(missing)}: install them")]


@pytest.fixture
def screen():
    """The name of an X server's display."""
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-noreset", "-displayfd", str(write)], pass_fds=[write],
                              stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as number:
        yield f":{number.readline().strip()}"
    server.kill()
    server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["q", "Escape"])
def test_each_stream_has_a_window_and_a_key_ends_them_all(screen, tmp_path, key):
    environment = dict(os.environ, DISPLAY=screen)
    (tmp_path / "plain.py").write_text("def myFunc(rknn_lite, IMG):\n    return IMG\n")
    command = [sys.executable, "-u", "main.py", "models/demo.mp4", "models/demo.mp4", "--func",
               str(tmp_path / "plain.py")]
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    for name in ("-1", "-2"):
        found = subprocess.run(["xdotool", "search", "--sync", "--name", f"^demo.mp4{name}$"],
                               env=environment,
                               capture_output=True, text=True, timeout=60)
        assert found.stdout.strip(), running.poll()
    window = found.stdout.split()[-1]
    subprocess.run(["xdotool", "windowfocus", "--sync", window, "key", "--window", window, key], env=environment,
                   check=True, timeout=60)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 0, stderr
    counts = [int(line.split(": ")[1].split()[0]) for line in stdout.splitlines() if "frames in" in line]
    assert counts[0] + counts[1] == counts[2] and 0 < min(counts[:2]) and max(counts[:2]) < 600
    assert "Qt" not in stderr
