"""The command line of a program: whatever is wrong with it is one sentence, with a suggestion."""
from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn, Optional

from vision.errors import InputError, nearest

DASHES = "-–—－"  # the last three are what word processors and input methods make of a -


class Parser(argparse.ArgumentParser):
    """A parser that raises InputError.

    Flags must be written in full: with one more flag, a shortened one would mean something else.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         **options)

    def parse(self) -> argparse.Namespace:
        """The program's command line. Raises InputError if it cannot be used."""
        args, unknown = self.parse_known_args()
        for word in unknown + [word for word in sys.argv[1:] if self._is_flag_by_mistake(word)]:
            self._refuse(word)
        for action in self._actions:
            if getattr(args, action.dest, None) == "" != action.default:
                raise InputError(f"{'/'.join(action.option_strings) or action.dest}: its value is "
                                 "empty.")
        return args

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise InputError(f"{message}{end} {self.prog} --help lists all flags.")

    def _is_flag_by_mistake(self, word: str) -> bool:
        """Whether a word begins with a dash that is no "-", and is no file."""
        return word[:1] in tuple(DASHES[1:]) and not os.path.exists(word)

    def _refuse(self, word: str) -> NoReturn:
        """Raise InputError for a word that no flag and no argument takes."""
        if word.startswith(tuple(DASHES)):
            flag = word.partition("=")[0]
            hint = self._meant(flag.strip(DASHES))
            self.error(f"unrecognized arguments: {flag}" + (f"; did you mean {hint}?" if hint
                                                             else ""))
        if any(action.nargs in ("*", "+") and not action.option_strings
               for action in self._actions):
            raise InputError(f"{word}: write all sources together, before or after the flags.")
        self.error(f"{word}: one argument too many")

    def _meant(self, word: str) -> Optional[str]:
        """The flag that a word without its dashes may stand for: what begins with it, if that is
        only one, or what is nearest to it."""
        names = {name.lstrip("-"): name for action in self._actions
                 for name in action.option_strings}
        longer = [name for name in names if len(word) > 1 and name.startswith(word)]
        near = longer[0] if len(longer) == 1 else nearest(word, names)
        return names[near] if near else None
