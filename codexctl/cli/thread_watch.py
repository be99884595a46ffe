"""`codexctl thread watch`, and following a thread for the other commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from codexctl.cli.output import colour_wanted, emit_line, json_option, notice
from codexctl.cli.thread_find import at_thread, complete_thread, label, warn_of_bypass
from codexctl.errors import UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.connection import Connection

INTERRUPTED = 130


def wait_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--wait`, passed as `wait`."""
    text = "Until the turn ends or a person is needed: 0 done, 10 waiting for a person, 20 failed."
    return click.option("--wait", is_flag=True, help=text)(function)


def _cursor(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    if value == "now":
        return value
    if value.isascii() and value.isdigit():
        return int(value)
    raise click.BadParameter("a cursor is a whole number, or now")


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option(
    "--cursor", default="0", callback=_cursor, metavar="N",
    help="Only what came behind this event, or now: nothing of what was before.",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="All of what was before, not only its end.")
@click.option("--full", is_flag=True, help="All of every output and change.")
@click.option("--no-follow", is_flag=True, help="End where the events end.")
@wait_option
@json_option
def watch(
    thread: str,
    cursor: int | str,
    everything: bool,
    full: bool,
    no_follow: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Follow THREAD: messages, commands with their output, plans and changes, as they come.

    It connects again by itself and misses nothing. Ctrl-C leaves, and the thread goes on. With
    --json each event is a line: cursor, at, thread, method, params, the official ones untouched;
    --cursor goes on behind the last one seen.

    \b
        codexctl thread watch 01a1fdb6
        codexctl thread watch box:fix --wait && echo it is done
        codexctl thread watch 01a1fdb6 --json --cursor now
    """
    if wait and no_follow:
        raise UsageError("either --wait or --no-follow, not both")
    home = Home.from_env()
    with at_thread(home, thread) as (connection, found):
        return follow_thread(
            home, connection, found, cursor, full=full, everything=everything,
            lasting=not no_follow, wait=wait, as_json=as_json,
        )  # fmt: skip


def last_cursor(connection: Connection, thread: str) -> int:
    """The cursor of the newest event: what is done after this comes behind it."""
    from codexctl.client.agent import call

    params = {"thread": thread, "cursor": "now", "follow": False}
    return int(call(connection, "thread.watch", params)[-1]["cursor"])


def follow_thread(
    home: Home,
    connection: Connection,
    thread: dict[str, Any],
    cursor: int | str = 0,
    *,
    full: bool = False,
    everything: bool = False,
    lasting: bool = True,
    wait: bool = False,
    turn_expected: bool = False,
    as_json: bool = False,
) -> int:
    """Show the events behind `cursor` until Ctrl-C, or with `wait` as long as that says."""
    from codexctl.client.thread_follow import Waiting, follow
    from codexctl.client.thread_view import ThreadView
    from codexctl.client.thread_view_screen import Screen

    record = connection.record
    view = ThreadView()
    view.cwd = str(thread.get("cwd") or "")
    view.status = str(thread.get("status") or "unknown")
    if turn_expected:
        view.status = "active"
    if wait and cursor != 0 and thread.get("status") == "waiting":
        from codexctl.client.agent import call

        found = call(connection, "approval.list", {"thread": thread["id"]})
        view.pending = {str(approval["id"]): approval for approval in found}
    waiting = Waiting(view, turn_expected=turn_expected)
    if not as_json:
        warn_of_bypass(thread)
    colour = colour_wanted(sys.stdout)
    screen = Screen(view, label(record, thread), colour=colour, full=full, all=everything)

    def reopen() -> Connection:
        from codexctl.client.connection import Connection
        from codexctl.state.identity import load_identity

        return Connection.open(record, load_identity(home))

    def opened(current: Connection) -> None:
        if not as_json:
            screen.attach(current)

    def told(text: str) -> None:
        if not as_json:
            view.feed({"method": "warning", "params": {"message": text}})
            screen.event({})
        else:
            notice(text)

    events = follow(
        connection, reopen, str(thread["id"]), cursor, lasting=lasting, script=wait, notice=told,
        opened=opened,
    )  # fmt: skip
    try:
        with screen:
            for event in events:
                view.feed(event)
                if as_json:
                    emit_line(event)
                else:
                    screen.event(event)
                status = (
                    waiting.status(event, thread_status=str(thread.get("status"))) if wait else None
                )
                if status is not None:
                    return status
    except KeyboardInterrupt:
        name = str(thread["id"])[:13]
        notice(f"left; the thread goes on: codexctl thread watch {record.name}:{name}")
        return INTERRUPTED
    finally:
        events.close()
    return 0
