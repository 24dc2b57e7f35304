"""What is printed for the person at the terminal: lines beside progress bars, and tracebacks."""
from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import traceback
from typing import Any, Callable

from tqdm import tqdm

from sources.names import hide
from vision.paths import ROOT

# An error in the user's code passes through these files and folders, and through libraries; its
# traceback leaves them out. A user's file may lie in the root, in funcs/ or in examples/.
OURS = tuple(f"{ROOT}/{name}" for name in (
    "main.py", "meter.py", "rknnpool.py", "streams.py", "funcs/__init__.py", "results/",
    "runtimes/", "sources/", "vision/", "examples/boards_parts/"))
LIBRARIES = re.compile(r"<frozen |.*/(site|dist)-packages/|"
                       + re.escape(f"{os.path.dirname(threading.__file__)}/"))


class Output:
    """stdout or stderr. A text that nobody reads any more (`| head`), or that a full disk does not
    take, is dropped and does not end the program."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def prepare_output() -> None:
    """Make stdout and stderr take every text. Call it once, before anything is printed."""
    for name in ("stdout", "stderr"):
        file = getattr(sys, name)
        if file is None:  # the shell closed it (>&-)
            file = open(os.devnull, "w")
        elif hasattr(file, "reconfigure"):  # the terminal may lack some letters
            file.reconfigure(errors="backslashreplace")
        setattr(sys, name, Output(file))


def say(text: str, file: Any = None) -> None:
    """Print a line beside the progress bars, without passwords. file: sys.stdout unless given."""
    with contextlib.suppress(OSError, ValueError):  # in a program without prepare_output()
        tqdm.write(hide(text), file=file or sys.stdout)
        (file or sys.stdout).flush()


class PoolMessages(logging.Handler):
    """Prints the pool's warnings, such as a core that fails. print_once: prints a text once."""

    def __init__(self, print_once: Callable[[str], None]) -> None:
        super().__init__()
        self.print_once = print_once

    def emit(self, record: logging.LogRecord) -> None:
        self.print_once(record.getMessage())


def users_traceback(error: BaseException) -> str:
    """The traceback of an error, without the lines above those of the user's code, if any."""
    trace = error.__traceback__
    while trace and not is_users(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return "".join(lines).rstrip()


def is_users(file: str) -> bool:
    """Whether the file of a traceback's line belongs neither to us nor to a library."""
    # abspath: Python 3.8 calls main.py by the name that was typed.
    return not (LIBRARIES.match(file) or os.path.abspath(file).startswith(OURS))
