"""rknn_abi.h and runtimes/rknn_api.py repeat the vendor's binary interface. These tests compare
both with the vendor's public rknn_api.h, which is compiled here and not kept in the repository.
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
from board_parts import ROOT, needs_tools, with_setups

from runtimes import librknnrt, rknn_api

pytest_plugins = ["board_fixtures"]
pytestmark = [needs_tools, pytest.mark.slow]

BOARD = ROOT / "tests" / "board"
# The header of library 2.x, from a Python package that contains it, and its sha256.
CARRIER, MEMBER = "ztu-somemodelruntime-ez-rknn-async==0.11.0", "src/rknn_api.h"
SUM = "c48e11a6f41b451a5fd1e4ad774ea60252d3d94f78bee9b21ea3d21b21deba9a"

MACHINES = {
    "x86-64": (["gcc"], []),
    "aarch64": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64-static"]),
}
STRUCTURES = {
    rknn_api.InOutNum: "rknn_input_output_num",
    rknn_api.TensorAttr: "rknn_tensor_attr",
    rknn_api.SdkVersion: "rknn_sdk_version",
    rknn_api.Input: "rknn_input",
    rknn_api.Output: "rknn_output",
}
OWN = (BOARD / "rknn_abi.h").read_text()

CTYPES = """
import ctypes, json
from runtimes import rknn_api
classes = [kind for kind in vars(rknn_api).values() if isinstance(kind, type)]
kinds = [kind for kind in classes if issubclass(kind, ctypes.Structure)]
print(json.dumps({kind.__name__: {"": [0, ctypes.sizeof(kind)], **{
    field: [getattr(kind, field).offset, getattr(kind, field).size] for field, _ in kind._fields_}}
    for kind in kinds if kind is not ctypes.Structure}))
"""


@pytest.fixture(scope="module")
def vendors(tmp_path_factory):
    """Path of the folder with rknn_api.h."""
    kept = BOARD / "box" / "rknn_api.h"
    kept.parent.mkdir(exist_ok=True)
    if not kept.exists():
        folder = tmp_path_factory.mktemp("header")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-qq",
                "--disable-pip-version-check",
                "--no-deps",
                "--no-binary",
                CARRIER.partition("==")[0],  # not what pip needs to build it, which takes minutes
                "-d",
                folder,
                CARRIER,
            ],
            check=True,
        )
        (path,) = folder.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            (member,) = [each for each in archive.getnames() if each.endswith(MEMBER)]
            text = archive.extractfile(member).read()
        assert hashlib.sha256(text).hexdigest() == SUM, (
            f"the header in {CARRIER} is not the one that is known"
        )
        kept.write_bytes(text)
    return kept.parent


def structures_of(text):
    """The fields of each struct in a header of ours: {name: [field]}."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return {
        name: re.findall(r"(\w+)(?:\[\w+\])?[,;]", body)
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL)
    }


def constants_of(text):
    return re.findall(r"\b(RKNN_\w+) = -?\d+", text)


def layout_of(folder, machine, include, structure, constants, path):
    """The layout of rknn_abi.h's structures and the values of its constants with this header, from
    a C compiler for this machine: {structure: {field: [offset, size], "": [0, size]}}, {constant:
    value}. `structure` is the body of a C macro."""
    compiler, runner = MACHINES[machine]
    if not shutil.which(compiler[0]):
        pytest.skip(f"{compiler[0]} is not installed")
    lines = [
        f'printf("{name} {field} %zu %zu\\n", offsetof(S({name}), {field}), '
        f"sizeof(((S({name}) *)0)->{field}));"
        for name, fields in structures_of(OWN).items()
        for field in fields
    ]
    lines += [f'printf("{name} - 0 %zu\\n", sizeof(S({name})));' for name in structures_of(OWN)]
    lines += [f'printf("{name} = %ld 0\\n", (long){constants[name]});' for name in constants]
    source, program = path / "ask.c", path / "ask"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{include}"\n'
        f"#define S(name) {structure}\n"
        "int main(void) {" + "\n".join(lines) + "return 0;}\n"
    )
    subprocess.run([*compiler, "-I", folder, "-o", program, source], check=True)
    found, values = {}, {}
    for line in subprocess.run(
        [*runner, program], check=True, capture_output=True, text=True
    ).stdout.splitlines():
        name, field, first, second = line.split()
        if field == "=":
            values[name] = int(first)
        else:
            found.setdefault(name, {})["" if field == "-" else field] = [int(first), int(second)]
    return found, values


