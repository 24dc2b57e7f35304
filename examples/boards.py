"""Several boards: distributes videos or cameras over them, with Dask (pip install distributed).

    python examples/boards.py 192.168.1.10:8786 videos/*.mp4 --json out/      # out/NAME.jsonl each
    python examples/boards.py 192.168.1.10:8786 --json - \\
        gate=rtsp://192.168.1.20/live yard=rtsp://192.168.1.21/live
    python examples/boards.py --simulate 50x3 videos/*.mp4 --json out/    # without boards

A Dask scheduler runs on any machine. A Dask worker runs on each board, in a clone of this
repository. docs/boards.md has the commands. The boards read the sources themselves: a video must
have the same path on all of them, or be at a URL.
"""
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any, Coroutine
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
from vision.packages import missing_package, needed_packages  # noqa: E402

with needed_packages():
    import arguments
    import main as main_py
    import process
    import results
    from results.console import prepare_output, say
    from sources.names import hide, is_camera, is_url, lower_scheme, name_streams, split_name
    from vision.command_line import Parser
    from vision.errors import InputError

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")
# What a board needs to open its pool; the last three say whether the model must give boxes.
POOL_SETTINGS = ("model", "threads", "func", "bigCores", "runtime", "simulate", "conf", "iou",
                 "classes", "names", "track", "lines", "zones")


def is_live(source: str) -> bool:
    """Whether a source is live: a pipeline, or a URL without the extension of a video."""
    if is_camera(source):
        raise InputError(f"{source}: a camera that is connected to one board cannot move to "
                         "another. Use main.py on that board.")
    if is_url(lower_scheme(source)):
        return not urlsplit(source).path.lower().endswith(VIDEOS)
    return " ! " in source


def is_scheduler(text: str) -> bool:
    """Whether a text is the address of a scheduler, and not a source."""
    address = re.fullmatch(r"((tcp|tls|wss?)://)?[^/=\s]+:\d+", text)
    return address is not None and not os.path.exists(text)


