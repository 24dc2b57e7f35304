"""Compares the CPU time of reading frames, and what a model finds in them, with the ways of before:
all frames decoded, and each converted to BGR before it is scaled.

Run by hand:

    python tests/compare_reading.py                          # ten minutes
    python tests/compare_reading.py --seconds 0.2 --rounds 1 --frames 1   # a short run

Prints CPU time in ms of a frame, the lowest of all rounds, in turns in one process. "beyond
decoding" is a run of a video through a stream, the pool, func.py and --json, less the time of only
decoding it. The NPU is simulated (2.5 ms), under a C library that copies as the wheel or Rockchip's
library does. Accuracy is that on the demo's frames, scaled to 1080p, in YUV.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models/demo")]

from conftest import opened_demo  # noqa: E402
from evaluate import SETTINGS, average_precision, decode, iou, matches  # noqa: E402
from fakes import frames_in  # noqa: E402

import func  # noqa: E402
from measure import looped  # noqa: E402
from results.jsonl import JSONLines  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402
from runtimes.simulated import record  # noqa: E402
from runtimes.simulated_library import simulated_library  # noqa: E402
from sources import open_source  # noqa: E402
from sources.pyav import as_picture  # noqa: E402
from sources.yuv import frame_of_planes  # noqa: E402
from streams import FrameTask, Stream  # noqa: E402
from vision.inference import infer  # noqa: E402
from vision.jpeg import decode as decode_jpeg  # noqa: E402
from vision.jpeg import frame_of_file  # noqa: E402
from vision.letterbox import letterbox, unletterbox  # noqa: E402
from vision.nms import nms  # noqa: E402

MODEL, DEMO = str(ROOT / "models/yolov5n_emoji.rknn"), str(ROOT / "models/demo.mp4")
RATE, BITS = 25, 4_000_000  # of a common camera
HD, FULL_HD = (1280, 720), (1920, 1080)


def write_video(path, size, seconds):
    """The demo, H.264, at the rate and bits of a common camera, with a key frame every 2 s."""
    with av.open(str(path), "w") as file:
        options = {"preset": "veryfast", "tune": "zerolatency"}
        stream = file.add_stream("libx264", rate=RATE, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        stream.bit_rate, stream.gop_size = BITS, 2 * RATE
        for _, picture in zip(range(round(seconds * RATE)), looped(DEMO)):
            frame = av.VideoFrame.from_ndarray(cv2.resize(picture, size), format="bgr24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def in_turns(ways, rounds):
    """The lowest result of each way, a function that returns CPU seconds, in turns: other programs
    only add to them."""
    spent = [[] for _ in ways]
    for _ in range(rounds):
        for times, way in zip(spent, ways):
            times.append(way())
    return list(map(min, spent))


def print_row(name, before, now):
    print(f"| {name} | {1000 * before:.3f} | {1000 * now:.3f} | {now / before:.2f} |", flush=True)


def decode_video(path, max_fps=None):
    """CPU seconds of a frame to decode a video without converting it."""
    source = open_source(path, "av", max_fps=max_fps)
    began = time.process_time()
    while source.grab():
        pass
    spent = time.process_time() - began
    source.release()
    return spent / source.total


class Clock(list):
    """A sink that notes the CPU time at each frame."""

    def write(self, result):
        self.append(time.process_time())


def process(path, runtime, as_read):
    """CPU seconds of a frame to run a video as main.py does with --headless --json, without the
    first and the last fifth. as_read: detect() gets frames in YUV."""
    task, stream, clock = FrameTask(func), Stream(path, reader="av"), Clock()
    task.takes_frames = as_read
    stream.sinks += [JSONLines(os.devnull), clock]
    with rknnPoolExecutor(MODEL, None, task, runtime=runtime) as pool:
        stream.run(pool, tqdm(disable=True), quiet=True)
    stream.sinks[0].close()
    assert stream.error is None, stream.error
    fifth = len(clock) // 5
    return (clock[-fifth] - clock[fifth]) / (len(clock) - 2 * fifth)


def to_input(size, args):
    """A frame in YUV to the model's input: by way of BGR, and directly."""
    picture = cv2.resize(next(frames_in(DEMO)), size)
    yuv = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format="yuv420p")

    def spent(convert):
        began = time.process_time()
        convert()
        return time.process_time() - began

    ways = [
        lambda: spent(lambda: letterbox(as_picture(yuv, 0), 640)),
        lambda: spent(lambda: letterbox(frame_of_planes(yuv, None), 640)),
    ]
    print_row(f"YUV to the input, {size[1]}p", *in_turns(ways, 20 * args.rounds))


