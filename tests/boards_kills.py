"""What cameras lose when a board of examples/boards.py dies, falls silent or joins: by hand, for BENCHMARKS.md.

    python tests/boards_kills.py                 # 20 kills: 10 by kill -9, 10 by SIGSTOP with SIGCONT after the move
    python tests/boards_kills.py --videos        # three boards against one, and what a kill costs videos
    python tests/boards_kills.py --load          # what boards cost the scheduler that only answer

Three boards with simulated NPUs of 60 FPS, and six cameras of 30 FPS, served at 10. A gap is the time between a
camera's last frame of one placement and its first of the next, by the frames' own times.
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
from cluster import ROOT, Cluster, Process, Told, lines_of, wait

NAMES = ["one", "two", "three"]


def write_clip(path, count):
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (640, 360))
    for _ in range(count):
        writer.write(cv2.resize(video.read()[1], (640, 360)))
    writer.release()


def kills(cluster, folder, count):
    """Kill boards in turn, and print how long cameras were without a result."""
    told, servers, urls = Told(folder / "cameras.jsonl"), [], []
    for number in range(6):
        servers.append(subprocess.Popen([sys.executable, str(ROOT / "tests/mjpeg_server.py"), "0",
                                         str(folder / "clip.avi")], stdout=subprocess.PIPE, text=True))
        urls.append(f"cam{number}=http://127.0.0.1:{servers[-1].stdout.readline().split()[1]}/")
    run = cluster.run(*urls, "--json", told.path, "--simulate", "50x3", "--fps", "10")
    fates = {"kill -9": [], "SIGSTOP": []}
    try:
        wait(lambda: {line["board"] for line in told.read().values()} == set(NAMES) and len(told.newest) == 6)
        for number in range(count):
            fates[list(fates)[number % 2]].append(kill(cluster, told, NAMES[number % len(NAMES)], number % 2))
        run.send(signal.SIGTERM)
        cluster.finish(run)
        told.read()
    finally:
        for server in servers:
            server.kill()
    report(told.lines, fates, run.said)


def kill(cluster, told, name, silent):
    """Have a board die or fall silent, its cameras moved, and the board back with cameras of its own. Returns when it
    was, when all had moved, and which cameras."""
    before = {camera: line["epoch"] for camera, line in told.read().items() if line["board"] == name}
    assert before, f"{name} had no camera"
    board, killed = cluster.boards[name], time.time()
    board.send(signal.SIGSTOP if silent else signal.SIGKILL)
    wait(lambda: all(told.read()[camera]["epoch"] > epoch for camera, epoch in before.items()))
    gone = time.time()
    if silent:
        board.send(signal.SIGCONT)
    else:
        board.process.wait()
        cluster.join(name)

    def back():
        if board.process.poll() is not None and cluster.boards[name] is board:  # Dask had given it up
            cluster.join(name)
        return any(line["board"] == name and line["time"] > gone for line in told.read().values())

    wait(back)
    return killed, gone, set(before)


def report(lines, fates, said):
    moves, last, doubled = [], {}, 0
    for line in lines:
        before = last.get(line["stream"])
        if before and (line["epoch"], line["frame"]) <= (before["epoch"], before["frame"]):
            doubled += 1
        if before and line["time"] <= before["time"]:
            doubled += 1
        if before and line["epoch"] > before["epoch"]:
            moves.append((line["stream"], before["time"], line["time"]))
        last[line["stream"]] = line
    print("| what | times | cameras moved | gap, median | gap, longest |\n|---|---|---|---|---|")
    taken = set()
    for fate, times in fates.items():
        gaps = []
        for killed, gone, cameras in times:
            for move in moves:
                if move[0] in cameras and move[1] <= killed + 1 and killed <= move[2] <= gone + 1:
                    gaps.append(move[2] - move[1])
                    taken.add(move)
        print(f"| {fate} | {len(times)} | {len(gaps)} | {statistics.median(gaps):.1f} s | {max(gaps):.1f} s |")
    gaps = [move[2] - move[1] for move in moves if move not in taken]
    if gaps:
        print(f"| a board joins, or is back | | {len(gaps)} | {statistics.median(gaps):.1f} s | {max(gaps):.1f} s |")
    refused = sum(int(part.split(" refused")[0].split()[-1]) for part in said.splitlines() if " refused" in part)
    print(f"\n{len(lines)} results, {doubled} doubled, {refused} refused")


def videos(cluster, folder):
    """Nine videos on three boards, and on one; and the same with a board killed or stopped 4 s after the start."""
    paths = [folder / f"v{number}.avi" for number in range(9)]
    for path in paths:
        shutil.copy(folder / "clip.avi", path)

    def once(what, fate=None):
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        run = cluster.run(*paths, "--json", out, "--simulate", "50x3")
        if fate:
            wait(lambda: out.exists() and any(out.glob("*.jsonl")))
            cluster.boards["two"].send(fate)
        code = cluster.finish(run)
        whole = sum([line["frame"] for line in lines_of(path)] == list(range(150)) for path in out.glob("*.jsonl"))
        print(f"{what}: exit code {code}, {whole} of 9 videos whole; {run.said.splitlines()[-1]}", flush=True)

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


ANSWER = """import json, sys, time; sys.path[:0] = {path!r}
import boards_parts.worker as worker
line = json.dumps({{"stream": "cam", "frame": 1, "time": 1.5, "size": [1280, 720], "objects": [
    {{"class": "person", "number": 0, "score": 0.9, "box": [1.0, 2.0, 3.0, 4.0]}}] * 10}})
