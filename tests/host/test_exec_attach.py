"""Output that nobody reads, detach and reattach, and devices that leave."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from codexctl.errors import Refused
from codexctl.host import exec_handler, process
from tests.host.conftest import (
    PHONE,
    Bench,
    Host,
    processes_with,
    without_info,
)
from tests.host.memory_channel import LAPTOP, MemoryChannel

pytestmark = pytest.mark.usefixtures("sandboxed")


# --- output that nobody reads ---


def test_a_reader_that_stops_stalls_the_command(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["yes"], credit=100_000)
        await channel.until(lambda: channel.credit == 0)
        running = host.context.processes.get((channel.opened or {})["process"])
        assert running.ring.end <= 100_000 + 2 * 32768
        channel.grant(50_000)
        await channel.until(lambda: channel.credit == 0)
        assert bytes(channel.output[1]) == (b"y\n" * 75_000)
        # It still hears.
        channel.message(signal="TERM")
        await running.ended.wait()
        channel.grant(1 << 30)
        await channel.until(lambda: channel.closed)
        assert channel.exit == {"signal": "TERM"}

    bench.run(scenario)


def test_output_without_end_while_detached_is_bounded(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["seq", "-f", "%015.0f", "500000"], detach=True)
        await channel.until(lambda: channel.closed)
        running = host.context.processes.get((channel.opened or {})["process"])
        await running.ended.wait()
        back = host.open("attach", process=running.id)
        await back.until(lambda: back.closed)
        kept = bytes(back.output[1])
        dropped = (back.opened or {})["dropped"]
        assert dropped + len(kept) == 16 * 500_000
        assert process.OutputRing().end == 0
        assert len(kept) >= 1 << 20
        whole = b"".join(b"%015d\n" % n for n in range(1, 500_001))
        assert whole.endswith(kept)
        assert back.exit == {"status": 0}

    bench.run(scenario)


# --- detach and reattach ---


def test_detach_and_reattach_with_missed_output(bench: Bench) -> None:
    script = "echo one; read x; echo two $x; echo err >&2; read y; echo three $y; exit 4"

    async def scenario(host: Host) -> None:
        first = host.open("exec", argv=["sh", "-c", script])
        await first.until(lambda: b"one" in first.output[1])
        first.message(detach=True)
        await first.until(lambda: first.closed)
        assert first.error is None
        assert first.exit is None
        id = (first.opened or {})["process"]
        row = host.context.processes.rows()[0]
        assert (row["state"], row["attached"], row["device"]) == ("running", None, "laptop")

        second = host.open("attach", PHONE, process=id)
        await second.until(lambda: second.opened)
        assert second.opened == {"process": id, "dropped": 0, "tty": False}
        assert host.context.processes.rows()[0]["attached"] == "phone"
        second.input(b"2\n")
        await second.until(lambda: b"two 2" in second.output[1])
        assert b"one" not in second.output[1]
        second.lose()
        running = host.context.processes.get(id)
        await host.until(lambda: running.attachment is None)

        third = host.open("attach", process=id)
        third.input(b"3\n")
        await third.until(lambda: third.closed)
        assert third.output[1].endswith(b"three 3\n")
        assert third.exit == {"status": 4}

    bench.run(scenario)


def test_a_lost_session_leaves_the_command_running(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sh", "-c", "echo on; cat; echo end"])
        await channel.until(lambda: b"on" in channel.output[1])
        channel.lose()
        running = host.context.processes.get((channel.opened or {})["process"])
        await host.until(lambda: running.attachment is None)
        assert running.running
        back = host.open("attach", process=running.id)
        back.end_input()
        await back.until(lambda: back.closed)
        assert bytes(back.output[1]) == b"end\n"

    bench.run(scenario)


def test_what_was_under_way_when_the_session_was_lost_comes_again(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sh", "-c", "echo first; echo second; cat"])
        await channel.until(lambda: b"second" in channel.output[1])
        channel.unconfirmed = len(b"second\n")
        channel.lose()
        running = host.context.processes.get((channel.opened or {})["process"])
        await host.until(lambda: running.attachment is None)
        assert host.context.processes.rows()[0]["kept_bytes"] == 7
        back = host.open("attach", process=running.id)
        await back.until(lambda: b"second" in back.output[1])
        back.unconfirmed = 3
        other = host.open("attach", PHONE, process=running.id)
        other.end_input()
        await other.until(lambda: other.closed)
        assert bytes(back.output[1]) == b"second\n"
        assert bytes(other.output[1]) == b"nd\n"

    bench.run(scenario)


def test_a_detached_command_has_no_input_and_keeps_its_exit(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sh", "-c", "cat; echo out; exit 6"], detach=True)
        await channel.until(lambda: channel.closed)
        running = host.context.processes.get((channel.opened or {})["process"])
        await running.ended.wait()
        for _ in range(2):
            back = host.open("attach", process=running.id)
            await back.until(lambda b=back: b.closed)
            assert back.exit == {"status": 6}
        row = host.context.processes.rows()[0]
        assert (row["state"], row["exit"]) == ("exited", {"status": 6})

    bench.run(scenario)


def test_another_device_takes_over(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        first = host.open("exec", argv=["cat"])
        await first.until(lambda: first.opened)
        second = host.open("attach", PHONE, process=(first.opened or {})["process"])
        await first.until(lambda: first.closed)
        assert "phone has attached" in str(first.error)
        second.input(b"x")
        await second.until(lambda: second.output[1] == b"x")
        second.end_input()
        await second.until(lambda: second.closed)
        assert second.exit == {"status": 0}

    bench.run(scenario)


def test_a_terminal_is_reattached(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        first = host.open("pty", argv=["sh", "-c", "echo on; read x; stty size; echo $x"])
        await first.until(lambda: b"on" in first.output[1])
        first.message(detach=True)
        await first.until(lambda: first.closed)
        back = host.open(
            "attach", process=(first.opened or {})["process"], tty={"cols": 33, "rows": 11}
        )
        back.input(b"abc\r")
        await back.until(lambda: back.closed)
        assert back.output[1].endswith(b"11 33\r\nabc\r\n")

    bench.run(scenario)


def test_attach_to_nothing(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        for id in ("nothing", 7, None):
            channel = host.open("attach", process=id)
            await channel.until(lambda c=channel: c.closed)
            assert isinstance(channel.error, Refused)

    bench.run(scenario)


# --- a device that leaves ---


def test_a_device_that_closes_its_channel_ends_the_command(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TERM_AFTER_S", 0.1)
    monkeypatch.setattr(process, "KILL_AFTER_S", 0.2)

    async def scenario(host: Host) -> None:
        for script in ("echo on; sleep 100", "trap '' HUP TERM; echo on; sleep 100; sleep 100"):
            channel = host.open("exec", argv=["sh", "-c", script])
            await channel.until(lambda c=channel: b"on" in c.output[1])
            channel.hang_up()
            running = host.context.processes.get((channel.opened or {})["process"])
            await running.ended.wait()
            assert running.exit is not None
            assert running.exit.signal in ("HUP", "KILL")

    bench.run(scenario)


def test_a_closed_terminal_hangs_up(bench: Bench) -> None:
    mark = bench.workspace / "mark"

    async def scenario(host: Host) -> None:
        channel = host.open(
            "pty", argv=["sh", "-c", "trap 'echo hup >mark; exit' HUP; echo on; cat"]
        )
        await channel.until(lambda: b"on" in channel.output[1])
        channel.hang_up()
        running = host.context.processes.get((channel.opened or {})["process"])
        await running.ended.wait()
        assert mark.read_text() == "hup\n"

    bench.run(scenario)


def test_a_channel_closed_before_it_was_opened(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = MemoryChannel("exec", {"argv": ["sleep", "100"]})
        channel.lose()
        await exec_handler.serve_exec(channel, host.context)
        assert host.context.processes.rows()[0]["attached"] is None
        # Closed rather than lost: somebody pressed Ctrl-C at once.
        channel = MemoryChannel("exec", {"argv": ["sleep", "100"]})
        channel.hang_up()
        await exec_handler.serve_exec(channel, host.context)
        ended = host.context.processes.get(host.context.processes.rows()[1]["process"])
        await ended.ended.wait()
        assert host.context.processes.rows()[0]["state"] == "running"

    bench.run(scenario)


def test_revoking_a_device_ends_its_commands(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        mine = host.open("exec", argv=["sleep", "100"])
        other = host.open("exec", PHONE, argv=["cat"])
        await mine.until(lambda: mine.opened)
        await other.until(lambda: other.opened)
        assert host.context.processes.hang_up_device(LAPTOP.device_id) == 1
        await mine.until(lambda: mine.closed)
        assert other.exit is None

    bench.run(scenario)


def test_nothing_is_left_when_the_host_stops(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channel = host.open("exec", argv=["sleep", "54321.25"])
        await channel.until(lambda: channel.opened)
        detached = host.open(
            "pty", argv=["sh", "-c", "trap '' HUP TERM; sleep 54321.25"], detach=True
        )
        await detached.until(lambda: detached.closed)
        await host.context.processes.aclose(grace_s=0.2)
        assert processes_with("54321.25") == []

    bench.run(scenario)


def test_the_daemon_is_killed_and_its_commands_with_it(bench: Bench, tmp_path: Path) -> None:
    """--die-with-parent: what nobody could reach any more does not run on."""
    import subprocess
    import sys

    from codexctl.host.sandbox import SandboxRequest, Surroundings
    from codexctl.host.sandbox_probe import Sandbox

    sandbox = Sandbox(
        Surroundings(home=str(bench.person), state=bench.home.path, variables={}),
        str(bench.workspace),
    )
    sandbox.probe()
    request = SandboxRequest(str(bench.workspace), str(bench.workspace))
    argv = without_info(sandbox.command(request, ["sh", "-c", "echo on; sleep 54321.5"]))
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    with subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"on\n"
        parent.send_signal(signal.SIGKILL)
        # The pipe's end comes when the last of them is gone.
        assert parent.stdout.read() == b""
