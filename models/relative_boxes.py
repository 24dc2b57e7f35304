"""Brings the coordinates in an Ultralytics model's output to 0..1, for int8.

An int8 output has one scale for all its values: with boxes in pixels, no class score would survive.
So the coordinates are divided by the input's width and height, as in Ultralytics' own int8 export.
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from funcs import ultralytics
from vision.errors import InputError
from vision.model import Model


def with_relative_boxes(model: Any, about: Model) -> Tuple[Any, bool]:
    """The ONNX model with the coordinates of an Ultralytics output in 0..1, any other unchanged;
    and whether its coordinates are relative now.

    Raises InputError if scores and pixels share an output and cannot be separated.
    """
    layout = None if about.relative else ultralytics.layout_of(about)
    if layout is None:
        return model, about.relative
    if layout.kind == "rows":
        raise InputError(f"{about.path}: ends in the sorting of end2end or nms=True, which int8 "
                         f"cannot do. Export it with end2end=False and nms=False, or convert it "
                         f"with --dtype fp.")
    if layout.kind == "yolov5":
        raise InputError(f"{about.path}: YOLOv5's own export has scores and pixels in one output, "
                         f"so int8 would lose the scores. Export it with Rockchip's fork "
                         f"(export.py --rknpu), or convert it with --dtype fp.")
    width, height = about.size or (0, 0)
    factors = np.ones(4 + layout.classes + max(1, layout.points * layout.values), np.float32)
    factors[0:4] = 1 / width, 1 / height, 1 / width, 1 / height
    if layout.points:
        point = [1 / width, 1 / height, 1][:layout.values]
        factors[4 + layout.classes:] = np.tile(point, layout.points)
    try:
        return multiplied(model, layout.boxes, factors), True
    except ValueError as error:
        raise InputError(f"{about.path}: its boxes cannot be brought to 0..1 for int8 ({error}). "
                         f"Use Ultralytics' own export (yolo export format=rknn quantize=8), or "
                         f"--dtype fp.") from None


def multiplied(model: Any, number: int, factors: np.ndarray) -> Any:
    """A copy of an ONNX model whose output `number`, (1, channels, n), has each channel multiplied
    by its factor, before class scores are joined to the same tensor.

    factors: (channels or fewer,) float32; missing ones are 1. Raises ValueError if the graph does
    not end in a Concat of coordinates and scores.
    """
    import onnx
    model = onnx.shape_inference.infer_shapes(model)
    output = model.graph.output[number].name
    scaling = _Scaling(model.graph)
    channels = scaling.shapes[output][1]
    ones = np.ones(max(0, channels - len(factors)), np.float32)
    factors = np.append(factors, ones)[:channels].astype(np.float32)
    if scaling.scaled(output, factors) != output:
        raise ValueError("it does not end in a Concat")
    scaling.insert_products()
    return model


class _Scaling:
    """Multiplies tensors of a graph, by descending from an output through Concat and Reshape."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.source: Dict[str, Any] = {name: node for node in graph.node for name in node.output}
        self.shapes: Dict[str, List[int]] = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in [*graph.value_info, *graph.output]}
        self.shapes.update((tensor.name, list(tensor.dims)) for tensor in graph.initializer)
        self.products: List[Tuple[Any, Any]] = []  # (node, the Mul to insert after it)

    def scaled(self, name: str, factors: np.ndarray) -> str:
        """The name of the tensor `name` with its second axis multiplied by factors (channels,), or
        its second and third axis by factors (channels, values)."""
        if np.all(factors == 1):
            return name
        node = self.source.get(name)
        if node and node.op_type == "Concat" and self._scale_concat(name, node, factors):
            return name
        if node and node.op_type == "Reshape" and factors.ndim == 1:
            before = self.shapes.get(node.input[0])  # key points: (1, k, d, n) to (1, k d, n)
            if before and len(before) == 4 and before[1] * before[2] == len(factors):
                node.input[0] = self.scaled(node.input[0], factors.reshape(before[1:3]))
                return name
        if np.any(factors == 1):
            raise ValueError(f"{name} has scores and pixels together")
        return self._product(name, node, factors)

    def _scale_concat(self, name: str, node: Any, factors: np.ndarray) -> bool:
        """Multiply a Concat's inputs instead. False if it joins along another axis."""
        dimensions = len(self.shapes.get(name, []))
        axis: Optional[int] = next((entry.i for entry in node.attribute if entry.name == "axis"),
                                   None)
        if axis is None or axis % dimensions not in range(1, factors.ndim + 1):
            return False
        axis %= dimensions
        sizes = [self.shapes.get(part, [0] * 4)[axis] for part in node.input]
        if 0 in sizes:
            raise ValueError(f"{node.name} has inputs of unknown shape")
        parts = np.split(factors, np.cumsum(sizes)[:-1], axis - 1)
        for number, part in enumerate(parts):
            node.input[number] = self.scaled(node.input[number], part)
        return True

    def _product(self, name: str, node: Any, factors: np.ndarray) -> str:
        import onnx
        ones = [1] * (len(self.shapes.get(name, [])) - 1 - factors.ndim)
        constant = onnx.numpy_helper.from_array(factors.reshape(1, *factors.shape, *ones),
                                                f"{name}_factors")
        self.graph.initializer.append(constant)
        product = onnx.helper.make_node("Mul", [name, constant.name], [f"{name}_relative"],
                                        f"{name}_relative")
        self.products.append((node, product))
        return f"{name}_relative"

    def insert_products(self) -> None:
        """Insert each Mul after its node; a graph's nodes must be in the order of computation."""
        for node, product in self.products:
            positions = [position for position, other in enumerate(self.graph.node)
                         if other is node or other == node]
            self.graph.node.insert(positions[0] + 1 if positions else 0, product)
