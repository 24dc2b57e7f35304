"""rknnlite_cpu.py answers as the wheel does, with return codes and without exceptions."""
import numpy as np
import pytest
from conftest import ROOT

from rknnlite_cpu import RKNNLite

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
