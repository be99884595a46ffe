"""docs/cli.md from the help texts, and the plugin's SKILL.md; `./dev docs` writes both."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from codexctl.cli.main import EPILOG, HEADINGS, root_group, root_help

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "docs" / "cli.md"
SKILL = ROOT / "SKILL.md"
PLUGIN_SKILL = ROOT / "codexctl" / "skill" / "codexctl" / "skills" / "codexctl" / "SKILL.md"
WIDTH = 88
INTRODUCTION = """\
# Every command

Generated from the help texts by `./dev docs`; a test keeps it so.

Results go to stdout, all else to stderr. With `--json` a failure is one JSON object on a line of
stderr: `error`, `message`, `hint`, `exit_code`. Exit statuses of codexctl's own: 255 connection,
126 refused by the host, 127 not found on the host, 130 interrupted, 2 wrong usage, 1 anything else.

| variable | |
|---|---|
| `CODEXCTL_HOME` | the folder of all state of one identity; `~/.codexctl` without it |
| `CODEXCTL_RELAY` | the relay that `provision` pairs a workspace through |
| `CODEXCTL_RELAY_TOKEN` | the relay's token for `host serve`, `host install` and `provision` |
| `CODEXCTL_NPM_REGISTRY` | a mirror of npm's, from which workspaces get the official codex |
| `CODEXCTL_SSH_CONFIG` | another file than `~/.ssh/config` |
| `CODEXCTL_DEBUG` | set: tracebacks with every error, and news of paths that are lost and found |
| `NO_COLOR` | set: no colours, also in QR codes |

"""


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _fence(root_help().replace(EPILOG, "").rstrip())]
    group = root_group()
    settings = group.context_settings
    with click.Context(group, info_name="codexctl", terminal_width=WIDTH, **settings) as context:
        for heading, names in HEADINGS:
            parts.append(f"## {heading}\n\n")
            for name in names:
                command = group.get_command(context, name)
                assert command is not None
                for path, text in _helps(context, name, command):
                    depth = "#" * min(2 + len(path), 5)
                    parts.append(f"{depth} codexctl {' '.join(path)}\n\n{_fence(text)}")
    return "".join(parts).rstrip("\n") + "\n"


def _helps(
    parent: click.Context, name: str, command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The help of a command and, behind it, of its own commands."""
    path = (*path, name)
    with click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH) as context:
        yield path, inspect.cleandoc(command.get_help(context))
        if isinstance(command, click.Group):
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                if found is not None and not found.hidden:
                    yield from _helps(context, inner, found, path)


def _fence(text: str) -> str:
    return f"```text\n{text}\n```\n\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    PLUGIN_SKILL.write_bytes(SKILL.read_bytes())
