"""What convert.py --to tflite does: an ONNX model to a .tflite for the open driver (runtimes/teflon.py), with onnx2tf
and TensorFlow, in an environment of its own (README.md beside this file).

Quantised is to 8 bits with one scale a tensor, weights too, for Mesa's Teflon takes nothing else, and unsigned, for
only so does its rocket driver compute rightly. Behind the model stands metadata.json in a zip, as Ultralytics' own
.tflite have it: names, task, mean, std, and the ONNX file's inputs and outputs, whose order the outputs have here, too.
"""
import contextlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import rknnmodel
from rknnmodel import InputError
from runtimes import rocket

# onnx2tf fetches pictures of this name and shape from the internet to try the model on; with any in the working folder
# it does not.
SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"


def to_keras(path, folder):
    """The ONNX file at `path` as a tf_keras.Model with inputs and outputs in NHWC, made in the empty folder `folder`.
    Raises InputError where onnx2tf is missing or cannot do it."""
    # It calls the programs onnxsim and others; without them it goes on, and YOLOv8 fails at an Add.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import onnx2tf
    except ImportError as error:
        raise InputError(f"onnx2tf cannot be imported ({error}): pip install -r models/requirements-tflite.txt, in an "
                         f"environment of its own.") from None
    before = os.getcwd()
    os.chdir(folder)
    try:
        np.save(SAMPLES, np.zeros((20, 128, 128, 3), np.float32))
        # Told of integers, it pads a pooling's input with 0, where float's lowest would leave no range for the rest.
        return onnx2tf.convert(input_onnx_file_path=str(path), output_folder_path=os.path.join(folder, "saved_model"),
                               output_integer_quantized_tflite=True, disable_model_save=True, non_verbose=True)
    except (Exception, SystemExit) as error:  # it raises what it likes, and may exit()
        reason = " ".join(str(error).split())[:200] or "its own message stands above"
        raise InputError(f"{path}: onnx2tf cannot convert this model: {reason}.") from None
    finally:
        os.chdir(before)


def quantise(keras, images):
    """The .tflite, bytes, of a tf_keras.Model with one image input, its ranges taken from `images`: arrays (height,
    width, 3) float32, as the network is fed. The input is uint8, the outputs are int8."""
    import tensorflow as tf
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in keras.inputs]
    concrete = tf.function(lambda image: keras(image), input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], keras)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type, converter.inference_output_type = tf.uint8, tf.int8
    converter._experimental_disable_per_channel = True
    return converter.convert()


def answers(content, frame, table):
    """What a .tflite, bytes, gives for a frame (height, width, 3) uint8: a list of float32 arrays in its own layout and
    order. table: what its input stores for each byte and channel, (256, 3)."""
    import tensorflow as tf
    # TensorFlow 2.19's XNNPACK fails on a classifier's end that LiteRT 2.3's runs.
    plain = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    interpreter.set_tensor(given["index"], table(given)[frame, np.arange(3)][np.newaxis])
    interpreter.invoke()
    return [(interpreter.get_tensor(output["index"]).astype(np.float32) - output["quantization"][1])
            * output["quantization"][0] for output in interpreter.get_output_details()]


def order(wanted, given):
    """Which of the arrays `given`, in TensorFlow's layout, each of `wanted`, in ONNX's, is, by their values: a list of
    places, and the least correlation. Raises ValueError where one has no counterpart."""
    from runtimes.teflon import as_onnx
    places, least = [], 1.0
    for array in wanted:
        best = None
        for place, other in enumerate(given):
            if place in places or sorted(other.shape) != sorted(array.shape):
                continue
            with contextlib.suppress(ValueError):
                other = as_onnx(other, array.shape)
                off = float(np.abs(other - array).mean())
                if best is None or off < best[0]:
                    best = off, place, other
        if best is None:
            raise ValueError(f"an output {array.shape} is not among those of the .tflite, "
                             f"{', '.join(str(other.shape) for other in given)}")
        places.append(best[1])
        if array.std() and best[2].std():
            least = min(least, float(np.corrcoef(best[2].ravel(), array.ravel())[0, 1]))
    return places, least


