"""`codexctl host serve`: this machine as a host of a relay, until it is stopped."""

from __future__ import annotations

import os
import sys

import click

from codexctl.cli.host_run import (
    host_name,
    log_to_stderr,
    name_option,
    parse_pin,
    run,
    teller,
    until_signalled,
    workspace_option,
    workspace_path,
)
from codexctl.cli.output import emit_line, json_option, notice
from codexctl.errors import UsageError
from codexctl.paths import ENV_RELAY_TOKEN as ENV_TOKEN
from codexctl.paths import Home
from codexctl.secret import Secret

MAX_TOKEN_BYTES = 4096


@click.command()
@click.option("--relay", required=True, metavar="URL", help="The relay's address.")
@click.option(
    "--token-file", metavar="FILE", help=f"File with the relay's token; else {ENV_TOKEN}."
)
@click.option(
    "--relay-pin", metavar="PIN", help="Hash of a self-signed relay's key, as it prints it."
)
@name_option
@workspace_option
@json_option
def serve(
    relay: str,
    token_file: str | None,
    relay_pin: str | None,
    name: str | None,
    workspace: str | None,
    as_json: bool,
) -> None:
    """Serve this machine's workspace to paired devices through a relay, until stopped.

    The token is an owner's, or a single-use one (`codexctl relay token create --single-use`), which
    the first start exchanges for one of this host's own. Pair devices with `codexctl pair --show`,
    in another terminal here. As a service: `codexctl host install`.
    """
    import asyncio

    from codexctl.client.registry import Relay
    from codexctl.client.sockets import parse_address
    from codexctl.host.daemon import Daemon
    from codexctl.host.enrolment import with_own_token

    parse_address(relay)
    home = Home.from_env()
    where = Relay(relay.rstrip("/"), parse_pin(relay_pin), read_token(token_file))
    where = with_own_token(home, where)
    log_to_stderr(as_json=as_json)
    daemon = Daemon.create(
        home,
        relay=where,
        name=host_name(name),
        workspace=workspace_path(workspace),
        tell=teller(as_json=as_json),
    )

    async def announce() -> None:
        await daemon.up.wait()
        if as_json:
            emit_line({"event": "ready", "relay": where.url, "host": daemon.context.name})
        else:
            notice(f"host {daemon.context.name} is ready; workspace {daemon.context.workspace}")
            if sys.stderr.isatty():
                notice("pair a device with: codexctl pair --show")

    async def main() -> None:
        async with until_signalled(), asyncio.TaskGroup() as tasks:
            tasks.create_task(announce())
            tasks.create_task(daemon.run())

    run(main)


def read_token(path: str | None) -> Secret:
    from codexctl.state.files import read_private

    if path is None:
        # Taken out, so that no child of this process inherits it.
        text = os.environ.pop(ENV_TOKEN, "")
    else:
        try:
            text = read_private(path, what="the token file", limit=MAX_TOKEN_BYTES).decode()
        except FileNotFoundError:
            raise UsageError(f"there is no token file {path}") from None
        except UnicodeDecodeError:
            raise UsageError(f"the token file {path} is not text") from None
    if not text.strip():
        raise UsageError(
            "the relay's token is missing",
            hint=f"--token-file FILE or {ENV_TOKEN}; make one on the relay: "
            "codexctl relay token create --name NAME",
        )
    return Secret(text.strip())
