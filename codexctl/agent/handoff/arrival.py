"""The thread itself on the target: put where the app-server finds it, read back, or taken away."""

from __future__ import annotations

import os
import shutil
from typing import Any

from codexctl.agent import modes
from codexctl.agent.call import Call
from codexctl.agent.errors import AgentRefused
from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.journal import TARGET, Journal
from codexctl.agent.handoff.restore import Corrupted, remove
from codexctl.agent.handoff.rollout import ARCHIVED, find_rollout, put
from codexctl.agent.handoff.snapshot import SENT
from codexctl.agent.handoff.workshop import ask_server, codex_home, folder_of, turns_of, work
from codexctl.errors import Refused


async def resume(call: Call, thread: str, facts: dict[str, Any]) -> None:
    """Put the rollout in place and have the app-server read it. Nothing of it takes a turn."""
    home = await codex_home(call)
    folder = folder_of(call.context.home, thread)
    earlier = find_rollout(home, facts["relative"])
    if "before" not in facts:
        facts["before"] = {"there": earlier is not None}
        if earlier is not None:
            shutil.copyfile(earlier, os.path.join(folder, "rollout.before"))
        with Journal(call.context.home) as journal:
            record, _ = journal.target(call.text("id"))
            journal.write(TARGET, record, facts)
    if earlier is not None and f"/{ARCHIVED}/" in earlier:
        await call.agent.call("thread/unarchive", {"threadId": thread})
    arrived = os.path.join(folder, "rollout")
    await work(thread, lambda: put(arrived, home, facts["relative"]))
    cwd = await work(thread, lambda: _folder(facts["place"], facts["below"]))
    chosen = await modes.resumed(call, {"id": thread})
    codex = call.agent.codex.version if call.agent.codex else "unknown"
    params = {"threadId": thread, "cwd": cwd, "excludeTurns": True, **chosen.as_params()}
    try:
        answer = await call.agent.call("thread/resume", params)
        found = (await call.agent.call("thread/read", {"threadId": thread}))["thread"]
    except AgentRefused as error:
        raise Refused(
            f"codex {codex} on {call.context.name} cannot read this thread: {error}",
            hint="install there the codex version of the source, or a newer one",
        ) from error
    if found.get("id") != thread or answer.get("cwd") != cwd:
        raise Refused("the thread that was read back is not the one that was sent")
    if (sent := facts.get("turns")) and await turns_of(call, thread) != sent:
        raise Refused(
            f"codex {codex} on {call.context.name} reads other turns than the source has",
            hint="install there the codex version of the source",
        )
    call.agent.learn_settings(thread, answer.get("sandbox"), answer)
    facts["notices"] = [*([chosen.notice()["notice"]] if chosen.lowered else [])]
    if isinstance(facts.get("name"), str):
        await call.agent.call("thread/name/set", {"threadId": thread, "name": facts["name"]})
    if isinstance(facts.get("goal"), dict):
        # An active goal begins turns by itself: it is made active when the thread is owned.
        goal = {"threadId": thread, **facts["goal"]}
        if goal.get("status") == "active":
            goal["status"] = "paused"
        await call.agent.call("thread/goal/set", goal)


def _folder(place: str, below: str) -> str:
    """The thread's folder, made where it is missing: git keeps no empty one. Corrupted."""
    cwd = os.path.join(place, below) if below else place
    if os.path.realpath(cwd) != cwd:
        raise Corrupted(f"{below} leads out of the working tree by a link")
    os.makedirs(cwd, exist_ok=True)
    return cwd


async def forget(call: Call, thread: str, facts: dict[str, Any]) -> None:
    folder = folder_of(call.context.home, thread)
    before = facts.get("before")
    if before is not None:
        home = await codex_home(call)
        if not before["there"]:
            await ask_server(call, "thread/archive", {"threadId": thread})
            await ask_server(call, "thread/delete", {"threadId": thread})
            left = find_rollout(home, facts["relative"])
            if left is not None:
                os.unlink(left)
        else:
            kept = os.path.join(folder, "rollout.before")
            await work(thread, lambda: put(kept, home, facts["relative"]))
            await ask_server(call, "thread/archive", {"threadId": thread})

    def clear() -> None:
        place = facts.get("place")
        if place is not None:
            remove(place)
        kept = os.path.isdir(os.path.join(folder, "carrier.git")) and Git(
            os.path.join(folder, "carrier.git")
        ).text("for-each-ref", "--count=1", SENT)
        if not kept:
            remove(folder)
            return
        for name in ("bundle", "rollout", "rollout.before"):
            if os.path.lexists(os.path.join(folder, name)):
                os.unlink(os.path.join(folder, name))

    await work(thread, clear)
