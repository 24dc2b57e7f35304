"""What can stand in RKNNLite's place; each file can be left out. And which of them a name
means."""
import importlib
from typing import Any, Optional

from rknnmodel import InputError

RUNTIMES = {"wheel": ("rknnlite.api", "rknn-toolkit-lite2 is not installed"),
            "library": ("runtimes.librknnrt", "runtimes/librknnrt.py is missing"),
            "cpu": ("runtimes.cpu", "runtimes/cpu.py is missing")}


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
