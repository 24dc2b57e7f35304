"""requirements.txt: it can be installed on every machine that README.md names, and includes what
runs models there."""

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

LINES = [
    line.split("  #")[0]
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def installed(**machine):
    """The packages that pip installs on such a machine, without their dependencies."""
    requirements = map(Requirement, LINES)
    return {
        wanted.name
        for wanted in requirements
        if not wanted.marker or wanted.marker.evaluate(machine)
    }


@pytest.mark.parametrize("python", ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_a_board_gets_the_wheel_or_onnxruntime_if_there_is_no_wheel(python, machine):
    names = installed(python_version=python, sys_platform="linux", platform_machine=machine)
    wheel = machine == "aarch64" and Version(python) < Version("3.13")
    assert ("rknn-toolkit-lite2" in names, "onnxruntime" in names) == (wheel, not wheel)
    assert {"opencv-python", "numpy", "tqdm", "pyyaml"} < names


def test_other_systems_get_onnxruntime():
    for system in ("darwin", "win32"):
        names = installed(python_version="3.12", sys_platform=system, platform_machine="aarch64")
        assert "onnxruntime" in names and "rknn-toolkit-lite2" not in names


def test_every_core_requirement_has_a_minimum_version():
    floors = {Requirement(line).name for line in LINES if ">=" in line.split(";")[0]}
    assert floors == {"rknn-toolkit-lite2", "onnxruntime", "opencv-python", "numpy"}
