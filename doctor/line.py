"""A line of the doctor's screen, and how it is printed."""
from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

INDENT = 14  # columns of the names


class Line(NamedTuple):
    """What a check found: a fact, and if something is wrong, what it is and what solves it."""

    name: str
    fact: str
    problem: str = ""

    def text(self, width: int) -> str:
        """The line as it is printed, at most `width` columns wide; a problem follows below."""
        found = _wrapped(self.fact, f"{self.name:<{INDENT}}", " " * INDENT, width)
        if self.problem:
            found += "\n" + _wrapped(self.problem, " " * INDENT + "-> ", " " * (INDENT + 3), width)
        return found


def _wrapped(text: str, first: str, other: str, width: int) -> str:
    # A command keeps its hyphens together.
    return textwrap.fill(" ".join(text.split()), width, initial_indent=first,
                         subsequent_indent=other, break_long_words=False, break_on_hyphens=False)


def read(path: str) -> str:
    """The text of a file of the kernel; "" if there is none, or if this user may not read it."""
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
