"""What funcs/resnet.py promises, and the classifier that comes with it."""
import os
import subprocess
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, class_drawn
from test_func import stored

import func
from funcs import resnet
from rknnmodel import Model, describe
from runtimes.cpu import RKNNLite, normalisation

sys.path[:0] = [str(ROOT / folder) for folder in ("models", "models/demo", "tests/board")]
import convert  # noqa: E402
import npu  # noqa: E402
from evaluate_classifier import accuracy  # noqa: E402
from scene import FONT, draw_object  # noqa: E402

MODEL = ROOT / "models/resnet18_emoji.rknn"
needs_font = pytest.mark.skipif(not os.path.exists(FONT),
                                reason="Debian's package fonts-noto-color-emoji is not installed")


class Context:
    """An RKNNLite context that answers with these outputs and keeps what it was fed."""

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
    """Values as the NPU gives them back: multiples of 1/255 of the range from 0 to `high`."""
    return (np.rint(values / high * 255) * high / 255).astype(np.float32)


# ---- what the model sees ----

@pytest.mark.parametrize("width, height", [(256, 256), (1280, 720), (720, 1280), (333, 500)])
def test_the_model_sees_the_part_that_torchvision_cuts_out(width, height):
    """Every pixel holds its own place, so that the crop tells where each of its pixels came from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    seen = resnet.crop(np.stack([x, y, 0 * x], -1).round().astype(np.uint8), 224)
    assert seen.shape == (224, 224, 3) and seen.dtype == np.uint8
    scale = 256 / min(width, height)  # torchvision: the shorter side to 256, then 224 from the middle
    for channel, side in ((2, width), (1, height)):  # RGB: x came in as blue, y as green
        first = (side * scale - 224) / 2 / (side * scale) * 255
        ends = seen[..., channel].mean(0 if channel == 2 else 1)[[0, -1]]
        np.testing.assert_allclose(ends, [first, 255 - first], atol=255 / (side * scale) + 0.5)


@pytest.mark.parametrize("shape", [(1, 1, 3), (4000, 1, 3), (1, 4000, 3), (3, 2, 3), (300, 5, 3), (48, 64), (48, 64, 1),
                                   (48, 64, 4)])
def test_frames_of_any_size_and_kind_are_classified_and_written_on(shape):
    IMG = resnet.myFunc(Context(logits()), np.full(shape, 7, np.uint8))
    assert IMG.shape == shape[:2] + (3,) and (IMG != 7).any()


def test_what_is_no_frame_is_said():
    with pytest.raises(ValueError, match="float64"):
        resnet.myFunc(Context(logits()), np.zeros((48, 64, 3)))


def test_the_model_is_fed_four_dimensions_of_rgb_bytes():
    context = Context(logits())
    resnet.classify(context, np.full((720, 1280, 3), (10, 20, 30), np.uint8))
    assert context.inputs[0].shape == (1, 224, 224, 3) and context.inputs[0].dtype == np.uint8
    assert (context.inputs[0] == (30, 20, 10)).all()


# ---- what its output means ----

@pytest.mark.parametrize("shape", [(1, 1000), (1, 1000, 1, 1), (1, 80)])
def test_the_best_five_come_best_first(shape):
    values = logits(shape)
    classes, scores = resnet.classify(Context(values), np.zeros((240, 320, 3), np.uint8))
    assert (classes.shape, classes.dtype, scores.shape, scores.dtype) == ((5,), np.int64, (5,), np.float32)
    assert classes.tolist() == sorted(range(values.size), key=lambda number: -values.ravel()[number])[:5]
    np.testing.assert_allclose(scores, softmax(values.ravel())[classes], rtol=1e-4)


def test_a_model_with_fewer_classes_has_fewer_results():
    classes, scores = resnet.classify(Context(logits((1, 3))), np.zeros((9, 9, 3), np.uint8))
    assert len(classes) == len(scores) == 3


def test_large_logits_do_not_overflow():
    assert resnet.probabilities([np.float32([[1000, 0, -1000]])]).tolist() == [1, 0, 0]


@pytest.mark.parametrize("sharpness", [0.01, 0.3, 1, 5])
@pytest.mark.parametrize("rounded", [lambda values: values, in_int8], ids=["float", "int8"])
def test_softmax_is_applied_once(sharpness, rounded):
    """Also where int8 has rounded a thousand faint classes away, or up."""
    values = rounded(softmax(logits() * sharpness))
    np.testing.assert_array_equal(resnet.probabilities([values]), values.ravel())


@pytest.mark.parametrize("values", [[0.9, 0.8, 0.7, 0.6], [3, 2, 1, 0], [0.5, 0.4, 0.2, -0.1], [-1, -2, -3, -4]])
def test_logits_get_a_softmax(values):
    scores = resnet.probabilities([np.float32([values])])
    np.testing.assert_allclose(scores, softmax(np.float64(values)), rtol=1e-5)


@pytest.mark.parametrize("values", [[0.9, 0.2], [1.1, 0.2], [0.7, 0.6], [0.05, 0.04], [2.5, -1.3], [0.4, 0.3, 0.1]])
def test_logits_of_few_classes_are_told_by_their_sum(values):
    np.testing.assert_allclose(resnet.probabilities([np.float32([values])]), softmax(np.float64(values)), rtol=1e-5)


def test_what_a_models_outputs_are_is_decided_once_for_each_model():
    """By its first frame, not by each: later ones look like probabilities by chance, or do not add up to 1."""
    logit, probability = Model("a"), Model("b")
    resnet.probabilities([np.float32([[4, -1, 0.5]])], logit)
    resnet.probabilities([np.float32([[0.7, 0.2, 0.1]])], probability)
    for values in ([0.6, 0.3, 0.1], [0.5, 0.2, 0.1], [0.2, 0.2, 0.2]):
        np.testing.assert_allclose(resnet.probabilities([np.float32([values])], logit), softmax(np.float64(values)),
                                   rtol=1e-5)
        np.testing.assert_array_equal(resnet.probabilities([np.float32([values])], probability), np.float32(values))


def test_what_was_taken_for_probabilities_by_chance_is_corrected_for_good():
    model = Model("a")
    assert resnet.probabilities([np.float32([[0.6, 0.4]])], model).tolist() == np.float32([0.6, 0.4]).tolist()
    for values in ([5, -3], [0.6, 0.4]):
        np.testing.assert_allclose(resnet.probabilities([np.float32([values])], model), softmax(np.float64(values)),
                                   rtol=1e-5)


def test_a_context_without_a_model_remembers_it_itself():
    context = Context(np.float32([[4, -1, 0.5]]))
    resnet.classify(context, np.zeros((9, 9, 3), np.uint8))
    context.outputs = [np.float32([[0.6, 0.3, 0.1]])]
    np.testing.assert_allclose(resnet.classify(context, np.zeros((9, 9, 3), np.uint8))[1],
                               softmax(np.float64([0.6, 0.3, 0.1])), rtol=1e-5)


def test_a_frame_with_broken_values_decides_nothing():
    model = Model("a")
    resnet.probabilities([np.float32([[np.nan, 0.9, 0.8]])], model)
    assert model.scores is None


@pytest.mark.parametrize("kind, expected", [("probabilities", lambda x: x), ("logits", softmax),
                                            ("multilabel", lambda x: 1 / (1 + np.exp(-x)))])
@pytest.mark.parametrize("by", ["setting", "metadata"])
def test_a_setting_or_the_metadata_says_what_the_outputs_are(monkeypatch, kind, expected, by):
    values, model = np.float32([0.9, 0.8, 0.1]), Model("a")
    if by == "setting":
        monkeypatch.setattr(resnet, "SCORES", kind)
    else:
        model.scores = kind
    np.testing.assert_allclose(resnet.probabilities([values[None]], model), expected(values), rtol=1e-5)


@pytest.mark.parametrize("value, names, expected", [
    (2.0, ["no", "yes"], [("yes", 0.8808), ("no", 0.1192)]), (-2.0, ["no", "yes"], [("no", 0.8808), ("yes", 0.1192)]),
    (0.75, ["no", "yes"], [("yes", 0.75), ("no", 0.25)]), (2.0, ["smoke"], [("smoke", 0.8808)]),
    (2.0, None, [("0", 0.8808)]),
])
def test_one_value_tells_one_class_or_two(value, names, expected):
    context = Context(np.float32([[value]]))
    context.model = Model("m", names=names)
    found = resnet.detect(context, np.zeros((9, 9, 3), np.uint8))
    assert [found.name(number) for number in found.classes] == [name for name, _ in expected]
    np.testing.assert_allclose(found.scores, [score for _, score in expected], atol=1e-4)


def test_outputs_as_stored_give_the_classes_of_their_floats():
    raw = stored(logits((1, 100)))
    context = Context(raw)
    context.inference_raw = context.inference
    found = resnet.detect(context, np.zeros((9, 9, 3), np.uint8))
    wanted = resnet.detect(Context(func.floats(*raw)), np.zeros((9, 9, 3), np.uint8))
    assert found.boxes is wanted.boxes is None
    np.testing.assert_array_equal(found.classes, wanted.classes)
    np.testing.assert_array_equal(found.scores, wanted.scores)


# ---- what the model says ----

def test_size_names_least_score_and_wanted_classes_are_the_models():
    context = Context(np.float32([[0.5, 0.3, 0.15, 0.05]]))
    context.model = Model("m", size=(128, 96), names={0: "a", 1: "b", 2: "c", 3: "d"}, conf=0.1, keep={1, 2, 3})
    found = resnet.detect(context, np.zeros((72, 128, 3), np.uint8))
    assert context.inputs[0].shape == (1, 96, 128, 3)
    assert [found.name(number) for number in found.classes] == ["b", "c"]


def test_a_rectangle_sees_the_largest_of_its_kind_in_the_frames_middle():
    x, y = np.meshgrid(np.arange(256), np.arange(128))
    seen = resnet.crop(np.stack([x, y, 0 * x], -1).astype(np.uint8), (64, 128), 1)
    assert seen.shape == (128, 64, 3)
    assert seen[..., 2].min() == 96 and seen[..., 2].max() == 159 and seen[..., 1].max() == 127


def test_ultralytics_classifiers_see_the_whole_of_the_shorter_side():
    context, frame = Context(softmax(logits((1, 10)))), np.zeros((100, 200, 3), np.uint8)
    frame[:3] = 255  # which torchvision's crop leaves out
    resnet.detect(context, frame)
    assert not context.inputs[0].any()
    context.model = Model("m", task="classify", size=(224, 224), metadata={"imgsz": [224, 224]}, names=["n"] * 10)
    resnet.detect(context, frame)
    assert (context.inputs[0][0, 0] == 255).all()


@pytest.mark.parametrize("shapes, task, read", [
    ([(1, 1000)], None, True), ([(1, 1000, 1, 1)], None, True), ([(1, 80)], "classify", True), ([(1, 1)], None, True),
    ([(1, 1000)], "detect", False), ([(1, 84, 8400)], None, False), ([(1, 10, 7, 7)], None, False),
    ([(1, 5), (1, 5)], None, False), ([], None, False), ([()], None, False),
])
def test_it_says_which_models_it_reads(shapes, task, read):
    assert resnet.reads(Model("m", outputs=[("o", shape) for shape in shapes], task=task)) == read


def test_scores_outlive_the_next_inference():
    output = softmax(logits((1, 80)))
    scores = resnet.probabilities([output])
    kept = scores.copy()
    output[:] = 0
    np.testing.assert_array_equal(scores, kept)


@pytest.mark.parametrize("shapes",
                         [[(1, 255, 80, 80), (1, 255, 40, 40), (1, 255, 20, 20)], [(2, 1000)], [(1000,)], [(1, 0)], [],
                                    [(1, 10, 7, 7)], [(1, 1000), (1, 512)]])
def test_outputs_of_another_model_are_named_with_what_was_expected(shapes):
    with pytest.raises(func.ModelError) as error:
        resnet.classify(Context(*(np.zeros(shape, np.float32) for shape in shapes)), np.zeros((72, 128, 3), np.uint8))
    assert all(str(shape) in str(error.value) for shape in shapes)
    assert "(1, classes)" in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_cost_their_own_classes_only(bad):
    classes, scores = resnet.classify(Context(np.float32([[1, bad, 2, bad, 0, -1, -2]])), np.zeros((9, 9, 3), np.uint8))
    assert classes.tolist() == [2, 0, 4, 5, 6]
    np.testing.assert_allclose(scores, softmax(np.float64([2, 1, 0, -1, -2])), rtol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values, left", [([np.nan] * 3, 0), ([3e38, -3e38, 3e38], 3)])
def test_a_broken_output_ends_nothing(values, left):
    context = Context(np.float32([values]))
    assert len(resnet.classify(context, np.zeros((9, 9, 3), np.uint8))[0]) == left
    assert resnet.myFunc(context, np.zeros((90, 90, 3), np.uint8)).any() == bool(left)


def test_a_failed_inference_is_said_with_the_input_shape():
    context = Context()
    context.outputs = None
    with pytest.raises(func.ModelError, match=r"\(1, 224, 224, 3\)"):
        resnet.classify(context, np.zeros((72, 128, 3), np.uint8))


# ---- what is drawn ----

@pytest.mark.parametrize("background", [0, 128, 255])
def test_five_lines_can_be_read_on_any_background(background):
    IMG = np.full((480, 640, 3), background, np.uint8)
    resnet.draw(IMG, np.arange(5), np.float32([0.5, 0.2, 0.1, 0.1, 0.1]))
    painted = np.flatnonzero((IMG != background).any((1, 2)))
    heights = [len(func.label(f"{func.CLASSES[number]} 0.10", number, 480 / 900)) for number in range(5)]
    assert painted.max() + 1 == sum(heights)
    for number, end in enumerate(np.cumsum(heights)):
        line = IMG[end - heights[number]:end]
        assert (line == func.colour(number)).all(2).sum() > 500  # the label's colour
        assert ((line < 40).all(2) | (line > 215).all(2)).sum() > 50  # letters


def test_text_grows_with_the_frame():
    def share_painted(width, height):
        IMG = resnet.draw(np.zeros((height, width, 3), np.uint8), np.array([1, 2]), np.float32([0.5, 0.4]))
        return np.count_nonzero(IMG.any(2)) / (width * height)
    assert share_painted(3840, 2160) == pytest.approx(share_painted(1280, 720), rel=0.3)


def written(monkeypatch, act):
    """The texts that act() draws."""
    texts, label = [], func.label
    monkeypatch.setattr(func, "label", lambda text, *others: texts.append(text) or label(text, *others))
    act()
    return texts


def test_a_class_without_a_name_is_shown_as_its_number(monkeypatch):
    monkeypatch.setattr(resnet, "CLASSES", ("tench", "goldfish"))
    texts = written(monkeypatch,
                    lambda: resnet.draw(np.zeros((90, 90, 3), np.uint8), np.array([1, 281]), np.float32([0.75, 0.125])))
    assert texts == ["goldfish 0.75", "281 0.12"]


@pytest.mark.parametrize("count, shown", [(80, "cup 1.00"), (1000, "41 1.00")])
def test_the_names_of_other_classes_are_not_used(monkeypatch, count, shown):
    values = np.full((1, count), -9, np.float32)
    values[0, 41] = 9
    assert written(monkeypatch, lambda: resnet.myFunc(Context(values), np.zeros((90, 90, 3), np.uint8)))[0] == shown


# ---- mean and standard deviation ----

def test_the_models_mean_and_std_are_applied_on_the_cpu(context):
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    metadata = {entry.key: entry.value for entry in onnx.load(str(MODEL.with_suffix(".onnx"))).metadata_props}
    assert metadata == {"mean": "123.675 116.28 103.53", "std": "58.395 57.12 57.375"}
    by_hand = ((image[0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0,
                                                                                           1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(str(MODEL.with_suffix(".onnx")), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(context.inference([image])[0], session.run(None, {"image": by_hand})[0], atol=1e-3)


def test_the_rknn_has_them_built_in():
    metadata = {entry.key: entry.value for entry in onnx.load(str(MODEL.with_suffix(".onnx"))).metadata_props}
    model = npu.parse(MODEL.read_bytes())
    np.testing.assert_allclose([model.mean, model.std], normalisation(metadata))


@pytest.fixture
def copied(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL.with_suffix(".onnx").read_bytes())
    return path


def convert_py(*arguments):
    return subprocess.run([sys.executable, "models/convert.py", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True)


def test_convert_writes_mean_and_std_into_the_onnx_and_says_so(copied):
    done = convert_py(copied, "--dtype", "fp", "--mean", "1", "2", "3", "--std", "4", "5", "6.5")
    assert f"{copied}: its metadata now says mean [1.0, 2.0, 3.0], std [4.0, 5.0, 6.5]" in done.stdout
    metadata = {entry.key: entry.value for entry in onnx.load(str(copied)).metadata_props}
    assert normalisation(metadata) == [[1, 2, 3], [4, 5, 6.5]]


@pytest.mark.parametrize("std", [("0.229", "0.224", "0.225"), ("0", "1", "1"), ("nan", "1", "1")])
def test_convert_refuses_numbers_that_cannot_be(copied, std):
    before = copied.read_bytes()
    done = convert_py(copied, "--std", *std)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "three numbers" in done.stderr and copied.read_bytes() == before


def test_convert_refuses_what_is_no_model():
    done = convert_py("README.md", "--dtype", "fp", "--mean", "1", "2", "3")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "README.md: not an ONNX model" in done.stderr


def test_a_model_is_calibrated_with_what_its_example_feeds_it(demo_frames):
    def fed(name):
        path = ROOT / f"models/{name}_emoji.onnx"
        return convert.fed(demo_frames[0], onnx.load(str(path)).graph, describe(path))
    np.testing.assert_array_equal(fed("resnet18"), resnet.crop(demo_frames[0], 224))
    np.testing.assert_array_equal(fed("yolov5n"), func.letterbox(demo_frames[0], 640)[0])


# ---- the demo classifier ----

def test_the_classifier_is_small():
    assert MODEL.with_suffix(".onnx").stat().st_size <= 4e6 and MODEL.stat().st_size <= 4e6


@needs_font
def test_an_object_can_be_drawn_again_from_its_seed():
    assert np.array_equal(draw_object((2, 7))[0], draw_object((2, 7))[0])
    assert not np.array_equal(draw_object((2, 7))[0], draw_object((2, 8))[0])
    assert all(draw_object((2, number), 100)[0].shape == (100, 100, 3) for number in range(30))


@pytest.mark.slow
@needs_font
def test_the_classifier_keeps_its_accuracy_on_unseen_objects(context):
    first, five, _ = accuracy(context, 300)
    assert first >= 0.85
    assert five >= 0.95


@needs_font
def test_main_runs_it_and_writes_what_it_finds(main_py, context, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (512, 512))
    for number in range(12):
        writer.write(cv2.resize(draw_object((5, number))[0], (512, 512)))
    writer.release()
    done = main_py(tmp_path / "clip.avi", "--headless", "--func", "funcs/resnet.py", "--model",
                   "models/resnet18_emoji.rknn",
                   "--save", tmp_path / "out.avi")
    assert done.returncode == 0, done.stderr
    before, after = (cv2.VideoCapture(str(tmp_path / name)) for name in ("clip.avi", "out.avi"))
    for _ in range(12):
        assert class_drawn(after.read()[1]) == resnet.classify(context, before.read()[1])[0][0]
