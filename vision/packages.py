"""A sentence for a package that is not installed, with a command that installs it."""
from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import signal
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Iterator

from vision.paths import ROOT

# What pip calls a package, where it is not named like its module.
PIP_NAMES = {"PIL": "pillow", "ai_edge_litert": "ai-edge-litert", "cv2": "opencv-python",
             "paho": "paho-mqtt", "rknn": "rknn-toolkit2", "yaml": "pyyaml"}


def pip_install(*arguments: str) -> str:
    """The command line that installs packages for the Python that runs this program.

    arguments: of pip install: packages, or "-r" and a file.
    """
    managed = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if sys.prefix == sys.base_prefix and os.path.exists(managed):  # Debian's own refuses pip
        return new_environment(ROOT / ".venv", "-r", str(ROOT / "requirements.txt"), *arguments)
    if importlib.util.find_spec("pip") is None:  # as in the environments of uv
        return shlex.join(["uv", "pip", "install", "--python", sys.executable, *arguments])
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def new_environment(folder: Path, *arguments: str) -> str:
    """The command that creates a virtual environment and installs packages in it."""
    pip = shlex.join([str(folder / "bin" / "python"), "-m", "pip", "install", *arguments])
    return f"{shlex.join([sys.executable, '-m', 'venv', str(folder)])} && {pip}"


def missing_package(what: str, error: ImportError) -> str:
    """The sentence for a package that `what` needs and that cannot be imported."""
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):  # a library of the system, or another version
        reason = next((line for line in str(error).splitlines() if line), module)
        return f"{what}: {reason}. See docs/troubleshooting.md."
    if module in getattr(sys, "stdlib_module_names", ()):  # Python 3.10 or later
        return (f"{what} needs Python's own module {module}, which {sys.executable} lacks. Use "
                "another Python, such as that of the system's packages.")
    package = PIP_NAMES.get(module, module)
    python = ROOT / ".venv" / "bin" / "python"
    elsewhere = python.exists() and Path(sys.prefix).resolve() != python.parents[1].resolve()
    hint = f"Run it with {python}, or install the package: " if elsewhere else ""
    return f"{what} needs the package {package}{'. ' if hint else ': '}{hint}{pip_install(package)}"


@contextlib.contextmanager
def needed_packages(ctrl_c_ends: bool = True) -> Iterator[None]:
    """Surrounds imports: if a package is missing, the program ends with a sentence and exit code 2.

    ctrl_c_ends: Ctrl-C ends the program at once. During imports, Python loses some
    KeyboardInterrupts, and the others end in a traceback.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    ends = (ctrl_c_ends and interrupt is signal.default_int_handler
            and threading.current_thread() is threading.main_thread())
    if ends:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    except ImportError as error:
        if (ROOT / (error.name or "").partition(".")[0]).exists():  # a file of this project
            raise
        print(missing_package(os.path.basename(sys.argv[0]), error), file=sys.stderr)
        sys.exit(2)
    finally:
        if ends:
            signal.signal(signal.SIGINT, interrupt)
