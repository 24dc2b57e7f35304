"""A network camera: sends a video file (H.264 or MPEG-4) over RTSP, in a loop, at its own frame
rate.

    /usr/bin/python3 tests/rtsp_server.py PORT FILE    # rtsp://127.0.0.1:PORT/demo

Prints "ready PORT" when it accepts connections (PORT 0: any free port). Each client gets the clip
from its first frame on; the timestamps keep increasing when the clip repeats. Ends with the thread
that started it. It needs Debian's Python, which has GStreamer's bindings: apt-get install
gir1.2-gst-rtsp-server-1.0 python3-gi
"""

import ctypes
import itertools
import signal
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PR_SET_PDEATHSIG = 1
COPY = Gst.BufferCopyFlags.FLAGS | Gst.BufferCopyFlags.MEMORY
PAYLOADERS = {"video/x-h264": "rtph264pay", "video/mpeg": "rtpmp4vpay"}


def read(path):
    """The clip's encoded frames (list of Gst.Buffer, in decoding order) and their Gst.Caps."""
    pipeline = Gst.parse_launch(
        "filesrc name=file ! parsebin ! appsink name=sink sync=false wait-on-eos=false"
    )
    pipeline.get_by_name("file").props.location = path
    sink, buffers, caps = pipeline.get_by_name("sink"), [], None
    pipeline.set_state(Gst.State.PLAYING)
    pipeline.get_bus().timed_pop_filtered(
        Gst.CLOCK_TIME_NONE, Gst.MessageType.EOS | Gst.MessageType.ERROR
    )
    while True:
        sample = sink.emit("try-pull-sample", 0)
        if sample is None:
            break
        caps = caps or sample.get_caps()
        buffers.append(sample.get_buffer())
    pipeline.set_state(Gst.State.NULL)
    if not buffers or caps.get_structure(0).get_name() not in PAYLOADERS:
        sys.exit(f"{path}: neither H.264 nor MPEG-4 that GStreamer can read.")
    return buffers, caps


class Camera(GstRtspServer.RTSPMediaFactory):
    def __init__(self, buffers, caps):
        super().__init__()
        self.buffers, self.caps = buffers, caps
        self.lap = sum(buffer.duration for buffer in buffers)  # ns
        payloader = PAYLOADERS[caps.get_structure(0).get_name()]
        self.set_launch(f"( appsrc name=source format=time ! {payloader} name=pay0 )")

    def do_configure(self, media):
        source = media.get_element().get_by_name_recurse_up("source")
        source.props.caps = self.caps
        source.connect("need-data", self.push, self.endless())

    def endless(self):
        for lap in itertools.count():
            for buffer in self.buffers:
                # copy() would return the same buffer
                again = buffer.copy_region(COPY, 0, buffer.get_size())
                again.pts, again.duration = buffer.pts + lap * self.lap, buffer.duration
                again.dts = (
                    buffer.dts if buffer.dts == Gst.CLOCK_TIME_NONE else buffer.dts + lap * self.lap
                )
                yield again

    @staticmethod
    def push(source, _, frames):
        source.emit("push-buffer", next(frames))


def main(port, path):
    # reaches a stopped process, too
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/demo", Camera(*read(path)))
    if not server.attach():
        sys.exit(f"{port}: the port is in use.")
    print("ready", server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
