"""models/agreement.py: the share of the float model's detections that int8 finds, too."""

import sys
import types

import numpy as np
import pytest
from conftest import ROOT

from runtimes import cpu
from vision.detections import Detections
from vision.errors import InputError

sys.path.insert(0, str(ROOT / "models"))
import agreement  # noqa: E402
from agreement import Agreement, found_again  # noqa: E402

NAMES = ("cat", "dog")
ONNX = ROOT / "models/yolov5n_emoji.onnx"


def boxes(*objects):
    """Detections of objects (class, x), 10 x 10 pixels each."""
    return Detections(
        [[x, 0, x + 10, 10] for _, x in objects],
        [NAMES.index(name) for name, _ in objects],
        np.linspace(0.9, 0.5, len(objects)),
        NAMES,
    )


@pytest.mark.parametrize(
    "floats, others, expected",
    [
        ([("cat", 0), ("dog", 50)], [("dog", 50), ("cat", 0)], [True, True]),
        ([("cat", 0), ("dog", 50)], [("dog", 0), ("cat", 50)], [False, False]),  # other classes
        ([("cat", 0)], [("cat", 3)], [True]),  # IoU 7 / 13
        ([("cat", 0)], [("cat", 4)], [False]),  # IoU 6 / 14
        ([("cat", 0), ("cat", 1)], [("cat", 0)], [True, False]),  # each counts once
        ([("cat", 0)], [], [False]),
        ([], [("cat", 0)], []),
    ],
)
def test_a_detection_is_found_again_by_its_class_and_place(floats, others, expected):
    assert found_again(boxes(*floats), boxes(*others)).tolist() == expected


def test_the_best_classes_of_a_classifier_are_compared():
    one, two = (Detections(None, order, [0.6, 0.4], NAMES) for order in ([0, 1], [1, 0]))
    assert found_again(one, one).tolist() == [True] and found_again(one, two).tolist() == [False]


def agreement_of(cats, found_cats, dogs, found_dogs, more=0):
    """Each cat and each dog in a frame of its own."""
    result = Agreement()
    for name, count, found in (("cat", cats, found_cats), ("dog", dogs, found_dogs)):
        for number in range(count):
            result.add(boxes((name, 0)), boxes((name, 0)) if number < found else boxes())
    for _ in range(more):
        result.add(boxes(), boxes(("cat", 0)))
    return result


def test_the_report_has_the_share_of_each_class():
    lines = agreement_of(20, 20, 12, 11, more=3).report("on the NPU").splitlines()
    assert lines == [
        "Agreement: int8 (on the NPU) finds 96.9% of the float model's 32 detections in 35 frames "
        "not used for calibration, and 3 that the float model does not find.",
        "    cat  100.0% of 20",
        "    dog   91.7% of 12",
    ]


@pytest.mark.parametrize(
    "counts, weak",
    [
        ((20, 17, 12, 12), "cat"),  # of a class with enough detections
        ((20, 20, 4, 3), None),  # four say little
        ((4, 3, 4, 3), "all classes"),
        ((40, 0, 20, 0), "cat, dog"),
    ],
)
def test_a_low_agreement_is_reported_with_advice(counts, weak):
    report = agreement_of(*counts).report("on the NPU")
    assert ("This is low" in report) == (weak is not None)
    assert weak is None or f"This is low for {weak}. Try more frames" in report
    assert weak is None or all(flag in report for flag in ("--count", "--algorithm", "--dtype fp"))


def test_without_detections_the_agreement_is_unknown():
    assert "Agreement: unknown" in agreement_of(0, 0, 0, 0, more=2).report("on the NPU")


@pytest.fixture
def wheel(monkeypatch):
    """rknn-toolkit-lite2 is installed; its NPU runs the .onnx."""
    api = types.ModuleType("rknnlite.api")
    api.RKNNLite = type("RKNNLite", (cpu.RKNNLite,), {"__module__": "rknnlite.api"})
    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", api)
    monkeypatch.setattr(cpu, "why", cpu.why)


class Built:
    """A toolkit's model whose simulator finds nothing."""

    def init_runtime(self):
        return 0

    def inference(self, inputs, data_format):
        assert data_format == "nhwc" and inputs[0].shape == (1, 640, 640, 3)
        return [np.zeros((1, 255, side, side), np.float32) for side in (80, 40, 20)]


def test_on_a_board_the_npu_runs_int8_and_on_a_pc_the_simulator(wheel, demo_frames):
    def report(soc):
        return agreement.compare(ONNX, ONNX.with_suffix(".rknn"), Built(), soc, demo_frames[20:21])

    assert "int8 (on the NPU) finds 100.0% of" in report("rk3588s")
    for soc in (None, "rk3576"):  # the model is for the RK3588
        assert "int8 (in rknn-toolkit2's simulator) finds 0.0% of" in report(soc)
        assert "This is low for" in report(soc)


def test_a_simulator_that_does_not_start_is_reported(demo_frames):
    built = types.SimpleNamespace(init_runtime=lambda: -1)
    with pytest.raises(InputError, match="did not start"):
        agreement.compare(ONNX, ONNX.with_suffix(".rknn"), built, None, demo_frames[:1])
