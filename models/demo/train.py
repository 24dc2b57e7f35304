"""Trains the demo model on drawn scenes, from nothing, and exports it to ONNX in Rockchip's layout.

    python models/demo/train.py                       # goes on where an interrupted run stopped
    python models/demo/train.py --export models/yolov5n_emoji.onnx   # only exports what is there

Loss and target assignment are YOLOv5's (Ultralytics YOLOv5 6.0), CIoU is Zheng et al., "Distance-IoU Loss", AAAI 2020.
"""
import argparse
import copy
import math
import os
import time
from pathlib import Path

import cv2
import evaluate
import numpy as np
import torch
from network import ANCHORS, CLASSES, STRIDES, Exported, YOLOv5
from scene import draw_scene
from street import random_street
from torch import nn
from torch.utils.data import DataLoader, Dataset

# ---------------------------------------------------------------------------------------------------------------------------
steps = 6750          # of `batch` scenes at 320 pixels
final_steps = 2500    # then of `batch` / 2 scenes at 640 pixels
batch = 32
learning_rate, final_learning_rate = 0.02, 0.005  # of SGD, at the beginning of each part, cosine to a hundredth
warm_up = 300         # steps
weight_decay = 5e-4
box_gain, object_gain, class_gain = 0.05, 1.0, 0.5   # object_gain at 640 pixels
level_gains = (4.0, 1.0, 0.4)                        # objectness loss at strides 8, 16, 32
seed = 1              # training scenes are (seed, number); evaluate.py's have another seed
check_every = 1000    # steps between two mAP figures
device = "cuda" if torch.cuda.is_available() else "cpu"
# ---------------------------------------------------------------------------------------------------------------------------


class Scenes(Dataset):
    """Scene `number` for training: image (size, size, 3) uint8 RGB, targets (n, 5) float32 class, centre x, y, w, h in pixels."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return 1 << 40

    def __getitem__(self, number):
        size = self.size
        # At 320 pixels objects keep the sizes in pixels that they have at 640, so that the network learns those.
        sizes, objects = ((0.08, 0.75), (4, 12)) if size < 640 else ((0.045, 0.6), (5, 16))
        if number % 3 == 2:
            image, boxes, classes = draw_scene((seed, number), size, size, sizes, objects)
        else:  # a wide frame between letterbox bars
            height = size * 9 // 16
            top = (size - height) // 2
            if size == 640:
                wide, boxes, classes = random_street((seed, number))
            else:
                wide, boxes, classes = draw_scene((seed, number), size, height, sizes, objects)
            image = np.full((size, size, 3), 114, np.uint8)
            image[top:top + height] = wide
            boxes[:, 1::2] += top
        targets = np.empty((len(classes), 5), np.float32)
        targets[:, 0] = classes
        targets[:, 1:3] = (boxes[:, :2] + boxes[:, 2:]) / 2
        targets[:, 3:] = boxes[:, 2:] - boxes[:, :2]
        return image[..., ::-1].copy(), targets


def collate(samples):
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    targets = [np.insert(targets, 0, index, axis=1) for index, (_, targets) in enumerate(samples)]
    return images, torch.from_numpy(np.concatenate(targets))  # (B, H, W, 3), (n, 6) image, class, cx, cy, w, h


def one_thread(_):
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def ciou(a, b):
    """Complete IoU of boxes a and b, both (n, 4) cx, cy, w, h: (n,)."""
    a1, a2, b1, b2 = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    overlap = (torch.minimum(a2, b2) - torch.maximum(a1, b1)).clamp(0).prod(1)
    iou = overlap / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - overlap + 1e-7)
    diagonal = (torch.maximum(a2, b2) - torch.minimum(a1, b1)).square().sum(1) + 1e-7
    distance = (a[:, :2] - b[:, :2]).square().sum(1)
    v = 4 / math.pi ** 2 * (torch.atan(b[:, 2] / b[:, 3]) - torch.atan(a[:, 2] / (a[:, 3] + 1e-7))).square()
    with torch.no_grad():
        alpha = v / (v - iou + 1 + 1e-7)
    return iou - distance / diagonal - alpha * v


def assign(targets, anchors, stride, height, width):
    """YOLOv5's targets of one level: every anchor within a factor of 4, in the target's cell and the two nearest neighbours.

    targets (n, 6) image, class, cx, cy, w, h in pixels; anchors (3, 2) in pixels.
    Returns (targets (m, 6), anchor (m,), row (m,), column (m,)).
    """
    ratio = targets[:, None, 4:] / anchors  # (n, 3, 2)
    which, anchor = torch.nonzero(torch.maximum(ratio, 1 / ratio).amax(2) < 4, as_tuple=True)
    targets = targets[which]
    x, y = targets[:, 2] / stride, targets[:, 3] / stride
    every = torch.ones_like(x, dtype=torch.bool)
    chosen, rows, columns = [], [], []
    for dx, dy, wanted in ((0, 0, every), (-1, 0, x % 1 < 0.5), (1, 0, x % 1 > 0.5), (0, -1, y % 1 < 0.5), (0, 1, y % 1 > 0.5)):
        column, row = x.long() + dx, y.long() + dy
        inside = wanted & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        chosen.append(torch.nonzero(inside)[:, 0])
        rows.append(row[inside])
        columns.append(column[inside])
    chosen = torch.cat(chosen)
    return targets[chosen], anchor[chosen], torch.cat(rows), torch.cat(columns)


def loss_of(heads, targets, size):
    """Loss of a batch, and its box, object and class parts. heads: as YOLOv5 returns them; targets (n, 6) as collate's."""
    box_loss = object_loss = class_loss = 0.0
    bce = nn.functional.binary_cross_entropy_with_logits
    for head, stride, anchors, gain in zip(heads, STRIDES, torch.tensor(ANCHORS, dtype=torch.float32, device=targets.device), level_gains):
        b, _, h, w = head.shape
        head = head.view(b, 3, 5 + CLASSES, h, w)
        wanted, anchor, row, column = assign(targets, anchors, stride, h, w)
        image = wanted[:, 0].long()
        objectness = torch.zeros((b, 3, h, w), device=head.device)
        if len(wanted):
            predicted = head[image, anchor, :, row, column].float()  # (m, 5 + CLASSES)
            s = predicted[:, :4].sigmoid()
            cell = torch.stack([column, row], 1)
            boxes = torch.cat([(s[:, :2] * 2 - 0.5 + cell) * stride, (s[:, 2:] * 2).square() * anchors[anchor]], 1)
            iou = ciou(boxes, wanted[:, 2:])
            box_loss = box_loss + (1 - iou).mean()
            objectness[image, anchor, row, column] = iou.detach().clamp(0)
            one_hot = nn.functional.one_hot(wanted[:, 1].long(), CLASSES).float()
            class_loss = class_loss + bce(predicted[:, 5:], one_hot)
        object_loss = object_loss + bce(head[:, :, 4].float(), objectness) * gain
    parts = box_gain * box_loss, object_gain * (size / 640) ** 2 * object_loss, class_gain * class_loss
    return sum(parts) * b, parts


