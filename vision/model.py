"""Describes a model from its file: inputs, outputs, class names, SoC, toolkit; and checks that it
can run here.

    model = describe("yolo11n_rknn_model", soc=rknnpool.soc())  # soc=None: it will run on a CPU
    for warning in problems(model, soc=rknnpool.soc()):  # raises InputError if it cannot work
        print(warning, file=sys.stderr)
    context.load_rknn(model.path)                        # a file, even if `path` was a folder
    context.model = model

The folder vision/ needs PyYAML only if a metadata.yaml lies beside the model.
"""
from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, List, Optional, Tuple, Union

from vision import metadata as meta
from vision import onnx_file, rknn_file, tflite_file
from vision.errors import InputError
from vision.metadata import TASKS
from vision.model_files import Contents, Tensor, mapped
from vision.names_file import read_names
from vision.onnx_file import not_onnx
from vision.paths import ROOT

__all__ = ["FAMILIES", "LIBRARY", "TASKS", "Model", "check_kind", "check_names", "describe",
           "family", "for_npu", "library_version", "not_onnx", "onnx_beside", "problems",
           "read_names", "without_soc"]

LIBRARY = "/usr/lib/librknnrt.so"
COPIED_TOGETHER = 60  # seconds: times of files from one copy or checkout differ by less
# SoCs by the beginning of their name in device trees (boards say rk3588s, rk3588s2, rk3588j, ...),
# and the name that models for them are made under. RK3566 and RK3568 have the same NPU.
FAMILIES = {"rk3588": "rk3588", "rk3582": "rk3588", "rk3576": "rk3576", "rk3562": "rk3562",
            "rk356": "rk3566", "rv1126b": "rv1126b"}
NAMES_FILES = ("labels.txt", "names.txt", "labels.json", "names.json")  # beside a model
SCORES = ("probabilities", "logits", "multilabel")  # of a classifier
# File formats that neither an NPU's driver nor ONNX Runtime reads.
OTHER_FORMATS = {
    ".pt": "a PyTorch model", ".pth": "a PyTorch model", ".torchscript": "a TorchScript model",
    ".engine": "a TensorRT model", ".trt": "a TensorRT model", ".xml": "an OpenVINO model",
    ".bin": "an OpenVINO or ncnn model", ".param": "an ncnn model", ".mnn": "an MNN model",
    ".pb": "a TensorFlow model", ".h5": "a Keras model", ".keras": "a Keras model",
    ".mlmodel": "a Core ML model", ".mlpackage": "a Core ML model",
    ".pdmodel": "a PaddlePaddle model", ".safetensors": "weights without a network",
    ".yaml": "a description without weights", ".yml": "a description without weights"}


def family(soc: str | None) -> str | None:
    """The name that models for a SoC are made under: "rk3588" for "rk3588s2". None if unknown."""
    name = (soc or "").lower()
    return next((kind for start, kind in FAMILIES.items() if name.startswith(start)), None)


@dataclass
class Model:
    """A model as describe() found it. What is unknown is None; unknown inputs and outputs are [].

    Each pool has its own Model: its contexts have it as their attribute `model`, where func files
    read it. conf, iou and class_ids are settings, which main.py's flags set.
    """
    path: str                                    # the file to load
    inputs: List[Tensor] = field(default_factory=list)
    outputs: List[Tensor] = field(default_factory=list)
    size: Optional[Tuple[int, int]] = None       # (width, height) of the input in pixels
    layout: Optional[str] = None                 # of the input: "NCHW" or "NHWC"
    task: Optional[str] = None                   # one of TASKS
    names: Union[List[str], Dict[int, str], None] = None  # of the classes, by number
    soc: Optional[str] = None                    # the SoC a .rknn is made for: "rk3588"
    toolkit: Optional[str] = None                # the toolkit that made a .rknn: "2.3.2"
    relative: bool = False                       # coordinates in the outputs lie in 0..1
    scores: Optional[str] = None                 # of a classifier: one of SCORES
    conf: Optional[float] = None                 # minimum confidence; None: the func's own setting
    iou: Optional[float] = None                  # NMS threshold; None: the func's own setting
    class_ids: Optional[Collection[int]] = None  # numbers of the classes to keep; None: all
    folder: Optional[str] = None                 # the folder, if one was given
    names_from: Optional[str] = None             # the file that the names were read from
    warnings: List[str] = field(default_factory=list)  # about ignored files beside the model
    metadata: Dict[str, Any] = field(default_factory=dict)  # from metadata.yaml and the model file

    @property
    def classes(self) -> int | None:
        """The number of classes; None if the shapes of the outputs leave it open."""
        return meta.class_count([shape for _, shape in self.outputs], self.task, self.metadata)


