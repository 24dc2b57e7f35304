"""--mqtt with the broker mosquitto: started late, killed, stopped, slow, with password and TLS."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
from broker import MOSQUITTO, WAIT_SECONDS, Broker, Listener, numbers_of, once
from conftest import ROOT
from fakes import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

import func
from results import mqtt, mqtt_connection, mqtt_owner, objects
from results.delivery import Delivery
from results.mqtt import MQTT
from results.mqtt_connection import parse_url
from results.mqtt_discovery import slug
from results.mqtt_stream import PublishedStream, counters_of, topic_level
from results.objects import Objects
from results.result import Result
from results.setup import Setup
from results.snapshots import Snapshots
from vision.detections import Detections
from vision.errors import InputError
from vision.model import Model

pytest.importorskip("paho.mqtt.client", reason="pip install paho-mqtt")
pytestmark = pytest.mark.skipif(not MOSQUITTO, reason="apt-get install mosquitto")

# The keys that Home Assistant documents for MQTT discovery of sensors and binary sensors.
SHARED = set(
    """availability availability_mode availability_template availability_topic default_entity_id
    device device_class enabled_by_default encoding entity_category entity_picture expire_after
    force_update icon json_attributes_template json_attributes_topic name object_id origin
    payload_available payload_not_available platform qos state_topic unique_id
    value_template""".split()
)
KEYS = {
    "sensor": SHARED.union(
        """last_reset_value_template options state_class suggested_display_precision
        unit_of_measurement""".split()
    ),
    "binary_sensor": SHARED.union("off_delay payload_off payload_on".split()),
    "image": SHARED - {"state_topic"} | {"content_type", "image_encoding", "image_topic"},
}
DEVICE = set(
    """configuration_url connections hw_version identifiers manufacturer model model_id name
    serial_number suggested_area sw_version via_device""".split()
)


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def listener(broker):
    listener = Listener(broker)
    yield listener
    listener.close()


@pytest.fixture
def opened(printed, monkeypatch):
    """opened(url, *streams, snapshots=None): an MQTT, closed at the end of the test. Programs agree
    and publish their states sooner than usual."""
    monkeypatch.setattr(mqtt_owner, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(mqtt, "STATE_SECONDS", 0.1)
    sinks = []

    def open_(url, *streams_, snapshots=None):
        sinks.append(MQTT(url, streams_, snapshots))
        return sinks[-1]

    yield open_
    for sink in sinks:
        sink.close()


def appear(sink, gate, numbers):
    """Let these objects appear, one in each frame."""
    for number in numbers:
        sink.write(fakes.result(gate, [(number, "person", 10)]))


def wait_until_sent(sink):
    """Wait until the broker has everything of a sink's own streams."""
    wait_until(lambda: not sink.has_unsent)


def announced(messages):
    """{topic of the value: configuration} of all entities that messages announce."""
    configs = [
        json.loads(payload)
        for topic, payload in messages.items()
        if topic.startswith("homeassistant/") and payload
    ]
    return {config.get("image_topic") or config["state_topic"]: config for config in configs}


# ---- what is published ----


def test_states_and_counters_are_retained(broker, listener, opened):
    gate, yard = fakes.stream(), fakes.stream("yard")
    sink = opened(broker.url, gate, yard)
    lines = {"door": {"in": {"person": 2, "car": 1}, "out": {}}}
    seen = [(1, "person", 10), (2, "person", 50), (3, "car", 90)]
    sink.write(fakes.result(gate, seen, lines=lines, zones={"lawn": {"person": 1}}))
    listener.wait_for_value("house/gate/person", "2")
    wait_until_sent(sink)
    retained = broker.retained()
    expected = {
        sink.available: "online",
        "house/gate/available": "online",
        "house/gate/all": "3",
        "house/gate/person": "2",
        "house/gate/car": "1",
        "house/gate/door/in": "3",
        "house/gate/door/out": "0",
        "house/gate/lawn/all": "1",
        "house/gate/lawn/person": "1",
        "house/yard/all": "0",
    }
    assert expected.items() <= retained.items()
    state = json.loads(retained["house/gate/state"])
    assert state["stream"] == "gate" and state["objects"] == {"person": 2, "car": 1}
    assert state["lines"] == lines and state["fps"] == 25.0 and state["frames"] == 1
    assert 20 <= state["latency_ms"] < 60000
    sink.write(fakes.result(gate, [(3, "car", 90)], lines=lines, zones={"lawn": {}}))
    listener.wait_for_value("house/gate/person", "0")
    listener.wait_for_value("house/gate/lawn/person", "0")
    gate.away = True
    listener.wait_for_value("house/gate/available", "offline")
    sink.close()
    listener.wait_for_value(sink.available, "offline")
    assert listener.last("house/yard/available") == "offline"
    assert listener.last("house/gate/car") == "0"


