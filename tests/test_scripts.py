"""performance.sh and rkcat.sh, run on folders that look like /sys, /proc and /usr/lib of each SoC.
If the tests run as root, the unprivileged user is nobody; otherwise it is the user who runs them,
without permission for the files.
"""

import contextlib
import ctypes
import os
import pty
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

import rknnpool
from models import convert
from vision.model import family

BASH = shutil.which("bash")
NOBODY = 65534
CPUFREQ, DEVFREQ = "sys/devices/system/cpu/cpufreq", "sys/class/devfreq"
STATE = "run/rknnpool-clocks"
CPU_GOVERNORS = "conservative ondemand userspace powersave performance schedutil "
NPU_GOVERNORS = "rknpu_ondemand dmc_ondemand userspace powersave performance simple_ondemand"

# Per SoC: model and compatible; CPUs and highest frequency (kHz) of each policy; node and highest
# frequency (Hz) of NPU, memory and GPU; load of the cores.
SOCS = {
    "rk3588": (
        "Orange Pi 5 Plus",
        "xunlong,orangepi-5-plus\0rockchip,rk3588\0",
        {0: ("0 1 2 3", 1800000), 4: ("4 5", 2256000), 6: ("6 7", 2352000)},
        {"fdab0000.npu": 1000000000, "dmc": 2112000000, "fb000000.gpu": 1000000000},
        "Core0: 98%, Core1: 97%, Core2:  5%,",
    ),
    "rk3576": (
        "Radxa ROCK 4D",
        "radxa,rock-4d\0rockchip,rk3576\0",
        {0: ("0 1 2 3", 2208000), 4: ("4 5 6 7", 2304000)},
        {"27700000.npu": 950000000, "dmc": 2112000000, "27800000.gpu": 950000000},
        "Core0: 42%, Core1:  0%,",
    ),
    "rk3566": (
        "Radxa ZERO 3",
        "radxa,zero3\0rockchip,rk3566\0",
        {0: ("0 1 2 3", 1800000)},
        {"fde40000.npu": 900000000, "dmc": 1056000000, "fde60000.gpu": 800000000},
        "45%",
    ),
    "rk3562": (
        "Rockchip RK3562 EVB",
        "rockchip,rk3562-evb\0rockchip,rk3562\0",
        {0: ("0 1 2 3", 2016000)},
        {"ff300000.npu": 1000000000, "dmc": 1332000000, "ff320000.gpu": 900000000},
        "7%",
    ),
}


