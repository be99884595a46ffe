"""`codexctl forward HOST LOCAL:REMOTE`: local TCP connections to the host's own ports."""

from __future__ import annotations

import socket

import click

from codexctl.cli.complete import complete_paired
from codexctl.cli.output import emit_line, json_option, notice
from codexctl.cli.target import need_host, open_connection
from codexctl.errors import ConnectionFailed, UsageError
from codexctl.paths import Home


@click.command()
@click.argument("host", shell_complete=complete_paired)
@click.argument("ports", nargs=-1, required=True, metavar="[[BIND:]PORT:][TARGET:]PORT…")
@json_option
def forward(host: str, ports: tuple[str, ...], as_json: bool) -> None:
    """Forward local TCP ports to ports of HOST, until Ctrl-C.

    \b
        codexctl forward devbox 3000              localhost:3000 to the host's 3000
        codexctl forward devbox 8080:3000         localhost:8080 to the host's 3000
        codexctl forward devbox 0:5432            a free local port, which is printed
        codexctl forward devbox 8080:db.lan:80    to what the host reaches, if its policy allows

    The local side listens on loopback only, unless BIND is given.
    """
    from codexctl.client.forward import Forwarder

    rules = [parse_rule(text) for text in ports]
    home = Home.from_env()
    record = need_host(home, host)
    listeners = [_listen(bind, port) for bind, port, _, _ in rules]
    with open_connection(home, record) as connection:
        forwarder = Forwarder(connection, notice)
        for listener, (_, _, target, target_port) in zip(listeners, rules, strict=True):
            forwarder.add(listener, target, target_port)
            local = listener.getsockname()
            if as_json:
                emit_line(
                    {
                        "event": "ready",
                        "listen": f"{local[0]}:{local[1]}",
                        "target": f"{target}:{target_port}",
                    }
                )
            else:
                notice(f"{local[0]}:{local[1]} goes to {target}:{target_port} on {record.name}")
        connection.run(lambda: False)


def parse_rule(text: str) -> tuple[str, int, str, int]:
    """`[[BIND:]PORT:][TARGET:]PORT` as bind address, local port, target host, target port."""
    parts = text.split(":")
    numbers = [part.isascii() and part.isdigit() for part in parts]
    bind, target = "127.0.0.1", "127.0.0.1"
    if len(parts) == 1:
        local = remote = parts[0]
    elif len(parts) == 2:
        local, remote = parts
    elif len(parts) == 3 and numbers[0]:
        local, target, remote = parts
    elif len(parts) == 3:
        bind, local, remote = parts
    elif len(parts) == 4:
        bind, local, target, remote = parts
    else:
        local = remote = ""
    if not (local.isdigit() and remote.isdigit()) or not bind or not target:
        raise UsageError(f"not a forward: {text!r}", hint="write it as 8080:3000 or 3000")
    ports = int(local), int(remote)
    if not (0 <= ports[0] < 65536 and 0 < ports[1] < 65536):
        raise UsageError(f"a port is out of range in {text!r}", hint="ports go up to 65535")
    return bind, ports[0], target, ports[1]


def _listen(bind: str, port: int) -> socket.socket:
    try:
        return socket.create_server((bind, port), backlog=64)
    except OSError as error:
        raise ConnectionFailed(
            f"cannot listen on {bind}:{port}: {error.strerror or error}",
            hint="take another local port, or 0 for a free one",
        ) from error
