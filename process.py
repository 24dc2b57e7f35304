"""This process: the CPU cores it runs on, the signals that end it, and its end."""
from __future__ import annotations

import glob
import os
import signal
import sys
from typing import Any

CPUS = "/sys/devices/system/cpu"
# Ctrl-C; kill and systemd's stop; a closed terminal
ENDINGS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]


def fast_cpus() -> set[int]:
    """Numbers of this machine's fast CPU cores; empty if the kernel shows no difference."""
    capacities = {}
    for path in glob.glob(os.path.join(CPUS, "cpu[0-9]*", "cpu_capacity")):
        with open(path) as file:
            capacities[int(os.path.basename(os.path.dirname(path))[3:])] = int(file.read())
    # The two fast clusters of an RK3588 differ by a few percent; slow cores reach half or less.
    return {cpu for cpu, capacity in capacities.items()
            if capacity > 0.75 * max(capacities.values())}


def stay_on_big_cores() -> None:
    """Bind this thread, and every thread that it starts, to the fast CPU cores."""
    if hasattr(os, "sched_setaffinity"):
        try:
            allowed = os.sched_getaffinity(0)
            os.sched_setaffinity(0, fast_cpus() & allowed or allowed)
        except OSError:  # a sandbox forbids it; the program runs without it
            pass


def note_signals() -> list[int]:
    """From now on, a signal that would end the program is only appended to the returned list."""
    signals: list[int] = []

    def note(number: int, _: Any) -> None:
        # It takes no lock, not even an Event's: the code that it interrupts may hold that lock.
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)  # the second one ends the program at once

    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, note)
    return signals


def leave(code: int) -> None:
    """End the process without waiting for threads that hang in a context or a source."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
