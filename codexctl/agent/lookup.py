"""Threads of a host by name, and the object that devices see of them (PROTOCOL.md section 8)."""

from __future__ import annotations

from typing import Any

from codexctl.agent.agent import Agent
from codexctl.agent.errors import AgentRefused, AmbiguousThread, UnknownThread
from codexctl.agent.modes import is_bypass

PAGE = 100
MAX_SEARCHED = 5_000  # threads looked through for a prefix or a name
MAX_TOLD = 8  # candidates named by an error
ID_LENGTH = 36


async def list_threads(agent: Agent, *, archived: bool, limit: int) -> list[dict[str, Any]]:
    """The official threads, those changed last first."""
    out: list[dict[str, Any]] = []
    cursor = None
    while len(out) < limit:
        params: dict[str, Any] = {
            "archived": archived,
            "limit": min(PAGE, limit - len(out)),
            "sortKey": "updated_at",
            "sourceKinds": ["cli", "vscode", "exec", "appServer"],
        }
        if cursor is not None:
            params["cursor"] = cursor
        answer = await agent.call("thread/list", params)
        found = answer.get("data") or []
        out += found
        cursor = answer.get("nextCursor")
        if not found or cursor is None:
            break
    return out


async def find_thread(agent: Agent, name: str) -> tuple[dict[str, Any], bool]:
    """The official thread that is meant, and whether it is archived.

    UnknownThread, or AmbiguousThread with the candidates.
    """
    if len(name) == ID_LENGTH and name.count("-") == 4:
        try:
            answer = await agent.call("thread/read", {"threadId": name})
        except AgentRefused:
            pass
        else:
            thread: dict[str, Any] = answer["thread"]
            return thread, _is_archived(thread)
    candidates: list[tuple[dict[str, Any], bool]] = []
    for archived in (False, True):
        found = await list_threads(agent, archived=archived, limit=MAX_SEARCHED)
        candidates += [(thread, archived) for thread in found]
    candidates += await _unlisted(agent, name, {str(thread["id"]) for thread, _ in candidates})
    exact = [c for c in candidates if c[0]["id"] == name or c[0].get("name") == name]
    matching = exact or [c for c in candidates if str(c[0]["id"]).startswith(name.lower())]
    # A live thread is meant rather than an archived one of the same name.
    live = [c for c in matching if not c[1]]
    if len(live) == 1 or len(matching) == 1:
        return (live or matching)[0]
    if not matching:
        raise UnknownThread(name)
    told = "\n".join(
        f"{t['id']}  {t.get('name') or t.get('preview') or ''}"[:100]
        for t, _ in matching[:MAX_TOLD]
    )
    raise AmbiguousThread(
        f"{name[:80]!r} could be {len(matching)} threads", hint=f"name one of:\n{told}"
    )


async def _unlisted(agent: Agent, name: str, listed: set[str]) -> list[tuple[dict[str, Any], bool]]:
    """Threads that began just now: the app-server lists them after their first message."""
    found: list[tuple[dict[str, Any], bool]] = []
    for id, facts in agent.store.all_facts().items():
        if id not in listed and (id.startswith(name.lower()) or facts.get("name") == name):
            try:
                answer = await agent.call("thread/read", {"threadId": id})
            except AgentRefused:
                continue  # its rollout is gone
            thread = {"name": facts.get("name"), **answer["thread"]}
            found.append((thread, _is_archived(thread)))
    return found


def _is_archived(thread: dict[str, Any]) -> bool:
    return "/archived_sessions/" in str(thread.get("path") or "")


def public(agent: Agent, thread: dict[str, Any], *, archived: bool = False) -> dict[str, Any]:
    """What devices see of an official thread, with what codexctl itself knows of it."""
    id = str(thread["id"])
    facts = agent.store.facts(id)
    status = thread.get("status") or {}
    out = {
        "id": id,
        "name": thread.get("name"),
        # The official list has the folder of the first turn until there is another one.
        "cwd": facts.get("cwd") or thread.get("cwd"),
        "status": "archived" if archived else _status(agent.statuses.get(id, status), facts),
        "preview": thread.get("preview") or "",
        "model": facts.get("model") or thread.get("model"),
        "sandbox": facts.get("sandbox"),
        "approval": facts.get("approval"),
        "bypass": is_bypass(facts.get("sandbox"), facts.get("approval")),
        "created_at": thread.get("createdAt"),
        "updated_at": thread.get("updatedAt"),
        "branch": facts.get("branch") or (thread.get("gitInfo") or {}).get("branch"),
        "worktree": facts.get("worktree"),
        "path": thread.get("path"),
    }
    if facts.get("moved_to"):
        out["moved_to"] = facts["moved_to"]
    return out


def _status(status: dict[str, Any], facts: dict[str, Any]) -> str:
    kind = status.get("type")
    if kind == "active":
        return "waiting" if status.get("activeFlags") else "active"
    if kind == "systemError" or facts.get("last_turn") == "failed":
        return "failed"
    return "idle"
