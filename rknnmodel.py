"""What a model file says of itself (inputs, outputs, class names, task, SoC, toolkit), and what forbids opening it.

    model = describe("yolo11n_rknn_model", soc=rknnpool.soc())    # soc: of the NPU that will run it; None: a CPU will
    for sentence in problems(model, soc=rknnpool.soc()):          # raises InputError for what cannot work
        print(sentence, file=sys.stderr)
    context.load_rknn(model.path)                                 # a file, where a folder was given
    context.model = model

This file needs no other of the project's, and PyYAML only where a metadata.yaml stands beside a model.
"""
import ast
import json
import mmap
import os
import re
import struct
import zipfile
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, Iterator, List, Optional, Sequence, Tuple, Union

LIBRARY = "/usr/lib/librknnrt.so"
# Beginnings of SoCs' names in device trees: the family, as models are made for it, and its NPU cores. RK3566 and RK3568
# have the same NPU, and boards call themselves rk3588s, rk3588s2, rk3588j, rk3588f.
SOCS = {"rk3588": ("rk3588", 3), "rk3582": ("rk3588", 3), "rk3576": ("rk3576", 2), "rk3562": ("rk3562", 1),
        "rk356": ("rk3566", 1), "rv1126b": ("rv1126b", 1)}
# What else models are kept in, which neither an NPU's driver nor ONNX Runtime takes.
OTHERS = {".pt": "PyTorch's", ".pth": "PyTorch's", ".torchscript": "TorchScript's", ".engine": "TensorRT's",
          ".trt": "TensorRT's", ".xml": "OpenVINO's", ".bin": "OpenVINO's or ncnn's", ".param": "ncnn's",
          ".mnn": "MNN's", ".pb": "TensorFlow's", ".h5": "Keras'", ".keras": "Keras'", ".mlmodel": "Core ML's",
          ".mlpackage": "Core ML's", ".pdmodel": "PaddlePaddle's", ".safetensors": "weights without a network",
          ".yaml": "a description without weights", ".yml": "a description without weights"}
TASKS = ("detect", "segment", "pose", "obb", "classify")
Tensor = Tuple[str, Tuple[int, ...]]  # name, shape; 0 where the model leaves a side open


class InputError(Exception):
    """Bad input: the message is one sentence for stderr, the exit code 2."""


class ModelError(RuntimeError):
    """The model is not one that the func reads, or its inference failed. The message is a sentence for the person at
    the board."""


def family(soc: Optional[str]) -> Optional[str]:
    """The name that models for a SoC are made under: "rk3588" of "rk3588s2". None where no NPU of ours is known."""
    return next((kind for start, (kind, _) in SOCS.items() if (soc or "").lower().startswith(start)), None)


def npu_cores(soc: Optional[str]) -> int:
    """How many NPU cores a SoC has, 1 where it is not known."""
    return next((cores for start, (_, cores) in SOCS.items() if (soc or "").lower().startswith(start)), 1)


@dataclass
class Model:
    """A model, as describe() found it. What nobody says is None, inputs and outputs are then empty.

    One object belongs to one pool: its contexts have it as their attribute `model`, and funcs read from it what is to
    be known of the model. conf, iou, keep are settings, which main.py's flags set.
    """
    path: str                                    # the file to load
    inputs: List[Tensor] = field(default_factory=list)
    outputs: List[Tensor] = field(default_factory=list)
    size: Optional[Tuple[int, int]] = None       # (width, height) of the input in pixels
    layout: Optional[str] = None                 # of the input: "NCHW" or "NHWC"; the wheel takes NHWC in any case
    task: Optional[str] = None                   # one of TASKS
    names: Union[List[str], Dict[int, str], None] = None  # of the classes, by number
    soc: Optional[str] = None                    # that a .rknn is made for: "rk3588"
    toolkit: Optional[str] = None                # that made a .rknn: "2.3.2"
    relative: bool = False                       # coordinates in the outputs lie in 0..1, not in pixels
    scores: Optional[str] = None                 # a classifier's: "probabilities", "logits" or "multilabel"
    conf: Optional[float] = None                 # least score; None: as the func's own settings say, so the next two
    iou: Optional[float] = None                  # most overlap of two boxes of a class
    keep: Optional[Collection[int]] = None       # numbers of the classes wanted; None: all
    folder: Optional[str] = None                 # the folder that was given, where it was one
    names_from: Optional[str] = None             # the file that the names stand in
    metadata: Dict[str, Any] = field(default_factory=dict)  # of metadata.yaml and the .onnx, as they stand there

    @property
    def classes(self) -> Optional[int]:
        """How many classes the outputs have, where their shapes leave no doubt; else None."""
        return _classes([shape for _, shape in self.outputs], self.task, self.metadata)


