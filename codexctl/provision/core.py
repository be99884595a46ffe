"""The pipeline's decisions, without I/O: a journaled state and an outcome give the next action.

    goal up      planned -> keyed -> ordered -> made -> addressed -> configured -> prepared
                 -> rotated -> installed -> paired -> ready
    goal gone    … -> leaving -> cleared -> forgotten

A stage names what is certainly done; the action that follows it may have been begun. So after a
crash at any point the same function, given the journaled state, says what to do next. Rules:

- The journal says `ordered` before `create` is called: from there on something may bill, and only
  an empty answer of the provider to `resources` (stage `cleared`) ends that.
- What may have had its effect is looked at first (`Look`), then made again under the same id.
- An error that time does not cure ends the run. While the order was never accepted (nothing but
  leftovers can exist) it is undone at once; a machine that exists is kept for its owner to look at.
- Every action is bounded: `MAX_TRIES` of one action, with backoff.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Goal = Literal["up", "gone"]
UP = (
    "planned",
    "keyed",
    "ordered",
    "made",
    "addressed",
    "configured",
    "prepared",
    "rotated",
    "installed",
    "paired",
    "ready",
)
DOWN = ("leaving", "cleared", "forgotten")
STAGES = UP + DOWN

MAX_TRIES = 8
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
MAX_CLEARING = 20
"""How often deletion is ordered and looked at (7 minutes in all) before it is unconfirmed."""

Do = Literal[
    "make-keys",
    "order",
    "create",
    "look",
    "await-address",
    "write-config",
    "await-ready",
    "rotate",
    "install",
    "pair",
    "finish",
    "destroy",
    "confirm",
    "forget",
]
_NEXT: dict[str, Do] = {
    "planned": "make-keys",
    "keyed": "order",
    "ordered": "create",
    "made": "await-address",
    "addressed": "write-config",
    "configured": "await-ready",
    "prepared": "rotate",
    "rotated": "install",
    "installed": "pair",
    "paired": "finish",
}


@dataclass(frozen=True, slots=True)
class State:
    """How far a run is. The journal keeps `stage`, `goal` and `undoing`; the rest is the run's."""

    stage: str = "planned"
    goal: Goal = "up"
    undoing: str = ""
    """The sentence of the failure that is being undone."""
    look: bool = False
    """The last call may have had its effect."""
    tries: int = 0
    wait_s: float = 0.0
    deletion_ordered: bool = False
    """Destroying, the provider is to be asked what is left."""

    @property
    def may_exist(self) -> bool:
        """Something may bill or lie around at the provider."""
        return self.stage not in ("planned", "keyed", "cleared", "forgotten")


@dataclass(frozen=True, slots=True)
class Action:
    do: Do
    wait_s: float = 0.0
    """Seconds to wait before it."""


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more to do in this run: `ok`, or with the error last met (kept by the adapter)."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The action succeeded; `found` answers `look` (a machine) and `confirm` (anything left)."""

    found: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The action failed; the words are those of `ProviderError.retry`."""

    retry: Literal["never", "again", "look"]
    sentence: str = ""
    retry_after_s: float | None = None


Outcome = Done | Failed


def resumed(stage: str, goal: Goal, undoing: str = "") -> State:
    """The state with which another process goes on from the journal."""
    # A create may have been on its way when the process died.
    return State(stage=stage, goal=goal, undoing=undoing, look=stage == "ordered" and goal == "up")


def decide(state: State) -> Action | Over:
    """What to do now."""
    if state.stage == "forgotten":
        return Over(ok=not state.undoing)
    if state.goal == "up":
        if state.stage == "ready":
            return Over(ok=True)
        if state.look:
            return Action("look", state.wait_s)
        return Action(_NEXT[state.stage], state.wait_s)
    if not state.may_exist:
        return Action("forget", state.wait_s)
    return Action("confirm" if state.deletion_ordered else "destroy", state.wait_s)


def apply(state: State, action: Action, outcome: Outcome) -> State | Over:
    """The state after `action`; Over where the run ends with its error and the journal stays."""
    if isinstance(outcome, Failed):
        return _failed(state, action, outcome)
    fresh = replace(state, tries=0, wait_s=0.0, look=False)
    match action.do:
        case "look":
            # Not there: create again, which is idempotent should it only be slow to show.
            if outcome.found:
                return replace(fresh, stage="made")
            return replace(state, look=False, wait_s=0.0)
        case "destroy":
            return replace(state, stage="leaving", deletion_ordered=True, wait_s=0.0)
        case "confirm" if outcome.found:
            if state.tries + 1 >= MAX_CLEARING:
                return Over(ok=False)
            return replace(
                state, deletion_ordered=False, tries=state.tries + 1, wait_s=_backoff(state.tries)
            )
        case "confirm":
            return replace(fresh, stage="cleared")
        case "forget":
            return replace(fresh, stage="forgotten")
        case _:
            return replace(fresh, stage=UP[UP.index(state.stage) + 1])


def _failed(state: State, action: Action, outcome: Failed) -> State | Over:
    if outcome.retry != "never" and state.tries + 1 < MAX_TRIES:
        wait = outcome.retry_after_s
        return replace(
            state,
            tries=state.tries + 1,
            look=state.look or (outcome.retry == "look" and action.do == "create"),
            wait_s=_backoff(state.tries) if wait is None else min(max(wait, 0.0), MAX_WAIT_S),
        )
    if state.goal == "up" and action.do in ("make-keys", "order"):
        return _undo(state, outcome)
    if action.do == "create" and outcome.retry == "never":
        return _undo(state, outcome)
    return Over(ok=False)


def _undo(state: State, outcome: Failed) -> State:
    return State(
        stage="leaving" if state.may_exist else state.stage,
        goal="gone",
        undoing=outcome.sentence or "failed",
    )


def _backoff(tries: int) -> float:
    return float(min(FIRST_WAIT_S * 2**tries, MAX_WAIT_S))
