"""Runs videos and cameras through the NPU: reads frames, feeds the pool, shows or saves what comes out, reports FPS.

    python main.py                                # the settings below
    python main.py street.mp4 --threads 9 --save out.mp4
    python main.py 0 /dev/video2 rtsp://192.168.1.20/live street.mp4       # several streams on one pool
"""
import argparse
import glob
import importlib.util
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import cv2
from tqdm import tqdm

from func import myFunc
from rknnmodel import InputError
from rknnpool import rknnPoolExecutor
from streams import Stream, say

# --------------------------------------------------------------------------------------------------------------------
modelPath = "models/yolov5n_emoji.rknn"  # the model; on a machine without an NPU the .onnx beside it runs instead
# a file, a camera's number, or a URL; or a list of them, each a stream of its own
cap = "models/demo.mp4"
TPEs = None                              # contexts, and threads; None: two per NPU core
bigCores = True                          # stay on the fast CPU cores, where a SoC has two kinds
# --------------------------------------------------------------------------------------------------------------------


MOST_THREADS = 64
PATIENCE = 10  # seconds without a frame, after Ctrl-C, that make a context hang
CPUS = "/sys/devices/system/cpu"
# Ctrl-C, kill and systemd's stop, a closed terminal
ENDINGS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def beside_main(path):
    """The path, or where there is no such file, the one beside main.py: the settings hold from any folder."""
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), path)
    return beside if os.path.exists(beside) and not os.path.exists(path) else path


def load_func(path):
    """myFunc of the Python file at `path`. Raises InputError where there is none."""
    if not os.path.isfile(path):
        raise InputError(f"--func {path}: no such file.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise InputError(f"--func {path}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"--func {path}: line {error.lineno} is not Python: {error.msg}.") from None
    except (ImportError, ValueError) as error:  # ValueError: NUL bytes
        raise InputError(f"--func {path}: {error}.") from None
    if not callable(getattr(module, "myFunc", None)):
        raise InputError(f"--func {path}: defines no function myFunc(rknn_lite, IMG).")
    return module.myFunc


def fast_cpus():
    """Numbers of this machine's fast CPU cores, a set. Empty where the kernel does not tell, for all are alike then."""
    capacities = {}
    for path in glob.glob(os.path.join(CPUS, "cpu[0-9]*", "cpu_capacity")):
        with open(path) as file:
            capacities[int(os.path.basename(os.path.dirname(path))[3:])] = int(file.read())
    # Fast clusters may differ by a few percent (RK3588's two of A76 clock differently), slow ones have half of that or
    # less.
    return {cpu for cpu, capacity in capacities.items() if capacity > 0.75 * max(capacities.values())}