def for_the_driver(content, places):
    """The .tflite, bytes, with its outputs in the order of `places`, and as Mesa's driver needs it: unsigned, the sums'
    operands in its order, and those that it cannot do for the CPU (runtimes/rocket.py)."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    graph = model.subgraphs[0]
    graph.outputs = np.asarray([graph.outputs[place] for place in places], np.int32)
    unsigned(model, schema)
    in_order(model, schema)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def in_order(model, schema):
    """Put right the sums of a ModelT, in place."""
    graph = model.subgraphs[0]
    made_by = {int(tensor): place for place, operator in enumerate(graph.operators) for tensor in operator.outputs}
    for place, operation in enumerate(rocket.plan_of(model, schema).operations):
        if operation.name == "ADD" and operation.taken:
            later_first = sorted(operation.inputs, key=lambda tensor: -made_by.get(tensor, -1))
            graph.operators[place].inputs = np.asarray(later_first, np.int32)
    while True:  # those left to the CPU part others from their pieces
        dangers = rocket.plan_of(model, schema).dangers
        if not dangers:
            return
        without(dangers, model, schema)


def unsigned(model, schema):
    """Make uint8 of all int8 tensors of a ModelT, in place: stored values and zero points 128 higher, so that the same
    numbers are meant; and leave out what only made int8 of the input."""
    graph, kinds = model.subgraphs[0], schema.TensorType
    shifted = {tensor.buffer for tensor in graph.tensors if tensor.type == kinds.INT8
               and model.buffers[tensor.buffer].data is not None}
    for place in shifted:
        model.buffers[place].data = np.asarray(model.buffers[place].data, np.uint8) ^ 128
    for tensor in graph.tensors:
        if tensor.type == kinds.INT8:
            tensor.type, quantization = kinds.UINT8, tensor.quantization
            if quantization is not None and quantization.zeroPoint is not None:
                quantization.zeroPoint = np.asarray(quantization.zeroPoint) + 128
    quantize = schema.BuiltinOperator.QUANTIZE
    for operator in list(graph.operators):
        before, after = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
        if model.operatorCodes[operator.opcodeIndex].builtinCode != quantize or before.type != after.type or not (
                np.array_equal(before.quantization.scale, after.quantization.scale)
                and np.array_equal(before.quantization.zeroPoint, after.quantization.zeroPoint)):
            continue
        if operator.outputs[0] not in graph.outputs:
            graph.operators.remove(operator)
            for reader in graph.operators:
                reader.inputs = np.where(np.asarray(reader.inputs) == operator.outputs[0], operator.inputs[0],
                                         reader.inputs).astype(np.int32)


def without(dangers, model, schema):
    """Make a - (-1 b) of the sums a + b at these places of a ModelT, in place: differences are left to the CPU. In
    bytes -1 b is 255 - b, which loses nothing."""
    graph, kinds = model.subgraphs[0], schema.TensorType

    def code(operator):
        entry = schema.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = operator
        entry.version = 1
        model.operatorCodes.append(entry)
        return len(model.operatorCodes) - 1

    def tensor(name, shape, data, scale, zero_point):
        buffer, added, quantization = schema.BufferT(), schema.TensorT(), schema.QuantizationParametersT()
        buffer.data = data
        model.buffers.append(buffer)
        quantization.scale, quantization.zeroPoint = np.float32([scale]), np.int64([zero_point])
        added.name, added.shape, added.type, added.quantization = name, np.int32(shape), kinds.UINT8, quantization
        added.buffer = len(model.buffers) - 1
        graph.tensors.append(added)
        return len(graph.tensors) - 1

    multiply, subtract = code(schema.BuiltinOperator.MUL), code(schema.BuiltinOperator.SUB)
    minus_one = tensor("minus_one", [1], np.uint8([0]), 1.0, 1)
    for place in sorted(dangers, reverse=True):
        total, product = graph.operators[place], schema.OperatorT()
        first, second = map(int, total.inputs)
        operand = graph.tensors[second]
        negative = tensor(f"minus_{second}", operand.shape, None, operand.quantization.scale[0],
                          255 - operand.quantization.zeroPoint[0])
        product.opcodeIndex, product.inputs = multiply, np.int32([second, minus_one])
        product.outputs = np.int32([negative])
        product.builtinOptionsType, product.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
        options = schema.SubOptionsT()
        options.fusedActivationFunction = total.builtinOptions.fusedActivationFunction
        total.opcodeIndex, total.inputs = subtract, np.int32([first, negative])
        total.builtinOptionsType, total.builtinOptions = schema.BuiltinOptions.SubOptions, options
        graph.operators.insert(place, product)


def build(path, source, about, frames, mean, std):
    """The .tflite of an ONNX file, bytes without metadata, the shapes of its inputs and outputs in the ONNX, and the
    least correlation of its outputs with the ONNX's on the first frame. Raises InputError.

    source: the pathlib.Path to read; about: its rknnmodel.Model; the others as of convert().
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    from runtimes.teflon import stored
    fed = [(frame.astype(np.float32) - np.float32(mean)) / np.float32(std) for frame in frames]
    with tempfile.TemporaryDirectory() as folder:
        keras = to_keras(source.resolve(), folder)
    try:
        content = quantise(keras, fed)
    except Exception as error:  # TensorFlow's
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: TensorFlow cannot quantise this model to int8: {reason}.") from None
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    image = fed[0].transpose(2, 0, 1)[np.newaxis]
    wanted = session.run(None, {about.inputs[0][0]: image})
    try:
        places, alike = order(wanted, answers(content, frames[0], lambda given: stored(given, mean, std)))
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None
    shapes = [[image.shape], [array.shape for array in wanted]]
    return for_the_driver(content, places), shapes, alike


def write(out, content, metadata):
    """Write the .tflite, bytes, and behind it its metadata, a dict. Raises InputError where that cannot be."""
    partial = out.with_name(out.name + ".new")
    try:
        partial.write_bytes(content)
        with zipfile.ZipFile(partial, "a", zipfile.ZIP_DEFLATED) as archive:
            # a time of its own would make another file of the same model
            archive.writestr(zipfile.ZipInfo("metadata.json", (1980, 1, 1, 0, 0, 0)),
                             json.dumps(metadata, ensure_ascii=False))
        partial.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}).") from None


def convert(path, out, model, frames, mean, std, metadata):
    """Convert an ONNX model to the .tflite `out`. Returns what is to be told. Raises InputError.

    path: as the user named the ONNX file; model: onnx.ModelProto, of a fixed batch, that is converted; frames: list of
    (height, width, 3) uint8 RGB as the func feeds them; mean, std: of the input, for R, G, B in 0..255; metadata: what
    else is known of the model, a dict.
    """
    import onnx
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / path.name
        onnx.save(model, str(source))
        about = rknnmodel.describe(source)
        content, shapes, alike = build(path, source, about, frames, mean, std)
    metadata = {**metadata, "mean": " ".join(map(str, mean)), "std": " ".join(map(str, std)),
                **{key: [(name, shape) for (name, _), shape in zip(ends, sides)] for key, ends, sides in zip(
                    ("inputs", "outputs"), (about.inputs, about.outputs), shapes)}}
    write(out, content, metadata)
    return f"8 bits, one scale a tensor; its outputs correlate with the ONNX's by {alike:.4f} or more"
