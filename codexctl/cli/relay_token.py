"""`codexctl relay token`: bearer tokens of the relay that runs from this home."""

from __future__ import annotations

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import confirm, emit, json_option, notice, yes_option


@click.group(cls=LazyGroup)
def token() -> None:
    """Create, list and revoke bearer tokens of the relay of this CODEXCTL_HOME."""


@token.command()
@click.option("--name", required=True, help="What the token is for; shown in lists.")
@click.option("--expires", metavar="TIME", help="Such as 8h, 1d; 30d, or 1h with --single-use.")
@click.option(
    "--owner",
    default="default",
    show_default=True,
    help="Whose hosts it registers; owners do not see each other.",
)
@click.option(
    "--environment",
    metavar="ID",
    default="",
    help="Make a device's token, which can connect to this one host and nothing else.",
)
@click.option(
    "--single-use",
    is_flag=True,
    help="For one new host, which exchanges it at its first start for a token of its own.",
)
@click.option(
    "--host-expires",
    metavar="TIME",
    default="365d",
    show_default=True,
    help="With --single-use: how long the host's own token lives.",
)
@json_option
def create(
    name: str,
    expires: str | None,
    owner: str,
    environment: str,
    single_use: bool,
    host_expires: str,
    as_json: bool,
) -> None:
    """Create a token with which hosts register. It is shown once.

    \b
        codexctl relay token create --name fleet
        codexctl relay token create --name build-7 --single-use

    Whoever has the first can register any host. The second lets one new host in and is worthless
    afterwards; that host's own token serves that host and no other. Devices get theirs when they
    are paired; --environment makes one by hand, as for an official codex agent.
    """
    import time

    from codexctl.durations import format_duration
    from codexctl.errors import UsageError
    from codexctl.paths import Home
    from codexctl.relay import enrolments
    from codexctl.relay.calls import is_environment_id
    from codexctl.relay.limits import Limits
    from codexctl.relay.schema import Enrolment, Token
    from codexctl.relay.store import Store

    if environment and (single_use or not is_environment_id(environment)):
        raise UsageError(
            "a single-use token is for a host that is not there yet"
            if single_use
            else f"{environment!r} cannot be an environment id",
            hint="leave --environment out; else it is 1 to 256 of A-Z a-z 0-9 - _",
        )
    limits = Limits()
    longest = limits.enrolment_max_s if single_use else limits.token_max_s
    seconds = _lifetime(expires or ("1h" if single_use else "30d"), longest)
    made: Token | Enrolment
    store = Store.open(Home.from_env())
    try:
        if single_use:
            secret, made = enrolments.create(
                store,
                name=name,
                expires_in_s=seconds,
                host_expires_in_s=_lifetime(host_expires, limits.token_max_s),
                owner=owner,
                now=time.time(),
            )
        else:
            secret, made = store.create_token(
                name=name, expires_in_s=seconds, owner=owner, environment_id=environment
            )
    finally:
        store.close()
    emit(
        {"token": secret.reveal(), "id": made.id, "expires_at": made.expires_at},
        as_json,
        text=secret.reveal(),
    )
    if not as_json:
        notice(f"{made.id} expires in {format_duration(seconds)}; it is not shown again")


def _lifetime(text: str, longest: int) -> int:
    from codexctl.durations import format_duration, parse_duration
    from codexctl.errors import UsageError

    seconds = parse_duration(text)
    if seconds > longest:
        raise UsageError(
            f"this token lives at most {format_duration(longest)}",
            hint=f"give {format_duration(longest)} or less",
        )
    return seconds


@token.command("list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List tokens: active ones, and those that ended in the last 30 days."""
    import time

    from codexctl.durations import format_duration
    from codexctl.paths import Home
    from codexctl.relay.registry import token_record
    from codexctl.relay.store import Store

    now = time.time()
    store = Store.open(Home.from_env())
    try:
        records = [token_record(one, now) for one in store.tokens()]
    finally:
        store.close()
    if not as_json:
        for record in records:
            left = record["expires_at"] - now
            active = record["status"] == "active"
            record["expires"] = f"in {format_duration(left)}" if active else ""
    emit(
        records,
        as_json,
        table=("id", "name", "owner", "kind", "environment_id", "status", "expires"),
        empty="there are no tokens; make one with: codexctl relay token create --name NAME",
    )


@token.command()
@click.argument("id_or_name")
@yes_option
@json_option
def revoke(id_or_name: str, yes: bool, as_json: bool) -> None:
    """Revoke the token of this id or name; its connections are cut within a second."""
    import time

    from codexctl.paths import Home
    from codexctl.relay.store import Store

    store = Store.open(Home.from_env())
    try:
        found = store.find_tokens(id_or_name, time.time())
        if len(found) > 1:
            confirm(f"{id_or_name!r} is the name of {len(found)} tokens; revoke all?", yes=yes)
        for one in found:
            store.revoke(one.id)
    finally:
        store.close()
    if as_json:
        emit({"revoked": [one.id for one in found]}, as_json)
    else:
        notice(f"revoked {', '.join(one.id for one in found)}")
