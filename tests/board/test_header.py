"""The vendor's binary interface is restated twice, in rknn_abi.h and in runtimes/librknnrt.py: here both are held
against the vendor's public rknn_api.h, which is compiled and never kept in the repository.
"""
import ctypes
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
from board_parts import ROOT, needs_tools, over

from runtimes import librknnrt

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

BOARD = ROOT / "tests" / "board"
# The header of library 2.x, as a package for Python brings it along, and its sha256.
CARRIER, MEMBER = "ztu-somemodelruntime-ez-rknn-async==0.11.0", "src/rknn_api.h"
SUM = "c48e11a6f41b451a5fd1e4ad774ea60252d3d94f78bee9b21ea3d21b21deba9a"

MACHINES = {"x86-64": (["gcc"], []), "aarch64": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64-static"])}
STRUCTURES = {librknnrt.InOutNum: "rknn_input_output_num", librknnrt.TensorAttr: "rknn_tensor_attr",
              librknnrt.SdkVersion: "rknn_sdk_version", librknnrt.Input: "rknn_input",
              librknnrt.Output: "rknn_output"}
OWN = (BOARD / "rknn_abi.h").read_text()

CTYPES = """
import ctypes, json
from runtimes import librknnrt
kinds = [kind for kind in vars(librknnrt).values() if isinstance(kind, type) and issubclass(kind, ctypes.Structure)]
print(json.dumps({kind.__name__: {"": [0, ctypes.sizeof(kind)], **{
    field: [getattr(kind, field).offset, getattr(kind, field).size] for field, _ in kind._fields_}}
    for kind in kinds if kind is not ctypes.Structure}))
"""


@pytest.fixture(scope="module")
def vendors(tmp_path_factory):
    """Path of the folder that holds rknn_api.h."""
    kept = BOARD / "box" / "rknn_api.h"
    kept.parent.mkdir(exist_ok=True)
    if not kept.exists():
        folder = tmp_path_factory.mktemp("header")
        subprocess.run([sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps",
                        "--no-binary", ":all:", "-d", folder, CARRIER], check=True)
        path, = folder.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            member, = [each for each in archive.getnames() if each.endswith(MEMBER)]
            text = archive.extractfile(member).read()
        assert hashlib.sha256(text).hexdigest() == SUM, f"the header in {CARRIER} is not the one that is known"
        kept.write_bytes(text)
    return kept.parent


def structures_of(text):
    """The fields of each struct that a header of ours defines: {name: [field]}."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return {name: re.findall(r"(\w+)(?:\[\w+\])?[,;]", body)
            for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL)}


def constants_of(text):
    return re.findall(r"\b(RKNN_\w+) = -?\d+", text)


def asked(folder, machine, include, structure, constants, path):
    """What a C compiler for this machine says of rknn_abi.h's structures and constants with this header:
    {structure: {field: [offset, size], "": [0, size]}}, {constant: value}. `structure` is a C macro's body."""
    compiler, runner = MACHINES[machine]
    if not shutil.which(compiler[0]):
        pytest.skip(f"{compiler[0]} is not installed")
    lines = [f'printf("{name} {field} %zu %zu\\n", offsetof(S({name}), {field}), sizeof(((S({name}) *)0)->{field}));'
             for name, fields in structures_of(OWN).items() for field in fields]
    lines += [f'printf("{name} - 0 %zu\\n", sizeof(S({name})));' for name in structures_of(OWN)]
    lines += [f'printf("{name} = %ld 0\\n", (long){constants[name]});' for name in constants]
    source, program = path / "ask.c", path / "ask"
    source.write_text(f'#include <stddef.h>\n#include <stdio.h>\n#include "{include}"\n#define S(name) {structure}\n'
                      "int main(void) {" + "\n".join(lines) + "return 0;}\n")
    subprocess.run([*compiler, "-I", folder, "-o", program, source], check=True)
    found, values = {}, {}
    for line in subprocess.run([*runner, program], check=True, capture_output=True, text=True).stdout.splitlines():
        name, field, first, second = line.split()
        if field == "=":
            values[name] = int(first)
        else:
            found.setdefault(name, {})["" if field == "-" else field] = [int(first), int(second)]
    return found, values


def agreed(vendors, machine, path):
    """asked() of the vendor's header, which says the same of ours."""
    own = {name: name for name in constants_of(OWN)}
    # Two that the vendor's calls by longer names.
    theirs = {**own, "RKNN_MAX_NAME": "RKNN_MAX_NAME_LEN", "RKNN_MAX_RANGES": "RKNN_MAX_DYNAMIC_SHAPE_NUM"}
    said = asked(vendors, machine, "rknn_api.h", "name", theirs, path)
    assert asked(BOARD, machine, "rknn_abi.h", "struct name", own, path) == said
    return said


@pytest.mark.parametrize("machine", MACHINES)
def test_our_header_is_laid_out_as_the_vendors(vendors, machine, tmp_path):
    structures, constants = agreed(vendors, machine, tmp_path)
    assert set(STRUCTURES.values()) < set(structures) and len(constants) > 30
    assert structures["rknn_tensor_attr"]["h_stride"] == [372, 4]  # and it was understood


def test_the_bindings_structures_are_laid_out_as_the_vendors(vendors, tmp_path):
    structures, _ = agreed(vendors, "x86-64", tmp_path)
    for kind, name in STRUCTURES.items():
        fields = {field: [getattr(kind, field).offset, getattr(kind, field).size] for field, _ in kind._fields_}
        assert {**fields, "": [0, ctypes.sizeof(kind)]} == structures[name], name


@over("emulated, newest wheel", of=["emulated, newest wheel", "emulated, Python 3.13"])  # no library is asked
def test_the_bindings_structures_are_laid_out_as_the_vendors_on_the_board(board, vendors, tmp_path):
    structures, _ = agreed(vendors, "aarch64", tmp_path)
    run = board.run("python3", "-c", CTYPES)
    found = json.loads(run.out)
    assert found == {kind.__name__: structures[name] for kind, name in STRUCTURES.items()}, run.err


def test_the_bindings_constants_are_the_vendors(vendors):
    text = (vendors / "rknn_api.h").read_text()
    errors = {int(code): name for name, code in re.findall(r"#define (RKNN_ERR_\w+)\s+(-\d+)", text)}
    assert {code: name for code, (name, _) in librknnrt.ERRORS.items()}.items() <= errors.items()
    types = re.search(r"typedef enum _rknn_tensor_type \{(.*?)\}", text, re.DOTALL)[1]
    order = [name.lower() for name in re.findall(r"RKNN_TENSOR_(\w+)", types)]
    assert all(order[number] == name for name, number in librknnrt.KINDS.items())
    commands = dict(re.findall(r"RKNN_QUERY_(\w+) = (\d+)", text))
    for name in ("IN_OUT_NUM", "INPUT_ATTR", "OUTPUT_ATTR", "SDK_VERSION"):
        assert getattr(librknnrt, name) == int(commands[name])
    formats = re.findall(r"RKNN_TENSOR_(NCHW|NHWC)\b(?= = 0,|,)", text)
    assert (formats.index("NCHW"), formats.index("NHWC")) == (librknnrt.NCHW, librknnrt.NHWC)
    quantised = re.findall(r"RKNN_TENSOR_QNT_(NONE|DFP|AFFINE)\w*(?= = 0,|,)", text)
    assert (order[librknnrt.INT8], quantised[librknnrt.AFFINE]) == ("int8", "AFFINE")
    masks = dict(re.findall(r"RKNN_(NPU_CORE_(?:AUTO|0|1|2|ALL)) = (\w+)", text))
    assert len(masks) == 5
    assert all(getattr(librknnrt.RKNNLite, name) == int(value, 0) for name, value in masks.items())
