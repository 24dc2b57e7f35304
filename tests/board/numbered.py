"""Draws numbers into frames, as a strip along the lower edge, and reads them."""

import numpy as np

STRIP = 32  # height of the strip in pixels, and width of one bit
BITS = 6  # least significant first; white is 1


def add_number(frame, number):
    """The frame (h, w, 3) uint8 with a strip that contains `number` < 64: (h + 32, w, 3)."""
    strip = np.zeros((STRIP,) + frame.shape[1:], np.uint8)
    for bit in range(BITS):
        strip[:, bit * STRIP : (bit + 1) * STRIP] = 255 * (number >> bit & 1)
    return np.concatenate([frame, strip])


def read_number(frame):
    """The number that add_number() drew, read from the middle of each bit."""
    line = frame[-STRIP // 2 - 4 : -STRIP // 2 + 4].mean((0, 2))  # (w,)
    bits = line[: BITS * STRIP].reshape(BITS, STRIP)[:, 8:-8].mean(1) > 127
    return int((bits << np.arange(BITS)).sum())
