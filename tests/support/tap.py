"""A TCP proxy that keeps what passes, WebSocket masks removed: all that a relay can see."""

from __future__ import annotations

import socket
import threading
from types import TracebackType


class Tap:
    """Listens on loopback, forwards to `target` (HOST:PORT), remembers every byte of both ways."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._captures: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Tap:
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        self._sockets.append(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Break every connection that passes now; new ones are carried again."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()  # the target is down; it may come again
                continue
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                capture = bytearray()
                self._captures.append(capture)
                self._spawn(self._carry, source, sink, capture)

    def _carry(self, source: socket.socket, sink: socket.socket, capture: bytearray) -> None:
        try:
            while data := source.recv(65536):
                capture += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def seen(self) -> bytes:
        """Everything that passed, both as it was and with WebSocket frames unmasked."""
        return b"".join(bytes(c) + unmasked(bytes(c)) for c in self._captures)


def unmasked(stream: bytes) -> bytes:
    """The payloads of the masked WebSocket frames behind a stream's HTTP head."""
    head = stream.find(b"\r\n\r\n")
    if head < 0 or b"Upgrade: websocket" not in stream[:head]:
        return b""
    at, out = head + 4, bytearray()
    while at + 2 <= len(stream):
        size = stream[at + 1] & 0x7F
        masked = stream[at + 1] & 0x80
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(stream[at : at + width], "big")
            at += width
        if not masked:
            return bytes(out)
        mask = stream[at : at + 4]
        payload = stream[at + 4 : at + 4 + size]
        out += bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        at += 4 + size
    return bytes(out)
