"""agent.db: what a host keeps of its threads. Events with a cursor, approvals, keys of requests.

An event is the official notification byte for byte, with its cursor, time and thread beside it.
Events are bounded: the oldest go when there are more than KEEP_EVENTS or they take more than
KEEP_EVENT_BYTES, and the file gives the space back (incremental vacuum). Whoever comes with a
cursor from before that is told that something is missing.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from codexctl.paths import Home
from codexctl.state.database import (
    Migration,
    describe_sqlite_error,
    now_s,
    open_database,
    transaction,
)

DATABASE = "agent.db"
KEEP_EVENTS = 200_000
KEEP_EVENT_BYTES = 256 << 20
KEEP_ENDED_APPROVALS = 10_000
KEEP_KEYS_S = 30 * 86400
PRUNE_EVERY_EVENTS = 2_000
PRUNE_PAGES = 4_096  # given back to the disk at a time, 4 KiB each
WAL_BYTES = 16 << 20
PAGE_EVENTS = 512  # read at a time by one who watches
PAGE_BYTES = 1 << 20

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE events (
            cursor INTEGER PRIMARY KEY AUTOINCREMENT,
            at INTEGER NOT NULL,
            thread TEXT,
            line TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX events_thread ON events (thread, cursor)",
        """
        CREATE TABLE threads (
            id TEXT PRIMARY KEY,
            facts TEXT NOT NULL
        ) STRICT
        """,
        """
        CREATE TABLE approvals (
            id TEXT PRIMARY KEY,
            thread TEXT NOT NULL,
            state TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            record TEXT NOT NULL
        ) STRICT
        """,
        "CREATE INDEX approvals_state ON approvals (state, created_at)",
        """
        CREATE TABLE keys (
            key TEXT PRIMARY KEY,
            method TEXT NOT NULL,
            at INTEGER NOT NULL,
            thread TEXT,
            result TEXT
        ) STRICT
        """,
    ),
)


class Event(NamedTuple):
    """A kept event. `at` in milliseconds since the epoch, `thread` None for those of no thread."""

    cursor: int
    at: int
    thread: str | None
    line: str

    def encode(self) -> bytes:
        """The event line of the protocol: the official object with three members before its own."""
        head = f'{{"cursor":{self.cursor},"at":{self.at},"thread":{json.dumps(self.thread)},'
        return (head + self.line[1:] + "\n").encode()


class Key(NamedTuple):
    """What is known of a request that a device may send twice."""

    method: str
    thread: str | None
    result: dict[str, Any] | None


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def has_store(home: Home) -> bool:
    return os.path.exists(home.join(DATABASE))


class AgentStore:
    """agent.db of one home, used by one thread. sqlite3 errors become StateError."""

    def __init__(self, home: Home) -> None:
        self._path = home.join(DATABASE)
        self._db = open_database(self._path, MIGRATIONS)
        with self._reporting():
            if self._db.execute("PRAGMA auto_vacuum").fetchone()[0] == 0:
                # Only a rewrite changes it, and it is asked for when the file is new.
                self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
                self._db.execute("VACUUM")
            # A lost second of events is no harm: after a power failure the app-server is gone too.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
            self._bytes = self._db.execute("SELECT total(length(line)) FROM events").fetchone()[0]
            self._since_prune = 0
            self.last = self._db.execute("SELECT max(cursor) FROM events").fetchone()[0] or 0

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise describe_sqlite_error(error, self._path) from error

    def close(self) -> None:
        self._db.close()

    # --- events ---

    def append(self, lines: Sequence[tuple[str | None, str]]) -> None:
        """Keep events: pairs of a thread and the text of a JSON object, in order."""
        at = now_ms()
        with self._reporting():
            with transaction(self._db):
                self._db.executemany(
                    "INSERT INTO events (at, thread, line) VALUES (?, ?, ?)",
                    [(at, thread, line) for thread, line in lines],
                )
            self.last = self._db.execute("SELECT max(cursor) FROM events").fetchone()[0]
            self._bytes += sum(len(line) for _, line in lines)
            self._since_prune += len(lines)
            if self._since_prune >= PRUNE_EVERY_EVENTS or self._bytes > KEEP_EVENT_BYTES * 1.1:
                self.prune()

    def prune(self, *, events: int = KEEP_EVENTS, size: int = KEEP_EVENT_BYTES) -> None:
        """Drop the oldest events beyond the bounds, and give the space back to the disk."""
        self._since_prune = 0
        first = self.last - events + 1
        with self._reporting():
            excess = self._bytes - size
            if excess > 0:
                for cursor, length in self._db.execute(
                    "SELECT cursor, length(line) FROM events ORDER BY cursor"
                ):
                    excess -= length
                    if excess <= 0:
                        first = max(first, cursor + 1)
                        break
            self._db.execute("DELETE FROM events WHERE cursor < ?", (first,))
            self._bytes = self._db.execute("SELECT total(length(line)) FROM events").fetchone()[0]
            self._db.execute(
                "DELETE FROM approvals WHERE state <> 'pending' AND id NOT IN (SELECT id FROM "
                "approvals WHERE state <> 'pending' ORDER BY rowid DESC LIMIT ?)",
                (KEEP_ENDED_APPROVALS,),
            )
            self._db.execute("DELETE FROM keys WHERE at < ?", (now_s() - KEEP_KEYS_S,))
            # `execute` would step it once, which gives back one page.
            self._db.executescript(f"PRAGMA incremental_vacuum({PRUNE_PAGES})")

    def first(self) -> int:
        """The cursor of the oldest event that is kept; one more than the last where none is."""
        with self._reporting():
            found = self._db.execute("SELECT min(cursor) FROM events").fetchone()[0]
        return int(found) if found is not None else self.last + 1

    def page(self, thread: str | None, after: int) -> list[Event]:
        """The next events behind a cursor, of one thread or of all: a page at most."""
        where = "cursor > ?" if thread is None else "cursor > ? AND thread = ?"
        values = (after,) if thread is None else (after, thread)
        out, size = [], 0
        with self._reporting():
            rows = self._db.execute(
                f"SELECT cursor, at, thread, line FROM events WHERE {where} "  # noqa: S608 - two constants
                f"ORDER BY cursor LIMIT {PAGE_EVENTS}",
                values,
            )
            for row in rows:
                out.append(Event(*row))
                size += len(out[-1].line)
                if size >= PAGE_BYTES:
                    break
        return out

    # --- what codexctl knows of threads ---

    def facts(self, thread: str) -> dict[str, Any]:
        with self._reporting():
            row = self._db.execute("SELECT facts FROM threads WHERE id = ?", (thread,)).fetchone()
        return dict(json.loads(row[0])) if row else {}

    def all_facts(self) -> dict[str, dict[str, Any]]:
        with self._reporting():
            rows = self._db.execute("SELECT id, facts FROM threads")
            return {row[0]: json.loads(row[1]) for row in rows}

    def learn(self, thread: str, **facts: Any) -> None:
        """Change some facts of a thread; one that becomes None is forgotten."""
        known = {**self.facts(thread), **facts}
        kept = {name: value for name, value in known.items() if value is not None}
        with self._reporting():
            self._db.execute(
                "INSERT OR REPLACE INTO threads VALUES (?, ?)", (thread, json.dumps(kept))
            )

    # --- approvals: records of codexctl.agent.approvals as JSON ---

    def put_approval(
        self, id: str, thread: str, state: str, created_at: int, record: dict[str, Any]
    ) -> None:
        with self._reporting():
            self._db.execute(
                # Not replaced: the row keeps its place in the order.
                "INSERT INTO approvals VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "thread = excluded.thread, state = excluded.state, record = excluded.record",
                (id, thread, state, created_at, json.dumps(record)),
            )

    def approvals(
        self, *, state: str | None = None, limit: int = KEEP_ENDED_APPROVALS
    ) -> list[dict[str, Any]]:
        """Records, the newest first; those of one state, or all. Seconds are too coarse for it."""
        where, values = ("WHERE state = ?", (state,)) if state else ("", ())
        with self._reporting():
            rows = self._db.execute(
                f"SELECT record FROM approvals {where} ORDER BY rowid DESC LIMIT ?",  # noqa: S608 - constants
                (*values, limit),
            )
            return [json.loads(row[0]) for row in rows]

    # --- requests that a device may send twice ---

    def key(self, key: str) -> Key | None:
        with self._reporting():
            row = self._db.execute(
                "SELECT method, thread, result FROM keys WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        return Key(row[0], row[1], json.loads(row[2]) if row[2] is not None else None)

    def put_key(self, key: str, method: str, thread: str | None, result: object = None) -> None:
        text = None if result is None else json.dumps(result)
        with self._reporting():
            self._db.execute(
                "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?)",
                (key, method, now_s(), thread, text),
            )
