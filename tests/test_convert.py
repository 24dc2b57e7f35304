"""models/convert.py: its calls of rknn-toolkit2, the metadata beside the .rknn, and coordinates
that fit into int8. A fake toolkit records the calls; the real one has several GB. test_resnet.py
has more tests of convert.py."""

import re
import sys

import cv2
import layouts
import numpy as np
import onnx
import pytest
import yaml
from conftest import ROOT, full_disk
from PIL import Image

from funcs import resnet, ultralytics
from runtimes.cpu import RKNNLite
from vision.coco import COCO_CLASSES
from vision.errors import InputError
from vision.letterbox import letterbox
from vision.model import describe

sys.path.insert(0, str(ROOT / "models"))
import convert  # noqa: E402
from onnx_model import model_input  # noqa: E402
from relative_boxes import with_relative_boxes  # noqa: E402

NAMES = dict(enumerate(COCO_CLASSES))
SMALL = 320, 320  # of an input: a quarter of the work
TOOLKIT = """
import cv2, json, sys
from pathlib import Path
class RKNN:
    def __init__(self, **options):
        self.calls = {}
    def config(self, **options):
        self.calls["config"] = options
    def load_onnx(self, path, **options):
        self.calls["load"], self.onnx = options, Path(path).read_bytes()
        return 0
    def build(self, do_quantization, dataset):
        print("a line of the toolkit's")
        if FAILS == "IndexError":
            raise ValueError("Traceback (most recent call last):\\n  ...\\n"
                             "IndexError: list index out of range\\n")
        if FAILS == "exit":
            sys.exit(-1)
        self.calls["quantised"] = do_quantization
        names = Path(dataset).read_text().split() if do_quantization else []
        self.calls["images"] = [cv2.imread(name).shape for name in names]
        return -1 if FAILS == "code" else 0
    def export_rknn(self, path):
        if FAILS == "Ctrl-C":
            Path(path).write_bytes(b"RKNN")
            raise KeyboardInterrupt
        if FAILS == "disk full":
            Path(path).write_bytes(b"RKNN")
            raise ValueError("Traceback (most recent call last):\\n  ...\\n"
                             "OSError: [Errno 28] No space left on device: "
                             "'check.rknn' -> 'm.rknn'\\n")
        Path(path).write_bytes(b"RKNN" + bytes(80))
        RKNN.last_calls, RKNN.last_onnx = json.loads(json.dumps(self.calls)), self.onnx
        return 0
    def init_runtime(self):
        from runtimes.cpu import RKNNLite
        path = Path(__file__).with_name("built.onnx")
        path.write_bytes(self.onnx)
        self.context = RKNNLite()
        return self.context.load_rknn(path) or self.context.init_runtime()
    def inference(self, inputs, data_format):
        worse = 0.2 if FAILS == "bad int8" else 1
        return [output * worse for output in self.context.inference(inputs)]
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(arguments of convert.py, fails=None): its exit code, stdout, stderr."""
    package = tmp_path / "toolkit" / "rknn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "toolkit"))

    def convert_py(*arguments, fails=None):
        (package / "api.py").write_text(f"FAILS = {fails!r}\n" + TOOLKIT)
        for name in ("rknn", "rknn.api"):
            sys.modules.pop(name, None)
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        try:
            convert.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    yield convert_py
    for name in ("rknn", "rknn.api"):
        sys.modules.pop(name, None)


@pytest.fixture
def photos(tmp_path, demo_frames):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(demo_frames[number], (320, 180)))
    return folder


def folder_with(tmp_path, model, name="model.onnx", **metadata):
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return layouts.save(model, folder / name, **metadata)


def calls():
    return sys.modules["rknn.api"].RKNN.last_calls


def built():
    """The ONNX file that the toolkit was given last: bytes."""
    return sys.modules["rknn.api"].RKNN.last_onnx


