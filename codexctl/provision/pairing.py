"""Make a workspace a host of this device: enrolled at a relay, served as a service, paired.

What is sent to the machine is a single-use token of the relay's, which the host's first start
exchanges for one of its own (codexctl/relay/enrolments.py); nobody's own token leaves this device.
It is made with an owner's token of that relay, or in relay.db where this home runs the relay.
Everything travels over the pinned ssh connection, so no URL is typed and no code is guessed.
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import socket
import time
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from codexctl.client.registry import Relay, TokenRefused, call
from codexctl.errors import CodexctlError, ConnectionFailed, StateError
from codexctl.paths import ENV_RELAY_TOKEN as ENV_TOKEN
from codexctl.paths import Home
from codexctl.provision.install import AS_ROOT, FOLDER
from codexctl.provision.journal import Workspace
from codexctl.provision.readiness import NotReady, Teller
from codexctl.provision.remote import Link
from codexctl.relay import enrolments
from codexctl.secret import Secret
from codexctl.state.files import read_private

if TYPE_CHECKING:
    from codexctl.relay.store import Store

ENV_RELAY = "CODEXCTL_RELAY"
ENROLMENT_TTL_S = 900
HOST_TOKEN_TTL_S = 365 * 86400
"""The machine's own token; it is for that machine alone, and revoked with the workspace."""
KEPT_TOKEN = "relay.token"  # noqa: S105 - where `host install` keeps an owner's
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
    """Which relay, and the single-use token that lets this workspace in there."""

    url: str
    pin: str
    token: Secret


def default_relay(home: Home) -> str:
    """The relay for a workspace whose maker named none; "" where there is none, or no one.

    CODEXCTL_RELAY, else that of the hosts this device is paired with. One on this machine's own
    loopback is out of a cloud machine's reach. Without a token for it, it is of no use.
    """
    named = os.environ.get(ENV_RELAY, "").strip().rstrip("/")
    if named:
        return named
    if not os.path.exists(home.device_db) or not (_owner_tokens(home) or _runs_a_relay(home)):
        return ""
    from codexctl.client.store import HostStore

    known = {record.relay for record in HostStore(home).all() if not _is_loopback(record.relay)}
    return known.pop() if len(known) == 1 else ""


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def choose_relay(home: Home, workspace: Workspace) -> RelayChoice | str:
    """The relay to pair through, or one clause on why there is none."""
    url = workspace.settings.relay.rstrip("/")
    if not url:
        return "no --relay was named and none is known; it is reached over ssh"
    pin = _known_pin(home, url)
    refused: CodexctlError | None = None
    for relay in _as_owner(home, url, pin):
        try:
            body = {
                "name": token_name(workspace),
                "expires_in_s": ENROLMENT_TTL_S,
                "host_expires_in_s": HOST_TOKEN_TTL_S,
            }
            made = call(relay, "POST", "/v1/enrolments", body)
            return RelayChoice(url, pin, Secret(str(made["token"])))
        except TokenRefused as error:
            refused = error
    if not _runs_a_relay(home):
        if refused is not None:
            return f"{url} does not take this device's token: {refused.message}"
        return f"no token for {url}: set {ENV_TOKEN}"
    store = _open_store(home)
    try:
        token, _ = enrolments.create(
            store,
            name=token_name(workspace),
            expires_in_s=ENROLMENT_TTL_S,
            host_expires_in_s=HOST_TOKEN_TTL_S,
            now=time.time(),
        )
    finally:
        store.close()
    try:
        call(_relay(url, pin, token), "GET", "/v1/environments")
    except TokenRefused:
        return f"{url} is not the relay that runs from this home: set {ENV_TOKEN} to a token of it"
    except ConnectionFailed:
        pass  # only the machine needs to reach it under this address
    return RelayChoice(url, pin, token)


def token_name(workspace: Workspace) -> str:
    """What the workspace's tokens are called at its relay."""
    return f"workspace-{workspace.name}-{workspace.id[:8]}"


def _owner_tokens(home: Home) -> list[Secret]:
    """The owner's tokens that this device has: the variable's, and what `host install` kept."""
    given = os.environ.get(ENV_TOKEN, "").strip()
    if given:
        return [Secret(given)]
    try:
        kept = read_private(home.join(KEPT_TOKEN), what="the relay's token").decode().strip()
    except (OSError, StateError, UnicodeDecodeError):
        return []
    return [Secret(kept)] if kept else []


