"""runtimes/cpu.py returns the same codes as the wheel and raises no exceptions. The wheel itself
(rknn-toolkit-lite2 2.5.0 in tests/board) was used to find out which inputs it accepts.
"""

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from runtimes.cpu import FRAMES, RKNNLite

MODEL = str(ROOT / "models/yolov5n_emoji.rknn")


@pytest.fixture
def context():
    context = RKNNLite()
    yield context
    context.release()


def test_the_onnx_beside_the_rknn_is_run(context):
    assert context.load_rknn(MODEL) == 0
    assert context.init_runtime(core_mask=RKNNLite.NPU_CORE_0) == 0
    outputs = context.inference(inputs=[np.zeros((1, 640, 640, 3), np.uint8)])
    assert [output.shape for output in outputs] == [
        (1, 255, 80, 80),
        (1, 255, 40, 40),
        (1, 255, 20, 20),
    ]
    assert all(output.dtype == np.float32 for output in outputs)


def test_onnx_runtime_sends_no_telemetry_and_leaves_no_files_in_the_home_folder(main_py, tmp_path):
    ran = main_py(
        "models/page.jpg", "--headless", env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    )
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_returns_minus_one(context):
    assert context.load_rknn("none.rknn") == -1
    assert "none.onnx: no such file" in context.error


def test_a_file_that_is_not_a_model_returns_minus_one(context):
    # as in the wheel, which only reads the file here
    assert context.load_rknn(str(ROOT / "README.md")) == 0
    assert context.init_runtime() == -1
    assert "README.md: ONNX Runtime cannot open this model" in context.error


@pytest.mark.parametrize(
    "edit, expected",
    [
        (
            lambda model: setattr(model, "ir_version", 99),
            "newer than ONNX Runtime .*pip install -U onnxruntime",
        ),
        (
            lambda model: setattr(model.opset_import[0], "version", 99),
            "newer than ONNX Runtime .*opset=17",
        ),
        (
            lambda model: setattr(model.graph.node[0], "op_type", "Own"),
            "operations that ONNX Runtime .* lacks",
        ),
    ],
)
def test_the_error_for_a_model_that_cannot_be_opened_says_what_to_do(
    context, tmp_path, edit, expected
):
    model = onnx.load(str(ROOT / "models/resnet18_emoji.onnx"))
    edit(model)
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert context.load_rknn(str(tmp_path / "m.onnx")) == 0 and context.init_runtime() == -1
    assert re.search(
        r"m\.onnx: ONNX Runtime cannot open this model: it .*" + expected, context.error
    ), context.error
    assert "onnxruntime_src" not in context.error and len(context.error) < 600


def test_weights_in_a_separate_file_are_read_or_reported_as_missing(context, tmp_path):
    onnx.save(
        onnx.load(str(ROOT / "models/resnet18_emoji.onnx")),
        str(tmp_path / "m.onnx"),
        save_as_external_data=True,
        location="m.onnx.data",
        size_threshold=100,
    )
    assert context.load_rknn(str(tmp_path / "m.onnx")) == context.init_runtime() == 0, context.error
    (tmp_path / "m.onnx.data").unlink()
    assert context.init_runtime() == -1
    assert (
        "its weights are in a separate file, which must lie beside it, complete" in context.error
    ), context.error


def test_calls_in_the_wrong_order_return_minus_one_or_none(context):
    assert context.init_runtime() == -1
    assert context.inference(inputs=[np.zeros((1, 640, 640, 3), np.uint8)]) is None


@pytest.mark.parametrize("shape", [(640, 640, 3), (1, 320, 640, 3), (1, 640, 640, 1)])
def test_an_input_of_the_wrong_shape_returns_none(context, shape):
    assert context.load_rknn(MODEL) == context.init_runtime() == 0
    assert context.inference(inputs=[np.zeros(shape, np.uint8)]) is None
    assert str(shape) in context.error and "(1, 640, 640, 3)" in context.error


def test_release_may_be_called_twice_and_ends_inference(context):
    assert context.load_rknn(MODEL) == context.init_runtime() == 0
    context.release()
    context.release()
    assert context.inference(inputs=[np.zeros((1, 640, 640, 3), np.uint8)]) is None


