"""What --web and --mqtt cost the pool: frames a second and CPU a frame with none, one, three, a slow and a hundred
viewers. By hand; BENCHMARKS.md has the figures.

    python tests/page_cost.py --seconds 10 --rounds 3

The demo video, again and again, on a simulated NPU of three cores with 16.9 ms an inference (a ceiling of 177.5 FPS)
and six contexts. Viewers are processes of their own. Every row in every round, in turns; the median counts.
"""
import argparse
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import func  # noqa: E402
from results.mqtt import MQTT  # noqa: E402
from results.result import Result, Served  # noqa: E402
from results.tracking import Tracker  # noqa: E402
from results.web import Web  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import record, simulated  # noqa: E402
from streams import Stream  # noqa: E402

MODEL, VIDEO = str(ROOT / "models/yolov5n_emoji.rknn"), str(ROOT / "models/demo.mp4")
VIEWER = """
import socket, sys, time
port, count, path, slow = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "slow"
import selectors
waiting = selectors.DefaultSelector()
for _ in range(count):
    connection = socket.create_connection(("127.0.0.1", port))
    if slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode() if path else b"")
    waiting.register(connection, selectors.EVENT_READ)
print("ready", flush=True)
pictures, began = 0, time.monotonic()
while True:
    for key, _ in waiting.select():
        data = key.fileobj.recv(4096 if slow else 1 << 20)
        if not data:
            waiting.unregister(key.fileobj)
        pictures += data.count(b"--frame")
    if slow:
        time.sleep(1)
    if time.monotonic() > began + 1:
        print(pictures / count / (time.monotonic() - began), flush=True)
        pictures, began = 0, time.monotonic()
"""


def looped():
    """The demo video's frames, again and again."""
    while True:
        yield from frames_of(cv2.VideoCapture(VIDEO))


def frames_of(video):
    while True:
        ok, frame = video.read()
        if not ok:
            return
        yield frame


class Looped(Stream):
    """The demo video without an end."""

    def frames(self):
        for number, frame in enumerate(looped()):
            if self.stop.is_set():
                return
            yield Result(self, number, number / 30, frame, time.perf_counter())


class Row:
    """One row of the table: what looks, and what was measured."""

    def __init__(self, name, place=None, viewers=(), track=False):
        self.name, self.place, self.viewers, self.track, self.measured = name, place, viewers, track, []

    def measure(self, runtime, seconds):
        stream, processes = Looped(VIDEO, "demo"), []
        with rknnPoolExecutor(MODEL, 6, Served(func), runtime=runtime) as pool:
            place = self.place and self.place(stream)
            stream.places += [place] if place else []
            stream.tracker = Tracker() if self.track else None
            for count, path, kind in self.viewers:
                command = [sys.executable, "-c", VIEWER, str(place.port), str(count), path, kind]
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                processes[-1].stdout.readline()
            results, warm, count = stream.results(pool), time.perf_counter() + 2, None
            for result in results:
                stream.serve(result)
                now = time.perf_counter()
                if count is None and now > warm:
                    count, began, cpu = 0, now, time.process_time()
                elif count is not None:
                    count += 1
                    if now > began + seconds:
                        break
            fps, cpu = count / (now - began), (time.process_time() - cpu) * 1000 / count
            stream.stop.set()
            results.close()
        for process in processes:
            process.kill()
        shown = [float(line) for process, (*_, kind) in zip(processes, self.viewers) if kind != "slow"
                 for line in process.stdout.read().split()]
        if place:
            place.close()
        self.measured.append((fps, cpu, statistics.median(shown) if shown else 0))

    def __str__(self):
        fps, cpu, shown = (statistics.median(values) for values in zip(*self.measured))
        return f"| {self.name} | {fps:.1f} | {cpu:.2f} | {f'{shown:.1f}' if shown else '-'} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="measured for each row in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mqtt", metavar="URL", help="measure a broker, too")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    frames = itertools.islice(looped(), 0, 600, 10)
    runtime = simulated(0.0169, 3, record(MODEL, frames, func.myFunc))

    def page(stream):
        return Web("0", [stream])
    rows = [Row("no page"), Row("page, nobody looks", page), Row("1 viewer", page, [(1, "/demo.mjpg", "")]),
            Row("3 viewers", page, [(3, "/demo.mjpg", "")]),
            Row("3 viewers, and one that reads 4 KB a second", page,
                [(3, "/demo.mjpg", ""), (1, "/demo.mjpg", "slow")]),
            Row("100 viewers", page, [(100, "/demo.mjpg", "")]),
            Row("100 connections that ask for nothing", page, [(100, "", "")]),
            Row("1 who listens to /events", page, [(1, "/events", "")])]
    if args.mqtt:
        rows += [Row("tracking", track=True),
                 Row("tracking and --mqtt", lambda stream: MQTT(args.mqtt, [stream]), track=True)]
    for number in range(1, args.rounds + 1):
        for row in rows:
            row.measure(runtime, args.seconds)
            print(f"round {number}: {row}", file=sys.stderr)
    print("| who looks | FPS | CPU, ms a frame | pictures a second for each |\n|---|---|---|---|")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
