"""What --web and --mqtt cost: frames per second and CPU per frame with various clients.

    python tests/page_cost.py --seconds 10 --rounds 3
    python tests/page_cost.py --seconds 0.2 --rounds 1 --rows 3 --frames 1    # a short run

Run by hand; docs/performance.md has the figures. The demo video is repeated on a simulated NPU of
three cores with 16.9 ms per inference (at most 177.5 FPS) and six contexts. The clients are
processes of their own. Each round measures every row once; the table shows the medians.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from fakes import frames_in  # noqa: E402

import func  # noqa: E402
from results import objects  # noqa: E402
from results.mqtt import MQTT  # noqa: E402
from results.result import FrameTask, Result  # noqa: E402
from results.setup import Setup  # noqa: E402
from results.tracking import Tracker  # noqa: E402
from results.web import Web  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import record, simulated  # noqa: E402
from streams import Stream  # noqa: E402
from vision.model import describe  # noqa: E402

MODEL, VIDEO = str(ROOT / "models/yolov5n_emoji.rknn"), str(ROOT / "models/demo.mp4")
WARM_UP = 2  # seconds that are not measured, or as many as are, if these are fewer
CLIENT = """
import socket, sys, time
port, count, path, slow = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "slow"
import selectors
waiting = selectors.DefaultSelector()
for _ in range(count):
    connection = socket.create_connection(("127.0.0.1", port))
    if slow:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n" if path else ""
    connection.sendall(request.encode())
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

PAGE = """
import asyncio, sys, time, aiohttp
origin, draws = f"http://127.0.0.1:{sys.argv[1]}", sys.argv[4] == "draws"
async def draw(session):
    state = (await (await session.get(f"{origin}/setup.json")).json())["demo"]
    for number in range(1000000):
        x = number % 9 / 10
        change = {"stream": "demo", "action": "change", "version": state["version"], "save": True,
                  "setup": {"lines": {"door": [[x, 0.1], [x + 0.1, 0.9]]}}}
        async with session.post(f"{origin}/setup.json", json=change) as answer:
            state = await answer.json()
        await asyncio.sleep(0.5)
async def main():
    async with aiohttp.ClientSession(headers={"Origin": origin}) as session:
        socket = await session.ws_connect(f"{origin}/ws")
        names = [[], ["demo"]] if draws else [["demo"], []]
        await socket.send_json(dict(zip(("streams", "plain"), names)))
        drawing = asyncio.ensure_future(draw(session)) if draws else None
        print("ready", flush=True)
        pictures, began = 0, time.monotonic()
        async for message in socket:
            pictures += message.type == aiohttp.WSMsgType.BINARY
            if drawing and drawing.done():
                drawing.result()
            if time.monotonic() > began + 1:
                print(pictures / (time.monotonic() - began), flush=True)
                pictures, began = 0, time.monotonic()
asyncio.run(main())
"""


def repeated_frames():
    """Yield the frames of the demo video again and again."""
    while True:
        yield from frames_in(VIDEO)


class RepeatedVideo(Stream):
    """The demo video in a loop."""

    def frames(self, *_):
        started = time.perf_counter()
        for number, frame in enumerate(repeated_frames()):
            if self.stop.is_set():
                return
            now = time.perf_counter()
            yield Result(self, number, now - started, frame, now)


class Meter:
    """A sink that measures a stream for some seconds, after a warm-up, and then stops it."""

    def __init__(self, seconds):
        self.seconds, self.count, self.warm = seconds, 0, None

    def write(self, result):
        now = time.perf_counter()
        self.warm = self.warm or now + min(WARM_UP, self.seconds)
        if now < self.warm:
            self.start, self.cpu_start = now, time.process_time()
        elif not result.stream.stop.is_set():
            self.count += 1
            if now > self.start + self.seconds:
                self.fps = self.count / (now - self.start)
                self.cpu_ms = (time.process_time() - self.cpu_start) * 1000 / self.count
                result.stream.stop.set()

    def close(self):
        pass


