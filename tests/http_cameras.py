"""Cameras that send JPEGs over HTTP, as cheap cameras and small firmwares do.

http_camera(answer) is a server in this process. `answer(request)` writes one answer; it is called
for each request, in a thread of its own. http_cameras.CAMERAS maps names to such functions.
"""

import contextlib
import http.server
import threading

import cv2
import numpy as np

SIZE = 48, 64  # rows, columns
END = threading.Event()  # of a test: wakes cameras that wait between two pictures


def picture(number):
    """An array whose grey level is the number."""
    return np.full((*SIZE, 3), number, np.uint8)


def jpeg(number):
    """A JPEG whose grey level is the number, with a small JPEG in its EXIF data."""
    whole, small = (
        cv2.imencode(".jpg", picture(n)[:side])[1].tobytes()
        for n, side in ((number, None), (200, 8))
    )
    exif = b"Exif\0\0" + small
    return whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + whole[2:]


@contextlib.contextmanager
def http_camera(answer, tls=None):
    """The URL of a camera whose every answer is written by `answer(request)`, a request handler of
    http.server. request.number is the number of the request, from 0. tls: the SSLContext of a
    camera with https."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.number = self.server.asked
            self.server.asked += 1
            with contextlib.suppress(OSError):  # the client has gone
                answer(self)

        def send(self, data, kind="image/jpeg", status=200, **headers):
            """Send the head of an answer and the first data."""
            self.send_response(status)
            if kind:
                self.send_header("Content-Type", kind)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    END.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.daemon_threads, server.block_on_close = 0, True, False
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/live"
        END.set()
        server.shutdown()


# ---- Motion JPEG ----

MULTIPART = "multipart/x-mixed-replace; boundary=frame"


def motion(head, tail=b"\r\n", kind=MULTIPART, first=b"", interval=0.01, cut=lambda data: data):
    """A camera that sends pictures 0, 1, 2, ... without end, each between head and tail."""

    def answer(request):
        request.send(first, kind)
        number = 0
        while not END.wait(interval):
            data = jpeg(number % 100)
            length = str(len(data)).encode()
            request.wfile.write(head.replace(b"LENGTH", length) + cut(data) + tail)
            number += 1

    return answer


def in_chunks(request):
    """Motion JPEG in chunks of HTTP/1.1, which do not end where a picture does."""
    request.protocol_version = "HTTP/1.1"
    request.send(b"", MULTIPART, Transfer_Encoding="chunked")
    data = b"".join(
        b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(n) + b"\r\n" for n in range(20)
    )
    for start in range(0, len(data), 700):
        part = data[start : start + 700]
        request.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
    END.wait()


TYPE, LENGTH = b"--frame\r\nContent-Type: image/jpeg\r\n", b"Content-Length: LENGTH\r\n"
MOTION_JPEG = {
    "usual": motion(TYPE + LENGTH + b"\r\n"),
    "image/jpg": motion(b"--frame\r\nContent-Type: image/jpg\r\n" + LENGTH + b"\r\n"),
    "no type": motion(b"--frame\r\n" + LENGTH + b"\r\n"),
    "no length": motion(TYPE + b"\r\n"),
    "wrong length": motion(TYPE + b"Content-Length: 7\r\n\r\n"),
    "no head": motion(b"--frame\r\n\r\n"),
    "small letters": motion(b"--frame\r\ncontent-type:image/jpeg\r\n\r\n", kind=MULTIPART.upper()),
    "boundary behind": motion(TYPE[9:] + LENGTH + b"\r\n", b"\r\n--frame\r\n"),
    "boundary quoted": motion(b"--a b\r\n\r\n", kind='multipart/x-mixed-replace;boundary="a b"'),
    "boundary with dashes": motion(TYPE + b"\r\n", kind=MULTIPART.replace("=", "=--")),
    "boundary not told": motion(TYPE + b"\r\n", kind="multipart/x-mixed-replace"),
    "line feeds": motion(b"--frame\nContent-Type: image/jpeg\n\n", b"\n"),
    "preamble": motion(TYPE + b"\r\n", first=b"This is a camera.\r\n\r\n"),
    "answer without type": motion(TYPE + b"\r\n", kind=None),
    "neither type nor dashes": motion(TYPE[2:] + b"\r\n", kind=None),
    "answer of bytes": motion(TYPE + b"\r\n", kind="application/octet-stream"),
    "bare pictures": motion(b"", b"", kind="video/x-motion-jpeg"),
    "in chunks": in_chunks,
}
