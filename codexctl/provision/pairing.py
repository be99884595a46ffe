"""Make a workspace a host of this device: a relay token of its own, the host as a service, pairing.

The token belongs to an owner named after the workspace, so that it registers this one host and
sees no other; it ends with the workspace. Everything travels over the pinned ssh connection, so no
URL is typed and no code is guessed.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from shlex import quote
from typing import NamedTuple

from codexctl.errors import CodexctlError
from codexctl.paths import ENV_RELAY_TOKEN as ENV_TOKEN
from codexctl.paths import Home
from codexctl.provision.install import AS_ROOT, FOLDER
from codexctl.provision.journal import Workspace
from codexctl.provision.readiness import NotReady, Teller
from codexctl.provision.remote import Link
from codexctl.secret import Secret

LONGEST_TOKEN_S = 365 * 86400
OFFER_TIMEOUT_S = 30.0
OFFER_EVERY_S = 0.3
CODEXCTL = '"$HOME/.local/share/codexctl/venv/bin/codexctl"'

KEEP_ON_MACHINE = """
set -eu
umask 077
mkdir -p "$CODEXCTL_HOME"
cat >"$CODEXCTL_HOME/relay.token"
"""
SERVE = (
    AS_ROOT
    + f"""
set -eu
mkdir -p "$HOME/workspace"
set -- --relay "$RELAY" --token-file "$CODEXCTL_HOME/relay.token" --name "$NAME" \\
  --workspace "$HOME/workspace"
[ -z "$PIN" ] || set -- "$@" --relay-pin "$PIN"
if [ -d /run/systemd/system ]; then
  as_root loginctl enable-linger "$(id -un)" 2>/dev/null || true
  XDG_RUNTIME_DIR="${{XDG_RUNTIME_DIR:-/run/user/$(id -u)}}"
  export XDG_RUNTIME_DIR
  case "$({CODEXCTL} host install --json "$@")" in *'"started": true'*) exit 0 ;; esac
fi
# Without a service manager it runs until the machine stops.
nohup {CODEXCTL} host serve "$@" </dev/null >"$CODEXCTL_HOME/host.log" 2>&1 &
echo $! >"$CODEXCTL_HOME/host.pid"
"""
)
OFFER = f"{CODEXCTL} pair --show --json --no-wait"


class RelayChoice(NamedTuple):
    """Which relay, and a token that registers this workspace there."""

    url: str
    pin: str
    token: Secret


def choose_relay(home: Home, workspace: Workspace) -> RelayChoice | str:
    """The relay to pair through, or one clause on why there is none.

    The token is CODEXCTL_RELAY_TOKEN, else one made for this workspace alone when the relay is run
    from this home.
    """
    url = workspace.settings.relay.rstrip("/")
    if not url:
        return "no --relay was named; it is reached over ssh"
    pin = _known_pin(home, url)
    given = os.environ.get(ENV_TOKEN, "").strip()
    if given:
        return RelayChoice(url, pin, Secret(given))
    if not os.path.exists(home.relay_db):
        return f"no token for {url}: set {ENV_TOKEN}"
    from codexctl.relay.store import Store

    left = LONGEST_TOKEN_S
    if workspace.expires_at is not None:
        left = max(60, min(left, workspace.expires_at - int(time.time())))
    store = Store.open(home)
    try:
        _revoke_tokens(store, workspace)
        token, _ = store.create_token(
            name=f"workspace-{workspace.name}", expires_in_s=left, owner=_owner(workspace)
        )
    finally:
        store.close()
    return RelayChoice(url, pin, token)


def pair(home: Home, link: Link, workspace: Workspace, tell: Teller, *, adopted: bool) -> None:
    """Serve the workspace as a host and pair this device with it; NotReady says what was seen.

    An adopted machine's host keeps its state beside what codexctl installed, to go with it.
    """
    if workspace.settings.bare or not workspace.settings.pair:
        tell("paired", "skipped", "as asked")
        return
    choice = choose_relay(home, workspace)
    if isinstance(choice, str):
        tell("paired", "skipped", choice)
        return
    tell("paired", "waiting", choice.url)
    folder = f"{FOLDER}/home" if adopted else "$HOME/.codexctl"
    where = f'export CODEXCTL_HOME="{folder}"\n'
    try:
        link.check(
            where + KEEP_ON_MACHINE, what="sending the token", data=choice.token.reveal().encode()
        )
        values = {"RELAY": choice.url, "NAME": workspace.name, "PIN": choice.pin}
        lead = "".join(f"{name}={quote(value)}\n" for name, value in values.items())
        link.check(where + lead + SERVE, what="starting the host")
        _pair_here(home, _offer(link, where), workspace)
    except CodexctlError as error:
        tell("paired", "failed", error.message)
        raise NotReady("paired", error.message, workspace.name) from error
    tell("paired", "ok", f"as {workspace.name} through {choice.url}")


def _offer(link: Link, where: str) -> str:
    """The pairing URL that the host offers once it is registered."""
    end = time.monotonic() + OFFER_TIMEOUT_S
    while True:
        result = link.run(where + OFFER)
        if result.status == 0:
            try:
                return str(json.loads(result.text.splitlines()[0])["url"])
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise CodexctlError("the host's pairing offer does not parse") from error
        if time.monotonic() > end:
            raise CodexctlError(f"the host offers no pairing: {result.reason}")
        time.sleep(OFFER_EVERY_S)


def _pair_here(home: Home, url: str, workspace: Workspace) -> None:
    from codexctl.client.pairing import pair_by_url
    from codexctl.client.store import HostStore
    from codexctl.state.identity import load_identity
    from codexctl.wire.pairing_url import parse_url

    pair_by_url(
        HostStore(home),
        load_identity(home),
        parse_url(url),
        name=workspace.name,
        device_name=f"{getpass.getuser()}@{socket.gethostname().partition('.')[0]}",
    )


def unpair(home: Home, workspace: Workspace) -> None:
    """Forget the host here and end its token where the relay is run from this home."""
    url = workspace.settings.relay.rstrip("/")
    if not url or not workspace.settings.pair:
        return
    if os.path.exists(home.device_db):
        from codexctl.client.store import HostStore

        store = HostStore(home)
        known = store.named(workspace.name)
        if known is not None and known.relay == url and known.own_name == workspace.name:
            store.remove(workspace.name)
    if os.path.exists(home.relay_db):
        from codexctl.relay.store import Store

        relay = Store.open(home)
        try:
            _revoke_tokens(relay, workspace)
        finally:
            relay.close()


def _revoke_tokens(store: object, workspace: Workspace) -> None:
    from codexctl.relay.store import Store

    assert isinstance(store, Store)
    now = time.time()
    for token in store.tokens(_owner(workspace)):
        if token.status(now) == "active":
            store.revoke(token.id)


def _owner(workspace: Workspace) -> str:
    return f"workspace-{workspace.id}"


def _known_pin(home: Home, url: str) -> str:
    """The pin of a self-signed relay that this device is paired through already; else ""."""
    import base64

    from codexctl.client.store import HostStore

    for record in HostStore(home).all():
        if record.relay == url and record.pin is not None:
            return base64.urlsafe_b64encode(record.pin).rstrip(b"=").decode()
    return ""
