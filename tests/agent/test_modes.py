"""Which sandbox and approvals a thread gets: asked for, the host's own or safe; not inherited."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from codexctl.agent import modes
from codexctl.agent.attach_rules import Rules
from codexctl.errors import Refused, UsageError
from codexctl.host.policy import Policy, parse_policy

FULL, NEVER = "danger-full-access", "never"


def asking(
    policy: str = "",
    own: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    **params: str,
) -> Any:
    """A request with these params, on a host with this policy, codex config and thread."""

    async def call(method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"config": own or {}}

    agent = SimpleNamespace(call=call, store=SimpleNamespace(facts=lambda thread: facts or {}))
    layer = parse_policy(policy, "policy.toml")
    context = SimpleNamespace(policy=Policy(layer, {}, "/home/person"))
    return SimpleNamespace(agent=agent, context=context, maybe_text=params.get)  # fmt: skip


ALL = f'[threads]\nsandbox = "{FULL}"\napproval = "{NEVER}"\n'
TIGHT = '[threads]\nsandbox = "read-only"\napproval = "untrusted"\n'


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (asking(), ("workspace-write", "on-request")),
        (asking(own={"sandbox_mode": "read-only"}), ("read-only", "on-request")),
        (asking(own={"sandbox_mode": FULL}), ("workspace-write", "on-request")),
        (asking(ALL, own={"sandbox_mode": FULL, "approval_policy": NEVER}), (FULL, NEVER)),
        (asking(ALL), ("workspace-write", "on-request")),
        (asking(ALL, sandbox=FULL), (FULL, "on-request")),
        (asking(TIGHT), ("read-only", "untrusted")),
        (asking(own={"approval_policy": {"granular": {}}}), ("workspace-write", "on-request")),
    ],
)
def test_a_new_thread_gets_what_the_policy_lets_stand(
    request_: Any, expected: tuple[str, str]
) -> None:
    assert asyncio.run(modes.choose(request_, "/w"))[:2] == expected


def test_what_was_lowered_is_told() -> None:
    request = asking(own={"sandbox_mode": FULL, "approval_policy": NEVER})
    notice = asyncio.run(modes.choose(request, "/w")).notice()["notice"]
    assert "sandbox danger-full-access and approval never" in notice


@pytest.mark.parametrize("params", [{"sandbox": FULL}, {"approval": NEVER}])
def test_more_than_the_policy_has_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="lets a device ask for"):
        asyncio.run(modes.choose(asking(**params), "/w"))
    with pytest.raises(UsageError, match="is no sandbox mode"):
        asyncio.run(modes.choose(asking(sandbox="everything"), "/w"))


def test_a_thread_that_is_loaded_again_has_no_bypass_unless_asked() -> None:
    bypass = {"sandbox": FULL, "approval": NEVER}
    thread = {"id": "t"}
    again = asyncio.run(modes.resumed(asking(ALL, facts=bypass), thread))
    assert again[:2] == ("workspace-write", "on-request")
    asked = asyncio.run(modes.resumed(asking(ALL, facts=bypass, sandbox=FULL), thread))
    assert asked[:2] == (FULL, "on-request")
    kept = {"sandbox": "read-only", "approval": "untrusted"}
    assert asyncio.run(modes.resumed(asking(facts=kept), thread))[:2] == ("read-only", "untrusted")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"sandbox": "read-only", "approval": NEVER}, ("read-only", "on-request")),
        ({"sandbox": FULL, "approval": "untrusted"}, ("workspace-write", "untrusted")),
    ],
)
def test_what_was_narrow_beside_a_bypass_stays_so(
    facts: dict[str, str], expected: tuple[str, str]
) -> None:
    request = asking(ALL, facts=facts)
    assert asyncio.run(modes.resumed(request, {"id": "t"}))[:2] == expected
    attached = Rules(FULL, "on-request").modes({}, *modes.own_of_thread(request.agent, "t"))
    assert tuple(attached.values()) == expected
