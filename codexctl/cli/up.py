"""`codexctl up`: a relay and a host in one process, and an offer to pair with it."""

from __future__ import annotations

import sys
from typing import Any

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
from codexctl.errors import ConnectionFailed, UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.relay.server import RelayServer

FIRST_PORT = 8700
TOKEN_NAME = "up"  # noqa: S105 - a token's name
TOKEN_TTL_S = 10 * 365 * 86400  # its secret lives in this process alone, and each start makes one


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Where the relay listens; port 0 takes a free one. If absent, loopback, and the port of "
    "the last start, so that paired devices find it again.",
)
@click.option(
    "--lan",
    is_flag=True,
    help="Listen for other machines as well, with TLS by a key of its own that pairing pins.",
)
@click.option("--public-url", default="", metavar="URL", help="How devices reach the relay.")
@click.option("--tls-cert", default="", metavar="FILE", help="Certificate chain, PEM.")
@click.option("--tls-key", default="", metavar="FILE", help="Its private key, PEM.")
@click.option("--tls-self-signed", is_flag=True, help="TLS by a key of its own; pairing pins it.")
@click.option("--invert", is_flag=True, help="A QR code for a light theme.")
@name_option
@workspace_option
@json_option
def up(
    listen: str | None,
    lan: bool,
    public_url: str,
    tls_cert: str,
    tls_key: str,
    tls_self_signed: bool,
    invert: bool,
    name: str | None,
    workspace: str | None,
    as_json: bool,
) -> None:
    """Run a relay and a host here, show how to pair with it, and stay.

    \b
        codexctl up                      for this machine (and SSH tunnels to it)
        codexctl up --lan                for machines on the same network
        codexctl up --public-url URL     behind a reverse proxy with TLS

    Devices that are paired stay paired: start it again and they find it. Another offer, also while
    it runs: codexctl pair --show. To end a device's access: codexctl devices revoke NAME.
    """
    import asyncio

    from codexctl.client.registry import Relay
    from codexctl.host.daemon import Daemon
    from codexctl.relay.server import RelayConfig, RelayServer, raise_file_limit

    home = Home.from_env().ensure()
    if lan and listen:
        raise UsageError("--lan listens on every address", hint="leave --listen away, or --lan")
    chosen = listen or _last_listen(home, lan=lan)
    called, folder = host_name(name), workspace_path(workspace)
    log_to_stderr(as_json=as_json)
    raise_file_limit()
    server = RelayServer(
        RelayConfig(
            home=home,
            listen=chosen,
            public_url=public_url or (_lan_url(chosen) if lan else ""),
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_self_signed=tls_self_signed or lan,
        )
    )

    async def main() -> None:
        async with until_signalled(), server as relay:
            if not listen:
                _remember_listen(home, relay, lan=lan)
            pin = parse_pin(relay.pin or None)
            # Past a reverse proxy, unless a certificate stands for the public name alone.
            near = relay.base_url if tls_cert else relay.local_url
            daemon = Daemon.create(
                home,
                relay=Relay(near, pin, _fresh_token(relay)),
                shown_relay=relay.base_url,
                name=called,
                workspace=folder,
                tell=teller(as_json=as_json),
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(daemon.run())
                await daemon.up.wait()
                offer = await daemon.pairing.create({})
                _announce(relay.base_url, called, folder, offer, invert=invert, as_json=as_json)

    run(main)


def _announce(
    url: str, name: str, folder: str, offer: dict[str, Any], *, invert: bool, as_json: bool
) -> None:
    if as_json:
        emit_line({"event": "ready", "relay": url, "host": name})
        emit_line({"event": "pairing", **offer})
        return
    from codexctl.cli.pair import show_offer

    show_offer(offer, invert=invert)
    notice(f"host {name} is ready at {url}; its workspace is {folder}")
    if sys.stdout.isatty():
        notice("Ctrl-C stops it")


def _fresh_token(relay: RelayServer) -> Any:
    """A token of this start for the host; the last start's is ended."""
    import time

    now = time.time()
    for token in relay.store.tokens():
        if token.name == TOKEN_NAME and token.status(now) == "active":
            relay.store.revoke(token.id)
    secret, _ = relay.store.create_token(name=TOKEN_NAME, expires_in_s=TOKEN_TTL_S)
    return secret


def _listen_file(home: Home, *, lan: bool) -> str:
    return home.join("up-lan.listen" if lan else "up.listen")


def _last_listen(home: Home, *, lan: bool) -> str:
    """The address of the last start; else FIRST_PORT, or a free port where that is taken."""
    host = "0.0.0.0" if lan else "127.0.0.1"  # noqa: S104 - asked for by --lan, with TLS
    try:
        with open(_listen_file(home, lan=lan), encoding="ascii") as file:
            port = int(file.read(16))
    except (OSError, ValueError):
        port = _free_port(host)
    return f"{host}:{port}"


def _free_port(host: str) -> int:
    import socket

    for port in (FIRST_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConnectionFailed(f"no port is free on {host}")


def _remember_listen(home: Home, relay: RelayServer, *, lan: bool) -> None:
    from codexctl.state.files import replace_file

    replace_file(_listen_file(home, lan=lan), f"{relay.port}\n".encode())


def _lan_url(listen: str) -> str:
    """https and the address that this machine has on its network."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: this asks the routing table. The address is for documentation.
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
        except OSError:
            raise ConnectionFailed(
                "this machine has no address on a network",
                hint="without --lan it serves this machine alone",
            ) from None
    return f"https://{address}:{listen.rpartition(':')[2]}"
