"""Draws models/demo.mp4, a street of glyphs, and its ground truth models/demo.json.

    python models/demo/street.py                            # needs ffmpeg with libx264
    python models/demo/street.py --truth                  # demo.json alone
    python models/demo/street.py --seed 3 --out other.mp4   # the same street with others on it
    python models/demo/street.py --crowd 3 --out crowd.mp4  # a crowd, for trackers

demo.json: {"width", "height", "fps", "frames": [[[class, x1, y1, x2, y2, visible], ...], ...],
"ids": [[id, ...], ...]} has for each frame and object the COCO class, the box around what can be
seen of it (pixels, x2 and y2 exclusive), and the share of its own pixels that can be seen; in the
same order each object's identity, from 1: who comes round again is another one.
"""
import argparse
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import cv2
    import numpy as np
    from scene import GLYPHS, blend, clip, glyph, place, visible_boxes

# --------------------------------------------------------------------------------------------------
width, height, fps, seconds = 1280, 720, 60, 10
crf = 23              # libx264's quality
# pixels a second at which the camera's walk moves the shops; what stands nearer moves faster
shop_speed = -36
pavement_speed = -60
# --------------------------------------------------------------------------------------------------

CLASS_OF = {character: number for number, glyphs in GLYPHS.items() for character in glyphs}
SHOPS = (  # wall, awning (BGR), goods in the window, left to right
    ((168, 142, 120), (70, 60, 190), "📗⏰"),
    ((150, 190, 214), (90, 150, 60), "🍌🍊"),
    ((196, 168, 150), (60, 150, 240), "🧸⚽"),
    ((132, 160, 196), (110, 80, 60), "🍩🥪"),
    ((178, 178, 160), (170, 100, 60), "📺💻"),
    ((150, 150, 190), (120, 140, 40), "🏺🛋"),
)
SHOP = 330  # pixels


