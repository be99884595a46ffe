"""`codexctl help [COMMAND]...`: what `codexctl COMMAND --help` says."""

from __future__ import annotations

import click


@click.command("help")
@click.argument("names", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of COMMAND, or of codexctl."""
    assert ctx.parent is not None
    ctx.exit(_show(ctx.parent, list(names)))


def _show(ctx: click.Context, names: list[str]) -> int:
    if not names:
        click.echo(ctx.get_help())
        return 0
    if not isinstance(ctx.command, click.Group):
        raise click.UsageError(f"{ctx.command_path} has no commands of its own", ctx)
    name, command, _ = ctx.command.resolve_command(ctx, names)
    assert command is not None
    with click.Context(command, info_name=name, parent=ctx) as inner:
        return _show(inner, names[1:])
