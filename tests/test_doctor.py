"""main.py --doctor, on folders that look like a board's /sys, /proc and /dev, and with a wheel
written for the test. tests/board/test_faults.py runs it on the emulated board."""

import json
import os
import struct
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

import doctor
import runtimes
from doctor import board, npu, software, video
from vision.model import Model

NPU = "sys/devices/platform/fdab0000.npu"
NODES = "/dev/dri/card1", "/dev/dri/renderD129"
WHEEL = """
import ctypes, os, signal, threading
import numpy as np

class RKNNLite:
    opened = 0

    def load_rknn(self, path):
        return 0

    def init_runtime(self, core_mask=0):
        self.mask = core_mask
        RKNNLite.opened += 1
        {on_open}
        return 0

    def inference(self, inputs, reuse_outputs=False):
        {on_run}
        return [np.zeros((1, 4), np.float32)]

    def get_sdk_version(self):
        return "API: 2.3.2 (429f97ae6b@2025-04-09T09:09:27)\\nDRV: 0.9.8"

    def release(self):
        pass
"""
FORMATS = """ioctl: VIDIOC_ENUM_FMT
	Type: Video Capture

	[0]: 'YUYV' (YUYV 4:2:2)
		Size: Discrete 640x480
			Interval: Discrete 0.033s (30.000 fps)
		Size: Discrete 1920x1080
			Interval: Discrete 0.200s (5.000 fps)
	[1]: 'MJPG' (Motion-JPEG, compressed)
		Size: Discrete 1920x1080
			Interval: Discrete 0.033s (30.000 fps)
			Interval: Discrete 0.200s (5.000 fps)
"""


class Root:
    """A folder like the / of an Orange Pi 5 with the vendor's kernel. `path` is its path."""

    def __init__(self, folder):
        self.path = str(folder)
        self.write("proc/sys/kernel/osrelease", "6.1.43-rockchip-rk3588\n")
        self.write("proc/device-tree/model", "Orange Pi 5\0")
        self.write("proc/device-tree/compatible", "xunlong,orangepi-5\0rockchip,rk3588s\0")
        self.write("proc/meminfo", "MemTotal:  8021000 kB\nMemAvailable:  6144000 kB\n")
        self.write("sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.8\n")
        self.write("sys/class/thermal/thermal_zone0/type", "npu-thermal\n")
        self.write("sys/class/thermal/thermal_zone0/temp", "45300\n")
        self.write("usr/lib/librknnrt.so", "\x7fELF librknnrt version: 2.3.2 (429f97ae6b)")
        for node in NODES:
            self.write(node, "")
            self.link(f"sys/class/drm/{node[9:]}/device", f"{self.path}/{NPU}")
        self.npu_clock(1000)

    def write(self, path, text):
        file = os.path.join(self.path, path.lstrip("/"))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "w") as opened:
            opened.write(text)

    def link(self, path, target):
        os.makedirs(os.path.dirname(os.path.join(self.path, path)), exist_ok=True)
        os.symlink(target, os.path.join(self.path, path))

    def remove(self, path):
        os.rename(f"{self.path}/{path}", f"{self.path}/removed {path.replace('/', '-')}")

    def npu_clock(self, mhz):
        folder = "sys/class/devfreq/fdab0000.npu"
        self.write(f"{folder}/cur_freq", f"{mhz}000000\n")
        self.write(f"{folder}/available_frequencies", "300000000 600000000 1000000000\n")
        self.write(f"{folder}/governor", "rknpu_ondemand\n")


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path / "root")


