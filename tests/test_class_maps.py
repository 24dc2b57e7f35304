"""funcs/class_maps.py: frames of known areas, on a model that tells their colours apart."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import funcs
from examples.boards_parts.camera import detections_of
from funcs import class_maps
from results.jsonl import objects
from vision.detections import Detections
from vision.drawing import draw
from vision.errors import InputError, ModelError
from vision.labels import colour
from vision.model import Model

NAMES = ["blue", "green", "red"]  # of a class, whose channel of a BGR frame is 255
SIZE = 96, 64  # width and height of the model's input


@pytest.fixture
def frame():
    """A quarter is green, half of it red, the rest blue; wider than the model's input."""
    picture = np.zeros((80, 240, 3), np.uint8)
    picture[:, :60, 1] = picture[:, 60:180, 2] = picture[:, 180:, 0] = 255
    return picture


SHARES = {"red": 0.5, "green": 0.25, "blue": 0.25}


class Context:
    """A context whose model gives each pixel the class of its brightest channel.

    layout: of the output; step: stride; quantise: outputs are int8.
    """

    def __init__(self, layout, step=1, quantise=False, names=NAMES, **about):
        self.layout, self.step, self.quantise = layout, step, quantise
        output = self.inference([np.zeros((1, SIZE[1], SIZE[0], 3), np.uint8)])[0]
        self.model = Model(
            "x.rknn", outputs=[("map", output.shape)], size=SIZE, names=names, **about
        )
        if quantise:
            self.inference_raw = self.raw

    def inference(self, inputs):
        image = inputs[0][0, :: self.step, :: self.step, ::-1]  # (rows, columns, BGR)
        scores = image.astype(np.float32) / 20 - 8
        if self.layout == "first":
            return [np.ascontiguousarray(scores.transpose(2, 0, 1))[None]]
        return [scores[None] if self.layout == "last" else scores.argmax(2)[None]]

    def raw(self, inputs):
        (scores,) = self.inference(inputs)
        scale, zero = (1, 0) if self.layout == "best" else (0.1, 40)
        return [(np.rint(scores / scale + zero).clip(-128, 127).astype(np.int8), scale, zero)]


@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("layout, step", [("first", 1), ("first", 8), ("last", 4), ("best", 1)])
def test_the_share_of_each_class_is_that_of_the_frame(frame, layout, step, quantise):
    context = Context(layout, step, quantise)
    assert funcs.find(context.model) is class_maps
    found = class_maps.detect(context, frame)
    shares = {found.name(number): share for number, share in zip(found.classes, found.scores)}
    assert found.boxes is None and list(shares)[0] == "red"
    # the grey bars above and below are not counted; an edge may lie one cell beside its place
    assert shares == pytest.approx(SHARES, abs=step / SIZE[0])
    # each part of the map has the class of its part of the frame
    rows, columns = found.class_map.shape
    truth = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_NEAREST).argmax(2)
    assert (found.class_map != truth).any(0).sum() <= 2


def test_json_and_other_boards_get_the_shares(frame):
    found = class_maps.detect(Context("first"), frame)
    converted = objects(found)
    assert converted[0] == {"class": "red", "number": 2, "share": pytest.approx(0.5, abs=0.01)}
    assert objects(detections_of(json.loads(json.dumps(converted)))) == converted


def test_conf_and_classes_leave_classes_out(frame):
    context = Context("first")
    context.model.conf = 0.4
    assert class_maps.detect(context, frame).classes.tolist() == [2]
    context.model.conf, context.model.class_ids = None, {0, 1}
    assert sorted(class_maps.detect(context, frame).classes.tolist()) == [0, 1]


def test_the_frame_is_painted_except_its_background(frame):
    names = ["blue", "background", "red"]
    painted = class_maps.myFunc(Context("first", names=names), frame.copy())
    assert np.array_equal(painted[70, 30], frame[70, 30])
    for x, number in ((120, 2), (210, 0)):
        expected = (frame[70, x] + np.float32(colour(number))) / 2
        np.testing.assert_allclose(painted[70, x], expected, atol=1)
    # the labels stand in the corner
    assert not np.array_equal(painted[:10, :30], frame[:10, :30])


