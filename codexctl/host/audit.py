"""The audit log: an append-only JSONL file in which each record holds the hash of the one before.

A record is a JSON object on a line with `n` (from 1), `time`, `kind`, `who`, `what`, `where`,
`outcome`, what the kind adds, `prev` and `hash`; `hash` is the SHA-256 of the record without it, as
compact JSON with sorted keys. The head (count and last hash) is kept in host.db, so that a tail
that was cut off is missed as well. A log that was cut is continued where its head says, which keeps
the gap in sight.

A record is written before its command starts. With audit.sync = "each" it is on the disk by then;
with "batched" within SYNC_AFTER_S, so that a power failure can lose the records of that time (a
crash of codexctl loses none). When a record cannot be written, what it is about does not happen.
"""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from codexctl.errors import Refused, StateError
from codexctl.host.store import AuditHead, open_store, read_audit_head, write_audit_head
from codexctl.paths import Home
from codexctl.state.database import describe_sqlite_error
from codexctl.state.files import describe_os_error

SYNC_AFTER_S = 1.0
# One record; longer values in it are shortened, which is said.
MAX_RECORD_BYTES = 64 * 1024
MAX_TEXT = 8000
FIRST = "0" * 64
UNRECORDED = "this host refuses what it cannot record"
# What did not happen needs no record to be allowed not to happen.
_NEGATIVE = ("denied", "failed", "burnt")

_log = logging.getLogger(__name__)


class Tampered(NamedTuple):
    """The first record that is not as it was written; `n` is its number."""

    n: int
    reason: str


class Verified(NamedTuple):
    """What `verify` found: so many good records, then `fault` or the end."""

    records: int
    fault: Tampered | None
    unconfirmed: int
    """Good records beyond the kept head: written, and not yet synced when the host stopped."""