def describe(path: str | os.PathLike[str], soc: str | None = None) -> Model:
    """Describe the model at `path` from its file and the files beside it.

    path: a .rknn, an .onnx, a .tflite, or a folder with a .rknn or .onnx (Ultralytics' export).
    soc: the SoC whose NPU will run the model ("rk3588s"); None: no NPU will. In a folder it chooses
    the .rknn for that SoC, or without an NPU the .onnx. Without an NPU, x.onnx runs in place of
    x.rknn, so x.onnx is described.

    Reads the file, metadata.yaml (or NAME.yaml) beside it, and class names from NAME.txt, which
    replaces all others, or one of NAMES_FILES. problems() reports damaged files. Raises
    InputError if there is no such file, or if a folder has no or several suitable models.
    """
    given = os.fspath(path)
    folder = given if os.path.isdir(given) else None
    path = _choose(folder, soc) if folder else given
    stem, extension = _split(path)
    onnx = path if extension == ".onnx" else onnx_beside(stem)
    onnx_exists, tflite = os.path.isfile(onnx), extension == ".tflite"
    onnx_runs = onnx_exists and (extension == ".onnx" or soc is None and not tflite)
    if not os.path.isfile(path) and not onnx_runs:
        raise InputError(f"{path}: no such file.")
    itself = _read(path, extension)
    from_onnx = onnx_file.read(onnx) if onnx_exists else Contents()
    shapes = from_onnx if from_onnx.outputs and (onnx_runs or not itself.outputs) else itself
    inside = {**from_onnx.metadata, **itself.metadata}
    warnings: List[str] = []
    beside, yaml_path = meta.read_yaml(stem, warnings)
    # The metadata of the file that runs comes first; that of an .onnx beside a .rknn comes last.
    inside_first = onnx_runs or tflite
    found = {**beside, **inside} if inside_first else {**inside, **beside}
    layout, size = meta.layout_and_size(shapes.inputs[0][1] if shapes.inputs else (), found)
    model = Model(path, shapes.inputs, shapes.outputs, size, layout, metadata=found, folder=folder,
                  soc=itself.soc, toolkit=itself.toolkit, names=meta.names_in(found),
                  warnings=warnings,
                  task=meta.one_of(TASKS, found, "task"),
                  scores=meta.one_of(SCORES, found, "scores"))
    # metadata.yaml belongs to the .rknn, whose coordinates can differ from those of its .onnx.
    model.relative = bool(inside.get("relative")) if onnx_runs else meta.is_relative(found)
    if model.names is not None:
        from_yaml = "names" in beside and not (inside_first and "names" in inside)
        model.names_from = path if "names" in itself.metadata else yaml_path if from_yaml else onnx
    _read_names_beside(model, stem)
    return model


def _read(path: str, extension: str) -> Contents:
    """The contents of a .rknn or .tflite."""
    if extension == ".onnx":
        return Contents()
    return tflite_file.read(path) if extension == ".tflite" else rknn_file.read(path)


def _read_names_beside(model: Model, stem: str) -> None:
    folder = os.path.dirname(stem)
    paths = [stem + ".txt"]
    if model.names is None:
        paths += [os.path.join(folder, name) for name in NAMES_FILES]
    for path in paths:
        if os.path.isfile(path):
            try:
                model.names, model.names_from = read_names(path), path
                return
            except InputError as error:  # perhaps a file for another purpose
                model.warnings.append(f"{str(error).rstrip('.')}; it is ignored.")


def problems(model: Model, soc: str | None = None, library: str = LIBRARY) -> List[str]:
    """Warnings about a model that describe() returned: a list of sentences, usually empty.

    soc: the SoC whose NPU will run it ("rk3588s"), None if a CPU will.
    library: path of the vendor's librknnrt.so.
    Raises InputError for a model that cannot work: a file of another kind or a damaged one, a .rknn
    for another SoC, a folder without an .onnx for a CPU, a wrong number of names.
    """
    check_kind(model.path, soc)
    if not model.path.lower().endswith(".tflite"):
        if soc is None:
            _check_for_cpu(model)
        else:
            _check_for_npu(model, soc)
    check_names(model, model.classes)
    version = library_version(library) if soc and model.toolkit else None
    warnings = list(model.warnings)
    if version and _numbers(model.toolkit) > _numbers(version):
        warnings.append(f"{model.path}: made by toolkit {model.toolkit}, which is newer than this "
                        f"board's {library} ({version}). It usually works; if it does not, update "
                        f"that library, or convert the model with toolkit {version}.")
    return warnings


def _check_for_cpu(model: Model) -> None:
    stem, extension = _split(model.path)
    onnx = onnx_beside(stem) if extension == ".rknn" else model.path
    if model.folder and not os.path.isfile(onnx):
        name = os.path.basename(model.path)
        raise InputError(f"{model.folder}: only a board's NPU can run {name}. On this machine, run "
                         f"an .onnx (with Ultralytics: yolo export format=onnx), in the same "
                         f"folder or with --model.")
    what = not_onnx(onnx) if os.path.isfile(onnx) else None
    if what:
        raise InputError(f"{onnx}: not an ONNX model but {what}.")


