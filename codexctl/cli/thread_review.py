"""`codexctl thread diff` and `review`."""

from __future__ import annotations

import sys
from typing import Any

import click

from codexctl.cli.output import colour_wanted, emit, json_option, notice, size_text
from codexctl.cli.thread_find import at_thread, complete_thread
from codexctl.cli.thread_watch import follow_thread, last_cursor, wait_option
from codexctl.errors import UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.patch import FileChange


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.option("--stat", is_flag=True, help="Files with how much changed in each.")
@click.option("--name-only", is_flag=True, help="Names of files alone.")
@click.option("--apply", "applied", is_flag=True, help="Make the same change in a checkout here.")
@click.option("--to", "checkout", metavar="DIR", help="The checkout for --apply; here without it.")
@click.option("--no-pager", is_flag=True, help="Print at once, however long it is.")
@json_option
def diff(
    thread: str,
    stat: bool,
    name_only: bool,
    applied: bool,
    checkout: str | None,
    no_pager: bool,
    as_json: bool,
) -> None:
    """Show what has changed in THREAD's folder since the thread began, untracked files too.

    It is a git patch: in colour and through $PAGER on a terminal, as it is elsewhere. --apply makes
    the change in a checkout on this machine by git's three-way apply, whole or not at all; what
    conflicts is named and nothing is changed. With --json the files: path, kind, added, removed.

    \b
        codexctl thread diff 01a1fdb6 --stat
        codexctl thread diff box:fix > fix.patch
        codexctl thread diff box:fix --apply --to ~/src/app
    """
    import tempfile

    from codexctl.client.agent import read_bytes

    if [stat, name_only, applied].count(True) > 1:
        raise UsageError("one of --stat, --name-only and --apply")
    if checkout and not applied:
        raise UsageError("--to is the checkout of --apply", hint="add --apply")
    top = _checkout(checkout) if applied else ""
    with tempfile.NamedTemporaryFile(prefix="codexctl-", suffix=".patch") as file:
        with at_thread(Home.from_env(), thread) as (connection, found):
            for piece in read_bytes(connection, "thread.diff", {"thread": found["id"]}):
                file.write(piece)
        file.flush()
        if applied:
            _apply(file.name, top, as_json=as_json)
        elif as_json or stat or name_only:
            _summarise(_files(file.name), stat=stat, name_only=name_only, as_json=as_json)
        else:
            from codexctl.cli.pager import show_patch

            show_patch(file.name, paged=not no_pager)


def _checkout(path: str | None) -> str:
    import os

    from codexctl.client.apply import find_checkout

    return find_checkout(path or os.getcwd())


def _files(path: str) -> list[FileChange]:
    from codexctl.client.patch import changes

    with open(path, "rb") as file:
        return list(changes(file))


def _summarise(files: list[FileChange], *, stat: bool, name_only: bool, as_json: bool) -> None:
    from codexctl.cli.output import printable
    from codexctl.client.patch import stat_lines
    from codexctl.client.process import terminal_size

    if as_json:
        emit(files, True)
        return
    if not files:
        notice("nothing has changed since the thread began")
    width = terminal_size()[0] if sys.stdout.isatty() else 80
    lines = [file.path for file in files] if name_only else stat_lines(files, width)
    for line in lines:
        sys.stdout.write(f"{_coloured(printable(line), stat=stat)}\n")


def _coloured(line: str, *, stat: bool) -> str:
    """A line of the statistics with its bar in colour."""
    head, bar, tail = line.rpartition(" | ")
    if not stat or not bar or not colour_wanted(sys.stdout):
        return line
    signs = tail.strip().partition(" ")[2]
    plus = signs.count("+")
    width = len(tail) - len(signs)
    return f"{head}{bar}{tail[:width]}\x1b[32m{signs[:plus]}\x1b[31m{signs[plus:]}\x1b[0m"


def _apply(path: str, top: str, *, as_json: bool) -> None:
    import os

    from codexctl.client.apply import apply_patch

    files = _files(path)
    if files:
        apply_patch(path, top)
    record: dict[str, Any] = {
        "checkout": top,
        "files": [file.path for file in files],
        "bytes": os.path.getsize(path),
    }
    text = f"{len(files)} files changed in {top}, {size_text(record['bytes'])} of patch"
    emit(record, as_json, text=text if files else "nothing has changed since the thread began")


@click.command()
@click.argument("thread", shell_complete=complete_thread)
@click.argument("instructions", required=False)
@click.option("--base", metavar="BRANCH", help="What the current branch changes against BRANCH.")
@click.option("--commit", metavar="SHA", help="What one commit changes.")
@click.option("--watch", "watched", is_flag=True, help="Follow it, as `codexctl thread watch`.")
@wait_option
@json_option
def review(
    thread: str,
    instructions: str | None,
    base: str | None,
    commit: str | None,
    watched: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Have the agent review changes, as a turn of THREAD: those that are uncommitted there.

    --base and --commit name other changes, INSTRUCTIONS say in words what to review.

    \b
        codexctl thread review 01a1fdb6 --wait
        codexctl thread review 01a1fdb6 --base main --watch
        codexctl thread review 01a1fdb6 "look only at error handling"
    """
    from codexctl.client.agent import call

    given = [value is not None for value in (instructions, base, commit)]
    if given.count(True) > 1:
        raise UsageError("one of --base, --commit and INSTRUCTIONS")
    asked = {"base": base, "commit": commit, "instructions": instructions}
    home = Home.from_env()
    with at_thread(home, thread) as (connection, found):
        cursor = last_cursor(connection, str(found["id"]))
        params = {"thread": found["id"], **{k: v for k, v in asked.items() if v is not None}}
        answer = call(connection, "thread.review", params)[0]
        if wait or watched:
            return follow_thread(
                home, connection, found, cursor, wait=wait, turn_expected=True, as_json=as_json
            )
        host = connection.record.name
    text = f"the review runs: codexctl thread watch {host}:{str(found['id'])[:13]}"
    emit({"host": host, **answer}, as_json, text=text)
    return 0
