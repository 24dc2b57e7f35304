"""Trains a demo model on drawn scenes, from nothing, and exports it to ONNX in Rockchip's layout.

    python models/demo/train.py                       # YOLOv5n; continues an interrupted run
    python models/demo/train.py --network yolov8n
    python models/demo/train.py --export models/yolov5n_emoji.onnx   # only exports what is there
"""
import argparse
import copy
import math
import os
import sys
import time
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import cv2
    import evaluate
    import numpy as np
    import torch
    from loss import yolov5_loss, yolov8_loss
    from network import Exported, YOLOv5, YOLOv8
    from scene import draw_scene
    from street import random_street
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

# --------------------------------------------------------------------------------------------------
batch = 32
warm_up = 300         # steps
seed = 1              # training scenes are (seed, number); evaluate.py's have another seed
check_every = 1000    # steps between two mAP figures
device = "cuda" if torch.cuda.is_available() else "cpu"

# steps of `batch` scenes at 320 pixels, then final_steps of `batch` / 2 scenes at 640; rate and
# final_rate stand at the beginning of each part, and go down in a cosine to a hundredth
Recipe = namedtuple("Recipe", "network loss optimizer options steps final_steps rate final_rate")
RECIPES = {
    "yolov5n": Recipe(YOLOv5, yolov5_loss, torch.optim.SGD,
                      dict(momentum=0.937, nesterov=True, weight_decay=5e-4),
                      6750, 2500, 0.02, 0.005),
    "yolov8n": Recipe(YOLOv8, yolov8_loss, torch.optim.AdamW, dict(weight_decay=0.02), 5000, 550,
                      2e-3, 4e-4),
}
# --------------------------------------------------------------------------------------------------


class Scenes(Dataset):
    """Scene `number` for training: image (size, size, 3) uint8 RGB, targets (n, 5) float32 class,
    centre x, y, w, h in pixels."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return 1 << 40

    def __getitem__(self, number):
        size = self.size
        # At 320 pixels objects keep the sizes in pixels that they have at 640, so that the network
        # learns those.
        sizes, objects = ((0.08, 0.75), (4, 12)) if size < 640 else ((0.045, 0.6), (5, 16))
        if number % 3 == 2:
            image, boxes, classes = draw_scene((seed, number), size, size, sizes, objects)
        else:  # a wide frame between letterbox bars
            height = size * 9 // 16
            top = (size - height) // 2
            if number % 3 == 0:
                wide, boxes, classes = draw_scene((seed, number), size, height, sizes, objects)
            else:
                wide, boxes, classes = random_street((seed, number))
                if size < 640:
                    wide, boxes, classes = window(wide, boxes, classes, size, height,
                                                  (seed, number))
            image = np.full((size, size, 3), 114, np.uint8)
            image[top:top + height] = wide
            boxes[:, 1::2] += top
        targets = np.empty((len(classes), 5), np.float32)
        targets[:, 0] = classes
        targets[:, 1:3] = (boxes[:, :2] + boxes[:, 2:]) / 2
        targets[:, 3:] = boxes[:, 2:] - boxes[:, :2]
        return image[..., ::-1].copy(), targets


def window(image, boxes, classes, width, height, seed):
    """A part of a scene at its own scale, as a scene: objects that are mostly outside go."""
    most = image.shape[1] - width + 1, image.shape[0] - height + 1
    x, y = np.random.default_rng(seed).integers(0, most)
    corner, limit = np.array([x, y, x, y], np.float32), np.array([width, height] * 2, np.float32)
    inside = (boxes - corner).clip(0, limit)
    kept = (inside[:, 2:] - inside[:, :2]).prod(1) >= 0.4 * (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return image[y:y + height, x:x + width], inside[kept], classes[kept]


def collate(samples):
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    targets = [np.insert(targets, 0, index, axis=1) for index, (_, targets) in enumerate(samples)]
    # (B, H, W, 3), (n, 6) image, class, cx, cy, w, h
    return images, torch.from_numpy(np.concatenate(targets))


def one_thread(_):
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def averaged(ema, network, step):
    """Move the exponential moving average of the weights, with YOLOv5's ramp."""
    decay = 0.9998 * (1 - math.exp(-(step + 1) / 2000))
    with torch.no_grad():
        for old, new in zip(ema.state_dict().values(), network.state_dict().values()):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


def scenes(size, first, steps, images_a_step):
    """Batches of the training scenes from number `first` on, for this many steps."""
    return DataLoader(Scenes(size), images_a_step, collate_fn=collate, worker_init_fn=one_thread,
                      sampler=range(first, first + steps * images_a_step),
                      num_workers=1 if device == "cpu" else os.cpu_count(), prefetch_factor=4)


