"""funcs/yolo_nas.py, on outputs that are computed from the demo model's own detections."""

import numpy as np
import pytest
from conftest import opened_demo

import funcs
from funcs import yolo_nas, yolov8
from vision.errors import InputError, ModelError
from vision.letterbox import letterbox
from vision.model import Model
from vision.settings import Settings

SIZE, CELLS = 640, 80 * 80 + 40 * 40 + 20 * 20


class Context:
    """A context whose inference returns these outputs, or with `quantise` the same in int8."""

    def __init__(self, outputs, quantise=False):
        self.outputs = outputs
        shapes = [("", output.shape) for output in outputs]
        self.model = Model("x.rknn", outputs=shapes, size=(SIZE, SIZE))
        if quantise:
            self.inference_raw = self.raw

    def inference(self, inputs):
        return self.outputs

    def raw(self, inputs):
        scales = [(float(output.max()) / 255, -128) for output in self.outputs]
        return [
            (np.rint(output / scale + zero).clip(-128, 127).astype(np.int8), scale, zero)
            for output, (scale, zero) in zip(self.outputs, scales)
        ]


@pytest.fixture(scope="module")
def frame(demo_frames):
    return demo_frames[40]


@pytest.fixture(scope="module")
def demo(frame):
    """(boxes (1, n, 4), scores (1, n, 80)) of all cells that the demo model finds something in, the
    others empty, and its Detections."""
    context = opened_demo("yolov8n")
    outputs = context.inference([letterbox(frame, SIZE)[0][None]])
    found = yolov8.decode(outputs, Settings((SIZE, SIZE), 0.1))
    boxes, scores = np.zeros((1, CELLS, 4), np.float32), np.zeros((1, CELLS, 80), np.float32)
    cells = np.arange(len(found[0])) * 3  # any place
    boxes[0, cells] = found[0].clip(0, SIZE)
    scores[0, cells, found[1]] = found[2]
    return boxes, scores, yolov8.detect(context, frame)


def assert_same(found, expected, pixels, score):
    """Each detection of `expected` that is clearly above the threshold is found."""
    sure = expected.select(expected.scores > 0.25 + score)
    assert len(sure) > 5 and abs(len(found) - len(expected)) <= 2
    for box, number, value in zip(*sure):
        same = (np.abs(found.boxes - box).max(1) <= pixels) & (found.classes == number)
        assert np.abs(found.scores[same] - value).min(initial=1) <= score


@pytest.mark.parametrize("scores_first", [False, True])
@pytest.mark.parametrize("quantise, pixels, score", [(False, 0.5, 1e-4), (True, 6, 0.004)])
def test_boxes_and_scores_are_read_in_either_order(
    frame, demo, scores_first, quantise, pixels, score
):
    """In int8 a pixel of the input is 1 / 255 of its side, and the frame is twice as large."""
    boxes, scores, expected = demo
    context = Context([scores, boxes] if scores_first else [boxes, scores], quantise)
    assert funcs.find(context.model) is yolo_nas and yolo_nas.classes_of(context.model) == 80
    assert_same(yolo_nas.detect(context, frame), expected, pixels, score)


def test_with_four_classes_the_order_of_the_outputs_is_ambiguous(frame, demo):
    boxes, scores, _ = demo
    context = Context([boxes, scores[..., :4]])
    with pytest.raises(InputError, match="may be boxes and scores in either order") as error:
        funcs.find(context.model)
    assert "--func funcs/yolo_nas.py" in str(error.value)
    found = yolo_nas.detect(context, frame)  # with --func the boxes come first
    assert len(found) and set(found.classes.tolist()) <= {0, 1, 2, 3}


def test_another_number_of_boxes_needs_the_flag_func():
    """SSD and DETR have such outputs, too, with other boxes in them."""
    outputs = [("a", (1, 3000, 4)), ("b", (1, 3000, 21))]
    with pytest.raises(InputError, match="but not those of YOLO-NAS, which has 8400") as error:
        funcs.find(Model("x.rknn", outputs=outputs, size=(SIZE, SIZE)))
    assert "--func funcs/yolo_nas.py" in str(error.value)


@pytest.mark.parametrize(
    "shapes", [[(1, 8400, 4)], [(1, 8400, 4), (1, 80, 8400)], [(1, 8400, 5), (1, 8400, 80)]]
)
def test_other_outputs_are_refused(shapes):
    model = Model("x.rknn", outputs=[("", shape) for shape in shapes], size=(SIZE, SIZE))
    assert not yolo_nas.reads(model) and yolo_nas.unclear(model) is None
    context = Context([np.zeros(shape, np.float32) for shape in shapes])
    with pytest.raises(ModelError, match="reads boxes"):
        yolo_nas.detect(context, np.zeros((64, 64, 3), np.uint8))
