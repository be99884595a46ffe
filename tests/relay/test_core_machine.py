"""The rooms under any order of events: no frame crosses owners or streams, and every bound holds.

The machine plays the adapter: it performs effects on its own tables and checks them.
"""

from __future__ import annotations

import uuid

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from codexctl.relay import effects as fx
from codexctl.relay.core import TELL_AGAIN_S, Rooms
from codexctl.relay.limits import Limits
from codexctl.relay.room import NEVER
from codexctl.wire import relay as wire

LIMITS = Limits(
    links_an_owner_token=4,
    links_a_device_token=2,
    streams_an_owner_token=3,
    streams_a_device_token=2,
    streams_an_executor=2,
    queue_bytes_a_link=100,
    queue_bytes_an_owner=150,
    queue_bytes=220,
    handshakes_a_second=1.0,
    handshakes_at_once=6,
    claim_kept_s=20,
)
STREAMS = [str(uuid.UUID(int=number, version=4)).encode() for number in range(4)]
ENVIRONMENTS = ["box", "den"]  # both owners have environments of these names
TOKENS = [
    fx.Principal("tok_a1", "anna", fx.OWNER, "", 60),
    fx.Principal("tok_a2", "anna", fx.OWNER, "", 10_000),
    fx.Principal("tok_ad", "anna", fx.DEVICE, "box", 10_000),
    fx.Principal("tok_b1", "bert", fx.OWNER, "", 10_000),
    fx.Principal("tok_bd", "bert", fx.DEVICE, "box", 90),
]
REASONS = {fx.PEER_GONE, fx.PEER_SLOW, fx.STREAM_TAKEN, fx.LIMIT, fx.EXECUTOR_FULL}


