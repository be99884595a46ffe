"""From where ssh is let in: addresses and networks as typed, and `here`, this device's own.

Shared by the providers that make a firewall.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence

from codexctl.errors import UsageError
from codexctl.provision.errors import ProviderUnreachable

ANYWHERE = ("0.0.0.0/0", "::/0")
HERE = "here"
SERVICE = "https://checkip.amazonaws.com"
"""Answers the caller's address as text; another one by CODEXCTL_ADDRESS_SERVICE."""
TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 64


def sources(typed: Sequence[str]) -> list[str]:
    """Networks in CIDR notation for `--ssh-from`; anywhere without one. UsageError.

    `here` asks SERVICE, which is told nothing but this device's address.
    """
    if not typed:
        return list(ANYWHERE)
    return [_network(_own_address() if word == HERE else word) for word in typed]


def told(networks: Sequence[str]) -> str:
    """The same for a person."""
    return "anywhere" if set(networks) >= set(ANYWHERE) else " and ".join(networks)


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise UsageError(
            f"--ssh-from {text} is not an address or a network",
            hint="for example --ssh-from 203.0.113.7, --ssh-from 203.0.113.0/24 or "
            f"--ssh-from {HERE}",
        ) from None


def _own_address() -> str:
    import urllib.error
    import urllib.request

    url = os.environ.get("CODEXCTL_ADDRESS_SERVICE") or SERVICE
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise UsageError(f"CODEXCTL_ADDRESS_SERVICE {url} is not an https address")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310  # checked above
            text: str = answer.read(MAX_ANSWER_BYTES).decode("ascii", "replace").strip()
        return str(ipaddress.ip_address(text))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ProviderUnreachable(
            f"{url} did not tell this device's address: {error}",
            hint="name the address yourself with --ssh-from",
        ) from None