class Row:
    """One row of the table: a sink, its clients, and what was measured.

    clients: (number of connections, path, "slow" or "") for each process; "watches" or "draws"
    instead is a page that shows the stream, or one that also draws and saves a line twice a second.
    """

    def __init__(self, name, open_sink=None, clients=(), track=False):
        self.name, self.open_sink, self.clients, self.track = name, open_sink, clients, track
        self.measured = []  # (FPS, CPU in ms per frame, pictures per second of a client)

    def measure(self, runtime, seconds):
        stream, meter, processes, sink = RepeatedVideo(VIDEO, "demo"), Meter(seconds), [], None
        with rknnPoolExecutor(MODEL, 6, FrameTask(func), runtime=runtime) as pool:
            if self.open_sink:
                sink = self.open_sink(stream)
                stream.sinks.append(sink)
            stream.sinks.append(meter)
            stream.tracker = Tracker() if self.track else None
            for count, path, kind in self.clients:
                client = PAGE if kind in ("watches", "draws") else CLIENT
                command = [sys.executable, "-c", client, str(sink.port), str(count), path, kind]
                processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                processes[-1].stdout.readline()
            stream.run(pool, tqdm(disable=True), quiet=True)
        for process in processes:
            process.kill()
        pictures = [
            float(line)
            for process, (*_, kind) in zip(processes, self.clients)
            if kind != "slow"
            for line in process.stdout.read().split()
        ]
        if sink:
            sink.close()
        if stream.error:
            raise SystemExit(stream.error)
        shown = statistics.median(pictures) if pictures else 0
        self.measured.append((meter.fps, meter.cpu_ms, shown))

    def __str__(self):
        fps, cpu, shown = (statistics.median(values) for values in zip(*self.measured))
        return f"| {self.name} | {fps:.1f} | {cpu:.2f} | {f'{shown:.1f}' if shown else '-'} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="per row and round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--rows", type=int, help="measure only the first N rows")
    parser.add_argument("--frames", type=int, default=60, help="recorded (default: %(default)s)")
    parser.add_argument("--only", metavar="WORD", help="measure only rows with this in their name")
    parser.add_argument("--mqtt", metavar="URL", help="also measure publishing to this broker")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    folder = tempfile.TemporaryDirectory()
    frames = itertools.islice(repeated_frames(), 0, 10 * args.frames, 10)
    runtime = simulated(0.0169, 3, record(MODEL, frames, func.myFunc))

    def page(stream):
        return Web("0", [stream])

    def editor(stream):
        """A page that can change the lines of the stream."""
        flags = dict.fromkeys(("lines", "zones", "conf", "classes", "reset_counts"))
        path = os.path.join(folder.name, "site.json")
        flags = argparse.Namespace(**{**flags, "lines": {}, "zones": {}})
        setup = Setup(path, [stream.name], flags, describe(MODEL), func)
        stream.own_sinks.append(setup.attach([stream]))
        return Web("0", [stream], setup=setup)

    def broker(stream):
        objects.follow([stream], snapshots=False)
        return MQTT(args.mqtt, [stream])

    rows = [
        Row("no page"),
        Row("page without clients", page),
        Row("1 client", page, [(1, "/demo.mjpg", "")]),
        Row("3 clients", page, [(3, "/demo.mjpg", "")]),
        Row(
            "3 clients, and one that reads 4 KB per second",
            page,
            [(3, "/demo.mjpg", ""), (1, "/demo.mjpg", "slow")],
        ),
        Row("100 clients", page, [(100, "/demo.mjpg", "")]),
        Row("100 connections without a request", page, [(100, "", "")]),
        Row("1 client of /events", page, [(1, "/events", "")]),
        Row("tracking, --setup and 1 page", editor, [(1, "", "watches")], track=True),
        Row(
            "tracking, --setup and 1 page that draws and saves",
            editor,
            [(1, "", "draws")],
            track=True,
        ),
    ]
    if args.mqtt:
        rows += [
            Row("tracking", track=True),
            Row("tracking and --mqtt", broker, track=True),
        ]
    rows = [row for row in rows if (args.only or "") in row.name][: args.rows]
    for number in range(1, args.rounds + 1):
        for row in rows:
            row.measure(runtime, args.seconds)
            print(f"round {number}: {row}", file=sys.stderr)
    print("| clients | FPS | CPU, ms per frame | pictures per second for each |\n|---|---|---|---|")
    print("\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
