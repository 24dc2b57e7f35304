"""What convert.py --to tflite does: an ONNX model to a .tflite for the open driver.

It needs onnx2tf and TensorFlow, in an environment of its own (docs/runtimes.md).
Weights and layers become 8 bits with one scale per tensor, because Mesa's Teflon takes nothing
else, and unsigned, because its rocket driver computes only these correctly (driver_fixes.py). A zip
with metadata.json is appended, as in Ultralytics' own .tflite: names, task, mean, std, and the
inputs and outputs of the ONNX file, in whose order the outputs are.
"""
from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
from driver_fixes import for_the_driver
from whole_file import replacing

from vision.errors import InputError
from vision.model import Model, describe
from vision.packages import new_environment
from vision.paths import ROOT

# onnx2tf downloads images to try the model on, unless a file with this name lies in the working
# directory.
SAMPLES = "calibration_image_sample_data_20x128x128x3_float32.npy"


def to_keras(path: Path, folder: str) -> Any:
    """The ONNX file at `path` as a tf_keras.Model with inputs and outputs in NHWC.

    folder: an empty folder for temporary files. Raises InputError if onnx2tf is missing or cannot
    convert the model.
    """
    # It calls onnxsim and other programs. Without them it continues, and YOLOv8 fails at an Add.
    programs = os.path.dirname(sys.executable)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import onnx2tf
    except ImportError as error:
        setup = new_environment(ROOT / ".venv-tflite", "-r",
                                str(ROOT / "models" / "requirements-tflite.txt"))
        raise InputError(f"onnx2tf cannot be imported ({error}). It needs an environment of its "
                         f"own (docs/runtimes.md): {setup}") from None
    before = os.getcwd()
    os.chdir(folder)
    try:
        np.save(SAMPLES, np.zeros((20, 128, 128, 3), np.float32))
        # With this "integer" option it pads the input of a pooling with 0. The default, the lowest
        # float, would leave no range for the other values.
        return onnx2tf.convert(
            input_onnx_file_path=str(path), output_folder_path=os.path.join(folder, "saved_model"),
            output_integer_quantized_tflite=True, disable_model_save=True, non_verbose=True)
    except (Exception, SystemExit) as error:  # it raises anything, and may exit()
        reason = " ".join(str(error).split())[:200] or "see its own message above"
        raise InputError(f"{path}: onnx2tf cannot convert this model: {reason}.") from None
    finally:
        os.chdir(before)


def quantise(keras: Any, images: Sequence[np.ndarray]) -> bytes:
    """The .tflite of a tf_keras.Model with one image as input: uint8 input, int8 outputs.

    images: arrays (height, width, 3) float32, as the network is fed; they give the ranges.
    """
    import tensorflow as tf
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in keras.inputs]
    function = tf.function(lambda image: keras(image), input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], keras)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type, converter.inference_output_type = tf.uint8, tf.int8
    converter._experimental_disable_per_channel = True
    return converter.convert()


def answers(content: bytes, frame: np.ndarray, table: Callable) -> List[np.ndarray]:
    """The outputs of a .tflite for a frame (height, width, 3) uint8: float32 arrays in its own
    layout and order.

    table: a function from the input's details to what the input stores for each byte, (256, 3).
    """
    import tensorflow as tf
    # TensorFlow 2.19's XNNPACK fails on the end of a classifier, which LiteRT 2.3's runs.
    plain = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=content, num_threads=1,
                                      experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    stored = table(given)[frame, np.arange(3)]
    interpreter.set_tensor(given["index"], stored[np.newaxis])
    interpreter.invoke()
    outputs = []
    for output in interpreter.get_output_details():
        scale, zero_point = output["quantization"]
        values = interpreter.get_tensor(output["index"]).astype(np.float32)
        outputs.append((values - zero_point) * scale)
    return outputs


