"""Several programs on one MQTT broker: the id of each, and which one publishes a stream.

Programs whose streams have the same name and prefix agree on the topic PREFIX/NAME/owner:

    claim ID    a program asks whether it may publish the stream
    owner ID    the answer of the one that publishes it; without an answer the stream is free

Nothing is retained there, so a program that hangs or has ended keeps no stream.
"""
from __future__ import annotations

import errno
import hashlib
import itertools
import math
import socket
from typing import Optional, Tuple

ANSWER_SECONDS = 1  # how long an owner has to answer
RETRY_SECONDS = 10  # between two claims of a stream that another program publishes


def take_program_id(*parts: str) -> Tuple[str, Optional[socket.socket]]:
    """An id that stays the same after a restart, and that no other running program has.

    parts: what tells this program from others on this board. Returns the id, and a lock: until it
    is closed, another program with the same parts gets another id.
    """
    hostname = socket.gethostname()
    # Boards with a copy of one SD card differ by their serial number.
    board = [_content(path) for path in ("/etc/machine-id", "/proc/device-tree/serial-number")]
    text = "\0".join([hostname, *board, *parts])
    first = f"{hostname}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"
    for number in itertools.count(1):
        program = first if number == 1 else f"{first}-{number}"
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0rknnpool-mqtt-{program}")  # an abstract name: it is free after kill -9
            return program, lock
        except OSError as error:
            lock.close()
            if error.errno != errno.EADDRINUSE:  # abstract names exist on Linux only
                return program, None
    raise AssertionError("unreachable")


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""


class Owner:
    """Whether this program publishes a stream.

    topic: of the stream; program: this program's id. `state` is "asking", "own" or "taken" by the
    program `other`. `pending` is the message to send next: call sent() then.
    """

    def __init__(self, topic: str, program: str):
        self.topic, self.program = f"{topic}/owner", program
        self.state, self.other = "asking", ""
        self.pending: Optional[str] = None  # "claim" or "owner"
        self.claimed = False                # a claim was sent and not answered yet
        self.deadline = math.inf            # of the answer to a claim, or else of the next claim

    def ask(self, now: float) -> None:
        """Begin anew, after a connection. A program that had the stream before comes first."""
        self.claimed = False
        if self.state == "taken":
            self.pending, self.deadline = None, now + RETRY_SECONDS
        else:
            self.state, self.pending, self.deadline = "asking", "claim", math.inf

    def sent(self, now: float) -> None:
        """Note that `pending` was sent."""
        if self.pending == "claim":
            self.claimed, self.deadline = True, now + ANSWER_SECONDS
        self.pending = None

    def step(self, now: float) -> None:
        """Take a stream that is free, or ask again for one that is taken."""
        if now >= self.deadline:
            self.deadline = math.inf
            if self.claimed:
                self.state, self.claimed, self.pending = "own", False, "owner"
            else:
                self.pending = "claim"

    def receive(self, text: str, now: float) -> None:
        """Take a message of another program. An owner wins against a claim; of two claims, or of
        two owners, the lower id wins."""
        kind, _, other = text.partition(" ")
        asking = self.claimed or self.pending == "claim"
        own = "owner" if self.state == "own" else "claim" if asking else None
        if own is None or kind not in ("claim", "owner") or other == self.program:
            return
        wins = other < self.program if kind == own else kind == "owner"
        if wins:
            self.state, self.other, self.pending, self.claimed = "taken", other, None, False
            self.deadline = now + RETRY_SECONDS
        else:
            self.pending = own
