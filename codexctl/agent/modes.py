"""What a thread may do without asking: its sandbox and when it asks, within the host's policy.

Nothing is inherited: a thread that is resumed gets the modes that this request asks for, or safe
ones; full access and approvals that are off have to be asked for each time, and allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from codexctl.errors import Refused, UsageError
from codexctl.host.policy import SETTINGS

if TYPE_CHECKING:
    from codexctl.agent.call import Call

SANDBOXES = SETTINGS["threads.sandbox"].choices
APPROVALS = SETTINGS["threads.approval"].choices
SAFE_SANDBOX = "workspace-write"
SAFE_APPROVAL = "on-request"
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
    config = await call.agent.call("config/read", {"cwd": cwd})
    own = config.get("config") or {}
    return _within(call, own.get("sandbox_mode"), own.get("approval_policy"))


async def resumed(call: Call, thread: dict[str, Any]) -> Modes:
    """The modes of a thread that is loaded again: its own, unless they were a bypass."""
    facts = call.agent.store.facts(thread["id"])
    sandbox, approval = facts.get("sandbox"), facts.get("approval")
    return _within(
        call,
        sandbox if sandbox != "danger-full-access" else None,
        approval if approval != "never" else None,
    )


def _within(call: Call, own_sandbox: object, own_approval: object) -> Modes:
    policy = call.context.policy
    lowered: list[str] = []

    def one(name: str, order: tuple[str, ...], own: object, safe: str) -> str:
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
        wish = own if isinstance(own, str) and own in order else safe
        if order.index(wish) <= order.index(most):
            return wish
        if wish == own:
            lowered.append(f"{name} {wish}")
        return min(safe, most, key=order.index)

    sandbox = one("sandbox", SANDBOXES, own_sandbox, SAFE_SANDBOX)
    approval = one("approval", APPROVALS, own_approval, SAFE_APPROVAL)
    return Modes(sandbox, approval, tuple(lowered))
