"""Commands for the tests of what stands around a command; each ends in its own way."""

from __future__ import annotations

import asyncio
import errno
import os

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import ask, confirm, emit, json_option, yes_option
from codexctl.errors import Refused

SECRET = "correct horse battery staple"


@click.command()
@click.argument("how")
@click.argument("rest", nargs=-1)
@json_option
@yes_option
def end(how: str, rest: tuple[str, ...], as_json: bool, yes: bool) -> int | None:
    """End as HOW says."""
    if how == "ok":
        emit({"fine": True}, as_json)
        return None
    if how == "status":
        return int(rest[0])
    if how == "refused":
        raise Refused("the host said no\x1b[2J", hint="run: codexctl host policy show")
    if how == "grouped":
        asyncio.run(_grouped())
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/device.db")
    if how == "defect":
        raise LookupError(SECRET)
    if how == "click":
        raise click.ClickException("Something That Click says.")
    if how == "abort":
        raise click.Abort
    if how == "exit":
        click.get_current_context().exit(7)
    if how == "secret":
        emit({"length": len(ask("Passphrase:", hidden=True))}, as_json)
    if how == "confirm":
        emit({"agreed": confirm("Destroy it?", yes=yes)}, as_json)
    return None


async def _grouped() -> None:
    async def fail() -> None:
        raise Refused("no, said a task")

    async def defect() -> None:
        raise LookupError(SECRET)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(defect()), group.create_task(fail())]
    assert tasks


nested = LazyGroup("nested", table={"end": ("tests.cli.commands:end", "End somehow")}, help="Nest.")
