"""The work of `codexctl workspace reap`, once or for as long as it is left running."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from codexctl.cli.output import confirm, emit, emit_line, notice, print_error
from codexctl.errors import CodexctlError, Interrupted
from codexctl.provision import lifecycle
from codexctl.provision.readiness import Stage, Teller
from codexctl.provision.reap import TO_DESTROY, TO_FORGET, Finding

if TYPE_CHECKING:
    from codexctl.paths import Home
    from codexctl.provision.service import Service

UNIT = "codexctl-reap.service"
COLUMNS = ("kind", "name", "provider", "region", "bills", "resources")


def once(
    service: Service, regions: tuple[str, ...], *, dry_run: bool, yes: bool, as_json: bool
) -> int:
    """Look, ask, end, confirm; the exit status."""
    from codexctl.cli.workspace import finding_record

    findings, errors = service.findings(extra_regions=regions)
    records = [finding_record(finding) for finding in findings]
    if not as_json or dry_run:
        emit(records, as_json, table=COLUMNS, empty="" if errors else "nothing is left over")
    unconfirmed = [finding for finding in findings if finding.kind == "unreadable"]
    todo = [finding for finding in findings if finding.kind in TO_DESTROY + TO_FORGET]
    if todo and not dry_run:
        if not confirm(f"end {len(todo)} of them?", yes=yes):
            raise Interrupted("nothing was ended")
        failed = _clear(service, todo, errors)
        unconfirmed += failed
        if as_json:
            for record, finding in zip(records, findings, strict=True):
                done = finding in todo and finding not in failed
                emit_line({"event": "reaped" if done else "left", **record})
        else:
            notice(f"{len(todo) - len(failed)} ended and confirmed, {len(failed)} not")
    for error in errors:
        print_error(error, as_json=as_json)
    return 1 if errors or unconfirmed else 0


def _clear(service: Service, todo: list[Finding], errors: list[CodexctlError]) -> list[Finding]:
    failed = []
    for finding in todo:
        try:
            service.clear(finding, Teller(_quiet))
        except CodexctlError as error:
            errors.append(error)
            failed.append(finding)
    return failed


def _quiet(stage: Stage) -> None:
    """Stages of many at once would only confuse."""


def watch(service: Service, regions: tuple[str, ...], every_s: float, as_json: bool) -> int:
    """Until Ctrl-C: end what has expired, stop what is idle. Nothing else is ended unasked."""
    notice(f"watching {len(service.journal.live())} workspaces, every {every_s:.0f} s")
    while True:
        findings, errors = service.findings(extra_regions=regions)
        due = [found for found in findings if found.kind in ("expired", "leaving")]
        failed = _clear(service, due, errors)
        for finding in due:
            event = "unconfirmed" if finding in failed else "reaped"
            _say(as_json, event, finding.name)
        for name in _stop_idle(service, errors):
            _say(as_json, "stopped", name)
        for error in errors:
            print_error(error, as_json=as_json)
        time.sleep(every_s)  # --watch: a cloud has to be asked, and bills by the hour


def _say(as_json: bool, event: str, name: str) -> None:
    if as_json:
        emit_line({"event": event, "name": name})
    else:
        notice(f"{event} {name}")


def _stop_idle(service: Service, errors: list[CodexctlError]) -> list[str]:
    stopped = []
    for workspace in service.journal.live():
        limit = workspace.settings.idle_stop_s
        if limit is None or workspace.power != "running" or workspace.stage != "ready":
            continue
        try:
            if lifecycle.idle_s(service.home, workspace) >= limit:
                provider, account = service.provider(workspace), service.account_of(workspace)
                lifecycle.stop(service.home, service.journal, provider, account, workspace)
                stopped.append(workspace.name)
        except CodexctlError as error:
            errors.append(error)
    return stopped


def service_unit(home: Home, regions: tuple[str, ...], every: str) -> Any:
    """The systemd user unit that watches with this home; it is not installed."""
    from codexctl.host.service import Service, systemd_quoted
    from codexctl.paths import ENV_HOME
    from codexctl.provision.templates import render

    words = [sys.executable, "-m", "codexctl", "workspace", "reap", "--watch", "--every", every]
    for region in regions:
        words += ["--region", region]
    text = render(
        home,
        "codexctl-reap.service.j2",
        filters={"systemd": systemd_quoted},
        command=words,
        environment={ENV_HOME: home.path},
    )
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = os.path.join(folder, "systemd", "user", UNIT)
    return Service(UNIT, path, text.encode(), "systemd")


def install(home: Home, regions: tuple[str, ...], every: str, as_json: bool) -> int:
    """Install and start the unit; the commands that could not be run are told."""
    from codexctl.host import service as services

    unit = service_unit(home, regions, every)
    left = services.install(unit)
    record = {"unit": UNIT, "path": unit.path, "started": not left, "run": left}
    emit(record, as_json, text=None if as_json else f"installed {unit.path}")
    if left:
        notice(f"no service manager answers here; where one does, run: {'; '.join(left)}")
    if hint := services.linger_hint(unit):
        notice(f"to keep it running when you are not logged in: {hint}")
    notice("it finds credentials that are kept (codexctl provider login, profiles), not variables")
    return 0


def uninstall(home: Home, as_json: bool) -> int:
    from codexctl.host import service as services

    unit = service_unit(home, (), "1m")
    removed = services.uninstall(unit)
    text = f"removed {unit.path}" if removed else f"there is no service at {unit.path}"
    emit({"unit": UNIT, "removed": removed}, as_json, text=None if as_json else text)
    return 0
