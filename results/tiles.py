"""Runs the model on overlapping tiles of each frame and on the whole frame (--tiles).

Each tile is a frame of its own for the pool, so that the cores of the NPU work on them side by
side. What was found in a frame's tiles is merged in the stream's thread:

    tiles = Tiles(parse("3x2"))
    with rknnPoolExecutor("models/yolov5n_emoji.rknn", func=TileTask(FrameTask(func))) as pool:
        for result in tiles.map(pool, stream.frames(), live=stream.live):
            print(len(result.detections))
"""
from __future__ import annotations

import collections
import functools
import threading
import time
from concurrent.futures import CancelledError, Future
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Tuple

from results.result import Result
from results.tile_grid import Tiling, parse
from results.tile_merging import merged
from results.tile_motion import NO_BOXES, SPEED, Motion, cells_of
from rknnpool import NPUError
from vision.detections import Detections
from vision.frame import Frame
from vision.settings import Size

__all__ = ["TileTask", "Tiles", "parse"]

SLOW_CONSUMER_SECONDS = 0.02  # live: how long a result may wait before a newer one replaces it
TILES_PER_CONTEXT = 3         # of a file: tiles that are read and not returned yet


class TileTask:
    """What the pool runs for tiles: the next tile of a stream, with a FrameTask.

    The pool gets a Ticket, not a tile. The tile is chosen when a context is free: until then, a
    newer frame of a live stream can still replace all tiles of an older one.
    """

    def __init__(self, task: Callable[[Any, Result], Result]):
        self.task = task

    def __call__(self, context: Any, ticket: Ticket) -> None:
        tile = ticket.take()
        if tile is not None:
            self.task(context, tile)


class Ticket:
    """The right of a stream to run a tile.

    queued: see Result. tile: None until a context is free, and if the stream has no tile left then.
    share: of the tile in its frame, for the Meter, which counts frames.
    """

    def __init__(self, take: Callable[[], Tuple[Result | None, float]]):
        self.queued, self.taken = time.perf_counter(), False
        self.tile: Result | None = None
        self.share = 0.0
        self._take = take

    def take(self) -> Result | None:
        if not self.taken:  # the pool may call func again after a failed run
            self.taken = True
            self.tile, self.share = self._take()
        return self.tile


class Group:
    """The tiles of one frame. The whole frame counts as one, the last: its Result is the frame's.

    boxes: of all tiles, in pixels. cells: what tile_motion.cells_of() returned, or None.
    numbers, tiles: the tiles that run. unstarted: those that wait. unfinished: how many are not
    done. error: of the first tile that failed. done_at: time.perf_counter() when all tiles were
    done, or one failed; 0 before.
    """

    def __init__(self, result: Result, boxes: List[Any], cells: Any = None):
        self.result, self.boxes, self.cells = result, boxes, cells
        self.numbers: List[int] = []
        self.tiles: List[Result] = []
        self.unstarted: Deque[Result] = collections.deque()
        self.unfinished, self.done_at = len(boxes), 0.0
        self.error: BaseException | None = None

    def start(self, numbers: List[int]) -> None:
        """Prepare the tiles with these numbers, and the whole frame."""
        result, picture = self.result, self.result.as_read
        self.numbers = [] if result.error else numbers
        if self.numbers and not isinstance(picture, Frame):
            picture = Frame(picture.shape, lambda: result.as_read)
        self.tiles = [Result(result.stream, result.number, result.time,
                             picture.crop(*self.boxes[number]), result.received)
                      for number in self.numbers]
        self.tiles.append(result)
        self.unstarted.extend(self.tiles)
        self.unfinished = len(self.tiles)

    def finish(self, error: BaseException | None) -> None:
        """One tile has been run. error: what it raised, or None."""
        self.unfinished -= 1
        if self.done_at:
            return
        if error is not None:
            self.fail(error)
        elif self.unfinished == 0:
            self.done_at = time.perf_counter()

    def fail(self, error: BaseException) -> None:
        """Run no more of the tiles."""
        self.error, self.done_at = error, time.perf_counter()
        self.unstarted.clear()


