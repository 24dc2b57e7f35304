"""Runs videos and cameras through the NPU; shows, saves or sends results; prints the frame rate.

    python main.py                                # the settings at the top of main.py
    python main.py street.mp4 --threads 9 --save out.mp4
    python main.py gate=rtsp://192.168.1.20/live yard=0 street.mp4       # three streams, one pool
    python main.py pictures/ --save found/ --json - | jq
"""
from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vision.packages import needed_packages

with needed_packages():
    import cv2
    from tqdm import tqdm

import arguments
import funcs
import process
import results
import rknnpool
import runtimes
from meter import Meter
from results.console import PoolMessages, prepare_output, say, users_traceback
from results.summary import Findings, exit_code, report
from rknnpool import rknnPoolExecutor
from sources.names import hide, name_streams
from streams import Stream
from vision.errors import InputError

# --------------------------------------------------------------------------------------------------
modelPath = "models/yolov5n_emoji.rknn"  # without an NPU, the .onnx beside it runs on the CPU
# a file, a folder of pictures, a camera's number or a URL; or a list of them, or a dict with names:
# {"gate": "rtsp://192.168.1.20/live", "yard": 0}
cap = "models/demo.mp4"
TPEs = None        # contexts, each with its own thread; None: two per NPU core
bigCores = True    # use only the fast CPU cores
runtime = None     # "wheel", "library", "cpu" or "teflon"; None: the first that works here
conf = None        # minimum confidence of a detection, 0 to 1; None: the func file's, usually 0.25
iou = None         # NMS threshold: maximum overlap of two boxes of one class; None: the func file's
classes = None     # ["person", "car"]: keep only these classes, by name or number; None: all
tiles = None       # "3x2", "auto" or "motion": the model also runs on parts, for small objects
track = False      # give each object an id that lasts from frame to frame
lines = None       # {"door": ((x1, y1), (x2, y2))}: count the objects that cross; implies track
zones = None       # {"yard": [(x, y), (x, y), (x, y)]}: count the objects inside
then = None        # ["plates.rknn@car,truck"]: a second model for each of these objects
setup = None       # "site.json": keep lines, zones and more of each stream there; the page edits it
save = None        # "out_%Y-%m-%d_%H%M%S.mp4": a video of the results; or a folder for pictures
json = None        # "results.jsonl": one line of JSON per frame; "-": to stdout
snapshots = None   # "snapshots": a folder for pictures of objects that appear, cross or enter
max_snapshots = 1000  # pictures in this folder; then the oldest are deleted
mqtt = None        # "mqtt://host:1883/prefix": publish to an MQTT broker
web = None         # "8000" or "HOST:PORT": serve a web page
web_name = None    # ["cam.example.com"]: other host names of the page, such as a proxy's
web_readonly = False  # the page shows the setup, but cannot change it
loop = False       # play files again and again
fps = None         # process at most this many frames per second of each stream; None: all
reader = None      # "opencv" or "av" (PyAV) for files and URLs; None: the hardware decoder, if any
silence = None     # reconnect to a network camera after this many seconds without a picture
camera_size = None    # "1920x1080": size to request from USB cameras; None: their default
camera_fps = None     # 30
camera_format = None  # "MJPG"
# --------------------------------------------------------------------------------------------------

GIVE_UP_SECONDS = 10  # after Ctrl-C: streams without a frame for this long are given up
POLL_SECONDS = 0.05   # between two checks of the streams


def open_streams(args: Any) -> tuple[list[Stream], bool]:
    """The streams that can be opened, and whether these are all. Raises InputError if there are
    none."""
    names, addresses = name_streams(args.sources), [address for _, address in args.sources]
    given = [name is not None for name, _ in args.sources]
    paths = results.paths_to_save(args, names, given, addresses)

    def open_one(name: str, address: Any, path: str | None) -> Stream | InputError:
        try:
            stream = Stream(address, name, args.fps, args.reader, args.camera, args.loop,
                            args.silence)
            if path is not None:
                stream.add_sink(results.open_saver(path, stream, args.overwrite))
            return stream
        except InputError as error:
            return error

    with ThreadPoolExecutor(len(names)) as executor:  # a slow source does not delay the others
        opened = list(executor.map(open_one, names, addresses, paths))
    streams = [stream for stream in opened if isinstance(stream, Stream)]
    failed = [str(error) for error in opened if isinstance(error, InputError)]
    if not streams:
        raise InputError("\n".join(failed))
    for message in failed:
        say(message, sys.stderr)
    for stream in streams:
        stream.printed = streams[0].printed  # the same message is printed once for all
    return streams, not failed


def find_model_and_func(args: Any) -> tuple[Any, Any]:
    """The description of the model, and the func file that reads it. Raises InputError."""
    path, soc = runtimes.model_for(args.runtime, args.model, rknnpool.soc())
    model = funcs.describe_model(path, soc)
    func = funcs.load(args.func) if args.func else funcs.find(model)
    funcs.apply_settings(args, model, func)
    results.check_func(args, func)
    results.plan_second_models(args, model, func)
    return model, func


