"""Several programs on one MQTT broker: the id of each, and which one publishes a stream.

Programs whose streams have the same name and prefix agree on the topic PREFIX/NAME/owner:

    claim ID    a program asks whether it may publish the stream
    owner ID    the answer of the one that publishes it; without an answer the stream is free

Nothing is retained there, so a program that hangs or has ended keeps no stream.
"""
from __future__ import annotations

import errno
import hashlib
import math
import socket
from typing import Optional, Tuple

ANSWER_SECONDS = 1  # how long an owner has to answer
RETRY_SECONDS = 10  # between two claims of a stream that another program publishes


def take_program_id(*parts: str) -> Tuple[str, socket.socket]:
    """An id that stays the same after a restart, and that no other running program has.

    parts: what tells this program from others on this board. Returns the id, and a lock: until it
    is closed, another program with the same parts gets another id.
    """
    # Boards with a copy of one SD card differ by their serial number.
    files = "/etc/machine-id", "/proc/device-tree/serial-number"
    text = "\0".join([socket.gethostname(), *map(_content, files), *parts])
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    program = first = f"{socket.gethostname()}-{digest[:8]}"
    lock, number = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), 1
    while not _bind(lock, program):
        number += 1
        program = f"{first}-{number}"
    return program, lock


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""


def _bind(lock: socket.socket, program: str) -> bool:
    """Bind a lock to an id. False if another program has it."""
    try:
        lock.bind(f"\0rknnpool-mqtt-{program}")  # an abstract name: it is free after kill -9
        return True
    except OSError as error:
        return error.errno != errno.EADDRINUSE  # abstract names exist on Linux only


class Owner:
    """Which program publishes a stream.

    topic: of the stream; program: this program's id. `publisher` is the program that publishes the
    stream, None until it is known.
    """

    def __init__(self, topic: str, program: str):
        self.topic, self.program = f"{topic}/owner", program
        self.publisher: Optional[str] = None
        self.says: Optional[str] = None  # "claim" or "owner"; None while another one publishes
        self.pending = False             # whether to send that
        self.deadline = math.inf         # of the answer to a claim, or else of the next claim

    @property
    def is_own(self) -> bool:
        """Whether this program publishes the stream."""
        return self.says == "owner"

    @property
    def is_taken(self) -> bool:
        """Whether another program publishes it. While it is not known who does, neither is true."""
        return self.publisher not in (None, self.program)

    def ask(self, now: float) -> None:
        """Begin anew, after a connection. A program that had the stream before comes first."""
        if self.is_taken:
            self.says, self.pending, self.deadline = None, False, now + RETRY_SECONDS
        else:
            self.says, self.pending, self.deadline = "claim", True, math.inf

    def step(self, now: float) -> Optional[str]:
        """Take a stream that is free, or claim again one that is taken. Returns the message to
        send, or None."""
        if now >= self.deadline:
            self.pending, self.deadline = True, math.inf
            if self.says == "claim":
                self.says, self.publisher = "owner", self.program
            else:
                self.says = "claim"
        if not self.pending:
            return None
        self.pending = False
        if self.says == "claim":
            self.deadline = now + ANSWER_SECONDS
        return f"{self.says} {self.program}"

    def receive(self, text: str, now: float) -> None:
        """Take a message. An owner wins against a claim; of two claims, or of two owners, the lower
        id wins."""
        kind, _, other = text.partition(" ")
        if self.says is None or kind not in ("claim", "owner") or other == self.program:
            return
        if other < self.program if kind == self.says else kind == "owner":
            self.publisher, self.says, self.pending = other, None, False
            self.deadline = now + RETRY_SECONDS
        else:
            self.pending = True
