"""handoff.db: what each side of a handoff has promised, written before it is told to anybody.

A row is one side of one handoff: its record (codexctl.agent.handoff.core) and the facts that a
restart needs to go on. The latest row that did not come to nothing says whose a thread is.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

from codexctl.agent.handoff import core
from codexctl.agent.handoff.core import SourceRecord, TargetRecord
from codexctl.errors import Refused, UsageError
from codexctl.paths import Home
from codexctl.state.database import (
    Migration,
    describe_sqlite_error,
    now_s,
    open_database,
    transaction,
)

SOURCE, TARGET = "source", "target"
KEPT_FINISHED = 1000  # rows of handoffs that are over; the latest of a thread always stays

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE handoffs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL,
            side TEXT NOT NULL,
            thread TEXT NOT NULL,
            state TEXT NOT NULL,
            began_at INTEGER NOT NULL,
            record TEXT NOT NULL,
            facts TEXT NOT NULL,
            UNIQUE (id, side)
        ) STRICT
        """,
        "CREATE INDEX handoffs_thread ON handoffs (thread, number)",
        """
        CREATE UNIQUE INDEX one_under_way ON handoffs (thread)
        WHERE state NOT IN ('retired', 'undone', 'owned', 'discarded')
        """,
    ),
)


class Row(NamedTuple):
    """One side of one handoff. `facts` are what that side needs to go on, as JSON knows it."""

    side: str
    record: SourceRecord | TargetRecord
    facts: dict[str, Any]
    began_at: int

    def public(self) -> dict[str, Any]:
        """What devices see; no seal is in it."""
        return {
            "id": self.record.id,
            "thread": self.record.thread,
            "side": self.side,
            "state": self.record.state,
            "over": self.record.state in core.OVER,
            "began_at": self.began_at,
            "peer": self.facts.get("peer"),
            "place": self.facts.get("place"),
            "name": self.facts.get("name"),
        }


class Journal:
    """handoff.db of one home; open it in the thread that uses it."""

    def __init__(self, home: Home) -> None:
        self._path = home.join("handoff.db")
        self._db = open_database(self._path, MIGRATIONS)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise Refused(
                "a handoff of this thread is under way here",
                hint="finish or undo it: codexctl thread handoff THREAD --resume (or --undo)",
            ) from None
        except sqlite3.Error as error:
            raise describe_sqlite_error(error, self._path) from error

    def begin(self, side: str, record: SourceRecord | TargetRecord, facts: dict[str, Any]) -> None:
        """A new row. Refused where another handoff of the thread is under way here."""
        with self._reporting(), transaction(self._db):
            self._db.execute(
                "INSERT INTO handoffs (id, side, thread, state, began_at, record, facts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (record.id, side, record.thread, record.state, now_s(), *_texts(record, facts)),
            )
            self._db.execute(
                "DELETE FROM handoffs WHERE number < (SELECT max(number) FROM handoffs) - ? "
                "AND state IN ('retired', 'undone', 'owned', 'discarded') AND number NOT IN "
                "(SELECT max(number) FROM handoffs WHERE state NOT IN ('undone', 'discarded') "
                "GROUP BY thread)",
                (KEPT_FINISHED,),
            )

    def write(self, side: str, record: SourceRecord | TargetRecord, facts: dict[str, Any]) -> None:
        """The record's new state and facts; on the disk when this returns."""
        with self._reporting(), transaction(self._db):
            self._db.execute(
                "UPDATE handoffs SET state = ?, record = ?, facts = ? WHERE id = ? AND side = ?",
                (record.state, *_texts(record, facts), record.id, side),
            )

    def source(self, id: str) -> tuple[SourceRecord, dict[str, Any]]:
        row = self._need(id, SOURCE)
        assert isinstance(row.record, SourceRecord)
        return row.record, row.facts

    def target(self, id: str) -> tuple[TargetRecord, dict[str, Any]]:
        row = self._need(id, TARGET)
        assert isinstance(row.record, TargetRecord)
        return row.record, row.facts

    def _need(self, id: str, side: str) -> Row:
        rows = self._rows("WHERE id = ? AND side = ?", id, side)
        if not rows:
            raise UsageError(
                f"this host knows of no handoff {id[:40]!r}", hint="see: codexctl thread list"
            )
        return rows[0]

    def rows(self, thread: str | None = None) -> list[Row]:
        """The newest first."""
        if thread is None:
            return self._rows("ORDER BY number DESC")
        return self._rows("WHERE thread = ? ORDER BY number DESC", thread)

    def latest(self, thread: str) -> Row | None:
        """The row that says whose the thread is; None where it was never handed on."""
        came_to_nothing = (core.UNDONE, core.DISCARDED)
        rows = self.rows(thread)
        return next((row for row in rows if row.record.state not in came_to_nothing), None)

    def _rows(self, where: str, *values: str) -> list[Row]:
        with self._reporting():
            rows = self._db.execute(
                f"SELECT side, record, facts, began_at FROM handoffs {where}",  # noqa: S608 - constants
                values,
            ).fetchall()
        return [_row(row) for row in rows]


def _texts(record: SourceRecord | TargetRecord, facts: dict[str, Any]) -> tuple[str, str]:
    return json.dumps(asdict(record)), json.dumps(facts)


def _row(row: sqlite3.Row) -> Row:
    kind = SourceRecord if row["side"] == SOURCE else TargetRecord
    return Row(
        row["side"],
        kind(**json.loads(row["record"])),
        json.loads(row["facts"]),
        row["began_at"],
    )


def new_seal() -> str:
    return secrets.token_hex(core.SEAL_BYTES)


def moved_to(journal: Journal, thread: str) -> dict[str, Any] | None:
    """Where a thread went that is no longer this host's: the `peer` of its handoff."""
    row = journal.latest(thread)
    if row is None or row.side != SOURCE or row.record.state == core.FROZEN:
        return None
    peer: dict[str, Any] = row.facts["peer"]
    return peer


def check_may_act(home: Home, thread: str) -> None:
    """Refused where this host may not let the thread take a turn now: it moves, or has moved."""
    with Journal(home) as journal:
        row = journal.latest(thread)
    if row is None or row.record.state == core.OWNED:
        return
    name = row.facts["peer"]["name"]
    if row.side == TARGET:
        raise Refused(
            f"thread {thread} is arriving from {name}, and not this host's yet",
            hint=f"finish it: codexctl thread handoff {thread} --resume",
        )
    if row.record.state == core.FROZEN:
        raise Refused(
            f"thread {thread} is being handed off to {name}",
            hint=f"finish or undo it: codexctl thread handoff {thread} --resume (or --undo)",
        )
    raise Refused(
        f"thread {thread} has moved to {name}",
        hint=f"go on there, or bring it back: codexctl thread handoff {thread} --to THIS-HOST",
    )
