"""A connection to an MQTT broker with paho-mqtt: address, login, TLS, last will, reconnection."""
from __future__ import annotations

import hashlib
import os
import re
import ssl
import sys
import threading
import time
from typing import Any, Callable, Optional, Tuple, Union
from urllib.parse import unquote, urlsplit

from results.console import say
from vision.errors import InputError
from vision.packages import pip_install

MAX_IN_FLIGHT = 100  # messages that the broker has not acknowledged
# The program notices a hung broker after two keep-alive intervals. The broker notices a dead
# program after one and a half.
KEEPALIVE_SECONDS = 15

Payload = Union[str, bytes]  # bytes: a JPEG


def parse_url(url: str) -> Tuple[str, int, bool, str]:
    """Parse mqtt://HOST[:PORT][/PREFIX] or mqtts://... for TLS.

    Returns host, port, whether to use TLS, and the prefix of all topics. Raises InputError; its
    text does not repeat a password in the URL.
    """
    if "@" in url:
        raise InputError("--mqtt: the URL must not contain a user or password, because every user "
                         "of this machine can see it in `ps`. Set the environment variables "
                         "RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD.")
    try:
        parts = urlsplit(url)
        host, port, tls = parts.hostname, parts.port, parts.scheme == "mqtts"
        (host or "").encode("idna")
    except ValueError:  # or its subclass UnicodeError
        host = None
    if not host or port == 0 or parts.scheme not in ("mqtt", "mqtts") or "?" in url or "#" in url:
        raise InputError(f"--mqtt {url}: invalid URL; write mqtt://HOST:1883/PREFIX, or mqtts:// "
                         "for TLS.")
    prefix = unquote(parts.path).strip("/") or "rknnpool"
    if re.search(r"[+#\0-\x1f\ufffd]", prefix) or prefix.startswith("$"):
        raise InputError(f"--mqtt {url}: the topic prefix must not start with $ or contain + or "
                         "#.")
    return host, port or (8883 if tls else 1883), tls, prefix


def to_bytes(payload: Payload) -> bytes:
    """What is sent for a payload."""
    return payload if isinstance(payload, bytes) else payload.encode("utf-8", "replace")


def new_client(program: str, tls: bool) -> Any:
    """Return a paho Client, with the login from the environment. program: an id that no other
    client of the broker has. Raises InputError."""
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        raise InputError("--mqtt needs the package paho-mqtt, version 2 or later: "
                         f"{pip_install('paho-mqtt>=2')}") from None
    client_id = f"rknnpool-{hashlib.sha256(program.encode()).hexdigest()[:12]}"
    client = Client(CallbackAPIVersion.VERSION2, client_id)
    user = os.environ.get("RKNNPOOL_MQTT_USER")
    password = os.environ.get("RKNNPOOL_MQTT_PASSWORD")
    if password and not user:
        raise InputError("--mqtt: RKNNPOOL_MQTT_PASSWORD is set, but RKNNPOOL_MQTT_USER is not.")
    if user:
        client.username_pw_set(user, password)
    if tls:
        client.tls_set_context(ssl.create_default_context())  # SSL_CERT_FILE names a private CA
    client.max_inflight_messages_set(MAX_IN_FLIGHT)
    client.reconnect_delay_set(1, 30)
    return client


class Connection:
    """A connection to a broker. paho's thread makes it, and makes it again when it is lost.

    url, program: as parse_url() and new_client() describe; available: the topic on which the broker
    publishes "offline" if the program dies. on_connect() is called after every connection, and
    on_message(topic, text) for every message. All methods run in the caller's thread: paho's
    thread only calls call_soon(function, *arguments), which has the caller's thread call it.
    """

    def __init__(self, url: str, program: str, available: str, call_soon: Callable[..., None],
                 on_connect: Callable[[], None], on_message: Callable[[str, str], None]):
        self.url, self.on_connect = url, on_connect
        self.connected = False
        self.in_flight = 0  # messages that the broker has not acknowledged
        self.away_since: Optional[float] = None
        host, port, tls, _ = parse_url(url)
        client = self.client = new_client(program, tls)
        client.will_set(available, "offline", qos=1, retain=True)
        client.on_connect = lambda client, userdata, flags, reason, properties: (
            call_soon(self._connected, reason))
        client.on_connect_fail = lambda *_: (  # called inside paho's exception handler
            call_soon(self._lost, f"cannot connect ({sys.exc_info()[1]})"))
        client.on_disconnect = lambda *_: call_soon(self._lost, "connection lost")
        client.on_publish = lambda *_: call_soon(self._acknowledged)
        client.on_message = lambda client, userdata, message: (
            call_soon(on_message, message.topic, message.payload.decode("utf-8", "replace")))
        client.connect_async(host, port, keepalive=KEEPALIVE_SECONDS)
        client.loop_start()

    @property
    def has_room(self) -> bool:
        """Whether a message may be published now."""
        return self.connected and self.in_flight < MAX_IN_FLIGHT

    def publish(self, topic: str, payload: Payload, retain: bool = False) -> None:
        """Publish a message. What was not acknowledged is repeated after the next connection."""
        self.in_flight += 1
        # QoS 1, because paho would queue messages of QoS 0 without limit for a hung broker.
        self.client.publish(topic, to_bytes(payload), qos=1, retain=retain)

    def subscribe(self, *topics: str) -> None:
        """Have the messages of these topics passed to on_message()."""
        self.client.subscribe([(topic, 1) for topic in topics])

    def report(self, text: str) -> None:
        """Print a message about this broker."""
        say(f"{self.url}: {text}", sys.stderr)

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        # loop_stop() may wait for a TLS handshake.
        stopping = threading.Thread(target=self.client.loop_stop, daemon=True)
        stopping.start()
        stopping.join(2)

    def _acknowledged(self) -> None:
        self.in_flight -= 1

    def _connected(self, reason: Any) -> None:
        if reason.is_failure:
            login = reason.value in (134, 135)  # bad user name or password, not authorized
            hint = ". Check RKNNPOOL_MQTT_USER and RKNNPOOL_MQTT_PASSWORD" if login else ""
            self._lost(f"the broker refused the connection ({str(reason).lower()}){hint}")
            return
        self.connected = True
        if self.away_since is not None:
            seconds = time.perf_counter() - self.away_since
            self.report(f"connected again after {seconds:.0f} s.")
            self.away_since = None
        self.on_connect()

    def _lost(self, what: str) -> None:
        self.connected = False
        if self.away_since is None:
            self.away_since = time.perf_counter()
            self.report(f"{what}; retrying.")
