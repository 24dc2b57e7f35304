"""How many cameras one NPU and this machine's CPU can process: simulated 1080p25 H.264 cameras (a
file, decoded at its own rate), through main.py's own streams on a simulated NPU.

    python tests/many_cameras.py                     # the table of docs/performance.md, two minutes
    python tests/many_cameras.py --counts 8 --fps 5
    python tests/many_cameras.py --counts 1 --seconds 0.3 --frames 1    # a short run

Latency is the time from the camera's frame to its result. A stream keeps its rate if it reaches
95 % of --fps. OpenCV converts every frame to BGR when it is read, PyAV leaves frames in YUV.
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

from fakes import frames_in, wait_until  # noqa: E402

import sources  # noqa: E402
import sources.pyav  # noqa: E402
import streams  # noqa: E402
from funcs import yolov8  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import parse_simulate, record, simulated  # noqa: E402

MODEL, DEMO, NPU, RATE = "models/yolov8n_emoji.rknn", "models/demo.mp4", "yolov8n@rk3588", 25
SIZE, BITS = (1920, 1080), 4_000_000  # of a common camera
WARM_UP = 1.5  # seconds that are not measured, or as many as are, if these are fewer


class Camera:
    """Reads a file at the rate of a camera, and starts again at its end. Mixed into a source's
    class."""

    rate = RATE

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.live, self.due = True, time.time()

    def grab(self):
        self.due += (1 + self.skipped) / self.rate
        time.sleep(max(0, self.due - time.time()))
        if not super().grab():
            self.rewind()
            super().grab()
        self.time = self.due
        return True


class OpenCVCamera(Camera, sources.Video):
    pass


class PyAVCamera(Camera, sources.pyav.AVVideo):
    def __init__(self, *arguments, **options):
        self.due = 0  # AVVideo looks at the first frame
        super().__init__(*arguments, **options)


def write_clip(path, seconds):
    """The demo at the size, rate and bits of a common camera, H.264."""
    import av

    demo = cv2.VideoCapture(DEMO)
    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264", rate=RATE, options={"preset": "veryfast", "tune": "zerolatency"}
        )
        (stream.width, stream.height), stream.pix_fmt, stream.bit_rate = SIZE, "yuv420p", BITS
        for _ in range(round(seconds * RATE)):
            picture = cv2.resize(demo.read()[1], SIZE)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())


class Delays(list):
    """A sink that records the seconds from the camera to each result."""

    def write(self, result):
        self.append(time.time() - result.time)

    def close(self):
        pass


def measure(runtime, clip, count, fps, reader, seconds):
    """Process `count` cameras: rates (n,), latencies in seconds, CPU seconds per second."""
    cameras = [
        streams.Stream(clip, f"camera{number}", fps, reader=reader) for number in range(count)
    ]
    delays = Delays()
    with rknnPoolExecutor(MODEL, None, streams.FrameTask(yolov8), runtime=runtime) as pool:
        threads = []
        for number, camera in enumerate(cameras):
            camera.sinks.append(delays)
            # the cameras do not send at the same time
            camera.source.due = time.time() + number / count / RATE
            threads.append(
                threading.Thread(target=camera.run, args=(pool, tqdm(disable=True), "", True))
            )
            threads[-1].start()
        wait_until(lambda: all(camera.count for camera in cameras), "a frame of each camera")
        time.sleep(min(WARM_UP, seconds))
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
    return measured


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--frames", type=int, default=30, help="recorded (default: %(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)  # as in main.py
    sources.Video, sources.pyav.AVVideo = OpenCVCamera, PyAVCamera
    inference, cores = parse_simulate(NPU)
    frames = itertools.islice(frames_in(DEMO), 0, 8 * args.frames, 8)
    runtime = simulated(inference, cores, record(MODEL, frames, yolov8.myFunc))
    titles = (
        "cameras",
        "wanted of each, FPS",
        "reader",
        "slowest, FPS",
        "in all, FPS",
        "latency p50, p99, ms",
        "CPU per camera, % of a core",
        "CPU, cores",
    )
    print(
        f"{SIZE[0]}x{SIZE[1]}, {RATE} FPS, {BITS / 1e6:g} Mbit/s; simulated {NPU}, at most "
        f"{cores / inference:.0f} FPS; {len(os.sched_getaffinity(0))} CPU cores\n"
    )
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    with tempfile.TemporaryDirectory() as folder:
        clip = os.path.join(folder, "camera.mp4")
        write_clip(clip, min(4, args.seconds))
        for count in args.counts:
            for fps, reader in itertools.product((args.fps, None), ("opencv", "av")):
                rates, delays, cpu = measure(runtime, clip, count, fps, reader, args.seconds)
                p50, p99 = np.percentile(delays, [50, 99]) * 1000
                missed = "" if fps is None or rates.min() >= 0.95 * fps else " (not its rate)"
                print(
                    f"| {count} | {fps or 'all'} | {reader} | {rates.min():.1f}{missed} | "
                    f"{rates.sum():.0f} | {p50:.0f}, {p99:.0f} | {100 * cpu / count:.0f} | "
                    f"{cpu:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
