"""Checks of the board and its kernel, read from /sys, /proc and /dev.

root: the folder in which these lie; "" for /.
"""
from __future__ import annotations

import glob
import grp
import os
import platform
import re
from typing import Any, Callable, Iterator, List, NamedTuple

import rknnpool
import runtimes
from doctor.line import Line, read
from results import status
from sources.names import hide
from vision.model import FAMILIES, LIBRARY

HOT = 80  # degrees Celsius; from about 85 on, Rockchip's kernels lower the clocks
RKNPU = ("/sys/module/rknpu", "/sys/bus/platform/drivers/RKNPU", "/sys/kernel/debug/rknpu",
         "/proc/rknpu")
VERSIONS = "sys/kernel/debug/rknpu/version", "proc/rknpu/version", "sys/module/rknpu/version"
VENDORS_KERNEL = "boot the board vendor's image, whose kernel has the rknpu driver"
# What a process that uses the NPU has in memory. Desktops also open the device, but use no NPU.
LIBRARIES = re.compile(r"librknnrt|librkllmrt|libteflon")


# ---- SoC, kernel, driver ----

def system(root: str, soc: str | None) -> Iterator[Line]:
    """The SoC, the board and the kernel. soc: as rknnpool.soc() returns it."""
    cores = rknnpool.npu_cores(soc)
    fact = f"{soc}, {cores} NPU core{'s' * (cores > 1)}" if soc else "none with a known NPU"
    yield Line("SoC", fact, "" if soc else _why_no_soc(root))
    name = read(f"{root}/proc/device-tree/model")
    if name:
        yield Line("board", name)
    inside = ", in a container" if in_container(root) else ""
    kernel = read(f"{root}/proc/sys/kernel/osrelease") or platform.release()
    yield Line("kernel", f"{kernel}, {platform.machine()}{inside}")


def _why_no_soc(root: str) -> str:
    named = os.environ.get("RKNN_SOC")
    if named:
        return f"RKNN_SOC={named} is not a known SoC: choose from {', '.join(FAMILIES)}."
    compatible = read(f"{root}/proc/device-tree/compatible")
    if compatible:
        return (f"This board is a {compatible.split(chr(0))[-1]}. main.py uses the NPU of "
                f"{', '.join(FAMILIES)}; here it runs models on the CPU.")
    if is_board(root, None):
        return (f"There is no {runtimes.COMPATIBLE} ({runtimes.UNMASK}). Or name the SoC: set "
                "RKNN_SOC=rk3588 in the container.")
    return "This is not a Rockchip board. main.py runs models on the CPU."


def is_board(root: str, soc: str | None) -> bool:
    """Whether something shows that this machine has a Rockchip NPU."""
    return bool(soc or driver_of(root) or nodes(root) or os.path.exists(f"{root}{LIBRARY}"))


def in_container(root: str) -> bool:
    """Whether this is a Docker or Podman container."""
    return any(os.path.exists(f"{root}/{name}") for name in (".dockerenv", "run/.containerenv"))


def driver_of(root: str) -> str | None:
    """The NPU's kernel driver: "rknpu", "rocket" or None."""
    for name, paths in (("rknpu", RKNPU), ("rocket", runtimes.ROCKET)):
        if any(os.path.exists(f"{root}{path}") for path in paths):
            return name
    return None


def driver(root: str) -> Line:
    """The kernel's driver and its version."""
    name = driver_of(root)
    if name == "rocket":
        return Line("NPU driver", "rocket, the open driver of mainline kernels",
                    "Rockchip's librknnrt.so cannot use it. main.py --runtime teflon can "
                    f"(docs/runtimes.md); a .rknn needs rknpu: {VENDORS_KERNEL}.")
    if name is None and not nodes(root):
        return Line("NPU driver", "none", f"{VENDORS_KERNEL[0].upper()}{VENDORS_KERNEL[1:]}.")
    found = [re.search(r"\d+(\.\d+)+", read(f"{root}/{path}")) for path in VERSIONS]
    return Line("NPU driver", " ".join(["rknpu", *[match[0] for match in found if match][:1]]))


# ---- the NPU's devices ----

def nodes(root: str) -> list[str]:
    """The NPU's device files, as the kernel names them; also those that are missing in /dev."""
    devices = sorted(glob.glob(f"{root}/sys/class/drm/*/device"))
    drm = [f"/dev/dri/{path.split('/')[-2]}" for path in devices
           if os.path.realpath(path).endswith(".npu")]
    others = [path for path in runtimes.devices(root)
              if not (drm and path.startswith("/dev/dri"))]
    if driver_of(root) == "rocket" and os.path.exists(f"{root}{runtimes.ACCEL}"):
        others.append(runtimes.ACCEL)
    return drm + others


def devices(root: str, **access: Any) -> Line:
    """Whether the NPU's devices are there, and whether this user may open them. access: for
    closed()."""
    found = nodes(root)
    missing = [path for path in found if not os.path.exists(f"{root}{path}")]
    if not found or missing:
        container = in_container(root)
        remedy = ("start the container with --device /dev/dri" if container else
                  f"sudo dmesg | grep -i npu says why; or {VENDORS_KERNEL}")
        lacks = ", ".join(missing) or runtimes.DEVICES[0]
        return Line("NPU device", "missing", f"There is no {lacks}: {remedy}.")
    return Line("NPU device", ", ".join(found), closed(root, found, **access))