@pytest.fixture
def rknn(tmp_path):
    """rknn(soc): path of a .rknn that says it is for that SoC, with an input of 8 x 8 pixels."""

    def write(soc="rk3588", toolkit="2.3.2"):
        path = tmp_path / "small.rknn"
        tensors = [("in", [1, 3, 8, 8]), ("out", [1, 4])]
        text = json.dumps(
            {
                "norm_tensor": [
                    {"tensor_id": number, "url": name, "size": size}
                    for number, (name, size) in enumerate(tensors)
                ],
                "graph": [
                    {"left": "input", "left_tensor_id": 0, "right_tensor_id": 0},
                    {"left": "output", "left_tensor_id": 0, "right_tensor_id": 1},
                ],
                "target_platform": [soc],
                "version": toolkit,
            }
        ).encode()
        head = b"RKNN".ljust(8, b"\0") + struct.pack("<QQ", 6, 0)
        path.write_bytes(head.ljust(64, b"\0") + struct.pack("<Q", len(text)) + text)
        return str(path)

    return write


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """wheel(on_open=code, on_run=code): install a wheel that executes this code, for the tests of
    the NPU, which run in processes of their own."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)

    def install(on_open="pass", on_run="pass"):
        (tmp_path / "wheel/rknnlite").mkdir(parents=True)
        (tmp_path / "wheel/rknnlite/__init__.py").write_text("")
        text = WHEEL.format(on_open=on_open, on_run=on_run)
        (tmp_path / "wheel/rknnlite/api.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "wheel"))

    return install


@pytest.fixture
def examine(root, monkeypatch, capsys):
    """examine(soc, model, **flags): the exit code and the screen on `root`."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("RKNNRT_LIB", raising=False)

    def run(soc, model, **flags):
        monkeypatch.setenv("RKNN_SOC", soc)
        args = {"model": model, "runtime": None, "threads": None, "reader": None, **flags}
        code = doctor.examine(SimpleNamespace(**args), root.path)
        return code, " ".join(capsys.readouterr().out.split())

    return run


# ---- the whole screen ----


def test_a_board_that_works_gets_one_screen_of_output_and_code_0(examine, rknn, wheel):
    wheel()
    code, screen = examine("rk3566", rknn("rk3566", "2.5.0"))
    assert code == 0 and "The NPU works." in screen and "->" not in screen
    for fact in (
        "rk3566, 1 NPU core",
        "Orange Pi 5",
        "6.1.43-rockchip-rk3588",
        "rknpu 0.9.8",
        "/dev/dri/card1, /dev/dri/renderD129",
        "librknnrt.so 2.3.2",
        "for the rk3566, by toolkit 2.5.0 (newer than librknnrt.so), input 8x8",
        "ms a run, --runtime wheel, librknnrt 2.3.2, driver 0.9.8",
        "2 at once",
        "1000 of 1000 MHz (rknpu_ondemand)",
        "NPU 45.3 C",
        "6,000 of 7,833 MB free",
    ):
        assert fact in screen, fact


def test_a_core_that_fails_is_named_and_the_npu_works(examine, rknn, wheel):
    failing = "if self.mask == 2: print('E RKNN: failed to submit!, op id: 1'); return None"
    wheel(on_run=failing)
    code, screen = examine("rk3576", rknn("rk3576"), threads=2)
    assert code == 0 and "The NPU works except core 1" in screen
    assert 'NPU core 1 fails -> The driver does not accept runs ("failed to submit")' in screen
    assert "update the kernel" in screen and "2 at once" in screen


def test_memory_for_too_few_contexts_is_shown_with_the_number_that_fits(examine, rknn, wheel):
    full = "E RKNN: failed to malloc npu memory, size: 6421360"
    wheel(on_open=f"if RKNNLite.opened > 3: print('{full}'); return -1")
    code, screen = examine("rk3566", rknn("rk3566"), threads=6)
    assert code == 0
    assert "only 3 of 6 can be opened -> main.py --threads 3. The NPU's memory is used" in screen


def test_a_pc_gets_code_3(main_py):
    ran = main_py("--doctor", env={**os.environ, "DISPLAY": "", "RKNN_SOC": ""})
    assert ran.returncode == 3, ran.stderr
    assert "This is not a Rockchip board. main.py runs models on the CPU." in ran.stdout
    assert "The NPU cannot be used." in ran.stdout and "yolov5n_emoji.onnx" in ran.stdout


# ---- tests of the NPU ----


def failure(model, library="2.3.2"):
    """The problem of the only core."""
    ((line, works),) = npu.cores(model, "rk3566", None, library)
    assert (line.fact, works) == ("fails", False)
    return line.problem


@pytest.fixture
def model(rknn, monkeypatch):
    monkeypatch.setenv("RKNN_SOC", "rk3566")
    return software.model(rknn("rk3566", "2.3.2"), "rk3566", "")[1]


def test_a_library_too_old_for_the_model_names_the_one_to_install(model, wheel):
    # printed by C, as librknnrt.so does
    wheel(on_open="ctypes.CDLL(None).puts(b'E RKNN: Invalid RKNN model version 6'); return -1")
    assert failure(model, "1.4.0").startswith(
        "librknnrt.so 1.4.0 is too old for this model, which toolkit 2.3.2 made. "
        "Install librknnrt.so 2.3.2"
    )


