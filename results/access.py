"""Access control of the web page: address, password, allowed host names, limits of connections.

aiohttp parses the requests. This file decides which of them are answered.
"""
from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import os
import re
import secrets
import socket
from typing import Any, Dict, Iterable, Optional, Tuple

from vision.errors import InputError

MAX_CONNECTIONS = 256
REQUEST_SECONDS = 10     # for a client to send the head of its request
SETUP = "/setup.json"    # the only address that accepts POST
RESPONSE_SECONDS = 30    # for a client to receive a response; streams have no limit
BURST_BYTES, BYTES_PER_SECOND = 65536, 8192  # that a client may send at once, and on average


def parse_address(address: Any) -> Tuple[str, int]:
    """Parse [HOST:]PORT. Returns host and port; the host is 127.0.0.1 by default.

    Raises InputError.
    """
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]*):)?([0-9]{1,5})", str(address))
    if not found or int(found[2]) > 65535:
        raise InputError(f"--web {address}: must be a port, for example 8000, or a host and a "
                         "port, for example 0.0.0.0:8000.")
    return (found[1] or "127.0.0.1").strip("[]"), int(found[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to this host. Raises InputError if it is unknown."""
    try:
        addresses = {str(entry[4][0]).split("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise InputError(f"--web {host}: unknown host name.") from None
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def host_name(host: str) -> Optional[str]:
    """The name in HOST[:PORT], in lower case. None if this is no host."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:[0-9]+)?", host)
    return found[1].strip("[]").lower().rstrip(".") if found else None


def parse_name(name: str) -> str:
    """A host name of --web-name as browsers send it. Raises InputError."""
    try:
        host = host_name(name) or str(ipaddress.IPv6Address(name))
        return host.encode("idna").decode()
    except (ValueError, UnicodeError):
        raise InputError(f"--web-name {name}: must be a host name, for example "
                         "cam.example.com.") from None


class Access:
    """Decides which requests are answered.

    host: what the server listens on; names: further names of this server, those of proxies.

    Raises InputError if other machines can connect and no password is set in
    RKNNPOOL_WEB_PASSWORD, and for an invalid name.
    """

    def __init__(self, host: str, names: Iterable[str] = ()):
        self.local = is_loopback(host)
        self.password = os.environ.get("RKNNPOOL_WEB_PASSWORD", "")
        if not self.local and not self.password:
            raise InputError(f"--web: other machines can connect to {host}, and no password is "
                             "set. Set the environment variable RKNNPOOL_WEB_PASSWORD, or leave "
                             "out the host.")
        self.hosts = {"localhost", host.lower()}
        if not self.local:
            hostname = socket.gethostname().lower()
            self.hosts |= {hostname, f"{hostname}.local"}
        self.names = {parse_name(name) for name in names}
        # Not every browser sends the password with a WebSocket request, but all send cookies.
        self.token = secrets.token_hex(16)
        self.cookie = "rknnpool"
        self.connections: Dict[Any, Connection] = {}  # by transport

    def refusal(self, request: Any) -> Optional[Tuple[int, str]]:
        """Return (status, sentence) for a request that nobody may make, else None.

        This protects against other web sites: against their host names for this machine's
        address (DNS rebinding), and against WebSockets and POST requests of their scripts.
        """
        changes = request.method == "POST" and request.path == SETUP
        if request.method not in ("GET", "HEAD") and not changes:
            return 405, "Only GET and HEAD are allowed here."
        hosts = request.headers.getall("Host", [])
        name = host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            return 421, "The request must name one host."
        known = name in self.hosts | self.names or self.is_own_address(name)
        # Scripts of another site do not have the password, whatever name they use.
        if not known and not (self.password and self.allows(request)):
            return 421, (f"This page is not available under the name {name}. If this is a name of "
                         f"this machine or of its proxy, start main.py with --web-name {name}")
        origin = request.headers.get("Origin")
        if origin is None and changes:
            return 403, "A request that changes something must have the header Origin."
        # A proxy that replaces Host adds X-Forwarded-Host. Pages of other sites cannot set it.
        forwarded = request.headers.get("X-Forwarded-Host", "").partition(",")[0].strip()
        if origin is not None and not any(self.is_own_page(origin, host)
                                          for host in (hosts[0], forwarded) if host):
            other = host_name(origin.partition("://")[2])
            hint = f" If {other} is the name of a proxy, start main.py with --web-name {other}"
            return 403, f"Requests from pages of other sites are refused.{hint if other else ''}"
        return None

    def is_own_page(self, origin: str, host: str) -> bool:
        """Whether the header Origin names this server's page: the host of the request, or a name of
        the proxy, which may use another port."""
        scheme, _, page = origin.lower().partition("://")
        if host_name(page) in self.names:
            return True
        port = {"http": ":80", "https": ":443"}.get(scheme, "")
        return page in (host.lower(), re.sub(f"{port}$", "", host.lower()))

    def is_own_address(self, name: str) -> bool:
        """Whether a host name is an IP address, which DNS rebinding cannot forge.

        For a server on a loopback address, only loopback addresses count.
        """
        try:
            return ipaddress.ip_address(name).is_loopback or not self.local
        except ValueError:
            return False

    def allows(self, request: Any) -> bool:
        """Whether the request has the password (with any user name), or the cookie."""
        if not self.password:
            return True
        cookie = request.cookies.get(self.cookie, "").encode("utf-8", "replace")
        if hmac.compare_digest(cookie, self.token.encode()):
            return True
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        try:
            login = base64.b64decode(text, validate=True) if scheme.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            login = b""
        expected = self.password.encode("utf-8", "surrogateescape")
        return hmac.compare_digest(login.partition(b":")[2], expected)


class Connection(asyncio.Protocol):
    """Limits one connection: its number, its time for a request, and the bytes that it sends.

    inner: aiohttp's protocol, which gets all calls.
    """

    def __init__(self, access: Access, inner: Any, loop: asyncio.AbstractEventLoop):
        self.access, self.inner, self.loop = access, inner, loop
        self.timer: Optional[asyncio.TimerHandle] = None
        self.refused = False
        self.allowance, self.last_received = float(BURST_BYTES), loop.time()

    def set_timeout(self, seconds: Optional[float]) -> None:
        """Abort the connection after this time. None: never."""
        if self.timer:
            self.timer.cancel()
        self.timer = None
        if seconds is not None:
            self.timer = self.loop.call_later(seconds, self.transport.abort)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.refused = len(self.access.connections) >= MAX_CONNECTIONS
        if self.refused:
            transport.abort()
            return
        self.access.connections[transport] = self
        self.set_timeout(REQUEST_SECONDS)
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        allowance = self.allowance + (now - self.last_received) * BYTES_PER_SECOND
        self.allowance = min(BURST_BYTES, allowance) - len(data)
        self.last_received = now
        if self.allowance < 0:
            self.transport.abort()
        else:
            self.inner.data_received(data)

    def connection_lost(self, error: Optional[Exception]) -> None:
        if not self.refused:
            self.set_timeout(None)
            self.access.connections.pop(self.transport, None)
            self.inner.connection_lost(error)

    def eof_received(self) -> Optional[bool]:
        return None if self.refused else self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()
