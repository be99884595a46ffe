"""Strangers and broken ends: bounded in time and size, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from codexctl.relay import front
from codexctl.relay.limits import MAX_BODY_BYTES, MAX_HEAD_BYTES, Limits
from codexctl.relay.link import Link
from codexctl.relay.log import EventLog
from codexctl.relay.store import Store
from codexctl.wire import relay as wire
from tests.relay.ends import (
    Ends,
    client_frame,
    closed_with,
    data,
    frame,
    new_stream,
    open_raw_socket,
    parse_answer,
    reset_of,
    run,
    serving,
)


async def still_serves(ends: Ends) -> None:
    """A host and a device meet and a frame passes."""
    name = f"box-{random.randrange(10**9)}"
    host, device = await ends.host(name), await ends.device(name)
    message = data(new_stream(), b"as ever")
    await device.send(message)
    assert await host.recv() == message


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS to a plain port
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes(range(256)) * 8,
        b"\r\n" * 4000 + b"x",
    ],
)
def test_garbage_is_answered_or_cut(tmp_path: Path, garbage: bytes) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            reader, writer = await ends.raw()
            writer.write(garbage)
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
                assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
            assert ends.figure("bad_requests") == 1
            await still_serves(ends)

    run(test)


def test_random_bytes_never_break_it(tmp_path: Path) -> None:
    async def test() -> None:
        chance = random.Random(5)
        starts = [b"", b"GET /", b"POST /v1/tokens HTTP/1.1\r\nHost: a\r\n", b"GET / HTTP/1.1\r\n"]
        async with serving(tmp_path) as ends:
            for _ in range(40):
                reader, writer = await ends.raw()
                writer.write(chance.choice(starts) + chance.randbytes(chance.randrange(400)))
                writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            await ends.until(lambda: ends.figure("pending_connections") == 0)
            await still_serves(ends)

    run(test)


@pytest.mark.parametrize(
    ("request_head", "body_bytes", "status"),
    [
        (b"GET /v1/health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * MAX_HEAD_BYTES, 0, 431),
        (b"POST /v1/tokens HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 70_000, 413),
        (
            b"POST /v1/tokens HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n",
            MAX_BODY_BYTES + 4096,
            413,
        ),
    ],
)
def test_oversized_requests_are_refused_when_they_get_too_long(
    tmp_path: Path, request_head: bytes, body_bytes: int, status: int
) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            reader, writer = await ends.raw()
            writer.write(request_head + b"x" * body_bytes)
            answer = parse_answer(await reader.readuntil(b"}\n"))
            assert answer.status == status
            assert answer.headers["connection"] == "close"

    run(test)


def test_a_client_that_asks_before_it_sends_a_body_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            reader, writer = await ends.raw()
            writer.write(
                b"POST /v1/pairings/claim HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
                b"Content-Length: 15\r\n\r\n"
            )
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
            writer.write(b'{"nameplate":1}')
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")

    run(test)


def test_a_defect_in_a_callback_is_told_and_ends_one_link_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()

    def broken(link: Link, message: bytes) -> None:
        raise KeyError("what a peer sent")

    async def test() -> None:
        async with serving(tmp_path, log=EventLog(as_json=True, stream=out)) as ends:
            host, device = await ends.host(), await ends.device()
            with monkeypatch.context() as patch:
                patch.setattr(Link, "_frame", broken)
                await device.send(frame(new_stream()))
                assert await closed_with(device) == 1011
            again, stream = await ends.device(), new_stream()
            await again.send(frame(stream))
            assert await host.recv() == frame(stream)

    run(test)
    (defect,) = [e for e in map(json.loads, out.getvalue().splitlines()) if e["event"] == "defect"]
    assert defect["error"] == "KeyError"
    assert defect["at"].startswith("test_hostile.py:")
    assert "what a peer sent" not in out.getvalue()


def test_a_slow_head_and_an_idle_connection_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(front, "KEEPALIVE_TIMEOUT_S", 0.2)

    async def drip(ends: Ends, first: bytes) -> None:
        """A byte now and then, for as long as the relay lets us."""
        reader, writer = await ends.raw()
        writer.write(first)
        done = asyncio.Event()

        async def read() -> None:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            done.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while not done.is_set():
                writer.write(b"x")
                await asyncio.sleep(0.02)

    async def test() -> None:
        async with serving(tmp_path) as ends:
            await drip(ends, b"GET /v1/health HTTP/1.1\r\nX-Slow: ")
            await drip(ends, b"POST /v1/tokens HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n")
            reader, writer = await ends.raw()
            writer.write(b"GET /v1/health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await reader.read()  # until the relay closes the idle connection
            assert answer.startswith(b"HTTP/1.1 200")
            assert ends.figure("timeouts") == 3

    run(test)


def test_who_opens_many_connections_does_not_shut_out_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, Limits(pending_connections=8)) as ends:
            silent = [await ends.raw() for _ in range(30)]
            await ends.until(lambda: ends.figure("evicted") == 22)
            assert ends.figure("pending_connections") == 8
            await still_serves(ends)
            assert not await silent[0][0].read()

    run(test)


def test_the_number_of_connections_is_bounded(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, Limits(connections=3)) as ends:
            await ends.host("one")
            await ends.host("two")
            held, _ = await ends.raw()
            await ends.until(lambda: ends.figure("pending_connections") == 1)
            reader, _ = await ends.raw()
            assert not await reader.read()
            assert not held.at_eof()

    run(test)


def test_a_caller_that_reads_no_answers_is_not_read_from(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            loop = asyncio.get_running_loop()
            request = f"GET /pair HTTP/1.1\r\nHost: {ends.address}\r\n\r\n".encode()
            with socket.socket() as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                caller.setblocking(False)
                await loop.sock_connect(caller, ("127.0.0.1", ends.port))
                async with asyncio.TaskGroup() as group:
                    flood = group.create_task(loop.sock_sendall(caller, request * 200_000))
                    await ends.until(lambda: any(f._paused for f in ends.relay._fronts))
                    await still_serves(ends)
                    flood.cancel()
                (stuck,) = [f for f in ends.relay._fronts if f._paused]
                # The answers that wait are few, however many requests have come.
                assert stuck._transport.get_write_buffer_size() < 128 * 1024

    run(test)


BREACHES: dict[str, tuple[Callable[[], bytes], int]] = {
    "text": (lambda: client_frame(1, b"hello"), 1003),
    "not a frame": (lambda: client_frame(2, b"\xff\xff\xff"), 1002),
    "empty": (lambda: client_frame(2, b""), 1002),
    "no stream": (lambda: client_frame(2, b"\x08\x01\x32\x00"), 1002),
    "two streams": (
        lambda: client_frame(2, frame(new_stream()) + wire.prefix(new_stream())[2:]),
        1002,
    ),
    "another version": (lambda: client_frame(2, b"\x08\x02" + frame(new_stream())[2:]), 1002),
    "too long": (lambda: client_frame(2, bytes(wire.MAX_MESSAGE_BYTES + 1)), 1009),
    "said to be too long": (
        lambda: bytes((0x82, 0xFF)) + (1 << 40).to_bytes(8, "big") + bytes(4),
        1009,
    ),
    "too long in fragments": (
        lambda: client_frame(2, bytes(200_000), fin=False) + client_frame(0, bytes(100_000)),
        1009,
    ),
    "a fragment of nothing": (lambda: client_frame(0, b"x"), 1002),
    "a message inside another": (
        lambda: client_frame(2, b"x", fin=False) + client_frame(2, b"y"),
        1002,
    ),
    "unmasked": (lambda: b"\x82\x01x", 1002),
    "reserved opcode": (lambda: client_frame(5, b""), 1002),
    "long ping": (lambda: client_frame(9, bytes(126)), 1002),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_closes_its_own_websocket(tmp_path: Path, name: str) -> None:
    make, code = BREACHES[name]

    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, good = await ends.host(), await ends.device()
            stream = new_stream()
            await good.send(frame(stream))
            assert await host.recv() == frame(stream)
            url = (await ends.connect()).json["url"]
            bad = await open_raw_socket(ends, url)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(bad, make())
            head = await loop.sock_recv(bad, 2)
            assert head[0] == 0x88, "a close frame"
            payload = await loop.sock_recv(bad, head[1])
            assert int.from_bytes(payload[:2], "big") == code
            assert payload[2:].decode()
            await good.send(data(stream, b"untouched"))
            assert await host.recv() == data(stream, b"untouched")

    run(test)


def test_random_bytes_behind_an_upgrade_end_that_websocket_alone(tmp_path: Path) -> None:
    async def test() -> None:
        chance = random.Random(11)
        async with serving(tmp_path) as ends:
            host, good, stream = await ends.host(), await ends.device(), new_stream()
            await good.send(frame(stream))
            assert await host.recv() == frame(stream)
            phone, _ = await ends.device_token()
            loop = asyncio.get_running_loop()
            for seq in range(60):
                bad = await open_raw_socket(ends, (await ends.connect("box", phone)).json["url"])
                junk = bytearray(client_frame(2, data(stream, chance.randbytes(90))))
                for _ in range(chance.randrange(1, 8)):
                    junk[chance.randrange(min(60, len(junk)))] = chance.randrange(256)
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(bad, bytes(junk) + chance.randbytes(20))
                bad.shutdown(socket.SHUT_WR)
                await good.send(data(stream, b"mine", seq))
                while (message := await host.recv()) != data(stream, b"mine", seq):
                    # What came through was whole, and of a stream that nobody else had.
                    assert isinstance(message, bytes)
                    assert wire.decode(message).stream_id != stream
            await ends.until(lambda: ends.figure("devices") == 1)

    run(test)


def test_fragments_and_control_frames_between_them_make_one_message(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host = await ends.host()
            bad = await open_raw_socket(ends, (await ends.connect()).json["url"])
            message = data(new_stream(), os.urandom(1000))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(
                bad,
                client_frame(2, message[:10], fin=False)
                + client_frame(9, b"ping")
                + client_frame(0, message[10:700], fin=False)
                + client_frame(0, message[700:]),
            )
            assert await host.recv() == message
            assert await loop.sock_recv(bad, 6) == b"\x8a\x04ping"

    run(test)


def test_streams_of_a_device_are_bounded_and_old_ones_make_room(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, Limits(streams_a_device_token=3)) as ends:
            host = await ends.host()
            phone, _ = await ends.device_token()
            device = await ends.device("box", phone)
            for _ in range(3):
                await device.send(frame(new_stream()))
                await host.recv()
            refused = new_stream()
            await device.send(frame(refused))
            assert await reset_of(device) == (refused, "limit")
            await device.close()
            for _ in range(3):
                assert (await reset_of(host))[1] == "peer-gone"
            again = await ends.device("box", phone)
            for _ in range(3):
                await again.send(frame(new_stream()))
                await host.recv()

    run(test)


def test_a_host_cannot_reach_streams_that_nobody_claimed(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, device = await ends.host(), await ends.device()
            stream = new_stream()
            await host.send(data(stream, b"x"))
            assert await reset_of(host) == (stream, "peer-gone")
            await device.send(frame(stream))
            assert await host.recv() == frame(stream)

    run(test)


def test_pings_of_who_reads_nothing_are_not_answered_without_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            await ends.host()
            bad = await open_raw_socket(ends, (await ends.connect()).json["url"])
            pings = client_frame(9, bytes(125)) * 500
            loop = asyncio.get_running_loop()
            for _ in range(200):  # 12 MB of pings
                await loop.sock_sendall(bad, pings)
            await ends.until(lambda: any(link.congested for link in ends.relay._links.values()))
            assert max(link.queued for link in ends.relay._links.values()) < 256 * 1024
            await still_serves(ends)

    run(test)


def test_a_disk_that_is_full_stops_registrations_and_no_frame(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, device = await ends.host(), await ends.device()
            pages = ends.relay.store._db.execute("PRAGMA page_count").fetchone()[0]
            ends.relay.store._db.execute(f"PRAGMA max_page_count={pages}")
            for number in range(200):
                answer = await ends.register(f"env-{number}")
                if answer.status != 200:
                    break
            assert answer.status == 507
            assert answer.json["message"] == "the relay cannot write its state"
            stream = new_stream()
            await device.send(frame(stream))
            assert await host.recv() == frame(stream)
            ends.relay.store._db.execute("PRAGMA max_page_count=100000")
            assert (await ends.register("again")).status == 200
            await host.close()
            assert await closed_with(host) == 1000

    run(test)


def test_a_file_that_another_process_has_locked_stops_no_frame(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            host, device = await ends.host(), await ends.device()
            other = Store.open(ends.relay.config.home)
            try:
                other._db.execute("BEGIN IMMEDIATE")
                answer = await ends.register("den")
                assert answer.status == 507
                assert (await ends.register()).status == 200, "what is known needs no write"
                stream = new_stream()
                await device.send(frame(stream))
                assert await host.recv() == frame(stream)
                other._db.execute("ROLLBACK")
            finally:
                other.close()
            assert (await ends.register("den")).status == 200

    run(test)
