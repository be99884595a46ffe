"""The device's WebSocket against an independent server, and against one that lies."""

from __future__ import annotations

import base64
import hashlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.sync.server import ServerConnection, serve

from codexctl.client.websocket import WebSocket
from codexctl.errors import ConnectionFailed, ProtocolError

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DEADLINE_S = 20.0


def receive(websocket: WebSocket, count: int) -> list[bytes]:
    """Read until `count` messages have come."""
    out: list[bytes] = []
    end = time.monotonic() + DEADLINE_S
    while len(out) < count:
        assert time.monotonic() < end
        mask = select.POLLIN | (select.POLLOUT if websocket.wants_write else 0)
        poll = select.poll()
        poll.register(websocket.fileno(), mask)
        poll.poll(1000)
        websocket.write()
        alive = websocket.read()
        out += [bytes(message) for message in websocket.messages()]
        assert alive or len(out) >= count
    return out


@contextmanager
def independent(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    with serve(handler, "127.0.0.1", 0, max_size=None, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/x"
        server.shutdown()
        thread.join(DEADLINE_S)


def test_messages_of_every_size_survive_an_independent_server_both_ways() -> None:
    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    sizes = [0, 1, 125, 126, 127, 65535, 65536, 200_000, 256 * 1024]
    with independent(echo) as url:
        websocket = WebSocket(url, None)
        for _ in range(2):
            for size in sizes:
                data = os.urandom(size)
                websocket.send(data)
                assert receive(websocket, 1) == [data]
        # By now more than the slow masker's share was sent.
        assert websocket._masked_bytes >= 1 << 20
        websocket.close(linger_s=1.0)


def test_a_ping_is_answered_and_a_fragmented_message_is_put_together() -> None:
    ponged = threading.Event()

    def server(connection: ServerConnection) -> None:
        assert connection.ping(b"are you there").wait(DEADLINE_S)
        ponged.set()
        connection.send([b"a", b"b", b"c"])
        connection.recv()

    with independent(server) as url:
        websocket = WebSocket(url, None)
        assert receive(websocket, 1) == [b"abc"]
        assert ponged.is_set()
        websocket.send(b"done")
        websocket.write()
        websocket.close(linger_s=1.0)


@contextmanager
def scripted(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A server that answers the upgrade request with what `answer` makes of its key."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def once() -> None:
            peer, _ = listener.accept()
            with peer:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += peer.recv(65536)
                (line,) = [x for x in request.split(b"\r\n") if x.startswith(b"Sec-WebSocket-Key")]
                peer.sendall(answer(line.partition(b": ")[2]))
                peer.settimeout(DEADLINE_S)
                try:
                    while peer.recv(65536):
                        pass
                except OSError:
                    pass

        thread = threading.Thread(target=once)
        thread.start()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join(DEADLINE_S)


def switching(key: bytes, rest: bytes = b"") -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + rest
    )


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda key: b"HTTP/1.1 403 Forbidden\r\n\r\n", ConnectionFailed),
        (lambda key: b"SSH-2.0-OpenSSH\r\n\r\n", ProtocolError),
        (lambda key: switching(b"another key"), ProtocolError),
        (lambda key: b"X" * 40_000, ProtocolError),
    ],
)
def test_what_is_no_websocket_server_is_named(
    answer: Callable[[bytes], bytes], error: type[Exception]
) -> None:
    with scripted(answer) as url, pytest.raises(error):
        WebSocket(url, None)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\x81\x00\x00\x00\x00x",  # masked by a server
        b"\x81\x01x",  # text
        b"\xc2\x01x",  # a reserved bit
        b"\x80\x01x",  # a continuation of nothing
        b"\x09\x00",  # a fragmented ping
        b"\x89\x7e\x00\x7e" + bytes(126),  # a ping that is too long
        b"\x82\x7f" + (1 << 40).to_bytes(8, "big"),  # a message of a TiB
        b"\x02\x01x\x82\x01y",  # a message inside a message
        b"\x83\x01x",  # an unknown opcode
    ],
)
def test_a_server_that_breaks_the_protocol_is_refused(frame: bytes) -> None:
    with scripted(lambda key: switching(key, frame)) as url:
        websocket = WebSocket(url, None)
        with pytest.raises(ProtocolError):
            receive(websocket, 1)
        websocket.close()


def test_a_close_frame_ends_it_with_its_reason() -> None:
    with scripted(lambda key: switching(key, b"\x88\x06\x03\xf4over")) as url:
        websocket = WebSocket(url, None)
        websocket.read()
        assert list(websocket.messages()) == []
        assert websocket.closed_because == "1012 over"
        websocket.close()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_messages_survive_any_division_into_reads(
    messages: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(
        (bytes((0x82, len(m))) if len(m) < 126 else b"\x82\x7e" + len(m).to_bytes(2, "big")) + m
        for m in messages
    )
    near, far = socket.socketpair()
    with near, far:
        websocket = WebSocket.__new__(WebSocket)
        websocket._sock = near
        websocket._secure = False
        websocket._buffer = bytearray(1024)
        websocket._view = memoryview(websocket._buffer)
        websocket._start = websocket._end = 0
        websocket._fragments = None
        websocket.closed_because = ""
        near.setblocking(False)
        got: list[bytes] = []
        at = 0
        while at < len(stream):
            size = data.draw(st.integers(1, 200))
            far.sendall(stream[at : at + size])
            at += size
            websocket.read()
            got += [bytes(m) for m in websocket.messages()]
    assert got == messages
