"""`codexctl thread approve`, `deny` and `answer`: decide what a thread asks a person for."""

from __future__ import annotations

import sys
from typing import Any

import click

from codexctl.cli.output import colour_wanted, confirm, emit, json_option, yes_option
from codexctl.cli.thread_find import at_host, at_thread, complete_thread, each_host
from codexctl.errors import CodexctlError, Refused, UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.connection import Connection
    from codexctl.client.store import HostRecord

MIN_ID = 4  # characters of an approval's id
ENDED = 1_000  # approvals looked through for one that is over
ASKING = ("question", "elicitation")
_hash_option = click.option(
    "--hash", "expected", metavar="HASH",
    help="Decide only what has this hash, as `codexctl inbox --json` gives it.",
)  # fmt: skip


@click.command()
@click.argument("target", metavar="THREAD|APPROVAL", shell_complete=complete_thread)
@click.option("--for-session", is_flag=True, help="Also the like of it, for this session.")
@click.option("--option", metavar="NAME", help="One of the other answers that it offers.")
@_hash_option
@yes_option
@json_option
def approve(
    target: str,
    for_session: bool,
    option: str | None,
    expected: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Allow what a thread asks for: a command, a change of files, permissions.

    Shows all of it and asks. The answer is bound to what was shown: where it has become something
    else, or somebody was quicker, nothing is decided and you are told. THREAD is enough where one
    thing waits in it.

    \b
        codexctl thread approve 7f3a9c
        codexctl thread approve box:fix --for-session
        codexctl thread approve 7f3a9c --option acceptWithExecpolicyAmendment
    """
    if for_session and option:
        raise UsageError("either --for-session or --option, not both")
    decision = "acceptForSession" if for_session else option or "accept"
    _decide(target, decision, expected, yes=yes, as_json=as_json)


@click.command()
@click.argument("target", metavar="THREAD|APPROVAL", shell_complete=complete_thread)
@click.option("--stop", is_flag=True, help="Stop the turn as well.")
@_hash_option
@json_option
def deny(target: str, stop: bool, expected: str | None, as_json: bool) -> None:
    """Refuse what a thread asks for; the agent goes on without it, or with --stop not at all.

    \b
        codexctl thread deny 7f3a9c
    """
    _decide(target, "cancel" if stop else "decline", expected, yes=True, as_json=as_json)


@click.command()
@click.argument("target", metavar="THREAD|APPROVAL", shell_complete=complete_thread)
@click.argument("given", nargs=-1, metavar="[QUESTION=]ANSWER...")
@click.option("--content", metavar="JSON", help="The content of a form, as a JSON object.")
@_hash_option
@json_option
def answer(
    target: str, given: tuple[str, ...], content: str | None, expected: str | None, as_json: bool
) -> None:
    """Answer what a thread asks: its questions, or the form of an MCP server.

    A single question takes the ANSWER alone. Without answers they are asked for here.

    \b
        codexctl thread answer box:fix "the second one"
        codexctl thread answer 7f3a9c colour=blue size=large
        codexctl thread answer 7f3a9c --content '{"email": "me@example.org"}'
    """
    home = Home.from_env()
    record, approval = _find(home, target, asking=True)
    _check(approval, expected)
    _show(approval)
    params: dict[str, Any] = {}
    if approval.get("kind") == "elicitation":
        params = {"decision": "accept", "content": _content(approval, content, given)}
    elif approval.get("kind") == "question":
        params = {"decision": "answer", "answers": _answers(approval, given)}
    else:
        raise UsageError(
            f"this {approval.get('kind')} request takes no text",
            hint=f"codexctl thread approve {approval['id']}",
        )
    _answer(home, record, approval, params, as_json=as_json)


def _decide(target: str, decision: str, expected: str | None, *, yes: bool, as_json: bool) -> None:
    home = Home.from_env()
    record, approval = _find(home, target, asking=False)
    _check(approval, expected)
    offered = [str(option.get("decision")) for option in approval.get("options") or ()]
    chosen = _offered(decision, offered, approval)
    _show(approval)
    words = {str(o.get("decision")): str(o.get("label")) for o in approval.get("options") or ()}
    if not confirm(f"{words.get(chosen, chosen)}?", yes=yes or expected is not None):
        raise UsageError("nothing was decided", hint=f"codexctl thread deny {approval['id']}")
    _answer(home, record, approval, {"decision": chosen}, as_json=as_json)


def _offered(decision: str, offered: list[str], approval: dict[str, Any]) -> str:
    """The decision of that name, also by the beginning of it. UsageError names what there is."""
    if approval.get("kind") == "question" and decision == "accept":
        raise UsageError(
            "this is a question, which takes an answer",
            hint=f"codexctl thread answer {approval['id']} ANSWER",
        )
    if decision in offered:
        return decision
    found = [name for name in offered if name.lower().startswith(decision.lower())]
    if decision == "cancel" or len(found) != 1:
        raise UsageError(
            f"{decision} is not offered here", hint=f"there is: {', '.join(offered) or 'nothing'}"
        )
    return found[0]


def _find(home: Home, target: str, *, asking: bool) -> tuple[HostRecord, dict[str, Any]]:
    """The one pending approval that is meant: by its id on any host, else by its thread."""
    found = _by_id(home, target)
    if not found:
        found = _by_thread(home, target)
        matching = [(r, a) for r, a in found if (a.get("kind") in ASKING) is asking]
        found = matching or found
    if not found:
        raise UsageError(f"nothing waits in {target}", hint="see: codexctl inbox")
    if len(found) > 1:
        from codexctl.client.thread_view_render import decision_text

        listed = "\n".join(f"{a['id']}  {decision_text(a, a['kind'])}"[:100] for _, a in found)
        raise UsageError(f"{len(found)} things wait in {target}", hint=f"name one of:\n{listed}")
    return found[0]


def _by_id(home: Home, target: str) -> list[tuple[HostRecord, dict[str, Any]]]:
    from codexctl.cli.thread_find import hosts_of
    from codexctl.client.agent import call
    from codexctl.client.threads import split_address

    records = hosts_of(home, None)
    host, text = split_address(target, [record.name for record in records])
    records = [record for record in records if host in (None, record.name)]
    text = text.lower()
    if len(text) < MIN_ID or not all(c in "0123456789abcdef" for c in text):
        return []

    def ask(connection: Connection) -> list[dict[str, Any]]:
        for params in ({}, {"state": "all", "limit": ENDED}):
            listed = call(connection, "approval.list", params)
            found = [approval for approval in listed if approval["id"].startswith(text)]
            if found:
                return found
        return []

    listed = each_host(home, records, ask)
    found = [(record, approval) for record, approvals in listed for approval in approvals]
    if len(found) == 1 and found[0][1]["state"] != "pending":
        raise _over(found[0][1])
    return [(record, approval) for record, approval in found if approval["state"] == "pending"]


def _over(approval: dict[str, Any]) -> CodexctlError:
    """What became of it, for whoever comes second."""
    import time

    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(approval.get("decided_at") or 0))
    if approval["state"] == "answered":
        said = f"{approval.get('decided_by')} has decided {approval.get('decision')} at {at}"
    else:
        why = approval.get("withdrawn_because")
        said = f"it is {approval['state']} since {at}{f': {why}' if why else ''}"
    return Refused(said, hint="see what waits now: codexctl inbox")


def _by_thread(home: Home, target: str) -> list[tuple[HostRecord, dict[str, Any]]]:
    from codexctl.client.agent import call

    with at_thread(home, target) as (connection, thread):
        listed = call(connection, "approval.list", {"thread": thread["id"]})
        if not listed:
            params = {"thread": thread["id"], "state": "all", "limit": ENDED}
            ended = call(connection, "approval.list", params)
            if ended:
                raise _over(ended[0])
        return [(connection.record, approval) for approval in listed]


def _check(approval: dict[str, Any], expected: str | None) -> None:
    """What is shown here is what the host's hash is of, and what was asked for."""
    from codexctl.agent.approvals import digest

    ended = ("hash", "created_at", "expires_in_s", "state")
    shown = {name: value for name, value in approval.items() if name not in ended}
    if digest(shown) != approval.get("hash"):
        raise Refused(
            "the host's hash is not of what it sent", hint="update codexctl here and on the host"
        )
    if expected is not None and not (
        len(expected) >= 8 and str(approval["hash"]).startswith(expected.lower())
    ):
        raise Refused(
            f"what waits now has the hash {approval['hash']}", hint="look again: codexctl inbox"
        )


def _show(approval: dict[str, Any]) -> None:
    """All of what is decided, on stderr: stdout is for the result."""
    from codexctl.client.process import terminal_size
    from codexctl.client.thread_view_render import approval_lines

    width = terminal_size()[0] if sys.stderr.isatty() else 100
    for line in approval_lines(approval, width, colour=colour_wanted(sys.stderr)):
        sys.stderr.write(f"{line}\n")


def _answer(
    home: Home,
    record: HostRecord,
    approval: dict[str, Any],
    params: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from codexctl.client.agent import call

    connection: Connection
    with at_host(home, record) as connection:
        request = {"id": approval["id"], "hash": approval["hash"], **params}
        ended = call(connection, "approval.answer", request)[0]
    emit({"host": record.name, **ended}, as_json, text=f"decided: {ended.get('decision')}")


def _answers(approval: dict[str, Any], given: tuple[str, ...]) -> dict[str, Any]:
    """Answers by question id. UsageError where one is missing or there is no such question."""
    questions = [q for q in approval.get("questions") or () if isinstance(q, dict)]
    names = [str(question.get("id")) for question in questions]
    if len(names) == 1 and len(given) == 1 and not given[0].startswith(f"{names[0]}="):
        return {names[0]: given[0]}
    answers: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise UsageError(
                f"{text} answers none of the questions",
                hint=f"QUESTION=ANSWER of {', '.join(names)}",
            )
        answers[name] = value
    for question, name in zip(questions, names, strict=True):
        if name not in answers:
            answers[name] = _ask(question, name)
    return answers


def _ask(question: dict[str, Any], name: str) -> str:
    from codexctl.cli.output import ask

    labels = [str(o.get("label")) for o in question.get("options") or () if isinstance(o, dict)]
    text = str(question.get("question") or name)
    hint = f"give it: codexctl thread answer … {name}=ANSWER"
    said = ask(
        f"{text}{f' ({chr(47).join(labels)})' if labels else ''}",
        hint=hint,
        hidden=bool(question.get("isSecret")),
    )
    if not said:
        raise UsageError(f"{name} was not answered", hint=hint)
    return said


def _content(
    approval: dict[str, Any], content: str | None, given: tuple[str, ...]
) -> dict[str, Any]:
    """A form's content: the JSON object, NAME=VALUE beside it, and what is asked for here."""
    import json

    form = approval.get("elicitation") or {}
    schema = form.get("requestedSchema") or {}
    fields: dict[str, Any] = schema.get("properties") or {}
    if not fields:
        raise UsageError(
            "this asks for a yes or no, not for an answer",
            hint=f"codexctl thread approve {approval['id']}",
        )
    try:
        value = json.loads(content) if content is not None else {}
    except ValueError as error:
        raise UsageError(f"--content is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError("--content is a JSON object")
    for text in given:
        name, equals, said = text.partition("=")
        if not equals and len(fields) == 1:
            name, said = next(iter(fields)), text
        elif not equals or name not in fields:
            raise UsageError(f"{text} fills no field", hint=f"NAME=VALUE of {', '.join(fields)}")
        value[name] = _typed(said, fields[name])
    for name in schema.get("required") or ():
        if name not in value:
            field = fields.get(name) or {}
            question = {"question": field.get("title") or field.get("description") or name}
            value[name] = _typed(_ask(question, name), field)
    return value


def _typed(text: str, field: Any) -> Any:
    """A text as the type that the form's schema wants. UsageError."""
    import json

    kind = field.get("type") if isinstance(field, dict) else None
    if kind not in ("boolean", "integer", "number"):
        return text
    text = {"yes": "true", "no": "false"}.get(text.lower(), text.lower())
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    fits = isinstance(value, bool) if kind == "boolean" else type(value) in (int, float)
    if not fits or (kind == "integer" and not isinstance(value, int)):
        raise UsageError(f"{text} is no {kind}")
    return value