def write_model(folder, *shapes, kind=TensorProto.FLOAT, name="model.onnx", **metadata):
    """Write a model with an input of each of these shapes, which returns its inputs as float32.
    Returns its path."""
    inputs = [
        helper.make_tensor_value_info(f"in{place}", kind, shape)
        for place, shape in enumerate(shapes)
    ]
    outputs = [
        helper.make_tensor_value_info(f"out{place}", TensorProto.FLOAT, shape)
        for place, shape in enumerate(shapes)
    ]
    nodes = [
        helper.make_node("Cast", [given.name], [same.name], to=TensorProto.FLOAT)
        for given, same in zip(inputs, outputs)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 13)],
    )
    helper.set_model_props(model, metadata)
    onnx.save(model, str(Path(folder) / name))
    return str(Path(folder) / name)


def opened(path):
    context = RKNNLite()
    assert context.load_rknn(path) == context.init_runtime() == 0, context.error
    return context


@pytest.fixture
def with_metadata(tmp_path):
    """with_metadata(mean="1 2 3"): path of a model with this metadata that returns its input, (1,
    3, 2, 2)."""

    def write(channels=3, batch=1, **metadata):
        return write_model(tmp_path, [batch, channels, 2, 2], **metadata)

    return write


def values_for_the_network(context, path, channels=3):
    """The value of each channel that the network gets for an image of 10, 20, 30 (R, G, B)."""
    assert context.load_rknn(path) == context.init_runtime() == 0, context.error
    (output,) = context.inference(
        inputs=[np.full((1, 2, 2, channels), [10, 20, 30][:channels], np.uint8)]
    )
    assert output.shape == (1, channels, 2, 2) and output.dtype == np.float32
    return output[0, :, 1, 0]


@pytest.mark.parametrize(
    "metadata, expected",
    [
        ({}, [10 / 255, 20 / 255, 30 / 255]),
        ({"mean": "1 2 3.5", "std": "2 4 10"}, [4.5, 4.5, 2.65]),
        ({"std": "1 1 1"}, [10, 20, 30]),
        ({"mean": "10 0 255"}, [0, 20 / 255, -225 / 255]),
        ({"mean": "1  2\t3", "std": "1e1 10 10", "names": "{}"}, [0.9, 1.8, 2.7]),
    ],
)
def test_the_models_mean_and_std_are_applied(context, with_metadata, metadata, expected):
    np.testing.assert_allclose(
        values_for_the_network(context, with_metadata(**metadata)), expected, rtol=1e-6
    )


def test_a_grey_model_gets_values_from_0_to_1(context, with_metadata):
    np.testing.assert_allclose(
        values_for_the_network(context, with_metadata(channels=1), channels=1),
        [10 / 255],
        rtol=1e-6,
    )


@pytest.mark.parametrize("batch", ["N", None])
def test_a_model_with_a_dynamic_batch_size_runs(context, with_metadata, batch):
    np.testing.assert_allclose(
        values_for_the_network(context, with_metadata(batch=batch, std="1 1 1")), [10, 20, 30]
    )


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": "1 2"},
        {"mean": ""},
        {"std": "1 2 x"},
        {"std": "0 1 1"},
        {"mean": "nan 0 0"},
        {"std": "0.229 0.224 0.225"},
        {"std": "1 1 1 1"},
        {"mean": "[1, 2, 3]"},
        {"std": "inf 1 1"},
    ],
)
def test_an_invalid_mean_or_std_returns_minus_one_with_a_reason(context, with_metadata, metadata):
    path = with_metadata(**metadata)
    assert context.load_rknn(path) == 0
    assert context.init_runtime() == -1
    name, value = next(iter(metadata.items()))
    assert context.error.startswith(f"{path}: its {name} is '{value}', not three numbers")
    assert context.inference(inputs=[np.zeros((1, 2, 2, 3), np.uint8)]) is None


# more rows than channels, more columns than rows
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 4, 6, 3), np.uint8)
FED = IMAGE.transpose(0, 3, 1, 2) / np.float32(255)


@pytest.mark.parametrize(
    "shape",
    [
        ["n", 3, "h", "w"],
        [1, 3, None, None],
        ["n", None, "h", "w"],
        [1, 3, "side", 6],
        [None, 3, 4, 6],
    ],
)
def test_a_model_with_dynamic_sides_accepts_any_image(tmp_path, shape):
    np.testing.assert_allclose(opened(write_model(tmp_path, shape)).inference([IMAGE])[0], FED)


