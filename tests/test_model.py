"""vision/model.py: the description of a model from its file and the files beside it, and the
reasons why it cannot be opened."""

import json
import shutil
import struct
import subprocess
import sys

import onnx
import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx import helper as h

import funcs
from vision.errors import InputError
from vision.model import TASKS, Model, describe, problems, read_names

MODELS = ROOT / "models"
V5 = [("stride8", (1, 255, 80, 80)), ("stride16", (1, 255, 40, 40)), ("stride32", (1, 255, 20, 20))]


def rknn(path, soc="rk3588", toolkit="2.3.2", inputs=(("images", (1, 3, 640, 640)),), outputs=V5):
    """Write a .rknn with the head and end of toolkit 2.x (format 6), but without a network."""
    tensors, graph = [], []
    for end, values in (("input", inputs), ("output", outputs)):
        for number, (name, shape) in enumerate(values):
            graph.append(
                {
                    "left": end,
                    "left_tensor_id": number,
                    "right": "norm_tensor",
                    "right_tensor_id": len(tensors),
                }
            )
            tensors.append(
                {
                    "tensor_id": len(tensors),
                    "url": name,
                    "size": list(shape),
                    "dtype": {"qnt_type": "int8"},
                }
            )
    content = json.dumps(
        {"norm_tensor": tensors, "graph": graph[::-1], "target_platform": [soc], "version": toolkit}
    ).encode()
    body = b"\1\2\3\4" * 16
    path.write_bytes(
        b"RKNN\0\0\0\0"
        + struct.pack("<QQ", 6, len(body))
        + bytes(40)
        + body
        + struct.pack("<Q", len(content))
        + content
    )
    return path


def onnx_file(
    path,
    inputs=(("images", [1, 3, 64, 96]),),
    outputs=(("out", [1, 84, 126]),),
    metadata=None,
    constants=(),
):
    """Write an ONNX graph with these inputs and outputs, using the package onnx. vision/model.py
    does not need it."""

    def infos(values):
        return [h.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values]

    tensors = [h.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name, _ in constants]
    graph = h.make_graph([], "g", infos(tuple(inputs) + tuple(constants)), infos(outputs), tensors)
    model = h.make_model(graph)
    h.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path


# ---- the files themselves ----


@pytest.mark.parametrize(
    "name, size, outputs, classes",
    [
        ("yolov5n", (640, 640), V5, 80),
        (
            "yolov8n",
            (640, 640),
            [
                (f"{kind}{stride}", (1, channels, 640 // stride, 640 // stride))
                for stride in (8, 16, 32)
                for kind, channels in (("boxes", 64), ("classes", 80), ("sum", 1))
            ],
            80,
        ),
        ("resnet18", (224, 224), [("logits", (1, 80))], 80),
    ],
)
def test_the_demo_models_are_described_completely(name, size, outputs, classes):
    for soc in ("rk3588s", None):
        model = describe(MODELS / f"{name}_emoji.rknn", soc)
        assert (model.soc, model.toolkit, model.size, model.layout) == (
            "rk3588",
            "2.5.0",
            size,
            "NCHW",
        )
        assert model.outputs == outputs and model.classes == classes
        assert (
            model.task,
            model.names,
            model.relative,
            model.conf,
            model.iou,
            model.class_ids,
        ) == (
            None,
            None,
            False,
            None,
            None,
            None,
        )
    assert describe(MODELS / f"{name}_emoji.onnx").outputs == outputs


def test_inputs_and_outputs_are_sorted_by_number(tmp_path):
    model = describe(
        rknn(tmp_path / "m.rknn", inputs=[("a", (1, 3, 384, 640)), ("b", (1, 4))]), "rk3588"
    )
    assert model.inputs == [("a", (1, 3, 384, 640)), ("b", (1, 4))] and model.outputs == V5
    assert model.size == (640, 384)


@pytest.mark.parametrize(
    "shape, layout, size",
    [
        ([1, 3, 384, 640], "NCHW", (640, 384)),
        ([1, 384, 640, 3], "NHWC", (640, 384)),
        (["n", 3, "h", "w"], "NCHW", None),
        ([1, 10], None, None),
        ([1, 1, 28, 28], "NCHW", (28, 28)),
    ],
)
def test_the_shape_of_an_onnx_is_read_without_the_package_onnx(tmp_path, shape, layout, size):
    path = onnx_file(tmp_path / "m.onnx", inputs=[("images", shape)])
    code = (
        f"import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None\n"
        f"from vision.model import describe\n"
        f"m = describe({str(path)!r}); print((m.layout, m.size, m.inputs))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    closed = tuple(
        side if isinstance(side, int) else int(place == 0) for place, side in enumerate(shape)
    )
    assert done.stdout.strip() == str((layout, size, [("images", closed)]))


def test_constants_that_older_files_list_as_inputs_are_ignored(tmp_path):
    path = onnx_file(tmp_path / "m.onnx", constants=[("weight", [1])])
    assert [name for name, _ in describe(path).inputs] == ["images"]


def test_an_output_that_is_not_a_tensor_has_no_shape(tmp_path):
    graph = h.make_graph(
        [h.make_node("SequenceConstruct", ["x"], ["s"])],
        "g",
        [h.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [h.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)],
    )
    onnx.save(h.make_model(graph), str(tmp_path / "m.onnx"))
    model = describe(tmp_path / "m.onnx")
    assert model.outputs == [("s", ())] and model.size == (64, 64)
    with pytest.raises(InputError, match=r"func.py and funcs/ cannot decode its outputs, \(\)\."):
        funcs.find(model)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 9, 12, 13])
