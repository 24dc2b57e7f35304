"""Asks a URL's host directly what it sends, or why it refuses, which OpenCV does not say.

    get("http://192.168.1.20/video", 5)  # the answer, to read from
    refusal("rtsp://192.168.1.20/live")  # "the host asks for a login ...", or None
"""
from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import socket
import ssl
import string
import urllib.error
import urllib.request
from email import message_from_bytes
from email.message import Message
from typing import Any, Callable
from urllib.parse import quote, unquote, urlsplit, urlunsplit

TIMEOUT = 3  # seconds to wait for the host's answer
SENTENCES = {
    400: "the host refuses the address as malformed (400)",
    403: "the host forbids access (403)",
    404: "the host answers, but has nothing at this address (404)",
    410: "the host answers, but has nothing at this address any more (410)",
}
MAX_LOGINS = 5  # of one request: a host may redirect to another address that asks for a login
DIGESTS = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}
TEMPORARY = (408, 421, 425, 429)  # after these status codes another attempt may succeed


def refusal(url: str) -> str | None:
    """Why it is useless to try this URL again, according to its host, without a full stop.

    url: http, https, rtsp or rtsps. None if another attempt may succeed, or if the host does not
    say. Takes a few seconds at most.
    """
    parts = urlsplit(url)
    asking: dict[str, Callable[[str], tuple[int, str]]] = {
        "http": ask_http, "https": ask_http, "rtsp": ask_rtsp, "rtsps": ask_rtsp}
    ask = asking.get(parts.scheme.lower())
    try:
        code, kind = ask(url) if ask else (0, "")
    except (OSError, http.client.HTTPException, ValueError):
        return None  # no answer, or one that cannot be parsed
    if code in (401, 407) and parts.username:
        return f"the host refuses this user name or password ({code})"
    if code in (401, 407):
        return (f"the host asks for a login ({code}): "
                f"{parts.scheme}://USER:PASSWORD@{parts.hostname}/...")
    if 400 <= code < 500 and code not in TEMPORARY:
        return SENTENCES.get(code, f"the host refuses it ({code})")
    if 200 <= code < 300 and re.match(r"text/(?!plain)|application/(json|pdf|zip)", kind):
        return f"the host answers with {kind.split(';')[0]}, which is not a video"
    return None


def answers(url: str) -> bool:
    """Whether a URL's host accepts connections."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443, "rtsps": 322}.get(parts.scheme.lower(), 554)
    try:
        socket.create_connection((parts.hostname or "", parts.port or default), TIMEOUT).close()
        return True
    except (OSError, ValueError):
        return False


def split_login(url: str) -> tuple[str, str, str]:
    """A URL without its login, the user name and the password. Raises ValueError."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    bare = urlunsplit(parts._replace(netloc=host + (f":{parts.port}" if parts.port else "")))
    return bare, unquote(parts.username or ""), unquote(parts.password or "")


def unverified() -> ssl.SSLContext:
    """TLS without verification, as FFmpeg does it: cameras sign their own certificates, and old
    cameras know TLS 1.0 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


# ---- HTTP ----

def get(url: str, timeout: float) -> Any:
    """The http.client.HTTPResponse to a GET, with the URL's login in the way that the host asks
    for. Raises OSError (HTTPError if the host refuses), HTTPException and ValueError."""
    bare, name, password = split_login(url)
    address, login = quote(bare, safe=string.punctuation), ""
    for _ in range(MAX_LOGINS):
        try:
            return fetch(address, timeout, login)
        except urllib.error.HTTPError as error:
            parts = urlsplit(error.url)  # where it has redirected to: another host gets no login
            refused = login and error.url == address
            if error.code != 401 or refused or parts.hostname != urlsplit(bare).hostname:
                raise
            path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
            login = authorization(error.headers.get_all("WWW-Authenticate", []), "GET", path, name,
                                  password)
            if not login:
                raise
            address = error.url
            error.close()
    raise ValueError("the host asks for the login again and again")


def fetch(address: str, timeout: float, login: str) -> Any:
    """The answer to one GET, and to those to which the host redirects. login: value of the first
    one's Authorization header."""
    # Some hosts forbid urllib's own name.
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (rknnpool)"})
    if login:
        request.add_unredirected_header("Authorization", login)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=unverified()))
    return opener.open(request, timeout=timeout)


