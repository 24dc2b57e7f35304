"""What --mqtt promises, against Debian's mosquitto: there late, killed, stopped, slow, with passwords and over TLS."""
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import parts
import pytest
from broker import MOSQUITTO, PATIENCE, Broker, Listener, numbers_of, once, wait
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from results import mqtt
from results.mqtt import MQTT, level, parse, slug
from results.objects import Objects
from rknnmodel import InputError

pytest.importorskip("paho.mqtt.client", reason="pip install paho-mqtt")
pytestmark = pytest.mark.skipif(not MOSQUITTO, reason="apt-get install mosquitto")

# documented by Home Assistant for its MQTT sensors and binary sensors, found by discovery, one message each
SHARED = set("""availability availability_mode availability_template availability_topic default_entity_id device
    device_class enabled_by_default encoding entity_category entity_picture expire_after force_update icon
    json_attributes_template json_attributes_topic name object_id origin payload_available payload_not_available
    platform qos state_topic unique_id value_template""".split())
KEYS = {"sensor": SHARED | {"last_reset_value_template", "options", "state_class", "suggested_display_precision",
                            "unit_of_measurement"},
        "binary_sensor": SHARED | {"off_delay", "payload_off", "payload_on"}}
DEVICE = {"configuration_url", "connections", "hw_version", "identifiers", "manufacturer", "model", "model_id", "name",
          "serial_number", "suggested_area", "sw_version", "via_device"}


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
def opened(said):
    """opened(url, *streams): an MQTT, closed at the end of the test."""
    places = []

    def open_(url, *streams_):
        places.append(MQTT(url, streams_))
        return places[-1]
    yield open_
    for place in places:
        place.close()


def appear(place, gate, numbers):
    """One object after the other appears."""
    for number in numbers:
        place.write(parts.result(gate, [(number, "person", 10)]))


def test_what_a_stream_sees_is_retained(broker, opened):
    gate, yard = parts.stream(), parts.stream("yard")
    place = opened(broker.url, gate, yard)
    lines = {"door": {"in": {"person": 2, "car": 1}, "out": {}}}
    place.write(parts.result(gate, [(1, "person", 10), (2, "person", 50), (3, "car", 90)], lines=lines,
                             zones={"lawn": {"person": 1}}))
    wait(lambda: place.wanted.get("house/gate/person") == "2" and not place.untold())
    late = Listener(broker)  # which gets what is retained
    for topic, value in {"house/available": "online", "house/gate/available": "online", "house/gate/all": "3",
                         "house/gate/person": "2", "house/gate/car": "1", "house/gate/door/in": "3",
                         "house/gate/door/out": "0", "house/gate/lawn/all": "1", "house/gate/lawn/person": "1",
                         "house/yard/all": "0"}.items():
        late.wait_for_value(topic, value)
    late.wait_for(lambda _: late.last("house/gate/state"))
    state = json.loads(late.last("house/gate/state"))
    assert state["stream"] == "gate" and state["objects"] == {"person": 2, "car": 1} and state["lines"] == lines
    assert state["fps"] == 25.0 and state["frames"] == 1 and 20 <= state["latency_ms"] < 60000
    place.write(parts.result(gate, [(3, "car", 90)], lines=lines, zones={"lawn": {}}))
    late.wait_for_value("house/gate/person", "0")
    late.wait_for_value("house/gate/lawn/person", "0")
    gate.away = True
    late.wait_for_value("house/gate/available", "offline")
    place.close()
    late.wait_for_value("house/available", "offline")
    late.wait_for_value("house/yard/available", "offline")
    late.close()


