"""The command line of main.py: its flags and their checks.

The settings at the top of main.py are the defaults of the flags.
"""
from __future__ import annotations

import argparse
import os
from typing import Any

import results
from rknnpool import __version__
from sources import READERS, check_reader, parse_camera
from sources.names import group_pictures, hide, split_name
from vision.command_line import Parser
from vision.errors import InputError
from vision.paths import beside_main

MAX_THREADS = 64
EPILOG = """\
environment variables:
  RKNNPOOL_WEB_PASSWORD   password of the page; needed if other machines can reach it
  RKNNPOOL_MQTT_USER, RKNNPOOL_MQTT_PASSWORD   login at the MQTT broker
  RKNN_SOC                the SoC, such as rk3588, if it cannot be detected
  RKNNRT_LIB              path of librknnrt.so
  TEFLON_LIB              path of the Teflon delegate, libteflon.so

exit codes:
  0        done
  1        an error in your func
  2        bad input, a source that did not open, or results that could not be saved
  3        the NPU has failed or hangs
  128 + N  ended by signal N: 130 after Ctrl-C
"""


def parse(settings: dict[str, Any], description: str | None) -> argparse.Namespace:
    """The command line as a Namespace, checked. settings: those at the top of main.py, by name.

    `sources` is a list of (name or None, address); an address may be a list of pictures. Raises
    InputError for flags and values that cannot be used.
    """
    settings = {name: os.fspath(value) if isinstance(value, os.PathLike) else value
                for name, value in settings.items()}  # a setting may be Path("out.mp4")
    args = parser_of(settings, description).parse()
    args.sources = addresses(args.sources or settings["cap"])
    args.model = beside_main(str(args.model))
    args.lines, args.zones = results.parse_lines(args, settings["lines"] or {},
                                                  settings["zones"] or {})
    args.tiles = results.parse_tiles(args.tiles)
    args.then = args.then or settings["then"]
    args.camera = parse_camera(args.camera_size, args.camera_fps, args.camera_format)
    check(args)
    check_combinations(args)
    return args


def parser_of(settings: dict[str, Any], description: str | None) -> Parser:
    parser = Parser(description=description, epilog=EPILOG, add_help=False,
                    usage="main.py [flags] [source ...]")
    add_source_flags(parser, settings)
    add_model_flags(parser, settings)
    add_counting_flags(parser, settings)
    add_result_flags(parser, settings)
    add_performance_flags(parser, settings)
    return parser


def unset(settings: dict[str, Any]) -> dict[str, Any]:
    """The values of all flags if none is given and all settings are None. settings: as parse()
    takes them; only their names are used."""
    return vars(parser_of(dict.fromkeys(settings), None).parse_args([]))


def addresses(given: Any) -> list[tuple[str | None, Any]]:
    """(name or None, address) of each source. given: the command line's, or the setting `cap`."""
    if isinstance(given, dict):
        named: list[Any] = [(str(name), str(source)) for name, source in given.items()]
    else:
        given = given if isinstance(given, (list, tuple)) else [given]
        named = [split_name(str(source)) for source in given]
    if not named:
        raise InputError("No source is given: cap at the top of main.py is empty.")
    return group_pictures([(name, source and beside_main(source)) for name, source in named])


