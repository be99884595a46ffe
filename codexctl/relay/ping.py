"""Asking a relay for its health: what `codexctl relay ping` and the doctor do.

On blocking sockets, without asyncio: it is part of commands that should start at once.
"""

from __future__ import annotations

import hmac
import http.client
import json
import ssl
import statistics
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from codexctl.errors import AuthenticationFailed, ConnectionFailed, ProtocolError, UsageError

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 4096


class Pong(NamedTuple):
    """Latencies are round trips; `clock_skew_s`: the relay's clock minus ours, whole seconds."""

    relay: str
    status: str
    version: str
    latency_ms: float
    best_ms: float
    clock_skew_s: int


def ping(url: str, *, pin: str = "", count: int = 5) -> Pong:
    """Call health `count` times over one connection.

    UsageError for what is no URL, ConnectionFailed, AuthenticationFailed for a certificate that is
    not trusted, ProtocolError for who is no relay.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ("http", "https"):
        raise UsageError(f"{url!r} is not the URL of a relay", hint="write it as https://HOST:PORT")
    connection = _connection(parts.scheme, host, port, pin)
    base = parts.path.rstrip("/")
    times = []
    skew = 0
    try:
        connection.connect()
        if pin:
            _check_pin(connection, pin, url)
        for _ in range(count):
            started, began = time.perf_counter(), time.time()
            connection.request("GET", base + "/v1/health")
            response = connection.getresponse()
            body = response.read(MAX_ANSWER_BYTES)
            times.append((time.perf_counter() - started) * 1000)
            answer = json.loads(body)
            # The relay tells whole seconds, rounded down.
            skew = int(answer["now"]) - int((began + time.time()) / 2)
            status, version = str(answer["status"]), str(answer["version"])
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationFailed(
            f"the certificate of {url} is not trusted: {error.verify_message}",
            hint="for a self-signed relay give the p= of its pairing URL: --pin PIN",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectionFailed(
            f"cannot reach the relay {url}: {reason}",
            hint="check the address, and on its machine: codexctl relay serve",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(
            f"{url} answers, but not as a codexctl relay", hint="check the address and port"
        ) from error
    finally:
        connection.close()
    return Pong(
        url,
        status,
        version,
        round(statistics.median(times), 2),
        round(min(times), 2),
        skew if abs(skew) > 1 else 0,
    )


def _connection(scheme: str, host: str, port: int | None, pin: str) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    context = ssl.create_default_context()
    if pin:
        # The pin takes the place of names and authorities.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


def _check_pin(connection: http.client.HTTPConnection, pin: str, url: str) -> None:
    from codexctl.relay.tls import spki_pin_of_der

    socket = connection.sock
    certificate = socket.getpeercert(True) if isinstance(socket, ssl.SSLSocket) else None
    if certificate is None or not hmac.compare_digest(spki_pin_of_der(certificate), pin):
        raise AuthenticationFailed(
            f"the key of {url} is not the pinned one",
            hint="somebody may be in between, or the relay's key was replaced: pair again",
        )
