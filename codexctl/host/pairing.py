"""Pairing on a running host: make offers, answer handshakes by them, keep the device.

The rules of an offer are in `offers.py`; this is what they cause: calls to the relay, rows in
host.db, audit records, events for whoever shows the QR code.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from collections.abc import Callable
from typing import Any

from codexctl.client.registry import Relay, call
from codexctl.errors import CodexctlError, ConnectionFailed, ProtocolError, UsageError
from codexctl.host.audit import AuditLog
from codexctl.host.offers import MAX_OFFERS, Offer, Offers, WrongGuess
from codexctl.host.store import Device, add_device
from codexctl.noise.code import CodeNoise
from codexctl.noise.handshake import HandshakeFailed, Responder
from codexctl.noise.keys import PrivateKey, key_document, key_id
from codexctl.noise.offer import OFFER_ID_BYTES, TOKEN_BYTES, derive
from codexctl.noise.suites import Suite
from codexctl.session.channel import HostChannel
from codexctl.wire.pairing_code import WORDS_IN_CODE, PairingCode, new_words
from codexctl.wire.pairing_url import PairingOffer, format_url

OFFER_TTL_S = 300
MAX_OFFER_TTL_S = 600  # the relay's own bound
DEVICE_TOKEN_TTL_S = 90 * 86400  # renewed by the device's sessions long before
SCOPES = ("view", "exec", "approve")
_STEP_DEVICE, _STEP_HOST, _STEP_CONFIRM, _STEP_DOCUMENT = 1, 2, 3, 4
_NAME = re.compile(r"[^A-Za-z0-9._@-]+")


def clean_name(text: object) -> str:
    """A device's name as it is kept: letters, digits, `.`, `_`, `@`, `-`; at most 64."""
    return _NAME.sub("-", str(text)).strip("-.")[:64] or "device"


