"""Commands and shells over a real sshd on a terminal: sizes, Ctrl-C, what is asked for and said."""

from __future__ import annotations

import grp
import os
import pty
import select
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.ssh.conftest import World
from tests.ssh.test_exec import DEADLINE_S, PROXY, command
from tests.support.sshd import make_key

SHOW_SIZES = (
    "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH}); "
    'show = lambda: print("%d %d" % os.get_terminal_size()[::-1], flush=True); '
    "show(); [show() for _ in iter(lambda: signal.sigwaitinfo({signal.SIGWINCH}), None)]"
)


class Terminal:
    """A child on a pseudo-terminal of its own, and what it wrote."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(argv[0], argv)
        self.seen = b""

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.seen
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            assert data, self.seen
            self.seen += data
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def end(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def sshd_gives_terminals() -> bool:
    """Without root sshd needs a devpts whose terminals belong to the group tty already."""
    ours, theirs = pty.openpty()
    try:
        return os.geteuid() == 0 or os.fstat(theirs).st_gid == grp.getgrnam("tty").gr_gid
    except KeyError:
        return True
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(not sshd_gives_terminals(), reason="devpts is mounted without gid=tty")
def test_a_shell_on_a_terminal(world: World) -> None:
    script = (
        'before=$(stty -g); "$@"; echo "status $?"; [ "$before" = "$(stty -g)" ] && echo restored'
    )
    terminal = Terminal(["/bin/sh", "-c", script, "sh", *command("shell", "web", "sh")])
    terminal.expect(b"#" if os.geteuid() == 0 else b"$")
    terminal.type(b"echo a$((1+1))b; test -t 0 && echo is-a-term''inal\n")
    terminal.expect(b"a2b")
    terminal.expect(b"is-a-terminal")
    # One program in the foreground from start to end: a loop in the shell would lose a Ctrl-C that
    # comes between the fork of one child and its exec.
    terminal.type(f"{sys.executable} -c '{SHOW_SIZES}'\n".encode())
    termios.tcsetwinsize(terminal.fd, (44, 90))
    terminal.expect(b"44 90")
    # Ctrl-C belongs to what runs there.
    terminal.type(b"\x03")
    terminal.type(b"echo $?\n")
    terminal.expect(b"130")
    terminal.type(b"exit 5\n")
    terminal.expect(b"status 5")
    terminal.expect(b"restored")
    assert terminal.end() == 0


def test_a_host_that_takes_long_is_named_on_the_terminal(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    go = tmp_path / "go"
    script = tmp_path / "proxy"
    wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
    script.write_text(f"{wait}\nexec {sys.executable} -c '{PROXY}' \"$@\"\n")
    world.add("slow", f"ProxyCommand sh {script} %h %p")
    terminal = Terminal(command("exec", "slow", "echo", "here"))
    terminal.expect(b"connecting to slow")
    go.touch()
    terminal.expect(b"here")
    assert terminal.end() == 0


def test_a_passphrase_is_asked_for_on_the_terminal(world: World, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    world.server.authorize(Path(f"{key}.pub"))
    world.add("asking", key=key)
    terminal = Terminal(command("exec", "asking", "echo", "let in"))
    terminal.expect(f"Passphrase for {key}:".encode())
    terminal.type(b"wrong\n")
    terminal.expect(b"Passphrase for")
    terminal.type(b"open sesame\n")
    terminal.expect(b"let in")
    assert terminal.end() == 0


def test_ctrl_c_at_the_passphrase_is_130(world: World, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", passphrase="open sesame")
    world.server.authorize(Path(f"{key}.pub"))
    world.add("asking", key=key)
    terminal = Terminal(command("exec", "asking", "true"))
    terminal.expect(b"Passphrase for")
    terminal.type(b"\x03")
    assert terminal.end() == 130


@pytest.mark.skipif(not sshd_gives_terminals(), reason="devpts is mounted without gid=tty")
def test_a_shell_is_left_by_its_escape(world: World) -> None:
    terminal = Terminal(command("shell", "web", "sh"))
    terminal.expect(b"#" if os.geteuid() == 0 else b"$")
    terminal.type(b"\r~?")
    terminal.expect(b"end the session")
    terminal.type(b"\r~.")
    terminal.expect(b"ended by ~.")
    assert terminal.end() == 130
