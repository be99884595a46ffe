"""The relay frame codec against its vectors, protobuf's own parser, and hostile bytes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import ProtocolError
from codexctl.wire import relay
from codexctl.wire.relay import Ack, Data, Frame, Handshake, Heartbeat, Reset, Resume

VECTORS = json.loads((Path(relay.__file__).parent / "vectors.json").read_text())


def _schema() -> Any:
    """RelayMessageFrame as protobuf itself builds it from PROTOCOL.md's table."""
    file = descriptor_pb2.FileDescriptorProto(name="relay.proto", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    nested = {
        "Data": [("seq", 1, 13), ("segment_index", 2, 13), ("segment_count", 3, 13),
                 ("payload", 4, 12)],
        "Ack": [],
        "Resume": [("next_seq", 1, 13)],
        "Reset": [("reason", 1, 9)],
        "Heartbeat": [],
        "Handshake": [("payload", 1, 12)],
    }  # fmt: skip
    for name, fields in nested.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            message.field.add(name=field, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    frame = file.message_type.add(name="RelayMessageFrame")
    for field, number, kind in [("version", 1, 13), ("stream_id", 2, 9), ("ack", 3, 13),
                                ("ack_bits", 4, 13)]:  # fmt: skip
        frame.field.add(name=field, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    frame.oneof_decl.add(name="body")
    for number, name in enumerate(nested, start=5):
        frame.field.add(
            name=f"{name.lower()}_body" if name == "Ack" else name.lower(),
            number=number,
            type=kinds.TYPE_MESSAGE,
            type_name=f".{name}",
            label=kinds.LABEL_OPTIONAL,
            oneof_index=0,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("RelayMessageFrame"))


RelayMessageFrame = _schema()


def _field(body: relay.Body) -> str:
    # Two fields cannot share a name here; on the wire only the numbers count.
    name = type(body).__name__.lower()
    return "ack_body" if name == "ack" else name


uint32 = st.integers(0, relay.MAX_UINT32)
bodies = st.one_of(
    st.tuples(uint32, st.binary(max_size=300)).map(lambda pair: Data(*pair)),
    st.just(Ack()),
    st.builds(Resume, uint32),
    st.builds(Reset, st.text(max_size=60)),
    st.just(Heartbeat()),
    st.builds(Handshake, st.binary(max_size=300)),
)
stream_ids = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=128)
sent_frames = st.builds(Frame, stream_ids, bodies, uint32, uint32)


@pytest.mark.parametrize("vector", VECTORS["relay_frames"], ids=lambda v: v["name"])
def test_vectors_encode_and_decode(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["hex"])
    frame = relay.decode(raw)
    assert type(frame.body).__name__.lower() == vector["body"]
    assert frame.stream_id == vector["stream_id"]
    assert relay.encode(frame) == raw


@given(sent_frames)
@settings(max_examples=150, deadline=None)
def test_every_frame_survives_and_protobuf_reads_the_same(frame: Frame) -> None:
    raw = relay.encode(frame)
    assert relay.decode(raw) == frame
    assert relay.decode(memoryview(raw)) == frame
    assert relay.peek_stream_id(raw) == frame.stream_id.encode()
    parsed = RelayMessageFrame.FromString(raw)
    assert (parsed.version, parsed.stream_id) == (1, frame.stream_id)
    assert (parsed.ack, parsed.ack_bits) == (frame.ack, frame.ack_bits)
    assert parsed.WhichOneof("body") == _field(frame.body)
    if isinstance(frame.body, Data):
        assert (parsed.data.seq, parsed.data.payload) == (frame.body.seq, frame.body.payload)
        assert (parsed.data.segment_index, parsed.data.segment_count) == (0, 1)


@given(sent_frames)
@settings(max_examples=100, deadline=None)
def test_what_protobuf_writes_is_read(frame: Frame) -> None:
    message = RelayMessageFrame(
        version=1, stream_id=frame.stream_id, ack=frame.ack, ack_bits=frame.ack_bits
    )
    body = frame.body
    if isinstance(body, Data):
        message.data.seq, message.data.payload = body.seq, bytes(body.payload)
        message.data.segment_count = 1
    elif isinstance(body, Resume):
        message.resume.next_seq = body.next_seq
        message.resume.SetInParent()
    elif isinstance(body, Reset):
        message.reset.reason = body.reason
        message.reset.SetInParent()
    elif isinstance(body, Handshake):
        message.handshake.payload = bytes(body.payload)
        message.handshake.SetInParent()
    else:
        getattr(message, _field(body)).SetInParent()
    raw = message.SerializeToString()
    assert relay.decode(raw) == frame
    assert relay.peek_stream_id(raw) == frame.stream_id.encode()


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_or_read_but_never_breaks(raw: bytes) -> None:
    for parse in (relay.decode, relay.peek_stream_id):
        with contextlib.suppress(ProtocolError):
            parse(raw)


@given(sent_frames, st.data())
@settings(max_examples=150, deadline=None)
def test_a_cut_or_flipped_frame_never_breaks_the_parser(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(relay.encode(frame))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.integers(0, len(raw)))
    for candidate in (bytes(raw), bytes(raw[:end])):
        with contextlib.suppress(ProtocolError):
            relay.decode(candidate)


@given(sent_frames.filter(lambda f: isinstance(f.body, Data)))
@settings(max_examples=80, deadline=None)
def test_the_quick_way_through_data_equals_the_long_one(frame: Frame) -> None:
    raw = relay.encode(frame._replace(ack=0, ack_bits=0))
    start = len(relay.prefix(frame.stream_id)) + 1
    assert relay.decode_data(raw, start) == relay.decode(raw).body


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "version 0"),
        (b"\x08\x02\x12\x01a\x4a\x00", "version 2"),
        (b"\x08\x01\x4a\x00", "no stream id"),
        (b"\x08\x01\x12\x01a", "no body"),
        (b"\x08\x01\x12\x01a\x4a\x00\x32\x00", "two bodies"),
        (b"\x08\x01\x12\x02\xff\xfe\x4a\x00", "not UTF-8"),
        (b"\x08\x01\x12\x81\x01" + b"a" * 129 + b"\x4a\x00", "over 128 bytes"),
        (b"\x08\x01\x12\x05a", "shorter"),
        (b"\x08\x01\x12\x01a\x2a\x04\x10\x01\x18\x02", "segmented"),
        (b"\x0a\x01\x01", "wrong type"),
        (b"\x08" + b"\xff" * 11, "ten bytes"),
        (b"\x00\x00", "impossible"),
        (b"\x08\x01\x12\x01a\x18\xff\xff\xff\xff\x1f\x4a\x00", "over 32 bits"),
        (b"\x0b", "unknown type"),
    ],
)
def test_each_broken_rule_is_named(raw: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        relay.decode(raw)


def test_limits_hold_at_their_edges() -> None:
    payload = bytes(relay.MAX_PAYLOAD_BYTES)
    frame = Frame("s", Data(relay.MAX_UINT32, payload))
    assert relay.decode(relay.encode(frame)) == frame
    with pytest.raises(ProtocolError, match="payload is over"):
        relay.decode(relay.encode(Frame("s", Data(0, payload + b"x"))))
    with pytest.raises(ProtocolError, match="relay frame is over"):
        relay.decode(bytes(relay.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ValueError, match="1 to 128"):
        relay.prefix("x" * 129)


def test_unknown_fields_are_skipped_and_too_many_refused() -> None:
    head = b"\x08\x01\x12\x01a"
    unknown = b"\xf8\x01\x07" + b"\xfd\x01\x01\x02\x03\x04" + b"\xf9\x01" + bytes(8)
    assert relay.decode(head + unknown + b"\x4a\x00").body == Heartbeat()
    with pytest.raises(ProtocolError, match="fields"):
        relay.decode(head + b"\xf8\x01\x07" * 40 + b"\x4a\x00")
