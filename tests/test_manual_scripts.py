"""The scripts that are run by hand: the short runs of tests/README.md work as they are written."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from broker import MOSQUITTO
from conftest import ROOT

sys.path.insert(0, str(ROOT / "models/demo"))
from scene import FONT  # noqa: E402

pytestmark = pytest.mark.slow

SECTION = (ROOT / "tests/README.md").read_text(encoding="utf-8").split("\n## Manual scripts\n")[1]
COMMANDS = re.findall(
    r"^\.venv/bin/python (tests/.*?)  +#", SECTION.split("\n## ")[0], re.MULTILINE
)
NO_FONT = not os.path.exists(FONT) and "Debian's package fonts-noto-color-emoji is not installed"
MISSING = {  # the reason why a script cannot run here, or ""
    "tests/compare_func.py": not (shutil.which("git") and (ROOT / ".git").exists())
    and "needs git and a clone",
    "tests/compare_reading.py": (not importlib.util.find_spec("av") and "pip install av")
    or (not shutil.which("gcc") and "gcc is not installed"),
    "tests/compare_tiles.py": NO_FONT,
    "tests/compare_trackers.py": NO_FONT,
    "tests/line_counts.py": NO_FONT,
    "tests/many_cameras.py": not importlib.util.find_spec("av") and "pip install av",
    "tests/soak.py": not MOSQUITTO and "apt-get install mosquitto",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_short_run_of_a_manual_script_works(command):
    words = shlex.split(command)
    if MISSING.get(words[0]):
        pytest.skip(MISSING[words[0]])
    # timeout ends the programs that the script started, too
    ran = subprocess.run(
        ["timeout", "300", sys.executable, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0 and ran.stdout, ran.stderr


def test_the_page_lists_all_scripts():
    assert len(COMMANDS) == 12