def test_a_model_with_one_dynamic_side_checks_the_other(tmp_path):
    context = opened(write_model(tmp_path, ["n", 3, 4, "w"]))
    assert context.inference([IMAGE[:, :3]]) is None
    assert "takes an input of shape (1, 4, any, 3), not (1, 3, 6, 3)" in context.error
    assert context.inference([np.concatenate([IMAGE, IMAGE])]) is None


@pytest.mark.parametrize("shape", [[1, 4, 6, 3], ["n", "h", "w", 3]])
@pytest.mark.parametrize("data_format", [None, "nhwc", "nchw"])
def test_a_channels_last_model_accepts_the_same_images(tmp_path, shape, data_format):
    context = opened(write_model(tmp_path, shape, mean="1 2 3", std="1 2 4"))
    image = IMAGE.transpose(0, 3, 1, 2) if data_format == "nchw" else IMAGE
    (output,) = context.inference([image], data_format=data_format)
    np.testing.assert_allclose(output, (IMAGE - [1.0, 2.0, 3.0]) / [1.0, 2.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize("data_format", ["nchw", ["nchw"]])
def test_an_image_may_be_channels_first(tmp_path, data_format):
    context = opened(write_model(tmp_path, [1, 3, 4, 6], mean="1 2 3", std="1 2 4"))
    planes = np.ascontiguousarray(IMAGE.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(
        context.inference([planes], data_format=data_format)[0], context.inference([IMAGE])[0]
    )
    assert context.inference([IMAGE], data_format=data_format) is None
    assert "shape (1, 3, 4, 6), not (1, 4, 6, 3)" in context.error


@pytest.mark.parametrize("dtype", FRAMES)
def test_every_dtype_that_the_wheel_accepts_is_accepted(tmp_path, dtype):
    context = opened(write_model(tmp_path, [1, 3, 4, 6], std="2 2 2"))
    image = IMAGE.astype(dtype)
    for data_type in (None, dtype, [dtype]):
        np.testing.assert_allclose(
            context.inference([image], data_type=data_type)[0],
            image.transpose(0, 3, 1, 2).astype(np.float32) / 2,
        )


@pytest.mark.parametrize(
    "kind, tolerance", [(TensorProto.FLOAT16, 1e-3), (TensorProto.DOUBLE, 1e-6)]
)
def test_models_with_other_float_types_get_their_own_type(tmp_path, kind, tolerance):
    (output,) = opened(write_model(tmp_path, [1, 3, 4, 6], kind=kind)).inference([IMAGE])
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, FED, rtol=tolerance)


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT64, TensorProto.INT32])
def test_a_model_with_integer_inputs_gets_the_image_unchanged(tmp_path, kind):
    (output,) = opened(write_model(tmp_path, [1, 3, 4, 6], kind=kind)).inference([IMAGE])
    np.testing.assert_array_equal(output, IMAGE.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "shape, given",
    [
        ([1, 10], (1, 10)),
        (["n", 10], (1, 10)),
        ([7], (7,)),
        (["n"], (7,)),
        ([1, 2, 3], (1, 2, 3)),
        ([1, 2, 3, 2, 2], (1, 2, 3, 2, 2)),
    ],
)
def test_inputs_that_are_not_images_are_passed_unchanged(tmp_path, shape, given):
    vector = np.arange(np.prod(given), dtype=np.float32).reshape(given)
    np.testing.assert_array_equal(
        opened(write_model(tmp_path, shape)).inference([vector])[0], vector
    )


def test_several_inputs_are_given_in_the_models_order(tmp_path):
    context = opened(write_model(tmp_path, [1, 3, 4, 6], [1, 4], [1, 4, 6, 1]))
    vector = np.ones((1, 4), np.float32)
    outputs = context.inference(
        [IMAGE.transpose(0, 3, 1, 2), vector, IMAGE[..., :1]], data_format=["nchw", "nhwc", "nhwc"]
    )
    for output, expected in zip(outputs, (FED, vector, IMAGE[..., :1] / np.float32(255))):
        np.testing.assert_allclose(output, expected)
    for inputs in ([IMAGE], [IMAGE, vector], IMAGE, [IMAGE, vector, vector, vector]):
        assert context.inference(inputs) is None
        assert "has 3 inputs (in0, in1, in2), not" in context.error