def test_objects_appear_cross_enter_leave_and_end(broker, listener, opened):
    gate = parts.stream()
    place = opened(broker.url, gate)
    crossing = {"line": "door", "direction": "in", "id": 7, "class": "person", "since": 1}
    place.write(parts.result(gate, [(-1, "person", 5)]))  # the tracker is not yet sure
    place.write(parts.result(gate, [(7, "person", 10)], zones={"lawn": {}}, inside={"lawn": []}))
    place.write(parts.result(gate, [(7, "person", 20)], inside={"lawn": [7]}))
    place.write(parts.result(gate, [(7, "person", 30)], crossings=[crossing], inside={"lawn": [7]}))
    place.write(parts.result(gate, [], time_=0.5))           # not seen for a moment
    place.write(parts.result(gate, [(7, "person", 40)], inside={"lawn": []}, time_=1.0))
    place.write(parts.result(gate, [(8, "dog", 200)], time_=3.6))
    events = listener.wait_for_events(lambda events: len(events) == 6)
    assert [event["event"] for event in events] == ["appears", "enters", "crosses", "leaves", "appears", "ends"]
    assert [event["type"] for event in events] == ["new", "update", "update", "update", "new", "end"]
    new, enters, crosses, leaves, other, ends = events
    assert new["after"]["box"] == [10, 100, 30, 140] and new["after"]["area"] == 800
    assert new["after"]["label"] == "person" and new["after"]["camera"] == "gate"
    assert new["after"]["end_time"] is None and new["after"]["start_time"] == new["after"]["frame_time"] == 0.04
    assert enters["zone"] == "lawn" and enters["after"]["current_zones"] == ["lawn"]
    assert crosses["before"]["current_zones"] == ["lawn"]
    assert (crosses["line"], crosses["direction"], crosses["since"]) == ("door", "in", 1)
    assert leaves["after"]["current_zones"] == [] and leaves["after"]["entered_zones"] == ["lawn"]
    assert ends["after"]["end_time"] == 1.0 and ends["after"]["id"] == new["after"]["id"] != other["after"]["id"]
    assert all(second["before"] in (first["after"], second["after"]) for first, second in zip(events, events[1:4]))
    place.close()
    assert listener.wait_for_events(lambda events: len(events) == 7)[-1]["after"]["label"] == "dog"


def test_home_assistant_finds_every_counter(broker, listener, opened):
    gate = parts.stream("前门 1")
    place = opened(broker.url, gate)
    place.write(parts.result(gate, [(1, "person", 10)], lines={"door": {"in": {"person": 2}, "out": {}}},
                             zones={"lawn": {"dog": 1}}))
    names = {"all", "person", "door/in", "door/out", "lawn/all", "lawn/dog", "state", "available"}
    listener.wait_for(lambda messages: {f"house/前门 1/{name}" for name in names} <= dict(messages).keys())
    found = {topic: json.loads(payload) for topic, payload in listener.messages if topic.startswith("homeassistant/")}
    topics = {config["state_topic"] for config in found.values()}
    assert topics == {f"house/前门 1/{name}" for name in names}
    assert len({config["unique_id"] for config in found.values()}) == len(found)
    for topic, config in found.items():
        prefix, component, *ids, last = topic.split("/")
        assert len(ids) == 2 and last == "config" and all(slug(part) == part for part in ids)
        assert config.keys() <= KEYS[component] and config["device"].keys() <= DEVICE
        assert config["unique_id"] and config["name"] and config["device"]["identifiers"] and config["origin"]["name"]
        assert config["availability_mode"] in ("all", "any", "latest")
        assert all(entry["topic"] in dict(listener.messages) for entry in config["availability"])
        assert config.get("state_class") in (None, "measurement", "total_increasing")
        assert config["state_topic"] in dict(listener.messages)
    counting = [config for config in found.values() if config["state_topic"].endswith("door/in")]
    assert [config["state_class"] for config in counting] == ["total_increasing"]


def test_the_last_will_tells_of_a_program_that_was_killed(broker, listener):
    script = ("import parts, sys, time; from results.mqtt import MQTT; gate = parts.stream(); "
              "place = MQTT(sys.argv[1], [gate]); place.write(parts.result(gate)); time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", script, broker.url], cwd=ROOT,
                               env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"})
    listener.wait_for_value("house/available", "online")
    process.kill()
    process.wait()
    listener.wait_for_value("house/available", "offline")


def test_a_broker_that_is_not_there_yet_is_waited_for(opened, said, tmp_path):
    broker, gate = Broker(tmp_path), parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, range(5))
    wait(lambda: said)
    broker.start()
    wait(lambda: not place.events and place.sent == place.handed > 5)
    place.close()
    broker.kill()
    assert "cannot be reached" in said[0] and "Connection refused" in said[0] and "came back" in said[1]
    assert len(said) == 2


