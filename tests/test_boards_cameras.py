"""examples/boards.py with cameras: they move between boards, and no result is repeated."""

import asyncio
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from broker import MOSQUITTO, Broker, Listener
from cluster import GrowingFile, three_boards  # noqa: F401
from conftest import ROOT
from fakes import wait_until

pytest.importorskip("distributed", reason="boards.py needs the package distributed")
sys.path.insert(0, str(ROOT / "examples"))
from boards import POOL_SETTINGS  # noqa: E402
from boards_parts import worker  # noqa: E402
from boards_parts.camera import Camera  # noqa: E402
from boards_parts.cameras import BoardLoad, Cameras  # noqa: E402

from results.jsonl import as_dict  # noqa: E402
from vision.errors import InputError  # noqa: E402


@pytest.fixture
def cameras(clip):
    """URLs of three network cameras, which contain a password."""
    command = [sys.executable, str(ROOT / "tests/mjpeg_server.py"), "0", str(clip)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().split()[1]
        yield [
            f"cam{number}=http://user:geheim@127.0.0.1:{port}/live{number}" for number in range(3)
        ]
        server.kill()


def assert_reported_once(lines):
    """The epochs of each camera only increase, and no frame and no time is reported twice."""
    assert lines
    for name in {line["stream"] for line in lines}:
        received = [(line["epoch"], line["frame"]) for line in lines if line["stream"] == name]
        assert received == sorted(set(received)), name
        times = [line["time"] for line in lines if line["stream"] == name]
        assert times == sorted(times), name


@pytest.mark.slow
@pytest.mark.skipif(not MOSQUITTO, reason="needs Debian's mosquitto")
def test_cameras_move_when_boards_die_hang_or_connect_and_no_result_is_repeated(
    cluster, cameras, tmp_path
):
    pytest.importorskip("paho.mqtt", reason="needs the package paho-mqtt")
    file, broker = GrowingFile(tmp_path / "cameras.jsonl"), Broker(tmp_path)
    broker.start()
    listener = Listener(broker)
    try:
        run = cluster.run(
            *cameras,
            "--json",
            file.path,
            "--mqtt",
            broker.url,
            "--simulate",
            "200x3",
            "--fps",
            "3",
            "--track",
        )
        newest = file.read

        def moved(before, name):
            """Whether another board reports each camera, with a later epoch."""
            now = newest()
            return all(
                now[camera]["board"] != name
                and (line["board"] != name or now[camera]["epoch"] > line["epoch"])
                for camera, line in before.items()
            )

        wait_until(lambda: len(newest()) == 3)
        before, first = dict(newest()), newest()["cam0"]["board"]
        cluster.boards[first].send(signal.SIGKILL)
        wait_until(lambda: moved(before, first))

        cluster.join(first)
        wait_until(lambda: any(line["board"] == first for line in newest().values()))

        before, second = (
            dict(newest()),
            next(line["board"] for line in newest().values() if line["board"] != first),
        )
        cluster.boards[second].send(signal.SIGSTOP)
        wait_until(lambda: moved(before, second))
        cluster.boards[second].send(signal.SIGCONT)  # its waiting results must be rejected
        count = len(file.lines)
        wait_until(lambda: newest() and len(file.lines) > count + 9)
        run.send(signal.SIGTERM)
        assert cluster.finish(run) == 128 + signal.SIGTERM, run.output
        newest()
        assert_reported_once(file.lines)
        states = listener.wait_for(
            lambda messages: (
                [
                    json.loads(payload)
                    for topic, payload in messages
                    if topic == "house/cam0/state" and '"ended"' in payload
                ]
                and [
                    json.loads(payload)
                    for topic, payload in messages
                    if topic == "house/cam0/state"
                ]
            )
        )
        epochs = [state["epoch"] for state in states if "epoch" in state]
        assert epochs == sorted(epochs) and epochs[-1] == newest()["cam0"]["epoch"]
        assert all(event["epoch"] and event["board"] for event in listener.events)
        assert not any(
            "geheim" in log.read_text(errors="replace") for log in cluster.folder.iterdir()
        )
    finally:
        listener.close()
        broker.kill()


@pytest.mark.slow
def test_a_board_stops_its_cameras_without_calls_and_starts_again_with_the_next(
    cameras, monkeypatch
):
    monkeypatch.setattr(worker, "LEASE_SECONDS", 0.5)
    runs = []

    class RecordedRun(worker.CameraRun):
        def __init__(self, settings):
            super().__init__(settings)
            runs.append(self)

    monkeypatch.setattr(worker, "CameraRun", RecordedRun)
    settings = {
        **dict.fromkeys(POOL_SETTINGS),
        "model": str(ROOT / "models/yolov5n_emoji.rknn"),
        "threads": 1,
        "bigCores": "no",
        "simulate": "10x1",
    }
    assigned = {"cam0": (7, cameras[0].partition("=")[2])}
    wait_until(lambda: worker.process_cameras("run", settings, {})["state"] == "ready")
    wait_until(lambda: worker.process_cameras("run", settings, assigned)["lines"])
    (run,) = runs
    (job,) = run.jobs.values()
    wait_until(lambda: job.stream.ended)  # boards.py has died
    run.lines.clear()
    job.write(SimpleNamespace())
    assert not run.lines
    reply = worker.process_cameras("run", settings, assigned)
    assert not reply["lines"] and len(runs) == 2
    lines = wait_until(lambda: worker.process_cameras("run", settings, assigned)["lines"])
    assert {(name, epoch) for name, epoch, _ in lines} == {("cam0", 7)}
    runs[1].end()  # as if the lease had ended while a call was on its way
    worker.process_cameras("run", settings, assigned)
    assert len(runs) == 3
    worker.process_cameras("run", settings, None)
    assert runs[2].ended.is_set()


def json_line(number, error=None):
    record = {"stream": "gate", "frame": number, "time": number / 25, "size": [640, 360]}
    return json.dumps(
        {
            **record,
            **(
                {"error": error}
                if error
                else {
                    "objects": [
                        {
                            "class": "car",
                            "number": 2,
                            "score": 0.9,
                            "box": [1.0, 2.0, 30.0, 40.0],
                            "id": 1,
                            "polygon": [[1, 2], [30, 40]],
                            "keypoints": [[1.0, 2.0, 0.5]],
                        }
                    ]
                }
            ),
        }
    )


def test_results_of_an_earlier_epoch_are_rejected_and_others_delivered_unchanged():
    camera, received = Camera("gate", "rtsp://gate", None), []
    camera.sinks.append(SimpleNamespace(write=lambda result: received.append(as_dict(result))))
    camera.epoch = 8
    assert (
        not camera.receive(7, json_line(0), "old")
        and camera.receive(8, json_line(1), "new")
        and not received[1:]
    )
    camera.receive(8, json_line(2, "the NPU failed"), "new")
    assert (camera.count, camera.failed, camera.rejected) == (1, 1, 1)
    expected = json.loads(json_line(1))
    # boards.py tracks, and ignores the identities of a board
    del expected["objects"][0]["id"]
    assert received[0] == {**expected, "board": "new", "epoch": 8}
    assert received[1]["error"] == "the NPU failed"


def test_a_sink_that_fails_stops_neither_the_camera_nor_other_sinks(capsys):
    camera, received = Camera("gate", "rtsp://gate", None), []

    def fail(_):
        raise InputError("the disk is full.")

    camera.sinks += [SimpleNamespace(write=fail), SimpleNamespace(write=received.append)]
    for number in range(2):
        camera.receive(0, json_line(number), "one")
    assert len(received) == 2 and camera.code == 2
    assert capsys.readouterr().err.count("the disk is full.") == 1


@pytest.fixture
def loop():
    """Set an event loop, which asyncio.Event requires in Python 3.9."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    loop.close()
    asyncio.set_event_loop(None)


def assignment_of(capacities, rates):
    """Return a Cameras with ready boards of these capacities, and unassigned cameras."""
    streams = [Camera(f"cam{number}", "rtsp://x", None) for number, _ in enumerate(rates)]
    for camera, rate in zip(streams, rates):
        camera.rate = rate
    assignment = Cameras(None, SimpleNamespace(), "run", streams)
    for number, capacity in enumerate(capacities):
        join(assignment, str(number), capacity)
    return assignment


def join(assignment, name, capacity):
    load = assignment.loads[name] = BoardLoad(name, name)
    load.state, load.capacity = "ready", capacity
    return load


def served(assignment):
    return [len(load.cameras) for load in assignment.loads.values()]


@pytest.mark.usefixtures("loop")
def test_cameras_are_assigned_by_free_capacity():
    assignment = assignment_of([200, 100], [25] * 6)
    assignment.assign()
    assert served(assignment) == [5, 1]  # 75 frames per second are free on each
    assignment = assignment_of([100, 100], [60, 25, 25, 25])
    assignment.assign()
    assert sorted(load.load for load in assignment.loads.values()) == [60, 75]


@pytest.mark.usefixtures("loop")
def test_a_new_board_takes_its_share_and_no_camera_moves_twice():
    assignment = assignment_of([60], [15] * 6)
    assignment.assign()
    join(assignment, "new", 60)
    assignment.balance()
    assert served(assignment) == [3, 3]
    epochs = [camera.epoch for camera in assignment.cameras]
    assignment.balance()
    assert epochs == [camera.epoch for camera in assignment.cameras]
    join(assignment, "weak", 5)
    assignment.balance()
    assert served(assignment) == [3, 3, 0]


@pytest.mark.usefixtures("loop")
def test_a_camera_that_loses_its_board_gets_a_new_epoch_and_waits_for_another_board():
    assignment = assignment_of([60], [25])
    assignment.assign()
    camera, (load,) = assignment.cameras[0], assignment.loads.values()
    epoch = camera.epoch
    load.state = "silent"
    assignment.release(load, "is silent")
    assert camera.board is None and camera.epoch > epoch
    freed, other = camera.epoch, join(assignment, "other", 60)
    assignment.assign()
    assert camera.board is other and camera.epoch > freed
