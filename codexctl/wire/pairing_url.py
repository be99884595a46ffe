"""The pairing URL `RELAY/pair#v=1&h=…&k=…&s=…&t=…&n=…[&p=…]` (PROTOCOL.md section 5).

Strict: each field once, nothing unknown, base64url in its one canonical form. So a URL that was cut
or altered on its way is refused with the reason, and not half understood.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from codexctl.errors import UsageError

VERSION = "1"
KEY_BYTES = 32
TOKEN_BYTES = 16
PIN_BYTES = 32
MAX_NAME_CHARS = 64
MAX_URL_CHARS = 2048
PATH = "/pair"

_ENVIRONMENT_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_LOOPBACK_IPV4 = re.compile(r"127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_NEW = "get a new one on the host with: codexctl pair --show"
_QUOTE = "put the URL in quotes: codexctl pair 'URL' (a shell cuts it at its first &)"


class PairingOffer(NamedTuple):
    """What a pairing URL says. The token is not shown in a repr.

    `relay` is its base URL without a slash at the end; `suite` is "c" (ChaChaPoly_BLAKE2s) or "a"
    (AESGCM_SHA256); `pin` is the SHA-256 of a self-signed relay's public key (SPKI).
    """

    relay: str
    environment_id: str
    host_key: bytes
    suite: str
    token: bytes
    name: str
    pin: bytes | None = None

    def __repr__(self) -> str:
        return f"PairingOffer(relay={self.relay!r}, name={self.name!r}, token=(hidden))"


def format_url(offer: PairingOffer) -> str:
    """The URL of an offer; ValueError where no URL could carry it."""
    url = (
        f"{offer.relay}{PATH}#v={VERSION}&h={offer.environment_id}&k={_encode(offer.host_key)}"
        f"&s={offer.suite}&t={_encode(offer.token)}&n={quote(offer.name, safe='')}"
    )
    if offer.pin is not None:
        url += f"&p={_encode(offer.pin)}"
    try:
        parsed = parse_url(url)
    except UsageError as error:
        raise ValueError(f"not an offer: {error.message}") from error
    if parsed != offer:
        raise ValueError("not an offer: it does not survive its URL")
    return url


def parse_url(text: str) -> PairingOffer:
    """Parse a pairing URL, with white space around it; UsageError says what is wrong with it."""
    text = text.strip()
    if len(text) > MAX_URL_CHARS:
        raise UsageError("the pairing URL is too long", hint=_NEW)
    base, mark, fragment = text.partition("#")
    if not base.startswith(("http://", "https://")) or not text.isascii() or not text.isprintable():
        raise UsageError("this is not a pairing URL", hint=_NEW)
    if not mark or not base.endswith(PATH):
        raise UsageError("the pairing URL is cut off or is not one", hint=_NEW)
    fields = _fields(fragment)
    relay = base.removesuffix(PATH)
    pin = _decode(fields["p"], "p", PIN_BYTES) if "p" in fields else None
    _check_relay(relay, pin)
    if not _ENVIRONMENT_ID.fullmatch(fields["h"]):
        raise UsageError("the pairing URL was altered: its host id is not one", hint=_NEW)
    if fields["s"] not in ("c", "a"):
        raise UsageError(
            f"the pairing URL asks for a suite {fields['s']!r} that this codexctl does not know",
            hint="update codexctl on this machine",
        )
    return PairingOffer(
        relay=relay,
        environment_id=fields["h"],
        host_key=_decode(fields["k"], "k", KEY_BYTES),
        suite=fields["s"],
        token=_decode(fields["t"], "t", TOKEN_BYTES),
        name=_name(fields["n"]),
        pin=pin,
    )


def _fields(fragment: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in fragment.split("&"):
        name, equals, value = part.partition("=")
        if not equals or name in fields:
            raise UsageError("the pairing URL was cut or altered", hint=_NEW)
        fields[name] = value
    if fields.get("v") != VERSION:
        version = fields.get("v", "")
        if version.isdecimal() and version != VERSION:
            raise UsageError(
                f"the pairing URL has version {version}, this codexctl knows {VERSION}",
                hint="use the same version of codexctl on both machines",
            )
        raise UsageError("the pairing URL was cut or altered", hint=_NEW)
    missing = [name for name in "hkstn" if name not in fields]
    if missing:
        raise UsageError(
            f"the pairing URL is cut off: its {missing[0]}= is missing",
            hint=_QUOTE if len(fields) == 1 else _NEW,
        )
    unknown = sorted(fields.keys() - set("vhkstnp"))
    if unknown:
        raise UsageError(f"the pairing URL was altered: it has a part {unknown[0]!r}", hint=_NEW)
    return fields


def _check_relay(relay: str, pin: bytes | None) -> None:
    try:
        parts = urlsplit(relay)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise UsageError("the pairing URL names no relay", hint=_NEW)
    if parts.username is not None or parts.query or relay.endswith(("/", "?", "@")):
        raise UsageError("the pairing URL was altered: its relay is not a base URL", hint=_NEW)
    if parts.scheme == "http":
        if not is_loopback(host):
            raise UsageError(
                f"the pairing URL names a relay without TLS on another machine, {host}",
                hint="start that relay with --tls-self-signed, or behind a proxy that has TLS",
            )
        if pin is not None:
            raise UsageError("the pairing URL pins a key of a relay without TLS", hint=_NEW)


def is_loopback(host: str) -> bool:
    """True for a name or address that cannot leave this machine."""
    return host in ("localhost", "::1") or bool(_LOOPBACK_IPV4.fullmatch(host))


def _name(value: str) -> str:
    try:
        name = unquote(value, errors="strict")
    except UnicodeDecodeError:
        name = ""
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or quote(name, "") != value:
        raise UsageError("the pairing URL was altered: its host name is not one", hint=_NEW)
    return name


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str, name: str, size: int) -> bytes:
    """`size` bytes of canonical base64url without padding."""
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        data = b""
    # The library skips what is not base64 and unused bits: compare with the one right spelling.
    if len(data) != size or _encode(data) != text:
        raise UsageError(f"the pairing URL was cut or altered: its {name}= is damaged", hint=_NEW)
    return data
