"""thread.*: start, look, follow, steer. The official calls behind codexctl's own objects.

A thread is named by its id, a prefix of it or its name, and resolved here. What may be asked of a
thread's sandbox and approvals is in codexctl.agent.modes.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

from codexctl.agent import modes, tree
from codexctl.agent.call import Call
from codexctl.agent.errors import (
    AgentRefused,
    ArchivedThread,
    NotLoggedIn,
)
from codexctl.agent.folders import folder, make_worktree, need_folder, thread_folder
from codexctl.agent.handoff.journal import check_may_act
from codexctl.agent.lookup import find_thread, list_threads, public
from codexctl.agent.once import begin, done
from codexctl.errors import UsageError
from codexctl.session.channel import ChannelClosed

MAX_LISTED = 1_000
MAX_TURNS = 200  # of thread.show
NEWEST = "now"
TURN_ENDS_S = 5.0  # from when the app-server takes nothing for a turn to when it says that it ended


async def list_all(call: Call) -> None:
    """Threads of this host, those of the official CLI included, the newest first."""
    limit = call.number("limit", 50, MAX_LISTED)
    for thread in await list_threads(call.agent, archived=call.flag("archived"), limit=limit):
        await call.line(public(call.agent, thread, archived=call.flag("archived")))


async def show(call: Call) -> None:
    """The thread, then its turns with their items, the newest last."""
    thread, archived = await find_thread(call.agent, call.text("thread"))
    await call.line(await described(call, thread, archived=archived))
    limit = call.number("limit", 20, MAX_TURNS)
    if not limit or archived:
        return
    turns = await call.agent.call(
        "thread/turns/list",
        {
            "threadId": thread["id"],
            "limit": limit,
            "itemsView": "full",
            "sortDirection": "desc",
        },
    )
    for turn in reversed(turns.get("data") or []):
        await call.line({"turn": turn})


async def described(
    call: Call, thread: dict[str, Any], *, archived: bool = False
) -> dict[str, Any]:
    """The public object of a thread, with its goal."""
    out = public(call.agent, thread, archived=archived)
    if not archived:
        try:
            goal = await call.agent.call("thread/goal/get", {"threadId": thread["id"]})
        except AgentRefused:
            goal = {}
        if goal.get("goal"):
            out["goal"] = goal["goal"]
    return out


async def watch(call: Call) -> None:
    """Events behind a cursor, of one thread or all; with `follow` those that come, too.

    A `script` follows for an exit status; it is nobody who watches, so notices go out.
    """
    agent = call.agent
    name = call.maybe_text("thread")
    thread = (await find_thread(agent, name))[0]["id"] if name else None
    cursor = _cursor(call)
    follow, script = call.flag("follow"), call.flag("script")
    if cursor and cursor + 1 < agent.store.first():
        await call.line(
            {
                "cursor": cursor, "at": 0, "thread": thread, "method": "codexctl/events/dropped",
                "params": {"after": cursor, "before": agent.store.first()},
            }
        )  # fmt: skip
    cursor = await _send_events(call, thread, cursor)
    await call.line(
        {
            "cursor": max(cursor, agent.store.last), "at": 0, "thread": thread,
            "method": "codexctl/events/replayed", "params": {},
        }
    )  # fmt: skip
    if follow:
        seen = nullcontext() if script else agent.watched_by(call.peer.device_id, thread)
        with seen:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(_follow(call, thread, cursor))
                while await call.channel.receive() is not None:
                    pass
                following.cancel()


def _cursor(call: Call) -> int:
    value = call.params.get("cursor")
    if value == NEWEST:
        return call.agent.store.last
    return call.number("cursor", 0, 1 << 62)


async def _follow(call: Call, thread: str | None, cursor: int) -> None:
    try:
        while True:
            await call.agent.changed(cursor)
            last = call.agent.store.last
            cursor = max(await _send_events(call, thread, cursor), last)
    except ChannelClosed:
        pass  # `receive` tells the other task


async def _send_events(call: Call, thread: str | None, cursor: int) -> int:
    while page := call.agent.store.page(thread, cursor):
        await call.write(b"".join(event.encode() for event in page))
        cursor = page[-1].cursor
    return cursor


# --- what changes a thread ---


async def start(call: Call) -> None:
    """A new thread and, with a prompt, its first turn. Refused beyond the policy's modes."""
    agent = call.agent
    prompt = await _prompt(call)
    cwd = folder(call, call.maybe_text("cwd"))
    await need_login(call)
    chosen = await modes.choose(call, cwd)
    call.context.record(
        "thread.start", call.peer, prompt or "", "asked", where=cwd, **chosen.as_record()
    )
    place = await asyncio.to_thread(tree.find, cwd)
    grown: dict[str, str] = {}
    if call.flag("worktree"):
        grown = await make_worktree(call, place, cwd, prompt)
        cwd = grown["cwd"]
        place = await asyncio.to_thread(tree.find, cwd)
    params: dict[str, Any] = {"cwd": cwd, **chosen.as_params()}
    if model := call.maybe_text("model"):
        params["model"] = model
    answer = await agent.call("thread/start", params)
    id = str(answer["thread"]["id"])
    agent.learn_settings(id, answer.get("sandbox"), answer)
    agent.store.learn(id, branch=grown.get("branch"), worktree=grown.get("worktree"))
    if place is not None:
        # Before the first turn: what the agent does is told from what was there.
        folder_of = thread_folder(call.context.home, id)
        async with agent.lock(id):
            base = await asyncio.to_thread(tree.snapshot, place, folder_of)
        agent.store.learn(id, base=base)
    if name := call.maybe_text("name"):
        await agent.call("thread/name/set", {"threadId": id, "name": name})
        agent.store.learn(id, name=name)
    if prompt:
        await turn(call, id, prompt, call.maybe_text("key"))
    thread = public(agent, {**answer["thread"], "preview": prompt or "", "name": name})
    if prompt and thread["status"] == "idle":
        thread["status"] = "active"  # its notification is still on the way
    await done(call, id, {**thread, **chosen.notice()})


