"""Runs Python programs on the board, each in a fork of this process, which has imported the large
packages: under QEMU that takes four seconds. Used by Board.python() in board_parts.py:

    tests/board/board.sh python3 tests/board/forks.py

Each line of stdin is a program, as a JSON object: Python's "arguments" (a script or -c, and the
program's own), its working "folder", its "environment", and the files "out" and "err" for its
output. When the program has ended, its exit code is printed. All else happens in the fork, as in a
process of its own: it imports the project, opens librknnrt.so and creates the contexts.
"""

import contextlib
import gc
import json
import os
import runpy
import sys

import cv2  # noqa: F401
import numpy  # noqa: F401
import tqdm  # noqa: F401


def remember_yaml():
    """Parse each YAML text once. The wheel parses a small file nine times per context, which takes
    0.6 s under QEMU."""
    from ruamel.yaml import YAML

    parse, parsed = YAML.load, {}

    def load(self, text):
        if text not in parsed:
            parsed[text] = parse(self, text)
        return parsed[text]

    YAML.load = load


def run(request):
    """Run the program in this process."""
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    program, *arguments = request["arguments"]
    folders = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    if program == "-c":
        code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        sys.path[:1] = ["", *folders]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [program, *arguments]
        sys.path[:1] = [os.path.dirname(os.path.abspath(program)), *folders]
        runpy.run_path(program, run_name="__main__")


with contextlib.suppress(ModuleNotFoundError):  # some setups have no wheel
    import rknnlite.api  # noqa: F401

    remember_yaml()
gc.freeze()  # or each fork copies what its garbage collector looks at
for line in sys.stdin:
    child = os.fork()
    if not child:
        run(json.loads(line))
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
