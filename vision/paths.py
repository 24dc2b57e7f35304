"""The project's folder, and files in it."""
from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def beside_main(path: str) -> str:
    """The path. If there is no such file, the same path relative to main.py's folder, so that the
    settings work in every working directory."""
    beside = os.path.join(ROOT, path)
    return beside if os.path.exists(beside) and not os.path.exists(path) else path
