"""Runtimes: classes with RKNNLite's methods (protocol.py). Finds one by name, or chooses one."""
from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
from typing import Any

from runtimes.old_wheel import without_leak
from vision import model as models
from vision.errors import InputError
from vision.model import LIBRARY, Model
from vision.packages import pip_install

RUNTIMES = {"wheel": ("rknnlite.api", "rknn-toolkit-lite2 is not installed"),
            "library": ("runtimes.librknnrt", "runtimes/librknnrt.py cannot be imported"),
            "cpu": ("runtimes.cpu", "runtimes/cpu.py cannot be imported"),
            "teflon": ("runtimes.teflon", "runtimes/teflon.py cannot be imported")}

COMPATIBLE = "/proc/device-tree/compatible"
DEVICES = ("/dev/dri/renderD129", "/dev/rknpu")
ROCKET = ("/sys/module/rocket", "/sys/bus/platform/drivers/rocket")  # mainline's open driver
ACCEL = "/dev/accel/accel0"  # its device; NPUs of other makers have one, too
UNMASK = "a container hides it: docker run --security-opt systempaths=unconfined"


def by_name(name: str | None) -> Any:
    """The runtime class with that name, or None for None: the pool then chooses.

    Raises InputError if the name is unknown or the runtime is not installed.
    """
    if name is None:
        return None
    if name not in RUNTIMES:
        raise InputError(f"--runtime {name}: unknown; choose from {', '.join(RUNTIMES)}.")
    module, problem = RUNTIMES[name]
    try:
        runtime = importlib.import_module(module).RKNNLite
    except ImportError as error:
        wheel_exists = platform.machine() == "aarch64" and sys.version_info < (3, 13)
        how = pip_install("rknn-toolkit-lite2") if name == "wheel" and wheel_exists else error
        raise InputError(f"--runtime {name}: {problem} ({how}).") from None
    return without_leak(runtime) if name == "wheel" else runtime


def choose(path: Any, soc: str | None) -> Any:
    """The runtime class that runs the model at `path` on this machine.

    A .tflite runs on the open driver. Everything else runs on the vendor's NPU, by the wheel if it
    is installed, otherwise by librknnrt.so. Without an NPU, it runs on the CPU.

    soc: this machine's SoC, as rknnpool.soc() returns it.
    """
    if str(getattr(path, "path", path)).lower().endswith(".tflite"):
        return by_name("teflon")
    reason = None
    if soc:
        try:
            return without_leak(importlib.import_module("rknnlite.api").RKNNLite)
        except Exception as error:  # ValueError: the wheel was built for another NumPy
            reason = f"{soc} found, but rknn-toolkit-lite2 cannot be imported ({error})"
        rocket = any(map(os.path.exists, ROCKET))
        if not rocket and os.path.exists(os.environ.get("RKNNRT_LIB", LIBRARY)):
            return by_name("library")
        if rocket:
            reason += f"; {missing()}"
        elif sys.version_info >= (3, 13):
            reason += ("; it supports Python 3.8 to 3.12, `uv venv --python 3.12` makes a suitable "
                       "environment")
    elif os.environ.get("RKNN_SOC"):
        reason = (f"RKNN_SOC={os.environ['RKNN_SOC']} is not a known SoC with an NPU "
                  f"({', '.join(models.FAMILIES)})")
    elif not os.path.exists(COMPATIBLE) and (devices() or os.path.exists(LIBRARY)):
        reason = f"No {COMPATIBLE} ({UNMASK}); set RKNN_SOC=rk3588 to name the SoC without it"
    from runtimes import cpu
    cpu.why = reason or cpu.why
    return cpu.RKNNLite


def prepare(rknnModel: Any, runtime: Any, soc: str | None) -> tuple[Any, Model]:
    """The runtime class for a pool, and the description of its model.

    rknnModel: path of the model, or a Model that describe() returned.
    runtime: a class with RKNNLite's methods; None: choose() chooses.
    soc: this machine's SoC, as rknnpool.soc() returns it.
    Prints warnings about the model to stderr. Raises InputError if this machine cannot run it.
    """
    runtime = runtime or choose(rknnModel, soc)
    soc = soc if runs_on_npu(runtime) else None
    if isinstance(rknnModel, Model):
        model = rknnModel
    else:
        path = os.fspath(rknnModel)
        with contextlib.suppress(OSError, TypeError):  # load_rknn() reports the reason
            path = _file_for(runtime, path, soc)
        try:
            model = models.describe(path, soc)
        except InputError:
            if os.path.exists(path):
                raise
            return runtime, Model(path)  # load_rknn() reports that the file is missing
    # Other runtimes, such as a simulated NPU, do not read the model file.
    if soc or getattr(runtime, "ON_CPU", False):
        for warning in models.problems(model, soc):
            print(warning, file=sys.stderr)
    return runtime, model


def runs_on_npu(runtime: Any) -> bool:
    """True if contexts of this class run on the machine's own NPU, by the vendor's driver."""
    module = getattr(runtime, "__module__", None) or ""
    return module.split(".")[0] == "rknnlite" or getattr(runtime, "VENDOR_NPU", False)


def devices(root: str = "") -> list[str]:
    """The device files of the vendor's driver that exist below `root`. On a PC, the second GPU has
    such a name."""
    on_arm = platform.machine().startswith(("aarch", "arm"))
    return [path for path in DEVICES if on_arm and os.path.exists(f"{root}{path}")]


def missing() -> str:
    """What this machine lacks for the vendor's runtime, as part of a sentence; "" for nothing."""
    if any(map(os.path.exists, ROCKET)):
        return ("this kernel has the open rocket driver, which Rockchip's librknnrt.so cannot use: "
                "choose --runtime teflon (docs/runtimes.md), or boot a kernel with the rknpu "
                "driver, for example from the board vendor's image")
    lacks = [] if os.path.exists(COMPATIBLE) else [f"{COMPATIBLE} ({UNMASK})"]
    if not os.path.exists(LIBRARY):
        lacks.append(f"{LIBRARY} (it comes with the board vendor's image)")
    if not devices():
        lacks.append(f"{DEVICES[0]} (the rknpu driver's device)")
    return f"this machine lacks {', '.join(lacks)}" if lacks else ""


def model_for(name: str | None, path: str, soc: str | None) -> tuple[str, str | None]:
    """The arguments for vision.model.describe(): (the file to run, the SoC whose NPU runs it).

    name: the runtime's; None: choose() chooses. path: the model's.
    soc: this machine's SoC, as rknnpool.soc() returns it.
    The SoC returned is None if no Rockchip NPU will run the file. Raises InputError if there is no
    such runtime, or no such file for it.
    """
    runtime = by_name(name) or choose(path, soc)
    soc = soc if runs_on_npu(runtime) else None
    try:
        return _file_for(runtime, path, soc), soc
    except OSError as error:
        raise InputError(f"{error}.") from None


def _file_for(runtime: Any, path: str, soc: str | None) -> str:
    """The file that a runtime class runs for the model at `path`. Raises OSError if there is none.

    soc: the SoC whose vendor's NPU runs it, or None.
    """
    if hasattr(runtime, "find_model"):
        return runtime.find_model(path)
    return models.for_npu(path, soc) if soc else path
