"""Which boards the scheduler has, and how to call a function on a board."""
from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Callable

from distributed.versions import get_versions

from boards_parts import VERSION
from results.console import say
from vision.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONNECT_SECONDS = 5  # for the scheduler to answer
# The scheduler gives up a board that is silent for this time. Dask's default is five minutes.
TTL_SECONDS = 10


def remote_call(function: str, *arguments: Any) -> Callable[[], dict[str, Any]]:
    """Return a function that calls a function of worker.py with these arguments on a board.

    It returns that function's dict; or, if the board has no suitable clone, {"unfit": reason,
    "state": "unfit: reason", "board": address}. The arguments are part of the function, because
    Dask logs arguments, and an address may contain a password.
    """
    home, version = str(ROOT), VERSION

    def call() -> dict[str, Any]:  # runs on the board: it can use the modules imported here only
        import os
        import sys

        import distributed

        def unfit(reason: str) -> dict[str, Any]:
            try:
                board = distributed.get_worker().address
            except ValueError:  # called directly and not as a task: the caller knows the board
                board = None
            return {"unfit": reason, "state": f"unfit: {reason}", "board": board}

        worker_py = os.path.join("examples", "boards_parts", "worker.py")
        folders = [folder for folder in (os.getcwd(), home)
                   if os.path.exists(os.path.join(folder, worker_py))]
        if not folders:
            return unfit(f"there is no clone of this version in {os.getcwd()}, where the worker "
                         "was started.")
        for folder in (os.path.join(folders[0], "examples"), folders[0]):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        try:
            from boards_parts import VERSION, worker
        except ImportError as error:
            return unfit(f"a package is missing for the clone in {folders[0]} ({error}).")
        if VERSION != version:
            return unfit(f"the clone in {folders[0]} has another version.")
        return getattr(worker, function)(*arguments)

    call.__name__ = function
    return call


async def shorten_ttl(client: Any) -> None:
    """Let the scheduler give up silent boards after TTL_SECONDS, if its own time is longer."""
    seconds = TTL_SECONDS
    setting = f"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL={seconds}s"

    def shorten(dask_scheduler: Any) -> Any:  # runs on the scheduler
        before = dask_scheduler.worker_ttl
        if before is None or before > seconds:
            from distributed.scheduler import PeriodicCallback
            dask_scheduler.worker_ttl = seconds
            callbacks = dask_scheduler.periodic_callbacks
            if "worker-ttl" in callbacks:
                callbacks["worker-ttl"].stop()
            callbacks["worker-ttl"] = PeriodicCallback(dask_scheduler.check_worker_ttl,
                                                       seconds * 500)
            callbacks["worker-ttl"].start()
        return before

    try:
        before = await client.run_on_scheduler(shorten)
    except Exception as error:  # another version of Dask has other internals
        say(f"The scheduler may wait minutes for a silent board ({error}). Start it with {setting} "
            "in its environment.", sys.stderr)
        return
    if before is None or before > seconds:
        say(f"The scheduler now gives up on silent boards after {seconds} s instead of {before}. "
            f"With {setting} in its environment it does so from the start.", sys.stderr)


def mismatch(client: Any, scheduler: Any, workers: dict[str, Any]) -> str:
    """Return a sentence about different versions of Python or Dask, or "" if all are the same.

    client, scheduler, workers[address]: as distributed's get_versions() returns them.
    """
    def versions(machine: Any) -> tuple[str, str]:
        packages = machine["packages"]
        python = ".".join(str(packages.get("python")).split(".")[:2])
        return python, str(packages.get("distributed"))

    machines = {"the scheduler": scheduler}
    machines.update({f"board {without_scheme(address)}": each for address, each in workers.items()})
    python, dask = versions(client)
    others = [f"{name} has Python {versions(each)[0]} and Dask {versions(each)[1]}"
              for name, each in machines.items() if versions(each) != (python, dask)]
    if not others:
        return ""
    return (f"Versions differ: this machine has Python {python} and Dask {dask}, but "
            f"{', '.join(others)}. Use the same Python everywhere, and "
            f"pip install distributed=={dask}.")


def without_scheme(address: str) -> str:
    return address.split("://")[-1]


class Boards:
    """The boards of the scheduler: its workers that have the resource npu."""

    def __init__(self, client: Any, address: str):
        self.client, self.address = client, address
        self.names: dict[str, str] = {}   # {address: name} of every board that was ever connected
        self.present: list[str] = []      # addresses of the boards that are connected
        self.unfit: dict[str, str] = {}   # {address: why it cannot process anything}
        self.not_boards: set[str] = set()  # addresses of workers without an NPU
        self.waiting = False

    def name(self, address: str) -> str:
        return self.names.get(address, without_scheme(address))

    def fit(self) -> list[str]:
        return [address for address in self.present if address not in self.unfit]

    async def refresh(self) -> list[str]:
        """Ask the scheduler for its boards. Returns the addresses of those that are fit.

        Raises InputError if the scheduler does not answer, or if versions differ.
        """
        try:
            identity = await asyncio.wait_for(self.client.scheduler.identity(), CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError):
            raise InputError(f"{self.address}: connection to the scheduler lost.") from None
        workers = identity["workers"]
        new = [address for address in workers
               if address not in self.names and address not in self.not_boards]
        if new:
            new = await self._with_known_versions(new)
        for address in new:
            if workers[address].get("resources", {}).get("npu", 0) >= 1:
                name = workers[address].get("name", "")  # a number on this machine, from 0
                self.names[address] = without_scheme(str(address if name == "" else name))
            else:
                self.not_boards.add(address)
                say(f"Worker {without_scheme(address)} has no NPU: start it with "
                    "--resources npu=1.", sys.stderr)
        self.present = [address for address in workers if address in self.names]
        return self.fit()

    async def _with_known_versions(self, addresses: list[str]) -> list[str]:
        """Check the versions of new workers. Returns those that answered.

        Raises InputError if versions differ. But if other boards are at work, the new board is
        only marked as unfit.
        """
        question = {"op": "versions", "packages": []}
        try:
            scheduler, workers = await asyncio.wait_for(asyncio.gather(
                self.client.scheduler.versions(packages=[]),
                self.client.scheduler.broadcast(msg=question, workers=addresses,
                                                on_error="ignore")), CONNECT_SECONDS)
        except (OSError, KeyError, asyncio.TimeoutError):
            return []
        own = get_versions()
        problem = mismatch(own, scheduler, {} if self.names else workers)
        if problem:
            raise InputError(problem)
        for address in workers:
            problem = mismatch(own, own, {address: workers[address]})
            if problem:
                self.mark_unfit(address, problem)
        return [address for address in addresses if address in workers]

    async def wait_for_first(self) -> None:
        """Wait until there is a board. Raises InputError if all workers lack an NPU."""
        while not await self.refresh() and not self.present:
            if self.not_boards:
                raise InputError("No worker was started with --resources npu=1.")
            if not self.waiting:
                self.waiting = True
                say(f"{self.address}: waiting for a board.", sys.stderr)
            await asyncio.sleep(0.5)

    def mark_unfit(self, address: str, reason: str) -> None:
        if address not in self.unfit:
            self.unfit[address] = reason
            say(f"Board {self.name(address)}: {reason}", sys.stderr)
