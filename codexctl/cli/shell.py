"""`codexctl shell HOST`: a login shell on a host, with this terminal."""

from __future__ import annotations

import os
from typing import Any

import click

from codexctl.cli.complete import complete_host
from codexctl.cli.exec_run import run_on_executor
from codexctl.cli.output import notice
from codexctl.cli.target import find_host, find_ssh, is_official, open_connection
from codexctl.errors import UsageError
from codexctl.paths import Home


@click.command()
@click.argument("host", shell_complete=complete_host)
@click.option("-C", "--cwd", metavar="DIR", help="Folder to start in; the workspace if absent.")
@click.option("--network", is_flag=True, help="Let the shell use the network.")
@click.option(
    "--sandbox",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="`off` works only where the host's owner has allowed it.",
)
def shell(host: str, cwd: str | None, network: bool, sandbox: str) -> int:
    """Open the person's login shell on HOST, in the host's sandbox.

    HOST is a paired host or an alias of ~/.ssh/config (`ssh:NAME` forces the latter). The session
    survives a change of network and a sleeping laptop. After a line end these are for codexctl:

    \b
        ~.   end the session
        ~d   detach: the shell goes on; reattach with codexctl ps HOST --attach ID
        ~?   list them
        ~~   a tilde

    Exit status: the shell's own; 255 the connection failed, 126 the host refused.
    """
    from codexctl.client.process import run_terminal, terminal

    if not os.isatty(0):
        raise UsageError(
            "a shell needs a terminal, and stdin is none",
            hint=f"for a script: codexctl exec {host} -- sh -s <SCRIPT",
        )
    home = Home.from_env()
    record = find_host(home, host)
    if record is None:
        target = find_ssh(host)
        if cwd or network or sandbox == "off":
            raise UsageError(
                f"{host} is reached over SSH, where these options mean nothing",
                hint="pair with it to have them",
            )
        from codexctl.client.ssh import run_shell

        return run_shell(target)
    params: dict[str, Any] = {"tty": terminal()}
    params |= {"cwd": cwd} if cwd else {}
    params |= {"network": True} if network else {}
    params |= {"sandbox": "off"} if sandbox == "off" else {}
    if is_official(record):
        return run_on_executor(record, "pty", params)
    with open_connection(home, record) as connection:
        return run_terminal(connection, "pty", params, notice=notice)
