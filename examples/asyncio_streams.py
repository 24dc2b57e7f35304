"""Several streams as coroutines that share one pool: each reads, infers and draws on its own.

    python examples/asyncio_streams.py street.mp4 rtsp://192.168.1.20/live
    python examples/asyncio_streams.py                                     # the demo video, twice
"""
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    from funcs.yolov8 import detect, draw
    from rknnpool import rknnPoolExecutor
    from sources import open_source
    from sources.names import hide
    from vision.command_line import Parser
    from vision.errors import InputError

modelPath = str(ROOT / "models/yolov8n_emoji.rknn")
cap = [str(ROOT / "models/demo.mp4")] * 2


async def run_stream(pool, address):
    """Process one source, a frame at a time, and print how many objects were found."""
    loop, frames, objects = asyncio.get_running_loop(), 0, 0
    with ThreadPoolExecutor(1) as reader:  # a thread for what blocks: opening and reading
        source = await loop.run_in_executor(reader, open_source, address)
        try:
            while True:
                frame = await loop.run_in_executor(reader, source.read)
                if frame is None:
                    break
                found = await asyncio.wrap_future(pool.submit(frame))
                draw(frame, found)  # now it can be shown, saved or sent
                frames, objects = frames + 1, objects + len(found)
        finally:
            reader.submit(source.release)  # in the same thread: after Ctrl-C it may still read
    if frames == 0:
        raise InputError(f"{address}: no frame could be read.")
    print(f"{hide(address)}: {frames} frames, {objects} objects", flush=True)


async def main(addresses):
    with rknnPoolExecutor(modelPath, func=detect) as pool:
        await asyncio.gather(*(run_stream(pool, address) for address in addresses))


def parse_arguments():
    parser = Parser(description=__doc__)
    parser.add_argument("sources", nargs="*", default=cap, help="files, cameras or URLs")
    return parser.parse()


if __name__ == "__main__":
    try:
        asyncio.run(main(parse_arguments().sources))
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, RuntimeError) as error:  # RuntimeError: of the pool or the model
        print(hide(str(error)), file=sys.stderr)
        sys.exit(2)
