"""Changes a .tflite so that Mesa's rocket driver computes it correctly (runtimes/rocket.py)."""
from __future__ import annotations

from typing import Any, List, Sequence

import numpy as np

from runtimes import rocket


def for_the_driver(content: bytes, outputs: Sequence[int]) -> bytes:
    """The .tflite with its outputs in the order of these indices, and changed for Mesa's driver:
    unsigned tensors, the operands of additions in its order, impossible additions left to the CPU.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    graph = model.subgraphs[0]
    graph.outputs = np.asarray([graph.outputs[index] for index in outputs], np.int32)
    unsigned(model, schema)
    in_order(model, schema)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def in_order(model: Any, schema: Any) -> None:
    """Put the operands of a ModelT's additions into the driver's order, in place."""
    graph = model.subgraphs[0]
    made_by = {int(tensor): index for index, operator in enumerate(graph.operators)
               for tensor in operator.outputs}
    for index, operation in enumerate(rocket.plan_of(model, schema).operations):
        if operation.name == "ADD" and operation.taken:
            later_first = sorted(operation.inputs, key=lambda tensor: -made_by.get(tensor, -1))
            graph.operators[index].inputs = np.asarray(later_first, np.int32)
    while True:  # an addition left to the CPU splits a piece, which can make others impossible
        dangers = rocket.plan_of(model, schema).dangers
        if not dangers:
            return
        without(dangers, model, schema)


def unsigned(model: Any, schema: Any) -> None:
    """Turn all int8 tensors of a ModelT into uint8, in place.

    Stored values and zero points rise by 128, so the numbers stay the same. Operations that only
    converted the input to int8 are removed.
    """
    graph, types = model.subgraphs[0], schema.TensorType
    buffers = {tensor.buffer for tensor in graph.tensors if tensor.type == types.INT8
               and model.buffers[tensor.buffer].data is not None}
    for index in buffers:
        data = np.asarray(model.buffers[index].data, np.uint8)
        model.buffers[index].data = data ^ 128
    for tensor in graph.tensors:
        if tensor.type == types.INT8:
            tensor.type, quantization = types.UINT8, tensor.quantization
            if quantization is not None and quantization.zeroPoint is not None:
                quantization.zeroPoint = np.asarray(quantization.zeroPoint) + 128
    quantize = schema.BuiltinOperator.QUANTIZE
    for operator in list(graph.operators):
        is_quantize = model.operatorCodes[operator.opcodeIndex].builtinCode == quantize
        before, after = operator.inputs[0], operator.outputs[0]
        if is_quantize and after not in graph.outputs and _same(graph, before, after):
            graph.operators.remove(operator)
            for reader in graph.operators:
                inputs = np.asarray(reader.inputs)
                reader.inputs = np.where(inputs == after, before, inputs).astype(np.int32)


def _same(graph: Any, one: int, other: int) -> bool:
    """True if two tensors store numbers in the same way."""
    first, second = graph.tensors[one], graph.tensors[other]
    return (first.type == second.type
            and np.array_equal(first.quantization.scale, second.quantization.scale)
            and np.array_equal(first.quantization.zeroPoint, second.quantization.zeroPoint))


def without(additions: List[int], model: Any, schema: Any) -> None:
    """Replace these additions a + b of a ModelT by a - (-1 b), in place.

    The driver leaves subtractions to the CPU. In bytes, -1 b is 255 - b, which loses nothing.
    """
    graph = model.subgraphs[0]
    multiply = _operator_code(model, schema, schema.BuiltinOperator.MUL)
    subtract = _operator_code(model, schema, schema.BuiltinOperator.SUB)
    minus_one = _tensor(model, schema, "minus_one", [1], np.array([0], np.uint8), 1.0, 1)
    for index in sorted(additions, reverse=True):
        total, product = graph.operators[index], schema.OperatorT()
        first, second = map(int, total.inputs)
        operand = graph.tensors[second]
        negative = _tensor(model, schema, f"minus_{second}", operand.shape, None,
                           operand.quantization.scale[0], 255 - operand.quantization.zeroPoint[0])
        product.opcodeIndex = multiply
        product.inputs = np.array([second, minus_one], np.int32)
        product.outputs = np.array([negative], np.int32)
        product.builtinOptionsType = schema.BuiltinOptions.MulOptions
        product.builtinOptions = schema.MulOptionsT()
        options = schema.SubOptionsT()
        options.fusedActivationFunction = total.builtinOptions.fusedActivationFunction
        total.opcodeIndex, total.inputs = subtract, np.array([first, negative], np.int32)
        total.builtinOptionsType = schema.BuiltinOptions.SubOptions
        total.builtinOptions = options
        graph.operators.insert(index, product)


def _operator_code(model: Any, schema: Any, operator: int) -> int:
    entry = schema.OperatorCodeT()
    entry.builtinCode = entry.deprecatedBuiltinCode = operator
    entry.version = 1
    model.operatorCodes.append(entry)
    return len(model.operatorCodes) - 1


def _tensor(model: Any, schema: Any, name: str, shape: Any, data: Any, scale: float,
            zero_point: int) -> int:
    """Add a uint8 tensor to the model. Returns its index."""
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = data
    model.buffers.append(buffer)
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.array([scale], np.float32)
    quantization.zeroPoint = np.array([zero_point], np.int64)
    tensor.name, tensor.shape = name, np.array(shape, np.int32)
    tensor.type, tensor.quantization = schema.TensorType.UINT8, quantization
    tensor.buffer = len(model.buffers) - 1
    tensors = model.subgraphs[0].tensors
    tensors.append(tensor)
    return len(tensors) - 1
