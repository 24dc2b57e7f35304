"""Why a URL did not open, which OpenCV does not tell: a small request of our own asks the host.

    refusal("rtsp://192.168.1.20/live")  # "asks for a login, ...", or None where a later attempt may succeed
"""
import hashlib
import http.client
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from typing import Dict, Optional, Tuple
from urllib.parse import unquote, urlsplit, urlunsplit

SECONDS = 3  # for the host to answer
SENTENCES = {
    400: "the host refuses the address as malformed (400)",
    403: "the host forbids it (403)",
    404: "the host answers, but has nothing at this address (404)",
    410: "the host answers, but has nothing at this address any more (410)",
}
LATER = (408, 421, 425, 429)  # answers to which a later attempt may get another


def refusal(url: str) -> Optional[str]:
    """What the host says to a URL (http, https, rtsp, rtsps) that makes every further attempt useless: the end of a
    sentence. None where it says nothing of that kind, or nothing at all. Takes a few seconds at most."""
    parts = urlsplit(url)
    name, password = unquote(parts.username or ""), unquote(parts.password or "")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    bare = urlunsplit(parts._replace(netloc=host + (f":{parts.port}" if parts.port else "")))
    ask = {"http": ask_http, "https": ask_http, "rtsp": ask_rtsp, "rtsps": ask_rtsp}.get(parts.scheme.lower())
    try:
        code, kind = ask(bare, name, password) if ask else (0, "")
    except (OSError, http.client.HTTPException, ValueError):
        return None  # no answer, or none that can be read
    if code in (401, 407):
        return f"the host refuses this user name or password ({code})" if name else \
            f"the host asks for a login ({code}): {parts.scheme}://USER:PASSWORD@{parts.hostname}/..."
    if 400 <= code < 500 and code not in LATER:
        return SENTENCES.get(code, f"the host refuses it ({code})")
    if 200 <= code < 300 and re.match(r"text/(?!plain)|application/(json|pdf|zip)", kind):
        return f"the host answers, but with {kind.split(';')[0]}, which is no video"
    return None


def answers(url: str) -> bool:
    """Whether a URL's host takes connections."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443, "rtsps": 322}.get(parts.scheme.lower(), 554)
    try:
        socket.create_connection((parts.hostname, port), SECONDS).close()
        return True
    except OSError:
        return False


def ask_http(url: str, name: str, password: str) -> Tuple[int, str]:
    """Status and Content-Type of a GET, of which nothing but the headers is read."""
    logins = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # as FFmpeg does: cameras sign for themselves
    handlers = [urllib.request.HTTPSHandler(context=context)]
    if name:
        logins.add_password(None, url, name, password)
        handlers += [urllib.request.HTTPBasicAuthHandler(logins), urllib.request.HTTPDigestAuthHandler(logins)]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=SECONDS) as answer:
            return answer.status, answer.headers.get("Content-Type", "")
    except urllib.error.HTTPError as error:
        if error.fp is not None:  # the digest handler's own refusal has no answer to close
            error.close()
        return error.code, ""


def ask_rtsp(url: str, name: str, password: str) -> Tuple[int, str]:
    """Status of a DESCRIBE, with the login in the way that the host asks for (RFC 2326, RFC 2617)."""
    code, headers = describe(url)
    if code == 401 and name:
        code, headers = describe(url, authorization(headers.get("www-authenticate", ""), url, name, password))
    return code, headers.get("content-type", "")


def describe(url: str, login: str = "") -> Tuple[int, Dict[str, str]]:
    parts = urlsplit(url)
    secure = parts.scheme.lower() == "rtsps"
    with socket.create_connection((parts.hostname, parts.port or (322 if secure else 554)), SECONDS) as connection:
        if secure:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection, server_hostname=parts.hostname)
        login = f"Authorization: {login}\r\n" if login else ""
        request = f"DESCRIBE {url} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n{login}\r\n"
        connection.sendall(request.encode("utf-8"))
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < 1 << 16:
            more = connection.recv(4096)
            if not more:
                break
            answer += more
    status, *lines = answer.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    found = re.match(r"RTSP/\d\.\d (\d{3})", status)
    if not found:
        raise ValueError("not an answer of RTSP")
    headers: Dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        # Of several ways to log in, Digest is the one that FFmpeg takes, too.
        if key.lower() != "www-authenticate" or "digest" not in headers.get("www-authenticate", "").lower():
            headers[key.strip().lower()] = value.strip()
    return int(found.group(1)), headers


def authorization(challenge: str, url: str, name: str, password: str) -> str:
    """The Authorization header's value that answers a WWW-Authenticate header's."""
    if challenge.lower().startswith("basic"):
        import base64
        return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
    fields = {key.lower(): quoted or plain
              for key, quoted, plain in re.findall(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))', challenge)}

    def digest(*words):
        kind = hashlib.sha256 if fields.get("algorithm", "").upper().startswith("SHA-256") else hashlib.md5
        return kind(":".join(words).encode()).hexdigest()

    realm, nonce, own = fields.get("realm", ""), fields.get("nonce", ""), os.urandom(8).hex()
    secret, what = digest(name, realm, password), digest("DESCRIBE", url)
    with_quality = "auth" in fields.get("qop", "").split(",")
    words = (nonce, "00000001", own, "auth") if with_quality else (nonce,)
    header = (f'Digest username="{name}", realm="{realm}", nonce="{nonce}", uri="{url}", '
              f'response="{digest(secret, *words, what)}"')
    if with_quality:
        header += f', qop=auth, nc=00000001, cnonce="{own}"'
    if "algorithm" in fields:
        header += f', algorithm={fields["algorithm"]}'
    return header + (f', opaque="{fields["opaque"]}"' if "opaque" in fields else "")
