"""What func.draw() needs for more than boxes: masks, rotated boxes, key points with their skeleton, names in other
scripts than OpenCV's font has."""
import functools
import glob
import os
from typing import Any, Callable, Tuple

import cv2
import numpy as np

# --------------------------------------------------------------------------------------------------------------------
SKELETON = (  # of COCO's 17 key points: pairs of nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles
    (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13),
    (13, 15), (12, 14), (14, 16))
LEAST = 0.5   # score of a key point that is drawn
FONTS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/System/Library/Fonts",
         "C:/Windows/Fonts")
# --------------------------------------------------------------------------------------------------------------------


def draw_masks(IMG: np.ndarray, detections: Any, colour: Callable[[int], Tuple[int, int, int]]) -> None:
    """Lay each mask half transparent on IMG (h, w, 3) uint8 BGR, the best on top, in the colour of its class."""
    for (x, y, mask), number in zip((detections.masks or ())[::-1], detections.classes[::-1].tolist()):
        place = IMG[y:y + len(mask), x:x + mask.shape[1]]
        mask = mask[:place.shape[0], :place.shape[1]]
        if place.size:
            half = cv2.addWeighted(place, 0.5, np.full_like(place, colour(number)), 0.5, 0)
            cv2.copyTo(half, mask, place)


def draw_corners(IMG: np.ndarray, detections: Any, colour: Callable[[int], Tuple[int, int, int]],
                 thickness: int) -> None:
    """Draw rotated boxes on IMG (h, w, 3) uint8 BGR, the best on top."""
    if detections.corners is None:
        return
    for corners, number in zip(detections.corners[::-1], detections.classes[::-1].tolist()):
        cv2.polylines(IMG, [np.rint(corners).astype(np.int32)], True, colour(number), thickness, cv2.LINE_AA)


def draw_keypoints(IMG: np.ndarray, detections: Any, thickness: int) -> None:
    """Draw the key points whose score is at least LEAST on IMG (h, w, 3) uint8 BGR, each in a colour of its own, and of
    17 points COCO's skeleton between them."""
    if detections.keypoints is None:
        return
    for points in detections.keypoints[::-1]:
        seen, places = points[:, 2] >= LEAST, np.rint(points[:, :2]).clip(-1e4, 1e4).astype(int).tolist()
        if len(points) == 17:
            for first, second in SKELETON:
                if seen[first] and seen[second]:
                    cv2.line(IMG, places[first], places[second], (255, 255, 255), thickness, cv2.LINE_AA)
        for number in np.flatnonzero(seen).tolist():
            paint = (0, 220, 255) if len(points) == 17 and number < 5 else (0, 200, 0) if number % 2 else (255, 120, 0)
            cv2.circle(IMG, places[number], thickness + 2, paint, -1, cv2.LINE_AA)


def text_picture(text: str, height: int, paint: Tuple[int, int, int], ink: Tuple[int, int, int]) -> np.ndarray:
    """A text drawn by Pillow, about `height` pixels high: (h, w, 3) uint8 BGR. Raises ImportError where Pillow is
    missing, or this machine has no font with all its letters."""
    from PIL import Image, ImageDraw
    font = _font(frozenset(text), height)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (max(1, right + 1), max(1, bottom + 2)), paint)
    ImageDraw.Draw(image).text((0, 0), text, ink, font)  # in BGR, as the colours are given
    return np.array(image)


@functools.lru_cache(maxsize=100)
def _font(letters: frozenset, height: int) -> Any:
    from PIL import ImageFont
    files = [path for folder in FONTS for path in glob.glob(os.path.expanduser(folder) + "/**/*.[to]t[fc]",
                                                            recursive=True)]
    # those with many scripts first, plain ones before bold ones
    files.sort(key=lambda path: (not any(word in path.lower() for word in ("cjk", "wqy", "fallback", "unicode")),
                                 "regular" not in path.lower(), "sans" not in path.lower(), path))
    for path in files:
        try:
            font = ImageFont.truetype(path, max(8, height))
            missing = bytes(font.getmask("\U0010fffe"))  # what it draws for a letter that it lacks
            if all(letter == " " or bytes(font.getmask(letter)) != missing for letter in letters):
                return font
        except (OSError, ValueError):  # a damaged one, or only bitmaps
            continue
    raise ImportError("no font has all these letters")
