"""Cameras over several boards: moved when a board dies, falls silent or joins, and never told twice."""
import asyncio
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from broker import MOSQUITTO, Broker, Listener
from cluster import Told, three_boards, wait  # noqa: F401  three_boards: the fixture `cluster`
from conftest import ROOT
from parts import result, stream

pytest.importorskip("distributed", reason="boards.py needs the package distributed")
sys.path.insert(0, str(ROOT / "examples"))
from boards_parts import worker  # noqa: E402
from boards_parts.cameras import Camera, Cameras, Site  # noqa: E402

from results import mqtt  # noqa: E402
from results.jsonl import as_dict  # noqa: E402
from rknnmodel import InputError  # noqa: E402


@pytest.fixture
def cameras(clip):
    """cameras(n): URLs of so many cameras on the network, with a password."""
    servers = []

    def start(count):
        for _ in range(count):
            servers.append(subprocess.Popen([sys.executable, str(ROOT / "tests/mjpeg_server.py"), "0", str(clip)],
                                            stdout=subprocess.PIPE, text=True))
        ports = [server.stdout.readline().split()[1] for server in servers]
        return [f"cam{number}=http://user:geheim@127.0.0.1:{port}/live" for number, port in enumerate(ports)]

    yield start
    for server in servers:
        server.kill()
        server.wait()


def assert_told_once(lines):
    """Of each camera the epochs only grow, and no frame of a placement, nor any moment, is told twice."""
    assert lines
    for name in {line["stream"] for line in lines}:
        told = [(line["epoch"], line["frame"]) for line in lines if line["stream"] == name]
        assert told == sorted(set(told)), name
        times = [line["time"] for line in lines if line["stream"] == name]
        assert times == sorted(times), name


@pytest.mark.slow
@pytest.mark.skipif(not MOSQUITTO, reason="needs Debian's mosquitto")
def test_cameras_move_when_a_board_dies_falls_silent_or_joins_and_are_never_told_twice(cluster, cameras, tmp_path):
    pytest.importorskip("paho.mqtt", reason="needs the package paho-mqtt")
    told, broker = Told(tmp_path / "cameras.jsonl"), Broker(tmp_path)
    broker.start()
    listener = Listener(broker)
    try:
        urls = cameras(3)
        run = cluster.run(*urls, "--json", told.path, "--mqtt", broker.url, "--simulate", "200x3", "--fps", "3",
                          "--track")
        newest = told.read

        def moved(before, name):
            """Each camera has been told by a board that is not this one, those that were there in a later epoch."""
            now = newest()
            return all(now[camera]["board"] != name and (line["board"] != name or now[camera]["epoch"] > line["epoch"])
                       for camera, line in before.items())

        wait(lambda: len(newest()) == 3)
        before, first = dict(newest()), newest()["cam0"]["board"]
        cluster.boards[first].send(signal.SIGKILL)
        wait(lambda: moved(before, first))

        cluster.join(first)
        wait(lambda: any(line["board"] == first for line in newest().values()))

        before, second = dict(newest()), next(line["board"] for line in newest().values() if line["board"] != first)
        cluster.boards[second].send(signal.SIGSTOP)
        wait(lambda: moved(before, second))
        cluster.boards[second].send(signal.SIGCONT)  # what it has in hand must not be told
        count = len(told.lines)
        wait(lambda: newest() and len(told.lines) > count + 9)
        run.send(signal.SIGTERM)
        assert cluster.finish(run) == 128 + signal.SIGTERM, run.said
        newest()
        assert_told_once(told.lines)
        states = listener.wait_for(lambda messages: [json.loads(payload) for topic, payload in messages
                                                   if topic == "house/cam0/state" and '"ended"' in payload]
                                 and [json.loads(payload) for topic, payload in messages
                                      if topic == "house/cam0/state"])
        epochs = [state["epoch"] for state in states if "epoch" in state]
        assert epochs == sorted(epochs) and epochs[-1] == newest()["cam0"]["epoch"]
        assert all(event["epoch"] and event["board"] for event in listener.events)
        assert not any("geheim" in log.read_text(errors="replace") for log in cluster.folder.iterdir())
    finally:
        listener.close()
        broker.kill()


@pytest.mark.slow
def test_a_board_that_nobody_asks_any_more_serves_no_longer_and_begins_anew_when_asked(cameras, monkeypatch):
    monkeypatch.setattr(worker, "LEASE", 0.5)
    settings = {"model": str(ROOT / "models/yolov5n_emoji.rknn"), "threads": 1, "func": None, "bigCores": "no",
                "runtime": None, "simulate": "10x1", "conf": None, "iou": None, "classes": None, "names": None}
    (url,) = cameras(1)
    wanted = {"cam0": (7, url.partition("=")[2])}
    wait(lambda: worker.ask("run", settings, {})["state"] == "ready")
    wait(lambda: worker.ask("run", settings, wanted)["lines"])
    run = worker._runs["run"]
    (job,) = run.jobs.values()
    wait(lambda: job.stream.ended)  # the boards.py that asked has died
    run.lines.clear()
    job.write(SimpleNamespace())
    assert not run.lines
    reply = worker.ask("run", settings, wanted)
    assert not reply["lines"] and worker._runs["run"] is not run
    lines = wait(lambda: worker.ask("run", settings, wanted)["lines"])
    assert {(name, epoch) for name, epoch, _ in lines} == {("cam0", 7)}
    worker.ask("run", settings, None)
    assert "run" not in worker._runs


