"""Who may come in at a local WebSocket: whoever shows its token in the first lines. No I/O.

A browser is let in by no token: what a page could send carries an Origin, and no official client's
does. The token stays here: it is taken out of what goes on to the host.
"""

from __future__ import annotations

import hmac
import re

MAX_HEAD_BYTES = 16 * 1024
TOKEN_VARIABLE = "CODEXCTL_ATTACH_TOKEN"  # noqa: S105 - a name
REFUSAL = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_AUTHORIZATION = re.compile(rb"(?im)^authorization:[ \t]*(.*?)[ \t]*\r\n")
_ORIGIN = re.compile(rb"(?im)^origin:")


class Turned(Exception):
    """Not let in; the argument is what to answer before closing."""


def admit(received: bytes, token: str | None) -> bytes | None:
    """What goes on to the host, once the head is whole; None before. Turned.

    With `token` None everybody is let in: the socket is its owner's alone.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > MAX_HEAD_BYTES:
            raise Turned(REFUSAL % b"431 Request Header Fields Too Large")
        return None
    head = received[: end + 4]
    shown = _AUTHORIZATION.findall(head)
    if _ORIGIN.search(head):
        raise Turned(REFUSAL % b"403 Forbidden")
    if token is not None:
        scheme, _, value = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        same = hmac.compare_digest(value.strip(), token.encode())
        if scheme.lower() != b"bearer" or not same:
            raise Turned(REFUSAL % b"401 Unauthorized")
    return _AUTHORIZATION.sub(b"", head) + received[end + 4 :]
