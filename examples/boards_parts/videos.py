"""Videos, a Dask task each: begun again elsewhere where a board dies, and written once they are complete."""
import asyncio
import contextlib
import gzip
import io
import os
import shutil
import sys
import time
from types import SimpleNamespace
from typing import Any, Dict, Tuple

from distributed.scheduler import KilledWorker
from tqdm import tqdm

from boards_parts.members import Boards, order, shorten_ttl
from rknnmodel import InputError
from sources.names import hide
from streams import say

TRIES = 2  # times that Dask may give a video up because each of the four boards that it gave it to died


class Videos:
    """Shares videos out, a task each, and writes what comes back."""

    def __init__(self, args: Any, boards: Boards, run: str):
        self.args, self.boards, self.run = args, boards, run
        self.began = 0.0
        self.code = self.complete = self.attempts = self.unserved = 0
        self.served: Dict[str, Any] = {}  # of each board: frames, videos, from when to when
        self.said: set = set()            # errors
        self.frames: Dict[str, int] = {}  # served so far of the videos that are under way
        self.bar = tqdm(total=len(args.names), unit=" videos", disable=True if args.quiet else None)

    async def all(self) -> int:
        """Serve all. Returns the exit code; raises InputError where nothing goes on."""
        client, todo = self.boards.client, []
        for name, source in zip(self.args.names, self.args.addresses):
            if os.path.exists(self.path(name)) and not self.args.overwrite:
                self.bar.update()
            else:
                todo.append((name, source))
        if len(todo) < len(self.args.names):
            say(f"{len(self.args.names) - len(todo)} of {len(self.args.names)} videos have their file in "
                f"{self.args.json} already, and are left out; --overwrite serves them again.", sys.stderr)
        if not todo:
            self.bar.close()
            return 0
        await shorten_ttl(client)
        await self.boards.wait()
        client.subscribe_topic(f"rknnpool-{self.run}", self.progress)
        serving = asyncio.gather(*(self.one(*each) for each in todo))
        watching = asyncio.ensure_future(self.watch())
        try:
            await asyncio.wait([serving, watching], return_when=asyncio.FIRST_COMPLETED)
            await (watching if watching.done() else serving)  # raises what it met
            return self.code
        finally:
            serving.cancel()
            watching.cancel()
            # Those that are cut short let go of what the boards still work on.
            await asyncio.gather(serving, watching, return_exceptions=True)
            self.bar.close()
            self.report()

    async def watch(self) -> None:
        """See boards come and go."""
        known = set(await self.boards.look())
        while True:
            await asyncio.sleep(1)
            fit = set(await self.boards.look())
            for address in fit - known:
                say(f"Board {self.boards.name(address)} has joined.", sys.stderr)
            for address in known - set(self.boards.present):
                say(f"Board {self.boards.name(address)} went away: what it had begun begins again elsewhere.",
                    sys.stderr)
            if known and not self.boards.present:
                say("No board is left: waiting for one.", sys.stderr)
            known = fit

    def progress(self, event: Tuple[float, Dict[str, Any]]) -> None:
        self.frames[event[1]["video"]] = event[1]["frames"]
        done = sum(each.frames for each in self.served.values()) + sum(self.frames.values())
        self.began = self.began or time.perf_counter() - 0.5  # the boards have opened their pools
        self.bar.set_postfix_str(f"{done / (time.perf_counter() - self.began):.0f} FPS")

    async def one(self, name: str, source: str) -> None:
        """Have one video served, and write its lines."""
        reply, failed = {}, 0
        paths = [source] if "://" in source else [os.path.abspath(source), source]
        lines, zones = ({key: points for key, points in places.items() if key.rpartition("/")[0] in ("", name)}
                        for places in (self.args.lines, self.args.zones))
        counting = SimpleNamespace(track=self.args.track, lines=lines, zones=zones, fps=self.args.fps)
        while "lines" not in reply or reply["stopped"]:
            self.attempts += 1
            fit = [address for address in self.boards.present if address not in self.boards.unfit]
            where = {"workers": fit, "allow_other_workers": True} if self.boards.unfit and fit else {}
            # Its key is a number, for it is seen in logs and on Dask's page.
            future = self.boards.client.submit(order("serve", self.args.settings, self.run, name, paths, counting),
                                               resources={"npu": 1}, key=f"video-{self.run}-{self.attempts}",
                                               pure=False, **where)
            try:
                reply = await future
            except asyncio.CancelledError:
                raise
            except KilledWorker:
                failed += 1
                reply = {"error": f"{name}: each board that served it died.", "code": 2} if failed == TRIES else {}
            except Exception as error:  # Dask's own: it could not send, or not read what came
                if self.boards.client.status != "running":
                    raise InputError(f"{self.boards.address}: the scheduler went away.") from None
                failed += 1
                reply = {"error": f"{name}: {type(error).__name__}: {hide(str(error))}", "code": 2}
                if failed < TRIES and self.boards.unfit:  # it may have come to one with other versions
                    reply = {}
            finally:
                self.frames.pop(name, None)
            if "unfit" in reply:
                self.code = 2
                self.boards.leave_out(reply["board"], reply["unfit"])
                if not await self.boards.look():
                    self.unserved += 1
                    return
            elif reply.get("error"):
                self.fail(name, reply)
                return
        self.keep(name, reply)

    def fail(self, name: str, reply: Dict[str, Any]) -> None:
        self.code = 1 if 1 in (self.code, reply["code"]) else reply["code"] or 2
        where = f" (board {self.boards.name(reply['board'])})" if "board" in reply else ""
        error = reply["error"] if reply["error"].startswith(f"{name}:") else f"{name}: {reply['error']}"
        if reply["code"] == 1 and reply["error"] in self.said:  # a traceback, which is long
            error = f"{name}: the same"
        self.said.add(reply["error"])
        say(f"{error}{where}", sys.stderr)
        self.bar.update()

    def path(self, name: str) -> str:
        return os.path.join(self.args.json, f"{name}.jsonl")

    def keep(self, name: str, reply: Dict[str, Any]) -> None:
        """Write a video's lines: under another name until all are there. Raises InputError where that fails."""
        path = self.path(name)
        partial = os.path.join(self.args.json, f".{name}.{self.run}.partial")
        try:
            with open(partial, "wb") as file:
                shutil.copyfileobj(gzip.GzipFile(fileobj=io.BytesIO(reply["lines"])), file)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise InputError(f"--json {path}: cannot be written ({error.strerror}).") from None
        if reply["read"] < reply["total"]:
            say(f"{name}: ended after {reply['read']} of {reply['total']} frames.", sys.stderr)
        if reply["code"]:
            self.code = self.code or reply["code"]
            say(f"{name}: frames failed; their lines say why.", sys.stderr)
        now = time.perf_counter()
        self.began = min(self.began or now, now - reply["seconds"])
        board = self.served.setdefault(reply["board"], SimpleNamespace(frames=0, videos=0, seconds=0.0, last=0.0))
        board.frames, board.videos = board.frames + reply["frames"], board.videos + 1
        board.seconds += min(reply["seconds"], now - board.last)  # it may serve two at a time
        board.last = now
        self.complete += 1
        self.bar.update()

    def report(self) -> None:
        """Say what each board has served."""
        if self.unserved:
            say(f"{self.unserved} videos were not served, for no board can.", sys.stderr)
        for address, board in sorted(self.served.items(), key=lambda item: self.boards.name(item[0])):
            say(f"board {self.boards.name(address)}: {board.frames} frames of {board.videos} videos in "
                f"{board.seconds:.1f} s, {board.frames / max(board.seconds, 0.001):.1f} FPS")
        if not self.complete:
            return
        frames, seconds = sum(each.frames for each in self.served.values()), time.perf_counter() - self.began
        say(f"in all: {frames} frames of {self.complete} videos in {seconds:.1f} s, {frames / seconds:.1f} FPS")
