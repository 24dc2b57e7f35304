"""examples/boards.py with videos: each result is complete and unique, even if boards die."""

import asyncio
import gzip
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cluster import DASK, QUIET, Cluster, lines_of, three_boards  # noqa: F401
from conftest import ROOT
from fakes import wait_until

pytest.importorskip("distributed", reason="boards.py needs the package distributed")
sys.path.insert(0, str(ROOT / "examples"))
import boards  # noqa: E402
from boards_parts import progress  # noqa: E402
from boards_parts.finished import choose_files, source_of  # noqa: E402
from boards_parts.members import mismatch, remote_call  # noqa: E402
from boards_parts.videos import Videos  # noqa: E402

FRAMES = 45  # of clip
SIMULATE = "--simulate", "40x3"  # always the same NPU, so that boards keep their pools


@pytest.fixture
def videos(clip, tmp_path):
    """videos(n) returns the paths of n videos of FRAMES frames."""

    def make(count):
        paths = [tmp_path / f"v{number}.avi" for number in range(count)]
        for path in paths:
            shutil.copy(clip, path)
        return paths

    return make


@pytest.fixture
def run_here(monkeypatch, capsys):
    """run_here(address, *arguments): run boards.py in this process, which saves starting Python.
    Returns its exit code and output."""

    def run(address, *arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["boards.py", address, *map(str, arguments)])
        capsys.readouterr()
        code = asyncio.run(boards.run(boards.parse_arguments()))
        return code, "".join(capsys.readouterr())

    return run


