"""Runs a model on a letterboxed picture."""
from __future__ import annotations

import functools
import inspect
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from vision.errors import ModelError
from vision.quantised import Raw, as_raw


def infer(rknn_lite: Any, image: np.ndarray) -> List[np.ndarray]:
    """The model's outputs as float32 arrays.

    rknn_lite: an RKNNLite context; image: (height, width, 3) uint8 RGB, the size of the model's
    input. The context's next inference may overwrite the outputs. Raises ModelError if inference
    fails.
    """
    runtime: Any = type(rknn_lite)
    return _run(rknn_lite, rknn_lite.inference, image, _options(runtime))


def infer_raw(rknn_lite: Any, image: np.ndarray) -> List[Raw]:
    """Like infer(), but the outputs stay quantised if the runtime has inference_raw()."""
    if not hasattr(rknn_lite, "inference_raw"):
        return as_raw(infer(rknn_lite, image))
    return as_raw(_run(rknn_lite, rknn_lite.inference_raw, image, {}))


@functools.lru_cache(maxsize=None)
def _options(runtime: Any) -> Dict[str, bool]:
    """Wheels from 2.5.0 on can leave out one copy of the outputs; older ones lack the option."""
    known = inspect.signature(runtime.inference).parameters
    return {"reuse_outputs": True} if "reuse_outputs" in known else {}


def _run(rknn_lite: Any, inference: Any, image: np.ndarray, options: Dict[str, bool]) -> list:
    batch = image[np.newaxis]
    try:
        outputs = inference([batch], **options)
    except ValueError as error:  # a context of the pool raises if the runtime refuses the input
        raise ModelError(str(error)) from None
    if outputs is None:  # a context without a pool does not raise
        label = getattr(rknn_lite, "label", None)
        reason = getattr(rknn_lite, "error", None) or "see the runtime's own message above"
        raise ModelError(f"{label + ': ' if label else ''}inference of an input of shape "
                         f"{batch.shape} failed: {reason}")
    return outputs


def unknown_outputs(shapes: Sequence[Tuple[int, ...]], expected: str) -> ModelError:
    """The error for outputs that a decoder does not read. expected: a clause that says what it
    reads."""
    found = ", ".join(map(str, shapes)) or "none"
    return ModelError(f"the model's outputs have the shapes {found}, but {expected}")
