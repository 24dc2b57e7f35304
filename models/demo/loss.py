"""Losses and target assignment of YOLOv5 and YOLOv8 (Ultralytics YOLOv5 6.0 and YOLOv8).

Targets are (n, 6) float32 image, class, cx, cy, w, h in pixels. CIoU is Zheng et al., "Distance-IoU
Loss", AAAI 2020; task-aligned assignment Feng et al., "TOOD", ICCV 2021; the loss on distributions
Li et al., "Generalized Focal Loss", NeurIPS 2020.
"""
import math

import torch
from network import ANCHORS, BINS, CLASSES, STRIDES
from torch import nn

# --------------------------------------------------------------------------------------------------
box_gain, object_gain, class_gain = 0.05, 1.0, 0.5   # YOLOv5; object_gain at 640 pixels
level_gains = (4.0, 1.0, 0.4)                        # its objectness loss at strides 8, 16, 32
gains = 7.5, 0.5, 1.5                                # YOLOv8: box, class, distribution
# cells an object gets; exponents of score and IoU in their choice
candidates, alpha, beta = 10, 0.5, 6.0
# --------------------------------------------------------------------------------------------------


def ciou(a, b):
    """Complete IoU of boxes a and b, both (n, 4) cx, cy, w, h: (n,)."""
    a1, a2 = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
    b1, b2 = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    overlap = (torch.minimum(a2, b2) - torch.maximum(a1, b1)).clamp(0).prod(1)
    iou = overlap / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - overlap + 1e-7)
    diagonal = (torch.maximum(a2, b2) - torch.minimum(a1, b1)).square().sum(1) + 1e-7
    distance = (a[:, :2] - b[:, :2]).square().sum(1)
    v = 4 / math.pi ** 2 * (torch.atan(b[:, 2] / b[:, 3])
                            - torch.atan(a[:, 2] / (a[:, 3] + 1e-7))).square()
    with torch.no_grad():
        alpha = v / (v - iou + 1 + 1e-7)
    return iou - distance / diagonal - alpha * v


def anchors_of(targets, anchors, stride, height, width):
    """YOLOv5's targets of one level: every anchor within a factor of 4, in the target's cell and
    the two nearest neighbours.

    targets (n, 6) image, class, cx, cy, w, h in pixels; anchors (3, 2) in pixels.
    Returns (targets (m, 6), anchor (m,), row (m,), column (m,)).
    """
    ratio = targets[:, None, 4:] / anchors  # (n, 3, 2)
    which, anchor = torch.nonzero(torch.maximum(ratio, 1 / ratio).amax(2) < 4, as_tuple=True)
    targets = targets[which]
    x, y = targets[:, 2] / stride, targets[:, 3] / stride
    every = torch.ones_like(x, dtype=torch.bool)
    chosen, rows, columns = [], [], []
    for dx, dy, wanted in ((0, 0, every), (-1, 0, x % 1 < 0.5), (1, 0, x % 1 > 0.5),
                           (0, -1, y % 1 < 0.5),
                           (0, 1, y % 1 > 0.5)):
        column, row = x.long() + dx, y.long() + dy
        inside = wanted & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        chosen.append(torch.nonzero(inside)[:, 0])
        rows.append(row[inside])
        columns.append(column[inside])
    chosen = torch.cat(chosen)
    return targets[chosen], anchor[chosen], torch.cat(rows), torch.cat(columns)


def yolov5_loss(heads, targets, size):
    """Loss of a batch of images of size x size, and its box, object and class parts; heads as
    network.YOLOv5 returns them."""
    box_loss = object_loss = class_loss = 0.0
    bce = nn.functional.binary_cross_entropy_with_logits
    levels = torch.tensor(ANCHORS, dtype=torch.float32, device=targets.device)
    for head, stride, anchors, gain in zip(heads, STRIDES, levels, level_gains):
        b, _, h, w = head.shape
        head = head.view(b, 3, 5 + CLASSES, h, w)
        wanted, anchor, row, column = anchors_of(targets, anchors, stride, h, w)
        image = wanted[:, 0].long()
        objectness = torch.zeros((b, 3, h, w), device=head.device)
        if len(wanted):
            predicted = head[image, anchor, :, row, column].float()  # (m, 5 + CLASSES)
            s = predicted[:, :4].sigmoid()
            cell = torch.stack([column, row], 1)
            boxes = torch.cat([(s[:, :2] * 2 - 0.5 + cell) * stride,
                               (s[:, 2:] * 2).square() * anchors[anchor]], 1)
            iou = ciou(boxes, wanted[:, 2:])
            box_loss = box_loss + (1 - iou).mean()
            objectness[image, anchor, row, column] = iou.detach().clamp(0)
            one_hot = nn.functional.one_hot(wanted[:, 1].long(), CLASSES).float()
            class_loss = class_loss + bce(predicted[:, 5:], one_hot)
        object_loss = object_loss + bce(head[:, :, 4].float(), objectness) * gain
    parts = (box_gain * box_loss, object_gain * (size / 640) ** 2 * object_loss,
             class_gain * class_loss)
    return sum(parts) * b, parts