def stay_on_big_cores():
    """Bind this thread, and all that it will start, to the fast CPU cores among those it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, fast_cpus() & os.sched_getaffinity(0) or os.sched_getaffinity(0))


def can_show():
    """Whether a window can be opened. Tried in a process of its own, for Qt ends the process where it cannot."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return False
    # OpenCV's Qt has no fonts, needs none, and says so again and again
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
    attempt = [sys.executable, "-c", "import cv2; cv2.namedWindow('try'); cv2.destroyAllWindows()"]
    return subprocess.run(attempt, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def numbered(path, number, count):
    """--save's file for one stream of several: out.mp4 becomes out_1.mp4, out_2.mp4, ..."""
    stem, extension = os.path.splitext(path)
    return f"{stem}_{number}{extension}" if count > 1 else path


def open_streams(sources, save):
    """The Streams of what can be opened, and whether that is all. Raises InputError where it is nothing."""
    streams, failed = [], []
    saved = [numbered(save, number, len(sources)) for number in range(1, len(sources) + 1)] if save else []
    for path in saved:
        for source in sources:
            source = unquote(urlparse(source).path) if source.startswith("file://") else source
            if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
                raise InputError(f"--save {path}: is the video that is read.")
    for number, source in enumerate(sources, 1):
        name = f"{source} ({sources[:number].count(source)})" if sources.count(source) > 1 else source
        try:
            streams.append(Stream(source, save and numbered(save, number, len(sources)), name))
        except InputError as error:
            failed.append(str(error))
    if not streams:
        raise InputError("\n".join(failed))
    for said in failed:
        say(said, sys.stderr)
    return streams, not failed


def is_closed(name):
    """Whether the person has closed the window. Once the last one is closed, OpenCV's Qt fails at the question."""
    try:
        return cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1
    except cv2.error:
        return True


def open_window(name, place, frame, several):
    """Open a stream's window: as large as its frames, or of several streams 640 pixels wide, two in a row."""
    cv2.namedWindow(name, (cv2.WINDOW_NORMAL if several else cv2.WINDOW_AUTOSIZE) | cv2.WINDOW_GUI_NORMAL)
    if several:
        height = 640 * frame.shape[0] // frame.shape[1]
        cv2.resizeWindow(name, 640, height)
        cv2.moveWindow(name, place % 2 * 660, place // 2 * (height + 40))


def watch(threads, streams, shown, window):
    """Show frames until all threads have ended. Returns False where none comes for PATIENCE after the streams were
    stopped."""
    count, since, windows, closed = 0, time.perf_counter(), [], []
    while any(thread.is_alive() for thread in threads):
        if count != sum(stream.count for stream in streams) or not all(stream.stop for stream in streams):
            count, since = sum(stream.count for stream in streams), time.perf_counter()
        if time.perf_counter() > since + PATIENCE:
            return False
        try:
            stream, frame = shown.get(timeout=0.1)
        except queue.Empty:
            pass
        else:
            if stream in closed:
                continue
            try:
                if stream not in windows:
                    open_window(stream.name, len(windows), frame, len(streams) > 1)
                    windows.append(stream)
                cv2.imshow(stream.name, frame)
            except (cv2.error, AttributeError):  # the func may return what it likes
                say(f"{stream.name}: what myFunc returns cannot be shown: {type(frame).__name__}.", sys.stderr)
                closed.append(stream)
                continue
        key = window and cv2.waitKey(1)
        for stream in windows:  # all of them, for imshow() would open a closed one again
            if stream not in closed and is_closed(stream.name):
                closed.append(stream)
                stream.stop.append(None)
        if window and key & 0xff in (ord("q"), 27):  # or Esc
            for stream in streams:
                stream.stop.append(None)
    return True


def run(args):
    """Run the sources to their ends. Returns the exit code; raises InputError for bad input where nothing can be
    run."""
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads {args.threads}: at least one is needed.")
    if args.threads is not None and args.threads > MOST_THREADS:
        raise InputError(f"--threads {args.threads}: each is a context, which takes tens of MB of the NPU's memory and, beyond two per core, "
                    f"serves no more frames; {MOST_THREADS} are the most.")
    func = load_func(args.func) if args.func else myFunc
    streams, complete = open_streams(args.sources, args.save)
    window = not args.headless and can_show()
    if not (window or args.headless):
        print("No display: running without a window.", file=sys.stderr)
    try:
        pool = rknnPoolExecutor(args.model, args.threads, func)
    except RuntimeError as error:  # its message is a sentence
        raise InputError(f"{error}.") from None

    signals = []

    def end(number, _):
        # Reading stops, and what was read comes out. An exception, raised in the middle of a lock's own code, could
        # break that lock.
        signals.append(number)
        for stream in streams:
            stream.stop.append(number)
        signal.signal(number, signal.SIG_DFL)  # asked again, it ends at once

    for number in ENDINGS:  # until here nothing is lost when they end the program at once, even in the middle of OpenCV
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, end)
    shown, threads, bars = queue.Queue(len(streams)), [], []
    for place, stream in enumerate(streams):
        name = stream.name if len(streams) > 1 else None
        bars.append(tqdm(total=stream.total or None, unit=" frames", desc=name, position=place, disable=None))
        arguments = pool, bars[-1], f"{name}: " if name else "", shown if window else None
        threads.append(threading.Thread(target=stream.run, args=arguments, daemon=True))
        threads[-1].start()
    finished = watch(threads, streams, shown, window)
    try:
        pool.release(timeout=None if finished else 0)
    except TimeoutError as error:
        say(f"{error}.", sys.stderr)
    for bar in bars:
        bar.close()
    for stream in streams:
        stream.close()
        if stream.count:
            say(stream.summary())
    if len(streams) > 1:
        count = sum(stream.count for stream in streams)
        seconds = max(stream.ended or time.perf_counter() for stream in streams) - min(stream.began
                                                                                       for stream in streams)
        say(f"in all: {count} frames in {seconds:.1f} s, {count / seconds:.1f} FPS on average")
    elif streams[0].error:
        say(streams[0].error, sys.stderr)
    codes = [stream.code for stream in streams]
    code = 1 if 1 in codes else 2 if 2 in codes or not complete else 128 + signals[0] if signals else 0
    if not finished:
        sys.stdout.flush()
        os._exit(code)  # for Python would wait for the thread whose context hangs
    return code


def main():
    for name in ("stdout", "stderr"):  # closed by the shell (>&-)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="source",
                        default=cap if isinstance(cap, (list, tuple)) else [cap],
                        help=f"files, camera numbers or URLs (default: {cap})")
    parser.add_argument("--model", default=modelPath, help=f"the .rknn (default: {modelPath})")
    parser.add_argument("--threads", type=int, default=TPEs, help="contexts, and threads (default: two per NPU core)")
    parser.add_argument("--func", help="Python file whose myFunc(rknn_lite, IMG) takes the place of func.py's")
    parser.add_argument("--save",
                        help="write the result to this video file (.mp4, .avi, .mkv), numbered where there are several sources")
    parser.add_argument("--headless", action="store_true", help="open no window")
    cv2.setNumThreads(1)  # the pool's threads are the parallelism
    if bigCores:
        stay_on_big_cores()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    args = parser.parse_args()
    args.sources, args.model = [beside_main(str(source)) for source in args.sources], beside_main(args.model)
    try:
        sys.exit(run(args))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
