"""Measures the pool on a simulated NPU: bad or uneven cores, several streams, slow consumers.

    python tests/pool_figures.py                          # all, about six minutes
    python tests/pool_figures.py bad-core --seconds 60
    python tests/pool_figures.py --root OTHER_CLONE       # another version of the pool

A core runs one inference at a time, each `seconds` long; func does nothing else.
"""

import argparse
import itertools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Simulated:
    """RKNNLite's methods. make() derives a class with cores of its own."""

    seconds = (0.02, 0.02, 0.02)
    fails_after = None  # seconds after which each run on core 2 fails

    def load_rknn(self, path):
        return 0

    def init_runtime(self, core_mask):
        self.core = core_mask.bit_length() - 1
        return 0

    def inference(self, inputs):
        if self.core == 2 and self.fails_after is not None:
            time.sleep(self.fails_after)
            return None
        with self.locks[self.core]:
            end = max(time.perf_counter(), self.free_at[self.core]) + self.seconds[self.core]
            self.free_at[self.core] = end
        time.sleep(max(0.0, end - time.perf_counter()))
        return inputs

    def release(self):
        pass


def make(seconds, fails_after=None):
    locks = [threading.Lock() for _ in seconds]
    return type(
        "Simulated",
        (Simulated,),
        {
            "NPU_CORES": len(seconds),
            "seconds": seconds,
            "fails_after": fails_after,
            "locks": locks,
            "free_at": [0.0] * len(seconds),
        },
    )


def infer(context, frame):
    return context.inference([frame])[0]


def until(seconds, rate=None):
    """Yield frames (their times) for some seconds, as fast as possible or at a rate per second."""
    end, due = time.perf_counter() + seconds, time.perf_counter()
    while time.perf_counter() < end:
        yield time.perf_counter()
        if rate:
            due += 1 / rate
            time.sleep(max(0.0, due - time.perf_counter()))


def taken(results, since=0.0):
    """(frames, failed frames, frames that came at least `since` seconds after the start)."""
    began, counts = time.perf_counter(), [0, 0, 0]
    while True:
        try:
            next(results)
        except StopIteration:
            return counts
        except RuntimeError:
            counts[1] += 1
        counts[0] += 1
        counts[2] += time.perf_counter() - began >= since


def bad_core(pools, seconds):
    """Three cores of 20 ms, of which core 2 fails: the good cores alone serve 100 FPS."""
    for fails_after in (0.001, 1.5):
        with pools("model", 6, infer, runtime=make((0.02,) * 3, fails_after)) as pool:
            first = 3.0
            served, failed, later = taken(pool.map(until(seconds)), first)
            print(
                f"core 2 fails after {fails_after} s: {served - failed} good frames, "
                f"{failed} lost, {(served - failed) / seconds:.1f} FPS, after {first:.0f} s "
                f"{later / (seconds - first):.1f} FPS (good cores: 100)"
            )


def uneven_cores(pools, seconds):
    for times in ((0.01, 0.01, 0.03), (0.01, 0.01, 0.01)):
        with pools("model", 6, infer, runtime=make(times)) as pool:
            served = taken(pool.map(until(seconds)))[0]
            most = sum(1 / each for each in times)
            print(f"cores of {times} s: {served / seconds:.1f} of {most:.1f} FPS")


def file_beside_cameras(pools, seconds):
    """A file with cameras that send almost nothing, and with one of 25 FPS. Three cores of 20 ms:
    at most 150 FPS."""
    for cameras, rate in ((4, 0.5), (8, 0.5), (1, 25)):
        with pools("model", 6, infer, runtime=make((0.02,) * 3)) as pool:
            with ThreadPoolExecutor(cameras) as consumers:
                live = [
                    consumers.submit(taken, pool.map(until(seconds, rate), live=True))
                    for _ in range(cameras)
                ]
                file = taken(pool.map(until(seconds)))[0]
                each = [future.result()[0] / seconds for future in live]
            total = file / seconds + sum(each)
            print(
                f"file beside {cameras} cameras of {rate} FPS: {file / seconds:.1f}, "
                f"cameras {sum(each) / cameras:.2f} each, all {total:.1f} of 150"
            )


def result_age(pools, seconds):
    """Age of a live source's results (60 FPS, three cores of 20 ms) for slow consumers."""
    for pause in (0.0, 0.1, 0.2):
        with pools("model", 6, infer, runtime=make((0.02,) * 3)) as pool:
            results, ages = pool.map(until(seconds, 60), live=True), []
            for frame in itertools.islice(results, int(seconds / max(pause, 1 / 60)) - 3):
                ages.append(time.perf_counter() - frame)
                time.sleep(pause)
            ages.sort()
            print(
                f"a live result's age, consumer of {1000 * pause:.0f} ms: p50 "
                f"{1000 * ages[len(ages) // 2]:.0f} ms, p95 "
                f"{1000 * ages[len(ages) * 95 // 100]:.0f} ms, {results.dropped} dropped"
            )


PARTS = {
    "bad-core": (bad_core, 60),
    "uneven-cores": (uneven_cores, 10),
    "streams": (file_beside_cameras, 10),
    "age": (result_age, 10),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, help="for each row (default: 10, bad-core 60)")
    parser.add_argument("--root", default=Path(__file__).resolve().parents[1], help="clone to test")
    args = parser.parse_args()
    sys.path.insert(0, str(args.root))
    from rknnpool import rknnPoolExecutor

    for part in args.parts or PARTS:
        if part not in PARTS:
            parser.error(f"{part}: unknown; choose from {', '.join(PARTS)}")
        measure, seconds = PARTS[part]
        measure(rknnPoolExecutor, args.seconds or seconds)


if __name__ == "__main__":
    main()
