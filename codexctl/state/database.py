"""SQLite files with numbered migrations; one connection is used by one thread.

A migration is a tuple of SQL statements. `user_version` counts those applied; each is applied in
a transaction of its own, so that a crash leaves the last complete version. A file from a newer
codexctl is refused, never written.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence

from codexctl.errors import StateError

BUSY_TIMEOUT_S = 5.0
Migration = tuple[str, ...]


def open_database(path: str, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open or make the file at `path` (mode 0600) and bring it to the newest version.

    Rows are `sqlite3.Row`; transactions are explicit (`with transaction(db):`). StateError says
    what is wrong with the file, the folder or the disk.
    """
    try:
        if not os.path.exists(path):
            # sqlite3 would create it with the umask's mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StateError(
            f"cannot open {path}: {reason}", hint="check that its folder can be written"
        ) from error
    try:
        db.row_factory = sqlite3.Row
        # What is committed outlasts a power cut; some builds of SQLite have a weaker default.
        db.execute("PRAGMA synchronous=FULL")
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        if version != len(migrations):
            _migrate(db, path, migrations)
        db.execute("PRAGMA foreign_keys=ON")
    except sqlite3.Error as error:
        db.close()
        raise describe_sqlite_error(error, path) from error
    except StateError:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, path: str, migrations: Sequence[Migration]) -> None:
    db.execute("PRAGMA journal_mode=WAL")
    with transaction(db):
        # Read again under the lock: another process may have migrated meanwhile.
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise StateError(
                f"{path} was written by a newer codexctl (version {version}, "
                f"this one knows {len(migrations)})",
                hint="update codexctl on this machine",
            )
        for statements in migrations[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version={len(migrations)}")


class transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on any exception."""

    __slots__ = ("_db",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> sqlite3.Connection:
        self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # Also after a COMMIT that failed; a full disk has ended the transaction by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


class guarded_transaction:
    """A transaction whose SQLite errors become StateErrors; IntegrityError passes through."""

    __slots__ = ("_inner", "_path")

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._inner, self._path = transaction(db), path

    def __enter__(self) -> sqlite3.Connection:
        try:
            return self._inner.__enter__()
        except sqlite3.Error as error:
            raise describe_sqlite_error(error, self._path) from error

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        try:
            self._inner.__exit__(kind, value, trace)
        except sqlite3.Error as error:
            raise describe_sqlite_error(error, self._path) from error
        if isinstance(value, sqlite3.Error) and not isinstance(value, sqlite3.IntegrityError):
            raise describe_sqlite_error(value, self._path) from value


def describe_sqlite_error(error: sqlite3.Error, path: str) -> StateError:
    """One sentence for what SQLite says about a full disk, a lock, a broken or read-only file."""
    text = str(error)
    # Where the disk is full SQLite says either, depending on which of its files cannot grow.
    if "full" in text or "disk I/O" in text:
        hint = "free some space on that disk, then run the same command again"
    elif "locked" in text:
        hint = "another codexctl holds it: wait for it, or see codexctl doctor"
    elif "readonly" in text or "unable to open" in text:
        hint = "check that the file and its folder can be written by you"
    elif "not a database" in text or "malformed" in text:
        hint = f"the file is damaged: move {path} away and pair again"
    else:
        hint = "run: codexctl doctor"
    return StateError(f"cannot use {path}: {text}", hint=hint)


def now_s() -> int:
    """Wall-clock seconds since the epoch, as stored in every table."""
    return int(time.time())
