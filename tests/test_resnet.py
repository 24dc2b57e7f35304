"""funcs/resnet.py and the demo classifier."""

import os
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, class_drawn
from test_func import stored

import funcs
from funcs import resnet
from runtimes.cpu import RKNNLite
from vision.coco import COCO_CLASSES
from vision.detections import Detections
from vision.drawing import captions
from vision.errors import InputError, ModelError
from vision.labels import colour, label
from vision.letterbox import letterbox
from vision.metadata import normalisation
from vision.model import Model, describe
from vision.quantised import Raw

sys.path[:0] = [str(ROOT / folder) for folder in ("models", "models/demo", "tests/board")]
import convert  # noqa: E402
import npu  # noqa: E402
import onnx_model  # noqa: E402
from evaluate_classifier import accuracy  # noqa: E402
from scene import FONT, draw_object  # noqa: E402

MODEL = ROOT / "models/resnet18_emoji.rknn"
needs_font = pytest.mark.skipif(
    not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed"
)


class Context:
    """An RKNNLite context that returns these outputs and records its inputs."""

    def __init__(self, *outputs):
        self.outputs = list(outputs)

    def inference(self, inputs):
        self.inputs = inputs
        return self.outputs


@pytest.fixture(scope="module")
def context():
    context = RKNNLite()
    assert context.load_rknn(str(MODEL)) == context.init_runtime() == 0, context.error
    yield context
    context.release()


