"""The relay: forwarding against a TCP proxy, memory an idle connection, latency under load.

The relay and the proxy each run in a process of their own, on uvloop; the load comes from others.
Clients speak WebSocket over raw sockets with frames made beforehand, so that the measured cost is
the relay's. Forwarding is measured in turns, relay and proxy, in one run.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

from benchmarks.row import Row
from codexctl.paths import Home
from codexctl.relay.limits import Limits
from codexctl.relay.server import RelayConfig, RelayServer, raise_file_limit
from codexctl.wire import relay as wire

ROUNDS = 7
ROUND_BYTES = 256 << 20
PAYLOAD_BYTES = 64_000  # with its frame just under 64 KiB
IDLE_HOSTS = 2_000
BUSY_HOSTS = 200
BUSY_RATE = 20.0  # round trips a second of each
BUSY_S = 1.5
BUSY_TURNS = 5
SMALL_BYTES = 200
MASK = bytes((0x5A, 0x13, 0xC7, 0x88))

_SPAWN = multiprocessing.get_context("spawn")
# Two thousand hosts come in one second here, with one token.
_LIMITS = Limits(
    handshakes_a_second=1e6, handshakes_at_once=1_000_000, links_an_owner_token=100_000
)
_KEY = {
    "suite": "Noise_IK_25519_ChaChaPoly_BLAKE2s",
    "x25519_public_key": base64.b64encode(bytes(32)).decode(),
}


def rows() -> list[Row]:
    """All of this module's rows."""
    return [*forwarding(), *idle_memory(), *latency()]


# Servers under measurement, each in a process


def _serve_relay(pipe: Connection) -> None:
    import uvloop

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with RelayServer(RelayConfig(home=Home(folder), limits=_LIMITS)) as relay:
                secret, _ = relay.store.create_token(name="bench", expires_in_s=3600)
                pipe.send((relay.base_url, secret.reveal()))
                await asyncio.to_thread(pipe.recv)

    raise_file_limit()
    uvloop.run(run())


class _Half(asyncio.Protocol):
    """One side of the TCP proxy."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.other: _Half | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.target:
            self.dialling = asyncio.ensure_future(self._dial())

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        _, other = await loop.create_connection(lambda: _Half(0), "127.0.0.1", self.target)
        other.other, self.other = self, other
        for data in self.early:
            other.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


def _serve_proxy(pipe: Connection, target: int) -> None:
    import uvloop

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Half(target), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)

    uvloop.run(run())


@contextlib.contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[tuple[int, Any]]:
    """Run `target(pipe, *arguments)`; yields its process id and its first message."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        if not ours.poll(30):
            raise RuntimeError(f"{target.__name__} did not start")
        yield process.pid or 0, ours.recv()
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()
        ours.close()


# Clients


