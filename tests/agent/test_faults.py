"""An app-server that hangs, prints garbage, or ends at once: told, restarted, and nothing stuck."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codexctl.agent import agent as agent_module
from codexctl.agent import approvals, supervisor, threads
from codexctl.agent.agent import Agent
from codexctl.agent.errors import AgentRefused, AgentUnavailable
from codexctl.host.environment import LoginEnvironment
from codexctl.paths import Home
from tests.support.codex import fake_codex, needs_codex

pytestmark = needs_codex
WAIT_S = 60.0


def run(folder: Path, mode: str, work: Callable[[Agent], Awaitable[None]]) -> None:
    """Have `work` done with an agent whose codex misbehaves so."""
    variables = fake_codex(folder, mode)

    async def login() -> LoginEnvironment:
        return LoginEnvironment("/bin/sh", str(folder), "person", variables)

    async def main() -> None:
        home = Home(str(folder / "home")).ensure()
        agent = Agent(home, "box", login)
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(agent.run())
            try:
                await work(agent)
            finally:
                running.cancel()
        assert not os.path.exists(home.join("app-server.json"))

    asyncio.run(main())


async def until(agent: Agent, words: str) -> None:
    """Until the app-server has ended for this reason, twice."""
    while agent.supervisor.restarts < 2:
        await asyncio.sleep(0.02)
    assert words in agent.supervisor.reason, agent.supervisor.reason


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(supervisor, "PING_EVERY_S", 0.1)


def test_garbage_is_borne_for_a_while_and_then_not(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        agent.supervisor.want()
        await until(agent, "it wrote what is no message")

    run(tmp_path, "garbage", work)


def test_one_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PING_S", 0.5)

    async def work(agent: Agent) -> None:
        with pytest.raises(AgentUnavailable, match="is gone"):
            await agent.call("thread/list", {})
        await until(agent, "it hangs: no answer within")

    run(tmp_path, "hang", work)


def test_one_that_never_greets_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "READY_S", 0.5)

    async def work(agent: Agent) -> None:
        agent.supervisor.want()
        await until(agent, "it did not answer within")

    run(tmp_path, "mute", work)


def test_one_that_ends_at_its_start_says_why_to_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SOON_S", 0.0)

    async def work(agent: Agent) -> None:
        with pytest.raises(AgentUnavailable, match="the config has a mistake in line 3"):
            await agent.call("thread/list", {})
        await until(agent, "the config has a mistake in line 3")

    run(tmp_path, "die", work)


def test_what_is_not_known_passes_through_untouched(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        assert await agent.call("thread/list", {}) == {"data": []}
        while not (page := agent.store.page("t9", 0)):
            await agent.changed(agent.store.last)
        assert page[0].line == '{"method":"new/thing","params":{"threadId":"t9","odd":[1.50]}}'
        # A request that nobody here can serve is refused, not left waiting.
        while not (heard := [e for e in agent.store.page(None, 0) if '"heard"' in e.line]):
            await agent.changed(agent.store.last)
        assert (
            "does not serve item/tool/call"
            in json.loads(heard[0].line)["params"]["error"]["message"]
        )
        assert agent.supervisor.restarts == 0

    run(tmp_path, "stray", work)


def test_an_approval_that_nobody_answers_expires_and_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "EXPIRE_EVERY_S", 0.1)
    monkeypatch.setattr(approvals, "EXPIRES_S", 0.3)

    async def work(agent: Agent) -> None:
        await agent.call("thread/list", {})
        while not (ended := agent.store.approvals(state="expired")):
            await agent.changed(agent.store.last)
        assert ended[0]["reason"] == "nobody answered in time"
        while not (heard := [e for e in agent.store.page(None, 0) if '"heard"' in e.line]):
            await agent.changed(agent.store.last)
        assert json.loads(heard[0].line)["params"]["result"] == {"decision": "decline"}
        assert agent.pending() == []

    run(tmp_path, "ask", work)


async def in_its_turn(agent: Agent) -> None:
    agent.supervisor.want()
    await agent.server()
    while agent.store.facts("t9").get("turn") != "u":
        await agent.changed(agent.store.last)


def test_a_turn_that_ends_as_a_message_comes_does_not_refuse_it(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        await in_its_turn(agent)
        refused = asyncio.Event()

        async def asked(method: str, params: dict[str, Any]) -> dict[str, Any]:
            try:
                return await Agent.call(agent, method, params)
            except AgentRefused:
                refused.set()
                raise

        call: Any = SimpleNamespace(agent=agent)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agent, "call", asked)
            async with asyncio.TaskGroup() as tasks:
                joined = tasks.create_task(threads._steered(call, "t9", "u", "and this", None))
                await refused.wait()
                assert agent.store.facts("t9")["turn"] == "u", "its end is still to come"
                await asked("thread/list", {})
        assert joined.result() is False, "so it begins a turn"

    run(tmp_path, "late", work)


def test_a_turn_that_goes_on_and_takes_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TURN_ENDS_S", 0.2)

    async def work(agent: Agent) -> None:
        await in_its_turn(agent)
        call: Any = SimpleNamespace(agent=agent)
        with pytest.raises(AgentRefused, match="no active turn"):
            await threads._steered(call, "t9", "u", "and this", None)
        await agent.call("thread/list", {})  # ends it: an agent with a turn is left running
        assert await threads._ends(call, "t9", "u")

    run(tmp_path, "late", work)
