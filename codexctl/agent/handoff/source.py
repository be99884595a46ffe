"""The source of a handoff: looks, freezes, sends, and lets go of the thread or keeps it.

Everything that a restart needs stands in the journal before it is told; every step may be asked
for again.
"""

from __future__ import annotations

import os
from typing import Any

from codexctl.agent.call import Call
from codexctl.agent.errors import ArchivedThread
from codexctl.agent.handoff import core
from codexctl.agent.handoff.bundle import Part, hash_file, keep_sent, make_bundle, offer
from codexctl.agent.handoff.core import SourceRecord
from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.journal import SOURCE, Journal, check_may_act, new_seal
from codexctl.agent.handoff.repository import NotMovable, Repository, is_oid, open_repository
from codexctl.agent.handoff.rollout import prefix_of, relative_path
from codexctl.agent.handoff.snapshot import Snapshot, Survey, take
from codexctl.agent.handoff.tools import wanted
from codexctl.agent.handoff.workshop import (
    ask_server,
    bundle_path,
    codex_home,
    folder_of,
    instructions,
    news,
    note,
    part_name,
    turns_of,
    work,
)
from codexctl.agent.lookup import find_thread
from codexctl.errors import Refused, UsageError

SEND_BYTES = 256 * 1024
MAX_HAVES = 2048
MAX_GLOBS = 64
LOOK_EVERY_S = 2.0


async def inspect(call: Call) -> None:
    """What would move, how large it is, and what is in its way. Changes nothing."""
    if call.maybe_text("id"):
        record, facts = _source(call)  # one that is under way is looked at again
        thread, globs = await _read(call, record.thread), tuple(facts["globs"])
    else:
        thread, globs = await _thread(call), _globs(call)
    home = await codex_home(call)
    path = _rollout(thread)
    folder = folder_of(call.context.home, thread["id"])

    def look() -> tuple[Repository, Snapshot, Survey, list[str], dict[str, str], int]:
        repository = open_repository(thread["cwd"])
        snapshot, survey = take(repository, folder, include_ignored=globs)
        offered = offer(Git(os.path.join(folder, "carrier.git")), snapshot)
        told = instructions(thread["cwd"], home)
        return repository, snapshot, survey, offered, told, os.path.getsize(path)

    repository, snapshot, survey, offered, told, size = await work(thread["id"], look)
    goal = await ask_server(call, "thread/goal/get", {"threadId": thread["id"]})
    codex = call.agent.codex
    await call.line(
        {
            "thread": thread["id"],
            "name": thread.get("name"),
            "goal": _goal(goal),
            "cwd": thread["cwd"],
            "below": _below(repository, thread["cwd"]),
            "folder": os.path.basename(repository.top),
            "active": _is_active(call, thread["id"]),
            "approvals": _approvals(call, thread["id"]),
            "codex": codex.version if codex else "",
            "provider": thread.get("modelProvider"),
            "model": thread.get("model"),
            "bypass": _bypass(call, thread["id"]),
            "rollout": {"relative": relative_path(home, path, thread["id"]), "size": size},
            "snapshot": snapshot.as_json(),
            "survey": _survey(survey),
            "offered": offered,
            "instructions": told,
            "tools": wanted(repository.top, (await call.context.login()).path),
            "host": call.context.name,
        }
    )


async def pack(call: Call) -> None:
    """How much would be sent to a target that has these commits and that much of the rollout."""
    thread = await _thread(call)
    folder = folder_of(call.context.home, thread["id"])
    haves = _haves(call)
    there = call.params.get("rollout") or {}
    path = _rollout(thread)

    def measure() -> tuple[Part, int]:
        part = make_bundle(Git(os.path.join(folder, "carrier.git")), folder, haves)
        return part, os.path.getsize(path) - _agreeing(path, there)

    part, rest = await work(thread["id"], measure)
    await call.line({"bundle": part.size, "rollout": rest})


