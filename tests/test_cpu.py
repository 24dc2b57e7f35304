"""runtimes/cpu.py answers as the wheel does, with return codes and without exceptions."""
import numpy as np
import onnx
import pytest
from conftest import ROOT

from runtimes.cpu import RKNNLite

MODEL = str(ROOT / "models/yolov5n_emoji.rknn")


@pytest.fixture
def context():
    context = RKNNLite()
    yield context
    context.release()


def test_it_runs_the_onnx_beside_the_rknn(context):
    assert context.load_rknn(MODEL) == 0
    assert context.init_runtime(core_mask=RKNNLite.NPU_CORE_0) == 0
    outputs = context.inference(inputs=[np.zeros((1, 640, 640, 3), np.uint8)])
    assert [output.shape for output in outputs] == [(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)]
    assert all(output.dtype == np.float32 for output in outputs)


def test_a_missing_model_returns_minus_one(context):
    assert context.load_rknn("none.rknn") == -1
    assert "none.onnx: no such file" in context.error


def test_a_file_that_is_no_model_returns_minus_one(context):
    assert context.load_rknn(str(ROOT / "README.md")) == 0  # as the wheel, which only reads it here
    assert context.init_runtime() == -1
    assert "README.md is not an ONNX model" in context.error


def test_calls_in_the_wrong_order_return_minus_one_or_none(context):
    assert context.init_runtime() == -1
    assert context.inference(inputs=[np.zeros((1, 640, 640, 3), np.uint8)]) is None


@pytest.mark.parametrize("shape", [(640, 640, 3), (1, 320, 640, 3), (1, 640, 640, 1)])
def test_an_input_of_another_shape_returns_none(context, shape):
    assert context.load_rknn(MODEL) == context.init_runtime() == 0
    assert context.inference(inputs=[np.zeros(shape, np.uint8)]) is None
    assert str(shape) in context.error and "(1, 640, 640, 3)" in context.error


def test_release_may_be_called_twice_and_ends_inference(context):
    assert context.load_rknn(MODEL) == context.init_runtime() == 0
    context.release()
    context.release()
    assert context.inference(inputs=[np.zeros((1, 640, 640, 3), np.uint8)]) is None


@pytest.fixture
def with_metadata(tmp_path):
    """with_metadata(mean="1 2 3"): path of a model that gives back its input, (1, 3, 2, 2), and has this metadata."""
    def write(channels=3, batch=1, **metadata):
        image, same = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, channels, 2, 2])
                       for name in ("image", "same"))
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["same"])], "graph", [image],
                                       [same])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)], ir_version=8)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, str(tmp_path / "model.onnx"))
        return str(tmp_path / "model.onnx")
    return write


def fed(context, path, channels=3):
    """What the network at `path` gets for an image of 10, 20, 30 (R, G, B): the value of each channel."""
    assert context.load_rknn(path) == context.init_runtime() == 0, context.error
    output, = context.inference(inputs=[np.full((1, 2, 2, channels), [10, 20, 30][:channels], np.uint8)])
    assert output.shape == (1, channels, 2, 2) and output.dtype == np.float32
    return output[0, :, 1, 0]


@pytest.mark.parametrize("metadata, expected", [
    ({}, [10 / 255, 20 / 255, 30 / 255]),
    ({"mean": "1 2 3.5", "std": "2 4 10"}, [4.5, 4.5, 2.65]),
    ({"std": "1 1 1"}, [10, 20, 30]),
    ({"mean": "10 0 255"}, [0, 20 / 255, -225 / 255]),
    ({"mean": "1  2\t3", "std": "1e1 10 10", "names": "{}"}, [0.9, 1.8, 2.7]),
])
def test_the_models_own_mean_and_std_are_applied(context, with_metadata, metadata, expected):
    np.testing.assert_allclose(fed(context, with_metadata(**metadata)), expected, rtol=1e-6)


def test_a_grey_model_is_fed_0_to_1(context, with_metadata):
    np.testing.assert_allclose(fed(context, with_metadata(channels=1), channels=1), [10 / 255], rtol=1e-6)


@pytest.mark.parametrize("batch", ["N", None])
def test_a_model_with_an_open_batch_size_is_run(context, with_metadata, batch):
    np.testing.assert_allclose(fed(context, with_metadata(batch=batch, std="1 1 1")), [10, 20, 30])


@pytest.mark.parametrize("metadata",
                         [{"mean": "1 2"}, {"mean": ""}, {"std": "1 2 x"}, {"std": "0 1 1"}, {"mean": "nan 0 0"},
                                      {"std": "0.229 0.224 0.225"}, {"std": "1 1 1 1"}, {"mean": "[1, 2, 3]"},
                                      {"std": "inf 1 1"}])
def test_malformed_mean_or_std_returns_minus_one_with_a_sentence(context, with_metadata, metadata):
    path = with_metadata(**metadata)
    assert context.load_rknn(path) == 0
    assert context.init_runtime() == -1
    name, value = next(iter(metadata.items()))
    assert context.error.startswith(f"{path}: its {name} is '{value}', not three numbers")
    assert context.inference(inputs=[np.zeros((1, 2, 2, 3), np.uint8)]) is None