@pytest.mark.slow
def test_events_outlive_a_broker_that_is_killed_and_started_again(broker, listener, opened, said):
    gate = parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, range(30))
    for round_ in range(1, 4):
        listener.wait_for_events(lambda events, round_=round_: 100 * round_ - 71 in numbers_of(events))
        broker.save()
        broker.process.send_signal(signal.SIGSTOP)  # so that some are handed over and not acknowledged
        appear(place, gate, range(100 * round_ - 70, 100 * round_ - 20))
        wait(lambda: place.handed - place.sent >= 10)
        broker.kill()
        appear(place, gate, range(100 * round_ - 20, 100 * round_ + 30))
        wait(lambda round_=round_: sum("went away" in line for line in said) == round_)
        broker.start()
    events = listener.wait_for_events(lambda events: 329 in numbers_of(events))
    assert numbers_of(once(events)) == list(range(330))
    assert place.lost == 0
    wait(lambda: listener.last("house/available") == "online")  # the will was sent in between


def test_a_broker_that_forgot_everything_is_told_again(broker, opened, said):
    gate = parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, [1])
    wait(lambda: place.told.get("house/gate/person") == "1" and place.sent == place.handed)
    broker.kill()
    for path in broker.config.parent.glob("*.db*"):
        path.unlink()
    broker.start()
    late = Listener(broker)
    for topic, value in (("house/available", "online"), ("house/gate/available", "online"), ("house/gate/person", "1")):
        late.wait_for_value(topic, value)
    late.wait_for(lambda messages: any(topic.startswith("homeassistant/") for topic, _ in messages))
    late.close()


@pytest.mark.slow
def test_a_broker_that_hangs_holds_nothing_up(broker, listener, opened, said, monkeypatch):
    monkeypatch.setattr(mqtt, "KEEPALIVE", 2)
    gate = parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, [0])
    listener.wait_for_events(lambda events: events)
    broker.process.send_signal(signal.SIGSTOP)
    appear(place, gate, range(1, 501))
    wait(lambda: said)
    assert len(place.client._out_packet) + len(place.client._out_messages) <= 2 * mqtt.WINDOW + 5
    broker.process.send_signal(signal.SIGCONT)
    events = listener.wait_for_events(lambda events: 500 in numbers_of(events))
    assert numbers_of(once(events)) == list(range(501))


def test_what_waits_is_bounded_and_what_is_lost_is_counted_and_said_once(opened, said, tmp_path, monkeypatch):
    monkeypatch.setattr(mqtt, "MOST_EVENTS", 50)
    broker, gate = Broker(tmp_path), parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, range(200))
    wait(lambda: not place.frames and place.number > 200)
    lost = place.number - 50
    wait(lambda: place.lost == lost)
    assert len(place.events) == 50
    broker.start()
    wait(lambda: not place.events and place.sent == place.handed)
    place.close()
    broker.kill()
    assert [line for line in said if "could not be kept" in line] == [said[1]]
    assert f"{lost} events could not be kept" in said[1]


def test_a_slow_network_delays_events_and_loses_none(broker, listener, opened):
    """Ten messages a second come through; states do not starve the events."""
    gate = parts.stream()
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
        place = opened(f"mqtt://127.0.0.1:{server.getsockname()[1]}/house", gate)
        appear(place, gate, range(100))
        events = listener.wait_for_events(lambda events: 99 in numbers_of(events))
        assert numbers_of(once(events)) == list(range(100))
        place.close()


def test_an_object_ends_though_the_clock_is_set_back():
    gate, objects = parts.stream(), Objects("run")
    seen = objects.follow(parts.result(gate, [(1, "person", 10)], time_=5000))
    for number in range(100):
        seen += objects.follow(parts.result(gate, time_=1000 + number / 25))
    assert [event["event"] for event in seen] == ["appears", "ends"] and not objects.present


def test_close_ends_the_objects_and_leaves_nothing_unsent(broker, listener, opened, said):
    gate = parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, range(300))
    place.close()
    place.close()
    events = listener.wait_for_events(lambda events: len(numbers_of(events, "end")) == 300)
    assert numbers_of(events) == list(range(300)) and not said
    listener.wait_for_value("house/gate/available", "offline")


def test_close_does_not_wait_for_ever_for_a_broker_that_is_not_there(opened, said, tmp_path, monkeypatch):
    monkeypatch.setattr(mqtt, "CLOSING", 0.5)
    broker, gate = Broker(tmp_path), parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, range(3))
    place.close()
    assert "could not be sent" in said[-1]


