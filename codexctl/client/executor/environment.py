"""What an official executor says of itself, as its versions differ."""

from __future__ import annotations

from typing import Any, NamedTuple


class Environment(NamedTuple):
    """What the executor says of itself. `cwd` and `home` are paths there; texts may be empty."""

    version: str
    shell: str
    cwd: str
    home: str
    os: str
    urls: bool  # whether paths travel as file:// URLs
    writes_blocks: bool  # whether a file can be written in pieces


def parse_environment(info: object) -> Environment:
    """The `environmentInfo` of an answer; what is missing there is left empty."""
    value: dict[str, Any] = info if isinstance(info, dict) else {}
    shell, able = value.get("shell"), value.get("capabilities")
    cwd = str(value.get("cwd") or "file:///")
    return Environment(
        version=str(value.get("executorVersion") or "")[:64],
        shell=str(shell.get("path") or "") if isinstance(shell, dict) else "",
        cwd=_local(cwd),
        home=_local(str(value.get("userHomeDir") or "")),
        os=str(value.get("platformOs") or "")[:64],
        urls=cwd.startswith("file:"),
        writes_blocks=isinstance(able, dict) and able.get("fileWriteStreaming") is True,
    )


def _local(place: str) -> str:
    """The path that a file:// URL or a plain path names."""
    if not place.startswith("file://"):
        return place
    from urllib.parse import unquote

    return unquote(place.removeprefix("file://"))
