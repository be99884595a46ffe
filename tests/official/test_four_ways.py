"""The four ways to use the official Codex over codexctl, one after the other, with the real binary.

This is what tests/official/compatibility.py runs with several official releases; each way has tests
of its own beside it that go further.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.attach import site as attached
from tests.attach.terminal import TerminalProgram
from tests.official.site import Site as ExecutorSite
from tests.support.codex import (
    CODEX,
    codex_environment,
    make_codex_home,
    needs_codex,
    outputs,
    run_command,
    say,
    serving_model,
)
from tests.support.programs import COMMAND_TIMEOUT_S

pytestmark = needs_codex
EDIT = "*** Begin Patch\n*** Add File: edited.txt\n+by the agent\n*** End Patch\n"


@pytest.fixture(scope="module")
def executors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExecutorSite]:
    """A relay, and an official executor `box` that runs on it."""
    made = ExecutorSite(tmp_path_factory.mktemp("executors"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[attached.Site]:
    """A codexctl host `box` with the official codex on it, and a paired laptop that has it too."""
    with attached.site(tmp_path_factory.mktemp("host")) as made:
        yield made


def test_way_1_codexctl_on_an_official_executor(executors: ExecutorSite, tmp_path: Path) -> None:
    laptop = executors.laptop
    (listed,) = laptop.json("hosts")
    assert (listed["name"], listed["kind"]) == ("box", "official")
    done = laptop.run("exec", "box", "--", "sh", "-c", "cat; exit 5", input=b"hello", check=5)
    assert done.stdout == b"hello"
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
    laptop.run("cp", str(tmp_path / "file"), "box:copied")
    assert (executors.executor.workspace / "copied").read_bytes() == bytes(range(256)) * 1000
    shell = [sys.executable, "-m", "codexctl", "shell", "box"]
    with TerminalProgram(shell, env=laptop.environment, cwd=laptop.cwd) as terminal:
        terminal.type("echo $((6 * 7)) in the shell; exit\r")
        terminal.until("42 in the shell")
        assert terminal.wait() == 0


def test_way_2_the_official_agent_on_an_official_executor(
    executors: ExecutorSite, tmp_path: Path
) -> None:
    assert CODEX is not None
    steps = [
        [run_command("pwd; echo proof > proof", call="c1")],
        [run_command(f"apply_patch <<'EOF'\n{EDIT}EOF\n", call="c2")],
        [say("done")],
    ]
    printed = executors.laptop.run("env", "box", "--shell", "sh").stdout.decode()
    work = executors.executor.workspace
    agent = [CODEX, "exec", "--skip-git-repo-check", "-C", str(work), "go"]
    with serving_model(steps) as model:
        home = make_codex_home(tmp_path / "codex", model)
        done = subprocess.run(
            ["sh", "-c", f"{printed}\nexec {shlex.join(agent)}"],
            env=codex_environment(home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        assert str(work) in outputs(model.requests[1])[0]
    assert (work / "proof").read_text() == "proof\n"
    assert (work / "edited.txt").read_text() == "by the agent\n"


def test_what_an_official_executor_does_not_do_is_said(executors: ExecutorSite) -> None:
    for command in (
        ("exec-server", "box"), ("attach", "box", "--print"), ("ps", "box"),
        ("env", "box", "--environments-toml"),
    ):  # fmt: skip
        done = executors.laptop.run(*command, check=2)
        assert b"box is an official executor" in done.stderr
        assert b'eval "$(codexctl env box)"' in done.stderr


def test_way_3_the_official_agent_on_a_codexctl_host(host: attached.Site) -> None:
    host.laptop.run("env", "box", "--environments-toml", "--folder", str(host.project))
    steps = [
        [run_command("pwd", call="c1")],
        [run_command(f"apply_patch <<'EOF'\n{EDIT}EOF\n", call="c2")],
        [say("done")],
    ]
    with serving_model(steps) as model:
        agent = host.agent(model, sandbox="workspace-write")
        _, said = agent.communicate(timeout=COMMAND_TIMEOUT_S)
        assert agent.returncode == 0, said.decode(errors="replace")[-2000:]
        assert str(host.box.work) in outputs(model.requests[1])[0]
    assert (host.box.work / "edited.txt").read_text() == "by the agent\n"
    assert not (host.project / "edited.txt").exists()


def test_way_4_the_official_terminal_ui_on_a_hosts_threads(host: attached.Site) -> None:
    ui = [sys.executable, "-m", "codexctl", "attach", "box"]
    with ExitStack() as stack:
        for words in ("one banana", "two bananas"):  # several at once
            terminal = stack.enter_context(
                TerminalProgram(ui, env=host.laptop.environment, cwd=host.laptop.cwd)
            )
            terminal.until("Ask Codex to do anything")
            terminal.type(f"say {words}")
            terminal.until(f"say {words}")
            terminal.until(f"• {words}", typing="\r")
    rows = host.world.phone.json("thread", "list", "box")
    assert {row["cwd"] for row in rows} == {str(host.box.work)}
    assert len(rows) == 2