def test_home_assistant_finds_every_counter(broker, listener, opened):
    gate = fakes.stream("前门 1")
    sink = opened(broker.url, gate)
    lines, zones = {"door": {"in": {"person": 2}, "out": {}}}, {"lawn": {"dog": 1}}
    sink.write(fakes.result(gate, [(1, "person", 10)], lines=lines, zones=zones))
    listener.wait_for_value("house/前门 1/lawn/dog", "1")
    wait_until_sent(sink)
    names = {"all", "person", "door/in", "door/out", "lawn/all", "lawn/dog", "state", "available"}
    found, retained = announced(listener.latest), broker.retained()
    assert found.keys() == {f"house/前门 1/{name}" for name in names} <= retained.keys()
    assert len({config["unique_id"] for config in found.values()}) == len(found)
    for topic in [topic for topic in retained if topic.startswith("homeassistant/")]:
        prefix, component, *ids, last = topic.split("/")
        assert len(ids) == 2 and last == "config" and all(slug(part) == part for part in ids)
        config = json.loads(retained[topic])
        assert config.keys() <= KEYS[component] and config["device"].keys() <= DEVICE
        assert config["unique_id"] and config["name"]
        assert config["device"]["identifiers"] and config["origin"]["name"]
        assert config["availability_mode"] in ("all", "any", "latest")
        assert all(entry["topic"] in retained for entry in config["availability"])
        assert config.get("state_class") in (None, "measurement", "total_increasing")
    assert found["house/前门 1/door/in"]["state_class"] == "total_increasing"
    assert found["house/前门 1/person"]["state_class"] == "measurement"


def test_objects_appear_cross_enter_leave_and_end():
    gate, events = fakes.stream(), []

    def see(*things, **options):
        events.extend(fakes.result(gate, things, **options).events)

    crossing = {"line": "door", "direction": "in", "id": 7, "class": "person", "since": 1}
    see((-1, "person", 5))  # not confirmed by the tracker
    see((7, "person", 10), zones={"lawn": {}}, inside={"lawn": []})
    see((7, "person", 20), inside={"lawn": [7]})
    see((7, "person", 30), crossings=[crossing], inside={"lawn": [7]})
    see(time_=0.5)  # not detected for a moment
    see((7, "person", 40), inside={"lawn": []}, time_=1.0)
    for time_ in (3.6, 3.7, 3.8):  # an object ends if it is missing for 2.5 s and in three frames
        see((8, "dog", 200), time_=time_)
    assert [(event["type"], event["event"]) for event in events] == [
        ("new", "appears"),
        ("update", "enters"),
        ("update", "crosses"),
        ("update", "leaves"),
        ("new", "appears"),
        ("end", "ends"),
    ]
    new, enters, crosses, leaves, other, ends = events
    assert new["after"]["box"] == [10, 100, 30, 140] and new["after"]["area"] == 800
    assert new["after"]["label"] == "person" and new["after"]["camera"] == "gate"
    assert new["after"]["start_time"] == new["after"]["frame_time"] == 0.04
    assert new["after"]["end_time"] is None and ends["after"]["end_time"] == 1.0
    assert enters["zone"] == "lawn" and enters["after"]["current_zones"] == ["lawn"]
    assert crosses["before"]["current_zones"] == ["lawn"]
    assert (crosses["line"], crosses["direction"], crosses["since"]) == ("door", "in", 1)
    assert leaves["after"]["current_zones"] == [] and leaves["after"]["entered_zones"] == ["lawn"]
    assert ends["after"]["id"] == new["after"]["id"] != other["after"]["id"]
    assert all(
        second["before"] in (first["after"], second["after"])
        for first, second in zip(events, events[1:4])
    )
    assert [event["after"]["label"] for event in gate.objects.end()] == ["dog"]


def test_an_object_ends_though_the_clock_is_set_back():
    gate, objects = fakes.stream(), Objects("run")
    seen = objects.update(fakes.result(gate, [(1, "person", 10)], time_=5000))
    for number in range(100):
        seen += objects.update(fakes.result(gate, time_=1000 + number / 25))
    assert [event["event"] for event in seen] == ["appears", "ends"] and not objects.present


def test_objects_end_with_their_stream_while_other_streams_continue(broker, listener, opened):
    gate, yard = map(fakes.stream, ["gate", "yard"])
    sink = opened(broker.url, gate, yard)
    for stream, number in ((gate, 1), (yard, 2)):
        sink.write(fakes.result(stream, [(number, "person", 10)]))
    gate.ended = time.perf_counter()
    events = listener.wait_for_events(lambda events: numbers_of(events, "end"))
    assert numbers_of(events, "end") == [1]