class Actor:
    """A glyph that crosses the street at a steady speed and comes round again."""

    def __init__(self, character, size, x, ground, speed, step=0.0, span=None):
        self.character, self.size, self.x, self.speed, self.step = character, size, x, speed, step
        pixels = glyph(character)[0]
        self.tall = size * pixels.shape[0] / max(pixels.shape[:2])
        self.ground = ground                      # y of its lower edge
        self.span = span or width + 2 * size + 60  # after this many pixels it enters again
        self.mirror = speed > 0 and step > 0  # the glyphs face left

    def at(self, time):
        """Centre (x, y) in pixels and angle in degrees at this time in seconds."""
        x = (self.x + self.speed * time) % self.span - self.size
        swing = np.sin(2 * np.pi * (self.step * time + self.x / 97))
        y = self.ground - self.tall / 2 - abs(swing) * 3 * (self.step > 0)
        return (x, y), 2.5 * swing * (self.step > 1)

    def lap(self, time):
        """How often it has come round by this time in seconds; counts down where it goes to the
        left."""
        return int((self.x + self.speed * time) // self.span)


def cast():
    """All actors, the farthest first."""
    actors = [Actor("✈", 84, 1500, 112, -70, 0.3), Actor("🐦", 54, 620, 96, -40, 2.2),
              Actor("🦆", 56, 1150, 136, -64, 2.0),
              Actor("🪁", 84, 140, 118, 9, 0.5)]
    row = SHOP * len(SHOPS)
    for number, (_, _, goods) in enumerate(SHOPS):
        for place_, character in enumerate(goods):
            actors.append(Actor(character, 68, number * SHOP + 94 + 142 * place_ + 68, 347,
                                shop_speed, span=row))
    stand = {"speed": pavement_speed, "span": 1640}
    actors += [Actor("🚦", 80, 260, 447, **stand), Actor("🪴", 70, 760, 447, **stand),
               Actor("🚲", 92, 1180, 448, **stand)]
    actors += [Actor("🚶", 88, 140, 452, -95, 1.6), Actor("🐕", 62, 470, 452, -95, 2.4),
               Actor("💃", 88, 1030, 452, -66, 1.2)]
    lane = {"speed": -230, "step": 3.0, "span": 1900}
    actors += [Actor("🚗", 118, 160, 531, **lane), Actor("🚌", 136, 800, 532, **lane),
               Actor("🚕", 118, 1400, 531, **lane)]
    lane = {"speed": 265, "step": 3.0, "span": 2000}
    actors += [Actor("🚙", 122, 300, 638, **lane), Actor("🏍", 110, 1000, 639, **lane),
               Actor("🚚", 142, 1620, 638, **lane)]
    actors += [Actor("🧍", 96, 560, 714, pavement_speed), Actor("🧳", 74, 740, 714, pavement_speed),
               Actor("🐘", 104, 1130, 714, -48, 0.9),
               Actor("🐈", 72, 360, 713, -60, 2.0), Actor("🏃", 96, 400, 715, -150, 2.6),
               Actor("🐑", 84, 1500, 714, -60, 1.8)]
    return actors


def other_cast(seed):
    """All actors of another street, the farthest first: the demo's rows, in which others of their
    kinds stand and go at other places, with other sizes and speeds."""
    rng = np.random.default_rng((4, seed))
    rows: dict[tuple[bool, int], list[Actor]] = {}
    for actor in cast():
        rows.setdefault((actor.speed == shop_speed, actor.ground // 40), []).append(actor)
    actors = []
    for (in_shop, _), row in rows.items():
        for actor, number in zip(row, rng.permutation(len(row))):
            kind = GLYPHS[CLASS_OF[row[number].character]]
            stands = in_shop or actor.speed == pavement_speed  # and moves as the ground does
            actors.append(Actor(kind[rng.integers(len(kind))], actor.size * rng.uniform(0.9, 1.1),
                                actor.x + rng.uniform(-12, 12) if in_shop
                                else rng.uniform(0, actor.span), actor.ground,
                                actor.speed * (1 if stands else rng.uniform(0.7, 1.3)), actor.step,
                                actor.span))
    return actors


def crowd(seed):
    """All actors of a crowded street, the farthest first: five rows of people, most of them
    walking, to and fro and before each other, a few animals and bicycles among them."""
    rng = np.random.default_rng((5, seed))
    actors = []
    for row, ground in enumerate((440, 500, 560, 630, 704)):
        size = 74 + 12 * row
        for number in range(9):
            character = "🧍🚶🏃💃🕺🚲🐕"[rng.choice(7, p=[.16, .22, .2, .16, .16, .05, .05])]
            speed = rng.choice([-1, 1]) * rng.uniform(30, 150) * (1 + 0.12 * row)
            step = rng.uniform(1, 2.6)
            actors.append(Actor(character, size * rng.uniform(0.9, 1.1),
                                (number + rng.uniform(0, 1)) * 180,
                                ground + rng.uniform(-14, 14), speed, step, 1620))
    return sorted(actors, key=lambda actor: actor.ground)


def strip_of_shops():
    """The row of shops that the camera walks along: (height, its length, 3) BGR, and where it
    covers the sky: uint8 mask."""
    length = SHOP * len(SHOPS)
    strip, mask = np.zeros((height, length, 3), np.uint8), np.zeros((height, length), np.uint8)
    for number, (wall, awning, _) in enumerate(SHOPS):
        left, top = number * SHOP, 146 + 18 * (number % 3)
        mask[top:, left:left + SHOP] = 255
        cv2.rectangle(strip, (left, top), (left + SHOP, height), wall, -1)
        cv2.rectangle(strip, (left, top), (left + SHOP, top + 9), [int(0.8 * c) for c in wall], -1)
        # A plain board: the model takes lettering for bicycles.
        cv2.rectangle(strip, (left + 60, 192), (left + SHOP - 60, 224),
                      [int(0.9 * c) for c in wall], -1)
        cv2.rectangle(strip, (left + 16, 250), (left + SHOP - 16, 356), (96, 82, 70), -1)
        cv2.rectangle(strip, (left + 22, 256), (left + SHOP - 22, 350), (196, 190, 176), -1)
        for stripe in range(10):
            x1 = left + 8 + stripe * (SHOP - 16) // 10
            x2 = left + 8 + (stripe + 1) * (SHOP - 16) // 10
            cv2.rectangle(strip, (x1, 230), (x2, 258), awning if stripe % 2 else (244, 244, 240),
                          -1)
            cv2.circle(strip, ((x1 + x2) // 2, 258), (x2 - x1) // 2,
                       awning if stripe % 2 else (244, 244, 240), -1,
                       cv2.LINE_AA)
    return strip, mask


def backdrop(time, shops, mask, width=width):
    """The street without its actors: (height, width, 3) uint8 BGR."""
    rows = np.linspace(0, 1, 300, dtype=np.float32)[:, None, None]
    image = np.empty((height, width, 3), np.uint8)
    top, bottom = np.array([226, 170, 110], np.float32), np.array([214, 224, 250], np.float32)
    image[:300] = ((1 - rows) * top + rows * bottom).astype(np.uint8)
    cv2.circle(image, (1040, 80), 44, (190, 236, 255), -1, cv2.LINE_AA)
    houses = width // 130 + 5
    for number in range(houses):  # far away
        x = int((number * 130 - 10 * time) % (houses * 130)) - 200
        cv2.rectangle(image, (x, 92 + 37 * number % 70), (x + 108, 300), (206, 190, 176), -1)
    shift = shop_speed * time % shops.shape[1]
    columns = slice(0, width + 2)
    wide, over = (np.roll(array, int(shift) + 1, axis=1)[:406, columns] for array in (shops, mask))
    # the fraction of a pixel, so that nothing jerks
    move = np.array([[1, 0, shift % 1 - 1], [0, 1, 0]], np.float32)
    wide, over = (cv2.warpAffine(array, move, (width, 406), borderMode=cv2.BORDER_REPLICATE)
                  for array in (wide, over))
    cv2.copyTo(wide, (over > 127).astype(np.uint8), image[:406])
    image[406:470] = (176, 182, 186)
    image[470:652] = (92, 88, 86)
    image[652:] = (168, 176, 182)
    image[466:472] = image[650:656] = (206, 210, 212)
    for x in range(-160, width + 160, 160):  # lane markings and paving stones
        shifted = x + int(pavement_speed * 1.5 * time) % 160
        cv2.rectangle(image, (shifted, 541), (shifted + 80, 546), (225, 235, 235), -1)
        cv2.line(image, (shifted + 60, 656), (shifted + 20, 720), (148, 156, 162), 2, cv2.LINE_AA)
        shifted = x + int(pavement_speed * time) % 160
        cv2.line(image, (shifted, 406), (shifted - 16, 466), (158, 164, 168), 1, cv2.LINE_AA)
    return image


def frame_at(time, actors, shops, mask):
    """One frame (height, width, 3) uint8 BGR, and its truth: a list of [class, x1, y1, x2, y2,
    visible]."""
    return identified_frame_at(time, actors, shops, mask)[:2]


def identified_frame_at(time, actors, shops, mask, width=width):
    """As frame_at(), and who the objects are: a list of (number of the actor, lap)."""
    image = backdrop(time, shops, mask, width)
    owner = np.zeros((height, width), np.uint8)
    own = np.zeros(len(actors), int)
    for number, actor in enumerate(actors):
        centre, angle = actor.at(time)
        sprite, corner = place(actor.character, actor.size, centre, angle, mirror=actor.mirror)
        own[number] = np.count_nonzero(sprite[..., 3] > 127)
        where, part = clip(sprite, corner, width, height)
        if where is not None:
            blend(image, where, part)
            owner[where][part[..., 3] > 127] = number + 1
    boxes, pixels = visible_boxes(owner, len(actors))
    truth = [[CLASS_OF[actor.character], *map(int, boxes[number]),
              round(float(pixels[number] / own[number]), 2)]
             for number, actor in enumerate(actors) if pixels[number]]
    return image, truth, [(number, actor.lap(time)) for number, actor in enumerate(actors)
                          if pixels[number]]


@functools.lru_cache(maxsize=None)
def _shops():
    return strip_of_shops()


def random_street(seed):
    """A frame of another street for training: the demo's layout with other objects, at other places
    and sizes, in other light.

    Returns image (360, 640, 3) uint8 BGR, boxes (n, 4) float32 xyxy in pixels, classes (n,) int64
    COCO class numbers.
    """
    rng = np.random.default_rng(seed)
    actors, characters = [], list(CLASS_OF)
    for actor in cast():
        in_shop = actor.speed == shop_speed
        other = in_shop or rng.random() < 0.5
        character = characters[rng.integers(len(characters))] if other else actor.character
        x = actor.x + rng.uniform(-12, 12) if in_shop else rng.uniform(0, actor.span)
        size = actor.size * rng.uniform(0.8, 1.1 if in_shop else 1.25)
        ground = actor.ground + rng.uniform(-8, 8)
        actors.append(Actor(character, size, x, ground, actor.speed * rng.choice([-1, 1]),
                            actor.step, actor.span))
    image, truth = frame_at(rng.uniform(0, 60), actors, *_shops())
    image = cv2.transform(cv2.resize(image, (640, 360), interpolation=cv2.INTER_AREA),
                          np.diag(rng.uniform(0.7, 1.25, 3)))
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 95))])
    truth = np.array([box for box in truth if box[5] >= 0.3], np.float32).reshape(-1, 6)
    return cv2.imdecode(data, cv2.IMREAD_COLOR), truth[:, 1:5] / 2, truth[:, 0].astype(np.int64)


