"""Whether a video file's number of frames can be trusted."""
from __future__ import annotations

import os
from urllib.parse import urlsplit

from sources.names import is_url
from sources.unreadable import ends_of

MATROSKA, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # ids of EBML elements, RFC 8794, 9559
UNKNOWN_SIZE = (1 << 56) - 1


def count_is_exact(path: str) -> bool:
    """Whether a file or URL was cut off if it has fewer frames than the reader's number.

    An MP4 stores the number, unless it is fragmented. For other containers the reader multiplies
    duration and frame rate, which is wrong for a variable rate. Matroska and AVI store the size of
    the file: one that is smaller was cut off.
    """
    if is_url(path):
        return urlsplit(path).path.lower().endswith((".mp4", ".m4v", ".mov"))
    head, _ = ends_of(path)
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:8], "little") > os.path.getsize(path)
    if head.startswith(MATROSKA):
        start = head.find(SEGMENT) + len(SEGMENT)
        length = int.from_bytes(head[start + 1:start + 8], "big")
        return head[start:start + 1] == b"\x01" and length != UNKNOWN_SIZE \
            and start + 8 + length > os.path.getsize(path)
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide") and b"mvex" not in head
