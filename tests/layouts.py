"""Builds models in the layouts of several exporters: the demo models' heads with other last layers.

    save(ultralytics("segment"), "segment.onnx", task="segment")
    python tests/layouts.py segment segment.onnx                    # the same from the shell

So tests have each layout with real detections and without weights of others. If a task needs more
than boxes, it is computed from the box, so that the right result is known: masks are the ellipse
inside it, key points are at POINTS of its width and height, rotated boxes are turned by 0.3 radians
and a tenth of the class.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
STRIDES = (8, 16, 32)
# a figure: x and y of 17 points from the box's centre, as parts of its width and height
POINTS = np.float32(
    [
        (0, -0.42),
        (0.05, -0.46),
        (-0.05, -0.46),
        (0.1, -0.43),
        (-0.1, -0.43),
        (0.2, -0.25),
        (-0.2, -0.25),
        (0.32, -0.05),
        (-0.32, -0.05),
        (0.4, 0.12),
        (-0.4, 0.12),
        (0.13, 0.1),
        (-0.13, 0.1),
        (0.16, 0.3),
        (-0.16, 0.3),
        (0.18, 0.48),
        (-0.18, 0.48),
    ]
)
ANGLE, TURN = 0.3, 0.1  # of a rotated box: ANGLE + TURN * class, radians


class Graph:
    """An ONNX graph that grows: each method adds a node and returns the name of its output."""

    def __init__(self, path, size):
        """The graph of the model at `path`, for an input of size (width, height)."""
        self.model = onnx.load(str(path))
        self.graph, self.count, self.size = self.model.graph, 0, size
        for side, value in zip((2, 3), size[::-1]):
            self.graph.input[0].type.tensor_type.shape.dim[side].dim_value = value
        self.heads = [output.name for output in self.graph.output]
        del self.graph.output[:]

    def constant(self, values):
        self.count += 1
        self.graph.initializer.append(
            numpy_helper.from_array(np.asarray(values), f"tail_constant{self.count}")
        )
        return f"tail_constant{self.count}"

    def add(self, kind, *inputs, outputs=1, **attributes):
        """Add a node. Inputs that are not names become constants."""
        inputs = [
            name
            if isinstance(name, str)
            else self.constant(
                np.asarray(name) if np.asarray(name).dtype != np.float64 else np.float32(name)
            )
            for name in inputs
        ]
        self.count += 1
        names = [f"tail{self.count}_{number}" for number in range(outputs)]
        self.graph.node.append(
            helper.make_node(kind, inputs, names, name=f"{kind}_{self.count}", **attributes)
        )
        return names[0] if outputs == 1 else names

    def reshape(self, name, *shape):
        return self.add("Reshape", name, np.int64(shape))

    def rows(self, name, start, end, axis=1):
        return self.add("Slice", name, np.int64([start]), np.int64([end]), np.int64([axis]))

    def output(self, name, shape):
        self.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def grid(size, offset=0.5):
    """The centres of all cells (offset 0.5) in strides, (1, 2, n) float32, and their strides, (1,
    1, n)."""
    places, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: size[1] // stride, : size[0] // stride]
        places.append(np.stack([x.ravel(), y.ravel()]) + offset)
        strides.append(np.full((1, x.size), stride))
    return np.float32(np.concatenate(places, 1))[None], np.float32(np.concatenate(strides, 1))[None]


def ultralytics(task="detect", end2end=False, relative=False, size=(640, 640)):
    """The demo model YOLOv8n with the last layers of Ultralytics' exporter: an onnx.ModelProto."""
    graph = Graph(ROOT / "models/yolov8n_emoji.onnx", size)
    add, heads = graph.add, graph.heads
    centres, strides = grid(size)
    n = centres.shape[2]
    bins = add("Concat", *(graph.reshape(name, 1, 4, 16, -1) for name in heads[::3]), axis=3)
    bins = add("Softmax", add("Transpose", bins, perm=[0, 1, 3, 2]), axis=3)
    sides = graph.reshape(add("MatMul", bins, np.float32(np.arange(16))[:, None]), 1, 4, n)
    low = add("Sub", centres, graph.rows(sides, 0, 2))
    high = add("Add", centres, graph.rows(sides, 2, 4))
    xywh = add("Concat", add("Mul", add("Add", low, high), 0.5), add("Sub", high, low), axis=1)
    xyxy = add("Mul", add("Concat", low, high, axis=1), strides)
    xywh = add("Mul", xywh, strides)
    scores = add("Concat", *(graph.reshape(name, 1, 80, -1) for name in heads[1::3]), axis=2)
    w, h = size
    centre, sides = graph.rows(xywh, 0, 2), graph.rows(xywh, 2, 4)
    more = []
    if task == "segment":
        # 1 - ((x - cx) / (w / 2))^2 - ((y - cy) / (h / 2))^2 in terms of the planes 1, x, y, x^2,
        # y^2
        middle = add("Div", centre, np.float32([w, h]).reshape(1, 2, 1))
        inverse = add(
            "Div", 4.0, add("Pow", add("Div", sides, np.float32([w, h]).reshape(1, 2, 1)), 2.0)
        )
        linear = add("Mul", add("Mul", middle, inverse), 2.0)
        one = add(
            "Sub",
            1.0,
            add("ReduceSum", add("Mul", add("Pow", middle, 2.0), inverse), axes=[1], keepdims=1),
        )
        more = [one, linear, add("Neg", inverse), add("Mul", add("Concat", *[scores], axis=1), 0.0)]
        more[3] = graph.rows(more[3], 0, 27)
        y, x = np.mgrid[: h // 4, : w // 4] + 0.5
        x, y = x / (w / 4), y / (h / 4)
        planes = np.zeros((1, 32, h // 4, w // 4), np.float32)
        planes[0, :5] = np.ones_like(x), x, y, x * x, y * y
        # so that it is not a constant
        some = add("Mul", add("ReduceMean", "images", axes=[1, 2, 3], keepdims=1), 0.0)
        prototypes = add("Add", graph.constant(planes), some)
    elif task == "pose":
        points = []
        for x, y in POINTS:
            points += [
                add("Add", centre, add("Mul", sides, np.float32([x, y]).reshape(1, 2, 1))),
                graph.rows(scores, 0, 1),
            ]
            points[-1] = add("Add", add("Mul", points[-1], 0.0), 0.9)
        more = points
    elif task == "obb":
        number = add("Cast", add("ArgMax", scores, axis=1, keepdims=1), to=TensorProto.FLOAT)
        more = [add("Add", add("Mul", number, TURN), ANGLE)]
    if end2end:
        best = add("ReduceMax", scores, axes=[1], keepdims=1)
        number = add("Cast", add("ArgMax", scores, axis=1, keepdims=1), to=TensorProto.FLOAT)
        rows = add(
            "Transpose",
            add("Concat", xywh if task == "obb" else xyxy, best, number, *more, axis=1),
            perm=[0, 2, 1],
        )
        _, places = add("TopK", graph.reshape(best, -1), np.int64([300]), outputs=2, axis=0)
        out = add("Gather", rows, places, axis=1)
        channels = {"detect": 6, "segment": 38, "pose": 57, "obb": 7}[task]
        graph.output(out, [1, 300, channels])
    else:
        if relative:
            factors = np.float32([1 / w, 1 / h, 1 / w, 1 / h]).reshape(1, 4, 1)
            xywh = add("Mul", xywh, factors)
            more = [
                part if task != "pose" or place % 2 else add("Mul", part, factors[:, :2])
                for place, part in enumerate(more)
            ]
        out = add("Concat", xywh, scores, *more, axis=1)
        channels = 84 + {"detect": 0, "segment": 32, "pose": 51, "obb": 1}[task]
        graph.output(out, [1, channels, n])
    if task == "segment":
        graph.output(prototypes, [1, 32, h // 4, w // 4])
    return graph.model


def yolov5_own(size=(640, 640)):
    """The demo model YOLOv5n with the last layers of YOLOv5's own export, (1, 25200, 85): an
    onnx.ModelProto."""
    graph = Graph(ROOT / "models/yolov5n_emoji.onnx", size)
    add, parts, n = graph.add, [], 0
    anchors = {
        8: ((10, 13), (16, 30), (33, 23)),
        16: ((30, 61), (62, 45), (59, 119)),
        32: ((116, 90), (156, 198), (373, 326)),
    }
    for stride, head in zip(STRIDES, graph.heads):
        rows, columns = size[1] // stride, size[0] // stride
        n += 3 * rows * columns
        head = add("Transpose", graph.reshape(head, 1, 3, 85, rows, columns), perm=[0, 1, 3, 4, 2])
        y, x = np.mgrid[:rows, :columns]
        place = np.float32(np.stack([x, y], 2) - 0.5)[None, None]
        centre = add(
            "Mul", add("Add", add("Mul", graph.rows(head, 0, 2, 4), 2.0), place), float(stride)
        )
        sides = add(
            "Mul",
            add("Pow", add("Mul", graph.rows(head, 2, 4, 4), 2.0), 2.0),
            np.float32(anchors[stride]).reshape(1, 3, 1, 1, 2),
        )
        parts.append(
            graph.reshape(
                add("Concat", centre, sides, graph.rows(head, 4, 85, 4), axis=4), 1, -1, 85
            )
        )
    graph.output(add("Concat", *parts, axis=1), [1, n, 85])
    return graph.model


def save(model, path, **metadata):
    """Write an onnx.ModelProto with this metadata. Values are written as str(), as Ultralytics'
    exporter does. Returns the path."""
    onnx.checker.check_model(model)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.save(model, str(path))
    return path


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT))
    from vision.coco import COCO_CLASSES

    task, path = sys.argv[1:]
    save(ultralytics(task), path, task=task, names=dict(enumerate(COCO_CLASSES)))
