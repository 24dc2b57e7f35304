"""A long run in ten minutes: two cameras that fail, a broker that is killed, a viewer, and an NPU
that fails on one frame in a thousand. All frames and events are counted. Run by hand;
tests/README.md has the figures.

    python tests/soak.py                            # ten minutes: sixty "minutes" of ten seconds
    python tests/soak.py --minutes 60 --minute 60   # an hour

Runs main.py on a simulated NPU of three cores with --track, --line, --json, --mqtt and --web, and
ends it by SIGTERM. In every "minute" each camera and the broker are killed once and started again.
Every "minute", and at the end, it prints the frames served, failed and dropped, the events that
came, the pictures that the viewer got, and main.py's resident memory, threads and open files. Exit
code 1: frames or events do not add up, or memory grows.
"""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MODEL = str(ROOT / "models/yolov5n_emoji.rknn")
GROWTH = 40  # MB by which main.py may grow after its first "minutes"


def serve(clip, arguments):
    """Run main.py with a simulated NPU: the child process."""
    import func
    import main
    from runtimes.simulated import record, simulated

    video = cv2.VideoCapture(clip)
    frames = [video.read()[1] for _ in range(60)][::10]

    class Failing(simulated(0.0169, 3, record(MODEL, frames, func.myFunc))):
        count = 0
        run_failed = False

        def run(self, *args):
            outputs = super().run(*args)
            Failing.count += 1
            self.run_failed = Failing.count % 1000 == 100
            return None if self.run_failed else outputs

    main.runtimes.by_name = lambda name: Failing
    sys.argv = ["main.py", *arguments]
    main.main()