def test_close_ends_the_objects_and_leaves_nothing_unsent(broker, listener, opened, printed):
    gate = fakes.stream()
    sink = opened(broker.url, gate)
    appear(sink, gate, range(100))
    sink.close()
    sink.close()
    events = listener.wait_for_events(lambda events: len(numbers_of(events, "end")) == 100)
    assert numbers_of(events) == list(range(100)) and not printed
    listener.wait_for_value("house/gate/available", "offline")


def test_invalid_detections_stop_this_sink_and_not_the_stream(broker, listener, opened):
    gate = fakes.stream()
    sink = opened(broker.url, gate)
    listener.wait_for_value(sink.available, "online")
    broken = fakes.result(gate, [(1, "person", 10)])
    broken.detections.classes = None
    sink.write(broken)
    wait_until(lambda: sink.broken)
    with pytest.raises(InputError, match="--mqtt"):
        sink.write(fakes.result(gate))
    # subscribers see that the retained numbers are outdated
    listener.wait_for_value(sink.available, "offline")


# ---- main.py ----

STREET = """
import itertools, time
import numpy as np
from func import Detections
numbers = itertools.count()
def detect(rknn_lite, IMG):
    time.sleep(0.02)
    x = 10 * next(numbers)
    boxes = np.float32([[x, 60, x + 40, 110], [450 - x, 200, 490 - x, 250]])
    inside = (boxes[:, 2] > 0) & (boxes[:, 0] < IMG.shape[1])
    boxes = boxes[inside]
    return Detections(boxes, np.zeros(len(boxes), int), np.full(len(boxes), 0.9), ["car"])
def draw(IMG, detections):
    return IMG
def myFunc(rknn_lite, IMG):
    return draw(IMG, detect(rknn_lite, IMG))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["its own", "SIGTERM"])
def test_main_py_publishes_every_object_from_appearance_to_end(
    broker, listener, clip, tmp_path, ending
):
    """Two cars, one in each direction, on a clip that ends or a video that would go on."""
    (tmp_path / "street.py").write_text(STREET)
    source = clip if ending == "its own" else "models/demo.mp4"
    options = "--threads 1 --line road:0.25,0,0.25,1 --zone all:0,0,1,0,1,1,0,1 --headless --quiet"
    files = ["--func", tmp_path / "street.py", "--json", tmp_path / "out.jsonl"]
    process = subprocess.Popen(
        [sys.executable, "main.py", f"street={source}", *options.split(), *files]
        + ["--mqtt", broker.url],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    listener.wait_for_events(
        lambda events: sum(event["event"] == "crosses" for event in events) == 2
    )
    if ending == "SIGTERM":
        process.terminate()
    stderr = process.communicate(timeout=WAIT_SECONDS)[1]
    assert process.returncode == (128 + signal.SIGTERM if ending == "SIGTERM" else 0), stderr
    listener.wait_for_availability("offline")
    events, frames = once(listener.events), (tmp_path / "out.jsonl").read_text().splitlines()
    seen = {thing["id"] for line in frames for thing in json.loads(line)["objects"]}
    assert len(seen) == 2 and seen == set(numbers_of(events)) == set(numbers_of(events, "end"))
    assert len(numbers_of(events)) == len(numbers_of(events, "end")) == 2
    state = json.loads(listener.last("house/street/state"))
    assert state["frames"] == len(frames) and state["state"] == "ended" and state["objects"] == {}
    assert state["lines"] == {"road": {"in": {"car": 1}, "out": {"car": 1}}}
    happened = [event["event"] for event in events]
    assert happened.count("crosses") == happened.count("enters") == happened.count("leaves") == 2
    retained = broker.retained()
    assert retained["house/street/road/in"] == retained["house/street/road/out"] == "1"
    assert retained["house/street/available"] == "offline" and retained["house/street/all"] == "0"


# ---- brokers and networks that fail ----


def test_a_broker_may_start_later_and_only_the_newest_events_are_kept_for_it(
    opened, printed, tmp_path, monkeypatch
):
    monkeypatch.setattr(mqtt, "MAX_EVENTS", 50)
    broker, gate = Broker(tmp_path), fakes.stream()
    gate.objects.end = list  # so that close() adds no events
    sink = opened(broker.url, gate)
    appear(sink, gate, range(60))
    wait_until(lambda: printed)
    broker.start()
    listener = Listener(broker)
    events = listener.wait_for_events(lambda events: 59 in numbers_of(events))
    assert numbers_of(events) == list(range(10, 60))
    sink.close()
    listener.close()
    broker.kill()
    assert "cannot connect" in printed[0] and "Connection refused" in printed[0]
    assert "connected again" in printed[1] and "10 events were discarded" in printed[2]
    assert len(printed) == 3


@pytest.mark.slow
def test_no_event_is_lost_when_the_broker_is_killed_and_restarted(
    broker, listener, opened, printed
):
    gate = fakes.stream()
    sink = opened(broker.url, gate)
    appear(sink, gate, range(30))
    for start in (30, 130):
        listener.wait_for_events(lambda events, start=start: start - 1 in numbers_of(events))
        broker.save()
        # some messages are handed over and not acknowledged
        broker.process.send_signal(signal.SIGSTOP)
        appear(sink, gate, range(start, start + 50))
        wait_until(lambda: sink.connection.in_flight >= 10)
        lost = sum("connection lost" in line for line in printed)
        broker.kill()
        appear(sink, gate, range(start + 50, start + 100))
        wait_until(lambda lost=lost: sum("connection lost" in line for line in printed) == lost + 1)
        broker.start()
    events = listener.wait_for_events(lambda events: 229 in numbers_of(events))
    assert numbers_of(once(events)) == list(range(230))
    assert not any("discarded" in line for line in printed)
    listener.wait_for_value(sink.available, "online")  # the will was sent in between


@pytest.mark.slow
def test_a_broker_that_restarts_without_its_data_gets_all_again_from_the_same_programs(
    broker, opened, printed, monkeypatch
):
    monkeypatch.setattr(mqtt_owner, "RETRY_SECONDS", 4)  # above the time of a new connection
    gates = [fakes.stream(), fakes.stream(), fakes.stream("yard")]
    sinks = [opened(broker.url, gates[0])]
    appear(sinks[0], gates[0], [1])
    wait_until_sent(sinks[0])
    sinks += [opened(broker.url, gate) for gate in gates[1:]]
    wait_until(lambda: any("stream named gate" in line for line in printed))
    broker.kill()
    for path in broker.config.parent.glob("*.db*"):
        path.unlink()
    wait_until(lambda: sum("connection lost" in line for line in printed) == 3)
    broker.start()
    late = Listener(broker)
    for sink in sinks:
        late.wait_for_value(sink.available, "online")
    late.wait_for_value("house/gate/available", "online")
    late.wait_for_value("house/gate/person", "1")
    late.wait_for(lambda _: "house/gate/person" in announced(late.latest))
    late.close()
    wait_until_sent(sinks[0])
    assert [line for line in printed if "gate" in line.split()[1:]] == [printed[0]]


@pytest.mark.slow
def test_a_hung_broker_delays_nothing(broker, listener, opened, printed, monkeypatch):
    monkeypatch.setattr(mqtt_connection, "KEEPALIVE_SECONDS", 1)
    gate = fakes.stream()
    sink = opened(broker.url, gate)
    appear(sink, gate, [0])
    listener.wait_for_events(lambda events: events)
    broker.process.send_signal(signal.SIGSTOP)
    appear(sink, gate, range(1, 201))
    wait_until(lambda: printed)
    assert sink.connection.in_flight <= mqtt_connection.MAX_IN_FLIGHT + 1
    broker.process.send_signal(signal.SIGCONT)
    events = listener.wait_for_events(lambda events: 200 in numbers_of(events))
    assert numbers_of(once(events)) == list(range(201))


def test_a_slow_network_delays_events_and_loses_none(broker, listener, opened):
    gate = fakes.stream()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def carry(source, sink, slow):
            while data := source.recv(4096 if slow else 65536):
                time.sleep(0.05 if slow else 0)  # the network's own pace
                sink.sendall(data)

        def serve():
            near, far = server.accept()[0], socket.create_connection(("127.0.0.1", broker.port))
            threading.Thread(target=carry, args=(far, near, False), daemon=True).start()
            threading.Thread(target=carry, args=(near, far, True), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        sink = opened(f"mqtt://127.0.0.1:{server.getsockname()[1]}/house", gate)
        appear(sink, gate, range(60))
        events = listener.wait_for_events(lambda events: 59 in numbers_of(events))
        assert numbers_of(once(events)) == list(range(60))
        sink.close()


def test_close_returns_without_a_broker(opened, printed, tmp_path, monkeypatch):
    monkeypatch.setattr(mqtt, "CLOSE_SECONDS", 0.2)
    gate = fakes.stream()
    sink = opened(Broker(tmp_path).url, gate)
    appear(sink, gate, range(3))
    sink.close()
    assert "were not sent" in printed[-1]


# ---- login and TLS ----


def test_user_and_password_are_read_from_the_environment_and_never_printed(
    opened, printed, tmp_path, monkeypatch, capfd
):
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "board", "s3cret"], check=True)
    broker = Broker(tmp_path, f"password_file {passwords}", "allow_anonymous false")
    broker.start()
    monkeypatch.setenv("RKNNPOOL_MQTT_USER", "board")
    monkeypatch.setenv("RKNNPOOL_MQTT_PASSWORD", "wrong0ne")
    monkeypatch.setattr(mqtt, "CLOSE_SECONDS", 0.2)
    refused = opened(broker.url, fakes.stream())
    wait_until(lambda: printed)
    assert "refused the connection" in printed[0] and "RKNNPOOL_MQTT_PASSWORD" in printed[0]
    refused.close()
    monkeypatch.setattr(mqtt, "CLOSE_SECONDS", 60)
    monkeypatch.setenv("RKNNPOOL_MQTT_PASSWORD", "s3cret")
    listener = Listener(broker, username="board", password="s3cret")
    sink = opened(broker.url, fakes.stream())
    listener.wait_for_value(sink.available, "online")
    sink.close()
    listener.close()
    broker.kill()
    shown = "\n".join(printed) + "".join(capfd.readouterr()) + str(listener.messages)
    assert "s3cret" not in shown and "wrong0ne" not in shown


def test_tls_trusts_the_systems_certificates_and_ssl_cert_file_only(
    opened, printed, tmp_path, monkeypatch
):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -out {cert} -keyout {key}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    broker = Broker(tmp_path, f"certfile {cert}", f"keyfile {key}")
    broker.start()
    url = f"mqtts://localhost:{broker.port}/house"
    monkeypatch.setattr(mqtt, "CLOSE_SECONDS", 0.2)
    stranger = opened(url, fakes.stream())
    wait_until(lambda: printed)
    assert "certificate verify failed" in printed[0].lower()
    stranger.close()
    monkeypatch.setattr(mqtt, "CLOSE_SECONDS", 60)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    sink = opened(url, fakes.stream())
    wait_until_sent(sink)
    sink.close()
    broker.kill()


def test_a_password_without_a_user_is_refused(monkeypatch):
    monkeypatch.delenv("RKNNPOOL_MQTT_USER", raising=False)
    monkeypatch.setenv("RKNNPOOL_MQTT_PASSWORD", "s3cret")
    with pytest.raises(InputError, match="RKNNPOOL_MQTT_USER"):
        MQTT("mqtt://127.0.0.1/house", [])


def test_a_missing_paho_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(InputError, match="-m pip install 'paho-mqtt>=2'"):
        MQTT("mqtt://127.0.0.1/house", [])


# ---- URLs, names and topics ----


@pytest.mark.parametrize(
    "url, says",
    [
        ("mqtt://board:s3cret@127.0.0.1/house", "RKNNPOOL_MQTT_PASSWORD"),
        ("http://127.0.0.1", "mqtt://HOST"),
        ("127.0.0.1:1883", "mqtt://HOST"),
        ("mqtt://", "mqtt://HOST"),
        ("mqtt://127.0.0.1:0/", "mqtt://HOST"),
        ("mqtt://127.0.0.1:99999/", "mqtt://HOST"),
        ("mqtt://[::1/", "mqtt://HOST"),
        ("mqtt://127.0.0.1/house/#", "mqtt://HOST"),
        ("mqtt://127.0.0.1/a+b", "prefix"),
        ("mqtt://127.0.0.1/$SYS", "prefix"),
        ("mqtt://127.0.0.1/%23", "prefix"),
        ("mqtt://broker..lan", "mqtt://HOST"),
    ],
)
def test_an_invalid_url_is_refused_without_repeating_its_password(url, says):
    with pytest.raises(InputError, match=says) as error:
        parse_url(url)
    assert "s3cret" not in str(error.value)


@given(st.text())
@settings(max_examples=30)
def test_any_text_is_parsed_or_refused(text):
    for url in (text, f"mqtt://{text}", f"mqtts://host/{text}"):
        try:
            host, port, _, prefix = parse_url(url)
        except InputError:
            continue
        assert host and 0 < port < 65536 and prefix


def test_port_and_prefix_are_optional():
    assert parse_url("mqtt://broker.lan") == ("broker.lan", 1883, False, "rknnpool")
    assert parse_url("mqtts://[::1]/home/street/") == ("::1", 8883, True, "home/street")


@given(st.text(), st.text())
@settings(max_examples=30)
def test_different_names_give_different_topic_levels_and_ids(one, other):
    for name in (one, other):
        level = topic_level(name)
        assert level and not set(level) & set("/+#\0")
        level.encode()
        assert set(slug(level)) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
        )
    assert (topic_level(one) == topic_level(other)) == (one == other)
    assert (slug(topic_level(one)) == slug(topic_level(other))) == (one == other)


@pytest.mark.parametrize(
    "names",
    [
        ["a/b", "a_b", "a+b", "a#b", "a%2Fb", "a%b"],
        ["", "%", "_"],
        [200 * "a", 201 * "a", 202 * "a"],
        ["a\udc80", "a?", "a_", "a\0"],
    ],
    ids=["separators", "empty", "long", "unprintable"],
)
def test_similar_names_have_different_topic_levels(names):
    assert len({topic_level(name) for name in names}) == len(names)
    assert len({slug(topic_level(name)) for name in names}) == len(names)


def test_streams_with_similar_or_reserved_names_have_their_own_topics():
    topics = [
        PublishedStream(
            fakes.stream(name), "house", "board-1", "house/available/board-1", False
        ).topic
        for name in ("a/b", "a_b", "a+b", "events", "available")
    ]
    assert len(set(topics)) == 5 and topics[:2] == ["house/a%2Fb", "house/a_b"]
    assert not {"house/events", "house/available"} & set(topics)


def test_classes_with_similar_or_reserved_names_have_their_own_counters():
    classes = ["a/b", "a_b", "all", "state", "available", "fps", "in", "out", "snapshot"]
    counts = {name: number for number, name in enumerate(classes, 1)}
    lines = {"door": {"in": {"dog": 100}, "out": {}}}
    zones = {"door": counts, "person": counts}
    counters = {
        topic: number
        for topic, (_, number) in counters_of(
            {"objects": counts, "zones": zones, "lines": lines}
        ).items()
    }
    assert counters.pop("door/in") == 100 and counters.pop("door/out") == 0
    for area in ("", "door/", "person/"):
        numbers = [
            number
            for topic, number in counters.items()
            if topic.rpartition("/")[0] == area.strip("/")
        ]
        assert sorted(numbers) == [*range(1, 10), sum(range(1, 10))]
        assert counters[f"{area}a%2Fb"] == 1 and counters[f"{area}a_b"] == 2
    # the topics of other things
    others = {"state", "available", "fps", "door/in", "door/out", "person/snapshot"}
    assert not others & counters.keys()
    assert len(set(map(slug, {*counters, *others}))) == len(counters) + len(others)


# ---- snapshots ----


def test_the_newest_snapshot_of_each_class_is_retained_and_announced(broker, opened, tmp_path):
    gate, shots = fakes.stream(), Snapshots(str(tmp_path / "shots"), 9)
    sink = opened(broker.url, gate, snapshots=shots)
    for number, name in enumerate(["person", "dog", "person"]):
        result = fakes.result(gate, [(number, name, 10 + 100 * number)])
        result.frame = result.picture
        shots.write(result)
        sink.write(result)
    shots.close()  # before MQTT, as main.py does: the last picture is sent, too
    sink.close()
    retained, files = broker.retained(), shots.newest(9)
    newest = [(facts["class"], facts["track"]) for facts in files]
    assert newest == [("person", 2), ("dog", 1), ("person", 0)]
    for facts in files[:2]:
        topic = f"house/gate/{facts['class']}/snapshot"
        jpeg = (tmp_path / "shots" / facts["file"]).read_bytes()
        assert retained[topic].encode("utf-8", "surrogateescape") == jpeg
        config = announced(retained)[topic]
        assert config.keys() <= KEYS["image"] and config["content_type"] == "image/jpeg"
        # the last picture stays available while the camera is away
        assert [entry["topic"] for entry in config["availability"]] == [sink.available]


def test_images_of_an_earlier_run_stay_with_snapshots_and_are_withdrawn_without(
    broker, opened, tmp_path
):
    shots = Snapshots(str(tmp_path / "shots"), 9)
    topic = "house/gate/person/snapshot"

    def run(snapshots, written):
        gate = fakes.stream()
        sink = opened(broker.url, gate, snapshots=snapshots)
        result = fakes.result(gate, [(1, "person", 10)])
        result.frame = result.picture
        if written:
            shots.write(result)
            wait_until(lambda: shots.latest)
        sink.write(result)
        wait_until_sent(sink)
        sink.close()
        return broker.retained()

    first = run(shots, written=True)
    again = run(Snapshots(str(tmp_path / "shots"), 9), written=False)
    assert again[topic] == first[topic] and topic in announced(again)
    without = run(None, written=False)
    assert topic not in without and topic not in announced(without)
    assert "house/gate/person" in announced(without)


# ---- lines and zones that come and go ----

LINE = {"in": {"person": 2}, "out": {}}
OF_LINE = {"house/gate/door/in", "house/gate/door/out"}
OF_ZONE = {"house/gate/lawn/all", "house/gate/lawn/person"}


def test_lines_and_zones_that_are_removed_while_it_runs_are_withdrawn(broker, listener, opened):
    gate = fakes.stream()
    sink = opened(broker.url, gate)

    def written(line, zones):
        """What the broker has after a frame with this line and these zones."""
        sink.write(fakes.result(gate, [(1, "person", 10)], lines={line: LINE}, zones=zones))
        listener.wait_for_value(f"house/gate/{line}/in", "2")
        wait_until_sent(sink)
        retained = broker.retained()
        return retained.keys(), announced(retained).keys()

    for topics in written("door", {"lawn": {"person": 1}}):
        assert topics >= OF_LINE | OF_ZONE
    for topics in written("gate", {"lawn": {}, "door": {}}):  # now door is a zone
        assert not OF_LINE & topics
        assert topics >= OF_ZONE | {"house/gate/gate/in", "house/gate/person"}
    for topics in written("door", {}):  # it comes back
        assert topics >= OF_LINE and not OF_ZONE & topics


def test_lines_and_zones_that_are_changed_on_the_page_reach_the_broker(broker, opened, tmp_path):
    flags = {"lines": {}, "zones": {}, "conf": None, "classes": None, "reset_counts": False}
    model = Model("model.rknn", names=fakes.NAMES)
    site = Setup(str(tmp_path / "site.json"), ["gate"], SimpleNamespace(**flags), model, func)
    gate = Delivery("gate")
    site.attach([gate])
    objects.follow([gate], snapshots=False)
    sink = opened(broker.url, gate)
    gate.sinks = [sink]

    def announced_with(**shapes):
        version = site.state("gate")["version"]
        site.change("gate", shapes, version)
        found = Detections(np.empty((0, 4)), np.empty(0, int), np.empty(0), fakes.NAMES)
        result = Result(gate, gate.count, gate.count / 30, np.zeros((9, 9, 3), np.uint8), 0.0)
        result.detections = found
        gate.deliver(result)
        expected = {f"{line}/{way}" for line in shapes["lines"] for way in ("in", "out")}
        expected |= {f"{zone}/all" for zone in shapes["zones"]} | {"all"}
        stream = sink.streams["gate"]
        wait_until(lambda: stream.counters == expected and not sink.has_unsent)
        retained = broker.retained()
        below = {topic.partition("/gate/")[2] for topic in announced(retained)}
        assert below - {"state", "available"} == expected
        assert all(f"house/gate/{each}" in retained for each in expected)

    line, zone = [[0.5, 0], [0.5, 1]], [[0, 0], [1, 0], [1, 1]]
    announced_with(lines={"door": line}, zones={})
    announced_with(lines={"door": line, "gate": line}, zones={"lawn": zone})
    announced_with(lines={"gate": line}, zones={"lawn": zone})
    announced_with(lines={}, zones={})
    site.store.close()


def test_lines_and_zones_that_were_removed_between_two_runs_are_withdrawn_with_the_first_frame(
    broker, listener, opened
):
    gate, yard = fakes.stream(), fakes.stream("yard")
    first = opened(broker.url, gate, yard)
    for stream in (gate, yard):
        lines = {"door": LINE, "old": LINE}
        first.write(fakes.result(stream, lines=lines, zones={"lawn": {"person": 1}}))
    listener.wait_for_value("house/gate/old/in", "2")
    first.close()
    before = broker.retained()
    gate = fakes.stream()
    second = opened(broker.url, gate)  # without yard, which another program may publish
    wait_until(lambda: second.streams["gate"].counters >= {"door/in", "old/in", "lawn/person"})
    wait_until_sent(second)
    waiting = broker.retained()  # no frame yet: which lines there are is not known
    assert waiting.keys() == before.keys() | {second.available}
    assert waiting["house/gate/door/in"] == "2"  # a drop to 0 would count as a reset
    second.write(fakes.result(gate, lines={"door": LINE}))
    listener.wait_for_value("house/gate/old/in", "")
    wait_until_sent(second)
    left = broker.retained()
    gone = {"house/gate/old/in", "house/gate/old/out"} | OF_ZONE
    assert not gone & (left.keys() | announced(left).keys())
    assert announced(left).keys() == announced(before).keys() - gone
    assert left["house/gate/door/in"] == "2"


# ---- several programs on one prefix ----


def availability(listener, name):
    """What the broker says of each topic that the availability of the stream's entities follows."""
    topics = {
        entry["topic"]
        for config in announced(listener.latest).values()
        if config["device"]["name"] == name
        for entry in config["availability"]
    }
    return {listener.last(topic) for topic in topics}


