"""One small HTTP/1.1 request with a JSON answer, on a blocking socket.

By hand because http.client and what it imports cost a third of a cold exec; the server is our
relay, perhaps behind a reverse proxy. Bounded in size and time; a redirect is an error, so that a
token never travels to an address that the person did not name.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from codexctl import __version__
from codexctl.client.sockets import CONNECT_TIMEOUT_S, Socket, connect, parse_address
from codexctl.errors import ConnectionFailed, ProtocolError
from codexctl.secret import Secret

MAX_ANSWER_BYTES = 256 * 1024
MAX_HEAD_BYTES = 16 * 1024


class Answer(NamedTuple):
    """`status` and the JSON object; an empty object where there was none."""

    status: int
    headers: dict[str, str]
    value: dict[str, Any]


def request(
    method: str,
    url: str,
    *,
    token: Secret | None = None,
    pin: bytes | None = None,
    body: dict[str, Any] | None = None,
    timeout: float = CONNECT_TIMEOUT_S,
) -> Answer:
    """Send and wait. ConnectionFailed without an answer, ProtocolError where it is no HTTP."""
    answer, sock = request_and_keep(
        method, url, token=token, pin=pin, body=body, timeout=timeout, keep=False
    )
    if sock is not None:
        sock.close()
    return answer


def request_and_keep(
    method: str,
    url: str,
    *,
    token: Secret | None = None,
    pin: bytes | None = None,
    body: dict[str, Any] | None = None,
    timeout: float = CONNECT_TIMEOUT_S,
    keep: bool = True,
) -> tuple[Answer, Socket | None]:
    """As `request`, and the connection where the server leaves it open: a WebSocket may follow."""
    address = parse_address(url)
    content = b"" if body is None else json.dumps(body).encode()
    head = [
        f"{method} {address.target} HTTP/1.1",
        f"Host: {address.authority}",
        f"User-Agent: codexctl/{__version__}",
        "Accept: application/json",
        f"Connection: {'keep-alive' if keep else 'close'}",
        f"Content-Length: {len(content)}",
    ]
    if body is not None:
        head.append("Content-Type: application/json")
    if token is not None:
        head.append(f"Authorization: Bearer {token.reveal()}")
    data = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + content
    sock = connect(address, pin, timeout)
    try:
        sock.sendall(data)
        answer = _read_answer(sock)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise ConnectionFailed(
                f"the relay at {address.authority} did not answer: {error.strerror or error}",
                hint="try again; if it stays so, look at the relay's log",
            ) from error
        raise
    if keep and "content-length" in answer.headers and not _closes(answer.headers):
        return answer, sock
    sock.close()
    return answer, None


def _closes(headers: dict[str, str]) -> bool:
    return "close" in headers.get("connection", "").lower()


def _read_answer(sock: Any) -> Answer:
    buffer = bytearray()
    end = -1
    while end < 0:
        if len(buffer) > MAX_HEAD_BYTES:
            raise ProtocolError("the relay's answer has a head without end")
        chunk = sock.recv(65536)
        if not chunk:
            raise OSError("it closed the connection")
        buffer += chunk
        end = buffer.find(b"\r\n\r\n")
    status, headers = parse_head(bytes(buffer[:end]))
    rest = buffer[end + 4 :]
    wanted = headers.get("content-length", "")
    size = int(wanted) if wanted.isascii() and wanted.isdigit() else None
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    while size is None or len(rest) < size:
        if len(rest) > MAX_ANSWER_BYTES or (size or 0) > MAX_ANSWER_BYTES:
            raise ProtocolError("the relay's answer is too long")
        chunk = sock.recv(65536)
        if not chunk:
            break
        rest += chunk
    if chunked:
        rest = _dechunk(rest)
    elif size is not None and len(rest) < size:
        raise OSError("it closed the connection in the middle of the answer")
    return Answer(status, headers, _parse_json(bytes(rest)))


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and lower-case headers of a response head without its final empty line."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code = rest.partition(" ")[0]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
        raise ProtocolError(
            "what answers there does not speak HTTP", hint="check the relay's address"
        )
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(code), headers


def _dechunk(data: bytearray) -> bytearray:
    out = bytearray()
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        try:
            size = int(data[at:end].split(b";")[0], 16) if end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0 or end + 2 + size > len(data):
            raise ProtocolError("the relay's answer was cut")
        if size == 0:
            return out
        out += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
