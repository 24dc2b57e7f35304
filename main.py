"""Runs videos and cameras through the NPU: frames into the pool, results shown, saved or sent, the rate reported.

    python main.py                                # the settings below
    python main.py street.mp4 --threads 9 --save out.mp4
    python main.py gate=rtsp://192.168.1.20/live yard=0 street.mp4       # several streams on one pool
    python main.py pictures/ --save found/ --json - | jq
"""
import argparse
import glob
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

try:
    import cv2
    from tqdm import tqdm
except ImportError as error:
    print(f"{error}: main.py runs in the environment that README.md's first two commands make, as "
          f"{os.path.join('.venv', 'bin', 'python')} main.py.", file=sys.stderr)
    sys.exit(2)

import funcs
import results
import runtimes
from rknnmodel import InputError
from rknnpool import npu_of, rknnPoolExecutor
from sources import check_reader, parse_camera
from sources.names import hide, name_streams, split_name
from streams import Served, Stream, say, users_traceback

# --------------------------------------------------------------------------------------------------------------------
modelPath = "models/yolov5n_emoji.rknn"  # the model; on a machine without an NPU the .onnx beside it runs instead
# a file, pictures, a camera's number, or a URL; or a list of them, each a stream of its own, or a dict that names them:
# {"gate": "rtsp://192.168.1.20/live", "yard": 0}
cap = "models/demo.mp4"
TPEs = None        # contexts, and threads; None: two per NPU core
bigCores = True    # stay on the fast CPU cores, where a SoC has two kinds
runtime = None     # "wheel", "library", "cpu", or "teflon" (open driver); None: the first that this machine has
conf = None        # least score of a detection; None: what the func file says, 0.25 in ours
iou = None         # of two boxes of one class that overlap more the weaker one goes; None: what the func file says
classes = None     # ["person", "car"]: names or numbers of the only classes that are wanted; None: all
track = False      # whether objects get identities that last
lines = {}         # {"door": ((x1, y1), (x2, y2))}: counts who crosses them, which needs identities
zones = {}         # {"yard": [(x, y), (x, y), (x, y)]}: counts who is in them
save = None        # "out_%Y-%m-%d_%H%M%S.mp4": a video of the results, or a folder of pictures
json = None        # "results.jsonl": a line of JSON for each frame; "-": to stdout
mqtt = None        # "mqtt://host:1883/prefix": a broker that is told
web = None         # "8000" or "HOST:PORT": a page in the browser
fps = None         # the most frames a second that a stream is served; None: all
reader = None      # "opencv" or "av" (PyAV) reads files and URLs; None: OpenCV, on a board pyav-rkmpp where it is there
camera_size = None    # "1920x1080": what USB cameras are asked for; None: what they do by themselves
camera_fps = None     # 30
camera_format = None  # "MJPG"
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


def check(args):
    """Raise InputError for numbers that cannot be."""
    if isinstance(args.threads, int) and args.threads < 1:
        raise InputError(f"--threads {args.threads}: at least one is needed.")
    if isinstance(args.threads, int) and args.threads > MOST_THREADS:
        raise InputError(f"--threads {args.threads}: each is a context, which takes tens of MB of the NPU's memory "
                         f"and, beyond two per core, serves no more frames; {MOST_THREADS} are the most.")
    for flag in ("conf", "iou"):
        value = getattr(args, flag)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--{flag} {value}: a share from 0 to 1 is needed.")
    if args.fps is not None and not 0 < args.fps < float("inf"):
        raise InputError(f"--fps {args.fps}: more than 0 frames a second are needed.")
    args.camera = parse_camera(args.camera_size, args.camera_fps, args.camera_format)
    if check_reader(args.reader) == "av":
        results.part("sources.pyav", "--reader av")


def open_streams(args):
    """The Streams of what can be opened, and whether that is all. Raises InputError where it is nothing."""
    named = [source if isinstance(source, tuple) else split_name(source) for source in args.sources]
    if not named:
        raise InputError("There is no source: cap on top of main.py is empty.")
    names, addresses = name_streams(named), [beside_main(source) for _, source in named]
    saver = results.part("results.video", "--save") if args.save else None
    paths = [saver and saver.place_of(args.save, name, number, len(names), named[number - 1][0] is not None)
             for number, name in enumerate(names, 1)]
    for path in paths if saver else ():
        saver.check_free(path, addresses)

    def open_one(name, address, path):
        try:
            stream = Stream(address, name, args.fps, reader=args.reader, camera=args.camera)
            if saver:
                stream.add(saver.open_saver(path, stream, args.overwrite))
            return stream
        except InputError as error:
            return error

    with ThreadPoolExecutor(len(names)) as together:  # those that do not answer hold up no other
        opened = list(together.map(open_one, names, addresses, paths))
    streams = [stream for stream in opened if isinstance(stream, Stream)]
    failed = [str(error) for error in opened if not isinstance(error, Stream)]
    if not streams:
        raise InputError("\n".join(failed))
    for message in failed:
        say(message, sys.stderr)
    return streams, not failed


