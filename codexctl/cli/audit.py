"""`codexctl audit`: on a host, what paired devices did there, and whether the records are whole."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import cell, emit, format_table, json_option, progress
from codexctl.errors import CodexctlError
from codexctl.paths import Home

COLUMNS = ("n", "time", "kind", "who", "what", "where", "outcome")
LAST = 50
MAX_CELL = 60


@click.group(cls=LazyGroup)
def audit() -> None:
    """What happened on this host: an append-only, hash-chained log in CODEXCTL_HOME/audit.jsonl.

    Pairings, commands, terminals, copies, forwards, denials and revocations are records.
    """


def _records() -> Any:
    import json

    from codexctl.host.audit import read_lines

    for number, line in enumerate(read_lines(Home.from_env().audit_log), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise CodexctlError(
                f"record {number} of the audit log is damaged", hint="see: codexctl audit verify"
            )
        yield record


@audit.command("list")
@click.option("--last", type=click.IntRange(1), default=LAST, show_default=True, metavar="N",
              help="So many of the newest records.")  # fmt: skip
@click.option("--who", metavar="NAME", help="Of this device only.")
@click.option("--kind", metavar="KIND", help="Of this kind only, as exec or pairing.")
@json_option
def list_records(last: int, who: str | None, kind: str | None, as_json: bool) -> None:
    """List the newest records, the oldest of them first."""
    newest: deque[dict[str, Any]] = deque(maxlen=last)
    for record in _records():
        if who in (None, record.get("who")) and kind in (None, record.get("kind")):
            newest.append(record)
    if as_json or not newest:
        emit(list(newest), as_json, empty="no records")
        return
    rows = [{name: _short(record.get(name)) for name in COLUMNS} for record in newest]
    emit(rows, False, text=format_table(rows, COLUMNS))


def _short(value: Any) -> str:
    if isinstance(value, list):
        import shlex

        value = shlex.join(map(str, value))
    text = cell(value)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


@audit.command()
@json_option
def verify(as_json: bool) -> int:
    """Check every record against the chain; status 1 names the first changed or missing one."""
    from codexctl.host.audit import verify as verify_log

    home = Home.from_env()
    with progress("checking the audit log"):
        found = verify_log(home)
    if found.fault is None:
        text = f"{found.records} records, none changed or missing"
        if found.unconfirmed > 0:
            text += f" ({found.unconfirmed} of them newer than the last confirmation)"
        emit({"good": True, "records": found.records}, as_json, text=text)
        return 0
    n, reason = found.fault
    emit(
        {"good": False, "records": found.records, "record": n, "reason": reason},
        as_json,
        text=f"record {n} {reason}; the {found.records} before it are good",
    )
    return 1


@audit.command()
@click.option("--format", "form", type=click.Choice(["jsonl"]), default="jsonl", show_default=True)
def export(form: str) -> None:
    """Write all records to stdout, one JSON object a line, with their hashes."""
    from codexctl.host.audit import read_lines

    for line in read_lines(Home.from_env().audit_log):
        sys.stdout.write(line.decode(errors="replace"))
