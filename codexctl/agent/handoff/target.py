"""The target of a handoff: says what it has, receives, restores, and owns the thread or discards.

Nothing that is here is overwritten: the tree gets a folder of its own, and the record of an earlier
stay of the thread is kept until the handoff is over.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import Any

from codexctl.agent.call import Call
from codexctl.agent.handoff import arrival, core
from codexctl.agent.handoff.bundle import hash_file, keep_sent
from codexctl.agent.handoff.clones import Clone, find_clone
from codexctl.agent.handoff.core import TargetRecord
from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.journal import TARGET, Journal, new_seal
from codexctl.agent.handoff.repository import is_oid
from codexctl.agent.handoff.restore import (
    Corrupted,
    apply,
    empty_tree,
    git_of,
    make_folder,
    reachable,
    remove,
    unpack,
    verify,
)
from codexctl.agent.handoff.rollout import check_relative, find_rollout
from codexctl.agent.handoff.snapshot import Snapshot
from codexctl.agent.handoff.tools import missing
from codexctl.agent.handoff.workshop import (
    PARTS,
    ask_server,
    codex_home,
    folder_of,
    instructions,
    note,
    part_name,
    work,
)
from codexctl.errors import CodexctlError, ProtocolError, Refused, UsageError
from codexctl.session.channel import DataReceived, EofReceived

MAX_COMMITS = 2048
MAX_PART_BYTES = 1 << 40
SPARE_BYTES = 64 << 20  # of the disk that a handoff leaves free
ID_TAIL = 8  # of a thread's id, in the name of a folder


async def survey(call: Call) -> None:
    """What this host has of what would come, and what it lacks. Changes nothing."""
    thread = _uuid(call.text("thread"))
    snapshot = Snapshot.from_json(call.params.get("snapshot"))
    offered = _oids(call.params.get("offered"))
    home = await codex_home(call)
    place = _place(call, thread, call.text("folder"))
    context = call.context

    def look() -> tuple[Clone | None, list[str], dict[str, Any], int, dict[str, str]]:
        clone = _clone(call, thread, snapshot, offered)
        sent = _sent(call, thread, offered)
        found = find_rollout(home, check_relative(call.text("relative"), thread))
        part = hash_file(found)._asdict() if found else {"size": 0, "sha256": ""}
        there = os.path.dirname(place)
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        free = shutil.disk_usage(there).free
        return clone, sent, part, free, instructions(place, home)

    clone, sent, rollout, free, told = await work(thread, look)
    await call.agent.server()  # AgentUnavailable says what is missing here
    providers = await ask_server(call, "modelProvider/list", {})
    account = await ask_server(call, "account/read", {})
    codex = call.agent.codex
    names = [str(one.get("id")) for one in providers.get("data") or []]
    path = (await context.login()).path
    await call.line(
        {
            "host": context.name,
            "place": place,
            "codex": codex.version if codex else "",
            "providers": names,
            "logged_in": not account.get("requiresOpenaiAuth") or bool(account.get("account")),
            "free": free,
            "clone": clone.path if clone else None,
            "haves": [*(clone.haves if clone else ()), *sent],
            "rollout": rollout,
            "instructions": told,
            "git_lfs": shutil.which("git-lfs", path=path) is not None,
            "missing_tools": missing(call.params.get("tools"), path),
        }
    )


async def reserve(call: Call) -> None:
    """Begin: this host will be the target of this handoff. The lock of its word."""
    id, thread = call.text("id"), _uuid(call.text("thread"))
    with Journal(call.context.home) as journal:
        for row in journal.rows():
            if row.record.id == id and row.side == TARGET:
                assert isinstance(row.record, TargetRecord)
                await call.line({"lock": core.lock_of(row.record.ready_seal)})
                return
        peer = call.params.get("peer")
        if not isinstance(peer, dict) or not isinstance(peer.get("name"), str):
            raise UsageError("a handoff names its peer")
        latest = journal.latest(thread)
        if latest is not None and latest.record.state == core.OWNED:
            raise Refused("the thread is this host's already", hint="see: codexctl thread list")
        record = TargetRecord(id, thread, core.RESERVED, new_seal())
        facts = {"peer": {key: peer.get(key) for key in ("name", "kind", "id")}}
        call.context.record("handoff", call.peer, thread, "arriving", source=facts["peer"])
        journal.begin(TARGET, record, facts)
    await call.line({"lock": core.lock_of(record.ready_seal)})


async def prepare(call: Call) -> None:
    """Make the folder, with the objects that a clone here or a remote has. The commits it has."""
    record, facts = _target(call)
    snapshot = Snapshot.from_json(call.params.get("snapshot"))
    offered = _oids(call.params.get("offered"))
    home = call.context.home
    if record.state == core.RESERVED and "place" not in facts:
        facts["place"] = _place(call, record.thread, call.text("folder"))
        with Journal(home) as journal:
            journal.write(TARGET, record, facts)
    place = facts["place"]

    def make() -> list[str]:
        if facts.get("made") is None:
            # The journal named the folder before it was made, when nothing was there.
            remove(place)
            clone = _clone(call, record.thread, snapshot, offered)
            _fill_place(place, snapshot, clone, facts)
        return reachable(git_of(place), offered)

    await call.line({"step": "making the folder"})
    haves = await work(record.thread, make)
    facts["made"] = True
    with Journal(home) as journal:
        journal.write(TARGET, record, facts)
    sent = await work(record.thread, lambda: _sent(call, record.thread, offered))
    done = {"place": place, "haves": list(dict.fromkeys([*haves, *sent]))}
    await call.line({**done, "notice": facts.get("clone_notice")})


def _fill_place(place: str, snapshot: Snapshot, clone: Clone | None, facts: dict[str, Any]) -> None:
    """From a clone; else from a remote that answers; else empty, and the bundle brings all."""
    if clone is not None:
        make_folder(place, snapshot, seed=clone.git_dir)
        return
    for url in list(snapshot.remotes.values())[:1]:
        try:
            make_folder(place, snapshot, remote=url)
            return
        except CodexctlError as error:
            facts["clone_notice"] = f"all commits are sent: {error}"
            remove(place)
    make_folder(place, snapshot)


async def receive(call: Call) -> None:
    """Take in what the source froze. May be asked for again, also with a tree that changed."""
    record, facts = _target(call)
    sent = call.params.get("frozen")
    if not isinstance(sent, dict) or sent.get("thread") != record.thread:
        raise ProtocolError("what the source froze is of another thread")
    locks = sent.get("locks") or {}
    snapshot = Snapshot.from_json(sent.get("snapshot"))
    relative = check_relative(str(sent.get("relative")), record.thread)
    parts = {name: _part(sent.get("parts") or {}, name) for name in PARTS}
    after = core.receiving(record, str(locks.get("commit")), str(locks.get("undo")))
    if record.state in (core.RESERVED, core.RECEIVING):
        if not facts.get("made"):
            raise UsageError("this handoff has no folder yet")
        place = facts["place"]
        _need_room(place, parts)
        begun = "snapshot" in facts and facts["snapshot"] != snapshot.as_json()
        facts |= {
            "below": _below(sent.get("below")),
            "snapshot": snapshot.as_json(),
            "haves": _oids(sent.get("haves")),
            "relative": relative,
            "parts": parts,
            "name": sent.get("name"),
            "goal": sent.get("goal"),
            "turns": sent.get("turns"),
        }
        folder = folder_of(call.context.home, record.thread)
        earlier = find_rollout(await codex_home(call), relative)

        def ready() -> None:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if begun:
                empty_tree(place)  # another state of it was being restored there
            arriving = os.path.join(folder, "rollout")
            if earlier is not None and not os.path.lexists(arriving):
                shutil.copyfile(earlier, f"{arriving}.copy")
                os.replace(f"{arriving}.copy", arriving)

        await work(record.thread, ready)
        with Journal(call.context.home) as journal:
            journal.write(TARGET, after, facts)
    await call.line({"place": facts["place"], "state": after.state})


async def have(call: Call) -> None:
    """How much of a part is here already: its size and hash."""
    record, _ = _target(call)
    path = os.path.join(folder_of(call.context.home, record.thread), part_name(call))
    part = await work(
        record.thread, lambda: hash_file(path)._asdict() if os.path.isfile(path) else None
    )
    await call.line(part or {"size": 0, "sha256": hashlib.sha256().hexdigest()})


async def take_part(call: Call) -> None:
    """The bytes of a part from `offset` on, as input. Corrupted where the hash is wrong."""
    record, facts = _target(call)
    part = part_name(call)
    if record.state != core.RECEIVING:
        raise Refused(f"this handoff is {record.state}, not receiving")
    expected = facts["parts"][part]
    path = os.path.join(folder_of(call.context.home, record.thread), part)
    size = offset = call.number("offset", 0, expected["size"])
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_size < offset:
            raise UsageError("there is less of this part here than was said")
        os.ftruncate(fd, offset)
        with os.fdopen(fd, "rb+", closefd=False) as file:
            file.seek(offset)
            while (event := await call.channel.receive()) is not None:
                if isinstance(event, EofReceived):
                    break
                if not isinstance(event, DataReceived):
                    continue
                size += len(event.data)
                if size > expected["size"]:
                    raise Corrupted(f"more of the {part} came than the source announced")
                file.write(event.data)
                call.channel.consumed(len(event.data))
            else:
                return  # the device is gone; what came stays for the next attempt
            file.flush()
        os.fsync(fd)
    except OSError as error:
        raise CodexctlError(
            f"cannot write the {part} on this host: {error.strerror}",
            hint="free some space there, then: codexctl thread handoff THREAD --resume",
        ) from error
    finally:
        os.close(fd)
    found = await work(record.thread, lambda: hash_file(path)._asdict())
    if found != expected:
        os.unlink(path)
        raise Corrupted(
            f"the {part} that arrived is not what was sent (its SHA-256 differs)",
            hint="send it again: codexctl thread handoff THREAD --resume",
        )
    await call.line(found)


async def restore(call: Call) -> None:
    """Make the tree and the thread what they were, read both back, and become ready."""
    record, facts = _target(call)
    if record.state == core.RECEIVING:
        await _restore(call, record, facts)
        record = core.ready(record)
        with Journal(call.context.home) as journal:
            journal.write(TARGET, record, facts)
    await call.line({"seal": core.ready_seal(record), "place": facts["place"],
                     "notices": facts.get("notices", [])})  # fmt: skip


async def _restore(call: Call, record: TargetRecord, facts: dict[str, Any]) -> None:
    folder = folder_of(call.context.home, record.thread)
    snapshot = Snapshot.from_json(facts["snapshot"])
    place = facts["place"]
    bundle = os.path.join(folder, "bundle")

    def check() -> None:
        for part, expected in facts["parts"].items():
            path = os.path.join(folder, part)
            if not os.path.isfile(path) or hash_file(path)._asdict() != expected:
                raise UsageError(f"the {part} has not arrived yet")
        unpack(folder, place, snapshot, bundle, facts["haves"])

    await call.line({"step": "checking what arrived"})
    await work(record.thread, check)
    await call.line({"step": "restoring the working tree"})
    await work(record.thread, lambda: apply(folder, place, snapshot))
    await call.line({"step": "comparing it with the source"})
    await work(record.thread, lambda: verify(folder, place, snapshot))
    await call.line({"step": "resuming the thread"})
    await arrival.resume(call, record.thread, facts)


async def own(call: Call) -> None:
    """The source has given the thread away: it is this host's."""
    record, facts = _target(call)
    after = core.owned(record, call.text("seal"))
    if record.state != core.OWNED:
        with Journal(call.context.home) as journal:
            journal.write(TARGET, after, facts)
        call.context.note("handoff", call.peer, record.thread, "owned", source=facts["peer"])
        call.agent.store.learn(record.thread, moved_to=None)
        note(call, record.thread, "codexctl/handoff/arrived", source=facts["peer"]["name"])
        folder = folder_of(call.context.home, record.thread)
        await work(record.thread, lambda: keep_sent(folder))
    goal = facts.get("goal") or {}
    if goal.get("status") == "active":
        params = {"threadId": record.thread, "status": "active"}
        await ask_server(call, "thread/goal/set", params)
    cwd = os.path.join(facts["place"], facts["below"]).rstrip("/")
    await call.line({"state": after.state, "place": facts["place"], "cwd": cwd})


