"""Pairing offers of a running host: single use, short-lived, burnt by a guess. No I/O, no clock.

The rules (PROTOCOL.md section 5):
- An offer ends when it is used, when it expires, when somebody who knows enough to guess guesses
  wrong, or when it is withdrawn. What is mere noise ends nothing.
- A URL's offer is named by its offer id; a code's by its nameplate, and after a right guess by the
  offer id that the code's key leads to.
- Offers live in memory: a host that restarts has none, and their tokens were never on a disk.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from codexctl.errors import Refused
from codexctl.noise.code import CodeHost, CodeNoise, WrongCode
from codexctl.noise.offer import OfferKeys, derive

MAX_OFFERS = 16
MAX_EXCHANGES = 8  # codes being tried at one time
EXCHANGE_S = 60.0


class Offer(NamedTuple):
    """One offer. `words` is the code's password; times are seconds of the caller's clock."""

    pairing_id: str
    keys: OfferKeys
    words: str
    nameplate: int
    scopes: frozenset[str]
    expires_at: float

    def __repr__(self) -> str:
        return f"Offer(pairing_id={self.pairing_id!r}, nameplate={self.nameplate})"


class _Exchange(NamedTuple):
    offer: Offer
    host: CodeHost
    started: float


class Offers:
    """All live offers of a host."""

    def __init__(self) -> None:
        self._offers: dict[str, Offer] = {}
        # After a right code: the offer id of the code's key, and its psk.
        self._by_code: dict[bytes, tuple[str, OfferKeys]] = {}
        self._exchanges: dict[str, _Exchange] = {}

    def add(self, offer: Offer) -> None:
        """Refused where too many are open."""
        if len(self._offers) >= MAX_OFFERS:
            raise Refused(
                f"{MAX_OFFERS} pairing offers are open already",
                hint="wait until one expires, or use one of them",
            )
        self._offers[offer.pairing_id] = offer

    def live(self, now: float) -> list[Offer]:
        return [offer for offer in self._offers.values() if offer.expires_at > now]

    def expire(self, now: float) -> list[Offer]:
        """Remove and return what has run out."""
        over = [offer for offer in self._offers.values() if offer.expires_at <= now]
        for offer in over:
            self.end(offer)
        for stream_id, exchange in list(self._exchanges.items()):
            if now - exchange.started > EXCHANGE_S:
                del self._exchanges[stream_id]
        return over

    def end(self, offer: Offer) -> None:
        """Used, burnt or withdrawn: nothing pairs by it any more."""
        self._offers.pop(offer.pairing_id, None)
        for offer_id, (pairing_id, _) in list(self._by_code.items()):
            if pairing_id == offer.pairing_id:
                del self._by_code[offer_id]
        for stream_id, exchange in list(self._exchanges.items()):
            if exchange.offer.pairing_id == offer.pairing_id:
                del self._exchanges[stream_id]

    def find(self, offer_id: bytes, now: float) -> tuple[Offer, bytes] | None:
        """The live offer of this id and the psk that a handshake for it must have."""
        if offer_id in self._by_code:
            pairing_id, keys = self._by_code[offer_id]
            offer = self._offers.get(pairing_id)
            return None if offer is None or offer.expires_at <= now else (offer, keys.psk)
        for offer in self._offers.values():
            if hmac.compare_digest(offer.keys.offer_id, offer_id) and offer.expires_at > now:
                return offer, offer.keys.psk
        return None

    # --- the typed code ---

    def code_started(self, stream_id: str, nameplate: int, message: bytes, now: float) -> bytes:
        """Step 1 in, step 2 out. CodeNoise where there is no such offer or no such message."""
        offer = next((o for o in self.live(now) if o.nameplate == nameplate), None)
        if offer is None or stream_id in self._exchanges:
            raise CodeNoise("there is no such code")
        if len(self._exchanges) >= MAX_EXCHANGES:
            raise CodeNoise("too many codes are being tried at one time")
        host = CodeHost(offer.words, stream_id)
        answer = host.device_message(message)
        self._exchanges[stream_id] = _Exchange(offer, host, now)
        return answer

    def code_confirmed(
        self, stream_id: str, confirmation: bytes, document: bytes, now: float
    ) -> bytes:
        """Step 3 in, step 4 out. WrongCode: the offer is burnt already when this is raised.

        `WrongGuess.offer` names it.
        """
        exchange = self._exchanges.pop(stream_id, None)
        if exchange is None or exchange.offer.expires_at <= now:
            raise CodeNoise("there is no such code")
        try:
            answer, secret = exchange.host.confirm(confirmation, document)
        except WrongCode as error:
            self.end(exchange.offer)
            raise WrongGuess(exchange.offer, str(error)) from None
        keys = derive(secret)
        self._by_code[keys.offer_id] = (exchange.offer.pairing_id, keys)
        return answer


class WrongGuess(WrongCode):
    """A wrong code was tried for `offer`, which is burnt."""

    def __init__(self, offer: Offer, message: str) -> None:
        super().__init__(message)
        self.offer = offer
