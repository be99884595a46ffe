"""`codexctl doctor [HOST]`: check every hop between here and the hosts."""

from __future__ import annotations

import sys
from functools import partial

import click

from codexctl.cli import doctor_checks as checks
from codexctl.cli.complete import complete_host
from codexctl.cli.output import emit, json_option, paint, printable, progress
from codexctl.paths import Home

COLOURS = {checks.OK: "green", checks.WARN: "yellow", checks.FAIL: "red", checks.SKIP: "dim"}


@click.command()
@click.argument("host", required=False, shell_complete=complete_host)
@json_option
def doctor(host: str | None, as_json: bool) -> int:
    """Check state, keys, sandbox, programs, relays, clocks and hosts, and say how to mend them.

    With HOST (a paired host or an alias of ~/.ssh/config) only the way to that one. Nothing is
    changed. Exit status 1 when a check failed; warnings do not count.
    """
    results = []
    for step in _steps(host):
        with progress(f"checking {step[0]}"):
            result = checks.run_step(step)
        results.append(result)
        if not as_json:
            _show(result)
    if as_json:
        emit(results, True)
    return int(any(result.status == checks.FAIL for result in results))


def _steps(host: str | None) -> list[checks.Step]:
    from codexctl.cli.target import find_host, find_ssh
    from codexctl.client.store import HostStore

    home = Home.from_env()
    if host is None:
        return [*checks.local_steps(home), *checks.remote_steps(home, HostStore(home).all())]
    record = find_host(home, host)
    if record is None:
        alias = find_ssh(host).alias
        return [("ssh", checks.check_ssh), (f"host {alias}", partial(checks.check_alias, alias))]
    return [("keys", partial(checks.check_keys, home)), *checks.remote_steps(home, [record])]


def _show(result: checks.Check) -> None:
    word = paint(f"{result.status:<4}", COLOURS[result.status], sys.stdout)
    text = printable(f"{result.name}: {result.detail}")
    click.echo(f"{word}  {text}  ({result.duration_ms:.0f} ms)")
    if result.remedy:
        click.echo(f"      do: {printable(result.remedy)}")
