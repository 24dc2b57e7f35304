"""YOLOv5n and YOLOv8n with ReLU, written from the published architectures (Ultralytics, width 0.25,
depth 0.33), in PyTorch.

ReLU instead of SiLU because it stays on the NPU in int8 (docs/models.md has the figures).
"""
import math

import torch
from torch import nn

CLASSES = 80
STRIDES = (8, 16, 32)
# of YOLOv8's distributions: the sides of a box lie 0 to 15 strides from the cell's centre
BINS = 16
# YOLOv5's: width, height in pixels of a 640 x 640 image
ANCHORS = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)),
           ((116, 90), (156, 198), (373, 326)))


class Conv(nn.Sequential):
    def __init__(self, inputs, outputs, kernel=1, stride=1, padding=None):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding,
                      bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03),
            nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    def __init__(self, channels, shortcut, kernels=(1, 3)):
        super().__init__()
        self.layers = nn.Sequential(*(Conv(channels, channels, kernel) for kernel in kernels))
        self.shortcut = shortcut

    def forward(self, x):
        return x + self.layers(x) if self.shortcut else self.layers(x)


class C3(nn.Module):
    def __init__(self, inputs, outputs, depth=1, shortcut=True):
        super().__init__()
        half = outputs // 2
        self.deep = nn.Sequential(Conv(inputs, half),
                                  *(Bottleneck(half, shortcut) for _ in range(depth)))
        self.side = Conv(inputs, half)
        self.merge = Conv(outputs, outputs)

    def forward(self, x):
        return self.merge(torch.cat([self.deep(x), self.side(x)], 1))


class SPPF(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.reduce = Conv(inputs, inputs // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.merge = Conv(inputs * 2, outputs)

    def forward(self, x):
        x = self.reduce(x)
        once = self.pool(x)
        twice = self.pool(once)
        return self.merge(torch.cat([x, once, twice, self.pool(twice)], 1))


class YOLOv5(nn.Module):
    """images (B, 3, H, W) in 0..1 -> three heads (B, 3 * (5 + CLASSES), H / s, W / s), s = 8, 16,
    32, before the sigmoid."""

    outputs = [f"stride{stride}" for stride in STRIDES]

    def __init__(self):
        super().__init__()
        self.p3 = nn.Sequential(Conv(3, 16, 6, 2, 2), Conv(16, 32, 3, 2), C3(32, 32),
                                Conv(32, 64, 3, 2), C3(64, 64, 2))
        self.p4 = nn.Sequential(Conv(64, 128, 3, 2), C3(128, 128, 3))
        self.p5 = nn.Sequential(Conv(128, 256, 3, 2), C3(256, 256), SPPF(256, 256))
        self.lateral5, self.lateral4 = Conv(256, 128), Conv(128, 64)
        self.up4, self.up3 = C3(256, 128, shortcut=False), C3(128, 64, shortcut=False)
        self.down3, self.down4 = Conv(64, 64, 3, 2), Conv(128, 128, 3, 2)
        self.out4, self.out5 = C3(128, 128, shortcut=False), C3(256, 256, shortcut=False)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.heads = nn.ModuleList(nn.Conv2d(c, 3 * (5 + CLASSES), 1) for c in (64, 128, 256))
        # so that training starts from few and uncertain boxes
        for head, stride in zip(self.heads, STRIDES):
            bias = head.bias.detach().view(3, 5 + CLASSES)
            bias[:, 4] += torch.tensor(8 / (640 / stride) ** 2).log()
            bias[:, 5:] += torch.tensor(0.6 / (CLASSES - 1)).log()

    def forward(self, images):
        c3 = self.p3(images)
        c4 = self.p4(c3)
        lateral5 = self.lateral5(self.p5(c4))
        lateral4 = self.lateral4(self.up4(torch.cat([self.upsample(lateral5), c4], 1)))
        n3 = self.up3(torch.cat([self.upsample(lateral4), c3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), lateral4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), lateral5], 1))
        return [head(x) for head, x in zip(self.heads, (n3, n4, n5))]


    @staticmethod
    def export_form(heads):
        """Heads as Rockchip's exports have them: the sigmoid inside, otherwise raw."""
        return [head.sigmoid() for head in heads]


class C2f(nn.Module):
    def __init__(self, inputs, outputs, depth=1, shortcut=True):
        super().__init__()
        half = outputs // 2
        self.first = Conv(inputs, outputs)
        self.layers = nn.ModuleList(Bottleneck(half, shortcut, kernels=(3, 3))
                                    for _ in range(depth))
        self.merge = Conv((2 + depth) * half, outputs)

    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))
        for layer in self.layers:
            parts.append(layer(parts[-1]))
        return self.merge(torch.cat(parts, 1))


class YOLOv8(nn.Module):
    """images (B, 3, H, W) in 0..1 -> six heads: at s = 8, 16, 32 boxes (B, 4 * BINS, H / s, W / s)
    and classes (B, CLASSES, H / s, W / s).

    Boxes are logits over the distance of left, top, right, bottom from the cell's centre in
    strides, classes are before the sigmoid.
    """

    outputs = [f"{what}{stride}" for stride in STRIDES for what in ("boxes", "classes", "sum")]

    def __init__(self):
        super().__init__()
        self.p3 = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32),
                                Conv(32, 64, 3, 2), C2f(64, 64, 2))
        self.p4 = nn.Sequential(Conv(64, 128, 3, 2), C2f(128, 128, 2))
        self.p5 = nn.Sequential(Conv(128, 256, 3, 2), C2f(256, 256), SPPF(256, 256))
        self.up4, self.up3 = C2f(384, 128, shortcut=False), C2f(192, 64, shortcut=False)
        self.down3, self.down4 = Conv(64, 64, 3, 2), Conv(128, 128, 3, 2)
        self.out4, self.out5 = C2f(192, 128, shortcut=False), C2f(384, 256, shortcut=False)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.boxes = nn.ModuleList(
            nn.Sequential(Conv(c, 64, 3), Conv(64, 64, 3), nn.Conv2d(64, 4 * BINS, 1))
            for c in (64, 128, 256))
        self.classes = nn.ModuleList(
            nn.Sequential(Conv(c, CLASSES, 3), Conv(CLASSES, CLASSES, 3),
                          nn.Conv2d(CLASSES, CLASSES, 1))
            for c in (64, 128, 256))
        # so that training starts from few and uncertain boxes
        for box, kind, stride in zip(self.boxes, self.classes, STRIDES):
            nn.init.constant_(box[-1].bias, 1.0)
            nn.init.constant_(kind[-1].bias, math.log(5 / CLASSES / (640 / stride) ** 2))

    def forward(self, images):
        c3 = self.p3(images)
        c4 = self.p4(c3)
        c5 = self.p5(c4)
        m4 = self.up4(torch.cat([self.upsample(c5), c4], 1))
        n3 = self.up3(torch.cat([self.upsample(m4), c3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), m4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), c5], 1))
        return [head(x) for x, *both in zip((n3, n4, n5), self.boxes, self.classes)
                for head in both]

    @staticmethod
    def export_form(heads):
        """Heads as Rockchip's exports have them: after each class head, with its sigmoid, the
        clipped sum of its classes."""
        outputs = []
        for boxes, classes in zip(heads[::2], heads[1::2]):
            scores = classes.sigmoid()
            outputs += [boxes, scores, scores.sum(1, keepdim=True).clamp(0, 1)]
        return outputs


class Exported(nn.Module):
    """The network with its heads in export_form."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.export_form(self.network(images))
