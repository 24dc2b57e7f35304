"""A GStreamer element named mppvideodec that gives frames as Rockchip's hardware decoder does: NV12
with rows and planes longer than the picture. Only GstVideoMeta tells where the picture is.

    /usr/bin/python3 tests/padded_decoder.py    # whether OpenCV reads such frames, and CPU time

Needs Debian's Python. Nothing is decoded: each compressed frame becomes the same test picture.
"""

import sys
import time
from pathlib import Path

import cv2
import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstVideo  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import sources  # noqa: E402

WIDTH, HEIGHT = 1920, 1080
STRIDE, ROWS = 2048, 1088  # of the planes in memory
JUNK = 200  # in what does not belong to the picture
CAPS = f"video/x-raw,format=NV12,width={WIDTH},height={HEIGHT},framerate=30/1"


def picture():
    """The planes of the test picture: (HEIGHT, WIDTH) and (HEIGHT / 2, WIDTH) uint8."""
    row, column = np.ogrid[:HEIGHT, :WIDTH]
    y = 40 + row * 80 // HEIGHT + column * 80 // WIDTH
    u_and_v = np.where(column % 2, 90, 160) + row[: HEIGHT // 2] * 0
    return y.astype(np.uint8), u_and_v.astype(np.uint8)


def expected():
    """The test picture: (HEIGHT, WIDTH, 3) uint8 BGR."""
    return cv2.cvtColor(np.concatenate(picture()), cv2.COLOR_YUV2BGR_NV12)


def padded():
    """A Gst.Buffer with the test picture."""
    memory = np.full((ROWS * 3 // 2, STRIDE), JUNK, np.uint8)
    for first, plane in zip((0, ROWS), picture()):
        memory[first : first + len(plane), :WIDTH] = plane
    buffer = Gst.Buffer.new_wrapped(memory.tobytes())
    planes = [0, STRIDE * ROWS, 0, 0], [STRIDE, STRIDE, 0, 0]  # offsets and strides
    GstVideo.buffer_add_video_meta_full(
        buffer, 0, GstVideo.VideoFormat.NV12, WIDTH, HEIGHT, 2, *planes
    )
    return buffer


class Decoder(Gst.Element):
    """The element."""

    def __init__(self):
        super().__init__()
        self.sink, self.src = [
            Gst.Pad.new_from_template(self.get_pad_template(name), name) for name in ("sink", "src")
        ]
        self.sink.set_chain_function_full(self.decode)
        self.sink.set_event_function_full(self.pass_on)
        self.add_pad(self.sink)
        self.add_pad(self.src)
        self.buffer = padded()

    def pass_on(self, pad, parent, event):
        if event.type == Gst.EventType.CAPS:
            event = Gst.Event.new_caps(Gst.Caps.from_string(CAPS))
        return self.src.push_event(event)

    def decode(self, pad, parent, compressed):
        frame = self.buffer.copy()  # the memory is shared
        frame.pts, frame.duration = compressed.pts, compressed.duration
        return self.src.push(frame)


def register():
    """Make the element known to the pipelines of this process, also to OpenCV's."""
    Gst.init(None)
    Decoder.set_metadata("decoder", "Decoder/Video", "gives padded frames", "tests")
    for name, direction, caps in (
        ("sink", Gst.PadDirection.SINK, "video/x-h264; video/x-h265"),
        ("src", Gst.PadDirection.SRC, "video/x-raw,format=NV12"),
    ):
        Decoder.add_pad_template(
            Gst.PadTemplate.new(name, direction, Gst.PadPresence.ALWAYS, Gst.Caps.from_string(caps))
        )
    Gst.Element.register(None, "mppvideodec", Gst.Rank.NONE, Decoder)


def main():
    register()
    for end in (
        "video/x-raw,format=NV12",
        "videoconvert ! video/x-raw,format=I420",
        "videoconvert ! video/x-raw,format=BGR",
    ):
        video = sources.open_source(
            f"filesrc location={ROOT}/models/demo.mp4 ! parsebin ! mppvideodec ! {end} ! appsink"
        )
        error = np.abs(video.read().astype(int) - expected()).mean()
        began = time.process_time()
        for _ in range(300):
            video.read()
        used = (time.process_time() - began) / 300
        video.release()
        print(f"OpenCV {cv2.__version__}, {end}: mean error {error:.1f}, {1000 * used:.2f} ms")


if __name__ == "__main__":
    main()