def test_a_program_that_ends_leaves_the_others_on_its_prefix_online(broker, listener, opened):
    sinks = [opened(broker.url, fakes.stream(name)) for name in ("gate", "yard", "door")]
    assert len({sink.available for sink in sinks}) == 3
    for name in ("gate", "yard", "door"):
        listener.wait_for(lambda _, name=name: availability(listener, name) == {"online"})
    sinks[0].close()
    listener.wait_for_value(sinks[0].available, "offline")
    assert "offline" in availability(listener, "gate")
    assert availability(listener, "yard") == availability(listener, "door") == {"online"}


def test_a_program_publishes_again_what_others_change(broker, listener, opened):
    """As the last will of an old connection does, which the broker sends after up to 22 s, an older
    version of the program, or Home Assistant when it deletes a device."""
    odd = "a \udcff"  # is sent as "a ?"
    sink = opened(broker.url, fakes.stream(odd))
    stream = f"house/{topic_level(odd)}"
    listener.wait_for_value(f"{stream}/available", "online")
    config = next(t for t in dict(listener.messages) if t.endswith("/available/config"))
    for topic in (sink.available, f"{stream}/available", config):
        right = listener.last(topic)
        for wrong in ("offline", "", "anything"):
            listener.client.publish(topic, wrong, qos=1, retain=True)
            listener.wait_for(lambda messages, wrong=(topic, wrong): wrong in messages)
            listener.wait_for_value(topic, right)
    assert listener.messages.count((config, right)) == 4  # not again and again
    sink.close()
    listener.wait_for_value(sink.available, "offline")


