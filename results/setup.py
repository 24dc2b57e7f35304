"""Lines, zones, minimum confidence and classes of each stream, which can change during a run.

    setup = Setup("site.json", ["gate", "yard"], args, model, func)
    sink = setup.attach(streams)          # keeps the counts
    setup.state("gate")                   # what the page shows
    setup.change("gate", {"conf": 0.4}, version=1)
    setup.reset("gate")                   # counts from 0

Any thread may call these methods. A stream's own thread takes the newest Settings between two
frames. All streams share the model: it detects with the lowest confidence of all streams, and each
stream drops what is below its own.
"""
from __future__ import annotations

import os
import random
import sys
import threading
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

import funcs
from results import setup_file
from results.console import say
from results.counts import CountStore
from results.lines import Lines, for_streams
from results.points import checked_points
from results.setup_file import MIN_CONF, Settings, Shapes, checked_settings
from vision.errors import InputError

DIGITS = 5  # decimals of the fractions that the page gets


class Conflict(ValueError):
    """The settings have changed since they were read."""


class Setup:
    """The settings of all streams of a run.

    path: the file, see setup_file.py; it is created if it is missing. names: of the streams. args:
    main.py's; its lines, zones, conf and classes replace those of the file in this run and are not
    saved. model, func: what all streams use.
    Raises InputError if the file or the flags contain a mistake.
    """

    def __init__(self, path: str, names: Sequence[str], args: Any, model: Any, func: Any):
        self.path, self.model, self.default_conf = path, model, funcs.default_conf(func)
        self.class_names = funcs.class_names(model, func)
        self.lock = threading.Lock()
        self.sizes: Dict[str, Tuple[int, int]] = {}  # of the frames, set by the streams' threads
        self.resets = dict.fromkeys(names, 0)        # how often the counts have been reset
        self.versions = dict.fromkeys(names, random.randrange(2**40))  # not those of an earlier run
        # What flags set for each stream: {"gate": {"conf": ("--conf", 0.4)}}
        self.fixed = {name: self._flags(name, names, args) for name in names}
        self.content = self._read_or_create(names)  # of the file, as far as known
        # The settings of each stream: in the file; with the changes of the page; and with the
        # flags, as the stream uses them.
        self.saved = {name: self._parsed(name, self.content.get(name, {})) for name in names}
        self.edited = dict(self.saved)
        self.settings = {name: self._with_flags(name) for name in names}
        self._set_conf()
        base = os.path.splitext(path)[0]
        self.store = CountStore(f"{base}.counts.sqlite3", names if args.reset_counts else ())

    def _read_or_create(self, names: Sequence[str]) -> Dict[str, Any]:
        content = setup_file.read(self.path)
        for key in content:
            if key in setup_file.KEYS and key not in names:
                raise InputError(f"{self.path}: {key} must be in the settings of a stream: "
                                 f'{{"{names[0]}": {{"{key}": ...}}}}.')
        if not os.path.exists(self.path):
            content = {name: Settings().json() for name in names}
            with setup_file.locked(self.path):
                setup_file.write(self.path, content)
        return content

    def attach(self, streams: Sequence[Any]) -> CountStore:
        """Give each stream its lines. Returns the sink that keeps the counts."""
        others = [name for name in self.content if name not in self.saved]
        if others:
            verb = "do" if len(others) > 1 else "does"
            say(f"{self.path}: also contains {', '.join(others)}, which {verb} not run.",
                sys.stderr)
        for stream in streams:
            stream.setup = StreamSetup(self, stream)
        return self.store

    # ---- the page ----

    def state(self, name: str) -> Dict[str, Any]:
        """The settings of a stream, ready for json.dumps().

        lines, zones: {name: [[x, y], ...]}, fractions of the frame; those in pixels stay in pixels
        until the first frame, while `size` is None. conf, classes: None for default_conf and all.
        default_conf: None if the func file does not say it. all_classes: [] if unknown. saved:
        whether the file contains the same. fixed: {"lines": "--line"}, what a flag has set.
        """
        with self.lock:
            settings, size = self.settings[name], self.sizes.get(name)
            return {"version": self.versions[name],
                    "saved": self.edited[name] == self.saved[name],
                    "lines": fractions(settings.lines, size),
                    "zones": fractions(settings.zones, size),
                    "conf": settings.conf,
                    "classes": None if settings.classes is None else list(settings.classes),
                    "all_classes": list(dict.fromkeys(self.class_names.values())),
                    "default_conf": self.default_conf,
                    "min_conf": MIN_CONF,
                    "size": None if size is None else list(size),
                    "fixed": {key: flag for key, (flag, _) in self.fixed[name].items()}}

    def change(self, name: str, data: Any, version: Any, save: bool = False) -> Dict[str, Any]:
        """Change the settings of a stream, and save them if `save` is true. Returns the new state.

        data: a dict with any of the keys lines, zones, conf and classes; the others stay. version:
        that of the state on which the change is based. Raises Conflict if this is not the present
        one, and ValueError, with one sentence, if data is wrong or the file cannot be written;
        nothing is changed then.
        """
        with self.lock:
            self._check_version(name, version)
            try:
                new = self._changed(name, data)
                if save:
                    self._save(name, new)
            except InputError as error:
                raise ValueError(str(error)) from None
            self._apply(name, new)
        return self.state(name)

    def discard(self, name: str, version: Any) -> Dict[str, Any]:
        """Return to the saved settings of a stream. Returns the new state. Raises Conflict."""
        with self.lock:
            self._check_version(name, version)
            self._apply(name, self.saved[name])
        return self.state(name)

    def reset(self, name: str) -> None:
        """Set the counts of a stream to 0, before its next frame."""
        with self.lock:
            self.resets[name] += 1

    # ---- under the lock ----

    def _changed(self, name: str, data: Any) -> Settings:
        """The settings of a stream after a change. Raises InputError."""
        old, size = self.edited[name], self.sizes.get(name)
        new = checked_settings(data, self.class_names, where_on_page, old)
        for key in data:
            if key in self.fixed[name]:
                flag, _ = self.fixed[name][key]
                raise InputError(f"{name}: {key} cannot be changed in this run, because {flag} is "
                                 "given.")
        return new._replace(lines=merge_shapes("line", new.lines, old.lines, size),
                            zones=merge_shapes("zone", new.zones, old.zones, size))

    def _check_version(self, name: str, version: Any) -> None:
        if version != self.versions[name]:
            raise Conflict(f"{name}: these settings were changed in another browser, or main.py "
                           "was restarted. Your last change was not made.")

    def _apply(self, name: str, new: Settings) -> None:
        if new != self.edited[name]:
            self.edited[name] = new
            self.versions[name] += 1
            self.settings[name] = self._with_flags(name)
            self._set_conf()

    def _save(self, name: str, new: Settings) -> None:
        # Other programs, and people, may have changed the file; or have deleted it.
        with setup_file.locked(self.path):
            content = setup_file.read(self.path) or self.content
            if name in content and self._parsed(name, content[name]) != self.saved[name]:
                raise InputError(f"{self.path}: {name} has been changed in the file since main.py "
                                 "read it. Nothing was saved. Restart main.py to use what the file "
                                 "says.")
            content = {**content, name: new.json()}
            setup_file.write(self.path, content)
        self.content, self.saved[name] = content, new

    def _with_flags(self, name: str) -> Settings:
        values = {key: value for key, (_, value) in self.fixed[name].items()}
        return self.edited[name]._replace(**values)

    def _set_conf(self) -> None:
        """Let the model detect with the lowest confidence of all streams from the next frame on."""
        given = [each.conf for each in self.settings.values()]
        if self.model.conf is None and all(conf is None for conf in given):
            return
        values = [self.default_conf if conf is None else conf for conf in given]
        known = [conf for conf in values if conf is not None]
        if len(known) == len(values):  # otherwise detect() does not read it
            self.model.conf = min(known)

    def _flags(self, name: str, names: Sequence[str], args: Any) -> Dict[str, Tuple[str, Any]]:
        """The settings of a stream that flags set, each with the flag. Raises InputError."""
        found: Dict[str, Tuple[str, Any]] = {}
        given = for_streams(names, args.lines, args.zones)[name]
        if given and given.lines:
            found["lines"] = "--line", points_of(given.lines)
        if given and given.zones:
            found["zones"] = "--zone", points_of(given.zones)
        if args.conf is not None:
            found["conf"] = "--conf", args.conf
        if args.classes:
            numbers = sorted(self.model.class_ids)
            found["classes"] = "--classes", tuple(
                self.class_names.get(number, str(number)) for number in numbers)
        return found

    def _parsed(self, name: str, data: Any) -> Settings:
        """The settings of a stream from what the file contains about it. Raises InputError."""
        def where(key: str) -> str:
            return f"{self.path}: {name}, {key}: " if key else f"{self.path}: {name}: "

        return checked_settings(data, self.class_names, where, Settings())


