"""Two streams with coroutines: each reads, infers and draws on its own, and all share one pool.

    python examples/asyncio_streams.py street.mp4 rtsp://192.168.1.20/live      # without arguments: the demo video,
    twice
"""
import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from func import detect, draw  # noqa: E402
from rknnmodel import InputError, ModelError  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from sources import open_source  # noqa: E402
from sources.names import hide  # noqa: E402

modelPath = str(ROOT / "models/yolov5n_emoji.rknn")
demo = str(ROOT / "models/demo.mp4")


async def stream(pool, address, source):
    """Serve one source, a frame at a time: returns its address, how many frames there were, and the objects found."""
    frames = objects = 0
    while True:
        # in a thread, for reading blocks
        frame = await asyncio.get_running_loop().run_in_executor(None, source.read)
        if frame is None:
            if frames == 0:
                raise InputError(f"{address}: no frame could be read.")
            return address, frames, objects
        found = await asyncio.wrap_future(pool.submit(frame))
        draw(frame, found)  # here it can be shown, saved or sent
        frames, objects = frames + 1, objects + len(found)


async def main(addresses):
    sources = [open_source(address) for address in addresses]
    with rknnPoolExecutor(modelPath, func=detect) as pool:
        served = await asyncio.gather(*(stream(pool, *both) for both in zip(addresses, sources)))
        for address, frames, objects in served:
            print(f"{hide(address)}: {frames} frames, {objects} objects")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1:] or [demo, demo]))
    except (InputError, ModelError) as error:
        print(hide(str(error)), file=sys.stderr)
        sys.exit(2)
