"""The words between the relay's core and its adapters: who, what is to be done, and why."""

from __future__ import annotations

from typing import NamedTuple

LinkId = int
StreamId = bytes

# Reset reasons of PROTOCOL.md section 1.
PEER_GONE = "peer-gone"
PEER_SLOW = "peer-slow"
STREAM_TAKEN = "stream-taken"
LIMIT = "limit"
EXECUTOR_FULL = "executor-full"

# Close codes of PROTOCOL.md section 2.
SERVICE_RESTART = 1012
REPLACED = 4001
TOKEN_REVOKED = 4002
TOKEN_EXPIRED = 4003

OWNER, HOST, DEVICE, PAIRING = "owner", "host", "device", "pairing"
ENROLMENT = "enrolment"


class Principal(NamedTuple):
    """Who a bearer token stands for. An owner's and an enrolment's are for no one environment."""

    token_id: str
    owner: str
    kind: str
    environment_id: str
    expires_at: int


class RoomKey(NamedTuple):
    owner: str
    environment_id: str


class Send(NamedTuple):
    """Send one of the relay's own frames."""

    link: LinkId
    message: bytes


class Close(NamedTuple):
    """Close a WebSocket after what is queued for it. For the core the link is gone already."""

    link: LinkId
    code: int
    reason: str


class Abort(NamedTuple):
    """Cut a link that does not read: no close frame would get through."""

    link: LinkId
    reason: str


class Route(NamedTuple):
    """From now on frames of `stream` that come on `link` go to `to`."""

    link: LinkId
    stream: StreamId
    to: LinkId


class Unroute(NamedTuple):
    """Undo a route of a link that stays."""

    link: LinkId
    stream: StreamId


class Pause(NamedTuple):
    """Read no more from this link."""

    link: LinkId


class Resume(NamedTuple):
    """Read from this link again."""

    link: LinkId


Effect = Send | Close | Abort | Route | Unroute | Pause | Resume


class Claim(NamedTuple):
    """A stream and the token that owns it, as kept over a restart of the relay."""

    room: RoomKey
    stream: StreamId
    token_id: str