def test_an_int8_model_with_one_output_gets_relative_coordinates_and_a_metadata_file(
    run, tmp_path, photos
):
    path = folder_with(tmp_path, layouts.ultralytics(), task="detect", names=NAMES)
    code, out, error = run(path, "--calibration", photos)
    assert code == 0, error
    metadata = yaml.safe_load(path.with_suffix(".yaml").read_text())
    assert metadata == {"task": "detect", "names": NAMES, "imgsz": [640, 640], "relative": True}
    model = describe(path.with_suffix(".rknn"), soc="rk3588")
    assert (
        model.relative
        and model.names == NAMES
        and model.task == "detect"
        and model.size == (640, 640)
    )
    # The last node joins scores and boxes, which are relative now.
    end = onnx.load_from_string(built()).graph.node[-1]
    assert end.op_type == "Concat" and [name.endswith("_relative") for name in end.input] == [
        True,
        False,
    ]
    assert calls() == {
        "config": {
            "mean_values": [[0, 0, 0]],
            "std_values": [[255, 255, 255]],
            "target_platform": "rk3588",
            "quantized_algorithm": "normal",
        },
        "load": {},
        "quantised": True,
        "images": [[640, 640, 3]] * 2,
    }


def test_the_metadata_of_a_converted_rknn_does_not_apply_to_its_onnx(run, tmp_path, photos):
    path = folder_with(tmp_path, layouts.ultralytics(size=SMALL), task="detect", names=NAMES)
    for _ in range(2):  # the second conversion finds the files of the first
        assert run(path, "--calibration", photos)[0] == 0
        end = onnx.load_from_string(built()).graph.node[-1]
        assert [name.endswith("_relative") for name in end.input] == [True, False]
        for name in (".onnx", ".rknn"):  # on a PC both mean the .onnx
            assert describe(path.with_suffix(name)).relative is False
        assert describe(path.with_suffix(".rknn"), soc="rk3588").relative is True
    path.unlink()
    assert describe(path.with_suffix(".rknn"), soc="rk3588").relative is True


def test_a_float_model_is_not_edited(run, tmp_path):
    path = folder_with(tmp_path, layouts.ultralytics(), task="detect", names=NAMES)
    assert run(path, "--dtype", "fp")[0] == 0
    assert built() == path.read_bytes()
    assert yaml.safe_load(path.with_suffix(".yaml").read_text())["relative"] is False


def test_the_metadata_of_a_model_does_not_apply_to_others_in_its_folder(run, tmp_path):
    path = folder_with(tmp_path, layouts.ultralytics(), task="detect", names=NAMES)
    assert run(path, "--dtype", "fp")[0] == 0
    other = folder_with(tmp_path, layouts.ultralytics(), "other.onnx")
    assert describe(path.with_suffix(".rknn"), soc="rk3588").names == NAMES
    assert describe(other).names is None


def test_a_file_of_ultralytics_that_describes_the_network_is_kept(run, tmp_path):
    path = folder_with(tmp_path, layouts.ultralytics(), task="detect", names=NAMES)
    path.with_suffix(".yaml").write_text("backbone: []")
    assert run(path, "--dtype", "fp")[0] == 0
    assert path.with_suffix(".yaml").read_text() == "backbone: []"
    assert describe(path.with_suffix(".rknn"), soc="rk3588").names == NAMES


def test_a_rectangular_model_is_calibrated_with_pictures_of_its_shape(run, tmp_path, photos):
    path = folder_with(tmp_path, layouts.ultralytics(size=(320, 192)))
    assert run(path, "--calibration", photos)[0] == 0
    assert calls()["images"] == [[192, 320, 3]] * 2
    assert yaml.safe_load(path.with_suffix(".yaml").read_text())["imgsz"] == [192, 320]


def test_rockchips_heads_are_not_edited(run, tmp_path, photos):
    path = tmp_path / "out.onnx"
    path.write_bytes((ROOT / "models/yolov8n_emoji.onnx").read_bytes())
    assert run(path, "--calibration", photos)[0] == 0
    assert built() == path.read_bytes()