def test_a_model_with_a_fixed_batch_gets_several_images(tmp_path):
    images = np.concatenate([IMAGE, IMAGE[:, ::-1]])
    (output,) = opened(write_model(tmp_path, [2, 3, 4, 6])).inference([images])
    np.testing.assert_allclose(output, images.transpose(0, 3, 1, 2) / np.float32(255))


def test_a_single_input_needs_no_list(tmp_path):
    np.testing.assert_allclose(opened(write_model(tmp_path, [1, 3, 4, 6])).inference(IMAGE)[0], FED)


def test_each_call_returns_new_arrays(tmp_path):
    context = opened(write_model(tmp_path, [1, 3, 4, 6]))
    (first,) = context.inference([IMAGE])
    context.inference([IMAGE[:, ::-1]])
    np.testing.assert_allclose(first, FED)


@pytest.mark.parametrize(
    "inputs, options, reason",
    [
        (None, {}, "takes a list of arrays, [image], not NoneType"),
        ([None], {}, "takes a list of arrays, [image], not list of NoneType"),
        ((IMAGE,), {}, "takes a list of arrays, [image], not tuple"),
        ([[1, 2]], {}, "takes a list of arrays"),
        ([], {}, "has 1 inputs (in0), not 0"),
        ([IMAGE, IMAGE], {}, "(in0), not 2"),
        ([IMAGE[0]], {}, "takes an input of shape (1, 4, 6, 3), not (4, 6, 3)"),
        ([IMAGE[None]], {}, "not (1, 1, 4, 6, 3)"),
        ([IMAGE[:, :2]], {}, "not (1, 2, 6, 3)"),
        ([IMAGE.astype(np.float64)], {}, "not float64"),
        ([IMAGE.astype(np.uint64)], {}, "not uint64"),
        ([IMAGE.astype(np.complex64)], {}, "not complex64"),
        ([IMAGE.astype(object)], {}, "not object"),
        ([IMAGE.astype(">f4")], {}, "not >f4"),
        (
            [IMAGE],
            {"data_format": "NCHW"},
            "takes data_format 'nhwc' or 'nchw' for each of its 1 inputs, not 'NCHW'",
        ),
        (
            [IMAGE],
            {"data_format": ["nhwc", "nhwc"]},
            "for each of its 1 inputs, not ['nhwc', 'nhwc']",
        ),
        ([IMAGE], {"data_format": [None]}, "takes data_format"),
        ([IMAGE], {"data_format": 5}, "takes data_format"),
        (
            [IMAGE],
            {"data_type": "float32"},
            "got an input of uint8, but data_type says float32",
        ),
        ([IMAGE], {"data_type": "UINT8"}, "takes data_type 'uint8' or"),
        (
            [IMAGE],
            {"inputs_pass_through": [1]},
            "takes inputs_pass_through 0 for each of its 1 inputs",
        ),
        (
            [IMAGE],
            {"inputs_pass_through": [0, 0]},
            "takes inputs_pass_through 0 for each of its 1 inputs",
        ),
        ([IMAGE], {"inputs_pass_through": 0}, ""),
    ],
)
def test_inputs_that_the_wheel_refuses_return_none_with_a_reason(tmp_path, inputs, options, reason):
    path = write_model(tmp_path, [1, 3, 4, 6])
    context = opened(path)
    assert context.inference(inputs, **options) is None
    assert context.error.startswith(path) and reason in context.error
    # and the context still works
    assert context.inference([IMAGE], inputs_pass_through=[0]) is not None


def test_an_image_that_the_network_cannot_process_is_reported_in_one_sentence(tmp_path):
    path = write_model(tmp_path, ["n", 3, "h", "w"])
    model = onnx.load(path)
    model.graph.node.insert(0, helper.make_node("Reshape", ["in0", "shape"], ["cut"]))
    model.graph.node[1].input[0] = "cut"
    model.graph.initializer.append(
        helper.make_tensor("shape", TensorProto.INT64, [4], [1, 3, 4, 6])
    )
    onnx.save(model, path)
    context = opened(path)
    assert context.inference([IMAGE]) is not None
    assert context.inference([np.zeros((1, 5, 5, 3), np.uint8)]) is None
    assert context.error.startswith(f"{path} could not be run: ") and "\n" not in context.error


