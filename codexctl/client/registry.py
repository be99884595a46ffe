"""The registry calls of PROTOCOL.md section 2, as device and as host."""

from __future__ import annotations

from typing import Any, NamedTuple

from codexctl.client.http import Answer, request, request_and_keep
from codexctl.client.sockets import Socket
from codexctl.errors import AuthenticationFailed, ConnectionFailed, ProtocolError
from codexctl.noise.keys import (
    HybridPublic,
    hybrid_document,
    key_document,
    parse_hybrid_document,
    parse_key_document,
)
from codexctl.noise.suites import HYBRID_PROFILE, SECURITY_PROFILE, Suite
from codexctl.secret import Secret


class HostOffline(ConnectionFailed):
    """The relay knows the host, or did, and it is not connected now."""

    code = "offline"


class TokenRefused(AuthenticationFailed):
    """The relay does not take this bearer: unknown, expired or revoked."""

    code = "token"


class Relay(NamedTuple):
    """Where a relay is and how it is known: `pin` is the SHA-256 of its key, where self-signed."""

    url: str
    pin: bytes | None
    token: Secret | None


class Registration(NamedTuple):
    """What a host gets: the WebSocket's URL (it holds a ticket) and the registration's id."""

    url: Secret
    registration_id: str


class Connect(NamedTuple):
    """What a device gets: as Registration, and the key that the relay says the host has."""

    url: Secret
    registration_id: str
    suite: Suite
    host_key: bytes
    mlkem768: bytes  # empty where the host has no such key
    sock: Socket | None  # the connection to the relay, if it is still open

    def close(self) -> None:
        """Give the connection up unused."""
        if self.sock is not None:
            self.sock.close()


class ExecutorConnect(NamedTuple):
    """What the device of an official executor gets: the registry's word for the executor's key."""

    url: Secret
    registration_id: str
    executor_key: HybridPublic
    authorization: Secret
    sock: Socket | None  # the connection to the relay, if it is still open


def call(
    relay: Relay, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One call; the JSON object of a 2xx answer. Errors are those of `_success`."""
    answer = request(
        method, relay.url.rstrip("/") + path, token=relay.token, pin=relay.pin, body=body
    )
    return _success(answer, relay.url)


def _success(answer: Answer, url: str) -> dict[str, Any]:
    """The object of a 2xx answer; what every other status means is raised."""
    if 200 <= answer.status < 300:
        return answer.value
    message = str(answer.value.get("message") or f"the relay answered HTTP {answer.status}")[:500]
    hint = str(answer.value.get("hint") or "")[:500]
    code = answer.value.get("error")
    if answer.status in (401, 403):
        raise TokenRefused(message, hint=hint or "pair again: codexctl pair URL")
    if code == "offline" or answer.status == 404:
        raise HostOffline(message, hint=hint)
    if 300 <= answer.status < 400:
        raise ConnectionFailed(
            f"the relay at {url} answered with a redirect", hint="use the address it redirects to"
        )
    raise ConnectionFailed(message, hint=hint)


def _text(value: dict[str, Any], key: str, limit: int = 4096) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text or len(text) > limit:
        raise ProtocolError(
            f"the relay's answer lacks {key}", hint="is this really a codexctl relay?"
        )
    return text


def register(relay: Relay, environment_id: str, suite: Suite, public: HybridPublic) -> Registration:
    """A host announces itself; it then opens a WebSocket to the URL."""
    answer = call(
        relay,
        "POST",
        f"/cloud/environment/{environment_id}/register",
        {
            "security_profile": SECURITY_PROFILE,
            "executor_public_key": key_document(suite, *public),
        },
    )
    return Registration(
        Secret(_text(answer, "url")), _text(answer, "executor_registration_id", 256)
    )


def connect(relay: Relay, environment_id: str, suite: Suite, public_key: bytes) -> Connect:
    """A device asks for a way to a host. HostOffline where the host is not there."""
    answer, sock = request_and_keep(
        "POST",
        f"{relay.url.rstrip('/')}/cloud/environment/{environment_id}/connect",
        token=relay.token,
        pin=relay.pin,
        body={"harness_public_key": key_document(suite, public_key)},
    )
    try:
        return _parse_connect(_success(answer, relay.url), sock)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, TokenRefused):
            # The relay's own hint is for an owner, who makes tokens; a device gets one by pairing.
            raise TokenRefused(
                "the relay does not take this device's token: it was revoked or has expired",
                hint="pair again: codexctl pair --show on the host, codexctl pair URL here",
            ) from error
        raise


def _parse_connect(answer: dict[str, Any], sock: Socket | None) -> Connect:
    if answer.get("security_profile") != SECURITY_PROFILE:
        raise ProtocolError(
            "this host speaks the official protocol, not codexctl's",
            hint="reach it with the official codex",
        )
    document = answer.get("executor_public_key")
    found, host_key = parse_key_document(document)
    try:
        mlkem768 = parse_hybrid_document(document).mlkem768
    except ProtocolError:
        mlkem768 = b""
    return Connect(
        Secret(_text(answer, "url")),
        _text(answer, "executor_registration_id", 256),
        found,
        host_key,
        mlkem768,
        sock,
    )


def connect_executor(relay: Relay, environment_id: str, own: HybridPublic) -> ExecutorConnect:
    """A device asks for a way to an official executor."""
    answer, sock = request_and_keep(
        "POST",
        f"{relay.url.rstrip('/')}/cloud/environment/{environment_id}/connect",
        token=relay.token,
        pin=relay.pin,
        body={"harness_public_key": hybrid_document(own)},
    )
    try:
        value = {} if answer.status == 400 else _success(answer, relay.url)
        if value.get("security_profile") != HYBRID_PROFILE:
            raise ProtocolError(
                f"{environment_id} is no official executor on this relay",
                hint="a codexctl host is paired with: codexctl pair URL",
            )
        return ExecutorConnect(
            Secret(_text(value, "url")),
            _text(value, "executor_registration_id", 256),
            parse_hybrid_document(value.get("executor_public_key")),
            Secret(_text(value, "harness_key_authorization")),
            sock,
        )
    except BaseException:
        if sock is not None:
            sock.close()
        raise
