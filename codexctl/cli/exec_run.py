"""What `exec` does on a paired host, without click: so that the plain form starts at once."""

from __future__ import annotations

from collections.abc import Sequence

from codexctl.cli.output import notice
from codexctl.cli.target import find_host, is_official, open_connection, path_notice
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from codexctl.client.store import HostRecord

_SHELL_CHARACTERS = frozenset(" \t\n;&|<>()$`\\\"'*?[]#~{}!")


def command_params(words: Sequence[str]) -> dict[str, Any]:
    """What was typed behind `--`, as the host gets it.

    Several words are the program and its arguments, untouched by any shell. One word that could not
    be a program's name (it holds white space or a shell's characters) is a command line.
    """
    if len(words) == 1 and not _SHELL_CHARACTERS.isdisjoint(words[0]):
        return {"shell": words[0]}
    return {"argv": list(words)}


def run_paired(
    home: Home, record: HostRecord, params: dict[str, Any], *, tty: bool = False, stdin: bool = True
) -> int:
    """Run on a paired host; its exit status."""
    from codexctl.client.process import run_command, run_terminal, terminal

    if is_official(record):
        kind = "pty" if tty else "exec"
        return run_on_executor(record, kind, params | ({"tty": terminal()} if tty else {}), stdin)
    with open_connection(home, record) as connection:
        if tty:
            params["tty"] = terminal()
            return run_terminal(connection, "pty", params, notice=notice)
        return run_command(connection, "exec", params, notice=notice, stdin=stdin)


def run_on_executor(
    record: HostRecord, kind: str, params: dict[str, Any], stdin: bool = True
) -> int:
    """Run on an official executor, which knows of no sandbox that could be left."""
    from codexctl.client.executor.run import run_process
    from codexctl.errors import UsageError

    if params.get("network") or params.get("sandbox"):
        raise UsageError(
            f"{record.name} is an official executor: what runs there has no sandbox of codexctl's",
            hint="leave --network and --sandbox away",
        )
    return run_process(record, kind, params, notice=notice, path_notice=path_notice, stdin=stdin)


def run_plain(argv: Sequence[str]) -> int | None:
    """`exec HOST -- CMD…` with no option and a paired HOST; None for every other command line.

    Importing click costs as much as all else that a cold exec does here.
    """
    if len(argv) < 4 or argv[0] != "exec" or argv[2] != "--" or argv[1].startswith("-"):
        return None
    home = Home.from_env()
    record = find_host(home, argv[1])
    return None if record is None else run_paired(home, record, command_params(argv[3:]))
