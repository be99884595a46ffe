"""What passes from an attached client to the app-server, and what the policy holds back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexctl.agent.attach_rules import Rules, decision, trusted
from codexctl.agent.mode_order import APPROVALS, SANDBOXES

USUAL = Rules("workspace-write", "on-request")
WIDEST = Rules(SANDBOXES[-1], APPROVALS[-1])
# As the official terminal UI of 0.169.0 sends them.
QUIET = {"sandbox": None, "approvalPolicy": None, "approvalsReviewer": None, "permissions": None}
TITLE = {
    **QUIET, "sandbox": "read-only",
    "config": {
        "features.hooks": False, "features.shell_tool": False, "web_search": "disabled",
        "default_permissions": ":read-only", "mcp_servers": {"greeter": {"enabled": False}},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("initialize", {}), ("account/read", {}), ("config/read", {}), ("model/list", {}),
        ("hooks/list", {}), ("account/bedrock/checkGovCloudRequirements", {}),
        ("configRequirements/read", {}), ("collaborationMode/list", {}), ("thread/list", {}),
        ("skills/list", {}), ("plugin/installed", {}), ("thread/turns/list", {}),
        ("thread/loaded/list", {}), ("thread/backgroundTerminals/list", {}),
        ("thread/start", QUIET), ("thread/start", TITLE), ("thread/resume", QUIET),
        ("turn/start", {**QUIET, "approvalPolicy": "on-request", "environments": None}),
        ("turn/start", {"sandboxPolicy": {"type": "workspaceWrite", "writableRoots": []}}),
        ("thread/fork", {**QUIET, "approvalsReviewer": "user"}), ("turn/interrupt", {}),
    ],
)  # fmt: skip
def test_what_a_terminal_ui_needs_passes(method: str, params: dict[str, Any]) -> None:
    assert USUAL.refusal(method, params) is None


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("command/exec", {}), ("thread/shellCommand", {}), ("fs/readFile", {}),
        ("fs/readDirectory", {}), ("fs/writeFile", {}), ("config/value/write", {}),
        ("config/batchWrite", {}), ("account/logout", {}), ("account/login/start", {}),
        ("mcpServer/tool/call", {}), ("mcpServer/oauth/login", {}), ("plugin/install", {}),
        ("marketplace/add", {}), ("skills/config/write", {}), ("thread/inject_items", {}),
        ("thread/approveGuardianDeniedAction", {}), ("experimentalFeature/enablement/set", {}),
        ("something/new", {}), ("", {}),
        ("thread/resume", {"sandbox": 7}),
        ("turn/start", {"approvalPolicy": "never"}),
        ("thread/start", {"approvalPolicy": {"granular": {}}}),
        ("thread/start", {"approvalsReviewer": "auto_review"}),
        ("thread/start", {"permissions": ":danger-full-access"}),
        ("thread/start", {"permissions": {"type": "profile"}}),
        ("thread/start", {"config": {"sandbox_mode": "danger-full-access"}}),
        ("thread/start", {"config": {"mcp_servers": {"x": {"command": "sh"}}}}),
        ("thread/start", {"config": {"features.exec_policy": False}}),
        ("thread/start", {"config": {"features.hooks": True}}),
        ("thread/start", {"config": ["model"]}),
        ("thread/start", {"environments": [{"id": "other"}]}),
        ("thread/resume", {"path": "/tmp/other.jsonl"}),
        ("thread/resume", {"history": [{"role": "user"}]}),
        ("turn/start", {"sandboxPolicy": {"type": "dangerFullAccess"}}),
        ("turn/start", {"sandboxPolicy": {"type": "externalSandbox"}}),
        ("turn/start", {"sandboxPolicy": "workspaceWrite"}),
        ("turn/start", {"sandboxPolicy": {"type": "workspaceWrite", "networkAccess": True}}),
        ("turn/start", {"sandboxPolicy": {"type": "workspaceWrite", "writableRoots": ["/"]}}),
    ],
)  # fmt: skip
def test_what_reaches_beyond_the_policy_does_not(method: str, params: dict[str, Any]) -> None:
    assert USUAL.refusal(method, params)
    assert WIDEST.refusal(method, params) is None


def trust(path: str, value: object = "trusted", key: str = "trust_level") -> dict[str, Any]:
    edit = {"keyPath": f"projects.{json.dumps(path)}.{key}", "value": value}
    return {"edits": [{**edit, "mergeStrategy": "replace"}], "filePath": None}


@given(st.text(max_size=20))
def test_a_folder_may_be_trusted(path: str) -> None:
    assert trusted("config/batchWrite", trust(path)) == [path]
    assert USUAL.refusal("config/batchWrite", trust(path)) is None


@pytest.mark.parametrize(
    "params",
    [
        trust("/w", key="sandbox_mode"), trust("/w", value={"a": 1}), {"edits": []},
        {"edits": [*trust("/w")["edits"], {"keyPath": "sandbox_mode", "value": "trusted"}]},
        {**trust("/w"), "filePath": "/etc/x"}, {"edits": ["x"]}, {"edits": None},
        {"edits": [{"keyPath": 'projects."\\q".trust_level', "value": "trusted"}]},
    ],
)  # fmt: skip
def test_nothing_else_passes_as_trust(params: dict[str, Any]) -> None:
    assert USUAL.refusal("config/batchWrite", params)


@given(
    st.sampled_from(SANDBOXES), st.sampled_from(APPROVALS),
    st.sampled_from([*SANDBOXES, None, {"a": 1}]), st.sampled_from([*APPROVALS, None, {"b": 2}]),
)  # fmt: skip
def test_what_is_left_open_is_closed_within_the_policy(
    sandbox: str, approval: str, own_sandbox: object, own_approval: object
) -> None:
    rules = Rules(sandbox, approval)
    asked = {**QUIET, "sandbox": own_sandbox, "approvalPolicy": own_approval}
    known = (own_sandbox is None or own_sandbox in SANDBOXES) and (
        own_approval is None or own_approval in APPROVALS
    )
    assert rules.hold_nothing_back or (rules.refusal("thread/start", asked) is None) == known
    for more in (rules.modes(QUIET, own_sandbox, own_approval), rules.modes(asked, None, None)):
        assert rules.refusal("turn/start", more) is None
        assert set(more) == {"sandbox", "approvalPolicy"}
        if own_sandbox in SANDBOXES[: SANDBOXES.index(sandbox) + 1]:
            assert more["sandbox"] == own_sandbox
    said = {"sandbox": "read-only", "approvalPolicy": "untrusted"}
    assert rules.modes(said, own_sandbox, own_approval) == said
    assert "sandbox" not in rules.modes({"permissions": ":read-only"}, None, None)


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ({"decision": "acceptForSession"}, "acceptForSession"),
        ({"decision": {"acceptWithExecpolicyAmendment": {}}}, "acceptWithExecpolicyAmendment"),
        ({"action": "cancel"}, "cancel"), ({"permissions": {}}, "decline"),
        ({"permissions": {"network": {}}}, "accept"), ({"answers": {}}, "answer"),
        (None, "answer"), ({"decision": 3}, "answer"), ({"decision": {}}, "answer"),
    ],
)  # fmt: skip
def test_an_answer_has_a_word(result: object, word: str) -> None:
    assert decision(result) == word