@pytest.mark.parametrize(
    "sides, metadata, shape",
    [
        ((0, 3, 640, 640), {}, [1, 3, 640, 640]),
        ((0, 3, 0, 0), {"imgsz": [384, 640]}, [1, 3, 384, 640]),
    ],
)
def test_dynamic_sides_are_replaced_by_fixed_ones(run, tmp_path, sides, metadata, shape):
    model = layouts.ultralytics()
    for side, value in zip(model.graph.input[0].type.tensor_type.shape.dim, sides):
        side.Clear() if not value else setattr(side, "dim_value", value)
    path = folder_with(tmp_path, model, **metadata)
    assert run(path, "--dtype", "fp")[0] == 0
    assert calls()["load"] == {"inputs": ["images"], "input_size_list": [shape]}


@pytest.mark.parametrize("sides", [(2, 3, 640, 640), (1, 3, 0, 0)])
def test_unsupported_input_shapes_are_refused_in_one_sentence(run, tmp_path, sides):
    model = layouts.ultralytics()
    for side, value in zip(model.graph.input[0].type.tensor_type.shape.dim, sides):
        side.Clear() if not value else setattr(side, "dim_value", value)
    code, _, error = run(folder_with(tmp_path, model), "--dtype", "fp")
    assert code == 2 and len(error.splitlines()) == 1 and "its input has the shape" in error


@pytest.mark.parametrize(
    "fails, words",
    [
        ("IndexError", "rknn-toolkit2==2.3.2"),
        ("exit", "cannot build"),
        ("code", "see its own message above"),
    ],
)
def test_errors_of_the_toolkit_are_reported_in_one_sentence(run, tmp_path, fails, words):
    code, _, error = run(folder_with(tmp_path, layouts.ultralytics()), "--dtype", "fp", fails=fails)
    assert code == 2 and len(error.splitlines()) == 1 and words in error


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda: layouts.ultralytics(end2end=True), "end2end=False"),
        (layouts.yolov5_own, "export.py --rknpu"),
    ],
)
def test_models_that_int8_would_make_useless_are_refused_with_advice(
    run, tmp_path, photos, model, words
):
    path = folder_with(tmp_path, model())
    code, _, error = run(path, "--calibration", photos)
    assert (
        code == 2
        and len(error.splitlines()) == 1
        and words in error
        and not path.with_suffix(".rknn").exists()
    )


def test_models_that_no_npu_runs_are_refused_for_every_type(run, tmp_path):
    model = layouts.ultralytics()
    model.graph.node.append(onnx.helper.make_node("NonMaxSuppression", ["a", "b"], ["nms"]))
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path))
    code, _, error = run(path, "--dtype", "fp")
    assert (code, error) == (
        2,
        f"{path}: contains NMS, which no NPU runs. Export it with nms=False.\n",
    )


@pytest.mark.parametrize(
    "content, name, expected",
    [
        (b"PK", "m.pt", "a PyTorch model, .* yolo export model=m.pt format=onnx"),
        (b"", "m.onnx", "not an ONNX model but an empty"),
        (b"RKNN" + bytes(80), "m.rknn", "not an ONNX model but a .rknn"),
        (
            (ROOT / "models/resnet18_emoji.onnx").read_bytes()[:-9],
            "m.onnx",
            "not an ONNX model but a file .* is cut off",
        ),
    ],
)
def test_a_file_that_is_not_onnx_is_refused_before_the_toolkit_reads_it(
    run, tmp_path, content, name, expected
):
    (tmp_path / name).write_bytes(content)
    code, _, error = run(tmp_path / name, "--dtype", "fp")
    assert code == 2 and len(error.splitlines()) == 1 and re.search(f"{name}: {expected}", error), (
        error
    )


def test_a_read_only_output_folder_is_reported_first_and_no_partial_model_is_left(run, tmp_path):
    path, folder = folder_with(tmp_path, layouts.ultralytics()), tmp_path / "folder.rknn"
    folder.mkdir()
    for out, expected in (
        (folder, "cannot be written (Is a directory)"),
        (path, "must end in .rknn"),
        (tmp_path / "none" / "x.rknn", "there is no folder"),
    ):
        code, _, error = run(path, "--dtype", "fp", "--out", out, fails="never asked")
        assert code == 2 and len(error.splitlines()) == 1 and expected in error, error
    code, _, error = run(path, "--dtype", "fp", fails="disk full")
    assert (
        code == 2
        and error == f"{path.with_suffix('.rknn')}: cannot be written (No space left on device).\n"
    )
    assert {entry.name for entry in path.parent.iterdir()} == {"model.onnx"}


