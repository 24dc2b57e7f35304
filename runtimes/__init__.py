"""What can stand in RKNNLite's place; each file can be left out. And which of them a name
means."""
import importlib
from typing import Any, Optional, Tuple

from rknnmodel import InputError

RUNTIMES = {"wheel": ("rknnlite.api", "rknn-toolkit-lite2 is not installed"),
            "library": ("runtimes.librknnrt", "runtimes/librknnrt.py is missing"),
            "cpu": ("runtimes.cpu", "runtimes/cpu.py is missing"),
            "teflon": ("runtimes.teflon", "runtimes/teflon.py is missing")}


def named(name: Optional[str]) -> Any:
    """The class of the runtime of that name, None for the pool's own choice. Raises InputError for other names, and
    where it is not there."""
    if name is None:
        return None
    if name not in RUNTIMES:
        raise InputError(f"--runtime {name}: is none of {', '.join(RUNTIMES)}.")
    module, missing = RUNTIMES[name]
    try:
        return importlib.import_module(module).RKNNLite
    except ImportError as error:
        raise InputError(f"--runtime {name}: {missing} ({error}).") from None


def model_for(name: Optional[str], path: str, npu: Optional[str]) -> Tuple[str, Optional[str]]:
    """What rknnmodel.describe() is asked for the model at `path` that the runtime of that name will run: the file (for
    "teflon" the .tflite beside a .rknn), and the SoC whose NPU will run a .rknn, None where none will.

    npu: this machine's SoC. Raises InputError where there is no such runtime, or no such file for it.
    """
    find = getattr(named(name), "find_model", None)
    try:
        return find(path) if find else path, None if name in ("cpu", "teflon") else npu
    except OSError as error:
        raise InputError(f"{error}.") from None
