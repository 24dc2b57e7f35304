"""--then: a second model looks at each tracked object and gives way to the first one."""

import json
import os
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, python
from fakes import wait_until

from results import jsonl, second_model, votes
from results.objects import Objects
from results.second_model import SecondModels
from results.second_steps import Step, cut, plan
from sources.yuv import frame_of_array
from vision.detections import Detections
from vision.drawing import captions
from vision.errors import InputError, ModelError
from vision.model import Model

NAMES = ["person", "car", "plate"]
COLOURS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}
SECOND = str(ROOT / "models/resnet18_emoji.onnx")


class Runtime:
    """A runtime without an NPU: `asked` counts the inferences, which wait for `open`."""

    NPU_CORES = 2

    def __init__(self):
        self.error = None

    def load_rknn(self, path):
        return 0

    def init_runtime(self, **options):
        return 0

    def inference(self, inputs):
        type(self).asked += 1
        assert self.open.wait(60)
        return inputs

    def release(self):
        pass


@pytest.fixture
def runtime():
    """A Runtime class of its own for a test."""
    runtime = type("Runtime", (Runtime,), {"asked": 0, "open": threading.Event()})
    runtime.open.set()
    return runtime


def colour_of(context, IMG):
    """The detect() of a func file: the colour in the middle of a crop; nothing if it is grey."""
    (image,) = context.inference([IMG[None]])
    middle = image[0, image.shape[1] // 2, image.shape[2] // 2].tolist()
    names = [name for name, colour in COLOURS.items() if tuple(middle) == colour]
    return Detections(None, [0] * len(names), [0.9] * len(names), names)


def plates_of(context, IMG):
    """The detect() of a detector: the lower half of a crop is a plate."""
    context.inference([IMG[None]])
    h, w = IMG.shape[:2]
    return Detections([[0, h // 2, w, h]], [2], [0.8], NAMES)


def step(detect=colour_of, key="colours", classes=None, parent=None, **about):
    func = SimpleNamespace(detect=detect, SQUARE=False, **about)
    return Step(f"{key}.rknn", f"{key}.rknn", Model(f"{key}.rknn"), func, classes, parent)


@pytest.fixture
def opened(runtime, monkeypatch):
    """opened(*steps, live=False): a stream with these second models, which may use all the time.
    They are closed at the end."""
    monkeypatch.setattr(second_model, "MAX_LOAD", 1000.0)
    every = []

    def open_(*steps, live=False):
        stream = SimpleNamespace(name="gate", live=live, printed=set())
        every.append(SecondModels(steps, [stream], runtime))
        stream.models = every[-1]
        runtime.asked = 0  # after the trial runs
        return stream

    yield open_
    runtime.open.set()
    for models in every:
        models.close()


def result(stream, number, *objects, file=None, size=(200, 100)):
    """A frame. objects: (id, class, x, side, colour)."""
    frame = np.full((size[1], size[0], 3), 128, np.uint8)
    boxes = [(x, 10, x + side, 10 + side) for _, _, x, side, _ in objects]
    for (x1, y1, x2, y2), (*_, colour) in zip(boxes, objects):
        frame[y1:y2, x1:x2] = COLOURS.get(colour, 128)
    found = Detections(boxes, [NAMES.index(one[1]) for one in objects], [0.9] * len(objects), NAMES)
    found.ids = np.array([one[0] for one in objects], np.int64)
    return SimpleNamespace(
        stream=stream,
        number=number,
        time=number / 4,
        received=number / 4,
        as_read=frame,
        detections=found,
        file=file,
        error=None,
        crossings=[],
        inside=None,
        size=size,
    )


def play(stream, number, *objects, **options):
    """Pass a frame through the second models, and wait until they are idle. Returns the result."""
    one = result(stream, number, *objects, **options)
    stream.second.update(one)
    wait_until(lambda: not stream.models.in_progress, "the crops")
    return one


def texts(one):
    return [{key: text for key, (text, _) in each.items()} for each in one.detections.attributes]


# ---- what users see ----


def test_the_answer_is_in_later_frames_json_picture_and_events(opened):
    stream, objects = opened(step()), Objects("gate")
    car = (7, "car", 20, 40, "red")
    first = play(stream, 0, car)
    objects.update(first)
    assert texts(first) == [{}]
    second = play(stream, 1, car)
    assert second.detections.attributes == [{"colours": ("red", pytest.approx(0.9))}]
    assert captions(second.detections) == ["#7 car 0.90 red"]
    (one,) = jsonl.objects(second.detections)
    assert one["attributes"] == {"colours": ["red", 0.9]}
    (event,) = objects.update(second)
    assert (event["type"], event["event"]) == ("update", "attributes")
    assert event["before"]["attributes"] == {}
    assert event["after"]["attributes"] == {"colours": ["red", 0.9]}
    assert objects.update(play(stream, 2, car)) == []


def test_each_model_looks_at_its_classes_only(opened, runtime):
    stream = opened(step(classes={"car"}), step(key="more", classes={"person", "car"}))
    everything = ((1, "car", 0, 40, "red"), (2, "person", 60, 40, "blue"))
    for number in range(6):
        shown = play(stream, number, *everything)
    assert texts(shown) == [{"colours": "red", "more": "red"}, {"more": "blue"}]


def test_objects_without_an_id_and_small_ones_get_no_second_model(opened, runtime):
    stream = opened(step())
    play(stream, 0, (-1, "car", 0, 40, "red"), (1, "car", 60, second_model.MIN_SIDE - 1, "red"))
    assert runtime.asked == 0
    play(stream, 0)
    without_ids = result(stream, 1, (1, "car", 0, 40, "red"))
    without_ids.detections.ids = None
    stream.second.update(without_ids)
    assert runtime.asked == 0 and without_ids.detections.attributes == [{}]


def test_a_detector_in_between_gives_its_boxes_to_the_next_model(opened):
    """The plate is the lower half of the car, and has another colour."""
    plates = step(plates_of, "plates", {"car"})
    stream = opened(plates, step(classes={"plate"}, parent=plates))
    for number in range(4):
        one = result(stream, number, (1, "car", 0, 60, "red"))
        one.as_read[40:70, :60] = COLOURS["green"]
        stream.second.update(one)
        wait_until(lambda: not stream.models.in_progress, "the crops")
    assert texts(one) == [{"plates": "plate", "colours": "green"}]


def test_answers_are_voted_on(opened, runtime):
    """One wrong answer of four does not show; large crops count more than small ones."""
    stream, shown = opened(step()), []
    for number, colour in enumerate(["blue", "red", "red", "red", "red"]):
        shown.append(texts(play(stream, number, (1, "car", 0, 40, colour)))[0].get("colours"))
    assert shown == [None, "blue", "blue", "red", "red"]
    both = votes.Votes()
    for text, side in (("small", 10), ("small", 10), ("large", 50)):
        both.add((text, 0.9), side)
    assert both.best[0] == "large" and both.best[1] == pytest.approx(0.9 * 50 / 70)


def test_crops_are_sent_until_the_answer_is_sure_and_again_when_the_object_has_grown(
    opened, runtime
):
    stream = opened(step())
    for number in range(8):
        play(stream, number, (1, "car", 0, 20, "red"))
    assert runtime.asked == votes.MIN_ANSWERS
    for number in range(8, 16):
        play(stream, number, (1, "car", 0, int(20 * votes.GROWN), "red"))
    assert runtime.asked == 2 * votes.MIN_ANSWERS


def test_an_object_without_an_answer_gets_a_limited_number_of_crops(opened, runtime):
    stream = opened(step())
    for number in range(votes.MAX_CROPS + 4):
        one = play(stream, number, (1, "car", 0, 40, "grey"))
    assert runtime.asked == votes.MAX_CROPS and texts(one) == [{}]


# ---- who waits for whom ----


@pytest.mark.parametrize("live", [False, True])
def test_a_video_never_waits_for_an_answer(opened, runtime, live):
    stream = opened(step(), live=live)
    runtime.open.clear()
    for number in range(20):  # the second model does not answer
        stream.second.update(result(stream, number, (1, "car", 0, 40, "red")))
    assert stream.models.crops == 1  # the same object is not asked about twice at once
    runtime.open.set()


def test_pictures_wait_for_all_answers(opened):
    """Each has other objects: an id of the picture before means nothing."""
    stream = opened(step())
    for number, colour in enumerate(["red", "blue"]):
        picture = result(
            stream, number, (1, "car", 0, 40, colour), (-1, "car", 60, 40, "green"), file="1.jpg"
        )
        stream.second.update(picture)
        assert texts(picture) == [{"colours": colour}, {"colours": "green"}]


def test_one_crop_for_each_core_is_in_progress_and_the_left_out_ones_are_counted(opened, runtime):
    stream = opened(step())
    runtime.open.clear()
    six = [(number, "car", 30 * number, 20, "red") for number in range(6)]
    stream.second.update(result(stream, 0, *six))
    assert stream.models.in_progress == runtime.NPU_CORES
    assert stream.models.left_out == 4
    stream.second.update(result(stream, 0, *six))
    assert stream.models.left_out == 4  # at the same moment they do not count again
    stream.second.update(result(stream, 1, *six))
    assert stream.models.left_out == 8
    runtime.open.set()
    wait_until(lambda: not stream.models.in_progress, "the crops")
    stream.second.update(result(stream, 2))
    assert stream.models.found == [
        "--then: colours of 2 objects, in 2 crops; 8 crops were left out, because the first model "
        "comes first"
    ]


def test_the_objects_with_the_fewest_crops_come_first(opened, runtime):
    stream = opened(step())
    six = [(number, "car", 30 * number, 20 + number, "red") for number in range(6)]
    for number in range(3):
        play(stream, number, *six)
    assert all(texts(play(stream, 3, *six)))


def test_the_second_model_uses_no_more_than_its_share(opened, runtime, monkeypatch):
    stream = opened(step())
    monkeypatch.setattr(second_model, "MAX_LOAD", 0.0)
    stream.models.credit = 0.0
    stream.second.update(result(stream, 0, (1, "car", 0, 40, "red")))
    assert runtime.asked == 0 and stream.models.left_out == 1


def test_without_an_npu_the_share_is_that_of_the_cpu_cores_which_the_process_may_use(
    opened, runtime, monkeypatch
):
    runtime.cpu_only = True
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)  # of which --bigCores leaves one
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4}, raising=False)
    one = step()
    models = opened(one).models
    monkeypatch.setattr(second_model, "MAX_LOAD", 0.0)
    models.credit, one.cpu_seconds = second_model.MAX_CREDIT, one.cpu_seconds + 10
    assert not models.may_start()


# ---- crops ----


def test_a_crop_is_a_square_around_the_box_inside_the_frame():
    frame = np.arange(100 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 200, 3)
    square = cut(frame, np.float32([90, 40, 110, 50]), SimpleNamespace())
    assert square.shape[0] == square.shape[1] and 20 < square.shape[0] < 25
    assert cut(frame, np.float32([0, 0, 60, 90]), SimpleNamespace()).shape[:2] == (96, 81)
    around = cut(frame, np.float32([50, 50, 90, 60]), SimpleNamespace(SQUARE=False))
    assert np.array_equal(around, frame[50:60, 48:92])
    around[:] = 0
    assert frame[55, 60].any()  # a copy: the frame is drawn on later


@pytest.mark.parametrize(
    "box", [(0, 0, 60, 40), (40, 40, 80, 60), (101, 53, 190, 117), (31, 7, 32, 8)]
)
def test_only_the_crop_of_a_frame_in_yuv_is_converted(demo_frames, box):
    small = cv2.resize(demo_frames[0], (320, 180))
    frame = frame_of_array(cv2.cvtColor(small, cv2.COLOR_BGR2YUV_I420), "I420")
    part = cut(frame, np.float32(box), SimpleNamespace())
    assert frame.made is None
    expected = cut(frame.bgr(), np.float32(box), SimpleNamespace())
    assert part.shape == expected.shape
    assert np.abs(part.astype(int) - expected).mean() < 2.5


# ---- mistakes ----


def first_model():
    return Model("first.rknn", names=NAMES[:2]), SimpleNamespace()


def test_plan_reads_model_and_classes(tmp_path):
    (first,) = plan([SECOND], *first_model(), "cpu")
    assert first.key == "resnet18_emoji" and first.classes is None and first.parent is None
    (one,) = plan([f"{SECOND}@car, person"], *first_model(), "cpu")
    assert one.classes == {"car", "person"}
    (one,) = plan(f"{SECOND}@car", *first_model(), "cpu")  # a setting in main.py
    assert one.classes == {"car"}
    odd = tmp_path / "a@b.onnx"
    odd.write_bytes((ROOT / "models/resnet18_emoji.onnx").read_bytes())
    assert plan([str(odd)], *first_model(), "cpu")[0].key == "a@b"


def test_a_class_of_an_earlier_second_model_makes_a_chain():
    detector = str(ROOT / "models/yolov8n_emoji.onnx")
    first, second = plan([f"{detector}@car", f"{SECOND}@dog"], *first_model(), "cpu")
    assert second.parent is first and first.children == [second]


def test_classes_of_two_models_are_refused():
    first, detector = Model("first.rknn", names=["plate"]), str(ROOT / "models/yolov8n_emoji.onnx")
    with pytest.raises(InputError, match="none of the models before it finds all of these classes"):
        plan([f"{detector}@plate", f"{SECOND}@plate,dog"], first, SimpleNamespace(), "cpu")


@pytest.mark.parametrize(
    "text, message",
    [
        (f"{SECOND}@cra", "none of the models before it finds cra; did you mean car?"),
        (f"{SECOND}@zebra", "They find: car, person"),
        ("@car", "--then @car: names no model."),
        ("none.rknn@car", "none.rknn: no such file, and without an NPU none.onnx is needed"),
    ],
)
def test_a_mistake_in_then_is_reported_in_one_sentence(text, message):
    with pytest.raises(InputError) as error:
        plan([text], *first_model(), "cpu")
    assert message in str(error.value)


def test_two_models_of_the_same_name_are_refused():
    with pytest.raises(InputError, match="another --then is called resnet18_emoji, too"):
        plan([SECOND, f"{SECOND}@car"], *first_model(), "cpu")


def test_a_second_model_that_cannot_be_read_is_reported_before_the_run(opened):
    def broken(context, IMG):
        raise ModelError("its outputs are odd")

    with pytest.raises(InputError, match=r"--then odd.rknn: its outputs are odd\."):
        opened(step(broken, "odd"))


def test_a_classifier_as_first_model_is_refused(main_here):
    model = ROOT / "models/resnet18_emoji.onnx"
    done = main_here("--runtime", "cpu", "--model", model, "--then", model, "--headless")
    assert done.returncode == 2 and "--then needs boxes" in done.stderr


# ---- real models ----


def test_main_names_the_objects_of_pictures(main_py, tmp_path, demo_frames):
    cv2.imwrite(str(tmp_path / "street.png"), demo_frames[0])
    done = main_py(
        *(tmp_path / "street.png", "--runtime", "cpu", "--headless", "--json", "-"),
        *("--then", f"{SECOND}@car,dog,truck"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    named = [one for one in line["objects"] if "attributes" in one]
    assert {one["class"] for one in named} == {"car", "dog"}
    agreed = sum(one["attributes"]["resnet18_emoji"][0] == one["class"] for one in named)
    assert agreed >= len(named) - 1
    assert f"--then: resnet18_emoji of {len(named)} objects" in done.stderr


@pytest.mark.slow
def test_the_demos_classifier_names_nine_of_ten_objects(opened, demo_truth, monkeypatch):
    """The demo video at 4 frames a second, with its true boxes."""
    from funcs import resnet
    from results.tracking import Tracker
    from runtimes import cpu
    from vision.coco import COCO_CLASSES
    from vision.model import describe

    monkeypatch.setattr(second_model, "MAX_LOAD", 1000.0)
    stream = SimpleNamespace(name="demo", live=False)
    one = Step(SECOND, SECOND, describe(SECOND), resnet, None, None)
    models = SecondModels([one], [stream], type("CPU", (cpu.RKNNLite,), {"NPU_CORES": 4}))
    models.cores = 100  # no crop is left out, however slow this machine is
    tracker, video, right = Tracker(), cv2.VideoCapture(str(ROOT / "models/demo.mp4")), {}
    for number, truth in enumerate(demo_truth["frames"]):
        video.grab()
        if number % 15:
            continue
        rows = [row for row in truth if row[5] > 0.3]
        found = Detections(
            [row[1:5] for row in rows], [row[0] for row in rows], [0.9] * len(rows), COCO_CLASSES
        )
        shown = SimpleNamespace(
            **{"stream": stream, "number": number, "time": number / 60, "file": None},
            detections=found,
            as_read=video.retrieve()[1],
        )
        tracker.update(shown)
        stream.second.update(shown)
        wait_until(lambda: not models.in_progress, "the crops")
        for identity, kind, said in zip(found.ids, found.classes, found.attributes):
            if identity >= 0:
                said = said.get("resnet18_emoji", ("nothing",))[0]
                right[identity] = said == COCO_CLASSES[kind]
    models.close()
    assert len(right) > 30 and sum(right.values()) >= 0.9 * len(right)


def test_without_the_flag_then_none_of_its_files_is_imported():
    code = (
        "import sys; sys.argv = ['main.py', '--version']\n"
        "import main\n"
        "assert not {'results.second_model', 'results.votes'} & set(sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
