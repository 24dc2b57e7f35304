"""Checks of cameras, the video decoder and the display."""
from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import subprocess
import sys
from typing import Any, Iterator, NamedTuple

import sources
from doctor import board
from doctor.line import Line, read
from results import window
from vision.packages import pip_install

DECODER = "/dev/mpp_service"  # the board's
LARGEST, SMALLEST = 1920 * 1080, 640 * 480  # pixels of the sizes whose fastest is named
COMPRESSED = "MJPG", "JPEG", "H264", "HEVC"
LIMIT_SECONDS = 10


# ---- cameras ----

class Mode(NamedTuple):
    """What a camera can deliver."""

    form: str
    width: int
    height: int
    fps: float

    @property
    def flags(self) -> str:
        return (f"--camera-size {self.width}x{self.height} --camera-fps {self.fps:g} "
                f"--camera-format {self.form}")


def modes(text: str) -> list[Mode]:
    """The modes in what `v4l2-ctl --list-formats-ext` prints."""
    found, form, size = [], "", (0, 0)
    for line in text.splitlines():
        if match := re.search(r"'(.{4})'", line):
            form = match[1]
        elif match := re.search(r"Size: Discrete (\d+)x(\d+)", line):
            size = int(match[1]), int(match[2])
        elif match := re.search(r"\(([\d.]+) fps\)", line):
            found.append(Mode(form, *size, float(match[1])))
    return found


def fastest(found: list[Mode]) -> Mode | None:
    """The mode with the highest rate; of equal ones the largest, and then one that needs no
    decoding. Sizes outside SMALLEST to LARGEST count only if there is no other."""
    useful = [mode for mode in found if SMALLEST <= mode.width * mode.height <= LARGEST] or found
    return max(useful, default=None, key=lambda mode: (
        mode.fps, mode.width * mode.height, mode.form not in COMPRESSED))


def cameras(root: str, **access: Any) -> Iterator[Line]:
    """The cameras, and the flags for the fastest mode of each. access: for board.closed()."""
    folders = sorted(glob.glob(f"{root}/sys/class/video4linux/video*"),
                     key=lambda path: int(re.sub(r"\D", "", os.path.basename(path))))
    devices, others = [f"/dev/{os.path.basename(folder)}" for folder in folders], []
    there = [device for device in devices if os.path.exists(f"{root}{device}")]
    refused = board.closed(root, there, **access)
    if refused:
        yield Line("cameras", "not all are shown", refused)
    if folders and not shutil.which("v4l2-ctl"):
        yield Line("cameras", "unknown", "To see them: sudo apt-get install v4l-utils")
        return
    for folder, device in zip(folders, devices):
        node, name = device[5:], read(f"{folder}/name")
        found = modes(_formats(device))
        best = fastest(found)
        if best is None:
            others.append(f"{node} ({name})")
            continue
        sizes = sorted({(mode.width * mode.height, mode.width, mode.height) for mode in found})
        rates = [f"{width}x{height} at {_rates(found, width, height)}"
                 for _, width, height in sizes[-2:][::-1]]
        yield Line(f"camera {node[5:]}", f"{name}: {'; '.join(rates)}. Fastest: main.py {node[5:]} "
                                         f"{best.flags}")
    if others:
        more = f" and {len(others) - 4} more" * (len(others) > 4)
        yield Line("other video", f"{', '.join(others[:4])}{more}: not USB cameras")
    elif not folders:
        yield Line("cameras", "none")


def _rates(found: list[Mode], width: int, height: int) -> str:
    """The highest rate of each format: "30 FPS in MJPG, 5 FPS in YUYV"."""
    highest: dict[str, float] = {}
    for mode in found:
        if (mode.width, mode.height) == (width, height):
            highest[mode.form] = max(mode.fps, highest.get(mode.form, 0))
    return ", ".join(f"{fps:g} FPS in {form}" for form, fps in highest.items())


def _formats(device: str) -> str:
    """What v4l2-ctl says of a device; "" if it says nothing in time."""
    try:
        return subprocess.run(["v4l2-ctl", "-d", device, "--list-formats-ext"], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              errors="replace", timeout=LIMIT_SECONDS).stdout
    except subprocess.TimeoutExpired:
        return ""


# ---- decoder and display ----

def decoder(root: str, reader: str | None) -> Line:
    """What decodes files and URLs. reader: as --reader."""
    has_device, name = os.path.exists(f"{root}{DECODER}"), "video decoder"
    if reader != "opencv" and sources.has_hardware():
        if not has_device:
            return Line(name, "OpenCV, on the CPU", f"pyav-rkmpp is installed, but there is no "
                        f"{DECODER}: in a container, start it with --device {DECODER}; otherwise "
                        "boot the board vendor's image.")
        problem = board.closed(root, [DECODER]) or _import_error("av")
        return Line(name, "OpenCV, on the CPU" if problem else
                    "pyav-rkmpp, in hardware: H.264, H.265, AV1", problem)
    cpu = "PyAV, on the CPU" if reader == "av" else "OpenCV, on the CPU"
    return Line(name, cpu, f"This board can decode in hardware: {pip_install('pyav-rkmpp')}"
                if has_device and reader is None else "")


def _import_error(module: str) -> str:
    """A sentence if another process cannot import a module, else ""."""
    why = f"within {LIMIT_SECONDS} s"
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run([sys.executable, "-c", f"import {module}"], text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              errors="replace", timeout=LIMIT_SECONDS)
        if done.returncode == 0:
            return ""
        why = f"({(done.stderr.strip().splitlines() or [f'code {done.returncode}'])[-1]})"
    return (f"{module} cannot be imported {why}: "
            f"{pip_install('--force-reinstall', 'pyav-rkmpp')}")


def display() -> Line:
    """Whether main.py can open a window."""
    shown = os.environ.get("DISPLAY")
    if not shown:
        return Line("display", "none: main.py opens no window. --web shows a page instead "
                               "(docs/results.md)")
    return Line("display", shown) if window.can_show() else Line(
        "display", shown, "OpenCV cannot open a window there: reinstall opencv-python, not the "
        "headless one; over ssh, check DISPLAY and XAUTHORITY.")
