"""`codexctl thread list` and `show`."""

from __future__ import annotations

import time
from typing import Any

import click

from codexctl.cli.complete import complete_paired
from codexctl.cli.output import emit, emit_line, json_option, notice
from codexctl.cli.thread_find import BYPASS, at_thread, complete_thread, hosts_of, list_threads
from codexctl.errors import CodexctlError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.store import HostRecord

PREVIEW_CHARS = 48
MAX_LISTED = 500
SHOWN_TURNS = 20


@click.command("list")
@click.argument("host", required=False, shell_complete=complete_paired)
@click.option("--archived", is_flag=True, help="Those that were put away instead.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, MAX_LISTED), default=20, show_default=True,
    help="At most so many of each host, those changed last.",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="As many as a host gives.")
@json_option
def list_command(
    host: str | None, archived: bool, limit: int, everything: bool, as_json: bool
) -> None:
    """List threads, those changed last first; also those that the official CLI has started there.

    Of all paired hosts, or of HOST; of a host that is away those that it has listed before. A
    thread that asks nobody is marked.

    \b
        codexctl thread list
        codexctl thread list box --archived
        codexctl thread list --json
    """
    home = Home.from_env()
    records = hosts_of(home, host)
    most = MAX_LISTED if everything else limit
    try:
        found = list_threads(home, records, archived=archived, limit=most)
    except CodexctlError as error:
        if archived or not _away(home, records, most):
            raise
        notice(str(error))
        found = []
    threads = [{"host": record.name, **thread} for record, listed in found for thread in listed]
    if not archived:
        answered = [record for record, _ in found]
        threads += _away(home, [r for r in records if r not in answered], most)
    threads.sort(key=lambda thread: thread.get("updated_at") or 0, reverse=True)
    waiting = _messages(home)
    if as_json:
        emit([{**t, "waiting_messages": waiting.get(str(t.get("id")), 0)} for t in threads], True)
        return
    rows = [_row(thread, waiting.get(str(thread.get("id")), 0)) for thread in threads]
    emit(
        rows,
        False,
        table=("thread", "status", "changed", "host", "cwd", "name"),
        empty="no threads: codexctl thread start HOST PROMPT",
    )


def _away(home: Home, records: list[HostRecord], most: int) -> list[dict[str, Any]]:
    """What hosts that are away have listed before."""
    from codexctl.client.threads import open_threads, remembered

    known = remembered(open_threads(home))
    out: list[dict[str, Any]] = []
    for record in records:
        rows = [thread for thread in known if thread.host == record.environment_id][:most]
        out += [{**row._asdict(), "host": record.name, "status": "away"} for row in rows]
    return out


def _messages(home: Home) -> dict[str, int]:
    """How many messages wait in the outbox, by thread."""
    import os
    from collections import Counter

    from codexctl.client.outbox import listed
    from codexctl.client.threads import THREADS_DB, open_threads

    if not os.path.exists(home.join(THREADS_DB)):
        return {}
    return Counter(message.thread for message in listed(open_threads(home), "waiting"))


def _row(thread: dict[str, Any], waiting: int) -> dict[str, Any]:
    from codexctl.client.threads import SHORT_ID

    name = str(thread.get("name") or thread.get("preview") or "")
    name = " ".join(name.split())
    name = name if len(name) <= PREVIEW_CHARS else name[: PREVIEW_CHARS - 1] + "…"
    if thread.get("moved_to"):
        name = f"moved to {thread['moved_to']}  {name}"
    if thread.get("bypass"):
        name = f"{BYPASS} {name}"
    if waiting:
        name = f"{name} ({waiting} to be delivered)"
    return {
        "thread": str(thread.get("id"))[:SHORT_ID],
        "status": thread.get("status"),
        "changed": age(thread.get("updated_at")),
        "host": thread.get("host"),
        "cwd": thread.get("cwd"),
        "name": name,
    }


def age(at: object) -> str:
    """How long ago, for a table."""
    if not isinstance(at, int | float):
        return "-"
    seconds = max(int(time.time() - at), 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option(
    "-n", "--turns", type=click.IntRange(0, 200), default=SHOWN_TURNS, show_default=True,
    help="At most so many turns, the last ones.",
)  # fmt: skip
@click.option("--full", is_flag=True, help="All of every output and change.")
@json_option
def show(thread: str, turns: int, full: bool, as_json: bool) -> None:
    """Show THREAD: where it runs, what it may do, its goal, and what was said and done in it.

    With --json the thread on the first line and each turn, as the official app-server has it, on
    one of the next.

    \b
        codexctl thread show 01a1fdb6
        codexctl thread show box:"fix the flaky test" --turns 1 --full
    """
    from codexctl.client.agent import stream

    home = Home.from_env()
    with at_thread(home, thread) as (connection, found):
        params = {"thread": found["id"], "limit": turns}
        answer = list(stream(connection, "thread.show", params))
        host = connection.record.name
    head, rest = answer[0], [line["turn"] for line in answer[1:] if "turn" in line]
    if as_json:
        emit_line({"host": host, **head})
        for turn in rest:
            emit_line(turn)
        return
    _show_head(home, host, head)
    _show_turns(head, rest, full=full)


def _show_head(home: Home, host: str, thread: dict[str, Any]) -> None:
    goal = thread.get("goal") or {}
    record: dict[str, Any] = {
        "id": thread.get("id"),
        "name": thread.get("name"),
        "host": host,
        "cwd": thread.get("cwd"),
        "branch": thread.get("branch"),
        "worktree": thread.get("worktree"),
        "status": thread.get("status"),
        "moved to": thread.get("moved_to"),
        "model": thread.get("model"),
        "sandbox": thread.get("sandbox"),
        "approvals": thread.get("approval"),
        "goal": f"{goal.get('objective')} ({goal.get('status')})" if goal else None,
        "changed": age(thread.get("updated_at")),
    }
    emit({name: value for name, value in record.items() if value is not None}, False)
    if thread.get("bypass"):
        notice("this thread asks nobody before it acts")
    waiting = _messages(home).get(str(thread.get("id")), 0)
    if waiting:
        notice(f"{waiting} messages for it wait to be delivered: codexctl thread outbox")


def _show_turns(thread: dict[str, Any], turns: list[dict[str, Any]], *, full: bool) -> None:
    import sys

    from codexctl.cli.output import colour_wanted
    from codexctl.client.process import terminal_size
    from codexctl.client.thread_view import ThreadView
    from codexctl.client.thread_view_render import lines
    from codexctl.client.thread_view_screen import PLAIN_WIDTH

    view = ThreadView()
    view.cwd = str(thread.get("cwd") or "")
    for turn in turns:
        for item in turn.get("items") or ():
            view.feed({"method": "item/completed", "params": {"item": item}})
        if turn.get("status") != "inProgress":
            view.feed({"method": "turn/completed", "params": {"turn": turn}})
    width = terminal_size()[0] if sys.stdout.isatty() else PLAIN_WIDTH
    for line in lines(view.take(), width, colour=colour_wanted(sys.stdout), full=full):
        sys.stdout.write(f"{line}\n")