@pytest.mark.parametrize("task", [None, *TASKS])
def test_outputs_of_any_shape_are_accepted_or_refused(count, task):
    """For example labels (n,), a sequence (), five dimensions, dynamic sides."""
    shapes = [
        (),
        (5,),
        (0, 0),
        (1, 1, 1),
        (1, 0, 0),
        (1, 64, 80, 80),
        (1, 0, 0, 0),
        (1, 3, 85, 80, 80),
        (0,) * 6,
    ]
    for start in range(len(shapes)):
        for step in range(3):
            ends = [("o", shapes[(start + step * place) % len(shapes)]) for place in range(count)]
            for names in (None, ["a"] * 80):
                try:
                    model = Model(
                        "m.onnx",
                        [("x", (1, 3, 640, 640))],
                        ends,
                        (640, 640),
                        task=task,
                        names=names,
                    )
                    assert model.classes is None or model.classes > 0
                    funcs.find(model)
                except InputError:
                    pass


def test_another_program_needs_only_the_folder_vision(tmp_path):
    shutil.copytree(ROOT / "vision", tmp_path / "vision")
    code = (
        "from vision.model import describe; "
        f"print(describe({str(MODELS / 'yolov5n_emoji.rknn')!r}).size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "(640, 640)\n", done.stderr


# ---- the files beside them ----


def test_an_ultralytics_folder_is_a_model_path(tmp_path):
    folder = tmp_path / "yolo11n_rknn_model"
    folder.mkdir()
    path = rknn(
        folder / "yolo11n-rk3588.rknn",
        inputs=[("images", (1, 3, 384, 640))],
        outputs=[("output0", (1, 6, 5040))],
    )
    (folder / "metadata.yaml").write_text(
        yaml.safe_dump(
            {
                "description": "Ultralytics YOLO11n",
                "task": "detect",
                "stride": 32,
                "imgsz": [384, 640],
                "names": {0: "cat", 1: "dog"},
                "args": {"quantize": 8},
            }
        )
    )
    model = describe(folder, "rk3588")
    assert (model.path, model.task, model.names, model.size) == (
        str(path),
        "detect",
        {0: "cat", 1: "dog"},
        (640, 384),
    )
    assert (
        model.relative
        and model.classes == 2
        and problems(model, "rk3588s", library="no such file") == []
    )


@pytest.mark.parametrize(
    "task, quantize, relative",
    [
        ("detect", 8, True),
        ("pose", 8, True),
        ("classify", 8, False),
        ("detect", 16, False),
        ("detect", None, False),
    ],
)
def test_int8_exports_of_ultralytics_have_relative_coordinates(tmp_path, task, quantize, relative):
    rknn(tmp_path / "m.rknn", outputs=[("o", (1, 84, 8400))])
    (tmp_path / "metadata.yaml").write_text(
        yaml.safe_dump({"task": task, "args": {"quantize": quantize}})
    )
    assert describe(tmp_path / "m.rknn", "rk3588").relative == relative


def test_the_yaml_of_the_network_does_not_hide_the_metadata(tmp_path):
    rknn(tmp_path / "yolo11n.rknn", outputs=[("o", (1, 84, 8400))])
    (tmp_path / "yolo11n.yaml").write_text(yaml.safe_dump({"nc": 80, "backbone": [], "head": []}))
    (tmp_path / "metadata.yaml").write_text(yaml.safe_dump({"task": "detect"}))
    assert describe(tmp_path / "yolo11n.rknn", "rk3588").task == "detect"


@pytest.mark.parametrize("more", [{"end2end": True}, {"head": "RTDETRDecoder"}])
def test_int8_end2end_exports_have_pixel_coordinates(tmp_path, more):
    rknn(tmp_path / "m.rknn", outputs=[("o", (1, 300, 6))])
    (tmp_path / "metadata.yaml").write_text(
        yaml.safe_dump({"task": "detect", "args": {"quantize": 8}, **more})
    )
    assert describe(tmp_path / "m.rknn", "rk3588").relative is False


@pytest.mark.parametrize("beside", [False, True])
def test_an_int8_onnx_has_pixel_coordinates(tmp_path, beside):
    """Ultralytics makes coordinates relative only in a .rknn (8.4.190: yolo export format=onnx
    quantize=8)."""
    common = {"task": "detect", "imgsz": [64, 96]}
    path = onnx_file(
        tmp_path / "m.onnx",
        metadata={} if beside else {**common, "imgsz": "[64, 96]", "args": "{'quantize': 8}"},
    )
    if beside:  # the metadata of its .rknn
        (tmp_path / "metadata.yaml").write_text(yaml.safe_dump({**common, "args": {"quantize": 8}}))
        rknn(tmp_path / "m.rknn", outputs=[("o", (1, 84, 126))])
        assert (
            describe(tmp_path / "m.rknn").relative is False
            and describe(tmp_path / "m.rknn", "rk3588").relative
        )
    model = describe(path)
    assert model.relative is False and model.task == "detect" and model.size == (96, 64)


def test_of_several_rknn_files_the_one_for_this_soc_is_used(tmp_path):
    for soc in ("rk3566", "rk3576", "rk3588"):
        rknn(tmp_path / f"m-{soc}.rknn", soc)
    onnx_file(tmp_path / "m.onnx")
    for soc, name in (
        ("rk3588s2", "m-rk3588.rknn"),
        ("rk3582", "m-rk3588.rknn"),
        ("rk3576", "m-rk3576.rknn"),
        ("rk3568", "m-rk3566.rknn"),
        (None, "m.onnx"),
    ):
        assert describe(tmp_path, soc).path == str(tmp_path / name)


@pytest.mark.parametrize("soc", [None, "rk3588"])
def test_a_folder_with_several_models_is_refused(tmp_path, soc):
    for name in ("a", "b"):
        rknn(tmp_path / f"{name}.rknn")
        onnx_file(tmp_path / f"{name}.onnx")
    end = "rknn" if soc else "onnx"
    with pytest.raises(
        InputError, match=rf"contains several models \(a.{end}, b.{end}\): name one of them"
    ):
        describe(tmp_path, soc)


def test_names_task_and_size_are_read_from_the_onnx_metadata(tmp_path):
    path = onnx_file(
        tmp_path / "m.onnx",
        inputs=[("images", ["n", 3, "h", "w"])],
        outputs=[("o", [1, 6, 126])],
        metadata={
            "names": "{0: 'cat', 1: 'dog'}",
            "task": "detect",
            "imgsz": "[64, 96]",
            "author": "me",
        },
    )
    model = describe(path)
    assert (model.names, model.task, model.size, model.classes) == (
        {0: "cat", 1: "dog"},
        "detect",
        (96, 64),
        2,
    )
    assert model.metadata["author"] == "me" and model.names_from == str(path)


@pytest.mark.parametrize("name", ["m.txt", "labels.txt", "names.txt"])
def test_names_are_read_from_a_text_file_with_one_name_per_line(tmp_path, name):
    rknn(tmp_path / "m.rknn")
    (tmp_path / name).write_text("cat \n安全帽\n\n", encoding="utf-8-sig")
    model = describe(tmp_path / "m.rknn", "rk3588")
    assert model.names == ["cat", "安全帽"] and model.names_from == str(tmp_path / name)


NAMES = ["狗", "café noir", "安全帽"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "gbk", "utf-16", "utf-16-le", "utf-16-be"]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_names_files_of_windows_editors_are_read(tmp_path, encoding, line_end):
    names = NAMES if encoding != "gbk" else ["狗", "镕 traffic light", "安全帽"]
    (tmp_path / "n.txt").write_bytes(line_end.join([*names, "", ""]).encode(encoding))
    assert read_names(tmp_path / "n.txt") == names


@pytest.mark.parametrize(
    "text, names",
    [
        ('["狗", "dog"]', ["狗", "dog"]),
        ('\n{"0": "狗", "1": "dog"}\n', {0: "狗", 1: "dog"}),
        ("{0: '狗', 1: 'dog',}", {0: "狗", 1: "dog"}),  # as Python prints it
        ('{"狗": 0, "dog": 1}', {0: "狗", 1: "dog"}),
        ('{"names": ["狗", "dog"]}', ["狗", "dog"]),
        ('{"id2label": {"0": "狗", "7": "dog"}}', {0: "狗", 7: "dog"}),
        ("[unknown]\n狗", ["[unknown]", "狗"]),  # not JSON, but a line for each name
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "utf-16"])
def test_names_as_json_are_read(tmp_path, text, names, encoding):
    (tmp_path / "names.json").write_bytes(text.encode(encoding))
    assert read_names(tmp_path / "names.json") == names
    assert describe(rknn(tmp_path / "m.rknn"), "rk3588").names == names


@pytest.mark.parametrize(
    "text",
    [
        "names: [狗, dog]",
        "train: images\nnc: 2\nnames:  # a data set's\n  - 狗\n  - dog\n",
        "names:\n  0: 狗\n  '1': dog\n",
        "- 狗\n- dog\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk"])
def test_names_as_yaml_are_read(tmp_path, text, encoding):
    (tmp_path / "data.yaml").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    names = read_names(tmp_path / "data.yaml")
    assert [names[number] for number in range(2)] == ["狗", "dog"]


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "utf-16"])
def test_quoted_numbers_and_other_encodings_in_a_metadata_yaml_are_read(tmp_path, encoding):
    text = "names:\n  '0': 狗\n  '1': dog\n"
    (tmp_path / "metadata.yaml").write_bytes(text.encode(encoding))
    model = describe(rknn(tmp_path / "m.rknn"), "rk3588")
    assert model.names == {0: "狗", 1: "dog"} and model.warnings == []


