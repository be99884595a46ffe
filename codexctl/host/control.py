"""The running host's control socket: JSON lines on a Unix socket that only its owner can reach.

One request a connection: `{"method": …, "params": {…}}`, answered by `{"result": …}` or
`{"error": {…}}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from codexctl.errors import CodexctlError, StateError
from codexctl.paths import Home
from codexctl.session.core import RemoteError

MAX_LINE_BYTES = 64 * 1024
ANSWER_TIMEOUT_S = 30.0
MAX_SOCKET_PATH_BYTES = 100  # sun_path has 104 to 108, by system

Method = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class NoDaemon(StateError):
    """No host runs from this home."""

    code = "no-host"


@contextmanager
def _short(path: str) -> Iterator[str]:
    """A name of the socket that fits its address: through /proc where the path itself does not."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES or sys.platform != "linux":
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


def listen(home: Home) -> socket.socket:
    """The listening socket, mode 0600. The caller holds the home's lock, so a left one is stale."""
    path = home.control_socket
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        with _short(path) as name:
            listener.bind(name)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise StateError(
            f"cannot listen on {path}: {error.strerror or error}",
            hint="set CODEXCTL_HOME to a folder with a shorter path on a local disk",
        ) from error
    finally:
        os.umask(previous)
    listener.setblocking(False)
    return listener


async def serve(listener: socket.socket, methods: dict[str, Method]) -> None:
    """Answer until cancelled."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                writer.write(await _answer(await reader.readline(), methods))
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(one, sock=listener, limit=MAX_LINE_BYTES)
    async with server:
        await server.serve_forever()


async def _answer(line: bytes, methods: dict[str, Method]) -> bytes:
    try:
        request = json.loads(line)
        method = methods[request["method"]]
        params = dict(request.get("params") or {})
    except (ValueError, KeyError, TypeError):
        error = CodexctlError(
            "the running host does not know this request",
            hint="restart it: it may be older than this command",
        )
        return json.dumps({"error": error.as_json()}).encode() + b"\n"
    try:
        return json.dumps({"result": await method(params)}).encode() + b"\n"
    except CodexctlError as error:
        return json.dumps({"error": error.as_json()}).encode() + b"\n"


def ask(home: Home, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the running host. NoDaemon where none runs; its own errors are raised here again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            with _short(home.control_socket) as name:
                sock.connect(name)
            sock.sendall(json.dumps({"method": method, "params": params or {}}).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline(MAX_LINE_BYTES)
        except (FileNotFoundError, ConnectionError) as error:
            raise NoDaemon(
                f"no host runs from {home.path}",
                hint="start it first: codexctl host serve (or codexctl up)",
            ) from error
        except OSError as error:
            raise StateError(f"the running host does not answer: {error}") from error
    try:
        answer = json.loads(line)
    except ValueError:
        raise StateError("the running host closed the connection without an answer") from None
    if "error" in answer:
        found = answer["error"]
        raise RemoteError(
            str(found.get("message")),
            hint=str(found.get("hint") or ""),
            exit_code=int(found.get("exit_code") or 1),
            code=str(found.get("error") or ""),
        )
    result: dict[str, Any] = answer["result"]
    return result
