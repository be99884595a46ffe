"""`codexctl hosts`: the hosts that this device can reach, what they say of themselves, names."""

from __future__ import annotations

from typing import Any

import click

from codexctl.cli.complete import complete_paired
from codexctl.cli.hosts_add import add
from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import confirm, emit, json_option, notice, progress, yes_option
from codexctl.cli.target import is_official, need_host, open_connection, path_notice
from codexctl.errors import CodexctlError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.store import HostRecord

ONLINE_CHECKS_AT_ONCE = 16


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.pass_context
@click.option("--ssh", "with_ssh", is_flag=True, help="List the aliases of ~/.ssh/config as well.")
@json_option
def hosts(ctx: click.Context, with_ssh: bool, as_json: bool) -> None:
    """List the hosts that this device can reach, their kind, and whether each is online.

    Kinds are codexctl, a host that is paired with, and official: `codex exec-server` on a relay.

    \b
        codexctl hosts show NAME           what the host says of itself, and the suite in use
        codexctl hosts add NAME --relay URL --token-file FILE
        codexctl hosts rename OLD NEW
        codexctl hosts remove NAME         forget it here
    """
    if ctx.invoked_subcommand is not None:
        return
    from codexctl.client.store import HostStore

    rows = _listed(HostStore(Home.from_env()).all())
    if with_ssh:
        from codexctl.client.ssh_config import alias_names

        rows += [
            {"name": name, "kind": None, "transport": "ssh", "online": None}
            for name in alias_names()
        ]
    emit(
        rows,
        as_json,
        table=("name", "kind", "transport", "online", "relay", "scopes"),
        empty="no hosts yet: pair with one by codexctl pair URL",
    )


def _listed(records: list[HostRecord]) -> list[dict[str, Any]]:
    from concurrent.futures import ThreadPoolExecutor

    if not records:
        return []
    with progress("asking the relays"), ThreadPoolExecutor(ONLINE_CHECKS_AT_ONCE) as pool:
        states = list(pool.map(_online, records))
    return [
        {
            "name": record.name,
            "kind": record.kind,
            "transport": "relay",
            "online": online,
            "relay": record.relay,
            "scopes": list(record.scopes),
            "own_name": record.own_name,
            "id": record.environment_id,
            "suite": record.suite,
            "paired_at": record.paired_at,
            "error": error,
        }
        for record, (online, error) in zip(records, states, strict=True)
    ]


def _online(record: HostRecord) -> tuple[bool, str | None]:
    """Whether the relay has the host connected, and why that is not known."""
    from codexctl.client.registry import Relay, call

    try:
        relay = Relay(record.relay, record.pin, record.token)
        return bool(call(relay, "GET", f"/v1/environments/{record.environment_id}")["online"]), None
    except (CodexctlError, KeyError) as error:
        return False, str(error)


@hosts.command()
@click.argument("name", shell_complete=complete_paired)
@json_option
def show(name: str, as_json: bool) -> None:
    """Ask a host what it is: version, system, workspace, sandbox, codex, AGENTS.md files."""
    from codexctl.client.ask import control

    home = Home.from_env()
    record = need_host(home, name)
    shown = {"name": record.name, "kind": record.kind, "relay": record.relay}
    if is_official(record):
        emit({**shown, **_executor(record)}, as_json)
        return
    with open_connection(home, record) as connection:
        status = control(connection, "status")
        suite = connection.record.suite
    emit({**shown, "suite": suite, **status, "own_name": record.own_name}, as_json)


def _executor(record: HostRecord) -> dict[str, Any]:
    """What an official executor says of itself."""
    from codexctl.client.executor.connection import ExecutorConnection

    with ExecutorConnection.open(record, path_notice) as connection:
        found = connection.environment
    return {
        "suite": record.suite,
        "codex": found.version,
        "platform": found.os,
        "shell": found.shell,
        "workspace": found.cwd,
        "sandbox": "none of codexctl's",
        "own_name": record.own_name,
    }


@hosts.command()
@click.argument("old", shell_complete=complete_paired)
@click.argument("new")
def rename(old: str, new: str) -> None:
    """Call the host OLD by another name here."""
    from codexctl.client.pairing import check_pairable
    from codexctl.client.store import HostStore

    check_pairable(new)
    HostStore(Home.from_env()).rename(old, new)


@hosts.command()
@click.argument("name", shell_complete=complete_paired)
@yes_option
def remove(name: str, yes: bool) -> None:
    """Forget a host here. To end its trust in this device, revoke the device on the host."""
    from codexctl.client.store import HostStore

    home = Home.from_env()
    record = need_host(home, name)
    if confirm(
        f"forget {record.name} (to come back, it has to be paired or added again)?", yes=yes
    ):
        HostStore(home).remove(record.name)
        notice(
            "forgotten; its token stays valid until it is revoked on the relay"
            if is_official(record)
            else f"forgotten; on the host itself: codexctl devices revoke {record.device_id}"
        )


hosts.add_command(add)