def test_a_library_that_crashes_does_not_end_the_doctor(model, wheel):
    wheel(on_open="os.kill(os.getpid(), signal.SIGSEGV)")
    assert "The process crashed (SIGSEGV)" in failure(model)


def test_a_library_that_hangs_does_not_stop_the_doctor(model, wheel, monkeypatch):
    monkeypatch.setattr(npu, "LIMIT_SECONDS", 0)
    monkeypatch.setattr(npu, "MORE_SECONDS", 1)
    wheel(on_open="threading.Event().wait()")
    assert "No answer for 1 s. Switch the board off and on" in failure(model)


def test_a_missing_wheel_and_library_are_named(model, monkeypatch, tmp_path):
    monkeypatch.setenv("RKNNRT_LIB", str(tmp_path / "none"))
    assert "rknn-toolkit-lite2 cannot be imported" in failure(model)


@pytest.mark.parametrize(
    "output, remedy",
    [
        (  # librknnrt.so's own words
            "E RKNN: Mismatch driver version, librknnrt 2.3.2 requires driver version >= 0.9.2, "
            "but you have driver version: 0.8.2 which is incompatible!",
            "driver 0.8.2 is too old for librknnrt.so 2.3.2, which needs 0.9.2: update the kernel",
        ),
        (
            "RKNN model version is 2.5.0, but current librknnrt.so is support model version <= 1",
            "librknnrt.so 2.3.2 is too old for this model",
        ),
        ("OSError: /usr/lib/librknnrt.so: invalid ELF header", "is not a library for this board"),
        (
            "OSError: /lib/aarch64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found",
            "needs a newer system (GLIBC_2.38)",
        ),
        ("E RKNN: failed to open rknpu module, need to insmod rknpu dirver!", "cannot be opened"),
        (
            "E RKNN: [14:34] a \\new error\nException: RKNN init failed",
            "E RKNN: [14:34] a \\new error",
        ),
    ],
)
def test_what_the_library_prints_is_explained(output, remedy):
    error = "context 1 of 1 could not open x.rknn: see the runtime's message above"
    text = npu.explain(npu.Result(error=error, output=output), Model("x.rknn"), "2.3.2")
    assert remedy in text and "above" not in text.replace('"NPU device" above', "")


def test_the_open_driver_is_tested_with_the_tflite(root, examine):
    pytest.importorskip("ai_edge_litert")
    for path in ("sys/kernel/debug/rknpu", "sys/class/drm", "dev/dri"):
        root.remove(path)
    root.write("sys/module/rocket/version", "")
    root.write("dev/accel/accel0", "")
    code, screen = examine("rk3588", str(ROOT / "models/yolov5n_emoji.rknn"))
    assert code == 3
    assert "NPU driver rocket" in screen and "--runtime teflon" in screen
    assert "NPU device /dev/accel/accel0" in screen and "yolov5n_emoji.tflite" in screen
    assert "yolov5n_emoji.tflite, on the CPU" not in screen
    assert "NPU fails -> The NPU is not used: " in screen


def test_without_a_tflite_the_open_driver_cannot_be_tested(root, examine, rknn):
    root.write("sys/module/rocket/version", "")
    root.remove("sys/kernel/debug/rknpu")
    code, screen = examine("rk3588", rknn())
    assert code == 3 and "small.tflite: no such file. Make it with models/convert.py" in screen


def test_a_model_for_another_soc_is_named_and_not_run(examine, rknn):
    code, screen = examine("rk3588", rknn("rk3576"))
    assert code == 3
    assert "made for the rk3576, but this board has an rk3588" in screen and "core 0" not in screen


# ---- the board ----


def test_a_device_that_may_not_be_opened_names_the_group_to_join(root):
    closed = f"{root.path}/dev/dri/renderD129"
    line = board.devices(
        root.path, access=lambda path, _: path != closed, group_of=lambda path: "render"
    )
    assert line.problem.startswith(
        "No permission to open /dev/dri/renderD129. Join: sudo usermod -aG"
    )
    assert "-aG render " in line.problem and "log out and in" in line.problem


def test_devices_of_two_groups_name_both(root):
    line = board.devices(
        root.path,
        access=lambda *_: False,
        group_of=lambda path: "video" if "card" in path else "render",
    )
    assert "-aG render,video " in line.problem


def test_a_container_without_the_device_names_dockers_flag(root):
    root.write(".dockerenv", "")
    root.remove("dev/dri")
    assert "--device /dev/dri" in board.devices(root.path).problem


