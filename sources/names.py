"""What a source is called, whether its address is valid, and how it is shown without passwords."""
from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from sources.file_names import as_text, on_disk
from vision.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".jp2",
            ".avif", ".heic", ".heif")  # OpenCV cannot read the last two, and main.py says so
SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "tls", "rtp", "srt",
           "mms", "mmsh", "ftp", "file")


class SourceUnavailable(InputError):
    """A live source does not answer now, but may later."""


class NotReadable(Exception):
    """A reader cannot read a video there."""


class NoHardware(Exception):
    """The board's decoder cannot decode this video. The message completes "because ..."."""


# ---- kinds of sources ----

def is_number(source: str) -> bool:
    """Whether a source is a number. int() fails for some of what str.isdigit() accepts, "²"."""
    return source.isascii() and source.isdigit()


def is_camera(source: str) -> bool:
    """Whether a source is a camera: its number or its device, also one that is not there now.
    Files, folders and pipes in /dev, such as those in /dev/shm, are not."""
    if is_number(source):
        return True
    path = os.path.normpath(source)
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return path.startswith("/dev/") and not path.startswith("/dev/shm/")


def is_url(source: str) -> bool:
    """Whether a source is a URL, and not that of a file here."""
    return "://" in source and " ! " not in source and not source.startswith("file://")


def lower_scheme(source: str) -> str:
    """The source with its URL's scheme in lower case, as FFmpeg needs it."""
    return re.sub(r"^[A-Za-z]+(?=://)", lambda scheme: scheme.group().lower(), source)


def local_path(source: str) -> str:
    """The path of a file:// URL, or of a file named on the command line; a URL unchanged."""
    source = lower_scheme(source)
    if source.startswith("file://"):
        source = os.fsdecode(unquote_to_bytes(urlsplit(on_disk(source)).path))
    return source if is_url(source) else on_disk(source)


def is_picture(path: str) -> bool:
    """Whether a file's name is that of a picture."""
    return path.lower().endswith(PICTURES)


def malformed(source: str) -> str | None:
    """What is wrong with a URL as such, or None."""
    scheme = source.split("://")[0]
    if scheme.lower() not in SCHEMES:
        return f"{scheme}:// is not supported; choose from {', '.join(SCHEMES[:6])}, ..."
    if re.search(r"\s", source):
        return "a URL contains no spaces (write %20)"
    found = LOGIN.search(source)
    password = found.group(2) if found and hide_login(found) != found.group() else ""
    codes = [f"{quote(sign, safe='')} instead of {sign}" for sign in "/?#[]" if sign in password]
    if codes:
        return f"in the password, write {', '.join(codes)}"
    try:
        parts = urlsplit(source)
        if not parts.hostname and scheme.lower() not in ("udp", "rtp", "srt"):  # these can listen
            return "the URL names no host"
        parts.port  # noqa: B018  raises ValueError if it is invalid
    except ValueError:
        return "not a valid URL: the port after the host's : must be a number up to 65535"
    return None


# ---- without passwords ----

# USER:PASSWORD@HOST of a URL, up to the last @ before another URL or element of a pipeline: a
# password may contain @, / and spaces.
LOGIN = re.compile(r"(?<=://)([^/?#:\n]*):((?:(?!\w://| ! )[^\n])*)@([^\s/?#'\"]*)(/?)")


def hide(text: str) -> str:
    """The text with "***" for every password: in a URL's login, in its query, in a pipeline's
    properties."""
    text = LOGIN.sub(hide_login, text)
    return re.sub(r"(?i)\b([\w-]*(?:pas|pass|passwd|passphrase|password|pwd|psw|user-pw|secret|"
                  r"token|api_?key|auth|authorization)=)(?:\"[^\"]*\"|'[^']*'|[^&\s\"']+)",
                  r"\1***", text)


def hide_login(found: re.Match) -> str:
    """USER:***@HOST for USER:PASSWORD@HOST. Nothing is hidden in HOST:PORT/PATH@REST, if REST does
    not look like a host."""
    user, password, host, slash = found.groups()
    is_host = slash or re.search(r"[.:\[]", host)
    if re.match(r"\d{1,5}[/?#]", password) and not is_host:
        return found.group()
    return f"{user}:***@{host}{slash}"


