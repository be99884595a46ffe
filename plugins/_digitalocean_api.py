"""python-digitalocean, hardened: its objects over one transport that answers for every request.

A file beside the provider, because it must subclass the SDK when it is imported, and the provider's
own module must not import an SDK. The library does the wording of calls and bodies; what it does
with them is replaced in its one request method:

- The token is a Secret that no library object holds; it goes to the origin of the base URL alone,
  never by ~/.netrc, a redirect or a page link. Bodies and tokens are never logged.
- Every call has a timeout and is made once: what failed is a class of `codexctl.provision.errors`
  that says whether it may be made again.
- Every status is looked at, pages are asked for by number, and a list is whole or an error.
- Trailing slashes, bodies of DELETE and nulls, which the API's description refuses, are not sent.
- An object without an id asks for nothing: no `DELETE /v2/droplets/None`.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import digitalocean
import requests
import urllib3.exceptions as transport_errors

from codexctl.errors import UsageError
from codexctl.provision.errors import (
    IncompleteList,
    OutcomeUnknown,
    ProviderError,
    ProviderUnreachable,
    RateLimited,
)
from codexctl.secret import Secret

from ._digitalocean_errors import refused

DEFAULT_URL = "https://api.digitalocean.com/v2/"
ISSUER = "https://cloud.digitalocean.com"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 25.0
PAGE_ITEMS = 200
"""The most that the API puts on a page."""
MAX_PAGES = 100

_MAYBE_TEXT = (str, type(None))
_NUMBER = (int, float)
_FIELDS: dict[str, Any] = {
    "accounts": {"uuid": str, "email": str},
    "regions": {"slug": str, "name": str, "available": bool},
    "sizes": {
        "slug": str,
        "available": bool,
        "memory": int,
        "vcpus": int,
        "disk": int,
        "price_hourly": _NUMBER,
        "price_monthly": _NUMBER,
        "regions": list,
    },
    "images": {
        "id": int,
        "slug": _MAYBE_TEXT,
        "name": str,
        "distribution": str,
        "type": str,
        "public": bool,
        "regions": list,
        "min_disk_size": (int, type(None)),
    },
    "ssh_keys": {"id": int, "name": str},
    "tags": {"name": str, "resources": {"count": int}},
    "firewalls": {"id": str, "name": str},
    "droplets": {
        "id": int,
        "name": str,
        "status": str,
        "created_at": str,
        "tags": list,
        "region": {"slug": str},
        "networks": {"v4": [{"type": str, "ip_address": str}]},
    },
    "actions": {"id": int, "type": str, "status": str},
}
"""What the provider reads of each thing; an answer without it is a wrong body."""
_BODY_ERRORS = (digitalocean.Error, LookupError, TypeError, AttributeError, ValueError)


Body = dict[str, Any]


def base_url(text: str) -> str:
    """`text` as a base to join paths to: it ends in `/v2/`; UsageError unless https or loopback."""
    parts = urlsplit(text)
    try:
        loopback = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        loopback = parts.hostname == "localhost"
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise UsageError(
            f"the DigitalOcean endpoint {text} would get the token without TLS",
            hint=f"use https, as in {DEFAULT_URL}",
        )
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageError(f"the DigitalOcean endpoint {text} is not a plain URL")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v2') else path + '/v2'}/"


class _Bearer(requests.auth.AuthBase):
    """Given explicitly, so that requests never looks into ~/.netrc."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token.reveal()}"
        return request


