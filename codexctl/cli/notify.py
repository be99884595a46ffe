"""`codexctl notify`: on a host, who is told when a thread waits for a person or has finished."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import click

from codexctl.cli.lazy import LazyGroup
from codexctl.cli.output import emit, json_option, notice
from codexctl.errors import UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.secret import Secret

MAX_SECRET_BYTES = 4096


@click.group(cls=LazyGroup)
def notify() -> None:
    """Be told when a thread on this host waits for a person, has finished or has failed.

    Run it on the host: only its owner decides what leaves it, and a command runs as the owner.
    Nothing else is ever sent, each only once, and not to a device that is watching the thread.

    \b
        codexctl notify add ntfy https://ntfy.sh/my-secret-topic
        codexctl notify add webhook https://example.org/hook --secret-file ~/hook.secret
        codexctl notify add command "~/bin/tell-me"
        codexctl notify test ntfy
    """


@notify.group(cls=LazyGroup)
def add() -> None:
    """Add a target: ntfy, webhook, command or desktop."""


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        click.option("--always", is_flag=True, help="Also while a device watches the thread."),
        click.option(
            "--device", metavar="NAME",
            help="Whose it is: told unless this paired device watches. Without it: any device.",
        ),
        click.option("--name", help="What it is called; its kind without it."),
    ):  # fmt: skip
        function = option(function)
    return function


@add.command()
@click.argument("url")
@click.option("--token-file", metavar="FILE", help="File with the topic's access token.")
@_options
def ntfy(url: str, token_file: str | None, **more: Any) -> None:
    """Publish to a topic of an ntfy server (https://ntfy.sh/TOPIC, or your own).

    Who knows the topic's name can read it, unless the server wants a token.

    \b
        codexctl notify add ntfy https://ntfy.sh/my-secret-topic --device phone
    """
    _add("ntfy", url, _secret(token_file, "the token file"), **more)


@add.command()
@click.argument("url")
@click.option("--secret-file", metavar="FILE", help="File with a secret to sign with.")
@_options
def webhook(url: str, secret_file: str | None, **more: Any) -> None:
    """POST a JSON object: id, kind, thread, title, body, link, host.

    kind is waiting, finished or failed. With a secret the header X-Codexctl-Signature is `sha256=`
    and the HMAC-SHA256 of the body.

    \b
        codexctl notify add webhook https://example.org/hook --secret-file ~/hook.secret
    """
    _add("webhook", url, _secret(secret_file, "the secret file"), **more)


@add.command()
@click.argument("command_line", metavar="COMMAND")
@_options
def command(command_line: str, **more: Any) -> None:
    """Run COMMAND as you, outside the sandbox, with that JSON object on its stdin.

    It is split into words as a shell does, and nothing else of a shell; it is ended after 30 s.

    \b
        codexctl notify add command "$HOME/bin/tell-me --loud"
    """
    _add("command", command_line, None, **more)


@add.command()
@_options
def desktop(**more: Any) -> None:
    """Show it on this machine's desktop: notify-send, or osascript on macOS.

    \b
        codexctl notify add desktop
    """
    _add("desktop", "", None, **more)


def _add(
    kind: str,
    address: str,
    secret: Secret | None,
    *,
    name: str | None,
    device: str | None,
    always: bool,
    as_json: bool,
) -> None:
    from codexctl.agent.notify_targets import TargetRecord, add_target, open_targets

    home = Home.from_env()
    device_id = _device_id(home, device) if device else None
    target = TargetRecord(name or kind, kind, address, secret, device_id, always, int(time.time()))
    db = open_targets(home)
    add_target(db, target)
    _reload(home)
    emit(_row(target, as_json), as_json, text=f"added {target.name}")
    notice(f"see that it works: codexctl notify test {target.name}")


def _secret(path: str | None, what: str) -> Secret | None:
    from codexctl.secret import Secret
    from codexctl.state.files import read_private

    if path is None:
        return None
    try:
        text = read_private(path, what=what, limit=MAX_SECRET_BYTES).decode().strip()
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text") from None
    if not text or not text.isprintable():
        raise UsageError(f"{path} holds no single line of text")
    return Secret(text)


def _device_id(home: Home, name: str) -> str:
    from codexctl.host.store import list_devices, open_store

    devices = list_devices(open_store(home)) if os.path.exists(home.host_db) else []
    found = [device for device in devices if name in (device.name, device.id)]
    if not found:
        raise UsageError(f"no paired device is called {name}", hint="see: codexctl devices")
    return found[0].id


def _reload(home: Home) -> None:
    """Have the running host read the targets again; where none runs, it will when it starts."""
    from codexctl.host.control import NoDaemon, ask

    try:
        ask(home, "notify.reload")
    except NoDaemon as error:
        notice(f"{error}; it counts from when one does")


def _row(target: Any, as_json: bool) -> dict[str, Any]:
    record = {**target._asdict(), "secret": target.secret is not None}
    if as_json:
        return record
    state = "not used yet"
    if target.sent_at:
        state = f"told {time.strftime('%Y-%m-%d %H:%M', time.localtime(target.sent_at))}"
    if target.error:
        state = f"fails: {target.error}"
    return {**record, "state": state}


@notify.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the targets of this host, and whether the last notice reached each.

    \b
        codexctl notify list
    """
    from codexctl.agent.notify_targets import all_targets, open_targets

    rows = [_row(target, as_json) for target in all_targets(open_targets(Home.from_env()))]
    emit(
        rows,
        as_json,
        table=("name", "kind", "address", "device", "always", "state"),
        empty="nobody is told: codexctl notify add --help",
    )


@notify.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove the target NAME.

    \b
        codexctl notify remove ntfy
    """
    from codexctl.agent.notify_targets import open_targets, remove_target

    home = Home.from_env()
    remove_target(open_targets(home), name)
    _reload(home)
    emit({"name": name, "removed": True}, as_json, text=f"removed {name}")


@notify.command()
@click.argument("name")
@json_option
def test(name: str, as_json: bool) -> None:
    """Send a notice to the target NAME now, and say how that went.

    \b
        codexctl notify test ntfy
    """
    import socket

    from codexctl.agent.notify import Notice
    from codexctl.agent.notify_send import send
    from codexctl.agent.notify_targets import find_target, open_targets

    host = socket.gethostname()
    target = find_target(open_targets(Home.from_env()), name)
    send(
        target, Notice("test", "finished", "", f"{host}: a test of codexctl", "It works.", ""), host
    )
    emit({"name": name, "sent": True}, as_json, text=f"sent to {name}")
