"""The tables of relay.db, and their rows as values."""

from __future__ import annotations

from typing import NamedTuple

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
