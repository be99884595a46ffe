"""Where notices go: the targets of a host, in notify.db, and what each kind is sent.

| kind | address | what it gets |
|---|---|---|
| ntfy | URL of a topic | the JSON of ntfy's publishing |
| webhook | URL | a JSON object; with a secret, its HMAC-SHA256 in `X-Codexctl-Signature` |
| command | a command line | the same JSON on stdin, run as the host's owner, outside the sandbox |
| desktop | | `notify-send`, or `osascript` on macOS |

Only the host's owner sets targets, on the host: notices leave the machine with names of threads
and commands, and a command runs as the owner. So devices have no way to do so.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from typing import NamedTuple
from urllib.parse import urlsplit

from codexctl.agent.notify import BODY_CHARS, TITLE_CHARS, Notice, Target
from codexctl.errors import UsageError
from codexctl.paths import Home
from codexctl.secret import Secret
from codexctl.state.database import Migration, now_s, open_database, transaction

NOTIFY_DB = "notify.db"
KINDS = ("ntfy", "webhook", "command", "desktop")
MAX_TARGETS = 32
KEPT_TOLD = 4096

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE targets (
            name TEXT PRIMARY KEY,
            kind TEXT NOT NULL CHECK (kind IN ('ntfy', 'webhook', 'command', 'desktop')),
            address TEXT NOT NULL,
            secret TEXT,
            device TEXT,
            always INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            sent_at INTEGER,
            failed_at INTEGER,
            error TEXT
        ) STRICT
        """,
        """
        CREATE TABLE told (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            target TEXT NOT NULL,
            notice TEXT NOT NULL,
            UNIQUE (target, notice)
        ) STRICT
        """,
    ),
)


class TargetRecord(NamedTuple):
    """A target. `address` is a URL or a command line; times are seconds since the epoch."""

    name: str
    kind: str
    address: str
    secret: Secret | None
    device: str | None
    always: bool
    created_at: int
    sent_at: int | None = None
    failed_at: int | None = None
    error: str | None = None

    @property
    def rule(self) -> Target:
        return Target(self.name, self.device, self.always)


class Post(NamedTuple):
    """An HTTP request to make."""

    url: str
    headers: dict[str, str]
    body: bytes


def open_targets(home: Home) -> sqlite3.Connection:
    """notify.db of this home, mode 0600: it holds tokens."""
    home.ensure()
    return open_database(home.join(NOTIFY_DB), MIGRATIONS)


def all_targets(db: sqlite3.Connection) -> list[TargetRecord]:
    return [_record(row) for row in db.execute("SELECT * FROM targets ORDER BY name")]


def _record(row: sqlite3.Row) -> TargetRecord:
    values = dict(row)
    values["secret"] = None if values["secret"] is None else Secret(values["secret"])
    return TargetRecord(**{**values, "always": bool(values["always"])})


def add_target(db: sqlite3.Connection, target: TargetRecord) -> None:
    """Keep a target. UsageError where its address is none, its name is taken, or there are many."""
    check_address(target.kind, target.address)
    with transaction(db):
        if db.execute("SELECT count(*) FROM targets").fetchone()[0] >= MAX_TARGETS:
            raise UsageError(
                f"there are {MAX_TARGETS} targets already", hint="codexctl notify list"
            )
        secret = target.secret.reveal() if target.secret is not None else None
        try:
            db.execute(
                "INSERT INTO targets (name, kind, address, secret, device, always, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (target.name, target.kind, target.address, secret, target.device,
                 int(target.always), now_s()),
            )  # fmt: skip
        except sqlite3.IntegrityError:
            raise UsageError(
                f"a target is called {target.name} already", hint="give another --name"
            ) from None


def remove_target(db: sqlite3.Connection, name: str) -> None:
    with transaction(db):
        gone = db.execute("DELETE FROM targets WHERE name = ?", (name,)).rowcount
        db.execute("DELETE FROM told WHERE target = ?", (name,))
    if not gone:
        raise unknown_target(name)


