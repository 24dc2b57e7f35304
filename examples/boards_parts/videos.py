"""Distributes videos over the boards, one Dask task for each.

If a board dies, its video starts again on another board. A file is written when the results of
its video are complete.
"""
from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import shutil
import sys
import time
from types import SimpleNamespace
from typing import Any

from distributed.scheduler import KilledWorker

from boards_parts.finished import choose_files, source_of
from boards_parts.members import Boards, remote_call, shorten_ttl
from boards_parts.progress import Progress
from results.console import say
from sources.names import hide
from vision.errors import InputError

# Dask gives up a task when four boards died while they ran it. After this many times the video
# has failed.
MAX_FAILURES = 2


class Videos:
    """Distributes videos, and writes their results."""

    def __init__(self, args: Any, boards: Boards, run_id: str):
        self.args, self.boards, self.run_id = args, boards, run_id
        self.started = 0.0  # time.perf_counter() when the boards began
        self.code = self.complete = self.attempts = self.not_processed = 0
        self.per_board: dict[str, Any] = {}  # {address: frames, videos, seconds}
        self.reported: set[str] = set()      # errors
        self.frames: dict[str, int] = {}     # {name: frames so far} of videos in progress
        self.files: dict[str, str] = {}      # {name: path of its results}
        self.shares: dict[str, float] = {}   # {name: share that is done} of videos in progress
        self.ended = 0                       # videos that are complete, failed or skipped
        self.progress = Progress(len(args.stream_names), "videos", args.quiet)

    async def process_all(self) -> int:
        """Process all videos. Returns the exit code; raises InputError if no progress is possible.
        """
        client, args = self.boards.client, self.args
        self.files, done = choose_files(args.json, args.stream_names, args.addresses)
        todo = [(name, source) for name, source in zip(args.stream_names, args.addresses)
                if name not in done or args.overwrite]
        self.ended = len(args.stream_names) - len(todo)
        if self.ended:
            say(f"Skipped {self.ended} of {len(args.stream_names)} videos, because their results "
                f"are in {args.json}. --overwrite processes them again.", sys.stderr)
        if not todo:
            self.progress.close()
            return 0
        await shorten_ttl(client)
        await self.boards.wait_for_first()
        client.subscribe_topic(f"rknnpool-{self.run_id}", self._show_progress)
        working: asyncio.Future = asyncio.gather(*(self._process(*each) for each in todo))
        watching: asyncio.Future = asyncio.ensure_future(self._watch_boards())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            await (watching if watching.done() else working)  # raises their exceptions
            return self.code
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)
            self.progress.close()
            self._report()

    async def _watch_boards(self) -> None:
        """Report boards that connect and disconnect."""
        known = set(await self.boards.refresh())
        while True:
            await asyncio.sleep(1)
            fit = set(await self.boards.refresh())
            for address in fit - known:
                say(f"Board {self.boards.name(address)} connected.", sys.stderr)
            for address in known - set(self.boards.present):
                say(f"Board {self.boards.name(address)} disconnected. Its video starts again on "
                    "another board.", sys.stderr)
            if known and not self.boards.present:
                say("All boards are disconnected. Waiting for one.", sys.stderr)
            known = fit

    def _show_progress(self, event: tuple[float, dict[str, Any]]) -> None:
        name, frames = event[1]["video"], event[1]["frames"]
        self.frames[name] = frames
        self.shares[name] = min(1.0, frames / event[1]["total"]) if event[1]["total"] else 0.0
        # The first event comes half a second after a board has opened its pool.
        self.started = self.started or time.perf_counter() - 0.5
        self._update_progress()

    def _update_progress(self) -> None:
        frames = sum(board.frames for board in self.per_board.values()) + sum(self.frames.values())
        seconds = max(0.001, time.perf_counter() - self.started)
        self.progress.show(round(self.ended + sum(self.shares.values()), 3),
                           f"{frames} frames, {frames / seconds:.0f} FPS")

    async def _process(self, name: str, source: str) -> None:
        """Process one video on any board, and write its results."""
        reply: dict[str, Any] = {}
        failures = 0
        while "lines" not in reply or reply["stopped"]:
            try:
                reply = await self._submit(name, source)
            except KilledWorker:
                failures += 1
                reply = {}
                if failures == MAX_FAILURES:
                    reply = {"error": f"{name}: every board that processed it died.", "code": 2}
            except Exception as error:  # of Dask: it could not send, or not read the reply
                if self.boards.client.status != "running":
                    raise InputError(f"{self.boards.address}: connection to the scheduler "
                                     "lost.") from None
                failures += 1
                reply = {"error": f"{name}: {type(error).__name__}: {hide(str(error))}", "code": 2}
                if failures < MAX_FAILURES and self.boards.unfit:  # perhaps another version's
                    reply = {}
            finally:
                self.frames.pop(name, None)
                self.shares.pop(name, None)
            if "unfit" in reply:
                self.code = 2
                self.boards.mark_unfit(reply["board"], reply["unfit"])
                if not await self.boards.refresh():
                    self.not_processed += 1
                    return
            elif reply.get("error"):
                self._report_failure(name, reply)
                return
        self.save(name, reply)

    def _submit(self, name: str, source: str) -> Any:
        """Submit the task of one video. Returns Dask's future."""
        self.attempts += 1
        paths = [source] if "://" in source else [os.path.abspath(source), source]
        lines, zones = (
            {key: points for key, points in shapes.items() if key.rpartition("/")[0] in ("", name)}
            for shapes in (self.args.lines, self.args.zones))
        counting = SimpleNamespace(track=self.args.track, lines=lines, zones=zones,
                                   fps=self.args.fps, source=source_of(source))
        call = remote_call("process_video", self.args.settings, self.run_id, name, paths, counting)
        where: dict[str, Any] = {}
        if self.boards.unfit and self.boards.fit():
            where = {"workers": self.boards.fit(), "allow_other_workers": True}
        # The key does not contain the name, because logs and Dask's web page show it.
        return self.boards.client.submit(call, resources={"npu": 1}, pure=False,
                                         key=f"video-{self.run_id}-{self.attempts}", **where)

    def _report_failure(self, name: str, reply: dict[str, Any]) -> None:
        if self.code != 1:  # an error in the func file is the most serious: its 1 stays
            self.code = reply["code"] or 2
        board = f" (board {self.boards.name(reply['board'])})" if "board" in reply else ""
        error = reply["error"]
        if not error.startswith(f"{name}:"):
            error = f"{name}: {error}"
        if reply["code"] == 1 and reply["error"] in self.reported:  # a long traceback
            error = f"{name}: the same error"
        self.reported.add(reply["error"])
        say(f"{error}{board}", sys.stderr)
        self.ended += 1
        self._update_progress()

    def save(self, name: str, reply: dict[str, Any]) -> None:
        """Write the results of a video. Raises InputError if this fails; then no file is left."""
        path = self.files[name]
        partial = os.path.join(self.args.json, f".{name}.{self.run_id}.partial")
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
            say(f"{name}: some frames failed; their lines contain the reason.", sys.stderr)
        now = time.perf_counter()
        self.started = min(self.started or now, now - reply["seconds"])
        new = SimpleNamespace(frames=0, videos=0, seconds=0.0, last=0.0)
        board = self.per_board.setdefault(reply["board"], new)
        board.frames, board.videos = board.frames + reply["frames"], board.videos + 1
        board.seconds += min(reply["seconds"], now - board.last)  # two videos may overlap
        board.last = now
        self.complete, self.ended = self.complete + 1, self.ended + 1
        if not self.args.quiet:
            say(f"{name}: {reply['frames']} frames in {reply['seconds']:.1f} s, board "
                f"{self.boards.name(reply['board'])}")
        self._update_progress()

    def _report(self) -> None:
        """Print what each board has processed."""
        if self.not_processed:
            one = self.not_processed == 1
            say(f"{'1 video was' if one else f'{self.not_processed} videos were'} not processed, "
                f"because no board can process {'it' if one else 'them'}.", sys.stderr)
        for address, board in sorted(self.per_board.items(),
                                     key=lambda item: self.boards.name(item[0])):
            say(f"board {self.boards.name(address)}: {board.frames} frames of {board.videos} "
                f"videos in {board.seconds:.1f} s, "
                f"{board.frames / max(board.seconds, 0.001):.1f} FPS")
        if self.complete:
            frames = sum(board.frames for board in self.per_board.values())
            seconds = time.perf_counter() - self.started
            say(f"in all: {frames} frames of {self.complete} videos in {seconds:.1f} s, "
                f"{frames / seconds:.1f} FPS")