def _call(url: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def _host_url(base: str, token: str, environment: str) -> str:
    body = {"security_profile": "noise_ik_v1", "executor_public_key": _KEY}
    return str(_call(f"{base}/cloud/environment/{environment}/register", token, body)["url"])


def _device_url(base: str, token: str, environment: str) -> str:
    body = {"harness_public_key": _KEY}
    return str(_call(f"{base}/cloud/environment/{environment}/connect", token, body)["url"])


def _open(url: str) -> socket.socket:
    """A connected WebSocket as a bare socket."""
    address, _, path = url.removeprefix("ws://").partition("/")
    host, _, port = address.partition(":")
    opened = socket.create_connection((host, int(port)), timeout=30)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.sendall(
        f"GET /{path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += opened.recv(1)
    if b" 101 " not in head:
        raise RuntimeError(head.decode())
    return opened


def _masked(message: bytes) -> bytes:
    """A client's WebSocket message with a fixed mask."""
    size = len(message)
    key = int.from_bytes(MASK * (size // 4 + 1), "big") >> 8 * (4 * (size // 4 + 1) - size)
    masked = (int.from_bytes(message, "big") ^ key).to_bytes(size, "big")
    if size < 126:
        head = bytes((0x82, 0x80 | size))
    elif size < 65536:
        head = bytes((0x82, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x82, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + MASK + masked


def _receive(source: socket.socket, total: int) -> None:
    buffer = bytearray(1 << 20)
    left = total
    while left > 0:
        size = source.recv_into(buffer, min(left, len(buffer)))
        if not size:
            raise RuntimeError("the connection ended early")
        left -= size


def _pump(send: socket.socket, receive: socket.socket, block: bytes, out: int, total: int) -> float:
    """Seconds to push `total` bytes made of `block`, which arrives as `out` bytes."""
    count = total // len(block)
    reader = threading.Thread(target=_receive, args=(receive, out * count))
    started = time.perf_counter()
    reader.start()
    for _ in range(count):
        send.sendall(block)
    reader.join()
    return time.perf_counter() - started


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    raise RuntimeError("no VmRSS")


# Rows


def forwarding() -> list[Row]:
    """64 KiB messages from a device to its host, against bytes through a uvloop TCP proxy."""
    stream = str(uuid.uuid4())
    message = wire.encode(wire.Frame(stream, wire.Data(0, os.urandom(PAYLOAD_BYTES))))
    block = _masked(message) * 16
    arrives = (len(message) + 4) * 16
    speeds: dict[str, list[float]] = {"relay": [], "proxy": []}
    seconds: dict[str, float] = {}
    with socket.create_server(("127.0.0.1", 0)) as sink:
        port = sink.getsockname()[1]
        with (
            _process(_serve_relay) as (relay_pid, (base, token)),
            _process(_serve_proxy, port) as (proxy_pid, proxy_port),
        ):
            host = _open(_host_url(base, token, "bulk"))
            device = _open(_device_url(base, token, "bulk"))
            near = socket.create_connection(("127.0.0.1", proxy_port))
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far, _ = sink.accept()
            before = {"relay": _cpu(relay_pid), "proxy": _cpu(proxy_pid)}
            for _ in range(ROUNDS):
                for name, send, receive, out in (
                    ("relay", device, host, arrives),
                    ("proxy", near, far, len(block)),
                ):
                    took = _pump(send, receive, block, out, ROUND_BYTES)
                    speeds[name].append(ROUND_BYTES / took / 1e6)
            gigabytes = ROUNDS * ROUND_BYTES / 1e9
            seconds["relay"] = (_cpu(relay_pid) - before["relay"]) / gigabytes
            seconds["proxy"] = (_cpu(proxy_pid) - before["proxy"]) / gigabytes
            for opened in (host, device, near, far):
                opened.close()
    relay, proxy = statistics.median(speeds["relay"]), statistics.median(speeds["proxy"])
    return [
        Row("relay 64 KiB forwarding / uvloop TCP proxy", relay / proxy, ">= 0.45", ">= 0.7"),
        Row("relay 64 KiB forwarding", relay, unit="MB/s"),
        Row("uvloop TCP proxy", proxy, unit="MB/s"),
        Row("relay CPU", seconds["relay"], unit="s/GB"),
        Row("uvloop TCP proxy CPU", seconds["proxy"], unit="s/GB"),
    ]


def idle_memory() -> list[Row]:
    """Resident memory of the relay that each of many idle hosts adds."""
    with _process(_serve_relay) as (pid, (base, token)), contextlib.ExitStack() as opened:
        raise_file_limit()
        for number in range(100):  # what the first connections alone cost is not counted
            opened.enter_context(_open(_host_url(base, token, f"warm-{number}")))
        before = _rss_kib(pid)
        for number in range(IDLE_HOSTS):
            opened.enter_context(_open(_host_url(base, token, f"idle-{number}")))
        value = (_rss_kib(pid) - before) / IDLE_HOSTS
    return [Row("relay memory an idle connection", value, "<= 40", "<= 20", "KiB")]


class _Echo(asyncio.Protocol):
    """A busy host: sends back what comes, masked as a client must."""

    def __init__(self, reply: bytes, expected: int) -> None:
        self.reply, self.expected, self.got = reply, expected, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        while self.got >= self.expected:
            self.got -= self.expected
            self.transport.write(self.reply)


class _Device(asyncio.Protocol):
    """A busy device: sends a small frame at its rate and times the answer."""

    def __init__(self, message: bytes, expected: int, times: list[float]) -> None:
        self.message, self.expected, self.times, self.got = message, expected, times, 0
        self.sent: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        self.sent.append(time.perf_counter())
        self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        while self.got >= self.expected:
            self.got -= self.expected
            self.times.append(time.perf_counter() - self.sent.pop(0))


Pair = tuple[socket.socket, socket.socket, bytes, int]  # device, host, message, bytes that come


class _Crowd:
    """Busy hosts and their devices, joined in one way."""

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs
        self._devices: list[_Device] = []
        self._times: list[float] = []

    async def join(self) -> None:
        loop = asyncio.get_running_loop()
        for device, host, message, expected in self._pairs:
            for one in (device, host):
                one.setblocking(False)
            await loop.connect_accepted_socket(partial(_Echo, message, expected), host)
            _, made = await loop.connect_accepted_socket(
                partial(_Device, message, expected, self._times), device
            )
            self._devices.append(made)

    async def work(self) -> list[float]:
        """Round trips of a turn: each device at its rate, evenly spread over time."""
        loop = asyncio.get_running_loop()
        self._times.clear()
        gap = 1 / BUSY_RATE / len(self._devices)
        total = int(BUSY_S * BUSY_RATE) * len(self._devices)
        started = loop.time()
        for turn in range(total):
            late = started + turn * gap - loop.time()
            if late > 0:
                await asyncio.sleep(late)
            self._devices[turn % len(self._devices)].send()
        async with asyncio.timeout(30):
            while len(self._times) < total:
                await asyncio.sleep(0.01)
        return list(self._times)


def _direct_pairs() -> list[Pair]:
    pairs = []
    with socket.create_server(("127.0.0.1", 0), backlog=BUSY_HOSTS) as server:
        for _ in range(BUSY_HOSTS):
            near = socket.create_connection(server.getsockname()[:2])
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far, _ = server.accept()
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs.append((near, far, os.urandom(SMALL_BYTES), SMALL_BYTES))
    return pairs


def _relayed_pairs(base: str, token: str) -> list[Pair]:
    pairs = []
    for number in range(BUSY_HOSTS):
        name = f"busy-{number}"
        host, device = _open(_host_url(base, token, name)), _open(_device_url(base, token, name))
        frame = wire.Frame(str(uuid.uuid4()), wire.Data(0, os.urandom(SMALL_BYTES)))
        message = wire.encode(frame)
        pairs.append((device, host, _masked(message), len(message) + 4))
    return pairs


async def _in_turns(direct: _Crowd, relayed: _Crowd) -> tuple[list[float], list[float]]:
    """What the relay adds in ms at the median and at the 99th percentile, turn by turn."""
    await direct.join()
    await relayed.join()
    middle, tail = [], []
    for _ in range(BUSY_TURNS):
        without, through = sorted(await direct.work()), sorted(await relayed.work())
        middle.append((_share(through, 0.5) - _share(without, 0.5)) * 1000)
        tail.append((_share(through, 0.99) - _share(without, 0.99)) * 1000)
    return middle, tail


def _share(ordered: list[float], share: float) -> float:
    return ordered[int(len(ordered) * share)]


def latency() -> list[Row]:
    """What the relay adds to a small frame's way there and back: 2,000 idle hosts, 200 busy."""
    import uvloop

    raise_file_limit()
    with _process(_serve_relay) as (_, (base, token)), contextlib.ExitStack() as opened:
        for number in range(IDLE_HOSTS):
            opened.enter_context(_open(_host_url(base, token, f"idle-{number}")))
        crowds = _Crowd(_direct_pairs()), _Crowd(_relayed_pairs(base, token))
        middle, tail = uvloop.run(_in_turns(*crowds))
    p99 = statistics.median(tail)
    return [
        Row("relay added latency p99, 2,000 idle, 200 busy hosts", p99, "< 20", "< 5", "ms"),
        Row("relay added latency, median", statistics.median(middle), unit="ms"),
    ]


if __name__ == "__main__":
    for row in rows():
        print(f"{row.metric:55} {row.value:10.3f} {row.unit:5} {row.must:8} {row.aim}")