def test_quoted_numbers_in_an_onnx_are_read(tmp_path):
    onnx_file(tmp_path / "m.onnx", metadata={"names": '{"0": "狗", "1": "dog"}'})
    assert describe(tmp_path / "m.onnx").names == {0: "狗", 1: "dog"}


@pytest.mark.parametrize("name", ["m.txt", "names.txt", "labels.json", "metadata.yaml"])
@pytest.mark.parametrize("text, encoding", [("café\nVélo", "latin-1"), ("類別\n機車", "big5")])
def test_a_names_file_that_cannot_be_read_is_reported(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(f"names: {text}".encode(encoding))
    model = describe(rknn(tmp_path / "m.rknn"), "rk3588")
    (warning,) = problems(model, "rk3588", "none")
    assert str(tmp_path / name) in warning and "UTF-8" in warning and model.names is None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("names: [a, b", "not valid YAML"),
        ("names: names.txt", "its names are neither a list nor a dict"),
        ("names: {zero: a}", "its names are neither a list nor a dict"),
    ],
)
def test_a_metadata_yaml_without_readable_names_is_reported(tmp_path, text, expected):
    (tmp_path / "metadata.yaml").write_text(text)
    model = describe(rknn(tmp_path / "m.rknn"), "rk3588")
    (warning,) = problems(model, "rk3588", "none")
    assert f"metadata.yaml: {expected}" in warning and model.names is None


