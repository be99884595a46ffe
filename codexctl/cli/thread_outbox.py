"""`codexctl thread outbox`: messages that wait on this device for hosts that are away."""

from __future__ import annotations

import time
from typing import Any

import click

from codexctl.cli.output import emit, json_option, notice
from codexctl.cli.thread_list import age
from codexctl.errors import CodexctlError, UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3

TEXT_CHARS = 48


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also those that were delivered lately.")
@click.option("--deliver", is_flag=True, help="Deliver them, waiting for hosts that are away.")
@click.option("--retry", type=int, metavar="N", help="Have a refused message wait again.")
@click.option("--drop", type=int, metavar="N", help="Forget a message that was not delivered.")
@json_option
def outbox(
    everything: bool, deliver: bool, retry: int | None, drop: int | None, as_json: bool
) -> None:
    """List the messages that wait for hosts that are away, and those that a host has refused.

    Each is delivered once, in order, by the next codexctl command that reaches its host, or by
    --deliver, which stays until all are delivered.

    \b
        codexctl thread outbox
        codexctl thread outbox --deliver &
        codexctl thread outbox --drop 7
    """
    from codexctl.client import outbox as box
    from codexctl.client.threads import open_threads

    if (deliver, retry is not None, drop is not None).count(True) > 1:
        raise UsageError("one of --deliver, --retry and --drop")
    home = Home.from_env()
    db = open_threads(home)
    if retry is not None:
        box.retry(db, retry)
    if drop is not None:
        box.drop(db, drop)
    if deliver:
        _deliver_all(home, db)
    found = box.listed(db) if everything else box.listed(db, "waiting", "refused")
    names = _names(home)
    rows = [{**message._asdict(), "host": names.get(message.host, "?")} for message in found]
    emit(
        rows if as_json else [_row(row) for row in rows],
        as_json,
        table=("message", "state", "written", "host", "thread", "text"),
        empty="nothing waits",
    )


def _names(home: Home) -> dict[str, str]:
    from codexctl.client.store import HostStore

    return {record.environment_id: record.name for record in HostStore(home).all()}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    text = " ".join(str(row["text"]).split())
    text = text if len(text) <= TEXT_CHARS else text[: TEXT_CHARS - 1] + "…"
    return {
        "message": row["number"],
        "state": f"refused: {row['error']}" if row["state"] == "refused" else row["state"],
        "written": age(row["created_at"]),
        "host": row["host"],
        "thread": str(row["thread"])[:13],
        "text": text,
    }


def _deliver_all(home: Home, db: sqlite3.Connection) -> None:
    """Try the hosts in turn, again and again, until nothing waits."""
    from codexctl.cli.target import open_connection
    from codexctl.cli.thread_deliver import deliver_waiting
    from codexctl.client.outbox import listed
    from codexctl.client.store import HostStore
    from codexctl.client.thread_follow import backoff, passes

    failures, told = 0, set()
    while True:
        hosts = {message.host for message in listed(db, "waiting")}
        records = [r for r in HostStore(home).paired() if r.environment_id in hosts]
        if not records:
            return
        for record in records:
            try:
                with open_connection(home, record) as connection:
                    deliver_waiting(home, connection, wait=True)
                failures = 0
            except CodexctlError as error:
                if not passes(error, None):
                    raise
                if record.name not in told:
                    told.add(record.name)
                    notice(f"{record.name}: {error}; trying again until it is there")
        if listed(db, "waiting"):
            time.sleep(backoff(failures))  # a host that is away cannot say when it is back
            failures += 1