def parser_of_flags() -> Parser:
    parser = Parser(description=__doc__)
    # flags of main.py that arguments.check() and results/ expect
    parser.set_defaults(**{**arguments.unset(vars(main_py)), "headless": True})
    add = parser.add_argument
    add("sources", nargs="+", metavar="[HOST:PORT] source",
        help="HOST:PORT of Dask's scheduler, then videos, or URLs of cameras; NAME=SOURCE names it")
    add("--json", metavar="PATH",
        help="videos: the folder in which each gets NAME.jsonl; cameras: a file to which lines are "
             "appended, a folder, or - for stdout (default)")
    add("--mqtt", metavar="URL",
        help="publish the results of cameras to an MQTT broker: mqtt://HOST:1883/PREFIX")
    add("--model", default=main_py.modelPath,
        help="path of the model on the boards (default: %(default)s)")
    add("--threads", type=int,
        help="contexts of each board, each with its own thread (default: two per NPU core)")
    add("--func", metavar="FILE", help="path of a func file on the boards")
    add("--bigCores", choices=("yes", "no"), default="yes",
        help="use only the fast CPU cores (default: %(default)s)")
    add("--runtime",
        help="wheel, library, cpu or teflon (default: the first of wheel, library, cpu that "
        "works on the board)")
    add("--simulate", metavar="NPU",
        help="boards without an NPU: milliseconds x cores, for example 50x3 (see benchmark.py); "
        "without HOST:PORT, a scheduler and two boards are started on this machine")
    add("--conf", type=float, help="minimum confidence of a detection, 0 to 1")
    add("--iou", type=float,
        help="if two boxes of one class overlap more than this, only the better one is kept")
    add("--classes", nargs="+", metavar="CLASS", help="keep only these classes, by name or number")
    add("--names", metavar="FILE",
        help="path on the boards of a file with the class names, one per line, as JSON or as YAML")
    add("--track", action="store_true",
        help="give each object an ID that lasts from frame to frame")
    add("--line", "--lines", action="append", default=[], metavar="NAME:X1,Y1,X2,Y2",
        help="count the objects that cross this line")
    add("--zone", "--zones", action="append", default=[], metavar="NAME:X,Y,X,Y,...",
        help="count the objects in this polygon")
    add("--fps", type=float, metavar="N",
        help="process at most N frames per second of each source")
    add("--overwrite", action="store_true", help="also process videos that already have results")
    add("--quiet", action="store_true", help="show no progress")
    return parser


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line. Raises InputError."""
    args = parser_of_flags().parse()
    args.scheduler = None
    if is_scheduler(args.sources[0]):
        args.scheduler = args.sources.pop(0)
    elif not args.simulate:
        raise InputError(f"{args.sources[0]}: the first argument must be the address of Dask's "
                         "scheduler, HOST:8786. Without one, --simulate 50x3 starts a scheduler "
                         "and two boards on this machine.")
    if not args.sources:
        raise InputError("No source is given: write videos or cameras after the scheduler.")
    arguments.check(args)
    args.lines, args.zones = results.parse_lines(args, {}, {})
    args.settings = {name: getattr(args, name) for name in POOL_SETTINGS}
    named = [split_name(source) for source in args.sources]
    args.stream_names, args.addresses = name_streams(named), [source for _, source in named]
    kinds = {is_live(source) for source in args.addresses}
    if len(kinds) > 1:
        raise InputError("One command cannot process both videos, which end, and cameras, which "
                         "do not.")
    args.cameras = kinds.pop()
    if args.lines or args.zones:
        module = results.import_optional("results.lines", "--line and --zone")
        module.for_streams(args.stream_names, args.lines, args.zones)
    if args.simulate:
        from runtimes.simulated import parse_simulate
        parse_simulate(args.simulate)
    if not args.cameras:
        if args.mqtt:
            raise InputError("--mqtt is for cameras. Results of videos are written to "
                             "--json FOLDER.")
        if not args.json or args.json == "-":
            raise InputError("--json FOLDER is required. It gets NAME.jsonl for each video.")
        make_folder(args.json)
    return args


async def run(args: argparse.Namespace) -> int:
    """Process the sources. Returns the exit code; raises InputError."""
    if args.scheduler is not None:
        return await run_at(args.scheduler, args)
    from boards_parts.local_boards import local_boards
    async with local_boards() as scheduler:
        return await run_at(scheduler, args)


async def run_at(scheduler: str, args: argparse.Namespace) -> int:
    import distributed
    from boards_parts.members import CONNECT_SECONDS, Boards
    try:
        client = await distributed.Client(scheduler, asynchronous=True,
                                          timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError, asyncio.TimeoutError) as error:
        no_answer = isinstance(error, (OSError, asyncio.TimeoutError))
        reason = "there is no Dask scheduler" if no_answer else error
        raise InputError(f"{scheduler}: {reason}. Start one with `dask scheduler`, and give "
                         "its address as HOST:8786.") from None
    boards, run_id = Boards(client, scheduler), uuid.uuid4().hex[:8]
    work = process_cameras if args.cameras else process_videos
    try:
        return await until_signal(work(args, boards, run_id), scheduler)
    finally:
        try:
            await asyncio.wait_for(client.close(), 3)
        except Exception:  # the scheduler is gone, which has been reported
            pass


async def until_signal(work: Coroutine[Any, Any, int], scheduler: str) -> int:
    """Run `work` until it ends, or until a signal. Returns the exit code."""
    signals: list[int] = []
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        signals.append(number)
        stopped.set()
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)  # the same signal again ends the program at once

    for number in process.ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    working.cancel()
    stopping.cancel()
    try:
        return await working
    except asyncio.CancelledError:
        if not signals:  # Dask has cancelled its tasks
            raise InputError(f"{scheduler}: connection to the scheduler lost.") from None
        return 128 + signals[0]


async def process_videos(args: argparse.Namespace, boards: Any, run_id: str) -> int:
    from boards_parts.videos import Videos
    return await Videos(args, boards, run_id).process_all()


async def process_cameras(args: argparse.Namespace, boards: Any, run_id: str) -> int:
    from boards_parts.camera import Camera
    from boards_parts.cameras import Cameras
    cameras = [Camera(name, address, args.fps)
               for name, address in zip(args.stream_names, args.addresses)]
    args.json = args.json or (None if args.mqtt else "-")
    if args.json and (args.json.endswith(os.sep) or os.path.isdir(args.json)):
        jsonl = results.import_optional("results.jsonl", "--json")
        make_folder(args.json)
        for camera in cameras:
            sink = jsonl.JSONLines(os.path.join(args.json, f"{camera.name}.jsonl"))
            camera.sinks.append(sink)
            camera.own_sinks.append(sink)
        args.json = None
    shared, _ = results.open_sinks(args, cameras)
    try:
        return await Cameras(args, boards, run_id, cameras).process_all()
    finally:
        cameras[0].close_sinks(shared)
        for camera in cameras:
            camera.close()
            if camera.count or camera.failed:
                say(camera.summary())


def make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"--json {path}: cannot create this folder ({error.strerror}).") from None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prepare_output()
    try:
        args = parse_arguments()
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise InputError(missing_package("boards.py (and each board)", error)) from None
        for name in [*logging.root.manager.loggerDict]:
            if name.startswith("distributed"):
                logging.getLogger(name).setLevel(100)  # boards.py reports errors itself
        warnings.simplefilter("ignore")
        code = asyncio.run(run(args))
    except InputError as error:
        print(hide(str(error)), file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
