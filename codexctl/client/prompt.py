"""A line asked for on a terminal.

Python's own reads may lose a Ctrl-C: a signal that comes after the prompt is written and before
the read blocks is noticed only when the read returns. Here signals also write to a pipe that the
wait looks at (`signal.set_wakeup_fd`), so none is lost. For the main thread alone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

READ_SIZE = 4096  # the longest line that a terminal in its usual mode gives at once


def read_line(prompt: str, *, hidden: bool = False) -> str:
    """Write `prompt` and return the line typed, without its newline.

    A visible line is asked for on stderr and read from stdin. A hidden one is not echoed, and is
    asked for on the controlling terminal where there is one, whatever stdin and stderr are.
    KeyboardInterrupt on Ctrl-C, EOFError on Ctrl-D.
    """
    with ExitStack() as stack:
        source, sink = (_own_terminal(stack) if hidden else None) or (0, sys.stderr.fileno())
        wait = stack.enter_context(_signal_safe_wait(source))
        if hidden:
            stack.callback(os.write, sink, b"\n")
            stack.enter_context(_without_echo(source))
        sys.stderr.flush()
        os.write(sink, prompt.encode(sys.stderr.encoding, "backslashreplace"))
        line = b""
        while not line.endswith(b"\n"):
            wait()
            block = os.read(source, READ_SIZE)
            if not block:
                raise EOFError
            line += block
    return line.removesuffix(b"\n").decode(errors="surrogateescape")


def _own_terminal(stack: ExitStack) -> tuple[int, int] | None:
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    stack.callback(os.close, fd)
    return fd, fd


@contextmanager
def _signal_safe_wait(source: int) -> Iterator[Callable[[], None]]:
    """Gives a function that returns when `source` can be read; a signal's handler may raise in it.

    What signals wrote is passed on to whoever had the wakeup descriptor before, an event loop say.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    taken = b""

    def wait() -> None:
        nonlocal taken
        while True:
            ready, _, _ = select.select([source, reader], [], [])
            if reader in ready:
                taken += os.read(reader, READ_SIZE)
            if source in ready:
                return

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        taken += os.read(reader, READ_SIZE)
        os.close(reader)
        if taken and before != -1:
            os.write(before, taken)


@contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    visible = termios.tcgetattr(terminal)
    silent = visible[:]
    silent[3] &= ~termios.ECHO

    def silence(*_: object) -> None:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)

    # A shell sets its own modes while we are stopped (Ctrl-Z), and may not bring ours back.
    resumed = signal.signal(signal.SIGCONT, silence)
    try:
        silence()
        yield
    finally:
        signal.signal(signal.SIGCONT, resumed)
        termios.tcsetattr(terminal, termios.TCSAFLUSH, visible)
