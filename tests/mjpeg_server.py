"""A network camera: sends a video file over HTTP as Motion JPEG, in a loop, at its own frame rate.

    python tests/mjpeg_server.py PORT FILE    # http://127.0.0.1:PORT/demo.mjpg

Prints "ready PORT" when it accepts connections (PORT 0: any free port). Each client gets the clip
from its first frame on; slow clients miss frames. Ends with the thread that started it.
"""

import ctypes
import http.server
import signal
import sys
import time

import cv2

PR_SET_PDEATHSIG = 1


def read(path):
    """The clip's frames, a list of JPEGs, and its rate in frames a second."""
    video, jpegs = cv2.VideoCapture(path), []
    while True:
        ok, frame = video.read()
        if not ok:
            break
        jpegs.append(cv2.imencode(".jpg", frame)[1].tobytes())
    if not jpegs:
        sys.exit(f"{path}: OpenCV cannot read it.")
    return jpegs, video.get(cv2.CAP_PROP_FPS)


class Camera(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        began, number = time.monotonic(), 0
        try:
            while True:
                jpeg = self.server.jpegs[number % len(self.server.jpegs)]
                head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(
                    jpeg
                )
                self.wfile.write(head + jpeg + b"\r\n")
                number = max(number + 1, int((time.monotonic() - began) * self.server.fps))
                time.sleep(max(0, began + number / self.server.fps - time.monotonic()))
        except ConnectionError:  # the client has gone
            pass

    def log_message(self, *_):
        pass


def main(port, path):
    # reaches a stopped process, too
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    jpegs, fps = read(path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Camera) as server:
        server.jpegs, server.fps = jpegs, fps
        print("ready", server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
