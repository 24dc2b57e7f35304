"""How much of a .tflite Mesa's rocket driver takes, and whether it gets through: what runtimes/teflon.py and
models/convert.py ask before they rely on it.

    python -m runtimes.rocket models/*.tflite      # a table

The rules are those of Mesa's rkt_ml.c and tfl_device.c, 25.3 to 26.1, and of LiteRT's partitioning. It computes with
uint8 tensors only: signed ones it takes, and gives wrong values for.
"""
import collections
import os
import sys
from typing import Any, List, NamedTuple, Tuple


class Operation(NamedTuple):
    """An operation of a graph: its name, as the schema has it, the tensors that it reads and writes, and whether the
    driver takes it."""
    name: str
    inputs: Tuple[int, ...]
    outputs: Tuple[int, ...]
    taken: bool


class Plan(NamedTuple):
    """What becomes of a model: its operations, the pieces that go to the driver, each a list of places in `operations`,
    the places of the sums at which it crashes or errs, and whether all that it takes is unsigned."""
    operations: List[Operation]
    pieces: List[List[int]]
    dangers: List[int]
    unsigned: bool


def plan(path: str) -> Plan:
    """The Plan of the .tflite at `path`. Raises OSError, and whatever the schema's reader raises for a damaged one."""
    from ai_edge_litert import schema_py_generated as schema
    with open(path, "rb") as file:
        model = schema.ModelT.InitFromPackedBuf(file.read())
    return plan_of(model, schema)


def plan_of(model: Any, schema: Any) -> Plan:
    """As plan(), of a ModelT of `schema`, LiteRT's or TensorFlow's generated one."""
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    graph = model.subgraphs[0]

    def one_scale(place):
        quantization = graph.tensors[place].quantization
        return quantization is not None and quantization.scale is not None and len(quantization.scale) == 1

    def constant(place):
        return model.buffers[graph.tensors[place].buffer].data is not None

    operations, unsigned = [], True
    for operator in graph.operators:
        code, options, taken = model.operatorCodes[operator.opcodeIndex], operator.builtinOptions, False
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs, outputs = (tuple(int(place) for place in places) for places in (operator.inputs, operator.outputs))
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            taken = (len(inputs) == 3 and all(map(one_scale, inputs + outputs))
                     and options.dilationWFactor == options.dilationHFactor == 1
                     and options.fusedActivationFunction in (schema.ActivationFunctionType.NONE,
                                                             schema.ActivationFunctionType.RELU))
        elif name == "ADD":
            taken = not any(map(constant, inputs))
        if taken:
            unsigned &= all(graph.tensors[place].type != schema.TensorType.INT8 for place in inputs + outputs)
        operations.append(Operation(name, tuple(place for place in inputs if place >= 0 and not constant(place)),
                                    outputs, taken))
    pieces = _pieces(operations)
    return Plan(operations, pieces, _dangers(operations, pieces), unsigned)


def _pieces(operations):
    """Which of the taken operations LiteRT hands over together: it runs through the graph, taking what is ready and of
    the same side, NPU or CPU, as the first that it found, until there is no more, and begins anew."""
    made_by = {tensor: place for place, operation in enumerate(operations) for tensor in operation.outputs}
    waiting, done, pieces = list(range(len(operations))), set(), []
    while waiting:
        piece = []
        for place in waiting:
            operation = operations[place]
            ready = all(tensor not in made_by or made_by[tensor] in done for tensor in operation.inputs)
            if ready and (not piece or operation.taken == operations[piece[0]].taken):
                piece.append(place)
                done.add(place)
        if not piece:
            raise ValueError("a graph that goes in circles")
        waiting = [place for place in waiting if place not in done]
        if operations[piece[0]].taken:
            pieces.append(piece)
    return pieces


def _dangers(operations, pieces):
    """The sums that the driver cannot do. It makes each a part of the convolution whose result is the sum's first
    operand, which then has no other reader, and finds the second among what its piece convolves or makes before."""
    readers = collections.Counter(tensor for operation in operations for tensor in operation.inputs)
    dangers = []
    for piece in pieces:
        convolved = {operations[place].inputs[0] for place in piece if operations[place].name != "ADD"}
        made = {}
        for place in piece:
            operation = operations[place]
            if operation.name == "ADD":
                first, second = operation.inputs
                if first not in made or readers[first] != 1 or not (second in convolved or second in made) or (
                        made.get(second, -1) > made[first]):
                    dangers.append(place)
            made[operation.outputs[0]] = place
    return dangers


def main() -> None:
    for path in sys.argv[1:]:
        if not os.path.isfile(path):
            sys.exit(f"{path}: no such file.")
    print("| model | operations | on the NPU | pieces | on the CPU |\n|---|---|---|---|---|")
    for path in sys.argv[1:]:
        found = plan(path)
        npu, cpu = (collections.Counter(each.name for each in found.operations if each.taken == taken)
                    for taken in (True, False))
        words = [", ".join(f"{count} {name}" for name, count in counts.most_common()) for counts in (npu, cpu)]
        print(f"| `{os.path.basename(path)}` | {len(found.operations)} | {sum(npu.values())}: {words[0]} | "
              f"{len(found.pieces)} | {words[1]} |")
        if found.dangers:
            print(f"{path}: at {len(found.dangers)} of its sums the driver crashes or errs.", file=sys.stderr)
        if not found.unsigned:
            print(f"{path}: has signed tensors, for which the driver gives wrong values.", file=sys.stderr)


if __name__ == "__main__":
    main()