class Board:
    """A folder `root` that looks like a board. Runs the scripts on it."""

    def __init__(self, root):
        self.root, self.started = root, []
        for script in ("performance.sh", "rkcat.sh"):
            # the user nobody may not be allowed to read the clone
            shutil.copy(ROOT / script, root.parent)
        (root / "run").mkdir(parents=True)

    def file(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())

    def read(self, path):
        return (self.root / path).read_text().strip()

    def policy(self, number, cpus, top, governor="schedutil"):
        folder = f"{CPUFREQ}/policy{number}/"
        for name, text in {
            "related_cpus": cpus,
            "cpuinfo_max_freq": top,
            "scaling_max_freq": top,
            "scaling_min_freq": 408000,
            "scaling_cur_freq": 408000,
            "scaling_governor": governor,
            "scaling_setspeed": "<unsupported>",
            "scaling_available_frequencies": f"408000 816000 {top} ",
            "scaling_available_governors": CPU_GOVERNORS,
        }.items():
            self.file(folder + name, text)

    def devfreq(self, node, top, governor="simple_ondemand", governors=NPU_GOVERNORS):
        device = f"sys/devices/platform/{node}/devfreq/{node}"
        for name, text in {
            "max_freq": top,
            "min_freq": 300000000,
            "cur_freq": 300000000,
            "governor": governor,
            "userspace/set_freq": "undefined",
            "available_frequencies": f"{top} 600000000 300000000",
            "available_governors": governors,
        }.items():
            self.file(f"{device}/{name}", text)
        (self.root / DEVFREQ).mkdir(parents=True, exist_ok=True)
        (self.root / DEVFREQ / node).symlink_to(self.root / device)

    def thermal(self, **millidegrees):
        for number, (zone, temp) in enumerate(millidegrees.items()):
            self.file(f"sys/class/thermal/thermal_zone{number}/type", zone.replace("_", "-"))
            self.file(f"sys/class/thermal/thermal_zone{number}/temp", temp)

    def debugfs(self, load):
        self.file("sys/kernel/debug/rknpu/load", f"NPU load:  {load}")
        self.file("sys/kernel/debug/rknpu/version", "RKNPU driver: v0.9.8")

    def nodes(self):
        """The files that a run could change, or create in /run: path -> content."""
        paths = (
            Path(folder, name)
            for top in ("sys/devices", "run")
            for folder, _, names in os.walk(self.root / top)
            for name in names
        )
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in paths
            if stat.S_ISREG(path.stat().st_mode)
        }

    def governors_and_limits(self):
        return {
            path: text
            for path, text in self.nodes().items()
            if not path.endswith(("setspeed", "set_freq"))
        }

    def start(self, script, *arguments, rights=True, sysroot=True, **options):
        """Start the script, as the unprivileged user if requested."""

        def become():
            # pytest in the background ignores it and passes that on; bash cannot undo it
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if not rights and os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)

        environment = {**os.environ, **options.pop("env", {})}
        environment.pop("SYSROOT", None)
        if sysroot:
            environment["SYSROOT"] = str(self.root)
        process = subprocess.Popen(
            [BASH, str(self.root.parent / script), *arguments],
            preexec_fn=become,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        self.started.append(process)
        return process

    def run(self, script, *arguments, rights=True, **options):
        process = self.start(script, *arguments, rights=rights, **options)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def pin(self, *arguments, **options):
        return self.run("performance.sh", *arguments, **options)

    def close(self):
        """Remove everyone's permissions except root's."""
        for folder, folders, names in os.walk(self.root):
            for name in folders + names:
                path = Path(folder, name)
                path.chmod(path.stat().st_mode & ~0o222)
        debugfs = self.root / "sys/kernel/debug"
        if debugfs.exists():
            debugfs.chmod(0o700 if os.getuid() == 0 else 0)


@pytest.fixture
def make_board():
    """make_board(soc, debugfs=True, devfreq=True): a Board that looks like that SoC's."""
    with tempfile.TemporaryDirectory(prefix="a board ") as folder:  # a path with spaces
        Path(folder).chmod(0o755)
        boards = []

        def make(soc, debugfs=True, devfreq=True):
            board = Board(Path(folder) / soc)
            boards.append(board)
            model, compatible, policies, nodes, load = SOCS[soc]
            board.file("proc/device-tree/model", f"{model}\0".encode())
            board.file("proc/device-tree/compatible", compatible.encode())
            for number, (cpus, top) in policies.items():
                board.policy(number, cpus, top)
            for node, top in nodes.items() if devfreq else ():
                board.devfreq(node, top)
            board.thermal(soc_thermal=45307, npu_thermal=44384)
            board.file("sys/module/rknpu/version", "0.9.8")
            board.file(
                "usr/lib/librknnrt.so",
                b"\x7fELF\0\xff\x80librknnrt version: %s\0\n\0"
                b"librknnrt version: 2.3.2 (429f97ae6b@2025-04-09T09:09:27)\0\xfe",
            )
            (board.root / "sys/kernel/debug").mkdir(parents=True)
            if debugfs:
                board.debugfs(load)
            return board

        yield make
        for board in boards:
            for process in board.started:
                process.kill()  # if a broken script left it waiting for a FIFO
                process.communicate()
        subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)


@pytest.fixture
def board(make_board):
    return make_board("rk3588")


@pytest.fixture
def pc(make_board):
    """A PC: two CPUs without a list of frequencies, no devfreq, no device tree."""
    board = make_board("rk3588", debugfs=False, devfreq=False)
    shutil.rmtree(board.root / "proc")
    shutil.rmtree(board.root / "usr")
    shutil.rmtree(board.root / "sys")
    for number in (0, 1):
        board.policy(number, str(number), 4200000, governor="powersave")
        board.file(f"{CPUFREQ}/policy{number}/scaling_available_governors", "performance powersave")
        (board.root / f"{CPUFREQ}/policy{number}/scaling_available_frequencies").unlink()
    board.thermal(x86_pkg_temp=51000)
    return board


