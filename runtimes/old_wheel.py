"""rknn-toolkit-lite2 2.3.2 and older without its memory leak.

    runtime = without_leak(rknnlite.api.RKNNLite)

Every inference of these wheels leaves its input and output buffers in reference cycles:
ctypes.cast() stores a reference to the source in a dict that the source itself holds. For a YOLOv5n
these are 10 MB per inference. Python's garbage collector finds them late, and the C library's heap
fragments: six contexts grew from 0.1 to 1.1 GB in 2,000 inferences (tests/board/wheel_growth.py).
Here these dicts are emptied after each inference, and the memory is free at once.
"""
from __future__ import annotations

import ctypes
import inspect
import threading
from typing import Any, List, Optional

_calls = threading.local()  # .sources: what the inference in progress in this thread has cast


def _cast(source: Any, kind: Any) -> Any:
    if getattr(_calls, "sources", None) is not None:
        _calls.sources.append(source)
    return ctypes.cast(source, kind)


def without_leak(wheel: Any) -> Any:
    """The wheel's class, or a class derived from it if it is 2.3.2 or older."""
    if "reuse_outputs" in inspect.signature(wheel.inference).parameters:
        return wheel  # 2.5.0 and newer keep their buffers
    try:
        from rknnlite.api import rknn_runtime
    except ImportError:
        return wheel
    if not hasattr(rknn_runtime, "cast"):
        return wheel
    rknn_runtime.cast = _cast

    class OldWheel(wheel):
        """The wheel; empties the dicts of its buffers after each inference."""

        VENDOR_NPU = True

        def inference(self, *args: Any, **options: Any) -> Optional[List[Any]]:
            _calls.sources = []
            try:
                return super().inference(*args, **options)
            finally:
                for source in _calls.sources:
                    if getattr(source, "_objects", None):
                        source._objects.clear()
                _calls.sources = None

    return OldWheel
