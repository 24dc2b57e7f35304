"""Compares counts of lines with the true counts, on generated streets that no test uses.

    python tests/line_counts.py 1 2 3 4               # seeds of the streets; 25 s each
    python tests/line_counts.py 1 --seconds 2         # a short run

Run by hand; tests/README.md has the figures. Each street is counted twice: from detections of the
demo model (tests detector, tracker and lines), and from true boxes (tests tracker and lines). Lines
with wrong counts are printed with (counted, true) by class. The lines are those of test_lines.py.
Needs Pillow and Debian's package fonts-noto-color-emoji.
"""

import argparse

import numpy as np
import test_lines as drawn
from compare_trackers import detect

RATE = 60


def drawn_street(seed, seconds):
    """Return truth, identities and detections of a street."""
    import street  # compare_trackers has added its folder to sys.path

    frames, ids = [], []

    def images():
        for image, truth, names in street.street_of(
            street.other_cast(seed), round(seconds * RATE), RATE
        ):
            frames.append(truth)
            ids.append(names)
            yield image

    found = detect(images())
    return frames, ids, found


def differences(counts, right):
    """Return the counts that differ: {"in": {class: (counted, true)}, "out": ...}."""
    out = {}
    for way in ("in", "out"):
        for kind in sorted(set(counts[way]) | set(right[way])):
            pair = counts[way].get(kind, 0), right[way].get(kind, 0)
            if pair[0] != pair[1]:
                out.setdefault(way, {})[kind] = pair
    return out


def main(seeds, seconds):
    wrong, total, crossings = {"detections": [0, 0], "true boxes": [0, 0]}, 0, 0
    for seed in seeds:
        frames, ids, found = drawn_street(seed, seconds)
        for step in (1, 4, 6):
            true = [
                (boxes, classes, np.full(len(boxes), 0.9))
                for _, boxes, classes in drawn.true_tracks(frames[::step], ids[::step])
            ]
            counts = {"detections": found[::step], "true boxes": true}
            counts = {
                what: drawn.counted(drawn.detected_tracks(boxes, RATE / step), RATE / step)
                for what, boxes in counts.items()
            }
            for line, points in drawn.STREET.items():
                right = drawn.true_counts(frames[::step], ids[::step], points)
                total += 1
                crossings += sum(sum(way.values()) for way in right.values())
                for what, counted in counts.items():
                    differ = differences(counted[line], right)
                    if differ:
                        wrong[what][0] += 1
                        wrong[what][1] += sum(
                            abs(a - b) for way in differ.values() for a, b in way.values()
                        )
                        print(f"seed {seed}, {RATE // step} FPS, line {line}, {what}: {differ}")
    for what, (lines, count) in wrong.items():
        print(
            f"{what}: {lines} of {total} lines differ, by {count} of {crossings} crossings in all"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seeds", type=int, nargs="*", default=[1], metavar="seed")
    parser.add_argument("--seconds", type=float, default=10, help="of each street")
    args = parser.parse_args()
    main(args.seeds, args.seconds)