def _agreeing(path: str, there: dict[str, Any]) -> int:
    """How many bytes the target has of this file already."""
    size = there.get("size")
    if not isinstance(size, int) or size <= 0:
        return 0
    part = prefix_of(path, size)
    return size if part is not None and part.sha256 == there.get("sha256") else 0


async def freeze(call: Call) -> None:
    """Hold the thread, wait for its turn, and make ready what is sent. May be asked for again."""
    home = call.context.home
    id = call.text("id")
    with Journal(home) as journal:
        known = [row for row in journal.rows() if row.record.id == id and row.side == SOURCE]
    if known:
        record, facts = _source(call)
        thread = await _read(call, record.thread)
    else:
        thread = await _thread(call)
        check_may_act(home, thread["id"])
        _rollout(thread)
        lock = call.text("lock")
        record = SourceRecord(id, thread["id"], core.FROZEN, new_seal(), new_seal(), lock)
        facts = {"peer": _peer(call), "globs": _globs(call), "cwd": thread["cwd"]}
        call.context.record(
            "handoff", call.peer, thread["id"], "asked", where=thread["cwd"], to=facts["peer"]
        )
        with Journal(home) as journal:
            journal.begin(SOURCE, record, facts)
        note(call, thread["id"], "codexctl/handoff/frozen", to=facts["peer"]["name"])
    if record.state != core.FROZEN:
        raise Refused(f"this handoff is {record.state} already")
    await _pause_goal(call, record, facts)
    await _quiesce(call, record.thread)
    thread = await _read(call, record.thread)
    path = _rollout(thread)
    haves = _haves(call)
    folder = folder_of(home, record.thread)
    relative = relative_path(await codex_home(call), path, record.thread)

    def prepare() -> tuple[str, Snapshot, Part, Part]:
        repository = open_repository(thread["cwd"])
        below = _below(repository, thread["cwd"])
        snapshot, _ = take(
            repository, folder, include_ignored=tuple(facts["globs"]), label=record.id
        )
        carrier = Git(os.path.join(folder, "carrier.git"))
        return below, snapshot, make_bundle(carrier, folder, haves), hash_file(path)

    below, snapshot, bundle, rollout = await work(record.thread, prepare)
    parts = {"bundle": bundle._asdict(), "rollout": rollout._asdict()}
    facts |= {"snapshot": snapshot.as_json(), "parts": parts, "rollout_path": path}
    facts["name"] = thread.get("name")
    with Journal(home) as journal:
        journal.write(SOURCE, record, facts)
    await call.line(
        {
            "id": id,
            "thread": record.thread,
            "below": below,
            "name": thread.get("name"),
            "goal": facts["goal"],
            "locks": record.locks,
            "snapshot": snapshot.as_json(),
            "parts": parts,
            "relative": relative,
            "haves": haves,
            "turns": await turns_of(call, record.thread),
            "codex": call.agent.codex.version if call.agent.codex else "",
        }
    )


async def _pause_goal(call: Call, record: SourceRecord, facts: dict[str, Any]) -> None:
    """An active goal begins turns by itself: it is paused here, and active again at the end."""
    if "goal" not in facts:
        answer = await ask_server(call, "thread/goal/get", {"threadId": record.thread})
        facts["goal"] = _goal(answer)
        with Journal(call.context.home) as journal:
            journal.write(SOURCE, record, facts)
    if facts["goal"] and facts["goal"].get("status") == "active":
        paused = {"threadId": record.thread, "status": "paused"}
        await ask_server(call, "thread/goal/set", paused)


async def _quiesce(call: Call, thread: str) -> None:
    """Until no turn runs. Each approval that the turn waits for is told once."""
    told: set[str] = set()
    interrupted = False
    while _is_active(call, thread):
        turn = call.agent.store.facts(thread).get("turn")
        if call.flag("interrupt") and turn and not interrupted:
            interrupted = True
            await ask_server(call, "turn/interrupt", {"threadId": thread, "turnId": turn})
        if not told and not interrupted:
            await call.line({"waiting": "turn"})
            told.add("")
        for approval in _approvals(call, thread):
            if approval["id"] not in told:
                told.add(approval["id"])
                await call.line({"waiting": "approval", "approval": approval})
        await news(call, LOOK_EVERY_S)


