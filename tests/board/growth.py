"""Runs runtimes/librknnrt.py many times, to see whether it grows: over the emulated library, built for this machine,
and an NPU that answers at once.

    .venv/bin/python tests/board/growth.py 200000

Two contexts of one model take turns, by inference() and inference_raw(); one call in a hundred is refused for its
input, and every 5,000 calls the contexts are opened anew. Prints resident memory and Python's blocks after the first
5,000 calls and after the last.
"""
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BOARD = Path(__file__).resolve().parent
sys.path[:0] = [str(BOARD.parents[1])]
ROUND = 5000
IMAGE = np.zeros((1, 32, 32, 3), np.uint8)


def answer_at_once(path):
    """Serve as npu.py does, for one model whose outputs are always the same."""
    import npu

    class Network:
        model = npu.Model([npu.Tensor("images", [1, 3, 32, 32], 1 / 255, -128)],
                          [npu.Tensor("heads", [1, 32, 16, 16], 0.1, 3), npu.Tensor("classes", [1, 1000], 0.01, 0)],
                          0, 1)

        def run(self, image):
            return [bytes(range(256)) * 32, bytes(1000)]

    class Server(npu.Server):
        def network(self, rknn):
            return Network()

    with Server(path, []) as server:
        print("ready", flush=True)
        server.serve_forever()


def build(folder):
    """The emulated library for this machine: its path. Raises CalledProcessError."""
    path = folder / "librknnrt.so"
    subprocess.run(["gcc", "-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", "-o", path,
                    *(BOARD / name for name in ("librknnrt.c", "device.c", "link.c"))], check=True)
    return path


def memory():
    """(resident memory in KiB, blocks that Python has allocated)"""
    gc.collect()
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]), sys.getallocatedblocks()


def use(model, calls):
    """Opens two contexts, calls them so often, and closes them."""
    from runtimes.librknnrt import RKNNLite
    contexts = RKNNLite(), RKNNLite()
    for context in contexts:
        assert context.load_rknn(str(model)) == context.init_runtime() == 0, context.error
    for call in range(calls):
        context = contexts[call % 2]
        if call % 100 == 99:
            assert context.inference([IMAGE[:, 1:]]) is None
        else:
            assert (context.inference if call % 4 < 2 else context.inference_raw)([IMAGE]) is not None, context.error
    for context in contexts:
        context.release()


def grown(calls):
    """memory() after the first round of calls, and after all of them."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "card0").touch()
        (folder / "model.rknn").write_bytes(b"RKNN" + bytes(100000))
        os.environ.update(RKNNRT_LIB=str(build(folder)), BOARD_SOCKET=str(folder / "npu"), BOARD_DEVICES=str(folder),
                          BOARD_RUN_MS="0")
        npu = subprocess.Popen([sys.executable, __file__, "--npu", str(folder / "npu")], stdout=subprocess.PIPE)
        try:
            npu.stdout.readline()
            use(folder / "model.rknn", ROUND)
            first = memory()
            for _ in range(calls // ROUND - 1):
                use(folder / "model.rknn", ROUND)
            return first, memory()
        finally:
            npu.kill()
            npu.communicate()


if __name__ == "__main__":
    if sys.argv[1] == "--npu":
        answer_at_once(sys.argv[2])
    (resident, blocks), (in_the_end, blocks_in_the_end) = grown(int(sys.argv[1]))
    print(f"{int(sys.argv[1]):,} calls: resident memory {resident:,} -> {in_the_end:,} KiB, "
          f"Python's blocks {blocks:,} -> {blocks_in_the_end:,}")