def street_of(actors, count, rate=fps):
    """`count` frames of a street, `rate` a second: yields (image, truth, ids), ids a list of int
    from 1, of each object of the truth."""
    shops, mask = _shops()
    known: dict[tuple[int, int], int] = {}
    for number in range(count):
        image, truth, who = identified_frame_at(number / rate, actors, shops, mask)
        yield image, truth, [known.setdefault(one, len(known) + 1) for one in who]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo.mp4")
    parser.add_argument("--truth", action="store_true", help="write the .json alone")
    parser.add_argument("--seed", type=int, help="another street")
    parser.add_argument("--crowd", type=int, metavar="SEED", help="a crowded street")
    args = parser.parse_args()
    if not args.truth and shutil.which("ffmpeg") is None:
        raise SystemExit("ffmpeg, which writes the video, is missing: sudo apt-get install ffmpeg")
    encoder = None if args.truth else subprocess.Popen(
        ["ffmpeg", "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "bgr24", "-s",
         f"{width}x{height}", "-r", str(fps), "-i", "-",
         "-c:v", "libx264", "-preset", "slow", "-crf", str(crf), "-pix_fmt", "yuv420p", "-g",
         str(fps), "-movflags", "+faststart", str(args.out)], stdin=subprocess.PIPE)
    if args.crowd is not None:
        actors = crowd(args.crowd)
    else:
        actors = cast() if args.seed is None else other_cast(args.seed)
    frames, ids_of_frames = [], []
    for image, boxes, ids in street_of(actors, fps * seconds):
        frames.append(boxes)
        ids_of_frames.append(ids)
        if encoder and encoder.stdin:
            encoder.stdin.write(image.tobytes())
    if encoder and encoder.stdin:
        encoder.stdin.close()
        if encoder.wait():
            raise SystemExit("ffmpeg could not encode the video.")
    document = {"width": width, "height": height, "fps": fps, "frames": frames,
                "ids": ids_of_frames}
    args.out.with_suffix(".json").write_text(json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    with needed_packages():
        main()
