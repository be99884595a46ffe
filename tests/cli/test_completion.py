"""Completion in the real shells: commands, options and the names of hosts."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codexctl.cli.complete import host_names
from codexctl.cli.completion import SHELLS, script
from codexctl.cli.main import run
from codexctl.client.store import HostRecord, HostStore
from codexctl.paths import Home
from codexctl.secret import Secret
from tests.support.needs import missing

BIN = os.path.dirname(sys.executable)
ANSWER_WITHIN_S = 30.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a paired host and an ssh alias, and nothing of the person who tests."""
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR", "CODEXCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "ssh_config"
    config.write_text("Host beehive pattern*\n  HostName 127.0.0.1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CODEXCTL_HOME", str(tmp_path / "codexctl"))
    monkeypatch.setenv("CODEXCTL_SSH_CONFIG", str(config))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    record = HostRecord(
        "beacon", "env", "box", bytes(32), "suite", "http://127.0.0.1:1", None, Secret("t"), 0,
        "device", ("exec",), 0,
    )  # fmt: skip
    HostStore(Home.from_env()).add(record)
    return tmp_path


def _need(shell: str) -> None:
    if shutil.which(shell) is None:
        missing(f"{shell} is not installed")


def _type(shell: list[str], keys: str, until: str) -> str:
    """What an interactive shell shows after `keys`, up to and with `until`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execvp(shell[0], shell)
    try:
        os.write(terminal, keys.encode())
        seen = ""
        end = time.monotonic() + ANSWER_WITHIN_S
        while until not in seen:
            ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{until!r} did not come; seen: {seen!r}"
            seen += os.read(terminal, 4096).decode(errors="replace")
        return seen
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def _bash(words: list[str]) -> list[str]:
    """What bash's completion function offers for these words, the last being typed."""
    code = (
        'eval "$(codexctl completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        "_codexctl_completion codexctl; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", "codexctl", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=ANSWER_WITHIN_S,
    )
    assert done.stderr == ""
    return done.stdout.split()


def _fish(words: list[str]) -> list[str]:
    code = f"codexctl completion fish | source; complete -C '{' '.join(['codexctl', *words])}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=ANSWER_WITHIN_S,
    )
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


ASKED = [
    (["de"], ["devices"]),
    (["doctor", "be"], ["beacon", "beehive"]),
    (["doctor", "--j"], ["--json"]),
    (["completion", "i"], ["install"]),
    (["exec", "beac"], ["beacon"]),
    (["shell", "bee"], ["beehive"]),
    (["hosts", "show", "b"], ["beacon"]),
    (["ps", "b"], ["beacon"]),
    (["completion", "install", "z"], ["zsh"]),
    (["nothing", "x"], []),
]


# fish cuts what it is offered at a comma, so that several hosts are completed by bash and zsh.
@pytest.mark.parametrize(
    ("words", "offered"), [*ASKED, (["exec", "beacon,bee"], ["beacon,beehive"])]
)
def test_bash(home: Path, words: list[str], offered: list[str]) -> None:
    _need("bash")
    assert _bash(words) == offered


@pytest.mark.parametrize(("words", "offered"), ASKED)
def test_fish(home: Path, words: list[str], offered: list[str]) -> None:
    _need("fish")
    assert _fish(words) == offered


@pytest.mark.parametrize(
    ("typed", "shown"), [("codexctl devi\t", "devices"), ("codexctl doctor bea\t", "beacon")]
)
def test_an_interactive_zsh_completes(home: Path, typed: str, shown: str) -> None:
    _need("zsh")
    assert run(["completion", "install", "zsh", "--yes"]) == 0
    _type(["zsh", "-i"], f"{typed}\r", shown)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("codexctl devi\t", "devices"),
        ("codexctl doctor bea\t", "beacon"),
        ("codexctl cp bea\tpath", "beacon:path"),
    ],
)
def test_an_interactive_bash_completes(home: Path, typed: str, shown: str) -> None:
    _need("bash")
    (home / "rc").write_text('eval "$(codexctl completion bash)"\n')
    _type(["bash", "--rcfile", str(home / "rc"), "-i"], f"{typed}\r", shown)


def test_installing_twice_adds_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rc = home / ".zshrc"
    rc.write_text("setopt autocd")
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    for _ in range(2):
        assert run(["completion", "install", "--yes"]) == 0
    path = home / ".local/share/codexctl/completion.zsh"
    assert path.read_text() == script("zsh")
    assert rc.read_text().splitlines() == [
        "setopt autocd",
        "# codexctl completion",
        f"autoload -Uz compinit && compinit && . '{path}'",
    ]
    assert f"installed {path}" in capsys.readouterr().err


def test_installing_for_fish_needs_no_line(home: Path) -> None:
    assert run(["completion", "install", "fish"]) == 0
    assert (home / ".config/fish/completions/codexctl.fish").read_text() == script("fish")
    if shutil.which("fish"):
        done = subprocess.run(
            ["fish", "-c", "complete -C 'codexctl devi'"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("devices")


def test_an_unknown_shell_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", "/bin/ksh")
    assert run(["completion", "install"]) == 2
    assert "no completion for the shell ksh" in capsys.readouterr().err


def test_nothing_is_written_without_an_answer(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert run(["completion", "install", "zsh"]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert not (home / ".zshrc").exists()


def test_names_survive_a_broken_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_names() == ["beacon", "beehive"]
    for file in (home / "codexctl").iterdir():
        file.write_bytes(b"broken")
    assert host_names() == ["beehive"]
    monkeypatch.setenv("CODEXCTL_HOME", "")
    assert host_names() == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_printed_script_is_the_installed_one(
    home: Path, shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell)
