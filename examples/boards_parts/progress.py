"""The progress of boards.py: a bar on a terminal, elsewhere a line every ten seconds."""
from __future__ import annotations

import time

from tqdm import tqdm

from results.console import say

LINE_SECONDS = 10.0


class Progress:
    """Shows how much is done. total: None if it never ends; quiet: show nothing."""

    def __init__(self, total: int | None, unit: str, quiet: bool):
        self.unit = unit
        form = None if total is None else ("{percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} {unit} "
                                           "[{elapsed}<{remaining}{postfix}]")
        self.bar = tqdm(total=total, unit=f" {unit}" if total is None else unit, bar_format=form,
                        disable=True if quiet else None)  # None: without a TTY
        self.lines = bool(self.bar.disable) and not quiet
        self.due = time.monotonic() + LINE_SECONDS

    def show(self, done: float, text: str) -> None:
        """done: of the total; it may contain a fraction. text: such as "2 boards, 120 FPS"."""
        self.bar.n = done
        self.bar.set_postfix_str(text)
        if self.lines and time.monotonic() >= self.due:
            self.due = time.monotonic() + LINE_SECONDS
            total = "" if self.bar.total is None else f" of {self.bar.total}"
            say(f"{done:.10g}{total} {self.unit}, {text}")

    def close(self) -> None:
        self.bar.close()