async def discard(call: Call) -> None:
    """Let go of what arrived. A host that is ready does so at the source's word alone."""
    record, facts = _target(call)
    after = core.discarded(record, call.maybe_text("seal") or "")
    if record.state != core.DISCARDED:
        await arrival.forget(call, record.thread, facts)
        with Journal(call.context.home) as journal:
            journal.write(TARGET, after, facts)
        call.context.note("handoff", call.peer, record.thread, "discarded", source=facts["peer"])
    await call.line({"state": after.state})


# --- shared ---


def _target(call: Call) -> tuple[TargetRecord, dict[str, Any]]:
    with Journal(call.context.home) as journal:
        return journal.target(call.text("id"))


def _clone(call: Call, thread: str, snapshot: Snapshot, offered: list[str]) -> Clone | None:
    with Journal(call.context.home) as journal:
        rows = journal.rows(thread)
    places = [row.facts.get("place") or row.facts.get("cwd") for row in rows]
    first = tuple(os.path.realpath(place) for place in places if isinstance(place, str))
    commits = [oid for oid in offered if oid]
    return find_clone(
        call.context.workspace, first, commits, snapshot.remotes, snapshot.object_format
    )


def _sent(call: Call, thread: str, offered: list[str]) -> list[str]:
    """What an earlier handoff of this thread has left in the carrier."""
    path = os.path.join(folder_of(call.context.home, thread), "carrier.git")
    if not os.path.isdir(path):
        return []
    carrier = Git(path)
    try:
        return reachable(carrier, offered)
    except CodexctlError:
        return []  # what it borrowed from is gone: everything is sent again


