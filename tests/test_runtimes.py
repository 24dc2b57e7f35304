"""runtimes/: the class that runs a model on this machine, and the description of the model."""

import os
import sys
import types

import pytest
from conftest import ROOT

import runtimes
from doctor.board import is_board
from runtimes import cpu, librknnrt, simulated, teflon
from vision.errors import InputError
from vision.model import Model, describe

MODEL = str(ROOT / "models/yolov5n_emoji.rknn")


class Wheel:
    """A class like RKNNLite of rknn-toolkit-lite2 2.5.0."""

    __module__ = "rknnlite.api.rknn_lite"

    def inference(self, inputs, reuse_outputs=False):
        return []


@pytest.fixture
def wheel(monkeypatch):
    """rknn-toolkit-lite2 is installed."""
    api = types.ModuleType("rknnlite.api")
    api.RKNNLite = Wheel
    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", api)
    return Wheel


@pytest.fixture(autouse=True)
def no_library(monkeypatch, tmp_path):
    monkeypatch.setenv("RKNNRT_LIB", str(tmp_path / "librknnrt.so"))
    monkeypatch.setattr(cpu, "why", cpu.why)


def test_a_board_uses_the_wheel(wheel):
    assert runtimes.choose(MODEL, "rk3588s") is wheel
    assert runtimes.by_name("wheel") is wheel


def test_a_board_without_the_wheel_uses_the_library(tmp_path):
    (tmp_path / "librknnrt.so").write_bytes(b"")
    assert runtimes.choose(MODEL, "rk3588s") is librknnrt.RKNNLite


def test_a_board_with_neither_uses_the_cpu_and_says_why():
    assert runtimes.choose(MODEL, "rk3588s") is cpu.RKNNLite
    assert "rk3588s found, but rknn-toolkit-lite2 cannot be imported" in cpu.why


def test_an_unknown_rknn_soc_is_reported(monkeypatch):
    monkeypatch.setenv("RKNN_SOC", "rk9999")
    assert runtimes.choose(MODEL, None) is cpu.RKNNLite
    assert "RKNN_SOC=rk9999 is not a known SoC" in cpu.why


def test_a_pc_uses_the_cpu_even_if_the_wheel_is_installed(wheel):
    assert runtimes.choose(MODEL, None) is cpu.RKNNLite


def test_a_tflite_runs_on_the_open_driver(wheel):
    assert runtimes.choose("x.tflite", "rk3588") is teflon.RKNNLite
    assert runtimes.choose(Model("x.TFLITE"), None) is teflon.RKNNLite


def test_the_open_kernel_driver_is_reported(monkeypatch, tmp_path):
    (tmp_path / "librknnrt.so").write_bytes(b"")
    monkeypatch.setattr(runtimes, "ROCKET", (str(tmp_path),))
    assert runtimes.choose(MODEL, "rk3588") is cpu.RKNNLite
    assert "--runtime teflon" in cpu.why and "--runtime teflon" in runtimes.missing()


def test_an_npu_of_another_maker_does_not_hide_the_library(monkeypatch, tmp_path):
    (tmp_path / "librknnrt.so").write_bytes(b"")
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/accel/accel0" or exists(path))
    assert runtimes.choose(MODEL, "rk3588") is librknnrt.RKNNLite


@pytest.mark.parametrize("machine, board", [("aarch64", True), ("armv8l", True), ("x86_64", False)])
def test_a_pc_with_two_gpus_is_no_board(monkeypatch, tmp_path, machine, board):
    monkeypatch.delenv("RKNN_SOC", raising=False)
    for name in ("COMPATIBLE", "LIBRARY"):
        monkeypatch.setattr(runtimes, name, str(tmp_path / name))
    (tmp_path / "renderD129").write_bytes(b"")
    monkeypatch.setattr(runtimes, "DEVICES", (str(tmp_path / "renderD129"),))
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert runtimes.choose(MODEL, None) is cpu.RKNNLite
    assert (runtimes.UNMASK in cpu.why) == is_board("", None) == board


def test_missing_names_what_this_machine_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    for name in ("COMPATIBLE", "LIBRARY"):
        monkeypatch.setattr(runtimes, name, str(tmp_path / name))
    monkeypatch.setattr(runtimes, "DEVICES", (str(tmp_path / "device"),))
    monkeypatch.setattr(runtimes, "ROCKET", ())
    assert all(name in runtimes.missing() for name in ("COMPATIBLE", "LIBRARY", "device"))
    for name in ("COMPATIBLE", "LIBRARY", "device"):
        (tmp_path / name).write_bytes(b"")
    assert runtimes.missing() == ""


