"""A stream is one source on its way through the pool: opened, read, brought back when it goes away, counted, saved.

    stream = Stream("rtsp://192.168.1.20/live")
    stream.run(pool, tqdm())
    print(stream.summary())
"""
import os
import sys
import time
import traceback

import cv2
from tqdm import tqdm

from results.video import Saver
from rknnmodel import InputError, ModelError

# seconds between two attempts to open a live source that went away; the last one for ever
RETRIES = 1, 2, 4, 8, 15, 30
TIMEOUT = 5                     # seconds after which a URL that sends nothing counts as gone

if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what goes wrong is said here, in a sentence
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def say(text, file=None):
    """Print a line without disturbing the progress bars. Who no longer reads (`| head`) does not end the run."""
    try:
        tqdm.write(text, file=file or sys.stdout)
        (file or sys.stdout).flush()
    except OSError:
        setattr(sys, "stderr" if file else "stdout", open(os.devnull, "w"))


def open_source(source):
    """The cv2.VideoCapture of a file, camera number or URL. Raises InputError where it does not open."""
    if str(source).isdigit():
        capture = cv2.VideoCapture(int(source))
        if not capture.isOpened():
            raise InputError(f"{source}: there is no camera of that number, or it is in use.")
        return capture
    if "://" not in str(source):
        if os.path.isdir(source):
            raise InputError(f"{source}: is a directory, not a video.")
        if not os.path.exists(source):
            raise InputError(f"{source}: no such file.")
        capture = cv2.VideoCapture(str(source))
    else:
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * TIMEOUT]
        capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, timeouts)
        if not capture.isOpened():
            raise InputError(f"{source}: cannot be reached, or sends no video.")
    if not capture.isOpened():
        raise InputError(f"{source}: not a video that OpenCV can read.")
    return capture


def frames_of(capture):
    """The capture's frames, until there are no more."""
    while True:
        ok, frame = capture.read()
        if not ok:
            return
        yield frame


class Stream:
    """One source, and what becomes of its frames.

    source: a file, a camera's number, or a URL; save: the file that gets the results, or None; name: what it is called
    in messages, the source itself by default. Raises InputError where source or save does not open.
    A camera or broadcast is `live`: frames that cannot be served are dropped, and when it goes away it is tried again.
    """

    def __init__(self, source, save=None, name=None):
        self.name = name or source
        self.source, self.capture = source, open_source(source)
        self.total = max(0, int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        # A file, even at a URL, has a number of frames.
        self.live = str(source).isdigit() or str(source).startswith("/dev/") or "://" in str(source) and not self.total
        fps = self.capture.get(cv2.CAP_PROP_FPS)
        # RTSP may call its clock of 90,000 the rate
        self.saver = Saver(save, fps if 1 <= fps <= 240 else 30) if save else None
        self.stop = []  # holds something once no more shall be read
        self.count = self.dropped = self.code = 0
        self.error = None  # why it failed: a sentence, or a traceback
        self.began, self.ended = time.perf_counter(), None

    def frames(self):
        """The source's frames until it ends or is stopped. A live source that went away is opened again."""
        while not self.stop:
            asked = time.perf_counter()
            ok, frame = self.capture.read()
            # OpenCV hands out two leftovers of a silent RTSP source, and lets a timeout pass before each.
            silent = "://" in self.source and time.perf_counter() > asked + 0.9 * TIMEOUT
            if self.live and (silent or not ok) and not self.stop:
                ok, frame = self.come_back()
            if not ok:
                return
            yield frame

    def come_back(self):
        gone, attempt = time.perf_counter(), 0
        say(f"{self.name}: went away, trying again.", sys.stderr)
        while not self.stop:
            again = time.perf_counter() + RETRIES[min(attempt, len(RETRIES) - 1)]
            while not self.stop and time.perf_counter() < again:
                time.sleep(0.1)
            attempt += 1
            try:
                self.capture.release()
                self.capture = open_source(self.source)
            except InputError:
                continue
            ok, frame = self.capture.read()
            if ok:
                say(f"{self.name}: came back after {time.perf_counter() - gone:.0f} s.", sys.stderr)
                return ok, frame
        return False, None

    def run(self, pool, bar, title="", shown=None):
        """Serve the stream to its end; `code` is then the exit code, 0 where nothing failed.

        bar: a tqdm bar; title: leads the lines of this stream; shown: a queue that gets (stream, result), or None.
        """
        self.began = lap = time.perf_counter()
        results = pool.map(self.frames(), live=self.live)
        try:
            for frame in results:
                if self.saver:
                    self.saver.write(frame)
                self.count += 1
                bar.update()
                if self.count % 30 == 0:
                    now = time.perf_counter()
                    say(f"{title}FPS over the last 30 frames: {30 / (now - lap):.1f}")
                    lap = now
                if shown:
                    shown.put((self, frame))
            if self.count == 0 and not self.stop:
                raise InputError(f"{self.name}: no frame could be read.")
            if self.count < self.total and not self.stop:
                say(f"{self.name}: ended after {self.count} of {self.total} frames.", sys.stderr)
        except InputError as error:
            self.code, self.error = 2, str(error)
        except ModelError as error:
            self.code, self.error = 2, f"{pool.rknnModel}: {error}."
        except BaseException:  # an error in the user's func: its author wants the traceback, and the other streams go on
            self.code, self.error = 1, traceback.format_exc().rstrip()
        finally:
            self.ended = time.perf_counter()
            # a stream alone has its error said last, when the runtime has said all it has to say
            if title and self.error:
                say(self.error, sys.stderr)
            self.stop.append(None)
            self.close()
            results.close()  # which waits for the thread that reads
            self.capture.release()
            self.dropped = results.dropped

    def close(self):
        """Close the saved file. May be called again."""
        if self.saver:
            self.saver.close()

    def summary(self):
        seconds = (self.ended or time.perf_counter()) - self.began  # not ended: its context hangs
        dropped = f", {self.dropped} dropped" if self.live else ""
        return f"{self.name}: {self.count} frames in {seconds:.1f} s, {self.count / seconds:.1f} FPS on average{dropped}"