def describe(path: Union[str, "os.PathLike[str]"], soc: Optional[str] = None) -> Model:
    """What the model at `path` says of itself.

    path: a .rknn, an .onnx, a .tflite, or a folder that holds one of the former two, as Ultralytics' export writes it.
    soc: name of the SoC whose NPU will run it ("rk3588s"); None: no NPU will. Of a folder it is the .rknn for that SoC
    that counts, on a CPU the .onnx; of x.rknn on a CPU the x.onnx beside it speaks first, for that is what runs.
    Read are: a .rknn's own end (toolkit 2.x), an .onnx's shapes and metadata, a .tflite's, metadata.yaml beside it (or
    NAME.yaml), and for the names NAME.txt, which comes before all others, labels.txt and names.txt, a name a line.
    Whatever bytes a file holds, nothing is raised for them; problems() says what cannot be. Raises InputError where
    there is no such file, or in a folder no model, or several for one machine.
    """
    given = os.fspath(path)
    folder = given if os.path.isdir(given) else None
    path = _choose(folder, soc) if folder else given
    stem, extension = _split(path)
    tflite = extension == ".tflite"
    onnx = path if extension == ".onnx" else onnx_beside(stem)
    if not os.path.isfile(path) and not (soc is None and os.path.isfile(onnx) and not tflite):
        raise InputError(f"{path}: no such file.")
    model = Model(path, folder=folder)
    inside = _read_tflite(path, model) if tflite else {}
    if extension != ".onnx" and not tflite:
        _read_rknn(path, model)
    own = _read_onnx(onnx, model, overrule=soc is None and not tflite) if os.path.isfile(onnx) else {}
    own.update(inside)
    beside, yaml_path = _read_yaml(stem)
    # What is inside the file counts more than what lies beside it; of an .onnx that only lies beside, less.
    inside_first = soc is None or extension == ".onnx" or tflite
    model.metadata = {**beside, **own} if inside_first else {**own, **beside}
    # A metadata.yaml is a .rknn's: its coordinates, divided for int8, are not those of the .onnx that it was made from.
    onnx_runs = inside_first and not tflite and os.path.isfile(onnx)
    model.relative = bool(own.get("relative")) if onnx_runs else _is_relative(model.metadata)
    model.names_from = path if "names" in inside else (
        yaml_path if "names" in beside and not (inside_first and "names" in own) else onnx)
    _apply(model)
    for name in (stem + ".txt", *(os.path.join(os.path.dirname(path), name) for name in ("labels.txt", "names.txt"))):
        if os.path.isfile(name) and (model.names is None or name == stem + ".txt"):
            try:
                model.names, model.names_from = read_names(name), name
            except InputError:  # a file of that name which is something else
                continue
            break
    return model


def problems(model: Model, soc: Optional[str] = None, library: str = LIBRARY) -> List[str]:
    """What stands against opening a model that describe() described: sentences, warnings only.

    soc: name of the SoC whose NPU will run it ("rk3588s"), None where a CPU will; library: path of the vendor's
    librknnrt.so. Raises InputError for what cannot work: a file of another kind or not whole, a .rknn for another SoC,
    a folder without an .onnx on a CPU, another number of names than of classes.
    """
    stem, extension = _split(model.path)
    check_kind(model.path, soc)
    if soc is None:
        onnx = onnx_beside(stem) if extension == ".rknn" else model.path
        if model.folder and not os.path.isfile(onnx):
            raise InputError(f"{model.folder}: only a board's NPU runs the {os.path.basename(model.path)} in it, and "
                             f"this machine has none; here an .onnx runs (with Ultralytics: yolo export format=onnx), "
                             f"in the same folder or given as --model.")
        what = not_onnx(onnx) if extension != ".tflite" and os.path.isfile(onnx) else None
        if what:
            raise InputError(f"{onnx} is not an ONNX model that can be run, but {what}.")
    elif extension != ".tflite":
        target = family(soc) or soc
        if extension == ".onnx":
            raise InputError(f"{model.path}: an NPU runs .rknn files: yolo export format=rknn name={target}, or "
                             f"models/convert.py, makes one of an .onnx.")
        what = _not_rknn(model.path)
        if what:
            raise InputError(f"{model.path}: is not a .rknn, but {what}.")
        if model.soc and (family(model.soc) or model.soc) != target:
            raise InputError(f"{model.path}: is made for the {model.soc}, and this board has an {soc}: convert it "
                             f"again for {target} (yolo export format=rknn name={target}, or models/convert.py "
                             f"--target {target}).")
    check_names(model, model.classes)
    version = library_version(library) if soc and model.toolkit else None
    if version and _numbers(model.toolkit) > _numbers(version):
        return [f"{model.path}: made by toolkit {model.toolkit}, which is newer than this board's {library}, "
                f"{version}. Often it runs all the same; if not, update that library or convert with toolkit "
                f"{version}."]
    return []


