"""`codexctl provider`: which clouds there are, what they offer and cost, and logging in to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import json_option

if TYPE_CHECKING:
    from codexctl.provision.model import Provider
    from codexctl.secret import Secret


@click.group("provider", cls=LazyGroup)
def provider() -> None:
    """Log in to a provider; its regions, sizes, images and prices.

    \b
        codexctl provider login digitalocean
        codexctl provider show aws --region eu-west-2
    """


@provider.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the providers, what each can do, and plugins that do not load."""
    from codexctl.cli.output import emit, notice
    from codexctl.provision.plugins import load_plugins

    plugins = load_plugins()
    records = []
    for plugin in plugins.found:
        if plugin.problem or plugin.provider is None:
            notice(f"the plugin {plugin.name} of {plugin.package} is left out: {plugin.problem}")
            continue
        found = plugins.providers[plugin.provider]
        able = found.capabilities
        records.append(
            {
                "name": found.name,
                "summary": found.summary,
                "package": plugin.package,
                "creates": able.creates,
                "stops": able.stops,
                "stop_saves": able.stop_saves,
                "ends_itself": able.ends_itself,
            }
        )
    emit(records, as_json, table=("name", "summary", "stops", "ends_itself", "package"))


@provider.command()
@click.argument("name")
@click.option("--region", help="Sizes and images of this region.")
@json_option
def show(name: str, region: str | None, as_json: bool) -> None:
    """Show regions; with --region, the sizes with their prices, and the images."""
    from codexctl.cli.output import emit
    from codexctl.paths import Home
    from codexctl.provision.service import Service, patiently

    with Service(Home.from_env()) as service:
        chosen = service.plugins.provider(name)
        account = service.account(name, chosen.selection(defaults_of(chosen)))
        if region is None:
            regions = [
                {"name": r.name, "title": r.title, "available": r.available}
                for r in patiently(account.regions)
            ]
            emit(regions, as_json, empty=f"{name} has no regions")
            return
        sizes = [
            {
                "size": s.name,
                "cpus": s.cpus,
                "memory_mib": s.memory_mib,
                "disk_gib": s.disk_gib,
                "hour": None if s.price is None else f"{s.price.hourly.normalize():f}",
                "month": None if s.price is None else f"{s.price.monthly:.2f}",
                "currency": None if s.price is None else s.price.currency,
                "architecture": s.architecture,
            }
            for s in patiently(lambda: account.sizes(region))
        ]
        images = [
            {"image": i.name, "title": i.title, "default": i.default}
            for i in patiently(lambda: account.images(region))
        ]
    if as_json:
        emit({"region": region, "sizes": sizes, "images": images}, True)
        return
    emit(sizes, False, empty=f"{name} has no sizes there")
    if images:
        click.echo()
        emit(images, False)


@provider.command()
@click.argument("name")
def login(name: str) -> None:
    """Ask for a credential, check what it may do, and keep it."""
    from codexctl.cli.output import emit
    from codexctl.paths import Home
    from codexctl.provision.service import Service

    with Service(Home.from_env()) as service:
        chosen = service.plugins.provider(name)
        lines = chosen.login(chosen.selection(defaults_of(chosen)), service.secrets, _ask)
    emit(None, False, text="\n".join(lines))


@provider.command()
@click.argument("name")
def policy(name: str) -> None:
    """Print the least permissions that the provider needs, in its cloud's own format."""
    from codexctl.cli.output import emit
    from codexctl.provision.plugins import load_plugins

    emit(None, False, text=load_plugins().provider(name).policy())


def _ask(question: str) -> Secret:
    from codexctl.cli.output import ask
    from codexctl.secret import Secret

    return Secret(ask(question, hidden=True))


def defaults_of(chosen: Provider) -> dict[str, Any]:
    """The options of a provider when none is given."""
    command = click.Command("provider", params=list(chosen.options()))
    return command.make_context("provider", [], resilient_parsing=True).params