@pytest.mark.parametrize("fails", ["disk full", "Ctrl-C"])
def test_the_earlier_model_stays_until_the_new_one_is_complete(run, tmp_path, fails):
    path = folder_with(tmp_path, layouts.ultralytics(), task="detect", names=NAMES)
    path.with_suffix(".rknn").write_bytes(b"the earlier one")
    code, _, _ = run(path, "--dtype", "fp", fails=fails)
    assert code == (2 if fails == "disk full" else 130)
    assert path.with_suffix(".rknn").read_bytes() == b"the earlier one"
    assert {entry.name for entry in path.parent.iterdir()} == {"model.onnx", "model.rknn"}


def test_a_full_temporary_folder_is_named(run, tmp_path, photos):
    edited = folder_with(tmp_path, layouts.ultralytics())
    (tmp_path / "sizes").write_bytes(bytes(20000))  # smaller than a model or a picture's .png
    for path, name in ((edited, "model.onnx"), (ROOT / "models/yolov5n_emoji.onnx", "0.png")):
        with full_disk(tmp_path / "sizes"):
            code, _, error = run(path, "--calibration", photos, "--out", tmp_path / "m.rknn")
        assert code == 2 and error.count("\n") == 1 and f"/{name}: cannot be written (" in error


def test_a_temporary_folder_may_have_a_space_in_its_name(run, tmp_path, photos, monkeypatch):
    (tmp_path / "my files").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "my files"))
    path = folder_with(tmp_path, layouts.ultralytics())
    code, _, error = run(path, "--calibration", photos)
    assert code == 0 and calls()["images"] == [[640, 640, 3]] * 2, error


def test_pictures_that_floats_do_not_need_are_mentioned(run, tmp_path):
    path = folder_with(tmp_path, layouts.ultralytics())
    code, _, error = run(path, "--dtype", "fp", "--calibration", "none")
    assert (code, error) == (0, "--dtype fp needs no pictures: --calibration is ignored.\n")


def test_dynamic_sides_that_the_toolkit_refuses_are_reported_with_advice(run, tmp_path):
    model = layouts.ultralytics()
    model.graph.input[0].type.tensor_type.shape.dim[2].Clear()
    code, _, error = run(
        folder_with(tmp_path, model, imgsz=[640, 640]), "--dtype", "fp", fails="code"
    )
    assert code == 2 and error.endswith("its sides are open: export it with dynamic=False.\n")


def test_an_unreadable_picture_is_named_and_skipped(run, tmp_path, photos):
    path = folder_with(tmp_path, layouts.ultralytics(size=SMALL))
    (photos / "0.png").write_bytes(b"no picture")
    code, _, error = run(path, "--calibration", photos)
    assert code == 0 and "0.png" in error and "skipped" in error
    assert len(calls()["images"]) == 1
    (photos / "1.png").write_bytes(b"no picture")
    code, _, error = run(path, "--calibration", photos)
    assert code == 2 and error.endswith("none of its pictures can be read.\n")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--count", 0], "--count 0: must be at least 1.\n"),
        (["--interval", 0], "--interval 0: must be more than 0 seconds.\n"),
        (["--calibration", "none"], "--calibration none: no such file.\n"),
        ([], "a camera, a URL, a video, or a folder of pictures.\n"),
    ],
)
def test_bad_input_is_reported_in_one_sentence(run, tmp_path, arguments, said):
    path = folder_with(tmp_path, layouts.ultralytics())
    code, _, error = run(path, *arguments)
    assert code == 2 and error.endswith(said) and error.count("\n") == 1


def test_bad_arguments_leave_the_onnx_as_it_was(run, tmp_path):
    path = folder_with(tmp_path, layouts.ultralytics())
    before = path.read_bytes()
    assert run(path, "--count", 0, "--mean", 1, 2, 3)[0] == 2
    assert path.read_bytes() == before


