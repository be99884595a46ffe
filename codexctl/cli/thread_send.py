"""`codexctl thread send`, `steer` and `interrupt`."""

from __future__ import annotations

import click

from codexctl.cli.output import emit, json_option, notice, printable
from codexctl.cli.thread_find import Place, at_thread, complete_thread, host_thread, label, locate
from codexctl.cli.thread_prompt import read_prompt
from codexctl.cli.thread_watch import wait_option
from codexctl.errors import CodexctlError, UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

    from codexctl.client.outbox import Message
    from codexctl.client.store import HostRecord

_file_option = click.option(
    "--prompt-file", "files", multiple=True, metavar="FILE",
    help="Add what FILE holds; - is standard input. Several are joined.",
)  # fmt: skip


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.argument("words", nargs=-1, metavar="TEXT")
@_file_option
@wait_option
@json_option
def send(
    thread: str, words: tuple[str, ...], files: tuple[str, ...], wait: bool, as_json: bool
) -> int:
    """Say TEXT to THREAD: it begins a turn, or joins the one that runs. TEXT - is standard input.

    Where the host is away the message waits on this device and is delivered once, in order, by the
    next codexctl command that reaches the host; `codexctl thread outbox` shows what waits, and
    `codexctl thread outbox --deliver` waits for the hosts. With --wait this command does.

    \b
        codexctl thread send 01a1fdb6 "now run the whole suite"
        git diff | codexctl thread send box:fix - --wait
    """
    import time

    from codexctl.client.outbox import put
    from codexctl.client.thread_follow import backoff, passes
    from codexctl.client.threads import matching, open_threads, remembered

    text = read_prompt(words, files)
    home = Home.from_env()
    place = locate(home, thread)
    db = open_threads(home)
    # Written down before the host is asked for anything: what follows may fail at any point.
    host = place.record.environment_id
    on_host = matching([t for t in remembered(db) if t.host == host], place.thread)
    name = on_host[0].id if len(on_host) == 1 else place.thread
    message = put(db, host, name, text)
    failures = 0
    while True:
        try:
            return _deliver(home, db, place, message, wait=wait, as_json=as_json)
        except CodexctlError as error:
            if not passes(error, None):
                _take_back(db, message)
                raise
            if not wait:
                return _kept(message, place.record, error, as_json=as_json)
            if not failures:
                notice(f"{place.record.name} is not reached: {error}; trying again until it is")
        time.sleep(backoff(failures))  # a host that is away cannot say when it is back
        failures += 1


def _deliver(
    home: Home,
    db: sqlite3.Connection,
    place: Place,
    message: Message,
    *,
    wait: bool,
    as_json: bool,
) -> int:
    """Deliver all that waits for the host, this message last; then wait for the turn."""
    from codexctl.cli.target import open_connection
    from codexctl.cli.thread_deliver import deliver_waiting, lost_as_such
    from codexctl.cli.thread_watch import follow_thread, last_cursor
    from codexctl.client.outbox import address

    record = place.record
    with open_connection(home, record) as connection:
        with lost_as_such(connection):
            found = host_thread(home, connection, place.thread)
            cursor = last_cursor(connection, str(found["id"])) if wait else 0
        address(db, message.number, str(found["id"]))
        mine = deliver_waiting(home, connection, wait=True, own=message.number)
        if wait and not mine:
            # Its turn may be over already: what counts is how the thread is after this.
            cursor = last_cursor(connection, str(found["id"]))
            found = host_thread(home, connection, str(found["id"]))
        if wait:
            expected = mine or found.get("status") == "active"
            return follow_thread(
                home, connection, found, cursor, wait=True, turn_expected=expected, as_json=as_json
            )
    emit(
        {
            "thread": found["id"],
            "host": record.name,
            "message": message.number,
            "state": "delivered",
        },
        as_json,
        text=printable(f"delivered to {label(record, found)}"),
    )
    return 0


def _kept(message: Message, record: HostRecord, error: CodexctlError, *, as_json: bool) -> int:
    notice(f"{record.name} is not reached: {error}")
    emit(
        {
            "thread": message.thread,
            "host": record.name,
            "message": message.number,
            "state": "waiting",
        },
        as_json,
        text=f"message {message.number} waits for {record.name}; see: codexctl thread outbox",
    )
    return 0


def _take_back(db: sqlite3.Connection, message: Message) -> None:
    """Forget a message whose sender is told by an error that it was not sent."""
    from codexctl.client.outbox import drop, listed

    if any(waits.number == message.number for waits in listed(db, "waiting")):
        drop(db, message.number)


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.argument("words", nargs=-1, metavar="TEXT")
@_file_option
@wait_option
@json_option
def steer(
    thread: str, words: tuple[str, ...], files: tuple[str, ...], wait: bool, as_json: bool
) -> int:
    """Say TEXT to the turn that runs in THREAD now; an error where none runs.

    It is about what happens now, so it never waits in the outbox.

    \b
        codexctl thread steer 01a1fdb6 "leave the tests as they are"
    """
    import secrets

    from codexctl.cli.thread_watch import follow_thread, last_cursor
    from codexctl.client.agent import call

    text = read_prompt(words, files)
    if not text:
        raise UsageError("there is nothing to say", hint="codexctl thread steer THREAD TEXT")
    home = Home.from_env()
    with at_thread(home, thread) as (connection, found):
        cursor = last_cursor(connection, str(found["id"])) if wait else 0
        params = {"thread": found["id"], "key": secrets.token_hex(16)}
        call(connection, "thread.steer", params, input=text.encode())
        if wait:
            return follow_thread(
                home, connection, found, cursor, wait=True, turn_expected=True, as_json=as_json
            )
        host = connection.record.name
    emit({"thread": found["id"], "host": host, "state": "delivered"}, as_json, text="delivered")
    return 0


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@json_option
def interrupt(thread: str, as_json: bool) -> None:
    """Stop the turn that runs in THREAD. What it asked of a person is withdrawn.

    The thread stays, with all it did; `codexctl thread send` goes on with it.
    """
    from codexctl.client.agent import call

    with at_thread(Home.from_env(), thread) as (connection, found):
        answer = call(connection, "thread.interrupt", {"thread": found["id"]})[0]
    text = "interrupted" if answer.get("interrupted") else "no turn runs in it"
    emit(answer, as_json, text=text)
