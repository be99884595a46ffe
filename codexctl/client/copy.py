"""Copies to and from a paired host: the device's end of a file channel (PROTOCOL.md section 7).

    summary = upload(connection, ["src"], "backup/")
    summary = download(connection, ["results"], ".")

Both raise what ended a copy early; what failed alone stands in the summary. Running the same copy
again goes on where it broke off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from codexctl.client.connection import Channel, ChannelHandler, Connection
from codexctl.errors import CodexctlError, ConnectionFailed
from codexctl.transfer.receiver import Receiver
from codexctl.transfer.sender import Sender
from codexctl.transfer.source import expand_sources, source_name, walk
from codexctl.transfer.summary import Summary
from codexctl.transfer.target import Target
from codexctl.wire.channel import STDIN

MAX_ROOTS = 64  # that are told
TURN_BYTES = 4 << 20  # sent before incoming bytes are looked at again

Step = Callable[[int], None]


def upload(
    connection: Connection,
    paths: Sequence[str],
    target: str,
    *,
    sandbox: bool = True,
    step: Step = lambda moved: None,
) -> Summary:
    """Copy what is here to `target` there. `step` is called with the bytes that moved so far."""
    roots = expand_sources(paths)
    params: dict[str, Any] = {"op": "write", "path": target, "many": len(roots) > 1}
    names = [name for _, name in roots]
    if len(names) <= MAX_ROOTS:
        # By these the host knows a copy that is begun anew while it still keeps the first one.
        params["roots"] = [name.encode("utf-8", "replace").decode() for name in names]
    return _copy(connection, _with_sandbox(params, sandbox), Sender(walk(roots)), step)


def download(
    connection: Connection,
    paths: Sequence[str],
    target: str,
    *,
    sandbox: bool = True,
    step: Step = lambda moved: None,
) -> Summary:
    """Copy what is there to `target` here; nothing is written that was not asked for by name."""
    # A folder that is named by no name of its own: what is in it is meant.
    paths = [{"": ".", "~": "~/.", "~/": "~/."}.get(path, path) for path in paths]
    many = len(paths) > 1 or any(set(path) & set("*?[") for path in paths)
    receiver = Receiver(Target.open(target, many=many), [source_name(path) for path in paths])
    params = {"op": "read", "paths": list(paths)}
    return _copy(connection, _with_sandbox(params, sandbox), receiver, step)


def _with_sandbox(params: dict[str, Any], sandbox: bool) -> dict[str, Any]:
    return params if sandbox else {**params, "sandbox": "off"}


def _copy(
    connection: Connection, params: dict[str, Any], party: Sender | Receiver, step: Step
) -> Summary:
    try:
        copy = _Copy(connection, params, party, step)
        connection.run(lambda: copy.over)
        copy.channel.close()
    finally:
        party.close()
    if copy.error is not None:
        raise copy.error
    return party.summary


class _Copy(ChannelHandler):
    """Joins one side of the protocol with a channel; `over` when there is nothing left to do."""

    def __init__(
        self,
        connection: Connection,
        params: dict[str, Any],
        party: Sender | Receiver,
        step: Step,
    ) -> None:
        self._connection = connection
        self._party = party
        self._step = step
        self._waiting = memoryview(b"")
        self._scheduled = False
        self._moved = 0
        self.error: CodexctlError | None = None
        self.over = False
        self.channel: Channel = connection.channel("file", params, self)

    def opened(self, result: dict[str, Any]) -> None:
        del result
        self._work()

    def data(self, stream: int, data: memoryview) -> None:
        del stream
        self._count(len(data))
        try:
            self._party.feed(data)
        except CodexctlError as error:
            self.error, self.over = error, True
            return
        self.channel.consumed(len(data))
        self._work()

    def writable(self) -> None:
        self._work()

    def closed(self, error: CodexctlError | None) -> None:
        if not self.over:
            self.error = error or ConnectionFailed(
                "the host ended the copy before it was complete",
                hint="run the same command again: it goes on where it broke off",
            )
            self.over = True

    def _work(self) -> None:
        """Send what the party has, as far as there is room."""
        self._scheduled = False
        budget = TURN_BYTES
        try:
            while not self.over:
                if not self._waiting:
                    produced = self._party.produce()
                    if produced is None:
                        self.over = self._party.finished
                        return
                    self._waiting = memoryview(produced)
                    if not produced:
                        budget = 0  # it is hashing: the network is looked at in between
                written = self.channel.write(STDIN, self._waiting) if self._waiting else 0
                self._waiting = self._waiting[written:]
                self._count(written)
                budget -= written
                if self._waiting:
                    self.channel.waiting = True
                    return
                if budget <= 0:
                    self._later()
                    return
        except CodexctlError as error:
            self.error, self.over = error, True

    def _later(self) -> None:
        """Go on when the connection has looked at its sockets."""
        if not self._scheduled:
            self._scheduled = True
            self._connection.call_after(0, self._work)

    def _count(self, size: int) -> None:
        self._moved += size
        self._step(self._moved)
