"""What FFmpeg does not say of a live HLS stream: the length of its segments, and which are new."""
from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

from sources.names import SourceUnavailable, hide
from sources.timeouts import Timeouts
from sources.url_probe import get, split_login

USUAL_SEGMENT = 10.0  # seconds per segment of a playlist that does not state it
FIRST_SEGMENTS = 3    # FFmpeg begins with the last three segments of a live playlist
MAX_BYTES = 1 << 22   # of a playlist


def check_playlist(answer: Any, source: str, timeouts: Timeouts) -> None:
    """Note the length of the segments. answer: the response to a GET for the source.

    Opened at once after an interruption, the stream would begin with segments that were played
    before. Raises SourceUnavailable until the playlist has enough new ones. Raises OSError,
    HTTPException and ValueError.
    """
    text = answer.read(MAX_BYTES).decode("utf-8", "replace")
    found = re.search(r"^#EXT-X-STREAM-INF.*\s+([^#\s].*)", text, re.MULTILINE)
    if found:  # a list of playlists, one for each bit rate
        base = source if answer.url == split_login(source)[0] else answer.url
        with get(urljoin(base, found.group(1).strip()), timeouts.open_timeout) as answer:
            text = answer.read(MAX_BYTES).decode("utf-8", "replace")
    seconds = re.findall(r"^#EXT(?:INF|-X-TARGETDURATION):\s*([\d.]+)", text, re.MULTILINE)
    timeouts.segment = max(map(float, seconds), default=USUAL_SEGMENT)
    if "#EXT-X-ENDLIST" in text or not timeouts.was_open:
        return
    listed = segments(text)
    if timeouts.played is None:
        timeouts.played = set(listed)
    if not timeouts.played.isdisjoint(listed[-FIRST_SEGMENTS:]):
        raise SourceUnavailable(f"{hide(source)}: has no new segments.")


def segments(text: str) -> list[tuple[int, str]]:
    """Number and URI of each segment in a playlist. Servers may use a URI again."""
    found = re.search(r"^#EXT-X-MEDIA-SEQUENCE:\s*(\d+)", text, re.MULTILINE)
    names = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    return list(enumerate(names, int(found.group(1)) if found else 0))
