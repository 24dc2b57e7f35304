"""The documents stay in step with each other and with the files, and their commands run as they stand."""
import ast
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

DOCUMENTS = ("README.md", "README_zh.md", "BENCHMARKS.md", "CONTRIBUTING.md", "models/README.md", "tests/README.md",
             "tests/board/README.md")
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS[:2])
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\|.*`\.venv/bin/python ((?:main|examples).*?)` \|$", re.MULTILINE)


def test_both_readmes_show_the_same_commands_and_results():
    assert CODE.findall(ENGLISH) == CODE.findall(CHINESE)
    assert re.findall(r"`(\.venv/bin/python .*?)`", ENGLISH) == re.findall(r"`(\.venv/bin/python .*?)`", CHINESE)


def test_both_readmes_show_the_same_figures():
    def figures(text):
        return [re.findall(r"\d+(?:\.\d+)?", line) for line in text.splitlines() if line.startswith("|")]
    assert figures(ENGLISH) == figures(CHINESE)
    measured, both = (re.search(rf"^## {title}\n\n(.*)", text, re.MULTILINE).group(1)
                      for title, text in (("Measured", ENGLISH), ("实测", CHINESE)))
    assert sorted(re.findall(r"\d+\.\d", measured)) == sorted(re.findall(r"\d+\.\d", both))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_a_front_page_stays_one(text):
    assert text.count("\n") <= 150


def test_the_settings_shown_are_those_of_main():
    block = next(block for block in CODE.findall(ENGLISH) if "\nmodelPath = " in block)
    lines = [line for line in block.splitlines()[1:-1] if not line.startswith("#")]
    settings = {" ".join(line.split()) for line in (ROOT / "main.py").read_text(encoding="utf-8").splitlines()}
    assert {line.split(" = ")[0] for line in lines} >= {"modelPath", "cap", "TPEs", "bigCores"}
    for line in lines:
        assert " ".join(line.split()) in settings


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert ((ROOT / name).parent / target).exists(), target


def commands():
    """Each call of a script of ours in README.md, as words: those of its code blocks and those in its text."""
    text = re.sub(r"\\\n", " ", ENGLISH)
    lines = [line.split(" # ")[0] for block in CODE.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", CODE.sub("", text))
    return [shlex.split(line.strip().rstrip("&")) for line in lines
            if re.match(r"\s*(\S*/)?python3? (?!-m)", line)]


def test_every_command_is_one_that_finds_its_packages():
    assert commands()
    for words in commands():
        assert words[0] == ".venv/bin/python", words
        assert (ROOT / words[1]).is_file(), words


@pytest.mark.slow
def test_every_flag_that_is_shown_exists():
    for script in {words[1] for words in commands()} - {"examples/asyncio_streams.py"}:
        known = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True,
                               timeout=300).stdout
        for words in commands():
            for flag in (word for word in words if words[1] == script and word.startswith("--")):
                assert re.search(rf"{flag}\b", known), (script, flag)
    shown = set(re.findall(r"`(--[a-z]+)", ENGLISH)) - {"--status"}
    known = "".join(subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True,
                                   timeout=300).stdout for script in ("main.py", "examples/boards.py"))
    assert not [flag for flag in shown if not re.search(rf"{flag}\b", known)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ROW.findall(ENGLISH))
def test_every_example_of_the_table_runs(clip, command):
    arguments = [str(clip) if name.endswith(".mp4") else name for name in shlex.split(command)]
    if arguments[0] == "main.py":
        arguments += [str(clip), "--headless"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "45 frames" in done.stdout


@pytest.mark.parametrize("block", [block for block in CODE.findall(ENGLISH) if block.startswith("```python\n")])
def test_the_python_shown_is_python(block):
    ast.parse(block[len("```python\n"):-len("```")])
