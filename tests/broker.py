"""An MQTT broker for the tests, Debian's mosquitto, and one who listens to it."""
import json
import shutil
import signal
import socket
import subprocess
import threading
import time

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
PATIENCE = 60  # seconds; what has not come by then does not come


class Broker:
    """A mosquitto of its own that keeps sessions and retained messages over kill -9, on a port of its own."""

    def __init__(self, folder, *settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", *settings, "persistence true", f"persistence_location {folder}/",
                 "user root", "max_queued_messages 0", "max_inflight_messages 0"]
        if not any(line.startswith("allow_anonymous") for line in settings):
            lines.append("allow_anonymous true")
        self.config.write_text("\n".join(lines) + "\n")
        self.process = None

    def start(self):
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(self.config)], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "running" in line:
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def save(self):
        """Write sessions and retained messages to the disk, and wait for it."""
        path = self.config.parent / "mosquitto.db"
        path.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait(path.exists)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def url(self):
        return f"mqtt://127.0.0.1:{self.port}/house"


def wait(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.01)


class Listener:
    """A subscriber whose session lasts: what the broker has for it comes once it is back."""

    def __init__(self, broker, **options):
        import paho.mqtt.client as paho
        self.messages, self.came, self.subscribed = [], threading.Condition(), threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, "listener", clean_session=False)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda *_: self.client.subscribe("#", qos=1)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self.message
        if options:
            self.client.username_pw_set(**options)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert self.subscribed.wait(PATIENCE)

    def message(self, client, userdata, message):
        with self.came:
            self.messages.append((message.topic, message.payload.decode()))
            self.came.notify_all()

    def wait_for(self, condition):
        """Until condition(messages so far) holds; its value."""
        with self.came:
            assert self.came.wait_for(lambda: condition(self.messages), PATIENCE), self.messages[-20:]
            return condition(self.messages)

    def last(self, topic):
        return dict(self.messages).get(topic)

    def wait_for_value(self, topic, value):
        self.wait_for(lambda messages: any(message == (topic, value) for message in messages)
                      and self.last(topic) == value)

    @property
    def events(self):
        return [json.loads(payload) for topic, payload in list(self.messages) if topic == "house/events"]

    def wait_for_events(self, condition):
        self.wait_for(lambda _: condition(self.events))
        return self.events

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def numbers_of(events, kind="new"):
    """The tracker's numbers of the objects that events of a type are about."""
    return [event["after"]["track"] for event in events if event["type"] == kind]


def once(events):
    """The events without repetitions, as their ids tell; asserts that they came in order."""
    first = {event["id"]: event for event in reversed(events)}
    assert list(dict.fromkeys(event["id"] for event in events)) == sorted(first)
    return [first[key] for key in sorted(first)]