def _check_for_npu(model: Model, soc: str) -> None:
    target = family(soc) or soc
    export = f"yolo export format=rknn name={target}"
    if model.path.lower().endswith(".onnx"):
        raise InputError(f"{model.path}: the NPU runs .rknn files. {how_to_convert(model.path)}")
    what = rknn_file.not_rknn(model.path)
    if what:
        raise InputError(f"{model.path}: not a .rknn model but {what}.")
    if model.soc and (family(model.soc) or model.soc) != target:
        raise InputError(f"{model.path}: made for the {model.soc}, but this board has an {soc}. "
                         f"Convert it for {target} with {export} or "
                         f"models/convert.py --target {target}.")


def check_kind(path: str | os.PathLike[str], soc: str | None = None) -> None:
    """Raises InputError, with what to export instead, if the file's name shows another format."""
    stem, extension = _split(os.fspath(path))
    if extension in OTHER_FORMATS:
        source = "" if extension == ".pt" else "from the .pt it was made from, "
        raise InputError(
            f"{path}: {OTHER_FORMATS[extension]}, which does not run here. Export the model again: "
            f"{source}yolo export model={os.path.basename(stem)}.pt format=onnx for a PC, "
            f"format=rknn name={family(soc) or 'rk3588'} for a board.")


def check_names(model: Model, count: int | None) -> None:
    """Raises InputError if a model has names for more or fewer than its `count` classes."""
    if count is not None and model.names is not None and len(model.names) != count:
        raise InputError(f"{model.names_from or model.path}: has names for {len(model.names)} "
                         f"classes, but {model.path} has {count} classes. Give the right names "
                         f"with --names FILE (one per line).")


def library_version(path: str = LIBRARY) -> str | None:
    """The version of the vendor's librknnrt.so, "2.3.2"; None if the file does not say it."""
    with mapped(path) as data:
        found = re.search(rb"librknnrt version: (\d+(?:\.\d+)+)", data)
        return found[1].decode() if found else None


def _numbers(version: str | None) -> List[int]:
    return [int(number) for number in re.findall(r"\d+", version or "")[:3]]


# ---- which file ----

def for_npu(path: str, soc: str) -> str:
    """The file that an NPU runs for the model at `path`: for x.onnx the x.rknn (or x-rk3588.rknn)
    beside it, otherwise the path itself.

    soc: the SoC whose NPU will run it. Raises InputError if the .onnx has changed since it was
    converted.
    """
    stem, extension = _split(path)
    if extension != ".onnx":
        return path
    names = [f"{stem}{end}.rknn" for end in ("", f"-{family(soc)}", f"-{soc}")]
    rknn = next(filter(os.path.isfile, names), None)
    if rknn is None:
        return path  # problems() says how to convert it
    if os.path.isfile(path) and os.path.getmtime(path) > os.path.getmtime(rknn) + COPIED_TOGETHER:
        raise InputError(f"{path}: is newer than {rknn}. To run that one, use --model {rknn}. "
                         f"{how_to_convert(path)}")
    return rknn


def how_to_convert(path: str) -> str:
    """Sentences with the command that converts the .onnx at `path` on this board."""
    python = ROOT / "models" / ".venv" / "bin" / "python"
    command = [str(python) if python.exists() else sys.executable,
               str(ROOT / "models" / "convert.py"), path, "--calibration", "SOURCE"]
    return (f"Convert it: {shlex.join(command)}. SOURCE is a camera, a URL, a video or a folder of "
            "pictures (docs/models.md).")


def _split(path: str) -> Tuple[str, str]:
    stem, extension = os.path.splitext(path)
    return stem, extension.lower()


def without_soc(stem: str) -> str:
    """The name without the SoC that Ultralytics' export appends: "x" for "x-rk3588"."""
    return re.sub(r"-r[kv]\d+[a-z]*\d*$", "", stem)


def onnx_beside(stem: str) -> str:
    """The .onnx that runs on a CPU in place of stem.rknn: for x-rk3588.rknn also x.onnx."""
    names = [stem + ".onnx", without_soc(stem) + ".onnx"]
    return next(filter(os.path.isfile, names), names[0])


def _choose(folder: str, soc: str | None) -> str:
    """The model in a folder to run: with an NPU the .rknn that fits the SoC, else the .onnx."""
    try:
        files = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}).") from None
    rknn, onnx = ([name for name in files if _split(name)[1] == extension and os.path.isfile(name)]
                  for extension in (".rknn", ".onnx"))
    if soc and len(rknn) > 1:
        rknn = [name for name in rknn if family(_made_for(name)) == family(soc)] or rknn[:1]
    candidates = (rknn or onnx) if soc else (onnx or rknn[:1])
    if len(candidates) > 1:
        names = ", ".join(os.path.basename(name) for name in candidates)
        raise InputError(f"{folder}: contains several models ({names}): name one of them.")
    if not candidates:
        raise InputError(f"{folder}: contains no .rknn and no .onnx. Export one: yolo export "
                         f"format=rknn name={family(soc) or 'rk3588'} for a board, "
                         f"format=onnx for a PC.")
    return candidates[0]


def _made_for(path: str) -> str:
    """The SoC a .rknn is made for, by its content, or else by its name."""
    in_name = re.search(r"rk\d{4}\w*|rv\d{4}\w*", os.path.basename(path).lower())
    return rknn_file.read(path).soc or (in_name[0] if in_name else "")
