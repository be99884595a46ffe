"""What DigitalOcean's refusals mean, as classes of `codexctl.provision.errors`.

A file beside the transport: the API has one shape for all errors, so that its sentences have to be
read, and that is best kept in one place.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping

import requests

from codexctl.provision.errors import (
    CredentialsReadOnly,
    CredentialsWrong,
    NoCapacity,
    OutcomeUnknown,
    PaymentRequired,
    ProviderError,
    QuotaReached,
    RateLimited,
    UserDataTooLarge,
)

SAID_CHARS = 300
"""How much of a cloud's own sentence is repeated."""
_WORDS = {"GET": "read", "POST": "create", "PUT": "update", "DELETE": "delete"}
_SCOPES = {
    "droplets": "droplet",
    "account/keys": "ssh_key",
    "firewalls": "firewall",
    "tags": "tag",
    "images": "image",
    "account": "account",
}


class NotThere(ProviderError):
    """404: the cloud says that there is none."""


class Taken(ProviderError):
    """409, or 422 for a key: something has this name or key already."""


class Busy(ProviderError):
    """Another action is under way on this droplet; the call had no effect."""

    code = "busy"
    retry = "again"


def refused(method: str, path: str, what: str, response: requests.Response) -> ProviderError:
    """The class of an answer that is not success."""
    try:
        body = response.json()
        said = str(body.get("message") or body.get("error") or "")[:SAID_CHARS]
        request_id = str(body.get("request_id") or response.headers.get("X-Request-Id") or "")
    except (ValueError, AttributeError):
        said, request_id = "", response.headers.get("X-Request-Id", "")
    status = response.status_code
    sentence = f"DigitalOcean answered {status} to {what}" + (f": {said}" if said else "")
    if status == 401:
        return CredentialsWrong(
            "DigitalOcean does not know this token",
            hint="make one and keep it: codexctl provider login digitalocean",
            request_id=request_id,
        )
    if status == 402:
        return _payment(sentence, request_id)
    if status == 403:
        scope = _scope(method, path)
        return CredentialsReadOnly(
            f"the DigitalOcean token lacks the scope {scope}: {said or 'forbidden'}",
            hint=f"make a token with {scope}: https://cloud.digitalocean.com/account/api/tokens",
            request_id=request_id,
        )
    if status == 404:
        return NotThere(sentence, request_id=request_id)
    if status == 409:
        return Taken(sentence, request_id=request_id)
    if status == 429:
        return RateLimited(
            "DigitalOcean counts calls, and these were too many",
            retry_after_s=_retry_after(response.headers),
            hint="wait a minute; other programs of this account count as well",
            request_id=request_id,
        )
    if status >= 500:
        return OutcomeUnknown(sentence, request_id=request_id)
    if status == 422:
        return _unprocessable(said, sentence, request_id)
    return ProviderError(sentence, request_id=request_id)


def _payment(sentence: str, request_id: str) -> PaymentRequired:
    return PaymentRequired(
        sentence, hint="see https://cloud.digitalocean.com/account/billing", request_id=request_id
    )


def _unprocessable(said: str, sentence: str, request_id: str) -> ProviderError:
    """422 says everything in its message; these are the ones with something to do next."""
    if re.search(r"limit", said, re.IGNORECASE):
        return QuotaReached(
            sentence,
            hint="destroy a droplet (codexctl workspace list), or ask for more: "
            "https://cloud.digitalocean.com/account/team/droplet_limit_increase",
            request_id=request_id,
        )
    if re.search(r"user.?data", said, re.IGNORECASE):
        return UserDataTooLarge(sentence, request_id=request_id)
    if re.search(r"(not|un)\s?available|capacity|sold out", said, re.IGNORECASE):
        return NoCapacity(sentence, hint="try another --region or --size", request_id=request_id)
    if re.search(r"already in use", said, re.IGNORECASE):
        return Taken(sentence, request_id=request_id)
    if re.search(r"pending event|locked", said, re.IGNORECASE):
        return Busy(sentence, request_id=request_id)
    if re.search(r"payment|billing|verif", said, re.IGNORECASE):
        return _payment(sentence, request_id)
    return ProviderError(sentence, request_id=request_id)


def _scope(method: str, path: str) -> str:
    """The custom scope that a call needs, by DigitalOcean's rule `resource:verb`."""
    parts = path.strip("/").split("/")
    resource = _SCOPES.get("/".join(parts[:2])) or _SCOPES.get(parts[0], parts[0])
    word = "update" if parts[-1] == "actions" and method == "POST" else _WORDS[method]
    return f"{resource}:{word}"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: Retry-After as seconds or a date, else the reset of the hourly limit."""
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,6}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        reset = headers.get("Ratelimit-Reset", "")
    return max(0.0, int(reset) - time.time()) if re.fullmatch(r"[0-9]{1,12}", reset) else None


def unless_gone(delete: Callable[[], object]) -> None:
    """Delete; what is not there is as good as deleted."""
    try:
        delete()
    except NotThere:
        pass