class StreamSetup:
    """Applies the settings of one stream, in its thread, before the tracker gets a frame."""

    def __init__(self, setup: Setup, stream: Any):
        self.setup, self.stream = setup, stream
        self.settings: Optional[Settings] = None  # the present ones
        self.size: Optional[Tuple[int, int]] = None
        self.resets = 0
        self.keeps: Dict[int, bool] = {}          # whether a class is kept, by its number
        stream.lines = Lines()

    def update(self, result: Any) -> None:
        """Take new settings, and drop the detections that the stream does not want."""
        name = self.stream.name
        settings, resets = self.setup.settings[name], self.setup.resets[name]
        if settings is not self.settings:
            self._take(settings)
        if resets != self.resets:
            self.resets = resets
            self.stream.lines.reset()
        if result.size != self.size:
            self.size = self.setup.sizes[name] = result.size
        result.detections = self._select(result.detections, settings)

    def _take(self, settings: Settings) -> None:
        lines, first = self.stream.lines, self.settings is None
        lines.change(settings.lines, settings.zones)
        self.settings, self.keeps = settings, {}
        # Lines of flags are those of one run. The frames of a file are counted again in each run.
        if first and self.stream.live and "lines" not in self.setup.fixed[self.stream.name]:
            lines.set_counts(self.setup.store.counts(self.stream.name, lines.lines))
            self.setup.store.streams.add(self.stream.name)

    def _select(self, found: Any, settings: Settings) -> Any:
        """The detections that the stream wants."""
        conf = settings.conf
        if conf is None and self.setup.model.conf is not None:
            conf = self.setup.default_conf  # the model may detect with less, for another stream
        keep = np.ones(len(found), bool) if conf is None else found.scores >= conf
        if settings.classes is not None:
            numbers = found.classes.tolist()
            for number in set(numbers) - self.keeps.keys():
                by_number = not self.setup.class_names and str(number) in settings.classes
                self.keeps[number] = by_number or str(found.name(number)) in settings.classes
            keep &= np.array([self.keeps[number] for number in numbers], bool)
        return found if keep.all() else found.select(keep)