def test_a_model_with_text_input_is_refused_when_it_is_opened(context, tmp_path):
    word = helper.make_tensor_value_info("word", TensorProto.STRING, [1])
    same = helper.make_tensor_value_info("same", TensorProto.STRING, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["word"], ["same"])], "graph", [word], [same]
    )
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]),
        str(tmp_path / "words.onnx"),
    )
    assert context.load_rknn(str(tmp_path / "words.onnx")) == 0 and context.init_runtime() == -1
    assert context.error.endswith(
        "its input 'word' has the type tensor(string), which no NPU takes"
    )


sides = st.integers(1, 9)
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.floats(),
    st.sampled_from(
        [
            "nchw",
            "nhwc",
            "uint8",
            "float32",
            IMAGE,
            IMAGE[0],
            np.float32(1),
            np.ma.masked_array(IMAGE),
            np.zeros((1, 0, 6, 3), np.uint8),
            np.array("word"),
            np.zeros(3, "M8[s]"),
            object,
            {"a": 1},
        ]
    ),
)
things = st.one_of(
    anything, st.lists(anything, max_size=3), st.lists(anything, max_size=2).map(tuple)
)


@settings(deadline=None, max_examples=300)
@given(inputs=things, data_type=things, data_format=things, inputs_pass_through=things)
@pytest.mark.slow
def test_no_input_raises_an_exception(inputs, **options):
    with tempfile.TemporaryDirectory() as folder:
        context = opened(write_model(folder, [1, 3, 4, 6]))
        outputs = context.inference(inputs, **options)
        assert outputs is None and context.error or outputs[0].shape == (1, 3, 4, 6)


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    height=sides,
    width=sides,
    channels=st.sampled_from([1, 3, 4]),
    batch=st.sampled_from([1, 2]),
    inside=st.sampled_from(["nchw", "nhwc"]),
    outside=st.sampled_from(["nchw", "nhwc"]),
    kind=st.sampled_from(
        [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8]
    ),
)
@pytest.mark.slow
def test_the_network_gets_every_image_in_its_own_layout(
    data, height, width, channels, batch, inside, outside, kind
):
    sizes = {"n": batch, "c": channels, "h": height, "w": width}
    sides = [sizes[side] for side in inside]
    # Any side except the channels may be dynamic; a dynamic batch is one image.
    for place, side in enumerate(inside):
        if side != "c" and (side != "n" or batch == 1) and data.draw(st.booleans()):
            sides[place] = side
    # The model must show which side the channels are.
    told = [side for side in (sides[1], sides[3]) if side in (1, 3, 4)] == [channels]
    dtype = data.draw(st.sampled_from(FRAMES))
    seed = data.draw(st.integers(0, 99))
    image = (
        np.random.default_rng(seed)
        .integers(0, 128, [sizes[side] for side in outside])
        .astype(dtype)
    )
    if data.draw(st.booleans()):  # a view with another order of rows, as after a flip or a crop
        image = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    with tempfile.TemporaryDirectory() as folder:
        context = opened(write_model(folder, sides, kind=kind, mean="1 2 3", std="4 8 16"))
        outputs = context.inference([image], data_format=outside)
    if not told:
        assert outputs is None or outputs[0].size == image.size
        return
    plain = (
        image.astype(np.float64)
        if outside == "nhwc"
        else image.astype(np.float64).transpose(0, 2, 3, 1)
    )
    if kind != TensorProto.UINT8:
        plain = (plain - np.resize([1, 2, 3], channels)) / np.resize([4, 8, 16], channels)
    expected = plain if inside == "nhwc" else plain.transpose(0, 3, 1, 2)
    assert outputs is not None, context.error
    np.testing.assert_allclose(
        outputs[0], expected, rtol=2e-3 if kind == TensorProto.FLOAT16 else 1e-6
    )


def test_the_onnx_beside_a_rknn_of_ultralytics_runs(context, tmp_path):
    write_model(tmp_path, [1, 3, 4, 6], name="yolo11n.onnx")
    for path in (tmp_path / "yolo11n-rk3588.rknn", str(tmp_path / "yolo11n.rknn")):
        assert context.load_rknn(path) == context.init_runtime() == 0, context.error
        np.testing.assert_allclose(context.inference([IMAGE])[0], FED)


@pytest.mark.parametrize("path", [None, 5, "", b"none.rknn", "a\0b.rknn", ["x"], Path("none.rknn")])
def test_an_invalid_path_returns_minus_one_with_a_reason(context, path):
    assert context.load_rknn(path) == -1
    assert context.error
