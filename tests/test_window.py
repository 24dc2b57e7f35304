"""The windows of main.py, on a real X server that draws into memory."""

import ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys

import cv2
import pytest
from conftest import ROOT

missing = [
    package
    for tool, package in {"Xvfb": "xvfb", "xdotool": "xdotool"}.items()
    if not shutil.which(tool)
]
if "GUI:                           NONE" in cv2.getBuildInformation():
    missing.append("opencv-python (the headless one is here)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"a window needs {', '.join(missing)}: install them"),
]


@pytest.fixture
def screen():
    """Start an X server: the name of its display."""
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-noreset", "-displayfd", str(write)], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read) as number:
        yield f":{number.readline().strip()}"
    server.kill()
    server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["q", "Escape"])
def test_each_stream_has_a_window_and_a_key_closes_all_of_them(screen, tmp_path, key):
    environment = dict(os.environ, DISPLAY=screen)
    (tmp_path / "plain.py").write_text("def myFunc(rknn_lite, IMG):\n    return IMG\n")
    command = [
        sys.executable,
        "-u",
        "main.py",
        "models/demo.mp4",
        "models/demo.mp4",
        "--func",
        str(tmp_path / "plain.py"),
    ]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for name in ("-1", "-2"):
        found = subprocess.run(
            ["xdotool", "search", "--sync", "--name", f"^demo.mp4{name}$"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert found.stdout.strip(), running.poll()
    window = found.stdout.split()[-1]
    subprocess.run(
        ["xdotool", "windowfocus", "--sync", window, "key", "--window", window, key],
        env=environment,
        check=True,
        timeout=60,
    )
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 0, stderr
    counts = [
        int(line.split(": ")[1].split()[0]) for line in stdout.splitlines() if "frames in" in line
    ]
    assert counts[0] + counts[1] == counts[2] and 0 < min(counts[:2]) and max(counts[:2]) < 600
    assert "Qt" not in stderr


def click_close(display, window):
    """What a window manager sends when the close button of a window is clicked."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype, x11.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
    screen = ctypes.c_void_p(x11.XOpenDisplay(display.encode()))
    atoms = [x11.XInternAtom(screen, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")]
    # An XClientMessageEvent of type ClientMessage (33), in the size of the union XEvent.
    event = struct.pack("@iLiPLLi5l", 33, 0, 1, 0, window, atoms[0], 32, atoms[1], 0, 0, 0, 0)
    x11.XSendEvent(screen, ctypes.c_ulong(window), 0, ctypes.c_long(0), event.ljust(192, b"\0"))
    x11.XCloseDisplay(screen)


@pytest.mark.parametrize("end", ["space", "close button", "Ctrl-C", "saved"])
def test_the_window_shows_the_last_picture_until_the_user_closes_it(screen, tmp_path, end):
    environment = dict(os.environ, DISPLAY=screen)
    (tmp_path / "plain.py").write_text("def myFunc(rknn_lite, IMG):\n    return IMG\n")
    picture = str(tmp_path / "result.jpg")  # a photo of 12 megapixels
    cv2.imwrite(picture, cv2.resize(cv2.imread(str(ROOT / "models/result.jpg")), (4000, 3000)))
    command = [sys.executable, "main.py", picture, "--func", str(tmp_path / "plain.py")]
    command += ["--save", str(tmp_path / "out.jpg")] if end == "saved" else []
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.PIPE, text=True
    )
    if end != "saved":
        assert any("Press a key in the window, or close it" in line for line in running.stderr)
        found = ["xdotool", "search", "--sync", "--name", "^result.jpg$"]
        found = subprocess.run(found, env=environment, stdout=-1, text=True, timeout=60).stdout
        window = found.split()[-1]
        geometry = ["xdotool", "getwindowgeometry", "--shell", window]
        shown = subprocess.run(geometry, env=environment, stdout=-1, text=True).stdout.split()
        assert "WIDTH=960" in shown and "HEIGHT=720" in shown
    if end == "space":
        keys = ["xdotool", "windowfocus", "--sync", window, "key", "--window", window, end]
        subprocess.run(keys, env=environment, check=True, timeout=60)
    elif end == "close button":
        click_close(screen, int(window))
    elif end == "Ctrl-C":
        running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == (130 if end == "Ctrl-C" else 0), stderr