def points_of(shapes: Dict[str, np.ndarray]) -> Shapes:
    """Lines or zones as Settings contain them; shapes: as Lines does, (n, 2) arrays."""
    return {name: tuple(map(tuple, points.tolist())) for name, points in shapes.items()}


def fractions(shapes: Shapes, size: Optional[Tuple[int, int]]) -> Dict[str, List[List[float]]]:
    """The points as fractions of a frame of this size; those in pixels unchanged if it is None."""
    found = {}
    for name, points in shapes.items():
        array = np.array(points, np.float64)
        if size and array.max() > 1:  # pixels
            array /= size
        found[name] = array.round(DIGITS).tolist()
    return found


def merge_shapes(kind: str, sent: Shapes, old: Shapes, size: Optional[Tuple[int, int]]) -> Shapes:
    """The lines or zones after a change on the page. What it sent back unchanged keeps its old
    points, which may be pixels; everything else must be fractions. Raises InputError."""
    shown, merged = fractions(old, size), {}
    for name, points in fractions(sent, None).items():
        if sent[name] == old.get(name) or points == shown.get(name):  # unchanged
            merged[name] = old[name]
            continue
        if not all(0 <= value <= 1 for point in points for value in point):
            raise InputError(f"The {kind} {name} leaves the frame: x and y must be from 0 to 1.")
        checked_points(kind, name, points)  # again, because rounding may have moved a point
        merged[name] = tuple((x, y) for x, y in points)
    return merged


def where_on_page(key: str) -> str:
    """What precedes a message about a setting; key: its name, "" for all settings."""
    if not key:
        return "The settings: "
    return "" if key in ("lines", "zones") else f"{key}: "  # those messages name the line or zone
