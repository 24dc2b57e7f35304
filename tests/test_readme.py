"""README.md, docs/ and their Chinese versions: they agree with each other and with the files, and
their commands run as they are written."""

import ast
import re
import shlex
import subprocess
import sys

import cv2
import pytest
from conftest import ROOT, write_clip

import rknnpool

ENGLISH = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
CHINESE = ["README_zh.md", *(name.replace("docs/", "docs/zh/") for name in ENGLISH[1:])]
OTHERS = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "models/README.md",
    "tests/README.md",
    "tests/board/README.md",
]
PAGES = [*ENGLISH, *CHINESE, *OTHERS]
PAIRS = list(zip(ENGLISH, CHINESE))
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
PYTHONS = (".venv/bin/python", "models/.venv/bin/python", ".venv-tflite/bin/python")
OTHER_PYTHONS = ("ENVIRONMENT/bin/python", "/usr/bin/python3")
PYTHON_FILES = {
    path.name
    for pattern in ("*.py", "*/*.py", "tests/*/*.py", "models/*/*.py")
    for path in ROOT.glob(pattern)
}
OF_OTHERS = ("my.py", "export.py")  # written by the reader; in YOLOv5's repository
WITH_HELP = ("main.py", "benchmark.py", "examples/boards.py", "models/convert.py")


def without_comments(text):
    return [re.sub(r"\s*#.*", "", line) for line in text.splitlines()]


def code_blocks(name):
    return [without_comments(block) for block in CODE.findall(TEXTS[name])]


def inline_code(name):
    return re.findall(r"`([^`\n]+)`", CODE.sub("", TEXTS[name]))


def headings(name):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", CODE.sub("", TEXTS[name]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(names):
    """The commands on these pages that run a script of the repository: (page, words)."""
    found = []
    for name in names:
        text = "\n".join(CODE.findall(TEXTS[name])).replace("\\\n", " ")
        lines = [line.split(" # ")[0] for line in text.splitlines()] + inline_code(name)
        for line in lines:
            if re.match(r"\s*(\S*/)?python3? (?!-m)", line):
                found.append((name, shlex.split(line.strip().rstrip("&"))))
    return found


# ---- both languages ----


def test_every_page_has_a_chinese_version():
    assert {path.name for path in ROOT.glob("docs/zh/*")} == {
        path.name for path in ROOT.glob("docs/*.md")
    }


@pytest.mark.parametrize("english, chinese", PAIRS)
def test_both_languages_show_the_same_code(english, chinese):
    assert code_blocks(english) == code_blocks(chinese)


@pytest.mark.parametrize("english, chinese", PAIRS)
def test_both_languages_name_the_same_flags_files_and_commands(english, chinese):
    assert sorted(inline_code(english)) == sorted(inline_code(chinese))


@pytest.mark.parametrize("english, chinese", PAIRS)
def test_both_languages_show_the_same_figures(english, chinese):
    def figures(name):
        rows = [line for line in TEXTS[name].splitlines() if line.startswith("|")]
        return [sorted(re.findall(r"\d+(?:\.\d+)?", row)) for row in rows]

    assert figures(english) == figures(chinese)


@pytest.mark.parametrize("english, chinese", PAIRS)
def test_both_languages_have_the_same_sections(english, chinese):
    def levels(name):
        return re.findall(r"^#+(?= )", CODE.sub("", TEXTS[name]), re.MULTILINE)

    assert levels(english) == levels(chinese)


# ---- links ----


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(name):
    for target in re.findall(r"\]\(([^)]+)\)", CODE.sub("", TEXTS[name])):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in headings(str(file.relative_to(ROOT))), target


@pytest.mark.parametrize("name", [name for name in PAGES if name != "CHANGELOG.md"])
def test_every_python_file_named_on_a_page_exists(name):
    for path in re.findall(r"(?<![\w./-])[\w/]+\.py\b", TEXTS[name]):
        found = (ROOT / path).is_file() if "/" in path else path in PYTHON_FILES
        near = ((ROOT / name).parent / path).is_file()
        assert found or near or path in OF_OTHERS, path


# ---- commands ----


@pytest.mark.parametrize("name", PAGES)
def test_every_command_uses_an_environment_and_a_script_that_exist(name):
    for _, words in commands([name]):
        assert words[0] in PYTHONS + OTHER_PYTHONS, words
        assert (ROOT / words[1]).is_file(), words


