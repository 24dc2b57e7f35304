"""CPU time and bytes of a frame of a float model, with outputs fetched as float32 and as float16.

    tests/board/board.sh --library real --wheel none python3 tests/board/half_outputs.py FLOAT INT8

FLOAT: yolov8n_emoji.onnx or yolov5n_emoji.onnx, converted with --dtype fp. INT8: the same model in
models/. Runs on a board, too. The emulated board does not compute float models, so the values to
decode are those of the int8 model. The time of the NPU's run is left out.
"""

import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402

from funcs import yolov5, yolov8  # noqa: E402
from runtimes.librknnrt import RKNNLite  # noqa: E402
from vision.letterbox import letterbox  # noqa: E402
from vision.nms import nms  # noqa: E402
from vision.settings import settings_of  # noqa: E402

TIMES = 15


def open_context(path):
    context = RKNNLite()
    if context.load_rknn(path) or context.init_runtime():
        sys.exit(context.error)
    return context


def milliseconds(function, *arguments):
    """The median CPU time of a call."""
    used = []
    for _ in range(TIMES):
        began = time.process_time()
        function(*arguments)
        used.append(time.process_time() - began)
    return 1000 * sorted(used)[TIMES // 2]


def main():
    path, int8 = sys.argv[1:]
    settings = settings_of(None)
    decode = (yolov5 if "yolov5" in Path(path).name else yolov8).decode
    video = cv2.VideoCapture(str(ROOT / "models/demo.mp4"))
    video.set(cv2.CAP_PROP_POS_FRAMES, 100)
    frame = video.read()[1]
    image = letterbox(frame, settings.size)[0]
    floats = open_context(int8).inference([image[np.newaxis]])
    found = decode(floats, settings)

    context = open_context(path)
    library, handle = context._library, context._handle
    inputs = context._input_structs([image[np.newaxis]], None, None)
    common = {
        "letterbox": milliseconds(letterbox, frame, settings.size),
        "inputs_set": milliseconds(library.rknn_inputs_set, handle, 1, inputs),
        "NMS": milliseconds(nms, *found, settings),
    }
    for (buffers, structures), dtype in (
        (context._floats, np.float32),
        (context._stored, np.float16),
    ):
        assert all(buffer.dtype == dtype for buffer in buffers)
        outputs = [values.astype(dtype) for values in floats]
        count = len(buffers)
        stages = {
            **common,
            "outputs_get": milliseconds(library.rknn_outputs_get, handle, count, structures, None),
            "decode": milliseconds(decode, outputs, settings),
        }
        print(
            f"{dtype.__name__}: {sum(stages.values()):.1f} ms,",
            f"{sum(buffer.nbytes for buffer in buffers):,} bytes of outputs;",
            ", ".join(f"{name} {used:.1f}" for name, used in stages.items()),
        )
    context.release()


if __name__ == "__main__":
    main()
