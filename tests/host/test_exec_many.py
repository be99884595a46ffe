"""Many processes at once, and what bounds them."""

from __future__ import annotations

import os

import pytest

from codexctl.errors import Refused
from codexctl.host import processes
from tests.host.conftest import (
    Bench,
    Host,
)

pytestmark = pytest.mark.usefixtures("sandboxed")


# --- many ---


def test_many_processes_at_once(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channels = [host.open("exec", argv=["sh", "-c", f"echo {n}; exit {n}"]) for n in range(60)]
        for n, channel in enumerate(channels):
            await channel.until(lambda c=channel: c.closed)
            assert channel.error is None
            assert channel.output[1] == b"%d\n" % n
            assert channel.exit == {"status": n}

    async def first(host: Host) -> None:
        await host.exec("true")

    # With the first loop of a process libuv opens a pipe for signals, and keeps it.
    bench.run(first)
    before = len(os.listdir("/proc/self/fd"))
    bench.run(scenario)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_without_pidfds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def missing(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)

    async def scenario(host: Host) -> None:
        done = await host.exec("sh", "-c", "echo out; exit 3")
        assert (done.output[1], done.exit) == (b"out\n", {"status": 3})

    bench.run(scenario)


@pytest.mark.parametrize("kind", ["exec", "pty"])
def test_nothing_is_left_open_when_a_start_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import errno

    async def scenario(host: Host) -> None:
        await host.exec("true")
        before = sorted(os.listdir("/proc/self/fd"))

        def exhausted(*_: object, **__: object) -> int:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_spawn", exhausted)
            channel = host.open(kind, argv=["true"])
            await channel.until(lambda: channel.closed)
        assert isinstance(channel.error, Refused)
        assert "cannot start true: Resource temporarily unavailable" in channel.error.message
        assert "out of processes" in channel.error.hint
        assert sorted(os.listdir("/proc/self/fd")) == before
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", exhausted)
            channel = host.open(kind, argv=["sleep", "100"])
            await channel.until(lambda: channel.closed)
        assert isinstance(channel.error, Refused)
        assert sorted(os.listdir("/proc/self/fd")) == before

    bench.run(scenario)


def test_too_many_processes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_PROCESSES", 2)

    async def scenario(host: Host) -> None:
        for _ in range(2):
            channel = host.open("exec", argv=["sleep", "100"], detach=True)
            await channel.until(lambda c=channel: c.closed)
        refused = await host.exec("true")
        assert isinstance(refused.error, Refused)
        assert "2 processes run" in refused.error.message

    bench.run(scenario)


def test_finished_processes_are_forgotten_in_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FINISHED_KEPT", 3)

    async def scenario(host: Host) -> None:
        for _ in range(5):
            await host.exec("true")
        assert len(host.context.processes.rows()) == 3
        monkeypatch.setattr(processes, "FINISHED_S", -1.0)
        assert host.context.processes.rows() == []

    bench.run(scenario)


def test_output_that_nobody_fetches_is_bounded_in_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FINISHED_RING_BYTES", 150_000)

    async def scenario(host: Host) -> None:
        ids = []
        for _ in range(3):
            channel = host.open("exec", argv=["head", "-c", "100000", "/dev/zero"], detach=True)
            await channel.until(lambda c=channel: c.closed)
            ids.append((channel.opened or {})["process"])
            running = host.context.processes.get(ids[-1])
            await running.ended.wait()
            await host.until(lambda r=running: not r.outputs)
        rows = {row["process"]: row["kept_bytes"] for row in host.context.processes.rows()}
        assert [rows[id] for id in ids] == [0, 0, 100_000]
        back = host.open("attach", process=ids[0])
        await back.until(lambda: back.closed)
        assert (back.opened or {})["dropped"] == 100_000
        assert back.exit == {"status": 0}

    bench.run(scenario)
