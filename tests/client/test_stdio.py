"""A terminal's escapes, and outputs that never block."""

from __future__ import annotations

import os
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client.connection import Connection
from codexctl.client.stdio import Escapes, Output


@pytest.mark.parametrize(
    ("typed", "sent", "command"),
    [
        (b"ls\r", b"ls\r", ""),
        (b"~.", b"", "."),
        (b"a\r~d", b"a\r", "d"),
        (b"a\r~?", b"a\r", "?"),
        (b"a~.", b"a~.", ""),
        (b"~~.", b"~.", ""),
        (b"\r~x", b"\r~x", ""),
        (b"\r~.ignored", b"\r", "."),
        (b"cd ~\r", b"cd ~\r", ""),
    ],
)
def test_escapes(typed: bytes, sent: bytes, command: str) -> None:
    assert Escapes().feed(typed) == (sent, command)


@given(st.binary(max_size=60), st.data())
@settings(max_examples=200, deadline=None)
def test_escapes_do_not_depend_on_how_bytes_arrive(typed: bytes, data: st.DataObject) -> None:
    whole = Escapes().feed(typed) if typed else (b"", "")
    escapes, out, command, at = Escapes(), b"", "", 0
    while at < len(typed) and not command:
        size = data.draw(st.integers(1, 5))
        sent, command = escapes.feed(typed[at : at + size])
        out, at = out + sent, at + size
    assert (out, command) == whole


class FakeLoop:
    """Only `watch` and `unwatch` of a connection."""

    def __init__(self) -> None:
        self.writers: dict[int, object] = {}

    def watch(self, fd: int, on_readable: object = None, on_writable: object = None) -> None:
        self.writers[fd] = on_writable

    def unwatch(self, fd: int) -> None:
        self.writers.pop(fd, None)


def test_a_full_pipe_keeps_bytes_in_order_and_tells_when_they_left() -> None:
    read, write = os.pipe()
    loop, left = FakeLoop(), []
    output = Output(cast(Connection, loop), write, left.append)
    data = os.urandom(300_000)
    output.write(memoryview(data[:200_000]))
    output.write(memoryview(data[200_000:]))
    assert not output.idle
    got = b""
    while len(got) < len(data):
        got += os.read(read, 65536)
        writer = loop.writers.get(output.fd)
        if writer is not None:
            writer()  # type: ignore[operator]
    assert got == data
    assert sum(left) == len(data)
    assert output.idle
    assert loop.writers == {}
    # The descriptor that others share still blocks.
    assert os.get_blocking(write)
    os.close(read)
    output.write(memoryview(b"nobody reads"))
    assert output.broken
    assert sum(left) == len(data) + len(b"nobody reads")
    for fd in {write, output.fd}:
        os.close(fd)
