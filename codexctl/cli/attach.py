"""`codexctl attach HOST`: the official terminal UI here, on the threads of a host."""

from __future__ import annotations

import shlex
import shutil

import click

from codexctl.cli.complete import complete_host
from codexctl.cli.output import emit_line, notice
from codexctl.cli.target import find_host, find_ssh, open_connection
from codexctl.errors import NotFoundOnHost
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.attach import Door
    from codexctl.client.connection import Connection


@click.command()
@click.argument("host", shell_complete=complete_host)
@click.argument("codex_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- CODEX_ARGS…]")
@click.option(
    "--print", "print_only", is_flag=True, help="Only print the command, and serve it till Ctrl-C."
)
@click.option(
    "--socket",
    metavar="PATH",
    help="Listen on a unix socket, which only you can open, and not on a loopback port.",
)
@click.option("--json", "as_json", is_flag=True, help="With --print: one JSON object.")
def attach(
    host: str, codex_args: tuple[str, ...], print_only: bool, socket: str | None, as_json: bool
) -> int:
    """Start the official terminal UI (codex --remote) on the threads of HOST.

    HOST is a paired host, or an alias of ~/.ssh/config (`ssh:NAME` forces the latter).

    \b
        codexctl attach devbox                     a new thread in devbox's workspace
        codexctl attach devbox -- resume --last    go on with the last one
        codexctl attach devbox -- resume ID        see: codexctl thread list --host devbox
        codexctl attach devbox --print             the command, for another terminal

    What runs here is the codex of this machine; the agent, its threads and its commands are HOST's.
    Several can be attached at once, and see the same threads as all other devices do: the first
    answer to a question counts. Everything between here and HOST is encrypted end to end; the local
    end is a port on loopback, which takes connections that show one token, made anew each time.

    On a paired host this needs all its scopes (view, exec, approve), since the agent there works
    with the rights of the host's owner, in the official sandbox. Over SSH it needs codex on the
    PATH of the remote login shell, and nothing else.

    Exit status: that of codex; 255 the connection failed, 126 the host refused, 127 no codex here.
    """
    codex = shutil.which("codex")
    if codex is None and not print_only:
        raise NotFoundOnHost(
            "codex is not installed here",
            hint="npm install -g @openai/codex, or use --print and start it elsewhere",
        )
    home = Home.from_env()
    record = find_host(home, host)
    target = find_ssh(host) if record is None else None
    from codexctl.client.attach import Door

    door = Door.on_socket(socket) if socket is not None else Door.on_loopback()
    try:
        if record is None:
            from codexctl.client.attach_ssh import attach_over_ssh

            assert target is not None
            command = _command(codex, door, codex_args, None, print_only, as_json)
            return attach_over_ssh(target, door, command, notice)
        from codexctl.client.attach import attach as serve

        with open_connection(home, record) as connection:
            workspace = _workspace(connection)
            command = _command(codex, door, codex_args, workspace, print_only, as_json)
            return serve(connection, door, command, notice)
    finally:
        door.close()


def _workspace(connection: Connection) -> str | None:
    from codexctl.client.ask import control

    workspace = control(connection, "status").get("workspace")
    return workspace if isinstance(workspace, str) else None


def _command(
    codex: str | None,
    door: Door,
    codex_args: tuple[str, ...],
    workspace: str | None,
    print_only: bool,
    as_json: bool,
) -> list[str] | None:
    """The command to run; None where it was printed instead."""
    own_folder = any(arg in ("-C", "--cd") or not arg.startswith("-") for arg in codex_args)
    folder = [] if own_folder or workspace is None else ["-C", workspace]
    options = [*door.options, *folder, *codex_args]
    if not print_only:
        assert codex is not None
        return [codex, *options]
    words = ["codex", *options]
    if as_json:
        ready = {"event": "ready", "remote": door.address, "command": words, "env": door.variables}
        emit_line(ready)
    else:
        assignments = [f"{name}={value}" for name, value in door.variables.items()]
        click.echo(shlex.join([*assignments, *words]))
        notice("serving it until Ctrl-C")
    return None