def optimizer_of(network, recipe):
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return recipe.optimizer([{"params": decayed}, {"params": others, "weight_decay": 0}],
                            lr=recipe.rate,
                            **recipe.options)


def predictor(network):
    """The network as evaluate.py wants it: image (640, 640, 3) uint8 RGB -> its outputs as
    exported, float32."""
    def predict(image):
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            x = torch.from_numpy(image[None]).to(device).permute(0, 3, 1, 2).float() / 255
            heads = network.eval()(x.contiguous(memory_format=torch.channels_last))
            outputs = network.export_form([head.float() for head in heads])
            return [output.cpu().numpy() for output in outputs]
    return predict


def export(network, path):
    """Write the network as ONNX, opset 12, input images (1, 3, 640, 640) float32 RGB in 0..1,
    outputs as in Rockchip's exports."""
    network = copy.deepcopy(network).float().cpu().eval().to(memory_format=torch.contiguous_format)
    torch.onnx.export(Exported(network), torch.zeros(1, 3, 640, 640), str(path), opset_version=12,
                      dynamo=False,
                      input_names=["images"], output_names=network.outputs)


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=RECIPES, default="yolov5n")
    parser.add_argument("--run", type=Path,
                        help="folder of the checkpoint (default: runs/NETWORK beside this file)")
    parser.add_argument("--steps", type=int, help="of the first part")
    parser.add_argument("--final-steps", type=int)
    parser.add_argument("--export", type=Path,
                        help="export the checkpoint to this ONNX file and stop")
    return parser.parse_args()


def learning_rate(recipe, step, steps, total):
    """The rate of a step: a warm-up, then a cosine over each of the two parts."""
    if step < steps:
        highest, progress = recipe.rate * min(1, (step + 1) / warm_up), step / steps
    else:
        highest, progress = recipe.final_rate, (step - steps) / (total - steps)
    return highest * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def train_step(network, recipe, optimizer, rate, images, targets, size):
    """Train the network on one batch; returns the parts of the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    images = images.to(device).permute(0, 3, 1, 2).float() / 255
    network.train()
    with torch.autocast(device, torch.bfloat16):
        heads = network(images.contiguous(memory_format=torch.channels_last))
    loss, parts = recipe.loss(heads, targets.to(device), size)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()
    return parts


def save(checkpoint, **state):
    torch.save(state, checkpoint.with_suffix(".new"))
    checkpoint.with_suffix(".new").replace(checkpoint)


def main():
    args = parse()
    recipe = RECIPES[args.network]
    steps = recipe.steps if args.steps is None else args.steps
    total = steps + (recipe.final_steps if args.final_steps is None else args.final_steps)
    run = args.run or Path(__file__).parent / "runs" / args.network
    run.mkdir(parents=True, exist_ok=True)
    checkpoint = run / "checkpoint.pt"

    torch.manual_seed(seed)
    network = recipe.network().to(device, memory_format=torch.channels_last)
    ema = copy.deepcopy(network)
    optimizer = optimizer_of(network, recipe)
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

    began, first_step = time.time(), step
    while step < total:
        size, images_a_step = (320, batch) if step < steps else (640, batch // 2)
        end = steps if step < steps else total
        loader = scenes(size, drawn, end - step, images_a_step)
        for images, targets in loader:
            rate = learning_rate(recipe, step, steps, total)
            parts = train_step(network, recipe, optimizer, rate, images, targets, size)
            averaged(ema, network, step)
            step += 1
            drawn += images_a_step
            if step % 50 == 0:
                terms = " + ".join(f"{float(part.detach()):.4f}" for part in parts)
                print(f"step {step}/{total} at {size}: loss {terms}, "
                      f"{(time.time() - began) / (step - first_step):.2f} s per step", flush=True)
            if step % 250 == 0 or step == end:
                save(checkpoint, network=network.state_dict(), ema=ema.state_dict(),
                     optimizer=optimizer.state_dict(), step=step, drawn=drawn)
            if step % check_every == 0 or step == total:
                precision = evaluate.mean_average_precision(predictor(ema),
                                                            evaluate.unseen_scenes(100))
                print(f"step {step}: {evaluate.summary(precision)}", flush=True)
    export(ema, run / "model.onnx")
    print(f"exported {run / 'model.onnx'}")


if __name__ == "__main__":
    with needed_packages():
        main()
