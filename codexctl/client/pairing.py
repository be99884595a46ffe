"""Pairing as a device: by URL, or by typed code and the relay's address (PROTOCOL.md section 5)."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from codexctl.client.ask import request
from codexctl.client.connection import Connection
from codexctl.client.handshake import (
    exchange,
    handshake,
    new_stream_id,
    open_websocket,
)
from codexctl.client.registry import HostOffline, Relay, TokenRefused, call, connect
from codexctl.client.sockets import UntrustedCertificate, shown_key
from codexctl.client.store import HostRecord, HostStore, name_taken
from codexctl.client.websocket import WebSocket
from codexctl.errors import (
    AuthenticationFailed,
    ProtocolError,
    UsageError,
)
from codexctl.noise.code import CodeDevice, CodeNoise, WrongCode
from codexctl.noise.keys import PrivateKey, parse_key_document
from codexctl.noise.offer import OfferKeys, derive
from codexctl.noise.suites import BY_LETTER, DEFAULT, HYBRID, Suite
from codexctl.secret import Secret
from codexctl.session.records import SessionOver
from codexctl.wire.handshake import KIND_CODE, KIND_PAIRING
from codexctl.wire.pairing_code import PairingCode
from codexctl.wire.pairing_url import PairingOffer

_NEW_OFFER = "get a new one on the host: codexctl pair --show"
_STEP_DEVICE, _STEP_HOST, _STEP_CONFIRM, _STEP_DOCUMENT = 1, 2, 3, 4


class _Target(NamedTuple):
    """The host to pair with, and how the offer's handshake is keyed."""

    relay: Relay
    environment_id: str
    host_key: bytes
    suite: Suite
    host_name: str
    keys: OfferKeys


def pair_by_url(
    store: HostStore, key: PrivateKey, offer: PairingOffer, *, name: str | None, device_name: str
) -> HostRecord:
    """Pair and keep the host under `name` (its own name without one)."""
    keys = derive(offer.token)
    target = _Target(
        Relay(offer.relay, offer.pin, keys.ticket),
        offer.environment_id,
        offer.host_key,
        BY_LETTER[offer.suite],
        offer.name,
        keys,
    )
    return _pair(store, key, target, name=name, device_name=device_name)


def pair_by_code(
    store: HostStore,
    key: PrivateKey,
    code: PairingCode,
    relay_url: str,
    *,
    pin: bytes | None,
    name: str | None,
    device_name: str,
) -> HostRecord:
    """Find the host by the code's nameplate, prove knowledge of its words, then pair as by URL.

    Where nobody vouches for the relay's certificate and no `pin` is known, the key that it shows is
    taken on the condition that the host, which the words prove, names the same one.
    """
    proven = True
    try:
        environment_id, ticket = _claim(relay_url, pin, code)
    except UntrustedCertificate:
        pin, proven = shown_key(relay_url), False
        environment_id, ticket = _claim(relay_url, pin, code)
    relay = Relay(relay_url, pin, ticket)
    target, host_pin = _prove(relay, environment_id, key, code)
    if not proven and host_pin != pin:
        raise AuthenticationFailed(
            "the relay shows this device another key than it shows the host, or the host "
            "cannot tell: somebody may stand in between",
            hint="pair by the URL, which carries the key's hash: codexctl pair --show",
        )
    return _pair(store, key, target, name=name, device_name=device_name)


def _claim(relay_url: str, pin: bytes | None, code: PairingCode) -> tuple[str, Secret]:
    """The host that offers this nameplate, and the ticket to reach it."""
    try:
        claim = call(
            Relay(relay_url, pin, None),
            "POST",
            "/v1/pairings/claim",
            {"nameplate": code.nameplate},
        )
    except HostOffline as error:
        raise AuthenticationFailed(
            "the relay knows no such code: it was used, has expired, or its number is mistyped",
            hint=_NEW_OFFER,
        ) from error
    environment_id, ticket = claim.get("environment_id"), claim.get("ticket")
    if not isinstance(environment_id, str) or not isinstance(ticket, str):
        raise ProtocolError("the relay's answer to a code lacks the host or a ticket")
    return environment_id, Secret(ticket)