@pytest.mark.slow
def test_the_docs_name_every_flag_of_main_py():
    command = [sys.executable, "main.py", "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    flags = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", ran.stdout, re.MULTILINE)) - {"--help"}
    docs = "".join(TEXTS[name] for name in ENGLISH if name.startswith("docs/"))
    assert {"--save", "--version"} <= flags
    assert not [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", docs)]


@pytest.mark.slow
def test_every_flag_on_the_pages_exists():
    known = {}
    for script in {words[1] for _, words in commands(PAGES)}:
        known[script] = (ROOT / script).read_text(encoding="utf-8")
        if script in WITH_HELP:
            command = [sys.executable, script, "--help"]
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
            known[script] = ran.stdout
    for name, words in commands(PAGES):
        for flag in (word for word in words if word.startswith("--")):
            assert re.search(rf"{flag}\b", known[words[1]]), (name, words[1], flag)
    # flags named in a sentence, of scripts in this repository or of other programs
    others = {
        "--status",
        "--device",
        "--system-site-packages",
        "--security-opt",
        "--rknpu",
        "--list-devices",
        "--python",
        "--seed",
    }
    known = "".join(known.values())
    for name in ENGLISH:
        for text in inline_code(name):
            for flag in re.findall(r"(?<!\S)--[a-zA-Z][a-zA-Z-]+", text):
                assert flag in others or re.search(rf"{flag}\b", known), (name, flag)


def runnable():
    """The commands of main.py that need only files of the repository."""
    found = set()
    for _, words in commands(ENGLISH):
        sources = [word.rpartition("=")[2] for word in words[2:3] if not word.startswith("-")]
        files = [*sources, *(words[place + 1] for place in places(words, "--model"))]
        if words[1] == "main.py" and not {"--runtime", "--func", "--doctor"} & {*words}:
            if all((ROOT / file).is_file() for file in files):
                found.add(shlex.join(words[1:]))
    return sorted(found)


def places(words, flag):
    return [place for place, word in enumerate(words) if word == flag]


@pytest.mark.slow
@pytest.mark.parametrize("command", runnable())
def test_every_command_with_the_demo_models_runs(command, demo_frames, tmp_path):
    clip = write_clip(tmp_path / "clip.avi", demo_frames[:9])
    words = shlex.split(command)
    for place in places(words, "--save") + places(words, "--snapshots"):
        words[place + 1] = str(tmp_path / words[place + 1])
    words = [word.replace("models/demo.mp4", str(clip)) for word in words]
    if not any(str(clip) in word for word in words):
        words.insert(1, str(clip))
    command = [sys.executable, *words, "--headless"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "9 frames" in ran.stdout + ran.stderr


def test_some_commands_on_the_pages_are_run():
    assert len(runnable()) >= 5


# ---- Python on the front page ----


def python_blocks():
    blocks = re.findall(r"^```python\n(.*?)^```", TEXTS["README.md"], re.MULTILINE | re.DOTALL)
    pool, my_func = blocks
    return pool, my_func


@pytest.mark.parametrize("name", ENGLISH)
def test_the_python_code_on_the_pages_compiles(name):
    for block in re.findall(r"^ *```python\n(.*?)^ *```", TEXTS[name], re.MULTILINE | re.DOTALL):
        ast.parse(
            "\n".join(line.strip() if name != "README.md" else line for line in block.splitlines())
        )


@pytest.mark.slow
def test_the_pool_on_the_front_page_runs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(python_blocks()[0], {})
    shape = cv2.imread("models/result.jpg").shape
    assert capsys.readouterr().out.splitlines() == [str(shape)]


@pytest.mark.slow
def test_the_func_on_the_front_page_runs_with_its_command(clip, tmp_path, main_py):
    (tmp_path / "my.py").write_text(python_blocks()[1])
    words = next(words for _, words in commands(["README.md"]) if "my.py" in words)
    arguments = [str(tmp_path / word) if word == "my.py" else word for word in words[2:]]
    saved = tmp_path / "out.avi"
    ran = main_py(clip, *arguments, "--headless", "--save", saved)
    assert ran.returncode == 0, ran.stderr
    assert "45 frames" in ran.stdout and saved.stat().st_size > 10000


# ---- version ----


def test_the_change_log_has_the_current_version():
    assert re.findall(r"^## \[(\d.*?)\]", TEXTS["CHANGELOG.md"], re.MULTILINE)[0] == (
        rknnpool.__version__
    )


def test_main_prints_its_version(main_py):
    ran = main_py("--version")
    assert (ran.returncode, ran.stdout) == (0, f"rknnpool {rknnpool.__version__}\n")
