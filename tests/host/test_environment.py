"""The login shell's environment, whatever the shell is and whatever its rc files do."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import time
from pathlib import Path

import pytest

from codexctl.errors import NotFoundOnHost, Refused
from codexctl.host.environment import (
    FALLBACK_PATH,
    LoginEnvironment,
    discover,
    find_program,
    login_shell_of,
)
from tests.host.conftest import processes_with

QUICK_S = 1.0

# Where each shell's person sets PATH, and how.
RC = {
    "bash": (".bashrc", 'export PATH="$HOME/my tools:$PATH" MULTI="a\nb"'),
    "zsh": (".zshrc", 'export PATH="$HOME/my tools:$PATH" MULTI="a\nb"'),
    "dash": (".profile", 'export PATH="$HOME/my tools:$PATH" MULTI="a\nb"'),
    "fish": (
        ".config/fish/config.fish",
        'set -gx PATH "$HOME/my tools" $PATH; set -gx MULTI a\\nb',
    ),
    "tcsh": (".cshrc", 'setenv PATH "$HOME/my tools:$PATH"; setenv MULTI "a\\\nb"'),
}


def ask(tmp_path: Path, shell: str, timeout_s: float = 10.0) -> LoginEnvironment:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return asyncio.run(discover(shell=path, home=str(tmp_path), timeout_s=timeout_s))


def rc(tmp_path: Path, shell: str, *, before: str = "", after: str = "") -> None:
    name, line = RC[shell]
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{before}\n{line}\n{after}\n")
    if shell == "bash":
        (tmp_path / ".bash_profile").write_text(". ~/.bashrc\n")


@pytest.mark.parametrize("shell", RC)
def test_each_shell(tmp_path: Path, shell: str) -> None:
    rc(tmp_path, shell)
    found = ask(tmp_path, shell)
    assert found.complete
    assert found.path.split(":")[0] == f"{tmp_path}/my tools"
    assert found.variables["MULTI"] == "a\nb"
    assert found.variables["HOME"] == str(tmp_path)
    for transient in ("SHLVL", "PWD", "_", "CODEXCTL_PROBE", "TERM"):
        assert transient not in found.variables


@pytest.mark.parametrize("shell", RC)
def test_rc_files_that_print(tmp_path: Path, shell: str) -> None:
    rc(tmp_path, shell, before="echo welcome; echo PATH=/wrong; echo 'A=1'", after="echo bye")
    found = ask(tmp_path, shell)
    assert found.complete
    assert found.path.startswith(f"{tmp_path}/my tools:")
    assert "A" not in found.variables


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_rc_files_that_hang(tmp_path: Path, shell: str) -> None:
    rc(tmp_path, shell, before="sleep 98765.5")
    # Read by every zsh, also one that is not interactive.
    (tmp_path / ".zshenv").write_text("sleep 98765.5\n")
    found = ask(tmp_path, shell, QUICK_S)
    assert not found.complete
    assert found.shell == shutil.which(shell)
    deadline = time.monotonic() + 10
    while processes_with("98765.5"):  # killed, and not ours to wait for
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_rc_files_that_fail(tmp_path: Path, shell: str) -> None:
    rc(tmp_path, shell, after="exit 1")
    assert not ask(tmp_path, shell).complete


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_rc_files_that_become_another_shell(tmp_path: Path, shell: str) -> None:
    """Only for a person at a terminal: the second asking, which is not interactive, gets it."""
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    rc(tmp_path, shell, before="case $- in *i*) exec fish;; esac")
    found = ask(tmp_path, shell)
    assert found.complete


def test_rc_files_that_leave_a_daemon(tmp_path: Path) -> None:
    """It holds the output open; the marks are enough."""
    rc(tmp_path, "bash", before="setsid sleep 3 &")
    assert ask(tmp_path, "bash").complete


def test_interactive_settings_of_bash_count(tmp_path: Path) -> None:
    (tmp_path / ".bash_profile").write_text(". ~/.bashrc\n")
    (tmp_path / ".bashrc").write_text(
        "case $- in *i*) ;; *) return;; esac\nexport PATH=$HOME/.nvm/bin:$PATH\n"
    )
    assert ask(tmp_path, "bash").path.startswith(f"{tmp_path}/.nvm/bin:")


def test_a_shell_that_prints_without_end(tmp_path: Path) -> None:
    shell = tmp_path / "noisy"
    shell.write_text("#!/bin/sh\nexec yes\n")
    shell.chmod(0o755)
    found = asyncio.run(discover(shell=str(shell), home=str(tmp_path), timeout_s=20))
    assert not found.complete


def test_a_shell_that_is_not_there(tmp_path: Path) -> None:
    found = asyncio.run(discover(shell="/no/such/shell", home=str(tmp_path)))
    assert not found.complete
    assert found.path == os.environ["PATH"]


@pytest.mark.parametrize(
    "shell", ["", "/usr/sbin/nologin", "/bin/false", "/no/such", "/etc/passwd"]
)
def test_what_is_no_shell(shell: str) -> None:
    entry = pwd.struct_passwd(("u", "x", 1, 1, "", "/", shell))
    assert login_shell_of(entry) == "/bin/sh"
    assert login_shell_of(None) == "/bin/sh"


def test_no_secret_in_its_repr() -> None:
    environment = LoginEnvironment("/bin/sh", "/", "u", {"TOKEN": "hunter2"})
    assert "hunter2" not in repr(environment)
    assert environment.path == FALLBACK_PATH


def test_finding_programs(tmp_path: Path) -> None:
    for folder, mode in (("a", 0o644), ("b", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("")
        (tmp_path / folder / "tool").chmod(mode)
    (tmp_path / "a" / "plain").write_text("")
    (tmp_path / "a" / "folder").mkdir()
    path = f"{tmp_path}/a:{tmp_path}/b"
    assert find_program("tool", path, "/") == f"{tmp_path}/b/tool"
    assert find_program("b/tool", path, str(tmp_path)) == f"{tmp_path}/b/tool"
    assert find_program("tool", "b", str(tmp_path)) == f"{tmp_path}/b/tool"
    for name in ("missing", "folder", "", "x/y", "a\0b"):
        with pytest.raises(NotFoundOnHost):
            find_program(name, path, str(tmp_path))
    for name in ("plain", "./a/tool", "./a/folder"):
        with pytest.raises(Refused, match="cannot be executed"):
            find_program(name, path, str(tmp_path))