def open_pool(args, model, func):
    """The pool. Raises InputError where it does not open."""
    try:
        return rknnPoolExecutor(model, args.threads, Served(func), runtime=runtimes.named(args.runtime))
    except (RuntimeError, ValueError, TypeError) as error:  # its message is a sentence
        raise InputError(f"{error}.") from None


def end_when_asked():
    """Let the signals that end a program only be noted, for watch(). Returns the list of those that came."""
    signals = []

    def end(number, _):
        # An exception, raised in the middle of a lock's own code, could break that lock; and Event.set() takes one,
        # which whatever was interrupted, another signal's handler perhaps, may hold.
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)  # asked again, it ends at once

    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, end)
    return signals


def begin(streams, pool, quiet):
    """Begin to serve the streams, each in a thread of its own. Returns the threads and the progress bars."""
    threads, bars = [], []
    for place, stream in enumerate(streams):
        name = stream.name if len(streams) > 1 else None
        bars.append(tqdm(total=stream.total or None, unit=" frames", desc=name, position=place,
                         disable=True if quiet else None))
        arguments = pool, bars[-1], f"{name}: " if name else "", quiet
        threads.append(threading.Thread(target=stream.run, args=arguments, daemon=True))
        threads[-1].start()
    return threads, bars


def watch(threads, streams, window, signals):
    """Show results until all threads have ended; a signal stops the reading. False: no frame came for PATIENCE after
    the streams were stopped."""
    count, since = 0, time.perf_counter()
    while any(thread.is_alive() for thread in threads):
        for stream in streams if signals else ():
            stream.stop.set()
        served = sum(stream.count + stream.failed for stream in streams)
        if count != served or not all(stream.stop.is_set() for stream in streams):
            count, since = served, time.perf_counter()
        if time.perf_counter() > since + PATIENCE:
            return False
        if window:
            window.step(0.05)
        else:
            next(thread for thread in threads if thread.is_alive() or thread is threads[-1]).join(0.1)
    return True


def report(streams, signals, complete):
    """Print the summaries, and what has to stand last. Returns the exit code."""
    for stream in streams:
        if stream.count or stream.failed:
            say(stream.summary())
    if len(streams) > 1:
        count, began = sum(stream.count for stream in streams), min(stream.began for stream in streams)
        seconds = max(stream.ended or time.perf_counter() for stream in streams) - began
        say(f"in all: {count} frames in {seconds:.1f} s, {count / seconds:.1f} FPS on average")
    last = [stream.error for stream in streams if stream.error and (len(streams) == 1 or stream.code == 3)]
    for message in last[:1]:  # a dead NPU has ended them all, and says it once
        say(message, sys.stderr)
    codes = [stream.code for stream in streams]
    return (1 if 1 in codes else 3 if 3 in codes else 2 if 2 in codes or not complete else
            128 + signals[0] if signals else 0)


def leave(code):
    """End the process without waiting for threads that hang in a context or a source."""
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)


