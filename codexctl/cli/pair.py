"""`codexctl pair`: pair this device with a host, or show an offer on the host."""

from __future__ import annotations

import sys

import click

from codexctl.cli.output import emit, emit_line, json_option, notice, progress
from codexctl.errors import UsageError
from codexctl.paths import Home

POLL_S = 0.5


@click.command()
@click.argument("offer", required=False, metavar="URL_OR_CODE")
@click.option("--relay", metavar="URL", help="The relay, for a typed code.")
@click.option("--name", help="What to call the host here; its own name if absent.")
@click.option("--device-name", help="What the host calls this device; user@machine if absent.")
@click.option("--show", is_flag=True, help="On the host: show a QR code, a URL and a typed code.")
@click.option("--invert", is_flag=True, help="With --show: a QR code for a light theme.")
@click.option("--png", metavar="FILE", help="With --show: write the QR code to an image as well.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["view", "exec", "approve"]),
    help="With --show: what the device may do; repeatable, all of them if absent.",
)
@click.option("--wait/--no-wait", default=None, help="With --show: stay until it is used.")
@json_option
def pair(
    offer: str | None,
    relay: str | None,
    name: str | None,
    device_name: str | None,
    show: bool,
    invert: bool,
    png: str | None,
    scopes: tuple[str, ...],
    wait: bool | None,
    as_json: bool,
) -> int:
    """Pair this device with a host by the URL or the code that the host shows.

    \b
        on the host:    codexctl pair --show        (codexctl up shows one as well)
        here:           codexctl pair 'https://relay.example/pair#…'
                        codexctl pair 7-acorn-bamboo-comet --relay https://relay.example

    An offer works once and for five minutes; a wrong code uses it up. From then on the host's key
    is pinned here and this device's key there: the relay can neither read nor impersonate.
    """
    if show == (offer is not None):
        raise UsageError(
            "give the URL or code of an offer, or --show to make one",
            hint="on the host: codexctl pair --show; here: codexctl pair URL",
        )
    if show:
        return _show(scopes, invert=invert, png=png, wait=wait, as_json=as_json)
    assert offer is not None
    return _pair(offer, relay, name, device_name, as_json=as_json)


def _pair(
    offer: str, relay: str | None, name: str | None, device_name: str | None, *, as_json: bool
) -> int:
    from codexctl.client.pairing import check_pairable, pair_by_code, pair_by_url
    from codexctl.client.store import HostStore
    from codexctl.state.identity import load_identity

    home = Home.from_env().ensure()
    store = HostStore(home)
    if name is not None:
        check_pairable(name)
    called = device_name or default_device_name()
    if "://" in offer or "#" in offer:
        from codexctl.wire.pairing_url import parse_url

        parsed = parse_url(offer)
        with progress("pairing"):
            record = pair_by_url(store, load_identity(home), parsed, name=name, device_name=called)
    else:
        from codexctl.wire.pairing_code import parse_code

        code = parse_code(offer)
        where = relay or _known_relay(store)
        with progress("pairing"):
            record = pair_by_code(
                store,
                load_identity(home),
                code,
                where.rstrip("/"),
                pin=next((known.pin for known in store.all() if known.relay == where), None),
                name=name,
                device_name=called,
            )
    result = {
        "name": record.name,
        "host": record.own_name,
        "relay": record.relay,
        "scopes": list(record.scopes),
        "device": record.device_id,
    }
    emit(result, as_json, text=f"paired with {record.name}")
    if not as_json:
        notice(f"try: codexctl exec {record.name} -- uname -a")
    return 0


def _known_relay(store: object) -> str:
    from codexctl.client.store import HostStore

    assert isinstance(store, HostStore)
    relays = sorted({record.relay for record in store.all()})
    if len(relays) == 1:
        return relays[0]
    raise UsageError(
        "a typed code needs the relay's address",
        hint="add --relay URL, as it stands beside the code on the host",
    )


def default_device_name() -> str:
    """user@machine, as the host will list this device."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "device"
    return f"{user}@{socket.gethostname().partition('.')[0]}"


def _show(
    scopes: tuple[str, ...], *, invert: bool, png: str | None, wait: bool | None, as_json: bool
) -> int:
    from codexctl.host.control import ask

    home = Home.from_env()
    offer = ask(home, "pairing.create", {"scopes": list(scopes)} if scopes else {})
    if png:
        from codexctl.cli.qr import write_png

        write_png(offer["url"], png)
    stay = sys.stdout.isatty() if wait is None else wait
    if as_json:
        emit_line({"event": "pairing", **offer})
        stay = bool(wait)
    else:
        show_offer(offer, invert=invert)
    return _wait(home, offer["id"], as_json=as_json) if stay else 0


def show_offer(offer: dict[str, object], *, invert: bool = False) -> None:
    """The offer on stdout: QR code, URL, code, and how long it lives."""
    from codexctl.cli.qr import show_qr

    url, code = str(offer["url"]), str(offer["code"])
    show_qr(url, sys.stdout, invert=invert)
    relay = url.partition("/pair#")[0]
    sys.stdout.write(
        f"\nScan it, or on the other machine run:\n\n  codexctl pair '{url}'\n\n"
        f"or type it:\n\n  codexctl pair {code} --relay {relay}\n\n"
        f"It works once, within {_minutes(offer['expires_in_s'])}.\n"
    )
    sys.stdout.flush()


def _minutes(seconds: object) -> str:
    assert isinstance(seconds, int)
    return f"{seconds // 60} minutes" if seconds >= 120 else f"{seconds} seconds"


def _wait(home: Home, offer_id: str, *, as_json: bool) -> int:
    import time

    from codexctl.host.control import ask

    while True:
        answer = ask(home, "pairing.live", {"id": offer_id})
        if not answer["live"]:
            break
        time.sleep(POLL_S)  # the control socket answers and tells nothing by itself
    device = answer.get("device")
    if as_json:
        event = {"event": "paired", "device": device} if device else {"event": "pairing-ended"}
        emit_line({**event, "id": offer_id})
    else:
        notice(f"paired with {device}" if device else "the offer has ended without being used")
    return 0 if device else 1