def test_after_kill_9_a_program_is_offline_and_the_next_one_continues_its_counters(
    broker, listener, opened
):
    """The next one may have another list of streams. With the same list, its topic is the same."""
    script = (
        "import fakes, sys, time; from results.mqtt import MQTT; gate = fakes.stream(); "
        "sink = MQTT(sys.argv[1], [gate]); "
        "sink.write(fakes.result(gate, [(1, 'person', 10)])); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, broker.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )
    listener.wait_for_value("house/gate/person", "1")
    listener.wait_for_availability("online")
    process.kill()
    process.wait()
    listener.wait_for_availability("offline")
    killed = {topic for topic in listener.latest if "house/available/" in topic}
    gate = fakes.stream()
    sink = opened(broker.url, gate, fakes.stream("yard"))
    listener.wait_for_value("house/gate/person", "0")  # until its class is seen again
    listener.wait_for(lambda _: availability(listener, "gate") == {"online"})
    sink.write(fakes.result(gate, [(1, "person", 10), (2, "person", 50)]))
    listener.wait_for_value("house/gate/person", "2")
    assert opened(broker.url, fakes.stream()).available in killed


def test_of_two_programs_with_one_stream_one_publishes_and_the_other_follows(
    broker, listener, opened, printed, monkeypatch
):
    monkeypatch.setattr(mqtt_owner, "RETRY_SECONDS", 0.2)
    gates = [fakes.stream(), fakes.stream()]
    first = opened(broker.url, gates[0])
    first.write(fakes.result(gates[0], [(1, "person", 10)], lines={"door": LINE}))
    listener.wait_for_value("house/gate/door/in", "2")
    second = opened(broker.url, gates[1])  # the same stream, without the line
    second.write(fakes.result(gates[1], [(2, "car", 10), (3, "car", 50)]))
    wait_until(lambda: printed)
    owner = first.available.rpartition("/")[2]
    assert f"{owner} already publishes a stream named gate" in printed[0]
    assert "its own prefix" in printed[0]
    listener.wait_for_value(second.available, "online")
    first.write(fakes.result(gates[0], [(1, "person", 10), (4, "dog", 50)], lines={"door": LINE}))
    listener.wait_for_value("house/gate/dog", "1")
    retained = broker.retained()
    assert retained["house/gate/door/in"] == "2" and "house/gate/car" not in retained
    assert numbers_of(listener.events) == [1, 4] and len(printed) == 1
    assert first.available != second.available
    first.close()
    listener.wait_for_value("house/gate/car", "2")
    listener.wait_for_value("house/gate/person", "0")
    listener.wait_for_value("house/gate/door/in", "")
    listener.wait_for(lambda _: availability(listener, "gate") == {"online"})
    assert "gate is published now" in printed[1]
    wait_until_sent(second)
    assert not OF_LINE & announced(broker.retained()).keys()
    assert numbers_of(listener.events) == [1, 4]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.4, 1.1])), max_size=30))