def test_user_and_password_come_from_the_environment_and_are_shown_nowhere(opened, said, tmp_path, monkeypatch, capfd):
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "board", "s3cret"], check=True)
    broker = Broker(tmp_path, f"password_file {passwords}", "allow_anonymous false")
    broker.start()
    monkeypatch.setenv("RKNNPOOL_MQTT_USER", "board")
    monkeypatch.setenv("RKNNPOOL_MQTT_PASSWORD", "wrong0ne")
    monkeypatch.setattr(mqtt, "CLOSING", 0.5)
    refused = opened(broker.url, parts.stream())
    wait(lambda: said)
    assert "refuses the connection" in said[0] and "RKNNPOOL_MQTT_PASSWORD" in said[0]
    refused.close()
    monkeypatch.setattr(mqtt, "CLOSING", 60)
    monkeypatch.setenv("RKNNPOOL_MQTT_PASSWORD", "s3cret")
    gate = parts.stream()
    place = opened(broker.url, gate)
    appear(place, gate, range(3))
    listener = Listener(broker, username="board", password="s3cret")
    listener.wait_for_value("house/available", "online")
    place.close()
    listener.close()
    broker.kill()
    shown = "\n".join(said) + "".join(capfd.readouterr()) + str(listener.messages)
    assert "s3cret" not in shown and "wrong0ne" not in shown


def test_tls_trusts_only_whom_the_system_or_ssl_cert_file_names(opened, said, tmp_path, monkeypatch):
    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    ca, key, cert = tmp_path / "ca.pem", tmp_path / "key.pem", tmp_path / "cert.pem"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "ca.key", "-out", ca, "-days", 2,
            "-subj", "/CN=ours")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", tmp_path / "csr", "-subj", "/CN=localhost")
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost")
    openssl("x509", "-req", "-in", tmp_path / "csr", "-CA", ca, "-CAkey", tmp_path / "ca.key", "-CAcreateserial",
            "-out", cert, "-days", 2, "-extfile", tmp_path / "names")
    broker = Broker(tmp_path, f"certfile {cert}", f"keyfile {key}")
    broker.start()
    url = f"mqtts://localhost:{broker.port}/house"
    monkeypatch.setattr(mqtt, "CLOSING", 0.5)
    stranger = opened(url, parts.stream())
    wait(lambda: said)
    assert "certificate verify failed" in said[0].lower()
    stranger.close()
    monkeypatch.setattr(mqtt, "CLOSING", 60)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    gate = parts.stream()
    place = opened(url, gate)
    appear(place, gate, range(3))
    wait(lambda: place.handed and place.sent == place.handed and not place.events)
    place.close()
    broker.kill()


@pytest.mark.slow
def test_main_py_tells_the_broker_from_the_first_object_to_the_last(broker, listener, main_py):
    ran = main_py("street=models/demo.mp4", "--mqtt", broker.url, "--line", "road:640,0,640,720", "--zone",
                  "all:0,0,1,0,1,1,0,1", "--headless", "--quiet")
    assert ran.returncode == 0, ran.stderr
    listener.wait_for_value("house/available", "offline")
    events = once(listener.events)
    state = json.loads(listener.last("house/street/state"))
    crossed = [event["direction"] for event in events if event["event"] == "crosses"]
    for way in ("in", "out"):
        assert crossed.count(way) == sum(state["lines"]["road"][way].values()) > 0
        assert listener.last(f"house/street/road/{way}") == str(crossed.count(way))
    assert numbers_of(events) and sorted(numbers_of(events)) == sorted(numbers_of(events, "end"))
    entered, left = ([event for event in events if event["event"] == what] for what in ("enters", "leaves"))
    assert len(entered) == len(left) >= len(numbers_of(events))
    assert state["frames"] == 600 and state["state"] == "ended" and state["objects"] == {}
    assert listener.last("house/street/available") == "offline" and listener.last("house/street/all") == "0"


