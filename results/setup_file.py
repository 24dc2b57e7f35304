"""The file of --setup: per stream its lines, zones, minimum confidence and classes, as JSON.

    {
      "gate": {
        "lines": {
          "door": [[0.5, 0], [0.5, 1]]
        },
        "zones": {},
        "conf": 0.4,
        "classes": ["person", "car"]
      }
    }

Every key can be left out, or be null. Points are as for --line: fractions of the frame's width and
height, or pixels. This file checks what people write there, and what the page sends.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from results.points import Points, check_name, checked_points, short
from vision.errors import InputError, nearest

MAX_SHAPES = 50    # lines and zones of a stream
MIN_CONF = 0.01    # below, the models find thousands of boxes
MAX_CLASS_NAME = 200  # characters
KEYS = ("lines", "zones", "conf", "classes")

Shapes = Dict[str, Points]


class Settings(NamedTuple):
    """What one stream counts. It does not change: the stream's thread takes a new one.

    lines, zones: {"door": points}; conf: minimum confidence, None for the func file's; classes:
    names of the classes to keep, None for all.
    """
    lines: Shapes = {}
    zones: Shapes = {}
    conf: Optional[float] = None
    classes: Optional[Tuple[str, ...]] = None

    def json(self) -> Dict[str, Any]:
        """As in the file."""
        return {"lines": self.lines, "zones": self.zones, "conf": self.conf,
                "classes": self.classes}


# ---- checks ----

def checked_settings(data: Any, names: Mapping[int, str], where: Callable[[str], str],
                     keep: Settings) -> Settings:
    """Settings from JSON. Keys that `data` lacks are taken from `keep`.

    names: of the model's classes, by number; empty if unknown. where(key): what precedes the
    message about a key; where("") about all. Raises InputError with one sentence.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where('')}must be an object with the keys {', '.join(KEYS)}, not "
                         f"{short(data)}.")
    for key in data:
        if key not in KEYS:
            near = nearest(key, KEYS)
            hint = f"; did you mean {near}?" if near else "."
            raise InputError(f"{where('')}unknown key {short(key)}{hint}")
    new: Dict[str, Any] = {}
    for key, value in data.items():
        try:
            if key == "conf":
                new[key] = checked_conf(value)
            elif key == "classes":
                new[key] = checked_classes(value, names)
            else:
                new[key] = checked_shapes(key, value)
        except InputError as error:
            raise InputError(f"{where(key)}{error}") from None
    settings = keep._replace(**new)
    count = len(settings.lines) + len(settings.zones)
    if count > MAX_SHAPES:
        raise InputError(f"{where('')}{count} lines and zones; a stream may have {MAX_SHAPES}.")
    return settings


def checked_shapes(key: str, value: Any) -> Shapes:
    """The lines or zones of a stream. key: "lines" or "zones"."""
    kind = key[:-1]
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"The {key} must map names to points, not {short(value)}.")
    if len(value) > MAX_SHAPES:
        raise InputError(f"{len(value)} {key}; a stream may have {MAX_SHAPES} lines and zones.")
    shapes = {}
    for name, points in value.items():
        check_name(kind, name, with_stream=False)
        if not isinstance(points, (list, tuple)) or not all(map(is_point, points)):
            raise InputError(f"The {kind} {name} needs points, each with the numbers x and y, not "
                             f"{short(points)}.")
        checked_points(kind, name, points)
        shapes[name] = tuple((x, y) for x, y in points)
    return shapes


def is_point(point: Any) -> bool:
    return isinstance(point, (list, tuple)) and len(point) == 2 and all(map(is_number, point))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def checked_conf(value: Any) -> Optional[float]:
    if value is None or (is_number(value) and MIN_CONF <= value <= 1):  # NaN is not
        return value
    raise InputError(f"must be a number from {MIN_CONF} to 1, not {short(value)}.")


def checked_classes(value: Any, names: Mapping[int, str]) -> Optional[Tuple[str, ...]]:
    """The names of the classes to keep; of a class without a name, its number."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"must be a list of classes, or null for all, not {short(value)}.")
    chosen = [class_name(each, names) for each in value]
    return tuple(dict.fromkeys(chosen))


def class_name(value: Any, names: Mapping[int, str]) -> str:
    """The name of a class that is given by its name or number. Raises InputError if there is no
    such class. If the names are unknown, any name will do."""
    is_text = isinstance(value, str) and len(value) <= MAX_CLASS_NAME
    is_index = isinstance(value, int) and not isinstance(value, bool)
    if not names and (is_text or is_index):
        return str(value)
    if is_index and value in names:
        return names[value]
    if is_text and value in names.values():
        return value
    near = nearest(value, names.values()) if is_text else None
    hint = f"; did you mean {near}?" if near else "."
    raise InputError(f"{short(value)}: no such class{hint}")


# ---- the file ----

def read(path: str) -> Dict[str, Any]:
    """The content of the file, by stream; {} if it does not exist. Raises InputError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: is not a file.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file, object_pairs_hook=without_duplicates)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: {json_mistake(error)}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not JSON in UTF-8.") from None
    except (ValueError, RecursionError) as error:  # a key twice, a number with 5000 digits
        raise InputError(f"{path}: {error}.") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: must be an object with the names of streams, not "
                         f"{short(data)}.")
    return data


def json_mistake(error: json.JSONDecodeError) -> str:
    """What is wrong with a text that is not JSON."""
    before, after = error.doc[:error.pos].rstrip(), error.doc[error.pos:].lstrip()
    if not error.doc.strip():
        return "is empty; delete it, or write {} into it"
    if before.endswith(",") and after[:1] in ("}", "]"):  # only Python 3.13 says so itself
        return f"line {error.lineno} is not JSON: no comma is allowed before {after[0]}"
    message = re.sub(" at$", "", error.msg)
    return f"line {error.lineno} is not JSON at column {error.colno}: {message}"


def without_duplicates(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {short(key)} is used twice in one object")
        found[key] = value
    return found


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Other programs that save into the file wait until the end of the block. Raises InputError."""
    try:
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write(path: str, data: Dict[str, Any]) -> None:
    """Replace the file as a whole, even if the power fails meanwhile; owner and permissions stay.
    To be called while it is locked(). Raises InputError."""
    target = os.path.realpath(path)
    temporary = f"{target}.part"
    try:
        old = os.stat(target) if os.path.exists(target) else None
        if old:
            open(target, "ab").close()  # a file that its owner has made read-only is not replaced
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(as_json(data) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if old:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(OSError):  # only root may
                    os.chown(temporary, old.st_uid, old.st_gid)
            os.chmod(temporary, stat.S_IMODE(old.st_mode))
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None


def as_json(value: Any, indent: str = "") -> str:
    """JSON with a line for each key, and the points of a line or zone on one line."""
    if not isinstance(value, dict) or not value:
        text = json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # the name of a file that is not UTF-8
            text = json.dumps(value)
        return text
    rows = [f"{indent}  {as_json(key)}: {as_json(each, indent + '  ')}"
            for key, each in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