def a_line(number, error=None):
    said = {"stream": "gate", "frame": number, "time": number / 25, "size": [640, 360]}
    return json.dumps({**said, **({"error": error} if error else {"objects": [
        {"class": "car", "number": 2, "score": 0.9, "box": [1.0, 2.0, 30.0, 40.0], "id": 1,
         "polygon": [[1, 2], [30, 40]], "keypoints": [[1.0, 2.0, 0.5]]}]})})


def test_the_collector_refuses_a_placement_that_is_over_and_tells_the_rest_as_it_came():
    camera, told = Camera("gate", "rtsp://gate", None), []
    camera.places.append(SimpleNamespace(write=lambda result: told.append(as_dict(result))))
    camera.epoch = 8
    assert not camera.take(7, a_line(0), "old") and camera.take(8, a_line(1), "new") and not told[1:]
    camera.take(8, a_line(2, "the NPU failed"), "new")
    assert (camera.count, camera.failed, camera.refused) == (1, 1, 1)
    expected = json.loads(a_line(1))
    del expected["objects"][0]["id"]  # identities are given here, where all boards' results come together
    assert told[0] == {**expected, "board": "new", "epoch": 8}
    assert told[1]["error"] == "the NPU failed"


def test_a_place_that_fails_stops_neither_the_camera_nor_the_others(capsys):
    camera, told = Camera("gate", "rtsp://gate", None), []

    def fail(_):
        raise InputError("the disk is full.")

    camera.places += [SimpleNamespace(write=fail), SimpleNamespace(write=told.append)]
    for number in range(2):
        camera.take(0, a_line(number), "one")
    assert len(told) == 2 and camera.code == 2
    assert capsys.readouterr().err.count("the disk is full.") == 1


@pytest.fixture
def loop():
    """Python 3.9's asyncio.Event wants one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    loop.close()
    asyncio.set_event_loop(None)


def spread(capacities, rates):
    """A Cameras with these boards ready, and these cameras nowhere yet."""
    streams = [Camera(f"cam{number}", "rtsp://x", None) for number, _ in enumerate(rates)]
    for camera, rate in zip(streams, rates):
        camera.rate = rate
    spreading = Cameras(None, SimpleNamespace(), "run", streams)
    for number, capacity in enumerate(capacities):
        join(spreading, str(number), capacity)
    return spreading


def join(spreading, name, capacity):
    site = spreading.sites[name] = Site(name, name)
    site.state, site.capacity = "ready", capacity
    return site


def served(spreading):
    return [len(site.cameras) for site in spreading.sites.values()]


@pytest.mark.usefixtures("loop")
def test_cameras_are_spread_by_free_capacity():
    spreading = spread([200, 100], [25] * 6)
    spreading.place()
    assert served(spreading) == [5, 1]  # 75 frames a second to spare at each
    spreading = spread([100, 100], [60, 25, 25, 25])
    spreading.place()
    assert sorted(site.load for site in spreading.sites.values()) == [60, 75]


@pytest.mark.usefixtures("loop")
def test_a_board_that_joins_takes_its_share_and_nothing_moves_twice():
    spreading = spread([60], [15] * 6)
    spreading.place()
    join(spreading, "new", 60)
    spreading.balance()
    assert served(spreading) == [3, 3]
    epochs = [camera.epoch for camera in spreading.cameras]
    spreading.balance()
    assert epochs == [camera.epoch for camera in spreading.cameras]
    join(spreading, "weak", 5)
    spreading.balance()
    assert served(spreading) == [3, 3, 0]


@pytest.mark.usefixtures("loop")
def test_a_camera_that_loses_its_board_has_a_new_epoch_at_once_and_waits_where_there_is_no_other():
    spreading = spread([60], [25])
    spreading.place()
    camera, (site,) = spreading.cameras[0], spreading.sites.values()
    epoch = camera.epoch
    site.state = "silent"
    spreading.free(site, "is silent")
    assert camera.board is None and camera.epoch > epoch
    freed, other = camera.epoch, join(spreading, "other", 60)
    spreading.place()
    assert camera.board is other and camera.epoch > freed


def test_a_broker_is_told_nothing_of_a_placement_that_is_over(monkeypatch):
    pytest.importorskip("paho.mqtt", reason="needs the package paho-mqtt")
    monkeypatch.setattr(mqtt, "CLOSING", 0.1)
    gate = stream()
    place = mqtt.MQTT("mqtt://127.0.0.1:1", [gate])  # nobody answers there: what is queued stays
    try:
        for epoch, number in ((8, 1), (7, 2), (8, 3), (9, 4), (8, 5)):
            told = result(gate, [(number, "car", 100)])
            told.epoch, told.board = epoch, f"board{epoch}"
            place.write(told)
        wait(lambda: len(place.events) >= 3)
        place.look()
        events = [json.loads(event) for event in place.events]
        assert [(event["epoch"], event["board"], event["after"]["track"]) for event in events] == [
            (8, "board8", 1), (8, "board8", 3), (9, "board9", 4)]
    finally:
        place.ending.set()
        place.worker.join()
        place.client.loop_stop()
