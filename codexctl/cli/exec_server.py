"""`codexctl exec-server HOST`: what the official agent starts to work on a paired host."""

from __future__ import annotations

import os
from typing import Any

import click

from codexctl.cli.complete import complete_paired
from codexctl.cli.output import notice
from codexctl.cli.target import need_host, open_connection
from codexctl.errors import UsageError
from codexctl.paths import Home


@click.command("exec-server")
@click.argument("host", shell_complete=complete_paired)
@click.option(
    "--folder",
    metavar="DIR",
    help="Folder of this machine that stands for HOST's workspace; without it paths are the same.",
)
def exec_server(host: str, folder: str | None) -> int:
    """Speak the official exec-server protocol on stdin and stdout, for HOST.

    The official agent starts this by itself, once its environments.toml names it:

    \b
        codexctl env devbox --environments-toml
        codex                           # its commands and edits now happen on devbox

    Everything that the agent does runs on HOST, in HOST's sandbox and by HOST's policy, and what
    the agent's own permissions forbid is forbidden there too. When the network drops or changes,
    the commands go on and nothing of their output is lost. They end when the agent ends.

    The agent names folders of the machine that it runs on. Give the host's workspace the same path,
    or let a folder here stand for it:

    \b
        codexctl exec-server devbox --folder ~/project

    Exit status: 0 when the agent has ended; 255 the connection failed, 126 the host refused.
    """
    from codexctl.client.process import run_command

    params: dict[str, Any] = {}
    if folder is not None:
        params["folder"] = os.path.realpath(folder)
        if not os.path.isdir(folder):
            raise UsageError(f"{folder} is not a folder here", hint="name one with --folder")
    home = Home.from_env()
    record = need_host(home, host)
    with open_connection(home, record) as connection:
        return run_command(connection, "exec-server", params, notice=notice)
