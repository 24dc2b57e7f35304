"""The present state of a stream and of the board, for the web page and MQTT."""
from __future__ import annotations

import collections
import glob
import os
import re
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Deque, Dict, Optional

# seconds without a frame after which a live stream is "away", if it does not report this itself
AWAY_SECONDS = 5
SYSROOT = os.environ.get("SYSROOT", "")  # read instead of / in tests
FIELDS = ("stream", "number", "time", "size", "detections", "crossings", "lines", "zones",
          "inside", "error", "file", "board", "epoch")


def without_image(result: Any) -> SimpleNamespace:
    """Return the fields of a Result except frame and picture, so that a queue holds no images."""
    return SimpleNamespace(**{name: getattr(result, name, None) for name in FIELDS})


def count_objects(detections: Any) -> Dict[str, int]:
    """Count the objects of each class: {"person": 2}. Empty for None and for a classifier."""
    if detections is None or detections.boxes is None:
        return {}
    counts: Dict[str, int] = {}
    by_number = collections.Counter(map(int, detections.classes))
    for number, count in sorted(by_number.items()):
        name = str(detections.name(number))  # two class numbers may share a name
        counts[name] = counts.get(name, 0) + count
    return counts


def origin(result: Any) -> Dict[str, Any]:
    """Return {"board": name, "epoch": number} for a result of another board, else {}.

    Such results come from examples/boards.py.
    """
    epoch = getattr(result, "epoch", None)
    return {} if epoch is None else {"board": result.board, "epoch": epoch}


class Status:
    """The present state of one stream.

    `update()` is called by the stream's thread. The other methods can be called by any thread.
    `newest` is the last result that did not fail, without its image.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.newest: Optional[SimpleNamespace] = None
        self.last_update: Optional[float] = None
        self.closed = False  # set it when the program ends: then the stream has ended, too
        self.started = time.perf_counter()
        self.latencies: Deque[float] = collections.deque(maxlen=60)  # seconds

    def update(self, result: Any) -> SimpleNamespace:
        """Record a Result. Returns the Result without its image."""
        record = without_image(result)
        if result.error is None:
            self.last_update = time.perf_counter()
            self.latencies.append(self.last_update - result.received)
            self.newest = record
        return record

    @property
    def state(self) -> str:
        """ "running", "ended", or "away" for a live stream that delivers no frames."""
        if self.closed or getattr(self.stream, "ended", None) is not None:
            return "ended"
        away = getattr(self.stream, "away", None)
        if away is None:  # the stream does not report it
            limit = max(AWAY_SECONDS, 3 / (getattr(self.stream, "max_fps", None) or 1))
            silent = time.perf_counter() - (self.last_update or self.started)
            away = self.stream.live and silent > limit
        return "away" if away else "running"

    def json(self) -> Dict[str, Any]:
        """Return the state, ready for json.dumps().

        frames, dropped and failed count since the start. latency_ms is the time from reading a
        frame to its result, the median of the last 60 frames; None before the first. objects are
        those of the newest frame. lines and zones are as in --json; None without lines or zones.
        """
        state, newest, stream = self.state, self.newest, self.stream
        running, latencies = state == "running", list(self.latencies)
        zones = newest.zones if newest else None
        if zones is not None and not running:
            zones = {zone: {} for zone in zones}
        return {
            **origin(newest),
            "fps": round(float(stream.fps or 0), 1) if running else 0.0,
            "frames": stream.count,
            "dropped": stream.dropped,
            "failed": stream.failed,
            "latency_ms": round(1000 * statistics.median(latencies), 1) if latencies else None,
            "live": bool(stream.live),
            "state": state,
            "objects": count_objects(newest.detections) if running and newest else {},
            "lines": newest.lines if newest else None,
            "zones": zones,
        }


def usable_cpus() -> int:
    """Number of CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # another system, or a sandbox that forbids it
        return os.cpu_count() or 1


def board(root: Optional[str] = None) -> Dict[str, Any]:
    """Return the NPU's load and the board's temperatures, as the kernel reports them.

    {"npu": {"load": percent of each core, "temperature": degrees Celsius}, "temperatures":
    {zone: degrees Celsius}}. Load and temperature are None if the kernel does not report them.
    """
    root = SYSROOT if root is None else root
    load, temperatures = None, {}
    try:
        with open(f"{root}/sys/kernel/debug/rknpu/load") as file:
            load = [int(percent) for percent in re.findall(r"(\d+)\s*%", file.read())] or None
    except (OSError, ValueError):
        pass
    for zone in sorted(glob.glob(f"{root}/sys/class/thermal/thermal_zone*")):
        try:
            name = Path(zone, "type").read_text().strip()
            temperatures[name] = round(int(Path(zone, "temp").read_text()) / 1000, 1)
        except (OSError, ValueError):
            continue
    npu = temperatures.get("npu-thermal", temperatures.get("soc-thermal"))
    return {"npu": {"load": load, "temperature": npu}, "temperatures": temperatures}
