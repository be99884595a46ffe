"""Rooms: which WebSocket a frame goes to, and who waits for whom.

No socket, clock, file or random source here: a past event and `now` go in, a list of effects to be
performed in that order comes out. Payloads never come in at all.

- A room is one environment of one owner. Owners are part of its key, so that nothing of one owner
  can be named by another.
- A room has at most one host link, any number of device links, and streams. A device claims a
  stream by its first frame for it; the claim is the token's, outlives the link and ends
  `claim_kept_s` after it, or with the token.
- Only `Route` lets frames pass: of one stream, from one link to one other link of the same room.
  The adapter keeps the routes beside its links and asks `unrouted` about every other frame.
- A frame that cannot be delivered is dropped and its sender told why by a reset frame, of a peer
  that is gone once a second at most. The ends resend what was not acknowledged.
- A congested host stops the reading of those devices that send to it, each by itself. A codexctl
  host is never stopped for a device: what a device does not read is queued up to a bound, then it
  is cut. An official executor has no windows and would fill any queue: it is not read while one of
  its devices is congested, and a device that stays so for `hold_executor_s` is cut.
"""

from __future__ import annotations

from codexctl.relay.effects import (
    EXECUTOR_FULL,
    LIMIT,
    OWNER,
    PEER_GONE,
    PEER_SLOW,
    REPLACED,
    SERVICE_RESTART,
    STREAM_TAKEN,
    TOKEN_EXPIRED,
    TOKEN_REVOKED,
    Abort,
    Claim,
    Close,
    Effect,
    LinkId,
    Pause,
    Principal,
    Resume,
    RoomKey,
    Route,
    Send,
    StreamId,
    Unroute,
)
from codexctl.relay.limits import Bucket, Limits
from codexctl.relay.room import NEVER, Link, Room, Stream, Usage
from codexctl.wire import relay as wire

# Who has megabytes on their way to a peer that went is told once, not once a frame.
TELL_AGAIN_S = 1.0