def digest(record: dict[str, Any]) -> str:
    """The hash of a record without its own `hash`."""
    content = {key: value for key, value in record.items() if key != "hash"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_chain(lines: Iterator[bytes], head: AuditHead | None) -> Verified:
    """Go through a whole log and name the first record that was changed, cut out or cut off."""
    previous, n = FIRST, 0
    head_seen = head is None or head.records == 0
    for line in lines:
        n += 1
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no object")
        except ValueError:
            return Verified(n - 1, Tampered(n, "is not a record"), 0)
        if not line.endswith(b"\n"):
            return Verified(n - 1, Tampered(n, "is cut short"), 0)
        if record.get("n") != n:
            return Verified(n - 1, Tampered(n, f"is missing, {record.get('n')!r} follows"), 0)
        if record.get("prev") != previous:
            return Verified(n - 1, Tampered(n, "does not follow the one before it"), 0)
        previous = digest(record)
        if record.get("hash") != previous:
            return Verified(n - 1, Tampered(n, "was changed"), 0)
        if head is not None and head.records == n:
            if head.hash != previous:
                return Verified(n - 1, Tampered(n, "is not the one that was written"), 0)
            head_seen = True
    if not head_seen and head is not None:
        return Verified(n, Tampered(n + 1, f"is missing: {head.records} were written"), 0)
    return Verified(n, None, n - (head.records if head else 0))


class AuditLog:
    """Appends to the log of one home. `append` takes some tens of microseconds and does not wait.

    Several processes may append (the daemon, `codexctl devices` without one): a file lock orders
    them. In an event loop the sync follows by itself; elsewhere call `sync`.
    """

    def __init__(self, home: Home, *, sync_each: bool = False) -> None:
        self._home = home
        self._path = home.audit_log
        self._sync_each = sync_each
        self._fd = -1
        # One value, as the syncing thread reads it too.
        self._tail = AuditHead(0, FIRST)
        self._size = -1
        self._fault: StateError | None = None
        self._timer: asyncio.TimerHandle | None = None
        # One thread: SQLite wants it, and syncs do not overtake each other.
        self._syncer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._db: sqlite3.Connection | None = None

    def append(
        self, kind: str, *, who: str, what: object, outcome: str, where: str = "", **more: Any
    ) -> None:
        """Write one record. StateError where it cannot be kept: then do not do what it is about.

        Records of a denial or failure are written where possible and raise nothing.
        """
        try:
            if self._fault is not None:
                raise self._fault
            self._write(
                {"kind": kind, "who": who, "what": what, "where": where, "outcome": outcome, **more}
            )
        except StateError as error:
            if outcome not in _NEGATIVE:
                raise
            _log.error("%s", error)
        finally:
            self._schedule()

    def _write(self, content: dict[str, Any]) -> None:
        try:
            if self._fd < 0:
                self._fd = os.open(
                    self._path,
                    os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
                    0o600,
                )
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                size = os.fstat(self._fd).st_size
                if size != self._size:
                    self._read_tail(size)
                now = datetime.datetime.now(datetime.UTC)
                record = {
                    "n": self._tail.records + 1,
                    "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    **_shortened(content),
                    "prev": self._tail.hash,
                }
                record["hash"] = digest(record)
                line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
                self._write_line(line, size)
                self._tail = AuditHead(self._tail.records + 1, record["hash"])
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError as error:
            raise describe_os_error(error, self._path, "write") from error

    def _write_line(self, line: bytes, size: int) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            # A part of a line would break the chain for every later record.
            os.ftruncate(self._fd, size)
            raise
        self._size = size + written

    def _read_tail(self, size: int) -> None:
        """Continue behind what is there: our first record, or another process has written."""
        start = max(0, size - 2 * MAX_RECORD_BYTES)
        end = os.pread(self._fd, size - start, start)
        if end and not end.endswith(b"\n"):
            end += b"\n"
            os.write(self._fd, b"\n")
            size += 1
        try:
            record = json.loads(end.rstrip(b"\n").rpartition(b"\n")[2])
            tail = AuditHead(int(record["n"]), str(record["hash"]))
        except (ValueError, KeyError, TypeError):
            tail = AuditHead(0, FIRST)
        db = open_store(self._home)
        try:
            head = read_audit_head(db)
        finally:
            db.close()
        self._tail = head if head is not None and head.records >= tail.records else tail
        self._size = size

    def _schedule(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._timer is None:
            self._timer = loop.call_later(SYNC_AFTER_S, self._sync_later, loop)

    def _sync_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        loop.run_in_executor(self._syncer, self._sync_quietly)

    def _sync_quietly(self) -> None:
        try:
            self._sync()
            self._fault = None
        except StateError as error:
            # Told to whoever appends next, so that nothing goes on unrecorded.
            self._fault = error
            _log.error("%s", error)

    async def synced(self) -> None:
        """With audit.sync = "each": wait until what was appended is on the disk, or Refused."""
        if self._sync_each:
            try:
                await asyncio.get_running_loop().run_in_executor(self._syncer, self._sync)
            except StateError as error:
                raise Refused(f"{UNRECORDED}: {error}", hint=error.hint) from error

    def sync(self) -> None:
        """Put what was appended, and the head, on the disk now. StateError."""
        self._syncer.submit(self._sync).result()

    def _sync(self) -> None:
        if self._fd < 0:
            return
        head = self._tail
        try:
            # macOS has no fdatasync.
            (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._fd)
            if self._db is None:
                self._db = open_store(self._home)
            write_audit_head(self._db, head)
        except OSError as error:
            raise describe_os_error(error, self._path, "write") from error
        except sqlite3.Error as error:
            raise describe_sqlite_error(error, self._home.host_db) from error

    def close(self) -> None:
        """Sync and let go. Errors of the last sync are logged."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._syncer.submit(self._sync_quietly).result()
        if self._db is not None:
            self._syncer.submit(self._db.close).result()
            self._db = None
        self._syncer.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _shortened(content: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(content, ensure_ascii=True)
    if len(text) <= MAX_RECORD_BYTES - 1000:
        return content
    return {
        key: (str(value)[:MAX_TEXT] + " (shortened)" if len(str(value)) > MAX_TEXT else value)
        for key, value in content.items()
    }


def read_lines(path: str) -> Iterator[bytes]:
    """The log's lines with their ends; none where there is no log. StateError."""
    try:
        with open(path, "rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise describe_os_error(error, path, "read") from error


def verify(home: Home) -> Verified:
    """Check the whole log of this home against its chain and its head."""
    head = None
    if os.path.exists(home.host_db):
        db = open_store(home)
        try:
            # Read first: records that are appended meanwhile are beyond this head.
            head = read_audit_head(db)
        finally:
            db.close()
    return check_chain(read_lines(home.audit_log), head)