def _place(call: Call, thread: str, name: str) -> str:
    """A folder that is not there yet, where the policy lets work be done. Refused, UsageError."""
    context = call.context
    asked = call.maybe_text("path")
    if asked is not None:
        path = os.path.normpath(os.path.join(context.workspace, os.path.expanduser(asked)))
        if os.path.lexists(path):
            raise Refused(
                f"{path} is there already, and is not overwritten", hint="name another --path"
            )
    else:
        if name in ("", ".", "..", ".git") or "/" in name or "\0" in name:
            raise UsageError("a handoff names the folder of its tree")
        path = os.path.join(context.workspace, name)
        number = 1
        while os.path.lexists(path):
            more = f"-{number}" if number > 1 else ""
            path = os.path.join(context.workspace, f"{name}-{thread[-ID_TAIL:]}{more}")
            number += 1
    parent = os.path.dirname(path)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    real = os.path.realpath(parent)
    context.policy.check_folder(real, context.workspace)
    return os.path.join(real, os.path.relpath(path, parent))


def _need_room(place: str, parts: dict[str, dict[str, Any]]) -> None:
    parent = os.path.dirname(place)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    needed = 2 * sum(part["size"] for part in parts.values()) + SPARE_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise Refused(
            f"there are {free >> 20} MiB free at {parent}, and {needed >> 20} MiB are needed",
            hint="free some space there, then run --resume",
        )


def _part(parts: object, name: str) -> dict[str, Any]:
    part = parts.get(name) if isinstance(parts, dict) else None
    if (
        not isinstance(part, dict)
        or not isinstance(part.get("size"), int)
        or not 0 <= part["size"] <= MAX_PART_BYTES
        or not isinstance(part.get("sha256"), str)
    ):
        raise ProtocolError(f"the source did not say how large the {name} is")
    return {"size": part["size"], "sha256": part["sha256"]}


def _below(value: object) -> str:
    """The thread's folder below the top of its tree. ProtocolError for one that leaves it."""
    parts = value.split("/") if isinstance(value, str) and value else []
    if not isinstance(value, str) or any(part in ("", ".", "..", ".git") for part in parts):
        raise ProtocolError("the thread's folder is not below its working tree")
    return value


def _oids(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_COMMITS or not all(map(is_oid, value)):
        raise ProtocolError("commits were offered that are none")
    return list(value)


def _uuid(text: str) -> str:
    if len(text) != 36 or not text.replace("-", "").isalnum():
        raise UsageError("a handoff names a thread by its whole id")
    return text
