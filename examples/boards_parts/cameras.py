"""Assigns cameras to boards by free capacity; moves them when a board dies, hangs or connects.

Tracking, lines and zones run here and not on the boards, so that counts continue when a camera
moves.
"""
from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import time
from typing import Any

from boards_parts.camera import Camera
from boards_parts.members import Boards, remote_call
from boards_parts.progress import Progress
from results.console import say
from sources.names import hide
from vision.errors import InputError

POLL_SECONDS = 0.2      # between two calls to a board
SILENT_SECONDS = 4.0    # a board without a reply is silent; more than worker.LEASE_SECONDS
OPENING_SECONDS = 20.0  # for the first reply, and for other boards before cameras are assigned
RETRY_SECONDS = 5.0     # until a camera that failed is assigned again


class BoardLoad:
    """A board and the cameras that are assigned to it."""

    def __init__(self, address: str, name: str):
        self.address, self.name = address, name
        self.state = "opening"  # or "ready", "silent", "unfit: reason"
        self.capacity = 0.0     # frames per second
        self.cameras: list[Camera] = []
        self.has_replied = False
        self.wake = asyncio.Event()
        self.task: Any = None

    @property
    def load(self) -> float:
        """Frames per second of its cameras."""
        return sum(camera.demand for camera in self.cameras)

    def utilisation(self, more: float = 0.0) -> float:
        """Its load, and `more` frames per second, as a fraction of its capacity."""
        return (self.load + more) / max(self.capacity, 0.1)


