"""Shows each stream in a window of its own.

    window = Window(streams)
    window.write(result)     # from any thread; the newest result of each stream is shown
    window.step(0.05)        # from the main thread only: OpenCV's windows belong to one thread
"""
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import cv2

KEYS = ord("q"), 27  # 27: Esc
WIDTH = 640          # of each window in pixels, if there are several
SCREEN = 1920, 1080  # frames that are larger, such as photos, are shown at most in FITTING
FITTING = 1280, 720


def can_show() -> bool:
    """Whether a window can be opened. Another process tries: Qt ends the process if it cannot."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return False
    # OpenCV's Qt has no fonts, does not need them, and prints a warning about it again and again.
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
    attempt = [sys.executable, "-c", "import cv2; cv2.namedWindow('try'); cv2.destroyAllWindows()"]
    done = subprocess.run(attempt, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


class Window:
    """A sink that keeps each stream's newest result and shows it when there is time.

    Closing a window ends its stream; the key q or Esc ends all streams.
    """

    display = True

    def __init__(self, streams: list[Any]):
        self.streams = streams
        self.newest: dict[Any, Any] = {}  # stream: result
        self.came = threading.Condition()
        self.opened: list[Any] = []  # streams that have, or had, a window
        self.closed: list[Any] = []  # streams whose window was closed or cannot be shown
        self.key = -1                # pressed in the last step; -1: none
        self.dismissed = False       # whether a key ended all streams

    def write(self, result: Any) -> None:
        if result.error is None:
            with self.came:
                result.stream.unshown += result.stream in self.newest
                self.newest[result.stream] = result
                self.came.notify()

    def step(self, seconds: float) -> None:
        """Wait up to `seconds` for a new result, show it, and look for keys and closed windows."""
        with self.came:
            self.came.wait_for(lambda: self.newest, seconds)
            newest, self.newest = self.newest, {}
        for stream, result in newest.items():
            if stream not in self.closed:
                self.show(stream, result.picture)
        if not self.opened:
            time.sleep(0.001)
            return
        self.key = cv2.waitKey(1)
        for stream in self.opened:  # all of them: imshow() would open a closed window again
            if stream not in self.closed and is_closed(stream.name):
                self.closed.append(stream)
                stream.stop.set()
        if self.key != -1 and self.key & 0xff in KEYS:
            for stream in self.streams:
                stream.stop.set()
            self.dismissed = True

    @property
    def stays(self) -> bool:
        """Whether a window is open, and no key has ended the streams or was just pressed."""
        return self.key == -1 and not self.dismissed and any(
            stream not in self.closed for stream in self.opened)

    def show(self, stream: Any, picture: Any) -> None:
        try:
            if stream not in self.opened:
                open_window(stream.name, len(self.opened), picture, len(self.streams) > 1)
                self.opened.append(stream)
            cv2.imshow(stream.name, picture)
        except (cv2.error, AttributeError, IndexError):  # myFunc may return anything
            stream.print_once(f"{stream.name}: the window cannot show what myFunc returned, a "
                              f"{type(picture).__name__}.")
            self.closed.append(stream)

    def close(self) -> None:
        try:
            cv2.destroyAllWindows()
        except cv2.error:
            pass


def is_closed(name: str) -> bool:
    """Whether the user has closed this window. OpenCV's Qt fails if the last one is closed."""
    try:
        return cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1
    except cv2.error:
        return True


def open_window(name: str, index: int, picture: Any, several: bool) -> None:
    """Open a stream's window, as large as its frames if these fit on a screen; if there are
    several, two in a row."""
    height, width = picture.shape[:2]
    scale = 1.0
    if several:
        scale = WIDTH / width
    elif width > SCREEN[0] or height > SCREEN[1]:
        scale = min(FITTING[0] / width, FITTING[1] / height)
    size = cv2.WINDOW_AUTOSIZE if scale == 1 else cv2.WINDOW_NORMAL
    cv2.namedWindow(name, size | cv2.WINDOW_GUI_NORMAL)
    if size == cv2.WINDOW_NORMAL:
        height = int(scale * height)
        cv2.resizeWindow(name, int(scale * width), height)
    if several:
        cv2.moveWindow(name, index % 2 * (WIDTH + 20), index // 2 * (height + 40))
