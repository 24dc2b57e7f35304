"""Results that a sink cannot save for a while, because the disk is full: counted and reported."""
from __future__ import annotations

from typing import Any

from results.wording import counted
from sources.file_names import as_text
from vision.errors import InputError


class NotSaved(InputError):
    """A sink could not save this result; it still accepts the next ones."""


class UnsavedResults:
    """Counts the results that a sink could not save. what: "--json out.jsonl"; unit: what a result
    is in these files."""

    def __init__(self, what: str, unit: str = "frame"):
        self.what, self.unit, self.missing, self.text = what, unit, 0, ""

    def add(self, result: Any, reason: object) -> NotSaved:
        """Count a result that is not saved. Returns the exception for the sink to raise; its text
        stays the same until the gap ends, and is therefore printed once."""
        if not self.missing:
            self.text = (f"{self.what}: cannot be written ({reason}) from {name(result)} on. "
                         "Writing continues when it is possible again.")
        self.missing += 1
        return NotSaved(self.text)

    def end(self, result: Any, path: str = "") -> None:
        """Say that a result has been saved after a gap, if there was one. path: the new file."""
        if self.missing:
            where = f", in {path}" if path else ""
            result.stream.print_once(f"{self.what}: written again from {name(result)} on{where}; "
                                     f"{self._count()} missing.")
            self.missing = 0

    def close(self) -> None:
        """Raises InputError if results are missing at the end."""
        if self.missing:
            text, self.missing = f"{self.what}: {self._count()} missing at the end.", 0
            raise InputError(text)

    def _count(self) -> str:
        return f"{counted(self.missing, self.unit)} {'is' if self.missing == 1 else 'are'}"


def name(result: Any) -> str:
    """What the user calls a result: "0012.jpg", or "frame 12 of gate"."""
    if result.file:
        return as_text(result.file)
    return f"frame {result.number} of {result.stream.name}"
