"""/setup.json: shows the lines, zones, confidence and classes of each stream, and changes them.

    GET  {"gate": the state, ...}
    POST {"stream": "gate", "action": "change", "version": 3, "setup": {...}, "save": false}
         {"stream": "gate", "action": "discard", "version": 3}    back to what is saved
         {"stream": "gate", "action": "reset"}                    all counts to 0

A POST request is answered with the new state. A refused one changes nothing, and its answer is a
sentence. results/access.py has checked password, host and origin before.
"""
from __future__ import annotations

import asyncio
import json
from typing import Any, Awaitable, Callable, Dict, Iterable, NoReturn, Optional

from aiohttp import web

from results.routes import text
from results.setup import Conflict

MAX_BYTES = 32768  # of a request


class SetupRoutes:
    """Answers requests for /setup.json. setup: the Setup; names: of its streams; readonly: refuse
    changes."""

    def __init__(self, setup: Any, names: Iterable[str], readonly: bool):
        self.setup, self.names, self.readonly = setup, list(names), readonly

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """The states of all streams, or the answer to a POST request."""
        if request.method == "POST":
            return await self.post(request)
        return web.json_response(await in_thread(self.states))

    def states(self) -> Dict[str, Any]:
        """The states of all streams, by name."""
        return {name: self.setup.state(name) for name in self.names}

    async def post(self, request: web.BaseRequest) -> web.Response:
        """Answer a POST request."""
        if self.readonly:
            return text(403, "This page changes nothing: main.py runs with --web-readonly.")
        if request.content_type != "application/json":
            return text(415, "The request must be JSON: Content-Type: application/json.")
        body = await read_body(request)
        if body is None:
            return text(413, f"The request is too large: it must have at most {MAX_BYTES} bytes.")
        try:
            command = json.loads(body, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            return text(400, "The request is not valid JSON.")
        try:
            return web.json_response(await in_thread(self.run, command))
        except Conflict as error:
            return text(409, str(error))
        except ValueError as error:
            return text(400, str(error))

    def run(self, command: Any) -> Dict[str, Any]:
        """Run the command in a POST request. Returns the new state. Raises Conflict and
        ValueError."""
        if not isinstance(command, dict):
            raise ValueError("The request must be a JSON object.")
        stream, action, version = (command.get(key) for key in ("stream", "action", "version"))
        if not isinstance(stream, str) or stream not in self.names:
            raise ValueError("There is no such stream.")
        if action == "change":
            save = command.get("save") is True
            return self.setup.change(stream, command.get("setup"), version, save)
        if action == "discard":
            return self.setup.discard(stream, version)
        if action == "reset":
            self.setup.reset(stream)
            return self.setup.state(stream)
        raise ValueError('"action" must be "change", "discard" or "reset".')


def in_thread(call: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
    """Call what may wait for a slow disk: not in the thread that serves the pictures."""
    return asyncio.get_running_loop().run_in_executor(None, call, *arguments)


async def read_body(request: web.BaseRequest) -> Optional[bytes]:
    """The body of a request. None if it is too large."""
    body = b""
    while len(body) <= MAX_BYTES:
        chunk = await request.content.readany()
        if not chunk:
            return body
        body += chunk
    return None


def refuse_constant(name: str) -> NoReturn:
    """For json.loads(), which reads NaN and Infinity otherwise."""
    raise ValueError(f"{name} is not a number.")
