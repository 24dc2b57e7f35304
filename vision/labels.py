"""Labels: pictures of a text on the colour of its class, and their positions in a frame."""
from __future__ import annotations

import colorsys
import functools
import glob
import os
import unicodedata
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from vision.packages import pip_install
from vision.settings import print_once

FONTS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
         "/System/Library/Fonts", "C:/Windows/Fonts")
Colour = Tuple[int, int, int]          # BGR
Rectangle = Tuple[int, int, int, int]  # x1, y1, x2, y2


@functools.lru_cache(maxsize=None)
def colour(number: int) -> Colour:
    """The colour of a class. Hues are a golden angle apart, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.85, 1.0)
    return int(255 * blue), int(255 * green), int(255 * red)


# Scores have two digits, so the same labels come again; to draw them was half of draw()'s time.
@functools.lru_cache(maxsize=2000)
def label(text: str, number: int, size: float) -> np.ndarray:
    """A text as a picture, (h, w, 3) uint8 BGR, black or white on the colour of a class.

    number: of the class, which replaces a name that cannot be drawn; size: OpenCV's font scale.
    """
    paint = colour(number)
    luma = 0.114 * paint[0] + 0.587 * paint[1] + 0.299 * paint[2]  # ITU-R BT.601
    return text_label(text, size, paint, (0, 0, 0) if luma > 110 else (255, 255, 255), number)


def text_label(text: str, size: float, paint: Colour, ink: Colour, instead: Any) -> np.ndarray:
    """A text as a picture, (h, w, 3) uint8 BGR. size: OpenCV's font scale.

    A text with letters that OpenCV's font lacks is drawn with Pillow, if it is installed and this
    machine has a font with all of them. If not, they are left out, `instead` comes first if no
    letter is left, and a message is printed once.
    """
    font = cv2.FONT_HERSHEY_SIMPLEX
    text = unicodedata.normalize("NFC", text)
    if not all(map(opencv_draws, text)):
        try:
            return text_picture(text, round(30 * size), paint, ink)
        except ImportError:
            print_once(f"OpenCV {cv2.__version__} cannot draw all letters of the class names, "
                       "lines and zones, and leaves them out. To draw them, install Pillow "
                       f"({pip_install('pillow')}) and a font that has them (apt install "
                       f"fonts-noto-cjk){'' if is_opencv_5() else ', or OpenCV 5'}.")
            text = drawable(text, instead)
    (w, h), baseline = cv2.getTextSize(text, font, size, 1)
    picture = np.full((h + baseline + 2, w + 1, 3), paint, np.uint8)
    return cv2.putText(picture, text, (0, h + 1), font, size, ink, 1, cv2.LINE_AA)


def is_opencv_5() -> bool:
    return int(cv2.__version__.split(".")[0]) >= 5


def opencv_draws(letter: str) -> bool:
    """Whether OpenCV draws a letter. Before version 5 its font has only ASCII."""
    return letter.isascii() or is_opencv_5() and _opencv_5_draws(letter)


@functools.lru_cache(maxsize=None)
def _opencv_5_draws(letter: str) -> bool:
    """It draws a question mark for a letter that it lacks, and Arabic and Hebrew from left to
    right."""
    empty = np.zeros((40, 60), np.uint8)
    lacking, drawn = (cv2.putText(empty.copy(), text, (5, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255)
                      for text in ("?", letter))
    return (unicodedata.bidirectional(letter) not in ("R", "AL")
            and not np.array_equal(lacking, drawn))


def drawable(text: str, instead: Any) -> str:
    """A text without the letters that OpenCV cannot draw, and without the accents of letters that
    it draws only without: before OpenCV 5, "café 0.90" becomes "cafe 0.90". If no letter is left,
    `instead` comes first, such as a class number: "0 0.90"."""
    parts = [letter if opencv_draws(letter) else unicodedata.normalize("NFKD", letter)
             for letter in text]
    text = "".join(filter(opencv_draws, "".join(parts))).strip()
    return text if any(letter.isalpha() for letter in text) else f"{instead} {text}".strip()


def text_picture(text: str, height: int, paint: Colour, ink: Colour) -> np.ndarray:
    """A text drawn by Pillow, about `height` pixels high: (h, w, 3) uint8 BGR. Raises ImportError
    if Pillow is missing, or a font with all letters of the text."""
    from PIL import Image, ImageDraw
    # "a0" stands for ASCII letters and digits, so a text with another number finds its font cached.
    font = _font(frozenset("a0") | {letter for letter in text if not letter.isascii()}, height)
    if font is None:
        raise ImportError("no font has all these letters")
    _, _, right, bottom = font.getbbox(text)
    size = max(1, int(right) + 1), max(1, int(bottom) + 2)
    image = Image.new("RGB", size, paint)  # Pillow takes BGR for RGB, which does no harm here
    ImageDraw.Draw(image).text((0, 0), text, ink, font)
    return np.array(image)


@functools.lru_cache(maxsize=100)
def _font(letters: frozenset, height: int) -> Any:
    """The best font with all these letters, or None."""
    from PIL import ImageFont
    files = [path for folder in FONTS
             for path in glob.glob(os.path.expanduser(folder) + "/**/*.[to]t[fc]", recursive=True)]

    def preference(path: str) -> Tuple[bool, bool, bool, str]:
        """Fonts with many scripts first, and plain ones before bold ones."""
        name = path.lower()
        many_scripts = any(word in name for word in ("cjk", "wqy", "fallback", "unicode"))
        styled = any(word in name for word in ("bold", "oblique", "italic", "light", "black"))
        return not many_scripts, styled, "sans" not in name, path

    for path in sorted(files, key=preference):
        try:
            font = ImageFont.truetype(path, max(8, height))
            missing = bytes(font.getmask("\U0010fffe"))  # what it draws for a letter that it lacks
            if all(letter.isspace() or bytes(font.getmask(letter)) != missing
                   for letter in letters):
                return font
        except (OSError, ValueError):  # a damaged font, or one of bitmaps only
            continue
    return None


def paste(IMG: np.ndarray, picture: np.ndarray, x: int, y: int) -> None:
    """Copy a label into the frame, its upper left corner at (x, y); what lies outside is cut."""
    region = IMG[y:y + picture.shape[0], x:x + picture.shape[1]]
    region[:] = picture[:region.shape[0], :region.shape[1]]


def label_positions(boxes: Sequence[Sequence[int]], pictures: Sequence[np.ndarray], h: int, w: int
                    ) -> List[Tuple[int, int]]:
    """Where labels go in a frame of h x w pixels: the upper left corner (x, y) of each.

    boxes: (x1, y1, x2, y2), best first; pictures: their labels. A label stands above its box, or
    inside it at the frame's upper edge. If another label is there, it stands inside its box, at
    the box's right end, in another row above or below, or at the nearest free position. If the
    frame has no room left, labels overlap.
    """
    taken: List[Rectangle] = []
    positions, room_left = [], True
    for box, picture in zip(boxes, pictures):
        label_h, label_w = picture.shape[:2]
        position = None
        for candidate in _candidates(box, label_h, label_w, h, w):
            if _is_free(taken, candidate, label_h, label_w):
                position = candidate
                break
        if position is None:
            position = next(_candidates(box, label_h, label_w, h, w))
            nearest = (_nearest_free(taken, position, label_h, label_w, h, w)
                       if room_left else None)
            room_left = nearest is not None
            position = nearest or position
        x, y = position
        positions.append(position)
        taken.append((x, y, x + label_w, y + label_h))
    return positions


def _candidates(box: Sequence[int], label_h: int, label_w: int, h: int, w: int
                ) -> Iterator[Tuple[int, int]]:
    """Positions inside the frame for a label of a box, in order of preference."""
    x1, y1, x2, _ = box
    right, bottom = max(0, w - label_w), max(0, h - label_h)  # the last positions inside the frame
    x, y = max(0, min(x1, right)), max(0, min(y1 + 1 - label_h, bottom))
    yield x, y
    yield x, max(0, min(y1, bottom))
    yield max(0, min(x2 - label_w, right)), y
    for distance in range(label_h, h, label_h):
        if y >= distance:
            yield x, y - distance
        if y + distance <= bottom:
            yield x, y + distance


def _is_free(taken: Sequence[Rectangle], position: Tuple[int, int], label_h: int, label_w: int
             ) -> bool:
    x1, y1 = position
    x2, y2 = x1 + label_w, y1 + label_h
    for left, top, right, bottom in taken:
        if left < x2 and x1 < right and top < y2 and y1 < bottom:
            return False
    return True


def _nearest_free(taken: Sequence[Rectangle], position: Tuple[int, int], label_h: int,
                  label_w: int, h: int, w: int) -> Optional[Tuple[int, int]]:
    """The free position nearest to another one, on a grid of a few pixels; None without room."""
    step = max(1, min(h, w) // 180)
    rows, columns = h // step, w // step
    high, wide = -(-label_h // step), -(-label_w // step)  # of the label, in cells of the grid
    if high > rows or wide > columns:
        return None
    grid = np.zeros((rows, columns), np.uint8)
    for left, top, right, bottom in taken:
        grid[top // step:-(-bottom // step), left // step:-(-right // step)] = 1
    # The sum of each window of the label's size, from the integral image: 0 if the window is free.
    sums = cv2.integral(grid)
    windows = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    y, x = np.nonzero(windows == 0)
    if len(y) == 0:
        return None
    nearest = np.argmin((x * step - position[0]) ** 2 + (y * step - position[1]) ** 2)
    return int(x[nearest]) * step, int(y[nearest]) * step
