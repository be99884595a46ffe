"""`codexctl hosts add`: give an official executor on a relay a name here."""

from __future__ import annotations

from typing import Any

import click

from codexctl.cli.output import emit, json_option, notice
from codexctl.paths import ENV_RELAY_TOKEN, Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.registry import Relay


@click.command()
@click.argument("name")
@click.option("--relay", "url", required=True, metavar="URL", help="The relay's address.")
@click.option(
    "--token-file", metavar="FILE", help=f"File with a token of the relay; else {ENV_RELAY_TOKEN}."
)
@click.option("--environment", metavar="ID", help="The executor's --environment-id; else NAME.")
@click.option(
    "--relay-pin", metavar="PIN", help="Hash of a self-signed relay's key, as it prints it."
)
@json_option
def add(
    name: str,
    url: str,
    token_file: str | None,
    environment: str | None,
    relay_pin: str | None,
    as_json: bool,
) -> None:
    """Call the official executor that runs as ID on a relay NAME here; exec, shell and cp work.

    \b
        # on the relay
        codexctl relay token create --name box >box.token
        # on the machine that is to run commands
        CODEX_API_KEY=$(cat box.token) codex exec-server --remote URL --environment-id box
        # here
        codexctl hosts add box --relay URL --token-file box.token
        codexctl exec box -- uname -a

    A token that can reach this one executor and nothing else is better on a laptop: codexctl relay
    token create --name laptop --environment box.

    The executor makes a new key at each start and the relay vouches for it: unlike a paired host's,
    it is not pinned here.
    """
    import time

    from codexctl.cli.host_run import parse_pin
    from codexctl.cli.host_serve import read_token
    from codexctl.client.pairing import check_pairable
    from codexctl.client.registry import Relay
    from codexctl.client.store import OFFICIAL, HostRecord, HostStore
    from codexctl.noise.suites import HYBRID
    from codexctl.relay.calls import is_environment_id

    check_pairable(name)
    environment_id = environment or name
    if not is_environment_id(environment_id):
        from codexctl.errors import UsageError

        raise UsageError(
            f"{environment_id!r} cannot be an environment id",
            hint="it is 1 to 256 of A-Z a-z 0-9 - _; name it by --environment ID",
        )
    relay = Relay(url.rstrip("/"), parse_pin(relay_pin), read_token(token_file))
    online = _found(relay, environment_id)
    assert relay.token is not None
    HostStore(Home.from_env()).add(
        HostRecord(
            name=name,
            environment_id=environment_id,
            own_name=environment_id,
            host_key=b"",
            suite=HYBRID,
            relay=relay.url,
            pin=relay.pin,
            token=relay.token,
            token_expires_at=0,
            device_id="",
            scopes=(),
            paired_at=int(time.time()),
            kind=OFFICIAL,
        )
    )
    emit(
        {"name": name, "id": environment_id, "relay": relay.url, "online": online},
        as_json,
        text=f"{name} is added; try: codexctl exec {name} -- uname -a",
    )
    if not online and not as_json:
        notice("it is not connected to its relay now")


def _found(relay: Relay, environment_id: str) -> bool:
    """Whether the executor is online. CodexctlError where the relay has no such executor."""
    from codexctl.client.registry import HostOffline, TokenRefused, call
    from codexctl.errors import UsageError
    from codexctl.noise.suites import HYBRID_PROFILE

    try:
        listed: Any = call(relay, "GET", "/v1/environments").get("environments")
    except TokenRefused as error:
        raise TokenRefused(
            str(error), hint="make one on the relay: codexctl relay token create --name NAME"
        ) from error
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    for row in rows:
        if row.get("environment_id") == environment_id:
            if row.get("security_profile") == HYBRID_PROFILE:
                return bool(row.get("online"))
            raise UsageError(
                f"{environment_id} is a codexctl host", hint="pair with it: codexctl pair URL"
            )
    official = [
        str(r["environment_id"]) for r in rows if r.get("security_profile") == HYBRID_PROFILE
    ]
    raise HostOffline(
        f"this token reaches no executor {environment_id} on {relay.url}",
        hint=f"it reaches {', '.join(official[:5])}: --environment ID"
        if official
        else f"start one: codex exec-server --remote {relay.url} --environment-id {environment_id}",
    )
