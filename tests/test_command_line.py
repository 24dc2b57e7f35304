"""Wrong flags and values of every program: one sentence, with the flag that was probably meant."""

import importlib
import sys

import pytest
from conftest import ROOT

import arguments
import main
from vision.errors import InputError

sys.path[:0] = [str(ROOT / "models"), str(ROOT / "examples")]


@pytest.fixture
def refused(monkeypatch):
    """refused(program, *words): the sentence with which a program refuses a command line."""

    def parse(program, *words):
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *words])
        with pytest.raises(InputError) as error:
            if program == "main":
                arguments.parse(vars(main), main.__doc__)
            else:
                importlib.import_module(program).parse_arguments()
        sentence = str(error.value)
        assert "\n" not in sentence and "usage:" not in sentence
        return sentence

    return parse


@pytest.mark.parametrize(
    "word, hint",
    [
        ("--trak", "--track"),
        ("--Headless", "--headless"),
        ("-quiet", "--quiet"),
        ("--conv=0.3", "--conf"),
        ("--web_name", "--web-name"),
        ("--sav", "--save"),  # a shortened flag would change its meaning when one is added
        ("--web-r", "--web-readonly"),
        ("—track", "--track"),  # a dash of a word processor or an input method
        ("–save=x.mp4", "--save"),
        ("－－loop", "--loop"),
        ("--gpu", None),
        ("--source", None),
        ("--线", None),
        ("-t", None),
    ],
)
def test_a_wrong_flag_gets_the_one_that_was_meant(refused, word, hint):
    flag = word.partition("=")[0]
    end = f"; did you mean {hint}? " if hint else ". "
    assert refused("main", word) == (
        f"unrecognized arguments: {flag}{end}main.py --help lists all flags."
    )


@pytest.mark.parametrize(
    "program, words, expected",
    [
        ("convert", ["m.onnx", "--calib", "x"], "--calib; did you mean --calibration? convert.py"),
        ("convert", [], "the following arguments are required: onnx. convert.py --help"),
        ("convert", ["m.onnx", "n.onnx"], "n.onnx: one argument too many. convert.py --help"),
        ("boards", ["h:1", "x.mp4", "--jsn", "o"], "--jsn; did you mean --json? boards.py --help"),
        ("benchmark", ["--simulat", "1x1"], "--simulat; did you mean --simulate? benchmark.py"),
        ("main", ["a.mp4", "--track", "b.mp4"], "b.mp4: write all sources together"),
        ("main", ["--threads=three"], "argument --threads: invalid int value: 'three'. main.py"),
    ],
)
def test_every_program_refuses_a_wrong_command_line_in_one_sentence(
    refused, program, words, expected
):
    assert expected in refused(program, *words)


@pytest.mark.parametrize("flag", ["--save", "--json", "--mqtt", "--web", "--model", "--setup"])
def test_the_empty_value_of_an_unset_shell_variable_is_refused(refused, flag):
    assert refused("main", "a.mp4", flag, "") == f"{flag}: its value is empty."


def test_a_file_may_begin_with_a_dash_of_a_word_processor(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "—.mp4").touch()
    monkeypatch.setattr(sys, "argv", ["main.py", "—.mp4"])
    assert arguments.parse(vars(main), main.__doc__).sources == [(None, "—.mp4")]