def run(args):
    """Run the sources to their ends. Returns the exit code; raises InputError where nothing can be run."""
    check(args)
    npu = npu_of(runtimes.named(args.runtime))
    model = funcs.look_at(*runtimes.model_for(args.runtime, args.model, npu))
    func = funcs.load(args.func) if args.func else funcs.find(model)
    funcs.apply_settings(args, model, func)
    if not funcs.has_detections(func):
        results.refuse_without_detections(args, func)
    streams, complete = open_streams(args)
    stdout = results.take_stdout(args)
    pool = open_pool(args, model, func)  # before a window, a file or a page is opened for what cannot run
    try:
        places, window = results.open_places(args, streams, stdout)
    except BaseException:
        pool.release()
        raise
    for stream in streams:
        stream.complaints = streams[0].complaints  # a context that fails is named once, not by every stream
    signals = end_when_asked()  # until here nothing is lost when they end the program at once
    threads, bars = begin(streams, pool, args.quiet)
    finished = watch(threads, streams, window, signals)
    for stream in streams:
        stream.given_up = not finished
    try:
        pool.release(timeout=None if finished else 0)
    except TimeoutError as error:
        say(f"{error}.", sys.stderr)
        finished = False  # an ordinary exit has the vendor's library close what hangs
    for each in [*bars, *streams]:
        each.close()
    streams[0].close_places(places)
    code = report(streams, signals, complete)
    # A reader may be in OpenCV still, where nobody can call it back: what is there to be lost has been closed.
    if not finished or not all(stream.released.wait(0.5) for stream in streams if stream.reading):
        leave(code)
    return code


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sources", nargs="*", metavar="source", default=None,
        help="files, folders of pictures, camera numbers or URLs, each with NAME= before it or not "
        f"(default: {hide(str(cap)).replace('%', '%%')})")
    add("--model", default=modelPath, help="the .rknn, the folder that holds it, or on a PC an .onnx")
    add("--threads", type=int, default=TPEs, help="contexts, and threads (default: two per NPU core)")
    add("--func", help="Python file whose myFunc(rknn_lite, IMG) takes the place of func.py's")
    add("--bigCores", choices=("yes", "no"), default="yes" if bigCores else "no", help="stay on the fast CPU cores")
    add("--runtime", default=runtime, help="wheel, library, cpu or teflon, the open driver (default: what there is)")
    add("--conf", type=float, default=conf, help="least score of a detection (default: 0.25)")
    add("--iou", type=float, default=iou, help="overlap from which the weaker of two boxes of one class goes (default: "
        "0.45, of Ultralytics' exports 0.7)")
    add("--classes", nargs="+", default=classes, metavar="CLASS", help="names or numbers of the only classes wanted")
    add("--names", metavar="FILE", help="names of the model's classes, one a line")
    add("--track", action="store_true", default=track, help="give objects identities that last")
    add("--line", "--lines", action="append", default=[], metavar="NAME:X1,Y1,X2,Y2",
        help="count who crosses it (STREAM/NAME:... of one stream)")
    add("--zone", "--zones", action="append", default=[], metavar="NAME:X,Y,X,Y,...",
        help="count who is in it (STREAM/NAME:... of one stream)")
    add("--save", default=save, help="write the result to this video (.mp4, .avi, .mkv), or pictures to this picture "
        "or folder; %%Y-%%m-%%d_%%H%%M%%S in it is the time")
    add("--overwrite", action="store_true", help="--save may replace a file that exists")
    add("--json", default=json, metavar="FILE", help="append a line of JSON for each frame; - for stdout")
    add("--mqtt", default=mqtt, metavar="URL", help="mqtt://host:1883/prefix, a broker that is told")
    add("--web", default=web, metavar="[HOST:]PORT", help="a page in the browser")
    add("--fps", type=float, default=fps, metavar="N", help="serve a stream at most so many frames a second")
    add("--reader", default=reader, metavar="opencv|av", help="what reads files and URLs (default: OpenCV, or on a "
        "board with pyav-rkmpp its hardware decoder)")
    add("--camera-size", default=camera_size, metavar="WxH", help="what USB cameras are asked for: 1920x1080")
    add("--camera-fps", type=float, default=camera_fps, metavar="N", help="the same: frames a second")
    add("--camera-format", default=camera_format, metavar="MJPG", help="the same: the four letters of a format")
    add("--headless", action="store_true", help="open no window")
    add("--quiet", action="store_true", help="no line every 30 frames, and no progress bar")
    args = parser.parse_args()
    if not args.sources:
        args.sources = list(cap.items()) if isinstance(cap, dict) else cap if isinstance(cap, (list, tuple)) else [cap]
    args.sources = [(source[0], str(source[1])) if isinstance(source, tuple) else str(source)
                    for source in args.sources]
    args.model = beside_main(args.model)
    args.lines, args.zones = results.parse_lines(args, lines, zones)
    return args


def main():
    for name in ("stdout", "stderr"):  # closed by the shell (>&-)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(getattr(sys, name), "reconfigure"):  # a name that the terminal cannot show costs no line
            getattr(sys, name).reconfigure(errors="backslashreplace")
    cv2.setNumThreads(1)  # the pool's threads are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        args = parse_arguments()
        if args.bigCores == "yes":
            stay_on_big_cores()
        sys.exit(run(args))
    except InputError as error:
        print(hide(str(error)), file=sys.stderr)
        sys.exit(2)
    except Exception as error:  # in the user's file, as it is loaded
        print(hide(users_traceback(error)), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
