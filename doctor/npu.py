"""Tests of the NPU: one run on each core, and as many contexts as main.py opens."""
from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any, Dict, Iterator, NamedTuple

import rknnpool
from doctor.line import Line
from doctor.software import GET_LIBRARY
from vision.model import Model
from vision.paths import ROOT

LIMIT_SECONDS = 60  # for a test,
MORE_SECONDS = 10   # and for each of its contexts: the driver gives up a run after 6 to 10 seconds
UPDATE_KERNEL = ("update the kernel (sudo apt-get update && sudo apt-get upgrade, or the board "
                 "vendor's newest image)")
# What librknnrt.so and the loader print: what it means, and what solves it.
# {0}, {1}: the groups; {toolkit}: the model's; {library}: its version.
KNOWN = {
    r"Invalid RKNN model version|but current librknnrt.so is support model version":
        "librknnrt.so {library} is too old for this model, which toolkit {toolkit} made. Install "
        f"librknnrt.so {{toolkit}}: {GET_LIBRARY}. Or convert the model with toolkit {{library}}.",
    r"requires driver version >= ([\d.]+), but you have driver version: ([\d.]+)":
        "The kernel's rknpu driver {1} is too old for librknnrt.so {library}, which needs {0}: "
        f"{UPDATE_KERNEL}, or install an older librknnrt.so.",
    r"failed to submit":  # radxa/kernel#312
        f"The driver does not accept runs (\"failed to submit\"): {UPDATE_KERNEL}. rknpu 0.9.3 is "
        "known for this.",
    r"malloc npu memory|failed to allocate handle|MALLOC_FAIL|memory is used up|no memory left":
        "The NPU's memory is used up: use fewer contexts, a smaller model, or stop other programs.",
    r"invalid ELF header|file too short|wrong ELF class":
        f"librknnrt.so is not a library for this board: {GET_LIBRARY}.",
    r"`(GLIBC\w*_[\d.]+)' not found":
        "librknnrt.so needs a newer system ({0}): install an older one, or a newer image.",
    r"No NPU by the open driver \((.*)\): ": "The NPU is not used: {0}.",
    r"failed to open rknpu|failed to open rknn device|device cannot be opened":
        "The NPU's device cannot be opened: see \"NPU device\" above.",
    r"hangs: no answer from the NPU":
        f"A run does not end. Switch the board off and on; if it happens again, {UPDATE_KERNEL}.",
    r"a run failed on the NPU":
        f"Runs fail. sudo dmesg | grep -i npu may say why. Switch the board off and on; if it "
        f"happens again, {UPDATE_KERNEL}.",
}


class Result(NamedTuple):
    """How a test ended. ms: of a run, None if nothing ran; error: "" if it succeeded."""

    ms: float | None = None
    error: str = ""
    runtime: str = ""
    versions: str = ""
    output: str = ""


def run_npu_process(path: str, contexts: int, mask: int | None, runtime: str | None) -> Result:
    """Run doctor/npu_process.py for a limited time."""
    limit = LIMIT_SECONDS + MORE_SECONDS * contexts
    arguments = [os.path.abspath(path), str(contexts), "" if mask is None else str(mask),
                 runtime or ""]
    with tempfile.TemporaryFile() as file:  # a pipe would wait for what the process left behind
        # -u: what the library prints is written at once, also before a crash
        command = [sys.executable, "-u", "-m", "doctor.npu_process", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=file)
        code: int | None = None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)  # one that hangs inside the driver cannot be ended
        file.seek(0)
        output = file.read().decode(errors="replace")
    text, _, last = output.rstrip().rpartition("\n")
    try:
        found: Dict[str, Any] = json.loads(last)
        return Result(**found, output=text)
    except (ValueError, TypeError):
        return Result(error=_no_answer(code, limit), output=output)


def _no_answer(code: int | None, limit: float) -> str:
    if code is None:
        return (f"No answer for {limit:g} s. Switch the board off and on; if it happens again, "
                "sudo dmesg | grep -i npu says more.")
    if code == -signal.SIGKILL:
        return "The kernel ended the process, probably because memory ran out."
    name = signal.Signals(-code).name if code < 0 else f"code {code}"
    return (f"The process crashed ({name}): usually librknnrt.so does not fit the driver or the "
            f"model. {GET_LIBRARY}.")


def explain(result: Result, model: Model, library: str | None) -> str:
    """What is wrong and what solves it, from what the library printed. "" for a success."""
    if not result.error and "No NPU" not in result.output:
        return ""
    text = result.output + result.error
    for pattern, meaning in KNOWN.items():
        found = re.search(pattern, text)
        if found:
            return meaning.format(*found.groups(), toolkit=model.toolkit or "(unknown)",
                                  library=library or "(unknown version)")
    errors = [line for line in result.output.splitlines()
              if re.match(r"E RKNN|\w*(Error|Exception): ", line)][-2:]
    text = re.sub(r"see the (runtime's )?message above", lambda hint: "; ".join(errors) or hint[0],
                  result.error)
    return re.sub(r"^context \d+ of \d+(, core \d+)?:? ", "", text)


def cores(model: Model, soc: str, runtime: str | None, library: str | None
          ) -> Iterator[tuple[Line, bool]]:
    """A line for each core, and whether the core works."""
    count = rknnpool.npu_cores(soc) if runtime != "teflon" else 1  # it chooses the cores itself
    before = ""
    for core in range(count):
        result = run_npu_process(model.path, 1, 1 << core, runtime)
        name = f"NPU core {core}" if count > 1 else "NPU"
        problem = explain(result, model, library)
        if problem:
            yield (Line(name, "fails, as above") if problem == before
                   else Line(name, "fails", problem)), False
        else:
            yield Line(name, f"{result.ms:.1f} ms a run{_versions(result)}"), True
        before = problem or before


def _versions(result: Result) -> str:
    """The runtime, and the versions of library and driver, for the line of a core."""
    runtime = "--runtime " + {"runtimes.librknnrt": "library", "runtimes.teflon": "teflon"}.get(
        result.runtime, "wheel")
    api, driver = (re.search(rf"{name}: (\S+)", result.versions) for name in ("API", "DRV"))
    parts = [runtime, f"librknnrt {api[1]}" if api else "", f"driver {driver[1]}" if driver else ""]
    return "".join(f", {part}" for part in parts if part)


def contexts(model: Model, count: int, runtime: str | None, library: str | None) -> Line:
    """Whether as many contexts as main.py opens fit the memory."""
    result = run_npu_process(model.path, count, None, runtime)
    failed = re.match(r"context (\d+) of \d+", result.error)
    if failed and int(failed[1]) > 1:
        fit = int(failed[1]) - 1
        return Line("contexts", f"only {fit} of {count} can be opened",
                    f"main.py --threads {fit}. {explain(result, model, library)}")
    return Line("contexts", "fail" if result.error else f"{count} at once",
                explain(result, model, library))
