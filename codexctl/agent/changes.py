"""thread.*: what concerns a thread as a whole. Resume, fork, goal, archive, review; its diff."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from codexctl.agent import modes, tree
from codexctl.agent.call import Call
from codexctl.agent.errors import AgentRefused
from codexctl.agent.folders import folder, need_folder, thread_folder
from codexctl.agent.lookup import find_thread, public
from codexctl.agent.once import done
from codexctl.agent.threads import described, loaded, need_login, turn
from codexctl.errors import UsageError

MAX_EXPORTED_PAGES = 10_000
EXPORT_PAGE = 100
GOAL_STATES = ("active", "paused", "complete")


async def resume(call: Call) -> None:
    """Load a thread again, with the modes asked for; with a text, a turn begins at once."""
    text = None
    if call.params.get("text") is not None or call.has_input:
        text = await call.long_text("text")
    found, _ = await find_thread(call.agent, call.text("thread"))
    asked = call.maybe_text("sandbox") or call.maybe_text("approval")
    chosen = await modes.resumed(call, found) if asked else None
    was_loaded = (found.get("status") or {}).get("type") != "notLoaded"
    if chosen and was_loaded and not text:
        raise UsageError(
            "this thread is loaded, so its modes change with its next turn",
            hint="give the message as well",
        )
    thread = await loaded(call)
    record = chosen.as_record() if chosen else {}
    call.context.record(call.method, call.peer, text or "", "asked", thread=thread["id"], **record)
    if text:
        await need_login(call)
        key = call.maybe_text("key")
        await turn(call, thread["id"], text, key, chosen if was_loaded else None)
    read = await call.agent.call("thread/read", {"threadId": thread["id"]})
    await done(call, thread["id"], await described(call, read["thread"]))


async def fork(call: Call) -> None:
    """A new thread that begins with the conversation of another, archived or not."""
    thread, _ = await find_thread(call.agent, call.text("thread"))
    cwd = folder(call, call.maybe_text("cwd") or thread.get("cwd"))
    chosen = await modes.resumed(call, thread)
    call.context.record(
        call.method, call.peer, thread["id"], "asked", where=cwd, **chosen.as_record()
    )
    answer = await call.agent.call(
        "thread/fork",
        {"threadId": thread["id"], "cwd": cwd, "excludeTurns": True, **chosen.as_params()},
    )
    id = str(answer["thread"]["id"])
    call.agent.learn_settings(id, answer.get("sandbox"), answer)
    if name := call.maybe_text("name"):
        await call.agent.call("thread/name/set", {"threadId": id, "name": name})
    await done(call, id, public(call.agent, {**answer["thread"], "name": name}))


async def rename(call: Call) -> None:
    thread, archived = await find_thread(call.agent, call.text("thread"))
    name = call.text("name")
    await call.agent.call("thread/name/set", {"threadId": thread["id"], "name": name})
    await call.line(public(call.agent, {**thread, "name": name}, archived=archived))


async def goal(call: Call) -> None:
    """Read the goal of a thread; set it with `objective` or `state`; drop it with `clear`."""
    thread, _ = await find_thread(call.agent, call.text("thread"))
    target = {"threadId": thread["id"]}
    objective, state = call.maybe_text("objective"), call.maybe_text("state")
    if call.flag("clear"):
        call.need("exec")
        await call.agent.call("thread/goal/clear", target)
    elif objective or state:
        call.need("exec")
        if state and state not in GOAL_STATES:
            raise UsageError(f"a goal is never {state[:40]!r}", hint=", ".join(GOAL_STATES))
        await loaded(call)
        given = {"objective": objective, "status": state}
        await call.agent.call("thread/goal/set", target | {k: v for k, v in given.items() if v})
    answer = await call.agent.call("thread/goal/get", target)
    await call.line({"thread": thread["id"], "goal": answer.get("goal")})


async def archive(call: Call) -> None:
    """Put a thread away; a turn that runs is refused rather than cut."""
    thread, archived = await find_thread(call.agent, call.text("thread"))
    if call.agent.store.facts(thread["id"]).get("turn"):
        raise UsageError(
            "a turn runs in this thread", hint=f"codexctl thread interrupt {thread['id']}"
        )
    if not archived:
        call.context.record(call.method, call.peer, thread["id"], "archived")
        await call.agent.call("thread/archive", {"threadId": thread["id"]})
    await call.line(public(call.agent, thread, archived=True))


async def unarchive(call: Call) -> None:
    """Take a thread back. One that has moved to another host stays where it went."""
    thread, archived = await find_thread(call.agent, call.text("thread"))
    moved = call.agent.store.facts(thread["id"]).get("moved_to")
    if moved:
        raise UsageError(
            f"thread {thread['id']} has moved to {moved}",
            hint="hand it back from there: codexctl thread handoff",
        )
    if archived:
        call.context.record(call.method, call.peer, thread["id"], "unarchived")
        answer = await call.agent.call("thread/unarchive", {"threadId": thread["id"]})
        thread = answer["thread"]
    await call.line(public(call.agent, thread))


async def review(call: Call) -> None:
    """Have the agent review what is uncommitted, or `base`, a `commit`, or by `instructions`."""
    base, commit = call.maybe_text("base"), call.maybe_text("commit")
    instructions = call.maybe_text("instructions")
    if sum(value is not None for value in (base, commit, instructions)) > 1:
        raise UsageError("a review is of one thing: base, commit or instructions")
    target: dict[str, str] = {"type": "uncommittedChanges"}
    if base:
        target = {"type": "baseBranch", "branch": base}
    elif commit:
        target = {"type": "commit", "sha": commit}
    elif instructions:
        target = {"type": "custom", "instructions": instructions}
    thread = await loaded(call)
    await need_login(call)
    call.context.record(call.method, call.peer, target["type"], "asked", thread=thread["id"])
    answer = await call.agent.call("review/start", {"threadId": thread["id"], "target": target})
    await call.line(
        {
            "thread": thread["id"],
            "review_thread": answer.get("reviewThreadId"),
            "turn": (answer.get("turn") or {}).get("id"),
        }
    )


async def diff(call: Call) -> None:
    """The patch from the thread's start to its working tree as it is now, untracked files too."""
    thread, _ = await find_thread(call.agent, call.text("thread"))
    facts = call.agent.store.facts(thread["id"])
    cwd = str(thread.get("cwd") or facts.get("cwd") or "")
    need_folder(call, cwd)
    commit = (thread.get("gitInfo") or {}).get("sha")
    scratch = thread_folder(call.context.home, thread["id"])
    async with call.agent.lock(thread["id"]):
        pieces = await asyncio.to_thread(_diff, cwd, scratch, facts.get("base"), commit)
        while piece := await asyncio.to_thread(next, pieces, b""):
            await call.write(piece)


def _diff(cwd: str, scratch: str, kept: str | None, commit: str | None) -> Iterator[bytes]:
    place = tree.find(cwd)
    if place is None:
        raise UsageError(
            f"{cwd} is not in a git repository", hint=f"make it one: git -C {cwd} init"
        )
    return tree.changes(place, scratch, tree.base_of(place, scratch, kept, commit))


async def export(call: Call) -> None:
    """The thread and all its turns with their items, oldest first, a line each."""
    thread, archived = await find_thread(call.agent, call.text("thread"))
    await call.line({"thread": public(call.agent, thread, archived=archived), "official": thread})
    cursor: str | None = None
    for _ in range(MAX_EXPORTED_PAGES):
        params: dict[str, Any] = {
            "threadId": thread["id"],
            "limit": EXPORT_PAGE,
            "itemsView": "full",
            "sortDirection": "asc",
        }
        if cursor is not None:
            params["cursor"] = cursor
        try:
            page = await call.agent.call("thread/turns/list", params)
        except AgentRefused:
            if not archived:
                raise
            return  # the app-server does not read the turns of archived threads
        for found in page.get("data") or ():
            await call.line({"turn": found})
        cursor = page.get("nextCursor")
        if cursor is None:
            return