def check_kind(path: Union[str, "os.PathLike[str]"], soc: Optional[str] = None) -> None:
    """Raises InputError, with what to export instead, for a file whose name says that it is none of ours."""
    stem, extension = _split(os.fspath(path))
    if extension in OTHERS:
        of = "" if extension == ".pt" else "of the .pt that it was made from, "
        raise InputError(f"{path}: is {OTHERS[extension]}: {of}yolo export model={os.path.basename(stem)}.pt "
                         f"format=onnx makes what a PC runs, format=rknn name={family(soc) or 'rk3588'} what a board "
                         f"runs.")


def check_names(model: Model, count: Optional[int]) -> None:
    """Raises InputError where a model has another number of names than its `count` of classes, as far as both are
    known."""
    if count is not None and model.names is not None and len(model.names) != count:
        raise InputError(f"{model.names_from or model.path}: has names for {len(model.names)} classes, but "
                         f"{model.path} has {count} classes: --names FILE, a name a line, gives the right ones.")


def read_names(path: Union[str, "os.PathLike[str]"]) -> List[str]:
    """The class names in a text file, a name a line, UTF-8. Raises InputError where it cannot be read or holds none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file.read().rstrip().splitlines()]
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text in UTF-8 with a class name a line.") from None
    if not names or "\0" in "".join(names):
        raise InputError(f"{path}: holds no class names, one a line.")
    return names


def library_version(path: str = LIBRARY) -> Optional[str]:
    """The version that the vendor's librknnrt.so carries as a string, "2.3.2"; None where it says none or is not
    there."""
    found = None
    with _mapped(path) as data:
        # twice in the file; both say the same
        found = re.search(rb"librknnrt version: (\d+(?:\.\d+)+)", data)
        return found[1].decode() if found else None


# ---- which file ----

def _split(path: str) -> Tuple[str, str]:
    stem, extension = os.path.splitext(path)
    return stem, extension.lower()


def without_soc(stem: str) -> str:
    """A model's name without the SoC that Ultralytics' exporter ends it with: "x" of "x-rk3588"."""
    return re.sub(r"-r[kv]\d+[a-z]*\d*$", "", stem)


def onnx_beside(stem: str) -> str:
    """The .onnx that runs on a CPU in place of stem.rknn: of x-rk3588.rknn x.onnx, too."""
    names = [stem + ".onnx", without_soc(stem) + ".onnx"]
    return next(filter(os.path.isfile, names), names[0])


def _choose(folder: str, soc: Optional[str]) -> str:
    try:
        files = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}).") from None
    rknn, onnx = ([name for name in files if name.lower().endswith(end) and os.path.isfile(name)]
                  for end in (".rknn", ".onnx"))
    if soc and len(rknn) > 1:
        fitting = []
        for name in rknn:
            found = Model(name)
            _read_rknn(name, found)
            named = re.search(r"rk\d{4}\w*|rv\d{4}\w*", os.path.basename(name).lower())
            if family(found.soc or (named[0] if named else "")) == family(soc):
                fitting.append(name)
        rknn = fitting or rknn[:1]
    several = onnx if soc is None else rknn or onnx
    if len(several) > 1:
        names = ", ".join(os.path.basename(name) for name in several)
        raise InputError(f"{folder}: several models stand in it ({names}), name one of them.")
    if soc is None and onnx:
        return onnx[0]
    if not rknn and not onnx:
        raise InputError(f"{folder}: holds no .rknn and no .onnx: yolo export format=rknn "
                         f"name={family(soc) or 'rk3588'} makes what a board runs, format=onnx what a PC runs.")
    return (rknn or onnx)[0]


def _not_rknn(path: str) -> Optional[str]:
    """What a file is that cannot be a .rknn, in words; None for one that may be."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if b"RKNN" in start:  # at 0; later in encrypted ones
        return _damage(path)
    return _something_else(start) or f"a file that begins with {start[:8]!r}"