def padded(targets, images):
    """Targets by image: classes (images, most) int64, boxes (images, most, 4) xyxy, and which of
    them are real (images, most) bool."""
    counts = torch.bincount(targets[:, 0].long(), minlength=images)
    most = max(1, int(counts.max()))
    classes = torch.zeros((images, most), dtype=torch.long, device=targets.device)
    boxes = torch.zeros((images, most, 4), device=targets.device)
    for image in range(images):
        own = targets[targets[:, 0] == image]
        classes[image, :len(own)] = own[:, 1].long()
        boxes[image, :len(own)] = torch.cat(
            [own[:, 2:4] - own[:, 4:] / 2, own[:, 2:4] + own[:, 4:] / 2], 1)
    return classes, boxes, torch.arange(most, device=targets.device) < counts[:, None]


def pairwise_iou(a, b):
    """IoU of every box of a (B, n, 4) with every box of b (B, m, 4), xyxy: (B, n, m)."""
    a, b = a[:, :, None], b[:, None]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:])
               - torch.maximum(a[..., :2], b[..., :2])).clamp(0).prod(3)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(3) for boxes in (a, b)]
    return overlap / (areas[0] + areas[1] - overlap + 1e-7)


@torch.no_grad()
def aligned(scores, predicted, centres, classes, boxes, real):
    """Which object each cell shall find: (B, cells) index of the object, -1 for none, and the score
    it shall have (B, cells).

    scores (B, cells, CLASSES); predicted (B, cells, 4) xyxy; centres (cells, 2) in pixels; the rest
    as padded() returns it.
    """
    # (B, objects, cells)
    inside = torch.cat([centres - boxes[:, :, None, :2], boxes[:, :, None, 2:] - centres], 3)
    inside = inside.amin(3) > 0
    iou = pairwise_iou(boxes, predicted)
    score = scores.transpose(1, 2).gather(1, classes[:, :, None].expand(-1, -1, scores.shape[1]))
    alignment = (score ** alpha * iou ** beta) * inside * real[:, :, None]
    best = alignment.topk(candidates, 2)
    chosen = torch.zeros_like(alignment).scatter_(2, best.indices,
                                                  (best.values > 1e-9).float()).bool()
    which = torch.where(chosen, iou, -1.0)
    overlap, which = which.max(1)  # of two objects a cell takes the one it overlaps more
    which = torch.where(overlap >= 0, which, -1)
    # (B, objects, cells)
    kept = nn.functional.one_hot(which + 1, boxes.shape[1] + 1)[..., 1:].transpose(1, 2).bool()
    alignment, iou = alignment * kept, iou * kept
    wanted = alignment / (alignment.amax(2, keepdim=True) + 1e-9) * iou.amax(2, keepdim=True)
    return which, wanted.amax(1)


def yolov8_loss(heads, targets, size):
    """Loss of a batch of images of size x size, and its box, class and distribution parts; heads as
    network.YOLOv8 returns them."""
    images = len(heads[0])
    # (B, cells, 4 * BINS)
    distances = torch.cat([head.flatten(2) for head in heads[::2]], 2).transpose(1, 2).float()
    # (B, cells, CLASSES)
    logits = torch.cat([head.flatten(2) for head in heads[1::2]], 2).transpose(1, 2).float()
    centres, strides = [], []
    for stride in STRIDES:
        row, column = torch.meshgrid(*[torch.arange(size // stride, device=logits.device)] * 2,
                                     indexing="ij")
        centres.append((torch.stack([column, row], 2).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((len(centres[-1]), 1), float(stride), device=logits.device))
    centres, strides = torch.cat(centres), torch.cat(strides)  # (cells, 2), (cells, 1)
    distances = distances.view(images, -1, 4, BINS)
    # (B, cells, 4)
    bins = torch.arange(BINS, dtype=torch.float32, device=logits.device)
    sides = distances.softmax(3) @ bins * strides
    predicted = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], 2)
    classes, boxes, real = padded(targets, images)
    which, wanted = aligned(logits.sigmoid(), predicted.detach(), centres, classes, boxes, real)

    image, cell = torch.nonzero(which >= 0, as_tuple=True)
    number, weight = which[image, cell], wanted[image, cell]
    score = torch.zeros_like(logits)
    score[image, cell, classes[image, number]] = weight
    total = score.sum().clamp(min=1)
    class_loss = nn.functional.binary_cross_entropy_with_logits(logits, score,
                                                                reduction="sum") / total
    found, truth = predicted[image, cell], boxes[image, number]
    a, b = (torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], 1)
            for xyxy in (found, truth))
    box_loss = ((1 - ciou(a, b)) * weight).sum() / total
    side = torch.cat([centres[cell] - truth[:, :2], truth[:, 2:] - centres[cell]], 1)  # (m, 4)
    side = side / strides[cell]
    side = side.clamp(0, BINS - 1.01)
    low, share = side.long(), side.frac()
    log = distances[image, cell].log_softmax(2)
    between = ((1 - share) * log.gather(2, low[..., None])[..., 0]
               + share * log.gather(2, low[..., None] + 1)[..., 0])
    distribution_loss = (-between.mean(1) * weight).sum() / total
    parts = gains[0] * box_loss, gains[1] * class_loss, gains[2] * distribution_loss
    return sum(parts) * images, parts
