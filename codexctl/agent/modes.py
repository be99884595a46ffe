"""What a thread may do without asking: its sandbox and when it asks, within the host's policy.

Nothing is inherited: a thread that is resumed gets the modes that this request asks for, or safe
ones; full access and approvals that are off have to be asked for each time, and allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from codexctl.agent.mode_order import APPROVALS, SANDBOXES, within
from codexctl.errors import Refused, UsageError

if TYPE_CHECKING:
    from codexctl.agent.agent import Agent
    from codexctl.agent.call import Call

_POLICIES = {
    "read-only": "readOnly",
    "workspace-write": "workspaceWrite",
    "danger-full-access": "dangerFullAccess",
}


class Modes(NamedTuple):
    """`lowered` says which defaults of the host's codex the policy did not let stand."""

    sandbox: str
    approval: str
    lowered: tuple[str, ...] = ()

    def as_params(self) -> dict[str, str]:
        """The members of the official calls."""
        return {"sandbox": self.sandbox, "approvalPolicy": self.approval}

    def as_turn_params(self) -> dict[str, Any]:
        """The members of `turn/start`, which names sandboxes in another way."""
        return {"sandboxPolicy": {"type": _POLICIES[self.sandbox]}, "approvalPolicy": self.approval}

    def as_record(self) -> dict[str, str]:
        return {"sandbox": self.sandbox, "approval": self.approval}

    def notice(self) -> dict[str, str]:
        """A member of the answer that tells what was lowered."""
        if not self.lowered:
            return {}
        return {"notice": f"the policy of this host does not let {' and '.join(self.lowered)} hold"}


def is_bypass(sandbox: object, approval: object) -> bool:
    """Whether a thread with these modes has full access or never asks."""
    return sandbox == "danger-full-access" or approval == "never"


async def choose(call: Call, cwd: str) -> Modes:
    """The modes of a new thread: those asked for, else the host's own, capped. Refused."""
    return _within(call, *await own_of_host(call.agent, cwd))


async def resumed(call: Call, thread: dict[str, Any]) -> Modes:
    """The modes of a thread that is loaded again: its own, unless they were a bypass."""
    return _within(call, *own_of_thread(call.agent, thread["id"]))


async def own_of_host(agent: Agent, cwd: str) -> tuple[object, object]:
    """Sandbox and approvals of the host's own codex in a folder: known modes, or anything."""
    own = (await agent.call("config/read", {"cwd": cwd})).get("config") or {}
    return own.get("sandbox_mode"), own.get("approval_policy")


def own_of_thread(agent: Agent, thread: str) -> tuple[object, object]:
    """Sandbox and approvals that a thread had; None for one that was a bypass."""
    facts = agent.store.facts(thread)
    sandbox, approval = facts.get("sandbox"), facts.get("approval")
    return (
        sandbox if sandbox != "danger-full-access" else None,
        approval if approval != "never" else None,
    )


def _within(call: Call, own_sandbox: object, own_approval: object) -> Modes:
    policy = call.context.policy
    lowered: list[str] = []

    def one(name: str, order: tuple[str, ...], own: object) -> str:
        most, source = policy.choice(f"threads.{name}")
        asked = call.maybe_text(name)
        if asked is not None and asked not in order:
            raise UsageError(
                f"{asked[:40]!r} is no {name} mode", hint=f"there are {', '.join(order)}"
            )
        if asked is not None and order.index(asked) > order.index(most):
            raise Refused(
                f"the policy of this host lets a device ask for {name} {most} at most, "
                f"not {asked} ({source})",
                hint=f"the host's owner can set {name} in [threads] of policy.toml",
            )
        if asked is not None:
            return asked
        chosen = within(order, own, most)
        if own in order and chosen != own:
            lowered.append(f"{name} {own}")
        return chosen

    sandbox = one("sandbox", SANDBOXES, own_sandbox)
    approval = one("approval", APPROVALS, own_approval)
    return Modes(sandbox, approval, tuple(lowered))
