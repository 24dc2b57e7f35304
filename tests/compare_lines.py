"""Compares the counts of results/lines.py with those of supervision's LineZone.

    ENVIRONMENT/bin/python tests/compare_lines.py       # an environment with supervision and pytest
    ENVIRONMENT/bin/python tests/compare_lines.py 5     # only the first five cases

The cases are those of test_lines.py. LineZone uses the middle of a box's lower edge and
minimum_crossing_threshold=3. Cases with different counts are printed. Run by hand; takes a few
seconds.
"""

import inspect
import sys

import numpy as np
import supervision
import test_lines

from results.lines import Lines


class Both(Lines):
    """Lines, with a LineZone for each line that gets the same frames."""

    every = []

    def __init__(self, lines=None, zones=None):
        super().__init__(lines, zones)
        self.zones_of = {}
        self.every.append(self)

    def update(self, result):
        super().update(result)
        found = result.detections
        if found is None or found.boxes is None or found.ids is None:
            return
        for name, points in self.line_pixels.items():
            if name not in self.zones_of:
                # Its "in" is from right to left, so the line is reversed.
                self.zones_of[name] = supervision.LineZone(
                    *(supervision.Point(*point) for point in points[::-1]),
                    minimum_crossing_threshold=3,
                    triggering_anchors=[supervision.Position.BOTTOM_CENTER],
                )
            self.zones_of[name].trigger(
                supervision.Detections(
                    xyxy=found.boxes,
                    class_id=found.classes,
                    confidence=np.float32(found.scores),
                    tracker_id=found.ids,
                )
            )


def is_test(value):
    return inspect.isfunction(value) and value.__name__.startswith("test_")


def main(limit):
    test_lines.Lines = Both
    same = differ = 0
    for name, test in inspect.getmembers(test_lines, is_test)[:limit]:
        marks = {mark.name: mark for mark in getattr(test, "pytestmark", ())}
        if "slow" in marks:
            continue
        marks = [marks["parametrize"]] if "parametrize" in marks else []
        if not marks and inspect.signature(test).parameters:
            continue
        for values in marks[0].args[1] if marks else [None]:
            Both.every.clear()
            try:
                test(
                    *() if values is None else (values,) if "," not in marks[0].args[0] else values
                )
            except TypeError:  # it needs fixtures of pytest
                continue
            for lines in Both.every:
                for line, zone in lines.zones_of.items():
                    own = tuple(sum(lines.counts[line][way].values()) for way in ("in", "out"))
                    if own == (zone.in_count, zone.out_count):
                        same += 1
                    else:
                        differ += 1
                        counts = zone.in_count, zone.out_count
                        print(f"{name}, line {line}: in, out {own}, LineZone {counts}")
    print(f"{same} lines have the same counts, {differ} do not")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
