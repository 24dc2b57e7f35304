"""How many cameras one NPU and this machine's CPU serve: simulated 1080p25 H.264 cameras (a file, decoded at its pace),
through main.py's own streams on a simulated NPU.

    python tests/many_cameras.py                     # the table of BENCHMARKS.md, some two minutes
    python tests/many_cameras.py --counts 8 --fps 5

Latency counts from the moment when the camera gives the frame. A stream is served at its rate where it gets 95 % of
--fps. "every frame" makes each a BGR picture, as a reader does that does not know which will be served.
"""
import argparse
import itertools
import os
import sys
import tempfile
import threading
import time

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import sources  # noqa: E402
import streams  # noqa: E402
from funcs import yolov8  # noqa: E402
from results.result import Served  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import parse_simulate, record, simulated  # noqa: E402

MODEL, DEMO, NPU, RATE = "models/yolov8n_emoji.rknn", "models/demo.mp4", "yolov8n@rk3588", 25
SIZE, BITS = (1920, 1080), 4_000_000  # a common camera's


class Paced(sources.Video):
    """A clip read at its pace, without end, as a camera gives it; it counts the pictures that are made of frames."""

    rate = RATE
    all_converted = False
    made, kept = 0, None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.live, self.capture = True, Pacer(self.capture, self)
        self.due = time.time()

    def grab(self):
        more = super().grab()
        self.kept = super().retrieve() if self.all_converted and more else None
        return more

    def retrieve(self):
        self.made += 1
        return self.kept if self.all_converted else super().retrieve()

    def now(self):
        self.time = self.due
        return self.time


class Pacer:
    """Its cv2.VideoCapture, which has the next frame when it is due, and begins again at the end."""

    def __init__(self, capture, video):
        self.capture, self.video = capture, video
        self.get, self.set, self.retrieve, self.release = capture.get, capture.set, capture.retrieve, capture.release

    def grab(self):
        self.video.due += 1 / self.video.rate
        time.sleep(max(0, self.video.due - time.time()))
        return self.capture.grab() or self.capture.set(cv2.CAP_PROP_POS_FRAMES, 0) and self.capture.grab()


def write_clip(path, seconds=4):
    """The demo at the size, rate and bits of a common camera, H.264."""
    import av
    demo = cv2.VideoCapture(DEMO)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "tune": "zerolatency"})
        (stream.width, stream.height), stream.pix_fmt, stream.bit_rate = SIZE, "yuv420p", BITS
        for _ in range(seconds * RATE):
            picture = cv2.resize(demo.read()[1], SIZE)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())


class Delays(list):
    """A place that notes seconds from the camera to the results."""

    def write(self, result):
        self.append(time.time() - result.time)

    def close(self):
        pass


def measure(runtime, clip, count, fps, every, seconds):
    """Serve `count` cameras for so long: rates (n,), latencies in seconds, CPU seconds a second, pictures a frame."""
    Paced.all_converted = every
    cameras, delays = [streams.Stream(clip, f"camera{number}", fps) for number in range(count)], Delays()
    with rknnPoolExecutor(MODEL, None, Served(yolov8), runtime=runtime) as pool:
        threads = []
        for number, camera in enumerate(cameras):
            camera.live = True
            camera.places.append(delays)
            camera.source.due = time.time() + number / count / RATE  # they are not in step
            threads.append(threading.Thread(target=camera.run, args=(pool, tqdm(disable=True), "", True)))
            threads[-1].start()
        time.sleep(1.5)
        del delays[:]
        before = [camera.count for camera in cameras]
        began, cpu = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        rates = np.subtract([camera.count for camera in cameras], before) / took
        measured = rates, np.array(delays), cpu / took
        for camera in cameras:
            camera.stop.set()
        for thread in threads:
            thread.join()
    for camera in cameras:
        assert camera.error is None, camera.error
    made, read = (sum(numbers) for numbers in zip(*((camera.source.made, camera.number) for camera in cameras)))
    return (*measured, 1.0 if every else made / read)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=6)
    args = parser.parse_args()
    cv2.setNumThreads(1)  # as in main.py
    sources.Video = Paced
    inference, cores = parse_simulate(NPU)
    frames = itertools.islice(streams.frames_of(cv2.VideoCapture(DEMO)), 0, 240, 8)
    runtime = simulated(inference, cores, record(MODEL, frames, yolov8.myFunc))
    titles = ("cameras", "wanted of each, FPS", "converted", "slowest, FPS", "in all, FPS", "latency p50, p99, ms",
              "CPU a camera, % of a core", "CPU, cores", "frames made pictures")
    print(f"{SIZE[0]}x{SIZE[1]}, {RATE} FPS, {BITS / 1e6:g} Mbit/s; simulated {NPU}, at most {cores / inference:.0f} "
          f"FPS; {len(os.sched_getaffinity(0))} CPU cores\n")
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    with tempfile.TemporaryDirectory() as folder:
        clip = os.path.join(folder, "camera.mp4")
        write_clip(clip)
        for count in args.counts:
            for fps, every in ((args.fps, False), (args.fps, True), (None, False), (None, True)):
                rates, delays, cpu, made = measure(runtime, clip, count, fps, every, args.seconds)
                p50, p99 = np.percentile(delays, [50, 99]) * 1000
                served = "" if fps is None or rates.min() >= 0.95 * fps else " (not its rate)"
                converted = "every frame" if every else "what is served"
                print(f"| {count} | {fps or 'all'} | {converted} | {rates.min():.1f}{served} | {rates.sum():.0f} | "
                      f"{p50:.0f}, {p99:.0f} | {100 * cpu / count:.0f} | {cpu:.2f} | {made:.0%} |", flush=True)


if __name__ == "__main__":
    main()
