"""A handoff as a device drives it: both hosts are asked step by step, the data goes through here.

The hosts need not reach one another. Each step may be repeated, and what is next is read from both
journals (codexctl.agent.handoff.core.next_step), so that `resume` goes on from wherever it broke
off, on this device or another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from codexctl.agent.handoff import core
from codexctl.errors import CodexctlError, ConnectionFailed

Tell = Callable[[dict[str, Any]], None]
Moved = Callable[[int, int], None]
PARTS = ("bundle", "rollout")
MAX_STEPS = 12


class Remote(Protocol):
    """One of the two hosts. `kind` is `host` (through the relay) or `ssh`; `id` finds it again."""

    name: str
    kind: str
    id: str

    def stream(self, method: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]: ...

    def read(self, method: str, params: dict[str, Any]) -> Iterator[bytes]: ...

    def write(
        self, method: str, params: dict[str, Any], data: Iterator[bytes]
    ) -> list[dict[str, Any]]:
        """Call with `data` as its input, no faster than the host takes it."""
        ...

    def keeps(self, other: Any) -> None:
        """Look after the session of `other`, a paired host, whenever this one is waited for."""
        ...


def as_peer(remote: Remote) -> dict[str, str]:
    return {"name": remote.name, "kind": remote.kind, "id": remote.id}


class Plan:
    """What would move: the answers of both hosts, and what follows from them."""

    def __init__(
        self, source: dict[str, Any], target: dict[str, Any], packed: dict[str, Any]
    ) -> None:
        self.source, self.target, self.packed = source, target, packed

    @property
    def size(self) -> int:
        """Bytes that would be sent."""
        return int(self.packed["bundle"]) + int(self.packed["rollout"])

    def obstacles(self) -> list[str]:
        """Why it cannot be done now."""
        found = []
        provider = self.source.get("provider")
        if provider and self.target["providers"] and provider not in self.target["providers"]:
            found.append(f"codex there has no model provider {provider}")
        if not self.target["logged_in"]:
            found.append("codex there is not logged in: codex login")
        survey = self.source["survey"]
        needed = 2 * self.size + int(survey["size"]) + core_spare()
        if self.target["free"] < needed:
            found.append(
                f"the disk there has {self.target['free'] >> 20} MiB free; "
                f"{needed >> 20} MiB are needed"
            )
        return found

    def lacks(self) -> list[str]:
        """What differs there, and does not stop it."""
        found = []
        here, there = self.source["codex"], self.target["codex"]
        if _version(there) < _version(here):
            found.append(f"codex there is older ({there}, here {here}): it may not read the thread")
        if self.source["survey"]["lfs"] and not self.target["git_lfs"]:
            found.append("git-lfs is not installed there: its files stay pointers")
        for tool in self.target.get("missing_tools", ()):
            asked_by = self.source["tools"].get(tool)
            found.append(f"{tool}, which {asked_by} asks for, is not on the PATH there")
        ours, theirs = self.source["instructions"], self.target["instructions"]
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                where = "here alone" if name not in theirs else "there alone"
                differs = where if name not in ours or name not in theirs else "another there"
                found.append(f"{name}: {differs}; it is not carried")
        if self.source["bypass"]:
            found.append("the thread asks nobody here; there it begins with safe modes")
        return found

    def as_json(self) -> dict[str, Any]:
        snapshot = self.source["snapshot"]
        return {
            "thread": self.source["thread"],
            "name": self.source["name"],
            "from": {"host": self.source["host"], "cwd": self.source["cwd"]},
            "to": {"host": self.target["host"], "folder": self.target["place"]},
            "branch": snapshot["branch"],
            "head": snapshot["head"],
            "stashes": len(snapshot["stashes"]),
            "tree": self.source["survey"],
            "send": self.packed,
            "clone": self.target["clone"],
            "active": self.source["active"],
            "approvals": self.source["approvals"],
            "lacks": self.lacks(),
            "obstacles": self.obstacles(),
        }


def core_spare() -> int:
    """Bytes of the target's disk that a handoff leaves free."""
    return 64 << 20


