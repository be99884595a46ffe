"""Harness authorizations: what `connect` hands out and an official executor has `validate`d.

Each is for one key, one registration and one token, works once, and not for long. They are signed
with a key of this process, so that none from before a restart is taken: those that were used then
are forgotten with it.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable

from codexctl.relay.effects import RoomKey

_NONCE_BYTES = 12
MAX_CHARS = 1024


class Authorizations:
    """Issues and spends authorizations that live `lifetime_s`; `random` gives so many bytes."""

    def __init__(self, random: Callable[[int], bytes], lifetime_s: int) -> None:
        self._random = random
        self._key = random(32)
        self._lifetime_s = lifetime_s
        self._spent: dict[str, int] = {}  # in the order in which they were

    def issue(
        self, room: RoomKey, registration_id: str, token_id: str, public_key: str, now: float
    ) -> str:
        head = f"{token_id}.{int(now) + self._lifetime_s}.{self._random(_NONCE_BYTES).hex()}"
        return f"{head}.{self._sign(head, room, registration_id, public_key)}"

    def token_of(
        self, text: str, room: RoomKey, registration_id: str, public_key: str, now: float
    ) -> str | None:
        """The id of the token that a genuine, living, unspent authorization was issued to."""
        head, _, mac = text.rpartition(".")
        expected = self._sign(head, room, registration_id, public_key)
        if not hmac.compare_digest(mac.encode(), expected.encode()):
            return None
        token_id, expires, _ = head.split(".")
        return token_id if int(expires) > now and text not in self._spent else None

    def spend(self, text: str, now: float) -> None:
        """From now on `token_of` refuses it."""
        for spent, forget_at in list(self._spent.items()):
            if forget_at > now:
                break
            del self._spent[spent]
        self._spent[text] = int(now) + self._lifetime_s

    def _sign(self, head: str, room: RoomKey, registration_id: str, public_key: str) -> str:
        fields = json.dumps([head, *room, registration_id, public_key]).encode()
        mac = hmac.digest(self._key, fields, "sha256")
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
