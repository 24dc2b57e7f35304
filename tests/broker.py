"""An MQTT broker for the tests (mosquitto), and a subscriber."""

import json
import shutil
import signal
import socket
import subprocess
import threading

from fakes import wait_until

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
WAIT_SECONDS = 60  # seconds to wait for a message


class Broker:
    """A mosquitto on a free port, which keeps sessions and retained messages after kill -9."""

    def __init__(self, folder, *settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.config = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            *settings,
            "persistence true",
            f"persistence_location {folder}/",
            "user root",
            "max_queued_messages 0",
            "max_inflight_messages 0",
        ]
        if not any(line.startswith("allow_anonymous") for line in settings):
            lines.append("allow_anonymous true")
        self.config.write_text("\n".join(lines) + "\n")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stderr:
            if "running" in line:
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def save(self):
        """Let the broker write sessions and retained messages to the disk, and wait for it."""
        path = self.config.parent / "mosquitto.db"
        path.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        wait_until(path.exists)

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def retained(self):
        """What a new subscriber gets: {topic: payload}."""
        listener = Listener(self, "late")
        listener.client.publish("end", "of the retained messages", qos=1)
        listener.wait_for(lambda messages: messages[-1:] and messages[-1][0] == "end")
        listener.close()
        return dict(listener.messages[:-1])

    @property
    def url(self):
        return f"mqtt://127.0.0.1:{self.port}/house"


class Listener:
    """A subscriber with a persistent session: after a reconnection it gets what it missed."""

    def __init__(self, broker, name="listener", **options):
        import paho.mqtt.client as paho

        self.messages, self.events = [], []
        self.latest = {}  # the last payload by topic
        self.came, self.subscribed = threading.Condition(), threading.Event()
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, name, clean_session=name == "late"
        )
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda *_: self.client.subscribe("#", qos=1)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self.message
        if options:
            self.client.username_pw_set(**options)
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        assert self.subscribed.wait(WAIT_SECONDS)

    def message(self, client, userdata, message):
        with self.came:
            payload = message.payload.decode("utf-8", "surrogateescape")  # may be a JPEG
            self.messages.append((message.topic, payload))
            self.latest[message.topic] = payload
            if message.topic == "house/events":
                self.events.append(json.loads(payload))
            self.came.notify_all()

    def wait_for(self, condition):
        """Wait until condition(messages so far) is true. Returns its value."""
        with self.came:
            assert self.came.wait_for(lambda: condition(self.messages), WAIT_SECONDS), (
                self.messages[-20:]
            )
            return condition(self.messages)

    def last(self, topic):
        return self.latest.get(topic)

    def wait_for_value(self, topic, value):
        self.wait_for(lambda _: self.last(topic) == value)

    def wait_for_availability(self, value):
        """Wait for this value of the only program."""
        self.wait_for(
            lambda _: (
                [text for topic, text in self.latest.items() if "house/available/" in topic]
                == [value]
            )
        )

    def wait_for_events(self, condition):
        self.wait_for(lambda _: condition(self.events))
        return list(self.events)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


def numbers_of(events, kind="new"):
    """Return the identities of the objects in the events of this type."""
    return [event["after"]["track"] for event in events if event["type"] == kind]


def once(events):
    """Return the events without repeated ids. Asserts that they came in order."""
    first = {event["id"]: event for event in reversed(events)}
    assert list(dict.fromkeys(event["id"] for event in events)) == sorted(first)
    return [first[key] for key in sorted(first)]
