"""exec, pty and attach channels over real processes in the real sandbox."""

from __future__ import annotations

import pytest

from tests.host.conftest import Bench, Host

pytestmark = pytest.mark.usefixtures("sandboxed")


def test_streams_and_status(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        done = await host.exec("sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in\n")
        assert done.error is None
        assert bytes(done.output[1]) == b"in\n"
        assert bytes(done.output[2]) == b"err\n"
        assert sorted(done.ended_streams) == [1, 2]
        assert done.exit == {"status": 7}

    bench.run(scenario)


def test_pty(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open(
            "pty",
            argv=["sh", "-c", "tty; stty size; read x; echo got $x; read y"],
            tty={"cols": 100, "rows": 30, "term": "xterm"},
        )
        await channel.until(lambda: b"30 100" in channel.output[1])
        channel.input(b"abc\r")
        await channel.until(lambda: b"got abc" in channel.output[1])
        channel.input(b"\x03")
        await channel.until(lambda: channel.closed)

    bench.run(scenario)


def test_signal(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sleep", "100"])
        channel.message(signal="TERM")
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"signal": "TERM"}

    bench.run(scenario)
