"""Whether supervision's LineZone counts as results/lines.py does, on every drawn case of test_lines.py.

    ENVIRONMENT/bin/python tests/compare_lines.py       # an environment with supervision, pytest and opencv

LineZone is given the boxes' lower middle and minimum_crossing_threshold=3. Where it differs the case is printed.
"""
import inspect

import numpy as np
import supervision
import test_lines

from results.lines import Lines


class Both(Lines):
    """Lines that shows a LineZone for each of its lines the same frames."""

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
        for name, points in self.placed[0].items():
            if name not in self.zones_of:
                # Its "in" is from right to left: the line is given the other way round.
                self.zones_of[name] = supervision.LineZone(
                    *(supervision.Point(*point) for point in points[::-1]), minimum_crossing_threshold=3,
                    triggering_anchors=[supervision.Position.BOTTOM_CENTER])
            self.zones_of[name].trigger(supervision.Detections(
                xyxy=found.boxes, class_id=found.classes, confidence=np.float32(found.scores), tracker_id=found.ids))


def main():
    test_lines.Lines = Both
    alike = differ = 0
    for name, test in inspect.getmembers(test_lines, inspect.isfunction):
        marks = {mark.name: mark for mark in getattr(test, "pytestmark", ())}
        if not name.startswith("test_") or "slow" in marks:
            continue
        marks = [marks["parametrize"]] if "parametrize" in marks else []
        if not marks and inspect.signature(test).parameters:
            continue
        for values in marks[0].args[1] if marks else [None]:
            Both.every.clear()
            try:
                test(*() if values is None else (values,) if "," not in marks[0].args[0] else values)
            except TypeError:  # it wants more of pytest than this has
                continue
            for lines in Both.every:
                for line, zone in lines.zones_of.items():
                    own = tuple(sum(lines.counts[line][way].values()) for way in ("in", "out"))
                    if own == (zone.in_count, zone.out_count):
                        alike += 1
                    else:
                        differ += 1
                        print(f"{name}, line {line}: in, out {own}, LineZone {zone.in_count, zone.out_count}")
    print(f"{alike} lines counted alike, {differ} not")


if __name__ == "__main__":
    main()
