"""A registry call's parts: request, answer, failures, and the checks of what callers send.

Everything a body may hold is checked here by name, type and size before anybody uses it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from codexctl.relay.effects import Effect

SUITES = {
    "noise_ik_v1": ("Noise_IK_25519_ChaChaPoly_BLAKE2s", "Noise_IK_25519_AESGCM_SHA256"),
    "noise_hybrid_ik_v1": ("Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256",),
}
HYBRID = "noise_hybrid_ik_v1"
X25519_KEY_BYTES = 32
MLKEM768_KEY_BYTES = 1184

_ENVIRONMENT = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)


class Request(NamedTuple):
    """One HTTP request. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """A status, a JSON object (None: no content) and what the relay has to do as well."""

    status: int
    body: dict[str, Any] | None
    effects: tuple[Effect, ...] = ()
    retry_after_s: int = 0


class Failure(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, hint: str = "", retry: int = 0):
        super().__init__(message)
        self.answer = Answer(
            status, {"error": code, "message": message, "hint": hint}, retry_after_s=retry
        )


def not_found() -> Failure:
    return Failure(404, "not-found", "there is no such thing here", "check the id and the token")


def too_many(what: str, hint: str, retry: int = 0) -> Failure:
    return Failure(429, "limit", what, hint, retry)


def unauthorized() -> Failure:
    return Failure(
        401,
        "unauthorized",
        "the bearer token is missing, unknown, revoked or expired",
        "make a new one on the relay: codexctl relay token create --name NAME",
    )


def draining() -> Failure:
    return Failure(503, "draining", "the relay is restarting", "try again in a moment", 1)


def bad_request(message: str) -> Failure:
    return Failure(400, "bad-request", message)


def is_environment_id(text: str) -> bool:
    return _ENVIRONMENT.fullmatch(text) is not None


def checked_environment(text: str) -> str:
    if not is_environment_id(text):
        raise bad_request("an environment id is 1 to 256 of A-Z a-z 0-9 - _")
    return text


def json_object(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(request.body)
    except (ValueError, RecursionError):
        raise bad_request("the body is not JSON") from None
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object")
    return value


def text(body: dict[str, Any], name: str, limit: int = 256) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or len(value) > limit:
        raise bad_request(f"{name} is not a text of 1 to {limit} characters")
    return value


def device_name(text: str) -> str:
    # A device's own words: what cannot be a name here is made one rather than refused.
    name = "".join(c if c.isprintable() else " " for c in text).strip()[:100].strip()
    if not name:
        raise bad_request("name has nothing that can be shown")
    return name


def integer(body: dict[str, Any], name: str, least: int, most: int) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise bad_request(f"{name} is not a whole number from {least} to {most}")
    return value


def object_field(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if not isinstance(value, dict):
        raise bad_request(f"{name} is not an object")
    return value


def canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def key_document(body: dict[str, Any], name: str, profile: str) -> str:
    """A key document whose suite belongs to `profile`, in one canonical form."""
    document = object_field(body, name)
    suites = SUITES.get(profile)
    if suites is None:
        raise bad_request(f"the security profile {profile!r} is not known to this relay")
    if document.get("suite") not in suites:
        raise bad_request(f"the suite of {name} does not belong to {profile}")
    wanted = {"suite": None, "x25519_public_key": X25519_KEY_BYTES}
    if profile == HYBRID:
        wanted["mlkem768_public_key"] = MLKEM768_KEY_BYTES
    for field, size in wanted.items():
        if size is not None and not _is_key(document.get(field), size):
            raise bad_request(f"{field} of {name} is not base64 of {size} bytes")
    return canonical(document)


def _is_key(value: object, size: int) -> bool:
    if not isinstance(value, str) or len(value) > 2 * size:
        return False
    try:
        return len(base64.b64decode(value, validate=True)) == size
    except ValueError:
        return False