def test_a_folder_is_not_a_model(run, tmp_path):
    code, _, error = run(tmp_path, "--dtype", "fp", "--out", tmp_path / "m.rknn")
    assert (code, error) == (2, f"{tmp_path}: is a folder. Name the .onnx in it.\n")


# ---- the comparison with the float model ----


def test_int8_is_compared_on_a_picture_that_did_not_calibrate_it(run, tmp_path, photos):
    path = tmp_path / "out.onnx"
    path.write_bytes((ROOT / "models/yolov8n_emoji.onnx").read_bytes())
    code, out, error = run(path, "--calibration", photos, "--algorithm", "mmse")
    assert code == 0, error
    found = re.search(r"finds 100.0% of the float model's (\d+) detections in 1 frame ", out)
    assert found and int(found[1]) > 5 and "and 0 that the float model does not find" in out
    assert "person" in out and "This is low" not in out
    assert calls()["config"]["quantized_algorithm"] == "mmse"
    code, out, _ = run(path, "--calibration", photos, fails="bad int8")
    assert code == 0 and "This is low for" in out and "--dtype fp" in out
    assert path.with_suffix(".rknn").exists()


def test_relative_coordinates_are_compared_with_pixels(run, tmp_path, photos):
    path = folder_with(tmp_path, layouts.ultralytics(size=SMALL), task="detect", names=NAMES)
    code, out, error = run(path, "--calibration", photos)
    assert code == 0 and "finds 100.0% of the float model's" in out, error


def test_a_single_picture_leaves_nothing_to_compare(run, tmp_path, photos):
    path = folder_with(tmp_path, layouts.ultralytics(size=SMALL))
    code, out, _ = run(path, "--calibration", photos / "0.png")
    assert code == 0 and "Agreement: unknown, because there is only one picture." in out
    assert len(calls()["images"]) == 1


def test_the_frames_of_a_video_are_kept_beside_the_model(run, tmp_path, clip):
    path = folder_with(tmp_path, layouts.ultralytics(size=SMALL))
    code, out, error = run(path, "--calibration", clip, "--count", 3)
    assert code == 0, error
    folder = path.parent / "model_frames"
    assert len(list(folder.iterdir())) == 3 and f"--calibration {folder}" in out


# ---- on a board ----


def test_on_a_board_its_own_soc_is_the_target(run, soc, tmp_path):
    path = folder_with(tmp_path, layouts.ultralytics())
    for name, expected in (("rk3576", "rk3576"), ("rk3568", "rk3568"), ("rk3588s", "rk3588")):
        soc(name)
        assert run(path, "--dtype", "fp")[0] == 0
        assert calls()["config"]["target_platform"] == expected
    assert run(path, "--dtype", "fp", "--target", "rk3562")[0] == 0
    assert calls()["config"]["target_platform"] == "rk3562"


@pytest.mark.parametrize(
    "machine, python, words",
    [
        ("x86_64", (3, 11), ["-m venv", "/requirements.txt"]),
        ("aarch64", (3, 11), ["-m venv", "--no-deps -r", "/requirements-arm64.txt"]),
        ("aarch64", (3, 13), ["uv venv --seed --python 3.12", "--no-deps -r"]),
    ],
)
def test_a_missing_toolkit_is_reported_before_frames_are_taken(
    tmp_path, clip, monkeypatch, capsys, machine, python, words
):
    monkeypatch.setitem(sys.modules, "rknn.api", None)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(sys, "version_info", (*python, 0))
    monkeypatch.setattr("toolkit.FOLDER", tmp_path)
    path = folder_with(tmp_path, layouts.ultralytics())
    monkeypatch.setattr(sys, "argv", ["convert.py", str(path), "--calibration", str(clip)])
    with pytest.raises(SystemExit) as ended:
        convert.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert all(word in error for word in words), error
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(SystemExit):
        convert.main()
    assert capsys.readouterr().err.endswith(f"(docs/models.md): run convert.py with {python}\n")


