"""A scheduler and boards on this machine, to try boards.py without boards."""
from __future__ import annotations

import contextlib
import os
from typing import AsyncIterator

import dask
from distributed import LocalCluster

from vision.errors import InputError

BOARDS = 2
# The terminal sends Ctrl-C to all processes, but boards.py stops its workers itself.
IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


@contextlib.asynccontextmanager
async def local_boards() -> AsyncIterator[str]:
    """The address of a scheduler with BOARDS workers, each in a process of its own."""
    # A worker that is stopped at work leaves a semaphore, of which Python would warn.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    with dask.config.set({"distributed.scheduler.worker-ttl": "10s"}):
        try:
            cluster = await LocalCluster(
                n_workers=BOARDS, threads_per_worker=1, resources={"npu": 1}, memory_limit=0,
                preload=IGNORE_CTRL_C,
                host="127.0.0.1", dashboard_address=":0", silence_logs=100, asynchronous=True)
        except RuntimeError as error:  # it needs a temporary folder and ports
            raise InputError(f"Dask cannot start workers on this machine ({error}).") from None
        async with cluster:
            yield cluster.scheduler_address