class Watch:
    """The events in these folders, in order, from the kernel's inotify."""

    CLOSE_WRITE, MOVED_TO = 0x8, 0x80

    def __init__(self, *folders):
        libc = ctypes.CDLL(None)
        self.fd = libc.inotify_init1(os.O_NONBLOCK)
        for folder in folders:
            assert (
                libc.inotify_add_watch(
                    self.fd, os.fsencode(folder), self.CLOSE_WRITE | self.MOVED_TO
                )
                > 0
            )

    def files_written(self):
        data, names = os.read(self.fd, 1 << 16), []
        os.close(self.fd)
        while data:
            length = struct.unpack_from("iIII", data)[3]
            names.append(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return names


def lines_of(result):
    """The table: the first column -> the rest of its line, with single spaces."""
    assert result.stderr == ""
    lines = [re.sub(" +", " ", line) for line in result.stdout.splitlines()]
    return dict(re.match(r"((?:CPU )?\S+) (.*)", line).groups() for line in lines)


def assert_refused(result, sentence):
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(sentence + r"\n", result.stderr), result.stderr


# performance.sh


@pytest.mark.parametrize("soc", SOCS)
def test_every_part_is_pinned_to_its_highest_frequency(make_board, soc):
    board = make_board(soc)
    assert board.pin().returncode == 0
    _, _, policies, nodes, _ = SOCS[soc]
    for number, (_, top) in policies.items():
        assert board.read(f"{CPUFREQ}/policy{number}/scaling_governor") == "userspace"
        assert board.read(f"{CPUFREQ}/policy{number}/scaling_setspeed") == str(top)
    for node, top in nodes.items():
        assert board.read(f"{DEVFREQ}/{node}/governor") == "userspace"
        assert board.read(f"{DEVFREQ}/{node}/userspace/set_freq") == str(top)


def test_the_table_shows_the_old_requested_and_present_frequency(board):
    # the kernel's choice for the requested 1000 MHz
    board.file(f"{DEVFREQ}/fdab0000.npu/cur_freq", 800000000)
    lines = board.pin().stdout.splitlines()
    assert lines == [
        "part        before                    asked for                 now",
        "CPU 0-3     schedutil 408 MHz         userspace 1800 MHz        userspace 408 MHz",
        "CPU 4-5     schedutil 408 MHz         userspace 2256 MHz        userspace 408 MHz",
        "CPU 6-7     schedutil 408 MHz         userspace 2352 MHz        userspace 408 MHz",
        "NPU         simple_ondemand 800 MHz   userspace 1000 MHz        userspace 800 MHz",
        "memory      simple_ondemand 300 MHz   userspace 2112 MHz        userspace 300 MHz",
        "GPU         simple_ondemand 300 MHz   userspace 1000 MHz        userspace 300 MHz",
    ]


def test_the_governor_performance_is_used_if_userspace_is_not_available(board):
    board.file(f"{CPUFREQ}/policy4/scaling_available_governors", "performance schedutil")
    board.file(f"{DEVFREQ}/dmc/available_governors", "dmc_ondemand performance")
    table = lines_of(board.pin())
    assert table["CPU 4-5"].endswith(" performance 2256 MHz performance 408 MHz")
    assert (
        board.read(f"{CPUFREQ}/policy4/scaling_governor")
        == board.read(f"{DEVFREQ}/dmc/governor")
        == "performance"
    )
    assert board.read(f"{CPUFREQ}/policy0/scaling_governor") == "userspace"


def test_an_unavailable_governor_is_never_written(board):
    board.file(f"{DEVFREQ}/dmc/available_governors", "venc_ondemand simple_ondemand")
    table = lines_of(board.pin())
    assert table["memory"].endswith(
        "simple_ondemand 300 MHz, offers neither userspace nor performance"
    )
    assert board.read(f"{DEVFREQ}/dmc/governor") == "simple_ondemand"
    assert board.read(f"{CPUFREQ}/policy6/scaling_governor") == "userspace"


def test_a_unit_that_the_kernel_lacks_is_reported_in_one_line(make_board):
    board = make_board("rk3588", devfreq=False)
    result = board.pin()
    assert result.returncode == 0
    table = lines_of(result)
    assert [table[part] for part in ("NPU", "memory", "GPU")] == [
        "this kernel offers no clock for it"
    ] * 3
    assert table["CPU 6-7"].endswith(" userspace 2352 MHz userspace 408 MHz")


def test_without_a_list_of_frequencies_the_hardware_maximum_is_used(pc, make_board):
    assert (
        lines_of(pc.pin())["CPU 1"] == "powersave 408 MHz performance 4200 MHz performance 408 MHz"
    )
    board = make_board("rk3566")
    (board.root / CPUFREQ / "policy0/scaling_available_frequencies").unlink()
    board.file(f"{CPUFREQ}/policy0/scaling_max_freq", 816000)
    board.pin()
    assert board.read(f"{CPUFREQ}/policy0/scaling_setspeed") == "1800000"


@pytest.mark.parametrize("limit", ["scaling_max_freq", "max_freq"])
def test_a_lowered_limit_is_raised_before_the_frequency_is_set(board, limit):
    folder, node = (
        (f"{CPUFREQ}/policy4", "")
        if limit.startswith("scaling")
        else (f"{DEVFREQ}/fdab0000.npu", "userspace")
    )
    board.file(f"{folder}/{limit}", "816000")
    watch = Watch(board.root / folder, board.root / folder / node)
    board.pin()
    written = watch.files_written()
    assert written.index(limit) < next(
        number for number, name in enumerate(written) if name in ("scaling_setspeed", "set_freq")
    )
    assert board.read(f"{folder}/{limit}") in ("2256000", "1000000000")


def test_the_state_file_is_complete_before_the_first_change(board):
    memory = board.root / DEVFREQ / "dmc"
    watch = Watch(
        board.root / "run", board.root / CPUFREQ / "policy0", memory, memory / "userspace"
    )
    board.pin()
    assert watch.files_written() == [
        "rknnpool-clocks.new",
        "rknnpool-clocks",
        "scaling_governor",
        "scaling_setspeed",
        "governor",
        "set_freq",
    ]


@pytest.mark.parametrize("soc", SOCS)
def test_restore_restores_governors_and_limits(make_board, soc):
    board = make_board(soc)
    board.file(f"{CPUFREQ}/policy0/scaling_max_freq", 816000)
    board.file(f"{DEVFREQ}/dmc/max_freq", 600000000)
    before = board.governors_and_limits()
    board.pin()
    assert board.governors_and_limits() != before
    result = board.pin("--restore")
    assert result.returncode == 0
    assert lines_of(result)["memory"] == "userspace 300 MHz simple_ondemand simple_ondemand 300 MHz"
    assert board.governors_and_limits() == before  # the state file is deleted, too


def test_restore_restores_a_frequency_that_was_set_by_hand(board):
    board.policy(4, "4 5", 2256000, governor="userspace")
    board.file(f"{CPUFREQ}/policy4/scaling_setspeed", 816000)
    board.pin()
    watch = Watch(board.root / CPUFREQ / "policy4", board.root / CPUFREQ / "policy0")
    board.pin("--restore")
    assert watch.files_written() == ["scaling_governor", "scaling_governor", "scaling_setspeed"]
    assert board.read(f"{CPUFREQ}/policy4/scaling_setspeed") == "816000"


def test_a_second_run_keeps_the_original_state(board):
    before = board.governors_and_limits()
    board.pin()
    state = board.read(STATE)
    table = lines_of(board.pin())
    assert board.read(STATE) == state
    assert table["NPU"].startswith("simple_ondemand 300 MHz ")
    board.pin("--restore")
    assert board.governors_and_limits() == before


def test_a_second_run_adds_parts_that_appeared_after_the_first(board):
    link = board.root / DEVFREQ / "fb000000.gpu"
    target = os.readlink(link)
    link.unlink()
    board.pin()
    link.symlink_to(target)
    board.pin()
    board.pin("--restore")
    assert board.read(f"{DEVFREQ}/fb000000.gpu/governor") == "simple_ondemand"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_run_can_be_restored(board, number):
    board.file(f"{CPUFREQ}/policy0/scaling_max_freq", 816000)
    before = board.governors_and_limits()
    for policy in (0, 4):
        step = board.root / CPUFREQ / f"policy{policy}/scaling_setspeed"
        step.unlink()
        os.mkfifo(step)
    process = board.start("performance.sh")
    # so policy0 is done
    assert (board.root / CPUFREQ / "policy0/scaling_setspeed").read_text() == "1800000\n"
    err = None
    while err is None:  # nobody reads policy4's FIFO, where the script waits, or will soon
        process.send_signal(number)  # bash notes a signal just before it opens the FIFO, and waits
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, err = process.communicate(timeout=2)
    assert process.returncode in (130, -number)
    assert board.read(f"{CPUFREQ}/policy0/scaling_governor") == "userspace"
    assert board.read(f"{CPUFREQ}/policy6/scaling_governor") == "schedutil"
    assert err == (
        ""
        if number == signal.SIGKILL
        else "performance.sh: interrupted; to undo it: sudo ./performance.sh --restore\n"
    )
    board.pin("--restore")
    assert board.governors_and_limits() == before


@pytest.mark.parametrize("arguments", [[], ["--restore"]])
def test_without_root_it_prints_one_sentence_and_changes_nothing(board, arguments):
    if arguments:
        board.pin()
    before = board.nodes()
    board.close()
    assert_refused(
        board.pin(*arguments, rights=False), r"performance\.sh: only root may change the clocks: .+"
    )
    assert board.nodes() == before


def test_without_root_it_prints_one_sentence_on_the_real_machine(board):
    assert_refused(
        board.pin(rights=False, sysroot=False),
        r"performance\.sh: only root may change the clocks: .+",
    )


def test_nothing_is_changed_if_the_state_cannot_be_saved(board):
    before = board.nodes()
    shutil.rmtree(board.root / "run")
    assert_refused(
        board.pin(), r"performance\.sh: cannot write .*/run/rknnpool-clocks, so nothing was changed"
    )
    assert board.nodes() == before


def test_status_changes_nothing_and_needs_no_root(board):
    before = board.nodes()
    board.close()
    result = board.pin("--status", rights=False)
    assert result.returncode == 0
    assert lines_of(result)["CPU 4-5"] == "- - schedutil 408 MHz"
    assert board.nodes() == before


def test_status_shows_the_original_state_to_every_user(board):
    os_umask = os.umask(0o077)  # as sudo's may be
    try:
        pinned = board.pin()
    finally:
        os.umask(os_umask)
    board.close()
    assert board.pin("--status", rights=False).stdout == pinned.stdout


@pytest.fixture
def refusing():
    """A file of the real kernel that returns EINVAL for anything but a number from -1000 to
    1000."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield f"/proc/{process.pid}/oom_score_adj"


def replace(path, target):
    path.unlink()
    path.symlink_to(target)


def test_a_refused_frequency_is_reported_in_one_line_and_performance_is_used(board, refusing):
    replace(board.root / DEVFREQ / "fdab0000.npu/userspace/set_freq", refusing)
    result = board.pin()
    assert result.returncode == 0
    table = lines_of(result)
    assert (
        table["NPU"]
        == "simple_ondemand 300 MHz userspace 1000 MHz performance 300 MHz, userspace refused"
    )
    assert table["GPU"].endswith(" userspace 300 MHz")


def test_a_refused_frequency_without_performance_keeps_the_governor(board, refusing):
    board.file(f"{CPUFREQ}/policy0/scaling_available_governors", "schedutil userspace")
    replace(board.root / CPUFREQ / "policy0/scaling_setspeed", refusing)
    pinned = lines_of(board.pin())["CPU 0-3"]
    assert pinned == "schedutil 408 MHz userspace 1800 MHz schedutil 408 MHz, userspace refused"


def test_a_refused_governor_is_reported_in_one_line(board, refusing):
    replace(board.root / DEVFREQ / "dmc/governor", refusing)
    result = board.pin()
    assert result.returncode == 0
    table = lines_of(result)
    assert table["memory"].endswith(", userspace refused")
    assert table["GPU"].endswith(" userspace 300 MHz")


def test_a_refused_restore_is_reported_and_can_be_repeated(board, refusing):
    before = board.governors_and_limits()
    board.pin()
    governor = board.root / DEVFREQ / "dmc/governor"
    replace(governor, refusing)
    result = board.pin("--restore")
    assert result.returncode == 1
    assert lines_of(result)["memory"].endswith(", governor refused")
    governor.unlink()
    governor.write_text("userspace\n")
    assert board.pin("--restore").returncode == 0
    assert board.governors_and_limits() == before


def test_a_limit_that_a_hot_chip_set_itself_is_not_restored(board, refusing):
    limit = board.root / CPUFREQ / "policy4/scaling_max_freq"
    Path(refusing).write_text("1000")  # 1 MHz, whatever is written
    replace(limit, refusing)
    board.pin()
    limit.unlink()
    limit.write_text("2256000\n")  # cooled
    board.pin("--restore")
    assert limit.read_text() == "2256000\n"


def test_restore_with_nothing_to_restore_prints_one_sentence(board):
    assert_refused(
        board.pin("--restore"),
        r"performance\.sh: nothing to restore: there is no .*/run/rknnpool-clocks",
    )


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("performance.sh", ["--stats"]),
        ("performance.sh", ["--status", "--restore"]),
        ("performance.sh", [""]),
        ("rkcat.sh", ["1", "2"]),
    ],
)
def test_an_unknown_option_prints_the_usage(board, script, arguments):
    before = board.nodes()
    assert_refused(board.run(script, *arguments), rf"{script}: usage: .*\./{script} .+")
    assert board.nodes() == before


@pytest.mark.parametrize("script", ["performance.sh", "rkcat.sh"])
def test_help_prints_the_usage_and_what_the_script_does(board, script):
    before = board.nodes()
    result = board.run(script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(rf"usage: .*\./{script} .+\n(S\w+s .+\n)(.+\n)", result.stdout)
    assert board.nodes() == before


def test_the_scripts_need_only_a_few_posix_tools(board):
    tools = board.root / "bin"
    tools.mkdir()
    for name in ("id", "mv", "rm", "sed", "sleep", "tr"):
        (tools / name).symlink_to(shutil.which(name))
    for script, arguments in (
        ("performance.sh", []),
        ("performance.sh", ["--restore"]),
        ("rkcat.sh", []),
    ):
        result = board.run(script, *arguments, env={"PATH": str(tools)})
        assert (result.returncode, result.stderr) == (0, "")


# rkcat.sh


def test_rkcat_shows_everything_about_the_board(board):
    result = board.run("rkcat.sh")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "Orange Pi 5 Plus (rk3588)",
        "NPU load            Core0: 98%, Core1: 97%, Core2:  5%",
        "NPU driver          0.9.8",
        "RKNN runtime        2.3.2",
        "CPU 0-3             408 MHz   schedutil",
        "CPU 4-5             408 MHz   schedutil",
        "CPU 6-7             408 MHz   schedutil",
        "NPU                 300 MHz   simple_ondemand",
        "memory              300 MHz   simple_ondemand",
        "GPU                 300 MHz   simple_ondemand",
        "soc-thermal         45.3 C",
        "npu-thermal         44.4 C",
    ]


@pytest.mark.parametrize("soc", SOCS)
def test_rkcat_shows_the_load_of_each_core(make_board, soc):
    shown = make_board(soc).run("rkcat.sh").stdout
    assert re.search(r"^NPU load +(.*)$", shown, re.MULTILINE).group(1) == SOCS[soc][4].rstrip(",")


def test_the_load_is_read_from_proc_if_debugfs_has_none(make_board):
    board = make_board("rk3566", debugfs=False)
    board.file("proc/rknpu/load", "NPU load:  12%")
    assert "\nNPU load            12%\n" in board.run("rkcat.sh").stdout


def test_without_debugfs_rkcat_says_why_there_is_no_load(make_board):
    result = make_board("rk3588", debugfs=False).run("rkcat.sh")
    assert result.returncode == 0
    assert "\nNPU load            not shown: no rknpu in /sys/kernel/debug" in result.stdout
    assert "\nNPU driver          0.9.8\n" in result.stdout


def test_without_root_rkcat_shows_all_but_the_load_with_the_reason(board):
    complete = board.run("rkcat.sh").stdout
    board.close()
    result = board.run("rkcat.sh", rights=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == re.sub(
        r"(?<=NPU load            ).*", "shown to root only: sudo ./rkcat.sh", complete
    )


def test_rkcat_shows_a_part_without_a_clock_in_one_line(make_board):
    shown = make_board("rk3588", devfreq=False).run("rkcat.sh").stdout
    for part in ("NPU", "memory", "GPU"):
        assert re.search(rf"^{part} +this kernel shows no clock for it$", shown, re.MULTILINE)


def test_rkcat_on_another_machine_says_so_and_shows_what_it_finds(pc):
    result = pc.run("rkcat.sh")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "There is no Rockchip NPU in this machine.",
        "CPU 0               408 MHz   powersave",
        "CPU 1               408 MHz   powersave",
        "x86-pkg-temp        51.0 C",
    ]


@pytest.mark.parametrize(
    "files",
    [
        ["sys/module/rocket/initstate"],
        ["sys/class/accel/accel0/dev"],
        ["dev/accel/accel0"],
        ["sys/bus/platform/drivers/rocket/uevent"],
    ],
)
def test_a_kernel_with_the_open_driver_is_reported(make_board, files):
    board = make_board("rk3588", debugfs=False)
    (board.root / "sys/module/rknpu/version").unlink()
    (board.root / "sys/module/rknpu").rmdir()
    for path in files:
        board.file(path, "live")
    for hidden in (False, True):  # from root, too
        if hidden:
            board.close()
        result = board.run("rkcat.sh", rights=not hidden)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines()[1:3] == [
            "NPU load            not shown: the rocket driver does not report it",
            "NPU driver          rocket, the open one, which Rockchip's librknnrt.so cannot use: "
            "boot the board "
            "vendor's kernel, which has rknpu",
        ]


def test_rknpu_is_found_beside_another_accelerator(board):
    board.file("sys/class/accel/accel0/dev", "261:0")
    shown = board.run("rkcat.sh").stdout
    assert "rocket" not in shown and "\nNPU driver          0.9.8\n" in shown


# The text after "rockchip," in device trees: the displayed name, the target family of models, NPU
# cores.
NAMES = [
    ("rk3588", "rk3588", 3),
    ("rk3588s", "rk3588", 3),
    ("rk3588s2", "rk3588", 3),
    ("rk3588f", "rk3588", 3),
    ("rk3588j", "rk3588", 3),
    ("rk3588m", "rk3588", 3),
    ("rk3582", "rk3588", 3),
    ("rk3576", "rk3576", 2),
    ("rk3576j", "rk3576", 2),
    ("rk3566", "rk3566", 1),
    ("rk3567", "rk3566", 1),
    ("rk3568", "rk3568", 1),
    ("rk3568b2", "rk3568", 1),
    ("rk3562", "rk3562", 1),
    ("rk3562j", "rk3562", 1),
    ("rv1126b", "rv1126b", 1),
    ("rv1126bp", "rv1126b", 1),
    ("rk3528", None, 1),
    ("rk3399", None, 1),
    ("rk3399pro", None, 1),
    ("rk3328", None, 1),
    ("rv1126", None, 1),
]


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("name, kind, cores", NAMES)
def test_rkcat_knows_a_board_of_every_family(board, name, kind, cores, evaluation):
    names = [f"rockchip,{name}-evb1-lp4-v10"] * evaluation + [f"rockchip,{name}"]
    board.file("proc/device-tree/compatible", "\0".join(["vendor,board", *names, ""]).encode())
    shown = board.run("rkcat.sh").stdout.splitlines()[0]
    assert shown == (
        f"Orange Pi 5 Plus ({name})" if kind else "There is no Rockchip NPU in this machine."
    )


@pytest.mark.parametrize("name, kind, cores", NAMES)
def test_the_pool_and_convert_know_the_same_names(soc, capsys, monkeypatch, name, kind, cores):
    for names in (name, f"{name}-evb1-lp4-v10\0rockchip,{name}", f"{name}-evb1-lp4-v10"):
        soc(names)
        assert rknnpool.soc() == (name if kind else None)
    assert family(name) == (kind and family(kind))
    assert rknnpool.npu_cores(name) == cores
    monkeypatch.setattr(sys, "argv", ["convert.py", "none.onnx", "--target", name])
    with pytest.raises(SystemExit):
        convert.main()
    printed = capsys.readouterr().err
    assert ("--target" in printed) == (kind is None), printed
    assert not kind or family(convert.target(name)) == family(name)


def test_the_soc_can_be_given_if_a_container_hides_the_device_tree(pc):
    shown = pc.run("rkcat.sh", env={"RKNN_SOC": "RK3588S"}).stdout.splitlines()
    assert shown[0] == "rk3588s" and shown[1].startswith("NPU load ")
    assert pc.run("rkcat.sh", env={"RKNN_SOC": "x86"}).stdout.startswith(
        "There is no Rockchip NPU in this machine."
    )


def test_a_rockchip_without_an_npu_counts_as_another_machine(board):
    board.file("proc/device-tree/compatible", b"radxa,rock-2f\0rockchip,rk3528\0")
    assert board.run("rkcat.sh").stdout.startswith(
        "There is no Rockchip NPU in this machine.\nCPU 0-3 "
    )


def test_rkcat_runs_on_this_machine(board):
    result = board.run("rkcat.sh", sysroot=False)
    assert (result.returncode, result.stderr) == (0, "")
    result = board.pin("--status", sysroot=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_negative_temperatures_are_shown_and_a_dead_sensor_is_omitted(board):
    board.thermal(soc_thermal=-3500, gpu_thermal="", npu_thermal=-400)
    assert board.run("rkcat.sh").stdout.splitlines()[-2:] == [
        "soc-thermal         -3.5 C",
        "npu-thermal         -0.4 C",
    ]


def test_a_missing_runtime_is_reported(board):
    (board.root / "usr/lib/librknnrt.so").unlink()
    result = board.run("rkcat.sh")
    assert (
        "\nRKNN runtime        not found: no librknnrt.so with a version in /usr/lib\n"
        in result.stdout
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("seconds", ["", "0", "0.00", "x", "-1", "1s", "1.2.3", ".", "1e3", "1 2"])
def test_an_invalid_number_of_seconds_is_refused_in_one_sentence(board, seconds):
    assert_refused(
        board.run("rkcat.sh", seconds),
        rf"rkcat\.sh: '{re.escape(seconds)}' is not a number of seconds above 0; usage: .+",
    )


def test_a_sleep_command_without_fractions_is_reported_in_one_sentence(board):
    tools = board.root / "bin"
    tools.mkdir()
    (tools / "sleep").write_text(
        '#!/bin/sh\ncase $1 in *.*) echo "sleep: invalid number" >&2; exit 1; esac\n'
    )
    (tools / "sleep").chmod(0o755)
    result = board.run("rkcat.sh", "0.5", env={"PATH": f"{tools}:{os.environ['PATH']}"})
    assert result.returncode == 2
    assert re.fullmatch(
        r"rkcat\.sh: this machine's sleep does not take 0\.5 seconds; usage: .+\n", result.stderr
    )


def test_repeated_output_into_a_pipe_is_plain_text(board):
    once = board.run("rkcat.sh").stdout
    process = board.start("rkcat.sh", "0.01")
    lines = [process.stdout.readline() for _ in range(3 * (once.count("\n") + 1))]
    process.terminate()
    assert "".join(lines) == 3 * f"{once}\n"


def read_until(fd, text, seen=b""):
    """The output of the terminal up to `text`; with None, until the script has closed it."""
    while text is None or text not in seen:
        assert select.select([fd], [], [], 60)[0], f"a minute without {text!r} after {seen!r}"
        try:
            seen += os.read(fd, 1 << 16)
        except OSError:  # Linux returns EIO when no process has the terminal open
            assert text is None, seen
            return seen
    return seen


@pytest.mark.parametrize("seconds", ["0.01", "86400"])
def test_on_a_terminal_output_is_redrawn_in_place_and_ctrl_c_restores_the_cursor(board, seconds):
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve(
            BASH,
            [BASH, str(board.root.parent / "rkcat.sh"), seconds],
            {**os.environ, "SYSROOT": str(board.root), "TERM": "linux"},
        )
    seen = read_until(terminal, b"45.3 C")
    assert seen.startswith(b"\033[?1049h\033[?25l\033[HOrange Pi 5 Plus (rk3588)\033[K")
    if seconds == "0.01":
        board.thermal(soc_thermal=61200, npu_thermal=44384)
        seen = read_until(terminal, b"61.2 C", seen)
        # redrawn in place, not below
        assert seen.count(b"\033[?1049h") == 1 and seen.count(b"\033[HOrange Pi") > 1
    else:
        seen = read_until(terminal, b"\033[J", seen)
    os.write(terminal, b"\x03")
    seen = read_until(terminal, None, seen)
    os.close(terminal)
    assert seen.endswith(b"\033[?25h\033[?1049l")
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 130
    with pytest.raises(ProcessLookupError):  # no sleep process is left
        os.killpg(pid, 0)
