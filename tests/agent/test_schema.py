"""What codexctl sends is held against the schema of the installed codex."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from codexctl.agent.codex import INSTALL, Codex, find_codex
from codexctl.agent.errors import NoCodex
from codexctl.agent.schema import fault
from codexctl.cli.doctor_checks import check_codex
from codexctl.paths import Home
from tests.support.codex import CODEX, make_codex_home, needs_codex, say, serving_model


@pytest.fixture(scope="module")
def codex(tmp_path_factory: pytest.TempPathFactory) -> Codex:
    assert CODEX is not None
    home = Home(str(tmp_path_factory.mktemp("home")))
    found = find_codex(home, str(Path(CODEX).parent), dict(os.environ), "box")
    # The second time it is read and not made.
    assert find_codex(home, str(Path(CODEX).parent), dict(os.environ), "box") == found
    return found


@needs_codex
@pytest.mark.parametrize(
    ("params", "wrong"),
    [
        ({"cwd": "/w", "sandbox": "read-only", "approvalPolicy": "on-request"}, ""),
        ({"cwd": "/w", "model": None}, ""),
        ({"cwd": 3}, "cwd is no string"),
        ({"sandbox": "none"}, "sandbox is none of"),
        ({"nonsense": 1}, "nonsense is not known"),
    ],
)
def test_a_call_that_the_binary_does_not_know_is_not_sent(
    codex: Codex, params: dict[str, Any], wrong: str
) -> None:
    if wrong:
        with pytest.raises(NoCodex, match=wrong):
            codex.check_request("thread/start", params)
    else:
        codex.check_request("thread/start", params)


@needs_codex
def test_answers_to_requests_are_checked_too(codex: Codex) -> None:
    command = "item/commandExecution/requestApproval"
    codex.check_response(command, {"decision": "accept"})
    amendment = {"acceptWithExecpolicyAmendment": {"execpolicy_amendment": ["ls"]}}
    codex.check_response(command, {"decision": amendment})
    with pytest.raises(NoCodex, match="does not take the answer"):
        codex.check_response(command, {"decision": "perhaps"})
    codex.check_request(
        "turn/start", {"threadId": "t", "input": [{"type": "text", "text": "hello"}]}
    )
    with pytest.raises(NoCodex, match="lacks threadId"):
        codex.check_request("turn/start", {"input": []})


def test_references_in_a_circle_end() -> None:
    schema = {"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/a"}}}
    assert fault({}, schema, schema) == ""


def program(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "codex").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "codex").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "codex is not installed on box"),
        ("echo broken >&2; exit 3", "codex on box does not run: broken"),
        ('[ "$1" = --version ] && echo codex-cli 0.1.0', "codex 0.1.0 on box is too old"),
        (
            '[ "$1" = --version ] && echo codex-cli 0.2.0 && exit\n'
            'for d; do :; done; mkdir -p "$d"\n'
            "for f in ClientRequest CommandExecutionRequestApprovalResponse"
            " FileChangeRequestApprovalResponse PermissionsRequestApprovalResponse"
            ' ToolRequestUserInputResponse McpServerElicitationRequestResponse; do echo "{}"'
            ' >"$d/$f.json"; done',
            "codex 0.2.0 on box is too old for threads: it has no account/read",
        ),
    ],
    ids=["missing", "broken", "no schema", "lacks a method"],
)
def test_a_codex_that_is_of_no_use_is_told_with_the_remedy(
    tmp_path: Path, text: str | None, wrong: str
) -> None:
    path = str(tmp_path) if text is None else program(tmp_path / "bin", text)
    variables = {"PATH": "/usr/bin:/bin"}
    with pytest.raises(NoCodex, match=wrong) as caught:
        find_codex(Home(str(tmp_path)), path, variables, "box")
    assert INSTALL in caught.value.hint or "--version" in caught.value.hint


@needs_codex
def test_doctor_says_whether_codex_is_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CODEX is not None
    home = Home(str(tmp_path))
    with serving_model([[say("hello")]]) as model:
        codex_home = make_codex_home(tmp_path / "codex", model)
    monkeypatch.setenv("PATH", f"{Path(CODEX).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CODEX_HOME", str(codex_home))
    assert check_codex(home).status == "ok"
    (codex_home / "config.toml").write_text("")
    outcome = check_codex(home)
    assert (outcome.status, outcome.remedy) == ("warn", "codex login")
    assert "is not logged in" in outcome.detail
