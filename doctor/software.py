"""Checks of Python, Rockchip's wheel and library, and the model."""
from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from importlib import metadata

from doctor.line import Line
from vision.errors import InputError
from vision.model import (
    LIBRARY,
    Model,
    describe,
    for_npu,
    library_version,
    onnx_beside,
    problems,
)
from vision.packages import pip_install

GET_LIBRARY = 'see "Install librknnrt.so" in docs/troubleshooting.md'


def library_path(root: str) -> str:
    """The path of librknnrt.so: the one that RKNNRT_LIB names, or else in /usr/lib."""
    return os.environ.get("RKNNRT_LIB") or f"{root}{LIBRARY}"


def library(root: str) -> Line:
    """Rockchip's librknnrt.so."""
    path = library_path(root)
    if not os.path.isfile(path):
        return Line("librknnrt.so", "none", f"There is no {path}: {GET_LIBRARY}.")
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return Line("librknnrt.so", path, "This file is not a library, perhaps a saved web "
                        f"page: {GET_LIBRARY}.")
    return Line("librknnrt.so", f"{library_version(path) or 'version unknown'}, {path}")


def python() -> Line:
    """Python and the packages that main.py needs."""
    import cv2  # only here and in main.py, so that main.py can say that it is missing
    import numpy
    return Line("Python", f"{platform.python_version()}, {sys.executable}; OpenCV "
                          f"{cv2.__version__}, NumPy {numpy.__version__}")


def wheel() -> Line:
    """Rockchip's wheel, and whether it was built for this Python."""
    here, name = "{}.{}".format(*sys.version_info[:2]), "wheel"
    try:
        found = metadata.distribution("rknn-toolkit-lite2")
    except metadata.PackageNotFoundError:
        none = f"none for Python {here}" if sys.version_info >= (3, 13) else "not installed"
        return Line(name, f"{none}: main.py calls librknnrt.so directly, which works as well")
    fact = f"rknn-toolkit-lite2 {found.version}"
    built = {f"{major}.{minor}" for major, minor in
             re.findall(r"^Tag: cp(\d)(\d+)-", found.read_text("WHEEL") or "", re.MULTILINE)}
    if built and here not in built:
        return Line(name, fact, f"It was built for Python {', '.join(sorted(built))}, and this is "
                    f"{here}: {sys.executable} -m pip install --force-reinstall --no-deps "
                    "rknn-toolkit-lite2; or uninstall it, and main.py calls librknnrt.so directly.")
    return Line(name, fact)


def model(path: str, soc: str | None, root: str) -> tuple[Line, Model | None]:
    """The model, compared with the SoC and the library; None if it cannot run here.

    soc: of the NPU that will run it by Rockchip's driver; None for the CPU or the open driver.
    """
    try:
        found = describe(for_npu(path, soc) if soc else path, soc)
        newer = " (newer than librknnrt.so)" if problems(found, soc, library_path(root)) else ""
    except InputError as error:
        return Line("model", path, str(error).replace(f"{path}: ", "", 1)), None
    stem, extension = os.path.splitext(found.path)
    runs = found.path if soc or extension != ".rknn" else onnx_beside(stem)
    on_cpu = soc is None and extension != ".tflite"  # the open driver runs a .tflite
    facts = [f"{runs}, on the CPU" if on_cpu else runs]
    facts += [f"for the {found.soc}"] if soc and found.soc else []
    facts += [f"by toolkit {found.toolkit}{newer}"] if soc and found.toolkit else []
    facts += ["input {}x{}".format(*found.size)] if found.size else []
    lacks = on_cpu and importlib.util.find_spec("onnxruntime") is None
    return Line("model", ", ".join(facts), "To run it on the CPU: " + pip_install("onnxruntime")
                if lacks else ""), found
