"""What a source is called, whether its address can be one, and what is shown of it: never a password."""
import os
import re
from pathlib import Path
from typing import List, Optional, Tuple
from urllib.parse import unquote, urlsplit

from rknnmodel import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".jp2", ".avif")


SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "tls", "rtp", "srt", "mms", "mmsh", "ftp",
           "file")


class NotYet(InputError):
    """A live source does not answer, but may later."""


class NotRead(Exception):
    """A reader reads no video there."""


class NoHardware(Exception):
    """The board's decoder does not decode it: why, the end of a sentence."""


def hide(text: str) -> str:
    """The text with "***" for each password in it: in a URL's login, in its query, in a pipeline's properties."""
    # Up to the last @ before another URL or element, for a password may hold one, or a slash, or a space.
    text = re.sub(r"(?<=://)([^/?#:\n]*):((?:(?!\w://| ! )[^\n])*)@([^\s/?#'\"]*)(/?)", hide_login, text)
    return re.sub(r"(?i)\b([\w-]*(?:pas|pass|passwd|passphrase|password|pwd|psw|user-pw|secret|token|api_?key|auth|"
                  r"authorization)=)(?:\"[^\"]*\"|'[^']*'|[^&\s\"']+)", r"\1***", text)


def hide_login(found: "re.Match") -> str:
    """USER:***@HOST of USER:PASSWORD@HOST. But of HOST:PORT/PATH@REST nothing is hidden, where REST is no host."""
    user, password, host, slash = found.groups()
    a_host = slash or re.search(r"[.:\[]", host)
    return found.group() if re.match(r"\d{1,5}[/?#]", password) and not a_host else f"{user}:***@{host}{slash}"


def shown(source: str) -> str:
    """A source as it is shown. Of a URL with spaces, which is none, no more than its beginning: who knows what stands
    behind the space."""
    return re.sub(r"(?s)\s.*", " ...", hide(source)) if "://" in source else hide(source)


def split_name(argument: str) -> Tuple[Optional[str], str]:
    """("gate", "rtsp://...") of "gate=rtsp://...", and (None, argument) where it names no stream."""
    found = re.fullmatch(r"([^/\\:=?*%!]*[^/\\:=?*%!\s])=(.*)", argument, re.DOTALL)
    return found.groups() if found and " ! " not in argument and not os.path.exists(argument) else (None, argument)


def name_streams(sources: List[Tuple[Optional[str], str]]) -> List[str]:
    """A short name for each of (given name or None, source), without credentials, and no two alike. Raises InputError
    for given names that are no names, or alike."""
    given = [name for name, _ in sources if name is not None]
    for name, source in sources:
        if not source:
            raise InputError(f"{name or 'A stream'}: names no source.")
    for name in given:
        if not re.fullmatch(r"[\w.() -]*\w[\w.() -]*", name):
            raise InputError(f"{name!r} cannot be the name of a stream: it stands in files, topics and pages, and has "
                             f"letters, digits, spaces and . _ - ( ) only.")
        if given.count(name) > 1:
            raise InputError(f"{name}: two streams have that name.")
    both = [(name, name) if name is not None else short_names(source) for name, source in sources]
    taken, names = set(given), []
    for (name, _), (short, longer) in zip(sources, both):
        alike = [other for other in both if other[0] == short]
        unique = short if name is not None or len(alike) == 1 else longer if alike.count((short, longer)) == 1 else None
        choice, number = unique or f"{short}-1", 1
        while name is None and choice in taken:
            choice, number = f"{unique or short}-{number + 1}", number + 1
        taken.add(choice)
        names.append(choice)
    return names


def short_names(source: str) -> Tuple[str, str]:
    """The short name of a source, and a longer one, for where others have that name, too."""
    if source.isdigit():
        names = (f"camera{source}",) * 2
    elif " ! " in source:
        names = (source.split()[0],) * 2
    elif "://" in source and not source.startswith("file://"):
        try:
            parts = urlsplit(hide(source))
            host = parts.hostname or parts.scheme
            names = host, host + parts.path
        except ValueError:  # it is malformed, and will not open
            names = (source.split(":")[0],) * 2
    else:
        path = Path(local(source))
        names = path.name or path.resolve().name, "-".join(path.parts[-2:])
    short, longer = (re.sub(r"[^\w.() -]+", "-", name).strip("-. ") or "stream" for name in names)
    return short, longer


def local(source: str) -> str:
    """The path of a file:// URL; anything else as it is."""
    return unquote(urlsplit(source).path) if source.startswith("file://") else source


def check_utf8(path: str) -> None:
    """Raise InputError for a path that is not UTF-8: OpenCV may end the process over one."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: this name is not UTF-8, and OpenCV cannot open it: rename it.") from None


def is_picture(path: str) -> bool:
    """Whether a file's name is that of a picture."""
    return path.lower().endswith(PICTURES)


def malformed(source: str) -> Optional[str]:
    """What is wrong with a URL as such, or None."""
    scheme = source.split("://")[0]
    if scheme.lower() not in SCHEMES:
        return f"{scheme}:// is none of the kinds of URL that are read ({', '.join(SCHEMES[:6])}, ...)"
    if re.search(r"\s", source):
        return "a URL has no spaces (write %20)"
    try:
        parts = urlsplit(source)
        if not parts.hostname and scheme.lower() not in ("udp", "rtp", "srt"):  # which may listen
            return "the URL names no host"
        parts.port  # noqa: B018  raises where it is none
    except ValueError:
        return "not a URL: behind the host's : stands its port, a number up to 65535"
    return None
