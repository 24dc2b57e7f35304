"""What a runtime is: a class with RKNNLite's methods, one object per context."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Protocol, Type

import numpy as np


class Runtime(Protocol):
    """RKNNLite's interface, as far as the pool and the funcs use it. A context serves one thread at
    a time. Nothing here raises: a call that fails returns -1, or None from inference().

    The pool also reads these attributes, if a class has them:

    NPU_CORES: int. The class has an NPU of its own with this many cores (a simulated NPU).
    VENDOR_NPU: bool. True if its contexts run on the machine's own NPU, as the wheel's do.
    ON_CPU: bool. True if its contexts (also) run on the CPU, where a long inference does not mean
        that the NPU hangs.
    cpu_only: bool. True if the context, once it is open, uses no NPU at all.
    error: str or None. The reason of the last call that failed.
    run_failed: bool. True if the last inference failed in the NPU's run. A refused input is no run.
    inference_raw(inputs): as inference(), but outputs stay as they are stored, such as int8 or
        float16. Returns a list of (array, scale, zero point), or None: value = (stored - zero
        point) * scale. The arrays belong to the context, and its next inference overwrites them.
    find_model(path): static. The file that the class runs for a model's path. Raises OSError if
        there is none.
    """

    def __init__(self) -> None: ...

    def load_rknn(self, path: str) -> int:
        """Load the model at this path. Returns 0."""

    def init_runtime(self, *, core_mask: int = 0) -> int:
        """Open the model on the cores of this mask: bit n is core n, 0 any core. Returns 0."""

    def inference(self, inputs: Any, data_type: Any = None, data_format: Any = None,
                  inputs_pass_through: Any = None, get_frame_id: bool = False) \
            -> Optional[List[np.ndarray]]:
        """Run the model on a list of arrays (1, height, width, 3). Returns float32 arrays.

        Wheels from 2.5.0 on, and all runtimes here, also take reuse_outputs=True: the arrays then
        belong to the context, and its next inference overwrites them.
        """

    def release(self) -> None:
        """Close the context. May be called again."""


if TYPE_CHECKING:  # the type checker compares these classes with the protocol
    from runtimes import cpu, librknnrt, simulated, simulated_library, teflon

    CHECKED: List[Type[Runtime]] = [
        cpu.RKNNLite, librknnrt.RKNNLite, teflon.RKNNLite, simulated.SimulatedNPU,
        simulated_library.Wheel, simulated_library.OldWheel, simulated_library.Library]
