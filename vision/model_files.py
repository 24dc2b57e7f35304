"""What the readers of model files share (rknn_file.py, onnx_file.py, tflite_file.py)."""
from __future__ import annotations

import contextlib
import mmap
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

Tensor = Tuple[str, Tuple[int, ...]]  # name, shape; 0 for a dimension that the model leaves open


class Contents(NamedTuple):
    """What was read from a model file; empty if nothing can be read."""
    inputs: List[Tensor] = []
    outputs: List[Tensor] = []
    metadata: Dict[str, Any] = {}
    soc: Optional[str] = None      # the SoC a .rknn is made for: "rk3588"
    toolkit: Optional[str] = None  # version of the toolkit that made a .rknn: "2.3.2"


@contextlib.contextmanager
def mapped(path: str) -> Iterator[Any]:
    """Memory-map a file: `with mapped(path) as data`. An unreadable or empty file gives b""."""
    with contextlib.ExitStack() as stack:
        data: Any = b""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file is empty
            with open(path, "rb") as file:
                data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        yield data


def checked_shape(dimensions: Sequence[Any]) -> Tuple[int, ...]:
    """The shape as a tuple of int. Raises ValueError if a dimension is not a number below 2**31."""
    shape = tuple(dimensions)
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2 ** 31:
            raise ValueError(f"{shape} is not a shape")
    return shape


def not_a_model(start: bytes) -> str | None:
    """What a file with these first bytes is instead of a model: "a web page"; None if unknown."""
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (git lfs pull fetches the model)"
    if start.lstrip()[:1] == b"<":
        return "a web page"
    return None