def test_only_the_vendors_runtimes_run_on_the_npu(wheel):
    npu = simulated.SimulatedNPU
    assert runtimes.runs_on_npu(wheel) and runtimes.runs_on_npu(librknnrt.RKNNLite)
    assert not any(map(runtimes.runs_on_npu, (cpu.RKNNLite, teflon.RKNNLite, npu)))


def test_prepare_describes_what_the_runtime_will_run(wheel):
    assert runtimes.prepare(MODEL, None, "rk3588") == (wheel, describe(MODEL, "rk3588"))
    assert runtimes.prepare(MODEL, None, None) == (cpu.RKNNLite, describe(MODEL))
    runtime, model = runtimes.prepare(MODEL, teflon.RKNNLite, "rk3588")
    assert runtime is teflon.RKNNLite and model.path.endswith("yolov5n_emoji.tflite")


def test_prepare_keeps_an_existing_description():
    model = Model(MODEL, conf=0.5)
    assert runtimes.prepare(model, None, None)[1] is model


def test_prepare_refuses_a_model_for_another_soc(wheel):
    with pytest.raises(InputError, match="made for the rk3588, but this board has an rk3576"):
        runtimes.prepare(MODEL, None, "rk3576")
    npu = simulated.SimulatedNPU  # only plays recorded outputs
    assert runtimes.prepare(MODEL, npu, "rk3576")[0] is npu


def test_prepare_lets_the_runtime_report_a_missing_file(tmp_path):
    path = str(tmp_path / "none.rknn")
    assert runtimes.prepare(path, None, None) == (cpu.RKNNLite, Model(path))


# ---- an .onnx on a board ----


def made_at(path, time):
    path.write_bytes((ROOT / f"models/resnet18_emoji{path.suffix}").read_bytes())
    os.utime(path, (time, time))
    return str(path)


@pytest.mark.parametrize("name", ["best.rknn", "best-rk3588.rknn", "best-rk3588s.rknn"])
def test_on_a_board_the_rknn_beside_an_onnx_runs(wheel, tmp_path, name):
    onnx, rknn = made_at(tmp_path / "best.onnx", 1e9), made_at(tmp_path / name, 1e9 - 50)
    assert runtimes.model_for(None, onnx, "rk3588s") == (rknn, "rk3588s")
    assert runtimes.prepare(onnx, None, "rk3588s")[1].path == rknn
    assert runtimes.model_for(None, onnx, None) == (onnx, None)
    assert runtimes.model_for("cpu", onnx, "rk3588s") == (onnx, None)
    os.unlink(onnx)
    assert runtimes.model_for(None, onnx, "rk3588s") == (rknn, "rk3588s")


def test_the_plain_loop_of_the_benchmark_runs_the_rknn_beside_an_onnx(tmp_path):
    onnx, rknn = made_at(tmp_path / "best.onnx", 1e9), made_at(tmp_path / "best.rknn", 1e9)
    opened = []

    class Board(Wheel):
        __module__ = Wheel.__module__

        def load_rknn(self, path):
            opened.append(path)
            return 0

        def init_runtime(self):
            return 0

    assert simulated.opened(Board, onnx, "rk3588").model.path == rknn
    assert opened == [rknn]


def test_on_a_board_an_onnx_that_is_newer_than_its_rknn_does_not_run(wheel, tmp_path):
    onnx, rknn = made_at(tmp_path / "best.onnx", 1e9), made_at(tmp_path / "best.rknn", 1e9 - 70)
    for open_model in (
        lambda: runtimes.model_for(None, onnx, "rk3588"),
        lambda: runtimes.prepare(onnx, None, "rk3588"),
    ):
        with pytest.raises(InputError) as caught:
            open_model()
        assert str(caught.value).startswith(f"{onnx}: is newer than {rknn}. To run that one, use")
        assert f"models/convert.py {onnx} --calibration SOURCE" in str(caught.value)


def test_on_a_board_an_onnx_without_a_rknn_is_refused_with_the_command_that_converts_it(
    wheel, tmp_path, monkeypatch, main_here
):
    monkeypatch.setenv("RKNN_SOC", "rk3588")
    onnx = made_at(tmp_path / "best.onnx", 1e9)
    done = main_here("--model", onnx)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{onnx}: the NPU runs .rknn files. Convert it: " in done.stderr
    assert f"models/convert.py {onnx} --calibration SOURCE" in done.stderr


def test_a_long_inference_on_the_cpu_is_not_a_hung_npu():
    assert cpu.RKNNLite.ON_CPU and teflon.RKNNLite.ON_CPU
    assert not getattr(librknnrt.RKNNLite, "ON_CPU", False)


def test_an_unknown_name_is_refused_with_the_known_ones():
    assert runtimes.by_name(None) is None
    with pytest.raises(InputError, match="unknown; choose from wheel, library, cpu, teflon"):
        runtimes.by_name("gpu")
