"""Draws scenes of COCO objects, seeded, with their exact ground truth: the training, calibration
and test images of the demo models.

An object is a glyph of Noto Color Emoji (SIL Open Font License 1.1; Debian's package
fonts-noto-color-emoji). 69 of COCO's 80 classes have one. Left out, for want of a glyph: fire
hydrant, parking meter, bench, baseball glove, remote, microwave, oven, toaster, sink, refrigerator,
hair drier.

    python models/demo/scene.py scenes/ --count 64    # writes scenes/*.jpg and scenes/boxes.json
"""
import argparse
import functools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import cv2
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the one size that Noto Color Emoji's bitmaps have

# COCO class number: its glyphs
GLYPHS = {
    0: "🧍🚶🏃💃🕺", 1: "🚲", 2: "🚗🚙🚕", 3: "🏍🛵", 4: "✈🛩", 5: "🚌🚍", 6: "🚆🚂🚅",
    7: "🚚🚛🛻", 8: "⛵🚤🛶", 9: "🚦🚥", 11: "🛑", 14: "🐦🦜🦆🦉", 15: "🐈🐱", 16: "🐕🐩🐶",
    17: "🐎🐴", 18: "🐑🐏", 19: "🐄🐮", 20: "🐘", 21: "🐻", 22: "🦓", 23: "🦒", 24: "🎒",
    25: "☂🌂⛱", 26: "👜", 27: "👔", 28: "🧳", 29: "🥏", 30: "🎿", 31: "🏂", 32: "⚽🏀🏈⚾🏐",
    33: "🪁", 34: "🏏", 36: "🛹", 37: "🏄", 38: "🎾🏸", 39: "🍾🍼", 40: "🍷", 41: "☕🍵🥤",
    42: "🍴", 43: "🔪", 44: "🥄", 45: "🥣🍜", 46: "🍌", 47: "🍎🍏", 48: "🥪", 49: "🍊", 50: "🥦",
    51: "🥕", 52: "🌭", 53: "🍕", 54: "🍩", 55: "🎂🍰", 56: "🪑", 57: "🛋", 58: "🪴", 59: "🛏",
    60: "🍽", 61: "🚽", 62: "📺", 63: "💻", 64: "🖱", 66: "⌨", 67: "📱", 73: "📕📗📘📖",
    74: "🕐⏰🕰", 75: "🏺", 76: "✂", 77: "🧸", 79: "🪥",
}
DISTRACTORS = (
    "🌵🌲🌳🍁🎈🔥⭐🌈🎁🏠🔔🎸🍄🐙🦋🌻🍇🧀🎩👑💎🔑🧲🛸⛺🌙☁⚡❄🍉🍓🌽🥑🍔🍟🥨🐸🐢🐍🦀"
    "🐳🦈🐝🐞🎷🎺🥁🎯🎲🧩🏆🥇🕯💡🔦🧰🔨🪓📎📌💌🛒🗿🏰"
)
# an object always shows at least this share of its own pixels; what would hide more is not drawn
VISIBLE = 0.4


