"""Func files: one for each family of models, found by the model's outputs, or loaded from a path.

A func file defines myFunc(rknn_lite, IMG), which returns the picture to show. It may also define

    detect(rknn_lite, IMG)     returns Detections
    draw(IMG, detections)      returns the picture; with both, myFunc is draw(IMG, detect(...))
    reads(model)               True if it can read the model's outputs
    classes_of(model)          the number of classes, if only the file can tell it
    warning(model)             a sentence for the user if it had to guess, else None
    unclear(model)             a sentence for the user, "its output ... may be ...", if the file can
                               read the outputs, but another reading is possible
    FRAMES = True              detect() also takes a vision.frame.Frame, as letterbox() and
                               unletterbox() do, which is less work than a BGR array. func.py does
                               not set it: it is made for editing, and cv2 needs an array
    BOXES = False              its Detections have no boxes, as those of a classifier
    IMG_SIZE = 640             side or (width, height) of the input, for --tiles, if the model does
                               not state it
    OBJ_THRESH = 0.25          minimum score of a detection without --conf; --setup shows it
    SQUARE = False             with --then, it gets what is inside a box, not a square around it
    CLASSES                    the class names of models without names
    NAMES_BY_COUNT             the same, {number of classes: names}

This file is the only one that imports the user's func.py.
"""
from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Optional, Set

from vision.errors import InputError, nearest
from vision.model import Model, check_names, describe, onnx_beside, read_names
from vision.paths import ROOT

# ---- find and load ----

def find(model: Optional[Model]) -> ModuleType:
    """The func file for a model: func.py if its reads(model) returns True, or if it has none; else
    the first file of funcs/, in the order of their names, whose reads(model) returns True.

    model: None if nothing is known of it; then it is func.py. Raises InputError if no file reads
    the model, or if the model's input is not one picture.
    """
    import func
    check(func, "func.py")
    if model is None or not hasattr(func, "reads"):
        return func
    check_input(model)
    if func.reads(model):
        return func
    modules = [importlib.import_module(f"funcs.{path.stem}")
               for path in sorted(Path(__file__).parent.glob("[!_]*.py"))]
    for module in modules:
        if hasattr(module, "reads") and module.reads(model):
            check(module, module.__name__.replace(".", "/") + ".py")
            return module
    for module in modules:
        question = module.unclear(model) if hasattr(module, "unclear") else None
        if question:
            raise InputError(f"{model.path}: {question}")
    raise _unreadable(model)


def _unreadable(model: Model) -> InputError:
    shapes = [shape for _, shape in model.outputs]
    head = model.metadata.get("head")
    notes = f" of a {head}" if isinstance(head, str) else ""
    notes += "" if model.size else ", for an input of unknown size"
    return InputError(f"{model.path}: func.py and funcs/ cannot decode its outputs, "
                      f"{', '.join(map(str, shapes))}{notes}. They decode YOLO as Ultralytics and "
                      "Rockchip export it, such as (1, 255, 80, 80) or (1, 84, 8400), class maps, "
                      "and classifiers, such as (1, 1000). For other models, write a func file and "
                      "pass it with --func FILE.")


def check_input(model: Model) -> None:
    """Raise InputError for a model whose input, as far as it is known, is not one RGB picture."""
    shapes = [shape for _, shape in model.inputs]
    reason = ("func.py and funcs/ are for models that take one RGB picture. For other models, "
              "write a func file and pass it with --func FILE.")
    if len(shapes) > 1:
        names = ", ".join(name for name, _ in model.inputs)
        raise InputError(f"{model.path}: takes {len(shapes)} inputs, {names}; {reason}")
    if not shapes:
        return
    shape = shapes[0]
    if len(shape) == 4 and shape[0] > 1:
        raise InputError(f"{model.path}: takes {shape[0]} pictures at a time, {shape}, but frames "
                         "come one by one: export it again with batch=1.")
    if len(shape) != 4 or shape[3 if model.layout == "NHWC" else 1] not in (0, 3):
        raise InputError(f"{model.path}: takes an input of shape {shape}; {reason}")


def load(path: str, prefix: str = "--func ") -> ModuleType:
    """The func file at `path` as a module. Raises InputError, whose message begins with
    `prefix` and the path, if it cannot be loaded; an error in the file's own code keeps its
    traceback."""
    where = f"{prefix}{path}"
    if not os.path.isfile(path):
        raise InputError(f"{where}: no such file.")
    folder, name = os.path.dirname(os.path.abspath(path)), Path(path).stem
    if name in sys.modules or (ROOT / f"{name}.py").exists() and folder != str(ROOT):
        name = f"{name} of {folder}"  # the plain name belongs to another module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise InputError(f"{where}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        _run(spec.loader, module, folder)
    except SyntaxError as error:
        line = f"line {error.lineno}"
        if error.filename not in (None, spec.origin):
            line += f" of {os.path.basename(str(error.filename))}"
        raise InputError(f"{where}: {line} is not Python: {error.msg}.") from None
    except ImportError as error:
        raise InputError(f"{where}: {error}.") from None
    except PermissionError as error:
        if error.filename != spec.origin:  # raised by the file's own code
            raise
        raise InputError(f"{where}: cannot be read (permission denied).") from None
    except ValueError as error:  # the file contains null bytes, unless its own code raised it
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.filename == spec.origin for frame in frames):
            raise
        raise InputError(f"{where}: {error}.") from None
    check(module, where)
    return module