@settings(deadline=None, max_examples=50)
def test_one_program_owns_a_stream_in_the_end_for_any_order_of_messages(turns):
    """Some turns with any delays, then three programs that answer in time."""
    owners = [mqtt_owner.Owner("house/gate", f"board-{number}") for number in range(3)]
    sent, read, now = [], {}, 0.0
    for who, seconds in turns + [(turn % 3, 0.1) for turn in range(450)]:
        owner, now = owners[who], now + seconds
        if who not in read:  # it connects: what was sent before does not reach it
            owner.ask(now)
        for message in sent[read.get(who, len(sent)) :]:
            owner.receive(message, now)
        read[who] = len(sent)
        message = owner.step(now)
        if message:
            sent.append(message)
    assert sorted(owner.is_own for owner in owners) == [False, False, True]
    assert sorted(owner.is_taken for owner in owners) == [False, True, True]


def test_an_id_is_stable_and_no_two_programs_have_one(monkeypatch):
    def take(*parts_):
        program, lock = mqtt_owner.take_program_id(*parts_)
        locks.append(lock)
        return program

    locks = []
    gate, again, yard = take("mqtt://a", "gate"), take("mqtt://a", "gate"), take("mqtt://a", "yard")
    assert len({gate, again, yard}) == 3 and gate.startswith(socket.gethostname())
    locks[0].close()
    assert take("mqtt://a", "gate") == gate
    monkeypatch.setattr(socket, "gethostname", lambda: "another-board")
    assert take("mqtt://a", "gate") not in (gate, again, yard)
    for lock in locks:
        lock.close()