def shown(source: str) -> str:
    """A source without its passwords. An invalid URL is cut at its first space: what follows may be
    part of a password."""
    return re.sub(r"(?s)\s.*", " ...", hide(source)) if "://" in source else hide(source)


# ---- names of streams ----

def split_name(argument: str) -> tuple[str | None, str]:
    """("gate", "rtsp://...") for "gate=rtsp://...", and (None, argument) without such a name."""
    found = re.fullmatch(r"([^/\\:=?*%!]*[^/\\:=?*%!\s])=(.*)", argument, re.DOTALL)
    if not found or " ! " in argument or os.path.exists(argument):
        return None, argument
    return found.group(1), found.group(2)


def group_pictures(sources: list[tuple[str | None, Any]]) -> list[tuple[str | None, Any]]:
    """The sources, with all unnamed pictures in one list, because a shell expands photos/*.jpg into
    several arguments: [(None, ["a.jpg", "b.jpg"]), ("gate", "rtsp://...")]."""
    pictures = [source for name, source in sources
                if name is None and is_picture(source) and os.path.isfile(source)]
    if len(pictures) < 2:
        return sources
    index = sources.index((None, pictures[0]))
    others = [each for each in sources if each[0] is not None or each[1] not in pictures]
    return [*others[:index], (None, pictures), *others[index:]]


def name_streams(sources: list[tuple[str | None, Any]]) -> list[str]:
    """A short and unique name, without credentials, for each (given name or None, source).

    Raises InputError for given names that are invalid or not unique.
    """
    check_given(sources)
    candidates = [(name, name) if name is not None else short_names(source)
                  for name, source in sources]
    taken, names = {name for name, _ in sources if name is not None}, []
    for (name, _), (short, longer) in zip(sources, candidates):
        if name is None:
            alike = [other for other in candidates if other[0] == short]
            if len(alike) == 1:
                name = unique(short, taken)
            elif alike.count((short, longer)) == 1:
                name = unique(longer, taken)
            else:
                name = unique(f"{short}-1", taken, short)
        taken.add(name)
        names.append(name)
    return names


def check_given(sources: list[tuple[str | None, Any]]) -> None:
    """Raise InputError for a stream without a source, and for given names that are invalid or not
    unique."""
    given = [name for name, _ in sources if name is not None]
    for name, source in sources:
        if not source:
            raise InputError(f"{name}: has no source." if name else "A source is empty.")
    for name in given:
        if not re.fullmatch(r"[\w.() -]*\w[\w.() -]*", name):
            raise InputError(f"{name!r} cannot be the name of a stream. Use only letters, digits, "
                             f"spaces and . _ - ( ): the name is used for files, topics and pages.")
        if given.count(name) > 1:
            raise InputError(f"{name}: two streams have this name.")


def unique(name: str, taken: set[str], stem: str | None = None) -> str:
    """The name, or the first of STEM-2, STEM-3, ... that is not taken."""
    number = 1
    while name in taken:
        number += 1
        name = f"{stem or name}-{number}"
    return name


def short_names(source: Any) -> tuple[str, str]:
    """The short name of a source, and a longer one in case others have the same short name.
    Pictures are named after their folder."""
    if isinstance(source, list):
        source = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in source])
    source = str(source)
    if is_number(source):
        names = (f"camera{source}",) * 2
    elif " ! " in source:
        names = (source.split()[0],) * 2
    elif is_url(lower_scheme(source)):
        try:
            parts = urlsplit(hide(source))
            host = parts.hostname or parts.scheme
            names = host, host + parts.path
        except ValueError:  # it is malformed, and will not open
            names = (source.split(":")[0],) * 2
    else:
        path = Path(local_path(source))
        while not os.path.exists(path) and re.search(r"[*?[]|%\d*d", path.name):
            path = path.parent  # of a pattern such as photos/*.png
        names = as_text(path.name or path.resolve().name), as_text("-".join(path.parts[-2:]))
    short, longer = (re.sub(r"[^\w.() -]+", "-", name).strip("-. ") or "stream" for name in names)
    return short, longer
