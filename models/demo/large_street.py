"""Draws streets of 3840 x 2160 with their ground truth, to test the detection of small objects:
each is three streets of street.py, one above another, with objects of 50 to 150 pixels.

    street = LargeStreet(seed=1)
    image, truth = street.frame_at(0.5)    # seconds
"""
from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import street

# --------------------------------------------------------------------------------------------------
width, height = 3840, 2160
sizes = 50, 150       # pixels, of an object's longer side
largest_in_shop = 96  # pixels: the goods fit into the windows
noise = 2.0           # of a sensor: standard deviation, 0..255
# --------------------------------------------------------------------------------------------------


class LargeStreet:
    """A large street, another one for each seed.

    moving: None, or boxes (x1, y1, x2, y2) in pixels. Then the camera stands still, and the only
    objects that move are those that stay inside one of these boxes for the first `seconds` seconds.
    """

    def __init__(self, seed: int, moving: Any = None, seconds: float = 0.0) -> None:
        self.rng = np.random.default_rng((6, seed))
        shops, mask = street.strip_of_shops()
        self.shops, self.mask = np.tile(shops, (1, 3, 1)), np.tile(mask, (1, 3))
        self.rows = [self.cast() for _ in range(height // street.height)]
        self.still = moving is not None
        if moving is not None:
            for number, actors in enumerate(self.rows):
                for actor in actors:
                    if not inside(actor, number * street.height, moving, seconds):
                        actor.speed = 0
        self.noise = self.rng.normal(0, noise, (height + 64, width + 64, 3)).astype(np.int8)

    def cast(self) -> list[Any]:
        """The actors of one of the three streets: the demo's rows, three times as long, in which
        others of their kinds stand and go."""
        rows: dict[Any, list[Any]] = {}
        for actor in street.cast():
            in_shop = actor.speed == street.shop_speed
            rows.setdefault((in_shop, actor.ground // 40), []).append(actor)
        actors = []
        for (in_shop, _), row in rows.items():
            span = self.shops.shape[1] if in_shop else width + 2 * sizes[1]
            for place in range(len(row) * width // street.width):
                like = row[self.rng.integers(len(row))]
                kind = street.GLYPHS[street.CLASS_OF[like.character]]
                size = np.exp(self.rng.uniform(*np.log(sizes)))
                x = (place + self.rng.uniform(0, 0.9)) * street.width / len(row)
                if in_shop:
                    size = min(size, largest_in_shop)
                    x = row[place % len(row)].x + place // len(row) * street.SHOP * len(row) // 2
                actors.append(street.Actor(kind[self.rng.integers(len(kind))], size, x, like.ground,
                                           like.speed, like.step, span))
        return actors

    def frame_at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """The frame at a time in seconds: image (2160, 3840, 3) uint8 BGR, and its truth (n, 6)
        float32: class, x1, y1, x2, y2 in pixels, share of its own pixels that can be seen."""
        images, truth = [], []
        for number, actors in enumerate(self.rows):
            starts = [actor.x for actor in actors]
            for actor in actors if self.still else ():
                actor.x += actor.speed * time
            image, boxes, _ = street.identified_frame_at(0 if self.still else time, actors,
                                                         self.shops, self.mask, width)
            for actor, start in zip(actors, starts):
                actor.x = start
            images.append(image)
            truth.append(np.array(boxes, np.float32).reshape(-1, 6))
            truth[-1][:, [2, 4]] += number * street.height
        x, y = self.rng.integers(0, 64, 2)
        image = cv2.add(np.concatenate(images), self.noise[y:y + height, x:x + width],
                        dtype=cv2.CV_8U)
        return image, np.concatenate(truth)


def inside(actor: Any, top: int, areas: Any, seconds: float) -> bool:
    """Whether an actor stays in one of the areas, (x1, y1, x2, y2) in pixels of the large street.
    top: y of the upper edge of the actor's street there."""
    (first, y), (last, _) = actor.at(0)[0], actor.at(seconds)[0]
    reach, y = 0.6 * actor.size, y + top
    return actor.lap(0) == actor.lap(seconds) and any(
        x1 <= min(first, last) - reach and max(first, last) + reach <= x2
        and y1 <= y - reach and y + reach <= y2 for x1, y1, x2, y2 in areas)