def test_only_the_classes_that_are_kept_are_painted(frame):
    found = class_maps.detect(Context("first"), frame)
    picture = draw(frame.copy(), found.select(found.classes == 2))
    assert np.array_equal(picture[70, 210], frame[70, 210])
    assert not np.array_equal(picture[70, 120], frame[70, 120])


def test_the_classes_of_a_usual_data_set_need_no_names():
    for count, name in ((19, "road"), (21, "background")):
        model = Model("x.rknn", outputs=[("o", (1, count, 64, 96))], size=SIZE)
        assert funcs.find(model) is class_maps and class_maps.classes_of(model) == count
        assert funcs.class_names(model, class_maps)[0] == name
        args = SimpleNamespace(conf=None, iou=None, names=None, classes=[name])
        funcs.apply_settings(args, model, class_maps)
        assert model.class_ids == {0}


def test_classes_without_names_are_chosen_by_number():
    model = Model("x.rknn", outputs=[("o", (1, 64, 96))], size=SIZE)
    args = SimpleNamespace(conf=None, iou=None, names=None, classes=["3"])
    funcs.apply_settings(args, model, class_maps)
    assert model.class_ids == {3}


def test_deeplab_at_513_pixels_is_read():
    model = Model("x.tflite", outputs=[("o", (1, 65, 65, 21))], size=(513, 513))
    assert funcs.find(model) is class_maps


@pytest.mark.parametrize(
    "shape, names, question",
    [
        ((1, 64, 64, 64), None, "with the classes first or with the classes last"),
        ((1, 64, 64, 64), [str(number) for number in range(64)], "with the classes first or"),
        ((1, 32, 64, 64), None, "may be a class map, but also depth, a picture or features"),
        ((1, 64, 64), None, "may be a class map, but also depth, a picture or features"),
    ],
)
def test_a_shape_that_can_be_read_in_two_ways_needs_the_flag_func(shape, names, question):
    model = Model("x.rknn", outputs=[("o", shape)], size=(64, 64), names=names)
    with pytest.raises(InputError, match=question) as error:
        funcs.find(model)
    assert "--func funcs/class_maps.py" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 1, 64, 96), (1, 3, 60, 96), (1, 300, 64, 96), (1, 10, 1, 1)])
def test_other_shapes_are_not_class_maps(shape):
    model = Model("x.rknn", outputs=[("o", shape)], size=SIZE)
    assert not class_maps.reads(model) and class_maps.unclear(model) is None
    context = Context("first")
    context.inference = lambda inputs: [np.zeros(shape, np.float32)]
    with pytest.raises(ModelError, match="reads one output"):
        class_maps.detect(context, np.zeros((64, 96, 3), np.uint8))


def test_the_map_stays_whole_when_classes_are_selected():
    found = Detections(None, [1, 0], [0.75, 0.25], class_map=np.uint8([[1, 1], [0, 1]]))
    assert found.select([0]).class_map.tolist() == [[1, 1], [0, 1]]


def test_main_writes_the_shares(main_py, tmp_path, frame):
    """A real ONNX model, whose only layer takes the three colours apart."""
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32)[::-1, :, None, None], "weights")
    shape = [1, 3, SIZE[1], SIZE[0]]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["map"])],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, shape)],
        [weights],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 12)])
    onnx.save(model, str(tmp_path / "colours.onnx"))
    (tmp_path / "colours.txt").write_text("\n".join(NAMES))
    cv2.imwrite(str(tmp_path / "frame.png"), frame)
    options = ["--runtime", "cpu", "--headless", "--json", "-"]
    done = main_py(
        tmp_path / "frame.png",
        *("--model", tmp_path / "colours.onnx", *options, "--save", tmp_path / "out.png"),
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert {one["class"]: one["share"] for one in line["objects"]} == pytest.approx(
        SHARES, abs=0.02
    )
    assert cv2.imread(str(tmp_path / "out.png"))[70, 120].tolist() != frame[70, 120].tolist()
