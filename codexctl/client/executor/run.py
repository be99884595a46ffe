"""`exec` and `shell` on an official executor, with this process's terminal, stdin and stdout."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from codexctl.client.connection import Connection
from codexctl.client.executor.connection import ExecutorConnection
from codexctl.client.process import run_command, run_terminal
from codexctl.client.store import HostRecord


def run_process(
    record: HostRecord,
    kind: str,
    params: dict[str, Any],
    *,
    notice: Callable[[str], None],
    path_notice: Callable[[str], None],
    stdin: bool = True,
) -> int:
    """Run a command (kind "exec") or a terminal ("pty") there; its exit status."""
    with ExecutorConnection.open(record, path_notice) as connection:
        # It has the same calls.
        session = cast(Connection, connection)
        if kind == "pty":
            return run_terminal(session, kind, params, notice=notice)
        return run_command(session, kind, params, notice=notice, stdin=stdin and not _is_null(0))


def _is_null(fd: int) -> bool:
    """Whether there is nothing to read: then the command needs no shell in front of it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(os.devnull))
    except OSError:
        return True
