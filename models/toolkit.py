"""Builds a .rknn with Rockchip's rknn-toolkit2."""
from __future__ import annotations

import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterable, Optional

import numpy as np
from onnx_model import Network, model_input
from whole_file import replacing

from results.picture_saver import encode
from vision.errors import InputError
from vision.packages import new_environment

FOLDER = Path(__file__).resolve().parent
ALGORITHMS = "normal", "mmse", "kl_divergence"  # that choose the ranges of int8


def import_toolkit() -> Any:
    """The class rknn.api.RKNN. Raises InputError with what to install."""
    try:
        from rknn.api import RKNN
        return RKNN
    except ImportError as error:
        raise InputError(f"rknn-toolkit2 cannot be imported ({error}). It needs an environment of "
                         f"its own (docs/models.md): {setup()}") from None


def setup() -> str:
    """What to do about a missing toolkit, with a command."""
    python = FOLDER / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != python.parents[1].resolve():
        return f"run convert.py with {python}"
    board = platform.machine() == "aarch64"
    name = "requirements-arm64.txt" if board else "requirements.txt"
    command = new_environment(FOLDER / ".venv", *["--no-deps"] * board, "-r", str(FOLDER / name))
    if sys.version_info >= (3, 13):  # no wheel
        pip = command.partition(" && ")[2]
        command = f"uv venv --seed --python 3.12 {FOLDER / '.venv'} && {pip}"
    return f"run convert.py with {python}, which this command creates: {command}"


def build(network: Network, soc: str, pictures: Optional[Iterable[np.ndarray]] = None,
          algorithm: str = "normal") -> Any:
    """Build a model: a built rknn.api.RKNN.

    soc: the toolkit's name for it. pictures: (h, w, 3) uint8 BGR, that calibrate int8; None for
    16-bit floats. algorithm: one of ALGORITHMS. Raises InputError if the model cannot be built.
    """
    path, fixed = network.path, network.fixed
    rknn = import_toolkit()(verbose=False)
    with tempfile.TemporaryDirectory(dir=place_without_spaces()) as folder:
        source, dataset = path, Path(folder) / "dataset.txt"
        if network.relative and not network.about.relative:
            import onnx
            source = Path(folder) / path.name
            with replacing(source) as new:
                onnx.save(network.model, str(new))
        if pictures is not None:
            save_inputs(network, pictures, dataset)
        # The NPU subtracts the mean and divides, so it takes bytes.
        steps = [("configure", lambda: rknn.config(
                      mean_values=[network.mean], std_values=[network.std], target_platform=soc,
                      quantized_algorithm=algorithm)),
                 ("read", lambda: rknn.load_onnx(str(source), **fixed)),
                 ("build", lambda: rknn.build(do_quantization=pictures is not None,
                                              dataset=None if pictures is None else str(dataset)))]
        for step, call in steps:
            try:
                code = call()
            except (Exception, SystemExit) as error:  # the toolkit raises anything, and may exit()
                raise InputError(f"{path}: {failure(step, soc, str(error), fixed)}") from None
            if code:
                raise InputError(f"{path}: {failure(step, soc, fixed=fixed)}")
    return rknn


def place_without_spaces() -> Optional[str]:
    """Where to create a temporary folder; None: in the default place. The toolkit splits the lines
    of its list of pictures at spaces."""
    return "/tmp" if re.search(r"\s", tempfile.gettempdir()) else None


def save_inputs(network: Network, pictures: Iterable[np.ndarray], dataset: Path) -> None:
    """Save pictures as the model's func passes them, and their list, `dataset`, beside them."""
    names = []
    for number, picture in enumerate(pictures):
        image = model_input(picture, network.model.graph, network.about)  # RGB
        path = dataset.with_name(f"{number}.png")
        with replacing(path) as new:
            new.write_bytes(encode(image[..., ::-1], ".png") or b"")
        names.append(str(path))
    if not names:
        raise InputError("--calibration: none of its pictures can be read.")
    dataset.write_text("\n".join(names))


def failure(step: str, soc: str, message: str = "", fixed: Optional[dict] = None) -> str:
    """A sentence for what rknn-toolkit2 could not do.

    message: of the exception it raised; fixed: the arguments for open dimensions.
    """
    if step == "build" and "IndexError" in message:
        return ("rknn-toolkit2 2.5.0 cannot build Ultralytics' exports (its issue 581, the "
                "IndexError above), but 2.3.2 can: pip install rknn-toolkit2==2.3.2.")
    reason = last_line(message) or "see its own message above"
    advice = "; its sides are open: export it with dynamic=False" if fixed else ""
    return f"rknn-toolkit2 cannot {step} this model for {soc}: {reason.strip(' .!')}{advice}."


def last_line(message: str) -> str:
    """The reason in the text of the toolkit's exceptions, which is a whole traceback."""
    line = (message.strip().splitlines() or [""])[-1]
    known = re.search(r"\[Errno \d+\] ([^:]+)", line)
    return known[1] if known else line


def export(rknn: Any, path: Path, out: Path) -> None:
    """Write the .rknn to `path`. `out` is its name in messages. Raises InputError."""
    try:
        code = rknn.export_rknn(str(path))
    except (Exception, SystemExit) as error:
        code = last_line(str(error)) or "the toolkit ended"
    if code:
        reason = f" ({code})" if isinstance(code, str) else ""
        raise InputError(f"{out}: cannot be written{reason}.")
