"""Which videos have their results in the folder of --json: each line names its source."""
from __future__ import annotations

import glob
import json
import os
import sys
from typing import Sequence

from results.console import say
from sources.names import hide, local_path, unique


def source_of(address: str) -> str:
    """What the `source` of a JSON line is: the absolute path of a file, or a URL without its
    password."""
    path = local_path(address)
    return hide(path) if "://" in path else os.path.realpath(path)


def find_finished(folder: str) -> dict[str, str]:
    """{source: path of its results}. The key of a file that does not say it, as version 0.1.0 wrote
    them, is the file's name."""
    found = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.jsonl"))):
        try:
            with open(path, encoding="utf-8") as file:
                source = json.loads(file.readline()).get("source")
        except (OSError, ValueError, AttributeError):  # not written by boards.py
            source = None
        found[source or os.path.basename(path)] = path
    return found


def choose_files(folder: str, names: Sequence[str], addresses: Sequence[str]
                 ) -> tuple[dict[str, str], set[str]]:
    """({name: the path of its results}, names of those that are finished).

    A video is finished if a file contains the results of the same path or URL. No video gets the
    file of another one.
    """
    finished = find_finished(folder)
    files, done = {}, set()
    taken = {os.path.basename(path)[:-len(".jsonl")] for path in finished.values()}
    for name, address in zip(names, addresses):
        file = finished.get(source_of(address)) or finished.get(f"{name}.jsonl")
        if file is not None:
            done.add(name)
        else:
            stem = unique(name, taken)
            taken.add(stem)
            file = os.path.join(folder, f"{stem}.jsonl")
            if stem != name:
                say(f"{name}: its results go to {file}, because {name}.jsonl contains those of "
                    "another video.", sys.stderr)
        files[name] = file
    return files, done
