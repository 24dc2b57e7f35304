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
from typing import Any, Callable
from urllib.parse import quote, unquote, urlsplit, urlunsplit

TIMEOUT = 3  # seconds to wait for the host's answer
SENTENCES = {
    400: "the host refuses the address as malformed (400)",
    403: "the host forbids access (403)",
    404: "the host answers, but has nothing at this address (404)",
    410: "the host answers, but has nothing at this address any more (410)",
}
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
    """TLS without verification, as FFmpeg does it: cameras sign their own certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# ---- HTTP ----

def get(url: str, timeout: float) -> Any:
    """The http.client.HTTPResponse to a GET, with the URL's login in the way that the host asks
    for. Raises OSError (HTTPError if the host refuses), HTTPException and ValueError."""
    bare, name, password = split_login(url)
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=unverified())]
    if name:
        logins = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        # for all paths of this host, to which it may redirect
        logins.add_password(None, urlunsplit(urlsplit(bare)._replace(path="/", query="")), name,
                            password)
        handlers += [urllib.request.HTTPBasicAuthHandler(logins),
                     urllib.request.HTTPDigestAuthHandler(logins)]
    # Some hosts forbid urllib's own name.
    request = urllib.request.Request(quote(bare, safe=string.punctuation),
                                     headers={"User-Agent": "Mozilla/5.0 (rknnpool)"})
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)


def close_error(error: urllib.error.HTTPError) -> None:
    if error.fp is not None:  # None if the digest handler itself gives up
        error.close()


def ask_http(url: str) -> tuple[int, str]:
    """Status code and Content-Type that a GET returns. Reads only the headers."""
    try:
        with get(url, TIMEOUT) as answer:
            return answer.status, answer.headers.get("Content-Type", "")
    except urllib.error.HTTPError as error:
        close_error(error)
        return error.code, ""


# ---- RTSP ----

def ask_rtsp(url: str) -> tuple[int, str]:
    """Status code and Content-Type that a DESCRIBE returns (RFC 2326), with the login in the way
    that the host asks for (RFC 2617)."""
    url, name, password = split_login(url)
    code, headers = describe(url)
    if code == 401 and name:
        challenge = headers.get("www-authenticate", "")
        code, headers = describe(url, authorization(challenge, url, name, password))
    return code, headers.get("content-type", "")


def describe(url: str, login: str = "") -> tuple[int, dict[str, str]]:
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
    status, *lines = answer.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    found = re.match(r"RTSP/\d\.\d (\d{3})", status)
    if not found:
        raise ValueError("not an RTSP answer")
    headers: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        # If the host offers several ways to log in, take Digest, as FFmpeg does.
        if (key.lower() != "www-authenticate"
                or "digest" not in headers.get("www-authenticate", "").lower()):
            headers[key.strip().lower()] = value.strip()
    return int(found.group(1)), headers


def authorization(challenge: str, url: str, name: str, password: str) -> str:
    """The Authorization header that answers a WWW-Authenticate header."""
    if challenge.lower().startswith("basic"):
        return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    fields = {key.lower(): quoted or plain for key, quoted, plain in
              re.findall(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))', challenge)}
    algorithm = fields.get("algorithm", "")

    def digest(*words: str) -> str:
        kind = hashlib.sha256 if algorithm.upper().startswith("SHA-256") else hashlib.md5
        return kind(":".join(words).encode()).hexdigest()

    realm, nonce, own = fields.get("realm", ""), fields.get("nonce", ""), os.urandom(8).hex()
    secret, what = digest(name, realm, password), digest("DESCRIBE", url)
    with_quality = "auth" in fields.get("qop", "").split(",")
    words = (nonce, "00000001", own, "auth") if with_quality else (nonce,)
    header = (f'Digest username="{name}", realm="{realm}", nonce="{nonce}", uri="{url}", '
              f'response="{digest(secret, *words, what)}"')
    if with_quality:
        header += f', qop=auth, nc=00000001, cnonce="{own}"'
    if algorithm:
        header += f", algorithm={algorithm}"
    return header + (f', opaque="{fields["opaque"]}"' if "opaque" in fields else "")