def find_target(db: sqlite3.Connection, name: str) -> TargetRecord:
    row = db.execute("SELECT * FROM targets WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise unknown_target(name)
    return _record(row)


def unknown_target(name: str) -> UsageError:
    return UsageError(f"no target is called {name}", hint="see: codexctl notify list")


def told(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """The pairs of target and notice that were told, the oldest first."""
    rows = db.execute("SELECT target, notice FROM told ORDER BY number")
    return [(row[0], row[1]) for row in rows]


def keep_result(
    db: sqlite3.Connection, target: str, notices: tuple[str, ...], error: str | None
) -> None:
    """Note that a target was told these notices, or why the last attempt failed."""
    with transaction(db):
        if error is not None:
            db.execute(
                "UPDATE targets SET failed_at = ?, error = ? WHERE name = ?",
                (now_s(), error[:BODY_CHARS], target),
            )
            return
        db.execute(
            "UPDATE targets SET sent_at = ?, failed_at = NULL, error = NULL WHERE name = ?",
            (now_s(), target),
        )
        db.executemany(
            "INSERT OR IGNORE INTO told (target, notice) VALUES (?, ?)",
            [(target, notice) for notice in notices],
        )
        db.execute(
            "DELETE FROM told WHERE number <= (SELECT max(number) FROM told) - ?", (KEPT_TOLD,)
        )


def check_address(kind: str, address: str) -> None:
    """UsageError where a target of this kind cannot have this address."""
    if kind == "desktop":
        return
    if kind == "command":
        import shlex

        try:
            words = shlex.split(address)
        except ValueError as error:
            raise UsageError(f"the command line is not complete: {error}") from None
        if not words:
            raise UsageError("the command is empty")
        return
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{address} is no http(s) URL")
    if parts.username or parts.password:
        raise UsageError(
            "the address holds a password", hint="give the token by --token-file instead"
        )
    if kind == "ntfy" and not parts.path.strip("/"):
        raise UsageError(
            f"{address} names no topic", hint="the topic is the last part: https://ntfy.sh/TOPIC"
        )


# --- what is sent ---


def as_json(notice: Notice, host: str) -> dict[str, str]:
    """The object for webhooks and commands."""
    return {**notice._asdict(), "host": host}


def post_for(target: TargetRecord, notice: Notice, host: str) -> Post:
    """The request for an ntfy or webhook target."""
    headers = {"Content-Type": "application/json"}
    if target.kind == "ntfy":
        server, _, topic = target.address.rstrip("/").rpartition("/")
        value: dict[str, object] = {
            "topic": topic,
            "title": notice.title[:TITLE_CHARS],
            "message": notice.body[:BODY_CHARS] or notice.title,
            "priority": 4 if notice.kind == "waiting" else 3,
            "tags": [{"waiting": "raised_hand", "failed": "warning"}.get(notice.kind, "tada")],
        }
        if notice.link:
            value["click"] = notice.link
        if target.secret is not None:
            headers["Authorization"] = f"Bearer {target.secret.reveal()}"
        return Post(f"{server}/", headers, json.dumps(value).encode())
    body = json.dumps(as_json(notice, host)).encode()
    if target.secret is not None:
        digest = hmac.new(target.secret.reveal().encode(), body, hashlib.sha256).hexdigest()
        headers["X-Codexctl-Signature"] = f"sha256={digest}"
    return Post(target.address, headers, body)


def argv_for(target: TargetRecord, notice: Notice, system: str) -> list[str]:
    """The command of a command or desktop target; `system` is platform.system()."""
    if target.kind == "command":
        import shlex

        return shlex.split(target.address)
    title, body = notice.title[:TITLE_CHARS], notice.body[:BODY_CHARS]
    if system == "Darwin":
        show = "display notification (item 2 of argv) with title (item 1 of argv)"
        script = f"on run argv\n{show}\nend run"
        return ["osascript", "-e", script, title, f"{body}\n{notice.link}".strip()]
    urgency = "critical" if notice.kind == "waiting" else "normal"
    options = ["--app-name=codexctl", f"--urgency={urgency}"]
    return ["notify-send", *options, "--", title, f"{body}\n{notice.link}".strip()]
