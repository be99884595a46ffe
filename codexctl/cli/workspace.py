"""`codexctl workspace`: what was provisioned, what it costs, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import json_option, yes_option

if TYPE_CHECKING:
    from codexctl.provision.journal import Workspace
    from codexctl.provision.reap import Finding
    from codexctl.provision.service import Service
    from codexctl.secret import Secret


@click.group("workspace", cls=LazyGroup)
def workspace() -> None:
    """List, stop, extend and destroy workspaces, and reap what was forgotten.

    \b
        codexctl workspace list            age, cost so far and expiry of each
        codexctl workspace extend api 4h
        codexctl workspace destroy api     confirmed by its provider
        codexctl workspace reap            what was forgotten, on both sides
    """


def _service() -> Service:
    from codexctl.paths import Home
    from codexctl.provision.service import Service

    return Service(Home.from_env())


def _now() -> int:
    import time

    return int(time.time())


@workspace.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that are gone.")
@json_option
def list_command(every: bool, as_json: bool) -> None:
    """Show age, cost so far and expiry of every workspace, from the journal alone.

    \b
        codexctl workspace list
        codexctl workspace list --all --json
    """
    from codexctl.cli.output import emit
    from codexctl.cli.provision_view import readable, ready_record
    from codexctl.paths import Home
    from codexctl.provision.journal import Journal

    with Journal(Home.from_env().ensure()) as journal:
        found = journal.live() + (journal.ended() if every else [])
    now = _now()
    records = [ready_record(workspace, now) for workspace in found]
    if as_json:
        emit(records, True)
        return
    columns = ("name", "provider", "region", "size", "state", "age", "spent", "expires")
    lines = [readable(record, now) for record in records]
    emit(lines, False, table=columns, empty="no workspaces; see: codexctl provision --help")


@workspace.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show everything known of one workspace, as its provider sees it now.

    \b
        codexctl workspace show api --json
    """
    from codexctl.cli.output import emit
    from codexctl.cli.provision_view import readable, ready_record
    from codexctl.provision.service import patiently

    with _service() as service:
        known = service.journal.by_name(name)
        seen = None
        if known.stage_has_machine or known.stage == "ordered":
            account = service.account_of(known)
            machine = patiently(lambda: account.describe(known.ref))
            seen = "nothing" if machine is None else machine.state
    now = _now()
    record = ready_record(known, now)
    lines = record if as_json else readable(record, now)
    emit({**lines, "seen_by_provider": seen}, as_json)


@workspace.command("ssh-config")
@click.argument("name")
def ssh_config(name: str) -> None:
    """Print the ssh_config block of a workspace, as other tools may want it.

    \b
        codexctl workspace ssh-config api >>other_config
    """
    from codexctl.cli.output import emit
    from codexctl.provision.pipeline import entries_of
    from codexctl.provision.ssh_config import SshConfig

    with _service() as service:
        known = service.journal.by_name(name)
        entries = [entry for entry in entries_of(service.home, [known]) if entry.name == name]
        emit(None, False, text=SshConfig(service.home).render(entries))


@workspace.command()
@click.argument("name")
@json_option
def logs(name: str, as_json: bool) -> None:
    """Show what happened: the journal, the machine's own logs, its console where there is one.

    \b
        codexctl workspace logs api        after a stage that failed
    """
    from codexctl.cli.output import emit
    from codexctl.provision.logs import gather

    with _service() as service:
        record = gather(service, service.journal.by_name(name))
    text = "\n\n".join(f"== {title}\n{body}" for title, body in record.items() if body)
    emit(record, as_json, text=None if as_json else text)


@workspace.command()
@click.argument("name")
@click.argument("duration")
@json_option
def extend(name: str, duration: str, as_json: bool) -> None:
    """Let it live DURATION (as 8h) from now; `never` takes its end away.

    \b
        codexctl workspace extend api 8h
        codexctl workspace extend api never
    """
    from codexctl.cli.output import emit
    from codexctl.cli.provision_view import ready_record
    from codexctl.durations import parse_duration
    from codexctl.provision import lifecycle

    expires_at = None if duration == "never" else _now() + parse_duration(duration)
    with _service() as service:
        known = service.journal.by_name(name)
        lifecycle.extend(
            service.home,
            service.journal,
            service.provider(known),
            service.account_of(known),
            known,
            expires_at,
            passphrase=_passphrase(known),
        )
        record = ready_record(service.journal.by_id(known.id), _now())
        emit(record, as_json, text=None if as_json else f"{name} lives {_until(expires_at)}")


def _until(expires_at: int | None) -> str:
    from datetime import UTC, datetime

    if expires_at is None:
        return "until it is destroyed"
    return f"until {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%d %H:%M} UTC"


def _passphrase(known: Workspace) -> Secret | None:
    if not known.settings.passphrase:
        return None
    from codexctl.cli.output import ask
    from codexctl.secret import Secret

    return Secret(ask(f"passphrase of {known.name}'s key:", hidden=True))


