"""Approvals: what the agent asks of a person, as a record that is answered once. No I/O.

    pending --decide--> answered      by a device that saw what the hash is of
    pending --end-----> withdrawn     the agent no longer waits for it
    pending --end-----> expired       nobody answered within EXPIRES_S of elapsed time

A record leaves `pending` once and never returns. Elapsed time is that of a clock which goes on in
suspend and knows nothing of the calendar (`Clock`); a record from before the last boot has expired,
as whatever waited for it is gone.

`decide` returns the ended record and the official response for the app-server. What a person
answers to a question or a form is in the response alone: it may be a secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from codexctl.agent.errors import AlreadyDecided
from codexctl.errors import Refused, UsageError

EXPIRES_S = 24 * 3600.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_SHOWN_BYTES = 8 << 20  # a patch beyond it is not for a person to judge: it is declined

KINDS = {
    "item/commandExecution/requestApproval": "command",
    "item/fileChange/requestApproval": "file-change",
    "item/permissions/requestApproval": "permissions",
    "item/tool/requestUserInput": "question",
    "mcpServer/elicitation/request": "elicitation",
}
_PERSIST = {"acceptForSession": "session", "acceptAlways": "always"}
_EXECPOLICY = "acceptWithExecpolicyAmendment"
_NETWORK = "applyNetworkPolicyAmendment"
_LABELS = {
    "accept": "allow it once",
    "acceptForSession": "allow it and the like for this session",
    "acceptAlways": "allow it and the like from now on",
    "decline": "refuse it; the agent goes on without",
    "cancel": "refuse it and stop the turn",
    "answer": "answer the questions",
}


class Clock(NamedTuple):
    """Elapsed time: seconds on the clock of one boot, and which boot that is."""

    boot: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Approval:
    """One question to a person. `request` is the official request's params, untouched."""

    id: str
    request_id: int | str
    """The app-server's own; it means nothing to another one."""
    method: str
    request: dict[str, Any]
    thread: str
    turn: str | None
    shown: dict[str, Any]
    hash: str
    boot: str
    since: float
    created_at: int
    state: str = "pending"
    decision: str | None = None
    decided_by: str | None = None
    decided_at: int | None = None
    reason: str | None = None
    """Why it was withdrawn."""

    @property
    def kind(self) -> str:
        return KINDS[self.method]

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Approval:
        return cls(**record)

    def public(self, clock: Clock) -> dict[str, Any]:
        """The object that devices see (PROTOCOL.md section 8)."""
        out = {
            "id": self.id,
            "thread": self.thread,
            "turn": self.turn,
            "kind": self.kind,
            **self.shown,
            "hash": self.hash,
            "created_at": self.created_at,
            "expires_in_s": max(0, int(remaining(self, clock))) if self.state == "pending" else 0,
            "state": self.state,
        }
        ended = {
            "decision": self.decision,
            "decided_by": self.decided_by,
            "decided_at": self.decided_at,
            "withdrawn_because": self.reason,
        }
        return out | {name: value for name, value in ended.items() if value is not None}


def requested(
    method: str,
    params: dict[str, Any],
    *,
    id: str,
    request_id: int | str,
    patch: str | None,
    clock: Clock,
    now: int,
) -> Approval:
    """A pending record for a request of one of KINDS. `patch` is the change that it is about."""
    shown = _shown(method, params, patch)
    thread, turn = params.get("threadId"), params.get("turnId")
    bound = {"id": id, "thread": thread, "turn": turn, "kind": KINDS[method], **shown}
    return Approval(
        id=id,
        request_id=request_id,
        method=method,
        request=params,
        thread=str(thread),
        turn=turn if isinstance(turn, str) else None,
        shown=shown,
        hash=digest(bound),
        boot=clock.boot,
        since=clock.seconds,
        created_at=now,
    )


