"""Calls runtimes/librknnrt.py many times to see if memory grows. Uses the emulated library, built
for this machine, and an NPU of zero milliseconds.

    .venv/bin/python tests/board/growth.py 200000

Two contexts of one model take turns with inference() and inference_raw(). One call in a hundred has
a wrong input, and after every 5,000 calls the contexts are opened again. Prints resident memory and
Python's memory blocks after the first 5,000 calls and after the last.
"""

import gc
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from runtimes.simulated import Recording, fingerprint  # noqa: E402
from runtimes.simulated_library import simulated_library  # noqa: E402

ROUND = 5000
IMAGE = np.zeros((1, 32, 32, 3), np.uint8)
HEADS = np.arange(32 * 16 * 16).astype(np.int8).reshape(1, 32, 16, 16)


def memory():
    """(resident memory in KiB, memory blocks allocated by Python)"""
    gc.collect()
    resident = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(resident.split()[1]), sys.getallocatedblocks()


def use(runtime, calls):
    """Open two contexts, call them in turn, and close them."""
    contexts = runtime(), runtime()
    for context in contexts:
        assert (
            context.load_rknn(str(ROOT / "models/yolov5n_emoji.rknn"))
            == context.init_runtime()
            == 0
        ), context.error
    for call in range(calls):
        context = contexts[call % 2]
        if call % 100 == 99:
            assert context.inference([IMAGE[:, 1:]]) is None
        else:
            assert (context.inference if call % 4 < 2 else context.inference_raw)(
                [IMAGE]
            ) is not None, context.error
    for context in contexts:
        context.release()


def main(calls):
    recorded = Recording(
        fingerprint(IMAGE)[None], [[(HEADS, 0.1, 3), (HEADS[0, 0], 0.01, 0)]], IMAGE.shape
    )
    runtime = simulated_library("library", 0.0, 3, recorded)
    use(runtime, ROUND)
    (resident, blocks) = memory()
    for _ in range(calls // ROUND - 1):
        use(runtime, ROUND)
    in_the_end, blocks_in_the_end = memory()
    print(
        f"{calls:,} calls: resident memory {resident:,} -> {in_the_end:,} KiB, "
        f"Python's blocks {blocks:,} -> {blocks_in_the_end:,}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