class Transport:
    """One connection pool, one token, one origin."""

    def __init__(self, url: str, token: Secret) -> None:
        self.url = base_url(url)
        self._auth = _Bearer(token)
        self._session = requests.Session()
        self.skew_s = 0.0
        """The cloud's clock less ours, by the Date of the last answer."""

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a connection is not pickled")

    def close(self) -> None:
        self._session.close()

    def now(self) -> float:
        """Seconds since the epoch by the cloud's clock."""
        return time.time() + self.skew_s

    def request(self, method: str, path: str, params: Mapping[str, Any]) -> requests.Response:
        """Make the call once. `path` is relative to the base; an absolute one must be below it."""
        url = urljoin(self.url, path.rstrip("/"))
        if not url.startswith(self.url):
            raise ProviderError(f"DigitalOcean's answer points to another address: {url}")
        return self._send(
            method, url, {n: value for n, value in params.items() if value is not None}
        )

    def scopes(self) -> set[str] | None:
        """What the token may do, as its issuer says; None where that cannot be learnt."""
        parts = urlsplit(self.url)
        issuer = ISSUER if self.url == DEFAULT_URL else f"{parts.scheme}://{parts.netloc}"
        try:
            answer = self._send("GET", f"{issuer}/v1/oauth/token/info", {}).json()
            return {str(scope) for scope in answer["scopes"]}
        except (ProviderError, LookupError, TypeError, ValueError):
            return None

    def _send(self, method: str, url: str, params: Mapping[str, Any]) -> requests.Response:
        path = urlsplit(url).path
        body = json.dumps(params, default=_reveal) if method != "GET" and params else None
        try:
            response = self._session.request(
                method,
                url,
                params=params if method == "GET" else None,
                data=body,
                headers={"Content-Type": "application/json", "User-Agent": "codexctl"},
                auth=self._auth,
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # Not chained: the exception holds the prepared request, token and user data included.
            raise _unsent(f"{method} {path}", error) from None
        self.skew_s = _date(response.headers.get("Date", "")) - time.time()
        if response.status_code not in (200, 201, 202, 204):
            raise refused(method, path.removeprefix("/v2/"), f"{method} {path}", response)
        return response


def _date(text: str) -> float:
    """A Date header as seconds since the epoch; our own time where it is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return time.time()


def _reveal(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _unsent(what: str, error: requests.RequestException) -> ProviderError:
    """The class of an exchange without an answer: certainly not received, or perhaps."""
    cause: object = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)
    never_sent = (
        transport_errors.NewConnectionError,
        transport_errors.ConnectTimeoutError,
        transport_errors.SSLError,
        transport_errors.ProxyError,
    )
    kind = type(cause).__name__
    if isinstance(cause, never_sent):
        return ProviderUnreachable(
            f"cannot reach DigitalOcean: {kind}",
            hint="check the network, and HTTPS_PROXY if there is a proxy",
        )
    return OutcomeUnknown(f"DigitalOcean did not answer {what}: {kind}")


@contextmanager
def usable_body(what: str) -> Iterator[None]:
    """What the library raises over an odd body, as what it is: nobody knows the outcome."""
    try:
        yield
    except _BODY_ERRORS as error:
        kind = type(error).__name__
        raise OutcomeUnknown(f"DigitalOcean's answer to {what} makes no sense: {kind}") from None


def _checked(item: Any, member: str) -> Body:
    """`item`, when it has the fields that are read of such things; TypeError."""
    if not _fits(item, _FIELDS[member]):
        raise TypeError(member)
    body: Body = item
    return body


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            name in value and _fits(value[name], part) for name, part in shape.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    return isinstance(value, shape)


class _Hardened:
    """Mixed in before a class of the library: the transport in place of its own requests."""

    def __init__(self, transport: Transport, **values: Any) -> None:
        self._transport = transport
        values["end_point"] = transport.url
        super().__init__(**values)

    @property
    def token(self) -> str:
        """The library wants one; it gets none."""
        return ""

    @token.setter
    def token(self, value: object) -> None:
        # BaseAPI.__init__ puts the one of the environment here.
        pass

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a cloud's object is not pickled")

    def _BaseAPI__perform_request(
        self, url: str, type: str = "GET", params: Mapping[str, Any] | None = None
    ) -> requests.Response:
        values = dict(params or {})
        if type == "GET" and "page" not in values:
            # get_data asks for pages of everything, also of what has none.
            values.pop("per_page", None)
        return self._transport.request(type, url, values)


class Api(_Hardened, digitalocean.Manager):  # type: ignore[misc]  # the library has no types
    """Lists and single reads as plain bodies, which have at least the fields of `_FIELDS`."""

    def list_all(self, path: str, member: str, **query: Any) -> list[Body]:
        """Every item of a list, in order; IncompleteList when one page does not come or fit."""
        items: list[Body] = []
        totals: set[int] = set()
        for page in range(1, MAX_PAGES + 1):
            paging = {"page": page, "per_page": PAGE_ITEMS}
            try:
                with usable_body(f"GET {path}"):
                    body = self.get_data(path, params=query | paging)
                    found = [_checked(item, member) for item in body[member]]
                    totals.add(int(body["meta"]["total"]))
                    more = bool((body.get("links") or {}).get("pages", {}).get("next"))
            except (OutcomeUnknown, RateLimited) as error:
                if page == 1 and isinstance(error, RateLimited):
                    raise
                raise IncompleteList(
                    f"page {page} of DigitalOcean's {path} did not come: {error}",
                    request_id=error.request_id,
                ) from None
            items += found
            if not more or not found:
                break
        # Another total means that something came or went, and that a page may have shifted.
        if totals != {len(items)}:
            told = " and ".join(map(str, sorted(totals)))
            raise IncompleteList(f"DigitalOcean told of {told} {path} and listed {len(items)}")
        return items

    def read(self, path: str, member: str) -> Body:
        """The one thing at `path`; NotThere."""
        with usable_body(f"GET {path}"):
            return _checked(self.get_data(path)[member], member + "s")

    def order(self, method: str, path: str, **body: Any) -> None:
        """A call that changes something and whose answer tells nothing new."""
        with usable_body(f"{method} {path}"):
            self.get_data(path, type=method, params=body)


class Droplet(_Hardened, digitalocean.Droplet):  # type: ignore[misc]  # the library has no types
    def destroy(self) -> None:
        _must_have_id(self)
        super().destroy()


class Key(_Hardened, digitalocean.SSHKey):  # type: ignore[misc]  # the library has no types
    def destroy(self) -> None:
        _must_have_id(self)
        super().destroy()


def _must_have_id(thing: Any) -> None:
    if not thing.id:
        raise AssertionError(f"a {type(thing).__name__} without an id cannot be destroyed")