def _prove(
    relay: Relay, environment_id: str, key: PrivateKey, code: PairingCode
) -> tuple[_Target, bytes | None]:
    """The host that knows the words, and the hash of the relay's key that it goes by, if any."""
    answer = connect(relay, environment_id, DEFAULT, key.public_bytes)
    websocket = open_websocket(relay, answer)
    stream_id = new_stream_id()
    device = CodeDevice(code.password, stream_id)
    nameplate = code.nameplate.to_bytes(4, "big")
    try:
        reply = _step(websocket, stream_id, _STEP_DEVICE, nameplate + device.start(), _STEP_HOST)
        confirmation = device.host_message(reply)
        try:
            reply = _step(websocket, stream_id, _STEP_CONFIRM, confirmation, _STEP_DOCUMENT)
        except SessionOver as error:
            raise AuthenticationFailed(
                "the code is wrong, and used up by this try", hint=_NEW_OFFER
            ) from error
        document, secret = device.document(reply)
    except (CodeNoise, WrongCode) as error:
        raise AuthenticationFailed(str(error), hint=_NEW_OFFER) from error
    finally:
        websocket.close()
    try:
        value = json.loads(document)
        suite, host_key = parse_key_document(value["key"])
        host_name = str(value["name"])
        host_pin = bytes.fromhex(value.get("relay_pin") or "") or None
        genuine = value["environment_id"] == environment_id
    except (ValueError, KeyError, TypeError):
        genuine = False
    if not genuine:
        raise ProtocolError("the host's answer to the code is not what it should be")
    return _Target(relay, environment_id, host_key, suite, host_name, derive(secret)), host_pin


def _step(websocket: WebSocket, stream_id: str, step: int, content: bytes, answer: int) -> bytes:
    reply = exchange(websocket, stream_id, KIND_CODE, bytes((step,)) + content)
    if reply[:1] != bytes((answer,)):
        raise ProtocolError("the host answered out of order", hint=_NEW_OFFER)
    return reply[1:]


def _pair(
    store: HostStore, key: PrivateKey, target: _Target, *, name: str | None, device_name: str
) -> HostRecord:
    chosen = name or target.host_name
    # Before the offer is used up: a name that is taken should cost nothing.
    taken = store.named(chosen)
    if taken is not None and taken.environment_id != target.environment_id:
        raise name_taken(chosen)
    record = HostRecord(
        name=chosen,
        environment_id=target.environment_id,
        own_name=target.host_name,
        host_key=target.host_key,
        suite=target.suite.name,
        relay=target.relay.url,
        pin=target.relay.pin,
        token=Secret(""),
        token_expires_at=0,
        device_id="",
        scopes=(),
        paired_at=int(time.time()),
    )
    try:
        websocket, session, hello = handshake(
            target.relay,
            record,
            key,
            kind=KIND_PAIRING,
            psk=target.keys.psk,
            offer_id=target.keys.offer_id,
        )
    except TokenRefused as error:
        raise AuthenticationFailed(
            "the relay does not accept this pairing offer: it was used, has expired or was altered",
            hint=_NEW_OFFER,
        ) from error
    connection = Connection(record, key, websocket, session, hello, lambda text: None)
    with connection:
        answer = request(connection, "pair", {"name": device_name})
    paired = _complete(record, answer)
    if "key_sha256" in hello:
        # From now on the whole key document is pinned, and a session without it refused.
        paired = paired._replace(suite=HYBRID, key_sha256=bytes.fromhex(hello["key_sha256"]))
    store.add(paired)
    return paired


def _complete(record: HostRecord, answer: dict[str, Any]) -> HostRecord:
    token, expires = answer.get("relay_token"), answer.get("relay_token_expires_at")
    scopes = answer.get("scopes")
    if not isinstance(token, str) or not isinstance(expires, int) or not isinstance(scopes, list):
        raise ProtocolError("the host's answer to pairing is incomplete")
    return record._replace(
        token=Secret(token),
        token_expires_at=expires,
        device_id=str(answer.get("device_id")),
        scopes=tuple(str(scope) for scope in scopes),
    )


def check_pairable(text: str) -> None:
    """UsageError for a host's name that could not be typed or would be taken for something else."""
    if not text or len(text) > 64 or not all(c.isalnum() or c in "._-" for c in text):
        raise UsageError(
            f"not a name for a host: {text[:80]!r}",
            hint="letters, digits, dots, dashes and underscores, at most 64",
        )
