"""The scheduler and its boards, and how a board is asked for something."""
import asyncio
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from distributed.versions import get_versions

from boards_parts import VERSION
from rknnmodel import InputError
from streams import say

ROOT = Path(__file__).resolve().parents[2]
CONNECT = 5   # seconds for the scheduler to answer
TTL = 10      # seconds without a word after which the scheduler gives a board up; by itself it waits for five minutes


def order(what: str, *arguments: Any) -> Callable[[], Dict[str, Any]]:
    """A call of worker.py's `what`, to be sent to a board. The arguments are in it, and not beside it, for Dask
    logs those that it sees, and an address may hold a password."""
    home, version = str(ROOT), VERSION

    def job() -> Dict[str, Any]:
        import os
        import sys

        import distributed

        def unfit(why: str) -> Dict[str, Any]:
            try:
                board = distributed.get_worker().address
            except ValueError:  # asked for directly, and not a task: whoever asks knows
                board = None
            return {"unfit": why, "state": f"unfit: {why}", "board": board}

        folders = [folder for folder in (os.getcwd(), home)
                   if os.path.exists(os.path.join(folder, "examples", "boards_parts", "worker.py"))]
        if not folders:
            return unfit(f"has no clone of this version in {os.getcwd()}, where its worker was started.")
        for place in (os.path.join(folders[0], "examples"), folders[0]):
            if place not in sys.path:
                sys.path.insert(0, place)
        try:
            from boards_parts import VERSION, worker
        except ImportError as error:
            return unfit(f"lacks what its clone in {folders[0]} needs ({error}).")
        if VERSION != version:
            return unfit(f"has another version of this project in {folders[0]}.")
        return getattr(worker, what)(*arguments)

    job.__name__ = what
    return job


async def shorten_ttl(client: Any) -> None:
    """Have the scheduler give silent workers up after TTL seconds, where it would later."""
    seconds = TTL

    def shorten(dask_scheduler: Any) -> Any:
        before = dask_scheduler.worker_ttl
        if before is None or before > seconds:
            from distributed.scheduler import PeriodicCallback
            dask_scheduler.worker_ttl = seconds
            callbacks = dask_scheduler.periodic_callbacks
            if "worker-ttl" in callbacks:
                callbacks["worker-ttl"].stop()
            callbacks["worker-ttl"] = PeriodicCallback(dask_scheduler.check_worker_ttl, seconds * 500)
            callbacks["worker-ttl"].start()
        return before

    try:
        before = await client.run_on_scheduler(shorten)
    except Exception as error:  # another version's scheduler is made of other parts
        say(f"A board that falls silent may be waited for for minutes ({error}): start the scheduler with "
            f"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL={seconds}s in its environment.", sys.stderr)
        return
    if before is None or before > seconds:
        say(f"The scheduler now gives silent boards up after {seconds} s, and not after {before}; with "
            f"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL={seconds}s in its environment it does so by itself.", sys.stderr)


def mismatch(client: Any, scheduler: Any, workers: Dict[str, Any]) -> str:
    """A sentence on Python and Dask versions that do not fit together, or "". Each as distributed's get_versions()
    gives it."""
    def of(machine: Any) -> Tuple[str, str]:
        packages = machine["packages"]
        return ".".join(str(packages.get("python")).split(".")[:2]), str(packages.get("distributed"))

    machines = {"the scheduler": scheduler, **{f"board {bare(address)}": each for address, each in workers.items()}}
    mine = of(client)
    others = [f"{name} has Python {of(each)[0]} and Dask {of(each)[1]}" for name, each in machines.items()
              if of(each) != mine]
    return others and (f"Versions do not match: here are Python {mine[0]} and Dask {mine[1]}, but {', '.join(others)}. "
                       f"Give all the same Python, and pip install distributed=={mine[1]}.") or ""


def bare(address: str) -> str:
    return address.split("://")[-1]


class Boards:
    """The scheduler's boards: its workers that have the resource npu."""

    def __init__(self, client: Any, address: str):
        self.client, self.address = client, address
        self.names: Dict[str, str] = {}   # of all boards ever seen, by address
        self.present: List[str] = []      # addresses of those that are there
        self.unfit: Dict[str, str] = {}   # address: why it serves nothing
        self.strangers: set = set()       # workers without a NPU
        self.waiting = False

    def name(self, address: str) -> str:
        return self.names.get(address, bare(address))

    async def look(self) -> List[str]:
        """Addresses of the boards that are there and fit. Raises InputError for a scheduler that went away, and for
        versions that do not match."""
        try:
            identity = await asyncio.wait_for(self.client.scheduler.identity(), CONNECT)
        except (OSError, asyncio.TimeoutError):
            raise InputError(f"{self.address}: the scheduler went away.") from None
        workers = identity["workers"]
        new = [address for address in workers if address not in self.names and address not in self.strangers]
        if new:
            new = await self.compare(new)
        for address in new:
            if workers[address].get("resources", {}).get("npu", 0) >= 1:
                name = str(workers[address].get("name") or address)
                self.names[address] = bare(name)
            else:
                self.strangers.add(address)
                say(f"Worker {bare(address)} has no NPU to give: start it with --resources npu=1.", sys.stderr)
        self.present = [address for address in workers if address in self.names]
        return [address for address in self.present if address not in self.unfit]

    async def compare(self, addresses: List[str]) -> List[str]:
        """Those of new workers whose versions are known; one that does not answer is asked again another time. Raises
        InputError where they do not match, but leaves out one that joins later, for the others are at work."""
        question = {"op": "versions", "packages": []}
        try:
            scheduler, workers = await asyncio.wait_for(asyncio.gather(
                self.client.scheduler.versions(packages=[]),
                self.client.scheduler.broadcast(msg=question, workers=addresses, on_error="ignore")), CONNECT)
        except (OSError, KeyError, asyncio.TimeoutError):
            return []
        mine = get_versions()
        problem = mismatch(mine, scheduler, {} if self.names else workers)
        if problem:
            raise InputError(problem)
        for address in workers:
            problem = mismatch(mine, mine, {address: workers[address]})
            if problem:
                self.leave_out(address, problem)
        return [address for address in addresses if address in workers]

    async def wait(self) -> None:
        """Wait for a first board. Raises InputError where the only workers have no NPU."""
        while not await self.look() and not self.present:
            if self.strangers:
                raise InputError("There is no worker with --resources npu=1.")
            if not self.waiting:
                self.waiting = True
                say(f"{self.address}: no board is there yet, waiting for one.", sys.stderr)
            await asyncio.sleep(0.5)

    def leave_out(self, address: str, why: str) -> None:
        if address not in self.unfit:
            self.unfit[address] = why
            say(f"Board {self.name(address)}: {why}", sys.stderr)
