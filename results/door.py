"""Who may come in to the page, and how long that may take: address, password, names of this machine, limits.

web.py's own part of security; aiohttp reads the requests.
"""
import asyncio
import base64
import binascii
import hmac
import ipaddress
import os
import re
import secrets
import socket

from rknnmodel import InputError

MOST_CONNECTIONS = 256
HEAD_SECONDS = 10      # for the head of a request to come
ANSWER_SECONDS = 30    # for an answer to be taken, but for pictures and events without an end
BURST, STEADY = 65536, 8192  # bytes that a client may send at once, and in a second


def parse(address: str):
    """(host, port) of [HOST:]PORT, without a host 127.0.0.1. Raises InputError."""
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]*):)?([0-9]{1,5})", str(address))
    if not found or int(found[2]) > 65535:
        raise InputError(f"--web {address}: give a port, as in 8000, or a host and a port, as in 0.0.0.0:8000.")
    return (found[1] or "127.0.0.1").strip("[]"), int(found[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there. Raises InputError for a name that nobody knows."""
    try:
        addresses = {entry[4][0].split("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise InputError(f"--web {host}: this machine has no address of that name.") from None
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


class Door:
    """Judges requests. host: what the server listens on. Raises InputError where that wants a password and none is
    set in RKNNPOOL_WEB_PASSWORD."""

    def __init__(self, host):
        self.local, self.password = is_loopback(host), os.environ.get("RKNNPOOL_WEB_PASSWORD", "")
        if not self.local and not self.password:
            raise InputError(f"--web: everyone who reaches {host} could look; set a password, RKNNPOOL_WEB_PASSWORD in "
                             f"the environment, or leave out the host.")
        self.hosts = {"localhost", host.lower()}
        if not self.local:
            self.hosts |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self.token = secrets.token_hex(16)  # for a cookie: not every browser gives a WebSocket the password
        self.cookie = "rknnpool"
        self.guards = {}  # transport: Guard, of every connection

    def refusal(self, request):
        """(status, sentence) where a request is not answered, whoever asks, else None. Guards against other sites:
        their names for this machine (DNS rebinding), and their scripts' WebSockets."""
        if request.method not in ("GET", "HEAD"):
            return 405, "Only GET."
        hosts = request.headers.getall("Host", [])
        named = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:[0-9]+)?", hosts[0]) if len(hosts) == 1 else None
        name = named[1].strip("[]").lower().rstrip(".") if named else ""
        if name not in self.hosts and not self.is_own_address(name):
            return 421, (f"That is no name of this server. It is {', '.join(sorted(self.hosts))}; --web NAME:PORT adds "
                         f"another.")
        origin = request.headers.get("Origin")
        if origin is not None and origin.split("://")[-1].lower() != hosts[0].lower():
            return 403, "Pages of other sites may not look."
        return None

    def is_own_address(self, name):
        """Whether a host's name is an address, which nobody can rebind; of a loopback server, one of loopback."""
        try:
            return ipaddress.ip_address(name).is_loopback or not self.local
        except ValueError:
            return False

    def allows(self, request) -> bool:
        """Whether the request has the password, of any user, or the cookie that stands for it."""
        if not self.password:
            return True
        cookie = request.cookies.get(self.cookie, "").encode("utf-8", "replace")
        if hmac.compare_digest(cookie, self.token.encode()):
            return True
        kind, _, text = request.headers.get("Authorization", "").partition(" ")
        try:
            given = base64.b64decode(text, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        return hmac.compare_digest(given, self.password.encode("utf-8", "surrogateescape"))


class Guard(asyncio.Protocol):
    """Stands before the protocol of one connection: bounds how many there are, how long a request takes, and how much
    a client sends."""

    def __init__(self, door, inner, loop):
        self.door, self.inner, self.loop, self.timer, self.full = door, inner, loop, None, False
        self.budget, self.since = BURST, loop.time()

    def limit(self, seconds):
        """Cut the connection in so many seconds; None: do not."""
        if self.timer:
            self.timer.cancel()
        self.timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def connection_made(self, transport):
        self.transport = transport
        self.full = len(self.door.guards) >= MOST_CONNECTIONS
        if self.full:
            transport.abort()
            return
        self.door.guards[transport] = self
        self.limit(HEAD_SECONDS)
        self.inner.connection_made(transport)

    def data_received(self, data):
        now = self.loop.time()
        self.budget = min(BURST, self.budget + (now - self.since) * STEADY) - len(data)
        self.since = now
        if self.budget < 0:
            self.transport.abort()
        else:
            self.inner.data_received(data)

    def connection_lost(self, error):
        if not self.full:
            self.limit(None)
            self.door.guards.pop(self.transport, None)
            self.inner.connection_lost(error)

    def eof_received(self):
        return None if self.full else self.inner.eof_received()

    def pause_writing(self):
        self.inner.pause_writing()

    def resume_writing(self):
        self.inner.resume_writing()
