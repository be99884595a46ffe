"""The tables of relay.db, and their rows as values."""

from __future__ import annotations

from typing import NamedTuple

from codexctl.errors import UsageError

MAX_NAME_CHARS = 100

MIGRATIONS = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        """CREATE TABLE tokens (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('owner', 'device')),
            environment_id TEXT NOT NULL DEFAULT '',
            secret_sha256 BLOB NOT NULL UNIQUE,
            created_at INTEGER NOT NULL,
            expires_at INTEGER NOT NULL,
            revoked_at INTEGER
        ) WITHOUT ROWID""",
        """CREATE TABLE registrations (
            owner TEXT NOT NULL,
            environment_id TEXT NOT NULL,
            registration_id TEXT NOT NULL,
            security_profile TEXT NOT NULL,
            public_key TEXT NOT NULL,
            registered_at INTEGER NOT NULL,
            seen_at INTEGER NOT NULL,
            PRIMARY KEY (owner, environment_id)
        ) WITHOUT ROWID""",
        """CREATE TABLE pairings (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            environment_id TEXT NOT NULL,
            nameplate INTEGER NOT NULL,
            ticket_sha256 BLOB NOT NULL UNIQUE,
            claim_sha256 BLOB NOT NULL UNIQUE,
            expires_at INTEGER NOT NULL,
            ended_at INTEGER
        ) WITHOUT ROWID""",
        """CREATE TABLE claims (
            owner TEXT NOT NULL,
            environment_id TEXT NOT NULL,
            stream BLOB NOT NULL,
            token_id TEXT NOT NULL,
            PRIMARY KEY (owner, environment_id, stream)
        ) WITHOUT ROWID""",
    ),
    # Hosts with tokens of their own, which they get for an enrolment.
    (
        """CREATE TABLE new_tokens (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('owner', 'host', 'device')),
            environment_id TEXT NOT NULL DEFAULT '',
            secret_sha256 BLOB NOT NULL UNIQUE,
            created_at INTEGER NOT NULL,
            expires_at INTEGER NOT NULL,
            revoked_at INTEGER
        ) WITHOUT ROWID""",
        """INSERT INTO new_tokens SELECT id, owner, name, kind, environment_id, secret_sha256,
            created_at, expires_at, revoked_at FROM tokens""",
        "DROP TABLE tokens",
        "ALTER TABLE new_tokens RENAME TO tokens",
        """CREATE TABLE enrolments (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            secret_sha256 BLOB NOT NULL UNIQUE,
            expires_at INTEGER NOT NULL,
            host_expires_in_s INTEGER NOT NULL,
            used_at INTEGER
        ) WITHOUT ROWID""",
    ),
)


class Token(NamedTuple):
    """A bearer token without its secret. Times are seconds since the epoch."""

    id: str
    owner: str
    name: str
    kind: str
    environment_id: str
    created_at: int
    expires_at: int
    revoked_at: int | None

    def status(self, now: float) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at <= now else "active"

    def active(self, now: float) -> bool:
        return self.status(now) == "active"


class Enrolment(NamedTuple):
    """What a new host may exchange, once, for a token of its own that lives so long."""

    id: str
    owner: str
    name: str
    expires_at: int
    host_expires_in_s: int


class Registration(NamedTuple):
    """What a host said about itself when it registered. `public_key` is a JSON document."""

    registration_id: str
    security_profile: str
    public_key: str
    registered_at: int


class Pairing(NamedTuple):
    """A pairing on offer."""

    id: str
    owner: str
    environment_id: str
    nameplate: int
    expires_at: int
    ended_at: int | None


def check_name(what: str, name: str) -> None:
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
        raise UsageError(
            f"{name!r} cannot be the name of {'an' if what == 'owner' else 'a'} {what}",
            hint=f"take 1 to {MAX_NAME_CHARS} printable characters",
        )
