"""runtimes/librknnrt.py: its handles, tested with a fake library that waits where a test needs it.
tests/board/test_library.py tests it with the vendor's and the emulated library.
"""

import contextlib
import ctypes
import shutil
import subprocess
import threading

import numpy as np
import pytest

from runtimes.librknnrt import RKNNLite

SOURCE = r"""
#include <stdint.h>
#include <string.h>
int opened, destroyed, duplicated;
int halves;  /* elements of the float16 output, or 0: no output */
void (*in_dup)(void), (*in_run)(void);  /* called during a duplication, and during a run */
int rknn_init(uint64_t *handle, void *model, uint32_t size, uint32_t flags, void *extend) {
    *handle = ++opened;
    return 0;
}
int rknn_dup_context(uint64_t *original, uint64_t *handle) {
    if (in_dup) in_dup();
    duplicated++;
    *handle = ++opened;
    return 0;
}
int rknn_destroy(uint64_t handle) { destroyed++; return 0; }
int rknn_set_core_mask(uint64_t handle, int mask) { return 0; }
struct attr {
    uint32_t index, n_dims, dims[16];
    char name[256];
    uint32_t n_elems, size;
    int32_t fmt, type, qnt_type;
};
struct output { uint8_t want_float, is_prealloc; uint32_t index; void *buf; uint32_t size; };
int rknn_query(uint64_t handle, int command, void *info, uint32_t size) {
    memset(info, 0, size);  /* no inputs, no outputs */
    if (command == 0)
        ((uint32_t *)info)[1] = halves > 0;
    if (command == 2)
        *(struct attr *)info = (struct attr){
            .n_dims = 1, .dims = {halves}, .n_elems = halves, .type = 1, .qnt_type = 2};
    return 0;
}
int rknn_run(uint64_t handle, void *extend) { if (in_run) in_run(); return 0; }
int rknn_inputs_set(uint64_t handle, uint32_t n, void *inputs) { return 0; }
int rknn_outputs_get(uint64_t handle, uint32_t n, struct output *outputs, void *extend) {
    static const uint16_t half[] = {0x3e00, 0xc000, 0x3400};
    static const float whole[] = {1.5f, -2, 0.25f};
    if (n)
        memcpy(outputs->buf, outputs->want_float ? (void *)whole : (void *)half, outputs->size);
    return 0;
}
int rknn_outputs_release(uint64_t handle, uint32_t n, void *outputs) { return 0; }
"""

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


class Library:
    """The counters of the C library. hold() makes its calls wait."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def __getitem__(self, name):
        return ctypes.c_int.in_dll(self.library, name).value

    def __setitem__(self, name, value):
        ctypes.c_int.in_dll(self.library, name).value = value

    @contextlib.contextmanager
    def hold(self, name):
        """Calls of in_dup or in_run wait until the end of the with block. Gives an Event that is
        set when a call waits."""
        waiting, go_on = threading.Event(), threading.Event()

        @ctypes.CFUNCTYPE(None)
        def wait():
            waiting.set()
            go_on.wait(60)

        pointer = ctypes.c_void_p.in_dll(self.library, name)
        pointer.value = ctypes.cast(wait, ctypes.c_void_p).value
        try:
            yield waiting
        finally:
            pointer.value = None
            go_on.set()


@pytest.fixture
def library(tmp_path, monkeypatch):
    (tmp_path / "library.c").write_text(SOURCE)
    path = tmp_path / "librknnrt.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(path), str(tmp_path / "library.c")]
    subprocess.run(command, check=True)
    monkeypatch.setenv("RKNNRT_LIB", str(path))
    (tmp_path / "model.rknn").write_bytes(b"RKNN")
    return Library(path)


@pytest.fixture
def load(library, tmp_path):
    """load(): a context that has loaded the model, but is not open."""

    def load():
        context = RKNNLite()
        assert context.load_rknn(str(tmp_path / "model.rknn")) == 0
        return context

    return load


def opened(context):
    assert context.init_runtime() == 0, context.error
    return context


def start_thread(target, *arguments):
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread


def test_a_release_during_a_duplication_leaks_no_handle(library, load):
    first, second = opened(load()), load()
    with library.hold("in_dup") as waiting:
        thread = start_thread(second.init_runtime)
        assert waiting.wait(60)
        first.release()
        assert library["destroyed"] == 0  # the library is reading it
    thread.join()
    assert (library["opened"], library["destroyed"]) == (2, 1) and second.shares_weights
    second.release()
    assert library["destroyed"] == 2


def test_a_second_init_runtime_closes_what_the_first_opened(library, load):
    context = opened(opened(load()))
    assert (library["opened"], library["destroyed"]) == (2, 1)
    assert context.inference([]) == []
    context.release()
    context.release()
    assert library["destroyed"] == 2


def test_handles_released_twice_during_one_run_are_both_destroyed(library, load):
    context = opened(load())
    with library.hold("in_run") as waiting:
        thread = start_thread(context.inference, [])
        assert waiting.wait(60)
        opened(context).release()
        assert (library["opened"], library["destroyed"]) == (2, 0)
    thread.join()
    assert library["destroyed"] == 2


def test_a_busy_context_does_not_keep_others_from_sharing_their_weights(library, load):
    contexts = [opened(load()) for _ in range(2)]
    for busy in contexts:
        with library.hold("in_run") as waiting:
            thread = start_thread(busy.inference, [])
            assert waiting.wait(60)
            further = opened(load())
            assert further.shares_weights
            further.release()
        thread.join()
    for context in contexts:
        context.release()
    assert library["opened"] == library["destroyed"] == 4
    assert library["duplicated"] == 3


def test_calls_before_init_runtime_and_after_release_return_none(library, load):
    context = load()
    assert context.inference([]) is None and context.inference_raw([]) is None
    opened(context).release()
    assert context.inference([]) is None and "init_runtime" in context.error


def test_float16_outputs_stay_as_they_are_stored(library, load):
    library["halves"] = 3
    context = opened(load())
    ((stored, scale, zero_point),) = context.inference_raw([])
    (values,) = context.inference([])
    assert (stored.dtype, scale, zero_point) == (np.float16, 1, 0)
    assert values.dtype == np.float32 and stored.tolist() == values.tolist() == [1.5, -2, 0.25]