async def send(call: Call) -> None:
    """A message: it begins a turn, or joins the one that runs."""
    text = await call.long_text("text")
    thread = await loaded(call)
    running = call.agent.store.facts(thread["id"]).get("turn")
    call.context.record(call.method, call.peer, text, "asked", thread=thread["id"])
    key = call.maybe_text("key")
    if not (running and await _steered(call, thread["id"], running, text, key)):
        await need_login(call)
        await turn(call, thread["id"], text, key)
    await done(call, thread["id"], {"thread": thread["id"], "delivered": True})


async def _steered(call: Call, thread: str, running: str, text: str, key: str | None) -> bool:
    """Whether the message went into the running turn; False where that has just ended."""
    params: dict[str, Any] = {
        "threadId": thread,
        "expectedTurnId": running,
        "input": [{"type": "text", "text": text}],
    }
    params |= begin(call, thread, key)
    try:
        await call.agent.call("turn/steer", params)
    except AgentRefused:
        if not await _ends(call, thread, running):
            raise
        return False
    return True


async def _ends(call: Call, thread: str, running: str) -> bool:
    """Whether a turn that refuses what it is asked is one that ends now."""
    agent = call.agent
    try:
        async with asyncio.timeout(TURN_ENDS_S):
            while True:
                cursor = agent.store.last
                if agent.store.facts(thread).get("turn") != running:
                    return True
                await agent.changed(cursor)
    except TimeoutError:
        return False


async def steer(call: Call) -> None:
    """A message into the turn that runs. UsageError where none does."""
    text = await call.long_text("text")
    thread = await loaded(call)
    running = call.agent.store.facts(thread["id"]).get("turn")
    none = UsageError("no turn runs in this thread", hint="codexctl thread send begins one")
    if not running:
        raise none
    call.context.record(call.method, call.peer, text, "asked", thread=thread["id"])
    if not await _steered(call, thread["id"], running, text, call.maybe_text("key")):
        raise none
    await done(call, thread["id"], {"thread": thread["id"], "delivered": True})


async def interrupt(call: Call) -> None:
    """Stop the turn that runs; what it asked of a person is withdrawn."""
    thread, _ = await find_thread(call.agent, call.text("thread"))
    running = call.agent.store.facts(thread["id"]).get("turn")
    interrupted = False
    if running:
        call.context.record(call.method, call.peer, running, "asked", thread=thread["id"])
        try:
            await call.agent.call("turn/interrupt", {"threadId": thread["id"], "turnId": running})
            interrupted = True
        except AgentRefused:
            if not await _ends(call, thread["id"], running):
                raise
    await call.line({"thread": thread["id"], "interrupted": interrupted})


# --- shared ---


async def turn(
    call: Call, thread: str, text: str, key: str | None, chosen: modes.Modes | None = None
) -> None:
    """Begin a turn; with `chosen` in other modes, which stay."""
    params: dict[str, Any] = {"threadId": thread, "input": [{"type": "text", "text": text}]}
    if chosen is not None:
        params |= chosen.as_turn_params()
    params |= begin(call, thread, key)
    await call.agent.call("turn/start", params)


async def loaded(call: Call) -> dict[str, Any]:
    """The thread of the request, loaded by the app-server. ArchivedThread, UnknownThread.

    One that was not loaded gets the modes of this request, or safe ones.
    """
    agent = call.agent
    thread, archived = await find_thread(agent, call.text("thread"))
    check_may_act(call.context.home, thread["id"])
    moved = agent.store.facts(thread["id"]).get("moved_to")
    if archived or moved:
        where = f"; it has moved to {moved}" if moved else ""
        raise ArchivedThread(
            f"thread {thread['id']} is archived{where}",
            hint=f"codexctl thread archive --undo {thread['id']}",
        )
    # Where it works now: a thread that was handed on has the other host's folder in its past.
    cwd = str(agent.store.facts(thread["id"]).get("cwd") or thread.get("cwd") or "")
    need_folder(call, cwd)
    if _member(thread, "status", "type") == "notLoaded":
        chosen = await modes.resumed(call, thread)
        asked = {"threadId": thread["id"], "cwd": cwd, "excludeTurns": True}
        answer = await agent.call("thread/resume", {**asked, **chosen.as_params()})
        agent.learn_settings(thread["id"], answer.get("sandbox"), answer)
    return thread


def _member(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


async def need_login(call: Call) -> None:
    """NotLoggedIn where the model provider wants a login that codex has not."""
    account = await call.agent.call("account/read", {})
    if account.get("requiresOpenaiAuth") and not account.get("account"):
        raise NotLoggedIn(
            f"codex on {call.context.name} is not logged in", hint="there: codex login"
        )


async def _prompt(call: Call) -> str | None:
    if call.params.get("prompt") is None and not call.has_input:
        return None
    return await call.long_text("prompt")
