"""handoff.*: the methods by which a device moves a thread between two hosts (docs/handoff.md)."""

from __future__ import annotations

from codexctl.agent.call import Call, Method
from codexctl.agent.handoff import source, target
from codexctl.agent.handoff.journal import Journal

MAX_LISTED = 200


async def list_handoffs(call: Call) -> None:
    """The handoffs that this host took part in, the newest first."""
    thread = call.maybe_text("thread")
    with Journal(call.context.home) as journal:
        rows = journal.rows(thread)
    for row in rows[:MAX_LISTED]:
        await call.line(row.public())


METHODS = {
    "handoff.list": Method("view", list_handoffs),
    # the source's
    "handoff.inspect": Method("exec", source.inspect),
    "handoff.pack": Method("exec", source.pack),
    "handoff.freeze": Method("exec", source.freeze),
    "handoff.agreeing": Method("exec", source.agreeing),
    "handoff.send": Method("exec", source.send),
    "handoff.commit": Method("exec", source.commit),
    "handoff.retire": Method("exec", source.retire),
    "handoff.undo": Method("exec", source.undo),
    # the target's
    "handoff.survey": Method("exec", target.survey),
    "handoff.reserve": Method("exec", target.reserve),
    "handoff.prepare": Method("exec", target.prepare),
    "handoff.receive": Method("exec", target.receive),
    "handoff.have": Method("exec", target.have),
    "handoff.take": Method("exec", target.take_part),
    "handoff.restore": Method("exec", target.restore),
    "handoff.own": Method("exec", target.own),
    "handoff.discard": Method("exec", target.discard),
}
