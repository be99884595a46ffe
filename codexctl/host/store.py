"""host.db: the devices paired with this host, settings, the audit head.

One shared list of migrations; each function takes the connection that `open_store` returned and
is one statement or one transaction. sqlite3 errors become `StateError` at the caller's edge by
`reporting(path)`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from codexctl.errors import StateError
from codexctl.paths import Home
from codexctl.state.database import (
    Migration,
    describe_sqlite_error,
    now_s,
    open_database,
    transaction,
)

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE devices (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            public_key BLOB NOT NULL UNIQUE,
            scopes TEXT NOT NULL,
            paired_at INTEGER NOT NULL,
            last_seen INTEGER,
            relay_token_id TEXT,
            revoked_at INTEGER
        ) STRICT
        """,
        # A revoked device keeps its row, its name becomes free.
        "CREATE UNIQUE INDEX devices_name ON devices (name) WHERE revoked_at IS NULL",
        "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
        """
        CREATE TABLE audit_head (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            count INTEGER NOT NULL,
            hash TEXT NOT NULL
        ) STRICT
        """,
    ),
    ("ALTER TABLE devices ADD COLUMN key_sha256 BLOB",),
)


class Device(NamedTuple):
    """A device that is or was paired. Times are seconds since the epoch."""

    id: str
    name: str
    public_key: bytes
    scopes: frozenset[str]
    paired_at: int
    last_seen: int | None
    relay_token_id: str | None
    revoked_at: int | None
    key_sha256: bytes | None  # of its whole key document, once it has used the hybrid suite

    @property
    def relay_tokens(self) -> list[str]:
        """The ids of its relay tokens: the newest, and the one before that may still be in use."""
        return (self.relay_token_id or "").split()


class AuditHead(NamedTuple):
    """How many records the audit log has at least, and the hash of the last of those."""

    records: int
    hash: str


def open_store(home: Home) -> sqlite3.Connection:
    """Open or make host.db of this home. StateError says what is wrong with it."""
    return open_database(home.host_db, MIGRATIONS)


@contextmanager
def reporting(path: str) -> Iterator[None]:
    """sqlite3 errors inside become one `StateError` that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise describe_sqlite_error(error, path) from error


def _device(row: sqlite3.Row) -> Device:
    return Device(
        id=row["id"],
        name=row["name"],
        public_key=bytes(row["public_key"]),
        scopes=frozenset(row["scopes"].split()),
        paired_at=row["paired_at"],
        last_seen=row["last_seen"],
        relay_token_id=row["relay_token_id"],
        revoked_at=row["revoked_at"],
        key_sha256=row["key_sha256"],
    )


def list_devices(db: sqlite3.Connection, *, revoked: bool = False) -> list[Device]:
    """Paired devices by name; with `revoked` those of the past as well."""
    where = "" if revoked else "WHERE revoked_at IS NULL"
    rows = db.execute(f"SELECT * FROM devices {where} ORDER BY name, paired_at")  # noqa: S608 - two constants
    return [_device(row) for row in rows]


def device_by_key(db: sqlite3.Connection, public_key: bytes) -> Device | None:
    """The device with this static key, revoked or not: the caller looks at `revoked_at`."""
    row = db.execute("SELECT * FROM devices WHERE public_key = ?", (public_key,)).fetchone()
    return _device(row) if row else None


def device_by_name(db: sqlite3.Connection, name: str) -> Device | None:
    """The paired device of this name; a revoked one is not found."""
    row = db.execute(
        "SELECT * FROM devices WHERE name = ? AND revoked_at IS NULL", (name,)
    ).fetchone()
    return _device(row) if row else None


def add_device(
    db: sqlite3.Connection,
    *,
    id: str,
    name: str,
    public_key: bytes,
    scopes: Iterable[str],
    relay_token_id: str | None = None,
) -> Device:
    """Pair a device, or pair it again: a key that is known keeps its id and is no longer revoked.

    A name that another paired device has gets `-2`, `-3` … behind it.
    """
    scope_text = " ".join(sorted(scopes))
    with transaction(db):
        taken = {
            row["name"]
            for row in db.execute(
                "SELECT name FROM devices WHERE revoked_at IS NULL AND public_key <> ?",
                (public_key,),
            )
        }
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        db.execute(
            """
            INSERT INTO devices (id, name, public_key, scopes, paired_at, relay_token_id)
            VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT (public_key) DO UPDATE SET
                name = excluded.name, scopes = excluded.scopes, paired_at = excluded.paired_at,
                relay_token_id = excluded.relay_token_id, revoked_at = NULL, key_sha256 = NULL
            """,
            (id, free, public_key, scope_text, now_s(), relay_token_id),
        )
    device = device_by_key(db, public_key)
    if device is None:
        raise StateError(f"device {name} vanished while it was paired", hint="pair it again")
    return device


def touch_device(db: sqlite3.Connection, id: str) -> None:
    """Remember that this device was here now."""
    db.execute("UPDATE devices SET last_seen = ? WHERE id = ?", (now_s(), id))


def pin_device(db: sqlite3.Connection, id: str, key_sha256: bytes) -> None:
    """From now on this device is taken in the hybrid suite and with this key document alone."""
    db.execute("UPDATE devices SET key_sha256 = ? WHERE id = ?", (key_sha256, id))


def add_relay_token(db: sqlite3.Connection, id: str, token_id: str) -> None:
    """Note a device's renewed relay token beside the one that it replaces."""
    with transaction(db):
        row = db.execute("SELECT relay_token_id FROM devices WHERE id = ?", (id,)).fetchone()
        kept = [*(row["relay_token_id"] or "").split(), token_id][-2:] if row else []
        db.execute("UPDATE devices SET relay_token_id = ? WHERE id = ?", (" ".join(kept), id))


def revoke_device(db: sqlite3.Connection, id: str) -> bool:
    """True where the device was paired until now."""
    cursor = db.execute(
        "UPDATE devices SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now_s(), id)
    )
    return cursor.rowcount == 1


def get_setting(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row["value"])


def set_setting(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", (key, value))


def read_audit_head(db: sqlite3.Connection) -> AuditHead | None:
    row = db.execute("SELECT count, hash FROM audit_head").fetchone()
    return AuditHead(row["count"], row["hash"]) if row else None


def write_audit_head(db: sqlite3.Connection, head: AuditHead) -> None:
    """Move the head forward; one that another process has moved further stays."""
    db.execute(
        """
        INSERT INTO audit_head (one, count, hash) VALUES (1, ?, ?)
        ON CONFLICT (one) DO UPDATE SET count = excluded.count, hash = excluded.hash
        WHERE excluded.count > audit_head.count
        """,
        head,
    )
