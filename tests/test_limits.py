"""What limits the frame rate: the judgement on recorded runs, and the measuring in a real pool."""

import dataclasses
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import main
import meter
from limits import Figures, limit_of, stages
from meter import Meter
from rknnpool import NPUError, rknnPoolExecutor
from streams import Stream

# Recorded on 29 November 2026: tests/known_limits.py --figures
SLOW_SOURCE = Figures(
    threads=6, cores=3, cpus=2, shortest=0.0053, seconds=5.97, frames=293, wait=0.12, func=1.596,
    cpu=0.134, inference=1.587, runs=293, in_flight={"2": 0.533, "0": 0.531, "1": 0.523},
    process_cpu=0.403, streams=5.992, files=5.992, read=5.94,
)  # fmt: skip
CAMERA = Figures(
    threads=6, cores=3, cpus=2, live=True, shortest=0.0053, seconds=6.005, frames=181, wait=0.064,
    func=0.986, cpu=0.082, inference=0.981, runs=181,
    in_flight={"0": 0.330, "1": 0.328, "2": 0.323}, process_cpu=0.246, streams=6.029,
)  # fmt: skip
NPU = Figures(
    threads=6, cores=3, cpus=2, shortest=0.0174, seconds=6.085, frames=1080, wait=71.6, func=36.33,
    cpu=0.323, inference=36.31, runs=1080, in_flight={"2": 6.0845, "0": 6.0844, "1": 6.0844},
    process_cpu=0.690, streams=6.086, files=6.086, read=0.027,
)  # fmt: skip
GIL = Figures(
    threads=6, cores=3, cpus=2, shortest=0.0053, seconds=6.089, frames=701, wait=36.0, func=35.18,
    cpu=5.996, inference=13.52, runs=701, in_flight={"1": 3.532, "2": 3.614, "0": 3.604},
    process_cpu=6.306, streams=6.090, files=6.090, read=0.545,
)  # fmt: skip
# The same with 1.7 ms instead of 8 ms: threads wait for Python after their inference.
GIL_IN_INFERENCE = Figures(
    threads=6, cores=3, cpus=2, shortest=0.0052, seconds=5.525, frames=2349, wait=38.3, func=31.29,
    cpu=5.002, inference=27.18, runs=2349, in_flight={"0": 5.364, "1": 5.330, "2": 5.337},
    process_cpu=5.730, streams=5.527, files=5.527, read=0.366,
)  # fmt: skip
WAITING_FUNC = Figures(
    threads=6, cores=3, cpus=2, shortest=0.0051, seconds=6.141, frames=660, wait=72.3, func=36.74,
    cpu=0.234, inference=3.60, runs=660, in_flight={"0": 1.143, "1": 1.150, "2": 1.153},
    process_cpu=0.481, streams=6.142, files=6.142, read=0.026,
)  # fmt: skip
SLOW_OUTPUT = Figures(
    threads=6, cores=3, cpus=2, shortest=0.0051, seconds=6.368, frames=315, wait=0.2, func=1.757,
    cpu=0.112, inference=1.751, runs=315, in_flight={"2": 0.557, "0": 0.557, "1": 0.557},
    process_cpu=0.340, streams=6.369, files=6.369, read=0.019,
    outputs={"VideoSaver": 6.323, "draw": 0.0},
)  # fmt: skip
ONE_THREAD = Figures(
    threads=1, cores=3, cpus=2, shortest=0.0171, seconds=6.030, frames=347, wait=11.9, func=5.979,
    cpu=0.121, inference=5.972, runs=347, in_flight={"1": 5.972}, process_cpu=0.314, streams=6.030,
    files=6.030, read=0.015,
)  # fmt: skip
BAD_CORE = Figures(
    threads=6, cores=3, cpus=2, shortest=0.017, seconds=6.137, frames=728, wait=83.2, func=24.44,
    cpu=0.201, inference=24.42, runs=728, in_flight={"0": 6.135, "1": 0.034, "2": 6.135},
    failures={"1": 2}, process_cpu=0.562, streams=6.138, files=6.138, read=0.025,
)  # fmt: skip
# The demo on a PC without an NPU: inference leaves little CPU to the decoder.
NO_NPU = Figures(
    threads=2, cores=0, cpus=2, shortest=0.063, seconds=6.888, frames=154, wait=0.21, func=13.06,
    cpu=12.14, inference=12.56, runs=154, in_flight={"0": 6.862}, process_cpu=13.0, streams=6.912,
    files=6.912, read=6.785,
)  # fmt: skip
change = dataclasses.replace