def test_a_container_without_device_tree_names_the_remedies(root, monkeypatch):
    monkeypatch.delenv("RKNN_SOC", raising=False)
    root.write(".dockerenv", "")
    root.remove("proc/device-tree")
    first, kernel = board.system(root.path, None)
    assert runtimes.UNMASK in first.problem and "RKNN_SOC" in first.problem
    assert "in a container" in kernel.fact


def test_an_npu_of_another_maker_is_no_board(tmp_path):
    root = tmp_path / "dev/accel"
    root.mkdir(parents=True)
    (root / "accel0").write_text("")
    assert not board.is_board(str(tmp_path), None)


def test_another_soc_is_named(root, monkeypatch):
    monkeypatch.delenv("RKNN_SOC", raising=False)
    root.write("proc/device-tree/compatible", "pine64,rockpro64\0rockchip,rk3399\0")
    assert "This board is a rockchip,rk3399." in next(board.system(root.path, None)).problem


def test_without_root_it_says_what_root_would_add(root, examine, rknn, monkeypatch):
    root.remove("sys/kernel/debug/rknpu")  # this folder is closed to others
    root.write("sys/module/rknpu/parameters/x", "")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    _, screen = examine("rk3588", rknn("rk3576"))
    assert "NPU driver rknpu NPU device" in screen
    assert "Root also sees the NPU's load, the driver's version, and other" in screen
    assert f"sudo {sys.executable} main.py --doctor" in screen


def test_the_npu_at_its_lowest_clock_names_performance_sh(root):
    assert [line.problem for line in board.clocks(root.path)] == [""]
    root.npu_clock(300)
    (line,) = board.clocks(root.path)
    assert line.fact == "300 of 1000 MHz (rknpu_ondemand)"
    assert "sudo ./performance.sh" in line.problem


def test_clocks_of_the_cpu_are_shown(root):
    folder = "sys/devices/system/cpu/cpufreq/policy4"
    root.write(f"{folder}/related_cpus", "4 5\n")
    root.write(f"{folder}/scaling_cur_freq", "408000\n")
    root.write(f"{folder}/scaling_available_frequencies", "408000 2256000\n")
    root.write(f"{folder}/scaling_governor", "schedutil\n")
    assert list(board.clocks(root.path))[1].fact == "CPU 4-5 408 of 2256 MHz (schedutil)"


def test_another_process_that_uses_the_npu_is_named(root):
    assert board.users(root.path, 1) is None
    for pid, library in (("812", "/usr/lib/librknnrt.so"), ("900", "/usr/lib/libGL.so")):
        root.link(f"proc/{pid}/fd/5", "/dev/dri/card1")
        root.write(f"proc/{pid}/maps", f"7f00-7f01 r-xp 00000000 b3:01 42 {library}\n")
        root.write(f"proc/{pid}/cmdline", "python3\0process 1.py\0")
    line = board.users(root.path, 1)
    assert line.fact == "process 812 (python3 process 1.py)" and line.problem.endswith("kill 812")
    assert board.users(root.path, 812) is None


def test_another_process_is_named_without_its_passwords(root):
    root.link("proc/812/fd/5", "/dev/dri/card1")
    root.write("proc/812/maps", "7f00-7f01 r-xp 00000000 b3:01 42 /usr/lib/librknnrt.so\n")
    url = "rtsp://admin:a-secret-that-is-quite-long@192.168.1.20/live"
    root.write("proc/812/cmdline", f"python3\0/home/pi/rknnpool/main.py\0{url}\0")
    fact = board.users(root.path, 1).fact
    assert "rtsp://admin:***@" in fact and "secret" not in fact


def test_a_hot_chip_gets_a_hint(root):
    root.write("sys/class/thermal/thermal_zone0/temp", "91000\n")
    (line,) = board.heat(root.path)
    assert "91 C (npu-thermal)" in line.fact and "fan" in line.problem


def test_the_memory_for_devices_is_shown(root):
    root.write("proc/meminfo", "CmaTotal:  16384 kB\nCmaFree:  12288 kB\n")
    assert [line.fact for line in board.memory(root.path)] == ["12 of 16 MB free for devices (CMA)"]


# ---- software ----


