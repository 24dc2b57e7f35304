"""Where results go. Imports the files of the outputs that a run needs; the others can be missing.

protocol.py says what a sink is: a window, a video file, a broker, ...
"""
from __future__ import annotations

import importlib
import os
import sys
import time
from types import ModuleType
from typing import Any

import funcs
from results.console import say
from results.protocol import Sink
from results.result import FrameTask
from vision.errors import InputError
from vision.packages import missing_package
from vision.settings import settings_of

STDOUT = "-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"  # as --json may be given
POLL_SECONDS = 0.05  # between two looks at the keys and signals


def import_optional(module: str, flag: str) -> ModuleType:
    """Import a module that `flag` needs. Raises InputError if it, or a package that it imports, is
    missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.partition(".")[0] != "results":
            raise InputError(missing_package(flag, error)) from None
        file = f"{missing.replace('.', '/')}.py"
        raise InputError(f"{flag} needs {file}, which is missing.") from None


def parse_lines(args: Any, lines: dict[str, Any], zones: dict[str, Any]
                ) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings `lines` and `zones`, each replaced by --line or --zone if there are any."""
    if not args.line and not args.zone:
        return lines, zones
    module = import_optional("results.lines", "--line and --zone")
    given_lines, given_zones = module.parse(args.line, args.zone)
    return given_lines or lines, given_zones or zones


def open_setup(args: Any, names: list[str], model: Any, func: Any) -> Any:
    """The Setup of the streams with these names; None without --setup. Raises InputError for a
    mistake in its file."""
    if not args.setup:
        return None
    return import_optional("results.setup", "--setup").Setup(args.setup, names, args, model, func)


def parse_tiles(text: str | None) -> Any:
    """The value of --tiles as a results.tile_grid.Tiling; None without it."""
    return import_optional("results.tiles", "--tiles").parse(str(text)) if text else None


def plan_second_models(args: Any, model: Any, func: Any) -> None:
    """Replace the texts in args.then by Steps (results/second_steps.py). Raises InputError if a
    model is missing, or if no model finds the objects for it."""
    if args.then:
        module = import_optional("results.second_steps", "--then")
        args.then = module.plan(args.then, model, func, args.runtime)


def check_func(args: Any, func: Any) -> None:
    """Raise InputError if a flag needs detections, or boxes, that a func file does not give."""
    flag, has_detections = needs_boxes(args), funcs.has_detections(func)
    if has_detections and flag and not getattr(func, "BOXES", True):
        raise InputError(f"{flag} needs boxes, but this model classifies whole pictures and "
                         "gives none.")
    if not flag and args.json:
        flag = "--json"
    elif not flag and args.mqtt:
        flag = "--mqtt"
    if flag and not has_detections:
        raise InputError(
            f"{flag} needs detections, but the myFunc of {func.__file__} returns only pictures. "
            f"Define detect(rknn_lite, IMG), which returns vision.detections.Detections, and "
            f"draw(IMG, detections) there too, as funcs/resnet.py does.")


def needs_boxes(args: Any) -> str:
    """The flag that needs boxes, such as "--track"; empty if none is given."""
    flags = {"--track": args.track, "--line": args.lines, "--zone": args.zones,
             "--setup": args.setup, "--snapshots": args.snapshots, "--tiles": args.tiles,
             "--then": args.then}
    return next((flag for flag, value in flags.items() if value), "")


def frame_task(args: Any, model: Any, func: Any, streams: list[Any]) -> Any:
    """What the pool runs: a FrameTask. With --tiles, a TileTask, and every stream gets its
    Tiles."""
    task = FrameTask(func, needs_boxes(args))
    if not args.tiles:
        return task
    module = import_optional("results.tiles", "--tiles")
    size = settings_of(model, getattr(func, "IMG_SIZE", 640)).size
    for stream in streams:
        stream.tiles = module.Tiles(args.tiles, size)
    return module.TileTask(task)


# ---- sinks ----

def take_stdout(args: Any) -> Sink | None:
    """The sink of `--json -`, or None. Call it before a context opens: from then on, what the
    vendor's library prints to stdout goes to stderr."""
    if args.json not in STDOUT:
        return None
    return import_optional("results.jsonl", "--json").JSONLines("-")


def paths_to_save(args: Any, names: list[str], given: list[bool], sources: list[Any]
                  ) -> list[str | None]:
    """The path of --save for each stream; None without --save.

    names, given: the streams' names, and whether the user chose them. sources: their addresses,
    or lists of pictures.
    Raises InputError if one of them would be overwritten.
    """
    if not args.save:
        return [None] * len(names)
    if args.save in STDOUT:
        raise InputError(f"--save {args.save}: only --json can write to stdout. Give the name of a "
                         "file or folder.")
    saving = import_optional("results.save_paths", "--save")
    paths = saving.save_paths(args.save, names, given)
    files = [file for each in sources for file in (each if isinstance(each, list) else [each])]
    for path in paths:
        saving.check_free(path, files)
    return paths


