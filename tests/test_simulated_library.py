"""runtimes/simulated_library.py: the simulated NPU as a C library, used by runtimes/librknnrt.py
and as the wheel uses it."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import func
from rknnpool import rknnPoolExecutor
from runtimes import simulated, simulated_library
from vision.errors import InputError
from vision.inference import infer
from vision.letterbox import letterbox
from vision.quantised import Raw

MODEL = str(Path(func.__file__).with_name("models") / "yolov5n_emoji.rknn")
KINDS = simulated_library.KINDS
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


@pytest.fixture(scope="module")
def recorded(demo_frames):
    return simulated.record(MODEL, [frame.copy() for frame in demo_frames[::20]], func.myFunc)


@pytest.fixture(scope="module")
def images(demo_frames):
    return [letterbox(frame, 640)[0][np.newaxis].copy() for frame in demo_frames[::20]]


def context_of(npu, mask=1):
    context = npu()
    assert context.load_rknn(MODEL) == 0 and context.init_runtime(core_mask=mask) == 0, (
        context.error
    )
    return context


@needs_gcc
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_those_of_the_numpy_npu_except_for_rounding(recorded, images, kind):
    ours, theirs = (
        context_of(simulated_library.simulated_library(kind, 0, 3, recorded)),
        context_of(simulated.simulated(0, 3, recorded)),
    )
    for image in images:
        for output, expected in zip(ours.inference([image]), theirs.inference([image])):
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, expected, atol=1e-6)
    ours.release()


@needs_gcc
def test_only_the_library_has_raw_outputs(recorded, images):
    library = context_of(simulated_library.simulated_library("library", 0, 3, recorded))
    for (stored, scale, zero_point), expected in zip(
        library.inference_raw(images[:1]), library.inference(images[:1])
    ):
        assert stored.dtype == np.int8
        np.testing.assert_allclose(Raw(stored, scale, zero_point).floats(), expected, atol=1e-6)
    for kind in ("wheel", "wheel-2.3.2"):
        assert not hasattr(
            context_of(simulated_library.simulated_library(kind, 0, 3, recorded)), "inference_raw"
        )


def test_the_runtime_without_copies_returns_the_recorded_outputs_themselves(recorded, images):
    context = context_of(simulated_library.simulated_library("no-copies", 0, 3, recorded))
    for output, expected in zip(context.inference_raw(images[:1]), recorded.outputs[0]):
        assert output[0] is expected[0] and output[1:] == expected[1:]


@needs_gcc
def test_the_wheels_outputs_are_new_arrays_unless_reuse_is_requested(recorded, images):
    wheel = context_of(simulated_library.simulated_library("wheel", 0, 3, recorded))
    fresh = [wheel.inference(images[:1]) for _ in range(2)]
    reused = [wheel.inference(images[:1], reuse_outputs=True) for _ in range(2)]
    assert not np.shares_memory(fresh[0][0], fresh[1][0]) and np.shares_memory(
        reused[0][0], reused[1][0]
    )
    old = context_of(simulated_library.simulated_library("wheel-2.3.2", 0, 3, recorded))
    image = images[0][0]
    assert np.shares_memory(infer(wheel, image)[0], infer(wheel, image)[0])
    assert not np.shares_memory(infer(old, image)[0], infer(old, image)[0])
    assert not np.shares_memory(old.inference(images[:1])[0], old.inference(images[:1])[0])


@needs_gcc
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_of_the_wrong_shape_gives_none_as_with_the_wheel(recorded, images, kind):
    context = context_of(simulated_library.simulated_library(kind, 0, 3, recorded))
    assert context.inference([images[0][0]]) is None


@needs_gcc
def test_a_core_serves_one_inference_after_the_other(recorded, images):
    npu = simulated_library.simulated_library("library", (0.01, 0.02, 0.01), 3, recorded)
    contexts, began = [context_of(npu, 2) for _ in range(3)], time.monotonic()
    workers = [
        threading.Thread(target=context.inference, args=(images[:1],)) for context in contexts
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert time.monotonic() - began >= 3 * 0.02


@needs_gcc
@pytest.mark.parametrize("kind", KINDS)
def test_the_pool_finds_the_same_objects_with_the_simulated_library(recorded, demo_frames, kind):
    frames = [frame.copy() for frame in demo_frames[::20]]
    found = {}
    for npu in (
        simulated_library.simulated_library(kind, 0.001, 3, recorded),
        simulated.simulated(0, 3, recorded),
    ):
        with rknnPoolExecutor(MODEL, 3, func.detect, runtime=npu) as pool:
            found[npu] = list(pool.map(frames))
    for ours, theirs in zip(*found.values()):
        assert len(ours) == len(theirs) > 0
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
        np.testing.assert_array_equal(ours.classes, theirs.classes)


@needs_gcc
def test_core_masks_without_a_core_are_refused(recorded):
    npu = simulated_library.simulated_library("library", 0, 3, recorded)
    for mask in (5, 6):
        context = npu()
        assert context.load_rknn(MODEL) == 0 and context.init_runtime(core_mask=mask) == -1


def test_a_missing_compiler_is_reported_with_the_install_command(recorded, monkeypatch, tmp_path):
    simulated_library.compiled.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="C compiler: apt install gcc"):
        simulated_library.simulated_library("library", 0, 3, recorded)