@functools.lru_cache(maxsize=None)
def glyph(character):
    """The glyph cut to its own pixels, at full, half, quarter and eighth size: list of (h, w, 4)
    uint8 premultiplied BGRA."""
    if not Path(FONT).exists():
        raise SystemExit(f"{FONT} is missing: sudo apt-get install fonts-noto-color-emoji")
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), character, font=ImageFont.truetype(FONT, FONT_SIZE),
                                embedded_color=True)
    rgba = np.asarray(canvas)
    x, y, w, h = cv2.boundingRect((rgba[..., 3] > 127).astype(np.uint8))
    if w == 0:
        raise ValueError(f"{FONT} has no coloured glyph for {character!r}")
    rgba = rgba[y:y + h, x:x + w].astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    levels = [np.ascontiguousarray(rgba[..., [2, 1, 0, 3]].round().astype(np.uint8))]
    for divisor in (2, 4, 8):
        size = (max(1, w // divisor), max(1, h // divisor))
        levels.append(cv2.resize(levels[0], size, interpolation=cv2.INTER_AREA))
    return levels


def place(character, size, centre, angle=0.0, stretch=1.0, mirror=False, colour=None):
    """One glyph as it will stand in an image: its pixels and where they go.

    size: length of the glyph's longer side in pixels; centre: (x, y) in pixels, fractions count;
    angle in degrees; stretch: width over height, 1 leaves it; colour: (4, 4) float matrix applied
    to premultiplied BGRA. Returns (sprite (h, w, 4) uint8 premultiplied BGRA, (x, y) of its upper
    left corner in the image).
    """
    levels = glyph(character)
    full = size / max(levels[0].shape[:2])
    level = levels[0]
    for smaller in levels[1:]:
        if max(smaller.shape[:2]) >= size:
            level = smaller
    height, width = level.shape[:2]
    scale = full * max(levels[0].shape[:2]) / max(height, width)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag(
        [stretch ** 0.5 * (-1 if mirror else 1), stretch ** -0.5])
    reach = np.abs(matrix) @ [width / 2, height / 2] + 1
    corner = np.floor(np.asarray(centre, dtype=float) - reach).astype(int)
    extent = np.ceil(np.asarray(centre) + reach).astype(int) - corner
    # Pixel centres lie at half coordinates in both images.
    shift = np.asarray(centre) - corner - 0.5 - matrix @ [(width - 1) / 2, (height - 1) / 2]
    sprite = cv2.warpAffine(level, np.column_stack([matrix, shift]),
                            (int(extent[0]), int(extent[1])))
    if colour is not None:
        sprite = cv2.transform(sprite, colour)
    return sprite, corner


def clip(sprite, corner, width, height):
    """The part of a placed sprite inside an image of width x height: (slices of the image, part),
    or (None, None)."""
    x1, y1 = max(0, corner[0]), max(0, corner[1])
    x2, y2 = min(width, corner[0] + sprite.shape[1]), min(height, corner[1] + sprite.shape[0])
    if x1 >= x2 or y1 >= y2:
        return None, None
    return (slice(y1, y2), slice(x1, x2)), sprite[y1 - corner[1]:y2 - corner[1],
                                                  x1 - corner[0]:x2 - corner[0]]


def blend(image, where, part):
    """Lay premultiplied BGRA `part` over image[where] (BGR, uint8), in place."""
    under = cv2.merge([255 - part[..., 3]] * 3)
    image[where] = cv2.add(cv2.multiply(image[where], under, scale=1 / 255),
                           np.ascontiguousarray(part[..., :3]))


def visible_boxes(owner, count):
    """Boxes (count, 4) xyxy in pixels (x2, y2 exclusive) around the pixels of each number in owner
    (h, w), and pixel counts (count,)."""
    boxes = np.zeros((count, 4), np.float32)
    pixels = np.bincount(owner.ravel(), minlength=count + 1)[1:]
    for number in np.flatnonzero(pixels):
        x, y, w, h = cv2.boundingRect((owner == number + 1).view(np.uint8))
        boxes[number] = x, y, x + w, y + h
    return boxes, pixels


@functools.lru_cache(maxsize=None)
def _noise():
    return np.random.default_rng(0).normal(0, 64, (1024, 1024, 3)).clip(-127, 127).astype(np.int8)


def _background(rng, width, height):
    grid = rng.integers(0, 256, (rng.integers(2, 5), rng.integers(2, 5), 3), dtype=np.uint8)
    image = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        texture = rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        texture = cv2.resize(texture, (width, height), interpolation=cv2.INTER_LINEAR)
        image = cv2.addWeighted(image, 0.75, texture, 0.25, 0)
    for _ in range(rng.integers(0, 14)):
        colour = rng.integers(0, 256, 3).tolist()
        (x1, y1), (x2, y2) = (rng.random((2, 2)) * (width, height)).astype(int).tolist()
        kind = rng.integers(5)
        if kind == 0:
            cv2.rectangle(image, (x1, y1), (x2, y2), colour, -1)
        elif kind == 1:
            cv2.circle(image, (x1, y1), int(rng.integers(3, max(4, width // 6))), colour,
                       -1 if rng.random() < 0.6 else 3, cv2.LINE_AA)
        elif kind == 2:
            cv2.line(image, (x1, y1), (x2, y2), colour, int(rng.integers(1, 9)), cv2.LINE_AA)
        elif kind == 3:
            cv2.fillConvexPoly(image, (rng.random((3, 2)) * (width, height)).astype(np.int32),
                               colour, cv2.LINE_AA)
        else:
            letters = rng.integers(ord("A"), ord("Z") + 1, rng.integers(2, 9))
            text = "".join(chr(letter) for letter in letters)
            cv2.putText(image, text, (x1, y1), cv2.FONT_HERSHEY_DUPLEX, rng.uniform(0.4, 1.5),
                        colour,
                        int(rng.integers(1, 3)), cv2.LINE_AA)
    return image


def _recolour(rng):
    """A mild change of hue, contrast and brightness, as a matrix on premultiplied BGRA."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(rng.uniform(0.8, 1.15, 3)) + rng.uniform(-0.06, 0.06, (3, 3))
    matrix[:3, 3] = rng.uniform(-0.1, 0.1)
    return matrix.astype(np.float32)


def _worn(rng, image):
    """The image as cameras and codecs leave it: blurred, noisy, JPEG-compressed, each with some
    chance."""
    height, width = image.shape[:2]
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 1.0))
    if rng.random() < 0.5:
        y, x = rng.integers(0, 1024 - min(height, 1023)), rng.integers(0, 1024 - min(width, 1023))
        image = cv2.add(image, cv2.multiply(_noise()[y:y + height, x:x + width],
                                            rng.uniform(0, 0.25),
                                            dtype=cv2.CV_16S), dtype=cv2.CV_8U)
    if rng.random() < 0.3:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image


def draw_scene(seed, width=640, height=640, sizes=(0.05, 0.6), objects=(3, 12)):
    """Draw the scene of this seed.

    seed: int or sequence of ints; sizes: an object's longer side as a share of the image's width,
    drawn log-uniformly; objects: fewest and most objects tried. Returns image (height, width, 3)
    uint8 BGR, boxes (n, 4) float32 xyxy in pixels around what can be seen of each object, classes
    (n,) int64 COCO class numbers.
    """
    rng = np.random.default_rng(seed)
    image = _background(rng, width, height)
    owner = np.zeros((height, width), np.uint8)  # 0: nothing, else 1 + object's number
    classes = []
    needed = [0.0]  # needed[number]: pixels that must stay visible
    pixels = np.zeros(256, int)
    numbers = list(GLYPHS)
    for _ in range(rng.integers(objects[0], objects[1] + 1) + rng.integers(0, 4)):
        distractor = rng.random() < 0.15
        class_number = numbers[rng.integers(len(numbers))]
        glyphs = DISTRACTORS if distractor else GLYPHS[class_number]
        character = glyphs[rng.integers(len(glyphs))]
        size = width * np.exp(rng.uniform(*np.log(sizes)))
        angle, stretch = rng.normal(0, 7), np.exp(rng.normal(0, 0.1))
        mirror, colour = rng.random() < 0.5, _recolour(rng)
        # a few places are tried; where an object would vanish behind another, it is left out
        for _ in range(4):
            centre = rng.random(2) * (width, height)
            sprite, corner = place(character, size, centre, angle, stretch, mirror, colour)
            where, part = clip(sprite, corner, width, height)
            if where is None:
                continue
            solid = part[..., 3] > 127
            shown, own = np.count_nonzero(solid), np.count_nonzero(sprite[..., 3] > 127)
            hidden = np.bincount(owner[where][solid], minlength=256)
            left = pixels - hidden
            if shown < max(VISIBLE * own, 16) or np.any(left[1:len(needed)] < needed[1:]):
                continue
            blend(image, where, part)
            pixels -= hidden
            if distractor:
                owner[where][solid] = 0
            else:
                classes.append(class_number)
                needed.append(VISIBLE * own)
                owner[where][solid] = len(classes)
                pixels[len(classes)] = shown
            break
    pixels[0] = 0
    image = _worn(rng, image)
    boxes, _ = visible_boxes(owner, len(classes))
    return image, boxes, np.array(classes, np.int64)


def _largest_of_a_scene(rng, size):
    """The largest object of a scene, close up and whole: image (size, size, 3) and class number;
    None if it is cut off by an edge."""
    wide = size * 3 // 2
    image, boxes, classes = draw_scene(int(rng.integers(1 << 62)), wide, wide, (0.2, 0.6), (1, 3))
    if not len(boxes):
        return None
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    number = sides.argmax()
    side = sides[number] / rng.uniform(0.6, 0.95) * 8 / 7
    corner = (boxes[number, :2] + boxes[number, 2:] - side) / 2 + rng.normal(0, 0.03, 2) * side
    if corner.min() < 0 or corner.max() + side > wide:
        return None
    matrix = np.column_stack([np.eye(2) * size / side, -corner * size / side])
    image = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    return image, int(classes[number])


def draw_object(seed, size=256):
    """Draw one object for a classifier, more or less in the middle: 0.4 to 0.95 of the central 7/8,
    which the classifier sees.

    seed: int or sequence of ints. Some are cut from a scene, the others stand on a background with
    small clutter, some half hidden. Returns image (size, size, 3) uint8 BGR, and the COCO class
    number.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < 0.25:
        cut = _largest_of_a_scene(rng, size)
        if cut:
            return cut

    def lay(character, length, centre, tilt):
        sprite, corner = place(character, length, centre, rng.normal(0, tilt),
                               np.exp(rng.normal(0, 0.1)), rng.random() < 0.5, _recolour(rng))
        where, part = clip(sprite, corner, size, size)
        return sprite, where, part

    image = _background(rng, size, size)
    everything = DISTRACTORS + "".join(GLYPHS.values())
    for _ in range(rng.integers(0, 5)):
        _, where, part = lay(everything[rng.integers(len(everything))],
                             size * rng.uniform(0.08, 0.3), rng.random(2) * size, 20)
        if where is not None:
            blend(image, where, part)
    class_number = list(GLYPHS)[rng.integers(len(GLYPHS))]
    glyphs = GLYPHS[class_number]
    length, centre = size * 7 / 8 * rng.uniform(0.4, 0.95), size * (0.5 + rng.normal(0, 0.04, 2))
    _, where, part = lay(glyphs[rng.integers(len(glyphs))], length, centre, 8)
    blend(image, where, part)
    if rng.random() < 0.3:
        solid = np.zeros((size, size), bool)
        solid[where] = part[..., 3] > 127
        character = DISTRACTORS[rng.integers(len(DISTRACTORS))]
        aside = rng.uniform(-0.5, 0.5, 2) * length
        _, where, part = lay(character, length * rng.uniform(0.25, 0.6), centre + aside, 20)
        if (where is not None and np.count_nonzero(solid[where] & (part[..., 3] > 127))
                < 0.4 * np.count_nonzero(solid)):
            blend(image, where, part)
    return _worn(rng, image), class_number


def main():
    parser = argparse.ArgumentParser(
        description="Draw scenes as JPEG files, with their boxes in boxes.json.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--size", type=int, default=640, help="width and height in pixels")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number in range(args.count):
        image, boxes, classes = draw_scene((args.seed, number), args.size, args.size)
        name = f"{number:06}.jpg"
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (args.folder / name).write_bytes(jpeg.tobytes())  # imwrite does not report a full disk
        truth[name] = [[int(c), *map(float, box)] for c, box in zip(classes, boxes)]
    (args.folder / "boxes.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    try:
        with needed_packages():
            main()
    except OSError as error:
        sys.exit(f"{error.filename or 'scene.py'}: {error.strerror}.")
