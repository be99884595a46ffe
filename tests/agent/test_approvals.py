"""The records of approvals: answered once, bound to what was shown, over by elapsed time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.agent import approvals
from codexctl.agent.approvals import EXPIRES_S, Approval, Clock
from codexctl.agent.errors import AlreadyDecided
from codexctl.errors import CodexctlError, Refused, UsageError

NOW = Clock("boot", 1000.0)
COMMAND = "item/commandExecution/requestApproval"
FILES = "item/fileChange/requestApproval"
PERMISSIONS = "item/permissions/requestApproval"
QUESTION = "item/tool/requestUserInput"
ELICITATION = "mcpServer/elicitation/request"
AMENDMENT = {"acceptWithExecpolicyAmendment": {"execpolicy_amendment": ["touch"]}}
PARAMS: dict[str, dict[str, Any]] = {
    COMMAND: {
        "command": "touch x", "cwd": "/w", "reason": "why",
        "availableDecisions": ["accept", AMENDMENT, "cancel"],
    },
    FILES: {"reason": None, "grantRoot": None},
    PERMISSIONS: {"cwd": "/w", "permissions": {"network": {"enabled": True}}},
    QUESTION: {"questions": [{"id": "color", "question": "Which?"}]},
    ELICITATION: {
        "mode": "form", "message": "Who?", "serverName": "s",
        "requestedSchema": {"type": "object", "properties": {}, "required": ["name"]},
    },
}  # fmt: skip


def pending(method: str = COMMAND, **more: Any) -> Approval:
    params = {"threadId": "t", "turnId": "u", "itemId": "i", **PARAMS[method], **more}
    return approvals.requested(
        method, params, id="a1", request_id=7, patch="+x", clock=NOW, now=1
    )  # fmt: skip


def decide(approval: Approval, decision: str, **more: Any) -> tuple[Approval, dict[str, Any]]:
    arguments: dict[str, Any] = {"hash": approval.hash, "who": "laptop", "now": 5, "clock": NOW}
    return approvals.decide(approval, decision=decision, **{**arguments, **more})


@pytest.mark.parametrize(
    ("method", "decision", "more", "response"),
    [
        (COMMAND, "accept", {}, {"decision": "accept"}),
        (COMMAND, "decline", {}, {"decision": "decline"}),
        (COMMAND, "acceptWithExecpolicyAmendment", {}, {"decision": AMENDMENT}),
        (FILES, "acceptForSession", {}, {"decision": "acceptForSession"}),
        (
            PERMISSIONS, "accept", {},
            {"permissions": {"network": {"enabled": True}}, "scope": "turn"},
        ),
        (
            PERMISSIONS, "acceptForSession", {},
            {"permissions": {"network": {"enabled": True}}, "scope": "session"},
        ),
        (PERMISSIONS, "decline", {}, {"permissions": {}, "scope": "turn"}),
        (
            QUESTION, "answer", {"answers": {"color": "red"}},
            {"answers": {"color": {"answers": ["red"]}}},
        ),
        (QUESTION, "decline", {}, {"answers": {}}),
        (
            ELICITATION, "accept", {"content": {"name": "Ada"}},
            {"action": "accept", "content": {"name": "Ada"}},
        ),
        (ELICITATION, "cancel", {}, {"action": "cancel"}),
    ],
)  # fmt: skip
def test_each_kind_becomes_its_official_response(
    method: str, decision: str, more: dict[str, Any], response: dict[str, Any]
) -> None:
    ended, given_response = decide(pending(method), decision, **more)
    assert given_response == response
    assert (ended.state, ended.decision, ended.decided_by) == ("answered", decision, "laptop")


def test_what_a_person_answers_is_in_no_record() -> None:
    ended, _ = decide(pending(QUESTION), "answer", answers={"color": "s3cret"})
    assert "s3cret" not in json.dumps(ended.as_record())


def test_the_second_comer_is_told_who_decided_what_and_when() -> None:
    ended, _ = decide(pending(), "accept")
    with pytest.raises(AlreadyDecided, match="laptop has decided accept at 1970-01-01 00:00:05"):
        decide(ended, "decline", who="phone")


def test_an_answer_is_bound_to_what_was_shown() -> None:
    with pytest.raises(Refused, match="its hash is another"):
        decide(pending(), "accept", hash=pending(command="rm x").hash)
    assert pending().hash == pending().hash
    assert pending(FILES).hash != pending(COMMAND).hash


@pytest.mark.parametrize(
    "clock", [Clock("boot", 1000.0 + EXPIRES_S), Clock("another boot", 1000.0)]
)
def test_it_expires_by_elapsed_time_and_with_the_boot(clock: Clock) -> None:
    with pytest.raises(AlreadyDecided, match="has expired"):
        decide(pending(), "accept", clock=clock)


def test_what_was_withdrawn_says_why() -> None:
    gone = approvals.end(pending(), "withdrawn", now=5, reason="the turn was interrupted")
    with pytest.raises(AlreadyDecided, match=r"withdrawn since .*: the turn was interrupted"):
        decide(gone, "accept")
    assert approvals.end(gone, "expired", now=9, reason="late") == gone


@pytest.mark.parametrize(
    ("method", "decision", "more", "wrong"),
    [
        (COMMAND, "acceptForSession", {}, "no answer to this command"),
        (QUESTION, "answer", {"answers": {}}, "'color' is open"),
        (QUESTION, "answer", {"answers": {"color": "x", "size": "y"}}, "no question 'size'"),
        (QUESTION, "answer", {"answers": {"color": 3}}, "a text or a list"),
        (QUESTION, "answer", {}, "answers are an object"),
        (ELICITATION, "accept", {}, "the form needs name"),
        (ELICITATION, "accept", {"content": 3}, "is an object"),
        (ELICITATION, "accept", {"content": {"name": "x" * 70_000}}, "at most"),
        (ELICITATION, "acceptForSession", {}, "no answer to this elicitation"),
    ],
)
def test_what_does_not_fit_is_refused(
    method: str, decision: str, more: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(UsageError, match=wrong):
        decide(pending(method), decision, **more)


def test_what_a_server_offers_to_remember_can_be_chosen() -> None:
    asked = pending(
        ELICITATION, requestedSchema={}, _meta={"persist": ["session"], "tool_name": "g"}
    )
    names = [option["decision"] for option in asked.shown["options"]]
    assert names == ["accept", "acceptForSession", "decline", "cancel"]
    assert asked.shown["elicitation"]["tool_name"] == "g"
    _, response = decide(asked, "acceptForSession")
    assert response == {"action": "accept", "content": {}, "_meta": {"persist": "session"}}


DECISIONS = ["accept", "acceptForSession", "decline", "cancel", "answer", "nonsense"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.sampled_from(DECISIONS), st.booleans()),
        st.tuples(st.just("end"), st.sampled_from(["withdrawn", "expired"]), st.booleans()),
        st.tuples(st.just("store"), st.just(""), st.booleans()),
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(PARAMS)), STEPS, st.floats(0, 2 * EXPIRES_S))
def test_a_record_leaves_pending_once(
    method: str, steps: list[tuple[str, str, bool]], later: float
) -> None:
    approval = pending(method)
    over: Approval | None = None
    for step, word, honest in steps:
        if step == "store":
            approval = Approval.from_record(json.loads(json.dumps(approval.as_record())))
        elif step == "end":
            approval = approvals.end(approval, word, now=9, reason="r")
        else:
            clock = Clock("boot", NOW.seconds + later)
            hash = approval.hash if honest else "0"
            try:
                approval, _ = decide(approval, word, hash=hash, clock=clock)
            except CodexctlError:
                continue
            assert honest
            assert later < EXPIRES_S
        if over is not None:
            assert approval == over
        if approval.state != "pending":
            over = approval
        public = approval.public(NOW)
        assert public["hash"] == approval.hash
        assert (public["expires_in_s"] == 0) or approval.state == "pending"