def order(expected: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> Tuple[List[int], float]:
    """Which of `given`, in TensorFlow's layout, is each of `expected`, in ONNX's, by their values.

    Returns a list of indices, and the lowest correlation. Raises ValueError if one is missing.
    """
    from runtimes.teflon import as_onnx
    indices: List[int] = []
    lowest = 1.0
    for array in expected:
        best = None
        for index, other in enumerate(given):
            if index in indices or sorted(other.shape) != sorted(array.shape):
                continue
            with contextlib.suppress(ValueError):
                other = as_onnx(other, array.shape)
                difference = float(np.abs(other - array).mean())
                if best is None or difference < best[0]:
                    best = difference, index, other
        if best is None:
            raise ValueError(f"an output {array.shape} is not among those of the .tflite, "
                             f"{', '.join(str(other.shape) for other in given)}")
        indices.append(best[1])
        if array.std() and best[2].std():
            lowest = min(lowest, float(np.corrcoef(best[2].ravel(), array.ravel())[0, 1]))
    return indices, lowest


def build(path: Path, source: Path, about: Model, frames: Sequence[np.ndarray],
          mean: Sequence[float], std: Sequence[float]) -> Tuple[bytes, List[list], float]:
    """The .tflite of an ONNX file without metadata; the shapes of the ONNX's inputs and outputs;
    and the lowest correlation of an output with the ONNX's, for the first frame.

    source: the file to read; about: its description; the others as in convert().
    Raises InputError.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    from runtimes.teflon import input_table
    images = [(frame.astype(np.float32) - np.asarray(mean, np.float32))
              / np.asarray(std, np.float32) for frame in frames]
    with tempfile.TemporaryDirectory() as folder:
        keras = to_keras(source.resolve(), folder)
    try:
        content = quantise(keras, images)
    except Exception as error:  # TensorFlow's
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: TensorFlow cannot quantise this model to int8: "
                         f"{reason}.") from None
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    image = images[0].transpose(2, 0, 1)[np.newaxis]
    expected = session.run(None, {about.inputs[0][0]: image})
    try:
        given = answers(content, frames[0], lambda details: input_table(details, mean, std))
        indices, correlation = order(expected, given)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from None
    shapes: List[list] = [[image.shape], [array.shape for array in expected]]
    return for_the_driver(content, indices), shapes, correlation


def write(out: Path, content: bytes, metadata: Dict[str, Any]) -> None:
    """Write the .tflite, and its metadata behind it. Raises InputError if that is not possible."""
    with replacing(out) as new:
        new.write_bytes(content)
        with zipfile.ZipFile(new, "a", zipfile.ZIP_DEFLATED) as archive:
            # A fixed time, so that the same model gives the same file.
            archive.writestr(zipfile.ZipInfo("metadata.json", (1980, 1, 1, 0, 0, 0)),
                             json.dumps(metadata, ensure_ascii=False))


def convert(path: Path, out: Path, model: Any, frames: Sequence[np.ndarray],
            mean: Sequence[float], std: Sequence[float], metadata: Dict[str, Any]) -> str:
    """Convert an ONNX model to the .tflite `out`. Returns a report of its quality.

    path: of the ONNX file, for messages; model: the onnx.ModelProto to convert, with a fixed batch;
    frames: (height, width, 3) uint8 RGB, as the func passes them; mean, std: of the input, for R,
    G, B in 0..255; metadata: what else is known of the model. Raises InputError.
    """
    import onnx
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / path.name
        onnx.save(model, str(source))
        about = describe(source)
        content, shapes, correlation = build(path, source, about, frames, mean, std)
    ends = zip(("inputs", "outputs"), (about.inputs, about.outputs), shapes)
    metadata = {**metadata, "mean": " ".join(map(str, mean)), "std": " ".join(map(str, std)),
                **{key: [(name, shape) for (name, _), shape in zip(tensors, sizes)]
                   for key, tensors, sizes in ends}}
    write(out, content, metadata)
    return (f"8 bits, one scale per tensor; its outputs correlate with the ONNX's by "
            f"{correlation:.4f} or more")
