"""Two records, a device that repeats, forgets and delays: always one owner, always a way out."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.agent.handoff import core
from codexctl.agent.handoff.core import SourceRecord, TargetRecord
from codexctl.errors import Refused

COMMIT_SEAL, UNDO_SEAL, READY_SEAL = "c" * 64, "u" * 64, "r" * 64


class World:
    """Both journals, and every word that was ever revealed to the device."""

    def __init__(self) -> None:
        self.source: SourceRecord | None = None
        self.target: TargetRecord | None = None
        self.words: set[str] = {"", "guess"}

    # Each is one atomic journal write, as a host does it; Refused changes nothing.

    def reserve(self) -> None:
        if self.target is None:
            self.target = TargetRecord("h", "t", core.RESERVED, READY_SEAL)

    def freeze(self) -> None:
        if self.source is None and self.target is not None:
            lock = core.lock_of(READY_SEAL)
            self.source = SourceRecord("h", "t", core.FROZEN, COMMIT_SEAL, UNDO_SEAL, lock)

    def receive(self) -> None:
        if self.source is not None and self.target is not None:
            locks = self.source.locks
            self.target = core.receiving(self.target, locks["commit"], locks["undo"])

    def restore(self) -> None:
        if self.target is not None:
            self.target = core.ready(self.target)
            self.words.add(core.ready_seal(self.target))

    def commit(self, word: str) -> None:
        if self.source is not None:
            self.source = core.committed(self.source, word)
            self.words.add(core.commit_seal(self.source))

    def own(self, word: str) -> None:
        if self.target is not None:
            self.target = core.owned(self.target, word)

    def retire(self) -> None:
        if self.source is not None:
            self.source = core.retired(self.source)

    def undo(self) -> None:
        if self.source is not None:
            self.source = core.undone(self.source)
            self.words.add(core.undo_seal(self.source))

    def discard(self, word: str) -> None:
        if self.target is not None:
            self.target = core.discarded(self.target, word)

    def step(self, action: Callable[..., None], *words: str) -> None:
        try:
            action(*words)
        except Refused:
            pass
        self.check()

    def check(self) -> None:
        assert core.owner(self.source) in ("source", "target")
        source_acts = core.source_acts(self.source)
        target_acts = core.target_acts(self.target)
        assert not (source_acts and target_acts)
        # Only the owner ever acts, and the owner always has everything that it takes.
        if source_acts:
            assert core.owner(self.source) == "source"
        if target_acts:
            assert core.owner(self.source) == "target"
        if core.owner(self.source) == "target":
            assert self.target is not None
            assert self.target.state in (core.READY, core.OWNED)
        assert not {COMMIT_SEAL, UNDO_SEAL} <= self.words

    def states(self) -> tuple[str | None, str | None]:
        return (
            self.source.state if self.source else None,
            self.target.state if self.target else None,
        )


ACTIONS = ("reserve", "freeze", "receive", "restore", "commit", "own", "retire", "undo", "discard")
WITH_WORDS = ("commit", "own", "discard")


@st.composite
def histories(draw: st.DrawFn) -> World:
    """Any order of any calls, with any word that was revealed, and with words that were not."""
    world = World()
    for name in draw(st.lists(st.sampled_from(ACTIONS), max_size=30)):
        words = [draw(st.sampled_from(sorted(world.words)))] if name in WITH_WORDS else []
        world.step(getattr(world, name), *words)
    return world


def resume(world: World) -> None:
    """What `--resume` does, from whatever stands in the journals."""
    for _ in range(8):
        step = core.next_step(*world.states())
        if step == core.DONE:
            return
        if step == core.SEND:
            world.step(world.receive)
            world.step(world.restore)
        elif step == core.COMMIT:
            world.step(world.commit, READY_SEAL)
        elif step == core.OWN:
            world.step(world.own, COMMIT_SEAL)
        elif step == core.RETIRE:
            world.step(world.retire)
        elif step == core.UNDO:
            world.step(world.undo)
        else:
            world.step(world.discard, UNDO_SEAL if world.source else "")
    raise AssertionError(f"no end from {world.states()}")


FINISHED = {
    ("retired", "owned"), ("undone", "discarded"), ("undone", None), (None, "discarded"),
    (None, None),
}  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(histories())
def test_whatever_happened_a_resume_ends_it_with_one_owner_that_acts(world: World) -> None:
    resume(world)
    assert world.states() in FINISHED
    assert core.source_acts(world.source) != core.target_acts(world.target)


@settings(max_examples=200, deadline=None)
@given(histories())
def test_an_undo_before_the_decision_gives_the_thread_back_and_after_it_is_refused(
    world: World,
) -> None:
    decided = core.owner(world.source) == "target"
    try:
        world.undo()
    except Refused:
        assert decided
    else:
        assert not decided
    world.check()
    resume(world)
    assert core.target_acts(world.target) == decided


def test_a_ready_target_keeps_what_arrived_until_the_source_has_said_that_it_undid() -> None:
    world = World()
    for action in (world.reserve, world.freeze, world.receive, world.restore):
        world.step(action)
    for word in ("", "guess", READY_SEAL):
        world.step(world.discard, word)
        world.step(world.own, word)
        assert world.states() == ("frozen", "ready")
    world.step(world.undo)
    world.step(world.commit, READY_SEAL)
    assert world.states() == ("undone", "ready")
    world.step(world.discard, UNDO_SEAL)
    assert world.states() == ("undone", "discarded")


def test_the_whole_way() -> None:
    world = World()
    assert core.next_step(*world.states()) == core.DONE
    world.step(world.reserve)
    assert core.next_step(*world.states()) == core.DISCARD
    world.step(world.freeze)
    assert core.next_step(*world.states()) == core.SEND
    world.step(world.receive)
    world.step(world.restore)
    assert core.next_step(*world.states()) == core.COMMIT
    world.step(world.commit, READY_SEAL)
    assert core.next_step(*world.states()) == core.OWN
    world.step(world.own, COMMIT_SEAL)
    assert core.next_step(*world.states()) == core.RETIRE
    world.step(world.retire)
    assert world.states() == ("retired", "owned")
    assert core.next_step(*world.states()) == core.DONE
