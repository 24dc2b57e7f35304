"""PP-OCR's models from the wheel rapidocr-onnxruntime (Apache-2.0), with inputs of a fixed size.

    python tests/ocr_models.py words     # writes words/ppocr_det.onnx and words/ppocr_rec.onnx

The wheel is downloaded by pip and only unpacked. Its models take pictures of any size; a .rknn has
one size, and so have these.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnx
from onnx import TensorProto, helper

WHEEL = "rapidocr-onnxruntime==1.4.4"
SIDE, WIDTH, HEIGHT = 320, 320, 48  # of the detector's input; of the reader's
CHARACTERS = 6625  # with the blank and the space
IMAGENET = {"mean": "123.675 116.28 103.53", "std": "58.395 57.12 57.375"}
CENTRED = {"mean": "127.5 127.5 127.5", "std": "127.5 127.5 127.5"}


def fixed(content, path, size, shape, **metadata):
    """Write the model in `content` for an input of size (width, height), with an output of this
    shape."""
    model = onnx.load_from_string(content)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    sides = model.graph.input[0].type.tensor_type.shape.dim
    for side, value in zip(sides, (1, 3, *size[::-1])):
        side.Clear()
        side.dim_value = value
    output = model.graph.output[0]
    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
    helper.set_model_props(model, {**kept, **metadata})
    onnx.save(model, str(path))


def write_models(folder):
    """Download the wheel and write both models into a folder. Raises OSError or
    CalledProcessError if there is no network."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name, WHEEL]
        subprocess.run(command, check=True, capture_output=True)
        (wheel,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            detector, reader = (
                content.read(f"rapidocr_onnxruntime/models/ch_PP-OCRv4_{kind}_infer.onnx")
                for kind in ("det", "rec")
            )
    shape = [1, 1, SIDE, SIDE]
    fixed(detector, folder / "ppocr_det.onnx", (SIDE, SIDE), shape, names="['text']", **IMAGENET)
    shape = [1, WIDTH // 8, CHARACTERS]
    fixed(reader, folder / "ppocr_rec.onnx", (WIDTH, HEIGHT), shape, **CENTRED)


if __name__ == "__main__":
    write_models(sys.argv[1])