SENTENCES = {
    "slow source": (
        SLOW_SOURCE,
        "Limited by reading: decoding takes 20 of 20 ms per frame, the NPU is 9 % busy. Smaller "
        "pictures or several sources at once would help.",
    ),
    "a board decodes on the CPU": (
        change(SLOW_SOURCE, software=True),
        "Limited by reading: decoding takes 20 of 20 ms per frame, the NPU is 9 % busy. pip "
        "install pyav-rkmpp decodes in hardware.",
    ),
    "paced camera": (
        CAMERA,
        "Limited by the source: it delivers 30.1 FPS, almost no frame is dropped, and the NPU "
        "is 5 % busy. A faster camera mode (--camera-format MJPG --camera-fps 60) or more cameras "
        "would use it better.",
    ),
    "--fps": (
        change(CAMERA, max_fps=30.0),
        "Limited by --fps: 30.1 FPS in all, and the NPU is 5 % busy.",
    ),
    "NPU": (
        NPU,
        "Limited by the NPU: its 3 cores are busy 100 % of the time, 17 ms per frame. A "
        "smaller model or input would help; sudo ./performance.sh sets the highest clocks.",
    ),
    "a func that holds the GIL": (
        GIL,
        "Limited by Python: func takes 8.6 ms of CPU per frame, which fills one core, and Python "
        "code runs on one core at a time; the NPU is 59 % busy. NumPy and OpenCV instead of "
        "Python loops would help.",
    ),
    "a func that waits": (
        WAITING_FUNC,
        "Limited by func: it waits for 50 of its 56 ms per frame (no CPU time, no inference), and "
        "the NPU is 19 % busy. If it waits for a network or a disk, do that outside func. More "
        "threads (--threads 12) help, too.",
    ),
    "threads that wait for the CPU": (
        change(WAITING_FUNC, cpu=8.0, process_cpu=9.5),
        "Limited by the CPU and Python: func waits 38 of its 56 ms per frame for a free core or "
        "for Python's lock, the process uses 1.5 of 2 cores, and the NPU is 19 % busy. NumPy and "
        "OpenCV instead of Python loops would help.",
    ),
    "slow output": (
        SLOW_OUTPUT,
        "Limited by --save: it takes 20 of 20 ms per frame, the NPU is 9 % busy. Smaller pictures "
        "or a faster disk would help.",
    ),
    "one thread": (
        ONE_THREAD,
        "Limited by the number of threads: the only thread is busy, and the NPU is 33 % busy. "
        "--threads 6 would help.",
    ),
    "bad core": (
        BAD_CORE,
        "Limited by a failing core: core 1 of the NPU failed 2 times and is 1 % busy. Let the "
        "board cool down; dmesg and sudo ./rkcat.sh may say more.",
    ),
    "no NPU": (
        NO_NPU,
        "Limited by the CPU, which runs the model: inference takes 82 ms per frame in each of 2 "
        "threads. An NPU or a smaller model would help.",
    ),
    "no NPU, one thread": (
        change(NO_NPU, threads=1),
        "Limited by the CPU, which runs the model: inference takes 82 ms per frame in the only "
        "thread. --threads 2 would help. An NPU or a smaller model would help.",
    ),
    "all CPU cores": (
        change(GIL, cpu=9.0, process_cpu=12.0),
        "Limited by the CPU: the process uses 2.0 of 2 cores, func 13 of 17 ms per frame; the NPU "
        "is 59 % busy. Fewer pixels or a simpler func would help.",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_sentence_names_the_limit_and_what_would_help(name):
    figures, sentence = SENTENCES[name]
    assert limit_of(figures) == sentence


@pytest.mark.parametrize(
    "figures, limit",
    [
        # The first that applies, in the order of VERDICTS.
        (change(CAMERA, failures={"0": 1}, in_flight={"0": 0.1, "1": 0.4, "2": 0.4}), "core 0"),
        (change(SLOW_SOURCE, outputs={"JSONLines": 5.9}), "by reading"),
        (change(NPU, outputs={"MQTT": 6.0}), "by --mqtt"),
        (change(NPU, cpu=5.9, process_cpu=12.0), "by the NPU"),
        # A core that failed once, long ago, serves as much as the others.
        (change(NPU, failures={"0": 1}), "by the NPU"),
        (change(ONE_THREAD, cores=1, failures={"1": 40}), "failed 40 times"),
        # A live source with dropped frames would deliver more.
        (change(NPU, live=True, dropped=200, files=0.0, read=0.0), "by the NPU"),
        # A CPU that is busy with decoding may lose frames before they can be dropped.
        (change(CAMERA, process_cpu=11.9), "by the CPU"),
        (change(CAMERA, max_fps=100.0), "by the source"),
        (change(SLOW_SOURCE, process_cpu=11.9), "by reading"),
        # func takes the CPU that reading and an output would need.
        (change(SLOW_SOURCE, cpu=8.0, process_cpu=11.9), "by the CPU"),
        (change(SLOW_OUTPUT, cpu=8.0, process_cpu=12.7), "by the CPU"),
        (GIL_IN_INFERENCE, "by Python"),
        (change(WAITING_FUNC, func=10.0), "No single stage"),
        (change(SLOW_OUTPUT, outputs={"Own": 6.2}), "by Own"),
        (change(SLOW_OUTPUT, outputs={"draw": 6.2, "VideoSaver": 0.1}), "by drawing"),
        # The threads wait for the NPU, which has enough of them.
        (change(ONE_THREAD, threads=6, func=36.0, inference=35.9), "--threads 12"),
    ],
)
def test_the_first_verdict_that_applies_is_given(figures, limit):
    assert limit in limit_of(figures)


def test_without_a_single_limit_the_sentence_gives_the_shares():
    assert limit_of(change(GIL, cpu=3.0, process_cpu=4.0, func=33.0)) == (
        "No single stage limits the rate. Busy: reading 9 %, the contexts 90 %, "
        "the NPU 59 %, the CPU 33 %."
    )


def test_without_frames_no_limit_is_named():
    assert limit_of(Figures()) == ""


def test_a_later_part_of_a_run_is_measured_on_its_own():
    both = change(
        SLOW_SOURCE,
        **{
            name: getattr(SLOW_SOURCE, name) + getattr(NPU, name)
            for name in ("seconds", "frames", "wait", "func", "cpu", "inference", "runs", "read")
        },
        in_flight={core: SLOW_SOURCE.in_flight[core] + NPU.in_flight[core] for core in "012"},
        streams=SLOW_SOURCE.streams + NPU.streams,
        files=SLOW_SOURCE.files + NPU.files,
        shortest=NPU.shortest,
    )
    assert "by the NPU" in limit_of(both.since(SLOW_SOURCE))
    assert "by the NPU" not in limit_of(both)


def test_stages_list_every_measured_time():
    assert stages(SLOW_OUTPUT) == {
        "reading, ms per frame": "0.06",
        "waiting for a context, ms per frame": "0.63",
        "func, ms per frame": "5.58",
        "CPU of func, ms per frame": "0.36",
        "inference, ms per frame": "5.56",
        "--save, ms per frame": "20.07",
        "drawing, ms per frame": "0.00",
        "CPU of the process, ms per frame": "1.08",
        "NPU cores busy": "9 % 9 % 9 %",
        "contexts in func": "5 %",
        "CPU cores busy": "3 %",
    }


# ---- measuring ----


class Runtime:
    """RKNNLite's interface; inference calls `during`."""

    NPU_CORES = 2

    def load_rknn(self, path):
        return 0

    def init_runtime(self, core_mask=None):
        return 0

    def release(self):
        pass

    def inference(self, inputs):
        return self.during()

    inference_raw = inference


def pool_of(meter, func, during, threads=4):
    runtime = type("Measured", (Runtime,), {"during": lambda self: during(self)})
    return rknnPoolExecutor("any.rknn", threads, meter.timed(func), runtime=runtime)


def frame(queued=0.0):
    return SimpleNamespace(queued=queued)


def test_inference_is_counted_per_core_and_calls_at_once_count_once_in_flight():
    # Four frames meet in inference: two contexts on each of two cores.
    together = threading.Barrier(4)
    measured = Meter()

    def during(context):
        together.wait(10)
        return [1]

    def func(context, _):
        return context.inference([0])

    with pool_of(measured, func, during) as pool:
        assert list(pool.map([frame() for _ in range(8)])) == [[1]] * 8
    figures = measured.figures()
    assert (figures.threads, figures.cores, figures.frames, figures.runs) == (4, 2, 8, 8)
    assert set(figures.in_flight) == {"0", "1"} and not figures.failures
    assert sum(figures.in_flight.values()) < figures.inference <= figures.func
    assert all(0 < busy <= figures.seconds for busy in figures.in_flight.values())
    assert 0 < figures.cpu <= figures.func and figures.wait > 0


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_a_model_that_runs_on_the_cpu_is_not_limited_by_the_npu(monkeypatch, tmp_path, suffix):
    pytest.importorskip("ai_edge_litert" if suffix == ".tflite" else "onnxruntime")
    monkeypatch.setenv("TEFLON_LIB", str(tmp_path / "none.so"))
    measured = Meter()
    image = np.zeros((1, 224, 224, 3), np.uint8)
    func = measured.timed(lambda context, _: context.inference([image]))
    with rknnPoolExecutor(str(ROOT / f"models/resnet18_emoji{suffix}"), 2, func) as pool:
        list(pool.map([frame() for _ in range(4)]))
    figures = measured.figures()
    assert (figures.cores, figures.threads, figures.runs) == (0, 2, 4)


def test_inference_raw_is_measured_too():
    measured = Meter()
    with pool_of(measured, lambda context, _: context.inference_raw([0]), lambda _: [1]) as pool:
        list(pool.map([frame(), frame()]))
    assert measured.figures().runs == 2


def test_failed_runs_count_for_their_core_even_if_func_hides_them():
    measured = Meter()

    def during(context):
        context.run_failed = context.label.endswith("core 1")
        return [1]

    def func(context, _):
        try:
            return context.inference([0])
        except NPUError:
            return None

    with pool_of(measured, func, during) as pool:
        assert list(pool.map([frame() for _ in range(20)])) == [[1]] * 20
    failures = measured.figures().failures
    assert set(failures) == {"1"} and failures["1"] >= 1


def test_an_error_of_func_passes_through_and_its_frame_counts():
    measured = Meter()

    def func(context, _):
        raise KeyError("mine")

    with pool_of(measured, func, lambda _: [1]) as pool:
        with pytest.raises(KeyError, match="mine"):
            pool.submit(frame()).result()
    assert measured.figures().frames == 1


def test_the_page_gets_the_limit_of_the_last_seconds(monkeypatch):
    monkeypatch.setattr(meter, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(meter, "limit_of", lambda figures: f"of {figures.frames} frames")
    measured = Meter()
    assert measured.recent_limit() == ""
    with pool_of(measured, lambda context, _: context.inference([0]), lambda _: [1]) as pool:
        list(pool.map([frame(), frame()]))
        assert measured.recent_limit() == "of 2 frames"
        assert measured.recent_limit() == ""  # nothing happened since
        list(pool.map([frame()]))
        assert measured.recent_limit() == "of 1 frames"


def test_figures_count_calls_that_are_still_in_progress():
    inside, go_on = threading.Event(), threading.Event()
    measured = Meter()

    def during(_):
        inside.set()
        go_on.wait(10)
        return [1]

    with pool_of(measured, lambda context, _: context.inference([0]), during) as pool:
        future = pool.submit(frame())
        assert inside.wait(10)
        figures = measured.figures()
        assert figures.frames == 0 and figures.func > 0 and sum(figures.in_flight.values()) > 0
        go_on.set()
        future.result()


@pytest.mark.parametrize("soc, software", [("rk3588", True), ("", False)])
def test_hardware_decoding_is_suggested_on_a_board_only(clip, monkeypatch, soc, software):
    monkeypatch.setenv("RKNN_SOC", soc)
    stream = Stream(clip, reader="opencv")
    assert Meter([stream]).figures().software is software
    stream.source.note = "OpenCV decodes it on the CPU because ..."  # has been printed
    assert not Meter([stream]).figures().software
    stream.source.release()


def test_hardware_decoding_is_not_suggested_for_pictures(monkeypatch):
    monkeypatch.setenv("RKNN_SOC", "rk3588")
    stream = Stream(ROOT / "models/result.jpg")
    assert not Meter([stream]).figures().software


# ---- main.py ----


@pytest.fixture
def run_main(monkeypatch, capsys, clip, plain_func):
    """Run main.py on a clip, as a run of more than five seconds: what it printed."""

    def run(*arguments, enough=0.0):
        monkeypatch.setattr(meter, "MIN_SECONDS", enough)
        command = ["main.py", str(clip), "--headless", "--func", str(plain_func), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == 0
        return capsys.readouterr().out

    return run


def test_main_names_the_limit_of_a_long_run_in_its_last_line(run_main):
    last = run_main().splitlines()[-1]
    assert last.startswith(("Limited by ", "No single stage limits the rate"))


@pytest.mark.parametrize("arguments, enough", [(["--quiet"], 0.0), ([], 1000.0)])
def test_quiet_and_short_runs_name_no_limit(run_main, arguments, enough):
    printed = run_main(*arguments, enough=enough)
    assert "45 frames" in printed and "Limited" not in printed and "No single" not in printed
