"""One client of an app-server's unix socket, which speaks JSON in WebSocket messages.

An app-server that listens on a socket serves many clients at once: this host's own, and each
official terminal UI that `codexctl attach` brings. All of them see the same threads; over stdio it
would have one client, it would end with the daemon, and a second app-server is refused every thread
that the first has loaded. The official sandbox lets no command without network reach a socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

MAX_MESSAGE_BYTES = 64 << 20  # an item with its whole output
QUEUED_MESSAGES = 256  # read ahead of who takes them; then the app-server has to wait
HANDSHAKE_S = 10.0
CLOSE_S = 1.0


class SocketMessages:
    """Implements `codexctl.agent.appserver.Messages`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            async for message in self._connection:
                yield message if isinstance(message, str) else message.decode(errors="replace")
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == 1009:
                raise OSError(f"a message has more than {MAX_MESSAGE_BYTES >> 20} MiB") from error
            # Its process has ended, or it has closed without the ceremony: both are its end.

    async def send(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed as error:
            raise ConnectionResetError("it has closed its socket") from error


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[SocketMessages]:
    """A client of the app-server that listens at `path`. OSError where none does."""
    try:
        connection = await unix_connect(
            path,
            "ws://localhost/",
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            max_queue=QUEUED_MESSAGES,
            open_timeout=HANDSHAKE_S,
            close_timeout=CLOSE_S,
            ping_interval=None,  # the supervisor asks in the protocol's own words
            proxy=None,
        )
    except (InvalidHandshake, TimeoutError, EOFError) as error:
        raise ConnectionRefusedError(f"no app-server answers there: {error}") from error
    try:
        yield SocketMessages(connection)
    finally:
        await connection.close()