def digest(shown: Mapping[str, Any]) -> str:
    """SHA-256 of what a person is shown, as compact JSON with sorted keys."""
    text = json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(method: str, params: Mapping[str, Any], patch: str | None) -> dict[str, Any]:
    kind = KINDS[method]
    shown = {name: params[name] for name in ("cwd", "reason") if params.get(name) is not None}
    if kind == "command":
        for name, ours in (
            ("command", "command"),
            ("networkApprovalContext", "network"),
            ("additionalPermissions", "permissions"),
        ):
            if params.get(name) is not None:
                shown[ours] = params[name]
        if params.get("kind") not in (None, "command"):
            shown["command_kind"] = params["kind"]
    elif kind == "file-change":
        shown["patch"] = patch or ""
        if params.get("grantRoot") is not None:
            shown["grant_root"] = params["grantRoot"]
    elif kind == "permissions":
        shown["permissions"] = params.get("permissions")
    elif kind == "question":
        shown["questions"] = params.get("questions") or []
    else:
        names = ("serverName", "message", "mode", "requestedSchema", "url")
        shown["elicitation"] = {name: params[name] for name in names if name in params}
        # Whether a tool may run is asked in this form, too; what it would do is beside it.
        tool = {name: meta for name, meta in _meta(params).items() if name.startswith("tool_")}
        shown["elicitation"] |= tool
    shown["options"] = [
        {"decision": name, "label": label} for name, (label, _) in _options(kind, params).items()
    ]
    return shown


