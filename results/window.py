"""Shows the streams, each in a window of its own. OpenCV's windows belong to one thread: main.py's, which calls step().

    window = Window(streams)
    window.write(result)     # from any thread; shown is the newest
    window.step(0.05)
"""
import os
import subprocess
import sys
import threading
import time
from typing import Any, List

import cv2

KEYS = ord("q"), 27  # or Esc


def can_show() -> bool:
    """Whether a window can be opened. Tried in a process of its own, for Qt ends the process where it cannot."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return False
    # OpenCV's Qt has no fonts, needs none, and says so again and again
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
    attempt = [sys.executable, "-c", "import cv2; cv2.namedWindow('try'); cv2.destroyAllWindows()"]
    return subprocess.run(attempt, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


class Window:
    """A place that keeps each stream's newest result, and shows it where there is time for that. A window that is
    closed ends its stream, the key q or Esc all of them."""

    def __init__(self, streams: List[Any]):
        self.streams, self.newest = streams, {}
        self.came = threading.Condition()
        self.opened: List[Any] = []  # streams that have a window
        self.closed: List[Any] = []  # that had one, or whose pictures cannot be shown

    def write(self, result: Any) -> None:
        if result.error is None:
            with self.came:
                result.stream.unshown += result.stream in self.newest
                self.newest[result.stream] = result
                self.came.notify()

    def step(self, seconds: float) -> None:
        """Show what is new, waiting so long for it, and look for keys and closed windows."""
        with self.came:
            self.came.wait_for(lambda: self.newest, seconds)
            newest, self.newest = self.newest, {}
        for stream, result in newest.items():
            if stream not in self.closed:
                self.show(stream, result.picture)
        key = cv2.waitKey(1) if self.opened else -1
        if not self.opened:
            time.sleep(0.001)
        for stream in self.opened:  # all of them, for imshow() would open a closed one again
            if stream not in self.closed and is_closed(stream.name):
                self.closed.append(stream)
                stream.stop.set()
        if key != -1 and key & 0xff in KEYS:
            for stream in self.streams:
                stream.stop.set()

    def show(self, stream: Any, picture: Any) -> None:
        try:
            if stream not in self.opened:
                open_window(stream.name, len(self.opened), picture, len(self.streams) > 1)
                self.opened.append(stream)
            cv2.imshow(stream.name, picture)
        except (cv2.error, AttributeError, IndexError):  # the func may return what it likes
            stream.complain(f"{stream.name}: what myFunc returns cannot be shown: {type(picture).__name__}.")
            self.closed.append(stream)

    def close(self) -> None:
        try:
            cv2.destroyAllWindows()
        except cv2.error:
            pass


def is_closed(name: str) -> bool:
    """Whether the person has closed the window. Once the last one is closed, OpenCV's Qt fails at the question."""
    try:
        return cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1
    except cv2.error:
        return True


def open_window(name: str, place: int, picture: Any, several: bool) -> None:
    """Open a stream's window: as large as its frames, or of several streams 640 pixels wide, two in a row."""
    cv2.namedWindow(name, (cv2.WINDOW_NORMAL if several else cv2.WINDOW_AUTOSIZE) | cv2.WINDOW_GUI_NORMAL)
    if several:
        height = 640 * picture.shape[0] // picture.shape[1]
        cv2.resizeWindow(name, 640, height)
        cv2.moveWindow(name, place % 2 * 660, place // 2 * (height + 40))
