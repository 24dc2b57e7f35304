"""A package that is missing is named in one sentence, with a command that installs it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import results
from vision import packages
from vision.errors import InputError

SCRIPTS = [
    "main.py",
    "benchmark.py",
    "models/convert.py",
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ("examples", "models/demo")
        for path in sorted((ROOT / folder).glob("*.py"))
        if "__main__" in path.read_text()
    ),
]
# Runs a program as if no package but pip were installed.
BARE = """
import pip, runpy, sys
sys.path = [path for path in sys.path if "-packages" not in path]
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_program_names_the_package_that_is_missing_and_how_to_install_it(script):
    done = run(BARE, ROOT / script, "--help")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"{Path(script).name} needs the package ")
    assert any(
        done.stderr.endswith(f"{packages.pip_install(name)}\n")
        for name in ("opencv-python", "numpy", "tqdm")
    ), done.stderr


def test_ctrl_c_ends_a_program_at_once_while_it_imports():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with packages.needed_packages():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("script", ["asyncio_streams.py", "boards.py"])
def test_every_example_has_a_help(script):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / script, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_a_flag_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "sources.pyav", raising=False)
    with pytest.raises(InputError) as caught:
        results.import_optional("sources.pyav", "--reader av")
    assert str(caught.value).startswith("--reader av needs the package av")
    assert str(caught.value).endswith(f"{sys.executable} -m pip install av")


def test_no_package_is_named_for_a_module_that_python_itself_lacks():
    """As in a Python that was built without the headers of SQLite."""
    if sys.version_info < (3, 10):
        pytest.skip("needs Python 3.10")
    printed = packages.missing_package("--setup", ModuleNotFoundError(name="_sqlite3"))
    assert f"Python's own module _sqlite3, which {sys.executable} lacks." in printed


def test_in_an_environment_without_pip_the_command_is_one_of_uv(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert packages.pip_install("av") == f"uv pip install --python {sys.executable} av"


@pytest.mark.parametrize("runtime, package", [("cpu", "onnxruntime"), ("teflon", "ai_edge_litert")])
def test_no_full_stop_is_glued_to_the_command(main_here, monkeypatch, runtime, package):
    monkeypatch.setitem(sys.modules, package, None)
    done = main_here("models/result.jpg", "--runtime", runtime, "--threads", "1")
    command = packages.pip_install(package.replace("_", "-"))
    assert done.returncode == 2 and done.stderr.endswith(f" ({command}).\n"), done.stderr


def test_the_command_can_be_typed_if_the_path_contains_a_space(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/home/my user/python")
    assert packages.pip_install("av").startswith("'/home/my user/python' -m pip")


def test_a_python_that_refuses_pip_gets_the_command_for_an_environment(monkeypatch, tmp_path):
    """Debian's own Python refuses it (PEP 668)."""
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(packages.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    python = ROOT / ".venv/bin/python"
    assert packages.pip_install("av") == (
        f"{sys.executable} -m venv {ROOT}/.venv && "
        f"{python} -m pip install -r {ROOT}/requirements.txt av"
    )


def test_a_missing_package_names_the_existing_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    printed = packages.missing_package("main.py", ModuleNotFoundError(name="cv2"))
    assert (
        f"needs the package opencv-python. Run it with {tmp_path}/.venv/bin/python, or" in printed
    )


def test_a_library_of_the_system_that_is_missing_is_named():
    error = ImportError("libGL.so.1: cannot open shared object file", name="cv2")
    printed = packages.missing_package("main.py", error)
    assert printed == (
        "main.py: libGL.so.1: cannot open shared object file. See docs/troubleshooting.md."
    )
