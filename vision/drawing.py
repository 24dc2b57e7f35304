"""Draws detections on a frame: boxes or corners, masks, key points, class maps, and labels."""
from __future__ import annotations

from typing import List

import cv2
import numpy as np

from vision.detections import Detections
from vision.labels import colour, label, label_positions, paste
from vision.letterbox import as_bgr

KEYPOINT_THRESH = 0.5    # minimum score of a key point that is drawn
# Lines between COCO's 17 key points: nose, eyes, ears, shoulders, elbows, wrists, hips, knees and
# ankles; of each pair the left one first.
SKELETON = ((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11),
            (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16))
WHITE, YELLOW, GREEN, BLUE = (255, 255, 255), (0, 220, 255), (0, 200, 0), (255, 120, 0)


def draw(IMG: np.ndarray, detections: Detections) -> np.ndarray:
    """Draw detections on a frame, in place, and return it.

    IMG: (h, w, 3) uint8 BGR; another frame that as_bgr() converts is drawn as a copy. Each object
    gets a label with its id, name and score. Labels of classifiers and class maps, which have no
    boxes, stand in the upper left corner.
    """
    IMG = as_bgr(IMG)
    if detections.boxes is None:
        return _draw_list(IMG, detections)
    h, w = IMG.shape[:2]
    thickness = max(1, round(min(h, w) / 360))
    draw_masks(IMG, detections)
    if detections.corners is not None:
        draw_corners(IMG, detections, thickness)
    else:
        draw_boxes(IMG, detections, thickness)
    draw_keypoints(IMG, detections, thickness)
    pictures = [label(caption, number, max(0.3, min(h, w) / 1200))
                for caption, number in zip(captions(detections), detections.classes.tolist())]
    boxes = detections.boxes.astype(int).tolist()
    for picture, (x, y) in zip(pictures, label_positions(boxes, pictures, h, w)):
        paste(IMG, picture, x, y)
    return IMG


def _draw_list(IMG: np.ndarray, detections: Detections) -> np.ndarray:
    if detections.class_map is not None:
        draw_class_map(IMG, detections, detections.class_map)
    y = 0
    for caption, number in zip(captions(detections), detections.classes.tolist()):
        picture = label(caption, number, max(0.3, min(IMG.shape[:2]) / 900))
        paste(IMG, picture, 0, y)
        y += len(picture)
    return IMG


def captions(detections: Detections) -> List[str]:
    """The text of each label: "dog 0.91", with a tracker's id "#7 dog 0.91", with a second
    model's answer "#7 dog 0.91 poodle"; of a class map "road 45%"."""
    if detections.class_map is not None:
        return [f"{detections.name(number)} {share:.0%}" for number, share
                in zip(detections.classes.tolist(), detections.scores.tolist())]
    texts = [f"{detections.name(number)} {score:.2f}" for number, score
             in zip(detections.classes.tolist(), detections.scores.tolist())]
    if detections.attributes is not None:
        texts = [" ".join([text, *(said for said, _ in each.values())])
                 for text, each in zip(texts, detections.attributes)]
    if detections.ids is None:
        return texts
    return [f"#{number} {text}" if number >= 0 else text
            for number, text in zip(detections.ids.tolist(), texts)]


def draw_boxes(IMG: np.ndarray, detections: Detections, thickness: int) -> None:
    """Draw the boxes, the best last, so that it lies on top."""
    h, w = IMG.shape[:2]
    assert detections.boxes is not None
    for (x1, y1, x2, y2), number in zip(detections.boxes[::-1].astype(int).tolist(),
                                        detections.classes[::-1].tolist()):
        x2, y2 = min(x2, w - 1), min(y2, h - 1)
        for inner in range(thickness):  # two thin lines cost OpenCV half as much as a thick one
            corner = x2 - inner, y2 - inner
            cv2.rectangle(IMG, (x1 + inner, y1 + inner), corner, colour(number))


def draw_corners(IMG: np.ndarray, detections: Detections, thickness: int) -> None:
    """Draw rotated boxes, the best last."""
    assert detections.corners is not None
    for corners, number in zip(detections.corners[::-1], detections.classes[::-1].tolist()):
        points = np.rint(corners).astype(np.int32)
        cv2.polylines(IMG, [points], True, colour(number), thickness, cv2.LINE_AA)


def draw_masks(IMG: np.ndarray, detections: Detections) -> None:
    """Lay each mask on the frame, half transparent, the best last."""
    masks = detections.masks or []
    for (x, y, mask), number in zip(masks[::-1], detections.classes[::-1].tolist()):
        region = IMG[y:y + mask.shape[0], x:x + mask.shape[1]]
        mask = mask[:region.shape[0], :region.shape[1]]
        if region.size:
            paint = np.full_like(region, colour(number))
            cv2.copyTo(cv2.addWeighted(region, 0.5, paint, 0.5, 0), mask, region)


def draw_class_map(IMG: np.ndarray, detections: Detections, class_map: np.ndarray) -> None:
    """Paint each class of the detections on the frame, half transparent, except "background"."""
    painted, colours = np.zeros(256, np.uint8), np.zeros((256, 3), np.uint8)
    for number in detections.classes.tolist():
        painted[number], colours[number] = detections.name(number) != "background", colour(number)
    size = IMG.shape[1::-1]
    paint, mask = (cv2.resize(table[class_map], size, interpolation=cv2.INTER_NEAREST)
                   for table in (colours, painted))
    cv2.copyTo(cv2.addWeighted(IMG, 0.5, paint, 0.5, 0), mask, IMG)


def draw_keypoints(IMG: np.ndarray, detections: Detections, thickness: int) -> None:
    """Draw the key points above KEYPOINT_THRESH, and the lines of COCO's skeleton between them."""
    if detections.keypoints is None:
        return
    for points in detections.keypoints[::-1]:
        person = len(points) == 17
        visible = points[:, 2] >= KEYPOINT_THRESH
        pixels = np.rint(points[:, :2]).clip(-1e4, 1e4).astype(int).tolist()
        for first, second in SKELETON if person else ():
            if visible[first] and visible[second]:
                cv2.line(IMG, pixels[first], pixels[second], WHITE, thickness, cv2.LINE_AA)
        for number in np.flatnonzero(visible).tolist():
            paint = YELLOW if person and number < 5 else GREEN if number % 2 else BLUE
            cv2.circle(IMG, pixels[number], thickness + 2, paint, -1, cv2.LINE_AA)
