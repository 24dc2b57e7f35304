"""Compares the CPU time of reading with that of the ways it was done before.

Run by hand:

    python tests/compare_reading.py
    python tests/compare_reading.py --seconds 2 --rounds 1     # a short run

Prints the median CPU time in ms of a frame, measured in turn in one process, of

- a video with a key frame every two seconds at --fps 0.5: all frames decoded, and key frames only
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sources import open_source  # noqa: E402

RATE, BITS = 25, 4_000_000  # of a common camera


def write_video(path, size, seconds, codec="libx264", pixels="yuv420p"):
    """The demo at the rate and bits of a common camera, with a key frame every two seconds."""
    demo = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    with av.open(str(path), "w") as file:
        options = {"preset": "veryfast", "tune": "zerolatency"} if codec == "libx264" else {}
        stream = file.add_stream(codec, rate=RATE, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        stream.bit_rate, stream.gop_size = BITS, 2 * RATE
        for _ in range(seconds * RATE):
            ok, picture = demo.read()
            if not ok:
                demo.set(cv2.CAP_PROP_POS_FRAMES, 0)
                ok, picture = demo.read()
            frame = av.VideoFrame.from_ndarray(cv2.resize(picture, size), format="bgr24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def in_turns(ways, rounds):
    """Median CPU seconds of each way, a function, measured in turn."""
    spent = [[] for _ in ways]
    for _ in range(rounds):
        for times, way in zip(spent, ways):
            began = time.process_time()
            way()
            times.append(time.process_time() - began)
    return [statistics.median(times) for times in spent]


def decode(path, max_fps=None):
    """Decode a video without converting its frames."""
    source = open_source(path, "av", max_fps=max_fps)
    while source.grab():
        pass
    source.release()


def key_frames(folder, args):
    path = write_video(folder / "keys.mp4", (1920, 1080), args.seconds)
    ways = [lambda: decode(path), lambda: decode(path, 0.5)]
    return "key frames only, --fps 0.5", in_turns(ways, args.rounds)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=40, help="of video; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    cv2.setNumThreads(1)  # as in main.py
    print("| | before, ms | now, ms | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for measure in (key_frames,):
            name, times = measure(Path(folder), args)
            before, now = (1000 * each / (args.seconds * RATE) for each in times)
            print(f"| {name} | {before:.3f} | {now:.3f} | {now / before:.2f} |", flush=True)


if __name__ == "__main__":
    main()