@pytest.mark.slow
def test_sigterm_ends_main_py_with_everything_sent(broker, listener, tmp_path):
    command = [sys.executable, "main.py", "street=models/demo.mp4", "--mqtt", broker.url, "--json",
               str(tmp_path / "out.jsonl"), "--headless", "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    listener.wait_for_events(lambda events: len(events) > 10)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    listener.wait_for_value("house/available", "offline")
    events = once(listener.events)
    frames = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    seen = {thing["id"] for frame in frames for thing in frame["objects"] if "id" in thing}
    assert seen == set(numbers_of(events)) == set(numbers_of(events, "end"))


@pytest.mark.parametrize("url, says", [
    ("mqtt://board:s3cret@127.0.0.1/house", "RKNNPOOL_MQTT_PASSWORD"),
    ("http://127.0.0.1", "mqtt://HOST"), ("127.0.0.1:1883", "mqtt://HOST"), ("mqtt://", "mqtt://HOST"),
    ("mqtt://127.0.0.1:0/", "mqtt://HOST"), ("mqtt://127.0.0.1:99999/", "mqtt://HOST"), ("mqtt://[::1/", "mqtt://HOST"),
    ("mqtt://127.0.0.1/house/#", "mqtt://HOST"), ("mqtt://127.0.0.1/a+b", "prefix"),
    ("mqtt://127.0.0.1/$SYS", "prefix"), ("mqtt://127.0.0.1/%23", "prefix"), ("mqtt://" + 70 * "a" + ".org", "mqtt://HOST")])
def test_a_bad_url_is_said_in_a_sentence_that_repeats_no_password(url, says):
    with pytest.raises(InputError, match=says) as error:
        parse(url)
    assert "s3cret" not in str(error.value)


@given(st.text())
def test_no_url_is_more_than_a_bad_url(text):
    for url in (text, f"mqtt://{text}", f"mqtts://host/{text}"):
        try:
            host, port, _, prefix = parse(url)
        except InputError:
            continue
        assert host and 0 < port < 65536 and prefix


def test_a_url_may_leave_out_port_and_prefix():
    assert parse("mqtt://broker.lan") == ("broker.lan", 1883, False, "rknnpool")
    assert parse("mqtts://[::1]/home/street/") == ("::1", 8883, True, "home/street")


def test_without_paho_the_sentence_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(InputError, match="pip install paho-mqtt"):
        MQTT("mqtt://127.0.0.1/house", [])


def test_a_password_without_a_user_names_the_variable(monkeypatch):
    monkeypatch.delenv("RKNNPOOL_MQTT_USER", raising=False)
    monkeypatch.setenv("RKNNPOOL_MQTT_PASSWORD", "s3cret")
    with pytest.raises(InputError, match="RKNNPOOL_MQTT_USER"):
        MQTT("mqtt://127.0.0.1/house", [])


@given(st.text(), st.text())
def test_any_name_makes_one_level_of_a_topic_and_an_id_of_its_own(one, other):
    for name in (one, other):
        assert level(name) and not set(level(name)) & set("/+#\0")
        level(name).encode()
        assert set(slug(level(name))) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert (slug(level(one)) == slug(level(other))) == (level(one) == level(other))


def test_streams_whose_names_make_the_same_topic_get_topics_of_their_own(broker, opened):
    place = opened(broker.url, *map(parts.stream, ["a/b", "a_b", "a+b", "events"]))
    assert [stream.topic for stream in place.streams.values()] == ["house/a_b", "house/a_b_2", "house/a_b_3",
                                                                   "house/events_2"]


def test_the_objects_of_a_stream_that_ends_end_with_it_while_others_go_on(broker, listener, opened):
    gate, yard = map(parts.stream, ["gate", "yard"])
    place = opened(broker.url, gate, yard)
    for stream, number in ((gate, 1), (yard, 2)):
        place.write(parts.result(stream, [(number, "person", 10)]))
    gate.ended = time.perf_counter()
    events = listener.wait_for_events(lambda events: numbers_of(events, "end"))
    assert numbers_of(events, "end") == [1]


def test_detections_that_cannot_be_followed_cost_the_stream_nothing_but_the_broker(broker, listener, opened):
    gate = parts.stream()
    place = opened(broker.url, gate)
    listener.wait_for_value("house/available", "online")
    broken = parts.result(gate, [(1, "person", 10)])
    broken.detections.scores = None
    place.write(broken)
    wait(lambda: place.broken)
    with pytest.raises(InputError, match="--mqtt"):
        place.write(parts.result(gate))
    listener.wait_for_value("house/available", "offline")  # and nobody takes its last numbers for today's
