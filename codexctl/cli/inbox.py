"""`codexctl inbox`: over all hosts, what waits for a person."""

from __future__ import annotations

import sys
from typing import Any

import click

from codexctl.cli.complete import complete_paired
from codexctl.cli.output import colour_wanted, emit, json_option, notice
from codexctl.cli.thread_find import each_host, hosts_of, label
from codexctl.cli.thread_list import age
from codexctl.errors import CodexctlError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.connection import Connection

ENDED = 50  # approvals that are over, with --all, of each host
TOLD_THREADS = 100


@click.command()
@click.argument("host", required=False, shell_complete=complete_paired)
@click.option("--all", "everything", is_flag=True, help="Also what was decided, and by whom.")
@click.option("--full", is_flag=True, help="All of every change, not only its beginning.")
@json_option
def inbox(host: str | None, everything: bool, full: bool, as_json: bool) -> None:
    """List what waits for a person, over all paired hosts: approvals, questions, messages.

    Each with the exact command or change, where, why, and how long it still waits. Decide with
    `codexctl thread approve ID`, `deny ID` or `answer ID`.

    \b
        codexctl inbox
        codexctl inbox --json | jq -r '.[].id'
    """
    home = Home.from_env()
    state = "all" if everything else "pending"

    def ask(connection: Connection) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        from codexctl.client.agent import call

        found = call(connection, "approval.list", {"state": state, "limit": ENDED})
        wanted = {str(approval.get("thread")) for approval in found}
        threads = call(connection, "thread.list", {"limit": TOLD_THREADS}) if wanted else []
        return found, {str(thread["id"]): thread for thread in threads if thread["id"] in wanted}

    try:
        answers = each_host(home, hosts_of(home, host), ask)
    except CodexctlError:
        _messages(home)
        raise
    rows: list[dict[str, Any]] = []
    for record, (found, threads) in answers:
        for approval in found:
            thread = threads.get(str(approval.get("thread"))) or {"id": approval.get("thread")}
            row = {"host": record.name, "name": thread.get("name"), **approval}
            rows.append(
                {**row, "bypass": bool(thread.get("bypass")), "label": label(record, thread)}
            )
    rows.sort(key=lambda row: row.get("created_at") or 0)
    if as_json:
        emit([{k: v for k, v in row.items() if k != "label"} for row in rows], True)
        return
    _print(rows, full=full)
    _messages(home)


def _print(rows: list[dict[str, Any]], *, full: bool) -> None:
    from codexctl.client.process import terminal_size
    from codexctl.client.thread_view_render import inbox_lines
    from codexctl.client.thread_view_screen import PLAIN_WIDTH

    if not rows:
        notice("nothing waits for you")
    width = terminal_size()[0] if sys.stdout.isatty() else PLAIN_WIDTH
    colour = colour_wanted(sys.stdout)
    for row in rows:
        title = f"{row['label']}  {age(row.get('created_at'))}"
        for line in inbox_lines(row, title, width, colour=colour, full=full):
            sys.stdout.write(f"{line}\n")


def _messages(home: Home) -> None:
    """What waits or was refused in the outbox is for a person, too."""
    import os

    from codexctl.client.outbox import listed
    from codexctl.client.threads import THREADS_DB, open_threads

    if not os.path.exists(home.join(THREADS_DB)):
        return
    db = open_threads(home)
    for state, words in (("refused", "were refused"), ("waiting", "wait for their host")):
        count = len(listed(db, state))
        if count:
            notice(f"{count} messages {words}: codexctl thread outbox")