def assert_complete(folder, names):
    """Each video has a file with one line per frame, in order; there are no other files."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}.jsonl" for name in names
    )
    for name in names:
        assert [line["frame"] for line in lines_of(folder / f"{name}.jsonl")] == list(
            range(FRAMES)
        ), name


# ---- videos ----


@pytest.mark.slow
def test_videos_are_distributed_and_each_board_opens_one_pool(cluster, videos, run_here, tmp_path):
    paths, out = videos(6), tmp_path / "out"
    code, output = run_here(cluster.address, *paths, "--json", out, *SIMULATE)
    assert code == 0, output
    assert_complete(out, [path.name for path in paths])
    assert re.search(rf"in all: {6 * FRAMES} frames of 6 videos", output)
    served = dict(re.findall(r"^board (\w+): (\d+) frames of \d+ videos", output, re.MULTILINE))
    assert set(served) == set(cluster.boards), output
    assert sum(map(int, served.values())) == 6 * FRAMES, output
    assert [board.output.count("Opening a pool") for board in cluster.boards.values()] == [1, 1, 1]


@pytest.mark.slow
def test_a_video_that_cannot_be_opened_is_reported_and_the_others_are_processed(
    cluster, videos, run_here, tmp_path
):
    good, out = videos(2), tmp_path / "out"
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    missing = "http://user:geheim@127.0.0.1:1/c.mp4"
    sources = [good[0], tmp_path / "bad.mp4", tmp_path / "none.mp4", missing, good[1]]
    code, output = run_here(cluster.address, *sources, "--json", out, *SIMULATE)
    assert code == 2
    assert_complete(out, [path.name for path in good])
    for name, why in (
        ("bad.mp4", "not a video but a text file"),
        ("none.mp4", "no such file"),
        ("127.0.0.1", "not available"),
    ):
        reports = re.findall(rf"^{name}: .*{why}.* \(board \w+\)$", output, re.MULTILINE)
        assert len(reports) == 1, output
    assert "geheim" not in output
    assert not any(
        "geheim" in path.read_text(errors="replace") for path in cluster.folder.iterdir()
    )


@pytest.mark.slow
def test_ctrl_c_leaves_complete_files_only_and_stops_the_boards(
    cluster, videos, run_here, tmp_path
):
    paths, out = videos(5), tmp_path / "out"
    long = [f"{name}={ROOT / 'models/demo.mp4'}" for name in ("a", "b", "c")]
    run = cluster.run(*paths[:3], *long, "--json", out, *SIMULATE)
    wait_until(lambda: out.exists() and len(list(out.glob("*.jsonl"))) == 3)
    run.send(signal.SIGINT)
    assert cluster.finish(run) == 130, run.output
    assert "Traceback" not in run.output
    assert_complete(out, [path.name for path in paths[:3]])
    wait_until(lambda: any(": cancelled." in board.output for board in cluster.boards.values()))
    code, output = run_here(cluster.address, *paths, "--json", out, *SIMULATE)
    assert code == 0 and "Skipped 3 of 5 videos" in output
    assert_complete(out, [path.name for path in paths])


@pytest.mark.slow
def test_no_line_is_lost_or_repeated_when_boards_die_or_hang(cluster, videos, tmp_path):
    paths, out = videos(9), tmp_path / "out"
    run = cluster.run(*paths, "--json", out, *SIMULATE)
    wait_until(lambda: out.exists() and any(out.glob("*.jsonl")))  # the others are in progress
    cluster.boards["two"].send(signal.SIGSTOP)
    cluster.boards["three"].send(signal.SIGKILL)
    assert cluster.finish(run) == 0, run.output
    assert (
        cluster.boards["one"].output.count("Opening a pool") == 1
    )  # for this run and an earlier one
    assert "Board two disconnected" in run.output and "Board three disconnected" in run.output
    assert_complete(out, [path.name for path in paths])
    cluster.boards["two"].send(signal.SIGCONT)
    cluster.boards["two"].process.wait(60)  # Dask has given it up, so its worker ends
    assert_complete(out, [path.name for path in paths])
    for name in ("two", "three"):
        cluster.join(name)
    cluster.joined("two", "three")


@pytest.mark.slow
def test_boards_without_the_model_are_reported_and_another_processes_their_videos(
    cluster, videos, run_here, tmp_path
):
    paths, folder, out = videos(4), tmp_path / "elsewhere", tmp_path / "out"
    arguments = [cluster.address, *paths, "--json", out, "--model", "own.onnx", *SIMULATE]
    code, output = run_here(*arguments)
    assert code == 2
    reports = re.findall(r"^Board (\w+): own.onnx: no such file\.$", output, re.MULTILINE)
    assert sorted(reports) == ["one", "three", "two"]
    assert "4 videos were not processed, because no board can process them." in output
    assert not any(out.iterdir())

    folder.mkdir()
    shutil.copy(ROOT / "models/yolov5n_emoji.onnx", folder / "own.onnx")
    other = cluster.join("other", folder=folder)
    cluster.joined("other")
    code, output = run_here(*arguments)
    assert code == 2 and f"board other: {4 * FRAMES} frames of 4 videos" in output, output
    assert_complete(out, [path.name for path in paths])
    other.end()
    del cluster.boards["other"]


def test_a_full_disk_leaves_no_incomplete_file(tmp_path):
    collecting = Videos(
        SimpleNamespace(json=str(tmp_path), stream_names=["a.mp4"], quiet=True), None, "run"
    )
    collecting.files = {"a.mp4": str(tmp_path / "a.mp4.jsonl")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # like a full disk
    try:
        with pytest.raises(boards.InputError, match="a.mp4.jsonl: cannot be written"):
            collecting.save("a.mp4", {"lines": gzip.compress(bytes(200_000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_without_a_scheduler_simulated_boards_are_started_and_ended(videos, tmp_path):
    paths = videos(3)
    command = ["examples/boards.py", "--simulate", "5x3", *paths, "--json", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **QUIET},
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    assert_complete(tmp_path / "out", [path.name for path in paths])
    assert {line["source"] for line in lines_of(tmp_path / "out/v1.avi.jsonl")} == {str(paths[1])}
    assert len(re.findall(r"^v\d.avi: 45 frames in .* s, board [01]$", done.stdout, re.M)) == 3


@pytest.mark.slow
def test_ctrl_c_on_the_terminal_ends_the_simulated_boards_too(tmp_path):
    log = tmp_path / "log"
    command = ["examples/boards.py", "--simulate", "60x3", "models/demo.mp4", "--json", tmp_path]
    with open(log, "w") as file:
        run = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env={**os.environ, **QUIET},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    wait_until(lambda: "No Rockchip NPU found" in log.read_text())
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    assert "Traceback" not in log.read_text()


# ---- which videos are finished ----


def results_in(folder, name, source=None):
    folder.mkdir(exist_ok=True)
    line = {"stream": name, **({"source": str(source)} if source else {})}
    (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")


def test_a_video_is_finished_by_its_path_and_not_by_its_name(tmp_path, monkeypatch, capsys):
    out, day1, day2 = tmp_path / "out", tmp_path / "day1/0001.mp4", tmp_path / "day2/0001.mp4"
    results_in(out, "0001.mp4", day1)
    files, done = choose_files(str(out), ["0001.mp4"], [str(day2)])
    assert (files, done) == ({"0001.mp4": f"{out}/0001.mp4-2.jsonl"}, set())
    assert f"go to {out}/0001.mp4-2.jsonl, because 0001.mp4.jsonl" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    names = ["day1-0001.mp4", "day2-0001.mp4"]  # as both are called in one command
    files, done = choose_files(str(out), names, ["day1/0001.mp4", f"file://{day2}"])
    assert files == {names[0]: f"{out}/0001.mp4.jsonl", names[1]: f"{out}/{names[1]}.jsonl"}
    assert done == {names[0]}


def test_a_url_is_finished_whatever_its_password(tmp_path):
    results_in(tmp_path, "h", source_of("http://user:geheim@h/a.mp4"))
    assert "geheim" not in (tmp_path / "h.jsonl").read_text()
    assert choose_files(str(tmp_path), ["h"], ["http://user:neu@h/a.mp4"])[1] == {"h"}
    assert choose_files(str(tmp_path), ["h"], ["http://user:neu@h/b.mp4"])[1] == set()


def test_results_without_a_source_count_by_their_name(tmp_path):
    """Those of version 0.1.0."""
    results_in(tmp_path, "a.mp4")
    (tmp_path / "other.jsonl").write_bytes(b"\xff[1]")
    files, done = choose_files(str(tmp_path), ["a.mp4", "other"], ["/v/a.mp4", "/v/other"])
    assert done == {"a.mp4", "other"}


# ---- progress ----


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    elsewhere = progress.Progress(4, "videos", quiet=False)
    elsewhere.show(1.25, "120 frames, 57 FPS")
    elsewhere.close()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("1.25 of 4 videos, 120 frames, 57 FPS\n", "")
    quiet = progress.Progress(4, "videos", quiet=True)
    quiet.show(1, "120 frames, 57 FPS")
    assert capsys.readouterr() == ("", "")

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress.Progress(4, "videos", quiet=False)
    bar.show(1.25, "120 frames, 57 FPS")
    bar.close()
    assert "31%|" in terminal.getvalue() and "1.2/4 videos" in terminal.getvalue()
    assert "120 frames, 57 FPS" in terminal.getvalue()


# ---- errors ----

OTHER = """import sys; import distributed.versions as versions; was = versions.get_package_info
versions.get_package_info = lambda names: {**was(names), "distributed": "2020.1.0"}
sys.argv[0] = "dask"; from dask.__main__ import main; main()"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatched versions")  # Dask's own warning
def test_missing_boards_workers_without_npu_and_other_versions_are_reported(
    videos, run_here, tmp_path
):
    cluster, (video,) = Cluster(tmp_path, ttl=None), videos(1)
    try:
        run = cluster.run(video, "--json", tmp_path / "out")
        run.wait_for("gives up on silent boards after 10 s instead of 300")
        run.wait_for("waiting for a board")
        cluster.join("plain", resources=())
        assert cluster.finish(run) == 2
        assert "has no NPU: start it with --resources npu=1." in run.output
        cluster.join("old", command=[*DASK[:2], OTHER])
        cluster.joined("old")
        differ = r"Versions differ: .* board 127.0.0.1:\d+ has Python \S+ and Dask 2020.1.0"
        with pytest.raises(boards.InputError, match=differ):
            run_here(cluster.address, video, "--json", tmp_path / "out")
    finally:
        cluster.close()


