"""What becomes of a stream's results after the pool; each file can be left out. And which of them a run has."""
import importlib
import sys
from types import ModuleType
from typing import Any, Dict, List, Tuple

from rknnmodel import InputError


def part(module: str, flag: str) -> ModuleType:
    """A module of results/, each of which may be left out. Raises InputError where it, or what it needs, is not
    there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.partition(".")[0] != "results":
            raise InputError(f"{flag} needs the package {missing}: pip install {missing}.") from None
        raise InputError(f"{flag} needs {missing.replace('.', '/')}.py, which is not there.") from None


def parse_lines(args: Any, lines: Dict[str, Any], zones: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """The settings `lines` and `zones`, overridden by --line and --zone where there are any."""
    if not args.line and not args.zone:
        return lines, zones
    given = part("results.lines", "--line and --zone").parse(args.line, args.zone)
    return given[0] or lines, given[1] or zones


def refuse_without_detections(args: Any, func: Any) -> None:
    """Raise InputError where something is wanted that a func file with only a myFunc cannot give."""
    wanted = {"--json": args.json, "--track": args.track, "--line": args.lines, "--zone": args.zones,
              "--mqtt": args.mqtt}
    for flag, value in wanted.items():
        if value:
            raise InputError(f"{flag} needs detections, and {func.__file__} gives pictures only: beside a myFunc that "
                             f"is draw(IMG, detect(rknn_lite, IMG)) it must define detect(rknn_lite, IMG), which "
                             f"returns Detections, and draw(IMG, detections).")


def take_stdout(args: Any) -> Any:
    """The place of `--json -`, or None. It comes before the contexts, whose opening the vendor's library prints of."""
    return part("results.jsonl", "--json").JSONLines("-") if args.json == "-" else None


def open_places(args: Any, streams: List[Any], stdout: Any = None) -> Tuple[List[Any], Any]:
    """Give every stream its tracker, lines and places; stdout: what take_stdout() gave. Returns the places that all
    share, and the Window or None."""
    if args.track or args.lines or args.zones or args.mqtt:  # whose events are of objects that last
        tracking = part("results.tracking", "--track")
        for stream in streams:
            stream.tracker = tracking.Tracker()
    if args.lines or args.zones:
        names = [stream.name for stream in streams]
        counting = part("results.lines", "--line and --zone").for_streams(names, args.lines, args.zones)
        for stream in streams:
            stream.lines = counting[stream.name]
    shared = []
    if args.json:
        shared.append(stdout or part("results.jsonl", "--json").JSONLines(args.json))
    if args.mqtt:
        shared.append(part("results.mqtt", "--mqtt").MQTT(args.mqtt, streams))
    if args.web:
        shared.append(part("results.web", "--web").Web(str(args.web), streams))
    window = None
    if not args.headless:
        windows = part("results.window", "A window (--headless does without)")
        window = windows.Window(streams) if windows.can_show() else None
        if window is None:
            print("No display: running without a window.", file=sys.stderr)
    for stream in streams:
        stream.places += shared + [window] * (window is not None)
    return shared, window