def logits(shape=(1, 1000), seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def softmax(values):
    return np.exp(values) / np.exp(values).sum()


def in_int8(values, high=1.0):
    """Round values to int8 as the NPU does: to multiples of 1/255 of the range from 0 to `high`."""
    return (np.rint(values / high * 255) * high / 255).astype(np.float32)


# ---- the model's input ----


@pytest.mark.parametrize("width, height", [(256, 256), (1280, 720), (720, 1280), (333, 500)])
def test_the_model_gets_the_same_crop_as_from_torchvision(width, height):
    """Every pixel contains its position, so the crop shows where its pixels come from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    seen = resnet.crop(np.stack([x, y, 0 * x], -1).round().astype(np.uint8), 224)
    assert seen.shape == (224, 224, 3) and seen.dtype == np.uint8
    # torchvision scales the shorter side to 256, and crops 224 from the middle
    scale = 256 / min(width, height)
    for channel, side in ((2, width), (1, height)):  # RGB: x came in as blue, y as green
        first = (side * scale - 224) / 2 / (side * scale) * 255
        ends = seen[..., channel].mean(0 if channel == 2 else 1)[[0, -1]]
        np.testing.assert_allclose(ends, [first, 255 - first], atol=255 / (side * scale) + 0.5)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 3),
        (4000, 1, 3),
        (1, 4000, 3),
        (3, 2, 3),
        (300, 5, 3),
        (48, 64),
        (48, 64, 1),
        (48, 64, 4),
    ],
)
def test_frames_of_any_size_and_layout_are_classified_and_labelled(shape):
    IMG = resnet.myFunc(Context(logits()), np.full(shape, 7, np.uint8))
    assert IMG.shape == shape[:2] + (3,) and (IMG != 7).any()


def test_an_argument_that_is_not_a_frame_is_reported():
    with pytest.raises(ValueError, match="float64"):
        resnet.myFunc(Context(logits()), np.zeros((48, 64, 3)))


def test_the_model_gets_rgb_bytes_in_four_dimensions():
    context = Context(logits())
    resnet.classify(context, np.full((720, 1280, 3), (10, 20, 30), np.uint8))
    assert context.inputs[0].shape == (1, 224, 224, 3) and context.inputs[0].dtype == np.uint8
    assert (context.inputs[0] == (30, 20, 10)).all()


# ---- the meaning of its output ----


@pytest.mark.parametrize("shape", [(1, 1000), (1, 1000, 1, 1), (1, 80)])
def test_the_five_best_classes_are_sorted_by_score(shape):
    values = logits(shape)
    classes, scores = resnet.classify(Context(values), np.zeros((240, 320, 3), np.uint8))
    assert (classes.shape, classes.dtype, scores.shape, scores.dtype) == (
        (5,),
        np.int64,
        (5,),
        np.float32,
    )
    assert (
        classes.tolist()
        == sorted(range(values.size), key=lambda number: -values.ravel()[number])[:5]
    )
    np.testing.assert_allclose(scores, softmax(values.ravel())[classes], rtol=1e-4)


def test_a_model_with_fewer_classes_has_fewer_results():
    classes, scores = resnet.classify(Context(logits((1, 3))), np.zeros((9, 9, 3), np.uint8))
    assert len(classes) == len(scores) == 3


def test_large_logits_do_not_overflow():
    assert resnet.probabilities([np.float32([[1000, 0, -1000]])]).tolist() == [1, 0, 0]


@pytest.mark.parametrize("sharpness", [0.01, 0.3, 1, 5])
@pytest.mark.parametrize("rounded", [lambda values: values, in_int8], ids=["float", "int8"])
def test_softmax_is_not_applied_to_probabilities(sharpness, rounded):
    """Also if int8 has rounded a thousand small probabilities up or down."""
    values = rounded(softmax(logits() * sharpness))
    np.testing.assert_array_equal(resnet.probabilities([values]), values.ravel())


@pytest.mark.parametrize(
    "values", [[0.9, 0.8, 0.7, 0.6], [3, 2, 1, 0], [0.5, 0.4, 0.2, -0.1], [-1, -2, -3, -4]]
)
def test_logits_get_a_softmax(values):
    scores = resnet.probabilities([np.float32([values])])
    np.testing.assert_allclose(scores, softmax(np.float64(values)), rtol=1e-5)


@pytest.mark.parametrize(
    "values", [[0.9, 0.2], [1.1, 0.2], [0.7, 0.6], [0.05, 0.04], [2.5, -1.3], [0.4, 0.3, 0.1]]
)
def test_logits_of_few_classes_are_recognised_by_their_sum(values):
    np.testing.assert_allclose(
        resnet.probabilities([np.float32([values])]), softmax(np.float64(values)), rtol=1e-5
    )


def test_whether_scores_are_logits_is_decided_once_per_model():
    """The first frame decides: later logits can look like probabilities by chance, and
    probabilities may not add up to 1."""
    logit, probability = Model("a"), Model("b")
    resnet.probabilities([np.float32([[4, -1, 0.5]])], logit)
    resnet.probabilities([np.float32([[0.7, 0.2, 0.1]])], probability)
    for values in ([0.6, 0.3, 0.1], [0.5, 0.2, 0.1], [0.2, 0.2, 0.2]):
        np.testing.assert_allclose(
            resnet.probabilities([np.float32([values])], logit),
            softmax(np.float64(values)),
            rtol=1e-5,
        )
        np.testing.assert_array_equal(
            resnet.probabilities([np.float32([values])], probability), np.float32(values)
        )


def test_logits_first_taken_for_probabilities_are_recognised_from_then_on():
    model = Model("a")
    assert (
        resnet.probabilities([np.float32([[0.6, 0.4]])], model).tolist()
        == np.float32([0.6, 0.4]).tolist()
    )
    for values in ([5, -3], [0.6, 0.4]):
        np.testing.assert_allclose(
            resnet.probabilities([np.float32([values])], model),
            softmax(np.float64(values)),
            rtol=1e-5,
        )


def test_without_a_model_the_decision_is_stored_in_the_context():
    context = Context(np.float32([[4, -1, 0.5]]))
    resnet.classify(context, np.zeros((9, 9, 3), np.uint8))
    context.outputs = [np.float32([[0.6, 0.3, 0.1]])]
    np.testing.assert_allclose(
        resnet.classify(context, np.zeros((9, 9, 3), np.uint8))[1],
        softmax(np.float64([0.6, 0.3, 0.1])),
        rtol=1e-5,
    )


def test_a_frame_with_invalid_values_decides_nothing():
    model = Model("a")
    resnet.probabilities([np.float32([[np.nan, 0.9, 0.8]])], model)
    assert model.scores is None


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("probabilities", lambda x: x),
        ("logits", softmax),
        ("multilabel", lambda x: 1 / (1 + np.exp(-x))),
    ],
)
@pytest.mark.parametrize("by", ["setting", "metadata"])
def test_a_setting_or_the_metadata_can_decide(monkeypatch, kind, expected, by):
    values, model = np.float32([0.9, 0.8, 0.1]), Model("a")
    if by == "setting":
        monkeypatch.setattr(resnet, "SCORES", kind)
    else:
        model.scores = kind
    np.testing.assert_allclose(
        resnet.probabilities([values[None]], model), expected(values), rtol=1e-5
    )


@pytest.mark.parametrize(
    "value, names, expected",
    [
        (2.0, ["no", "yes"], [("yes", 0.8808), ("no", 0.1192)]),
        (-2.0, ["no", "yes"], [("no", 0.8808), ("yes", 0.1192)]),
        (0.75, ["no", "yes"], [("yes", 0.75), ("no", 0.25)]),
        (2.0, ["smoke"], [("smoke", 0.8808)]),
        (2.0, None, [("0", 0.8808)]),
    ],
)
def test_an_output_with_one_value_means_one_or_two_classes(value, names, expected):
    context = Context(np.float32([[value]]))
    context.model = Model("m", names=names)
    found = resnet.detect(context, np.zeros((9, 9, 3), np.uint8))
    assert [found.name(number) for number in found.classes] == [name for name, _ in expected]
    np.testing.assert_allclose(found.scores, [score for _, score in expected], atol=1e-4)


def test_raw_outputs_give_the_same_classes_as_floats():
    raw = stored(logits((1, 100)))
    context = Context(raw)
    context.inference_raw = context.inference
    found = resnet.detect(context, np.zeros((9, 9, 3), np.uint8))
    wanted = resnet.detect(Context(Raw(*raw).floats()), np.zeros((9, 9, 3), np.uint8))
    assert found.boxes is wanted.boxes is None
    np.testing.assert_array_equal(found.classes, wanted.classes)
    np.testing.assert_array_equal(found.scores, wanted.scores)


# ---- the model's settings ----


def test_the_models_size_names_minimum_confidence_and_classes_are_used():
    context = Context(np.float32([[0.5, 0.3, 0.15, 0.05]]))
    context.model = Model(
        "m", size=(128, 96), names={0: "a", 1: "b", 2: "c", 3: "d"}, conf=0.1, class_ids={1, 2, 3}
    )
    found = resnet.detect(context, np.zeros((72, 128, 3), np.uint8))
    assert context.inputs[0].shape == (1, 96, 128, 3)
    assert [found.name(number) for number in found.classes] == ["b", "c"]


def test_a_rectangular_input_gets_the_largest_such_crop_of_the_middle():
    x, y = np.meshgrid(np.arange(256), np.arange(128))
    seen = resnet.crop(np.stack([x, y, 0 * x], -1).astype(np.uint8), (64, 128), 1)
    assert seen.shape == (128, 64, 3)
    assert seen[..., 2].min() == 96 and seen[..., 2].max() == 159 and seen[..., 1].max() == 127


def test_ultralytics_classifiers_get_the_whole_shorter_side():
    context, frame = Context(softmax(logits((1, 10)))), np.zeros((100, 200, 3), np.uint8)
    frame[:3] = 255  # outside of torchvision's crop
    resnet.detect(context, frame)
    assert not context.inputs[0].any()
    context.model = Model(
        "m", task="classify", size=(224, 224), metadata={"imgsz": [224, 224]}, names=["n"] * 10
    )
    resnet.detect(context, frame)
    assert (context.inputs[0][0, 0] == 255).all()


@pytest.mark.parametrize("shape", [(100, 200), (200, 100), (333, 500), (50, 60)])
def test_ultralytics_classifiers_get_the_same_pixels_as_from_pillow(monkeypatch, shape):
    Image = pytest.importorskip("PIL.Image")
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    frame = cv2.GaussianBlur(frame, (0, 0), 3)
    h, w = shape
    size = (int(224 * w / h), 224) if w >= h else (224, int(224 * h / w))
    picture = Image.fromarray(frame[..., ::-1]).resize(size, Image.BILINEAR)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    expected = np.array(picture.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(resnet.crop_like_ultralytics(frame, (224, 224)), expected)
    monkeypatch.setitem(sys.modules, "PIL", None)  # without Pillow, almost the same
    off = np.abs(resnet.crop_like_ultralytics(frame, (224, 224)).astype(int) - expected)
    assert off.mean() < 2


@pytest.mark.parametrize(
    "shapes, about, read",
    [
        ([(1, 1000)], {}, True),
        ([(1, 1000, 1, 1)], {}, True),
        ([(1, 1001)], {}, True),
        ([(1, 21843)], {}, True),
        ([(1, 80)], {}, True),  # as many as CLASSES has names
        ([(1, 10)], {"task": "classify"}, True),
        ([(1, 10)], {"names": ["n"] * 10}, True),
        ([(1, 10)], {"names": {number: "n" for number in range(10)}}, True),
        ([(1, 10, 1, 1)], {"scores": "logits"}, True),
        ([(1, 1)], {"names": ["no", "yes"]}, True),
        ([(1, 1)], {"names": ["smoke"]}, True),
        ([(1, 1)], {}, False),
        ([(1, 10)], {}, False),
        ([(1, 512)], {}, False),  # embeddings
        ([(1, 128)], {}, False),
        ([(1, 2048, 1, 1)], {}, False),
        ([(1, 512)], {"names": ["n"] * 10}, False),
        ([(1, 1000)], {"task": "detect"}, False),
        ([(1, 84, 8400)], {}, False),
        ([(1, 10, 7, 7)], {}, False),
        ([(1, 5), (1, 5)], {}, False),
        ([], {}, False),
        ([()], {}, False),
    ],
)
def test_reads_recognises_its_models(shapes, about, read):
    model = Model("m", outputs=[("o", shape) for shape in shapes], **about)
    assert resnet.reads(model) == read


def test_an_output_that_may_be_an_embedding_is_refused_with_advice():
    model = Model("face.rknn", outputs=[("o", (1, 512))], size=(112, 112))
    with pytest.raises(InputError, match=r"^face.rknn: its output \(1, 512\).*face.txt.*--func"):
        funcs.find(model)


def test_scores_do_not_change_in_the_next_inference():
    output = softmax(logits((1, 80)))
    scores = resnet.probabilities([output])
    kept = scores.copy()
    output[:] = 0
    np.testing.assert_array_equal(scores, kept)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)],
        [(2, 1000)],
        [(1000,)],
        [(1, 0)],
        [],
        [(1, 10, 7, 7)],
        [(1, 1000), (1, 512)],
    ],
)
def test_outputs_of_another_model_are_reported_with_the_expected_ones(shapes):
    with pytest.raises(ModelError) as error:
        resnet.classify(
            Context(*(np.zeros(shape, np.float32) for shape in shapes)),
            np.zeros((72, 128, 3), np.uint8),
        )
    assert all(str(shape) in str(error.value) for shape in shapes)
    assert "(1, classes)" in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_affect_only_their_own_classes(bad):
    classes, scores = resnet.classify(
        Context(np.float32([[1, bad, 2, bad, 0, -1, -2]])), np.zeros((9, 9, 3), np.uint8)
    )
    assert classes.tolist() == [2, 0, 4, 5, 6]
    np.testing.assert_allclose(scores, softmax(np.float64([2, 1, 0, -1, -2])), rtol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values, left", [([np.nan] * 3, 0), ([3e38, -3e38, 3e38], 3)])
def test_an_invalid_output_raises_no_exception(values, left):
    context = Context(np.float32([values]))
    assert len(resnet.classify(context, np.zeros((9, 9, 3), np.uint8))[0]) == left
    assert resnet.myFunc(context, np.zeros((90, 90, 3), np.uint8)).any() == bool(left)


def test_a_failed_inference_is_reported_with_the_input_shape():
    context = Context()
    context.outputs = None
    with pytest.raises(ModelError, match=r"\(1, 224, 224, 3\)"):
        resnet.classify(context, np.zeros((72, 128, 3), np.uint8))


# ---- drawing ----


@pytest.mark.parametrize("background", [0, 128, 255])
def test_the_five_lines_are_readable_on_any_background(background):
    IMG = np.full((480, 640, 3), background, np.uint8)
    resnet.draw(IMG, Detections(None, range(5), [0.5, 0.2, 0.1, 0.1, 0.1], COCO_CLASSES))
    painted = np.flatnonzero((IMG != background).any((1, 2)))
    heights = [len(label(f"{COCO_CLASSES[number]} 0.10", number, 480 / 900)) for number in range(5)]
    assert painted.max() + 1 == sum(heights)
    for number, end in enumerate(np.cumsum(heights)):
        line = IMG[end - heights[number] : end]
        assert (line == colour(number)).all(2).sum() > 500  # the label's colour
        assert ((line < 40).all(2) | (line > 215).all(2)).sum() > 50  # letters


def test_text_grows_with_the_frame():
    def share_painted(width, height):
        found = Detections(None, [1, 2], [0.5, 0.4], COCO_CLASSES)
        IMG = resnet.draw(np.zeros((height, width, 3), np.uint8), found)
        return np.count_nonzero(IMG.any(2)) / (width * height)

    assert share_painted(3840, 2160) == pytest.approx(share_painted(1280, 720), rel=0.3)


@pytest.mark.parametrize("count, shown", [(80, "cup 1.00"), (1000, "41 1.00")])
def test_the_names_of_other_classes_are_not_used(count, shown):
    values = np.full((1, count), -9, np.float32)
    values[0, 41] = 9
    found = resnet.detect(Context(values), np.zeros((90, 90, 3), np.uint8))
    assert captions(found)[0] == shown


def test_the_names_in_the_file_are_used_if_the_model_has_none(monkeypatch):
    monkeypatch.setattr(resnet, "CLASSES", ("tench", "goldfish"))
    found = resnet.detect(Context(np.float32([[0.25, 0.75]])), np.zeros((90, 90, 3), np.uint8))
    assert captions(found) == ["goldfish 0.75", "tench 0.25"]


# ---- mean and standard deviation ----


def test_the_models_mean_and_std_are_applied_on_the_cpu(context):
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    metadata = {
        entry.key: entry.value
        for entry in onnx.load(str(MODEL.with_suffix(".onnx"))).metadata_props
    }
    assert metadata == {"mean": "123.675 116.28 103.53", "std": "58.395 57.12 57.375"}
    by_hand = (
        ((image[0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
        .transpose(2, 0, 1)[None]
        .astype(np.float32)
    )
    session = onnxruntime.InferenceSession(
        str(MODEL.with_suffix(".onnx")), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(
        context.inference([image])[0], session.run(None, {"image": by_hand})[0], atol=1e-3
    )


def test_mean_and_std_are_built_into_the_rknn():
    metadata = {
        entry.key: entry.value
        for entry in onnx.load(str(MODEL.with_suffix(".onnx"))).metadata_props
    }
    model = npu.parse(MODEL.read_bytes())
    np.testing.assert_allclose([model.mean, model.std], normalisation(metadata))


@pytest.fixture
def copied(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL.with_suffix(".onnx").read_bytes())
    return path


@pytest.fixture
def convert_py(monkeypatch, capsys):
    """Run convert.py with these arguments in this process: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            convert.main()
        return (end.value.code, *capsys.readouterr())

    return run


def test_convert_writes_mean_and_std_into_the_onnx_with_a_message(copied, convert_py):
    _, out, _ = convert_py(
        copied, "--dtype", "fp", "--mean", "1", "2", "3", "--std", "4", "5", "6.5"
    )
    assert f"{copied}: its metadata now says mean [1.0, 2.0, 3.0], std [4.0, 5.0, 6.5]" in out
    metadata = {entry.key: entry.value for entry in onnx.load(str(copied)).metadata_props}
    assert normalisation(metadata) == ([1, 2, 3], [4, 5, 6.5])


@pytest.mark.parametrize("std", [("0.229", "0.224", "0.225"), ("0", "1", "1"), ("nan", "1", "1")])
def test_convert_refuses_an_invalid_std(copied, convert_py, std):
    before = copied.read_bytes()
    code, _, error = convert_py(copied, "--std", *std)
    assert (code, len(error.splitlines())) == (2, 1), error
    assert "three numbers" in error and copied.read_bytes() == before


def test_convert_refuses_a_file_that_is_not_a_model(convert_py):
    code, _, error = convert_py(ROOT / "README.md", "--dtype", "fp", "--mean", "1", "2", "3")
    assert (code, len(error.splitlines())) == (2, 1), error
    assert "README.md: not an ONNX model" in error


def test_a_model_is_calibrated_with_the_input_that_its_decoder_gives_it(demo_frames):
    def fed(name):
        path = ROOT / f"models/{name}_emoji.onnx"
        return onnx_model.model_input(demo_frames[0], onnx.load(str(path)).graph, describe(path))

    np.testing.assert_array_equal(fed("resnet18"), resnet.crop(demo_frames[0], 224))
    np.testing.assert_array_equal(fed("yolov5n"), letterbox(demo_frames[0], 640)[0])


# ---- the demo classifier ----


def test_the_classifier_is_small():
    assert MODEL.with_suffix(".onnx").stat().st_size <= 4e6 and MODEL.stat().st_size <= 4e6


@needs_font
def test_a_seed_always_gives_the_same_object():
    assert np.array_equal(draw_object((2, 7))[0], draw_object((2, 7))[0])
    assert not np.array_equal(draw_object((2, 7))[0], draw_object((2, 8))[0])
    assert all(draw_object((2, number), 100)[0].shape == (100, 100, 3) for number in range(9))


@pytest.mark.slow
@needs_font
def test_the_classifier_keeps_its_accuracy_on_unseen_objects(context):
    first, five, _ = accuracy(context, 150)
    assert first >= 0.85
    assert five >= 0.95


@needs_font
def test_main_classifies_and_writes_the_classes_to_json(main_py, context, tmp_path):
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (512, 512)
    )
    for number in range(12):
        writer.write(cv2.resize(draw_object((5, number))[0], (512, 512)))
    writer.release()
    done = main_py(
        tmp_path / "clip.avi",
        "--headless",
        "--func",
        "funcs/resnet.py",
        "--model",
        "models/resnet18_emoji.rknn",
        "--save",
        tmp_path / "out.avi",
    )
    assert done.returncode == 0, done.stderr
    before, after = (cv2.VideoCapture(str(tmp_path / name)) for name in ("clip.avi", "out.avi"))
    for _ in range(12):
        assert class_drawn(after.read()[1]) == resnet.classify(context, before.read()[1])[0][0]