def test_pythons_minor_version_and_dasks_version_must_match():
    def machine(python, dask):
        return {"packages": {"python": python, "distributed": dask, "numpy": python}}

    mine = machine("3.11.2.final.0", "2026.8.0")
    workers = {"tcp://a:1": machine("3.11.9.final.0", "2026.8.0")}
    assert mismatch(mine, mine, workers) == ""
    workers["tcp://b:1"] = machine("3.12.1.final.0", "2026.8.0")
    printed = mismatch(mine, mine, workers)
    assert "board b:1 has Python 3.12" in printed and "a:1" not in printed
    assert "the scheduler has" in mismatch(mine, machine("3.11.2", "2025.1.0"), {})


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["a.mp4"], "--json FOLDER is required"),
        (["a.mp4", "--json", "-"], "--json FOLDER is required"),
        (["a.mp4", "rtsp://h/x", "--json", "out"], "cannot process both videos"),
        (["0"], "connected to one board cannot move"),
        (["a.mp4", "--json", "out", "--mqtt", "mqtt://h"], "--mqtt is for cameras"),
        (["a.mp4", "--json", str(ROOT / "README.md")], "cannot create this folder"),
        (["gate=rtsp://h/x", "gate=rtsp://h/y"], "gate: two streams have"),
        (["rtsp://h/x", "--simulate", "fast"], "--simulate fast"),
        (["rtsp://h/x", "--fps", "0"], "--fps 0"),
        ([], "No source is given"),
        (["rtsp://h/x", "--line", "yard/door:1,2,3,4"], "there is no stream yard"),
    ],
)
def test_invalid_arguments_are_refused(arguments, sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["boards.py", "127.0.0.1:8786", *arguments])
    with pytest.raises(boards.InputError, match=re.escape(sentence)):
        boards.parse_arguments()