class Cameras:
    """Assigns cameras to boards, and delivers their results."""

    def __init__(self, args: Any, boards: Boards, run_id: str, cameras: list[Camera]):
        self.args, self.boards, self.run_id, self.cameras = args, boards, run_id, cameras
        self.loads: dict[str, BoardLoad] = {}            # by address
        self.epochs = itertools.count(int(time.time()))  # a later run has higher ones
        self.changed = asyncio.Event()
        self.overloaded = False   # whether this was reported
        self.assigned = False     # whether cameras were assigned before
        self.began = time.perf_counter()

    async def process_all(self) -> int:
        """Process until every camera has ended. Returns the exit code.

        Raises InputError if no board can process anything.
        """
        progress = Progress(None, "frames", self.args.quiet)
        await self.boards.wait_for_first()
        self.boards.client.subscribe_topic("all", lambda event: self.changed.set())
        try:
            while not all(camera.ended for camera in self.cameras):
                await self._update_boards()
                self.assign()
                self._show(progress)
                self.changed.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 1)
            codes = [camera.code for camera in self.cameras] + [2 * bool(self.boards.unfit)]
            return 1 if 1 in codes else max(codes)
        finally:
            progress.close()
            await self._end()

    def _show(self, progress: Progress) -> None:
        at_work = [camera for camera in self.cameras if camera.board is not None]
        boards = {camera.board.name for camera in at_work}
        progress.show(sum(camera.count for camera in self.cameras),
                      f"{len(at_work)} of {len(self.cameras)} cameras on {len(boards)} boards, "
                      f"{sum(camera.fps for camera in at_work):.0f} FPS")

    async def _update_boards(self) -> None:
        """Add the boards that connected, and remove those that disconnected or are unfit."""
        fit = await self.boards.refresh()
        for address in [address for address in self.loads if address not in fit]:
            load = self.loads.pop(address)
            load.task.cancel()
            unfit = address in self.boards.present
            self.release(load, "cannot process its cameras" if unfit else "disconnected")
        for address in fit:
            if address not in self.loads:
                load = self.loads[address] = BoardLoad(address, self.boards.name(address))
                load.task = asyncio.ensure_future(self._poll_forever(load))
        if self.boards.present and not fit:
            raise InputError("No board can process the cameras.")
        for load in self.loads.values():
            if load.task.done():
                load.task.result()  # raises its exception

    async def _poll_forever(self, load: BoardLoad) -> None:
        """Tell a board again and again which cameras to process, and receive its results."""
        while True:
            assigned = {camera.name: (camera.epoch, camera.address) for camera in load.cameras}
            try:
                reply = await self._poll(load, assigned)
            except asyncio.TimeoutError:
                if load.state != "silent":
                    load.state = "silent"
                    self.release(load, "does not reply")
                continue
            except (OSError, KeyError):  # it has disconnected, which _update_boards() sees
                self.changed.set()
                await asyncio.sleep(POLL_SECONDS)
                continue
            except Exception as error:  # of Dask: it could not send, or not read the reply
                reply = {"state": f"unfit: {type(error).__name__}: {hide(str(error))}"}
            self._receive(load, reply)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(load.wake.wait(), POLL_SECONDS)
            load.wake.clear()

    async def _poll(self, load: BoardLoad,
                    assigned: dict[str, tuple[int, str]] | None) -> dict[str, Any]:
        call = remote_call("process_cameras", self.run_id, self.args.settings, assigned,
                           self.args.fps)
        # For the first call the board imports everything.
        timeout = SILENT_SECONDS if load.has_replied else OPENING_SECONDS
        running = self.boards.client.run(call, workers=[load.address])
        replies = await asyncio.wait_for(running, timeout)
        load.has_replied = True
        return replies[load.address]

    def _receive(self, load: BoardLoad, reply: dict[str, Any]) -> None:
        by_name = {camera.name: camera for camera in self.cameras}
        for name, epoch, line in reply.get("lines", ()):
            by_name[name].receive(epoch, line, load.name)
        for name, state in reply.get("jobs", {}).items():
            camera = by_name[name]
            camera.dropped_in[state["epoch"]] = state["dropped"]
            if state["epoch"] == camera.epoch:
                camera.rate = state["rate"] or camera.rate
                if state["error"] and state["code"] != 3:  # 3: an error of the board's NPU
                    self._camera_failed(camera, load, state)
        before, load.state = load.state, reply["state"]
        if load.state.startswith("unfit"):
            self.boards.mark_unfit(load.address, load.state.partition(": ")[2])
            self.changed.set()
        elif load.state == "ready" and before != "ready":
            load.capacity = reply["capacity"]
            say(f"Board {load.name} can process {load.capacity:.0f} frames per second.",
                sys.stderr)
            self.assign()
            self.balance()

    @staticmethod
    def _camera_failed(camera: Camera, load: BoardLoad, state: dict[str, Any]) -> None:
        camera.print_once(f"{state['error']} (board {load.name})")
        load.cameras.remove(camera)
        if camera.count and state["code"] == 2:  # it has worked before, and may work again
            camera.board = None
            camera.retry_at = time.perf_counter() + RETRY_SECONDS
        else:
            camera.code, camera.ended = state["code"], time.perf_counter()

    def release(self, load: BoardLoad, reason: str) -> None:
        """Take all cameras from a board, and assign them to others."""
        cameras, load.cameras = load.cameras, []
        for camera in cameras:
            camera.board, camera.epoch = None, next(self.epochs)
            camera.moved_because = f"board {load.name} {reason}"
        if cameras or load.state == "silent":
            say(f"Board {load.name} {reason}.", sys.stderr)
        self.assign()

    def ready(self) -> list[BoardLoad]:
        return [load for load in self.loads.values() if load.state == "ready"]

    def assign(self) -> None:
        """Assign each camera without a board to the board with the most free capacity."""
        opening = any(load.state == "opening" for load in self.loads.values())
        if opening and not self.assigned and time.perf_counter() < self.began + OPENING_SECONDS:
            return  # otherwise the first board would get all cameras, and lose most of them later
        for camera in self.cameras:
            if camera.board is None and not camera.ended and self.ready() and (
                    time.perf_counter() >= camera.retry_at):
                self.assigned = True
                self._give(camera, max(self.ready(), key=lambda load: load.capacity - load.load))
        demand = sum(load.load for load in self.ready())
        capacity = sum(load.capacity for load in self.ready())
        overloaded = demand > 1.05 * capacity > 0
        if overloaded and not self.overloaded:
            say(f"The cameras send {demand:.0f} frames per second, but the boards can process only "
                f"{capacity:.0f}. The rest is dropped.", sys.stderr)
        self.overloaded = overloaded

    def balance(self) -> None:
        """Move cameras from the fullest board to the emptiest while this helps."""
        while len(self.ready()) > 1:
            fullest = max(self.ready(), key=BoardLoad.utilisation)
            emptiest = min(self.ready(), key=BoardLoad.utilisation)
            # A camera that makes the emptiest board fuller than the fullest is now would move back.
            movable = [camera for camera in fullest.cameras
                       if emptiest.utilisation(camera.demand) < fullest.utilisation() - 0.01]
            if not movable:
                return
            camera = min(movable, key=lambda camera: camera.demand)
            fullest.cameras.remove(camera)
            fullest.wake.set()
            camera.moved_because = f"board {fullest.name} has more load"
            self._give(camera, emptiest)

    def _give(self, camera: Camera, load: BoardLoad) -> None:
        reason = f", because {camera.moved_because}" if camera.moved_because else ""
        say(f"{camera.name}: assigned to board {load.name}{reason}.", sys.stderr)
        camera.board, camera.epoch = load, next(self.epochs)
        load.cameras.append(camera)
        load.wake.set()

    async def _end(self) -> None:
        """Tell all boards to stop. A board that cannot be reached stops after its lease."""
        for load in self.loads.values():
            load.task.cancel()
        stopping = [asyncio.ensure_future(self._poll(load, None)) for load in self.ready()]
        if stopping:
            await asyncio.wait(stopping, timeout=1)
        for task in stopping:
            task.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await task
