"""Errors whose message is meant for the person at the board, and a suggestion for typos."""
from __future__ import annotations

import difflib
from typing import Iterable, Optional


class InputError(Exception):
    """Bad input. The message is one sentence for stderr; the exit code is 2."""


class ModelError(RuntimeError):
    """The model cannot be read by this func file, or its inference failed."""


def nearest(word: str, known: Iterable[str]) -> Optional[str]:
    """The known word that the user may have meant: "person" for "Persn". None if none is near."""
    by_case = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(word.casefold(), by_case, 1)
    return by_case[found[0]] if found else None
