"""What is printed reaches the terminal, or nobody; it never ends a program."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import runtimes
from results.console import prepare_output, say, users_traceback


@pytest.fixture(params=["no reader", "full disk", "closed"])
def unwritable(request):
    """A text file to which nothing can be written."""
    if request.param == "full disk":
        file = open("/dev/full", "w", buffering=1)
    else:
        reading, writing = os.pipe()
        file = os.fdopen(writing, "w", buffering=1)
        os.close(reading)
    if request.param == "closed":
        os.close(file.fileno())
    yield file
    try:
        file.close()
    except OSError:
        pass


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_an_output_that_nobody_reads_ends_no_program(monkeypatch, unwritable, name):
    """As in `main.py 2>&1 | head -1`."""
    monkeypatch.setattr(sys, name, unwritable)
    prepare_output()
    for _ in range(3):
        print("a line", file=getattr(sys, name))
        say("a line", getattr(sys, name))
    getattr(sys, name).flush()


def test_a_terminal_without_some_letters_gets_their_codes(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        prepare_output()
        say("街.jpg: car 1")
        monkeypatch.undo()
    assert (tmp_path / "out").read_text() == "\\u8857.jpg: car 1\n"


def test_an_error_of_ours_keeps_its_whole_traceback():
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(runtimes.by_name, ["no", "name"]).exception()
    text = users_traceback(error)
    assert "/concurrent/futures/" in text and "runtimes/__init__.py" in text
