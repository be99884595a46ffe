"""The way to a machine, as a forwarder that a test can cut: what passes is broken, and for some
further connections nobody answers.

CODEXCTL_TEST_NETWORK names the port at which it takes orders, one line each: `target PORT` (answers
the port to use instead) and `drop`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from types import TracebackType

ENV = "CODEXCTL_TEST_NETWORK"
REFUSED = 2
"""Connections after a drop that end at once."""


def ask(order: str) -> str:
    """Give an order to the network of this process's environment."""
    address = ("127.0.0.1", int(os.environ[ENV]))
    with socket.create_connection(address, timeout=30) as sock, sock.makefile("rw") as file:
        file.write(f"{order}\n")
        file.flush()
        return file.readline().strip()


class Network:
    """Use as a context manager."""

    def __init__(self) -> None:
        self._forward = socket.create_server(("127.0.0.1", 0))
        self._orders = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._refused = 0
        self._target = 0
        self.drops = 0

    @property
    def variables(self) -> dict[str, str]:
        return {ENV: str(self._orders.getsockname()[1])}

    def __enter__(self) -> Network:
        self._spawn(self._take_orders)
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for listener in (self._forward, self._orders):
            # Wakes who waits in accept.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        self._cut()
        for thread in self._threads:
            thread.join(30)
        self._forward.close()
        self._orders.close()

    def _cut(self) -> None:
        with self._lock:
            sockets, self._open = self._open, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _take_orders(self) -> None:
        for sock in _accepted(self._orders):
            with sock, sock.makefile("rw") as file:
                word, _, value = file.readline().strip().partition(" ")
                if word == "target":
                    self._target = int(value)
                else:
                    self.drops += 1
                    self._refused = REFUSED
                    self._cut()
                file.write(f"{self._forward.getsockname()[1]}\n")

    def _accept(self) -> None:
        for near in _accepted(self._forward):
            if self._refused:
                self._refused -= 1
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open += [near, far]
            self._spawn(_carry, near, far)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            yield listener.accept()[0]
        except OSError:
            return


def _carry(near: socket.socket, far: socket.socket) -> None:
    """Both ways, until either end closes; then both are closed."""
    other = {near: far, far: near}
    with near, far, contextlib.suppress(OSError):
        while True:
            for sock in select.select(list(other), [], [])[0]:
                data = sock.recv(65536)
                if not data:
                    return
                other[sock].sendall(data)