def not_onnx(path: Union[str, "os.PathLike[str]"]) -> Optional[str]:
    """What a file is that cannot be an .onnx, in words; None for one that may be: a protobuf with a graph in it (field
    7, and its field 1: nodes; onnx.proto3)."""
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            found = _something_else(file.read(64))
        if found:
            return found
        with _mapped(path) as data:
            graph = dict(_fields(data, 0, len(data))).get(7)
            if graph and 1 in dict(_fields(data, *graph)):  # its nodes
                return None
            damage = "holds no network"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        damage = "ends too early, or is another's"
    return f"a file of {os.path.getsize(path):,} bytes that {damage}: copy it again, or export it again"


def _something_else(start: bytes) -> Optional[str]:
    """What a file that begins with these bytes is, where it can be no model at all."""
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "the pointer that Git LFS left in its place (git lfs pull fetches it)"
    if start.lstrip()[:1] == b"<":
        return "a web page"
    return None


def _damage(path: str) -> Optional[str]:
    """What is wrong with a .rknn of toolkit 2.x, in words: it ends too early, or its JSON is none, for which the
    vendor's library (1.5.2) ends the process by SIGABRT."""
    try:
        with _mapped(path) as data:
            if data[:4] != b"RKNN":
                return None
            kind, body = struct.unpack_from("<QQ", data, 8)
            end = 64 + body  # as _read_rknn() has it
            if kind == 6 and end + 8 > len(data):
                return f"the first {len(data):,} bytes of one of more than {end:,}: copy it again"
            length, = struct.unpack_from("<Q", data, end)
            text = data[end + 8:end + 8 + length]
    except (struct.error, OverflowError):  # of another format: the library says so
        return None
    try:
        json.loads(text.decode(errors="replace"))
    except ValueError:
        return "a damaged one: its description at the end cannot be read"
    return None


def _numbers(version: Optional[str]) -> List[int]:
    return [int(number) for number in re.findall(r"\d+", version or "")[:3]]


# ---- readers: whatever bytes they meet, they raise nothing ----

