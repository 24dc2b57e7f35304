"""runtimes/teflon.py, the .tflite files of models/ and convert.py --to tflite, with LiteRT on this
machine's CPU. test_teflon_box.py has the real delegate."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import cv2
import layouts
import numpy as np
import pytest
from conftest import ROOT

import rknnpool
import runtimes
from funcs import resnet
from runtimes import cpu
from vision.errors import InputError
from vision.model import describe

interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="ai-edge-litert is not installed"
)
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

from runtimes import rocket, teflon  # noqa: E402

sys.path.insert(0, str(ROOT / "models"))
import convert  # noqa: E402
import driver_fixes  # noqa: E402
import to_tflite  # noqa: E402

MODELS = ("yolov5n", "yolov8n", "resnet18")
every_model = pytest.mark.parametrize("name", MODELS)


def opened(path, runtime=teflon.RKNNLite):
    context = runtime()
    assert context.load_rknn(str(path)) == 0 and context.init_runtime() == 0, context.error
    return context


def model_path(name):
    return ROOT / f"models/{name}_emoji.rknn"


@pytest.fixture
def image(demo_frames):
    def of_size(width, height):
        return cv2.resize(demo_frames[20], (width, height))[np.newaxis, ..., ::-1].copy()

    return of_size


@every_model
def test_outputs_have_the_layout_order_and_approximate_values_of_the_onnx(name, image):
    frame = image(*describe(model_path(name)).size)
    tflite, onnx_outputs = (
        opened(model_path(name), runtime).inference([frame])
        for runtime in (teflon.RKNNLite, cpu.RKNNLite)
    )
    assert [output.shape for output in tflite] == [output.shape for output in onnx_outputs]
    for ours, theirs in zip(tflite, onnx_outputs):
        assert ours.dtype == np.float32
        alike = theirs.std() < 0.01 or np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9
        assert alike and np.abs(ours - theirs).mean() < 0.02 * max(1, np.ptp(theirs))


def test_raw_outputs_represent_the_same_numbers(image):
    context = opened(model_path("yolov8n"))
    frame = image(640, 640)
    floats = context.inference([frame])
    for output, (stored, scale, zero_point) in zip(floats, context.inference_raw([frame])):
        assert stored.dtype == np.uint8
        np.testing.assert_allclose(
            (stored.astype(np.float32) - zero_point) * np.float32(scale), output, rtol=1e-6
        )
    first = context.inference([frame], reuse_outputs=True)[0]
    assert context.inference([frame], reuse_outputs=True)[0] is first
    assert floats[0] is not first


def test_layout_and_dtype_of_a_frame_do_not_change_the_outputs(image):
    context = opened(model_path("resnet18"))
    frame = image(224, 224)
    wanted = context.inference([frame])[0]
    for inputs, options in (
        ([frame.astype(np.float32)], {}),
        (frame, {}),
        ([frame[..., ::-1][..., ::-1]], {}),
        ([frame.transpose(0, 3, 1, 2)], {"data_format": "nchw"}),
        ([frame.transpose(0, 3, 1, 2)], {"data_format": ["nchw"]}),
    ):
        np.testing.assert_array_equal(context.inference(inputs, **options)[0], wanted)


def test_an_invalid_frame_is_refused_and_the_next_one_processed(image):
    context = opened(model_path("resnet18"))
    for wrong in (
        [image(224, 224)[0]],
        [image(200, 224)],
        [],
        None,
        3,
        ["x"],
        [image(224, 224)] * 2,
        [np.array(["a"])],
    ):
        assert context.inference(wrong) is None and "resnet18_emoji.tflite takes" in context.error
    assert context.inference([image(224, 224)]) is not None and context.error is None
    context.release()
    context.release()
    assert context.inference([image(224, 224)]) is None and "init_runtime" in context.error


def test_the_pool_runs_a_tflite_with_any_core_mask_and_no_runtime_given(demo_frames):
    rknn = rknnpool.rknnPoolExecutor(
        str(model_path("resnet18")), 2, resnet.detect, runtime=teflon.RKNNLite, coreMask=7
    )
    plain = rknnpool.rknnPoolExecutor(ROOT / "models/resnet18_emoji.tflite", 1, resnet.detect)
    with rknn, plain:
        for ours, theirs in zip(rknn.map(demo_frames[:3]), plain.map(demo_frames[:3])):
            np.testing.assert_array_equal(ours.classes, theirs.classes)


# ---- what is missing ----


def test_a_missing_tflite_is_reported_with_the_command_that_makes_it(main_py, tmp_path):
    shutil.copy(model_path("resnet18"), tmp_path / "my-rk3588.rknn")
    done = main_py(
        "models/page.jpg",
        "--headless",
        "--runtime",
        "teflon",
        "--model",
        tmp_path / "my-rk3588.rknn",
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "my-rk3588.tflite: no such file" in done.stderr
        and f"{tmp_path}/my.onnx --to tflite" in done.stderr
    )
    with pytest.raises(RuntimeError, match="--to tflite"):
        rknnpool.rknnPoolExecutor(
            str(tmp_path / "my-rk3588.rknn"), 1, resnet.detect, runtime=teflon.RKNNLite
        )


def test_the_tflite_is_found_beside_a_rknn_and_in_a_folder(tmp_path):
    shutil.copy(ROOT / "models/resnet18_emoji.tflite", tmp_path / "my.tflite")
    for name in ("my.rknn", "my-rk3588.rknn", "my.onnx", "my.tflite", ""):
        assert teflon.find_tflite(tmp_path / name) == str(tmp_path / "my.tflite")
        assert runtimes.model_for("teflon", str(tmp_path / name), "rk3588") == (
            str(tmp_path / "my.tflite"),
            None,
        )
    shutil.copy(tmp_path / "my.tflite", tmp_path / "other.tflite")
    with pytest.raises(InputError, match="my.tflite, other.tflite"):
        runtimes.model_for("teflon", str(tmp_path), None)


def test_the_missing_package_is_named_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    context = teflon.RKNNLite()
    assert context.load_rknn(model_path("resnet18")) == 0 and context.init_runtime() == -1
    assert "pip install ai-edge-litert" in context.error


def test_a_file_that_is_not_tflite_is_refused_in_one_sentence(tmp_path, main_py):
    path = tmp_path / "x.tflite"
    for content in (
        b"",
        b"no model",
        (ROOT / "models/resnet18_emoji.tflite").read_bytes()[:300000],
    ):
        path.write_bytes(content)
        describe(path)
        context = teflon.RKNNLite()
        assert context.load_rknn(path) == 0 and context.init_runtime() == -1
        assert context.error.startswith(f"{path}: LiteRT cannot open this model")


def test_without_a_device_one_line_says_so_and_the_cpu_is_used(main_py):
    done = main_py(
        "models/page.jpg", "--headless", "--runtime", "teflon", "--model", model_path("resnet18")
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("No NPU by the open driver") == 1
        and "runs on the CPU with LiteRT" in done.stderr
    )


def delegate(tmp_path, code):
    """Compile a library that replaces libteflon.so. Returns its path."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler is installed")
    (tmp_path / "delegate.c").write_text(code)
    path = tmp_path / "delegate.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, tmp_path / "delegate.c"], check=True)
    return path


