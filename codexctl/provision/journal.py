"""The journal of workspaces: what was ordered, how far each came, what it cost, what happened.

One SQLite file a home. A row is written before the first call that can cost money and leaves only
when the provider has confirmed that nothing with its id is left. A name is free again from then on.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from codexctl.errors import CodexctlError, StateError, UsageError
from codexctl.paths import Home
from codexctl.provision.core import Goal, State
from codexctl.provision.expiry import journal_path
from codexctl.provision.model import Machine, Plan, Ref, Tags
from codexctl.state.database import Migration, guarded_transaction, open_database

MAX_EVENTS = 500
"""Kept a workspace; older ones go."""
SECONDS_PER_HOUR = 3600

MIGRATIONS: tuple[Migration, ...] = (
    (
        "CREATE TABLE owner (id TEXT NOT NULL)",
        """CREATE TABLE workspaces (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            provider TEXT NOT NULL,
            selection TEXT NOT NULL,
            account_id TEXT NOT NULL,
            region TEXT NOT NULL,
            plan TEXT NOT NULL,
            settings TEXT NOT NULL,
            stage TEXT NOT NULL,
            goal TEXT NOT NULL,
            undoing TEXT NOT NULL DEFAULT '',
            error TEXT NOT NULL DEFAULT '',
            machine TEXT,
            created_at INTEGER NOT NULL,
            expires_at INTEGER,
            power TEXT NOT NULL DEFAULT 'none',
            power_since INTEGER NOT NULL DEFAULT 0,
            ran_s INTEGER NOT NULL DEFAULT 0,
            stood_s INTEGER NOT NULL DEFAULT 0,
            ended_at INTEGER
        )""",
        "CREATE UNIQUE INDEX live_names ON workspaces (name) WHERE ended_at IS NULL",
        """CREATE TABLE events (
            workspace_id TEXT NOT NULL,
            at INTEGER NOT NULL,
            what TEXT NOT NULL
        )""",
        "CREATE INDEX events_of ON events (workspace_id, at)",
        # Every account and region that was ever used: what reap has to look at.
        """CREATE TABLE places (
            provider TEXT NOT NULL,
            selection TEXT NOT NULL,
            account_id TEXT NOT NULL,
            region TEXT NOT NULL,
            PRIMARY KEY (provider, selection, region)
        )""",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the person asked of the machine, beside the provider's plan. Holds no secret."""

    user: str = "codex"
    sudo: bool = True
    packages: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    """Absolute paths of scripts, run in this order by root on the machine."""
    ttl_s: int | None = None
    idle_stop_s: int | None = None
    bare: bool = False
    pair: bool = True
    template: str = ""
    """The person's own cloud-init template, or the one that ships."""
    passphrase: bool = False
    agent: bool = False
    relay: str = ""
    """The relay to pair through; "" for none."""

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        value: dict[str, Any] = json.loads(text)
        value["packages"] = tuple(value["packages"])
        value["setup"] = tuple(value["setup"])
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A row: everything known of one workspace without asking anybody."""

    id: str
    name: str
    provider: str
    selection: Mapping[str, str]
    account_id: str
    plan: Plan
    settings: Settings
    stage: str
    goal: Goal
    undoing: str
    error: str
    machine: Machine | None
    created_at: int
    expires_at: int | None
    power: str
    """none (never made), running, stopped."""
    power_since: int
    ran_s: int
    stood_s: int
    ended_at: int | None

    @property
    def ref(self) -> Ref:
        machine_id = self.machine.ref.machine_id if self.machine is not None else None
        return Ref(self.id, self.plan.region, machine_id)

    @property
    def user(self) -> str:
        machine_user = self.machine.user if self.machine is not None else None
        return machine_user or self.plan.user or self.settings.user

    @property
    def stage_has_machine(self) -> bool:
        """The provider has answered with a machine, and its end is not confirmed."""
        return self.machine is not None and self.stage not in ("cleared", "forgotten")

    def expired(self, now: int) -> bool:
        return self.expires_at is not None and now >= self.expires_at and self.ended_at is None

    def spent(self, now: int) -> Decimal | None:
        """What it has cost until `now` at the plan's prices; None where no price is known."""
        if self.plan.price is None:
            return None
        until = self.ended_at or now
        since = max(until - self.power_since, 0)
        ran = self.ran_s + (since if self.power == "running" else 0)
        stood = self.stood_s + (since if self.power == "stopped" else 0)
        stopped = self.plan.price_stopped or self.plan.price
        total = ran * self.plan.price.hourly + stood * stopped.hourly
        return (total / SECONDS_PER_HOUR).quantize(Decimal("0.0001"))


