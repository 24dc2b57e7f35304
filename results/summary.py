"""What a run found: a line for each picture, and at the end a few lines for each stream.

    IMG_001.jpg: person 3, car 2
    street.mp4: 600 frames in 10.0 s, 60.0 FPS on average
    street.mp4: at most person 5, car 3 in one frame
    saved out.mp4: 600 frames, 10.0 s
    Limited by reading: decoding takes 16 of 17 ms per frame, the NPU is 33 % busy. ...
"""
from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Any, Mapping

from results.console import say
from results.status import count_objects
from results.wording import counted
from sources.file_names import as_text

MAX_IDENTITIES = 10000  # whose classes are known at a time
MAX_CLASSES = 5         # of a classifier that are printed at the end


class Findings:
    """What one stream found. Prints a line for each picture of a stream of pictures.

    stream: a Stream. If its file is played again and again, each picture is printed once, and
    identities are not counted. title: printed before each line of a picture.
    """

    def __init__(self, stream: Any, title: str = ""):
        self.stream, self.title, self.loop = stream, title, stream.loop
        self.frames = self.pictures = 0  # with detections
        self.largest: dict[str, int] = {}                    # objects in one frame
        self.best: Counter[str] = Counter()                  # frames by a classifier's best class
        self.identities: OrderedDict[int, Counter[str]] = OrderedDict()  # frames by class
        self.forgotten: Counter[str] = Counter()             # identities beyond MAX_IDENTITIES
        self.is_classifier = False

    def update(self, result: Any) -> None:
        """Count the detections of a Result."""
        found, counts = result.detections, count_objects(result.detections)
        self.frames += 1
        for name, count in counts.items():
            self.largest[name] = max(count, self.largest.get(name, 0))
        self.is_classifier = found.boxes is None
        if self.is_classifier and len(found):
            self.best[str(found.name(int(found.classes[0])))] += 1
        if getattr(found, "ids", None) is not None and not self.loop:
            self._count_identities(found)
        if result.file is not None:
            self._say_picture(result, counts)

    def _count_identities(self, found: Any) -> None:
        for identity, number in zip(found.ids.tolist(), found.classes.tolist()):
            if identity >= 0:
                self.identities.setdefault(identity, Counter())[str(found.name(number))] += 1
                self.identities.move_to_end(identity)
        while len(self.identities) > MAX_IDENTITIES:
            self.forgotten[usual(self.identities.popitem(last=False)[1])] += 1

    def _say_picture(self, result: Any, counts: Mapping[str, int]) -> None:
        self.pictures += 1
        if self.loop and self.pictures > result.stream.source.total:
            return
        text = listed(counts)
        if self.is_classifier and len(result.detections):
            best, score = result.detections.classes[0], result.detections.scores[0]
            text = f"{result.detections.name(int(best))} {score:.2f}"
        say(f"{self.title}{as_text(result.file)}: {text}")

    def lines(self) -> list[str]:
        """What is printed at the end: no line or one."""
        counter = getattr(self.stream.lines, "counts", None)
        if not self.frames or self.frames == self.pictures == 1:  # its line says it
            return []
        if counter:
            text = "; ".join(f"{line} {way}: {listed(counts, '0')}"
                             for line, ways in counter.items() for way, counts in ways.items())
        elif self.is_classifier:
            what = "picture" if self.pictures else "frame"
            text = ", ".join(f"{name} in {counted(count, what)}"
                             for name, count in self.best.most_common(MAX_CLASSES))
        elif self.stream.tracker is not None and not self.loop:
            classes = self.forgotten + Counter(map(usual, self.identities.values()))
            total = sum(classes.values())
            text = f"{counted(total, 'tracked object')}: {listed(classes)}" if total else ""
        else:
            what = "picture" if self.pictures else "frame"
            text = f"at most {listed(self.largest)} in one {what}" if self.largest else ""
        return [f"{self.stream.name}: {text or 'nothing found'}"]


def usual(classes: Counter[str]) -> str:
    """The class that an object had most often: a detector may alternate between car and truck."""
    return classes.most_common(1)[0][0]


def listed(counts: Mapping[str, int], nothing: str = "nothing found") -> str:
    """ "person 3, car 2", the most frequent class first."""
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count}" for name, count in ordered) or nothing


def saved(streams: list[Any], shared: list[Any]) -> list[str]:
    """What was written to files: ["saved out.mp4: 600 frames, 10.0 s"]."""
    sinks = [sink for stream in streams for sink in stream.own_sinks] + shared
    texts = [getattr(getattr(sink, "sink", sink), "saved", "") for sink in sinks]
    return [f"saved {text}" for text in texts if text]


def report(streams: list[Any], shared: list[Any], quiet: bool) -> None:
    """Print the rates, what was found and saved, what limited the rate, and the error that has
    to come last."""
    for stream in streams:
        if stream.count or stream.failed:
            say(stream.summary())
    if len(streams) > 1:
        count = sum(stream.count for stream in streams)
        end = max(stream.ended or time.perf_counter() for stream in streams)
        seconds = end - min(stream.began for stream in streams)
        say(f"in all: {counted(count, 'frame')} in {seconds:.1f} s, {count / seconds:.1f} FPS on "
            "average")
    if not quiet:
        lines = [line for stream in streams if stream.findings for line in stream.findings.lines()]
        lines += [line for sink in shared for line in getattr(sink, "found", [])]
        lines += saved(streams, shared)
        lines.append(streams[0].meter.limit() if streams[0].meter else "")
        for line in filter(None, lines):
            say(line)
    errors = [stream.error for stream in streams
              if stream.error and (len(streams) == 1 or stream.code == 3)]
    for message in errors[:1]:  # a dead NPU ends all streams and is reported once
        streams[0].print_once(message)


def exit_code(streams: list[Any], signals: list[int], complete: bool) -> int:
    """The exit code of a run; complete: whether all sources could be opened."""
    codes = [stream.code for stream in streams] + [0 if complete else 2]
    for code in (1, 3, 2):  # the most serious one
        if code in codes:
            return code
    return 128 + signals[0] if signals else 0
