"""How long cameras have no results when a board of examples/boards.py dies, hangs or connects.

    python tests/failover.py                # 20 times: kill -9 and SIGSTOP in turn
    python tests/failover.py --kills 1 --boards 2 --cameras 2 --simulate 200x3 --fps 3  # short
    python tests/failover.py --videos       # videos on three boards and on one, with kills
    python tests/failover.py --load         # CPU of the scheduler and of boards.py

Run by hand; docs/performance.md has the figures. Three boards with simulated NPUs of 60 FPS process
six cameras of 30 FPS at 10 FPS. On a busy PC a slower NPU is needed, so that all boards have the
same capacity, and each gets a camera. A gap is the time between a camera's last frame on one board
and its first frame on the next, measured by the time of the frames.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from cluster import Cluster, GrowingFile, Process, lines_of  # noqa: E402
from fakes import wait_until  # noqa: E402

NAMES = ["one", "two", "three"]


def write_clip(path, count):
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (640, 360))
    for _ in range(count):
        writer.write(cv2.resize(video.read()[1], (640, 360)))
    writer.release()
    return path


def kills(cluster, folder, args):
    """Kill and stop boards in turn, and print how long cameras had no results."""
    file, clip = GrowingFile(folder / "cameras.jsonl"), write_clip(folder / "clip.avi", 30)
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/mjpeg_server.py"), "0", str(clip)],
        stdout=subprocess.PIPE,
        text=True,
    )
    port, names = server.stdout.readline().split()[1], list(cluster.boards)
    urls = [f"cam{number}=http://127.0.0.1:{port}/{number}" for number in range(args.cameras)]
    settings = "--simulate", args.simulate, "--fps", args.fps
    run = cluster.run(*urls, "--json", file.path, *settings)
    fates = {"kill -9": [], "SIGSTOP": []}
    try:
        wait_until(
            lambda: (
                {line["board"] for line in file.read().values()} == set(names)
                and len(file.newest) == args.cameras
            ),
            "results of every camera, and from every board",
            300,
        )
        for number in range(args.kills):
            fates[list(fates)[number % 2]].append(
                kill(cluster, file, names[number % len(names)], number % 2)
            )
        run.send(signal.SIGTERM)
        cluster.finish(run)
        file.read()
    finally:
        server.kill()
    report(file.lines, fates, run.output)


def kill(cluster, file, name, silent):
    """Kill or stop a board. Wait until its cameras have moved, and until it has cameras again.

    Returns the time of the kill, the time when all cameras had moved, and their names.
    """
    before = {
        camera: line["epoch"] for camera, line in file.read().items() if line["board"] == name
    }
    assert before, f"board {name} has no camera"
    board, killed = cluster.boards[name], time.time()
    board.send(signal.SIGSTOP if silent else signal.SIGKILL)
    wait_until(lambda: all(file.read()[cam]["epoch"] > epoch for cam, epoch in before.items()))
    gone = time.time()
    if silent:
        board.send(signal.SIGCONT)
    else:
        board.process.wait()
        cluster.join(name)

    def back():
        # Dask has given it up, so its worker has ended
        if board.process.poll() is not None and cluster.boards[name] is board:
            cluster.join(name)
        return any(line["board"] == name and line["time"] > gone for line in file.read().values())

    wait_until(back)
    return killed, gone, set(before)


def row(event, gaps):
    return f"| {event} | {len(gaps)} | {statistics.median(gaps):.1f} s | {max(gaps):.1f} s |"


def report(lines, fates, output):
    moves, last, repeated = [], {}, 0
    for line in lines:
        before = last.get(line["stream"])
        if before and (line["epoch"], line["frame"]) <= (before["epoch"], before["frame"]):
            repeated += 1
        if before and line["time"] <= before["time"]:
            repeated += 1
        if before and line["epoch"] > before["epoch"]:
            moves.append((line["stream"], before["time"], line["time"]))
        last[line["stream"]] = line
    print("| event | times | cameras moved | median gap | longest gap |\n|---|---|---|---|---|")
    taken = set()
    for fate, times in fates.items():
        gaps = []
        for killed, gone, cameras in times:
            for move in moves:
                if move[0] in cameras and move[1] <= killed + 1 and killed <= move[2] <= gone + 1:
                    gaps.append(move[2] - move[1])
                    taken.add(move)
        if gaps:
            print(row(f"{fate} | {len(times)}", gaps))
    gaps = [move[2] - move[1] for move in moves if move not in taken]
    if gaps:
        print(row("board connects | ", gaps))
    rejected = sum(
        int(line.split(" rejected")[0].split()[-1])
        for line in output.splitlines()
        if " rejected" in line
    )
    print(f"\n{len(lines)} results, {repeated} repeated, {rejected} rejected")


def videos(cluster, folder):
    """Process nine videos on three boards and on one, also with a board killed or stopped."""
    paths, clip = [folder / f"v{number}.avi" for number in range(9)], folder / "clip.avi"
    write_clip(clip, 150)
    for path in paths:
        shutil.copy(clip, path)

    def once(what, fate=None):
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        run = cluster.run(*paths, "--json", out, "--simulate", "50x3")
        if fate:
            wait_until(lambda: out.exists() and any(out.glob("*.jsonl")))
            cluster.boards["two"].send(fate)
        code = cluster.finish(run)
        complete = sum(
            [line["frame"] for line in lines_of(path)] == list(range(150))
            for path in out.glob("*.jsonl")
        )
        print(
            f"{what}: exit code {code}, {complete} of 9 videos complete; "
            f"{run.output.splitlines()[-1]}",
            flush=True,
        )

    once("three boards, opening their pools")
    once("three boards")
    once("three boards, again")
    once("kill -9 of one", signal.SIGKILL)
    cluster.join("two")
    cluster.joined("two")
    once("three boards, one opening its pool")
    once("SIGSTOP of one", signal.SIGSTOP)
    cluster.boards["two"].end()
    cluster.boards["three"].end()
    time.sleep(1)
    once("one board")
    once("one board, again")


ANSWER = """import contextlib, json, sys, time, types; sys.path[:0] = {path!r}
import boards_parts.worker as worker
line = json.dumps({{"stream": "cam", "frame": 1, "time": 1.5, "size": [1280, 720], "objects": [
    {{"class": "person", "number": 0, "score": 0.9, "box": [1.0, 2.0, 3.0, 4.0]}}] * 10}})
