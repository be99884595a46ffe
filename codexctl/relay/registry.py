"""The registry calls of PROTOCOL.md section 2: a request and `now` in, an answer and effects out.

No socket here; randomness comes in through `random`. What belongs to another owner is looked up
under the caller's own name and is therefore not found, word for word as what does not exist.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from codexctl import __version__
from codexctl.relay import enrolments
from codexctl.relay.authority import may_end, owner, reachable, served
from codexctl.relay.authorizations import MAX_CHARS, Authorizations
from codexctl.relay.calls import (
    HYBRID,
    Answer,
    Failure,
    Request,
    bad_request,
    canonical,
    device_name,
    draining,
    integer,
    json_object,
    key_document,
    not_found,
    object_field,
    text,
    too_many,
    unauthorized,
)
from codexctl.relay.core import Rooms
from codexctl.relay.effects import (
    ENROLMENT,
    OWNER,
    PAIRING,
    TOKEN_REVOKED,
    Principal,
    RoomKey,
)
from codexctl.relay.executors import ReplacedKeys
from codexctl.relay.limits import Bucket, Limits
from codexctl.relay.schema import Token
from codexctl.relay.store import Store

STREAM_HEADER = "x-codex-noise-stream-id"
SOCKET_PATH = "/v1/socket/"
MIN_LIFETIME_S = 1

_SHA256_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Ticket(NamedTuple):
    """What the URL of a WebSocket stands for, once."""

    principal: Principal
    environment_id: str
    registration_id: str  # of a host; empty for a device
    expires_at: float
    official: bool = False  # a host that speaks the official protocol


class Registry:
    """Answers the calls over a store and the rooms."""

    def __init__(
        self,
        store: Store,
        rooms: Rooms,
        limits: Limits,
        random: Callable[[int], bytes],
        now: float,
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._limits = limits
        self._random = random
        self._authorizations = Authorizations(random, limits.ticket_s)
        self._replaced = ReplacedKeys()
        self._tickets: dict[bytes, Ticket] = {}
        self._ticket_count: dict[str, int] = {}
        self._claims = Bucket(limits.claims_a_minute / 60, limits.claims_a_minute, now)
        self._nameplates: dict[int, Bucket] = {}
        self.draining = False

    def answer(self, request: Request, socket_base: str, now: float) -> Answer:
        """Answer one call; `socket_base` is the ws: or wss: URL under which this relay is met.

        StateError where the disk fails.
        """
        try:
            return self._route(request, socket_base, now)
        except Failure as failure:
            return failure.answer

    def redeem(self, path: str, now: float) -> Ticket:
        """Use up the ticket of a WebSocket's path. Failure when it does not open the door."""
        if not path.startswith(SOCKET_PATH):
            raise not_found()
        ticket = self._take_ticket(hashlib.sha256(path[len(SOCKET_PATH) :].encode()).digest())
        if ticket is None or ticket.expires_at <= now:
            raise Failure(
                404, "ticket", "this WebSocket URL is used up or expired", "ask for a new one"
            )
        if self.draining:
            raise draining()
        if not self._store.live(ticket.principal.token_id, now):
            raise unauthorized()
        if not self._rooms.may_open(ticket.principal):
            raise too_many(
                "this token has too many connections", "close some, or use another token"
            )
        return ticket

    def ticked(self, now: float) -> None:
        """Forget tickets that nobody used and buckets that are full."""
        for digest, ticket in list(self._tickets.items()):
            if ticket.expires_at > now:
                break  # tickets live equally long, so the oldest stand first
            self._take_ticket(digest)
        for nameplate, bucket in list(self._nameplates.items()):
            if bucket.full(now):
                del self._nameplates[nameplate]

    # Routing

    def _route(self, request: Request, socket_base: str, now: float) -> Answer:
        parts = request.path.split("?", 1)[0].strip("/").split("/")
        match (request.method, parts):
            case ("GET", ["v1", "health"]):
                return self._health(now)
            case ("POST", ["v1", "pairings", "claim"]):
                return self._claim_pairing(json_object(request), now)
        if parts[:1] not in (["v1"], ["cloud"]):
            raise not_found()
        caller = self._authenticate(request, now)
        match (request.method, parts):
            case ("POST", ["cloud", "environment", environment, "register"]):
                return self._register(caller, environment, json_object(request), socket_base, now)
            case ("POST", ["cloud", "environment", environment, "connect"]):
                return self._connect(caller, environment, json_object(request), socket_base, now)
            case ("POST", ["cloud", "environment", environment, "validate"]):
                return self._validate(caller, environment, request, now)
            case ("GET", ["v1", "environments"]):
                return self._environments(caller, now)
            case ("GET", ["v1", "environments", environment]):
                return self._find_environment(reachable(caller, environment))
            case ("GET", ["v1", "tokens"]):
                return self._tokens(owner(caller), now)
            case ("POST", ["v1", "tokens"]):
                return self._create_token(caller, json_object(request), now)
            case ("POST", ["v1", "enrolments"]):
                return self._create_enrolment(owner(caller), json_object(request), now)
            case ("POST", ["v1", "enrolments", "redeem"]):
                return self._redeem(caller, json_object(request), now)
            case ("DELETE", ["v1", "tokens", token_id]):
                return self._revoke_token(caller, token_id, now)
            case ("POST", ["v1", "pairings"]):
                return self._create_pairing(caller, json_object(request), now)
            case ("DELETE", ["v1", "pairings", pairing_id]):
                return self._end_pairing(caller, pairing_id, now)
        raise not_found()

    def _authenticate(self, request: Request, now: float) -> Principal:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorized()
        principal = self._store.authenticate(secret.strip(), now)
        if principal is None:
            raise unauthorized()
        return principal

    # Calls

    def _health(self, now: float) -> Answer:
        status = "draining" if self.draining else "ok"
        return Answer(200, {"status": status, "version": __version__, "now": int(now)})

    def _register(
        self, caller: Principal, environment: str, body: dict[str, Any], base: str, now: float
    ) -> Answer:
        key = served(caller, environment)
        self._admit(caller, now)
        profile = text(body, "security_profile")
        public_key = key_document(body, "executor_public_key", profile)
        known = self._store.registration(key)
        if profile == HYBRID:
            held = known.public_key if known is not None else None
            self._replaced.admit(key, held, public_key, self._rooms.online(key))
        if known is None:
            owned = len(self._store.environments(key.owner))
            if owned >= self._limits.environments_an_owner:
                raise too_many("this owner has too many environments", "use another owner")
        registration = self._store.register(key, profile, public_key, now)
        ticket = self._ticket(
            caller,
            key.environment_id,
            now,
            registration_id=registration.registration_id,
            official=profile == HYBRID,
        )
        return Answer(
            200,
            {
                "environment_id": key.environment_id,
                "url": base + SOCKET_PATH + ticket,
                "security_profile": profile,
                "executor_registration_id": registration.registration_id,
            },
            tuple(self._rooms.registration_replaced(key, registration.registration_id, now)),
        )

    def _connect(
        self, caller: Principal, environment: str, body: dict[str, Any], base: str, now: float
    ) -> Answer:
        key = reachable(caller, environment)
        self._admit(caller, now)
        registration = self._store.registration(key)
        if registration is None:
            raise not_found()
        public_key = key_document(body, "harness_public_key", registration.security_profile)
        ticket = self._ticket(caller, key.environment_id, now)
        return Answer(
            200,
            {
                "environment_id": key.environment_id,
                "url": base + SOCKET_PATH + ticket,
                "security_profile": registration.security_profile,
                "executor_registration_id": registration.registration_id,
                "executor_public_key": json.loads(registration.public_key),
                "harness_key_authorization": self._authorizations.issue(
                    key, registration.registration_id, caller.token_id, public_key, now
                ),
            },
        )

    def _validate(
        self, caller: Principal, environment: str, request: Request, now: float
    ) -> Answer:
        key = served(caller, environment)
        registration = self._store.registration(key)
        if registration is None:
            raise not_found()
        body = json_object(request)
        public_key = canonical(object_field(body, "harness_public_key"))
        authorization = text(body, "harness_key_authorization", MAX_CHARS)
        stream = request.headers.get(STREAM_HEADER, "").encode()
        token_id = None
        if text(body, "executor_registration_id") == registration.registration_id:
            token_id = self._authorizations.token_of(
                authorization, key, registration.registration_id, public_key, now
            )
        valid = (
            token_id is not None
            and self._store.live(token_id, now)
            and (not stream or self._rooms.claimer(key, stream) == token_id)
        )
        if valid:
            self._authorizations.spend(authorization, now)
        return Answer(200, {"valid": valid})

    def _environments(self, caller: Principal, now: float) -> Answer:
        self._admit(caller, now)
        listed = [
            self._environment(RoomKey(caller.owner, name), registered_at, profile)
            for name, registered_at, profile in self._store.environments(caller.owner)
            if caller.kind == OWNER or name == caller.environment_id
        ]
        return Answer(200, {"environments": listed})

    def _find_environment(self, key: RoomKey) -> Answer:
        registration = self._store.registration(key)
        if registration is None:
            raise not_found()
        return Answer(
            200,
            self._environment(key, registration.registered_at, registration.security_profile),
        )

    def _environment(self, key: RoomKey, registered_at: int, profile: str) -> dict[str, Any]:
        return {
            "environment_id": key.environment_id,
            "security_profile": profile,
            "online": self._rooms.online(key),
            "registered_at": registered_at,
            "streams": self._rooms.stream_count(key),
        }

    def _tokens(self, caller: Principal, now: float) -> Answer:
        self._admit(caller, now)
        listed = [token_record(t, now) for t in self._store.tokens(caller.owner)]
        return Answer(200, {"tokens": listed})

    def _create_token(self, caller: Principal, body: dict[str, Any], now: float) -> Answer:
        self._admit(caller, now)
        name = device_name(text(body, "name"))
        key = served(caller, text(body, "environment_id"))
        lifetime = integer(body, "expires_in_s", MIN_LIFETIME_S, self._limits.token_max_s)
        if self._store.registration(key) is None:
            raise not_found()
        used = self._store.live_device_tokens(caller.owner, now)
        if used >= self._limits.device_tokens_an_owner:
            raise too_many("this owner has too many device tokens", "revoke some of them")
        secret, token = self._store.create_token(
            name=name,
            expires_in_s=lifetime,
            owner=key.owner,
            environment_id=key.environment_id,
            now=now,
        )
        return Answer(
            200, {"token": secret.reveal(), "id": token.id, "expires_at": token.expires_at}
        )

    def _revoke_token(self, caller: Principal, token_id: str, now: float) -> Answer:
        # An owner's tokens are revoked where they were made, on the relay's machine: who has got
        # hold of one host must not cut the others.
        token = self._store.token(token_id)
        if token is None or not (token_id == caller.token_id or may_end(caller, token)):
            raise not_found()
        self._store.revoke(token_id, now)
        return Answer(204, None, tuple(self._rooms.token_ended(token_id, TOKEN_REVOKED, now)))

    def _create_enrolment(self, caller: Principal, body: dict[str, Any], now: float) -> Answer:
        self._admit(caller, now)
        return enrolments.answer_create(self._store, self._limits, caller, body, now)

    def _redeem(self, caller: Principal, body: dict[str, Any], now: float) -> Answer:
        if caller.kind != ENROLMENT:
            raise Failure(
                403, "forbidden", "this is no single-use token", "there is no need for one"
            )
        self._admit(caller, now)
        answer, ended = enrolments.answer_redeem(self._store, self._limits, caller, body, now)
        effects = [self._rooms.token_ended(token, TOKEN_REVOKED, now) for token in ended]
        return answer._replace(effects=tuple(effect for some in effects for effect in some))

    def _create_pairing(self, caller: Principal, body: dict[str, Any], now: float) -> Answer:
        self._admit(caller, now)
        key = served(caller, text(body, "environment_id"))
        digest = text(body, "ticket_sha256")
        if not _SHA256_HEX.fullmatch(digest):
            raise bad_request("ticket_sha256 is not 64 hexadecimal digits")
        lifetime = integer(body, "expires_in_s", MIN_LIFETIME_S, self._limits.pairing_max_s)
        if self._store.registration(key) is None:
            raise not_found()
        if (
            self._store.live_pairings(now, caller.owner) >= self._limits.pairings_an_owner
            or self._store.live_pairings(now) >= self._limits.pairings
        ):
            raise too_many("too many pairings are on offer", "wait until some have expired", 60)
        pairing = self._store.add_pairing(key, bytes.fromhex(digest), lifetime, now)
        if pairing is None:
            raise bad_request("this ticket was used before")
        return Answer(
            200,
            {
                "id": pairing.id,
                "nameplate": pairing.nameplate,
                "expires_at": pairing.expires_at,
            },
        )

    def _end_pairing(self, caller: Principal, pairing_id: str, now: float) -> Answer:
        pairing = self._store.pairing(pairing_id)
        if pairing is None or pairing.owner != caller.owner:
            raise not_found()
        served(caller, pairing.environment_id)
        self._store.end_pairing(pairing_id, now)
        return Answer(204, None)

    def _claim_pairing(self, body: dict[str, Any], now: float) -> Answer:
        nameplate = integer(body, "nameplate", 1, 1_000_000)
        per_minute = self._limits.claims_a_minute_a_nameplate
        bucket = self._nameplates.get(nameplate)
        if bucket is None:
            bucket = Bucket(per_minute / 60, per_minute, now)
        # The overall bound first: it also bounds how many buckets there are.
        if not self._claims.take(now) or not bucket.take(now):
            raise too_many("too many pairing codes were tried", "wait a minute", 60)
        self._nameplates[nameplate] = bucket
        if self.draining:
            raise draining()
        pairing = self._store.pairing_at(nameplate, now)
        if pairing is None:
            raise not_found()
        return Answer(
            200,
            {
                "environment_id": pairing.environment_id,
                "ticket": self._store.claim_ticket(pairing.id),
            },
        )

    # Inside

    def _admit(self, caller: Principal, now: float) -> None:
        if self.draining:
            raise draining()
        if not self._rooms.spend_handshake(caller.token_id, now):
            raise too_many("this token calls too often", "wait a second", 1)

    def _ticket(
        self,
        caller: Principal,
        environment: str,
        now: float,
        *,
        registration_id: str = "",
        official: bool = False,
    ) -> str:
        count = self._ticket_count.get(caller.token_id, 0)
        if count >= self._limits.tickets_a_token:
            raise too_many("this token has too many unused WebSocket URLs", "wait a minute", 60)
        if not self._rooms.may_open(caller):
            raise too_many(
                "this token has too many connections", "close some, or use another token", 5
            )
        if caller.kind == PAIRING:
            # The offer ends when it is used; the connection that used it has yet to finish.
            grace = self._limits.pairing_grace_s
            caller = caller._replace(expires_at=caller.expires_at + grace)
        text = base64.urlsafe_b64encode(self._random(32)).rstrip(b"=").decode()
        digest = hashlib.sha256(text.encode()).digest()
        self._tickets[digest] = Ticket(
            caller, environment, registration_id, now + self._limits.ticket_s, official
        )
        self._ticket_count[caller.token_id] = count + 1
        return text

    def _take_ticket(self, digest: bytes) -> Ticket | None:
        ticket = self._tickets.pop(digest, None)
        if ticket is not None:
            token_id = ticket.principal.token_id
            left = self._ticket_count[token_id] - 1
            if left:
                self._ticket_count[token_id] = left
            else:
                del self._ticket_count[token_id]
        return ticket


def token_record(token: Token, now: float) -> dict[str, Any]:
    """A token as `token list` and the API show it."""
    return {
        "id": token.id,
        "name": token.name,
        "owner": token.owner,
        "kind": token.kind,
        "environment_id": token.environment_id,
        "status": token.status(now),
        "created_at": token.created_at,
        "expires_at": token.expires_at,
    }