@workspace.command()
@click.argument("name")
@json_option
def stop(name: str, as_json: bool) -> None:
    """Stop the machine; says what that saves at its provider.

    \b
        codexctl workspace stop api
        codexctl workspace start api
    """
    from codexctl.cli.output import emit, notice, progress
    from codexctl.cli.provision_view import ready_record
    from codexctl.provision import lifecycle

    with _service() as service:
        known = service.journal.by_name(name)
        provider = service.provider(known)
        account = service.account_of(known)
        with progress(f"stopping {name}"):
            lifecycle.stop(service.home, service.journal, provider, account, known)
        notice(f"{name} is stopped; that saves {provider.capabilities.stop_saves}")
        if as_json:
            emit(ready_record(service.journal.by_id(known.id), _now()), True)


@workspace.command()
@click.argument("name")
@json_option
def start(name: str, as_json: bool) -> None:
    """Start a stopped machine and wait until it lets us in."""
    from codexctl.cli.provision_view import StageView
    from codexctl.provision import lifecycle
    from codexctl.provision.readiness import Teller

    with _service() as service, StageView(as_json) as view:
        known = service.journal.by_name(name)
        lifecycle.start(
            service.home,
            service.journal,
            service.provider(known),
            service.account_of(known),
            known,
            Teller(view),
            passphrase=_passphrase(known),
        )


@workspace.command()
@click.argument("name")
@click.option("--forget", is_flag=True, help="Drop it here without asking the provider.")
@yes_option
@json_option
def destroy(name: str, forget: bool, yes: bool, as_json: bool) -> None:
    """Destroy machine, key and config, confirmed by the provider before it is said.

    \b
        codexctl workspace destroy api
        codexctl workspace destroy api --yes --json

    Of a machine that was adopted over ssh only what codexctl put there is removed. --forget is for
    a machine whose account is lost: it may bill on.
    """
    from codexctl.cli.output import confirm, emit, emit_line, notice
    from codexctl.cli.provision_view import StageView, ready_record
    from codexctl.errors import Interrupted
    from codexctl.provision.readiness import Teller

    with _service() as service:
        known = service.journal.by_name(name)
        if forget:
            question = f"forget {name} here, whatever still bills at {known.provider}?"
        elif service.provider(known).capabilities.creates:
            question = f"destroy {name} and everything on it?"
        else:
            question = f"remove from {known.plan.region} what codexctl put there?"
        if not confirm(question, yes=yes):
            raise Interrupted("nothing was destroyed")
        with StageView(as_json) as view:
            if forget:
                service.forget(known)
            else:
                service.destroy(known, Teller(view))
        gone = service.journal.by_id(known.id)
        record = ready_record(gone, _now())
        if as_json:
            emit_line({"event": "destroyed", **record})
        else:
            cost = f"; it cost {record['spent']} {record['currency']}" if record["spent"] else ""
            if forget:
                notice(f"{known.provider} was not asked: look there for {known.id}")
            emit(None, False, text=f"{name} is {'forgotten' if forget else 'gone'}{cost}")


@workspace.command()
@click.option("--region", multiple=True, help="Look there as well; repeatable.")
@click.option("--watch", is_flag=True, help="Stay, reap what expires, stop what is idle.")
@click.option("--every", default="1m", show_default=True, help="How often, with --watch.")
@click.option("--install", is_flag=True, help="Have --watch run as a service of yours.")
@click.option("--uninstall", is_flag=True, help="Stop that service and remove it.")
@click.option("--dry-run", is_flag=True, help="Only say what differs.")
@yes_option
@json_option
def reap(
    region: tuple[str, ...],
    watch: bool,
    every: str,
    install: bool,
    uninstall: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Compare the journal with what the providers list, both ways, and end what is left over.

    \b
        codexctl workspace reap --dry-run  only say what differs
        codexctl workspace reap            ask, end, confirm
        codexctl workspace reap --install  keep watching, as a service of yours

    Exits 1 when anything could not be looked at or confirmed.
    """
    from codexctl.cli import reap as work
    from codexctl.durations import parse_duration

    every_s = float(parse_duration(every))
    with _service() as service:
        if install:
            return work.install(service.home, region, every, as_json)
        if uninstall:
            return work.uninstall(service.home, as_json)
        if watch:
            return work.watch(service, region, every_s, as_json)
        return work.once(service, region, dry_run=dry_run, yes=yes, as_json=as_json)


@workspace.command()
@click.argument("provider")
@click.argument("workspace_id")
@click.option("--name", required=True, help="The name it gets here.")
@click.option("--region", default="", help="Where it is.")
@json_option
def adopt(provider: str, workspace_id: str, name: str, region: str, as_json: bool) -> None:
    """Take a machine that codexctl made elsewhere into this journal, to watch and to end it.

    \b
        codexctl workspace adopt digitalocean ID --name api
    """
    from codexctl.cli.output import emit
    from codexctl.cli.provision_view import ready_record

    with _service() as service:
        service.adopt(provider, workspace_id, name, {"region": region})
        record = ready_record(service.journal.by_name(name), _now())
        emit(record, as_json, text=None if as_json else f"{name} is in the journal")


def finding_record(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "name": finding.name,
        "provider": finding.provider,
        "region": finding.region,
        "id": finding.workspace_id or None,
        "bills": finding.bills,
        "resources": [f"{r.kind} {r.resource_id}" for r in finding.resources],
    }
