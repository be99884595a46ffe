"""`codexctl exec HOST -- CMD…`: run a command on one host or several."""

from __future__ import annotations

import sys
from typing import Any

import click

from codexctl.cli.complete import complete_host
from codexctl.cli.exec_run import command_params, run_paired
from codexctl.cli.output import notice
from codexctl.cli.target import find_host, find_ssh, open_connection
from codexctl.errors import UsageError
from codexctl.paths import Home


@click.command("exec")
@click.argument("host", metavar="HOST[,HOST…]", shell_complete=complete_host)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-n", "--no-stdin", is_flag=True, help="Do not read stdin.")
@click.option(
    "-C", "--cwd", metavar="DIR", help="Folder to run in; the host's workspace if absent."
)
@click.option(
    "-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable; repeatable."
)
@click.option("--network", is_flag=True, help="Let the command use the network.")
@click.option(
    "--sandbox",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="`off` works only where the host's owner has allowed it.",
)
@click.option("-d", "--detach", is_flag=True, help="Start it, print its id, and leave it running.")
@click.option("--json", "as_json", is_flag=True, help="With --detach or several hosts: JSON.")
def exec_command(
    host: str,
    command: tuple[str, ...],
    tty: bool,
    no_stdin: bool,
    cwd: str | None,
    env: tuple[str, ...],
    network: bool,
    sandbox: str,
    detach: bool,
    as_json: bool,
) -> int:
    """Run CMD on HOST, in the host's sandbox; stdin, stdout, stderr and status are passed through.

    HOST is a paired host or an alias of ~/.ssh/config (`ssh:NAME` forces the latter). With several
    hosts, separated by commas, each line is prefixed by its host, and the worst status is returned.

    Several words after -- are the program and its arguments, just as they are; one word that holds
    spaces or shell characters is a command line for the host's login shell:

    \b
        codexctl exec devbox -- pytest -q
        codexctl exec devbox -- 'make 2>&1 | tail -20'
        tar c src | codexctl exec devbox -- tar x
        codexctl exec a,b,c -- git pull

    Ctrl-C is sent to the command; a second one within two seconds leaves it behind.

    Exit status: the command's own (128 + N when signal N ended it); 255 the connection failed, 126
    the host refused, 127 no such command there, 130 interrupted, 2 wrong usage.
    """
    params = command_params(command)
    options = {"cwd": cwd, "env": _environment(env), "network": network}
    params.update({key: value for key, value in options.items() if value})
    if sandbox == "off":
        params["sandbox"] = "off"
    if "," in host:
        return _run_on_several(host, as_json)
    home = Home.from_env()
    record = find_host(home, host)
    if record is None:
        return _run_over_ssh(host, params, tty=tty, stdin=not no_stdin, detach=detach)
    if detach:
        return _detach(home, record, {**params, "detach": True}, as_json)
    return run_paired(home, record, params, tty=tty, stdin=not no_stdin)


def _environment(pairs: tuple[str, ...]) -> dict[str, str]:
    out: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"not a variable: {pair!r}", hint="write it as NAME=VALUE")
        out[name] = value
    return out


def _run_on_several(hosts: str, as_json: bool) -> int:
    from codexctl.client.fanout import run_fanout

    names = [name for name in hosts.split(",") if name]
    if not names:
        raise UsageError("no host is named")
    words = sys.argv[1:]

    end = words.index("--") if "--" in words else len(words)
    words = [word for i, word in enumerate(words) if i > end or word != "--json"]
    at = words.index(hosts)

    def child(name: str) -> list[str]:
        return [sys.executable, "-m", "codexctl", *words[:at], name, *words[at + 1 :]]

    return run_fanout(names, child, as_json=as_json)


def _run_over_ssh(
    host: str,
    params: dict[str, Any],
    *,
    tty: bool,
    stdin: bool,
    detach: bool,
) -> int:
    target = find_ssh(host)
    if detach or params.get("network") or params.get("sandbox"):
        raise UsageError(
            f"{host} is reached over SSH, where codexctl has no sandbox and keeps no processes",
            hint="pair with it (codexctl host serve there) to have them",
        )
    from codexctl.client.ssh import run_exec

    return run_exec(
        target,
        params.get("argv") or params["shell"],
        stdin=0 if stdin else None,
        tty=tty,
        cwd=params.get("cwd"),
        env=params.get("env"),
    )


def _detach(home: Home, record: Any, params: dict[str, Any], as_json: bool) -> int:
    from codexctl.cli.output import emit
    from codexctl.client.ask import request

    with open_connection(home, record) as connection:
        answer = request(connection, "exec", params)
    process = str(answer.get("process"))
    if answer.get("notice"):
        notice(str(answer["notice"]))
    emit({"host": record.name, "process": process}, as_json, text=process)
    if not as_json:
        notice(f"it runs on; see it with: codexctl ps {record.name} --attach {process}")
    return 0
