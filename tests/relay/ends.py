"""Both ends of a relay, as independent of the product as can be: `websockets`, and raw sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from codexctl.paths import Home
from codexctl.relay.effects import RoomKey
from codexctl.relay.limits import Limits
from codexctl.relay.server import RelayConfig, RelayServer
from codexctl.wire import relay as wire

TEST_S = 20.0  # no test waits longer for anything
KEY = {
    "suite": "Noise_IK_25519_ChaChaPoly_BLAKE2s",
    "x25519_public_key": base64.b64encode(b"k" * 32).decode(),
}
OTHER_KEY = KEY | {"x25519_public_key": base64.b64encode(b"o" * 32).decode()}


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine on the loop that the product uses."""

    async def bounded() -> None:
        async with asyncio.timeout(TEST_S):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


def tls_context() -> ssl.SSLContext:
    """Trusts anybody: these tests look at pins themselves."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Ends:
    """A running relay with an owner's token, and what hosts and devices do with it."""

    def __init__(self, relay: RelayServer, stack: contextlib.AsyncExitStack) -> None:
        self.relay = relay
        self._stack = stack
        self.address = relay.local_url.rpartition("//")[2]
        self.port = int(relay.local_url.rpartition(":")[2])
        self._tls = tls_context() if relay.local_url.startswith("https") else None
        self.token = self.owner_token("anna")

    def owner_token(self, owner: str, name: str = "", expires_in_s: int = 3600) -> str:
        name = name or f"token {len(self.relay.store.tokens())}"
        secret, _ = self.relay.store.create_token(name=name, expires_in_s=expires_in_s, owner=owner)
        return secret.reveal()

    def after(self, action: Callable[[], object]) -> None:
        """Do this when the test is over."""
        self._stack.callback(action)

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self._tls)

        async def close() -> None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        self._stack.push_async_callback(close)
        return reader, writer

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = "",
        headers: tuple[str, ...] = (),
    ) -> Answer:
        """One HTTP call on a connection of its own; the anna's token unless another is given."""
        reader, writer = await self.raw()
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers]
        if not any(line.lower().startswith("host:") for line in headers):
            lines.append(f"Host: {self.address}")
        if body is not None:
            lines.append(f"Content-Length: {len(content)}")
        if token is not None:
            lines.append(f"Authorization: Bearer {token or self.token}")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        return parse_answer(await reader.read())

    async def register(
        self,
        environment: str = "box",
        token: str = "",
        key: dict[str, str] = KEY,
        headers: tuple[str, ...] = (),
    ) -> Answer:
        body = {"security_profile": "noise_ik_v1", "executor_public_key": key}
        return await self.call(
            "POST",
            f"/cloud/environment/{environment}/register",
            body,
            token=token,
            headers=headers,
        )

    async def connect(self, environment: str = "box", token: str = "") -> Answer:
        body = {"harness_public_key": KEY}
        return await self.call(
            "POST", f"/cloud/environment/{environment}/connect", body, token=token
        )

    async def socket(self, url: str) -> ClientConnection:
        """A WebSocket to a URL that a call answered."""
        opened = await connect(url, ssl=self._tls, compression=None, max_size=None)
        self._stack.push_async_callback(opened.close)
        return opened

    async def host(
        self, environment: str = "box", token: str = "", key: dict[str, str] = KEY
    ) -> ClientConnection:
        answer = await self.register(environment, token, key)
        assert answer.status == 200, answer
        opened = await self.socket(answer.json["url"])
        await self.until(lambda: self.online(environment))
        return opened

    async def device(self, environment: str = "box", token: str = "") -> ClientConnection:
        answer = await self.connect(environment, token)
        assert answer.status == 200, answer
        return await self.socket(answer.json["url"])

    async def device_token(self, environment: str = "box", name: str = "phone") -> tuple[str, str]:
        """A token for one environment: (secret, id)."""
        body = {"name": name, "environment_id": environment, "expires_in_s": 3600}
        answer = await self.call("POST", "/v1/tokens", body)
        assert answer.status == 200, answer
        return answer.json["token"], answer.json["id"]

    def online(self, environment: str = "box", owner: str = "anna") -> bool:
        return self.relay._rooms.online(RoomKey(owner, environment))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Poll until it holds; the test's own time limit is the bound."""
        while not condition():
            await asyncio.sleep(0.005)

    def figure(self, name: str) -> int:
        return self.relay.figures().get(name, 0)


def parse_answer(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    return Answer(int(first.split(" ")[1]), headers, body)


@contextlib.asynccontextmanager
async def serving(folder: Path, limits: Limits | None = None, **config: Any) -> AsyncIterator[Ends]:
    """A relay of its own home in `folder`, on a free port."""
    # Tests leave links behind on purpose; the drain should not wait for them.
    chosen = replace(limits or Limits(), drain_s=config.pop("drain_s", 0.5))
    settings = RelayConfig(home=Home(str(folder / "relay")), limits=chosen, **config)
    async with RelayServer(settings) as relay, contextlib.AsyncExitStack() as stack:
        yield Ends(relay, stack)


def new_stream() -> str:
    return str(uuid.uuid4())


def frame(stream: str, body: wire.Body | None = None) -> bytes:
    return wire.encode(wire.Frame(stream, body or wire.Resume(0)))


def data(stream: str, payload: bytes, seq: int = 0) -> bytes:
    return frame(stream, wire.Data(seq, payload))


async def reset_of(end: ClientConnection) -> tuple[str, str]:
    """The next message, which has to be a reset: (stream, reason)."""
    message = await end.recv()
    assert isinstance(message, bytes)
    decoded = wire.decode(message)
    assert isinstance(decoded.body, wire.Reset), decoded
    return decoded.stream_id, decoded.body.reason


async def closed_with(end: ClientConnection) -> int:
    """Wait for the close, whatever comes before; its code (1006 without a close frame)."""
    await end.wait_closed()
    return end.close_code or 1006


async def open_raw_socket(ends: Ends, url: str) -> socket.socket:
    """A WebSocket as a bare socket, which reads nothing by itself."""
    opened = socket.socket()
    # A small window, so that the relay feels soon that nobody reads.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.setblocking(False)
    ends.after(opened.close)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(opened, ("127.0.0.1", ends.port))
    await loop.sock_sendall(opened, upgrade_request(ends, url))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await loop.sock_recv(opened, 1)
    assert b" 101 " in head, head
    return opened


def upgrade_request(ends: Ends, url: str) -> bytes:
    """As a browser behind a proxy would send it."""
    path = "/" + url.partition("://")[2].partition("/")[2]
    return (
        f"GET {path} HTTP/1.1\r\nHost: {ends.address}\r\nUpgrade: WebSocket\r\n"
        "Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


async def receive_exactly(source: socket.socket, size: int) -> bytes:
    """So many bytes of a bare socket."""
    loop, out = asyncio.get_running_loop(), bytearray()
    while len(out) < size:
        block = await loop.sock_recv(source, size - len(out))
        assert block, "the connection ended"
        out += block
    return bytes(out)


def client_frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A WebSocket frame of a client, masked with zeros."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65536:
        length = bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((0x80 | 127,)) + size.to_bytes(8, "big")
    return bytes((opcode | (0x80 if fin else 0),)) + length + bytes(4) + payload
