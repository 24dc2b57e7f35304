"""Trains the demo classifier, a narrow ResNet-18, from scratch on drawn objects, and exports ONNX.

    python models/demo/train_classifier.py           # continues an interrupted run
    python models/demo/train_classifier.py --export models/resnet18_emoji.onnx    # only exports

The network is ResNet-18 of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
with a quarter of its channels. evaluate_classifier.py measures it.
"""
import argparse
import copy
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from vision.packages import needed_packages  # noqa: E402

with needed_packages():
    import cv2
    import numpy as np
    import torch
    from scene import draw_object
    from torch import nn
    from torch.utils.data import DataLoader

# --------------------------------------------------------------------------------------------------
width = 16            # channels of the first stage; ResNet-18's own are 64
classes = 80          # COCO's, as func.CLASSES names them; 69 of them are drawn
# ImageNet's, R, G, B in 0..255; they go into the ONNX
mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
parts = ((112, 1600), (160, 500), (224, 1000))  # pixels and steps of each part of the training
batch = 64
learning_rate = 3e-3  # of AdamW, cosine to nothing over all parts
warm_up = 100         # steps
weight_decay = 0.05
# training objects are (seed, number); evaluate_classifier.py's have another seed
seed = 1
device = "cuda" if torch.cuda.is_available() else "cpu"
# --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a 1 x 1 convolution where the shape
    changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                                          nn.BatchNorm2d(outputs))

    def forward(self, x):
        return torch.relu(self.layers(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """images (B, 3, H, W), less the mean and divided by the standard deviation -> logits (B,
    classes)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width),
                                  nn.ReLU(inplace=True),
                                  nn.MaxPool2d(3, 2, 1))
        stages, inputs = [], width
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            stages += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
            inputs = outputs
        self.stages, self.pool = nn.Sequential(*stages), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images):
        return self.head(self.pool(self.stages(self.stem(images))).flatten(1))


class Objects:
    """Object `number` for training: image (size, size, 3) uint8 RGB, class."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return 1 << 40

    def __getitem__(self, number):
        drawn = self.size * 8 // 7
        image, class_number = draw_object((seed, number), drawn)
        edge = (drawn - self.size) // 2
        image = image[edge:edge + self.size, edge:edge + self.size, ::-1]
        return np.ascontiguousarray(image), class_number


def one_thread(_):
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def network_input(images):
    """Images (B, H, W, 3) uint8 RGB as ResNet18 takes them."""
    images = images.to(device).float() - torch.tensor(mean, device=device)
    images = images / torch.tensor(std, device=device)
    return images.permute(0, 3, 1, 2)  # channels last in memory


def export(network, path):
    """Write the network as ONNX, opset 12: images (1, 3, 224, 224) float32 -> logits (1, classes);
    mean and std as metadata."""
    import onnx
    network = copy.deepcopy(network).float().cpu().eval().to(memory_format=torch.contiguous_format)
    torch.onnx.export(network, torch.zeros(1, 3, 224, 224), str(path), opset_version=12,
                      dynamo=False,
                      input_names=["image"], output_names=["logits"])
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model,
                                {"mean": " ".join(map(str, mean)), "std": " ".join(map(str, std))})
    onnx.save(model, str(path))


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path(__file__).parent / "runs" / "resnet18",
                        help="folder of the checkpoint")
    parser.add_argument("--export", type=Path,
                        help="export the checkpoint to this ONNX file and stop")
    return parser.parse_args()


def train_step(network, optimizer, rate, images, truth):
    """Train the network on one batch; returns the loss, and how many answers were right."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    truth = truth.to(device)
    network.train()
    with torch.autocast(device, torch.bfloat16):
        logits = network(network_input(images))
    loss = nn.functional.cross_entropy(logits.float(), truth)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), (logits.argmax(1) == truth).sum().item()


def main():
    args = parse()
    args.run.mkdir(parents=True, exist_ok=True)
    checkpoint = args.run / "checkpoint.pt"

    torch.manual_seed(seed)
    network = ResNet18().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW([{"params": [p for p in network.parameters() if p.ndim > 1],
                                    "weight_decay": weight_decay},
                                   {"params": [p for p in network.parameters() if p.ndim <= 1],
                                    "weight_decay": 0.0}])
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        print(f"going on after step {step}", flush=True)
    if args.export:
        export(network, args.export)
        return

    total, end = sum(steps for _, steps in parts), 0
    began, first_step, right, seen, losses = time.time(), step, 0, 0, 0.0
    for size, steps in parts:
        end += steps
        if step >= end:
            continue
        loader = DataLoader(Objects(size), batch, sampler=range(step * batch, end * batch),
                            worker_init_fn=one_thread, num_workers=1, prefetch_factor=4)
        for images, truth in loader:
            rate = learning_rate * min(1, (step + 1) / warm_up)
            rate *= (1 + math.cos(math.pi * step / total)) / 2
            loss, answers = train_step(network, optimizer, rate, images, truth)
            step += 1
            losses, seen, right = losses + loss, seen + len(truth), right + answers
            if step % 50 == 0:
                per_step = (time.time() - began) / (step - first_step)
                print(f"step {step}/{total} at {size}: loss {losses / seen * batch:.3f}, "
                      f"top-1 {right / seen:.3f} on training objects, {per_step:.2f} s per step",
                      flush=True)
                right, seen, losses = 0, 0, 0.0
            if step % 100 == 0 or step == end:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(),
                         "step": step}
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
    export(network, args.run / "model.onnx")
    print(f"exported {args.run / 'model.onnx'}")


if __name__ == "__main__":
    with needed_packages():
        main()
