"""TCP and TLS connections of the blocking side; TLS is checked, or pinned to a key's hash."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

from codexctl.errors import AuthenticationFailed, ConnectionFailed, UsageError

if TYPE_CHECKING:
    import ssl

CONNECT_TIMEOUT_S = 10.0
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class UntrustedCertificate(AuthenticationFailed):
    """No authority that this machine trusts vouches for the relay's certificate."""

    code = "certificate"


class Address(NamedTuple):
    """A parsed http, https, ws or wss URL; `target` is path and query."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"


def parse_address(url: str) -> Address:
    """UsageError where it is not an absolute URL of those schemes, or holds user information."""
    # By hand: urllib.parse costs a twelfth of a cold exec.
    scheme, found, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    authority, question, query = authority.partition("?")
    target = (slash + path if slash else "/") + (question + query if question else "")
    target = target.partition("#")[0]
    host, port = authority, ""
    if authority.startswith("["):
        host, closed, port = authority[1:].partition("]")
        host = host if closed else ""
        port = port.removeprefix(":")
    elif ":" in authority:
        host, _, port = authority.partition(":")
    number = int(port) if port.isascii() and port.isdigit() else 0 if port else _PORTS.get(scheme)
    printable = target.isascii() and target.isprintable() and " " not in target
    if (
        not found
        or scheme not in _PORTS
        or not host
        or "@" in host
        or not (host.isascii() and host.isprintable() and " " not in host)
        or number is None
        or not 0 < number < 65536
        or not printable
    ):
        raise UsageError(
            f"not the address of a relay: {url.partition('?')[0].partition('#')[0][:200]!r}",
            hint="it looks like https://relay.example.net or http://127.0.0.1:8765",
        )
    return Address(scheme in ("https", "wss"), host, number, target)


def connect(address: Address, pin: bytes | None, timeout: float = CONNECT_TIMEOUT_S) -> Socket:
    """A connected socket, in blocking mode with `timeout`. ConnectionFailed says what went wrong.

    With `pin` (SHA-256 of the server's SPKI) exactly that key is accepted and names do not matter;
    without, the system's certificate authorities decide.
    """
    raw = _dial(address, timeout)
    return _wrap(raw, address, pin) if address.secure else raw


def _dial(address: Address, timeout: float) -> socket.socket:
    try:
        raw = socket.create_connection((address.host, address.port), timeout)
    except socket.gaierror as error:
        raise ConnectionFailed(
            f"cannot find the relay {address.host}: {error.strerror}",
            hint="check the address and this machine's network",
        ) from error
    except OSError as error:
        raise ConnectionFailed(
            f"cannot reach the relay at {address.authority}: {error.strerror or error}",
            hint=f"is it running? try: codexctl relay ping {_base(address)}",
        ) from error
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return raw


def _base(address: Address) -> str:
    return f"{'https' if address.secure else 'http'}://{address.authority}"


def _wrap(raw: socket.socket, address: Address, pin: bytes | None) -> ssl.SSLSocket:
    secure = _handshake(raw, address, pinned=pin is not None)
    if pin is not None and key_hash(secure) != pin:
        secure.close()
        raise AuthenticationFailed(
            "the relay shows another key than the one that was pinned at pairing",
            hint="if the relay's key was changed on purpose, pair again: codexctl pair URL",
        )
    return secure


def tls_context(*, pinned: bool) -> ssl.SSLContext:
    """`pinned`: the key's hash stands for the certificate, and is looked at by who connects."""
    import ssl

    context = ssl.create_default_context()
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _handshake(raw: socket.socket, address: Address, *, pinned: bool) -> ssl.SSLSocket:
    import ssl

    try:
        return tls_context(pinned=pinned).wrap_socket(raw, server_hostname=address.host)
    except ssl.SSLCertVerificationError as error:
        raw.close()
        raise UntrustedCertificate(
            f"the relay's certificate is not trusted: {error.verify_message}",
            hint="pair with a URL that carries the relay's pin, or give it a valid certificate",
        ) from error
    except OSError as error:
        raw.close()
        raise ConnectionFailed(
            f"TLS with the relay at {address.authority} failed: {error}",
            hint="is this an https address? try: codexctl relay ping " + _base(address),
        ) from error


def shown_key(url: str) -> bytes | None:
    """SHA-256 of the SPKI of whoever answers at an https URL. It proves nothing by itself.

    Pairing by a typed code uses it as a pin until the host has confirmed it.
    """
    address = parse_address(url)
    with _handshake(_dial(address, CONNECT_TIMEOUT_S), address, pinned=True) as secure:
        return key_hash(secure)


def key_hash(secure: ssl.SSLSocket | ssl.SSLObject) -> bytes | None:
    """`spki_sha256` of the other end's certificate; None where it has shown none."""
    certificate = secure.getpeercert(binary_form=True)
    return None if certificate is None else spki_sha256(certificate)


def spki_sha256(certificate_der: bytes) -> bytes:
    """SHA-256 of the certificate's SubjectPublicKeyInfo (as RFC 7469 pins it)."""
    import hashlib

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    key = load_der_x509_certificate(certificate_der).public_key()
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


Socket = socket.socket
