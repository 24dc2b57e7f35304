"""Two streams with coroutines: each reads, infers and draws on its own, and all share one pool.

    python examples/asyncio_streams.py street.mp4 rtsp://192.168.1.20/live      # without arguments: the demo video,
    twice
"""
import asyncio
import sys
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from func import detect, draw  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402

modelPath = str(ROOT / "models/yolov5n_emoji.rknn")
demo = str(ROOT / "models/demo.mp4")


async def stream(pool, source):
    """Serve one source, a frame at a time: returns its frames, how many there were, and the objects found."""
    capture, frames, objects = cv2.VideoCapture(source), 0, 0
    while True:
        # in a thread, for reading blocks
        ok, frame = await asyncio.get_running_loop().run_in_executor(None, capture.read)
        if not ok:
            return source, frames, objects
        boxes, classes, scores = await asyncio.wrap_future(pool.submit(frame))
        draw(frame, boxes, classes, scores)  # here it can be shown, saved or sent
        frames, objects = frames + 1, objects + len(boxes)


async def main(sources):
    with rknnPoolExecutor(modelPath, func=detect) as pool:
        for source, frames, objects in await asyncio.gather(*(stream(pool, source) for source in sources)):
            print(f"{source}: {frames} frames, {objects} objects")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or [demo, demo]))