class Machine(RuleBasedStateMachine):
    """An adapter made of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms = Rooms(LIMITS)
        self.now = 0.0
        self.next_link = 1
        self.room: dict[int, fx.RoomKey] = {}  # of every open link
        self.token: dict[int, fx.Principal] = {}
        self.host: set[int] = set()
        self.official: set[int] = set()  # those of the hosts that have no windows
        self.routes: dict[int, dict[bytes, int]] = {}
        self.paused: set[int] = set()
        self.queued: dict[int, int] = {}  # of congested links
        self.claims: dict[tuple[fx.RoomKey, bytes], str] = {}
        self.told: dict[tuple[int, str], float] = {}

    # Performing

    def perform(self, effects: list[fx.Effect]) -> list[tuple[int, str, str]]:
        """Do as told; answers the resets as (link, stream, reason)."""
        resets = []
        for effect in effects:
            assert effect.link in self.room, f"{effect} is about a link that is not open"
            if isinstance(effect, fx.Send):
                frame = wire.decode(effect.message)
                assert isinstance(frame.body, wire.Reset)
                assert frame.body.reason in REASONS
                resets.append((effect.link, frame.stream_id, frame.body.reason))
                self.told[effect.link, frame.stream_id] = self.now
            elif isinstance(effect, fx.Route):
                assert effect.to in self.room
                self.routes[effect.link][effect.stream] = effect.to
            elif isinstance(effect, fx.Unroute):
                self.routes[effect.link].pop(effect.stream, None)
            elif isinstance(effect, fx.Pause):
                assert effect.link not in self.paused
                self.paused.add(effect.link)
            elif isinstance(effect, fx.Resume):
                self.paused.remove(effect.link)
            else:
                self.gone(effect.link)
        for key, stream, token in self.rooms.take_changes():
            if token is None:
                self.claims.pop((key, stream), None)
            else:
                self.claims[key, stream] = token
        return resets

    def gone(self, link: int) -> None:
        del self.room[link], self.token[link], self.routes[link]
        self.host.discard(link)
        self.official.discard(link)
        self.paused.discard(link)
        self.queued.pop(link, None)

    def opened(self, token: fx.Principal, environment: str) -> int | None:
        if token.expires_at <= self.now or not self.rooms.may_open(token):
            return None
        link, self.next_link = self.next_link, self.next_link + 1
        self.room[link] = fx.RoomKey(token.owner, environment)
        self.token[link] = token
        self.routes[link] = {}
        return link

    def any_link(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.room)), label="link")

    # Events

    @initialize(environments=st.lists(st.sampled_from(ENVIRONMENTS), min_size=1, max_size=2))
    def people_are_at_work(self, environments: list[str]) -> None:
        """Hosts, devices and claims are there from the start, so that little steps go far."""
        for environment in environments:
            self.host_opens(TOKENS[1], environment, "reg_1", official=False)
            self.host_opens(TOKENS[3], environment, "reg_1", official=True)
            for token in TOKENS:
                self.device_opens(token, environment)
            for link in sorted(set(self.room) - self.host):
                stream = STREAMS[link % len(STREAMS)]
                self.perform(self.rooms.unrouted(link, stream, self.now))

    @rule(
        token=st.sampled_from([t for t in TOKENS if t.kind == fx.OWNER]),
        environment=st.sampled_from(ENVIRONMENTS),
        registration=st.sampled_from(["reg_1", "reg_2"]),
        official=st.booleans(),
    )
    def host_opens(
        self, token: fx.Principal, environment: str, registration: str, official: bool
    ) -> None:
        link = self.opened(token, environment)
        if link is not None:
            self.host.add(link)
            if official:
                self.official.add(link)
            self.perform(
                self.rooms.host_opened(
                    link, token, environment, registration, self.now, official=official
                )
            )
            assert self.rooms.online(fx.RoomKey(token.owner, environment))

    @rule(token=st.sampled_from(TOKENS), environment=st.sampled_from(ENVIRONMENTS))
    def device_opens(self, token: fx.Principal, environment: str) -> None:
        if token.environment_id not in ("", environment):
            return
        link = self.opened(token, environment)
        if link is not None:
            self.perform(self.rooms.device_opened(link, token, environment, self.now))

    @precondition(lambda self: self.room)
    @rule(data=st.data(), stream=st.sampled_from(STREAMS))
    def frame_comes(self, data: st.DataObject, stream: bytes) -> None:
        link = self.any_link(data)
        if stream in self.routes[link]:
            return  # the adapter forwards it without asking
        key = self.room[link]
        claimed_by = self.claims.get((key, stream))
        told = self.told.get((link, stream.decode()), NEVER)
        served = {host: len(self.routes[host]) for host in self.official}
        resets = self.perform(self.rooms.unrouted(link, stream, self.now))
        to = self.routes[link].get(stream)
        if to is None:
            # A frame that goes nowhere is answered, to its sender alone, unless that just happened.
            answered = [(at, name) for at, name, _ in resets]
            if answered or self.now - told >= TELL_AGAIN_S:
                assert answered == [(link, stream.decode())]
        else:
            assert not resets
            assert self.claims[key, stream] == self.token[link].token_id
            if to in self.official:
                assert len(self.routes[to]) <= max(LIMITS.streams_an_executor, served[to])
        if link not in self.host and claimed_by not in (None, self.token[link].token_id):
            assert resets[0][2] == fx.STREAM_TAKEN
            assert self.claims[key, stream] == claimed_by

    @precondition(lambda self: self.room)
    @rule(data=st.data())
    def link_leaves(self, data: st.DataObject) -> None:
        link = self.any_link(data)
        told = set(self.routes[link].values())
        self.paused.discard(link)
        effects = self.rooms.left(link, self.now)
        # The core knows that it has gone: nothing is to be done about it.
        assert all(effect.link != link for effect in effects)
        resets = self.perform(effects)
        self.gone(link)
        assert {at for at, _, _ in resets} == told
        assert all(reason == fx.PEER_GONE for _, _, reason in resets)

    @precondition(lambda self: any(self.routes.values()))
    @rule(data=st.data(), size=st.integers(1, 130))
    def frame_goes_to_a_congested_link(self, data: st.DataObject, size: int) -> None:
        pairs = sorted((a, b) for a, routes in self.routes.items() for b in routes.values())
        link, to = data.draw(st.sampled_from(pairs), label="route")
        self.queued[to] = size
        self.perform(self.rooms.pressed(link, to, size, self.now))
        if to in self.host and to in self.room and link in self.room:
            assert link in self.paused
        if link in self.official and to in self.room:
            assert link in self.paused
        assert link not in self.host - self.official or link not in self.paused

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def socket_takes_its_queue(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(sorted(self.queued)), label="link")
        del self.queued[link]
        self.perform(self.rooms.relieved(link))

    @rule(token=st.sampled_from(TOKENS))
    def token_is_revoked(self, token: fx.Principal) -> None:
        self.perform(self.rooms.token_ended(token.token_id, fx.TOKEN_REVOKED, self.now))
        assert token.token_id not in {one.token_id for one in self.token.values()}
        assert token.token_id not in self.claims.values()

    @rule(
        owner=st.sampled_from(["anna", "bert"]),
        environment=st.sampled_from(ENVIRONMENTS),
        registration=st.sampled_from(["reg_1", "reg_2"]),
    )
    def key_changes(self, owner: str, environment: str, registration: str) -> None:
        key = fx.RoomKey(owner, environment)
        self.perform(self.rooms.registration_replaced(key, registration, self.now))

    @rule(seconds=st.sampled_from([0.5, 5.0, 21.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.rooms.ticked(self.now))
        assert all(token.expires_at > self.now for token in self.token.values())
        if seconds > LIMITS.hold_executor_s:
            assert not self.paused & self.host, "an executor is held for ever"

    @rule()
    def relay_drains(self) -> None:
        self.perform(self.rooms.drained(self.now))
        assert not self.room

    # What always holds

    @invariant()
    def routes_stay_in_their_room_and_stream(self) -> None:
        for link, routes in self.routes.items():
            for stream, to in routes.items():
                assert to in self.room, "a route leads to a link that is gone"
                assert self.room[to] == self.room[link]
                assert (link in self.host) != (to in self.host)
                device = to if link in self.host else link
                assert self.claims[self.room[link], stream] == self.token[device].token_id
                assert self.routes[to][stream] == link, "a route has a way back"

    @invariant()
    def a_room_has_one_host(self) -> None:
        rooms = [self.room[link] for link in self.host]
        assert len(rooms) == len(set(rooms))

    @invariant()
    def only_who_sends_to_somebody_congested_is_paused(self) -> None:
        for link in self.paused:
            assert link not in self.host - self.official
            others = set(self.room) - self.host if link in self.host else self.host
            assert any(to in self.queued for to in others if self.room[to] == self.room[link]), (
                "nobody would ever resume this link"
            )

    @invariant()
    def bounds_hold(self) -> None:
        total = sum(self.queued.values())
        assert self.rooms.queued == total <= LIMITS.queue_bytes
        for owner in ("anna", "bert"):
            of_owner = [n for link, n in self.queued.items() if self.room[link].owner == owner]
            assert sum(of_owner) <= LIMITS.queue_bytes_an_owner
        for link, queued in self.queued.items():
            assert link in self.host or queued <= LIMITS.queue_bytes_a_link
        for token in TOKENS:
            owners = token.kind == fx.OWNER
            links = sum(one is token for one in self.token.values())
            streams = sum(one == token.token_id for one in self.claims.values())
            assert links <= (LIMITS.links_an_owner_token if owners else LIMITS.links_a_device_token)
            assert streams <= (
                LIMITS.streams_an_owner_token if owners else LIMITS.streams_a_device_token
            )

    def teardown(self) -> None:
        # When everybody has left and time has passed, nothing is remembered.
        for link in sorted(self.room):
            self.rooms.left(link, self.now)
        self.rooms.ticked(self.now + 1000)
        self.rooms.ticked(self.now + 1001)
        assert self.rooms.counts() == dict.fromkeys(self.rooms.counts(), 0)
        assert self.rooms.remembered() == 0


TestRooms = Machine.TestCase
TestRooms.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
