"""main.py --doctor: one screen about the board, the NPU, the cameras, and what is wrong with them.

Each check is a function that returns or yields Lines. What opens the NPU runs in a separate
process (doctor/npu_process.py).
"""
from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import rknnpool
import runtimes
from doctor import board, npu, software, video
from doctor.line import Line
from results import status
from results.console import say
from vision.model import library_version

WIDTH = 100


def examine(args: Any, root: str = status.SYSROOT) -> int:
    """Print the screen. Returns the exit code: 0 if the NPU works, 3 if it cannot be used.

    args: main.py's flags model, runtime, threads and reader. root: see doctor/board.py.
    """
    found: list[Line] = []
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH) \
        if sys.stdout.isatty() else WIDTH

    def show(*lines: Line | None) -> None:
        for line in filter(None, lines):
            found.append(line)
            say(line.text(width))

    soc = rknnpool.soc()
    on_a_board = board.is_board(root, soc)
    show(*board.system(root, soc))
    if on_a_board:
        show(board.driver(root), board.devices(root), board.users(root, os.getpid()))
        if board.driver_of(root) != "rocket":
            show(software.library(root), software.wheel())
    show(software.python())
    works = _test(args, root, soc, show)
    show(*board.clocks(root), *board.heat(root), *board.memory(root))
    show(*video.cameras(root), video.decoder(root, args.reader), video.display())
    say(f"\n{_verdict(works, sum(bool(line.problem) for line in found))}")
    if os.geteuid() and on_a_board:
        say("Root also sees the NPU's load, the driver's version, and other users' processes:\n"
            f"sudo {sys.executable} main.py --doctor")
    return 0 if any(works) else 3


def _test(args: Any, root: str, soc: str | None, show: Any) -> list[bool]:
    """Show the model and the tests of the NPU. Returns whether each core works."""
    runtime = None if args.runtime == "cpu" else args.runtime
    if board.driver_of(root) == "rocket":
        runtime = runtime or "teflon"
    path = args.model
    try:
        path = runtimes.by_name("teflon").find_model(path) if runtime == "teflon" else path
    except OSError as error:
        show(Line("model", path, f"{error}."))
        return []
    line, model = software.model(path, None if runtime == "teflon" else soc, root)
    show(line)
    if not (soc and model):
        return []
    library = library_version(software.library_path(root))
    works = []
    for line, core_works in npu.cores(model, soc, runtime, library):
        show(line)
        works.append(core_works)
    if any(works):
        count = args.threads or 2 * rknnpool.npu_cores(soc)
        show(npu.contexts(model, count, runtime, library))
    return works


def _verdict(works: list[bool], problems: int) -> str:
    hints = f" See the {problems} line{'s' * (problems != 1)} with -> above." if problems else ""
    if not any(works):
        return f"The NPU cannot be used.{hints}"
    if all(works):
        return f"The NPU works.{hints}"
    bad = " and ".join(str(core) for core, core_works in enumerate(works) if not core_works)
    return f"The NPU works except core {bad}: main.py gives its frames to the others.{hints}"
