"""The two READMEs stay in step with each other and with the files."""
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import main

ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def test_both_readmes_show_the_same_commands_and_results():
    assert CODE.findall(ENGLISH) == CODE.findall(CHINESE)


def test_both_readmes_show_the_same_figures():
    def figures(text):
        return [re.findall(r"\d+(?:\.\d+)?", line) for line in text.splitlines() if line.startswith("|")]
    assert figures(ENGLISH) == figures(CHINESE)


def test_the_settings_shown_are_those_of_main():
    for name in ("modelPath", "cap", "TPEs", "bigCores"):
        line = next(line for line in (ROOT / "main.py").read_text().splitlines() if line.startswith(f"{name} = "))
        assert line in ENGLISH
        assert hasattr(main, name)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_every_link_leads_to_a_file(text):
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", re.findall(r"^\|.*`python ((?:main|examples).*?)` \|$", ENGLISH, re.MULTILINE))
def test_every_example_of_the_table_runs(clip, command):
    arguments = [str(clip) if name.endswith(".mp4") else name for name in command.split()]
    if arguments[0] == "main.py":
        arguments += [str(clip), "--headless"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "45 frames" in done.stdout