def test_the_names_file_of_the_model_comes_first(tmp_path):
    rknn(tmp_path / "m.rknn")
    (tmp_path / "metadata.yaml").write_text("names: [from yaml]")
    (tmp_path / "names.txt").write_text("from names\n")
    assert describe(tmp_path / "m.rknn", "rk3588").names == ["from yaml"]
    (tmp_path / "m.txt").write_text("its own\n")
    assert describe(tmp_path / "m.rknn", "rk3588").names == ["its own"]


def test_on_a_cpu_the_description_of_the_onnx_comes_before_that_of_the_rknn(tmp_path):
    rknn(tmp_path / "m.rknn")
    (tmp_path / "metadata.yaml").write_text("relative: true")
    onnx_file(tmp_path / "m.onnx", metadata={"relative": "False"})
    cpu, npu = describe(tmp_path / "m.rknn"), describe(tmp_path / "m.rknn", "rk3588")
    assert (cpu.path, cpu.size, cpu.relative, cpu.soc) == (npu.path, (96, 64), False, "rk3588")
    assert (npu.size, npu.relative) == ((640, 640), True)


def test_a_metadata_yaml_without_pyyaml_is_reported_in_one_sentence(tmp_path):
    rknn(tmp_path / "m.rknn")
    (tmp_path / "metadata.yaml").write_text("task: detect")
    code = (
        f"import sys; sys.modules['yaml'] = None; from vision.model import describe, InputError\n"
        f"try: describe({str(tmp_path / 'm.rknn')!r})\nexcept InputError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "metadata.yaml: cannot be read because PyYAML is not installed: " in done.stdout
    assert done.stdout.endswith(" -m pip install pyyaml\n")


# ---- models that cannot be opened ----


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com\n", "LFS"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (b"\x08\x07\x12\x07", "begins with"),
    ],
)
def test_a_file_that_is_not_rknn_is_refused_before_the_npu_reads_it(tmp_path, content, expected):
    (tmp_path / "m.rknn").write_bytes(content)
    with pytest.raises(InputError, match=r"m\.rknn: not a \.rknn model but .*" + expected):
        problems(describe(tmp_path / "m.rknn", "rk3588"), "rk3588")


