"""benchmark.py and runtimes/simulated.py: the timing of simulated cores, the recorded outputs, and
the table that is printed and saved."""

import functools
import itertools
import json
import re
import shutil
import sys
import threading
import time

import numpy as np
import pytest

import benchmark
import func
import measure
import runtimes.cpu as cpu
import sources
from runtimes import simulated
from vision.letterbox import letterbox
from vision.quantised import Raw

MODEL = str(benchmark.Path(benchmark.__file__).with_name("models") / "yolov5n_emoji.rknn")


@pytest.fixture(scope="module")
def recorded(demo_frames):
    return simulated.record(MODEL, [frame.copy() for frame in demo_frames[::20]], func.myFunc)


def context_on(npu, mask):
    context = npu()
    assert context.load_rknn(MODEL) == 0
    assert context.init_runtime(core_mask=mask) == 0
    return context


def infer_at_once(contexts):
    """Run one inference in each of these contexts, all at the same time."""
    together = threading.Barrier(len(contexts))

    def infer(context):
        together.wait(10)
        context.inference([np.zeros((1, 640, 640, 3), np.uint8)])

    workers = [threading.Thread(target=infer, args=(context,)) for context in contexts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)


def test_a_core_serves_one_inference_after_the_other(recorded):
    npu = simulated.simulated(0.02, 3, recorded)
    infer_at_once([context_on(npu, 2) for _ in range(4)])
    assert [cores for cores, _, _ in npu.schedule] == [[1]] * 4
    for (_, start, end), (_, next_start, _) in zip(
        npu.schedule, itertools.islice(npu.schedule, 1, None)
    ):
        assert end - start == pytest.approx(0.02)
        assert next_start >= end


def test_cores_work_at_the_same_time(recorded):
    npu = simulated.simulated(0.5, 3, recorded)
    infer_at_once([context_on(npu, mask) for mask in (1, 2, 4)])
    assert sorted(cores for cores, _, _ in npu.schedule) == [[0], [1], [2]]
    assert max(start for _, start, _ in npu.schedule) < min(end for _, _, end in npu.schedule)


def test_a_frame_on_all_cores_occupies_all_of_them_and_is_faster(recorded):
    npu = simulated.simulated(0.02, 3, recorded)
    infer_at_once([context_on(npu, mask) for mask in (1, 2, 4, 7, 7)])
    for one, other in itertools.combinations(npu.schedule, 2):
        if set(one[0]) & set(other[0]):
            assert one[2] <= other[1] or other[2] <= one[1]
    took = {len(cores): end - start for cores, start, end in npu.schedule}
    assert took[1] / 3 < took[3] < took[1]


def test_without_a_mask_the_first_free_core_is_used(recorded):
    npu = simulated.simulated(0.5, 3, recorded)
    infer_at_once([context_on(npu, npu.NPU_CORE_AUTO) for _ in range(3)])
    assert sorted(cores for cores, _, _ in npu.schedule) == [[0], [1], [2]]


def test_the_caller_waits_until_its_inference_is_done(recorded):
    npu = simulated.simulated(0.02, 1, recorded)
    context_on(npu, 0).inference([np.zeros((1, 640, 640, 3), np.uint8)])
    assert time.perf_counter() >= npu.schedule[0][2]


@pytest.mark.parametrize("cores, refused", [(3, (5, 6)), (2, (5, 6)), (1, (1, 2, 4, 7))])
def test_the_same_masks_are_refused_as_by_the_wheel(recorded, cores, refused):
    npu = simulated.simulated(0, cores, recorded)
    assert [npu().init_runtime(core_mask=mask) for mask in refused] == [-1] * len(refused)
    assert npu().init_runtime() == 0


def test_outputs_differ_from_the_models_by_at_most_one_quantisation_step(recorded, demo_frames):
    real, npu = context_on(cpu.RKNNLite, 0), context_on(simulated.simulated(0, 3, recorded), 1)
    for frame in (demo_frames[0], demo_frames[40]):
        square, _ = letterbox(frame, 640)
        for expected, output in zip(
            real.inference([square[np.newaxis]]), npu.inference([square[np.newaxis]])
        ):
            assert output.dtype == np.float32 and output.shape == expected.shape
            np.testing.assert_allclose(output, expected, atol=1 / 255)


def test_the_simulated_npu_accepts_only_four_dimensions(recorded):
    npu = context_on(simulated.simulated(0, 3, recorded), 1)
    assert npu.inference([np.zeros((640, 640, 3), np.uint8)]) is None