class Journal:
    """The open file. A method is one transaction; StateError says what is wrong with the disk."""

    def __init__(self, home: Home) -> None:
        self.path = journal_path(home)
        try:
            self._db = open_database(self.path, MIGRATIONS)
        except StateError as error:
            if "damaged" in error.hint:
                error.hint = (
                    f"restore {self.path} from a backup; what it knew of carries the tag codexctl "
                    "at its provider, and codexctl workspace adopt takes it in again"
                )
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.close()

    def owner(self) -> str:
        """The id of this home as owner of resources, made on first use."""
        with self._guarded():
            row = self._db.execute("SELECT id FROM owner").fetchone()
            if row is None:
                self._db.execute("INSERT INTO owner (id) VALUES (?)", (secrets.token_hex(8),))
                row = self._db.execute("SELECT id FROM owner").fetchone()
            return str(row["id"])

    def begin(
        self,
        *,
        name: str,
        provider: str,
        selection: Mapping[str, str],
        account_id: str,
        plan: Plan,
        settings: Settings,
        expires_at: int | None,
        now: int,
        workspace_id: str | None = None,
    ) -> Workspace:
        """Write a new workspace down, stage `planned`. UsageError where the name lives already.

        With an id that ended here, its record begins anew: it turned out to exist.
        """
        workspace_id = workspace_id or secrets.token_hex(16)
        chosen = json.dumps(dict(selection), sort_keys=True)
        with self._guarded():
            self._db.execute(
                "DELETE FROM workspaces WHERE id = ? AND ended_at IS NOT NULL", (workspace_id,)
            )
            try:
                self._db.execute(
                    "INSERT INTO workspaces (id, name, provider, selection, account_id, region,"
                    " plan, settings, stage, goal, created_at, expires_at)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'planned', 'up', ?, ?)",
                    (
                        *(workspace_id, name, provider, chosen, account_id, plan.region),
                        *(plan.to_json(), settings.to_json(), now, expires_at),
                    ),
                )
            except sqlite3.IntegrityError as error:
                raise UsageError(
                    f"there is a workspace {name} already",
                    hint=f"codexctl provision --resume {name}, or choose another --name",
                ) from error
            self._db.execute(
                "INSERT OR IGNORE INTO places VALUES (?, ?, ?, ?)",
                (provider, chosen, account_id, plan.region),
            )
        return self.by_id(workspace_id)

    def by_id(self, workspace_id: str) -> Workspace:
        rows = self._select("WHERE id = ?", (workspace_id,))
        if not rows:
            raise UsageError(f"there is no workspace {workspace_id}")
        return rows[0]

    def by_name(self, name: str) -> Workspace:
        """The live workspace of this name; UsageError names the ones there are."""
        rows = self._select("WHERE name = ? AND ended_at IS NULL", (name,))
        if rows:
            return rows[0]
        names = [workspace.name for workspace in self.live()]
        raise UsageError(
            f"there is no workspace {name}",
            hint=f"there are: {', '.join(names)}" if names else "see: codexctl provision --help",
        )

    def live(self) -> list[Workspace]:
        """Those that are not confirmed gone, oldest first."""
        return self._select("WHERE ended_at IS NULL ORDER BY created_at, id", ())

    def ended(self) -> list[Workspace]:
        return self._select("WHERE ended_at IS NOT NULL ORDER BY ended_at, id", ())

    def places(self) -> list[tuple[str, dict[str, str], str, str]]:
        """(provider, selection, account id, region) of everything that was ever provisioned."""
        with self._guarded():
            rows = self._db.execute("SELECT * FROM places ORDER BY provider, account_id, region")
            return [
                (row["provider"], json.loads(row["selection"]), row["account_id"], row["region"])
                for row in rows
            ]

    def save(self, workspace_id: str, state: State, *, now: int) -> None:
        """Write the state down; `forgotten` ends the workspace and frees its name."""
        ended = now if state.stage == "forgotten" else None
        with self._guarded():
            self._db.execute(
                "UPDATE workspaces SET stage = ?, goal = ?, undoing = ?, ended_at = ? WHERE id = ?",
                (state.stage, state.goal, state.undoing, ended, workspace_id),
            )

    def set_machine(self, workspace_id: str, machine: Machine) -> None:
        """Keep what the provider said last of the machine."""
        with self._guarded():
            self._db.execute(
                "UPDATE workspaces SET machine = ? WHERE id = ?",
                (_machine_out(machine), workspace_id),
            )

    def set_power(self, workspace_id: str, power: str, *, now: int) -> None:
        """`none`, `running` or `stopped` from now on; what came before is added up."""
        with self._guarded():
            self._db.execute(
                "UPDATE workspaces SET"
                " ran_s = ran_s + CASE power WHEN 'running'"
                " THEN max(0, ? - power_since) ELSE 0 END,"
                " stood_s = stood_s + CASE power WHEN 'stopped'"
                " THEN max(0, ? - power_since) ELSE 0 END,"
                " power = ?, power_since = ? WHERE id = ? AND power != ?",
                (now, now, power, now, workspace_id, power),
            )

    def set_error(self, workspace_id: str, sentence: str) -> None:
        """The last failure, shown by `workspace list`; "" when it was mended."""
        self._update(workspace_id, "error", sentence)

    def set_expiry(self, workspace_id: str, expires_at: int | None) -> None:
        self._update(workspace_id, "expires_at", expires_at)

    def _update(self, workspace_id: str, column: str, value: object) -> None:
        statement = f"UPDATE workspaces SET {column} = ? WHERE id = ?"  # noqa: S608 - our own names
        with self._guarded():
            self._db.execute(statement, (value, workspace_id))

    def note(self, workspace_id: str, what: str, *, now: int) -> None:
        """An event for `workspace logs`; never a secret."""
        with self._guarded():
            self._db.execute("INSERT INTO events VALUES (?, ?, ?)", (workspace_id, now, what))
            self._db.execute(
                "DELETE FROM events WHERE workspace_id = ? AND rowid NOT IN"
                " (SELECT rowid FROM events WHERE workspace_id = ? ORDER BY rowid DESC LIMIT ?)",
                (workspace_id, workspace_id, MAX_EVENTS),
            )

    def events(self, workspace_id: str) -> list[tuple[int, str]]:
        with self._guarded():
            rows = self._db.execute(
                "SELECT at, what FROM events WHERE workspace_id = ? ORDER BY rowid", (workspace_id,)
            )
            return [(row["at"], row["what"]) for row in rows]

    def tags(self, workspace: Workspace) -> Tags:
        return Tags(workspace.id, self.owner(), workspace.expires_at)

    def _select(self, where: str, values: Sequence[object]) -> list[Workspace]:
        statement = f"SELECT * FROM workspaces {where}"  # noqa: S608 - our own clauses
        with self._guarded():
            return [_workspace(row) for row in self._db.execute(statement, values)]

    def _guarded(self) -> guarded_transaction:
        return guarded_transaction(self._db, self.path)


