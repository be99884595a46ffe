"""What the rooms of `core.py` consist of: streams, rooms, links and what a token uses of them."""

from __future__ import annotations

from codexctl.relay.effects import LinkId, Principal, RoomKey, StreamId
from codexctl.relay.limits import Bucket

NEVER = float("-inf")


class Stream:
    __slots__ = ("device", "device_told", "host_told", "token")

    def __init__(self, token: Usage) -> None:
        self.token = token
        self.device: Link | None = None
        # When each side last heard that the other is gone.
        self.device_told = self.host_told = NEVER


class Room:
    __slots__ = ("host", "key", "links", "streams")

    def __init__(self, key: RoomKey) -> None:
        self.key = key
        self.host: Link | None = None
        self.links = 0
        self.streams: dict[StreamId, Stream] = {}


class Usage:
    """What one token has in use."""

    __slots__ = ("bucket", "idle", "links", "streams", "token_id")

    def __init__(self, token_id: str, bucket: Bucket) -> None:
        self.token_id = token_id
        self.bucket = bucket
        self.links: set[LinkId] = set()
        self.streams: set[tuple[RoomKey, StreamId]] = set()
        # Claims without a connection and since when, in that order.
        self.idle: dict[tuple[RoomKey, StreamId], float] = {}


class Link:
    __slots__ = (
        "expires_at",
        "held_by",
        "holders",
        "holds",
        "id",
        "is_host",
        "is_official",
        "kind",
        "queued",
        "registration_id",
        "room",
        "streams",
        "usage",
        "waiting",
    )

    def __init__(self, link: LinkId, principal: Principal, room: Room, usage: Usage) -> None:
        self.id = link
        self.room = room
        self.usage = usage
        self.kind = principal.kind
        self.expires_at = principal.expires_at
        self.is_host = False
        self.registration_id = ""
        self.streams: set[StreamId] = set()  # of a device
        self.queued = 0  # bytes that wait for this link's socket, while it is congested
        self.waiting: set[LinkId] = set()  # devices whose reading this host has stopped
        self.held_by: Link | None = None  # the host that has stopped the reading of this device
        # The other way round: devices for which this executor is not read, since when; and the
        # executor that is not read for this device.
        self.is_official = False
        self.holders: dict[LinkId, float] = {}
        self.holds: Link | None = None
