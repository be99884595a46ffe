"""exec and pty channels over real processes in the real sandbox: streams, folders, policy."""

from __future__ import annotations

import os

import pytest

from codexctl.errors import CodexctlError, NotFoundOnHost, Refused, UsageError
from codexctl.host.audit import read_lines
from codexctl.host.exec_handler import control
from codexctl.session.channel import Peer
from tests.host.conftest import (
    Bench,
    Host,
    require_shell,
)
from tests.host.memory_channel import LAPTOP

pytestmark = pytest.mark.usefixtures("sandboxed")


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
