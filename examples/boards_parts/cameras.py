"""Cameras, spread over the boards by free capacity, and moved when a board dies, falls silent or joins.

Every placement of a camera has an epoch, a whole number that only grows, and each of its results carries it. Results of
another epoch than the camera's present one are refused: a board that was silent goes on for a moment when it comes
back, and its camera has long been given to another. Tracking and lines are done here, so that counts go on.
"""
import asyncio
import collections
import contextlib
import itertools
import json
import sys
import time
import traceback
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import numpy as np

from boards_parts.members import Boards, order
from func import Detections
from rknnmodel import InputError
from sources.names import hide
from streams import say

TICK = 0.2      # seconds between two questions to a board
SILENCE = 4.0   # seconds that a board may leave a question unanswered; longer than worker.LEASE
OPENING = 20.0  # seconds at most that the first cameras wait for boards that open their pool
AGAIN = 5.0     # seconds until a camera that refused a board is tried again
RATE = 25.0     # frames a second of a camera that does not say


def detections_of(objects: List[Dict[str, Any]]) -> Detections:
    """Detections of a JSON line's objects, as results.jsonl.objects() writes them."""
    def array(field: str, width: int) -> Optional[np.ndarray]:
        if objects and field not in objects[0]:
            return None
        values = [one[field] for one in objects]
        return np.array(values, np.float32) if values else np.empty((0, width), np.float32)

    found = Detections(array("box", 4), np.array([one["number"] for one in objects], np.int64),
                       np.array([one["score"] for one in objects], np.float32),
                       {one["number"]: one["class"] for one in objects})
    if objects:
        found.keypoints, found.corners = array("keypoints", 0), array("corners", 0)
        if "polygon" in objects[0]:
            found.polygons = [one["polygon"] for one in objects]
    return found


class Camera:
    """A stream whose results come from boards: what results/ wants to know of a streams.Stream."""
    live, total = True, 0

    def __init__(self, name: str, address: str, most: Optional[float]):
        self.name, self.address, self.most = name, address, most
        self.board, self.epoch = None, 0    # where it is served
        self.last = None                    # name of the board where it was
        self.tracker = self.lines = None
        self.places: List[Any] = []
        self.count = self.failed = self.refused = self.code = self.width = self.height = 0
        self.rate, self.due, self.ended = 0.0, 0.0, None
        self.drops: Dict[int, int] = {}     # of each epoch
        self.began, self._taken = time.perf_counter(), collections.deque(maxlen=100)
        self._said: set = set()

    @property
    def demand(self) -> float:
        """Frames a second that serving it takes."""
        rate = self.rate if 1 <= self.rate <= 240 else RATE
        return min(self.most or rate, rate)

    @property
    def dropped(self) -> int:
        return sum(self.drops.values())

    @property
    def fps(self) -> float:
        now = time.perf_counter()
        recent = [moment for moment in list(self._taken) if moment > now - 2]
        return len(recent) / max(0.1, now - recent[0]) if len(recent) > 1 else 0.0

    def complain(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text, sys.stderr)

    def take(self, epoch: int, line: str, board: str) -> bool:
        """Hand a board's result on to tracking, lines and places; or refuse it (False), for it is of a placement that
        is over."""
        if epoch != self.epoch:
            self.refused += 1
            return False
        said = json.loads(line)
        result = SimpleNamespace(
            stream=self, number=said["frame"], time=said["time"], size=tuple(said["size"]), file=said.get("file"),
            error=said.get("error"), detections=None, crossings=[], lines=None, zones=None, inside=None, overlay=[],
            received=time.perf_counter(), board=board, epoch=epoch)
        self.width, self.height = result.size
        if result.error is None:
            self.count += 1
            self._taken.append(time.perf_counter())
            result.detections = detections_of(said["objects"])
            for first in (self.tracker, self.lines):
                if first is not None:
                    first.update(result)
        else:
            self.failed, self.code = self.failed + 1, self.code or 2
        for place in list(self.places):
            try:
                place.write(result)
            except Exception as error:  # the place is left out from then on, as streams.Stream does
                known = isinstance(error, InputError)
                self.complain(str(error) if known else traceback.format_exc().rstrip())
                self.code = self.code or (2 if known else 1)
                self.places.remove(place)
        return True

    def summary(self) -> str:
        seconds = (self.ended or time.perf_counter()) - self.began
        more = "".join(f", {count} {what}" for count, what in (
            (self.failed, "failed"), (self.refused, "refused, of a board that had lost it")) if count)
        return (f"{self.name}: {self.count} frames in {seconds:.1f} s, {self.count / seconds:.1f} FPS on average, "
                f"{self.dropped} dropped{more}")


