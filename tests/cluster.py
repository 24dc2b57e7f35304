"""A Dask scheduler and boards for the tests: processes on this machine with simulated NPUs."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import wait_until

ROOT = Path(__file__).resolve().parents[1]
WAIT_SECONDS = 90  # seconds to wait for a state
ALONE = ["--host", "127.0.0.1", "--no-dashboard"]
# Without these, an idle worker or scheduler takes 3 to 5 % of a CPU core, with them 1 %.
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
}
# The command dask, which may not be on the PATH.
DASK = [
    sys.executable,
    "-c",
    "import sys; from dask.__main__ import main; sys.argv[0] = 'dask'; main()",
]


class Process:
    """A program whose output is written to a file."""

    def __init__(self, command, log, **options):
        self.log = Path(log)
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, **{"cwd": ROOT, **options}
            )

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern):
        return wait_until(
            lambda: (
                re.search(pattern, self.output) or self.over() and re.search(pattern, self.output)
            ),
            f"{pattern} in {self.log.name}",
        )

    def over(self):
        assert self.process.poll() is None, self.output[-3000:]

    def send(self, number):
        self.process.send_signal(number)

    def end(self):
        self.process.kill()  # also ends a stopped process
        self.process.wait()


class Cluster:
    """A scheduler, and boards by name.

    ttl: after which the scheduler gives up a silent board; None for Dask's five minutes.
    """

    def __init__(self, folder, ttl="1s"):
        self.folder, self.boards, self.others = Path(folder), {}, []
        self.environment = {**os.environ, **QUIET}
        if ttl:
            self.environment["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] = ttl
        self.scheduler = Process(
            [*DASK, "scheduler", *ALONE, "--port", "0"],
            self.folder / "scheduler.log",
            env=self.environment,
        )
        self.address = self.scheduler.wait_for(r"Scheduler at:\s+tcp://(127.0.0.1:\d+)").group(1)

    def join(self, name, resources=("--resources", "npu=1"), command=DASK, folder=ROOT):
        """Start a board's worker, as in docs/boards.md. joined() waits until it is connected."""
        log = self.folder / f"{name}-{len(list(self.folder.glob(name + '-*')))}.log"
        board = Process(
            [
                *command,
                "worker",
                self.address,
                *ALONE,
                "--nthreads",
                "1",
                "--no-nanny",
                "--memory-limit",
                "0",
                "--name",
                name,
                *resources,
            ],
            log,
            cwd=folder,
            env=self.environment,
        )
        if name in self.boards:
            self.others.append(self.boards[name])
        self.boards[name] = board
        return board

    def joined(self, *names):
        for name in names:
            self.boards[name].wait_for("Starting established connection")

    def run(self, *arguments):
        """Start boards.py with these arguments."""
        log = self.folder / f"run-{len(list(self.folder.glob('run-*')))}.log"
        run = Process(
            [sys.executable, "examples/boards.py", self.address, *map(str, arguments)],
            log,
            env=self.environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.others.append(run)
        return run

    def finish(self, run):
        """Wait for the end of boards.py. Returns its exit code."""
        return run.process.wait(WAIT_SECONDS)

    def close(self):
        for process in [*self.others, *self.boards.values(), self.scheduler]:
            process.end()


@pytest.fixture(scope="module", name="cluster")
def three_boards(tmp_path_factory):
    cluster, names = Cluster(tmp_path_factory.mktemp("cluster")), ["one", "two", "three"]
    for name in names:
        cluster.join(name)
    cluster.joined(*names)
    yield cluster
    cluster.close()


class GrowingFile:
    """The lines of JSON in a growing file. newest: the last line of each stream."""

    def __init__(self, path):
        self.path, self.offset, self.lines, self.newest = path, 0, [], {}

    def read(self):
        """Read the new complete lines. Returns newest."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                text = file.read()
            end = text.rfind(b"\n") + 1
            self.offset += end
            for line in map(json.loads, text[:end].splitlines()):
                self.lines.append(line)
                self.newest[line["stream"]] = line
        return self.newest


def lines_of(path):
    file = GrowingFile(path)
    file.read()
    return file.lines
