"""The hosts that this device is paired with: device.db in the home."""

from __future__ import annotations

import os
import sqlite3
from typing import NamedTuple

from codexctl.errors import UsageError
from codexctl.paths import Home
from codexctl.secret import Secret
from codexctl.state.database import Migration, open_database, transaction

MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE hosts (
            name TEXT PRIMARY KEY,
            environment_id TEXT NOT NULL UNIQUE,
            own_name TEXT NOT NULL,
            host_key BLOB NOT NULL,
            suite TEXT NOT NULL,
            relay TEXT NOT NULL,
            pin BLOB,
            token TEXT NOT NULL,
            token_expires_at INTEGER NOT NULL,
            device_id TEXT NOT NULL,
            scopes TEXT NOT NULL,
            paired_at INTEGER NOT NULL
        )""",
    ),
    (
        # Ids of official executors are names that people choose: unique on one relay only.
        """CREATE TABLE hosts_2 (
            name TEXT PRIMARY KEY,
            environment_id TEXT NOT NULL,
            own_name TEXT NOT NULL,
            host_key BLOB NOT NULL,
            suite TEXT NOT NULL,
            relay TEXT NOT NULL,
            pin BLOB,
            token TEXT NOT NULL,
            token_expires_at INTEGER NOT NULL,
            device_id TEXT NOT NULL,
            scopes TEXT NOT NULL,
            paired_at INTEGER NOT NULL,
            kind TEXT NOT NULL DEFAULT 'codexctl',
            key_sha256 BLOB
        )""",
        "INSERT INTO hosts_2 SELECT *, 'codexctl', NULL FROM hosts",
        "DROP TABLE hosts",
        "ALTER TABLE hosts_2 RENAME TO hosts",
        "CREATE UNIQUE INDEX hosts_paired ON hosts (environment_id) WHERE kind = 'codexctl'",
    ),
)

CODEXCTL, OFFICIAL = "codexctl", "official"


class HostRecord(NamedTuple):
    """A host. `name` is what it is called here, `own_name` what it calls itself.

    Of an OFFICIAL executor nothing is pinned: its key, scopes and device id are empty.
    """

    name: str
    environment_id: str
    own_name: str
    host_key: bytes
    suite: str
    relay: str
    pin: bytes | None
    token: Secret
    token_expires_at: int  # seconds since the epoch
    device_id: str
    scopes: tuple[str, ...]
    paired_at: int  # seconds since the epoch
    kind: str = CODEXCTL
    # The hash of the host's whole key document; None where a pairing is from before the hybrid
    # suite, or the host does not have it.
    key_sha256: bytes | None = None


def _record(row: sqlite3.Row) -> HostRecord:
    values = dict(row)
    values["token"] = Secret(values["token"])
    values["scopes"] = tuple(values["scopes"].split())
    return HostRecord(**values)


class HostStore:
    """Opens device.db when first asked; a home without one has no hosts and gets no file."""

    def __init__(self, home: Home) -> None:
        self._path = home.device_db
        self._home = home
        self._db: sqlite3.Connection | None = None

    def _open(self, *, create: bool = False) -> sqlite3.Connection | None:
        if self._db is None and (create or os.path.exists(self._path)):
            if create:
                self._home.ensure()
            self._db = open_database(self._path, MIGRATIONS)
        return self._db

    def all(self) -> list[HostRecord]:
        db = self._open()
        return (
            []
            if db is None
            else [_record(r) for r in db.execute("SELECT * FROM hosts ORDER BY name")]
        )

    def paired(self) -> list[HostRecord]:
        """Without official executors, which have exec, shell and cp and no more."""
        return [record for record in self.all() if record.kind == CODEXCTL]

    def find(self, name: str) -> HostRecord | None:
        """By the name it has here; else by its own name, where only one host has that."""
        db = self._open()
        if db is None:
            return None
        row = db.execute("SELECT * FROM hosts WHERE name = ?", (name,)).fetchone()
        if row is None:
            rows = db.execute("SELECT * FROM hosts WHERE own_name = ? LIMIT 2", (name,)).fetchall()
            row = rows[0] if len(rows) == 1 else None
        return None if row is None else _record(row)

    def named(self, name: str) -> HostRecord | None:
        """The host that has exactly this name here."""
        db = self._open()
        row = db and db.execute("SELECT * FROM hosts WHERE name = ?", (name,)).fetchone()
        return _record(row) if row else None

    def add(self, record: HostRecord) -> None:
        """Keep a host, replacing an earlier pairing with the same one (also under another name).

        UsageError where another host has that name.
        """
        db = self._open(create=True)
        assert db is not None
        with transaction(db):
            other = db.execute("SELECT * FROM hosts WHERE name = ?", (record.name,)).fetchone()
            if other is not None and not _same(_record(other), record):
                raise name_taken(record.name)
            db.execute(
                "DELETE FROM hosts WHERE environment_id = ? AND kind = ?"
                " AND (kind = 'codexctl' OR name = ?)",
                (record.environment_id, record.kind, record.name),
            )
            values = record._replace(token=record.token.reveal(), scopes=" ".join(record.scopes))  # type: ignore[arg-type]  # as the columns have them
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO hosts ({', '.join(record._fields)}) VALUES ({marks})", values)  # noqa: S608 - field names of our own

    def renew(self, environment_id: str, token: str, expires_at: int) -> None:
        """Keep a host's new relay token."""
        db = self._open()
        if db is not None:
            db.execute(
                "UPDATE hosts SET token = ?, token_expires_at = ?"
                " WHERE environment_id = ? AND kind = 'codexctl'",
                (token, expires_at, environment_id),
            )

    def pin(self, environment_id: str, suite: str, key_sha256: bytes) -> None:
        """From now on this host is talked to in the hybrid suite and under this key alone."""
        db = self._open()
        if db is not None:
            db.execute(
                "UPDATE hosts SET suite = ?, key_sha256 = ?"
                " WHERE environment_id = ? AND kind = 'codexctl'",
                (suite, key_sha256, environment_id),
            )

    def rename(self, old: str, new: str) -> None:
        db = self._open()
        if db is None or db.execute("SELECT 1 FROM hosts WHERE name=?", (old,)).fetchone() is None:
            raise UsageError(f"no host is called {old}", hint="see: codexctl hosts")
        try:
            db.execute("UPDATE hosts SET name = ? WHERE name = ?", (new, old))
        except sqlite3.IntegrityError:
            raise name_taken(new) from None

    def remove(self, name: str) -> bool:
        db = self._open()
        return db is not None and db.execute("DELETE FROM hosts WHERE name=?", (name,)).rowcount > 0


def _same(one: HostRecord, other: HostRecord) -> bool:
    return (one.kind, one.environment_id) == (other.kind, other.environment_id)


def name_taken(name: str) -> UsageError:
    return UsageError(
        f"another host is called {name} here",
        hint="give this one another name: codexctl pair URL --name OTHER",
    )
