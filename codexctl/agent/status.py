"""agent.status and git.state: what a device wants to know before it starts anything."""

from __future__ import annotations

import asyncio

from codexctl.agent import tree
from codexctl.agent.call import Call, Method
from codexctl.agent.errors import AgentUnavailable
from codexctl.agent.folders import folder
from codexctl.agent.store import KEEP_EVENT_BYTES, KEEP_EVENTS


async def status(call: Call) -> None:
    """Whether threads work here and why not; codex, its login, the policy's modes, retention."""
    agent, policy = call.agent, call.context.policy
    problem: dict[str, str] | None = None
    logged_in = None
    try:
        account = await agent.call("account/read", {})
        logged_in = bool(account.get("account")) or not account.get("requiresOpenaiAuth")
    except AgentUnavailable as error:
        problem = {"error": error.code, "message": error.message, "hint": error.hint}
    await call.line(
        {
            "works": problem is None and logged_in is True,
            "problem": problem,
            "codex": {"path": agent.codex.path, "version": agent.codex.version}
            if agent.codex
            else None,
            "logged_in": logged_in,
            "running": agent.supervisor.running,
            "restarts": agent.supervisor.restarts,
            "last_end": agent.supervisor.reason or None,
            "most": {
                "sandbox": policy.choice("threads.sandbox")[0],
                "approval": policy.choice("threads.approval")[0],
            },
            "events": {
                "first": agent.store.first(),
                "last": agent.store.last,
                "kept": KEEP_EVENTS,
                "kept_bytes": KEEP_EVENT_BYTES,
            },
            "approvals": len(agent.pending()),
        }
    )


async def git_state(call: Call) -> None:
    """The git state of the folder `cwd`, as tree.state has it."""
    cwd = folder(call, call.maybe_text("cwd"))
    async with call.agent.lock(cwd):
        found = await asyncio.to_thread(tree.state, cwd, call.context.home.join("threads", "state"))
    await call.line(found)


METHODS = {
    "agent.status": Method("view", status),
    "git.state": Method("view", git_state),
}