@pytest.mark.parametrize(
    "given, expected",
    [
        ("rk3588s", "rk3588"),
        ("RK3588S2", "rk3588"),
        ("rk3582", "rk3588"),
        ("rk3576", "rk3576"),
        ("rk3566", "rk3566"),
        ("rk3562", "rk3562"),
    ],
)
def test_a_target_may_be_any_soc_name_of_a_family(run, tmp_path, given, expected):
    path = folder_with(tmp_path, layouts.ultralytics())
    assert run(path, "--dtype", "fp", "--target", given)[0] == 0
    assert calls()["config"]["target_platform"] == expected


def test_an_unknown_target_is_reported(run, tmp_path):
    code, _, error = run(tmp_path / "x.onnx", "--target", "rk3399pro")
    assert code == 2 and "rk3399pro: unknown; its name must begin with one of rk3588" in error


@pytest.mark.parametrize(
    "task, size",
    [
        ("detect", SMALL),
        ("segment", SMALL),
        ("pose", SMALL),
        ("obb", SMALL),
        ("detect", (320, 192)),
    ],
)
def test_an_edited_model_finds_the_same_objects(tmp_path, demo_frames, task, size):
    path = layouts.save(
        layouts.ultralytics(task, size=size),
        tmp_path / "pixels.onnx",
        task=task,
        names=NAMES,
        kpt_shape=[17, 3],
    )
    about = describe(path)
    edited, is_relative = with_relative_boxes(onnx.load(str(path)), about)
    assert is_relative
    layouts.save(
        edited, tmp_path / "relative.onnx", task=task, names=NAMES, kpt_shape=[17, 3], relative=True
    )
    found, frame = [], demo_frames[20][:360, :640]
    for name in ("pixels", "relative"):
        context = RKNNLite()
        assert (
            context.load_rknn(str(tmp_path / f"{name}.onnx")) == 0 and context.init_runtime() == 0
        ), context.error
        context.model = describe(tmp_path / f"{name}.onnx")
        found.append(ultralytics.detect(context, frame))
        raw = context.inference([letterbox(frame, about.size)[0][None]])[0]
        assert (raw[0, :4].max() <= 4) == (name == "relative")
    one, other = found
    np.testing.assert_allclose(one.boxes, other.boxes, atol=0.01)
    np.testing.assert_array_equal(one.classes, other.classes)
    for key in ("keypoints", "corners"):
        if getattr(one, key) is not None:
            np.testing.assert_allclose(getattr(one, key), getattr(other, key), atol=0.01)
    assert len(one) > 3


def test_a_graph_that_cannot_be_edited_is_refused_in_one_sentence(tmp_path):
    graph = layouts.Graph(ROOT / "models/yolov8n_emoji.onnx", (640, 640))
    graph.output(
        graph.add(
            "Concat",
            *(graph.rows(graph.reshape(head, 1, 80, -1), 0, 80) for head in graph.heads[1::3]),
            axis=2,
        ),
        [1, 80, 8400],
    )
    path = layouts.save(graph.model, tmp_path / "x.onnx")
    with pytest.raises(InputError, match="cannot be brought to 0..1"):
        with_relative_boxes(onnx.load(str(path)), describe(path))


def test_ultralytics_classifiers_get_the_whole_shorter_side_scaled_as_by_pillow(
    tmp_path, demo_frames
):
    path = tmp_path / "cls.onnx"
    path.write_bytes((ROOT / "models/resnet18_emoji.onnx").read_bytes())
    model = onnx.load(str(path))
    about = describe(layouts.save(model, path, task="classify", imgsz=[224, 224]))
    fed = model_input(demo_frames[0], model.graph, about)
    np.testing.assert_array_equal(fed, resnet.preprocess(demo_frames[0], about))
    scaled = (
        Image.fromarray(demo_frames[0][..., ::-1])
        .resize((398, 224), Image.BILINEAR)
        .crop((87, 0, 311, 224))
    )
    np.testing.assert_allclose(fed.astype(int), np.asarray(scaled).astype(int), atol=1)
