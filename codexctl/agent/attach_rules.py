"""What a device that is attached to the app-server itself may ask of it. No I/O.

Its client is the official one, which can ask for anything: commands without a sandbox, any file,
other settings for everybody. Here passes what a terminal UI needs to show and drive threads, within
the host's policy; the rest, and what is not known here, is refused. Under the widest policy (full
access, never asking) there is nothing left to hold back, and all of it passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from codexctl.agent.mode_order import APPROVALS, JOINING, SANDBOXES, within

# Looks, which change nothing; files are not among them (`fs/...`).
_LOOKS = re.compile(
    r"(account|app|collaborationMode|config|configRequirements|experimentalFeature|hooks|"
    r"mcpServerStatus|model|modelProvider|permissionProfile|plugin|skills|thread|threadSection)"
    r"(/[A-Za-z]+)*/(read|list|get|installed|checkGovCloudRequirements)"
)
_DRIVES = frozenset({
    "initialize", "initialized", "fuzzyFileSearch", "review/start", *JOINING,
    "thread/archive", "thread/unarchive", "thread/unsubscribe", "thread/name/set",
    "thread/goal/set", "thread/goal/clear", "thread/metadata/update", "thread/readState/update",
    "thread/compact/start", "thread/rollback", "thread/revert", "thread/section/move",
    "threadSection/create", "threadSection/update", "threadSection/delete",
    "turn/start", "turn/steer", "turn/interrupt",
})  # fmt: skip
# A thread of another place or of words that were never said.
_ELSEWHERE = ("environments", "path", "history")
_TRUST = re.compile(r'projects\.("(?:[^"\\]|\\.)*")\.trust_level')
_POLICIES = {"readOnly": 0, "workspaceWrite": 1, "dangerFullAccess": 2}
_PROFILES = {":read-only": 0, ":workspace": 1}
# Settings that cannot widen anything, whatever their value; the model's provider searches the web.
_HARMLESS = frozenset({
    "model", "model_reasoning_effort", "model_reasoning_summary", "model_verbosity", "personality",
    "service_tier", "web_search",
})  # fmt: skip
# Switching off what is called so may widen what an agent can do.
_GUARDS = re.compile(r"polic|sandbox|approval|guard|review|trust")


class Rules(NamedTuple):
    """The policy's most: `sandbox` of SANDBOXES, `approval` of APPROVALS."""

    sandbox: str
    approval: str

    @property
    def hold_nothing_back(self) -> bool:
        return (self.sandbox, self.approval) == (SANDBOXES[-1], APPROVALS[-1])

    def refusal(self, method: str, params: Mapping[str, Any]) -> str | None:
        """Why a request does not pass; None where it does."""
        if self.hold_nothing_back:
            return None
        if trusted(method, params) is not None:
            return None
        if method not in _DRIVES and not _LOOKS.fullmatch(method):
            return f"the policy of this host lets no device ask for {method[:60]}"
        asked = params
        if method in JOINING:  # `modes` lowers these
            asked = {
                name: value
                for name, value in params.items()
                if not (name == "sandbox" and value in SANDBOXES)
                and not (name == "approvalPolicy" and value in APPROVALS)
            }
        for check in (self._sandbox, self._approval, self._config):
            reason = check(asked)
            if reason is not None:
                return f"the policy of this host does not allow {reason}"
        for name in _ELSEWHERE:
            if params.get(name):
                return f"the policy of this host does not allow {name}"
        return None

    def _sandbox(self, params: Mapping[str, Any]) -> str | None:
        most = SANDBOXES.index(self.sandbox)
        mode, policy, profile = (params.get(n) for n in ("sandbox", "sandboxPolicy", "permissions"))
        if mode is not None and (mode not in SANDBOXES or SANDBOXES.index(mode) > most):
            return f"the sandbox {_short(mode)}"
        if policy is not None:
            kind = policy.get("type") if isinstance(policy, dict) else None
            if not isinstance(kind, str) or _POLICIES.get(kind, 99) > most:
                return f"the sandbox {_short(kind)}"
            if self.sandbox != SANDBOXES[-1]:
                for name in ("networkAccess", "writableRoots"):
                    if policy.get(name):
                        return f"a sandbox with {name}"
        if profile is not None and (
            not isinstance(profile, str) or _PROFILES.get(profile, 99) > most
        ):
            return f"the permissions {_short(profile)}"
        return None

    def _approval(self, params: Mapping[str, Any]) -> str | None:
        asked, reviewer = params.get("approvalPolicy"), params.get("approvalsReviewer")
        if asked is not None and (
            asked not in APPROVALS or APPROVALS.index(asked) > APPROVALS.index(self.approval)
        ):
            return f"the approval mode {_short(asked)}"
        # Somebody else than a person.
        return None if reviewer in (None, "user") else f"the reviewer {_short(reviewer)}"

    def _config(self, params: Mapping[str, Any]) -> str | None:
        config = params.get("config")
        if config is None:
            return None
        if not isinstance(config, dict):
            return "such a config"
        for name, value in config.items():
            if not self._harmless(str(name), value):
                return f"the setting {_short(name)}"
        return None

    def _harmless(self, name: str, value: object) -> bool:
        if name in _HARMLESS or (name, value) == ("default_permissions", ":read-only"):
            return True
        if name == "mcp_servers":
            return isinstance(value, dict) and all(v == {"enabled": False} for v in value.values())
        return value is False and not _GUARDS.search(name)

    def modes(self, params: Mapping[str, Any], sandbox: object, approval: object) -> dict[str, str]:
        """What a JOINING request is to say of sandbox and approvals in place of what it says.

        What goes beyond the policy is lowered, and the answer tells: a terminal UI asks for what
        the settings of its own machine say. `sandbox` and `approval` are what the host or the
        thread would have, for what is left open: known modes, or anything. Said in any case: what
        the app-server would take else is not for a device.
        """
        more: dict[str, str] = {}
        if params.get("permissions") is None:
            wish = params.get("sandbox")
            more["sandbox"] = within(SANDBOXES, sandbox if wish is None else wish, self.sandbox)
        wish = params.get("approvalPolicy")
        wish = approval if wish is None else wish
        more["approvalPolicy"] = within(APPROVALS, wish, self.approval)
        return more


def _short(value: object) -> str:
    return str(value)[:60]


def trusted(method: str, params: Mapping[str, Any]) -> list[str] | None:
    """The folders of a request that answers "Trust this folder?" and does nothing else; or None."""
    edits = params.get("edits")
    if method != "config/batchWrite" or params.get("filePath") or not isinstance(edits, list):
        return None
    found = []
    for edit in edits:
        name = _TRUST.fullmatch(str(edit.get("keyPath"))) if isinstance(edit, dict) else None
        if name is None or edit.get("value") not in ("trusted", "untrusted"):
            return None
        try:
            found.append(json.loads(name[1]))
        except ValueError:
            return None
    return found or None


def decision(result: object) -> str:
    """What a client's answer to a question decides, in a word for the records."""
    if not isinstance(result, dict):
        return "answer"
    found = result.get("decision", result.get("action"))
    if isinstance(found, dict) and found:
        found = next(iter(found))
    if isinstance(found, str):
        return found[:60]
    if "permissions" in result:
        return "accept" if result["permissions"] else "decline"
    return "answer"
