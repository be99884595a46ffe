"""What a relay keeps in relay.db: tokens, registrations, pairings, claims. SQLite, one thread.

Tokens are stored as SHA-256 of 256 random bits, which cannot be guessed, so that a stolen file
opens nothing. All of them are held in memory as well: checking one costs no query. A process that
changes the file while a relay runs (`codexctl relay token revoke`) is noticed by `refresh`, which
the relay calls each second.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Iterable

from codexctl.errors import CodexctlError, UsageError
from codexctl.paths import Home
from codexctl.relay.effects import (
    DEVICE,
    ENROLMENT,
    OWNER,
    PAIRING,
    Claim,
    Principal,
    RoomKey,
)
from codexctl.relay.schema import MIGRATIONS, Pairing, Registration, Token, check_name
from codexctl.secret import Secret
from codexctl.state.database import (
    BUSY_TIMEOUT_S,
    describe_sqlite_error,
    guarded_transaction,
    now_s,
    open_database,
)

TOKEN_PREFIX = "cxr_"  # noqa: S105 - what secret scanners recognise, not a secret
DEFAULT_OWNER = "default"
ENDED_KEPT_S = 30 * 86_400  # revoked and expired tokens stay listed so long
STALE_REGISTRATION_S = 180 * 86_400
SEEN_STEP_S = 86_400  # how exactly it is known when a host was last here


class NoSuchToken(CodexctlError):
    """A token id or name that is not there."""

    code = "no-such-token"


def sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


class Store:
    """An open relay.db. Methods raise StateError where the file or the disk fails."""

    def __init__(self, path: str, lock_wait_s: float = BUSY_TIMEOUT_S) -> None:
        self._path = path
        self._db = open_database(path, MIGRATIONS)
        self._db.execute(f"PRAGMA busy_timeout={int(lock_wait_s * 1000)}")
        # A crash of the machine may lose the last commits, never the file; no commit waits for
        # the disk while frames are waiting for the loop.
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._tokens: dict[str, Token] = {}
        self._by_secret: dict[bytes, Token] = {}
        self._data_version = -1
        self._secret = self._load_secret()
        self.refresh()

    @classmethod
    def open(cls, home: Home, lock_wait_s: float = BUSY_TIMEOUT_S) -> Store:
        """The store of a home; a file that another process has locked is waited for so long."""
        return cls(home.ensure().relay_db, lock_wait_s)

    def close(self) -> None:
        self._db.close()

    # Tokens

    def create_token(
        self,
        *,
        name: str,
        expires_in_s: int,
        owner: str = DEFAULT_OWNER,
        environment_id: str = "",
        now: float | None = None,
    ) -> tuple[Secret, Token]:
        """A new token: of a device where an environment is named, else of an owner.

        The secret is shown once and kept nowhere. UsageError for a name that cannot be, or an
        owner's token whose name is in use.
        """
        check_name("token", name)
        check_name("owner", owner)
        at = int(now if now is not None else now_s())
        kind = DEVICE if environment_id else OWNER
        if kind == OWNER and self._named(name, owner, at):
            raise UsageError(
                f"a token named {name!r} exists already",
                hint=f"take another name, or first run: codexctl relay token revoke {name}",
            )
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        token = Token(
            "tok_" + secrets.token_hex(8),
            owner,
            name,
            kind,
            environment_id,
            at,
            at + expires_in_s,
            None,
        )
        self.add_token(token, sha256(secret))
        return Secret(secret), token

    def add_token(
        self,
        token: Token,
        secret_sha256: bytes,
        *,
        enrolment: str = "",
        ended: Iterable[str] = (),
    ) -> None:
        """Keep a token; with it `enrolment` is used up and the tokens `ended` end, or nothing does.

        sqlite3.IntegrityError where the secret was in use before.
        """
        at = token.created_at
        with self.write() as db:
            db.execute(
                "INSERT INTO tokens (id, owner, name, kind, environment_id, secret_sha256,"
                " created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*token[:5], secret_sha256, token.created_at, token.expires_at),
            )
            db.execute("UPDATE enrolments SET used_at = ? WHERE id = ?", (at, enrolment))
            db.executemany(
                "UPDATE tokens SET revoked_at = ? WHERE id = ?", ((at, one) for one in ended)
            )
        self._tokens[token.id] = token
        self._by_secret[secret_sha256] = token
        for one in ended:
            self._remember(self._tokens[one]._replace(revoked_at=at))

    def tokens(self, owner: str | None = None) -> list[Token]:
        """All tokens, newest last, ended ones of the last days among them."""
        listed = [t for t in self._tokens.values() if owner is None or t.owner == owner]
        return sorted(listed, key=lambda token: (token.created_at, token.id))

    def token(self, token_id: str) -> Token | None:
        return self._tokens.get(token_id)

    def live(self, token_id: str, now: float) -> bool:
        """Whether a token or pairing of this id still lets new connections in."""
        token = self._tokens.get(token_id)
        if token is not None:
            return token.revoked_at is None and token.expires_at > now
        pairing = self.pairing(token_id)
        return pairing is not None and pairing.ended_at is None and pairing.expires_at > now

    def live_device_tokens(self, owner: str, now: float) -> int:
        return sum(
            t.owner == owner and t.kind == DEVICE and t.status(now) == "active"
            for t in self._tokens.values()
        )

    def authenticate(self, secret: str, now: float) -> Principal | None:
        """Who a bearer is: an active token, or the ticket of a pairing on offer."""
        digest = sha256(secret)
        token = self._by_secret.get(digest) or self._just_made(digest)
        if token is not None:
            if token.revoked_at is not None or token.expires_at <= now:
                return None
            return Principal(
                token.id, token.owner, token.kind, token.environment_id, token.expires_at
            )
        row = self.read(
            "SELECT id, owner, ?, environment_id, expires_at FROM pairings"
            " WHERE (ticket_sha256 = ? OR claim_sha256 = ?) AND ended_at IS NULL"
            " AND expires_at > ? UNION ALL SELECT id, owner, ?, '', expires_at FROM enrolments"
            " WHERE secret_sha256 = ? AND used_at IS NULL AND expires_at > ?",
            (PAIRING, digest, digest, int(now), ENROLMENT, digest, int(now)),
        )
        return Principal(*tuple(row[0])) if row else None

    def _just_made(self, digest: bytes) -> Token | None:
        """A token that another process made since the last `refresh`: it works at once."""
        rows = self.read(
            "SELECT id, owner, name, kind, environment_id, created_at, expires_at, revoked_at"
            " FROM tokens WHERE secret_sha256 = ?",
            (digest,),
        )
        if not rows:
            return None
        token = self._tokens[rows[0]["id"]] = self._by_secret[digest] = Token(*tuple(rows[0]))
        return token

    def find_tokens(self, id_or_name: str, now: float) -> list[Token]:
        """The active tokens of this id or name. NoSuchToken, or UsageError between owners."""
        by_id = self._tokens.get(id_or_name)
        if by_id is not None and by_id.status(now) == "active":
            return [by_id]
        found = [t for t in self._tokens.values() if t.name == id_or_name]
        found = [t for t in found if t.status(now) == "active"]
        if not found:
            raise NoSuchToken(
                f"no active token has the id or name {id_or_name!r}",
                hint="see: codexctl relay token list",
            )
        if len({t.owner for t in found}) > 1:
            ids = ", ".join(f"{t.id} ({t.owner})" for t in found)
            raise UsageError(
                f"{id_or_name!r} is the name of tokens of several owners",
                hint=f"name one by its id: {ids}",
            )
        return found

    def revoke(self, token_id: str, now: float | None = None) -> None:
        at = int(now if now is not None else now_s())
        with self.write() as db:
            db.execute(
                "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                (at, token_id),
            )
        token = self._tokens.get(token_id)
        if token is not None and token.revoked_at is None:
            self._remember(token._replace(revoked_at=at))

    def refresh(self) -> list[str]:
        """Read the tokens again if another process changed the file; the ids revoked meanwhile."""
        version = self.read("PRAGMA data_version")[0][0]
        if version == self._data_version:
            return []
        self._data_version = version
        before = self._tokens
        self._tokens, self._by_secret = {}, {}
        for row in self.read(
            "SELECT id, owner, name, kind, environment_id, created_at, expires_at, revoked_at,"
            " secret_sha256 FROM tokens"
        ):
            token = self._tokens[row["id"]] = Token(*tuple(row)[:8])
            self._by_secret[row["secret_sha256"]] = token
        return [
            token.id
            for token in before.values()
            if token.revoked_at is None
            and (token.id not in self._tokens or self._tokens[token.id].revoked_at is not None)
        ]

    # Registrations

    def register(
        self, key: RoomKey, security_profile: str, public_key: str, now: float
    ) -> Registration:
        """The registration of a host; the same one for the same key, also after a restart."""
        at = int(now)
        known = self.read(
            "SELECT registration_id, security_profile, public_key, registered_at, seen_at"
            " FROM registrations WHERE owner = ? AND environment_id = ?",
            key,
        )
        if known:
            row = known[0]
            same = Registration(*tuple(row)[:4])
            if same.public_key == public_key and same.security_profile == security_profile:
                if at - row["seen_at"] >= SEEN_STEP_S:
                    with self.write() as db:
                        db.execute(
                            "UPDATE registrations SET seen_at = ?"
                            " WHERE owner = ? AND environment_id = ?",
                            (at, *key),
                        )
                return same
        fresh = Registration("reg_" + secrets.token_hex(16), security_profile, public_key, at)
        with self.write() as db:
            db.execute(
                "INSERT OR REPLACE INTO registrations (owner, environment_id, registration_id,"
                " security_profile, public_key, registered_at, seen_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*key, *fresh, at),
            )
        return fresh

    def registration(self, key: RoomKey) -> Registration | None:
        rows = self.read(
            "SELECT registration_id, security_profile, public_key, registered_at"
            " FROM registrations WHERE owner = ? AND environment_id = ?",
            key,
        )
        return Registration(*tuple(rows[0])) if rows else None

    def environments(self, owner: str) -> list[tuple[str, int, str]]:
        """(environment id, registered at, security profile) of an owner."""
        rows = self.read(
            "SELECT environment_id, registered_at, security_profile FROM registrations"
            " WHERE owner = ? ORDER BY environment_id",
            (owner,),
        )
        return [(row[0], row[1], row[2]) for row in rows]

    # Pairings

    def add_pairing(
        self, key: RoomKey, ticket_sha256: bytes, expires_in_s: int, now: float
    ) -> Pairing | None:
        """A new offer with the smallest free nameplate; None where this ticket was used before."""
        at = int(now)
        pairing_id = "pair_" + secrets.token_hex(8)
        with self.write() as db:
            # A nameplate stays taken until its offer would have expired: a code that somebody
            # still has on screen must not lead to another host.
            taken = {
                row[0]
                for row in db.execute("SELECT nameplate FROM pairings WHERE expires_at > ?", (at,))
            }
            nameplate = next(n for n in range(1, len(taken) + 2) if n not in taken)
            try:
                db.execute(
                    "INSERT INTO pairings (id, owner, environment_id, nameplate, ticket_sha256,"
                    " claim_sha256, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        pairing_id,
                        *key,
                        nameplate,
                        ticket_sha256,
                        sha256(self.claim_ticket(pairing_id)),
                        at + expires_in_s,
                    ),
                )
            except sqlite3.IntegrityError:
                return None
        return Pairing(pairing_id, *key, nameplate, at + expires_in_s, None)

    def claim_ticket(self, pairing_id: str) -> str:
        """The bearer that whoever names a pairing's nameplate gets; the relay's own, not kept."""
        return "cxp_" + hmac.digest(self._secret, b"claim " + pairing_id.encode(), "sha256").hex()

    def pairing(self, pairing_id: str) -> Pairing | None:
        rows = self.read(
            "SELECT id, owner, environment_id, nameplate, expires_at, ended_at FROM pairings"
            " WHERE id = ?",
            (pairing_id,),
        )
        return Pairing(*tuple(rows[0])) if rows else None

    def pairing_at(self, nameplate: int, now: float) -> Pairing | None:
        """The offer of a nameplate."""
        rows = self.read(
            "SELECT id, owner, environment_id, nameplate, expires_at, ended_at FROM pairings"
            " WHERE nameplate = ? AND ended_at IS NULL AND expires_at > ?",
            (nameplate, int(now)),
        )
        return Pairing(*tuple(rows[0])) if rows else None

    def live_pairings(self, now: float, owner: str = "") -> int:
        """How many offers stand: of one owner, or of all."""
        rows = self.read(
            "SELECT COUNT(*) FROM pairings WHERE ended_at IS NULL AND expires_at > ?"
            " AND (? = '' OR owner = ?)",
            (int(now), owner, owner),
        )
        return int(rows[0][0])

    def end_pairing(self, pairing_id: str, now: float) -> None:
        with self.write() as db:
            db.execute(
                "UPDATE pairings SET ended_at = ? WHERE id = ? AND ended_at IS NULL",
                (int(now), pairing_id),
            )

    # Claims of streams

    def live_claims(self, now: float) -> list[Claim]:
        """The claims of tokens that still count; the others are forgotten."""
        rows = self.read("SELECT owner, environment_id, stream, token_id FROM claims")
        claims = [Claim(RoomKey(row[0], row[1]), row[2], row[3]) for row in rows]
        live = {token_id for token_id in {c.token_id for c in claims} if self.live(token_id, now)}
        ended = [(c.room, c.stream, None) for c in claims if c.token_id not in live]
        if ended:
            self.save_claims(ended)
        return [claim for claim in claims if claim.token_id in live]

    def save_claims(self, changes: Iterable[tuple[RoomKey, bytes, str | None]]) -> None:
        """Write claims made (with their token's id) and ended (None), in one transaction."""
        with self.write() as db:
            for key, stream, token_id in changes:
                if token_id is None:
                    db.execute(
                        "DELETE FROM claims WHERE owner = ? AND environment_id = ? AND stream = ?",
                        (*key, stream),
                    )
                else:
                    db.execute(
                        "INSERT OR REPLACE INTO claims (owner, environment_id, stream, token_id)"
                        " VALUES (?, ?, ?, ?)",
                        (*key, stream, token_id),
                    )

    # Upkeep

    def clean(self, now: float, online: Iterable[RoomKey] = ()) -> None:
        """Forget what ended long ago. Environments that are `online` count as seen now."""
        at = int(now)
        with self.write() as db:
            db.executemany(
                "UPDATE registrations SET seen_at = ? WHERE owner = ? AND environment_id = ?",
                ((at, *key) for key in online),
            )
            db.execute(
                "DELETE FROM tokens WHERE MIN(expires_at, COALESCE(revoked_at, expires_at)) < ?",
                (at - ENDED_KEPT_S,),
            )
            db.execute("DELETE FROM pairings WHERE expires_at < ?", (at - 3600,))
            db.execute("DELETE FROM registrations WHERE seen_at < ?", (at - STALE_REGISTRATION_S,))
        self._data_version = -1
        self.refresh()

    # Inside

    def _load_secret(self) -> bytes:
        with self.write() as db:
            row = db.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()
            if row is not None:
                return bytes(row[0])
            secret = secrets.token_bytes(32)
            db.execute("INSERT INTO meta (name, value) VALUES ('secret', ?)", (secret,))
            return secret

    def _named(self, name: str, owner: str, now: float) -> bool:
        return any(
            t.name == name and t.owner == owner and t.kind == OWNER and t.status(now) == "active"
            for t in self._tokens.values()
        )

    def _remember(self, token: Token) -> None:
        self._tokens[token.id] = token
        for digest, known in self._by_secret.items():
            if known.id == token.id:
                self._by_secret[digest] = token
                return

    def read(self, statement: str, values: Iterable[object] = ()) -> list[sqlite3.Row]:
        try:
            return self._db.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise describe_sqlite_error(error, self._path) from error

    def write(self) -> guarded_transaction:
        return guarded_transaction(self._db, self._path)
