"""`codexctl plugin`: third-party providers, installed beside codexctl, checked and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import json_option, notice, yes_option
from codexctl.errors import CodexctlError, UsageError

if TYPE_CHECKING:
    from codexctl.provision.installer import Seen


@click.group("plugin", cls=LazyGroup)
def plugin() -> None:
    """Install, list, check, remove and make provider plugins.

    \b
        codexctl plugin install codexctl-acme
        codexctl plugin install https://git.example.net/acme/codexctl-acme
        codexctl plugin new acme           a package of your own, that works
    """


@plugin.command()
@click.argument("target", metavar="NAME|PATH|GIT-URL")
@yes_option
@json_option
def install(target: str, yes: bool, as_json: bool) -> None:
    """Install a plugin into the environment that runs codexctl, or leave everything as it was.

    A plugin is code that runs as you; install what you trust.
    """
    from codexctl.cli.output import confirm, emit
    from codexctl.errors import Interrupted
    from codexctl.provision import installer

    here = installer.environment()
    if not confirm(f"install {target} with {here.kind}? it will run as you", yes=yes):
        raise Interrupted("nothing was installed")
    new = installer.install(target, show=notice)
    if here.note:
        notice(here.note)
    names = ", ".join(f"codexctl provision {found['provider']}" for found in new)
    emit(new, as_json, text=None if as_json else f"installed: {names}")


@plugin.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the plugins, and why one was left out."""
    from codexctl.cli.output import emit

    emit(_loaded(), as_json, table=("name", "provider", "package", "version", "problem"))


@plugin.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one plugin and what its provider can do."""
    from codexctl.cli.output import emit
    from codexctl.provision.plugins import load_plugins

    plugins = load_plugins()
    record = next((r for r in _loaded() if name in (r["name"], r["provider"], r["package"])), None)
    if record is None:
        raise UsageError(f"there is no plugin {name}", hint="codexctl plugin list")
    found = plugins.providers.get(str(record["provider"]))
    if found is not None:
        able = found.capabilities
        record |= {field: getattr(able, field) for field in able.__slots__}
    emit(record, as_json)


@plugin.command()
@click.argument("name")
@yes_option
@json_option
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Uninstall a plugin; refused while workspaces of its provider live."""
    from codexctl.cli.output import confirm, emit
    from codexctl.errors import Interrupted
    from codexctl.provision import installer

    found = _third_party(installer.look(), name)
    _refuse_while_used(found)
    if not confirm(f"remove the package {found['package']}?", yes=yes):
        raise Interrupted("nothing was removed")
    installer.remove(found["package"], show=notice)
    package = found["package"]
    emit({"removed": package}, as_json, text=None if as_json else f"{package} is removed")


@plugin.command()
@click.argument("name")
@json_option
def update(name: str, as_json: bool) -> None:
    """Install a plugin's newest version from where it came, or keep the one there is."""
    from codexctl.cli.output import emit
    from codexctl.provision import installer

    found = _third_party(installer.look(), name)
    package = found["package"]
    new = installer.install(_source_of(package), package=package, show=notice)
    if not new:
        notice(f"{found['package']} {found['version']} is the newest")
    emit(new or [found], as_json, table=("name", "provider", "package", "version"))


@plugin.command()
@json_option
def check(as_json: bool) -> int:
    """Load every plugin in a fresh process; exits 1 when one does not."""
    from codexctl.cli.output import emit
    from codexctl.provision import installer

    records = list(installer.look().plugins)
    emit(records, as_json, table=("name", "provider", "package", "version", "problem"))
    return 1 if any(record["problem"] for record in records) else 0


@plugin.command()
@click.argument("name")
@click.option("--directory", type=click.Path(), help="Where; codexctl-NAME by default.")
@json_option
def new(name: str, directory: str | None, as_json: bool) -> None:
    """Write a working plugin package with its tests, to be made yours."""
    from codexctl.cli.output import emit
    from codexctl.provision.scaffold import write_package

    folder = write_package(name, directory)
    lines = [
        f"wrote {folder}; next:",
        "",
        f"  cd {folder}",
        "  pip install -e '.[test]' && pytest",
        f"  codexctl plugin install {folder}",
    ]
    emit({"folder": folder}, as_json, text=None if as_json else "\n".join(lines))


def _loaded() -> list[dict[str, Any]]:
    from codexctl.provision.plugins import load_plugins

    return [
        {field: getattr(found, field) for field in found.__slots__}
        for found in load_plugins().found
    ]


def _third_party(seen: Seen, name: str) -> dict[str, Any]:
    found = seen.plugin(name)
    if found is None:
        raise UsageError(f"there is no plugin {name}", hint="codexctl plugin list")
    if found["package"] == "codexctl":
        raise UsageError(f"{name} is part of codexctl itself")
    return found


def _refuse_while_used(found: dict[str, Any]) -> None:
    from codexctl.paths import Home
    from codexctl.provision.journal import Journal

    with Journal(Home.from_env().ensure()) as journal:
        used = [w.name for w in journal.live() if w.provider in (found["provider"], found["name"])]
    if used:
        raise CodexctlError(
            f"{found['package']} is needed while its workspaces live: {', '.join(used)}",
            hint=f"codexctl workspace destroy {used[0]}",
        )


def _source_of(package: str) -> str:
    """Where a package was installed from: its folder or git URL, else its name."""
    import json
    from importlib.metadata import distribution
    from urllib.parse import unquote

    text = distribution(package).read_text("direct_url.json")
    if text is None:
        return package
    value = json.loads(text)
    url = str(value["url"])
    if "vcs_info" not in value:
        return unquote(url.removeprefix("file://"))
    asked = value["vcs_info"].get("requested_revision")
    folder = f"#subdirectory={value['subdirectory']}" if value.get("subdirectory") else ""
    return f"git+{url}{f'@{asked}' if asked else ''}{folder}"