def add_source_flags(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    add = parser.add_argument_group("sources").add_argument
    cap = hide(str(settings["cap"])).replace("%", "%%")  # argparse replaces %(name)s
    add("sources", nargs="*", metavar="source",
        help="file, picture, folder of pictures, camera number, URL or GStreamer pipeline; "
        f"NAME=SOURCE gives it a name; several pictures form one source (default: {cap})")
    add("--fps", type=float, default=settings["fps"], metavar="N",
        help="process at most N frames per second of each stream and skip the others (default: "
        "all). Of a file: N frames for each second of video. Pictures count as a video of 25 FPS")
    add("--loop", action="store_true", default=settings["loop"],
        help="play files again and again")
    add("--silence", type=float, default=settings["silence"], metavar="SECONDS",
        help="reconnect to a URL that has sent no picture for this long (default: 5; more for a "
        "source whose pictures come less often)")
    add("--camera-size", default=settings["camera_size"], metavar="WxH",
        help="size in pixels to request from USB cameras, such as 1920x1080")
    add("--camera-fps", type=float, default=settings["camera_fps"], metavar="N",
        help="frames per second to request from USB cameras")
    add("--camera-format", default=settings["camera_format"], metavar="FORMAT",
        help="format to request from USB cameras, such as MJPG or YUYV")


def add_model_flags(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default=settings["modelPath"], metavar="FILE",
        help="the .rknn, the .onnx, or the folder that contains it. Without an NPU, the .onnx "
        "beside the .rknn is used (default: %(default)s)")
    add("--func", metavar="FILE",
        help="Python file that defines myFunc(rknn_lite, IMG) (default: func.py, or the file in "
        "funcs/ that can decode the model)")
    add("--names", metavar="FILE",
        help="file with the class names of the model, one per line, as JSON or as YAML (default: "
        "the names in the model, or in a file beside it)")
    add("--classes", nargs="+", default=settings["classes"], metavar="CLASS",
        help="keep only these classes, by name or number (default: all). Write sources before it, "
        "because all words up to the next flag are classes")
    add("--conf", type=float, default=settings["conf"], metavar="0..1",
        help="minimum confidence of a detection (default: 0.25; for text 0.5, for text regions "
        "0.6)")
    add("--iou", type=float, default=settings["iou"], metavar="0..1",
        help="threshold of non-maximum suppression: if two boxes of one class overlap more than "
        "this (intersection over union), only the one with the higher score is kept (default: "
        "0.45; for Ultralytics' exports 0.7)")
    add("--tiles", default=settings["tiles"], metavar="COLUMNSxROWS",
        help="also run the model on overlapping parts of each frame, to find small objects: 3x2, "
        "auto, motion or motion:3x2")
    add("--then", action="append", default=[], metavar="MODEL[@CLASS,...]",
        help="a second model for each tracked object (of these classes); can be repeated")


def add_counting_flags(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    add = parser.add_argument_group("counting", "for models that find boxes").add_argument
    add("--track", action="store_true", default=settings["track"],
        help="give each object an ID that lasts from frame to frame")
    add("--line", action="append", default=[], metavar="NAME:X1,Y1,X2,Y2",
        help="count the objects that cross this line; STREAM/NAME:... applies to one stream only. "
        "X and Y are fractions of the frame's width and height (0 to 1) or, if any is above 1, "
        "pixels")
    add("--zone", action="append", default=[], metavar="NAME:X,Y,X,Y,...",
        help="count the objects in this polygon; coordinates as for --line")
    add("--setup", default=settings["setup"], metavar="FILE",
        help="JSON file with the lines, zones, minimum confidence and classes of each stream; "
        "created if missing. With --web, the page edits it. The flags above, --conf and --classes "
        "replace its values in this run. Counts of live sources are kept beside it")
    add("--reset-counts", action="store_true", help="start at 0 instead of the kept counts")
    for flag in ("--line", "--zone"):  # --lines, --zones: as the settings are called
        add(f"{flag}s", dest=flag[2:], action="append", help=argparse.SUPPRESS)


def add_result_flags(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    add = parser.add_argument_group("results").add_argument
    add("--save", default=settings["save"], metavar="PATH",
        help="save a video (.mp4, .avi, .mkv); if the sources are pictures, also a picture or a "
        "folder. %%Y-%%m-%%d_%%H%%M%%S in the name is replaced by the current time")
    add("--overwrite", action="store_true", help="allow --save to replace an existing file")
    add("--json", default=settings["json"], metavar="FILE",
        help="append one line of JSON per frame; - writes to stdout")
    add("--snapshots", default=settings["snapshots"], metavar="DIR",
        help="save a picture of each object that appears, crosses a line or enters a zone")
    add("--max-snapshots", type=int, default=settings["max_snapshots"], metavar="N",
        help="keep at most N pictures there; the oldest are deleted (default: %(default)s)")
    add("--mqtt", default=settings["mqtt"], metavar="URL",
        help="publish to an MQTT broker: mqtt://HOST:1883/PREFIX, or mqtts:// for TLS")
    add("--web", default=settings["web"], metavar="[HOST:]PORT",
        help="serve a web page with the pictures and counts. When all files have ended, it stays "
        "until Ctrl-C, unless results are saved or sent")
    names = settings["web_name"] or []
    names = [names] if isinstance(names, str) else list(names)
    add("--web-name", action="append", default=names, metavar="NAME",
        help="another host name for the page, such as that of a proxy; can be repeated")
    add("--web-readonly", action="store_true", default=settings["web_readonly"],
        help="refuse changes on the page")
    add("--headless", action="store_true",
        help="open no window (default: one window per stream if there is a display). When all "
        "files have ended, a window stays until a key is pressed, unless results are saved or sent")
    add("--quiet", action="store_true",
        help="print only the frame rate of each stream at the end, and errors")


def add_performance_flags(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    add = parser.add_argument_group("performance").add_argument
    add("--threads", type=int, default=settings["TPEs"], metavar="N",
        help="number of contexts, each with its own thread (default: two per NPU core)")
    add("--runtime", default=settings["runtime"], metavar="NAME",
        help="wheel (rknn-toolkit-lite2), library (librknnrt.so), cpu (ONNX Runtime) or teflon "
        "(the open NPU driver) (default: the first of wheel, library, cpu that works here)")
    add("--reader", default=settings["reader"], metavar="|".join(READERS),
        help="library that reads files and URLs: OpenCV or PyAV (default: OpenCV; if pyav-rkmpp is "
        "installed, the board's hardware decoder)")
    add("--bigCores", choices=("yes", "no"), default="yes" if settings["bigCores"] else "no",
        help="use only the fast CPU cores (default: %(default)s)")
    add = parser.add_argument_group("this program").add_argument
    add("-h", "--help", action="help", help="print this help and exit")
    add("--doctor", action="store_true",
        help="test the NPU and this machine, print what is wrong, and exit: 0 if the NPU works, 3 "
        "if it cannot be used")
    add("--version", action="version", version=f"rknnpool {__version__}",
        help="print the version and exit")


def check_combinations(args: argparse.Namespace) -> None:
    """Raise InputError for flags that exclude, or need, each other."""
    for flag, value in (("--web-name", args.web_name), ("--web-readonly", args.web_readonly)):
        if value and not args.web:
            raise InputError(f"{flag} needs --web.")
    if args.reset_counts and not args.setup:
        raise InputError("--reset-counts needs --setup.")
    for flag, value, why in (("--save", args.save, "the file would never end"),
                             ("--line", args.lines, "it would count the same objects again")):
        if args.loop and value:
            raise InputError(f"--loop cannot be combined with {flag}: {why}.")


def check(args: argparse.Namespace) -> None:
    """Raise InputError for values that cannot be used."""
    if isinstance(args.threads, int) and args.threads < 1:
        raise InputError(f"--threads {args.threads}: must be at least 1.")
    if isinstance(args.threads, int) and args.threads > MAX_THREADS:
        raise InputError(f"--threads {args.threads}: must be at most {MAX_THREADS}. Each context "
                         "takes tens of MB of the NPU's memory, and more than two per core do "
                         "not raise the frame rate.")
    for flag in ("conf", "iou"):
        value = getattr(args, flag)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--{flag} {value}: must be between 0 and 1.")
    if args.fps is not None and not 0 < args.fps < float("inf"):
        raise InputError(f"--fps {args.fps}: must be more than 0 frames per second.")
    if args.silence is not None and not 0 < args.silence <= 86400:
        raise InputError(f"--silence {args.silence:g}: must be more than 0 and at most 86400 "
                         "seconds.")
    if args.snapshots and args.max_snapshots < 1:
        raise InputError(f"--max-snapshots {args.max_snapshots}: must be at least 1.")
    if check_reader(args.reader) == "av":
        results.import_optional("sources.pyav", "--reader av")
