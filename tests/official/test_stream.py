"""The official record stream by itself: order, sizes, both ways of counting, what ends it."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client.executor.environment import parse_environment
from codexctl.client.executor.stream import (
    ACK_RECORDS,
    AHEAD_RECORDS,
    MAX_MESSAGE_BYTES,
    RECORD_BYTES,
    ExecutorStream,
    StreamReset,
)
from codexctl.errors import ProtocolError
from codexctl.noise.hybrid import HybridInitiator, HybridResponder
from codexctl.noise.transport import Transport
from codexctl.wire import relay
from tests.noise.make_hybrid_vectors import key

STREAM = "5f0c6c2e-0000-4000-8000-000000000000"
DEVICE, HOST = key("device"), key("host")


class Peer:
    """An executor as simple as it can be; counts its records from `base`."""

    def __init__(self, base: int = 0) -> None:
        initiator, responder = (
            HybridInitiator(DEVICE, HOST.public, b""),
            HybridResponder(HOST, b""),
        )
        responder.read_first(initiator.write_first())
        second, self.transport = responder.write_second()
        ours: Transport = initiator.read_second(second)[1]
        self.stream = ExecutorStream(STREAM, ours)
        self._seq = base

    def records(self, content: bytes, size: int = RECORD_BYTES) -> list[bytes]:
        """A byte stream as frames."""
        frames = []
        for start in range(0, len(content), size):
            payload = self.transport.encrypt(content[start : start + size])
            frames.append(relay.encode(relay.Frame(STREAM, relay.Data(self._seq, payload))))
            self._seq += 1
        return frames

    def received(self, expected_base: int = 0) -> list[dict[str, Any]]:
        """What the stream has sent, decrypted in order; its acks are left out."""
        content = b""
        seq = expected_base
        for message in self.stream.outbox:
            body = relay.decode(message).body
            if isinstance(body, relay.Data):
                assert body.seq == seq
                seq += 1
                content += self.transport.decrypt(body.payload)
        self.stream.outbox.clear()
        found = []
        while content:
            (size,) = struct.unpack(">I", content[:4])
            found.append(json.loads(content[4 : 4 + size]))
            content = content[4 + size :]
        return found


def framed(*messages: dict[str, Any]) -> bytes:
    parts = [json.dumps(message).encode() for message in messages]
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


MESSAGES = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 9), "result": st.text(max_size=300)}),
    min_size=1,
    max_size=6,
)


@given(messages=MESSAGES, size=st.integers(1, 200), base=st.sampled_from([0, 1]), data=st.data())
@settings(max_examples=40, deadline=None)
def test_messages_arrive_in_order_however_their_records_come(
    messages: list[dict[str, Any]], size: int, base: int, data: st.DataObject
) -> None:
    peer = Peer(base)
    first, *rest = peer.records(framed(*messages), size)
    found = peer.stream.receive(first)
    # Within the window any order, and anything may come twice.
    while rest:
        window = rest[: AHEAD_RECORDS - 1]
        rest = rest[len(window) :]
        order = data.draw(st.permutations(window))
        for record in [*order, *order[:3]]:
            found += peer.stream.receive(record)
    assert found == messages


@given(messages=MESSAGES)
@settings(max_examples=20, deadline=None)
def test_what_is_sent_is_read_by_the_other_end(messages: list[dict[str, Any]]) -> None:
    peer = Peer()
    for message in messages:
        peer.stream.send(message)
    assert peer.received() == messages


def test_a_long_message_is_cut_into_records() -> None:
    peer = Peer()
    message = {"id": 1, "params": "x" * (3 * RECORD_BYTES)}
    peer.stream.send(message)
    assert len(peer.stream.outbox) == 4
    assert all(len(frame) <= 256 * 1024 for frame in peer.stream.outbox)
    assert peer.received() == [message]
    assert peer.stream.receive(peer.records(framed(message))[0]) == []


def test_an_executor_that_counts_from_one_gets_the_same_bytes_again() -> None:
    peer = Peer(base=1)
    peer.stream.send({"id": 1})
    ignored = [relay.decode(message).body for message in peer.stream.outbox]
    peer.stream.outbox.clear()
    peer.stream.count_from_one()
    again = [relay.decode(message).body for message in peer.stream.outbox]
    assert isinstance(ignored[0], relay.Data)
    assert isinstance(again[0], relay.Data)
    assert (ignored[0].seq, again[0].seq) == (0, 1)
    assert bytes(ignored[0].payload) == bytes(again[0].payload)
    assert peer.received(expected_base=1) == [{"id": 1}]
    (answer,) = peer.records(framed({"id": 1}))
    assert peer.stream.receive(answer) == [{"id": 1}]
    peer.stream.acknowledge()
    assert relay.decode(peer.stream.outbox[0]).ack == 1


def test_acks_come_every_few_records() -> None:
    peer = Peer()
    for record in peer.records(framed({"x": "y" * 100}), 10)[:ACK_RECORDS]:
        peer.stream.receive(record)
    (ack,) = peer.stream.outbox
    assert relay.decode(ack).ack == ACK_RECORDS
    peer.stream.acknowledge()
    assert len(peer.stream.outbox) == 1


@pytest.mark.parametrize(
    "content",
    [struct.pack(">I", 0), struct.pack(">I", MAX_MESSAGE_BYTES + 1), framed({})[:4] + b"[]",
     struct.pack(">I", 3) + b"{x}", struct.pack(">I", 1) + b"\xff"],
    ids=["empty", "too long", "no object", "no JSON", "no UTF-8"],
)  # fmt: skip
def test_what_is_no_message_ends_the_stream(content: bytes) -> None:
    peer = Peer()
    (record,) = peer.records(content)
    with pytest.raises(ProtocolError):
        peer.stream.receive(record)


def test_gaps_resets_and_second_handshakes_end_the_stream() -> None:
    peer = Peer()
    records = peer.records(bytes(AHEAD_RECORDS + 3), 1)
    peer.stream.receive(records[0])
    with pytest.raises(ProtocolError, match="lost a record"):
        peer.stream.receive(records[-1])
    for body, error in (
        (relay.Reset("why"), StreamReset),
        (relay.Handshake(b"x"), ProtocolError),
        (relay.Data(7, bytes(20)), ProtocolError),
    ):
        with pytest.raises(error):
            Peer().stream.receive(relay.encode(relay.Frame(STREAM, body)))
    other = STREAM.replace("5", "6")
    assert Peer().stream.receive(relay.encode(relay.Frame(other, relay.Reset("x")))) == []
    assert Peer().stream.receive(relay.encode(relay.Frame(STREAM, relay.HEARTBEAT))) == []


def test_what_an_executor_says_of_itself_may_be_anything() -> None:
    for info in (None, [], {}, {"shell": 5, "cwd": None, "capabilities": "x"}):
        found = parse_environment(info)
        assert (found.version, found.cwd, found.writes_blocks) == ("", "/", False)
    old = parse_environment({"cwd": "/home/me", "shell": {"path": "/bin/zsh"}})
    assert (old.urls, old.cwd, old.shell) == (False, "/home/me", "/bin/zsh")
    assert parse_environment({"cwd": "file:///a%20b"}).cwd == "/a b"
