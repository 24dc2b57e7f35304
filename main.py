"""Runs a video or camera through the NPU: reads frames, feeds the pool, shows or saves what comes out, reports FPS.

    python main.py                                # the settings below
    python main.py street.mp4 --threads 9 --save out.mp4
"""
import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # what goes wrong is said below, in a sentence
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2  # noqa: E402
from tqdm import tqdm  # noqa: E402

from func import ModelError, myFunc  # noqa: E402
from rknnpool import rknnPoolExecutor  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------------
modelPath = "models/yolov5n_emoji.rknn"  # the model; on a machine without an NPU the .onnx beside it runs instead
cap = "models/demo.mp4"                  # a file, a camera's number, or a URL
TPEs = None                              # contexts, and threads; None: two per NPU core
# ---------------------------------------------------------------------------------------------------------------------------


# Ctrl-C, kill and systemd's stop, a closed terminal
ENDINGS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Sorry(Exception):
    """Bad input: the message is one sentence for stderr, the exit code 2."""


def beside_main(path):
    """The path, or where there is no such file, the one beside main.py: the settings hold from any folder."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), path)
    return beside if os.path.exists(beside) and not os.path.exists(path) else path


def load_func(path):
    """myFunc of the Python file at `path`. Raises Sorry where there is none."""
    if not os.path.isfile(path):
        raise Sorry(f"--func {path}: no such file.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise Sorry(f"--func {path}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise Sorry(f"--func {path}: line {error.lineno} is not Python: {error.msg}.") from None
    except (ImportError, ValueError) as error:  # ValueError: NUL bytes
        raise Sorry(f"--func {path}: {error}.") from None
    if not callable(getattr(module, "myFunc", None)):
        raise Sorry(f"--func {path}: defines no function myFunc(rknn_lite, IMG).")
    return module.myFunc


def open_source(source):
    """The cv2.VideoCapture of a file, camera number or URL. Raises Sorry where it does not open."""
    if str(source).isdigit():
        capture = cv2.VideoCapture(int(source))
        if not capture.isOpened():
            raise Sorry(f"{source}: there is no camera of that number, or it is in use.")
        return capture
    if "://" not in str(source):
        if os.path.isdir(source):
            raise Sorry(f"{source}: is a directory, not a video.")
        if not os.path.exists(source):
            raise Sorry(f"{source}: no such file.")
    capture = cv2.VideoCapture(str(source))
    if not capture.isOpened():
        raise Sorry(f"{source}: not a video that OpenCV can read.")
    return capture


def frames_of(capture, ended=()):
    """The capture's frames, until there are no more, or `ended` (a container) holds something."""
    while not ended:
        ok, frame = capture.read()
        if not ok:
            return
        yield frame


def can_show():
    """Whether a window can be opened. Tried in a process of its own, for Qt ends the process where it cannot."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return False
    attempt = [sys.executable, "-c", "import cv2; cv2.namedWindow('try'); cv2.destroyAllWindows()"]
    return subprocess.run(attempt, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


class Saver:
    """Writes frames to a video file, opened with the first one's size."""

    def __init__(self, path, fps):
        self.path, self.fps, self.writer = path, fps, None
        if os.path.splitext(path)[1].lower() not in (".mp4", ".avi", ".mkv"):
            raise Sorry(f"--save {path}: the name must end in .mp4, .avi or .mkv.")
        new = not os.path.lexists(path)
        try:
            open(path, "ab").close()
        except OSError as error:
            raise Sorry(f"--save {path}: cannot be written ({error.strerror}).") from None
        if new:
            os.remove(path)  # until there is a frame

    def write(self, frame):
        if getattr(frame, "dtype", None) != "uint8" or frame.ndim not in (2, 3) or frame.shape[2:] not in ((), (1,), (3,), (4,)):
            what = f"array of {frame.dtype} {frame.shape}" if hasattr(frame, "dtype") else type(frame).__name__
            raise Sorry(f"--save {self.path}: myFunc returned a {what}, and only frames of uint8, (h, w, 3), can be saved.")
        if frame.shape[2:] != (3,):
            frame = cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR if frame.shape[2:] == (4,) else cv2.COLOR_GRAY2BGR)
        if self.writer is None:
            self.size = frame.shape[1::-1]
            code = "MJPG" if self.path.lower().endswith(".avi") else "mp4v"
            self.writer = cv2.VideoWriter(self.path, cv2.VideoWriter_fourcc(*code), self.fps, self.size)
            if not self.writer.isOpened():
                raise Sorry(f"--save {self.path}: OpenCV cannot write a video of {self.size[0]}x{self.size[1]} pixels there.")
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        self.writer.write(frame)

    def close(self):
        if self.writer is not None:
            self.writer.release()


