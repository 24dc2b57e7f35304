"""Measures if the wheel leaks memory. Six contexts run many inferences, each in its own thread, as
in the pool.

    tests/board/board.sh --wheel 2.3.2 python3 tests/board/wheel_growth.py MODE [CALLS [MODEL]]

MODE: "default" leaves Python's garbage collector as it is, "off" disables it, a number N also calls
gc.collect() after every N inferences. Prints resident memory and the number of objects that the
collector tracks, ten times.
"""

import gc
import sys
import threading
from pathlib import Path

import numpy as np
from rknnlite.api import RKNNLite

THREADS = 6


def resident():
    """Resident memory of this process in KiB. It includes QEMU's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def opened(model):
    context = RKNNLite()
    assert context.load_rknn(model) == 0 and context.init_runtime() == 0
    return context


def main(mode, calls=5000, model="models/resnet18_emoji.rknn"):
    side = 224 if "resnet" in model else 640
    image, turn, done = np.zeros((1, side, side, 3), np.uint8), threading.Lock(), 0
    contexts = [opened(model) for _ in range(THREADS)]

    def serve(context):
        nonlocal done
        while True:
            with turn:
                if done == calls:
                    return
                done += 1
                if done % (calls // 10) == 0:
                    print(f"{done} inferences: {resident()} KiB, {len(gc.get_objects())} objects")
                if mode.isdigit() and done % int(mode) == 0:
                    gc.collect()
            assert context.inference(inputs=[image]) is not None

    if mode == "off":
        gc.disable()
    threads = [threading.Thread(target=serve, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"in the end gc.collect() finds {gc.collect()} objects: {resident()} KiB left")
    for context in contexts:
        context.release()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *sys.argv[3:])
