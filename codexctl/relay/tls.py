"""TLS of the relay: a certificate from files, or one made here whose key's hash devices pin."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import os
import ssl
from typing import TYPE_CHECKING

from codexctl.errors import StateError, UsageError
from codexctl.paths import Home
from codexctl.state.files import create_private, read_private, replace_file

if TYPE_CHECKING:
    from cryptography import x509

LIFETIME_DAYS = 3650  # the pin is what is trusted; the dates are there because X.509 wants some


class Certificate:
    """A server's certificate from files, read again when they change: renewals need no restart."""

    def __init__(self, cert: str, key: str) -> None:
        """UsageError where the files are not a pair, StateError where they cannot be read."""
        self._cert, self._key = cert, key
        # TLS 1.2 and newer; connections that are there already keep what they have.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._read_at = self._changed_at()
        self._load()

    def refresh(self) -> bool:
        """Load the files if they changed; whether they did. Errors as of the constructor."""
        changed = self._changed_at()
        if changed == self._read_at:
            return False
        self._read_at = changed
        self._load()
        return True

    def _changed_at(self) -> tuple[int, int]:
        try:
            return os.stat(self._cert).st_mtime_ns, os.stat(self._key).st_mtime_ns
        except OSError as error:
            raise StateError(f"cannot read {error.filename}: {error.strerror}") from error

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(self._cert, self._key)
        except ssl.SSLError as error:
            raise UsageError(
                f"{self._cert} and {self._key} are not a certificate and its private key",
                hint="give PEM files: --tls-cert CHAIN --tls-key KEY",
            ) from error
        except OSError as error:
            raise StateError(
                f"cannot read {self._cert} or {self._key}: {error.strerror}"
            ) from error


def self_signed(home: Home, names: list[str]) -> tuple[str, str, str]:
    """Paths of certificate and key in the home, made once, and the key's pin.

    A new certificate is made for the same key when its names change: the pin, which paired
    devices hold, stays.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    home.ensure()
    key_path, cert_path = home.join("relay-tls.key"), home.join("relay-tls.crt")
    try:
        pem = read_private(key_path, what="the relay's TLS key")
    except FileNotFoundError:
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        create_private(key_path, pem)
    try:
        key = serialization.load_pem_private_key(pem, None)
    except ValueError as error:
        raise StateError(
            f"{key_path} is not a private key",
            hint=f"move {key_path} away; devices that pinned it have to be paired again",
        ) from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "codexctl relay")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.SubjectAlternativeName([_name(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    replace_file(cert_path, certificate.public_bytes(serialization.Encoding.PEM))
    return cert_path, key_path, spki_pin(cert_path)


def spki_pin(cert: str) -> str:
    """SHA-256 of the public key (SubjectPublicKeyInfo) of a PEM certificate, base64url."""
    from cryptography import x509

    with open(cert, "rb") as file:
        return _pin(x509.load_pem_x509_certificate(file.read()))


def spki_pin_of_der(certificate: bytes) -> str:
    """The same of a DER certificate, as `SSLSocket.getpeercert(True)` gives it."""
    from cryptography import x509

    return _pin(x509.load_der_x509_certificate(certificate))


def _pin(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives import serialization

    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).rstrip(b"=").decode()


def _name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
