"""Where a relay listens and how others call it; what of that is safe without TLS."""

from __future__ import annotations

import ipaddress
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from codexctl.errors import StateError, UsageError

MAX_PORT = 65535


class Listen(NamedTuple):
    """An address to bind; port 0 takes a free one."""

    host: str
    port: int


def parse_listen(text: str) -> Listen:
    """`HOST:PORT`, `[V6]:PORT`, or `PORT` alone for loopback. UsageError otherwise."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]") if colon else "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > MAX_PORT or (colon and not host):
        raise UsageError(
            f"{text!r} is not an address to listen on",
            hint="write it as 127.0.0.1:8700; port 0 takes a free one",
        )
    return Listen(host, int(port))


def is_loopback(host: str) -> bool:
    """Whether a host name or address stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(listen: Listen, *, tls: bool, public_url: str) -> None:
    """UsageError where bearer tokens would pass a network in the clear."""
    if not tls and not is_loopback(listen.host):
        raise UsageError(
            f"a relay on {listen.host} without TLS would send bearer tokens in the clear",
            hint="add --tls-self-signed, or --tls-cert and --tls-key, or listen on 127.0.0.1"
            " behind a reverse proxy and give its --public-url",
        )
    if not public_url:
        return
    try:
        url = urlsplit(public_url)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if not host or url.scheme not in ("http", "https") or url.query or url.fragment or url.username:
        raise UsageError(
            f"{public_url!r} is not the URL of a relay",
            hint="write it as https://relay.example.org",
        )
    if url.scheme == "http" and not is_loopback(host):
        raise UsageError(
            f"{public_url} would send bearer tokens in the clear",
            hint="give the reverse proxy a certificate and use its https: URL",
        )


def bind(listen: Listen) -> list[socket.socket]:
    """Bound sockets of every address of `listen`, all on one port.

    UsageError for what is no address, StateError where another program has it.
    """
    try:
        found = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise UsageError(
            f"cannot listen on {listen.host}: {error.strerror}",
            hint="give an address of this machine, such as 127.0.0.1",
        ) from error
    unique = {(family, str(address[0])) for family, _, _, _, address in found}
    sockets: list[socket.socket] = []
    port = listen.port
    for family, host in sorted(unique, key=lambda one: (one[0] != socket.AF_INET, one)):
        opened = socket.socket(family, socket.SOCK_STREAM)
        sockets.append(opened)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind((host, port))
        except OSError as error:
            for made in sockets:
                made.close()
            raise StateError(
                f"cannot listen on {host} port {port}: {error.strerror}",
                hint="another program may use it: take another --listen, or port 0",
            ) from error
        port = opened.getsockname()[1]
    return sockets


def reachable_name(host: str) -> str:
    """`host`, or for a wildcard address the one by which others most likely reach this machine."""
    if host not in ("0.0.0.0", "::", "*", ""):  # noqa: S104 - compared, not bound
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it asks the routing table.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.getfqdn()


def in_url(host: str, port: int, scheme: str) -> str:
    """host:port as a URL writes it."""
    name = f"[{host}]" if ":" in host else host
    return name if port == {"http": 80, "https": 443}[scheme] else f"{name}:{port}"
