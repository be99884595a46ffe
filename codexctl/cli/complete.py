"""What to complete for an argument that names hosts: `shell_complete=complete_host`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def complete_host(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Paired hosts and concrete ssh aliases; after a comma, the next of several hosts."""
    done, comma, last = incomplete.rpartition(",")
    return [done + comma + name for name in host_names() if name.startswith(last)]


def complete_paired(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Paired hosts alone."""
    from codexctl.client.names import host_names as paired_names
    from codexctl.errors import CodexctlError
    from codexctl.paths import Home

    try:
        return [name for name in paired_names(Home.from_env()) if name.startswith(incomplete)]
    except CodexctlError:
        return []


def complete_host_path(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """`HOST:` and local files, for `cp`."""
    from click.shell_completion import CompletionItem

    hosts = [CompletionItem(f"{name}:") for name in host_names() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *hosts]


def host_names() -> list[str]:
    """Sorted; what cannot be read has no names, since the command itself will say why."""
    from codexctl.client.names import host_names as paired_names
    from codexctl.client.ssh_config import alias_names
    from codexctl.errors import CodexctlError
    from codexctl.paths import Home

    try:
        return sorted({*paired_names(Home.from_env()), *alias_names()})
    except CodexctlError:
        return []