def _as_owner(home: Home, url: str, pin: str) -> list[Relay]:
    return [_relay(url, pin, token) for token in _owner_tokens(home)]


def _relay(url: str, pin: str, token: Secret) -> Relay:
    return Relay(url, base64.urlsafe_b64decode(f"{pin}=") if pin else None, token)


def _runs_a_relay(home: Home) -> bool:
    return os.path.exists(home.relay_db)


def _open_store(home: Home) -> Store:
    from codexctl.relay.store import Store

    return Store.open(home)


def pair(home: Home, link: Link, workspace: Workspace, tell: Teller, *, adopted: bool) -> None:
    """Serve the workspace as a host and pair this device with it; NotReady says what was seen.

    An adopted machine's host keeps its state beside what codexctl installed, to go with it.
    """
    if workspace.settings.bare or not workspace.settings.pair:
        tell("paired", "skipped", "as asked")
        return
    folder = f"{FOLDER}/home" if adopted else "$HOME/.codexctl"
    where = f'export CODEXCTL_HOME="{folder}"\n'
    try:
        # The host may run since an earlier try, which was interrupted after its start.
        if not workspace.settings.relay or link.run(where + OFFER).status != 0:
            choice = choose_relay(home, workspace)
            if isinstance(choice, str):
                tell("paired", "skipped", choice)
                return
            tell("paired", "waiting", choice.url)
            _serve(link, where, choice, workspace)
        _pair_here(home, _offer(link, where), workspace)
    except ConnectionFailed:
        raise  # the machine or the relay was not reached: made again
    except CodexctlError as error:
        tell("paired", "failed", error.message)
        raise NotReady("paired", error.message, workspace.name) from error
    tell("paired", "ok", f"as {workspace.name} through {workspace.settings.relay}")


def _serve(link: Link, where: str, choice: RelayChoice, workspace: Workspace) -> None:
    token = choice.token.reveal().encode()
    link.check(where + KEEP_ON_MACHINE, what="sending the token", data=token)
    values = {"RELAY": choice.url, "NAME": workspace.name, "PIN": choice.pin}
    lead = "".join(f"{name}={quote(value)}\n" for name, value in values.items())
    link.check(where + lead + SERVE, what="starting the host")


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


def unpair(home: Home, workspace: Workspace) -> str:
    """Forget the host here and end its tokens at the relay; one clause where that failed."""
    url = workspace.settings.relay.rstrip("/")
    if not url or not workspace.settings.pair:
        return ""
    pin = _known_pin(home, url)
    if os.path.exists(home.device_db):
        from codexctl.client.store import HostStore

        store = HostStore(home)
        known = store.named(workspace.name)
        if known is not None and known.relay == url and known.own_name == workspace.name:
            store.remove(workspace.name)
    try:
        _end_tokens(home, url, pin, workspace)
    except CodexctlError as error:
        return f"its tokens at {url} were not ended: {error.message}"
    return ""


def _end_tokens(home: Home, url: str, pin: str, workspace: Workspace) -> None:
    """End the host's token, and those of the devices that were paired with it."""
    name = token_name(workspace)
    if _runs_a_relay(home):
        store = _open_store(home)
        try:
            now = time.time()
            for hosts in enrolments.host_tokens(store, name, now):
                for token in store.tokens(hosts.owner):
                    if token.environment_id == hosts.environment_id and token.active(now):
                        store.revoke(token.id)
        finally:
            store.close()
    for relay in _as_owner(home, url, pin):
        listed = call(relay, "GET", "/v1/tokens")["tokens"]
        mine = {t["environment_id"] for t in listed if (t["kind"], t["name"]) == ("host", name)}
        for token in listed:
            if token["environment_id"] in mine and token["status"] == "active":
                call(relay, "DELETE", f"/v1/tokens/{token['id']}")


def _known_pin(home: Home, url: str) -> str:
    """The pin of a self-signed relay that this device is paired through already; else ""."""
    if not os.path.exists(home.device_db):
        return ""
    from codexctl.client.store import HostStore

    for record in HostStore(home).all():
        if record.relay == url and record.pin is not None:
            return base64.urlsafe_b64encode(record.pin).rstrip(b"=").decode()
    return ""
