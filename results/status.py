"""What a stream does at present, and the board, as page and broker tell it: rates, counts, load, temperatures."""
import collections
import glob
import os
import re
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

AWAY = 5  # seconds without a frame after which a live stream counts as away, where it does not say so itself
SYSROOT = os.environ.get("SYSROOT", "")  # a folder to read in place of /, for the tests
FIELDS = ("stream", "number", "time", "size", "detections", "crossings", "lines", "zones", "inside", "error", "file",
          "board", "epoch")


def light(result):
    """A Result without its picture, so that what waits in a queue holds no frames. Takes about 2 us."""
    return SimpleNamespace(**{name: getattr(result, name, None) for name in FIELDS})


def counted(detections) -> dict:
    """Objects of each class, {"person": 2}, of a Detections or None. A classifier's classes are no objects."""
    if detections is None or detections.boxes is None:
        return {}
    counts = {}  # two numbers may have one name
    for number, count in sorted(collections.Counter(map(int, detections.classes)).items()):
        name = str(detections.name(number))
        counts[name] = counts.get(name, 0) + count
    return counts


def origin(result) -> dict:
    """{"board": name, "epoch": number} of a result that came from another board (examples/boards.py), else {}."""
    epoch = getattr(result, "epoch", None)
    return {} if epoch is None else {"board": result.board, "epoch": epoch}


class Status:
    """One stream's present state. update() is called from the stream's thread, the rest from any."""

    def __init__(self, stream):
        self.stream, self.newest, self.seen = stream, None, None
        self.began = time.perf_counter()
        self.latencies = collections.deque(maxlen=60)

    def update(self, result):
        """Take note of a Result, and return it lightened. `newest` is the last one that did not fail."""
        lightened = light(result)
        if result.error is None:
            self.seen = time.perf_counter()
            self.latencies.append(self.seen - result.received)
            self.newest = lightened
        return lightened

    @property
    def state(self) -> str:
        """Whether the stream is "running", "away" (a live source that does not deliver) or "ended"."""
        if getattr(self.stream, "ended", None) is not None:
            return "ended"
        away = getattr(self.stream, "away", None)
        if away is None:  # the stream does not say
            pause = max(AWAY, 3 / (getattr(self.stream, "most", None) or 1))  # most: frames a second that are wanted
            away = self.stream.live and time.perf_counter() > (self.seen or self.began) + pause
        return "away" if away else "running"

    def json(self) -> dict:
        """The state for JSON: fps (1/s); frames, dropped and failed since the start; latency_ms from reading to result,
        median of the last 60 frames, None before the first; live; state; objects now, by class; lines and zones as in
        --json, None where the stream has none."""
        state, newest, stream = self.state, self.newest, self.stream
        running, latencies = state == "running", list(self.latencies)
        zones = newest.zones if newest else None
        return {**origin(newest), "fps": round(float(stream.fps or 0), 1) if running else 0.0, "frames": stream.count,
                "dropped": stream.dropped, "failed": stream.failed,
                "latency_ms": round(1000 * statistics.median(latencies), 1) if latencies else None,
                "live": bool(stream.live), "state": state,
                "objects": counted(newest.detections) if running and newest else {},
                "lines": newest.lines if newest else None,
                "zones": zones if running or zones is None else {zone: {} for zone in zones}}


def board() -> dict:
    """The NPU's load in percent, a list with one number a core, and temperature in degrees Celsius, as the kernel shows
    them, None where it does not; and all temperatures by the name of their zone."""
    load, temperatures = None, {}
    try:
        with open(f"{SYSROOT}/sys/kernel/debug/rknpu/load") as file:
            load = [int(number) for number in re.findall(r"(\d+)\s*%", file.read())] or None
    except (OSError, ValueError):
        pass
    for zone in sorted(glob.glob(f"{SYSROOT}/sys/class/thermal/thermal_zone*")):
        try:
            name = Path(zone, "type").read_text().strip()
            temperatures[name] = round(int(Path(zone, "temp").read_text()) / 1000, 1)
        except (OSError, ValueError):
            continue
    npu = temperatures.get("npu-thermal", temperatures.get("soc-thermal"))
    return {"npu": {"load": load, "temperature": npu}, "temperatures": temperatures}
