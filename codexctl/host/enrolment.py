"""A host's first start with a single-use token: it gets a token of its own for it, once.

The host thinks of its token and writes it down before the relay hears the hash of it, so that a
lost answer, a crash or a full disk at any point leaves either the single-use token unused or a
token that is kept. `host.token` in the home holds it, beside the hash of what it was got for.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from codexctl.client.registry import HostOffline, Relay, TokenRefused, call
from codexctl.errors import StateError
from codexctl.noise.keys import key_id
from codexctl.paths import Home
from codexctl.secret import Secret
from codexctl.state.files import read_private, replace_file
from codexctl.state.identity import load_identity

SINGLE_USE_PREFIX = "cxe_"
TOKEN_PREFIX = "cxr_"  # noqa: S105 - what secret scanners recognise, not a secret
FILE = "host.token"


def with_own_token(home: Home, relay: Relay) -> Relay:
    """The relay with this host's own token where it was given a single-use one; else as it is.

    TokenRefused where the single-use token was used by somebody else, or has expired.
    """
    given = relay.token.reveal() if relay.token is not None else ""
    if not given.startswith(SINGLE_USE_PREFIX):
        return relay
    path, mark = home.ensure().join(FILE), _sha256(given)
    kept = _kept(path)
    if kept is None or kept["for"] != mark:
        kept = {"for": mark, "token": TOKEN_PREFIX + secrets.token_urlsafe(32), "exchanged": False}
        replace_file(path, json.dumps(kept).encode())
    own = relay._replace(token=Secret(kept["token"]))
    if not kept["exchanged"]:
        environment = key_id(load_identity(home).public_bytes)
        body = {"environment_id": environment, "token_sha256": _sha256(kept["token"])}
        try:
            call(relay, "POST", "/v1/enrolments/redeem", body)
        except TokenRefused:
            # It may have been our own use of it, whose answer was lost.
            if not _accepted(own, environment):
                raise
        replace_file(path, json.dumps({**kept, "exchanged": True}).encode())
    return own


def _accepted(relay: Relay, environment: str) -> bool:
    try:
        call(relay, "GET", f"/v1/environments/{environment}")
    except TokenRefused:
        return False
    except HostOffline:
        pass  # the token is good, and nothing was registered with it yet
    return True


def _kept(path: str) -> dict[str, Any] | None:
    try:
        value = json.loads(read_private(path, what="the host's token"))
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict) or set(value) != {"for", "token", "exchanged"}:
        raise StateError(
            f"{path} is damaged", hint="move it away, and set this host up with a new token"
        )
    return value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
