"""Requests with a key come once, however often a device repeats them.

The key is noted before the app-server is told, and goes with the message, so that after a crash in
between the thread itself says whether it has come.
"""

from __future__ import annotations

from typing import Any

from codexctl.agent.call import Call, Handle
from codexctl.agent.errors import AgentRefused
from codexctl.errors import Refused

LOOKED_TURNS = 10  # newest turns of a thread in which a message is looked for


def once(handle: Handle) -> Handle:
    """The same handler, for which a repeated request gets the first one's result."""

    async def guarded(call: Call) -> None:
        key = call.maybe_text("key")
        if key is None:
            await handle(call)
            return
        # A device that lost its connection may repeat what is still being done.
        async with call.agent.lock(f"key {key}"):
            if not await _repeated(call, key):
                await handle(call)

    return guarded


async def _repeated(call: Call, key: str) -> bool:
    """Whether this request was done before; then its result is given again."""
    known = call.agent.store.key(key)
    if known is None:
        return False
    if known.method != call.method:
        raise Refused(f"the key {key[:80]} was used for {known.method}")
    result = known.result
    if result is None and known.thread and await _arrived(call, known.thread, key):
        result = {"id": known.thread, "thread": known.thread, "delivered": True}
        call.agent.store.put_key(key, call.method, known.thread, result)
    if result is None:
        return False
    await call.line({**result, "repeated": True})
    return True


async def _arrived(call: Call, thread: str, key: str) -> bool:
    """Whether a message with this key is in the thread."""
    params = {
        "threadId": thread, "limit": LOOKED_TURNS, "itemsView": "full", "sortDirection": "desc",
    }  # fmt: skip
    try:
        answer = await call.agent.call("thread/turns/list", params)
    except AgentRefused:
        return False  # nothing was ever said in it
    items = [item for turn in answer.get("data") or () for item in turn.get("items") or ()]
    return any(item.get("clientId") == key for item in items)


def begin(call: Call, thread: str, key: str | None) -> dict[str, Any]:
    """Note that a message with `key` is on its way; the members that tell the app-server of it."""
    if key is None:
        return {}
    call.agent.store.put_key(key, call.method, thread)
    return {"clientUserMessageId": key}


async def done(call: Call, thread: str, result: dict[str, Any]) -> None:
    """Write the one result of a request, and keep it where the request has a key."""
    key = call.maybe_text("key")
    if key:
        call.agent.store.put_key(key, call.method, thread, result)
    await call.line(result)