@pytest.mark.parametrize(
    "code, reason",
    [
        ("int x;", "is not a delegate for LiteRT"),
        (
            "void *tflite_plugin_create_delegate() { return 0; } "
            "void tflite_plugin_destroy_delegate(void *d) {}",
            "finds no device: /dev/accel/accel0 is missing",
        ),
        (None, "cannot open shared object file"),
    ],
)
def test_an_unusable_library_is_reported_with_the_reason(tmp_path, main_py, code, reason):
    path = delegate(tmp_path, code) if code else tmp_path / "none.so"
    done = main_py(
        "models/page.jpg",
        "--headless",
        "--runtime",
        "teflon",
        "--model",
        model_path("resnet18"),
        env={**os.environ, "TEFLON_LIB": str(path)},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert reason in done.stderr and done.stderr.count(str(path)) <= 2


def test_a_board_with_only_the_open_driver_gets_advice(monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "ROCKET", (str(tmp_path),))
    assert "--runtime teflon" in runtimes.missing()


# ---- the description of a .tflite ----


@every_model
def test_a_tflite_has_the_same_description_as_its_onnx(name, tmp_path):
    ours, theirs = (describe(model_path(name).with_suffix(end)) for end in (".tflite", ".onnx"))
    assert (ours.inputs, ours.outputs, ours.size, ours.layout) == (
        theirs.inputs,
        theirs.outputs,
        theirs.size,
        "NCHW",
    )
    # without the metadata behind the model, the shapes are those of the model itself
    shutil.copy(model_path(name).with_suffix(".tflite"), tmp_path / "x.tflite")
    with zipfile.ZipFile(tmp_path / "x.tflite") as archive:
        end = archive.getinfo("metadata.json").header_offset
    os.truncate(tmp_path / "x.tflite", end)
    bare = describe(tmp_path / "x.tflite")
    assert [shape for _, shape in bare.outputs] == [
        shape for _, shape in theirs.outputs
    ] and bare.metadata == {}
    assert (
        opened(tmp_path / "x.tflite").inference([np.zeros((1, *theirs.size, 3), np.uint8)])
        is not None
    )


def test_names_and_task_are_read_from_ultralytics_metadata(tmp_path):
    shutil.copy(ROOT / "models/yolov5n_emoji.tflite", tmp_path / "x.tflite")
    metadata = {
        "task": "detect",
        "names": {"0": "glove", "1": "helmet"},
        "imgsz": [640, 640],
        "outputs": [["a", [1, 21, 80, 80]], ["b", [1, 21, 40, 40]], ["c", [1, 21, 20, 20]]],
    }
    content = (tmp_path / "x.tflite").read_bytes()
    (tmp_path / "x.tflite").write_bytes(content[: content.index(b"PK\3\4")])
    with zipfile.ZipFile(tmp_path / "x.tflite", "a") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
    model = describe(tmp_path / "x.tflite")
    assert (
        model.names == {0: "glove", 1: "helmet"} and model.task == "detect" and model.classes == 2
    )
    assert model.names_from == str(tmp_path / "x.tflite")
    (tmp_path / "x.txt").write_text("mitten\nhat\n")
    assert describe(tmp_path / "x.tflite").names == ["mitten", "hat"]


def test_damaged_files_raise_no_exception(tmp_path):
    content = bytearray((ROOT / "models/resnet18_emoji.tflite").read_bytes())
    random = np.random.default_rng(1)
    for size in [0, 4, 8, 20, 100, 1000, *random.integers(0, len(content), 30)]:
        (tmp_path / "x.tflite").write_bytes(content[:size])
        describe(tmp_path / "x.tflite")
    for _ in range(30):
        damaged = content.copy()
        for place in random.integers(0, 2000, 20):
            damaged[place] = random.integers(256)
        (tmp_path / "x.tflite").write_bytes(damaged)
        describe(tmp_path / "x.tflite")


# ---- operations that the driver accepts ----


@pytest.mark.parametrize(
    "name, taken, pieces", [("yolov5n", 67, 20), ("yolov8n", 69, 28), ("resnet18", 25, 8)]
)
def test_the_driver_accepts_the_documented_operations_and_no_dangerous_addition(
    name, taken, pieces
):
    """The numbers are those of the delegate of Mesa 26.1.6 (test_teflon_box.py)."""
    plan = rocket.plan(model_path(name).with_suffix(".tflite"))
    assert (sum(each.taken for each in plan.operations), len(plan.pieces)) == (taken, pieces)
    assert plan.dangers == [] and plan.unsigned


def test_the_table_of_operations_ends_in_one_sentence_if_there_is_no_model(tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(model_path("yolov5n").with_suffix(".tflite").read_bytes()[:3000])
    without_litert = "import sys; sys.modules['ai_edge_litert'] = None; "
    run_it = "runpy.run_module('runtimes.rocket', run_name='__main__', alter_sys=True)"
    for code, path, sentence in (
        (run_it, tmp_path / "none.tflite", "none.tflite: cannot be read (No such file"),
        (run_it, damaged, "damaged.tflite: not a .tflite, or damaged."),
        (without_litert + run_it, damaged, "needs the package ai-edge-litert"),
    ):
        command = [sys.executable, "-c", "import runpy; " + code, str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "") and sentence in done.stderr
        assert done.stderr.count("\n") == 1


def model_of(name):
    content = model_path(name).with_suffix(".tflite").read_bytes()
    return schema.ModelT.InitFromPackedBuf(content)


def small_model(*operations):
    """A ModelT of operations (name, tensors read, tensor written). Tensors 7 and 8 are the weights
    and biases of all convolutions."""
    model = schema.ModelT()
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.zeros(4, np.uint8)
    model.operatorCodes, (graph,) = [], [schema.SubGraphT()]
    model.subgraphs, graph.operators, graph.tensors = [graph], [], []
    for number in range(10):
        tensor = schema.TensorT()
        tensor.buffer, tensor.type = int(number in (7, 8)), schema.TensorType.UINT8
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = [1.0]
        graph.tensors.append(tensor)
    for name, inputs, output in operations:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs = inputs + ([7, 8] if name == "CONV_2D" else [])
        operator.outputs = [output]
        if name == "CONV_2D":
            operator.builtinOptions = schema.Conv2DOptionsT()
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    return model


def test_additions_in_the_wrong_order_and_signed_tensors_are_detected():
    model = model_of("resnet18")
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        if code == schema.BuiltinOperator.ADD:
            operator.inputs = operator.inputs[::-1]
    assert len(rocket.plan_of(model, schema).dangers) == 5
    for tensor in model.subgraphs[0].tensors:
        tensor.type = (
            schema.TensorType.INT8 if tensor.type == schema.TensorType.UINT8 else tensor.type
        )
    assert not rocket.plan_of(model, schema).unsigned


@pytest.mark.parametrize(
    "second, danger",
    [
        (0, True),  # written on the CPU, and not read by a convolution of the piece
        (1, False),  # the input of a convolution
        (2, False),  # written in the piece, before the first operand
        (4, True),  # written in the piece, after the first operand
    ],
)
def test_an_addition_needs_its_second_operand_in_its_own_piece(second, danger):
    model = small_model(
        ("PAD", [9], 0),
        ("PAD", [9], 1),
        ("CONV_2D", [1], 2),
        ("CONV_2D", [2], 3),
        ("CONV_2D", [2], 4),
        ("ADD", [3, second], 5),
    )
    plan = rocket.plan_of(model, schema)
    assert plan.pieces == [[2, 3, 4, 5]] and plan.dangers == [5] * danger


def test_convolutions_with_scales_per_channel_or_dilation_run_on_the_cpu():
    model = model_of("resnet18")
    convolutions = [
        operator
        for operator in model.subgraphs[0].operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.CONV_2D
    ]
    weights = model.subgraphs[0].tensors[convolutions[0].inputs[1]].quantization
    weights.scale, weights.zeroPoint = np.ones(16, np.float32), np.zeros(16, np.int64)
    convolutions[1].builtinOptions.dilationWFactor = 2
    convolutions[2].builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.TANH
    assert sum(each.taken for each in rocket.plan_of(model, schema).operations) == 22


# ---- convert.py --to tflite: tests without TensorFlow ----


@pytest.fixture
def run(monkeypatch, capsys):
    def convert_py(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            convert.main()
        return ended.value.code, capsys.readouterr().err

    return convert_py


def test_a_missing_package_of_convert_is_named_in_one_sentence(run, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "0.png"), np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "onnx2tf", None)
    path = ROOT / "models/resnet18_emoji.onnx"
    for arguments, sentence in (
        ([path], "needs --calibration"),
        ([path, "--dtype", "fp"], "--dtype fp"),
        (
            [path, "--calibration", photos, "--out", tmp_path / "x.tflite"],
            "models/requirements-tflite.txt",
        ),
        ([tmp_path / "none.onnx", "--calibration", photos], "no such file"),
    ):
        code, error = run(*arguments, "--to", "tflite")
        assert code == 2 and sentence in error and error.count("\n") == 1, error
    assert not (tmp_path / "x.tflite").exists()


def test_a_model_whose_boxes_need_more_than_8_bits_is_refused(run, tmp_path):
    (tmp_path / "photos").mkdir()
    for options in ({}, {"relative": "True"}):
        path = layouts.save(layouts.ultralytics(), tmp_path / "one.onnx", task="detect", **options)
        code, error = run(path, "--to", "tflite", "--calibration", tmp_path / "photos")
        assert code == 2 and "Rockchip's heads" in error and error.count("\n") == 1


def test_outputs_are_matched_by_their_values():
    random = np.random.default_rng(3)
    wanted = [
        random.normal(size=(1, 80, 80, 80)),
        random.normal(size=(1, 64, 80, 80)),
        random.normal(size=(1, 80, 80, 80)),
        random.normal(size=(1, 84, 300)),
        random.normal(size=(1, 80)),
    ]
    given = [
        (array if array.ndim < 4 else array.transpose(0, 2, 3, 1)) + random.normal(0, 0.01, 1)
        for array in wanted
    ]
    places = [3, 2, 4, 0, 1]
    found, alike = to_tflite.order(wanted, [given[place] for place in places])
    assert [places[place] for place in found] == [0, 1, 2, 3, 4] and alike > 0.99
    with pytest.raises(ValueError, match="not among"):
        to_tflite.order(wanted, given[:4])


def test_unsigned_tensors_represent_the_same_numbers(image, tmp_path):
    """Converting there and back gives the same model, and the int8 model gives the same outputs."""
    model, kinds = model_of("resnet18"), schema.TensorType
    graph = model.subgraphs[0]
    stored = [None if buffer.data is None else np.array(buffer.data) for buffer in model.buffers]
    for place in {tensor.buffer for tensor in graph.tensors if tensor.type == kinds.UINT8}:
        if model.buffers[place].data is not None:
            model.buffers[place].data = np.asarray(model.buffers[place].data, np.uint8) ^ 128
    for tensor in graph.tensors:
        if tensor.type == kinds.UINT8:
            tensor.type, tensor.quantization.zeroPoint = (
                kinds.INT8,
                tensor.quantization.zeroPoint - 128,
            )
    signed = opened(save(model, tmp_path / "signed.tflite")).inference([image(224, 224)])[0]
    driver_fixes.unsigned(model, schema)
    for buffer, before in zip(model.buffers, stored):
        assert before is None or np.array_equal(buffer.data, before)
    unsigned = opened(save(model, tmp_path / "unsigned.tflite")).inference([image(224, 224)])[0]
    assert np.abs(unsigned - signed).max() < 0.3 < signed.std()


def save(model, path):
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    metadata = {"mean": "123.675 116.28 103.53", "std": "58.395 57.12 57.375"}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
    return path


def test_additions_moved_to_the_cpu_give_the_same_outputs(tmp_path, image):
    model = model_of("resnet18")
    before = opened(ROOT / "models/resnet18_emoji.tflite").inference([image(224, 224)])[0]
    places = [
        place
        for place, each in enumerate(rocket.plan_of(model, schema).operations)
        if each.name == "ADD"
    ]
    driver_fixes.without(places, model, schema)
    names = [each.name for each in rocket.plan_of(model, schema).operations]
    assert (
        len(places) == 5
        and "ADD" not in names
        and names.count("SUB") == names.count("MUL") == 3 + len(places)
    )
    after = opened(save(model, tmp_path / "x.tflite")).inference([image(224, 224)])[0]
    assert np.abs(after - before).max() < 0.3 < before.std()


def test_additions_are_reordered_for_the_driver():
    model = model_of("resnet18")
    for operator in model.subgraphs[0].operators:
        if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.ADD:
            operator.inputs = operator.inputs[::-1]
    driver_fixes.in_order(model, schema)
    plan = rocket.plan_of(model, schema)
    assert plan.dangers == [] and sum(each.taken for each in plan.operations) == 25