@contextlib.contextmanager
def no_pool(settings):
    yield types.SimpleNamespace(pool=None, capacity=lambda: 1000.0)
worker.shared_pool = no_pool
class Run(worker.CameraRun):
    def lease_is_over(self):
        return False
    def call(self, assigned, max_fps):
        reply, now = super().call({{}}, max_fps), time.monotonic()
        count = int(len(assigned) * 25 * (now - getattr(self, "last", now)))
        self.last = now
        reply["lines"] = [(name, epoch, line) for name, (epoch, _) in assigned.items()
                          for _ in range(count // max(1, len(assigned)))]
        return reply
worker.CameraRun = Run
sys.argv[0] = "dask"; from dask.__main__ import main; main()"""


def load(cluster, folder, most):
    """Print the CPU of the scheduler and of boards.py for boards that only send results.

    Each board has four cameras of 25 FPS with ten objects per frame.
    """
    code = ANSWER.format(path=[str(ROOT), str(ROOT / "examples")])
    print(
        "| boards | cameras | results per second | CPU of the scheduler | of boards.py |\n"
        "|---|---|---|---|---|"
    )
    for count in [count for count in (2, 4, 8, 16) if count <= most]:
        while len(cluster.boards) < count:
            name = f"board{len(cluster.boards)}"
            cluster.join(name, command=[sys.executable, "-c", code])
        cluster.joined(*cluster.boards)
        path = folder / f"load{count}.jsonl"
        run = cluster.run(
            *[f"cam{number}=rtsp://127.0.0.1:1/{number}" for number in range(4 * count)],
            "--json",
            path,
        )
        wait_until(lambda: path.exists() and path.stat().st_size > 100_000)  # noqa: B023
        time.sleep(2)
        began, before = time.monotonic(), [cpu(run), cpu(cluster.scheduler), path.stat().st_size]
        time.sleep(10)
        seconds, after = (
            time.monotonic() - began,
            [cpu(run), cpu(cluster.scheduler), path.stat().st_size],
        )
        collector, scheduler, written = ((new - old) / seconds for new, old in zip(after, before))
        rate = written / len(json.dumps(lines_of(path)[-1]) + "\n")
        print(
            f"| {count} | {4 * count} | {rate:.0f} | {100 * scheduler:.0f} % "
            f"| {100 * collector:.0f} % |",
            flush=True,
        )
        run.send(signal.SIGTERM)
        cluster.finish(run)


def cpu(process: Process):
    """Return the CPU time of a process in seconds."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", action="store_true", help="measure videos, not cameras")
    parser.add_argument("--load", action="store_true", help="measure the CPU load")
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--cameras", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--simulate", default="50x3", help="the boards' NPU (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=10, help="of a camera (default: %(default)s)")
    parser.add_argument("--boards", type=int, help="at most 3 (default), with --load 16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        cluster = Cluster(folder, ttl="10s")
        try:
            if args.load:
                load(cluster, folder, args.boards or 16)
                return
            for name in NAMES[: args.boards]:
                cluster.join(name)
            cluster.joined(*cluster.boards)
            if args.videos:
                videos(cluster, folder)
            else:
                kills(cluster, folder, args)
        finally:
            cluster.close()


if __name__ == "__main__":
    main()
