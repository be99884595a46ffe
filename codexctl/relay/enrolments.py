"""Enrolments: what lets one new host in, once, in place of an owner's token.

An owner has one made and hands it to a machine. The machine thinks of a token of its own and sends
the hash of it; from then on that token may serve the machine's one environment and end the devices
of it, and the enrolment is used up. So what travelled opens nothing any more, an answer that is
lost can be found out about, and nobody's own token is copied to a machine.

An environment that is registered is not given to another: only an enrolment of the same name (the
same machine, set up again) may take it, and the earlier token of that name ends.
"""

from __future__ import annotations

import re
import secrets
import sqlite3

from codexctl.relay.calls import (
    Answer,
    Failure,
    bad_request,
    checked_environment,
    device_name,
    integer,
    text,
    too_many,
)
from codexctl.relay.effects import HOST, Principal, RoomKey
from codexctl.relay.limits import Limits
from codexctl.relay.schema import Enrolment, Token, check_name
from codexctl.relay.store import DEFAULT_OWNER, Store, sha256
from codexctl.secret import Secret

ENROLMENT_PREFIX = "cxe_"
KEPT_S = 3600  # an expired enrolment
_SHA256_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


def create(
    store: Store,
    *,
    name: str,
    expires_in_s: int,
    host_expires_in_s: int,
    now: float,
    owner: str = DEFAULT_OWNER,
) -> tuple[Secret, Enrolment]:
    """A new enrolment, shown once. `host_expires_in_s` counts from when it is used."""
    check_name("token", name)
    check_name("owner", owner)
    secret = ENROLMENT_PREFIX + secrets.token_urlsafe(32)
    made = Enrolment(
        "enr_" + secrets.token_hex(8), owner, name, int(now) + expires_in_s, host_expires_in_s
    )
    with store.write() as db:
        db.execute("DELETE FROM enrolments WHERE expires_at < ?", (int(now) - KEPT_S,))
        db.execute(
            "INSERT INTO enrolments (id, owner, name, secret_sha256, expires_at,"
            " host_expires_in_s) VALUES (?, ?, ?, ?, ?, ?)",
            (*made[:3], sha256(secret), *made[3:]),
        )
    return Secret(secret), made


def host_tokens(store: Store, name: str, now: float) -> list[Token]:
    """The active host tokens of this name."""
    return [t for t in store.tokens() if (t.kind, t.name) == (HOST, name) and t.active(now)]


def answer_create(
    store: Store, limits: Limits, caller: Principal, body: dict[str, object], now: float
) -> Answer:
    """`POST /v1/enrolments` of an owner."""
    waiting = store.read(
        "SELECT COUNT(*) FROM enrolments WHERE owner = ? AND used_at IS NULL AND expires_at > ?",
        (caller.owner, int(now)),
    )
    if waiting[0][0] >= limits.enrolments_an_owner:
        raise too_many("too many enrolments wait to be used", "wait until some have expired", 60)
    secret, made = create(
        store,
        name=device_name(text(body, "name")),
        expires_in_s=integer(body, "expires_in_s", 1, limits.enrolment_max_s),
        host_expires_in_s=integer(body, "host_expires_in_s", 1, limits.token_max_s),
        now=now,
        owner=caller.owner,
    )
    return Answer(200, {"token": secret.reveal(), "id": made.id, "expires_at": made.expires_at})


def answer_redeem(
    store: Store, limits: Limits, caller: Principal, body: dict[str, object], now: float
) -> tuple[Answer, list[str]]:
    """`POST /v1/enrolments/redeem` with the enrolment as bearer; and the tokens that it ended."""
    key = RoomKey(caller.owner, checked_environment(text(body, "environment_id")))
    digest = text(body, "token_sha256")
    if not _SHA256_HEX.fullmatch(digest):
        raise bad_request("token_sha256 is not 64 hexadecimal digits")
    rows = store.read(
        "SELECT id, owner, name, expires_at, host_expires_in_s FROM enrolments WHERE id = ?",
        (caller.token_id,),
    )
    made = Enrolment(*tuple(rows[0]))
    before = [t for t in store.tokens(key.owner) if t.kind == HOST]
    before = [t for t in before if t.environment_id == key.environment_id]
    if store.registration(key) is not None and not any(t.name == made.name for t in before):
        raise Failure(
            409,
            "taken",
            "this environment belongs to another host already",
            "give the machine a CODEXCTL_HOME of its own",
        )
    hosts = sum(t.kind == HOST and t.active(now) for t in store.tokens(key.owner))
    if hosts >= limits.environments_an_owner:
        raise too_many("this owner has too many host tokens", "revoke some of them")
    token = Token(
        "tok_" + secrets.token_hex(8),
        key.owner,
        made.name,
        HOST,
        key.environment_id,
        int(now),
        int(now) + made.host_expires_in_s,
        None,
    )
    ended = [t.id for t in before if t.active(now)]
    try:
        store.add_token(token, bytes.fromhex(digest), enrolment=made.id, ended=ended)
    except sqlite3.IntegrityError:
        raise bad_request("this token was used before") from None
    return Answer(200, {"id": token.id, "expires_at": token.expires_at}), ended