def closed(root: str, paths: list[str], access: Callable[[str, int], bool] = os.access,
           group_of: Callable[[str], str] | None = None) -> str:
    """A sentence if this user may not open some of these devices, else ""."""
    refused = [path for path in paths if not access(f"{root}{path}", os.R_OK | os.W_OK)]
    if not refused:
        return ""
    groups = sorted({(group_of or _group)(f"{root}{path}") for path in refused})
    hint = _join_hint(groups, in_container(root))
    return f"No permission to open {' and '.join(refused)}. {hint}"


def _group(path: str) -> str:
    """The name of the group that a file belongs to, or its number if it has no name."""
    number = os.stat(path).st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _join_hint(groups: list[str], container: bool) -> str:
    """How to get the rights of these groups."""
    if container:
        return f"Start the container with {' '.join(f'--group-add {name}' for name in groups)}."
    if "root" in groups:
        return ("Only root has it: use sudo, or write a udev rule that gives the device to the "
                "group render.")
    user = os.environ.get("USER", "$USER")
    return f"Join: sudo usermod -aG {','.join(groups)} {user}, then log out and in again."


def users(root: str, own: int) -> Line | None:
    """Other processes that use the NPU, as far as this user may see them. own: our process id."""
    held: set[str] = {*nodes(root)}
    found: dict[str, str] = {}  # by process id
    for folder in glob.glob(f"{root}/proc/[0-9]*"):
        pid = os.path.basename(folder)
        if pid != str(own) and LIBRARIES.search(read(f"{folder}/maps")) and held & _files(folder):
            command = read(f"{folder}/cmdline").replace("\0", " ")
            found[pid] = f"process {pid} ({hide(command)[:60]})"
    if not found:
        return None
    return Line("NPU used by", "; ".join(found.values()),
                f"It uses NPU time and memory. To stop it: kill {' '.join(found)}")


def _files(folder: str) -> set[str]:
    """The files that a process has open."""
    try:
        return {os.readlink(entry.path) for entry in os.scandir(f"{folder}/fd")}
    except OSError:  # another user's process, or one that has ended
        return set()


# ---- clocks, temperature, memory ----

class Clock(NamedTuple):
    """A clock of the kernel, in MHz. highest is 0 if the kernel does not tell the steps."""

    name: str
    now: int
    lowest: int
    highest: int
    governor: str

    def __str__(self) -> str:
        return (f"{self.name + ' ' if self.name else ''}{self.now}"
                f"{f' of {self.highest}' if self.highest else ''} MHz ({self.governor})")


def _clocks(pattern: str, name: str, prefix: str = "", per_mhz: int = 1000000) -> list[Clock]:
    found: List[Clock] = []
    for folder in sorted(glob.glob(pattern)):
        def value(file: str, folder: str = folder) -> str:
            return read(f"{folder}/{prefix}{file}")
        cpus = read(f"{folder}/related_cpus").split()
        steps = [int(step) // per_mhz
                 for step in re.findall(r"\d+", value("available_frequencies"))]
        now = value("cur_freq")
        if now.isdigit():
            found.append(Clock(name + (f" {cpus[0]}-{cpus[-1]}" if cpus else ""),
                               int(now) // per_mhz, min(steps, default=0), max(steps, default=0),
                               value("governor") or "no governor"))
    return found


def clocks(root: str) -> Iterator[Line]:
    """Clocks and governors of NPU, memory, GPU and CPU."""
    devfreq, cpufreq = f"{root}/sys/class/devfreq", f"{root}/sys/devices/system/cpu/cpufreq"
    for clock in _clocks(f"{devfreq}/*.npu", ""):
        slow = clock.now == clock.lowest < clock.highest
        yield Line("NPU clock", str(clock), "This is the lowest clock. sudo ./performance.sh sets "
                   "the highest. (Governors such as rknpu_ondemand may raise it under load.)"
                   if slow else "")
    others = [*_clocks(f"{cpufreq}/policy*", "CPU", "scaling_", 1000),
              *_clocks(f"{devfreq}/dmc*", "memory"), *_clocks(f"{devfreq}/*.gpu", "GPU")]
    if others:
        yield Line("other clocks", ", ".join(map(str, others)))


def heat(root: str) -> Iterator[Line]:
    """The NPU's load and the temperatures."""
    board: dict[str, Any] = status.board(root)
    load = board["npu"]["load"]
    if load is not None:
        yield Line("NPU load", ", ".join(f"{percent} %" for percent in load))
    if board["temperatures"]:
        name, highest = max(board["temperatures"].items(), key=lambda item: item[1])
        npu = board["npu"]["temperature"]
        fact = f"highest {highest:g} C ({name})" + (f", NPU {npu:g} C" if npu is not None else "")
        yield Line("temperature", fact, "A hot chip lowers its clocks: use a heat sink and a fan."
                   if highest >= HOT else "")


def memory(root: str) -> Iterator[Line]:
    """Free memory. CMA is what an NPU without IOMMU takes its memory from."""
    found = dict(re.findall(r"^(\w+): +(\d+) kB", read(f"{root}/proc/meminfo"), re.MULTILINE))
    parts = [f"{int(found[free]) // 1024:,} of {int(found[total]) // 1024:,} MB free{note}"
             for free, total, note in (("MemAvailable", "MemTotal", ""),
                                       ("CmaFree", "CmaTotal", " for devices (CMA)"))
             if free in found and int(found.get(total, 0))]
    if parts:
        yield Line("memory", ", ".join(parts))
