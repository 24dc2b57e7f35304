"""What is said to the person at the terminal: a line beside the progress bars, the traceback of an error of theirs."""
import concurrent.futures
import os
import sys
import threading
import traceback
from typing import Any

from tqdm import tqdm

import funcs
import rknnpool
from results import result
from sources.names import hide

ROOT = os.path.dirname(rknnpool.__file__)
# files through which an error in the user's code comes
OURS = (rknnpool.__file__, result.__file__, funcs.__file__, threading.__file__,
        os.path.dirname(concurrent.futures.__file__), os.path.join(ROOT, "streams.py"), os.path.join(ROOT, "main.py"))


def say(text: str, file: Any = None) -> None:
    """Print a line beside the progress bars, without passwords. Who no longer reads (`| head`) does not end the run."""
    try:
        tqdm.write(hide(text), file=file or sys.stdout)
        (file or sys.stdout).flush()
    except (OSError, ValueError):  # ValueError: closed
        setattr(sys, "stderr" if file else "stdout", open(os.devnull, "w"))


def is_ours(file: str) -> bool:
    """Whether a file, as a traceback names it, is one through which an error in the user's code only comes."""
    # Python 3.8 knows main.py under the name that it was started by.
    return file.startswith("<frozen importlib") or os.path.abspath(file).startswith(OURS)


def users_traceback(error: BaseException) -> str:
    """The traceback of an error in the user's code, without our lines, through which it came."""
    trace = error.__traceback__
    while trace and is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace or error.__traceback__)).rstrip()