def averaged(ema, network, step):
    """Move the exponential moving average of the weights, with YOLOv5's ramp."""
    decay = 0.9998 * (1 - math.exp(-(step + 1) / 2000))
    with torch.no_grad():
        for old, new in zip(ema.state_dict().values(), network.state_dict().values()):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


def optimizer_of(network):
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return torch.optim.SGD([{"params": decayed, "weight_decay": weight_decay}, {"params": others}],
                           lr=learning_rate, momentum=0.937, nesterov=True)


def predictor(network):
    """The network as evaluate.py wants it: image (640, 640, 3) uint8 RGB -> three (1, C, H, W) float32 heads after the sigmoid."""
    def predict(image):
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            x = torch.from_numpy(image[None]).to(device).permute(0, 3, 1, 2).float() / 255
            return [head.float().sigmoid().cpu().numpy() for head in network.eval()(x.contiguous(memory_format=torch.channels_last))]
    return predict


def export(network, path):
    """Write the network as ONNX, opset 12, input images (1, 3, 640, 640) float32 RGB in 0..1, three outputs after the sigmoid."""
    network = copy.deepcopy(network).float().cpu().eval().to(memory_format=torch.contiguous_format)
    torch.onnx.export(Exported(network), torch.zeros(1, 3, 640, 640), str(path), opset_version=12, dynamo=False,
                      input_names=["images"], output_names=["stride8", "stride16", "stride32"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path(__file__).parent / "runs" / "yolov5n", help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--final-steps", type=int, default=final_steps)
    parser.add_argument("--export", type=Path, help="export the checkpoint to this ONNX file and stop")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    checkpoint = args.run / "checkpoint.pt"

    torch.manual_seed(seed)
    network = YOLOv5().to(device, memory_format=torch.channels_last)
    ema = copy.deepcopy(network)
    optimizer = optimizer_of(network)
    step = drawn = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        network.load_state_dict(state["network"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, drawn = state["step"], state["drawn"]
        print(f"going on after step {step}", flush=True)
    if args.export:
        export(ema, args.export)
        return

    total = args.steps + args.final_steps
    began, first_step = time.time(), step
    while step < total:
        size, images_a_step = (320, batch) if step < args.steps else (640, batch // 2)
        end = args.steps if step < args.steps else total
        numbers = range(drawn, drawn + (end - step) * images_a_step)
        loader = DataLoader(Scenes(size), images_a_step, sampler=numbers, collate_fn=collate, worker_init_fn=one_thread,
                            num_workers=1 if device == "cpu" else os.cpu_count(), prefetch_factor=4)
        for images, targets in loader:
            if step < args.steps:
                highest, progress = learning_rate * min(1, (step + 1) / warm_up), step / args.steps
            else:
                highest, progress = final_learning_rate, (step - args.steps) / args.final_steps
            rate = highest * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = images.to(device).permute(0, 3, 1, 2).float() / 255
            network.train()
            with torch.autocast(device, torch.bfloat16):
                heads = network(images.contiguous(memory_format=torch.channels_last))
            loss, parts = loss_of(heads, targets.to(device), size)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            averaged(ema, network, step)
            step += 1
            drawn += images_a_step
            if step % 50 == 0:
                print(f"step {step}/{total} at {size}: box {parts[0]:.4f} object {parts[1]:.4f} class {parts[2]:.4f}, "
                      f"{(time.time() - began) / (step - first_step):.2f} s a step", flush=True)
            if step % 250 == 0 or step == end:
                state = {"network": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(),
                         "step": step, "drawn": drawn}
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
            if step % check_every == 0 or step == total:
                print(f"step {step}: {evaluate.summary(evaluate.mean_average_precision(predictor(ema), scenes=100))}", flush=True)
    export(ema, args.run / "model.onnx")
    print(f"exported {args.run / 'model.onnx'}")


if __name__ == "__main__":
    main()
