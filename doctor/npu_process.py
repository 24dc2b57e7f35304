"""One test of the NPU, in a process of its own, because a wrong library can crash or hang.

    python -m doctor.npu_process MODEL CONTEXTS MASK RUNTIME    # MASK, RUNTIME: "" for the default

Opens contexts as main.py does. With a mask it also runs the model on these cores. Its last line is
JSON: {"runtime": name, "versions": text, "ms": milliseconds of a run} or {"error": text}.
"""
from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Dict, List

import numpy as np

import rknnpool
import runtimes
from vision.errors import InputError
from vision.model import Model

RUNS = 4  # the fastest counts: the first one takes longer


def blank(model: Model) -> List[np.ndarray]:
    """Black pictures for a model's inputs. Raises InputError if their size is not known."""
    if not model.inputs or not all(size > 0 for _, shape in model.inputs for size in shape):
        raise InputError(f"{model.path}: the size of its input is not known, so it cannot be "
                         "tested. Choose another model with --model.")
    shapes = [(shape[0], *shape[2:], shape[1]) if len(shape) == 4 and model.layout == "NCHW"
              else shape for _, shape in model.inputs]
    return [np.zeros(shape, np.uint8) for shape in shapes]


def test(path: str, contexts: int, mask: int | None, name: str | None) -> Dict[str, Any]:
    """What main() prints. Raises InputError, and what the pool raises."""
    runtime = runtimes.by_name(name) or runtimes.choose(path, rknnpool.soc())
    if runtime.__module__ == "runtimes.cpu":
        from runtimes import cpu
        raise InputError(f"{cpu.why}.")
    runtime, model = runtimes.prepare(path, runtime, rknnpool.soc())
    versions: List[str] = []

    def run(context: Any, frame: List[np.ndarray]) -> float:
        if not versions and hasattr(context, "get_sdk_version"):
            versions.append(str(context.get_sdk_version()))
        began = time.perf_counter()
        context.inference(frame)
        return 1000 * (time.perf_counter() - began)

    pool = rknnpool.rknnPoolExecutor(model, contexts, run, coreMask=mask, runtime=runtime)
    times = [] if mask is None else list(pool.map([blank(model)] * RUNS))
    pool.release()
    return {"runtime": runtime.__module__, "versions": "".join(versions),
            "ms": min(times, default=None)}


def main() -> None:
    path, contexts, mask, name = sys.argv[1:]
    try:  # if memory runs out, the kernel ends this process before any other
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass
    try:
        result = test(path, int(contexts), int(mask) if mask else None, name or None)
    except Exception as error:
        result = {"error": str(error)}
    print("\n" + json.dumps(result), flush=True)
    os._exit(0)  # a context may hang, and a library may crash at the end


if __name__ == "__main__":
    main()
