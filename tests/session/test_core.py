"""Channels and credit: who may open what, what stops whom, how errors travel."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import ProtocolError, Refused
from codexctl.session import core
from codexctl.session.core import (
    CREDIT_STEP,
    INITIAL_CREDIT,
    MAX_CHANNELS,
    MAX_CREDIT,
    Accepted,
    Closed,
    Credited,
    DataArrived,
    EofArrived,
    MessageArrived,
    Opened,
    Session,
    SessionClosed,
)
from codexctl.session.records import SessionOver
from codexctl.wire import channel as wire
from tests.session.pairs import deliver, sessions


def opened() -> tuple[Session, Session, int]:
    device, host = sessions()
    channel = device.open("exec", {"argv": ["true"]})
    assert deliver(device, host) == [Opened(channel, "exec", {"argv": ["true"]})]
    host.accept(channel, {"process": "p1"})
    assert deliver(host, device) == [Accepted(channel, {"process": "p1"})]
    return device, host, channel


def inject(source: Session, sink: Session, *frames: bytes) -> list[core.Event]:
    """Authentic frames that this end would never send itself."""
    source.flush(0.0)
    source.outbox.clear()
    source.records.send(b"".join(frames), 0.0)
    return deliver(source, sink)


def test_everything_a_channel_carries_arrives_in_order() -> None:
    device, host, channel = opened()
    device.data(channel, 0, b"in", 0.0)
    device.eof(channel, 0)
    device.message(channel, {"signal": "INT"})
    device.close(channel)
    assert deliver(device, host) == [
        DataArrived(channel, 0, b"in"),
        EofArrived(channel, 0),
        MessageArrived(channel, {"signal": "INT"}),
        Closed(channel, None),
    ]
    assert deliver(host, device) == []
    assert device.channels == host.channels == 0


def test_an_error_travels_with_its_hint_and_exit_code() -> None:
    device, host, channel = opened()
    host.close(channel, Refused("not here", hint="there"))
    (closed,) = deliver(host, device)
    assert isinstance(closed, Closed)
    assert closed.error is not None
    assert (closed.error.message, closed.error.hint, closed.error.exit_code) == (
        "not here",
        "there",
        126,
    )


def test_data_stops_at_the_credit_and_goes_on_when_it_is_given() -> None:
    device, host, channel = opened()
    block = bytes(INITIAL_CREDIT + 5)
    assert host.data(channel, 1, block, 0.0) == INITIAL_CREDIT
    assert host.sendable(channel) == 0
    events = deliver(host, device)
    size = sum(len(e.data) for e in events if isinstance(e, DataArrived))
    assert size == INITIAL_CREDIT
    device.consumed(channel, 1000)
    assert Credited(channel) not in deliver(device, host)
    device.consumed(channel, INITIAL_CREDIT - 1000)
    assert Credited(channel) in deliver(device, host)
    assert host.data(channel, 1, block[-5:], 0.0) == 5


def test_a_channel_that_is_consumed_gets_room_for_bulk_and_one_that_stalls_does_not() -> None:
    device, host, channel = opened()
    for _ in range(4):
        host.data(channel, 1, bytes(INITIAL_CREDIT // 4), 0.0)
        deliver(host, device)
        device.consumed(channel, INITIAL_CREDIT // 4)
        deliver(device, host)
    assert host._channels[channel].credit == INITIAL_CREDIT + core.BULK_CREDIT
    device.consumed(channel, CREDIT_STEP)
    deliver(device, host)
    assert host._channels[channel].credit == INITIAL_CREDIT + core.BULK_CREDIT + CREDIT_STEP


def test_one_stalled_channel_leaves_the_others_alone() -> None:
    device, host, stalled = opened()
    other = device.open("exec", {})
    deliver(device, host)
    host.data(stalled, 1, bytes(2 * INITIAL_CREDIT), 0.0)
    deliver(host, device)
    deliver(device, host)
    assert host.data(other, 1, b"quick", 0.0) == 5
    assert DataArrived(other, 1, b"quick") in deliver(host, device)


def test_credit_is_never_more_than_the_most() -> None:
    device, host, channel = opened()
    device.grant(channel, 100 << 20)
    deliver(device, host)
    device.grant(channel, 1)
    deliver(device, host)
    assert host._channels[channel].credit == MAX_CREDIT


def test_more_data_than_credit_ends_the_session() -> None:
    device, host, channel = opened()
    block = wire.encode_frame(wire.DATA, channel, 0, bytes(50_000))
    for _ in range(INITIAL_CREDIT // 50_000):
        inject(device, host, block)
    with pytest.raises(SessionOver, match="credit"):
        inject(device, host, block)


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (wire.encode_frame(wire.OPEN, 2, 0, b"{}"), "number of this end"),
        (wire.encode_frame(wire.OPEN, 1, 0, b"{}"), "opened twice"),
        (wire.encode_frame(wire.OPEN, 3, 0, b"[]"), "not a JSON object"),
        (wire.encode_frame(wire.OPEN, 3, 0, b'{"kind":1}'), "not a text"),
        (wire.encode_frame(wire.CREDIT, 1, 0, b"\xff\xff\xff\xff"), "credit sums"),
        (wire.encode_frame(wire.CREDIT, 1, 0, b"\xff"), "4 bytes"),
        (b"\x09", "header"),
    ],
)
def test_an_authentic_peer_that_breaks_the_protocol_ends_the_session(
    frame: bytes, sentence: str
) -> None:
    device, host, _ = opened()
    with pytest.raises(SessionOver, match=sentence):
        inject(device, host, frame)


def test_frames_for_unknown_and_closed_channels_are_ignored() -> None:
    device, host, channel = opened()
    device.close(channel)
    deliver(device, host)
    deliver(host, device)
    stale = [
        wire.encode_frame(kind, number, 0, b"{}")
        for kind in (wire.DATA, wire.EOF, wire.MESSAGE, wire.OPENED, wire.CLOSE)
        for number in (channel, 99)
    ]
    assert inject(device, host, *stale) == []


def test_channels_are_bounded_on_both_sides() -> None:
    device, host = sessions()
    for _ in range(MAX_CHANNELS):
        device.open("exec", {})
    with pytest.raises(ProtocolError, match="at most"):
        device.open("exec", {})
    assert len(deliver(device, host)) == MAX_CHANNELS
    frame = wire.encode_frame(wire.OPEN, 2 * MAX_CHANNELS + 1, 0, b"{}")
    with pytest.raises(SessionOver, match="more than"):
        inject(device, host, frame)


def test_a_closed_session_says_why_and_sends_nothing_more() -> None:
    device, host, channel = opened()
    host.end(Refused("revoked"))
    (closed,) = deliver(host, device)
    assert isinstance(closed, SessionClosed)
    assert str(closed.error) == "revoked"
    host.data(channel, 1, b"late", 0.0)
    assert deliver(host, device) == []


def test_the_host_opens_even_channels() -> None:
    device, host = sessions()
    number = host.open("event", {})
    assert number == 2
    assert deliver(host, device) == [Opened(2, "event", {})]


def test_what_gathers_beyond_a_record_is_split_at_frames() -> None:
    device, host, channel = opened()
    for number in range(200):
        device.message(channel, {"n": number, "pad": "x" * 700})
    values = [e.value["n"] for e in deliver(device, host) if isinstance(e, MessageArrived)]
    assert values == list(range(200))


def test_a_message_too_long_for_a_record_is_the_callers_mistake() -> None:
    device, _, channel = opened()
    with pytest.raises(ProtocolError, match="too long"):
        device.message(channel, {"x": "y" * wire.MAX_RECORD_BYTES})


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=70_000)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_streams_arrive_whole_whatever_their_sizes(parts: list[tuple[int, bytes]]) -> None:
    device, host, channel = opened()
    sent: dict[int, bytes] = {}
    got: dict[int, bytes] = {}
    for stream, data in parts:
        assert host.data(channel, stream, data, 0.0) == len(data)
        sent[stream] = sent.get(stream, b"") + data
        for event in deliver(host, device):
            if isinstance(event, DataArrived):
                got[event.stream] = got.get(event.stream, b"") + bytes(event.data)
                device.consumed(channel, len(event.data))
        deliver(device, host)
    assert {k: v for k, v in sent.items() if v} == got
