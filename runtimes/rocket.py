"""Which operations of a .tflite Mesa's rocket driver takes, and whether it computes them correctly.

    python -m runtimes.rocket models/*.tflite      # a table

runtimes/teflon.py and models/convert.py ask before they use the driver. The rules are those of
Mesa's rkt_ml.c and tfl_device.c, 25.3 to 26.1, and of LiteRT's partitioning. The driver computes
with uint8 tensors only: it also takes signed ones, but returns wrong values for them.
"""
from __future__ import annotations

import collections
import os
import sys
from typing import Any, Counter, Dict, List, NamedTuple, Set, Tuple

from vision.packages import missing_package


class Operation(NamedTuple):
    """An operation of a graph."""
    name: str                 # as in the schema
    inputs: Tuple[int, ...]   # tensors that it reads, without constants
    outputs: Tuple[int, ...]  # tensors that it writes
    taken: bool               # by the driver


class Plan(NamedTuple):
    """How LiteRT divides a model between the driver and the CPU."""
    operations: List[Operation]
    pieces: List[List[int]]  # that go to the driver: indices of their operations
    dangers: List[int]       # indices of additions at which the driver crashes or errs
    unsigned: bool           # whether all tensors that the driver takes are unsigned


def plan(path: str) -> Plan:
    """The Plan of the .tflite at `path`. Raises OSError, and anything for a damaged file."""
    from ai_edge_litert import schema_py_generated as schema
    with open(path, "rb") as file:
        model = schema.ModelT.InitFromPackedBuf(file.read())
    return plan_of(model, schema)


def plan_of(model: Any, schema: Any) -> Plan:
    """The Plan of a ModelT; schema: the generated module, LiteRT's or TensorFlow's."""
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()
             if not name.startswith("_")}
    graph = model.subgraphs[0]

    def constant(tensor: int) -> bool:
        return model.buffers[graph.tensors[tensor].buffer].data is not None

    operations, unsigned = [], True
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs = tuple(map(int, operator.inputs))
        outputs = tuple(map(int, operator.outputs))
        taken = False
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            taken = _takes_convolution(graph, schema, operator, inputs + outputs)
        elif name == "ADD":
            taken = not any(map(constant, inputs))
        if taken:
            unsigned &= all(graph.tensors[tensor].type != schema.TensorType.INT8
                            for tensor in inputs + outputs)
        read = tuple(tensor for tensor in inputs if tensor >= 0 and not constant(tensor))
        operations.append(Operation(name, read, outputs, taken))
    pieces = _pieces(operations)
    return Plan(operations, pieces, _dangers(operations, pieces), unsigned)


def _takes_convolution(graph: Any, schema: Any, operator: Any, tensors: Tuple[int, ...]) -> bool:
    options, activations = operator.builtinOptions, schema.ActivationFunctionType
    scales = [quantization.scale if quantization is not None else None
              for quantization in (graph.tensors[tensor].quantization for tensor in tensors)]
    return (len(operator.inputs) == 3
            and all(scale is not None and len(scale) == 1 for scale in scales)
            and options.dilationWFactor == options.dilationHFactor == 1
            and options.fusedActivationFunction in (activations.NONE, activations.RELU))


def _pieces(operations: List[Operation]) -> List[List[int]]:
    """The operations that LiteRT gives to the driver together.

    LiteRT goes through the graph and takes the operations whose inputs are ready and that run on
    the same side, NPU or CPU, as the first one. Then it starts the next piece.
    """
    made_by = {tensor: index for index, operation in enumerate(operations)
               for tensor in operation.outputs}
    waiting = list(range(len(operations)))
    done: Set[int] = set()
    pieces = []
    while waiting:
        piece: List[int] = []
        for index in waiting:
            operation = operations[index]
            ready = all(tensor not in made_by or made_by[tensor] in done
                        for tensor in operation.inputs)
            if ready and (not piece or operation.taken == operations[piece[0]].taken):
                piece.append(index)
                done.add(index)
        if not piece:
            raise ValueError("the graph has a cycle")
        waiting = [index for index in waiting if index not in done]
        if operations[piece[0]].taken:
            pieces.append(piece)
    return pieces


def _dangers(operations: List[Operation], pieces: List[List[int]]) -> List[int]:
    """The additions that the driver cannot do.

    It merges each into the convolution that makes the first operand, so nothing else may read that
    operand. It looks for the second operand among the inputs and earlier results of the piece.
    """
    readers: Counter[int] = collections.Counter(
        tensor for operation in operations for tensor in operation.inputs)
    dangers = []
    for piece in pieces:
        convolved = {operations[index].inputs[0] for index in piece
                     if operations[index].name != "ADD"}
        made: Dict[int, int] = {}
        for index in piece:
            operation = operations[index]
            if operation.name == "ADD":
                first, second = operation.inputs
                mergeable = first in made and readers[first] == 1
                known = second in convolved or second in made
                if not mergeable or not known or made.get(second, -1) > made[first]:
                    dangers.append(index)
            made[operation.outputs[0]] = index
    return dangers


def plan_or_exit(path: str) -> Plan:
    """plan(path). If there is none, print a sentence and end with exit code 2."""
    try:
        return plan(path)
    except ImportError as error:
        sentence = missing_package("runtimes/rocket.py", error)
    except OSError as error:
        sentence = f"{path}: cannot be read ({error.strerror})."
    except Exception:
        sentence = f"{path}: not a .tflite, or damaged."
    print(sentence, file=sys.stderr)
    sys.exit(2)


def main() -> None:
    plans = {path: plan_or_exit(path) for path in sys.argv[1:]}
    print("| model | operations | on the NPU | partitions | on the CPU |\n|---|---|---|---|---|")
    for path, found in plans.items():
        npu, on_cpu = (collections.Counter(each.name for each in found.operations
                                           if each.taken == taken) for taken in (True, False))
        on_npu, others = (", ".join(f"{count} {name}" for name, count in counts.most_common())
                          for counts in (npu, on_cpu))
        print(f"| `{os.path.basename(path)}` | {len(found.operations)} | "
              f"{sum(npu.values())}: {on_npu} | {len(found.pieces)} | {others} |")
        if found.dangers:
            print(f"{path}: the driver crashes or errs on {len(found.dangers)} ADD operations.",
                  file=sys.stderr)
        if not found.unsigned:
            print(f"{path}: has signed tensors, for which the driver returns wrong values.",
                  file=sys.stderr)


if __name__ == "__main__":
    main()