def open_saver(path: str, stream: Any, overwrite: bool) -> Sink:
    """The sink that saves a stream's pictures. Raises InputError if it cannot save there."""
    return import_optional("results.video", "--save").open_saver(path, stream, overwrite)


def open_sinks(args: Any, streams: list[Any], stdout: Sink | None = None,
               setup: Any = None) -> tuple[list[Any], Any]:
    """Give every stream what the flags ask for: a tracker, second models, lines, and sinks.

    stdout: what take_stdout() returned; setup: what open_setup() returned. Returns what all streams
    share, to be closed at the end, and the Window or None.
    """
    if needs_tracker(args):
        tracking = import_optional("results.tracking", "--track")
        for stream in streams:
            stream.tracker = tracking.Tracker()
    second_models = open_second_models(args, streams)
    sinks: list[Sink] = []
    if setup:
        sinks.append(setup.attach(streams))
    elif args.lines or args.zones:
        module = import_optional("results.lines", "--line and --zone")
        counters = module.for_streams([stream.name for stream in streams], args.lines, args.zones)
        for stream in streams:
            stream.lines = counters[stream.name]
    snapshots = open_snapshots(args, streams)
    if args.json:
        sinks.append(stdout or import_optional("results.jsonl", "--json").JSONLines(args.json))
    if args.mqtt:
        module = import_optional("results.mqtt", "--mqtt")
        sinks.append(module.MQTT(args.mqtt, streams, snapshots))
    if args.web:
        module = import_optional("results.web", "--web")
        sinks.append(module.Web(str(args.web), streams, args.web_name, snapshots, setup,
                                args.web_readonly))
    window = None if args.headless else open_window(args, streams)
    if window is not None:
        sinks.append(window)
    for stream in streams:
        stream.sinks += sinks
    return [each for each in (second_models, snapshots) if each is not None] + sinks, window


def needs_tracker(args: Any) -> bool:
    """Whether a flag needs the ids of objects."""
    return bool(args.track or args.lines or args.zones or args.setup or args.then or args.mqtt
                or args.snapshots)


def open_second_models(args: Any, streams: list[Any]) -> Any:
    """Give every stream its SecondModel. Returns the SecondModels, or None."""
    if not args.then:
        return None
    module = import_optional("results.second_model", "--then")
    return module.SecondModels(args.then, streams, args.runtime)


def open_snapshots(args: Any, streams: list[Any]) -> Any:
    """Give every stream its Objects if a sink needs their events, and the sink that saves pictures
    of them. Returns the Snapshots, or None."""
    if args.mqtt or args.snapshots:
        module = import_optional("results.objects", "--mqtt and --snapshots")
        module.follow(streams, bool(args.snapshots))
    if not args.snapshots:
        return None
    module = import_optional("results.snapshots", "--snapshots")
    snapshots = module.Snapshots(args.snapshots, args.max_snapshots)
    for stream in streams:
        stream.sinks.insert(0, snapshots)  # before a sink draws on the frame
    return snapshots


def open_window(args: Any, streams: list[Any]) -> Any:
    """The Window, or None if none can be opened."""
    module = import_optional("results.window", "A window (switch it off with --headless)")
    if module.can_show():
        return module.Window(streams)
    hint = ("" if args.save or args.web else
            " --save out.mp4 saves what it would show; --web shows it in a browser "
            "(docs/results.md).")
    display = os.environ.get("DISPLAY")
    why = f"OpenCV opens no window on DISPLAY={display} (see main.py --doctor)" if display else \
        "No display"
    say(f"{why}: running without a window.{hint}", sys.stderr)
    return None


# ---- the end ----

def displays(args: Any, shared: list[Sink]) -> list[Any]:
    """The window and the page if the results go nowhere else: they stay after the end."""
    elsewhere = args.save or args.json or args.mqtt
    return [] if elsewhere else [sink for sink in shared if getattr(sink, "display", False)]


def keep_open(shown: list[Any], window: Any, streams: list[Any], signals: list[int]) -> None:
    """Show the last results until a key in the window, its close button, or a signal.

    shown: what displays() returned; window: the Window, or None.
    """
    if not shown or not any(stream.count for stream in streams):
        return
    if window:
        window.step(0)  # the last result
    if signals or window and not window.stays:
        return
    pages = ", ".join(display.url for display in shown if display is not window)
    ended = "All streams have ended" if len(streams) > 1 else "The stream has ended"
    if not pages:
        what = "Press a key in the window, or close it, to end"
    elif window:
        what = f"{pages} stays until Ctrl-C or a key in the window"
    else:
        what = f"{pages} stays until Ctrl-C"
    say(f"{ended}. {what}.", sys.stderr)
    while not signals and (window is None or window.stays):
        if window:
            window.step(POLL_SECONDS)
        else:
            time.sleep(POLL_SECONDS)