def beyond_decoding(folder, size, args):
    path = write_video(folder / f"{size[1]}.mp4", size, args.seconds)
    frames = list(frames_in(path))[::25]
    recorded = record(MODEL, frames, func.myFunc)
    for kind in ("wheel", "library"):
        runtime = simulated_library(kind, 0.0025, 3, recorded)
        decoding, before, now = in_turns(
            [
                lambda: decode_video(path),
                lambda runtime=runtime: process(path, runtime, False),
                lambda runtime=runtime: process(path, runtime, True),
            ],
            args.rounds,
        )
        name = f"beyond decoding, {size[1]}p, {kind}"
        print_row(name, before - decoding, now - decoding)


def key_frames(folder, args):
    path = write_video(folder / "keys.mp4", FULL_HD, 4 * args.seconds)
    ways = [lambda: decode_video(path), lambda: decode_video(path, 0.5)]
    name = "decoding for --fps 0.5, 1080p, a key frame every 2 s"
    print_row(name, *in_turns(ways, args.rounds))


def motion_jpeg(size, quality, args):
    """A JPEG to BGR, to the model's input by way of BGR, and to it directly."""
    demo, count = frames_in(DEMO), min(20, round(args.seconds * RATE))
    files = [
        cv2.imencode(".jpg", cv2.resize(picture, size), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        for _, picture in zip(range(count), demo)
    ]

    def spent(convert):
        began = time.process_time()
        for data in files:
            convert(data)
        return (time.process_time() - began) / len(files)

    ways = [
        lambda: spent(decode_jpeg),
        lambda: spent(lambda data: letterbox(decode_jpeg(data), 640)),
        lambda: spent(lambda data: letterbox(frame_of_file(data), 640)),
    ]
    to_bgr, before, now = in_turns(ways, 2 * args.rounds)
    kind = f"{size[1]}p JPEG of {sum(map(len, files)) / len(files) / 1000:.0f} kB to the input"
    print_row(f"{kind}; before: only to BGR", to_bgr, now)
    print_row(kind, before, now)


def accuracy(frames):
    """mAP50 of both ways, and how far their boxes are from each other in the model's input."""
    context, results, distances = opened_demo("yolov5n"), ([], []), []
    truth = json.loads((ROOT / "models/demo.json").read_text())["frames"]
    step = len(truth) // frames
    pictures = enumerate(frames_in(DEMO))
    for number, picture in itertools.islice(pictures, 0, step * (frames - 1) + 1, step):
        picture = av.VideoFrame.from_ndarray(cv2.resize(picture, FULL_HD), format="bgr24")
        yuv = picture.reformat(format="yuv420p")
        frame = frame_of_planes(yuv, lambda yuv=yuv: as_picture(yuv, 0))
        found = []
        for result, image in zip(results, (frame.bgr(), frame)):
            square, placed = letterbox(image, 640)
            boxes, classes, scores = decode(infer(context, square))
            best = nms(boxes, classes, scores, SETTINGS)
            boxes, classes, scores = boxes[best], classes[best], scores[best]
            found.append((boxes[scores >= 0.25], classes[scores >= 0.25]))
            rows = np.array(truth[number])
            boxes = unletterbox(boxes, placed, frame) / 1.5  # the demo has 720 rows
            hit = matches(boxes, classes, rows[:, 1:5], rows[:, 0])[:, 0]
            result.append((hit, scores, classes, rows[:, 0]))
        (boxes, classes), (others, other_classes) = found
        overlap = iou(boxes, others) * (classes[:, None] == other_classes)
        for row in np.flatnonzero(overlap.max(1, initial=0) > 0.5):
            distances.append(np.abs(boxes[row] - others[overlap[row].argmax()]).max())
        distances += [np.inf] * np.count_nonzero(overlap.max(1, initial=0) <= 0.5)
    before, now = map(map50, results)
    near = np.mean(np.array(distances) <= 1)
    print(
        f"\nmAP50 on {len(results[0])} frames in 1080p: {before:.4f} before, {now:.4f} now; "
        f"{near:.1%} of {len(distances)} boxes are at most 1 pixel of the input from before"
    )


def map50(parts):
    hits, scores, classes, truth = (np.concatenate(part) for part in zip(*parts))
    return np.mean(
        [
            average_precision(
                hits[classes == number], scores[classes == number], (truth == number).sum()
            )
            for number in np.unique(truth)
        ]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=12, help="of video; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=600, help="for mAP; default: %(default)s")
    args = parser.parse_args()
    cv2.setNumThreads(1)  # as in main.py
    print("| | before, ms | now, ms | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in (HD, FULL_HD):
            to_input(size, args)
            beyond_decoding(Path(folder), size, args)
            motion_jpeg(size, 80, args)
            motion_jpeg(size, 95, args)
        key_frames(Path(folder), args)
    accuracy(args.frames)


if __name__ == "__main__":
    main()
