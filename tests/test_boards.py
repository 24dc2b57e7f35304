"""examples/boards.py: every video complete and once, whatever befalls a board."""
import asyncio
import gzip
import re
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cluster import DASK, Cluster, lines_of, three_boards, wait  # noqa: F401  three_boards: the fixture `cluster`
from conftest import ROOT

pytest.importorskip("distributed", reason="boards.py needs the package distributed")
sys.path.insert(0, str(ROOT / "examples"))
import boards  # noqa: E402
from boards_parts.members import mismatch, order  # noqa: E402
from boards_parts.videos import Videos  # noqa: E402

FRAMES = 45  # of clip


@pytest.fixture
def videos(clip, tmp_path):
    """videos(n): paths of so many videos of FRAMES frames."""
    def make(count):
        paths = [tmp_path / f"v{number}.avi" for number in range(count)]
        for path in paths:
            shutil.copy(clip, path)
        return paths
    return make


def assert_complete(folder, names):
    """Each video has its file with each frame's line once, in order, and there is nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.jsonl" for name in names)
    for name in names:
        assert [line["frame"] for line in lines_of(folder / f"{name}.jsonl")] == list(range(FRAMES)), name


# ---- videos ----

@pytest.mark.slow
def test_videos_are_shared_out_and_each_is_complete_and_a_board_keeps_its_pool(cluster, videos, tmp_path):
    paths = videos(6)
    run = cluster.run(*paths, "--json", tmp_path / "out", "--simulate", "40x3")
    assert cluster.finish(run) == 0, run.said
    assert_complete(tmp_path / "out", [path.name for path in paths])
    assert re.search(rf"in all: {6 * FRAMES} frames of 6 videos", run.said)
    served = dict(re.findall(r"^board (\w+): (\d+) frames of \d+ videos", run.said, re.MULTILINE))
    assert set(served) == set(cluster.boards) and sum(map(int, served.values())) == 6 * FRAMES, run.said
    assert [board.said.count("Opens a pool") for board in cluster.boards.values()] == [1, 1, 1]


@pytest.mark.slow
def test_a_board_that_dies_and_one_that_falls_silent_cost_no_line_and_double_none(cluster, videos, tmp_path):
    paths, out = videos(9), tmp_path / "out"
    run = cluster.run(*paths, "--json", out, "--simulate", "40x3")
    wait(lambda: out.exists() and any(out.glob("*.jsonl")))  # the others are under way
    cluster.boards["two"].send(signal.SIGSTOP)
    cluster.boards["three"].send(signal.SIGKILL)
    assert cluster.finish(run) == 0, run.said
    assert cluster.boards["one"].said.count("Opens a pool") == 1  # for this run and the one before
    assert "Board two went away" in run.said and "Board three went away" in run.said
    assert_complete(out, [path.name for path in paths])
    cluster.boards["two"].send(signal.SIGCONT)
    cluster.boards["two"].process.wait(60)  # Dask has given it up, and its worker ends
    assert_complete(out, [path.name for path in paths])
    for name in ("two", "three"):
        cluster.join(name)
    cluster.joined("two", "three")


@pytest.mark.slow
def test_what_a_board_cannot_open_costs_a_sentence_and_the_others_go_on(cluster, videos, tmp_path):
    good, out = videos(2), tmp_path / "out"
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    missing = "http://user:geheim@127.0.0.1:1/c.mp4"
    run = cluster.run(good[0], tmp_path / "bad.mp4", tmp_path / "none.mp4", missing, good[1], "--json", out,
                      "--simulate", "5x3")
    assert cluster.finish(run) == 2
    assert_complete(out, [path.name for path in good])
    for name, why in (("bad.mp4", "not a video that OpenCV can read"), ("none.mp4", "no such file"),
                      ("127.0.0.1", "is not there")):
        assert len(re.findall(rf"^{name}: .*{why}.* \(board \w+\)$", run.said, re.MULTILINE)) == 1, run.said
    assert not any("geheim" in path.read_text(errors="replace") for path in cluster.folder.iterdir())


@pytest.mark.slow
def test_boards_without_the_model_are_named_and_another_serves_their_videos(cluster, videos, tmp_path):
    paths, folder = videos(4), tmp_path / "elsewhere"
    arguments = [*paths, "--json", tmp_path / "out", "--model", "own.onnx", "--simulate", "5x3"]
    run = cluster.run(*arguments)
    assert cluster.finish(run) == 2
    assert len(re.findall(r"^Board (?:one|two|three): own.onnx: no such file\.$", run.said, re.MULTILINE)) == 3
    assert "4 videos were not served, for no board can." in run.said and not any((tmp_path / "out").iterdir())

    folder.mkdir()
    shutil.copy(ROOT / "models/yolov5n_emoji.onnx", folder / "own.onnx")
    other = cluster.join("other", folder=folder)
    cluster.joined("other")
    run = cluster.run(*arguments)
    assert cluster.finish(run) == 2 and f"board other: {4 * FRAMES} frames of 4 videos" in run.said, run.said
    assert_complete(tmp_path / "out", [path.name for path in paths])
    other.end()
    del cluster.boards["other"]


@pytest.mark.slow
def test_ctrl_c_leaves_finished_videos_and_no_half_one_and_the_boards_at_rest(cluster, videos, tmp_path):
    paths, out = videos(5), tmp_path / "out"
    long = [f"{name}={ROOT / 'models/demo.mp4'}" for name in ("a", "b", "c")]
    run = cluster.run(*paths[:3], *long, "--json", out, "--simulate", "60x3")
    wait(lambda: out.exists() and len(list(out.glob("*.jsonl"))) == 3)
    run.send(signal.SIGINT)
    assert cluster.finish(run) == 130, run.said
    assert "Traceback" not in run.said
    assert_complete(out, [path.name for path in paths[:3]])
    wait(lambda: any("nobody wants it any more" in board.said for board in cluster.boards.values()))
    run = cluster.run(*paths, "--json", out, "--simulate", "60x3")
    assert cluster.finish(run) == 0 and "3 of 5 videos have their file" in run.said
    assert_complete(out, [path.name for path in paths])


def test_lines_that_cannot_be_written_leave_no_half_file(tmp_path):
    serving = Videos(SimpleNamespace(json=str(tmp_path), names=["a.mp4"], quiet=True), None, "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(boards.InputError, match="a.mp4.jsonl: cannot be written"):
            serving.keep("a.mp4", {"lines": gzip.compress(bytes(200_000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


# ---- what may be wrong ----

OTHER = """import sys; import distributed.versions as versions; was = versions.get_package_info
versions.get_package_info = lambda names: {**was(names), "distributed": "2020.1.0"}
sys.argv[0] = "dask"; from dask.__main__ import main; main()"""


@pytest.mark.slow
def test_a_run_waits_for_boards_and_names_workers_that_are_none_and_versions_that_do_not_match(videos, tmp_path):
    cluster, (video,) = Cluster(tmp_path, ttl=None), videos(1)
    try:
        run = cluster.run(video, "--json", tmp_path / "out")
        run.wait_for("gives silent boards up after 10 s, and not after 300")
        run.wait_for("no board is there yet, waiting for one")
        cluster.join("plain", resources=())
        assert cluster.finish(run) == 2
        assert "has no NPU to give: start it with --resources npu=1." in run.said
        cluster.join("old", command=[*DASK[:2], OTHER])
        cluster.joined("old")
        run = cluster.run(video, "--json", tmp_path / "out")
        assert cluster.finish(run) == 2
        assert re.search(r"Versions do not match: .* but board 127.0.0.1:\d+ has Python \S+ and Dask 2020.1.0",
                         run.said)
    finally:
        cluster.close()


def test_only_pythons_minor_version_and_dasks_own_must_match():
    def machine(python, dask):
        return {"packages": {"python": python, "distributed": dask, "numpy": python}}
    mine = machine("3.11.2.final.0", "2026.8.0")
    workers = {"tcp://a:1": machine("3.11.9.final.0", "2026.8.0")}
    assert mismatch(mine, mine, workers) == ""
    workers["tcp://b:1"] = machine("3.12.1.final.0", "2026.8.0")
    said = mismatch(mine, mine, workers)
    assert "board b:1 has Python 3.12" in said and "a:1" not in said
    assert "the scheduler has" in mismatch(mine, machine("3.11.2", "2025.1.0"), {})


@pytest.mark.parametrize("arguments, sentence", [
    (["a.mp4"], "--json FOLDER is needed"), (["a.mp4", "--json", "-"], "--json FOLDER is needed"),
    (["a.mp4", "rtsp://h/x", "--json", "out"], "give either"), (["0"], "a camera at one board cannot go to another"),
    (["a.mp4", "--json", "out", "--mqtt", "mqtt://h"], "--mqtt is for cameras"),
    (["a.mp4", "--json", str(ROOT / "README.md")], "cannot be a folder"),
    (["gate=rtsp://h/x", "gate=rtsp://h/y"], "two streams have that name"),
    (["rtsp://h/x", "--simulate", "fast"], "--simulate fast"), (["rtsp://h/x", "--fps", "0"], "--fps 0"),
    (["rtsp://h/x", "--line", "yard/door:1,2,3,4"], "there is no stream yard")])
def test_bad_arguments_end_in_a_sentence(arguments, sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["boards.py", "127.0.0.1:8786", *arguments])
    with pytest.raises(boards.InputError, match=re.escape(sentence)):
        boards.parse_arguments()


@pytest.mark.parametrize("source, live", [("rtsp://h/x", True), ("http://h:80/x.mjpg", True), ("http://h/a.MP4?x=1",
                                          False), ("a.mp4", False), ("file:///a.mp4", False), ("folder", False)])
def test_a_url_is_a_camera_unless_it_ends_as_a_video(source, live):
    assert boards.is_camera(source) is live


def test_no_scheduler_is_a_sentence(monkeypatch):
    monkeypatch.setattr("boards_parts.members.CONNECT", 0.5)
    monkeypatch.setattr(sys, "argv", ["boards.py", "127.0.0.1:1", "rtsp://user:geheim@h/x"])
    with pytest.raises(boards.InputError, match="^127.0.0.1:1: no Dask scheduler answers there"):
        asyncio.run(boards.run(boards.parse_arguments()))


@pytest.mark.slow
def test_no_dask_is_a_sentence():
    command = ["examples/boards.py", "127.0.0.1:1", "rtsp://h/x"]
    without = f"import sys, runpy; sys.modules['distributed'] = None; sys.argv = {command!r}; " \
              "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", without], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install distributed" in done.stderr


def test_what_is_sent_to_a_board_shows_no_address():
    assert "geheim" not in repr(order("ask", {"gate": (1, "rtsp://user:geheim@h/x")}))


def test_a_board_whose_clone_is_missing_or_another_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("boards_parts.members.ROOT", tmp_path)
    assert "no clone" in order("ask")()["unfit"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("boards_parts.members.VERSION", 0)
    assert "another version" in order("ask")()["unfit"]
