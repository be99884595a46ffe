"""`codexctl devices`: on a host, who may use it, and ending that."""

from __future__ import annotations

import time
from typing import Any

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import confirm, emit, json_option, notice, yes_option
from codexctl.errors import UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.host.store import Device


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.pass_context
@json_option
def devices(ctx: click.Context, as_json: bool) -> None:
    """List the devices that are paired with this host, with their scopes and when last seen.

    \b
        codexctl devices revoke NAME       cuts its sessions at once
        codexctl pair --show               pairs one, also one that was revoked
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = [
        {
            "name": device.name,
            "id": device.id,
            "scopes": sorted(device.scopes),
            "paired_at": device.paired_at if as_json else _when(device.paired_at),
            "last_seen": device.last_seen if as_json else _when(device.last_seen),
        }
        for device in _paired()
    ]
    emit(rows, as_json, empty="no device is paired: codexctl pair --show")


def _paired() -> list[Device]:
    import os

    from codexctl.host.store import list_devices, open_store

    home = Home.from_env()
    if not os.path.exists(home.host_db):
        return []
    return list_devices(open_store(home))


def _when(seconds: int | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@devices.command()
@click.argument("name")
@yes_option
@json_option
def revoke(name: str, yes: bool, as_json: bool) -> None:
    """End a device's access: its live sessions are cut at once, its relay token is ended.

    NAME is the device's name or id. It can be paired again: codexctl pair --show.
    """
    found = [d for d in _paired() if name in (d.name, d.id)]
    if not found:
        raise UsageError(f"no paired device is called {name}", hint="see: codexctl devices")
    device = found[0]
    if not as_json and not yes and not _sure(device):
        return
    answer = _revoke(device)
    emit(answer, as_json, text=f"revoked {device.name}; {answer['sessions_cut']} sessions cut")
    if not answer["relay_told"]:
        notice("the relay was not reached; the host refuses the device all the same")


def _sure(device: Device) -> bool:
    import sys

    # Revoking is what somebody does in a hurry: only ask where there is somebody to ask.
    return not sys.stdin.isatty() or confirm(f"revoke {device.name}?", default=True)


def _revoke(device: Device) -> dict[str, Any]:
    from codexctl.host.control import NoDaemon, ask
    from codexctl.host.store import open_store, revoke_device

    home = Home.from_env()
    try:
        return ask(home, "devices.revoke", {"id": device.id})
    except NoDaemon:
        from codexctl.host.audit import AuditLog

        db = open_store(home)
        revoke_device(db, device.id)
        audit = AuditLog(home)
        audit.append("revocation", who="owner", what=device.name, outcome="revoked")
        audit.sync()
        return {"name": device.name, "sessions_cut": 0, "relay_told": False}