def test_a_truncated_rknn_is_reported(tmp_path):
    (tmp_path / "m.rknn").write_bytes((MODELS / "resnet18_emoji.rknn").read_bytes()[:400000])
    with pytest.raises(
        InputError,
        match=r"not a \.rknn model but only the first 400,000 bytes of more than 934,272",
    ):
        problems(describe(tmp_path / "m.rknn", "rk3588"), "rk3588")


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "an empty file"),
        (b"<html>", "a web page"),
        (b"plain text", "is cut off or of another kind: copy it"),
        ((MODELS / "resnet18_emoji.onnx").read_bytes()[:-1000], "is cut off"),
        (b"\x08\x07", "contains no network"),
    ],
)
@pytest.mark.parametrize("name", ["m.onnx", "m.rknn"])
def test_a_file_that_is_not_onnx_is_refused_before_it_is_opened(tmp_path, content, expected, name):
    (tmp_path / "m.rknn").write_bytes(b"RKNN")
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"m\.onnx: not an ONNX model but .*" + expected):
        problems(describe(tmp_path / name))
    (tmp_path / "m.onnx").write_bytes((MODELS / "resnet18_emoji.onnx").read_bytes())
    assert problems(describe(tmp_path / name)) == []


@pytest.mark.parametrize("name", ["m.pt", "m.torchscript", "m.engine", "m.xml", "m.param", "m.pb"])
@pytest.mark.parametrize("soc", [None, "rk3576"])
def test_an_unsupported_file_type_is_refused_with_the_supported_ones(tmp_path, name, soc):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(
        InputError,
        match=f"{name}: an? .*yolo export model=m.pt format=onnx .*name={soc or 'rk3588'}",
    ):
        problems(describe(tmp_path / name, soc), soc)


