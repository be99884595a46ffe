"""`codexctl host policy`: check a policy file, show the effective policy and its sources."""

from __future__ import annotations

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import emit, json_option
from codexctl.paths import Home

WIDTH = 100

system_option = click.option(
    "--system",
    "system_path",
    metavar="FILE",
    help="The system-wide file; /etc/codexctl/policy.toml if absent.",
)


@click.group(cls=LazyGroup)
def policy() -> None:
    """What paired devices may have this host do: policy.toml in CODEXCTL_HOME.

    /etc/codexctl/policy.toml above it can only tighten it. Both are read when the host starts.
    """


@policy.command()
@click.argument("file", required=False)
@system_option
@json_option
def check(file: str | None, system_path: str | None, as_json: bool) -> None:
    """Say whether FILE, or the host's own policy with the system-wide one, can be obeyed.

    An unknown key, a wrong type or an unreadable file is an error that names its line.
    """
    from codexctl.errors import PolicyError
    from codexctl.host.policy import SYSTEM_POLICY, load_policy, read_layer

    if file is not None:
        import os

        if not os.path.exists(file):
            raise PolicyError(f"there is no policy file {file}")
        settings = sorted(read_layer(file))
        emit(
            {"path": file, "settings": settings},
            as_json,
            text=f"{file} is good: it sets {', '.join(settings) or 'nothing'}",
        )
        return
    home = Home.from_env()
    paths = [home.policy, system_path or SYSTEM_POLICY]
    load_policy(paths[0], system_path=paths[1])
    found = [path for path in paths if read_layer(path)]
    emit(
        {"paths": found},
        as_json,
        text=f"good: {' and '.join(found)}" if found else "good: no policy file, so all defaults",
    )


@policy.command()
@system_option
@json_option
def show(system_path: str | None, as_json: bool) -> None:
    """Show the effective policy: each value with the file and line it comes from."""
    from codexctl.host.policy import SETTINGS, SYSTEM_POLICY, load_policy

    effective = load_policy(
        Home.from_env().policy, system_path=system_path or SYSTEM_POLICY
    ).effective()
    if as_json:
        emit(effective, True)
        return
    import textwrap

    lines = []
    for name, rows in effective.items():
        lines.append(f"{name}  ({SETTINGS[name].summary})")
        by_source: dict[str, list[str]] = {}
        for row in rows or ():
            by_source.setdefault(row["source"], []).append(row["value"])
        for source, values in by_source.items():
            text = textwrap.wrap(f"{', '.join(values)}", WIDTH, break_on_hyphens=False)
            lines += [f"    {line}" for line in text]
            lines[-1] += f"    [{source}]"
        if not rows:
            lines.append("    not set" if rows is None else "    none")
    emit(effective, False, text="\n".join(lines))