@pytest.mark.parametrize(
    "flags", [["--track"], ["--line", "a:0,0,1,1"], ["--zone", "a:0,0,1,1,0,1"]]
)
def test_a_board_refuses_to_track_and_count_with_a_classifier(flags, monkeypatch, tmp_path):
    from boards_parts.worker_pool import shared_pool

    command = ["boards.py", "127.0.0.1:8786", "a.mp4", "--json", str(tmp_path), "--bigCores", "no"]
    command += ["--model", "models/resnet18_emoji.rknn", *flags]
    monkeypatch.setattr(sys, "argv", command)
    settings = boards.parse_arguments().settings
    with pytest.raises(
        boards.InputError, match=f"^{flags[0]} needs boxes, but this model classifies whole"
    ):
        with shared_pool(settings):
            pass


@pytest.mark.parametrize(
    "source, live",
    [
        ("rtsp://h/x", True),
        ("http://h:80/x.mjpg", True),
        ("http://h/a.MP4?x=1", False),
        ("a.mp4", False),
        ("file:///a.mp4", False),
        ("folder", False),
        ("/dev/shm/a.mp4", False),
        ("FILE:///videos/a.mp4", False),
    ],
)
def test_a_url_without_a_videos_extension_is_a_camera(source, live):
    assert boards.is_live(source) is live


@pytest.mark.parametrize(
    "first", ["videos/a.mp4", "rtsp://h:554", "gate=rtsp://h:554", "192.168.1.10"]
)
def test_a_missing_address_of_the_scheduler_is_reported(first, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["boards.py", first, "b.mp4", "--json", str(tmp_path)])
    with pytest.raises(boards.InputError, match=f"^{first}: the first argument must be"):
        boards.parse_arguments()


@pytest.mark.parametrize("first", ["127.0.0.1:8786", "tcp://board:8786", "[::1]:8786"])
def test_a_simulation_uses_a_scheduler_that_is_given(first, monkeypatch, tmp_path):
    simulation = ["boards.py", "--simulate", "5x3", "a.mp4", "--json", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*simulation[:3], first, *simulation[3:]])
    assert (boards.parse_arguments().scheduler, boards.parse_arguments().addresses) == (
        first,
        ["a.mp4"],
    )
    monkeypatch.setattr(sys, "argv", simulation)
    assert boards.parse_arguments().scheduler is None


def test_a_missing_scheduler_is_reported(monkeypatch):
    monkeypatch.setattr("boards_parts.members.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(sys, "argv", ["boards.py", "127.0.0.1:1", "rtsp://user:geheim@h/x"])
    with pytest.raises(boards.InputError, match="^127.0.0.1:1: there is no Dask scheduler"):
        asyncio.run(boards.run(boards.parse_arguments()))


@pytest.mark.slow
def test_a_missing_dask_is_named():
    command = ["examples/boards.py", "127.0.0.1:1", "rtsp://h/x"]
    without = (
        f"import sys, runpy; sys.modules['distributed'] = None; sys.argv = {command!r}; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", without], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "pip install distributed" in done.stderr
    )


def test_a_remote_call_does_not_show_its_arguments():
    assert "geheim" not in repr(
        remote_call("process_cameras", {"gate": (1, "rtsp://user:geheim@h/x")})
    )


def test_a_missing_clone_and_another_version_are_reported(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("boards_parts.members.ROOT", tmp_path)
    assert "there is no clone" in remote_call("process_cameras")()["unfit"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("boards_parts.members.VERSION", 0)
    assert "has another version" in remote_call("process_cameras")()["unfit"]