class Rooms:
    """The state of all rooms. Methods are past events or questions; see the module."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rooms: dict[RoomKey, Room] = {}
        self._links: dict[LinkId, Link] = {}
        self._usage: dict[str, Usage] = {}
        self._congested: dict[LinkId, Link] = {}
        self._owner_queued: dict[str, int] = {}
        self.queued = 0
        self._changed: dict[tuple[RoomKey, StreamId], str | None] = {}

    # Questions

    def online(self, key: RoomKey) -> bool:
        room = self._rooms.get(key)
        return room is not None and room.host is not None

    def online_rooms(self) -> list[RoomKey]:
        return [key for key, room in self._rooms.items() if room.host is not None]

    def stream_count(self, key: RoomKey) -> int:
        """Streams of a room that a device is connected for."""
        room = self._rooms.get(key)
        return sum(s.device is not None for s in room.streams.values()) if room else 0

    def claimer(self, key: RoomKey, stream: StreamId) -> str | None:
        """The id of the token that has claimed a stream."""
        room = self._rooms.get(key)
        claimed = room.streams.get(stream) if room else None
        return claimed.token.token_id if claimed else None

    def counts(self) -> dict[str, int]:
        """How much there is of everything, for the metrics."""
        hosts = sum(room.host is not None for room in self._rooms.values())
        return {
            "hosts": hosts,
            "devices": len(self._links) - hosts,
            "streams": sum(len(room.streams) for room in self._rooms.values()),
            "congested": len(self._congested),
            "queued_bytes": self.queued,
        }

    def remembered(self) -> int:
        """Rooms and tokens of which something is kept."""
        return len(self._rooms) + len(self._usage)

    def take_changes(self) -> list[tuple[RoomKey, StreamId, str | None]]:
        """Claims made (with their token's id) and ended (None) since this was last asked."""
        changes = [(key, stream, token) for (key, stream), token in self._changed.items()]
        self._changed.clear()
        return changes

    # Limits of a token

    def spend_handshake(self, token_id: str, now: float) -> bool:
        """Count a registration, a connect or a new stream; False when there were too many."""
        return self._token(token_id, now).bucket.take(now)

    def may_open(self, principal: Principal) -> bool:
        """Whether this token may have one more WebSocket."""
        usage = self._usage.get(principal.token_id)
        if principal.kind == OWNER:
            limit = self._limits.links_an_owner_token
        else:
            limit = self._limits.links_a_device_token
        return usage is None or len(usage.links) < limit

    # Events

    def restored(self, claims: list[Claim], now: float) -> None:
        """The relay started and these claims were made before."""
        for claim in claims:
            room = self._room(claim.room)
            if claim.stream not in room.streams:
                self._claim(room, claim.stream, self._token(claim.token_id, now))
                self._idle_from(room, claim.stream, now)
        self._changed.clear()

    def host_opened(
        self,
        link: LinkId,
        principal: Principal,
        environment_id: str,
        registration_id: str,
        now: float,
        *,
        official: bool = False,
    ) -> list[Effect]:
        """The host of an environment connected its WebSocket; the one it had before is closed."""
        room = self._room(RoomKey(principal.owner, environment_id))
        effects: list[Effect] = []
        if room.host is not None:
            # Its successor is here: the devices need not hear that it went.
            effects += self._close(room.host, REPLACED, "replaced by a newer connection", now, "")
            room = self._room(RoomKey(principal.owner, environment_id))
        host = self._open(link, principal, room, now)
        host.is_host = True
        host.is_official = official
        host.registration_id = registration_id
        room.host = host
        for stream, claimed in room.streams.items():
            claimed.host_told = NEVER
            if claimed.device is not None:
                effects += _routes(claimed.device, host, stream)
        return effects

    def device_opened(
        self, link: LinkId, principal: Principal, environment_id: str, now: float
    ) -> list[Effect]:
        room = self._room(RoomKey(principal.owner, environment_id))
        self._open(link, principal, room, now)
        return []

    def unrouted(self, link: LinkId, stream: StreamId, now: float) -> list[Effect]:
        """A frame came for which its link has no route. With a Route in the answer, it may go."""
        sender = self._links.get(link)
        if sender is None:
            return []
        room = sender.room
        claimed = room.streams.get(stream)
        if sender.is_host:
            if claimed is not None:
                if now - claimed.host_told < TELL_AGAIN_S:
                    return []
                claimed.host_told = now
            return [Send(link, reset(stream, PEER_GONE))]
        if claimed is not None and claimed.token is not sender.usage:
            return [Send(link, reset(stream, STREAM_TAKEN))]
        if (claimed is None or claimed.device is None) and self._full(room):
            return [Send(link, reset(stream, EXECUTOR_FULL))]
        if claimed is None:
            usage = sender.usage
            if sender.kind == OWNER:
                limit = self._limits.streams_an_owner_token
            else:
                limit = self._limits.streams_a_device_token
            if len(usage.streams) >= limit and usage.idle:
                # Whoever runs many short commands leaves claims behind; the oldest makes room.
                self._drop_claim(*next(iter(usage.idle)))
            if len(usage.streams) >= limit or not usage.bucket.take(now):
                return [Send(link, reset(stream, LIMIT))]
            claimed = self._claim(room, stream, usage)
        effects: list[Effect] = []
        if claimed.device is not sender:
            if claimed.device is not None:
                # The same device came back before its old connection was found dead.
                claimed.device.streams.discard(stream)
                effects.append(Unroute(claimed.device.id, stream))
            sender.usage.idle.pop((room.key, stream), None)
            claimed.device = sender
            claimed.device_told = NEVER
            sender.streams.add(stream)
        if room.host is None:
            if now - claimed.device_told < TELL_AGAIN_S:
                return effects
            claimed.device_told = now
            return [*effects, Send(link, reset(stream, PEER_GONE))]
        return effects + _routes(sender, room.host, stream)

    def _full(self, room: Room) -> bool:
        """Whether the room's host is an official executor that takes no further stream."""
        if room.host is None or not room.host.is_official:
            return False
        served = sum(claimed.device is not None for claimed in room.streams.values())
        return served >= self._limits.streams_an_executor

    def left(self, link: LinkId, now: float) -> list[Effect]:
        """A WebSocket is gone, whoever closed it."""
        gone = self._links.get(link)
        return [] if gone is None else self._forget(gone, now, PEER_GONE)

    def registration_replaced(self, key: RoomKey, registration_id: str, now: float) -> list[Effect]:
        """The environment has a new registration: a host link of another one is out of date."""
        room = self._rooms.get(key)
        host = room.host if room else None
        if host is None or host.registration_id == registration_id:
            return []
        reason = "another key was registered for this environment"
        return self._close(host, REPLACED, reason, now, PEER_GONE)

    def token_ended(self, token_id: str, code: int, now: float) -> list[Effect]:
        """A token was revoked or has expired: its links are cut and its claims dropped."""
        usage = self._usage.get(token_id)
        if usage is None:
            return []
        reason = "the token was revoked" if code == TOKEN_REVOKED else "the token has expired"
        effects: list[Effect] = []
        for link in list(usage.links):
            effects += self._close(self._links[link], code, reason, now, PEER_GONE)
        for key, stream in list(usage.streams):
            self._drop_claim(key, stream)
        self._usage.pop(token_id, None)
        return effects

    def drained(self, now: float) -> list[Effect]:
        """The relay is about to end: every link is closed so that the ends come again."""
        effects: list[Effect] = []
        for link in list(self._links.values()):
            if link.id in self._links:
                effects += self._close(link, SERVICE_RESTART, "the relay restarts", now, "")
        return effects

    def ticked(self, now: float) -> list[Effect]:
        """Time passed: claims and tokens end."""
        effects: list[Effect] = []
        for usage in self._usage.values():
            while usage.idle:
                (key, stream), since = next(iter(usage.idle.items()))
                if now - since < self._limits.claim_kept_s:
                    break
                self._drop_claim(key, stream)
        expired = {link.usage.token_id for link in self._links.values() if link.expires_at <= now}
        for token_id in expired:
            effects += self.token_ended(token_id, TOKEN_EXPIRED, now)
        for link in list(self._congested.values()):
            held_since = link.holds.holders[link.id] if link.holds is not None else now
            if now - held_since >= self._limits.hold_executor_s:
                effects += self._cut(link, now)
        for token_id, usage in list(self._usage.items()):
            if not usage.links and not usage.streams and usage.bucket.full(now):
                del self._usage[token_id]
        return effects

    # Backpressure

    def pressed(self, link: LinkId, to: LinkId, queued: int, now: float) -> list[Effect]:
        """A frame from `link` was given to `to`, which is congested: so many bytes wait there."""
        receiver = self._links.get(to)
        if receiver is None:
            return []
        effects: list[Effect] = []
        sender = self._links.get(link)
        if receiver.is_host and sender is not None and sender.held_by is None:
            sender.held_by = receiver
            receiver.waiting.add(link)
            effects.append(Pause(link))
        if sender is not None and sender.is_official and receiver.holds is None:
            if not sender.holders:
                effects.append(Pause(link))
            sender.holders[to] = now
            receiver.holds = sender
        self._congested[to] = receiver
        self._count_queue(receiver, queued)
        if not receiver.is_host and queued > self._limits.queue_bytes_a_link:
            effects += self._cut(receiver, now)
        owner = receiver.room.key.owner
        while self._owner_queued.get(owner, 0) > self._limits.queue_bytes_an_owner:
            effects += self._cut(self._slowest(owner), now)
        while self.queued > self._limits.queue_bytes:
            effects += self._cut(self._slowest(None), now)
        return effects

    def relieved(self, link: LinkId) -> list[Effect]:
        """The socket of a congested link has taken what was queued."""
        receiver = self._links.get(link)
        if receiver is None:
            return []
        return self._relieve(receiver)

    # Inside

    def _token(self, token_id: str, now: float) -> Usage:
        usage = self._usage.get(token_id)
        if usage is None:
            limits = self._limits
            bucket = Bucket(limits.handshakes_a_second, limits.handshakes_at_once, now)
            usage = self._usage[token_id] = Usage(token_id, bucket)
        return usage

    def _room(self, key: RoomKey) -> Room:
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = Room(key)
        return room

    def _open(self, link: LinkId, principal: Principal, room: Room, now: float) -> Link:
        usage = self._token(principal.token_id, now)
        opened = self._links[link] = Link(link, principal, room, usage)
        usage.links.add(link)
        room.links += 1
        return opened

    def _claim(self, room: Room, stream: StreamId, usage: Usage) -> Stream:
        claimed = room.streams[stream] = Stream(usage)
        usage.streams.add((room.key, stream))
        self._changed[room.key, stream] = usage.token_id
        return claimed

    def _idle_from(self, room: Room, stream: StreamId, now: float) -> None:
        claimed = room.streams[stream]
        claimed.device = None
        claimed.token.idle.pop((room.key, stream), None)
        claimed.token.idle[room.key, stream] = now

    def _drop_claim(self, key: RoomKey, stream: StreamId) -> None:
        room = self._rooms[key]
        claimed = room.streams.pop(stream)
        claimed.token.streams.discard((key, stream))
        claimed.token.idle.pop((key, stream), None)
        self._changed[key, stream] = None
        self._sweep(room)

    def _sweep(self, room: Room) -> None:
        if not room.links and not room.streams:
            self._rooms.pop(room.key, None)

    def _close(self, link: Link, code: int, reason: str, now: float, tell: str) -> list[Effect]:
        return [Close(link.id, code, reason), *self._forget(link, now, tell)]

    def _cut(self, link: Link, now: float) -> list[Effect]:
        return [Abort(link.id, PEER_SLOW), *self._forget(link, now, PEER_SLOW)]

    def _forget(self, link: Link, now: float, tell: str) -> list[Effect]:
        """Take a link out; `tell` is the reset reason for those who talked with it, or empty."""
        effects = self._relieve(link)
        del self._links[link.id]
        link.usage.links.discard(link.id)
        room = link.room
        room.links -= 1
        if link.held_by is not None:
            link.held_by.waiting.discard(link.id)
        for holder in link.holders:
            self._links[holder].holds = None
        if link.is_host:
            room.host = None
            for stream, claimed in room.streams.items():
                if claimed.device is not None:
                    effects.append(Unroute(claimed.device.id, stream))
                    if tell:
                        claimed.device_told = now
                        effects.append(Send(claimed.device.id, reset(stream, tell)))
        for stream in link.streams:
            self._idle_from(room, stream, now)
            if room.host is not None:
                effects.append(Unroute(room.host.id, stream))
                if tell:
                    room.streams[stream].host_told = now
                    effects.append(Send(room.host.id, reset(stream, tell)))
        self._sweep(room)
        return effects

    def _relieve(self, link: Link) -> list[Effect]:
        self._count_queue(link, 0)
        self._congested.pop(link.id, None)
        effects: list[Effect] = []
        for waiting in link.waiting:
            self._links[waiting].held_by = None
            effects.append(Resume(waiting))
        link.waiting.clear()
        if link.holds is not None:
            executor, link.holds = link.holds, None
            del executor.holders[link.id]
            if not executor.holders:
                effects.append(Resume(executor.id))
        return effects

    def _count_queue(self, link: Link, size: int) -> None:
        change = size - link.queued
        if change:
            link.queued = size
            self.queued += change
            owner = link.room.key.owner
            total = self._owner_queued.get(owner, 0) + change
            if total:
                self._owner_queued[owner] = total
            else:
                self._owner_queued.pop(owner, None)

    def _slowest(self, owner: str | None) -> Link:
        return max(
            (x for x in self._congested.values() if owner is None or x.room.key.owner == owner),
            key=lambda link: link.queued,
        )


def reset(stream: StreamId, reason: str) -> bytes:
    """The relay's own reset frame."""
    return wire.encode(wire.Frame(stream.decode(), wire.Reset(reason)))


def _routes(device: Link, host: Link, stream: StreamId) -> list[Effect]:
    return [Route(device.id, stream, host.id), Route(host.id, stream, device.id)]