class Tiles:
    """Divides frames into tiles. tiling: see results.tile_grid; input_size: of the model, in
    pixels."""

    def __init__(self, tiling: Tiling, input_size: Size = 640):
        self.tiling, self.input_size = tiling, input_size

    def map(self, pool: Any, frames: Iterable[Result], live: bool = False, tracker: Any = None
            ) -> TiledResults:
        """As pool.map(): an iterator over `frames`, each with what was found in all its tiles.

        pool: a pool whose func is a TileTask. tracker: the stream's Tracker, or None; it tells a
        tiling with motion where objects move. If a tile fails, so does its frame. Call close() at
        the end.
        """
        return TiledResults(self, pool, frames, live, tracker)


class TiledResults(Iterator):
    """The iterator of Tiles.map(). It behaves as that of pool.map()."""

    def __init__(self, tiles: Tiles, pool: Any, frames: Iterable[Result], live: bool,
                 tracker: Any):
        self.tiles, self.pool, self.live, self.tracker = tiles, pool, live, tracker
        self.dropped = 0  # live: frames that were read, but replaced by newer ones
        self.motion = Motion() if tiles.tiling.motion else None
        self.tracked = NO_BOXES  # where tracked objects move or were lost
        self.known: Dict[int, Detections] = {}  # what was found in each tile when it last ran
        self.changed = threading.Condition()    # guards what follows
        self.waiting: Deque[Group] = collections.deque()  # frames of which no tile has started
        self.started: Deque[Group] = collections.deque()  # the others, until they are returned
        self.tickets = self.queued = 0  # in the pool, and those of them without a context
        self.closed = self.ended = False
        self.end: BaseException = StopIteration()  # raised after the last frame
        threading.Thread(target=self._read, args=(frames,), daemon=True).start()

    # ---- reading ----

    def _read(self, frames: Any) -> None:
        end: BaseException = StopIteration()
        try:
            for result in frames:
                if not self._add(self._group(result)):
                    break
                del result  # or it would keep its picture until the next one has been read
                self._submit()
        except BaseException as error:
            end = error
        finally:
            if hasattr(frames, "close"):
                frames.close()  # a generator ends in the thread that ran it
        with self.changed:
            if not self.ended:  # by _abort()
                self.end, self.ended = end, True
            self.changed.notify_all()

    def _group(self, result: Result) -> Group:
        boxes: List[Any] = []
        if not result.error:
            boxes = self.tiles.tiling.tiles(*result.size, self.tiles.input_size)
        cells = cells_of(result.as_read) if boxes and self.motion else None
        return Group(result, [*boxes, (0, 0, *result.size)], cells)

    def _add(self, group: Group) -> bool:
        """Let a frame wait for a context; False if no more are wanted."""
        with self.changed:
            if self.live:
                self.dropped += len(self.waiting)
                self.waiting.clear()
            else:
                self.changed.wait_for(
                    lambda: self.closed or not self.waiting or self._has_room())
            if not self.closed:
                self.waiting.append(group)
            return not self.closed

    def _has_room(self) -> bool:
        tiles = sum(len(group.boxes) for group in [*self.waiting, *self.started])
        return tiles < TILES_PER_CONTEXT * self.pool.TPEs

    # ---- in the pool ----

    def _submit(self) -> None:
        """Give the pool as many tickets as there are tiles to run, at most one per context."""
        while True:
            with self.changed:
                to_run = (sum(len(group.unstarted) for group in self.started)
                          + sum(len(group.boxes) for group in self.waiting))
                if self.queued >= to_run or self.tickets >= self.pool.TPEs:
                    return
                self.tickets, self.queued = self.tickets + 1, self.queued + 1
            ticket = Ticket(self._take)
            try:
                future = self.pool.submit(ticket)
            except RuntimeError as error:
                with self.changed:
                    self._abort(CancelledError(str(error)))  # the pool was released
                return
            future.add_done_callback(functools.partial(self._done, ticket))

    def _take(self) -> Tuple[Result | None, float]:
        """The next tile to run and its share of its frame. With the first tile of a frame, this
        frame can no longer be replaced by newer ones."""
        with self.changed:
            self.queued -= 1
            group = next((group for group in self.started if group.unstarted), None)
            if group is None and self.waiting:
                group = self.waiting.popleft()
                group.start(self._choose(group))
                self.started.append(group)
                self.changed.notify_all()
            if group is None:
                return None, 0.0
            return group.unstarted.popleft(), 1 / len(group.tiles)

    def _choose(self, group: Group) -> List[int]:
        """The numbers of the tiles of a frame that run, besides the whole frame."""
        tiles = group.boxes[:-1]
        if self.motion is None or not tiles:
            return list(range(len(tiles)))
        return self.motion.choose(group.cells, tiles, group.result.size, self.tracked)

    def _done(self, ticket: Ticket, future: Future) -> None:
        """The callback of a ticket's future."""
        error = (CancelledError("the pool was released") if future.cancelled()
                 else future.exception())
        with self.changed:
            self.tickets -= 1
            self.queued -= not ticket.taken
            for group in self.started:
                if ticket.tile in group.tiles:
                    group.finish(error)
            if error is not None and ticket.tile is None:
                self._abort(error)
            self._drop_late()
            self.changed.notify_all()
        self._submit()

    def _drop_late(self) -> None:
        """Drop live frames that a slow consumer has not taken when newer ones are done."""
        while self.live and any(group.done_at for group in list(self.started)[1:]):
            first = self.started[0]
            late = first.done_at and time.perf_counter() > first.done_at + SLOW_CONSUMER_SECONDS
            if not late and len(self.started) <= self.pool.TPEs + 2:
                break
            self.dropped += 1
            self._found_in(self.started.popleft())

    def _abort(self, error: BaseException) -> None:
        """The pool runs nothing more: the consumer gets what is complete, then this error."""
        self.end, self.ended, self.closed = error, True, True
        self.waiting.clear()
        for group in self.started:
            if group.unstarted:
                group.fail(error)
        self.changed.notify_all()

    # ---- in the stream's thread ----

    def __next__(self) -> Result:
        if self.motion is not None and self.tracker is not None:
            self.tracked = self.tracker.unsteady(SPEED)
        with self.changed:
            self.changed.wait_for(lambda: self.started and self.started[0].done_at
                                  or self.ended and not self.waiting and not self.started)
            self._drop_late()
            if not self.started:
                raise self.end
            group = self.started.popleft()
            found = self._found_in(group)
            self.changed.notify_all()
        self._submit()
        result, error, boxes = group.result, group.error, group.boxes
        del group
        if isinstance(error, NPUError):
            error.frame = result
        try:
            if error is not None:
                raise error
        finally:
            del error  # breaks a reference cycle with the exception's traceback
        if found:
            result.detections = merged(found, boxes, result.size)
        return result

    def _found_in(self, group: Group) -> List[Detections]:
        """What was found in each tile of a frame when it last ran, and in the whole frame; nothing
        if the frame failed."""
        result = group.result
        failure = next((tile.error for tile in group.tiles if tile.error), None)
        if failure and not result.error:
            result.fail(failure)
        if result.error or group.error or not group.done_at:
            if self.motion is not None:
                self.motion.forget(group.numbers)
            return []
        for number, tile in zip(group.numbers, group.tiles):
            self.known[number] = tile.detections
        nothing = result.detections.select([])
        return [*(self.known.get(number, nothing) for number in range(len(group.boxes) - 1)),
                result.detections]

    def close(self) -> None:
        """Read and run no more. Waits for nothing."""
        with self.changed:
            self.closed = True
            self.waiting.clear()
            for group in self.started:
                group.unstarted.clear()
            self.changed.notify_all()
