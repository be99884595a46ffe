"""The output ring against a model: nothing in between is lost, what is dropped is counted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.host.ring import OutputRing

CHUNKS = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=40)), max_size=60
)


@given(CHUNKS, st.integers(1, 200), st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_against_a_model(chunks: list[tuple[int, bytes]], limit: int, offset: int) -> None:
    ring = OutputRing(limit)
    model: list[tuple[int, int]] = []
    for stream, data in chunks:
        ring.append(stream, data)
        model += [(stream, byte) for byte in data]
    offset = min(offset, len(model))
    dropped, kept = ring.since(offset)
    assert ring.end == len(model)
    assert [(s, byte) for s, data in kept for byte in data] == model[offset + dropped :]
    # Joined chunks may be larger than one that was appended, never than the join's bound.
    assert min(limit, len(model)) <= len(ring) <= limit + 4096
    if offset >= len(model) - limit:
        assert dropped == 0


def test_small_chunks_are_joined() -> None:
    ring = OutputRing()
    for _ in range(10_000):
        ring.append(1, b"x")
    dropped, kept = ring.since(0)
    assert dropped == 0
    assert len(kept) == 3


def test_clear_keeps_the_count() -> None:
    ring = OutputRing()
    ring.append(1, b"abc")
    ring.clear()
    assert (len(ring), ring.end, ring.since(1)) == (0, 3, (2, []))
