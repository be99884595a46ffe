"""`codexctl provision PROVIDER [options]`: make a workspace in one command, or go on with one.

The providers are plugins, so their options are known only once they are loaded; that happens for
this command alone. `--json` writes one object a line: plan, stage…, ready (or the error).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from codexctl.errors import CodexctlError, Interrupted, UsageError

if TYPE_CHECKING:
    from codexctl.provision.journal import Settings, Workspace
    from codexctl.provision.model import Plan, Provider
    from codexctl.provision.plugins import Plugins
    from codexctl.provision.service import Service
    from codexctl.secret import Secret

DEFAULT_USER = "codex"


class ProvisionGroup(click.Group):
    """A command for each provider that is installed, with that provider's own options."""

    _loaded: Plugins | None = None

    def plugins(self) -> Plugins:
        if self._loaded is None:
            from codexctl.cli.output import notice
            from codexctl.provision.plugins import load_plugins

            self._loaded = load_plugins()
            for plugin in self._loaded.broken:
                notice(
                    f"the plugin {plugin.name} of {plugin.package} is left out: {plugin.problem}"
                )
        return self._loaded

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.plugins().providers)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        provider = self.plugins().providers.get(cmd_name)
        return None if provider is None else provider_command(provider)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-"):
            # Says which are near, or why that one does not load.
            self.plugins().provider(args[0])
        return super().resolve_command(ctx, args)