class Site:
    """A board, and what it serves."""
    def __init__(self, address: str, name: str):
        self.address, self.name, self.state, self.capacity = address, name, "opening", 0.0
        self.cameras: List[Camera] = []
        self.heard = False
        self.wake = asyncio.Event()
        self.task: Any = None

    @property
    def load(self) -> float:
        return sum(camera.demand for camera in self.cameras)

    def share(self, more: float = 0.0) -> float:
        """Its load in shares of what it serves."""
        return (self.load + more) / max(self.capacity, 0.1)


class Cameras:
    """Spreads cameras over the boards, and takes what they find."""

    def __init__(self, args: Any, boards: Boards, run: str, cameras: List[Camera]):
        self.args, self.boards, self.run, self.cameras = args, boards, run, cameras
        self.sites: Dict[str, Site] = {}
        self.epochs = itertools.count(int(time.time()))  # of a later run they are greater
        self.changed, self.crowded = asyncio.Event(), False
        self.began, self.spread = time.perf_counter(), False  # spread: whether cameras have been given out

    async def all(self) -> int:
        """Serve until every camera has ended. Returns the exit code; raises InputError where no board can."""
        await self.boards.wait()
        self.boards.client.subscribe_topic("all", lambda event: self.changed.set())
        try:
            while not all(camera.ended for camera in self.cameras):
                fit = await self.boards.look()
                for address in [address for address in self.sites if address not in fit]:
                    site = self.sites.pop(address)
                    site.task.cancel()
                    self.free(site, "went away" if address not in self.boards.present else "cannot serve")
                for address in fit:
                    if address not in self.sites:
                        site = self.sites[address] = Site(address, self.boards.name(address))
                        site.task = asyncio.ensure_future(self.follow(site))
                if self.boards.present and not fit:
                    raise InputError("No board can serve the cameras.")
                for site in self.sites.values():
                    if site.task.done():
                        site.task.result()
                self.place()
                self.changed.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 1)
            codes = [camera.code for camera in self.cameras] + [2 * bool(self.boards.unfit)]
            return 1 if 1 in codes else max(codes)
        finally:
            await self.end()

    async def follow(self, site: Site) -> None:
        """Ask a board again and again: it is told what to serve, and answers with what it found."""
        while True:
            wanted = {camera.name: (camera.epoch, camera.address) for camera in site.cameras}
            try:
                reply = await self.ask(site, wanted)
            except asyncio.TimeoutError:
                if site.state != "silent":
                    site.state = "silent"
                    self.free(site, "is silent")
                continue
            except (OSError, KeyError):  # it has gone, which the scheduler tells
                self.changed.set()
                await asyncio.sleep(TICK)
                continue
            except Exception as error:  # Dask's own: it could not send, or not read what came
                reply = {"state": f"unfit: {type(error).__name__}: {hide(str(error))}"}
            self.take(site, reply)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(site.wake.wait(), TICK)
            site.wake.clear()

    async def ask(self, site: Site, wanted: Any) -> Dict[str, Any]:
        question = order("ask", self.run, self.args.settings, wanted, self.args.fps)
        patience = SILENCE if site.heard else OPENING  # the first time the board loads all that it needs
        replies = await asyncio.wait_for(self.boards.client.run(question, workers=[site.address]), patience)
        site.heard = True
        return replies[site.address]

    def take(self, site: Site, reply: Dict[str, Any]) -> None:
        by_name = {camera.name: camera for camera in self.cameras}
        for name, epoch, line in reply.get("lines", ()):
            by_name[name].take(epoch, line, site.name)
        for name, state in reply.get("jobs", {}).items():
            camera = by_name[name]
            camera.drops[state["epoch"]] = state["dropped"]
            if state["epoch"] == camera.epoch:
                camera.rate = state["rate"] or camera.rate
                if state["error"] and state["code"] != 3:  # 3: the board is to blame
                    camera.complain(f"{state['error']} (board {site.name})")
                    site.cameras.remove(camera)
                    if camera.count and state["code"] == 2:  # it has been there, and comes back
                        camera.board, camera.due = None, time.perf_counter() + AGAIN
                    else:
                        camera.code, camera.ended = state["code"], time.perf_counter()
        before, site.state = site.state, reply["state"]
        if site.state.startswith("unfit"):
            self.boards.leave_out(site.address, site.state.partition(": ")[2])
            self.changed.set()
        elif site.state == "ready" and before != "ready":
            site.capacity = reply["capacity"]
            say(f"Board {site.name} serves {site.capacity:.0f} frames a second.", sys.stderr)
            self.place()
            self.balance()

    def free(self, site: Site, why: str) -> None:
        """Take the cameras from a board, and give them to others."""
        lost, site.cameras = site.cameras, []
        for camera in lost:
            camera.board, camera.last, camera.epoch = None, f"{site.name} {why}", next(self.epochs)
        if lost or site.state == "silent":
            say(f"Board {site.name} {why}.", sys.stderr)
        self.place()

    def ready(self) -> List[Site]:
        return [site for site in self.sites.values() if site.state == "ready"]

    def place(self) -> None:
        """Give each camera that is nowhere to the board with the most frames a second to spare."""
        if not self.spread and any(site.state == "opening" for site in self.sites.values()) and (
                time.perf_counter() < self.began + OPENING):
            return  # those that open first would get all, only to lose them again
        for camera in self.cameras:
            if camera.board is None and not camera.ended and self.ready() and time.perf_counter() >= camera.due:
                self.spread = True
                self.give(camera, max(self.ready(), key=lambda site: site.capacity - site.load))
        wanted, served = sum(site.load for site in self.ready()), sum(site.capacity for site in self.ready())
        if wanted > 1.05 * served > 0 and not self.crowded:
            say(f"The cameras send {wanted:.0f} frames a second, and the boards serve {served:.0f}: the rest is "
                f"dropped.", sys.stderr)
        self.crowded = wanted > 1.05 * served > 0

    def balance(self) -> None:
        """Move cameras from the fullest board to the emptiest for as long as that leaves both less full than it was."""
        while len(self.ready()) > 1:
            fullest, emptiest = max(self.ready(), key=Site.share), min(self.ready(), key=Site.share)
            # One that makes the emptiest fuller than the fullest now is would go back and forth.
            fitting = [camera for camera in fullest.cameras
                       if emptiest.share(camera.demand) < fullest.share() - 0.01]
            if not fitting:
                return
            camera = min(fitting, key=lambda camera: emptiest.share(camera.demand))
            fullest.cameras.remove(camera)
            fullest.wake.set()
            camera.last = f"{fullest.name} has more to do"
            self.give(camera, emptiest)

    def give(self, camera: Camera, site: Site) -> None:
        say(f"{camera.name}: on board {site.name}{camera.last and f', for {camera.last}' or ''}.", sys.stderr)
        camera.board, camera.epoch = site, next(self.epochs)
        site.cameras.append(camera)
        site.wake.set()

    async def end(self) -> None:
        """Let the boards go. One that cannot be told notices by itself."""
        for site in self.sites.values():
            site.task.cancel()
        asking = [asyncio.ensure_future(self.ask(site, None)) for site in self.sites.values() if site.state == "ready"]
        if asking:
            await asyncio.wait(asking, timeout=1)
        for task in asking:
            task.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await task