def test_on_a_pc_the_onnx_in_an_ultralytics_folder_describes_the_model(tmp_path):
    rknn(tmp_path / "m-rk3588.rknn", outputs=[("o", (1, 84, 126))])
    (tmp_path / "metadata.yaml").write_text(
        yaml.safe_dump({"task": "detect", "args": {"quantize": 8}})
    )
    onnx_file(tmp_path / "m.onnx")
    model = describe(tmp_path / "m-rk3588.rknn")
    assert (model.size, model.relative) == ((96, 64), False)


@pytest.mark.parametrize(
    "made_for, board, fits",
    [
        ("rk3588", "rk3588f", True),
        ("rk3588", "rk3582", True),
        ("rk3566", "rk3568", True),
        ("rk3588", "rk3576", False),
        ("rk3562", "rk3566", False),
        ("rv1126b", "rk3588", False),
        ("rk1808", "rk3588", False),
    ],
)
def test_a_model_for_another_soc_family_is_refused_with_advice(tmp_path, made_for, board, fits):
    model = describe(rknn(tmp_path / "m.rknn", made_for), board)
    if fits:
        assert problems(model, board, library="none") == []
        return
    expected = f"made for the {made_for}, but this board has an {board}.*--target {board}"
    with pytest.raises(InputError, match=expected):
        problems(model, board, library="none")


@pytest.mark.parametrize(
    "toolkit, library, warned",
    [
        ("2.5.0", "2.3.2", True),
        ("2.3.2", "2.5.0", False),
        ("2.3.2", "2.3.2", False),
        ("2.10.0", "2.9.1", True),
    ],
)
def test_a_newer_toolkit_than_the_boards_library_is_a_warning(tmp_path, toolkit, library, warned):
    (tmp_path / "librknnrt.so").write_bytes(
        b"\x7fELF" + bytes(5000) + f"librknnrt version: {library} (c6b7b351a@2023-08-23)\0".encode()
    )
    found = problems(
        describe(rknn(tmp_path / "m.rknn", toolkit=toolkit), "rk3588"),
        "rk3588",
        str(tmp_path / "librknnrt.so"),
    )
    assert len(found) == warned
    assert not warned or toolkit in found[0] and library in found[0]


def test_an_onnx_is_refused_for_an_npu(tmp_path):
    with pytest.raises(
        InputError,
        match=r"the NPU runs \.rknn files. Convert it: .*models/convert.py .*m.onnx --calibration",
    ):
        problems(describe(onnx_file(tmp_path / "m.onnx"), "rk3576"), "rk3576")


def test_on_a_pc_a_folder_without_onnx_is_refused_with_advice(tmp_path):
    rknn(tmp_path / "m.rknn")
    with pytest.raises(InputError, match="only a board's NPU can run m.rknn.*format=onnx"):
        problems(describe(tmp_path))
    assert problems(describe(tmp_path / "m.rknn")) == []