def test_a_wheel_for_another_python_names_the_command(tmp_path, monkeypatch):
    folder = tmp_path / "rknn_toolkit_lite2-2.3.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: rknn-toolkit-lite2\nVersion: 2.3.2\n")
    (folder / "WHEEL").write_text("Tag: cp37-cp37m-manylinux_2_17_aarch64\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    line = software.wheel()
    assert line.fact == "rknn-toolkit-lite2 2.3.2"
    assert "It was built for Python 3.7" in line.problem
    assert f"{sys.executable} -m pip install --force-reinstall" in line.problem
    here = "cp{}{}".format(*sys.version_info[:2])
    (folder / "WHEEL").write_text(f"Tag: {here}-{here}-manylinux_2_17_aarch64\n")
    assert software.wheel().problem == ""


def test_a_library_that_is_a_web_page_is_named(root, monkeypatch):
    monkeypatch.delenv("RKNNRT_LIB", raising=False)
    root.write("usr/lib/librknnrt.so", "<!DOCTYPE html>")
    assert (
        "This file is not a library, perhaps a saved web page"
        in software.library(root.path).problem
    )


# ---- cameras and decoder ----


@pytest.fixture
def v4l2(tmp_path, monkeypatch):
    """v4l2(text): install a v4l2-ctl that prints this text for /dev/video0."""

    def install(text):
        script = tmp_path / "bin/v4l2-ctl"
        script.parent.mkdir()
        (tmp_path / "formats").write_text(text)
        script.write_text(f'#!/bin/sh\n[ "$2" != /dev/video0 ] || cat "{tmp_path}/formats"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")

    return install


def test_a_camera_names_the_flags_of_its_fastest_mode(root, v4l2):
    v4l2(FORMATS)
    root.write("sys/class/video4linux/video0/name", "HD Webcam\n")
    root.write("sys/class/video4linux/video10/name", "rkisp_mainpath\n")
    camera, others = video.cameras(root.path)
    assert camera.name == "camera 0"
    assert "HD Webcam: 1920x1080 at 5 FPS in YUYV, 30 FPS in MJPG" in camera.fact
    assert camera.fact.endswith(
        "main.py 0 --camera-size 1920x1080 --camera-fps 30 --camera-format MJPG"
    )
    assert "video10 (rkisp_mainpath)" in others.fact


def test_the_fastest_mode_needs_no_decoding_if_rates_are_equal():
    modes = video.modes(FORMATS.replace("(5.000 fps)", "(30.000 fps)"))
    assert video.fastest(modes) == ("YUYV", 1920, 1080, 30.0)


def test_the_fastest_mode_is_not_tiny():
    small, large = video.Mode("MJPG", 320, 240, 120.0), video.Mode("MJPG", 1280, 720, 60.0)
    assert video.fastest([small, large, video.Mode("MJPG", 1920, 1080, 30.0)]) == large
    assert video.fastest([small]) == small and video.fastest([]) is None


def test_a_camera_that_may_not_be_opened_names_the_group(root, v4l2):
    v4l2("")
    root.write("sys/class/video4linux/video0/name", "HD Webcam\n")
    root.write("dev/video0", "")
    line = next(video.cameras(root.path, access=lambda *_: False, group_of=lambda _: "video"))
    assert "No permission to open /dev/video0. Join: sudo usermod -aG video" in line.problem


def test_without_v4l2_ctl_its_package_is_named(root, monkeypatch):
    root.write("sys/class/video4linux/video0/name", "HD Webcam\n")
    monkeypatch.setenv("PATH", "")
    (line,) = video.cameras(root.path)
    assert line.problem.endswith("apt-get install v4l-utils")


def test_the_hardware_decoder_is_named_if_it_is_installed(root, tmp_path, monkeypatch):
    pytest.importorskip("av")
    (tmp_path / "pyav_rkmpp-1.dist-info").mkdir()
    (tmp_path / "pyav_rkmpp-1.dist-info/METADATA").write_text("Name: pyav-rkmpp\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    line = video.decoder(root.path, None)
    assert line.fact == "OpenCV, on the CPU" and "there is no /dev/mpp_service" in line.problem
    root.write("dev/mpp_service", "")
    line = video.decoder(root.path, None)
    assert line.fact.startswith("pyav-rkmpp, in hardware") and line.problem == ""


def test_a_board_whose_decoder_is_not_used_names_the_package(root):
    assert video.decoder(root.path, None).problem == ""
    root.write("dev/mpp_service", "")
    assert "pip install pyav-rkmpp" in video.decoder(root.path, None).problem
    assert video.decoder(root.path, "opencv").problem == ""
