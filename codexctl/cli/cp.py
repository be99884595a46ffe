"""`codexctl cp SRC… DST`: copy files and folders to a host or from one."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import click

from codexctl.cli.complete import complete_host_path
from codexctl.cli.output import emit, json_option, notice, progress, size_text
from codexctl.cli.target import (
    SSH_PREFIX,
    find_host,
    find_ssh,
    is_official,
    open_connection,
    path_notice,
)
from codexctl.errors import UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.transfer.summary import Summary

NAMED_FAILURES = 10


class Place(NamedTuple):
    """One argument: `host` is empty for a path of this machine."""

    host: str
    path: str


def parse_place(text: str) -> Place:
    """`HOST:PATH`, or a local path: it has no colon before its first slash.

    UsageError for names that are not UTF-8, which a host could not be told.
    """
    prefix = SSH_PREFIX if text.startswith(SSH_PREFIX) and text.count(":") > 1 else ""
    host, colon, path = text.removeprefix(prefix).partition(":")
    if not colon or not host or "/" in host:
        return Place("", text)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} is not UTF-8", hint="copy the folder that it is in") from None
    return Place(prefix + host, path)


@click.command("cp")
@click.argument(
    "sources", nargs=-1, required=True, metavar="SRC…", shell_complete=complete_host_path
)
@click.argument("target", metavar="DST", shell_complete=complete_host_path)
@click.option(
    "--sandbox",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="`off` works only where the host's owner has allowed it.",
)
@click.option("-r", "recursive", is_flag=True, hidden=True, help="As scp: folders always are.")
@json_option
def cp(sources: tuple[str, ...], target: str, sandbox: str, recursive: bool, as_json: bool) -> int:
    """Copy files and folders to a host or from one; the host's side is written HOST:PATH.

    \b
        codexctl cp report.pdf devbox:
        codexctl cp src tests devbox:project/
        codexctl cp devbox:results .
        codexctl cp 'devbox:logs/*.log' logs/

    HOST is a paired host or an alias of ~/.ssh/config. On a paired host paths are relative to its
    workspace, over SSH to the home folder. Folders are copied with all that is in them; modes,
    times and links are kept. As with cp, an existing folder is copied into.

    A copy that broke off goes on where it was: run the same command again. Each file appears under
    its name only when it is complete and its SHA-256 is right.

    Exit status: 0 all is copied, 1 something is not (it is named), 255 the connection failed, 126
    the host refused, 130 interrupted, 2 wrong usage.
    """
    del recursive
    places = [parse_place(source) for source in sources]
    summary = _copy(places, parse_place(target), sandbox == "on")
    _tell(summary, as_json)
    return 1 if summary.failures else 0


def _copy(sources: list[Place], target: Place, sandbox: bool) -> Summary:
    hosts = {place.host for place in sources}
    if target.host and hosts == {""}:
        return _transfer(target.host, [place.path for place in sources], target.path, True, sandbox)
    if not target.host and "" not in hosts:
        if len(hosts) > 1 and not os.path.isdir(target.path):
            raise UsageError(
                f"{target.path} is no folder to copy from several hosts into",
                hint=f"make it: mkdir {target.path}",
            )
        from codexctl.transfer.summary import Summary

        total = Summary()
        for host in dict.fromkeys(place.host for place in sources):
            paths = [place.path for place in sources if place.host == host]
            total.add(_transfer(host, paths, target.path, False, sandbox))
        return total
    if target.host:
        raise UsageError(
            "cannot copy from one host to another",
            hint="copy to this machine first, then from here",
        )
    raise UsageError(
        "neither side is a host" if hosts == {""} else "the sources are on both sides",
        hint="write the host's side as HOST:PATH, as in: codexctl cp file devbox:",
    )


def _transfer(host: str, paths: list[str], target: str, up: bool, sandbox: bool) -> Summary:
    home = Home.from_env()
    record = find_host(home, host)
    label = f"{'to' if up else 'from'} {host}"
    total = _size(paths) if up else None
    if record is None:
        ssh = find_ssh(host)
        if not sandbox:
            raise UsageError(f"{host} is reached over SSH, where there is no sandbox")
        from codexctl.client import sftp

        with progress(label, total=total) as step:
            over_ssh = sftp.upload if up else sftp.download
            return over_ssh(ssh, paths, target, step=step)
    if is_official(record):
        if not sandbox:
            raise UsageError(f"{host} is an official executor, where codexctl has no sandbox")
        from codexctl.client.executor.connection import ExecutorConnection
        from codexctl.client.executor.download import download
        from codexctl.client.executor.upload import upload

        official = ExecutorConnection.open(record, path_notice)
        with official, progress(label, total=total) as step:
            over_rpc = upload if up else download
            return over_rpc(official, paths, target, step=step)
    from codexctl.client import copy

    with open_connection(home, record) as connection, progress(label, total=total) as step:
        over_relay = copy.upload if up else copy.download
        return over_relay(connection, paths, target, sandbox=sandbox, step=step)


def _size(paths: list[str]) -> int | None:
    """Bytes of all these files; None where one is a folder, which nobody has walked yet."""
    if not all(map(os.path.isfile, paths)):
        return None
    return sum(map(os.path.getsize, paths))


def _tell(summary: Summary, as_json: bool) -> None:
    for entry in summary.skipped[:NAMED_FAILURES]:
        notice(f"{entry['path']}: {entry['message']}")
    for entry in summary.failed[:NAMED_FAILURES]:
        notice(f"not copied: {entry['path']}: {entry['message']}")
    if summary.failures > NAMED_FAILURES:
        notice(f"and {summary.failures - NAMED_FAILURES} more were not copied")
    if as_json:
        result: dict[str, Any] = {
            **summary.counts(),
            "failed": [_as_text(entry) for entry in summary.failed],
            "skipped": [_as_text(entry) for entry in summary.skipped],
        }
        emit(result, True)
    elif summary.resumed_bytes:
        notice(f"{size_text(summary.resumed_bytes)} were there already and did not travel again")


def _as_text(entry: dict[str, str]) -> dict[str, str]:
    """Names that are not UTF-8 with their bytes as \\udcXX, since JSON on stdout is UTF-8."""
    return {key: text.encode("utf-8", "backslashreplace").decode() for key, text in entry.items()}
