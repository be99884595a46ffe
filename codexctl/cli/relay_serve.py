"""`codexctl relay serve`: a relay until SIGTERM or Ctrl-C, which drain it."""

from __future__ import annotations

import click

from codexctl.cli.output import emit_line, json_option, notice

DEFAULT_LISTEN = "127.0.0.1:8700"


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where to listen; port 0 takes a free one. Beyond loopback only with TLS.",
)
@click.option(
    "--public-url",
    metavar="URL",
    default="",
    help="How others reach this relay, where a reverse proxy stands before it.",
)
@click.option("--tls-cert", metavar="FILE", default="", help="Certificate chain, PEM.")
@click.option("--tls-key", metavar="FILE", default="", help="Its private key, PEM.")
@click.option(
    "--tls-self-signed",
    is_flag=True,
    help="Make a key in CODEXCTL_HOME; devices pin it by the pairing URL.",
)
@json_option
def serve(
    listen: str,
    public_url: str,
    tls_cert: str,
    tls_key: str,
    tls_self_signed: bool,
    as_json: bool,
) -> None:
    """Run a relay until it is stopped.

    It serves HTTP and WebSockets on one port. What it knows stands in relay.db of CODEXCTL_HOME.
    The log goes to stderr, as JSON lines with --json. SIGTERM and Ctrl-C drain it: the ends are
    told to come again, which they do when it is back. A second signal ends it at once.
    """
    import asyncio
    import time

    import uvloop

    from codexctl.paths import Home
    from codexctl.relay.log import EventLog
    from codexctl.relay.server import RelayConfig, RelayServer, raise_file_limit

    log = EventLog(as_json=as_json)
    server = RelayServer(
        RelayConfig(
            home=Home.from_env(),
            listen=listen,
            public_url=public_url,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_self_signed=tls_self_signed,
            log=log,
        )
    )
    raise_file_limit()

    async def run() -> None:
        import signal

        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log.loop_error)

        def stop() -> None:
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)  # the next one ends the process
            stopped.set()

        async with server as relay:
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(name, stop)
            if as_json:
                ready = {"event": "ready", "relay": relay.base_url}
                emit_line(ready | ({"pin": relay.pin} if relay.pin else {}))
            else:
                notice(f"the relay is ready at {relay.base_url}")
                if relay.pin:
                    notice(f"its key, as devices pin it: {relay.pin}")
                if not any(t.status(time.time()) == "active" for t in relay.store.tokens()):
                    notice("a host needs a token: codexctl relay token create --name NAME")
            await stopped.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
