"""What is done with a workspace that is up: stop, start, extend, and how long it has been idle."""

from __future__ import annotations

import time
from collections.abc import Callable

from codexctl.paths import Home
from codexctl.provision import readiness
from codexctl.provision.errors import ProviderError, Unsupported
from codexctl.provision.journal import Journal, Workspace
from codexctl.provision.model import Account, Provider
from codexctl.provision.pipeline import (
    await_running,
    target_of,
    workspace_lock,
    write_ssh_config,
)
from codexctl.provision.readiness import Teller
from codexctl.provision.remote import Link
from codexctl.secret import Secret

STOP_TIMEOUT_S = 300.0
STOP_EVERY_S = 2.0

EXPIRES_ON_MACHINE = """
set -eu
file=/var/lib/codexctl/expires_at
if [ -w "$file" ]; then echo "$AT" >"$file"
elif [ "$(id -u)" -eq 0 ]; then echo "$AT" >"$file"
else echo "$AT" | sudo -n tee "$file" >/dev/null; fi
"""
# In use is: another ssh session than this one, a process that codexctl's host has started, or
# anything that the host has recorded (each command, copy and forward) within the time.
IDLE_S = """
now=$(date +%s); last=0
for file in "$HOME/.codexctl/audit.jsonl" "$HOME/.local/share/codexctl/home/audit.jsonl"; do
  at=$(stat -c %Y "$file" 2>/dev/null) && [ "$at" -gt "$last" ] && last=$at
done
titles=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n')
sessions=$(printf '%s\\n' "$titles" | grep -cE '^sshd(-session)?: [^ ]+@')
[ "$sessions" -le 1 ] || last=$now
for found in $(grep -lE 'codexctl' /proc/[0-9]*/cmdline 2>/dev/null); do
  folder=${found%/cmdline}
  tr '\\0' ' ' <"$found" 2>/dev/null | grep -q ' host serve ' || continue
  [ -z "$(cat "$folder"/task/*/children 2>/dev/null)" ] || last=$now
done
up=$(cut -d. -f1 /proc/uptime)
idle=$((now - last)); [ "$idle" -le "$up" ] || idle=$up
echo "$idle"
"""


def stop(
    home: Home,
    journal: Journal,
    provider: Provider,
    account: Account,
    workspace: Workspace,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Stop it and wait until the provider says so; Unsupported where it cannot."""
    if not provider.capabilities.stops:
        raise Unsupported(
            f"{provider.name} cannot stop a machine",
            hint=f"codexctl workspace destroy {workspace.name} ends what it costs",
        )
    with workspace_lock(home, workspace):
        account.stop(workspace.ref)
        end = time.monotonic() + STOP_TIMEOUT_S
        while True:
            machine = account.describe(workspace.ref)
            if machine is None:
                raise ProviderError(f"{workspace.name} has vanished at the provider")
            if machine.state == "stopped":
                break
            if time.monotonic() > end:
                raise ProviderError(
                    f"{workspace.name} is {machine.state} after {STOP_TIMEOUT_S:.0f} s",
                    hint=f"codexctl workspace stop {workspace.name} waits on",
                )
            sleep(STOP_EVERY_S)
        journal.set_power(workspace.id, "stopped", now=int(time.time()))
        journal.note(workspace.id, "stopped", now=int(time.time()))


def start(
    home: Home,
    journal: Journal,
    provider: Provider,
    account: Account,
    workspace: Workspace,
    tell: Teller,
    *,
    passphrase: Secret | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Start it, follow its new address, and wait until it lets us in."""
    if not provider.capabilities.stops:
        raise Unsupported(f"{provider.name} cannot start a machine")
    with workspace_lock(home, workspace):
        account.start(workspace.ref)
        journal.set_power(workspace.id, "running", now=int(time.time()))
        described = account.describe(workspace.ref)
        machine = await_running(account, workspace, described, tell, sleep)
        journal.set_machine(workspace.id, machine)
        journal.note(workspace.id, "started", now=int(time.time()))
        write_ssh_config(home, journal)
        fresh = journal.by_id(workspace.id)
        with Link(target_of(home, fresh, passphrase)) as link:
            readiness.await_login(link, workspace.name, tell, timeout_s=readiness.READY_TIMEOUT_S)


def extend(
    home: Home,
    journal: Journal,
    provider: Provider,
    account: Account,
    workspace: Workspace,
    expires_at: int | None,
    *,
    passphrase: Secret | None = None,
) -> None:
    """Move the expiry: first here, then at the provider, then on a machine that ends itself.

    In this order a crash leaves a machine that lives shorter than the journal says, never longer.
    """
    with workspace_lock(home, workspace):
        journal.set_expiry(workspace.id, expires_at)
        fresh = journal.by_id(workspace.id)
        if not fresh.stage_has_machine:
            return
        account.set_expiry(fresh.ref, journal.tags(fresh))
        if provider.capabilities.ends_itself and workspace.power == "running":
            with Link(target_of(home, fresh, passphrase)) as link:
                at = "never" if expires_at is None else str(expires_at)
                link.check(f"AT={at}\n{EXPIRES_ON_MACHINE}", what="setting the new end")
        journal.note(workspace.id, f"expires at {expires_at}", now=int(time.time()))


def idle_s(home: Home, workspace: Workspace) -> int:
    """For how many seconds nobody has used it, as the machine itself says."""
    with Link(target_of(home, workspace)) as link:
        text = link.check(IDLE_S, what="asking how long it is idle")
    return int(text) if text.isdigit() else 0
