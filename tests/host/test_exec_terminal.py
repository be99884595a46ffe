"""Signals and terminals of real processes in the real sandbox."""

from __future__ import annotations

import asyncio
import re

import pytest

from codexctl.errors import UsageError
from tests.host.conftest import (
    Bench,
    Host,
    processes_with,
    require_shell,
    running_cat,
)

pytestmark = pytest.mark.usefixtures("sandboxed")


# --- signals ---


def test_a_signal_reaches_the_whole_group(bench: Bench) -> None:
    script = "trap 'echo caught; exit 9' TERM; sleep 100 & echo ready; wait"

    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sh", "-c", script])
        await channel.until(lambda: b"ready" in channel.output[1])
        channel.message(signal="SIGTERM")
        await channel.until(lambda: channel.closed)
        assert bytes(channel.output[1]) == b"ready\ncaught\n"
        assert channel.exit == {"status": 9}

    bench.run(scenario)


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM", "KILL", "USR1"])
def test_a_signal_at_once_is_not_lost(bench: Bench, name: str) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sleep", "100"])
        channel.message(signal=name)
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"signal": name}

    bench.run(scenario)


@pytest.mark.parametrize("kind", ["exec", "pty"])
def test_a_signal_while_the_sandbox_is_being_set_up(bench: Bench, kind: str) -> None:
    """bwrap takes some milliseconds: whenever a signal comes, it ends the command and all of it."""

    async def scenario(host: Host) -> None:
        for step in range(12):
            name = ("KILL", "TERM", "INT")[step % 3]
            channel = host.open(kind, argv=["sleep", "54322.5"])
            await channel.until(lambda c=channel: c.opened)
            await asyncio.sleep(step / 1000)
            channel.message(signal=name)
            await channel.until(lambda c=channel: c.closed)
            assert channel.exit == {"signal": name}
        await host.until(lambda: not processes_with("54322.5"))

    bench.run(scenario)


def test_a_signal_passes_input_that_is_not_read(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sleep", "100"])
        for _ in range(40):
            channel.input(b"x" * 32768)
        await channel.until(lambda: channel.opened)
        channel.message(signal="INT")
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"signal": "INT"}

    bench.run(scenario)


def test_what_ended_itself_by_a_status_is_not_called_a_signal(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        assert (await host.exec("sh", "-c", "exit 143")).exit == {"status": 143}

    bench.run(scenario)


def test_a_message_that_makes_no_sense_ends_the_channel(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        for value in ({"signal": "SEGV"}, {"resize": [0, 1]}, {"resize": "x"}, {"what": 1}):
            channel = host.open("exec", argv=["sleep", "100"])
            channel.message(**value)
            await channel.until(lambda c=channel: c.closed)
            assert isinstance(channel.error, UsageError)

    bench.run(scenario)


# --- terminals ---


def test_a_terminal_has_its_size(bench: Bench) -> None:
    script = (
        "stty size; while [ $(stty size | cut -d' ' -f1) = 30 ]; do sleep 0.01; done;"
        "stty size; read x; echo $x"
    )

    async def scenario(host: Host) -> None:
        channel = host.open(
            "pty", argv=["sh", "-c", script], tty={"cols": 100, "rows": 30, "term": "vt100"}
        )
        await channel.until(lambda: b"30 100\r\n" in channel.output[1])
        channel.message(resize=[120, 40])
        await channel.until(lambda: b"40 120\r\n" in channel.output[1])
        channel.input(b"hello\r")
        await channel.until(lambda: channel.closed)
        assert channel.output[1].endswith(b"hello\r\nhello\r\n")
        assert channel.exit == {"status": 0}
        assert channel.ended_streams == [1]

    bench.run(scenario)


def test_control_c_is_for_the_command_alone(bench: Bench) -> None:
    """It must not end bwrap, or the exit status would be lost."""

    async def scenario(host: Host) -> None:
        channel = host.open("pty", argv=["sh", "-c", "trap 'exit 5' INT; cat"])
        await running_cat(channel)
        channel.input(b"\x03")
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"status": 5}

    bench.run(scenario)


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "tcsh"])
def test_the_login_shell_on_a_terminal(bench: Bench, shell: str) -> None:
    bench.shell = require_shell(shell)
    (bench.person / ".zshrc").write_text("")

    async def scenario(host: Host) -> None:
        channel = host.open("pty", tty={"cols": 80, "rows": 24, "term": "dumb"})
        channel.input(b"/bin/echo mar''ker $TERM\r")
        await channel.until(lambda: b"marker dumb" in channel.output[1])
        channel.input(b"exit 3\r")
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"status": 3}
        assert b"job control" not in channel.output[1]

    bench.run(scenario)


def test_end_of_input_on_a_terminal_is_typed(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("pty", argv=["cat"])
        await running_cat(channel)
        channel.end_input()
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"status": 0}

    bench.run(scenario)


def test_a_signal_on_a_terminal_goes_to_the_foreground(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("pty", argv=["sleep", "100"])
        channel.message(signal="TERM")
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"signal": "TERM"}

    bench.run(scenario)


def test_a_terminal_without_the_sandbox(bench: Bench) -> None:
    bench.policy = '[sandbox]\nmode = "optional"'

    async def scenario(host: Host) -> None:
        channel = host.open("pty", argv=["sh", "-c", "tty; cat"], sandbox="off")
        await running_cat(channel)
        assert re.search(rb"/dev/pts/\d+\r\n", channel.output[1])
        channel.input(b"\x03")
        await channel.until(lambda: channel.closed)
        assert channel.exit in ({"signal": "INT"}, {"status": 130})

    bench.run(scenario)
