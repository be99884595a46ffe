"""A click group whose commands are rows of a table, loaded when one of them runs.

COMMANDS = {"serve": ("codexctl.cli.relay_serve:serve", "Run a relay")}

relay = LazyGroup("relay", table=COMMANDS, help="Run a relay; its tokens.")
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

Row = tuple[str, str]  # "module:attribute", summary
SUMMARY_LIMIT = 200  # characters of a command's first sentence; lines are wrapped


class LazyGroup(click.Group):
    """Help, completion and typo hints come from `table`; a module is imported only to run it."""

    def __init__(
        self, name: str | None = None, *, table: Mapping[str, Row] | None = None, **attributes: Any
    ) -> None:
        attributes.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(name, **attributes)
        self.table = table or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.table, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = self.table.get(cmd_name)
        if row is None:
            return super().get_command(ctx, cmd_name)
        module, attribute = row[0].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            if name.startswith("-"):
                raise click.NoSuchOption(name, ctx=ctx)
            message = f"no command {name!r} in {ctx.command_path}"
            raise click.UsageError(message + nearest(name, self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary) for name, (_, summary) in self.table.items()]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(SUMMARY_LIMIT).removesuffix(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        rows = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in self.table.items()
            if name.startswith(incomplete)
        ]
        if not self.table:
            return super().shell_complete(ctx, incomplete)
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*rows, *options]


def nearest(name: str, names: list[str]) -> str:
    """`; did you mean A or B?` for a name that is close to some of `names`, else nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