async def send(call: Call) -> None:
    """The bytes of a part, from `offset` on."""
    record, facts = _source(call)
    part = part_name(call)
    path = _part_path(call, record, facts, part)
    offset = call.number("offset", 0, facts["parts"][part]["size"])
    left = facts["parts"][part]["size"] - offset
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while left:
            # What is appended meanwhile is not of this handoff.
            data = os.pread(fd, min(SEND_BYTES, left), offset)
            if not data:
                raise Refused(f"{path} became shorter while it was sent", hint="run --undo")
            offset += len(data)
            left -= len(data)
            await call.write(data)
    finally:
        os.close(fd)


async def agreeing(call: Call) -> None:
    """How many bytes of a part the target need not be sent again."""
    record, facts = _source(call)
    path = _part_path(call, record, facts, part_name(call))
    there = {"size": call.number("size", 0, 1 << 62), "sha256": call.text("sha256")}
    await call.line({"size": await work(record.thread, lambda: _agreeing(path, there))})


def _part_path(call: Call, record: SourceRecord, facts: dict[str, Any], part: str) -> str:
    if "parts" not in facts:
        raise UsageError("this handoff has nothing to send yet")
    if part == "bundle":
        return bundle_path(folder_of(call.context.home, record.thread))
    return str(facts["rollout_path"])


async def commit(call: Call) -> None:
    """Give the thread to the target: the one write that decides. Refused where it changed."""
    record, facts = _source(call)
    if record.state == core.FROZEN:
        after = core.committed(record, call.text("seal"))
        await _unchanged(call, record, facts)
        with Journal(call.context.home) as journal:
            journal.write(SOURCE, after, facts)
        record = after
        call.context.note("handoff", call.peer, record.thread, "committed", to=facts["peer"])
        note(call, record.thread, "codexctl/handoff/moved", to=facts["peer"]["name"])
    await call.line({"seal": core.commit_seal(record), "state": record.state})


async def _unchanged(call: Call, record: SourceRecord, facts: dict[str, Any]) -> None:
    if _is_active(call, record.thread):
        raise Refused("a turn runs in this thread again", hint="wait for it, then run --resume")
    folder = folder_of(call.context.home, record.thread)

    def look() -> tuple[Snapshot, Part]:
        repository = open_repository(facts["cwd"])
        globs = tuple(facts["globs"])
        snapshot, _ = take(repository, folder, include_ignored=globs, label=record.id)
        return snapshot, hash_file(facts["rollout_path"])

    snapshot, rollout = await work(record.thread, look)
    carried = Snapshot.from_json(facts["snapshot"])
    if snapshot.digest != carried.digest or rollout._asdict() != facts["parts"]["rollout"]:
        what = "the working tree" if snapshot.digest != carried.digest else "the conversation"
        raise Changed(
            f"{what} changed on the source while it was carried",
            hint="it is undone; run the same command again",
        )


class Changed(Refused):
    """What was carried is no longer what is there; the handoff has to begin anew."""

    code = "changed"


async def retire(call: Call) -> None:
    """Archive the thread that is another host's now, with a pointer to it."""
    record, facts = _source(call)
    after = core.retired(record)
    home = call.context.home
    if record.state != core.RETIRED:
        thread = await _read(call, record.thread)
        if "/archived_sessions/" not in str(thread.get("path")):
            await call.agent.call("thread/archive", {"threadId": record.thread})
        call.agent.store.learn(record.thread, moved_to=facts["peer"]["name"])
        folder = folder_of(home, record.thread)
        await work(record.thread, lambda: keep_sent(folder))
        with Journal(home) as journal:
            journal.write(SOURCE, after, facts)
    await call.line({"state": after.state})