def test_outputs_are_new_arrays_unless_reuse_is_requested(recorded):
    npu = context_on(simulated.simulated(0, 3, recorded), 1)
    image = np.zeros((1, 640, 640, 3), np.uint8)
    fresh = [npu.inference([image]) for _ in range(2)]
    reused = [npu.inference([image], reuse_outputs=True) for _ in range(2)]
    for one, other in zip(*fresh):
        assert not np.shares_memory(one, other)
    for one, other, own in zip(*reused, fresh[0]):
        assert np.shares_memory(one, other) and not np.shares_memory(one, own)
        np.testing.assert_array_equal(one, own)


def test_raw_outputs_are_int8_and_each_context_has_its_own_buffers(recorded, demo_frames):
    one, other = (context_on(simulated.simulated(0, 3, recorded), 1) for _ in range(2))
    image = letterbox(demo_frames[0], 640)[0][np.newaxis]
    raw, floats = one.inference_raw([image]), one.inference([image])
    for (stored, scale, zero_point), expected, theirs in zip(
        raw, floats, other.inference_raw([image])
    ):
        assert stored.dtype == np.int8 and not np.shares_memory(stored, theirs[0])
        np.testing.assert_array_equal(Raw(stored, scale, zero_point).floats(), expected)
    assert one.inference_raw([image])[0][0] is raw[0][0]
    assert one.inference_raw([image[0]]) is None and "four dimensions" in one.error


def test_the_scale_of_an_output_is_the_same_for_all_frames(recorded):
    for of_frames in zip(*recorded.outputs):
        assert len({(scale, zero_point) for _, scale, zero_point in of_frames}) == 1


def test_a_published_model_has_its_published_speed():
    assert simulated.parse_simulate("yolov5s_relu@rk3588") == (1 / 66.1, 3)
    assert simulated.parse_simulate("7.5x2") == (0.0075, 2)


def test_cores_may_have_different_speeds(recorded):
    assert simulated.parse_simulate("10,10,30") == ((0.01, 0.01, 0.03), 3)
    npu = simulated.simulated((0.01, 0.02, 0.04), 3, recorded)
    infer_at_once([context_on(npu, mask) for mask in (1, 2, 4)])
    assert {cores[0]: round(end - start, 6) for cores, start, end in npu.schedule} == {
        0: 0.01,
        1: 0.02,
        2: 0.04,
    }


def test_the_limit_is_the_sum_of_the_cores_rates(benchmark_py):
    code, stdout, stderr, saved = benchmark_py(
        "--simulate", "60,60,180", "--threads", 6, "--no-decode", "--seconds", 2
    )
    assert code == 0, stderr
    result = json.loads(saved.with_suffix(".json").read_text())
    assert result["limit_fps"] == pytest.approx(2000 / 60 + 1000 / 180)
    fast, also_fast, slow = result["table"][0]["runs"]
    assert fast > slow and also_fast > slow


@pytest.fixture
def benchmark_py(monkeypatch, clip, tmp_path, capfd):
    """Run benchmark.py with these arguments on a short clip: (exit code, stdout, stderr, path of
    its output without the ending)."""
    monkeypatch.setattr(measure, "RECORDED", 3)
    monkeypatch.setattr(measure, "IN_MEMORY", 3)

    def run(*arguments):
        quick = [
            "--cap",
            clip,
            "--model",
            MODEL,
            "--output",
            tmp_path / "new" / "out",
            "--seconds",
            0.2,
            "--warmup",
            0.05,
            "--rounds",
            2,
        ]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, [*quick, *arguments])])
        capfd.readouterr()
        code = 0
        try:
            benchmark.main()
        except SystemExit as end:
            code = end.code
        return (code, *capfd.readouterr(), tmp_path / "new" / "out")

    return run