def ask_http(url: str) -> tuple[int, str]:
    """Status code and Content-Type that a GET returns. Reads only the headers."""
    try:
        with get(url, TIMEOUT) as answer:
            return answer.status, answer.headers.get("Content-Type", "")
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, ""


# ---- RTSP ----

def ask_rtsp(url: str) -> tuple[int, str]:
    """Status code and Content-Type that a DESCRIBE returns (RFC 2326), with the login in the way
    that the host asks for."""
    url, name, password = split_login(url)
    code, headers = describe(url)
    login = authorization(headers.get_all("WWW-Authenticate", []), "DESCRIBE", url, name, password)
    if code == 401 and login:
        code, headers = describe(url, login)
    return code, headers.get("Content-Type", "")


def describe(url: str, login: str = "") -> tuple[int, Message]:
    """Status code and headers that a DESCRIBE returns. login: value of its Authorization header."""
    parts = urlsplit(url)
    secure = parts.scheme.lower() == "rtsps"
    address = parts.hostname or "", parts.port or (322 if secure else 554)
    with socket.create_connection(address, TIMEOUT) as connection:
        if secure:
            connection = unverified().wrap_socket(connection, server_hostname=parts.hostname)
        login = f"Authorization: {login}\r\n" if login else ""
        connection.sendall(f"DESCRIBE {url} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n"
                           f"{login}\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < 1 << 16:
            more = connection.recv(4096)
            if not more:
                break
            answer += more
    status, _, headers = answer.partition(b"\r\n")
    found = re.match(rb"RTSP/\d\.\d (\d{3})", status)
    if not found:
        raise ValueError("not an RTSP answer")
    return int(found.group(1)), message_from_bytes(headers)


# ---- logins of both ----

def authorization(challenges: list[str], method: str, uri: str, name: str, password: str) -> str:
    """The Authorization header that answers the WWW-Authenticate headers of a host (RFC 7616, RFC
    7617): Digest if it offers both. Empty if it offers neither, or without a name."""
    if not name:
        return ""
    # A host may offer several ways to log in, in one header or in several.
    offers = re.split(r",\s*(?=(?:Basic|Digest)\b)", ", ".join(challenges), flags=re.IGNORECASE)
    for challenge in offers:
        scheme, _, text = challenge.strip().partition(" ")
        fields = {key.lower(): quoted or plain for key, quoted, plain in
                  re.findall(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))', text)}
        algorithm = fields.get("algorithm", "MD5").upper()
        if scheme.lower() == "digest" and algorithm.replace("-SESS", "") in DIGESTS:
            return digest_login(fields, method, uri, name, password)
    if not any(challenge.strip().lower().startswith("basic") for challenge in offers):
        return ""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def digest_login(fields: dict[str, str], method: str, uri: str, name: str, password: str) -> str:
    """The Authorization header for a Digest challenge with these fields."""
    algorithm = fields.get("algorithm", "")

    def digest(*words: str) -> str:
        kind = DIGESTS[algorithm.upper().replace("-SESS", "") or "MD5"]
        return kind(":".join(words).encode()).hexdigest()

    realm, nonce, own = fields.get("realm", ""), fields.get("nonce", ""), os.urandom(8).hex()
    secret, what = digest(name, realm, password), digest(method, uri)
    if algorithm.upper().endswith("-SESS"):
        secret = digest(secret, nonce, own)
    with_quality = "auth" in re.split(r"[,\s]+", fields.get("qop", ""))
    words = (nonce, "00000001", own, "auth") if with_quality else (nonce,)
    header = (f'Digest username="{name}", realm="{realm}", nonce="{nonce}", uri="{uri}", '
              f'response="{digest(secret, *words, what)}"')
    if with_quality:
        header += f', qop=auth, nc=00000001, cnonce="{own}"'
    if algorithm:
        header += f", algorithm={algorithm}"
    return header + (f', opaque="{fields["opaque"]}"' if "opaque" in fields else "")