class _mapped:
    """A file's bytes, as with mmap: `with _mapped(path) as data`; b"" where it cannot be read."""

    def __init__(self, path: str) -> None:
        self._path, self._map = path, None

    def __enter__(self) -> Any:
        try:
            with open(self._path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # ValueError: an empty file
            return b""
        return self._map

    def __exit__(self, *_: Any) -> None:
        if self._map is not None:
            self._map.close()


def _read_rknn(path: str, model: Model) -> None:
    """Fill in what stands at the end of a .rknn of toolkit 2.x: after a head of 64 bytes (RKNN, format, length n of the
    body) and the body a length m and m bytes of JSON."""
    try:
        with _mapped(path) as data:
            if data[:4] != b"RKNN":
                return
            end = 64 + struct.unpack_from("<Q", data, 16)[0]
            length, = struct.unpack_from("<Q", data, end)
            content = json.loads(data[end + 8:end + 8 + length].decode())
        tensors = {tensor["tensor_id"]: (str(tensor["url"]), _shape(tensor["size"]))
                   for tensor in content["norm_tensor"]}
        ends: Dict[str, List[Any]] = {"input": [], "output": []}
        for edge in content["graph"]:
            if edge["left"] in ends:
                ends[edge["left"]].append((edge["left_tensor_id"], tensors[edge["right_tensor_id"]]))
        platforms, version = content.get("target_platform"), content.get("version")
        inputs, outputs = ([tensor for _, tensor in sorted(ends[end])] for end in ("input", "output"))
        if not inputs or not outputs:
            return
    except Exception:  # an older format, an encrypted or a damaged file: it says nothing, and the runtime will judge
        return
    model.inputs, model.outputs = inputs, outputs
    model.toolkit = version if isinstance(version, str) and _numbers(version) else None
    if isinstance(platforms, list) and platforms and isinstance(platforms[0], str) and platforms[0]:
        model.soc = platforms[0].lower()


def _shape(sides: Sequence[Any]) -> Tuple[int, ...]:
    shape = tuple(sides)
    if not all(isinstance(side, int) and not isinstance(side, bool) and 0 <= side < 2 ** 31 for side in shape):
        raise ValueError("no shape")
    return shape


def _fields(data: Any, start: int, end: int) -> Iterator[Tuple[int, Any]]:
    """The fields of a protobuf message in data[start:end]: number, and value, which is an int, or (start, end)."""
    def varint() -> int:
        nonlocal start
        value = shift = 0
        while True:
            if start >= end or shift > 63:
                raise ValueError("truncated")
            byte = data[start]
            start += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while start < end:
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if size > end - start:
            raise ValueError("truncated")
        start += size
        yield key >> 3, (start - size, start)


def _text(data: Any, place: Tuple[int, int]) -> str:
    return bytes(data[place[0]:place[1]]).decode()


def _read_onnx(path: str, model: Model, overrule: bool) -> Dict[str, Any]:
    """Fill in shapes from an .onnx (field numbers: onnx.proto3), and return its metadata; what is not known yet only,
    or with `overrule` all."""
    metadata, values, constants = {}, {11: [], 12: []}, set()
    try:
        with _mapped(path) as data:
            for number, place in _fields(data, 0, len(data)):
                if number == 14:    # metadata_props
                    entry = dict(_fields(data, *place))
                    metadata[_text(data, entry[1])] = _text(data, entry[2]) if 2 in entry else ""
                elif number == 7:   # graph
                    for part, inside in _fields(data, *place):
                        if part in values:
                            values[part].append(_value_info(data, inside))
                        elif part == 5:  # an initializer, which older files name among the inputs, too
                            constants.add(next((_text(data, name) for key, name in _fields(data, *inside) if key == 8),
                                               None))
    except Exception:  # damaged: as in _read_rknn()
        return {}
    inputs, outputs = [tensor for tensor in values[11] if tensor[0] not in constants], values[12]
    if inputs and outputs and (overrule or not model.outputs):
        model.inputs, model.outputs = inputs, outputs
    return {name: _literal(text) for name, text in metadata.items()}


def _value_info(data: Any, place: Tuple[int, int]) -> Tensor:
    found = dict(_fields(data, *place))
    shape = []
    kinds = dict(_fields(data, *found[2]))
    if 1 not in kinds:  # a sequence or a map, as scikit-learn's classifiers give
        return _text(data, found[1]), ()
    tensor = dict(_fields(data, *kinds[1]))
    for number, inside in _fields(data, *tensor.get(2, (0, 0))):
        if number == 1:
            side = dict(_fields(data, *inside)).get(1, 0)
            shape.append(side if side < 2 ** 31 else 0)
    if shape and not shape[0]:
        shape[0] = 1  # an open batch
    return _text(data, found[1]), _shape(shape)


def _read_tflite(path: str, model: Model) -> Dict[str, Any]:
    """Fill in shapes from a .tflite, with channels before height and width as an ONNX has them, and return its
    metadata: metadata.json in a zip behind the model, as Ultralytics and models/convert.py write it."""
    metadata: Dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json").decode())
        names = metadata.get("names")
        if isinstance(names, dict):  # JSON's keys are texts
            metadata["names"] = {int(number): name for number, name in names.items()}
    except Exception:  # there is none, or another's
        metadata = {}
    try:
        with _mapped(path) as data:
            found = _ends_of_tflite(data)
        for which, ends in enumerate(found):
            told = metadata.get(("inputs", "outputs")[which])
            if isinstance(told, list) and len(told) == len(ends):
                found[which] = [(str(name), _shape(shape)) for name, shape in told]
        model.inputs, model.outputs = found
    except Exception:  # damaged: as in _read_rknn()
        pass
    return metadata


def _ends_of_tflite(data: Any) -> List[List[Tensor]]:
    """The inputs and the outputs of a .tflite, a FlatBuffer (field numbers: the schema.fbs of LiteRT)."""
    def number(place: int, kind: str = "<i") -> int:
        return struct.unpack_from(kind, data, place)[0]

    def field(table: int, which: int) -> int:
        vtable = table - number(table)
        offset = number(vtable + 4 + 2 * which, "<H") if 4 + 2 * which < number(vtable, "<H") else 0
        return table + offset if offset else 0

    def vector(table: int, which: int) -> range:
        """The places of a vector's elements, of 4 bytes each."""
        place = field(table, which)
        start = place + number(place) if place else 0
        return range(start + 4, start + 4 + 4 * number(start), 4) if place else range(0)

    def tensor(table: int) -> Tensor:
        shape = [number(place) for place in vector(table, 0)]
        if len(shape) > 3:
            shape.insert(1, shape.pop())
        name = vector(table, 3)
        return data[name.start:name.start + len(name)].decode(), _shape(shape)

    if data[4:8] != b"TFL3":
        raise ValueError("not a .tflite")
    graphs = vector(number(0), 2)
    graph = graphs[0] + number(graphs[0])
    tensors = vector(graph, 0)
    return [[tensor(tensors[number(place)] + number(tensors[number(place)])) for place in vector(graph, which)]
            for which in (1, 2)]


def _literal(text: str) -> Any:
    """Metadata of an .onnx are texts; "{0: 'person'}" is a dict, "True" is a bool."""
    try:
        return ast.literal_eval(text) if len(text) < 10 ** 6 else text
    except Exception:
        return text


def _read_yaml(stem: str) -> Tuple[Dict[str, Any], str]:
    """NAME.yaml or metadata.yaml beside the model, and its path; {} where there is none that can be read. Raises
    InputError where PyYAML is missing."""
    for path in (stem + ".yaml", os.path.join(os.path.dirname(stem), "metadata.yaml")):
        if not os.path.isfile(path):
            continue
        try:
            import yaml
        except ImportError:
            raise InputError(f"{path}: cannot be read, for PyYAML is not installed (pip install pyyaml).") from None
        try:
            with open(path, "rb") as file:
                content = yaml.safe_load(file.read())
        except Exception:  # damaged
            continue
        if isinstance(content, dict) and "backbone" not in content:  # yolo11n.yaml, of which the model was built
            return {key: value for key, value in content.items() if isinstance(key, str)}, path
    return {}, ""


# ---- what it means ----

def _apply(model: Model) -> None:
    """Fill in size, layout, task, names from the shapes and the metadata."""
    found, shape = model.metadata, model.inputs[0][1] if model.inputs else ()
    if len(shape) == 4:
        model.layout = "NHWC" if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else "NCHW"
        height, width = shape[1:3] if model.layout == "NHWC" else shape[2:]
        model.size = (width, height) if width and height else None
    sides = found.get("imgsz")
    sides = [sides, sides] if isinstance(sides, int) else sides
    if model.size is None and isinstance(sides, (list, tuple)) and len(sides) == 2 and all(
            type(side) is int and 0 < side < 2 ** 16 for side in sides):
        model.size = sides[1], sides[0]
    model.task = found.get("task") if found.get("task") in TASKS else None
    names = found.get("names")
    if isinstance(names, dict) and names and all(type(number) is int for number in names):
        model.names = {number: str(name) for number, name in names.items()}
    elif isinstance(names, (list, tuple)) and names:
        model.names = [str(name) for name in names]
    if model.names is None:
        model.names_from = None
    if found.get("scores") in ("probabilities", "logits", "multilabel"):
        model.scores = found["scores"]


def _is_relative(found: Dict[str, Any]) -> bool:
    """Whether a .rknn's or .tflite's coordinates lie in 0..1: models/convert.py writes the word itself; without it
    those of Ultralytics' int8 exports of 8.4.110 and later do, unless they end in rows, which keep their pixels."""
    if "relative" in found:
        return bool(found["relative"])
    arguments = found.get("args") if isinstance(found.get("args"), dict) else {}
    return (arguments.get("quantize") == 8 and found.get("task") in TASKS[:4] and not found.get("end2end")
            and found.get("head") != "RTDETRDecoder")


def _classes(shapes: List[Tuple[int, ...]], task: Optional[str], metadata: Dict[str, Any]) -> Optional[int]:
    first = shapes[0] if shapes else ()
    if len(shapes) == 1 and len(first) in (2, 4) and first[2:] in ((), (1, 1)):
        return first[1] if first[1] > 1 else None  # one logit may have a name, or two
    if len(shapes) == 3 and len({shape[1:-2] for shape in shapes}) == 1:
        heads = first[1] // 3 if len(first) == 4 and first[1] % 3 == 0 else (
            first[2] if len(first) == 5 and first[1] == 3 else 0)
        return heads - 5 if heads > 5 else None    # YOLOv5's
    if len(shapes) in (6, 9) and len(first) == 4 and first[1] == 64 and len(shapes[1]) == 4:
        return shapes[1][1] or None                # YOLOv8's
    if len(first) == 3 and task and 0 < first[1] < first[2]:
        points = metadata.get("kpt_shape")
        more = {"detect": 0, "segment": 32, "obb": 1}.get(task)
        if task == "pose" and isinstance(points, (list, tuple)) and len(points) == 2 and all(
                type(number) is int for number in points):
            more = points[0] * points[1]
        return first[1] - 4 - more if more is not None and first[1] - 4 - more > 0 else None
    return None
