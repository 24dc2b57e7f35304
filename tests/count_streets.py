"""How well lines count on streets that no test has seen: the counts of tests/test_lines.py's six lines against the
generator's truth, from what the demo model finds and from true boxes. By hand; tests/README.md has the figures.

    python tests/count_streets.py 1 2 3 4        # seeds of models/demo/street.py; 25 s each

The first tells of detector, tracker and lines together, the second of tracker and lines alone. Every line that differs
is printed with (counted, true) by class. Needs Pillow and Debian's package fonts-noto-color-emoji.
"""
import sys

import numpy as np
import test_lines as drawn
from compare_trackers import detect

RATE = 60


def drawn_street(seed):
    """Truth, identities and detections of ten seconds of a street."""
    import street  # compare_trackers has made it importable
    frames, ids = [], []

    def images():
        for image, truth, names in street.street_of(street.other_cast(seed), 10 * RATE, RATE):
            frames.append(truth)
            ids.append(names)
            yield image
    found = detect(images())
    return frames, ids, found


def differences(counts, right):
    """{"in": {class: (counted, true)}, "out": ...} where they differ."""
    out = {}
    for way in ("in", "out"):
        for kind in sorted(set(counts[way]) | set(right[way])):
            pair = counts[way].get(kind, 0), right[way].get(kind, 0)
            if pair[0] != pair[1]:
                out.setdefault(way, {})[kind] = pair
    return out


def main(seeds):
    wrong, total, crossings = {"detections": [0, 0], "true boxes": [0, 0]}, 0, 0
    for seed in seeds:
        frames, ids, found = drawn_street(seed)
        for step in (1, 4, 6):
            true = [(boxes, classes, np.full(len(boxes), 0.9))
                    for _, boxes, classes in drawn.true_tracks(frames[::step], ids[::step])]
            counts = {"detections": found[::step], "true boxes": true}
            counts = {what: drawn.counted(drawn.detected_tracks(boxes, RATE / step), RATE / step)
                      for what, boxes in counts.items()}
            for line, points in drawn.STREET.items():
                right = drawn.ways(frames[::step], ids[::step], points)
                total += 1
                crossings += sum(sum(way.values()) for way in right.values())
                for what, counted in counts.items():
                    differ = differences(counted[line], right)
                    if differ:
                        wrong[what][0] += 1
                        wrong[what][1] += sum(abs(a - b) for way in differ.values() for a, b in way.values())
                        print(f"seed {seed}, {RATE // step} FPS, line {line}, {what}: {differ}")
    for what, (lines, count) in wrong.items():
        print(f"{what}: {lines} of {total} lines differ, by {count} of {crossings} crossings")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [1])
