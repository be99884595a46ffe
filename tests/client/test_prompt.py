"""A line asked for on a real pseudo-terminal: what is echoed, and what signals do meanwhile."""

from __future__ import annotations

import os
import pty
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

DEADLINE_S = 60.0
PROGRAM = """
import os, signal, sys
from codexctl.client.prompt import read_line
{before}
try:
    print("got", ascii(read_line({prompt!r}, hidden={hidden})))
except BaseException as error:
    print("raised", type(error).__name__)
{after}
"""


class Typist:
    def __init__(self, terminal: int, pid: int) -> None:
        self.terminal, self.pid, self.seen = terminal, pid, b""

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            self.seen += os.read(self.terminal, 4096)

    def rest(self) -> bytes:
        try:
            while block := os.read(self.terminal, 4096):
                self.seen += block
        except OSError:
            # Linux ends a terminal whose other side is gone with EIO.
            pass
        return self.seen

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.terminal)[3] & termios.ECHO)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.01)


@contextmanager
def asking(
    prompt: str, hidden: bool = False, before: str = "", after: str = ""
) -> Iterator[Typist]:
    code = PROGRAM.format(prompt=prompt, hidden=hidden, before=before, after=after)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", code], {**os.environ, "PYTHONUTF8": "1"})
    try:
        yield Typist(terminal, pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("one\n", b"got 'one'"),
        ("\n", b"got ''"),
        ("  två \n", rb"got '  tv\xe5 '"),
        ("ab\x04c\n", b"got 'abc'"),
        ("\x04", b"raised EOFError"),
        ("\x03", b"raised KeyboardInterrupt"),
    ],
)
def test_gives_the_line_or_says_how_it_ended(hidden: bool, typed: str, shown: bytes) -> None:
    with asking("Name? ", hidden) as typist:
        typist.until(b"Name? ")
        os.write(typist.terminal, typed.encode())
        assert shown in typist.rest()


def test_a_hidden_line_is_asked_for_where_the_person_sits_and_never_shown() -> None:
    elsewhere = "null = os.open('/dev/null', os.O_RDWR); os.dup2(null, 0); os.dup2(null, 2)"
    with asking("Passphrase: ", hidden=True, before=elsewhere) as typist:
        typist.until(b"Passphrase: ")
        assert not typist.echoes
        os.write(typist.terminal, b"hush\n")
        typist.until(b"got 'hush'")
    assert typist.seen.count(b"hush") == 1, "once by the program, never by the terminal"


def test_echo_stays_off_after_a_stop_in_which_the_shell_turned_it_on() -> None:
    with asking("Passphrase: ", hidden=True) as typist:
        typist.until(b"Passphrase: ")
        os.kill(typist.pid, signal.SIGSTOP)
        os.waitpid(typist.pid, os.WUNTRACED)
        modes = termios.tcgetattr(typist.terminal)
        modes[3] |= termios.ECHO
        termios.tcsetattr(typist.terminal, termios.TCSANOW, modes)
        os.kill(typist.pid, signal.SIGCONT)
        wait_for(lambda: not typist.echoes)
        os.write(typist.terminal, b"hush\n")
        typist.until(b"got 'hush'")
    assert typist.seen.count(b"hush") == 1


def test_the_terminal_echoes_again_afterwards() -> None:
    with asking("Passphrase: ", hidden=True, after="read_line('Next? ')") as typist:
        typist.until(b"Passphrase: ")
        os.write(typist.terminal, b"\x03")
        typist.until(b"Next? ")
        assert typist.echoes


def test_a_signal_while_it_waits_still_reaches_who_listened_before() -> None:
    before = (
        "reader, writer = os.pipe(); os.set_blocking(writer, False);"
        "signal.set_wakeup_fd(writer);"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))"
    )
    after = "print('passed on', os.read(reader, 9) == bytes([signal.SIGUSR1]))"
    with asking("Name? ", before=before, after=after) as typist:
        typist.until(b"Name? ")
        os.kill(typist.pid, signal.SIGUSR1)
        typist.until(b"handled")
        os.write(typist.terminal, b"one\n")
        assert b"got 'one'" in typist.rest()
        assert b"passed on True" in typist.seen


def test_ctrl_c_between_the_prompt_and_the_wait_is_not_lost() -> None:
    # From the kill to the wait nothing runs but C, so that Python has no occasion to look.
    before = (
        "import ctypes, functools, operator, select; wait = select.select;"
        "kill = functools.partial(ctypes.CDLL(None).kill, os.getpid(), signal.SIGINT);"
        "select.select = lambda *sets:"
        " list(map(operator.call, [kill, functools.partial(wait, *sets)]))[1]"
    )
    with asking("Name? ", before=before) as typist:
        assert b"raised KeyboardInterrupt" in typist.rest()
