"""exec, pty and attach channels over real processes in the real sandbox."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from codexctl.errors import CodexctlError, NotFoundOnHost, Refused, UsageError
from codexctl.host import exec_handler, process, processes
from codexctl.host.audit import read_lines
from codexctl.host.exec_handler import control
from codexctl.session.channel import Peer
from tests.host.conftest import Bench, Host, processes_with, without_info
from tests.host.memory_channel import LAPTOP, MemoryChannel

pytestmark = pytest.mark.usefixtures("sandboxed")
PHONE = Peer("d2", "phone", frozenset({"view", "exec"}))


def test_streams_and_status(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        done = await host.exec("sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in\n")
        assert done.error is None
        assert bytes(done.output[1]) == b"in\n"
        assert bytes(done.output[2]) == b"err\n"
        assert sorted(done.ended_streams) == [1, 2]
        assert done.exit == {"status": 7}
        assert done.credited == 3

    bench.run(scenario)


def test_arguments_reach_the_program_unchanged(bench: Bench) -> None:
    arguments = ["", "a b", "$HOME", "*", "'", '"', "\\", "--", "-x", "ä\u2028", "\n"]

    async def scenario(host: Host) -> None:
        done = await host.exec("printf", "%s\\0", *arguments)
        assert bytes(done.output[1]).split(b"\0")[:-1] == [a.encode() for a in arguments]

    bench.run(scenario)


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/dash", "zsh", "fish", "tcsh"])
def test_a_command_line_runs_in_the_login_shell(bench: Bench, shell: str) -> None:
    bench.shell = require_shell(shell)
    line = "echo 'a  b' | cat ; echo \"$HOME\""

    async def scenario(host: Host) -> None:
        done = host.open("exec", shell=line)
        await done.until(lambda: done.closed)
        assert bytes(done.output[1]).decode() == f"a  b\n{bench.person}\n"
        assert done.exit == {"status": 0}

    bench.run(scenario)


def require_shell(shell: str) -> str:
    import shutil

    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


def test_environment_comes_from_the_allowlist(bench: Bench) -> None:
    bench.policy = '[environment]\naccept = ["FOO", "BAR_*"]'

    async def scenario(host: Host) -> None:
        done = await host.exec("env", env={"FOO": "1", "BAR_X": "2"})
        seen = dict(line.split("=", 1) for line in done.output[1].decode().splitlines())
        assert seen["FOO"] == "1"
        assert seen["BAR_X"] == "2"
        assert seen["HOME"] == str(bench.person)
        assert "SECRET" not in seen
        refused = await host.exec("env", env={"LD_PRELOAD": "x"})
        assert isinstance(refused.error, Refused)
        assert "LD_PRELOAD" in refused.error.message

    bench.run(scenario)


@pytest.mark.parametrize(
    ("params", "kind", "words"),
    [
        ({"argv": ["no-such-program"]}, NotFoundOnHost, "no-such-program: command not found"),
        ({"argv": ["./plain"]}, Refused, "cannot be executed"),
        ({"argv": ["/etc"]}, Refused, "cannot be executed"),
        ({"argv": []}, UsageError, "argv"),
        ({"argv": "ls"}, UsageError, "argv"),
        ({"argv": ["a\0b"]}, UsageError, "argv"),
        ({"argv": ["ls"], "shell": "ls"}, UsageError, "not both"),
        ({}, UsageError, "no command"),
        ({"argv": ["ls"], "cwd": "/etc"}, Refused, "outside the workspace"),
        ({"argv": ["ls"], "cwd": ".."}, Refused, "outside the workspace"),
        ({"argv": ["ls"], "cwd": "missing"}, Refused, "is not a folder"),
        ({"argv": ["ls"], "env": {"A B": "1"}}, UsageError, "variable"),
        ({"argv": ["ls"], "env": {"A": 1}}, UsageError, "cannot be set"),
        ({"argv": ["ls"], "sandbox": "maybe"}, UsageError, "sandbox"),
        ({"argv": ["ls"], "sandbox": "off"}, Refused, "sandbox.mode, default"),
    ],
)
def test_what_cannot_be_run_says_so(
    bench: Bench, params: dict[str, object], kind: type[CodexctlError], words: str
) -> None:
    (bench.workspace / "plain").write_text("no program")

    async def scenario(host: Host) -> None:
        channel = host.open("exec", **params)
        await channel.until(lambda: channel.closed)
        assert type(channel.error) is kind
        assert words in str(channel.error)
        assert channel.opened is None
        assert len(host.context.processes) == 0

    bench.run(scenario)


def test_a_relative_folder_is_below_the_workspace(bench: Bench) -> None:
    (bench.workspace / "sub").mkdir()

    async def scenario(host: Host) -> None:
        done = await host.exec("pwd", cwd="sub")
        assert done.output[1].decode().strip() == str(bench.workspace / "sub")
        done = await host.exec("pwd")
        assert done.output[1].decode().strip() == str(bench.workspace)

    bench.run(scenario)


def test_scope(bench: Bench) -> None:
    viewer = Peer("d3", "viewer", frozenset({"view"}))

    async def scenario(host: Host) -> None:
        running = host.open("exec", argv=["sleep", "100"])
        await running.until(lambda: running.opened)
        assert running.opened is not None
        id = running.opened["process"]
        for kind, params in (("exec", {"argv": ["ls"]}), ("attach", {"process": id})):
            channel = host.open(kind, viewer, **params)
            await channel.until(lambda c=channel: c.closed)
            assert isinstance(channel.error, Refused)
            assert "may not run commands" in channel.error.message
        with pytest.raises(Refused):
            await control("signal", {"process": id, "signal": "KILL"}, viewer, host.context)
        listed = await control("ps", {}, viewer, host.context)
        assert [row["process"] for row in listed["processes"]] == [id]
        with pytest.raises(Refused, match="no scope"):
            await control("ps", {}, Peer("d", "none", frozenset()), host.context)

    bench.run(scenario)
    outcomes = [line.decode() for line in read_lines(bench.home.audit_log)]
    assert sum('"outcome":"denied"' in line for line in outcomes) == 3


def test_policy_denies_with_its_line(bench: Bench) -> None:
    bench.policy = '[programs]\ndeny = [\n  "env",\n]\n'

    async def scenario(host: Host) -> None:
        done = await host.exec("env")
        assert isinstance(done.error, Refused)
        assert done.error.exit_code == 126
        assert f"denies env ({bench.home.policy}:3)" in done.error.message
        # A shell that is allowed cannot start it either.
        done = await host.exec("sh", "-c", "/usr/bin/env; echo status $?")
        assert bytes(done.output[1]) == b"status 126\n"

    bench.run(scenario)


def test_policy_allows_some_programs_only(bench: Bench) -> None:
    bench.policy = '[programs]\nallow = ["cat"]\n'

    async def scenario(host: Host) -> None:
        assert (await host.exec("cat", stdin=b"x")).output[1] == b"x"
        done = await host.exec("ls")
        assert isinstance(done.error, Refused)
        assert f"does not allow ls (programs.allow, {bench.home.policy}:2)" in done.error.message
        shell = host.open("exec", shell="cat")
        await shell.until(lambda: shell.closed)
        assert isinstance(shell.error, Refused)

    bench.run(scenario)


def test_network(bench: Bench) -> None:
    script = "cat /proc/net/dev | grep -vc -e lo: -e '|'"

    async def scenario(host: Host) -> None:
        done = await host.exec("sh", "-c", script)
        assert int(done.output[1]) == 0
        done = await host.exec("readlink", "/proc/self/ns/net", network=True)
        assert done.output[1].decode().strip() == os.readlink("/proc/self/ns/net")

    bench.run(scenario)

    bench.policy = '[network]\nmode = "never"'

    async def never(host: Host) -> None:
        done = await host.exec("true", network=True)
        assert isinstance(done.error, Refused)
        assert f"{bench.home.policy}:2" in done.error.message

    bench.run(never)


def test_sandbox_off_is_noticed(bench: Bench) -> None:
    bench.policy = '[sandbox]\nmode = "optional"'

    async def scenario(host: Host) -> None:
        done = await host.exec("sh", "-c", "pwd; exit 3", sandbox="off")
        assert done.opened is not None
        assert "the sandbox is off" in done.opened["notice"]
        assert done.output[1].decode().strip() == str(bench.workspace)
        assert done.exit == {"status": 3}
        killed = host.open("exec", argv=["sleep", "100"], sandbox="off")
        await killed.until(lambda: killed.opened)
        killed.message(signal="INT")
        await killed.until(lambda: killed.closed)
        assert killed.exit == {"signal": "INT"}

    bench.run(scenario)


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


async def running_cat(channel: MemoryChannel) -> None:
    """Wait until a cat answers: a line stands there as typed and as answered."""
    channel.input(b"line\r")
    await channel.until(lambda: channel.output[1].count(b"line") == 2)


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


# --- many ---


def test_many_processes_at_once(bench: Bench) -> None:
    async def scenario(host: Host) -> None:
        channels = [host.open("exec", argv=["sh", "-c", f"echo {n}; exit {n}"]) for n in range(60)]
        for n, channel in enumerate(channels):
            await channel.until(lambda c=channel: c.closed)
            assert channel.error is None
            assert channel.output[1] == b"%d\n" % n
            assert channel.exit == {"status": n}

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


# --- status ---


def test_status(bench: Bench) -> None:
    (bench.workspace / "AGENTS.md").write_text("# Be kind\n")

    async def scenario(host: Host) -> None:
        status = await control("status", {}, LAPTOP, host.context)
        assert status["name"] == "host"
        assert status["workspace"] == str(bench.workspace)
        assert status["sandbox"] == {"works": True, "required": True}
        assert status["agents_md"][0]["heading"] == "Be kind"
        with pytest.raises(UsageError, match="does not know"):
            await control("frobnicate", {}, LAPTOP, host.context)

    bench.run(scenario)