def test_the_table_has_a_column_per_thread_count_and_is_saved_with_a_plot(benchmark_py):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    code, stdout, stderr, saved = benchmark_py(
        "--simulate", "5x3", "--threads", 1, 2, "all", "plain"
    )
    assert code == 0, stderr
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in stdout.splitlines()
        if line.startswith("|")
    ]
    assert lines[0] == ["", "1 thread", "2 threads", "all cores on one frame", "plain loop"]
    assert [line[0] for line in lines[2:]] == [
        "FPS",
        "share of the limit",
        "latency p50, ms",
        "latency p99, ms",
        "CPU, ms per frame",
        "frames per core",
        "peak RSS, MB",
        "frames dropped",
    ]
    assert all(len(line) == 5 and all(line[1:]) for line in lines)
    assert (
        "limit 600.0 FPS" in stdout and "2 threads: " in stdout and "times the plain loop" in stdout
    )
    for name in ("1 thread", "2 threads", "all cores on one frame"):
        assert re.search(f"^{name}: (Limited by|No single stage limits)", stdout, re.MULTILINE)
    result = json.loads(saved.with_suffix(".json").read_text())
    assert [column["threads"] for column in result["table"]] == ["1", "2", "all", "plain"]
    assert result["limit_fps"] == pytest.approx(600) and result["settings"]["simulate"] == "5x3"
    for column in result["table"]:
        assert (
            len(column["fps_of_rounds"]) == 2
            and 0 < column["fps"]
            and 0 < column["p50_ms"] <= column["p99_ms"]
        )
        assert 0 < column["share"] <= 1.05 and column["dropped"] == 0
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_the_table_has_a_column_per_runtime(benchmark_py):
    code, stdout, stderr, saved = benchmark_py(
        "--simulate", "5x3", "--threads", "plain", 3, "--runtime", "wheel", "library", "--no-decode"
    )
    assert code == 0, stderr
    head = next(line for line in stdout.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in head.split("|")[2:-1]] == [
        "plain loop, wheel",
        "plain loop, library",
        "3 threads, wheel",
        "3 threads, library",
    ]
    table = json.loads(saved.with_suffix(".json").read_text())["table"]
    assert [(column["threads"], column["runtime"]) for column in table] == [
        ("plain", "wheel"),
        ("plain", "library"),
        ("3", "wheel"),
        ("3", "library"),
    ]
    assert all(min(column["runs"]) > 0 for column in table[2:])
    assert "3 threads, library: " in stdout and "times the CPU per frame" in stdout


def test_the_pool_uses_every_simulated_core(benchmark_py):
    code, _, stderr, saved = benchmark_py("--simulate", "2x3", "--threads", 6, "--no-decode")
    assert code == 0, stderr
    runs = json.loads(saved.with_suffix(".json").read_text())["table"][0]["runs"]
    assert len(runs) == 3 and min(runs) > 0


def test_on_the_cpu_the_limit_is_the_rate_of_inference_alone(benchmark_py):
    code, stdout, stderr, _ = benchmark_py("--threads", 1, "all", "--rounds", 1)
    assert code == 0, stderr
    assert "inference alone: " in stderr and "no NPU" in stdout
    # a CPU has no cores to count
    assert "all cores" not in stdout and "no column for all cores" in stderr


def test_a_tflite_on_a_pc_runs_on_no_npu(benchmark_py, monkeypatch, tmp_path):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("TEFLON_LIB", str(tmp_path / "none.so"))
    tflite = MODEL.replace(".rknn", ".tflite")
    code, stdout, stderr, _ = benchmark_py("--model", tflite, "--threads", 1, "--rounds", 1)
    assert code == 0, stderr
    assert "no NPU, " in stdout and "None" not in stdout


def test_a_video_that_pyav_reads_is_repeated(benchmark_py, monkeypatch, clip):
    """As on a board with pyav-rkmpp."""
    pytest.importorskip("av")
    opened = functools.partial(sources.open_source, reader="av")
    monkeypatch.setattr(measure, "open_source", opened)
    code, stdout, stderr, _ = benchmark_py("--simulate", "0x1", "--threads", 1, "--rounds", 1)
    assert code == 0, stderr
    frames, again = itertools.tee(itertools.islice(measure.looped(clip), 60))
    for number, (first, second) in enumerate(zip(frames, itertools.islice(again, 45, None))):
        np.testing.assert_array_equal(first, second, f"frame {number}")


def test_dropped_frames_of_a_live_source_are_counted(benchmark_py):
    code, stdout, stderr, saved = benchmark_py(
        "--simulate", "100x1", "--threads", 1, "--live", 100, "--seconds", 0.5
    )
    assert code == 0, stderr
    assert json.loads(saved.with_suffix(".json").read_text())["table"][0]["dropped"] > 0


def test_an_npu_of_zero_milliseconds_has_no_limit(benchmark_py):
    code, stdout, stderr, saved = benchmark_py("--simulate", "0x3", "--threads", 2)
    assert code == 0, stderr
    assert "no limit" in stdout and "share" not in stdout
    assert json.loads(saved.with_suffix(".json").read_text())["limit_fps"] is None