class Run(worker.Run):
    def keep(self, settings):
        self.capacity, self.state = 1000.0, "ready"
    def lapsed(self):
        return False
    def ask(self, wanted, most):
        reply, now = super().ask({{}}, most), time.monotonic()
        count = int(len(wanted) * 25 * (now - getattr(self, "last", now)))
        self.last = now
        reply["lines"] = [(name, epoch, line) for name, (epoch, _) in wanted.items()
                          for _ in range(count // max(1, len(wanted)))]
        return reply
worker.Run = Run
sys.argv[0] = "dask"; from dask.__main__ import main; main()"""


def load(cluster, folder):
    """CPU of the scheduler and of boards.py for boards that serve four cameras of 25 FPS each, ten objects a frame, and
    do nothing but answer."""
    code = ANSWER.format(path=[str(ROOT), str(ROOT / "examples")])
    print("| boards | cameras | results a second | CPU of the scheduler | of boards.py |\n|---|---|---|---|---|")
    for count in (2, 4, 8, 16):
        while len(cluster.boards) < count:
            name = f"board{len(cluster.boards)}"
            cluster.join(name, command=[sys.executable, "-c", code])
        cluster.joined(*cluster.boards)
        path = folder / f"load{count}.jsonl"
        run = cluster.run(*[f"cam{number}=rtsp://127.0.0.1:1/{number}" for number in range(4 * count)], "--json", path)
        wait(lambda: path.exists() and path.stat().st_size > 100_000)  # noqa: B023
        time.sleep(2)
        began, before = time.monotonic(), [cpu(run), cpu(cluster.scheduler), path.stat().st_size]
        time.sleep(10)
        seconds, after = time.monotonic() - began, [cpu(run), cpu(cluster.scheduler), path.stat().st_size]
        collector, scheduler, written = ((new - old) / seconds for new, old in zip(after, before))
        rate = written / len(json.dumps(lines_of(path)[-1]) + "\n")
        print(f"| {count} | {4 * count} | {rate:.0f} | {100 * scheduler:.0f} % | {100 * collector:.0f} % |", flush=True)
        run.send(signal.SIGTERM)
        cluster.finish(run)


def cpu(process: Process):
    """Seconds of CPU that a process has taken."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", action="store_true")
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_clip(folder / "clip.avi", 150)
        cluster = Cluster(folder, ttl="10s")
        try:
            if args.load:
                load(cluster, folder)
                return
            for name in NAMES:
                cluster.join(name)
            cluster.joined(*NAMES)
            videos(cluster, folder) if args.videos else kills(cluster, folder, args.kills)
        finally:
            cluster.close()


if __name__ == "__main__":
    main()
