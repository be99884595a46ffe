"""The pipeline's decisions against every order of outcomes, crashes included."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.provision import core
from codexctl.provision.core import Action, Done, Failed, Over, State

outcomes = st.one_of(
    st.builds(Done, found=st.booleans()),
    st.builds(
        Failed,
        retry=st.sampled_from(("never", "again", "look")),
        sentence=st.just("no"),
        retry_after_s=st.sampled_from((None, 0.0, 1e9)),
    ),
)
steps = st.lists(st.tuples(outcomes, st.booleans()), max_size=120)
MACHINE_STAGES = core.UP[core.UP.index("ordered") :]


class Cloud:
    """What the decisions are about: whether anything may exist, as the worst case has it."""

    def __init__(self) -> None:
        self.something = False

    def obey(self, action: Action, outcome: core.Outcome) -> None:
        if action.do == "create":
            # Even a failed or lost create may have left a key behind.
            self.something = True
        if action.do == "confirm" and outcome == Done(found=False):
            self.something = False


@given(goal=st.sampled_from(("up", "gone")), start=st.sampled_from(core.UP), script=steps)
@settings(max_examples=400, deadline=None)
def test_nothing_that_may_exist_is_ever_forgotten(goal, start, script) -> None:
    cloud, state = Cloud(), State(stage=start, goal=goal)
    cloud.something = start in MACHINE_STAGES
    for outcome, crash in script:
        action = core.decide(state)
        if isinstance(action, Over):
            assert action.ok == (not state.undoing)
            if state.stage == "forgotten":
                assert not cloud.something
            break
        if action.do == "create":
            assert state.stage == "ordered", "the journal says it before the call"
        if action.do == "forget":
            assert not cloud.something
        assert 0 <= action.wait_s <= core.MAX_WAIT_S
        cloud.obey(action, outcome)
        if crash:
            state = core.resumed(state.stage, state.goal, state.undoing)
            continue
        after = core.apply(state, action, outcome)
        if isinstance(after, Over):
            assert not after.ok
            assert not cloud.something or state.may_exist, "the journal still names it"
            break
        assert not cloud.something or after.may_exist
        state = after


@given(start=st.sampled_from(core.UP), goal=st.sampled_from(("up", "gone")))
def test_every_stage_comes_to_its_end_when_all_goes_well(start, goal) -> None:
    state: State | Over = core.resumed(start, goal)
    for _ in range(20):
        assert isinstance(state, State)
        action = core.decide(state)
        if isinstance(action, Over):
            assert action.ok
            assert state.stage == ("ready" if goal == "up" else "forgotten")
            return
        state = core.apply(state, action, Done(found=action.do != "confirm"))
    raise AssertionError("it does not end")


@given(start=st.sampled_from(core.UP), retry=st.sampled_from(("never", "again", "look")))
def test_a_failure_that_stays_ends_the_run(start, retry) -> None:
    state: State | Over = core.resumed(start, "up")
    for _ in range(core.MAX_TRIES + core.MAX_CLEARING + 10):
        if isinstance(state, Over):
            return
        action = core.decide(state)
        if isinstance(action, Over):
            return
        state = core.apply(state, action, Failed(retry, "no"))
    raise AssertionError("it does not end")


def test_a_refused_order_is_undone_and_its_reason_kept() -> None:
    state = State(stage="ordered")
    after = core.apply(state, Action("create"), Failed("never", "quota reached"))
    assert isinstance(after, State)
    assert (after.goal, after.undoing) == ("gone", "quota reached")
    assert core.decide(after) == Action("destroy")


def test_a_lost_answer_is_looked_for_before_the_order_is_repeated() -> None:
    after = core.apply(State(stage="ordered"), Action("create"), Failed("look", "timeout"))
    assert isinstance(after, State)
    look = core.decide(after)
    assert isinstance(look, Action)
    assert look.do == "look"
    assert core.apply(after, look, Done(found=False)) == State(stage="ordered", tries=1)
    assert core.apply(after, look, Done(found=True)) == State(stage="made")


def test_orders_whose_answers_are_always_lost_end() -> None:
    state: State | Over = State(stage="ordered")
    for _ in range(3 * core.MAX_TRIES):
        if isinstance(state, Over):
            return
        action = core.decide(state)
        assert isinstance(action, Action)
        lost = action.do == "create"
        state = core.apply(state, action, Failed("look") if lost else Done(found=False))
    raise AssertionError("it does not end")


def test_a_machine_that_does_not_get_ready_is_kept() -> None:
    after = core.apply(State(stage="configured"), Action("await-ready"), Failed("never", "no port"))
    assert after == Over(ok=False)