def _workspace(row: sqlite3.Row) -> Workspace:
    try:
        return Workspace(
            id=row["id"],
            name=row["name"],
            provider=row["provider"],
            selection=json.loads(row["selection"]),
            account_id=row["account_id"],
            plan=Plan.from_json(row["plan"]),
            settings=Settings.from_json(row["settings"]),
            stage=row["stage"],
            goal=row["goal"],
            undoing=row["undoing"],
            error=row["error"],
            machine=_machine_in(row["machine"]),
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            power=row["power"],
            power_since=row["power_since"],
            ran_s=row["ran_s"],
            stood_s=row["stood_s"],
            ended_at=row["ended_at"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CodexctlError(
            f"the journal's record of {row['name']} does not parse",
            hint="it was written by another version; update codexctl",
        ) from error


def _machine_out(machine: Machine) -> str:
    ref = machine.ref
    values = {name: getattr(machine, name) for name in machine.__slots__ if name != "ref"}
    return json.dumps({**values, "ref": [ref.workspace_id, ref.region, ref.machine_id]})


def _machine_in(text: str | None) -> Machine | None:
    if text is None:
        return None
    value: dict[str, Any] = json.loads(text)
    value["ref"] = Ref(*value["ref"])
    value["host_keys"] = tuple(value["host_keys"])
    return Machine(**value)
