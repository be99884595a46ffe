"""`codexctl ps HOST`: what runs on a host, reattaching to it, and signals."""

from __future__ import annotations

import time
from typing import Any

import click

from codexctl.cli.complete import complete_paired
from codexctl.cli.output import emit, json_option, notice
from codexctl.cli.target import need_host, open_connection
from codexctl.errors import UsageError
from codexctl.paths import Home


@click.command()
@click.argument("host", shell_complete=complete_paired)
@click.option("-a", "--attach", metavar="ID", help="Take over a process: its output and its input.")
@click.option("-k", "--kill", metavar="ID", help="Send a signal to a process.")
@click.option("-s", "--signal", "signal_name", default="TERM", show_default=True, metavar="NAME")
@json_option
def ps(host: str, attach: str | None, kill: str | None, signal_name: str, as_json: bool) -> int:
    """List the processes that devices have started on HOST, the running and the lately finished.

    Processes belong to the host: one that was detached, or whose device went away, runs on.
    --attach takes it over with the output that was missed; how much was no longer kept is said.
    """
    from codexctl.client.ask import control
    from codexctl.client.process import run_command, run_terminal, terminal

    if attach and kill:
        raise UsageError("either attach or kill, not both")
    home = Home.from_env()
    record = need_host(home, host)
    with open_connection(home, record) as connection:
        if kill:
            name = signal_name.upper().removeprefix("SIG")
            control(connection, "signal", {"process": kill, "signal": name})
            return 0
        listed: list[dict[str, Any]] = control(connection, "ps")["processes"]
        if attach is None:
            rows = [_row(process) for process in listed]
            columns = ("process", "state", "age", "device", "tty", "attached", "command")
            emit(listed if as_json else rows, as_json, table=columns, empty="nothing runs there")
            return 0
        found = next((process for process in listed if process["process"] == attach), None)
        if found is not None and found.get("tty"):
            params = {"process": attach, "tty": terminal()}
            return run_terminal(connection, "attach", params, notice=notice)
        return run_command(connection, "attach", {"process": attach}, notice=notice)


def _row(process: dict[str, Any]) -> dict[str, Any]:
    started = process.get("started_at")
    age = int(time.time() - started) if isinstance(started, int | float) else 0
    words = process.get("command")
    command = " ".join(map(str, words)) if isinstance(words, list) else str(words or "")
    return {
        **{key: process.get(key) for key in ("process", "state", "device", "tty", "attached")},
        "age": f"{age}s" if age < 120 else f"{age // 60}m" if age < 7200 else f"{age // 3600}h",
        "command": command if len(command) <= 60 else command[:59] + "…",
    }
