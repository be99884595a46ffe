"""What `up` and `host serve` share: options, events, the loop, signals."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import click

from codexctl.cli.output import emit_line, notice
from codexctl.errors import UsageError

Tell = Callable[[dict[str, Any]], None]
FALLBACK_WORKSPACE = "codexctl-workspace"

name_option = click.option("--name", help="The host's name; this machine's if absent.")
workspace_option = click.option(
    "--workspace",
    metavar="DIR",
    help="The folder that commands may write to; the current one if absent "
    "(~/codexctl-workspace when that is your home folder or above it).",
)


def host_name(name: str | None) -> str:
    """The chosen name, or the machine's. UsageError where it could not be typed."""
    import socket

    from codexctl.client.pairing import check_pairable

    chosen = name or socket.gethostname().partition(".")[0] or "host"
    check_pairable(chosen)
    return chosen


def parse_pin(text: str | None) -> bytes | None:
    """A self-signed relay's pin as it prints it, 32 bytes; UsageError for anything else."""
    import base64

    if text is None:
        return None
    try:
        pin = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        pin = b""
    if len(pin) != 32:
        raise UsageError(f"not a relay's pin: {text[:80]!r}", hint="copy it from the relay's start")
    return pin


def workspace_path(folder: str | None) -> str:
    """The absolute path of the workspace, made where it is the fallback."""
    home = os.path.realpath(os.path.expanduser("~"))
    if folder is not None:
        path = os.path.realpath(folder)
        if not os.path.isdir(path):
            raise UsageError(
                f"the workspace {folder} is not a folder", hint="make it, or name another"
            )
        return path
    path = os.path.realpath(os.getcwd())
    if path == home or home.startswith(path.rstrip("/") + "/"):
        # Commands may write to all of the workspace: not to all of a home by accident.
        path = os.path.join(home, FALLBACK_WORKSPACE)
        os.makedirs(path, exist_ok=True)
    return path


def teller(*, as_json: bool) -> Tell:
    """Events of a running host: JSON lines on stdout, or sentences on stderr."""
    if as_json:
        return emit_line

    def tell(event: dict[str, Any]) -> None:
        sentences = {
            "paired": f"paired with {event.get('device')}; it can run commands here now",
            "pairing-expired": "the pairing offer has expired; for another: codexctl pair --show",
            "pairing-burnt": f"a pairing offer was given up ({event.get('reason')}); "
            "for another: codexctl pair --show",
        }
        sentence = sentences.get(str(event.get("event")))
        if sentence:
            notice(sentence)

    return tell


def log_to_stderr(*, as_json: bool) -> None:
    """Warnings of a daemon as lines on stderr; none of them holds a secret."""
    import logging

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record)
            if not as_json:
                return f"codexctl: {text}"
            import json

            return json.dumps({"level": record.levelname.lower(), "message": text})

    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(message)s"))
    log = logging.getLogger("codexctl")
    log.addHandler(handler)
    log.setLevel(logging.WARNING)


@asynccontextmanager
async def until_signalled() -> AsyncIterator[None]:
    """Cancels the body on SIGTERM or SIGINT, quietly; a second signal ends the process."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    names = (signal.SIGTERM, signal.SIGINT)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        for name in names:
            loop.remove_signal_handler(name)
        task.cancel()

    for name in names:
        loop.add_signal_handler(name, stop)
    try:
        yield
    except asyncio.CancelledError:
        if not stopped:
            raise
        task.uncancel()
    finally:
        for name in names:
            loop.remove_signal_handler(name)


def run(main: Callable[[], Any]) -> None:
    """Run a coroutine function on uvloop."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