async def undo(call: Call) -> None:
    """Keep the thread here. Refused once it is the target's."""
    record, facts = _source(call)
    after = core.undone(record)
    if record.state != core.UNDONE:
        with Journal(call.context.home) as journal:
            journal.write(SOURCE, after, facts)
        call.context.note("handoff", call.peer, record.thread, "undone", to=facts["peer"])
        note(call, record.thread, "codexctl/handoff/undone", to=facts["peer"]["name"])
    if (facts.get("goal") or {}).get("status") == "active":
        active = {"threadId": record.thread, "status": "active"}
        await ask_server(call, "thread/goal/set", active)
    await call.line({"seal": core.undo_seal(after), "state": after.state})


# --- shared ---


def _below(repository: Repository, cwd: str) -> str:
    """The thread's folder below the top of its tree; empty for the top itself."""
    below = os.path.relpath(os.path.realpath(cwd), repository.top)
    return "" if below == "." else below


def _source(call: Call) -> tuple[SourceRecord, dict[str, Any]]:
    with Journal(call.context.home) as journal:
        return journal.source(call.text("id"))


async def _thread(call: Call) -> dict[str, Any]:
    thread, archived = await find_thread(call.agent, call.text("thread"))
    check_may_act(call.context.home, thread["id"])
    if archived:
        raise ArchivedThread(
            f"thread {thread['id']} is archived",
            hint=f"codexctl thread archive --undo {thread['id']}",
        )
    return _placed(call, thread)


def _placed(call: Call, thread: dict[str, Any]) -> dict[str, Any]:
    """The thread where it works now: until its next turn the official one has an earlier folder."""
    return {**thread, "cwd": call.agent.store.facts(thread["id"]).get("cwd") or thread["cwd"]}


async def _read(call: Call, thread: str) -> dict[str, Any]:
    answer = await call.agent.call("thread/read", {"threadId": thread})
    return _placed(call, answer["thread"])


def _rollout(thread: dict[str, Any]) -> str:
    path = thread.get("path")
    if not isinstance(path, str) or not os.path.isfile(path):
        raise NotMovable(
            f"thread {thread['id']} has no conversation yet",
            hint="start it anew on the other host: codexctl thread start",
        )
    return path


def _is_active(call: Call, thread: str) -> bool:
    status = call.agent.statuses.get(thread) or {}
    return bool(call.agent.store.facts(thread).get("turn")) or status.get("type") == "active"


def _approvals(call: Call, thread: str) -> list[dict[str, Any]]:
    return [
        {"id": one.id, "kind": one.kind, **{k: one.shown.get(k) for k in ("command", "reason")}}
        for one in call.agent.pending()
        if one.thread == thread
    ]


def _bypass(call: Call, thread: str) -> bool:
    facts = call.agent.store.facts(thread)
    return facts.get("sandbox") == "danger-full-access" or facts.get("approval") == "never"


def _goal(answer: dict[str, Any]) -> dict[str, Any] | None:
    goal = answer.get("goal")
    if not isinstance(goal, dict):
        return None
    kept = ("objective", "status", "tokenBudget")
    return {name: goal[name] for name in kept if goal.get(name) is not None}


def _survey(survey: Survey) -> dict[str, Any]:
    told = survey._asdict()
    told["left"] = [left._asdict() for left in survey.left]
    told["submodules"] = [module._asdict() for module in survey.submodules]
    return told


def _globs(call: Call) -> tuple[str, ...]:
    globs = call.params.get("include_ignored") or []
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise UsageError("include_ignored is a list of patterns")
    if len(globs) > MAX_GLOBS:
        raise UsageError(f"at most {MAX_GLOBS} patterns of ignored files can be given")
    return tuple(globs)


def _haves(call: Call) -> list[str]:
    haves = call.params.get("haves") or []
    if not isinstance(haves, list) or len(haves) > MAX_HAVES or not all(map(is_oid, haves)):
        raise UsageError("haves is a list of commits")
    return haves


def _peer(call: Call) -> dict[str, Any]:
    peer = call.params.get("peer")
    if not isinstance(peer, dict) or not isinstance(peer.get("name"), str):
        raise UsageError("a handoff names its peer")
    return {key: peer.get(key) for key in ("name", "kind", "id")}