class Viewer:
    """Watches one stream, and reconnects if it is disconnected."""

    def __init__(self, port, name):
        self.pictures = 0
        threading.Thread(target=self.look, args=(port, name), daemon=True).start()

    def look(self, port, name):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                    connection.sendall(
                        f"GET /{name}.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                    )
                    while data := connection.recv(1 << 20):
                        self.pictures += data.count(b"--frame")
            except OSError:
                time.sleep(1)


class Watched:
    """main.py as a process."""

    def __init__(self, clip, arguments):
        command = [sys.executable, __file__, "serve", clip, *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.errors, self.page = [], threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.errors.append(line.rstrip())
            found = re.search(r"http://127.0.0.1:(\d+)/", line)
            if found:
                self.port = int(found[1])
                self.page.set()

    def status(self):
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}/status.json", timeout=30
        ) as answer:
            return json.load(answer)["streams"]

    def resources(self):
        """Resident memory in MB, threads, open files."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        rss, threads = (
            int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("VmRSS", "Threads")
        )
        return rss / 1024, threads, len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def check(lines, summary, events):
    """Return what does not add up, as sentences. lines: --json's; summary: main.py's last lines."""
    wrong = []
    for name in ("gate", "yard"):
        of = [line for line in lines if line["stream"] == name]
        numbers = [line["frame"] for line in of]
        failed = sum("error" in line for line in of)
        printed = re.search(
            rf"^{name}: (\d+) frames in .* (\d+) dropped(?:, (\d+) failed)?", summary, re.MULTILINE
        )
        served, dropped, failed_printed = (int(number or 0) for number in printed.groups())
        if numbers != sorted(set(numbers)):
            wrong.append(f"{name}: frames are not in order, or come twice")
        if (served, failed_printed) != (len(of) - failed, failed):
            wrong.append(
                f"{name}: {served} served, {failed_printed} failed; "
                f"JSON has {len(of) - failed} and {failed}"
            )
        if numbers[-1] + 1 != len(of) + dropped:
            wrong.append(
                f"{name}: {numbers[-1] + 1} read, but {len(of)} came out and {dropped} were dropped"
            )
    from broker import once

    events = once(events)
    numbers = [int(event["id"].rpartition("-")[2]) for event in events]
    missing = set(range(1, numbers[-1] + 1)) - set(numbers)
    if missing:
        wrong.append(f"{len(missing)} events are missing: {sorted(missing)[:10]}")

    def of_type(kind):
        return sorted(
            (event["after"]["camera"], event["after"]["track"])
            for event in events
            if event["type"] == kind
        )

    seen = sorted(
        {
            (line["stream"], thing["id"])
            for line in lines
            for thing in line.get("objects", ())
            if "id" in thing
        }
    )
    crossed = sum(len(line.get("crossings", ())) for line in lines)
    told = sum(event["event"] == "crosses" for event in events)
    if sorted(set(of_type("new"))) != seen or of_type("new") != of_type("end"):
        wrong.append(
            f"{len(seen)} objects in JSON, {len(of_type('new'))} appeared, "
            f"{len(of_type('end'))} ended"
        )
    if crossed != told:
        wrong.append(f"{crossed} crossings in JSON, {told} in events")
    return wrong


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--minute", type=float, default=10, help="seconds that one lasts")
    args = parser.parse_args()
    from broker import Broker, Listener
    from test_live import CAMERAS, HAS_GST, Camera

    with tempfile.TemporaryDirectory() as folder:
        folder, clip = Path(folder), str(Path(folder) / "camera.mp4")
        video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
        writer = cv2.VideoWriter(clip, cv2.VideoWriter_fourcc(*"mp4v"), 30, (640, 360))
        for _ in range(min(300, round(30 * args.minute))):
            writer.write(cv2.resize(video.read()[1], (640, 360)))
        writer.release()
        kinds = ["rtsp" if HAS_GST else "http", "http"]
        cameras = [Camera(CAMERAS[kind], kind, clip) for kind in kinds]
        broker = Broker(folder)
        broker.start()
        listener = Listener(broker)
        child = Watched(
            clip,
            [
                f"gate={cameras[0].url}",
                f"yard={cameras[1].url}",
                "--headless",
                "--quiet",
                "--track",
                "--line",
                "road:0.5,0.3,0.5,1",
                "--zone",
                "meadow:0,0.5,1,0.5,1,1,0,1",
                "--web",
                "0",
                "--json",
                str(folder / "out.jsonl"),
                "--mqtt",
                broker.url,
            ],
        )
        assert child.page.wait(120), child.errors
        viewer, began, memory, pictures = Viewer(child.port, "gate"), time.monotonic(), [], 0

        def at(minute, share):
            time.sleep(max(0, began + (minute + share) * args.minute - time.monotonic()))

        for minute in range(args.minutes):
            for share, part in ((0.1, cameras[0]), (0.4, cameras[1]), (0.7, broker)):
                at(minute, share)
                if part is broker:
                    # A killed broker loses messages that it has acknowledged but not passed on.
                    # That is not our fault, so the listener first reads what was passed on.
                    broker.save()
                    broker.process.send_signal(signal.SIGSTOP)
                    time.sleep(min(0.5, args.minute / 20))
                part.kill()
                at(minute, share + 0.1)
                part.start()
            at(minute, 1)
            if child.process.poll() is not None:
                sys.exit(
                    "\n".join(
                        [*child.errors, f"main.py has ended, exit code {child.process.returncode}"]
                    )
                )
            rss, threads, files = child.resources()
            memory.append(rss)
            streams = "; ".join(
                f"{name} {of['frames']} served, {of['failed']} failed, {of['dropped']} dropped"
                for name, of in child.status().items()
            )
            print(
                f"{minute + 1}: {streams}; {len(listener.events)} events; "
                f"{viewer.pictures - pictures} pictures; "
                f"{rss:.1f} MB, {threads} threads, {files} files",
                flush=True,
            )
            pictures = viewer.pictures
        child.process.send_signal(signal.SIGTERM)
        summary = child.process.stdout.read()
        code = child.process.wait(60)
        listener.wait_for_availability("offline")
        lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
        wrong = check(lines, summary, listener.events)
        first, last = (
            max(memory[: max(1, len(memory) // 5)]),
            max(memory[-max(1, len(memory) // 5) :]),
        )
        if last > first + GROWTH:
            wrong.append(f"memory grew from {first:.0f} to {last:.0f} MB")
        if code not in (3, 143):
            wrong.append(f"exit code {code}")
        if not viewer.pictures:
            wrong.append("the viewer saw nothing")
        for part in (*cameras, broker):
            part.kill()
        listener.close()
        print(summary + "\n".join(child.errors[-5:]))
        print(
            f"{len(lines)} lines of JSON, {len(listener.events)} events, of them "
            f"{len({event['id'] for event in listener.events})} without repetitions; "
            f"{first:.0f} MB, at the end "
            f"{last:.0f} MB; exit code {code}"
        )
        print("\n".join(wrong) or "all adds up")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], sys.argv[3:])
    else:
        main()