class PairingDesk:
    """All pairing of one host. Times are seconds of the event loop's clock."""

    def __init__(
        self,
        relay: Relay,
        shown_relay: str,
        environment_id: str,
        name: str,
        suite: Suite,
        key: PrivateKey,
        db: sqlite3.Connection,
        audit: AuditLog,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        self.offers = Offers()
        self._relay = relay
        self._shown_relay = shown_relay
        self._environment_id = environment_id
        self._name = name
        self._suite = suite
        self._key = key
        self._db = db
        self._audit = audit
        self._tell = tell
        # Offers whose device is at it, and the devices that used one: for who waits at `live`.
        self._pending: set[str] = set()
        self._paired: dict[str, str] = {}

    async def create(self, params: dict[str, Any]) -> dict[str, Any]:
        """A new offer: `url`, `code`, `expires_in_s`. Params: `scopes`, `ttl_s`."""
        scopes = params.get("scopes") or list(SCOPES)
        ttl = params.get("ttl_s") or OFFER_TTL_S
        if not isinstance(scopes, list) or not set(scopes) <= set(SCOPES):
            raise UsageError("a scope is unknown", hint=f"scopes are {', '.join(SCOPES)}")
        if not isinstance(ttl, int) or not 0 < ttl <= MAX_OFFER_TTL_S:
            raise UsageError(f"an offer lives 1 to {MAX_OFFER_TTL_S} seconds")
        token = os.urandom(TOKEN_BYTES)
        keys = derive(token)
        answer = await asyncio.to_thread(
            call,
            self._relay,
            "POST",
            "/v1/pairings",
            {
                "environment_id": self._environment_id,
                "ticket_sha256": keys.ticket_sha256,
                "expires_in_s": ttl,
            },
        )
        pairing_id, nameplate = answer.get("id"), answer.get("nameplate")
        if not isinstance(pairing_id, str) or not isinstance(nameplate, int):
            raise ProtocolError("the relay's answer to a pairing offer lacks its id or nameplate")
        code = PairingCode(nameplate, new_words(os.urandom(WORDS_IN_CODE)))
        now = asyncio.get_running_loop().time()
        self.offers.add(
            Offer(pairing_id, keys, code.password, nameplate, frozenset(scopes), now + ttl)
        )
        url = format_url(
            PairingOffer(
                relay=self._shown_relay,
                environment_id=self._environment_id,
                host_key=self._key.public_bytes,
                suite=self._suite.letter,
                token=token,
                name=self._name,
                pin=self._relay.pin,
            )
        )
        return {"id": pairing_id, "url": url, "code": str(code), "expires_in_s": ttl}

    async def withdraw(self, params: dict[str, Any]) -> dict[str, Any]:
        """End an offer that was not used. Params: `id`."""
        now = asyncio.get_running_loop().time()
        for offer in self.offers.live(now):
            if offer.pairing_id == params.get("id"):
                self.offers.end(offer)
                await self.forget(offer)
                return {"withdrawn": True}
        return {"withdrawn": False}

    async def live(self, params: dict[str, Any]) -> dict[str, Any]:
        """Whether an offer is still open, and the device that used it. Params: `id`."""
        now = asyncio.get_running_loop().time()
        offer_id = params.get("id")
        pending = offer_id in self._pending
        live = any(offer.pairing_id == offer_id for offer in self.offers.live(now))
        return {"live": live or pending, "device": self._paired.get(str(offer_id))}

    async def forget(self, offer: Offer) -> None:
        """Tell the relay that an offer has ended; it would expire there by itself as well."""
        try:
            await asyncio.to_thread(call, self._relay, "DELETE", f"/v1/pairings/{offer.pairing_id}")
        except ConnectionFailed:
            pass

    # --- handshakes ---

    def answer_pairing(
        self, payload: bytes, bound: bytes, now: float
    ) -> tuple[Offer, bytes, Responder] | None:
        """Kind 2: the offer, the device's key and the responder ready for message 2; or None.

        The offer is used up when this returns it, and burnt when somebody guessed.
        """
        found = self.offers.find(payload[:OFFER_ID_BYTES], now)
        if found is None:
            return None
        offer, psk = found
        responder = Responder(self._suite, self._key, bound, pattern="IKpsk1", psk=psk)
        try:
            first = responder.read_first(payload[OFFER_ID_BYTES:])
        except HandshakeFailed as error:
            if error.sender_knows_host:
                self._burnt(offer, "wrong token")
            return None
        self.offers.end(offer)
        self._pending.add(offer.pairing_id)
        return offer, first.remote_static, responder

    def answer_code(self, stream_id: str, payload: bytes, now: float) -> bytes | None:
        """Kind 3: the answer's step and content, or None for noise and for a wrong guess."""
        try:
            if payload[:1] == bytes((_STEP_DEVICE,)) and len(payload) > 5:
                nameplate = int.from_bytes(payload[1:5], "big")
                answer = self.offers.code_started(stream_id, nameplate, payload[5:], now)
                return bytes((_STEP_HOST,)) + answer
            if payload[:1] == bytes((_STEP_CONFIRM,)):
                document = json.dumps(
                    {
                        "environment_id": self._environment_id,
                        "name": self._name,
                        "key": key_document(self._suite, self._key.public_bytes),
                        "relay_pin": (self._relay.pin or b"").hex(),
                    }
                ).encode()
                answer = self.offers.code_confirmed(stream_id, payload[1:], document, now)
                return bytes((_STEP_DOCUMENT,)) + answer
        except WrongGuess as error:
            self._burnt(error.offer, "wrong code")
        except CodeNoise:
            pass
        return None

    def _burnt(self, offer: Offer, reason: str) -> None:
        self.offers.end(offer)
        self._audit.append("pairing", who="?", what=reason, outcome="burnt")
        self._tell({"event": "pairing-burnt", "id": offer.pairing_id, "reason": reason})

    # --- the pair channel ---

    async def serve(self, channel: HostChannel, public_key: bytes, offer: Offer) -> Device:
        """The one channel of a pairing session; the device is kept when it has its answer."""
        device_id = key_id(public_key)[:16]
        name = clean_name(channel.params.get("name"))
        try:
            token = await self.mint(name)
        except CodexctlError as error:
            self._audit.append("pairing", who=name, what=device_id, outcome="failed")
            raise ConnectionFailed(
                f"the host could not get a relay token for this device: {error}",
                hint="try again with a new offer: codexctl pair --show",
            ) from error
        device = add_device(
            self._db,
            id=device_id,
            name=name,
            public_key=public_key,
            scopes=offer.scopes,
            relay_token_id=token["id"],
        )
        self._audit.append("pairing", who=device.name, what=device_id, outcome="paired")
        await channel.accept(
            {
                "device_id": device.id,
                "name": device.name,
                "scopes": sorted(device.scopes),
                "relay_token": token["token"],
                "relay_token_id": token["id"],
                "relay_token_expires_at": token["expires_at"],
            }
        )
        if len(self._paired) >= MAX_OFFERS:
            self._paired.pop(next(iter(self._paired)))
        self._paired[offer.pairing_id] = device.name
        self._tell({"event": "paired", "id": offer.pairing_id, "device": device.name})
        await self.forget(offer)
        return device

    def ended(self, offer: Offer) -> None:
        """The session that used an offer is over."""
        self._pending.discard(offer.pairing_id)

    async def mint(self, name: str) -> dict[str, Any]:
        """A relay token for one device: `token`, `id`, `expires_at`."""
        return await asyncio.to_thread(
            call,
            self._relay,
            "POST",
            "/v1/tokens",
            {
                "name": f"{name}-{os.urandom(3).hex()}",
                "environment_id": self._environment_id,
                "expires_in_s": DEVICE_TOKEN_TTL_S,
            },
        )

    async def revoke_token(self, token_id: str) -> bool:
        """End a device's relay token; False where the relay was not reached."""
        try:
            await asyncio.to_thread(call, self._relay, "DELETE", f"/v1/tokens/{token_id}")
        except CodexctlError:
            return False
        return True