def show(name, frame):
    """Show a frame; returns False once the person at the window has had enough (q, Esc, or the window closed)."""
    cv2.imshow(name, frame)
    return cv2.waitKey(1) & 0xff not in (ord("q"), 27) and cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) >= 1


def run(args):
    """Run one source to its end. Returns the exit code; raises Sorry for bad input, after what was done is saved and counted."""
    if args.threads is not None and args.threads < 1:
        raise Sorry(f"--threads {args.threads}: at least one is needed.")
    func = load_func(args.func) if args.func else myFunc
    capture = open_source(args.source)
    source = unquote(urlparse(args.source).path) if args.source.startswith("file://") else args.source
    if args.save and os.path.exists(args.save) and os.path.exists(source) and os.path.samefile(args.save, source):
        raise Sorry(f"--save {args.save}: is the video that is read.")
    saver = Saver(args.save, capture.get(cv2.CAP_PROP_FPS) or 30) if args.save else None
    window = not args.headless and can_show()
    if not (window or args.headless):
        print("No display: running without a window.", file=sys.stderr)
    try:
        pool = rknnPoolExecutor(args.model, args.threads, func)
    except RuntimeError as error:  # its message is a sentence
        raise Sorry(f"{error}.") from None

    ended = []  # the signal that did it

    def end(number, _):
        # Reading stops, and what was read comes out. An exception, raised in the middle of a lock's own code, could break that lock.
        ended.append(number)
        signal.signal(number, signal.SIG_DFL)  # asked again, it ends at once, for a context may hang

    for number in ENDINGS:  # until here nothing is lost when they end the program at once, even in the middle of OpenCV
        signal.signal(number, end)
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    count = 0
    began = lap = time.perf_counter()
    with tqdm(total=total if total > 0 else None, unit=" frames", disable=None) as bar:
        try:
            with pool:
                for frame in pool.map(frames_of(capture, ended)):
                    count += 1
                    bar.update()
                    if saver:
                        saver.write(frame)
                    if count % 30 == 0:
                        now = time.perf_counter()
                        bar.write(f"FPS over the last 30 frames: {30 / (now - lap):.1f}")
                        lap = now
                    if window and not show(str(args.source), frame):
                        break
                else:
                    if count < total and not ended:
                        bar.write(f"{args.source}: ended after {count} of {total} frames.", file=sys.stderr)
        except ModelError as error:
            raise Sorry(f"{args.model}: {error}.") from None
        finally:
            seconds = time.perf_counter() - began
            capture.release()
            if saver:
                saver.close()
            bar.close()
            if count:
                print(f"{args.source}: {count} frames in {seconds:.1f} s, {count / seconds:.1f} FPS on average")
    if count == 0 and not ended:
        raise Sorry(f"{args.source}: no frame could be read.")
    return 128 + ended[0] if ended else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=cap, help=f"file, camera number or URL (default: {cap})")
    parser.add_argument("--model", default=modelPath, help=f"the .rknn (default: {modelPath})")
    parser.add_argument("--threads", type=int, default=TPEs, help="contexts, and threads (default: two per NPU core)")
    parser.add_argument("--func", help="Python file whose myFunc(rknn_lite, IMG) takes the place of func.py's")
    parser.add_argument("--save", help="write the result to this video file (.mp4, .avi, .mkv)")
    parser.add_argument("--headless", action="store_true", help="open no window")
    cv2.setNumThreads(1)  # the pool's threads are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    args = parser.parse_args()
    args.source, args.model = beside_main(str(args.source)), beside_main(args.model)
    try:
        sys.exit(run(args))
    except Sorry as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
