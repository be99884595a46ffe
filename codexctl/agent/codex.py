"""The codex of this host: where it is, which version, and what its own schema lets us send.

The schema is what `codex app-server generate-json-schema` writes. It is made once a binary and kept
in the home; a codex whose schema lacks a method of NEEDED is too old.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from typing import Any, NamedTuple

from codexctl.agent.errors import NoCodex
from codexctl.agent.schema import fault, methods
from codexctl.errors import CodexctlError
from codexctl.paths import Home
from codexctl.state.files import replace_file

ASK_S = 20.0
KEPT_NAME = "codex-schema.json"
INSTALL = "npm install -g @openai/codex@latest"

NEEDED = frozenset(
    {
        "initialize", "thread/start", "thread/resume", "thread/fork", "thread/archive",
        "thread/unarchive", "thread/name/set", "thread/goal/set", "thread/goal/get",
        "thread/goal/clear", "thread/list", "thread/read", "thread/loaded/list",
        "thread/turns/list", "thread/items/list", "turn/start", "turn/steer", "turn/interrupt",
        "review/start", "config/read", "account/read",
    }
)  # fmt: skip


# The official requests that people answer, and the schemas of their answers.
RESPONSES = {
    "item/commandExecution/requestApproval": "CommandExecutionRequestApprovalResponse",
    "item/fileChange/requestApproval": "FileChangeRequestApprovalResponse",
    "item/permissions/requestApproval": "PermissionsRequestApprovalResponse",
    "item/tool/requestUserInput": "ToolRequestUserInputResponse",
    "mcpServer/elicitation/request": "McpServerElicitationRequestResponse",
}


class Codex(NamedTuple):
    """An installed codex, and the JSON schemas of what a client may send to it."""

    path: str
    version: str
    requests: dict[str, Any]
    responses: dict[str, dict[str, Any]]

    def check_request(self, method: str, params: dict[str, Any]) -> None:
        """NoCodex where this codex would not understand a call."""
        self._check(method, fault(params, methods(self.requests).get(method), self.requests))

    def check_response(self, method: str, response: dict[str, Any]) -> None:
        """NoCodex where this codex would not understand an answer to its request."""
        schema = self.responses.get(method, {})
        self._check(f"the answer to {method}", fault(response, schema, schema))

    def _check(self, what: str, wrong: str) -> None:
        if wrong:
            raise NoCodex(
                f"codex {self.version} does not take {what} as this codexctl sends it: {wrong}",
                hint=f"have the newest of both; there: {INSTALL}",
            )


def find_codex(home: Home, search: str, variables: dict[str, str], host: str) -> Codex:
    """The codex on the PATH `search`, asked with these variables; blocks. NoCodex with a remedy."""
    path = shutil.which("codex", path=search)
    if path is None:
        raise NoCodex(f"codex is not installed on {host}", hint=f"there: {INSTALL}")
    version = _version(path, variables, host)
    made = _kept(home, path, version) or _generated(home, path, version, variables, host)
    missing = NEEDED - set(methods(made["requests"]))
    if missing:
        raise NoCodex(
            f"codex {version} on {host} is too old for threads: it has no {min(missing)}",
            hint=f"there: {INSTALL}",
        )
    return Codex(path, version, made["requests"], made["responses"])


def _version(path: str, variables: dict[str, str], host: str) -> str:
    try:
        done = _ask([path, "--version"], variables)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCodex(
            f"codex on {host} does not run: {error}", hint=f"there: {path} --version"
        ) from error
    words = done.stdout.decode(errors="replace").split()
    if done.returncode != 0 or not words:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise NoCodex(
            f"codex on {host} does not run: {said[-1] if said else 'it says nothing'}",
            hint=f"there: {path} --version",
        )
    return words[-1]


def _kept(home: Home, path: str, version: str) -> dict[str, Any] | None:
    try:
        with open(home.join(KEPT_NAME), encoding="utf-8") as file:
            kept = json.load(file)
        if kept["of"] == _identity(path, version):
            return {name: dict(kept[name]) for name in ("requests", "responses")}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or of another kind: it is made again
    return None


def _identity(path: str, version: str) -> list[str]:
    return [os.path.realpath(path), version]


def _generated(
    home: Home, path: str, version: str, variables: dict[str, str], host: str
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="codexctl-schema-") as folder:
        try:
            done = _ask(
                [path, "app-server", "generate-json-schema", "--experimental", "--out", folder],
                variables,
            )
            made = {
                "requests": _load(folder, "ClientRequest"),
                "responses": {method: _load(folder, name) for method, name in RESPONSES.items()},
            }
        except subprocess.TimeoutExpired as error:
            raise NoCodex(
                f"codex {version} on {host} wrote no schema within {ASK_S:.0f} s",
                hint=f"there: {path} app-server generate-json-schema --out /tmp/schema",
            ) from error
        except (OSError, ValueError) as error:
            raise NoCodex(
                f"codex {version} on {host} is too old for threads: it has no schema of its own"
                + (f" (status {done.returncode})" if done.returncode else ""),
                hint=f"there: {INSTALL}",
            ) from error
    try:
        text = json.dumps({"of": _identity(path, version), **made})
        replace_file(home.join(KEPT_NAME), text.encode())
    except CodexctlError:
        pass  # it is made again next time
    return made


def _load(folder: str, name: str) -> dict[str, Any]:
    with open(os.path.join(folder, f"{name}.json"), encoding="utf-8") as file:
        schema: dict[str, Any] = json.load(file)
    return schema


def _ask(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ASK_S,
        check=False,
        env=variables,
    )
