"""`codexctl host install`: the host as a systemd user service, or a launchd agent on macOS."""

from __future__ import annotations

import os
import sys

import click

from codexctl.cli.host_run import host_name, name_option, workspace_option, workspace_path
from codexctl.cli.output import emit, json_option, notice
from codexctl.errors import UsageError
from codexctl.paths import ENV_RELAY_TOKEN as ENV_TOKEN
from codexctl.paths import Home

TOKEN_FILE = "relay.token"  # noqa: S105 - a file's name


@click.command()
@click.option("--relay", metavar="URL", help="The relay's address.")
@click.option(
    "--token-file", metavar="FILE", help=f"File with the relay's token; else {ENV_TOKEN}, kept."
)
@click.option("--relay-pin", metavar="PIN", help="Hash of a self-signed relay's key.")
@name_option
@workspace_option
@click.option("--uninstall", is_flag=True, help="Stop the service and remove it.")
@click.option("--dry-run", is_flag=True, help="Print the service's file and change nothing.")
@json_option
def install(
    relay: str | None,
    token_file: str | None,
    relay_pin: str | None,
    name: str | None,
    workspace: str | None,
    uninstall: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run `codexctl host serve` as a service of yours, from now on and after a restart.

    \b
        CODEXCTL_RELAY_TOKEN=… codexctl host install --relay URL
        codexctl host install --uninstall

    No root is needed. The unit is checked with systemd-analyze where that is present.
    """
    from codexctl.host import service as services

    home = Home.from_env()
    if uninstall:
        plan = services.host_service(home, [], "")
        removed = services.uninstall(plan)
        text = f"removed {plan.path}" if removed else f"there is no service at {plan.path}"
        emit({"unit": plan.unit, "path": plan.path, "removed": removed}, as_json, text=text)
        return
    if relay is None:
        raise UsageError("name the relay with --relay URL", hint="see: codexctl host install -h")
    called = host_name(name)
    arguments = ["--relay", relay, "--token-file", _token_path(home, token_file)]
    if relay_pin is not None:
        arguments += ["--relay-pin", relay_pin]
    arguments += ["--name", called, "--workspace", workspace_path(workspace)]
    plan = services.host_service(home, arguments, called)
    if dry_run:
        sys.stdout.write(plan.text.decode())
        if complaint := services.verify(plan):
            notice(complaint)
        return
    if token_file is None:
        _keep_token(home)
    left = services.install(plan)
    linger = services.linger_hint(plan)
    emit(
        {"unit": plan.unit, "path": plan.path, "started": not left, "run": left, "linger": linger},
        as_json,
        text=f"installed {plan.path}" + ("" if left else f"; {plan.unit} runs"),
    )
    if left:
        notice(f"no service manager answers here; where one does, run: {'; '.join(left)}")
    if linger:
        notice(f"to keep it running when you are not logged in: {linger}")


def _token_path(home: Home, token_file: str | None) -> str:
    if token_file is not None:
        path = os.path.abspath(token_file)
        if not os.path.isfile(path):
            raise UsageError(f"there is no token file {token_file}")
        return path
    if not os.environ.get(ENV_TOKEN, "").strip():
        raise UsageError(
            "the relay's token is missing",
            hint=f"--token-file FILE or {ENV_TOKEN}; make one on the relay: "
            "codexctl relay token create --name NAME",
        )
    return home.join(TOKEN_FILE)


def _keep_token(home: Home) -> None:
    from codexctl.state.files import replace_file

    home.ensure()
    replace_file(home.join(TOKEN_FILE), os.environ[ENV_TOKEN].strip().encode() + b"\n")