def _options(kind: str, params: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """What may be decided: for each decision its label and the official value."""
    if kind == "question":
        names = ["answer", "decline"]
    elif kind == "elicitation":
        persist = _meta(params).get("persist")
        offered = persist if isinstance(persist, list) else []
        more = [name for name, value in _PERSIST.items() if value in offered]
        names = ["accept", *more, "decline", "cancel"]
    elif kind == "permissions":
        names = ["accept", "acceptForSession", "decline"]
    elif kind == "file-change":
        names = ["accept", "acceptForSession", "decline", "cancel"]
    else:
        return _command_options(params)
    return {name: (_LABELS[name], name) for name in names}


def _command_options(params: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    offered = params.get("availableDecisions")
    if not isinstance(offered, list):
        offered = ["accept", "acceptForSession"]
        amendment = params.get("proposedExecpolicyAmendment")
        if amendment:
            offered.append({_EXECPOLICY: {"execpolicy_amendment": amendment}})
        for rule in params.get("proposedNetworkPolicyAmendments") or ():
            offered.append({_NETWORK: {"network_policy_amendment": rule}})
    options: dict[str, tuple[str, Any]] = {}
    # No is always an answer, whether the agent lists it or not.
    for value in [*offered, "decline", "cancel"]:
        if isinstance(value, str):
            options.setdefault(value, (_LABELS.get(value, value), value))
        elif isinstance(value, dict) and _EXECPOLICY in value:
            words = value[_EXECPOLICY].get("execpolicy_amendment") or ()
            label = f"allow it, and from now on what begins with: {' '.join(map(str, words))}"
            options[_EXECPOLICY] = (label, value)
        elif isinstance(value, dict) and _NETWORK in value:
            rule = value[_NETWORK].get("network_policy_amendment") or {}
            action, host = rule.get("action"), rule.get("host")
            label = f"from now on {action} connections to {host}"
            options[f"{_NETWORK}:{action}"] = (label, value)
    return options


def remaining(approval: Approval, clock: Clock) -> float:
    """Seconds until it expires, at most 0 when it has."""
    if approval.boot != clock.boot:
        return 0.0
    return EXPIRES_S - (clock.seconds - approval.since)


def end(approval: Approval, state: str, *, now: int, reason: str) -> Approval:
    """The record withdrawn or expired; one that is over already stays as it is."""
    if approval.state != "pending":
        return approval
    return replace(approval, state=state, reason=reason, decided_at=now)


def decide(
    approval: Approval,
    *,
    decision: str,
    hash: str,
    who: str,
    now: int,
    clock: Clock,
    answers: object = None,
    content: object = None,
) -> tuple[Approval, dict[str, Any]]:
    """The answered record, and the response for the app-server.

    AlreadyDecided tells whoever comes second what became of it; Refused where the hash is not that
    of this record; UsageError where the decision is none that it offers or what it needs is wrong.
    """
    if approval.state != "pending":
        raise AlreadyDecided(told(approval), hint="see: codexctl inbox --all")
    if remaining(approval, clock) <= 0:
        raise AlreadyDecided(f"approval {approval.id} has expired", hint="see: codexctl inbox")
    if hash != approval.hash:
        raise Refused(
            f"approval {approval.id} is not what was shown: its hash is another",
            hint="look at it again: codexctl inbox",
        )
    options = _options(approval.kind, approval.request)
    if decision not in options:
        raise UsageError(
            f"{decision[:60]!r} is no answer to this {approval.kind} request",
            hint=f"it takes {', '.join(options)}",
        )
    response = _response(approval, decision, options[decision][1], answers, content)
    ended = replace(approval, state="answered", decision=decision, decided_by=who, decided_at=now)
    return ended, response


def told(approval: Approval) -> str:
    """What became of a record that is over, for whoever comes second."""
    import datetime

    at = datetime.datetime.fromtimestamp(approval.decided_at or 0, datetime.UTC)
    when = at.strftime("%Y-%m-%d %H:%M:%S UTC")
    if approval.state == "answered":
        return f"{approval.decided_by} has decided {approval.decision} at {when}"
    why = f": {approval.reason}" if approval.reason else ""
    return f"approval {approval.id} is {approval.state} since {when}{why}"


def _response(
    approval: Approval, decision: str, official: Any, answers: object, content: object
) -> dict[str, Any]:
    kind = approval.kind
    if kind in ("command", "file-change"):
        return {"decision": official}
    if kind == "permissions":
        granted = decision != "decline"
        return {
            "permissions": approval.request.get("permissions") if granted else {},
            "scope": "session" if decision == "acceptForSession" else "turn",
        }
    if kind == "question":
        given = _answers(approval, answers) if decision == "answer" else {}
        return {"answers": {name: {"answers": values} for name, values in given.items()}}
    if decision in ("decline", "cancel"):
        return {"action": decision}
    if content is not None and not isinstance(content, dict):
        raise UsageError("the content of a form is an object")
    if len(json.dumps(content)) > MAX_ANSWER_BYTES:
        raise UsageError(f"an answer has at most {MAX_ANSWER_BYTES} bytes")
    response: dict[str, Any] = {"action": "accept"}
    if approval.request.get("mode") != "url":
        missing = set(_required(approval.request)) - set(content or {})
        if missing:
            raise UsageError(f"the form needs {', '.join(sorted(missing))}")
        response["content"] = content or {}
    if decision in _PERSIST:
        response["_meta"] = {"persist": _PERSIST[decision]}
    return response


def _meta(request: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = request.get("_meta")
    return meta if isinstance(meta, dict) else {}


def _required(request: Mapping[str, Any]) -> list[str]:
    schema = request.get("requestedSchema")
    names = schema.get("required") if isinstance(schema, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _answers(approval: Approval, answers: object) -> dict[str, list[str]]:
    """Answers by question: one text or a list of them for each. UsageError."""
    if not isinstance(answers, dict) or len(json.dumps(answers)) > MAX_ANSWER_BYTES:
        raise UsageError(f"answers are an object of at most {MAX_ANSWER_BYTES} bytes")
    known = [str(question.get("id")) for question in approval.shown["questions"]]
    unknown = set(answers) - set(known)
    missing = [name for name in known if name not in answers]
    if unknown or missing:
        wrong = f"there is no question {min(unknown)!r}" if unknown else f"{missing[0]!r} is open"
        raise UsageError(wrong, hint=f"the questions are {', '.join(known)}")
    given: dict[str, list[str]] = {}
    for name, value in answers.items():
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise UsageError(f"the answer to {name!r} is a text or a list of texts")
        given[name] = values
    return given


def refusal(approval: Approval) -> dict[str, Any]:
    """The response that says no, for a record that nobody answered."""
    return _response(approval, "decline", "decline", None, None)