@pytest.mark.parametrize(
    "outputs, task, names, count",
    [
        (V5, None, 79, 80),
        ([("o", (1, 84, 8400))], "detect", 20, 80),
        ([("o", (1, 116, 8400)), ("p", (1, 32, 160, 160))], None, 3, None),
        ([("o", (1, 1000))], None, 999, 1000),
        ([("o", (1, 3, 85, 80, 80))] * 3, None, 81, 80),
        ([("o", (1, 16, 8400))], "obb", 10, 11),
    ],
)
def test_a_wrong_number_of_names_is_reported_with_both_numbers(
    tmp_path, outputs, task, names, count
):
    (tmp_path / "names.txt").write_text("".join(f"name {number}\n" for number in range(names)))
    if task:
        (tmp_path / "metadata.yaml").write_text(f"task: {task}")
    model = describe(rknn(tmp_path / "m.rknn", outputs=outputs), "rk3588")
    assert model.classes == count
    if count is None:
        assert problems(model, "rk3588", "none") == []
        return
    expected = rf"names\.txt: has names for {names} classes.* has {count} classes. .*--names FILE"
    with pytest.raises(InputError, match=expected):
        problems(model, "rk3588", "none")


@pytest.mark.parametrize("name", ["none.rknn", "none.onnx", "none"])
def test_a_missing_path_is_reported(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: no such file"):
        describe(tmp_path / name)
    with pytest.raises(InputError, match="contains no .rknn and no .onnx"):
        describe(tmp_path)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("café\nFußgänger\nvélo".encode("latin-1"), "UTF-8"),
        ("猫\n犬\n鳥".encode("shift-jis"), "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "UTF-8"),
        (b"\xff\xfe\0\xd8", "UTF-8"),
        (b"cat\x07", "UTF-8"),
        (b"", "no class names"),
        (b"\n \n", "no class names"),
        (b"[]", "no class names"),
        (b'{"cat": "dog"}', "no class names"),
        (b'[{"id": 1}]', "no class names"),
        (b"\xef\xbb\xbf", "no class names"),
    ],
)
def test_an_invalid_names_file_is_reported(tmp_path, content, expected):
    (tmp_path / "n.txt").write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_names(tmp_path / "n.txt")
    with pytest.raises(InputError, match="no such file"):
        read_names(tmp_path / "none.txt")


# ---- arbitrary bytes ----


def damaged(whole):
    """Any bytes, or those of a real file, truncated or with a few changes."""
    changes = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8)

    def changed(changes, end):
        content = bytearray(whole[:end])
        for place, value in changes:
            if place < len(content):
                content[place] = value
        return bytes(content)

    return st.one_of(
        st.binary(max_size=300), st.builds(changed, changes, st.integers(0, len(whole)))
    )


def whole_files():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        return {
            ".rknn": rknn(folder / "m.rknn").read_bytes(),
            ".onnx": onnx_file(
                folder / "m.onnx", metadata={"names": "{0: 'a'}", "task": "detect"}
            ).read_bytes(),
            ".yaml": yaml.safe_dump(
                {
                    "task": "pose",
                    "names": {0: "a"},
                    "imgsz": [64, 96],
                    "kpt_shape": [17, 3],
                    "args": {"quantize": 8},
                }
            ).encode(),
            ".txt": "cat\nähre\n".encode(),
        }


WHOLE = whole_files()


@pytest.mark.slow
@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.fixed_dictionaries({kind: damaged(content) for kind, content in WHOLE.items()}),
    st.sampled_from([None, "rk3588", "rk3562"]),
)
def test_arbitrary_bytes_give_a_description_or_one_sentence(tmp_path, contents, soc):
    for kind, content in contents.items():
        (tmp_path / f"m{kind}").write_bytes(content)
    for path in (tmp_path / "m.rknn", tmp_path / "m.onnx", tmp_path):
        model = describe(path, soc)
        assert isinstance(model, Model) and (model.size is None or min(model.size) > 0)
        assert all(
            isinstance(side, int) for _, shape in model.inputs + model.outputs for side in shape
        )
        try:
            assert all(isinstance(sentence, str) for sentence in problems(model, soc))
        except InputError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