def _version(text: str) -> tuple[int, ...]:
    numbers = text.partition("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdigit())


class Handoff:
    """One move. `tell` gets what happens, `moved` the bytes that went and how many there are."""

    def __init__(
        self,
        source: Remote,
        target: Remote,
        *,
        id: str = "",
        tell: Tell = lambda news: None,
        moved: Moved = lambda done, total: None,
    ) -> None:
        self.source, self.target = source, target
        self.id = id or secrets.token_hex(8)
        self._tell, self._moved = tell, moved
        self.notices: list[str] = []

    # --- before ---

    def plan(self, thread: str, *, globs: tuple[str, ...] = (), path: str | None = None) -> Plan:
        """Ask both sides; changes nothing."""
        wanted = {"thread": thread, "include_ignored": list(globs)}
        found = self._one(self.source, "handoff.inspect", wanted)
        there = self._one(
            self.target,
            "handoff.survey",
            {
                "thread": found["thread"],
                "snapshot": found["snapshot"],
                "offered": found["offered"],
                "folder": found["folder"],
                "relative": found["rollout"]["relative"],
                "path": path,
                "tools": found.get("tools"),
            },
        )
        measure = {
            "thread": found["thread"],
            "haves": there["haves"],
            "rollout": there["rollout"],
        }
        return Plan(found, there, self._one(self.source, "handoff.pack", measure))

    # --- the way ---

    def start(
        self,
        plan: Plan,
        *,
        interrupt: bool = False,
        globs: tuple[str, ...] = (),
        path: str | None = None,
    ) -> dict[str, Any]:
        """Move it. What fails before the decision is undone, unless a host is not reached."""
        thread = plan.source["thread"]
        params = {"id": self.id, "thread": thread, "peer": as_peer(self.source)}
        try:
            lock = self._one(self.target, "handoff.reserve", params)["lock"]
            haves = self._prepare(plan.source, path)
            frozen = self._freeze(
                thread=thread, lock=lock, peer=as_peer(self.target), haves=haves,
                interrupt=interrupt, include_ignored=list(globs),
            )  # fmt: skip
            self._send(frozen)
            return self.go_on(thread)
        except (ConnectionFailed, KeyboardInterrupt):
            raise
        except CodexctlError as error:
            raise self._undone(thread, error) from error

    def _undone(self, thread: str, error: CodexctlError) -> CodexctlError:
        """Undo after a failure; the error to raise. What is committed is not undone."""
        try:
            self.undo(thread)
        except CodexctlError as second:
            error.hint = (
                f"{error.hint}; " if error.hint else ""
            ) + f"it could not be undone ({second}): codexctl thread handoff {thread} --undo"
        else:
            self._tell({"step": f"undone: the thread stays on {self.source.name}"})
        return error

    def go_on(self, thread: str, *, interrupt: bool = False) -> dict[str, Any]:
        """Do what is next until nothing is; where the thread is now."""
        for _ in range(MAX_STEPS):
            ours, theirs = self.states(thread)
            step = core.next_step(ours, theirs)
            if step == core.DONE:
                return self._ended(thread, ours, theirs)
            if step == core.SEND:
                self._send_again(interrupt=interrupt)
            elif step == core.COMMIT:
                self._commit(thread)
            elif step == core.OWN:
                seal = self._one(self.source, "handoff.commit", {"id": self.id, "seal": "-"})
                self._one(self.target, "handoff.own", {"id": self.id, "seal": seal["seal"]})
            elif step == core.RETIRE:
                self._tell({"step": f"archiving it on {self.source.name}"})
                self._one(self.source, "handoff.retire", {"id": self.id})
            else:
                self.undo(thread)
        raise CodexctlError(
            "the handoff comes to no end", hint="see both hosts' logs; its data is on both"
        )

    def _ended(self, thread: str, ours: str | None, theirs: str | None) -> dict[str, Any]:
        moved = theirs == core.OWNED
        at = self.target if moved else self.source
        answer = {"thread": thread, "id": self.id, "moved": moved, "host": at.name}
        if moved:
            row = self._row(self.target, thread, "target") or {}
            answer["folder"] = row.get("place")
        return {**answer, "states": [ours, theirs], "notices": self.notices}

    def states(self, thread: str) -> tuple[str | None, str | None]:
        """What stands in both journals."""
        ours = self._row(self.source, thread, "source")
        theirs = self._row(self.target, thread, "target")
        return ours["state"] if ours else None, theirs["state"] if theirs else None

    def undo(self, thread: str) -> None:
        """Keep the thread on the source, and clear the target. Refused after the decision."""
        ours, theirs = self.states(thread)
        seal = ""
        if ours is not None:
            seal = self._one(self.source, "handoff.undo", {"id": self.id})["seal"]
        if theirs is not None:
            self._one(self.target, "handoff.discard", {"id": self.id, "seal": seal})

    def _prepare(self, found: dict[str, Any], path: str | None) -> list[str]:
        params = {
            "id": self.id,
            "snapshot": found["snapshot"],
            "offered": found["offered"],
            "folder": found["folder"],
            "path": path,
        }
        made = self._one(self.target, "handoff.prepare", params)
        if made.get("notice"):
            self.notices.append(str(made["notice"]))
        return list(made["haves"])

    def _freeze(self, **params: Any) -> dict[str, Any]:
        self._tell({"step": f"holding the thread on {self.source.name}"})
        return self._one(self.source, "handoff.freeze", {"id": self.id, **params})

    def _send_again(self, *, interrupt: bool) -> None:
        found = self._one(self.source, "handoff.inspect", {"id": self.id})
        haves = self._prepare(found, None)
        self._send(self._freeze(haves=haves, interrupt=interrupt))

    def _send(self, frozen: dict[str, Any]) -> None:
        self._one(self.target, "handoff.receive", {"id": self.id, "frozen": frozen})
        total = sum(part["size"] for part in frozen["parts"].values())
        done = 0
        for part in PARTS:
            done = self._send_part(part, frozen["parts"][part], done, total)
        done_line = self._one(self.target, "handoff.restore", {"id": self.id})
        self.notices += done_line.get("notices") or []

    def _send_part(self, part: str, expected: dict[str, Any], done: int, total: int) -> int:
        asked = {"id": self.id, "part": part}
        there = self._one(self.target, "handoff.have", asked)
        agreeing = self._one(self.source, "handoff.agreeing", {**asked, **there})
        offset = int(agreeing["size"])

        def pieces() -> Iterator[bytes]:
            at = done + offset
            for piece in self.source.read("handoff.send", {**asked, "offset": offset}):
                at += len(piece)
                yield piece
                self._moved(at, total)

        self._moved(done + offset, total)
        self.target.write("handoff.take", {**asked, "offset": offset}, pieces())
        return done + int(expected["size"])

    def _commit(self, thread: str) -> None:
        ready = self._one(self.target, "handoff.restore", {"id": self.id})
        try:
            seal = self._one(
                self.source, "handoff.commit", {"id": self.id, "seal": ready["seal"]}
            )  # fmt: skip
        except CodexctlError as error:
            if error.code == "changed":
                raise self._undone(thread, error) from error
            raise
        self._tell({"step": f"the thread is {self.target.name}'s"})
        self._one(self.target, "handoff.own", {"id": self.id, "seal": seal["seal"]})

    def _row(self, remote: Remote, thread: str, side: str) -> dict[str, Any] | None:
        rows = remote.stream("handoff.list", {"thread": thread})
        return next((r for r in list(rows) if r["id"] == self.id and r["side"] == side), None)

    def _one(self, remote: Remote, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The answer; what a host tells of its progress before it is told at once."""
        answer: dict[str, Any] = {}
        for line in remote.stream(method, params):
            if "step" in line or "waiting" in line:
                self._tell({**line, "host": remote.name})
            else:
                answer = line
        return answer
