"""Several boards: videos shared out among them, or cameras spread over them, with Dask (pip install distributed).

    python examples/boards.py 192.168.1.10:8786 videos/*.mp4 --json out/            # out/NAME.jsonl for each video
    python examples/boards.py 192.168.1.10:8786 gate=rtsp://192.168.1.20/live yard=rtsp://192.168.1.21/live --json -

A scheduler runs anywhere, and on each board, in its clone of this repository, a worker (README.md has both commands).
The boards read the sources themselves: a video lies under the same path on each of them, or at a URL.
"""
import argparse
import asyncio
import logging
import os
import signal
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any, List
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
import main as settings  # noqa: E402
import results  # noqa: E402
from rknnmodel import InputError  # noqa: E402
from sources.names import hide, name_streams, split_name  # noqa: E402
from streams import say  # noqa: E402

try:
    import distributed  # noqa: E402
except ImportError:
    distributed = None

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")


def is_camera(source: str) -> bool:
    """Whether a source is live: a URL that does not end as a video's does, or a pipeline."""
    if source.isdigit() or source.startswith("/dev/"):
        raise InputError(f"{source}: a camera at one board cannot go to another: serve it there, with main.py.")
    if "://" in source and not source.startswith("file://"):
        return not urlsplit(source).path.lower().endswith(VIDEOS)
    return " ! " in source


def parse_arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("scheduler", help="HOST:PORT of Dask's scheduler")
    add("sources", nargs="+", metavar="source", help="videos, or URLs of cameras, each with NAME= before it or not")
    add("--json", metavar="PLACE", help="of videos the folder that gets NAME.jsonl for each; of cameras a file that is "
        "appended to, or - for stdout (the default), or a folder")
    add("--mqtt", metavar="URL", help="mqtt://host:1883/prefix, a broker that is told of cameras")
    add("--model", default=settings.modelPath, help="as each board has it")
    add("--threads", type=int, help="contexts of each board, and threads (default: two per NPU core)")
    add("--func", metavar="FILE", help="a func file, as each board has it")
    add("--bigCores", choices=("yes", "no"), default="yes", help="stay on the fast CPU cores")
    add("--runtime", help="wheel, library, cpu or teflon (default: whatever the board has)")
    add("--simulate", metavar="NPU", help="boards without one: milliseconds x cores, as in 50x3 (benchmark.py)")
    add("--conf", type=float, help="least score of a detection")
    add("--iou", type=float, help="overlap from which the weaker of two boxes of one class goes")
    add("--classes", nargs="+", metavar="CLASS", help="names or numbers of the only classes wanted")
    add("--names", metavar="FILE", help="names of the model's classes, one a line, as each board has it")
    add("--track", action="store_true", help="give objects identities that last")
    add("--line", "--lines", action="append", default=[], metavar="NAME:X1,Y1,X2,Y2", help="count who crosses it")
    add("--zone", "--zones", action="append", default=[], metavar="NAME:X,Y,X,Y,...", help="count who is in it")
    add("--fps", type=float, metavar="N", help="serve a stream at most so many frames a second")
    add("--overwrite", action="store_true", help="serve a video again whose file is there")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(reader=None, camera_size=None, camera_fps=None, camera_format=None, web=None, headless=True)
    args = parser.parse_args()
    settings.check(args)
    args.lines, args.zones = results.parse_lines(args, {}, {})
    named = [split_name(source) for source in args.sources]
    args.settings = {name: getattr(args, name) for name in (
        "model", "threads", "func", "bigCores", "runtime", "simulate", "conf", "iou", "classes", "names")}
    args.names, args.addresses = name_streams(named), [source for _, source in named]
    kinds = {is_camera(source) for source in args.addresses}
    if len(kinds) > 1:
        raise InputError("Videos end and cameras do not: give either in one command.")
    args.cameras = kinds.pop()
    if args.lines or args.zones:
        results.part("results.lines", "--line and --zone").for_streams(args.names, args.lines, args.zones)
    if args.simulate:
        from runtimes.simulated import parse_simulate
        parse_simulate(args.simulate)
    if not args.cameras:
        if args.mqtt:
            raise InputError("--mqtt is for cameras: the results of videos go to --json FOLDER.")
        if not args.json or args.json == "-":
            raise InputError("--json FOLDER is needed: it gets NAME.jsonl for each video.")
        make_folder(args.json)
    return args


async def run(args: Any) -> int:
    """Run the command. Returns the exit code; raises InputError."""
    from boards_parts.members import CONNECT, Boards
    try:
        client = await distributed.Client(args.scheduler, asynchronous=True, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError, asyncio.TimeoutError) as error:
        why = "no Dask scheduler answers there" if isinstance(error, (OSError, asyncio.TimeoutError)) else error
        raise InputError(f"{args.scheduler}: {why}. Start one with `dask scheduler`, and name it as "
                         f"HOST:8786.") from None
    signals: List[int] = []
    ended = asyncio.Event()

    def end(number: int) -> None:
        signals.append(number)
        ended.set()
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)  # asked again, it ends at once

    for number in settings.ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, end, number)
    boards, work = Boards(client, args.scheduler), uuid.uuid4().hex[:8]
    part = cameras(args, boards, work) if args.cameras else videos(args, boards, work)
    working, stopping = (asyncio.ensure_future(each) for each in (part, ended.wait()))
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        stopping.cancel()
        try:
            code = await working
        except asyncio.CancelledError:
            if not signals:  # Dask gave the tasks up
                raise InputError(f"{args.scheduler}: the scheduler went away.") from None
            code = 128 + signals[0]
        return code
    finally:
        try:
            await asyncio.wait_for(client.close(), 3)
        except Exception:  # the scheduler has gone, and whatever is to be said of it has been
            pass


async def videos(args: Any, boards: Any, work: str) -> int:
    from boards_parts.videos import Videos
    return await Videos(args, boards, work).all()


async def cameras(args: Any, boards: Any, work: str) -> int:
    from boards_parts.cameras import Camera, Cameras
    streams = [Camera(name, address, args.fps) for name, address in zip(args.names, args.addresses)]
    args.json = args.json or (None if args.mqtt else "-")
    own = []
    if args.json and (args.json.endswith(os.sep) or os.path.isdir(args.json)):
        lines = results.part("results.jsonl", "--json")
        make_folder(args.json)
        for stream in streams:
            own.append(lines.JSONLines(os.path.join(args.json, f"{stream.name}.jsonl")))
            stream.places.append(own[-1])
        args.json = None
    shared, _ = results.open_places(args, streams)
    try:
        return await Cameras(args, boards, work, streams).all()
    finally:
        for place in [*shared, *own]:
            place.close()
        for stream in streams:
            if stream.count or stream.failed:
                say(stream.summary())


def make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"--json {path}: cannot be a folder ({error.strerror}).") from None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        args = parse_arguments()
        if distributed is None:
            raise InputError("boards.py needs the package distributed, here and on each board: pip install distributed")
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
            logging.getLogger(name).setLevel(100)  # what matters is said here, in a sentence
        warnings.simplefilter("ignore")
        code = asyncio.run(run(args))
    except InputError as error:
        print(hide(str(error)), file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
