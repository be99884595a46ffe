"""approval.list and approval.answer: what waits for a person, and the one answer to it."""

from __future__ import annotations

from codexctl.agent import approvals
from codexctl.agent.approvals import Approval
from codexctl.agent.call import Call, Method
from codexctl.agent.questions import clock
from codexctl.errors import UsageError
from codexctl.state.database import now_s

STATES = ("pending", "answered", "withdrawn", "expired")
MAX_LISTED = 1_000


async def list_approvals(call: Call) -> None:
    """The records of one state, the pending ones by default, or of all; the newest first."""
    state = call.maybe_text("state") or "pending"
    if state != "all" and state not in STATES:
        raise UsageError(f"there is no state {state[:40]!r}", hint=f"all, {', '.join(STATES)}")
    thread = call.maybe_text("thread")
    records = call.agent.store.approvals(
        state=None if state == "all" else state, limit=call.number("limit", 100, MAX_LISTED)
    )
    for record in records:
        approval = Approval.from_record(record)
        if thread is None or approval.thread.startswith(thread):
            await call.line(approval.public(clock()))


async def answer(call: Call) -> None:
    """Decide once. AlreadyDecided tells the second comer who has, what and when."""
    name = call.text("id")
    # First: what a lost app-server asked is withdrawn by then.
    server = await call.agent.server() if call.agent.pending() else None
    found = call.agent.questions.named(name)
    if len(found) != 1:
        what = "several approvals begin with" if found else "no approval is called"
        raise UsageError(f"{what} {name[:60]!r}", hint="see: codexctl inbox")
    approval = found[0]
    who = call.peer.name
    ended, response = approvals.decide(
        approval,
        decision=call.text("decision"),
        hash=call.text("hash"),
        who=who,
        now=now_s(),
        clock=clock(),
        answers=call.params.get("answers"),
        content=call.params.get("content"),
    )
    assert call.agent.codex is not None, "it has asked"
    call.agent.codex.check_response(approval.method, response)
    what = str(approval.shown.get("command") or approval.shown.get("patch") or approval.kind)
    # Before it counts: what cannot be recorded does not happen.
    call.context.record(
        "approval", call.peer, what, str(ended.decision),
        thread=approval.thread, approval=approval.id, shown=approval.hash,
        where=str(approval.shown.get("cwd") or ""),
    )  # fmt: skip
    assert server is not None, "what is pending was so before"
    await call.agent.answer(server, ended, response)
    await call.line(ended.public(clock()))


METHODS = {
    "approval.list": Method("view", list_approvals),
    "approval.answer": Method("approve", answer),
}
