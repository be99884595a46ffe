"""What a host says when it is started where it cannot serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from codexctl.errors import PolicyError, Refused, StateError
from codexctl.host.context import HostContext
from codexctl.paths import Home
from tests.host.conftest import Bench


def start(bench: Bench, workspace: Path | str) -> HostContext:
    return HostContext.create(
        bench.home, str(workspace), "host", system_policy="/none", person=str(bench.person)
    )


def test_workspaces_that_cannot_be_served(bench: Bench) -> None:
    (bench.person / ".ssh").mkdir()
    for workspace in ("/", "/etc", bench.home.path, bench.person / ".ssh"):
        with pytest.raises(Refused, match=r"cannot be a workspace|hidden from commands"):
            start(bench, workspace)
    with pytest.raises(StateError, match="is not a folder"):
        start(bench, bench.person / "missing")
    assert start(bench, bench.person).workspace == str(bench.person)


def test_a_workspace_outside_the_policys_roots(bench: Bench) -> None:
    Path(bench.home.policy).write_text('[workspace]\nroots = ["~/src"]\n')
    with pytest.raises(Refused, match=r"no workspace root of .*policy\.toml:2"):
        start(bench, bench.workspace)


def test_a_policy_that_cannot_be_obeyed(bench: Bench) -> None:
    Path(bench.home.policy).write_text("[sandbox]\nmodus = 1\n")
    with pytest.raises(PolicyError, match="line 2: has an unknown key modus"):
        start(bench, bench.workspace)


def test_a_home_that_cannot_be_written(tmp_path: Path, bench: Bench) -> None:
    """The audit log is what a command needs to be allowed."""
    import asyncio

    context = start(bench, bench.workspace)
    context.home = Home("/proc/nothing")
    context.audit._home = context.home
    context.audit._path = context.home.audit_log

    async def scenario() -> None:
        from tests.host.memory_channel import LAPTOP

        with pytest.raises(Refused, match=r"cannot write /proc/nothing/audit\.jsonl"):
            context.record("exec", LAPTOP, "x", "started")

    asyncio.run(scenario())