def test_the_profile_lists_every_stage_of_a_source(benchmark_py, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    code, stdout, stderr, saved = benchmark_py("--simulate", "0x3", "--profile")
    assert code == 0 and "xvfb-run" in stderr, stderr
    rows = [line.split("|") for line in stdout.splitlines() if line.startswith("|")]
    printed = {name.partition(":")[0].strip(): value.strip() for _, name, value, *_ in rows}
    (column,) = json.loads(saved.with_suffix(".json").read_text())["profile"]
    stages = column["ms"]
    assert column["title"] == "headless" and ", ".join(stages) == (
        "decode, convert, letterbox, inference call, heads, NMS, draw, hand-over, outputs, other"
    )
    assert all(printed[name] == f"{ms:.3f}" for name, ms in stages.items())
    assert [name for name, ms in stages.items() if ms == 0] == ["draw"]  # nobody looks
    assert sum(stages.values()) == pytest.approx(float(printed["everything"]), rel=0.01)
    assert float(printed["reading, ms per frame"]) > 0 and float(printed["FPS"]) > 0
    # the functions that were measured are themselves again
    assert not any(hasattr(each, "__wrapped__") for each in (func.detect, func.letterbox))
    assert "frame" in vars(sources.Video) and not hasattr(sources.Video.frame, "__wrapped__")


def test_several_streams_are_measured_together(benchmark_py):
    code, stdout, stderr, _ = benchmark_py(
        "--simulate", "5x3", "--threads", 6, "--live", 20, "--streams", 1, 2, "--seconds", 1
    )
    assert code == 0, stderr
    rows = [[float(cell) for cell in line.split("|")[1:-1]] for line in stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == [1, 2]
    for count, in_all, slowest, dropped, p50, p99 in rows:
        assert 0 < slowest <= in_all / count + 0.1 and dropped >= 0 and 5 <= p50 <= p99


@pytest.mark.parametrize("flag", ["--streams", "--soak"])
def test_streams_and_soak_take_the_first_number_of_threads(benchmark_py, flag):
    code, stdout, stderr, _ = benchmark_py("--simulate", "1x3", "--threads", "plain", 2, flag, 2)
    assert code == 0 and stdout, stderr


def test_a_table_without_a_column_ends_in_one_sentence(benchmark_py):
    code, stdout, stderr, _ = benchmark_py("--simulate", "1x1", "--threads", "all")
    assert (
        code == 2
        and stdout == ""
        and stderr.endswith("--threads all: the model runs on one core; give a number, too.\n")
    )


def test_a_users_func_is_measured(benchmark_py, tmp_path):
    (tmp_path / "own.py").write_text(
        "from func import letterbox\nfrom vision.inference import infer\n"
        "def myFunc(rknn_lite, IMG):\n"
        "    return infer(rknn_lite, letterbox(IMG, 640)[0])\n"
    )
    code, stdout, stderr, _ = benchmark_py(
        "--simulate", "5x3", "--threads", 1, "--func", tmp_path / "own.py"
    )
    assert code == 0, stderr
    assert "FPS" in stdout


def test_a_soak_run_reports_memory_and_ends_after_the_given_frames(benchmark_py):
    code, stdout, stderr, _ = benchmark_py("--simulate", "1x3", "--threads", 2, "--soak", 50)
    assert code == 0, stderr
    assert stdout.startswith("50 frames served, ") and "RSS" in stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--threads", "0"], "--threads 0"),
        (["--threads", "many"], "--threads many"),
        (["--simulate", "fast"], "--simulate fast"),
        (["--simulate", "5x4"], "--simulate 5x4"),
        (["--simulate", "5x3", "--runtime", "cpu"], "--runtime cpu"),
        (["--runtime", "wheel-2.3.2"], "--runtime wheel-2.3.2"),
        (["--runtime", "wheel"], "--runtime wheel: rknn-toolkit-lite2 is not installed"),
        (["--cap", "none.mp4"], "none.mp4: no such file"),
        (["--cap", __file__], "not a video"),
        (["--model", "none.rknn"], "none.rknn: no such file"),
        (["--rounds", "0"], "--rounds 0"),
        (["--live", "-1"], "--live -1"),
        (["--streams", "0"], "--streams 0"),
        (["--streams", "2", "--threads", "plain"], "--streams and --soak need a number"),
        (["--soak", "9", "--threads", "all"], "--streams and --soak need a number"),
        (["--reader", "av"], "--reader"),
        (["--output", __file__ + "/out"], "cannot be written"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_exit_code_2(benchmark_py, arguments, expected):
    code, stdout, stderr, _ = benchmark_py("--threads", 1, *arguments)
    assert code == 2
    assert expected in stderr and stderr.count("\n") == 1 and stdout == ""