@click.group(
    "provision",
    cls=ProvisionGroup,
    invoke_without_command=True,
    subcommand_metavar="PROVIDER [OPTIONS OF IT]",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--resume", metavar="NAME", help="Go on with a provision that was interrupted.")
@click.option("--json", "as_json", is_flag=True, help="With --resume: print JSON lines.")
@click.pass_context
def provision(context: click.Context, resume: str | None, as_json: bool) -> None:
    """Make a machine for coding agents: ordered, secured, set up, paired and told truthfully.

    \b
        codexctl provision digitalocean --region lon1 --ttl 8h
        codexctl provision aws --region eu-west-2 --size t3.large --ttl 8h
        codexctl provision ssh devbox.example.net --user me
        codexctl provision --resume NAME

    Shows what will be made and what it costs, and asks once. `codexctl provision PROVIDER --help`
    shows the options of a provider. `codexctl workspace` lists, stops and destroys what was made.
    """
    if resume is not None:
        _resume(resume, as_json)
    elif context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def common_options() -> list[click.Parameter]:
    """The pipeline's own options, the same for every provider."""
    return [
        click.Option(["--name"], help="The workspace's name and ssh alias."),
        click.Option(["--ttl"], help="When it dies, as 8h or 3d; without it, when you destroy it."),
        click.Option(["--idle-stop"], help="Stop it when idle for so long, as 30m (see reap)."),
        click.Option(["--max-price"], help="Refuse what costs more an hour, as 0.25."),
        click.Option(["--user"], help=f"The login user, {DEFAULT_USER} by default."),
        click.Option(["--sudo/--no-sudo"], default=True, help="May the user become root?"),
        click.Option(["--package"], multiple=True, help="A package to install; repeatable."),
        click.Option(["--setup"], multiple=True, help="A script root runs at first; repeatable."),
        click.Option(["--template"], help="Your own cloud-init template."),
        click.Option(["--key-passphrase"], is_flag=True, help="Ask for a passphrase for the key."),
        click.Option(["--agent"], is_flag=True, help="Add the key to the running ssh agent."),
        click.Option(["--relay"], help="The relay to pair through; else the one of your hosts."),
        click.Option(["--no-pair"], is_flag=True, help="Install codexctl there, but do not pair."),
        click.Option(["--bare"], is_flag=True, help="Neither codex nor codexctl on it."),
        click.Option(["--yes", "-y"], is_flag=True, help="Do not ask."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON lines."),
    ]


def provider_command(provider: Provider) -> click.Command:
    """The click command of one provider: its options first, then the pipeline's."""

    def call(**options: Any) -> None:
        _provision(provider, options)

    return click.Command(
        provider.name,
        callback=call,
        params=[*provider.options(), *common_options()],
        help=f"{provider.summary}.",
        short_help=provider.summary,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _provision(provider: Provider, options: dict[str, Any]) -> None:
    import time

    from codexctl.cli.output import confirm, emit_line
    from codexctl.cli.provision_view import plan_record, plan_text
    from codexctl.provision.service import patiently
    from codexctl.provision.ssh_config import SshConfig

    as_json = bool(options["as_json"])
    settings = _settings(options, creates=provider.capabilities.creates)
    with _service() as service:
        settings = _with_relay(service, settings)
        name = options["name"] or _free_name(service, provider.name)
        SshConfig(service.home).check_name(name)
        _refuse_taken(service, name)
        selection = provider.selection(options)
        account = service.account(provider.name, selection)
        account_id = service.account_id(account)
        plan = patiently(lambda: account.plan(options))
        _check_price(plan, options["max_price"])
        _check_abilities(provider, settings)
        if as_json:
            emit_line({"event": "plan", **plan_record(provider, name, plan, settings)})
        else:
            click.echo(plan_text(provider, name, plan, settings), err=True)
        passphrase = _passphrase() if settings.passphrase else None
        if not confirm("make it?", yes=options["yes"]):
            raise Interrupted("nothing was made")
        now = int(time.time())
        workspace = service.journal.begin(
            name=name,
            provider=provider.name,
            selection=selection,
            account_id=account_id,
            plan=plan,
            settings=settings,
            expires_at=None if settings.ttl_s is None else now + settings.ttl_s,
            now=now,
        )
        _run(service, workspace, as_json, passphrase)


def _resume(name: str, as_json: bool) -> None:
    with _service() as service:
        workspace = service.journal.by_name(name)
        passphrase = _passphrase() if workspace.settings.passphrase else None
        _run(service, workspace, as_json, passphrase)


def _run(service: Service, workspace: Workspace, as_json: bool, passphrase: Secret | None) -> None:
    import time

    from codexctl.cli.output import emit, emit_line
    from codexctl.cli.provision_view import StageView, next_steps, ready_record
    from codexctl.provision.readiness import Teller

    view = StageView(as_json)
    try:
        with view:
            pipeline = service.pipeline(workspace, Teller(view), passphrase=passphrase)
            done = pipeline.run(workspace, goal="up")
    except KeyboardInterrupt:
        stage = service.journal.by_id(workspace.id).stage
        raise Interrupted(
            f"interrupted after stage {stage}; what was made of {workspace.name} may bill",
            hint=f"codexctl provision --resume {workspace.name} goes on, "
            f"codexctl workspace destroy {workspace.name} undoes it",
        ) from None
    record = ready_record(done, int(time.time()))
    if as_json:
        emit_line({"event": "ready", **record})
    else:
        emit(record, False, text=next_steps(done))


def _service() -> Service:
    from codexctl.paths import Home
    from codexctl.provision.service import Service

    return Service(Home.from_env())


def _settings(options: dict[str, Any], *, creates: bool) -> Settings:
    """The pipeline's settings from the options; UsageError for what cannot work."""
    import os

    from codexctl.durations import parse_duration
    from codexctl.provision.cloudinit import check_settings
    from codexctl.provision.journal import Settings

    user = options["user"] or DEFAULT_USER
    check_settings(user, options["package"], options["setup"], creates=creates)
    ttl, idle = options["ttl"], options["idle_stop"]
    template = options["template"] or ""
    return Settings(
        user=user,
        sudo=options["sudo"],
        packages=tuple(options["package"]),
        setup=tuple(os.path.abspath(path) for path in options["setup"]),
        ttl_s=parse_duration(ttl) if ttl else None,
        idle_stop_s=parse_duration(idle) if idle else None,
        bare=options["bare"],
        pair=not (options["no_pair"] or options["bare"]),
        template=os.path.abspath(template) if template else "",
        passphrase=options["key_passphrase"],
        agent=options["agent"],
        relay=options["relay"] or "",
    )


def _with_relay(service: Service, settings: Settings) -> Settings:
    """With the relay that this device knows, where none was named and it is to be paired."""
    from dataclasses import replace

    from codexctl.provision.pairing import default_relay

    if settings.relay or not settings.pair:
        return settings
    return replace(settings, relay=default_relay(service.home))


def _check_abilities(provider: Provider, settings: Settings) -> None:
    able = provider.capabilities
    if settings.idle_stop_s is not None and not able.stops:
        raise UsageError(f"{provider.name} cannot stop a machine", hint="leave --idle-stop out")
    if not able.creates and (settings.packages or settings.setup or settings.ttl_s is not None):
        raise UsageError(
            f"{provider.name} adopts a machine as it is",
            hint="leave --ttl, --package and --setup out",
        )


def _check_price(plan: Plan, limit: str | None) -> None:
    from decimal import Decimal, InvalidOperation

    if limit is None:
        return
    try:
        most = Decimal(limit)
    except InvalidOperation:
        raise UsageError(f"--max-price {limit!r} is no amount", hint="as 0.25") from None
    if plan.price is None or plan.price.hourly > most:
        costs = "an unknown price" if plan.price is None else f"{plan.price.hourly} an hour"
        raise CodexctlError(
            f"{plan.size} in {plan.region} costs {costs}, more than --max-price {most}",
            hint="choose a smaller --size: codexctl provider show lists them with prices",
        )


def _free_name(service: Service, provider: str) -> str:
    import secrets

    taken = {workspace.name for workspace in service.journal.live()}
    while True:
        name = f"{provider}-{secrets.token_hex(2)}"
        if name not in taken:
            return name


def _refuse_taken(service: Service, name: str) -> None:
    if any(workspace.name == name for workspace in service.journal.live()):
        raise UsageError(
            f"there is a workspace {name} already",
            hint=f"codexctl provision --resume {name}, or choose another --name",
        )


def _passphrase() -> Secret:
    from codexctl.cli.output import ask
    from codexctl.secret import Secret

    first = ask("passphrase for the workspace's key:", hidden=True)
    if not first:
        raise UsageError("the passphrase is empty")
    return Secret(first)
