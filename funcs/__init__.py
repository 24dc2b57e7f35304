"""myFuncs for other models than func.py's, found by the model's outputs; each file can be left out. And how a func file
is found, and loaded."""
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, List, Optional

from rknnmodel import InputError, Model, check_names, describe, onnx_beside, read_names

ROOT = Path(__file__).resolve().parents[1]


def takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # one in C, which does not tell
        pass
    return callable(function)


def has_detections(module: Any) -> bool:
    """Whether main.py goes on with the detections of a func file's own `detect(rknn_lite, IMG)`, and its `draw(IMG,
    detections)`.

    A file that defines `detect` itself wants that. One that only imports it (from func import detect, draw) and has a
    `myFunc` that does anything but `draw(IMG, detect(rknn_lite, IMG))` has this one run, as its author expects.
    """
    detect, draw, my_func = (getattr(module, name, None) for name in ("detect", "draw", "myFunc"))
    if not (takes(detect, 2) and takes(draw, 2)):
        return False
    if my_func is None or getattr(detect, "__module__", None) == getattr(module, "__name__", ""):
        return True
    code = getattr(my_func, "__code__", None)
    return code is not None and {"draw", "detect"} <= set(code.co_names) <= {"draw", "detect", "func"}


def load(path: str, flag: str = "--func ") -> ModuleType:
    """The func file at `path` as a module, with its `myFunc`. Raises InputError where there is none; an error of its
    own keeps its traceback."""
    if not os.path.isfile(path):
        raise InputError(f"{flag}{path}: no such file.")
    folder, name = os.path.dirname(os.path.abspath(path)), Path(path).stem
    if name in sys.modules or (ROOT / f"{name}.py").exists() and folder != str(ROOT):
        name = f"{name} of {folder}"  # not under the name of one of our own files
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise InputError(f"{flag}{path}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses, pickle and others look for it
    try:
        run(spec.loader, module, folder)
    except SyntaxError as error:
        place = f"line {error.lineno}"
        if error.filename not in (None, spec.origin):
            place += f" of {os.path.basename(error.filename)}"
        raise InputError(f"{flag}{path}: {place} is not Python: {error.msg}.") from None
    except (ImportError, ValueError) as error:  # ValueError: NUL bytes
        if isinstance(error, ValueError) and any(frame.filename == spec.origin
                                                 for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise InputError(f"{flag}{path}: {error}.") from None
    check(module, f"{flag}{path}")
    return module


def run(loader: Any, module: ModuleType, folder: str) -> None:
    """Run a module whose neighbours in its folder come before our files of the same name."""
    neighbours = {Path(entry).stem for entry in os.listdir(folder)}
    ours = {name: sys.modules.pop(name) for name in list(sys.modules)
            if name.partition(".")[0] in neighbours and is_ours(sys.modules[name], folder)}
    sys.path.insert(0, folder)
    try:
        loader.exec_module(module)
    finally:
        # What the file has imported it keeps; for us the names mean what they did.
        for name in ours:
            sys.modules[name] = ours[name]


def is_ours(module: Any, folder: str) -> bool:
    """Whether a module lies in this project, and not in `folder`."""
    place = os.path.dirname(os.path.abspath(getattr(module, "__file__", None) or os.sep))
    return (place == str(ROOT) or Path(place).parent == ROOT) and place != folder


def check(module: Any, where: str) -> None:
    """Raise InputError where a module is no func file."""
    my_func = getattr(module, "myFunc", None)
    if not callable(my_func):
        raise InputError(f"{where}: defines no function myFunc(rknn_lite, IMG).")
    if not takes(my_func, 2):
        raise InputError(f"{where}: myFunc must take two arguments, (rknn_lite, IMG): the context and the frame.")


def look_at(path: str, npu: Optional[str]) -> Model:
    """What the model at `path` says of itself. npu: the SoC's name, None where the CPU runs it. Raises InputError."""
    beside = onnx_beside(os.path.splitext(path)[0])
    if npu is None and not os.path.exists(path) and not os.path.exists(beside):
        which = f"; and {beside}: no such file, which runs where there is no NPU" if path.endswith(".rknn") else ""
        raise InputError(f"{path}: no such file{which}.")
    return describe(path, npu)


def find(model: Any) -> ModuleType:
    """The func file for a model: func.py where its `reads(model)` says yes or it has none, else the first of funcs/, in
    the order of their names, whose `reads(model)` says yes.

    model: a rknnmodel.Model, or None where nothing is known of it: then it is func.py. Raises InputError with the
    model's shapes where none reads it, and for one that takes anything but one picture, for this is what they feed it.
    """
    import func
    check(func, "func.py")
    if model is None or not hasattr(func, "reads"):
        return func
    check_input(model)
    if func.reads(model):
        return func
    for name in others():
        module = importlib.import_module(f"funcs.{name}")
        reads: Callable = getattr(module, "reads", lambda model: False)
        if reads(model):
            check(module, f"funcs/{name}.py")
            return module
    shapes = ", ".join(str(tuple(shape)) for _, shape in getattr(model, "outputs", None) or [])
    metadata = getattr(model, "metadata", {})
    kind = f" of a {metadata['head']}" if isinstance(metadata.get("head"), str) else ""
    kind += "" if getattr(model, "size", True) else ", for an input of no certain size"
    raise InputError(f"{model.path}: its outputs, {shapes}{kind}, are none that func.py or funcs/ read, which are "
                     f"YOLO's as Ultralytics and Rockchip export them, such as (1, 255, 80, 80) or (1, 84, 8400), and "
                     f"a classifier's, (1, 1000). --func FILE names a func file of your own.")


def check_input(model: Model) -> None:
    """Raise InputError for a model whose input, as far as it is known, is not one RGB picture."""
    shapes = [shape for _, shape in getattr(model, "inputs", None) or []]
    own = "func.py and funcs/ feed a model one picture in RGB. --func FILE names a func file of your own."
    if len(shapes) > 1:
        raise InputError(f"{model.path}: takes {len(shapes)} inputs, {', '.join(name for name, _ in model.inputs)}, "
                         f"and {own}")
    if shapes and len(shapes[0]) == 4 and shapes[0][0] > 1:
        raise InputError(f"{model.path}: takes {shapes[0][0]} pictures at a time, {shapes[0]}, and frames come one by "
                         f"one: export it again with batch=1.")
    if shapes and (len(shapes[0]) != 4 or shapes[0][3 if model.layout == "NHWC" else 1] not in (0, 3)):
        raise InputError(f"{model.path}: takes an input of shape {shapes[0]}, and {own}")


def others() -> List[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def apply_settings(args: Any, model: Model, func: Any) -> None:
    """Set what the flags say on the model that the contexts will carry. Raises InputError for what does not fit it."""
    for name in ("conf", "iou"):
        if getattr(args, name) is not None:
            setattr(model, name, getattr(args, name))
    names = model.names
    if args.names:
        try:
            model.names = read_names(args.names)
        except InputError as error:
            raise InputError(f"--names {error}") from None
    count = model.classes or getattr(func, "classes_of", lambda model: None)(model)
    if args.names and len(model.names) != (count or len(names or model.names)):
        raise InputError(f"--names {args.names}: has {len(model.names)} names, and the model {count or len(names)} "
                         "classes.")
    check_names(model, count)
    doubt = getattr(func, "doubt", lambda model: None)(model)
    if doubt:
        print(doubt, file=sys.stderr)
    names = model.names
    if args.classes:
        names = names or getattr(func, "CLASSES", ())
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        numbers = {str(name): number for number, name in pairs}
        words = [args.classes] if isinstance(args.classes, (str, int)) else args.classes
        wanted = [word for text in map(str, words) for word in ([text] if text in numbers else text.split(","))]
        unknown = [word for word in wanted if word not in numbers and not word.isdigit()]
        if unknown:
            known = ", ".join(numbers) or "of which no names are known: give numbers, or --names FILE"
            source = " (a source stands before --classes)" if re.search(r"[./:]", unknown[0]) else ""
            raise InputError(f"--classes {unknown[0]}: is none of the model's classes{source}, {known}.")
        model.keep = {numbers[word] if word in numbers else int(word) for word in wanted}
        beyond = [number for number in model.keep if names and number not in numbers.values()]
        if beyond:
            raise InputError(f"--classes {beyond[0]}: the model has {len(names)} classes, from 0.")
