"""What the relay's hot path accepts unseen: only messages that name one stream and end with a body.

Protobuf's own parser is the judge: the stream that an end would see is the one the relay routed by.
"""

from __future__ import annotations

import uuid

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import ProtocolError
from codexctl.relay.link import PREFIX_BYTES, ends_with_body
from codexctl.wire import relay as wire

STREAM = str(uuid.UUID(int=7, version=4))
OTHER = str(uuid.UUID(int=8, version=4))


def _frame_class() -> type:
    """A message with the frame's version and stream id, as any protobuf library would read them."""
    file = descriptor_pb2.FileDescriptorProto(name="f.proto", syntax="proto3")
    message = file.message_type.add(name="F")
    message.field.add(name="version", number=1, type=13, label=1)
    message.field.add(name="stream_id", number=2, type=9, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: type = message_factory.GetMessageClass(pool.FindMessageTypeByName("F"))
    return found


FRAME = _frame_class()


def accepted(message: bytes) -> bool:
    """As Link.on_ws_frame decides, for a link with a route of STREAM."""
    view = memoryview(message)
    return bytes(view[:PREFIX_BYTES]) == wire.prefix(STREAM) and ends_with_body(view, PREFIX_BYTES)


bodies = st.one_of(
    st.builds(wire.Data, st.integers(0, 2**32 - 1), st.binary(max_size=300)),
    st.just(wire.Ack()),
    st.builds(wire.Resume, st.integers(0, 2**32 - 1)),
    st.builds(wire.Reset, st.text(max_size=30)),
    st.just(wire.Heartbeat()),
    st.builds(wire.Handshake, st.binary(max_size=300)),
)


@given(body=bodies, ack=st.integers(0, 2**32 - 1), bits=st.integers(0, 2**32 - 1))
def test_every_frame_of_the_codec_takes_the_quick_way(body: wire.Body, ack: int, bits: int) -> None:
    assert accepted(wire.encode(wire.Frame(STREAM, body, ack, bits)))


@settings(max_examples=300, deadline=None)
@given(
    tail=st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(
                [
                    wire.prefix(OTHER),
                    wire.prefix(OTHER)[2:],
                    b"\x2a\x02\x08\x01",
                    b"\x2a\x00",
                    b"\x18\x05",
                    b"\x18\x85\x80\x80\x80\x00",
                    b"\x2a\x80\x00",
                    b"\x2a" + bytes((len(wire.prefix(OTHER)),)) + wire.prefix(OTHER),
                ]
            ),
        ),
        max_size=5,
    )
)
def test_what_takes_the_quick_way_names_one_stream(tail: list[bytes]) -> None:
    message = wire.prefix(STREAM) + b"".join(tail)
    if accepted(message):
        parsed = FRAME.FromString(message)  # type: ignore[attr-defined]
        assert parsed.stream_id == STREAM


@pytest.mark.parametrize("body", [b"\x32\x00", b"\x2a\x06\x18\x01\x22\x02hi"])
def test_a_second_stream_id_is_refused_by_both_ways(body: bytes) -> None:
    message = wire.prefix(STREAM) + body + wire.prefix(OTHER)[2:]
    assert not accepted(message)
    with pytest.raises(ProtocolError):
        wire.decode(message)


@pytest.mark.parametrize("length", [1, 35, 37, 128])
def test_other_lengths_of_stream_ids_go_the_slow_way(length: int) -> None:
    message = wire.encode(wire.Frame("s" * length, wire.Data(0, b"x" * 200)))
    # No route has a key that the first 40 bytes of such a message could equal.
    assert message[:PREFIX_BYTES] != wire.prefix("s" * length)
    assert wire.decode(message).stream_id == "s" * length
