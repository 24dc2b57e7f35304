"""Two cameras for an hour: one is killed every minute, the func fails on one frame in a thousand. By hand; README.md
has the figures.

    python tests/soak.py --minutes 60

Real servers of RTSP and HTTP, main.py's streams, func.py on a simulated NPU of three cores. Every minute, and at the
end, it prints the frames that were read, served, failed and dropped, how often a camera came back, resident memory and
threads. Ends with exit code 1 where the frames do not add up or a thread is left.
"""
import argparse
import itertools
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import func  # noqa: E402
import streams  # noqa: E402
from benchmark import rss  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import record, simulated  # noqa: E402
from tests.test_live import CAMERAS, Camera  # noqa: E402

MODEL = str(ROOT / "models/yolov5n_emoji.rknn")
numbers = itertools.count(1)


def failing(context, frame):
    if next(numbers) % 1000 == 0:
        raise RuntimeError("one in a thousand")
    return func.myFunc(context, frame)


class Counted:
    """One stream on its way through the pool, every frame in the books."""

    def __init__(self, url):
        self.stream = streams.Stream(url)
        self.read = self.served = self.failed = 0

    def frames(self):
        for frame in self.stream.frames():
            self.read += 1
            yield frame

    def run(self, pool):
        self.results = pool.map(self.frames(), live=True)
        while True:
            try:
                next(self.results)
                self.served += 1
            except StopIteration:
                return
            except RuntimeError:
                self.failed += 1

    def __str__(self):
        return f"{self.read} read, {self.served} served, {self.failed} failed, {self.results.dropped} dropped"

    def adds_up(self):
        return self.read == self.served + self.failed + self.results.dropped


def books(counted):
    return "; ".join(f"{each.stream.source.split(':')[0]} {each}" for each in counted) + f"; RSS {rss():.1f} MB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--minute", type=float, default=60, help="seconds that one lasts")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        video, clip = cv2.VideoCapture(str(ROOT / "models/demo.mp4")), str(Path(folder) / "camera.mp4")
        frames = [cv2.resize(video.read()[1], (640, 360)) for _ in range(60)]
        writer = cv2.VideoWriter(clip, cv2.VideoWriter_fourcc(*"mp4v"), 30, (640, 360))
        for frame in frames:
            writer.write(frame)
        writer.release()
        video.release()
        cameras = [Camera(command, scheme, clip) for scheme, command in CAMERAS.items()]
        runtime = simulated(0.0169, 3, record(MODEL, [frame.copy() for frame in frames[::10]], func.myFunc))
        before = threading.active_count()
        began, away = time.monotonic(), 0
        with rknnPoolExecutor(MODEL, 6, failing, runtime=runtime) as pool:
            counted = [Counted(camera.url) for camera in cameras]
            serving = [threading.Thread(target=each.run, args=(pool,)) for each in counted]
            for thread in serving:
                thread.start()
            for minute in range(1, args.minutes + 1):
                time.sleep(max(0, began + (minute - 0.2) * args.minute - time.monotonic()))
                cameras[0].kill()
                away += 1
                time.sleep(max(0, began + (minute - 0.1) * args.minute - time.monotonic()))
                cameras[0].start()
                time.sleep(max(0, began + minute * args.minute - time.monotonic()))
                print(f"minute {minute}: {books(counted)}, {threading.active_count()} threads", flush=True)
            for each in counted:
                each.stream.stop.append(None)
            for thread in serving:
                thread.join()
            runs = pool.runs
        for camera in cameras:
            camera.kill()
        left = threading.active_count() - before
        print(f"at the end: {books(counted)}, {left} threads left; {away} times away; runs per core {runs}")
        sys.exit(0 if left == 0 and all(each.adds_up() for each in counted) else 1)


if __name__ == "__main__":
    main()