def vendors_layout(vendors, machine, path):
    """layout_of() for the vendor's header, after a check that ours gives the same."""
    own = {name: name for name in constants_of(OWN)}
    # Two have longer names in the vendor's header.
    theirs = {
        **own,
        "RKNN_MAX_NAME": "RKNN_MAX_NAME_LEN",
        "RKNN_MAX_RANGES": "RKNN_MAX_DYNAMIC_SHAPE_NUM",
    }
    vendors_layout = layout_of(vendors, machine, "rknn_api.h", "name", theirs, path)
    assert layout_of(BOARD, machine, "rknn_abi.h", "struct name", own, path) == vendors_layout
    return vendors_layout


@pytest.mark.parametrize("machine", MACHINES)
def test_our_header_has_the_vendors_layout(vendors, machine, tmp_path):
    structures, constants = vendors_layout(vendors, machine, tmp_path)
    assert set(STRUCTURES.values()) < set(structures) and len(constants) > 30
    assert structures["rknn_tensor_attr"]["h_stride"] == [372, 4]  # the header was parsed correctly


def test_the_structures_of_the_bindings_have_the_vendors_layout(vendors, tmp_path):
    structures, _ = vendors_layout(vendors, "x86-64", tmp_path)
    for kind, name in STRUCTURES.items():
        fields = {
            field: [getattr(kind, field).offset, getattr(kind, field).size]
            for field, _ in kind._fields_
        }
        assert {**fields, "": [0, ctypes.sizeof(kind)]} == structures[name], name


# no library is called
@with_setups("emulated, newest wheel", of=["emulated, newest wheel", "emulated, Python 3.13"])
def test_the_structures_of_the_bindings_have_the_vendors_layout_on_the_board(
    board, vendors, tmp_path
):
    structures, _ = vendors_layout(vendors, "aarch64", tmp_path)
    run = board.run("python3", "-c", CTYPES)
    found = json.loads(run.out)
    assert found == {kind.__name__: structures[name] for kind, name in STRUCTURES.items()}, run.err


def test_the_constants_of_the_bindings_are_the_vendors(vendors):
    text = (vendors / "rknn_api.h").read_text()
    errors = {
        int(code): name for name, code in re.findall(r"#define (RKNN_ERR_\w+)\s+(-\d+)", text)
    }
    assert {code: name for code, (name, _) in rknn_api.ERRORS.items()}.items() <= errors.items()
    types = re.search(r"typedef enum _rknn_tensor_type \{(.*?)\}", text, re.DOTALL)[1]
    order = [name.lower() for name in re.findall(r"RKNN_TENSOR_(\w+)", types)]
    assert all(order[number] == name for name, number in rknn_api.KINDS.items())
    commands = dict(re.findall(r"RKNN_QUERY_(\w+) = (\d+)", text))
    for name in ("IN_OUT_NUM", "INPUT_ATTR", "OUTPUT_ATTR", "SDK_VERSION"):
        assert getattr(rknn_api, name) == int(commands[name])
    formats = re.findall(r"RKNN_TENSOR_(NCHW|NHWC)\b(?= = 0,|,)", text)
    assert (formats.index("NCHW"), formats.index("NHWC")) == (rknn_api.NCHW, rknn_api.NHWC)
    quantised = re.findall(r"RKNN_TENSOR_QNT_(NONE|DFP|AFFINE)\w*(?= = 0,|,)", text)
    assert (order[rknn_api.INT8], quantised[rknn_api.AFFINE]) == ("int8", "AFFINE")
    masks = dict(re.findall(r"RKNN_(NPU_CORE_(?:AUTO|0|1|2|ALL)) = (\w+)", text))
    assert len(masks) == 5
    assert all(getattr(librknnrt.RKNNLite, name) == int(value, 0) for name, value in masks.items())