def _run(loader: Any, module: ModuleType, folder: str) -> None:
    """Execute a module. It may import files beside it, even if they are named like our files."""
    neighbours = {Path(entry).stem for entry in os.listdir(folder)}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules)
              if name.partition(".")[0] in neighbours and _is_ours(sys.modules[name], folder)}
    sys.path.insert(0, folder)
    try:
        loader.exec_module(module)
    finally:
        sys.modules.update(hidden)


def _is_ours(module: Any, folder: str) -> bool:
    """True for a module of this project that does not lie in `folder`."""
    own = Path(os.path.abspath(getattr(module, "__file__", None) or os.sep)).parent
    return ROOT in (own, own.parent) and str(own) != folder


# ---- what a func file offers ----

def check(module: Any, where: str) -> None:
    """Raise InputError if a module has no myFunc(rknn_lite, IMG)."""
    my_func = getattr(module, "myFunc", None)
    if not callable(my_func):
        raise InputError(f"{where}: defines no function myFunc(rknn_lite, IMG).")
    if not _takes(my_func, 2):
        raise InputError(f"{where}: myFunc must take two arguments, (rknn_lite, IMG): the context "
                         "and the frame.")


# The bytecode of such a myFunc.
DETECT_AND_DRAW = eval("lambda rknn_lite, IMG: draw(IMG, detect(rknn_lite, IMG))").__code__


def has_detections(module: Any) -> bool:
    """True if a func file has detect and draw, and its myFunc is draw(IMG, detect(rknn_lite, IMG)).
    main.py then calls the two one by one; otherwise it calls myFunc."""
    if not all(_takes(getattr(module, name, None), 2) for name in ("detect", "draw")):
        return False
    if not hasattr(module, "myFunc"):
        return True
    code = getattr(module.myFunc, "__code__", None)
    return code is not None and (code.co_code, code.co_names) == (
        DETECT_AND_DRAW.co_code, DETECT_AND_DRAW.co_names)


def _takes(function: Any, count: int) -> bool:
    """True for a function that can be called with `count` arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a function written in C does not say it
        pass
    return True


# ---- the model and its settings ----

def describe_model(path: str, soc: Optional[str]) -> Model:
    """The model at `path`. soc: the SoC whose NPU will run it, or None if a CPU will. Raises
    InputError if there is no such file."""
    beside = onnx_beside(os.path.splitext(path)[0])
    if soc is None and not os.path.exists(path) and not os.path.exists(beside):
        other = f", and without an NPU {beside} is needed" if path.endswith(".rknn") else ""
        raise InputError(f"{path}: no such file{other}.")
    return describe(path, soc)


def apply_settings(args: Any, model: Model, func: Any) -> None:
    """Set the values of the flags --conf, --iou, --names and --classes on a model. Raises
    InputError if they do not fit it."""
    for name in ("conf", "iou"):
        if getattr(args, name) is not None:
            setattr(model, name, getattr(args, name))
    count = class_count(model, func)
    if args.names:
        _set_names(model, args.names, count)
    check_names(model, count)
    warning = func.warning(model) if hasattr(func, "warning") else None
    if warning:
        print(warning, file=sys.stderr)
    if args.classes:
        names = class_names(model, func)
        words = [args.classes] if isinstance(args.classes, (str, int)) else args.classes
        model.class_ids = class_ids([str(word) for word in words], names)


def _set_names(model: Model, path: str, count: Optional[int]) -> None:
    """Read --names FILE for a model with `count` classes."""
    try:
        names = read_names(path)
    except InputError as error:
        raise InputError(f"--names {error}") from None
    count = count or len(model.names or names)
    if len(names) != count:
        raise InputError(f"--names {path}: has {len(names)} names, but the model has {count} "
                         "classes.")
    model.names = names


def class_count(model: Model, func: Any) -> Optional[int]:
    """The number of a model's classes; None if unknown."""
    return model.classes or (func.classes_of(model) if hasattr(func, "classes_of") else None)


def class_names(model: Model, func: Any) -> Dict[int, str]:
    """The names of a model's classes by number; empty if neither it nor its func file has them."""
    names: Any = model.names
    if not names:
        count = class_count(model, func)
        names = getattr(func, "NAMES_BY_COUNT", {}).get(count) or getattr(func, "CLASSES", ())
        if count not in (None, len(names)):
            names = ()  # those of other classes
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return {number: str(name) for number, name in pairs}


def default_conf(func: Any) -> Optional[float]:
    """The minimum confidence of a func file's detect() if the model has none; None if detect() does
    not read the model's."""
    names = getattr(getattr(func, "detect", None), "__globals__", {})
    return names.get("OBJ_THRESH", 0.25) if "settings_of" in names else None


def class_ids(words: List[str], names: Any) -> Set[int]:
    """The numbers of classes given by name or number; a word may be a list with commas."""
    known_numbers = set(names) if isinstance(names, dict) else set(range(len(names)))
    numbers: Dict[str, Set[int]] = {}  # of each name; two classes may have the same one
    for number in known_numbers:
        numbers.setdefault(str(names[number]), set()).add(number)
    found: Set[int] = set()
    for text in words:
        for word in [text] if text in numbers else map(str.strip, text.split(",")):
            if word in numbers:
                found |= numbers[word]
            elif not word.isdecimal():
                known = ", ".join(numbers) or "not known; use numbers, or --names FILE"
                hint = " (write sources before --classes)" if re.search(r"[./:]", word) else ""
                near = nearest(word, numbers)
                raise InputError(f"--classes {word}: no such class{hint}" + (
                    f"; did you mean {near}?" if near else
                    f". The model's classes are: {known}."))
            elif names and int(word) not in known_numbers:
                raise InputError(f"--classes {int(word)}: the model has {len(names)} classes, from "
                                 "0.")
            else:
                found.add(int(word))
    return found
