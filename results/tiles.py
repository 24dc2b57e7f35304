"""Runs the model on overlapping tiles of each frame and on the whole frame (--tiles).

    tiles = Tiles(parse("3x2"))
    with rknnPoolExecutor("models/yolov5n_emoji.rknn", func=TileTask(FrameTask(func))) as pool:
        for result in tiles.map(pool, stream.frames(), live=stream.live):
            print(len(result.detections))

For this pool each tile is a frame of its own, so that the cores of the NPU work on the tiles side
by side. The frames themselves go through the map() of a second pool, without an NPU and with one
thread, which gives the tiles of one frame after the other to the first pool. This map() keeps the
order of the frames, and decides which frames of a camera are dropped. The stream's thread merges
what was found in the tiles.
"""
from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple

from results.result import Result
from results.tile_grid import Box, Tiling, parse
from results.tile_merging import merged
from results.tile_motion import NO_BOXES, SPEED, Motion, cells_of
from rknnpool import NPUError, rknnPoolExecutor
from vision.detections import Detections
from vision.frame import Frame, Undecodable
from vision.letterbox import as_bgr
from vision.settings import Size

__all__ = ["TileTask", "Tiles", "parse"]


class Tile:
    """What the pool gets: a part of a frame, or the whole frame, which counts as a tile, too.

    result: a Result whose frame is the tile. share: of the tile in its frame, for the Meter, which
    counts frames. queued: see Result. started: set when a context has taken the tile.
    """

    def __init__(self, result: Result, share: float):
        self.result, self.share = result, share
        self.queued, self.started = time.perf_counter(), threading.Event()


class TileTask:
    """What the pool runs on each Tile: a FrameTask. Returns what was found. Raises Undecodable if
    the frame has failed."""

    def __init__(self, task: Callable[[Any, Result], Result]):
        self.task = task

    def __call__(self, context: Any, tile: Tile) -> Detections:
        tile.started.set()
        result = self.task(context, tile.result)
        if result.error is not None:
            raise Undecodable(result.error)
        return result.detections


class StartedFrame(NamedTuple):
    """A frame whose tiles the contexts have taken. boxes: of its tiles, in pixels, and last the
    whole frame; found: the futures of the Detections in each of them."""
    result: Result
    boxes: List[Box]
    found: List[Future]


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
        return TiledResults(TileStarter(self, pool), frames, live, tracker)


class TileStarter:
    """Gives the tiles of a stream's frames to the pool, one frame after the other.

    tracked: boxes (n, 4) xyxy of tracked objects that move or were lost; set by TiledResults.
    """

    def __init__(self, tiles: Tiles, pool: Any):
        self.tiles, self.pool = tiles, pool
        self.motion = Motion() if tiles.tiling.motion else None
        self.tracked = NO_BOXES
        self.last_runs: Dict[int, Future] = {}  # of each tile, by its number
        self.newest: List[Future] = []          # of the tiles that run in the newest frame
        self.closed = False

    def start(self, _: Any, result: Result) -> StartedFrame:
        """Give the tiles of a frame to the pool. Returns when a context has taken the last one:
        until then, a newer frame of a camera can replace the next one."""
        boxes: List[Box] = []
        if result.error is None:
            boxes = self.tiles.tiling.tiles(*result.size, self.tiles.input_size)
        numbers = self._choose(result, boxes)
        tiles = [Tile(part, 1 / (len(numbers) + 1))
                 for part in [*parts_of(result, [boxes[number] for number in numbers]), result]]
        self.newest = [self._submit(tile) for tile in tiles]
        if self.closed:
            self.close()
        self.last_runs.update(zip(numbers, self.newest))
        tiles[-1].started.wait()
        found = [self.last_runs[number] for number in range(len(boxes))]
        return StartedFrame(result, [*boxes, (0, 0, *result.size)], [*found, self.newest[-1]])

    def _choose(self, result: Result, boxes: List[Box]) -> List[int]:
        """The numbers of the tiles that run. The others keep what was found in them."""
        if self.motion is None or not boxes:
            return list(range(len(boxes)))
        self.motion.forget([number for number in range(len(self.motion.seen))
                            if has_failed(self.last_runs[number])])
        return self.motion.choose(cells_of(result.as_read), boxes, result.size, self.tracked)

    def _submit(self, tile: Tile) -> Future:
        try:
            future = self.pool.submit(tile)
        except RuntimeError:  # the pool was released
            future = Future()
            future.cancel()
        future.add_done_callback(lambda _: tile.started.set())  # also if it never runs
        return future

    def close(self) -> None:
        """Run no tile that waits for a context."""
        self.closed = True
        for future in self.newest:
            future.cancel()


class TiledResults(Iterator):
    """The iterator of Tiles.map(). It behaves as that of pool.map()."""

    def __init__(self, starter: TileStarter, frames: Iterable[Result], live: bool, tracker: Any):
        self.starter, self.tracker = starter, tracker
        self.frame_pool = rknnPoolExecutor("", 1, starter.start, runtime=NoRuntime)
        self.frames = self.frame_pool.map(frames, live)

    def __next__(self) -> Result:
        if self.starter.motion is not None and self.tracker is not None:
            self.starter.tracked = self.tracker.unsteady(SPEED)
        result, boxes, futures = next(self.frames)
        found = []
        try:
            for future in futures:
                found.append(future.result())
        except Undecodable as error:
            result.fail(str(error))
        except NPUError as error:
            error.frame = result
            raise
        finally:
            del future, futures, self  # breaks reference cycles with an exception's traceback
        if result.detections is not None:
            result.detections = merged(found, boxes, result.size)
        return result

    @property
    def dropped(self) -> int:
        """Live: frames that were read, but replaced by newer ones."""
        return self.frames.dropped

    def close(self) -> None:
        """Read and run no more. Waits for nothing."""
        self.frames.close()
        self.starter.close()
        self.frame_pool.release(wait=False)


class NoRuntime:
    """The runtime of a pool whose func uses no context."""

    NPU_CORES = 1

    def load_rknn(self, path: str) -> int:
        return 0

    def init_runtime(self) -> int:
        return 0

    def release(self) -> None:
        pass


def parts_of(result: Result, boxes: List[Box]) -> List[Result]:
    """A Result for each of these boxes of a frame."""
    picture = result.as_read
    if boxes and not isinstance(picture, Frame):
        picture = Frame((*picture.shape[:2], 3), lambda: as_bgr(result.as_read, to_draw=False))
    return [Result(result.stream, result.number, result.time, picture.crop(*box), result.received)
            for box in boxes]


def has_failed(future: Future) -> bool:
    """Whether a tile has run, or was cancelled, and nothing is known of it."""
    return future.done() and (future.cancelled() or future.exception() is not None)