def open_pool(args: Any, model: Any, func: Any, streams: list[Stream]) -> rknnPoolExecutor:
    """A pool that runs the func file and measures it for `streams`. Raises InputError if it cannot
    be opened."""
    task = Meter(streams).timed(results.frame_task(args, model, func, streams))
    try:
        return rknnPoolExecutor(model, args.threads, task, runtime=runtimes.by_name(args.runtime))
    except (RuntimeError, ValueError, TypeError) as error:  # the message has no full stop
        missing = rknnpool.soc() and args.runtime in (None, "wheel") and runtimes.missing()
        raise InputError(f"{error}{f'; {missing}' if missing else ''}.") from None


def start(streams: list[Stream], pool: rknnPoolExecutor, quiet: bool
          ) -> tuple[list[threading.Thread], list[Any]]:
    """Start each stream in its own thread. Returns the threads and the progress bars."""
    threads, bars = [], []
    for index, stream in enumerate(streams):
        name = stream.name if len(streams) > 1 else None
        bars.append(tqdm(total=stream.expected, unit=" frames", desc=name,
                         position=index, disable=True if quiet else None))  # None: without a TTY
        title = f"{name}: " if name else ""
        stream.findings = None if quiet else Findings(stream, title)
        threads.append(threading.Thread(target=stream.run, args=(pool, bars[-1], title, quiet),
                                        daemon=True))
        threads[-1].start()
    return threads, bars


def watch(threads: list[threading.Thread], streams: list[Stream], window: Any,
          signals: list[int]) -> bool:
    """Show results until all threads have ended; stop the streams after a signal.

    False if no frame came out for GIVE_UP_SECONDS after the streams were stopped.
    """
    count, silence, last = 0, 0.0, time.perf_counter()
    while any(thread.is_alive() for thread in threads):
        if signals:
            for stream in streams:
                stream.stop.set()
        # Time in which this process itself was stopped (Ctrl-Z, SIGSTOP) does not count.
        now = time.perf_counter()
        silence, last = silence + min(now - last, 5 * POLL_SECONDS), now
        processed = sum(stream.count + stream.failed for stream in streams)
        if count != processed or not all(stream.stop.is_set() for stream in streams):
            count, silence = processed, 0.0
        if silence > GIVE_UP_SECONDS:
            return False
        if window:
            window.step(POLL_SECONDS)
        else:
            alive = [thread for thread in threads if thread.is_alive()]
            (alive or threads)[0].join(POLL_SECONDS)
    return True


def run(args: Any) -> int:
    """Process the sources to their ends. Returns the exit code; raises InputError if nothing can
    run."""
    model, func = find_model_and_func(args)
    setup = results.open_setup(args, name_streams(args.sources), model, func)
    streams, complete = open_streams(args)
    stdout = results.take_stdout(args)
    pool = open_pool(args, model, func, streams)
    try:
        shared, window = results.open_sinks(args, streams, stdout, setup)
    except BaseException:
        pool.release()
        raise
    for stream in streams:
        stream.draws = bool(args.save or window)
    logging.getLogger("rknnpool").addHandler(PoolMessages(streams[0].print_once))
    signals = process.note_signals()  # until here, a signal ends the process at once
    threads, bars = start(streams, pool, args.quiet)
    finished = watch(threads, streams, window, signals)
    for stream in streams:
        stream.given_up = not finished
    try:
        pool.release(timeout=15 if finished else 1)
    except TimeoutError as error:
        say(f"{error}.", sys.stderr)
        if finished:  # all frames came out, but a context still hangs
            streams[0].code = streams[0].code or 3
        finished = False
    for each in [*bars, *streams]:
        each.close()
    displays = results.displays(args, shared)
    streams[0].close_sinks([sink for sink in shared if sink not in displays])  # errors: the first's
    report(streams, shared, args.quiet)
    code = exit_code(streams, signals, complete)
    if finished and code in (0, 2):
        results.keep_open(displays, window, streams, signals)
        code = code or exit_code(streams, signals, complete)
    streams[0].close_sinks(displays)
    # Python would wait for a context that hangs, and for a reader that is blocked in OpenCV.
    if not finished or not all(stream.released.wait(0.5) for stream in streams if stream.reading):
        process.leave(code)
    return code


def main() -> None:
    prepare_output()
    cv2.setNumThreads(1)  # the pool's threads are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until note_signals(): no KeyboardInterrupt
    try:
        args = arguments.parse(globals(), __doc__)
        if args.bigCores == "yes":
            process.stay_on_big_cores()
        if args.doctor:
            import doctor  # only here: nothing else needs it
            sys.exit(doctor.examine(args))
        sys.exit(run(args))
    except InputError as error:
        print(hide(str(error)), file=sys.stderr)
        sys.exit(2)
    except Exception as error:  # in the user's func file, while it is loaded
        print(hide(users_traceback(error)), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
