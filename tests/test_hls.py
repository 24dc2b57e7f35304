"""Live HLS streams."""

import http.server
import threading

import cv2
import numpy as np
import pytest

import sources
import streams
from sources.http_pictures import open_pictures
from sources.timeouts import Timeouts


class Playlist(http.server.BaseHTTPRequestHandler):
    """A live HLS stream of segments of 10 pictures; server.lists are its playlists, one after the
    other."""

    def do_GET(self):
        kind = "application/vnd.apple.mpegurl"
        if self.path.endswith("ts"):
            data, kind = self.server.segments[int(self.path[1:-3])], "video/mp2t"
        elif self.path.startswith("/master"):
            data = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=90000\nlow/live.m3u8?id=7\n"
        else:
            lists = self.server.lists
            data = (lists.pop(0) if len(lists) > 1 else lists[0]).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hls(tmp_path):
    """hls(playlists) -> URL of a stream of three segments of 1 s."""
    segments = []
    for number in range(3):
        path = str(tmp_path / f"{number}.ts")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MPG2"), 10, (64, 48))
        for _ in range(10):
            writer.write(np.full((48, 64, 3), 20 + 40 * number, np.uint8))
        writer.release()
        segments.append(open(path, "rb").read())
    servers = []

    def begin(*playlists):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Playlist)
        server.lists, server.segments = list(playlists), segments
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def playlist(count, target=1, end=False, start=0, seconds=1.0):
    """A list of `count` segments from number `start` on. target: its #EXT-X-TARGETDURATION."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{target}"]
    lines.append(f"#EXT-X-MEDIA-SEQUENCE:{start}")
    for number in range(start, start + count):
        lines += ["#EXT-X-DISCONTINUITY", f"#EXTINF:{seconds},", f"{number % 3}.ts"]
    return "\n".join(lines + ["#EXT-X-ENDLIST"] * end) + "\n"


@pytest.mark.skipif(
    tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 8),
    reason="FFmpeg of OpenCV 4.6 analyses 5 s; this stream has 3 s",
)
@pytest.mark.parametrize("path", ["live.m3u8", "playlist?id=7"])
def test_the_read_timeout_of_hls_follows_from_the_length_of_its_segments(hls, path):
    for seconds in (6, 10):
        timeouts = Timeouts()
        source = sources.open_source(hls(playlist(3, seconds)) + path, timeouts=timeouts)
        assert source.live and source.grab() and timeouts.read_timeout() == 3 * seconds
        source.release()


def test_a_live_hls_stream_that_ends_is_not_played_again(hls, printed, monkeypatch):
    monkeypatch.setattr("sources.connection.PAUSES", (0.01,))
    url = hls(*[playlist(3)] * 3, playlist(3, end=True)) + "live.m3u8"
    stream = streams.Stream(url)
    assert stream.live
    numbers = [round((result.frame.mean() - 20) / 40) for result in stream.frames()]
    assert numbers == sorted(numbers) and len(numbers) <= 30
    assert [line.split(": ")[1] for line in printed] == [
        "disconnected, trying again.",
        "has ended.",
    ]


@pytest.mark.parametrize("path", ["live.m3u8", "playlist?id=7", "master.m3u8"])
def test_the_longest_segment_of_a_playlist_counts(hls, path):
    timeouts = Timeouts()
    assert open_pictures(hls(playlist(3, 1, seconds=6.5)) + path, timeouts) is None
    assert timeouts.segment == 6.5


@pytest.mark.parametrize("path", ["live.m3u8", "master.m3u8"])
@pytest.mark.parametrize(
    "starts, opens",
    [
        ([10, 10, 10], [False, False, False]),  # the encoder has stopped
        ([10, 11, 12, 13], [False, False, False, True]),
        ([10, 15], [False, True]),
        ([10, 0], [False, True]),  # the encoder was started again
    ],
)
def test_an_interrupted_stream_is_opened_again_when_it_begins_with_new_segments(
    hls, path, starts, opens
):
    timeouts, opened = Timeouts(), []
    url = hls(playlist(3, start=10), *[playlist(3, start=start) for start in starts]) + path
    assert open_pictures(url, timeouts) is None
    timeouts.note_attempt(0.1, opened=True)
    for _ in starts:
        try:
            opened.append(open_pictures(url, timeouts) is None)
        except sources.SourceUnavailable:
            opened.append(False)
    assert opened == opens
