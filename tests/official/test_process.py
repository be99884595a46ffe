"""A process's events and input as the executor sends and takes them, without an executor."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client.connection import ChannelHandler
from codexctl.client.executor.connection import Done, ExecutorConnection
from codexctl.client.executor.environment import Environment
from codexctl.client.executor.process import (
    MAX_EVENTS_AHEAD,
    WRITE_BYTES,
    WRITES_AHEAD,
    ProcessChannel,
)
from codexctl.client.store import HostRecord
from codexctl.errors import CodexctlError, ProtocolError, UsageError


class Asked(NamedTuple):
    method: str
    params: dict[str, Any]
    done: Done


class Far:
    """What a ProcessChannel needs of its connection; answers come from the test."""

    record = cast(HostRecord, type("R", (), {"name": "box"}))

    def __init__(self, os: str = "linux") -> None:
        self.environment = Environment("0.169.0", "/bin/bash", "/work", "/home/me", os, True, True)
        self.asked: list[Asked] = []
        self.told: list[str] = []
        self.unread = 0

    def submit(self, method: str, params: dict[str, Any], done: Done) -> None:
        self.asked.append(Asked(method, params, done))

    def absolute(self, path: str) -> str:
        return path or "/work"

    def path(self, path: str) -> str:
        return "file://" + path

    def notice(self, text: str) -> None:
        self.told.append(text)

    def count_unread(self, size: int) -> None:
        self.unread += size

    def forget(self, channel: ProcessChannel) -> None: ...


class Heard(ChannelHandler):
    def __init__(self) -> None:
        self.output = b""
        self.exits: list[dict[str, Any]] = []
        self.closes: list[CodexctlError | None] = []
        self.room = 0

    def data(self, stream: int, data: memoryview) -> None:
        self.output += bytes(data)

    def message(self, value: dict[str, Any]) -> None:
        self.exits.append(value)

    def closed(self, error: CodexctlError | None) -> None:
        self.closes.append(error)

    def writable(self) -> None:
        self.room += 1


def started(
    *, stdin: bool = False, os: str = "linux", **params: Any
) -> tuple[Far, Heard, ProcessChannel]:
    """A channel whose process runs."""
    far, heard = Far(os), Heard()
    kind = "pty" if "tty" in params else "exec"
    channel = ProcessChannel(
        cast(ExecutorConnection, far), kind, {"argv": ["cat"], **params}, heard
    )
    if not stdin:
        channel.write_eof(0)
    channel.begin()
    far.asked.pop().done({"processId": channel.process_id}, None)
    return far, heard, channel


def output(seq: int, data: bytes, stream: str = "stdout") -> tuple[str, dict[str, Any]]:
    return "process/output", {"seq": seq, "stream": stream, "chunk": b64encode(data).decode()}


@given(data=st.data(), parts=st.lists(st.binary(min_size=1, max_size=9), max_size=12))
@settings(max_examples=40, deadline=None)
def test_events_are_taken_in_the_order_of_their_numbers(
    data: st.DataObject, parts: list[bytes]
) -> None:
    _, heard, channel = started()
    events = [output(number, part) for number, part in enumerate(parts, 1)]
    events.append(("process/exited", {"seq": len(parts) + 1, "exitCode": 3}))
    events.append(("process/closed", {"seq": len(parts) + 2}))
    order = data.draw(st.permutations(events))
    for method, params in [*order, *order]:
        channel.notified(method, params)
    assert heard.output == b"".join(parts)
    assert heard.exits == [{"exit": {"status": 3}}]
    assert heard.closes == [None]


def test_the_exit_is_told_behind_all_output() -> None:
    _, heard, channel = started()
    channel.notified("process/exited", {"seq": 1, "exitCode": 0})
    assert heard.exits == []
    channel.notified(*output(2, b"late"))
    channel.notified("process/closed", {"seq": 3})
    assert (heard.output, len(heard.exits), heard.closes) == (b"late", 1, [None])


def test_an_event_that_never_comes_is_an_error() -> None:
    _, _, channel = started()
    for seq in range(2, MAX_EVENTS_AHEAD + 2):
        channel.notified(*output(seq, b"x"))
    with pytest.raises(ProtocolError, match="left an event"):
        channel.notified(*output(MAX_EVENTS_AHEAD + 2, b"x"))


def test_what_was_missed_on_a_lost_path_is_read() -> None:
    far, heard, channel = started()
    channel.notified(*output(1, b"one "))
    channel.resumed()
    channel.notified(*output(5, b"five"))
    (asked,) = far.asked
    assert (asked.method, asked.params["afterSeq"]) == ("process/read", 1)
    chunks = [output(3, b"three ")[1], output(4, b"four ")[1]]
    asked.done({"chunks": chunks, "nextSeq": 5, "exited": False, "closed": False}, None)
    assert heard.output == b"one three four five"
    assert far.told == ["output was lost while the connection was down"]


def test_an_end_on_a_lost_path_is_told_once() -> None:
    far, heard, channel = started()
    channel.resumed()
    answer = {"chunks": [output(1, b"x")[1]], "nextSeq": 4, "exited": True, "exitCode": 9,
              "closed": True}  # fmt: skip
    far.asked.pop().done(answer, None)
    channel.notified("process/closed", {"seq": 3})
    assert (heard.output, heard.exits, heard.closes) == (b"x", [{"exit": {"status": 9}}], [None])


def test_stdin_goes_in_measured_pieces_and_waits_for_answers() -> None:
    far, heard, channel = started(stdin=True)
    content = bytes(WRITE_BYTES * (WRITES_AHEAD + 2))
    assert channel.write(0, content) == WRITE_BYTES * WRITES_AHEAD
    assert channel.writable == 0
    channel.waiting = True
    first = far.asked.pop(0)
    piece = b64decode(first.params["chunk"])
    assert piece == b"%d\n" % WRITE_BYTES + bytes(WRITE_BYTES)
    first.done({"status": "accepted"}, None)
    assert heard.room == 1
    assert channel.writable == WRITE_BYTES
    channel.write_eof(0)
    assert b64decode(far.asked[-1].params["chunk"]) == b"0\n"
    assert len({asked.params["writeId"] for asked in far.asked}) == len(far.asked)


def test_a_terminals_name_is_kept_and_not_shown() -> None:
    far, heard, channel = started(stdin=True, tty={"cols": 80, "rows": 24, "term": "dumb"})
    for seq, part in enumerate((b"\x1e/dev/p", b"ts/7\x1e$ ", b"ls"), 1):
        channel.notified(*output(seq, part, "pty"))
    assert heard.output == b"$ ls"
    channel.send({"resize": [100, 30]})
    assert far.asked[-1].params["argv"][-6:] == ["-F", "/dev/pts/7", "cols", "100", "rows", "30"]


def test_windows_has_no_stdin_but_runs() -> None:
    far, _, channel = started(os="windows")
    assert far.asked == []
    with pytest.raises(UsageError, match="runs Windows"):
        started(stdin=True, os="windows")
    channel.close()
    assert far.asked.pop().method == "process/terminate"


def test_a_start_that_fails_ends_the_channel() -> None:
    far, heard = Far(), Heard()
    channel = ProcessChannel(cast(ExecutorConnection, far), "exec", {"argv": ["x"]}, heard)
    channel.begin()
    far.asked.pop().done(None, CodexctlError("no"))
    assert [str(error) for error in heard.closes] == ["no"]
    assert not channel.is_open
