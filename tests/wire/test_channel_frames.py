"""Channel frames: round trips, limits, hostile bytes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import CodexctlError, ProtocolError, Refused
from codexctl.wire import channel
from codexctl.wire.channel import ChannelFrame

VECTORS = json.loads((Path(channel.__file__).parent / "vectors.json").read_text())

channel_frames = st.builds(
    ChannelFrame,
    st.integers(channel.OPEN, channel.MESSAGE),
    st.integers(0, channel.MAX_CHANNEL),
    st.integers(0, 2),
    st.binary(max_size=200),
)


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda v: v["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    raw = bytes.fromhex(vector["hex"])
    found = [
        {"type": f.type, "channel": f.channel, "stream": f.stream, "content": f.content.hex()}
        for f in channel.decode_record(raw)
    ]
    assert found == vector["frames"]


@given(st.lists(channel_frames, max_size=10))
@settings(max_examples=150, deadline=None)
def test_records_survive(frames: list[ChannelFrame]) -> None:
    raw = b"".join(
        channel.encode_frame(f.type, f.channel, f.stream, bytes(f.content)) for f in frames
    )
    assert channel.decode_record(raw) == frames


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise_never_breaks_the_parser(raw: bytes) -> None:
    for parse in (channel.decode_record, channel.decode_json, channel.decode_credit):
        with contextlib.suppress(ProtocolError):
            parse(raw)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\x04", "header"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x01", "unknown type 0"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x01", "unknown type 8"),
        (b"\x04\x03\x00\x00\x00\x00\x00\x01", "unknown stream 3"),
        (b"\x04\x00\x00\x05\x00\x00\x00\x01abc", "shorter"),
        (bytes(channel.MAX_RECORD_BYTES + 1), "over 61440"),
    ],
)
def test_each_broken_rule_is_named(raw: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        channel.decode_record(raw)


def test_json_must_be_an_object_of_bounded_depth() -> None:
    for raw in (b"[1]", b"nonsense", b"\xff", b"[" * 100_000):
        with pytest.raises(ProtocolError):
            channel.decode_json(raw)


def test_an_error_always_fits_a_frame() -> None:
    error: CodexctlError = Refused("é" * 100_000, hint="h" * 100_000)
    content = channel.encode_error(error)
    assert len(content) < channel.MAX_CONTENT_BYTES
    assert channel.decode_json(content)["exit_code"] == 126
    with pytest.raises(ValueError, match="at most"):
        channel.encode_frame(channel.DATA, 1, 0, bytes(channel.MAX_CONTENT_BYTES + 1))
